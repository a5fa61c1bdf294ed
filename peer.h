/* The other end: who calls, and over what. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>

/*
 * The client's address as text, for the log: of the socket on fd 0 if it is
 * one of the Internet, else as the program before us says: TCPREMOTEIP
 * (UCSPI), REMOTE_HOST (xinetd, stunnel) or REMOTE_ADDR (systemd), each
 * believed only if inet_pton(3) reads it as an address. "local" if nobody
 * says. An IPv4 address mapped into IPv6 is given as IPv4. Lasts as long as
 * the process.
 */
const char *peer_address(void);

/* Whether fd 0 or fd 1 is a socket of the Internet (not a pipe, a terminal or
 * a socketpair). */
bool peer_is_network(void);

#endif
