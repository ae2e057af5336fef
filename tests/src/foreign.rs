//! A host that isn't ours: any WireGuard, with the kernel's VXLAN and a bridge inside, and a container whose MAC the
//! kernel chose.
//!
//! ```text
//!   our host ── segment ── node: wireguard ── vxlan ── bridge ── veth ── container
//! ```
//!
//! The node stands in the topology, and its public key in `cluster.peers` of our host; this is the rest of it.

use std::env;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::running::{attempt, command, succeed};
use crate::{Lab, Running, wait_until};

/// Our host, as all topologies with foreign peers name it.
const HOST: &str = "h1";
/// Our host's address inside the tunnel.
const HOST_VTEP: &str = "169.254.116.1";
/// UDP port of both ends' WireGuard.
const WIREGUARD_PORT: &str = "51820";
/// Of the underlay; the topologies set no other.
const UNDERLAY_MTU: u16 = 1500;
/// UDP and WireGuard (§5.4.6 of the paper), behind the IP header of the underlay.
const TUNNEL_OVERHEAD: u16 = 8 + 32;
/// IPv4, UDP, VXLAN and Ethernet (RFC 7348 §5), inside the tunnel.
const VXLAN_OVERHEAD: u16 = 50;
/// Where userspace WireGuards keep the sockets that `wg` speaks to, by device, whatever the network namespace.
const CONTROL_SOCKETS: &str = "/var/run/wireguard";

/// A userspace WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Debian's.
    WireguardGo,
    /// The one that `.ci/packages.sh` installs.
    BoringtunCli,
}

/// Who a node is to our host.
#[derive(Clone, Debug)]
pub struct ForeignPeer {
    /// The node.
    pub node: &'static str,
    /// What it runs.
    pub program: Program,
    /// Its number in the site.
    pub ordinal: u8,
    /// Our host's address on the underlay.
    pub host: IpAddr,
    /// File of its private key.
    pub key: PathBuf,
    /// File of the key that both ends share.
    pub preshared_key: Option<PathBuf>,
}

/// A node's WireGuard, with our host as its only peer. Dropping it ends the program.
#[derive(Debug)]
pub struct WireGuard {
    device: String,
    _program: Running,
}

/// A namespace behind a node's VXLAN device: a part of the lab like its instances. Dropping it removes it; the devices
/// on the node's side go with the node.
#[derive(Debug)]
pub struct Container {
    part: String,
    namespace: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

impl ForeignPeer {
    /// Starts the node's WireGuard.
    ///
    /// # Errors
    /// When the program isn't installed, or doesn't take what it is told.
    pub fn up(&self, lab: &Lab) -> Result<WireGuard> {
        // Control sockets are the machine's: another run's device must not have the same name.
        let device = format!("tgt{}-{}", std::process::id(), self.ordinal);
        let program = self.program.command_line(&device)?;
        let program = lab.start(self.node, &program.iter().map(String::as_str).collect::<Vec<_>>())?;
        let wireguard = WireGuard {
            device,
            _program: program,
        };
        let device = wireguard.device.as_str();
        wait_until("the program makes its device", Duration::from_secs(10), || {
            Ok(lab.attempt(self.node, &["wg", "show", device])?.status.success())
        })?;

        let host_key = lab.public_key(HOST)?;
        let endpoint = SocketAddr::new(self.host, WIREGUARD_PORT.parse()?).to_string();
        let allowed = format!("{HOST_VTEP}/32");
        let key = self.key.display().to_string();
        let preshared_key = self.preshared_key.as_ref().map(|file| file.display().to_string());
        let mut words = vec!["wg", "set", device, "listen-port", WIREGUARD_PORT];
        words.extend(["private-key", &key, "peer", &host_key]);
        if let Some(file) = &preshared_key {
            words.extend(["preshared-key", file]);
        }
        words.extend(["endpoint", &endpoint, "allowed-ips", &allowed]);
        lab.run(self.node, &words)?;

        let (vtep, mtu) = (self.vtep(), self.tunnel_mtu());
        lab.run_lines(
            self.node,
            &format!(
                "ip address add {vtep}/24 dev {device}
                 ip link set {device} mtu {mtu} up"
            ),
        )?;
        Ok(wireguard)
    }

