/*
 * Harnesses of a whole session over a maildrop in memory, whose replies and
 * whose maildrop afterwards must be what the reference says. FUZZ_TARGET is one
 * of:
 *
 * - session: any octets of a client over fixed maildrops, while the client goes
 *   away or hesitates, mail is delivered, a disk fails or the process is killed
 * - mbox: any file as an mbox, in three sessions
 * - maildir: any names and files in a Maildir, in three sessions
 * - state: any state file, and an mbox that others changed since
 * - former: any lists of ids that a former server left in a Maildir
 *
 * An input begins with a line of a few characters that choose ("0" is what is
 * usual), and what the target tells of follows.
 */
#include "maildrops.h"

/* A session with this script, whose replies are as they must be. */
static struct course
check(const char *path, const char *script, size_t length)
{
	struct course course;

	run(path, script, length);
	course = reference_replies(&drop, script, length, caller.out.at,
	    caller.out.length, !trouble.killed && !trouble.cut);
	must(reference_unique(&drop));
	return course;
}

/* Everything that can be asked; what `marks` says is deleted, in which each bit
 * is for one message of eight. */
static const struct text *
ask_all(unsigned char marks)
{
	static struct text script;
	char line[96];
	unsigned n;

	script.length = 0;
	append(&script, "STAT\r\nLIST\r\nUIDL\r\n", 18);
	for (n = 1; n <= drop.count; n++) {
		snprintf(line, sizeof(line), "RETR %u\r\nTOP %u %u\r\n", n, n,
		    n % 3);
		append(&script, line, strlen(line));
		snprintf(line, sizeof(line), "DELE %u\r\n", n);
		if ((marks >> n % 8 & 1) != 0)
			append(&script, line, strlen(line));
	}
	append(&script, "STAT\r\nQUIT\r\n", 12);
	return &script;
}

/* ---- What must be there afterwards ---- */

enum removal { NONE_REMOVED, SOME_REMOVED, ALL_REMOVED };

/* Nothing is removed without an UPDATE, and all if that was a success. */
static enum removal
removal_of(struct course course)
{
	if (course.ok)
		return ALL_REMOVED;
	return course.entered && !course.none ? SOME_REMOVED : NONE_REMOVED;
}

/* Whether what follows `p` is the messages from `n` on, without those that
 * went, and then what was delivered. */
static bool
remains(const char *p, unsigned n, enum removal removal)
{
	const struct expected *m = &drop.message[n];
	size_t left = (size_t)(after.at + after.length - p);

	if (n == drop.count)
		return left == delivered.length &&
		       memcmp(p, delivered.at, left) == 0;
	if (removal != NONE_REMOVED && m->deleted && remains(p, n + 1, removal))
		return true;
	return !(removal == ALL_REMOVED && m->deleted) && left >= m->length &&
	       memcmp(p, m->stored, m->length) == 0 &&
	       remains(p + m->length, n + 1, removal);
}

/* A file in the Maildir is one of ours. */
static void
find_file(const char *path, const char *name)
{
	size_t base = strcspn(name, ":");
	struct expected *m, *it = NULL;

	others -= *name == '.';
	if (*name == '.')
		return;
	must(get_file(path_of(path, name), &after));
	for (m = drop.message; m < drop.message + drop.count; m++)
		if (strncmp(m->name, name, base) == 0 && !m->found &&
		    strcspn(m->name, ":") == base &&
		    m->length == after.length &&
		    (m->length == 0 ||
			memcmp(m->stored, after.at, m->length) == 0) &&
		    (it == NULL || it->deleted))
			it = m;
	/* A second session has moved what came during the first. */
	must(it != NULL || strncmp(name, "9999999999.D1.x", base) == 0);
	if (it != NULL)
		it->found = true;
	else
		delivered.length = 0;
}

/* Every message that is not deleted stands there, byte for byte, and so does
 * what was delivered; and no file that should be gone. */
static void
check_maildrop(bool named, enum removal removal)
{
	static const char *const gone[] = {
	    "B.lock", ".B.pop3-journal", ".B.pop3-lock"};
	size_t i;
	struct expected *m;

	for (i = 0; i < 3; i++)
		must(access(path_of(dir, gone[i]), F_OK) == -1);
	if (!named) {
		must(get_file(mbox_path, &after) && after.length >= drop.kept);
		must(memcmp(after.at, stored.at, drop.kept) == 0);
		must(remains(after.at + drop.kept, 0, removal));
		return;
	}
	each_file(path_of(maildir_path, "new"), find_file);
	each_file(path_of(maildir_path, "cur"), find_file);
	must(others == 0 && delivered.length == 0);
	for (m = drop.message; m < drop.message + drop.count; m++) {
		must(m->found || (m->deleted && removal != NONE_REMOVED));
		must(!(m->found && m->deleted && removal == ALL_REMOVED));
		m->found = false;
	}
}

