#!/usr/bin/env bats
# Accounts from a checkpassword program (-c), and -P as what such a program runs.
load helper

REFUSED='-ERR [AUTH] wrong name or password\r\n'
TEMP='-ERR [SYS/TEMP] logins are not possible now\r\n'
WELCOME='+OK welcome\r\n'
BYE='+OK bye\r\n'
EMPTY='+OK 0 deleted\r\n'
USER_PASS='USER alice\r\nPASS secret\r\n'
ASKED='+OK now the password\r\n'

# alice [IDS]: her account, the program, and her Maildir below her home.
alice() {
	need perl
	cp "$ROOT/tests/tools/checkpassword" "$T/bin/"
	CHECK=$T/bin/checkpassword
	printf 'alice:secret:%s:%s/home\napop:+secret:::%s/home\n' "${1:-:}" "$T" "$T" >"$T/accounts"
	maildir home/Maildir
	printf 'A: b\n\nx\n' >"$T/home/Maildir/cur/1.h:2,"
}

# temporary TEXT COMMAND: [SYS/TEMP], and the log says why.
temporary() {
	login "${USER_PASS}QUIT\r\n" -c "$2"
	expect "$HELLO$ASKED$TEMP$BYE"
	logged "event=error addr=local user=alice $1"
	logged 'event=refused addr=local user=alice reason=temporary'
}

@test "a checkpassword program lets in, and gives the home" {
	alice
	login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK $T/accounts"
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY"
	logged "event=login addr=local user=alice maildrop=$T/home/Maildir"
}

@test "a checkpassword program that exits 1 refuses, for any name and mechanism" {
	alice
	give
	try "$HELLO$ASKED$REFUSED$BYE" 'USER alice\r\nPASS wrong\r\nQUIT\r\n' -c "$CHECK $T/accounts"
	try "$HELLO$ASKED$REFUSED$BYE" 'USER who\r\nPASS secret\r\nQUIT\r\n' -c "$CHECK $T/accounts"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' alice no)\r\nQUIT\r\n" -c "$CHECK $T/accounts"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' alice secret)\r\nQUIT\r\n" -c "$CHECK -m exit=1 $T/accounts"
	# More than 512 octets never reach it: this one lets everybody in.
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' alice "$(printf '%0600d' 0)")\r\nQUIT\r\n" -c "$CHECK -m deaf $T/accounts"
	# Nor do names that are nobody's.
	try "$HELLO$ASKED$REFUSED$BYE" 'USER ../alice\r\nPASS secret\r\nQUIT\r\n' -c "$CHECK -m deaf $T/accounts"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' 'al\nice' secret)\r\nQUIT\r\n" -c "$CHECK -m deaf $T/accounts"
	tried
	[ "$(grep -c 'event=refused.* reason=credentials' "$T/log")" = 7 ]
	lacks event=error "$T/log"
}

@test "any other end of the program is [SYS/TEMP], and the log says which" {
	alice
	temporary "file=$CHECK text=\"exit status 111\"" "$CHECK -m exit=111 $T/accounts"
	temporary "file=$CHECK text=\"exit status 2\"" "$CHECK -m exit=2 $T/accounts"
	temporary "file=$CHECK text=\"exit status 100\"" "$CHECK -m exit=100 $T/accounts"
	temporary "file=$CHECK text=\"ended by signal 9\"" "$CHECK -m signal=9 $T/accounts"
	temporary "file=$CHECK text=\"ended by signal 15\"" "$CHECK -m signal=15 $T/accounts"
	temporary "file=$T/none text=\"exit status 71\"" "$T/none $T/accounts"
	temporary "file=$T/accounts text=\"exit status 71\"" "$T/accounts"
}

@test "a program that accepts without running what is to follow is [SYS/TEMP]" {
	alice
	temporary "file=$CHECK text=\"accepted, but did not run what is to follow\"" "$CHECK -m alone $T/accounts"
	temporary 'file=true text="accepted, but did not run what is to follow"' true
}

