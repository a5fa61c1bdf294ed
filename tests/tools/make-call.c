/*
 * make-call: makes a process that waits in a system call make another one, and
 * prints what became of it: its result, the name of its error, or the signal
 * that it was killed by. The process then waits on as before. It needs no
 * symbols, and works with one in another root.
 *
 * usage: make-call pid call [argument ...]
 *
 * An argument is a number, or else a string, which is put on its stack.
 */
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENTS_MAX 6
#define STRING_OCTETS 256
#define BELOW_STACK 4096 /* beyond the red zone */

typedef unsigned long long word;

static const struct {
	const char *name;
	long number;
} calls[] = {{"openat", SYS_openat}, {"execve", SYS_execve},
    {"execveat", SYS_execveat}, {"ptrace", SYS_ptrace}, {"socket", SYS_socket},
    {"socketpair", SYS_socketpair}, {"setuid", SYS_setuid},
    {"setresuid", SYS_setresuid}, {"setgroups", SYS_setgroups},
    {"setresgid", SYS_setresgid}, {"clone", SYS_clone}, {"kill", SYS_kill},
    {"linkat", SYS_linkat}, {"unlinkat", SYS_unlinkat},
    {"renameat2", SYS_renameat2}, {"mkdirat", SYS_mkdirat},
    {"fchmodat", SYS_fchmodat}, {"symlinkat", SYS_symlinkat},
    {"chroot", SYS_chroot}, {"mount", SYS_mount}, {"connect", SYS_connect},
    {"prctl", SYS_prctl}, {"getpid", SYS_getpid}, {"close", SYS_close},
    {"process_vm_readv", SYS_process_vm_readv}};

static long
call_number(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (strcmp(calls[i].name, name) == 0)
			return calls[i].number;
	errx(99, "unknown call: %s", name);
}

static void
registers(
    enum __ptrace_request request, pid_t pid, struct user_regs_struct *regs)
{
	struct iovec part = {regs, sizeof(*regs)};

	if (ptrace(request, pid, (void *)NT_PRSTATUS, &part) == -1)
		err(99, "registers");
}

/* A string to the stack of the process, at `to`. */
static void
put_string(pid_t pid, word to, const char *text)
{
	char copy[STRING_OCTETS] = "";
	size_t i;
	long part;

	if (strlen(text) >= sizeof(copy))
		errx(99, "too long: %s", text);
	strcpy(copy, text);
	for (i = 0; i < sizeof(copy); i += sizeof(part)) {
		memcpy(&part, copy + i, sizeof(part));
		if (ptrace(PTRACE_POKEDATA, pid, (void *)(uintptr_t)(to + i),
			(void *)part) == -1)
			err(99, "stack");
	}
}

/* The registers of a process that is about to make the call. It stands right
 * behind the instruction of the call in which it waits. */
static void
aim(struct user_regs_struct *regs, long number, const word *argument)
{
#if defined(__x86_64__)
	regs->rip -= 2;
	regs->rax = (word)number;
	regs->orig_rax = (word)-1;
	regs->rdi = argument[0];
	regs->rsi = argument[1];
	regs->rdx = argument[2];
	regs->r10 = argument[3];
	regs->r8 = argument[4];
	regs->r9 = argument[5];
#elif defined(__aarch64__)
	regs->pc -= 4;
	regs->regs[8] = (word)number;
	memcpy(regs->regs, argument, ARGUMENTS_MAX * sizeof(*argument));
#endif
}

static word
stack_of(const struct user_regs_struct *regs)
{
#if defined(__x86_64__)
	return regs->rsp;
#else
	return regs->sp;
#endif
}

static long long
result_of(const struct user_regs_struct *regs)
{
#if defined(__x86_64__)
	return (long long)regs->rax;
#else
	return (long long)regs->regs[0];
#endif
}

static void
await_stop(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, __WALL) == -1)
		err(99, "wait");
	if (WIFSIGNALED(status)) {
		printf("killed by SIG%s\n", sigabbrev_np(WTERMSIG(status)));
		exit(0);
	}
	if (!WIFSTOPPED(status))
		errx(99, "it has ended");
}

int
main(int argc, char **argv)
{
	struct user_regs_struct before, regs;
	word argument[ARGUMENTS_MAX] = {0}, stack;
	long long result;
	char *end;
	pid_t pid;
	int i;

	if (argc < 3 || argc > 3 + ARGUMENTS_MAX)
		errx(99, "usage: make-call pid call [argument ...]");
	pid = (pid_t)strtol(argv[1], NULL, 10);
	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) == -1 ||
	    ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) == -1)
		err(99, "attach to %s", argv[1]);
	await_stop(pid);
	registers(PTRACE_GETREGSET, pid, &before);
	regs = before;
	stack = (stack_of(&before) & ~15ULL) - BELOW_STACK;
	for (i = 3; i < argc; i++) {
		argument[i - 3] = (word)strtoll(argv[i], &end, 0);
		if (*argv[i] != '\0' && *end == '\0')
			continue;
		argument[i - 3] = stack + (word)(i - 3) * STRING_OCTETS;
		put_string(pid, argument[i - 3], argv[i]);
	}
	aim(&regs, call_number(argv[2]), argument);
	registers(PTRACE_SETREGSET, pid, &regs);
	if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == -1)
		err(99, "step");
	await_stop(pid);
	registers(PTRACE_GETREGSET, pid, &regs);
	result = result_of(&regs);
	registers(PTRACE_SETREGSET, pid, &before);
	if (ptrace(PTRACE_DETACH, pid, NULL, NULL) == -1)
		err(99, "detach");
	if (result < 0 && result > -4096)
		printf("%s\n", strerrorname_np((int)-result));
	else
		printf("%lld\n", result);
	return 0;
}
