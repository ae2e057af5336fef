//! From an instance: who may send what where.

use super::to_tunnel::Outbound;
use super::{Shard, Turn, answers, denied, example_of};
use crate::drop::DropReason;
use crate::egress::{Egress, Handover, ShardId};
use crate::flow::{Arrival, Flow, FlowIndex, Hop, QuotaSlot, Tracking, TunnelHeaders, Verdict};
use crate::frame::{Frame, Segmentation};
use crate::overlay::{Encap, Neighbours};
use crate::plan::{Mtu, Vni, vtep_address};
use crate::responder::icmp::IcmpError;
use crate::snapshot::{MemberEntry, Policy, PortEntry};
use crate::stats::PacketExample;
use crate::time::Instant;
use crate::wire::vxlan::EtherType;
use crate::wire::{Direction, Endpoints, FlowKey, Headers, MacAddr, Transport, home, quoted};
use std::net::IpAddr;

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

/// How a packet of a port came to this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// This shard read it.
    Read,
    /// The shard that read it handed it over: it is handled here, whatever its home.
    HandedOver,
}

impl Shard {
    /// Handles one packet of an instance, and counts what becomes of it.
    pub(super) fn packet_from_port(
        &mut self,
        port: &PortEntry,
        frame: &mut Frame,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let mut example = example_of(Arrival::Port(port.id));
        let outcome = match Headers::parse(frame.packet()) {
            Err(reason) => Err(reason),
            Ok(headers) if !frame.offload.agrees_with(&headers) => Err(DropReason::Malformed),
            Ok(headers) => {
                frame.truncate(headers.total_length);
                let endpoints = headers.endpoints();
                example.packet = Some(packet_example(&endpoints));
                if came == Came::Read {
                    let traffic = self.counters.port(port.id);
                    traffic.received_packets += packets_in(frame, &headers);
                    traffic.received_bytes += headers.total_length as u64;
                }
                match own_network(port, &endpoints) {
                    Err(reason) => Err(reason),
                    Ok(member) => {
                        example.vni = Some(member.vni);
                        self.route_from_port(port, member, frame, headers, came, turn)
                    }
                }
            }
        };
        if let Err(reason) = outcome {
            self.counters.drop_example(reason, example);
        }
    }

    pub(super) fn route_from_port(
        &mut self,
        port: &PortEntry,
        member: &MemberEntry,
        frame: &mut Frame,
        mut headers: Headers,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        if headers.transport == Transport::Fragment {
            return self.fragment_from_port(port, member, frame, &headers, came, turn);
        }
        if self.relief.port && came == Came::Read {
            self.relieve_by_frame(frame, &mut headers)?;
        }
        let arrival = Arrival::Port(port.id);
        let found = match self.flow(member.vni, &headers, frame.packet(), arrival, came, turn) {
            Ok(found) => found,
            Err(NotHere::Home(shard)) => return self.hand_over(shard, port, frame, turn),
            Err(NotHere::Verdict(Verdict::Answer(answer))) => {
                return self.answer(port, answer, frame.packet(), turn);
            }
            Err(NotHere::Verdict(verdict)) => return Err(denied(verdict)),
        };
        let service = member.service_address(headers.source);
        if headers.hop_limit <= 1 {
            self.icmp_error(port, IcmpError::TimeExceeded, service, frame.packet(), turn);
            return Err(DropReason::HopLimitExceeded);
        }
        let mtu = match found.hop {
            Hop::Port(slot) => turn.policy.port(slot).map(|port| port.mtu),
            Hop::Tunnel(peer) => turn.policy.peer(peer).map(|peer| peer.mtu),
        };
        let mtu = mtu.ok_or(DropReason::NoPeer)?;
        if !headers.dont_fragment {
            cut_smaller(frame, &headers, mtu);
        }
        let fits = longest_packet(frame, &headers) <= usize::from(mtu.get());
        if !fits && (headers.dont_fragment || frame.offload.segmentation != Segmentation::None) {
            self.icmp_error(port, IcmpError::TooBig { mtu }, service, frame.packet(), turn);
            return Err(DropReason::PacketTooBig);
        }
        headers.decrement_hop_limit(frame.packet_mut());
        if !fits {
            frame.finish_checksum(&headers);
        }
        self.forward(&found, member.vni, frame, &headers, turn)
    }

