/*
 * MD5 (RFC 1321), as unique-ids use it: to recognise a message, not to
 * protect anything.
 */
#ifndef DIGEST_H
#define DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define DIGEST_OCTETS 16
#define DIGEST_HEX (2 * DIGEST_OCTETS) /* without the terminating NUL */

struct digest {
	uint32_t state[4];
	uint64_t octets;	 /* taken in so far */
	unsigned char block[64]; /* octets % 64 of them wait here */
};

/* Begins a digest. */
void digest_start(struct digest *d);

/* Takes in `length` octets at `data`, which may come in any pieces. */
void digest_add(struct digest *d, const void *data, size_t length);

/* Ends the digest and stores its 16 octets; `d` must be started again. */
void digest_end(struct digest *d, unsigned char out[DIGEST_OCTETS]);

/* Writes 16 octets as 32 lower-case hex digits and a NUL. */
void
digest_hex(const unsigned char in[DIGEST_OCTETS], char out[DIGEST_HEX + 1]);

#endif
