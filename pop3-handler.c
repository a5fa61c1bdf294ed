/*
 * pop3-handler: one POP3 session (RFC 1939) on fd 0 and 1, run by a
 * superserver. This file has main, the options, the three states and one
 * function per verb; everything else is behind the headers.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "account.h"
#include "digest.h"
#include "log.h"
#include "maildrop.h"
#include "peer.h"
#include "sandbox.h"
#include "wire.h"

#define VERSION "0.1"
#define AUTOLOGOUT_SECONDS 600 /* RFC 1939 section 3: at least ten minutes */
#define GRACE_SECONDS 60
#define MAILDROPS_MAX 16
#define HOST_OCTETS 255
#define STAMP_OCTETS 128
#define SECRET_OCTETS (WIRE_ANSWER_OCTETS / 4 * 3)
#define NONSENSE_MAX 20	       /* in a row, then the session ends */
#define LOGIN_COMMANDS_MAX 100 /* in AUTHORIZATION */
#define FAILURES_MAX 3	       /* of logins */
#define FAILURE_SECONDS 2      /* times the number of the failure */
#define FRONT_GRACE 10 /* seconds by which the monitor's clock is longer */

static struct {
	bool apop;		      /* -A */
	struct account_source source; /* -a, -c */
	struct {
		const char *path;
		bool literal; /* as it stands, not a template */
	} maildrop[MAILDROPS_MAX];
	unsigned maildrops;
	bool given;	       /* maildrops are, by -m */
	const char *side;      /* -d */
	unsigned grace;	       /* -g, seconds */
	enum former former;    /* -i */
	bool preauthenticated; /* -P */
	bool proxied;	       /* -p */
	bool secured;	       /* -s */
	unsigned autologout;   /* -t, seconds */
	const char *front;     /* -u */
	char host[HOST_OCTETS + 1];
} options = {.side = "%h/.pop3-handler",
    .grace = GRACE_SECONDS,
    .autologout = AUTOLOGOUT_SECONDS,
    .front = "nobody"};

/* How a session ended; for the log. */
enum reason {
	REASON_NONE,
	REASON_QUIT,
	REASON_DISCONNECT,
	REASON_AUTOLOGOUT,
	REASON_NONSENSE,
	REASON_LOGINS,
	REASON_TLS,
	REASON_MAILDROP,
	REASON_TAKEN
};

static const char *const reason_names[] = {"none", "quit", "disconnect",
    "autologout", "nonsense", "failed-logins", "tls", "maildrop", "taken-over"};

static struct {
	bool authorized;   /* AUTHORIZATION is over */
	enum reason ended; /* REASON_NONE while the session goes on */
	unsigned nonsense; /* commands in a row that made no sense */

	/* AUTHORIZATION */
	char name[WIRE_COMMAND_OCTETS];
	bool named;    /* this command is a USER */
	bool may_pass; /* the one before was */
	unsigned commands;
	int monitor;		  /* where the front sends its requests */
	char stamp[STAMP_OCTETS]; /* of this connection, for APOP */

	/* TRANSACTION and UPDATE */
	struct maildrop maildrop;
	enum maildrop_result scanned;
	unsigned retrieved;
	struct maildrop_tally tally;
} session;

/* ---- Replies to what is wrong ---- */

static void
end_session(enum reason reason)
{
	if (session.ended == REASON_NONE)
		session.ended = reason;
}

/* A command that makes no sense; many in a row end the session. */
static void
err_nonsense(const char *text)
{
	wire_err("%s", text);
	if (++session.nonsense >= NONSENSE_MAX)
		end_session(REASON_NONSENSE);
}

static void
err_no_message(void)
{
	wire_err("no such message");
}

/* What a failure of the maildrop means to the client (RFC 2449, RFC 3206). */
static const char *
failure_text(enum maildrop_result result)
{
	switch (result) {
	case MAILDROP_IN_USE:
		return "[IN-USE] another session has the maildrop";
	case MAILDROP_PERM:
		return "[SYS/PERM] the maildrop cannot be used";
	case MAILDROP_VANISHED:
		return "somebody else has removed the message";
	default:
		return "[SYS/TEMP] the maildrop cannot be used now";
	}
}

static enum reason
reason_of(enum wire_status status)
{
	return status == WIRE_AUTOLOGOUT ? REASON_AUTOLOGOUT
					 : REASON_DISCONNECT;
}

/* ---- Arguments ---- */

/* The one judge of numbers: decimal digits only. What does not fit is larger
 * than anything there is. */
static bool
read_number(const char *text, uint64_t *number)
{
	*number = 0;
	if (*text == '\0')
		return false;
	for (; *text != '\0'; text++) {
		if (*text < '0' || *text > '9')
			return false;
		if (*number > UINT64_MAX / 10 - 1)
			*number = UINT64_MAX / 10;
		else
			*number = *number * 10 + (uint64_t)(*text - '0');
	}
	return true;
}

/* The one judge of message numbers: that of a message that is there and not
 * marked deleted, or 0 after the -ERR reply. */
static unsigned
read_message(const char *text)
{
	const struct message_table *table = &session.maildrop.table;
	uint64_t number;

	if (!read_number(text, &number)) {
		err_nonsense("a message number is decimal digits");
	} else if (number < 1 || number > table->count) {
		err_no_message();
	} else if (table->row[number - 1].flags & MESSAGE_DELETED) {
		wire_err("message %u is deleted", (unsigned)number);
	} else {
		return (unsigned)number;
	}
	return 0;
}

/* ---- Both states ---- */

/* Whether a password may be sent as it is, in clear text. */
static bool
plaintext_allowed(void)
{
	return !options.secured || peer_protected();
}

