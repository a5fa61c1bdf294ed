/*
 * dialogue: a client for the tests. Starts a program on a pipe, a socketpair
 * or a TCP connection, sends it our input as it comes, and prints what comes
 * back until the program hangs up.
 *
 * usage: dialogue [-t pipe|pair|tcp] [-b] [-w] [-n] [-r octets] [-i file]
 *                 [-m file] program [argument ...]
 *
 *  -t  how program and client are connected (default: pair)
 *  -b  one octet a write, each given time to arrive alone
 *  -w  the client waits: its end stays open when all is sent
 *  -n  never reads anything
 *  -r  reads so many octets, then resets the connection (TCP) or closes it
 *  -i  writes the program's pid to a file
 *  -m  writes the program's greatest resident memory (KiB) to a file
 *
 * Exits as the program does; 128 + signal where one killed it.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static bool by_octet, waits, never_reads;
static long long reset_after = -1;
static const char *pid_file, *memory_file;

/* Our ends and the program's: [0] is read from, [1] is written to. */
struct ends {
	int ours[2], its[2];
};

static void
connect_tcp(struct ends *e)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	socklen_t length = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (listener == -1 ||
	    bind(listener, (struct sockaddr *)&at, length) == -1 ||
	    listen(listener, 1) == -1 ||
	    getsockname(listener, (struct sockaddr *)&at, &length) == -1)
		err(99, "listen");
	e->ours[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (e->ours[0] == -1 ||
	    connect(e->ours[0], (struct sockaddr *)&at, length) == -1)
		err(99, "connect");
	e->its[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (e->its[0] == -1)
		err(99, "accept");
	close(listener);
	e->ours[1] = e->ours[0];
	e->its[1] = e->its[0];
}

static void
make_ends(struct ends *e, const char *kind)
{
	int a[2], b[2];

	if (strcmp(kind, "tcp") == 0) {
		connect_tcp(e);
	} else if (strcmp(kind, "pair") == 0) {
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a) == -1)
			err(99, "socketpair");
		e->ours[0] = e->ours[1] = a[0];
		e->its[0] = e->its[1] = a[1];
	} else if (strcmp(kind, "pipe") == 0) {
		if (pipe2(a, O_CLOEXEC) == -1 || pipe2(b, O_CLOEXEC) == -1)
			err(99, "pipe");
		e->its[0] = a[0];
		e->ours[1] = a[1];
		e->ours[0] = b[0];
		e->its[1] = b[1];
	} else {
		errx(99, "unknown kind of connection: %s", kind);
	}
}

static pid_t
start(const struct ends *e, char **command)
{
	pid_t pid = fork();

	if (pid == -1)
		err(99, "fork");
	if (pid == 0) {
		if (dup2(e->its[0], 0) == -1 || dup2(e->its[1], 1) == -1)
			err(99, "dup2");
		execvp(command[0], command);
		err(127, "%s", command[0]);
	}
	close(e->its[0]);
	if (e->its[1] != e->its[0])
		close(e->its[1]);
	return pid;
}

static void
note(const char *file, long long value)
{
	FILE *f;

	if (file == NULL)
		return;
	f = fopen(file, "w");
	if (f == NULL || fprintf(f, "%lld\n", value) < 0 || fclose(f) != 0)
		err(99, "%s", file);
}

/* No more to send: the program sees the end of its input. */
static void
end_sending(struct ends *e)
{
	if (waits)
		return;
	if (e->ours[1] == e->ours[0])
		shutdown(e->ours[1], SHUT_WR);
	else
		close(e->ours[1]);
}

static void
hang_up(struct ends *e)
{
	struct linger hard = {.l_onoff = 1};

	setsockopt(e->ours[0], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	close(e->ours[0]);
	if (e->ours[1] != e->ours[0])
		close(e->ours[1]);
}

/* What stands on our input, as far as it has come. */
static struct {
	char *text;
	size_t length, room;
	bool complete;
} script;

static void
read_script(void)
{
	ssize_t n;

	if (script.length == script.room) {
		script.room = script.room * 2 + 65536;
		script.text = realloc(script.text, script.room);
		if (script.text == NULL)
			err(99, "script");
	}
	n = read(0, script.text + script.length, script.room - script.length);
	if (n <= 0)
		script.complete = true;
	else
		script.length += (size_t)n;
}

/* Sends what can be sent; false once the program takes no more. */
static bool
send_some(struct ends *e, size_t *sent)
{
	size_t part = by_octet ? 1 : script.length - *sent;
	ssize_t n;

	n = send(e->ours[1], script.text + *sent, part,
	    MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n == -1 && errno == ENOTSOCK)
		n = write(e->ours[1], script.text + *sent, part);
	if (by_octet)
		usleep(500);
	if (n == -1)
		return errno == EAGAIN || errno == EINTR;
	*sent += (size_t)n;
	return true;
}

/* Sends and receives at the same time, until the program hangs up. */
static void
talk(struct ends *e)
{
	static char in[65536];
	size_t sent = 0;
	long long got = 0;
	bool sending = true;
	ssize_t n;

	for (;;) {
		bool all = script.complete && sent == script.length;
		struct pollfd p[3] = {
		    {.fd = never_reads ? -1 : e->ours[0], .events = POLLIN},
		    {.fd = sending && sent < script.length ? e->ours[1] : -1,
			.events = POLLOUT},
		    {.fd = script.complete ? -1 : 0, .events = POLLIN}};

		if (sending && all) {
			end_sending(e);
			sending = false;
			continue;
		}
		if (never_reads && !sending)
			return;
		if (poll(p, 3, -1) == -1 && errno != EINTR)
			err(99, "poll");
		if (p[2].revents != 0)
			read_script();
		if (p[1].revents != 0)
			sending = send_some(e, &sent);
		if (p[0].revents == 0)
			continue;
		n = read(e->ours[0], in, sizeof(in));
		if (n <= 0)
			return;
		if (fwrite(in, 1, (size_t)n, stdout) != (size_t)n)
			err(99, "write");
		fflush(stdout);
		got += n;
		if (reset_after >= 0 && got >= reset_after)
			return;
	}
}

int
main(int argc, char **argv)
{
	const char *kind = "pair";
	struct rusage usage;
	struct ends e;
	int option, status;
	pid_t pid;

	while ((option = getopt(argc, argv, "+t:bwnr:i:m:")) != -1)
		switch (option) {
		case 't':
			kind = optarg;
			break;
		case 'b':
			by_octet = true;
			break;
		case 'w':
			waits = true;
			break;
		case 'n':
			never_reads = true;
			break;
		case 'r':
			reset_after = strtoll(optarg, NULL, 10);
			break;
		case 'i':
			pid_file = optarg;
			break;
		case 'm':
			memory_file = optarg;
			break;
		default:
			return 99;
		}
	if (optind == argc)
		errx(99, "what program?");
	signal(SIGPIPE, SIG_IGN);
	make_ends(&e, kind);
	/* Before we use memory of our own, which would count as its. */
	pid = start(&e, argv + optind);
	note(pid_file, pid);
	if (reset_after != 0)
		talk(&e);
	while (reset_after == 0 && !script.complete)
		read_script();
	if (reset_after == 0 &&
	    write(e.ours[1], script.text, script.length) == -1)
		err(99, "write");
	if (!never_reads)
		hang_up(&e);
	if (wait4(pid, &status, 0, &usage) == -1)
		err(99, "wait");
	note(memory_file, usage.ru_maxrss);
	return WIFEXITED(status) ? WEXITSTATUS(status)
				 : 128 + WTERMSIG(status);
}
