/* Dropping privileges, and cages; see sandbox.h. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "log.h"

#if defined(__linux__) && !defined(NO_CAGE) && defined(__LP64__)
#if defined(__x86_64__) || defined(__aarch64__)
#define HAVE_CAGE
#endif
#endif

#ifdef HAVE_CAGE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#endif

static struct {
	bool has;
	gid_t own, kept;
} group;

/* Whether the change of user is complete and cannot be taken back. */
static bool
is_dropped(uid_t uid, gid_t gid, gid_t kept)
{
	uid_t real_uid, effective_uid, saved_uid;
	gid_t real_gid, effective_gid, saved_gid;

	return getresuid(&real_uid, &effective_uid, &saved_uid) == 0 &&
	       getresgid(&real_gid, &effective_gid, &saved_gid) == 0 &&
	       real_uid == uid && effective_uid == uid && saved_uid == uid &&
	       real_gid == gid && effective_gid == gid && saved_gid == kept &&
	       getgroups(0, NULL) == 0 && setuid(0) == -1;
}

int
sandbox_become(uid_t uid, gid_t gid, gid_t kept)
{
	if (uid == 0) {
		errno = EPERM;
		return -1;
	}
	if (geteuid() != 0) {
		if (uid == geteuid() && gid == getegid())
			return 0;
		errno = EPERM;
		return -1;
	}
	/* Groups first: after the change of user we may not change them any
	 * more, but for taking on the saved one. */
	if (setgroups(0, NULL) == -1 || setresgid(gid, gid, kept) == -1 ||
	    setresuid(uid, uid, uid) == -1)
		return -1;
	if (!is_dropped(uid, gid, kept)) {
		errno = EPERM;
		return -1;
	}
	group.has = gid != kept;
	group.own = gid;
	group.kept = kept;
	return 0;
}

void
sandbox_group(bool on)
{
	gid_t gid = on ? group.kept : group.own;

	/* Where it fails, what needs the group fails, and says so. */
	if (group.has && setresgid((gid_t)-1, gid, (gid_t)-1) == -1)
		errno = EPERM;
}

int
sandbox_forget_group(void)
{
	if (!group.has)
		return 0;
	group.has = false;
	return setresgid(group.own, group.own, group.own);
}

int
sandbox_die_with(pid_t parent)
{
#ifdef __linux__
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) == -1)
		return -1;
#endif
	/* It may have ended before we asked. */
	return getppid() == parent ? 0 : -1;
}

/* ---- Cages ---- */

int
sandbox_empty_root(void)
{
#ifdef HAVE_CAGE
	static char path[] = "/tmp/pop3-handler.XXXXXX";

	/* Nothing can be made in a directory that is removed. */
	if (mkdtemp(path) == NULL)
		return -1;
	if (chdir(path) == -1 || rmdir(path) == -1 || chroot(".") == -1) {
		int error = errno;

		rmdir(path);
		errno = error;
		return -1;
	}
#endif
	return 0;
}

#ifdef HAVE_CAGE

#ifdef __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#else
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* What both do: the wire, the clock, the log, and an end. */
#define CALLS_OF_BOTH                                                      \
	SYS_read, SYS_write, SYS_recvfrom, SYS_sendto, SYS_ppoll,          \
	    SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_rt_sigreturn,        \
	    SYS_rt_sigpending, SYS_setitimer, SYS_clock_gettime,           \
	    SYS_gettimeofday, SYS_close, SYS_fstat, SYS_newfstatat,        \
	    SYS_getpid, SYS_setsockopt, SYS_getsockopt, SYS_shutdown,      \
	    SYS_fcntl, SYS_dup3, SYS_brk, SYS_mmap, SYS_munmap, SYS_futex, \
	    SYS_getrandom, SYS_restart_syscall, SYS_exit, SYS_exit_group

static const unsigned front_calls[] = {
    CALLS_OF_BOTH,
#ifdef __x86_64__
    SYS_poll,
    SYS_alarm,
    SYS_dup2,
    SYS_time,
#endif
};

