#!/usr/bin/env bats
# The state file: what it saves, that unique-ids stay, and that nothing that
# stands at its path makes a reply wrong.
load helper

D='Mon Jan  1 00:00:00 2024'
ALL='STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\n'

teardown() {
	exec 7>&- || :
	[ -z "${PID:-}" ] || kill "$PID" 2>/dev/null || :
	[ -z "${CLIENT:-}" ] || wait "$CLIENT" 2>/dev/null || :
	[ -z "${MOUNTED:-}" ] || umount "$T/disk" 2>/dev/null || umount -l "$T/disk"
}

# letter WORD [HEADER]: one message of an mbox, From_ line first.
letter() {
	# shellcheck disable=SC2059
	printf "From %s $D\nSubject: %s\n${2:-}\n%s\n\n" "$1" "$1" "$1"
}

# box WORD...: the mbox B of such messages.
box() {
	local word
	for word; do
		letter "$word"
	done >"$T/B"
}

# long_box WORD...: the same with messages so long that what is read of the mbox
# tells for what; their places are in $PLACES.
long_box() {
	local word pad
	pad=$(printf '%02000d' 0)
	for word; do
		letter "$word" "X-Pad: $pad\n"
	done >"$T/B"
	mapfile -t PLACES < <(grep -abo '^From ' "$T/B" | cut -d: -f1)
}

# message DIR/NAME [TEXT]: a message of the Maildir M.
message() {
	maildir M
	# shellcheck disable=SC2059
	printf "${2:-Subject: x\n\nx\n}" >"$T/M/$1"
}

# old: the directories of M last changed long ago, so that their times are
# believed.
old() {
	touch -d '2024-01-01' "$T/M/new" "$T/M/cur"
}

# sure STATE: what the state file knows was looked at long after it changed.
sure() {
	touch -d '1 hour' "$T/$1"
}

# traced CALLS SCRIPT [ARG...]: a session of which these system calls are in
# $T/trace, with the paths of descriptors.
traced() {
	local calls=$1 script=$2
	shift 2
	give
	# shellcheck disable=SC2059
	printf "$script" | (cd "$T" && "${AS[@]}" bin/dialogue strace -y -o trace \
		-e "trace=$calls" "$POP3" -P -h pop.example.org "$@") >"$T/out" 2>"$T/log"
}

# reads FILE: length and offset of each pread(2) of it in the trace.
reads() {
	sed -n "s|^pread64([0-9]*<$T/$1>, .*, \([0-9]*\), \([0-9]*\)) = .*|\1 \2|p" "$T/trace"
}

ids() {
	sed -n '/^+OK unique/,/^\./s/\r$//p' "$T/out" | sed '1d;$d' | cut -d' ' -f2
}

warnings() {
	grep -c 'event=warning' "$T/log" || :
}

# forge STATE SCRIPT: edits a state file with sed, and makes its sum right.
forge() {
	need python3
	sed -i -e "$2" "$T/$1"
	env PATH=/usr/local/bin:/usr/bin:/bin python3 -S - "$T/$1" <<'END'
import sys

with open(sys.argv[1], "rb") as file:
    lines = file.read().splitlines(keepends=True)
text = b"".join(line for line in lines if not line.startswith(b"end "))
total = 0
for at in range(0, len(text), 8):
    part = text[at:at + 8]
    word = len(part) if len(part) < 8 else 0
    word = int.from_bytes(part + word.to_bytes(8, "little")[len(part):], "little")
    total = (total ^ word) * 0x9e3779b97f4a7c15 % 2 ** 64
    total ^= total >> 29
count = len(text.splitlines()) - 2
with open(sys.argv[1], "wb") as file:
    file.write(text + b"end %d %016x\n" % (count, total))
END
	sure "$1"
}

# ---- What it saves ----

@test "an mbox that is unchanged is not read but for its first line, and takes no delivery lock" {
	need strace
	long_box one two three
	say "$ALL" -m B
	mv "$T/out" "$T/first"
	sure .B.pop3-state
	traced all 'STAT\r\nLIST\r\nUIDL\r\n' -m B
	[ "$(reads B)" = '1025 0' ]
	no grep -E '^(link|open|openat)\(.*(B\.lock|pop3-lock)' "$T/trace"
	no grep "^fcntl([0-9]*<$T/B>, F_SETLK" "$T/trace"
	no grep 'pop3-state\.new' "$T/trace"
	grep -a '^[1-3] ' "$T/first" | cmp - <(grep -a '^[1-3] ' "$T/out")
	say "$ALL" -m B
	same "$T/first" "$T/out"
}

