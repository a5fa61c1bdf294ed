/* Bytes in and out; see wire.h. */
#ifndef __LP64__
/* With it glibc 2.36 takes our 64-bit times for such of 32 bits in ppoll(2). */
#undef _FORTIFY_SOURCE
#endif
#include "wire.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CLIENT_IN STDIN_FILENO
#define CLIENT_OUT STDOUT_FILENO
#define IN_OCTETS 16384
#define OUT_OCTETS 131072
#define PIECE_OCTETS 32768 /* of a listing, sent at once */
#define FLOOD_OCTETS 4096  /* a line before login that ends the session, */
#define ANSWER_FLOOD_OCTETS 16384 /* an answer to a challenge that does */
#define MORE_OCTETS 3		  /* that a line may get: ".", CR and LF */
#define NUMBER_OCTETS 20	  /* of UINT64_MAX */
#define PROGRESS_OCTETS                                       \
	4096 /* what a client must take to be waited for anew \
	      */

enum fd_kind { KIND_SOCKET, KIND_FILE, KIND_STREAM };

static struct {
	enum wire_reading reading;
	enum wire_status ended; /* WIRE_OK as long as the client is there */
	enum fd_kind in_kind, out_kind;
	unsigned autologout; /* seconds */
	unsigned grace;	     /* seconds, then `idle` is called; 0: never */
	void (*idle)(void);
	struct timespec waiting_since; /* for the client, with its clock */
	bool idled;		       /* `idle` has been called since */
	int watched;
	bool armed;	  /* alarm(2) runs */
	bool waited;	  /* the client has been waited for or read from */
	bool renew;	  /* the client made progress: begin the time anew */
	sigset_t waiting; /* the signal mask while we wait */
	uint64_t sent;
	bool line_start; /* of a message: the next octet begins a line */
	bool after_cr;	 /* of a message: the last octet was CR */

	size_t in_start, in_end;
	size_t scanned; /* octets from in_start on known to hold no line end */
	size_t out_end;
	char in[IN_OCTETS], out[OUT_OCTETS];
} wire;

static volatile sig_atomic_t alarmed;

static void
on_alarm(int signal)
{
	(void)signal;
	alarmed = 1;
}

static enum fd_kind
kind_of(int fd)
{
	struct stat st;

	if (fstat(fd, &st) == -1)
		return KIND_STREAM;
	if (S_ISSOCK(st.st_mode))
		return KIND_SOCKET;
	return S_ISREG(st.st_mode) ? KIND_FILE : KIND_STREAM;
}

