/* The maildrop as a session sees it; see maildrop.h. */
#include "maildrop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "state.h"

#define UNSURE_SECONDS 2 /* a clock may tick as slowly as this */

enum maildrop_result
maildrop_failed(const char *path, const char *what)
{
	int error = errno;

	log_error(path, "%s: %s", what, strerror(error));
	switch (error) {
	case EACCES:
	case EPERM:
	case EROFS:
	case ELOOP:
	case ENOTDIR:
	case EISDIR:
		return MAILDROP_PERM;
	default:
		return MAILDROP_TEMP;
	}
}

ssize_t
read_at(int fd, char *to, size_t length, off_t at)
{
	size_t done = 0;
	ssize_t n;

	while (done < length) {
		n = pread(fd, to + done, length - done, at + (off_t)done);
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1)
			return -1;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int
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

int
directory_of(const char *path, char directory[PATH_MAX])
{
	const char *slash = strrchr(path, '/');
	int n;

	n = slash == NULL ? snprintf(directory, PATH_MAX, ".")
			  : snprintf(directory, PATH_MAX, "%.*s/",
				(int)(slash - path), path);
	errno = ENAMETOOLONG;
	return n < PATH_MAX ? 0 : -1;
}

int
stat_directory(const char *path, struct stat *st)
{
	char directory[PATH_MAX];

	return directory_of(path, directory) == 0 ? stat(directory, st) : -1;
}

int
sync_file(int fd)
{
	int result;

	while ((result = fsync(fd)) == -1 && errno == EINTR)
		continue;
	return result;
}

int
cut_file(int fd, off_t size)
{
	int result;

	while ((result = ftruncate(fd, size)) == -1 && errno == EINTR)
		continue;
	return result;
}

int
sync_directory(const char *path)
{
	char directory[PATH_MAX];
	int fd, result;

	if (directory_of(path, directory) == -1)
		return -1;
	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd == -1)
		return -1;
	result = sync_file(fd);
	close(fd);
	return result;
}

char *
named_beside(const char *path, const char *prefix, const char *suffix)
{
	char out[PATH_MAX];

	return path_beside(path, prefix, suffix, out, sizeof(out)) == 0
		   ? strdup(out)
		   : NULL;
}

int
path_beside(const char *path, const char *prefix, const char *suffix, char *out,
    size_t room)
{
	const char *slash = strrchr(path, '/');
	int directory = slash != NULL ? (int)(slash - path) + 1 : 0;
	int n;

	n = snprintf(out, room, "%.*s%s%s%s", directory, path, prefix,
	    path + directory, suffix);
	if (n < 0 || (size_t)n >= room) {
		errno = ENAMETOOLONG;
		return -1;
	}
	return 0;
}

/* ---- The table and its texts ---- */

struct message *
message_add(struct message_table *table)
{
	struct message *grown;
	uint32_t *ids;
	unsigned room;

	if (table->count == table->room) {
		room = table->room + table->room / 2 + 64;
		if (room < table->room || room > UINT32_MAX / 64)
			return NULL;
		grown = realloc(table->row, room * sizeof(*grown));
		if (grown == NULL)
			return NULL;
		table->row = grown;
		if (table->id != NULL) {
			ids = realloc(table->id, room * sizeof(*ids));
			if (ids == NULL)
				return NULL;
			table->id = ids;
			memset(ids + table->room, 0,
			    (room - table->room) * sizeof(*ids));
		}
		table->room = room;
	}
	grown = &table->row[table->count];
	memset(grown, 0, sizeof(*grown));
	if (table->id != NULL)
		table->id[table->count] = 0;
	table->count++;
	return grown;
}

void
message_free(struct message_table *table)
{
	free(table->row);
	free(table->id);
	memset(table, 0, sizeof(*table));
}

int64_t
text_add(struct maildrop *md, const void *octets, size_t length)
{
	size_t room, at = md->text.used > 0 ? md->text.used : 1;
	char *grown;

	if (md->text.room < at + length) {
		room = md->text.room + md->text.room / 2 + length + 4096;
		grown =
		    room > UINT32_MAX ? NULL : realloc(md->text.octets, room);
		if (grown == NULL) {
			errno = ENOMEM;
			return -1;
		}
		md->text.octets = grown;
		md->text.room = room;
	}
	memcpy(md->text.octets + at, octets, length);
	md->text.used = at + length;
	return (int64_t)at;
}

