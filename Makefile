# sherd: `make` alone says what there is. Everything here runs on a fresh Debian 12 with Rust.

PREFIX  ?= /usr/local
DESTDIR ?=

bindir      = $(DESTDIR)$(PREFIX)/bin
unitdir     = $(DESTDIR)$(PREFIX)/lib/systemd/system
sysusersdir = $(DESTDIR)$(PREFIX)/lib/sysusers.d
tmpfilesdir = $(DESTDIR)$(PREFIX)/lib/tmpfiles.d
docdir      = $(DESTDIR)$(PREFIX)/share/doc/sherd
confdir     = $(DESTDIR)/etc/sherd

binary = $(or $(CARGO_TARGET_DIR),target)/release/sherd
# Only an installation into the running system touches it: users, directories, systemd's units.
live = $(if $(DESTDIR),false,test -d /run/systemd/system)

.DEFAULT_GOAL := help
.PHONY: help build run test test-vm prove fuzz lint fmt install uninstall

help:           ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build:          ## the release binary
	.ci/install.sh run
	cargo build --release --locked --package sherd

run: build      ## a demo service, one shard per core behind one port; Ctrl-C cleans up (PORT=8080, RUN_SECONDS=)
	agent/demo/run.sh $(binary)

test:           ## everything in its short form, with a Docker Engine and Podman (own ones if none runs)
	.ci/install.sh run test
	.ci/with-engines.sh .ci/test.sh

test-vm: build  ## systemd, Docker, cgroup v2, NUMA, CPUs that go and a reboot, in a virtual machine that is built here
	.ci/install.sh guest
	.ci/guest/sherd.sh $(binary)

prove:          ## the long forms: 10^5 connections and more, and the benchmark against its peers
	.ci/install.sh run test
	.ci/with-engines.sh .ci/prove.sh

fuzz:           ## what parses bytes that a container sends, fed by libFuzzer (SECONDS=20 for each target)
	.ci/install.sh run test
	.ci/fuzz.sh $(SECONDS)

lint:           ## what the compiler, clippy, rustfmt, shellcheck and systemd-analyze say
	.ci/install.sh run test
	.ci/lint.sh

fmt:            ## formats the Rust code
	cargo fmt --all

install: $(binary) ## binary, units, group, directories, example configuration (PREFIX=/usr/local, DESTDIR=)
	install -D -m 755 $(binary) $(bindir)/sherd
	install -d $(unitdir) $(sysusersdir) $(tmpfilesdir) $(docdir) $(confdir)
	for unit in sherd sherd-holder; do \
	    sed 's|/usr/local/bin/sherd|$(PREFIX)/bin/sherd|' systemd/$$unit.service >$(unitdir)/$$unit.service || exit 1; \
	    chmod 644 $(unitdir)/$$unit.service; done
	install -m 644 systemd/sysusers.conf $(sysusersdir)/sherd.conf
	install -m 644 systemd/tmpfiles.conf $(tmpfilesdir)/sherd.conf
	install -m 644 README.md ARCHITECTURE.md CHANGELOG.md LICENSE systemd/sherd.toml $(docdir)/
	test -e $(confdir)/sherd.toml || install -m 644 systemd/sherd.toml $(confdir)/
	if $(live); then systemd-sysusers && systemd-tmpfiles --create sherd.conf && systemctl daemon-reload; fi

$(binary):
	cargo build --release --locked --package sherd

uninstall:      ## stops sherd and removes what `install` made; keeps /etc/sherd and /var/lib/sherd
	if $(live); then systemctl disable --now sherd.service sherd-holder.service || true; fi
	rm -f $(bindir)/sherd $(unitdir)/sherd.service $(unitdir)/sherd-holder.service $(sysusersdir)/sherd.conf $(tmpfilesdir)/sherd.conf
	rm -rf $(docdir)
	if $(live); then systemctl daemon-reload; fi
