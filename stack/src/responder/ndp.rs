//! Neighbour discovery for IPv6 (RFC 4861): solicitations and advertisements, as Ethernet frames. Routers, prefixes
//! and redirects are nobody's business inside a network.

use super::{Addresses, ETHERNET_HEADER, IPV6_HEADER, PROTOCOL_ICMPV6, write_ethernet};
use crate::frame::checksum::Sum;
use crate::wire::MacAddr;
use std::net::{IpAddr, Ipv6Addr};

/// The EtherType of IPv6.
pub const ETHERTYPE: u16 = 0x86dd;
/// Length of a frame with a message and its one option.
pub const FRAME_LENGTH: usize = ETHERNET_HEADER + IPV6_HEADER + MESSAGE + OPTION;

const MESSAGE: usize = 24;
const OPTION: usize = 8;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Nothing that crossed a router is believed (RFC 4861 §7.1).
const HOP_LIMIT: u8 = 255;
/// All nodes on the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ndp {
    /// Asks who has `target`.
    Solicitation {
        /// Who asks; unspecified while it looks for duplicates (RFC 4862 §5.4).
        sender_ip: Ipv6Addr,
        /// Where who asks is, when it says so.
        sender_mac: Option<MacAddr>,
        /// The address asked for.
        target: Ipv6Addr,
    },
    /// Says that `target` is at `mac`.
    Advertisement {
        /// The address.
        target: Ipv6Addr,
        /// Where it is.
        mac: MacAddr,
        /// Whether it answers a solicitation.
        solicited: bool,
    },
}

/// A solicitation to the solicited-node group of `target` (RFC 4861 §4.3).
pub fn solicit(sender_mac: MacAddr, sender_ip: Ipv6Addr, target: Ipv6Addr, out: &mut [u8]) -> Option<usize> {
    let message = Outgoing {
        kind: SOLICITATION,
        flags: 0,
        target,
        option: SOURCE_LINK_LAYER,
        mac: sender_mac,
    };
    message.write(
        out,
        sender_ip,
        solicited_node(target),
        MacAddr::solicited_node(target),
    )
}

/// The advertisement that `own_ip` is at `own_mac` (RFC 4861 §4.4), to who asked. An asker without an address is
/// answered to all nodes (§7.2.4).
pub fn advertise(
    own_mac: MacAddr,
    own_ip: Ipv6Addr,
    asker_mac: MacAddr,
    asker_ip: Ipv6Addr,
    out: &mut [u8],
) -> Option<usize> {
    let (flags, destination, destination_mac) = if asker_ip.is_unspecified() {
        (OVERRIDE, ALL_NODES, MacAddr::of_group(IpAddr::V6(ALL_NODES))?)
    } else {
        (SOLICITED | OVERRIDE, asker_ip, asker_mac)
    };
    let message = Outgoing {
        kind: ADVERTISEMENT,
        flags,
        target: own_ip,
        option: TARGET_LINK_LAYER,
        mac: own_mac,
    };
    message.write(out, own_ip, destination, destination_mac)
}

/// The message in an Ethernet frame, when it is valid (RFC 4861 §7.1.1, §7.1.2). `None` for everything else, and for
/// an advertisement that doesn't say where its target is.
pub fn parse(frame: &[u8]) -> Option<Ndp> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET_HEADER)?;
    let header: &[u8; IPV6_HEADER] = packet.first_chunk()?;
    let is_ndp = ethernet[12..] == ETHERTYPE.to_be_bytes()
        && header[0] >> 4 == 6
        && header[6] == PROTOCOL_ICMPV6
        && header[7] == HOP_LIMIT;
    if !is_ndp {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = packet.get(IPV6_HEADER..IPV6_HEADER + length)?;
    let source = address(&header[8..24])?;
    let destination = address(&header[24..40])?;
    let fixed: &[u8; MESSAGE] = message.first_chunk()?;
    let target = address(&fixed[8..])?;
    if fixed[1] != 0 || target.is_multicast() || !checksum(source, destination, message).is_correct() {
        return None;
    }
    let options = message.get(MESSAGE..)?;
    match fixed[0] {
        SOLICITATION => {
            let sender_mac = link_layer_option(options, SOURCE_LINK_LAYER).ok()?;
            // §7.1.1: who has no address asks the group, and says no link-layer address.
            let valid =
                !source.is_unspecified() || (destination == solicited_node(target) && sender_mac.is_none());
            valid.then_some(Ndp::Solicitation {
                sender_ip: source,
                sender_mac,
                target,
            })
        }
        ADVERTISEMENT => {
            let mac = link_layer_option(options, TARGET_LINK_LAYER).ok()??;
            let solicited = fixed[4] & SOLICITED != 0;
            let valid = !(solicited && destination.is_multicast());
            valid.then_some(Ndp::Advertisement {
                target,
                mac,
                solicited,
            })
        }
        _ => None,
    }
}

/// A message on its way out.
struct Outgoing {
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: u8,
    /// What the option says, and the frame's source.
    mac: MacAddr,
}

impl Outgoing {
    fn write(
        &self,
        out: &mut [u8],
        source: Ipv6Addr,
        destination: Ipv6Addr,
        destination_mac: MacAddr,
    ) -> Option<usize> {
        let frame: &mut [u8; FRAME_LENGTH] = out.first_chunk_mut()?;
        write_ethernet(frame.first_chunk_mut()?, destination_mac, self.mac, ETHERTYPE);
        let addresses = Addresses::new(source.into(), destination.into())?;
        let packet = frame.get_mut(ETHERNET_HEADER..)?;
        let message = addresses.write_header(packet, PROTOCOL_ICMPV6, HOP_LIMIT)?;
        message.fill(0);
        message[0] = self.kind;
        message[4] = self.flags;
        message[8..MESSAGE].copy_from_slice(&self.target.octets());
        message[MESSAGE] = self.option;
        message[MESSAGE + 1] = 1;
        message[MESSAGE + 2..].copy_from_slice(&self.mac.0);
        let sum = checksum(source, destination, message).checksum();
        message[2..4].copy_from_slice(&sum);
        Some(FRAME_LENGTH)
    }
}

/// The group of all who might have `target` (RFC 4291 §2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// Options that make the whole message invalid.
struct InvalidOptions;

/// The Ethernet address in the option of this kind, if there is one (RFC 4861 §4.6).
fn link_layer_option(mut options: &[u8], kind: u8) -> Result<Option<MacAddr>, InvalidOptions> {
    let mut found = None;
    while let [this, units, ..] = *options {
        let length = usize::from(units) * 8;
        // §7.1.1: an option of length zero makes the message invalid.
        let (option, rest) = options
            .split_at_checked(length)
            .filter(|(option, _)| !option.is_empty())
            .ok_or(InvalidOptions)?;
        if this == kind
            && let Some(&[_, _, a, b, c, d, e, f]) = option.first_chunk::<OPTION>()
        {
            let mac = MacAddr([a, b, c, d, e, f]);
            found = mac.is_unicast().then_some(mac);
        }
        options = rest;
    }
    if options.is_empty() {
        Ok(found)
    } else {
        Err(InvalidOptions)
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Sum {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut sum = Sum::pseudo_header(source.into(), destination.into(), PROTOCOL_ICMPV6, length);
    sum.add(message);
    sum
}
