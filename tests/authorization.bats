#!/usr/bin/env bats
# AUTHORIZATION: front and monitor, accounts from a passwd-file.
load helper

# account NAME SECRET [HOME]: a line of the accounts file.
account() {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf '%s:%s:%s::%s::\n' "$1" "$2" "$ids" "${3:-$T}" >>"$T/users"
}

alice() {
	account alice '{PLAIN}secret'
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
}

# root_login: as `login`, but started by root.
root_login() {
	local script=$1
	shift
	give
	chown root "$T/users"
	chmod 644 "$T/users"
	status=0
	# shellcheck disable=SC2059
	# shellcheck disable=SC2086 # DIAL is words
	printf "$script" | (cd "$T" && bin/dialogue -t "${VIA:-pair}" ${DIAL:-} \
		"$POP3" -h pop.example.org "$@") >"$T/out" 2>"$T/log" || status=$?
}

# refused SECRET NAME...: each of the names with the secret gets [AUTH]. All at
# once, since each is made to wait.
refused() {
	local secret=$1 name n=0
	shift
	give
	for name; do
		(cd "$T" && printf 'USER %s\r\nPASS %s\r\n' "$name" "$secret" |
			"${AS[@]}" bin/dialogue "$POP3" -a users -m %h/M >"out.$n" 2>"log.$n") 3>&- &
		n=$((n + 1))
	done
	wait
	cat "$T"/log.* >"$T/log"
	for ((; n > 0; n--)); do
		[ "$(sed -n 3p "$T/out.$((n - 1))")" = $'-ERR [AUTH] wrong name or password\r' ]
	done
}

@test "USER and PASS open the maildrop" {
	alice
	login 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 1 11\r\n+OK 0 deleted\r\n'
	logged "event=login addr=local user=alice maildrop=$T/M"
}

@test "CAPA in AUTHORIZATION announces USER and SASL, and no IMPLEMENTATION" {
	alice
	login 'CAPA\r\nQUIT\r\n' -a users
	expect "$HELLO"'+OK capabilities follow\r\nUSER\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\n.\r\n+OK bye\r\n'
	logged 'event=end addr=local user=- reason=quit'
}

@test "QUIT in AUTHORIZATION ends without UPDATE" {
	alice
	login 'USER alice\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n+OK bye\r\n'
	[ -e "$T/M/cur/1.h:2," ]
}

@test "the whole session in one write and octet by octet gives one dialogue" {
	local via dial
	for via in pipe pair tcp; do
		for dial in '' -b; do
			rm -rf "$T/M" "$T/users"
			alice
			VIA=$via DIAL=$dial login 'USER alice\r\nPASS secret\r\nSTAT\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n' -a users -m %h/M
			expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 1 11\r\n+OK 11 octets\r\nA: b\r\n\r\nx\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
			[ -z "$(ls "$T/M/cur")" ]
		done
	done
}

@test "a password may hold spaces, at its ends as well, and eight-bit octets" {
	account bob '{PLAIN} a  b\303\274 '
	sed -i "s/\\\\303\\\\274/$(printf '\303\274')/" "$T/users"
	login 'USER bob\r\nPASS  a  b\303\274 \r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
}

@test "a wrong password is answered with [AUTH], and the right one accepted then" {
	alice
	login 'USER alice\r\nPASS secre\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
	logged 'event=refused addr=local user=alice reason=credentials'
}

@test "three failed logins end the connection after 2, 4 and 6 seconds" {
	alice
	local began=$SECONDS
	login 'USER alice\r\nPASS 1\r\nUSER who\r\nPASS 2\r\nUSER alice\r\nPASS secret \r\nUSER alice\r\nPASS secret\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n'
	[ $((SECONDS - began)) -ge 12 ]
	logged 'reason=failed-logins'
}

