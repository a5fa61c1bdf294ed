#!/usr/bin/env python3
r"""What a power cut may leave of an mbox, tried on pop3-handler.

A session that deletes mail runs under strace(1), which records what it does to
the mbox and its journal: writes, truncations, fsync, names made and removed.
For every prefix of these operations - the power goes after the k-th of them -
this program builds the files as a disk could hold them then:

  - What was written to a file is certain only after fsync or fdatasync of that
    file; a name made or removed only after fsync of the directory.
  - Everything else is pending: of a write each sector of 512 octets by itself,
    a truncation, an allocation, a name. Any subset of the pending operations
    may have reached the disk, truncations before or after the writes that
    came first. Up to --exhaustive of them are tried in all subsets, more of
    them in --samples subsets: all or nothing of each file, and then chosen at
    random, seeded, in runs and singly.
  - The dotlock may still be there, with its tag, or empty and old.
  - Mail may be delivered after the power is back, before anybody looks.

Each state is then opened by a new session ("STAT", "QUIT"), which has to mend
it. Afterwards every message that was kept or delivered must stand in the mbox
once, byte for byte, in order; every deleted one wholly or not at all, the
latter if the cut came after QUIT was answered; STAT must have told just these;
and neither journal nor lock nor any other file may be left.

The mending can be cut as well: for some states, --again of each kind of
mailbox, it is recorded itself and treated in the same way, three cuts deep.

A journal names the inode of its mbox, so a state is always built in the very
file that was recorded. Each process at work (--jobs) takes its share of the
prefixes, in a directory and with a recording of its own. What a recording does
not explain (the files as the session left them must be what the operations
make of them) ends the program with status 2.

At the first violation everything stops with status 1. The directory named is
kept: the state is built there once more, so that

    printf 'STAT\r\nQUIT\r\n' | pop3-handler -P -m DIRECTORY/B

does again what went wrong; with copies in before/ and after/, the session's
output and log, the recorded operations, and an account of what happened. The
operations hold random octets of the program's, so another run with the same
seed does the same only up to these.

Started by root, it does all of this as an unprivileged user. The directory
should be in memory: each state costs a session with all its fsyncs.
"""
import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

NOBODY = 65534  # as in tests/helper.bash
SECTOR = 512
ZERO = bytes(SECTOR)
DATE = "Mon Jan  1 00:00:00 2024"
BOX, LOCK, STATE = "B", "B.lock", ".B.pop3-state"
JOURNAL = ".B.pop3-journal"
TAG = b"pop3-handler 1\n"
CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,"
    "copy_file_range,sendfile,splice,lseek,fsync,fdatasync,sync,syncfs,"
    "open,openat,creat,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
)


class Unexplained(Exception):
    """The recording is not one that this program understands."""


class Violation(Exception):
    """Mail was lost, doubled or damaged, or something was left behind."""


# ---- Files as a disk has them ----


