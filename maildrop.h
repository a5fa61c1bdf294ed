/*
 * The maildrop as a session sees it (RFC 1939), whatever its format: a table
 * of messages, numbered from 1, with exact octets and unique-ids; marks; and
 * the UPDATE that removes what is marked. mbox.c and maildir.c stand behind
 * it as a `struct maildrop_format` each; a third format needs no more.
 */
#ifndef MAILDROP_H
#define MAILDROP_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "digest.h"
#include "sandbox.h"

#define MAILDROP_UID_OCTETS 70	     /* RFC 1939 section 7, UIDL */
#define MAILDROP_BLOCK_OCTETS 131072 /* what is read at once */
#define MAILDROP_ALL_LINES UINT64_MAX
#define MAILDROP_PLACES_MAX 4

/* What a row can hold: 16 TiB, and a million copies of one message (further
 * ones share an id, as RFC 1939 allows). */
#define MESSAGE_OCTETS_MAX ((UINT64_C(1) << 44) - 1)
#define MESSAGE_COPY_MAX ((UINT64_C(1) << 20) - 1)

_Static_assert(
    sizeof(off_t) >= sizeof(int64_t) && sizeof(time_t) >= sizeof(int64_t),
    "a 32-bit build needs _FILE_OFFSET_BITS=64 and _TIME_BITS=64");

enum maildrop_result {
	MAILDROP_OK,
	MAILDROP_IN_USE,   /* another session has it: [IN-USE] */
	MAILDROP_TEMP,	   /* may work later: [SYS/TEMP] */
	MAILDROP_PERM,	   /* somebody must mend something: [SYS/PERM] */
	MAILDROP_VANISHED, /* this one message is not there any more */
	MAILDROP_STOPPED   /* the sink wants no more */
};

enum message_flag {
	MESSAGE_DELETED = 1,	/* marked by DELE */
	MESSAGE_VANISHED = 2,	/* removed by somebody else */
	MESSAGE_DIGEST = 4,	/* unique-id is a digest and `copy` */
	MESSAGE_IN_NEW = 8,	/* Maildir: in new/, not cur/ */
	MESSAGE_AMBIGUOUS = 16, /* Maildir: others have its base name */
	MESSAGE_LINKED = 32,	/* Maildir: its file has two names */
	MESSAGE_MISSED = 64,	/* not found again where others changed it */
	MESSAGE_SEVERAL = 128,	/* Maildir: seen there more than once */
	MESSAGE_GAP_LF = 256,	/* mbox: an empty line, LF, separates it */
	MESSAGE_GAP_CRLF = 512, /* mbox: the same, CRLF */
	MESSAGE_CHANGED = 1024, /* others changed its octets */
	MESSAGE_UNBOUNDED =
	    2048,	      /* mbox: a stranger follows; its end is unsure */
	MESSAGE_TAKEN = 4096, /* unique-id is that of the server before us */
	MESSAGE_KNOWN = 8192, /* Maildir: measured by an earlier session */
	MESSAGE_REMOVED = 16384 /* UPDATE has removed it */
};
#define MESSAGE_FLAGS 0xfffffU /* all that fit; keeps -Wconversion content */

/* Those that a state file keeps, by these numbers. */
#define MESSAGE_LASTING                                          \
	(MESSAGE_DIGEST | MESSAGE_IN_NEW | MESSAGE_AMBIGUOUS |   \
	    MESSAGE_LINKED | MESSAGE_GAP_LF | MESSAGE_GAP_CRLF | \
	    MESSAGE_CHANGED | MESSAGE_TAKEN)

/* One row of the table: 32 octets, since there may be a million. */
struct message {
	uint64_t octets : 44; /* what RETR sends before byte-stuffing */
	uint64_t copy : 20;   /* 1 for the first message of a digest, 2, ... */
	uint64_t place : 44;  /* mbox: offset of its From_ line in the file;
				 Maildir: offset of its name in the names */
	uint64_t flags : 20;  /* enum message_flag */
	union {
		unsigned char digest[DIGEST_OCTETS];
		uint64_t size;	/* Maildir: octets as stored */
		uint64_t order; /* Maildir, while scanning: when delivered */
	} of;
};