@test "PASS comes right after a USER" {
	alice
	login 'PASS secret\r\nUSER alice\r\nCAPA\r\nPASS secret\r\nUSER alice\r\nNOOP\r\nPASS secret\r\nUSER alice\r\nPASS\r\nUSER\r\nUSER a b\r\nQUIT\r\n' -a users -m %h/M
	grep -v '^[A-Z]' "$T/out" | grep -v '^\.' >"$T/replies"
	printf "$HELLO"'-ERR USER comes first\r\n+OK now the password\r\n+OK capabilities follow\r\n-ERR USER comes first\r\n+OK now the password\r\n-ERR not in this state\r\n-ERR USER comes first\r\n+OK now the password\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n+OK bye\r\n' >"$T/expected"
	same "$T/expected" "$T/replies"
}

@test "verbs of TRANSACTION are errors before login" {
	alice
	login 'STAT\r\nRETR 1\r\nNOOP\r\nQUIT\r\n' -a users
	expect "$HELLO"'-ERR not in this state\r\n-ERR not in this state\r\n-ERR not in this state\r\n+OK bye\r\n'
}

@test "twenty senseless commands before login end the connection" {
	alice
	login "$(printf 'x\\r\\n%.0s' {1..21})" -a users
	[ "$(grep -c '^-ERR unknown command' "$T/out")" = 20 ]
	logged 'reason=nonsense'
}

@test "more than a hundred commands before login end the connection" {
	alice
	login "$(printf 'USER alice\\r\\n%.0s' {1..102})" -a users
	[ "$(grep -c '^+OK now' "$T/out")" = 100 ]
	[ "$(tail -n 1 "$T/out")" = $'-ERR too many commands before login\r' ]
}

@test "a line of more than 4096 octets before login closes the connection" {
	alice
	login "$(printf '%300s' x)\r\nUSER alice\r\n$(printf '%5000s' x)\r\nQUIT\r\n" -a users
	expect "$HELLO"'-ERR command line too long\r\n+OK now the password\r\n'
}

@test "names that could lead out of a directory are unknown users" {
	local name
	account '' '{PLAIN}secret'
	for name in .alice a/b 'a@.b'; do
		account "$name" '{PLAIN}secret'
	done
	refused secret .alice a/b a@.b
	logged 'file=users text="line 1: not a valid name"'
}

@test "an empty secret, a locked and an empty hash let nobody in" {
	account a '{PLAIN}'
	account b ''
	account c '!$6$saltsalt$x'
	account d '*'
	account e '{CRYPT}'
	account f '{NOSUCH}x'
	refused x a b c d e f
	logged 'file=users text="line 6: unknown scheme or empty hash"'
}

@test "every scheme of crypt(3) is accepted under its usual prefixes" {
	need perl
	local hash scheme n=0
	for hash in '$1$saltsalt$' '$5$saltsalt$' '$6$saltsalt$' '$2y$04$abcdefghijklmnopqrstuu' '$y$j75$saltsalt$' ab; do
		hash=$(perl -e 'print crypt("secret", $ARGV[0])' "$hash")
		[ "${#hash}" -ge 13 ]
		for scheme in '' '{CRYPT}' '{crypt}'; do
			account "u$((++n))" "$scheme$hash"
			login "USER u$n\r\nPASS secret\r\nQUIT\r\n" -a users -m %h/M
			expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
		done
	done
	account sha "{SHA512-CRYPT}$(perl -e 'print crypt("secret", q($6$saltsalt$))')"
	account blf "{BLF-CRYPT}$(perl -e 'print crypt("secret", q($2y$04$abcdefghijklmnopqrstuu))')"
	for n in sha blf; do
		login "USER $n\r\nPASS secret\r\nQUIT\r\n" -a users -m %h/M
		expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
	done
}

@test "users of several domains have maildrops of their own by %%d and %%n" {
	account alice@example.org '{PLAIN}one'
	account alice@example.com '{PLAIN}two'
	maildir example.org/alice
	maildir example.com/alice
	printf 'x\n' >"$T/example.com/alice/new/1.h"
	login 'USER alice@example.org\r\nPASS one\r\nSTAT\r\nQUIT\r\n' -a users -m %h/%d/%n
	has '+OK 0 0' "$T/out"
	login 'USER alice@example.com\r\nPASS two\r\nSTAT\r\nQUIT\r\n' -a users -m maildir:%h/%d/%n
	has '+OK 1 3' "$T/out"
	login 'USER alice@example.com\r\nPASS one\r\n' -a users -m %h/%d/%n
	has '[AUTH]' "$T/out"
}

