#!/usr/bin/env bats
# The autologout: RFC 1939 section 3. When SIGALRM comes the connection drops
# without a reply and UPDATE is not entered.
load helper

one() {
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
}

@test "SIGALRM while a session waits drops it without a reply, nothing is removed" {
	one
	begin 'DELE 1\r\n' -w -- -P -m M
	await has 'message 1 deleted' "$T/out"
	kill -ALRM "$PID"
	finish
	[ "$status" = 0 ]
	expect "$HELLO"'+OK message 1 deleted\r\n'
	[ -e "$T/M/cur/1.h:2," ]
	gone "$PID"
	logged 'reason=autologout retrieved=0 deleted=0 left=1'
}

@test "SIGALRM in the middle of a RETR to a stalled reader drops the session" {
	local via
	for via in pipe pair tcp; do
		rm -rf "$T/M"
		maildir M
		head -c 20000000 /dev/zero | tr '\0' 'x' >"$T/M/cur/1.h:2,"
		VIA=$via begin 'DELE 1\r\nRSET\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n' -n -- -P -m M
		await grep -q login "$T/log"
		sleep 0.2
		kill -ALRM "$PID"
		finish
		[ "$status" = 0 ]
		[ -e "$T/M/cur/1.h:2," ]
		gone "$PID"
		logged 'reason=autologout'
	done
}

@test "SIGALRM that came during work is obeyed at QUIT: no UPDATE" {
	need strace
	one
	give
	# The tracer sends the signal at the first fstat of the message's file.
	printf 'DELE 1\r\nQUIT\r\n' | (cd "$T" && "${AS[@]}" bin/dialogue strace -o /dev/null \
		-e trace=sendto -e inject=sendto:signal=ALRM:when=2 \
		"$POP3" -P -h pop.example.org -m M >out 2>log)
	[ -e "$T/M/cur/1.h:2," ]
	logged 'reason=autologout'
}

# Some libraries make alarm(2) of setitimer(2).
alarms_traced() {
	sed -i 's/setitimer([^}]*}, it_value={tv_sec=\([0-9]*\),.*/alarm(\1) /' "$T/trace"
}

@test "single octets do not prolong the time of a command, nor do those of a line that is too long" {
	need strace
	local line
	one
	printf 'alice:{PLAIN}secret:%s::::\n' "$([ "$(id -u)" != 0 ] && echo : || echo "$NOBODY:$NOBODY")" >"$T/users"
	give
	for line in 'NOOP%200s' 'NOOP%900s'; do
		# shellcheck disable=SC2059
		printf "$line\r\n" '' | (cd "$T" && "${AS[@]}" bin/dialogue -b \
			strace -o trace -e trace=alarm,setitimer,ppoll "$POP3" -P -t 700 -m M >out 2>log)
		alarms_traced
		[ "$(grep -c '^ppoll' "$T/trace")" -ge 3 ]
		grep -q '^alarm(700)' "$T/trace"
		# For the command, and perhaps for the one that does not come.
		[ "$(grep -c '^alarm(700)' "$T/trace")" -le 2 ]
		# shellcheck disable=SC2059
		printf "$line\r\n" '' | (cd "$T" && "${AS[@]}" bin/dialogue -b \
			strace -f -o trace -e trace=alarm,setitimer,ppoll "$POP3" -t 700 -a users >out 2>log)
		alarms_traced
		[ "$(grep -c ' ppoll' "$T/trace")" -ge 3 ]
		# Nobody may look into the front, where setitimer(2) finds it.
		no grep -q ' setitimer(' "$T/trace" || continue
		grep -q ' alarm(700' "$T/trace"
		# That of the monitor is longer.
		[ "$(grep -c ' alarm(700' "$T/trace")" -le 2 ]
	done
}

@test "SIGALRM to the monitor in AUTHORIZATION ends it and the front" {
	printf 'alice:{PLAIN}secret:::::\n' >"$T/users"
	[ "$(id -u)" != 0 ] || printf 'alice:{PLAIN}secret:%d:%d::%s:\n' "$NOBODY" "$NOBODY" "$T" >"$T/users"
	begin 'USER alice\r\n' -w -- -a users
	await has 'now the password' "$T/out"
	local front
	front=$(pgrep -P "$PID")
	[ -n "$front" ]
	kill -ALRM "$PID"
	finish
	expect "$HELLO"'+OK now the password\r\n'
	gone "$PID"
	await gone "$front"
	logged 'reason=autologout'
}

@test "SIGALRM to the front in AUTHORIZATION ends both" {
	printf 'alice:{PLAIN}secret:::::\n' >"$T/users"
	begin 'USER alice\r\n' -w -- -a users
	await has 'now the password' "$T/out"
	local front
	front=$(pgrep -P "$PID")
	kill -ALRM "$front"
	finish
	expect "$HELLO"'+OK now the password\r\n'
	gone "$PID"
	gone "$front"
	logged 'reason=autologout'
}

@test "the front does not outlive a monitor that is killed" {
	printf 'alice:{PLAIN}secret:::::\n' >"$T/users"
	begin '' -w -- -a users
	await has 'ready' "$T/out"
	local front
	front=$(pgrep -P "$PID")
	kill -9 "$PID"
	await gone "$front"
}

@test "the monitor does not outlive a front that is killed" {
	printf 'alice:{PLAIN}secret:::::\n' >"$T/users"
	begin '' -w -- -a users
	await has 'ready' "$T/out"
	kill -9 "$(pgrep -P "$PID")"
	finish
	[ "$status" = 0 ]
	gone "$PID"
}

@test "the clock runs while we wait for the client and only then" {
	need strace
	one
	give
	(cd "$T" && {
		printf 'RETR 1\r\nDELE 1\r\n'
		sleep 1
		printf 'QUIT\r\n'
	} | "${AS[@]}" bin/dialogue \
		strace -o trace -e trace=alarm,setitimer,ppoll,unlinkat,sendto "$POP3" -P -t 700 -m M >out 2>log)
	alarms_traced
	grep -q '^alarm(700)' "$T/trace"
	# Off before the message is removed: the last alarm before is alarm(0).
	[ "$(sed -n '/unlinkat/q;/^alarm/p' "$T/trace" | tail -n 1 | cut -d' ' -f1)" = 'alarm(0)' ]
}

@test "an alarm that the superserver left running is switched off" {
	need perl
	one
	give
	# The alarm comes after one second; the client waits for two.
	{
		sleep 2
		printf 'QUIT\r\n'
	} | (cd "$T" && "${AS[@]}" bin/dialogue -w perl -e 'alarm 1; exec @ARGV' \
		"$POP3" -P -h pop.example.org -m M >out 2>log)
	expect "$HELLO"'+OK 0 deleted\r\n'
}

@test "dispositions that a superserver hands on do no harm" {
	need perl
	one
	give
	printf 'DELE 1\r\nQUIT\r\n' | (cd "$T" && "${AS[@]}" bin/dialogue perl -e \
		'$SIG{$_} = "IGNORE" for qw(ALRM PIPE CHLD XFSZ); exec @ARGV' \
		"$POP3" -P -h pop.example.org -m M >out 2>log)
	expect "$HELLO"'+OK message 1 deleted\r\n+OK 1 deleted\r\n'
}
