/*
 * MD5 (RFC 1321), as APOP wants it and unique-ids use it: to recognise a
 * message, not to protect anything. A sum that tells a file of ours from a
 * damaged one. And base64 (RFC 4648), as AUTH has it.
 */
#ifndef DIGEST_H
#define DIGEST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

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

/*
 * A sum that a torn or stale sector and a flipped bit do not keep. Continues
 * from `sum`, which begins as 0; all pieces but the last are multiples of 8
 * octets.
 */
uint64_t sum_add(uint64_t sum, const char *data, size_t length);

/*
 * Decodes base64, which must be complete, padded and without blanks or stray
 * bits (RFC 4648 section 3.5), into `out`, which may be `text` itself and
 * holds 3/4 of its length. Returns the octets decoded, or -1.
 */
ssize_t base64_decode(const char *text, size_t length, char *out);

#endif
