#!/usr/bin/env bats
# Real clients fetch mail that is hard to carry (tests/tools/traps), over TCP.
load helper

PATH=$PATH:/usr/sbin:/sbin
TRAPS=$BATS_FILE_TMPDIR/traps

traps() {
	python3 "$ROOT/tests/tools/traps" "$@"
}

# numbers GREP-ARG...: those of the messages that have such names.
numbers() {
	grep "$@" "$TRAPS/names" | cut -d ' ' -f 1
}

# serve FORMAT [ARG...]: the maildrop of alice and bob, empty as yet, on $PORT of
# 127.0.0.1; through $RECORD, if that is set.
serve() {
	local ids=:
	need tcpserver python3
	[ -e "$TRAPS/names" ] || traps make "$TRAPS" "$MAIL"/*.eml
	FORMAT=$1
	shift
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf '%s:%s:%s::%s::\n' alice '{PLAIN}secret' "$ids" "$T/home" \
		bob '$1$pop3$8czRGyFBMb11zJJiiToDx1' "$ids" "$T/home" >"$T/users"
	maildir home/drop
	[ "$FORMAT" = maildir ] || rmdir "$T"/home/drop/* "$T/home/drop"
	deliver
	rm -f "$T/port"
	# shellcheck disable=SC2086 # a command before it, or none
	tcpserver -1RHl0 127.0.0.1 0 ${RECORD:-} "$POP3" -h pop.example.org -a "$T/users" \
		-m %h/drop "$@" >"$T/port" 2>"$T/server.log" 3>&- &
	PID=$!
	await test -s "$T/port"
	PORT=$(cat "$T/port")
}

# deliver N...: these messages arrive.
deliver() {
	local names=("${@/%/.M1P1.example.org}")
	if [ "$FORMAT" = mbox ]; then
		cat /dev/null "${@/#/$TRAPS/mbox/}" >>"$T/home/drop"
	elif [ $# -gt 0 ]; then
		cp "${names[@]/#/$TRAPS/maildir/1700000}" "$T/home/drop/new/"
	fi
	[ "$(id -u)" != 0 ] || chown -R "$NOBODY:$NOBODY" "$T/home"
}

# left N...: exactly these messages are in the maildrop, as they were stored.
left() {
	local n
	if [ "$FORMAT" = mbox ]; then
		cat /dev/null "${@/#/$TRAPS/mbox/}" | cmp - "$T/home/drop"
		return
	fi
	rm -rf "$T/kept"
	mkdir "$T/kept" "$T/kept/cur" "$T/kept/new" "$T/kept/tmp"
	for n; do
		n=1700000$n.M1P1.example.org
		ln -s "$TRAPS/maildir/$n" "$T/kept/cur/$n:2,"
	done
	diff -rq -x pop3-state "$T/kept" "$T/home/drop"
}

# All sessions that had a login have ended.
settled() {
	[ "$(grep -c event=login "$T/server.log")" = "$(grep -c event=end "$T/server.log")" ]
}

# fetch CLIENT MODE: has it write what it fetches to files $GOT/1, $GOT/2... in the
# order in which it comes. With KEEP it fetches what it has not seen, and leaves
# all; with DELETE, all that has at most a million octets, and deletes that.
fetch() {
	GOT=$T/got
	rm -rf "$GOT"
	mkdir -p "$GOT" "$T/of.$2"
	chmod 700 "$T/of.$2"
	echo 0 >"$GOT.count"
	cat >"$T/mda" <<-MDA
		#!/bin/sh
		read n <"$GOT.count"
		echo \$((n + 1)) >"$GOT.count"
		exec cat >"$GOT/\$((n + 1))"
	MDA
	chmod 755 "$T/mda"
	if ! (cd "$T/of.$2" && HOME=$PWD "with_$1" "$2" >"$T/client.log" 2>&1); then
		tail -n 20 "$T/client.log" "$T/server.log" >&2
		return 1
	fi
	await settled
}

# The clients. Each with_CLIENT MODE is run in a directory of its own, which is
# its HOME; $HOW may say how it logs in. What has to be set so that messages come
# as they are is set; otherwise the defaults hold, but for TLS. What a client
# changes nevertheless is said, and made exactly the same, in tests/tools/traps.

# It does not remember what it has seen, so the file seen does, by unique-id.
with_curl() {
	local at=pop3://127.0.0.1:$PORT user=${NAME:-alice}:secret
	# shellcheck disable=SC2206 # options, or none
	local curl=(timeout 60 curl -sS --user "$user" ${HOW:-})
	"${curl[@]}" "$at" >list
	"${curl[@]}" -X UIDL "$at" >uidl
	touch seen
	# One connection for all of it.
	paste -d ' ' list uidl | tr -d '\r' |
		awk -v mode="$1" -v at="$at" -v user="$user" -v got="$GOT" '
	BEGIN { while ((getline id <"seen") > 0) seen[id] = 1; close("seen") }
	$1 != $3 { exit 1 }
	mode == "KEEP" && !seen[$4] {
		printf "url = %s/%d\noutput = %s/%d\n", at, $1, got, ++k
		print $4 >>"seen"
	}
	mode == "DELETE" && $2 <= 1000000 {
		printf "%surl = %s/%d\noutput = %s/%d\n", sep, at, $1, got, ++k
		printf "user = %s\nnext\n", user
		printf "url = %s/%d\nrequest = DELE\nhead\nuser = %s\n", at, $1, user
		sep = "next\n"
	}' >config
	[ ! -s config ] || "${curl[@]}" -K config
}

# Messages without a header are refused without bad-header.
with_fetchmail() {
	local status=0
	cat >rc <<-RC
		set invisible
		poll 127.0.0.1 service $PORT protocol ${HOW:-pop3} uidl bad-header accept
			username alice password secret is $(id -un) here
			no rewrite no stripcr mda $T/mda $([ "$1" = KEEP ] && echo keep || echo limit 1000000)
	RC
	chmod 600 rc
	FETCHMAILHOME=$HOME timeout 60 fetchmail -f rc --nosyslog --sslproto '' || status=$?
	# 1: there was nothing new.
	[ "$status" = "$([ -e "$GOT/1" ] && echo 0 || echo 1)" ]
}

# Of version 6.18 how it waits for a child is replaced: it would miss the end of one
# that is quick, and wait a minute.
with_getmail() {
	local getmail
	getmail=$(command -v getmail)
	cat >getmailrc <<-RC
		[retriever]
		type = SimplePOP3Retriever
		server = 127.0.0.1
		port = $PORT
		username = alice
		password = secret
		${HOW:-}
		[destination]
		type = MDA_external
		path = $T/mda
		allow_root_commands = true
		[options]
		read_all = false
		delivered_to = false
		received = false
		delete = $([ "$1" = KEEP ] && echo false || echo true)
		max_message_size = $([ "$1" = KEEP ] && echo 0 || echo 1000000)
	RC
	timeout 60 "$(sed -n '1s/^#! *//p' "$getmail")" -c 'if True:
		import os, runpy, sys
		from getmailcore.baseclasses import ForkingBase
		ForkingBase._prepare_child = lambda self: None
		ForkingBase._wait_for_child = lambda self, child: (
		    os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
		sys.argv = sys.argv[1:]
		runpy.run_path(sys.argv[0], run_name="__main__")' "$getmail" -g .
}

with_mpop() {
	cat >rc <<-RC
		account default
		host 127.0.0.1
		port $PORT
		tls off
		auth ${HOW:-user}
		user alice
		password secret
		received_header off
		uidls_file uidls
		delivery mda $T/mda
		keep $([ "$1" = KEEP ] && echo on || echo 'off')
		skipsize $([ "$1" = KEEP ] && echo 'off' || echo 1000000)
	RC
	chmod 600 rc
	# shellcheck disable=SC2086 # words, or none
	timeout 60 ${TRACE:-} mpop --quiet -C rc ${PIPELINING:-}
}

# It wants a terminal; its first keys would answer the question whether to make its
# folder; and it takes a message with a long field for one of negative size, so that
# those to delete are known by their Subject.
with_mutt() {
	local pattern='!~R' delete=
	[ "$1" = KEEP ] || pattern='!~s ^big$' delete='<tag-prefix><delete-message>'
	mkdir -p cache
	cat >rc <<-RC
		set folder=$HOME tmpdir=$HOME header_cache=cache/ message_cachedir=cache/ ssl_force_tls=no
		set pop_user=alice pop_pass=secret ${HOW:-}
		set sort=mailbox-order pipe_split=yes pipe_sep="" wait_key=no
		set quit=yes delete=yes
		push "<tag-pattern>$pattern<enter><tag-prefix-cond><pipe-message>$T/mda<enter>$delete<end-cond><quit>"
	RC
	TERM=xterm timeout 60 python3 -c 'if True:
		import pty, sys
		sys.exit(pty.spawn(sys.argv[1:]))' mutt -n -F rc -f "pop://127.0.0.1:$PORT" </dev/null
}

# Its lines end in LF alone, and have their CR back here.
with_Net::POP3() {
	touch seen
	timeout 60 perl -MNet::POP3 -we 'use strict;
		my ($port, $mode, $got, $login) = @ARGV;
		my $pop = Net::POP3->new("127.0.0.1", Port => $port) or die "connect";
		defined $pop->$login("alice", "secret") or die "login";
		my ($octets, $id, $k) = ($pop->list, $pop->uidl, 0);
		open my $seen, "+<", "seen" or die "seen";
		my %seen = map { $_ => 1 } <$seen>;
		for my $n (sort { $a <=> $b } keys %$octets) {
			next if $mode eq "KEEP" ? $seen{"$id->{$n}\n"} : $octets->{$n} > 1000000;
			my $lines = $pop->get($n) or die "get";
			open my $file, ">:raw", "$got/" . ++$k or die "open";
			print $file map { s/\n\z/\r\n/r } @$lines;
			print $seen "$id->{$n}\n";
			$mode eq "KEEP" or $pop->delete($n) or die "delete";
		}
		$pop->quit or die "quit"' "$PORT" "$1" "$GOT" "${HOW:-login}"
}

# It refuses lines of more than 2,048 octets, unless told.
with_poplib() {
	touch seen
	timeout 60 python3 -c 'if True:
		import poplib, sys
		port, mode, got, how = sys.argv[1:]
		poplib._MAXLINE = 1 << 20
		pop = poplib.POP3("127.0.0.1", int(port))
		if how == "apop":
		    pop.apop("alice", "secret")
		else:
		    pop.user("alice")
		    pop.pass_("secret")
		ids = dict(line.split() for line in pop.uidl()[1])
		file = open("seen", "rb+")
		seen = file.read().split()
		k = 0
		for n, octets in [line.split() for line in pop.list()[1]]:
		    if ids[n] in seen if mode == "KEEP" else int(octets) > 1000000:
		        continue
		    k += 1
		    with open("%s/%d" % (got, k), "wb") as message:
		        message.writelines(line + b"\r\n" for line in pop.retr(int(n))[1])
		    file.write(ids[n] + b"\n")
		    if mode == "DELETE":
		        pop.dele(int(n))
		pop.quit()' "$PORT" "$1" "$GOT" "${HOW:-user}"
}

# arrives CLIENT MODE N...: what it fetches is exactly these messages.
arrives() {
	local client=$1
	fetch "$client" "$2"
	shift 2
	traps compare "$TRAPS" "$FORMAT" "$client" "$GOT" "$@"
}

# What comes over the wire for these messages, the whole maildrop, is what must: so
# whatever a client makes of it, the client does.
comes() {
	local n=0
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	printf 'USER alice\r\nPASS secret\r\n' >&5
	for _; do
		printf 'RETR %d\r\n' $((++n))
	done >&5
	printf 'QUIT\r\n' >&5
	{
		printf "$HELLO"'+OK now the password\r\n+OK welcome\r\n'
		traps stream "$TRAPS" "$FORMAT" "$@"
		printf '+OK 0 deleted\r\n'
	} | cmp - <(timeout 60 cat <&5)
	exec 5>&-
	await settled
}

# The life of a maildrop with a client, in one of the formats.
lives_with() {
	local client=$1 early late big others again=()
	serve "$2"
	mapfile -t early < <(numbers -v ' late-')
	mapfile -t late < <(numbers ' late-')
	mapfile -t big < <(numbers ' big-')
	mapfile -t others < <(numbers -v ' big-')
	# mutt keeps no empty file in its cache, and so fetches that message again.
	[ "$client $FORMAT" != 'mutt maildir' ] || mapfile -t again < <(numbers '[ -]empty$')
	deliver "${early[@]}"
	arrives "$client" KEEP "${early[@]}"
	comes "${early[@]}"
	arrives "$client" KEEP "${again[@]}"
	deliver "${late[@]}"
	arrives "$client" KEEP "${again[@]}" "${late[@]}"
	left "${early[@]}" "${late[@]}"
	arrives "$client" DELETE "${others[@]}"
	left "${big[@]}"
	grep -q "event=end addr=127.0.0.1 user=alice .* deleted=${#others[@]} left=${#big[@]} " \
		"$T/server.log"
	no grep -qE 'event=(end .* reason=[^q]|refused|error|warning)' "$T/server.log"
	comes "${big[@]}"
}

@test "curl fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need curl
	lives_with curl maildir
}