@test "after [SYS/TEMP] and [AUTH] another login is possible" {
	alice
	login "USER alice\r\nPASS wrong\r\n${USER_PASS}QUIT\r\n" -c "$CHECK $T/accounts"
	expect "$HELLO$ASKED$REFUSED$ASKED$WELCOME$EMPTY"
	printf '#!/bin/sh\n[ -e "%s/tried" ] || { : >"%s/tried"; exit 111; }\nexec "$@"\n' "$T" "$T" >"$T/bin/later"
	chmod 755 "$T/bin/later"
	login "$USER_PASS${USER_PASS}QUIT\r\n" -c "$T/bin/later $CHECK $T/accounts"
	expect "$HELLO$ASKED$TEMP$ASKED$WELCOME$EMPTY"
}

@test "a program that never reads what it is given may accept nevertheless" {
	alice
	login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK -m deaf $T/accounts"
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "descriptor 3 has name, secret and timestamp, each with a NUL behind it, and nothing else" {
	alice
	login "${USER_PASS}QUIT\r\n" -c "$CHECK -n $T/given $T/accounts"
	expect "$HELLO$ASKED$WELCOME$EMPTY"
	[ "$(tr '\0' '|' <"$T/given" | sed 's/<[0-9a-f]*\.[0-9a-f]*@pop\.example\.org>/<STAMP>/')" = 'alice|secret|<STAMP>|' ]
	rm "$T/given"
	sed -i "s/:secret:/: s $(printf '\303\274') :/" "$T/accounts"
	login "AUTH PLAIN $(plain alice alice ' s \303\274 ')\r\nQUIT\r\n" -c "$CHECK -n $T/given $T/accounts"
	[ "$(tr '\0' '|' <"$T/given" | sed 's/<.*>/<STAMP>/')" = $'alice| s \303\274 |<STAMP>|' ]
}

@test "512 octets reach the program, and 513 do not" {
	alice
	local fill
	# The name with its NUL are 6 octets, the timestamp with its 44.
	fill=$(printf '%0461d' 0)
	give
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' alice "$fill")\r\nQUIT\r\n" -c "$CHECK -n $T/most $T/accounts"
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' alice "0$fill")\r\nQUIT\r\n" -c "$CHECK -n $T/over $T/accounts"
	tried
	[ "$(stat -c %s "$T/most")" = 512 ]
	[ ! -e "$T/over" ]
}

@test "a secret stands in no argument and no environment, and the client is out of the program's reach" {
	alice
	local via
	sed -i 's/:secret:/:Xyzzy9:/' "$T/accounts"
	for via in pipe pair tcp; do
		VIA=$via login 'USER alice\r\nPASS Xyzzy9\r\nQUIT\r\n' -c "$CHECK -n $T/given $T/accounts"
		expect "$HELLO$ASKED$WELCOME$EMPTY"
		grep -qa -- "-c" "$T/given.said"
		[ "$(grep -ac Xyzzy9 "$T/given.said")" = 0 ]
		sed -n 1,2p "$T/given.fds" >"$T/out"
		expect '0 /dev/null\n1 /dev/null\n'
		# 3 is closed by then, 4 is for the report, 2 for the log; no more.
		grep -q '^3 $' "$T/given.fds"
		grep -q '^4 socket:' "$T/given.fds"
		[ "$(grep -c ' .' "$T/given.fds")" = 4 ]
	done
}

@test "the command may have arguments" {
	alice
	login "${USER_PASS}QUIT\r\n" -c "  perl   $CHECK $(printf '\t')$T/accounts "
	expect "$HELLO$ASKED$WELCOME$EMPTY"
	PATH=$T/bin:$PATH login "${USER_PASS}QUIT\r\n" -c "checkpassword $T/accounts"
	expect "$HELLO$ASKED$WELCOME$EMPTY"
}

@test "MAILDIR comes before MAIL, and MAIL before the defaults; below the home where they are relative" {
	alice
	maildir home/A
	maildir home/B
	printf 'x\n' | tee "$T/home/A/new/1.a" >"$T/home/A/new/2.a"
	printf 'x\n' | tee "$T/home/B/new/1.b" "$T/home/B/new/2.b" >"$T/home/B/new/3.b"
	# served COUNT ARGUMENT...: so many messages with such variables.
	served() {
		local count=$1
		shift
		login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK $1 $T/accounts" "${@:2}"
		expect "$HELLO$ASKED$WELCOME+OK $count\r\n$EMPTY"
	}
	served '2 6' "-v MAILDIR=$T/home/A"
	served '2 6' '-v MAILDIR=A'
	served '2 6' '-v MAILDIR=./A'
	served '3 9' '-v MAIL=B'
	served '3 9' "-v MAIL=$T/home/B"
	served '2 6' '-v MAILDIR=A -v MAIL=B'
	served '3 9' '-v MAILDIR=none -v MAIL=B'
	served '1 11' '-v MAILDIR=none -v MAIL=none'
	served '1 11' '-v MAILDIR='
	# What -m says comes before both.
	served '3 9' '-v MAILDIR=A' -m %h/B
	# They are paths and no templates.
	maildir 'home/%u'
	served '0 0' '-v MAILDIR=%u'
}

@test "the maildrop of the server's own environment is not the account's" {
	alice
	maildir mine
	printf 'x\n' >"$T/mine/new/1.a"
	MAILDIR=$T/mine MAIL=$T/mine login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK $T/accounts"
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "the name is what the program makes of it, and %%h its home" {
	alice
	maildir home/ALICE
	printf 'x\n' >"$T/home/ALICE/new/1.a"
	login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK -v USER=ALICE $T/accounts" -m %h/%u
	expect "$HELLO$ASKED$WELCOME+OK 1 3\r\n$EMPTY"
	logged 'event=login addr=local user=ALICE'
	# Not one that leads out of a directory.
	login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$CHECK -v USER=../home/ALICE $T/accounts" -m %h/Maildir/%u
	logged 'event=login addr=local user=alice'
	expect "$HELLO$ASKED$WELCOME+OK 0 0\r\n$EMPTY"
}

@test "APOP gives the program the digest and the timestamp" {
	alice
	local digest
	give
	(cd "$T" && mkfifo in && exec "${AS[@]}" bin/dialogue "$POP3" -A -h pop.example.org -c "$CHECK $T/accounts" <in >out 2>log) 3>&- &
	CLIENT=$!
	await test -p "$T/in"
	exec 7>"$T/in"
	await grep -q '>' "$T/out"
	digest=$({
		grep -o '<.*>' "$T/out" | tr -d '\n'
		printf secret
	} | md5sum | cut -c 1-32)
	printf 'APOP apop %s\r\nSTAT\r\nQUIT\r\n' "$digest" >&7
	hang_up
	sed -i 1d "$T/out"
	expect "$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "nothing that is pipelined behind a login by a program is lost, over pipe, socketpair and TCP" {
	alice
	local via dial step
	converse -c "$CHECK $T/accounts"
	for step in 'USER alice' 'PASS secret' STAT 'RETR 1' QUIT; do
		tell "$step\r\n"
	done
	hang_up
	cp "$T/out" "$T/in-step"
	for via in pipe pair tcp; do
		for dial in '' -b; do
			VIA=$via DIAL=$dial login "${USER_PASS}STAT\r\nRETR 1\r\nQUIT\r\n" -c "$CHECK $T/accounts"
			same "$T/in-step" "$T/out"
		done
	done
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n+OK 11 octets\r\nA: b\r\n\r\nx\r\n.\r\n$EMPTY"
}

@test "whose account it is the kernel says, whatever the report claims" {
	alice
	# The ids that it would like to have, and only what it may say.
	printf '#!/bin/sh\nprintf "12345 12345\\0/\\0alice\\0\\0\\0" >&4\n' >"$T/bin/liar"
	chmod 755 "$T/bin/liar"
	temporary "file=$T/bin/liar text=\"accepted, but did not run what is to follow\"" "$T/bin/liar"
	printf '#!/bin/sh\nprintf "%%s\\0root\\0\\0\\0" "%s" >&4\n' "$T/home" >"$T/bin/liar"
	login "${USER_PASS}STAT\r\nQUIT\r\n" -c "$T/bin/liar"
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY"
	logged 'event=login addr=local user=root'
}

@test "a report that is not one is [SYS/TEMP]" {
	alice
	local report
	for report in '' x '1\0' '/\0alice\0\0' '/\0alice\0\0\0\0' '/\0alice\0\0x'; do
		printf '#!/bin/sh\nprintf "%s" >&4\n' "$(printf '%s' "$report" | sed 's/\\/\\\\/g')" >"$T/bin/liar"
		chmod 755 "$T/bin/liar"
		temporary "file=$T/bin/liar text=\"accepted, but did not run what is to follow\"" "$T/bin/liar"
	done
}

@test "a report that has no room for a path, and a command of too many words, are [SYS/TEMP]" {
	alice
	printf '#!/bin/sh\nHOME=/%s exec "$@"\n' "$(printf '%04096d' 0)" >"$T/bin/long"
	chmod 755 "$T/bin/long"
	temporary "file=$T/bin/long text=\"exit status 65\"" "$T/bin/long"
	temporary 'file=-c text="cannot be run"' "true $(seq -s ' ' 40)"
}

@test "what a program runs tells nobody who it is, unless it was asked by a login" {
	status=0
	"$POP3" --report-account </dev/null >"$T/out" 2>"$T/log" 4>"$T/four" || status=$?
	[ "$status" = 64 ]
	[ ! -s "$T/out" ]
	[ ! -s "$T/four" ]
	"$POP3" --report-account </dev/null >"$T/out" 2>"$T/log" 4>&- || status=$?
	[ "$status" = 64 ]
}

# As root the program changes the user.
root_check() {
	local script=$1
	shift
	chmod 755 "$T/home"
	chown -R 12345:12346 "$T/home"
	status=0
	# shellcheck disable=SC2059
	printf "$script" | (cd "$T" && bin/dialogue "$POP3" -h pop.example.org "$@") >"$T/out" 2>"$T/log" || status=$?
}

@test "started by root, the session is that of the user the program became, without groups" {
	need_root
	alice 12345:12346
	chmod 755 "$T/home"
	chown -R 12345:12346 "$T/home"
	(cd "$T" && printf "${USER_PASS}DELE 1\r\nSTAT\r\n" | bin/dialogue -w -i pid "$POP3" -h pop.example.org \
		-c "$CHECK $T/accounts" >out 2>log) 3>&- &
	CLIENT=$!
	await has '+OK 0 0' "$T/out"
	PID=$(cat "$T/pid")
	sed -n 's/^Uid:[[:blank:]]*//p;s/^Gid:[[:blank:]]*//p;s/^Groups:[[:blank:]]*//p' "/proc/$PID/status" | tr '\t' ' ' | sed 's/ *$//' >"$T/ids"
	[ "$(cat "$T/ids")" = $'12345 12345 12345 12345\n12346 12346 12346 12346' ]
	[ -z "$(pgrep -P "$PID")" ]
	kill "$PID"
	wait "$CLIENT" || :
	[ "$(stat -c %u:%g "$T/home/Maildir/pop3-state")" = 12345:12346 ]
}

@test "a program that stays or becomes root is refused as a wrong password is" {
	need_root
	alice 0:0
	root_check "${USER_PASS}QUIT\r\n" -c "$CHECK $T/accounts"
	expect "$HELLO$ASKED$REFUSED$BYE"
	logged "event=warning addr=local user=alice file=$CHECK text=\"refused: uid 0 is never served\""
	logged 'reason=credentials'
}

@test "nothing of a program is left running when the session is over" {
	alice
	local mode
	for mode in exit=111 alone deaf; do
		login "${USER_PASS}QUIT\r\n" -c "$CHECK -m $mode $T/accounts"
		[ -z "$(pgrep -f "$CHECK")" ]
	done
}

@test "-P is the second half of qmail-popup: what its checkpassword runs" {
	alice
	give
	popup TCPREMOTEIP=192.0.2.7
	expect "$HELLO"'+OK 1 11\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	logged 'event=login addr=192.0.2.7 user=alice'
	logged "maildrop=$T/home/Maildir"
	[ -z "$(ls "$T/home/Maildir/cur")" ]
}

# popup VARIABLE...: what qmail-popup does after its client's login: it gives the
# program on descriptor 3 what it has heard, and the program runs the next.
popup() {
	cat >"$T/bin/popup" <<'END'
printf 'alice\0secret\0<1@x>\0' >given
exec 3<given
exec "$@"
END
	give
	(cd "$T" && printf 'STAT\r\nDELE 1\r\nQUIT\r\n' | env "$@" "${AS[@]}" bin/dialogue \
		sh bin/popup "$CHECK" "$T/accounts" "$POP3" -P -h pop.example.org >out 2>log)
}
