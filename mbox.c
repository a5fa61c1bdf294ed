/*
 * The mbox format: messages one after another in one file, each behind a
 * From_ line. The file is only ever changed in place, under both kinds of
 * delivery lock: a delivery agent that waits with the file open would write
 * into a deleted file if we put a new one in its place.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "maildrop.h"

#define FROM_OCTETS 1024 /* a longer line is no From_ line */

#define LOCK_SECONDS 30	    /* how long we wait for the delivery locks */
#define REFRESH_SECONDS 30  /* how often a dotlock of ours is touched */
#define STALE_SECONDS 600   /* a stranger's dotlock this old is abandoned */
#define TAG "pop3-handler " /* how a dotlock of ours begins */

/* What tells one state of the file from another. */
struct identity {
	dev_t device;
	ino_t inode;
	off_t size;
	struct timespec modified, changed;
};

static struct {
	int fd; /* the one descriptor: closing any would drop the fcntl lock */
	bool writable;
	struct identity known; /* when its table was made */
	off_t end;	       /* where the last message of the table ends */
	bool foreign;	       /* it holds other messages than the table now */
	char dotlock_path[PATH_MAX]; /* empty while there is none of ours */
	int dotlock;		     /* our dotlock, open for refreshing */
	time_t refreshed;
	bool warned; /* that there is no place for a dotlock */
	sigset_t unlocked_signals;
} mbox = {.fd = -1, .dotlock = -1};

/* ---- From_ lines ---- */

struct token {
	const char *text;
	size_t length;
};

/* Takes the next word off a line; false at its end. */
static bool
next_token(const char **p, const char *end, struct token *token)
{
	while (*p < end && (**p == ' ' || **p == '\t'))
		++*p;
	token->text = *p;
	while (*p < end && **p != ' ' && **p != '\t')
		++*p;
	token->length = (size_t)(*p - token->text);
	return token->length > 0;
}

/* Whether a word is one of a list of three-letter names. */
static bool
is_name(const struct token *token, const char *names)
{
	size_t i;

	if (token->length != 3)
		return false;
	for (i = 0; names[i] != '\0'; i += 3)
		if (strncasecmp(token->text, names + i, 3) == 0)
			return true;
	return false;
}

/* Whether a word has the shape of a pattern: "9" stands for a digit, "0" for
 * one that may be missing. */
static bool
has_shape(const struct token *token, const char *shape)
{
	size_t i = 0;
	bool digit;

	for (; *shape != '\0'; shape++) {
		digit = i < token->length && token->text[i] >= '0' &&
			token->text[i] <= '9';
		if (*shape == '0') {
			i += digit;
		} else if (*shape == '9' ? digit
					 : i < token->length &&
					       token->text[i] == *shape) {
			i++;
		} else {
			return false;
		}
	}
	return i == token->length;
}

/*
 * Whether what follows the day of the week is a date: month, day, time and
 * year, as ctime(3) or RFC 5322 order them, with time zones anywhere between
 * and anything after them ("remote from ...").
 */
static bool
is_date(const char *p, const char *end)
{
	enum { MONTH = 1, DAY = 2, TIME = 4, YEAR = 8, ALL = 15 };
	unsigned seen = 0;
	struct token token;

	while (seen != ALL) {
		if (!next_token(&p, end, &token))
			return false;
		if (is_name(&token, "JanFebMarAprMayJunJulAugSepOctNovDec"))
			seen |= MONTH;
		else if (has_shape(&token, "90"))
			seen |= DAY;
		else if (has_shape(&token, "90:99") ||
			 has_shape(&token, "90:99:99"))
			seen |= TIME;
		else if (has_shape(&token, "9999"))
			seen |= YEAR;
		else if ((seen & TIME) == 0 || token.length > 5)
			return false; /* not a time zone: no date */
	}
	return true;
}

