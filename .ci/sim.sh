#!/usr/bin/env bash
# The simulation: two hosts of real shards and real TCP endpoints in virtual time. It runs on its own, because its
# clock feature must never be in a build of the daemon.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

printf '\n== test: simulation in virtual time\n'
cargo test --locked -p tidegate-stack --features simulation "$@"

printf '\n== test: the site of hosts that tell each other, 10,000 seeds\n'
# Optimised, or it would take minutes: only what this workspace holds is compiled anew for it.
TIDEGATE_SEEDS="${TIDEGATE_SEEDS:-10000}" CARGO_PROFILE_TEST_OPT_LEVEL=2 \
    cargo test --locked -p tidegate cluster::replica::simulation
