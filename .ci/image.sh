#!/usr/bin/env bash
# Builds the static binary and the image FROM scratch, and runs `lab demo` in it with podman. Needs root.
#
# The demo makes network namespaces, TUN devices and bridges inside the container's own network namespace, so it gets
# the capabilities for that (NET_ADMIN: devices; SYS_ADMIN: namespaces; NET_RAW: pings and taps), /dev/net/tun, and a
# /proc/sys that its own namespaces may write to; nothing of the host's network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v podman >/dev/null; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        echo "image: installing podman and runc"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends podman runc >/dev/null
    else
        echo "image: podman is needed (as root, .ci/image.sh installs it)" >&2
        exit 1
    fi
fi

bash packaging/build-static.sh

# A podman inside another container has neither a systemd to ask for cgroups nor the right to raise limits.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cat >"$scratch/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
export CONTAINERS_CONF="$scratch/containers.conf"

podman build --quiet --tag tidegate:lab --file packaging/Containerfile target/static
podman image inspect --format 'image: {{.Size}} bytes' tidegate:lab
podman run --rm --network none \
    --device /dev/net/tun \
    --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW --cap-add SYS_ADMIN \
    --security-opt unmask=/proc/sys \
    --tmpfs /run --tmpfs /tmp \
    tidegate:lab lab demo
echo "image: lab demo passed in the container"
