#!/usr/bin/env bash
# Formatting, lints, documentation and licences: everything that says no without running the program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== check: %s\n' "$*"; }

say "formatting"
cargo fmt --all --check

say "lints, the whole workspace"
cargo clippy --locked --workspace --all-targets -- -D warnings

say "lints, the stack under simulated time"
cargo clippy --locked -p tidegate-stack --features simulation --all-targets -- -D warnings

say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

say "shell scripts parse"
for script in .ci/run .ci/*.sh packaging/*.sh; do
    bash -n "$script"
done

say "licences, advisories and sources of dependencies"
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check
else
    echo "skipped: cargo-deny isn't installed (cargo install cargo-deny --locked)"
fi
