/* Who calls; see peer.h. */
#include "peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

static char address[INET6_ADDRSTRLEN];

static struct {
	bool proxied; /* `address` is that of a PROXY header */
	bool protected;
	bool tls;	      /* can be begun */
	bool looked;	      /* at the environment */
	int control, in, out; /* of UCSPI-TLS; -1: none */
} channel = {.control = -1, .in = -1, .out = -1};

/* Writes an IPv6 address, or the IPv4 address that is mapped into it. */
static const char *
name_in6(const struct in6_addr *in6)
{
	if (IN6_IS_ADDR_V4MAPPED(in6))
		return inet_ntop(
		    AF_INET, in6->s6_addr + 12, address, sizeof(address));
	return inet_ntop(AF_INET6, in6, address, sizeof(address));
}

static const char *
socket_peer(void)
{
	union {
		struct sockaddr any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_storage room;
	} peer = {0};
	socklen_t length = sizeof(peer);

	if (getpeername(STDIN_FILENO, &peer.any, &length) == -1)
		return NULL;
	if (peer.any.sa_family == AF_INET)
		return inet_ntop(
		    AF_INET, &peer.in.sin_addr, address, sizeof(address));
	if (peer.any.sa_family == AF_INET6)
		return name_in6(&peer.in6.sin6_addr);
	return NULL;
}

static const char *
environment_peer(const char *variable)
{
	const char *value = getenv(variable);
	struct in6_addr in6;
	struct in_addr in;

	if (value == NULL)
		return NULL;
	if (inet_pton(AF_INET, value, &in) == 1)
		return inet_ntop(AF_INET, &in, address, sizeof(address));
	if (inet_pton(AF_INET6, value, &in6) == 1)
		return name_in6(&in6);
	return NULL;
}

/* Of this machine: what forwards to us, as stunnel does, looks like that. */
static bool
is_loopback(const char *text)
{
	return strncmp(text, "127.", 4) == 0 || strcmp(text, "::1") == 0;
}

const char *
peer_address(void)
{
	static const char *const variables[] = {
	    "TCPREMOTEIP", "REMOTE_HOST", "REMOTE_ADDR"};
	const char *found = channel.proxied ? address : socket_peer();
	const char *named = NULL;
	size_t i;

	if (channel.proxied || (found != NULL && !is_loopback(found)))
		return found;
	for (i = 0; named == NULL && i < sizeof(variables) / sizeof(*variables);
	     i++)
		named = environment_peer(variables[i]);
	if (named != NULL)
		return named;
	return found != NULL ? found : "local";
}

static bool
is_network(int fd)
{
	struct sockaddr_storage own = {0};
	socklen_t length = sizeof(own);

	return getsockname(fd, (struct sockaddr *)&own, &length) == 0 &&
	       own.ss_family != AF_UNIX;
}

bool
peer_is_network(void)
{
	return is_network(STDIN_FILENO) || is_network(STDOUT_FILENO);
}

/* ---- The PROXY protocol ---- */

#define PROXY_SECONDS 10
#define PROXY1_OCTETS 107  /* with CRLF, by its specification */
#define PROXY2_OCTETS 4096 /* of addresses and fields; it allows 65,535 */
#define PROXY2_HEAD 16
#define PROXY2_TLS 0x20
#define PROXY2_TLS_USED 0x01

/* Reads exactly `length` octets before `until`. */
static bool
read_exactly(int fd, char *to, size_t length, const struct timespec *until)
{
	struct pollfd in = {.fd = fd, .events = POLLIN};
	struct timespec now;
	ssize_t n;
	int64_t left;

	while (length > 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = (int64_t)(until->tv_sec - now.tv_sec) * 1000 +
		       (until->tv_nsec - now.tv_nsec) / 1000000;
		if (left <= 0)
			return false;
		if (poll(&in, 1, (int)left) < 1)
			continue;
		n = read(fd, to, length);
		if (n == 0 || (n == -1 && errno != EINTR && errno != EAGAIN))
			return false;
		if (n > 0) {
			to += n;
			length -= (size_t)n;
		}
	}
	return true;
}

