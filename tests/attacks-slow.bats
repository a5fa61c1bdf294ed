#!/usr/bin/env bats
# Attacks on memory and time that need much mail; see tests/attacks.bats.
load helper

# attack BOX SCRIPT: a session over BOX; its memory is in $T/mem.
attack() {
	# shellcheck disable=SC2059
	printf "$2" | (cd "$T" && "${AS[@]}" bin/dialogue -m mem "$POP3" -P \
		-h pop.example.org -m "$1" 2>log)
}

# within KIB: what the session took, unless another build takes more anyway.
within() {
	[ "$(cat "$T/mem")" -lt "${RESIDENT_KIB:-$1}" ] && return
	echo "took $(cat "$T/mem") KiB, not less than $1" >&2
	return 1
}

# header KIND [CR]: 100 MB of it.
header() {
	case $1 in
	'one line')
		printf 'A: '
		head -c 100000000 /dev/zero | tr '\0' x
		printf '%s\n' "$2"
		;;
	'many lines') yes "A: b$2" | head -n 20000000 ;;
	esac
}

@test "a header of 100 MB is sent whole, with the octets of LIST, within 8 MiB of memory" {
	local kind box octets
	for kind in 'one line' 'many lines'; do
		octets=$(($(header "$kind" $'\r' | wc -c) + 5))
		maildir M
		{
			header "$kind"
			printf '\n.'
		} >"$T/M/cur/1.h:2,"
		{
			printf '%s\n' "$FROM"
			header "$kind"
			printf '\n.\n\n'
		} >"$T/B"
		give
		for box in M B; do
			attack $box 'LIST 1\r\nRETR 1\r\nTOP 1 0\r\nQUIT\r\n' | cmp - <(
				printf "$HELLO+OK 1 $octets\r\n+OK $octets octets\r\n"
				header "$kind" $'\r'
				printf '\r\n..\r\n.\r\n+OK top of message follows\r\n'
				header "$kind" $'\r'
				printf '\r\n.\r\n+OK 0 deleted\r\n'
			)
			within 8192
		done
		rm -r "$T/M" "$T/B" "$T/.B.pop3-state"
	done
}

# listed COUNT: LIST, UIDL and QUIT of so many messages were answered whole, with
# so many ids.
listed() {
	awk -v count="$1" '
		/^\+OK/ { listing++; n = 0 }
		/^[0-9]/ { wrong += $1 != ++n; lines[listing]++ }
		END { exit wrong || listing != 4 || lines[2] != count || lines[3] != count }' "$T/out"
	sed -n '/^+OK unique/,/^\./s/^[0-9]* //p' "$T/out" | sort -u | wc -l | grep -qx "$1"
}

# takes BOX KIB: a session over a box of $COUNT messages takes no more.
takes() {
	give
	attack "$1" 'LIST\r\nUIDL\r\nQUIT\r\n' >"$T/out"
	listed "$COUNT"
	[ -n "${RESIDENT_KIB:-}" ] || within "$2"
}

# many BOX OCTETS: at most so many octets a message, and 1 MiB more than an
# empty maildrop; the second time from the state file. Where others have changed
# what is there, for which `changed` stands, twice as many.
many() {
	local empty
	maildir empty
	COUNT=0 takes empty 4096
	empty=$(($(cat "$T/mem") + 1024))
	takes "$1" $((empty + COUNT * $2 / 1024))
	takes "$1" $((empty + COUNT * $2 / 1024))
	changed
	takes "$1" $((empty + COUNT * $2 / 512))
}

@test "an mbox of a million messages takes 40 octets for each and 1 MiB, and twice that where others have changed it" {
	COUNT=1000000
	changed() {
		sed -i 1,5d "$T/B"
		COUNT=$((COUNT - 1))
	}
	yes $'From a@example.org Mon Jan  1 00:00:00 2024\nSubject: x' | head -n $((2 * COUNT)) |
		awk '/^S/ { printf "%s %d\n\nthe body of one message of many\n\n", $0, NR; next } 1' >"$T/B"
	many B 40
}

@test "an mbox of a million copies of one message takes 40 octets for each and 1 MiB, and each has an id" {
	COUNT=1000000
	changed() {
		printf '%s\nSubject: x\n\ny\n\n' 'From a@example.org Mon Jan  1 00:00:00 2024' >>"$T/B"
		COUNT=$((COUNT + 1))
	}
	yes $'From a@example.org Mon Jan  1 00:00:00 2024\nSubject: x\n\ny\n' | head -n $((5 * COUNT)) >"$T/B"
	many B 40
}

# Making a million takes a minute or more on many a machine.
@test "a Maildir of 200,000 messages takes 40 octets for each, its name, and 1 MiB, and twice that where others have changed it" {
	need python3
	COUNT=200000
	changed() {
		printf 'Subject: new\n\nx\n' >"$T/M/new/2000000000.new"
		COUNT=$((COUNT + 1))
	}
	maildir M
	python3 - "$T/M/cur" "$COUNT" <<'P'
import os, sys

os.chdir(sys.argv[1])
for n in range(int(sys.argv[2])):
    with open("%d.a:2," % (10 ** 9 + n), "wb") as f:
        f.write(b"Subject: %d\n\nx\n" % n)
P
	many M $((40 + 16))
}
