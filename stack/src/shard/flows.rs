//! Which flow a packet belongs to: found, judged again when the policy has changed since, or made; and whether the packet
//! can be part of it.
//!
//! A flow is made by what begins a connection. For half a minute after the first plan, and after a peer's datapath has
//! started, it is also made by what is in the middle of one: connections outlive the tables that knew them. Such a packet
//! may be a reply, so it is judged both ways; a UDP datagram, which doesn't tell what it is, as it came alone. Policy has
//! the first word: what it denies is counted under its reason, even if it is part of nothing.

use super::from_port::Came;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::{Egress, ShardId};
use crate::flow::{Arrival, Flow, FlowIndex, Hop, Passing, Segment, Step, Tracking, TunnelHeaders, Verdict};
use crate::plan::{PeerId, Vni};
use crate::snapshot::Policy;
use crate::time::Instant;
use crate::wire::{Direction, Endpoints, FlowKey, Headers, Transport, home, quoted, tcp_flags};
use std::net::IpAddr;

/// A packet's flow, found or made.
pub(super) struct Found {
    pub(super) index: FlowIndex,
    pub(super) hop: Hop,
    /// Where it lives.
    pub(super) home: u32,
}

/// Why a packet goes on by no flow of this shard.
pub(super) enum NotHere {
    /// It isn't to be forwarded.
    Verdict(Verdict),
    /// Its flow lives on another shard.
    Home(ShardId),
}

impl From<Verdict> for NotHere {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl From<DropReason> for NotHere {
    fn from(reason: DropReason) -> Self {
        Self::Verdict(Verdict::Deny(reason))
    }
}

/// A packet in search of its flow.
#[derive(Clone, Copy)]
pub(super) struct Seeker<'a> {
    pub(super) vni: Vni,
    pub(super) headers: &'a Headers,
    pub(super) packet: &'a [u8],
    /// The packets that it stands for.
    pub(super) packets: u64,
    pub(super) arrival: Arrival,
    pub(super) came: Came,
}

/// What a packet can be to a flow that isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It begins one: a SYN, a request.
    Beginning,
    /// It begins one, or is part of one.
    Either,
    /// It is part of one.
    Middle,
    /// It answers a beginning.
    Reply,
}

impl Part {
    fn of(headers: &Headers, segment: Option<&Segment>) -> Self {
        match (segment, headers.transport) {
            (Some(segment), _) if segment.begins() => Self::Beginning,
            (Some(segment), _) if segment.answers() => Self::Reply,
            (Some(_), _) => Self::Middle,
            (None, Transport::Echo { request: true, .. }) => Self::Beginning,
            (None, Transport::Echo { request: false, .. }) => Self::Reply,
            (None, _) => Self::Either,
        }
    }
}

/// How a new flow is decided.
struct Decision {
    opener: Direction,
    origin: Arrival,
    route: Route,
    picked_up: bool,
}

/// The policy's verdict about a flow that may be.
struct Route {
    hops: [Hop; 2],
    tunnel: Option<TunnelHeaders>,
}

