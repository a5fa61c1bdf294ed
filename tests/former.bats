#!/usr/bin/env bats
# Unique-ids of the POP3 server before us, from files as it leaves them. Those
# that real servers have written are in takeover.bats.
load helper

D='Mon Jan  1 00:00:00 2024'
FIRST="From a $D"
RECORD="From MAILER-DAEMON $D\nFrom: Mail System Internal Data <MAILER-DAEMON@h>\nSubject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1700000001 0000000009\nStatus: RO\n\nThis text is part of the internal format of your mail folder.\n\n"
DIGEST='[0-9a-f]{32}'

# message NAME...: messages in cur/ of the Maildir M, in this order.
message() {
	local name
	maildir M
	for name; do
		N=$((${N:-0} + 1))
		printf 'Subject: %d\n\n%d\n' "$N" "$N" >"$T/M/cur/$name"
		touch -d "@$((1000000000 + N))" "$T/M/cur/$name"
	done
}

# list NAME FORMAT: a file in the Maildir.
list() {
	# shellcheck disable=SC2059
	printf -- "$2" >"$T/M/$1"
}

box() {
	# shellcheck disable=SC2059
	printf -- "$1" >"$T/B"
}

# forget: as if we had never served the maildrop.
forget() {
	rm -f "$T/M/pop3-state" "$T/.B.pop3-state"
}

# ids [ARG...]: the unique-ids that a session gives, on one line in $IDS. None
# stands there twice, and each is such as RFC 1939 allows.
ids() {
	say 'UIDL\r\nQUIT\r\n' "$@"
	IDS=$(LC_ALL=C awk '
		/^\+OK unique/ { listing = 1; next }
		listing == 1 && /^\.\r$/ { listing = 2 }
		listing == 1 {
			if ($0 !~ /^[0-9]+ [!-~]+\r$/ || length($2) > 71 || seen[$2]++)
				wrong = 1
			sub(/\r$/, "", $2)
			ids = ids (ids == "" ? "" : " ") $2
		}
		END { print ids; exit wrong || listing != 2 }' "$T/out") || {
		cat -v "$T/out" >&2
		return 1
	}
}

# lacks TEXT FILE: it has not.
lacks() {
	if has "$1" "$2"; then
		cat "$2" >&2
		return 1
	fi
}

# gives EXPECTED [ARG...]: those are the ids; now, and in the session after it,
# whether or not the files of the server before us are still there.
gives() {
	local expected=$1
	shift
	ids "$@"
	[ "$IDS" = "$expected" ] || {
		printf 'ids: %s\nnot: %s\n' "$IDS" "$expected" >&2
		return 1
	}
}

# like REGEX [ARG...]: the same with a regular expression.
like() {
	local expected=$1
	shift
	ids "$@"
	[[ "$IDS" =~ ^$expected$ ]] || {
		printf 'ids: %s\nnot: %s\n' "$IDS" "$expected" >&2
		return 1
	}
}

# ---- Dovecot, Maildir ----

@test "the ids of dovecot-uidlist, versions 1 and 3, are kept as Dovecot gives them" {
	message 1.a:2,S 2.b:2, 3.c
	list dovecot-uidlist '1 1700000000 12\n7 1.a:2,\n11 2.b\n10000 9.gone\n'
	gives '000000076553f100 0000000b6553f100 3.c' -m M
	logged 'event=takeover addr=local user='
	logged ' from=dovecot ids=2'
	forget
	list dovecot-uidlist '3 V1700000000 N12 G492e532a2fa0026b2e74000083ecc375 Xnew\n7 W21 :1.a\n4294967294 S4 W5 :2.b:2,S\n'
	gives '000000076553f100 fffffffe6553f100 3.c' -m M
}

@test "a saved id in dovecot-uidlist wins, and P alone stands for the base name" {
	message 1.a:2,S 2.b:2, 3.c 4.d
	list dovecot-uidlist '3 V1700000000 N12\n7 PUID5-900 W21 :1.a\n8 W4 P G2 :2.b:2,S\n9 Q1 W5 :3.c\n10 Pold Pnew :4.d\n'
	gives 'UID5-900 2.b 000000096553f100 new' -m M
}