int
message_set_id(struct message_table *table, unsigned n, int64_t text)
{
	if (text == -1)
		return -1;
	if (table->id == NULL)
		table->id = calloc(table->room, sizeof(*table->id));
	if (table->id == NULL)
		return -1;
	table->id[n] = (uint32_t)text;
	return 0;
}

/* Where a row's unique-id stands in the texts, 0 if nowhere. */
static uint32_t
id_place(const struct message_table *table, unsigned n)
{
	return table->id != NULL ? table->id[n] : 0;
}

const char *
message_id(
    const struct maildrop *md, const struct message_table *table, unsigned n)
{
	uint32_t place = id_place(table, n);

	return place != 0 ? md->text.octets + place : NULL;
}

bool
message_id_valid(const char *id, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		if (id[i] < 0x21 || id[i] > 0x7e)
			return false;
	return length >= 1 && length <= MAILDROP_UID_OCTETS;
}

void
message_drop(struct message_table *table, unsigned flags)
{
	unsigned from, to = 0;

	for (from = 0; from < table->count; from++) {
		if ((table->row[from].flags & flags) != 0)
			continue;
		table->row[to] = table->row[from];
		if (table->id != NULL)
			table->id[to] = table->id[from];
		to++;
	}
	table->count = to;
}

/* What message_order() sorts; qsort(3) hands on no context. */
static struct {
	const struct message *row;
	int (*compare)(const struct message *, const struct message *);
} sorting;

static int
compare_indices(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int order = sorting.compare(&sorting.row[x], &sorting.row[y]);

	return order != 0 ? order : (x > y) - (x < y);
}

uint32_t *
message_order(const struct message_table *table,
    int (*compare)(const struct message *, const struct message *))
{
	uint32_t *order = malloc((table->count + 1) * sizeof(*order));
	uint32_t i;

	if (order == NULL)
		return NULL;
	for (i = 0; i < table->count; i++)
		order[i] = i;
	sorting.row = table->row;
	sorting.compare = compare;
	qsort(order, table->count, sizeof(*order), compare_indices);
	return order;
}

enum maildrop_result
message_inherit(struct maildrop *md,
    int (*compare)(const struct message *, const struct message *),
    bool (*inherits)(struct message *to, const struct message *from))
{
	struct message_table *table = &md->table, *before = &md->before;
	uint32_t *to = message_order(table, compare);
	uint32_t *from = to == NULL ? NULL : message_order(before, compare);
	struct message *heir, *dead;
	unsigned i = 0, j = 0;
	int order, failed = from == NULL;

	while (!failed && i < table->count && j < before->count) {
		heir = &table->row[to[i]];
		dead = &before->row[from[j]];
		order = compare(heir, dead);
		if (order == 0 && (inherits == NULL || inherits(heir, dead))) {
			heir->copy = dead->copy;
			heir->flags |= dead->flags & MESSAGE_TAKEN;
			if (message_id(md, before, from[j]) != NULL)
				failed = message_set_id(
				    table, to[i], before->id[from[j]]);
		}
		i += order <= 0;
		j += order >= 0;
	}
	free(to);
	free(from);
	if (!failed)
		return MAILDROP_OK;
	errno = ENOMEM;
	return maildrop_failed(md->path, "scan");
}

void
message_swap(struct maildrop *md)
{
	struct message_table table = md->table;

	md->table = md->before;
	md->before = table;
}

bool
time_unsure(time_t changed, const struct timespec *looked)
{
	return changed >= looked->tv_sec - UNSURE_SECONDS;
}

/* Takes the session lock. */
static enum maildrop_result
lock_session(struct maildrop *md)
{
	if (md->state == NULL) {
		log_warning(md->path, "no session lock: no place for one; see "
				      "option -d");
		return MAILDROP_OK;
	}
	if (state_lock(md->state, &md->lock) == STATE_HELD)
		return MAILDROP_IN_USE;
	return MAILDROP_OK;
}

void
maildrop_yield(struct maildrop *md)
{
	if (md->lock == -1 || md->yielded)
		return;
	state_unlock(md->lock);
	md->yielded = true;
}

