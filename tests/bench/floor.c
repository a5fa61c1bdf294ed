/*
 * floor: the least that a server could do, to compare servers with. It answers
 * STAT, RETR and QUIT, has no locks, and believes its client.
 *
 * usage: floor talk           answers from constants
 *        floor lines FILE     first looks for each line end in it
 *        floor readall DIR    first reads every file of that Maildir
 *        floor list DIR       first reads the names in that Maildir
 *        floor unlink DIR     QUIT removes every second of them
 *        floor mbox FILE      RETR n sends that message
 *        floor maildir DIR    the same
 *
 * With "whole" as third argument a reply to RETR is one write, however long.
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 131072
#define WHOLE (16 << 20)

static char block[BLOCK], *out, in[65536];
static size_t out_end, out_room = BLOCK;

/* The names of new/ and then cur/, one after the other. */
static struct {
	char *octets;
	size_t used, room;
	size_t *at;
	size_t count, at_room, in_new;
} names;
static int new_fd, cur_fd;

static off_t *offset; /* of the messages of an mbox, and its end */
static size_t messages;
static int mbox = -1;

static void
flush(void)
{
	size_t done = 0;
	ssize_t n;

	for (; done < out_end; done += (size_t)n) {
		n = write(1, out + done, out_end - done);
		if (n == -1)
			exit(1);
	}
	out_end = 0;
}

static void
say(const char *text)
{
	size_t length = strlen(text);

	if (out_end + length > out_room)
		flush();
	memcpy(out + out_end, text, length);
	out_end += length;
}

static void
scan_lines(const char *path)
{
	int fd = open(path, O_RDONLY);
	size_t lines = 0;
	ssize_t n;

	while ((n = read(fd, block, sizeof(block))) > 0) {
		const char *p = block, *end = block + n;

		while ((p = memchr(p, '\n', (size_t)(end - p))) != NULL) {
			lines++;
			p++;
		}
	}
	if (n == -1 || lines == 0)
		err(1, "%s", path);
	close(fd);
}

static void *
grown(void *p, size_t octets)
{
	p = realloc(p, octets);
	if (p == NULL)
		err(1, "memory");
	return p;
}

static void
add_name(const char *name)
{
	size_t length = strlen(name) + 1;

	if (names.used + length > names.room)
		names.octets =
		    grown(names.octets, names.room = names.room * 2 + BLOCK);
	if (names.count == names.at_room)
		names.at =
		    grown(names.at, (names.at_room = names.at_room * 2 + 1024) *
					sizeof(size_t));
	memcpy(names.octets + names.used, name, length);
	names.at[names.count++] = names.used;
	names.used += length;
}

static int
list_one(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY);
	DIR *dir = fdopendir(dup(fd));
	struct dirent *entry;

	if (dir == NULL)
		err(1, "%s", name);
	while ((entry = readdir(dir)) != NULL)
		if (entry->d_name[0] != '.')
			add_name(entry->d_name);
	closedir(dir);
	return fd;
}

static int
compare(const void *a, const void *b)
{
	return strcmp(names.octets + *(const size_t *)a,
	    names.octets + *(const size_t *)b);
}

static void
list(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);

	if (fd == -1)
		err(1, "%s", path);
	new_fd = list_one(fd, "new");
	names.in_new = names.count;
	cur_fd = list_one(fd, "cur");
	close(fd);
}

static int
open_message(size_t n)
{
	int fd = openat(n < names.in_new ? new_fd : cur_fd,
	    names.octets + names.at[n], O_RDONLY);

	if (fd == -1)
		err(1, "%s", names.octets + names.at[n]);
	return fd;
}

static void
read_all(void)
{
	size_t i;

	for (i = 0; i < names.count; i++) {
		int fd = open_message(i);

		while (read(fd, block, sizeof(block)) > 0)
			;
		close(fd);
	}
}

static void
remove_half(void)
{
	size_t i;

	for (i = 0; i < names.count; i += 2)
		if (unlinkat(i < names.in_new ? new_fd : cur_fd,
			names.octets + names.at[i], 0) == -1)
			err(1, "unlink");
	if (fsync(new_fd) == -1 || fsync(cur_fd) == -1)
		err(1, "fsync");
}

