#!/usr/bin/env bats
# The wire: lines in, CRLF and byte-stuffing out, the QUIT rule.
load helper

# message FORMAT: a Maildir M with one message, and its octets as sent.
message() {
	rm -rf "$T/M"
	maildir M
	# shellcheck disable=SC2059
	printf "$1" >"$T/M/cur/1.h:2,"
}

@test "every line that begins with a dot is stuffed, the first octet too" {
	message '.\n..\n.x\nx.\n\n.\n'
	say 'RETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 20 octets\r\n..\r\n...\r\n..x\r\nx.\r\n\r\n..\r\n.\r\n+OK 0 deleted\r\n'
}

@test "a message stored with CRLF is sent as it is, and TOP sees its header end" {
	message 'A: b\r\n\r\n.1\r\n2\r\n'
	say 'RETR 1\r\nTOP 1 0\r\nTOP 1 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 15 octets\r\nA: b\r\n\r\n..1\r\n2\r\n.\r\n+OK top of message follows\r\nA: b\r\n\r\n.\r\n+OK top of message follows\r\nA: b\r\n\r\n..1\r\n.\r\n+OK 0 deleted\r\n'
}

@test "mixed line ends, bare CR and NUL are sent exactly" {
	message 'A: b\n\r\n1\r2\n\r\r\n\0003\0\n\rx'
	say 'LIST 1\r\nRETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 1 25\r\n+OK 25 octets\r\nA: b\r\n\r\n1\r2\r\n\r\r\n\0003\0\r\n\rx\r\n.\r\n+OK 0 deleted\r\n'
}

@test "a last line without an end gets one, and the octets say so" {
	message 'A: b\n\nx'
	say 'LIST 1\r\nRETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 1 11\r\n+OK 11 octets\r\nA: b\r\n\r\nx\r\n.\r\n+OK 0 deleted\r\n'
}

@test "a message that ends in NUL or CR gets its line end as well" {
	message 'A: b\n\nx\0'
	say 'RETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 12 octets\r\nA: b\r\n\r\nx\0\r\n.\r\n+OK 0 deleted\r\n'
	message 'A: b\n\nx\r'
	say 'RETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 12 octets\r\nA: b\r\n\r\nx\r\r\n.\r\n+OK 0 deleted\r\n'
}

@test "an empty message has no octets and no line" {
	message ''
	say 'LIST 1\r\nRETR 1\r\nTOP 1 5\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 1 0\r\n+OK 0 octets\r\n.\r\n+OK top of message follows\r\n.\r\n+OK 0 deleted\r\n'
}

@test "a header without a body gets no line that is not there" {
	message 'A: b\nC: d\n'
	say 'RETR 1\r\nTOP 1 0\r\nTOP 1 5\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 12 octets\r\nA: b\r\nC: d\r\n.\r\n+OK top of message follows\r\nA: b\r\nC: d\r\n.\r\n+OK top of message follows\r\nA: b\r\nC: d\r\n.\r\n+OK 0 deleted\r\n'
}

# At every offset of what stands around the end of a block of 128 KiB, the same.
@test "line ends, dots and CR are right at every place of a buffer's end" {
	local tail='\n.\r\n..\r\r\n.a\n\r\n.' n
	maildir M
	for n in {131058..131074}; do
		{
			printf 'A: b\n\n'
			head -c $((n - 6)) /dev/zero | tr '\0' x
			printf "$tail"
		} >"$T/M/cur/$n.h:2,"
	done
	local script=
	for n in {1..17}; do
		script+="RETR $n\r\n"
	done
	say "${script}QUIT\r\n" -m M
	{
		printf "$HELLO"
		for n in {131058..131074}; do
			printf '+OK %d octets\r\nA: b\r\n\r\n' $((n + 21))
			head -c $((n - 6)) /dev/zero | tr '\0' x
			printf '\r\n..\r\n...\r\r\n..a\r\n\r\n..\r\n.\r\n'
		done
		printf '+OK 0 deleted\r\n'
	} >"$T/expected"
	same "$T/expected" "$T/out"
}

@test "the end of a long header line is not that of the header, wherever the blocks end" {
	local end length
	maildir M
	for end in '\n' '\r\n'; do
		for length in {131070..131073}; do
			{
				printf 'X: '
				head -c $((length - 3)) /dev/zero | tr '\0' x
				printf "${end}Y: z$end${end}body$end"
			} >"$T/M/cur/1.h:2,"
			rm -f "$T/M/pop3-state"
			say 'TOP 1 0\r\nQUIT\r\n' -m M
			[ "$(tail -c 28 "$T/out" | od -An -c | tr -d ' \n')" = '\r\nY:z\r\n\r\n.\r\n+OK0deleted\r\n' ]
		done
	done
}

@test "a line of a megabyte is sent whole" {
	maildir M
	{
		printf 'A: b\n\n'
		head -c 1000000 /dev/zero | tr '\0' .
	} >"$T/M/cur/1.h:2,"
	say 'RETR 1\r\nTOP 1 0\r\nQUIT\r\n' -m M
	{
		printf "$HELLO"'+OK 1000010 octets\r\nA: b\r\n\r\n.'
		head -c 1000000 /dev/zero | tr '\0' .
		printf '\r\n.\r\n+OK top of message follows\r\nA: b\r\n\r\n.\r\n+OK 0 deleted\r\n'
	} >"$T/expected"
	same "$T/expected" "$T/out"
}

