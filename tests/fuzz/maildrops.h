/*
 * Maildrops in memory, sessions over them, and what must be there afterwards.
 * In a file that an input gives, octet 2 and one of "@" to "_" stand for as
 * many octets as bring what follows so near to the end of a block.
 */
#ifndef MAILDROPS_H
#define MAILDROPS_H

#include <dirent.h>
#include <setjmp.h>

#include "program.h"

/* ---- What goes wrong ---- */

enum event {
	NONE_AT_ALL,
	GOES,
	EXPIRES,
	HESITATES,
	DELIVERS,
	RENAMES,
	FAILS,
	KILLS
};

static struct {
	bool runs; /* the program, not the harness */
	struct {
		enum event event;
		unsigned
		    at; /* the call for the client, or change of the disk */
	} plan[2];
	unsigned calls, changes; /* so far */
	bool cut;		 /* the client may not get all replies, */
	bool failed, killed;	 /* nor the disk what it should */
	jmp_buf at_kill;
} trouble;

static bool
is_due(enum event event, unsigned count)
{
	return trouble.runs && ((trouble.plan[0].event == event &&
				    trouble.plan[0].at == count) ||
				   (trouble.plan[1].event == event &&
				       trouble.plan[1].at == count));
}

/* A change of the disk; whether it fails. */
static bool
change_fails(void)
{
	trouble.changes++;
	if (is_due(KILLS, trouble.changes)) {
		trouble.killed = true;
		longjmp(trouble.at_kill, 1);
	}
	trouble.failed |= is_due(FAILS, trouble.changes);
	return is_due(FAILS, trouble.changes);
}

/* The linker puts these in the place of the system's. */
#define CHANGE(name, failure, parameters, arguments)                         \
	int __real_##name parameters;                                        \
	int __wrap_##name parameters;                                        \
	int __wrap_##name parameters                                         \
	{                                                                    \
		errno = ENOSPC;                                              \
		return change_fails() ? (failure) : __real_##name arguments; \
	}
CHANGE(fsync, -1, (int fd), (fd))
CHANGE(fdatasync, -1, (int fd), (fd))
CHANGE(ftruncate, -1, (int fd, off_t size), (fd, size))
CHANGE(posix_fallocate, ENOSPC, (int fd, off_t at, off_t n), (fd, at, n))
CHANGE(unlink, -1, (const char *path), (path))
CHANGE(unlinkat, -1, (int fd, const char *path, int flags), (fd, path, flags))
CHANGE(rename, -1, (const char *from, const char *to), (from, to))
CHANGE(link, -1, (const char *from, const char *to), (from, to))
ssize_t __real_pwrite(int fd, const void *from, size_t length, off_t at);
ssize_t __wrap_pwrite(int fd, const void *from, size_t length, off_t at);
ssize_t
__wrap_pwrite(int fd, const void *from, size_t length, off_t at)
{
	errno = ENOSPC;
	/* A full disk takes some of it. */
	if (change_fails() && (length /= 2) == 0)
		return -1;
	return __real_pwrite(fd, from, length, at);
}

/* ---- Files ---- */

static struct drop drop; /* what is there, as the reference has it */
static struct text stored, delivered, after; /* before, meanwhile, afterwards */
static struct text put_aside;		     /* a journal that was renamed */
static unsigned others; /* files in the Maildir that are no messages */

static char dir[64], mbox_path[96], maildir_path[96];
static const char *const subdirectories[] = {"new", "cur", "tmp"};

/* The path of a file beside the mbox, or in the Maildir. */
static const char *
path_of(const char *parent, const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", parent, name);
	return path;
}

static bool
put_file(const char *path, const char *data, size_t length, int flags)
{
	int fd = open(path, O_WRONLY | O_CREAT | flags, 0600);

	if (fd == -1)
		return false;
	must(length == 0 || write(fd, data, length) == (ssize_t)length);
	close(fd);
	return true;
}

