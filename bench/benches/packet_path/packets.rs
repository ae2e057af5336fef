//! TCP segments as an instance's kernel makes them.

use std::net::IpAddr;

use tidegate_stack::frame::checksum::{Sum, checksum};

const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
/// Where TCP's checksum stands in its header.
pub(crate) const TCP_CHECKSUM: u16 = 16;

/// One segment, or the whole of a super-packet, with a finished checksum.
pub(crate) fn tcp(
    source: IpAddr,
    destination: IpAddr,
    (from, to): (u16, u16),
    sequence: u32,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(TCP_HEADER + payload.len()).expect("a packet's length is 16 bits");
    let mut packet = ip(source, destination, length);
    let transport = packet.len();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend(sequence.to_be_bytes());
    packet.extend(1_u32.to_be_bytes());
    // Five words of header, ACK, a full window; checksum and urgent pointer come after.
    packet.extend([0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend(payload);

    let mut sum = Sum::pseudo_header(source, destination, TCP, u32::from(length));
    sum.add(&packet[transport..]);
    let place = transport + usize::from(TCP_CHECKSUM);
    packet[place..place + 2].copy_from_slice(&sum.checksum());
    packet
}

fn ip(source: IpAddr, destination: IpAddr, payload: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + usize::from(payload));
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + payload).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(payload.to_be_bytes());
            packet.extend([TCP, 64]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => panic!("addresses of two families"),
    }
    packet
}
