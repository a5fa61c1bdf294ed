/*
 * Preloaded into the program: allocation number FAIL_ALLOC of each process
 * fails, counted from the start of the first. The most that a process has made
 * is counted in the file that FAIL_ALLOC_COUNT names, which has to be there.
 * A lookup of a name fails as a whole: glibc's own code there aborts where an
 * allocation fails.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <shadow.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* glibc's own, by the names that it has for them.
 * NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

static long made, failing;
static int within; /* libc's own work */
static volatile long *most;

__attribute__((constructor)) static void
begin(void)
{
	const char *at = getenv("FAIL_ALLOC"), *file;
	int fd;

	/* What the program runs is not what is tested. */
	if (strcmp(program_invocation_short_name, "pop3-handler") != 0)
		return;
	file = getenv("FAIL_ALLOC_COUNT");
	fd = file != NULL ? open(file, O_RDWR | O_CLOEXEC) : -1;
	if (fd != -1) {
		void *place = mmap(NULL, sizeof(*most), PROT_READ | PROT_WRITE,
		    MAP_SHARED, fd, 0);

		if (place != MAP_FAILED)
			most = place;
		close(fd);
	}
	made = 0;
	failing = at != NULL ? strtol(at, NULL, 10) : 0;
}

static int
fails(void)
{
	if (within)
		return 0;
	made++;
	if (most != NULL && made > *most)
		*most = made;
	if (made != failing)
		return 0;
	errno = ENOMEM;
	return 1;
}

void *
malloc(size_t size)
{
	return fails() ? NULL : __libc_malloc(size);
}

void *
calloc(size_t count, size_t size)
{
	return fails() ? NULL : __libc_calloc(count, size);
}

void *
realloc(void *old, size_t size)
{
	return fails() ? NULL : __libc_realloc(old, size);
}

/* Names cannot stand in parentheses. NOLINTBEGIN(bugprone-macro-parentheses) */
#define LOOKUP(type, name, key)                            \
	type *name(key of)                                 \
	{                                                  \
		type *(*real)(key), *found;                \
                                                           \
		if (fails())                               \
			return NULL;                       \
		*(void **)&real = dlsym(RTLD_NEXT, #name); \
		within = 1;                                \
		found = real(of);                          \
		within = 0;                                \
		return found;                              \
	}

LOOKUP(struct passwd, getpwnam, const char *)
LOOKUP(struct passwd, getpwuid, uid_t)
LOOKUP(struct group, getgrnam, const char *)
LOOKUP(struct spwd, getspnam, const char *)
/* NOLINTEND(bugprone-macro-parentheses) */
