//! Which flow a packet belongs to: found, judged again when the policy has changed since, or made.

use super::from_port::Came;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::{Egress, ShardId};
use crate::flow::{Arrival, Flow, FlowIndex, Hop, QuotaSlot, Tracking, TunnelHeaders, Verdict};
use crate::overlay::{Encap, Neighbours};
use crate::plan::{Vni, vtep_address};
use crate::snapshot::Policy;
use crate::time::Instant;
use crate::wire::vxlan::EtherType;
use crate::wire::{Direction, Endpoints, FlowKey, Headers, MacAddr, Transport, home, quoted, tcp_flags};

/// A packet's flow, found or made.
pub(super) struct Found {
    pub(super) index: FlowIndex,
    pub(super) hop: Hop,
    /// The packet's: a fragment's isn't its flow's.
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

impl Shard {
    /// The flow of a packet: found, judged anew when the policy has changed since, or made. What another shard is to
    /// make of it is judged here all the same: only what may go on is handed over.
    pub(super) fn flow(
        &mut self,
        vni: Vni,
        headers: &Headers,
        packet: &[u8],
        arrival: Arrival,
        came: Came,
        turn: &Turn<'_, impl Egress>,
    ) -> Result<Found, NotHere> {
        let Turn { policy, now, .. } = *turn;
        let no_flow = Verdict::Deny(DropReason::NoFlow);
        let is_error = headers.transport == Transport::IcmpError;
        let (key, direction) = name_of_flow(vni, headers, packet).ok_or(no_flow)?;
        let live = self.live_flow(policy, &key, now);
        let is_fragment = headers.transport == Transport::Fragment;
        let home = match live.and_then(|index| self.flows.get(index)) {
            Some(flow) if !is_fragment => flow.home,
            _ => home(&key, headers.identification),
        };
        let decision = match live {
            None if !is_error => Some(judge(policy, key, direction, arrival)?),
            _ => None,
        };
        if (live.is_none() || is_fragment)
            && let (Arrival::Port(_), Came::Read) = (arrival, came)
            && let Some(shard) = self.elsewhere(policy, &key, home)
        {
            return Err(NotHere::Home(shard));
        }
        let index = match (live, decision) {
            (Some(index), _) => index,
            (None, Some(decision)) => {
                let tracking = Tracking::first(headers);
                let ([original, reply], tunnel) = decision;
                let flow = Flow {
                    key,
                    home,
                    quota: policy
                        .network(vni)
                        .map_or_else(QuotaSlot::default, |network| network.quota),
                    epoch: policy.epoch(),
                    origin: arrival,
                    opener: direction,
                    hops: [original, reply],
                    tunnel,
                    tracking,
                    expires: now + tracking.timeout(),
                };
                let inserted = self.flows.insert(flow, now);
                inserted.map_err(Verdict::Deny)?
            }
            (None, None) => return Err(no_flow.into()),
        };
        let flow = self.flows.get_mut(index).ok_or(no_flow)?;
        if is_error && !leads_back(policy, flow.hop(direction.opposite()), arrival) {
            return Err(no_flow.into());
        }
        if !is_error {
            flow.tracking = flow.tracking.advance(headers, direction != flow.opener);
            flow.expires = now + flow.tracking.timeout();
        }
        Ok(Found {
            index,
            hop: flow.hop(direction),
            home,
        })
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
        is_exempt || named.is_some_and(|(key, _)| self.live_flow(turn.policy, &key, turn.now).is_some())
    }

