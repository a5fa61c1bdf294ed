/* Dropping privileges; see sandbox.h. */
#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdbool.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
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
