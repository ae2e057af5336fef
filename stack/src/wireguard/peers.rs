//! The peers of a shard: by which lanes each is reached, the tunnels there are with them, and what waits for a session.
//!
//! A shard has a lane of its own towards the site's hosts; shard 0 has the foreign lane beside it. A peer has one lane
//! (a foreign one), or those of its datapath's generations: one for each of its shards. A tunnel is one (own lane,
//! remote lane). The one with a foreign peer is made at once, one with a host of the site on first use.
//!
//! A packet goes by the newest generation's lane `home % lanes`, if there is a session with it; else by an older one's,
//! while the newest is asked for a session. So a new datapath takes over from an old one without a lost packet. A peer
//! that this shard has talked with is asked for one as soon as its new generation is known.

use super::remote::{self, Generation, RemoteLane};
use super::tunnels::{TunnelEntry, TunnelPlace, Tunnels};
use super::{Lane, NoiseTunnel, ReceiverIndex, Tunnel, TunnelIndex};
use crate::drop::DropReason;
use crate::egress::{LaneKind, ShardId};
use crate::frame::Frame;
use crate::plan::{PeerId, PrivateKey, PublicKey, Vni};
use crate::snapshot::{Lanes, Policy};
use crate::stats::{PeerReport, Traffic, TunnelReport};
use crate::time::Instant;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::num::NonZeroU8;
use std::time::Duration;

/// Packets that wait for a session with one peer.
pub const WAITING_FOR_SESSION: usize = 16;
/// How long they wait: Rekey-Attempt-Time (§6.1 of the paper).
const WAITING_TIME: Duration = Duration::from_secs(90);
/// Keys remembered of those who called before the plan knew them.
const STRANGERS: usize = 16;

/// The lanes, the peers and the tunnels of a shard.
pub struct Peers {
    shard: ShardId,
    shards: NonZeroU8,
    site: Lane,
    foreign: Option<Lane>,
    peers: HashMap<PeerId, Peer, FixedState>,
    by_key: HashMap<(LaneKind, PublicKey), RemoteAddress, FixedState>,
    tunnels: Tunnels,
    /// Who called in vain: a host's new generation that was faster than the news of it. Bounded; the oldest leaves.
    strangers: VecDeque<PublicKey>,
}

/// Where a remote lane stands among a peer's.
#[derive(Clone, Copy)]
struct RemoteAddress {
    peer: PeerId,
    generation: usize,
    lane: usize,
}

/// A peer.
struct Peer {
    /// Our lane towards it.
    lane: LaneKind,
    /// Newest first; each has a lane at least.
    generations: Vec<Generation>,
    /// Packets that wait for a session.
    waiting: VecDeque<(Vni, Frame)>,
    /// When the first of them began to.
    waiting_since: Instant,
    /// What passed by tunnels that are gone.
    traffic: Traffic,
}

/// What a change of the plan leaves to be done.
#[derive(Default)]
pub struct Installed {
    /// Frames that waited for peers that are gone.
    pub orphans: Vec<Frame>,
    /// Tunnels to ask for a session.
    pub greet: Vec<TunnelPlace>,
}

/// By which tunnel a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// One with a session; without one the packet waits.
    pub ready: Option<TunnelPlace>,
    /// The newest generation's, when it has no session: to be asked for one.
    pub begin: Option<TunnelPlace>,
}

impl Peers {
    /// A shard's lanes without peers. `lane_key` is its own lane's; `seed` draws the indices of tunnels.
    pub fn new(shard: ShardId, shards: NonZeroU8, lane_key: &PrivateKey, seed: u64) -> Self {
        Self {
            shard,
            shards,
            site: Lane::new(lane_key, Instant::ZERO),
            foreign: None,
            peers: HashMap::default(),
            by_key: HashMap::default(),
            tunnels: Tunnels::new(seed),
            strangers: VecDeque::with_capacity(STRANGERS),
        }
    }

    /// Makes peers what a snapshot says, and keeps the tunnels of lanes whose keys didn't change.
    pub fn install(&mut self, policy: &Policy, lanes: &Lanes, now: Instant) -> Installed {
        let mut installed = Installed::default();
        self.install_foreign_lane(&lanes.foreign_key, now);
        let mut former = std::mem::take(&mut self.peers);
        self.by_key.clear();
        for planned in &lanes.peers {
            let (lane, generations) = remote::planned(&planned.reach);
            if policy.peer(planned.id).is_none() || self.own(lane).is_none() {
                continue;
            }
            let mut peer = former.remove(&planned.id).unwrap_or_else(|| Peer::new(lane, now));
            let known = peer.has_tunnels();
            self.renew(&mut peer, lane, generations);
            self.index(planned.id, &peer);
            self.peers.insert(planned.id, peer);
            self.meet_newest(planned.id, known, &mut installed.greet, now);
        }
        for mut gone in former.into_values() {
            installed
                .orphans
                .extend(gone.waiting.drain(..).map(|(_, frame)| frame));
            self.forget(&mut gone);
        }
        installed
    }