@test "a command line has at most 255 octets with its end; a longer one is forgotten" {
	message 'x\n'
	local spaces
	spaces=$(printf '%249s' '')
	# 4 + 249 + 2 = 255
	say "NOOP$spaces\r\nNOOP $spaces\r\nNOOP $spaces\n$(printf '%3000s' '')NOOP\r\nNOOP\r\nQUIT\r\n" -m M
	expect "$HELLO"'+OK still here\r\n-ERR command line too long\r\n+OK still here\r\n-ERR command line too long\r\n+OK still here\r\n+OK 0 deleted\r\n'
}

@test "a line of megabytes in TRANSACTION is one error and no memory" {
	message 'x\n'
	give
	(
		cd "$T"
		{
			head -c 20000000 /dev/zero | tr '\0' x
			printf '\r\nNOOP\r\nQUIT\r\n'
		} | "${AS[@]}" "$T/bin/dialogue" -m mem "$POP3" -P -h pop.example.org -m M >out 2>log
	)
	expect "$HELLO"'-ERR command line too long\r\n+OK still here\r\n+OK 0 deleted\r\n'
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-8192}" ]
}

@test "NUL and control characters in a command are errors" {
	message 'x\n'
	say 'NOOP\0\r\nNO\0OP\r\nRETR\t1\r\nNOOP\r\r\n\177\r\nNOOP\r\nQUIT\r\n' -m M
	expect "$HELLO"'-ERR a command has no control characters\r\n-ERR a command has no control characters\r\n-ERR a command has no control characters\r\n-ERR a command has no control characters\r\n-ERR a command has no control characters\r\n+OK still here\r\n+OK 0 deleted\r\n'
}

@test "a thousand pipelined commands get a thousand replies in order" {
	message 'x\n'
	local n
	for ((n = 1; n <= 1000; n++)); do
		printf 'RETR 1\r\nLIST 1\r\n'
	done >"$T/script"
	printf 'QUIT\r\n' >>"$T/script"
	give
	(cd "$T" && "${AS[@]}" bin/dialogue -t tcp "$POP3" -P -h pop.example.org -m M <script >out 2>log)
	[ "$(grep -c '^+OK 3 octets' "$T/out")" = 1000 ]
	[ "$(grep -c '^+OK 1 3' "$T/out")" = 1000 ]
	[ "$(tail -n 1 "$T/out")" = $'+OK 0 deleted\r' ]
}

@test "a client that goes away before its mail is sent loses none by QUIT" {
	local via
	for via in pair tcp; do
		rm -rf "$T/M"
		maildir M
		head -c 20000000 /dev/zero | tr '\0' 'x' >"$T/M/cur/1.h:2,"
		VIA=$via DIAL='-r 100000' say 'RETR 1\r\nDELE 1\r\nQUIT\r\n' -m M
		[ -e "$T/M/cur/1.h:2," ]
		logged 'reason=disconnect'
		has 'deleted=0' "$T/log"
	done
}

@test "a client that resets the connection at once loses nothing by QUIT" {
	maildir M
	head -c 20000000 /dev/zero | tr '\0' 'x' >"$T/M/cur/1.h:2,"
	VIA=tcp DIAL='-r 0' say 'RETR 1\r\nDELE 1\r\nQUIT\r\n' -m M
	[ -e "$T/M/cur/1.h:2," ]
}

@test "a client that never reads loses nothing by QUIT, however long it waits" {
	maildir M
	head -c 20000000 /dev/zero | tr '\0' 'x' >"$T/M/cur/1.h:2,"
	VIA=tcp begin 'RETR 1\r\nDELE 1\r\nQUIT\r\n' -n -- -P -m M
	await grep -q login "$T/log"
	sleep 0.3
	kill -ALRM "$PID"
	finish
	[ "$status" = 0 ]
	[ -e "$T/M/cur/1.h:2," ]
	logged 'reason=autologout'
}

@test "to a socket a message goes in few writes" {
	need strace
	maildir M
	seq 200000 >"$T/M/cur/1.h:2,"
	give
	(cd "$T" && printf 'RETR 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace -e trace=sendto,write "$POP3" -P -m M >out 2>log)
	[ "$(grep -c '^sendto(1' "$T/trace")" -le 40 ]
	[ "$(grep -c '^sendto(1' "$T/trace")" -ge 2 ]
	no grep -q '^write(1' "$T/trace"
}

@test "TCP_NODELAY is set where fd 1 is TCP" {
	need strace
	message 'x\n'
	give
	(cd "$T" && printf 'QUIT\r\n' | "${AS[@]}" bin/dialogue -t tcp \
		strace -o trace -e trace=setsockopt "$POP3" -P -m M >out 2>log)
	grep -q '^setsockopt(1, SOL_TCP, TCP_NODELAY, \[1\], 4) *= 0' "$T/trace"
}

@test "a wait that a signal cuts short goes on, before and after login" {
	need strace
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	maildir M
	give
	# Every other wait, of the front, the monitor and the session.
	(cd "$T" && printf 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue -w \
		strace -f -qq -o trace -e trace=ppoll -e inject=ppoll:error=EINTR:when=1+2 \
		"$POP3" -h pop.example.org -a users -m %h/M >out 2>log)
	[ "$(grep -c INJECTED "$T/trace")" -ge 2 ]
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 0 0\r\n+OK 0 deleted\r\n'
}
