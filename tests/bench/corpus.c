/*
 * corpus: makes maildrops for the benchmark, the same ones each time.
 *
 * usage: corpus mbox FILE COUNT OCTETS
 *        corpus maildir DIR COUNT OCTETS
 *        corpus one FILE 1 OCTETS
 *
 * COUNT messages of OCTETS on average: a header of 1 to 2 KB as mail has it
 * after a few hops; a body whose size is log-normal; lines that begin with
 * dots; what a longer body is made of is a base64 attachment. With OCTETS below
 * 1,000 the messages are tiny, with a header of three lines. "one" makes an
 * mbox of one message of exactly that size in its body. In a Maildir what is
 * there already is left as it is, and all messages are in cur/.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIGMA 1.2
#define POOL (1 << 20)
#define TEXT_MAX 8000 /* octets of text, before an attachment */
#define TINY 1000

static uint64_t seed;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 6364136223846793005U + 1442695040888963407U;
	return (uint32_t)((seed >> 32) * below >> 32);
}

static double
normal(void)
{
	double a = (draw(1 << 30) + 1.0) / (1 << 30), b = draw(1 << 30);

	return sqrt(-2 * log(a)) * cos(b / (1 << 30) * 2 * 3.14159265358979);
}

/* Lines of text and of base64 to take slices of. */
static char text[POOL + 100], base64[POOL + 100];
static uint32_t text_end, base64_end; /* each after a line end */

static void
fill_pools(void)
{
	static const char letters[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	uint32_t i, width;

	while (base64_end + 77 <= POOL) {
		for (i = 0; i < 76; i++)
			base64[base64_end++] = letters[draw(64)];
		base64[base64_end++] = '\n';
	}
	while (text_end + 100 <= POOL) {
		if (draw(40) == 0) /* what must be stuffed */
			for (i = draw(3); i < 3; i++)
				text[text_end++] = '.';
		width = draw(8) == 0 ? 0 : 20 + draw(58);
		for (i = 0; i < width; i++)
			text[text_end++] =
			    draw(6) == 0 ? ' ' : letters[26 + draw(26)];
		text[text_end++] = '\n';
	}
}

static char *buffer;
static size_t used, room;

static void
add(const char *octets, size_t length)
{
	while (used + length > room) {
		room = room * 2 + (1 << 20);
		buffer = realloc(buffer, room);
		if (buffer == NULL)
			err(1, "memory");
	}
	memcpy(buffer + used, octets, length);
	used += length;
}

/* Whole lines of a pool, of `length` octets or a little less. */
static void
add_lines(const char *pool, uint32_t end, uint64_t length)
{
	while (length > 0) {
		uint32_t from = draw(end / 2), part = end - from;
		const char *line = memchr(pool + from, '\n', part);

		part -= (uint32_t)(line + 1 - (pool + from));
		if (part > length) {
			const char *last = memrchr(line + 1, '\n', length);

			part = last == NULL ? 0 : (uint32_t)(last - line);
			length = part;
		}
		add(line + 1, part);
		length -= part;
	}
}

__attribute__((format(printf, 1, 2))) static void
line(const char *format, ...)
{
	char out[400];
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(out, sizeof(out), format, list);
	va_end(list);
	add(out, (size_t)n);
	add("\n", 1);
}

static void
header(uint32_t n, bool attachment)
{
	uint32_t hops = 2 + draw(4), i;

	line("Return-Path: <sender%u@example.org>", n % 977);
	line("Delivered-To: reader@example.com");
	for (i = 0; i < hops; i++) {
		line("Received: from mx%u.example.net (mx%u.example.net "
		     "[192.0.2.%u])",
		    draw(20), draw(20), draw(255));
		line(
		    "\tby mail%u.example.com (Postfix) with ESMTPS id %08X%02X",
		    i, draw(UINT32_MAX), i);
		line("\tfor <reader@example.com>; Mon,  1 Jan 2024 "
		     "%02u:%02u:%02u +0000 (UTC)",
		    n / 3600 % 24, n / 60 % 60, n % 60);
	}
	line("DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; "
	     "d=example.org;");
	line("\ts=default; t=17040%05u; h=Date:From:To:Subject:Message-ID; b=",
	    n);
	for (i = 0; i < 5; i++)
		line("\t%.68s", base64 + draw(10000) * 77);
	line("Date: Mon, 1 Jan 2024 %02u:%02u:%02u +0000", n / 3600 % 24,
	    n / 60 % 60, n % 60);
	line("From: \"A. Sender\" <sender%u@example.org>", n % 977);
	line("To: Reader <reader@example.com>");
	line("Message-ID: <%u.%08x@mail.example.org>", n, draw(UINT32_MAX));
	line("Subject: message number %u, of the benchmark", n);
	line("MIME-Version: 1.0");
	line("X-Mailer: an invented program 1.%u", draw(9));
	line("Content-Type: %s", attachment ? "multipart/mixed; boundary=\"b1\""
					    : "text/plain; charset=utf-8");
	line("Content-Transfer-Encoding: 8bit");
	line("Status: RO");
	line("%s", "");
}

static void
message(uint32_t n, uint64_t mean, bool exact)
{
	double mu;
	uint64_t body = mean, part;

	if (mean < TINY) {
		line("Message-ID: <%u@example.org>\nFrom: <a@example.org>\n"
		     "Subject: %u\n",
		    n, n);
		add_lines(text, text_end, mean - 80 + draw(60));
		return;
	}
	if (!exact) { /* without the header, and with a mean as it should be */
		mu = log(mean > 3000 ? (double)mean - 1500 : 800.0);
		body = (uint64_t)exp(mu - SIGMA * SIGMA / 2 + SIGMA * normal());
		if (body > 30 * mean)
			body = 30 * mean;
	}
	header(n, body > TEXT_MAX);
	if (body <= TEXT_MAX) {
		add_lines(text, text_end, body);
		return;
	}
	line("--b1\nContent-Type: text/plain; charset=utf-8\n");
	part = 1000 + draw(TEXT_MAX - 2000);
	add_lines(text, text_end, part);
	line("\n--b1\nContent-Type: application/pdf\nContent-Disposition: "
	     "attachment;\n"
	     "\tfilename=\"%u.pdf\"\nContent-Transfer-Encoding: base64\n",
	    n);
	add_lines(base64, base64_end, body - part);
	line("\n--b1--");
}

static void
write_out(int fd, const char *name)
{
	size_t done = 0;
	ssize_t n;

	for (; done < used; done += (size_t)n) {
		n = write(fd, buffer + done, used - done);
		if (n == -1)
			err(1, "%s", name);
	}
	used = 0;
}

static void
make_mbox(const char *name, uint32_t count, uint64_t mean, bool exact)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	uint32_t n;

	if (fd == -1)
		err(1, "%s", name);
	for (n = 1; n <= count; n++) {
		line("From sender%u@example.org Mon Jan  1 %02u:%02u:%02u 2024",
		    n % 977, n / 3600 % 24, n / 60 % 60, n % 60);
		message(n, mean, exact);
		line("%s", "");
		if (used > 4 << 20)
			write_out(fd, name);
	}
	write_out(fd, name);
	close(fd);
}

