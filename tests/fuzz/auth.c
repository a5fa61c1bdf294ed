/*
 * Fuzzers (libFuzzer) of what strangers can say before a login, and of accounts
 * files; TARGET is one of these. Each has its seeds in the directory of its
 * name.
 *
 *  PROXY     the octets on fd 0 of a connection with -p
 *  AUTH      the octets on fd 0 of the front, whose requests the monitor judges;
 *            or, where the first octet is 'M', one request of a front that lies
 *  ACCOUNTS  a line "name secret" (or "name digest stamp", for APOP), and then an
 *            accounts file
 *
 * clang -std=c11 -D_GNU_SOURCE -DNO_CAGE -DTARGET=PROXY
 *     -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -o fuzz-proxy
 *     tests/fuzz/auth.c account.c digest.c former.c journal.c log.c maildir.c
 *     maildrop.c mbox.c peer.c sandbox.c state.c wire.c -lcrypt
 * where the module that is included here is left out.
 */
#include <crypt.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

#define PROXY 1
#define AUTH 2
#define ACCOUNTS 3

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* crypt(3), but for the time that it takes. */
__attribute__((unused)) static char *
quick_crypt(const char *phrase, const char *setting, struct crypt_data *work)
{
	size_t i = 0, j = 0;

	if (*setting == '*' || *setting == '\0')
		return NULL;
	while (setting[i] != '\0' && i < 20) {
		work->output[i] = setting[i];
		i++;
	}
	while (phrase[j] != '\0' && j < 20)
		work->output[i++] = phrase[j++];
	work->output[i] = '\0';
	return work->output;
}
#define crypt_r quick_crypt

#if TARGET == PROXY
#include "../../peer.c"
#elif TARGET == AUTH
#define main session_main
#include "../../pop3-handler.c"
#undef main
#else
#include "../../account.c"
#endif

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* What must hold; libFuzzer reports what aborts. */
#define must(holds) \
	((holds) ? (void)0 : must_hold(__LINE__))

static void
must_hold(int line)
{
	fprintf(stderr, "auth.c:%d does not hold\n", line);
	abort();
}

#if TARGET != PROXY
/* Makes an accounts file that is in memory only, and tells its path. */
static int
accounts_file(char path[64])
{
	int fd = memfd_create("accounts", MFD_CLOEXEC);

	must(fd != -1 && fchmod(fd, 0600) == 0);
	sprintf(path, "/proc/self/fd/%d", fd);
	return fd;
}
#endif

#if TARGET != ACCOUNTS
/* What a pipe holds without anybody reading. */
#define INPUT_MAX 65536

/* Makes fd 0 a pipe with these octets and then the end. */
static void
give_input(const uint8_t *data, size_t size)
{
	int ends[2];

	must(pipe2(ends, O_CLOEXEC) == 0);
	must(write(ends[1], data, size) == (ssize_t)size);
	close(ends[1]);
	must(dup2(ends[0], STDIN_FILENO) == STDIN_FILENO);
	close(ends[0]);
}
#endif