@test "a Maildir that is unchanged is not listed, and no message is opened" {
	need strace
	message cur/1.a:2,S 'Subject: 1\n\n1\n'
	message cur/2.b:2, 'Subject: 2\n\n22\n'
	message new/3.c 'Subject: 3\n\n333\n'
	old
	say "$ALL" -m M
	mv "$T/out" "$T/first"
	traced all 'STAT\r\nLIST\r\nUIDL\r\n' -m M
	no grep '^getdents' "$T/trace"
	no grep -E '^openat\(.*"[123]\.' "$T/trace"
	no grep 'pop3-state\.new' "$T/trace"
	grep '^[1-3] ' "$T/first" | cmp - <(grep '^[1-3] ' "$T/out")
	say "$ALL" -m M
	same "$T/first" "$T/out"
}

@test "of a Maildir that has changed only the messages not yet seen are opened" {
	need strace
	message cur/1.a:2,S 'Subject: 1\n\n1\n'
	message cur/2.b:2, 'Subject: 2\n\n22\n'
	message new/3.c 'Subject: 3\n\n333\n'
	say 'STAT\r\n' -m M
	mv "$T/M/cur/1.a:2,S" "$T/M/cur/1.a:2,RS"
	mv "$T/M/new/3.c" "$T/M/cur/3.c:2,"
	rm "$T/M/cur/2.b:2,"
	message new/4.d 'Subject: 4\n\n4444\n'
	message new/5.e 'Subject: 5\n\n5\n'
	traced openat 'LIST\r\nUIDL\r\n' -m M
	[ "$(sed -n 's/^openat(.*, "\([0-9]\..*\)", .*/\1/p' "$T/trace" | tr '\n' ' ')" = '4.d 5.e ' ]
	expect "$HELLO"'+OK 4 messages (73 octets)\r\n1 17\r\n2 19\r\n3 20\r\n4 17\r\n.\r\n+OK unique-ids follow\r\n1 1.a\r\n2 3.c\r\n3 4.d\r\n4 5.e\r\n.\r\n'
}

@test "an mbox that only grew is read from its last known message on, once every From_ line is found" {
	need strace
	long_box one two three
	say 'LIST\r\nUIDL\r\n' -m B
	letter four >>"$T/B"
	traced pread64 'LIST\r\nUIDL\r\n' -m B
	[ "$(reads B)" = "$(printf '%s\n' '1025 0' "1025 0" "1025 ${PLACES[1]}" "1025 ${PLACES[2]}" \
		"$(($(stat -c %s "$T/B") - PLACES[2])) ${PLACES[2]}")" ]
	ids >"$T/grown"
	grep '^[0-9]* [0-9]*.$' "$T/out" >"$T/sizes"
	rm "$T/.B.pop3-state"
	say 'LIST\r\nUIDL\r\n' -m B
	ids | cmp - "$T/grown"
	grep '^[0-9]* [0-9]*.$' "$T/out" | cmp - "$T/sizes"
}

@test "a file that may have changed within the clock's tick is looked at again, and then confirmed" {
	need strace
	local before first
	long_box one two three
	say 'LIST\r\nUIDL\r\n' -m B
	mv "$T/out" "$T/first"
	cp "$T/.B.pop3-state" "$T/was"
	touch -r "$T/B" "$T/.B.pop3-state"
	before=$(stat -c '%i' "$T/.B.pop3-state")
	first=$(stat -c '%Y.%y' "$T/.B.pop3-state")
	traced pread64,openat 'LIST\r\nUIDL\r\n' -m B
	[ "$(reads B | tail -n 1)" = "$(($(stat -c %s "$T/B") - PLACES[2])) ${PLACES[2]}" ]
	no grep 'pop3-state\.new' "$T/trace"
	same "$T/first" "$T/out"
	same "$T/was" "$T/.B.pop3-state"
	[ "$(stat -c '%i' "$T/.B.pop3-state")" = "$before" ]
	[ "$(stat -c '%Y.%y' "$T/.B.pop3-state")" != "$first" ]
}

