//! The device towards the other hosts: which it is, its MTU, and the one setting that is changed on it.

use crate::config::host::{HostDocument, Switch};
use crate::sys::ethtool;
use crate::sys::netlink::{Link, Netlink};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::IpAddr;

/// What is assumed of an underlay whose device isn't known.
pub(crate) const USUAL_MTU: u32 = 1500;
/// Lets the device glue UDP datagrams that arrive in a row: without it a lane's socket gets them one by one.
pub(crate) const GRO_FORWARDING: &str = "rx-udp-gro-forwarding";

/// The device towards the other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// Its name, when one is known.
    pub(crate) device: Option<String>,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// Its addresses by which other hosts can reach it, IPv4 before IPv6.
    pub(crate) addresses: Vec<IpAddr>,
}

/// A setting of a device as it was before it was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tuned {
    /// The device.
    pub(crate) device: String,
    /// Whether [`GRO_FORWARDING`] was on.
    pub(crate) former: bool,
}

/// Finds the device: the one that the document names, or the one that leads to the first host or peer.
///
/// # Errors
/// When there is no such device, or nothing that names one.
pub(crate) fn find(host: &HostDocument) -> io::Result<Underlay> {
    let mut netlink = Netlink::open()?;
    let link = match &host.cluster.interface {
        Some(name) => netlink.link(name)?,
        None => route_device(host, &mut netlink)?,
    };
    let addresses = netlink.addresses(link.index)?;
    Ok(Underlay {
        device: Some(link.name),
        mtu: link.mtu,
        addresses: reachable(addresses.into_iter().map(|network| network.addr())),
    })
}

/// The addresses that mean this host everywhere, in one order.
fn reachable(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut reachable: Vec<_> = addresses
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
        .collect();
    // IPv4 sorts before IPv6.
    reachable.sort_unstable();
    reachable.dedup();
    reachable
}

/// Switches [`GRO_FORWARDING`] on, and tells what was there before when that was another value.
pub(crate) fn tune(host: &HostDocument, underlay: &Underlay) -> Option<Tuned> {
    let device = underlay.device.as_deref()?;
    if host.datapath.tune_nic == Switch::Off {
        return None;
    }
    match switch(device, true) {
        Ok(former) if !former => Some(Tuned {
            device: device.to_owned(),
            former,
        }),
        Ok(_) => None,
        Err(error) => {
            if host.datapath.tune_nic == Switch::On {
                tracing::warn!(device, %error, "{GRO_FORWARDING} can't be switched on: received datagrams come one by one");
            } else {
                tracing::info!(device, %error, "{GRO_FORWARDING} can't be switched on here");
            }
            None
        }
    }
}

/// Puts a setting back.
pub(crate) fn restore(tuned: &Tuned) {
    if let Err(error) = switch(&tuned.device, tuned.former) {
        tracing::warn!(device = tuned.device, %error, "{GRO_FORWARDING} can't be put back");
    }
}

fn switch(device: &str, on: bool) -> io::Result<bool> {
    let features = ethtool::features(device)?;
    let feature = features
        .get(GRO_FORWARDING)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
    if feature.on != on {
        ethtool::set_features(device, &[(GRO_FORWARDING, on)])?;
    }
    Ok(feature.on)
}

fn route_device(host: &HostDocument, netlink: &mut Netlink) -> io::Result<Link> {
    let hosts = host.cluster.hosts().map(|host| host.address);
    let peers = host.cluster.peers.iter().filter_map(|peer| peer.endpoint);
    let destination = hosts
        .chain(peers.map(|endpoint| endpoint.ip()))
        .next()
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "the document names neither an interface nor another host's address",
            )
        })?;
    let path = netlink.path_to(destination)?;
    netlink
        .links()?
        .into_iter()
        .find(|link| link.index == path.index)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("the route to {destination} leads to no device"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_mean_another_host_elsewhere_are_not_told() {
        let addresses = ["fe80::1", "2001:db8::11", "192.0.2.11", "169.254.1.1"];
        let told = reachable(addresses.iter().map(|address| address.parse().unwrap()));
        assert_eq!(
            told.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.11", "2001:db8::11"]
        );
    }
}
