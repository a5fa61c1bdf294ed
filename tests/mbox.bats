#!/usr/bin/env bats
# The mbox format: what is a message, the delivery locks, UPDATE in place.
load helper

D='Mon Jan  1 00:00:00 2024'

# box FORMAT: the mbox B.
box() {
	# shellcheck disable=SC2059
	printf -- "$1" >"$T/B"
}

three() {
	box "From a $D\nSubject: 1\n\none\n\nFrom b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
}

# holds FORMAT: the mbox is exactly this now.
holds() {
	# shellcheck disable=SC2059
	printf -- "$1" >"$T/expected"
	same "$T/expected" "$T/B"
}

ids() {
	sed -n '/^+OK unique/,/^\./s/\r$//p' "$T/out" | sed '1d;$d' | cut -d' ' -f2
}

@test "messages are what stands between From_ lines, without the separating line" {
	three
	say 'STAT\r\nRETR 2\r\nRETR 3\r\nQUIT\r\n' -m B
	expect "$HELLO"'+OK 3 59\r\n+OK 19 octets\r\nSubject: 2\r\n\r\ntwo\r\n.\r\n+OK 21 octets\r\nSubject: 3\r\n\r\nthree\r\n.\r\n+OK 0 deleted\r\n'
}

@test "From_ lines are a sender and a date in the forms that are in use; other lines are text" {
	box "From a@b $D\n\n1\n\nFrom c Mon Jan  1 00:00 2024\n\n2\n\nFrom d Mon Jan  1 00:00:00 MET 2024\n\n3\n\nFrom e Mon Jan  1 00:00:00 2024 +0100\n\n4\n\nFrom f Mon, 1 Jan 2024 00:00:00 +0000\n\n5\n\nFrom \"g h\"@i $D\n\n6\n\nFrom  $D\n\n7\n\nFrom j $D remote from k\n\n8\n\nFrom l Mon Jan 01 00:00:00 +0000 2024\r\n\n9\n"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 9 ' "$T/out"
	box "From a $D\n\n1\n\nFrom here to there\n\nFrom \n\nFrom\n\nFrom a Mon\n\nFrom b Xxx Jan  1 00:00:00 2024\n\nFrom c Mon Foo  1 00:00:00 2024\n\nFrom all of us on $D\n\nFROM d $D\n\n>From e $D\n\nFrom f Mon Jan  1 00:00:00 24\n\nFrom g Mon Jan  1 0:0:0 2024\n"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 1 ' "$T/out"
}

@test "a From_ line begins a message only at the start or after an empty line" {
	box "From a $D\nSubject: 1\nFrom b $D\n\ntext\nFrom c $D\n\nFrom d $D\n\nmore\n"
	say 'STAT\r\nTOP 1 9\r\nQUIT\r\n' -m B
	expect "$HELLO$(printf '+OK 2 %d' $((12 + 33 + 2 + 6 + 33 + 2 + 6)))"'\r\n+OK top of message follows\r\nSubject: 1\r\n'"From b $D"'\r\n\r\ntext\r\n'"From c $D"'\r\n.\r\n+OK 0 deleted\r\n'
}

@test "the empty line before From_ ends the header of a message without a body" {
	box "From a $D\nSubject: 1\n\nFrom b $D\nSubject: 2\n\n\nFrom c $D\n\nFrom d $D\nSubject: 4\n"
	say 'LIST\r\nRETR 1\r\nRETR 2\r\nQUIT\r\n' -m B
	expect "$HELLO"'+OK 4 messages (42 octets)\r\n1 14\r\n2 14\r\n3 2\r\n4 12\r\n.\r\n+OK 14 octets\r\nSubject: 1\r\n\r\n.\r\n+OK 14 octets\r\nSubject: 2\r\n\r\n.\r\n+OK 0 deleted\r\n'
}

@test "an mbox with CRLF line ends is the same to the client" {
	three
	sed 's/$/\r/' "$T/B" >"$T/C"
	say 'LIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nQUIT\r\n' -m B
	mv "$T/out" "$T/lf"
	say 'LIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nQUIT\r\n' -m C
	same "$T/lf" "$T/out"
	say 'DELE 2\r\nQUIT\r\n' -m C
	say 'DELE 2\r\nQUIT\r\n' -m B
	sed 's/$/\r/' "$T/B" | cmp - "$T/C"
}

