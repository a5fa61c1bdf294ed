#!/usr/bin/env python3
"""Stops and failures at every system call of UPDATE and of recovery.

A session deletes messages of a small mbox under strace, which kills it, or
makes a call fail, at one system call after QUIT has arrived; once for each of
these calls. Then, with and without mail that was appended meanwhile, a new
session opens the maildrop, and:

  - every message kept is there once, byte for byte, in its place;
  - every message deleted is there wholly, or not at all;
  - what was appended is there, last;
  - beside the mbox stands nothing but the state file: no lock, no journal;
  - where QUIT had said +OK, the deleted ones are gone.

usage: faults.py [-a] [-d DIR] [-p PRELOAD[=LIMIT]] PROGRAM WHAT [SHAPE ...]

  WHAT     kill-update, kill-recovery, fail-update, fail-recovery, or short
           (no injection: every session runs with the library of -p, LIMIT
           octets a write)
  SHAPE    head, alternate, tail, all, big (see SHAPES)
  -a       all crashed states and all calls, where otherwise some are chosen
  -d DIR   where to work; as the user who is served
  -p       a library that every killed or failing session is run with

Prints one line with what was covered, then the failures, each with the
command that shows it again; exits 1 if there are any.
"""
import argparse
import concurrent.futures
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

SENDER = "From sender@example.org Mon Jan  1 00:00:00 2024\n"
BLOCK = 131072
# Calls that can fail for the disk's sake.
FAILING = ("write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate",
           "rename", "renameat", "renameat2", "open", "openat", "link",
           "linkat", "unlink", "unlinkat", "pread64", "read", "getrandom")
# Of these, the ones that a reply of +OK vouches for.
# The call by which QUIT reaches the session.
QUIT_CAME = r"(read|recvfrom)\(0.*QUIT"
VOUCHED = ("pwrite64", "fsync", "fdatasync", "ftruncate")


class Shape:
    """Messages, as sizes of their bodies, and which of them are deleted."""

    def __init__(self, sizes, deleted):
        self.messages = [message(str(n + 1), size)
                         for n, size in enumerate(sizes)]
        self.deleted = {n - 1 for n in deleted}
        self.mbox = b"".join(self.messages)
        self.hole = sum(len(self.messages[n]) for n in self.deleted)
        self.small = message("small", 90)
        # Where the file was cut, this makes it longer than it was before.
        self.large = message("large", self.hole + 40)

    def script(self):
        marks = "".join(f"DELE {n + 1}\r\n" for n in sorted(self.deleted))
        return (marks + "QUIT\r\n").encode()


def message(name, size):
    line = f"{name} {'.' * (len(name) % 7)} the quick brown fox %08d\n"
    body, length = [], 0
    while length < size:
        body.append(line % len(body))
        length += len(body[-1])
    return (f"{SENDER}Subject: {name}\nMessage-ID: <{name}@example.org>\n\n"
            f"{''.join(body)}\n").encode()


SHAPES = {
    "head": lambda: Shape([200, 300, 100, 400], [1]),
    "alternate": lambda: Shape([200, 300, 100, 5000, 60, 800], [1, 3, 5]),
    "tail": lambda: Shape([200, 300, 100], [3]),
    "all": lambda: Shape([200, 300, 100], [1, 2, 3]),
    "big": lambda: Shape([50000, 8 << 20, 3000, 300000, 700], [1, 3]),
}


class Call:
    """One system call of a run: its name, how many of that name came before
    it, and its text."""

    def __init__(self, name, when, text):
        self.name, self.when, self.text = name, when, text


