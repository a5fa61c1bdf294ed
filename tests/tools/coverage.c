/*
 * Linked into the program for `make coverage`: what a process has done is
 * counted also where it ends by _exit(2) or by a signal, and the front may
 * say what it has done before it is killed. A process of its own does the
 * counting, so that calls that strace(1) makes fail are not those.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp): they
 * are gcc's and ld's. */
void __gcov_dump(void);
_Noreturn void __real__exit(int status);
_Noreturn void __wrap__exit(int status);
int __real_kill(pid_t pid, int sign);
int __wrap_kill(pid_t pid, int sign);
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/* NOLINTBEGIN(bugprone-signal-handler,cert-sig30-c): the program waits when it
 * is ended, and does nothing more after that. */
static void
count(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		__gcov_dump();
		__real__exit(0);
	}
	while (pid > 0 && waitpid(pid, NULL, 0) == -1)
		continue;
}

void
__wrap__exit(int status)
{
	count();
	__real__exit(status);
}

/* Before what gcc's own would count. */
static void
exiting(int status, void *unused)
{
	(void)unused;
	fflush(NULL);
	__wrap__exit(status);
}

static void
ended(int sign)
{
	count();
	signal(sign, SIG_DFL);
	raise(sign);
}

__attribute__((constructor)) static void
begin(void)
{
	on_exit(exiting, NULL);
	signal(SIGHUP, ended);
	signal(SIGINT, ended);
	signal(SIGTERM, ended);
}
/* NOLINTEND(bugprone-signal-handler,cert-sig30-c) */

int
__wrap_kill(pid_t pid, int sign)
{
	siginfo_t info = {0};
	int i;

	if (sign == SIGKILL && pid > 0 && __real_kill(pid, SIGTERM) == 0)
		for (i = 0; i < 100 && info.si_pid == 0; i++) {
			(void)poll(NULL, 0, 5);
			if (waitid(P_PID, (id_t)pid, &info,
				WEXITED | WNOHANG | WNOWAIT) == -1)
				break;
		}
	return __real_kill(pid, sign);
}
