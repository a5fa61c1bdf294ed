/*
 * The unique-ids of the server before us; see former.h. What its files say is
 * believed only as far as it is unique and such as RFC 1939 allows.
 */
#include "former.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "digest.h"
#include "log.h"

#define LINE_OCTETS 4096      /* of a list; a longer line ends it */
#define LIST_OCTETS (1 << 29) /* a larger list is not read */
#define HEADER_OCTETS 8192    /* of a header, read at once */

/* What is taken over, before it is looked at as a whole. */
static struct {
	struct maildrop *md;
	uint32_t *text;	 /* for each row where its id stands, or 0 */
	uint32_t *order; /* the rows by base name */
} former;

static int
by_base_name(const struct message *a, const struct message *b)
{
	const char *text = former.md->text.octets;

	return compare_bases(text + a->place, text + b->place);
}

static int
by_former_id(const struct message *a, const struct message *b)
{
	const struct message *row = former.md->table.row;
	uint32_t a_id = former.text[a - row], b_id = former.text[b - row];
	const char *text = former.md->text.octets;

	if (a_id == 0 || b_id == 0)
		return (a_id == 0) - (b_id == 0);
	return strcmp(text + a_id, text + b_id);
}

/* Notes an id for row `n`. */
static void
note_id(unsigned n, const char *id)
{
	size_t length = strlen(id);
	int64_t text;

	if (!message_id_valid(id, length))
		return;
	text = text_add(former.md, id, length + 1);
	if (text != -1)
		former.text[n] = (uint32_t)text;
}

/* Gives the rows what was noted, but no id to two of them: the first keeps
 * it. Returns how many got one. */
static unsigned
give_ids(void)
{
	struct message_table *table = &former.md->table;
	uint32_t *order = message_order(table, by_former_id), i, n;
	const struct message *before = NULL;
	unsigned given = 0;

	for (i = 0; order != NULL && i < table->count; i++) {
		n = order[i];
		if (former.text[n] == 0)
			break;
		if ((before == NULL ||
			by_former_id(before, &table->row[n]) != 0) &&
		    message_set_id(table, n, former.text[n]) == 0) {
			table->row[n].flags |= MESSAGE_TAKEN;
			/* In an mbox the digest still recognises it. */
			if (former.md->format->named)
				table->row[n].flags &=
				    ~(unsigned)MESSAGE_DIGEST & MESSAGE_FLAGS;
			given++;
		}
		before = &table->row[n];
	}
	free(order);
	return given;
}

/* Begins and ends to take over. */
static bool
begin(struct maildrop *md)
{
	former.md = md;
	former.text = calloc(md->table.count + 1, sizeof(*former.text));
	return former.text != NULL;
}

static void
end(const char *whose)
{
	unsigned given = former.text != NULL ? give_ids() : 0;

	if (given > 0)
		log_event(LOG_INFO, "takeover", "from=%s ids=%u", whose, given);
	free(former.text);
	free(former.order);
	former.text = former.order = NULL;
}

/* ---- Lists beside a Maildir ---- */