@test "comments and blank lines are skipped, the first line of a name counts" {
	printf '# alice:{PLAIN}no\n\n' >"$T/users"
	alice
	account alice '{PLAIN}other'
	login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	has '+OK welcome' "$T/out"
	login 'USER # alice\r\nPASS no\r\nQUIT\r\n' -a users
	has 'wrong arguments' "$T/out"
}

@test "a wrong line is reported with file and number, and only its user refused" {
	printf 'no colon\nbob:{PLAIN}secret:12x:1:::\n' >"$T/users"
	alice
	login 'USER bob\r\nPASS secret\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n-ERR [SYS/PERM] this account cannot be used\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
	logged 'file=users text="line 1: no \":\""'
	logged 'file=users text="line 2: uid is not a number or missing"'
}

@test "an account with a gid or a home that is none is refused, and the log says why" {
	local n fields
	for fields in 0x1:: 1.5:: -1:: 4294967295:: "$NOBODY::home" "$NOBODY::/$(printf '%04096d' 0)"; do
		n=$((n + 1))
		printf 'user%d:{PLAIN}secret:%s:%s::\n' "$n" "$NOBODY" "$fields" >>"$T/users"
	done
	give
	for n in {1..6}; do
		try "$HELLO"'+OK now the password\r\n-ERR [SYS/PERM] this account cannot be used\r\n+OK bye\r\n' \
			"USER user$n\r\nPASS secret\r\nQUIT\r\n" -a users
	done
	tried
	for n in {1..4}; do
		logged "file=users text=\"line $n: gid is not a number or missing\""
	done
	logged 'file=users text="line 5: home is not an absolute path"'
	logged 'file=users text="line 6: home is too long"'
}

@test "a line of more than 8 KiB is reported and does not hide the next" {
	printf 'long:{PLAIN}%9000s\n' x >"$T/users"
	alice
	login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	has '+OK welcome' "$T/out"
	logged 'file=users text="line 1: too long"'
}

@test "uid 0 is never served" {
	printf 'root:{PLAIN}secret:0:0::/root::\n' >"$T/users"
	login 'USER root\r\nPASS secret\r\nQUIT\r\n' -a users
	has '-ERR [SYS/PERM]' "$T/out"
	logged 'uid 0 is never served'
}

@test "an account of another uid is refused where we are not root" {
	printf 'eve:{PLAIN}secret:12345:12345::/tmp::\n' >"$T/users"
	login 'USER eve\r\nPASS secret\r\nQUIT\r\n' -a users
	has '-ERR [SYS/PERM]' "$T/out"
	logged 'line 1: uid or gid is not our own, and we are not root'
}

@test "an accounts file that is missing, or that others can write, is [SYS/TEMP]" {
	alice
	login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a nowhere
	expect "$HELLO"'+OK now the password\r\n-ERR [SYS/TEMP] logins are not possible now\r\n+OK bye\r\n'
	logged 'file=nowhere text="No such file or directory"'
	chmod 666 "$T/users"
	login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users
	has '[SYS/TEMP]' "$T/out"
	logged 'file=users text="others than its owner can write to it"'
	rm "$T/users"
	mkfifo -m 600 "$T/users"
	login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users
	logged 'file=users text="not a regular file"'
}

@test "an accounts file of another user is not believed" {
	need_root
	alice
	give
	chown 12345 "$T/users"
	chmod 644 "$T/users"
	try "$HELLO"'+OK now the password\r\n-ERR [SYS/TEMP] logins are not possible now\r\n+OK bye\r\n' \
		'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	tried
	logged "file=users text=\"owned by neither root nor uid $NOBODY\""
}

