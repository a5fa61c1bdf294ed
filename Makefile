# make, make check, make check-all, make bench, make demo, make install

PREFIX = /usr/local
DESTDIR =
SBINDIR = $(PREFIX)/sbin
MANDIR = $(PREFIX)/share/man
EXAMPLEDIR = $(PREFIX)/share/doc/pop3-handler/examples

WARNINGS = -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
	-Wstrict-prototypes -Wmissing-prototypes
HARDENING = -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2
CFLAGS = -O2 -g $(HARDENING)
CPPFLAGS = -D_GNU_SOURCE $(CAGE_$(CAGE))
LDFLAGS = -pie -Wl,-z,relro,-z,now
LDLIBS = -lcrypt
# CAGE=0 leaves seccomp and Landlock out, for sanitizers and valgrind.
CAGE = 1
CAGE_0 = -DNO_CAGE

OBJECTS = pop3-handler.o account.o digest.o former.o journal.o log.o maildir.o maildrop.o \
	mbox.o peer.o sandbox.o state.o wire.o
TOOLS = tests/tools/dialogue tests/tools/crypt-log.so tests/tools/make-call

all: pop3-handler

pop3-handler: $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(OBJECTS) $(LDLIBS)

.c.o:
	$(CC) -std=c11 $(CPPFLAGS) $(WARNINGS) $(CFLAGS) -c -o $@ $<

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

# The tests' own programs stand apart: the flags of a special build of
# pop3-handler (sanitizers, coverage) are not for them.
tests/tools/dialogue: tests/tools/dialogue.c
	$(CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O2 -o $@ $@.c
tests/tools/make-call: tests/tools/make-call.c
	$(CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O2 -o $@ $@.c
tests/tools/crypt-log.so: tests/tools/crypt-log.c
	$(CC) -std=c11 -D_GNU_SOURCE $(WARNINGS) -O2 -fPIC -shared -o $@ \
	    tests/tools/crypt-log.c

# What needs real servers and clients, or sweeps over many faults.
SLOW = tests/superserver.bats tests/powercut.bats tests/faults.bats \
	tests/storm.bats tests/diskfull.bats tests/takeover.bats \
	tests/yield.bats tests/auth-slow.bats tests/tls.bats tests/cage.bats \
	tests/state-slow.bats
BENCH = update

# Files of tests at once: most of them wait for something most of the time.
JOBS = 4
EACH = xargs -n 1 -P $(JOBS) sh -c 't=$$(mktemp) && { bats "$$0" >"$$t" 2>&1; \
	s=$$?; echo "$$0"; cat "$$t"; rm -f "$$t"; exit $$s; }'

check: all $(TOOLS)
	@ls tests/*.bats | grep -vxF "$$(echo $(SLOW) | tr ' ' '\n')" | $(EACH)

check-slow: all $(TOOLS)
	bats $(SLOW)

check-all: check check-slow

bench: all $(TOOLS)
	tests/bench/$(BENCH)

demo: all
	tests/demo

install: all
	install -d $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man8 \
	    $(DESTDIR)$(EXAMPLEDIR)/xinetd.d $(DESTDIR)$(EXAMPLEDIR)/fail2ban
	install -m 755 pop3-handler $(DESTDIR)$(SBINDIR)/pop3-handler
	install -m 644 pop3-handler.8 $(DESTDIR)$(MANDIR)/man8/pop3-handler.8
	install -m 644 xinetd.d/pop3 $(DESTDIR)$(EXAMPLEDIR)/xinetd.d/pop3
	install -m 644 fail2ban/pop3-handler.conf \
	    $(DESTDIR)$(EXAMPLEDIR)/fail2ban/pop3-handler.conf

clean:
	rm -f pop3-handler $(OBJECTS) $(TOOLS)

.PHONY: all bench check check-all check-slow clean demo install
.SUFFIXES: .c .o
