#!/usr/bin/env bats
# Under every kind of superserver: the same dialogue and the same mail, over IPv4
# and IPv6. Nothing but protocol reaches the client, and the log, wherever it has
# to go, has the client's address. tests/tools/peers fetches the inetds that
# exclude each other; PEERS says where they are.
load helper

PATH=$PATH:/usr/sbin:/sbin
PEERS=${PEERS:-$ROOT/tests/peers}
LIBRARIES=$(uname -m)-linux-gnu

# ---- What is expected, made of the corpus alone ----

# stored maildir|mbox FILE: a message of the corpus as it stands in a maildrop.
# shellcheck disable=SC1003 # sed's a\ with nothing: a line end, if it is missing
stored() {
	if [ "$1" = maildir ]; then
		cat "$2"
		return
	fi
	sed -e 's/^From />From /' -e '$a\' "$2"
	# In an mbox every header ends with an empty line.
	LC_ALL=C grep -qax $'\r\\?' "$2" || echo
}

# sent ...: what RETR sends of it before byte-stuffing.
# shellcheck disable=SC1003
sent() {
	stored "$@" | sed -e 's/\r$//;s/$/\r/' -e '$a\'
}

octets() {
	sent "$@" | wc -c
}

# unique_id FORMAT N FILE: the base name of the file, or the digest of From_
# line, header, and octets of the body. No mail of the corpus has a header line
# that mail readers rewrite.
unique_id() {
	if [ "$1" = maildir ]; then
		echo "17000000$2.M1.example.org"
		return
	fi
	{
		printf '%s\n' "$FROM"
		sent mbox "$3" | sed '/^\r$/q' | tr -d '\r'
		sent mbox "$3" | sed '1,/^\r$/d' | wc -c | tr -d '\n'
	} | md5sum | cut -d ' ' -f 1
}

