/* A name and a proof in, an account out. */
#ifndef ACCOUNT_H
#define ACCOUNT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define ACCOUNT_NAME_OCTETS 255
#ifndef ACCOUNT_UID_MIN
#define ACCOUNT_UID_MIN 500 /* of the system's accounts; 0 is never served */
#endif

struct account {
	char name[ACCOUNT_NAME_OCTETS + 1];
	char home[PATH_MAX]; /* empty if unknown */
	uid_t uid;
	gid_t gid;
	/* Paths that a checkpassword program gives as $MAILDIR and $MAIL;
	 * empty if it does not. */
	char maildir[PATH_MAX], mail[PATH_MAX];
};

/* Where accounts come from: the first that is not NULL, or the system's. */
struct account_source {
	const char *file;    /* in passwd-file format */
	const char *program; /* checkpassword, with arguments */
};

/* What a client proves itself with. */
struct account_proof {
	const char *name;
	const char *secret; /* or, with APOP, the digest that it sent */
	const char *stamp;  /* the timestamp of the greeting */
	bool apop;	    /* RFC 1939 section 7 */
};

enum account_verdict {
	ACCOUNT_ACCEPTED,
	ACCOUNT_REFUSED, /* unknown name or wrong proof; nobody learns which */
	ACCOUNT_TEMP,	 /* could not be found out now */
	ACCOUNT_PERM	 /* the proof is right, but the account is unusable */
};

/*
 * Whether a login name may be looked up at all: 1..255 octets without "/" or
 * control characters, and neither the name nor its domain begins with "." (a
 * template must not be led out of its directory).
 */
bool account_name_valid(const char *name);

/*
 * Decides on a login, and fills `account` where it accepts. Says in the log
 * what is wrong with an account or with where it comes from, and is silent
 * about a wrong secret.
 *
 * A file is in passwd-file format (name:{SCHEME}hash:uid:gid:gecos:home:shell:
 * extra, as Dovecot reads it): {PLAIN}, {CLEARTEXT}, {CRYPT} and crypt(3)'s own
 * schemes; without a scheme crypt(3)'s. Empty ids are our own, unless we are
 * root. APOP wants {PLAIN}.
 *
 * The system's accounts are those of getpwnam(3) and getspnam(3) with a uid of
 * at least ACCOUNT_UID_MIN, neither locked nor expired, and nobody's while
 * /etc/nologin stands there. The shell is not looked at.
 *
 * For these two one crypt(3) is spent, whether the name is known or not.
 *
 * A checkpassword program gets name, secret and timestamp on fd 3 and runs this
 * program in the mode of account_report() (see cr.yp.to/checkpwd/interface).
 * What it exits with decides: 0, 1 (refused), anything else (TEMP); after 60
 * seconds it is killed.
 */
enum account_verdict account_check(const struct account_source *source,
    const struct account_proof *proof, struct account *account);

/* What a checkpassword program is told to run after it: main() with this one
 * argument does account_report(), which sends HOME, USER, MAILDIR and MAIL on
 * fd 4, where the kernel adds who it is run as, and returns an exit status. */
#define ACCOUNT_REPORT "--report-account"
int account_report(void);

/*
 * The invoking user's own account, for a session that needs no login: ids of
 * the process; name from $USER, or the system's accounts, or else the uid in
 * digits; home from $HOME or the system's accounts, or else unknown.
 */
void account_own(struct account *account);

/* Whether a template has only the escapes that account_expand() knows. */
bool account_template_valid(const char *path);

/*
 * Expands %u (name), %n (its local part), %d (its domain), %h (home) and %%
 * into `out` of `room` octets. Returns 0, or -1 with errno: ENAMETOOLONG, or
 * ENOENT where the home is needed and not known.
 */
int account_expand(
    const char *path, const struct account *account, char *out, size_t room);

#endif
