#!/usr/bin/env bats
# The command line, and where log lines go.
load helper

# usage ARG...: is a usage error, says so on stderr and nothing on fd 1.
usage() {
	status=0
	"$POP3" "$@" >"$T/out" 2>"$T/log" </dev/null || status=$?
	[ "$status" = 64 ]
	[ ! -s "$T/out" ]
	has 'usage: pop3-handler' "$T/log"
}

@test "-V prints the version" {
	[[ "$("$POP3" -V)" == 'pop3-handler '[0-9]* ]]
}

@test "bad usage exits 64, names the option, and prints nothing on fd 1" {
	usage '-?'
	usage -x
	has 'file=-x text="unknown or incomplete"' "$T/log"
	usage -P -t 599
	has 'file=-t text="less than 600 seconds"' "$T/log"
	usage -P -t x
	usage -P -t
	usage -P surplus
	has 'file=surplus' "$T/log"
	usage -P -a users
	usage -P -m ''
	usage -P -m %x
	has 'file=-m' "$T/log"
	usage -P -m 'a%'
	# shellcheck disable=SC2046 # words
	usage -P $(printf ' -m %s' {1..17})
	has 'file=-m text="given too often"' "$T/log"
	usage -P -g ''
	usage -P -d ''
	usage -P -d %x
	usage -P -h ''
	usage -P -h 'a b'
	usage -P -h '[x]'
	usage -P -h "$(printf '%0256d' 1)"
	usage -a users -m relative
	has 'must begin with / or %h' "$T/log"
	usage -a users -m foo:/x
	usage -a users -m maildir:relative
}

@test "options that make no sense together are usage errors" {
	local option
	for option in '-a users' '-c program' -A -s; do
		# shellcheck disable=SC2086
		usage -P $option
		has 'file=-P' "$T/log"
	done
	usage -a users -c program
	has 'file=-c text="excludes -a"' "$T/log"
	usage -A
	has 'file=-A text="needs -a or -c' "$T/log"
	usage -c ' '
	usage -c
	usage -P -g x
	has 'file=-g' "$T/log"
	usage -P -g -1
	usage -P -i uw
	has 'file=-i' "$T/log"
}

@test "600 seconds and more are allowed as autologout" {
	maildir M
	say 'QUIT\r\n' -m M -t 600
	expect "$HELLO"'+OK 0 deleted\r\n'
	say 'QUIT\r\n' -m M -t 3600
	expect "$HELLO"'+OK 0 deleted\r\n'
}

@test "the first maildrop that exists is taken, with or without a format before it" {
	maildir M
	printf 'x\n' >"$T/M/new/1.a"
	: >"$T/B"
	say 'STAT\r\nQUIT\r\n' -m nowhere -m M -m B
	has '+OK 1 3' "$T/out"
	say 'STAT\r\nQUIT\r\n' -m mbox:nowhere -m maildir:M
	has '+OK 1 3' "$T/out"
	say 'STAT\r\nQUIT\r\n' -m mbox:B -m M
	has '+OK 0 0' "$T/out"
	say 'STAT\r\nQUIT\r\n' -m mbox:M -m B
	has '-ERR [SYS/PERM]' "$T/out"
}

@test "a maildrop that exists but cannot be reached is an error, not an empty maildrop" {
	mkdir -p "$T/closed"
	maildir closed/M
	give
	chmod 0 "$T/closed"
	say 'STAT\r\nQUIT\r\n' -m closed/M
	chmod 755 "$T/closed"
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged 'file=closed/M text="open: Permission denied"'
}

@test "templates: %%u, %%n, %%d, %%h and %%%%" {
	maildir 'u-me@h.d n-me d-h.d %'
	export USER=me@h.d HOME=$T
	say 'STAT\r\nQUIT\r\n' -m '%h/u-%u n-%n d-%d %%'
	logged "maildrop=\"$T/u-me@h.d n-me d-h.d %\""
}

@test "without -m, -P takes \$MAILDIR, then \$MAIL, literally, then ~/Maildir" {
	maildir 'M%u'
	maildir Maildir
	: >"$T/B"
	export HOME=$T
	MAILDIR=$T/M%u MAIL=$T/B say 'QUIT\r\n'
	logged "maildrop=$T/M%u"
	MAILDIR=$T/nowhere MAIL=$T/B say 'QUIT\r\n'
	logged "maildrop=$T/B"
	MAILDIR='' MAIL='' say 'QUIT\r\n'
	logged "maildrop=$T/Maildir"
}

@test "the environment is not believed: a bad USER, HOME or REMOTE_HOST harms nobody" {
	maildir M
	export USER=../../etc HOME=relative REMOTE_HOST='1.2.3.4 user=root' TCPREMOTEIP='$(id)'
	say 'STAT\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
	logged 'event=login addr=local user='
	no grep -q 'etc\|1\.2\.3\.4' "$T/log"
}

@test "a home or a path that is too long is none, and is refused where it is meant" {
	local long
	long=/$(printf '%04096d' 0)
	maildir M
	export HOME=$long
	say 'STAT\r\nQUIT\r\n' -m %h/M -m M
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
	logged 'file=%h/M text="passed over: the home is not known"'
	export HOME=$T USER=me
	MAILDIR=$long say 'STAT\r\nQUIT\r\n'
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	grep -q 'text="File \?name too long"' "$T/log"
	say 'STAT\r\nQUIT\r\n' -m "/$(printf '%04090d' 0)%u%u%u" -m M
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	grep -q 'text="File \?name too long"' "$T/log"
}

@test "a user without an entry among the system's accounts is served by -P" {
	need_root
	maildir M
	AS=(env -i setpriv --reuid=12345 --regid=12345 --clear-groups)
	chown -R 12345:12345 "$T/M"
	chmod 755 "$T"
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org -m M >out 2>log)
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
	logged 'user=12345'
}