@test "a saved id of 70 octets is kept, one of 71 is not" {
	message 1.a 2.b
	list dovecot-uidlist "3 V1700000000 N12\n7 P$(printf '%070d' 7) :1.a\n8 P$(printf '%071d' 8) :2.b\n"
	gives "$(printf '%070d' 7) 2.b" -m M
}

@test "names of files may have blanks, colons and any octets in dovecot-uidlist" {
	message 'a b:2,S' "$(printf 'caf\303\251')" 'c:d:2,'
	list dovecot-uidlist '3 V1700000000 N12\n7 :a b:2,\n8 W1 :caf\303\251\n9 :c:d\n'
	gives '000000076553f100 000000086553f100 000000096553f100' -m M
}

@test "an id in dovecot-uidlist that is another's base name or given before is not given again" {
	message 1.a 2.b 3.c 4.d
	list dovecot-uidlist '3 V1700000000 N12\n7 P2.b :1.a\n9 Psame :3.c\n10 Psame :4.d\n'
	gives '1.a 2.b same 4.d' -m M
}

@test "control characters and 8-bit octets in a saved id are not taken over" {
	message 1.a 2.b 3.c 4.d
	list dovecot-uidlist '3 V1700000000 N12\n7 Px\001y :1.a\n8 Px\ty :2.b\n9 P\303\251 :3.c\n10 Pfine\r :4.d\n'
	gives '1.a 2.b 3.c 4.d' -m M
}

@test "of a damaged dovecot-uidlist the lines up to the damage count" {
	local line
	message 1.a 2.b 3.c
	for line in '7 2.b' '6 2.b' '0 2.b' '4294967296 2.b' '99999999999999999999 2.b' '-8 2.b' \
		'x 2.b' '8' '' "8 $(printf '%05000d' 1)"; do
		forget
		list dovecot-uidlist "1 1700000000 12\n7 1.a\n$line\n9 3.c\n"
		gives '000000076553f100 2.b 3.c' -m M
		[ "${#line}" -gt 4000 ] || logged 'file=dovecot-uidlist text="damaged after uid 7"'
	done
	forget
	list dovecot-uidlist '3 V1700000000 N12\n7 :1.a\n8 W1 2.b\n9 :3.c\n'
	gives '000000076553f100 2.b 3.c' -m M
	forget
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n8 2.b'
	gives '000000076553f100 2.b 3.c' -m M
}

@test "a dovecot-uidlist of unknown form is not used, and the log says so" {
	local head
	message 1.a
	for head in '2 1700000000 12' '4 V1700000000 N12' '3 N12' '3 V0 N12' '3 Vx N12' '3' '1 0 12' '1' \
		'1 4294967296 12' 'V1700000000' '' '\0003 V1700000000' "3 X$(printf '%05000d' 1) V1700000000 N12"; do
		forget
		list dovecot-uidlist "$head\n7 :1.a\n8 1.a\n"
		gives 1.a -m M
		logged 'file=dovecot-uidlist text="not used: unknown form"'
	done
	forget
	list dovecot-uidlist ''
	gives 1.a -m M
}

@test "two messages with one base name take nothing over, since nobody knows which was meant" {
	message 1.a:2, 2.b
	printf 'another\n' >"$T/M/new/1.a"
	list dovecot-uidlist '1 1700000000 12\n7 1.a:2,\n8 2.b\n'
	like "$DIGEST $DIGEST 000000086553f100" -m M
}

# ---- Courier ----

@test "courierpop3dsizelist without a version: ids are names, with odd octets as +XX" {
	message 1.a:2,S "2.b c'\"+d" "$(printf '3.\303\251')"
	list courierpop3dsizelist "1.a:2, 40\n2.b c'\"+d 40\n3.\303\251 40\n"
	gives '1.a 2.b+20c+27+22+2Bd 3.+C3+A9' -m M
	logged 'from=courier ids=3'
}