bool
maildrop_resume(struct maildrop *md)
{
	if (!md->yielded)
		return true;
	if (!state_relock(md->state, md->lock))
		return false;
	if (!md->format->undisturbed(md)) {
		state_unlock(md->lock); /* the client may yet take its time */
		return false;
	}
	md->yielded = false;
	return true;
}

const struct maildrop_format *
maildrop_stated_format(const char **path)
{
	static const struct maildrop_format *const formats[] = {
	    &mbox_format, &maildir_format};
	size_t i, length;

	/* An array of pointers is meant. NOLINTNEXTLINE(bugprone-sizeof-*) */
	for (i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
		length = strlen(formats[i]->name);
		if (strncmp(*path, formats[i]->name, length) == 0 &&
		    (*path)[length] == ':') {
			*path += length + 1;
			return formats[i];
		}
	}
	return NULL;
}

void
maildrop_open_empty(struct maildrop *md)
{
	memset(md, 0, sizeof(*md));
	md->lock = -1;
}

enum maildrop_result
maildrop_open(
    struct maildrop *md, const char *path, const struct maildrop_site *site)
{
	static char block[MAILDROP_BLOCK_OCTETS];
	const struct maildrop_format *format;
	enum maildrop_result result;
	struct stat st, directory;

	maildrop_open_empty(md);
	md->block = block;
	md->waited = true;
	md->site = site;
	format = maildrop_stated_format(&path);
	/* A symlink is followed only where nobody else could have put it. */
	if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode) &&
	    (stat_directory(path, &directory) == -1 ||
		directory.st_uid != geteuid())) {
		log_error(path, "a symlink in a directory of another");
		return MAILDROP_PERM;
	}
	/* Locks stand beside the real file, whatever leads to it. */
	md->path = realpath(path, NULL);
	if (md->path == NULL || stat(md->path, &st) == -1) {
		result = errno == ENOENT || errno == ENOTDIR
			     ? MAILDROP_VANISHED
			     : maildrop_failed(path, "open");
	} else if (st.st_uid != geteuid()) {
		log_error(md->path, "owned by uid %lu, not by the user",
		    (unsigned long)st.st_uid);
		result = MAILDROP_PERM;
	} else {
		md->format = format;
		if (format == NULL)
			md->format = S_ISDIR(st.st_mode) ? &maildir_format
							 : &mbox_format;
		result = md->format->open(md);
	}
	/* What is no maildrop gets no state file. */
	if (result == MAILDROP_OK)
		result = lock_session(md);
	if (result != MAILDROP_OK)
		maildrop_close(md);
	return result;
}

unsigned
maildrop_places(
    struct maildrop *md, struct sandbox_place place[MAILDROP_PLACES_MAX])
{
	return md->format != NULL ? md->format->places(md, place) : 0;
}

void
maildrop_close(struct maildrop *md)
{
	if (md->format != NULL)
		md->format->close(md);
	if (md->lock != -1)
		close(md->lock);
	message_free(&md->table);
	message_free(&md->before);
	free(md->text.octets);
	free(md->path);
	free(md->state);
	maildrop_open_empty(md);
}

static enum maildrop_result number_copies(struct maildrop *md);

void
maildrop_remember(struct maildrop *md)
{
	if (md->lock != -1 && number_copies(md) == MAILDROP_OK)
		state_write(md);
}

static bool
same_identity(const struct identity *a, const struct identity *b)
{
	return memcmp(a->number, b->number, sizeof(a->number)) == 0;
}

enum maildrop_result
maildrop_scan(struct maildrop *md)
{
	enum maildrop_result result;
	unsigned known;
	bool adopted;

	if (md->format == NULL)
		return MAILDROP_OK;
	result = md->lock != -1 ? state_read(md) : MAILDROP_OK;
	if (result != MAILDROP_OK)
		return result;
	known = md->before.count;
	result = md->format->scan(md);
	if (result != MAILDROP_OK)
		md->table.count = 0; /* half a table is none */
	maildrop_reset(md);
	if (result != MAILDROP_OK)
		return result;
	/* A file that knew no message has no table to adopt. */
	adopted = md->remembered && md->before.row == NULL &&
		  (known > 0 || md->table.count == 0);
	if (!adopted || !same_identity(&md->identity, &md->known))
		maildrop_remember(md);
	else if (memcmp(&md->identity.sure, &md->known.sure,
		     sizeof(md->known.sure)) != 0)
		state_confirm(md);
	message_free(&md->before);
	return MAILDROP_OK;
}

