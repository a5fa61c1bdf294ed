/*
 * client: what the benchmark measures with. It starts a server on a socketpair
 * or a TCP connection, or connects to one, goes through the steps of a session
 * and prints how long each took: "STEP MICROSECONDS OCTETS", the octets being
 * what the server sent; at last "total", from before the start to the end of
 * the process. It ends with 1 as soon as a reply is not +OK.
 *
 * usage: client [-t pair|tcp] [-u uid] [-n times] step ... -- program [arg ...]
 *        client -c port [-j workers] [-n times] step ...
 *
 *  -t  how server and client are connected (default: pair)
 *  -u  the user to be, with a group of the same number
 *  -n  so many sessions; what is printed are the medians
 *  -c  connects to this port of 127.0.0.1
 *  -j  so many workers at once, which share the sessions; what is printed are
 *      all sessions in a second. "%d" in a step is the number of the worker.
 *
 * Steps:
 *  greet        a reply that nobody asked for
 *  say:LINE     a line, with a reply of one line
 *  multi:LINE   the same with a reply of several lines
 *  retr:N       RETR 1 to N, pipelined
 *  single:N     RETR 1 to N, one after the other
 *  dele:STEP:N  DELE 1 to N, in steps, pipelined
 *  quit         QUIT, and waits for the end
 *  exists:FILE  that file is there
 *  hold         prints "pid PID" and waits for a line on our input
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define IN_OCTETS (1 << 20)
#define BLOCK 256
#define STEPS_MAX 64

static const char *kind = "pair";
static int port, worker;

static int fd; /* our end */
static pid_t server;
static char in[IN_OCTETS + BLOCK + 1];
static size_t in_start, in_end;
static unsigned long long received;

static char *out; /* what we say */
static size_t out_end, out_room;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static struct sockaddr_in
address(int number)
{
	struct sockaddr_in at = {.sin_family = AF_INET};

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons((unsigned short)number);
	return at;
}

/* A connection to that port. */
static int
call(int number)
{
	struct sockaddr_in at = address(number);
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	if (s == -1 || connect(s, (struct sockaddr *)&at, sizeof(at)) == -1)
		err(99, "connect");
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return s;
}

/* Both ends of a connection: [0] is ours. */
static void
make_ends(int end[2])
{
	struct sockaddr_in at = address(0);
	socklen_t length = sizeof(at);
	int listener;

	if (strcmp(kind, "pair") == 0) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, end) ==
		    -1)
			err(99, "socketpair");
		return;
	}
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener == -1 ||
	    bind(listener, (struct sockaddr *)&at, length) == -1 ||
	    listen(listener, 1) == -1 ||
	    getsockname(listener, (struct sockaddr *)&at, &length) == -1)
		err(99, "listen");
	end[0] = call(ntohs(at.sin_port));
	end[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (end[1] == -1)
		err(99, "accept");
	close(listener);
}

/* vfork(2), since what a superserver's own fork costs is no server's doing. */
static void
start(char **command)
{
	int end[2];

	make_ends(end);
	server = vfork();
	if (server == -1)
		err(99, "fork");
	if (server == 0) {
		if (dup2(end[1], 0) != -1 && dup2(end[1], 1) != -1)
			execv(command[0], command);
		_exit(127);
	}
	close(end[1]);
	fd = end[0];
}

static void
add(const char *text)
{
	size_t length = strlen(text);

	if (out_end + length > out_room) {
		out_room = out_room * 2 + 65536;
		out = realloc(out, out_room);
		if (out == NULL)
			err(99, "memory");
	}
	memcpy(out + out_end, text, length);
	out_end += length;
}

/* Takes what has come, and sends what can be sent of the rest of `out`; false
 * at the end. */