    /// The foreign lane of shard 0; with another key no tunnel of it lives on.
    fn install_foreign_lane(&mut self, key: &PrivateKey, now: Instant) {
        let same = |lane: &Lane| lane.public_key() == key.public_key();
        if self.shard != ShardId(0) || self.foreign.as_ref().is_some_and(same) {
            return;
        }
        self.foreign = Some(Lane::new(key, now));
        let mut peers = std::mem::take(&mut self.peers);
        for peer in peers.values_mut().filter(|peer| peer.lane == LaneKind::Foreign) {
            self.forget(peer);
        }
        self.peers = peers;
    }

    /// Gives a peer its new lanes, and those of them that it had before their tunnels.
    fn renew(&mut self, peer: &mut Peer, lane: LaneKind, generations: Vec<Generation>) {
        if peer.lane != lane {
            self.forget(peer);
            peer.lane = lane;
        }
        let mut former: Vec<RemoteLane> = std::mem::replace(&mut peer.generations, generations)
            .into_iter()
            .flat_map(|generation| generation.lanes)
            .filter(|lane| lane.tunnel.is_some())
            .collect();
        for generation in &mut peer.generations {
            for (number, lane) in (0..).zip(&mut generation.lanes) {
                let Some(at) = former.iter().position(|former| former.keys == lane.keys) else {
                    continue;
                };
                let former = former.swap_remove(at);
                lane.tunnel = former.tunnel;
                if let Some(entry) = former.tunnel.and_then(|place| self.tunnels.get_mut(place)) {
                    entry.generation = generation.number;
                    entry.remote = number;
                    if former.endpoint != lane.endpoint {
                        entry.endpoint = lane.endpoint.or(entry.endpoint);
                    }
                }
            }
        }
        for gone in former.into_iter().filter_map(|lane| lane.tunnel) {
            self.end(peer, gone);
        }
    }

    fn index(&mut self, id: PeerId, peer: &Peer) {
        for (generation, lanes) in peer.generations.iter().enumerate() {
            for (lane, remote) in lanes.lanes.iter().enumerate() {
                let address = RemoteAddress {
                    peer: id,
                    generation,
                    lane,
                };
                self.by_key.insert((peer.lane, remote.keys.public_key), address);
            }
        }
    }

    /// Ends all tunnels with a peer.
    fn forget(&mut self, peer: &mut Peer) {
        let tunnels: Vec<TunnelPlace> = peer
            .generations
            .iter_mut()
            .flat_map(|generation| &mut generation.lanes)
            .filter_map(|lane| lane.tunnel.take())
            .collect();
        for place in tunnels {
            self.end(peer, place);
        }
    }

    fn end(&mut self, peer: &mut Peer, place: TunnelPlace) {
        if let Some(entry) = self.tunnels.remove(place) {
            peer.traffic.add(&entry.traffic);
        }
    }

    /// Makes the tunnels of a peer's newest generation that needn't wait for their first packet: a foreign peer's, those
    /// with a peer that is `known`, and that of a lane which has called already. Those without a session are to be
    /// greeted.
    fn meet_newest(&mut self, id: PeerId, known: bool, greet: &mut Vec<TunnelPlace>, now: Instant) {
        let Some((lane, newest)) = self
            .peers
            .get(&id)
            .and_then(|peer| Some((peer.lane, peer.generations.first()?)))
        else {
            return;
        };
        let count = newest.lanes.len();
        for number in 0..count {
            let address = RemoteAddress {
                peer: id,
                generation: 0,
                lane: number,
            };
            let Some(remote) = self.remote(address) else {
                continue;
            };
            let is_new = remote.tunnel.is_none();
            let called = self.strangers.contains(&remote.keys.public_key);
            let wanted = match lane {
                LaneKind::Foreign => true,
                LaneKind::Site => is_new && (called || (known && self.shares_flows_with(number, count))),
            };
            if !wanted {
                continue;
            }
            if let Some(place) = self.tunnel_with(address, now)
                && self
                    .tunnels
                    .get(place)
                    .is_some_and(|entry| !entry.tunnel.is_ready() && entry.endpoint.is_some())
            {
                greet.push(place);
            }
        }
    }

    /// Whether there can be a flow whose home is both this shard and the remote lane `number` of `count`: a number with
    /// both remainders (the Chinese remainder theorem).
    fn shares_flows_with(&self, number: usize, count: usize) -> bool {
        let common = greatest_common_divisor(usize::from(self.shards.get()), count);
        usize::from(self.shard.0) % common == number % common
    }

