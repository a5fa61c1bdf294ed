/*
 * Harnesses of what strangers can say before a login, and of accounts files.
 * FUZZ_TARGET is one of:
 *
 *  proxy     the octets on fd 0 of a connection with -p
 *  auth      the octets on fd 0 of the front, whose requests the monitor
 * judges; or, where the first octet is 'M', one request of a front that lies
 *  accounts  a line "name secret" (or "name digest stamp", for APOP), and then
 *            an accounts file
 *  base64    what is to be decoded
 */
#include <arpa/inet.h>
#include <crypt.h>
#include <regex.h>
#include <sys/mman.h>

#include "program.h"

/* What crypt(3) says, but for the time that it takes: the setting, cut, and
 * then the secret, cut. */
char *__wrap_crypt_r(
    const char *phrase, const char *setting, struct crypt_data *work);
char *
__wrap_crypt_r(const char *phrase, const char *setting, struct crypt_data *work)
{
	if (*setting == '*' || *setting == '\0')
		return NULL;
	snprintf(
	    work->output, sizeof(work->output), "%.20s%.20s", setting, phrase);
	return work->output;
}

/* Makes an accounts file that is in memory only, and tells its path. */
static int
accounts_file(char path[64])
{
	int fd = memfd_create("accounts", MFD_CLOEXEC);

	must(fd != -1 && fchmod(fd, 0600) == 0);
	sprintf(path, "/proc/self/fd/%d", fd);
	return fd;
}

/* ---- PROXY headers ---- */

/* What a header must come to. */
struct header {
	size_t length;	  /* in octets */
	char address[64]; /* empty: of the connection itself */
	bool protected;	  /* by TLS */
};

/* The same address as the program writes it; false if it is none. */
static bool
name_address(int family, const void *octets, struct header *h)
{
	const unsigned char *p = octets;
	static const unsigned char mapped[12] = {[10] = 0xff, 0xff};

	if (family == AF_INET6 && memcmp(p, mapped, sizeof(mapped)) == 0)
		return name_address(AF_INET, p + sizeof(mapped), h);
	return inet_ntop(family, octets, h->address, sizeof(h->address)) !=
	       NULL;
}

/* Version 1, as its specification has it in words. */
static bool
reference_proxy1(const char *p, size_t size, struct header *h)
{
	static const char pattern[] =
	    "^PROXY (UNKNOWN( .*)?|TCP([46]) ([^ ]+) ([^ ]+) "
	    "(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))$";
	static regex_t compiled;
	static bool ready;
	const char *lf = memchr(p, '\n', size < 107 ? size : 107);
	unsigned char from[16], to[16];
	char line[108], *word[8];
	regmatch_t match[8];
	int family, i;

	if (!ready)
		must(regcomp(&compiled, pattern, REG_EXTENDED) == 0);
	ready = true;
	if (lf == NULL || lf == p || lf[-1] != '\r' ||
	    memchr(p, '\0', (size_t)(lf - p)) != NULL)
		return false;
	h->length = (size_t)(lf + 1 - p);
	snprintf(line, sizeof(line), "%.*s", (int)h->length - 2, p);
	if (regexec(&compiled, line, 8, match, 0) != 0)
		return false;
	if (match[3].rm_so == -1)
		return true;
	for (i = 3; i < 8; i++) {
		word[i] = line + match[i].rm_so;
		line[match[i].rm_eo] = '\0';
	}
	family = *word[3] == '4' ? AF_INET : AF_INET6;
	return inet_pton(family, word[4], from) == 1 &&
	       inet_pton(family, word[5], to) == 1 && atol(word[6]) < 65536 &&
	       atol(word[7]) < 65536 && name_address(family, from, h);
}

/* Version 2: signature, version and command, family, length; addresses, and
 * fields of type, length and value. */
