/* What the harnesses share: each has targets, of which FUZZ_TARGET names one,
 * and says what must hold of every input. libFuzzer and AFL++ report what
 * aborts. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Judges an input; -1 where it is none for the target. */
struct target {
	const char *name;
	int (*judge)(const uint8_t *data, size_t size);
};
extern const struct target targets[]; /* the last one has no name */

#define must(holds) ((holds) ? (void)0 : must_hold(__FILE__, __LINE__, #holds))
void must_hold(const char *file, int line, const char *what);

#endif
