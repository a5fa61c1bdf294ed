#!/usr/bin/env bats
# The filter for fail2ban, on lines that the program itself has written.
load helper

FILTER=$ROOT/fail2ban/pop3-handler.conf

# banned FILE: the addresses that the filter finds in it, one a line.
banned() {
	fail2ban-regex -o ip "$1" "$FILTER" >"$T/banned" 2>"$T/errors" ||
		[ ! -s "$T/banned" ]
	cat "$T/errors" >&2
}

# refused NAME: a login that is refused, from $TCPREMOTEIP; the log is in $T/log.
# By AUTH PLAIN, which takes names that USER does not.
refused() {
	printf 'alice:{PLAIN}secret:%s::%s::\n' \
		"$([ "$(id -u)" = 0 ] && echo "$NOBODY:$NOBODY" || echo :)" "$T" >"$T/users"
	VIA=pipe login "AUTH PLAIN $(printf '\0%s\0x' "$1" | base64 -w 0)\r\nQUIT\r\n" -a users -m %h/M
}

HOSTILE=(
	'x addr=198.51.100.1 user=x reason=credentials'
	'event=refused addr=198.51.100.2 user=x reason=credentials'
	'x" addr=198.51.100.3 reason=credentials'
	'pop3-handler[1]: event=refused addr=198.51.100.4 user=x reason=credentials'
	'" reason=credentials'
	'x" reason=credentials event=refused addr=198.51.100.5 user="y'
	'reason=credentials'
	'<HOST>'
	'-'
	x\\
	$'x reason=credentials\npop3-handler[1]: event=refused addr=198.51.100.6 user=x reason=credentials'
	$'x\r\n'
)

@test "fail2ban's filter finds the address of each refused login, of IPv4 and IPv6, whatever the name" {
	need fail2ban-regex
	local address name n=0 all=$T
	# All at once, since each takes the two seconds of a refusal.
	for address in 192.0.2.1 2001:db8::1; do
		for name in alice bob@example.com 'a b' "${HOSTILE[@]}"; do
			n=$((n + 1))
			mkdir "$all/$n"
			ln -s ../bin "$all/$n/bin"
			T=$all/$n TCPREMOTEIP=$address refused "$name" 3>&- &
		done
	done
	wait
	cat "$T"/*/log >"$T/all"
	[ "$(grep -c '^pop3-handler.[0-9]*.: event=refused addr=' "$T/all")" = "$n" ]
	[ "$(grep -c '^pop3-handler.[0-9]*.: event=end addr=' "$T/all")" = "$n" ]
	[ "$(wc -l <"$T/all")" = $((2 * n)) ]
	banned "$T/all"
	[ "$(sort "$T/banned" | uniq -c | tr -s ' ')" = "$(printf ' %d 192.0.2.1\n %d 2001:db8::1' $((n / 2)) $((n / 2)))" ]
}

@test "fail2ban's filter knows the line of syslog and of the journal, with and without what stands before the name" {
	need fail2ban-regex
	cat >"$T/lines" <<-'END'
		Jan 10 12:00:00 host pop3-handler[7]: event=refused addr=192.0.2.1 user=alice reason=credentials
		2024-01-10T12:00:00.000000+01:00 host pop3-handler[7]: event=refused addr=192.0.2.2 user="a b" reason=credentials
		Jan 10 12:00:00 pop3-handler[7]: event=refused addr=2001:db8::3 user="a\"b\\" reason=credentials
		pop3-handler[7]: event=refused addr=192.0.2.4 user=- reason=credentials
		host pop3-handler[7]: pop3-handler[7]: event=refused addr=192.0.2.5 user=alice reason=credentials
	END
	banned "$T/lines"
	[ "$(cat "$T/banned")" = "$(printf '192.0.2.1\n192.0.2.2\n2001:db8::3\n192.0.2.4\n192.0.2.5')" ]
}

@test "fail2ban's filter bans for nothing else that the log says" {
	need fail2ban-regex
	cat >"$T/lines" <<-'END'
		pop3-handler[7]: event=refused addr=192.0.2.1 user=alice reason=in-use
		pop3-handler[7]: event=refused addr=192.0.2.1 user=alice reason=temporary
		pop3-handler[7]: event=refused addr=192.0.2.1 user=alice reason=permanent
		pop3-handler[7]: event=refused addr=local user=alice reason=credentials
		pop3-handler[7]: event=end addr=192.0.2.1 user=alice reason=failed-logins
		pop3-handler[7]: event=login addr=192.0.2.1 user="x reason=credentials" maildrop=/x
		pop3-handler[7]: event=end addr=192.0.2.1 user="event=refused addr=198.51.100.1 user=x reason=credentials" reason=quit
		pop3-handler[7]: event=refused addr=192.0.2.1 user="x reason=credentials" reason=in-use
		pop3-handler[7]: event=warning addr=192.0.2.1 user=- file=x text="event=refused addr=192.0.2.9 user=x reason=credentials"
		Jan 10 12:00:00 host other[7]: event=refused addr=192.0.2.1 user=alice reason=credentials
		Jan 10 12:00:00 host other[7]: pop3-handler[7]: event=refused addr=192.0.2.1 user=alice reason=credentials
	END
	banned "$T/lines"
	[ ! -s "$T/banned" ]
}
