#!/usr/bin/env bats
# AUTH PLAIN and APOP, what is pipelined behind a login, and -s.
load helper

ASKED='+OK now the password\r\n'
REFUSED='-ERR [AUTH] wrong name or password\r\n'
WELCOME='+OK welcome\r\n'
BYE='+OK bye\r\n'
EMPTY='+OK 0 deleted\r\n'
NOT64='-ERR not base64\r\n'
NOT_PLAIN='-ERR not an identity, a name and a password\r\n'
STAMPED='+OK pop.example.org pop3-handler ready <STAMP>\r\n'
BOTH='TOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\n'

# account NAME SECRET: a line of the accounts file.
account() {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf '%s:%s:%s::%s::\n' "$1" "$2" "$ids" "$T" >>"$T/users"
}

alice() {
	account alice '{PLAIN}secret'
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
	ALICE=$(plain '' alice secret)
}

# apop NAME SECRET SCRIPT [ARG...]: a client that answers the timestamp of the
# greeting with the digest, and goes on with SCRIPT in the same write. $CHANGE is
# what it does to the digest. What it was sent is in out.N, N counted by $TRIES,
# with the timestamp replaced by <STAMP>; the log in log.N. May run beside others.
apop() {
	TRIES=$((${TRIES:-0} + 1))
	apop_client "$@" 3>&- &
}

apop_client() {
	local name=$1 secret=$2 script=$3 n=$TRIES digest
	shift 3
	cd "$T"
	rm -f "in.$n"
	mkfifo "in.$n"
	"${AS[@]}" bin/dialogue -t "${VIA:-pair}" "$POP3" -A -h pop.example.org \
		-a users -m %h/M "$@" <"in.$n" >"raw.$n" 2>"log.$n" &
	exec 8>"in.$n"
	await grep -q '>' "raw.$n"
	digest=$({
		grep -o '<.*>' "raw.$n" | tr -d '\n'
		printf %s "$secret"
	} | md5sum | cut -c 1-32 | ${CHANGE:-cat})
	# shellcheck disable=SC2059
	printf -- "APOP %s %s\r\n$script" "$name" "$digest" >&8
	exec 8>&-
	wait
	sed '1s/<[^<>@ ]*@pop\.example\.org>/<STAMP>/' "raw.$n" >"out.$n"
}

# came_back EXPECTED: to all the clients since the last time.
came_back() {
	local n
	for ((n = 1; n <= TRIES; n++)); do
		# shellcheck disable=SC2059
		printf -- "$1" >"$T/expected.$n"
	done
	tried
}

# Three refusals take 12 seconds: they begin before the first test, and the last
# one looks at them.
setup_file() {
	BATS_TEST_TMPDIR=$BATS_FILE_TMPDIR setup
	chmod 755 "$BATS_RUN_TMPDIR/file"
	alice
	give
	(
		apop alice wrong "AUTH PLAIN $(plain '' alice no)\r\nUSER alice\r\nPASS no\r\nUSER alice\r\nPASS secret\r\nQUIT\r\n"
		try "$HELLO$REFUSED+ \r\n$REFUSED$REFUSED" \
			"AUTH PLAIN $(plain '' alice no)\r\nAUTH PLAIN\r\n$(plain '' who secret)\r\nAUTH PLAIN $(plain alice alice '')\r\nAUTH PLAIN $ALICE\r\nQUIT\r\n" \
			-a users -m %h/M
		# shellcheck disable=SC2059
		printf -- "$STAMPED$REFUSED$REFUSED$ASKED$REFUSED" >"$T/expected.1"
		tried >"$T/verdict" 2>&1 && echo right >"$T/verdict"
		: >"$T/over"
	) 3>&- &
}

@test "AUTH alone lists the mechanisms" {
	alice
	login 'AUTH\r\nauth \r\nAUTH PLAIN = x\r\nAUTH  PLAIN\r\nQUIT\r\n' -a users
	expect "$HELLO"'+OK mechanisms follow\r\nPLAIN\r\n.\r\n+OK mechanisms follow\r\nPLAIN\r\n.\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n+OK bye\r\n'
}