    fn remote(&self, address: RemoteAddress) -> Option<&RemoteLane> {
        let peer = self.peers.get(&address.peer)?;
        peer.generations.get(address.generation)?.lanes.get(address.lane)
    }

    /// The tunnel with a remote lane, made when there is none yet; `None` when there is no such lane, or no room.
    fn tunnel_with(&mut self, address: RemoteAddress, now: Instant) -> Option<TunnelPlace> {
        let peer = self.peers.get_mut(&address.peer)?;
        let generation = peer.generations.get_mut(address.generation)?;
        let remote = generation.lanes.get_mut(address.lane)?;
        if remote.tunnel.is_some() {
            return remote.tunnel;
        }
        let own = match peer.lane {
            LaneKind::Site => &self.site,
            LaneKind::Foreign => self.foreign.as_ref()?,
        };
        let index = self.tunnels.draw_index()?;
        let tunnel = NoiseTunnel::new(
            own,
            index,
            &remote.keys.public_key,
            remote.keys.preshared_key.as_ref(),
            remote.keys.keepalive,
            now,
        );
        let place = self.tunnels.insert(TunnelEntry {
            tunnel: Box::new(tunnel),
            lane: peer.lane,
            peer: address.peer,
            generation: generation.number,
            remote: u8::try_from(address.lane).unwrap_or(u8::MAX),
            endpoint: remote.endpoint,
            traffic: Traffic::default(),
            index,
        });
        remote.tunnel = Some(place);
        Some(place)
    }

    /// By which tunnel a packet with this home goes to a peer.
    ///
    /// # Errors
    /// There is no such peer, or no lane of it is known.
    pub fn choose(&mut self, id: PeerId, home: u32, now: Instant) -> Result<Chosen, DropReason> {
        let peer = self.peers.get(&id).ok_or(DropReason::NoPeer)?;
        let (newest, older) = peer.generations.split_first().ok_or(DropReason::NoEndpoint)?;
        let ready = |generation: &Generation| {
            let place = generation.lanes.get(generation.lane_of(home))?.tunnel?;
            self.tunnels.get(place)?.tunnel.is_ready().then_some(place)
        };
        let of_newest = ready(newest);
        if of_newest.is_some() {
            return Ok(Chosen {
                ready: of_newest,
                begin: None,
            });
        }
        let address = RemoteAddress {
            peer: id,
            generation: 0,
            lane: newest.lane_of(home),
        };
        let ready = older.iter().find_map(ready);
        let begin = self.tunnel_with(address, now);
        Ok(Chosen { ready, begin })
    }

    /// Whether packets may wait for a session with a peer: it is known where it is, and there is room.
    ///
    /// # Errors
    /// Why not.
    pub fn may_wait(&self, id: PeerId, begin: Option<TunnelPlace>) -> Result<(), DropReason> {
        let peer = self.peers.get(&id).ok_or(DropReason::NoPeer)?;
        let begin = begin
            .and_then(|place| self.tunnels.get(place))
            .ok_or(DropReason::NoSession)?;
        if peer.waiting.len() >= WAITING_FOR_SESSION {
            return Err(DropReason::NoSession);
        }
        // Only the far end can begin.
        begin.endpoint.map(|_| ()).ok_or(DropReason::NoEndpoint)
    }

    /// Lets a packet wait for a session with a peer; it comes back when there is no room.
    pub fn wait(&mut self, id: PeerId, vni: Vni, frame: Frame, now: Instant) -> Result<(), Frame> {
        let peer = self.peers.get_mut(&id);
        let Some(peer) = peer.filter(|peer| peer.waiting.len() < WAITING_FOR_SESSION) else {
            return Err(frame);
        };
        if peer.waiting.is_empty() {
            peer.waiting_since = now;
        }
        peer.waiting.push_back((vni, frame));
        Ok(())
    }

    /// What has waited for a session with a peer: there is one now.
    pub fn take_waiting(&mut self, id: PeerId) -> VecDeque<(Vni, Frame)> {
        let peer = self.peers.get_mut(&id);
        peer.map(|peer| std::mem::take(&mut peer.waiting))
            .unwrap_or_default()
    }

    /// The next packet that has waited too long, for whomever.
    pub fn poll_given_up(&mut self, now: Instant) -> Option<Frame> {
        self.peers.values_mut().find_map(|peer| {
            if now.saturating_since(peer.waiting_since) < WAITING_TIME {
                return None;
            }
            peer.waiting.pop_front().map(|(_, frame)| frame)
        })
    }

    fn own(&self, lane: LaneKind) -> Option<&Lane> {
        match lane {
            LaneKind::Site => Some(&self.site),
            LaneKind::Foreign => self.foreign.as_ref(),
        }
    }

