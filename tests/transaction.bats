#!/usr/bin/env bats
# TRANSACTION and UPDATE: RFC 1939 sections 5 to 7.
load helper

two() {
	maildir M
	printf 'Subject: one\n\n1\n' >"$T/M/cur/1000.a.h:2,S"
	printf 'Subject: two\n\nsecond\n' >"$T/M/cur/1001.b.h:2,"
}

@test "STAT counts messages and octets as they are sent" {
	two
	say 'STAT\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 2 43\r\n+OK 0 deleted\r\n'
}

@test "LIST gives number and octets, and nothing after them" {
	two
	say 'LIST\r\nLIST 2\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 2 messages (43 octets)\r\n1 19\r\n2 24\r\n.\r\n+OK 2 24\r\n+OK 0 deleted\r\n'
}

@test "UIDL gives number and unique-id, and nothing after them" {
	two
	say 'UIDL\r\nUIDL 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK unique-ids follow\r\n1 1000.a.h\r\n2 1001.b.h\r\n.\r\n+OK 1 1000.a.h\r\n+OK 0 deleted\r\n'
}

@test "an empty maildrop has empty listings" {
	maildir M
	say 'STAT\r\nLIST\r\nUIDL\r\nLIST 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 0 0\r\n+OK 0 messages (0 octets)\r\n.\r\n+OK unique-ids follow\r\n.\r\n-ERR no such message\r\n+OK 0 deleted\r\n'
}

@test "a user without any maildrop has an empty one, and nothing is made" {
	say 'STAT\r\nQUIT\r\n' -m nowhere -m /nowhere/at/all
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
	[ ! -e "$T/nowhere" ]
}

@test "RETR sends the message and the octets that LIST has said" {
	two
	say 'RETR 2\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 24 octets\r\nSubject: two\r\n\r\nsecond\r\n.\r\n+OK 0 deleted\r\n'
}

@test "TOP 1 0 sends the header and the empty line, and nothing of the body" {
	two
	say 'TOP 1 0\r\nTOP 1 1\r\nTOP 1 99999999999999999999999\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK top of message follows\r\nSubject: one\r\n\r\n.\r\n+OK top of message follows\r\nSubject: one\r\n\r\n1\r\n.\r\n+OK top of message follows\r\nSubject: one\r\n\r\n1\r\n.\r\n+OK 0 deleted\r\n'
}

@test "TOP without a line count is an error, not the whole message" {
	two
	say 'TOP 1\r\nTOP 1 x\r\nTOP 1 -1\r\nTOP\r\nQUIT\r\n' -m M
	expect "$HELLO"'-ERR wrong arguments\r\n-ERR TOP takes a message number and a line count\r\n-ERR TOP takes a message number and a line count\r\n-ERR wrong arguments\r\n+OK 0 deleted\r\n'
}

@test "DELE marks, STAT and LIST leave the marked out, numbers stay" {
	two
	say 'DELE 1\r\nSTAT\r\nLIST\r\nUIDL\r\nLIST 1\r\nUIDL 1\r\nRETR 1\r\nTOP 1 0\r\nDELE 1\r\nRSET\r\nSTAT\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK message 1 deleted\r\n+OK 1 24\r\n+OK 1 messages (24 octets)\r\n2 24\r\n.\r\n+OK unique-ids follow\r\n2 1001.b.h\r\n.\r\n-ERR message 1 is deleted\r\n-ERR message 1 is deleted\r\n-ERR message 1 is deleted\r\n-ERR message 1 is deleted\r\n-ERR message 1 is deleted\r\n+OK 2 messages (43 octets)\r\n+OK 2 43\r\n+OK 0 deleted\r\n'
	[ -e "$T/M/cur/1000.a.h:2,S" ]
}

@test "QUIT in TRANSACTION removes exactly the messages marked deleted" {
	two
	say 'DELE 2\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK message 2 deleted\r\n+OK 1 deleted\r\n'
	[ "$(ls "$T/M/cur")" = 1000.a.h:2,S ]
}

@test "a session that ends without QUIT removes nothing" {
	two
	say 'DELE 1\r\nDELE 2\r\n' -m M
	expect "$HELLO"'+OK message 1 deleted\r\n+OK message 2 deleted\r\n'
	[ "$(ls "$T/M/cur" | wc -l)" = 2 ]
	logged 'event=end addr=local'
	logged 'reason=disconnect retrieved=0 deleted=0 left=2'
}

@test "a last line without a line end is no command" {
	two
	say 'DELE 1\r\nQUIT' -m M
	expect "$HELLO"'+OK message 1 deleted\r\n'
	[ "$(ls "$T/M/cur" | wc -l)" = 2 ]
}

