#!/usr/bin/env python3
"""Failures at every system call, or every allocation, of a whole session.

A session logs in, asks for everything, deletes a message and quits; once for
each of its calls, which then fails. Whatever fails:

  - every process ends within SECONDS;
  - what was sent are whole and right replies, one for each command; only the
    last may be cut off;
  - every message not deleted is there, byte for byte, and a deleted one wholly
    or not at all; where QUIT said that it is gone, it is;
  - the next session has what is left, with the unique-ids that it had, and
    leaves neither lock nor journal behind.

usage: sessions.py [-p PRELOAD] -d DIR PROGRAM MAILDROP LOGIN

  MAILDROP mbox or maildir
  LOGIN    none (-P), file (-a), program (-c), or system: then the user is
           "pop3-fault" of the system's accounts; all but none as root
  -p       the library of tests/tools/fail-alloc.c: allocations fail, not calls
  -d DIR   where to work; owned by the user who is served

Prints one line with what was covered, then the failures; exits 1 if there are
any.
"""
import argparse
import concurrent.futures
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading

SECONDS = 45  # more than it waits for locks
SENDER = "From sender@example.org Mon Jan  1 00:00:00 2024\n"
MESSAGES = [f"Subject: {n}\nMessage-ID: <{n}@example.org>\n\n.dot\nbody {n}\n".encode()
            for n in (1, 2, 3)]
SENT = [m.replace(b"\n.", b"\n..").replace(b"\n", b"\r\n") for m in MESSAGES]
COMMANDS = ["STAT", "LIST", "UIDL", "RETR 1", "TOP 2 0", "RETR 3", "DELE 1"]
NAMES = ["1700000001.M1P1.h:2,S", "1700000002.M1P1.h", "1700000003.M1P1.h"]
LINES = {"LIST", "UIDL", "RETR", "TOP"}  # replies of several lines
# What a call fails with, where it is not EIO.
FAILS = {name: "error=" + error for error, names in {
    "EAGAIN": "fork vfork clone clone3",
    "ENOMEM": "mmap mremap mprotect poll ppoll",
    "EMFILE": "socketpair socket pipe2 openat open",
    "EPERM": "setuid setgid setgroups setresuid setresgid chroot",
    "EINVAL": "seccomp prctl",
    "ENOSPC": "link linkat rename renameat renameat2 write pwrite64",
    "ENOSYS": "getrandom",
    "ENOLCK": "fcntl"}.items() for name in names.split()}
FAILS["brk"] = "retval=0"  # which has no errno
OURS = {"users", "checked"}  # files that the maildrop's owner does not own
# These never return an error, or not to the program.
NEVER = {"exit", "exit_group", "execve", "rt_sigreturn", "restart_syscall", "arch_prctl",
         "set_tid_address", "set_robust_list", "rseq", "getpid", "getuid", "geteuid",
         "getgid", "getegid", "getppid", "alarm", "umask", "wait4",
         "close"}  # which closes all the same
# Where one of these fails, what we made may stay until the next session.
REMOVING = {"unlink", "unlinkat", "rename", "renameat", "lstat", "newfstatat", "stat",
            "fstat", "setresgid", "access", "close", "fcntl"}