struct message_table {
	struct message *row; /* row[n - 1] is message n */
	uint32_t *id; /* where in the texts a row's unique-id stands, 0 if
			 nowhere; NULL where no row has one */
	unsigned count;
	unsigned room;
};

/* Where the octets of a message are stored. */
struct stored {
	int fd;
	off_t start;
	uint64_t length;
	bool close; /* fd is to be closed after use */
};

struct maildrop_tally {
	unsigned removed;
	unsigned failed; /* marked, but not removed */
	unsigned left;
	bool unfinished; /* removal has begun, and is not complete or durable */
};

/* The server before us, whose unique-ids are kept. */
enum former {
	FORMER_AUTO, /* who has left ids in files of its own */
	FORMER_DOVECOT,
	FORMER_COURIER,
	FORMER_POPA3D,
	FORMER_NONE
};

/* What the session knows of the place where maildrops are. */
struct maildrop_site {
	const char *side;   /* a directory for state and journal of an mbox that
			       stands in a spool, or NULL */
	enum former former; /* whose unique-ids to take over */
	void (*group)(bool on); /* takes on the spool's group, or puts it off */
};

/* What tells one state of a maildrop from another, as the format has it, and
 * when that was last made sure of. */
#define IDENTITY_NUMBERS 8
struct identity {
	uint64_t number[IDENTITY_NUMBERS];
	struct timespec sure;
};

struct maildrop;

/* What a format does; see the functions of a session below. */
struct maildrop_format {
	const char *name;
	/* Sets md->state as well. */
	enum maildrop_result (*open)(struct maildrop *md);
	enum maildrop_result (*scan)(struct maildrop *md);
	enum maildrop_result (*find)(
	    struct maildrop *md, struct message *m, struct stored *where);
	/* Whether what was sent from there was the message; may be NULL. */
	enum maildrop_result (*sent)(
	    struct maildrop *md, const struct message *m);
	enum maildrop_result (*update)(
	    struct maildrop *md, struct maildrop_tally *tally);
	/* Whether nothing but deliveries has happened since. */
	bool (*undisturbed)(struct maildrop *md);
	/* Names the places that it needs; see maildrop_places(). */
	unsigned (*places)(struct maildrop *md,
	    struct sandbox_place place[MAILDROP_PLACES_MAX]);
	void (*close)(struct maildrop *md);
	bool named; /* `place` is that of a name in the texts */
};

extern const struct maildrop_format mbox_format, maildir_format;

struct maildrop {
	const struct maildrop_format *format; /* NULL: empty, nothing there */
	const struct maildrop_site *site;
	char *path;
	bool shared; /* it needs the spool's group */
	struct message_table table;
	struct identity identity; /* of what the table shows */
	unsigned count;		  /* messages not marked */
	uint64_t octets;	  /* of those */
	bool numbered;		  /* `copy` is known of all rows */
	bool waited;   /* the session has waited for its client since `sent` has
			  looked; others may have changed what is there */
	char *block;   /* MAILDROP_BLOCK_OCTETS, while something is read */
	off_t held_at; /* where in the file those octets of it stand that */
	size_t held;   /* `find` has read: so many */

	/* Names and unique-ids, each with its NUL. */
	struct {
		char *octets;
		size_t used, room;
	} text;

	/* The state file. */
	char *state;		     /* its path, NULL without a place for it */
	int lock;		     /* it, locked, or -1 */
	bool yielded;		     /* the lock is let go of for a while */
	bool unwritten;		     /* the log says that it could not be */
	bool remembered;	     /* it said something, namely: */
	struct message_table before; /* until the scan has used it */
	struct identity known;
};

/* A sink takes octets as stored; it returns 0, or -1 to want no more. */
typedef int maildrop_sink(void *context, const char *data, size_t length);

/* Takes a format's prefix, "maildir:" or "mbox:", off `*path`; returns the
 * format, or NULL where there is no prefix. */
const struct maildrop_format *maildrop_stated_format(const char **path);

