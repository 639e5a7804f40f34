#!/usr/bin/env bash
# Makes the guest that tests of systemd, cgroup v2 and NUMA run in: Debian 12, a cloud kernel, no initrd.
# Prints the directory that holds `vmlinuz` and `root.ext4`. Kept by the hash of what it is made from, so the second call is free.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SHERD_GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sherd/guest}
suite=bookworm

# hwloc-nox brings the libhwloc that sherd links; the engine is there for the one thing that needs systemd around it.
packages=(
    base-files base-passwd bash coreutils dash debianutils findutils grep gzip sed tar mawk util-linux mount login passwd libc-bin
    procps systemd systemd-sysv dbus kmod iproute2 curl libudev1 hwloc-nox numactl docker.io iptables busybox-static
)

hash=$(cat "$here/image.sh" "$here"/sherd-guest* | sha256sum | cut -c1-16)
image=$cache/$hash
if [[ -e $image/root.ext4 && -e $image/vmlinuz ]]; then
    echo "$image"
    exit
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
exec 3>&1 1>&2 # what the tools print is not the answer
echo "guest: making the image $hash (once, about two minutes)"

mmdebstrap --quiet --variant=essential --include="$(IFS=,; echo "${packages[*]}")" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$work/root"

# Unpacked, not installed: no initrd is built, NVMe and ext4 are built in.
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
(cd "$work" && apt-get download -q "$kernel" && dpkg-deb -x ./linux-image-*.deb kernel)
mv "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
release=$(ls "$work/kernel/lib/modules")
mkdir -p "$work/root/usr/lib/modules"
mv "$work/kernel/lib/modules/$release" "$work/root/usr/lib/modules/"
chroot "$work/root" depmod "$release"

install -m 755 "$here/sherd-guest" "$work/root/usr/local/sbin/"
install -d "$work/root/etc/docker" "$work/root/etc/systemd/system/multi-user.target.wants"
for unit in sherd-guest sherd-guest-network; do
    install -m 644 "$here/$unit.service" "$work/root/etc/systemd/system/"
    ln -s "/etc/systemd/system/$unit.service" "$work/root/etc/systemd/system/multi-user.target.wants/"
done
# The default bridge made a `docker run` hang for 10 to 50 s under emulation; containers use --network none or host.
echo '{"iptables":false,"ip6tables":false,"bridge":"none"}' >"$work/root/etc/docker/daemon.json"
echo guest >"$work/root/etc/hostname"
: >"$work/root/etc/fstab"
# Nothing that a test does not need: each costs seconds under software emulation.
for unit in docker.service docker.socket containerd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer systemd-timesyncd.service getty@tty1.service; do
    rm -f "$work"/root/etc/systemd/system/*.wants/"$unit"
done

truncate -s 2G "$work/root.ext4"
mkfs.ext4 -q -F -d "$work/root" "$work/root.ext4"
rm -rf "$work/root" "$work/kernel" "$work"/*.deb
rm -rf "$image"
trap - EXIT
mv "$work" "$image"
echo "$image" >&3
