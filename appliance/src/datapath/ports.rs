//! A shard's queues of the ports' TUN devices: super-packets are read and written whole.
//!
//! Of a device's queues shard `i` of `n` reads those whose number is `i` modulo `n`, and writes to the `i`-th, counted
//! around: the kernel hands a flow's packets out by the queue that its answers were written to, so that a flow whose
//! packets come and go by one shard stays there.
//!
//! A queue with a virtio header says in it what the kernel left undone on a packet, and takes the same from us. A
//! queue without one gives finished packets and takes them: what is left undone is done here, packet by packet, and so is
//! it for UDP super-packets that an older kernel refuses.

use super::standing::{Found, Standing};
use crate::sys::epoll::Poller;
use crate::sys::tun;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use tidegate_stack::frame::{Batch, Frame, LARGE, Offload, Segmentation, Segments, VIRTIO_HEADER_LENGTH};
use tidegate_stack::plan::PortId;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Headers;

/// What a batch holds at most, though more could be read: what was read is still in the processor's cache when it is
/// sealed, which takes some 0.2 ms, and then others have their turn.
pub(super) const BATCH_BYTES: usize = 256 * 1024;

/// Packets up to this length are written behind their virtio header in one piece: what the kernel does about a second piece
/// takes longer than the copy.
const SHORT: usize = 512;

/// A shard's queues of one port's device.
pub(super) struct Port {
    id: PortId,
    /// Packets are written here.
    writes: OwnedFd,
    /// Packets are read here: from none when there are more shards than queues.
    reads: Vec<Source>,
    vnet_header: bool,
    /// The kernel takes UDP super-packets (Linux 6.2), until it refuses one.
    udp_segments: bool,
    polled: bool,
}

/// A queue that packets are read from.
struct Source {
    descriptor: OwnedFd,
    standing: Standing,
}

/// How a read of a port's queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Nothing is left to read.
    Drained,
    /// The batch is full, more may be waiting.
    More,
    /// The device is gone.
    Gone,
}

/// All queues of a shard, in the order of their ports.
pub(super) struct Ports {
    ports: Vec<Port>,
    /// The ports that the plan in force names, in order.
    named: Vec<PortId>,
    gone: Vec<PortId>,
    scratch: Scratch,
}

/// Where packets are made ready for a device.
struct Scratch {
    /// Cut, for devices that don't take super-packets.
    cut: Box<[u8]>,
    /// Behind their header.
    short: [u8; VIRTIO_HEADER_LENGTH + SHORT],
}

impl Port {
    /// Takes shard `shard`'s part, of `shards`, of a device's queues, as duplicates. They tell themselves whether they
    /// have virtio headers. Fails for anything but TUN queues, and for none.
    pub(super) fn new(id: PortId, queues: &[OwnedFd], shard: usize, shards: usize) -> io::Result<Self> {
        let place = shard.checked_rem(queues.len());
        let writes = place
            .and_then(|place| queues.get(place))
            .ok_or(io::ErrorKind::InvalidInput)?
            .try_clone()?;
        let features = tun::features(writes.as_fd())?;
        let reads = queues.iter().skip(shard).step_by(shards.max(1));
        let source = |queue: &OwnedFd| {
            Ok(Source {
                descriptor: queue.try_clone()?,
                standing: Standing::default(),
            })
        };
        let reads = reads.map(source).collect::<io::Result<Vec<_>>>()?;
        for queue in reads.iter().map(|source| &source.descriptor).chain([&writes]) {
            tun::features(queue.as_fd())?;
            rustix::io::ioctl_fionbio(queue, true)?;
        }
        Ok(Self {
            id,
            writes,
            reads,
            vnet_header: features.vnet_header,
            udp_segments: features.vnet_header,
            polled: false,
        })
    }

    fn read(&self, queue: usize, batch: &mut Batch) -> Read {
        let Some(queue) = self.reads.get(queue) else {
            return Read::Drained;
        };
        let header = if self.vnet_header { VIRTIO_HEADER_LENGTH } else { 0 };
        let mut bytes = 0;
        while let Some(frame) = batch.vacant() {
            let length = match rustix::io::read(&queue.descriptor, frame.receive_buffer(header)) {
                Ok(length) => length,
                Err(Errno::AGAIN) => return Read::Drained,
                Err(Errno::INTR) => continue,
                // EBADFD: the device was taken away with its namespace.
                Err(Errno::BADFD | Errno::NODEV) => return Read::Gone,
                // A packet that couldn't be handed out (EFAULT, EINVAL) is lost to the device; the next turn goes on.
                Err(_) => return Read::More,
            };
            bytes += length;
            let offload = if self.vnet_header {
                let read = frame.receive_buffer(header).first_chunk();
                match read.and_then(Offload::from_virtio) {
                    Some(offload) if length > header => offload,
                    // Of a kind that was never switched on, or nothing behind the header.
                    Some(_) | None if bytes < BATCH_BYTES => continue,
                    Some(_) | None => return Read::More,
                }
            } else {
                Offload::NONE
            };
            frame.set_received(length.saturating_sub(header), offload);
            batch.advance();
            if bytes >= BATCH_BYTES {
                return Read::More;
            }
        }
        Read::More
    }

