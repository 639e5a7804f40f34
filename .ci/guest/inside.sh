#!/bin/bash
# In the guest: sherd as `make install` lays it out, under systemd, on cgroup v2 with two NUMA nodes and SMT.
# Each check prints one line; the first that fails prints the journal and ends the run.
set -euo pipefail

url=http://127.0.0.1:8080/
passed=0

ok() { passed=$((passed + 1)); echo "ok: $*"; }
fail() {
    echo "FAILED: $*"
    systemctl --no-pager --lines=0 status sherd sherd-holder || true
    sherd ps || true
    journalctl --no-pager --output=short-monotonic --lines=80 -u sherd -u sherd-holder || true
    echo "$passed passed, 1 failed"
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
# until_ SECONDS COMMAND...: waits for the command to succeed.
until_() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}
main_pid() { systemctl show --property MainPID --value "${1:-sherd}"; }
value() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"; }
told() { tr '\0' '\n' <"/proc/$1/environ" | sed -n "s/^$2=//p"; }
# The cgroup v2 directory of a process.
group_of() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")"; }
# The nearest cgroup at or above a directory that has the file.
nearest() {
    local dir=$1
    while [[ ! -e $dir/$2 ]]; do dir=${dir%/*}; done
    cat "$dir/$2"
}

# Every process that was told it is slot N of the group, as `SLOT PID`, by slot: the shim and the agent are not told.
shards() {
    local pid
    for pid in /proc/[0-9]*; do
        pid=${pid#/proc/}
        if [[ $(told "$pid" SHERD_GROUP 2>/dev/null) == "$1" ]]; then echo "$(told "$pid" SHERD_SLOT) $pid"; fi
    done 2>/dev/null | sort -n
}

# expect_pinned GROUP: four shards, one per core of two SMT siblings, memory on the core's node; asked of the kernel.
expect_pinned() {
    local group=$1 slot pid thread seen=0
    local cpus=(0-1 2-3 4-5 6-7) mems=(0 0 1 1)
    while read -r slot pid; do
        seen=$((seen | 1 << slot))
        for thread in "/proc/$pid/task/"*; do
            [[ $(value "${thread#/proc/}" Cpus_allowed_list) == "${cpus[slot]}" ]] || { echo "slot $slot: $thread runs on $(value "${thread#/proc/}" Cpus_allowed_list)"; return 1; }
            [[ $(value "${thread#/proc/}" Mems_allowed_list) == "${mems[slot]}" ]] || { echo "slot $slot: $thread has memory of $(value "${thread#/proc/}" Mems_allowed_list)"; return 1; }
        done
        [[ $(nearest "$(group_of "$pid")" cpuset.cpus.effective) == "${cpus[slot]}" ]] || { echo "slot $slot: $(group_of "$pid") has $(nearest "$(group_of "$pid")" cpuset.cpus.effective)"; return 1; }
        [[ $(nearest "$(group_of "$pid")" cpuset.mems.effective) == "${mems[slot]}" ]] || { echo "slot $slot: memory of $(nearest "$(group_of "$pid")" cpuset.mems.effective)"; return 1; }
    done < <(shards "$group")
    ((seen == 15)) || { echo "slots seen: $seen"; return 1; }
}

# One request on a connection of its own, without a process of its own (slow under emulation): answered, refused or cut.
request() {
    local line
    if ! { exec 3<>/dev/tcp/127.0.0.1/8080; } 2>/dev/null; then echo refused; return; fi
    if printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r -t 120 line <&3 && [[ $line == HTTP/1.?' 200 '* ]]; then echo answered; else echo cut; fi
    exec 3>&-
} 2>/dev/null
loaders=4
load() { while [[ ! -e /run/load.stop ]]; do request; done >"/run/load.$1"; }
start_load() {
    local loader
    rm -f /run/load.*
    load_pids=()
    for ((loader = 0; loader < loaders; loader++)); do load "$loader" & load_pids+=($!); done
    until_ 60 test -s "/run/load.$((loaders - 1))" || fail "no load"
}
stop_load() { touch /run/load.stop; wait "${load_pids[@]}"; results=$(cat /run/load.[0-9]* | sort | uniq -c | awk '{ printf "%s%d %s", s, $1, $2; s = ", " }'); }
count() { cat /run/load.[0-9]* | grep -cx "$1" || true; }

every_slot_answers() {
    local request
    for ((request = 0; request < 64; request++)); do curl -sS --max-time 20 "$url" || return 1; echo; done >/run/answers
    (($(grep -oE 'slot[^0-9]{1,3}[0-9]+' /run/answers | sort -u | wc -l) == 4))
}

# A host has an address; shards in the host's own network namespace are reached by it, never by loopback.
modprobe dummy numdummies=1
ip address add 192.0.2.1/24 dev dummy0
ip link set dummy0 up

cp -a tree/. /
systemd-sysusers
systemd-tmpfiles --create sherd.conf
systemctl daemon-reload
systemd-analyze verify --man=no sherd.service sherd-holder.service || fail "systemd-analyze verify"
ok "systemd-analyze verify: $(systemd-analyze security --no-pager sherd.service | tail -n 1 | sed 's/^[^A-Za-z]*//')"

timeout 120 systemctl start sherd || fail "systemctl start"
ok "started and said READY=1 ($(systemctl show --property StatusText --value sherd))"
systemctl is-active --quiet sherd-holder || fail "the holder does not run"
[[ $(stat -c '%a %U %G' /run/sherd/sherd.sock) == "660 root sherd" ]] || fail "API socket: $(stat -c '%a %U %G' /run/sherd/sherd.sock)"
ok "the API socket is 0660 root:sherd"
[[ $(group_of "$(main_pid)") == /sys/fs/cgroup/system.slice/sherd.service/* ]] || fail "the agent is in $(group_of "$(main_pid)"), no leaf"
ok "the agent sits in a leaf cgroup: $(group_of "$(main_pid)")"
[[ $(value "$(main_pid sherd-holder)" CapEff) == 0000000000000000 ]] || fail "the holder has capabilities"
ok "the holder has no capability, the agent $(value "$(main_pid)" CapEff)"

cat >web.toml <<'T'
name = "web"
[layout]
unit = "core"
memory = "bind"
[process]
command = ["/usr/local/bin/sherd", "demo"]
[[ports]]
publish = "8080:8080"
T
sherd topology || fail "sherd topology"
timeout 200 sherd apply --wait --timeout 180s web.toml || fail "sherd apply"
until_ 120 every_slot_answers || fail "not every slot answers: $(sort /run/answers | uniq -c)"
ok "every slot answers"
sherd ps
expect_pinned web || fail "pinning of the process runtime"
ok "process runtime: cpuset, mems and every thread are as planned, over two nodes"
before=$(shards web)
cpu() { systemctl show --property CPUUsageNSec --value sherd; }
start=$(cpu)
sleep 10
idle=$((($(cpu) - start) / 1000000))
ok "idle for 10 s, the agent took $idle ms of CPU (emulated)"

systemctl daemon-reload
sleep 2
expect_pinned web || fail "daemon-reload changed the pinning"
ok "pinned after systemctl daemon-reload"

start_load
agent=$(main_pid)
systemctl kill --kill-who=main --signal=KILL sherd
replaced() { local pid; pid=$(main_pid); [[ $pid != 0 && $pid != "$agent" ]] && systemctl is-active --quiet sherd; }
until_ 90 replaced || fail "the agent did not come back after SIGKILL"
until_ 60 curl -sf -o /dev/null --max-time 20 "$url" || fail "no answer after the agent came back"
stop_load
# What was open through the killed agent is cut: one connection of each loader at most.
(($(count refused) == 0 && $(count cut) <= loaders)) || fail "SIGKILL of the agent: $results"
[[ $(shards web) == "$before" ]] || fail "SIGKILL of the agent: shards changed: $(shards web), before: $before"
ok "agent killed under load: $results; no shard was touched"

start_load
timeout 180 systemctl restart sherd || fail "systemctl restart"
until_ 60 curl -sf -o /dev/null --max-time 20 "$url" || fail "no answer after the restart"
stop_load
(($(count refused) == 0 && $(count cut) == 0)) || fail "systemctl restart: $results"
[[ $(shards web) == "$before" ]] || fail "systemctl restart: shards changed"
ok "restarted under load: $results; no shard was touched"

timeout 180 systemctl stop sherd || fail "systemctl stop"
systemctl is-active --quiet sherd-holder || fail "the holder stopped with the agent"
[[ $(shards web) == "$before" ]] || fail "systemctl stop: shards changed"
curl -s -o /dev/null --max-time 120 "$url" &
waiting=$!
sleep 1
kill -0 "$waiting" || fail "a connection was refused while the agent was stopped"
timeout 120 systemctl start sherd || fail "systemctl start, again"
wait "$waiting" || fail "the connection that waited for the agent failed"
ok "stopped and started: a connection made meanwhile waited and was answered"

mkdir -p /run/systemd/system/sherd.service.d
printf '[Service]\nWatchdogSec=15\n' >/run/systemd/system/sherd.service.d/watchdog.conf
systemctl daemon-reload
timeout 180 systemctl restart sherd || fail "systemctl restart with a short watchdog"
restarts=$(systemctl show --property NRestarts --value sherd)
sleep 32
[[ $(systemctl show --property NRestarts --value sherd) == "$restarts" ]] || fail "the watchdog ended an agent that works"
ok "the watchdog is fed"
agent=$(main_pid)
kill -STOP "$agent"
until_ 90 replaced || fail "the watchdog did not notice a stopped agent"
ok "the watchdog replaces an agent that hangs"
rm -r /run/systemd/system/sherd.service.d
systemctl daemon-reload
timeout 180 systemctl restart sherd || fail "systemctl restart with the installed watchdog"

timeout 120 sherd stop -g web --purge || fail "sherd stop"
until_ 30 test -z "$(shards web)" || fail "shards left: $(shards web)"
! curl -s -o /dev/null --max-time 5 "$url" || fail "the port still answers"
! systemctl list-units --no-legend --plain --all 'sherd-*' | grep -qvE '^sherd-(holder|guest)' || fail "units left: $(systemctl list-units --plain --all 'sherd-*')"
ok "stopped and purged: no shard, no listener, no unit left"

# Under emulation the engine is sometimes slow to start.
timeout 120 systemctl start docker || timeout 120 systemctl start docker || fail "docker does not start"
mkdir -p image/bin image/www
cp /bin/busybox image/bin/
echo box >image/www/index.html
tar -C image -c . | timeout 120 docker import - box:1 >/dev/null || fail "docker import"
cat >box.toml <<'T'
name = "box"
[layout]
unit = "core"
memory = "bind"
[container]
image = "box:1"
command = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
network = "none"
pull = "never"
[[ports]]
publish = "8080:80"
T
timeout 250 sherd apply --wait --timeout 240s box.toml || fail "sherd apply with docker"
until_ 60 curl -sf -o /dev/null --max-time 20 "$url" || fail "containers don't answer"
[[ $(curl -s --max-time 20 "$url") == box ]] || fail "another answer: $(curl -s "$url")"
sherd ps
expect_pinned box || fail "pinning of containers"
ok "containers without a network: reached, cpuset, mems and every thread are as planned"
systemctl daemon-reload
until_ 60 expect_pinned box || fail "daemon-reload changed the containers' pinning: $(expect_pinned box)"
ok "containers pinned after systemctl daemon-reload"
timeout 180 sherd stop -g box --purge || fail "sherd stop with docker"
[[ -z $(docker ps --all --quiet) ]] || fail "containers left"
ok "stopped and purged: no container left"

timeout 180 systemctl stop sherd sherd-holder || fail "systemctl stop"
[[ ! -e /sys/fs/cgroup/system.slice/sherd.service ]] || fail "a cgroup is left"
ok "both units stopped: no cgroup left"
echo "$passed passed, 0 failed"