static bool
exchange(size_t *sent)
{
	size_t keep = in_end - in_start;
	ssize_t n;

	if (keep == IN_OCTETS)
		errx(1, "a line that is too long");
	memmove(in, in + in_start, keep);
	in_start = 0;
	in_end = keep;
	while (*sent < out_end) {
		struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};

		if (poll(&p, 1, -1) == -1)
			err(99, "poll");
		if (p.revents & POLLOUT) {
			n = send(fd, out + *sent, out_end - *sent,
			    MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n == -1 && errno != EAGAIN)
				err(1, "send");
			*sent += n > 0 ? (size_t)n : 0;
		}
		if (p.revents & ~POLLOUT)
			break;
	}
	n = recv(fd, in + keep, IN_OCTETS - keep, 0);
	if (n <= 0)
		return false;
	in_end += (size_t)n;
	received += (unsigned long long)n;
	return true;
}

/* Whether a line that begins with "." begins in these octets. The compiler
 * makes this as fast as memory is. */
static bool
dot_in_block(const char *p)
{
	unsigned char found = 0;
	int i;

	for (i = 0; i < BLOCK; i++)
		found |= (unsigned char)((p[i] == '\n') & (p[i + 1] == '.'));
	return found != 0;
}

/* The "\n.\r\n" that ends a reply, or NULL; then `*p` is where to go on when
 * more has come. */
static const char *
find_end(const char **p, const char *end)
{
	const char *found;
	size_t part;

	while (end - *p >= 4) {
		part = end - *p > BLOCK + 3 ? BLOCK + 3 : (size_t)(end - *p);
		if (part == BLOCK + 3 && !dot_in_block(*p)) {
			*p += BLOCK;
			continue;
		}
		found = memmem(*p, part, "\n.\r\n", 4);
		if (found != NULL)
			return found;
		*p += part - 3;
	}
	return NULL;
}

/* Waits for so many replies to what is in `out`. */
static void
replies(unsigned long count, bool several)
{
	enum { FIRST_LINE, BODY } state = FIRST_LINE;
	size_t sent = 0;
	const char *p, *end;

	while (count > 0) {
		p = in + in_start;
		end = in + in_end;
		if (state == FIRST_LINE) {
			const char *eol = memchr(p, '\n', (size_t)(end - p));

			if (eol != NULL && *p != '+')
				errx(1, "server: %.*s", (int)(eol - p), p);
			if (eol != NULL) {
				in_start = (size_t)(eol - in);
				if (several) {
					state = BODY;
				} else {
					in_start++;
					count--;
				}
				continue;
			}
		} else {
			const char *found = find_end(&p, end);

			in_start = (size_t)(p - in);
			if (found != NULL) {
				in_start = (size_t)(found + 4 - in);
				state = FIRST_LINE;
				count--;
				continue;
			}
		}
		if (!exchange(&sent))
			errx(1, "the server hung up");
	}
	out_end = 0;
}

/* One step; false where it is none that is timed. */
static bool
step(const char *s)
{
	char text[600];
	unsigned long n, from = 1, by;
	size_t none = 0;

	if (strcmp(s, "greet") == 0) {
		replies(1, false);
	} else if (strncmp(s, "say:", 4) == 0 || strncmp(s, "multi:", 6) == 0) {
		const char *d = strstr(s, "%d");

		if (d == NULL)
			snprintf(
			    text, sizeof(text), "%s\r\n", strchr(s, ':') + 1);
		else
			snprintf(text, sizeof(text), "%.*s%d%s\r\n",
			    (int)(d - strchr(s, ':') - 1), strchr(s, ':') + 1,
			    worker, d + 2);
		add(text);
		replies(1, *s == 'm');
	} else if (strncmp(s, "retr:", 5) == 0) {
		n = strtoul(s + 5, NULL, 10);
		for (; from <= n; from++) {
			snprintf(text, sizeof(text), "RETR %lu\r\n", from);
			add(text);
		}
		replies(n, true);
	} else if (strncmp(s, "single:", 7) == 0) {
		n = strtoul(s + 7, NULL, 10);
		for (; from <= n; from++) {
			snprintf(text, sizeof(text), "RETR %lu\r\n", from);
			add(text);
			replies(1, true);
		}
	} else if (sscanf(s, "dele:%lu:%lu", &by, &n) == 2) {
		unsigned long count = 0;

		for (; from <= n; from += by, count++) {
			snprintf(text, sizeof(text), "DELE %lu\r\n", from);
			add(text);
		}
		replies(count, false);
	} else if (strcmp(s, "quit") == 0) {
		add("QUIT\r\n");
		replies(1, false);
		while (exchange(&none))
			in_start = in_end;
	} else if (strncmp(s, "exists:", 7) == 0) {
		if (access(s + 7, F_OK) == -1)
			err(1, "%s", s + 7);
		return false;
	} else if (strcmp(s, "hold") == 0) {
		printf("pid %d\n", (int)server);
		fflush(stdout);
		if (read(0, text, 1) == -1)
			err(99, "input");
		return false;
	} else {
		errx(64, "unknown step: %s", s);
	}
	return true;
}

