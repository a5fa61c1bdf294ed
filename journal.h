/*
 * The mbox rewrite that survives a stop: kept octets move down over a hole,
 * from front to back, under a journal from which whoever opens the maildrop
 * next finishes what was begun. The file format is told in journal.c.
 */
#ifndef JOURNAL_H
#define JOURNAL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Moved at once, at most: two slots of it, their headers, the dotlock and what
 * the file system takes for their names fit into 16 MiB. */
#define JOURNAL_STEP_OCTETS ((8U << 20) - (64U << 10))

struct journal {
	const char *path;      /* of the journal */
	const char *mbox_path; /* for the log */
	int mbox;	     /* the locked mbox, open for reading and writing */
	char *block;	     /* block_octets for our use */
	size_t block_octets; /* a multiple of 4096 */
	void (*refresh)(void); /* called often: keeps the delivery locks */

	/* journal.c's own: */
	int fd;
	uint64_t room;	 /* data octets of a slot */
	uint64_t step;	 /* number of the next record */
	off_t to;	 /* where the next octets go */
	size_t held;	 /* gathered in the present slot, not yet moved */
	off_t run_start; /* the last run among these, in the mbox: its start */
	off_t run_end;	 /* and its end */
	bool begun;	 /* the mbox may have been changed */
};

enum journal_result {
	JOURNAL_OK,
	JOURNAL_UNTOUCHED, /* failed; the mbox is as it was, the journal gone */
	JOURNAL_UNFINISHED /* failed; the journal stays for the next session */
};

/*
 * All three are called under the delivery locks with signals blocked, the
 * fields above filled in; on failure the log has the reason and there is
 * nothing more to call.
 *
 * journal_begin() makes the journal for a hole at `hole` over which `moving`
 * octets will come down. journal_keep() keeps the octets [from, end), which
 * lie behind all kept before. journal_finish() cuts the file behind what was
 * kept and removes the journal; with JOURNAL_OK all is on the disk.
 */
enum journal_result
journal_begin(struct journal *j, off_t hole, uint64_t moving);
enum journal_result journal_keep(struct journal *j, off_t from, off_t end);
enum journal_result journal_finish(struct journal *j);

/*
 * Finishes what a journal at j->path tells was begun, if there is one. What
 * does not fit the mbox is renamed aside and never applied. JOURNAL_OK: there
 * is no journal any more. JOURNAL_UNFINISHED: there still is; the mbox must
 * not be used.
 */
enum journal_result journal_recover(struct journal *j);

#endif
