/* Accounts; see account.h. */
#include "account.h"

#include <crypt.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <shadow.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "digest.h"
#include "log.h"
#include "sandbox.h"

#define LINE_OCTETS 8192
#define FIELDS 7 /* what follows the shell is not for us */

enum field { NAME, SECRET, UID, GID, GECOS, HOME, SHELL };

/* What is compared with the client's secret when the name is unknown or has
 * no usable hash: the same work as for the others of the same file. */
#define DECOY "$6$pop3handler$"

struct entry {
	char line[LINE_OCTETS];
	char *field[FIELDS];
	unsigned long number; /* of the line in the file */
};

bool
account_name_valid(const char *name)
{
	const unsigned char *p = (const unsigned char *)name;
	size_t length = strlen(name);

	if (length == 0 || length > ACCOUNT_NAME_OCTETS || *name == '.' ||
	    strstr(name, "@.") != NULL)
		return false;
	for (; *p != '\0'; p++)
		if (*p < ' ' || *p == 0x7f || *p == '/')
			return false;
	return true;
}

/* Cuts a line into its fields; those that are missing are empty. */
static void
split(struct entry *entry)
{
	char *p = entry->line;
	int i;

	for (i = 0; i < FIELDS; i++) {
		entry->field[i] = p;
		p += strcspn(p, ":");
		if (*p == ':')
			*p++ = '\0';
	}
}

/* The accounts file may hold secrets and decides who may become whom: it must
 * be a regular file that nobody but its owner, root or us, can write. */
static FILE *
open_accounts(const char *file)
{
	struct stat st;
	FILE *in;
	int fd;

	fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd == -1 || fstat(fd, &st) == -1) {
		log_error(file, "%s", strerror(errno));
	} else if (!S_ISREG(st.st_mode)) {
		log_error(file, "not a regular file");
	} else if (st.st_uid != 0 && st.st_uid != geteuid()) {
		log_error(file, "owned by neither root nor uid %lu",
		    (unsigned long)geteuid());
	} else if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
		log_error(file, "others than its owner can write to it");
	} else {
		in = fdopen(fd, "r");
		if (in != NULL)
			return in;
		log_error(file, "%s", strerror(errno));
	}
	if (fd != -1)
		close(fd);
	return NULL;
}

/* The crypt(3) setting that a SECRET field holds, NULL if it holds none. */
static const char *
crypt_setting(const char *secret)
{
	static const char *const schemes[] = {"{CRYPT}", "{DES-CRYPT}",
	    "{MD5-CRYPT}", "{BLF-CRYPT}", "{SHA256-CRYPT}", "{SHA512-CRYPT}"};
	size_t i, length;

	for (i = 0; i < sizeof(schemes) / sizeof(*schemes); i++) {
		length = strlen(schemes[i]);
		if (strncasecmp(secret, schemes[i], length) == 0) {
			secret += length;
			break;
		}
	}
	/* "!" and "*" lock an account; crypt(3) knows no such setting. */
	if (*secret == '{' || *secret == '!' || *secret == '*' ||
	    *secret == '\0')
		return NULL;
	return secret;
}

static const char *
plain_secret(const char *secret)
{
	static const char *const schemes[] = {"{PLAIN}", "{CLEARTEXT}"};
	size_t i, length;

	for (i = 0; i < sizeof(schemes) / sizeof(*schemes); i++) {
		length = strlen(schemes[i]);
		if (strncasecmp(secret, schemes[i], length) == 0)
			return secret + length;
	}
	return NULL;
}

/* Compares without telling by the time it takes where they differ. */
static bool
same_text(const char *a, const char *b)
{
	size_t length = strlen(a), i;
	unsigned difference = length != strlen(b);

	if (difference == 0)
		for (i = 0; i < length; i++)
			difference |= (unsigned)(a[i] ^ b[i]);
	return difference == 0;
}

/* What a check works with, and its secrets: nothing of it is left behind. The
 * session that follows does not keep the memory either. */
static struct scratch {
	struct crypt_data work;
	struct entry entry, own;
	char buffer[BUFSIZ], decoy[LINE_OCTETS];
} __attribute__((aligned(4096))) scratch;

static void
forget_scratch(void)
{
#ifdef MADV_DONTNEED
	if (madvise(&scratch, sizeof(scratch), MADV_DONTNEED) == 0)
		return;
#endif
	explicit_bzero(&scratch, sizeof(scratch));
}

