#!/usr/bin/env bats
# The Maildir format.
load helper

# message DIR/NAME [TEXT]
message() {
	mkdir -p "$T/M/cur" "$T/M/new" "$T/M/tmp"
	# shellcheck disable=SC2059
	printf "${2:-Subject: x\n\nx\n}" >"$T/M/$1"
}

ids() {
	sed -n '/^+OK unique/,/^\./s/\r$//p' "$T/out" | sed '1d;$d' | cut -d' ' -f2
}

@test "messages come in order of delivery, whatever directory and order they stand in" {
	message cur/1000000009.M9P1.h:2,S
	message new/1000000010.M500P1.h
	message cur/1000000010.M4P1.h:2,
	message new/999.x.h
	message cur/1000000010.M20P1.h:2,S
	message new/1000000009.M5000000P1.h
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | tr '\n' ' ')" = '999.x.h 1000000009.M9P1.h 1000000009.M5000000P1.h 1000000010.M4P1.h 1000000010.M20P1.h 1000000010.M500P1.h ' ]
}

@test "a name without a time of delivery is ordered by the file's" {
	message new/1000000010.a
	message new/other
	message new/1000000030.b
	touch -d @1000000020 "$T/M/new/other"
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | tr '\n' ' ')" = '1000000010.a other 1000000030.b ' ]
}

@test "files with a dot, directories, symlinks, FIFOs and tmp are no messages" {
	message new/1.a
	message new/.hidden
	message tmp/2.b
	mkdir "$T/M/new/3.c"
	ln -s "$T/M/new/1.a" "$T/M/cur/4.d:2,S"
	mkfifo "$T/M/cur/5.e:2,S"
	say 'STAT\r\nUIDL\r\nQUIT\r\n' -m M
	has '+OK 1 17' "$T/out"
	[ "$(ids)" = 1.a ]
}

@test "where the file system tells no types, they are asked for" {
	need_mounts
	need mkfs.ext4 losetup
	truncate -s 8M "$T/image"
	mkfs.ext4 -q -O ^filetype -F "$T/image"
	mkdir "$T/disk"
	cat >"$T/mounted" <<-'S'
		set -e
		mount -o loop "$1/image" "$1/disk" || exit 77
		mkdir -p "$1/disk/M/cur" "$1/disk/M/new" "$1/disk/M/tmp" "$1/disk/M/new/3.c"
		printf 'Subject: x\n\nx\n' >"$1/disk/M/new/1.a"
		ln -s "$1/disk/M/new/1.a" "$1/disk/M/cur/4.d:2,S"
		mkfifo "$1/disk/M/cur/5.e:2,S"
		chown -R 65534:65534 "$1/disk"
		shift
		"$@" -m disk/M
	S
	(cd "$T" && printf 'STAT\r\nRETR 1\r\nQUIT\r\n' | unshare -m sh mounted "$T" "${AS[@]}" \
		bin/dialogue "$POP3" -P -h pop.example.org >out 2>log) || {
		[ $? != 77 ] || skip "needs mount -o loop"
		false
	}
	expect "$HELLO"'+OK 1 17\r\n+OK 17 octets\r\nSubject: x\r\n\r\nx\r\n.\r\n+OK 0 deleted\r\n'
}

@test "a message keeps its unique-id when it moves from new to cur and changes flags" {
	message new/1.a
	message new/2.b
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | tr '\n' ' ')" = '1.a 2.b ' ]
	mv "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,RS"
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | tr '\n' ' ')" = '1.a 2.b ' ]
}

@test "QUIT moves what stays in new to cur without flags; a name with info keeps it" {
	message new/1.a
	message new/2.b:2,F
	message new/3.c
	say 'DELE 3\r\nQUIT\r\n' -m M
	[ "$(ls "$T/M/cur" | tr '\n' ' ')" = '1.a:2, 2.b:2,F ' ]
	[ -z "$(ls "$T/M/new")" ]
}

@test "a move to cur never replaces a file that is there" {
	message new/1.a first
	converse -P -m M
	message cur/1.a:2, second
	tell 'QUIT\r\n'
	hang_up
	[ "$(cat "$T/M/new/1.a")" = first ]
	[ "$(cat "$T/M/cur/1.a:2,")" = second ]
}

@test "without QUIT nothing moves" {
	message new/1.a
	say 'STAT\r\n' -m M
	[ -e "$T/M/new/1.a" ]
}

