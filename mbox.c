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

#include "former.h"
#include "journal.h"
#include "log.h"
#include "maildrop.h"

#define FROM_WORD "From "
#define FROM_OCTETS 1024 /* a longer line is no From_ line */
#define FROM_LEAST 25	 /* nor is a shorter one */

#define LOCK_SECONDS 30	    /* how long we wait for the delivery locks */
#define REFRESH_SECONDS 30  /* how often a dotlock of ours is touched */
#define STALE_SECONDS 600   /* a stranger's dotlock this old is abandoned */
#define TAG "pop3-handler " /* how a dotlock of ours begins */
#define OWN_TRIES 10	    /* while others remove what it is made of */
#define OWN_OCTETS 64	    /* a larger file is something else */
#define STRANGERS_MAX 64    /* unknown messages, then we stop to compare */

/* What tells one state of the file from another: the numbers of its identity.
 */
enum {
	DEVICE,
	INODE,
	SIZE,
	MODIFIED, /* seconds, */
	MODIFIED_NS,
	CHANGED,
	CHANGED_NS,
	END /* where the last message of the table ends */
};

static struct {
	int fd; /* the one descriptor: closing any would drop the fcntl lock */
	bool writable;
	bool shared;	 /* in a directory that is not the user's: a spool */
	bool elsewhere;	 /* state and journal do not stand beside it */
	char *journal;	 /* its path, NULL without a place for it */
	char *directory; /* that it is in */

	uint64_t known[END]; /* of the file when it was last looked at */
	bool unsure;	     /* it may since have changed within one tick */
	off_t end;	     /* where the last message of the table ends */
	unsigned altered;    /* messages of the table that others changed */
	bool lost;	     /* what stands at the path is not ours any more */

	char dotlock_path[PATH_MAX];
	int dotlock; /* our dotlock, open for refreshing, or -1 */
	char own_path[PATH_MAX];
	int own; /* the file of all our dotlocks, in a spool, or -1 */
	time_t refreshed;
	bool warned; /* that there is no place for a dotlock */
	sigset_t unlocked_signals;
} mbox = {.fd = -1, .dotlock = -1, .own = -1};

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

	if (length > FROM_OCTETS || length < 6 ||
	    memcmp(line, FROM_WORD, sizeof(FROM_WORD) - 1) != 0)
		return false;
	if (end[-1] == '\r')
		end--;
	/* The sender: nothing (two spaces), or one word, which may begin with
	 * a quoted part that holds blanks. */
	if (*p == '"') {
		for (p++; p < end && *p != '"'; p++)
			p += *p == '\\' && p + 1 < end;
	}
	if ((p == end || *p != ' ') && !next_token(&p, end, &token))
		return false;
	if (!next_token(&p, end, &token))
		return false;
	if (token.length == 4 && token.text[3] == ',')
		token.length = 3;
	return is_name(&token, "SunMonTueWedThuFriSat") && is_date(p, end);
}

/* ---- The file ---- */

static void
identify(const struct stat *st, uint64_t number[END])
{
	number[DEVICE] = st->st_dev;
	number[INODE] = st->st_ino;
	number[SIZE] = (uint64_t)st->st_size;
	number[MODIFIED] = (uint64_t)st->st_mtim.tv_sec;
	number[MODIFIED_NS] = (uint64_t)st->st_mtim.tv_nsec;
	number[CHANGED] = (uint64_t)st->st_ctim.tv_sec;
	number[CHANGED_NS] = (uint64_t)st->st_ctim.tv_nsec;
}

/* Opens the file; without a trace in its atime, by which mail readers know
 * new mail. */
static int
open_quietly(const char *path, int flags)
{
	int fd = -1;

	flags |= O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
#ifdef O_NOATIME
	fd = open(path, flags | O_NOATIME);
	if (fd != -1 || errno != EPERM)
		return fd;
#endif
	fd = open(path, flags);
	return fd;
}

/* Whether a change since `looked` might not show in the times of the file. */
static bool
may_hide_change(const uint64_t number[END], const struct timespec *looked)
{
	return time_unsure((time_t)number[MODIFIED], looked) ||
	       time_unsure((time_t)number[CHANGED], looked);
}

/* Knows the file as it was at `looked`, and that the table is of that. */
static void
know_file(
    struct maildrop *md, const struct stat *st, const struct timespec *looked)
{
	identify(st, mbox.known);
	mbox.unsure = may_hide_change(mbox.known, looked);
	memcpy(md->identity.number, mbox.known, sizeof(mbox.known));
	md->identity.number[END] = (uint64_t)mbox.end;
	md->identity.sure = *looked;
}

static enum maildrop_result
open_file(struct maildrop *md)
{
	const char *wrong = NULL;
	struct stat st;

	mbox.writable = true;
	mbox.fd = open_quietly(md->path, O_RDWR);
	if (mbox.fd == -1 && (errno == EACCES || errno == EROFS)) {
		mbox.writable = false;
		mbox.fd = open_quietly(md->path, O_RDONLY);
	}
	if (mbox.fd == -1 || fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "open");
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
		wrong = "not a regular file of the user's";
	else if (mbox.shared && st.st_nlink != 1)
		wrong = "has more than one link";
	else if ((uint64_t)st.st_size > MESSAGE_OCTETS_MAX)
		wrong = "too large";
	if (wrong == NULL)
		return MAILDROP_OK;
	log_error(md->path, "%s", wrong);
	return MAILDROP_PERM;
}

/* The length of the From_ line that these octets begin with, its LF included;
 * 0 if there is none. Only the end of the file may take the place of LF. */
static size_t
from_line_length(const char *text, size_t length)
{
	const char *lf = memchr(text, '\n', length);

	if (lf == NULL)
		return is_from_line(text, length) ? length : 0;
	length = (size_t)(lf - text);
	return is_from_line(text, length) ? length + 1 : 0;
}