static bool
get_file(const char *path, struct text *to)
{
	int fd = open(path, O_RDONLY);
	char part[4096];
	ssize_t n;

	to->length = 0;
	append(to, "", 0);
	while (fd != -1 && (n = read(fd, part, sizeof(part))) > 0)
		append(to, part, (size_t)n);
	return fd != -1 && close(fd) == 0;
}

/* Does something with each file in a directory. */
static void
each_file(const char *path, void (*use)(const char *path, const char *name))
{
	DIR *d = opendir(path);
	const struct dirent *entry;
	char parent[96];

	must(d != NULL);
	snprintf(parent, sizeof(parent), "%s", path);
	while ((entry = readdir(d)) != NULL)
		if (strcmp(entry->d_name, ".") != 0 &&
		    strcmp(entry->d_name, "..") != 0)
			use(parent, entry->d_name);
	closedir(d);
}

static void
remove_file(const char *path, const char *name)
{
	unlink(path_of(path, name));
}

static void
remove_all(void)
{
	size_t i;

	for (i = 0; i < 3; i++) {
		each_file(
		    path_of(maildir_path, subdirectories[i]), remove_file);
		rmdir(path_of(maildir_path, subdirectories[i]));
	}
	each_file(maildir_path, remove_file);
	rmdir(maildir_path);
	each_file(dir, remove_file);
	rmdir(dir);
}

/* Makes empty what an input may fill. */
static void
begin(void)
{
	const char *tmp = getenv("FUZZ_TMP");
	size_t i;

	if (*dir == '\0') {
		snprintf(dir, sizeof(dir), "%.40s/fuzz.XXXXXX",
		    tmp != NULL ? tmp : "/dev/shm");
		must(mkdtemp(dir) != NULL);
		snprintf(mbox_path, sizeof(mbox_path), "%s/B", dir);
		snprintf(maildir_path, sizeof(maildir_path), "%s/M", dir);
		mkdir(maildir_path, 0700);
		for (i = 0; i < 3; i++)
			mkdir(path_of(maildir_path, subdirectories[i]), 0700);
		atexit(remove_all);
		setenv("USER", "fuzz", 1);
		setenv("HOME", dir, 1);
	}
	for (i = 0; i < 3; i++)
		each_file(
		    path_of(maildir_path, subdirectories[i]), remove_file);
	each_file(maildir_path, remove_file);
	each_file(dir, remove_file);
	memset(&trouble, 0, sizeof(trouble));
	caller.kind = S_IFSOCK;
	caller.step = 0;
	ahead = 0;
	options.former = FORMER_AUTO;
	delivered.length = others = 0;
	append(&delivered, "", 0);
}

/* The choices that an input begins with; what follows. */
static const char *
read_choices(
    const uint8_t *data, size_t size, unsigned char *choice, unsigned count)
{
	const char *p = (const char *)data;
	unsigned i;

	if (size <= count || p[count] != '\n')
		return NULL;
	for (i = 0; i < count; i++)
		choice[i] = (unsigned char)(p[i] - '0');
	return p + count + 1;
}

/* What a file is to hold: with what stands for many octets. */
static void
expand(const char *p, const char *end, struct text *to)
{
	static char filler[4096];
	size_t more, part;

	memset(filler, 'x', sizeof(filler));
	filler[sizeof(filler) - 1] = '\n';
	to->length = 0;
	append(to, "", 0);
	for (; p < end; p++) {
		if (*p != '\2' || end - p < 2 || p[1] < '@' || p[1] > '_' ||
		    to->length >= 2 * BLOCK) {
			append(to, p, 1);
			continue;
		}
		more = 2 * BLOCK - (size_t)(*++p - '@') - to->length % BLOCK;
		for (more %= BLOCK; more > 0; more -= part) {
			part = sizeof(filler);
			part = more < part ? more : part;
			append(to, filler + sizeof(filler) - part, part);
		}
	}
}