@test "AUTH PLAIN opens the maildrop, with its answer in the command or behind it" {
	alice
	login "AUTH PLAIN $ALICE\r\nSTAT\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$WELCOME+OK 1 11\r\n$EMPTY"
	logged "event=login addr=local user=alice maildrop=$T/M"
	login "AUTH PLAIN\r\n$ALICE\r\nSTAT\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO+ \r\n$WELCOME+OK 1 11\r\n$EMPTY"
	login "auth plain\n$ALICE\nstat\nquit\n" -a users -m %h/M
	expect "$HELLO+ \r\n$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "the authorization identity is empty or the name itself" {
	alice
	login "AUTH PLAIN $(plain alice alice secret)\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$WELCOME$EMPTY"
	login "AUTH PLAIN $(plain bob alice secret)\r\nAUTH PLAIN $(plain alice '' secret)\r\nAUTH PLAIN $(plain Alice alice secret)\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO"'-ERR nobody is let in as somebody else\r\n-ERR nobody is let in as somebody else\r\n-ERR nobody is let in as somebody else\r\n+OK bye\r\n'
	[ "$(grep -c event= "$T/log")" = 1 ]
}

@test "an answer of * cancels, and = or an empty one is no name and password" {
	alice
	login "AUTH PLAIN\r\n*\r\nAUTH PLAIN =\r\nAUTH PLAIN *\r\nAUTH PLAIN\r\n\r\nAUTH PLAIN\r\n**\r\nAUTH PLAIN $ALICE\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO+ \r\n-ERR cancelled\r\n$NOT_PLAIN$NOT64+ \r\n$NOT64+ \r\n$NOT64$WELCOME$EMPTY"
}

@test "what is not base64 is refused, and what is not exact is not guessed at" {
	alice
	[ "$ALICE" = AGFsaWNlAHNlY3JldA== ]
	local answer script='' want=$HELLO
	# Unpadded, stray bits, more behind the padding, letters of base64url.
	for answer in AGFsaWNlAHNlY3JldA AGFsaWNlAHNlY3JldA= AGFsaWNlAHNlY3JldB== \
		AGFsaWNlAHNlY3JldA==AGFs AGFsaWNlAHNlY3JldA=== == === ==== \
		AGFsaWNlAHNlY3Jld-== AGFsaWNlAHNlY3Jl_A== A=== AGFsaWNlAHNlY3JldA==x \
		" $ALICE" "$ALICE " 'AGFs\0aWNlAHNlY3JldA==' "$ALICE\0" \
		'AGFsaWNl\rAHNlY3JldA=='; do
		script+="AUTH PLAIN\r\n$answer\r\n"
		want+="+ \r\n$NOT64"
	done
	login "${script}QUIT\r\n" -a users -m %h/M
	expect "$want$BYE"
	[ "$(grep -c event= "$T/log")" = 1 ]
}

@test "an answer has two NULs, no more and no fewer" {
	alice
	local text script='' want=$HELLO
	for text in 'alice' 'alice\0secret' '\0alice\0secret\0' '\0alice\0sec\0ret' '\0\0alice\0secret' '\0'; do
		# shellcheck disable=SC2059
		script+="AUTH PLAIN $(printf "$text" | base64)\r\n"
		want+=$NOT_PLAIN
	done
	login "${script}QUIT\r\n" -a users -m %h/M
	expect "$want$BYE"
	[ "$(grep -c event= "$T/log")" = 1 ]
}

@test "wrong, unknown and empty names and passwords are all refused with [AUTH]" {
	need perl
	alice
	account empty '{PLAIN}'
	account hash '!'
	account blank "$(perl -e 'print crypt("", q($6$rounds=1000$saltsalt$))')"
	give
	local answer
	for answer in "$(plain '' alice wrong)" "$(plain '' alice '')" "$(plain '' '' secret)" \
		"$(plain '' '' '')" "$(plain '' who secret)" "$(plain '' empty '')" "$(plain '' hash '!')" \
		"$(plain '' blank '')" \
		"$(plain '' alice 'secret ')" "$(plain '' 'alice ' secret)" "$(plain '' 'al\rice' secret)" \
		"$(plain '' ../alice secret)"; do
		try "$HELLO$REFUSED$BYE" "AUTH PLAIN $answer\r\nQUIT\r\n" -a users -m %h/M
	done
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' alice wrong)\r\nQUIT\r\n" -a users -m %h/M
	tried
	[ "$(grep -c 'event=refused.* reason=credentials' "$T/log")" = 13 ]
	lacks secret "$T/log"
}

