#!/usr/bin/env bash
# fuzz.sh [SECONDS]: runs each target of fuzz/ for so long (20), from the committed seeds and what earlier runs found; fails on the first
# crash, and says where its input is. The flags are those of cargo-fuzz without a sanitizer: stable ones, so any compiler of ours does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=${1:-20}
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
host=$(rustc --version --verbose | sed -n 's/^host: //p')
flags=(
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing
)

# With --target the flags are not for build scripts.
RUSTFLAGS="${flags[*]}" cargo build --manifest-path fuzz/Cargo.toml --target-dir "$target_dir" --target "$host" --release --locked

for source in fuzz/targets/*.rs; do
    name=$(basename "$source" .rs)
    corpus=$target_dir/corpus/$name crashes=$target_dir/crashes/$name log=$target_dir/$name.log
    mkdir -p "$corpus" "$crashes"
    code=0
    "$target_dir/$host/release/$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 -artifact_prefix="$crashes/" \
        -print_final_stats=1 "$corpus" "fuzz/seeds/$name" >"$log" 2>&1 || code=$?
    if ((code != 0)); then
        tail -n 40 "$log" >&2
        echo "fuzz: $name failed; its input is in $crashes" >&2
        exit 1
    fi
    printf 'fuzz: %s, %s runs in %d s\n' "$name" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$seconds"
done