@test "a base name that is no unique-id is replaced by a digest that stays" {
	local long
	long=$(printf '%0200d' 1)
	message "cur/a b:2,S" 'Subject: 1\n\n1\n'
	message "cur/$long:2,S" 'Subject: 2\n\n2\n'
	message "cur/$(printf 'caf\303\251'):2,S" 'Subject: 3\n\n3\n'
	message cur/"$(printf '%070d' 7)":2, 'Subject: 4\n\n4\n'
	say 'UIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nRETR 4\r\nQUIT\r\n' -m M
	ids | sort >"$T/first"
	[ "$(wc -l <"$T/first")" = 4 ]
	[ "$(grep -cE '^[0-9a-f]{32}$' "$T/first")" = 3 ]
	has "$(printf '%070d' 7)" "$T/first"
	[ "$(grep -c '^+OK 1[0-9] octets' "$T/out")" = 4 ]
	mv "$T/M/cur/a b:2,S" "$T/M/cur/a b:2,RS"
	say 'UIDL\r\nQUIT\r\n' -m M
	ids | sort | cmp - "$T/first"
}

@test "odd names with one content have ids of their own" {
	message "cur/a b:2,S"
	message "cur/a c:2,S"
	say 'UIDL\r\nQUIT\r\n' -m M
	[ "$(ids | sort -u | wc -l)" = 2 ]
	[ "$(ids | sed -n 2p)" = "$(ids | sed -n 1p).2" ]
}

@test "two files with one base name are two messages with two ids" {
	message new/foo one
	message new/bar two
	message cur/foo:2,S three
	touch -d @1000000000 "$T/M/new/foo"
	touch -d @1000000001 "$T/M/new/bar"
	say 'UIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nDELE 3\r\nQUIT\r\n' -m M
	[ "$(ids | sort -u | wc -l)" = 3 ]
	[ "$(ids | sed -n 2p)" = bar ]
	has three "$T/out"
	[ "$(cat "$T/M/new/foo")" = one ]
	[ ! -e "$T/M/cur/foo:2,S" ]
}

@test "one file with a name in new and one in cur is one message, and both go" {
	message new/1.a
	ln "$T/M/new/1.a" "$T/M/cur/1.a:2,"
	say 'STAT\r\nDELE 1\r\nQUIT\r\n' -m M
	has '+OK 1 17' "$T/out"
	has '+OK 1 deleted' "$T/out"
	[ -z "$(ls "$T/M/new")$(ls "$T/M/cur")" ]
}

@test "one file with two names in cur is one message, and both go" {
	message cur/1.a:2,
	ln "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,S"
	message cur/2.b:2, two
	say 'STAT\r\nDELE 1\r\nQUIT\r\n' -m M
	has '+OK 2 22' "$T/out"
	has '+OK 1 deleted' "$T/out"
	[ "$(ls "$T/M/cur")" = 2.b:2, ]
}

@test "two files with one base name stay two messages with their ids in the next session" {
	message new/foo one
	message cur/foo:2,S three
	touch -d @1000000000 "$T/M/new/foo"
	touch -d @1000000001 "$T/M/cur/foo:2,S"
	say 'UIDL\r\nQUIT\r\n' -m M
	ids >"$T/first"
	# In another order.
	touch -d @1000000002 "$T/M/new/foo"
	message cur/9999999999.z:2,
	say 'UIDL\r\nRETR 1\r\nRETR 2\r\nQUIT\r\n' -m M
	[ "$(ids | wc -l)" = 3 ]
	cmp "$T/first" <(ids | sed -n '1h;2{p;x;p;q}')
	has '+OK 7 octets' "$T/out"
	has '+OK 5 octets' "$T/out"
}

@test "of two files with one base name none is followed where a reader moves it, and it stays" {
	message cur/foo:2,S one
	message new/foo two
	touch -d @1000000000 "$T/M/cur/foo:2,S"
	touch -d @1000000001 "$T/M/new/foo"
	converse -P -m M
	mv "$T/M/cur/foo:2,S" "$T/M/cur/foo:2,RS"
	tell 'RETR 1\r\nDELE 1\r\nRETR 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'-ERR somebody else has removed the message\r\n+OK message 1 deleted\r\n+OK 5 octets\r\ntwo\r\n.\r\n+OK 0 deleted\r\n'
	[ "$(cat "$T/M/cur/foo:2,RS")" = one ]
	[ "$(cat "$T/M/new/foo")" = two ]
}

