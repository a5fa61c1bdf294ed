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
#include <sys/syscall.h>
#include <unistd.h>

#include "former.h"
#include "log.h"
#include "maildrop.h"

#define INFO ":2," /* what a name gets in cur/: no flags */
#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1 /* Linux's; not every libc has it */
#endif
#define LISTINGS 3 /* how often we look for a file that is being renamed */
#define MESSAGE_OPEN (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

enum directory { CUR, NEW, DIRECTORIES };

/* What a directory is known by: the numbers of the identity, for each. */
enum { DEVICE, INODE, MODIFIED, MODIFIED_NS, DIRECTORY_NUMBERS };

static const char *const directory_names[DIRECTORIES] = {"cur", "new"};

static struct {
	struct maildrop *md; /* that it is */
	int root, directory[DIRECTORIES];
	char *path[DIRECTORIES]; /* of the directories */
} maildir = {.root = -1, .directory = {-1, -1}};

static const char *
name_of(const struct message *m)
{
	return maildir.md->text.octets + m->place;
}

static enum directory
subdirectory_of(const struct message *m)
{
	return (m->flags & MESSAGE_IN_NEW) != 0 ? NEW : CUR;
}

static int
directory_fd(const struct message *m)
{
	return maildir.directory[subdirectory_of(m)];
}

static size_t
base_length(const char *name)
{
	return strcspn(name, ":");
}

int
compare_bases(const char *a, const char *b)
{
	size_t a_length = base_length(a), b_length = base_length(b);
	size_t shorter = a_length < b_length ? a_length : b_length;
	int order = memcmp(a, b, shorter);

	return order != 0 ? order
			  : (a_length > b_length) - (a_length < b_length);
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

/* What is done with each entry of a directory: 0, or -1 with errno. */
typedef int entry_use(
    enum directory d, const struct dirent *entry, struct message_table *table);

/* Adds a row for a directory entry, unless it is no message. */
static int
list_entry(
    enum directory d, const struct dirent *entry, struct message_table *table)
{
	uint64_t order = delivered(entry->d_name);
	struct message *m;
	struct stat st;
	int64_t place;

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
	place = text_add(maildir.md, entry->d_name, strlen(entry->d_name) + 1);
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
list_directory(enum directory d, entry_use *use, struct message_table *table)
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
		if (entry->d_name[0] != '.' && use(d, entry, table) == -1)
			error = errno;
	}
	closedir(dir);
	errno = error;
	return error == 0 ? 0 : -1;
}

/* Lists new/ before cur/: what moves meanwhile is then seen twice, not
 * never. */
static int
list_both(entry_use *use, struct message_table *table)
{
	if (list_directory(NEW, use, table) == -1)
		return -1;
	return list_directory(CUR, use, table);
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
		/* Two links of one file: both go when it is deleted. */
		if ((a->flags & MESSAGE_IN_NEW) != 0) {
			a->flags |= MESSAGE_VANISHED;
			b->flags |= MESSAGE_LINKED;
		} else {
			b->flags |= MESSAGE_VANISHED;
			a->flags |= MESSAGE_LINKED;
		}
	} else {
		a->flags |= MESSAGE_AMBIGUOUS;
		b->flags |= MESSAGE_AMBIGUOUS;
	}
}

static int
by_base(const struct message *a, const struct message *b)
{
	return compare_bases(name_of(a), name_of(b));
}

/* Finds what shares a base name; those need not have come one after another. */
static int
drop_doubles(struct message_table *table)
{
	uint32_t *order = message_order(table, by_base), i;
	struct message *before = NULL, *m;

	if (order == NULL)
		return -1;
	for (i = 0; i < table->count; i++) {
		m = &table->row[order[i]];
		if (before != NULL && by_base(before, m) == 0)
			judge_pair(before, m);
		if ((m->flags & MESSAGE_VANISHED) == 0)
			before = m;
	}
	free(order);
	message_drop(table, MESSAGE_VANISHED);
	return 0;
}

/* ---- Following files that others rename ---- */

/* Gives a message the name that its file has now. */
static int
rename_row(struct message *m, const char *name, bool in_new)
{
	int64_t place;

	if (strcmp(name_of(m), name) != 0) {
		place = text_add(maildir.md, name, strlen(name) + 1);
		if (place == -1)
			return -1;
		m->place = (uint64_t)place & MESSAGE_OCTETS_MAX;
	}
	m->flags &= ~(unsigned)MESSAGE_IN_NEW & MESSAGE_FLAGS;
	if (in_new)
		m->flags |= MESSAGE_IN_NEW;
	return 0;
}

/* The messages by base name, while a listing is compared with them. */
static const uint32_t *base_order;

/* A directory entry gives the message of its base name its present name. */
static int
follow_entry(
    enum directory d, const struct dirent *entry, struct message_table *table)
{
	unsigned low = 0, high = table->count, middle;
	struct message *m;

