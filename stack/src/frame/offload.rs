//! What the kernel left undone on a packet: the virtio network header (Virtual I/O Device 1.2 §5.1.6).

use crate::wire::{Headers, Transport};

/// Length of the header in front of every packet of a TUN device opened with `IFF_VNET_HDR`, little-endian
/// (`TUNSETVNETLE`), without the `num_buffers` field.
pub const VIRTIO_HEADER_LENGTH: usize = 10;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const TYPE_NONE: u8 = 0;
const TYPE_TCP4: u8 = 1;
const TYPE_UDP_FRAGMENTS: u8 = 3;
const TYPE_TCP6: u8 = 4;
const TYPE_UDP_SEGMENTS: u8 = 5;
const TYPE_ECN: u8 = 0x80;

/// Where the checksum stands in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in a UDP header.
pub(super) const UDP_CHECKSUM: usize = 6;

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Segmentation {
    /// It isn't: the packet is one.
    #[default]
    None,
    /// TCP segments of the given payload length (TSO). With `cwr`, the CWR flag stands on the first segment only.
    Tcp {
        /// Payload bytes of every segment but the last.
        size: u16,
        /// Whether the packet carries TCP ECN flags (RFC 3168 §6.1.2).
        ecn: bool,
    },
    /// UDP datagrams of the given payload length (USO).
    Udp {
        /// Payload bytes of every datagram but the last.
        size: u16,
    },
}

/// The unfinished business of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offload {
    /// How it is to be cut.
    pub segmentation: Segmentation,
    /// When the transport checksum is partial (the pseudo header's sum only): where the transport header starts, and
    /// where the checksum stands in it.
    pub partial_checksum: Option<(u16, u16)>,
}

impl Offload {
    /// Nothing left to do.
    pub const NONE: Self = Self {
        segmentation: Segmentation::None,
        partial_checksum: None,
    };

    /// Reads the header that a device put in front of a packet. `None` for a kind that was never switched on (UFO).
    /// `hdr_len` is not read: on a forwarding path it cannot be trusted.
    pub fn from_virtio(header: &[u8; VIRTIO_HEADER_LENGTH]) -> Option<Self> {
        let [
            flags,
            kind,
            _,
            _,
            size_low,
            size_high,
            start_low,
            start_high,
            offset_low,
            offset_high,
        ] = *header;
        let size = u16::from_le_bytes([size_low, size_high]);
        let segmentation = match kind & !TYPE_ECN {
            TYPE_NONE => Segmentation::None,
            TYPE_TCP4 | TYPE_TCP6 if size > 0 => Segmentation::Tcp {
                size,
                ecn: kind & TYPE_ECN != 0,
            },
            TYPE_UDP_SEGMENTS if size > 0 => Segmentation::Udp { size },
            TYPE_UDP_FRAGMENTS => return None,
            _ => return None,
        };
        let partial_checksum = (flags & FLAG_NEEDS_CHECKSUM != 0).then_some((
            u16::from_le_bytes([start_low, start_high]),
            u16::from_le_bytes([offset_low, offset_high]),
        ));
        Some(Self {
            segmentation,
            partial_checksum,
        })
    }

    /// Whether a packet with these headers can have been left so: it is cut by its own protocol, and a partial checksum
    /// is its transport's, or of something in its payload. Any other place would be written to after it was judged.
    /// Nothing is left undone on a fragment, and an IPv6 fragment header is of one packet.
    pub fn agrees_with(self, headers: &Headers) -> bool {
        if headers.transport == Transport::Fragment && self.partial_checksum.is_some()
            || headers.fragment.is_some() && self.segmentation != Segmentation::None
        {
            return false;
        }
        let (is_cut_right, checksum_at) = match (headers.transport, self.segmentation) {
            (Transport::Tcp { .. }, Segmentation::Tcp { size, .. }) => (size > 0, Some(TCP_CHECKSUM)),
            (Transport::Udp { .. }, Segmentation::Udp { size }) => (size > 0, Some(UDP_CHECKSUM)),
            (Transport::Tcp { .. }, segmentation) => (segmentation == Segmentation::None, Some(TCP_CHECKSUM)),
            (Transport::Udp { .. }, segmentation) => (segmentation == Segmentation::None, Some(UDP_CHECKSUM)),
            (_, segmentation) => (segmentation == Segmentation::None, None),
        };
        let is_placed_right = self.partial_checksum.is_none_or(|(start, offset)| {
            let (start, offset) = (usize::from(start), usize::from(offset));
            let is_own = start == headers.transport_offset && Some(offset) == checksum_at;
            (is_own || start >= headers.payload_offset) && start + offset + 2 <= headers.total_length
        });
        is_cut_right && is_placed_right
    }

    /// The header for a device. `header_length` is the length of all headers of the packet, `ipv6` its family.
    pub fn to_virtio(self, header_length: u16, ipv6: bool) -> [u8; VIRTIO_HEADER_LENGTH] {
        let (kind, size) = match self.segmentation {
            Segmentation::None => (TYPE_NONE, 0),
            Segmentation::Tcp { size, ecn } => (
                if ipv6 { TYPE_TCP6 } else { TYPE_TCP4 } | if ecn { TYPE_ECN } else { 0 },
                size,
            ),
            Segmentation::Udp { size } => (TYPE_UDP_SEGMENTS, size),
        };
        let (flags, start, offset) = match self.partial_checksum {
            Some((start, offset)) => (FLAG_NEEDS_CHECKSUM, start, offset),
            None => (0, 0, 0),
        };
        let [length_low, length_high] = if kind == TYPE_NONE {
            [0, 0]
        } else {
            header_length.to_le_bytes()
        };
        let [size_low, size_high] = size.to_le_bytes();
        let [start_low, start_high] = start.to_le_bytes();
        let [offset_low, offset_high] = offset.to_le_bytes();
        [
            flags,
            kind,
            length_low,
            length_high,
            size_low,
            size_high,
            start_low,
            start_high,
            offset_low,
            offset_high,
        ]
    }
}