/* Spends one crypt(3), with `setting` or, if it is NULL, with `decoy`. */
static bool
proves_hash(const char *setting, const char *decoy, const char *secret)
{
	const char *hash;

	hash =
	    crypt_r(secret, setting != NULL ? setting : decoy, &scratch.work);
	return setting != NULL && hash != NULL && *hash != '*' &&
	       same_text(setting, hash);
}

/* Whether a secret that the client did not send makes the digest it sent. */
static bool
proves_apop(const char *plain, const struct account_proof *proof)
{
	unsigned char digest[DIGEST_OCTETS];
	char hex[DIGEST_HEX + 1];
	struct digest d;

	digest_start(&d);
	digest_add(&d, proof->stamp, strlen(proof->stamp));
	digest_add(&d, plain, strlen(plain));
	digest_end(&d, digest);
	digest_hex(digest, hex);
	explicit_bzero(&d, sizeof(d));
	return same_text(hex, proof->secret);
}

/* Whether a proof fits the SECRET field; NULL is that of an unknown name. The
 * work is the same in any case. */
static bool
proves(const char *stored, const char *decoy, const struct account_proof *proof)
{
	const char *plain = stored != NULL ? plain_secret(stored) : NULL;
	const char *setting = NULL;
	bool proven, hashed;

	if (stored != NULL && plain == NULL)
		setting = crypt_setting(stored);
	hashed = proves_hash(setting, decoy, proof->secret);
	if (proof->apop)
		proven = proves_apop(plain != NULL ? plain : "", proof);
	else
		proven =
		    plain != NULL ? same_text(plain, proof->secret) : hashed;
	/* An empty secret lets nobody in, stored or sent. */
	return proven && *proof->secret != '\0' &&
	       (plain != NULL ? *plain != '\0' : !proof->apop);
}

/* Reads a uid or gid; an empty one is `own`, which root has none to give. */
static bool
read_id(const char *text, uint32_t own, uint32_t *id)
{
	unsigned long long value;
	char *end;

	if (*text == '\0') {
		*id = own;
		return geteuid() != 0;
	}
	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno != 0 || *end != '\0' || value >= UINT32_MAX)
		return false;
	*id = (uint32_t)value;
	return true;
}

/* Turns an entry whose secret was right into an account. */
static enum account_verdict
accept_entry(
    const char *file, const struct entry *entry, struct account *account)
{
	const char *wrong = NULL;
	uint32_t uid = 0, gid = 0;

	if (!read_id(entry->field[UID], (uint32_t)getuid(), &uid))
		wrong = "uid is not a number or missing";
	else if (!read_id(entry->field[GID], (uint32_t)getgid(), &gid))
		wrong = "gid is not a number or missing";
	else if (uid == 0)
		wrong = "uid 0 is never served";
	else if (geteuid() != 0 && (uid != getuid() || gid != getgid()))
		wrong = "uid or gid is not our own, and we are not root";
	else if (*entry->field[HOME] != '\0' && *entry->field[HOME] != '/')
		wrong = "home is not an absolute path";
	else if (strlen(entry->field[HOME]) >= sizeof(account->home))
		wrong = "home is too long";
	if (wrong != NULL) {
		log_error(file, "line %lu: %s", entry->number, wrong);
		return ACCOUNT_PERM;
	}
	strcpy(account->name, entry->field[NAME]);
	strcpy(account->home, entry->field[HOME]);
	account->uid = uid;
	account->gid = gid;
	return ACCOUNT_ACCEPTED;
}

/* Reads a line without its LF; its whole length is stored, of which as much is
 * kept as there is room for. False at the end of the file. */
static bool
read_line(FILE *in, char line[LINE_OCTETS], size_t *length)
{
	size_t n = 0;
	int c;

	while ((c = getc_unlocked(in)) != EOF && c != '\n') {
		if (n < LINE_OCTETS - 1)
			line[n] = (char)c;
		n++;
	}
	line[n < LINE_OCTETS - 1 ? n : LINE_OCTETS - 1] = '\0';
	*length = n;
	return c != EOF || n > 0;
}

/*
 * Reads one line that is neither blank nor a comment. 1: read, 0: end of the
 * file. Reports what can be no line of such a file, and reads on.
 */