@test "curl fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need curl
	lives_with curl mbox
}

@test "fetchmail fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need fetchmail
	lives_with fetchmail maildir
}

@test "fetchmail fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need fetchmail
	lives_with fetchmail mbox
}

@test "getmail fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need getmail
	lives_with getmail maildir
}

@test "getmail fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need getmail
	lives_with getmail mbox
}

@test "mpop fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need mpop
	lives_with mpop maildir
}

@test "mpop fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need mpop
	lives_with mpop mbox
}

@test "mutt fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need mutt
	lives_with mutt maildir
}

@test "mutt fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need mutt
	lives_with mutt mbox
}

@test "Net::POP3 fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need perl
	lives_with Net::POP3 maildir
}

@test "Net::POP3 fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need perl
	lives_with Net::POP3 mbox
}

@test "poplib fetches from a Maildir every octet, nothing twice, and deletes what it should" {
	need python3
	lives_with poplib maildir
}

@test "poplib fetches from an mbox every octet, nothing twice, and deletes what it should" {
	need python3
	lives_with poplib mbox
}

# sends CLIENT HOW COMMANDS: to fetch one message and delete it, logging in as HOW
# says, it sends these, and none is refused. AUTH+ has an initial response.
sends() {
	local one
	RECORD=recordio serve maildir -A
	one=$(numbers ' small-7$')
	deliver "$one"
	HOW=$2 arrives "$1" DELETE "$one"
	left
	no grep ' > -ERR' "$T/server.log"
	# What answers a challenge of SASL is longer than a command.
	sed -n 's/^[0-9]* < AUTH PLAIN [^ ].*/AUTH+/p;t;s/^[0-9]* < \([A-Z]\{3,4\}\)\b.*/\1/p' \
		"$T/server.log" | xargs >"$T/out"
	expect "$3\n"
	kill "$PID"
	rm -rf "${T:?}/home" "$T/of.DELETE"
}

