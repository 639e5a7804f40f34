#!/usr/bin/env bash
# sherd.sh BINARY: installs BINARY as `make install` lays it out into the guest and runs inside.sh there, then, after a reboot, rebooted.sh:
# systemd's side of sherd, Docker's, cgroup v2 and NUMA. What is checked is in those two.
# sherd.sh BINARY BENCH: runs streams.sh there instead, with the benchmark's program BENCH for the load.
set -euo pipefail

(($# == 1 || $# == 2)) || { echo "usage: sherd.sh BINARY [BENCH]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

make --no-print-directory -C "$here/../.." install "binary=$(realpath "$1")" "DESTDIR=$tree/tree" >/dev/null
strip --strip-debug "$tree/tree/usr/local/bin/sherd" # it is read through an emulated disk
if (($# == 1)); then
    "$here/run.sh" "$here/inside.sh" "$here/checks.sh" "$here/rebooted.sh" "$tree/tree"
else
    strip --strip-debug -o "$tree/tree/usr/local/bin/sherd-bench" "$2"
    GUEST_MIB=4096 GUEST_SECONDS=2700 "$here/run.sh" "$here/streams.sh" "$here/checks.sh" "$tree/tree"
fi
