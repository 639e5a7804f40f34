#!/bin/bash
# In the guest: 20,000 relayed streams, with bytes both ways all the time, stand two planned changes of the agent: each byte arrives once and
# in its place. In the guest, because the descriptors of so many can't be had everywhere.
# shellcheck source-path=SCRIPTDIR source=checks.sh
. ./checks.sh
streams=20000 port=8080

cp -a tree/. /
systemd-sysusers
systemd-tmpfiles --create sherd.conf
systemctl daemon-reload
mkdir -p /etc/sherd /run/announce
echo 'metrics = "127.0.0.1:9478"' >/etc/sherd/sherd.toml
timeout 120 systemctl start sherd || fail "systemctl start"
cat >web.toml <<T
name = "web"
drain = "10s"
[layout]
unit = "core"
[process]
command = ["/usr/local/bin/sherd-bench", "shard", "--announce", "/run/announce"]
[[ports]]
publish = "$port:8080"
loopback = true
T
timeout 250 sherd apply --wait --timeout 240s web.toml || fail "sherd apply"
all_serve web || fail "not every slot serves"
before=$(shards web)

# metric NAME: all of its samples together.
metric() {
    local found
    found=$(curl -sS --fail --max-time 60 http://127.0.0.1:9478/metrics | awk -v name="$1" 'index($1, name "{") == 1 || $1 == name { sum += $2 } END { printf "%d\n", sum }') || return 1
    echo "$found"
}
all_open() { (($(metric sherd_slot_connections_open) >= streams)); }
# handed HOW COMMAND...: all of the streams go from this agent to the next, and none is lost.
handed() {
    local how=$1 began taken
    shift
    began=$SECONDS
    "$@" || fail "$how"
    until_ 240 all_open || fail "$how: $(metric sherd_slot_connections_open) are open"
    taken=$(metric sherd_handover_taken_back_total)
    is 0 "$(metric sherd_handover_lost_total)" "lost" || fail "$how"
    ((taken >= streams)) || fail "$how: $taken were taken back"
    ok "$how: $taken relayed streams went on after $((SECONDS - began)) s (emulated)"
}
stop_and_start() { timeout 180 systemctl stop sherd && timeout 120 systemctl start sherd; }

sherd-bench load "127.0.0.1:$port" --shape streams --connections "$streams" --bytes 256 --warm-up 1 --duration 400 >load.txt 2>&1 &
load=$!
until_ 900 all_open || fail "$(metric sherd_slot_connections_open) streams are open: $(cat load.txt)"
ok "$streams streams are open"
handed "systemctl restart" timeout 240 systemctl restart sherd
handed "systemctl stop, then start" stop_and_start
wait "$load" || fail "streams: $(cat load.txt)"
cat load.txt
is "$before" "$(shards web)" "shards" || fail "shards were touched"
is "failed: 0" "$(grep '^failed' load.txt)" "streams" || fail "streams"
ok "each byte of $streams streams came back once and in its place"
echo "$passed passed, 0 failed"