@test "octets and ids stay when a message is delivered behind the last one" {
	three
	say 'LIST\r\nUIDL\r\nQUIT\r\n' -m B
	grep '^[123] ' "$T/out" >"$T/first"
	printf 'From d %s\nSubject: 4\n\nfour\n\n' "$D" >>"$T/B"
	say 'LIST\r\nUIDL\r\nQUIT\r\n' -m B
	grep '^[123] ' "$T/out" | cmp - "$T/first"
	[ "$(grep -c '^4 ' "$T/out")" = 2 ]
}

@test "an id stays when a mail reader sets Status, X-UID and the like" {
	three
	say 'UIDL\r\nQUIT\r\n' -m B
	ids >"$T/first"
	sed -i 's/^Subject: .*/Status: RO\n&\nX-Status: A\nX-Keywords: a\n b\nX-UID: 7\nX-UIDL: x\nX-IMAPbase: 1 2\nX-Mozilla-Status: 1\nContent-Length: 4\nLines: 1\nX-Label: z/' "$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	ids | cmp - "$T/first"
	sed -i 's/^Subject: 2/Subject: 22/' "$T/B"
	say 'UIDL\r\nQUIT\r\n' -m B
	[ "$(ids | diff - "$T/first" | grep -c '^<')" = 1 ]
}

@test "an id never comes from what a sender wrote into X-UIDL, and copies have ids of their own" {
	box "From a $D\nX-UIDL: same\n\n1\n\nFrom a $D\nX-UIDL: same\n\n2\n\nFrom a $D\nX-UIDL: same\n\n1\n\nFrom a $D\n\n11\n"
	say 'UIDL\r\nUIDL 3\r\nQUIT\r\n' -m B
	no has same "$T/out"
	[ "$(ids | sort -u | wc -l)" = 3 ] || [ "$(ids | sort -u | wc -l)" = 4 ]
	[ "$(ids | sed -n 2p)" = "$(ids | sed -n 1p).2" ]
	[ "$(ids | sed -n 3p)" = "$(ids | sed -n 1p).3" ]
	has "+OK 3 $(ids | sed -n 3p)" "$T/out"
}

@test "the internal record of a mail reader is hidden and kept" {
	local record="From MAILER-DAEMON $D\nFrom: Mail System Internal Data <MAILER-DAEMON@h>\nSubject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\nStatus: RO\n\nThis text is part of the internal format of your mail folder.\n\n"
	box "${record}From a $D\n\n1\n\n"
	say 'STAT\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n' -m B
	expect "$HELLO"'+OK 1 5\r\n+OK 5 octets\r\n\r\n1\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	holds "$record"
	box "From a $D\nSubject: FOLDER INTERNAL DATA\n\n1\n\n"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 1 ' "$T/out"
}

@test "a file that is no mbox is [SYS/PERM] and stays as it is" {
	box 'just text\n'
	say 'STAT\r\nQUIT\r\n' -m B
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	holds 'just text\n'
	[ ! -e "$T/.B.pop3-state" ]
}

@test "an empty mbox is an empty maildrop" {
	box ''
	say 'STAT\r\nQUIT\r\n' -m B
	expect "$HELLO"'+OK 0 0\r\n+OK 0 deleted\r\n'
}

@test "a symlink in a directory of the user's is followed, and the locks stand beside what it leads to" {
	mkdir "$T/D"
	three
	mv "$T/B" "$T/D/real"
	ln -s D/real "$T/B"
	: >"$T/D/real.lock"
	begin 'DELE 1\r\nQUIT\r\n' -- -P -m B
	await has +OK "$T/out"
	rm "$T/D/real.lock"
	finish
	has '+OK 1 deleted' "$T/out"
	[ "$(grep -c '^Subject' "$T/D/real")" = 2 ]
	[ -h "$T/B" ]
	[ "$(cd "$T" && find D -type f | sort | tr '\n' ' ')" = 'D/.real.pop3-state D/real ' ]
}

@test "a message of several blocks is sent whole, and its top to the line" {
	local long
	long=$(printf '%0300000d' 0)
	{
		printf '%s\nSubject: 1\nX-Long: %s\n\n' "$FROM" "$long"
		printf '%s\n' "$long" last
		printf '\n%s\nSubject: 2\n\ntwo\n\n' "$FROM"
	} >"$T/B"
	say 'RETR 1\r\nTOP 1 0\r\nTOP 1 1\r\nQUIT\r\n' -m B
	{
		printf "$HELLO+OK 600032 octets\r\nSubject: 1\r\nX-Long: $long\r\n\r\n$long\r\nlast\r\n.\r\n"
		printf "+OK top of message follows\r\nSubject: 1\r\nX-Long: $long\r\n\r\n.\r\n"
		printf "+OK top of message follows\r\nSubject: 1\r\nX-Long: $long\r\n\r\n$long\r\n.\r\n+OK 0 deleted\r\n"
	} >"$T/expected"
	cmp "$T/expected" "$T/out"
}