static struct {
	double *time; /* of each session */
	unsigned long long octets;
} result[STEPS_MAX + 1];

static void
session(char **steps, char **command, unsigned n)
{
	double began = now(), before = began, after;
	int i;

	in_start = in_end = 0;
	server = 0;
	if (command != NULL)
		start(command);
	else
		fd = call(port);
	for (i = 0; steps[i] != NULL; i++) {
		received = 0;
		if (!step(steps[i])) {
			before = now();
			continue;
		}
		after = now();
		result[i].time[n] = after - before;
		result[i].octets = received;
		before = after;
	}
	close(fd);
	if (server != 0 && waitpid(server, NULL, 0) == -1)
		err(99, "wait");
	result[i].time[n] = now() - began;
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void
print_medians(char **steps, unsigned times)
{
	int i;

	for (i = 0; i == 0 || steps[i - 1] != NULL; i++) {
		qsort(result[i].time, times, sizeof(double), compare);
		if (steps[i] == NULL || result[i].time[times / 2] > 0)
			printf("%s %.1f %llu\n",
			    steps[i] == NULL ? "total" : steps[i],
			    result[i].time[times / 2], result[i].octets);
	}
}

/* The sessions, shared by so many workers. */
static void
work(char **steps, unsigned workers, unsigned times)
{
	double began = now();
	int status, failed = 0;
	unsigned i;

	for (worker = 1; worker <= (int)workers; worker++)
		switch (fork()) {
		case -1:
			err(99, "fork");
		case 0:
			for (i = 0; i < times / workers; i++)
				session(steps, NULL, 0);
			_exit(0);
		}
	while (wait(&status) != -1)
		failed |= status;
	if (failed != 0)
		errx(1, "a session failed");
	printf(
	    "rate %.1f 0\n", times / workers * workers / (now() - began) * 1e6);
}

int
main(int argc, char **argv)
{
	char **steps, **command = NULL;
	unsigned times = 1, workers = 0, i;
	long uid = 0;
	int option;

	while ((option = getopt(argc, argv, "+t:u:n:c:j:")) != -1)
		switch (option) {
		case 't':
			kind = optarg;
			break;
		case 'u':
			uid = atol(optarg);
			break;
		case 'n':
			times = (unsigned)atoi(optarg);
			break;
		case 'c':
			port = atoi(optarg);
			break;
		case 'j':
			workers = (unsigned)atoi(optarg);
			break;
		default:
			return 64;
		}
	steps = argv + optind;
	for (i = 0; steps[i] != NULL; i++)
		if (strcmp(steps[i], "--") == 0) {
			steps[i] = NULL;
			command = steps + i + 1;
			break;
		}
	if (i > STEPS_MAX || (command == NULL) == (port == 0) || times == 0)
		errx(64, "usage: see client.c");
	for (i = 0; i <= STEPS_MAX; i++)
		if ((result[i].time = calloc(times, sizeof(double))) == NULL)
			err(99, "memory");
	if (uid != 0 && (setgroups(0, NULL) == -1 || setgid((gid_t)uid) == -1 ||
			    setuid((uid_t)uid) == -1))
		err(99, "-u %ld", uid);
	signal(SIGPIPE, SIG_IGN);
	if (workers > 0) {
		work(steps, workers, times);
		return 0;
	}
	for (i = 0; i < times; i++)
		session(steps, command, i);
	print_medians(steps, times);
	return 0;
}
