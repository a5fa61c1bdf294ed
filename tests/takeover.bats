#!/usr/bin/env bats
# Coming from another POP3 server: real ones give their unique-ids first, and
# pop3-handler the same ones after them. tests/tools/peers fetches Dovecot and
# Courier; PEERS says where they are.
load helper

PATH=$PATH:/usr/sbin:/sbin
PEERS=${PEERS:-$ROOT/tests/peers}

# A user of the system that only lives during a test.
USER_OF_POPA3D=pop3-handler-t

need_peer() {
	"${AS[@]}" test -x "$PEERS/$1" ||
		skip "needs $PEERS/$1, readable for all: tests/tools/peers DIR, and PEERS=DIR"
}

# dovecot SCRIPT [SETTING...]: a session of Dovecot's pop3 over the Maildir M,
# or where mail_location says; the reply goes to $T/out.
dovecot() {
	local script=$1 at=$PEERS/dovecot/usr setting
	shift
	need_peer dovecot/usr/lib/dovecot/pop3
	mkdir -p "$T/dovecot"
	{
		printf 'base_dir = %s\nmail_location = maildir:%s\n' "$T/dovecot" "$T/M"
		printf 'first_valid_uid = 0\nssl = no\nmail_plugin_dir = %s\n' "$at/lib/dovecot/modules"
		for setting; do
			printf '%s\n' "$setting"
		done
	} >"$T/dovecot.conf"
	give
	DOVECOT=("${AS[@]}" env -i "LD_LIBRARY_PATH=$at/lib/dovecot" USER=nobody "HOME=$T/dovecot"
		"$at/bin/doveconf" -c "$T/dovecot.conf" -m pop3 -e "$at/lib/dovecot/pop3")
	# shellcheck disable=SC2059
	printf "$script" | "${DOVECOT[@]}" >"$T/out" 2>"$T/dovecot.log"
}

# courier SCRIPT: a session of Courier's over the Maildir M.
courier() {
	local at=$PEERS/courier/usr
	need_peer courier/usr/lib/courier/courier/courierpop3d
	give
	COURIER=("${AS[@]}" env -i "LD_LIBRARY_PATH=$at/lib:$at/lib/x86_64-linux-gnu:$at/lib/$(uname -m)-linux-gnu"
		AUTHENTICATED=nobody AUTHADDR=nobody TCPREMOTEIP=127.0.0.1 "HOME=$T"
		"$at/lib/courier/courier/courierpop3d" "$T/M")
	# shellcheck disable=SC2059
	printf "$1" | "${COURIER[@]}" >"$T/out" 2>"$T/courier.log"
}

# popa3d SCRIPT: a session of popa3d's over a copy of the mbox B.
popa3d() {
	local spool=/var/mail/$USER_OF_POPA3D failed=0
	useradd -M -N -s /bin/false -p "$(openssl passwd -6 secret)" "$USER_OF_POPA3D"
	# It waits a second where the file has just been changed.
	install -m 660 -o "$USER_OF_POPA3D" -g mail "$T/B" "$spool" &&
		touch -d @1700000000 "$spool" || failed=1
	# shellcheck disable=SC2059
	printf "USER $USER_OF_POPA3D\r\nPASS secret\r\n$1" |
		"$T/bin/dialogue" /usr/sbin/popa3d >"$T/out" 2>"$T/popa3d.log" || failed=1
	rm -f "$spool"
	userdel "$USER_OF_POPA3D" || failed=1
	[ $failed = 0 ]
}

# What lists each message with its subject, for `listing`.
asks() {
	local n
	printf 'UIDL\\r\\n'
	for ((n = 1; n <= $1; n++)); do
		printf 'TOP %d 0\\r\\n' "$n"
	done
	printf 'QUIT\\r\\n'
}

# listing COUNT: "SUBJECT ID" of each of as many messages, from $T/out: two
# servers need not number them in one order.
listing() {
	awk '{ sub(/\r+$/, "") }
		!listed && /^[0-9]+ [^ ]+$/ { id[++ids] = $2 }
		/^\.$/ { listed = 1 }
		listed && /^Subject: / { subject[++subjects] = $2 }
		END {
			for (i = 1; i <= ids; i++)
				print subject[i], id[i]
			exit ids != subjects
		}' "$T/out" | sort >"$T/listing"
	[ "${PIPESTATUS[0]}" = 0 ]
	[ "$(wc -l <"$T/listing")" = "$1" ]
	[ -z "$(cut -d' ' -f2 "$T/listing" | sort | uniq -d)" ]
}

