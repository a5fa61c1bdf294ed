/* The log; see log.h for the form of a line. */
#include "log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define IDENT "pop3-handler"
#define LINE_OCTETS 4096
#define SYSLOG_SOCKET "/dev/log"

static struct {
	bool to_syslog;
	int socket; /* -1 until it is needed */
	const char *address;
	char user[LOG_VALUE_MAX];
} log_to = {.socket = -1, .address = "-", .user = "-"};

static bool
same_file(int fd, const struct stat *as)
{
	struct stat st;

	return fstat(fd, &st) == 0 && st.st_dev == as->st_dev &&
	       st.st_ino == as->st_ino;
}

int
log_open(void)
{
	struct stat st;
	int null;

	if (fstat(STDERR_FILENO, &st) == 0 && !same_file(STDIN_FILENO, &st) &&
	    !same_file(STDOUT_FILENO, &st))
		return 0;
	log_to.to_syslog = true;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null == -1)
		return -1;
	if (null == STDERR_FILENO)
		return 0;
	if (dup2(null, STDERR_FILENO) == -1)
		return -1;
	return close(null);
}

void
log_address(const char *address)
{
	log_to.address = address;
}

void
log_user(const char *name)
{
	log_quote(*name != '\0' ? name : "-", log_to.user);
}

const char *
log_quote(const char *value, char out[LOG_VALUE_MAX])
{
	const char *from = value;
	char *to = out;
	bool plain = *value != '\0';

	for (; *from != '\0'; from++)
		if (*from <= ' ' || *from > '~' || strchr("\"\\=", *from))
			plain = false;
	if (!plain)
		*to++ = '"';
	/* The longest thing one octet becomes is \xHH; then '"' and NUL. */
	for (from = value; *from != '\0' && to - out < LOG_VALUE_MAX - 6;
	     from++)
		if (*from == '"' || *from == '\\') {
			*to++ = '\\';
			*to++ = *from;
		} else if (*from < ' ' || *from > '~') {
			to += sprintf(to, "\\x%02x", (unsigned char)*from);
		} else {
			*to++ = *from;
		}
	if (!plain)
		*to++ = '"';
	*to = '\0';
	return out;
}

void
log_prepare(void)
{
	if (!log_to.to_syslog || log_to.socket != -1)
		return;
	tzset();
	log_to.socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

void
log_forget(void)
{
	if (log_to.socket != -1)
		close(log_to.socket);
	log_to.socket = -1;
}

/*
 * Sends a line to syslog. Not by syslog(3): that makes a new socket when the
 * daemon has been restarted, which a caged process must not. Ours is not
 * connected, and each line finds the daemon anew.
 */
static void
send_to_syslog(int priority, const char *line)
{
	static const struct sockaddr_un to = {
	    .sun_family = AF_UNIX, .sun_path = SYSLOG_SOCKET};
	char text[LINE_OCTETS + 128], stamp[32];
	time_t now = time(NULL);
	struct tm local;
	ssize_t sent;
	int length;

	log_prepare();
	if (localtime_r(&now, &local) == NULL ||
	    strftime(stamp, sizeof(stamp), "%b %e %T", &local) == 0)
		return;
	length = snprintf(text, sizeof(text), "<%d>%s " IDENT "[%ld]: %s",
	    LOG_MAIL | priority, stamp, (long)getpid(), line);
	sent = sendto(log_to.socket, text, (size_t)length, MSG_NOSIGNAL,
	    (const struct sockaddr *)&to, sizeof(to));
	(void)sent;
}

/* Sends one finished line; nothing can be done where that fails. */
static void
send_line(int priority, char *line, size_t length)
{
	ssize_t written;

	if (log_to.to_syslog) {
		send_to_syslog(priority, line);
		return;
	}
	line[length++] = '\n';
	written = write(STDERR_FILENO, line, length);
	(void)written;
}

/* syslog has its own ways to leave out what is for debugging. */
static bool
is_wanted(int priority)
{
	return priority != LOG_DEBUG || log_to.to_syslog;
}

/* Begins a line, up to where the pairs of the event come. */
static size_t
begin_line(char line[LINE_OCTETS], const char *event)
{
	int length = 0;

	/* syslog puts name and pid before the line itself. */
	if (!log_to.to_syslog)
		length = snprintf(
		    line, LINE_OCTETS, IDENT "[%ld]: ", (long)getpid());
	length += snprintf(line + length, LINE_OCTETS - (size_t)length,
	    "event=%s addr=%s user=%s ", event, log_to.address, log_to.user);
	return (size_t)length;
}

/* Adds the pairs, and sends the line. */
static void
end_line(int priority, char line[LINE_OCTETS], size_t length,
    const char *format, va_list ap)
{
	const size_t room = LINE_OCTETS - 1; /* and LF */
	int more = vsnprintf(line + length, room - length, format, ap);

	if (more > 0)
		length += (size_t)more;
	send_line(priority, line, length < room ? length : room - 1);
}

void
log_event(int priority, const char *event, const char *format, ...)
{
	char line[LINE_OCTETS];
	va_list ap;

	if (!is_wanted(priority))
		return;
	va_start(ap, format);
	end_line(priority, line, begin_line(line, event), format, ap);
	va_end(ap);
}

static void
log_trouble(int priority, const char *event, const char *file,
    const char *format, va_list ap)
{
	char text[LOG_VALUE_MAX], name[LOG_VALUE_MAX], quoted[LOG_VALUE_MAX];

	vsnprintf(text, sizeof(text), format, ap);
	log_event(priority, event, "file=%s text=%s", log_quote(file, name),
	    log_quote(text, quoted));
}

void
log_error(const char *file, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	log_trouble(LOG_ERR, "error", file, format, ap);
	va_end(ap);
}

void
log_warning(const char *file, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	log_trouble(LOG_WARNING, "warning", file, format, ap);
	va_end(ap);
}
