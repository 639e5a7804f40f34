#!/usr/bin/env bash
# run.sh TEST [FILE...]: boots the guest (2 packages, 2 NUMA nodes, SMT, 8 CPUs, cgroup v2, systemd), runs the script TEST in it with the
# FILEs and directories beside it, shows what it prints, and exits with its exit code. Bounded by GUEST_SECONDS (1800); it has GUEST_MIB (1024).
# A TEST that leaves a script `next` is followed by a reboot, and by that. The disk is thrown away: each run starts from the same image.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($# > 0)) || { echo "usage: run.sh TEST [FILE...]" >&2; exit 2; }
image=$("$here/image.sh")
work=$(mktemp -d)
qemu=
stop() {
    if [[ -n $qemu ]]; then
        kill -TERM "$qemu" 2>/dev/null || true # timeout(1) hands it on
        wait "$qemu" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

mkdir "$work/in"
cp "$1" "$work/in/main"
chmod +x "$work/in/main"
shift
(($# == 0)) || cp -r "$@" "$work/in/"
tar -C "$work/in" -cf "$work/in.tar" .
truncate -s %512 "$work/in.tar"
truncate -s 64M "$work/out.tar"
: >"$work/serial"

mib=${GUEST_MIB:-1024}
# An Intel model is what makes SMT siblings visible. With 2 cores below, 8 CPUs are slow but real to the guest's kernel.
accel=(-accel "tcg,thread=multi" -cpu "Nehalem,+rdrand")
disk() { echo "-drive file=$1,if=none,id=$2,format=raw,$3 -device nvme,drive=$2,serial=$2"; }
# shellcheck disable=SC2046 # the words of disk() are arguments
timeout --kill-after=5 "${GUEST_SECONDS:-1800}" qemu-system-x86_64 "${accel[@]}" -m "$mib" \
    -smp 8,sockets=2,cores=2,threads=2 \
    -object memory-backend-ram,id=node0,size=$((mib / 2))M -numa node,nodeid=0,cpus=0-3,memdev=node0 \
    -object memory-backend-ram,id=node1,size=$((mib / 2))M -numa node,nodeid=1,cpus=4-7,memdev=node1 \
    -nodefaults -display none -serial "file:$work/serial" \
    $(disk "$image/root.ext4" root snapshot=on) $(disk "$work/in.tar" in readonly=on) $(disk "$work/out.tar" out cache=unsafe) \
    -kernel "$image/vmlinuz" \
    -append "root=/dev/nvme0n1 rootfstype=ext4 rw console=ttyS0 panic=-1 quiet loglevel=3 systemd.show_status=0 systemd.getty_auto=no apparmor=0 selinux=0 audit=0 mitigations=off net.ifnames=0 tsc=reliable nowatchdog" \
    </dev/null >"$work/qemu" 2>&1 &
qemu=$!
tail -f --pid="$qemu" -n +1 "$work/serial" | sed -u 's/\r//g; s/^/guest| /' || true
code=0
wait "$qemu" || code=$?
qemu=
if ((code != 0)); then
    cat "$work/qemu" >&2
    ((code == 124)) && echo "guest: not done after ${GUEST_SECONDS:-1800} s, stopped" >&2
    exit 1
fi
if ! status=$(tar -xOf "$work/out.tar" status 2>/dev/null); then
    echo "guest: powered off without an answer; its console is above" >&2
    exit 1
fi
exit "$status"