/* What the reference knows of the maildrop after an UPDATE: what stays, and its
 * ids; but those of two files of one base name do not last. */
static void
begin_next_session(void)
{
	unsigned n, to = 0;

	for (n = 0; n < drop.count; n++) {
		if (drop.message[n].doubled)
			*drop.message[n].id = '\0';
		if (!drop.message[n].deleted)
			drop.message[to++] = drop.message[n];
	}
	drop.count = to;
}

/* Nobody removes anything; some are deleted; the others are as they were. */
static void
check_sessions(const char *path, unsigned char marks, bool sure)
{
	const struct text *script = ask_all(0);
	bool named = path == maildir_path;
	struct course course;
	unsigned files = others;

	if (sure) /* what the state file says */
		ahead = 10;
	course = check(path, script->at, script->length);
	must(course.ok);
	check_maildrop(named, NONE_REMOVED);
	begin_next_session();
	if (named && (marks & 1) != 0)
		rename_first();
	script = ask_all(marks);
	course = check(path, script->at, script->length);
	must(course.ok);
	others = files;
	check_maildrop(named, ALL_REMOVED);
	begin_next_session();
	options.former = FORMER_NONE;
	script = ask_all(0);
	course = check(path, script->at, script->length);
	must(course.ok);
}

static int
fuzz_session(const uint8_t *data, size_t size)
{
	static const mode_t kinds[] = {S_IFSOCK, S_IFIFO, S_IFREG};
	static const size_t steps[] = {0, 1, 3, 100, 4096, 65536};
	enum { WHERE, KIND, STEP, FIRST, FIRST_AT, THEN, THEN_AT, CHOICES };
	unsigned char choice[CHOICES];
	const char *script = read_choices(data, size, choice, CHOICES), *path;
	enum removal removal;
	size_t length;

	if (script == NULL)
		return -1;
	length = (size_t)((const char *)data + size - script);
	begin();
	path = make_fixed(choice[WHERE]);
	caller.kind = kinds[choice[KIND] % 3];
	caller.step = steps[choice[STEP] % 6];
	trouble.plan[0].event = choice[FIRST] % (KILLS + 1);
	trouble.plan[0].at = choice[FIRST_AT];
	trouble.plan[1].event = choice[THEN] % (KILLS + 1);
	trouble.plan[1].at = choice[THEN_AT];
	removal = removal_of(check(path, script, length));
	if (trouble.failed || trouble.killed) {
		/* Another session finishes what was begun. */
		memset(&trouble, 0, sizeof(trouble));
		run(path, "RSET\r\nUIDL\r\nQUIT\r\n", 18);
		reference_form("RSET\r\nUIDL\r\nQUIT\r\n", 18, caller.out.at,
		    caller.out.length);
	}
	check_maildrop(path == maildir_path, removal);
	return 0;
}

static int
fuzz_mbox(const uint8_t *data, size_t size)
{
	enum { WHOSE, MARKS, AHEAD, CHOICES };
	unsigned char choice[CHOICES];
	const char *p = read_choices(data, size, choice, CHOICES);
	static const char refusal[] =
	    "-ERR [SYS/PERM] the maildrop cannot be used\r\n";

	if (p == NULL)
		return -1;
	begin();
	options.former = choice[WHOSE] % (FORMER_NONE + 1);
	if (make_mbox(p, (const char *)data + size)) {
		check_sessions(mbox_path, choice[MARKS], choice[AHEAD] % 2);
		return 0;
	}
	run(mbox_path, "QUIT\r\n", 6);
	must(caller.out.length == sizeof(refusal) - 1);
	must(memcmp(caller.out.at, refusal, sizeof(refusal) - 1) == 0);
	must(get_file(mbox_path, &after) && after.length == stored.length);
	must(memcmp(after.at, stored.at, stored.length) == 0);
	return 0;
}

static int
fuzz_maildir(const uint8_t *data, size_t size)
{
	enum { MARKS, AHEAD, CHOICES };
	unsigned char choice[CHOICES];
	const char *p = read_choices(data, size, choice, CHOICES);

	if (p == NULL)
		return -1;
	begin();
	make_maildir(p, (const char *)data + size);
	check_sessions(maildir_path, choice[MARKS], choice[AHEAD] % 2);
	return 0;
}

static const char *
state_path(const char *path)
{
	return path_of(
	    dir, path == mbox_path ? ".B.pop3-state" : "M/pop3-state");
}

/* Each three octets change one of a state file, counted from its end, or cut it
 * there. */
static void
damage(struct text *text, const unsigned char *p, size_t size)
{
	size_t at;

	for (; size >= 3; p += 3, size -= 3) {
		at = ((size_t)p[0] << 8 | p[1]) % text->length;
		text->at[text->length - 1 - at] = (char)p[2];
		if (size == 3 && p[2] == '\0')
			text->length -= at + 1;
	}
}

