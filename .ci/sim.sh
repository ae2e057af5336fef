#!/usr/bin/env bash
# The simulation: two hosts of real shards and real TCP endpoints in virtual time. It runs on its own, because its
# clock feature must never be in a build of the daemon. Then what runs in every order: how shards wake each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

printf '\n== test: simulation in virtual time\n'
cargo test --locked -p tidegate-stack --features simulation "$@"

printf '\n== test: sleep and wake between shards, under loom\n'
cargo test --locked --manifest-path tests/loom/Cargo.toml
