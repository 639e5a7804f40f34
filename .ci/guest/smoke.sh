#!/bin/bash
# The guest is what the tests need: systemd, cgroup v2 with cpuset, two NUMA nodes with SMT siblings, an engine.
set -euxo pipefail
[[ $(ps -o comm= -p 1) == systemd ]]
grep -qw cpuset /sys/fs/cgroup/cgroup.controllers
[[ $(cat /sys/devices/system/node/online) == 0-1 ]]
[[ $(cat /sys/devices/system/node/node1/cpulist) == 4-7 ]]
[[ $(cat /sys/devices/system/cpu/cpu0/topology/thread_siblings_list) == 0-1 ]]
[[ -e /sys/kernel/btf/vmlinux ]]
systemctl is-system-running --wait || systemctl --failed
cat /proc/uptime
command -v dockerd hwloc-info
hwloc-info | head -5