@test "courierpop3dsizelist, version 1: UID and a number" {
	message 1.a:2,S 2.b 3.c
	list courierpop3dsizelist '/1 12\n1.a:2, 40 7\n2.b 40 4294967295\n3.c 40 0\n'
	gives 'UID7 UID4294967295 3.c' -m M
}

@test "courierpop3dsizelist, versions 2 and 3: UID, number and validity" {
	message 1.a:2,S 2.b '3.c d' 4.e+
	list courierpop3dsizelist '/2 12 1700000000\n1.a:2, 40 7:1700000000\n2.b 40 8:0\n3.c d:2,S 40 9:1600000000\n4.e+ 40 0:0\n'
	gives 'UID7-1700000000 UID8 UID9-1600000000 4.e+2B' -m M
	forget
	list courierpop3dsizelist '/3 12 1700000000\n1.a:2, 40 7:1700000000:0\n2.b 40 8:0:1\n3.c d:2,S 40 9:1600000000:0\n4.e+ 40 0:0:0\n'
	gives 'UID7-1700000000 UID8 UID9-1600000000 4.e+2B' -m M
}

@test "a line of courierpop3dsizelist that is not of its form is passed over" {
	message 1.a 2.b 3.c 4.d 5.e 6.f 7.g 8.h
	list courierpop3dsizelist '/3 12 1700000000\n1.a 40 7:1700000000:0\n2.b 40\n3.c 40 x:1700000000:0\n4.d 40 4294967296:1:0\n5.e 40 9:x:0\n\n 40 9:1:0\n6.f\n7.g 40 -3:1:0\n8.h 40 8:1700000000:0\n'
	gives 'UID7-1700000000 2.b 3.c 4.d 5.e 6.f 7.g UID8-1700000000' -m M
	[ "$(grep -c 'courierpop3dsizelist' "$T/log")" = 1 ]
	logged 'file=courierpop3dsizelist text="8 lines are not of its form"'
}

@test "a courierpop3dsizelist of a version to come, or with too long a line, is not used" {
	message 1.a 2.b
	list courierpop3dsizelist '/4 12 1700000000\n1.a 40 7:1700000000:0\n2.b 40 8:1700000000:0\n'
	gives '1.a 2.b' -m M
	logged 'file=courierpop3dsizelist text="not used: unknown form"'
	forget
	list courierpop3dsizelist "/3 12 1700000000\n1.a 40 7:1700000000:0\n$(printf '%05000d' 1) 40 9:1:0\n2.b 40 8:1700000000:0\n"
	gives 'UID7-1700000000 2.b' -m M
}

@test "Courier's ids are given once only, and never where they would be too long" {
	local long
	long="4.$(printf '%024d' 1 | tr 0 "'")"
	message 1.a 2.b 3.c "$long" "5.$(printf '%071d' 1)" 6.f
	list courierpop3dsizelist "/3 12 1700000000\n1.a 40 7:1:0\n2.b 40 7:1:0\n3.c 40 8:1:0\n$long 40 0:0:0\n5.$(printf '%071d' 1) 40 0:0:0\n6.f 40 9:1:0\n6.f 40 10:1:0\n"
	like "UID7-1 2\.b UID8-1 $long $DIGEST UID10-1" -m M
}

# ---- Which list, and when ----

@test "a list that is a FIFO, a directory, a symlink or unreadable is not used" {
	local list
	message 1.a
	printf '3 V1700000000 N12\n7 :1.a\n' >"$T/elsewhere"
	for list in dovecot-uidlist courierpop3dsizelist; do
		mkfifo "$T/M/$list"
		gives 1.a -m M
		logged "file=$list text=\"not used: not a file of a usual size\""
		forget
		rm "$T/M/$list"
		mkdir "$T/M/$list"
		gives 1.a -m M
		logged "file=$list text=\"not used: not a file of a usual size\""
		forget
		rmdir "$T/M/$list"
		ln -s "$T/elsewhere" "$T/M/$list"
		gives 1.a -m M
		logged "file=$list text=\"not used: "
		forget
		rm "$T/M/$list"
	done
	cp "$T/elsewhere" "$T/M/dovecot-uidlist"
	chmod 0 "$T/M/dovecot-uidlist"
	gives 1.a -m M
	logged 'file=dovecot-uidlist text="not used: Permission denied"'
}

