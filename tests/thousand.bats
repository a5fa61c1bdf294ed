#!/usr/bin/env bats
# A thousand sessions at the same time, and what they cost in memory.
load helper

PATH=$PATH:/usr/sbin:/sbin
SESSIONS=1000
# KiB: of all processes together, and what one idle session has to itself (the
# aim is 200; it has not been reached, and this is to notice when it grows).
TOGETHER=$((300 * 1024))
ALONE=240

teardown() {
	exec 7>&- || :
	[ -z "${CLIENT:-}" ] || kill "$CLIENT" 2>/dev/null || :
	[ -z "${PID:-}" ] || pkill -P "$PID" || :
	[ -z "${PID:-}" ] || kill "$PID" 2>/dev/null || :
	wait
}

free_port() {
	while :; do
		PORT=$((20000 + RANDOM % 12000))
		listens || return 0
	done
}

listens() {
	(: 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null
}

# Whether each session is one process: no front is left.
settled() {
	[ "$(pgrep -P "$PID" | wc -l)" = $SESSIONS ] &&
		[ -z "$(pgrep -P "$(pgrep -P "$PID" -d,)")" ]
}

# memory PID...: of these processes, the KiB that they take together (their
# proportional share of what they share), and the most that one has to itself.
memory() {
	local files=("${@/#//proc/}")
	awk 'FNR == 1 { alone = 0 }
		/^Pss:/ { together += $2 }
		/^Private_(Clean|Dirty):/ { alone += $2; if (alone > most) most = alone }
		END { print together, most }' "${files[@]/%//smaps_rollup}"
}

@test "1,000 users have their sessions at the same time: each gets its mail, loses what it deletes, and nothing else" {
	local ids=() pids together alone
	need tcpserver python3
	ulimit -n 2100 || skip "needs 2,100 descriptors (ulimit -n)"
	[ "$(id -u)" != 0 ] || ids=("$NOBODY")
	mkdir "$T/homes"
	"$ROOT/tests/tools/crowd" make "$T/homes" $SESSIONS "${ids[@]}"
	give
	[ "$(id -u)" != 0 ] || chown root "$T/homes/users"
	free_port
	tcpserver -RHl0 -c 1100 -b 1100 127.0.0.1 "$PORT" "$POP3" -h pop.example.org -a "$T/homes/users" \
		-m %h/Maildir -m %h/mbox >"$T/log" 2>&1 3>&- &
	PID=$!
	await listens
	mkfifo "$T/in"
	"$ROOT/tests/tools/crowd" talk "$PORT" $SESSIONS <"$T/in" >"$T/said" 2>"$T/wrong" 3>&- &
	CLIENT=$!
	exec 7>"$T/in"
	# Ten seconds are not enough for them on a busy machine.
	for _ in {1..12}; do
		! await has idle "$T/said" 2>/dev/null || break
	done
	has idle "$T/said"
	await settled
	mapfile -t pids < <(pgrep -P "$PID")
	read -r together alone < <(memory "$PID" "${pids[@]}")
	printf '# %d sessions and tcpserver: %d KiB; the largest session has %d KiB to itself\n' \
		$SESSIONS "$together" "$alone" >&3
	echo go >&7
	wait "$CLIENT" || {
		cat "$T/wrong"
		return 1
	}
	"$ROOT/tests/tools/crowd" look "$T/homes" $SESSIONS
	await eval "[ \$(grep -c 'reason=quit retrieved=3 deleted=1 left=2 ' '$T/log') = $SESSIONS ]"
	[ "$together" -le $TOGETHER ]
	[ "$alone" -le $ALONE ]
}
