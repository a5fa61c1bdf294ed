#!/usr/bin/env bats
# What the next session does with a journal, record by record: tests/faults.bats
# and tests/powercut.bats find the states that a stop leaves; here are those
# that no stop leaves, and what fails while they are told apart.
load helper

D='Mon Jan  1 00:00:00 2024'
ONE="From a $D\nSubject: 1\n\none\n\n"
TWO="From b $D\nSubject: 2\n\ntwo\n\n"
THREE="From c $D\nSubject: 3\n\nthree\n\n"

# stopped KIND [FIELD=VALUE...]: the mbox B and its journal, when an UPDATE that
# takes the second of three messages out is stopped behind a record of KIND
# (step, moved, cut); or some of its fields are others, the sums right.
stopped() {
	need python3
	rm -rf "$T"/B "$T"/.B.*
	# shellcheck disable=SC2059
	printf "$ONE$TWO$THREE" >"$T/B"
	python3 - "$T" "$@" <<'P'
import os, struct, sys

def add(total, data):
    for i in range(0, len(data), 8):
        part = data[i:i + 8]
        word = bytearray(struct.pack("=Q", len(part)))
        word[:len(part)] = part
        total = (total ^ struct.unpack("=Q", word)[0]) * 0x9e3779b97f4a7c15
        total &= 2 ** 64 - 1
        total ^= total >> 29
    return total

top, kind = sys.argv[1:3]
path = top + "/B"
box = open(path, "rb").read()
a, b = (box.index(b"From " + x) for x in (b"b", b"c"))
end, length = len(box), len(box) - b
cut, nonce = a + length, bytes(range(16))
r = dict(magic=b"pop3jrn1", kind=1, number=0, inode=os.stat(path).st_ino,
         room=4096, to=a, length=length, run_start=b, run_end=end, end=0,
         before=add(0, box[:a]), stale=0, data=add(0, box[b:]),
         nonce_octets=0, nonce=bytes(16))
if kind != "step":
    box = box[:a] + box[b:] + box[cut:]
    r.update(kind=2, to=cut, length=0, run_start=0, run_end=0, end=end, data=0,
             number=1, before=add(0, box[:cut]), stale=add(0, box[cut + 16:]),
             nonce_octets=16, nonce=nonce)
if kind == "cut":
    r.update(kind=3, number=2)
    box = box[:cut] + nonce + box[cut + 16:]
for field, value in (word.split("=") for word in sys.argv[3:]):
    r[field] = int(value, 0) if field != "magic" else value.encode()
head = struct.pack("=8s13Q16s", *r.values())
slots = [bytearray(8192), bytearray(8192)]
slot = slots[int(os.environ.get("SLOT", r["number"] % 2))]
slot[:len(head) + 8] = head + struct.pack("=Q", add(0, head))
slot[4096:4096 + length] = open(path, "rb").read()[b:]
os.umask(0o077)
with open(path, "r+b") as f:
    f.write(box)
with open(top + "/.B.pop3-journal", "wb") as f:
    f.write(slots[0] + slots[1])
P
	cp "$T/B" "$T/before"
	give
}

# finished [TEXT]: the next session has ended the UPDATE, and kept what stands
# behind.
finished() {
	say 'STAT\r\nQUIT\r\n' -m B
	logged 'finishing an UPDATE that was stopped'
	# shellcheck disable=SC2059
	printf "$ONE$THREE${1:-}" >"$T/expected"
	same "$T/expected" "$T/B"
	nothing_beside
}

nothing_beside() {
	[ ! -e "$T/.B.pop3-journal" ]
	[ ! -e "$T/B.lock" ]
	[ -z "$(find "$T" -name '.B.pop3-journal.aside.*')" ]
}

# set_aside TEXT: the next session has not touched the mbox, kept the journal
# under another name, and logged why.
set_aside() {
	say 'STAT\r\nQUIT\r\n' -m B
	same "$T/before" "$T/B"
	logged "a journal that was not applied: $1"
	[ ! -e "$T/.B.pop3-journal" ]
	[ "$(find "$T" -name '.B.pop3-journal.aside.*' | wc -l)" = 1 ]
}

