#!/usr/bin/env bash
# install.sh PURPOSE...: installs the Debian packages that a purpose (run, test, guest) needs and this machine lacks. Nothing else of the
# machine is touched: daemons that come with a package are not started.
set -euo pipefail

run=(clang libbpf-dev libhwloc-dev libudev-dev pkg-config gcc libc6-dev make curl iproute2 ca-certificates)
test=(docker.io runc podman catatonit containernetworking-plugins golang-go busybox-static prometheus haproxy nginx libnginx-mod-stream wrk
    g++ strace bpftool tmux python3 systemd shellcheck iptables procps util-linux gunicorn nodejs redis-server openjdk-17-jdk-headless libnetty-java)
guest=(qemu-system-x86 mmdebstrap e2fsprogs dpkg-dev)

wanted=()
for purpose in "$@"; do
    case $purpose in
        run) wanted+=("${run[@]}") ;;
        test) wanted+=("${test[@]}") ;;
        guest) wanted+=("${guest[@]}") ;;
        *) echo "usage: install.sh run|test|guest ..." >&2; exit 2 ;;
    esac
done

if ! command -v cargo >/dev/null; then
    echo "sherd needs Rust 1.88 or later (cargo is not on the PATH): https://rustup.rs" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "not a Debian: make sure that these, or their like, are installed: ${wanted[*]}" >&2
    exit 0
fi

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'; }
missing=()
for package in "${wanted[@]}"; do
    installed "$package" || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0

if ((EUID != 0)); then
    echo "missing packages; as root: apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "installing: ${missing[*]}"

# Debian starts a daemon when its package is configured, unless policy-rc.d says no; nobody asked for an nginx on port 80.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
log=$(mktemp)
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >"$log" 2>&1; }
# Another run may hold apt's lock, and a mirror may be in the middle of an update: a second try, then the whole log.
if ! { apt update && apt install --no-install-recommends "${missing[@]}"; } &&
    ! { sleep 5 && apt update && apt install --no-install-recommends "${missing[@]}"; }; then
    cat "$log" >&2
    rm -f "$log"
    echo "apt could not install: ${missing[*]}" >&2
    exit 1
fi
rm -f "$log"
