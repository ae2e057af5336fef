#!/usr/bin/env bash
# Builds the one static binary, target/static/tidegate: runs on any x86_64 Linux, in an image FROM scratch too.
#
# glibc is linked in (+crt-static); an explicit --target keeps that flag away from procedural macros, which must stay
# dynamic. Names are never resolved through glibc (clippy.toml bans it), so nothing is loaded at run time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

triple=${1:-x86_64-unknown-linux-gnu}
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
    cargo build --locked --release -p tidegate --target "$triple"

mkdir -p target/static
install -m 0755 "target/$triple/release/tidegate" target/static/tidegate
strip target/static/tidegate

if readelf --program-headers target/static/tidegate | grep -q INTERP; then
    echo "build-static: target/static/tidegate asks for a dynamic loader; it must not" >&2
    exit 1
fi
echo "build-static: target/static/tidegate, $(stat -c %s target/static/tidegate) bytes"
