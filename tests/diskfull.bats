#!/usr/bin/env bats
# UPDATE of an mbox on a file system that is really full: tmpfs, ext4, btrfs.
load helper

MIB=1048576

teardown() {
	[ -z "${MOUNTED:-}" ] || umount "$T/disk" 2>/dev/null || umount -l "$T/disk"
	rm -f "$T/image"
}

# disk TYPE MIB: a file system of its own at $T/disk.
disk() {
	need_root
	need mount
	mkdir "$T/disk"
	if [ "$1" = tmpfs ]; then
		mount -t tmpfs -o "size=${2}m" tmpfs "$T/disk" || skip "needs mount -t tmpfs"
	else
		need "mkfs.$1" losetup
		truncate -s "${2}M" "$T/image"
		case $1 in
		ext4) mkfs.ext4 -q -m 0 -F "$T/image" ;;
		btrfs) mkfs.btrfs -q --mixed "$T/image" ;;
		esac
		mount -o loop "$T/image" "$T/disk" || skip "needs mount -o loop with $1"
	fi
	MOUNTED=1
	chown "$NOBODY:$NOBODY" "$T/disk"
}

# heavy MIB: the mbox: one message of a few octets, then three of MIB together.
heavy() {
	local n each=$(($1 * MIB / 3))
	{
		printf '%s\nSubject: 1\n\none\n\n' "$FROM"
		for n in 2 3 4; do
			printf '%s\nSubject: %d\n\n' "$FROM" "$n"
			yes "message $n: the quick brown fox jumps over the lazy dog" | head -c "$each"
			printf '\n\n'
		done
	} >"$T/disk/B"
	chown "$NOBODY:$NOBODY" "$T/disk/B"
}

# fill MIB: leaves so much free, roughly; 0: fills to the last octet.
fill() {
	local free
	# What a session makes when it has the room is there already.
	(cd "$T" && printf 'QUIT\r\n' | "${AS[@]}" "$POP3" -P -m mbox:disk/B >/dev/null 2>&1)
	sync -f "$T/disk"
	free=$(($(stat -f -c '%a * %S' "$T/disk")))
	[ "$free" -gt $(($1 * MIB)) ] || return 0
	dd if=/dev/zero of="$T/disk/filler" bs=$MIB iflag=count_bytes \
		count=$((free - $1 * MIB)) conv=fsync status=none 2>/dev/null || :
	if [ "$1" = 0 ]; then
		dd if=/dev/zero of="$T/disk/filler.2" bs=4096 conv=fsync status=none 2>/dev/null || :
		dd if=/dev/zero of="$T/disk/filler.3" bs=512 conv=fsync status=none 2>/dev/null || :
	fi
	sync -f "$T/disk"
}

# quit SCRIPT: a session; its last reply is $last.
quit() {
	status=0
	# shellcheck disable=SC2059
	printf "$1" | (cd "$T" && "${AS[@]}" "$T/bin/dialogue" "$POP3" -P -h pop.example.org \
		-m mbox:disk/B) >"$T/out" 2>"$T/log" || status=$?
	last=$(tail -n 1 "$T/out" | tr -d '\r')
	echo "# $BATS_TEST_DESCRIPTION: $last" >&3
	cat "$T/log"
	df -k "$T/disk"
	[ "$status" = 0 ]
}

# kept MESSAGE...: the mbox is exactly these messages of $T/before.
kept() {
	local n
	for n; do
		awk -v n="$n" '/^From /{ at++ } at == n' "$T/before"
	done >"$T/expected"
	cmp "$T/expected" "$T/disk/B"
}

no_leftovers() {
	[ -z "$(find "$T/disk" -name '*.lock' -o -name '*journal*' -o -name '*pop3-lock*')" ]
}

