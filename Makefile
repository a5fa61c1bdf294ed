# make, make check, make check-all, make analyze, make coverage, make mutation,
# make fuzz, make bench, make demo, make install, make uninstall, make deb

PREFIX = /usr/local
DESTDIR =
SBINDIR = $(PREFIX)/sbin
MANDIR = $(PREFIX)/share/man
DOCDIR = $(PREFIX)/share/doc/pop3-handler

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
	-Wstrict-prototypes -Wmissing-prototypes
HARDENING = -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2
CFLAGS = -O2 -g $(HARDENING)
# Files over 2 GiB, and times after 2038, where words have 32 bits.
WIDE = -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64
CPPFLAGS = -D_GNU_SOURCE $(WIDE) $(CAGE_$(CAGE)) $(HEADERS_$(CC))
LDFLAGS = $(LDFLAGS_$(STATIC)) -Wl,-z,relro,-z,now
# crypt(3) from an archive, since few sessions need it and each would load it;
# CRYPT=-lcrypt for the shared library.
CRYPT = -l:libcrypt.a
LDLIBS = $(LIBRARIES_$(CC)) $(CRYPT) $(ENDS_$(STATIC)_$(CC))
# CAGE=0 leaves seccomp and Landlock out, for sanitizers and valgrind.
CAGE = 1
CAGE_0 = -DNO_CAGE
# STATIC=1 CC=musl-gcc is the build that starts fastest.
STATIC = 0
LDFLAGS_0 = -pie
LDFLAGS_1 = $(or $(STATIC_$(CC)),-static-pie)
# What Debian's musl does not bring; and its gcc takes no -static-pie.
HEADERS_musl-gcc = -idirafter .musl/include
LIBRARIES_musl-gcc = -L .musl
NEEDS_musl-gcc = .musl/libcrypt.a
STATIC_musl-gcc = -static -nostartfiles -Wl,-pie,--no-dynamic-linker,-z,text \
	.musl/rcrt1.o .musl/crti.o
ENDS_1_musl-gcc = .musl/crtn.o

OBJECTS = pop3-handler.o account.o digest.o former.o journal.o log.o maildir.o maildrop.o \
	mbox.o peer.o sandbox.o state.o wire.o
TOOLS = tests/tools/become tests/tools/crypt-log tests/tools/dialogue \
	tests/tools/make-call

all: pop3-handler

pop3-handler: $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(OBJECTS) $(LDLIBS)

.c.o:
	$(CC) -std=c11 $(CPPFLAGS) $(WARNINGS) $(CFLAGS) -c -o $@ $<

$(OBJECTS): $(NEEDS_$(CC))
.musl/libcrypt.a:
	tests/tools/musl .musl

account.o: account.h digest.h log.h sandbox.h
digest.o: digest.h
former.o: digest.h former.h log.h maildrop.h
journal.o: digest.h journal.h log.h maildrop.h state.h
log.o: log.h
maildir.o: digest.h former.h log.h maildrop.h
mbox.o: digest.h former.h journal.h log.h maildrop.h
maildrop.o: digest.h log.h maildrop.h state.h
peer.o: log.h peer.h
pop3-handler.o: account.h digest.h log.h maildrop.h peer.h sandbox.h wire.h
sandbox.o: log.h sandbox.h
state.o: digest.h log.h maildrop.h state.h
wire.o: wire.h

tools: $(TOOLS)

# The tests' own programs stand apart: compiler and flags of a special build of
# pop3-handler (musl, sanitizers, coverage) are not for them.
TOOL_CC = cc
# These are about objects of it.
tests/tools/become: tests/tools/become.c sandbox.o log.o
	$(CC) -std=c11 $(CPPFLAGS) $(WARNINGS) $(CFLAGS) $(LDFLAGS) -o $@ $@.c \
	    sandbox.o log.o $(ENDS_$(STATIC)_$(CC))
tests/tools/crypt-log: tests/tools/crypt-log.c pop3-handler
	$(CC) -std=c11 $(CPPFLAGS) $(WARNINGS) $(CFLAGS) $(LDFLAGS) -Wl,--wrap=crypt_r \
	    -o $@ $@.c $(OBJECTS) $(LDLIBS)