static void
do_capa(char *argument)
{
	static const char both[] = "TOP\r\nUIDL\r\nRESP-CODES\r\n"
				   "AUTH-RESP-CODE\r\nPIPELINING\r\n"
				   "EXPIRE NEVER\r\n";
	static const char plain[] = "USER\r\nSASL PLAIN\r\n";

	(void)argument;
	wire_ok("capabilities follow");
	if (!options.preauthenticated && plaintext_allowed())
		wire_text(plain, sizeof(plain) - 1);
	wire_text(both, sizeof(both) - 1);
	if (!session.authorized && peer_offers_tls())
		wire_text("STLS\r\n", 6);
	if (session.authorized) {
		static const char name[] =
		    "IMPLEMENTATION pop3-handler-" VERSION "\r\n";

		wire_text(name, sizeof(name) - 1);
	}
	wire_dot();
}

/* ---- AUTHORIZATION, in the front ---- */

/*
 * Front and monitor speak by records on a socket that keeps their bounds. The
 * front: ALIVE, a command came; PASSWORD or APOP, name NUL secret NUL; TLS, the
 * client waits for a handshake; ENDED reason. The monitor answers TLS when
 * there is TLS, and otherwise ends. It answers a login with one octet, or
 * accepts it: then it ends the front and speaks to the client itself.
 */
enum record {
	RECORD_ALIVE = 'a',
	RECORD_PASSWORD = 'p',
	RECORD_APOP = 'd',
	RECORD_TLS = 't',
	RECORD_ENDED = 'e'
};
enum answer {
	ANSWER_REFUSED = 'R',
	ANSWER_LAST = 'L', /* refused, and that was the last try */
	ANSWER_TEMP = 'T',
	ANSWER_PERM = 'P',
	ANSWER_TLS = 'S'
};

#define RECORD_OCTETS (1 + WIRE_COMMAND_OCTETS + 1 + SECRET_OCTETS + 1)

static void
tell_monitor(const char *record, size_t length)
{
	if (send(session.monitor, record, length, MSG_NOSIGNAL) == -1)
		end_session(REASON_DISCONNECT);
}

/* Waits for what the monitor answers; 0 if there will be none. */
static char
hear_monitor(void)
{
	enum wire_status status;
	char answer;

	if (session.ended != REASON_NONE)
		return 0; /* it has not even heard of us */
	status = wire_await(session.monitor, true, -1);
	if (status != WIRE_OK)
		end_session(reason_of(status));
	else if (recv(session.monitor, &answer, 1, 0) != 1)
		end_session(REASON_DISCONNECT);
	else
		return answer;
	return 0;
}

/* Refuses a command that would show a password to everybody. */
static bool
refuse_plaintext(void)
{
	if (plaintext_allowed())
		return false;
	err_nonsense(peer_offers_tls() ? "not without TLS: STLS first"
				       : "not without TLS");
	return true;
}

static void
do_user(char *argument)
{
	if (refuse_plaintext())
		return;
	/* Nobody learns here which names exist: RFC 1939 section 13. */
	strcpy(session.name, argument);
	session.named = true;
	wire_ok("now the password");
}

/* Asks the monitor to decide on a login, and tells the client of a refusal. */
static void
log_in(enum record mechanism, const char *name, const char *secret)
{
	static char record[RECORD_OCTETS];
	size_t length = strlen(name) + 1, more = strlen(secret) + 1;

	if (length > WIRE_COMMAND_OCTETS + 1 || more > SECRET_OCTETS + 1) {
		wire_err("name or password too long");
		return;
	}
	record[0] = (char)mechanism;
	memcpy(record + 1, name, length);
	memcpy(record + 1 + length, secret, more);
	tell_monitor(record, 1 + length + more);
	explicit_bzero(record, 1 + length + more);
	switch (hear_monitor()) {
	case 0:
		break;
	case ANSWER_TEMP:
		wire_err("[SYS/TEMP] logins are not possible now");
		break;
	case ANSWER_PERM:
		wire_err("[SYS/PERM] this account cannot be used");
		break;
	case ANSWER_LAST:
		end_session(REASON_LOGINS);
		/* FALLTHROUGH */
	default:
		wire_err("[AUTH] wrong name or password");
	}
}

static void
do_pass(char *argument)
{
	if (refuse_plaintext())
		return;
	if (!session.may_pass) {
		err_nonsense("USER comes first");
		return;
	}
	log_in(RECORD_PASSWORD, session.name, argument);
	explicit_bzero(argument, strlen(argument));
}

/* RFC 1939 section 7: a name, and 16 octets as lower-case hex digits. */
static void
do_apop(char *argument)
{
	char *digest = strchr(argument, ' ');

	*digest++ = '\0';
	if (!options.apop)
		err_nonsense("no timestamp was given");
	else if (strlen(digest) != DIGEST_HEX ||
		 strspn(digest, "0123456789abcdef") != DIGEST_HEX)
		err_nonsense("a digest is 32 lower-case hex digits");
	else
		log_in(RECORD_APOP, argument, digest);
}

/*
 * SASL PLAIN (RFC 4616): authorization identity NUL name NUL password. `text`
 * is base64 and is overwritten.
 */
static void
log_in_plain(char *text, size_t length)
{
	char *name, *secret, *end;
	ssize_t decoded = -1;

	if (strcmp(text, "=") == 0)
		decoded = 0;
	else if (length > 0)
		decoded = base64_decode(text, length, text);
	if (decoded == -1) {
		err_nonsense("not base64");
		return;
	}
	end = text + decoded;
	*end = '\0';
	name = memchr(text, '\0', (size_t)decoded);
	secret = name == NULL
		     ? NULL
		     : memchr(name + 1, '\0', (size_t)(end - name - 1));
	if (secret == NULL || secret + 1 + strlen(secret + 1) != end) {
		err_nonsense("not an identity, a name and a password");
	} else if (*text != '\0' && strcmp(text, name + 1) != 0) {
		err_nonsense("nobody is let in as somebody else");
	} else {
		log_in(RECORD_PASSWORD, name + 1, secret + 1);
	}
	explicit_bzero(text, length);
}