@test "a Maildir that may have changed within the clock's tick is listed again, and then confirmed" {
	need strace
	local before first
	message cur/1.a:2,
	message new/2.b
	say 'LIST\r\nUIDL\r\n' -m M
	mv "$T/out" "$T/first"
	cp "$T/M/pop3-state" "$T/was"
	touch -r "$T/M/new" "$T/M/pop3-state"
	before=$(stat -c '%i' "$T/M/pop3-state")
	first=$(stat -c '%Y.%y' "$T/M/pop3-state")
	traced getdents64,openat 'LIST\r\nUIDL\r\n' -m M
	[ "$(grep -c '^getdents64(.*= [1-9]' "$T/trace")" -ge 2 ]
	no grep -E '^openat\(.*"([12]\.|.*pop3-state\.new)' "$T/trace"
	same "$T/first" "$T/out"
	same "$T/was" "$T/M/pop3-state"
	[ "$(stat -c '%i' "$T/M/pop3-state")" = "$before" ]
	[ "$(stat -c '%Y.%y' "$T/M/pop3-state")" != "$first" ]
}

@test "a change of an mbox within the clock's tick is seen" {
	box one two three
	say 'STAT\r\n' -m B
	# The last message is another one, with size and times as they were.
	sed -i 's/^Subject: three/Subject: seven/;s/^three/th\nee/' "$T/B"
	give
	# shellcheck disable=SC2046 # words
	set -- $(stat -c '%d %i %s %Y %y %Z %z' "$T/B" | sed 's/[0-9-]* [0-9:]*\.0*\([0-9]\+\) [+-][0-9]*/\1/g')
	forge .B.pop3-state "2s/.*/$1 $2 $3 $4 $5 $6 $7 $3/"
	touch -r "$T/B" "$T/.B.pop3-state"
	say 'RETR 3\r\nUIDL\r\nQUIT\r\n' -m B
	has '+OK 26 octets' "$T/out"
	ids >"$T/second"
	[ "$(warnings)" = 0 ]
	rm "$T/.B.pop3-state"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - "$T/second"
}

@test "the first message of an empty Maildir is seen also when it comes within the clock's tick" {
	maildir M
	touch "$T/M/new" "$T/M/cur"
	say 'STAT\r\n' -m M
	has '+OK 0 0' "$T/out"
	touch -r "$T/M/new" "$T/time"
	message new/1.a
	touch -r "$T/time" "$T/M/new"
	touch -r "$T/time" "$T/M/pop3-state"
	say 'STAT\r\n' -m M
	has '+OK 1 17' "$T/out"
	sure M/pop3-state
	say 'STAT\r\n' -m M
	has '+OK 1 17' "$T/out"
}

@test "what was found out is kept also when the client vanishes after the login" {
	local via
	for via in pair pipe tcp; do
		rm -rf "$T/M" "$T/B" "$T/.B.pop3-state"
		box one two three
		VIA=$via DIAL='-r 1' say '' -m B
		[ "$(tail -n 1 "$T/.B.pop3-state" | cut -d' ' -f1,2)" = 'end 3' ]
		message new/1.a
		VIA=$via DIAL='-r 1' say '' -m M
		[ "$(tail -n 1 "$T/M/pop3-state" | cut -d' ' -f1,2)" = 'end 1' ]
		logged 'reason=disconnect'
	done
}

@test "a state file that cannot be replaced is one warning, and the session goes on" {
	local way
	for way in directory in-the-way; do
		rm -rf "$T/M"
		message cur/1.a:2, 'Subject: 1\n\n1\n'
		message cur/2.b:2, 'Subject: 2\n\n22\n'
		say 'STAT\r\n' -m M
		message new/3.c 'Subject: 3\n\n333\n'
		cp "$T/M/pop3-state" "$T/was"
		give
		case $way in
		directory) chmod 500 "$T/M" ;;
		in-the-way) mkdir "$T/M/pop3-state.new" ;;
		esac
		say 'LIST\r\nUIDL\r\nRETR 3\r\nDELE 1\r\nQUIT\r\n' -m M
		chmod 700 "$T/M"
		expect "$HELLO"'+OK 3 messages (54 octets)\r\n1 17\r\n2 18\r\n3 19\r\n.\r\n+OK unique-ids follow\r\n1 1.a\r\n2 2.b\r\n3 3.c\r\n.\r\n+OK 19 octets\r\nSubject: 3\r\n\r\n333\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
		logged "file=$T/M/pop3-state text=\"not written: "
		[ "$(warnings)" = 1 ]
		same "$T/was" "$T/M/pop3-state"
	done
}

@test "a maildrop where no state file can be made is served, with one warning" {
	message cur/1.a:2,
	give
	chmod 500 "$T/M"
	say 'STAT\r\nUIDL\r\nDELE 1\r\nQUIT\r\n' -m M
	chmod 700 "$T/M"
	expect "$HELLO"'+OK 1 17\r\n+OK unique-ids follow\r\n1 1.a\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ "$(warnings)" = 1 ]
	logged "file=$T/M/pop3-state text=\"no session lock: Permission denied\""
}

