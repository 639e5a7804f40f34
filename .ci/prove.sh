#!/usr/bin/env bash
# The long forms of the tests, built for speed and one at a time, so that they don't disturb each other's figures; then the benchmarks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export SHERD_PROVE=1
cargo test --workspace --locked --release --no-fail-fast -- --test-threads=1 --nocapture
cargo test --package sherd --lib --features simulation --locked --release -- --nocapture simulation::
cargo build --workspace --locked --release
.ci/install.sh guest
.ci/guest/sherd.sh "${CARGO_TARGET_DIR:-target}/release/sherd" "${CARGO_TARGET_DIR:-target}/release/sherd-bench"
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" install
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" relay
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" direct
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" peers
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" memory
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" sharding
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" stall
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" failover
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" rollout
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" balance
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" chaos
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" graft
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" plan
cargo build --locked --release --package sherd-lb --examples
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" steer
"${CARGO_TARGET_DIR:-target}/release/sherd-bench" verify
cargo run --locked --release --package sherd-lb --example connection_cost