void
wire_open(enum wire_reading reading, unsigned autologout, int watched)
{
	struct sigaction action;
	sigset_t alarm_set;
	int on = 1;

	wire.reading = reading;
	wire.autologout = autologout;
	wire.watched = watched;
	wire.ended = WIRE_OK;
	wire.armed = wire.renew = false;
	wire.in_start = wire.in_end = wire.scanned = 0;
	wire.out_end = 0;
	wire.in_kind = kind_of(CLIENT_IN);
	wire.out_kind = kind_of(CLIENT_OUT);

	/*
	 * SIGALRM gets in only inside ppoll(2), so that it can neither slip
	 * in between a look at the flag and the wait, nor cut short what we
	 * do for the client or the maildrop.
	 */
	sigemptyset(&alarm_set);
	sigaddset(&alarm_set, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarm_set, &wire.waiting);
	sigdelset(&wire.waiting, SIGALRM);
	memset(&action, 0, sizeof(action));
	action.sa_handler = on_alarm;
	sigemptyset(&action.sa_mask);
	sigaction(SIGALRM, &action, NULL);
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);

	/* Fails harmlessly where fd 1 is no TCP socket. */
	setsockopt(CLIENT_OUT, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

void
wire_grace(unsigned seconds, void (*idle)(void))
{
	wire.grace = seconds;
	wire.idle = idle;
}

static void
arm(void)
{
	if (!wire.armed || wire.renew) {
		alarm(wire.autologout);
		clock_gettime(CLOCK_MONOTONIC, &wire.waiting_since);
		wire.idled = false;
	}
	wire.armed = true;
	wire.renew = false;
}

static void
disarm(void)
{
	if (wire.armed)
		alarm(0);
	wire.armed = wire.renew = false;
}

/* How much of the grace is left; none where it is not waited for. */
static const struct timespec *
grace_left(struct timespec *left)
{
	struct timespec now;

	if (wire.grace == 0 || wire.idled)
		return NULL;
	clock_gettime(CLOCK_MONOTONIC, &now);
	left->tv_sec = wire.waiting_since.tv_sec + wire.grace - now.tv_sec;
	left->tv_nsec = wire.waiting_since.tv_nsec - now.tv_nsec;
	if (left->tv_nsec < 0) {
		left->tv_nsec += 1000000000;
		left->tv_sec--;
	}
	if (left->tv_sec < 0)
		left->tv_sec = left->tv_nsec = 0;
	return left;
}

/* Waits for `fd` with the clock running; sets wire.ended where that fails. */
static void
wait_for_client(int fd, short events)
{
	struct pollfd fds[2] = {{.fd = fd, .events = events},
	    {.fd = wire.watched, .events = POLLIN}};
	struct timespec left;
	int n;

	arm();
	wire.waited = true;
	n = ppoll(fds, 2, grace_left(&left), &wire.waiting);
	if (alarmed)
		wire.ended = WIRE_AUTOLOGOUT;
	else if (n == -1 ? errno != EINTR : n > 0 && fds[1].revents != 0)
		wire.ended = WIRE_GONE;
	if (n == 0) {
		wire.idled = true;
		wire.idle();
	}
}

/*
 * Writes what fd 1 takes now. A blocking write could not be interrupted
 * safely by the clock, so a socket is asked not to block, and a pipe or
 * terminal gets no more than it has announced room for (POSIX: PIPE_BUF).
 */
static ssize_t
write_some(const char *data, size_t length)
{
	struct pollfd room = {.fd = CLIENT_OUT, .events = POLLOUT};

	if (wire.out_kind == KIND_SOCKET)
		return send(
		    CLIENT_OUT, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (wire.out_kind == KIND_FILE)
		return write(CLIENT_OUT, data, length);
	if (poll(&room, 1, 0) == 0) {
		errno = EAGAIN;
		return -1;
	}
	return write(CLIENT_OUT, data, length < PIPE_BUF ? length : PIPE_BUF);
}

enum wire_status
wire_flush(void)
{
	size_t done = 0, progress = 0;
	ssize_t n;

	if (wire.out_end == 0)
		return wire.ended; /* the clock of a command runs on */
	while (wire.ended == WIRE_OK && done < wire.out_end) {
		n = write_some(wire.out + done, wire.out_end - done);
		if (n >= 0) {
			done += (size_t)n;
			progress += (size_t)n;
			wire.sent += (uint64_t)n;
			if (progress >= PROGRESS_OCTETS) {
				wire.renew = true;
				progress = 0;
			}
		} else if (wire.ended != WIRE_OK || errno == EINTR) {
			continue;
		} else if (errno == EAGAIN || errno == EWOULDBLOCK) {
			wait_for_client(CLIENT_OUT, POLLOUT);
		} else {
			wire.ended = WIRE_GONE;
		}
	}
	disarm();
	wire.out_end = 0;
	return wire.ended;
}

/* Whether SIGALRM came, let in or not. */
static bool
time_over(void)
{
	sigset_t pending;

	return alarmed || sigpending(&pending) == -1 ||
	       sigismember(&pending, SIGALRM) == 1;
}

enum wire_status
wire_settled(void)
{
	struct pollfd client = {.fd = CLIENT_OUT};

	if (wire_flush() != WIRE_OK)
		return wire.ended;
	if (time_over())
		wire.ended = WIRE_AUTOLOGOUT;
	else if (poll(&client, 1, 0) != 0)
		wire.ended = WIRE_GONE;
	return wire.ended;
}

enum wire_status
wire_await(int fd, bool client, int milliseconds)
{
	struct timespec bound = {.tv_sec = milliseconds / 1000,
	    .tv_nsec = (long)(milliseconds % 1000) * 1000000};
	struct pollfd fds[2] = {
	    {.fd = fd, .events = POLLIN}, {.fd = client ? CLIENT_OUT : -1}};
	int n;

	do
		n = ppoll(
		    fds, 2, milliseconds < 0 ? NULL : &bound, &wire.waiting);
	while (n == -1 && errno == EINTR && !alarmed);
	if (alarmed)
		return WIRE_AUTOLOGOUT;
	if (n == -1 || fds[1].revents != 0)
		return WIRE_GONE;
	return n == 0 ? WIRE_END : WIRE_OK;
}

/* Reads what there is, waiting for it; false once there is no more. */
static bool
read_some(char *to, size_t room)
{
	bool socket = wire.in_kind == KIND_SOCKET;
	ssize_t n;

	wire.waited = true;
	for (;;) {
		if (!socket)
			wait_for_client(CLIENT_IN, POLLIN);
		if (wire.ended != WIRE_OK)
			return false;
		n = socket ? recv(CLIENT_IN, to, room, MSG_DONTWAIT)
			   : read(CLIENT_IN, to, room);
		if (n > 0) {
			wire.in_end += (size_t)n;
			return true;
		}
		if (n == 0) {
			wire.ended = WIRE_END;
			return false;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK) {
			if (socket)
				wait_for_client(CLIENT_IN, POLLIN);
		} else if (errno != EINTR) {
			wire.ended = WIRE_GONE;
		}
	}
}

/* Makes room for a read and reads; false once there is no more. */
static bool
fill(void)
{
	if (wire.in_start > 0) {
		memmove(wire.in, wire.in + wire.in_start,
		    wire.in_end - wire.in_start);
		wire.in_end -= wire.in_start;
		wire.in_start = 0;
	}
	return read_some(wire.in + wire.in_end,
	    wire.reading == WIRE_BY_OCTET ? 1 : IN_OCTETS - wire.in_end);
}

/* The next line of at most `most` octets; one of more than `flood` ends the
 * session before login. */
static enum wire_status
next_line(char **line, size_t *length, size_t most, size_t flood)
{
	size_t forgotten = 0; /* octets of an overlong line */
	char *start, *end;

	for (;;) {
		start = wire.in + wire.in_start;
		end = memchr(start + wire.scanned, '\n',
		    wire.in_end - wire.in_start - wire.scanned);
		if (end != NULL)
			break;
		wire.scanned = wire.in_end - wire.in_start;
		if (wire.scanned + forgotten > most) {
			forgotten += wire.scanned;
			wire.in_start = wire.in_end = wire.scanned = 0;
			/* Who sends without a pause is never waited for, and
			 * SIGALRM not let in. */
			arm();
			if (time_over())
				wire.ended = WIRE_AUTOLOGOUT;
		}
		if (wire.reading == WIRE_BY_OCTET && forgotten > flood)
			return wire.ended = WIRE_FLOOD;
		if (wire_flush() != WIRE_OK || !fill()) {
			disarm();
			return wire.ended;
		}
	}
	disarm();
	wire.scanned = 0;
	wire.in_start += (size_t)(end - start) + 1;
	if (forgotten + (size_t)(end - start) + 1 > most)
		return WIRE_TOO_LONG;
	if (end > start && end[-1] == '\r')
		end--;
	*end = '\0';
	*line = start;
	*length = (size_t)(end - start);
	return WIRE_OK;
}

enum wire_status
wire_command(char **line, size_t *length)
{
	return next_line(line, length, WIRE_COMMAND_OCTETS, FLOOD_OCTETS);
}

enum wire_status
wire_answer(char **line, size_t *length)
{
	return next_line(line, length, WIRE_ANSWER_OCTETS, ANSWER_FLOOD_OCTETS);
}

bool
wire_waited(void)
{
	bool waited = wire.waited;

	wire.waited = false;
	return waited;
}

void
wire_wipe(void)
{
	explicit_bzero(wire.in, wire.in_start);
	explicit_bzero(wire.in + wire.in_end, IN_OCTETS - wire.in_end);
}

void
wire_text(const char *text, size_t length)
{
	size_t part;

	if (length < OUT_OCTETS - wire.out_end) {
		memcpy(wire.out + wire.out_end, text, length);
		wire.out_end += length;
		return;
	}
	while (length > 0 && wire.ended == WIRE_OK) {
		part = OUT_OCTETS - wire.out_end;
		if (part > length)
			part = length;
		memcpy(wire.out + wire.out_end, text, part);
		wire.out_end += part;
		text += part;
		length -= part;
		if (wire.out_end == OUT_OCTETS)
			wire_flush();
	}
}

static void
reply(const char *indicator, const char *format, va_list ap)
{
	char text[WIRE_REPLY_OCTETS];
	int n, length;

	length = snprintf(text, sizeof(text) - 1, "%s", indicator);
	n = vsnprintf(
	    text + length, sizeof(text) - 1 - (size_t)length, format, ap);
	length += n < 0 ? 0 : n;
	if ((size_t)length > sizeof(text) - 2)
		length = sizeof(text) - 2;
	text[length++] = '\r';
	text[length++] = '\n';
	wire_text(text, (size_t)length);
}

void
wire_ok(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	reply("+OK ", format, ap);
	va_end(ap);
}

void
wire_err(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	reply("-ERR ", format, ap);
	va_end(ap);
}

#define TEN(high)                                                           \
	high "0" high "1" high "2" high "3" high "4" high "5" high "6" high \
	     "7" high "8" high "9"
static const char hundred[] = TEN("0") TEN("1") TEN("2") TEN("3") TEN("4")
    TEN("5") TEN("6") TEN("7") TEN("8") TEN("9");

/* Writes a number in decimal digits; returns where it ends. */
static char *
put_number(char *to, uint64_t number)
{
	uint64_t power = 10;
	size_t length = 1;
	char *p;

	for (; length < NUMBER_OCTETS && number >= power; length++)
		power *= 10;
	for (p = to + length; p - to > 1; number /= 100)
		memcpy(p -= 2, hundred + number % 100 * 2, 2);
	if (p > to)
		*to = (char)('0' + number);
	return to + length;
}

void
wire_number(uint64_t number)
{
	char digits[NUMBER_OCTETS];

	wire_text(digits, (size_t)(put_number(digits, number) - digits));
}

char *
wire_listed(uint64_t number)
{
	char *to;

	if (wire.out_end + NUMBER_OCTETS + 1 + WIRE_LISTED_OCTETS + 2 >
	    PIECE_OCTETS)
		wire_flush();
	to = put_number(wire.out + wire.out_end, number);
	*to++ = ' ';
	return to;
}

void
wire_listed_end(char *end)
{
	*end++ = '\r';
	*end++ = '\n';
	wire.out_end = (size_t)(end - wire.out);
}

void
wire_listed_number(uint64_t number, uint64_t octets)
{
	wire_listed_end(put_number(wire_listed(number), octets));
}

void
wire_message_begin(void)
{
	wire.line_start = true;
	wire.after_cr = false;
}

/* Queues the whole lines that data, at the beginning of one, begins with, as
 * far as there is room; returns how much of data they are. */
static size_t
whole_lines(const char *data, size_t length)
{
	const char *p = data, *end = data + length, *lf;
	char *to = wire.out + wire.out_end;
	const char *room = wire.out + OUT_OCTETS - MORE_OCTETS;
	size_t part;

	while ((lf = memchr(p, '\n', (size_t)(end - p))) != NULL) {
		part = (size_t)(lf - p);
		if (room - to < (ptrdiff_t)part)
			break;
		if (*p == '.')
			*to++ = '.';
		memcpy(to, p, part);
		to += part;
		if (part == 0 || lf[-1] != '\r')
			*to++ = '\r';
		*to++ = '\n';
		p = lf + 1;
	}
	wire.out_end = (size_t)(to - wire.out);
	return (size_t)(p - data);
}

int
wire_message(void *unused, const char *data, size_t length)
{
	const char *end;
	size_t part;
	char *to;

	(void)unused;
	while (length > 0 && wire.ended == WIRE_OK) {
		if (wire.line_start) {
			part = whole_lines(data, length);
			data += part;
			length -= part;
			if (length == 0)
				break;
		}
		/* A line that begins or ends elsewhere, or needs room. */
		end = memchr(data, '\n', length);
		part = end != NULL ? (size_t)(end - data) : length;
		if (part + MORE_OCTETS > OUT_OCTETS - wire.out_end) {
			if (wire.out_end > 0) {
				wire_flush();
				continue;
			}
			if (part + MORE_OCTETS > OUT_OCTETS) {
				part = OUT_OCTETS - MORE_OCTETS;
				end = NULL;
			}
		}
		to = wire.out + wire.out_end;
		if (wire.line_start && *data == '.')
			*to++ = '.';
		if (part > 0) {
			memcpy(to, data, part);
			to += part;
			wire.after_cr = data[part - 1] == '\r';
		}
		if (end != NULL) {
			if (!wire.after_cr)
				*to++ = '\r';
			*to++ = '\n';
			wire.after_cr = false;
			part++;
		}
		wire.line_start = end != NULL;
		wire.out_end = (size_t)(to - wire.out);
		data += part;
		length -= part;
	}
	return wire.ended == WIRE_OK ? 0 : -1;
}

void
wire_message_end(void)
{
	if (!wire.line_start)
		wire_text("\r\n", 2);
	wire_dot();
}

void
wire_dot(void)
{
	wire_text(".\r\n", 3);
}

void
wire_close(void)
{
	const int drains = 64;	      /* reads at most, */
	const int milliseconds = 500; /* each after at most this wait */
	struct pollfd client = {.fd = CLIENT_IN, .events = POLLIN};
	ssize_t n;
	int i;

	if (wire_flush() != WIRE_OK && wire.ended != WIRE_END)
		return;
	if (wire.in_kind != KIND_SOCKET || wire.out_kind != KIND_SOCKET)
		return;
	n = recv(CLIENT_IN, wire.in, sizeof(wire.in), MSG_DONTWAIT);
	if (n > 0)
		shutdown(CLIENT_OUT, SHUT_WR);
	for (i = 0; i < drains && n > 0; i++)
		n = poll(&client, 1, milliseconds) == 1
			? recv(
			      CLIENT_IN, wire.in, sizeof(wire.in), MSG_DONTWAIT)
			: 0;
}

uint64_t
wire_sent(void)
{
	return wire.sent;
}