/* RFC 5034. Alone it lists the mechanisms, as clients before that expect. */
static void
do_auth(char *argument)
{
	char *initial = strchr(argument, ' ');
	enum wire_status status;
	size_t length;

	if (*argument == '\0') {
		wire_ok("mechanisms follow");
		if (plaintext_allowed())
			wire_text("PLAIN\r\n", 7);
		wire_dot();
		return;
	}
	if (initial != NULL)
		*initial++ = '\0';
	if (strcasecmp(argument, "PLAIN") != 0) {
		err_nonsense("unknown mechanism");
		return;
	}
	if (refuse_plaintext())
		return;
	if (initial != NULL) {
		log_in_plain(initial, strlen(initial));
		return;
	}
	wire_text("+ \r\n", 4);
	status = wire_answer(&initial, &length);
	if (status == WIRE_TOO_LONG)
		err_nonsense("answer too long");
	else if (status != WIRE_OK)
		end_session(reason_of(status));
	else if (strcmp(initial, "*") == 0)
		wire_err("cancelled");
	else if (strlen(initial) != length)
		err_nonsense("not base64");
	else
		log_in_plain(initial, length);
}

/*
 * RFC 2595. We have read no octet behind the line, so what somebody put there
 * in clear text goes to the handshake, which fails. What is known of the client
 * from before is forgotten.
 */
static void
do_stls(char *argument)
{
	(void)argument;
	if (!peer_offers_tls()) {
		err_nonsense(peer_protected() ? "TLS is there already"
					      : "there is no TLS here");
		return;
	}
	wire_ok("begin TLS");
	if (wire_flush() != WIRE_OK) {
		end_session(reason_of(wire_flush()));
		return;
	}
	tell_monitor(&(char){RECORD_TLS}, 1);
	if (hear_monitor() != ANSWER_TLS || peer_switch_to_tls() == -1) {
		end_session(REASON_TLS);
		return;
	}
	wire_open(WIRE_BY_OCTET, options.autologout, session.monitor);
	explicit_bzero(session.name, sizeof(session.name));
}

static void
do_authorization_quit(char *argument)
{
	(void)argument;
	wire_ok("bye");
	end_session(REASON_QUIT);
}

/* ---- TRANSACTION ---- */

static void
do_noop(char *argument)
{
	(void)argument;
	wire_ok("still here");
}

static void
do_stat(char *argument)
{
	(void)argument;
	wire_ok("%u %llu", session.maildrop.count,
	    (unsigned long long)session.maildrop.octets);
}

static void
do_list(char *argument)
{
	const struct message_table *table = &session.maildrop.table;
	unsigned n;

	if (*argument != '\0') {
		n = read_message(argument);
		if (n > 0)
			wire_ok("%u %llu", n,
			    (unsigned long long)table->row[n - 1].octets);
		return;
	}
	wire_ok("%u messages (%llu octets)", session.maildrop.count,
	    (unsigned long long)session.maildrop.octets);
	for (n = 1; n <= table->count; n++) {
		if (table->row[n - 1].flags & MESSAGE_DELETED)
			continue;
		wire_listed_number(n, table->row[n - 1].octets);
	}
	wire_dot();
}

static void
do_uidl(char *argument)
{
	const struct message_table *table = &session.maildrop.table;
	char id[MAILDROP_UID_OCTETS + 1], *end;
	enum maildrop_result result;
	unsigned n = 1;

	if (*argument != '\0') {
		n = read_message(argument);
		if (n == 0)
			return;
	}
	/* The first one asked for shows whether there are any to be had. */
	if (table->count > 0) {
		result = maildrop_unique_id(&session.maildrop, n, id, &end);
		if (result != MAILDROP_OK) {
			wire_err("%s", failure_text(result));
			return;
		}
	}
	if (*argument != '\0') {
		wire_ok("%u %s", n, id);
		return;
	}
	wire_ok("unique-ids follow");
	for (n = 1; n <= table->count; n++) {
		if (table->row[n - 1].flags & MESSAGE_DELETED)
			continue;
		maildrop_unique_id(&session.maildrop, n, wire_listed(n), &end);
		wire_listed_end(end);
	}
	wire_dot();
}

/* The client keeps us waiting: another session may have the maildrop. */
static void
yield_maildrop(void)
{
	maildrop_yield(&session.maildrop);
}

/* Takes the maildrop back before it is touched. If another session has had it
 * and is not done, or has changed it, then it is as on autologout. */
static bool
resume_maildrop(void)
{
	if (maildrop_resume(&session.maildrop))
		return true;
	end_session(REASON_TAKEN);
	return false;
}

/* What a message is sent to; the client may keep us waiting in between. */
static int
send_octets(void *context, const char *data, size_t length)
{
	return wire_message(context, data, length) == 0 && resume_maildrop()
		   ? 0
		   : -1;
}

/* Sends message `n` or its top, once the reply can no longer be -ERR. */
static void
send_message(unsigned n, struct stored *where, uint64_t lines)
{
	enum maildrop_result result;

	/* The client may have kept us waiting since it was found. */
	if (!resume_maildrop()) {
		if (where->close)
			close(where->fd);
		return;
	}
	wire_message_begin();
	result = maildrop_send(
	    &session.maildrop, n, where, lines, send_octets, NULL);
	if (result == MAILDROP_OK) {
		wire_message_end();
		return;
	}
	/* Half a message is out and there is no way to say so, but to hang
	 * up; the loop over the commands sees a client that is gone. */
	if (result != MAILDROP_STOPPED)
		end_session(REASON_MAILDROP);
}

/* Finds the message that `text` names; 0 after the -ERR reply. */
static unsigned
find_message(const char *text, struct stored *where)
{
	unsigned n = read_message(text);
	enum maildrop_result result;

	if (n == 0)
		return 0;
	result = maildrop_find(&session.maildrop, n, where);
	if (result == MAILDROP_OK)
		return n;
	wire_err("%s", failure_text(result));
	return 0;
}