/* Whether a line without its LF is a From_ line: "From ", a sender, a date. */
static bool
is_from_line(const char *line, size_t length)
{
	const char *p = line + 5, *end = line + length;
	struct token token;

	if (length > FROM_OCTETS || length < 6 || memcmp(line, "From ", 5) != 0)
		return false;
	if (end[-1] == '\r')
		end--;
	/* The sender: nothing (two spaces), or one word, which may begin with
	 * a quoted part that holds blanks. */
	if (*p == '"') {
		for (p++; p < end && *p != '"'; p++)
			p += *p == '\\' && p + 1 < end;
	}
	if (*p != ' ' && !next_token(&p, end, &token))
		return false;
	if (!next_token(&p, end, &token))
		return false;
	if (token.length == 4 && token.text[3] == ',')
		token.length = 3;
	return is_name(&token, "SunMonTueWedThuFriSat") && is_date(p, end);
}

/* ---- The file ---- */

static void
identify(const struct stat *st, struct identity *id)
{
	memset(id, 0, sizeof(*id));
	id->device = st->st_dev;
	id->inode = st->st_ino;
	id->size = st->st_size;
	id->modified = st->st_mtim;
	id->changed = st->st_ctim;
}

static bool
same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool
same_identity(const struct identity *a, const struct identity *b)
{
	return a->device == b->device && a->inode == b->inode &&
	       a->size == b->size && same_time(&a->modified, &b->modified) &&
	       same_time(&a->changed, &b->changed);
}

static enum maildrop_result
open_file(struct maildrop *md)
{
	const int flags = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	struct stat st;

	mbox.writable = true;
	mbox.fd = open(md->path, O_RDWR | flags);
	if (mbox.fd == -1 && (errno == EACCES || errno == EROFS)) {
		mbox.writable = false;
		mbox.fd = open(md->path, O_RDONLY | flags);
	}
	if (mbox.fd == -1 || fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "open");
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid()) {
		log_error(md->path, "not a regular file of the user's");
		return MAILDROP_PERM;
	}
	if ((uint64_t)st.st_size > MESSAGE_OCTETS_MAX) {
		log_error(md->path, "too large");
		return MAILDROP_PERM;
	}
	return MAILDROP_OK;
}

/* The length of the From_ line that `at` must begin with, its LF included;
 * 0 if there is none, -1 with errno where it can't be read. */
static ssize_t
from_line_at(int fd, off_t at)
{
	char line[FROM_OCTETS + 1];
	const char *lf;
	ssize_t n;

	n = read_at(fd, line, sizeof(line), at);
	if (n <= 0)
		return n;
	lf = memchr(line, '\n', (size_t)n);
	if (lf == NULL)
		/* Only the end of the file may take the place of LF. */
		return is_from_line(line, (size_t)n) ? n : 0;
	return is_from_line(line, (size_t)(lf - line)) ? lf - line + 1 : 0;
}

/* ---- Delivery locks ---- */

enum lock_attempt { LOCKED, BUSY, NO_PLACE, FAILED };

/* Whether a dotlock is one of ours. */
static bool
has_our_tag(const char *path)
{
	char tag[sizeof(TAG)] = "";
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	bool ours;

	if (fd == -1)
		return false;
	ours = read(fd, tag, sizeof(tag) - 1) > 0 && strcmp(tag, TAG) == 0;
	close(fd);
	return ours;
}

/*
 * Removes a dotlock that nobody stands behind: one of ours, since we hold the
 * session lock and so no other session of ours is at work, or a stranger's
 * that is old. We need not be able to read that.
 */
static bool
remove_stale(const struct maildrop *md, const char *path, time_t now)
{
	struct stat first, again;
	bool stale;

	if (lstat(path, &first) == -1 || !S_ISREG(first.st_mode))
		return false;
	stale =
	    first.st_mtime + STALE_SECONDS < now ||
	    (md->lock != -1 && first.st_uid == geteuid() && has_our_tag(path));
	if (!stale || lstat(path, &again) == -1 ||
	    again.st_ino != first.st_ino || again.st_dev != first.st_dev ||
	    again.st_mtime != first.st_mtime || unlink(path) == -1)
		return false;
	log_warning(path, "removed: an abandoned lock");
	return true;
}

/*
 * Makes NAME.lock by link(2), which either succeeds wholly or finds that it
 * is there, even over NFS. The linked file bears our tag.
 */