/* The row with this base name, or NULL. */
static const struct message *
row_named(const char *name)
{
	const struct maildrop *md = former.md;
	unsigned low = 0, high = md->table.count, middle;
	const struct message *m;
	int order;

	while (low < high) {
		middle = low + (high - low) / 2;
		m = &md->table.row[former.order[middle]];
		order = compare_bases(md->text.octets + m->place, name);
		if (order == 0)
			return m;
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

/* Notes an id for the message with this base name, unless it is another's. */
static void
note_named(const char *name, const char *id)
{
	const struct message *m = row_named(name), *other;

	if (m == NULL || (m->flags & MESSAGE_AMBIGUOUS) != 0)
		return;
	other = strchr(id, ':') == NULL ? row_named(id) : NULL;
	if (other == NULL || other == m)
		note_id((unsigned)(m - former.md->table.row), id);
}

/* Takes a decimal number off a text; false if there is none that fits. */
static bool
take_number(const char **p, unsigned long long *number)
{
	char *after;

	if (**p < '0' || **p > '9')
		return false;
	errno = 0;
	*number = strtoull(*p, &after, 10);
	*p = after;
	return errno == 0 && *number <= UINT32_MAX;
}

/* What a list has in its first line. */
struct list {
	unsigned long long version, validity, last;
};

/*
 * The first line of dovecot-uidlist: "1 VALIDITY NEXT", or "3 " and words of
 * which one is "V" and the validity.
 */
static bool
dovecot_head(struct list *list, const char *line)
{
	if (!take_number(&line, &list->version))
		return false;
	if (list->version == 1)
		return *line++ == ' ' && take_number(&line, &list->validity) &&
		       list->validity > 0;
	while (list->version == 3 && *line == ' ') {
		if (*++line == 'V') {
			line++;
			return take_number(&line, &list->validity) &&
			       list->validity > 0;
		}
		line += strcspn(line, " ");
	}
	return false;
}

/* "UID NAME", or in version 3 "UID WORD... :NAME", where a word that begins
 * with "P" is the id that was saved: that of an earlier server, or, if nothing
 * follows, the base name. */
static bool
dovecot_line(struct list *list, const char *line)
{
	char id[MAILDROP_UID_OCTETS + 2];
	const char *saved = NULL;
	unsigned long long uid;
	size_t length, saved_length = 0;

	if (!take_number(&line, &uid) || *line != ' ' || uid <= list->last)
		return false;
	list->last = uid;
	line += strspn(line, " ");
	while (list->version == 3 && *line != ':') {
		length = strcspn(line, " ");
		if (*line == 'P') {
			saved = line + 1;
			saved_length = length - 1;
		}
		line += length;
		line += strspn(line, " ");
		if (*line == '\0')
			return false;
	}
	line += list->version == 3;
	if (saved != NULL && saved_length == 0) {
		saved = line;
		saved_length = strcspn(line, ":");
	}
	/* Its pop3_uidl_format is %08Xu%08Xv unless the site set another; its
	 * hex is in lower case all the same. One that is cut here is too long
	 * to be taken. */
	if (saved != NULL)
		snprintf(id, sizeof(id), "%.*s", (int)saved_length, saved);
	else
		snprintf(id, sizeof(id), "%08llx%08llx", uid, list->validity);
	note_named(line, id);
	return true;
}

/* "/VERSION NEXT VALIDITY"; the first version had no such line. */
static bool
courier_head(struct list *list, const char *line)
{
	line++;
	return take_number(&line, &list->version) && list->version <= 3;
}

/* The id that Courier makes of a file name where it has no number for it. */
static void
courier_name_id(const char *name, char *id, size_t room)
{
	size_t used = 0;

	for (; *name != '\0' && *name != ':' && used + 4 < room; name++)
		if (*name < 0x21 || *name > 0x7e || strchr("'\"+", *name))
			used += (size_t)snprintf(id + used, room - used,
			    "+%02X", (unsigned char)*name);
		else
			id[used++] = *name;
	/* Too long is no id. */
	id[*name == '\0' || *name == ':' ? used : 0] = '\0';
}

/* "NAME SIZE", and from version 1 on " UID", since 2 with ":VALIDITY" and
 * more. */
static bool
courier_line(struct list *list, char *line)
{
	char id[3 * MAILDROP_UID_OCTETS], *size, *number = NULL;
	unsigned long long uid = 0, validity = 0;
	const char *p;

	if (list->version > 0) {
		number = strrchr(line, ' ');
		if (number == NULL)
			return false;
		*number++ = '\0';
	}
	size = strrchr(line, ' ');
	if (size == NULL || size == line)
		return false;
	*size = '\0';
	p = number;
	if (number != NULL &&
	    (!take_number(&p, &uid) ||
		(*p == ':' && (p++, !take_number(&p, &validity)))))
		return false;
	if (uid == 0)
		courier_name_id(line, id, sizeof(id));
	else if (validity == 0)
		snprintf(id, sizeof(id), "UID%llu", uid);
	else
		snprintf(id, sizeof(id), "UID%llu-%llu", uid, validity);
	note_named(line, id);
	return true;
}

/* Opens a list of the user's own; NULL if there is none to be used. */
static FILE *
open_list(int root, const char *name)
{
	int fd = openat(root, name,
	    O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	FILE *file = NULL;
	struct stat st;

	if (fd == -1) {
		if (errno != ENOENT)
			log_warning(name, "not used: %s", strerror(errno));
		return NULL;
	}
	if (fstat(fd, &st) == -1 || !S_ISREG(st.st_mode) ||
	    st.st_size > LIST_OCTETS)
		log_warning(name, "not used: not a file of a usual size");
	else
		file = fdopen(fd, "r");
	if (file == NULL)
		close(fd);
	return file;
}

/* Reads a line without its LF; false at the end, and where one is too long. */
static bool
next_line(FILE *file, char line[LINE_OCTETS])
{
	size_t length;

	if (fgets(line, LINE_OCTETS, file) == NULL)
		return false;
	length = strlen(line);
	if (length == 0 || line[length - 1] != '\n')
		return false;
	line[length - 1] = '\0';
	return true;
}

/* Whether there was a list. One that goes wrong counts as far as it is
 * right. */
static bool
read_dovecot(int root)
{
	FILE *file = open_list(root, "dovecot-uidlist");
	struct list list = {0};
	char line[LINE_OCTETS];
	bool right;

	if (file == NULL)
		return false;
	right = next_line(file, line) && dovecot_head(&list, line);
	if (!right)
		log_warning("dovecot-uidlist", "not used: unknown form");
	while (right && next_line(file, line))
		if (!dovecot_line(&list, line)) {
			log_warning("dovecot-uidlist", "damaged after uid %llu",
			    list.last);
			break;
		}
	fclose(file);
	return right;
}

static void
read_courier(int root)
{
	FILE *file = open_list(root, "courierpop3dsizelist");
	struct list list = {0};
	char line[LINE_OCTETS];
	bool first = true;
	unsigned wrong = 0;

	if (file == NULL)
		return;
	for (; next_line(file, line); first = false) {
		if (!first || *line != '/') {
			wrong += !courier_line(&list, line);
		} else if (!courier_head(&list, line)) {
			log_warning(
			    "courierpop3dsizelist", "not used: unknown form");
			break;
		}
	}
	if (wrong > 0)
		log_warning("courierpop3dsizelist",
		    "%u lines are not of its form", wrong);
	fclose(file);
}

void
former_maildir(struct maildrop *md, int root)
{
	enum former whose = md->site->former;
	bool dovecot = false;

	if (whose == FORMER_NONE)
		return;
	if (begin(md))
		former.order = message_order(&md->table, by_base_name);
	if (former.order != NULL) {
		if (whose == FORMER_AUTO || whose == FORMER_DOVECOT)
			dovecot = read_dovecot(root);
		if ((whose == FORMER_AUTO && !dovecot) ||
		    whose == FORMER_COURIER)
			read_courier(root);
	}
	end(dovecot ? "dovecot" : "courier");
}

/* ---- Headers in an mbox ---- */

/* What is done with a line of a header, or a piece of one that is very long;
 * `start` if it is the first piece. Lines have their LF. */
typedef void
header_use(void *context, const char *line, size_t length, bool start);

/*
 * Goes over the header of the message whose From_ line stands at `at`, up to
 * an empty line or `end`. An empty line may end in CRLF, if `crlf`.
 */
static void
each_header_line(struct maildrop *md, int fd, off_t at, off_t end, bool crlf,
    header_use *use, void *context)
{
	size_t length, used, line;
	const char *p, *lf;
	bool from = true, start = true;
	ssize_t got;

	while (at < end) {
		length = HEADER_OCTETS;
		if (end - at < (off_t)length)
			length = (size_t)(end - at);
		got = read_at(fd, md->block, length, at);
		if (got <= 0)
			return;
		for (used = 0; used < (size_t)got; used += line) {
			p = md->block + used;
			lf = memchr(p, '\n', (size_t)got - used);
			line = lf != NULL ? (size_t)(lf + 1 - p)
					  : (size_t)got - used;
			/* Read again from its start, unless it is long. */
			if (lf == NULL && used > 0)
				break;
			if (start && lf != NULL &&
			    (line == 1 || (crlf && line == 2 && *p == '\r')))
				return;
			if (!from)
				use(context, p, line, start);
			from = from && lf == NULL;
			start = lf != NULL;
		}
		at += (off_t)used;
	}
}

/* ---- X-UID, as Dovecot and c-client write it ---- */

struct uid_header {
	const char *base_field;
	unsigned long long validity, last, uid;
	unsigned lines; /* of c-client's, in its order, seen one by one */
};

/* The lines that c-client writes into the first message. Dovecot has X-UID
 * before Status, and leaves out what is empty. */
static const char *const c_client_lines[] = {
    "X-IMAPbase:", "Status:", "X-Status:", "X-Keywords:", "X-UID:"};
#define C_CLIENT_LINES (sizeof(c_client_lines) / sizeof(*c_client_lines))

/* What follows the name of a field on a line, or NULL if it is another. */
static const char *
field_value(const char *line, size_t length, const char *field)
{
	size_t name = strlen(field);

	if (length <= name || strncasecmp(line, field, name) != 0)
		return NULL;
	line += name;
	return line + strspn(line, " \t");
}

static void
use_uid_line(void *context, const char *line, size_t length, bool start)
{
	struct uid_header *header = context;
	char text[80];
	const char *p;

	if (!start)
		return;
	if (length > sizeof(text) - 1)
		length = sizeof(text) - 1;
	memcpy(text, line, length);
	text[length] = '\0';
	if (header->lines < C_CLIENT_LINES) {
		p = field_value(text, length, c_client_lines[header->lines]);
		header->lines = p != NULL ? header->lines + 1 : 0;
	}
	p = field_value(text, length, header->base_field);
	if (p != NULL && header->validity == 0) {
		if (!take_number(&p, &header->validity) || *p != ' ')
			header->validity = 0;
		p += strspn(p, " ");
		if (!take_number(&p, &header->last))
			header->validity = 0;
		return;
	}
	p = field_value(text, length, "X-UID:");
	if (p != NULL && header->uid == 0 &&
	    (!take_number(&p, &header->uid) || p[strspn(p, " \t\r\n")] != '\0'))
		header->uid = 0;
}

/*
 * The ids of messages that have an X-UID which their server can have given:
 * one that grows, and is not over what X-IMAPbase in the first message (or
 * X-IMAP in the record that comes before it) says was the last. At the first
 * that is not so it ends, as it does for those servers: any sender can write
 * such a line.
 */
static void
read_uids(struct maildrop *md, int fd, off_t end_of_file)
{
	const struct message_table *table = &md->table;
	bool record = table->count > 0 && table->row[0].place > 0;
	bool uw;
	struct uid_header header = {
	    .base_field = record ? "X-IMAP:" : "X-IMAPbase:"};
	unsigned long long before = 0;
	char id[MAILDROP_UID_OCTETS + 1];
	unsigned n;
	off_t next;

	each_header_line(md, fd, 0, end_of_file, true, use_uid_line, &header);
	uw = (record || header.lines == C_CLIENT_LINES) &&
	     md->site->former != FORMER_DOVECOT;
	for (n = 0; header.validity > 0 && n < table->count; n++) {
		header.uid = 0;
		next = n + 1 < table->count ? (off_t)table->row[n + 1].place
					    : end_of_file;
		each_header_line(md, fd, (off_t)table->row[n].place, next, true,
		    use_uid_line, &header);
		if (header.uid <= before || header.uid > header.last)
			break;
		before = header.uid;
		/* UW's ipop3d; and Dovecot's %08Xu%08Xv. */
		if (uw)
			snprintf(id, sizeof(id), "%08llx%08llx",
			    header.validity, header.uid);
		else
			snprintf(id, sizeof(id), "%08llx%08llx", header.uid,
			    header.validity);
		note_id(n, id);
	}
}

/* ---- popa3d's hash ---- */

struct popa3d_hash {
	struct digest digest;
	bool fixed;    /* the present field counts */
	bool received; /* a Received: has been seen */
};

static bool
is_field(const char *line, size_t length, const char *field)
{
	return length >= strlen(field) &&
	       strncasecmp(line, field, strlen(field)) == 0;
}

/* What popa3d holds to be the same whatever a mail reader does: the first
 * Received:, what comes before it of Date: and Message-ID:, and fields of the
 * delivery agent. */
static void
use_popa3d_line(void *context, const char *line, size_t length, bool start)
{
	struct popa3d_hash *hash = context;
	bool first = !hash->received;

	if (start && *line != ' ' && *line != '\t') {
		hash->fixed =
		    is_field(line, length, "Delivered-To:") ||
		    (*line == 'X' && is_field(line, length, "X-Delivery-ID:"));
		if (first && is_field(line, length, "Received:"))
			hash->fixed = hash->received = true;
		if (first && (is_field(line, length, "Date:") ||
				 is_field(line, length, "Message-ID:")))
			hash->fixed = true;
	}
	if (hash->fixed)
		digest_add(&hash->digest, line, length);
}

static void
read_popa3d(struct maildrop *md, int fd, off_t end_of_file)
{
	const struct message_table *table = &md->table;
	unsigned char d[DIGEST_OCTETS];
	struct popa3d_hash hash;
	char id[17];
	unsigned n;
	off_t next;

	for (n = 0; n < table->count; n++) {
		memset(&hash, 0, sizeof(hash));
		digest_start(&hash.digest);
		next = n + 1 < table->count ? (off_t)table->row[n + 1].place
					    : end_of_file;
		each_header_line(md, fd, (off_t)table->row[n].place, next,
		    false, use_popa3d_line, &hash);
		digest_end(&hash.digest, d);
		snprintf(id, sizeof(id), "%02x%02x%02x%02x%02x%02x%02x%02x",
		    d[3], d[2], d[1], d[0], d[7], d[6], d[5], d[4]);
		note_id(n, id);
	}
}

void
former_mbox(struct maildrop *md, int fd, off_t end_of_file)
{
	enum former whose = md->site->former;

	if (whose == FORMER_NONE)
		return;
	if (begin(md)) {
		if (whose == FORMER_AUTO || whose == FORMER_DOVECOT)
			read_uids(md, fd, end_of_file);
		else if (whose == FORMER_POPA3D)
			read_popa3d(md, fd, end_of_file);
	}
	end(whose == FORMER_POPA3D ? "popa3d" : "x-uid");
}
