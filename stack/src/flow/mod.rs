//! Flows: what was decided about the first packet of a connection, and what is known about it since.
//!
//! One entry serves both directions. It carries the epoch of the policy it was judged under; a packet that finds
//! another epoch has the flow judged again before it goes on.

mod half_open;
mod index;
mod quota;
mod table;
mod tcp;
mod tracking;

pub use quota::{LimitSlot, Owners, QuotaSlot, Quotas};
pub use table::{FlowIndex, FlowTable, Passing};
pub use tcp::{Connection, Segment, Stage, Step};
pub use tracking::Tracking;

use crate::drop::DropReason;
use crate::overlay::{Encap, Neighbours};
use crate::plan::{HostOrdinal, PeerId, PortId, Vni, vtep_address};
use crate::snapshot::PortSlot;
use crate::time::Instant;
use crate::wire::vxlan::EtherType;
use crate::wire::{Direction, Endpoints, FlowKey, MacAddr};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// An instance of this host.
    Port(PortId),
    /// A tunnel.
    Tunnel(PeerId),
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// An instance of this host: the port's place in the policy of the verdict's epoch.
    Port(PortSlot),
    /// Through the tunnel to a peer.
    Tunnel(PeerId),
}

/// What answers a packet for the appliance itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// ICMP echo.
    Echo,
    /// DNS in a datagram.
    DnsDatagram,
    /// A segment of a connection for DNS.
    DnsSegment,
}

/// What is done with the packets of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// They go on: those of the side that began, and those of the other side.
    Forward {
        /// Where the first packet goes, and all in its direction.
        original: Hop,
        /// Where replies go.
        reply: Hop,
    },
    /// The appliance answers by itself; no flow is kept.
    Answer(Answer),
    /// They are dropped; no flow is kept.
    Deny(DropReason),
    /// They are dropped, and their sender is told so; no flow is kept.
    Reject(DropReason),
}

/// What is known beforehand about the headers of packets that leave by a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelHeaders {
    /// The IPv4 addresses that the MAC addresses are made of: of the near end, and of the far one.
    pub ends: [Ipv4Addr; 2],
    /// The far host.
    pub host: HostOrdinal,
    /// Where the neighbour cache had the far end last. `None` towards a host of the site: the MAC address is there.
    pub neighbour: Option<u32>,
}

impl TunnelHeaders {
    /// Towards a host of the site, or towards a foreign peer, whose neighbours' MAC addresses must be asked for.
    pub fn new(ends: [Ipv4Addr; 2], host: HostOrdinal, of_site: bool) -> Self {
        Self {
            ends,
            host,
            neighbour: (!of_site).then_some(Neighbours::NOWHERE),
        }
    }

    /// The headers of a packet from this host, without lengths; towards a foreign peer without the neighbour's MAC
    /// address too.
    pub fn encap(&self, own: HostOrdinal, vni: Vni, endpoints: &Endpoints) -> Encap {
        let ether_type = if endpoints.source.is_ipv6() {
            EtherType::Ipv6
        } else {
            EtherType::Ipv4
        };
        let [near, far] = self.ends;
        let mut encap = Encap::new(
            vtep_address(own),
            vtep_address(self.host),
            vni,
            MacAddr::of(near),
            ether_type,
            endpoints.source_port ^ endpoints.destination_port.rotate_left(5),
        );
        if self.neighbour.is_none() {
            encap.set_destination(MacAddr::of(far));
        }
        encap
    }
}

/// A live flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its name.
    pub key: FlowKey,
    /// The policy it was judged under.
    pub epoch: u64,
    /// When its last packet came.
    pub seen: Instant,
    /// Packets of the opener, and of the other side (a super-packet counts as the segments it stands for).
    pub packets: [u64; 2],
    /// Bytes of their IP packets.
    pub bytes: [u64; 2],
    /// State by protocol.
    pub tracking: Tracking,
    /// Next hop of packets of the opener, and of the other side.
    pub hops: [Hop; 2],
    /// For the direction that leaves by a tunnel, if one does.
    pub tunnel: Option<TunnelHeaders>,
    /// Who began.
    pub origin: Arrival,
    /// Where it lives, and by which of a peer's lanes it goes ([`home`](crate::wire::home)).
    pub home: u32,
    /// Where it is counted.
    pub owners: Owners,
    /// The direction of the first packet.
    pub opener: Direction,
    /// A new policy denies it. It is remembered for a while, so that nobody takes it for one that the table doesn't know.
    pub revoked: bool,
}

/// How long a flow is remembered that a new policy denies: as long as connections are picked up in their middle.
pub(crate) const PICK_UP: Duration = Duration::from_secs(30);

impl Flow {
    /// The next hop of a packet that goes in `direction`.
    pub fn hop(&self, direction: Direction) -> Hop {
        self.hops[usize::from(self.is_reply(direction))]
    }

    /// Whether packets that go in `direction` are of the side that didn't begin.
    pub fn is_reply(&self, direction: Direction) -> bool {
        direction != self.opener
    }

    /// When it is forgotten unless another packet comes.
    pub fn expires(&self) -> Instant {
        if self.revoked {
            self.seen + PICK_UP
        } else {
            self.seen + self.tracking.timeout()
        }
    }
}
