#!/usr/bin/env bash
# What takes too long for every push: ten minutes of every fuzz target, the end-to-end stories three times over, those
# about foreign peers, strangers, floods and names in their long form, a million TCP connections followed beside a model of TCP, a
# million packets parsed beside scapy, and the container image.
# Needs root and podman.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash .ci/packages.sh
for round in 1 2 3; do
    printf '\n== long: end to end, round %s of 3\n' "$round"
    bash .ci/e2e.sh
done
printf '\n== long: foreign peers through two rekeys, a million malformed datagrams, a minute played back; floods of 30 s\n'
TIDEGATE_LONG=1 bash .ci/e2e.sh conformance flood
printf '\n== long: names while the agent stands still for five minutes\n'
TIDEGATE_LONG=1 bash .ci/e2e.sh forwarding
printf '\n== long: a million TCP connections beside a model of TCP\n'
TIDEGATE_LONG=1 cargo test --locked --release -p tidegate-stack --test tcp_model
printf '\n== long: a million random and damaged packets beside scapy\n'
TIDEGATE_LONG=1 cargo test --locked -p tidegate-tests --test dissect -- --nocapture
bash .ci/fuzz.sh 600
bash .ci/image.sh
echo "long: all passed"
