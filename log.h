/*
 * One line per event, to syslog or stderr, never to the client. Every line is
 * key=value and begins with event=, addr= and user=, so that neither a name
 * nor an address can pass for another key: values with blanks or anything
 * unprintable are quoted, with \xHH for what is not printable ASCII.
 */
#ifndef LOG_H
#define LOG_H

#include <stddef.h>
#include <syslog.h>

#define LOG_VALUE_MAX 1100 /* octets a quoted value may take, with its NUL */

/*
 * Decides where lines go. Where fd 2 is the same file as fd 0 or 1 it is the
 * client (inetd makes it so): lines go to syslog (facility mail) and fd 2 is
 * pointed at /dev/null. The same where fd 2 is not open. Otherwise fd 2.
 * Returns 0, or -1 with errno where fd 2 cannot be made safe.
 */
int log_open(void);

/* Makes what sending to syslog needs, before a cage forbids new sockets. */
void log_prepare(void);

/* For a process that will log nothing more: closes what log_prepare() made. */
void log_forget(void);

/* The client's address for all further lines; kept by reference. */
void log_address(const char *address);

/* The user for all further lines; copied. An empty name is logged as "-". */
void log_user(const char *name);

/* Quotes `value` as above into `out`, which holds at least LOG_VALUE_MAX. */
const char *log_quote(const char *value, char out[LOG_VALUE_MAX]);

/*
 * Logs event=`event` at a syslog(3) priority, with further key=value pairs
 * from a printf(3) format; values that others chose go through log_quote().
 */
void log_event(int priority, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Logs event=error (or event=warning) for a file or option: file=`file`
 * text="...". `format` is that of printf(3), without a line end.
 */
void log_error(const char *file, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void log_warning(const char *file, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