/* ---- Sessions ---- */

static void happen(void);

/* A session with this script. */
static void
run(const char *path, const char *script, size_t length)
{
	static int spare;

	if (spare == 0) {
		spare = fcntl(STDERR_FILENO, F_DUPFD, 3);
		close(spare);
	}
	call_program(script, length);
	caller.happens = happen;
	options.preauthenticated = options.given = true;
	options.maildrop[0].path = path;
	options.maildrop[0].literal = true;
	options.maildrops = 1;
	strcpy(options.host, "pop.example.org");
	trouble.calls = trouble.changes = 0;
	trouble.runs = true;
	if (setjmp(trouble.at_kill) == 0) {
		must(run_preauthenticated() == EX_OK);
		trouble.runs = false;
		must(mbox.fd == -1 && mbox.dotlock == -1);
		return;
	}
	trouble.runs = false;
	message_free(&session.maildrop.table);
	message_free(&session.maildrop.before);
	free(session.maildrop.text.octets);
	free(session.maildrop.path);
	free(session.maildrop.state);
	free(mbox.journal);
	free(mbox.directory);
	mbox.journal = mbox.directory = NULL;
	maildir_format.close(&session.maildrop);
	close_range((unsigned)spare, (unsigned)spare + 64, 0);
}

static void
deliver(void)
{
	static const char text[] = "From d@example.org Mon Jan  1 00:00:00 "
				   "2024\nSubject: new\n\nnew\n\n";
	const char *end = stored.at + stored.length;

	/* Not before there was a scan, and behind an empty line. */
	if (delivered.length > 0 || !caller.has_spoken ||
	    session.maildrop.format == NULL)
		return;
	if (session.maildrop.format->named)
		put_file(path_of(maildir_path, "new/9999999999.D1.x"), text,
		    sizeof(text) - 1, O_EXCL);
	else if (stored.length < 2 || memcmp(end - 2, "\n\n", 2) != 0 ||
		 !put_file(mbox_path, text, sizeof(text) - 1, O_APPEND))
		return;
	append(&delivered, text, sizeof(text) - 1);
}

/* A mail reader has seen the first message. */
static void
rename_first(void)
{
	const struct expected *m = &drop.message[0];
	char from[512], to[256];

	if (drop.count == 0 || !m->in_new || m->doubled ||
	    strchr(m->name, ':') != NULL)
		return;
	snprintf(to, sizeof(to), "cur/%.240s:2,S", m->name);
	snprintf(from, sizeof(from), "%s/new/%s", maildir_path, m->name);
	rename(from, path_of(maildir_path, to));
}

/* The program waits for its client, or could. */
static void
happen(void)
{
	unsigned now = ++trouble.calls;

	must(mbox.dotlock == -1); /* no delivery is kept waiting */
	caller.gone |= is_due(GOES, now);
	caller.expired |= is_due(EXPIRES, now);
	caller.hesitates |= is_due(HESITATES, now);
	trouble.cut |= caller.gone || caller.expired;
	if (is_due(DELIVERS, now))
		deliver();
	if (is_due(RENAMES, now))
		rename_first();
}

/* ---- Maildrops ---- */

/* Makes an mbox of octets, and what the reference has of it; false if that has
 * it for none. */
static bool
make_mbox(const char *p, const char *end)
{
	expand(p, end, &stored);
	must(put_file(mbox_path, stored.at, stored.length, O_TRUNC));
	return reference_mbox(&drop, stored.at, stored.length);
}

/* Makes one file of a Maildir: "n" or "c" for the directory, its name, LF, and
 * its octets. */