@test "on a full disk the state file stays as it was, and messages can still be removed" {
	need_root
	need mount
	mkdir "$T/disk"
	mount -t tmpfs -o size=64k tmpfs "$T/disk" || skip "needs mount -t tmpfs"
	MOUNTED=1
	message cur/1.a:2,
	message cur/2.b:2,
	cp -r "$T/M" "$T/disk/M"
	say 'STAT\r\n' -m disk/M
	cp "$T/disk/M/pop3-state" "$T/was"
	: >"$T/disk/M/new/3.c"
	head -c 65536 /dev/zero >"$T/disk/filler" 2>/dev/null || :
	say 'UIDL\r\nQUIT\r\n' -m disk/M
	[ "$(ids | tr '\n' ' ')" = '1.a 2.b 3.c ' ]
	logged 'text="not written: No space left on device"'
	[ "$(warnings)" = 1 ]
	same "$T/was" "$T/disk/M/pop3-state"
	[ ! -e "$T/disk/M/pop3-state.new" ]
	say 'DELE 1\r\nQUIT\r\n' -m disk/M
	has '+OK 1 deleted' "$T/out"
	rm "$T/disk/filler"
	say 'UIDL\r\nQUIT\r\n' -m disk/M
	[ "$(ids | tr '\n' ' ')" = '2.b 3.c ' ]
	[ "$(warnings)" = 0 ]
	[ "$(tail -n 1 "$T/disk/M/pop3-state" | cut -d' ' -f1,2)" = 'end 2' ]
}

# ---- Unique-ids stay ----

@test "unique-ids of an mbox stay over sessions, and when others are removed or delivered" {
	box one two three four five
	say 'UIDL\r\nQUIT\r\n' -m B
	ids >"$T/first"
	say 'UIDL\r\nDELE 1\r\nDELE 3\r\nQUIT\r\n' -m B
	ids | cmp - "$T/first"
	letter six >>"$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	[ "$(ids | head -n 3)" = "$(sed -n '2p;4p;5p' "$T/first")" ]
	[ "$(ids | sort -u | wc -l)" = 4 ]
	say 'UIDL\r\nDELE 3\r\nDELE 4\r\nQUIT\r\n' -m B
	say 'UIDL\r\nQUIT\r\n' -m B
	[ "$(ids)" = "$(sed -n '2p;4p' "$T/first")" ]
}

@test "a copy of a message keeps its unique-id when the first one goes, whatever a reader does" {
	local digest
	box one same two same three same
	say 'UIDL\r\nDELE 2\r\nQUIT\r\n' -m B
	digest=$(ids | sed -n 2p)
	[ "$(ids | sed -n '4p;6p' | tr '\n' ' ')" = "$digest.2 $digest.3 " ]
	ids | sed 2d >"$T/stay"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - "$T/stay"
	# A reader rewrites it from the first change on, in place.
	sed 's/^Subject: two/Status: RO\n&/' "$T/B" >"$T/C"
	cat "$T/C" >"$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - "$T/stay"
	# One that renames a new file over it.
	sed -i 's/^Subject: one/Status: O\n&/' "$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - "$T/stay"
	# The last message gets a line and another one comes behind it.
	sed 's/^Subject: three/Status: O\n&/' "$T/B" >"$T/C"
	cat "$T/C" >"$T/B"
	letter same >>"$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | head -n 5 | cmp - "$T/stay"
	[ "$(ids | tail -n 1)" = "$digest.4" ]
}

# keys DIR KEYS: a mutt that has $T/B open is told these keys, and ends.
keys() {
	need mutt script
	printf 'set quit=yes delete=yes move=no mbox_type=mbox wait_key=no sleep_time=0 header_cache="" folder=.\n' >"$T/muttrc"
	give
	(cd "$T" && "${AS[@]}" env HOME="$T" TERM=xterm LC_ALL=C timeout 20 script -qec \
		"mutt -n -F muttrc -f B -e 'push \"$1<quit>\"'" /dev/null) >"$T/terminal" </dev/null 2>&1 3>&-
}