@test "a message that a reader moves during the session is still sent and removed" {
	message new/1.a 'Subject: one\n\n1\n'
	message new/2.b 'Subject: two\n\n2\n'
	converse -P -m M
	mv "$T/M/new/1.a" "$T/M/cur/1.a:2,S"
	# Among others that were delivered since.
	touch "$T/M/new/0.z" "$T/M/new/1.b" "$T/M/cur/3.c:2,"
	tell 'RETR 1\r\n'
	has 'Subject: one' "$T/out"
	rm "$T/M/new/0.z" "$T/M/new/1.b" "$T/M/cur/3.c:2,"
	mv "$T/M/cur/1.a:2,S" "$T/M/cur/1.a:2,RS"
	mv "$T/M/new/2.b" "$T/M/cur/2.b:2,S"
	tell 'DELE 1\r\nQUIT\r\n'
	hang_up
	[ "$(ls "$T/M/cur")" = 2.b:2,S ]
	has '+OK 1 deleted' "$T/out"
}

@test "a message that somebody else removes gives -ERR for itself alone" {
	message cur/1.a:2, 'Subject: one\n\n1\n'
	message cur/2.b:2, 'Subject: two\n\n2\n'
	converse -P -m M
	rm "$T/M/cur/1.a:2,"
	tell 'RETR 1\r\nTOP 1 0\r\nRETR 2\r\nLIST 1\r\nDELE 1\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	[ "$(grep -c '^-ERR somebody else has removed the message' "$T/out")" = 2 ]
	has 'Subject: two' "$T/out"
	has '+OK 1 deleted' "$T/out"
	[ -z "$(ls "$T/M/cur")" ]
}

@test "a message that has changed its size is not sent, and the next session measures it anew" {
	message cur/1.a:2, 'Subject: one\n\n1\n'
	converse -P -m M
	printf more >>"$T/M/cur/1.a:2,"
	tell 'RETR 1\r\n'
	has '-ERR [SYS/TEMP]' "$T/out"
	logged 'changed since it was measured'
	hang_up
	say 'RETR 1\r\nUIDL 1\r\n' -m M
	expect "$HELLO+OK 25 octets\r\nSubject: one\r\n\r\n1\r\nmore\r\n.\r\n+OK 1 1.a\r\n"
}

@test "a marked message that now has two files is neither removed nor called removed" {
	message cur/1.a:2, one
	converse -P -m M
	tell 'DELE 1\r\n'
	mv "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,S"
	cp "$T/M/cur/1.a:2,S" "$T/M/cur/1.a:2,RS"
	tell 'QUIT\r\n'
	hang_up
	has '-ERR [SYS/TEMP] nothing removed' "$T/out"
	[ "$(ls "$T/M/cur" | wc -l)" = 2 ]
}

@test "a marked message that another has rewritten under another name is not removed" {
	message cur/1.a:2, one
	message cur/2.b:2, two
	converse -P -m M
	tell 'DELE 1\r\nDELE 2\r\n'
	rm "$T/M/cur/1.a:2,"
	message cur/1.a:2,S 'one, and what a reader has added'
	tell 'QUIT\r\n'
	hang_up
	expect "$HELLO"'+OK message 1 deleted\r\n+OK message 2 deleted\r\n-ERR [SYS/TEMP] some deleted messages not removed\r\n'
	logged 'file=1.a:2,S text="changed by another during the session"'
	[ "$(ls "$T/M/cur")" = 1.a:2,S ]
}

@test "a message in whose place a symlink stands now is not sent" {
	message cur/1.a:2, one
	message cur/2.b:2, two
	printf top >"$T/M/tmp/secret"
	converse -P -m M
	ln -sf ../tmp/secret "$T/M/cur/1.a:2,"
	tell 'RETR 1\r\nRETR 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'-ERR [SYS/PERM] the maildrop cannot be used\r\n+OK 5 octets\r\ntwo\r\n.\r\n+OK 0 deleted\r\n'
}

@test "mail delivered during the session is not numbered, and stays" {
	message cur/1.a:2, one
	converse -P -m M
	message new/0.early two
	tell 'STAT\r\nDELE 1\r\nQUIT\r\n'
	hang_up
	has '+OK 1 5' "$T/out"
	[ "$(cat "$T/M/new/0.early")" = two ]
	[ -z "$(ls "$T/M/cur")" ]
}