# ignored: the next session has removed the journal and nothing else.
ignored() {
	say 'STAT\r\nQUIT\r\n' -m B
	same "$T/before" "$T/B"
	lacks 'finishing' "$T/log"
	nothing_beside
}

# served: a session where nothing is given to its user before.
served() {
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		"$POP3" -P -h pop.example.org -m B >out 2>log)
}

# fails INJECT [SCRIPT]: a session where a call of strace's INJECT on the mbox or
# its journal does.
fails() {
	need strace
	give
	# shellcheck disable=SC2059
	(cd "$T" && printf "${2:-STAT\r\nQUIT\r\n}" | "${AS[@]}" bin/dialogue strace -o trace \
		-P "$T/.B.pop3-journal" -P "$T/B" -P "$T/" -e inject="$1" \
		"$POP3" -P -h pop.example.org -m "$T/B" >out 2>log)
}

@test "an UPDATE that was stopped behind any record is finished: these tests can fail" {
	local kind
	for kind in step moved cut; do
		stopped "$kind"
		finished
	done
}

@test "what was delivered behind a record is kept, whichever it is" {
	local kind
	for kind in step moved cut; do
		stopped "$kind"
		# shellcheck disable=SC2059
		printf "From d $D\nSubject: 4\n\nfour\n\n" >>"$T/B"
		finished "From d $D\nSubject: 4\n\nfour\n\n"
	done
}

@test "an mbox that was already cut is left as it is, whatever was delivered since" {
	stopped cut
	# shellcheck disable=SC2059
	printf "$ONE$THREE" >"$T/B"
	cp "$T/B" "$T/before"
	say 'STAT\r\nQUIT\r\n' -m B
	same "$T/before" "$T/B"
	nothing_beside
	stopped cut
	# shellcheck disable=SC2059
	printf "$ONE$THREE$TWO$TWO" >"$T/B"
	cp "$T/B" "$T/before"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 4' "$T/out"
	same "$T/before" "$T/B"
	nothing_beside
}

@test "a record that no session writes is none, though its sum is right" {
	local field size
	stopped step
	size=$(stat -c %s "$T/B")
	for field in magic=pop3jrn2 kind=0 kind=4 number=1 room=0 room=8192 \
		length=4097 "run_start=$size" "run_end=$((size + 1))" \
		run_end=0x8000000000000000 end=0x8000000000000000 \
		"to=$size" "run_start=0" "length=$size" data=1; do
		echo "$field" >&2
		SLOT=0 stopped step "$field"
		ignored
	done
	for field in "to=$size" "end=0" nonce_octets=17 kind=5 number=1; do
		echo "$field" >&2
		SLOT=0 stopped moved number=0 "$field"
		ignored
	done
}

@test "a record with one wrong bit is none" {
	local at
	for at in 0 8 16 24 32 40 48 56 64 72 80 88 96 104 112 128 135 4096; do
		stopped step
		printf '\377' | dd of="$T/.B.pop3-journal" bs=1 seek="$at" conv=notrunc status=none
		ignored
	done
}

@test "of two records the newer one counts, in whichever slot it is" {
	# The newer says that the mbox is cut, which it was; to the older the mail
	# that was delivered since is a change.
	local n
	for n in 2 3; do
		stopped moved "number=$((n - 1))"
		cp "$T/.B.pop3-journal" "$T/older"
		stopped cut "number=$n"
		dd if="$T/older" of="$T/.B.pop3-journal" bs=8192 count=1 conv=notrunc status=none \
			skip="$(((n - 1) % 2))" seek="$(((n - 1) % 2))"
		# shellcheck disable=SC2059
		printf "$ONE$THREE$TWO$TWO" >"$T/B"
		cp "$T/B" "$T/before"
		say 'STAT\r\nQUIT\r\n' -m B
		same "$T/before" "$T/B"
		nothing_beside
	done
}

