//! Address resolution for IPv4 (RFC 826), as Ethernet frames.

use super::{ETHERNET_HEADER, write_ethernet};
use crate::wire::MacAddr;
use std::net::Ipv4Addr;

/// The EtherType of ARP.
pub const ETHERTYPE: u16 = 0x0806;
/// Length of a frame with a message.
pub const FRAME_LENGTH: usize = ETHERNET_HEADER + MESSAGE;

const MESSAGE: usize = 28;
/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks who has the target's address.
    Request,
    /// Answers.
    Reply,
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// What it does.
    pub operation: Operation,
    /// Who sent it.
    pub sender_mac: MacAddr,
    /// The sender's address; unspecified in a probe (RFC 5227 §1.1).
    pub sender_ip: Ipv4Addr,
    /// The address asked for, or the address of who asked.
    pub target_ip: Ipv4Addr,
}

/// A broadcast that asks for `target_ip`.
pub fn request(
    sender_mac: MacAddr,
    sender_ip: Ipv4Addr,
    target_ip: Ipv4Addr,
    out: &mut [u8],
) -> Option<usize> {
    write(
        out,
        MacAddr::BROADCAST,
        REQUEST,
        (sender_mac, sender_ip),
        (MacAddr::UNSPECIFIED, target_ip),
    )
}

/// The answer that `sender_ip` is at `sender_mac`, to who asked.
pub fn reply(
    sender_mac: MacAddr,
    sender_ip: Ipv4Addr,
    target_mac: MacAddr,
    target_ip: Ipv4Addr,
    out: &mut [u8],
) -> Option<usize> {
    write(
        out,
        target_mac,
        REPLY,
        (sender_mac, sender_ip),
        (target_mac, target_ip),
    )
}

/// The message in an Ethernet frame. `None` when it isn't ARP for IPv4 over Ethernet, or its sender's hardware address
/// can't be one interface's.
pub fn parse(frame: &[u8]) -> Option<Arp> {
    let frame: &[u8; FRAME_LENGTH] = frame.first_chunk()?;
    let (ethernet, message) = frame.split_at(ETHERNET_HEADER);
    if ethernet[12..] != ETHERTYPE.to_be_bytes() || message[..6] != KIND {
        return None;
    }
    let operation = match u16::from_be_bytes([message[6], message[7]]) {
        REQUEST => Operation::Request,
        REPLY => Operation::Reply,
        _ => return None,
    };
    let sender_mac = MacAddr(message[8..14].try_into().ok()?);
    sender_mac.is_unicast().then_some(Arp {
        operation,
        sender_mac,
        sender_ip: Ipv4Addr::new(message[14], message[15], message[16], message[17]),
        target_ip: Ipv4Addr::new(message[24], message[25], message[26], message[27]),
    })
}

fn write(
    out: &mut [u8],
    destination: MacAddr,
    operation: u16,
    (sender_mac, sender_ip): (MacAddr, Ipv4Addr),
    (target_mac, target_ip): (MacAddr, Ipv4Addr),
) -> Option<usize> {
    let frame: &mut [u8; FRAME_LENGTH] = out.first_chunk_mut()?;
    write_ethernet(frame.first_chunk_mut()?, destination, sender_mac, ETHERTYPE);
    let message = frame.get_mut(ETHERNET_HEADER..)?;
    message[..6].copy_from_slice(&KIND);
    message[6..8].copy_from_slice(&operation.to_be_bytes());
    message[8..14].copy_from_slice(&sender_mac.0);
    message[14..18].copy_from_slice(&sender_ip.octets());
    message[18..24].copy_from_slice(&target_mac.0);
    message[24..28].copy_from_slice(&target_ip.octets());
    Some(FRAME_LENGTH)
}
