#!/usr/bin/env bats
# Attacks on memory and time: what is sent, stored or written beside the mail to
# make a session large or endless. Those that take their time are in
# tests/attacks-slow.bats.
load helper

USER_OK='+OK now the password\r\n'

# attack [ARG...]: a session whose client sends what stands on our input; the
# memory of front, monitor and session is in $T/mem.
attack() {
	give
	(cd "$T" && "${AS[@]}" bin/dialogue -t "${VIA:-pair}" -m mem "$POP3" \
		-h pop.example.org "$@" >out 2>log)
}

# within KIB: what the session took, unless another build takes more anyway.
within() {
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-$1}" ] && return
	echo "took $(cat "$T/mem") KiB, not less than $1" >&2
	return 1
}

# most PID: the KiB that a process has had at most.
most() {
	awk '/^VmHWM:/ { print $2 }' "/proc/$1/status"
}

accounts() {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >>"$T/users"
}

# octets COUNT OCTET
octets() {
	head -c "$1" /dev/zero | tr '\0' "$2"
}

one() {
	maildir M
	printf 'A: b\n\nx\n' >"$T/M/cur/1.h:2,"
}

# ---- What a client sends ----

@test "a name, a password or an answer of 20 MB ends the connection, within 4 MiB of memory" {
	local what via
	accounts
	for what in 'USER ' 'USER alice\r\nPASS ' 'AUTH PLAIN ' 'AUTH PLAIN\r\n' 'CAPA\r\nCAPA' ''; do
		for via in pipe pair tcp; do
			# shellcheck disable=SC2059
			{
				printf "$what"
				octets 20000000 x
				printf '\r\nQUIT\r\n'
			} | VIA=$via attack -a users
			within 4096
			no grep -q '^-ERR\|bye' "$T/out"
			logged 'user=- reason=disconnect'
		done
	done
}

@test "NULs without end before login end the connection, with or without line ends" {
	accounts
	give
	(cd "$T" && timeout 30 "${AS[@]}" "$POP3" -h pop.example.org -a users \
		</dev/zero >out 2>log)
	expect "$HELLO"
	logged 'reason=disconnect'
	yes "$(printf 'x\001')" | head -n 100000 | tr 'x\001' '\0\0' | attack -a users
	within 4096
	{
		printf "$HELLO"
		yes -- '-ERR a command has no control characters' | head -n 20 | sed 's/$/\r/'
	} >"$T/expected"
	same "$T/expected" "$T/out"
	logged 'reason=nonsense'
}

@test "NULs without end after login end with the clock, within 4 MiB of memory; with line ends, after 20 of them" {
	local memory
	one
	give
	(cd "$T" && exec "${AS[@]}" "$POP3" -P -h pop.example.org -m M \
		</dev/zero >out 2>log 3>&-) &
	PID=$!
	CLIENT=$PID
	await grep -q login "$T/log"
	sleep 0.5
	memory=$(most "$PID")
	kill -ALRM "$PID"
	await gone "$PID"
	finish
	[ "$status" = 0 ]
	expect "$HELLO"
	logged 'reason=autologout retrieved=0 deleted=0 left=1'
	[ "$memory" -lt "${RESIDENT_KIB:-4096}" ]
	yes x | head -n 100000 | tr x '\0' | attack -P -m M
	within 4096
	[ "$(grep -c '^-ERR' "$T/out")" = 20 ]
	logged 'reason=nonsense'
}

@test "100,000 commands in one write before login are over after 100, within 4 MiB of memory" {
	accounts
	yes 'USER alice' | head -n 100000 | attack -a users
	within 4096
	{
		printf "$HELLO"
		yes '+OK now the password' | head -n 100 | sed 's/$/\r/'
		printf -- '-ERR too many commands before login\r\n'
	} >"$T/expected"
	same "$T/expected" "$T/out"
	logged 'reason=nonsense'
}

@test "100,000 commands in one write after login are all answered, within 4 MiB of memory" {
	local via
	one
	{
		printf "$HELLO"
		yes $'+OK still here\r\n+OK 1 1.h\r\n+OK 11 octets\r\nA: b\r\n\r\nx\r\n.\r\n+OK 1 11\r' |
			head -n $((25000 * 8))
		printf '+OK 0 deleted\r\n'
	} >"$T/expected"
	for via in pair tcp; do
		{
			yes $'NOOP\r\nUIDL 1\r\nRETR 1\r\nLIST 1\r' | head -n 100000
			printf 'QUIT\r\n'
		} | VIA=$via attack -P -m M
		within 4096
		same "$T/expected" "$T/out"
	done
}

