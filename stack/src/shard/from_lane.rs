//! Out of a tunnel: whose, authentic, VXLAN, a member's, from its own block; then to a port.

use super::flows::{NotHere, Seeker};
use super::from_port::{Came, packet_example};
use super::to_tunnel::{send_datagram, send_to};
use super::{Datagrams, PortOutput, Shard, Turn, answers, denied, example_of};
use crate::drop::DropReason;
use crate::egress::Egress;
use crate::flow::{Arrival, Hop, Verdict};
use crate::overlay::{Decapsulated, NeighbourKey, decap};
use crate::plan::{PeerId, Vni, vtep_address};
use crate::responder::arp::{self, Operation};
use crate::responder::ndp::{self, Ndp};
use crate::snapshot::{NetworkEntry, is_group, is_martian};
use crate::stats::DropExample;
use crate::wire::vxlan::EtherType;
use crate::wire::{Ecn, Headers, MacAddr, Transport, protocol};
use crate::wireguard::{Admission, HandshakeOutcome, Message, Opened, ReceiverIndex, TunnelPlace};
use std::net::IpAddr;

/// Who sent a packet.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    pub(super) peer: PeerId,
    /// By which tunnel it came.
    place: TunnelPlace,
}

/// Room for the answer to a handshake message, or to a question.
const SHORT: usize = 256;

impl Shard {
    /// Handles one datagram, and counts what becomes of it.
    pub(super) fn datagram_from_lane(
        &mut self,
        datagrams: &Datagrams<'_>,
        bytes: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let outcome = match Message::classify(bytes) {
            Some(Message::Data { receiver, .. }) => {
                return self.data_from_lane(receiver, datagrams, bytes, turn);
            }
            Some(message) => self.handshake_from_lane(message, datagrams, bytes, turn),
            None => Err(DropReason::NotWireguard),
        };
        if let Err(reason) = outcome {
            self.counters.drop(reason);
        }
    }

    fn handshake_from_lane(
        &mut self,
        message: Message,
        datagrams: &Datagrams<'_>,
        bytes: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let Datagrams {
            lane: kind, source, ..
        } = *datagrams;
        let mut out = [0; SHORT];
        let lane = self.peers.lane_mut(kind).ok_or(DropReason::UnknownReceiver)?;
        let place = match (lane.admit(source, bytes, &mut out, turn.now), message) {
            (Admission::Initiation(key), _) => self
                .peers
                .called_by(kind, &key, turn.now)
                .ok_or(DropReason::UnknownKey)?,
            (Admission::Answer, Message::Response { receiver } | Message::CookieReply { receiver }) => self
                .peers
                .named(receiver, kind)
                .ok_or(DropReason::UnknownReceiver)?,
            (Admission::Answer, _) => return Err(DropReason::NotWireguard),
            (Admission::CookieReply(length), _) => {
                send_to(kind, source, &out[..length], turn.egress, &mut self.counters);
                return Err(DropReason::HandshakeFlood);
            }
            (Admission::Drop(reason), _) => return Err(reason),
        };
        let entry = self.peers.tunnel_mut(place).ok_or(DropReason::UnknownReceiver)?;
        let was_ready = entry.tunnel.is_ready();
        let reply = match entry.tunnel.handle_handshake(bytes, &mut out, turn.now) {
            HandshakeOutcome::Reply(length) => {
                // Back to where it came from, and no more: one that was recorded before this host's start can't be told
                // from a new one. What comes in the session proves where the peer is.
                send_to(kind, source, &out[..length], turn.egress, &mut self.counters);
                return Ok(());
            }
            HandshakeOutcome::Established { reply } => {
                // It answered what this end just asked: that is where the peer is.
                entry.endpoint = Some(source);
                reply
            }
            HandshakeOutcome::Nothing => 0,
            HandshakeOutcome::Drop(reason) => return Err(reason),
        };
        send_datagram(entry, &out[..reply], turn.egress, &mut self.counters);
        self.after_session_change(place, was_ready, turn);
        Ok(())
    }

    /// Sends what has waited for a session, when there is one now.
    fn after_session_change(
        &mut self,
        place: TunnelPlace,
        was_ready: bool,
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let Some(entry) = self.peers.tunnel_mut(place) else {
            return;
        };
        if was_ready || !entry.tunnel.is_ready() {
            return;
        }
        let peer = entry.peer;
        let waiting = self.peers.take_waiting(peer);
        self.send_waiting(peer, waiting, turn);
        let mut questions = Vec::new();
        self.neighbours
            .ask_again(peer, turn.now, |asked| questions.push(asked));
        for asked in questions {
            self.ask_neighbour(&asked, turn);
        }
    }