/* ---- Marks ---- */

void
maildrop_mark(struct maildrop *md, unsigned n)
{
	struct message *m = &md->table.row[n - 1];

	m->flags |= MESSAGE_DELETED;
	md->count--;
	md->octets -= m->octets;
}

void
maildrop_reset(struct maildrop *md)
{
	unsigned i;

	md->count = md->table.count;
	md->octets = 0;
	for (i = 0; i < md->table.count; i++) {
		md->table.row[i].flags &=
		    ~(unsigned)MESSAGE_DELETED & MESSAGE_FLAGS;
		md->octets += md->table.row[i].octets;
	}
}

enum maildrop_result
maildrop_update(struct maildrop *md, struct maildrop_tally *tally)
{
	const unsigned gone = MESSAGE_VANISHED | MESSAGE_REMOVED;
	enum maildrop_result result = MAILDROP_OK;
	unsigned i;

	memset(tally, 0, sizeof(*tally));
	if (md->format != NULL)
		result = md->format->update(md, tally);
	for (i = 0; i < md->table.count; i++)
		if ((md->table.row[i].flags & gone) == 0)
			tally->left++;
	if (tally->removed == 0)
		return result;
	message_drop(&md->table, gone);
	maildrop_remember(md);
	return result;
}

/* ---- Unique-ids ---- */

/* The maildrop whose copies are numbered; qsort(3) hands on no context. */
static const struct maildrop *numbering;

/* The digest of a row, as it stands in the row or as text. */
static int
by_digest(const struct message *a, const struct message *b)
{
	const struct message_table *table = &numbering->table;
	unsigned a_digest = a->flags & MESSAGE_DIGEST;
	unsigned b_digest = b->flags & MESSAGE_DIGEST;
	const char *text;

	if (a_digest == 0 || b_digest == 0)
		return (a_digest > b_digest) - (a_digest < b_digest);
	if (!numbering->format->named)
		return memcmp(a->of.digest, b->of.digest, DIGEST_OCTETS);
	/* Where rows have names, each that has a digest has it as its id. */
	text = numbering->text.octets;
	return strcmp(text + id_place(table, (unsigned)(a - table->row)),
	    text + id_place(table, (unsigned)(b - table->row)));
}

/* Numbers the rows order[from..to) that share a digest: those that have no
 * number yet get the next ones, in their order. */
static void
number_group(
    struct maildrop *md, const uint32_t *order, unsigned from, unsigned to)
{
	unsigned last = 0, i;
	struct message *m;

	for (i = from; i < to; i++)
		if (md->table.row[order[i]].copy > last)
			last = md->table.row[order[i]].copy;
	for (i = from; i < to; i++) {
		m = &md->table.row[order[i]];
		if (m->copy > 0)
			continue;
		if (last < MESSAGE_COPY_MAX)
			last++;
		m->copy = last & MESSAGE_COPY_MAX;
	}
}

/* Numbers the messages that share a digest. */
static enum maildrop_result
number_copies(struct maildrop *md)
{
	const struct message_table *table = &md->table;
	unsigned i = 0, from = 0;
	uint32_t *order;

	while (
	    i < table->count && ((table->row[i].flags & MESSAGE_DIGEST) == 0 ||
				    table->row[i].copy > 0))
		i++;
	md->numbered = i == table->count;
	if (md->numbered)
		return MAILDROP_OK;
	numbering = md;
	order = message_order(table, by_digest);
	if (order == NULL)
		return maildrop_failed(md->path, "unique-ids");
	for (i = 1; i <= table->count; i++) {
		if (i < table->count && by_digest(&table->row[order[from]],
					    &table->row[order[i]]) == 0)
			continue;
		if ((table->row[order[from]].flags & MESSAGE_DIGEST) != 0)
			number_group(md, order, from, i);
		from = i;
	}
	free(order);
	md->numbered = true;
	return MAILDROP_OK;
}

