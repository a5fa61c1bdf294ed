/* What every harness has; see fuzz.h. The log, too: nobody reads it, but
 * whatever a stranger says, a line stays one line of printable ASCII. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct target *target;
	const char *name = getenv("FUZZ_TARGET");

	if (target == NULL)
		for (target = targets; target->name != NULL; target++)
			if (name != NULL && strcmp(target->name, name) == 0)
				break;
	must(target->name != NULL);
	return target->judge(data, size);
}

void
must_hold(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d does not hold: %s\n", file, line, what);
	abort();
}

static ssize_t
take_line(int fd, const char *line, size_t length)
{
	size_t i;

	fwrite(line, 1, length, stderr);
	must(fd == STDERR_FILENO && length < 4096);
	must(length > 0 && line[length - 1] == '\n');
	for (i = 0; i < length - 1; i++)
		must(line[i] >= ' ' && line[i] <= '~');
	must(strncmp(line, "pop3-handler[", 13) == 0);
	must(memmem(line, length, "]: event=", 9) != NULL);
	return (ssize_t)length;
}

#define write take_line
#include "../../log.c"