static void
do_retr(char *argument)
{
	struct stored where;
	unsigned n = find_message(argument, &where);

	if (n == 0)
		return;
	wire_text("+OK ", 4);
	wire_number(session.maildrop.table.row[n - 1].octets);
	wire_text(" octets\r\n", 9);
	send_message(n, &where, MAILDROP_ALL_LINES);
	session.retrieved++;
}

static void
do_top(char *argument)
{
	char *lines = strchr(argument, ' ');
	struct stored where;
	uint64_t count;
	unsigned n;

	*lines++ = '\0';
	if (!read_number(lines, &count)) {
		err_nonsense("TOP takes a message number and a line count");
		return;
	}
	n = find_message(argument, &where);
	if (n == 0)
		return;
	wire_ok("top of message follows");
	send_message(n, &where, count);
}

static void
do_dele(char *argument)
{
	unsigned n = read_message(argument);

	if (n == 0)
		return;
	maildrop_mark(&session.maildrop, n);
	wire_ok("message %u deleted", n);
}

static void
do_rset(char *argument)
{
	(void)argument;
	maildrop_reset(&session.maildrop);
	wire_ok("%u messages (%llu octets)", session.maildrop.count,
	    (unsigned long long)session.maildrop.octets);
}

/* ---- UPDATE ---- */

static void
do_quit(char *argument)
{
	struct maildrop_tally *tally = &session.tally;
	enum maildrop_result result;
	enum wire_status status;
	sigset_t all, before;

	(void)argument;
	/* What the client has not been sent, it must not lose: everything is
	 * out and nothing says that it is gone, or there is no UPDATE. */
	status = wire_settled();
	if (status != WIRE_OK) {
		end_session(reason_of(status));
		return;
	}
	if (!resume_maildrop())
		return;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	result = maildrop_update(&session.maildrop, tally);
	/* RFC 1939 section 6: the lock is released before the answer. */
	maildrop_close(&session.maildrop);
	sigprocmask(SIG_SETMASK, &before, NULL);
	end_session(REASON_QUIT);
	if (result == MAILDROP_OK)
		wire_ok("%u deleted", tally->removed);
	else
		wire_err("[SYS/%s] %s",
		    result == MAILDROP_PERM ? "PERM" : "TEMP",
		    tally->removed == 0 && !tally->unfinished
			? "nothing removed"
			: "some deleted messages not removed");
}

/* ---- Commands ---- */

enum arguments { NONE, ONE, PERHAPS_ONE, PERHAPS_TWO, TWO, REST };

struct verb {
	const char *name;
	enum arguments arguments;
	bool maildrop; /* needs it */
	void (*run)(char *argument);
};

static const struct verb authorization[] = {
    {"CAPA", NONE, false, do_capa},
    {"USER", ONE, false, do_user},
    {"PASS", REST, false, do_pass},
    {"APOP", TWO, false, do_apop},
    {"AUTH", PERHAPS_TWO, false, do_auth},
    {"STLS", NONE, false, do_stls},
    {"QUIT", NONE, false, do_authorization_quit},
    {NULL, NONE, false, NULL},
};

static const struct verb transaction[] = {
    {"STAT", NONE, true, do_stat},
    {"LIST", PERHAPS_ONE, true, do_list},
    {"UIDL", PERHAPS_ONE, true, do_uidl},
    {"RETR", ONE, true, do_retr},
    {"TOP", TWO, true, do_top},
    {"DELE", ONE, true, do_dele},
    {"RSET", NONE, true, do_rset},
    {"NOOP", NONE, false, do_noop},
    {"CAPA", NONE, false, do_capa},
    {"QUIT", NONE, true, do_quit},
    {NULL, NONE, false, NULL},
};

static const struct verb *
find_verb(const struct verb *verb, const char *name)
{
	for (; verb->name != NULL; verb++)
		if (strcasecmp(verb->name, name) == 0)
			return verb;
	return NULL;
}

/* Whether `text`, without spaces at its end, is so many words with single
 * spaces between them. */
static bool
fits(enum arguments arguments, const char *text)
{
	unsigned words = *text != '\0';
	const char *p;

	if (arguments == REST)
		return true;
	for (p = text; *p != '\0'; p++)
		if (*p == ' ') {
			if (p == text || p[1] == ' ')
				return false;
			words++;
		}
	switch (arguments) {
	case NONE:
		return words == 0;
	case PERHAPS_ONE:
		return words <= 1;
	case PERHAPS_TWO:
		return words <= 2;
	case TWO:
		return words == 2;
	default:
		return words == 1;
	}
}

static bool
has_control(const char *line, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			return true;
	return false;
}

static void
run_verb(const struct verb *verb, char *argument)
{
	size_t length = strlen(argument);
	unsigned nonsense;

	if (verb->arguments != REST)
		while (length > 0 && argument[length - 1] == ' ')
			argument[--length] = '\0';
	if (!fits(verb->arguments, argument)) {
		err_nonsense("wrong arguments");
		return;
	}
	if (verb->maildrop && session.scanned != MAILDROP_OK) {
		wire_err("%s", failure_text(session.scanned));
		end_session(REASON_MAILDROP);
		return;
	}
	nonsense = session.nonsense;
	verb->run(argument);
	if (session.nonsense == nonsense)
		session.nonsense = 0;
}

/* Judges one line and runs it. */
static void
obey(char *line, size_t length)
{
	const struct verb *verbs =
	    session.authorized ? transaction : authorization;
	const struct verb *verb,
	    *others = session.authorized ? authorization : transaction;
	char *argument = line + strcspn(line, " ");

	/* RFC 1939 section 7: PASS comes right after a USER. */
	session.may_pass = session.named;
	session.named = false;
	if (has_control(line, length)) {
		err_nonsense("a command has no control characters");
		return;
	}
	if (*argument == ' ')
		*argument++ = '\0';
	verb = find_verb(verbs, line);
	if (verb != NULL && verb->arguments == REST && *argument == '\0')
		err_nonsense("wrong arguments");
	else if (verb != NULL)
		run_verb(verb, argument);
	else if (find_verb(others, line) != NULL)
		err_nonsense("not in this state");
	else
		err_nonsense("unknown command");
}

