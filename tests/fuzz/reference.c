/* See reference.h. */
#include "reference.h"

#include <regex.h>
#include <string.h>
#include <strings.h>

#include "fuzz.h"

void
append(struct text *t, const void *octets, size_t length)
{
	if (t->length + length >= t->room) { /* never none at all */
		t->room = 2 * t->room + length + 4096;
		t->at = realloc(t->at, t->room);
		must(t->at != NULL);
	}
	if (length > 0)
		memcpy(t->at + t->length, octets, length);
	t->length += length;
}

/* ---- Messages ---- */

size_t
line_length(const char *p, const char *end)
{
	const char *lf = memchr(p, '\n', (size_t)(end - p));

	return (size_t)((lf != NULL ? lf + 1 : end) - p);
}

static bool
is_empty(const char *line, size_t length)
{
	return (length == 1 && *line == '\n') ||
	       (length == 2 && memcmp(line, "\r\n", 2) == 0);
}

/* Adds a message whose text, without a From_ line, is to be sent: every line
 * end as CRLF, the last one too. */
static void
add_message(struct drop *d, const char *stored, size_t length, const char *text,
    const char *end)
{
	struct expected *m = &d->message[d->count++];
	size_t line, shown;

	memset(m, 0, sizeof(*m));
	m->stored = stored;
	m->length = length;
	m->sent = d->sent.length;
	for (; text < end; text += line) {
		line = shown = line_length(text, end);
		if (text[line - 1] == '\n')
			shown -= line > 1 && text[line - 2] == '\r' ? 2 : 1;
		append(&d->sent, text, shown);
		append(&d->sent, "\r\n", 2);
	}
	m->octets = d->sent.length - m->sent;
}

enum word { WEEKDAY, MONTH, DAY, TIME, YEAR, ZONE, WORDS };

static bool
word_is(enum word kind, const char *word)
{
	static const char *const patterns[WORDS] = {
	    "^(sun|mon|tue|wed|thu|fri|sat),?$",
	    "^(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)$",
	    "^[0-9]{1,2}$", "^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$", "^[0-9]{4}$",
	    "^.{1,5}$"};
	static regex_t compiled[WORDS];
	static bool ready[WORDS];

	if (!ready[kind])
		must(regcomp(&compiled[kind], patterns[kind],
			 REG_EXTENDED | REG_ICASE | REG_NOSUB) == 0);
	ready[kind] = true;
	return regexec(&compiled[kind], word, 0, NULL, 0) == 0;
}

/* Takes the next word off a line, "" at its end. */
static const char *
next_word(char **rest)
{
	char *word = *rest + strspn(*rest, " \t");

	*rest = word + strcspn(word, " \t");
	if (**rest != '\0')
		*(*rest)++ = '\0';
	return word;
}

/* "From ", a sender or none, the day of the week; in any order month, day, time
 * and year; time zones between, once there was the time. */
static bool
is_from_line(const char *line, size_t length)
{
	bool seen[WORDS] = {false};
	char text[1026], *rest = text + 5;
	const char *word;
	enum word kind;
	size_t i;

	length -= length > 0 && line[length - 1] == '\n';
	if (length > 1024 || length < 6 || memcmp(line, "From ", 5) != 0)
		return false;
	for (i = 0; i < length; i++) /* NUL is no blank and no end */
		text[i] = line[i] == '\0' ? '\1' : line[i];
	text[length - (line[length - 1] == '\r')] = '\0';
	if (*rest == '"') {
		for (rest++; *rest != '\0' && *rest != '"'; rest++)
			rest += *rest == '\\' && rest[1] != '\0';
		if (*rest == '\0')
			return false;
	}
	if (*rest != ' ' && *next_word(&rest) == '\0')
		return false;
	if (!word_is(WEEKDAY, next_word(&rest)))
		return false;
	while (!seen[MONTH] || !seen[DAY] || !seen[TIME] || !seen[YEAR]) {
		word = next_word(&rest);
		for (kind = MONTH; kind < ZONE && !word_is(kind, word); kind++)
			continue;
		if (kind == ZONE && (!seen[TIME] || !word_is(ZONE, word)))
			return false;
		seen[kind] = true;
	}
	return true;
}

