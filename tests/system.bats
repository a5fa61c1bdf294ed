#!/usr/bin/env bats
# The system's accounts: passwd(5), shadow(5) and nologin(5), each test with an
# /etc of its own that nobody else sees.
load helper

ASKED='+OK now the password\r\n'
REFUSED='-ERR [AUTH] wrong name or password\r\n'
WELCOME='+OK welcome\r\n'
BYE='+OK bye\r\n'
EMPTY='+OK 0 deleted\r\n'
# Days since 1970.
TODAY=$(($(date +%s) / 86400))

# user NAME HASH [UID [AGING [SHELL]]]: a user with the secret of a hash. The
# aging is what stands behind the hash in shadow(5); "-" has no line there.
user() {
	local uid=${3:-12345} age=${4:-$TODAY:0:99999:7:::}
	printf '%s:x:%s:12346::%s/home:%s\n' "$1" "$uid" "$T" "${5:-/bin/sh}" >>"$T/etc/passwd"
	[ "$age" = - ] || printf '%s:%s:%s\n' "$1" "$2" "$age" >>"$T/etc/shadow"
}

# hash SETTING: of the word "secret".
hash() {
	perl -e 'print crypt("secret", $ARGV[0])' "$1"
}

# An /etc with what the front needs, and a home.
etc() {
	need_mounts
	need perl
	mkdir "$T/etc"
	printf 'root:x:0:0::/root:/bin/sh\nnobody:x:%s:%s::/:/bin/sh\n' "$NOBODY" "$NOBODY" >"$T/etc/passwd"
	printf "root:$(hash '$6$rounds=1000$saltsalt$'):$TODAY:0:99999:7:::\nnobody:*:$TODAY:0:99999:7:::\n" >"$T/etc/shadow"
	printf 'passwd: files\nshadow: files\ngroup: files\n' >"$T/etc/nsswitch.conf"
	printf 'root:x:0:\nmail:x:8:\n' >"$T/etc/group"
	chmod 640 "$T/etc/shadow"
	maildir home/Maildir
	printf 'A: b\n\nx\n' >"$T/home/Maildir/cur/1.h:2,"
	chown -R 12345:12346 "$T/home"
	QUICK=$(hash '$6$rounds=1000$saltsalt$')
	# `try` and its kin run the program in this /etc.
	AS=(unshare -m sh -c "mount --bind $T/etc /etc; exec \"\$@\"" sh)
}

# pass NAME SECRET EXPECTED: USER and PASS, and what comes of it.
pass() {
	try "$HELLO$ASKED$3" "USER $1\r\nPASS $2\r\nQUIT\r\n"
}

@test "without -a and -c a user of the system logs in, whatever crypt(3) his secret is kept by" {
	etc
	user yescrypt "$(hash '$y$j75$saltsalt$')"
	user sha512 "$QUICK"
	user sha256 "$(hash '$5$rounds=1000$saltsalt$')"
	user md5 "$(hash '$1$saltsalt$')"
	user des "$(hash ab)"
	local name
	for name in yescrypt sha512 sha256 md5 des; do
		try "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY" "USER $name\r\nPASS secret\r\nSTAT\r\nQUIT\r\n"
		tried
		logged "event=login addr=local user=$name maildrop=$T/home/Maildir"
	done
	try "$HELLO$WELCOME$EMPTY" "AUTH PLAIN $(plain '' sha512 secret)\r\nQUIT\r\n"
	tried
}

@test "the session is the user's, with the group of passwd(5) alone" {
	etc
	user alice "$QUICK"
	printf 'users:x:100:alice\n' >>"$T/etc/group"
	(cd "$T" && printf 'USER alice\r\nPASS secret\r\nSTAT\r\n' | "${AS[@]}" bin/dialogue -w -i pid "$POP3" >out 2>log) 3>&- &
	CLIENT=$!
	await has '+OK 1 11' "$T/out"
	PID=$(cat "$T/pid")
	sed -n 's/^Uid:[[:blank:]]*//p;s/^Gid:[[:blank:]]*//p;s/^Groups:[[:blank:]]*//p' "/proc/$PID/status" | tr '\t' ' ' | sed 's/ *$//' >"$T/ids"
	[ "$(cat "$T/ids")" = $'12345 12345 12345 12345\n12346 12346 12346 12346' ]
	kill "$PID"
	wait "$CLIENT" || :
}

