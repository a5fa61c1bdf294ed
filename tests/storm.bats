#!/usr/bin/env bats
# Deliveries, a mail reader and sessions, many of them killed, over one mbox, all
# at once; see tests/storm. STORM_ROUNDS sets the number of sessions: 40 by
# default, 300 in CI.
load helper

# storm ARG...: runs it as the user who is served.
storm() {
	cp "$ROOT/tests/storm" "$T/bin/"
	mkdir "$T/storm"
	give
	status=0
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 bin/storm \
		"$@" "$POP3" "${STORM_ROUNDS:-40}" storm) >"$T/said" 2>&1 3>&- || status=$?
	grep '^storm:' "$T/said" | sed 's/^/# /' >&3
	[ "$status" = 0 ] || cat "$T/said"
	[ "$status" = 0 ]
}

@test "nothing is lost, double or damaged in a storm of deliveries, sessions and kills" {
	need python3 procmail dotlockfile
	storm -n
}

@test "nor when mutt copies and deletes messages in it as well" {
	need python3 procmail dotlockfile mutt
	storm
}