/*
 * Opens the maildrop at `path`, which may begin with "maildir:" or "mbox:";
 * otherwise a directory is a Maildir and anything else an mbox. Looks at owner
 * and form and takes the session lock, but does not scan. `site` is kept by
 * reference. A path where
 * nothing exists is MAILDROP_VANISHED. On any result but MAILDROP_OK nothing
 * is kept, and the log has the reason.
 */
enum maildrop_result maildrop_open(
    struct maildrop *md, const char *path, const struct maildrop_site *site);

/* Makes `md` a maildrop without messages, for a user who has none. */
void maildrop_open_empty(struct maildrop *md);

/* Names the places in the file system that an open maildrop needs, for a cage,
 * and makes what could not be made in there; returns how many. They are the
 * maildrop's, and last as long as it. */
unsigned maildrop_places(
    struct maildrop *md, struct sandbox_place place[MAILDROP_PLACES_MAX]);

/*
 * Fills the table: octets of every message, noted for the whole session
 * (RFC 1939 section 4). What the state file says and still holds is not read
 * again; what was found out goes there at once. After a failure only
 * maildrop_close() may follow.
 */
enum maildrop_result maildrop_scan(struct maildrop *md);

/*
 * Lets go of the session lock while the client keeps us waiting, and takes it
 * back. After maildrop_yield() nothing but maildrop_resume() or
 * maildrop_close() may touch the maildrop. False: another session has it, or
 * has had it and changed something; then there may be no UPDATE.
 */
void maildrop_yield(struct maildrop *md);
bool maildrop_resume(struct maildrop *md);

/* Writes the unique-id of message `n` and a NUL to `id`, and stores where that
 * NUL stands. */
enum maildrop_result maildrop_unique_id(struct maildrop *md, unsigned n,
    char id[MAILDROP_UID_OCTETS + 1], char **end);

/*
 * Finds message `n`, so that what can go wrong does so before a reply begins.
 * On MAILDROP_OK `where` is to be given to maildrop_send().
 */
enum maildrop_result
maildrop_find(struct maildrop *md, unsigned n, struct stored *where);

/*
 * Gives the octets of a found message, as stored, to `sink`: header, empty
 * line and the first `lines` lines of the body, or with MAILDROP_ALL_LINES
 * everything. MAILDROP_OK, MAILDROP_STOPPED, or MAILDROP_TEMP where the
 * message could not be read to its end or somebody changed it meanwhile. Closes
 * what was found.
 */
enum maildrop_result maildrop_send(struct maildrop *md, unsigned n,
    struct stored *where, uint64_t lines, maildrop_sink *sink, void *context);

/* Marks message `n` deleted, which it is not yet; unmarks all. */
void maildrop_mark(struct maildrop *md, unsigned n);
void maildrop_reset(struct maildrop *md);

/*
 * UPDATE: removes the marked messages, durably, and no others. MAILDROP_OK
 * only if all of them are gone. `tally` is filled in any case.
 */
enum maildrop_result
maildrop_update(struct maildrop *md, struct maildrop_tally *tally);

/* Gives up locks, descriptors and memory. */
void maildrop_close(struct maildrop *md);

/* ---- For the formats ---- */

/* Appends a zeroed row; NULL when there is no memory. */
struct message *message_add(struct message_table *table);

/* Keeps octets among the texts: where they stand, never 0, or -1 when there is
 * no memory. */
int64_t text_add(struct maildrop *md, const void *octets, size_t length);

/* Gives row `n` (from 0) the unique-id that stands there in the texts: 0, or
 * -1 when there is no memory. */
int message_set_id(struct message_table *table, unsigned n, int64_t text);

/* The unique-id that row `n` (from 0) has in the texts; NULL if none. */
const char *message_id(
    const struct maildrop *md, const struct message_table *table, unsigned n);

/* Whether an id is one that RFC 1939 section 7 allows. */
bool message_id_valid(const char *id, size_t length);

/* Frees the rows of a table. */
void message_free(struct message_table *table);

/* Closes the gaps in the table that rows with one of `flags` leave. */
void message_drop(struct message_table *table, unsigned flags);

