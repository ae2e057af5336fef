//! The ground of a lab: namespaces, the wires between them, their addresses and routes. No process runs in it yet.

use super::blueprint::{Blueprint, End, Segment};
use super::{Error, WhileDoing as _};
use crate::sys::netlink::{self, Netlink};
use crate::sys::netns;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// The bridge of a segment, in the segment's own namespace.
const BRIDGE: &str = "br0";

/// What makes a namespace's IPv6 quiet and quick: addresses are usable at once, nobody asks for routers, so that what
/// is seen on a wire is what the lab put there.
const IPV6_SETTINGS: [(&str, &str); 3] = [
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("router_solicitations", "0"),
];

/// The open namespaces of a lab, by name.
#[derive(Debug, Default)]
pub(super) struct Ground {
    namespaces: BTreeMap<String, OwnedFd>,
}

impl Ground {
    /// Makes the namespaces of a lab and wires them. On an error, what was made until then stays: the lab's state
    /// knows all names.
    pub(super) fn lay(blueprint: &Blueprint) -> Result<Self, Error> {
        let mut ground = Self::default();
        for name in blueprint.namespaces() {
            netns::create(name).while_doing(|| format!("making namespace {name}"))?;
            let namespace = netns::open(name).while_doing(|| format!("opening namespace {name}"))?;
            settle(namespace.as_fd()).while_doing(|| format!("settling into namespace {name}"))?;
            ground.namespaces.insert(name.to_owned(), namespace);
        }
        for segment in &blueprint.segments {
            ground.wire(segment)?;
        }
        for node in &blueprint.nodes {
            let Some(gateway) = node.default_route else {
                continue;
            };
            let doing = || format!("routing {} by {gateway}", node.namespace);
            let mut netlink = Netlink::open_within(ground.namespace(&node.namespace)?).while_doing(doing)?;
            let path = netlink.path_to(gateway).while_doing(doing)?;
            netlink
                .add_route(netlink::default_route(gateway), path.index, Some(gateway), None)
                .while_doing(doing)?;
        }
        Ok(ground)
    }

    /// An open namespace.
    pub(super) fn namespace(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let found = self.namespaces.get(name).map(OwnedFd::as_fd);
        found.ok_or_else(|| Error::NotFound(format!("there is no namespace {name} in this lab")))
    }

    fn wire(&self, segment: &Segment) -> Result<(), Error> {
        if let Some(name) = &segment.bridge {
            let mut bridge = Bridge::make(self.namespace(name)?)
                .while_doing(|| format!("making the bridge of segment {}", segment.name))?;
            for (port, end) in segment.ends.iter().enumerate() {
                let doing = || {
                    format!(
                        "wiring {} of {} to segment {}",
                        end.device, end.namespace, segment.name
                    )
                };
                bridge
                    .plug(port, end, self.namespace(&end.namespace)?, segment.mtu)
                    .while_doing(doing)?;
            }
        } else if let [left, right] = segment.ends.as_slice() {
            let doing = || {
                format!(
                    "joining {} and {} by segment {}",
                    left.namespace, right.namespace, segment.name
                )
            };
            let mut netlink = Netlink::open_within(self.namespace(&left.namespace)?).while_doing(doing)?;
            netlink
                .add_veth(&left.device, &right.device, self.namespace(&right.namespace)?)
                .while_doing(doing)?;
        }
        for end in &segment.ends {
            raise(end, self.namespace(&end.namespace)?, segment.mtu)
                .while_doing(|| format!("setting up {} of {}", end.device, end.namespace))?;
        }
        Ok(())
    }
}

/// A bridge in its own namespace.
struct Bridge {
    netlink: Netlink,
    index: u32,
}

impl Bridge {
    fn make(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let mut netlink = Netlink::open_within(namespace)?;
        netlink.add_bridge(BRIDGE)?;
        let index = netlink.link_index(BRIDGE)?;
        keep_ipv6_away(&mut netlink, index)?;
        netlink.set_up(index)?;
        Ok(Self { netlink, index })
    }

    /// Runs a veth pair from a port of the bridge to an end's device.
    fn plug(&mut self, port: usize, end: &End, namespace: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
        let name = format!("port{port}");
        self.netlink.add_veth(&name, &end.device, namespace)?;
        let index = self.netlink.link_index(&name)?;
        keep_ipv6_away(&mut self.netlink, index)?;
        self.netlink.set_mtu(index, mtu)?;
        self.netlink.set_master(index, self.index)?;
        self.netlink.set_up(index)
    }
}