/* The same of the line at `at`; -1 with errno where it can't be read. */
static ssize_t
from_line_at(int fd, off_t at)
{
	char line[FROM_OCTETS + 1];
	ssize_t n = read_at(fd, line, sizeof(line), at);

	return n <= 0 ? n : (ssize_t)from_line_length(line, (size_t)n);
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

/* Whether an UPDATE was begun and is not finished. */
static bool
journal_stands(void)
{
	return mbox.journal != NULL && access(mbox.journal, F_OK) == 0;
}

/* Whether a dotlock is the file that the sessions of a spool share. In the cage
 * there its tag cannot be read. */
static bool
is_own_file(const struct stat *lock)
{
	struct stat own;

	return mbox.own != -1 && fstat(mbox.own, &own) == 0 &&
	       own.st_dev == lock->st_dev && own.st_ino == lock->st_ino;
}

/*
 * Puts `own` in the place of a dotlock that nobody stands behind. One of ours
 * is such, since we hold the session lock and so no other session of ours is
 * at work; it may guard an mbox that is half moved, and is replaced without a
 * gap. A stranger's is such if it is old; we need not be able to read it.
 */
static bool
replace_stale(
    const struct maildrop *md, const char *own, const char *path, time_t now)
{
	struct stat first, again;
	bool ours;

	if (lstat(path, &first) == -1 || !S_ISREG(first.st_mode))
		return false;
	ours = md->lock != -1 && !md->yielded && first.st_uid == geteuid() &&
	       (is_own_file(&first) || has_our_tag(path));
	if (!ours && first.st_mtime + STALE_SECONDS >= now)
		return false;
	if (lstat(path, &again) == -1 || again.st_ino != first.st_ino ||
	    again.st_dev != first.st_dev || again.st_mtime != first.st_mtime)
		return false;
	if (ours ? rename(own, path) == -1
		 : unlink(path) == -1 || link(own, path) == -1)
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
	if (write_at(fd, text, (size_t)length, 0) == -1 || fstat(fd, &st) == -1)
		st.st_mtime = time(NULL);
	if (link(own, lock) == 0)
		return LOCKED;
	if (errno != EEXIST)
		return NO_PLACE;
	return replace_stale(md, own, lock, st.st_mtime) ? LOCKED : BUSY;
}

/*
 * The name of the file that the dotlock is made of. One name for all sessions
 * of a maildrop, so that what a killed one leaves is found; of their own where
 * no session lock parts them.
 */
static int
name_own_file(const struct maildrop *md, char own[PATH_MAX])
{
	char suffix[48] = ".pop3-lock";

	if (md->lock == -1)
		snprintf(
		    suffix, sizeof(suffix), ".pop3-lock.%ld", (long)getpid());
	return path_beside(md->path, ".", suffix, own, PATH_MAX);
}

static enum lock_attempt
make_dotlock(const struct maildrop *md)
{
	enum lock_attempt attempt;
	char own[PATH_MAX], *lock = mbox.dotlock_path;
	int fd = mbox.own;

	if (path_beside(md->path, "", ".lock", lock, PATH_MAX) == -1 ||
	    name_own_file(md, own) == -1)
		return NO_PLACE;
	if (fd == -1) {
		unlink(own);
		fd = open(own,
		    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	}
	/* Where we can make no file, for lack of rights or room, neither can
	 * a delivery agent that keeps to dotlocks alone. */
	if (fd == -1)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM
			   ? FAILED
			   : NO_PLACE;
	attempt = link_dotlock(md, own, lock, fd);
	if (fd != mbox.own) {
		unlink(own);
		if (attempt != LOCKED)
			close(fd);
	}
	if (attempt != LOCKED)
		return attempt;
	mbox.dotlock = fd;
	mbox.refreshed = time(NULL);
	return LOCKED;
}

/* In a spool, names are made and removed with its group, and nothing else. */
static enum lock_attempt
take_dotlock(const struct maildrop *md)
{
	enum lock_attempt attempt;

	if (mbox.shared)
		md->site->group(true);
	attempt = make_dotlock(md);
	if (mbox.shared)
		md->site->group(false);
	return attempt;
}

static void
drop_dotlock(const struct maildrop *md)
{
	struct stat opened, named;

	if (mbox.dotlock == -1)
		return;
	if (mbox.shared)
		md->site->group(true);
	/* If somebody took ours for stale, what stands there is theirs. And
	 * while an mbox is half moved it stays, lest a mail reader rewrites
	 * that: the next session takes it over, and others sooner or later. */
	if (!journal_stands() && fstat(mbox.dotlock, &opened) == 0 &&
	    lstat(mbox.dotlock_path, &named) == 0 &&
	    named.st_dev == opened.st_dev && named.st_ino == opened.st_ino) {
		/* What took the place of a stale one goes back to its own. */
		if (opened.st_nlink > 1 || mbox.own == -1 ||
		    rename(mbox.dotlock_path, mbox.own_path) == -1)
			unlink(mbox.dotlock_path);
	}
	if (mbox.shared)
		md->site->group(false);
	if (mbox.dotlock != mbox.own)
		close(mbox.dotlock);
	mbox.dotlock = -1;
}

static int
lock_own_file(short type)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

	return fcntl(mbox.own, F_SETLK, &lock);
}

/*
 * Makes the file of the dotlock for the whole session: in the cage of a spool
 * none can be made, only linked. Sessions that have let go of the maildrop for
 * each other share it; a read lock tells who still needs it.
 */
static void
prepare_dotlock(struct maildrop *md)
{
	struct stat opened, named;
	bool stands = false;
	int i;

	if (!mbox.shared || name_own_file(md, mbox.own_path) == -1)
		return;
	md->site->group(true);
	for (i = 0; i < OWN_TRIES && !stands; i++) {
		if (mbox.own != -1)
			close(mbox.own);
		mbox.own = open(mbox.own_path,
		    O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
			O_CLOEXEC,
		    0644);
		if (mbox.own == -1)
			break;
		stands = fstat(mbox.own, &opened) == 0 &&
			 S_ISREG(opened.st_mode) &&
			 opened.st_uid == geteuid() && opened.st_nlink <= 2 &&
			 opened.st_size <= OWN_OCTETS &&
			 lock_own_file(F_RDLCK) == 0 &&
			 lstat(mbox.own_path, &named) == 0 &&
			 named.st_ino == opened.st_ino &&
			 named.st_dev == opened.st_dev;
	}
	md->site->group(false);
	if (stands || mbox.own == -1)
		return;
	close(mbox.own);
	mbox.own = -1;
}

static void
forget_dotlock(const struct maildrop *md)
{
	if (mbox.own == -1)
		return;
	md->site->group(true);
	/* NAME.lock stays where an UPDATE is not finished, and this tells
	 * whose it is. */
	if (!journal_stands() && lock_own_file(F_WRLCK) == 0)
		unlink(mbox.own_path);
	md->site->group(false);
	close(mbox.own);
	mbox.own = -1;
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

	(void)fcntl(mbox.fd, F_SETLK, &lock);
}

/*
 * Tries once for both locks, and holds both or none: who keeps one while
 * waiting for the other can deadlock with those who take them in turn. But
 * while an mbox is half moved the dotlock is not let go of once we have it.
 */
static enum lock_attempt
take_both(const struct maildrop *md)
{
	enum lock_attempt attempt =
	    mbox.dotlock != -1 ? LOCKED : take_dotlock(md);
	int error;

	if (attempt == BUSY || attempt == FAILED)
		return attempt;
	if (attempt == NO_PLACE && !mbox.warned) {
		log_warning(md->path, "no place for a dotlock beside it");
		mbox.warned = true;
	}
	attempt = take_fcntl_lock();
	if (attempt != LOCKED && !journal_stands()) {
		error = errno;
		drop_dotlock(md);
		errno = error;
	}
	return attempt;
}

static void
unlock_delivery(const struct maildrop *md)
{
	if (mbox.fd != -1)
		drop_fcntl_lock();
	drop_dotlock(md);
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
	mbox.lost = result != MAILDROP_OK;
	return result;
}

/* Says who holds the locks, as far as the system tells. */
static void
log_holder(const struct maildrop *md)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[PATH_MAX];
	struct stat st;

	if (fcntl(mbox.fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK)
		log_error(md->path, "locked for %d seconds by pid %ld",
		    LOCK_SECONDS, (long)lock.l_pid);
	else if (path_beside(md->path, "", ".lock", path, sizeof(path)) == 0 &&
		 lstat(path, &st) == 0)
		log_error(path, "there for %d seconds, made by uid %lu",
		    LOCK_SECONDS, (unsigned long)st.st_uid);
	else
		log_error(
		    md->path, "locked by others for %d seconds", LOCK_SECONDS);
}

static void
set_journal(struct maildrop *md, struct journal *j)
{
	memset(j, 0, sizeof(*j));
	j->path = mbox.journal;
	j->mbox_path = md->path;
	j->mbox = mbox.fd;
	j->block = md->block;
	j->block_octets = MAILDROP_BLOCK_OCTETS;
	j->refresh = refresh_dotlock;
}

/* Finishes an UPDATE that was stopped, before anybody looks at the file. */
static enum maildrop_result
recover(struct maildrop *md)
{
	struct journal j;

	if (mbox.journal == NULL)
		return MAILDROP_OK;
	if (!mbox.writable && access(mbox.journal, F_OK) == 0) {
		log_error(md->path, "not writable, but an UPDATE is to finish");
		return MAILDROP_PERM;
	}
	set_journal(md, &j);
	return journal_recover(&j) == JOURNAL_OK ? MAILDROP_OK : MAILDROP_TEMP;
}

/*
 * Takes the delivery locks, waiting up to LOCK_SECONDS, and finishes what an
 * earlier session has left. No signal may end us while we hold them: that
 * would stop deliveries for minutes.
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
			log_holder(md);
			result = MAILDROP_TEMP;
		} else {
			/* Somebody may have renamed a new file over it while
			 * we waited for the lock on the old one. */
			result = follow_path(md, &followed);
			if (followed && !journal_stands())
				drop_dotlock(md);
		}
	}
	if (result == MAILDROP_OK)
		result = recover(md);
	if (result != MAILDROP_OK)
		unlock_delivery(md);
	return result;
}