# The program stops reading where nobody takes its replies.
@test "a client that sends 100,000 RETRs and reads nothing gets the clock, no UPDATE, and 8 MiB of memory" {
	local via memory
	for via in pipe pair tcp; do
		rm -rf "$T/M"
		one
		truncate -s 100000000 "$T/M/cur/1.h:2,"
		VIA=$via begin "DELE 1\r\nRSET\r\n$(yes 'RETR 1' | head -n 100000)\r\nDELE 1\r\nQUIT\r\n" \
			-n -- -P -m M
		# It measures the message first.
		await grep -q login "$T/log"
		sleep 0.5
		memory=$(most "$PID")
		kill -ALRM "$PID"
		finish
		[ "$status" = 0 ]
		[ "$(stat -c %s "$T/M/cur/1.h:2,")" = 100000000 ]
		logged 'reason=autologout'
		logged 'deleted=0 left=1'
		[ "$memory" -lt "${RESIDENT_KIB:-8192}" ]
	done
}

# ---- What is stored ----

# name LENGTH BASE [INFO]: a name of so many octets, BASE filled up.
name() {
	local fill
	fill=$(octets $(($1 - ${#2} - ${#3})) "${FILL:-y}")
	echo "$2$fill${3:-}"
}

ids() {
	sed -n '/^+OK unique/,/^\./s/\r$//p' "$T/out" | sed '1d;$d' | cut -d' ' -f2
}

@test "names of 255 octets are served with unique-ids of at most 70, and move to cur/ where they have room" {
	local n=0 one names=()
	maildir M
	names=(
		"new/$(name 252 1000000001.)"
		"new/$(name 253 1000000002.)"
		"new/$(name 255 1000000003.)"
		"new/$(name 255 1000000004. :2,S)"
		"cur/$(name 255 1000000005. :2,S)"
		"cur/$(FILL=' ' name 255 1000000006. :2,S)"
		"cur/$(FILL=% name 255 1000000007. :2,S)"
		"cur/$(FILL=- name 255 -1000000008. :2,S)"
		"cur/1000000009.a$(name 239 :2, '')"
	)
	for one in "${names[@]}"; do
		n=$((n + 1))
		printf 'Subject: %d\n\nx\n' $n >"$T/M/$one"
		touch -d '2001-09-10' "$T/M/$one"
	done
	say 'UIDL\r\nRETR 3\r\n' -m M
	ids >"$T/first"
	[ "$(sort -u "$T/first" | wc -l)" = 9 ]
	[ "$(grep -cxE '[0-9a-f]{32}' "$T/first")" = 8 ]
	[ "$(sed -n 8p "$T/first")" = 1000000009.a ]
	has $'Subject: 3\r' "$T/out"
	# Without a QUIT everything is where it was.
	for one in "${names[@]}"; do
		[ -e "$T/M/$one" ]
	done
	say 'UIDL\r\nQUIT\r\n' -m M
	ids | same "$T/first" /dev/stdin
	lacks 'event=warning' "$T/log"
	names[0]=cur/${names[0]#new/}:2,
	names[3]=cur/${names[3]#new/}
	printf '%s\n' "${names[@]}" | sort >"$T/expected"
	(cd "$T/M" && printf '%s\n' cur/* new/*) | sort >"$T/left"
	same "$T/expected" "$T/left"
	say 'UIDL\r\nDELE 1\r\nDELE 2\r\nDELE 3\r\nDELE 6\r\nQUIT\r\n' -m M
	ids | same "$T/first" /dev/stdin
	has '+OK 4 deleted' "$T/out"
	[ "$(find "$T/M/cur" "$T/M/new" -type f | wc -l)" = 5 ]
	say 'UIDL\r\nQUIT\r\n' -m M
	sed '1,3d;6d' "$T/first" >"$T/expected"
	ids | same "$T/expected" /dev/stdin
}

# ---- What stands beside the mail ----

@test "a state file of 500 MB, 600 MB or 2 GB is made anew, within 4 MiB of memory" {
	local box path size
	one
	printf '%s\nA: b\n\nx\n\n' "$FROM" >"$T/B"
	for box in M B; do
		path=$T/M/pop3-state
		[ $box = M ] || path=$T/.B.pop3-state
		for size in 500M 600M 2G; do
			printf 'pop3-state 1 %s\n1 2 3 4 5 6 7 8\n' "$([ $box = M ] && echo maildir || echo mbox)" >"$path"
			truncate -s $size "$path"
			# A last line makes the rest worth a look.
			printf '\nend 1 0123456789abcdef\n' >>"$path"
			printf 'STAT\r\nUIDL 1\r\nQUIT\r\n' | attack -P -m $box
			within 4096
			has '+OK 1 11' "$T/out"
			logged "file=$path text=\"not used, made anew: $([ $size = 500M ] && echo damaged || echo too large)"
			[ "$(stat -c %s "$path")" -lt 1000 ]
			mv "$T/out" "$T/first"
			printf 'STAT\r\nUIDL 1\r\nQUIT\r\n' | attack -P -m $box
			same "$T/first" "$T/out"
			lacks 'event=warning' "$T/log"
		done
	done
}

@test "of a journal of 2 GB without a record nothing is believed, and the mbox stays as it is, within 4 MiB of memory" {
	printf '%s\nA: b\n\nx\n\n' "$FROM" >"$T/B"
	cp "$T/B" "$T/before"
	local journal=$T/.B.pop3-journal aside
	truncate -s 2G "$journal"
	chmod 600 "$journal"
	printf 'STAT\r\nQUIT\r\n' | attack -P -m B
	within 4096
	has '+OK 1 11' "$T/out"
	same "$T/before" "$T/B"
	[ ! -e "$journal" ]
	# What no stop leaves may be the only copy of something.
	truncate -s 2G "$journal"
	printf pop3jrn1 | dd of="$journal" bs=1 seek=1G conv=notrunc status=none
	chmod 600 "$journal"
	printf 'STAT\r\nQUIT\r\n' | attack -P -m B
	within 4096
	has '+OK 1 11' "$T/out"
	same "$T/before" "$T/B"
	logged 'a journal that was not applied: damaged'
	[ ! -e "$journal" ]
	aside=$(find "$T" -name '.B.pop3-journal.aside.*')
	[ "$(stat -c %s "$aside")" = 2147483648 ]
}

@test "the last of 200,000 accounts logs in, within 4 MiB of memory" {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	seq -w 200000 | sed "s|.*|user&:{PLAIN}secret&:$ids:a user:$T::|" >"$T/users"
	[ "$(stat -c %s "$T/users")" -gt 10000000 ]
	one
	printf 'USER user200000\r\nPASS secret200000\r\nSTAT\r\nQUIT\r\n' | attack -a users -m %h/M
	within 4096
	expect "$HELLO$USER_OK"'+OK welcome\r\n+OK 1 11\r\n+OK 0 deleted\r\n'
}

@test "a line of 10 MB in the accounts file is reported, and hides and makes no account, within 4 MiB of memory" {
	local letter
	one
	for letter in x :; do
		{
			printf 'long:'
			octets 10000000 "$letter"
			echo
		} >"$T/users"
		accounts
		printf 'long:' >>"$T/users"
		octets 10000000 "$letter" >>"$T/users"
		printf 'USER alice\r\nPASS secret\r\nSTAT\r\nQUIT\r\n' | attack -a users -m %h/M
		within 4096
		expect "$HELLO$USER_OK"'+OK welcome\r\n+OK 1 11\r\n+OK 0 deleted\r\n'
		logged 'file=users text="line 1: too long"'
		logged 'file=users text="line 3: too long"'
		[ "$(grep -c 'event=error' "$T/log")" = 2 ]
	done
}

@test "what follows a NUL in the accounts file is no account, wherever it stands in its line" {
	local n eve
	one
	accounts
	eve=$(sed s/alice/eve/ "$T/users")
	# At 8,186 of them that follows which a buffer of 8 KiB does not hold.
	{
		for n in {8180..8192} 1; do
			printf 'long:'
			octets "$n" '\0'
			printf '%s\n' "$eve"
		done
		octets 10 '\0'
		printf '\n%s\0\n' "$eve"
	} >>"$T/users"
	attack -a users -m %h/M <<<$'USER eve\r\nPASS secret\r\nUSER alice\r\nPASS secret\r\nQUIT\r'
	within 4096
	expect "$HELLO$USER_OK"'-ERR [AUTH] wrong name or password\r\n'"$USER_OK"'+OK welcome\r\n+OK 0 deleted\r\n'
	logged 'file=users text="line 15: has a NUL"'
	[ "$(grep -c 'event=error' "$T/log")" = 32 ]
}
