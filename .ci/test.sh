#!/usr/bin/env bash
# The test command: installs the Debian packages that the tests use, then runs every test there is.
#
#   unit and property tests · the simulation of two hosts in virtual time · end-to-end stories in network namespaces ·
#   20 seconds of every fuzz target
#
# Without root the end-to-end stories say that they are skipped; the rest runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== test: %s\n' "$*"; }

bash .ci/packages.sh

say "unit and property tests"
env -u TIDEGATE_BIN cargo test --locked --workspace

bash .ci/sim.sh
bash .ci/e2e.sh
bash .ci/fuzz.sh 20

say "all passed"