/* Serves commands until the session ends. */
static void
serve(void)
{
	enum wire_status status;
	size_t length;
	char *line;

	while (session.ended == REASON_NONE) {
		status = wire_command(&line, &length);
		if (!session.authorized) {
			tell_monitor(&(char){RECORD_ALIVE}, 1);
			if (++session.commands > LOGIN_COMMANDS_MAX) {
				wire_err("too many commands before login");
				end_session(REASON_NONSENSE);
				break;
			}
		}
		if (wire_waited())
			session.maildrop.waited = true;
		if ((status == WIRE_OK || status == WIRE_TOO_LONG) &&
		    !resume_maildrop())
			break;
		if (status == WIRE_OK) {
			obey(line, length);
		} else if (status == WIRE_TOO_LONG) {
			session.named = false;
			err_nonsense("command line too long");
		} else {
			end_session(reason_of(status));
		}
		if (!session.authorized)
			wire_wipe();
	}
	wire_close();
}

/* ---- TRANSACTION begins ---- */

/* Says no to a client that may not have its maildrop. */
static void
refuse_session(enum maildrop_result result)
{
	static const char *const names[] = {"none", "in-use", "temporary",
	    "permanent", "temporary", "temporary"};

	log_event(LOG_NOTICE, "refused", "reason=%s", names[result]);
	wire_err("%s", failure_text(result));
	wire_close();
}

/* The path of a maildrop, where it may be for this account. */
static enum maildrop_result
maildrop_path(unsigned i, const struct account *account, char path[PATH_MAX])
{
	const char *from = options.maildrop[i].path;

	if (options.maildrop[i].literal) {
		if ((size_t)snprintf(path, PATH_MAX, "%s", from) < PATH_MAX)
			return MAILDROP_OK;
		errno = ENAMETOOLONG;
	} else if (account_expand(from, account, path, PATH_MAX) == 0) {
		return MAILDROP_OK;
	}
	if (errno == ENOENT) {
		log_warning(from, "passed over: the home is not known");
		return MAILDROP_VANISHED;
	}
	log_error(from, "%s", strerror(errno));
	return MAILDROP_PERM;
}

/* Opens the first maildrop that exists. */
static enum maildrop_result
open_maildrop(const struct account *account)
{
	static struct maildrop_site site = {.group = sandbox_group};
	static char side[PATH_MAX];
	enum maildrop_result result = MAILDROP_VANISHED;
	char path[PATH_MAX];
	unsigned i;

	if (account_expand(options.side, account, side, sizeof(side)) == 0)
		site.side = side;
	site.former = options.former;
	if (!options.given && *account->maildir != '\0')
		result =
		    maildrop_open(&session.maildrop, account->maildir, &site);
	if (!options.given && result == MAILDROP_VANISHED &&
	    *account->mail != '\0')
		result = maildrop_open(&session.maildrop, account->mail, &site);
	for (i = 0; result == MAILDROP_VANISHED && i < options.maildrops; i++) {
		result = maildrop_path(i, account, path);
		if (result == MAILDROP_OK)
			result = maildrop_open(&session.maildrop, path, &site);
	}
	if (result == MAILDROP_VANISHED) {
		maildrop_open_empty(&session.maildrop);
		result = MAILDROP_OK;
	}
	/* The spool's group is for those whose maildrop is in the spool. */
	if (!session.maildrop.shared && sandbox_forget_group() == -1) {
		log_error("group", "cannot be given up: %s", strerror(errno));
		return MAILDROP_PERM;
	}
	return result;
}

static void
log_end(time_t started)
{
	unsigned left = session.tally.left;

	/* Without UPDATE everything is left. */
	if (session.maildrop.format != NULL)
		left = session.maildrop.table.count;
	log_event(LOG_INFO, "end",
	    "reason=%s retrieved=%u deleted=%u left=%u octets=%llu "
	    "seconds=%lld",
	    reason_names[session.ended], session.retrieved,
	    session.tally.removed, left, (unsigned long long)wire_sent(),
	    (long long)(time(NULL) - started));
}

/*
 * The session of an account, as the user we have become. The client hears +OK
 * before the scan: a first one that is slow must not look like a failed login.
 */
static int
run_transaction(const struct account *account, const char *welcome)
{
	struct sandbox_place place[MAILDROP_PLACES_MAX];
	enum maildrop_result result;
	char quoted[LOG_VALUE_MAX];
	time_t started = time(NULL);
	unsigned places;

	session.authorized = true;
	session.nonsense = 0;
	peer_forget_tls();
	result = open_maildrop(account);
	if (result != MAILDROP_OK) {
		refuse_session(result);
		return EX_OK;
	}
	log_prepare();
	places = maildrop_places(&session.maildrop, place);
	sandbox_cage_session(place, places);
	log_event(LOG_INFO, "login", "maildrop=%s",
	    log_quote(
		session.maildrop.format != NULL ? session.maildrop.path : "-",
		quoted));
	wire_grace(options.grace, yield_maildrop);
	wire_ok("%s", welcome);
	if (wire_flush() == WIRE_OK && resume_maildrop()) {
		session.scanned = maildrop_scan(&session.maildrop);
		serve();
	} else {
		end_session(reason_of(wire_flush()));
	}
	log_end(started);
	maildrop_close(&session.maildrop);
	return EX_OK;
}

/* ---- Front and monitor ---- */

static void
greet(void)
{
	/* A timestamp would make clients try APOP first. */
	if (options.apop)
		wire_ok(
		    "%s pop3-handler ready %s", options.host, session.stamp);
	else
		wire_ok("%s pop3-handler ready", options.host);
}

/* Makes the timestamp of this connection: in the form of a Message-ID, and
 * never the same twice (RFC 1939 section 7). */
static int
make_stamp(void)
{
	uint64_t random;

	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return -1;
	snprintf(session.stamp, sizeof(session.stamp), "<%016llx.%lx@%.64s>",
	    (unsigned long long)random, (unsigned long)time(NULL),
	    options.host);
	return 0;
}

