#!/usr/bin/env bats
# The Debian package, and a bare Debian that it is installed into.
load helper

PATH=$PATH:/usr/sbin:/sbin

# The tree is copied, so that nothing is built where others test.
setup_file() {
	export TREE=$BATS_FILE_TMPDIR/tree
	mkdir "$TREE"
	(cd "$BATS_TEST_DIRNAME/.." && tar -c --exclude=.git . | tar -x -C "$TREE")
	make -s -C "$TREE" clean >&2
	make -s -C "$TREE" deb >"$BATS_FILE_TMPDIR/name"
}

package() {
	echo "$TREE/$(cat "$BATS_FILE_TMPDIR/name")"
}

@test "make deb makes a package in which lintian finds neither error nor warning" {
	need lintian
	lintian --allow-root --fail-on error,warning "$(package)"
	# It does look: a copyright that is missing is an error to it.
	dpkg-deb -R "$(package)" "$T/p"
	rm "$T/p/usr/share/doc/pop3-handler/copyright"
	dpkg-deb -b "$T/p" "$T/p.deb" >&2
	no lintian --allow-root --fail-on error "$T/p.deb"
}

@test "the package has what make install puts below /usr, and no maintainer script" {
	dpkg-deb -c "$(package)" | sed -n 's/^-[^ ]* root\/root .* \.\///p' |
		sed 's/pop3-handler\.8\.gz$/pop3-handler.8/' |
		grep -v 'pop3-handler/\(copyright\|changelog.gz\)$' | sort >"$T/has"
	(cd "$ROOT" && make -s install DESTDIR="$T/stage" PREFIX=/usr)
	(cd "$T/stage" && find . -type f | sed 's/^..//' | sort) >"$T/installed"
	[ -s "$T/installed" ]
	same "$T/installed" "$T/has"
	[ "$(dpkg-deb -I "$(package)" | grep -c '^ .* bytes, .* lines *\* ')" = 0 ]
	dpkg-deb -e "$(package)" "$T/control"
	[ "$(ls "$T/control")" = "$(printf 'control\nmd5sums')" ]
}

@test "in a bare Debian the package is installed, serves, and is removed without a trace" {
	need_root
	need debootstrap
	local site root=$T/debian
	# Where this machine takes its packages from.
	site=$(apt-get indextargets --format '$(SITE)' 'Suite: bookworm' | head -n 1)
	debootstrap --variant=minbase bookworm "$root" "$site" >"$T/log" 2>&1 ||
		{ tail "$T/log" && false; }
	(cd "$root" && find etc usr var/lib/systemd | sort) >"$T/before"
	cp "$(package)" "$root/tmp/p.deb"
	chroot "$root" dpkg -i /tmp/p.deb >&2
	[ "$(chroot "$root" dpkg -V pop3-handler)" = "" ]
	# Nothing is enabled: nothing new but the files of the package.
	(cd "$root" && find etc usr var/lib/systemd | sort) >"$T/after"
	comm -13 "$T/before" "$T/after" | grep -v 'pop3-handler' >"$T/more" || :
	[ ! -s "$T/more" ]
	mkdir -p "$root/srv/M/new" "$root/srv/M/cur" "$root/srv/M/tmp"
	printf 'Subject: bare\n\nDebian\n' >"$root/srv/M/new/1700000001.M1.example.org"
	chroot "$root" chown -R nobody:nogroup /srv/M
	printf 'alice:{PLAIN}secret:65534:65534::/srv::\n' >"$root/etc/users"
	printf 'USER alice\r\nPASS secret\r\nRETR 1\r\nQUIT\r\n' |
		chroot "$root" pop3-handler -h pop.example.org -a /etc/users -m %h/M >"$T/out"
	expect "$HELLO"'+OK now the password\r\n+OK welcome\r\n+OK 25 octets\r\nSubject: bare\r\n\r\nDebian\r\n.\r\n+OK 0 deleted\r\n'
	rm "$root/etc/users"
	chroot "$root" dpkg --purge pop3-handler >&2
	(cd "$root" && find etc usr var/lib/systemd | sort) >"$T/after"
	same "$T/before" "$T/after"
}
