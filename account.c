/* Accounts; see account.h. */
#include "account.h"

#include <crypt.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

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

/* Spends one crypt(3), whatever `stored` is, and compares. */
static bool
proves(const char *stored, const char *decoy, const char *secret)
{
	static struct crypt_data work;
	const char *setting = NULL, *plain = NULL, *hash;
	bool proven;

	if (stored != NULL) {
		plain = plain_secret(stored);
		setting = plain != NULL ? NULL : crypt_setting(stored);
	}
	hash = crypt_r(secret, setting != NULL ? setting : decoy, &work);
	if (plain != NULL)
		proven = *plain != '\0' && same_text(plain, secret);
	else
		proven = setting != NULL && hash != NULL && *hash != '*' &&
			 same_text(setting, hash);
	explicit_bzero(&work, sizeof(work));
	return proven;
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
accept(const char *file, const struct entry *entry, struct account *account)
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

/*
 * Reads one line that is neither blank nor a comment. 1: read, 0: end of the
 * file. Reports what can be no line of such a file, and reads on.
 */
static int
next_entry(FILE *in, const char *file, struct entry *entry)
{
	const char *wrong;
	size_t length;
	int c;

	while (fgets(entry->line, sizeof(entry->line), in) != NULL) {
		entry->number++;
		wrong = NULL;
		length = strlen(entry->line);
		if (length == sizeof(entry->line) - 1 &&
		    entry->line[length - 1] != '\n') {
			wrong = "too long";
			while ((c = getc(in)) != EOF && c != '\n')
				continue;
		}
		entry->line[strcspn(entry->line, "\r\n")] = '\0';
		if (*entry->line == '\0' || *entry->line == '#')
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
	static struct entry entry;
	const char *setting;
	bool known = false;

	entry.number = 0;
	while (next_entry(in, file, &entry)) {
		setting = crypt_setting(entry.field[SECRET]);
		if (costs_time(setting))
			strcpy(decoy, setting);
		if (!known && strcmp(entry.field[NAME], name) == 0) {
			known = true;
			copy_entry(own, &entry);
		}
	}
	explicit_bzero(&entry, sizeof(entry));
	return known;
}

enum account_verdict
account_check(const char *file, const char *name, const char *secret,
    struct account *account)
{
	static struct entry own;
	static char buffer[BUFSIZ], decoy[LINE_OCTETS];
	enum account_verdict verdict = ACCOUNT_REFUSED;
	bool known, failed;
	FILE *in;

	in = open_accounts(file);
	if (in == NULL)
		return ACCOUNT_TEMP;
	setvbuf(in, buffer, _IOFBF, sizeof(buffer));
	strcpy(decoy, DECOY);
	known = look_up(in, file, name, &own, decoy);
	failed = ferror(in) != 0;
	fclose(in);
	if (failed) {
		log_error(file, "cannot be read");
		verdict = ACCOUNT_TEMP;
	} else {
		if (known)
			judge_secret(file, &own);
		if (proves(known ? own.field[SECRET] : NULL, decoy, secret))
			verdict = accept(file, &own, account);
	}
	explicit_bzero(&own, sizeof(own));
	explicit_bzero(buffer, sizeof(buffer));
	explicit_bzero(decoy, sizeof(decoy));
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
