#!/usr/bin/env bats
# tests/conformance --peers: ours beside the POP3 servers of Debian, which
# tests/tools/peers fetches; PEERS says where they are.
load helper

PEERS=${PEERS:-$ROOT/tests/peers}

@test "of all servers in one table, ours alone does nothing wrong" {
	need_root
	need python3 useradd userdel chpasswd
	local program server
	for program in dovecot/usr/lib/dovecot/pop3 courier/usr/lib/courier/courier/courierpop3d \
		popa3d/usr/sbin/popa3d mailutils/usr/sbin/pop3d solid/usr/sbin/solid-pop3d; do
		"${AS[@]}" test -x "$PEERS/$program" ||
			skip "needs $PEERS/$program, readable for all: tests/tools/peers DIR, and PEERS=DIR"
	done
	status=0
	"$ROOT/tests/conformance" --peers "$PEERS" >"$T/said" 2>&1 3>&- || status=$?
	cat "$T/said" >&2
	[ "$status" = 0 ]
	no grep -q 'left out' "$T/said"
	# NUMBER  NAME, ...: COUNT ok, COUNT failed, ...
	sed -n 's/^[0-9]  \(.*\): \([0-9]*\) ok, \([0-9]*\) failed, .* \([0-9]*\) not checked$/\1: \2 \3 \4/p' \
		"$T/said" >"$T/columns"
	[ "$(wc -l <"$T/columns")" = 9 ]
	# Each was greeted and served: most items are right everywhere.
	awk -F': ' '{ split($2, n, " ") } n[1] < 50 || n[3] != 0 { exit 1 }' "$T/columns"
	awk -F': ' '/^pop3-handler/ { split($2, n, " "); ours++ } /^pop3-handler/ && n[2] != 0 { exit 1 }
		END { exit ours != 2 }' "$T/columns"
	for server in dovecot courier popa3d mailutils solid-pop3d; do
		grep -q "^$server, .*: [0-9]* [1-9][0-9]* 0$" "$T/columns"
	done
	# Nothing of it is left in the system.
	no grep -q '^pop3-conf' /etc/passwd
	no ls /var/mail/pop3-conf*
}