static enum lock_attempt
link_dotlock(
    const struct maildrop *md, const char *own, const char *lock, int fd)
{
	char text[64];
	struct stat st;
	int length = snprintf(text, sizeof(text), TAG "%ld\n", (long)getpid());

	/* On a full disk it is a lock without a tag, no worse for others. */
	if (write(fd, text, (size_t)length) == -1 || fstat(fd, &st) == -1)
		st.st_mtime = time(NULL);
	if (link(own, lock) == 0)
		return LOCKED;
	if (errno != EEXIST)
		return NO_PLACE;
	if (remove_stale(md, lock, st.st_mtime) && link(own, lock) == 0)
		return LOCKED;
	return BUSY;
}

static enum lock_attempt
take_dotlock(const struct maildrop *md)
{
	enum lock_attempt attempt;
	char lock[PATH_MAX], own[PATH_MAX], suffix[48];
	int fd;

	snprintf(suffix, sizeof(suffix), ".pop3-lock.%ld", (long)getpid());
	if (path_beside(md->path, "", ".lock", lock, sizeof(lock)) == -1 ||
	    path_beside(md->path, ".", suffix, own, sizeof(own)) == -1)
		return NO_PLACE;
	unlink(own);
	fd = open(
	    own, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	/* Where we can make no file, for lack of rights or room, neither can
	 * a delivery agent that keeps to dotlocks alone. */
	if (fd == -1)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM
			   ? FAILED
			   : NO_PLACE;
	attempt = link_dotlock(md, own, lock, fd);
	unlink(own);
	if (attempt != LOCKED) {
		close(fd);
		return attempt;
	}
	mbox.dotlock = fd;
	mbox.refreshed = time(NULL);
	memcpy(mbox.dotlock_path, lock, sizeof(lock));
	return LOCKED;
}

static void
drop_dotlock(void)
{
	struct stat opened, named;

	if (mbox.dotlock == -1)
		return;
	/* If somebody took ours for stale, what stands there is theirs. */
	if (fstat(mbox.dotlock, &opened) == 0 &&
	    lstat(mbox.dotlock_path, &named) == 0 &&
	    named.st_dev == opened.st_dev && named.st_ino == opened.st_ino)
		unlink(mbox.dotlock_path);
	close(mbox.dotlock);
	mbox.dotlock = -1;
}

/* Others break dotlocks that look old: touch ours while we work. */
static void
refresh_dotlock(void)
{
	time_t now = time(NULL);

	if (mbox.dotlock == -1 || now - mbox.refreshed < REFRESH_SECONDS)
		return;
	futimens(mbox.dotlock, NULL);
	mbox.refreshed = now;
}

static enum lock_attempt
take_fcntl_lock(void)
{
	struct flock lock = {.l_whence = SEEK_SET};

	lock.l_type = mbox.writable ? F_WRLCK : F_RDLCK;
	if (fcntl(mbox.fd, F_SETLK, &lock) == 0)
		return LOCKED;
	return errno == EACCES || errno == EAGAIN ? BUSY : FAILED;
}

static void
drop_fcntl_lock(void)
{
	struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	fcntl(mbox.fd, F_SETLK, &lock);
}

/* Tries once for both locks, and holds both or none: who keeps one while
 * waiting for the other can deadlock with those who take them in turn. */
static enum lock_attempt
take_both(const struct maildrop *md)
{
	enum lock_attempt attempt = take_dotlock(md);
	int error;

	if (attempt == BUSY || attempt == FAILED)
		return attempt;
	if (attempt == NO_PLACE && !mbox.warned) {
		log_warning(md->path, "no place for a dotlock beside it");
		mbox.warned = true;
	}
	attempt = take_fcntl_lock();
	if (attempt != LOCKED) {
		error = errno;
		drop_dotlock();
		errno = error;
	}
	return attempt;
}

static void
unlock_delivery(void)
{
	if (mbox.fd != -1)
		drop_fcntl_lock();
	drop_dotlock();
	sigprocmask(SIG_SETMASK, &mbox.unlocked_signals, NULL);
}

/* Makes mbox.fd the file that stands at the path now. */
static enum maildrop_result
follow_path(struct maildrop *md, bool *followed)
{
	enum maildrop_result result;
	struct stat opened, named;

	*followed = false;
	if (fstat(mbox.fd, &opened) == -1 || stat(md->path, &named) == -1)
		return maildrop_failed(md->path, "stat");
	if (opened.st_dev == named.st_dev && opened.st_ino == named.st_ino)
		return MAILDROP_OK;
	close(mbox.fd);
	mbox.fd = -1;
	*followed = true;
	result = open_file(md);
	mbox.foreign = result != MAILDROP_OK;
	return result;
}

/*
 * Takes the delivery locks, waiting up to LOCK_SECONDS. No signal may end us
 * while we hold them: that would stop deliveries for minutes.
 */
static enum maildrop_result
lock_delivery(struct maildrop *md)
{
	struct timespec pause = {.tv_nsec = 50000000 + getpid() % 64 * 1000000};
	enum maildrop_result result = MAILDROP_OK;
	time_t until = time(NULL) + LOCK_SECONDS;
	enum lock_attempt attempt;
	sigset_t all;
	bool followed = true;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &mbox.unlocked_signals);
	while (result == MAILDROP_OK && followed) {
		while ((attempt = take_both(md)) == BUSY && time(NULL) < until)
			nanosleep(&pause, NULL);
		if (attempt == FAILED) {
			result = maildrop_failed(md->path, "lock");
		} else if (attempt == BUSY) {
			log_error(md->path, "locked by another for %d seconds",
			    LOCK_SECONDS);
			result = MAILDROP_TEMP;
		} else {
			/* Somebody may have renamed a new file over it while
			 * we waited for the lock on the old one. */
			result = follow_path(md, &followed);
			if (followed)
				drop_dotlock();
		}
	}
	if (result != MAILDROP_OK)
		unlock_delivery();
	return result;
}