static int
next_entry(FILE *in, const char *file, struct entry *entry)
{
	const char *wrong;
	size_t length;

	while (read_line(in, entry->line, &length)) {
		entry->number++;
		wrong = NULL;
		if (length >= sizeof(entry->line) - 1)
			wrong = "too long";
		else if (strlen(entry->line) != length)
			wrong = "has a NUL";
		entry->line[strcspn(entry->line, "\r")] = '\0';
		if ((*entry->line == '\0' && wrong == NULL) ||
		    *entry->line == '#')
			continue;
		if (wrong == NULL && strchr(entry->line, ':') == NULL)
			wrong = "no \":\"";
		split(entry);
		if (wrong == NULL && !account_name_valid(entry->field[NAME]))
			wrong = "not a valid name";
		if (wrong == NULL)
			return 1;
		log_error(file, "line %lu: %s", entry->number, wrong);
	}
	return 0;
}

/* Whether the SECRET field could ever be proven; says if it is malformed. */
static void
judge_secret(const char *file, const struct entry *entry)
{
	const char *secret = entry->field[SECRET];

	if (*secret == '{' && plain_secret(secret) == NULL &&
	    crypt_setting(secret) == NULL && strpbrk(secret, "!*") == NULL)
		log_error(file, "line %lu: unknown scheme or empty hash",
		    entry->number);
}

/* Copies an entry whose fields point into it. */
static void
copy_entry(struct entry *to, const struct entry *from)
{
	int i;

	*to = *from;
	for (i = 0; i < FIELDS; i++)
		to->field[i] = to->line + (from->field[i] - from->line);
}

/* A hash to spend time on is one that crypt(3) will not refuse at once. */
static bool
costs_time(const char *setting)
{
	return setting != NULL && (*setting == '$' || strlen(setting) == 13);
}

/*
 * Reads all of `in`: the first entry of `name` goes to `own`, and the last
 * hash of the file to `decoy`. Returns whether the name was found.
 */
static bool
look_up(FILE *in, const char *file, const char *name, struct entry *own,
    char *decoy)
{
	struct entry *entry = &scratch.entry;
	const char *setting;
	bool known = false;

	entry->number = 0;
	while (next_entry(in, file, entry)) {
		setting = crypt_setting(entry->field[SECRET]);
		if (costs_time(setting))
			strcpy(decoy, setting);
		if (!known && strcmp(entry->field[NAME], name) == 0) {
			known = true;
			copy_entry(own, entry);
		}
	}
	return known;
}

static enum account_verdict
check_file(const char *file, const struct account_proof *proof,
    struct account *account)
{
	enum account_verdict verdict = ACCOUNT_REFUSED;
	struct entry *own = &scratch.own;
	char *decoy = scratch.decoy;
	bool known, failed;
	FILE *in;

	in = open_accounts(file);
	if (in == NULL)
		return ACCOUNT_TEMP;
	setvbuf(in, scratch.buffer, _IOFBF, sizeof(scratch.buffer));
	strcpy(decoy, DECOY);
	known = look_up(in, file, proof->name, own, decoy);
	failed = ferror(in) != 0;
	fclose(in);
	if (failed) {
		log_error(file, "cannot be read");
		return ACCOUNT_TEMP;
	}
	if (known)
		judge_secret(file, own);
	if (proves(known ? own->field[SECRET] : NULL, decoy, proof))
		verdict = accept_entry(file, own, account);
	return verdict;
}

/* ---- The system's accounts ---- */

#define SECONDS_A_DAY 86400
#define NOLOGIN "/etc/nologin"

/* A hash as costly as the system's own, for names that have none. */
static const char *
system_decoy(void)
{
#ifdef CRYPT_GENSALT_IMPLEMENTS_DEFAULT_PREFIX
	static char setting[CRYPT_GENSALT_OUTPUT_SIZE];

	if (crypt_gensalt_rn(NULL, 0, NULL, 0, setting, sizeof(setting)))
		return setting;
#endif
	return DECOY;
}

/* Why an account is closed today, by its aging (shadow(5)), or NULL. */
static const char *
aging(const struct spwd *shadow)
{
	long today = (long)(time(NULL) / SECONDS_A_DAY);
	long changed = shadow->sp_lstchg, most = shadow->sp_max;

	if (shadow->sp_expire > 0 && today >= shadow->sp_expire)
		return "the account has expired";
	if (changed == 0)
		return "the password must be changed";
	if (changed > 0 && most >= 0 && today - changed > most)
		return "the password has expired";
	return NULL;
}