@test "DELE of each set of messages leaves exactly the others" {
	local set n script kept
	for set in 1 2 3 '1 2' '1 3' '2 3' '1 2 3'; do
		three
		script=
		for n in $set; do
			script+="DELE $n\r\n"
		done
		kept=
		for n in 1 2 3; do
			[[ " $set " == *" $n "* ]] || kept+="From $(echo "$n" | tr 123 abc) $D\nSubject: $n\n\n$(echo "$n" | sed 's/1/one/;s/2/two/;s/3/three/')\n\n"
		done
		say "${script}QUIT\r\n" -m B
		holds "$kept"
		[ ! -e "$T/B.lock" ]
	done
}

@test "nothing is written where only a tail goes, the file is cut" {
	need strace
	three
	give
	(cd "$T" && printf 'DELE 2\r\nDELE 3\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -y -o trace -e trace=pwrite64,ftruncate,fsync "$POP3" -P -m B >out 2>log)
	grep -q '^pwrite64(.*pop3-state' "$T/trace"
	no grep -q '^pwrite64([0-9]*<[^>]*/B>' "$T/trace"
	grep -q "^ftruncate(.*, $(printf 'From a %s\nSubject: 1\n\none\n\n' "$D" | wc -c))" "$T/trace"
	holds "From a $D\nSubject: 1\n\none\n\n"
}

@test "the mbox keeps its inode, owner and mode through UPDATE" {
	three
	chmod 640 "$T/B"
	local before
	give
	before=$(stat -c '%i %u %a' "$T/B")
	say 'DELE 1\r\nQUIT\r\n' -m B
	[ "$(stat -c '%i %u %a' "$T/B")" = "$before" ]
}

@test "mail appended during the session is not numbered, and kept by UPDATE" {
	three
	converse -P -m B
	printf 'From d %s\nSubject: 4\n\nfour\n\n' "$D" >>"$T/B"
	tell 'STAT\r\nRETR 3\r\nDELE 1\r\nDELE 3\r\nQUIT\r\n'
	hang_up
	has '+OK 3 59' "$T/out"
	has '+OK 2 deleted' "$T/out"
	holds "From b $D\nSubject: 2\n\ntwo\n\nFrom d $D\nSubject: 4\n\nfour\n\n"
}

@test "a delivery behind a header without an empty line does not confuse the session" {
	box "From a $D\nSubject: 1\n"
	converse -P -m B
	printf '\nFrom d %s\nSubject: 4\n\nfour\n\n' "$D" >>"$T/B"
	tell 'RETR 1\r\nDELE 1\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'+OK 12 octets\r\nSubject: 1\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	holds "From d $D\nSubject: 4\n\nfour\n\n"
}

@test "an mbox that another rewrote is neither sent nor touched" {
	three
	converse -P -m B
	printf 'From z %s\nSubject: other\n\nother\n\n' "$D" >"$T/B"
	tell 'DELE 1\r\nRETR 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'+OK message 1 deleted\r\n-ERR [SYS/TEMP] the maildrop cannot be used now\r\n-ERR [SYS/TEMP] nothing removed\r\n'
	holds "From z $D\nSubject: other\n\nother\n\n"
	[ "$(grep -c 'text="another changed 3 messages meanwhile"' "$T/log")" = 1 ]
}

@test "an mbox that another replaced by a copy with the same mail is served on" {
	three
	converse -P -m B
	cp -p "$T/B" "$T/C"
	mv "$T/C" "$T/B"
	tell 'RETR 2\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	has '+OK 1 deleted' "$T/out"
	holds "From a $D\nSubject: 1\n\none\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
}

@test "no delivery lock is held while a session waits for its client" {
	three
	converse -P -m B
	tell 'STAT\r\n'
	[ ! -e "$T/B.lock" ]
	need perl
	perl -e 'use Fcntl; open F, "+<", shift or die; $l = pack "s s l! l! i", F_WRLCK, 0, 0, 0, 0; fcntl F, F_SETLK, $l or exit 1' "$T/B"
	hang_up
}

@test "a dotlock of another is waited for, and deliveries are kept out during UPDATE" {
	need strace
	three
	: >"$T/B.lock"
	begin 'STAT\r\nDELE 1\r\nQUIT\r\n' -- -P -m B
	sleep 0.5
	no has '+OK 3' "$T/out"
	rm "$T/B.lock"
	finish
	has '+OK 1 deleted' "$T/out"
	three
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace "$POP3" -P -m B >out 2>log)
	# Dotlock, fcntl, the rewrite, and both given up again.
	sed -n '/DELE/,/pop3-state/s/^\(link\|fcntl\|pwrite64\|ftruncate\|unlink\)(\(.*\)/\1 \2/p' "$T/trace" |
		sed -n '/"pop3-handler /d;s/^link .*/link/p;s/^fcntl.*F_WRLCK.*/lock/p;s/^fcntl.*F_UNLCK.*/unlock/p;s/^pwrite64.*/write/p;s/^ftruncate.*/cut/p;s/^unlink .*B\.lock".*/unlink/p' >"$T/order"
	[ "$(uniq "$T/order" | tr '\n' ' ')" = 'link lock write cut unlock unlink ' ]
}

