/*
 * The journal of an mbox rewrite.
 *
 * THE FILE is two slots of equal size, each a header of 4096 octets and room
 * for data. Record k goes to slot k mod 2: data first, then the header, then
 * fsync, so that the record before it is whole until this one is. A header is
 * valid if its own sum and that of its data are right; numbers are in the
 * machine's order, since a journal never leaves its machine's mbox.
 *
 * STEP {k, to, length, run_start, run_end, before, data}: the data, gathered
 * from one or more kept runs of the mbox whose last is [run_start, run_end),
 * goes to [to, to + length). Written to the journal and synced, then to the
 * mbox and synced. Everything between `to` + length and run_end is then stale.
 *
 * MOVED {k, cut, end, nonce}: all that stays is in [0, cut), the file reaches
 * to `end`, [cut, end) is stale. Synced; then the nonce, random octets, is
 * written at `cut` and synced.
 *
 * CUT {k, cut, end, nonce}: synced; then ftruncate to `cut`, fsync, and the
 * journal is removed and its directory synced.
 *
 * WHAT A STOP CAN LEAVE, by the newest valid record, and what tells it:
 *
 * - No valid record: the first step was not synced, so the mbox was not yet
 *   touched. Remove the journal.
 * - STEP k: steps before k are in the mbox whole, since each was synced there
 *   before the next record was begun; later ones are not in it at all. Of the
 *   step's own destination any part may be written: write it again. What
 *   follows run_end is untouched: it is kept mail, delivered before or since,
 *   and moves down the same way. Holes behind it are forgotten. A stranger who
 *   rewrote the mbox since would have changed the octets before `to` or the
 *   part of the last run that the step does not overwrite: both are compared.
 * - MOVED: the file was not cut, so it reaches at least to `end`, and what
 *   lies beyond was delivered since: it moves down to `cut` first, by steps of
 *   its own. The nonce may be written or not; nobody asks.
 * - CUT: the nonce was synced before this record, so it stands at `cut` until
 *   the file is cut, and afterwards it does not, whatever was delivered there
 *   (16 octets that nobody could know). That tells "not cut" (do it; what lies
 *   beyond `end` moves down first) from "cut", even if the file has grown
 *   beyond `end` again. If it was cut, only the journal is left to remove.
 *
 * MOVED and CUT, too, compare octets before `cut` and the last stale ones.
 * Recovery writes records and steps of the same kind, so it may be stopped
 * anywhere itself.
 */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "maildrop.h"
#include "state.h"

#define HEADER_OCTETS 4096
#define CHECK_OCTETS 4096 /* compared to know the mbox again */
#define NONCE_OCTETS 16

static const char magic[8] = {'p', 'o', 'p', '3', 'j', 'r', 'n', '1'};

enum kind { STEP = 1, MOVED, CUT };

struct record {
	char magic[8];
	uint64_t kind;
	uint64_t number; /* k */
	uint64_t inode;	 /* of the mbox; its device may be renumbered */
	uint64_t room;	 /* data octets of a slot */
	uint64_t to;	 /* STEP; the others: cut */
	uint64_t length; /* STEP: of the data */
	uint64_t run_start, run_end; /* STEP */
	uint64_t end;		     /* MOVED, CUT */
	uint64_t before;	     /* sum of up to CHECK_OCTETS before `to` */
	uint64_t stale;	       /* MOVED, CUT: of the last ones before `end` */
	uint64_t data;	       /* STEP: sum of the data */
	uint64_t nonce_octets; /* MOVED, CUT */
	unsigned char nonce[NONCE_OCTETS];
	uint64_t sum; /* of all before it */
};

/* ---- Sums and transfers ---- */

/* Reads exactly so much; the end of the file before it is an error. */
static int
read_exactly(int fd, char *to, size_t length, off_t at)
{
	ssize_t n = read_at(fd, to, length, at);

	if (n >= 0 && (size_t)n < length)
		errno = EIO;
	return n == (ssize_t)length ? 0 : -1;
}

static int
sync_data(int fd)
{
	int result;

	while ((result = fdatasync(fd)) == -1 && errno == EINTR)
		continue;
	return result;
}

/* Copies octets from one file to another, and sums them if asked to. */
static int
copy(const struct journal *j, int from, off_t at, int to, off_t to_at,
    uint64_t length, uint64_t *sum)
{
	size_t part;

	for (; length > 0; length -= part) {
		j->refresh();
		part =
		    length < j->block_octets ? (size_t)length : j->block_octets;
		if (read_exactly(from, j->block, part, at) == -1)
			return -1;
		if (sum != NULL)
			*sum = sum_add(*sum, j->block, part);
		if (to != -1 && write_at(to, j->block, part, to_at) == -1)
			return -1;
		at += (off_t)part;
		to_at += (off_t)part;
	}
	return 0;
}