/* Accepts a user whose secret was right. Why not is for the log alone: it
 * would tell a stranger that the secret is right. */
static enum account_verdict
accept_user(const struct passwd *user, const struct spwd *shadow,
    struct account *account)
{
	const char *wrong = NULL;

	if (user->pw_uid == 0 || user->pw_uid < ACCOUNT_UID_MIN)
		wrong = "a uid that is not served";
	else if (geteuid() != 0 && user->pw_uid != geteuid())
		wrong = "another's account, and we are not root";
	else if (shadow != NULL)
		wrong = aging(shadow);
	if (wrong == NULL && strlen(user->pw_dir) >= sizeof(account->home))
		wrong = "home is too long";
	if (wrong != NULL) {
		log_warning(user->pw_name, "refused: %s", wrong);
		return ACCOUNT_REFUSED;
	}
	if (access(NOLOGIN, F_OK) == 0) {
		log_warning(NOLOGIN, "nobody is let in");
		return ACCOUNT_TEMP;
	}
	strcpy(account->name, user->pw_name);
	strcpy(account->home, *user->pw_dir == '/' ? user->pw_dir : "");
	account->uid = user->pw_uid;
	account->gid = user->pw_gid;
	return ACCOUNT_ACCEPTED;
}

/* Whether a look into a database went wrong, and not just found nothing. */
static bool
look_failed(const void *found, int error)
{
	return found == NULL && error != 0 && error != ENOENT &&
	       error != ESRCH && error != EACCES && error != EINVAL;
}

static enum account_verdict
check_system(
    const struct account_proof *proof, bool valid, struct account *account)
{
	const char *name = valid ? proof->name : ":"; /* which nobody has */
	const struct passwd *user;
	const struct spwd *shadow;
	const char *hash = NULL, *decoy = system_decoy();
	bool failed;

	errno = 0;
	user = getpwnam(name);
	failed = look_failed(user, errno);
	errno = 0;
	shadow = getspnam(name);
	failed |= look_failed(shadow, errno);
	if (shadow != NULL)
		hash = shadow->sp_pwdp;
	else if (user != NULL)
		hash = user->pw_passwd;
	/* "!" and "*" lock an account, and an empty secret lets nobody in. */
	if (hash != NULL && (*hash == '!' || *hash == '*' || *hash == '\0'))
		hash = NULL;
	if (failed) {
		log_error(
		    "accounts", "cannot be looked up: %s", strerror(errno));
		return ACCOUNT_TEMP;
	}
	if (hash != NULL && shadow == NULL && strcmp(hash, "x") == 0) {
		log_error("/etc/shadow", "no entry of this user can be read");
		hash = NULL;
	}
	if (!proves_hash(hash, decoy, proof->secret) || user == NULL ||
	    *proof->secret == '\0' || proof->apop)
		return ACCOUNT_REFUSED;
	return accept_user(user, shadow, account);
}

/* ---- checkpassword ---- */

#define PROGRAM_SECONDS 60
#define PROGRAM_WORDS 32
#define PROGRAM_DATA 512    /* what the interface allows on fd 3 */
#define REPORT_OCTETS 16384 /* four words of PATH_MAX */

enum { DATA_FD = 3, REPORT_FD = 4 };

struct program {
	pid_t pid;
	int report;	  /* where what it runs reports to us */
	struct ucred who; /* it is that reports, by the kernel's word */
	struct timespec until;
	bool ended; /* with */
	int status;
};

int
account_report(void)
{
	static const char *const variables[] = {
	    "HOME", "USER", "MAILDIR", "MAIL"};
	static char report[REPORT_OCTETS];
	const char *value;
	size_t i, length, used = 0;
	struct stat st;

	if (fstat(REPORT_FD, &st) == -1 || !S_ISSOCK(st.st_mode))
		return EX_USAGE;
	for (i = 0; i < sizeof(variables) / sizeof(*variables); i++) {
		value = getenv(variables[i]);
		if (value == NULL)
			value = "";
		length = strlen(value) + 1;
		if (length > PATH_MAX)
			return EX_DATAERR;
		memcpy(report + used, value, length);
		used += length;
	}
	/* One message, and room for it without anybody reading. */
	return write(REPORT_FD, report, used) == (ssize_t)used ? EX_OK
							       : EX_IOERR;
}

