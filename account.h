/* A name and a proof in, an account out. */
#ifndef ACCOUNT_H
#define ACCOUNT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define ACCOUNT_NAME_OCTETS 255

struct account {
	char name[ACCOUNT_NAME_OCTETS + 1];
	char home[PATH_MAX]; /* empty if unknown */
	uid_t uid;
	gid_t gid;
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
 * Looks `name` up in a file in passwd-file format
 * (name:{SCHEME}hash:uid:gid:gecos:home:shell:extra, as Dovecot reads it) and
 * compares `secret`. {PLAIN}, {CLEARTEXT}, {CRYPT} and crypt(3)'s own
 * schemes; without a scheme crypt(3)'s. Always reads the whole file and spends
 * one crypt(3), whether the name is known or not. Empty ids are our own,
 * unless we are root. Says in the log what is wrong with file or line, and is
 * silent about a wrong secret. Fills `account` where it accepts.
 */
enum account_verdict account_check(const char *file, const char *name,
    const char *secret, struct account *account);

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