/*
 * Hands on to each row what the state file said of the same message (see
 * maildrop.before): the number among its copies and a unique-id; unless
 * `inherits`, which may hand on more, says no. The same are those that
 * `compare` finds equal, in their order. MAILDROP_OK or MAILDROP_TEMP.
 */
enum maildrop_result message_inherit(struct maildrop *md,
    int (*compare)(const struct message *, const struct message *),
    bool (*inherits)(struct message *to, const struct message *from));

/* Makes the table that of the state file, and the other way round. */
void message_swap(struct maildrop *md);

/* Puts what the table says into the state file. That may fail: no reply depends
 * on it. */
void maildrop_remember(struct maildrop *md);

/* Whether a time is so near to when something was looked at that a change
 * within the same tick of the clock would not show. */
bool time_unsure(time_t changed, const struct timespec *looked);

/* Orders the names of Maildir files by their base names. */
int compare_bases(const char *a, const char *b);

/*
 * The rows in the order that `compare` gives (as qsort(3) asks of it), equal
 * ones as they stand: an array of table->count indices, from 0, that the
 * caller frees. NULL when there is no memory.
 */
uint32_t *message_order(const struct message_table *table,
    int (*compare)(const struct message *, const struct message *));

/* The result, after a line in the log, for a failed system call on `path`. */
enum maildrop_result maildrop_failed(const char *path, const char *what);

/* pread(2) that is not cut short by signals: the octets read (less than
 * `length` only at the end of the file), or -1 with errno. */
ssize_t read_at(int fd, char *to, size_t length, off_t at);

/* pwrite(2) of all of it: 0, or -1 with errno. */
int write_at(int fd, const char *from, size_t length, off_t at);

/* Names the directory that `path` is in: 0, or -1 with errno ENAMETOOLONG. */
int directory_of(const char *path, char directory[PATH_MAX]);

/* stat(2) of the directory that `path` is in. */
int stat_directory(const char *path, struct stat *st);

/* fsync(2) of a file, and of the directory that `path` is in, and
 * ftruncate(2), none cut short by signals: 0, or -1 with errno. */
int sync_file(int fd);
int cut_file(int fd, off_t size);
int sync_directory(const char *path);

/* Names the file next to `path` that is called `prefix` NAME `suffix`.
 * Returns 0, or -1 with errno ENAMETOOLONG. */
int path_beside(const char *path, const char *prefix, const char *suffix,
    char *out, size_t room);
/* The same, as a string to be freed, or NULL with errno. */
char *named_beside(const char *path, const char *prefix, const char *suffix);

/*
 * Measures one message from its stored octets: what RETR will send of it, and
 * the digest that recognises it (DESIGN: From_ line, the header lines that no
 * mail reader rewrites, the octet count of the body).
 */
struct meter {
	uint64_t octets;      /* with line ends as CRLF */
	uint64_t body_octets; /* of these after the empty line */
	struct digest digest;
	char field[16]; /* the beginning of a header line */
	unsigned char field_length;
	enum meter_state {
		METER_LINE,    /* at the start of a header line */
		METER_NAME,    /* in the name of a header field */
		METER_TAKEN,   /* in a header line that is digested */
		METER_SKIPPED, /* in one that is not */
		METER_BODY
	} state;
	bool skipping; /* the present field, for its continuation lines */
	bool with_digest;
	char last; /* octet, 0 before the first */
};

/* `with_digest` false saves its cost where only octets are asked for. */
void meter_start(struct meter *m, bool with_digest);
void meter_add(struct meter *m, const char *data, size_t length);
/* The same, where it is known how many of its line ends are LF without CR. */
void meter_add_counted(
    struct meter *m, const char *data, size_t length, size_t bare);
/* Leaves out an empty line that was added last and belongs to a separator. */
void meter_drop_empty_line(struct meter *m);

/*
 * The place of the first line that begins with "Fr" in `length` octets, of
 * which `last` is the one before; `length` if there is none. Adds to `bare` the
 * line ends before that place that are LF without CR.
 */
size_t find_from(const char *data, size_t length, char last, size_t *bare);
/* Ends: stores octets, and the digest if asked for, in `row`. Returns -1
 * where a row cannot hold the octets. */
int meter_end(struct meter *m, struct message *row);

#endif
