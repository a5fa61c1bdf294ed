#!/usr/bin/env bats
# What comes with the program: man page, README, installation, build.
load helper

# The options that the program takes, from its own option string.
options() {
	sed -n 's/.*getopt(argc, argv, "\([^"]*\)").*/\1/p' "$ROOT/pop3-handler.c" | tr -d ':' | grep -o .
}

@test "README and man page name every option, and no other" {
	local option
	[ -n "$(options)" ]
	for option in $(options); do
		grep -q "^\.It Fl $option" "$ROOT/pop3-handler.8"
		grep -q -- "-$option" "$ROOT/README"
	done
	[ "$(grep -c '^\.It Fl ' "$ROOT/pop3-handler.8")" = "$(options | wc -l)" ]
}

@test "the man page is clean" {
	need mandoc
	# What it says of other manuals that are not installed is left out.
	mandoc -Tlint -Wwarning "$ROOT/pop3-handler.8" >"$T/lint" 2>&1 || :
	cat "$T/lint"
	[ ! -s "$T/lint" ]
}

# What make install puts below PREFIX.
INSTALLED='sbin/pop3-handler
share/doc/pop3-handler/README
share/doc/pop3-handler/examples/fail2ban/pop3-handler.conf
share/doc/pop3-handler/examples/systemd/pop3.socket
share/doc/pop3-handler/examples/systemd/pop3@.service
share/doc/pop3-handler/examples/xinetd.d/pop3
share/doc/pop3-handler/examples/xinetd.d/pop3s
share/man/man8/pop3-handler.8'

@test "make install puts program, man page and examples where DESTDIR and PREFIX say, without root" {
	need make
	mkdir "$T/stage"
	give
	(cd "$ROOT" && "${AS[@]}" make -s install DESTDIR="$T/stage" PREFIX=/opt)
	[ "$(cd "$T/stage/opt" && find . -type f | sed 's/^..//' | LC_ALL=C sort)" = "$INSTALLED" ]
	[ "$(ls "$T/stage")" = opt ]
	[ -x "$T/stage/opt/sbin/pop3-handler" ]
	# Whatever the umask is, everybody can read it.
	(cd "$ROOT" && umask 077 && make -s install DESTDIR="$T/private")
	[ "$(find "$T/private/usr" ! -perm -444 | wc -l)" = 0 ]
}

@test "what is installed names the places where it is" {
	need make
	local page=$T/stage/opt/share/man/man8/pop3-handler.8 file
	(cd "$ROOT" && make -s install DESTDIR="$T/stage" PREFIX=/opt)
	no grep -r /usr/local "$T/stage/opt/share/man" "$T/stage/opt/share/doc/pop3-handler/examples"
	# Every file of ours that the man page names is there.
	sed -n 's/^\.It Pa \(\/opt\/[^ ]*\).*/\1/p' "$page" | tr -d '\\&' >"$T/named"
	[ "$(wc -l <"$T/named")" -ge 5 ]
	while read -r file; do
		[ -f "$T/stage$file" ] || { echo "$file is not installed" && false; }
	done <"$T/named"
	grep -qF '/opt/sbin/pop3-handler' "$T/stage/opt/share/doc/pop3-handler/examples/xinetd.d/pop3"
	grep -qF '/opt/sbin/pop3-handler' "$T/stage/opt/share/doc/pop3-handler/examples/systemd/pop3@.service"
}

@test "make uninstall takes away what make install put there, and nothing else" {
	need make
	mkdir -p "$T/stage/opt/share/man/man8" "$T/stage/opt/share/doc/pop3-handler"
	echo mine >"$T/stage/opt/share/doc/pop3-handler/mine"
	(cd "$ROOT" && make -s install DESTDIR="$T/stage" PREFIX=/opt)
	(cd "$ROOT" && make -s uninstall DESTDIR="$T/stage" PREFIX=/opt)
	[ "$(find "$T/stage" -type f)" = "$T/stage/opt/share/doc/pop3-handler/mine" ]
	rm "$T/stage/opt/share/doc/pop3-handler/mine"
	# Twice does no harm.
	(cd "$ROOT" && make -s uninstall DESTDIR="$T/stage" PREFIX=/opt)
	[ ! -e "$T/stage/opt/share/doc/pop3-handler" ]
}

