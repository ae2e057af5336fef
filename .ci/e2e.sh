#!/usr/bin/env bash
# End-to-end stories against the release binary, in network namespaces of their own. Needs root.
#
#   .ci/e2e.sh                   all of them
#   .ci/e2e.sh foreign_peer      those of tests/tests/foreign_peer.rs, or of a folder there
#
# One story at a time: each measures the machine and checks that nothing of it is left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

printf '\n== test: end to end, release build\n'
cargo build --locked --release -p tidegate
TIDEGATE_BIN="$PWD/target/release/tidegate" \
    cargo test --locked -p tidegate-tests "${@/#/--test=}" -- --test-threads=1 --nocapture
