/*
 * Harness of the journal: whatever stands beside an mbox for one, a session
 * does with it just what the reference says, and otherwise changes nothing. An
 * input begins with a line of three characters that choose, and then has the
 * octets of two records; or, where they are to be right, their numbers and
 * data.
 */
#include "maildrops.h"

/* The numbers of a record, each of 8 octets. */
enum {
	MAGIC,
	KIND,
	NUMBER,
	OF_INODE,
	ROOM,
	TO,
	LENGTH,
	RUN_START,
	RUN_END,
	FILE_END,
	BEFORE,
	STALE,
	DATA,
	NONCE_LENGTH,
	NONCE,
	SUM = NONCE + 2,
	NUMBERS
};
#define HEADER 4096 /* what a record takes before its data */
static const char magic[8] = {'p', 'o', 'p', '3', 'j', 'r', 'n', '1'};

enum fate { REMOVED, ASIDE };

static uint64_t
sum_of(const void *octets, uint64_t length)
{
	return sum_add(0, octets, (size_t)length);
}

static uint64_t
sum_before(const struct text *m, uint64_t to)
{
	uint64_t from = to < 4096 ? 0 : to - 4096;

	return sum_of(m->at + from, to - from);
}

static uint64_t
sum_stale(const struct text *m, uint64_t cut, uint64_t end)
{
	uint64_t from =
	    end < 4096 || end - 4096 < cut + 16 ? cut + 16 : end - 4096;

	return from < end ? sum_of(m->at + from, end - from) : 0;
}

/* Whether a slot holds a record of this room: read to `r`. */
static bool
read_record(const char *slot, uint64_t place, uint64_t room, uint64_t *r)
{
	memcpy(r, slot, NUMBERS * 8);
	if (memcmp(slot, magic, 8) != 0 || r[SUM] != sum_of(r, SUM * 8) ||
	    r[ROOM] != room || r[NUMBER] % 2 != place ||
	    r[RUN_END] > INT64_MAX || r[FILE_END] > INT64_MAX || room == 0)
		return false;
	if (r[KIND] == 2 || r[KIND] == 3)
		return r[TO] < r[FILE_END] && r[NONCE_LENGTH] <= 16 &&
		       r[NONCE_LENGTH] <= r[FILE_END] - r[TO];
	return r[KIND] == 1 && r[LENGTH] <= room && r[TO] < r[RUN_END] &&
	       r[RUN_START] < r[RUN_END] &&
	       r[RUN_END] - r[RUN_START] <= r[LENGTH] &&
	       r[LENGTH] <= r[RUN_END] - r[TO] &&
	       r[DATA] == sum_of(slot + HEADER, r[LENGTH]);
}

/* Takes [from, to) out of the mbox, with `length` octets in its place. */
static void
replace(struct text *m, uint64_t from, uint64_t to, const char *with,
    uint64_t length)
{
	size_t rest = m->length - (size_t)to;

	memmove(m->at + from, with, (size_t)length);
	memmove(m->at + from + length, m->at + to, rest);
	m->length = (size_t)(from + length) + rest;
}

/* What a journal makes of an mbox, as journal.c tells it. */
static enum fate
reference_recovery(const struct text *journal, uint64_t inode, struct text *m)
{
	uint64_t records[2][NUMBERS], *r, from, rest;
	uint64_t room = journal->length / 2 - HEADER;
	const char *slot;
	bool valid[2], stands;
	int i;

	if (journal->length < 2 * HEADER || journal->length % 2 != 0)
		return REMOVED;
	for (i = 0; i < 2; i++) {
		slot = journal->at + (size_t)i * journal->length / 2;
		valid[i] = read_record(slot, (uint64_t)i, room, records[i]);
	}
	if (!valid[0] && !valid[1])
		return memcmp(records[1], magic, 8) == 0 ? ASIDE : REMOVED;
	i = !valid[0] || (valid[1] && records[1][NUMBER] > records[0][NUMBER]);
	r = records[i];
	slot = journal->at + (size_t)i * journal->length / 2;
	if (r[OF_INODE] != inode)
		return ASIDE;
	if (r[KIND] == 1) {
		if (m->length < r[RUN_END] || sum_before(m, r[TO]) != r[BEFORE])
			return ASIDE;
		from = r[TO] + r[LENGTH];
		if (from < r[RUN_START])
			from = r[RUN_START];
		rest = r[RUN_END] - from;
		if (memcmp(m->at + from, slot + HEADER + r[LENGTH] - rest,
			(size_t)rest) != 0)
			return ASIDE;
		replace(m, r[TO], r[RUN_END], slot + HEADER, r[LENGTH]);
		return REMOVED;
	}
	stands = m->length >= r[FILE_END] &&
		 memcmp(m->at + r[TO], r + NONCE, r[NONCE_LENGTH]) == 0;
	if (r[KIND] == 3 && !stands)
		return REMOVED;
	if (m->length < r[FILE_END] || sum_before(m, r[TO]) != r[BEFORE] ||
	    sum_stale(m, r[TO], r[FILE_END]) != r[STALE])
		return ASIDE;
	replace(m, r[TO], r[FILE_END], "", 0);
	return REMOVED;
}

/* A number of two octets. */
static uint64_t
number_at(const unsigned char *p)
{
	return (uint64_t)p[0] << 8 | p[1];
}