# dialogue FORMAT: what the client is sent in all.
dialogue() {
	local file n total=0 all

	for file in "$MAIL"/*.eml; do
		total=$((total + $(octets "$1" "$file")))
	done
	all="+OK $COUNT messages ($total octets)\r\n"
	printf "$HELLO"'+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n'
	printf '+OK now the password\r\n+OK welcome\r\n+OK %d %d\r\n'"$all" "$COUNT" "$total"
	n=10
	for file in "$MAIL"/*.eml; do
		n=$((n + 1))
		printf '%d %d\r\n' $((n - 10)) "$(octets "$1" "$file")"
	done
	printf '.\r\n+OK unique-ids follow\r\n'
	n=10
	for file in "$MAIL"/*.eml; do
		n=$((n + 1))
		printf '%d %s\r\n' $((n - 10)) "$(unique_id "$1" $n "$file")"
	done
	printf '.\r\n'
	for file in "$MAIL"/*.eml; do
		printf '+OK %d octets\r\n' "$(octets "$1" "$file")"
		sent "$1" "$file" | sed 's/^\./../'
		printf '.\r\n+OK top of message follows\r\n'
		# The header, the empty line behind it, and one line of the body.
		sent "$1" "$file" | sed '/^\r$/{n;q}' | sed 's/^\./../'
		printf '.\r\n'
	done
	printf '+OK message 1 deleted\r\n-ERR message 1 is deleted\r\n%b' "$all"
	printf '+OK message 2 deleted\r\n+OK 1 deleted\r\n'
}

# script USER: all that the client says, in one write.
script() {
	local n

	printf 'USER %s\r\nPASS wrong\r\nUSER %s\r\nPASS secret\r\nSTAT\r\nLIST\r\nUIDL\r\n' "$1" "$1"
	for ((n = 1; n <= COUNT; n++)); do
		printf 'RETR %d\r\nTOP %d 1\r\n' "$n" "$n"
	done
	printf 'DELE 1\r\nRETR 1\r\nRSET\r\nDELE 2\r\nQUIT\r\n'
}

# alice has a Maildir, bob an mbox. `before` and `after` are what a session finds
# and leaves there.
setup_file() {
	local at=$BATS_FILE_TMPDIR file n=10 name

	export COUNT
	COUNT=$(find "$MAIL" -name '*.eml' | wc -l)
	mkdir -p "$at"/{before,after}/{bob,alice/Maildir/{new,cur,tmp}}
	for file in "$MAIL"/*.eml; do
		n=$((n + 1))
		name=$(unique_id maildir $n)
		cp "$file" "$at/before/alice/Maildir/new/$name"
		{
			printf '%s\n' "$FROM"
			stored mbox "$file"
			echo
		} >"$at/one"
		cat "$at/one" >>"$at/before/bob/mbox"
		[ $n != 12 ] || continue
		cp "$file" "$at/after/alice/Maildir/cur/$name:2,"
		cat "$at/one" >>"$at/after/bob/mbox"
	done
	dialogue maildir >"$at/alice"
	dialogue mbox >"$at/bob"
	script alice >"$at/alice.script"
	script bob >"$at/bob.script"
}

# ---- Superservers ----

# A machine of the superserver's own, as far as that may be: with a syslog daemon
# that writes what comes, a line each, to $T/syslog, and a /run for pid files.
begin_syslog() {
	[ "$(id -u)" = 0 ] && unshare -m true 2>/dev/null || return 0
	need python3
	mkdir "$T/dev" "$T/run"
	touch "$T/dev/null" "$T/dev/urandom" "$T/syslog"
	python3 -c '
import os, socket, sys
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
with open(sys.argv[2], "ab", 0) as to:
    while True:
        to.write(log.recv(65536) + b"\n")' "$T/dev/log" "$T/syslog" 3>&- &
	SYSLOG=$!
	await test -S "$T/dev/log"
}

# inside COMMAND...: there, and without any descriptor above 2 that the tests have.
inside() {
	local fd
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		[ "$fd" -le 2 ] || eval "exec $fd>&-"
	done
	[ -n "${SYSLOG:-}" ] || exec "$@"
	# shellcheck disable=SC2016
	exec unshare -m sh -ec '
		mount --bind "$0/run" /run
		mount --bind /dev/null "$0/dev/null"
		mount --bind /dev/urandom "$0/dev/urandom"
		mount --rbind "$0/dev" /dev
		exec "$@"' "$T" "$@"
}

teardown() {
	local pid
	exec 5>&- || :
	for pid in "${PID:-}" "${SYSLOG:-}"; do
		[ -z "$pid" ] || kill "$pid" 2>/dev/null || :
		[ -z "$pid" ] || wait "$pid" 2>/dev/null || :
	done
}

# A port that nobody uses; `listens` looks without connecting.
free_port() {
	PORT=$((20000 + RANDOM % 12000))
	while listens; do
		PORT=$((20000 + RANDOM % 12000))
	done
}

listens() {
	grep -qs ":$(printf %04X $PORT) [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6
}

need_peer() {
	[ -x "$PEERS/$1" ] || skip "needs $PEERS/$1: tests/tools/peers DIR, and PEERS=DIR"
}

maildrops() {
	local ids=: name
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	for name in alice bob; do
		printf '%s:{PLAIN}secret:%s::%s/%s::\n' $name "$ids" "$T" $name >>"$T/users"
		cp -r "$BATS_FILE_TMPDIR/before/$name" "$T/"
	done
	give
	[ "$(id -u)" != 0 ] || chown 0 "$T/users"
}

# xinetd_conf FILE: a service file that we install, but for paths, port and user,
# and for IPv6 with the line that stands there for it.
xinetd_conf() {
	sed -e "s|^\([[:blank:]]*server[[:blank:]]*=\) /usr/local/sbin/.*|\1 $POP3|" \
		-e "s|^\([[:blank:]]*server_args[[:blank:]]*=\) -a .*|\1 ${ARGS[*]}|" \
		-e "s|/etc/pop3-handler/stunnel.conf|$T/stunnel.conf|" \
		-e "s|^\([[:blank:]]*user[[:blank:]]*=\).*|\1 $(id -un)|" \
		-e "s|^}|\ttype = UNLISTED\n\tport = $PORT\n\tbind = $ADDRESS\n}|" \
		"$ROOT/xinetd.d/$1" >"$T/xinetd.conf"
	[ "$ADDRESS" != ::1 ] ||
		sed -i 's|^\([[:blank:]]*\)#\(flags[[:blank:]]*= IPv6\)$|\1\2|' "$T/xinetd.conf"
	COMMAND=(xinetd -dontfork -filelog "$T/xinetd.log" -f "$T/xinetd.conf" -pidfile "$T/xinetd.pid")
}

certificate() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
		-keyout "$T/key.pem" -out "$T/cert.pem" -subj /CN=localhost 2>"$T/openssl.log"
	TLS=1
}

# under NAME 4|6|mapped [ARG...]: alice's and bob's maildrops on $PORT of $ADDRESS,
# which is $AT in other words, for a client at $CALLER. $LOG is where lines have
# to go: to the stderr of the superserver, or to syslog where fd 2 is the client.
under() {
	local name=$1 family=$2 at variable
	shift 2
	need socat
	maildrops
	ARGS=(-h pop.example.org -a "$T/users" -m %h/Maildir -m %h/mbox "$@")
	ADDRESS=127.0.0.1 AT=127.0.0.1 CALLER=127.0.0.7 CALLS_FROM=127.0.0.7 LOG=$T/log
	if [ "$family" = 6 ]; then
		grep -q '^0\{31\}1 ' /proc/net/if_inet6 || skip "needs ::1"
		ADDRESS=::1 AT='[::1]' CALLER=::1 CALLS_FROM='[::1]'
	fi
	free_port
	case $name in
	xinetd)
		need xinetd
		LOG=$T/syslog
		xinetd_conf pop3
		;;
	openbsd-inetd)
		need_peer openbsd/usr/sbin/inetd
		LOG=$T/syslog
		echo "$AT:$PORT stream tcp$family nowait $(id -un) $POP3 pop3-handler ${ARGS[*]}" >"$T/inetd.conf"
		COMMAND=(env "LD_LIBRARY_PATH=$PEERS/openbsd/usr/lib/$LIBRARIES:$PEERS/openbsd/lib/$LIBRARIES"
			"$PEERS/openbsd/usr/sbin/inetd" -i "$T/inetd.conf")
		;;
	inetutils-inetd)
		need_peer inetutils/usr/sbin/inetutils-inetd
		LOG=$T/syslog
		echo "$ADDRESS:$PORT stream tcp$family nowait $(id -un) $POP3 pop3-handler ${ARGS[*]}" >"$T/inetd.conf"
		# -d keeps it in the foreground.
		COMMAND=("$PEERS/inetutils/usr/sbin/inetutils-inetd" -d "--pidfile=$T/inetd.pid" "$T/inetd.conf")
		;;
	tcpserver)
		need tcpserver
		COMMAND=(tcpserver -RHl0 "$ADDRESS" "$PORT" "$POP3" "${ARGS[@]}")
		;;
	tcpsvd)
		need tcpsvd
		COMMAND=(tcpsvd -l0 "$ADDRESS" "$PORT" "$POP3" "${ARGS[@]}")
		;;
	systemd)
		need systemd-socket-activate
		at=$AT
		# By default systemd has one socket for both.
		[ "$family" != mapped ] || at='[::ffff:127.0.0.1]'
		COMMAND=(systemd-socket-activate --inetd --accept "--listen=$at:$PORT")
		for variable in ASAN_OPTIONS UBSAN_OPTIONS; do
			COMMAND+=("--setenv=$variable")
		done
		COMMAND+=("$POP3" "${ARGS[@]}")
		;;
	socat)
		need socat
		# Without "nofork" socat stands in between, and tells no address.
		COMMAND=(socat "TCP$family-LISTEN:$PORT,bind=$AT,fork" "EXEC:$POP3 ${ARGS[*]},nofork")
		;;
	stunnel)
		need stunnel4 openssl
		certificate
		cat >"$T/stunnel.conf" <<-END
			cert = $T/cert.pem
			key = $T/key.pem
			foreground = yes
			syslog = no
			[pop3s]
			accept = $ADDRESS:$PORT
			exec = $POP3
			execArgs = pop3-handler ${ARGS[*]}
		END
		COMMAND=(stunnel4 "$T/stunnel.conf")
		;;
	pop3s)
		need xinetd stunnel4 openssl
		certificate
		LOG=$T/syslog
		# What the file says that stunnel.conf must contain.
		sed -n "s|^#\t\([a-zA-Z]* = \)|\1|p" "$ROOT/xinetd.d/pop3s" |
			sed -e "s|-a /etc/.*|${ARGS[*]}|" -e "s|/etc/pop3-handler/|$T/|" \
				-e "s|/usr/local/sbin/pop3-handler|$POP3|" >"$T/stunnel.conf"
		[ -s "$T/stunnel.conf" ]
		xinetd_conf pop3s
		;;
	esac
	begin_syslog
	inside "${COMMAND[@]}" >"$T/log" 2>&1 3>&- &
	PID=$!
	await listens || { cat "$T"/*log >&2; return 1; }
}

# call NAME: what the client NAME is sent for its script.
call() {
	if [ -n "${TLS:-}" ]; then
		timeout 60 openssl s_client -quiet -verify_return_error -CAfile "$T/cert.pem" \
			-connect "$AT:$PORT" -bind "$CALLS_FROM:0" <"$T/$1.script" 2>"$T/$1.tls"
		return
	fi
	socat -t 60 - "TCP:$AT:$PORT,bind=$CALLS_FROM,shut-none" <"$T/$1.script"
}

# both COMMAND...: alice and bob at once, and what they were sent is right.
both() {
	local at=$BATS_FILE_TMPDIR name
	cp "$at"/*.script "$T/"
	for name in alice bob; do
		"$@" $name >"$T/$name.out" 3>&- &
		CALLS+=($!)
	done
	wait "${CALLS[@]}"
	for name in alice bob; do
		same "$at/$name" "$T/$name.out"
	done
	diff -r "$at/after/alice/Maildir/cur" "$T/alice/Maildir/cur"
	[ -z "$(ls "$T/alice/Maildir/new")" ]
	cmp "$at/after/bob/mbox" "$T/bob/mbox"
}

# What FILE has of our lines, in the order of the users.
lines() {
	sed -n 's/^\(<2[123]>... .. ..:..:.. \)\?pop3-handler\[[0-9]*\]: //p' "$1" |
		grep -v '^event=cage ' | sed 's/ seconds=[0-9]*$//' | sort -s -k 3,3
}

# The log of both sessions, with this address.
told() {
	local name maildrop
	for name in alice bob; do
		maildrop=Maildir
		[ $name = alice ] || maildrop=mbox
		printf "event=refused addr=$1 user=$name reason=credentials\n"
		printf "event=login addr=$1 user=$name maildrop=$T/$name/$maildrop\n"
		printf "event=end addr=$1 user=$name reason=quit retrieved=$COUNT deleted=1 left=$((COUNT - 1)) octets=%d\n" \
			"$(sed -n '/^+OK welcome/,$p' "$BATS_FILE_TMPDIR/$name" | wc -c)"
	done
}

# log_is ADDRESS: $LOG has the lines of both sessions with it, and nothing else
# has any.
log_is() {
	local other=$T/syslog
	[ "$LOG" = "$other" ] && other=$T/log
	[ -n "${SYSLOG:-}" ] || [ "$LOG" = "$T/log" ] ||
		skip "the dialogue is right, but to see syslog needs root and mounts (unshare -m)"
	await eval "[ \$(grep -c event=end '$LOG') = 2 ]" || cat "$LOG" >&2
	{
		told "$1"
		[ "$LOG" = "$T/log" ] || printf "event=connect addr=$1 user=- host=pop.example.org\n%.0s" 1 2
	} | sort -s -k 3,3 >"$T/lines"
	diff "$T/lines" <(lines "$LOG") >&2
	[ ! -e "$other" ] || no grep 'pop3-handler\[' "$other"
}

serves() {
	under "$@"
	both call
	log_is "$CALLER"
}

@test "the dialogue, the mail and the log are right under xinetd, over IPv4" { serves xinetd 4; }

@test "the dialogue, the mail and the log are right under xinetd, over IPv6" { serves xinetd 6; }

@test "the dialogue, the mail and the log are right under openbsd-inetd, over IPv4" { serves openbsd-inetd 4; }

@test "the dialogue, the mail and the log are right under openbsd-inetd, over IPv6" { serves openbsd-inetd 6; }

@test "the dialogue, the mail and the log are right under inetutils-inetd, over IPv4" { serves inetutils-inetd 4; }

@test "the dialogue, the mail and the log are right under inetutils-inetd, over IPv6" { serves inetutils-inetd 6; }

@test "the dialogue, the mail and the log are right under tcpserver, over IPv4" { serves tcpserver 4; }

@test "the dialogue, the mail and the log are right under tcpsvd, over IPv4" { serves tcpsvd 4; }

@test "the dialogue, the mail and the log are right under systemd-socket-activate, over IPv4" { serves systemd 4; }

@test "the dialogue, the mail and the log are right under systemd-socket-activate, over IPv6" { serves systemd 6; }

@test "the dialogue, the mail and the log are right under systemd-socket-activate, over IPv4 to a socket of IPv6" { serves systemd mapped; }

@test "the dialogue, the mail and the log are right under socat, over IPv4" { serves socat 4; }

@test "the dialogue, the mail and the log are right under socat, over IPv6" { serves socat 6; }

@test "the dialogue, the mail and the log are right under stunnel, over IPv4" { serves stunnel 4; }

@test "the dialogue, the mail and the log are right under stunnel, over IPv6" { serves stunnel 6; }

@test "the dialogue, the mail and the log are right under xinetd and stunnel, over IPv4" { serves pop3s 4; }

@test "the dialogue, the mail and the log are right under xinetd and stunnel, over IPv6" { serves pop3s 6; }

by_pipe() {
	"$POP3" "${ARGS[@]}" <"$T/$1.script" 2>>"$T/log" | cat
}

@test "the dialogue, the mail and the log are right on a pipe" {
	maildrops
	ARGS=(-h pop.example.org -a "$T/users" -m %h/Maildir -m %h/mbox)
	LOG=$T/log
	begin_syslog
	both by_pipe
	log_is local
}

@test "stunnel vouches for no TLS: with -s, passwords are refused behind it" {
	under pop3s 4 -s
	printf 'USER alice\r\nAUTH PLAIN\r\nQUIT\r\n' >"$T/alice.script"
	call alice >"$T/out"
	expect "$HELLO"'-ERR not without TLS\r\n-ERR not without TLS\r\n+OK bye\r\n'
}

# uids PID: real, effective, saved, and of the file system.
uids() {
	sed -n 's/^Uid:[[:blank:]]*//p' "/proc/$1/status" | tr '\t' ' '
}

@test "what the superserver runs as root speaks with the client as nobody, and serves it as the user" {
	need_root
	local line monitor nobody uid=5123
	nobody=$(id -u nobody)
	under tcpserver 4
	sed -i "s/$NOBODY:$NOBODY/$uid:$uid/" "$T/users"
	chown -R $uid:$uid "$T/alice"
	exec 5<>"/dev/tcp/$ADDRESS/$PORT"
	read -r -t 10 line <&5
	monitor=$(pgrep -P "$PID")
	[ "$(uids "$(pgrep -P "$monitor")")" = "$nobody $nobody $nobody $nobody" ]
	printf 'USER alice\r\nPASS secret\r\nSTAT\r\n' >&5
	for _ in 1 2 3; do
		read -r -t 10 line <&5
	done
	[[ "$line" == "+OK $COUNT "* ]]
	[ "$(uids "$monitor")" = "$uid $uid $uid $uid" ]
	[ -z "$(pgrep -P "$monitor")" ]
}