    fn data_from_lane(
        &mut self,
        receiver: ReceiverIndex,
        datagrams: &Datagrams<'_>,
        bytes: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let place = self.peers.named(receiver, datagrams.lane);
        let Some((place, entry)) = place.and_then(|place| Some((place, self.peers.tunnel_mut(place)?)))
        else {
            return self.counters.drop(DropReason::UnknownReceiver);
        };
        // The buffer leaves the shard while its contents are handled: nothing below opens another datagram.
        let mut plaintext = std::mem::take(&mut self.plaintext);
        let id = entry.peer;
        let was_ready = entry.tunnel.is_ready();
        let opened = entry.tunnel.open(bytes, &mut plaintext, turn.now);
        if !matches!(opened, Opened::Drop(_)) && entry.endpoint != Some(datagrams.source) {
            // The peer roams: an authentic datagram says where it is now (whitepaper §2.1).
            entry.endpoint = Some(datagrams.source);
        }
        if !was_ready {
            self.after_session_change(place, was_ready, turn);
        }
        match opened {
            Opened::Keepalive => {}
            Opened::Drop(reason) => {
                self.counters
                    .drop_example(reason, example_of(Arrival::Tunnel(id)));
            }
            Opened::Packet(length) => {
                let mut example = example_of(Arrival::Tunnel(id));
                let plain = &mut plaintext[..length];
                let from = Sender { peer: id, place };
                let outcome = self.plaintext_from_peer(from, datagrams.ecn, plain, &mut example, turn);
                if let Err(reason) = outcome {
                    self.counters.drop_example(reason, example);
                }
            }
        }
        self.plaintext = plaintext;
    }

    fn plaintext_from_peer(
        &mut self,
        from: Sender,
        ecn: Ecn,
        plain: &mut [u8],
        example: &mut DropExample,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let entry = turn.policy.peer(from.peer).ok_or(DropReason::NoPeer)?;
        let frame = decap(
            plain,
            vtep_address(entry.ordinal),
            vtep_address(turn.policy.ordinal()),
        )?;
        example.vni = Some(frame.vni);
        let network = turn.policy.network(frame.vni).ok_or(DropReason::UnknownVni)?;
        if !entry.networks.contains(frame.vni) {
            return Err(DropReason::NotMember);
        }
        let owner = entry.ordinal.get();
        match frame.ether_type {
            EtherType::Arp => self.arp_from_peer(from, owner, network, &frame, plain, turn),
            EtherType::Ipv4 | EtherType::Ipv6 => {
                let packet = &mut plain[frame.packet.clone()];
                let mut headers = Headers::parse(packet)?;
                if headers.is_ipv6() != (frame.ether_type == EtherType::Ipv6) {
                    return Err(DropReason::Malformed);
                }
                let endpoints = headers.endpoints();
                example.packet = Some(packet_example(&endpoints));
                if headers.protocol == protocol::ICMPV6
                    && let Some(message) = ndp::parse(&plain[frame.frame.clone()])
                {
                    return self.ndp_from_peer(from, owner, network, &frame, message, turn);
                }
                if is_martian(headers.source) {
                    return Err(DropReason::SourceMartian);
                }
                if is_group(headers.destination) {
                    return Err(DropReason::Multicast);
                }
                if network.owner(headers.source) != Some(owner) || !network.covers(headers.source) {
                    return Err(DropReason::ForeignSource);
                }
                // RFC 6040 §4.2, once for each header that came off.
                let outer = frame.ecn.decapsulated(ecn).ok_or(DropReason::EcnMismatch)?;
                let joined = headers.ecn().decapsulated(outer).ok_or(DropReason::EcnMismatch)?;
                let packet = &mut plain[frame.packet.clone()][..headers.total_length];
                headers.set_ecn(packet, joined);
                if headers.transport == Transport::Fragment {
                    self.count_received(from, packet);
                    return self.fragment_from_peer(from, frame.vni, packet, &headers, turn);
                }
                if self.relief.lane {
                    self.relieve_by_packet(packet, &mut headers)?;
                }
                self.count_received(from, packet);
                self.packet_from_peer(from, frame.vni, packet, &headers, turn)
            }
        }
    }

    fn count_received(&mut self, from: Sender, packet: &[u8]) {
        if let Some(entry) = self.peers.tunnel_mut(from.place) {
            entry.traffic.received_packets += 1;
            entry.traffic.received_bytes += packet.len() as u64;
        }
    }

