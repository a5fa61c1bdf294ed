#!/usr/bin/env bats
# What others do to a maildrop between two calls of a session: it is stopped
# there, however long that takes, by strace(1).
load helper

# A process that is stopped ends by no other signal.
teardown() {
	[ -z "${PID:-}" ] || kill -KILL "$PID" 2>/dev/null || :
	[ -z "${CLIENT:-}" ] || wait "$CLIENT" 2>/dev/null || :
}

# message DIR/NAME [TEXT]
message() {
	maildir M
	# shellcheck disable=SC2059
	printf "${2:-Subject: x\n\nx\n}" >"$T/M/$1"
}

# stop INJECT PATH SCRIPT [ARG...]: a session that stops behind the call of
# strace's INJECT on a path.
stop() {
	local inject=$1 path=$2 script=$3
	shift 3
	need strace
	give
	rm -f "$T/trace"
	# shellcheck disable=SC2059
	(cd "$T" && printf "$script" | "${AS[@]}" bin/dialogue strace -f -o trace -P "$T/$path" \
		-e inject="$inject" "$POP3" -P -h pop.example.org "$@" >out 2>log) 3>&- &
	CLIENT=$!
	stopped 1
}

halted() {
	[ "$(grep -c 'stopped by SIGSTOP' "$T/trace")" -ge "$1" ]
}

# stopped N: so often, by now.
stopped() {
	await halted "$1"
	PID=$(sed -n 's/^\([0-9]*\) .*stopped by SIGSTOP.*/\1/p' "$T/trace" | head -n 1)
}

go_on() {
	kill -CONT "$PID"
	finish
}

# ---- Maildir ----

@test "a message that moves from new to cur between their listings is one message" {
	message new/1.a
	message new/2.b
	stop getdents64:signal=STOP:when=2 M/new 'STAT\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n' -m M
	mv "$T/M/new/1.a" "$T/M/cur/1.a:2,S"
	go_on
	expect "$HELLO"'+OK 2 34\r\n+OK 17 octets\r\nSubject: x\r\n\r\nx\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ "$(ls "$T/M/new")$(ls "$T/M/cur")" = 2.b:2, ]
}

