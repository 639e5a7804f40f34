#!/bin/bash
# What checks in the guest are made of; sourced by inside.sh and rebooted.sh. A check asks the kernel, systemd or a client, prints one line
# if it holds, and otherwise ends the run with the journal. Waits are for outcomes, and long: how fast the guest is, its host decides.
set -euo pipefail

passed=0
ok() { passed=$((passed + 1)); echo "ok: [$SECONDS s] $*"; }
fail() {
    trap - ERR
    echo "FAILED: [$SECONDS s] $*"
    systemctl --no-pager --lines=0 status sherd sherd-holder || true
    timeout 20 sherd ps || true
    journalctl --no-pager --boot --output=short-monotonic --lines=120 -u sherd -u sherd-holder || true
    # Again at the end, where who reads the log looks first.
    echo "$passed passed, 1 failed: $*"
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
# A pause without a process: those are slow under emulation, here and below.
mkfifo -m 600 /run/never 2>/dev/null || true
exec 9<>/run/never
pause() { read -r -t "${1:-0.2}" <&9 || true; }
# until_ SECONDS COMMAND...: waits for the command to succeed.
until_() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        pause 0.5
    done
}
# is WANTED FOUND WHAT
is() { [[ $1 == "$2" ]] || { echo "$3: $2, not $1"; return 1; }; }

main_pid() { systemctl show --property MainPID --value "$1"; }
# value PID KEY: a line of /proc/PID/status.
value() {
    local key rest
    while read -r key rest; do
        if [[ $key == "$2:" ]]; then echo "$rest"; fi
    done <"/proc/$1/status"
}
# told PID NAME: a variable that the process was started with.
told() {
    local variable
    while IFS= read -r -d '' variable; do
        if [[ $variable == "$2="* ]]; then echo "${variable#*=}"; fi
    done <"/proc/$1/environ"
}
# The cgroup v2 directory of a process.
group_of() {
    local line
    read -r line <"/proc/$1/cgroup"
    echo "/sys/fs/cgroup${line#0::}"
}
# nearest DIRECTORY FILE: of the nearest cgroup at or above a directory that has the file.
nearest() {
    local dir=$1
    while [[ ! -e $dir/$2 ]]; do dir=${dir%/*}; done
    echo "$(<"$dir/$2")"
}
# agent_replaced PID: another agent than that runs, and has said that it is ready.
agent_replaced() {
    local pid
    pid=$(main_pid sherd)
    [[ $pid != 0 && $pid != "$1" ]] && systemctl is-active --quiet sherd
}

# Every process that was told it is a slot of the group, as `SLOT PID`, by slot: neither shim nor agent is told.
shards() {
    local file
    while read -r file; do
        file=${file%/environ}
        echo "$(told "${file#/proc/}" SHERD_SLOT) ${file#/proc/}"
    done < <(grep -lzxF "SHERD_GROUP=$1" /proc/[0-9]*/environ 2>/dev/null) 2>/dev/null | sort -n
}

