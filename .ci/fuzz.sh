#!/usr/bin/env bash
# Runs every fuzz target of tests/fuzz for some seconds, with coverage and the address sanitizer.
#
#   .ci/fuzz.sh                  20 seconds each
#   .ci/fuzz.sh 600 frame        ten minutes of one
#
# The instrumentation is unstable in rustc: RUSTC_BOOTSTRAP lets the pinned stable compiler do it, so that neither a
# nightly nor cargo-fuzz is needed. The flags are cargo-fuzz's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../tests/fuzz"

seconds=${1:-20}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo metadata --no-deps --format-version 1 |
        python3 -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if "bin" in target["kind"]:
            print(target["name"])')
fi

triple=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address"

printf '\n== test: fuzzing %s, %s s each\n' "${targets[*]}" "$seconds"
cargo build --release --target "$triple"
# What a run finds stays with its build; what is worth keeping goes to corpus/.
for target in "${targets[@]}"; do
    mkdir -p "target/corpus/$target" "artifacts/$target"
    "target/$triple/release/$target" "target/corpus/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" \
        -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 -print_funcs=0 -verbosity=0
done
echo "fuzz: ${#targets[@]} targets ran without a crash"
