/*
 * The state file; see state.h. It is text, and looks so:
 *
 *	pop3-state 1 maildir
 *	8 NUMBERS			what the maildrop was known by
 *	PLACE SIZE OCTETS FLAGS COPY DIGEST ID NAME
 *	...				one line for each message
 *	end COUNT SUM
 *
 * The numbers are those of struct identity, and its time is the file's mtime,
 * so that it can be renewed without a new file. In a row, PLACE is the offset
 * in an mbox, SIZE the octets of a file in a Maildir, OCTETS what RETR sends;
 * DIGEST (in hex) is there in an mbox, NAME in a Maildir, and ID where the
 * unique-id is neither. What is not there is "-"; octets that are not
 *printable,
 * "%", and a "-" at the beginning are written as "%XX". SUM is that of all
 * octets before the last line; see digest.h.
 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

/* How often a file that is replaced while we lock it is tried anew. */
#define TRIES 100

#define HEAD "pop3-state 1 "
#define TAIL_OCTETS 64	      /* the last line is shorter, */
#define LINE_OCTETS 4096      /* and so is any other */
#define PIECE_OCTETS 16384    /* what is read and written at once */
#define FILE_OCTETS (1 << 29) /* larger ones are not believed */
#define DIGITS_MAX 20	      /* so many digits may be over UINT64_MAX */

enum attempt { DONE, HELD, FAILED, REPLACED };

const char *
state_unfit(const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return "not a regular file";
	if (st->st_uid != geteuid())
		return "not owned by the user";
	return st->st_nlink == 1 ? NULL : "has more than one link";
}

static int
set_lock(int fd, short type)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

	return fcntl(fd, F_SETLK, &lock);
}

/* Whether the file that is open stands at `path`. A lock on one that does not
 * guards nothing. */
static bool
stands_at(const char *path, int fd)
{
	struct stat opened, named;

	/* Over NFS the path may seem to lead to it for a while longer. */
	return fstat(fd, &opened) == 0 && opened.st_nlink > 0 &&
	       lstat(path, &named) == 0 && named.st_dev == opened.st_dev &&
	       named.st_ino == opened.st_ino;
}

static enum attempt
lock_once(const char *path, int fd)
{
	struct stat opened;
	const char *why;

	if (fstat(fd, &opened) == -1) {
		log_warning(path, "no session lock: %s", strerror(errno));
		return FAILED;
	}
	why = state_unfit(&opened);
	/* A file that was replaced after we opened it has no link left. */
	if (why != NULL && opened.st_nlink > 0) {
		log_warning(path, "no session lock: %s", why);
		return FAILED;
	}
	if (set_lock(fd, F_WRLCK) == -1) {
		if (errno == EACCES || errno == EAGAIN)
			return HELD;
		log_warning(path, "no session lock: %s", strerror(errno));
		return FAILED;
	}
	return stands_at(path, fd) ? DONE : REPLACED;
}

enum state_lock
state_lock(const char *path, int *fd)
{
	enum attempt attempt = REPLACED;
	int i;

	*fd = -1;
	for (i = 0; i < TRIES && attempt == REPLACED; i++) {
		*fd = open(path,
		    O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
			O_CLOEXEC,
		    0600);
		if (*fd == -1) {
			log_warning(
			    path, "no session lock: %s", strerror(errno));
			return STATE_UNLOCKED;
		}
		attempt = lock_once(path, *fd);
		if (attempt == DONE)
			return STATE_LOCKED;
		close(*fd);
		*fd = -1;
	}
	/* Somebody replaces it all the time: another session at work. */
	return attempt == FAILED ? STATE_UNLOCKED : STATE_HELD;
}

void
state_unlock(int fd)
{
	set_lock(fd, F_UNLCK);
}

bool
state_relock(const char *path, int fd)
{
	return set_lock(fd, F_WRLCK) == 0 && stands_at(path, fd);
}

/* ---- Reading ---- */

/* A line of which one field after another is taken. */
struct line {
	const char *p, *end;
	bool wrong; /* something was not as it should be */
};

/* A line has LF at its end, which is no digit. Most of the time that reading a
 * file takes goes here. */
