#!/usr/bin/env bats
# tests/conformance, which checks any server from outside: it finds nothing wrong
# with ours, and it finds what is wrong with others.
load helper

# conform ARG...: runs it as the user who is served; what it says goes to $T/said.
conform() {
	need python3
	cp "$ROOT/tests/conformance" "$T/bin/"
	give
	status=0
	(cd "$T" && "${AS[@]}" env PATH=/usr/local/bin:/usr/bin:/bin \
		python3 bin/conformance "$@") >"$T/said" 2>&1 3>&- || status=$?
}

# marked MARK: the items that have it, one a line.
marked() {
	sed -n "s/^  $1 \{1,\}\([a-z0-9-]\{1,\}\) .*/\1/p" "$T/said" | sort
}

# all_but ITEM...: nothing failed, all was checked, but that there is nothing to
# check in those.
all_but() {
	[ "$status" = 0 ] || cat "$T/said" >&2
	[ "$status" = 0 ]
	[ "$(marked ok | wc -l)" -gt 60 ]
	[ -z "$(marked NO)" ]
	[ -z "$(marked '?')" ]
	diff <(printf '%s\n' "$@" | sort) <(marked -) >&2
}

# What needs a login, and what needs a maildrop of the other format.
LOGIN='quit-before state-before pass-first pass-later wrong-password stamp capa-both auth-code
	sasl-initial sasl-challenge sasl-cancel sasl-base64 sasl-unknown'
MBOX='delivery from-text mbox-kept'
MAILDIR='quit-truth flags renamed vanished'

# shellcheck disable=SC2086
@test "preauthenticated, nothing is wrong over a Maildir" {
	conform --maildrop M --format maildir -- "$POP3" -P -m "$T/M"
	all_but $LOGIN $MBOX
}

# shellcheck disable=SC2086
@test "preauthenticated, nothing is wrong over an mbox" {
	conform --maildrop B --format mbox -- "$POP3" -P -m "$T/B"
	all_but $LOGIN $MAILDIR
}

accounts() {
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
}

# shellcheck disable=SC2086
@test "with login over TCP, nothing is wrong over a Maildir" {
	accounts
	conform --tcp --user alice --password secret --maildrop M --format maildir -- \
		"$POP3" -A -a "$T/users" -m %h/M
	all_but $MBOX
}

# shellcheck disable=SC2086
@test "with login over TCP, nothing is wrong over an mbox" {
	accounts
	conform --tcp --user alice --password secret --maildrop B --format mbox -- \
		"$POP3" -A -a "$T/users" -m %h/B
	all_but $MAILDIR
}

@test "without a maildrop of its own, it says what it has not checked" {
	maildir M
	conform -- "$POP3" -P -m "$T/M"
	[ "$status" = 0 ]
	[ -n "$(marked ok)" ]
	marked '?' | grep -qxF octets-lf
	[ "$(marked NO)" = '' ]
}

@test "it does not touch a maildrop that has mail" {
	maildir M
	printf 'Subject: x\n\n' >"$T/M/new/1.a"
	conform --maildrop M --format maildir -- "$POP3" -P -m "$T/M"
	[ "$status" = 1 ]
	[ -e "$T/M/new/1.a" ]
	mbox B "$T/M/new/1.a"
	cp "$T/B" "$T/before"
	conform --maildrop B --format mbox -- "$POP3" -P -m "$T/B"
	[ "$status" = 1 ]
	same "$T/before" "$T/B"
}

# finds SED ITEM...: of a server whose replies sed has changed, just those are
# wrong.
finds() {
	printf '#!/bin/sh\n%q -P -m %q/M | sed -u %q\n' "$POP3" "$T" "$1" >"$T/bin/broken"
	chmod 755 "$T/bin/broken"
	shift
	conform --maildrop M --format maildir -- "$T/bin/broken"
	[ "$status" = 1 ]
	diff <(printf '%s\n' "$@" | sort) <(marked NO) >&2
}

@test "a server without byte-stuffing is found out" {
	finds 's/^\.\././' octets-dots stuffed-dots stuffed-dot-first stuffed-by-top stuffed-dots-within
}

@test "a server that lists wrong octets is found out" {
	finds 's/^+OK 1 \([0-9]\)/+OK 1 1\1/' list-one octets-{lf,crlf,mixed,unended,long,eight,dots,no-body,bare-cr,nul}
}

@test "a server that ends lines with LF alone is found out" {
	finds 's/\r$//' crlf octets-{lf,crlf,mixed,unended,long,eight,dots,no-body,bare-cr,nul} octets-later \
		stored stored-as-{eight,long,unended} stored-with-{crlf,mixed} stuffed-{dots,dot-first,by-top,dots-within} \
		kept-{bare-cr,nul} top-{zero,two,all}
}

@test "a server that gives all messages one unique-id is found out" {
	finds 's/^\([0-9]*\) [0-9.]*M[0-9]*P1.conformance\r$/\1 same\r/' list-one uid-distinct uid-same-header uid-forged
}

@test "a server that says +OK to everything is found out" {
	finds 's/^-ERR/+OK/' unknown empty missing surplus-{of-numbers,of-none} digits nul-in-command long-line \
		state-after range overflow top-bad deleted quit-truth vanished pipelining
}

@test "a server that removes mail without QUIT is found out" {
	printf '#!/bin/sh\n%q -P -m %q/M\nrm -f %q/M/*/*.conformance*\n' "$POP3" "$T" "$T" >"$T/bin/broken"
	chmod 755 "$T/bin/broken"
	conform --maildrop M --format maildir -- "$T/bin/broken"
	[ "$status" = 1 ]
	diff <(printf '%s\n' no-quit unended-command rset quit-removes meanwhile flags unlock \
		deleted long-line capa-true pipelining lock in-use | sort) <(marked NO) >&2
}

# shellcheck disable=SC2086
@test "a server that answers on a port is checked as well" {
	need tcpserver
	local port
	maildir M
	accounts
	give
	while :; do
		port=$((20000 + RANDOM % 20000))
		(: 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
	done
	"${AS[@]}" tcpserver -RHl0 127.0.0.1 "$port" "$POP3" -a "$T/users" -m %h/M 2>"$T/log" 3>&- &
	PID=$!
	await eval "(: 3<>/dev/tcp/127.0.0.1/$port)"
	conform --user alice --password secret --maildrop M --format maildir "127.0.0.1:$port"
	all_but $MBOX stamp
}