@test "unique-ids stay when mutt reads, flags and removes messages" {
	local digest
	box one same two same three
	say 'UIDL\r\nDELE 2\r\nQUIT\r\n' -m B
	ids | sed 2d >"$T/stay"
	keys '<first-entry><display-message><exit><next-entry><flag-message>'
	[ "$(grep -c '^Status: R*O' "$T/B")" = 4 ]
	[ "$(grep -c '^X-Status: F' "$T/B")" = 1 ]
	say 'UIDL\r\nRETR 3\r\nQUIT\r\n' -m B
	ids | cmp - "$T/stay"
	tail -n 6 "$T/out" | grep '^same'
	keys '<first-entry><delete-message>'
	[ "$(grep -c '^From ' "$T/B")" = 3 ]
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - <(tail -n 3 "$T/stay")
}

@test "unique-ids of a Maildir stay over renames, also those of names that are none" {
	message "cur/1.M1.x y:2," 'Subject: odd\n\nodd\n'
	message cur/2.a:2,S
	message "new/3.M1.x z" 'Subject: odd\n\nodd\n'
	message new/4.b
	message "cur/5.M1.x w:2," 'Subject: odd\n\nodd\n'
	say 'UIDL\r\n' -m M
	ids >"$T/first"
	[ "$(sed -n '3p;5p' "$T/first" | tr '\n' ' ')" = "$(head -n 1 "$T/first").2 $(head -n 1 "$T/first").3 " ]
	say 'UIDL\r\nDELE 1\r\nQUIT\r\n' -m M
	ids | cmp - "$T/first"
	mv "$T/M/cur/3.M1.x z:2," "$T/M/cur/3.M1.x z:2,RS"
	mv "$T/M/cur/2.a:2,S" "$T/M/cur/2.a:2,FS"
	say 'UIDL\r\nQUIT\r\n' -m M
	ids | cmp - <(sed 1d "$T/first")
	rm "$T/M/cur/3.M1.x z:2,RS"
	old
	say 'UIDL\r\nQUIT\r\n' -m M
	ids | cmp - <(sed '1d;3d' "$T/first")
	say 'UIDL\r\nQUIT\r\n' -m M
	ids | cmp - <(sed '1d;3d' "$T/first")
}

@test "nothing that a sender writes into a header is a unique-id" {
	local n
	{
		letter one 'X-UIDL: sent\nMessage-ID: <sent@x>\nX-UID: 7\n'
		letter two 'X-UIDL: sent\nMessage-ID: <sent@x>\nX-UID: 7\n'
		letter one 'X-UIDL: other\nMessage-ID: <sent@x>\nX-UID: 7\n'
	} >"$T/B"
	for n in 1 2; do
		say 'UIDL\r\nQUIT\r\n' -m B
		[ "$(ids | grep -cE '^[0-9a-f]{32}(\.2)?$')" = 3 ]
		[ "$(ids | sort -u | wc -l)" = 3 ]
		[ "$(ids | sed -n 3p)" = "$(ids | sed -n 1p).2" ]
	done
	message new/1.a 'X-UIDL: sent\nMessage-ID: <sent@x>\n\nx\n'
	message new/2.b 'X-UIDL: sent\nMessage-ID: <sent@x>\n\nx\n'
	message 'cur/3.c d:2,' 'X-UIDL: sent\nMessage-ID: <sent@x>\n\nx\n'
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | head -n 2 | tr '\n' ' ')" = '1.a 2.b ' ]
	ids | tail -n 1 | grep -xE '[0-9a-f]{32}'
}

# ---- What stands at its path ----

# boxes: an mbox and a Maildir of three messages; what a session without a
# state file replies is $T/B.right and $T/M.right, and what a state file of lies
# would have it say is in $T/B.lies and $T/M.lies: octets and unique-ids that
# are wrong, and a right sum.
boxes() {
	local lie
	box one two three
	message cur/1.a:2,S 'Subject: 1\n\n1\n'
	message "new/2.M1.x y" 'Subject: 2\n\n22\n'
	message cur/3.c:2, 'Subject: 3\n\n333\n'
	old
	say "$ALL" -m B
	mv "$T/out" "$T/B.right"
	say "$ALL" -m M
	mv "$T/out" "$T/M.right"
	# PLACE SIZE OCTETS FLAGS COPY DIGEST ID NAME, and 4096 for an ID of others.
	lie='3,$s/^\([^ ]*\) \([^ ]*\) \([^ ]*\) \([^ ]*\) \([^ ]*\) \([^ ]*\) [^ ]* /\1 \2 9\3 4096 \5 \6 lie.\3 /'
	forge .B.pop3-state "$lie"
	forge M/pop3-state "$lie"
	mv "$T/.B.pop3-state" "$T/B.lies"
	mv "$T/M/pop3-state" "$T/M.lies"
}

