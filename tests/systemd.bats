#!/usr/bin/env bats
# The units for systemd: what systemd-analyze says of them; what they take away
# is more than the program needs; and both under a systemd that is booted for it.
# shellcheck disable=SC2046
load helper

PATH=$PATH:/usr/sbin:/sbin
UNIT=$ROOT/systemd/pop3@.service
USER_ID=5123

# set_to KEY: what the unit has there.
set_to() {
	sed -n "s/^$1=//p" "$UNIT"
}

@test "systemd-analyze finds nothing wrong with the units" {
	need systemd-analyze
	cp "$ROOT/systemd/pop3.socket" "$T/"
	sed "s|/usr/local/sbin/pop3-handler|$POP3|" "$UNIT" >"$T/pop3@.service"
	# It may have found something in the system's own units, too.
	systemd-analyze verify --man=no "$T/pop3.socket" "$T/pop3@.service" >"$T/found" 2>&1
	cat "$T/found"
	lacks pop3 "$T/found"
}

@test "systemd-analyze calls the exposure of the service OK" {
	need systemd-analyze
	# The threshold is in tenths; from 5.0 on it is MEDIUM.
	systemd-analyze security --no-pager --offline=true --threshold=49 "$UNIT" >"$T/rated"
	tail -n 1 "$T/rated"
	grep -q 'Overall exposure level for .*: [0-4]\.[0-9] OK' "$T/rated"
}

# Three accounts, each with messages 1 and 2: alice with a Maildir, bob with an
# mbox in a spool of the group mail, and carol, whom a checkpassword program
# knows.
accounts() {
	local name
	need_mounts
	need setpriv perl
	getent group mail >/dev/null || skip "needs a group mail"
	maildir alice/Maildir
	printf 'A: 1\n\nx\n' >"$T/alice/Maildir/cur/1.h:2,"
	printf 'A: 2\n\nx\n' >"$T/alice/Maildir/cur/2.h:2,"
	mkdir "$T/bob" "$T/spool"
	printf '%s\nA: 1\n\nx\n\n%s\nA: 2\n\nx\n\n' "$FROM" "$FROM" >"$T/spool/bob"
	cp -r "$T/alice" "$T/carol"
	for name in alice bob; do
		echo "$name:{PLAIN}secret:$USER_ID:$USER_ID::$T/$name::" >>"$T/users"
		chown -R $USER_ID:$USER_ID "$T/$name"
	done
	chown -R $USER_ID:$USER_ID "$T/carol"
	chown root:mail "$T/spool"
	chown $USER_ID:mail "$T/spool/bob"
	chmod 2775 "$T/spool"
	chmod 660 "$T/spool/bob"
	chown root "$T"
	echo "carol:secret:$USER_ID:$USER_ID:$T/carol" >"$T/checked"
	chmod 600 "$T/users" "$T/checked"
	cp "$ROOT/tests/tools/checkpassword" "$T/bin/"
}

# session NAME COMMAND...: the name's session of the program that the unit runs,
# by COMMAND; true if it is as it has to be, and the log has no complaint.
session() {
	local name=$1 start
	shift
	start=$(set_to ExecStart | sed "s|/usr/local/sbin/pop3-handler|$POP3|;s|/etc/pop3-handler/users|$T/users|")
	[ "$name" != carol ] ||
		start="$POP3 -c $(printf '%q' "$T/bin/checkpassword $T/checked")"
	printf 'USER %s\r\nPASS secret\r\nSTAT\r\nDELE 1\r\nQUIT\r\n' "$name" |
		timeout "${PATIENCE:-60}" "$T/bin/dialogue" -t tcp unshare -m sh -ec '
			mount --bind "$0/spool" /var/mail
			umask '"$(set_to UMask)"'
			exec "$@"' "$T" "$@" sh -c "exec $start -h pop.example.org" >"$T/out" 2>"$T/log"
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 2 22\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n' &&
		logged "event=end addr=127.0.0.1 user=$name reason=quit " &&
		no grep -E 'event=(error|warning)' "$T/log"
}