static const unsigned session_calls[] = {
    CALLS_OF_BOTH,
    SYS_pread64,
    SYS_pwrite64,
    SYS_readv,
    SYS_writev,
    SYS_openat,
    SYS_lseek,
    SYS_getdents64,
    SYS_statx,
    SYS_fsync,
    SYS_fdatasync,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_linkat,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_mkdirat,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlinkat,
    SYS_utimensat,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_setresgid,
    SYS_umask,
    SYS_uname,
    SYS_getcwd,
    SYS_dup,
#ifdef __x86_64__
    SYS_poll,
    SYS_alarm,
    SYS_time,
    SYS_open,
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_link,
    SYS_unlink,
    SYS_rename,
    SYS_mkdir,
    SYS_readlink,
#endif
};

static const unsigned deadly_calls[] = {
    SYS_execve, SYS_execveat, SYS_ptrace, SYS_socket, SYS_socketpair};

#define WORD_BITS 32
#define WORDS 16 /* of calls; what is above them is refused */

#define DEADLY (sizeof(deadly_calls) / sizeof(*deadly_calls))
#define STATEMENT(code, k) ((struct sock_filter)BPF_STMT(code, k))
#define JUMP(code, k, yes, no) \
	((struct sock_filter)BPF_JUMP(code, k, (unsigned char)(yes), no))

/*
 * The filter looks a call up in a set of bits, word by word. It is compiled for
 * each session, so it is short. And the kernel would try one that is made of
 * comparisons alone with every call there is, which takes longer than all else
 * that a short session does: it gives that up at a load of a constant.
 */
