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

# by_root: the same tests as the user who starts us: root drops privileges.
root_login() {
	local script=$1
	shift
	give
	chown root "$T/users"
	chmod 644 "$T/users"
	status=0
	# shellcheck disable=SC2059
	printf "$script" | (cd "$T" && bin/dialogue -t "${VIA:-pair}" ${DIAL:-} \
		"$POP3" -h pop.example.org "$@") >"$T/out" 2>"$T/log" || status=$?
}

@test "USER and PASS open the maildrop" {
	alice
	login 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 1 11\r\n+OK 0 deleted\r\n'
	logged "event=login addr=local user=alice maildrop=$T/M"
}

@test "CAPA in AUTHORIZATION announces USER and no IMPLEMENTATION" {
	alice
	login 'CAPA\r\nQUIT\r\n' -a users
	expect "$HELLO"'+OK capabilities follow\r\nUSER\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\n.\r\n+OK bye\r\n'
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
	login 'STAT\r\nRETR 1\r\nNOOP\r\nAUTH\r\nAPOP a b\r\nSTLS\r\nQUIT\r\n' -a users
	expect "$HELLO"'-ERR not in this state\r\n-ERR not in this state\r\n-ERR not in this state\r\n-ERR unknown command\r\n-ERR unknown command\r\n-ERR unknown command\r\n+OK bye\r\n'
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
	for name in .alice a/b 'a@.b'; do
		account "$name" '{PLAIN}secret'
	done
	mkdir "$T/x"
	for name in .alice a/b a@.b; do
		login "USER $name\r\nPASS secret\r\n" -a users -m %h/%u
		[ "$(sed -n 3p "$T/out")" = $'-ERR [AUTH] wrong name or password\r' ]
	done
}

@test "an empty secret, a locked and an empty hash let nobody in" {
	need_openssl
	account a '{PLAIN}'
	account b ''
	account c "!$HASH"
	account d '*'
	account e '{CRYPT}'
	account f '{NOSUCH}x'
	local name
	for name in a b c d e f; do
		login "USER $name\r\nPASS x\r\n" -a users
		[ "$(sed -n 3p "$T/out")" = $'-ERR [AUTH] wrong name or password\r' ]
	done
	logged 'file=users text="line 6: unknown scheme or empty hash"'
}

# A hash of "secret" by another's hand.
need_openssl() {
	# Made with crypt(3), "secret" under the salt "saltsalt".
	HASH='$6$saltsalt$'
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

@test "unknown name, wrong secret and plain secret cost one crypt(3) each" {
	need gdb-less-ltrace
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
	printf 'alice:{PLAIN}secret:%d:%d::%s::\n' 12345 12346 "$T" >"$T/users"
	chmod 644 "$T/users"
	maildir M
	chown -R 12345:12346 "$T/M"
	(cd "$T" && { printf 'CAPA\r\n'; await test -e go; printf 'USER alice\r\nPASS secret\r\nSTAT\r\n'; await test -e stop; printf 'QUIT\r\n'; } |
		bin/dialogue -w -i pid sh -c 'exec "$@"' sh "$POP3" -h pop.example.org -a users -m %h/M) >"$T/out" 2>"$T/log" 3>&- &
	CLIENT=$!
	await has EXPIRE "$T/out"
}
