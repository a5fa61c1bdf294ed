#!/usr/bin/env bats
# What the processes of a connection may do: front and session are seen from
# outside in /proc, and made to try from inside.
load helper

PATH=$PATH:/usr/sbin:/sbin
USER_ID=5123
GROUP_ID=5124

# An account of the system, and a spool, that are there for what `inside` runs
# and for nothing else of the machine. That has groups to give up, and no
# descriptors above 2.
a_system() {
	need_mounts
	need unshare setpriv openssl tcpserver
	getent group mail >/dev/null || skip "needs a group mail"
	MAIL_GID=$(getent group mail | cut -d: -f3)
	mkdir "$T/home" "$T/spool" "$T/dev" "$T/other"
	{
		cat /etc/passwd
		printf 'pop3-alice:x:%d:%d::%s:/bin/sh\n' $USER_ID $GROUP_ID "$T/home"
	} >"$T/passwd"
	{
		cat /etc/shadow
		printf 'pop3-alice:%s:19000:0:99999:7:::\n' "$(openssl passwd -6 secret)"
	} >"$T/shadow"
	chmod 600 "$T/shadow"
	touch "$T/dev/null" "$T/dev/urandom"
	chown 0:"$MAIL_GID" "$T/spool"
	chmod 2775 "$T/spool"
	printf '%s\nA: secret\n\nof another user\n\n' "$FROM" >"$T/other/mbox"
	chmod 644 "$T/other/mbox"
	mkdir -m 777 "$T/other/open"
	give_alice
}

give_alice() {
	chown -R $USER_ID:$GROUP_ID "$T/home"
}

inside() {
	local fd
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		[ "$fd" -le 2 ] || eval "exec $fd>&-"
	done
	# shellcheck disable=SC2016
	exec unshare -m --propagation private sh -ec '
		mount --bind "$0/passwd" /etc/passwd
		mount --bind "$0/shadow" /etc/shadow
		mount --bind "$0/spool" /var/mail
		mount --bind /dev/null "$0/dev/null"
		mount --bind /dev/urandom "$0/dev/urandom"
		mount --rbind "$0/dev" /dev
		exec setpriv --groups=4,'"$MAIL_GID"' "$@"' "$T" "$@"
}

# The two kinds of maildrop, each with messages 1, 2 and 3.
a_maildir() {
	local n
	maildir home/Maildir
	for n in 1 2 3; do
		printf 'A: %d\n\ntext\n' "$n" >"$T/home/Maildir/new/$n.h"
	done
	give_alice
}