@test "other mechanisms are unknown" {
	alice
	login 'AUTH CRAM-MD5\r\nAUTH LOGIN YWxpY2U=\r\nAUTH PLAINX\r\nAUTH PLAI\r\nQUIT\r\n' -a users
	expect "$HELLO"'-ERR unknown mechanism\r\n-ERR unknown mechanism\r\n-ERR unknown mechanism\r\n-ERR unknown mechanism\r\n+OK bye\r\n'
}

@test "AUTH PLAIN takes passwords of spaces, eight-bit octets and control characters" {
	account bob "{PLAIN}$(printf ' a \303\274\t\001 ')"
	login "AUTH PLAIN $(plain '' bob ' a \303\274\t\001 ')\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$WELCOME$EMPTY"
}

@test "a password of 8000 octets opens the maildrop, and one of 9 KB is just wrong" {
	local long
	long=$(printf '%8000s' x)
	account bob "{PLAIN}$long"
	alice
	give
	try "$HELLO+ \r\n$WELCOME$EMPTY" "AUTH PLAIN\r\n$(plain '' bob "$long")\r\nQUIT\r\n" -a users -m %h/M
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' bob "${long}x")\r\nQUIT\r\n" -a users -m %h/M
	try "$HELLO+ \r\n$REFUSED$BYE" "AUTH PLAIN\r\n$(plain '' alice "$(printf '%9206s' x)")\r\nQUIT\r\n" -a users -m %h/M
	tried
}

@test "a name may have 255 octets in AUTH PLAIN, and no more" {
	local name
	name=$(printf '%0255d' 7)
	account "$name" '{PLAIN}secret'
	login "AUTH PLAIN\r\n$(plain '' "${name}7" secret)\r\nAUTH PLAIN\r\n$(plain '' "$name" secret)\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO+ \r\n-ERR name or password too long\r\n+ \r\n$WELCOME$EMPTY"
}

@test "an answer may have 12288 octets with its line end; a longer one is refused, and one over 16384 closes" {
	alice
	local most
	most=$(printf '%012286d' 0)
	login "AUTH PLAIN\r\n$most\r\nAUTH PLAIN\r\n0$most\r\nAUTH PLAIN\n0$most\nAUTH PLAIN\n00$most\nAUTH PLAIN\r\n$(printf '%016000d' 0)\r\nQUIT\r\n" -a users
	expect "$HELLO+ \r\n$NOT64+ \r\n-ERR answer too long\r\n+ \r\n$NOT64+ \r\n-ERR answer too long\r\n+ \r\n-ERR answer too long\r\n$BYE"
	login "AUTH PLAIN\r\n$(printf '%020000d' 0)\r\nQUIT\r\n" -a users
	expect "$HELLO+ \r\n"
	logged 'reason=disconnect'
	# The command with an initial response is a command line as any other.
	login "AUTH PLAIN $(printf '%0256d' 0)\r\nQUIT\r\n" -a users
	expect "$HELLO-ERR command line too long\r\n$BYE"
}

@test "what comes after the last line end is no answer" {
	alice
	login "AUTH PLAIN\r\n$ALICE" -a users -m %h/M
	expect "$HELLO+ \r\n"
	logged 'reason=disconnect'
}

@test "after a login AUTH and APOP are not in this state" {
	alice
	login "AUTH PLAIN $ALICE\r\nAUTH\r\nAUTH PLAIN $ALICE\r\nAPOP alice x\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$WELCOME-ERR not in this state\r\n-ERR not in this state\r\n-ERR not in this state\r\n$EMPTY"
}