# state_of B|M: where its state file is.
state_of() {
	case $1 in
	B) echo "$T/.B.pop3-state" ;;
	M) echo "$T/M/pop3-state" ;;
	esac
}

# lies B|M: puts the state file of lies there.
lies() {
	rm -rf "$(state_of "$1")"
	cp "$T/$1.lies" "$(state_of "$1")"
	touch -d '1 hour' "$(state_of "$1")"
	give
}

# truthful B|M: a session replies what is right.
truthful() {
	say "$ALL" -m "$1"
	same "$T/$1.right" "$T/out"
}

# mended B|M TEXT: the state file is not believed, which the log says once, and
# then there is a good one.
mended() {
	truthful "$1"
	logged "file=$(state_of "$1") text=\"not used, made anew: $2\""
	[ "$(warnings)" = 1 ]
	truthful "$1"
	[ "$(warnings)" = 0 ]
}

@test "lies with a right sum would be believed: these tests can fail" {
	local one
	boxes
	for one in B M; do
		lies "$one"
		say 'LIST\r\nUIDL\r\n' -m "$one"
		[ "$(grep -c '^[123] lie\.' "$T/out")" = 3 ]
		[ "$(grep -c '^[123] 9[0-9]*.$' "$T/out")" = 3 ]
	done
}

@test "a symlink, FIFO or directory where the state file should be is left alone, and the session has no lock" {
	local one kind path text
	boxes
	for one in B M; do
		for kind in symlink fifo directory; do
			path=$(state_of "$one")
			rm -rf "$path"
			case $kind in
			symlink)
				lies "$one"
				mv "$path" "$T/elsewhere"
				cp -p "$T/elsewhere" "$T/was"
				ln -s "$T/elsewhere" "$path"
				text="$ELOOP"
				;;
			fifo)
				mkfifo "$path"
				text='not a regular file'
				;;
			directory)
				mkdir "$path"
				text='Is a directory'
				;;
			esac
			truthful "$one"
			logged "file=$path text=\"no session lock: $text\""
			[ "$(warnings)" = 1 ]
			[ "$kind" != symlink ] || [ -L "$path" ]
			[ "$kind" != symlink ] || same "$T/was" "$T/elsewhere"
			[ "$kind" != fifo ] || [ -p "$path" ]
			[ "$kind" != directory ] || [ -d "$path" ]
		done
	done
}

@test "a state file that has a second name, or may not be read, is not believed" {
	local one path
	boxes
	for one in B M; do
		path=$(state_of "$one")
		lies "$one"
		ln "$path" "$T/second"
		truthful "$one"
		logged "file=$path text=\"no session lock: has more than one link\""
		same "$T/$one.lies" "$T/second"
		rm "$T/second"
		chmod 0 "$path"
		truthful "$one"
		logged "file=$path text=\"no session lock: Permission denied\""
		[ "$(warnings)" = 1 ]
		rm -f "$path"
	done
}