bool
reference_internal(const char *text, size_t length)
{
	const char *end = text + length;
	bool imap = false, subject = false;
	size_t line;

	for (; text < end && *text != '\r' && *text != '\n'; text += line) {
		line = line_length(text, end);
		if (text[line - 1] != '\n')
			break;
		imap |= strncasecmp(text, "X-IMAP: ", 8) == 0;
		subject |= strncasecmp(text, "Subject: ", 9) == 0 &&
			   memmem(text, line, "FOLDER INTERNAL DATA", 20);
	}
	return imap && subject;
}

/* The message of an mbox that stands at [p, end): the empty line before the
 * next one is not its own, unless it has no body. */
static void
add_stored(struct drop *d, const char *p, const char *end)
{
	const char *text = p + line_length(p, end), *body = text, *last = NULL;
	const char *line;
	size_t length;

	while (body < end && last == NULL) {
		length = line_length(body, end);
		if (is_empty(body, length))
			last = body;
		body += length;
	}
	for (line = body; line < end; line += length) {
		length = line_length(line, end);
		last = line;
	}
	if (body < end && is_empty(last, (size_t)(end - last)))
		add_message(d, p, (size_t)(end - p), text, last);
	else
		add_message(d, p, (size_t)(end - p), text, end);
}

bool
reference_mbox(struct drop *d, const char *data, size_t size)
{
	const char *p = data, *end = data + size, *start = NULL;
	bool empty = true; /* the line before */
	size_t line, first;

	d->count = 0;
	d->kept = d->sent.length = 0;
	for (; p < end; p += line) {
		line = line_length(p, end);
		if (empty && is_from_line(p, line)) {
			if (start != NULL)
				add_stored(d, start, p);
			start = p;
			empty = false;
		} else {
			empty = is_empty(p, line);
		}
		if (start == NULL || d->count == MESSAGES_MAX)
			return false;
	}
	if (start != NULL)
		add_stored(d, start, end);
	first = line_length(data, end);
	if (d->count > 0 && reference_internal(data + first,
				(size < BLOCK ? size : BLOCK) - first)) {
		d->kept = d->message[0].length;
		memmove(d->message, d->message + 1,
		    --d->count * sizeof(*d->message));
	}
	return true;
}

/* SECONDS.…M MICROSECONDS…, or else the file's mtime. */
static unsigned long long
delivered(const char *name, unsigned long long mtime)
{
	size_t digits = strspn(name, "0123456789"), i;
	unsigned long long seconds = 0, micros = 0;

	for (i = 0; i < digits && seconds <= UINT64_MAX / 20; i++)
		seconds = 10 * seconds + (unsigned)(name[i] - '0');
	if (digits == 0 || name[digits] != '.' || seconds >> 43 != 0)
		return mtime << 20;
	name += digits + 1;
	for (i = 0; name[i] != '\0' && name[i] != '.' && name[i] != ':'; i++)
		if (name[i] == 'M' && strspn(name + i + 1, "0123456789") > 0)
			break;
	if (name[i] == 'M')
		for (i++; name[i] >= '0' && name[i] <= '9'; i++)
			if (micros < 1000000)
				micros =
				    10 * micros + (unsigned)(name[i] - '0');
	/* No time at all is not a time either. */
	seconds = seconds << 20 | (micros < 1000000 ? micros : 999999);
	return seconds != 0 ? seconds : mtime << 20;
}

static int
compare_bases_of(const struct expected *a, const struct expected *b)
{
	char x[sizeof(a->name)], y[sizeof(b->name)];

	strcpy(x, a->name);
	strcpy(y, b->name);
	x[strcspn(x, ":")] = y[strcspn(y, ":")] = '\0';
	return strcmp(x, y);
}

static int
by_delivery(const void *a, const void *b)
{
	const struct expected *x = a, *y = b;

	if (x->order != y->order)
		return x->order < y->order ? -1 : 1;
	if (compare_bases_of(x, y) != 0)
		return compare_bases_of(x, y);
	return y->in_new - x->in_new;
}

void
reference_file(struct drop *d, const char *name, bool in_new,
    unsigned long long seconds, const char *data, size_t length)
{
	struct expected *m = &d->message[d->count];

	add_message(d, data, length, data, data + length);
	snprintf(m->name, sizeof(m->name), "%s", name);
	m->in_new = in_new;
	m->order = delivered(name, seconds);
}