enum maildrop_result
maildrop_unique_id(struct maildrop *md, unsigned n,
    char id[MAILDROP_UID_OCTETS + 1], char **end)
{
	const struct message *m = &md->table.row[n - 1];
	uint32_t own = id_place(&md->table, n - 1);
	const char *name;
	enum maildrop_result result;

	if (!md->numbered) {
		result = number_copies(md);
		if (result != MAILDROP_OK)
			return result;
	}
	if (own != 0) {
		*end = stpcpy(id, md->text.octets + own);
	} else if ((m->flags & MESSAGE_DIGEST) != 0) {
		digest_hex(m->of.digest, id);
		*end = id + DIGEST_HEX;
	} else {
		name = md->text.octets + m->place;
		*end = mempcpy(id, name, (size_t)(strchrnul(name, ':') - name));
		**end = '\0';
	}
	if ((m->flags & MESSAGE_DIGEST) == 0 || (m->flags & MESSAGE_TAKEN) != 0)
		return MAILDROP_OK;
	if (m->copy > 1)
		*end += snprintf(*end, MAILDROP_UID_OCTETS - DIGEST_HEX, ".%u",
		    (unsigned)m->copy);
	return MAILDROP_OK;
}

/* ---- Octets out ---- */

/* Where in a message TOP is. */
struct top {
	bool in_body;
	uint64_t lines;	 /* of the body, still to come */
	uint64_t length; /* octets of the present line, so far */
	bool cr;	 /* it begins with CR */
};

/* How many of these octets TOP shows; less than `length` means the end. */
static size_t
top_part(struct top *top, const char *data, size_t length)
{
	const char *p = data, *end = data + length, *lf;

	while (p < end && !(top->in_body && top->lines == 0)) {
		if (top->length == 0)
			top->cr = *p == '\r';
		lf = memchr(p, '\n', (size_t)(end - p));
		if (lf == NULL) {
			top->length += (size_t)(end - p);
			return length;
		}
		top->length += (size_t)(lf - p);
		if (top->in_body)
			top->lines--;
		else if (top->length == 0 || (top->length == 1 && top->cr))
			top->in_body = true;
		top->length = 0;
		p = lf + 1;
	}
	return (size_t)(p - data);
}

enum maildrop_result
maildrop_find(struct maildrop *md, unsigned n, struct stored *where)
{
	struct message *m = &md->table.row[n - 1];

	if ((m->flags & MESSAGE_VANISHED) != 0)
		return MAILDROP_VANISHED;
	return md->format->find(md, m, where);
}

/* Reads the `octets` of a message that come after `done` of them: 0, or -1 with
 * errno. */
static int
read_block(struct maildrop *md, const struct stored *where, uint64_t done,
    size_t octets)
{
	ssize_t got;

	md->held = 0;
	got = read_at(where->fd, md->block, octets, where->start + (off_t)done);
	if (got == (ssize_t)octets)
		return 0;
	if (got >= 0)
		errno = EIO; /* shorter than it was */
	return -1;
}

enum maildrop_result
maildrop_send(struct maildrop *md, unsigned n, struct stored *where,
    uint64_t lines, maildrop_sink *sink, void *context)
{
	struct top top = {.lines = lines};
	enum maildrop_result result = MAILDROP_OK;
	uint64_t done = 0;
	const char *data;
	size_t part, shown;
	off_t ahead;

	while (result == MAILDROP_OK && done < where->length) {
		part = MAILDROP_BLOCK_OCTETS;
		if (where->length - done < part)
			part = (size_t)(where->length - done);
		data = md->block;
		ahead = where->start + (off_t)done - md->held_at;
		if (done == 0 && ahead > 0 && ahead < (off_t)md->held) {
			data += ahead;
			if (part > md->held - (size_t)ahead)
				part = md->held - (size_t)ahead;
		} else if (read_block(md, where, done, part) == -1) {
			result = maildrop_failed(md->path, "read");
			break;
		}
		shown = part;
		if (lines != MAILDROP_ALL_LINES)
			shown = top_part(&top, data, part);
		if (sink(context, data, shown) == -1)
			result = MAILDROP_STOPPED;
		done += part;
		if (shown < part)
			break;
	}
	if (where->close)
		close(where->fd);
	if (result == MAILDROP_OK && md->format->sent != NULL)
		result = md->format->sent(md, &md->table.row[n - 1]);
	return result;
}

