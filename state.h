/*
 * The state file of a maildrop: the session lock (RFC 1939 section 4), and
 * what a session found out, so that the next one need not: the octets and the
 * unique-id of every message. No reply depends on it.
 *
 * The lock is an fcntl(2) write lock on the whole file, held against other
 * POP3 sessions only. It works over NFS, ends with the process, and never
 * keeps a delivery waiting.
 */
#ifndef STATE_H
#define STATE_H

#include <stdbool.h>
#include <sys/stat.h>

#include "maildrop.h"

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

/* Lets go of the lock; and takes it back: false if another session has it, or
 * if another file stands at the path, since then one has written there. */
void state_unlock(int fd);
bool state_relock(const char *path, int fd);

/*
 * Reads the file that md->lock is, for md->format: stores its table in
 * md->before, what it knew the maildrop by in md->known, and sets
 * md->remembered. What is not wholly as we write it is not believed: then
 * nothing is set, and the log says so unless the file is empty. MAILDROP_TEMP
 * where it could not be read at all: what it knows must not be lost for that.
 */
enum maildrop_result state_read(struct maildrop *md);

/*
 * Writes md->table and md->identity to a new file, which takes the place of
 * the old one and is locked before it does; md->lock is then that one. An
 * error is logged, and leaves the old file.
 */
void state_write(struct maildrop *md);

/* Notes that the maildrop is as the file says at md->identity.sure. */
void state_confirm(const struct maildrop *md);

#endif