@test "AUTH between USER and PASS makes the name forgotten, and may be another's" {
	alice
	account bob '{PLAIN}hammer'
	login "USER bob\r\nAUTH PLAIN\r\n*\r\nPASS hammer\r\nUSER bob\r\nAUTH\r\nPASS hammer\r\nUSER bob\r\nAUTH PLAIN $ALICE\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$ASKED+ \r\n-ERR cancelled\r\n-ERR USER comes first\r\n$ASKED+OK mechanisms follow\r\nPLAIN\r\n.\r\n-ERR USER comes first\r\n$ASKED$WELCOME$EMPTY"
	logged 'event=login addr=local user=alice'
}

@test "a PASS or a QUIT in place of an answer is an answer" {
	alice
	login 'USER alice\r\nAUTH PLAIN\r\nPASS secret\r\nAUTH PLAIN\r\nQUIT\r\nQUIT\r\n' -a users -m %h/M
	expect "$HELLO$ASKED+ \r\n$NOT64+ \r\n$NOT_PLAIN$BYE"
}

@test "without -A there is no timestamp, and APOP is an error" {
	alice
	login 'APOP alice 0123456789abcdef0123456789abcdef\r\nQUIT\r\n' -a users
	expect "$HELLO"'-ERR no timestamp was given\r\n+OK bye\r\n'
}

@test "with -A the greeting has a timestamp in the form of a Message-ID, never the same twice" {
	alice
	give
	local i
	for i in {1..100}; do
		(cd "$T" && printf 'QUIT\r\n' | "${AS[@]}" "$POP3" -A -h pop.example.org -a users 2>/dev/null | head -n 1)
	done >"$T/out"
	[ "$(grep -cE $'^\\+OK pop\\.example\\.org pop3-handler ready <[0-9a-f]{16}\\.[0-9a-f]+@pop\\.example\\.org>\r$' "$T/out")" = 100 ]
	[ "$(sort -u "$T/out" | wc -l)" = 100 ]
	# Half of the random part alone is as good, and no counter.
	[ "$(grep -o '<[0-9a-f]*' "$T/out" | cut -c 2-9 | sort -u | wc -l)" = 100 ]
}

@test "APOP with the digest of timestamp and secret opens the maildrop" {
	alice
	account long@example.org "{CLEARTEXT}$(printf '%0120d' 7)"
	give
	apop alice secret 'STAT\r\nQUIT\r\n'
	came_back "$STAMPED$WELCOME+OK 1 11\r\n$EMPTY"
	logged 'event=login addr=local user=alice'
	apop long@example.org "$(printf '%0120d' 7)" 'STAT\r\nQUIT\r\n'
	came_back "$STAMPED$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "APOP refuses wrong digests, unknown names, hashed, locked and empty secrets alike, each for one crypt(3)" {
	need perl
	alice
	account empty '{PLAIN}'
	account locked '!'
	account none ''
	account hash "$(perl -e 'print crypt("secret", q($6$rounds=1000$saltsalt$))')"
	: >"$T/crypts"
	give
	export CRYPT_LOG=$T/crypts
	local POP3=$T/bin/crypt-log
	apop alice wrong 'QUIT\r\n'
	apop alice '' 'QUIT\r\n'
	apop Alice secret 'QUIT\r\n'
	apop hash secret 'QUIT\r\n'
	apop hash '' 'QUIT\r\n'
	apop hash "$(sed -n 's/^hash:\([^:]*\):.*/\1/p' "$T/users")" 'QUIT\r\n'
	apop empty '' 'QUIT\r\n'
	apop locked '!' 'QUIT\r\n'
	apop locked '' 'QUIT\r\n'
	apop none '' 'QUIT\r\n'
	apop who '' 'QUIT\r\n'
	apop who secret 'QUIT\r\n'
	apop ../alice secret 'QUIT\r\n'
	CHANGE='tr 0-9a-f 1-9a-f0' apop alice secret 'QUIT\r\n'
	came_back "$STAMPED$REFUSED$BYE"
	[ "$(grep -c 'reason=credentials' "$T/log")" = 14 ]
	[ "$(wc -l <"$T/crypts")" = 14 ]
	[ "$(grep -cF '$6$rounds=1000$' "$T/crypts")" = 14 ]
}

