#!/bin/bash
# In the guest, at its first boot: sherd as `make install` lays it out, under systemd, on cgroup v2 with two NUMA nodes and SMT siblings. Two
# groups share the cores: `web` are processes, which are relayed; `box` are containers on the direct path. What happens to the agent, the
# engine and the machine happens to both, under load. Then the guest boots again, and rebooted.sh goes on.
# shellcheck source-path=SCRIPTDIR source=checks.sh
. ./checks.sh
web=8080 box=8081
on_their_paths() { on_path web relay && on_path box direct; }
# nobody_failed KIND...: on either port.
nobody_failed() { unharmed "$web" "$@" && unharmed "$box" "$@"; }

cp -a tree/. /
systemd-sysusers
systemd-tmpfiles --create sherd.conf
systemctl daemon-reload
systemd-analyze verify --man=no sherd.service sherd-holder.service || fail "systemd-analyze verify"
for unit in sherd sherd-holder; do
    score=$(systemd-analyze security --no-pager "$unit.service" | tail -n 1 | sed 's/^[^A-Za-z]*//')
    # As agent/tests/units.rs holds the files, so with the manager that runs.
    if [[ $unit == sherd ]]; then bound=41; else bound=15; fi
    systemd-analyze security --no-pager --threshold "$bound" "$unit.service" >/dev/null || fail "systemd-analyze security: $score, beyond $bound tenths"
    ok "systemd-analyze verify and security: $score"
done

