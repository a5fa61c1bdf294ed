#!/usr/bin/env bats
# HAProxy, configured as README tells administrators, before two servers that
# share the maildrops.
load helper

PATH=$PATH:/usr/sbin:/sbin
SERVERS=(127.0.0.2 127.0.0.3)
BALANCER=
SERVER=()

teardown() {
	local pid
	exec 7>&- 8>&- || :
	for pid in $BALANCER "${SERVER[@]}"; do
		pkill -P "$pid" || :
		kill "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	done
	wait
}

# free_ports NAME...: each a port that nobody listens on, and no two the same.
free_ports() {
	local name port
	for name; do
		while :; do
			port=$((20000 + RANDOM % 12000)) # below those of clients
			[[ " ${TAKEN:-} " != *" $port "* ]] || continue
			listens 127.0.0.1 $port || listens "${SERVERS[0]}" $port ||
				listens "${SERVERS[1]}" $port || break
		done
		TAKEN="${TAKEN:-} $port"
		declare -g "$name=$port"
	done
}

listens() {
	(: 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# The indented block of README that begins with "defaults".
configuration() {
	sed -n '/^    defaults$/,/^[^ ]/s/^    //p' "$ROOT/README"
}

# server N [ARG...]: the N-th one, from 0; its log is $T/log.N.
server() {
	local n=$1
	shift
	tcpserver -RHl0 "${SERVERS[n]}" "$BACKEND" "$POP3" -p -h "pop$n.example.org" \
		-a "$T/users" -m %h/M "$@" >>"$T/log.$n" 2>&1 3>&- &
	SERVER[n]=$!
	await listens "${SERVERS[n]}" "$BACKEND"
	# This was a connection, too.
	await has 'not there' "$T/log.$n"
	: >"$T/log.$n"
}

# balance [ARG...]: two servers with these options, and HAProxy on $PLAIN and,
# with TLS, $SECURE.
balance() {
	local ids=: n
	need haproxy tcpserver socat openssl
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	maildir M
	for n in 1 2 3; do
		printf 'Subject: %s\n\n%s\n' $n $n >"$T/M/new/170000000$n.M1.example.org"
	done
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout "$T/key" \
		-out "$T/cert" -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>"$T/openssl.log"
	cat "$T/cert" "$T/key" >"$T/mail.pem"
	give
	[ "$(id -u)" != 0 ] || chown root "$T/users"
	free_ports BACKEND PLAIN SECURE
	for n in 0 1; do server $n "$@"; done
	configuration >"$T/readme.cfg"
	sed -e "s/:::110 /:::$PLAIN /; s/:::995 /:::$SECURE /; s|/etc/haproxy/mail.pem|$T/mail.pem|" \
		-e "s/192.0.2.11:1110/${SERVERS[0]}:$BACKEND/; s/192.0.2.12:1110/${SERVERS[1]}:$BACKEND/" \
		"$T/readme.cfg" >"$T/haproxy.cfg"
	# All of these places were there to be changed.
	[ "$(diff "$T/readme.cfg" "$T/haproxy.cfg" | grep -c '^>')" = 4 ]
	"${AS[@]}" haproxy -f "$T/haproxy.cfg" -db >"$T/haproxy.log" 2>&1 3>&- &
	BALANCER=$!
	await ask 127.0.0.4 'QUIT\r\n' || {
		cat "$T/haproxy.log" >&2
		return 1
	}
}

# ask SOURCE SCRIPT: what a client at SOURCE is told, in $T/out.
ask() {
	# shellcheck disable=SC2059
	printf "$2" | timeout 20 socat -t 10 - "TCP4:127.0.0.1:$PLAIN,bind=$1" >"$T/out" 3>&-
}

# ask_secure SOURCE SCRIPT: the same with TLS.
ask_secure() {
	# shellcheck disable=SC2059
	printf "$2" | timeout 20 socat -t 10 - "OPENSSL:127.0.0.1:$SECURE,bind=$1,cafile=$T/cert,commonname=localhost" \
		>"$T/out" 3>&-
}

# client_of N: an address that HAProxy sends to the N-th server.
client_of() {
	local i
	for i in {5..60}; do
		ask "127.0.0.$i" 'QUIT\r\n' || :
		! has "pop$1.example.org" "$T/out" || break
	done
	has "pop$1.example.org" "$T/out"
	CLIENT_OF[$1]=127.0.0.$i
}

both_clients() {
	client_of 0
	client_of 1
}

# stay FD SOURCE: a client at SOURCE that says what comes to FD; its replies go
# to $T/out.FD.
stay() {
	rm -f "$T/in.$1"
	mkfifo "$T/in.$1"
	: >"$T/out.$1"
	timeout 60 socat -t 0.2 - "TCP4:127.0.0.1:$PLAIN,bind=$2" <"$T/in.$1" >"$T/out.$1" 3>&- 7>&- 8>&- &
	STAYS[$1]=$!
	eval "exec $1>'$T/in.$1'"
	await has ready "$T/out.$1"
}

# say_to FD REPLIES SCRIPT: says it, and waits until so many replies in all have
# come.
say_to() {
	# shellcheck disable=SC2059
	printf "$3" >&"$1"
	await eval "[ \$(grep -c '^[+-]' '$T/out.$1') -ge $2 ]"
}

# All that the client of FD 7 was told, once it has been hung up on.
told() {
	wait "${STAYS[7]}" || :
	cp "$T/out.7" "$T/out"
}

LOGIN='USER alice\r\nPASS secret\r\n'
# hello N: how the N-th server greets and lets in.
hello() {
	printf '%s' "+OK pop$1.example.org pop3-handler ready\\r\\n+OK now the password\\r\\n"
}

messages() {
	find "$T/M/new" "$T/M/cur" -type f -printf '%f\n' | sed 's/^170000000\(.\).*/\1/' | sort | tr '\n' ' '
}

@test "behind HAProxy both servers serve the same maildrop, and log where the client comes from" {
	local n
	balance
	both_clients
	for n in 0 1; do
		ask "${CLIENT_OF[n]}" "${LOGIN}STAT\r\nDELE 1\r\nQUIT\r\n"
		expect "$(hello $n)+OK welcome\r\n+OK $((3 - n)) $((17 * (3 - n)))\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n"
		await has "event=end addr=${CLIENT_OF[n]} user=alice reason=quit retrieved=0 deleted=1 left=$((2 - n)) " "$T/log.$n"
		has "event=login addr=${CLIENT_OF[n]} user=alice" "$T/log.$n"
		lacks "addr=${CLIENT_OF[n]} user=alice" "$T/log.$((1 - n))"
	done
	[ "$(messages)" = '3 ' ]
}

@test "a client comes to the same server each time" {
	local n
	balance
	both_clients
	for n in 0 1 1 0 0 1; do
		ask "${CLIENT_OF[n]}" 'QUIT\r\n'
		expect "+OK pop$n.example.org pop3-handler ready\r\n+OK bye\r\n"
	done
}

@test "a client on IPv6 is logged with its address" {
	[ -e /proc/net/if_inet6 ] || skip "needs IPv6"
	balance
	# shellcheck disable=SC2059
	printf "${LOGIN}QUIT\r\n" | timeout 20 socat -t 10 - "TCP6:[::1]:$PLAIN" >"$T/out" 3>&-
	has '+OK welcome' "$T/out"
	await eval "cat '$T'/log.? | grep -qF 'event=end addr=::1 user=alice reason=quit'"
}

@test "a second session for a maildrop, on the other server, is told [IN-USE]" {
	balance
	both_clients
	stay 7 "${CLIENT_OF[0]}"
	say_to 7 3 "$LOGIN"
	ask "${CLIENT_OF[1]}" "${LOGIN}QUIT\r\n"
	expect "$(hello 1)-ERR [IN-USE] another session has the maildrop\r\n"
	await has "event=refused addr=${CLIENT_OF[1]} user=alice reason=in-use" "$T/log.1"
	say_to 7 5 'DELE 1\r\nQUIT\r\n'
	[ "$(messages)" = '2 3 ' ]
	ask "${CLIENT_OF[1]}" "${LOGIN}STAT\r\nQUIT\r\n"
	expect "$(hello 1)"'+OK welcome\r\n+OK 2 34\r\n+OK 0 deleted\r\n'
}

# lets_in SOURCE SCRIPT
lets_in() {
	ask "$@" && no has '[IN-USE]' "$T/out"
}

@test "with -g a silent session on one server makes way for one on the other, and removes nothing" {
	balance -g 1
	both_clients
	stay 7 "${CLIENT_OF[0]}"
	say_to 7 4 "${LOGIN}DELE 1\r\n"
	await lets_in "${CLIENT_OF[1]}" "${LOGIN}DELE 2\r\nQUIT\r\n"
	expect "$(hello 1)"'+OK welcome\r\n+OK message 2 deleted\r\n+OK 1 deleted\r\n'
	printf 'QUIT\r\n' >&7
	told
	expect "$(hello 0)"'+OK welcome\r\n+OK message 1 deleted\r\n'
	await has "event=end addr=${CLIENT_OF[0]} user=alice reason=taken-over retrieved=0 deleted=0 left=3 " "$T/log.0"
	[ "$(messages)" = '1 3 ' ]
}

@test "with -s a password is taken where HAProxy says that TLS is there, and nowhere else" {
	balance -s
	client_of 0
	ask_secure "${CLIENT_OF[0]}" "${LOGIN}STAT\r\nQUIT\r\n"
	expect "$(hello 0)"'+OK welcome\r\n+OK 3 51\r\n+OK 0 deleted\r\n'
	await has "event=login addr=${CLIENT_OF[0]} user=alice" "$T/log.0"
	ask "${CLIENT_OF[0]}" "${LOGIN}QUIT\r\n"
	expect '+OK pop0.example.org pop3-handler ready\r\n-ERR not without TLS\r\n-ERR not without TLS\r\n+OK bye\r\n'
}

@test "when a server dies in a session the client is cut off, nothing is removed, and the other server has all the mail" {
	balance
	both_clients
	stay 7 "${CLIENT_OF[0]}"
	say_to 7 5 "${LOGIN}DELE 1\r\nDELE 2\r\n"
	pkill -KILL -P "${SERVER[0]}"
	kill -KILL "${SERVER[0]}"
	told
	expect "$(hello 0)"'+OK welcome\r\n+OK message 1 deleted\r\n+OK message 2 deleted\r\n'
	# The same client, before any check has found out.
	ask "${CLIENT_OF[0]}" "${LOGIN}STAT\r\nQUIT\r\n"
	expect "$(hello 1)"'+OK welcome\r\n+OK 3 51\r\n+OK 0 deleted\r\n'
	[ "$(messages)" = '1 2 3 ' ]
	# And when it is back it has its clients again.
	server 0
	await eval "ask '${CLIENT_OF[0]}' 'QUIT\r\n' && has pop0.example.org '$T/out'"
}

@test "what HAProxy's checks leave in the log is an ordinary end, and both servers pass" {
	local n
	balance
	for n in 0 1; do
		await has addr=127.0.0.1 "$T/log.$n"
		# The client at 127.0.0.4 is ours.
		no grep -v -e ' addr=127\.0\.0\.4 ' -e ': event=end addr=127\.0\.0\.1 user=- reason=quit$' "$T/log.$n"
	done
	lacks DOWN "$T/haproxy.log"
	kill -0 "$BALANCER"
}

@test "one address has at most 20 connections, and others still come in" {
	local i
	balance
	for i in {1..20}; do
		eval "exec $((i + 20))<>/dev/tcp/127.0.0.1/$PLAIN"
		read -r -t 10 LINE <&$((i + 20))
		[[ "$LINE" == +OK* ]]
	done
	ask 127.0.0.1 'QUIT\r\n' || :
	expect ''
	ask 127.0.0.5 'QUIT\r\n'
	has '+OK bye' "$T/out"
	for i in {1..20}; do
		eval "exec $((i + 20))>&-"
	done
	await eval "ask 127.0.0.1 'QUIT\r\n' && has '+OK bye' '$T/out'"
}