static bool
reference_proxy2(const unsigned char *p, size_t size, struct header *h)
{
	static const unsigned char kinds[] = {0, 0x11, 0x21, 0x31};
	static const size_t octets[] = {0, 12, 36, 216};
	size_t length, kind = 0, at, field;

	if (size < 16 || memcmp(p, "\r\n\r\n\0\r\nQUIT\n", 12) != 0 ||
	    (p[12] != 0x20 && p[12] != 0x21))
		return false;
	length = (size_t)p[14] << 8 | p[15];
	h->length = 16 + length;
	if (length > 4096 || size < h->length)
		return false;
	if (p[12] == 0x20)
		return true;
	while (kind < 4 && kinds[kind] != p[13])
		kind++;
	if (kind == 4 || length < octets[kind])
		return false;
	for (at = octets[kind]; kind > 0 && at < length; at += 3 + field) {
		if (length - at < 3)
			return false;
		field = (size_t)p[16 + at + 1] << 8 | p[16 + at + 2];
		if (field > length - at - 3 ||
		    (p[16 + at] == 0x20 && field < 5))
			return false;
		if (p[16 + at] == 0x20 && (p[16 + at + 3] & 1) != 0)
			h->protected = true;
	}
	return kind == 0 || kind == 3 ||
	       name_address(kind == 1 ? AF_INET : AF_INET6, p + 16, h);
}

static int
fuzz_proxy(const uint8_t *data, size_t size)
{
	struct header h = {0};
	bool right = false;

	call_program((const char *)data, size);
	caller.kind = S_IFSOCK;
	if (size > 0 && data[0] == 'P')
		right = reference_proxy1((const char *)data, size, &h);
	else
		right = reference_proxy2(data, size, &h);
	must((peer_read_proxy() == 0) == right);
	must(channel.protected == (right && h.protected));
	must(channel.proxied == (right && *h.address != '\0'));
	must(!channel.proxied || strcmp(peer_address(), h.address) == 0);
	must(!right || size - caller.left == h.length);
	return 0;
}

/* ---- base64 ---- */

static int
fuzz_base64(const uint8_t *data, size_t size)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "abcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *text = (const char *)data;
	char *out = malloc(size / 4 * 3 + 1), again[5];
	unsigned char three[3];
	ssize_t n = base64_decode(text, size, out), at;
	size_t i, left, length = size;

	/* Right is what these octets would be encoded as. */
	for (i = 0; n >= 0 && i < size; i += 4) {
		at = (ssize_t)i / 4 * 3;
		left = (size_t)(n - at);
		must(n > at);
		memset(three, 0, sizeof(three));
		memcpy(three, out + at, left < 3 ? left : 3);
		again[0] = letters[three[0] >> 2];
		again[1] = letters[(three[0] & 3) << 4 | three[1] >> 4];
		again[2] = letters[(three[1] & 15) << 2 | three[2] >> 6];
		again[3] = letters[three[2] & 63];
		if (left < 3)
			again[3] = '=';
		if (left < 2)
			again[2] = '=';
		must(memcmp(again, text + i, 4) == 0);
	}
	must(n != -1 || size > 0);
	/* And what cannot be one is wrong: only letters are known, none of them
	 * is left over, and at most two are missing. */
	while (length > 0 && size - length < 2 && text[length - 1] == '=')
		length--;
	for (i = 0; i < length && text[i] != '\0'; i++)
		if (strchr(letters, text[i]) == NULL)
			break;
	must(n >= 0 || size % 4 != 0 || i < length || size > length);
	free(out);
	return 0;
}

/* ---- AUTHORIZATION ---- */

static const char accounts[] = "alice:{PLAIN}secret:12345:12345::/home::\n"
			       "bob:abJnggxhB/yWI:12345:12345::/home::\n";

/* The monitor's part; the front must never be seen to ask for nonsense. */
static void
judge(int socket, const char *request, size_t length, bool honest)
{
	static char record[RECORD_OCTETS];
	struct front front = {.socket = socket};
	struct account account;
	const char *end;

	memcpy(record, request, length);
	if (honest) {
		end = memchr(record + 1, '\0', length - 1);
		must(end != NULL);
		must(end + 1 + strlen(end + 1) + 1 == record + length);
	}
	if (judge_login(&front, record, length, &account) == ACCOUNT_ACCEPTED) {
		must(account.uid == 12345);
		must(strcmp(account.name, record + 1) == 0);
	}
}

static void
listen_to_front(int socket)
{
	static char record[RECORD_OCTETS + 1];
	ssize_t length;

	while (
	    (length = recv(socket, record, sizeof(record), MSG_DONTWAIT)) > 0) {
		must((size_t)length < sizeof(record));
		if (record[0] == RECORD_ALIVE) {
			must(length == 1);
			continue;
		}
		must(record[0] == RECORD_PASSWORD || record[0] == RECORD_APOP);
		judge(socket, record, (size_t)length, true);
	}
}

