/*
 * The bytes between us and the client: bounded command lines in, buffered
 * replies out, CRLF and byte-stuffing, and the autologout clock. One client a
 * process, so there is one wire, kept in wire.c.
 */
#ifndef WIRE_H
#define WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_COMMAND_OCTETS 255	 /* RFC 2449 section 4, with its line end */
#define WIRE_REPLY_OCTETS 512	 /* RFC 1939 section 3, with its CRLF */
#define WIRE_ANSWER_OCTETS 12288 /* RFC 4954: to a challenge, with line end */
#define WIRE_LISTED_OCTETS 128	 /* of a line of a listing, behind its number */

enum wire_status {
	WIRE_OK,
	WIRE_TOO_LONG,	/* a command line over WIRE_COMMAND_OCTETS */
	WIRE_FLOOD,	/* a line so long that we hang up */
	WIRE_END,	/* the client sends no more */
	WIRE_GONE,	/* the client, or the process we work for, is gone */
	WIRE_AUTOLOGOUT /* SIGALRM: RFC 1939 section 3 */
};

/* How wire_command() reads. */
enum wire_reading {
	WIRE_BY_OCTET, /* leaves what follows the line in the kernel */
	WIRE_BY_BLOCK
};

/*
 * Sets up the wire on fd 0 and 1 with an empty buffer. `autologout` is in
 * seconds. `watched` is a descriptor whose end means WIRE_GONE, or -1. Blocks
 * SIGALRM (it is let in only while we wait for the client), ignores SIGPIPE,
 * and sets TCP_NODELAY where fd 1 is TCP. May be called again after a fork.
 */
void wire_open(enum wire_reading reading, unsigned autologout, int watched);

/*
 * Calls `idle`, once a wait, when the client has kept us waiting for so many
 * seconds: for a command, or to take the next octets of a reply. 0 is never.
 */
void wire_grace(unsigned seconds, void (*idle)(void));

/*
 * The next command line, without its CRLF or LF, NUL-terminated, its length
 * stored in `length` (a NUL in the line shows as strlen() != length). It is
 * ours and lasts until the next call. Sends what is buffered before it waits.
 * What comes after the last line end is never a command. On WIRE_TOO_LONG the
 * whole line has been read and forgotten.
 */
enum wire_status wire_command(char **line, size_t *length);

/* The same for the answer to a challenge (RFC 5034), which may be longer: up to
 * WIRE_ANSWER_OCTETS. */
enum wire_status wire_answer(char **line, size_t *length);

/* Whether we have waited for the client or read from it since the last call. */
bool wire_waited(void);

/* Wipes the input that is done with: it may hold a password. */
void wire_wipe(void);

/*
 * Queues a reply line: "+OK" or "-ERR" and the text of a printf(3) format,
 * cut so that the line with its CRLF fits WIRE_REPLY_OCTETS.
 */
void wire_ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void wire_err(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Queues octets of a multi-line reply as they are, line ends included. */
void wire_text(const char *text, size_t length);

/* Queues an unsigned number in decimal digits. */
void wire_number(uint64_t number);

/*
 * A line of a listing (RFC 1939, LIST and UIDL). wire_listed() queues the
 * number of the message and a space, and returns where the caller writes up to
 * WIRE_LISTED_OCTETS octets; wire_listed_end() takes where they end, and queues
 * CRLF. Nothing else is queued in between.
 */
char *wire_listed(uint64_t number);
void wire_listed_end(char *end);

/* The same for a number of octets. */
void wire_listed_number(uint64_t number, uint64_t octets);

/*
 * A message as the body of a multi-line reply: begin, any number of pieces as
 * stored, end. Line ends become CRLF, lines that begin with "." are stuffed, a
 * last line without an end gets one, and the "." line follows. Returns 0, or
 * -1 once the client is gone (`unused` makes it fit as a sink).
 */
void wire_message_begin(void);
int wire_message(void *unused, const char *data, size_t length);
void wire_message_end(void);

/* Ends a multi-line reply that is no message: the "." line. */
void wire_dot(void);

/* Sends all that is queued. WIRE_OK, WIRE_GONE or WIRE_AUTOLOGOUT. */
enum wire_status wire_flush(void);

/*
 * Whether all that was queued has left us and nothing says that the client
 * is gone: flushes, looks for an error or hang-up on fd 1 and for a SIGALRM
 * that waits. Only after WIRE_OK may UPDATE be entered.
 */
enum wire_status wire_settled(void);

/* Waits up to `milliseconds` (-1: no bound) for input or the end of `fd`, for
 * a hang-up of the client if `client`, or SIGALRM. WIRE_OK: fd is readable.
 * WIRE_END: the time is over. */
enum wire_status wire_await(int fd, bool client, int milliseconds);

/*
 * Sends what is queued and ends the connection. What the client has sent and
 * nobody has read would make the system reset it, and the last reply might
 * never be seen: so that is read, for a bounded time.
 */
void wire_close(void);

/* Octets sent to the client so far. */
uint64_t wire_sent(void);

#endif