@test "message numbers are decimal digits: no sign, no rest, no overflow" {
	two
	say 'RETR 0\r\nRETR 3\r\nRETR 1x\r\nRETR -1\r\nRETR +1\r\nRETR 4294967297\r\nRETR 18446744073709551617\r\nRETR\r\nRETR  1\r\nRETR 1 1\r\nLIST 0001\r\nDELE x\r\nQUIT\r\n' -m M
	expect "$HELLO"'-ERR no such message\r\n-ERR no such message\r\n-ERR a message number is decimal digits\r\n-ERR a message number is decimal digits\r\n-ERR a message number is decimal digits\r\n-ERR no such message\r\n-ERR no such message\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n+OK 1 19\r\n-ERR a message number is decimal digits\r\n+OK 0 deleted\r\n'
}

@test "unknown verbs, verbs of the other state and surplus arguments are errors" {
	two
	say 'USER x\r\nPASS x\r\nAPOP a b\r\nSTAT 1\r\nNOOP 1\r\nRSET 1\r\nQUIT 1\r\nCAPA 1\r\n\r\n RETR 1\r\nRETR1\r\nQUIT\r\n' -m M
	expect "$HELLO"'-ERR not in this state\r\n-ERR not in this state\r\n-ERR not in this state\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR wrong arguments\r\n-ERR unknown command\r\n-ERR unknown command\r\n-ERR unknown command\r\n+OK 0 deleted\r\n'
}

@test "keywords are case-insensitive and spaces at the end of a line ignored" {
	two
	say 'stat\r\nLiSt 1 \r\nnoop   \r\nQuIt \r\n' -m M
	expect "$HELLO"'+OK 2 43\r\n+OK 1 19\r\n+OK still here\r\n+OK 0 deleted\r\n'
}

@test "commands may end in LF alone" {
	two
	say 'STAT\nNOOP\nQUIT\n' -m M
	expect "$HELLO"'+OK 2 43\r\n+OK still here\r\n+OK 0 deleted\r\n'
}

@test "CAPA in TRANSACTION lists what is true, with IMPLEMENTATION" {
	two
	say 'CAPA\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK capabilities follow\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\nEXPIRE NEVER\r\nIMPLEMENTATION pop3-handler-'"$("$ROOT/pop3-handler" -V | cut -d' ' -f2)"'\r\n.\r\n+OK 0 deleted\r\n'
}

@test "twenty senseless commands in a row end the session without UPDATE" {
	two
	say 'DELE 1\r\n'"$(printf 'x\\r\\n%.0s' {1..20})"'QUIT\r\n' -m M
	expect "$HELLO"'+OK message 1 deleted\r\n'"$(printf -- '-ERR unknown command\\r\\n%.0s' {1..20})"
	[ "$(ls "$T/M/cur" | wc -l)" = 2 ]
	logged 'reason=nonsense'
}

@test "senseless commands with others between them do not end the session" {
	two
	local nineteen
	nineteen=$(printf 'x\\r\\n%.0s' {1..19})
	say "${nineteen}NOOP\r\n${nineteen}QUIT\r\n" -m M
	[ "$(grep -c '^-ERR' "$T/out")" = 38 ]
	has '+OK 0 deleted' "$T/out"
}

@test "preauthenticated, nothing but protocol goes to the client" {
	two
	give
	(cd "$T" && printf 'STAT\r\nRETR 1\r\nQUIT\r\n' |
		"${AS[@]}" "$POP3" -h pop.example.org -P -m ./M >out 2>log)
	expect "$HELLO"'+OK 2 43\r\n+OK 19 octets\r\nSubject: one\r\n\r\n1\r\n.\r\n+OK 0 deleted\r\n'
}

@test "the second session of a maildrop is told [IN-USE], and the first goes on" {
	two
	begin 'DELE 1\r\n' -w -- -P -m M
	await has 'message 1 deleted' "$T/out"
	cp "$T/out" "$T/first"
	local pid=$PID client=$CLIENT
	say 'STAT\r\nQUIT\r\n' -m M
	expect '-ERR [IN-USE] another session has the maildrop\r\n'
	logged 'event=refused addr=local user='
	logged 'reason=in-use'
	kill "$pid"
	wait "$client" || :
}

@test "kill -9 of a session lets the next one in at once" {
	two
	begin 'DELE 1\r\n' -w -- -P -m M
	await has 'message 1 deleted' "$T/out"
	kill -9 "$PID"
	finish
	[ "$status" = 137 ]
	say 'STAT\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 2 43\r\n+OK 0 deleted\r\n'
}

@test "the same dialogue over a pipe, a socketpair and TCP, at once and octet by octet" {
	local via dial
	for via in pipe pair tcp; do
		for dial in '' -b; do
			rm -rf "$T/M"
			two
			VIA=$via DIAL=$dial say 'STAT\r\nRETR 1\r\nDELE 1\r\nLIST\r\nNOOP\r\nQUIT\r\n' -m M
			expect "$HELLO"'+OK 2 43\r\n+OK 19 octets\r\nSubject: one\r\n\r\n1\r\n.\r\n+OK message 1 deleted\r\n+OK 1 messages (24 octets)\r\n2 24\r\n.\r\n+OK still here\r\n+OK 1 deleted\r\n'
			[ "$(ls "$T/M/cur")" = 1001.b.h:2, ]
		done
	done
}
