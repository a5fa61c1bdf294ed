/*
 * The state file of a maildrop. So far it is the session lock (RFC 1939
 * section 4): an fcntl(2) write lock on the whole file, held against other
 * POP3 sessions only. It works over NFS, ends with the process, and never
 * keeps a delivery waiting.
 */
#ifndef STATE_H
#define STATE_H

#include <sys/stat.h>

/* Why a file at a path of ours (of a state file or a journal) cannot be one
 * that we made; NULL if it can. */
const char *state_unfit(const struct stat *st);

enum state_lock {
	STATE_LOCKED,
	STATE_HELD,    /* another session has the maildrop */
	STATE_UNLOCKED /* there is no place for a lock; the log says why */
};

/*
 * Opens the state file at `path`, making it (mode 0600) where it is missing,
 * and locks it without waiting. Only a regular file of ours with one link is
 * used. With STATE_LOCKED `*fd` is its descriptor, which the caller keeps and
 * never duplicates: closing any descriptor of the file gives the lock up.
 */
enum state_lock state_lock(const char *path, int *fd);

#endif