@test "dovecot-uidlist goes before courierpop3dsizelist, and -i says whose ids count" {
	message 1.a 2.b
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	list courierpop3dsizelist '/1 12\n1.a 40 7\n2.b 40 8\n'
	gives '000000076553f100 2.b' -m M
	forget
	gives '000000076553f100 2.b' -m M -i auto
	forget
	gives '000000076553f100 2.b' -m M -i dovecot
	forget
	gives 'UID7 UID8' -m M -i courier
	forget
	gives '1.a 2.b' -m M -i popa3d
	forget
	gives '1.a 2.b' -m M -i none
	lacks takeover "$T/log"
	forget
	rm "$T/M/dovecot-uidlist"
	gives '1.a 2.b' -m M -i dovecot
	forget
	gives 'UID7 UID8' -m M
	forget
	rm "$T/M/courierpop3dsizelist"
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	gives '1.a 2.b' -m M -i courier
}

@test "the ids of qmail-pop3d, which are the base names, stay without any list" {
	message 1700000001.12345.host:2,S 1700000002.M3P4.host,S=12:2,
	gives '1700000001.12345.host 1700000002.M3P4.host,S=12' -m M
	lacks takeover "$T/log"
}

@test "another -i than auto, dovecot, courier, popa3d and none is a usage error" {
	local kind
	message 1.a
	for kind in uw '' Dovecot auto,courier; do
		say '' -m M -i "$kind"
		[ "$status" = 64 ]
		[ ! -s "$T/out" ]
		logged 'file=-i text="not auto, dovecot, courier, popa3d or none"'
	done
	[ ! -e "$T/M/pop3-state" ]
}

@test "ids are taken over once: the lists of the server before us do not matter later" {
	message 1.a 2.b
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	gives '000000076553f100 2.b' -m M
	list dovecot-uidlist '1 1800000000 20\n1 1.a\n2 2.b\n3 3.c\n'
	list courierpop3dsizelist '/1 12\n2.b 40 8\n3.c 40 9\n'
	message 3.c
	gives '000000076553f100 2.b 3.c' -m M
	gives '000000076553f100 2.b 3.c' -m M -i courier
	rm "$T/M/dovecot-uidlist" "$T/M/courierpop3dsizelist"
	gives '000000076553f100 2.b 3.c' -m M
}

@test "nothing is taken over later where -i none was in force, or no list was there, at first" {
	message 1.a
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	gives 1.a -m M -i none
	gives 1.a -m M
	forget
	mv "$T/M/dovecot-uidlist" "$T/later"
	gives 1.a -m M
	mv "$T/later" "$T/M/dovecot-uidlist"
	gives 1.a -m M
}

@test "a session that ends without QUIT has taken over as well" {
	message 1.a
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	say 'STAT\r\n' -m M
	rm "$T/M/dovecot-uidlist"
	gives 000000076553f100 -m M
}

@test "ids taken over in a Maildir stay over deliveries, renames, moves and removals" {
	message 1.a 2.b:2, '3.odd name:2,' 4.d
	mv "$T/M/cur/4.d" "$T/M/new/"
	list courierpop3dsizelist '/3 12 1700000000\n1.a 40 1:9:0\n2.b 40 2:9:0\n3.odd name 40 3:9:0\n4.d 40 4:9:0\n'
	gives 'UID1-9 UID2-9 UID3-9 UID4-9' -m M
	message 5.e:2,S
	mv "$T/M/cur/2.b:2," "$T/M/cur/2.b:2,FRS"
	mv "$T/M/cur/3.odd name:2," "$T/M/cur/3.odd name:2,S"
	say 'UIDL 4\r\nDELE 1\r\nQUIT\r\n' -m M
	has '+OK 4 UID4-9' "$T/out"
	[ -e "$T/M/cur/4.d:2," ]
	gives 'UID2-9 UID3-9 UID4-9 5.e' -m M
	rm "$T/M/cur/2.b:2,FRS"
	message 6.f
	gives 'UID3-9 UID4-9 5.e 6.f' -m M
	cp "$T/M/cur/6.f" "$T/M/new/7.g"
	gives 'UID3-9 UID4-9 5.e 6.f 7.g' -m M
}