timeout 120 systemctl start sherd || fail "systemctl start"
ok "started, and said READY=1"
systemctl is-active --quiet sherd-holder || fail "the holder does not run"
[[ $(stat -c '%a %U %G' /run/sherd/sherd.sock) == "660 root sherd" ]] || fail "API socket: $(stat -c '%a %U %G' /run/sherd/sherd.sock)"
ok "the API socket is 0660 root:sherd"
[[ $(group_of "$(main_pid sherd)") == /sys/fs/cgroup/system.slice/sherd.service/* ]] || fail "the agent is in $(group_of "$(main_pid sherd)"), no leaf"
ok "the agent sits in a leaf cgroup: $(group_of "$(main_pid sherd)")"
[[ $(value "$(main_pid sherd-holder)" CapEff) == 0000000000000000 ]] || fail "the holder has capabilities"
ok "the holder has no capability, the agent $(value "$(main_pid sherd)" CapEff)"

# Clients wait long while no shard is ready: the restart of an engine takes its time here. Connections that are kept are waited for at each
# drain, so that is short.
common='unready_timeout = "5m"
drain = "10s"
[layout]
unit = "core"
memory = "bind"
sharing = "shared"
[rollout]
parallelism = 2
monitor = "2s"'
cat >web.toml <<T
name = "web"
$common
[process]
command = ["/usr/local/bin/sherd", "demo"]
[[ports]]
publish = "$web:8080"
T
sherd topology || fail "sherd topology"
timeout 250 sherd apply --wait --timeout 240s web.toml || fail "sherd apply of processes"
until_ 120 every_slot_answers "$web" 4 || fail "not every slot answers: $(sort /run/answers | uniq -c)"
expect_pinned web || fail "pinning of processes"
ok "processes: every slot answers; cpuset, mems and every thread are as planned, over both nodes"
cpu() { systemctl show --property CPUUsageNSec --value sherd; }
start=$(cpu)
sleep 10
idle=$((($(cpu) - start) / 1000000))
((idle < 1000)) || fail "idle for 10 s, the agent took $idle ms of CPU"
ok "idle for 10 s, the agent took $idle ms of CPU (emulated)"

# The engine comes when the agent runs already. Under emulation it is sometimes slow to start.
live_restore() { echo "{\"iptables\":false,\"ip6tables\":false,\"bridge\":\"none\",\"live-restore\":$1}" >/etc/docker/daemon.json; }
live_restore true
timeout 120 systemctl start docker || timeout 120 systemctl start docker || fail "docker does not start"
is systemd "$(docker info --format '{{.CgroupDriver}}')" "docker's cgroup driver" || fail "docker's cgroup driver"
# The program that is installed, with the libraries that it is linked to.
mkdir -p image
ldd /usr/local/bin/sherd | grep -oE '/[^ ]+' | xargs cp --parents -L -t image /usr/local/bin/sherd
tar -C image -c . | timeout 120 docker import - box:1 >/dev/null || fail "docker import"
cat >box.toml <<T
name = "box"
path = "direct"
$common
[container]
image = "box:1"
command = ["/usr/local/bin/sherd", "demo"]
network = "none"
pull = "never"
[[ports]]
publish = "$box:8080"
T
timeout 250 sherd apply --wait --timeout 240s box.toml || fail "sherd apply of containers"
until_ 120 every_slot_answers "$box" 4 || fail "not every slot answers: $(sort /run/answers | uniq -c)"
sherd ps
on_their_paths || fail "path"
expect_pinned box || fail "pinning of containers"
ok "containers without a network, on the direct path: every slot answers; cpuset, mems and every thread are as planned"

# Both groups' shards, each as `GROUP SLOT PID`.
everyone() { shards web | sed 's/^/web /'; shards box | sed 's/^/box /'; }
remember() { remembered=$(everyone); }
untouched() { is "$remembered" "$(everyone)" "shards, before and after" && expect_pinned web && expect_pinned box; }
remember

# planned WHAT COMMAND...: under load: nothing is lost on either path, connections that are kept included, and every shard stays where it is.
planned() {
    local what=$1
    shift
    start_load "$web" "$box"
    "$@" || fail "$what"
    load_goes_on new kept || fail "$what: the load stands$(figures)"
    stop_load
    nobody_failed new kept || fail "$what$(figures)"
    untouched || fail "$what"
    ok "$what under load, no shard touched or moved$(figures)"
}
planned "systemctl daemon-reload" systemctl daemon-reload

# agent_ends SIGNAL SECONDS WHAT: by the signal, under load; systemd starts another one.
agent_ends() {
    local agent
    agent=$(main_pid sherd)
    start_load "$web" "$box"
    systemctl kill --kill-who=main --signal="$1" sherd
    until_ "$2" agent_replaced "$agent" || fail "$3: no other agent"
    load_goes_on new || fail "$3: the load stands$(figures)"
    stop_load
    # What was open through that agent is cut: one connection of each client at most.
    unharmed "$box" new kept || fail "$3$(figures)"
    (($(count "$web" new refused) == 0 && $(count "$web" new cut) <= clients)) || fail "$3$(figures)"
    untouched || fail "$3"
    on_their_paths || fail "$3: path"
    ok "$3 under load, no shard touched or moved$(figures)"
}
agent_ends KILL 120 "agent killed"

planned "systemctl restart" timeout 180 systemctl restart sherd
stop_and_start() {
    timeout 180 systemctl stop sherd || return 1
    systemctl is-active --quiet sherd-holder || fail "the holder stopped with the agent"
    # The direct path needs no agent, and who is relayed waits.
    load_ports=("$box")
    load_goes_on new kept || fail "stopped: the direct path stands$(figures)"
    load_ports=("$web" "$box")
    timeout 120 systemctl start sherd
}
planned "systemctl stop, then start" stop_and_start

fed() { systemctl show --property WatchdogTimestampMonotonic --value sherd; }
is 30s "$(systemctl show --property WatchdogUSec --value sherd)" "WatchdogUSec" || fail "no watchdog"
for feeding in 1 2; do
    before=$(fed)
    later() { (($(fed) > before)); }
    until_ 30 later || fail "the watchdog was not fed ($feeding)"
done
ok "the watchdog is fed"
agent_ends STOP 240 "agent hung, ended by the watchdog"
[[ $(journalctl --no-pager --unit=sherd) == *"Watchdog timeout"* ]] || fail "it was not the watchdog"

# cpu_goes CPU 0|1: off or on.
cpu_goes() { echo "$2" >"/sys/devices/system/cpu/cpu$1/online"; }
# replanned WHAT COMMAND SLOTS CPUS...: both groups have these CPUs then, and nothing else moved: slots below SLOTS have the shard they had.
replanned() {
    local what=$1 change=$2 stay=$3 group
    shift 3
    remember
    start_load "$web" "$box"
    $change || fail "$what"
    for group in web box; do until_ 240 expect_pinned "$group" "$@" || fail "$what: $(expect_pinned "$group" "$@")"; done
    load_goes_on new || fail "$what: the load stands$(figures)"
    stop_load
    nobody_failed new || fail "$what$(figures)"
    is "$(below "$stay" <<<"$remembered")" "$(everyone | below "$stay")" "$what: shards" || fail "$what: more was touched than needed"
    ok "$what under load$(figures)"
}
below() { awk -v slots="$1" '$2 < slots'; }
one_off() { cpu_goes 7 0; }
both_off() { cpu_goes 6 0; }
both_on() { cpu_goes 6 1 && cpu_goes 7 1; }
replanned "a sibling goes offline, its slot has the other" one_off 4 0-1 2-3 4-5 6
replanned "a core goes offline, its slot goes, the others stay" both_off 3 0-1 2-3 4-5
replanned "the core comes back, its slot too" both_on 3 0-1 2-3 4-5 6-7

# all_new GROUP BEFORE: no shard is of the former release, nor one of those that BEFORE lists.
all_new() {
    local slot pid
    while read -r slot pid; do
        is 2 "$(told "$pid" RELEASE)" "release of $1/$slot" || return 1
        ! grep -qx "$slot $pid" <<<"$2" || { echo "slot $slot has its old shard"; return 1; }
    done < <(shards "$1")
}
# Start-first: each slot's next shard takes over from the one that serves. Who keeps a connection for longer than the drain loses it with the
# former shard, here as when a core went; who connects notices nothing.
for group in web box; do
    if [[ $group == web ]]; then port=$web; else port=$box; fi
    before=$(shards "$group")
    printf '[environment]\nRELEASE = "2"\n' >>"$group.toml"
    start_load "$port"
    timeout 450 sherd apply --wait --timeout 440s "$group.toml" || fail "rollout of $group: $(sherd rollout status)"
    load_goes_on new || fail "rollout of $group: the load stands$(figures)"
    stop_load
    sherd rollout status "$group"
    unharmed "$port" new || fail "rollout of $group$(figures)"
    # Who still has a connection of before when the rollout is over drains a while longer.
    until_ 60 all_new "$group" "$before" || fail "rollout of $group: $(all_new "$group" "$before"); $(sherd rollout status "$group")"
    until_ 120 expect_pinned "$group" || fail "rollout of $group: $(expect_pinned "$group")"
    ok "rollout of $group, start-first, under load$(figures)"
done
remember

# With live-restore containers don't notice that their engine restarts.
planned "docker restarted with live-restore" timeout 240 systemctl restart docker
# Without, all end with it, and the agent starts others; clients wait. What the engine ends while it answers is not the agent's to save, and a
# listener that closes while it is in the table may lose a handshake: one of each shard at the most.
live_restore false
timeout 60 systemctl reload docker
is false "$(docker info --format '{{.LiveRestoreEnabled}}')" "live-restore" || fail "live-restore"
before=$(shards box)
start_load "$box"
timeout 240 systemctl restart docker || timeout 240 systemctl restart docker || fail "docker does not restart"
load_goes_on new || fail "docker restarted without live-restore: the load stands$(figures)"
until_ 240 expect_pinned box || fail "docker restarted without live-restore: $(expect_pinned box)"
until_ 120 on_path box direct || fail "docker restarted without live-restore: path"
stop_load
(($(count "$box" new refused) == 0 && $(count "$box" new cut) <= 4)) || fail "docker restarted without live-restore$(figures)"
[[ -z $(comm -12 <(sort <<<"$before") <(shards box | sort)) ]] || fail "docker restarted without live-restore, and shards are left"
ok "docker restarted without live-restore, shards are back$(figures)"

# Two faults of the test's own, beside those that the guest has.
sysctl -q -w net.core.somaxconn=128 net.ipv4.tcp_tw_reuse=1
doctor_is_right
for check in somaxconn tcp-tw-reuse live-restore units; do [[ -n $(finding "$check") ]] || fail "doctor does not say $check"; done
ok "doctor: each finding is true: $(findings | paste -sd' '); $(tail -n 1 doctor.txt)"
remedies=0
while read -r check remedy; do
    case $check in
        somaxconn) remedy=${remedy%%;*} ;;
        tcp-tw-reuse | transparent-hugepages | numa-balancing | units) ;;
        *) continue ;;
    esac
    bash -c "$remedy" || fail "the remedy of $check: $remedy"
    ! so "$check" || fail "the remedy of $check mends nothing: $remedy"
    remedies=$((remedies + 1))
done < <(awk '/^(error|warning|note) / { check = $2; sub(":", "", check) } $1 == "do:" { sub("^ *do: *", ""); print check, $0 }' doctor.txt)
live_restore true
timeout 60 systemctl reload docker
doctor_is_right
for check in somaxconn tcp-tw-reuse live-restore units transparent-hugepages numa-balancing; do [[ -z $(finding "$check") ]] || fail "doctor still says $check"; done
ok "doctor's remedies ($remedies) mend: $(tail -n 1 doctor.txt)"

# Enabled by doctor's own remedy.
systemctl enable --quiet docker
cat /proc/sys/kernel/random/boot_id >booted
echo "$passed" >passed
mv rebooted.sh next
