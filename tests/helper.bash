# What every test file loads. A test makes its maildrop under $T, runs a
# dialogue, and compares exact bytes.
#
# The program does not serve the network as root, and neither do the tests:
# started by root, they run it as an unprivileged user, who owns $T.
#
# What is set here and seems unused is for the test files.
# shellcheck disable=SC2034

ROOT=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
MAIL=$ROOT/tests/mail
NOBODY=65534
FROM='From sender@example.org Mon Jan  1 00:00:00 2024'
# As the program's libc says it; musl's texts are in a program that it is linked to.
EIO='Input/output error' ELOOP='Too many levels of symbolic links'
! grep -q 'Symbolic link loop' "$ROOT/pop3-handler" || EIO='I/O error' ELOOP='Symbolic link loop'
HELLO='+OK pop.example.org pop3-handler ready\r\n'

# The program is copied to where any user can run it.
setup() {
	T=$BATS_TEST_TMPDIR
	POP3=$T/bin/pop3-handler
	chmod 755 "$BATS_RUN_TMPDIR" "$BATS_RUN_TMPDIR/test" "$T" 2>/dev/null || :
	mkdir "$T/bin"
	cp "$ROOT/pop3-handler" "$ROOT"/tests/tools/{dialogue,crypt-log} "$T/bin/"
	AS=()
	if [ "$(id -u)" = 0 ]; then
		AS=(setpriv --reuid="$NOBODY" --regid="$NOBODY" --clear-groups)
		chown $NOBODY:$NOBODY "$T"
	fi
}

# Nothing that a test has begun outlives it.
teardown() {
	exec 7>&- || :
	[ -z "${PID:-}" ] || kill "$PID" 2>/dev/null || :
	[ -z "${CLIENT:-}" ] || wait "$CLIENT" 2>/dev/null || :
}

# A test that cannot run here says which tool it misses.
need() {
	local tool
	for tool; do
		PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
			skip "needs $tool"
	done
}

need_root() {
	[ "$(id -u)" = 0 ] || skip "needs root"
}

# A mount that nobody else sees; in many a container root may make none.
need_mounts() {
	need_root
	need unshare
	unshare -m true 2>/dev/null || skip "needs to make mounts (unshare -m)"
}

# What a test has made belongs to the user who is served. What does already is
# left alone: a chown would change its ctime.
give() {
	[ "$(id -u)" != 0 ] ||
		find "$T" ! -user $NOBODY -exec chown -h $NOBODY:$NOBODY {} +
}

# no COMMAND...: it fails. A bare "!" would not end a test.
no() {
	! "$@"
}

# maildir NAME: an empty Maildir.
maildir() {
	mkdir -p "$T/$1/cur" "$T/$1/new" "$T/$1/tmp"
}

# mbox NAME FILE...: an mbox of messages, with LF line ends of its own.
mbox() {
	local file to=$T/$1
	shift
	for file; do
		printf '%s\n' "$FROM"
		sed 's/^From />From /' "$file"
		printf '\n'
	done >"$to"
}

# say SCRIPT [ARG...]: sends SCRIPT (a printf format) to a preauthenticated
# session over $VIA (pipe, pair or tcp); the reply goes to $T/out, the log to
# $T/log, the exit status to $status.
say() {
	local script=$1
	shift
	give
	status=0
	# shellcheck disable=SC2059,SC2086 # DIAL is words
	printf "$script" | (cd "$T" && "${AS[@]}" "$T/bin/dialogue" -t "${VIA:-pair}" \
		${DIAL:-} "$POP3" -P -h pop.example.org "$@") \
		>"$T/out" 2>"$T/log" || status=$?
}

# login SCRIPT [ARG...]: the same without -P.
login() {
	local script=$1
	shift
	give
	status=0
	# shellcheck disable=SC2059,SC2086 # DIAL is words
	printf "$script" | (cd "$T" && "${AS[@]}" "$T/bin/dialogue" -t "${VIA:-pair}" \
		${DIAL:-} "$POP3" -h pop.example.org "$@") \
		>"$T/out" 2>"$T/log" || status=$?
}