class Harness:
    def __init__(self, options):
        self.program = os.path.abspath(options.program)
        self.work = options.d
        self.all = options.a
        self.preload = []
        if options.p:
            library, _, limit = options.p.partition("=")
            self.preload = ["-E", "LD_PRELOAD=" + os.path.abspath(library),
                            "-E", "SHORT_WRITE=" + (limit or "half")]
        self.failures = []
        self.points = self.states = 0
        self.replies = {}
        self.lock = threading.Lock()

    # ---- One session ----

    def session(self, where, script, strace=None, environment=None):
        """Runs a session; returns its whole reply and its exit status."""
        ours, its = socket.socketpair()
        ours.sendall(script)
        ours.shutdown(socket.SHUT_WR)
        command = [self.program, "-P", "-h", "h", "-m", "mbox:B"]
        if strace is not None:
            # Not with --seccomp-bpf, under which no signal is injected.
            command = ["strace", "-qq", "-y"] + self.preload + strace + command
        with open(os.path.join(where, "..", os.path.basename(where) + ".log"),
                  "ab") as log:
            process = subprocess.Popen(command, cwd=where, stdin=its,
                                       stdout=its, stderr=log,
                                       env=environment)
        its.close()
        reply = []
        while True:
            try:
                part = ours.recv(1 << 16)
            except ConnectionResetError:  # killed before it read everything
                part = b""
            if not part:
                break
            reply.append(part)
        ours.close()
        return b"".join(reply), process.wait()

    def calls(self, where, script, first):
        """The calls of a run that is left alone, from the first that matches
        on (for a match group, from the one after it), and its reply."""
        trace = os.path.join(where, "..", os.path.basename(where) + ".trace")
        reply, _ = self.session(where, script, ["-o", trace, "-s", "200"])
        seen, found, count = [], False, {}
        with open(trace, encoding="latin-1") as lines:
            for line in lines:
                match = re.match(r"(?:\d+ +)?(\w+)\(", line)
                if not match:
                    continue
                name = match.group(1)
                count[name] = count.get(name, 0) + 1
                if found:
                    seen.append(Call(name, count[name], line.strip()))
                elif re.search(first, line):
                    found = True
        if not found or reply.count(b"\r\n") == 0:
            raise SystemExit(f"faults: {first} is not in {trace}: {reply!r}")
        return seen, reply

    # ---- What must hold afterwards ----

    def fail(self, label, what, where=None):
        with self.lock:
            self.failures.append(f"{label}: {what}")
            if where and os.path.isdir(where) and len(self.failures) < 6:
                shutil.copytree(where, os.path.join(
                    self.work, f"failed.{len(self.failures)}"))

    def verify(self, where, shape, appended, gone, label):
        """A new session finds what must be there, and nothing else."""
        everything = list(shape.messages) + appended
        script = "STAT\r\n" + "".join(
            f"RETR {n + 1}\r\n" for n in range(len(everything))) + "QUIT\r\n"
        reply, status = self.session(where, script.encode())
        with open(os.path.join(where, "B"), "rb") as mbox:
            stored = mbox.read()
        kept = [m for n, m in enumerate(everything) if n not in shape.deleted]
        present, at = [], 0
        for n, text in enumerate(everything):
            if stored.startswith(text, at):
                present.append(text)
                at += len(text)
            elif n not in shape.deleted:
                return self.fail(label, f"message {n + 1} is not at {at} of "
                                 f"{len(stored)} octets", where)
        if at != len(stored):
            return self.fail(label, f"{len(stored) - at} octets follow", where)
        if gone and present != kept:
            return self.fail(label, "QUIT said +OK, but not all is gone",
                             where)
        replies = [b"+OK h pop3-handler ready\r\n"]
        octets = [len(octets_sent(text)) for text in present]
        replies.append(b"+OK %d %d\r\n" % (len(present), sum(octets)))
        for size, text in zip(octets, present):
            replies.append(b"+OK %d octets\r\n%s.\r\n"
                           % (size, octets_sent(text)))
        expected = b"".join(replies)
        if not reply.startswith(expected) or status != 0 or \
                not reply.endswith(b"+OK 0 deleted\r\n"):
            return self.fail(label, f"the session after it said "
                             f"{reply[:200]!r}, exit {status}", where)
        beside = set(os.listdir(where)) - {"B", ".B.pop3-state"}
        if beside:
            return self.fail(label, f"left behind: {sorted(beside)}", where)
        return None

    # ---- A directory with an mbox, and putting it back as it was ----

    def fresh(self, name, shape):
        where = os.path.join(self.work, name)
        os.mkdir(where)
        with open(os.path.join(where, "B"), "wb") as mbox:
            mbox.write(shape.mbox)
        return where

    @staticmethod
    def snapshot(where):
        kept = {}
        for name in os.listdir(where):
            with open(os.path.join(where, name), "rb") as file:
                kept[name] = file.read()
        return kept

    @staticmethod
    def restore(where, kept):
        """The mbox keeps its inode, as a journal knows it by that."""
        for name in os.listdir(where):
            if name not in kept:
                os.unlink(os.path.join(where, name))
        for name, data in kept.items():
            path = os.path.join(where, name)
            old = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with open(old, "wb") as file:
                file.write(data)
                file.truncate()
            # So that it is always doubted, and every run does the same.
            if "pop3-state" in name:
                os.utime(path, (0, 0))

    @staticmethod
    def digest(kept):
        """Names a state, whatever the pids in its locks."""
        total = hashlib.sha1()
        for name in sorted(kept):
            plain = re.sub(r"\d+$", "", name)
            total.update(plain.encode() + b"\0")
            data = kept[name]
            if "pop3-state" in plain:  # without times, and their sum
                data = b"".join(data.split(b"\n")[2:-2])
            if not plain.endswith(".lock") and "pop3-lock" not in plain:
                total.update(hashlib.sha1(data).digest())
        return total.hexdigest()

    @staticmethod
    def append(where, text):
        with open(os.path.join(where, "B"), "ab") as mbox:
            mbox.write(text)

    # ---- The sweeps ----

    def check_state(self, where, shape, before, gone, seen, label,
                    variants=True):
        """Verifies a state that a stop left, alone and with mail appended;
        a state that was seen before only counts."""
        crashed = self.snapshot(where)
        key = (self.digest(crashed), gone)
        if key in seen:
            return
        seen.add(key)
        with self.lock:
            self.states += 1
        self.verify(where, shape, before, gone, label)
        if not variants:
            return
        for name, text in (("small", shape.small), ("large", shape.large)):
            self.restore(where, crashed)
            self.append(where, text)
            self.verify(where, shape, before + [text], gone,
                        f"{label}, {name} mail appended")

    def injected(self, where, script, call, what):
        reply, status = self.session(
            where, script, ["-o", "/dev/null", "-e", f"trace={call.name}",
                            "-e", f"inject={call.name}:{what}:"
                            f"when={call.when}"])
        with self.lock:
            self.points += 1
        return reply, status

    def kill_points(self, calls, few):
        """All calls, or where data moves in many, one in so many."""
        if not few or self.all or len(calls) <= few:
            return calls
        # Never left out: what comes just before and after a sync or a cut.
        chosen = {n for n in range(0, len(calls),
                                   max(1, len(calls) // few))}
        for n, call in enumerate(calls):
            if call.name in ("ftruncate", "fallocate", "unlink") or (
                    call.name in ("fsync", "fdatasync")):
                chosen |= {n, n + 1}
        return [calls[n] for n in sorted(chosen) if n < len(calls)]

    def kill_update(self, shape_name):
        shape = SHAPES[shape_name]()
        few = 12 if shape_name == "big" else 0
        where = self.fresh("trace-" + shape_name, shape)
        calls, _ = self.calls(where, shape.script(), QUIT_CAME)
        shutil.rmtree(where)
        points = self.kill_points(calls, few)
        lanes = 2 if few else 4
        parts = [points[n::lanes] for n in range(lanes)]
        self.spread(self.kill_update_part,
                    [(shape_name, shape, part, n)
                     for n, part in enumerate(parts)])

    def kill_update_part(self, shape_name, shape, points, part):
        where = self.fresh(f"kill-{shape_name}-{part}", shape)
        seen = set()
        for call in points:
            label = f"{shape_name}: killed at {call.name} {call.when}" \
                    f" [{call.text[:90]}]"
            self.restore(where, {"B": shape.mbox})
            reply, status = self.injected(where, shape.script(), call,
                                          "signal=KILL")
            if status != -9:
                self.fail(label, f"not killed, status {status}")
            self.check_state(where, shape, [], said_ok(reply), seen, label)
        shutil.rmtree(where)

    def crashed_states(self, shape_name):
        """Calls of UPDATE before which a stop leaves a different state."""
        shape = SHAPES[shape_name]()
        where = self.fresh("states-" + shape_name, shape)
        calls, _ = self.calls(where, shape.script(), QUIT_CAME)
        states, seen = [], set()
        changing = re.compile(r"pwrite64|ftruncate|fallocate|unlink|link|"
                              r"openat|rename")
        for before, call in zip(calls, calls[1:]):
            if not changing.match(before.name) or \
                    before.text.endswith("ENOENT (No such file or directory)"):
                continue
            self.restore(where, {"B": shape.mbox})
            self.session(where, shape.script(),
                         ["-o", "/dev/null", "-e", f"trace={call.name}", "-e",
                          f"inject={call.name}:signal=KILL:when={call.when}"])
            state = self.snapshot(where)
            key = self.digest(state)
            journal = ".B.pop3-journal" in state
            if key not in seen and (journal or self.all):
                seen.add(key)
                states.append((before, call))
        shutil.rmtree(where)
        if not states:
            raise SystemExit("faults: UPDATE leaves no journal to recover")
        return shape, states

    def over_recovery(self, shape_name, sweep):
        shape, states = self.crashed_states(shape_name)
        jobs = []
        for before, call in states:
            jobs.append((shape_name, shape, before, call, []))
            jobs.append((shape_name, shape, before, call, [shape.large]))
        self.spread(sweep, jobs)

    def crashed(self, shape_name, shape, before, call, appended):
        """Makes a crashed state anew; the calls of its recovery."""
        where = self.fresh(f"{shape_name}-{before.name}-{before.when}-"
                           f"{len(appended)}", shape)
        self.session(where, shape.script(),
                     ["-o", "/dev/null", "-e", f"trace={call.name}", "-e",
                      f"inject={call.name}:signal=KILL:when={call.when}"])
        for text in appended:
            self.append(where, text)
        state = self.snapshot(where)
        self.restore(where, state)
        calls, _ = self.calls(where, b"QUIT\r\n", r'/B", O_')
        return where, state, calls

    def kill_recovery(self, shape_name):
        self.over_recovery(shape_name, self.kill_recovery_part)

    def kill_recovery_part(self, shape_name, shape, before, call, appended):
        where, state, calls = self.crashed(shape_name, shape, before, call,
                                           appended)
        seen = set()
        origin = f"{shape_name}: UPDATE killed after {before.name} " \
                 f"{before.when}" + (", mail appended" if appended else "")
        # A recovery that has made its own journal records stands where an
        # earlier one did: what is read again needs no kill of its own.
        points = calls if self.all else thin(calls)
        for again in points:
            label = f"{origin}, recovery killed at {again.name} " \
                    f"{again.when} [{again.text[:90]}]"
            self.restore(where, state)
            _, status = self.injected(where, b"QUIT\r\n", again,
                                      "signal=KILL")
            if status != -9:
                self.fail(label, f"not killed, status {status}")
            self.check_state(where, shape, appended, False, seen, label,
                             variants=self.all or not appended)
        shutil.rmtree(where)

    def fail_update(self, shape_name):
        shape = SHAPES[shape_name]()
        where = self.fresh("trace-" + shape_name, shape)
        calls, _ = self.calls(where, shape.script(), QUIT_CAME)
        shutil.rmtree(where)
        points = [call for call in calls if call.name in FAILING]
        self.spread(self.fail_update_part,
                    [(shape_name, shape, points, error)
                     for error in ("ENOSPC", "EIO", "EINTR")])

    def fail_update_part(self, shape_name, shape, points, error):
        where = self.fresh(f"fail-{shape_name}-{error}", shape)
        seen = set()
        for call in points:
            label = f"{shape_name}: {error} from {call.name} {call.when}" \
                    f" [{call.text[:90]}]"
            self.restore(where, {"B": shape.mbox})
            reply, status = self.injected(where, shape.script(), call,
                                          "error=" + error)
            self.judge_reply(where, shape, call, error, reply, status, label)
            self.check_state(where, shape, [], said_ok(reply), seen, label)
        shutil.rmtree(where)

    def judge_reply(self, where, shape, call, error, reply, status, label):
        """What QUIT may say once a call of UPDATE has failed."""
        last = reply.split(b"\r\n")[-2] if reply.count(b"\r\n") else b""
        to_client = call.name == "write" and "write(1" in call.text
        ok = said_ok(reply)
        with self.lock:
            verdict = f"{error} " + ("+OK" if ok else "-ERR")
            self.replies[verdict] = self.replies.get(verdict, 0) + 1
        if to_client:
            return
        if status != 0 or not (ok or last.startswith(b"-ERR [SYS/")):
            self.fail(label, f"QUIT said {last!r}, exit {status}", where)
        ours = re.search(r"/(B|\.B\.pop3-journal)>", call.text)
        if ok and error != "EINTR" and ours and call.name in VOUCHED:
            self.fail(label, f"QUIT said {last!r}", where)
        now = self.snapshot(where)
        if ok and ".B.pop3-journal" in now:
            self.fail(label, "QUIT said +OK, and the journal is there", where)
        if not ok and error == "EINTR" and call.name in VOUCHED:
            self.fail(label, f"QUIT said {last!r} for a mere signal", where)
        if b"nothing removed" in last and ".B.pop3-journal" not in now and \
                now["B"] != shape.mbox:
            self.fail(label, f"QUIT said {last!r}, but the mbox is changed "
                      "and there is no journal", where)

    def fail_recovery(self, shape_name):
        self.over_recovery(shape_name, self.fail_recovery_part)

    def fail_recovery_part(self, shape_name, shape, before, call, appended):
        where, state, calls = self.crashed(shape_name, shape, before, call,
                                           appended)
        seen = set()
        # Without the session lock nobody may judge the dotlock of a session
        # that was killed: it is waited for, for half a minute.
        points = [again for again in calls if again.name in FAILING and
                  "pop3-state" not in again.text]
        errors = ("ENOSPC", "EIO", "EINTR")
        for n, again in enumerate(points):
            for error in errors if self.all else (errors[n % 3],):
                label = f"{shape_name}: UPDATE killed after {before.name} " \
                        f"{before.when}" \
                        f"{', mail appended' if appended else ''}, " \
                        f"{error} from recovery's {again.name} " \
                        f"{again.when} [{again.text[:90]}]"
                self.restore(where, state)
                began = time.monotonic()
                _, status = self.injected(where, b"QUIT\r\n", again,
                                          "error=" + error)
                if time.monotonic() - began > 10:
                    self.fail(label, "it took more than 10 seconds")
                if status < 0:
                    self.fail(label, f"exit {status}")
                self.check_state(where, shape, appended, False, seen, label,
                                 variants=False)
        shutil.rmtree(where)

    def short(self, shape_name):
        """No fault but that every write is short."""
        shape = SHAPES[shape_name]()
        where = self.fresh("short-" + shape_name, shape)
        reply, status = self.session(
            where, shape.script(), ["-o", "/dev/null", "-e", "trace=none"])
        self.points += 1
        if not said_ok(reply):
            self.fail(shape_name, f"QUIT said {reply[-80:]!r}, {status}")
        self.verify(where, shape, [], True, shape_name)
        shutil.rmtree(where)

    @staticmethod
    def spread(function, jobs):
        with concurrent.futures.ThreadPoolExecutor(
                2 * (os.cpu_count() or 1)) as pool:
            for done in [pool.submit(function, *job) for job in jobs]:
                done.result()


def thin(calls):
    """Leaves out calls between which nothing on the disk can change: of a row
    of such calls only the first and the last stay."""
    changing = re.compile(r"pwrite|write|sync|ftruncate|fallocate|unlink|link|"
                          r"open|rename|close|fcntl|getrandom")
    quiet = [not changing.match(call.name) for call in calls]
    return [call for n, call in enumerate(calls)
            if not (quiet[n] and 0 < n < len(calls) - 1 and quiet[n - 1] and
                    quiet[n + 1])]


def octets_sent(text):
    """What RETR sends of a stored message; none of ours has dots in front."""
    return text[len(SENDER):-1].replace(b"\n", b"\r\n")


def said_ok(reply):
    return bool(re.search(rb"^\+OK [1-9][0-9]* deleted\r\n\Z", reply, re.M))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-a", action="store_true")
    parser.add_argument("-d", default=".")
    parser.add_argument("-p")
    parser.add_argument("program")
    parser.add_argument("what", choices=["kill-update", "kill-recovery",
                                         "fail-update", "fail-recovery",
                                         "short"])
    parser.add_argument("shape", nargs="*", default=["head"])
    options = parser.parse_args()
    options.d = os.path.join(os.path.abspath(options.d),
                             f"faults.{os.getpid()}")
    os.mkdir(options.d)
    harness = Harness(options)
    for shape in options.shape:
        getattr(harness, options.what.replace("-", "_"))(shape)
    noun = {"k": "kill points", "f": "failing calls",
            "s": "sessions"}[options.what[0]]
    print(f"{options.what} {' '.join(options.shape)}: {harness.points} {noun}"
          f", {harness.states} states recovered"
          + "".join(f", {count} times {reply}" for reply, count
                    in sorted(harness.replies.items())))
    for failure in harness.failures:
        print("FAILED " + failure)
    if harness.failures:
        print(f"{len(harness.failures)} failures; files in {options.d}")
        return 1
    shutil.rmtree(options.d)
    return 0


if __name__ == "__main__":
    sys.exit(main())