    /// Passes a packet, as it came, to the shard where its flow lives. A frame of the pool takes its place: a short
    /// packet is copied into it, a long one leaves in its own.
    pub(super) fn hand_over(
        &mut self,
        to: ShardId,
        port: &PortEntry,
        frame: &mut Frame,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let mut passed = self
            .pool
            .take_to_pass(frame.packet().len())
            .ok_or(DropReason::NoBuffer)?;
        if passed.capacity() < frame.capacity() {
            passed.fill(frame.packet(), frame.offload);
        } else {
            std::mem::swap(&mut passed, frame);
        }
        let handover = Handover::Judge {
            frame: passed,
            port: port.id,
        };
        turn.egress
            .handover(to, handover)
            .map_err(|Handover::Judge { frame, .. }| {
                self.pool.recycle(frame);
                DropReason::HandoverFull
            })
    }

    fn forward(
        &mut self,
        found: &Found,
        vni: Vni,
        frame: &Frame,
        headers: &Headers,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        match found.hop {
            Hop::Port(slot) => {
                let port = turn.policy.port(slot).ok_or(DropReason::NoInstance)?;
                if must_be_cut(frame, headers, port.mtu) {
                    return self.deliver_in_parts(port, frame.packet(), headers, turn.egress);
                }
                answers::deliver(port, frame, Some(headers), turn.egress, &mut self.counters);
                Ok(())
            }
            Hop::Tunnel(peer) => {
                let outbound = Outbound {
                    peer,
                    vni,
                    home: found.home,
                    flow: Some(found.index),
                };
                self.send_to_peer(&outbound, frame, headers, turn)
            }
        }
    }

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

/// The network that a packet of a port is in, after the source guard: only the port's own address in it.
fn own_network<'a>(port: &'a PortEntry, endpoints: &Endpoints) -> Result<&'a MemberEntry, DropReason> {
    if is_martian(endpoints.source) {
        return Err(DropReason::SourceMartian);
    }
    if is_group(endpoints.destination) {
        return Err(DropReason::Multicast);
    }
    match port
        .memberships
        .iter()
        .find(|member| member.covers(endpoints.destination))
    {
        Some(member) if member.owns(endpoints.source) => Ok(member),
        Some(_) => Err(DropReason::SourceNotOwn),
        // No network covers it: it wants out, from whichever address of its own.
        None if port
            .memberships
            .iter()
            .any(|member| member.owns(endpoints.source)) =>
        {
            Err(DropReason::OutboundDenied)
        }
        None => Err(DropReason::SourceNotOwn),
    }
}

/// Sources that no host has (RFC 1122 §3.2.1.3, RFC 4291 §2.5, §2.7).
pub(super) fn is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => {
            source.is_multicast() || source.is_broadcast() || source.is_loopback() || source.octets()[0] == 0
        }
        IpAddr::V6(source) => source.is_multicast() || source.is_loopback() || source.is_unspecified(),
    }
}

/// Destinations that are many.
pub(super) fn is_group(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(destination) => destination.is_multicast() || destination.is_broadcast(),
        IpAddr::V6(destination) => destination.is_multicast(),
    }
}

/// Makes a TCP super-packet that its sender lets be fragmented fit by shorter segments, which spares the fragments.
fn cut_smaller(frame: &mut Frame, headers: &Headers, mtu: Mtu) {
    let room = usize::from(mtu.get()).saturating_sub(headers.payload_offset);
    if let Segmentation::Tcp { size, .. } = &mut frame.offload.segmentation {
        *size = u16::try_from(room).map_or(*size, |room| room.min(*size));
    }
}

/// Length of the longest packet that a frame stands for.
fn longest_packet(frame: &Frame, headers: &Headers) -> usize {
    match frame.offload.segmentation {
        Segmentation::None => headers.total_length,
        Segmentation::Tcp { size, .. } | Segmentation::Udp { size } => headers
            .total_length
            .min(headers.payload_offset + usize::from(size)),
    }
}

/// Whether a packet goes on in fragments: its sender lets it be cut (RFC 791 §3.2), and the next link doesn't take it.
pub(super) fn must_be_cut(frame: &Frame, headers: &Headers, mtu: Mtu) -> bool {
    !headers.dont_fragment && longest_packet(frame, headers) > usize::from(mtu.get())
}

/// Packets that a frame stands for.
pub(super) fn packets_in(frame: &Frame, headers: &Headers) -> u64 {
    match frame.offload.segmentation {
        Segmentation::None => 1,
        Segmentation::Tcp { size, .. } | Segmentation::Udp { size } => {
            let payload = headers.total_length - headers.payload_offset;
            payload.div_ceil(usize::from(size).max(1)).max(1) as u64
        }
    }
}

/// A packet's addresses as a drop's example shows them.
pub(super) fn packet_example(endpoints: &Endpoints) -> PacketExample {
    PacketExample {
        protocol: endpoints.protocol,
        source: endpoints.source,
        source_port: endpoints.source_port,
        destination: endpoints.destination,
        destination_port: endpoints.destination_port,
    }
}