@test "where no state file can be made, every session takes the ids over anew" {
	message 1.a 2.b
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	give
	ln -s nowhere "$T/M/pop3-state"
	gives '000000076553f100 2.b' -m M
	gives '000000076553f100 2.b' -m M
	logged 'no session lock'
}

@test "what is taken over is on the disk before the new state file is" {
	need strace
	message 1.a
	list dovecot-uidlist '1 1700000000 12\n7 1.a\n'
	give
	(cd "$T" && printf 'QUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace -e trace=fsync,rename "$POP3" -P -m M >out 2>log)
	sed -n 's/^\(fsync\|rename\)(.*/\1/p' "$T/trace" | head -n 2 | tr '\n' ' ' >"$T/order"
	[ "$(cat "$T/order")" = 'fsync rename ' ]
}

# ---- X-UID in an mbox ----

# four [BASE]: messages with the X-UIDs 3, 5, 8 and 9 under X-IMAPbase.
four() {
	box "$FIRST\nSubject: 1\nX-IMAPbase: ${1:-1700000001 0000000009}\nX-UID: 3                      \n\n1\n\nFrom b $D\nSubject: 2\nX-UID: 5\nStatus: RO\n\n2\n\nFrom c $D\nx-uid: 8\nSubject: 3\n\n3\n\nFrom d $D\nSubject: 4\nX-UID:9\n\n4\n\n"
}

FOUR='000000036553f101 000000056553f101 000000086553f101 000000096553f101'

@test "X-IMAPbase and X-UID in an mbox are Dovecot's: the uid first, in lower case hex" {
	four
	gives "$FOUR" -m B
	logged 'from=x-uid ids=4'
	gives "$FOUR" -m B
	rm "$T/.B.pop3-state"
	sed 's/$/\r/' "$T/B" >"$T/C"
	mv "$T/C" "$T/B"
	gives "$FOUR" -m B
}

@test "ids taken over stay where very many messages are delivered since" {
	local n
	four
	ids -m B
	[ "$IDS" = "$FOUR" ]
	for n in {1..300}; do
		printf "From x $D\nSubject: new %d\n\nx\n\n" "$n"
	done >>"$T/B"
	ids -m B
	[ "$(wc -w <<<"$IDS")" = 304 ]
	[ "$(cut -d' ' -f1-4 <<<"$IDS")" = "$FOUR" ]
	[ "$(cut -d' ' -f5- <<<"$IDS" | tr ' ' '\n' | grep -cE "^$DIGEST(\.[0-9]+)?$")" = 300 ]
}

@test "X-IMAP in the internal record makes them UW's: the validity first" {
	box "$RECORD$FIRST\nSubject: 1\nX-UID: 3\n\n1\n\nFrom b $D\nX-UID: 9\nSubject: 2\n\n2\n\n"
	gives '6553f10100000003 6553f10100000009' -m B
	forget
	gives '000000036553f101 000000096553f101' -m B -i dovecot
	box "$(printf '%s' "$RECORD")"
	gives '' -m B
}

@test "so do the lines of c-client in the first message, in its order" {
	box "$FIRST\nSubject: 1\nX-IMAPbase: 1700000001 0000000009\nStatus: RO\nX-Status: \nX-Keywords: \nX-UID: 3\n\n1\n\n"
	gives '6553f10100000003' -m B
	forget
	gives '000000036553f101' -m B -i dovecot
	box "$FIRST\nSubject: 1\nX-IMAPbase: 1700000001 0000000009\nX-UID: 3\nStatus: RO\nX-Status: F\nX-Keywords: \n\n1\n\n"
	gives '000000036553f101' -m B
}

@test "-i courier, popa3d and none take no X-UID over" {
	local kind
	four
	for kind in courier none; do
		forget
		like "$DIGEST $DIGEST $DIGEST $DIGEST" -m B -i $kind
	done
	forget
	like '[0-9a-f]{16} '"$DIGEST $DIGEST $DIGEST" -m B -i popa3d
	[[ "$IDS" != *6553f101* ]]
}

@test "where X-UIDs do not grow, are too large or missing, what comes from there on has our ids" {
	local uid
	for uid in 'X-UID: 3' 'X-UID: 2' 'X-UID: 0' 'X-UID: 10' 'X-UID: 4294967296' 'X-UID: 99999999999999999999' \
		'X-UID: -5' 'X-UID: 5x' 'X-UID: 0x5' 'X-UID:' 'X-UIDx: 5' 'XX-UID: 5' ' X-UID: 5' ''; do
		four
		sed -i "s/^X-UID: 5\$/${uid:-X-None: 5}/" "$T/B"
		forget
		like "000000036553f101 $DIGEST $DIGEST $DIGEST" -m B
	done
}

@test "without a right X-IMAPbase in the first message no X-UID counts" {
	local base
	for base in '0 0000000009' '1700000001' '1700000001 x' 'x 9' '1700000001x9' '4294967296 9' '-1 9' '' '1700000001 0000000002'; do
		four "$base"
		[ -n "$base" ] || sed -i 's/^X-IMAPbase: .*/X-IMAPbase: /' "$T/B"
		forget
		like "$DIGEST $DIGEST $DIGEST $DIGEST" -m B
		lacks takeover "$T/log"
	done
	four
	sed -i '/^X-IMAPbase/d;s/^Subject: 2/X-IMAPbase: 1700000001 0000000009\n&/' "$T/B"
	forget
	like "$DIGEST $DIGEST $DIGEST $DIGEST" -m B
}

@test "X-UID and X-IMAPbase in a body, a continuation line or a later header are text" {
	box "$FIRST\nSubject: 1\n\nX-IMAPbase: 1700000001 0000000009\nX-UID: 3\n\n"
	like "$DIGEST" -m B
	box "$FIRST\nSubject: 1\n X-IMAPbase: 1700000001 0000000009\nX-UID: 3\n\n1\n\n"
	forget
	like "$DIGEST" -m B
	four
	sed -i 's/^Subject: 2$/X-IMAPbase: 1600000000 0000000099\nX-IMAP: 1600000000 0000000099\n&/' "$T/B"
	forget
	gives "$FOUR" -m B
}

@test "a header of any size, and lines of any length, may stand before X-UID" {
	local long
	long=$(printf '%020000d' 1)
	four
	sed -i "s/^Subject: .*/&\nX-Long: $long\nX-Folded: a\n\tX-UID: 1\n X-UID: 2/" "$T/B"
	gives "$FOUR" -m B
	four
	seq -f 'X-Many-%g: 12345' 3000 >"$T/many"
	sed -i "/^Subject: /r $T/many" "$T/B"
	forget
	gives "$FOUR" -m B
}

@test "an X-UID counts wherever it stands among the blocks that are read, and only as a line" {
	local k ids=
	for ((k = 0; k < 12; k++)); do
		printf '%s\nX-Pad: %0*d\nX-UID: %d\nX-IMAPbase: 1700000001 0000000099\nSubject: %d\n\n%d\n\n' \
			"$FIRST" $((8192 - k - 40)) 0 $((k + 1)) "$k" "$k"
		ids+=${ids:+ }$(printf '%08x6553f101' $((k + 1)))
	done >"$T/B"
	[ "$(head -c 8192 "$T/B" | tail -n 1 | head -c 6)" = 'X-Pad:' ]
	gives "$ids" -m B
	# One that begins a block, but not a line.
	box "$FIRST\nX-IMAPbase: 1700000001 9\nX-Long: $(printf '%08184d' 0)X-UID: 5\n\n1\n\n"
	forget
	like "$DIGEST" -m B
}

@test "what a sender wrote into X-UIDL, X-UID and X-IMAPbase never counts in an mbox that we know" {
	box "$FIRST\nSubject: 1\n\n1\n\n"
	ids -m B
	local first=$IDS
	printf 'From b %s\nSubject: 2\nX-UIDL: forged\nX-IMAPbase: 1700000001 0000000009\nX-UID: 3\n\n2\n\n' "$D" >>"$T/B"
	like "$first $DIGEST" -m B
	sed -i 's/^Subject: 1/X-IMAPbase: 1700000001 0000000009\nX-UID: 1\nX-UIDL: forged\n&/' "$T/B"
	like "$first $DIGEST" -m B
	lacks takeover "$T/log"
}

@test "ids taken over in an mbox stay over deliveries, what a mail reader writes, and removals" {
	four
	gives "$FOUR" -m B
	printf 'From e %s\nSubject: 5\nX-UID: 1\n\n5\n\n' "$D" >>"$T/B"
	like "$FOUR $DIGEST" -m B
	local fifth=${IDS##* }
	sed -i '/^X-UID/d;/^X-IMAPbase/d;s/^Status: .*/Status: RO\nX-Status: A/;s/^Subject: 3/&\nStatus: O\nX-UID: 77/' "$T/B"
	gives "$FOUR $fifth" -m B
	say 'DELE 2\r\nQUIT\r\n' -m B
	has '+OK 1 deleted' "$T/out"
	gives "000000036553f101 000000086553f101 000000096553f101 $fifth" -m B
	# As a mail reader does that writes a new file.
	sed '/^From a /,/^1$/d' "$T/B" | sed '1{/^$/d}' >"$T/C"
	mv "$T/C" "$T/B"
	gives "000000086553f101 000000096553f101 $fifth" -m B
	printf 'From f %s\nSubject: 6\n\n6\n\n' "$D" >>"$T/B"
	like "000000086553f101 000000096553f101 $fifth $DIGEST" -m B
}

@test "copies of one message keep the ids taken over, in their order, and a new copy has its own" {
	local copy="Subject: same\n\nsame\n\n"
	box "$FIRST\nX-IMAPbase: 1700000001 9\nX-UID: 1\n$copy$FIRST\nX-UID: 2\n$copy$FIRST\n$copy"
	like "000000016553f101 000000026553f101 $DIGEST\.3" -m B
	local third=${IDS##* }
	# shellcheck disable=SC2059
	printf "$FIRST\n$copy" >>"$T/B"
	gives "000000016553f101 000000026553f101 $third ${third%.3}.4" -m B
	say 'DELE 2\r\nQUIT\r\n' -m B
	gives "000000016553f101 $third ${third%.3}.4" -m B
}

# ---- popa3d ----

@test "-i popa3d gives the hash that popa3d makes of Delivered-To, Date, Message-ID and Received" {
	box "$FIRST\nReceived: x\nDate: x\nMessage-ID: <1>\nSubject: 1\n\n1\n\n"
	gives 012ae349b6558ee8 -m B -i popa3d
	logged 'from=popa3d ids=1'
}

@test "where popa3d's ids are equal the first message keeps it, and the others have ours" {
	box "$FIRST\nReceived: x\nSubject: 1\n\n1\n\nFrom b $D\nReceived: x\nSubject: 2\n\n2\n\nFrom c $D\nReceived: y\nSubject: 3\n\n3\n\n"
	like "012ae349b6558ee8 $DIGEST [0-9a-f]{16}" -m B -i popa3d
	local before=$IDS
	printf 'From d %s\nReceived: x\nSubject: 4\n\n4\n\n' "$D" >>"$T/B"
	like "$before $DIGEST" -m B -i popa3d
	before=${IDS#* }
	say 'DELE 1\r\nQUIT\r\n' -m B -i popa3d
	gives "$before" -m B -i popa3d
}