@test "an old dotlock of another is removed, readable or not, and logged" {
	three
	: >"$T/B.lock"
	chmod 0 "$T/B.lock"
	touch -d '11 minutes ago' "$T/B.lock"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 3' "$T/out"
	logged 'removed: an abandoned lock'
	[ ! -e "$T/B.lock" ]
}

@test "a dotlock of ours that a killed session left is removed at once" {
	three
	printf 'pop3-handler 1\n' >"$T/B.lock"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 3' "$T/out"
	logged 'removed: an abandoned lock'
}

@test "where the directory permits no dotlock, fcntl alone is used and that is logged once" {
	mkdir "$T/spool"
	three
	mv "$T/B" "$T/spool/B"
	give
	chmod 555 "$T/spool"
	say 'STAT\r\nDELE 1\r\nQUIT\r\n' -m spool/B -d "$T/side"
	chmod 755 "$T/spool"
	has '+OK 1 deleted' "$T/out"
	[ "$(grep -c 'no place for a dotlock' "$T/log")" = 1 ]
	[ "$(ls -A "$T/side")" = .B.pop3-state ]
	[ "$(stat -c %a "$T/side")" = 700 ]
}

@test "where a dotlock cannot be linked, or has no room for our tag, the mbox is served all the same" {
	need strace
	local inject
	for inject in link:error=EPERM pwrite64:error=ENOSPC; do
		three
		rm -f "$T/.B.pop3-state"
		give
		(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace \
			-P "$T/B.lock" -P "$T/.B.pop3-lock" -e inject=$inject "$POP3" -P -h pop.example.org -m B >out 2>log)
		grep -q INJECTED "$T/trace"
		expect "$HELLO"'+OK message 1 deleted\r\n+OK 1 deleted\r\n'
		holds "From b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
		[ "$(grep -c 'no place for a dotlock' "$T/log")" = "$([ $inject = link:error=EPERM ] && echo 1 || echo 0)" ]
		[ -z "$(find "$T" -name '*lock')" ]
	done
}

@test "without a place for a journal, what needs one is refused at QUIT and the log names -d" {
	mkdir "$T/spool"
	three
	mv "$T/B" "$T/spool/B"
	give
	chmod 555 "$T/spool"
	say 'DELE 1\r\nQUIT\r\n' -m spool/B -d "$T/no/such"
	has '-ERR [SYS/PERM] nothing removed' "$T/out"
	logged 'text="no place for a journal: see option -d"'
	logged 'text="no session lock: no place for one; see option -d"'
	# A cut needs none.
	say 'DELE 3\r\nQUIT\r\n' -m spool/B -d "$T/no/such"
	chmod 755 "$T/spool"
	has '+OK 1 deleted' "$T/out"
	[ "$(grep -c '^Subject' "$T/spool/B")" = 2 ]
}

@test "a directory of -d that others could change is not used" {
	local kind
	mkdir "$T/spool"
	three
	mv "$T/B" "$T/spool/B"
	give
	chmod 555 "$T/spool"
	for kind in group others symlink file; do
		rm -rf "$T/side" "$T/elsewhere"
		mkdir "$T/side" "$T/elsewhere"
		case $kind in
		group) chmod 770 "$T/side" ;;
		others) chmod 707 "$T/side" ;;
		symlink) rmdir "$T/side"; ln -s elsewhere "$T/side" ;;
		file) rmdir "$T/side"; touch "$T/side" ;;
		esac
		say 'DELE 1\r\nQUIT\r\n' -m spool/B -d "$T/side"
		has '-ERR [SYS/PERM] nothing removed' "$T/out"
		logged "file=$T/side text=\"option -d: not a directory of the user's alone\""
		[ -z "$(find "$T" -name '.B.*')" ]
	done
	chmod 755 "$T/spool"
}