@test "an accounts file that cannot be read to its end decides nothing" {
	need strace
	alice
	seq -f 'user%.0f:{PLAIN}x:1:1::/::' 1000 >>"$T/users"
	give
	local n
	for n in 1 2; do
		(cd "$T" && printf 'USER alice\r\nPASS secret\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
			strace -o trace -P "$T/users" -e inject=read,readv:error=EIO:when=$n "$POP3" -h pop.example.org \
			-a "$T/users" -m %h/M >out 2>log)
		expect "$HELLO"'+OK now the password\r\n-ERR [SYS/TEMP] logins are not possible now\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
		logged "file=$T/users text=\"cannot be read\""
	done
}

@test "unknown name, wrong secret and plain secret cost one crypt(3) each" {
	need perl
	alice
	account bob "$(perl -e 'print crypt("secret", q($6$rounds=1000$saltsalt$))')"
	account carol '!'
	export CRYPT_LOG=$T/crypts
	local POP3=$T/bin/crypt-log
	: >"$T/crypts"
	refused wrong alice bob carol nobody-knows ../x
	[ "$(wc -l <"$T/crypts")" = 5 ]
	[ "$(grep -cF '$6$rounds=1000$' "$T/crypts")" = 5 ]
}

@test "a held maildrop is refused after the login with [IN-USE], and the connection closes" {
	alice
	begin '' -w -- -P -m M
	await has ready "$T/out"
	local pid=$PID
	login 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n-ERR [IN-USE] another session has the maildrop\r\n'
	logged 'event=refused addr=local user=alice reason=in-use'
	kill "$pid"
}

@test "root drops to the front's user, and to the account's for the session" {
	need_root
	printf 'alice:{PLAIN}secret:12345:12346::%s::\n' "$T" >"$T/users"
	maildir M
	chown -R 12345:12346 "$T/M"
	give
	chown root "$T/users"
	chown -R 12345:12346 "$T/M"
	AS=()
	begin_as_is 'CAPA\r\n'
	await has EXPIRE "$T/out"
	local front
	front=$(pgrep -P "$PID")
	[ "$(status_of "$PID" Uid)" = '0 0 0 0' ]
	[ "$(status_of "$front" Uid)" = "$NOBODY $NOBODY $NOBODY $NOBODY" ]
	[ "$(status_of "$front" Gid)" = "$NOBODY $NOBODY $NOBODY $NOBODY" ]
	[ -z "$(status_of "$front" Groups)" ]
	kill "$PID"
	finish
	begin_as_is 'USER alice\r\nPASS secret\r\nSTAT\r\n'
	await has '+OK 0 0' "$T/out"
	[ -z "$(pgrep -P "$PID")" ]
	[ "$(status_of "$PID" Uid)" = '12345 12345 12345 12345' ]
	[ "$(status_of "$PID" Gid)" = '12346 12346 12346 12346' ]
	[ -z "$(status_of "$PID" Groups)" ]
}

# A session that goes on, of files that already belong to whom they should.
begin_as_is() {
	rm -f "$T/pid"
	# shellcheck disable=SC2059
	printf "$1" | (cd "$T" && bin/dialogue -w -i pid "$POP3" -h pop.example.org \
		-a users -m %h/M) >"$T/out" 2>"$T/log" 3>&- &
	CLIENT=$!
	await test -s "$T/pid"
	PID=$(cat "$T/pid")
}

# status_of PID FIELD: of /proc/PID/status, blanks folded.
status_of() {
	sed -n "s/^$2:[[:blank:]]*//p" "/proc/$1/status" | tr '\t' ' ' | sed 's/ *$//'
}

@test "root refuses a front that is root or nobody's name" {
	need_root
	alice
	root_login 'QUIT\r\n' -a users -u root
	[ "$status" = 78 ]
	[ ! -s "$T/out" ]
	logged 'file=-u text="root: must not be uid 0"'
	root_login 'QUIT\r\n' -a users -u no-such-user
	[ "$status" = 78 ]
	logged 'file=-u text="no-such-user: no such user"'
}

@test "as root the maildrop of another uid than the account's is refused" {
	need_root
	printf 'alice:{PLAIN}secret:12345:12345::%s::\n' "$T" >"$T/users"
	maildir M
	root_login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M
	has '-ERR [SYS/PERM]' "$T/out"
	logged "file=$T/M text=\"owned by uid $NOBODY, not by the user\""
}