class Sweep:
    def __init__(self, options):
        self.options = options
        self.mbox = options.maildrop == "mbox"
        self.points = 0
        self.failures = []
        self.lock = threading.Lock()
        status = os.stat(options.d)
        self.uid, self.gid = status.st_uid, status.st_gid

    def own(self, path):
        os.chown(path, self.uid, self.gid)

    def fresh(self, name):
        where = os.path.join(self.options.d, name)
        shutil.rmtree(where, ignore_errors=True)
        os.mkdir(where)
        self.fill(where)
        return where

    def fill(self, where):
        for name in os.listdir(where):
            path = os.path.join(where, name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        if self.mbox:
            with open(where + "/B", "wb") as file:
                file.write(b"".join(SENDER.encode() + m + b"\n" for m in MESSAGES))
            os.utime(where + "/B", (1700000000, 1700000000))
        else:
            for part in ("", "/cur", "/new", "/tmp"):
                os.mkdir(where + "/B" + part)
            for n, (name, m) in enumerate(zip(NAMES, MESSAGES)):
                with open(where + ("/B/new/" if n else "/B/cur/") + name, "wb") as file:
                    file.write(m)
        with open(where + "/users", "w", encoding="ascii") as file:
            file.write("pop3-fault:{PLAIN}secret:%d:%d::%s::\n" % (self.uid, self.gid, where))
        os.chmod(where + "/users", 0o600)
        with open(where + "/checked", "w", encoding="ascii") as file:
            file.write("pop3-fault:secret:%d:%d:%s\n" % (self.uid, self.gid, where))
        for base, directories, files in os.walk(where):
            for name in directories + files:
                if name not in OURS:
                    self.own(os.path.join(base, name))
        self.own(where)

    def command(self, where):
        login, program = self.options.login, [os.path.abspath(self.options.program), "-h", "h"]
        program += ["-m", self.options.maildrop + ":" + where + "/B", "-d", where]
        if login == "none":
            return program + ["-P"]
        if login == "file":
            return program + ["-a", where + "/users"]
        if login == "program":
            checker = os.path.join(os.path.dirname(program[0]), "checkpassword")
            return program + ["-c", checker + " " + where + "/checked"]
        return program

    def script(self):
        commands = list(COMMANDS) + ["QUIT"]
        if self.options.login != "none":
            commands[:0] = ["USER pop3-fault", "PASS secret"]
        return commands

    # ---- One session ----

    def session(self, where, wrapper=(), environment=None):
        """What a session replied, and how it ended; None: not in time."""
        ours, its = socket.socketpair()
        ours.sendall("".join(c + "\r\n" for c in self.script()).encode())
        ours.shutdown(socket.SHUT_WR)
        ours.settimeout(SECONDS)
        options = {"user": self.uid, "group": self.gid, "extra_groups": []} \
            if self.options.login == "none" and os.getuid() == 0 else {}
        with open(where + ".log", "ab") as log:
            process = subprocess.Popen(
                list(wrapper) + self.command(where), cwd=where, stdin=its, stdout=its, stderr=log,
                env=dict(os.environ, USER="pop3-fault", HOME=where, **(environment or {})),
                start_new_session=True, **options)
        its.close()
        reply = []
        try:
            while True:
                try:
                    part = ours.recv(1 << 16)
                except ConnectionResetError:
                    part = b""
                if not part:
                    break
                reply.append(part)
            status = process.wait(SECONDS)
        except (TimeoutError, subprocess.TimeoutExpired):
            os.killpg(process.pid, 9)
            process.wait()
            status = None
        ours.close()
        return b"".join(reply), status

    # ---- What must hold ----

    def fail(self, label, what):
        with self.lock:
            self.failures.append(f"{label}: {what}")

    def parse(self, reply):
        """The replies, [(command, lines, whole)], or a text: what is wrong."""
        lines = reply.split(b"\r\n")
        cut = lines.pop()  # of a line without an end
        at, replies = 0, []
        for command in ["greeting"] + self.script():
            verb = command.split()[0]
            if at == len(lines):
                break
            first = lines[at]
            at += 1
            if not re.match(rb"(\+OK|-ERR)( [ -~]*)?$", first) or len(first) > 510:
                return f"{command}: {first!r}"
            body, whole = [first], True
            if verb in LINES and first.startswith(b"+OK"):
                whole = False
                while at < len(lines) and not whole:
                    whole = lines[at] == b"."
                    body.append(lines[at])
                    at += 1
            replies.append((command, body, whole))
            if not whole:
                break
            if first.startswith(b"-ERR") and verb in ("greeting", "PASS"):
                continue
        if at < len(lines):
            return f"more than replies: {lines[at]!r}"
        if cut and not re.match(rb"[\x00-\xff]*$", cut):
            return f"{cut!r}"
        return replies

    def stored(self, where):
        """Which of the messages are there; None if anything else is."""
        if self.mbox:
            with open(where + "/B", "rb") as file:
                data = file.read()
            there = []
            for n, m in enumerate(MESSAGES):
                whole = SENDER.encode() + m + b"\n"
                if data.startswith(whole):
                    there.append(n)
                    data = data[len(whole):]
            return there if data == b"" else None
        found = []
        for part in ("new", "cur"):
            for name in os.listdir(f"{where}/B/{part}"):
                with open(f"{where}/B/{part}/{name}", "rb") as file:
                    data = file.read()
                bases = [b.split(":")[0] for b in NAMES]
                base = name.split(":")[0]
                if base not in bases or data != MESSAGES[bases.index(base)]:
                    return None
                found.append(bases.index(base))
        return sorted(found) if len(set(found)) == len(found) else None

    def judge_replies(self, replies, ids):
        """What is wrong with what a session said of messages `ids`."""
        present = sorted(ids)
        for command, body, whole in replies:
            verb, _, argument = command.partition(" ")
            if not body[0].startswith(b"+OK") or not whole:
                continue
            if verb == "STAT" and body[0] != b"+OK %d %d" % (
                    len(present), sum(len(SENT[n]) - SENT[n].count(b"\r\n..") for n in present)):
                return f"STAT: {body[0]!r}"
            if verb == "UIDL" and body[1:-1] != [
                    b"%d %s" % (k + 1, ids[n]) for k, n in enumerate(present)]:
                return f"UIDL: {body!r}"
            if verb == "RETR" and b"\r\n".join(body[1:-1]) + b"\r\n" != \
                    SENT[present[int(argument) - 1]]:
                return f"RETR: {body!r}"
        return None

    def judge(self, label, where, outcome, ids, failing):
        reply, status = outcome
        if status is None:
            return self.fail(label, f"not over in {SECONDS} s: {reply[-100:]!r}")
        if status < 0:
            return self.fail(label, f"ended by signal {-status}")
        replies = self.parse(reply)
        if isinstance(replies, str):
            return self.fail(label, replies)
        wrong = self.judge_replies(replies, ids)
        if wrong:
            return self.fail(label, wrong)
        said = {command.split()[0]: body[0] for command, body, _ in replies}
        there = self.stored(where)
        journal = self.mbox and os.path.exists(where + "/.B.pop3-journal")
        if said.get("QUIT") == b"+OK 1 deleted" and (journal or there != [1, 2]):
            return self.fail(label, f"said to be gone; {there} are left")
        if journal:  # the next session finishes it
            there = [1, 2]
        elif failing not in REMOVING:
            self.judge_rest(label, where)
        if there not in ([0, 1, 2], [1, 2]) or (
                0 not in there and not said.get("DELE", b"").startswith(b"+OK")):
            return self.fail(label, f"left: {there}")
        # The next session, in which nothing fails.
        again, status = self.session(where)
        replies = self.parse(again)
        if status != 0 or isinstance(replies, str):
            return self.fail(label, f"the next session: {replies}, status {status}")
        wrong = self.judge_replies([r for r in replies if r[0] in ("STAT", "UIDL")],
                                   {n: ids[n] for n in there})
        if wrong or dict((c, b[0]) for c, b, _ in replies).get("QUIT") != b"+OK 1 deleted":
            return self.fail(label, f"the next session: {wrong or again[-60:]!r}")
        return self.judge_rest(label + ", the next session", where)

    def judge_rest(self, label, where):
        names = set(os.listdir(where)) - {"B"} - OURS
        if not self.mbox:
            names |= set(os.listdir(where + "/B")) - {"cur", "new", "tmp"}
        rest = {n for n in names if not n.endswith("pop3-state")}
        if rest:
            self.fail(label, f"left behind: {sorted(rest)}")

    # ---- The sweeps ----

    def usual(self):
        """The unique-ids of a session that nothing happens to."""
        where = self.fresh("usual")
        reply, status = self.session(where)
        replies = self.parse(reply)
        if status != 0 or isinstance(replies, str) or \
                not reply.endswith(b"+OK 1 deleted\r\n"):
            raise SystemExit(f"sessions: {reply!r}, status {status}: {replies}")
        lines = dict((c, b) for c, b, _ in replies)["UIDL"][1:-1]
        return {n: line.split(b" ", 1)[1] for n, line in enumerate(lines)}

    def calls(self):
        """Each call that the program makes, by name and number; not those of
        the dynamic linker, nor of the program of -c."""
        where = self.fresh("trace")
        trace = where + ".trace"
        self.session(where, ["strace", "-f", "-qq", "-o", trace])
        count, theirs, points = {}, set(), set()
        with open(trace, encoding="latin-1") as lines:
            for line in lines:
                match = re.match(r"(\d+) +(\w+)\((.*)", line)
                if not match:
                    continue
                pid, name, rest = match.groups()
                if name == "execve":
                    theirs.add(pid)
                elif name == "fcntl" and rest.startswith("0, F_GETFD"):
                    theirs.discard(pid)  # the first that main() makes
                count[pid, name] = count.get((pid, name), 0) + 1
                if pid not in theirs and name not in NEVER:
                    points.add((name, count[pid, name]))
        return sorted(points)

    def one_call(self, lane, point):
        name, when = point
        where = self.lanes[lane]
        self.fill(where)
        label = f"{name} {when}"
        self.judge(label, where, self.session(where, [
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e",
            f"inject={name}:{FAILS.get(name, 'error=EIO')}:when={when}"]), self.ids, name)

    def one_allocation(self, lane, point):
        where = self.lanes[lane]
        self.fill(where)
        self.judge(f"allocation {point}", where, self.session(where, environment={
            "LD_PRELOAD": self.options.p, "FAIL_ALLOC": str(point)}), self.ids, None)

    def allocations(self):
        where = self.fresh("count")
        shared = where + ".count"
        with open(shared, "wb") as file:
            file.write(bytes(4096))
        os.chmod(shared, 0o666)
        self.session(where, environment={
            "LD_PRELOAD": self.options.p, "FAIL_ALLOC": "0", "FAIL_ALLOC_COUNT": shared})
        with open(shared, "rb") as file:
            count = struct.unpack("l", file.read(8))[0]
        if count == 0:
            raise SystemExit("sessions: no allocation was counted")
        return list(range(1, count + 1))

    def run(self):
        self.ids = self.usual()
        points, one = (self.allocations(), self.one_allocation) if self.options.p \
            else (self.calls(), self.one_call)
        lanes = 4
        self.lanes = [self.fresh(f"lane{n}") for n in range(lanes)]

        def part(lane):
            for point in points[lane::lanes]:
                one(lane, point)
                with self.lock:
                    self.points += 1

        with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
            list(pool.map(part, range(lanes)))
        what = "allocations" if self.options.p else "calls"
        print(f"{self.options.maildrop}, login by {self.options.login}: {self.points} {what} "
              f"failed, {len(self.failures)} wrong")
        for failure in self.failures:
            print(failure)
        return 1 if self.failures or self.points == 0 else 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-p")
    parser.add_argument("-d", required=True)
    parser.add_argument("program")
    parser.add_argument("maildrop", choices=["mbox", "maildir"])
    parser.add_argument("login", choices=["none", "file", "program", "system"])
    return Sweep(parser.parse_args()).run()


if __name__ == "__main__":
    sys.exit(main())