# remember: what $T/listing has is what the client knows.
remember() {
	mv "$T/listing" "$T/known"
}

# keeps COUNT [ARG...]: pop3-handler lists as many messages, and among them all
# that the client knows, with the ids that it knows.
keeps() {
	local count=$1
	shift
	say "$(asks "$count")" "$@"
	listing "$count"
	[ -s "$T/known" ]
	join -o 0,2.2 "$T/known" "$T/listing" >"$T/now"
	same "$T/known" "$T/now"
}

# knows REGEX: all ids that the client knows are like that.
knows() {
	[ "$(cut -d' ' -f2 "$T/known" | grep -cE "$1")" = "$(wc -l <"$T/known")" ]
}

# removed SUBJECT: the client has removed that message.
removed() {
	grep -q "^$1 " "$T/known"
	sed -i "/^$1 /d" "$T/known"
}

# lists ID...: those ids, and others.
lists() {
	local id
	for id; do
		cut -d' ' -f2 "$T/listing" | grep -qxF -- "$id" || {
			cat "$T/listing" >&2
			return 1
		}
	done
}

# message DIR/NAME SUBJECT
message() {
	maildir M
	printf 'Subject: %s\n\n%s\n' "$2" "$2" >"$T/M/$1"
}

# Eight messages whose names are of all kinds.
eight() {
	message new/1700000001.M1P1.host one
	message cur/1700000002.M2P1.host:2,S two
	message cur/1700000003.12345.host:2,FRS three
	message 'cur/odd name:2,' four
	message "cur/1700000005.x'\"+y:2,S" five
	message "cur/$(printf '%070d' 6):2," six
	message "cur/$(printf '%0200d' 7)" seven
	message "new/$(printf 'caf\303\251')" eight
}

# What goes on in the Maildir later, session after session: nothing of it changes
# an id of the eight, and what comes gets its base name.
later() {
	keeps 8 -m M
	message new/1700000009.M9P1.host nine
	message cur/1700000000.M0P1.host:2,S zero
	keeps 10 -m M
	lists 1700000009.M9P1.host 1700000000.M0P1.host
	cat "$T/listing" >"$T/known"
	mv "$T/M/cur/1700000002.M2P1.host:2,S" "$T/M/cur/1700000002.M2P1.host:2,RST"
	mv "$T/M/cur/odd name:2," "$T/M/cur/odd name:2,F"
	keeps 10 -m M
	# The second by the order of delivery is one.
	say 'DELE 2\r\nTOP 2 0\r\nQUIT\r\n' -m M
	has '+OK 1 deleted' "$T/out"
	removed one
	keeps 9 -m M
	rm -f "$T/M"/dovecot* "$T/M"/courier*
	keeps 9 -m M
}

# four NAME: an mbox of four messages.
four() {
	local subject
	for subject in one two three four; do
		printf 'From %s@example.org Mon Jan  1 00:00:00 2024\nSubject: %s\n\n%s\n\n' \
			"$subject" "$subject" "$subject"
	done >"$T/$1"
}

deliver() {
	printf 'From %s@example.org Mon Jan  1 00:00:00 2024\nSubject: %s\n\n%s\n\n' "$2" "$2" "$2" >>"$T/$1"
}

# ---- Dovecot ----

@test "coming from Dovecot, every message of a Maildir keeps its id, and keeps it" {
	eight
	dovecot "$(asks 8)"
	listing 8
	remember
	knows '^[0-9a-f]{16}$'
	later
}

@test "ids that Dovecot had saved (pop3_save_uidl) are kept in any format" {
	local format
	for format in %f %v.%u %g; do
		rm -rf "$T/M"
		eight
		rm "$T/M/cur/$(printf '%0200d' 7)" "$T/M/cur/odd name:2," "$T/M/new/$(printf 'caf\303\251')"
		dovecot "$(asks 5)" 'pop3_save_uidl = yes' "pop3_uidl_format = $format"
		listing 5
		remember
		keeps 5 -m M
		message new/1700000009.M9P1.host nine
		keeps 6 -m M
	done
}

