/* The other end: who calls, and over what channel. */
#ifndef PEER_H
#define PEER_H

#include <stdbool.h>

/*
 * The client's address as text, for the log: of the socket on fd 0 if it is one
 * of the Internet. Where it is not, or only leads to this machine itself, the
 * program before us may know better: TCPREMOTEIP (UCSPI), REMOTE_HOST (xinetd,
 * stunnel) or REMOTE_ADDR (systemd), each believed only if inet_pton(3) reads
 * it as an address. "local" if nobody says. An IPv4 address mapped into IPv6 is
 * given as IPv4. Lasts as long as the process.
 */
const char *peer_address(void);

/*
 * Reads a PROXY protocol header, version 1 or 2, from fd 0, and not one octet
 * more; it has ten seconds to come. The address it gives is that of
 * peer_address() from then on (it keeps its own where the header has none), and
 * a TLS field of version 2 that says so makes the channel protected. Returns 0,
 * or -1 after a line in the log where none came, or none that is well-formed.
 */
int peer_read_proxy(void);

/*
 * Whether others are kept from reading along: by TLS that we have begun
 * (peer_begin_tls), by an implicit-TLS server in front (SSL_PROTOCOL in a UCSPI
 * environment), or by word of a PROXY header. A loopback address alone is not
 * that: what forwards to it may have come over any network.
 */
bool peer_protected(void);

/*
 * UCSPI-TLS (SSLCTLFD, SSLREADFD, SSLWRITEFD in the environment). Whether TLS
 * can be begun: these are there, and the channel is not protected.
 */
bool peer_offers_tls(void);

/* For the process that only switches: closes the control descriptor. And for
 * one that needs no TLS any more: closes all. */
void peer_forget_tls_control(void);
void peer_forget_tls(void);

/*
 * Asks for TLS on the control descriptor and waits, up to a minute, until the
 * handshake is over; and makes the tunnel fd 0 and 1 of this process. Each
 * returns 0, or -1 where that failed and the connection is of no more use.
 */
int peer_begin_tls(void);
int peer_switch_to_tls(void);

/* Whether fd 0 or fd 1 is a socket of the Internet (not a pipe, a terminal or
 * a socketpair). */
bool peer_is_network(void);

#endif
