#!/usr/bin/env bash
# with-engines.sh COMMAND [ARG...]: runs COMMAND with a Docker Engine and a Podman service at SHERD_TEST_DOCKER and SHERD_TEST_PODMAN.
# An engine that answers already is used as it is. One that this script starts has all it writes in a temporary directory and is stopped
# at the end, also after a failure, Ctrl-C or SIGTERM.
set -euo pipefail

(($# > 0)) || { echo "usage: with-engines.sh COMMAND [ARG...]" >&2; exit 2; }

answers() { curl -sf --max-time 5 --unix-socket "$1" http://engine/_ping >/dev/null 2>&1; }

dir=$(mktemp -d /tmp/sherd-engines.XXXXXX) # short: a unix socket's path has 108 bytes
parent=sherd-test-$$
docker_pid='' podman_pid='' command_pid='' docker0='' libpod=''

# A session of its own, so that Ctrl-C reaches the tests first; PDEATHSIG, so that it ends even if this script is killed.
daemon() { setsid setpriv --pdeathsig TERM "$@" & }

# end PID SECONDS: SIGTERM, then SIGKILL, to a process, or as -PID to a process group.
end() {
    kill -TERM -- "$1" 2>/dev/null || return 0
    for ((tenths = 0; tenths < $2 * 10; tenths++)); do
        kill -0 -- "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL -- "$1" 2>/dev/null || true
    wait "${1#-}" 2>/dev/null || true
}

stop() {
    trap '' INT TERM
    if [[ -n $command_pid ]]; then end "-$command_pid" 20; fi
    if [[ -n $podman_pid ]]; then
        podman_ rm --all --force --time 0 >/dev/null 2>&1 || true
        end "$podman_pid" 10
        ip link delete sherd-podman0 2>/dev/null || true
        if [[ -n $libpod ]]; then find /sys/fs/cgroup -depth -type d -name libpod_parent -exec rmdir {} + 2>/dev/null || true; fi
    fi
    if [[ -n $docker_pid ]]; then
        # Else the engine waits 10 s for each container that has no handler for SIGTERM.
        curl -s --unix-socket "$dir/docker.sock" "http://engine/containers/json?all=1" | grep -oE '"Id":"[0-9a-f]{64}"' | cut -d'"' -f4 |
            while read -r id; do curl -s -X DELETE --unix-socket "$dir/docker.sock" "http://engine/containers/$id?force=1&v=1"; done || true
        end "$docker_pid" 30
        if [[ -n $docker0 ]]; then ip link delete docker0 2>/dev/null || true; fi
    fi
    # What an engine that had to be killed left mounted, deepest first; and the cgroups of its containers.
    awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/self/mounts | sort -r | xargs -r umount -l 2>/dev/null || true
    find /sys/fs/cgroup -depth -type d \( -path "*/$parent" -o -path "*/$parent/*" \) -exec rmdir {} + 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for SOCKET PID: until it answers; fails when the process is gone or 30 s have passed.
wait_for() {
    for ((tenths = 0; tenths < 300; tenths++)); do
        answers "$1" && return
        kill -0 "$2" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

start_docker() {
    mkdir -p "$dir/docker"
    echo '{}' >"$dir/docker/daemon.json" # not the machine's own
    local flags=(
        --config-file "$dir/docker/daemon.json" --data-root "$dir/docker/data" --exec-root "$dir/docker/exec"
        --pidfile "$dir/docker/pid" --host "unix://$dir/docker.sock"
        # Published ports go through docker-proxy: nothing of ours is left in the machine's tables, and no iptables is needed.
        --iptables=false --ip6tables=false
    )
    # Where systemd rules the cgroup tree, its driver is the only right one.
    [[ -d /run/systemd/system ]] || flags+=(--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$parent")
    [[ -e /sys/class/net/docker0 ]] || docker0=new
    daemon dockerd "${flags[@]}" >"$dir/docker/log" 2>&1
    docker_pid=$!
    if wait_for "$dir/docker.sock" "$docker_pid"; then return; fi
    echo "engines: no bridge network for Docker here; containers get --network none or host only:" >&2
    grep -E 'level=(error|fatal)|failed' "$dir/docker/log" | tail -n 3 >&2 || true
    end "$docker_pid" 10
    docker0=
    rm -f "$dir/docker/pid"
    daemon dockerd "${flags[@]}" --bridge=none >"$dir/docker/log" 2>&1
    docker_pid=$!
    if wait_for "$dir/docker.sock" "$docker_pid"; then return; fi
    echo "engines: dockerd does not start here; the end of its log:" >&2
    tail -n 15 "$dir/docker/log" >&2
    end "$docker_pid" 5
    docker_pid=
    return 1
}

podman_() { CONTAINERS_CONF=$dir/podman/containers.conf CONTAINERS_STORAGE_CONF=$dir/podman/storage.conf podman "$@"; }

start_podman() {
    mkdir -p "$dir/podman/networks"
    [[ -n $(find /sys/fs/cgroup -maxdepth 2 -name libpod_parent -print -quit) ]] || libpod=new
    # vfs: works on every file system, also on an overlay.
    printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$dir/podman/root" "$dir/podman/run" >"$dir/podman/storage.conf"
    # runc: crun refuses a hybrid hierarchy (v1 with a v2 that has a controller). ulimits: podman's own defaults are higher than the limits
    # of a process without CAP_SYS_RESOURCE, and the service lowers its own NPROC. exit_command_delay: each exec leaves a conmon for it.
    local nofile nproc
    nofile=$(ulimit -Hn) nproc=$(ulimit -Hu)
    [[ $nproc != unlimited ]] && ((nproc < 16384)) || nproc=16384
    [[ $nofile != unlimited ]] || nofile=1048576
    cat >"$dir/podman/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$nofile:$nofile", "nproc=$nproc:$nproc"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
exit_command_delay = 1
runtime = "$(command -v runc >/dev/null && echo runc || echo crun)"
[network]
network_config_dir = "$dir/podman/networks"
EOF
    # Only a bridge: the usual firewall and portmap plugins leave chains behind.
    cat >"$dir/podman/networks/87-podman.conflist" <<EOF
{ "cniVersion": "0.4.0", "name": "podman", "plugins": [ { "type": "bridge", "bridge": "sherd-podman0", "isGateway": true,
  "ipam": { "type": "host-local", "dataDir": "$dir/podman/addresses", "routes": [{ "dst": "0.0.0.0/0" }],
            "ranges": [[{ "subnet": "10.188.83.0/24", "gateway": "10.188.83.1" }]] } } ] }
EOF
    daemon env CONTAINERS_CONF="$dir/podman/containers.conf" CONTAINERS_STORAGE_CONF="$dir/podman/storage.conf" \
        podman system service --time=0 "unix://$dir/podman.sock" >"$dir/podman/log" 2>&1
    podman_pid=$!
    if wait_for "$dir/podman.sock" "$podman_pid"; then return; fi
    echo "engines: podman's service does not start here; the end of its log:" >&2
    tail -n 15 "$dir/podman/log" >&2
    end "$podman_pid" 5
    podman_pid=
    return 1
}

docker_socket=${SHERD_TEST_DOCKER:-/var/run/docker.sock}
podman_socket=${SHERD_TEST_PODMAN:-/run/podman/podman.sock}
if answers "$docker_socket"; then
    echo "engines: Docker answers at $docker_socket"
elif ((EUID == 0)) && command -v dockerd >/dev/null && start_docker; then
    docker_socket=$dir/docker.sock
    echo "engines: a Docker Engine of our own at $docker_socket"
fi
if answers "$podman_socket"; then
    echo "engines: Podman answers at $podman_socket"
elif ((EUID == 0)) && command -v podman >/dev/null && start_podman; then
    podman_socket=$dir/podman.sock
    echo "engines: a Podman service of our own at $podman_socket"
fi

export SHERD_TEST_DOCKER=$docker_socket SHERD_TEST_PODMAN=$podman_socket
# In the background and waited for, because bash runs a trap only between commands; as a job of its own, because a shell without job
# control lets its background ignore SIGINT, and so do all its children.
set -m
"$@" </dev/null &
command_pid=$!
set +m
code=0
wait "$command_pid" || code=$?
command_pid=
exit "$code"