@test "what Dovecot served after a removal and a delivery of its own keeps its id" {
	eight
	dovecot 'UIDL\r\nDELE 2\r\nDELE 5\r\nQUIT\r\n'
	message new/1700000009.M9P1.host nine
	dovecot "$(asks 7)"
	listing 7
	remember
	keeps 7 -m M
}

@test "a dovecot-uidlist of version 1 gives the ids that Dovecot gives for it" {
	message cur/4.z:2, one
	message cur/3.y:2,S two
	printf '1 1000 10\n4 4.z:2,\n7 3.y:2,S\n' >"$T/M/dovecot-uidlist"
	cp -r "$T/M" "$T/ours"
	dovecot "$(asks 2)"
	listing 2
	remember
	keeps 2 -m ours
	lists 00000004000003e8 00000007000003e8
}

@test "coming from Dovecot, every message of an mbox that it closed keeps its id, and keeps it" {
	local place="mail_location = mbox:$T/folders:INBOX=$T/B" setting
	for setting in 'mbox_lazy_writes = yes' 'mbox_lazy_writes = no' 'mbox_dirty_syncs = no'; do
		rm -rf "$T/folders" "$T/.B.pop3-state"
		four B
		dovecot "$(asks 4)" "$place" "$setting"
		deliver B five
		dovecot 'UIDL\r\nRETR 3\r\nDELE 1\r\nQUIT\r\n' "$place" "$setting"
		deliver B six
		dovecot "$(asks 5)" "$place" "$setting"
		listing 5
		remember
		knows '^[0-9a-f]{16}$'
		keeps 5 -m B
		deliver B seven
		keeps 6 -m B
		cat "$T/listing" >"$T/known"
		# A mail reader gives it a Status line, and takes X-UID away.
		sed -i 's/^Status: .*/Status: RO/;/^X-UID/d;/^X-IMAPbase/d' "$T/B"
		keeps 6 -m B
		say 'DELE 2\r\nQUIT\r\n' -m B
		has '+OK 1 deleted' "$T/out"
		removed three
		keeps 5 -m B
	done
}

@test "of an mbox that Dovecot listed without closing it, what it wrote down keeps its id" {
	local place="mail_location = mbox:$T/folders:INBOX=$T/B"
	four B
	dovecot 'UIDL\r\nDELE 1\r\nQUIT\r\n' "$place"
	deliver B five
	# No QUIT: the uid of the fifth stands in Dovecot's index alone.
	dovecot 'UIDL\r\n' "$place"
	sed -n 's/^[0-9] \([0-9a-f]*\)\r$/\1/p' "$T/out" >"$T/theirs"
	[ "$(wc -l <"$T/theirs")" = 4 ]
	[ "$(grep -c '^X-UID' "$T/B")" = 3 ]
	say 'UIDL\r\nQUIT\r\n' -m B
	sed -n 's/^[0-9] \([0-9a-f]*\)\r$/\1/p' "$T/out" >"$T/ours"
	cmp <(head -n 3 "$T/theirs") <(head -n 3 "$T/ours")
	[[ "$(sed -n 4p "$T/ours")" =~ ^[0-9a-f]{32}$ ]]
}

@test "real mutt may set flags in an mbox and delete there: the others keep the ids taken over" {
	need mutt script timeout
	local place="mail_location = mbox:$T/folders:INBOX=$T/B"
	four B
	dovecot "$(asks 4)" "$place"
	listing 4
	remember
	keeps 4 -m B
	mkdir -p "$T/home"
	give
	# It wants a terminal, whose keyboard nobody touches.
	cat >"$T/muttrc" <<-'RC'
		set delete=yes quit=yes move=no confirmappend=no wait_key=no sleep_time=0
		set folder=. record="" header_cache=""
		push "<first-entry><delete-message><last-entry><flag-message><sync-mailbox><quit>"
	RC
	mkfifo "$T/keys"
	exec 7<>"$T/keys"
	(cd "$T" && timeout 20 script -qec "${AS[*]} env HOME=$T/home TERM=vt100 mutt -n -F $T/muttrc -f $T/B" \
		/dev/null >"$T/mutt.out" 2>&1 <&7)
	grep -q '^X-Status: .*F' "$T/B"
	removed one
	keeps 3 -m B
}

# ---- Courier ----

@test "coming from Courier, every message keeps its id, and keeps it" {
	eight
	courier "$(asks 8)"
	listing 8
	remember
	knows '^UID[0-9]+-[0-9]+$'
	later
}

