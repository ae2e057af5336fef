//! The device as the instance sees it: addresses, routes, and nothing that the kernel adds by itself.

use crate::agent::api::Prepared;
use crate::sys::netlink::Netlink;
use anyhow::Context as _;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Largest super-packet that the kernel hands out, in bytes: with headers and tags of its segments it is still one
/// UDP GSO send (at most 65,507 bytes).
const GSO_MAX_SIZE: u32 = 59_300;

/// Configures the device `interface` of the calling thread's namespace, and brings it up.
///
/// # Errors
/// The step that failed, and what the kernel said.
pub(super) fn configure(interface: &str, prepared: &Prepared) -> anyhow::Result<()> {
    let mut netlink = Netlink::open().context("the namespace's netlink socket can't be opened")?;
    let index = netlink.link_index(interface)?;
    let ipv6 = has_ipv6(interface);
    if ipv6 {
        netlink
            .set_addr_gen_mode_none(index)
            .with_context(|| format!("{interface}: addr_gen_mode can't be set to none"))?;
        refuse_router_advertisements(interface);
    } else {
        tracing::warn!(
            interface,
            "the namespace has no IPv6: the instance gets its IPv4 address alone"
        );
    }
    // An older kernel's own limit only costs a second send now and then.
    if let Err(error) = netlink.set_gso_max_size(index, GSO_MAX_SIZE) {
        tracing::debug!(interface, %error, "gso_max_size can't be set");
    }
    netlink
        .set_up(index)
        .with_context(|| format!("{interface} can't be brought up"))?;

    for network in &prepared.networks {
        let mut pairs = vec![(IpAddr::V4(network.ipv4), IpNet::V4(network.ipv4_prefix), 32)];
        if ipv6 {
            pairs.push((IpAddr::V6(network.ipv6), IpNet::V6(network.ipv6_prefix), 128));
        }
        for (address, prefix, length) in pairs {
            netlink
                .add_address(index, address, length)
                .with_context(|| format!("{interface}: the address {address}/{length} can't be set"))?;
            netlink
                .add_route(prefix, index, None, Some(address))
                .with_context(|| format!("{interface}: the route to {prefix} can't be added"))?;
        }
    }
    if let Some(own) = prepared.networks.first() {
        let everything_ipv4 = IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0)?;
        let everything_ipv6 = IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0)?;
        let mut defaults = vec![(everything_ipv4, IpAddr::V4(own.ipv4))];
        if ipv6 {
            defaults.push((everything_ipv6, IpAddr::V6(own.ipv6)));
        }
        for (everything, source) in defaults {
            netlink
                .add_route(everything, index, None, Some(source))
                .with_context(|| format!("{interface}: the default route can't be added"))?;
        }
    }
    Ok(())
}

/// Whether the namespace has IPv6, and hasn't switched it off for this device.
fn has_ipv6(interface: &str) -> bool {
    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match std::fs::read_to_string(switch) {
        Ok(disabled) => disabled.trim() == "0",
        // Without /proc nothing can be said but whether the kernel has it at all.
        Err(_) => !Path::new("/proc/sys/net").exists() || Path::new("/proc/sys/net/ipv6").exists(),
    }
}

/// Nobody on an overlay advertises routes; where /proc/sys is read-only (a container's) the kernel's own setting
/// stays, which the datapath makes harmless: it carries no router advertisements.
fn refuse_router_advertisements(interface: &str) {
    let setting = format!("/proc/sys/net/ipv6/conf/{interface}/accept_ra");
    if let Err(error) = std::fs::write(setting, "0") {
        tracing::debug!(interface, %error, "accept_ra can't be set");
    }
}