# An mbox on a full disk: QUIT removes the first message, or says that it
# cannot and has changed nothing; with room again it is done.
no_room() {
	cp "$T/disk/B" "$T/before"
	fill "$1"
	quit 'DELE 1\r\nQUIT\r\n'
	case $last in
	'+OK 1 deleted') kept 2 3 4 ;;
	'-ERR [SYS/TEMP] '*'nothing removed')
		if [ -n "$(find "$T/disk" -name '*journal*')" ]; then
			# Begun, and stopped by a disk on which even overwriting
			# takes room: only where that is so.
			[ "$2" = cow ]
		else
			cmp "$T/before" "$T/disk/B"
		fi
		;;
	*) [ "$2" = cow ] && [[ $last = '-ERR [SYS/TEMP] '* ]] ;;
	esac
	rm -f "$T"/disk/filler*
	sync -f "$T/disk"
	quit 'RETR 1\r\nQUIT\r\n'
	[ "$last" = '+OK 0 deleted' ]
	if cmp -s "$T/before" "$T/disk/B"; then
		quit 'DELE 1\r\nQUIT\r\n'
		[ "$last" = '+OK 1 deleted' ]
	fi
	kept 2 3 4
	no_leftovers
}

# 16 MiB are enough for an mbox of any size; so says the design. Where a file
# system keeps some for itself, it has to be given more.
enough_room() {
	cp "$T/disk/B" "$T/before"
	fill "$1"
	[ "$(stat -c %s "$T/disk/B")" -gt $(($1 * MIB)) ]
	quit 'DELE 1\r\nDELE 3\r\nQUIT\r\n'
	[ "$last" = '+OK 2 deleted' ]
	kept 2 4
	no_leftovers
}

all_deleted() {
	cp "$T/disk/B" "$T/before"
	fill 0
	quit 'DELE 1\r\nDELE 2\r\nDELE 3\r\nDELE 4\r\nQUIT\r\n'
	# btrfs may refuse even ftruncate(2), as it does rm(1), when all is used.
	if [ "${1:-}" = cow ] && [ "$last" = '-ERR [SYS/TEMP] nothing removed' ]; then
		cmp "$T/before" "$T/disk/B"
		rm "$T"/disk/filler*
		sync -f "$T/disk"
		quit 'DELE 1\r\nDELE 2\r\nDELE 3\r\nDELE 4\r\nQUIT\r\n'
	fi
	[ "$last" = '+OK 4 deleted' ]
	kept
	no_leftovers
}

@test "tmpfs without room for the journal: nothing is removed, or all that was marked" {
	disk tmpfs 64
	heavy 40
	no_room 0 ''
}

@test "tmpfs with less than 16 MiB free: nothing is removed, or all that was marked" {
	disk tmpfs 64
	heavy 40
	no_room 12 ''
}

@test "tmpfs with 16 MiB free: the head of a larger mbox is deleted" {
	disk tmpfs 64
	heavy 40
	enough_room 16
}

@test "tmpfs without room: all messages are deleted" {
	disk tmpfs 64
	heavy 40
	all_deleted
}

@test "ext4 without room for the journal: nothing is removed, or all that was marked" {
	disk ext4 80
	heavy 40
	no_room 0 ''
}

@test "ext4 with less than 16 MiB free: nothing is removed, or all that was marked" {
	disk ext4 80
	heavy 40
	no_room 12 ''
}

@test "ext4 with 16 MiB free: the head of a larger mbox is deleted" {
	disk ext4 80
	heavy 40
	enough_room 16
}

@test "ext4 without room: all messages are deleted" {
	disk ext4 80
	heavy 40
	all_deleted
}

@test "btrfs without room: nothing is lost, and the next session finishes" {
	disk btrfs 128
	heavy 40
	no_room 0 cow
}

@test "btrfs with less than 16 MiB free: nothing is lost, and the next session finishes" {
	disk btrfs 128
	heavy 40
	no_room 12 cow
}

# Even with room for the journal, overwriting takes room where it is copying.
@test "btrfs with 36 MiB free: nothing is lost, and the next session finishes" {
	disk btrfs 128
	heavy 40
	no_room 36 cow
}

@test "btrfs without room: all messages are deleted, or none" {
	disk btrfs 128
	heavy 40
	all_deleted cow
}