@test "what Courier served after a removal and a delivery of its own keeps its id" {
	eight
	courier 'UIDL\r\nDELE 2\r\nDELE 5\r\nQUIT\r\n'
	message new/1700000009.M9P1.host nine
	courier "$(asks 7)"
	listing 7
	remember
	keeps 7 -m M
}

@test "Courier's lists of versions 2 and 3, with what older ones left, give the ids that Courier gives" {
	local head
	for head in 2 3; do
		rm -rf "$T/M" "$T/ours"
		message cur/1.a:2, one
		message cur/2.b:2, two
		message cur/3.c three
		message "cur/4.d'\"+ x" four
		message "cur/$(printf '5.\303\251')" five
		printf "/$head 9 1000\n1.a:2, 4 5:900\n2.b:2, 4 6:0\n3.c 4 0:7\n4.d'\"+ x 4 0:0\n5.\303\251 4 0:0\n" |
			if [ $head = 3 ]; then sed '1!s/$/:0/'; else cat; fi >"$T/M/courierpop3dsizelist"
		cp -r "$T/M" "$T/ours"
		courier "$(asks 5)"
		listing 5
		remember
		keeps 5 -m ours
		lists UID5-900 UID6 3.c 4.d+27+22+2B+20x 5.+C3+A9
	done
}

# ---- popa3d ----

# varied: messages with all that popa3d's hash is made of, and all kinds of
# header beside it.
varied() {
	local long
	long=$(printf '%020000d' 1)
	{
		printf '%s\nReceived: from a\n\tby b; c\nReceived: from d\nDate: e\nMessage-ID: <1@x>\nSubject: one\n\n1\n\n' "$FROM"
		printf '%s\nDate: e\nMESSAGE-ID: <2@x>\nreceived: from a\nMessage-ID: <3@x>\nSubject: two\n\n2\n\n' "$FROM"
		printf '%s\nDelivered-To: b@c\nX-Delivery-ID: 3\nx-delivery-id: 4\nReceived: z\nDelivered-To: d\nSubject: three\n\n3\n\n' "$FROM"
		printf '%s\nDate: %s\n\tfolded %s\nSubject: four\nReturn-Path: <>\nReceived:\n\n4\n\n' "$FROM" "$long" "$long"
		printf '%s\nDate: crlf\r\nMessage-ID: <5@x>\r\nSubject: five\r\n\r\nDate: body\r\nMessage-ID: <6@x>\r\n\r\n5\n\n' "$FROM"
		printf '%s\nX-Long: %s\nMessage-ID:<7@x>\nSubject: six\nStatus: RO\n' "$FROM" "$long"
		seq -f 'X-Many-%g: 12345' 3000
		printf 'Date: last\n\n6\n\n'
	} >"$T/B"
}

@test "coming from popa3d, -i popa3d keeps the id of every message that had one of its own" {
	need_root
	need popa3d useradd userdel openssl
	varied
	popa3d "$(asks 6)"
	listing 6
	remember
	knows '^[0-9a-f]{16}$'
	keeps 6 -m B -i popa3d
	deliver B seven
	keeps 7 -m B -i popa3d
	cat "$T/listing" >"$T/known"
	keeps 7 -m B
	sed -i 's/^Subject: .*/&\nStatus: RO/' "$T/B"
	say 'DELE 2\r\nQUIT\r\n' -m B -i popa3d
	removed two
	keeps 6 -m B -i popa3d
}

@test "where popa3d gave several messages one id, the first keeps it and the others get ours" {
	need_root
	need popa3d useradd userdel openssl
	varied
	deliver B seven
	deliver B eight
	popa3d 'UIDL\r\nQUIT\r\n'
	sed -n 's/^[0-9][0-9]* \([0-9a-f]*\)\r$/\1/p' "$T/out" >"$T/theirs"
	[ "$(wc -l <"$T/theirs")" = 8 ]
	[ "$(sed -n 7p "$T/theirs")" = "$(sed -n 8p "$T/theirs")" ]
	say 'UIDL\r\nQUIT\r\n' -m B -i popa3d
	sed -n 's/^[0-9][0-9]* \([0-9a-f]*\)\r$/\1/p' "$T/out" >"$T/ours"
	cmp <(head -n 7 "$T/theirs") <(head -n 7 "$T/ours")
	[[ "$(sed -n 8p "$T/ours")" =~ ^[0-9a-f]{32}$ ]]
}