# begin SCRIPT DIALOGUE-ARGS -- [ARG...]: a session that goes on while the test
# does something; $PID is the program's, `finish` waits for the end.
begin() {
	local script=$1 dial=()
	shift
	while [ "$1" != -- ]; do
		dial+=("$1")
		shift
	done
	shift
	give
	rm -f "$T/pid"
	# shellcheck disable=SC2059
	printf "$script" | (cd "$T" && "${AS[@]}" "$T/bin/dialogue" -t "${VIA:-pair}" \
		-i "$T/pid" "${dial[@]}" "$POP3" -h pop.example.org "$@") \
		>"$T/out" 2>"$T/log" 3>&- &
	CLIENT=$!
	await test -s "$T/pid"
	PID=$(cat "$T/pid")
}

# converse [ARG...]: a session that waits for what `tell` says; `hang_up` ends
# what is said.
converse() {
	give
	rm -f "$T/pid" "$T/in"
	mkfifo "$T/in"
	(cd "$T" && "${AS[@]}" "$T/bin/dialogue" -t "${VIA:-pair}" -i "$T/pid" \
		"$POP3" -h pop.example.org "$@") <"$T/in" >"$T/out" 2>"$T/log" 3>&- &
	CLIENT=$!
	exec 7>"$T/in"
	await test -s "$T/pid"
	PID=$(cat "$T/pid")
	await has +OK "$T/out"
}

# tell SCRIPT: says it and waits until as many replies have come.
tell() {
	local before
	before=$(grep -c '^[+-]' "$T/out")
	# shellcheck disable=SC2059
	printf "$1" >&7
	# shellcheck disable=SC2059
	await eval "[ \$(grep -c '^[+-]' '$T/out') -ge $((before + $(printf "$1" | wc -l))) ]"
}

hang_up() {
	exec 7>&-
	finish
}

finish() {
	status=0
	wait "$CLIENT" || status=$?
}

# await COMMAND...: until it succeeds; ten seconds are more than enough.
await() {
	local i
	for ((i = 0; i < 200; i++)); do
		"$@" 2>/dev/null && return
		sleep 0.05
	done
	echo "waited in vain for: $*" >&2
	return 1
}

has() {
	grep -qF -- "$1" "$2"
}

# "!" before a command would not fail a test.
lacks() {
	! has "$1" "$2"
}

# expect FORMAT: what came back is exactly what printf makes of FORMAT.
expect() {
	# shellcheck disable=SC2059
	printf -- "$1" >"$T/expected"
	same "$T/expected" "$T/out"
}

# same FILE FILE: byte for byte; shows the difference otherwise.
same() {
	cmp -s "$1" "$2" && return
	diff <(od -An -c "$1") <(od -An -c "$2") | head -n 40 >&2
	return 1
}

# logged TEXT: a line of the log has it.
logged() {
	has "$1" "$T/log" && return
	cat "$T/log" >&2
	return 1
}

# as_sent FILE: what RETR sends of a stored message before byte-stuffing.
as_sent() {
	sed 's/\r*$//;s/$/\r/' "$1"
}

# gone PID: no such process, nor any child of it.
gone() {
	! kill -0 "$1" 2>/dev/null
}

# try EXPECTED SCRIPT [ARG...]: a session with login beside others, since each
# refusal is made to wait; `tried` waits for all of them and compares what each
# was sent with what printf makes of EXPECTED.
try() {
	local expected=$1 script=$2
	shift 2
	TRIES=$((${TRIES:-0} + 1))
	# shellcheck disable=SC2059
	printf -- "$expected" >"$T/expected.$TRIES"
	# shellcheck disable=SC2059,SC2086 # DIAL is words
	(cd "$T" && printf -- "$script" | "${AS[@]}" bin/dialogue -t "${VIA:-pair}" \
		${DIAL:-} "$POP3" -h pop.example.org "$@" \
		>"out.$TRIES" 2>"log.$TRIES") 3>&- &
}

tried() {
	local failed=0
	wait
	[ "${TRIES:-0}" -gt 0 ]
	cat "$T"/log.* >"$T/log"
	for ((; TRIES > 0; TRIES--)); do
		same "$T/expected.$TRIES" "$T/out.$TRIES" && continue
		echo "session $TRIES differs" >&2
		cat "$T/log.$TRIES" >&2
		failed=1
	done
	[ "$failed" = 0 ]
}

# plain IDENTITY NAME SECRET: what SASL PLAIN sends, in base64; each is a printf
# format.
plain() {
	# shellcheck disable=SC2059
	{
		printf -- "$1"
		printf '\0'
		printf -- "$2"
		printf '\0'
		printf -- "$3"
	} | base64 -w 0
}