@test "a path that leaves no room for what stands beside the mbox is refused" {
	local path=$T/ n
	while [ ${#path} -lt 3800 ]; do
		path+=$(printf '%0200d' 0)/
	done
	n=$((4085 - ${#path}))
	while [ $n -gt 200 ]; do
		path+=$(printf '%0100d' 0)/
		n=$((n - 101))
	done
	path+=$(printf "%0${n}d" 0)
	mkdir -p "${path%/*}"
	three
	mv "$T/B" "$path"
	say 'STAT\r\nQUIT\r\n' -m "$path"
	expect '-ERR [SYS/TEMP] the maildrop cannot be used now\r\n'
	logged 'text="state file: '
	# A Maildir needs none: it is served without a lock.
	rm "$path"
	mkdir -p "$path"/{cur,new,tmp}
	(cd "$path" && echo x >cur/1.a)
	say 'RETR 1\r\nDELE 1\r\nQUIT\r\n' -m "$path"
	expect "$HELLO"'+OK 3 octets\r\nx\r\n.\r\n+OK message 1 deleted\r\n+OK 1 deleted\r\n'
	logged 'no session lock'
	[ -z "$(cd "$path/cur" && ls)" ]
}

@test "an mbox of more than 16 TiB is refused" {
	need_mounts
	mkdir "$T/disk"
	printf '%s\n\nx\n' "$FROM" >"$T/B"
	give
	# shellcheck disable=SC2016
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | unshare -m sh -ec 'mount -t tmpfs -o mode=777 tmpfs disk
		cp -p B disk
		truncate -s 17T disk/B
		exec "$@"' sh "${AS[@]}" bin/dialogue "$POP3" -P -h pop.example.org -m disk/B >out 2>log)
	expect '-ERR [SYS/PERM] the maildrop cannot be used\r\n'
	logged 'too large'
}

@test "a message that a reader gives a Status can be removed, but is not sent with other octets" {
	three
	converse -P -m B
	sed -i 's/^Subject: 2/Status: RO\n&/' "$T/B"
	tell 'RETR 1\r\nRETR 2\r\nRETR 3\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	[ "$(grep -c '^-ERR' "$T/out")" = 1 ]
	has 'three' "$T/out"
	has '+OK 1 deleted' "$T/out"
	holds "From a $D\nSubject: 1\n\none\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
}

@test "when a reader takes one message away, the others are still sent and removed" {
	three
	converse -P -m B
	printf "From b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\nFrom d $D\nSubject: 4\n\nfour\n\n" >"$T/C"
	cat "$T/C" >"$T/B"
	tell 'RETR 1\r\nRETR 2\r\nRETR 3\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n+OK 19 octets\r\nSubject: 2\r\n\r\ntwo\r\n.\r\n+OK 21 octets\r\nSubject: 3\r\n\r\nthree\r\n.\r\n+OK message 2 deleted\r\n+OK 1 deleted\r\n'
	holds "From c $D\nSubject: 3\n\nthree\n\nFrom d $D\nSubject: 4\n\nfour\n\n"
}

@test "behind a message of ours that a stranger's follows now, only that one is in doubt" {
	three
	converse -P -m B
	printf "From a $D\nSubject: 1\n\none\n\nFrom x $D\nSubject: x\n\nstranger\n\nFrom b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n" >"$T/C"
	cat "$T/C" >"$T/B"
	tell 'RETR 1\r\nRETR 2\r\nDELE 1\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n+OK 19 octets\r\nSubject: 2\r\n\r\ntwo\r\n.\r\n+OK message 1 deleted\r\n+OK message 2 deleted\r\n-ERR [SYS/TEMP] some deleted messages not removed\r\n'
	holds "From a $D\nSubject: 1\n\none\n\nFrom x $D\nSubject: x\n\nstranger\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
}

@test "among very many strangers nothing is looked for any more, and nothing removed" {
	local n
	three
	converse -P -m B
	{
		for n in {1..70}; do
			printf "From x $D\nSubject: x%d\n\nstranger\n\n" "$n"
		done
		cat "$T/B"
	} >"$T/C"
	cat "$T/C" >"$T/B"
	tell 'RETR 1\r\nDELE 2\r\nQUIT\r\n'
	hang_up
	expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n+OK message 2 deleted\r\n-ERR [SYS/TEMP] nothing removed\r\n'
	same "$T/C" "$T/B"
	say 'STAT\r\nQUIT\r\n' -m B
	has '+OK 73 ' "$T/out"
}

@test "a marked message that is not found again is not called removed" {
	three
	converse -P -m B
	tell 'DELE 1\r\n'
	sed -i 's/^one/other/' "$T/B"
	tell 'DELE 3\r\nQUIT\r\n'
	hang_up
	has '-ERR [SYS/TEMP] some deleted messages not removed' "$T/out"
	holds "From a $D\nSubject: 1\n\nother\n\nFrom b $D\nSubject: 2\n\ntwo\n\n"
}

@test "a change that keeps size and time of modification is seen, and nothing removed" {
	three
	converse -P -m B
	touch -r "$T/B" "$T/times"
	sed 's/Subject: 1/Subject: 9/' "$T/B" >"$T/C"
	cat "$T/C" >"$T/B"
	touch -r "$T/times" "$T/B"
	tell 'DELE 1\r\nQUIT\r\n'
	hang_up
	has '-ERR' "$T/out"
	[ "$(grep -c '^Subject' "$T/B")" = 3 ]
}

@test "a file that may have changed within the clock's tick is not believed by its times" {
	need strace
	three
	give
	# Locks: of the state file, for the scan, and to look again.
	(cd "$T" && printf 'RETR 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace -e trace=fcntl "$POP3" -P -m B >out 2>log)
	[ "$(grep -c 'F_SETLK.*F_WRLCK' "$T/trace")" -ge 3 ]
	sleep 3
	(cd "$T" && printf 'RETR 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace -e trace=fcntl "$POP3" -P -m B >out 2>log)
	[ "$(grep -c 'F_SETLK,.*F_WRLCK' "$T/trace")" = 2 ]
	# Nor is it read where a journal was all that was left.
	: >"$T/.B.pop3-journal"
	give
	(cd "$T" && printf 'STAT\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace -P "$T/B" \
		-e trace=pread64 "$POP3" -P -h pop.example.org -m B >out 2>log)
	expect "$HELLO"'+OK 3 59\r\n+OK 0 deleted\r\n'
	[ ! -e "$T/.B.pop3-journal" ]
	[ "$(grep -c pread64 "$T/trace")" -le 1 ]
}

@test "a signal during UPDATE waits until it is done" {
	need strace
	three
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace -P "$T/B" \
		-e inject=fdatasync:signal=TERM:when=1 "$POP3" -P -m B >out 2>log) || :
	grep -q 'SIGTERM' "$T/trace"
	holds "From b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
	[ ! -e "$T/B.lock" ]
	[ ! -e "$T/.B.pop3-journal" ]
}

@test "reading leaves the time of last access alone" {
	three
	touch -a -d '2020-01-01' "$T/B"
	touch -m -d '2019-01-01' "$T/B"
	local before
	before=$(stat -c %X "$T/B")
	say 'RETR 1\r\nRETR 3\r\nQUIT\r\n' -m B
	[ "$(stat -c %X "$T/B")" = "$before" ]
}

@test "UPDATE leaves no journal, and needs none for a tail" {
	need strace
	three
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace "$POP3" -P -m B >out 2>log)
	grep -q 'open.*\.B\.pop3-journal", O_RDWR|O_CREAT|O_EXCL.*O_NOFOLLOW' "$T/trace"
	[ "$(ls -A "$T" | grep -c journal)" = 0 ]
	(cd "$T" && printf 'DELE 2\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -o trace "$POP3" -P -m B >out 2>log)
	no grep -q 'pop3-journal.*O_CREAT' "$T/trace"
}

@test "the dotlock is on the disk as ours before a journal begins" {
	need strace
	three
	give
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue \
		strace -y -o trace "$POP3" -P -m B >out 2>log)
	sed -n 's/^fsync(.*pop3-lock.*/lock/p;s/^fsync(.*\.lock>.*/lock/p;s/^open.*pop3-journal".*O_CREAT.*/journal/p' \
		"$T/trace" >"$T/order"
	[ "$(tr '\n' ' ' <"$T/order")" = 'lock journal ' ]
}

@test "a file at the journal's path that is none of ours is set aside, never applied" {
	three
	cp "$T/B" "$T/before"
	local kind
	for kind in link fifo open damaged; do
		case $kind in
		link) ln -s "$T/before" "$T/.B.pop3-journal" ;;
		fifo) mkfifo "$T/.B.pop3-journal" ;;
		open) head -c 16384 /dev/zero >"$T/.B.pop3-journal"; chmod 666 "$T/.B.pop3-journal" ;;
		damaged)
			{
				head -c 8192 /dev/zero
				printf pop3jrn1
				head -c 8184 /dev/zero
			} >"$T/.B.pop3-journal"
			chmod 600 "$T/.B.pop3-journal"
			;;
		esac
		say 'STAT\r\nQUIT\r\n' -m B
		has '+OK 3 59' "$T/out"
		logged 'a journal that was not applied'
		[ ! -e "$T/.B.pop3-journal" ]
		same "$T/before" "$T/B"
		[ "$(find "$T" -name '.B.pop3-journal.aside.*' | wc -l)" = 1 ]
		rm "$T"/.B.pop3-journal.aside.*
	done
}

@test "the dotlock that guards a half-moved mbox stands until the move is finished" {
	need strace perl
	three
	give
	cp "$T/B" "$T/before"
	# Killed when the journal says that all is moved, and nothing is cut.
	(cd "$T" && printf 'DELE 1\r\nQUIT\r\n' | "${AS[@]}" bin/dialogue strace -o trace -P "$T/B" \
		-e inject=ftruncate:signal=KILL "$POP3" -P -m B >out 2>log) || :
	[ -e "$T/B.lock" ]
	[ -e "$T/.B.pop3-journal" ]
	# A mail reader holds the other lock.
	mkfifo "$T/release"
	"${AS[@]}" perl -e 'use Fcntl; open F, "+<", $ARGV[0] or die; $l = pack "s s l! l! i", F_WRLCK, 0, 0, 0, 0;
		fcntl F, F_SETLK, $l or die; open R, "<", $ARGV[1]; <R>' "$T/B" "$T/release" 3>&- &
	local reader=$!
	sleep 0.3
	begin 'STAT\r\nQUIT\r\n' -- -P -m B
	local i
	for ((i = 0; i < 100; i++)); do
		[ -e "$T/B.lock" ]
		sleep 0.01
	done
	[ -e "$T/.B.pop3-journal" ]
	echo >"$T/release"
	wait "$reader"
	finish
	has '+OK 2 40' "$T/out"
	holds "From b $D\nSubject: 2\n\ntwo\n\nFrom c $D\nSubject: 3\n\nthree\n\n"
	[ ! -e "$T/B.lock" ]
	[ ! -e "$T/.B.pop3-journal" ]
}

@test "a first line that another is just writing is looked at again under the locks" {
	need perl
	three
	cp "$T/B" "$T/before"
	printf 'half' >"$T/B"
	: >"$T/B.lock"
	begin 'STAT\r\nQUIT\r\n' -- -P -m B
	sleep 0.3
	cat "$T/before" >"$T/B"
	rm "$T/B.lock"
	finish
	has '+OK 3 59' "$T/out"
}

@test "in a shared spool the lock is made with group mail, and nothing else is" {
	need_root
	need strace
	getent group mail >/dev/null || skip "needs a group mail"
	local gid
	gid=$(getent group mail | cut -d: -f3)
	mkdir "$T/spool" "$T/home"
	three
	mv "$T/B" "$T/spool/alice"
	chown 12345:12346 "$T/home"
	chown 0:"$gid" "$T/spool"
	chmod 2775 "$T/spool"
	chown "12345:$gid" "$T/spool/alice"
	chmod 660 "$T/spool/alice"
	printf 'alice:{PLAIN}secret:12345:12346::%s::\n' "$T/home" >"$T/users"
	(cd "$T" && printf 'USER alice\r\nPASS secret\r\nDELE 1\r\nQUIT\r\n' | bin/dialogue \
		strace -f -o trace "$POP3" -h pop.example.org -a users -m "$T/spool/%u" >out 2>log)
	has '+OK 1 deleted' "$T/out"
	[ ! -s "$T/log" ] || ! grep -q 'warning' "$T/log"
	grep -q "link(.*spool/alice.lock\") = 0" "$T/trace"
	# Group mail is effective only around the names of the lock.
	awk -v gid="$gid" '/setresgid\(-1, /{ on = index($0, "-1, " gid ",") > 0 }
		on && /(openat|unlink|link|rename)\(/ && !/lock/ { exit 1 }
		/openat\(.*spool\/alice"/ && on { exit 1 }' "$T/trace"
	[ "$(ls -A "$T/spool")" = alice ]
	[ "$(ls -A "$T/home/.pop3-handler")" = .alice.pop3-state ]
	# A symlink there, or a second link, is refused.
	mv "$T/spool/alice" "$T/home/elsewhere"
	ln -s "$T/home/elsewhere" "$T/spool/alice"
	printf 'USER alice\r\nPASS secret\r\nQUIT\r\n' | (cd "$T" && bin/dialogue "$POP3" -h pop.example.org -a users -m "$T/spool/%u" >out 2>log)
	has '-ERR [SYS/PERM]' "$T/out"
	logged 'a symlink in a directory of another'
	rm "$T/spool/alice"
	ln "$T/home/elsewhere" "$T/spool/alice"
	printf 'USER alice\r\nPASS secret\r\nQUIT\r\n' | (cd "$T" && bin/dialogue "$POP3" -h pop.example.org -a users -m "$T/spool/%u" >out 2>log)
	has '-ERR [SYS/PERM]' "$T/out"
	logged 'has more than one link'
}

@test "outside a spool the session keeps no group but the account's" {
	need_root
	printf 'alice:{PLAIN}secret:12345:12346::%s::\n' "$T" >"$T/users"
	three
	chown 12345:12346 "$T" "$T/B"
	mkfifo "$T/in"
	(cd "$T" && bin/dialogue -i pid "$POP3" -h pop.example.org -a users -m %h/B <in >out 2>log 3>&-) &
	CLIENT=$!
	exec 7>"$T/in"
	printf 'USER alice\r\nPASS secret\r\nSTAT\r\n' >&7
	await has '+OK 3' "$T/out"
	PID=$(cat "$T/pid")
	[ "$(sed -n 's/^Gid:[[:blank:]]*//p' "/proc/$PID/status" | tr '\t' ' ')" = '12346 12346 12346 12346' ]
}

@test "an mbox that is not writable can be read, and QUIT says that nothing was removed" {
	three
	give
	chmod 400 "$T/B"
	say 'RETR 1\r\nDELE 1\r\nQUIT\r\n' -m B
	has 'Subject: 1' "$T/out"
	has '-ERR [SYS/PERM] nothing removed' "$T/out"
}

@test "a failed scan never leads to UPDATE" {
	need strace
	three
	cp "$T/B" "$T/before"
	give
	local script
	for script in 'DELE 1\r\nQUIT\r\n' 'QUIT\r\n'; do
		# The first two reads are those of the first line.
		# shellcheck disable=SC2059
		printf "$script" | (cd "$T" && "${AS[@]}" bin/dialogue strace -o trace -P "$T/B" \
			-e inject=pread64:error=EIO:when=3+ "$POP3" -P -h pop.example.org -m B >out 2>log)
		expect "$HELLO"'-ERR [SYS/TEMP] the maildrop cannot be used now\r\n'
		logged "text=\"read: $EIO\""
		same "$T/before" "$T/B"
		[ ! -e "$T/B.lock" ]
	done
}

@test "lines of every length around a block's end: From_ lines are found wherever they stand" {
	local pad n
	for n in {131030..131075..3} {262100..262146..5}; do
		{
			printf 'From a %s\nSubject: 1\n\n' "$D"
			pad=$((n - 51))
			head -c $pad /dev/zero | tr '\0' x | fold -w 70
			printf '\n\nFrom b %s\nSubject: 2\n\nFrom c\n\n\n' "$D"
		} >"$T/B"
		say 'LIST\r\nRETR 2\r\nQUIT\r\n' -m B
		has '+OK 2 messages' "$T/out"
		has '+OK 24 octets' "$T/out"
	done
}


@test "the end of a long line is no empty line, wherever the blocks end" {
	local end empty count length
	for end in '\n' '\r\n'; do
		for empty in '' "$end"; do
			for length in {131069..131073}; do
				{
					printf "From a $D${end}Subject: 1$end$end"
					head -c $((length - $(printf "From a $D${end}Subject: 1$end$end" | wc -c))) /dev/zero | tr '\0' x
					printf "$end${empty}From b $D${end}Subject: 2$end${end}x$end"
				} >"$T/B"
				rm -f "$T/.B.pop3-state"
				say 'STAT\r\n' -m B
				[ -z "$empty" ] && count=1 || count=2
				has "+OK $count " "$T/out"
			done
		done
	done
}

@test "of an mbox that has just changed, sending all messages reads each a few times, not all for each" {
	need strace
	local n script=''
	for ((n = 1; n <= 100; n++)); do
		printf '%s\nSubject: %d\n\nx\n\n' "$FROM" "$n"
		script+="RETR $n\r\n"
	done >"$T/B"
	give
	# Within the two seconds in which times do not show every change.
	touch "$T/B"
	# shellcheck disable=SC2059
	(cd "$T" && printf "${script}QUIT\r\n" | "${AS[@]}" strace -f -o trace -e trace=pread64,unlink,unlinkat \
		bin/dialogue "$POP3" -P -h pop.example.org -m B >out 2>log)
	[ "$(grep -c '^+OK 1[0-9] octets' "$T/out")" = 100 ]
	[ "$(grep -c pread64 "$T/trace")" -lt 700 ]
	[ "$(grep -c unlink "$T/trace")" -lt 10 ]
}