@test "what clients send is understood, each way in that they know" {
	need recordio curl fetchmail getmail mpop mutt perl
	local sasl='CAPA AUTH' ir='CAPA AUTH+' apop='CAPA APOP'
	# For LIST, UIDL and the message curl connects anew.
	sends curl '' "$sasl LIST QUIT $sasl UIDL QUIT $sasl RETR DELE QUIT"
	sends curl --sasl-ir "$ir LIST QUIT $ir UIDL QUIT $ir RETR DELE QUIT"
	sends curl '--login-options AUTH=+APOP' \
		"$apop LIST QUIT $apop UIDL QUIT $apop RETR DELE QUIT"
	sends fetchmail pop3 'CAPA USER PASS STAT UIDL LIST TOP DELE QUIT'
	sends fetchmail apop 'APOP STAT UIDL LIST TOP DELE QUIT'
	sends getmail '' 'USER PASS UIDL LIST UIDL LIST RETR DELE QUIT'
	sends getmail 'use_apop = true' 'APOP UIDL LIST UIDL LIST RETR DELE QUIT'
	sends mpop user 'CAPA USER PASS STAT LIST UIDL RETR DELE QUIT'
	sends mpop plain 'CAPA AUTH STAT LIST UIDL RETR DELE QUIT'
	sends mpop apop 'CAPA APOP STAT LIST UIDL RETR DELE QUIT'
	sends mutt '' 'CAPA AUTH CAPA STAT UIDL LIST TOP RETR DELE QUIT'
	sends mutt pop_authenticators=apop 'CAPA APOP CAPA STAT UIDL LIST TOP RETR DELE QUIT'
	sends mutt pop_authenticators=user \
		'CAPA USER PASS CAPA STAT UIDL LIST TOP RETR DELE QUIT'
	sends Net::POP3 login 'USER PASS STAT LIST UIDL RETR DELE QUIT'
	sends Net::POP3 apop 'APOP STAT LIST UIDL RETR DELE QUIT'
	sends poplib user 'USER PASS UIDL LIST RETR DELE QUIT'
	sends poplib apop 'APOP UIDL LIST RETR DELE QUIT'
}

@test "where APOP is offered curl gets in with an account that cannot use it" {
	need curl
	serve maildir -A
	mapfile -t dots < <(numbers ' dots')
	deliver "${dots[@]}"
	NAME=bob arrives curl KEEP "${dots[@]}"
	no curl -sS --user bob:secret --login-options AUTH=+APOP "pop3://127.0.0.1:$PORT"
}

# The greatest number of RETR that mpop sends without reading in between.
in_flight() {
	TRACE="strace -f -o $T/trace -e trace=sendto,recvfrom" arrives mpop DELETE "${small[@]}"
	deliver "${small[@]}"
	awk '/sendto.*"RETR / && ++n > most { most = n } /recvfrom/ { n = 0 } END { print most }' \
		"$T/trace" >"$T/out"
}

@test "mpop sends many commands before it reads a reply, and the replies come in order" {
	need mpop strace
	serve mbox
	mapfile -t small < <(numbers ' small-')
	deliver "${small[@]}"
	in_flight
	[ "$(cat "$T/out")" -ge 10 ]
	PIPELINING=--pipelining=off in_flight
	[ "$(cat "$T/out")" = 1 ]
}
