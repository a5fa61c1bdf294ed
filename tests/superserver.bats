#!/usr/bin/env bats
# Real superservers and real clients: the corpus arrives byte for byte.
load helper

PATH=$PATH:/usr/sbin:/sbin

# The accounts of these tests: alice, with a Maildir of the corpus.
corpus() {
	local file n=0 ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	maildir M
	for file in "$MAIL"/*.eml; do
		n=$((n + 1))
		cp "$file" "$T/M/new/$((1700000000 + n)).M1.example.org"
	done
	COUNT=$n
	give
	[ "$(id -u)" != 0 ] || chown root "$T/users"
}

# What RETR sends of the N-th message, with and without CR at line ends.
sent() {
	local file
	file=$(find "$MAIL" -name '*.eml' | sort | sed -n "$1p")
	sed 's/\r$//;s/$/\r/' "$file"
	[ ! -s "$file" ] || [ "$(tail -c 1 "$file" | od -An -tx1)" = ' 0a' ] || echo
}

free_port() {
	while :; do
		PORT=$((20000 + RANDOM % 20000))
		(: 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
	done
}

answers() {
	(exec 3<>"/dev/tcp/127.0.0.1/$PORT" && printf 'QUIT\r\n' >&3 && grep -q '^+OK' <&3)
}

# under xinetd|tcpserver: alice's maildrop on $PORT of 127.0.0.1.
under() {
	need "$1"
	corpus
	free_port
	case $1 in
	xinetd)
		sed -e "s|^\(.*[[:blank:]]server[[:blank:]]*=\).*|\1 $POP3|" \
			-e "s|^\(.*server_args[[:blank:]]*=\).*|\1 -h pop.example.org -a $T/users -m %h/M|" \
			-e "s|^\(.*user[[:blank:]]*=\).*|\1 $(id -un)|" \
			-e "s|^\(.*protocol[[:blank:]]*=.*\)|\1\n\ttype = UNLISTED\n\tport = $PORT\n\tbind = 127.0.0.1|" \
			"$ROOT/xinetd.d/pop3" >"$T/xinetd.conf"
		xinetd -dontfork -filelog "$T/xinetd.log" -f "$T/xinetd.conf" \
			-pidfile "$T/xinetd.pid" >"$T/server.log" 2>&1 3>&- &
		;;
	tcpserver)
		tcpserver -RHl0 127.0.0.1 "$PORT" "$POP3" -h pop.example.org -a "$T/users" \
			-m %h/M >"$T/server.log" 2>&1 3>&- &
		;;
	esac
	PID=$!
	await answers
}

# Each message as `fetch N` brings it, against what it is.
compare_all() {
	local n
	for ((n = 1; n <= COUNT; n++)); do
		"$@" "$n" >"$T/got"
		sent "$n" >"$T/expected"
		same "$T/expected" "$T/got"
	done
}

# Of a message without any octets curl prints the line end before the dot.
curl_one() {
	[ -s "$(find "$MAIL" -name '*.eml' | sort | sed -n "$1p")" ] || {
		curl -sS --max-time 10 "pop3://127.0.0.1:$PORT/$1" --user alice:secret |
			tail -c +3
		return
	}
	curl -sS --max-time 10 "pop3://127.0.0.1:$PORT/$1" --user alice:secret
}

@test "under xinetd curl downloads every message byte for byte" {
	need curl
	under xinetd
	[ "$(curl -sS "pop3://127.0.0.1:$PORT/" --user alice:secret | wc -l)" = "$COUNT" ]
	compare_all curl_one
}

@test "under tcpserver curl downloads every message, and the log has its address" {
	need curl
	under tcpserver
	compare_all curl_one
	grep -q 'event=login addr=127.0.0.1 user=alice' "$T/server.log"
	grep -q 'event=end addr=127.0.0.1 user=alice reason=quit retrieved=1 ' "$T/server.log"
}

@test "curl deletes a message" {
	need curl
	under xinetd
	curl -sS "pop3://127.0.0.1:$PORT/2" --request 'DELE' --head --user alice:secret >"$T/got"
	await eval "[ \"\$(ls '$T'/M/new '$T'/M/cur | grep -c M1)\" = $((COUNT - 1)) ]"
	[ -z "$(find "$T/M" -name '1700000002.*')" ]
}

net_pop3() {
	perl -MNet::POP3 -e '
		my $pop = Net::POP3->new("127.0.0.1", Port => shift, Timeout => 10) or die "connect";
		my $n = shift;
		defined $pop->login("alice", "secret") or die "login";
		my $octets = $pop->list($n);
		my $text = join "", @{$pop->get($n)};
		print $text;
		$pop->quit or die "quit"' "$PORT" "$1" | sed 's/$/\r/'
}

@test "under tcpserver Net::POP3 downloads every message" {
	need perl
	perl -MNet::POP3 -e 1 2>/dev/null || skip "needs Net::POP3"
	under tcpserver
	compare_all net_pop3
}

@test "Net::POP3 deletes what it deletes and nothing else" {
	need perl
	perl -MNet::POP3 -e 1 2>/dev/null || skip "needs Net::POP3"
	under xinetd
	perl -MNet::POP3 -e '
		my $pop = Net::POP3->new("127.0.0.1", Port => shift, Timeout => 10) or die "connect";
		my $count = $pop->login("alice", "secret") or die "login";
		$count == shift or die "count";
		keys %{$pop->uidl} == $count or die "uidl";
		$pop->delete($_) or die "delete" for 1, 3;
		$pop->quit or die "quit"' "$PORT" "$COUNT"
	[ "$(find "$T/M" -name '17000000*' | wc -l)" = $((COUNT - 2)) ]
	[ -z "$(find "$T/M" -name '1700000001.*' -o -name '1700000003.*')" ]
}

@test "under xinetd fetchmail downloads the corpus, keeps it, and the second time fetches nothing" {
	need fetchmail
	under xinetd
	mkdir "$T/fetched" "$T/home"
	# The message as it comes, each into a file of its own.
	cat >"$T/mda" <<'MDA'
#!/bin/sh
cat >"$1/$(date +%s%N)"
MDA
	chmod 755 "$T/mda"
	cat >"$T/fetchmailrc" <<RC
set invisible
poll 127.0.0.1 service $PORT protocol pop3 uidl bad-header accept
	username alice password secret is $(id -un) here
	keep nofetchall stripcr no mimedecode
	mda "$T/mda $T/fetched"
RC
	chmod 600 "$T/fetchmailrc"
	status=0
	FETCHMAILHOME=$T/home HOME=$T/home timeout 60 fetchmail -f "$T/fetchmailrc" --nosyslog \
		--sslproto '' >"$T/fetchmail.log" 2>&1 || status=$?
	cat "$T/fetchmail.log"
	[ "$status" = 0 ]
	[ "$(find "$T/fetched" -type f | wc -l)" = "$COUNT" ]
	local file n=0
	for file in "$T"/fetched/*; do
		n=$((n + 1))
		ordinary "$n" || continue
		sent "$n" | sed 's/\r$//' >"$T/expected"
		same "$T/expected" "$file"
	done
	[ "$n" = "$COUNT" ]
	status=0
	FETCHMAILHOME=$T/home HOME=$T/home timeout 60 fetchmail -f "$T/fetchmailrc" --nosyslog \
		--sslproto '' >"$T/fetchmail.log" 2>&1 || status=$?
	# 1: there was no new mail.
	[ "$status" = 1 ]
	[ "$(find "$T/fetched" -type f | wc -l)" = "$COUNT" ]
}

# fetchmail itself rewrites what is no ordinary mail (NUL, no header, bare CR, long lines);
# byte for byte it hands on only the others.
ordinary() {
	! find "$MAIL" -name '*.eml' | sort | sed -n "$1p" |
		grep -qE 'no-header|bare-cr|mixed|header-only|empty|no-final|long-lines'
}

@test "under xinetd nothing but protocol reaches the client, on IPv4 and a failed login" {
	under xinetd
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	printf 'USER alice\r\nPASS wrong\r\nQUIT\r\n' >&5
	cat <&5 >"$T/out"
	exec 5>&-
	expect "$HELLO"'+OK now the password\r\n-ERR [AUTH] wrong name or password\r\n+OK bye\r\n'
}

@test "what the superserver runs as root is root in neither process that serves" {
	need_root
	under tcpserver
	exec 5<>"/dev/tcp/127.0.0.1/$PORT"
	printf 'USER alice\r\nPASS secret\r\nSTAT\r\n' >&5
	local line
	for _ in 1 2 3 4; do
		read -r -t 5 line <&5
	done
	[[ "$line" == "+OK $COUNT "* ]]
	local pid
	pid=$(pgrep -P "$PID" pop3-handler)
	[ "$(stat -c %u "/proc/$pid")" = "$NOBODY" ] || grep -q "^Uid:.*$NOBODY" "/proc/$pid/status"
	exec 5>&-
}