/* A port as version 1 writes it: 0 to 65535, no zeros before. */
static bool
is_port(const char *text)
{
	size_t length = strspn(text, "0123456789");

	return length >= 1 && length <= 5 && text[length] == '\0' &&
	       (length == 1 || *text != '0') && strtol(text, NULL, 10) <= 65535;
}

/* "PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT", or "PROXY UNKNOWN ...". */
static const char *
parse_proxy1(char *line)
{
	char *word[6], *p = line;
	struct in6_addr in6, to6;
	struct in_addr in, to;
	unsigned i;

	if (strncmp(line, "PROXY UNKNOWN", 13) == 0 &&
	    (line[13] == '\0' || line[13] == ' '))
		return NULL;
	for (i = 0; i < 6; i++)
		if ((word[i] = strsep(&p, " ")) == NULL)
			return "malformed";
	if (p != NULL || strcmp(word[0], "PROXY") != 0 || !is_port(word[4]) ||
	    !is_port(word[5]))
		return "malformed";
	if (strcmp(word[1], "TCP4") == 0 &&
	    inet_pton(AF_INET, word[2], &in) == 1 &&
	    inet_pton(AF_INET, word[3], &to) == 1) {
		inet_ntop(AF_INET, &in, address, sizeof(address));
	} else if (strcmp(word[1], "TCP6") == 0 &&
		   inet_pton(AF_INET6, word[2], &in6) == 1 &&
		   inet_pton(AF_INET6, word[3], &to6) == 1) {
		name_in6(&in6);
	} else {
		return "malformed";
	}
	channel.proxied = true;
	return NULL;
}

/* Version 1: a line. What is wrong with it, or NULL. */
static const char *
read_proxy1(const struct timespec *until)
{
	char line[PROXY1_OCTETS + 1];
	size_t used = 1;

	line[0] = 'P';
	while (used < PROXY1_OCTETS) {
		if (!read_exactly(STDIN_FILENO, line + used, 1, until))
			return "not complete";
		if (line[used] == '\0')
			return "malformed";
		used++;
		if (line[used - 1] == '\n') {
			if (line[used - 2] != '\r')
				return "malformed";
			line[used - 2] = '\0';
			return parse_proxy1(line);
		}
	}
	return "too long";
}

/* The fields behind the addresses: type, length, value. */
static const char *
parse_fields(const unsigned char *p, size_t length)
{
	size_t value;

	while (length > 0) {
		if (length < 3)
			return "malformed";
		value = (size_t)p[1] << 8 | p[2];
		if (value > length - 3)
			return "malformed";
		if (p[0] == PROXY2_TLS) {
			if (value < 5)
				return "malformed";
			channel.protected |= (p[3] & PROXY2_TLS_USED) != 0;
		}
		p += 3 + value;
		length -= 3 + value;
	}
	return NULL;
}

/* The addresses of version 2, by family. */
static const char *
parse_proxy2(unsigned char family, const unsigned char *p, size_t length)
{
	enum { INET = 0x11, INET6 = 0x21, UNIX = 0x31, UNSPECIFIED = 0 };
	const char *wrong = NULL;
	struct in6_addr in6;
	size_t addresses = 0;

	if (family == INET)
		addresses = 12;
	else if (family == INET6)
		addresses = 36;
	else if (family == UNIX)
		addresses = 216;
	else if (family != UNSPECIFIED)
		return "of no stream that is known";
	if (length < addresses)
		return "malformed";
	/* What follows where no family is told is to be passed over. */
	if (family != UNSPECIFIED)
		wrong = parse_fields(p + addresses, length - addresses);
	if (wrong != NULL)
		return wrong;
	if (family == INET) {
		inet_ntop(AF_INET, p, address, sizeof(address));
	} else if (family == INET6) {
		memcpy(&in6, p, sizeof(in6));
		name_in6(&in6);
	}
	channel.proxied = family == INET || family == INET6;
	return NULL;
}