impl Shard {
    /// The flow of a packet: found, judged anew when the policy has changed since, or made. What another shard is to
    /// make of it is judged here all the same: only what may go on, one way or the other, is handed over.
    pub(super) fn flow(
        &mut self,
        seeker: &Seeker<'_>,
        turn: &Turn<'_, impl Egress>,
    ) -> Result<Found, NotHere> {
        let Seeker {
            vni, headers, packet, ..
        } = *seeker;
        let Turn { policy, now, .. } = *turn;
        let (key, direction) = FlowKey::of(vni, &headers.endpoints());
        if headers.stays_on_its_link(packet) {
            judge(policy, &key, direction, seeker.arrival)?;
            return Err(DropReason::NoFlow.into());
        }
        match headers.transport {
            Transport::IcmpError => return self.flow_of_error(seeker, turn),
            // Datagrams come here whole.
            Transport::Fragment => return Err(DropReason::Malformed.into()),
            Transport::Tcp { .. }
            | Transport::Udp { .. }
            | Transport::Echo { .. }
            | Transport::IcmpOther
            | Transport::Other => {}
        }
        let live = self.live_flow(policy, &key, now);
        let segment = Segment::of(headers, packet);
        let home = match live.and_then(|index| self.flows.get(index)) {
            Some(flow) => flow.home,
            None => home(&key, 0),
        };
        if live.is_none()
            && let (Arrival::Port(_), Came::Read) = (seeker.arrival, seeker.came)
            && let Some(shard) = self.elsewhere(policy, &key, home)
        {
            may_go_on(policy, &key, direction, seeker, segment.as_ref())?;
            return Err(NotHere::Home(shard));
        }
        let passing = Passing {
            direction,
            segment,
            packets: seeker.packets,
            bytes: headers.total_length as u64,
        };
        if let Some(index) = live {
            match self.flows.advance(index, &passing, now)? {
                Step::Passed | Step::Unchanged => return self.found(index, direction, home),
                Step::Anew => {}
            }
        }
        let decision = self.decide(policy, &key, direction, seeker, segment.as_ref(), now)?;
        // One that is over, or that policy has ended.
        if let Some(former) = self.flows.find(&key) {
            self.flows.remove(former);
        }
        let reply = direction != decision.opener;
        let tracking = if decision.picked_up {
            Tracking::pick_up(headers, segment.as_ref(), reply)
        } else {
            Tracking::begin(headers, segment.as_ref())
        };
        let mut flow = Flow {
            key,
            epoch: policy.epoch(),
            seen: now,
            packets: [0; 2],
            bytes: [0; 2],
            tracking,
            hops: decision.route.hops,
            tunnel: decision.route.tunnel,
            origin: decision.origin,
            home,
            owners: policy.owners(vni, decision.origin, decision.route.hops[0]),
            opener: decision.opener,
            revoked: false,
        };
        flow.packets[usize::from(reply)] = passing.packets;
        flow.bytes[usize::from(reply)] = passing.bytes;
        let index = self.flows.insert(flow, now)?;
        self.found(index, direction, home)
    }

    fn found(&self, index: FlowIndex, direction: Direction, home: u32) -> Result<Found, NotHere> {
        let flow = self.flows.get(index).ok_or(DropReason::NoFlow)?;
        Ok(Found {
            index,
            hop: flow.hop(direction),
            home,
        })
    }

    /// The flow that an ICMP error is about. It goes against the packet that it quotes, to whoever sent that, and comes
    /// from where that went (RFC 5508 §4.2); of TCP the packet must be one whose acknowledgement is awaited.
    fn flow_of_error(&mut self, seeker: &Seeker<'_>, turn: &Turn<'_, impl Egress>) -> Result<Found, NotHere> {
        let Seeker { headers, packet, .. } = *seeker;
        let named = name_of_flow(seeker.vni, headers, packet).ok_or(DropReason::NoFlow)?;
        let Named {
            key,
            direction,
            sequence,
        } = named;
        let live = self.live_flow(turn.policy, &key, turn.now);
        let home = match live.and_then(|index| self.flows.get(index)) {
            Some(flow) => flow.home,
            None => home(&key, 0),
        };
        if live.is_none()
            && let (Arrival::Port(_), Came::Read) = (seeker.arrival, seeker.came)
            && let Some(shard) = self.elsewhere(turn.policy, &key, home)
        {
            return Err(NotHere::Home(shard));
        }
        let index = live.ok_or(DropReason::NoFlow)?;
        let flow = self.flows.get(index).ok_or(DropReason::NoFlow)?;
        let quoted = direction.opposite();
        if !leads_back(turn.policy, flow.hop(quoted), seeker.arrival)
            || !flow.tracking.may_be_quoted(sequence, flow.is_reply(quoted))
        {
            return Err(DropReason::NoFlow.into());
        }
        self.found(index, direction, home)
    }

    /// Decides about a flow that isn't live here: as a new one, or as one in its middle. Policy's word about the packet
    /// comes before the word of what is known about connections.
    fn decide(
        &self,
        policy: &Policy,
        key: &FlowKey,
        direction: Direction,
        seeker: &Seeker<'_>,
        segment: Option<&Segment>,
        now: Instant,
    ) -> Result<Decision, Verdict> {
        let part = Part::of(seeker.headers, segment);
        let origin = seeker.arrival;
        let own = judge(policy, key, direction, origin);
        if !segment.is_none_or(Segment::has_legal_flags) {
            return Err(own.err().unwrap_or(Verdict::Deny(DropReason::TcpFlags)));
        }
        let as_it_came = |route, picked_up| Decision {
            opener: direction,
            origin,
            route,
            picked_up,
        };
        let other = origin_of(policy, key, direction);
        let peer = [Some(origin), other].into_iter().flatten().find_map(peer_of);
        let picks_up = self.pick_up.is_open(peer, now) && !self.is_revoked(key);
        let denial = match (own, part) {
            (Err(Verdict::Answer(answer)), _) => return Err(Verdict::Answer(answer)),
            (Ok(route), Part::Beginning | Part::Either) => return Ok(as_it_came(route, false)),
            (Ok(route), Part::Middle) if picks_up => return Ok(as_it_came(route, true)),
            (Ok(_), Part::Middle | Part::Reply) => Verdict::Deny(match segment {
                Some(_) => DropReason::MidStream,
                None => DropReason::NoFlow,
            }),
            (Err(denial), _) => denial,
        };
        // A datagram would pass by the rules of its answer: nothing in it tells that it is one.
        if !picks_up || matches!(part, Part::Beginning | Part::Either) {
            return Err(denial);
        }
        reversed(policy, key, direction, origin).ok_or(denial)
    }

