#!/usr/bin/env bats
# The PROXY protocol, versions 1 and 2 (-p).
load helper

BYE='+OK bye\r\n'
# Version 2: what every header begins with; and addresses with ports: 192.0.2.7
# and 192.0.2.1, 2001:db8::7 and 2001:db8::1.
V2='\r\n\r\n\0\r\nQUIT\n'
IP4='\300\0\2\7\300\0\2\1\60\71\0\156'
CUT4='\300\0\2\7\300\0\2\1\60\71\0' # its last octet is missing
IP6='\40\1\15\270\0\0\0\0\0\0\0\0\0\0\0\7\40\1\15\270\0\0\0\0\0\0\0\0\0\0\0\1\60\71\0\156'

alice() {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
}

# octets COUNT: so many, as a printf format.
octets() {
	printf '%0*d' "$1" 0
}

# served ADDRESS HEADER: the session behind the header is one as any other, and
# of that address.
served() {
	login "$2"'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' -p -a users -m %h/M
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 1 11\r\n+OK 0 deleted\r\n'
	logged "event=login addr=$1 user=alice"
	logged "event=end addr=$1 user=alice reason=quit"
}

# closed WHAT HEADER: nothing is said to such a client.
closed() {
	login "$2"'USER alice\r\nPASS secret\r\nQUIT\r\n' -p -a users -m %h/M
	[ "$status" = 0 ]
	expect ''
	logged "event=error addr=local user=- file=-p text=\"PROXY header $1\""
	[ "$(grep -c event= "$T/log")" = 1 ]
}

@test "a PROXY header of version 1 tells the address of the log" {
	alice
	served 192.0.2.7 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\n'
	served 2001:db8::7 'PROXY TCP6 2001:db8::7 2001:db8::1 12345 110\r\n'
	served 2001:db8::7 'PROXY TCP6 2001:DB8:0:0:0:0:0:7 ::1 0 65535\r\n'
	served 192.0.2.7 'PROXY TCP6 ::ffff:192.0.2.7 ::1 1 110\r\n'
}

@test "a header of version 1 that knows no address leaves that of the connection" {
	alice
	served local 'PROXY UNKNOWN\r\n'
	served local 'PROXY UNKNOWN 192.0.2.7 192.0.2.1 12345 110\r\n'
	VIA=tcp served 127.0.0.1 'PROXY UNKNOWN\r\n'
	TCPREMOTEIP=198.51.100.9 served 198.51.100.9 'PROXY UNKNOWN\r\n'
}

@test "a PROXY header of version 2 tells the address of the log" {
	alice
	served 192.0.2.7 "$V2\\41\\21\\0\\14$IP4"
	served 2001:db8::7 "$V2\\41\\41\\0\\44$IP6"
	served 192.0.2.7 "$V2\\41\\41\\0\\44\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\377\\377\\300\\0\\2\\007$(octets 16)\\60\\71\\0\\156"
}

@test "a header of version 2 that knows no address leaves that of the connection" {
	alice
	served local "$V2\\40\\0\\0\\0"
	served local "$V2\\40\\21\\0\\14$IP4"
	served local "$V2\\40\\377\\0\\3abc"
	served local "$V2\\41\\0\\0\\0"
	served local "$V2\\41\\0\\0\\5fghij"
	served local "$V2\\41\\61\\0\\330$(octets 216)"
	VIA=tcp served 127.0.0.1 "$V2\\40\\0\\0\\0"
	VIA=tcp served 127.0.0.1 "$V2\\41\\61\\0\\330$(octets 216)"
}

@test "fields behind the addresses are passed over" {
	alice
	served 192.0.2.7 "$V2\\41\\21\\0\\17$IP4\\4\\0\\0"
	served 192.0.2.7 "$V2\\41\\21\\0\\33$IP4\\1\\0\\4pop3\\356\\0\\5hello"
	served 192.0.2.7 "$V2\\41\\21\\0\\24$IP4\\40\\0\\5\\1\\0\\0\\0\\0"
	served 2001:db8::7 "$V2\\41\\41\\0\\51$IP6\\3\\0\\2xy"
	# As long as a header may be, its last field reaching its end.
	served 192.0.2.7 "$V2\\41\\21\\20\\0$IP4\\4\\17\\361$(octets 4081)"
}

@test "a header is believed before what the environment says" {
	alice
	TCPREMOTEIP=198.51.100.9 VIA=tcp served 192.0.2.7 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\n'
	TCPREMOTEIP=198.51.100.9 served 192.0.2.7 "$V2\\41\\21\\0\\14$IP4"
}

