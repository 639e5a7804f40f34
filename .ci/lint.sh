#!/usr/bin/env bash
# What can be said of the tree without running it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
cargo clippy --package sherd --lib --tests --features simulation --locked --quiet -- -D warnings
# SC2317: what only a trap calls looks unreachable to it.
shellcheck --exclude=SC2317 --severity=style .ci/run .ci/*.sh .ci/guest/*.sh .ci/guest/sherd-guest agent/demo/*.sh
# Not installed by us: it takes longer to build than all of sherd. The test `house` reads licences and sources from deny.toml too.
if command -v cargo-deny >/dev/null; then cargo deny --offline --all-features check bans licenses sources; fi
