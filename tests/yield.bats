#!/usr/bin/env bats
# Letting go of the session lock: a client that says nothing for the time of -g
# keeps nobody out, and loses nothing but its session.
load helper

D='Mon Jan  1 00:00:00 2024'
IN_USE='-ERR [IN-USE] another session has the maildrop\r\n'

teardown() {
	exec 7>&- 8>&- || :
	[ -z "${PID:-}" ] || kill "$PID" 2>/dev/null || :
	[ -z "${SERVERS[*]:-}" ] || kill "${SERVERS[@]}" 2>/dev/null || :
	[ -z "${SERVERS[*]:-}" ] || kill "$CLIENT" 2>/dev/null || :
	[ -z "${CLIENT:-}" ] || wait "$CLIENT" 2>/dev/null || :
	[ -z "${OTHER:-}" ] || wait "$OTHER" 2>/dev/null || :
}

# boxes: the mbox B and the Maildir M, of three messages each.
boxes() {
	local word
	rm -rf "$T/B" "$T/.B.pop3-state" "$T/M"
	maildir M
	for word in one two three; do
		printf "From %s $D\nSubject: %s\n\n%s\n\n" $word $word $word >>"$T/B"
	done
	printf 'Subject: one\n\none\n' >"$T/M/cur/1.a:2,S"
	printf 'Subject: two\n\ntwo\n' >"$T/M/new/2.b"
	printf 'Subject: three\n\nthree\n' >"$T/M/cur/3.c:2,"
	give
}

