/*
 * What the program is compared with: mbox, Maildir and the replies of a
 * session as RFC 1939, DESIGN and README have them, written anew, slow and
 * simple, with nothing of the program's own.
 */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <stdbool.h>
#include <stddef.h>

#define MESSAGES_MAX 1000
#define BLOCK 131072 /* octets that the program reads, or sends, at once */

/* Octets that grow; all zero is none. */
struct text {
	char *at;
	size_t length, room;
};
void append(struct text *t, const void *octets, size_t length);

/* The octets of the line at `p`, its LF included if it has one. */
size_t line_length(const char *p, const char *end);

/* A message, and what a client must be told of it. */
struct expected {
	const char
	    *stored;   /* in the mbox, with its From_ line and separator; */
	size_t length; /* or a file */
	size_t sent, octets;  /* where among drop.sent, and how many of them */
	char name[256];	      /* Maildir: of the file */
	bool in_new, doubled; /* in new/; there are two of its base name */
	unsigned long long order; /* Maildir: when delivered */
	char id[72]; /* unique-id, empty until the client has been told */
	bool deleted, found;
};

struct drop {
	struct expected message[MESSAGES_MAX + 1];
	unsigned count;
	size_t kept;	  /* octets before the first message, of a hidden one */
	struct text sent; /* of all messages, with CRLF, before byte-stuffing */
};

/* Takes an mbox apart; false where it is none, or has too many messages. What
 * the ids were, where there is a drop from before, is not known any more. */
bool reference_mbox(struct drop *d, const char *data, size_t size);

/* Whether the message is one that mail readers keep to themselves, if it comes
 * first. `text` begins behind its From_ line. */
bool reference_internal(const char *text, size_t length);

/* Adds a file of a Maildir, with the seconds of its mtime; puts all into the
 * order of their numbers. */
void reference_file(struct drop *d, const char *name, bool in_new,
    unsigned long long seconds, const char *data, size_t length);
void reference_sort(struct drop *d);

/* How a session went, by what the client sent and got. */
struct course {
	bool quit;     /* a QUIT came before the end; */
	bool entered;  /* everything before it was answered; */
	bool ok, none; /* it was answered with +OK, with "nothing removed" */
};

/*
 * Compares what the client got with what it must get: one reply for each
 * command, each line well-formed, each octet of a message. Where not `whole` it
 * may end anywhere. Marks what was deleted, and notes unique-ids.
 */
struct course reference_replies(struct drop *d, const char *in, size_t in_size,
    const char *out, size_t out_size, bool whole);

/* The same where nothing is known of the messages: only the form is. */
void reference_form(
    const char *in, size_t in_size, const char *out, size_t out_size);

/* The same of AUTHORIZATION: how many replies there are, with the greeting. */
unsigned reference_front(const char *out, size_t out_size);

/* Whether the ids that the client was told are no two the same. */
bool reference_unique(const struct drop *d);

#endif
