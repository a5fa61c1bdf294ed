/* Dropping privileges; see sandbox.h. */
#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

int
sandbox_become(uid_t uid, gid_t gid)
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
	/* Groups first: after setuid(2) we may not change them any more. */
	if (setgroups(0, NULL) == -1 || setgid(gid) == -1 || setuid(uid) == -1)
		return -1;
	/* If any of this can be taken back, it was no drop. */
	if (getuid() != uid || geteuid() != uid || getgid() != gid ||
	    getegid() != gid || setuid(0) != -1 || getgroups(0, NULL) != 0) {
		errno = EPERM;
		return -1;
	}
	return 0;
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
