/* MD5 as RFC 1321 describes it. */
#include "digest.h"

#include <string.h>

/* RFC 1321 section 3.4: the integer part of 4294967296 times abs(sin(i)). */
static const uint32_t sines[64] = {0xd76aa478, 0xe8c7b756, 0x242070db,
    0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501, 0x698098d8,
    0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e,
    0x49b40821, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d,
    0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87,
    0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a, 0xfffa3942,
    0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60,
    0xbebfbc70, 0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039,
    0xe6db99e5, 0x1fa27cf8, 0xc4ac5665, 0xf4292244, 0x432aff97, 0xab9423a7,
    0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1, 0x6fa87e4f,
    0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb,
    0xeb86d391};

static uint32_t
rotate(uint32_t x, unsigned bits)
{
	return x << bits | x >> (32 - bits);
}

static uint32_t
word(const unsigned char *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

/* One step: `mix` is the round's function of b, c and d; the caller turns
 * the four words instead of moving them. */
#define STEP(mix, a, b, c, d, k, i, bits) \
	((a) = (b) + rotate((a) + (mix(b, c, d)) + x[k] + sines[i], (bits)))
#define F(b, c, d) ((d) ^ ((b) & ((c) ^ (d))))
#define G(b, c, d) ((c) ^ ((d) & ((b) ^ (c))))
#define H(b, c, d) ((b) ^ (c) ^ (d))
#define I(b, c, d) ((c) ^ ((b) | ~(d)))
#define ROUND(mix, base, first, stride, s1, s2, s3, s4)                        \
	for (i = 0; i < 16; i += 4) {                                          \
		STEP(mix, a, b, c, d, ((first) + (stride)*i) & 15, (base) + i, \
		    s1);                                                       \
		STEP(mix, d, a, b, c, ((first) + (stride) * (i + 1)) & 15,     \
		    (base) + i + 1, s2);                                       \
		STEP(mix, c, d, a, b, ((first) + (stride) * (i + 2)) & 15,     \
		    (base) + i + 2, s3);                                       \
		STEP(mix, b, c, d, a, ((first) + (stride) * (i + 3)) & 15,     \
		    (base) + i + 3, s4);                                       \
	}

static void
take_block(struct digest *m, const unsigned char *p)
{
	uint32_t a = m->state[0], b = m->state[1];
	uint32_t c = m->state[2], d = m->state[3];
	uint32_t x[16];
	unsigned i;

	for (i = 0; i < 16; i++)
		x[i] = word(p + (size_t)4 * i);
	ROUND(F, 0, 0, 1, 7, 12, 17, 22)
	ROUND(G, 16, 1, 5, 5, 9, 14, 20)
	ROUND(H, 32, 5, 3, 4, 11, 16, 23)
	ROUND(I, 48, 0, 7, 6, 10, 15, 21)
	m->state[0] += a;
	m->state[1] += b;
	m->state[2] += c;
	m->state[3] += d;
}

void
digest_start(struct digest *d)
{
	d->state[0] = 0x67452301;
	d->state[1] = 0xefcdab89;
	d->state[2] = 0x98badcfe;
	d->state[3] = 0x10325476;
	d->octets = 0;
}

void
digest_add(struct digest *d, const void *data, size_t length)
{
	const unsigned char *p = data;
	size_t held = d->octets % 64, part;

	d->octets += length;
	if (held > 0) {
		part = 64 - held < length ? 64 - held : length;
		memcpy(d->block + held, p, part);
		if (held + part < 64)
			return;
		take_block(d, d->block);
		p += part;
		length -= part;
	}
	for (; length >= 64; p += 64, length -= 64)
		take_block(d, p);
	memcpy(d->block, p, length);
}

void
digest_end(struct digest *d, unsigned char out[DIGEST_OCTETS])
{
	static const unsigned char padding[64] = {0x80};
	uint64_t bits = d->octets * 8;
	unsigned char tail[8];
	unsigned i;

	for (i = 0; i < 8; i++)
		tail[i] = (unsigned char)(bits >> (8 * i));
	/* Up to 56 octets into a block, so that the length just fills it. */
	digest_add(d, padding, 1 + (119 - d->octets % 64) % 64);
	digest_add(d, tail, sizeof(tail));
	for (i = 0; i < DIGEST_OCTETS; i++)
		out[i] = (unsigned char)(d->state[i / 4] >> (8 * (i % 4)));
}

/* The two digits of each octet that begins with `high`; of all octets. */
#define SIXTEEN(high)                                                       \
	high "0" high "1" high "2" high "3" high "4" high "5" high "6" high \
	     "7" high "8" high "9" high "a" high "b" high "c" high "d" high \
	     "e" high "f"
static const char pairs[] = SIXTEEN("0") SIXTEEN("1") SIXTEEN("2") SIXTEEN("3")
    SIXTEEN("4") SIXTEEN("5") SIXTEEN("6") SIXTEEN("7") SIXTEEN("8")
	SIXTEEN("9") SIXTEEN("a") SIXTEEN("b") SIXTEEN("c") SIXTEEN("d")
	    SIXTEEN("e") SIXTEEN("f");

void
digest_hex(const unsigned char in[DIGEST_OCTETS], char out[DIGEST_HEX + 1])
{
	unsigned i;

#pragma GCC unroll 16
	for (i = 0; i < DIGEST_OCTETS; i++)
		memcpy(out + (size_t)2 * i, pairs + (size_t)2 * in[i], 2);
	out[DIGEST_HEX] = '\0';
}

static uint64_t
sum_mix(uint64_t sum, uint64_t eight)
{
	sum = (sum ^ eight) * UINT64_C(0x9e3779b97f4a7c15);
	return sum ^ sum >> 29;
}

uint64_t
sum_add(uint64_t sum, const char *data, size_t length)
{
	uint64_t eight;

	for (; length >= sizeof(eight); data += sizeof(eight)) {
		memcpy(&eight, data, sizeof(eight));
		sum = sum_mix(sum, eight);
		length -= sizeof(eight);
	}
	if (length == 0)
		return sum;
	eight = length;
	memcpy(&eight, data, length);
	return sum_mix(sum, eight);
}

/* What a base64 letter stands for, or -1. */
static int
base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '+')
		return 62;
	return c == '/' ? 63 : -1;
}

ssize_t
base64_decode(const char *text, size_t length, char *out)
{
	unsigned bits = 0, held = 0, padding = 0;
	ssize_t used = 0;
	size_t i;
	int value;

	if (length % 4 != 0)
		return -1;
	while (padding < 2 && length > 0 && text[length - 1] == '=') {
		length--;
		padding++;
	}
	for (i = 0; i < length; i++) {
		value = base64_value(text[i]);
		if (value == -1)
			return -1;
		bits = (bits << 6 | (unsigned)value) & 0xffffff;
		held += 6;
		if (held >= 8) {
			held -= 8;
			out[used++] = (char)(unsigned char)(bits >> held);
		}
	}
	return (bits & ((1U << held) - 1)) == 0 ? used : -1;
}