# ---- fetchmail ----

free_port() {
	while :; do
		PORT=$((20000 + RANDOM % 20000))
		(: 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
	done
}

listens() {
	(: 3<>"/dev/tcp/127.0.0.1/$PORT")
}

# serve COMMAND...: by tcpserver on $PORT of 127.0.0.1.
serve() {
	tcpserver -RHl0 127.0.0.1 "$PORT" "$@" >>"$T/server.log" 2>&1 3>&- &
	PID=$!
	await listens
}

stop() {
	kill "$PID"
	wait "$PID" || :
	PID=
	await eval '! listens'
}

# preauthenticated GREETING COMMAND...: makes $T/server, which takes the login
# of a client for a server that has none, and tells it GREETING if that does not.
preauthenticated() {
	local greeting=$1
	shift
	{
		printf '#!/bin/bash\nprintf "+OK ready\\r\\n"\n'
		printf 'while read -r verb rest; do\n\tcase ${verb%%$'"'\\\\r'"'} in\n'
		printf '\tUSER) printf "+OK\\r\\n" ;;\n\tPASS) break ;;\n\t*) printf -- "-ERR\\r\\n" ;;\n\tesac\ndone\n'
		[ -z "$greeting" ] || printf 'printf "%s\\r\\n"\n' "$greeting"
		printf 'exec'
		printf ' %q' "$@"
		echo
	} >"$T/server"
	chmod 755 "$T/server"
}

# fetch: what fetchmail brings is $FETCHED; it keeps it on the server.
fetch() {
	local before
	mkdir -p "$T/fetched" "$T/home"
	cat >"$T/mda" <<-'MDA'
		#!/bin/sh
		cat >"$1/$(date +%s%N)"
	MDA
	chmod 755 "$T/mda"
	rm -f "$T/fetchmailrc"
	[ "$(id -u)" != 0 ] || chown -R root "$T/home"
	cat >"$T/fetchmailrc" <<-RC
		set invisible
		poll 127.0.0.1 service $PORT protocol pop3 uidl
			username alice password secret is $(id -un) here
			keep nofetchall
			mda "$T/mda $T/fetched"
	RC
	chmod 600 "$T/fetchmailrc"
	before=$(find "$T/fetched" -type f | wc -l)
	status=0
	FETCHMAILHOME=$T/home HOME=$T/home timeout 60 fetchmail -f "$T/fetchmailrc" --nosyslog \
		--sslproto '' >"$T/fetchmail.log" 2>&1 || status=$?
	# 1: there was no new mail.
	[ "$status" -le 1 ] || {
		cat "$T/fetchmail.log" >&2
		return 1
	}
	FETCHED=$(($(find "$T/fetched" -type f | wc -l) - before))
}

# moves_house: fetchmail has fetched all from the server before us; then it
# fetches nothing from us, and later what was delivered since.
moves_house() {
	local ids=:
	free_port
	serve "$T/server"
	fetch
	[ "$FETCHED" = 8 ]
	fetch
	[ "$FETCHED" = 0 ]
	stop
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	give
	[ "$(id -u)" != 0 ] || chown root "$T/users"
	serve "$POP3" -h pop.example.org -a "$T/users" -m %h/M
	fetch
	[ "$FETCHED" = 0 ]
	[ "$status" = 1 ]
	message new/1700000009.M9P1.host nine
	[ "$(id -u)" != 0 ] || chown "$NOBODY:$NOBODY" "$T/M/new/1700000009.M9P1.host"
	fetch
	[ "$FETCHED" = 1 ]
	[ "$(cat "$T"/fetched/* | grep -c '^Subject: nine')" = 1 ]
	fetch
	[ "$FETCHED" = 0 ]
}

@test "fetchmail, which keeps its mail on the server, fetches nothing twice when Dovecot gives way" {
	need fetchmail tcpserver
	eight
	dovecot 'QUIT\r\n'
	preauthenticated '+OK logged in' "${DOVECOT[@]}"
	moves_house
}

@test "fetchmail, which keeps its mail on the server, fetches nothing twice when Courier gives way" {
	need fetchmail tcpserver
	eight
	courier 'QUIT\r\n'
	preauthenticated '' "${COURIER[@]}"
	moves_house
}