/* The process that strangers talk to; it owns nothing and decides nothing. */
static _Noreturn void
run_front(int monitor, pid_t parent, const struct passwd *user)
{
	char record[2] = {RECORD_ENDED};

	/* An empty root is one more wall; without it there are the others. */
	if (user != NULL && sandbox_empty_root() == -1)
		log_warning("front", "no empty root: %s", strerror(errno));
	if ((user != NULL && sandbox_become(user->pw_uid, user->pw_gid,
				 user->pw_gid) == -1) ||
	    sandbox_die_with(parent) == -1)
		_exit(EX_OSERR);
	log_forget();
	sandbox_cage_front();
	session.monitor = monitor;
	peer_forget_tls_control();
	wire_open(WIRE_BY_OCTET, options.autologout, monitor);
	greet();
	serve();
	record[1] = (char)session.ended;
	send(monitor, record, sizeof(record), MSG_NOSIGNAL);
	_exit(EX_OK);
}

struct front {
	int socket;
	pid_t pid;
	unsigned failures;
};

/* Ends the front. It has nothing left to do: all that it had to say it has
 * sent before it told us or waited for us, and we owe a hostile one no time. */
static void
end_front(const struct front *front)
{
	kill(front->pid, SIGKILL);
	/* Where we may not kill it (no CAP_KILL) it ends when we are gone. */
	close(front->socket);
	while (waitpid(front->pid, NULL, 0) == -1 && errno == EINTR)
		continue;
}

static void
answer_front(const struct front *front, char answer)
{
	/* A front without an answer would wait for it: it is let go. */
	if (send(front->socket, &answer, 1, MSG_NOSIGNAL) != 1)
		shutdown(front->socket, SHUT_RDWR);
}

static int64_t
milliseconds_since(const struct timespec *then)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)(now.tv_sec - then->tv_sec) * 1000 +
	       (now.tv_nsec - then->tv_nsec) / 1000000;
}

/*
 * Refuses a login, a while after it came: the same while for an unknown name
 * and a wrong secret, and longer each time. Returns whether it may try again.
 */
static bool
refuse_login(struct front *front, const struct timespec *came)
{
	int64_t wait;

	log_event(LOG_NOTICE, "refused", "reason=credentials");
	front->failures++;
	wait = (int64_t)(front->failures * FAILURE_SECONDS * 1000) -
	       milliseconds_since(came);
	if (wait > 0 && wire_await(front->socket, true, (int)wait) != WIRE_END)
		return false;
	answer_front(front,
	    front->failures < FAILURES_MAX ? ANSWER_REFUSED : ANSWER_LAST);
	return true;
}

/* Decides on the login that a record asks for. */
static enum account_verdict
judge_login(
    struct front *front, char *record, size_t length, struct account *account)
{
	struct account_proof proof = {.name = record + 1,
	    .stamp = session.stamp,
	    .apop = record[0] == RECORD_APOP};
	const char *name = record + 1, *secret;
	enum account_verdict verdict;
	struct timespec came;

	/* Never trust a front: both must be there, ended, and nothing else. */
	secret = memchr(name, '\0', length - 1);
	if (secret == NULL || ++secret == record + length ||
	    memchr(secret, '\0', (size_t)(record + length - secret)) !=
		record + length - 1) {
		log_error("front", "malformed request");
		return ACCOUNT_TEMP;
	}
	clock_gettime(CLOCK_MONOTONIC, &came);
	log_user(name);
	proof.secret = secret;
	verdict = account_check(&options.source, &proof, account);
	if (verdict == ACCOUNT_REFUSED && !refuse_login(front, &came))
		front->failures = FAILURES_MAX;
	else if (verdict == ACCOUNT_TEMP || verdict == ACCOUNT_PERM) {
		log_event(LOG_NOTICE, "refused", "reason=%s",
		    verdict == ACCOUNT_TEMP ? "temporary" : "permanent");
		answer_front(
		    front, verdict == ACCOUNT_TEMP ? ANSWER_TEMP : ANSWER_PERM);
	}
	return verdict;
}

/* Begins TLS, which the client has been told to wait for. */
static int
begin_tls(const struct front *front)
{
	if (!peer_offers_tls() || peer_begin_tls() == -1) {
		log_warning("STLS", "no TLS with this client");
		return -1;
	}
	wire_open(WIRE_BY_BLOCK, options.autologout, -1);
	log_user("");
	answer_front(front, ANSWER_TLS);
	return 0;
}

/*
 * Listens to the front until a login is accepted, REASON_NONE, or there will
 * be none. The front has its own clock; ours only makes sure that it does not
 * outlive it.
 */
static enum reason
run_monitor(struct front *front, struct account *account)
{
	static char record[RECORD_OCTETS];
	enum account_verdict verdict;
	enum wire_status status;
	unsigned records = 0;
	ssize_t length;

	for (;;) {
		alarm(options.autologout + FRONT_GRACE);
		status = wire_await(front->socket, false, -1);
		alarm(0);
		if (status != WIRE_OK)
			return reason_of(status);
		length = recv(front->socket, record, sizeof(record), 0);
		if (length < 1)
			return front->failures < FAILURES_MAX
				   ? REASON_DISCONNECT
				   : REASON_LOGINS;
		/* One for each command, and one for what it asks for. */
		if (++records > 2 * (LOGIN_COMMANDS_MAX + 2))
			return REASON_NONSENSE;
		if (record[0] == RECORD_ALIVE)
			continue;
		if (record[0] == RECORD_ENDED && length == 2 &&
		    record[1] > REASON_NONE && record[1] <= REASON_TLS)
			return (enum reason)record[1];
		if (record[0] == RECORD_TLS) {
			if (begin_tls(front) == -1)
				return REASON_TLS;
			continue;
		}
		if ((record[0] != RECORD_PASSWORD &&
			(record[0] != RECORD_APOP || !options.apop)) ||
		    (record[0] == RECORD_PASSWORD && !plaintext_allowed()) ||
		    front->failures >= FAILURES_MAX)
			return REASON_DISCONNECT;
		verdict = judge_login(front, record, (size_t)length, account);
		explicit_bzero(record, (size_t)length);
		if (verdict == ACCOUNT_ACCEPTED)
			return REASON_NONE;
	}
}