static inline __attribute__((always_inline)) uint64_t
take_number(struct line *line, uint64_t most)
{
	const char *p = line->p;
	uint64_t number = 0, digit;

	for (; (digit = (uint64_t)(unsigned char)*p - '0') <= 9; p++)
		number = number * 10 + digit;
	if (p - line->p >= DIGITS_MAX) {
		errno = 0;
		number = strtoull(line->p, NULL, 10);
		line->wrong |= errno != 0;
		errno = 0;
	}
	line->wrong |= p == line->p || number > most;
	if (p < line->end && *p++ != ' ')
		line->wrong = true;
	line->p = p;
	return number;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Takes a word of at most `most` octets into `word`, and a NUL; 0 is the
 * length of one that is not there. */
static size_t
take_word(struct line *line, char *word, size_t most)
{
	size_t length = 0;
	int high, low;

	if (line->p < line->end && *line->p == '-') {
		line->p++;
	} else {
		for (; line->p < line->end && *line->p != ' ' && length < most;
		     length++) {
			word[length] = *line->p++;
			if (word[length] != '%')
				continue;
			high =
			    line->end - line->p < 2 ? -1 : hex_digit(*line->p);
			low = high == -1 ? -1 : hex_digit(line->p[1]);
			line->wrong |= low == -1 || high * 16 + low == 0;
			if (low == -1)
				break;
			word[length] = (char)(high * 16 + low);
			line->p += 2;
		}
		line->wrong |= length == 0;
	}
	word[length] = '\0';
	if (line->p < line->end && *line->p++ != ' ')
		line->wrong = true;
	return length;
}

/* A digest as digest_hex() writes it, and a space. */
static void
take_digest(struct line *line, unsigned char digest[DIGEST_OCTETS])
{
	enum { RIGHT = 16 }; /* marks a digit; the rest is its value */
	static const unsigned char digits[UCHAR_MAX + 1] = {['0'] = RIGHT,
	    ['1'] = RIGHT | 1,
	    ['2'] = RIGHT | 2,
	    ['3'] = RIGHT | 3,
	    ['4'] = RIGHT | 4,
	    ['5'] = RIGHT | 5,
	    ['6'] = RIGHT | 6,
	    ['7'] = RIGHT | 7,
	    ['8'] = RIGHT | 8,
	    ['9'] = RIGHT | 9,
	    ['a'] = RIGHT | 10,
	    ['b'] = RIGHT | 11,
	    ['c'] = RIGHT | 12,
	    ['d'] = RIGHT | 13,
	    ['e'] = RIGHT | 14,
	    ['f'] = RIGHT | 15};
	const unsigned char *p = (const unsigned char *)line->p;
	unsigned high, low, right = RIGHT, i;

	if (line->end - line->p <= DIGEST_HEX) {
		line->wrong = true;
		return;
	}
#pragma GCC unroll 8
	for (i = 0; i < DIGEST_OCTETS; i++) {
		high = digits[p[2 * i]];
		low = digits[p[2 * i + 1]];
		right &= high & low;
		digest[i] = (unsigned char)(high << 4 | (low & 15));
	}
	line->wrong |= right == 0 || p[DIGEST_HEX] != ' ';
	line->p += DIGEST_HEX + 1;
}

/* Adds the row that a line is. */
static bool
take_row(struct maildrop *md, struct line *line)
{
	struct message_table *table = &md->before;
	char id[MAILDROP_UID_OCTETS + 1], name[NAME_MAX + 1], none[1];
	struct message *m = message_add(table);
	uint64_t place, size;
	int64_t text = 0;
	size_t length;

	if (m == NULL)
		return false;
	place = take_number(line, MESSAGE_OCTETS_MAX);
	size = take_number(line, MESSAGE_OCTETS_MAX);
	m->octets = take_number(line, MESSAGE_OCTETS_MAX) & MESSAGE_OCTETS_MAX;
	m->flags = take_number(line, MESSAGE_FLAGS) & MESSAGE_LASTING;
	m->copy = take_number(line, MESSAGE_COPY_MAX) & MESSAGE_COPY_MAX;
	if (md->format->named) {
		m->of.size = size;
		take_word(line, none, 0);
	} else {
		take_digest(line, m->of.digest);
	}
	length = take_word(line, id, MAILDROP_UID_OCTETS);
	if (length > 0) {
		line->wrong |= !message_id_valid(id, length);
		text = text_add(md, id, length + 1);
		if (message_set_id(table, table->count - 1, text) == -1)
			return false;
	}
	length = take_word(line, name, NAME_MAX);
	if (md->format->named) {
		line->wrong |=
		    length == 0 || *name == '.' || strchr(name, '/') != NULL ||
		    ((m->flags & MESSAGE_DIGEST) != 0 && text == 0) ||
		    (text == 0 && !message_id_valid(name, strcspn(name, ":")));
		text = text_add(md, name, length + 1);
		if (text == -1)
			return false;
		place = (uint64_t)text;
	} else {
		line->wrong |= length > 0;
	}
	m->place = place & MESSAGE_OCTETS_MAX;
	return !line->wrong && line->p == line->end;
}

/* Takes one line, the `n`th from 0. */
static bool
take_line(struct maildrop *md, unsigned n, const char *p, const char *end)
{
	struct line line = {.p = p, .end = end};
	char head[32];
	int length;
	unsigned i;

	if (n == 0) {
		length =
		    snprintf(head, sizeof(head), HEAD "%s", md->format->name);
		return end - p == length &&
		       memcmp(p, head, (size_t)length) == 0;
	}
	if (n > 1)
		return take_row(md, &line);
	for (i = 0; i < IDENTITY_NUMBERS; i++)
		md->known.number[i] = take_number(&line, UINT64_MAX);
	return !line.wrong && line.p == line.end;
}

/* Reads the last line, which begins at the stored offset: 0, or -1. */
static int
read_tail(int fd, off_t size, off_t *at, uint64_t *count, uint64_t *sum)
{
	char tail[TAIL_OCTETS + 1];
	off_t from = size < TAIL_OCTETS ? 0 : size - TAIL_OCTETS;
	ssize_t n = read_at(fd, tail, TAIL_OCTETS, from);
	unsigned long long number, check;
	char exact[TAIL_OCTETS];
	const char *end;
	int taken;

	if (n < 1 || tail[n - 1] != '\n')
		return -1;
	tail[n] = '\0';
	end = memrchr(tail, '\n', (size_t)n - 1);
	if (end == NULL)
		return -1;
	/* A number that does not fit is no failure to read, and does not look
	 * the same when written. NOLINTNEXTLINE(cert-err34-c) */
	taken = sscanf(end + 1, "end %llu %llx\n", &number, &check);
	errno = 0;
	if (taken != 2)
		return -1;
	snprintf(exact, sizeof(exact), "end %llu %016llx\n", number, check);
	if (strcmp(end + 1, exact) != 0)
		return -1;
	*at = from + (end + 1 - tail);
	*count = number;
	*sum = check;
	return 0;
}

/* Reads all lines before `size`; what is wrong with them, or NULL. */
static const char *
read_lines(struct maildrop *md, off_t size, uint64_t count, uint64_t expected)
{
	size_t held = 0, part;
	uint64_t sum = 0;
	const char *p, *lf;
	unsigned n = 0;
	off_t at;

	for (at = 0; at < size; at += (off_t)part) {
		part = size - at < PIECE_OCTETS ? (size_t)(size - at)
						: PIECE_OCTETS;
		if (read_at(md->lock, md->block + held, part, at) !=
		    (ssize_t)part)
			return "damaged";
		sum = sum_add(sum, md->block + held, part);
		held += part;
		p = md->block;
		while ((lf = memchr(p, '\n', held)) != NULL) {
			if (!take_line(md, n++, p, lf))
				return "damaged, or not one of ours";
			held -= (size_t)(lf + 1 - p);
			p = lf + 1;
		}
		if (held > LINE_OCTETS)
			return "damaged, or not one of ours";
		memmove(md->block, p, held);
	}
	return held == 0 && n >= 2 && n - 2 == count && sum == expected
		   ? NULL
		   : "damaged";
}

enum maildrop_result
state_read(struct maildrop *md)
{
	const char *wrong = "damaged";
	uint64_t count, sum;
	struct stat st;
	off_t end;

	errno = 0; /* what is only damaged leaves it so */
	if (fstat(md->lock, &st) == 0 && st.st_size == 0)
		return MAILDROP_OK;
	if (errno == 0 && st.st_size > FILE_OCTETS)
		wrong = "too large";
	else if (errno == 0 &&
		 read_tail(md->lock, st.st_size, &end, &count, &sum) == 0)
		wrong = read_lines(md, end, count, sum);
	md->remembered = wrong == NULL;
	if (!md->remembered)
		md->before.count = 0;
	if (!md->remembered && errno != 0)
		return maildrop_failed(md->state, "read");
	if (!md->remembered)
		log_warning(md->state, "not used, made anew: %s", wrong);
	md->known.sure = st.st_mtim;
	return MAILDROP_OK;
}

/* ---- Writing ---- */

struct writer {
	int fd;
	char *block;
	size_t held;
	off_t at;
	uint64_t sum;
	bool failed;
};

/* Writes out what is held, but for less than a piece unless it is the end. */
static void
write_out(struct writer *w, bool end)
{
	size_t part;

	while (
	    !w->failed && (w->held >= PIECE_OCTETS || (end && w->held > 0))) {
		part = w->held < PIECE_OCTETS ? w->held : PIECE_OCTETS;
		w->sum = sum_add(w->sum, w->block, part);
		w->failed = write_at(w->fd, w->block, part, w->at) == -1;
		w->at += (off_t)part;
		w->held -= part;
		memmove(w->block, w->block + part, w->held);
	}
}

static void
put_text(struct writer *w, const char *text, size_t length)
{
	memcpy(w->block + w->held, text, length);
	w->held += length;
}

static void
put_number(struct writer *w, uint64_t number)
{
	char digits[21], *p = digits + sizeof(digits);

	*--p = ' ';
	do
		*--p = (char)('0' + number % 10);
	while ((number /= 10) > 0);
	put_text(w, p, (size_t)(digits + sizeof(digits) - p));
}

/* A word, and a space or the end of the line. */
static void
put_word(struct writer *w, const char *word, char after)
{
	static const char digits[] = "0123456789ABCDEF";
	const char *p;

	if (word == NULL)
		put_text(w, "-", 1);
	for (p = word; p != NULL && *p != '\0'; p++) {
		if (*p > ' ' && *p <= '~' && *p != '%' &&
		    (*p != '-' || p > word)) {
			w->block[w->held++] = *p;
			continue;
		}
		w->block[w->held++] = '%';
		w->block[w->held++] = digits[(unsigned char)*p >> 4];
		w->block[w->held++] = digits[*p & 15];
	}
	w->block[w->held++] = after;
}

static void
put_row(struct writer *w, const struct maildrop *md, unsigned n)
{
	const struct message *m = &md->table.row[n];
	bool named = md->format->named;
	char digest[DIGEST_HEX + 1];

	put_number(w, named ? 0 : m->place);
	put_number(w, named ? m->of.size : 0);
	put_number(w, m->octets);
	put_number(w, m->flags & MESSAGE_LASTING);
	put_number(w, m->copy);
	if (!named)
		digest_hex(m->of.digest, digest);
	put_word(w, named ? NULL : digest, ' ');
	put_word(w, message_id(md, &md->table, n), ' ');
	put_word(w, named ? md->text.octets + m->place : NULL, '\n');
	write_out(w, false);
}

/* Whether a scan would not give all unique-ids again: then they are to be on
 * the disk before the old file is gone. */
static bool
has_lasting_ids(const struct maildrop *md)
{
	unsigned i;

	for (i = 0; i < md->table.count; i++)
		if (md->table.row[i].copy > 1 ||
		    (md->table.row[i].flags & MESSAGE_TAKEN) != 0)
			return true;
	return false;
}

static int
write_file(struct maildrop *md, int fd)
{
	const struct timespec times[2] = {
	    {.tv_nsec = UTIME_OMIT}, md->identity.sure};
	struct writer w = {.fd = fd, .block = md->block};
	char line[TAIL_OCTETS];
	unsigned i;

	put_text(&w, HEAD, sizeof(HEAD) - 1);
	put_word(&w, md->format->name, '\n');
	for (i = 0; i < IDENTITY_NUMBERS; i++)
		put_number(&w, md->identity.number[i]);
	w.block[w.held - 1] = '\n';
	for (i = 0; i < md->table.count && !w.failed; i++)
		put_row(&w, md, i);
	write_out(&w, true);
	i = (unsigned)snprintf(line, sizeof(line), "end %u %016llx\n",
	    md->table.count, (unsigned long long)w.sum);
	if (w.failed || write_at(fd, line, i, w.at) == -1 ||
	    futimens(fd, times) == -1)
		return -1;
	return has_lasting_ids(md) ? sync_file(fd) : 0;
}

void
state_write(struct maildrop *md)
{
	char path[PATH_MAX];
	int fd = -1;

	errno = ENAMETOOLONG;
	if ((size_t)snprintf(path, sizeof(path), "%s.new", md->state) <
	    sizeof(path)) {
		/* What a killed session has left; ours is the session lock. */
		unlink(path);
		fd = open(path,
		    O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	}
	if (fd != -1 && write_file(md, fd) == 0 && set_lock(fd, F_WRLCK) == 0 &&
	    rename(path, md->state) == 0) {
		close(md->lock);
		md->lock = fd;
		return;
	}
	if (!md->unwritten)
		log_warning(md->state, "not written: %s", strerror(errno));
	md->unwritten = true;
	if (fd == -1)
		return;
	unlink(path);
	close(fd);
}

void
state_confirm(const struct maildrop *md)
{
	const struct timespec times[2] = {
	    {.tv_nsec = UTIME_OMIT}, md->identity.sure};

	/* Where it fails the next session looks again, that is all. */
	(void)futimens(md->lock, times);
}
