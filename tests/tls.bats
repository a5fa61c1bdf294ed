#!/usr/bin/env bats
# STLS (RFC 2595) through UCSPI-TLS, and what counts as a protected channel.
load helper

PATH=$PATH:/usr/sbin:/sbin

teardown() {
	local pid
	exec 5>&- 7>&- || :
	for pid in "${PID:-}" "${CLIENT:-}"; do
		[ -z "$pid" ] || kill "$pid" 2>/dev/null || :
		[ -z "$pid" ] || wait "$pid" 2>/dev/null || :
	done
}

# alice, with a Maildir of mails that every client hands on as they are.
alice() {
	local file ids=: n=0
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	maildir M
	for file in "$MAIL"/{01-plain,05-latin1-8bit,08-dots}.eml; do
		n=$((n + 1))
		sed 's/\r$//' "$file" >"$T/M/cur/$n.h:2,"
	done
	COUNT=$n
	[ "$n" -ge 1 ]
	cp -r "$T/M" "$T/before"
	give
	[ "$(id -u)" != 0 ] || chown root "$T/users"
}

certificate() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
		-keyout "$T/key.pem" -out "$T/cert.pem" -subj /CN=localhost \
		-addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>"$T/openssl.log"
}

free_port() {
	while :; do
		PORT=$((20000 + RANDOM % 20000))
		(: 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
	done
}

listens() {
	(: 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null
}

# bare COMMAND...: without any descriptor above 2 that the tests have.
bare() {
	local fd
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		[ "$fd" -le 2 ] || eval "exec $fd>&-"
	done
	exec "$@"
}

childless() {
	[ -z "$(pgrep -P "$PID")" ]
}

descriptors() {
	find "/proc/$1/fd" -type l -printf '%l\n'
}

# serve [ucspi-tls option...] -- [ARG...]: alice on $PORT of 127.0.0.1, under
# tcpserver with TLS. `connect` is for a client that says what a test wants.
serve() {
	local how=()
	need tcpserver openssl python3
	while [ "$1" != -- ]; do
		how+=("$1")
		shift
	done
	shift
	[ -e "$T/users" ] || alice
	[ -e "$T/cert.pem" ] || certificate
	free_port
	bare tcpserver -RHl0 127.0.0.1 "$PORT" "$ROOT/tests/tools/ucspi-tls" "${how[@]}" \
		"$T/cert.pem" "$T/key.pem" \
		"$POP3" -h pop.example.org -a "$T/users" -m %h/M "$@" >"$T/log" 2>&1 &
	PID=$!
	await listens
	await childless
}

connect() {
	timeout 30 "$ROOT/tests/tools/stls" "$PORT" "$T/cert.pem" "$@" >"$T/out"
}

# The capabilities before login, up to the dot.
CAPABLE='+OK capabilities follow\r\nUSER\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\n'
SECURED='+OK capabilities follow\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\n'
BYE='+OK bye\r\n'

# given CONTROL READ WRITE SCRIPT [ARG...]: a login with these values in the
# environment and the descriptors 7, 8 and 9 open. What stands in for a server
# says at once that TLS is there; then commands come from $T/tunnel and replies
# go to $T/through.
given() {
	local control=$1 in=$2 out=$3
	shift 3
	[ -e "$T/tunnel" ] || : >"$T/tunnel"
	rm -f "$T/pipe"
	mkfifo "$T/pipe"
	cat "$T/pipe" >"$T/through" 3>&- &
	CLIENT=$!
	SSLCTLFD=$control SSLREADFD=$in SSLWRITEFD=$out login "$@" -a users -m %h/M \
		3>&- 4>&- 5>&- 6>&- 7<>"${CONTROL:-/dev/zero}" 8<"$T/tunnel" 9>"$T/pipe"
	wait "$CLIENT"
}

@test "STLS is announced where SSLCTLFD, SSLREADFD and SSLWRITEFD name open descriptors" {
	alice
	given 7 8 9 'CAPA\r\nQUIT\r\n'
	expect "$HELLO${CAPABLE}STLS\r\n.\r\n$BYE"
}

@test "where one of the three is missing, no number or not open, STLS is neither announced nor obeyed" {
	alice
	local values
	while read -r -a values; do
		values=("${values[@]/-/}")
		given "${values[@]}" 'CAPA\r\nSTLS\r\nQUIT\r\n'
		expect "$HELLO$CAPABLE.\r\n-ERR there is no TLS here\r\n$BYE"
	done <<-'END'
		- 8 9
		7 - 9
		7 8 -
		77 8 9
		7 77 9
		7 8 77
		7x 8 9
		7 +8 9
		7 8 0x9
		0 8 9
		7 1 9
		7 8 2
		4294967303 8 9
	END
	login 'CAPA\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO$CAPABLE.\r\n$BYE"
}

@test "a descriptor that was not open at the start is none of TLS, whatever has its number later" {
	alice
	local n
	for n in 3 4 5 6; do
		given "$n" "$n" "$n" 'CAPA\r\nQUIT\r\n'
		expect "$HELLO$CAPABLE.\r\n$BYE"
	done
}

@test "after STLS commands come from SSLREADFD, replies go to SSLWRITEFD, and USER may follow" {
	alice
	printf 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' >"$T/tunnel"
	given 7 8 9 'STLS\r\nQUIT\r\n'
	expect "$HELLO"'+OK begin TLS\r\n'
	local octets
	octets=$(cat "$T"/M/cur/* | sed 's/$/\r/' | wc -c)
	mv "$T/through" "$T/out"
	expect "+OK now the password\r\n+OK welcome\r\n+OK $COUNT $octets\r\n+OK 0 deleted\r\n"
	logged 'event=login addr=local user=alice'
}

@test "STLS takes no argument" {
	alice
	given 7 8 9 'STLS x\r\nCAPA\r\nQUIT\r\n'
	expect "$HELLO"'-ERR wrong arguments\r\n'"${CAPABLE}STLS\r\n.\r\n$BYE"
}

@test "STLS is not announced in TRANSACTION, and is -ERR there" {
	alice
	given 7 8 9 'USER alice\r\nPASS secret\r\nCAPA\r\nSTLS\r\nQUIT\r\n'
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n'"$CAPABLE"'IMPLEMENTATION pop3-handler-0.1\r\n.\r\n-ERR not in this state\r\n+OK 0 deleted\r\n'
	SSLCTLFD=7 SSLREADFD=8 SSLWRITEFD=9 say 'CAPA\r\nSTLS\r\nQUIT\r\n' -m M 7<>/dev/zero 8<"$T/tunnel" 9>"$T/through"
	no has STLS "$T/out"
	has '-ERR not in this state' "$T/out"
}

@test "under an implicit-TLS server (SSL_PROTOCOL) STLS is not announced, and -s lets passwords pass" {
	alice
	SSL_PROTOCOL=TLSv1.3 given 7 8 9 'CAPA\r\nSTLS\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' -s
	expect "$HELLO$CAPABLE"'.\r\n-ERR TLS is there already\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
	SSL_PROTOCOL='' given 7 8 9 'CAPA\r\nQUIT\r\n'
	expect "$HELLO${CAPABLE}STLS\r\n.\r\n$BYE"
}

@test "with -s neither USER nor SASL PLAIN is announced or obeyed before TLS, and both are after it" {
	alice
	printf 'CAPA\r\nAUTH\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' >"$T/tunnel"
	given 7 8 9 'CAPA\r\nUSER alice\r\nPASS secret\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\nAUTH\r\nSTLS\r\n' -s
	expect "$HELLO${SECURED}STLS\r\n.\r\n-ERR not without TLS: STLS first\r\n-ERR not without TLS: STLS first\r\n-ERR not without TLS: STLS first\r\n+OK mechanisms follow\r\n.\r\n+OK begin TLS\r\n"
	mv "$T/through" "$T/out"
	expect "$CAPABLE"'.\r\n+OK mechanisms follow\r\nPLAIN\r\n.\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
	# Without TLS at hand there is no login at all.
	login 'CAPA\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n' -a users -m %h/M -s
	expect "$HELLO$SECURED.\r\n-ERR not without TLS\r\n-ERR not without TLS\r\n$BYE"
	no has 'event=login' "$T/log"
}

@test "a name that was given before STLS is forgotten" {
	alice
	printf 'PASS secret\r\nQUIT\r\n' >"$T/tunnel"
	given 7 8 9 'USER alice\r\nSTLS\r\n'
	expect "$HELLO"'+OK now the password\r\n+OK begin TLS\r\n'
	mv "$T/through" "$T/out"
	expect '-ERR USER comes first\r\n+OK bye\r\n'
	no has alice "$T/log"
}

@test "failed logins before STLS and after it are counted together" {
	alice
	printf 'USER alice\r\nPASS 3\r\nUSER alice\r\nPASS secret\r\n' >"$T/tunnel"
	given 7 8 9 'USER alice\r\nPASS 1\r\nUSER alice\r\nPASS 2\r\nSTLS\r\n'
	mv "$T/through" "$T/out"
	expect '+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n'
	logged 'event=end addr=local user=alice reason=failed-logins'
}

@test "what came in clear text behind STLS is not obeyed where the tunnel works without it" {
	alice
	printf 'QUIT\r\n' >"$T/tunnel"
	given 7 8 9 'STLS\r\nUSER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n'
	expect "$HELLO"'+OK begin TLS\r\n'
	mv "$T/through" "$T/out"
	expect "$BYE"
	[ "$(cat "$T/log")" = "$(sed -n 's/\(.*event=end addr=local user=- reason=quit\)$/\1/p' "$T/log")" ]
	diff -r "$T/before/cur" "$T/M/cur"
}

@test "if the server closes the control socket the connection is closed, and the log says reason=tls" {
	alice
	CONTROL=/dev/null given 7 8 9 'STLS\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n'
	[ "$status" = 0 ]
	expect "$HELLO"'+OK begin TLS\r\n'
	[ ! -s "$T/through" ]
	logged 'event=end addr=local user=- reason=tls'
}

@test "if the server's answer does not end within 65,536 octets the connection is closed" {
	alice
	# An octet for the "Y" to stand on; behind 65,536 octets there is an end.
	{
		printf x
		yes X=y 2>/dev/null | tr '\n' '\0' | head -c 65536
		printf '\0\0'
	} >"$T/endless"
	CONTROL=$T/endless given 7 8 9 'STLS\r\nQUIT\r\n'
	[ "$status" = 0 ]
	expect "$HELLO"'+OK begin TLS\r\n'
	logged 'event=end addr=local user=- reason=tls'
	# One that ends there is taken.
	sed -i 's/^Y/xA=y\x00\x00/' "$T/endless"
	printf 'QUIT\r\n' >"$T/tunnel"
	CONTROL=$T/endless given 7 8 9 'STLS\r\n'
	[ "$(cat "$T/through")" = "$(printf "$BYE")" ]
}

@test "an answer of no variables at all, one NUL, ends as well" {
	alice
	printf 'QUIT\r\n' >"$T/tunnel"
	serve -e --
	connect 'STLS\r\n' 'QUIT\r\n'
	expect "$HELLO"'+OK begin TLS\r\nTLS\n+OK bye\r\n'
}

@test "a handshake that never begins is waited for up to a minute, and then the connection is closed" {
	need strace
	alice
	# Of what answers nothing; the wait itself is cut short.
	mkfifo "$T/control"
	give
	(
		cd "$T"
		printf 'STLS\r\nQUIT\r\n' | SSLCTLFD=7 SSLREADFD=8 SSLWRITEFD=9 "$T/bin/dialogue" \
			strace -f -o "$T/trace" -e trace=poll,ppoll -e inject=poll:retval=0 \
			"${AS[@]}" "$POP3" -h pop.example.org -a "$T/users" -m %h/M \
			7<>"$T/control" 8</dev/null 9>/dev/null
	) >"$T/out" 2>"$T/log" 3>&-
	expect "$HELLO"'+OK begin TLS\r\n'
	logged 'event=end addr=local user=- reason=tls'
	grep -q 'poll(\[{fd=7, events=POLLIN}\], 1, \(60000\|59[0-9][0-9][0-9]\)) = 0' "$T/trace"
}

@test "under tcpserver curl --ssl-reqd begins TLS and downloads every message byte for byte" {
	need curl
	local n via
	for via in '' -1; do
		serve $via --
		for ((n = 1; n <= COUNT; n++)); do
			curl -sS --max-time 20 --ssl-reqd --cacert "$T/cert.pem" \
				"pop3://127.0.0.1:$PORT/$n" --user alice:secret >"$T/got"
			as_sent "$T/M/cur/$n.h:2," >"$T/expected"
			same "$T/expected" "$T/got"
		done
		await logged 'event=end addr=127.0.0.1 user=alice reason=quit retrieved=1 '
		kill "$PID"
	done
}

@test "curl deletes a message through TLS, and with -s is not let in without" {
	need curl
	serve -- -s
	no curl -sS --max-time 20 "pop3://127.0.0.1:$PORT/1" --user alice:secret >"$T/got" 2>"$T/curl.log"
	[ ! -s "$T/got" ]
	no has 'event=login' "$T/log"
	curl -sS --max-time 20 --ssl-reqd --cacert "$T/cert.pem" "pop3://127.0.0.1:$PORT/1" \
		--request DELE --head --user alice:secret >"$T/got"
	await test ! -e "$T/M/cur/1.h:2,"
	[ "$(find "$T/M/cur" -type f | wc -l)" = $((COUNT - 1)) ]
}

@test "fetchmail begins TLS, downloads the mail byte for byte, and deletes it" {
	need fetchmail
	serve -- -s
	mkdir "$T/fetched" "$T/home"
	cat >"$T/mda" <<-'MDA'
		#!/bin/sh
		cat >"$1/$(date +%s%N)"
	MDA
	chmod 755 "$T/mda"
	cat >"$T/fetchmailrc" <<-RC
		set invisible
		poll localhost service $PORT protocol pop3 bad-header accept
			username alice password secret is $(id -un) here
			sslproto TLS1.2+ sslcertck sslcertfile $T/cert.pem
			fetchall nokeep stripcr no mimedecode
			mda "$T/mda $T/fetched"
	RC
	chmod 600 "$T/fetchmailrc"
	FETCHMAILHOME=$T/home HOME=$T/home timeout 60 fetchmail -v -f "$T/fetchmailrc" --nosyslog \
		>"$T/fetchmail.log" 2>&1 || { cat "$T/fetchmail.log" >&2; false; }
	has 'STLS' "$T/fetchmail.log"
	[ "$(find "$T/fetched" -type f | wc -l)" = "$COUNT" ]
	local n=0 file
	for file in "$T"/fetched/*; do
		n=$((n + 1))
		same "$T/before/cur/$n.h:2," "$file"
	done
	await eval "[ -z \"\$(ls '$T'/M/cur)\" ]"
	await logged "reason=quit retrieved=$COUNT deleted=$COUNT left=0"
}

@test "STLS is not announced after TLS, and a second one is -ERR" {
	local via
	for via in '' -1; do
		serve $via --
		connect 'CAPA\r\nSTLS\r\n' 'CAPA\r\nSTLS\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n'
		expect "$HELLO${CAPABLE}STLS\r\n.\r\n+OK begin TLS\r\nTLS\n$CAPABLE"'.\r\n-ERR TLS is there already\r\n+OK now the password\r\n+OK welcome\r\n+OK 0 deleted\r\n'
		kill "$PID"
	done
}

@test "commands in the same packet as STLS are obeyed neither before nor after: the handshake fails" {
	local via
	for via in '' -1; do
		serve $via --
		connect 'STLS\r\nUSER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n' 'QUIT\r\n'
		expect "$HELLO"'+OK begin TLS\r\nno TLS\n'
		await logged 'event=end addr=127.0.0.1 user=- reason=tls'
		no has 'event=login' "$T/log"
		diff -r "$T/before/cur" "$T/M/cur"
		kill "$PID"
	done
}

@test "a client that hangs up, or sends what is no TLS, after STLS ends the session with reason=tls" {
	local how
	for how in 'STLS\r\n' 'STLS\r\nthis is no TLS at all\r\n\r\n\r\n'; do
		serve --
		connect "$how"
		has '+OK begin TLS' "$T/out"
		await logged 'event=end addr=127.0.0.1 user=- reason=tls'
		await childless
		kill "$PID"
	done
}

@test "the front does not have the control socket, and a session through TLS has nothing of TLS at all" {
	# The front lets nobody else look into it.
	need_root
	serve --
	await childless
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	local line monitor front control
	read -r -t 10 line <&5
	monitor=$(pgrep -P "$(pgrep -P "$PID")")
	front=$(pgrep -P "$monitor")
	control=$(tr '\0' '\n' <"/proc/$monitor/environ" | sed -n 's/^SSLCTLFD=//p')
	control=$(readlink "/proc/$monitor/fd/$control")
	[[ "$control" == socket:* ]]
	descriptors "$front" >"$T/fds"
	# Client, log, the monitor, and the two pipes.
	[ "$(grep -c . "$T/fds")" = 6 ]
	no has "$control" "$T/fds"
	[ "$(grep -c pipe: "$T/fds")" = 2 ]
	exec 5>&-
	await childless
	mkfifo "$T/in"
	openssl s_client -quiet -starttls pop3 -connect "127.0.0.1:$PORT" -CAfile "$T/cert.pem" \
		<"$T/in" >"$T/out" 2>"$T/openssl.log" 3>&- &
	CLIENT=$!
	exec 7>"$T/in"
	printf 'USER alice\r\nPASS secret\r\nSTAT\r\n' >&7
	await has "+OK $COUNT " "$T/out"
	descriptors "$(pgrep -P "$(pgrep -P "$PID")")" >"$T/fds"
	[ "$(grep -c '^pipe:' "$T/fds")" = 2 ]
	no grep -q '^socket:' "$T/fds"
	exec 7>&-
}

@test "a checkpassword program inherits none of the three descriptors" {
	alice
	cat >"$T/check" <<-CHECK
		#!/bin/sh
		ls -l /proc/\$\$/fd >$T/fds
		ls -l /proc/\$PPID/fd >$T/monitor
		cat <&3 >$T/data
		[ "\$(id -u)" != 0 ] || exec setpriv --reuid=$NOBODY --regid=$NOBODY --clear-groups "\$@"
		exec "\$@"
	CHECK
	chmod 755 "$T/check"
	need tcpserver openssl python3
	certificate
	free_port
	bare tcpserver -RHl0 127.0.0.1 "$PORT" "$ROOT/tests/tools/ucspi-tls" "$T/cert.pem" "$T/key.pem" \
		"$POP3" -h pop.example.org -c "$T/check" -m "$T/M" >"$T/log" 2>&1 &
	PID=$!
	await listens
	local tls
	for tls in '' 'STLS\r\n'; do
		if [ -z "$tls" ]; then
			connect 'USER alice\r\nPASS secret\r\nQUIT\r\n'
			# There is something to inherit.
			[ "$(grep -c 'socket:' "$T/monitor")" -ge 4 ]
		else
			connect "$tls" 'USER alice\r\nPASS secret\r\nQUIT\r\n'
		fi
		has '+OK welcome' "$T/out"
		grep -aq alice "$T/data"
		cat "$T/fds" >&2
		# The login on 3, and what reports on 4.
		[ "$(grep -c 'pipe:' "$T/fds")" = 1 ]
		[ "$(grep -c 'socket:' "$T/fds")" = 1 ]
	done
}

@test "when the TLS server dies in the middle of a session nothing is removed" {
	serve --
	mkfifo "$T/in"
	openssl s_client -quiet -starttls pop3 -connect "127.0.0.1:$PORT" -CAfile "$T/cert.pem" \
		<"$T/in" >"$T/out" 2>"$T/openssl.log" 3>&- &
	CLIENT=$!
	exec 7>"$T/in"
	printf 'USER alice\r\nPASS secret\r\nDELE 1\r\n' >&7
	await has 'message 1 deleted' "$T/out"
	kill -9 "$(pgrep -P "$PID")"
	await logged 'event=end addr=127.0.0.1 user=alice reason=disconnect retrieved=0 deleted=0'
	diff -r "$T/before/cur" "$T/M/cur"
	exec 7>&-
}
