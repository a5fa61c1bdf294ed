/*
 * Preloaded, it makes every write to a regular file short: write(2) and
 * pwrite(2) take at most SHORT_WRITE octets ("half": half of what they are
 * given), as they may on any file system, at any time. What is shorter than
 * 64 octets write(2) takes whole: the tag of a dotlock is.
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static size_t
shortened(int fd, size_t length)
{
	const char *limit = getenv("SHORT_WRITE");
	struct stat st;
	size_t most;

	if (limit == NULL || length < 2 || fstat(fd, &st) == -1 ||
	    !S_ISREG(st.st_mode) || fd <= 2)
		return length;
	most =
	    strcmp(limit, "half") == 0 ? length / 2 : strtoul(limit, NULL, 10);
	return most < length && most > 0 ? most : length;
}

ssize_t
write(int fd, const void *from, size_t length)
{
	static ssize_t (*next)(int, const void *, size_t);

	if (next == NULL)
		*(void **)&next = dlsym(RTLD_NEXT, "write");
	return next(fd, from, length < 64 ? length : shortened(fd, length));
}

ssize_t
pwrite(int fd, const void *from, size_t length, off_t at)
{
	static ssize_t (*next)(int, const void *, size_t, off_t);

	if (next == NULL)
		*(void **)&next = dlsym(RTLD_NEXT, "pwrite64");
	return next(fd, from, shortened(fd, length), at);
}

/* What programs call that are built with large files. */
ssize_t
pwrite64(int fd, const void *from, size_t length, off64_t at)
{
	return pwrite(fd, from, length, at);
}
