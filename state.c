/* The session lock; see state.h. */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

/* How often a file that is replaced while we lock it is tried anew. */
#define TRIES 100

enum attempt { DONE, HELD, FAILED, REPLACED };

const char *
state_unfit(const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return "not a regular file";
	if (st->st_uid != geteuid())
		return "not owned by the user";
	return st->st_nlink == 1 ? NULL : "has more than one link";
}

static enum attempt
lock_once(const char *path, int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct stat opened, named;
	const char *why;

	if (fstat(fd, &opened) == -1) {
		log_warning(path, "no session lock: %s", strerror(errno));
		return FAILED;
	}
	why = state_unfit(&opened);
	/* A file that was replaced after we opened it has no link left. */
	if (why != NULL && opened.st_nlink > 0) {
		log_warning(path, "no session lock: %s", why);
		return FAILED;
	}
	if (fcntl(fd, F_SETLK, &lock) == -1) {
		if (errno == EACCES || errno == EAGAIN)
			return HELD;
		log_warning(path, "no session lock: %s", strerror(errno));
		return FAILED;
	}
	/* A lock on a file that is not at its path any more guards nothing. */
	if (lstat(path, &named) == -1 || named.st_dev != opened.st_dev ||
	    named.st_ino != opened.st_ino)
		return REPLACED;
	return DONE;
}

enum state_lock
state_lock(const char *path, int *fd)
{
	enum attempt attempt = REPLACED;
	int i;

	*fd = -1;
	for (i = 0; i < TRIES && attempt == REPLACED; i++) {
		*fd = open(path,
		    O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY |
			O_CLOEXEC,
		    0600);
		if (*fd == -1) {
			log_warning(
			    path, "no session lock: %s", strerror(errno));
			return STATE_UNLOCKED;
		}
		attempt = lock_once(path, *fd);
		if (attempt == DONE)
			return STATE_LOCKED;
		close(*fd);
		*fd = -1;
	}
	/* Somebody replaces it all the time: another session at work. */
	return attempt == FAILED ? STATE_UNLOCKED : STATE_HELD;
}