static int
fuzz_auth(const uint8_t *data, size_t size)
{
	static const char answers[] = {
	    ANSWER_REFUSED, ANSWER_TEMP, ANSWER_LAST};
	static char file[64];
	int sockets[2], room = 1 << 20;
	unsigned replies;
	size_t i;

	if (*file == '\0')
		must(write(accounts_file(file), accounts,
			 sizeof(accounts) - 1) == sizeof(accounts) - 1);
	options.source.file = file;
	options.apop = true;
	strcpy(options.host, "pop.example.org");
	call_program((const char *)data, size);
	caller.kind = S_IFIFO;
	must(make_stamp() == 0);
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) ==
	     0);
	setsockopt(sockets[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	wire_open(WIRE_BY_OCTET, options.autologout, -1);
	if (size > 1 && data[0] == 'M') {
		if (size - 1 <= RECORD_OCTETS)
			judge(sockets[0], (const char *)data + 1, size - 1,
			    false);
	} else {
		/* The answers wait already: the front never waits for them. */
		for (i = 0; i < sizeof(answers); i++)
			must(send(sockets[0], answers + i, 1, 0) == 1);
		session.monitor = sockets[1];
		greet();
		serve();
		must(session.ended != REASON_NONE);
		/* One for each command, of which its end may be one, and the
		 * greeting. */
		replies = reference_front(caller.out.at, caller.out.length);
		must(replies == session.commands + (wire.ended == WIRE_OK));
		listen_to_front(sockets[0]);
	}
	close(sockets[0]);
	close(sockets[1]);
	return 0;
}

/* ---- Accounts ---- */

/* Whether a line of the file, the first of that name, has this secret. */
static bool
reference_secret(
    const char *p, const char *end, const char *name, const char *secret)
{
	size_t line, length = strlen(name);
	char stored[8192], again[64];
	const char *hash = stored;

	for (; p < end; p += line) {
		line = line_length(p, end);
		if (line <= length || memcmp(p, name, length) != 0 ||
		    p[length] != ':' || memchr(p, '\0', line) != NULL)
			continue;
		snprintf(stored, sizeof(stored), "%.*s",
		    (int)(line - length - 1), p + length + 1);
		stored[strcspn(stored, ":\r\n")] = '\0';
		if (strncasecmp(stored, "{PLAIN}", 7) == 0)
			return strcmp(stored + 7, secret) == 0;
		if (strncasecmp(stored, "{CLEARTEXT}", 11) == 0)
			return strcmp(stored + 11, secret) == 0;
		if (*hash == '{')
			hash += strcspn(hash, "}") + 1;
		snprintf(again, sizeof(again), "%.20s%.20s", hash, secret);
		return strcmp(hash, again) == 0;
	}
	return false;
}

static int
fuzz_accounts(const uint8_t *data, size_t size)
{
	static struct account account;
	static char file[64];
	static int fd = -1;
	const char *end = memchr(data, '\n', size);
	struct account_source source = {.file = file};
	struct account_proof proof = {.stamp = ""};
	char line[1024], path[64], *rest = line;
	size_t first = end != NULL ? (size_t)(end - (const char *)data) : 0;

	if (end == NULL || first >= sizeof(line))
		return -1;
	if (fd == -1)
		fd = accounts_file(file);
	memcpy(line, data, first);
	line[first] = '\0';
	proof.name = strsep(&rest, " ");
	proof.secret = rest != NULL ? strsep(&rest, " ") : "";
	proof.apop = rest != NULL;
	if (rest != NULL)
		proof.stamp = rest;
	size -= first + 1;
	end++;
	must(ftruncate(fd, 0) == 0);
	must(pwrite(fd, end, size, 0) == (ssize_t)size);
	if (account_check(&source, &proof, &account) == ACCOUNT_ACCEPTED) {
		must(account.uid != 0 && account.uid != UINT32_MAX);
		must(account_name_valid(account.name));
		must(strcmp(account.name, proof.name) == 0);
		must(*proof.secret != '\0');
		must(*account.home == '\0' || *account.home == '/');
		must(proof.apop || reference_secret(end, end + size, proof.name,
				       proof.secret));
	}
	account_expand("%h/%d/%n/%u%%", &account, path, sizeof(path));
	return 0;
}

const struct target targets[] = {{"proxy", fuzz_proxy}, {"auth", fuzz_auth},
    {"accounts", fuzz_accounts}, {"base64", fuzz_base64}, {NULL, NULL}};