a_spool() {
	local n
	for n in 1 2 3; do
		printf '%s\nA: %d\n\ntext\n\n' "$FROM" "$n"
	done >"$T/spool/pop3-alice"
	cp "$T/other/mbox" "$T/spool/pop3-bob"
	chown $USER_ID:"$MAIL_GID" "$T/spool/pop3-alice"
	chown 5200:"$MAIL_GID" "$T/spool/pop3-bob"
	chmod 660 "$T"/spool/*
}

# A syslog daemon: what comes to /dev/log stands in $T/syslog, a line each.
begin_syslog() {
	need python3
	rm -f "$T/dev/log"
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

end_all() {
	local pid
	exec 5>&- 6>&- || :
	for pid in "${PID:-}" "${SYSLOG:-}"; do
		[ -z "$pid" ] || kill "$pid" 2>/dev/null || :
		[ -z "$pid" ] || wait "$pid" 2>/dev/null || :
	done
	PID='' SYSLOG=''
}

teardown() {
	end_all
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

# under xinetd|tcpserver|inetd [ARG...]: the system's users on $PORT. The last
# is tcpserver with the client on fd 2, too; $VIA is a command in between.
under() {
	local how=$1
	shift
	need "${how/#inetd/tcpserver}"
	free_port
	case $how in
	xinetd)
		sed -e "s|^\(.*[[:blank:]]server[[:blank:]]*=\).*|\1 $POP3|" \
			-e "s|^\(.*server_args[[:blank:]]*=\).*|\1 -h pop.example.org $*|" \
			-e "s|^\(.*protocol[[:blank:]]*=.*\)|\1\n\ttype = UNLISTED\n\tport = $PORT\n\tbind = 127.0.0.1|" \
			"$ROOT/xinetd.d/pop3" >"$T/xinetd.conf"
		inside xinetd -dontfork -filelog "$T/xinetd.log" -f "$T/xinetd.conf" \
			-pidfile "$T/xinetd.pid" >"$T/log" 2>&1 &
		;;
	tcpserver)
		inside tcpserver -RHl0 127.0.0.1 "$PORT" \
			"$POP3" -h pop.example.org "$@" >"$T/log" 2>&1 &
		;;
	inetd)
		# shellcheck disable=SC2016,SC2086 # another shell's; VIA is words
		inside tcpserver -RHl0 127.0.0.1 "$PORT" sh -c 'exec "$@" 2>&1' sh ${VIA:-} \
			"$POP3" -h pop.example.org "$@" >"$T/log" 2>&1 &
		;;
	esac
	PID=$!
	await listens
	await childless
}

childless() {
	[ -z "$(pgrep -P "$PID")" ]
}

# A connection on fd 5: `call` has the greeting, $MONITOR and $FRONT; `ask LINE`
# says it and has the first line of the reply in $REPLY.
call() {
	await childless
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	hear
	MONITOR=$(pgrep -P "$PID")
	FRONT=$(pgrep -P "$MONITOR")
	[ -n "$FRONT" ]
}

hear() {
	IFS= read -r -t 40 REPLY <&"${1:-5}"
	REPLY=${REPLY%$'\r'}
	[ -n "$REPLY" ]
}

ask() {
	printf '%s\r\n' "$1" >&"${2:-5}"
	hear "${2:-5}"
}

enter() {
	ask 'USER pop3-alice'
	ask 'PASS secret'
	[ "$REPLY" = '+OK welcome' ]
	ask STAT
}

# status PID KEY: what /proc says, with single blanks.
status_of() {
	sed -n "s/^$2:[[:blank:]]*//p" "/proc/$1/status" | tr -s '\t ' ' ' | sed 's/ $//'
}

limit_of() {
	sed -n "s/^Max $2  *\([^ ]*\)  *\([^ ]*\) .*/\1 \2/p" "/proc/$1/limits"
}

descriptors() {
	find "/proc/$1/fd" -type l -printf '%f %l\n'
}

front_is_caged() {
	local uid gid
	uid=$(id -u nobody)
	gid=$(id -g nobody)
	[ "$(status_of "$FRONT" Uid)" = "$uid $uid $uid $uid" ]
	[ "$(status_of "$FRONT" Gid)" = "$gid $gid $gid $gid" ]
	[ "$(status_of "$FRONT" Groups)" = '' ]
	[ "$(status_of "$FRONT" NoNewPrivs)" = 1 ]
	[ "$(status_of "$FRONT" Seccomp)" = 2 ]
	[ "$(limit_of "$FRONT" 'core file size')" = '0 0' ]
	[ "$(limit_of "$FRONT" processes)" = '0 0' ]
	[ "$(limit_of "$FRONT" 'file size')" = '0 0' ]
	[[ "$(readlink "/proc/$FRONT/root")" == *' (deleted)' ]]
	[ -z "$(ls -A "/proc/$FRONT/root")" ]
	# The client, the log, and the monitor.
	descriptors "$FRONT" >"$T/fds"
	cat "$T/fds" >&2
	[ "$(grep -c '^[012] ' "$T/fds")" = 3 ]
	[ "$(grep -c -v '^[012] ' "$T/fds")" = 1 ]
	grep -v '^[012] ' "$T/fds" | grep -q ' socket:'
}

