#!/usr/bin/env bats
# What a second poll costs where there is much mail.
load helper

# polls CALLS MAILDROP: a session of which these system calls are in $T/trace.
polls() {
	printf 'STAT\r\nUIDL\r\nQUIT\r\n' | (cd "$T" && "${AS[@]}" bin/dialogue strace -y -o trace \
		-e "trace=$1" "$POP3" -P -h pop.example.org -m "$2") >"$T/out" 2>"$T/log"
}

@test "of an unchanged mbox of 1 GiB nothing is read but its first line" {
	need strace perl
	perl -e '$b = ("x" x 76 . "\n") x 1394; print "From a\@b Mon Jan  1 00:00:00 2024\nSubject: $_\n\n$b\n" for 1 .. 10000' >"$T/B"
	[ "$(stat -c %s "$T/B")" -ge 1073741824 ]
	give
	polls pread64 B
	has '+OK 10000 ' "$T/out"
	touch -d '1 hour' "$T/.B.pop3-state"
	mv "$T/out" "$T/first"
	polls pread64 B
	same "$T/first" "$T/out"
	[ "$(grep -c '^pread64([0-9]*<[^>]*/B>' "$T/trace")" = 1 ]
	grep -q '^pread64([0-9]*<[^>]*/B>.*, 1025, 0) = 1025' "$T/trace"
}

@test "of a Maildir of 100,000 messages no message is opened again, and nothing listed" {
	need strace perl
	maildir M
	perl -e 'for (1 .. 100000) { open F, ">", "$ARGV[0]/cur/" . (1.6e9 + $_) . ".a:2,S" or die; print F "Subject: $_\n\nx\n"; close F }' "$T/M"
	touch -d 2024-01-01 "$T/M/new" "$T/M/cur"
	give
	polls openat,getdents64 M
	has '+OK 100000 ' "$T/out"
	[ "$(grep -c '/cur>, "16' "$T/trace")" = 100000 ]
	touch -d '1 hour' "$T/M/pop3-state"
	mv "$T/out" "$T/first"
	polls openat,getdents64 M
	same "$T/first" "$T/out"
	no grep -q '/cur>, "16' "$T/trace"
	no grep -q '^getdents64' "$T/trace"
}