#if TARGET == PROXY
/* How long a header is that is taken. */
static size_t
header_length(const uint8_t *data, size_t size)
{
	const uint8_t *end = memchr(data, '\n', size);

	if (data[0] == 'P')
		return (size_t)(end - data) + 1;
	return PROXY2_HEAD + (size_t)(data[14] << 8 | data[15]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct in6_addr in6;
	struct in_addr in;
	const char *found;
	int left;

	if (size > INPUT_MAX)
		return -1;
	memset(&channel, 0, sizeof(channel));
	give_input(data, size);
	if (peer_read_proxy() == 0) {
		must(ioctl(STDIN_FILENO, FIONREAD, &left) == 0);
		must((size_t)left == size - header_length(data, size));
	} else {
		must(!channel.proxied && !channel.protected);
	}
	found = peer_address();
	must(strcmp(found, "local") == 0 ||
	     inet_pton(AF_INET, found, &in) == 1 ||
	     inet_pton(AF_INET6, found, &in6) == 1);
	return 0;
}
#endif

#if TARGET == AUTH
static const char accounts[] = "alice:{PLAIN}secret:12345:12345::/home::\n"
			       "bob:abJnggxhB/yWI:12345:12345::/home::\n";

enum { OURS = 'x' }; /* a record that stands for nothing */

static void
begin(void)
{
	static char file[64];
	int fd;

	if (options.source.file != NULL)
		return;
	fd = accounts_file(file);
	must(write(fd, accounts, sizeof(accounts) - 1) ==
	     (ssize_t)sizeof(accounts) - 1);
	options.source.file = file;
	options.apop = true;
	strcpy(options.host, "pop.example.org");
	fd = open("/dev/null", O_WRONLY);
	must(dup2(fd, STDOUT_FILENO) == STDOUT_FILENO);
}

/* The monitor's part; the front must never be seen to ask for nonsense. */
static void
judge(const int sockets[2], const char *request, size_t length, int honest)
{
	static char record[RECORD_OCTETS];
	struct front front = {.socket = sockets[0]};
	struct account account;
	enum account_verdict verdict;
	const char *end;

	memcpy(record, request, length);
	if (honest) {
		end = memchr(record + 1, '\0', length - 1);
		must(end != NULL);
		must(end + 1 + strlen(end + 1) + 1 == record + length);
	}
	/* Something to read makes the wait for the front an end at once. */
	send(sockets[1], &(char){OURS}, 1, MSG_DONTWAIT);
	verdict = judge_login(&front, record, length, &account);
	if (verdict == ACCOUNT_ACCEPTED) {
		must(account.uid == 12345);
		must(strcmp(account.name, record + 1) == 0);
	}
}

static void
listen_to_front(const int sockets[2])
{
	static char record[RECORD_OCTETS + 1];
	ssize_t length;

	while ((length = recv(
		    sockets[0], record, sizeof(record), MSG_DONTWAIT)) > 0) {
		must((size_t)length < sizeof(record));
		if (record[0] == RECORD_ALIVE || record[0] == RECORD_ENDED ||
		    record[0] == OURS) {
			must(length <= 2);
			continue;
		}
		must(record[0] == RECORD_PASSWORD || record[0] == RECORD_APOP);
		judge(sockets, record, (size_t)length, 1);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char answers[] = {ANSWER_REFUSED, ANSWER_TEMP, ANSWER_LAST};
	int sockets[2], room = 1 << 20;
	size_t i;

	if (size > INPUT_MAX)
		return -1;
	begin();
	memset(&session, 0, sizeof(session));
	must(make_stamp() == 0);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) ==
	     0);
	setsockopt(sockets[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	wire_open(WIRE_BY_OCTET, options.autologout, -1);
	if (size > 1 && data[0] == 'M') {
		if (size - 1 <= RECORD_OCTETS)
			judge(sockets, (const char *)data + 1, size - 1, 0);
	} else {
		give_input(data, size);
		/* The answers wait already: the front never waits for them. */
		for (i = 0; i < sizeof(answers); i++)
			must(send(sockets[0], answers + i, 1, 0) == 1);
		session.monitor = sockets[1];
		greet();
		serve();
		must(session.ended != REASON_NONE);
		listen_to_front(sockets);
	}
	close(sockets[0]);
	close(sockets[1]);
	return 0;
}
#endif

#if TARGET == ACCOUNTS
int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct account account;
	static char file[64];
	static int fd = -1;
	const uint8_t *end = memchr(data, '\n', size);
	struct account_source source = {.file = file};
	struct account_proof proof = {.stamp = ""};
	char line[1024], path[64], *rest = line;

	if (end == NULL || (size_t)(end - data) >= sizeof(line))
		return -1;
	if (fd == -1)
		fd = accounts_file(file);
	memcpy(line, data, (size_t)(end - data));
	line[end - data] = '\0';
	proof.name = strsep(&rest, " ");
	proof.secret = rest != NULL ? strsep(&rest, " ") : "";
	proof.apop = rest != NULL;
	if (rest != NULL)
		proof.stamp = rest;
	size -= (size_t)(end + 1 - data);
	must(ftruncate(fd, 0) == 0);
	must(pwrite(fd, end + 1, size, 0) == (ssize_t)size);
	if (account_check(&source, &proof, &account) == ACCOUNT_ACCEPTED) {
		must(account.uid != 0 && account.uid != UINT32_MAX);
		must(account_name_valid(account.name));
		must(strcmp(account.name, proof.name) == 0);
		must(*proof.secret != '\0');
		must(*account.home == '\0' || *account.home == '/');
	}
	account_expand("%h/%d/%n/%u%%", &account, path, sizeof(path));
	return 0;
}
#endif