class Image:
    """The octets of a file, by sectors; those not there are zero."""

    def __init__(self, data=b""):
        self.size = len(data)
        self.sectors = {}
        for at in range(0, len(data), SECTOR):
            self.sectors[at // SECTOR] = data[at : at + SECTOR].ljust(SECTOR, b"\0")

    def copy(self):
        other = Image()
        other.size = self.size
        other.sectors = dict(self.sectors)
        return other

    def apply(self, piece):
        kind, at, data = piece
        if kind == "write":  # within one sector
            n, start = divmod(at, SECTOR)
            if len(data) < SECTOR:
                old = self.sectors.get(n, ZERO)
                data = old[:start] + data + old[start + len(data) :]
            self.sectors[n] = data
            self.size = max(self.size, at + len(piece[2]))
        elif kind == "extend":
            self.size = max(self.size, at)
        else:
            last, rest = divmod(at, SECTOR)
            if at < self.size:
                for n in [n for n in self.sectors if n >= last]:
                    cut = self.sectors.pop(n)
                    if n == last and rest > 0:
                        self.sectors[n] = cut[:rest].ljust(SECTOR, b"\0")
            self.size = at

    def data(self):
        count = (self.size + SECTOR - 1) // SECTOR
        return b"".join([self.sectors.get(n, ZERO) for n in range(count)])[: self.size]

    def key(self):
        """Equal for equal contents."""
        return self.size, frozenset(i for i in self.sectors.items() if i[1] != ZERO)

    def store(self, path):
        """Puts the octets into the file at `path`, in its inode if it exists."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, self.size)
        run, begin = [], 0
        for n in sorted(self.sectors):
            if n * SECTOR >= self.size:
                break
            if run and n != begin + len(run):
                os.pwrite(fd, b"".join(run), begin * SECTOR)
                run = []
            if not run:
                begin = n
            run.append(self.sectors[n][: self.size - n * SECTOR])
        if run:
            os.pwrite(fd, b"".join(run), begin * SECTOR)
        os.close(fd)


def pieces_of(op):
    """What of a file's operation may reach the disk by itself."""
    kind, at, data = op
    if kind != "write":
        return [op]
    ends = list(range(at - at % SECTOR + SECTOR, at + len(data), SECTOR))
    return [
        ("write", begin, data[begin - at : end - at])
        for begin, end in zip([at] + ends, ends + [at + len(data)])
    ]


class File:
    def __init__(self, image):
        self.certain = image
        self.pending = []

    def sync(self):
        self.certain, self.pending = self.now(), []  # others may hold the old one

    def now(self):
        image = self.certain.copy()
        for piece in self.pending:
            image.apply(piece)
        return image


class Disk:
    """A directory with the mbox and what belongs to it, and what is pending."""

    def __init__(self, images):
        self.certain = {n: File(image.copy()) for n, image in images.items()}
        self.now = dict(self.certain)
        self.pending = []  # dicts of names set at once

    def set_names(self, names):
        self.pending.append(names)
        self.now.update(names)

    def apply(self, op):
        """Does one recorded operation."""
        kind, name, *rest = op
        if kind in ("write", "extend", "cut"):
            self.now[name].pending += pieces_of((kind, *rest))
        elif kind == "sync":
            self.now[name].sync()
        elif kind == "make":
            self.set_names({name: File(Image())})
        elif kind == "remove":
            self.set_names({name: None})
        elif kind == "rename":
            self.set_names({rest[0]: self.now[name], name: None})
        elif kind == "link":
            self.set_names({rest[0]: self.now[name]})
        elif kind == "sync directory":
            for names in self.pending:
                self.certain.update(names)
            self.pending = []
        elif kind == "sync all":
            for file in self.now.values():
                if file:
                    file.sync()
            self.apply(("sync directory", ""))

    def groups(self):
        """What is pending: a list for the names, and one for each file."""
        groups = [[(None, names) for names in self.pending]]
        seen = []
        for names in [self.certain] + self.pending:
            for file in names.values():
                if file and file not in seen:
                    seen.append(file)
                    groups.append([(file, piece) for piece in file.pending])
        return [group for group in groups if group]

    def survivors(self, units):
        """The files, by name, when just `units` reached the disk."""
        names, images = dict(self.certain), {}
        for file, what in units:
            if file is None:
                names.update(what)
            else:
                if file not in images:
                    images[file] = file.certain.copy()
                images[file].apply(what)
        return {
            name: images.get(file, file.certain)
            for name, file in names.items()
            if file is not None
        }


# ---- Which subsets of what is pending ----


def commute(units):
    """Whether the order of these makes no difference."""
    kinds = {(file, what[0]) for file, what in units if file is not None}
    files = {file for file, kind in kinds if kind != "write"}
    if any((file, "write") in kinds for file in files):
        return False
    places = [(file, what[1] // SECTOR) for file, what in units if file is not None]
    return len(places) == len(set(places))


def some_of(group, rng):
    """A subset as a disk's cache might leave it."""
    n = len(group)
    way = rng.randrange(7)
    if way == 0:
        return []
    if way == 1:
        return group
    if way == 2:  # the first ones
        return group[: rng.randint(0, n)]
    if way == 3:  # the last ones
        return group[rng.randint(0, n) :]
    if way == 4:  # all but a run, often but one
        begin = rng.randrange(n)
        return group[:begin] + group[begin + rng.choice([1, 1, 8, 8 * n]) :]
    if way == 5:
        begin = rng.randrange(n)
        return group[begin : begin + rng.choice([1, 1, 8])]
    share = rng.choice([0.1, 0.5, 0.9])
    return [unit for unit in group if rng.random() < share]


def subsets(groups, rng, options):
    """Lists of the pending units that reach the disk, in that order."""
    units = [unit for group in groups for unit in group]
    if len(units) <= options.exhaustive:
        for bits in range(1 << len(units)):
            chosen = [u for i, u in enumerate(units) if bits >> i & 1]
            yield chosen
            if not commute(chosen):
                rng.shuffle(chosen)
                yield chosen
        return
    count = 0
    for bits in range(1 << min(len(groups), 4)):
        yield [u for i, g in enumerate(groups) if bits >> i & 1 for u in g]
        count += 1
    while count < options.samples:
        chosen = [u for group in groups for u in some_of(group, rng)]
        if rng.random() < 0.4 and not commute(chosen):
            rng.shuffle(chosen)
        yield chosen
        count += 1


# ---- Recording ----


def text(hexed):
    return bytes.fromhex(hexed.strip('"').replace("\\x", ""))


class Recording:
    """Reads a trace of strace's into operations on the files of `directory`."""

    def __init__(self, directory, names):
        self.directory = directory
        self.exists = set(names)
        self.offset = {}  # of a descriptor
        self.operations = []

    def name(self, path):
        """A file of ours, None for another. Lock and state are not followed."""
        base = os.path.basename(path)
        if os.path.dirname(path) != self.directory or path.endswith("(deleted)"):
            return None
        if base.startswith((STATE, ".B.pop3-lock")) or base == LOCK:
            return None
        return base

    def path(self, argument, directory=None):
        path = os.fsdecode(text(argument))
        base = os.fsdecode(text(directory[directory.index("<") + 1 :].split(">")[0])) if directory else self.directory
        return os.path.join(base, path)

    def read(self, trace):
        with open(trace, encoding="utf-8") as lines:
            for line in lines:
                match = re.match(r"\d+ +(\w+)\(", line)
                if not match:
                    continue
                body, _, result = line[match.end() :].rpartition(" = ")
                if not body or "unfinished" in line[-40:]:
                    raise Unexplained(line[:200])
                if result.startswith(("-1", "?")):
                    continue
                arguments = body.rstrip().removesuffix(")").split(", ")
                self.call(match[1], arguments, result)
        return self.operations

    def call(self, call, arguments, result):
        record = self.operations.append
        handler = getattr(self, "call_" + call, None)
        if call.startswith(("open", "creat", "link", "rename", "unlink")):
            handler(arguments, result)
            return
        if call in ("sync", "syncfs"):
            record(("sync all", ""))
            return
        number, _, path = arguments[0].partition("<")
        path, _, deleted = path.partition(">")
        path = os.fsdecode(text(path)) if path.startswith("\\x") else path
        if call in ("fsync", "fdatasync") and path == self.directory:
            record(("sync directory", ""))
            return
        if call == "write" and number == "1":
            record(("reply", "", text(arguments[1])))
            return
        name = self.name(path + deleted)
        if name is None:
            return
        if handler is None:
            raise Unexplained(f"{call} of {name}")
        handler(name, number, arguments, result)

    def opened(self, path, flags, result):
        name = self.name(path)
        if name is None:
            return
        if "O_SYNC" in flags or "O_DSYNC" in flags or "O_APPEND" in flags:
            raise Unexplained(f"open of {name} with {flags}")
        self.offset[result.split("<")[0]] = 0
        if name not in self.exists and "O_CREAT" in flags:
            self.exists.add(name)
            self.operations.append(("make", name))
        elif "O_TRUNC" in flags:
            self.operations.append(("cut", name, 0, None))

    def call_open(self, arguments, result):
        self.opened(self.path(arguments[0]), arguments[1], result)

    def call_openat(self, arguments, result):
        self.opened(self.path(arguments[1], arguments[0]), arguments[2], result)

    def call_creat(self, arguments, result):
        self.opened(self.path(arguments[0]), "O_CREAT|O_TRUNC", result)

    def removed(self, path):
        name = self.name(path)
        if name is not None:
            self.exists.discard(name)
            self.operations.append(("remove", name))

    def call_unlink(self, arguments, _):
        self.removed(self.path(arguments[0]))

    def call_unlinkat(self, arguments, _):
        self.removed(self.path(arguments[1], arguments[0]))

    def moved(self, kind, old, new):
        old, new = self.name(old), self.name(new)
        if old is None and new is None:
            return
        if old is None or new is None:
            raise Unexplained(f"{kind} from or to a file that is not followed")
        self.exists.add(new)
        if kind == "rename":
            self.exists.discard(old)
        self.operations.append((kind, old, new))

    def call_rename(self, arguments, _):
        self.moved("rename", self.path(arguments[0]), self.path(arguments[1]))

    def call_link(self, arguments, _):
        self.moved("link", self.path(arguments[0]), self.path(arguments[1]))

    def call_renameat(self, a, _):
        self.moved("rename", self.path(a[1], a[0]), self.path(a[3], a[2]))

    call_renameat2 = call_renameat

    def call_linkat(self, a, _):
        self.moved("link", self.path(a[1], a[0]), self.path(a[3], a[2]))

    def written(self, name, at, string, length):
        data = text(string) if not string.endswith("...") else b""
        if len(data) < length:
            raise Unexplained(f"a write to {name} longer than strace shows")
        if length:
            self.operations.append(("write", name, at, data[:length]))

    def call_write(self, name, number, arguments, result):
        at = self.offset.get(number, 0)
        self.offset[number] = at + int(result)
        self.written(name, at, arguments[1], int(result))

    def call_pwrite64(self, name, _, arguments, result):
        self.written(name, int(arguments[3]), arguments[1], int(result))

    def call_lseek(self, _, number, __, result):
        self.offset[number] = int(result)

    def call_ftruncate(self, name, _, arguments, __):
        self.operations.append(("cut", name, int(arguments[1]), None))

    def call_fallocate(self, name, _, arguments, __):
        if arguments[1] == "0":
            end = int(arguments[2]) + int(arguments[3])
            self.operations.append(("extend", name, end, None))
        elif arguments[1] != "FALLOC_FL_KEEP_SIZE":
            raise Unexplained(f"fallocate of {name} with {arguments[1]}")

    def call_fsync(self, name, *_):
        self.operations.append(("sync", name))

    call_fdatasync = call_fsync


def joined(operations):
    """The same with writes that continue each other as one: what the cuts
    between them can leave are some of its subsets."""
    runs = []
    for op in operations:
        last = runs[-1] if runs else None
        if (
            last
            and op[0] == last[0] == "write"
            and op[1] == last[1]
            and op[2] == last[2] + sum(map(len, last[3]))
        ):
            last[3].append(op[3])
        else:
            runs.append(list(op[:3]) + [[op[3]]] if op[0] == "write" else op)
    return [
        (*op[:3], b"".join(op[3])) if op[0] == "write" else op for op in runs
    ]


def described(op):
    kind, name, *rest = op
    if kind == "write":
        return f"write {len(rest[1])} octets at {rest[0]} of {name}"
    if kind == "reply":
        return "reply " + rest[0].decode("utf-8", "replace").rstrip()
    return " ".join([kind, name] + [str(r) for r in rest if r is not None]).rstrip()


# ---- Mailboxes ----


def message(label, size=0, body=None):
    """A message as it stands in an mbox, with the empty line after it; padded
    to `size` octets with lines that tell where they stand."""
    head = f"From {label}@example.org {DATE}\nSubject: {label}\n\n"
    if body is None:
        lines, length, n = [], len(head) + 1, 0
        while length < size:
            line = f"{label} {n} " + "abcdefghijklmnopqrstuvwxyz0123456789" * 2
            line = line[: max(0, min(70, size - length - 1))]
            lines.append(line)
            length += len(line) + 1
            n += 1
        body = "".join(line + "\n" for line in lines) or "text\n"
    return (head + body + "\n").encode()


def octets(mail):
    """What STAT counts of such a message."""
    stored = mail[mail.index(b"\n") + 1 : -1]
    return len(stored) + stored.count(b"\n")


class Expected:
    """The messages that may be in the mbox, in order, each with its fate:
    "kept"; "may go", since its deletion is not yet answered; or "gone"."""

    def __init__(self, messages):
        self.messages = messages

    def with_mail(self, mail):
        return Expected(self.messages + [(mail, "kept")]) if mail else self

    def with_fate(self, change):
        return Expected(
            [(m, change(n, fate)) for n, (m, fate) in enumerate(self.messages)]
        )

    def check(self, data):
        """The number of messages in `data` and their octets."""
        ways = {0: (0, 0)}  # how far the messages so far reach
        for n, (mail, fate) in enumerate(self.messages):
            after = {}
            for at, (count, total) in ways.items():
                if fate != "gone" and data.startswith(mail, at):
                    after[at + len(mail)] = (count + 1, total + octets(mail))
                if fate != "kept":
                    after[at] = (count, total)
            if not after:
                at = max(ways)
                raise Violation(
                    f"message {n + 1} of {len(self.messages)} ({fate}, "
                    f"{mail[5:25]!r}) is not whole in the mbox at octet {at}, "
                    f"there is {data[at:at + 40]!r}"
                )
            ways = after
        if len(data) not in ways:
            at = max(ways)
            raise Violation(
                f"behind the last message, at octet {at} of {len(data)}, "
                f"there is {data[at:at + 40]!r}"
            )
        return ways[len(data)]


# A mailbox is its messages and a story: sessions, each with the numbers that
# it deletes and what is delivered while it runs (or None); or a delivery alone,
# where the numbers are None.
def mailboxes():
    def box(*sizes):
        return [message(chr(97 + n), size) for n, size in enumerate(sizes)]

    twin = message("twin", SECTOR)
    late = message("late", 700)
    mib = 1 << 20
    return {
        "head": (box(900, 700, 1300), [([1], None)]),
        "middle": (box(600, 500, 1100, 900), [([2], None)]),
        "holes": (
            box(300, 600, 500, 700, 400, 900, 200),
            [([1, 3, 4, 6], None)],
        ),
        "small hole": (box(0, 0, 2100), [([2], None)]),
        "large hole": (box(100, 4000, 300), [([2], None)]),
        "many sectors": (box(5000, 3000, 9000, 200, 7000), [([1, 4], None)]),
        "tail": (box(500, 700, 900), [([2, 3], None)]),
        "all": (box(500, 700, 900), [([1, 2, 3], None)]),
        "appended": (box(800, 600, 700), [([1], late)]),
        "appended behind a tail": (box(800, 600, 700), [([2, 3], late)]),
        "twins": ([twin] * 5, [([2, 4], None)]),
        "two sessions": (
            box(700, 800, 600, 500),
            [([1], None), (None, late), ([2], None)],
        ),
        "tail after hole": (
            box(700, 800, 600, 500),
            [([2], None), (None, late), ([3, 4], None)],
        ),
        "three steps": (
            [message("a", 3000)]
            + [message(c, 7 * mib + 777) for c in "bc"]
            + [message("d", 3 * mib)],
            [([1], None)],
        ),
    }


LARGE = {"three steps"}  # each of their states costs as much as a hundred


# ---- Sessions ----


STOP = multiprocessing.Event()  # somebody found a violation


class Worker:
    """One directory with one mbox, and the sessions that run on it."""

    def __init__(self, directory, program):
        self.directory = directory
        self.aside = directory + ".aside"
        self.program = program
        os.mkdir(directory)
        os.mkdir(self.aside)
        self.box = os.path.join(directory, BOX)
        self.script = os.path.join(self.aside, "script")
        with open(self.script, "wb") as file:
            file.write(b"STAT\r\nQUIT\r\n")
        self.seen = set()
        self.counts = dict.fromkeys(
            ["operations", "cuts", "states", "sessions", "recorded"], 0
        )

    def command(self):
        return [self.program, "-P", "-h", "pop.example.org", "-m", self.box]

    def build(self, images, lock):
        """Makes the directory hold just these files."""
        for name in os.listdir(self.directory):
            if name != BOX:
                os.unlink(os.path.join(self.directory, name))
        for name, image in images.items():
            image.store(os.path.join(self.directory, name))
        if lock is not None:
            path = os.path.join(self.directory, LOCK)
            with open(path, "wb") as file:
                file.write(lock)
            if not lock:
                os.utime(path, (1, 1))

    def session(self):
        """Runs a session on what is there; its output and log are in files."""
        self.counts["sessions"] += 1
        to = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        command = self.command()
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, self.script, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.path.join(self.aside, "out"), to, 0o600),
                (os.POSIX_SPAWN_OPEN, 2, os.path.join(self.aside, "log"), to, 0o600),
            ],
        )

        def overdue(*_):
            os.kill(pid, signal.SIGKILL)

        signal.signal(signal.SIGALRM, overdue)
        signal.alarm(60)
        status = os.waitpid(pid, 0)[1]
        signal.alarm(0)
        with open(os.path.join(self.aside, "out"), "rb") as file:
            return status, file.read()

    def check(self, expected):
        """A session on what is there, and what must hold after it."""
        status, out = self.session()
        with open(self.box, "rb") as file:
            data = file.read()
        count, total = expected.check(data)
        left = [n for n in os.listdir(self.directory) if n not in (BOX, STATE)]
        if left:
            raise Violation("left behind: " + " ".join(sorted(left)))
        if status != 0:
            raise Violation(f"the session ended with status {status}")
        told = out.split(b"\r\n")[1:2]
        if told != [b"+OK %d %d" % (count, total)]:
            raise Violation(f"STAT told {told!r}, not {count} {total}")

    def record(self, deleted=(), appended=None):
        """Runs a session under strace; returns its operations. Mail that is
        `appended` comes between STAT's reply and the rest."""
        names = os.listdir(self.directory)
        trace = os.path.join(self.aside, "trace")
        command = ["strace", "-f", "-y", "-xx", "-s", str(1 << 26), "-o", trace]
        command += ["-e", "trace=" + CALLS] + self.command()
        with open(os.path.join(self.aside, "log"), "wb") as log:
            session = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        out = session.stdout.readline()
        session.stdin.write(b"STAT\r\n")
        session.stdin.flush()
        out += session.stdout.readline()
        if appended:
            with open(self.box, "ab") as file:
                file.write(appended)
        script = "".join(f"DELE {n}\r\n" for n in deleted) + "QUIT\r\n"
        out += session.communicate(script.encode())[0]
        if session.returncode != 0 or b"-ERR" in out:
            raise Violation(f"the session to record replied {out!r}")
        operations = Recording(self.directory, names).read(trace)
        os.unlink(trace)
        replies = [n for n, op in enumerate(operations) if op[0] == "reply"]
        if len(replies) < 3:
            raise Unexplained("not every reply is in the trace")
        # What QUIT has answered for is no longer open.
        if deleted:
            operations.insert(replies[-1] + 1, ("answered", ""))
        if appended:
            operations.insert(replies[1] + 1, ("mail", BOX, appended))
        return [op for op in operations if op[0] != "reply"]

    def compare(self, disk):
        """Makes sure that the operations explain what is in the directory."""
        names = {n for n in os.listdir(self.directory) if n not in (STATE, LOCK)}
        if names != {n for n, file in disk.now.items() if file}:
            raise Unexplained(f"there are {names}, not {set(disk.now)}")
        for name in names:
            with open(os.path.join(self.directory, name), "rb") as file:
                if file.read() != disk.now[name].now().data():
                    raise Unexplained(f"{name} is not what was recorded")

    def keep(self, images, lock, operations, account):
        """Leaves the state for whoever looks for the reason."""
        for name in ("before", "after"):
            shutil.rmtree(os.path.join(self.aside, name), ignore_errors=True)
        shutil.copytree(self.directory, os.path.join(self.aside, "after"))
        self.build(images, lock)
        shutil.copytree(self.directory, os.path.join(self.aside, "before"))
        with open(os.path.join(self.aside, "account"), "w", encoding="utf-8") as file:
            file.write(account + "\n\noperations:\n")
            for n, op in enumerate(operations):
                file.write(f"{n + 1:4} {described(op)}\n")