void
reference_sort(struct drop *d)
{
	struct expected *m;
	size_t base, i, j;

	qsort(d->message, d->count, sizeof(*d->message), by_delivery);
	for (i = 0; i < d->count; i++)
		for (j = 0; j < d->count; j++)
			if (i != j && compare_bases_of(
					  &d->message[i], &d->message[j]) == 0)
				d->message[i].doubled = true;
	for (m = d->message; m < d->message + d->count; m++) {
		base = strcspn(m->name, ":");
		for (i = 0; i < base && m->name[i] > ' ' && m->name[i] <= '~';)
			i++;
		if (!m->doubled && i == base && base >= 1 && base <= 70)
			memcpy(m->id, m->name, base);
	}
}

/* ---- Replies ---- */

/* What the client got, from the present place on. */
struct reading {
	const char *p, *end;
	bool cut; /* it has ended too early */
};

/* Exactly these octets come next. */
static void
want(struct reading *r, const char *octets, size_t length)
{
	size_t have = (size_t)(r->end - r->p);

	r->cut |= have < length;
	have = have < length ? have : length;
	must(memcmp(r->p, octets, have) == 0);
	r->p += have;
}

static void
want_text(struct reading *r, const char *text)
{
	want(r, text, strlen(text));
}

/* A line of a reply comes next, whatever it says; it is not empty. */
static const char *
want_line(struct reading *r)
{
	const char *line = r->p;
	size_t length = line_length(line, r->end), i;

	must(length <= 512);
	r->p += length;
	if (length < 2 || line[length - 1] != '\n') {
		r->cut = true;
		return "";
	}
	must(length > 2 && line[length - 2] == '\r');
	for (i = 0; i < length - 2; i++)
		must(line[i] >= ' ' && line[i] <= '~');
	return line;
}

/* A status line: whether it is +OK. RFC 1939 section 3, RFC 2449 section 8. */
static bool
want_status(struct reading *r)
{
	const char *line = want_line(r);

	if (r->cut)
		return false;
	if (strncmp(line, "+OK", 3) == 0) {
		must(line[3] == '\r' || (line[3] == ' ' && line[4] != '['));
		return true;
	}
	must(strncmp(line, "-ERR ", 5) == 0);
	must(line[5] != '[' || strncmp(line + 5, "[AUTH] ", 7) == 0 ||
	     strncmp(line + 5, "[IN-USE] ", 9) == 0 ||
	     strncmp(line + 5, "[SYS/TEMP] ", 11) == 0 ||
	     strncmp(line + 5, "[SYS/PERM] ", 11) == 0);
	return false;
}

static void
want_ok(struct reading *r)
{
	must(want_status(r) || r->cut);
}

/* Lines up to "." that are no message. */
static void
want_lines(struct reading *r)
{
	while (!r->cut && strncmp(want_line(r), ".\r\n", 3) != 0)
		continue;
}

/* So many octets of a message: stuffed, and the end. */
static void
want_message(struct reading *r, const char *text, size_t octets)
{
	const char *end = text + octets;
	size_t line;

	for (; text < end; text += line) {
		line = line_length(text, end);
		if (*text == '.')
			want_text(r, ".");
		want(r, text, line);
	}
	want_text(r, ".\r\n");
}

/* How many octets of a message TOP shows: the header, an empty line, `lines`
 * lines of the body. */
static size_t
top_octets(const char *text, size_t octets, unsigned long long lines)
{
	const char *p = text, *end = text + octets;
	bool body = false;
	size_t line;

	for (; p < end && !(body && lines == 0); p += line) {
		line = line_length(p, end);
		lines -= body;
		body |= is_empty(p, line);
	}
	return (size_t)(p - text);
}

/* A unique-id and CRLF: the one that is expected, or that it was before. */
static void
want_id(struct reading *r, struct expected *m)
{
	size_t length = line_length(r->p, r->end), i;

	if (*m->id == '\0' && length > 0 && r->p[length - 1] == '\n') {
		must(length >= 3 && length <= 72);
		for (i = 0; i < length - 2; i++)
			must(r->p[i] >= 0x21 && r->p[i] <= 0x7e);
		memcpy(m->id, r->p, length - 2);
		m->id[length - 2] = '\0';
	}
	if (*m->id == '\0') { /* cut in the middle of an unknown one */
		r->p = r->end;
		r->cut = true;
	}
	want_text(r, m->id);
	want_text(r, "\r\n");
}