# lie EXPRESSION [ARG...]: what the monitor makes of a front that somebody has
# taken over, and that sends the records of a Python expression.
lie() {
	local lies=$1
	shift
	rm -f "$T/pid" "$T/in"
	mkfifo "$T/in"
	(cd "$T" && bin/dialogue -t pipe -i pid "$POP3" -h pop.example.org -a users -m %h/M "$@" \
		<in >out 2>log 3>&-) &
	CLIENT=$!
	exec 7>"$T/in"
	await has +OK "$T/out"
	PID=$(cat "$T/pid")
	python3 - "$PID" "$lies" <<-'P'
		import ctypes, os, socket, sys

		front = int(open("/proc/%s/task/%s/children" % (sys.argv[1], sys.argv[1])).read())
		ends = [fd for fd in os.listdir("/proc/%d/fd" % front)
		        if os.readlink("/proc/%d/fd/%s" % (front, fd)).startswith("socket:")]
		libc = ctypes.CDLL(None, use_errno=True)
		process = libc.syscall(434, front, 0)
		for number in ends:
		    fd = libc.syscall(438, process, int(number), 0)
		    try:
		        end = socket.socket(fileno=fd)
		        if end.type == socket.SOCK_SEQPACKET:
		            break
		    except OSError:
		        pass
		else:
		    sys.exit("no socket of the front")
		for record in eval(sys.argv[2]):
		    try:
		        end.send(record)
		    except ConnectionError:
		        break
	P
	echo "$lies" >&2
	exec 7>&-
	wait "$CLIENT" || :
	lacks '+OK welcome' "$T/out"
	lacks 'event=login' "$T/log"
}

@test "the monitor believes no front that is taken over" {
	need_root
	need python3
	alice
	give
	chown root "$T/users"
	# No record, halves of one, and more than one.
	local record
	for record in 'b"p"' 'b"palice\0"' 'b"palice\0secret"' 'b"palice\0secret\0x"'; do
		lie "[$record]"
		logged 'file=front text="malformed request"'
	done
	for record in 'b"x"' 'b"e\xff"' 'b"dalice\0d41d8cd98f00b204e9800998ecf8427e\0"'; do
		lie "[$record]"
		logged 'reason=disconnect'
	done
	lie '[b"palice\0secret\0"]' -s
	logged 'reason=disconnect'
	lie '[b"t"]'
	logged 'file=STLS text="no TLS with this client"'
	lie '[b"a"] * 1000'
	logged 'reason=nonsense'
}

@test "as root an account without ids is refused" {
	need_root
	printf 'alice:{PLAIN}secret:::::\n' >"$T/users"
	root_login 'USER alice\r\nPASS secret\r\nQUIT\r\n' -a users
	has '-ERR [SYS/PERM]' "$T/out"
	logged 'line 1: uid is not a number or missing'
}

@test "-P by root serves a socketpair as the maildrop's owner, and never the network as uid 0" {
	need_root
	alice
	give
	cd "$T"
	printf 'DELE 1\r\nQUIT\r\n' | bin/dialogue "$POP3" -P -h pop.example.org -m M >out 2>log
	expect "$HELLO"'+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ "$(stat -c %u M/pop3-state)" = "$NOBODY" ]
	chown -R 0:0 M
	printf 'STAT\r\nQUIT\r\n' | bin/dialogue -t tcp "$POP3" -P -h pop.example.org -m M >out 2>log
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged 'file=-P text="uid 0 does not serve the network"'
	printf 'STAT\r\nQUIT\r\n' | bin/dialogue -t pipe "$POP3" -P -h pop.example.org -m M >out 2>log
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
}

@test "neither the front nor the monitor leaves a core" {
	alice
	give
	converse -a users
	grep -q '^Max core file size *0 *0 ' "/proc/$PID/limits"
	local front
	front=$(cat "/proc/$PID/task/$PID/children")
	grep -q '^Max core file size *0 *0 ' "/proc/${front% }/limits"
}