static const char *
read_proxy2(const struct timespec *until)
{
	static const char signature[] = "\r\n\r\n\0\r\nQUIT\n";
	static unsigned char body[PROXY2_OCTETS];
	unsigned char head[PROXY2_HEAD] = {'\r'};
	size_t length;

	if (!read_exactly(
		STDIN_FILENO, (char *)head + 1, sizeof(head) - 1, until))
		return "not complete";
	if (memcmp(head, signature, sizeof(signature) - 1) != 0 ||
	    head[12] >> 4 != 2 || (head[12] & 15) > 1)
		return "malformed";
	length = (size_t)head[14] << 8 | head[15];
	if (length > sizeof(body))
		return "too long";
	if (!read_exactly(STDIN_FILENO, (char *)body, length, until))
		return "not complete";
	/* LOCAL: the balancer itself looks whether we are there. */
	return (head[12] & 15) == 0 ? NULL
				    : parse_proxy2(head[13], body, length);
}

int
peer_read_proxy(void)
{
	const char *wrong = "not there";
	struct timespec until;
	char first;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += PROXY_SECONDS;
	if (read_exactly(STDIN_FILENO, &first, 1, &until)) {
		wrong = "malformed";
		if (first == 'P')
			wrong = read_proxy1(&until);
		else if (first == '\r')
			wrong = read_proxy2(&until);
	}
	if (wrong == NULL)
		return 0;
	channel.proxied = channel.protected = false;
	log_error("-p", "PROXY header %s", wrong);
	return -1;
}

/* ---- TLS ---- */

#define TLS_SECONDS 60
#define TLS_ANSWER_OCTETS 65536

/* The descriptor that a variable names, if it is open; -1 otherwise. */
static int
environment_fd(const char *variable)
{
	const char *value = getenv(variable);
	size_t length = value != NULL ? strspn(value, "0123456789") : 0;
	int fd;

	if (length == 0 || length > 6 || value[length] != '\0')
		return -1;
	fd = (int)strtol(value, NULL, 10);
	/* And not for what we may run. */
	return fd > STDERR_FILENO && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ? fd
									 : -1;
}

/* What the environment says, once: later there may be others at its numbers. */
static void
look_at_environment(void)
{
	const char *protocol = getenv("SSL_PROTOCOL");

	if (channel.looked)
		return;
	channel.looked = true;
	channel.protected |= protocol != NULL && *protocol != '\0';
	channel.control = environment_fd("SSLCTLFD");
	channel.in = environment_fd("SSLREADFD");
	channel.out = environment_fd("SSLWRITEFD");
	channel.tls =
	    channel.control != -1 && channel.in != -1 && channel.out != -1;
}

bool
peer_protected(void)
{
	look_at_environment();
	return channel.protected;
}

bool
peer_offers_tls(void)
{
	look_at_environment();
	return channel.tls && !channel.protected;
}

void
peer_forget_tls_control(void)
{
	/* Some servers have one number for all three. */
	if (channel.control != -1 && channel.control != channel.in &&
	    channel.control != channel.out)
		close(channel.control);
	channel.control = -1;
}

void
peer_forget_tls(void)
{
	peer_forget_tls_control();
	if (channel.out != -1 && channel.out != channel.in)
		close(channel.out);
	if (channel.in != -1)
		close(channel.in);
	channel.in = channel.out = -1;
}

/* Reads the answer to "Y": variables, each with a NUL, and one more NUL;
 * without any, two of them, or perhaps one. Octet by octet, since the tunnel
 * may be the same descriptor. */
static int
read_tls_answer(void)
{
	bool apart = channel.control != channel.in;
	char before, octet = 'x';
	struct timespec until;
	unsigned count;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += TLS_SECONDS;
	for (count = 0; count < TLS_ANSWER_OCTETS; count++) {
		before = octet;
		if (!read_exactly(channel.control, &octet, 1, &until))
			return -1;
		if (octet == '\0' && (before == '\0' || (count == 0 && apart)))
			return 0;
	}
	return -1;
}

int
peer_begin_tls(void)
{
	if (write(channel.control, "Y", 1) != 1 || read_tls_answer() == -1)
		return -1;
	return peer_switch_to_tls();
}

int
peer_switch_to_tls(void)
{
	if (dup2(channel.in, STDIN_FILENO) == -1 ||
	    dup2(channel.out, STDOUT_FILENO) == -1)
		return -1;
	peer_forget_tls();
	channel.protected = true;
	return 0;
}