static void
make_file(const char *p, const char *end)
{
	struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
	const char *name = p + 1, *lf = memchr(p, '\n', (size_t)(end - p));
	size_t length = lf != NULL && lf > p ? (size_t)(lf - name) : 0;
	char path[300];
	unsigned i;

	if (length == 0 || length > NAME_MAX || drop.count == MESSAGES_MAX ||
	    memchr(name, '/', length) != NULL ||
	    memchr(name, '\0', length) != NULL)
		return;
	snprintf(path, sizeof(path), "%s/%.*s", *p == 'n' ? "new" : "cur",
	    (int)length, name);
	/* At most one of a base name in each directory. */
	for (i = 0; i < drop.count; i++)
		if (drop.message[i].in_new == (*p == 'n') &&
		    compare_bases(drop.message[i].name, path + 4) == 0)
			return;
	if (!put_file(path_of(maildir_path, path), lf + 1,
		(size_t)(end - lf - 1), O_EXCL))
		return;
	times[1].tv_sec += (time_t)length % 4;
	utimensat(AT_FDCWD, path_of(maildir_path, path), times, 0);
	if (*name == '.')
		others++;
	else
		reference_file(&drop, path + 4, *p == 'n',
		    (unsigned long long)times[1].tv_sec, lf + 1,
		    (size_t)(end - lf - 1));
}

/* Makes a Maildir of such files, which octet 1 parts. */
static void
make_maildir(const char *p, const char *end)
{
	const char *next;

	expand(p, end, &stored);
	drop.count = 0;
	drop.kept = drop.sent.length = 0;
	p = stored.at;
	end = stored.at + stored.length;
	for (; p < end; p = next + 1) {
		next = memchr(p, '\1', (size_t)(end - p));
		if (next == NULL)
			next = end;
		make_file(p, next);
	}
	reference_sort(&drop);
}

#define FROM "From a@example.org Mon Jan  1 00:00:00 2024"

static const char mboxes[][640] = {FROM
    "\nReceived: x\nSubject: one\nStatus: RO\n\n.dot\n..\n>From x\n"
    "From here on it is text\n\nFrom the start, too\n\n" FROM "\n"
    "Subject: two\n\n" FROM "\nSubject: three\r\n\r\nCRLF\r\n\r\n" FROM
    "\nno header\n\n\n\n" FROM "\n\n" FROM "\nSubject: six\n\nlast\n\n",
    FROM "\nSubject: FOLDER INTERNAL DATA\nX-IMAP: 1 9\n\ntext\n\n" FROM
	 "\r\nX-UID: 3\r\n\r\nsame\r\n\r\n" FROM "\r\nX-UID: 3\r\n\r\nsame"
	 "\r\n\r\n" FROM "\r\n\r\nno end",
    FROM "\nSubject: big\n\n.\2C\r\n.\n.\n\n" FROM "\n\n\2A\n.\n\n" FROM
	 "\nSubject: small\n\n.\n\n",
    ""};
static const char maildirs[][640] = {"n1.M2.a\nSubject: one\n\n.\n\1"
				     "n1.M1.b\n.\r\n..\r\n\1"
				     "c3.M1.c:2,S\nA: b\n\nno end\1"
				     "cM.odd name\n\n\n\n\1"
				     "n3.M1.c\nsame base\n\1"
				     "n4.empty\n\1"
				     "c.hidden\nhidden\n",
    "n1.one\nSubject: big\n\n.\2C\r\n.\n.\n\n\1"
    "n2.two\n\n\2A\n.\n\n\1"
    "c3.three\n.\n"};
#define MBOXES (sizeof(mboxes) / sizeof(*mboxes))
#define MAILDIRS (sizeof(maildirs) / sizeof(*maildirs))

/* Makes a maildrop of these; its path. */
static const char *
make_fixed(unsigned choice)
{
	const char *p;

	choice %= MBOXES + MAILDIRS;
	if (choice < MBOXES) {
		p = mboxes[choice];
		make_mbox(p, p + strlen(p));
		return mbox_path;
	}
	p = maildirs[choice - MBOXES];
	make_maildir(p, p + strlen(p));
	return maildir_path;
}

#endif