    fn is_revoked(&self, key: &FlowKey) -> bool {
        let known = self.flows.find(key).and_then(|index| self.flows.get(index));
        known.is_some_and(|flow| flow.revoked)
    }

    /// The other shard on which a flow of ports lives, if it isn't this one.
    pub(super) fn elsewhere(&self, policy: &Policy, key: &FlowKey, home: u32) -> Option<ShardId> {
        if self.count.get() == 1 {
            return None;
        }
        let shard = if policy.meets_foreign_peer(key.vni(), &key.endpoints(Direction::Up)) {
            ShardId(0)
        } else {
            ShardId((home % u32::from(self.count.get())) as u8)
        };
        (shard != self.id).then_some(shard)
    }

    /// Whether a packet that has waited is still of a live flow. Not asked of fragments, which don't say what flow they are
    /// of, and of resets and errors, which may be this host's own words about a flow that isn't to be.
    pub(super) fn is_still_allowed(
        &mut self,
        vni: Vni,
        headers: &Headers,
        packet: &[u8],
        turn: &Turn<'_, impl Egress>,
    ) -> bool {
        let is_exempt = match headers.transport {
            Transport::Fragment | Transport::IcmpError => true,
            Transport::Tcp { flags, .. } => flags & tcp_flags::RST != 0,
            Transport::Udp { .. } | Transport::Echo { .. } | Transport::IcmpOther | Transport::Other => false,
        };
        let named = name_of_flow(vni, headers, packet);
        is_exempt || named.is_some_and(|named| self.live_flow(turn.policy, &named.key, turn.now).is_some())
    }

    /// The flow with this key, unless it has expired or the policy in force ends it; then the packet at hand is judged as
    /// a first one.
    fn live_flow(&mut self, policy: &Policy, key: &FlowKey, now: Instant) -> Option<FlowIndex> {
        let index = self.flows.find(key)?;
        let flow = self.flows.get(index)?;
        if flow.expires() <= now {
            self.flows.remove(index);
            return None;
        }
        if flow.epoch != policy.epoch() {
            self.judge_again(policy, index, now);
        }
        self.flows.get(index).filter(|flow| !flow.revoked).map(|_| index)
    }

    /// Judges a flow under a new policy, as its first packet was.
    fn judge_again(&mut self, policy: &Policy, index: FlowIndex, now: Instant) {
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        flow.epoch = policy.epoch();
        let Ok(route) = judge(policy, &flow.key, flow.opener, flow.origin) else {
            flow.revoked = true;
            flow.seen = now;
            let ends = [Some(flow.origin), origin_of(policy, &flow.key, flow.opener)];
            if !self
                .pick_up
                .is_open(ends.into_iter().flatten().find_map(peer_of), now)
            {
                self.flows.remove(index);
            }
            return;
        };
        let owners = policy.owners(flow.key.vni(), flow.origin, route.hops[0]);
        flow.revoked = false;
        flow.hops = route.hops;
        flow.tunnel = route.tunnel;
        if flow.owners != owners {
            self.flows.assign(index, owners);
        }
    }
}

/// Lets through what may go on, as the beginning of a flow or as part of one that lives elsewhere.
fn may_go_on(
    policy: &Policy,
    key: &FlowKey,
    direction: Direction,
    seeker: &Seeker<'_>,
    segment: Option<&Segment>,
) -> Result<(), Verdict> {
    let denied = match judge(policy, key, direction, seeker.arrival) {
        Ok(_) => return Ok(()),
        Err(denied) => denied,
    };
    // A datagram too: whether it is an answer is seen where its flow lives.
    let may_reply =
        !matches!(denied, Verdict::Answer(_)) && Part::of(seeker.headers, segment) != Part::Beginning;
    if may_reply && reversed(policy, key, direction, seeker.arrival).is_some() {
        Ok(())
    } else {
        Err(denied)
    }
}