/* The octets and number of messages that are not deleted. */
static void
want_totals(struct reading *r, const struct drop *d)
{
	unsigned long long octets = 0;
	unsigned n, count = 0;
	char line[64];

	for (n = 0; n < d->count; n++)
		if (!d->message[n].deleted) {
			count++;
			octets += d->message[n].octets;
		}
	snprintf(line, sizeof(line), "+OK %u %llu\r\n", count, octets);
	want_text(r, line);
}

/* What is told of a message by LIST or UIDL, behind its number. */
static void
want_listed(struct reading *r, struct expected *m, bool ids)
{
	char line[64];

	if (ids) {
		want_id(r, m);
	} else {
		snprintf(line, sizeof(line), "%zu\r\n", m->octets);
		want_text(r, line);
	}
}

static void
want_list(struct reading *r, struct drop *d, bool ids)
{
	char number[16];
	unsigned n;

	want_ok(r);
	for (n = 0; n < d->count; n++)
		if (!d->message[n].deleted) {
			snprintf(number, sizeof(number), "%u ", n + 1);
			want_text(r, number);
			want_listed(r, &d->message[n], ids);
		}
	want_text(r, ".\r\n");
}

enum sense { SENSE, NONSENSE, END };

/* A command that is made of words: a verb and up to two more. */
struct command {
	char verb[256], word[2][256];
	unsigned words;
};

/* Digits; what is too large stays so. */
static bool
number_of(const char *text, unsigned long long *number)
{
	for (*number = 0; *text >= '0' && *text <= '9'; text++)
		if (*number < UINT64_MAX / 100)
			*number = 10 * *number + (unsigned)(*text - '0');
	return *text == '\0';
}

/* What is answered to a command that names a message, and makes sense. */
static void
want_named(struct reading *r, struct drop *d, const struct command *c,
    unsigned long long n, unsigned long long lines)
{
	struct expected *m =
	    n >= 1 && n <= d->count ? &d->message[n - 1] : NULL;
	char line[64];

	if (m == NULL || m->deleted) {
		must(!want_status(r));
		return;
	}
	snprintf(line, sizeof(line), "+OK %llu ", n);
	if (strcmp(c->verb, "LIST") == 0 || strcmp(c->verb, "UIDL") == 0) {
		want_text(r, line);
		want_listed(r, m, *c->verb == 'U');
	} else if (strcmp(c->verb, "RETR") == 0) {
		snprintf(line, sizeof(line), "+OK %zu octets\r\n", m->octets);
		want_text(r, line);
		want_message(r, d->sent.at + m->sent, m->octets);
	} else if (strcmp(c->verb, "TOP") == 0) {
		want_ok(r);
		want_message(r, d->sent.at + m->sent,
		    top_octets(d->sent.at + m->sent, m->octets, lines));
	} else {
		want_ok(r);
		m->deleted = true;
	}
}

/* What is answered to a command of TRANSACTION with so many words. */
static enum sense
want_reply(struct reading *r, struct drop *d, const struct command *c,
    struct course *course)
{
	static const struct {
		const char *verb;
		unsigned least, most;
	} verbs[] = {{"NOOP", 0, 0}, {"CAPA", 0, 0}, {"STAT", 0, 0},
	    {"RSET", 0, 0}, {"QUIT", 0, 0}, {"LIST", 0, 1}, {"UIDL", 0, 1},
	    {"RETR", 1, 1}, {"DELE", 1, 1}, {"TOP", 2, 2}};
	const size_t count = sizeof(verbs) / sizeof(*verbs);
	unsigned long long n = 0, lines = 0;
	size_t i;

	for (i = 0; i < count && strcmp(verbs[i].verb, c->verb) != 0; i++)
		continue;
	if (i == count || c->words < verbs[i].least ||
	    c->words > verbs[i].most) {
		must(!want_status(r));
		return NONSENSE;
	}
	if ((c->words > 0 && !number_of(c->word[0], &n)) ||
	    (c->words > 1 && !number_of(c->word[1], &lines))) {
		must(!want_status(r));
		return NONSENSE;
	}
	if (c->words > 0) {
		want_named(r, d, c, n, lines);
	} else if (strcmp(c->verb, "LIST") == 0 ||
		   strcmp(c->verb, "UIDL") == 0) {
		want_list(r, d, *c->verb == 'U');
	} else if (strcmp(c->verb, "STAT") == 0) {
		want_totals(r, d);
	} else if (strcmp(c->verb, "QUIT") == 0) {
		course->quit = true;
		course->entered = !r->cut;
		course->none = memmem(r->p, (size_t)(r->end - r->p),
				   "] nothing removed\r\n", 19) != NULL;
		course->ok = want_status(r);
		return END;
	} else {
		want_ok(r);
		for (i = 0; *c->verb == 'R' && i < d->count; i++)
			d->message[i].deleted = false;
		if (*c->verb == 'C')
			want_lines(r);
	}
	return SENSE;
}

