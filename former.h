/*
 * The unique-ids that the POP3 server before us gave: a client that knows them
 * must not download everything again. They are looked for once, where a
 * maildrop has no state file yet, and from then on stand there.
 */
#ifndef FORMER_H
#define FORMER_H

#include <sys/types.h>

#include "maildrop.h"

/*
 * Gives the rows of a Maildir, whose directory `root` is, the ids of
 * Dovecot's dovecot-uidlist or else of Courier's courierpop3dsizelist, as
 * md->site->former has it. Rows that these do not name keep their own.
 */
void former_maildir(struct maildrop *md, int root);

/*
 * The same for an mbox, open at `fd`, whose last message ends at `end`: ids of
 * Dovecot or UW-imapd, where X-IMAPbase and X-UID stand in the file, or those
 * of popa3d.
 */
void former_mbox(struct maildrop *md, int fd, off_t end);

#endif