/* ---- Scanning ---- */

enum line_kind { LINE_TEXT, LINE_EMPTY_LF, LINE_EMPTY_CRLF };

struct scan {
	struct maildrop *md;
	bool compares;		/* with the table, instead of making it */
	unsigned next;		/* the row that comes next, comparing */
	struct message *placed; /* the row found last */
	unsigned strangers;	/* messages without a row since then */
	unsigned altered;	/* messages that are not as they were */
	off_t end;		/* of the messages that the table has */

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
 * Gives a row the place of its message. What a reader does to the header
 * (Status) changes its octets, which were announced: it can be removed, but
 * not be sent. Behind a header without an empty line, the one that separates
 * it from a message delivered since looks like the end of the header: that is
 * a gap.
 */
static void
place_row(struct scan *scan, struct message *row, unsigned gap)
{
	const unsigned placed = MESSAGE_MISSED | MESSAGE_CHANGED |
				MESSAGE_UNBOUNDED | MESSAGE_GAP_LF |
				MESSAGE_GAP_CRLF;
	const struct message *now = &scan->present;

	if (now->octets == row->octets + 2 && scan->meter.body_octets == 0 &&
	    scan->previous != LINE_TEXT)
		gap = scan->previous == LINE_EMPTY_LF ? MESSAGE_GAP_LF
						      : MESSAGE_GAP_CRLF;
	else if (now->octets != row->octets) {
		gap |= MESSAGE_CHANGED;
		scan->altered++;
	}
	row->place = now->place;
	row->flags &= ~placed & MESSAGE_FLAGS;
	row->flags |= gap & MESSAGE_FLAGS;
}

/* The rows that come before `n` and were not found are not there. */
static void
miss_rows(struct scan *scan, unsigned n)
{
	for (; scan->next < n; scan->next++) {
		scan->md->table.row[scan->next].flags |= MESSAGE_MISSED;
		scan->altered++;
	}
}

/*
 * Finds the row of the present message: the next one with its digest. Others
 * deliver behind the last, and readers take messages away or rewrite them. A
 * message without a row is none of ours; where one follows a row of ours, only
 * that row's end is not known.
 */
static void
match_row(struct scan *scan, unsigned gap)
{
	struct message_table *table = &scan->md->table;
	unsigned n = scan->next;

	while (scan->strangers < STRANGERS_MAX && n < table->count &&
	       memcmp(table->row[n].of.digest, scan->present.of.digest,
		   DIGEST_OCTETS) != 0)
		n++;
	if (n == table->count || scan->strangers == STRANGERS_MAX) {
		if (scan->strangers++ == 0)
			scan->end = (off_t)scan->present.place;
		if (scan->strangers > STRANGERS_MAX)
			scan->strangers = STRANGERS_MAX;
		return;
	}
	if (scan->strangers > 0 && scan->placed != NULL) {
		scan->placed->flags |= MESSAGE_UNBOUNDED;
		scan->altered++;
	}
	scan->strangers = 0;
	miss_rows(scan, n);
	place_row(scan, &table->row[n], gap);
	scan->placed = &table->row[n];
	scan->next = n + 1;
}

/* Puts the present message into the table, or compares it. */
static enum maildrop_result
use_message(struct scan *scan, unsigned gap)
{
	struct message *row;

	if (scan->compares) {
		match_row(scan, gap);
		return MAILDROP_OK;
	}
	row = message_add(&scan->md->table);
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

/* Measures the lines from `from` up to `to`, all of one message. */
static void
add_span(struct scan *scan, const char *from, const char *to, size_t bare)
{
	if (scan->in_message)
		meter_add_counted(
		    &scan->meter, from, (size_t)(to - from), bare);
}

/* What the line is that ends before `end`; the block begins at `block`, which
 * is the beginning of a line unless the scan is in one. */
static enum line_kind
kind_of_line(const struct scan *scan, const char *block, const char *end)
{
	const char *p = end - 1;

	if (*p != '\n')
		return LINE_TEXT;
	if (p > block && p[-1] == '\r' && (p - 1 > block || !scan->in_line)) {
		p--;
		return p == block || p[-1] == '\n' ? LINE_EMPTY_CRLF
						   : LINE_TEXT;
	}
	if (p == block)
		return scan->in_line ? LINE_TEXT : LINE_EMPTY_LF;
	return p[-1] == '\n' ? LINE_EMPTY_LF : LINE_TEXT;
}

/* Where the part of a block ends that can be looked at: not in a line whose end
 * is still to come, unless it is too long for a From_ line. */
static const char *
end_of_lines(const char *block, size_t length, bool last_block)
{
	const char *lf = last_block ? NULL : memrchr(block, '\n', length);
	const char *end = lf != NULL ? lf + 1 : block;

	return last_block || block + length - end > FROM_OCTETS ? block + length
								: end;
}

/*
 * Scans a block that stands at `at` in the file. `*used` gets how much of it
 * is done with: all, or all but a line whose end is still to come.
 */
static enum maildrop_result
scan_block(struct scan *scan, const char *block, size_t length, off_t at,
    bool last_block, size_t *used)
{
	const char *end = end_of_lines(block, length, last_block), *lf;
	const char *p = block, *span = block; /* of one message */
	char last = '\n';
	enum maildrop_result result;
	enum line_kind before;
	size_t line, bare = 0; /* line ends of the span that are LF alone */

	*used = (size_t)(end - block);
	if (scan->in_line)
		last = scan->meter.last;
	while (p < end) {
		p += find_from(p, (size_t)(end - p), last, &bare);
		if (p == end)
			break;
		last = *p;
		lf = memchr(p, '\n', (size_t)(end - p));
		line = (size_t)((lf != NULL ? lf : end) - p);
		before =
		    p == block ? scan->previous : kind_of_line(scan, block, p);
		if (before == LINE_TEXT || !is_from_line(p, line)) {
			p++;
			continue;
		}
		add_span(scan, span, p, bare);
		scan->previous = before;
		span = p + line + (lf != NULL);
		result = start_message(scan, p, (size_t)(span - p),
		    block + length, at + (p - block));
		if (result != MAILDROP_OK)
			return result;
		p = span;
		last = '\n';
		bare = 0;
	}
	add_span(scan, span, end, bare);
	if (end > block)
		scan->previous = kind_of_line(scan, block, end);
	scan->in_line = end > block && end[-1] != '\n';
	return MAILDROP_OK;
}

/*
 * Makes the table of the file as it is now, from `at` on, under the delivery
 * locks; or, if it `compares`, finds the messages of the table again, from row
 * `first` on, which was there.
 */
static enum maildrop_result
scan_file(struct maildrop *md, off_t at, bool compares, unsigned first)
{
	struct scan scan = {.md = md,
	    .compares = compares,
	    .next = first,
	    .previous = LINE_EMPTY_LF};
	enum maildrop_result result = MAILDROP_OK;
	size_t held = 0, part, used;
	struct timespec looked;
	struct stat st;
	off_t size;

	clock_gettime(CLOCK_REALTIME, &looked);
	if (fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "stat");
	size = scan.end = st.st_size;
	while (result == MAILDROP_OK && at < size) {
		refresh_dotlock();
		part = MAILDROP_BLOCK_OCTETS - held;
		if (size - at - (off_t)held < (off_t)part)
			part = (size_t)(size - at) - held;
		errno = EIO; /* what a file that is shorter now comes to */
		if (read_at(mbox.fd, md->block + held, part,
			at + (off_t)held) != (ssize_t)part)
			return maildrop_failed(md->path, "read");
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
	if (result != MAILDROP_OK)
		return result;
	if (compares)
		miss_rows(&scan, md->table.count);
	if (scan.strangers == 0)
		scan.end = size;
	if (scan.altered > mbox.altered)
		log_warning(md->path, "another changed %u messages meanwhile",
		    scan.altered);
	mbox.altered = scan.altered;
	mbox.end = scan.end;
	know_file(md, &st, &looked);
	return MAILDROP_OK;
}

/* Whether `path` is a directory where nobody else can put things. */
static bool
is_private(const char *path)
{
	struct stat st;

	/* A journal is as durable as the directories that lead to it. */
	if (mkdir(path, 0700) == 0 ? sync_directory(path) == -1
				   : errno != EEXIST) {
		log_warning(path, "option -d: %s", strerror(errno));
		return false;
	}
	if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode) &&
	    st.st_uid == geteuid() && (st.st_mode & (S_IWGRP | S_IWOTH)) == 0)
		return true;
	log_warning(path, "option -d: not a directory of the user's alone");
	return false;
}

/*
 * State and journal stand beside the mbox where its directory is the user's,
 * who may make files there. In a spool they do not: others could tamper with
 * them, and we could not always make them.
 */
static enum maildrop_result
choose_places(struct maildrop *md)
{
	char elsewhere[PATH_MAX];
	const char *beside = md->path;
	struct stat st;

	if (stat_directory(md->path, &st) == -1)
		return maildrop_failed(md->path, "directory");
	mbox.shared = st.st_uid != geteuid();
	mbox.elsewhere = mbox.shared || (st.st_mode & S_IWUSR) == 0;
	if (mbox.elsewhere) {
		if (md->site->side == NULL || !is_private(md->site->side))
			return MAILDROP_OK;
		if ((size_t)snprintf(elsewhere, sizeof(elsewhere), "%s%s",
			md->site->side,
			strrchr(md->path, '/')) >= sizeof(elsewhere)) {
			errno = ENAMETOOLONG;
			return maildrop_failed(md->site->side, "option -d");
		}
		beside = elsewhere;
	}
	md->state = named_beside(beside, ".", ".pop3-state");
	mbox.journal = named_beside(beside, ".", ".pop3-journal");
	if (md->state == NULL || mbox.journal == NULL)
		return maildrop_failed(beside, "state file");
	return MAILDROP_OK;
}

/* Whether the file begins as an mbox does, or is empty; if not, and if we are
 * `sure`, the log says so. */
static enum maildrop_result
check_first_line(struct maildrop *md, bool sure)
{
	struct stat st;
	ssize_t from;

	from = from_line_at(mbox.fd, 0);
	if (from == -1 || fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "read");
	if (from > 0 || st.st_size == 0)
		return MAILDROP_OK;
	if (sure)
		log_error(md->path, "not an mbox: no From_ line");
	return MAILDROP_PERM;
}

static enum maildrop_result
mbox_open(struct maildrop *md)
{
	enum maildrop_result result;

	result = choose_places(md);
	if (result == MAILDROP_OK)
		result = open_file(md);
	if (result != MAILDROP_OK)
		return result;
	md->shared = mbox.shared;
	/* What a stop has left need not begin as it should: it is looked at
	 * when it is finished. */
	if (journal_stands())
		return MAILDROP_OK;
	result = check_first_line(md, false);
	if (result != MAILDROP_PERM)
		return result;
	/* A mail reader may be rewriting it: wait, and look again. */
	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = check_first_line(md, true);
	unlock_delivery(md);
	return result;
}

static void
mbox_close(struct maildrop *md)
{
	forget_dotlock(md);
	if (mbox.fd != -1)
		close(mbox.fd);
	mbox.fd = -1;
	free(mbox.journal);
	free(mbox.directory);
	mbox.journal = mbox.directory = NULL;
}

/* ---- What others do to the file during the session ---- */

/* What keeps a message from being sent, and from being removed. */
#define UNSENDABLE (MESSAGE_MISSED | MESSAGE_UNBOUNDED | MESSAGE_CHANGED)
#define UNREMOVABLE (MESSAGE_MISSED | MESSAGE_UNBOUNDED)

enum change {
	CHANGE_NONE,
	CHANGE_UNSEEN, /* none, or one that its times are too young to show */
	CHANGE_SMALL,  /* deliveries at most */
	CHANGE_ANY
};

/* How the file may have changed since we knew it: at most by deliveries, or
 * within one tick of the clock, or in any way. */
static enum maildrop_result
look(struct maildrop *md, enum change *change)
{
	uint64_t now[END];
	struct stat st;

	*change = CHANGE_ANY;
	if (mbox.lost)
		return MAILDROP_TEMP;
	if (stat(md->path, &st) == -1)
		return maildrop_failed(md->path, "stat");
	identify(&st, now);
	if (memcmp(now, mbox.known, sizeof(now)) == 0)
		*change = mbox.unsure ? CHANGE_UNSEEN : CHANGE_NONE;
	else if (now[DEVICE] == mbox.known[DEVICE] &&
		 now[INODE] == mbox.known[INODE] &&
		 now[SIZE] > mbox.known[SIZE])
		*change = CHANGE_SMALL;
	return MAILDROP_OK;
}

/* Whether there is a From_ line at every place of the table. `last` gets the
 * last row that has one. */
static bool
places_hold(const struct maildrop *md, unsigned *last)
{
	unsigned i;

	*last = 0;
	for (i = 0; i < md->table.count; i++) {
		if ((md->table.row[i].flags & MESSAGE_MISSED) != 0)
			continue;
		if (from_line_at(mbox.fd, (off_t)md->table.row[i].place) <= 0)
			return false;
		*last = i;
	}
	return true;
}

/*
 * Finds the messages again, under the delivery locks. Where the file can only
 * have grown, it is enough that every From_ line stands where it stood, and
 * that what follows the last of them is the same.
 */
static enum maildrop_result
compare_file(struct maildrop *md, enum change change)
{
	enum maildrop_result result;
	unsigned last;

	if (change == CHANGE_NONE)
		return MAILDROP_OK;
	if (change != CHANGE_ANY && md->table.count > 0 &&
	    places_hold(md, &last)) {
		result =
		    scan_file(md, (off_t)md->table.row[last].place, true, last);
		if (result != MAILDROP_OK ||
		    (md->table.row[last].flags & MESSAGE_MISSED) == 0)
			return result;
	}
	return scan_file(md, 0, true, 0);
}

/* Makes sure that the table still tells where our messages are. */
static enum maildrop_result
verify_table(struct maildrop *md)
{
	enum maildrop_result result;
	enum change change;

	result = look(md, &change);
	if (result != MAILDROP_OK || change == CHANGE_NONE)
		return result;
	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = look(md, &change);
	if (result == MAILDROP_OK)
		result = compare_file(md, change);
	unlock_delivery(md);
	return result;
}

/* The next row from `n` (counted from 0) on that is in the file. */
static unsigned
next_row(const struct maildrop *md, unsigned n)
{
	while (n < md->table.count &&
	       (md->table.row[n].flags & MESSAGE_MISSED) != 0)
		n++;
	return n;
}

/* Where row `n` begins, or the last message ends. */
static off_t
place_of(const struct maildrop *md, unsigned n)
{
	return n < md->table.count ? (off_t)md->table.row[n].place : mbox.end;
}

/* Makes sure of one message that is sent. Where nothing is seen to have
 * changed, it is enough that it still begins and ends where it did: to look at
 * all of them each time would take as long as all of them squared. */
static enum maildrop_result
verify_message(struct maildrop *md, const struct message *m)
{
	unsigned next = next_row(md, (unsigned)(m - md->table.row) + 1);
	enum maildrop_result result;
	enum change change;

	result = look(md, &change);
	if (result != MAILDROP_OK || change == CHANGE_NONE)
		return result;
	if (change == CHANGE_UNSEEN && (m->flags & UNSENDABLE) == 0 &&
	    from_line_at(mbox.fd, (off_t)m->place) > 0 &&
	    (next == md->table.count ||
		from_line_at(mbox.fd, place_of(md, next)) > 0))
		return MAILDROP_OK;
	return verify_table(md);
}

/* Reads the first block of a message, From_ line included, for
 * maildrop_send(); the length of that line, 0 if there is none, or -1. The file
 * is as it was known, so that it need not be taken apart again. */
static ssize_t
read_first_block(struct maildrop *md, const struct message *m, off_t end)
{
	off_t length = end - (off_t)m->place;
	size_t most = MAILDROP_BLOCK_OCTETS;
	const char *lf;
	ssize_t n;

	md->held = 0;
	if (length <= 0)
		return 0;
	if (length < (off_t)most)
		most = (size_t)length;
	n = read_at(mbox.fd, md->block, most, (off_t)m->place);
	if (n <= 0)
		return n;
	md->held_at = (off_t)m->place;
	md->held = (size_t)n;
	if (n < FROM_LEAST ||
	    memcmp(md->block, FROM_WORD, sizeof(FROM_WORD) - 1) != 0)
		return 0;
	lf = memchr(md->block, '\n', md->held);
	return lf != NULL ? lf + 1 - md->block : n;
}

static enum maildrop_result
mbox_find(struct maildrop *md, struct message *m, struct stored *where)
{
	unsigned n = (unsigned)(m - md->table.row);
	enum maildrop_result result = MAILDROP_OK;
	ssize_t from;
	off_t end;

	if (md->waited)
		result = verify_message(md, m);
	if (result != MAILDROP_OK)
		return result;
	if ((m->flags & UNSENDABLE) != 0)
		return MAILDROP_TEMP;
	end = place_of(md, next_row(md, n + 1));
	errno = EIO;
	from = read_first_block(md, m, end);
	if (from <= 0)
		return maildrop_failed(md->path, "read");
	if ((m->flags & MESSAGE_GAP_LF) != 0)
		end -= 1;
	else if ((m->flags & MESSAGE_GAP_CRLF) != 0)
		end -= 2;
	where->fd = mbox.fd;
	where->start = (off_t)m->place + from;
	if (end < where->start)
		return maildrop_failed(md->path, "read");
	where->length = (uint64_t)(end - where->start);
	where->close = false;
	return MAILDROP_OK;
}

/* Whether the file that is open is surely as it was known. */
static bool
unchanged(void)
{
	uint64_t now[END];
	struct stat st;

	if (mbox.unsure || fstat(mbox.fd, &st) == -1)
		return false;
	identify(&st, now);
	return memcmp(now, mbox.known, sizeof(now)) == 0;
}

/* Nobody is kept from rewriting the file while we send from it: whether a
 * message that was sent is still there says whether it was what we sent. */
static enum maildrop_result
mbox_sent(struct maildrop *md, const struct message *m)
{
	uint64_t place = m->place;
	enum maildrop_result result = MAILDROP_OK;

	/* This looks at no path, since it is done for each message. */
	if (!unchanged())
		result = verify_message(md, m);
	if (result != MAILDROP_OK)
		return result;
	md->waited = false;
	/* cppcheck-suppress knownConditionTrueFalse ; it may have moved */
	return m->place == place && (m->flags & UNSENDABLE) == 0
		   ? MAILDROP_OK
		   : MAILDROP_TEMP;
}

/* ---- What the state file knows ---- */

static int
by_row_digest(const struct message *a, const struct message *b)
{
	return memcmp(a->of.digest, b->of.digest, DIGEST_OCTETS);
}

/* How the file may have changed since the state file was written. */
static enum maildrop_result
look_since(struct maildrop *md, enum change *change)
{
	memcpy(mbox.known, md->known.number, sizeof(mbox.known));
	mbox.end = (off_t)md->known.number[END];
	mbox.unsure = may_hide_change(mbox.known, &md->known.sure);
	md->identity = md->known;
	return look(md, change);
}

/* Whether the places that the state file tells are such as a scan could have
 * found. */
static bool
places_possible(const struct maildrop *md)
{
	uint64_t end = md->known.number[END], least = 0;
	unsigned i;

	for (i = 0; i < md->before.count; i++) {
		if (md->before.row[i].place < least)
			return false;
		least = md->before.row[i].place + FROM_LEAST;
	}
	return least <= end && end <= md->known.number[SIZE] &&
	       end <= MESSAGE_OCTETS_MAX;
}

/*
 * Takes the table from the state file and adds what was delivered since. The
 * last message is read again: it must be what it was. `*done` is whether that
 * could be done.
 */
static enum maildrop_result
extend_table(struct maildrop *md, bool *done)
{
	struct message_table *table = &md->table;
	enum maildrop_result result = MAILDROP_OK;
	unsigned last = md->before.count, found;
	struct message was, *row;
	uint32_t id;

	*done = false;
	if (last-- == 0)
		return MAILDROP_OK;
	message_swap(md);
	was = table->row[last];
	id = table->id != NULL ? table->id[last] : 0;
	if (places_hold(md, &found)) {
		table->count = last;
		result = scan_file(md, (off_t)was.place, false, 0);
		row = &table->row[last];
		*done = table->count > last && by_row_digest(row, &was) == 0 &&
			row->octets == was.octets;
	}
	if (table->id != NULL)
		table->id[last] = id;
	if (*done) {
		row->copy = was.copy;
		row->flags |= was.flags & MESSAGE_TAKEN;
	} else {
		table->row[last] = was;
		table->count = last + 1;
		message_swap(md);
	}
	return result;
}

/* Scans what is not known, under the delivery locks. */
static enum maildrop_result
scan_locked(struct maildrop *md)
{
	enum maildrop_result result = MAILDROP_OK;
	enum change change = CHANGE_ANY;
	bool done = false;

	if (md->remembered)
		result = look_since(md, &change);
	if (result == MAILDROP_OK && change == CHANGE_NONE) {
		message_swap(md);
		return MAILDROP_OK;
	}
	if (result == MAILDROP_OK && change != CHANGE_ANY)
		result = extend_table(md, &done);
	if (result != MAILDROP_OK || done)
		return result;
	md->table.count = 0;
	result = scan_file(md, 0, false, 0);
	if (result != MAILDROP_OK)
		return result;
	if (md->remembered)
		return message_inherit(md, by_row_digest, NULL);
	/* Without a state file of ours there was another server. */
	former_mbox(md, mbox.fd, mbox.end);
	return MAILDROP_OK;
}

static enum maildrop_result
mbox_scan(struct maildrop *md)
{
	enum maildrop_result result;
	enum change change;

	if (md->remembered && !places_possible(md))
		memset(&md->known, 0, sizeof(md->known));
	/* What is unchanged is not read, and takes no delivery lock. */
	if (md->remembered && !journal_stands()) {
		result = look_since(md, &change);
		if (result != MAILDROP_OK)
			return result;
		if (change == CHANGE_NONE) {
			message_swap(md);
			return MAILDROP_OK;
		}
	}
	result = lock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	result = scan_locked(md);
	unlock_delivery(md);
	return result;
}

static bool
mbox_undisturbed(struct maildrop *md)
{
	enum change change;

	if (mbox.known[INODE] == 0)
		return true; /* not looked at yet */
	return look(md, &change) == MAILDROP_OK && change != CHANGE_ANY;
}

/* ---- UPDATE ---- */

/* Whether row `n` is to go, and it is certain what that is. */
static bool
is_deleted(const struct maildrop *md, unsigned n)
{
	unsigned flags = md->table.row[n].flags;

	return (flags & MESSAGE_DELETED) != 0 && (flags & UNREMOVABLE) == 0;
}

/* Cuts the file at `size`: all that UPDATE is where nothing stays behind. */
static enum maildrop_result
cut_tail(struct maildrop *md, off_t size, struct maildrop_tally *tally)
{
	if (cut_file(mbox.fd, size) == -1)
		return maildrop_failed(md->path, "cut");
	if (sync_file(mbox.fd) == 0)
		return MAILDROP_OK;
	/* Cut, but a power cut may undo it: that is not removed. */
	tally->unfinished = true;
	return maildrop_failed(md->path, "fsync");
}

/* What stays behind the first hole moves down, under a journal. */
static enum journal_result
close_holes(struct maildrop *md, unsigned hole, off_t size, uint64_t moving)
{
	enum journal_result result;
	struct journal j;
	unsigned n, next;

	/* After a power cut, too, the next session is to know it for ours. */
	if (mbox.dotlock != -1)
		sync_file(mbox.dotlock);
	set_journal(md, &j);
	result = journal_begin(&j, place_of(md, hole), moving);
	for (n = hole; result == JOURNAL_OK && n < md->table.count; n = next) {
		next = next_row(md, n + 1);
		if (!is_deleted(md, n))
			result = journal_keep(
			    &j, place_of(md, n), place_of(md, next));
	}
	if (result == JOURNAL_OK)
		result = journal_keep(&j, mbox.end, size);
	return result == JOURNAL_OK ? journal_finish(&j) : result;
}

/* Takes the marked messages out of the file, whose octets from mbox.end to
 * `size` were delivered since and stay. */
static enum maildrop_result
remove_marked(struct maildrop *md, off_t size, struct maildrop_tally *tally)
{
	uint64_t moving = (uint64_t)(size - mbox.end);
	unsigned n, next, hole = md->table.count;
	enum journal_result result;

	for (n = next_row(md, 0); n < md->table.count; n = next) {
		next = next_row(md, n + 1);
		if (is_deleted(md, n) && hole == md->table.count)
			hole = n;
		else if (!is_deleted(md, n) && hole < md->table.count)
			moving +=
			    (uint64_t)(place_of(md, next) - place_of(md, n));
	}
	if (hole == md->table.count)
		return MAILDROP_OK;
	if (moving == 0)
		return cut_tail(md, place_of(md, hole), tally);
	if (mbox.journal == NULL) {
		log_error(md->path, "no place for a journal: see option -d");
		return MAILDROP_PERM;
	}
	result = close_holes(md, hole, size, moving);
	tally->unfinished = result == JOURNAL_UNFINISHED;
	return result == JOURNAL_OK ? MAILDROP_OK : MAILDROP_TEMP;
}

/* Gives what stays the places it has now, for the state file. */
static void
settle_places(struct maildrop *md)
{
	struct timespec looked;
	off_t removed = 0;
	unsigned n, next;
	struct stat st;

	for (n = next_row(md, 0); n < md->table.count; n = next) {
		next = next_row(md, n + 1);
		if (is_deleted(md, n)) {
			removed += place_of(md, next) - place_of(md, n);
			md->table.row[n].flags |= MESSAGE_REMOVED;
		} else {
			md->table.row[n].place =
			    (md->table.row[n].place - (uint64_t)removed) &
			    MESSAGE_OCTETS_MAX;
		}
	}
	mbox.end -= removed;
	clock_gettime(CLOCK_REALTIME, &looked);
	/* With a message of another among ours only the unique-ids hold. */
	if (fstat(mbox.fd, &st) == -1 || mbox.altered > 0)
		memset(&st, 0, sizeof(st));
	/* What was delivered since is not in the table: the file has grown. */
	st.st_size = mbox.end;
	know_file(md, &st, &looked);
}

static enum maildrop_result
update_locked(struct maildrop *md, struct maildrop_tally *tally)
{
	enum maildrop_result result;
	enum change change;
	struct stat st;

	result = look(md, &change);
	/* Never by the clock alone, and with any doubt every message is read
	 * again: what goes must be what the client saw. */
	change = change == CHANGE_NONE ? CHANGE_SMALL : CHANGE_ANY;
	if (result == MAILDROP_OK)
		result = compare_file(md, change);
	if (result != MAILDROP_OK)
		return result;
	if (fstat(mbox.fd, &st) == -1)
		return maildrop_failed(md->path, "stat");
	result = remove_marked(md, st.st_size, tally);
	if (result == MAILDROP_OK)
		settle_places(md);
	return result;
}

static enum maildrop_result
mbox_update(struct maildrop *md, struct maildrop_tally *tally)
{
	unsigned n, marked = md->table.count - md->count, removed = 0;
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
	result = update_locked(md, tally);
	unlock_delivery(md);
	if (result != MAILDROP_OK)
		return result;
	/* Whether those that were not found are gone, nobody knows. */
	for (n = 0; n < md->table.count; n++)
		removed += is_deleted(md, n);
	tally->removed = removed;
	tally->failed = marked - removed;
	return tally->failed == 0 ? MAILDROP_OK : MAILDROP_TEMP;
}

/* Its directory, where that is the user's; in a spool only the file itself, and
 * the making and removing of names for the dotlock. */
static unsigned
mbox_places(
    struct maildrop *md, struct sandbox_place place[MAILDROP_PLACES_MAX])
{
	char directory[PATH_MAX];
	unsigned count = 0;

	if (directory_of(md->path, directory) == -1)
		return 0;
	mbox.directory = strdup(directory);
	if (mbox.directory == NULL)
		return 0;
	if (!mbox.elsewhere) {
		place[0] = (struct sandbox_place){mbox.directory, SANDBOX_TREE};
		return 1;
	}
	prepare_dotlock(md);
	place[count++] = (struct sandbox_place){md->path, SANDBOX_FILE};
	place[count++] = (struct sandbox_place){mbox.directory, SANDBOX_NAMES};
	if (md->site->side != NULL)
		place[count++] =
		    (struct sandbox_place){md->site->side, SANDBOX_TREE};
	return count;
}

const struct maildrop_format mbox_format = {
    .name = "mbox",
    .open = mbox_open,
    .scan = mbox_scan,
    .find = mbox_find,
    .sent = mbox_sent,
    .update = mbox_update,
    .undisturbed = mbox_undisturbed,
    .places = mbox_places,
    .close = mbox_close,
};