@test "a journal is set aside where the mbox is not what it was written for" {
	# Before what moves, in what moved last, shorter, longer in its place.
	stopped step
	printf X | dd of="$T/B" bs=1 seek=20 conv=notrunc status=none
	cp "$T/B" "$T/before"
	set_aside 'the mbox was changed by another since'
	stopped step
	printf X | dd of="$T/B" bs=1 seek="$(($(stat -c %s "$T/B") - 3))" conv=notrunc status=none
	cp "$T/B" "$T/before"
	set_aside 'the mbox was changed by another since'
	local kind
	for kind in step moved; do
		stopped "$kind"
		truncate -s -1 "$T/B"
		cp "$T/B" "$T/before"
		set_aside 'the mbox was changed by another since'
	done
	for kind in moved cut; do
		stopped "$kind"
		printf X | dd of="$T/B" bs=1 seek=20 conv=notrunc status=none
		cp "$T/B" "$T/before"
		set_aside 'the mbox was changed by another since'
		stopped "$kind"
		printf X | dd of="$T/B" bs=1 seek="$(($(stat -c %s "$T/B") - 3))" conv=notrunc status=none
		cp "$T/B" "$T/before"
		set_aside 'the mbox was changed by another since'
	done
	stopped step inode=1
	set_aside 'it belongs to another file'
}

@test "what stands in the journal's place and is none is set aside or removed" {
	stopped step
	rm "$T/.B.pop3-journal"
	mkdir "$T/.B.pop3-journal"
	set_aside 'Is a directory'
	local size
	for size in 0 1 8191 16383; do
		stopped step
		truncate -s "$size" "$T/.B.pop3-journal"
		ignored
	done
}

@test "a journal of another user is set aside, or kept if it may not be read" {
	need_root
	stopped step
	chown 12345 "$T/.B.pop3-journal"
	served
	has '-ERR [SYS/' "$T/out"
	same "$T/before" "$T/B"
	[ -e "$T/.B.pop3-journal" ]
	chmod 666 "$T/.B.pop3-journal"
	served
	has '+OK 3' "$T/out"
	same "$T/before" "$T/B"
	logged 'a journal that was not applied: not owned by the user'
}