/* ---- Octets and digests of a message ---- */

/* Octets side by side, which compilers compare in wide registers. */
#define LANES 16
#define ROUNDS 64 /* LANES at a time; under 256, what an octet can count */
typedef unsigned char lanes __attribute__((vector_size(LANES)));

static bool
any(lanes marks)
{
	uint64_t half[LANES / sizeof(uint64_t)];

	memcpy(half, &marks, sizeof(half));
	return (half[0] | half[1]) != 0;
}

/* Line ends that are LF without CR before, in at most ROUNDS times LANES
 * octets; and, if that is asked for, whether a line begins with "Fr" there:
 * then the octet after them is read. data[-1] is read. */
static inline __attribute__((always_inline)) size_t
bare_in_rounds(const char *data, size_t rounds, bool *begins)
{
	const lanes lf = (lanes){0} + '\n', cr = (lanes){0} + '\r';
	const lanes first = (lanes){0} + 'F', second = (lanes){0} + 'r';
	lanes here, before, after, counts = {0}, marks = {0};
	size_t count = 0, i;

#pragma GCC unroll 4
	for (i = 0; i < rounds; i++) {
		memcpy(&here, data + i * LANES, LANES);
		memcpy(&before, data + i * LANES - 1, LANES);
		counts -= (lanes)((here == lf) & (before != cr));
		if (begins == NULL)
			continue;
		memcpy(&after, data + i * LANES + 1, LANES);
		marks |= (lanes)((here == first) & (before == lf) &
				 (after == second));
	}
	if (begins != NULL)
		*begins = any(marks);
	for (i = 0; i < LANES; i++)
		count += counts[i];
	return count;
}

/* Line ends that are LF without CR before; `last` is the octet before. */
static size_t
bare_line_ends(const char *data, size_t length, char last)
{
	size_t i, count, rounds;

	if (length == 0)
		return 0;
	count = data[0] == '\n' && last != '\r';
	for (i = 1; length - i >= LANES; i += rounds * LANES) {
		rounds = (length - i) / LANES;
		if (rounds > ROUNDS)
			rounds = ROUNDS;
		count += bare_in_rounds(data + i, rounds, NULL);
	}
	for (; i < length; i++)
		count += data[i] == '\n' && data[i - 1] != '\r';
	return count;
}

size_t
find_from(const char *data, size_t length, char last, size_t *bare)
{
	size_t i = 0, count, rounds;
	bool begins = false;

	for (; i < length; i++) {
		if (i > 0)
			last = data[i - 1];
		if (last == '\n' && length - i > 1 && data[i] == 'F' &&
		    data[i + 1] == 'r')
			break;
		*bare += data[i] == '\n' && last != '\r';
		/* Behind the first octet, and until there is something. */
		while (!begins && length - i > LANES + 1) {
			rounds = (length - i - 2) / LANES;
			if (rounds > ROUNDS)
				rounds = ROUNDS;
			count = bare_in_rounds(data + i + 1, rounds, &begins);
			if (begins)
				break;
			*bare += count;
			i += rounds * LANES;
		}
	}
	return i;
}

/* The header lines that mail readers add, change or remove. */
static bool
reader_rewrites(const char *field)
{
	static const char *const fields[] = {"Status", "X-Status", "X-Keywords",
	    "X-UID", "X-UIDL", "X-IMAP", "X-IMAPbase", "X-Evolution", "X-Label",
	    "Content-Length", "Lines"};
	static const char mozilla[] = "X-Mozilla-";
	size_t i;

	if (strncasecmp(field, mozilla, sizeof(mozilla) - 1) == 0)
		return true;
	for (i = 0; i < sizeof(fields) / sizeof(*fields); i++)
		if (strcasecmp(field, fields[i]) == 0)
			return true;
	return false;
}

void
meter_start(struct meter *m, bool with_digest)
{
	memset(m, 0, sizeof(*m));
	m->with_digest = with_digest;
	if (with_digest)
		digest_start(&m->digest);
}

