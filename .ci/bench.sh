#!/usr/bin/env bash
# Measures; never a gate.
#
#   .ci/bench.sh                 criterion benches of the packet path
#   .ci/bench.sh peers [ARG…]    side by side with other programs (root; see `peers --help`)
#   .ci/bench.sh names [ARG…]    names beside dnsmasq and unbound: `peers --rows dns`, three minutes, or 20 s with --short
#
# The whole of `peers` takes an hour and a half; a part of it, or with --short a first look:
#
#   .ci/bench.sh peers --rows udp-64,loaded-latency --only tidegate,wireguard-go [--short]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-path}" in
path)
    cargo bench --locked -p tidegate-bench --bench packet_path
    ;;
peers | names)
    rows=()
    [ "$1" = names ] && rows=(--rows dns)
    shift
    bash .ci/packages.sh
    cargo build --locked --release -p tidegate -p tidegate-bench
    export TIDEGATE_BIN="${TIDEGATE_BIN:-$PWD/target/release/tidegate}"
    cargo run --locked --release -p tidegate-bench --bin peers -- "${rows[@]}" "$@"
    ;;
*)
    echo "bench: there is no '$1'; use path, peers or names" >&2
    exit 2
    ;;
esac