    /// Makes a container behind the node, in the network with this number.
    ///
    /// # Errors
    /// When a step fails.
    pub fn container(&self, lab: &Lab, vni: u32) -> Result<Container> {
        let part = format!("{}-container", self.node);
        let container = Container {
            namespace: lab.namespace(&part),
            part,
            ipv4: Ipv4Addr::new(172, 19, self.ordinal, 5),
            ipv6: self.container_ipv6(lab)?,
        };
        let (namespace, vtep, mtu) = (
            &container.namespace,
            self.vtep(),
            self.tunnel_mtu() - VXLAN_OVERHEAD,
        );
        // A killed run may have left it: nobody else's lab has this name.
        attempt(command(["ip", "netns", "delete", namespace])?)?;
        succeed(command(["ip", "netns", "add", namespace])?)?;
        lab.run_lines(
            self.node,
            &format!(
                "ip link add vxlan0 mtu {mtu} type vxlan id {vni} local {vtep} remote {HOST_VTEP} dstport 4789
                 ethtool -K vxlan0 tx off
                 ip link add br0 type bridge
                 ip link set vxlan0 master br0 up
                 ip link set br0 up
                 ip link add port mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}
                 ip link set port master br0 up"
            ),
        )?;
        let (ipv4, ipv6) = (container.ipv4, container.ipv6);
        lab.run_lines(
            &container.part,
            &format!(
                "ip address add {ipv4}/16 dev eth0
                 ip address add {ipv6}/64 dev eth0 nodad
                 ip link set eth0 up"
            ),
        )?;
        Ok(container)
    }

    fn tunnel_mtu(&self) -> u16 {
        let ip = if self.host.is_ipv4() { 20 } else { 40 };
        UNDERLAY_MTU - ip - TUNNEL_OVERHEAD
    }

    fn vtep(&self) -> Ipv4Addr {
        Ipv4Addr::new(169, 254, 116, self.ordinal)
    }

    /// In the ordinal's block: the network's /64 is that of our instances.
    fn container_ipv6(&self, lab: &Lab) -> Result<Ipv6Addr> {
        let IpAddr::V6(instance) = lab.address("shop-web-1", "-6")? else {
            bail!("not an IPv6 address")
        };
        let [a, b, c, d, ..] = instance.segments();
        Ok(Ipv6Addr::new(a, b, c, d, 0, 0, u16::from(self.ordinal), 5))
    }
}

impl WireGuard {
    /// The device in its node.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        // The program is killed and can't do it; it may have ended by itself, and then it did.
        let _ = fs::remove_file(Path::new(CONTROL_SOCKETS).join(format!("{}.sock", self.device)));
    }
}

impl Container {
    /// Its name in the lab.
    pub fn part(&self) -> &str {
        &self.part
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> IpAddr {
        self.ipv4.into()
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> IpAddr {
        self.ipv6.into()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // The lab's own leak check tells when this fails.
        let _ = command(["ip", "netns", "delete", &self.namespace]).and_then(succeed);
    }
}

impl Program {
    fn command_line(self, device: &str) -> Result<Vec<String>> {
        let words: &[&str] = match self {
            Self::WireguardGo => &["wireguard-go", "-f", device],
            // A connected socket keeps its address, and wouldn't follow the machine to another.
            Self::BoringtunCli => &[
                &boringtun_cli()?,
                "--foreground",
                "--disable-drop-privileges",
                "--disable-connected-udp",
                device,
            ],
        };
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }
}

/// Where `.ci/packages.sh` puts it, or wherever PATH has it.
fn boringtun_cli() -> Result<String> {
    const NAME: &str = "boringtun-cli";
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let found = std::iter::once(tools)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(NAME))
        .find(|file| file.is_file());
    ensure!(found.is_some(), "{NAME} isn't there: .ci/packages.sh installs it");
    Ok(found.unwrap_or_default().display().to_string())
}