# expect_pinned GROUP [CPUS...]: a shard on each of these CPUs, in this order of slots, with the memory of their node; by default one for each
# core, on all SMT siblings that the kernel says it has. Asked of the kernel: cpusets in effect, and what each thread may use.
expect_pinned() {
    local group=$1 slot pid thread cpu wanted mems seen=()
    shift
    wanted=("$@")
    if ((${#wanted[@]} == 0)); then
        for cpu in 0 2 4 6; do wanted+=("$(<"/sys/devices/system/cpu/cpu$cpu/topology/thread_siblings_list")"); done
    fi
    while read -r slot pid; do
        seen+=("$slot")
        ((slot < ${#wanted[@]})) || { echo "$group: there is a slot $slot"; return 1; }
        mems=$(echo "/sys/devices/system/cpu/cpu${wanted[slot]%%-*}"/node*)
        mems=${mems##*/node}
        for thread in "/proc/$pid/task/"*; do
            is "${wanted[slot]}" "$(value "${thread#/proc/}" Cpus_allowed_list)" "$group/$slot: CPUs of $thread" || return 1
            is "$mems" "$(value "${thread#/proc/}" Mems_allowed_list)" "$group/$slot: memory nodes of $thread" || return 1
        done
        is "${wanted[slot]}" "$(nearest "$(group_of "$pid")" cpuset.cpus.effective)" "$group/$slot: CPUs of $(group_of "$pid")" || return 1
        is "$mems" "$(nearest "$(group_of "$pid")" cpuset.mems.effective)" "$group/$slot: memory nodes of $(group_of "$pid")" || return 1
    done < <(shards "$group")
    is "${!wanted[*]}" "${seen[*]}" "slots of $group"
}
# all_serve GROUP: every slot is ready.
all_serve() { sherd ps | awk -v group="$1" '$1 == group { if ($5 == "ready") good++; else bad++ } END { exit !(good == 4 && !bad) }'; }
# on_path GROUP PATH: all of the group's slots serve on it.
on_path() { sherd ps | awk -v group="$1" -v path="$2" '$1 == group { if ($5 == "ready" && $6 == path) good++; else bad++ } END { exit !(good && !bad) }'; }

# The demo's answer on a connection of its own, without a process of its own: answered, refused or cut.
request() {
    local line=''
    if ! { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null; then echo refused; return; fi
    if printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r -t 180 line <&3 && [[ $line == HTTP/1.?' 200 '* ]]; then echo answered; else echo cut; fi
    exec 3>&-
} 2>/dev/null
# One request on the connection that is open as 3: answered or cut.
ask_again() {
    local line='' length=''
    printf 'GET / HTTP/1.1\r\nHost: guest\r\n\r\n' >&3 || { echo cut; return 1; }
    read -r -t 180 line <&3
    if [[ $line == 'HTTP/1.1 200 '* ]]; then
        while read -r -t 180 line <&3; do
            line=${line%$'\r'}
            if [[ -z $line && -n $length ]] && read -r -t 180 -N "$length" line <&3; then echo answered; return; fi
            [[ $line != [Cc]ontent-[Ll]ength:* ]] || length=${line##*: }
        done
    fi
    echo cut
    return 1
} 2>/dev/null

# The guest has two cores of its host at best: the load is there to find what fails, and leaves room for what it is to disturb.
# Clients that connect for each request, and clients that keep one connection; of each published port.
clients=2
# Who writes to a connection that was reset is to say so, not to end.
trap '' PIPE
client() { while [[ ! -e /run/load.stop ]]; do request "$1"; pause; done >"/run/load.$1.new.$2"; }
keeper() {
    { exec 3<>"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null || { echo refused; return; }
    while [[ ! -e /run/load.stop ]] && ask_again; do pause; done
} >"/run/load.$1.kept.$2"
# start_load PORT...
start_load() {
    local port number
    rm -f /run/load.*
    load_pids=() load_ports=("$@")
    for port in "$@"; do
        for ((number = 0; number < clients; number++)); do
            touch "/run/load.$port.new.$number" "/run/load.$port.kept.$number"
            client "$port" "$number" & load_pids+=($!)
            keeper "$port" "$number" & load_pids+=($!)
        done
    done
    load_goes_on new kept || fail "no load"
}
# load_goes_on KIND...: until each client of the kind has two more answers than now: the second was asked for after now.
load_goes_on() {
    local kind file port number
    local -A had=()
    for kind in "$@"; do
        for port in "${load_ports[@]}"; do
            for ((number = 0; number < clients; number++)); do
                file=/run/load.$port.$kind.$number
                had[$file]=$(lines "$file")
            done
        done
    done
    for file in "${!had[@]}"; do until_ 180 has_more "$file" "${had[$file]}" || return 1; done
}
lines() { local lines; mapfile -t lines <"$1"; echo "${#lines[@]}"; }
# has_more FILE LINES: the client went on after so many, and its last two were answered.
has_more() { local lines; mapfile -t lines <"$1"; ((${#lines[@]} >= $2 + 2)) && [[ ${lines[-1]} == answered && ${lines[-2]} == answered ]]; }
stop_load() { touch /run/load.stop; wait "${load_pids[@]}"; }
# count PORT KIND RESULT
count() { cat "/run/load.$1.$2."* | grep -cx "$3" || true; }
# What came of the load, for each of its ports.
figures() {
    local port
    for port in "${load_ports[@]}"; do
        printf '; port %s: %d answered, %d refused, %d cut; on kept connections %d answered, %d of %d cut' "$port" \
            "$(count "$port" new answered)" "$(count "$port" new refused)" "$(count "$port" new cut)" \
            "$(count "$port" kept answered)" "$(count "$port" kept cut)" "$clients"
    done
}
# unharmed PORT KIND...: no client was refused or cut.
unharmed() {
    local port=$1 kind
    shift
    for kind in "$@"; do (($(count "$port" "$kind" refused) == 0 && $(count "$port" "$kind" cut) == 0)) || return 1; done
}

# every_slot_answers PORT SLOTS: by their own word, within 16 connections for each slot.
every_slot_answers() {
    curl -sS --fail --max-time 120 -H 'Connection: close' "http://127.0.0.1:$1/[1-$((16 * $2))]" >/run/answers || return 1
    (($(grep -oE '"slot":[0-9]+' /run/answers | sort -u | wc -l) == $2))
}

# What doctor found: of one check, and which checks.
finding() { sed -nE "s/^(error|warning|note) +$1: //p" doctor.txt; }
findings() { sed -nE 's/^(error|warning|note) +([a-z-]+): .*/\2/p' doctor.txt; }
# so CHECK: whether it is as the check fears, asked elsewhere than doctor does where there is such a place.
so() {
    case $1 in
        clocksource) grep -qxE 'hpet|acpi_pm|jiffies|refined-jiffies|pit' /sys/devices/system/clocksource/clocksource0/current_clocksource ;;
        transparent-hugepages) grep -qF '[always]' /sys/kernel/mm/transparent_hugepage/enabled ;;
        numa-balancing) (($(sysctl -n kernel.numa_balancing) != 0)) && [[ -n $(docker ps --quiet) ]] ;;
        live-restore) [[ $(docker info --format '{{.LiveRestoreEnabled}}') == false ]] ;;
        units) ! systemctl is-enabled --quiet sherd sherd-holder ;;
        somaxconn) (($(sysctl -n net.core.somaxconn) < 4096)) ;;
        swap) [[ -n $(swapon --noheadings) ]] ;;
        unprivileged-bpf) (($(sysctl -n kernel.unprivileged_bpf_disabled) == 0)) ;;
        bpf-jit) (($(sysctl -n net.core.bpf_jit_enable) == 0)) ;;
        bpf-stats) (($(sysctl -n kernel.bpf_stats_enabled) != 0)) ;;
        tcp-tw-reuse) (($(sysctl -n net.ipv4.tcp_tw_reuse) == 1)) ;;
        # The first that it names goes to that CPU, and came.
        irq-affinity)
            local number device count cpus
            read -r number device count cpus < <(finding irq-affinity | sed -E 's/^[^:]*: ([0-9]+) \(([^,]+), ([0-9]+) times on CPUs ([0-9,-]+)\).*/\1 \2 \3 \4/')
            [[ $(<"/proc/irq/$number/effective_affinity_list") == "$cpus" && -n $device ]] && (($(interrupts "$number") >= count && count > 0))
            ;;
        *) fail "a finding that nobody holds against the guest: $1: $(finding "$1")" ;;
    esac
}
interrupts() { awk -v irq="$1:" '$1 == irq { for (field = 2; field <= NF && $field ~ /^[0-9]+$/; field++) sum += $field; print sum }' /proc/interrupts; }
known=(clocksource transparent-hugepages numa-balancing live-restore units somaxconn swap unprivileged-bpf bpf-jit bpf-stats tcp-tw-reuse)
doctor_is_right() {
    local check
    sherd doctor >doctor.txt || [[ -n $(sed -n '/^error/p' doctor.txt) ]] || fail "sherd doctor"
    cat doctor.txt
    ! grep '^could not check' doctor.txt || fail "doctor could not check"
    for check in "${known[@]}"; do
        if so "$check"; then [[ -n $(finding "$check") ]] || fail "doctor does not say $check"; else [[ -z $(finding "$check") ]] || fail "doctor says $check"; fi
    done
    for check in $(findings); do so "$check" || fail "not true: $check: $(finding "$check")"; done
}