@test "not one octet behind the header is lost, over pipe, socketpair and TCP, in one write or octet by octet" {
	alice
	local via dial
	for via in pipe pair tcp; do
		for dial in '' -b; do
			VIA=$via DIAL=$dial served 192.0.2.7 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\n'
			VIA=$via DIAL=$dial served 192.0.2.7 "$V2\\41\\21\\0\\17$IP4\\4\\0\\0"
		done
	done
}

@test "a header may come in pieces with pauses between them, and the greeting only behind it" {
	alice
	give
	local piece
	for piece in 'PROXY TC|P4 192.0.2.7 192.0.2.1 12345 110\r|\n' "\\r|\\n\\r\\n\\0\\r\\nQUIT|\\n\\41\\21\\0\\14$IP4"; do
		rm -f "$T/in" "$T/pid"
		mkfifo "$T/in"
		(cd "$T" && "${AS[@]}" bin/dialogue -i pid "$POP3" -h pop.example.org -p -a users \
			<in >out 2>log) 3>&- &
		CLIENT=$!
		exec 7>"$T/in"
		await test -s "$T/pid"
		while [ "$piece" != "${piece#*|}" ]; do
			# shellcheck disable=SC2059
			printf "${piece%%|*}" >&7
			piece=${piece#*|}
			await waits_for_input "$(cat "$T/pid")"
			[ ! -s "$T/out" ]
		done
		# shellcheck disable=SC2059
		printf "$piece" >&7
		await has ready "$T/out"
		printf 'QUIT\r\n' >&7
		hang_up
		expect "$HELLO$BYE"
		logged 'addr=192.0.2.7'
	done
}

# The process has read all there was and sleeps in poll(2).
waits_for_input() {
	grep -q 'State:.*S' "/proc/$1/status" && sleep 0.1 && grep -q 'State:.*S' "/proc/$1/status"
}

@test "a header of version 1 of 107 octets is taken, and one of 108 is too long" {
	alice
	served local "PROXY UNKNOWN $(octets 91)\r\n"
	closed 'too long' "PROXY UNKNOWN $(octets 92)\r\n"
	closed 'too long' "PROXY UNKNOWN $(octets 5000)"
}

@test "what is no header of version 1 to the letter closes the connection without a word" {
	alice
	local line
	for line in 'PROXY' 'PROXY ' 'PROXY TCP4' 'PROXYTCP4 192.0.2.7 192.0.2.1 1 2' 'PROXY UNKNOWNX' \
		'Proxy UNKNOWN' 'PROXY unknown' 'PROXY TCP5 192.0.2.7 192.0.2.1 1 2' \
		'PROXY TCP4 192.0.2.7 192.0.2.1 1' 'PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3' \
		'PROXY TCP4 192.0.2.7 192.0.2.1 1 2 ' 'PROXY  TCP4 192.0.2.7 192.0.2.1 1 2' \
		'PROXY TCP4 192.0.2.7 192.0.2.1  1 2' 'PROXY TCP4 192.0.2.256 192.0.2.1 1 2' \
		'PROXY TCP4 192.0.2.07 192.0.2.1 1 2' 'PROXY TCP4 192.0.2 192.0.2.1 1 2' \
		'PROXY TCP4 192.0.2.7 x 1 2' 'PROXY TCP4 ::1 ::1 1 2' 'PROXY TCP6 192.0.2.7 192.0.2.1 1 2' \
		'PROXY TCP6 ::7::1 ::1 1 2' 'PROXY TCP6 fe80::1%%lo ::1 1 2' 'PROXY TCP4 192.0.2.7 192.0.2.1 65536 2' \
		'PROXY TCP4 192.0.2.7 192.0.2.1 1 99999' 'PROXY TCP4 192.0.2.7 192.0.2.1 01 2' \
		'PROXY TCP4 192.0.2.7 192.0.2.1 -1 2' 'PROXY TCP4 192.0.2.7 192.0.2.1 1 2x' \
		'PROXY TCP4 192.0.2.7 192.0.2.1 000001 2' 'PROXY UNKNOWN\0' 'POXY UNKNOWN' 'PASS secret'; do
		closed malformed "$line\\r\\n"
	done
	closed malformed 'PROXY UNKNOWN\n'
	closed malformed 'PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n'
	closed malformed 'USER alice\r\n'
	closed malformed ' PROXY UNKNOWN\r\n'
	closed malformed '\n'
}

@test "what is no header of version 2 to the letter closes the connection without a word" {
	alice
	local head
	# Other signatures, versions, commands and families.
	for head in '\r\n\r\n\0\r\nQUIT\r\41\21\0\14' '\r\r\n\n\0\r\nQUIT\n\41\21\0\14' "$V2\\21\\21\\0\\14" "$V2\\61\\21\\0\\14" \
		"$V2\\1\\21\\0\\14" "$V2\\42\\21\\0\\14" "$V2\\57\\21\\0\\14"; do
		closed malformed "$head$IP4"
	done
	for head in 22 12 32 42 62 20 1 2 101 377; do
		closed 'of no stream that is known' "$V2\\41\\$head\\0\\14$IP4"
	done
	# Addresses that are cut short.
	closed malformed "$V2\\41\\21\\0\\0"
	closed malformed "$V2\\41\\21\\0\\13${CUT4}"
	closed malformed "$V2\\41\\41\\0\\43$(octets 35)"
	closed malformed "$V2\\41\\61\\0\\327$(octets 215)"
	# Fields that reach over the end, and a field of TLS that is too short.
	closed malformed "$V2\\41\\21\\0\\15$IP4\\4"
	closed malformed "$V2\\41\\21\\0\\16$IP4\\4\\0"
	closed malformed "$V2\\41\\21\\0\\17$IP4\\4\\0\\1"
	closed malformed "$V2\\41\\21\\0\\22$IP4\\4\\1\\3abc"
	closed malformed "$V2\\41\\21\\0\\23$IP4\\40\\0\\4\\1\\0\\0\\0"
	closed 'too long' "$V2\\41\\21\\20\\1$IP4\\4\\17\\362$(octets 4082)"
	closed 'too long' "$V2\\40\\0\\377\\377$(octets 65535)"
}

@test "an address that a malformed header gives does not stand in the log" {
	alice
	VIA=tcp login "$V2\\41\\21\\0\\15$IP4\\4" -p -a users
	expect ''
	logged 'event=error addr=127.0.0.1 user=- file=-p'
}

@test "a header that breaks off closes the connection without a word" {
	alice
	local header
	for header in '' P 'PROXY UNKNOWN' 'PROXY UNKNOWN\r' '\r' "$V2" "$V2\\41\\21\\0\\14${CUT4}"; do
		login "$header" -p -a users
		[ "$status" = 0 ]
		expect ''
		if [ -z "$header" ]; then logged 'PROXY header not there'; else logged 'PROXY header not complete'; fi
	done
}

@test "-p goes together with -P" {
	alice
	say 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\nSTAT\r\nQUIT\r\n' -p -m M
	expect "$HELLO"'+OK 1 11\r\n+OK 0 deleted\r\n'
	logged 'event=login addr=192.0.2.7'
	VIA=tcp say "$V2\\41\\21\\0\\14${IP4}STAT\\r\\nQUIT\\r\\n" -p -m M
	expect "$HELLO"'+OK 1 11\r\n+OK 0 deleted\r\n'
	logged 'event=login addr=192.0.2.7'
	say 'STAT\r\nQUIT\r\n' -p -m M
	expect ''
}

@test "without -p a PROXY header is a senseless command" {
	alice
	login 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\nQUIT\r\n' -a users
	expect "$HELLO-ERR unknown command\r\n$BYE"
	logged 'event=end addr=local'
}

@test "a refused login behind a PROXY header is logged with its address" {
	alice
	login 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\nUSER alice\r\nPASS no\r\nQUIT\r\n' -p -a users
	expect "$HELLO"'+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n+OK bye\r\n'
	logged 'event=refused addr=192.0.2.7 user=alice reason=credentials'
}

# A syslog of the test's own, at a /dev/log that nobody else sees.
@test "the connection is logged with the address of its PROXY header" {
	need_mounts
	need perl
	alice
	give
	cat >"$T/syslog" <<'END'
mount --bind "$1" /dev
perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Type => SOCK_DGRAM, Local => "/dev/log");
	chmod 0666, "/dev/log"; $| = 1; print "ready\n"; while ($s->recv($l, 8192), 1) { print "$l\n"; last if $l =~ /event=end/ }' >"$1.log" &
until grep -q ready "$1.log"; do sleep 0.02; done
cd "$2" && printf 'PROXY TCP4 192.0.2.7 192.0.2.1 12345 110\r\nQUIT\r\n' |
	bin/dialogue sh -c 'exec "$0" "$@" 2>&1' "$2/bin/pop3-handler" -h pop.example.org -p -a users >out
wait
END
	mkdir "$T/dev"
	mknod -m 666 "$T/dev/null" c 1 3
	chown root "$T/users"
	unshare -m sh -e "$T/syslog" "$T/dev" "$T"
	expect "$HELLO$BYE"
	has 'event=connect addr=192.0.2.7 user=- host=pop.example.org' "$T/dev.log"
	has 'event=end addr=192.0.2.7 user=- reason=quit' "$T/dev.log"
}