@test "wrong passwords, unknown, locked, passwordless and expired accounts are refused alike, each for one crypt(3)" {
	etc
	user alice "$QUICK"
	user bang "!$QUICK"
	user bang2 '!!'
	user star '*'
	user starred "*$QUICK"
	user empty ''
	user blank "$(perl -e 'print crypt("", q($6$rounds=1000$saltsalt$))')"
	user none - 12345 -
	user x x
	user garbage 'secret'
	user old "$QUICK" 12345 "$TODAY:0:99999:7::$TODAY:"
	user older "$QUICK" 12345 "$((TODAY - 100)):0:99999:7::1:"
	user change "$QUICK" 12345 '0:0:99999:7:::'
	user aged "$QUICK" 12345 "$((TODAY - 91)):0:90:7:::"
	user daemon "$QUICK" 499
	user zero "$QUICK" 0
	printf 'nohash::12345:12346::%s/home:/bin/sh\n' "$T" >>"$T/etc/passwd"
	: >"$T/crypts"
	chmod 666 "$T/crypts"
	export CRYPT_LOG=$T/crypts
	local POP3=$T/bin/crypt-log
	local name count=0
	# With the right password, as far as there is one.
	for name in bang bang2 star starred empty none x garbage old older change aged daemon zero root nobody who nohash; do
		pass "$name" secret "$REFUSED$BYE"
		count=$((count + 1))
	done
	pass alice wrong "$REFUSED$BYE"
	pass alice 'secret ' "$REFUSED$BYE"
	pass none x "$REFUSED$BYE"
	pass x x "$REFUSED$BYE"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' empty '')\r\nQUIT\r\n"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' bang '')\r\nQUIT\r\n"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' root secret)\r\nQUIT\r\n"
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' blank '')\r\nQUIT\r\n"
	count=$((count + 8))
	tried
	[ "$(grep -c 'event=refused.* reason=credentials' "$T/log")" = "$count" ]
	[ "$(wc -l <"$T/crypts")" = "$count" ]
	# Why is for the log alone.
	logged 'user=old file=old text="refused: the account has expired"'
	logged 'user=older file=older text="refused: the account has expired"'
	logged 'user=change file=change text="refused: the password must be changed"'
	logged 'user=aged file=aged text="refused: the password has expired"'
	logged 'user=daemon file=daemon text="refused: a uid that is not served"'
	logged 'user=zero file=zero text="refused: a uid that is not served"'
	logged 'user=root file=root text="refused: a uid that is not served"'
}

@test "uid 0 with the right password takes as long as with a wrong one" {
	etc
	local began secret
	for secret in secret wrong; do
		(
			began=$(date +%s%N)
			TRIES=$([ $secret = secret ] || echo 1)
			try "$HELLO$ASKED$REFUSED" "USER root\r\nPASS $secret\r\n"
			wait
			echo $((($(date +%s%N) - began) / 1000000)) >"$T/took.$secret"
		) 3>&- &
	done
	wait
	same "$T/out.1" "$T/out.2"
	has AUTH "$T/out.1"
	cat "$T"/took.*
	[ "$(cat "$T/took.secret")" -ge 2000 ]
	[ "$(cat "$T/took.wrong")" -ge 2000 ]
	local apart=$(($(cat "$T/took.secret") - $(cat "$T/took.wrong")))
	[ "${apart#-}" -lt 500 ]
}

@test "passwords that expire today or tomorrow, and accounts that expire tomorrow, are still good" {
	etc
	user a "$QUICK" 12345 "$((TODAY - 90)):0:90:7:::"
	user b "$QUICK" 12345 "$TODAY:0:99999:7::$((TODAY + 1)):"
	user c "$QUICK" 12345 '::::::'
	user d "$QUICK" 12345 "$((TODAY - 5000))::::::"
	local name
	for name in a b c d; do
		pass $name secret "$WELCOME$EMPTY"
		tried
	done
}

@test "the least uid is 500, and a user without a login shell is served" {
	etc
	user low "$QUICK" 500
	user nologin "$QUICK" 12345 '' /usr/sbin/nologin
	user false "$QUICK" 12345 '' /bin/false
	chown -R 500 "$T/home"
	pass low secret "$WELCOME$EMPTY"
	tried
	chown -R 12345 "$T/home"
	pass nologin secret "$WELCOME$EMPTY"
	tried
	pass false secret "$WELCOME$EMPTY"
	tried
}

