#!/usr/bin/env bash
# Installs the Debian packages that tests and side-by-side runs use. The program itself needs none of them.
set -euo pipefail

packages=(
    ethtool           # the foreign peer's kernel VXLAN device needs `tx off`
    iperf3            # load
    iproute2          # ip, bridge, ss
    iputils-ping      # ping -M do
    netcat-openbsd    # UDP probes
    procps            # ps, for leak checks
    python3-scapy     # crafted frames
    tcpdump           # what the wire carries
    wireguard-go      # the foreign peer; its age doesn't matter there
    wireguard-tools   # wg, to configure it
    g++               # the fuzzers' runtime is C++
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all there"
elif ! command -v apt-get >/dev/null; then
    echo "packages: no apt-get here; what isn't there: ${missing[*]}"
elif [ "$(id -u)" -ne 0 ]; then
    echo "packages: not root, so not installing: ${missing[*]}"
else
    echo "packages: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