	while (low < high) {
		middle = low + (high - low) / 2;
		m = &table->row[base_order[middle]];
		if (compare_bases(name_of(m), entry->d_name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	/* Of those that share a base name each is only where it was. */
	for (; low < table->count; low++) {
		m = &table->row[base_order[low]];
		if (compare_bases(name_of(m), entry->d_name) != 0)
			return 0;
		if ((m->flags & MESSAGE_AMBIGUOUS) != 0 &&
		    (subdirectory_of(m) != d ||
			strcmp(name_of(m), entry->d_name) != 0))
			continue;
		if ((m->flags & MESSAGE_MISSED) == 0) {
			m->flags |= MESSAGE_SEVERAL;
			return 0;
		}
		m->flags &= ~(unsigned)MESSAGE_MISSED & MESSAGE_FLAGS;
		return rename_row(m, entry->d_name, d == NEW);
	}
	return 0;
}

/*
 * Lists anew and gives every message its present name. Those that are not
 * there are flagged MESSAGE_MISSED, those under several names
 * MESSAGE_SEVERAL.
 */
static int
follow_all(struct message_table *table)
{
	uint32_t *order = message_order(table, by_base), i;
	int result;

	if (order == NULL)
		return -1;
	for (i = 0; i < table->count; i++) {
		table->row[i].flags |= MESSAGE_MISSED;
		table->row[i].flags &=
		    ~(unsigned)MESSAGE_SEVERAL & MESSAGE_FLAGS;
	}
	base_order = order;
	result = list_both(follow_entry, table);
	free(order);
	return result;
}

/*
 * Looks for a message whose file is not where it was. A listing can miss a
 * file that is renamed meanwhile, or see it twice: only what several listings
 * do not show counts as vanished.
 */
static enum maildrop_result
follow(struct maildrop *md, struct message *m)
{
	unsigned i;

	for (i = 0; i < LISTINGS; i++) {
		if (follow_all(&md->table) == -1)
			return maildrop_failed(md->path, "list");
		if ((m->flags & (MESSAGE_MISSED | MESSAGE_SEVERAL)) == 0)
			return MAILDROP_OK;
	}
	if ((m->flags & MESSAGE_SEVERAL) != 0) {
		log_error(name_of(m), "has several files now");
		return MAILDROP_TEMP;
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
	return message_id_valid(name, base_length(name));
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

/* Notes what a message has been measured to be. Its digest becomes a text,
 * since the size of its file takes that place in the row. */
static int
keep_measure(struct maildrop *md, struct message *m, uint64_t size)
{
	char hex[DIGEST_HEX + 1];

	if ((m->flags & MESSAGE_DIGEST) != 0) {
		digest_hex(m->of.digest, hex);
		if (message_set_id(&md->table, (unsigned)(m - md->table.row),
			text_add(md, hex, sizeof(hex))) == -1)
			return -1;
	}
	m->of.size = size;
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
	    (!base_is_id(name_of(m)) || (m->flags & MESSAGE_AMBIGUOUS) != 0) &&
	    (m->flags & MESSAGE_TAKEN) == 0;
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
	if (failed || keep_measure(md, m, (uint64_t)st.st_size) == -1)
		return maildrop_failed(name_of(m), "read");
	return MAILDROP_OK;
}

/* ---- What the state file knows ---- */

/* What a message was measured to be stays true as long as its base name is
 * its own. */
static bool
inherit_measure(struct message *to, const struct message *from)
{
	if (((to->flags | from->flags) & MESSAGE_AMBIGUOUS) != 0)
		return false;
	if ((from->flags & MESSAGE_CHANGED) != 0)
		return true;
	to->octets = from->octets;
	to->of.size = from->of.size;
	to->flags |= MESSAGE_KNOWN;
	to->flags |= from->flags & MESSAGE_DIGEST;
	return true;
}

/* What the directories are known by, to see whether to list them again. */
static enum maildrop_result
identify(const struct maildrop *md, struct identity *id)
{
	struct stat st;
	uint64_t *number = id->number;
	int i;

	clock_gettime(CLOCK_REALTIME, &id->sure);
	for (i = 0; i < DIRECTORIES; i++, number += DIRECTORY_NUMBERS) {
		if (fstat(maildir.directory[i], &st) == -1)
			return maildrop_failed(md->path, "stat");
		number[DEVICE] = st.st_dev;
		number[INODE] = st.st_ino;
		number[MODIFIED] = (uint64_t)st.st_mtim.tv_sec;
		number[MODIFIED_NS] = (uint64_t)st.st_mtim.tv_nsec;
	}
	return MAILDROP_OK;
}

/* Whether the directories must be as they were when they were known so. */
static bool
surely_same(const struct identity *now, const struct identity *known)
{
	int i;

	for (i = 0; i < DIRECTORIES; i++)
		if (time_unsure(
			(time_t)known->number[i * DIRECTORY_NUMBERS + MODIFIED],
			&known->sure))
			return false;
	return memcmp(now->number, known->number, sizeof(now->number)) == 0;
}

/* Whether a listing shows just what the state file says. */
static bool
nothing_new(const struct maildrop *md)
{
	const struct message *now = md->table.row, *then = md->before.row;
	unsigned i;

	if (md->table.count != md->before.count)
		return false;
	for (i = 0; i < md->table.count; i++)
		if ((now[i].flags & MESSAGE_KNOWN) == 0 ||
		    ((now[i].flags ^ then[i].flags) & MESSAGE_LASTING) != 0 ||
		    strcmp(name_of(&now[i]), name_of(&then[i])) != 0)
			return false;
	return true;
}

static enum maildrop_result
maildir_scan(struct maildrop *md)
{
	struct message_table *table = &md->table;
	enum maildrop_result result;
	unsigned i;

	result = identify(md, &md->identity);
	if (result != MAILDROP_OK)
		return result;
	if (md->remembered && surely_same(&md->identity, &md->known)) {
		md->identity.sure = md->known.sure;
		message_swap(md);
		return MAILDROP_OK;
	}
	if (list_both(list_entry, table) == -1 || sort_table(table) == -1)
		return maildrop_failed(md->path, "list");
	if (drop_doubles(table) == -1)
		return maildrop_failed(md->path, "list");
	if (md->remembered) {
		result = message_inherit(md, by_base, inherit_measure);
		if (result == MAILDROP_OK && nothing_new(md)) {
			message_swap(md);
			message_free(&md->before);
			return MAILDROP_OK;
		}
	}
	for (i = 0; result == MAILDROP_OK && i < table->count; i++)
		if ((table->row[i].flags &
			(MESSAGE_KNOWN | MESSAGE_VANISHED)) == 0)
			result = measure(md, &table->row[i]);
	message_drop(table, MESSAGE_VANISHED);
	/* Without a state file of ours there was another server. */
	if (result == MAILDROP_OK && !md->remembered)
		former_maildir(md, maildir.root);
	return result;
}

/*
 * Nothing but deliveries and renames: every message of the table is there. If
 * another session has removed some, it has replaced the state file as well,
 * but perhaps could not.
 */
static bool
maildir_undisturbed(struct maildrop *md)
{
	unsigned tries, i;

	for (tries = 0; tries < LISTINGS; tries++) {
		if (follow_all(&md->table) == -1)
			return false;
		for (i = 0; i < md->table.count; i++)
			if ((md->table.row[i].flags &
				(MESSAGE_MISSED | MESSAGE_VANISHED)) ==
			    MESSAGE_MISSED)
				break;
		if (i == md->table.count)
			return true;
	}
	return false;
}

/* ---- A session's needs ---- */

/* The path of what is called `name` in the Maildir, to be freed; NULL where
 * there can be none. */
static char *
path_in(const struct maildrop *md, const char *name)
{
	char path[PATH_MAX];

	return (size_t)snprintf(path, sizeof(path), "%s/%s", md->path, name) <
		       sizeof(path)
		   ? strdup(path)
		   : NULL;
}

static enum maildrop_result
maildir_open(struct maildrop *md)
{
	const char *const *names = directory_names;
	const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
	int i;

	maildir.md = md;
	md->state = path_in(md, "pop3-state");
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
		free(maildir.path[i]);
		maildir.path[i] = NULL;
	}
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
	 * changes; if somebody changed it, it is not what we announced, and
	 * the next session is to measure it again. */
	if ((uint64_t)st.st_size != m->of.size) {
		log_error(name_of(m), "changed since it was measured");
		close(where->fd);
		m->flags |= MESSAGE_CHANGED;
		memset(md->identity.number, 0, sizeof(md->identity.number));
		maildrop_remember(md);
		return MAILDROP_TEMP;
	}
	where->start = 0;
	where->length = (uint64_t)st.st_size;
	where->close = true;
	return MAILDROP_OK;
}

/* ---- UPDATE ---- */

/* Whether what a message was followed to is what the client saw. */
static bool
still_itself(const struct message *m)
{
	struct stat st;

	if (fstatat(directory_fd(m), name_of(m), &st, AT_SYMLINK_NOFOLLOW) ==
		-1 ||
	    (uint64_t)st.st_size == m->of.size)
		return true; /* or is gone again, which is seen next */
	log_error(name_of(m), "changed by another during the session");
	return false;
}

/* Removes the file of a message, wherever a reader has moved it, and its
 * second name where it has one. */
static enum maildrop_result
remove_message(struct maildrop *md, struct message *m)
{
	enum maildrop_result result;
	bool removed = false;
	int i;

	for (i = 0; i < LISTINGS; i++) {
		if (unlinkat(directory_fd(m), name_of(m), 0) == 0)
			removed = true;
		else if (errno != ENOENT)
			return maildrop_failed(name_of(m), "remove");
		if (removed && (m->flags & MESSAGE_LINKED) == 0)
			return MAILDROP_OK;
		result = follow(md, m);
		if (result == MAILDROP_VANISHED && removed)
			return MAILDROP_OK;
		if (result != MAILDROP_OK)
			return result;
		if (!still_itself(m))
			return MAILDROP_TEMP;
	}
	errno = EAGAIN;
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
	return m->of.size;
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

/* Renames, but never over a file that is there: that would lose it. */
static int
rename_to_cur(const char *from, const char *to)
{
	struct stat st;

#ifdef SYS_renameat2
	if (syscall(SYS_renameat2, maildir.directory[NEW], from,
		maildir.directory[CUR], to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != ENOSYS && errno != EINVAL)
		return -1;
#endif
	/* A file system that cannot do both in one step: names are unique. */
	if (fstatat(maildir.directory[CUR], to, &st, AT_SYMLINK_NOFOLLOW) ==
	    0) {
		errno = EEXIST;
		return -1;
	}
	return renameat(
	    maildir.directory[NEW], from, maildir.directory[CUR], to);
}

/* Moves what stays in new/ to cur/. What cannot be moved stays where it is:
 * that loses nothing. Returns whether anything moved. */
static bool
move_to_cur(struct message_table *table)
{
	const unsigned stays = MESSAGE_DELETED | MESSAGE_VANISHED |
			       MESSAGE_AMBIGUOUS | MESSAGE_LINKED;
	char name[NAME_MAX + sizeof(INFO)];
	const struct message *m;
	bool moved = false;
	const char *info;
	unsigned i;

	for (i = 0; i < table->count; i++) {
		m = &table->row[i];
		if ((m->flags & MESSAGE_IN_NEW) == 0 || (m->flags & stays) != 0)
			continue;
		info = strchr(name_of(m), ':') != NULL ? "" : INFO;
		if (snprintf(name, sizeof(name), "%s%s", name_of(m), info) <=
			NAME_MAX &&
		    rename_to_cur(name_of(m), name) == 0)
			moved = true;
	}
	return moved;
}

/* Makes removals and moves durable. */
static enum maildrop_result
sync_directories(const struct maildrop *md)
{
	int i;

	for (i = 0; i < DIRECTORIES; i++)
		if (sync_file(maildir.directory[i]) == -1)
			return maildrop_failed(md->path, "fsync");
	return MAILDROP_OK;
}

static enum maildrop_result
maildir_update(struct maildrop *md, struct maildrop_tally *tally)
{
	enum maildrop_result result = MAILDROP_OK, one;
	uint64_t octets = 0;
	struct message *m;
	bool moved;
	unsigned i;

	for (i = 0; i < md->table.count; i++) {
		m = &md->table.row[i];
		if ((m->flags & MESSAGE_DELETED) == 0 ||
		    (m->flags & MESSAGE_VANISHED) != 0)
			continue;
		one = remove_message(md, m);
		if (one == MAILDROP_OK) {
			m->flags |= MESSAGE_REMOVED;
			tally->removed++;
			octets += quota_octets(m);
		} else if (one != MAILDROP_VANISHED) {
			tally->failed++;
			result = one;
		}
	}
	moved = move_to_cur(&md->table);
	if (tally->removed > 0 || moved) {
		one = sync_directories(md);
		if (one != MAILDROP_OK)
			result = one;
	}
	if (tally->removed > 0)
		account_quota(md, octets, tally->removed);
	/* The directories have changed, by us and perhaps by others too. */
	memset(md->identity.number, 0, sizeof(md->identity.number));
	return result;
}

/* All of it, and its two directories in case that they are symlinks. */
static unsigned
maildir_places(
    struct maildrop *md, struct sandbox_place place[MAILDROP_PLACES_MAX])
{
	unsigned count = 0, i;

	place[count++] = (struct sandbox_place){md->path, SANDBOX_TREE};
	for (i = 0; i < DIRECTORIES; i++) {
		maildir.path[i] = path_in(md, directory_names[i]);
		if (maildir.path[i] != NULL)
			place[count++] = (struct sandbox_place){
			    maildir.path[i], SANDBOX_TREE};
	}
	return count;
}

const struct maildrop_format maildir_format = {
    .name = "maildir",
    .open = maildir_open,
    .scan = maildir_scan,
    .find = maildir_find,
    .update = maildir_update,
    .undisturbed = maildir_undisturbed,
    .places = maildir_places,
    .close = maildir_close,
    .named = true,
};