# session_is_caged SAVED-GID
session_is_caged() {
	[ "$(status_of "$MONITOR" Uid)" = "$USER_ID $USER_ID $USER_ID $USER_ID" ]
	[ "$(status_of "$MONITOR" Gid)" = "$GROUP_ID $GROUP_ID $1 $GROUP_ID" ]
	[ "$(status_of "$MONITOR" Groups)" = '' ]
	[ "$(status_of "$MONITOR" NoNewPrivs)" = 1 ]
	[ "$(status_of "$MONITOR" Seccomp)" = 2 ]
	[ "$(limit_of "$MONITOR" 'core file size')" = '0 0' ]
	[ "$(limit_of "$MONITOR" processes)" = '0 0' ]
	# The front is gone. Client, log, and what is the user's.
	[ -z "$(pgrep -P "$MONITOR")" ]
	descriptors "$MONITOR" >"$T/fds"
	cat "$T/fds" >&2
	[ "$(grep -c -v "^[012] \| $T/home\| $T/spool\| /var/mail" "$T/fds")" = "${2:-0}" ]
}

make_tools() {
	MAKE_CALL=$ROOT/tests/tools/make-call
}

# tries PID RESULT CALL [ARG...]: made to make the call, it has that result.
tries() {
	local pid=$1 expected=$2 result
	shift 2
	result=$("$MAKE_CALL" "$pid" "$@")
	# shellcheck disable=SC2053 # it may be a pattern
	[[ "$result" == $expected ]] || {
		echo "$*: $result, not $expected" >&2
		return 1
	}
}

AT=-100 # AT_FDCWD
WRITING=1
CREATING=0101 # octal, with O_WRONLY

@test "a user of the system logs in under xinetd and tcpserver; the front is nobody in an empty root, the session the user, and both are caged" {
	a_system
	a_maildir
	local server
	for server in tcpserver xinetd; do
		begin_syslog
		under $server
		call
		front_is_caged
		enter
		[ "$REPLY" = '+OK 3 42' ]
		# Under xinetd there is the socket of the log.
		session_is_caged $GROUP_ID "$([ $server = tcpserver ] && echo 0 || echo 1)"
		ask 'DELE 1'
		ask QUIT
		[ "$REPLY" = '+OK 1 deleted' ]
		await childless
		[ "$(find "$T/home/Maildir/new" "$T/home/Maildir/cur" -name '*.h*' | wc -l)" = 2 ]
		end_all
		rm -rf "$T/home/Maildir"
		a_maildir
	done
}

