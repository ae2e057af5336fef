//! The peers of the topology `conformance`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Container, ForeignPeer, Lab, Pings, Program, WireGuard};

/// All but the newcomer: two programs, over two families, without and with a preshared key.
pub(crate) const ALL: [&str; 8] = [
    GO4,
    "go4-psk",
    "go6",
    "go6-psk",
    "boring4",
    "boring4-psk",
    BORING6,
    "boring6-psk",
];
pub(crate) const GO4: &str = "go4";
pub(crate) const BORING6: &str = "boring6";
pub(crate) const NEWCOMER: &str = "newcomer";
/// It holds no key.
pub(crate) const STRANGER: &str = "stranger";
/// Our host.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const HOST_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);
/// The number that the application's document sets.
pub(crate) const VNI: u32 = 4242;
/// Port of our host's foreign lane.
pub(crate) const LANE: u16 = 51820;

/// A peer that is up, with a container behind it.
pub(crate) struct Connected {
    pub(crate) name: &'static str,
    /// On the underlay.
    pub(crate) address: IpAddr,
    /// Where our host listens for it.
    pub(crate) host: SocketAddr,
    pub(crate) container: Container,
    pub(crate) wireguard: WireGuard,
}

impl Connected {
    /// Starts it, and waits until its container and an instance of ours have met in both families.
    pub(crate) fn up(lab: &Lab, name: &'static str) -> Result<Self> {
        let foreign = foreign(name)?;
        let peer = Self {
            name,
            address: address(name)?,
            host: SocketAddr::new(foreign.host, LANE),
            container: foreign.container(lab, VNI)?,
            wireguard: foreign.up(lab)?,
        };
        let part = peer.container.part();
        for address in [lab.address("shop-web-1", "-4")?, lab.address("shop-db-1", "-6")?] {
            Pings::start(lab, part, address, 3, Duration::from_millis(100))?
                .lost()
                .with_context(|| format!("{name} asks for {address}"))?;
        }
        Ok(peer)
    }

    /// Ends its WireGuard; the container stays, and reaches nothing any more.
    pub(crate) fn end(self) -> Container {
        self.container
    }
}

/// A peer as the topology knows it, not started yet.
pub(crate) fn foreign(name: &'static str) -> Result<ForeignPeer> {
    Ok(ForeignPeer {
        node: name,
        program: if name.starts_with("boring") {
            Program::BoringtunCli
        } else {
            Program::WireguardGo
        },
        ordinal: 201 + position(name)?,
        host: if is_ipv6(name) {
            HOST_IPV6.into()
        } else {
            HOST.into()
        },
        key: fixtures::key(name),
        preshared_key: name.ends_with("-psk").then(|| fixtures::key("preshared")),
    })
}

/// A peer's address on the underlay.
fn address(name: &str) -> Result<IpAddr> {
    let host = 61 + position(name)?;
    let text = if is_ipv6(name) {
        format!("2001:db8:1::{host}")
    } else {
        format!("192.0.2.{host}")
    };
    Ok(text.parse()?)
}

fn is_ipv6(name: &str) -> bool {
    name.contains('6')
}

/// In the order of the topology.
fn position(name: &str) -> Result<u8> {
    let position = ALL.iter().chain(&[NEWCOMER]).position(|known| *known == name);
    Ok(u8::try_from(
        position.with_context(|| format!("no peer {name}"))?,
    )?)
}

/// What our host says about its peers.
pub(crate) fn told(lab: &Lab) -> Result<Value> {
    lab.tidegate("h1", &["peers"])
}

/// One thing that our host says about one of them.
pub(crate) fn field<'a>(told: &'a Value, name: &str, field: &str) -> Result<&'a Value> {
    let list = told.get("peers").and_then(Value::as_array);
    let peer = list
        .into_iter()
        .flatten()
        .find(|peer| peer.get("name").and_then(Value::as_str) == Some(name));
    peer.and_then(|peer| peer.get(field))
        .with_context(|| format!("peers prints no {field} of {name}"))
}

/// Milliseconds since the session in use with a peer was made.
pub(crate) fn handshake_age(told: &Value, name: &str) -> Result<u64> {
    field(told, name, "handshake-age-ms")?
        .as_u64()
        .with_context(|| format!("no session with {name}"))
}
