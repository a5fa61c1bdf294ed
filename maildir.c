/*
 * The Maildir format: a message is a file in new/ or cur/, its name is its
 * base name, and in cur/ perhaps ":2," and flags. Others deliver, rename and
 * remove at any time and nobody locks; what holds a message together is its
 * base name, which is unique and never changes.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "maildrop.h"

#define INFO ":2," /* what a name gets in cur/: no flags */
#define LISTINGS 3 /* how often we look for a file that is being renamed */
#define MESSAGE_OPEN (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

enum directory { CUR, NEW, DIRECTORIES };

/* All names, one after another, each with its NUL. Behind that of a message
 * whose row holds a digest stand the octets of its file, a uint64_t. */
struct names {
	char *text;
	size_t used, room;
};

static struct {
	int root, directory[DIRECTORIES];
	struct names names;
} maildir = {.root = -1, .directory = {-1, -1}};

static const char *
name_of(const struct message *m)
{
	return maildir.names.text + m->place;
}

static enum directory
directory_of(const struct message *m)
{
	return (m->flags & MESSAGE_IN_NEW) != 0 ? NEW : CUR;
}

static int
directory_fd(const struct message *m)
{
	return maildir.directory[directory_of(m)];
}

static size_t
base_length(const char *name)
{
	return strcspn(name, ":");
}

static int
compare_bases(const char *a, const char *b)
{
	size_t a_length = base_length(a), b_length = base_length(b);
	size_t shorter = a_length < b_length ? a_length : b_length;
	int order = memcmp(a, b, shorter);

	return order != 0 ? order
			  : (a_length > b_length) - (a_length < b_length);
}

/* Appends octets to the names; their offset, or -1 without memory. */
static int64_t
names_add(struct names *names, const void *octets, size_t length)
{
	size_t room, at = names->used;
	char *grown;

	if (names->room - at < length) {
		room = names->room + names->room / 2 + length + 4096;
		grown = realloc(names->text, room);
		if (grown == NULL)
			return -1;
		names->text = grown;
		names->room = room;
	}
	memcpy(names->text + at, octets, length);
	names->used += length;
	return (int64_t)at;
}

/* ---- Listing ---- */

/*
 * When a message was delivered, in microseconds, by its name: the seconds it
 * begins with, and what follows the "M" of its second part. 0: not told.
 */
static uint64_t
delivered(const char *name)
{
	unsigned long long seconds, micros = 0;
	char *end;
	size_t i;

	if (!isdigit((unsigned char)*name))
		return 0;
	errno = 0;
	seconds = strtoull(name, &end, 10);
	if (errno != 0 || seconds >= UINT64_C(1) << 43 || *end != '.')
		return 0;
	for (i = 1; end[i] != '\0' && end[i] != '.' && end[i] != ':'; i++)
		if (end[i] == 'M' && isdigit((unsigned char)end[i + 1])) {
			micros = strtoull(end + i + 1, NULL, 10);
			break;
		}
	if (micros > 999999)
		micros = 999999;
	return (uint64_t)seconds << 20 | (uint64_t)micros;
}

/* Adds a row for a directory entry, unless it is no message. */
static int
list_entry(enum directory d, const struct dirent *entry,
    struct message_table *table, struct names *names)
{
	uint64_t order = delivered(entry->d_name);
	struct message *m;
	struct stat st;
	int64_t place;

	if (entry->d_name[0] == '.')
		return 0;
	if (entry->d_type != DT_REG && entry->d_type != DT_UNKNOWN)
		return 0;
	if (order == 0 || entry->d_type == DT_UNKNOWN) {
		if (fstatat(maildir.directory[d], entry->d_name, &st,
			AT_SYMLINK_NOFOLLOW) == -1)
			return errno == ENOENT ? 0 : -1;
		if (!S_ISREG(st.st_mode))
			return 0;
		if (order == 0 && st.st_mtim.tv_sec > 0)
			order = (uint64_t)st.st_mtim.tv_sec << 20 |
				(uint64_t)st.st_mtim.tv_nsec / 1000;
	}
	place = names_add(names, entry->d_name, strlen(entry->d_name) + 1);
	m = place == -1 ? NULL : message_add(table);
	if (m == NULL) {
		errno = ENOMEM;
		return -1;
	}
	m->place = (uint64_t)place & MESSAGE_OCTETS_MAX;
	m->of.order = order;
	if (d == NEW)
		m->flags |= MESSAGE_IN_NEW;
	return 0;
}