    fn write(&mut self, frame: &Frame, scratch: &mut Scratch) -> Result<(), Errno> {
        let udp = matches!(frame.offload.segmentation, Segmentation::Udp { .. });
        if !self.vnet_header || (udp && !self.udp_segments) {
            return self.write_cut(frame, scratch);
        }
        match self.write_whole(frame.packet(), frame.offload, &mut scratch.short) {
            Err(Errno::INVAL) if udp => {
                // The same packet cut says whether the kernel or the packet is to blame.
                self.write_cut(frame, scratch)?;
                self.udp_segments = false;
                Ok(())
            }
            other => other,
        }
    }

    fn write_whole(&self, packet: &[u8], offload: Offload, short: &mut [u8]) -> Result<(), Errno> {
        if !self.vnet_header {
            return rustix::io::write(&self.writes, packet).map(drop);
        }
        let header = virtio_header(packet, offload);
        let written = match short.get_mut(..header.len() + packet.len()) {
            Some(whole) => {
                let (front, rest) = whole.split_at_mut(header.len());
                front.copy_from_slice(&header);
                rest.copy_from_slice(packet);
                rustix::io::write(&self.writes, whole)
            }
            None => rustix::io::writev(&self.writes, &[IoSlice::new(&header), IoSlice::new(packet)]),
        };
        written.map(drop)
    }

    fn write_cut(&self, frame: &Frame, scratch: &mut Scratch) -> Result<(), Errno> {
        if frame.offload == Offload::NONE {
            return self.write_whole(frame.packet(), Offload::NONE, &mut scratch.short);
        }
        let headers = Headers::parse(frame.packet()).map_err(|_| Errno::INVAL)?;
        let mut segments =
            Segments::new(frame.packet(), &headers, frame.offload).map_err(|_| Errno::INVAL)?;
        while segments.remaining() > 0 {
            let length = segments.write_next(&mut scratch.cut);
            let packet = scratch.cut.get(..length).filter(|packet| !packet.is_empty());
            self.write_whole(packet.ok_or(Errno::INVAL)?, Offload::NONE, &mut scratch.short)?;
        }
        Ok(())
    }

    /// Polls what is read of it, or no longer does.
    fn poll(&mut self, wanted: bool, poller: &Poller) -> io::Result<()> {
        if wanted == self.polled {
            return Ok(());
        }
        self.polled = wanted;
        for (number, source) in self.reads.iter().enumerate() {
            match wanted {
                true => poller.add(source.descriptor.as_fd(), token(self.id, number))?,
                false => poller.remove(source.descriptor.as_fd())?,
            }
        }
        Ok(())
    }
}

/// What stands for a queue in the poller.
fn token(port: PortId, queue: usize) -> u64 {
    u64::from(port.0) | (queue as u64) << 32
}

/// The port, and which of its queues, that a token stands for.
pub(super) fn of_token(token: u64) -> (PortId, usize) {
    (PortId(token as u32), (token >> 32) as usize)
}

impl Ports {
    /// No ports.
    pub(super) fn new() -> Self {
        Self {
            ports: Vec::new(),
            named: Vec::new(),
            gone: Vec::new(),
            scratch: Scratch {
                cut: vec![0; LARGE].into_boxed_slice(),
                short: [0; VIRTIO_HEADER_LENGTH + SHORT],
            },
        }
    }

    /// Takes a port's queues, polled as soon as a plan names it. Former queues of the same port are closed.
    pub(super) fn add(&mut self, mut port: Port, poller: &Poller) -> io::Result<()> {
        self.remove(port.id, poller)?;
        let named = self.named.binary_search(&port.id).is_ok();
        port.poll(named, poller)?;
        let place = self
            .ports
            .binary_search_by_key(&port.id, |port| port.id)
            .unwrap_or_else(|place| place);
        self.ports.insert(place, port);
        Ok(())
    }

