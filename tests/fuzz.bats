#!/usr/bin/env bats
# The fuzzers: what is in the tree holds, and a harness complains where the
# program is wrong. For minutes and hours there are make fuzz and make fuzz-afl.
load helper

# One build for all tests; they change copies of the sources, and rebuild what
# that touches.
setup_file() {
	command -v clang >/dev/null || return 0
	mkdir "$BATS_FILE_TMPDIR/tree"
	cp -a "$ROOT"/*.[ch] "$ROOT/Makefile" "$ROOT/tests" "$BATS_FILE_TMPDIR/tree/"
	make -s -C "$BATS_FILE_TMPDIR/tree" CC=gcc .fuzz/{session,recovery,strangers} 3>&- >&2
}

# broken TARGET FILE SED: with that change the harness complains of what is among
# its seeds, and names it.
broken() {
	need clang
	local program=strangers
	case $1 in
	session | mbox | maildir | state | former) program=session ;;
	journal) program=recovery ;;
	esac
	cp -a "$BATS_FILE_TMPDIR/tree" "$T/"
	cd "$T/tree" || return
	sed -i "$3" "$2"
	no cmp -s "$2" "$ROOT/$2"
	make -s ".fuzz/$program" >&2
	no tests/fuzz/run .fuzz 0 "$1" >"$T/out"
	cat "$T/out"
	grep -q "^$1: FOUND $T/tree/tests/fuzz/seeds/$1/" "$T/out"
	grep -q 'does not hold' "$T/out"
}

@test "every seed, and every input that was found before, holds" {
	need clang
	cd "$BATS_FILE_TMPDIR/tree"
	make -s fuzz FUZZ_SECONDS=0 >"$T/out" || { cat "$T/out" && false; }
	[ "$(grep -c ': [0-9]* inputs$' "$T/out")" = "$(find "$ROOT/tests/fuzz/seeds" -mindepth 1 -type d | wc -l)" ]
}

@test "session: a line that is not byte-stuffed is seen" {
	broken session wire.c "s/if (wire.line_start && \*data == '.')/if (0)/"
}

@test "mbox: octets that are not those of RETR are seen" {
	broken mbox maildrop.c 's/row->octets = (m->octets + m->body_octets)/row->octets = (m->octets + m->body_octets + 1)/'
}

@test "maildir: the removal of a message that was not deleted is seen" {
	broken maildir maildir.c 's/if ((m->flags & MESSAGE_DELETED) == 0 ||/if (/'
}

@test "state: a state file whose sum is not looked at is seen" {
	broken state state.c 's/n - 2 == count && sum == expected/n - 2 == count/'
}

@test "former: one unique-id for two messages is seen" {
	broken former former.c 's/by_former_id(before, &table->row\[n\]) != 0/true/'
}

@test "journal: a journal that is applied to another mbox is seen" {
	broken journal journal.c 's/if (sum != r->before)/if (0)/'
}

@test "proxy: a PROXY header that is none is seen" {
	broken proxy peer.c "s/if (line\[used - 2\] != '.r')/if (0)/"
}

@test "auth: two replies to one command are seen" {
	broken auth pop3-handler.c 's/wire_ok("now the password");/&&/'
}

@test "accounts: a login with a wrong secret is seen" {
	broken accounts account.c 's/return difference == 0;/return true;/'
}

@test "base64: what is not base64 is seen" {
	broken base64 digest.c 's/padding < 2/padding < 3/'
}

@test "make fuzz names what it finds, leaves it there, and fails" {
	need clang
	cp -a "$BATS_FILE_TMPDIR/tree" "$T/"
	cd "$T/tree" || return
	sed -i 's/padding < 2/padding < 3/' digest.c
	no make -s fuzz FUZZ=base64 FUZZ_SECONDS=5 >"$T/out"
	cat "$T/out"
	grep -q '^base64: executions [1-9]' "$T/out"
	[ -s "$(sed -n 's/^base64: FOUND //p' "$T/out" | head -n 1)" ]
}

@test "AFL++ runs the same harnesses" {
	need clang afl-clang-fast afl-fuzz
	cd "$BATS_FILE_TMPDIR/tree"
	make -s fuzz-afl FUZZ=base64 FUZZ_SECONDS=5 >"$T/out" 2>&1 || { cat "$T/out" && false; }
	grep -q '^base64: executions [1-9][0-9]* edges [1-9][0-9]*$' "$T/out"
}