@test "a state file of another user is not believed, and not changed" {
	need_root
	local one path
	boxes
	for one in B M; do
		path=$(state_of "$one")
		lies "$one"
		# What others own stays so: no `give` here.
		chown root "$path"
		chmod 666 "$path"
		(cd "$T" && printf "$ALL" | "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org \
			-m "$one" >out 2>log)
		same "$T/$one.right" "$T/out"
		logged "file=$path text=\"no session lock: not owned by the user\""
		[ "$(warnings)" = 1 ]
		same "$T/$one.lies" "$path"
	done
}

@test "a state file that is empty is filled, without a warning" {
	local one
	boxes
	for one in B M; do
		: >"$(state_of "$one")"
		truthful "$one"
		[ "$(warnings)" = 0 ]
		[ "$(tail -n 1 "$(state_of "$one")" | cut -d' ' -f1,2)" = 'end 3' ]
	done
}

@test "a state file that cannot be read now is [SYS/TEMP], and what it knows is kept" {
	need strace
	box a a
	say 'UIDL\r\nQUIT\r\n' -m B
	cp "$T/.B.pop3-state" "$T/before"
	(cd "$T" && printf 'UIDL\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace -P "$T/.B.pop3-state" \
		-e inject=pread64:error=EIO "$POP3" -P -h pop.example.org -m B >out 2>log)
	expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n'
	logged "file=$T/.B.pop3-state text=\"read: $EIO\""
	same "$T/before" "$T/.B.pop3-state"
}

@test "a state file that is too large, of another version or format, or has a wrong sum, is made anew" {
	local one other path
	boxes
	for one in B M; do
		path=$(state_of "$one")
		truncate -s 2G "$path"
		mended "$one" 'too large'
		lies "$one"
		forge "${path#"$T/"}" '1s/1/2/'
		mended "$one" 'damaged, or not one of ours'
		lies "$one"
		forge "${path#"$T/"}" '1s/ [a-z]*$/ other/'
		mended "$one" 'damaged, or not one of ours'
		other=$(echo "$one" | tr BM MB)
		cp "$T/$other.lies" "$path"
		touch -d '1 hour' "$path"
		mended "$one" 'damaged, or not one of ours'
		lies "$one"
		sed -i '3s/lie/lye/' "$path"
		touch -d '1 hour' "$path"
		mended "$one" damaged
		printf 'anything\n' >"$path"
		mended "$one" damaged
		head -c 100000 /dev/zero | tr '\0' '\n' >"$path"
		mended "$one" damaged
		{
			head -n 2 "$T/$one.lies"
			head -c 100000 /dev/zero | tr '\0' 9
			echo
		} >"$path"
		forge "${path#"$T/"}" ''
		mended "$one" 'damaged, or not one of ours'
	done
}

@test "a row that no session could have written makes the state file damaged" {
	local edit
	boxes
	# Of a Maildir: names with "/", hidden ones, none, one with a NUL; ids and
	# digests that are none; numbers that are none or too large.
	for edit in 's/[^ ]*$/a\/b/' 's/[^ ]*$/..\/..\/B/' 's/[^ ]*$/../' 's/[^ ]*$/.hidden/' \
		's/[^ ]*$/-/' 's/ [^ ]*$/ /' 's/[^ ]*$/a%00b/' 's/[^ ]*$/a%zzb/' 's/[^ ]*$/a%2/' \
		's/lie\.[0-9]*/a%20b/' 's/lie\.[0-9]*/a%7Fb/' "s/lie\\.[0-9]*/$(printf '%071d' 1)/" \
		's/4096 \(.*\) lie\.[0-9]* /4 \1 - /' 's/^0/-1/' 's/^0/99999999999999999999/' \
		's/4096/1048576/' 's/$/ more/' 's/ / x/3' "s/lie.* .*/- $(printf '%0200d' 1)/" \
		's/lie.* .*/- a%20b/' "s/[^ ]*\$/$(printf '%0256d' 1)/"; do
		echo "# $edit"
		lies M
		forge M/pop3-state "3$edit"
		truthful M
		logged "file=$T/M/pop3-state text=\"not used, made anew: damaged, or not one of ours\""
	done
	# Of an mbox.
	for edit in 's/\([0-9a-f]\{31\}\)[0-9a-f] /\1 /' 's/\([0-9a-f]\{31\}\)[0-9a-f] /\1G /' \
		's/[^ ]*$/name/' 's/^[0-9]*/17592186044416/'; do
		echo "# $edit"
		lies B
		forge .B.pop3-state "4$edit"
		truthful B
		logged "file=$T/.B.pop3-state text=\"not used, made anew: damaged, or not one of ours\""
	done
}

@test "places in an mbox that no scan could have found are looked for again" {
	local edit
	boxes
	for edit in '4s/^[0-9]*/0/' '5s/^[0-9]*/1/' '4s/^[0-9]*/99999/' '2s/[0-9]*$/9/' '2s/[0-9]*$/99999/' \
		'4s/^[0-9]*/5/'; do
		echo "# $edit"
		lies B
		# Ids of others are kept, whatever the places: here there are none.
		forge .B.pop3-state "s/ 4096 / 4 /;s/ lie[^ ]* / - /;$edit"
		truthful B
		truthful B
		[ "$(warnings)" = 0 ]
	done
}

# damage B|M: sessions with each prefix of a state file of lies, and with it
# with one bit wrong, 300 times: all reply what is right.
damage() {
	need python3
	say "$ALL" -m "$1"
	same "$T/$1.right" "$T/out"
	printf "$ALL" >"$T/script"
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 - \
		"$POP3" "$1" "$(state_of "$1")") <<'END'
import os
import random
import subprocess
import sys
import time

program, box, path = sys.argv[1:]
lies = open(box + ".lies", "rb").read()
right = open(box + ".right", "rb").read()
script = open("script", "rb").read()
dice = random.Random(1)
later = time.time() + 3600
wrong = 0


def replies(text):
    with open(path, "wb") as file:
        file.write(text)
    os.utime(path, (later, later))
    done = subprocess.run([program, "-P", "-h", "pop.example.org", "-m", box],
                          input=script, capture_output=True, check=False)
    return done.stdout, done.stderr.count(b"made anew: ")


def check(text, what, warned=1):
    global wrong
    if replies(text) != (right, warned):
        wrong += 1
        print("believed:", what)


if replies(lies)[0] == right:
    sys.exit("the lies are not believed even when whole")
for length in range(len(lies)):
    check(lies[:length], f"{length} octets", int(length > 0))
for _ in range(300):
    bit = dice.randrange(8 * len(lies))
    flipped = bytearray(lies)
    flipped[bit // 8] ^= 1 << bit % 8
    check(flipped, f"bit {bit} flipped")
sys.exit(wrong > 0)
END
}

@test "no prefix of an mbox's state file is believed, nor one with a wrong bit" {
	boxes
	damage B
}

@test "no prefix of a Maildir's state file is believed, nor one with a wrong bit" {
	boxes
	damage M
}

@test "what a killed session left beside the state file is replaced" {
	local one kind path
	boxes
	echo untouched >"$T/victim"
	for one in B M; do
		path=$(state_of "$one")
		for kind in file symlink link; do
			rm -f "$path" "$path.new"
			case $kind in
			file) printf 'half' >"$path.new" ;;
			symlink) ln -s "$T/victim" "$path.new" ;;
			link) ln "$T/victim" "$path.new" ;;
			esac
			truthful "$one"
			[ "$(warnings)" = 0 ]
			[ ! -e "$path.new" ]
			[ ! -L "$path.new" ]
			[ "$(cat "$T/victim")" = untouched ]
			[ "$(tail -n 1 "$path" | cut -d' ' -f1,2)" = 'end 3' ]
		done
	done
}