@test "in a spool of the group mail the session can take that group on, and has no other" {
	a_system
	local server
	for server in tcpserver xinetd; do
		a_spool
		begin_syslog
		under $server
		call
		front_is_caged
		enter
		[ "$REPLY" = '+OK 3 42' ]
		session_is_caged "$MAIL_GID" "$([ $server = tcpserver ] && echo 0 || echo 1)"
		[ "$(ls -A "$T/spool")" = "$(printf '.pop3-alice.pop3-lock\npop3-alice\npop3-bob')" ]
		ask 'DELE 1'
		ask QUIT
		[ "$REPLY" = '+OK 1 deleted' ]
		await childless
		[ "$(grep -c '^From ' "$T/spool/pop3-alice")" = 2 ]
		[ "$(ls -A "$T/spool")" = "$(printf 'pop3-alice\npop3-bob')" ]
		[ "$(ls -A "$T/home")" = .pop3-handler ]
		[ "$(ls -A "$T/home/.pop3-handler")" = .pop3-alice.pop3-state ]
		no grep -q warning "$T/log" "$T/syslog"
		end_all
		rm -r "$T/home/.pop3-handler" "$T"/spool/*
	done
}

@test "a session that an attacker has taken over opens its own mail and nothing else" {
	a_system
	a_maildir
	make_tools
	under tcpserver
	call
	enter
	tries "$MONITOR" '[0-9]*' openat $AT "$T/home/Maildir/new/1.h" 0
	tries "$MONITOR" '[0-9]*' openat $AT "$T/home/Maildir/new/1.h" $WRITING
	local file
	for file in "$T/other/mbox" /etc/passwd /etc/shadow "$T/users" "$POP3" / /tmp "$T/home" /proc/self/mem; do
		[ -e "$file" ] || continue
		tries "$MONITOR" EACCES openat $AT "$file" 0
	done
	tries "$MONITOR" EACCES openat $AT "$T/other/open/file" $CREATING 0600
	tries "$MONITOR" EACCES mkdirat $AT "$T/other/open/directory" 0700
	tries "$MONITOR" EACCES openat $AT "$T/home/.forward" $CREATING 0600
	[ -z "$(ls -A "$T/other/open")" ]
	# Its mail cannot be put where others read it.
	tries "$MONITOR" EACCES linkat $AT "$T/home/Maildir/new/1.h" $AT "$T/other/open/1.h" 0
	tries "$MONITOR" EACCES renameat2 $AT "$T/home/Maildir/new/1.h" $AT "$T/other/open/1.h" 0
	tries "$MONITOR" EPERM symlinkat /etc/passwd $AT "$T/home/Maildir/new/4.h"
	tries "$MONITOR" EPERM fchmodat $AT "$T/home/Maildir/new/1.h" 0666 0
	local call
	for call in 'setuid 0' 'setresuid 0 0 0' 'setgroups 0 0' "setresgid $MAIL_GID $MAIL_GID $MAIL_GID" \
		'setresgid 0 0 0' 'clone 17 0' "kill $PID 9" "kill $$ 0" 'chroot /' 'prctl 22 0' \
		"process_vm_readv $PID 0 0 0 0 0"; do
		# shellcheck disable=SC2086
		tries "$MONITOR" EPERM $call
	done
	# And its own work it does as before.
	ask 'DELE 2'
	ask QUIT
	[ "$REPLY" = '+OK 1 deleted' ]
}

@test "in a shared spool it cannot open the mbox of another user, whatever it does with names" {
	a_system
	a_spool
	make_tools
	under tcpserver
	call
	enter
	# With the group it has every right to that file but those of the cage.
	tries "$MONITOR" 0 setresgid -1 "$MAIL_GID" -1
	tries "$MONITOR" '[0-9]*' openat $AT /var/mail/pop3-alice 0
	tries "$MONITOR" EACCES openat $AT /var/mail/pop3-bob 0
	tries "$MONITOR" EACCES openat $AT /var/mail/pop3-bob $WRITING
	tries "$MONITOR" EACCES openat $AT /var/mail 0
	tries "$MONITOR" EXDEV linkat $AT /var/mail/pop3-bob $AT "$T/home/.pop3-handler/x" 0
	tries "$MONITOR" EXDEV renameat2 $AT /var/mail/pop3-bob $AT "$T/home/.pop3-handler/x" 0
	tries "$MONITOR" 0 renameat2 $AT /var/mail/pop3-alice $AT /var/mail/mine 0
	tries "$MONITOR" 0 renameat2 $AT /var/mail/pop3-bob $AT /var/mail/pop3-alice 0
	tries "$MONITOR" EACCES openat $AT /var/mail/pop3-alice 0
	tries "$MONITOR" EACCES mkdirat $AT /var/mail/directory 0700
	tries "$MONITOR" EACCES openat $AT "$T/other/mbox" 0
	tries "$MONITOR" EACCES openat $AT /etc/passwd 0
	tries "$MONITOR" EPERM setuid 0
	tries "$MONITOR" EPERM setresgid -1 0 -1
}

@test "a Maildir session has given the group mail up" {
	a_system
	a_maildir
	make_tools
	under tcpserver
	call
	enter
	tries "$MONITOR" EPERM setresgid -1 "$MAIL_GID" -1
}

@test "exec, ptrace and new sockets kill front and session, and nothing is removed" {
	a_system
	a_maildir
	make_tools
	under tcpserver
	local call who
	for call in 'execve /bin/true 0 0' "execveat $AT /bin/true 0 0 0" "ptrace 0 0 0 0" \
		'socket 2 1 0' 'socket 1 2 0' 'socketpair 1 1 0 0'; do
		for who in FRONT MONITOR; do
			call
			[ $who = FRONT ] || enter
			[ $who = FRONT ] || ask 'DELE 1'
			# shellcheck disable=SC2086
			tries "${!who}" 'killed by SIGSYS' $call
			# With the front its monitor ends, too.
			await childless
			no hear
		done
	done
	[ "$(find "$T/home/Maildir/new" "$T/home/Maildir/cur" -name '*.h*' | wc -l)" = 3 ]
}

@test "a front that an attacker has taken over can open nothing and become nobody else" {
	a_system
	a_maildir
	make_tools
	under tcpserver
	call
	local call
	for call in "openat $AT /etc/passwd 0" "openat $AT / 0" "openat $AT . 0" "openat $AT .. 0" \
		"openat $AT x $CREATING 0600" "openat $AT $T/other/mbox 0" \
		'setuid 0' 'setresuid 0 0 0' 'setgroups 0 0' 'setresgid 0 0 0' 'clone 17 0' \
		"kill $MONITOR 9" 'chroot ..' 'prctl 4 1' "mkdirat $AT x 0700" \
		"process_vm_readv $MONITOR 0 0 0 0 0"; do
		# shellcheck disable=SC2086
		tries "$FRONT" EPERM $call
	done
	enter
	[ "$REPLY" = '+OK 3 42' ]
}

@test "a syslog daemon that is started anew in the middle of a session gets the rest of its lines" {
	a_system
	a_maildir
	begin_syslog
	under inetd
	call
	enter
	await has 'event=login addr=127.0.0.1 user=pop3-alice' "$T/syslog"
	kill "$SYSLOG"
	wait "$SYSLOG" || :
	rm "$T/syslog"
	begin_syslog
	ask 'DELE 3'
	ask QUIT
	[ "$REPLY" = '+OK 1 deleted' ]
	await has 'event=end addr=127.0.0.1 user=pop3-alice reason=quit retrieved=0 deleted=1 left=2' "$T/syslog"
	# "<" facility mail, priority info ">" date name "[" pid "]:"
	grep -Eq '^<22>[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8} pop3-handler\[[0-9]+\]: event=end ' "$T/syslog"
}

@test "a session without any syslog daemon is served" {
	a_system
	a_maildir
	under inetd
	call
	enter
	ask 'DELE 3'
	ask QUIT
	[ "$REPLY" = '+OK 1 deleted' ]
}

@test "on a kernel without seccomp or Landlock a session is served, and syslog has one line event=cage" {
	need strace
	a_system
	a_maildir
	local n=0 missing seccomp
	local -a lines=('landlock=no seccomp=yes' 'landlock=yes seccomp=no' 'landlock=no seccomp=no')
	# The first prctl is what ends the front with its monitor, or forbids new
	# privileges: both are older than what is missing here.
	seccomp='-e inject=prctl:error=EINVAL:when=2+'
	for missing in '-e inject=landlock_create_ruleset:error=ENOSYS' "$seccomp" \
		"-e inject=landlock_create_ruleset:error=ENOSYS $seccomp"; do
		rm -f "$T/syslog"
		begin_syslog
		VIA="strace -qq -f -o $T/trace $missing" under inetd
		exec 5<>"/dev/tcp/127.0.0.1/$PORT"
		hear
		enter
		[ "$REPLY" = '+OK 3 42' ]
		ask QUIT
		[ "$REPLY" = '+OK 0 deleted' ]
		await has event=end "$T/syslog"
		grep 'event=cage' "$T/syslog" >"$T/lines"
		cat "$T/lines" >&2
		[ "$(wc -l <"$T/lines")" = 1 ]
		# <23>: facility mail, priority debug.
		grep -q "^<23>.* event=cage addr=127.0.0.1 user=pop3-alice ${lines[n]}\$" "$T/lines"
		n=$((n + 1))
		end_all
	done
	rm -f "$T/syslog"
	begin_syslog
	under inetd
	call
	enter
	ask QUIT
	await has event=end "$T/syslog"
	no has event=cage "$T/syslog"
}

@test "make CAGE=0 builds with gcc and clang without a warning, and serves without a cage" {
	need gcc clang make
	a_system
	a_maildir
	local compiler
	for compiler in gcc clang; do
		rm -rf "$T/build"
		mkdir "$T/build"
		cp "$ROOT"/*.[ch] "$ROOT/Makefile" "$T/build/"
		make -s -C "$T/build" CC=$compiler CAGE=0 CFLAGS='-O2 -Werror' LDFLAGS= pop3-handler >"$T/make.log" 2>&1 ||
			{ cat "$T/make.log" >&2; false; }
		[ ! -s "$T/make.log" ]
		cp "$T/build/pop3-handler" "$POP3"
		under tcpserver
		call
		[ "$(status_of "$FRONT" Seccomp)" = 0 ]
		enter
		[ "$REPLY" = '+OK 3 42' ]
		[ "$(status_of "$MONITOR" Seccomp)" = 0 ]
		[ "$(status_of "$MONITOR" Uid)" = "$USER_ID $USER_ID $USER_ID $USER_ID" ]
		ask QUIT
		[ "$REPLY" = '+OK 0 deleted' ]
		end_all
	done
}

@test "in a spool a killed session's .NAME.pop3-lock stays, and the next one uses and removes it" {
	a_system
	a_spool
	under tcpserver
	call
	enter
	kill -9 "$MONITOR"
	await childless
	[ -e "$T/spool/.pop3-alice.pop3-lock" ]
	call
	enter
	ask 'DELE 1'
	ask QUIT
	[ "$REPLY" = '+OK 1 deleted' ]
	await childless
	[ "$(ls -A "$T/spool")" = "$(printf 'pop3-alice\npop3-bob')" ]
	no has warning "$T/log"
}

@test "in a spool a session that is killed while it has NAME.lock keeps the next one waiting for nothing" {
	need strace
	a_system
	a_spool
	VIA="strace -qq -f -o $T/trace -e inject=ftruncate:signal=KILL" under inetd
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	hear
	enter
	printf 'DELE 3\r\nQUIT\r\n' >&5
	await childless
	[ -e "$T/spool/pop3-alice.lock" ]
	end_all
	under tcpserver
	call
	local began=$SECONDS
	enter
	ask 'DELE 1'
	ask QUIT
	[[ "$REPLY" == '+OK 1 deleted' ]]
	[ $((SECONDS - began)) -lt 10 ]
	await childless
	[ "$(ls -A "$T/spool")" = "$(printf 'pop3-alice\npop3-bob')" ]
}

@test "in a spool two sessions that yield to each other both can take NAME.lock afterwards" {
	a_system
	a_spool
	under tcpserver -g 1
	call
	enter
	[ "$REPLY" = '+OK 3 42' ]
	# The second comes in once the first has let go.
	second() {
		exec 6<>"/dev/tcp/127.0.0.1/$PORT"
		hear 6 && ask 'USER pop3-alice' 6 && ask 'PASS secret' 6 && [ "$REPLY" = '+OK welcome' ]
	}
	await second
	ask STAT 6
	[ "$REPLY" = '+OK 3 42' ]
	# Both have to look for their messages under the lock after a delivery.
	deliver() {
		printf '%s\nA: new\n\ntext\n\n' "$FROM" >>"$T/spool/pop3-alice"
	}
	deliver
	sleep 1.5
	ask 'RETR 2'
	[ "$REPLY" = '+OK 14 octets' ]
	sleep 1.5
	ask 'TOP 3 0' 6
	[ "$REPLY" = '+OK top of message follows' ]
	# The first to go leaves the other what it needs.
	exec 6>&-
	await eval "[ \"\$(pgrep -P $PID | wc -l)\" = 1 ]"
	[ -e "$T/spool/.pop3-alice.pop3-lock" ]
	until [ "$REPLY" = . ]; do
		hear || [ -z "$REPLY" ]
	done
	ask 'DELE 3'
	ask QUIT
	[ "$REPLY" = '+OK 1 deleted' ]
	[ "$(grep -c '^From ' "$T/spool/pop3-alice")" = 3 ]
	exec 5>&-
	await childless
	no has warning "$T/log"
	[ "$(ls -A "$T/spool")" = "$(printf 'pop3-alice\npop3-bob')" ]
}
