//! When connections are picked up in their middle: for half a minute after this shard's first plan, and, with a peer, after
//! a new start of its datapath was heard of. Connections outlive the tables that knew them.

use crate::flow::PICK_UP;
use crate::plan::PeerId;
use crate::snapshot::Lanes;
use crate::time::Instant;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

/// Since when connections may be in their middle that nobody here knows.
#[derive(Default)]
pub(super) struct PickUp {
    first_plan: Option<Instant>,
    /// The newest datapath generation of each peer, and when it was seen first.
    peers: HashMap<PeerId, (u64, Instant), FixedState>,
}

impl PickUp {
    /// A plan is in force.
    pub(super) fn install(&mut self, lanes: &Lanes, now: Instant) {
        self.first_plan.get_or_insert(now);
        let former = std::mem::take(&mut self.peers);
        for peer in &lanes.peers {
            let Some(newest) = peer.reach.newest_generation() else {
                continue;
            };
            let known = former.get(&peer.id).copied();
            let seen = known.filter(|(generation, _)| *generation == newest);
            self.peers.insert(peer.id, seen.unwrap_or((newest, now)));
        }
    }

    /// Whether a connection with a peer, or of this host alone, may be picked up.
    pub(super) fn is_open(&self, peer: Option<PeerId>, now: Instant) -> bool {
        let recent = |since: Instant| now.saturating_since(since) < PICK_UP;
        let peer = peer.and_then(|peer| self.peers.get(&peer));
        self.first_plan.is_some_and(recent) || peer.is_some_and(|(_, since)| recent(*since))
    }
}