    /// The lane of a kind; `None` when this shard has none.
    pub fn lane_mut(&mut self, lane: LaneKind) -> Option<&mut Lane> {
        match lane {
            LaneKind::Site => Some(&mut self.site),
            LaneKind::Foreign => self.foreign.as_mut(),
        }
    }

    /// The tunnel that an initiation is for, by the key that its sender claims.
    pub fn called_by(&mut self, lane: LaneKind, key: &PublicKey, now: Instant) -> Option<TunnelPlace> {
        if let Some(address) = self.by_key.get(&(lane, *key)).copied() {
            return self.tunnel_with(address, now);
        }
        if lane == LaneKind::Site && !self.strangers.contains(key) {
            if self.strangers.len() >= STRANGERS {
                self.strangers.pop_front();
            }
            self.strangers.push_back(*key);
        }
        None
    }

    /// The tunnel that a datagram is for, when it came to the tunnel's lane.
    #[inline]
    pub fn named(&self, receiver: ReceiverIndex, lane: LaneKind) -> Option<TunnelPlace> {
        self.tunnels.named(receiver, lane)
    }

    /// The tunnel at a place.
    #[inline]
    pub fn tunnel_mut(&mut self, place: TunnelPlace) -> Option<&mut TunnelEntry> {
        self.tunnels.get_mut(place)
    }

    /// All tunnels.
    pub fn tunnels_mut(&mut self) -> impl Iterator<Item = &mut TunnelEntry> {
        self.tunnels.iter_mut()
    }

    /// Puts another tunnel in the place of the one that packets with home 0 take, with its index.
    pub fn set_tunnel(
        &mut self,
        id: PeerId,
        index: TunnelIndex,
        tunnel: Box<dyn Tunnel>,
        now: Instant,
    ) -> bool {
        let newest = self.peers.get(&id).and_then(|peer| peer.generations.first());
        let Some(lane) = newest.map(|generation| generation.lane_of(0)) else {
            return false;
        };
        let address = RemoteAddress {
            peer: id,
            generation: 0,
            lane,
        };
        match self.tunnel_with(address, now) {
            Some(place) => {
                self.tunnels.replace(place, index, tunnel);
                true
            }
            None => false,
        }
    }

    /// What is known about peers and their tunnels.
    pub fn reports(&self) -> Vec<PeerReport> {
        let mut reports: Vec<PeerReport> = self
            .peers
            .iter()
            .map(|(id, peer)| self.report(*id, peer))
            .collect();
        reports.sort_by_key(|report| report.peer);
        reports
    }

    /// The freshest session speaks for the peer.
    fn report(&self, id: PeerId, peer: &Peer) -> PeerReport {
        let entries = || {
            peer.generations
                .iter()
                .flat_map(|generation| &generation.lanes)
                .filter_map(|lane| self.tunnels.get(lane.tunnel?))
        };
        let mut tunnels: Vec<TunnelReport> = entries()
            .map(|entry| TunnelReport {
                shard: self.shard.0,
                generation: entry.generation,
                lane: entry.remote,
                endpoint: entry.endpoint,
                handshake_age_ms: entry.tunnel.session_age().map(|age| age.as_millis() as u64),
                rtt_ms: entry.tunnel.rtt().map(|rtt| rtt.as_millis() as u32),
                loss_permille: entry.tunnel.loss_permille(),
            })
            .collect();
        tunnels.sort_by_key(|tunnel| (tunnel.generation, tunnel.lane));
        let mut traffic = peer.traffic;
        entries().for_each(|entry| traffic.add(&entry.traffic));
        let freshest = entries().min_by_key(|entry| entry.age());
        let planned = peer
            .generations
            .first()
            .and_then(|generation| generation.lanes.first()?.endpoint);
        PeerReport {
            peer: id,
            endpoint: freshest.map_or(planned, |entry| entry.endpoint),
            handshake_age_ms: freshest
                .and_then(|entry| entry.tunnel.session_age())
                .map(|age| age.as_millis() as u64),
            rtt_ms: freshest
                .and_then(|entry| entry.tunnel.rtt())
                .map(|rtt| rtt.as_millis() as u32),
            traffic,
            tunnels,
        }
    }
}

impl Peer {
    fn new(lane: LaneKind, now: Instant) -> Self {
        Self {
            lane,
            generations: Vec::new(),
            waiting: VecDeque::with_capacity(WAITING_FOR_SESSION),
            waiting_since: now,
            traffic: Traffic::default(),
        }
    }

    fn has_tunnels(&self) -> bool {
        let mut lanes = self.generations.iter().flat_map(|generation| &generation.lanes);
        lanes.any(|lane| lane.tunnel.is_some())
    }
}

const fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}
