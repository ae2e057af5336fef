//! Packets in memory: owned buffers with room on both sides, and what the kernel left undone on them.
//!
//! A [`Frame`] is `[headroom │ packet │ tail]`. A packet is always an IP packet (no Ethernet header); it may be a
//! *super-packet*, a run of segments of one flow that travels as one packet of up to 64 KiB with a partial checksum
//! ([`Offload`], the virtio network header). [`Segments`] cuts a super-packet into packets of the path's size,
//! [`Coalescer`] glues packets of one flow to a super-packet again, [`fragment`] is for the rare packet that has to be
//! fragmented.

pub mod checksum;
mod coalesce;
pub mod fragment;
mod offload;
mod pool;
mod segments;

pub use coalesce::{Coalescer, Deliver};
pub use offload::{Offload, Segmentation, VIRTIO_HEADER_LENGTH};
pub use pool::{FramePool, PoolSizes};
pub use segments::Segments;

/// Bytes before the packet of a frame that was just filled: room for headers that are put in front, and for the
/// virtio header that a TUN device puts there.
pub const HEADROOM: usize = 128;
/// Room for a packet in a small frame.
pub const SMALL: usize = 2048;
/// Room for a packet in a large frame: the largest IP packet.
pub const LARGE: usize = 65_536;

/// An owned buffer with a packet in it. It has no handle to the pool it came from: the shard recycles it.
pub struct Frame {
    buffer: Box<[u8]>,
    start: usize,
    length: usize,
    /// What is left to do on the packet, and how it is to be cut.
    pub offload: Offload,
}

impl Frame {
    /// An empty frame with room for a packet of `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let buffer = vec![0; HEADROOM + capacity].into_boxed_slice();
        Self {
            buffer,
            start: HEADROOM,
            length: 0,
            offload: Offload::NONE,
        }
    }

    /// A frame that holds a copy of `packet`.
    pub fn from_packet(packet: &[u8], offload: Offload) -> Self {
        let mut frame = Self::with_capacity(packet.len().max(SMALL));
        frame.fill(packet, offload);
        frame
    }

    /// Copies `packet` in at the headroom; what doesn't fit is cut off (callers choose a frame that fits).
    pub fn fill(&mut self, packet: &[u8], offload: Offload) {
        let length = packet.len().min(self.capacity());
        self.start = HEADROOM;
        self.length = length;
        self.offload = offload;
        self.buffer[HEADROOM..HEADROOM + length].copy_from_slice(&packet[..length]);
    }

    /// The largest packet that fits behind the headroom.
    pub fn capacity(&self) -> usize {
        self.buffer.len() - HEADROOM
    }

    /// The packet.
    pub fn packet(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.length]
    }

    /// The packet, to change in place.
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.length]
    }

    /// Where a device writes: `header` bytes of headroom (at most [`HEADROOM`]), then room for the packet. What was
    /// written is told with [`Frame::set_received`].
    pub fn receive_buffer(&mut self, header: usize) -> &mut [u8] {
        &mut self.buffer[HEADROOM - header..]
    }

    /// Says that a packet of `length` bytes stands behind the headroom.
    pub fn set_received(&mut self, length: usize, offload: Offload) {
        self.start = HEADROOM;
        self.length = length.min(self.capacity());
        self.offload = offload;
    }

    /// Cuts off what stands behind the first `length` bytes of the packet: padding isn't part of it.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Appends bytes to the packet. False, and nothing is done, when they don't fit.
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.start + self.length;
        let Some(room) = self.buffer.get_mut(end..end + bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.length += bytes.len();
        true
    }

    /// How many more bytes [`Frame::append`] takes.
    pub fn tail(&self) -> usize {
        self.buffer.len() - self.start - self.length
    }
}

/// Frames that a device fills and the shard works through; they stay in the batch, so the steady state moves no
/// buffer. Bounded: made once with its number of frames.
pub struct Batch {
    frames: Vec<Frame>,
    filled: usize,
}

impl Batch {
    /// A batch of `count` frames with room for the largest packet each.
    pub fn new(count: usize) -> Self {
        Self {
            frames: (0..count).map(|_| Frame::with_capacity(LARGE)).collect(),
            filled: 0,
        }
    }

    /// Forgets what was filled in.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// The next frame to fill; `None` when all are. Call [`Batch::advance`] when it holds a packet.
    pub fn vacant(&mut self) -> Option<&mut Frame> {
        self.frames.get_mut(self.filled)
    }

    /// Keeps the frame that [`Batch::vacant`] gave.
    pub fn advance(&mut self) {
        self.filled = (self.filled + 1).min(self.frames.len());
    }

    /// The filled frames, in the order of their arrival.
    pub fn filled(&mut self) -> &mut [Frame] {
        &mut self.frames[..self.filled]
    }

    /// Whether nothing is filled in.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Whether every frame is filled.
    pub fn is_full(&self) -> bool {
        self.filled == self.frames.len()
    }
}