/* The path of this program, for another that will run it. */
static const char *
own_path(void)
{
	static char path[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (length < 1)
		return NULL;
	path[length] = '\0';
	return path;
}

/* Closes FIRST and all above it; where the kernel cannot, the two we know. */
static void
close_all_from(unsigned first, int data, int report)
{
#ifdef SYS_close_range
	if (syscall(SYS_close_range, first, ~0U, 0) == 0)
		return;
#endif
	close(data);
	close(report);
}

/* Becomes the program, between fork(2) and exec(3). */
static _Noreturn void
exec_program(char *const *words, int data, int report, pid_t parent)
{
	struct sigaction action = {.sa_handler = SIG_DFL};
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	/* Out of the way of the numbers that they are to have. */
	data = fcntl(data, F_DUPFD, REPORT_FD + 1);
	report = fcntl(report, F_DUPFD, REPORT_FD + 1);
	setpgid(0, 0);
	if (null == -1 || dup2(null, STDIN_FILENO) == -1 ||
	    dup2(null, STDOUT_FILENO) == -1 || dup2(data, DATA_FD) == -1 ||
	    dup2(report, REPORT_FD) == -1 || sandbox_die_with(parent) == -1)
		_exit(EX_OSERR);
	/* Nor is the client to be found under another number. */
	close_all_from(REPORT_FD + 1, data, report);
	sigaction(SIGPIPE, &action, NULL);
	sigaction(SIGXFSZ, &action, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Those of the superserver are not the account's. */
	unsetenv("MAILDIR");
	unsetenv("MAIL");
	execvp(words[0], words);
	_exit(EX_OSERR);
}

static int
start_program(char *const *words, const char *data, size_t length,
    struct program *program)
{
	pid_t parent = getpid();
	int in[2], out[2], on = 1;

	if (pipe2(in, O_CLOEXEC) == -1)
		return -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, out) == -1) {
		close(in[0]);
		close(in[1]);
		return -1;
	}
	program->pid = -1;
	if (setsockopt(out[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) == 0)
		program->pid = fork();
	if (program->pid == 0)
		exec_program(words, in[0], out[1], parent);
	close(in[0]);
	close(out[1]);
	/* So little never makes a pipe wait. */
	if (program->pid != -1 && write(in[1], data, length) != (ssize_t)length)
		log_warning(words[0], "does not read what it is given");
	close(in[1]);
	if (program->pid == -1)
		close(out[0]);
	program->report = out[0];
	clock_gettime(CLOCK_MONOTONIC, &program->until);
	program->until.tv_sec += PROGRAM_SECONDS;
	return program->pid == -1 ? -1 : 0;
}

/* Milliseconds that the program may still take; 0 when its time is over. */
static int
time_left(const struct program *program)
{
	struct timespec now;
	int64_t left;

	clock_gettime(CLOCK_MONOTONIC, &now);
	left = (int64_t)(program->until.tv_sec - now.tv_sec) * 1000 +
	       (program->until.tv_nsec - now.tv_nsec) / 1000000;
	return left > 0 ? (int)left : 0;
}

/* Whether the program has ended. */
static bool
has_ended(struct program *program)
{
	if (!program->ended)
		program->ended = waitpid(program->pid, &program->status,
				     WNOHANG) == program->pid;
	return program->ended;
}

/*
 * Takes the one message. Who sent it is what the kernel says: the user may
 * tamper with the process that reports, and make it name anybody.
 */
static ssize_t
receive_report(struct program *program, char *report, size_t room)
{
	union {
		struct cmsghdr head; /* for its alignment */
		/* cppcheck-suppress unusedStructMember */
		char room[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec part = {.iov_base = report, .iov_len = room};
	struct msghdr message = {.msg_iov = &part,
	    .msg_iovlen = 1,
	    .msg_control = &control,
	    .msg_controllen = sizeof(control)};
	const struct cmsghdr *head = NULL;
	ssize_t n;

	n = recvmsg(program->report, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n > 0 && (message.msg_flags & MSG_TRUNC) == 0)
		head = CMSG_FIRSTHDR(&message);
	if (head == NULL || head->cmsg_level != SOL_SOCKET ||
	    head->cmsg_type != SCM_CREDENTIALS)
		return 0;
	memcpy(&program->who, CMSG_DATA(head), sizeof(program->who));
	return n;
}

/* Reads what is reported, until the program has ended (what it may leave in the
 * background does not count) or its time is over. */
static size_t
read_report(struct program *program, char *report, size_t room)
{
	const int look_milliseconds = 5;
	struct pollfd fd = {.fd = program->report, .events = POLLIN};
	bool ended = false;
	size_t used = 0;
	ssize_t n;

	while (time_left(program) > 0) {
		if (poll(&fd, 1, ended ? 0 : look_milliseconds) == 1) {
			n = receive_report(program, report, room);
			used = n > 0 ? (size_t)n : 0;
			fd.fd = -1; /* no more will come, but it must end */
		}
		if (ended)
			break;
		ended = has_ended(program);
	}
	return used;
}

/* Ends what there still is of the program, and of what it runs. False: it had
 * not ended by itself. */
static bool
end_program(struct program *program)
{
	bool by_itself = has_ended(program);

	kill(-program->pid, SIGKILL);
	while (!program->ended) {
		kill(program->pid, SIGKILL);
		if (waitpid(program->pid, &program->status, 0) == -1 &&
		    errno == EINTR)
			continue;
		program->ended = true;
	}
	return by_itself;
}

/* A path as the program gave it; one that is relative is below the home. */
static void
take_path(char out[PATH_MAX], const char *path, const char *home)
{
	int n = 0;

	if (*path == '/')
		n = snprintf(out, PATH_MAX, "%s", path);
	else if (*path != '\0' && *home != '\0')
		n = snprintf(out, PATH_MAX, "%s/%s", home, path);
	if (n <= 0 || n >= PATH_MAX)
		*out = '\0';
}

/* Makes an account of what was reported. */
static enum account_verdict
take_report(const char *program, const struct ucred *who, char *report,
    size_t length, const char *name, struct account *account)
{
	enum { HOME_WORD, USER_WORD, MAILDIR_WORD, MAIL_WORD, WORDS };
	char *word[WORDS], *p = report, *end = report + length;
	int i;

	for (i = 0; i < WORDS && p < end; i++) {
		word[i] = p;
		p = memchr(p, '\0', (size_t)(end - p));
		if (p == NULL)
			break;
		p++;
	}
	if (i < WORDS || p != end || who->pid == 0) {
		log_error(program, "accepted, but did not run what is to "
				   "follow");
		return ACCOUNT_TEMP;
	}
	/* Not PERM: that would tell a stranger that the secret is right. */
	if (who->uid == 0) {
		log_warning(program, "refused: uid 0 is never served");
		return ACCOUNT_REFUSED;
	}
	account->uid = who->uid;
	account->gid = who->gid;
	strcpy(account->name,
	    account_name_valid(word[USER_WORD]) ? word[USER_WORD] : name);
	take_path(
	    account->home, *word[HOME_WORD] == '/' ? word[HOME_WORD] : "", "");
	take_path(account->maildir, word[MAILDIR_WORD], account->home);
	take_path(account->mail, word[MAIL_WORD], account->home);
	return ACCOUNT_ACCEPTED;
}

/* What the program's end means. */
static enum account_verdict
judge_exit(const char *program, int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return ACCOUNT_ACCEPTED;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 1)
		return ACCOUNT_REFUSED;
	if (WIFEXITED(status))
		log_error(program, "exit status %d", WEXITSTATUS(status));
	else
		log_error(program, "ended by signal %d", WTERMSIG(status));
	return ACCOUNT_TEMP;
}

/* Cuts a command into words at its blanks; 0 if there are none, or too many. */
static unsigned
split_command(char *command, char **words, unsigned room)
{
	unsigned count = 0;
	char *word, *rest = command;

	while ((word = strtok_r(rest, " \t", &rest)) != NULL) {
		if (count == room)
			return 0;
		words[count++] = word;
	}
	return count;
}

static enum account_verdict
check_program(const char *command, const struct account_proof *proof,
    struct account *account)
{
	static char text[PATH_MAX], report[REPORT_OCTETS];
	char data[PROGRAM_DATA + 1], *words[PROGRAM_WORDS + 3];
	enum account_verdict verdict;
	struct program program = {0};
	unsigned count;
	int length;
	size_t reported;

	snprintf(text, sizeof(text), "%s", command);
	count = split_command(text, words, PROGRAM_WORDS);
	words[count] = (char *)own_path();
	words[count + 1] = ACCOUNT_REPORT;
	words[count + 2] = NULL;
	if (count == 0 || words[count] == NULL) {
		log_error("-c", "cannot be run");
		return ACCOUNT_TEMP;
	}
	length = snprintf(data, sizeof(data), "%s%c%s%c%s", proof->name, 0,
	    proof->secret, 0, proof->stamp);
	if (length + 1 > PROGRAM_DATA) {
		explicit_bzero(data, sizeof(data));
		return ACCOUNT_REFUSED;
	}
	if (start_program(words, data, (size_t)length + 1, &program) == -1) {
		log_error(words[0], "not run: %s", strerror(errno));
		explicit_bzero(data, sizeof(data));
		return ACCOUNT_TEMP;
	}
	explicit_bzero(data, sizeof(data));
	reported = read_report(&program, report, sizeof(report));
	close(program.report);
	if (!end_program(&program)) {
		log_error(words[0], "killed after %d seconds", PROGRAM_SECONDS);
		return ACCOUNT_TEMP;
	}
	verdict = judge_exit(words[0], program.status);
	if (verdict == ACCOUNT_ACCEPTED)
		verdict = take_report(words[0], &program.who, report, reported,
		    proof->name, account);
	return verdict;
}

enum account_verdict
account_check(const struct account_source *source,
    const struct account_proof *proof, struct account *account)
{
	bool valid = account_name_valid(proof->name);
	enum account_verdict verdict = ACCOUNT_REFUSED;

	*account->name = *account->home = '\0';
	*account->maildir = *account->mail = '\0';
	if (source->file != NULL) /* it has no others */
		verdict = check_file(source->file, proof, account);
	else if (source->program == NULL)
		verdict = check_system(proof, valid, account);
	else if (valid && *proof->secret != '\0')
		verdict = check_program(source->program, proof, account);
	forget_scratch();
	return verdict;
}

void
account_own(struct account *account)
{
	const char *name = getenv("USER"), *home = getenv("HOME");
	bool named = name != NULL && account_name_valid(name);
	struct passwd *pw = NULL;

	account->uid = getuid();
	account->gid = getgid();
	if (!named || home == NULL || *home != '/')
		pw = getpwuid(account->uid);
	if (!named)
		name = pw != NULL ? pw->pw_name : "";
	if (!account_name_valid(name))
		snprintf(account->name, sizeof(account->name), "%lu",
		    (unsigned long)account->uid);
	else
		strcpy(account->name, name);
	if (home == NULL || *home != '/')
		home = pw != NULL ? pw->pw_dir : "";
	if (strlen(home) >= sizeof(account->home))
		home = "";
	strcpy(account->home, home);
}

bool
account_template_valid(const char *path)
{
	for (; *path != '\0'; path++)
		if (*path == '%' &&
		    (*++path == '\0' || !strchr("undh%", *path)))
			return false;
	return true;
}

/* What stands for an escape; `length` gets its octets. */
static const char *
escape(char letter, const struct account *account, size_t *length)
{
	const char *at = strchr(account->name, '@'), *text = account->name;

	*length = strlen(text);
	switch (letter) {
	case 'n':
		if (at != NULL)
			*length = (size_t)(at - text);
		return text;
	case 'd':
		text = at != NULL ? at + 1 : "";
		break;
	case 'h':
		text = account->home;
		break;
	case '%':
		text = "%";
		break;
	default:
		return text;
	}
	*length = strlen(text);
	return text;
}

int
account_expand(
    const char *path, const struct account *account, char *out, size_t room)
{
	const char *part;
	size_t length;

	for (; *path != '\0'; path++) {
		if (*path == '%') {
			part = escape(*++path, account, &length);
			if (*path == 'h' && length == 0) {
				errno = ENOENT;
				return -1;
			}
		} else {
			part = path;
			length = 1;
		}
		if (length >= room) {
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(out, part, length);
		out += length;
		room -= length;
	}
	*out = '\0';
	return 0;
}
