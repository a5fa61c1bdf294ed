#!/usr/bin/env bats
# The change of user: it is complete, or there is no session.
load helper

PERM='Operation not permitted'

# became EXPECTED AS UID GID KEPT: what sandbox_become() says to them, started
# by AS.
became() {
	local expected=$1 by=$2
	shift 2
	[ "$(${by:+setpriv --reuid=$by --regid=$by --clear-groups} "$T/bin/become" "$@")" = "$expected" ]
}

# users: alice, with one message.
users() {
	printf 'alice:{PLAIN}secret:12345:12346::%s::\n' "$T" >"$T/users"
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
	chown -R 12345:12346 "$T/M"
}

@test "nobody becomes uid 0, and only root becomes another" {
	cp "$ROOT/tests/tools/become" "$T/bin"
	became "$PERM" '' 0
	became "$PERM" '' 0 0 0
	need_root
	became "$PERM" 12345 0
	became "$PERM" 12345 12346
	became "$PERM" 12345 12345 12346
	became "$PERM" 12345 12346 12345
	became "done" 12345 12345 12345
	became "done" '' 12345 12346 12346
	became "done" '' 12345 12346 8
}

@test "where any part of the change of user fails, or only seems to succeed, there is no session" {
	need_root
	need strace
	users
	local call
	for call in setgroups:error=EPERM setgroups:retval=0 \
		setresgid:error=EPERM setresgid:retval=0 \
		setresuid:error=EPERM setresuid:retval=0 \
		getresuid:error=EFAULT getresgid:error=EFAULT getgroups:error=EPERM setuid:retval=0; do
		echo "$call" >&2
		(cd "$T" && printf 'RETR 1\r\nQUIT\r\n' | setpriv --groups 4 bin/dialogue \
			strace -o trace -e inject="$call" "$POP3" -P -h pop.example.org -m M >out 2>log) || :
		lacks 'A: b' "$T/out"
		logged 'cannot become the owner of the maildrop'
		# The front, too, becomes another: only the monitor is traced.
		(cd "$T" && printf 'USER alice\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n' | setpriv --groups 4 bin/dialogue \
			strace -o trace -e inject="$call" "$POP3" -h pop.example.org -a users -m %h/M >out 2>log) || :
		expect "$HELLO"'+OK now the password\r\n-ERR [SYS/PERM] the maildrop cannot be used\r\n'
		logged 'cannot become the user'
	done
}

@test "a front that cannot become nobody, or would outlive its monitor, says nothing" {
	need_root
	need strace
	users
	local call
	for call in setgroups:error=EPERM setresgid:retval=0 setresuid:retval=0 \
		prctl:error=EINVAL:when=1 getppid:retval=1; do
		echo "$call" >&2
		(cd "$T" && printf 'QUIT\r\n' | bin/dialogue \
			strace -f -o trace -e inject="$call" "$POP3" -h pop.example.org -a users -m %h/M >out 2>log) || :
		expect ''
		logged 'event=end'
	done
}

@test "a session that cannot take on the group of its spool makes no dotlock, and says so" {
	need_root
	need strace
	getent group mail >/dev/null || skip "needs a group mail"
	mkdir "$T/spool" "$T/home"
	printf '%s\nA: b\n\nx\n\n' "$FROM" >"$T/spool/alice"
	chown 12345:12346 "$T/home"
	chown 12345:mail "$T/spool/alice"
	chgrp mail "$T/spool"
	chmod 2775 "$T/spool"
	printf 'alice:{PLAIN}secret:12345:12346::%s::\n' "$T/home" >"$T/users"
	# The first one is the change of user.
	(cd "$T" && printf 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' | bin/dialogue \
		strace -o trace -e inject=setresgid:error=EPERM:when=2+ \
		"$POP3" -h pop.example.org -a users -m "$T/spool/%u" >out 2>log)
	has '+OK 1 11' "$T/out"
	logged 'no place for a dotlock beside it'
	[ "$(ls -A "$T/spool")" = alice ]
}
