/*
 * The program as a harness includes it: the modules that have state, which is
 * made anew for each session, with a client and a clock in memory. The others
 * are linked.
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"
#include "reference.h"

static struct {
	const char *in; /* what the client still has to say */
	size_t left;
	struct text out; /* what it got */
	mode_t kind;	 /* of fd 0 and 1 */
	size_t step;	 /* octets at once, 0: any number */
	bool blocks;	 /* it has just done what it could */
	bool has_spoken, gone, hesitates, expired; /* so has its time */
	void (*happens)(void); /* called at each call for it, if not NULL */
} caller;

static time_t ahead; /* seconds, of the clock that the program has */

/* Whether the client has nothing to give or take now. */
static bool
would_block(void)
{
	if (caller.happens != NULL)
		caller.happens();
	caller.blocks = caller.step != 0 && !caller.blocks;
	errno = caller.gone ? EPIPE : EAGAIN;
	return caller.gone || caller.blocks;
}

static ssize_t
fake_recv(int fd, void *to, size_t room, int flags)
{
	(void)flags;
	must(fd == STDIN_FILENO && room > 0);
	if (would_block())
		return -1;
	if (caller.step != 0 && room > caller.step)
		room = caller.step;
	if (room > caller.left)
		room = caller.left;
	memcpy(to, caller.in, room);
	caller.has_spoken = true;
	caller.in += room;
	caller.left -= room;
	return (ssize_t)room;
}

static ssize_t
fake_send(int fd, const void *from, size_t length, int flags)
{
	(void)flags;
	must(fd == STDOUT_FILENO && length > 0);
	if (would_block())
		return -1;
	if (caller.step != 0 && length > caller.step)
		length = caller.step;
	append(&caller.out, from, length);
	return (ssize_t)length;
}

static int
fake_poll(struct pollfd *fds, nfds_t count, int timeout)
{
	(void)timeout;
	must(count == 1);
	return fds->events != 0 || caller.gone;
}

static void on_alarm(int signal);

static int
fake_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
    const sigset_t *mask)
{
	(void)mask;
	must(count == 2);
	if (caller.happens != NULL)
		caller.happens();
	fds[0].revents = fds[0].events;
	fds[1].revents = 0;
	caller.blocks = true;
	if (caller.expired) {
		on_alarm(SIGALRM);
		errno = EINTR;
		return -1;
	}
	if (caller.hesitates && timeout != NULL) {
		caller.hesitates = false;
		return 0;
	}
	return 1;
}

static int
fake_sigpending(sigset_t *set)
{
	sigemptyset(set);
	if (caller.expired)
		sigaddset(set, SIGALRM);
	return 0;
}

static int
fake_fstat(int fd, struct stat *st)
{
	must(fd == STDIN_FILENO || fd == STDOUT_FILENO);
	st->st_mode = caller.kind;
	return 0;
}

static int
fake_clock(clockid_t id, struct timespec *now)
{
	clock_gettime(id, now);
	now->tv_sec += ahead;
	return 0;
}

/* libFuzzer has the signals and the clock. */
#define alarm(seconds) (void)(seconds)
#define sigaction(signal, action, before) (void)(action)
#define sigprocmask(how, set, before) (void)(set)
#define clock_gettime fake_clock
#define sigpending fake_sigpending
#define fstat fake_fstat
#define setsockopt(fd, level, name, value, length) (void)(value)
#define poll fake_poll
#define ppoll fake_ppoll
#define recv fake_recv
#define send fake_send
#define read(fd, to, room) fake_recv(fd, to, room, 0)
#define write(fd, from, length) fake_send(fd, from, length, 0)
#include "../../peer.c"
#include "../../wire.c"
#undef fstat
#undef setsockopt
#undef poll
#undef ppoll
#undef recv
#undef send
#undef read
#undef write
/* Who waits for a lock waits as long as that takes. */
#define nanosleep(pause, left) ((void)(pause), ahead++)
#define time(unused) (time(unused) + ahead)
#include "../../mbox.c"
#undef time
#define main session_main
int session_main(int argc, char **argv);
#include "../../pop3-handler.c"
#undef main
#undef clock_gettime

/* Begins a connection, of which nothing is known. */
static void
call_program(const char *in, size_t size)
{
	static __typeof__(mbox) no_mbox;
	static __typeof__(channel) no_channel;
	static bool known;

	if (!known) {
		no_mbox = mbox;
		no_channel = channel;
	}
	known = true;
	mbox = no_mbox;
	channel = no_channel;
	memset(&session, 0, sizeof(session));
	memset(&wire, 0, sizeof(wire));
	alarmed = 0;
	caller.in = in;
	caller.left = size;
	caller.out.length = 0;
	caller.blocks = caller.has_spoken = false;
	caller.gone = caller.hesitates = caller.expired = false;
}

#endif