# comes BOX SCRIPT: whether one more session is let in; $T/new is its replies.
comes() {
	# shellcheck disable=SC2059
	printf "$2" | (cd "$T" && "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org \
		-m "$1" >new 2>new.log 3>&- 7>&-)
	no has '[IN-USE]' "$T/new"
}

# newcomer BOX SCRIPT: one that is let in as soon as the holder lets go.
newcomer() {
	await comes "$@"
	has "$(printf "$HELLO" | tr -d '\r')" <(tr -d '\r' <"$T/new")
}

# turned_away BOX: another session is not let in.
turned_away() {
	no comes "$1" 'STAT\r\n' || return 1
	# shellcheck disable=SC2059
	printf -- "$IN_USE" | cmp - "$T/new"
	has 'event=refused addr=local' "$T/new.log"
	has 'reason=in-use' "$T/new.log"
}

# left BOX: the Subjects of what is there, sorted.
left() {
	case $1 in
	B) sed -n 's/^Subject: //p' "$T/B" ;;
	M) sed -n 's/^Subject: //p' "$T"/M/new/* "$T"/M/cur/* 2>/dev/null ;;
	esac | LC_ALL=C sort | tr '\n' ' '
}

@test "a session that is not silent for as long as -g says keeps others out, and so does one with -g 0" {
	local box grace
	boxes
	for box in B M; do
		for grace in '' '-g 600' '-g 0'; do
			# shellcheck disable=SC2086
			converse -P -m $box $grace
			tell 'STAT\r\n'
			turned_away $box
			[ "$grace" != '-g 0' ] || sleep 1.2
			turned_away $box
			tell 'NOOP\r\nQUIT\r\n'
			hang_up
			logged 'reason=quit'
		done
	done
}

@test "each command begins the time of -g anew" {
	local n
	boxes
	converse -P -m B -g 2
	for n in 1 2 3; do
		sleep 0.9
		tell 'NOOP\r\n'
		turned_away B
	done
	newcomer B 'STAT\r\n'
	has '+OK 3' "$T/new"
	hang_up
}

@test "a session that has let go, of a maildrop that another removed from, ends without a reply and without UPDATE" {
	local box command
	for box in B M; do
		for command in QUIT $([ $box = B ] && echo NOOP || printf '%0300d' 1); do
			boxes
			converse -P -m "$box" -g 1
			tell 'DELE 1\r\n'
			newcomer $box 'DELE 2\r\nQUIT\r\n'
			has '+OK 1 deleted' "$T/new"
			# It may be gone before it has been told all.
			(printf '%s\r\nSTAT\r\nQUIT\r\n' "$command" >&7) 2>/dev/null || :
			finish
			exec 7>&-
			expect "$HELLO"'+OK message 1 deleted\r\n'
			logged 'reason=taken-over retrieved=0 deleted=0 left=3'
			[ "$status" = 0 ]
			[ "$(left $box)" = 'one three ' ]
			say 'STAT\r\n' -m $box
			has '+OK 2 ' "$T/out"
		done
	done
}

# hold BOX: a second session, which stays; $OTHER is its dialogue, fd 8 what it
# is told.
hold() {
	rm -f "$T/hold"
	mkfifo "$T/hold"
	(cd "$T" && exec "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org -m "$1" \
		<hold >new 2>new.log 3>&- 7>&-) &
	OTHER=$!
	exec 8>"$T/hold"
	await test -s "$T/new"
	has '+OK' "$T/new" && return
	exec 8>&-
	wait "$OTHER" || :
	return 1
}

# arrives: one more message in each.
arrives() {
	printf "From four $D\nSubject: four\n\n%0500d\n\n" 4 >>"$T/B"
	printf 'Subject: four\n\nfour\n' >"$T/M/new/4.d"
	give
}

@test "a session that has let go ends also where what came since is more than what another removed" {
	boxes
	converse -P -m B -g 1
	tell 'DELE 1\r\n'
	newcomer B 'DELE 2\r\nQUIT\r\n'
	arrives
	printf 'QUIT\r\n' >&7
	finish
	expect "$HELLO"'+OK message 1 deleted\r\n'
	logged 'reason=taken-over retrieved=0 deleted=0 left=3'
	[ "$(left B)" = 'four one three ' ]
}

@test "a session that has let go ends at its next command while another has the maildrop" {
	local box came
	# With mail that came since, the state file is another one.
	for box in B M 'B came' 'M came'; do
		boxes
		came=${box#?}
		box=${box%% *}
		converse -P -m "$box" -g 1
		tell 'DELE 1\r\n'
		[ -z "$came" ] || arrives
		await hold "$box"
		printf 'QUIT\r\n' >&7
		finish
		exec 7>&-
		expect "$HELLO"'+OK message 1 deleted\r\n'
		logged 'reason=taken-over retrieved=0 deleted=0 left=3'
		printf 'STAT\r\nDELE 3\r\nQUIT\r\n' >&8
		exec 8>&-
		wait "$OTHER"
		has "+OK $((3 + ${#came} / 5)) " "$T/new"
		has '+OK 1 deleted' "$T/new"
		[ "$(left "$box" | sed 's/four //')" = 'one two ' ]
	done
}

@test "after a newcomer that removed nothing, a session that had let go has the maildrop again" {
	local box
	for box in B M; do
		boxes
		converse -P -m "$box" -g 1
		tell 'DELE 1\r\n'
		newcomer $box 'STAT\r\nRETR 2\r\nDELE 2\r\nRSET\r\n'
		has '+OK 3 ' "$T/new"
		tell 'STAT\r\nRETR 3\r\n'
		turned_away $box
		# And lets go of it again.
		newcomer $box 'STAT\r\nDELE 2\r\n'
		tell 'QUIT\r\n'
		hang_up
		logged 'reason=quit retrieved=1 deleted=1 left=2'
		has '+OK 1 deleted' "$T/out"
		has 'Subject: three' "$T/out"
		[ "$(left $box)" = 'three two ' ]
	done
}

@test "mail that comes, and is renamed, while a session has let go does not end it" {
	boxes
	converse -P -m B -g 1
	newcomer B 'STAT\r\n'
	printf "From four $D\nSubject: four\n\nfour\n\n" >>"$T/B"
	tell 'STAT\r\nRETR 3\r\nDELE 1\r\nQUIT\r\n'
	hang_up
	has '+OK 3 ' "$T/out"
	logged 'reason=quit retrieved=1 deleted=1 left=2'
	[ "$(left B)" = 'four three two ' ]
	converse -P -m M -g 1
	newcomer M 'STAT\r\n'
	printf 'Subject: four\n\nfour\n' >"$T/M/new/0.d"
	mv "$T/M/cur/1.a:2,S" "$T/M/cur/1.a:2,RS"
	tell 'STAT\r\nRETR 1\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	has '+OK 3 ' "$T/out"
	has 'Subject: one' "$T/out"
	logged 'reason=quit retrieved=1 deleted=1 left=2'
	[ "$(left M)" = 'four one three ' ]
}

@test "two files with one base name do not end a session that has let go" {
	boxes
	printf 'Subject: four\n\nfour\n' >"$T/M/new/1.a"
	touch -d @1000000000 "$T/M/new/1.a"
	converse -P -m M -g 1
	tell 'STAT\r\n'
	grep " $PID " /proc/locks
	await eval "! grep ' $PID ' /proc/locks"
	mv "$T/M/new/2.b" "$T/M/cur/2.b:2,"
	tell 'RETR 1\r\nRETR 2\r\nRETR 3\r\nRETR 4\r\n'
	hang_up
	logged 'reason=disconnect retrieved=4'
	[ "$(grep -c '^Subject: ' "$T/out")" = 4 ]
	[ "$(grep '^Subject: ' "$T/out" | sort -u | wc -l)" = 4 ]
}

@test "a client that hangs up after its session has let go is a disconnect, and removes nothing" {
	local box
	for box in B M; do
		boxes
		converse -P -m "$box" -g 1
		tell 'DELE 1\r\n'
		newcomer $box 'STAT\r\nDELE 3\r\nQUIT\r\n'
		hang_up
		expect "$HELLO"'+OK message 1 deleted\r\n'
		logged 'reason=disconnect retrieved=0 deleted=0 left=3'
		[ "$(left $box)" = 'one two ' ]
	done
}

@test "bad values of -g are usage errors" {
	local value
	for value in '' x -1 1x ' 1' 1.5 0x10 2147483648 99999999999999999999; do
		status=0
		"$POP3" -P -g "$value" >"$T/out" 2>"$T/log" </dev/null || status=$?
		[ "$status" = 64 ]
		[ ! -s "$T/out" ]
		has 'file=-g text="not a number of seconds"' "$T/log"
	done
	boxes
	for value in 0 1 2147483647; do
		say 'STAT\r\n' -m B -g "$value"
		has '+OK 3 ' "$T/out"
	done
}

# reader BOX WHAT: a client that retrieves a large message; see below.
reader() {
	need python3
	boxes
	{
		printf 'Subject: large\n\n'
		seq 400000
	} >"$T/M/cur/2.large:2,"
	{
		printf "\nFrom large $D\n"
		cat "$T/M/cur/2.large:2,"
		printf "\nFrom four $D\nSubject: four\n\nfour\n\n"
	} >>"$T/B"
	rm "$T/M/cur/3.c:2,"
	mv "$T/M/new/2.b" "$T/M/new/4.b"
	sed -i '/^From three/,/^three/d' "$T/B"
	give
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 - "$POP3" "$@") 3>&- <<'END'
import re
import subprocess
import sys
import time

program, box, what = sys.argv[1:]
command = [program, "-P", "-h", "x", "-g", "1", "-m", box]


def comes(script):
    done = subprocess.run(command, input=script, capture_output=True, check=False)
    return not done.stdout.startswith(b"-ERR [IN-USE]"), done.stdout


# On pipes, which tell of each page that is read.
holder = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
with open("M/cur/2.large:2,", "rb") as file:
    large = file.read().replace(b"\n", b"\r\n")
n = 3 if box == "B" else 2
hello = b"+OK x pop3-handler ready\r\n"
right = hello + b"+OK %d octets\r\n" % len(large) + large + b".\r\n"
holder.stdin.write(b"RETR %d\r\n" % n)
got = holder.stdout.read(len(hello)) + holder.stdout.read(1000)
if what == "reads":
    # Longer than -g, and never silent for so long.
    began, others = time.monotonic(), 0
    while time.monotonic() < began + 2.2:
        got += holder.stdout.read(4096)
        time.sleep(0.05)
        if comes(b"STAT\r\n")[0]:
            sys.exit("let in while a message was read")
        others += 1
    if len(got) > 1000000 or others < 10:
        sys.exit(f"not slow: {len(got)} octets, {others} others")
else:
    script = {"stalls": b"STAT\r\n", "loses": b"DELE 1\r\nQUIT\r\n"}[what]
    until = time.monotonic() + 20
    while not comes(script)[0]:
        if time.monotonic() > until:
            sys.exit("never let in")
        time.sleep(0.05)
try:
    holder.stdin.write(b"QUIT\r\n")
except BrokenPipeError:
    pass
got += holder.stdout.read()
log = holder.stderr.read().decode()
holder.wait()
reason = re.search(r"reason=(\S+)", log).group(1)
if what == "loses":
    if not right.startswith(got) or len(got) >= len(right):
        sys.exit("not a part of the message")
    if reason != "taken-over":
        sys.exit(log)
elif got != right + b"+OK 0 deleted\r\n" or reason != "quit":
    sys.exit("not the message: " + log)
END
}

@test "a client that takes a large message slowly keeps others out as long as it takes some of it" {
	reader B reads
	reader M reads
}

@test "a session whose client stalls in a message lets go, and sends the rest when nothing was removed" {
	reader B stalls
	reader M stalls
}

@test "a session whose client stalls in a message sends no wrong octet when another has removed one" {
	reader B loses
	[ "$(sed -n 's/^Subject: //p' "$T/B" | tr '\n' ' ')" = 'two large four ' ]
	reader M loses
	[ ! -e "$T/M/cur/1.a:2,S" ]
}

@test "sessions that let go and come back in any order remove what they marked and nothing else" {
	need python3
	mkdir "$T/holders"
	cp "$ROOT/tests/holders" "$T/bin/"
	give
	status=0
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 bin/holders \
		-s "${HOLDERS_SEED:-1}" "$POP3" "${HOLDERS_ROUNDS:-100}" holders) >"$T/said" 2>&1 3>&- || status=$?
	grep '^holders:' "$T/said" | sed 's/^/# /' >&3
	[ "$status" = 0 ] || cat "$T/said"
	[ "$status" = 0 ]
}

# ---- Two machines ----

# serve N: a network namespace of its own, with a server of $T/users on port
# 1110; ${SERVERS[N]} is a process in it.
serve() {
	unshare -n sh -c "ip link set lo up && exec tcpserver -RHl0 127.0.0.1 1110 '$POP3' \
		-h pop.example.org -g 1 -a '$T/users' -m '%h/$2'" >"$T/log.$1" 2>&1 3>&- &
	SERVERS[$1]=$!
	await nsenter -t "${SERVERS[$1]}" -n bash -c '(exec 9<>/dev/tcp/127.0.0.1/1110)'
}

# calls N SCRIPT: a client in that namespace; its replies are in $T/at.N.
calls() {
	# shellcheck disable=SC2059
	printf "USER alice\r\nPASS secret\r\n$2" | nsenter -t "${SERVERS[$1]}" -n timeout 20 \
		bash -c 'exec 9<>/dev/tcp/127.0.0.1/1110; cat >&9; cat <&9' >"$T/at.$1" 3>&-
	has '+OK' <(sed -n 3p "$T/at.$1")
}

@test "two servers that share a maildrop, each in a network of its own, keep to the same lock" {
	need_root
	need unshare nsenter ip tcpserver
	unshare -n true 2>/dev/null || skip "needs unshare -n"
	local box
	SERVERS=()
	printf 'alice:{PLAIN}secret:%s:%s::%s::\n' "$NOBODY" "$NOBODY" "$T" >"$T/users"
	for box in B M; do
		boxes
		chown root "$T/users"
		serve 1 $box
		serve 2 $box
		mkfifo "$T/in"
		nsenter -t "${SERVERS[1]}" -n bash -c \
			'exec 9<>/dev/tcp/127.0.0.1/1110; timeout 30 cat <&9 >"$2" & cat <"$1" >&9; wait' \
			- "$T/in" "$T/out" 3>&- &
		CLIENT=$!
		exec 7>"$T/in"
		printf 'USER alice\r\nPASS secret\r\nDELE 3\r\n' >&7
		await has 'message 3 deleted' "$T/out"
		no calls 2 'STAT\r\nQUIT\r\n'
		has '-ERR [IN-USE]' "$T/at.2"
		await calls 2 'STAT\r\nDELE 1\r\nQUIT\r\n'
		has '+OK 3 ' "$T/at.2"
		has '+OK 1 deleted' "$T/at.2"
		printf 'NOOP\r\nQUIT\r\n' >&7
		exec 7>&-
		finish
		[ "$(wc -l <"$T/out")" = 4 ]
		await has 'reason=taken-over' "$T/log.1"
		[ "$(left $box)" = 'three two ' ]
		kill "${SERVERS[@]}"
		wait "${SERVERS[@]}" || :
		SERVERS=()
		rm "$T/in"
	done
}
