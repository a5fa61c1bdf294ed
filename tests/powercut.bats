#!/usr/bin/env bats
# What a disk may hold of an mbox and its journal after a power cut, and what
# the next session makes of it. tests/powercut/powercut.py does it, and says at
# its top how. POWERCUT has more options for it: --full (many minutes).
load helper

# cuts [ARG...]: cuts everywhere, and prints what was covered.
cuts() {
	need strace python3
	status=0
	# shellcheck disable=SC2086
	python3 "$ROOT/tests/powercut/powercut.py" --program "$POP3" ${POWERCUT:-} "$@" \
		>"$T/said" 2>&1 3>&- || status=$?
	tail -n 1 "$T/said" | sed 's/^/# /' >&3
	[ "$status" = 0 ] || cat "$T/said"
	[ "$status" = 0 ]
}

@test "a power cut at any operation of UPDATE or of recovery loses and doubles no message" {
	cuts --small
}

@test "neither does one while an mbox is moved in several steps of 8 MiB" {
	cuts 'three steps'
}