# ---- The session lock ----

@test "a session that finds the state file replaced while it locks it does not get in beside the other" {
	need strace
	box one two three
	say 'STAT\r\n' -m B
	letter four >>"$T/B"
	# This one opens the file, and comes to lock it only later.
	(cd "$T" && printf 'STAT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
		-P "$T/.B.pop3-state" -e inject=?open,openat:delay_exit=1500000:when=1 \
		"$POP3" -P -h pop.example.org -m B >late 2>log.late 3>&-) &
	local late=$!
	await eval "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q ' $T/\.B\.pop3-state$'"
	converse -P -m B
	tell 'STAT\r\n'
	has '+OK 4' "$T/out"
	wait "$late"
	[ "$(tr -d '\r' <"$T/late")" = '-ERR [IN-USE] another session has the maildrop' ]
	[ "$(grep -c 'open.*B\.pop3-state"' "$T/trace")" = 2 ]
	tell 'DELE 1\r\nQUIT\r\n'
	hang_up
	has '+OK 1 deleted' "$T/out"
}

@test "of two sessions that start at once exactly one gets in" {
	need python3
	box one two three
	message new/1.a
	give
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 - "$POP3") <<'END'
import os
import socket
import subprocess
import sys

wrong = 0
for turn in range(100):
    box, state = (("B", ".B.pop3-state"), ("M", "M/pop3-state"))[turn % 2]
    # With no state file, with one that is replaced, and with one that is not.
    if turn % 3 == 0 and os.path.exists(state):
        os.remove(state)
    elif turn % 3 == 1:
        os.utime("B")
        os.utime("M/new")
    sessions = []
    for _ in range(2):
        ours, its = socket.socketpair()
        process = subprocess.Popen(
            [sys.argv[1], "-P", "-h", "pop.example.org", "-m", box],
            stdin=its, stdout=its, stderr=subprocess.DEVNULL)
        its.close()
        sessions.append((ours, process))
    said = []
    for ours, _ in sessions:
        said.append(ours.makefile("rb").readline())
    if sorted(line[:13] for line in said) != [b"+OK pop.examp", b"-ERR [IN-USE]"]:
        wrong += 1
        print(turn, said)
    for ours, process in sessions:
        ours.close()
        process.wait()
sys.exit(wrong > 0)
END
}

@test "when a session is killed the next one gets in at once" {
	box one two three
	local n
	for n in 1 2 3; do
		converse -P -m B
		tell 'DELE 1\r\n'
		kill -9 "$PID"
		hang_up
		[ "$status" = 137 ]
		say 'STAT\r\n' -m B
		expect "$HELLO"'+OK 3 67\r\n'
	done
}