/* Rows that nobody wrote, in the file of a maildrop that is as it says. */
static void
forge(struct text *text, const char *rows, size_t size)
{
	const char *end = text->at + text->length, *second;
	char line[64];
	size_t n;

	second = text->at + line_length(text->at, end);
	text->length = (size_t)(second + line_length(second, end) - text->at);
	append(text, rows, size);
	for (n = 0; size > 0; size--)
		n += rows[size - 1] == '\n';
	snprintf(line, sizeof(line), "end %zu %016llx\n", n,
	    (unsigned long long)sum_add(0, text->at, text->length));
	append(text, line, strlen(line));
}

/* Others add to the mbox, or rewrite it, or put another file in its place.
 * Returns whether they only added to it. */
static bool
change_mbox(const char *p, const char *end)
{
	static const struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	static struct text before;

	before.length = 0;
	append(&before, stored.at, stored.length);
	expand(p, end, &stored);
	if (stored.length >= before.length && before.length > 0 &&
	    memcmp(stored.at, before.at, before.length) == 0)
		return put_file(mbox_path, stored.at + before.length,
		    stored.length - before.length, O_APPEND);
	if (stored.length >= before.length)
		unlink(mbox_path);
	put_file(mbox_path, stored.at, stored.length, O_TRUNC);
	utimensat(AT_FDCWD, mbox_path, times, 0);
	return false;
}

/* What the state file says is never needed for a reply, unless somebody forged
 * its sum. */
static int
fuzz_state(const uint8_t *data, size_t size)
{
	enum { DAMAGED, FORGED, ALTERED, MODES };
	enum { MODE, WHERE, MARKS, AHEAD, CHOICES };
	static char ids[MESSAGES_MAX][72];
	unsigned char choice[CHOICES];
	const char *p = read_choices(data, size, choice, CHOICES), *then;
	const char *end = (const char *)data + size, *path = mbox_path;
	const struct text *script;
	unsigned n, known = 0;

	if (p == NULL)
		return -1;
	begin();
	then = memchr(p, '\1', (size_t)(end - p));
	if (choice[MODE] % MODES != ALTERED)
		path = make_fixed(choice[WHERE]);
	else if (then == NULL || !make_mbox(p, then))
		return -1;
	ahead = choice[AHEAD] % 2 * 10;
	script = ask_all(0);
	must(check(path, script->at, script->length).ok);
	begin_next_session();
	for (n = 0; n < drop.count; n++)
		strcpy(ids[n], drop.message[n].id);
	must(get_file(state_path(path), &after));
	script = ask_all(choice[MARKS]);
	switch (choice[MODE] % MODES) {
	case DAMAGED:
		damage(&after, (const unsigned char *)p, (size_t)(end - p));
		put_file(state_path(path), after.at, after.length, O_TRUNC);
		break;
	case FORGED:
		forge(&after, p, (size_t)(end - p));
		put_file(state_path(path), after.at, after.length, O_TRUNC);
		run(path, script->at, script->length);
		reference_form(script->at, script->length, caller.out.at,
		    caller.out.length);
		if (choice[MARKS] == 0)
			check_maildrop(path == maildir_path, NONE_REMOVED);
		return 0;
	default:
		n = drop.count;
		if (change_mbox(then + 1, end) && n > 0)
			known = n - 1;
		if (!reference_mbox(&drop, stored.at, stored.length))
			return 0;
		script = ask_all(choice[MARKS]);
	}
	must(check(path, script->at, script->length).ok);
	check_maildrop(path == maildir_path, ALL_REMOVED);
	for (n = 0; n < known; n++)
		must(strcmp(ids[n], drop.message[n].id) == 0);
	return 0;
}

static int
fuzz_former(const uint8_t *data, size_t size)
{
	enum { WHOSE, MARKS, CHOICES };
	unsigned char choice[CHOICES];
	const char *p = read_choices(data, size, choice, CHOICES), *courier;
	const char *end = (const char *)data + size;
	unsigned n;

	if (p == NULL)
		return -1;
	begin();
	make_fixed(MBOXES);
	for (n = 0; n < drop.count; n++)
		*drop.message[n].id = '\0';
	courier = memchr(p, '\1', (size_t)(end - p));
	if (courier == NULL)
		courier = end;
	put_file(path_of(maildir_path, "dovecot-uidlist"), p,
	    (size_t)(courier - p), O_EXCL);
	if (courier++ < end)
		put_file(path_of(maildir_path, "courierpop3dsizelist"), courier,
		    (size_t)(end - courier), O_EXCL);
	options.former = choice[WHOSE] % (FORMER_NONE + 1);
	check_sessions(maildir_path, choice[MARKS], false);
	return 0;
}

const struct target targets[] = {{"session", fuzz_session}, {"mbox", fuzz_mbox},
    {"maildir", fuzz_maildir}, {"state", fuzz_state}, {"former", fuzz_former},
    {NULL, NULL}};