/// How a packet that came from `arrival` is allowed as a reply, if it is.
fn reversed(policy: &Policy, key: &FlowKey, direction: Direction, arrival: Arrival) -> Option<Decision> {
    let origin = origin_of(policy, key, direction)?;
    let opener = direction.opposite();
    let route = judge(policy, key, opener, origin).ok()?;
    leads_back(policy, route.hops[0], arrival).then_some(Decision {
        opener,
        origin,
        route,
        picked_up: true,
    })
}

/// Where a packet would come from that went the other way.
fn origin_of(policy: &Policy, key: &FlowKey, direction: Direction) -> Option<Arrival> {
    let destination = key.endpoints(direction).destination;
    let network = policy.network(key.vni())?;
    match network.instance(destination) {
        Some(slot) => Some(Arrival::Port(policy.port(slot)?.id)),
        None => {
            let peer = network.peer_of(network.owner(destination)?)?;
            Some(Arrival::Tunnel(peer))
        }
    }
}

fn peer_of(arrival: Arrival) -> Option<PeerId> {
    match arrival {
        Arrival::Port(_) => None,
        Arrival::Tunnel(peer) => Some(peer),
    }
}

/// The flow that a packet names, and which way the packet goes. An ICMP error belongs to the flow of the packet it quotes,
/// and goes against it; its own source isn't in the key, so it must come from where that packet went.
struct Named {
    key: FlowKey,
    direction: Direction,
    /// Of the TCP segment that an ICMP error quotes.
    sequence: Option<u32>,
}

/// `None`: an error about nothing, or one that isn't told to whom it is about.
fn name_of_flow(vni: Vni, headers: &Headers, packet: &[u8]) -> Option<Named> {
    if headers.transport != Transport::IcmpError {
        let (key, direction) = FlowKey::of(vni, &headers.endpoints());
        return Some(Named {
            key,
            direction,
            sequence: None,
        });
    }
    let quote = quoted::parse(&packet[headers.payload_offset..headers.total_length])?;
    let (key, direction) = FlowKey::of(vni, &quote.endpoints);
    (quote.endpoints.source == headers.destination).then_some(Named {
        key,
        direction: direction.opposite(),
        sequence: quote.tcp_sequence,
    })
}

/// The home of a packet that has no flow at hand.
pub(super) fn home_of(vni: Vni, headers: &Headers, packet: &[u8]) -> u32 {
    let named = name_of_flow(vni, headers, packet);
    named.map_or(0, |named| home(&named.key, headers.identification))
}

/// Whether a packet that arrived this way comes from where `hop` leads.
fn leads_back(policy: &Policy, hop: Hop, arrival: Arrival) -> bool {
    match (hop, arrival) {
        (Hop::Port(slot), Arrival::Port(port)) => policy.port_slot(port) == Some(slot),
        (Hop::Tunnel(there), Arrival::Tunnel(here)) => there == here,
        (Hop::Port(_), Arrival::Tunnel(_)) | (Hop::Tunnel(_), Arrival::Port(_)) => false,
    }
}

/// The policy's verdict about a flow, with what is prepared for the direction that leaves by a tunnel.
fn judge(policy: &Policy, key: &FlowKey, opener: Direction, origin: Arrival) -> Result<Route, Verdict> {
    let endpoints = key.endpoints(opener);
    match policy.judge(key.vni(), &endpoints, origin) {
        Verdict::Forward { original, reply } => {
            let tunnel = match (original, reply) {
                (Hop::Tunnel(peer), _) => tunnel_headers(policy, key.vni(), &endpoints, peer),
                (_, Hop::Tunnel(peer)) => tunnel_headers(policy, key.vni(), &endpoints.reversed(), peer),
                (Hop::Port(_), Hop::Port(_)) => None,
            };
            Ok(Route {
                hops: [original, reply],
                tunnel,
            })
        }
        verdict => Err(verdict),
    }
}

/// What is known beforehand of the headers in front of packets with these addresses on their way to a peer.
pub(super) fn tunnel_headers(
    policy: &Policy,
    vni: Vni,
    endpoints: &Endpoints,
    peer: PeerId,
) -> Option<TunnelHeaders> {
    let network = policy.network(vni)?;
    let entry = policy.peer(peer)?;
    let mac = |address: IpAddr| network.ipv4_of(address);
    let ends = [mac(endpoints.source)?, mac(endpoints.destination)?];
    Some(TunnelHeaders::new(ends, entry.ordinal, entry.of_site))
}