@test "the client's address comes from the socket, or from TCPREMOTEIP, REMOTE_HOST, REMOTE_ADDR" {
	maildir M
	TCPREMOTEIP=192.0.2.1 say 'QUIT\r\n' -m M
	logged 'event=login addr=192.0.2.1 '
	REMOTE_HOST=2001:DB8::0:1 say 'QUIT\r\n' -m M
	logged 'event=login addr=2001:db8::1 '
	REMOTE_ADDR=::ffff:192.0.2.7 say 'QUIT\r\n' -m M
	logged 'event=login addr=192.0.2.7 '
	VIA=tcp say 'QUIT\r\n' -m M
	logged 'event=login addr=127.0.0.1 '
}

@test "what forwards to us on this machine may tell the client's address, another host may not" {
	maildir M
	VIA=tcp REMOTE_HOST=192.0.2.1 say 'QUIT\r\n' -m M
	logged 'event=login addr=192.0.2.1 '
	VIA=tcp REMOTE_HOST=nobody say 'QUIT\r\n' -m M
	logged 'event=login addr=127.0.0.1 '
	need_root
	need unshare ip python3
	unshare -n true 2>/dev/null || skip "needs to make network namespaces (unshare -n)"
	# A socket whose other end is none of the machine's loopback.
	unshare -n sh -c 'ip link set lo up && ip address add 192.0.2.7/32 dev lo && exec "$@"' sh \
		python3 -c '
import socket, subprocess, sys
listener = socket.create_server(("192.0.2.7", 0))
client = socket.create_connection(listener.getsockname(), source_address=("192.0.2.7", 0))
server = listener.accept()[0]
client.sendall(b"QUIT\r\n")
subprocess.run(sys.argv[1:], stdin=server, stdout=server)
' "${AS[@]}" env REMOTE_HOST=192.0.2.1 "$POP3" -P -m "$T/M" 2>"$T/log"
	logged 'event=login addr=192.0.2.7 '
}

@test "one line a login and one an end, with what was done" {
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.a:2,"
	printf 'A: b\n\nx\n' >"$T/M/cur/2.a:2,"
	say 'RETR 1\r\nRETR 2\r\nTOP 1 1\r\nDELE 1\r\nQUIT\r\n' -m M
	[ "$(wc -l <"$T/log")" = 2 ]
	[ "$(grep -cE '^pop3-handler\[[0-9]+\]: event=login addr=local user=[^ ]+ maildrop=/[^ ]+$' "$T/log")" = 1 ]
	[ "$(grep -cE "^pop3-handler\[[0-9]+\]: event=end addr=local user=[^ ]+ reason=quit retrieved=2 deleted=1 left=1 octets=$(wc -c <"$T/out") seconds=[0-9]+$" "$T/log")" = 1 ]
}

@test "a name with control characters, blanks or quotes cannot forge a log line" {
	printf 'x:{PLAIN}x:::::\n' >"$T/users"
	login 'USER a"b=c\\\303\274\r\nPASS x\r\n' -a users
	logged 'event=refused addr=local user="a\"b=c\\\xc3\xbc" reason=credentials'
}

@test "where fd 2 is the client it gets nothing but protocol, and fd 2 leads nowhere" {
	maildir M
	give
	mkdir "$T/bad"
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue sh -c 'exec "$0" "$@" 2>&1' \
		"$POP3" -P -h pop.example.org -m M -m bad >out)
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue sh -c 'exec "$0" "$@" 2>&1' \
		"$POP3" -P -h pop.example.org -m bad >out)
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	(cd "$T" && printf 'QUIT\r\n' | "${AS[@]}" bin/dialogue sh -c 'exec "$0" "$@" 2>&1' "$POP3" -x >out) || :
	expect ''
}

@test "with fd 2 closed, or 0 and 1, nothing goes astray" {
	maildir M
	say 'STAT\r\nQUIT\r\n' -m M
	mv "$T/out" "$T/expected"
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue sh -c 'exec "$0" "$@" 2>&-' \
		"$POP3" -P -h pop.example.org -m M >out)
	same "$T/expected" "$T/out"
	status=0
	"$POP3" -P -m "$T/M" <&- >"$T/out" 2>/dev/null || status=$?
	[ "$status" = 64 ]
	[ ! -s "$T/out" ]
}

# With a /dev, and a syslog in it, that nobody else sees.
@test "where fd 2 is the client, lines go to syslog" {
	need_mounts
	need python3
	maildir M
	give
	cat >"$T/syslog.py" <<'PY'
import os, socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
os.chmod("/dev/log", 0o666)
log.settimeout(10)
print("ready", flush=True)
line = b""
while b"event=end" not in line:
    line = log.recv(8192)
    print(line.decode(), flush=True)
PY
	cat >"$T/script" <<'END'
mount --bind "$1/dev" /dev
python3 "$1/syslog.py" >"$1/syslog" &
until grep -q ready "$1/syslog"; do sleep 0.02; done
cd "$1"
shift
printf 'QUIT\r\n' | "$@" >out
wait
END
	mkdir "$T/dev"
	mknod -m 666 "$T/dev/null" c 1 3
	unshare -m sh -e "$T/script" "$T" "${AS[@]}" bin/dialogue sh -c 'exec "$0" "$@" 2>&1' \
		"$POP3" -P -h pop.example.org -m M
	grep -qE '^<23>.*pop3-handler\[[0-9]+\]: event=connect addr=local' "$T/syslog"
	grep -qE '^<22>.*pop3-handler\[[0-9]+\]: event=login addr=local' "$T/syslog"
	expect "$HELLO"'+OK 0 deleted\r\n'
}