@test "of two files with one base name the one that goes while they are listed is no message" {
	local gone
	for gone in new/1.a cur/1.a:2,S; do
		rm -rf "$T/M"
		message new/1.a 'one\n'
		message cur/1.a:2,S 'three\n'
		stop getdents64:signal=STOP:when=2 M/cur 'UIDL 1\r\nRETR 1\r\nRETR 2\r\nDELE 1\r\nQUIT\r\n' -m M
		cp "$T/M/$gone" "$T/was"
		rm "$T/M/$gone"
		cat "$T"/M/new/* "$T"/M/cur/* >"$T/stays" 2>/dev/null || :
		go_on
		expect "$HELLO+OK 1 1.a\r\n+OK $(($(stat -c %s "$T/stays") + 1)) octets\r\n$(cat "$T/stays")\r\n.\r\n-ERR no such message\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n"
		[ -z "$(ls "$T/M/new")$(ls "$T/M/cur")" ]
	done
}

@test "a name without a time whose file goes, or is none any more, before it is looked at is no message" {
	local name at left=()
	message cur/1.a:2,
	message cur/x:2,
	message cur/y:2,
	message cur/z:2,
	# How many calls are about the directory depends on the libc.
	need strace
	give
	(cd "$T" && "${AS[@]}" strace -o trace -P "$T/M/cur" -e trace=newfstatat "$POP3" -P -m M </dev/null >/dev/null 2>&1)
	rm "$T/M/pop3-state"
	at=$(grep -n '"[xyz]:2,"' "$T/trace" | head -n 1 | cut -d: -f1)
	stop "newfstatat:signal=STOP:when=$at" M/cur 'UIDL\r\nQUIT\r\n' -m M
	for name in x y z; do
		grep -q "newfstatat([0-9]*, \"$name:2,\"" "$T/trace" || left+=("$name")
	done
	[ ${#left[@]} = 2 ]
	rm "$T/M/cur/${left[0]}:2," "$T/M/cur/${left[1]}:2,"
	mkdir "$T/M/cur/${left[1]}:2,"
	name=$(find "$T/M/cur" -type f -name '[xyz]:2,' -printf %f)
	go_on
	expect "$HELLO+OK unique-ids follow\r\n1 1.a\r\n2 ${name%:*}\r\n.\r\n+OK 0 deleted\r\n"
}

@test "a message that a reader renames before it is measured is followed" {
	message cur/1.a:2, 'Subject: one\n\n1\n'
	message cur/2.b:2,
	stop getdents64:signal=STOP:when=2 M/cur 'STAT\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n' -m M
	mv "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,RS"
	go_on
	expect "$HELLO"'+OK 2 36\r\n+OK 19 octets\r\nSubject: one\r\n\r\n1\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ "$(ls "$T/M/cur")" = 2.b:2, ]
}

@test "a message that is two files, cut short or a symlink before it is measured is not served then" {
	local kind
	for kind in TEMP:several TEMP:shorter PERM:symlink; do
		rm -rf "$T/M"
		message cur/1.a:2, 'Subject: one\n\n1\n'
		message cur/2.b:2,
		case $kind in
		*shorter) stop newfstatat,fstat:signal=STOP:when=1 M/cur/1.a:2, 'STAT\r\nRETR 1\r\nQUIT\r\n' -m M ;;
		*) stop getdents64:signal=STOP:when=2 M/cur 'STAT\r\nRETR 1\r\nQUIT\r\n' -m M ;;
		esac
		case $kind in
		*several)
			mv "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,S"
			cp "$T/M/cur/1.a:2,S" "$T/M/cur/1.a:2,RS"
			;;
		*shorter) printf 'Subject' >"$T/M/cur/1.a:2," ;;
		*symlink)
			printf 'a secret\n' >"$T/M/tmp/secret"
			ln -sf ../tmp/secret "$T/M/cur/1.a:2,"
			;;
		esac
		go_on
		echo "$kind" >&2
		has "-ERR [SYS/${kind%:*}]" "$T/out"
		lacks '+OK 2' "$T/out"
		lacks 'a secret' "$T/out"
		# The next one takes it as it is now.
		say 'STAT\r\nQUIT\r\n' -m M
		case $kind in
		*several) has '+OK 3 ' "$T/out" ;;
		*shorter) has '+OK 2 26' "$T/out" ;;
		*symlink) has '+OK 1 17' "$T/out" ;;
		esac
	done
}

@test "a message that is cut short while it is sent ends the session, without UPDATE" {
	message cur/1.a:2,
	message cur/2.b:2,
	seq -f 'line %.0f' 100000 >>"$T/M/cur/2.b:2,"
	say 'QUIT\r\n' -m M
	stop pread64:signal=STOP:when=1 M/cur/2.b:2, 'DELE 1\r\nRETR 2\r\nQUIT\r\n' -m M
	truncate -s 100000 "$T/M/cur/2.b:2,"
	go_on
	logged "read: $EIO"
	lacks '+OK 1 deleted' "$T/out"
	[ "$(tail -c 5 "$T/out" | od -An -c | tr -d ' \n')" != '\r\n.\r\n' ]
	[ -e "$T/M/cur/1.a:2," ]
}

@test "where a file system has no rename that keeps what is there, a move to cur keeps it as well" {
	message new/1.a first
	message new/2.b
	stop renameat2:error=EINVAL:signal=STOP:when=1+ M/new 'QUIT\r\n' -m M
	message cur/1.a:2, second
	kill -CONT "$PID"
	stopped 2
	go_on
	expect "$HELLO"'+OK 0 deleted\r\n'
	[ "$(cat "$T/M/new/1.a")" = first ]
	[ "$(cat "$T/M/cur/1.a:2,")" = second ]
	[ -e "$T/M/cur/2.b:2," ]
	[ ! -e "$T/M/new/2.b" ]
}

# ---- mbox ----

D='Mon Jan  1 00:00:00 2024'

three() {
	# shellcheck disable=SC2059
	printf "From a $D\nSubject: 1\n\none\n\nFrom b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n" >"$T/B"
}

# linked N: so often a dotlock was tried, by now.
linked() {
	[ "$(grep -c ' link(.*B.lock' "$T/trace")" -ge "$1" ]
}

# waits_for TEXT: the session, going on, leaves the dotlock that says TEXT alone
# until it is removed; then it removes the first message.
waits_for() {
	local tries
	tries=$(grep -c ' link(.*B.lock' "$T/trace")
	kill -CONT "$PID"
	await linked $((tries + 2))
	[ "$(cat "$T/B.lock")" = "$1" ]
	has '+OK pop' "$T/out"
	lacks '+OK 3' "$T/out"
	rm "$T/B.lock"
	finish
	expect "$HELLO"'+OK 3 59\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ "$(grep -c '^Subject' "$T/B")" = 2 ]
	lacks 'abandoned' "$T/log"
	[ ! -e "$T/B.lock" ]
}

@test "a stale dotlock that changes hands while it is judged is not taken from its new holder" {
	local inject
	# Behind each call that looks at it, and behind its removal.
	for inject in link '?lstat,newfstatat' unlink; do
		three
		: >"$T/B.lock"
		touch -d '11 minutes ago' "$T/B.lock"
		give
		stop "$inject:signal=STOP:when=1" B.lock 'STAT\r\nDELE 1\r\nQUIT\r\n' -m B
		rm -f "$T/B.lock"
		echo another >"$T/B.lock"
		echo "$inject" >&2
		waits_for another
		rm -f "$T"/.B.*
	done
}

@test "a dotlock that goes, or becomes something else, while it is judged is no error" {
	three
	: >"$T/B.lock"
	stop link:signal=STOP:when=1 B.lock 'STAT\r\nQUIT\r\n' -m B
	rm "$T/B.lock"
	go_on
	expect "$HELLO"'+OK 3 59\r\n+OK 0 deleted\r\n'
	rm -f "$T"/.B.*
	: >"$T/B.lock"
	touch -d '11 minutes ago' "$T/B.lock"
	stop link:signal=STOP:when=1 B.lock 'STAT\r\nQUIT\r\n' -m B
	rm "$T/B.lock"
	mkdir "$T/B.lock"
	touch -d '11 minutes ago' "$T/B.lock"
	kill -CONT "$PID"
	await linked 3
	rmdir "$T/B.lock"
	finish
	expect "$HELLO"'+OK 3 59\r\n+OK 0 deleted\r\n'
}

@test "a file that is no mbox any more when it is scanned is left as it is" {
	three
	stop pread64:signal=STOP:when=1 B 'STAT\r\nDELE 1\r\nQUIT\r\n' -m B
	seq 100 >"$T/B"
	go_on
	expect "$HELLO"'-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged 'not an mbox: no From_ line'
	[ "$(cat "$T/B")" = "$(seq 100)" ]
	[ ! -e "$T/B.lock" ]
}

@test "an mbox in whose place the file of another, or a symlink, stands at QUIT is not touched" {
	local kind
	for kind in file symlink; do
		three
		rm -f "$T"/.B.*
		give
		converse -P -m B
		tell 'DELE 1\r\n'
		cp "$T/B" "$T/other"
		chmod 666 "$T/other"
		case $kind in
		file) [ "$(id -u)" = 0 ] || continue; rm "$T/B"; cp "$T/other" "$T/B"; chmod 666 "$T/B" ;;
		symlink) ln -sf other "$T/B" ;;
		esac
		tell 'RETR 2\r\nRETR 2\r\nQUIT\r\n'
		hang_up
		echo $kind >&2
		[ "$(grep -c '^-ERR \[SYS/' "$T/out")" = 3 ]
		has 'nothing removed' "$T/out"
		[ "$(grep -c '^Subject' "$T/B")" = 3 ]
		[ ! -e "$T/B.lock" ]
	done
}
