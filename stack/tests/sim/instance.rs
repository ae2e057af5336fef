//! An instance: a TUN device with a real TCP/IP stack (smoltcp) behind it, and a record of every packet it was given.

use super::packets::Packet;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::net::IpAddr;
use tidegate_stack::frame::checksum::Sum;
use tidegate_stack::frame::{Offload, Segmentation};
use tidegate_stack::plan::Membership;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Headers, Transport};

/// An instance of a host.
pub(crate) struct Instance {
    device: Tun,
    interface: Interface,
    sockets: SocketSet<'static>,
    /// What it was given, in order.
    pub(crate) received: Vec<Packet>,
    /// Whether it only records what it is given: for packets that no stack would send.
    pub(crate) deaf: bool,
    addresses: [IpAddr; 2],
}

struct Tun {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Packet>,
    mtu: usize,
    offloads: bool,
}

/// A device with TSO takes segments of this length and leaves the cutting to others.
const SUPER_PACKET: usize = 32_000;
const TCP_BUFFER: usize = 256 * 1024;

impl Instance {
    pub(crate) fn new(membership: &Membership, mtu: usize, offloads: bool, seed: u64, now: Instant) -> Self {
        let mut device = Tun {
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            mtu,
            offloads,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, smoltcp_time(now));
        interface.update_ip_addrs(|addresses| {
            for (address, length) in [
                (IpAddress::from(membership.ipv4), 16),
                (membership.ipv6.into(), 64),
            ] {
                addresses.push(IpCidr::new(address, length)).unwrap();
            }
        });
        Self {
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            received: Vec::new(),
            deaf: false,
            addresses: membership.addresses(),
        }
    }

    /// Its address of a family.
    pub(crate) fn address(&self, ipv6: bool) -> IpAddr {
        self.addresses[usize::from(ipv6)]
    }

    /// Takes a packet as the kernel behind a TUN device does: a partial checksum is believed, and finished for the
    /// stack behind it.
    pub(crate) fn receive(&mut self, packet: Packet) {
        if self.deaf {
            self.received.push(packet);
            return;
        }
        let mut bytes = packet.bytes.clone();
        if let Some((start, offset)) = packet.offload.partial_checksum {
            assert!(
                self.device.offloads,
                "a device without offloads was given a partial checksum"
            );
            finish_checksum(&mut bytes, usize::from(start), usize::from(offset));
        }
        let is_super = packet.offload.segmentation != Segmentation::None;
        assert!(
            is_super || bytes.len() <= self.device.mtu,
            "{} bytes on a device of {}",
            bytes.len(),
            self.device.mtu
        );
        self.device.incoming.push_back(bytes);
        self.received.push(packet);
    }

    /// Sends a packet made by hand.
    pub(crate) fn inject(&mut self, packet: Packet) {
        self.device.outgoing.push_back(packet);
    }

    /// The next packet that it sends.
    pub(crate) fn transmit(&mut self) -> Option<Packet> {
        self.device.outgoing.pop_front()
    }

    /// Lets its stack work.
    pub(crate) fn poll(&mut self, now: Instant) {
        self.interface
            .poll(smoltcp_time(now), &mut self.device, &mut self.sockets);
    }

    /// When its stack wants to work next.
    pub(crate) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(smoltcp_time(now), &self.sockets)?;
        let nanos = u64::try_from(at.total_micros()).unwrap_or(0) * 1000;
        // Microseconds round down: never earlier than now, or time would stand still.
        Some(Instant::from_nanos(nanos).max(now))
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = new_socket();
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn connect(&mut self, to: IpAddr, port: u16, own_port: u16) -> SocketHandle {
        let mut socket = new_socket();
        socket
            .connect(self.interface.context(), (IpAddress::from(to), port), own_port)
            .unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

fn new_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
    tcp::Socket::new(buffer(), buffer())
}

fn smoltcp_time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap())
}

fn finish_checksum(bytes: &mut [u8], start: usize, offset: usize) {
    let headers = Headers::parse(bytes).unwrap();
    assert_eq!(start, headers.transport_offset);
    let covered = u32::try_from(headers.total_length - start).unwrap();
    let pseudo = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, covered);
    assert_eq!(
        bytes[start + offset..start + offset + 2],
        pseudo.folded(),
        "the pseudo header's sum"
    );
    let mut sum = Sum::default();
    sum.add(&bytes[start..headers.total_length]);
    bytes[start + offset..start + offset + 2].copy_from_slice(&sum.checksum());
}

/// What a kernel hands to a device that cuts and sums by itself.
fn with_offload(mut bytes: Vec<u8>, mtu: usize) -> Packet {
    let headers = Headers::parse(&bytes).unwrap();
    let Transport::Tcp { .. } = headers.transport else {
        return bytes.into();
    };
    let start = headers.transport_offset;
    let covered = u32::try_from(headers.total_length - start).unwrap();
    let pseudo = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, covered);
    bytes[start + 16..start + 18].copy_from_slice(&pseudo.folded());
    let size = mtu - headers.payload_offset;
    let segmentation = if headers.total_length - headers.payload_offset > size {
        Segmentation::Tcp {
            size: u16::try_from(size).unwrap(),
            ecn: false,
        }
    } else {
        Segmentation::None
    };
    let partial_checksum = Some((u16::try_from(start).unwrap(), 16));
    Packet {
        bytes,
        offload: Offload {
            segmentation,
            partial_checksum,
        },
    }
}

impl Device for Tun {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        let bytes = self.incoming.pop_front()?;
        Some((Received(bytes), Sending(self)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = if self.offloads { SUPER_PACKET } else { self.mtu };
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a>(&'a mut Tun);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut bytes = vec![0; length];
        let result = write(&mut bytes);
        let packet = if self.0.offloads {
            with_offload(bytes, self.0.mtu)
        } else {
            bytes.into()
        };
        self.0.outgoing.push_back(packet);
        result
    }
}