# ---- Cutting ----


def happened(disk, op, expected):
    """Does an operation on the disk; returns what is expected afterwards."""
    kind, name, *rest = op
    if kind == "mail":
        disk.apply(("write", name, disk.now[name].now().size, rest[0]))
        disk.apply(("sync", name))
        return expected.with_mail(rest[0])
    if kind == "deletes":
        return expected.with_fate(
            lambda n, fate: "may go" if n in rest[0] else fate
        )
    if kind == "answered":
        return expected.with_fate(
            lambda _, fate: "gone" if fate == "may go" else fate
        )
    disk.apply(op)
    return expected


def with_mail(images, mail):
    if mail is None:
        return images
    box = images[BOX].copy()
    for piece in pieces_of(("write", box.size, mail)):
        box.apply(piece)
    return {**images, BOX: box}


class Cutter:
    """Tries what a cut may leave of one recording."""

    def __init__(self, worker, options, images, operations, expected, where, depth):
        self.worker = worker
        self.options = options
        self.images = images  # where the operations begin
        self.operations = joined(operations) if options.join else operations
        self.expected = expected
        self.where = where
        self.depth = depth
        self.candidates = []  # for a recording of their mending
        disk = Disk(images)
        for op in operations:
            happened(disk, op, Expected([]))
        worker.compare(disk)

    def every_prefix(self, part):
        """Cuts after each operation, if that is in this part of them."""
        disk, expected = Disk(self.images), self.expected
        for k in range(len(self.operations) + 1):
            if k > 0:
                expected = happened(disk, self.operations[k - 1], expected)
            if STOP.is_set():
                return
            if k % part[1] == part[0]:
                self.worker.counts["cuts"] += 1
                self.cut(k, disk, expected)
        self.worker.counts["operations"] += len(self.operations) * (part[0] == 0)
        if self.depth < self.options.depth:
            self.again(part)

    def cut(self, k, disk, expected):
        rng = random.Random(f"{self.options.seed} {self.where} {k}")
        for units in subsets(disk.groups(), rng, self.options):
            images = disk.survivors(units)
            for late in self.options.late or [rng.random() < 0.5]:
                lock = rng.choice([None, None, None, TAG, b""])
                # Sometimes more than the journal's slots have room for.
                size = rng.choice([0, 100, 600, 11000])
                mail = message(f"after{self.depth}", size) if late else None
                self.attempt(k, images, lock, mail, expected)
            # The more files there are, the more there is to mend.
            if rng.random() < (0.5 if len(images) > 1 else 0.02):
                self.candidates.append((k, images, expected))
        if len(self.candidates) > 2000:
            self.candidates = rng.sample(self.candidates, 1000)

    def attempt(self, k, images, lock, mail, expected):
        worker = self.worker
        images = with_mail(images, mail)
        expected = expected.with_mail(mail)
        worker.counts["states"] += 1
        key = hash(
            (
                tuple(sorted((n, image.key()) for n, image in images.items())),
                tuple(expected.messages),
            )
        )
        if key in worker.seen:
            return
        worker.seen.add(key)
        worker.build(images, lock)
        try:
            worker.check(expected)
        except Violation as violation:
            account = f"{self.where}, cut after operation {k}"
            if mail is not None:
                account += ", mail delivered afterwards"
            if lock is not None:
                account += ", an old dotlock"
            account = f"seed {self.options.seed}: {account}:\n  {violation}"
            worker.keep(images, lock, self.operations, account)
            raise Violation(
                f"{account}\n  the state: {worker.directory}\n"
                f"  all about it: {worker.aside}"
            ) from None

    def again(self, part):
        """Records how some of the states are mended, and cuts that."""
        rng = random.Random(f"{self.options.seed} {self.where} {part}")
        wanted = self.options.again if self.depth == 1 else 1
        wanted = min(wanted, len(self.candidates))
        for k, images, expected in rng.sample(self.candidates, wanted):
            size = rng.choice([None, 300, 14000])
            mail = message(f"between{self.depth}", size) if size else None
            images, expected = with_mail(images, mail), expected.with_mail(mail)
            self.attempt(k, images, None, None, expected)
            self.worker.build(images, None)
            self.worker.counts["recorded"] += 1
            Cutter(
                self.worker,
                self.options,
                images,
                self.worker.record(),
                expected,
                f"{self.where}, cut after operation {k}, session {self.depth + 1}",
                self.depth + 1,
            ).every_prefix((0, 1))


