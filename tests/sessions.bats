#!/usr/bin/env bats
# Whole sessions, of which every system call fails once, and every allocation:
# tests/faults/sessions.py does it, and says at its top what must hold whatever
# fails.
load helper

PATH=$PATH:/usr/sbin:/sbin
USER_ID=5123

# sweep MAILDROP LOGIN [OPTION...]
sweep() {
	local maildrop=$1 login=$2 as=()
	shift 2
	need strace python3
	[ "$login" = none ] || need_root
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	cp "$ROOT"/tests/tools/checkpassword "$ROOT/tests/faults/sessions.py" "$T/bin/"
	chmod -R a+rX "$T/bin"
	mkdir "$T/work"
	[ "$(id -u)" != 0 ] || chown $USER_ID:$USER_ID "$T/work"
	[ "$login" != system ] || as=(the_system)
	status=0
	"${as[@]}" python3 "$T/bin/sessions.py" -d "$T/work" "$@" "$POP3" "$maildrop" "$login" \
		>"$T/said" 2>&1 3>&- || status=$?
	head -n 1 "$T/said" | sed 's/^/# /' >&3
	[ "$status" = 0 ] || head -n 40 "$T/said"
	[ "$status" = 0 ]
}

# With the user pop3-fault, whose password is "secret".
the_system() {
	need_mounts
	need openssl
	{
		cat /etc/passwd
		printf 'pop3-fault:x:%d:%d::%s:/bin/sh\n' $USER_ID $USER_ID "$T/work"
	} >"$T/passwd"
	{
		cat /etc/shadow
		printf 'pop3-fault:%s:19000:0:99999:7:::\n' "$(openssl passwd -6 secret)"
	} >"$T/shadow"
	chmod 600 "$T/shadow"
	# shellcheck disable=SC2016
	unshare -m --propagation private sh -ec '
		mount --bind "$0/passwd" /etc/passwd
		mount --bind "$0/shadow" /etc/shadow
		exec "$@"' "$T" "$@"
}

# allocations MAILDROP LOGIN
allocations() {
	need cc
	cc -std=c11 -D_GNU_SOURCE -O2 -fPIC -shared -o "$T/bin/fail-alloc.so" \
		"$ROOT/tests/tools/fail-alloc.c" -ldl
	sweep "$@" -p "$T/bin/fail-alloc.so"
}

@test "whichever call fails in a session of an mbox, it ends or goes on, and nothing is lost" {
	sweep mbox none
}

@test "the same of a Maildir" {
	sweep maildir none
}

@test "the same of a login by the accounts file, mbox" {
	sweep mbox file
}

@test "the same of a login by the accounts file, Maildir" {
	sweep maildir file
}

@test "the same of a login by a program" {
	need perl
	sweep maildir program
}

@test "the same of a login by the system's accounts" {
	sweep mbox system
}

@test "whichever allocation fails in a session of an mbox, it ends or goes on, and nothing is lost" {
	allocations mbox none
}

@test "the same of a Maildir's allocations" {
	allocations maildir none
}

@test "the same of the allocations in a login by the accounts file" {
	allocations mbox file
}

@test "the same of the allocations in a login by a program" {
	need perl
	allocations mbox program
}

@test "the same of the allocations in a login by the system's accounts" {
	allocations maildir system
}