/* Where the messages of an mbox begin. */
static void
index_mbox(const char *path)
{
	size_t room = 0;
	struct stat st;
	char *line = NULL;
	size_t line_room = 0;
	off_t at = 0;
	ssize_t n;
	FILE *f = fopen(path, "r");

	if (f == NULL || fstat(fileno(f), &st) == -1)
		err(1, "%s", path);
	while ((n = getline(&line, &line_room, f)) != -1) {
		if (messages + 1 >= room)
			offset = grown(
			    offset, (room = room * 2 + 1024) * sizeof(off_t));
		if (strncmp(line, "From ", 5) == 0)
			offset[messages++] = at;
		at += n;
	}
	offset[messages] = at;
	fclose(f);
	mbox = open(path, O_RDONLY);
}

/* Read, convert, write: line ends as CRLF, dots doubled. */
static void
send_octets(int fd, off_t at, off_t end, bool skip)
{
	bool start = true;
	ssize_t n;

	while (at < end) {
		size_t want = end - at < BLOCK ? (size_t)(end - at) : BLOCK;
		const char *p = block, *stop, *eol;

		n = pread(fd, block, want, at);
		if (n <= 0)
			break;
		at += n;
		stop = block + n;
		if (skip)
			p = (const char *)memchr(p, '\n', (size_t)n) + 1;
		skip = false;
		while (p < stop) {
			size_t length;

			if (start && *p == '.')
				say(".");
			eol = memchr(p, '\n', (size_t)(stop - p));
			length = (size_t)((eol == NULL ? stop : eol) - p);
			while (out_end + length + 2 > out_room) {
				size_t part = out_room - out_end;

				part = part < length ? part : length;
				memcpy(out + out_end, p, part);
				out_end += part;
				flush();
				p += part;
				length -= part;
			}
			memcpy(out + out_end, p, length);
			out_end += length;
			start = eol != NULL;
			p += length + start;
			if (start) {
				out[out_end++] = '\r';
				out[out_end++] = '\n';
			}
		}
	}
}

static void
retr(size_t n)
{
	int fd;

	say("+OK\r\n");
	if (mbox != -1) {
		if (n < messages) /* without From_ line and the empty one */
			send_octets(mbox, offset[n], offset[n + 1] - 1, true);
	} else if (n < names.count) {
		fd = open_message(n);
		send_octets(fd, 0, (off_t)1 << 40, false);
		close(fd);
	}
	say(".\r\n");
}

static void
serve(bool unlinks)
{
	size_t start = 0, end = 0;
	char *eol;
	ssize_t n;

	for (;;) {
		eol = memchr(in + start, '\n', end - start);
		if (eol == NULL) {
			flush();
			memmove(in, in + start, end - start);
			end -= start;
			start = 0;
			n = read(0, in + end, sizeof(in) - end);
			if (n <= 0)
				return;
			end += (size_t)n;
			continue;
		}
		if (in[start] == 'R') {
			retr(strtoul(in + start + 5, NULL, 10) - 1);
		} else if (in[start] == 'Q') {
			if (unlinks)
				remove_half();
			say("+OK\r\n");
			flush();
			return;
		} else {
			say("+OK 1 1\r\n");
		}
		start = (size_t)(eol + 1 - in);
	}
}

int
main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int on = 1;

	if (argc > 3)
		out_room = WHOLE;
	setsockopt(1, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (strcmp(mode, "talk") == 0)
		out_room = 512;
	else if (argc < 3)
		errx(64, "usage: see floor.c");
	else if (strcmp(mode, "lines") == 0)
		scan_lines(argv[2]);
	else if (strcmp(mode, "mbox") == 0)
		index_mbox(argv[2]);
	else
		list(argv[2]);
	if (strcmp(mode, "readall") == 0)
		read_all();
	if (strcmp(mode, "unlink") == 0 || strcmp(mode, "maildir") == 0)
		qsort(names.at, names.count, sizeof(size_t), compare);
	out = malloc(out_room);
	if (out == NULL)
		err(1, "memory");
	say("+OK\r\n");
	serve(strcmp(mode, "unlink") == 0);
	return 0;
}