def run(name, part, directory, program, options):
    """One part of the work on one mailbox; returns the counts."""
    if name in LARGE:
        options = argparse.Namespace(**vars(options))
        options.samples, options.exhaustive = options.large, 1
        options.join = True
        options.again = min(options.again, 1)
    worker = Worker(
        os.path.join(directory, f"{name.replace(' ', '-')}.{part[0]}"), program
    )
    messages, story = mailboxes()[name]
    images = {BOX: Image(b"".join(messages))}
    worker.build(images, None)
    operations, numbered, total = [], list(range(len(messages))), len(messages)
    for deleted, appended in story:
        if deleted is None:
            with open(worker.box, "ab") as file:
                file.write(appended)
            operations.append(("mail", BOX, appended))
        else:
            gone = [numbered[n - 1] for n in deleted]
            numbered = [n for n in numbered if n not in gone]
            worker.counts["recorded"] += part[0] == 0
            operations.append(("deletes", "", gone))
            operations += worker.record(deleted, appended)
        if appended:
            numbered.append(total)
            total += 1
    Cutter(
        worker,
        options,
        images,
        operations,
        Expected([(mail, "kept") for mail in messages]),
        f"mailbox '{name}'",
        1,
    ).every_prefix(part)
    shutil.rmtree(worker.directory)
    shutil.rmtree(worker.aside)
    return worker.counts


