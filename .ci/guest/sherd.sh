#!/usr/bin/env bash
# sherd.sh BINARY: installs BINARY as `make install` lays it out into the guest and runs inside.sh there: systemd's side of sherd,
# cgroup v2 and NUMA. What it checks is in inside.sh.
set -euo pipefail

(($# == 1)) || { echo "usage: sherd.sh BINARY" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

make --no-print-directory -C "$here/../.." install "binary=$(realpath "$1")" "DESTDIR=$tree/tree" >/dev/null
strip --strip-debug "$tree/tree/usr/local/bin/sherd" # it is read through an emulated disk
"$here/run.sh" "$here/inside.sh" "$tree/tree"
