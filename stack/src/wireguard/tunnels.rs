//! The tunnels of a shard, and the indices by which far ends name them.

use super::{ReceiverIndex, Tunnel, TunnelIndex};
use crate::egress::LaneKind;
use crate::plan::PeerId;
use crate::stats::Traffic;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A tunnel, with what a shard keeps about it.
pub struct TunnelEntry {
    /// The session, over and over.
    pub tunnel: Box<dyn Tunnel>,
    /// The lane of ours that it leaves by; it takes nothing from the other one.
    pub lane: LaneKind,
    /// The peer.
    pub peer: PeerId,
    /// The peer's datapath generation; `None` for a foreign peer.
    pub generation: Option<u64>,
    /// The number of the peer's lane in that generation.
    pub remote: u8,
    /// Where the far end was last heard from; before that, where the plan says it is.
    pub endpoint: Option<SocketAddr>,
    /// What passed.
    pub traffic: Traffic,
    /// Its part of our receiver indices.
    pub(super) index: TunnelIndex,
}

impl TunnelEntry {
    /// How long ago its session was made, the longest time there is without one.
    pub(super) fn age(&self) -> Duration {
        self.tunnel.session_age().unwrap_or(Duration::MAX)
    }
}

/// A tunnel's place; it stays while the tunnel lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelPlace(u32);

/// The tunnels by place and by index. Indices are drawn, so that who doesn't listen can't name a session.
pub(super) struct Tunnels {
    entries: Vec<Option<TunnelEntry>>,
    free: Vec<u32>,
    by_index: HashMap<TunnelIndex, TunnelPlace, FixedState>,
    /// What indices are drawn from.
    state: u64,
}

impl Tunnels {
    /// Most tunnels: two generations of 64 lanes (as many as ports are set aside for) of 255 peers.
    pub(super) const CAPACITY: usize = 2 * 64 * 255;

    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_index: HashMap::with_hasher(FixedState::with_seed(seed)),
            state: seed,
        }
    }

    /// An index that no tunnel has; `None` when there is no room for another tunnel.
    pub(super) fn draw_index(&mut self) -> Option<TunnelIndex> {
        if self.by_index.len() >= Self::CAPACITY {
            return None;
        }
        loop {
            let index = TunnelIndex::from_low_bits((self.draw() >> 32) as u32);
            if !self.by_index.contains_key(&index) {
                return Some(index);
            }
        }
    }

    /// SplitMix64 (S. Vigna, public domain).
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn insert(&mut self, entry: TunnelEntry) -> TunnelPlace {
        let place = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            (self.entries.len() - 1) as u32
        });
        self.by_index.insert(entry.index, TunnelPlace(place));
        self.entries[place as usize] = Some(entry);
        TunnelPlace(place)
    }

    pub(super) fn remove(&mut self, place: TunnelPlace) -> Option<TunnelEntry> {
        let entry = self.entries.get_mut(place.0 as usize)?.take()?;
        self.by_index.remove(&entry.index);
        self.free.push(place.0);
        Some(entry)
    }

    /// Puts another tunnel, and its index, in the place of one.
    pub(super) fn replace(&mut self, place: TunnelPlace, index: TunnelIndex, tunnel: Box<dyn Tunnel>) {
        if let Some(entry) = self.entries.get_mut(place.0 as usize).and_then(Option::as_mut) {
            self.by_index.remove(&entry.index);
            self.by_index.insert(index, place);
            entry.index = index;
            entry.tunnel = tunnel;
        }
    }

    #[inline]
    pub(super) fn get(&self, place: TunnelPlace) -> Option<&TunnelEntry> {
        self.entries.get(place.0 as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: TunnelPlace) -> Option<&mut TunnelEntry> {
        self.entries.get_mut(place.0 as usize)?.as_mut()
    }

    /// The tunnel that a receiver index names, when it belongs to this lane.
    #[inline]
    pub(super) fn named(&self, receiver: ReceiverIndex, lane: LaneKind) -> Option<TunnelPlace> {
        let place = *self.by_index.get(&receiver.tunnel())?;
        (self.get(place)?.lane == lane).then_some(place)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut TunnelEntry> {
        self.entries.iter_mut().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::PlainTunnel;

    fn entry(tunnels: &mut Tunnels, lane: LaneKind) -> TunnelEntry {
        let index = tunnels.draw_index().unwrap();
        TunnelEntry {
            tunnel: Box::new(PlainTunnel::new(index, TunnelIndex::from_low_bits(1))),
            lane,
            peer: PeerId(1),
            generation: None,
            remote: 0,
            endpoint: None,
            traffic: Traffic::default(),
            index,
        }
    }

    #[test]
    fn a_tunnel_takes_nothing_from_another_lane() {
        let mut tunnels = Tunnels::new(1);
        let entry = entry(&mut tunnels, LaneKind::Site);
        let receiver = ReceiverIndex::of(entry.index);
        let place = tunnels.insert(entry);
        assert_eq!(tunnels.named(receiver, LaneKind::Site), Some(place));
        assert_eq!(tunnels.named(receiver, LaneKind::Foreign), None);
        assert!(tunnels.remove(place).is_some());
        assert_eq!(tunnels.named(receiver, LaneKind::Site), None);
    }

    #[test]
    fn indices_differ_from_shard_to_shard_and_are_bounded() {
        let first = [1, 2].map(|seed| Tunnels::new(seed).draw_index().unwrap());
        assert_ne!(first[0], first[1]);
        let mut tunnels = Tunnels::new(1);
        for _ in 0..Tunnels::CAPACITY {
            let entry = entry(&mut tunnels, LaneKind::Site);
            tunnels.insert(entry);
        }
        assert_eq!(tunnels.by_index.len(), Tunnels::CAPACITY);
        assert_eq!(tunnels.draw_index(), None);
    }
}