@test "a message that cannot be read is left out and named in the log" {
	message cur/1.a:2, one
	message cur/2.b:2, two
	chmod 0 "$T/M/cur/1.a:2,"
	say 'STAT\r\nRETR 1\r\nQUIT\r\n' -m M
	expect "$HELLO"'+OK 1 5\r\n+OK 5 octets\r\ntwo\r\n.\r\n+OK 0 deleted\r\n'
	logged 'file=1.a:2, text="left out: Permission denied"'
	[ -e "$T/M/cur/1.a:2," ]
}

@test "a Maildir without rights to it, its cur or its new is [SYS/PERM], not an empty one" {
	local each
	message cur/1.a:2, one
	for each in M M/cur M/new; do
		give
		chmod 0 "$T/$each"
		say 'STAT\r\nQUIT\r\n' -m M
		chmod 700 "$T/$each"
		expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
		logged 'Permission denied'
	done
	[ "$(ls -A "$T/M")" = $'cur\nnew\ntmp' ]
}

@test "a Maildir that cannot be listed or read to its end is not served as a smaller one" {
	need strace
	local call n
	message cur/1.a:2, one
	message new/2.b two
	give
	for call in openat:error=EMFILE getdents64:error=EIO pread64:error=EIO newfstatat,fstat:error=EIO; do
		for ((n = 1; n <= 20; n++)); do
			rm -f "$T/M/pop3-state"
			(cd "$T" && printf 'STAT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
				-P "$T/M/cur" -P "$T/M/new" -P "$T/M/cur/1.a:2," -e inject="$call:when=$n" \
				"$POP3" -P -h pop.example.org -m M >out 2>log)
			grep -q INJECTED "$T/trace" || break
			# What the cage opens, it has twice.
			grep -q 'O_PATH.*INJECTED' "$T/trace" && continue
			echo "$call $n" >&2
			has '-ERR [SYS/TEMP] the maildrop cannot be used now' "$T/out"
			lacks '+OK 1' "$T/out"
			say 'STAT\r\n' -m M
			expect "$HELLO"'+OK 2 10\r\n'
		done
		[ "$n" -gt 1 ]
	done
}

@test "a directory that cannot be listed any more makes a message that moved an error, and it stays" {
	message cur/1.a:2, one
	converse -P -m M
	mv "$T/M/cur/1.a:2," "$T/M/cur/1.a:2,S"
	chmod 300 "$T/M/cur"
	tell 'RETR 1\r\nDELE 1\r\nQUIT\r\n'
	hang_up
	chmod 700 "$T/M/cur"
	expect "$HELLO"'-ERR [SYS/PERM] the maildrop cannot be used\r\n+OK message 1 deleted\r\n-ERR [SYS/PERM] nothing removed\r\n'
	[ -e "$T/M/cur/1.a:2,S" ]
}

@test "QUIT says -ERR where a directory lets nothing be removed" {
	message cur/1.a:2, one
	message cur/2.b:2, two
	give
	chmod 500 "$T/M/cur"
	say 'DELE 1\r\nQUIT\r\n' -m M
	chmod 700 "$T/M/cur"
	expect "$HELLO"'+OK message 1 deleted\r\n-ERR [SYS/PERM] nothing removed\r\n'
	[ "$(ls "$T/M/cur" | wc -l)" = 2 ]
	has 'deleted=0 left=2' "$T/log"
}

@test "maildirsize gets what was removed as negative numbers, and is never made" {
	message cur/1.a,S=17:2,
	message cur/2.b:2,
	message cur/3.c:2, stays
	printf '1000S\n39 3\n' >"$T/M/maildirsize"
	say 'DELE 1\r\nDELE 2\r\nQUIT\r\n' -m M
	[ "$(cat "$T/M/maildirsize")" = $'1000S\n39 3\n-31 -2' ]
	rm "$T/M/maildirsize"
	say 'DELE 1\r\nQUIT\r\n' -m M
	has '+OK 1 deleted' "$T/out"
	[ ! -e "$T/M/maildirsize" ]
}

@test "a maildirsize that is a symlink, may not be written or has no room harms no removal" {
	need strace
	local each inject
	for each in symlink rights room; do
		message cur/1.a:2,
		rm -f "$T/M/maildirsize"
		printf '1000S\n' | tee "$T/M/tmp/elsewhere" >"$T/M/maildirsize"
		give
		inject=
		case $each in
		room) inject="-P $T/M/maildirsize -e inject=write:error=ENOSPC" ;;
		symlink) ln -sf tmp/elsewhere "$T/M/maildirsize" ;;
		rights) chmod 400 "$T/M/maildirsize" ;;
		esac
		# shellcheck disable=SC2086 # words
		(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
			$inject "$POP3" -P -m M >out 2>log)
		has '+OK 1 deleted' "$T/out"
		logged "file=$T/M text=\"maildirsize: "
		[ "$(cat "$T/M/tmp/elsewhere")$(cat "$T/M/maildirsize")" = 1000S1000S ]
		[ -z "$(ls "$T/M/cur")" ]
	done
}