/* ---- Scanning ---- */

enum line_kind { LINE_TEXT, LINE_EMPTY_LF, LINE_EMPTY_CRLF };

struct scan {
	struct maildrop *md;
	bool compares; /* with the table, instead of making it */
	bool differs;  /* a message of the table is not there as it was */
	unsigned seen; /* messages begun */
	off_t end;     /* of the messages that the table has */

	struct meter meter;
	struct message present; /* the row of the message the scan is in */
	bool in_message;
	bool hidden;		 /* it is a mail reader's internal record */
	enum line_kind previous; /* the line before */
	bool in_line; /* the block begins inside a line too long to hold */
};

/*
 * Whether a header is that of the record that UW-imapd, Pine and Dovecot keep
 * as the first message of an mbox. Both marks are asked for, since either
 * alone could be in anybody's mail.
 */
static bool
is_internal_record(const char *p, const char *end)
{
	static const char subject[] = "Subject: ", imap[] = "X-IMAP: ";
	static const char words[] = "FOLDER INTERNAL DATA";
	bool has_subject = false, has_imap = false;
	const char *lf;

	for (; p < end && *p != '\n' && *p != '\r'; p = lf + 1) {
		lf = memchr(p, '\n', (size_t)(end - p));
		if (lf == NULL)
			break;
		if (strncasecmp(p, imap, sizeof(imap) - 1) == 0)
			has_imap = true;
		else if (strncasecmp(p, subject, sizeof(subject) - 1) == 0 &&
			 memmem(p, (size_t)(lf - p), words,
			     sizeof(words) - 1) != NULL)
			has_subject = true;
	}
	return has_subject && has_imap;
}

/*
 * Compares the present message with its row. Behind a header without an empty
 * line, the one that separates it from a message delivered since looks like
 * the end of the header: it is still the same message, and that is a gap.
 */
static bool
still_same(struct scan *scan, struct message *row, unsigned gap)
{
	const struct message *now = &scan->present;
	const unsigned gaps = MESSAGE_GAP_LF | MESSAGE_GAP_CRLF;

	if (now->place != row->place ||
	    memcmp(now->of.digest, row->of.digest, DIGEST_OCTETS) != 0)
		return false;
	if (now->octets == row->octets + 2 && scan->meter.body_octets == 0)
		gap = scan->previous == LINE_EMPTY_LF ? MESSAGE_GAP_LF
						      : MESSAGE_GAP_CRLF;
	else if (now->octets != row->octets)
		return false;
	row->flags &= ~gaps & MESSAGE_FLAGS;
	row->flags |= gap & MESSAGE_FLAGS;
	return true;
}