/* Who the front is to be, where we are root; NULL where we are not. */
static const struct passwd *
front_user(void)
{
	const struct passwd *user;

	if (geteuid() != 0)
		return NULL;
	user = getpwnam(options.front);
	if (user == NULL || user->pw_uid == 0) {
		log_error("-u", "%s: %s", options.front,
		    user == NULL ? "no such user" : "must not be uid 0");
		exit(EX_CONFIG);
	}
	return user;
}

/* The group with which names are made in a shared spool; `own` without one. */
static gid_t
spool_group(gid_t own)
{
	const struct group *mail = geteuid() == 0 ? getgrnam("mail") : NULL;

	return mail != NULL ? mail->gr_gid : own;
}

/* A session with login: AUTHORIZATION in the front, the rest here. */
static int
run_login(void)
{
	const struct passwd *user = front_user();
	struct front front = {0};
	static struct account account;
	enum reason reason;
	const struct rlimit none = {0};
	pid_t parent = getpid();
	int sockets[2];

	/* Secrets pass through here, and through what we run. */
	setrlimit(RLIMIT_CORE, &none);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) ==
	    -1) {
		log_error("front", "socketpair: %s", strerror(errno));
		return EX_OSERR;
	}
	front.pid = fork();
	if (front.pid == 0) {
		close(sockets[0]);
		run_front(sockets[1], parent, user);
	}
	close(sockets[1]);
	if (front.pid == -1) {
		log_error("front", "fork: %s", strerror(errno));
		return EX_OSERR;
	}
	front.socket = sockets[0];
	wire_open(WIRE_BY_BLOCK, options.autologout, -1);
	reason = run_monitor(&front, &account);
	if (reason != REASON_NONE) {
		end_front(&front);
		log_event(LOG_INFO, "end", "reason=%s", reason_names[reason]);
		return EX_OK;
	}
	end_front(&front);
	log_user(account.name);
	if (sandbox_become(
		account.uid, account.gid, spool_group(account.gid)) == -1) {
		log_error(account.name, "cannot become the user: %s",
		    strerror(errno));
		refuse_session(MAILDROP_PERM);
		return EX_OK;
	}
	return run_transaction(&account, "welcome");
}

/* ---- Preauthenticated sessions ---- */

/* The first maildrop that exists, for its owner; false if there is none. */
static bool
find_owner(const struct account *account, struct stat *st)
{
	char path[PATH_MAX];
	const char *p;
	unsigned i;

	for (i = 0; i < options.maildrops; i++) {
		if (maildrop_path(i, account, path) != MAILDROP_OK)
			continue;
		p = path;
		maildrop_stated_format(&p);
		if (stat(p, st) == 0)
			return true;
	}
	return false;
}

/*
 * Started by root, the session is that of the maildrop's owner. Where that is
 * root as well, as in a container, it is served to what is local and never to
 * the network.
 */
static int
become_owner(struct account *account)
{
	const struct passwd *pw;
	struct stat st;

	if (geteuid() != 0)
		return 0;
	if (find_owner(account, &st) && st.st_uid != 0) {
		pw = getpwuid(st.st_uid);
		account->uid = st.st_uid;
		account->gid = pw != NULL ? pw->pw_gid : st.st_gid;
		if (pw != NULL)
			log_user(pw->pw_name);
		if (sandbox_become(account->uid, account->gid,
			spool_group(account->gid)) == 0)
			return 0;
		log_error("-P", "cannot become the owner of the maildrop: %s",
		    strerror(errno));
		return -1;
	}
	if (!peer_is_network())
		return 0;
	log_error("-P", "uid 0 does not serve the network");
	return -1;
}

static int
run_preauthenticated(void)
{
	char welcome[HOST_OCTETS + 32];
	static struct account account;

	wire_open(WIRE_BY_BLOCK, options.autologout, -1);
	account_own(&account);
	log_user(account.name);
	if (become_owner(&account) == -1) {
		refuse_session(MAILDROP_PERM);
		return EX_OK;
	}
	snprintf(
	    welcome, sizeof(welcome), "%s pop3-handler ready", options.host);
	return run_transaction(&account, welcome);
}

/* ---- Start ---- */

/* Says what is wrong with the command line, but never to a client. */
static _Noreturn void
usage(const char *option, const char *wrong)
{
	if (isatty(STDERR_FILENO)) {
		if (wrong != NULL)
			fprintf(
			    stderr, "pop3-handler: %s: %s\n", option, wrong);
	} else {
		if (log_open() == -1)
			exit(EX_OSERR);
		if (wrong != NULL)
			log_error(option, "%s", wrong);
	}
	fprintf(stderr,
	    "usage: pop3-handler [-Aps] [-a file | -c program] [-d dir] "
	    "[-g seconds]\n"
	    "           [-h name] [-i kind] [-m maildrop]... [-t seconds] "
	    "[-u user]\n"
	    "       pop3-handler -P [-p] [-d dir] [-g seconds] [-h name] "
	    "[-i kind]\n"
	    "           [-m maildrop]... [-t seconds]\n"
	    "       pop3-handler -V\n");
	exit(EX_USAGE);
}

static void
add_maildrop(const char *path)
{
	if (options.maildrops == MAILDROPS_MAX)
		usage("-m", "given too often");
	if (*path == '\0' || !account_template_valid(path))
		usage("-m", "not a path or template");
	options.maildrop[options.maildrops++].path = path;
	options.given = true;
}