@test "/etc/nologin keeps everybody out with [SYS/TEMP], and tells nobody without the password" {
	etc
	user alice "$QUICK"
	printf 'back soon\n' >"$T/etc/nologin"
	pass alice secret "-ERR [SYS/TEMP] logins are not possible now\r\n$BYE"
	pass alice wrong "$REFUSED$BYE"
	pass root secret "$REFUSED$BYE"
	pass who secret "$REFUSED$BYE"
	tried
	logged 'event=warning addr=local user=alice file=/etc/nologin text="nobody is let in"'
	logged 'event=refused addr=local user=alice reason=temporary'
}

@test "a hash in passwd(5) itself counts where shadow(5) has no line" {
	etc
	printf 'old:%s:12345:12346::%s/home:/bin/sh\n' "$QUICK" "$T" >>"$T/etc/passwd"
	pass old secret "$WELCOME$EMPTY"
	tried
}

@test "a home that is not an absolute path is none" {
	etc
	printf 'alice:x:12345:12346::home:/bin/sh\n' >>"$T/etc/passwd"
	printf 'alice:%s:%s:0:99999:7:::\n' "$QUICK" "$TODAY" >>"$T/etc/shadow"
	pass alice secret "$WELCOME$EMPTY"
	tried
	logged 'text="passed over: the home is not known"'
}

@test "an APOP digest is no password of a user's, since -A is not for the system's accounts" {
	etc
	status=0
	"$POP3" -A >"$T/out" 2>"$T/log" </dev/null || status=$?
	[ "$status" = 64 ]
	[ ! -s "$T/out" ]
}

@test "somebody but root serves nobody but himself" {
	etc
	user alice "$QUICK"
	user bob "$QUICK" 12347
	chmod 644 "$T/etc/shadow"
	AS=(unshare -m sh -c "mount --bind $T/etc /etc; exec setpriv --reuid=12345 --regid=12346 --clear-groups \"\$@\"" sh)
	pass alice secret "$WELCOME$EMPTY"
	pass bob secret "$REFUSED$BYE"
	tried
	logged "user=bob file=bob text=\"refused: another's account, and we are not root\""
	chmod 640 "$T/etc/shadow"
	pass alice secret "$REFUSED$BYE"
	tried
	logged 'file=/etc/shadow text="no entry of this user can be read"'
}

# trace FILE: runs sessions under strace; the calls of all go to FILE.
trace() {
	AS=(unshare -m sh -c "mount --bind $T/etc /etc; exec strace -f -qq -o $T/$1 \"\$@\"" sh)
}

# looked_up FILE: what the monitor did between a request and its answer: files
# that were opened, and crypt(3), but no calls that a longer line may cost.
looked_up() {
	sed -n 's/^[0-9]* *//;/recvfrom([0-9]*, "p/,/sendto([0-9]*, "R"/p' "$T/$1" |
		grep -oE '^(open|openat|access|socket|connect|clone|kill|mmap|sendto)\([^)]*' |
		sed 's/0x[0-9a-f]*/ADDRESS/;s/ <unfinished.*//'
}

@test "an unknown user costs the same system calls as a wrong password" {
	etc
	need strace
	[ "$EIO" != 'I/O error' ] || skip "musl asks nscd for an unknown user alone"
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	user alice "$(hash '$y$j9T$saltsalt$')"
	user locked '!'
	user zero "$(hash '$y$j9T$saltsalt$')" 0
	local case
	for case in alice who locked zero a/b .alice; do
		trace "calls.${case//\//_}"
		try "$HELLO$ASKED$REFUSED" "USER $case\r\nPASS wrong\r\n"
	done
	tried
	looked_up calls.alice >"$T/wrong"
	[ "$(grep -c '"/etc/passwd"' "$T/wrong")" = 1 ]
	[ "$(grep -c '"/etc/shadow"' "$T/wrong")" = 1 ]
	for case in who locked zero a_b .alice; do
		looked_up "calls.$case" >"$T/other"
		same "$T/wrong" "$T/other"
	done
}

@test "names with odd characters are nobody's, even where passwd(5) has them" {
	etc
	local name tab=$'al\tice'
	for name in ../x .x a@.b "$tab" a/b; do
		user "$name" "$QUICK"
		try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' "$name" secret)\r\nQUIT\r\n"
	done
	try "$HELLO$REFUSED$BYE" "AUTH PLAIN $(plain '' '' secret)\r\nQUIT\r\n"
	user a@b "$QUICK"
	pass a@b secret "$WELCOME$EMPTY"
	tried
	[ "$(grep -c 'reason=credentials' "$T/log")" = 6 ]
}