static int
allow_calls(const unsigned *calls, size_t count)
{
	enum { HEAD = 8, WORD = 3, TAIL = 6 };
	struct sock_filter filter[HEAD + DEADLY + WORDS * WORD + TAIL], *to;
	struct sock_fprog program = {.filter = filter};
	unsigned words[WORDS] = {0}, last = 0, word, end, at;
	size_t i;

	for (i = 0; i < count; i++) {
		word = calls[i] / WORD_BITS;
		if (word >= WORDS)
			return -1;
		words[word] |= 1U << calls[i] % WORD_BITS;
		if (last < word)
			last = word;
	}
	end = HEAD + DEADLY + (last + 1) * WORD;
	to = filter;
	*to++ = STATEMENT(BPF_LD | BPF_IMM, 0);
	*to++ = STATEMENT(
	    BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
	*to++ = JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
	*to++ = STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	*to++ = STATEMENT(
	    BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	*to++ = STATEMENT(BPF_ALU | BPF_AND | BPF_K, WORD_BITS - 1);
	*to++ = STATEMENT(BPF_MISC | BPF_TAX, 0);
	*to++ = STATEMENT(
	    BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	at = HEAD;
	for (i = 0; i < DEADLY; i++)
		*to++ = JUMP(BPF_JMP | BPF_JEQ | BPF_K, deadly_calls[i],
		    end + TAIL - 2 - at++, 0);
	for (word = 0; word <= last; word++, at += WORD) {
		*to++ = JUMP(BPF_JMP | BPF_JGE | BPF_K, (word + 1) * WORD_BITS,
		    WORD - 1, 0);
		*to++ = STATEMENT(BPF_LD | BPF_IMM, words[word]);
		*to++ = STATEMENT(BPF_JMP | BPF_JA, end - at - 2);
	}
	*to++ = STATEMENT(BPF_LD | BPF_IMM, 0);
	*to++ = STATEMENT(BPF_ALU | BPF_RSH | BPF_X, 0);
	*to++ = JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 1, 0);
	*to++ = STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
	*to++ = STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	*to++ = STATEMENT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	program.len = (unsigned short)(to - filter);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

enum { LANDLOCK_RENAMES = 2, LANDLOCK_TRUNCATES = 3 }; /* versions with these */

/* Names are made and removed; content is read and changed. */
#define NAMES (LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_REMOVE_FILE)
#define CONTENT                                                         \
	(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | \
	    LANDLOCK_ACCESS_FS_TRUNCATE)
/* Whatever stands at a path of ours may have to be renamed aside. */
#define ASIDE                                                             \
	(LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_REMOVE_DIR |    \
	    LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SOCK | \
	    LANDLOCK_ACCESS_FS_MAKE_SYM)
#define TREE                                                     \
	(NAMES | CONTENT | ASIDE | LANDLOCK_ACCESS_FS_READ_DIR | \
	    LANDLOCK_ACCESS_FS_REFER)
#define ALL ((1ULL << 15) - 1)

/* Leaves nothing of the file system but the places. */
static int
limit_files(const struct sandbox_place *places, unsigned count)
{
	static const unsigned long long access[] = {[SANDBOX_TREE] = TREE,
	    [SANDBOX_FILE] = CONTENT,
	    [SANDBOX_NAMES] = NAMES};
	struct landlock_path_beneath_attr rule = {0};
	struct landlock_ruleset_attr rules = {.handled_access_fs = ALL};
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
	    LANDLOCK_CREATE_RULESET_VERSION);
	int set, result = 0;
	unsigned i;

	/* Without renames between directories no Maildir could be served. */
	if (version < LANDLOCK_RENAMES)
		return -1;
	if (version < LANDLOCK_TRUNCATES)
		rules.handled_access_fs &= ~LANDLOCK_ACCESS_FS_TRUNCATE;
	set =
	    (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0);
	if (set == -1)
		return -1;
	for (i = 0; result == 0 && i < count; i++) {
		/* A file is to be itself, but a Maildir's cur may be a link. */
		rule.parent_fd = open(places[i].path,
		    O_PATH | O_CLOEXEC |
			(places[i].access == SANDBOX_FILE ? O_NOFOLLOW : 0));
		/* What is not there needs no access. */
		if (rule.parent_fd == -1)
			continue;
		rule.allowed_access =
		    access[places[i].access] & rules.handled_access_fs;
		result = (int)syscall(SYS_landlock_add_rule, set,
		    LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
		close(rule.parent_fd);
	}
	if (result == 0)
		result = (int)syscall(SYS_landlock_restrict_self, set, 0);
	close(set);
	return result;
}

#ifdef __GLIBC__
typedef __rlimit_resource_t resource_kind;
#else
typedef int resource_kind;
#endif

static void
limit(resource_kind resource, rlim_t most)
{
	struct rlimit now;

	if (getrlimit(resource, &now) == -1)
		return;
	if (now.rlim_max != RLIM_INFINITY && now.rlim_max < most)
		most = now.rlim_max;
	now.rlim_cur = now.rlim_max = most;
	setrlimit(resource, &now);
}

/* No core, and no way back to privileges. */
static void
close_up(void)
{
	limit(RLIMIT_CORE, 0);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

#define FRONT_MEMORY (64UL << 20)
#define SESSION_MEMORY (2UL << 30)
#define SESSION_FILES 64

void
sandbox_cage_front(void)
{
	struct stat st;

	limit(RLIMIT_AS, FRONT_MEMORY);
	/* In a shell the client may be a file. */
	if (fstat(STDOUT_FILENO, &st) == 0 && !S_ISREG(st.st_mode))
		limit(RLIMIT_FSIZE, 0);
	limit(RLIMIT_NPROC, 0);
	close_up();
	/* It has seen passwords: others of its user may not look into it. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* The monitor's line in the log says whether there is such a thing. */
	allow_calls(front_calls, sizeof(front_calls) / sizeof(*front_calls));
}

void
sandbox_cage_session(const struct sandbox_place *places, unsigned count)
{
	int files, calls;

	limit(RLIMIT_AS, SESSION_MEMORY);
	limit(RLIMIT_NOFILE, SESSION_FILES);
	limit(RLIMIT_NPROC, 0);
	close_up();
	files = limit_files(places, count);
	calls = allow_calls(
	    session_calls, sizeof(session_calls) / sizeof(*session_calls));
	if (files == -1 || calls == -1)
		log_event(LOG_DEBUG, "cage", "landlock=%s seccomp=%s",
		    files == -1 ? "no" : "yes", calls == -1 ? "no" : "yes");
}

#else

void
sandbox_cage_front(void)
{
}

void
sandbox_cage_session(const struct sandbox_place *places, unsigned count)
{
	(void)places;
	(void)count;
}

#endif