/* A host name goes into the greeting and the log. */
static void
set_host(const char *name)
{
	size_t i, length = strlen(name);

	if (length == 0 || length > HOST_OCTETS)
		usage("-h", "not a host name");
	for (i = 0; i < length; i++)
		if (name[i] <= ' ' || name[i] > '~' || name[0] == '[')
			usage("-h", "not a host name");
	strcpy(options.host, name);
}

static void
set_grace(const char *text)
{
	uint64_t seconds;

	if (!read_number(text, &seconds) || seconds > INT32_MAX)
		usage("-g", "not a number of seconds");
	options.grace = (unsigned)seconds;
}

/* Whose unique-ids to take over, in the order of enum former. */
static void
set_former(const char *text)
{
	static const char *const names[] = {
	    "auto", "dovecot", "courier", "popa3d", "none"};
	unsigned i;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcmp(text, names[i]) == 0) {
			options.former = (enum former)i;
			return;
		}
	usage("-i", "not auto, dovecot, courier, popa3d or none");
}

static void
set_autologout(const char *text)
{
	uint64_t seconds;

	if (!read_number(text, &seconds) || seconds > INT32_MAX)
		usage("-t", "not a number of seconds");
	/* RFC 1939 section 3. */
	if (seconds < AUTOLOGOUT_SECONDS)
		usage("-t", "less than 600 seconds");
	options.autologout = (unsigned)seconds;
}

/* For logins a maildrop is found from the account alone. */
static void
check_templates(void)
{
	const char *path;
	unsigned i;

	for (i = 0; i < options.maildrops; i++) {
		path = options.maildrop[i].path;
		maildrop_stated_format(&path);
		if (*path != '/' && strncmp(path, "%h", 2) != 0)
			usage("-m", "must begin with / or %h");
	}
}

/* Where mail is looked for without -m: for the invoking user first where the
 * environment says. */
static void
default_maildrops(void)
{
	static const char *const variables[] = {"MAILDIR", "MAIL"};
	const char *path;
	size_t i;

	if (options.maildrops > 0)
		return;
	for (i = 0; options.preauthenticated && i < 2; i++) {
		path = getenv(variables[i]);
		if (path == NULL || *path == '\0')
			continue;
		options.maildrop[options.maildrops].path = path;
		options.maildrop[options.maildrops++].literal = true;
	}
	options.maildrop[options.maildrops++].path = "%h/Maildir";
	options.maildrop[options.maildrops++].path = "/var/mail/%u";
}

/* Options that make no sense together. */
static void
check_combination(void)
{
	bool source =
	    options.source.file != NULL || options.source.program != NULL;

	if (options.preauthenticated &&
	    (source || options.apop || options.secured))
		usage("-P", "excludes -A, -a, -c and -s");
	if (options.source.file != NULL && options.source.program != NULL)
		usage("-c", "excludes -a");
	if (options.apop && !source)
		usage("-A", "needs -a or -c: the system has no secrets");
	if (!options.preauthenticated)
		check_templates();
}

static void
read_options(int argc, char **argv)
{
	int option;

	opterr = 0;
	while ((option = getopt(argc, argv, "Aa:c:d:g:h:i:m:Ppst:u:V")) != -1)
		switch (option) {
		case 'A':
			options.apop = true;
			break;
		case 'a':
			options.source.file = optarg;
			break;
		case 'c':
			if (strlen(optarg) >= PATH_MAX ||
			    optarg[strspn(optarg, " \t")] == '\0')
				usage("-c", "not a command");
			options.source.program = optarg;
			break;
		case 'd':
			if (*optarg == '\0' || !account_template_valid(optarg))
				usage("-d", "not a path or template");
			options.side = optarg;
			break;
		case 'g':
			set_grace(optarg);
			break;
		case 'h':
			set_host(optarg);
			break;
		case 'i':
			set_former(optarg);
			break;
		case 'm':
			add_maildrop(optarg);
			break;
		case 'P':
			options.preauthenticated = true;
			break;
		case 'p':
			options.proxied = true;
			break;
		case 's':
			options.secured = true;
			break;
		case 't':
			set_autologout(optarg);
			break;
		case 'u':
			options.front = optarg;
			break;
		case 'V':
			puts("pop3-handler " VERSION);
			exit(EX_OK);
		default:
			usage((char[]){'-', (char)optopt, '\0'},
			    optopt == '?' ? NULL : "unknown or incomplete");
		}
	if (optind < argc)
		usage(argv[optind], "not an option");
	check_combination();
	default_maildrops();
}

/* A superserver may hand on anything. */
static void
reset_signals(void)
{
	struct sigaction action;
	sigset_t none;

	alarm(0);
	memset(&action, 0, sizeof(action));
	sigemptyset(&action.sa_mask);
	action.sa_handler = SIG_DFL;
	sigaction(SIGCHLD, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	action.sa_handler = SIG_IGN; /* both become errors of write(2) */
	sigaction(SIGPIPE, &action, NULL);
	sigaction(SIGXFSZ, &action, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

int
main(int argc, char **argv)
{
	/* What is opened later must not become the client by its number. */
	if (fcntl(STDIN_FILENO, F_GETFD) == -1 ||
	    fcntl(STDOUT_FILENO, F_GETFD) == -1)
		return EX_USAGE;
	if (argc == 2 && strcmp(argv[1], ACCOUNT_REPORT) == 0)
		return account_report();
	reset_signals();
	peer_offers_tls(); /* looks at the environment, while it is as it was */
	umask(077);
	read_options(argc, argv);
	if (log_open() == -1)
		return EX_OSERR;
	if (options.host[0] == '\0' &&
	    gethostname(options.host, sizeof(options.host) - 1) == -1)
		strcpy(options.host, "localhost");
	log_address(peer_address());
	if (options.proxied) {
		if (peer_read_proxy() == -1)
			return EX_OK;
		log_address(peer_address());
	}
	if (make_stamp() == -1) {
		log_error("getrandom", "%s", strerror(errno));
		return EX_OSERR;
	}
	log_event(LOG_DEBUG, "connect", "host=%s", options.host);
	return options.preauthenticated ? run_preauthenticated() : run_login();
}