/// Brings up `lo` and applies [`IPV6_SETTINGS`].
fn settle(namespace: BorrowedFd<'_>) -> io::Result<()> {
    netns::within(namespace, || {
        for (key, value) in IPV6_SETTINGS {
            for device in ["all", "default"] {
                match fs::write(format!("/proc/sys/net/ipv6/conf/{device}/{key}"), value) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    // Without IPv6 in the kernel there is nothing to set.
                    _ => {}
                }
            }
        }
        let mut netlink = Netlink::open()?;
        let index = netlink.link_index("lo")?;
        netlink.set_up(index)
    })?
}

fn raise(end: &End, namespace: BorrowedFd<'_>, mtu: u32) -> io::Result<()> {
    let mut netlink = Netlink::open_within(namespace)?;
    let index = netlink.link_index(&end.device)?;
    netlink.set_mtu(index, mtu)?;
    keep_ipv6_away(&mut netlink, index)?;
    netlink.set_up(index)?;
    for address in &end.addresses {
        netlink.add_address(index, address.addr(), address.prefix_len())?;
    }
    Ok(())
}

/// No link-local address, and so no chatter about it. Without IPv6 in the kernel there is none to keep away.
fn keep_ipv6_away(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    match netlink.set_addr_gen_mode_none(index) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::super::blueprint::Node;
    use super::super::echo::{Echo, Outcome};
    use super::super::state::State;
    use super::super::teardown;
    use super::*;
    use std::time::Duration;

    fn end(namespace: &str, device: &str, addresses: &[&str]) -> End {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        End {
            namespace: namespace.into(),
            device: device.into(),
            addresses,
        }
    }

    fn node(namespace: &str, default_route: Option<&str>) -> Node {
        Node {
            name: namespace.into(),
            namespace: namespace.into(),
            default_route: default_route.map(|address| address.parse().unwrap()),
            exec: vec![],
        }
    }

    #[test]
    fn ground_is_laid_carries_packets_and_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let lab = format!("tgx-lab-{}", std::process::id());
        let [a, b, c, switch] = ["a", "b", "c", "segment-lan"].map(|part| format!("{lab}-{part}"));
        let blueprint = Blueprint {
            lab: lab.clone(),
            segments: vec![
                Segment {
                    name: "lan".into(),
                    mtu: 1500,
                    bridge: Some(switch),
                    ends: vec![
                        end(&a, "eth0", &["192.0.2.1/24", "2001:db8:1::1/64"]),
                        end(&b, "eth0", &["192.0.2.2/24", "2001:db8:1::2/64"]),
                        end(&c, "eth0", &["192.0.2.3/24"]),
                    ],
                },
                Segment {
                    name: "pair".into(),
                    mtu: 9000,
                    bridge: None,
                    ends: vec![
                        end(&a, "eth1", &["198.51.100.1/24"]),
                        end(&b, "eth1", &["198.51.100.2/24"]),
                    ],
                },
            ],
            hosts: vec![],
            nodes: vec![node(&a, None), node(&b, None), node(&c, Some("192.0.2.1"))],
            documents: vec![],
            instances: vec![],
        };
        let state = State::of(&blueprint, std::path::Path::new("test"));
        state.claim().unwrap();
        assert!(state.claim().unwrap_err().to_string().contains("is up already"));
        let outcome = std::panic::catch_unwind(|| {
            let ground = Ground::lay(&blueprint).unwrap();
            let ask = |from: &str, to: &str| {
                let namespace = ground.namespace(from).unwrap();
                let mut echo = Echo::open(namespace, to.parse().unwrap(), 1).unwrap();
                echo.ask(Duration::from_secs(2)).unwrap()
            };
            for to in ["192.0.2.2", "2001:db8:1::2", "192.0.2.3", "198.51.100.2"] {
                assert!(matches!(ask(&a, to), Outcome::Reached(_)), "{to}");
            }
            let mut netlink = Netlink::open_within(ground.namespace(&b).unwrap()).unwrap();
            assert_eq!(netlink.link("eth1").unwrap().mtu, 9000);
            let mut netlink = Netlink::open_within(ground.namespace(&c).unwrap()).unwrap();
            assert!(netlink.path_to("203.0.113.1".parse().unwrap()).is_ok());
        });
        teardown::down(&lab).unwrap();
        assert_eq!(teardown::leftovers(&state).unwrap(), Vec::<String>::new());
        assert!(matches!(teardown::down(&lab), Err(Error::NotFound(_))));
        outcome.unwrap();
    }
}