/* Puts the present message into the table, or compares it. */
static enum maildrop_result
use_message(struct scan *scan, unsigned gap)
{
	struct message_table *table = &scan->md->table;
	struct message *row;

	if (scan->compares) {
		if (scan->seen <= table->count &&
		    !still_same(scan, &table->row[scan->seen - 1], gap))
			scan->differs = true;
		return MAILDROP_OK;
	}
	row = message_add(table);
	if (row == NULL) {
		errno = ENOMEM;
		return maildrop_failed(scan->md->path, "scan");
	}
	*row = scan->present;
	row->flags |= gap & MESSAGE_FLAGS;
	return MAILDROP_OK;
}

/* Ends the message that the scan is in, if any. */
static enum maildrop_result
finish_message(struct scan *scan)
{
	unsigned gap = 0;

	if (!scan->in_message)
		return MAILDROP_OK;
	/* An empty line belongs to the separator, also at the end of the file
	 * where the next From_ line is still to come; but not the one that
	 * ends the header. */
	if (scan->meter.body_octets > 0 && scan->previous != LINE_TEXT) {
		gap = scan->previous == LINE_EMPTY_LF ? MESSAGE_GAP_LF
						      : MESSAGE_GAP_CRLF;
		meter_drop_empty_line(&scan->meter);
	}
	if (meter_end(&scan->meter, &scan->present) == -1) {
		log_error(scan->md->path, "a message is too large");
		return MAILDROP_PERM;
	}
	return scan->hidden ? MAILDROP_OK : use_message(scan, gap);
}

/* Begins the message whose From_ line, `length` octets, stands at `place`. */
static enum maildrop_result
start_message(struct scan *scan, const char *from, size_t length,
    const char *end, off_t place)
{
	enum maildrop_result result = finish_message(scan);

	if (result != MAILDROP_OK)
		return result;
	scan->in_message = true;
	scan->previous = LINE_TEXT;
	scan->hidden = place == 0 && is_internal_record(from + length, end);
	if (!scan->hidden && scan->seen++ == scan->md->table.count)
		scan->end = place;
	memset(&scan->present, 0, sizeof(scan->present));
	scan->present.place = (uint64_t)place & MESSAGE_OCTETS_MAX;
	meter_start(&scan->meter, true);
	while (length > 0 &&
	       (from[length - 1] == '\n' || from[length - 1] == '\r'))
		length--;
	digest_add(&scan->meter.digest, from, length);
	digest_add(&scan->meter.digest, "\n", 1);
	return MAILDROP_OK;
}

/*
 * Scans a block that stands at `at` in the file. `*used` gets how much of it
 * is done with: all, or all but a line whose end is still to come.
 */
static enum maildrop_result
scan_block(struct scan *scan, const char *block, size_t length, off_t at,
    bool last_block, size_t *used)
{
	const char *p = block, *span = block, *end = block + length, *lf, *next;
	enum maildrop_result result;
	size_t line;

	for (; p < end; p = next) {
		lf = memchr(p, '\n', (size_t)(end - p));
		if (lf == NULL && !last_block) {
			if (end - p <= FROM_OCTETS)
				break;
			scan->previous = LINE_TEXT;
			scan->in_line = true;
			p = end;
			break;
		}
		line = (size_t)((lf != NULL ? lf : end) - p);
		next = p + line + (lf != NULL);
		if (*p == 'F' && scan->previous != LINE_TEXT &&
		    !scan->in_line && is_from_line(p, line)) {
			if (scan->in_message)
				meter_add(
				    &scan->meter, span, (size_t)(p - span));
			result = start_message(
			    scan, p, (size_t)(next - p), end, at + (p - block));
			if (result != MAILDROP_OK)
				return result;
			span = next;
			continue;
		}
		scan->previous = LINE_TEXT;
		if (line <= 1 && lf != NULL && !scan->in_line) {
			if (line == 0)
				scan->previous = LINE_EMPTY_LF;
			else if (*p == '\r')
				scan->previous = LINE_EMPTY_CRLF;
		}
		scan->in_line = false;
	}
	if (scan->in_message)
		meter_add(&scan->meter, span, (size_t)(p - span));
	*used = (size_t)(p - block);
	return MAILDROP_OK;
}