# ---- The whole ----


def arguments():
    parser = argparse.ArgumentParser(
        description="Tries on pop3-handler what a power cut may leave of an mbox.",
        epilog="Mailboxes: " + ", ".join(mailboxes()) + ".",
    )
    here = os.path.dirname(os.path.abspath(__file__))
    add = parser.add_argument
    add(
        "--program",
        default=os.path.join(here, "..", "..", "pop3-handler"),
        help="the one that is tried",
    )
    add("--seed", type=int, default=1)
    add(
        "--exhaustive",
        type=int,
        default=10,
        metavar="N",
        help="up to N pending operations, all subsets of them are tried",
    )
    add(
        "--samples",
        type=int,
        default=1000,
        metavar="N",
        help="subsets tried where more are pending",
    )
    add(
        "--large",
        type=int,
        default=2,
        metavar="N",
        help="the same for mailboxes of many megabytes",
    )
    add(
        "--again",
        type=int,
        default=4,
        metavar="N",
        help="states of each half of the work whose mending is cut as well",
    )
    add("--depth", type=int, default=3, metavar="N", help="cuts in a row")
    add(
        "--full",
        action="store_true",
        help="large 50, again 20, and every state with and "
        "without mail delivered after the cut",
    )
    add("--jobs", type=int, default=2, metavar="N", help="processes at work")
    add("--small", action="store_true", help="no mailboxes of many megabytes")
    add("--dir", help="where to work (default: in memory)")
    add("mailbox", nargs="*", help="only these")
    options = parser.parse_args()
    options.late = None  # by chance
    options.join = False
    if options.full:
        options.large, options.again = 50, 20
        options.late = [False, True]
    for name in options.mailbox:
        if name not in mailboxes():
            parser.error(f"no such mailbox: {name}")
    return options


