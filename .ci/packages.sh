#!/usr/bin/env bash
# Installs what tests and side-by-side runs use: Debian packages, and a program of a crate. tidegate needs none of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(
    bind9-dnsutils    # dig
    busybox           # a resolver of its own: nslookup, ping
    dnsmasq-base      # names, beside ours, and name servers of the world outside
    dnsperf           # questions by name, as many as are answered
    ethtool           # the foreign peer's kernel VXLAN device needs `tx off`
    faketime          # a host whose clock is in 1970
    iperf3            # load
    iproute2          # ip, bridge, ss
    iputils-ping      # ping -M do
    knot-dnsutils     # kdig
    musl-tools        # musl's getaddrinfo: a program is made with it
    netcat-openbsd    # UDP probes
    nftables          # the reference beside our filter
    nmap              # scans, of what isn't to be found
    procps            # ps, for leak checks
    python3-scapy     # crafted frames
    tcpdump           # what the wire carries
    traceroute        # the path of an allowed flow
    unbound           # names, beside ours; it is never started as a service
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
    # No service starts because its package came.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    if [[ " ${missing[*]} " == *" unbound "* ]] && command -v systemctl >/dev/null; then
        systemctl --quiet disable unbound.service unbound-resolvconf.service || true
    fi
fi

# A WireGuard that isn't ours and isn't in Debian, where side-by-side runs look for it too. Only root can start it.
if [ "$(id -u)" -eq 0 ]; then
    cargo install --quiet --locked --root target/peers --target-dir target/peers/build boringtun-cli@0.7.1
fi