@test "a digest that is not 32 lower-case hex digits is an error at once" {
	alice
	give
	# A digest has a letter but for one in three million.
	CHANGE='tr a-f A-F' apop alice secret 'QUIT\r\n'
	CHANGE='cut -c 2-' apop alice secret 'QUIT\r\n'
	CHANGE='sed s/$/0/' apop alice secret 'QUIT\r\n'
	CHANGE='sed s/.$/g/' apop alice secret 'QUIT\r\n'
	came_back "$STAMPED-ERR a digest is 32 lower-case hex digits\r\n$BYE"
	lacks credentials "$T/log"
	login 'APOP alice\r\nAPOP\r\nAPOP alice x y\r\nQUIT\r\n' -A -a users
	sed -i 1d "$T/out"
	expect '-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n+OK bye\r\n'
}

@test "a digest is good for its own connection only" {
	alice
	give
	apop alice secret 'QUIT\r\n'
	came_back "$STAMPED$WELCOME$EMPTY"
	local digest
	digest=$({
		grep -o '<.*>' "$T/raw.1" | tr -d '\n'
		printf secret
	} | md5sum | cut -c 1-32)
	CHANGE="echo $digest" apop alice secret 'QUIT\r\n'
	came_back "$STAMPED$REFUSED$BYE"
}

# in_step COMMAND...: each is said when the reply to the one before has come.
in_step() {
	local command
	converse -a users -m %h/M
	for command; do
		tell "$command\r\n"
	done
	hang_up
	cp "$T/out" "$T/in-step"
}

@test "nothing that is pipelined behind a login is lost, over pipe, socketpair and TCP" {
	alice
	give
	local rest=(STAT 'RETR 1' QUIT) behind='STAT\r\nRETR 1\r\nQUIT\r\n' via
	in_step 'USER alice' 'PASS secret' "${rest[@]}"
	cp "$T/in-step" "$T/pass"
	in_step "AUTH PLAIN $ALICE" "${rest[@]}"
	cp "$T/in-step" "$T/initial"
	in_step 'AUTH PLAIN' "$ALICE" "${rest[@]}"
	cp "$T/in-step" "$T/continued"
	for via in pipe pair tcp; do
		VIA=$via login "USER alice\r\nPASS secret\r\n$behind" -a users -m %h/M
		same "$T/pass" "$T/out"
		VIA=$via login "AUTH PLAIN $ALICE\r\n$behind" -a users -m %h/M
		same "$T/initial" "$T/out"
		VIA=$via login "AUTH PLAIN\r\n$ALICE\r\n$behind" -a users -m %h/M
		same "$T/continued" "$T/out"
		TRIES=0
		VIA=$via apop alice secret "$behind"
		wait
		sed 's/ <STAMP>//' "$T/out.1" >"$T/out"
		same "$T/initial" "$T/out"
	done
	expect "$HELLO$WELCOME+OK 1 11\r\n+OK 11 octets\r\nA: b\r\n\r\nx\r\n.\r\n$EMPTY"
}

# What CAPA says: without and with passwords, before and behind the login.
capabilities() {
	LISTED="+OK capabilities follow\r\n$BOTH"
	LISTED_PLAIN="+OK capabilities follow\r\nUSER\r\nSASL PLAIN\r\n$BOTH"
	NAMED="IMPLEMENTATION $("$POP3" -V | tr ' ' -)\r\n"
}

@test "CAPA announces USER and SASL in both states, and nothing of APOP" {
	alice
	capabilities
	login "CAPA\r\nAUTH PLAIN $ALICE\r\nCAPA\r\nQUIT\r\n" -a users -m %h/M
	expect "$HELLO$LISTED_PLAIN.\r\n$WELCOME$LISTED_PLAIN$NAMED.\r\n$EMPTY"
}