@test "a removal that cannot be made durable is no +OK" {
	need strace
	local each
	for each in M/cur M/new; do
		message cur/1.a:2,
		give
		(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
			-P "$T/$each" -e inject=fsync:error=EIO "$POP3" -P -m M >out 2>log)
		logged "file=$T/M text=\"fsync: $EIO\""
		has '-ERR [SYS/TEMP]' "$T/out"
		lacks '+OK 1 deleted' "$T/out"
	done
}

@test "a message that is never where a listing shows it is not called removed" {
	need strace
	message cur/1.a:2,
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
		-P "$T/M/cur" -e inject=unlinkat:error=ENOENT "$POP3" -P -m M >out 2>log)
	has '-ERR [SYS/TEMP] nothing removed' "$T/out"
	[ "$(grep -c '^unlinkat.*INJECTED' "$T/trace")" = 3 ]
	[ -e "$T/M/cur/1.a:2," ]
}

@test "UPDATE has removed and moved messages durably before it answers" {
	need strace
	message cur/1.a:2,
	message new/2.b
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace "$POP3" -P -m M >out 2>log)
	sed -n 's/^\(unlinkat\|renameat2\|fsync\|sendto\)(.*/\1/p' "$T/trace" | tail -n 5 | tr '\n' ' ' >"$T/order"
	[ "$(cat "$T/order")" = 'unlinkat renameat2 fsync fsync sendto ' ]
}

@test "a directory without cur or new is no Maildir, and nothing is made in it" {
	mkdir -p "$T/D/new"
	say 'STAT\r\nQUIT\r\n' -m D
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged "file=$T/D text=\"not a Maildir: no cur\""
	[ "$(ls -A "$T/D")" = new ]
}

@test "the state file is made with mode 0600 and does no harm as symlink or FIFO" {
	message cur/1.a:2,
	say 'STAT\r\nQUIT\r\n' -m M
	[ "$(stat -c %a "$T/M/pop3-state")" = 600 ]
	rm "$T/M/pop3-state"
	ln -s "$T/elsewhere" "$T/M/pop3-state"
	say 'STAT\r\nQUIT\r\n' -m M
	has '+OK 1 17' "$T/out"
	[ ! -e "$T/elsewhere" ]
	logged 'no session lock'
	rm "$T/M/pop3-state"
	mkfifo "$T/M/pop3-state"
	say 'STAT\r\nQUIT\r\n' -m M
	has '+OK 1 17' "$T/out"
	logged 'no session lock: not a regular file'
}

@test "of two files with one base name the marked one goes, also when a reader has moved another" {
	maildir M
	printf three >"$T/M/cur/foo:2,S"
	printf seven >"$T/M/new/foo"
	printf bar >"$T/M/new/bar"
	touch -d @1000000000 "$T/M/cur/foo:2,S"
	touch -d @1000000005 "$T/M/new/foo"
	touch -d @1000000009 "$T/M/new/bar"
	converse -P -m M
	mv "$T/M/new/bar" "$T/M/cur/bar:2,"
	tell 'RETR 3\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'+OK 5 octets\r\nbar\r\n.\r\n+OK 7 octets\r\nthree\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	[ ! -e "$T/M/cur/foo:2,S" ]
	[ "$(cat "$T/M/new/foo")" = seven ]
}

@test "messages that go while a first scan has only listed them are looked for once, not each" {
	need strace
	local i
	maildir M
	for i in {1..40}; do
		printf 'x\n' >"$T/M/cur/$i.a:2,"
	done
	give
	# The fourth is the end of the listing: it waits there while they go.
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace -e trace=getdents64 \
		-e inject=getdents64:delay_exit=2000000:when=4 "$POP3" -P -h pop.example.org -m M >out 2>log) &
	CLIENT=$!
	await has +OK "$T/out"
	sleep 0.5
	rm "$T"/M/cur/*
	finish
	expect "$HELLO+OK 0 0\r\n+OK 0 deleted\r\n"
	[ "$(grep -c '^getdents64' "$T/trace")" -le 16 ]
}