/* Takes a line apart; false where it is none of words. */
static bool
read_command(const char *line, size_t length, struct command *c)
{
	char text[256], *rest = text, *word;
	size_t i;

	memset(c, 0, sizeof(*c));
	if (length > 255)
		return false;
	length -= length > 1 && line[length - 2] == '\r' ? 2 : 1;
	for (i = 0; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			return false;
	memcpy(text, line, length);
	while (length > 0 && text[length - 1] == ' ')
		length--;
	text[length] = '\0';
	word = strsep(&rest, " ");
	for (i = 0; word[i] != '\0'; i++)
		c->verb[i] = (char)(word[i] >= 'a' && word[i] <= 'z'
					? word[i] - 'a' + 'A'
					: word[i]);
	for (; rest != NULL; c->words++) {
		word = strsep(&rest, " ");
		if (*word == '\0' || c->words == 2)
			return false;
		strcpy(c->word[c->words], word);
	}
	return true;
}

struct course
reference_replies(struct drop *d, const char *in, size_t in_size,
    const char *out, size_t out_size, bool whole)
{
	struct reading r = {.p = out, .end = out + out_size};
	const char *end = in + in_size;
	struct course course = {0};
	enum sense sense = SENSE;
	unsigned nonsense = 0;
	struct command command;
	size_t line;

	want_ok(&r);
	while (sense != END && nonsense < 20 && in < end) {
		line = line_length(in, end);
		if (in[line - 1] != '\n')
			break;
		sense = NONSENSE;
		if (read_command(in, line, &command))
			sense = want_reply(&r, d, &command, &course);
		else
			must(!want_status(&r));
		nonsense = sense == NONSENSE ? nonsense + 1 : 0;
		in += line;
	}
	/* Nothing is missing, and nothing follows. */
	must(!whole || !r.cut);
	must(r.p == r.end);
	return course;
}

void
reference_form(const char *in, size_t in_size, const char *out, size_t out_size)
{
	struct reading r = {.p = out, .end = out + out_size};
	const char *end = in + in_size;
	struct command c;
	size_t line;

	want_ok(&r);
	for (; in < end && !r.cut && r.p < r.end; in += line) {
		line = line_length(in, end);
		must(read_command(in, line, &c));
		if (!want_status(&r))
			continue;
		if (strcmp(c.verb, "RETR") == 0 || strcmp(c.verb, "TOP") == 0)
			while (r.p < r.end) {
				line = line_length(r.p, r.end);
				r.p += line;
				if (line == 3 &&
				    memcmp(r.p - 3, ".\r\n", 3) == 0)
					break;
			}
		else if (strcmp(c.verb, "CAPA") == 0 ||
			 (c.words == 0 && (strcmp(c.verb, "LIST") == 0 ||
					      strcmp(c.verb, "UIDL") == 0)))
			want_lines(&r);
		line = line_length(in, end);
	}
	must(r.p == r.end);
}

unsigned
reference_front(const char *out, size_t out_size)
{
	struct reading r = {.p = out, .end = out + out_size};
	unsigned replies;
	const char *line;

	for (replies = 0; r.p < r.end; replies++) {
		/* A challenge is a part of a reply; RFC 5034. */
		if (*r.p == '+' && r.p[1] == ' ') {
			want_text(&r, "+ \r\n");
			if (r.p == r.end)
				break;
		}
		line = r.p;
		if (want_status(&r) &&
		    (memmem(line, (size_t)(r.p - line), "follow\r", 7) != NULL))
			want_lines(&r);
	}
	must(!r.cut);
	return replies;
}

bool
reference_unique(const struct drop *d)
{
	unsigned i, j;

	for (i = 0; i < d->count; i++)
		for (j = 0; j < i && *d->message[i].id != '\0'; j++)
			if (strcmp(d->message[i].id, d->message[j].id) == 0)
				return false;
	return true;
}