@test "with -s passwords are refused with word of TLS, and neither announced nor judged" {
	alice
	capabilities
	local via
	for via in pipe pair tcp; do
		VIA=$via login "CAPA\r\nUSER alice\r\nPASS secret\r\nAUTH\r\nAUTH PLAIN $ALICE\r\nAUTH PLAIN\r\n$ALICE\r\nQUIT\r\n" -s -a users -m %h/M
		expect "$HELLO$LISTED.\r\n-ERR not without TLS\r\n-ERR not without TLS\r\n+OK mechanisms follow\r\n.\r\n-ERR not without TLS\r\n-ERR not without TLS\r\n-ERR unknown command\r\n$BYE"
		[ "$(grep -c event= "$T/log")" = 1 ]
	done
}

@test "with -s an empty SSL_PROTOCOL or a client at a loopback address protects nothing" {
	alice
	SSL_PROTOCOL='' TCPREMOTEIP=127.0.0.1 VIA=tcp login "AUTH PLAIN $ALICE\r\nUSER alice\r\nQUIT\r\n" -s -a users -m %h/M
	expect "$HELLO"'-ERR not without TLS\r\n-ERR not without TLS\r\n+OK bye\r\n'
}

@test "with -s passwords are taken where SSL_PROTOCOL says that TLS is in front" {
	alice
	capabilities
	SSL_PROTOCOL=TLSv1.3 login "CAPA\r\nAUTH\r\nUSER alice\r\nPASS secret\r\nCAPA\r\nQUIT\r\n" -s -a users -m %h/M
	expect "$HELLO$LISTED_PLAIN.\r\n+OK mechanisms follow\r\nPLAIN\r\n.\r\n$ASKED$WELCOME$LISTED_PLAIN$NAMED.\r\n$EMPTY"
	SSL_PROTOCOL=TLSv1.3 login "AUTH PLAIN $ALICE\r\nQUIT\r\n" -s -a users -m %h/M
	expect "$HELLO$WELCOME$EMPTY"
}

# proxied BITS: a PROXY header of version 2 from 192.0.2.7, with a field that
# tells of TLS.
proxied() {
	printf '%s' '\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14\xc0\0\2\7\xc0\0\2\1\x30\x39\0\x6e\x20\0\5' "\\$1" '\0\0\0\0'
}

@test "with -s passwords are taken where a PROXY header tells of TLS, and only then" {
	alice
	capabilities
	login "$(proxied 1)CAPA\r\nAUTH PLAIN $ALICE\r\nQUIT\r\n" -s -p -a users -m %h/M
	expect "$HELLO$LISTED_PLAIN.\r\n$WELCOME$EMPTY"
	logged 'event=login addr=192.0.2.7 user=alice'
	# A certificate of the client, but no TLS.
	login "$(proxied 6)AUTH PLAIN $ALICE\r\nQUIT\r\n" -s -p -a users -m %h/M
	expect "$HELLO-ERR not without TLS\r\n$BYE"
	login "PROXY TCP4 192.0.2.7 192.0.2.1 12345 995\r\nAUTH PLAIN $ALICE\r\nQUIT\r\n" -s -p -a users -m %h/M
	expect "$HELLO-ERR not without TLS\r\n$BYE"
}

@test "with -s APOP is allowed, since it shows no password" {
	alice
	capabilities
	give
	apop alice secret 'CAPA\r\nQUIT\r\n' -s
	came_back "$STAMPED$WELCOME$LISTED$NAMED.\r\n$EMPTY"
}

@test "a login works where fd 1 is a file" {
	alice
	give
	(cd "$T" && printf 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' | "${AS[@]}" "$POP3" \
		-h pop.example.org -a users -m %h/M >out 2>log)
	expect "$HELLO$ASKED$WELCOME+OK 1 11\r\n$EMPTY"
}

@test "the third refused login closes the connection, whatever the mechanisms" {
	local kept=$BATS_FILE_TMPDIR
	await test -e "$kept/over" || await test -e "$kept/over"
	cat "$kept/verdict"
	[ "$(cat "$kept/verdict")" = right ]
	[ "$(grep -c 'event=refused.* reason=credentials' "$kept/log")" = 6 ]
	[ "$(grep -c 'reason=failed-logins' "$kept/log")" = 2 ]
}
