//! One end of one TCP connection between the appliance and a port, kept by smoltcp.
//!
//! Networks have overlapping addresses, so each connection has an interface of its own: everything is on its link, and
//! only the port is at the other end. Segments' checksums aren't looked at: of a super-packet they are partial, and nothing
//! lies between an instance's kernel and here.

use crate::plan::Mtu;
use crate::time::Instant;
use blake2::digest::Digest;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};
use std::net::{IpAddr, SocketAddr};

/// What is sent fits through everything.
pub(super) const LARGEST_PACKET: u16 = 1500;

/// One end of a connection.
pub(super) struct Endpoint {
    mtu: u16,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
}

/// Bytes that wait at one end.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    /// Of what was received.
    pub(super) receive: usize,
    /// Of what isn't acknowledged.
    pub(super) send: usize,
}

/// What nobody else can tell: numbers drawn from it are as good as random.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub(super) u64);

impl Secret {
    /// The number for these words.
    pub(super) fn draw(self, words: &[u64]) -> u64 {
        let mut hash = blake2::Blake2s256::new();
        hash.update(self.0.to_be_bytes());
        for word in words {
            hash.update(word.to_be_bytes());
        }
        let digest = hash.finalize();
        digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl Endpoint {
    /// An end at `local` that waits for a SYN. The first sequence number is drawn from `seed` (RFC 6528).
    pub(super) fn listen(
        local: SocketAddr,
        mtu: Mtu,
        buffers: Buffers,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        Self::new(local.ip(), mtu, buffers, seed, now, |_, socket| {
            let endpoint = IpListenEndpoint {
                addr: Some(IpAddress::from(local.ip())),
                port: local.port(),
            };
            socket.listen(endpoint).ok()
        })
    }

    /// An end at `local` that begins a connection with `remote` when it is polled. Its first sequence number is drawn from
    /// `seed`.
    pub(super) fn connect(
        local: SocketAddr,
        remote: SocketAddr,
        mtu: Mtu,
        buffers: Buffers,
        seed: u64,
        now: Instant,
    ) -> Option<Self> {
        Self::new(local.ip(), mtu, buffers, seed, now, |interface, socket| {
            let remote = (IpAddress::from(remote.ip()), remote.port());
            let local = (IpAddress::from(local.ip()), local.port());
            socket.connect(interface.context(), remote, local).ok()
        })
    }

    fn new(
        local: IpAddr,
        mtu: Mtu,
        buffers: Buffers,
        seed: u64,
        now: Instant,
        open: impl FnOnce(&mut Interface, &mut tcp::Socket<'static>) -> Option<()>,
    ) -> Option<Self> {
        let mtu = mtu.get().min(LARGEST_PACKET);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire = Wire {
            received: None,
            mtu,
            room: &mut [],
            send: |_: &[u8]| {},
        };
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(IpAddress::from(local), 0));
        });
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffers.receive]),
            tcp::SocketBuffer::new(vec![0; buffers.send]),
        );
        socket.set_nagle_enabled(false);
        open(&mut interface, &mut socket)?;
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let socket = sockets.add(socket);
        Some(Self {
            mtu,
            interface,
            sockets,
            socket,
        })
    }

    /// Takes a packet in, and sends what may be sent; `room` is for [`LARGEST_PACKET`] bytes.
    pub(super) fn poll(
        &mut self,
        packet: Option<&[u8]>,
        now: Instant,
        room: &mut [u8],
        send: impl FnMut(&[u8]),
    ) {
        let mut wire = Wire {
            received: packet,
            mtu: self.mtu,
            room,
            send,
        };
        self.interface.poll(instant(now), &mut wire, &mut self.sockets);
    }

    /// What is said and heard.
    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// When it wants to be polled next.
    pub(super) fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        let nanos = u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000);
        Some(Instant::from_nanos(nanos).max(now))
    }

    /// Whether nothing is left of the connection. Who closed first would wait for stray segments (RFC 9293 §3.3.2,
    /// TIME-WAIT); they are reset here.
    pub(super) fn is_over(&self) -> bool {
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.socket);
        match socket.state() {
            tcp::State::Closed | tcp::State::TimeWait | tcp::State::Listen => true,
            tcp::State::SynSent
            | tcp::State::SynReceived
            | tcp::State::Established
            | tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::CloseWait
            | tcp::State::Closing
            | tcp::State::LastAck => false,
        }
    }
}

fn instant(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

/// One packet in, any number out.
struct Wire<'a, S> {
    received: Option<&'a [u8]>,
    mtu: u16,
    room: &'a mut [u8],
    send: S,
}

impl<S: FnMut(&[u8])> Device for Wire<'_, S> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Room<'b, S>
    where
        Self: 'b;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Received<'_>, Room<'_, S>)> {
        let packet = self.received.take()?;
        let room = Room {
            room: self.room,
            send: &mut self.send,
        };
        Some((Received(packet), room))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Room<'_, S>> {
        Some(Room {
            room: self.room,
            send: &mut self.send,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Room<'a, S> {
    room: &'a mut [u8],
    send: &'a mut S,
}

impl<S: FnMut(&[u8])> TxToken for Room<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        match self.room.get_mut(..length) {
            Some(packet) => {
                let written = write(packet);
                (self.send)(packet);
                written
            }
            // Nothing is longer than the MTU.
            None => write(&mut vec![0; length]),
        }
    }
}
