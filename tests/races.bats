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

# stopped N: so often, by now.
stopped() {
	# shellcheck disable=SC2016
	await eval '[ "$(grep -c "stopped by SIGSTOP" "$T/trace")" -ge '"$1" ]
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
	local name left=()
	message cur/1.a:2,
	message cur/x:2,
	message cur/y:2,
	message cur/z:2,
	# The first two are about the directory.
	stop newfstatat:signal=STOP:when=3 M/cur 'UIDL\r\nQUIT\r\n' -m M
	for name in x y z; do
		grep -q "newfstatat([0-9]*, \"$name:2,\"" "$T/trace" || left+=("$name")
	done
	[ ${#left[@]} = 2 ]
	rm "$T/M/cur/${left[0]}:2," "$T/M/cur/${left[1]}:2,"
	mkdir "$T/M/cur/${left[1]}:2,"
	name=$(cd "$T/M/cur" && ls -d [xyz]:2, | grep -v "^${left[1]}")
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
	logged 'read: Input/output error'
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