/* Makes the table of the file as it is now, under the delivery locks; or, if
 * it `compares`, makes sure that what the table has stands there first. */
static enum maildrop_result
scan_file(struct maildrop *md, bool compares)
{
	struct scan scan = {
	    .md = md, .compares = compares, .previous = LINE_EMPTY_LF};
	enum maildrop_result result = MAILDROP_OK;
	size_t held = 0, part, used;
	off_t at = 0; /* of the block in the file */
	struct stat st;
	off_t size;
	ssize_t n;

	if (fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "stat");
	size = scan.end = st.st_size;
	while (result == MAILDROP_OK && at < size) {
		refresh_dotlock();
		part = MAILDROP_BLOCK_OCTETS - held;
		if (size - at - (off_t)held < (off_t)part)
			part = (size_t)(size - at) - held;
		n = read_at(mbox.fd, md->block + held, part, at + (off_t)held);
		if (n < (ssize_t)part) {
			if (n >= 0)
				errno = EIO;
			return maildrop_failed(md->path, "read");
		}
		held += part;
		result = scan_block(&scan, md->block, held, at,
		    at + (off_t)held == size, &used);
		if (result != MAILDROP_OK)
			return result;
		if (at == 0 && used > 0 && !scan.in_message) {
			log_error(md->path, "not an mbox: no From_ line");
			return MAILDROP_PERM;
		}
		held -= used;
		memmove(md->block, md->block + used, held);
		at += (off_t)used;
	}
	result = finish_message(&scan);
	if (result == MAILDROP_OK && compares &&
	    (scan.differs || scan.seen < md->table.count)) {
		log_error(md->path, "changed by another during the session");
		mbox.foreign = true;
		return MAILDROP_TEMP;
	}
	identify(&st, &mbox.known);
	mbox.end = compares ? scan.end : size;
	return result;
}

static enum maildrop_result
mbox_scan(struct maildrop *md)
{
	enum maildrop_result result;

	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = scan_file(md, false);
	unlock_delivery();
	return result;
}

static int
mbox_state_path(const struct maildrop *md, char *out, size_t room)
{
	return path_beside(md->path, ".", ".pop3-state", out, room);
}

static enum maildrop_result
mbox_open(struct maildrop *md)
{
	enum maildrop_result result;
	struct stat st;
	ssize_t from;

	result = open_file(md);
	if (result != MAILDROP_OK)
		return result;
	from = from_line_at(mbox.fd, 0);
	if (from == -1 || fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "read");
	if (from == 0 && st.st_size > 0) {
		log_error(md->path, "not an mbox: no From_ line");
		return MAILDROP_PERM;
	}
	return MAILDROP_OK;
}

static void
mbox_close(struct maildrop *md)
{
	(void)md;
	if (mbox.fd != -1)
		close(mbox.fd);
	mbox.fd = -1;
}

/* ---- What others do to the file during the session ---- */

/* Whether the file is just as when its table was made. */
static enum maildrop_result
unchanged(struct maildrop *md, bool *same)
{
	struct identity now;
	struct stat st;

	*same = false;
	if (mbox.foreign)
		return MAILDROP_TEMP;
	if (stat(md->path, &st) == -1)
		return maildrop_failed(md->path, "stat");
	identify(&st, &now);
	*same = same_identity(&now, &mbox.known);
	return MAILDROP_OK;
}

/* Makes sure that the table still tells where our messages are. */
static enum maildrop_result
verify_table(struct maildrop *md)
{
	enum maildrop_result result;
	bool same;

	result = unchanged(md, &same);
	if (result != MAILDROP_OK || same)
		return result;
	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = scan_file(md, true);
	unlock_delivery();
	return result;
}

/* Where the messages from `n` (counted from 0) on begin. */
static off_t
place_of(const struct maildrop *md, unsigned n)
{
	return n < md->table.count ? (off_t)md->table.row[n].place : mbox.end;
}

