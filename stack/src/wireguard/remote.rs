//! The lanes of peers, as a plan says them.

use super::TunnelPlace;
use crate::egress::LaneKind;
use crate::plan::{PresharedKey, PublicKey, Reach};
use std::net::SocketAddr;

/// The lanes of one start of a peer's datapath.
pub(super) struct Generation {
    /// `None`: a foreign peer's.
    pub(super) number: Option<u64>,
    /// At least one.
    pub(super) lanes: Vec<RemoteLane>,
}

/// One WireGuard endpoint of a peer.
pub(super) struct RemoteLane {
    pub(super) keys: Keys,
    /// Where the plan says it is.
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) tunnel: Option<TunnelPlace>,
}

/// What a tunnel is made of: it lives as long as they don't change.
#[derive(PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) keepalive: Option<u16>,
}

impl Generation {
    /// Which of its lanes packets with this home go to.
    #[inline]
    pub(super) fn lane_of(&self, home: u32) -> usize {
        home as usize % self.lanes.len().max(1)
    }
}

/// The lanes of a peer, newest generation first, and which lane of ours leads there.
pub(super) fn planned(reach: &Reach) -> (LaneKind, Vec<Generation>) {
    match reach {
        Reach::Foreign(planned) => {
            let lane = RemoteLane {
                keys: Keys {
                    public_key: planned.public_key,
                    preshared_key: planned.preshared_key.clone(),
                    keepalive: planned.keepalive,
                },
                endpoint: planned.endpoint,
                tunnel: None,
            };
            let only = Generation {
                number: None,
                lanes: vec![lane],
            };
            (LaneKind::Foreign, vec![only])
        }
        Reach::Site(planned) => {
            let lane = |lane: &crate::plan::RemoteLane| RemoteLane {
                keys: Keys {
                    public_key: lane.public_key,
                    preshared_key: None,
                    keepalive: None,
                },
                endpoint: Some(lane.endpoint),
                tunnel: None,
            };
            let mut generations: Vec<Generation> = planned
                .iter()
                .filter(|generation| !generation.lanes.is_empty())
                .map(|generation| Generation {
                    number: Some(generation.number),
                    lanes: generation.lanes.iter().map(lane).collect(),
                })
                .collect();
            generations.sort_by_key(|generation| std::cmp::Reverse(generation.number));
            (LaneKind::Site, generations)
        }
    }
}