@test "the program is position-independent, with full RELRO and a stack protector" {
	need readelf
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	readelf -hW "$POP3" | grep -q 'Type: *DYN'
	readelf -lW "$POP3" | grep -q GNU_RELRO
	readelf -dW "$POP3" | grep -q 'BIND_NOW'
	readelf -sW "$POP3" | grep -q __stack_chk_fail
	# musl has no such functions.
	# A static build has no such names.
	[ "$(readelf -lW "$POP3" | grep -c INTERP)" = 0 ] || readelf -sW "$POP3" | grep -q '_chk@'
}

@test "only libc and libcrypt are linked" {
	need readelf
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	no grep -v '\[libc\.\|\[libcrypt\.' <(readelf -dW "$POP3" | grep NEEDED)
}

@test "the code is formatted as .clang-format says" {
	need clang-format
	(cd "$ROOT" && clang-format --dry-run -Werror ./*.c ./*.h)
}

@test "valgrind finds nothing in a session over Maildir, mbox and login" {
	need valgrind
	[ -z "${SANITIZED:-}" ] || skip "needs a build without sanitizers"
	# Valgrind makes system calls of its own.
	cp "$ROOT"/*.[ch] "$ROOT/Makefile" "$T/bin/"
	env -u MAKEFLAGS -u CC make -s -C "$T/bin" CAGE=0 >&2
	POP3_PLAIN=$POP3
	POP3=$T/bin/under-valgrind
	printf '#!/bin/sh\nexec valgrind -q --leak-check=full --error-exitcode=99 --child-silent-after-fork=no --log-file="%s/valgrind.%%p" "%s" "$@"\n' "$T" "$POP3_PLAIN" >"$POP3"
	chmod 755 "$POP3"
	maildir M
	cp "$MAIL"/*.eml "$T/M/new/"
	local script='STAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\nTOP 4 1\r\nDELE 1\r\nDELE 4\r\nx\r\nQUIT\r\n'
	say "$script" -m M
	[ "$status" = 0 ]
	has '+OK 2 deleted' "$T/out"
	mbox B "$MAIL"/*.eml
	say "$script" -m B
	[ "$status" = 0 ]
	has '+OK 2 deleted' "$T/out"
	local ids=:
	[ "$(id -u)" != 0 ] || ids=$NOBODY:$NOBODY
	printf 'alice:{PLAIN}secret:%s::%s::\n' "$ids" "$T" >"$T/users"
	login "USER alice\r\nPASS no\r\nUSER alice\r\nPASS secret\r\n$script" -a users -m %h/M
	[ "$status" = 0 ]
	cat "$T"/valgrind.*
	[ -z "$(cat "$T"/valgrind.*)" ]
}

@test "make demo serves both accounts, and leaves nothing running" {
	PATH=$PATH:/usr/sbin:/sbin need xinetd curl
	local port=$((40000 + RANDOM % 20000)) demo
	DEMO_PORT=$port "$ROOT/tests/demo" >"$T/demo" 2>&1 3>&- &
	demo=$!
	PID=$demo
	await grep -q "pop3://127.0.0.1:$port" "$T/demo"
	grep -o 'curl .*' "$T/demo" | head -n 2 >"$T/commands"
	[ "$(wc -l <"$T/commands")" = 2 ]
	local command
	while read -r command; do
		eval "$command" >"$T/got" </dev/null
		[ -s "$T/got" ]
	done <"$T/commands"
	await grep -q 'event=end addr=127.0.0.1 user=' "$T/demo"
	kill "$demo"
	wait "$demo" || :
	no eval ": 3<>/dev/tcp/127.0.0.1/$port" 2>/dev/null
}
