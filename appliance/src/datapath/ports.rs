//! A shard's queues of the ports' TUN devices: super-packets are read and written whole.
//!
//! A queue with a virtio header says in it what the kernel left undone on a packet, and takes the same from us. A
//! queue without one gives finished packets and takes them: what is left undone is done here, packet by packet, and so is
//! it for UDP super-packets that an older kernel refuses.

use crate::sys::epoll::Poller;
use crate::sys::tun;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use tidegate_stack::frame::{Batch, Frame, LARGE, Offload, Segmentation, Segments, VIRTIO_HEADER_LENGTH};
use tidegate_stack::plan::PortId;
use tidegate_stack::wire::Headers;

/// A batch is handed over when it holds this much, though more could be read: what was read is still in the
/// processor's cache when it is sealed.
const BATCH_BYTES: usize = 256 * 1024;

/// One queue of one port's device.
pub(super) struct Port {
    queue: OwnedFd,
    id: PortId,
    vnet_header: bool,
    /// The kernel takes UDP super-packets (Linux 6.2), until it refuses one.
    udp_segments: bool,
    polled: bool,
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
    /// Where packets are cut for devices that don't take super-packets.
    scratch: Box<[u8]>,
}

impl Port {
    /// Takes a queue, which tells itself whether it has virtio headers. Fails for anything but a TUN queue.
    pub(super) fn new(id: PortId, queue: OwnedFd) -> io::Result<Self> {
        let features = tun::features(queue.as_fd())?;
        rustix::io::ioctl_fionbio(&queue, true)?;
        Ok(Self {
            queue,
            id,
            vnet_header: features.vnet_header,
            udp_segments: features.vnet_header,
            polled: false,
        })
    }

    fn read(&self, batch: &mut Batch) -> Read {
        let header = if self.vnet_header { VIRTIO_HEADER_LENGTH } else { 0 };
        let mut bytes = 0;
        while let Some(frame) = batch.vacant() {
            let length = match rustix::io::read(&self.queue, frame.receive_buffer(header)) {
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

    fn write(&mut self, frame: &Frame, scratch: &mut [u8]) -> Result<(), Errno> {
        let udp = matches!(frame.offload.segmentation, Segmentation::Udp { .. });
        if !self.vnet_header || (udp && !self.udp_segments) {
            return self.write_cut(frame, scratch);
        }
        match self.write_whole(frame.packet(), frame.offload) {
            Err(Errno::INVAL) if udp => {
                // The same packet cut says whether the kernel or the packet is to blame.
                self.write_cut(frame, scratch)?;
                self.udp_segments = false;
                Ok(())
            }
            other => other,
        }
    }

    fn write_whole(&self, packet: &[u8], offload: Offload) -> Result<(), Errno> {
        let header = virtio_header(packet, offload);
        let written = if self.vnet_header {
            rustix::io::writev(&self.queue, &[IoSlice::new(&header), IoSlice::new(packet)])
        } else {
            rustix::io::write(&self.queue, packet)
        };
        written.map(drop)
    }

    fn write_cut(&self, frame: &Frame, scratch: &mut [u8]) -> Result<(), Errno> {
        if frame.offload == Offload::NONE {
            return self.write_whole(frame.packet(), Offload::NONE);
        }
        let headers = Headers::parse(frame.packet()).map_err(|_| Errno::INVAL)?;
        let mut segments =
            Segments::new(frame.packet(), &headers, frame.offload).map_err(|_| Errno::INVAL)?;
        while segments.remaining() > 0 {
            let length = segments.write_next(scratch);
            let packet = scratch.get(..length).filter(|packet| !packet.is_empty());
            self.write_whole(packet.ok_or(Errno::INVAL)?, Offload::NONE)?;
        }
        Ok(())
    }
}

impl Ports {
    /// No ports.
    pub(super) fn new() -> Self {
        Self {
            ports: Vec::new(),
            named: Vec::new(),
            gone: Vec::new(),
            scratch: vec![0; LARGE].into_boxed_slice(),
        }
    }

    /// Takes a port's queue, polled as soon as a plan names it. A former queue of the same port is closed.
    pub(super) fn add(&mut self, mut port: Port, poller: &Poller) -> io::Result<()> {
        self.remove(port.id, poller)?;
        if self.named.binary_search(&port.id).is_ok() {
            poller.add(port.queue.as_fd(), u64::from(port.id.0))?;
            port.polled = true;
        }
        let place = self
            .ports
            .binary_search_by_key(&port.id, |port| port.id)
            .unwrap_or_else(|place| place);
        self.ports.insert(place, port);
        Ok(())
    }

    /// Closes a port's queue, when there is one.
    pub(super) fn remove(&mut self, id: PortId, poller: &Poller) -> io::Result<()> {
        if let Some(place) = self.place(id) {
            let port = self.ports.remove(place);
            if port.polled {
                poller.remove(port.queue.as_fd())?;
            }
        }
        Ok(())
    }

    /// Polls the queues of these ports (in order) and no others.
    pub(super) fn poll_only(&mut self, named: Vec<PortId>, poller: &Poller) -> io::Result<()> {
        self.named = named;
        for port in &mut self.ports {
            let wanted = self.named.binary_search(&port.id).is_ok();
            if wanted && !port.polled {
                poller.add(port.queue.as_fd(), u64::from(port.id.0))?;
            } else if !wanted && port.polled {
                poller.remove(port.queue.as_fd())?;
            }
            port.polled = wanted;
        }
        Ok(())
    }

    /// Reads from a port until its queue is empty or the batch is full.
    pub(super) fn read(&mut self, id: PortId, batch: &mut Batch) -> Read {
        match self.place(id).and_then(|place| self.ports.get(place)) {
            Some(port) => port.read(batch),
            None => Read::Drained,
        }
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