/* The sum of [from, end) of the mbox. */
static int
sum_mbox(const struct journal *j, off_t from, off_t end, uint64_t *sum)
{
	*sum = 0;
	return copy(j, j->mbox, from, -1, 0, (uint64_t)(end - from), sum);
}

static off_t
later(off_t a, off_t b)
{
	return a > b ? a : b;
}

/* What is compared before `at`, and before the end of what is stale. */
static int
sum_before(const struct journal *j, off_t at, uint64_t *sum)
{
	return sum_mbox(j, later(0, at - CHECK_OCTETS), at, sum);
}

static int
sum_stale(const struct journal *j, off_t cut, off_t end, uint64_t *sum)
{
	off_t from = later(cut + NONCE_OCTETS, end - CHECK_OCTETS);

	return sum_mbox(j, from < end ? from : end, end, sum);
}

/* ---- The journal's file ---- */

static off_t
slot_at(const struct journal *j, uint64_t number)
{
	return (off_t)(number % 2 * (HEADER_OCTETS + j->room));
}

/* Writes a record's header, whose data is there already, and syncs both. */
static int
write_record(struct journal *j, struct record *r)
{
	struct stat st;

	if (fstat(j->mbox, &st) == -1)
		return -1;
	memcpy(r->magic, magic, sizeof(magic));
	r->number = j->step;
	r->inode = st.st_ino;
	r->room = j->room;
	if (sum_before(j, (off_t)r->to, &r->before) == -1)
		return -1;
	r->sum = sum_add(0, (const char *)r, offsetof(struct record, sum));
	if (write_at(j->fd, (const char *)r, sizeof(*r), slot_at(j, j->step)) ==
		-1 ||
	    sync_data(j->fd) == -1)
		return -1;
	/* The first one is nothing without its name in the directory. */
	if (j->step == 0 && sync_directory(j->path) == -1)
		return -1;
	j->step++;
	return 0;
}

/* Logs a failure, and removes a journal that nothing depends on yet. */
static enum journal_result
failed(struct journal *j, const char *what)
{
	log_error(j->mbox_path, "%s: %s", what, strerror(errno));
	close(j->fd);
	j->fd = -1;
	if (j->begun)
		return JOURNAL_UNFINISHED;
	if (unlink(j->path) == -1) {
		log_error(j->path, "remove: %s", strerror(errno));
		return JOURNAL_UNFINISHED;
	}
	return JOURNAL_UNTOUCHED;
}

static enum journal_result
remove_journal(struct journal *j)
{
	if (unlink(j->path) == -1 || sync_directory(j->path) == -1) {
		log_error(j->path, "remove: %s", strerror(errno));
		close(j->fd);
		return JOURNAL_UNFINISHED;
	}
	close(j->fd);
	return JOURNAL_OK;
}