def prepare(options):
    """A directory with a copy of the program, for the user who is to run it."""
    memory = "/dev/shm"
    base = options.dir or (memory if os.access(memory, os.W_OK) else None)
    directory = os.path.realpath(tempfile.mkdtemp(prefix="powercut.", dir=base))
    program = os.path.join(directory, "pop3-handler")
    shutil.copyfile(options.program, program)
    os.chmod(program, 0o755)
    if os.getuid() == 0:
        os.chown(directory, NOBODY, NOBODY)
    return directory, program


def become_nobody():
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def show(table):
    """Prints what was done; returns it in one line."""
    columns = ["operations", "cuts", "states", "sessions", "recorded"]
    print(f"{'mailbox':24}" + "".join(f"{what:>12}" for what in columns))
    for name, row in table.items():
        print(f"{name:24}" + "".join(f"{row[what]:12}" for what in columns))
    return ", ".join(
        f"{sum(row[what] for row in table.values())} {what}" for what in columns
    )


def main():
    options = arguments()
    began = time.monotonic()
    # The longest first.
    names = options.mailbox or sorted(mailboxes(), key=lambda n: n not in LARGE)
    if options.small:
        names = [name for name in names if name not in LARGE]
    directory, program = prepare(options)
    problem, table = None, {}
    fork = multiprocessing.get_context("fork")  # what we are running stays readable
    with ProcessPoolExecutor(options.jobs, fork, become_nobody) as pool:
        tasks = {}
        for name in names:
            for n in range(options.jobs):
                part = (n, options.jobs)
                task = pool.submit(run, name, part, directory, program, options)
                tasks[task] = name
        for task in as_completed(tasks):
            problem = task.exception()
            if problem is not None:
                STOP.set()
                pool.shutdown(cancel_futures=True)
                break
            row = table.setdefault(tasks[task], {})
            for what, count in task.result().items():
                row[what] = row.get(what, 0) + count
    if problem is not None:
        print(f"{type(problem).__name__}: {problem}")
        return 1 if isinstance(problem, Violation) else 2
    shutil.rmtree(directory)
    done = show(table)
    seconds = time.monotonic() - began
    print(f"{done}, seed {options.seed}, {seconds:.0f} s: nothing lost or doubled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
