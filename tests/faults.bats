#!/usr/bin/env bats
# UPDATE of an mbox, and the recovery of one that was stopped, killed and made
# to fail at every system call. tests/faults/faults.py does it, and says at its
# top what must hold afterwards. FAULTS_ALL=1 leaves out none of the crashed
# states, errors and calls of which otherwise some are chosen (minutes).
load helper

# faults WHAT SHAPE...: sweeps, and prints what was covered.
faults() {
	need strace python3
	local options=(-d "$T/work")
	[ -z "${FAULTS_ALL:-}" ] || options+=(-a)
	[ -z "${SHORT:-}" ] || options+=(-p "$T/bin/short-write.so=$SHORT")
	mkdir "$T/work" 2>/dev/null || :
	cp "$ROOT/tests/faults/faults.py" "$T/bin/"
	give
	status=0
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 \
		bin/faults.py "${options[@]}" "$POP3" "$@") >"$T/said" 2>&1 3>&- || status=$?
	head -n 1 "$T/said" | sed 's/^/# /' >&3
	[ "$status" = 0 ] || tail -n +2 "$T/said" | head -n 60
	[ "$status" = 0 ]
}

# With $SHORT, every write of the sessions that are stopped is short.
short_writes() {
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	need cc
	cc -std=c11 -D_GNU_SOURCE -O2 -fPIC -shared -o "$T/bin/short-write.so" \
		"$ROOT/tests/tools/short-write.c" -ldl
}

@test "UPDATE killed at any system call loses nothing: head of an mbox deleted" {
	faults kill-update head
}

@test "UPDATE killed at any system call loses nothing: every other message deleted" {
	faults kill-update alternate
}

@test "UPDATE killed at any system call loses nothing: only truncation" {
	faults kill-update tail all
}

@test "UPDATE killed at any system call loses nothing: several steps of the journal" {
	faults kill-update big
}

@test "UPDATE killed within any write loses nothing" {
	short_writes
	SHORT=half faults kill-update head
}

@test "recovery killed at any system call loses nothing, and is finished by the next session" {
	faults kill-recovery head alternate
}

@test "recovery killed within any write loses nothing" {
	short_writes
	SHORT=400 faults kill-recovery head
}

@test "QUIT says +OK only for what is gone, whichever call of UPDATE fails" {
	faults fail-update head alternate tail all
}

@test "recovery is finished by the next session, whichever call of it fails" {
	faults fail-recovery head
}

@test "UPDATE with short writes, down to one octet, leaves exactly the others" {
	short_writes
	local SHORT
	for SHORT in 1 7 half; do
		faults short head alternate tail all
	done
}

@test "a lock that another holds for 30 seconds is an error that names the holder" {
	need perl
	local box="From a Mon Jan  1 00:00:00 2024\nSubject: 1\n\none\n"
	# shellcheck disable=SC2059
	printf "$box" >"$T/B"
	cp "$T/B" "$T/C"
	: >"$T/C.lock"
	give
	"${AS[@]}" perl -e 'use Fcntl; open F, "+<", shift or die; $l = pack "s s l! l! i", F_WRLCK, 0, 0, 0, 0;
		fcntl F, F_SETLK, $l or die; sleep 60' "$T/B" 3>&- &
	local holder=$!
	sleep 0.3
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org -m C \
		>out.C 2>log.C) 3>&- &
	local other=$!
	say 'STAT\r\nQUIT\r\n' -m B
	wait "$other"
	kill "$holder"
	expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n'
	same "$T/out" "$T/out.C"
	grep -qE "file=$T/B text=\"locked for 30 seconds by pid [0-9]+\"" "$T/log"
	grep -qE "file=$T/C.lock text=\"there for 30 seconds, made by uid [0-9]+\"" "$T/log.C"
	[ -e "$T/C.lock" ]
	[ ! -e "$T/B.lock" ]
}