static int
list_directory(
    enum directory d, struct message_table *table, struct names *names)
{
	const struct dirent *entry;
	DIR *dir = NULL;
	int fd, error = 0;

	fd = openat(
	    maildir.directory[d], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd != -1)
		dir = fdopendir(fd);
	if (dir == NULL) {
		error = errno;
		if (fd != -1)
			close(fd);
		errno = error;
		return -1;
	}
	while (error == 0) {
		errno = 0;
		entry = readdir(dir);
		if (entry == NULL) {
			error = errno;
			break;
		}
		if (list_entry(d, entry, table, names) == -1)
			error = errno;
	}
	closedir(dir);
	errno = error;
	return error == 0 ? 0 : -1;
}

/* Lists new/ before cur/: what moves meanwhile is then seen twice, not
 * never. */
static int
list_both(struct message_table *table, struct names *names)
{
	if (list_directory(NEW, table, names) == -1)
		return -1;
	return list_directory(CUR, table, names);
}

static int
by_delivery(const struct message *a, const struct message *b)
{
	if (a->of.order != b->of.order)
		return a->of.order < b->of.order ? -1 : 1;
	return compare_bases(name_of(a), name_of(b));
}

/* Puts the rows into the order of delivery, in place. */
static int
sort_table(struct message_table *table)
{
	uint32_t *order = message_order(table, by_delivery);
	uint32_t start, to, from;
	struct message first;

	if (order == NULL)
		return -1;
	/* Row `to` gets what stands at order[to]; along each cycle. */
	for (start = 0; start < table->count; start++) {
		if (order[start] == start)
			continue;
		first = table->row[start];
		for (to = start; (from = order[to]) != start; to = from) {
			table->row[to] = table->row[from];
			order[to] = to;
		}
		table->row[to] = first;
		order[to] = to;
	}
	free(order);
	return 0;
}

/*
 * Two entries with one base name: one file that was being renamed, of which
 * we keep the entry that is there now, or two files, which must then be told
 * apart by their content and never be followed by name.
 */
static void
judge_pair(struct message *a, struct message *b)
{
	struct stat a_st, b_st;
	bool a_there, b_there;

	a_there = fstatat(directory_fd(a), name_of(a), &a_st,
		      AT_SYMLINK_NOFOLLOW) == 0;
	b_there = fstatat(directory_fd(b), name_of(b), &b_st,
		      AT_SYMLINK_NOFOLLOW) == 0;
	if (!a_there) {
		a->flags |= MESSAGE_VANISHED;
	} else if (!b_there) {
		b->flags |= MESSAGE_VANISHED;
	} else if (a_st.st_dev == b_st.st_dev && a_st.st_ino == b_st.st_ino) {
		/* Two links of one file: the one in new/ is on its way out. */
		if ((a->flags & MESSAGE_IN_NEW) != 0)
			a->flags |= MESSAGE_VANISHED;
		else
			b->flags |= MESSAGE_VANISHED;
	} else {
		a->flags |= MESSAGE_AMBIGUOUS;
		b->flags |= MESSAGE_AMBIGUOUS;
	}
}

/* Closes the gaps that vanished messages leave, before they have numbers. */
static void
drop_vanished(struct message_table *table)
{
	unsigned from, to = 0;

	for (from = 0; from < table->count; from++)
		if ((table->row[from].flags & MESSAGE_VANISHED) == 0)
			table->row[to++] = table->row[from];
	table->count = to;
}

static void
drop_doubles(struct message_table *table)
{
	struct message *before = NULL, *m;
	unsigned i;

	for (i = 0; i < table->count; i++) {
		m = &table->row[i];
		if (before != NULL &&
		    compare_bases(name_of(before), name_of(m)) == 0)
			judge_pair(before, m);
		if ((m->flags & MESSAGE_VANISHED) == 0)
			before = m;
	}
	drop_vanished(table);
}