/* Digests without CR, so that a copy with other line ends is recognised. */
static void
digest_text(struct digest *d, const char *data, size_t length)
{
	const char *cr;

	while ((cr = memchr(data, '\r', length)) != NULL) {
		digest_add(d, data, (size_t)(cr - data));
		length -= (size_t)(cr - data) + 1;
		data = cr + 1;
	}
	digest_add(d, data, length);
}

/* The name of a field is complete (or is no name): to digest it or not? */
static void
judge_field(struct meter *m)
{
	m->field[m->field_length] = '\0';
	m->skipping = reader_rewrites(m->field);
	m->state = m->skipping ? METER_SKIPPED : METER_TAKEN;
	if (!m->skipping)
		digest_text(&m->digest, m->field, m->field_length);
}

/* Takes one piece of a header line, without its LF. */
static void
header_piece(struct meter *m, const char *data, size_t length)
{
	if (m->state == METER_LINE && length > 0) {
		m->field_length = 0;
		m->state = METER_NAME;
		if (*data == ' ' || *data == '\t')
			m->state = m->skipping ? METER_SKIPPED : METER_TAKEN;
	}
	while (m->state == METER_NAME && length > 0) {
		if (*data == ':' || m->field_length == sizeof(m->field) - 1) {
			judge_field(m);
			break;
		}
		m->field[m->field_length++] = *data++;
		length--;
	}
	if (m->state == METER_TAKEN)
		digest_text(&m->digest, data, length);
}

/* The LF of a header line. */
static void
header_line_end(struct meter *m)
{
	if (m->state == METER_LINE ||
	    (m->state == METER_NAME && m->field_length == 1 &&
		m->field[0] == '\r')) {
		m->state = METER_BODY;
		return;
	}
	if (m->state == METER_NAME)
		judge_field(m);
	if (m->state == METER_TAKEN)
		digest_add(&m->digest, "\n", 1);
	m->state = METER_LINE;
}

/* Adds what of it is header; returns how much, and takes the line ends that are
 * LF without CR off `*bare`. */
static size_t
add_header(struct meter *m, const char *data, size_t length, size_t *bare)
{
	const char *start = data, *lf;
	size_t part;

	while (length > 0 && m->state != METER_BODY) {
		lf = memchr(data, '\n', length);
		part = lf != NULL ? (size_t)(lf - data) : length;
		header_piece(m, data, part);
		if (part > 0)
			m->last = data[part - 1];
		m->octets += part;
		if (lf != NULL) {
			m->octets += m->last == '\r' ? 1 : 2;
			*bare -= m->last != '\r';
			m->last = '\n';
			header_line_end(m);
			part++;
		}
		data += part;
		length -= part;
	}
	return (size_t)(data - start);
}

static void
add_body(struct meter *m, const char *data, size_t length, size_t bare)
{
	if (length == 0)
		return;
	m->state = METER_BODY;
	m->body_octets += length + bare;
	m->last = data[length - 1];
}

void
meter_add(struct meter *m, const char *data, size_t length)
{
	size_t unused = 0, header = 0;

	if (m->with_digest)
		header = add_header(m, data, length, &unused);
	data += header;
	length -= header;
	add_body(m, data, length, bare_line_ends(data, length, m->last));
}

void
meter_add_counted(struct meter *m, const char *data, size_t length, size_t bare)
{
	size_t header = add_header(m, data, length, &bare);

	add_body(m, data + header, length - header, bare);
}

void
meter_drop_empty_line(struct meter *m)
{
	m->body_octets -= 2;
}

int
meter_end(struct meter *m, struct message *row)
{
	char count[24];
	uint64_t *last_part =
	    m->state == METER_BODY ? &m->body_octets : &m->octets;

	/* RETR gives a last line without an end one. */
	if (m->octets + m->body_octets > 0 && m->last != '\n')
		*last_part += 2;
	if (m->octets + m->body_octets > MESSAGE_OCTETS_MAX)
		return -1;
	row->octets = (m->octets + m->body_octets) & MESSAGE_OCTETS_MAX;
	if (!m->with_digest)
		return 0;
	if (m->state == METER_NAME)
		judge_field(m);
	snprintf(
	    count, sizeof(count), "\n%llu", (unsigned long long)m->body_octets);
	digest_add(&m->digest, count, strlen(count));
	digest_end(&m->digest, row->of.digest);
	row->flags |= MESSAGE_DIGEST;
	return 0;
}