    /// Closes a port's queues, when there are some.
    pub(super) fn remove(&mut self, id: PortId, poller: &Poller) -> io::Result<()> {
        if let Some(place) = self.place(id) {
            self.ports.remove(place).poll(false, poller)?;
        }
        Ok(())
    }

    /// Polls the queues of these ports (in order) and no others.
    pub(super) fn poll_only(&mut self, named: Vec<PortId>, poller: &Poller) -> io::Result<()> {
        self.named = named;
        for port in &mut self.ports {
            let named = self.named.binary_search(&port.id).is_ok();
            port.poll(named, poller)?;
        }
        Ok(())
    }

    /// Reads from a port's queue until it is empty or the batch is full.
    pub(super) fn read(&mut self, id: PortId, queue: usize, batch: &mut Batch) -> Read {
        match self.place(id).and_then(|place| self.ports.get(place)) {
            Some(port) => port.read(queue, batch),
            None => Read::Drained,
        }
    }

    /// Notes what turn number `turn` found in a port's queue; whether one of its senders is to be told that it stands.
    pub(super) fn stands(&mut self, id: PortId, queue: usize, turn: u64, found: Found, now: Instant) -> bool {
        let port = self.place(id).and_then(|place| self.ports.get_mut(place));
        let source = port.and_then(|port| port.reads.get_mut(queue));
        source.is_some_and(|source| source.standing.note(turn, found, now))
    }

    /// Writes a packet to a port. False when the device didn't take it.
    pub(super) fn write(&mut self, id: PortId, frame: &Frame) -> bool {
        let Some(port) = self.place(id).and_then(|place| self.ports.get_mut(place)) else {
            return false;
        };
        match port.write(frame, &mut self.scratch) {
            Ok(()) => true,
            Err(Errno::BADFD | Errno::NODEV) => {
                self.note_gone(id);
                false
            }
            Err(_) => false,
        }
    }

    /// Remembers that a port's device is gone.
    pub(super) fn note_gone(&mut self, id: PortId) {
        if !self.gone.contains(&id) {
            self.gone.push(id);
        }
    }

    /// The next port whose device is gone: its queue is closed here.
    pub(super) fn poll_gone(&mut self, poller: &Poller) -> Option<PortId> {
        let id = self.gone.pop()?;
        if let Err(error) = self.remove(id, poller) {
            tracing::warn!(port = id.0, %error, "the queue of a dead device can't be removed from epoll");
        }
        Some(id)
    }

    fn place(&self, id: PortId) -> Option<usize> {
        self.ports.binary_search_by_key(&id, |port| port.id).ok()
    }
}

