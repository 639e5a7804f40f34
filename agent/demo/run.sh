#!/usr/bin/env bash
# run.sh SHERD: the demo of `make run`. Starts an agent of its own, runs one shard of `sherd demo` per core behind one port, shows where
# they are and who answers, and stays until Ctrl-C (or RUN_SECONDS). At the end nothing is left: no process, socket, cgroup or file.
set -euo pipefail

(($# == 1)) || { echo "usage: run.sh SHERD" >&2; exit 2; }
sherd=$(realpath "$1")
group=demo
dir=$(mktemp -d /tmp/sherd-demo.XXXXXX) # short: a unix socket's path has 108 bytes
agent_pid=
started=

cli() { "$sherd" --run-dir "$dir/run" "$@"; }

# Processes whose command line names our directory: the agent, and what it leaves running on purpose when it goes.
ours() {
    local file
    for file in /proc/[0-9]*/cmdline; do
        if { tr '\0' ' ' <"$file"; } 2>/dev/null | grep -qF "$dir/"; then basename "$(dirname "$file")"; fi
    done
}

# gone SECONDS PID...: whether they end in time.
gone() {
    local tenths=$(($1 * 10)) pid
    shift
    for pid in "$@"; do
        while [[ -e /proc/$pid ]]; do
            ((tenths-- > 0)) || return 1
            sleep 0.1
        done
    done
}

clean_up() {
    code=$?
    trap '' INT TERM
    trap - EXIT
    echo
    echo "stopping"
    if [[ -n $started ]]; then cli stop -g "$group" --purge || true; fi
    if [[ -n $agent_pid ]] && kill -TERM "$agent_pid" 2>/dev/null; then
        gone 20 "$agent_pid" || kill -KILL "$agent_pid" 2>/dev/null || true
        wait "$agent_pid" 2>/dev/null || true
    fi
    # The holder outlives its agent, that is what it is for; this demo's has nothing to wait for.
    local left
    mapfile -t left < <(ours)
    if ((${#left[@]} > 0)); then
        kill -TERM "${left[@]}" 2>/dev/null || true
        gone 5 "${left[@]}" || kill -KILL "${left[@]}" 2>/dev/null || true
    fi
    if ((code != 0 && code != 130 && code != 143)) && [[ -s $dir/log ]]; then
        echo "the agent's last lines:" >&2
        tail -n 20 "$dir/log" >&2
    fi
    rm -rf "$dir"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

taken() { ss -Hltn "sport = :$1" | grep -q .; }
wanted=${PORT:-8080} port=${PORT:-8080}
while taken "$port"; do
    ((port++ < wanted + 100)) || { echo "no free port from $wanted on; choose one: make run PORT=..." >&2; exit 1; }
done
((port == wanted)) || echo "port $wanted is taken, using $port (make run PORT=... for another)"

# A session of its own: Ctrl-C is for this script, which then stops things in order. Neither settings, shards nor metrics port of an agent
# that runs here already.
: >"$dir/sherd.toml"
setsid "$sherd" agent --config "$dir/sherd.toml" --instance "demo-$$" --run-dir "$dir/run" --state-dir "$dir/state" \
    --docker off --metrics off >"$dir/log" 2>&1 &
agent_pid=$!
for ((tenths = 0; tenths < 100; tenths++)); do
    [[ -S $dir/run/sherd.sock ]] && break
    kill -0 "$agent_pid" 2>/dev/null || { echo "the agent ended" >&2; exit 1; }
    sleep 0.1
done

started=yes
# A host without a network has no address but loopback; the demo trusts nobody.
cli run --process -g "$group" -u core -p "$port:8080" --loopback -- "$sherd" demo
echo
cli plan
echo
url=http://127.0.0.1:$port/
echo "$url"
# Until every shard has answered. Each request is a new connection, so each is steered anew; 64 per shard are far more than chance needs.
declare -A answers=()
shards=1
for ((request = 0; ${#answers[@]} < shards && request < 64 * shards; request++)); do
    answer=$(curl -sS --max-time 5 "$url")
    ((request >= 8)) || echo "  $answer"
    slot=$(grep -oE '"slot":[0-9]+' <<<"$answer")
    shards=$(grep -oE '"shards":[0-9]+' <<<"$answer" | grep -oE '[0-9]+')
    answers[$slot]=1
done
echo
if ((${#answers[@]} < shards)); then
    echo "only ${#answers[@]} of $shards shards answered $request requests" >&2
    exit 1
fi
echo "all $shards shards answered, $request requests. Ctrl-C stops them."
# `wait`, because bash runs a trap at once only there.
sleep "${RUN_SECONDS:-infinity}" &
wait $! || true
