/*
 * Dropping privileges, and the cages around what strangers talk to and around
 * what handles mail. Built with -DNO_CAGE (make CAGE=0) the cages are none.
 */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Becomes `uid` and `gid` for good, without supplementary groups, and makes
 * sure that there is no way back. `kept`, if it is not `gid`, is a group that
 * sandbox_group() may take on later. Where we are not root there is nothing to
 * drop: `uid` and `gid` must be our own. Returns 0, or -1 with errno (EPERM:
 * the ids are not ours, or are root's); after -1 the caller must end.
 */
int sandbox_become(uid_t uid, gid_t gid, gid_t kept);

/* Takes on the kept group as effective group, or puts it off again. Without
 * one it does nothing. */
void sandbox_group(bool on);

/* Gives the kept group up for good. Returns 0, or -1 with errno. */
int sandbox_forget_group(void);

/*
 * For a child that must not outlive its parent: asks the system for SIGKILL
 * when the parent ends. To be called after the change of user, which undoes
 * it. Returns 0, or -1 if the parent is not `parent` any more.
 */
int sandbox_die_with(pid_t parent);

/*
 * For the front, before it changes its user: makes an empty directory, that is
 * not there any more, its root. For root only. Returns 0, or -1 with errno.
 */
int sandbox_empty_root(void);

/* Where a session has something to do. */
enum sandbox_access {
	SANDBOX_TREE, /* everything below a directory */
	SANDBOX_FILE, /* the content of one file */
	SANDBOX_NAMES /* making, linking and removing names in a directory */
};
struct sandbox_place {
	const char *path;
	enum sandbox_access access;
};

/*
 * The cages, for the rest of the process's life: no core dumps, no new
 * privileges, seccomp with a list of what it may do (anything else is EPERM;
 * exec, ptrace and new sockets kill), and limits. The session's also has
 * Landlock, which leaves it nothing of the file system but `places`. What the
 * kernel does not have is left out, with a line in the log at debug level.
 */
void sandbox_cage_front(void);
void sandbox_cage_session(const struct sandbox_place *places, unsigned count);

#endif