tests/tools/dialogue: tests/tools/dialogue.c
	$(TOOL_CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O2 -o $@ $@.c
tests/tools/make-call: tests/tools/make-call.c
	$(TOOL_CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O2 -o $@ $@.c
BENCH_TOOLS = tests/bench/client tests/bench/corpus tests/bench/floor
$(BENCH_TOOLS):
	$(TOOL_CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O3 -o $@ $@.c -lm
tests/bench/client: tests/bench/client.c
tests/bench/corpus: tests/bench/corpus.c
tests/bench/floor: tests/bench/floor.c

# What needs real servers and clients, or sweeps over many faults.
SLOW = tests/superserver.bats tests/powercut.bats tests/faults.bats \
	tests/storm.bats tests/diskfull.bats tests/takeover.bats \
	tests/yield.bats tests/auth-slow.bats tests/tls.bats tests/cage.bats \
	tests/clients.bats tests/balancer.bats tests/thousand.bats tests/conformance-peers.bats \
	tests/state-slow.bats tests/attacks-slow.bats tests/races.bats tests/package.bats tests/systemd.bats \
	tests/fuzz.bats tests/sessions.bats
# What to measure: all, or some of retr, open, poll, list, quit, session,
# memory, growth, update.
BENCH = all

# Files of tests at once: most of them wait for something most of the time.
JOBS = 4
EACH = xargs -n 1 -P $(JOBS) sh -c 't=$$(mktemp) && { bats "$$0" >"$$t" 2>&1; \
	s=$$?; echo "$$0"; cat "$$t"; rm -f "$$t"; exit $$s; }'

CORE = $(filter-out $(SLOW),$(wildcard tests/*.bats))

check: all $(TOOLS)
	@echo $(CORE) | $(EACH)

check-slow: JOBS = 2
check-slow: all $(TOOLS)
	@echo $(SLOW) | $(EACH)

check-all: check check-slow

analyze:
	tests/tools/analyze

# In copies of this directory. COVERED=core is by the tests of make check alone.
COVERED_core = $(filter-out tests/project.bats,$(CORE))
coverage:
	tests/tools/coverage $(COVERED_$(COVERED))

mutation:
	tests/mutation

bench: all $(TOOLS) $(BENCH_TOOLS)
	tests/bench/run $(BENCH)

demo: all
	tests/demo

# Fuzzers: each target of FUZZ for FUZZ_SECONDS, from its seeds; with 0 what is
# in the tree is tried once. They need clang, and make fuzz-afl needs afl++.
FUZZ = session mbox maildir state former journal proxy auth accounts base64
FUZZ_SECONDS = 60
FUZZ_CC = clang
FUZZ_DIR = .fuzz
FUZZ_FLAGS = -std=c11 -D_GNU_SOURCE $(WIDE) -DNO_CAGE $(WARNINGS) -O1 -g \
	-fno-sanitize-recover=all
FUZZERS = $(FUZZ_DIR)/session $(FUZZ_DIR)/recovery $(FUZZ_DIR)/strangers
# A harness includes the modules whose state it must make anew, and stands in
# for some system calls; of the archive the linker takes the rest.
FUZZ_OBJECTS = $(patsubst %,$(FUZZ_DIR)/modules/%, \
	$(filter-out pop3-handler.o log.o,$(OBJECTS)) fuzz.o reference.o)
FUZZ_WRAPS = fsync fdatasync ftruncate posix_fallocate unlink unlinkat rename \
	link pwrite
$(FUZZ_DIR)/session $(FUZZ_DIR)/recovery: WRAPS = $(FUZZ_WRAPS:%=-Wl,--wrap=%)
$(FUZZ_DIR)/strangers: WRAPS = -Wl,--wrap=crypt_r

fuzz: $(FUZZERS)
	tests/fuzz/run $(FUZZ_DIR) $(FUZZ_SECONDS) $(FUZZ)

fuzz-afl:
	$(MAKE) FUZZ_CC=afl-clang-fast FUZZ_DIR=.fuzz-afl fuzz

$(FUZZ_DIR)/modules/%.o: tests/fuzz/%.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=address,undefined -c -o $@ $<
$(FUZZ_DIR)/modules/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,address,undefined \
	    -c -o $@ $<
$(FUZZERS): $(FUZZ_DIR)/%: tests/fuzz/%.c $(FUZZ_OBJECTS)
	rm -f $@.a
	ar rc $@.a $(FUZZ_OBJECTS)
	$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer,address,undefined $(WRAPS) \
	    -o $@ $< $@.a -lcrypt
$(FUZZERS) $(FUZZ_OBJECTS): $(wildcard *.h tests/fuzz/*.h)
$(FUZZERS): $(wildcard *.c)

# The examples and the man page name the places where things are.
EXAMPLES = xinetd.d/pop3 xinetd.d/pop3s systemd/pop3.socket systemd/pop3@.service \
	fail2ban/pop3-handler.conf
PLACES = sed -e 's|/usr/local/sbin|$(SBINDIR)|g' \
	-e 's|/usr/local/share/doc/pop3-handler|$(DOCDIR)|g'

install: all
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(DOCDIR)
	install -m 755 pop3-handler $(DESTDIR)$(SBINDIR)/pop3-handler
	install -m 644 README $(DESTDIR)$(DOCDIR)/README
	$(PLACES) pop3-handler.8 >$(DESTDIR)$(MANDIR)/man8/pop3-handler.8
	chmod 644 $(DESTDIR)$(MANDIR)/man8/pop3-handler.8
	for f in $(EXAMPLES); do \
	    to=$(DESTDIR)$(DOCDIR)/examples/$$f && \
	    install -d "$${to%/*}" && $(PLACES) $$f >"$$to" && chmod 644 "$$to" || \
	    exit 1; \
	done

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/pop3-handler $(DESTDIR)$(MANDIR)/man8/pop3-handler.8
	rm -f $(DESTDIR)$(DOCDIR)/README
	for f in $(EXAMPLES); do rm -f $(DESTDIR)$(DOCDIR)/examples/$$f; done
	for d in /examples/xinetd.d /examples/systemd /examples/fail2ban /examples ''; do \
	    [ ! -d $(DESTDIR)$(DOCDIR)$$d ] || \
	    rmdir --ignore-fail-on-non-empty $(DESTDIR)$(DOCDIR)$$d || exit 1; \
	done

# A Debian package of what install puts there; it enables nothing by itself.
deb: all
	tests/tools/deb

clean:
	rm -f pop3-handler pop3-handler_*.deb $(OBJECTS) $(TOOLS) $(BENCH_TOOLS)
	rm -rf .musl .fuzz .fuzz-afl

.PHONY: all analyze bench check check-all check-slow clean coverage deb demo \
	fuzz fuzz-afl install mutation tools uninstall
.SUFFIXES: .c .o