/* ---- Following files that others rename ---- */

static const struct names *listed_names;

static int
by_base(const struct message *a, const struct message *b)
{
	return compare_bases(
	    listed_names->text + a->place, listed_names->text + b->place);
}

/* The only entry of a listing with the base name of `name`. */
static const struct message *
find_base(const struct message_table *listing, const uint32_t *order,
    const char *name)
{
	unsigned low = 0, high = listing->count, middle;
	const char *text = listed_names->text;

	while (low < high) {
		middle = low + (high - low) / 2;
		if (compare_bases(
			text + listing->row[order[middle]].place, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == listing->count ||
	    compare_bases(text + listing->row[order[low]].place, name) != 0)
		return NULL;
	/* Seen under two names: it is being renamed, look again. */
	if (low + 1 < listing->count &&
	    compare_bases(text + listing->row[order[low + 1]].place, name) == 0)
		return NULL;
	return &listing->row[order[low]];
}

static uint64_t
stored_size(const struct message *m)
{
	const char *name = name_of(m);
	uint64_t size;

	if ((m->flags & MESSAGE_DIGEST) == 0)
		return m->of.size;
	memcpy(&size, name + strlen(name) + 1, sizeof(size));
	return size;
}

/* Gives a message the name that its file has now. */
static int
rename_row(struct message *m, const char *name, bool in_new)
{
	uint64_t size = stored_size(m);
	int64_t place;

	if (strcmp(name_of(m), name) != 0) {
		place = names_add(&maildir.names, name, strlen(name) + 1);
		if (place == -1 ||
		    names_add(&maildir.names, &size, sizeof(size)) == -1)
			return -1;
		m->place = (uint64_t)place & MESSAGE_OCTETS_MAX;
	}
	m->flags &= ~(unsigned)MESSAGE_IN_NEW & MESSAGE_FLAGS;
	if (in_new)
		m->flags |= MESSAGE_IN_NEW;
	return 0;
}

/* Lists anew and gives every message of the table its present name; those
 * that are not there are flagged MESSAGE_MISSED. */
static int
follow_all(struct message_table *table)
{
	struct message_table listing = {0};
	struct names names = {0};
	const struct message *found;
	uint32_t *order = NULL;
	struct message *m;
	int result = -1;
	unsigned i;

	if (list_both(&listing, &names) == -1)
		goto out;
	listed_names = &names;
	order = message_order(&listing, by_base);
	if (order == NULL)
		goto out;
	for (i = 0; i < table->count; i++) {
		m = &table->row[i];
		if ((m->flags & (MESSAGE_AMBIGUOUS | MESSAGE_VANISHED)) != 0)
			continue;
		m->flags |= MESSAGE_MISSED;
		found = find_base(&listing, order, name_of(m));
		if (found == NULL)
			continue;
		if (rename_row(m, names.text + found->place,
			(found->flags & MESSAGE_IN_NEW) != 0) == -1)
			goto out;
		m->flags &= ~(unsigned)MESSAGE_MISSED & MESSAGE_FLAGS;
	}
	result = 0;
out:
	free(order);
	free(listing.row);
	free(names.text);
	return result;
}

/*
 * Looks for a message whose file is not where it was. A listing can miss a
 * file that is renamed meanwhile, so only what several do not show counts as
 * vanished.
 */
static enum maildrop_result
follow(struct maildrop *md, struct message *m)
{
	unsigned i;

	if ((m->flags & MESSAGE_AMBIGUOUS) != 0) {
		m->flags |= MESSAGE_VANISHED;
		return MAILDROP_VANISHED;
	}
	for (i = 0; i < LISTINGS; i++) {
		if (follow_all(&md->table) == -1)
			return maildrop_failed(md->path, "list");
		if ((m->flags & MESSAGE_MISSED) == 0)
			return MAILDROP_OK;
	}
	for (i = 0; i < md->table.count; i++)
		if ((md->table.row[i].flags & MESSAGE_MISSED) != 0)
			md->table.row[i].flags |= MESSAGE_VANISHED;
	return MAILDROP_VANISHED;
}

/* Opens the file of a message; -1 with errno. `st` is filled. */
static int
open_message(const struct message *m, struct stat *st)
{
	int fd = openat(directory_fd(m), name_of(m), MESSAGE_OPEN);

	if (fd == -1 || fstat(fd, st) == 0)
		return fd;
	close(fd);
	return -1;
}

/* ---- Measuring ---- */

/* Whether the base name serves as unique-id (RFC 1939 section 7). */
static bool
base_is_id(const char *name)
{
	size_t length = base_length(name), i;

	for (i = 0; i < length; i++)
		if (name[i] < 0x21 || name[i] > 0x7e)
			return false;
	return length >= 1 && length <= MAILDROP_UID_OCTETS;
}

/* Reads a message whole, for its octets and if need be its digest. */
static int
measure_file(struct maildrop *md, struct message *m, int fd, uint64_t size,
    bool with_digest)
{
	struct meter meter;
	uint64_t done = 0;
	size_t part;
	ssize_t n;

	meter_start(&meter, with_digest);
	while (done < size) {
		part = MAILDROP_BLOCK_OCTETS;
		if (size - done < part)
			part = (size_t)(size - done);
		n = read_at(fd, md->block, part, (off_t)done);
		if (n == -1)
			return -1;
		meter_add(&meter, md->block, (size_t)n);
		done += (uint64_t)n;
		if ((size_t)n < part) {
			errno = EIO; /* shorter than it was */
			return -1;
		}
	}
	if (meter_end(&meter, m) == -1) {
		errno = EFBIG;
		return -1;
	}
	return 0;
}

/* Keeps the octets of the file where the digest has taken their place. */
static int
keep_size(struct message *m, uint64_t size)
{
	char name[NAME_MAX + 1 + sizeof(size)];
	size_t length = strlen(name_of(m)) + 1;
	int64_t place;

	if ((m->flags & MESSAGE_DIGEST) == 0) {
		m->of.size = size;
		return 0;
	}
	if (length > NAME_MAX + 1) {
		errno = ENAMETOOLONG;
		return -1;
	}
	memcpy(name, name_of(m), length);
	memcpy(name + length, &size, sizeof(size));
	place = names_add(&maildir.names, name, length + sizeof(size));
	if (place == -1)
		return -1;
	m->place = (uint64_t)place & MESSAGE_OCTETS_MAX;
	return 0;
}

/*
 * Measures message `m`. One that is gone, or that we may not read, is left
 * out: the others are to be served all the same.
 */
static enum maildrop_result
measure(struct maildrop *md, struct message *m)
{
	bool odd =
	    !base_is_id(name_of(m)) || (m->flags & MESSAGE_AMBIGUOUS) != 0;
	enum maildrop_result result;
	struct stat st;
	int fd, failed;

	fd = open_message(m, &st);
	if (fd == -1 && errno == ENOENT) {
		result = follow(md, m);
		if (result == MAILDROP_VANISHED)
			return MAILDROP_OK;
		if (result != MAILDROP_OK)
			return result;
		fd = open_message(m, &st);
	}
	if (fd == -1) {
		if (errno != ENOENT && errno != EACCES && errno != EPERM)
			return maildrop_failed(name_of(m), "open");
		if (errno != ENOENT)
			log_error(name_of(m), "left out: %s", strerror(errno));
		m->flags |= MESSAGE_VANISHED;
		return MAILDROP_OK;
	}
	failed = measure_file(md, m, fd, (uint64_t)st.st_size, odd);
	close(fd);
	if (failed || keep_size(m, (uint64_t)st.st_size) == -1)
		return maildrop_failed(name_of(m), "read");
	return MAILDROP_OK;
}

static enum maildrop_result
maildir_scan(struct maildrop *md)
{
	struct message_table *table = &md->table;
	enum maildrop_result result = MAILDROP_OK;
	unsigned i;

	if (list_both(table, &maildir.names) == -1 || sort_table(table) == -1)
		return maildrop_failed(md->path, "list");
	drop_doubles(table);
	for (i = 0; result == MAILDROP_OK && i < table->count; i++)
		result = measure(md, &table->row[i]);
	drop_vanished(table);
	return result;
}

/* ---- A session's needs ---- */

static int
maildir_state_path(const struct maildrop *md, char *out, size_t room)
{
	int n = snprintf(out, room, "%s/pop3-state", md->path);

	errno = ENAMETOOLONG;
	return n < 0 || (size_t)n >= room ? -1 : 0;
}

static enum maildrop_result
maildir_open(struct maildrop *md)
{
	static const char *const names[DIRECTORIES] = {"cur", "new"};
	const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
	int i;

	maildir.root = open(md->path, flags);
	if (maildir.root == -1)
		return maildrop_failed(md->path, "open");
	for (i = 0; i < DIRECTORIES; i++) {
		maildir.directory[i] = openat(maildir.root, names[i], flags);
		if (maildir.directory[i] != -1)
			continue;
		if (errno != ENOENT)
			return maildrop_failed(md->path, names[i]);
		log_error(md->path, "not a Maildir: no %s", names[i]);
		return MAILDROP_PERM;
	}
	return MAILDROP_OK;
}

static void
maildir_close(struct maildrop *md)
{
	int i;

	(void)md;
	if (maildir.root != -1)
		close(maildir.root);
	maildir.root = -1;
	for (i = 0; i < DIRECTORIES; i++) {
		if (maildir.directory[i] != -1)
			close(maildir.directory[i]);
		maildir.directory[i] = -1;
	}
	free(maildir.names.text);
	memset(&maildir.names, 0, sizeof(maildir.names));
}

static enum maildrop_result
maildir_find(struct maildrop *md, struct message *m, struct stored *where)
{
	enum maildrop_result result;
	struct stat st;

	where->fd = open_message(m, &st);
	if (where->fd == -1 && errno == ENOENT) {
		result = follow(md, m);
		if (result != MAILDROP_OK)
			return result;
		where->fd = open_message(m, &st);
	}
	if (where->fd == -1)
		return maildrop_failed(name_of(m), "open");
	/* The size was announced, and the content of a Maildir's file never
	 * changes; if somebody changed it, it is not what we announced. */
	if ((uint64_t)st.st_size != stored_size(m)) {
		log_error(name_of(m), "changed by another during the session");
		close(where->fd);
		return MAILDROP_TEMP;
	}
	where->start = 0;
	where->length = (uint64_t)st.st_size;
	where->close = true;
	return MAILDROP_OK;
}

static void
maildir_name_id(const struct message *m, char id[])
{
	size_t length = base_length(name_of(m));

	memcpy(id, name_of(m), length);
	id[length] = '\0';
}

/* ---- UPDATE ---- */

/* Removes the file of a message, wherever a reader has moved it. */
static enum maildrop_result
remove_message(struct maildrop *md, struct message *m)
{
	enum maildrop_result result;
	struct stat st;
	int i;

	for (i = 0; i < LISTINGS; i++) {
		if (unlinkat(directory_fd(m), name_of(m), 0) == 0)
			return MAILDROP_OK;
		if (errno != ENOENT)
			break;
		result = follow(md, m);
		if (result != MAILDROP_OK)
			return result;
		/* Only a file of the same size is what the client saw. */
		if (fstatat(directory_fd(m), name_of(m), &st,
			AT_SYMLINK_NOFOLLOW) == 0 &&
		    (uint64_t)st.st_size != stored_size(m)) {
			log_error(name_of(m),
			    "changed by another during the session");
			return MAILDROP_TEMP;
		}
	}
	return maildrop_failed(name_of(m), "remove");
}

/* The octets that a quota counts for a message: ",S=" of its name, as its
 * deliverer said, else those of the file. */
static uint64_t
quota_octets(const struct message *m)
{
	const char *size = strstr(name_of(m), ",S=");

	if (size != NULL && isdigit((unsigned char)size[3]))
		return strtoull(size + 3, NULL, 10);
	return stored_size(m);
}

/* Maildir++: what was removed is written to maildirsize as negative numbers,
 * by one write to its end, as other programs do at the same time. */
static void
account_quota(const struct maildrop *md, uint64_t octets, unsigned messages)
{
	char line[64];
	int fd, length;

	fd = openat(maildir.root, "maildirsize",
	    O_WRONLY | O_APPEND | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd == -1) {
		if (errno != ENOENT)
			log_warning(
			    md->path, "maildirsize: %s", strerror(errno));
		return;
	}
	length = snprintf(line, sizeof(line), "-%llu -%u\n",
	    (unsigned long long)octets, messages);
	if (write(fd, line, (size_t)length) != length)
		log_warning(md->path, "maildirsize: %s", strerror(errno));
	close(fd);
}

/*
 * Gives a message in new/ its name in cur/: the first half of the move. It is
 * a link, since rename(2) would replace a file that stands there.
 */
static bool
link_to_cur(struct message *m)
{
	char name[NAME_MAX + sizeof(INFO)];
	const char *info = strchr(name_of(m), ':') != NULL ? "" : INFO;

	if (snprintf(name, sizeof(name), "%s%s", name_of(m), info) > NAME_MAX)
		return false;
	if (linkat(maildir.directory[NEW], name_of(m), maildir.directory[CUR],
		name, 0) == -1)
		return false;
	m->flags |= MESSAGE_LINKED;
	return true;
}

/*
 * Moves what stays in new/ to cur/. The names there are on the disk before
 * those in new/ go, so that a power cut leaves one or both. What cannot be
 * moved stays: that loses nothing.
 */
static int
move_to_cur(struct message_table *table)
{
	const unsigned not_moved =
	    MESSAGE_DELETED | MESSAGE_VANISHED | MESSAGE_AMBIGUOUS;
	bool linked = false;
	struct message *m;
	unsigned i;

	for (i = 0; i < table->count; i++) {
		m = &table->row[i];
		if ((m->flags & MESSAGE_IN_NEW) != 0 &&
		    (m->flags & not_moved) == 0 && link_to_cur(m))
			linked = true;
	}
	if (!linked)
		return 0;
	if (fsync(maildir.directory[CUR]) == -1)
		return -1;
	for (i = 0; i < table->count; i++)
		if ((table->row[i].flags & MESSAGE_LINKED) != 0)
			unlinkat(
			    maildir.directory[NEW], name_of(&table->row[i]), 0);
	return fsync(maildir.directory[NEW]);
}

static enum maildrop_result
maildir_update(struct maildrop *md, struct maildrop_tally *tally)
{
	enum maildrop_result result = MAILDROP_OK, one;
	bool touched[DIRECTORIES] = {false, false};
	uint64_t octets = 0;
	struct message *m;
	unsigned i;

	for (i = 0; i < md->table.count; i++) {
		m = &md->table.row[i];
		if ((m->flags & MESSAGE_DELETED) == 0 ||
		    (m->flags & MESSAGE_VANISHED) != 0)
			continue;
		one = remove_message(md, m);
		if (one == MAILDROP_OK) {
			tally->removed++;
			octets += quota_octets(m);
			touched[directory_of(m)] = true;
		} else if (one != MAILDROP_VANISHED) {
			tally->failed++;
			result = one;
		}
	}
	for (i = 0; i < DIRECTORIES; i++)
		if (touched[i] && fsync(maildir.directory[i]) == -1)
			result = maildrop_failed(md->path, "fsync");
	if (tally->removed > 0)
		account_quota(md, octets, tally->removed);
	if (move_to_cur(&md->table) == -1)
		log_warning(md->path, "new to cur: %s", strerror(errno));
	return result;
}

const struct maildrop_format maildir_format = {
    .name = "maildir",
    .state_path = maildir_state_path,
    .open = maildir_open,
    .scan = maildir_scan,
    .find = maildir_find,
    .name_id = maildir_name_id,
    .update = maildir_update,
    .close = maildir_close,
};
