#!/usr/bin/env bats
# What takes its time before a login: waits that run out.
load helper

# The waits run beside each other, from before the first test on.
setup_file() {
	BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR setup
	chmod 755 "$BATS_RUN_TMPDIR/file"
	cp "$ROOT/tests/tools/checkpassword" "$T/bin/"
	printf 'alice:secret:::/\n' >"$T/accounts"
	give
	(
		wait_for absent '' -p -c true
		wait_for partial 'PROXY TCP4 192.0.2.7' -p -c true
		wait_for partial2 '\r\n\r\n\0\r\nQUIT\n\41\21\0' -p -P
		wait_for hanging 'USER alice\r\nPASS secret\r\nQUIT\r\n' -c "$T/bin/checkpassword -n $T/hanging -m hang $T/accounts"
		wait
		: >"$T/over"
	) 3>&- &
}

# wait_for NAME SCRIPT [ARG...]: how a session of a client that stays goes on, in
# NAME.out, NAME.log and NAME.took (seconds).
wait_for() {
	local name=$1 script=$2
	shift 2
	(
		cd "$T"
		began=$(date +%s)
		# shellcheck disable=SC2059
		printf -- "$script" | "${AS[@]}" bin/dialogue -w "$POP3" -h pop.example.org "$@" >"$name.out" 2>"$name.log"
		echo $(($(date +%s) - began)) >"$name.took"
	) &
}

@test "a client that sends no PROXY header, or a part of one, is closed after ten seconds" {
	local kept=$BATS_FILE_TMPDIR name
	for name in absent partial partial2; do
		await test -s "$kept/$name.took" || await test -s "$kept/$name.took"
		[ "$(cat "$kept/$name.took")" -ge 10 ]
		[ "$(cat "$kept/$name.took")" -le 12 ]
		[ ! -s "$kept/$name.out" ]
	done
	has 'file=-p text="PROXY header not there"' "$kept/absent.log"
	has 'file=-p text="PROXY header not complete"' "$kept/partial.log"
	has 'file=-p text="PROXY header not complete"' "$kept/partial2.log"
}

@test "a checkpassword program that hangs is killed after 60 seconds, with what it runs, and the login is [SYS/TEMP]" {
	local kept=$BATS_FILE_TMPDIR i
	for i in {1..7}; do
		await test -s "$kept/hanging.took" && break
	done
	T=$kept
	cp "$T/hanging.out" "$T/out"
	expect "$HELLO"'+OK now the password\r\n-ERR [SYS/TEMP] logins are not possible now\r\n+OK bye\r\n'
	[ "$(cat "$kept/hanging.took")" -ge 60 ]
	[ "$(cat "$kept/hanging.took")" -le 63 ]
	has "file=$kept/bin/checkpassword text=\"killed after 60 seconds\"" "$kept/hanging.log"
	# shellcheck disable=SC2013 # the lines are single numbers
	for i in $(cat "$kept/hanging.pids"); do
		await gone "$i"
	done
}