static enum maildrop_result
mbox_find(struct maildrop *md, struct message *m, struct stored *where)
{
	enum maildrop_result result = verify_table(md);
	off_t end;
	ssize_t from;

	if (result != MAILDROP_OK)
		return result;
	from = from_line_at(mbox.fd, (off_t)m->place);
	if (from <= 0) {
		if (from == 0)
			errno = EIO;
		return maildrop_failed(md->path, "read");
	}
	end = place_of(md, (unsigned)(m - md->table.row) + 1);
	if ((m->flags & MESSAGE_GAP_LF) != 0)
		end -= 1;
	else if ((m->flags & MESSAGE_GAP_CRLF) != 0)
		end -= 2;
	where->fd = mbox.fd;
	where->start = (off_t)m->place + from;
	where->length = (uint64_t)(end - where->start);
	where->close = false;
	return MAILDROP_OK;
}

/* ---- UPDATE ---- */

static int
write_at(int fd, const char *from, size_t length, off_t at)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pwrite(fd, from + done, length - done, at + (off_t)done);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* Moves the octets [from, end) of the file down to `to`, front to back. */
static int
move_down(struct maildrop *md, off_t from, off_t end, off_t to)
{
	size_t part;
	ssize_t n;

	while (from < end) {
		refresh_dotlock();
		part = MAILDROP_BLOCK_OCTETS;
		if (end - from < (off_t)part)
			part = (size_t)(end - from);
		n = read_at(mbox.fd, md->block, part, from);
		if (n >= 0 && n < (ssize_t)part)
			errno = EIO;
		if (n < (ssize_t)part ||
		    write_at(mbox.fd, md->block, part, to) == -1)
			return -1;
		from += (off_t)part;
		to += (off_t)part;
	}
	return 0;
}

/*
 * The rewrite: takes the marked messages out of the file, whose octets from
 * mbox.end to `size` were delivered since and stay. Nothing moves where all
 * is deleted or only a tail of it.
 */
static int
close_holes(struct maildrop *md, off_t size)
{
	const struct message *row = md->table.row;
	unsigned i, first = 0, after;
	off_t to;

	while ((row[first].flags & MESSAGE_DELETED) == 0)
		first++;
	to = place_of(md, first);
	for (i = first; i < md->table.count; i = after) {
		for (after = i; after < md->table.count &&
				(row[after].flags & MESSAGE_DELETED) ==
				    (row[i].flags & MESSAGE_DELETED);
		     after++)
			continue;
		if ((row[i].flags & MESSAGE_DELETED) != 0)
			continue;
		if (move_down(md, place_of(md, i), place_of(md, after), to) ==
		    -1)
			return -1;
		to += place_of(md, after) - place_of(md, i);
	}
	if (move_down(md, mbox.end, size, to) == -1)
		return -1;
	to += size - mbox.end;
	if (fsync(mbox.fd) == -1 || ftruncate(mbox.fd, to) == -1)
		return -1;
	return fsync(mbox.fd);
}

static enum maildrop_result
update_locked(struct maildrop *md)
{
	enum maildrop_result result;
	struct stat st;
	bool same;

	result = unchanged(md, &same);
	if (result == MAILDROP_OK && !same)
		result = scan_file(md, true);
	if (result != MAILDROP_OK)
		return result;
	if (fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "stat");
	if (close_holes(md, st.st_size) == -1)
		return maildrop_failed(md->path, "UPDATE");
	return MAILDROP_OK;
}

static enum maildrop_result
mbox_update(struct maildrop *md, struct maildrop_tally *tally)
{
	unsigned marked = md->table.count - md->count;
	enum maildrop_result result;

	if (marked == 0)
		return MAILDROP_OK;
	tally->failed = marked;
	if (!mbox.writable) {
		log_error(md->path, "not writable");
		return MAILDROP_PERM;
	}
	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = update_locked(md);
	unlock_delivery();
	if (result == MAILDROP_OK) {
		tally->removed = marked;
		tally->failed = 0;
	}
	return result;
}

const struct maildrop_format mbox_format = {
    .name = "mbox",
    .state_path = mbox_state_path,
    .open = mbox_open,
    .scan = mbox_scan,
    .find = mbox_find,
    .update = mbox_update,
    .close = mbox_close,
};
