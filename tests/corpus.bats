#!/usr/bin/env bats
# The corpus of realistic mail, in every stored form: what LIST says is what
# RETR sends, and TOP is RETR's beginning.
load helper

# Cuts the replies to COUNT times RETR n, TOP n 0, TOP n 99999999 into files
# retr.N, top.N and all.N, byte-stuffing undone; and checks the framing.
cut_replies() {
	awk -v count="$1" -v dir="$T" '
	BEGIN { RS = "\r\n"; ORS = "\r\n"; kind[0] = "retr"; kind[1] = "top"; kind[2] = "all" }
	!open && /^\+OK/ { file = dir "/" kind[replies % 3] "." int(replies / 3) + 1
		printf "" >file; replies++; open = 1; next }
	open && $0 == "." { close(file); open = 0; next }
	open { sub(/^\./, ""); print >file; next }
	{ exit 1 }
	END { exit replies != 3 * count }'
}

# serve MAILDROP COUNT: LIST and everything of a maildrop.
fetch() {
	local n script=
	for ((n = 1; n <= $2; n++)); do
		script+="RETR $n\r\nTOP $n 0\r\nTOP $n 99999999\r\n"
	done
	say 'LIST\r\nQUIT\r\n' -m "$1"
	sed -n 's/\r$//;/^[0-9]/p' "$T/out" >"$T/list"
	[ "$(wc -l <"$T/list")" = "$2" ]
	say "$script" -m "$1"
	tail -c +$(($(printf "$HELLO" | wc -c) + 1)) "$T/out" | cut_replies "$2"
}

# Octets of LIST, of RETR, and of TOP; TOP n 0 is the header and one empty
# line, if there is one.
check() {
	local n octets
	while read -r n octets; do
		[ "$(wc -c <"$T/retr.$n")" = "$octets" ]
		cmp "$T/retr.$n" "$T/all.$n"
		cmp -n "$(wc -c <"$T/top.$n")" "$T/retr.$n" "$T/top.$n"
		sed '/^\r$/q' "$T/retr.$n" | cmp - "$T/top.$n"
	done <"$T/list"
}

form() {
	local file n=0
	maildir M
	rm -f "$T"/M/cur/*
	for file in "$MAIL"/*.eml; do
		n=$((n + 1))
		"$@" <"$file" >"$T/M/cur/$((1000 + n)).x:2,"
	done
	COUNT=$n
}

# ended FILE: its last octet is LF, or it has none.
ended() {
	[ ! -s "$1" ] || [ "$(tail -c 1 "$1" | od -An -tx1)" = ' 0a' ]
}

# Both: a Maildir of the form, and an mbox made of the same files.
both() {
	form "$@"
	fetch M "$COUNT"
	check
	local n
	for ((n = 1; n <= COUNT; n++)); do
		# What is sent is what is stored, but for line ends.
		tr -d '\r' <"$T/retr.$n" >"$T/sent"
		tr -d '\r' <"$T/M/cur/$((1000 + n)).x:2," >"$T/stored"
		ended "$T/M/cur/$((1000 + n)).x:2," || echo >>"$T/stored"
		cmp "$T/stored" "$T/sent"
	done
	for file in "$T"/M/cur/*; do
		printf '%s\n' "$FROM"
		sed 's/^From />From /' "$file"
		ended "$file" || echo
		printf '\n'
	done >"$T/B"
	fetch B "$COUNT"
	check
}

@test "as stored: octets of LIST are those of RETR, TOP n 0 is the header, TOP n k is RETR" {
	both cat
}

@test "with LF line ends: the same" {
	both tr -d '\r'
}

@test "with CRLF line ends: the same" {
	both sed 's/\r*$/\r/'
}

@test "without final newlines: the same" {
	both head -c -1
}

@test "with NULs for blanks: the same" {
	both tr ' ' '\0'
}

@test "with dots for letters at line starts: the same" {
	both sed 's/^[a-z]/./'
}

@test "a 4 GiB mbox of 10,000 messages is served within 8 MiB of memory" {
	# Sparse: a message of text and holes, and that a thousand times.
	printf 'From a Mon Jan  1 00:00:00 2024\nSubject: large\n\nbegin\n' >"$T/one"
	truncate -s 425900 "$T/one"
	printf '\nend\n\n' >>"$T/one"
	local n
	for n in {1..100}; do
		cat "$T/one"
	done | dd of="$T/hundred" bs=4K conv=sparse status=none iflag=fullblock
	local size
	size=$(stat -c %s "$T/hundred")
	for n in {0..99}; do
		dd if="$T/hundred" of="$T/B" bs=64K conv=sparse,notrunc \
			oflag=seek_bytes seek=$((n * size)) status=none
	done
	[ "$(stat -c %s "$T/B")" -gt 4200000000 ]
	DIAL="-m $T/mem" say 'STAT\r\nUIDL\r\nRETR 1\r\nRETR 10000\r\nQUIT\r\n' -m B
	has '+OK 10000 ' "$T/out"
	[ "$(grep -c 'begin' "$T/out")" = 2 ]
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-8192}" ]
}

@test "a message of 500 MB is served within 8 MiB of memory" {
	maildir M
	printf 'Subject: large\n\nbegin\n' >"$T/M/cur/1.a:2,"
	truncate -s 500000000 "$T/M/cur/1.a:2,"
	printf '\nend\n' >>"$T/M/cur/1.a:2,"
	give
	(cd "$T" && printf 'RETR 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue -m mem \
		"$POP3" -P -m M 2>log | wc -c >octets)
	[ "$(cat "$T/octets")" -gt 500000000 ]
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-8192}" ]
}

@test "a message costs at most 40 octets and its Maildir name" {
	local n base many
	maildir M
	maildir N
	(cd "$T/M/cur" && seq -f '%020.0f.a:2,' 20000 | xargs touch)
	DIAL="-m $T/mem" say 'UIDL\r\nQUIT\r\n' -m N
	base=$(cat "$T/mem")
	DIAL="-m $T/mem" say 'UIDL\r\nQUIT\r\n' -m M
	many=$(cat "$T/mem")
	[ "$(grep -c '^[0-9]' "$T/out")" = 20000 ]
	# 40 octets, 26 of name, and 300 KiB for buffers and stack in use.
	[ $((many - base)) -le $((20000 * 66 / 1024 + 300)) ] || [ -n "${RESIDENT_KIB:-}" ]
	awk 'BEGIN { for (i = 0; i < 50000; i++) printf "From a Mon Jan  1 00:00:00 2024\nX: %d\n\n\n", i }' >"$T/B"
	DIAL="-m $T/mem" say 'UIDL\r\nQUIT\r\n' -m B
	many=$(cat "$T/mem")
	[ "$(grep -c '^[0-9]' "$T/out")" = 50000 ]
	[ $((many - base)) -le $((50000 * 40 / 1024 + 400)) ] || [ -n "${RESIDENT_KIB:-}" ]
}