    pub(super) fn packet_from_peer(
        &mut self,
        from: Sender,
        vni: Vni,
        packet: &[u8],
        headers: &Headers,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        // The sender chose this shard: it is never handed over.
        let seeker = Seeker {
            vni,
            headers,
            packet,
            packets: 1,
            arrival: Arrival::Tunnel(from.peer),
            came: Came::Read,
        };
        let found = match self.flow(&seeker, turn) {
            Ok(found) => found,
            Err(NotHere::Verdict(verdict)) => {
                if let Verdict::Reject(_) = verdict {
                    self.refuse_to_peer(from.peer, vni, packet, turn);
                }
                return Err(denied(verdict));
            }
            Err(NotHere::Home(_)) => return Err(DropReason::NoFlow),
        };
        let Hop::Port(slot) = found.hop else {
            return Err(DropReason::NoInstance);
        };
        let port = turn.policy.port(slot).ok_or(DropReason::NoInstance)?;
        if !headers.dont_fragment && packet.len() > usize::from(port.mtu.get()) {
            return self.deliver_in_parts(port, packet, headers, turn.egress);
        }
        if self.glue && port.offloads {
            let mut ports = PortOutput {
                policy: turn.policy,
                egress: turn.egress,
                counters: &mut self.counters,
            };
            self.coalescer
                .push(port.id, packet, headers, &mut self.pool, &mut ports);
            return Ok(());
        }
        let mut frame = self.pool.take(packet.len()).ok_or(DropReason::NoBuffer)?;
        frame.fill(packet, crate::frame::Offload::NONE);
        answers::deliver(port, &frame, Some(headers), turn.egress, &mut self.counters);
        self.pool.recycle(frame);
        Ok(())
    }

    /// ARP: questions about instances of this host are answered, answers of the peer's own block are kept.
    fn arp_from_peer(
        &mut self,
        from: Sender,
        owner: u8,
        network: &NetworkEntry,
        frame: &Decapsulated,
        plain: &[u8],
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let message = arp::parse(&plain[frame.frame.clone()]).ok_or(DropReason::NotOurs)?;
        let sender = IpAddr::V4(message.sender_ip);
        if network.owner(sender) == Some(owner) && network.covers(sender) {
            self.neighbour_found(from.peer, frame.vni, sender, message.sender_mac, turn);
        }
        if message.operation == Operation::Reply {
            return Ok(());
        }
        let target = IpAddr::V4(message.target_ip);
        if network.instance(target).is_none() {
            return Err(DropReason::NotOurs);
        }
        let mut out = [0; SHORT];
        let own = MacAddr::of(message.target_ip);
        let written = arp::reply(
            own,
            message.target_ip,
            message.sender_mac,
            message.sender_ip,
            &mut out,
        );
        let length = written.ok_or(DropReason::NotOurs)?;
        self.send_frame(from.place, frame.vni, &out[..length], turn);
        Ok(())
    }

    /// Neighbour discovery, likewise.
    fn ndp_from_peer(
        &mut self,
        from: Sender,
        owner: u8,
        network: &NetworkEntry,
        frame: &Decapsulated,
        message: Ndp,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let is_theirs = |address: IpAddr| network.owner(address) == Some(owner) && network.covers(address);
        match message {
            Ndp::Advertisement { target, mac, .. } => {
                let target = IpAddr::V6(target);
                if is_theirs(target) {
                    self.neighbour_found(from.peer, frame.vni, target, mac, turn);
                }
                Ok(())
            }
            Ndp::Solicitation {
                sender_ip,
                sender_mac,
                target,
            } => {
                let sender = IpAddr::V6(sender_ip);
                let sender_mac = sender_mac.unwrap_or(frame.source);
                if is_theirs(sender) {
                    self.neighbour_found(from.peer, frame.vni, sender, sender_mac, turn);
                }
                let target_address = IpAddr::V6(target);
                let own = network
                    .instance(target_address)
                    .and_then(|_| network.ipv4_of(target_address));
                let own = MacAddr::of(own.ok_or(DropReason::NotOurs)?);
                let mut out = [0; SHORT];
                let length = ndp::advertise(own, target, sender_mac, sender_ip, &mut out);
                let length = length.ok_or(DropReason::NotOurs)?;
                self.send_frame(from.place, frame.vni, &out[..length], turn);
                Ok(())
            }
        }
    }

    fn neighbour_found(
        &mut self,
        id: PeerId,
        vni: Vni,
        address: IpAddr,
        mac: MacAddr,
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let waiting = self
            .neighbours
            .confirm(&NeighbourKey { vni, address }, id, mac, turn.now);
        self.send_waiting(id, waiting.into_iter().map(|frame| (vni, frame)), turn);
    }
}
