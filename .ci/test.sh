#!/usr/bin/env bash
# Everything in its short form; `make test` runs this with the engines. All steps run, the first failure decides the exit code.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=${CARGO_TARGET_DIR:-target}/test.log
mkdir -p "$(dirname "$log")"
: >"$log"
# Machines of others to plan for, where they lie beside the project.
if [[ -z ${SHERD_TOPOLOGIES:-} && -d ../shared/topologies ]]; then SHERD_TOPOLOGIES=$(realpath ../shared/topologies); export SHERD_TOPOLOGIES; fi
failed=()
step() {
    local name=$1 start=$SECONDS code=0
    shift
    "$@" || code=$?
    ((code == 0)) || failed+=("$name")
    printf '== %s: %s, %d s\n' "$name" "$( ((code == 0)) && echo ok || echo FAILED)" $((SECONDS - start))
}

# A test that hangs must not take the whole budget with it.
tests() { timeout --kill-after=30 1750 cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$log"; }

simulation() {
    timeout --kill-after=30 600 cargo test --package sherd --lib --features simulation --locked simulation:: 2>&1 | tee --append "$log"
}

step lint .ci/lint.sh
step tests tests
step simulation simulation

echo
grep -E '^(test result:|SKIPPED)' "$log" || true
awk '/^test result:/ { passed += $4; failed += $6 } END { printf "%d passed, %d failed\n", passed, failed }' "$log"
if ((${#failed[@]} > 0)); then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