static void
make_maildir(const char *name, uint32_t count, uint64_t mean)
{
	static const char *const parts[] = {"new", "tmp", "cur"};
	char path[PATH_MAX];
	uint32_t n, i;
	int fd;

	if (mkdir(name, 0700) == -1 && errno != EEXIST)
		err(1, "%s", name);
	for (i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", name, parts[i]);
		if (mkdir(path, 0700) == -1 && errno != EEXIST)
			err(1, "%s", path);
	}
	if (chdir(path) == -1)
		err(1, "%s", path);
	for (n = 1; n <= count; n++) {
		message(n, mean, false);
		snprintf(path, sizeof(path),
		    "%u.M%06uP%u.mail.example.com:2,%s", 1700000000 + n * 60,
		    draw(1000000), 1000 + draw(30000), draw(2) == 0 ? "S" : "");
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
		if (fd == -1 && errno == EEXIST) {
			used = 0;
			continue;
		}
		if (fd == -1)
			err(1, "%s", path);
		write_out(fd, path);
		close(fd);
	}
}

int
main(int argc, char **argv)
{
	uint32_t count;
	uint64_t mean;

	if (argc != 5)
		errx(64, "usage: corpus mbox|maildir|one FILE COUNT OCTETS");
	count = (uint32_t)atol(argv[3]);
	mean = (uint64_t)atoll(argv[4]);
	fill_pools();
	if (strcmp(argv[1], "maildir") == 0)
		make_maildir(argv[2], count, mean);
	else
		make_mbox(argv[2], count, mean, strcmp(argv[1], "one") == 0);
	return 0;
}
