//! Flows: what was decided about the first packet of a connection, and what is known about it since.
//!
//! One entry serves both directions. It carries the epoch of the policy it was judged under; a packet that finds
//! another epoch has the flow judged again before it goes on.

mod quota;
mod table;
mod tracking;

pub use quota::{QuotaSlot, Quotas};
pub use table::{FlowIndex, FlowTable};
pub use tracking::Tracking;

use crate::drop::DropReason;
use crate::overlay::Encap;
use crate::plan::{PeerId, PortId};
use crate::snapshot::PortSlot;
use crate::time::Instant;
use crate::wire::{Direction, FlowKey};
use serde::{Deserialize, Serialize};

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
    /// ICMP port unreachable.
    PortUnreachable,
    /// TCP reset.
    Reset,
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

/// What is prepared for the packets of a flow that leave by a tunnel.
#[derive(Clone, Debug)]
pub struct TunnelHeaders {
    /// The headers, without lengths; towards a foreign peer without the neighbour's MAC address too.
    pub encap: Encap,
    /// Where the neighbour cache had the far end last. `None` towards a host of the site: the MAC address is there.
    pub neighbour: Option<u32>,
}

/// A live flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its name.
    pub key: FlowKey,
    /// Where it lives, and by which of a peer's lanes it goes ([`home`](crate::wire::home)).
    pub home: u32,
    /// Where it is counted.
    pub quota: QuotaSlot,
    /// The policy it was judged under.
    pub epoch: u64,
    /// Who began.
    pub origin: Arrival,
    /// The direction of the first packet.
    pub opener: Direction,
    /// Next hop of packets of the opener, and of the other side.
    pub hops: [Hop; 2],
    /// For the direction that leaves by a tunnel, if one does.
    pub tunnel: Option<TunnelHeaders>,
    /// State by protocol.
    pub tracking: Tracking,
    /// When it is forgotten unless another packet comes.
    pub expires: Instant,
}

impl Flow {
    /// The next hop of a packet that goes in `direction`.
    pub fn hop(&self, direction: Direction) -> Hop {
        self.hops[usize::from(direction != self.opener)]
    }
}