@test "whichever call of a recovery fails, the mbox is not served, and the next session finishes it" {
	need strace
	local each call n
	# Behind a step there comes all that a cut needs but for its comparisons.
	for each in step/{openat,newfstatat,pread64,pwrite64,fdatasync,ftruncate,fsync,unlink}:error=EIO \
		step/pread64:retval=0 cut/pread64:error=EIO; do
		call=${each#*/}
		for ((n = 1; n <= 30; n++)); do
			stopped "${each%/*}"
			call=${call/newfstatat/newfstatat,fstat}
			fails "${call/openat/openat,?open}:when=$n"
			grep -q INJECTED "$T/trace" || break
			echo "$each $n" >&2
			[ -e "$T/.B.pop3-journal" ] || continue
			has '-ERR [SYS/TEMP]' "$T/out"
			lacks 'not applied' "$T/log"
			finished
		done
		[ "$n" -gt 1 ]
	done
}

@test "a journal that cannot be set aside keeps the mbox from being served" {
	need strace
	stopped step inode=1
	fails rename:error=EIO
	has '-ERR [SYS/TEMP]' "$T/out"
	logged "it belongs to another file, and cannot be renamed: $EIO"
	same "$T/before" "$T/B"
	[ -e "$T/.B.pop3-journal" ]
	set_aside 'it belongs to another file'
}

@test "a call that a signal cuts short is made again" {
	need strace
	local call
	stopped moved
	# shellcheck disable=SC2059
	printf "$ONE$TWO$THREE" >"$T/B"
	cp "$T/B" "$T/three"
	for call in pread64 pwrite64 fdatasync fsync ftruncate fallocate; do
		rm -f "$T"/.B.*
		cp "$T/three" "$T/B"
		fails "$call:error=EINTR:when=1" 'RETR 1\r\nDELE 2\r\nQUIT\r\n'
		grep -q "$call.*INJECTED" "$T/trace"
		has '+OK 1 deleted' "$T/out"
		has 'Subject: 1' "$T/out"
		# shellcheck disable=SC2059
		printf "$ONE$THREE" | cmp - "$T/B"
		nothing_beside
	done
}

@test "a journal that cannot be removed makes QUIT an error, and is removed by the next session" {
	need strace
	stopped step
	rm "$T/.B.pop3-journal"
	# When all is done, and when there was no room for it.
	fails unlink:error=EIO 'DELE 2\r\nQUIT\r\n'
	has '-ERR' "$T/out"
	[ -e "$T/.B.pop3-journal" ]
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 2' "$T/out"
	nothing_beside
	stopped step
	rm "$T/.B.pop3-journal"
	(cd "$T" && printf 'DELE 2\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
		-P "$T/.B.pop3-journal" -e inject=fallocate:error=ENOSPC -e inject=unlink:error=EIO \
		"$POP3" -P -h pop.example.org -m "$T/B" >out 2>log)
	has '-ERR' "$T/out"
	[ -e "$T/.B.pop3-journal" ]
	ignored
}

@test "a step that fills its room to the last octet is moved, or makes QUIT an error" {
	need strace
	local head="From c $D\nSubject: 3\n\n" when
	# shellcheck disable=SC2059
	{
		printf "$head"
		head -c "$((8192 - $(printf "$head" | wc -c) - 2))" /dev/zero | tr '\0' x
		printf '\n\n'
	} >"$T/stays"
	[ "$(stat -c %s "$T/stays")" = 8192 ]
	for when in 1 2 3 100; do # there are not as many as 100
		rm -f "$T"/B "$T"/.B.*
		# shellcheck disable=SC2059
		{ printf "$TWO"; cat "$T/stays"; } >"$T/B"
		fails "pwrite64:error=EIO:when=$when" 'DELE 1\r\nQUIT\r\n'
		if grep -q INJECTED "$T/trace"; then
			has '-ERR' "$T/out"
			say 'STAT\r\nQUIT\r\n' -m B
			tail -c 8192 "$T/B" | cmp - "$T/stays"
		else
			has '+OK 1 deleted' "$T/out"
			same "$T/stays" "$T/B"
		fi
		nothing_beside
	done
}

@test "an mbox that may only be read is not served while its journal stands" {
	stopped step
	chmod 400 "$T/B"
	say 'STAT\r\nQUIT\r\n' -m B
	expect "$HELLO"'-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged 'not writable, but an UPDATE is to finish'
	same "$T/before" "$T/B"
	chmod 600 "$T/B"
	finished
}

@test "a cut that cannot be synced is no +OK" {
	need strace
	stopped step
	rm "$T/.B.pop3-journal"
	fails fsync:error=EIO 'DELE 3\r\nQUIT\r\n'
	has '-ERR' "$T/out"
	lacks '+OK 1 deleted' "$T/out"
	logged "text=\"fsync: $EIO\""
}

@test "a cut that cannot be made leaves the mbox as it was" {
	need strace
	stopped step
	rm "$T/.B.pop3-journal"
	fails ftruncate:error=EIO 'DELE 2\r\nDELE 3\r\nQUIT\r\n'
	has '-ERR [SYS/TEMP] nothing removed' "$T/out"
	logged "text=\"cut: $EIO\""
	same "$T/before" "$T/B"
	nothing_beside
}

@test "an mbox that is gone at QUIT makes it an error" {
	stopped step
	rm "$T/.B.pop3-journal"
	converse -P -m B
	tell 'DELE 1\r\n'
	rm "$T/B"
	tell 'RETR 2\r\nQUIT\r\n'
	hang_up
	[ "$(grep -c '^-ERR \[SYS/TEMP\]' "$T/out")" = 2 ]
	[ ! -e "$T/B" ]
}

@test "a journal of 2 GB with a record in it is finished like any other, within 4 MiB of memory, or 16 where mail has come since" {
	stopped step room=$(((1 << 30) - 4096))
	truncate -s 2G "$T/.B.pop3-journal"
	DIAL="-m $T/mem" finished
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-4096}" ]
	# What is delivered since goes through the whole of it.
	stopped step room=$(((1 << 30) - 4096))
	truncate -s 2G "$T/.B.pop3-journal"
	{
		printf 'From d %s\nSubject: 4\n\n' "$D"
		yes | head -c 20000000
		echo
	} >"$T/four"
	cat "$T/four" >>"$T/B"
	DIAL="-m $T/mem" say 'STAT\r\nQUIT\r\n' -m B
	logged 'finishing an UPDATE that was stopped'
	# shellcheck disable=SC2059
	printf "$ONE$THREE" | cat - "$T/four" | same - "$T/B"
	# A step of the most octets that are moved at once, and what else there is.
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-16384}" ]
	nothing_beside
}