# bounded CAPABILITY...: the command before the program, for `session`.
bounded() {
	local capability bounding=-all
	for capability; do
		bounding+=,+${capability#cap_}
	done
	BOUNDED=(setpriv --bounding-set="$bounding" --no-new-privs)
}

capabilities() {
	set_to CapabilityBoundingSet | tr '[:upper:]' '[:lower:]'
}

@test "a Maildir, a spool and a checkpassword program are served with no more capabilities than the service has" {
	accounts
	[ "$(set_to NoNewPrivileges)" = yes ]
	bounded $(capabilities)
	local name
	for name in alice bob carol; do
		session $name "${BOUNDED[@]}"
	done
}

@test "without any one of its capabilities the service does not serve as it should" {
	accounts
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	local capability
	[ "$(capabilities)" = 'cap_setuid cap_setgid cap_sys_chroot cap_kill' ]
	for capability in $(capabilities); do
		bounded $(capabilities | tr ' ' '\n' | grep -vx "$capability")
		# Without the last the monitor waits for its front for ever.
		[ "$capability" != cap_kill ] || PATIENCE=3
		no session alice "${BOUNDED[@]}" 2>/dev/null
		cp "$T/out" "$T/out.$capability"
		cp "$T/log" "$T/log.$capability"
	done
	[ ! -s "$T/out.cap_setuid" ]
	[ ! -s "$T/out.cap_setgid" ]
	has 'text="no empty root: ' "$T/log.cap_sys_chroot"
	has '+OK now the password' "$T/out.cap_kill"
	lacks '+OK welcome' "$T/out.cap_kill"
}

@test "the program makes no system call, socket or memory that the service forbids" {
	accounts
	need strace systemd-analyze
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	local name
	for name in alice bob carol; do
		session $name strace -f -qq -o "$T/calls.$name"
	done
	allowed $(set_to SystemCallFilter) | sort -u >"$T/allowed"
	# What comes before is of sh and strace.
	cat "$T"/calls.* | sed -n 's/^[0-9]* *\([a-z0-9_]*\)(.*/\1/p' | sort -u >"$T/called"
	[ "$(wc -l <"$T/called")" -gt 40 ]
	[ -z "$(comm -13 "$T/allowed" "$T/called" | tee /dev/stderr)" ]
	grep -hoE 'socket(pair)?\(AF_[A-Z0-9]+' "$T"/calls.* | sed 's/.*(//' | sort -u >"$T/families"
	[ "$(cat "$T/families")" = "$(set_to RestrictAddressFamilies)" ]
	no grep -hE '^[0-9]* *m(map|protect)\(.*PROT_WRITE\|PROT_EXEC' "$T"/calls.*
}

# allowed WORD...: the system calls of a SystemCallFilter.
allowed() {
	local word
	for word; do
		case $word in
		@*) allowed $(systemd-analyze --no-pager syscall-filter "$word" | sed '1d;s/#.*//') ;;
		*) echo "$word" ;;
		esac
	done
}

# machine: what `booted` makes of a systemd for the accounts, in $T/machine. carol
# has a service of her own, on port 1110.
machine() {
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	need systemctl ip nsenter
	accounts
	local at=$T/machine
	mkdir -p "$at/units/sockets.target.wants"
	mv "$T/bin" "$at/sbin"
	ln -s machine/sbin "$T/bin"
	mkdir "$at/home"
	mv "$T"/{alice,bob,carol,checked} "$at/home/"
	sed "s|$T|/home|" "$T/users" >"$at/home/users"
	sed -i "s|$T|/home|" "$at/home/checked"
	chmod 600 "$at"/home/{users,checked}
	mv "$T/spool" "$at/mail"
	cp "$ROOT/systemd/pop3.socket" "$at/units/"
	sed 's|/etc/pop3-handler/|/home/|;s|^ExecStart=.*|& -h pop.example.org|' "$UNIT" >"$at/units/pop3@.service"
	sed 's/ListenStream=110/ListenStream=1110/' "$at/units/pop3.socket" >"$at/units/checked.socket"
	sed 's|-a /home/users|-c "/usr/local/sbin/checkpassword /home/checked"|' "$at/units/pop3@.service" >"$at/units/checked@.service"
	ln -s ../{pop3,checked}.socket "$at/units/sockets.target.wants/"
}

# boot COMMAND: what bash does with it in that machine goes to $T/out.
boot() {
	machine
	status=0
	timeout 120 "$ROOT/tests/tools/booted" "$T/machine" bash -ec "$1" >"$T/out" 2>"$T/errors" 3>&- || status=$?
	cat "$T/errors" >&2
	[ "$status" != 99 ] || skip "needs to boot a systemd: $(tail -n 1 "$T/errors")"
	[ "$status" = 0 ]
}

@test "under systemd a Maildir, a spool and a checkpassword program are served, and the journal has the client" {
	local name
	boot '
		session() {
			exec 5<>"/dev/tcp/$2/$3"
			printf "USER $1\r\nPASS secret\r\nSTAT\r\nDELE 1\r\nQUIT\r\n" >&5
			timeout 30 cat <&5
		}
		session alice 127.0.0.1 110
		session bob ::1 110
		session carol 127.0.0.1 1110
		until [ "$(journalctl --sync; journalctl -q -o cat -t pop3-handler | grep -c event=end)" = 3 ]; do
			sleep 0.1
		done
		journalctl -q -o cat -t pop3-handler >&2
		systemctl --no-legend --plain list-units "pop3@*" "checked@*" --state=failed'
	cp "$T/errors" "$T/log"
	for name in 1 2 3; do
		printf "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 2 22\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	done >"$T/expected"
	same "$T/expected" "$T/out"
	logged 'event=login addr=127.0.0.1 user=alice maildrop=/home/alice/Maildir'
	logged 'event=login addr=::1 user=bob maildrop=/var/mail/bob'
	logged 'event=login addr=127.0.0.1 user=carol maildrop=/home/carol/Maildir'
	no grep -E 'event=(error|warning)' "$T/log"
}

@test "under systemd one address has 20 sessions and no more, and no rush closes the port for good" {
	boot '
		for n in {1..20}; do
			exec {fd[n]}<>/dev/tcp/127.0.0.1/110
			read -r -t 30 line <&${fd[n]}
			[[ "$line" == "+OK pop.example.org pop3-handler ready"* ]]
		done
		exec 5<>/dev/tcp/127.0.0.1/110
		[ -z "$(timeout 30 cat <&5)" ]
		# By default this would be too many in two seconds.
		for n in {1..400}; do
			exec 5<>/dev/tcp/127.0.0.1/110
		done
		for n in {1..20}; do
			exec {fd[n]}>&-
		done
		line=
		until [ -n "$line" ]; do
			sleep 0.1
			exec 5<>/dev/tcp/127.0.0.1/110
			read -r -t 30 line <&5 || line=
		done
		echo "$line"'
	expect "$HELLO"
}
