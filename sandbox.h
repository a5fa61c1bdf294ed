/* Dropping privileges. */
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

#endif
