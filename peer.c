/* Who calls; see peer.h. */
#include "peer.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char address[INET6_ADDRSTRLEN];

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
	} peer;
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

const char *
peer_address(void)
{
	static const char *const variables[] = {
	    "TCPREMOTEIP", "REMOTE_HOST", "REMOTE_ADDR"};
	const char *found = socket_peer();
	size_t i;

	for (i = 0; found == NULL && i < sizeof(variables) / sizeof(*variables);
	     i++)
		found = environment_peer(variables[i]);
	return found != NULL ? found : "local";
}

static bool
is_network(int fd)
{
	struct sockaddr_storage own;
	socklen_t length = sizeof(own);

	return getsockname(fd, (struct sockaddr *)&own, &length) == 0 &&
	       own.ss_family != AF_UNIX;
}

bool
peer_is_network(void)
{
	return is_network(STDIN_FILENO) || is_network(STDOUT_FILENO);
}