    /// The flow with this key, unless it has expired or the policy in force ends it; then it is forgotten here, and the
    /// packet at hand is judged as a first one.
    fn live_flow(&mut self, policy: &Policy, key: &FlowKey, now: Instant) -> Option<FlowIndex> {
        let index = self.flows.find(key)?;
        let flow = self.flows.get_mut(index)?;
        let lives = flow.expires > now && (flow.epoch == policy.epoch() || judge_again(policy, flow).is_ok());
        if !lives {
            self.flows.remove(index);
        }
        lives.then_some(index)
    }
}

/// The key of a packet's flow, and which way the packet goes. An ICMP error belongs to the flow of the packet it quotes,
/// and goes against it; its own source isn't in the key, so it must come from where that packet went. `None`: an error
/// about nothing.
fn name_of_flow(vni: Vni, headers: &Headers, packet: &[u8]) -> Option<(FlowKey, Direction)> {
    if headers.transport != Transport::IcmpError {
        return Some(FlowKey::of(vni, &headers.endpoints()));
    }
    let quote = quoted::parse(&packet[headers.payload_offset..headers.total_length])?.endpoints;
    let (key, direction) = FlowKey::of(vni, &quote);
    (quote.source == headers.destination).then_some((key, direction.opposite()))
}

/// The home of a packet that has no flow at hand.
pub(super) fn home_of(vni: Vni, headers: &Headers, packet: &[u8]) -> u32 {
    let named = name_of_flow(vni, headers, packet);
    named.map_or(0, |(key, _)| home(&key, headers.identification))
}

/// Whether a packet that arrived this way comes from where `hop` leads.
fn leads_back(policy: &Policy, hop: Hop, arrival: Arrival) -> bool {
    match (hop, arrival) {
        (Hop::Port(slot), Arrival::Port(port)) => policy.port_slot(port) == Some(slot),
        (Hop::Tunnel(there), Arrival::Tunnel(here)) => there == here,
        (Hop::Port(_), Arrival::Tunnel(_)) | (Hop::Tunnel(_), Arrival::Port(_)) => false,
    }
}

/// Judges a live flow under a new policy, as its first packet was.
fn judge_again(policy: &Policy, flow: &mut Flow) -> Result<(), Verdict> {
    let (hops, tunnel) = judge(policy, flow.key, flow.opener, flow.origin)?;
    flow.hops = hops;
    flow.tunnel = tunnel;
    flow.epoch = policy.epoch();
    Ok(())
}

type Decision = ([Hop; 2], Option<TunnelHeaders>);

/// The policy's verdict about a flow, with what is prepared for the direction that leaves by a tunnel.
fn judge(policy: &Policy, key: FlowKey, opener: Direction, origin: Arrival) -> Result<Decision, Verdict> {
    let endpoints = key.endpoints(opener);
    match policy.judge(key.vni(), &endpoints, origin) {
        Verdict::Forward { original, reply } => {
            let tunnel = match (original, reply) {
                (Hop::Tunnel(peer), _) => tunnel_headers(policy, key.vni(), &endpoints, peer),
                (_, Hop::Tunnel(peer)) => tunnel_headers(policy, key.vni(), &endpoints.reversed(), peer),
                (Hop::Port(_), Hop::Port(_)) => None,
            };
            Ok(([original, reply], tunnel))
        }
        verdict => Err(verdict),
    }
}

/// The headers in front of packets with these addresses on their way to a peer.
pub(super) fn tunnel_headers(
    policy: &Policy,
    vni: Vni,
    endpoints: &Endpoints,
    peer: crate::plan::PeerId,
) -> Option<TunnelHeaders> {
    let network = policy.network(vni)?;
    let entry = policy.peer(peer)?;
    let source_mac = MacAddr::of(network.ipv4_of(endpoints.source)?);
    let ether_type = if endpoints.source.is_ipv6() {
        EtherType::Ipv6
    } else {
        EtherType::Ipv4
    };
    let mut encap = Encap::new(
        vtep_address(policy.ordinal()),
        vtep_address(entry.ordinal),
        vni,
        source_mac,
        ether_type,
        endpoints.source_port ^ endpoints.destination_port.rotate_left(5),
    );
    if entry.of_site {
        encap.set_destination(MacAddr::of(network.ipv4_of(endpoints.destination)?));
    }
    Some(TunnelHeaders {
        encap,
        neighbour: (!entry.of_site).then_some(Neighbours::NOWHERE),
    })
}
