#!/usr/bin/env bash
# netty.sh: makes the native half of Debian's libnetty-java, which Debian has only as source: for the test that runs Netty's own epoll
# transport. Writes target/netty alone; says why if it can't, and the test then says SKIPPED.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${CARGO_TARGET_DIR:-target}/netty
library=$out/libnetty_transport_native_epoll_x86_64.so
if [[ -e $library ]]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/sources" "$work/lists/partial"

# The machine's own sources of packages, asked for sources instead; its lists and settings stay as they are.
for list in /etc/apt/sources.list.d/*.sources; do
    [[ -e $list ]] && sed 's/^Types:.*/Types: deb-src/' "$list" >"$work/sources/$(basename "$list")"
done
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [[ -e $list ]] && sed -n 's/^deb /deb-src /p' "$list" >"$work/sources/$(basename "$list" .list).list"
done
apt() {
    (cd "$work" && apt-get -q -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/sources" -o Dir::State::Lists="$work/lists" \
        -o APT::Sandbox::User=root "$@" >"$work/log" 2>&1)
}
if ! { apt update && apt source --download-only netty && tar -C "$work" -xf "$work"/netty_*.orig.tar.*; }; then
    tail -n 3 "$work/log" >&2
    echo "netty.sh: Debian's source of netty can't be had" >&2
    exit 0
fi
jdk=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")")
common=$(echo "$work"/netty-*/transport-native-unix-common/src/main/c)
gcc -O2 -w -shared -fPIC -I"$jdk/include" -I"$jdk/include/linux" -I"$common" \
    "$work"/netty-*/transport-native-epoll/src/main/c/*.c "$common"/*.c -o "$library"
