//! The peers of a shard: a tunnel each, the place where they were last heard from, and what waits for a session.

use super::{Lane, NoiseTunnel, Tunnel, TunnelIndex};
use crate::frame::Frame;
use crate::plan::{ForeignReach, HostOrdinal, PeerId, PresharedKey, PublicKey, Reach, Vni, vtep_address};
use crate::snapshot::{Lanes, Policy};
use crate::stats::Traffic;
use crate::time::Instant;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Packets that wait for a session with one peer.
pub const WAITING_FOR_SESSION: usize = 16;
/// How long they wait: Rekey-Attempt-Time (§6.1 of the paper).
const WAITING_TIME: Duration = Duration::from_secs(90);

/// A peer of this shard.
pub struct Peer {
    /// Its number.
    pub id: PeerId,
    /// Its VTEP address.
    pub vtep: Ipv4Addr,
    /// The session with it.
    pub tunnel: Box<dyn Tunnel>,
    /// Where it was last heard from; before that, where the plan says it is.
    pub endpoint: Option<SocketAddr>,
    /// Packets that wait for a session.
    waiting: VecDeque<(Vni, Frame)>,
    /// When the first of them began to.
    waiting_since: Instant,
    /// What passed.
    pub traffic: Traffic,
    keys: (PublicKey, Option<PresharedKey>, Option<u16>),
    planned_endpoint: Option<SocketAddr>,
}

/// The lane and all peers, by number and by key.
#[derive(Default)]
pub struct Peers {
    lane: Option<Lane>,
    peers: HashMap<PeerId, Peer, FixedState>,
    by_key: HashMap<PublicKey, PeerId, FixedState>,
}

impl Peers {
    /// Makes peers what a snapshot says, and keeps the tunnels of those whose keys didn't change. Frames that waited
    /// for peers that are gone come back.
    pub fn install(&mut self, policy: &Policy, lanes: &Lanes, now: Instant) -> Vec<Frame> {
        let lane = match self.lane.take() {
            Some(lane) if lane.public_key() == lanes.foreign_key.public_key() => lane,
            _ => {
                let lane = Lane::new(&lanes.foreign_key, now);
                self.by_key.clear();
                lane
            }
        };
        let keep_tunnels = !self.by_key.is_empty();
        let mut former = std::mem::take(&mut self.peers);
        let mut orphans = Vec::new();
        self.by_key.clear();
        for planned in &lanes.peers {
            let Some(entry) = policy.peer(planned.id) else {
                continue;
            };
            let (id, Reach::Foreign(planned)) = (planned.id, &planned.reach) else {
                continue;
            };
            let kept = match former.remove(&id) {
                Some(peer) if keep_tunnels && peer.has_keys_of(planned) => Some(peer),
                Some(peer) => {
                    orphans.extend(peer.waiting);
                    None
                }
                None => None,
            };
            let mut peer = kept.unwrap_or_else(|| Peer::new(&lane, id, planned, entry.ordinal, now));
            peer.vtep = vtep_address(entry.ordinal);
            if peer.planned_endpoint != planned.endpoint {
                peer.planned_endpoint = planned.endpoint;
                peer.endpoint = planned.endpoint.or(peer.endpoint);
            }
            self.by_key.insert(planned.public_key, id);
            self.peers.insert(id, peer);
        }
        self.lane = Some(lane);
        orphans.extend(former.into_values().flat_map(|peer| peer.waiting));
        orphans.into_iter().map(|(_, frame)| frame).collect()
    }

    /// The lane; `None` before the first plan.
    pub fn lane_mut(&mut self) -> Option<&mut Lane> {
        self.lane.as_mut()
    }

    /// The peer with this number.
    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(&id)
    }

    /// The number of the peer with this key.
    pub fn by_key(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// All peers.
    pub fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    /// All peers, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.values_mut()
    }
}

impl Peer {
    fn new(lane: &Lane, id: PeerId, planned: &ForeignReach, ordinal: HostOrdinal, now: Instant) -> Self {
        let preshared_key = planned.preshared_key.as_ref();
        let tunnel = NoiseTunnel::new(
            lane,
            TunnelIndex::from_low_bits(id.0),
            &planned.public_key,
            preshared_key,
            planned.keepalive,
            now,
        );
        Self {
            id,
            vtep: vtep_address(ordinal),
            tunnel: Box::new(tunnel),
            endpoint: planned.endpoint,
            waiting: VecDeque::with_capacity(WAITING_FOR_SESSION),
            waiting_since: now,
            traffic: Traffic::default(),
            keys: (
                planned.public_key,
                planned.preshared_key.clone(),
                planned.keepalive,
            ),
            planned_endpoint: planned.endpoint,
        }
    }

    /// Whether one more packet may wait for a session.
    pub fn may_wait(&self) -> bool {
        self.waiting.len() < WAITING_FOR_SESSION
    }

    /// Lets a packet wait for a session.
    pub fn wait(&mut self, vni: Vni, frame: Frame, now: Instant) {
        if self.waiting.is_empty() {
            self.waiting_since = now;
        }
        self.waiting.push_back((vni, frame));
    }

    /// What has waited for a session: there is one now.
    pub fn take_waiting(&mut self) -> VecDeque<(Vni, Frame)> {
        std::mem::take(&mut self.waiting)
    }

    /// The next packet that has waited too long.
    pub fn poll_given_up(&mut self, now: Instant) -> Option<Frame> {
        if now.saturating_since(self.waiting_since) < WAITING_TIME {
            return None;
        }
        self.waiting.pop_front().map(|(_, frame)| frame)
    }

    fn has_keys_of(&self, planned: &ForeignReach) -> bool {
        self.keys
            == (
                planned.public_key,
                planned.preshared_key.clone(),
                planned.keepalive,
            )
    }
}