/* Makes a record that is right for the mbox but for what `p` says. */
static void
make_record(char *slot, uint64_t place, uint64_t room, uint64_t inode,
    const unsigned char *p)
{
	enum { SPOILS = 1, SPOILS_DATA = 2, SHOWS_NONCE = 4, KEEPS_RUN = 8 };
	uint64_t r[NUMBERS] = {0}, most = stored.length + 20, from;
	unsigned flags = p[11];

	memcpy(r, magic, sizeof(magic));
	r[KIND] = p[0] % 5;
	r[NUMBER] = (p[1] & 14u) + place;
	r[OF_INODE] = inode;
	r[ROOM] = room;
	r[TO] = number_at(p + 2) % most;
	r[LENGTH] = number_at(p + 4) % (room + 1);
	r[RUN_START] = number_at(p + 6) % most;
	r[RUN_END] = r[FILE_END] = number_at(p + 8) % most;
	r[NONCE_LENGTH] = p[10] % 18;
	memset(r + NONCE, p[10], 16);
	if ((flags & SHOWS_NONCE) != 0 && r[TO] + 16 <= stored.length)
		memcpy(stored.at + r[TO], r + NONCE, 16);
	from =
	    r[TO] + r[LENGTH] > r[RUN_START] ? r[TO] + r[LENGTH] : r[RUN_START];
	if ((flags & KEEPS_RUN) != 0 && from <= r[RUN_END] &&
	    r[RUN_END] <= stored.length && r[RUN_END] - from <= r[LENGTH])
		memcpy(slot + HEADER + r[LENGTH] - (r[RUN_END] - from),
		    stored.at + from, r[RUN_END] - from);
	r[DATA] = sum_of(slot + HEADER, r[LENGTH]) + (flags & SPOILS_DATA);
	if (r[TO] <= stored.length)
		r[BEFORE] = sum_before(&stored, r[TO]);
	if (r[FILE_END] <= stored.length && r[TO] <= r[FILE_END])
		r[STALE] = sum_stale(&stored, r[TO], r[FILE_END]);
	if ((flags & SPOILS) != 0)
		r[p[12] % NUMBERS] ^= p[13];
	r[SUM] = sum_of(r, SUM * 8);
	memcpy(slot, r, sizeof(r));
}

static unsigned journals;     /* that stand there, */
static struct text put_aside; /* and what one says that was renamed */

static void
find_journal(const char *path, const char *name)
{
	if (strstr(name, ".pop3-journal") == NULL)
		return;
	journals++;
	if (strstr(name, ".aside.") != NULL)
		must(get_file(path_of(path, name), &put_aside));
}

/* What is no journal of this mbox changes nothing. */
static int
fuzz_journal(const uint8_t *data, size_t size)
{
	static const size_t rooms[] = {4096, 64, 8192, 0}, odd[] = {8191, 9};
	static const char script[] = "STAT\r\nLIST\r\nUIDL\r\nQUIT\r\n";
	enum { MADE, WHERE, ROOMS, CHOICES };
	unsigned char choice[CHOICES];
	const char *p = read_choices(data, size, choice, CHOICES);
	static struct text journal;
	const unsigned char *record = (const unsigned char *)p;
	size_t left, total, half, i;
	enum fate fate;
	struct stat st;

	if (p == NULL)
		return -1;
	left = size - (size_t)(p - (const char *)data);
	begin();
	make_fixed(choice[WHERE] % MBOXES);
	must(stat(mbox_path, &st) == 0);
	i = choice[ROOMS] % 6;
	total = i < 4 ? 2 * (HEADER + rooms[i]) : odd[i - 4];
	half = total / 2;
	journal.length = 0;
	for (i = 0; i < total; i++)
		append(&journal, "", 1);
	if (choice[MADE] % 2 == 0) {
		for (i = 0; i < left; i++)
			journal.at[(i + half * (i >= left / 2)) % total] = p[i];
	} else if (left >= 28 && total >= 2 * HEADER && total % 2 == 0) {
		for (i = 0; i < total; i++)
			journal.at[i] = p[i % left];
		for (i = 0; i < 2; i++)
			make_record(journal.at + i * half, i, half - HEADER,
			    st.st_ino, record + 14 * i);
	}
	put_file(path_of(dir, ".B.pop3-journal"), journal.at, total, O_TRUNC);
	put_file(mbox_path, stored.at, stored.length, 0);
	fate = reference_recovery(&journal, st.st_ino, &stored);
	run(mbox_path, script, sizeof(script) - 1);
	must(get_file(mbox_path, &after) && after.length == stored.length);
	must(memcmp(after.at, stored.at, stored.length) == 0);
	journals = 0;
	put_aside.length = 0;
	append(&put_aside, "", 0);
	each_file(dir, find_journal);
	must(journals == (fate != REMOVED));
	must(put_aside.length == (fate == ASIDE ? journal.length : 0));
	must(memcmp(put_aside.at, journal.at, put_aside.length) == 0);
	if (!reference_mbox(&drop, stored.at, stored.length))
		reference_form(script, sizeof(script) - 1, caller.out.at,
		    caller.out.length);
	else
		must(reference_replies(&drop, script, sizeof(script) - 1,
		    caller.out.at, caller.out.length, true)
			 .ok);
	return 0;
}

const struct target targets[] = {{"journal", fuzz_journal}, {NULL, NULL}};