enum journal_result
journal_begin(struct journal *j, off_t hole, uint64_t moving)
{
	int error;

	j->room = moving < JOURNAL_STEP_OCTETS ? moving : JOURNAL_STEP_OCTETS;
	j->room = (j->room + HEADER_OCTETS - 1) / HEADER_OCTETS * HEADER_OCTETS;
	j->step = j->held = 0;
	j->to = hole;
	j->begun = false;
	j->fd = open(
	    j->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (j->fd == -1) {
		log_error(j->path, "make: %s", strerror(errno));
		return JOURNAL_UNTOUCHED;
	}
	/* All the room that it will need, before anything depends on it. */
	do
		error = posix_fallocate(
		    j->fd, 0, (off_t)(2 * (HEADER_OCTETS + j->room)));
	while (error == EINTR);
	errno = error;
	return error == 0 ? JOURNAL_OK : failed(j, "journal: make room");
}

/* What the present slot has gathered, on its way to the journal and to its
 * place in the mbox: memory that is touched only then. */
static char data[JOURNAL_STEP_OCTETS];

static enum journal_result
move_held(struct journal *j)
{
	struct record r = {.kind = STEP};

	r.to = (uint64_t)j->to;
	r.length = j->held;
	r.run_start = (uint64_t)j->run_start;
	r.run_end = (uint64_t)j->run_end;
	r.data = sum_add(0, data, j->held);
	if (write_at(j->fd, data, j->held,
		slot_at(j, j->step) + HEADER_OCTETS) == -1 ||
	    write_record(j, &r) == -1)
		return failed(j, "journal: write a step");
	j->begun = true;
	j->refresh();
	if (write_at(j->mbox, data, j->held, j->to) == -1 ||
	    sync_data(j->mbox) == -1)
		return failed(j, "move");
	j->to += (off_t)j->held;
	j->held = 0;
	return JOURNAL_OK;
}

enum journal_result
journal_keep(struct journal *j, off_t from, off_t end)
{
	size_t part, most = sizeof(data);
	enum journal_result result;

	if (j->room < most)
		most = (size_t)j->room;
	for (; from < end; from += (off_t)part) {
		part = most - j->held;
		if (end - from < (off_t)part)
			part = (size_t)(end - from);
		j->refresh();
		if (read_exactly(j->mbox, data + j->held, part, from) == -1)
			return failed(j, "read");
		j->run_start = from;
		j->run_end = from + (off_t)part;
		j->held += part;
		if (j->held == most) {
			result = move_held(j);
			if (result != JOURNAL_OK)
				return result;
		}
	}
	return JOURNAL_OK;
}

/* Cuts the file behind what stays, and ends the journal. */
static enum journal_result
cut_mbox(struct journal *j, off_t size)
{
	if (cut_file(j->mbox, size) == -1 || sync_file(j->mbox) == -1)
		return failed(j, "cut");
	return remove_journal(j);
}

enum journal_result
journal_finish(struct journal *j)
{
	struct record r = {.kind = MOVED};
	enum journal_result result;
	struct stat st;

	if (j->held > 0) {
		result = move_held(j);
		if (result != JOURNAL_OK)
			return result;
	}
	if (fstat(j->mbox, &st) == -1)
		return failed(j, "stat");
	r.to = (uint64_t)j->to;
	r.end = (uint64_t)st.st_size;
	r.nonce_octets =
	    r.end - r.to < NONCE_OCTETS ? r.end - r.to : NONCE_OCTETS;
	if (getrandom(r.nonce, sizeof(r.nonce), 0) != sizeof(r.nonce) ||
	    sum_stale(j, j->to, st.st_size, &r.stale) == -1 ||
	    write_record(j, &r) == -1)
		return failed(j, "journal: write the end");
	if (write_at(j->mbox, (const char *)r.nonce, (size_t)r.nonce_octets,
		j->to) == -1 ||
	    sync_data(j->mbox) == -1)
		return failed(j, "mark the end");
	r.kind = CUT;
	if (write_record(j, &r) == -1)
		return failed(j, "journal: write the cut");
	return cut_mbox(j, j->to);
}

/* ---- Recovery ---- */

/* Whether a header is one that this file format allows. */
static bool
well_formed(const struct journal *j, uint64_t slot, const struct record *r)
{
	if (memcmp(r->magic, magic, sizeof(magic)) != 0 ||
	    r->sum != sum_add(0, (const char *)r, offsetof(struct record, sum)))
		return false;
	if (r->room == 0 || r->room != j->room || r->number % 2 != slot ||
	    r->run_end > INT64_MAX || r->end > INT64_MAX)
		return false;
	if (r->kind != STEP)
		return (r->kind == MOVED || r->kind == CUT) && r->to < r->end &&
		       r->nonce_octets <= NONCE_OCTETS &&
		       r->nonce_octets <= r->end - r->to;
	return r->length <= r->room && r->run_start < r->run_end &&
	       r->run_end - r->run_start <= r->length && r->to < r->run_end &&
	       r->length <= r->run_end - r->to;
}

/* Reads a slot: 1 if it holds a valid record, 0 if not, -1 with errno. */
static int
read_slot(const struct journal *j, uint64_t slot, struct record *r)
{
	off_t at = slot_at(j, slot);
	uint64_t sum = 0;

	if (read_exactly(j->fd, (char *)r, sizeof(*r), at) == -1)
		return -1;
	if (!well_formed(j, slot, r))
		return 0;
	if (r->kind != STEP)
		return 1;
	if (copy(j, j->fd, at + HEADER_OCTETS, -1, 0, r->length, &sum) == -1)
		return -1;
	return sum == r->data;
}

/* What cannot be applied may hold the only copy of something: it is kept. */
static enum journal_result
set_aside(struct journal *j, const char *why)
{
	char aside[PATH_MAX];

	if (j->fd != -1)
		close(j->fd);
	j->fd = -1;
	if ((size_t)snprintf(aside, sizeof(aside), "%s.aside.%lld.%ld", j->path,
		(long long)time(NULL), (long)getpid()) >= sizeof(aside) ||
	    rename(j->path, aside) == -1 || sync_directory(j->path) == -1) {
		log_error(j->path, "%s, and cannot be renamed: %s", why,
		    strerror(errno));
		return JOURNAL_UNFINISHED;
	}
	log_error(aside, "a journal that was not applied: %s", why);
	return JOURNAL_OK;
}

/*
 * Without a valid record nothing was begun, whatever of it has reached the
 * disk. But the second slot gets a header only when the first is valid: if
 * there is one, this is no state that a stop leaves, and nothing to throw
 * away.
 */
static enum journal_result
recover_nothing(struct journal *j, const struct record *second)
{
	if (memcmp(second->magic, magic, sizeof(magic)) == 0)
		return set_aside(j, "damaged");
	return remove_journal(j);
}

/* Whether the mbox still is what a STEP was written for. -1 with errno. */
static int
fits_step(const struct journal *j, const struct record *r, off_t size)
{
	off_t from = later((off_t)r->run_start, (off_t)(r->to + r->length));
	uint64_t rest = r->run_end - (uint64_t)from, sum, mbox_sum;

	if (size < (off_t)r->run_end)
		return 0;
	if (sum_before(j, (off_t)r->to, &sum) == -1)
		return -1;
	if (sum != r->before)
		return 0;
	sum = 0;
	if (sum_mbox(j, from, (off_t)r->run_end, &mbox_sum) == -1 ||
	    copy(j, j->fd,
		slot_at(j, r->number) + HEADER_OCTETS +
		    (off_t)(r->length - rest),
		-1, 0, rest, &sum) == -1)
		return -1;
	return sum == mbox_sum;
}

static enum journal_result
recover_step(struct journal *j, const struct record *r, off_t size)
{
	enum journal_result result;
	int fits = fits_step(j, r, size);

	if (fits == -1)
		return failed(j, "compare");
	if (fits == 0)
		return set_aside(j, "the mbox was changed by another since");
	if (copy(j, j->fd, slot_at(j, r->number) + HEADER_OCTETS, j->mbox,
		(off_t)r->to, r->length, NULL) == -1 ||
	    sync_data(j->mbox) == -1)
		return failed(j, "move");
	j->to = (off_t)(r->to + r->length);
	result = journal_keep(j, (off_t)r->run_end, size);
	return result == JOURNAL_OK ? journal_finish(j) : result;
}

static enum journal_result
recover_cut(struct journal *j, const struct record *r, off_t size)
{
	unsigned char now[NONCE_OCTETS];
	enum journal_result result;
	off_t cut = (off_t)r->to, end = (off_t)r->end;
	uint64_t before, stale;
	bool stands = false;

	if (size >= end) {
		if (read_exactly(j->mbox, (char *)now, (size_t)r->nonce_octets,
			cut) == -1)
			return failed(j, "read");
		stands = memcmp(now, r->nonce, (size_t)r->nonce_octets) == 0;
	}
	if (r->kind == CUT && !stands)
		return remove_journal(j);
	if (size < end)
		return set_aside(j, "the mbox was changed by another since");
	if (sum_before(j, cut, &before) == -1 ||
	    sum_stale(j, cut, end, &stale) == -1)
		return failed(j, "compare");
	if (before != r->before || stale != r->stale)
		return set_aside(j, "the mbox was changed by another since");
	if (r->kind == CUT && size == end)
		return cut_mbox(j, cut);
	j->to = cut;
	result = journal_keep(j, end, size);
	return result == JOURNAL_OK ? journal_finish(j) : result;
}

/* Applies the newest record. */
static enum journal_result
apply(struct journal *j, const struct record *r)
{
	struct stat st;

	if (fstat(j->mbox, &st) == -1)
		return failed(j, "stat");
	if (r->inode != st.st_ino)
		return set_aside(j, "it belongs to another file");
	log_warning(j->mbox_path, "finishing an UPDATE that was stopped");
	j->step = r->number + 1;
	if (r->kind == STEP)
		return recover_step(j, r, st.st_size);
	return recover_cut(j, r, st.st_size);
}

enum journal_result
journal_recover(struct journal *j)
{
	struct record record[2];
	int valid[2];
	struct stat st;
	const char *why;

	j->held = 0;
	j->begun = true; /* whatever fails from here on, the journal stays */
	j->fd = open(
	    j->path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (j->fd == -1 && errno == ENOENT)
		return JOURNAL_OK;
	if (j->fd == -1 && (errno == ELOOP || errno == EISDIR))
		return set_aside(j, strerror(errno));
	if (j->fd == -1 || fstat(j->fd, &st) == -1) {
		log_error(j->path, "open: %s", strerror(errno));
		return JOURNAL_UNFINISHED;
	}
	why = state_unfit(&st);
	if (why == NULL && (st.st_mode & 077) != 0)
		why = "others have rights to it";
	if (why != NULL)
		return set_aside(j, why);
	if (st.st_size < 2 * HEADER_OCTETS || st.st_size % 2 != 0)
		return remove_journal(j);
	j->room = (uint64_t)st.st_size / 2 - HEADER_OCTETS;
	valid[0] = read_slot(j, 0, &record[0]);
	valid[1] = read_slot(j, 1, &record[1]);
	if (valid[0] == -1 || valid[1] == -1)
		return failed(j, "journal: read");
	if (!valid[0] && !valid[1])
		return recover_nothing(j, &record[1]);
	if (valid[0] && (!valid[1] || record[0].number > record[1].number))
		return apply(j, &record[0]);
	return apply(j, &record[1]);
}