/// The header for a packet: the kernel takes the length of the headers in it as what it should lay out in one piece.
fn virtio_header(packet: &[u8], offload: Offload) -> [u8; VIRTIO_HEADER_LENGTH] {
    let ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let start = match offload.partial_checksum {
        Some((start, _)) => start,
        None if ipv6 => 40,
        None => packet.first().map_or(20, |first| u16::from(first & 0xf) * 4),
    };
    let transport = match offload.segmentation {
        Segmentation::Tcp { .. } => packet
            .get(usize::from(start) + 12)
            .map_or(20, |offset| u16::from(offset >> 4) * 4),
        Segmentation::Udp { .. } => 8,
        Segmentation::None => 0,
    };
    offload.to_virtio(start.saturating_add(transport), ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::bed::{self, Bed};
    use crate::sys::netns;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// An instance at 10.77.0.`host`.
    fn instance(test: &str, host: u8, vnet_header: bool) -> (Bed, OwnedFd) {
        let address = Ipv4Addr::new(10, 77, 0, host).into();
        bed::instance(&format!("{test}{host}"), address, 24, 1400, vnet_header)
    }

    /// Two instances, and what one TCP stream moves between them; gives the largest packet that was read.
    fn stream_between(test: &str, near_header: bool, far_header: bool) -> usize {
        const BYTES: usize = 4 << 20;
        let (near, near_queue) = instance(test, 1, near_header);
        let (far, far_queue) = instance(test, 2, far_header);
        let poller = Poller::new(4).unwrap();
        let mut ports = Ports::new();
        let (near_port, far_port) = (PortId(3), PortId(8));
        ports
            .add(Port::new(far_port, &[far_queue], 0, 1).unwrap(), &poller)
            .unwrap();
        ports
            .add(Port::new(near_port, &[near_queue], 0, 1).unwrap(), &poller)
            .unwrap();

        let done = AtomicBool::new(false);
        let mut largest = 0;
        std::thread::scope(|scope| {
            let address = SocketAddr::from((Ipv4Addr::new(10, 77, 0, 2), 7000));
            let listener = netns::within(far.namespace(), || TcpListener::bind(address))
                .unwrap()
                .unwrap();
            let done = &done;
            let receiver = scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                done.store(true, Ordering::Relaxed);
                bytes
            });
            let near = near.namespace();
            scope.spawn(move || {
                let send = || -> io::Result<()> {
                    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
                    stream.write_all(&vec![0xa5; BYTES])
                };
                netns::within(near, send).unwrap().unwrap();
            });
            let mut batch = Batch::new(32);
            while !done.load(Ordering::Relaxed) && !receiver.is_finished() {
                for (from, to) in [(near_port, far_port), (far_port, near_port)] {
                    batch.clear();
                    ports.read(from, 0, &mut batch);
                    for frame in batch.filled() {
                        largest = largest.max(frame.packet().len());
                        ports.write(to, frame);
                    }
                }
            }
            let bytes = receiver.join().unwrap();
            assert_eq!(bytes.len(), BYTES);
            assert!(bytes.iter().all(|byte| *byte == 0xa5));
        });
        largest
    }

    #[test]
    fn super_packets_pass_whole_between_devices_with_a_virtio_header() {
        if bed::is_root() {
            assert!(stream_between("w", true, true) > 1400);
        }
    }

    #[test]
    fn super_packets_are_cut_and_summed_for_a_device_without_a_virtio_header() {
        if bed::is_root() {
            assert!(stream_between("c", true, false) > 1400);
            assert!(stream_between("p", false, false) <= 1400);
        }
    }

    #[test]
    fn a_port_whose_namespace_died_is_gone_and_no_longer_polled() {
        if !bed::is_root() {
            return;
        }
        let (instance, queue) = instance("g", 1, true);
        let held_elsewhere = queue.try_clone().unwrap();
        let mut poller = Poller::new(4).unwrap();
        let mut ports = Ports::new();
        let id = PortId(5);
        ports.poll_only(vec![id], &poller).unwrap();
        ports
            .add(Port::new(id, &[queue], 0, 1).unwrap(), &poller)
            .unwrap();
        drop(instance);
        // The kernel takes namespaces down in its own time, and may have sent packets before.
        let mut batch = Batch::new(1);
        let broken = (0..1000).find_map(|_| {
            poller.wait(Some(Duration::from_millis(10))).unwrap();
            let readiness = poller.readiness(0)?;
            if !readiness.broken {
                batch.clear();
                ports.read(id, 0, &mut batch);
            }
            readiness.broken.then_some(readiness)
        });
        assert_eq!(broken.map(|readiness| readiness.token), Some(5));
        batch.clear();
        assert_eq!(ports.read(id, 0, &mut batch), Read::Gone);
        let frame = Frame::from_packet(&[0x45; 40], Offload::NONE);
        assert!(!ports.write(id, &frame));
        assert_eq!(ports.poll_gone(&poller), Some(id));
        assert_eq!(ports.poll_gone(&poller), None);
        poller.wait(Some(Duration::from_millis(10))).unwrap();
        assert_eq!(poller.ready(), 0);
        drop(held_elsewhere);
    }

    #[test]
    fn only_named_ports_are_polled() {
        if !bed::is_root() {
            return;
        }
        let (instance, queue) = instance("n", 1, true);
        let mut poller = Poller::new(4).unwrap();
        let mut ports = Ports::new();
        let id = PortId(5);
        ports
            .add(Port::new(id, &[queue], 0, 1).unwrap(), &poller)
            .unwrap();
        let send = || {
            let socket = std::net::UdpSocket::bind("10.77.0.1:0").unwrap();
            socket.send_to(b"hello", "10.77.0.9:9").unwrap();
        };
        netns::within(instance.namespace(), send).unwrap();
        poller.wait(Some(Duration::from_millis(10))).unwrap();
        assert_eq!(poller.ready(), 0);
        ports.poll_only(vec![PortId(4), id], &poller).unwrap();
        poller.wait(Some(Duration::from_millis(1000))).unwrap();
        assert_eq!(poller.readiness(0).map(|readiness| readiness.token), Some(5));
        let mut batch = Batch::new(32);
        assert_eq!(ports.read(id, 0, &mut batch), Read::Drained);
        assert!(
            batch
                .filled()
                .iter()
                .any(|frame| frame.packet().ends_with(b"hello"))
        );
        ports.poll_only(vec![PortId(4)], &poller).unwrap();
        netns::within(instance.namespace(), send).unwrap();
        poller.wait(Some(Duration::from_millis(10))).unwrap();
        assert_eq!(poller.ready(), 0);
    }
}
