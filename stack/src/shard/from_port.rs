//! From an instance: who may send what where.

use super::flows::{Found, NotHere, Seeker};
use super::to_tunnel::Outbound;
use super::{Shard, Turn, answers, denied, example_of};
use crate::drop::DropReason;
use crate::egress::{Egress, Handover, ShardId};
use crate::flow::{Arrival, Hop, Verdict};
use crate::frame::{Frame, Segmentation};
use crate::plan::{Mtu, Vni};
use crate::responder::icmp::IcmpError;
use crate::snapshot::{MemberEntry, PortEntry};
use crate::stats::PacketExample;
use crate::wire::{Endpoints, Headers, Transport};

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
        example.application = port.memberships.first().map(|own| own.vni);
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
                match port.admit(&endpoints) {
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
        let seeker = Seeker {
            vni: member.vni,
            headers: &headers,
            packet: frame.packet(),
            packets: packets_in(frame, &headers),
            arrival: Arrival::Port(port.id),
            came,
        };
        let found = match self.flow(&seeker, turn) {
            Ok(found) => found,
            Err(NotHere::Home(shard)) => return self.hand_over(shard, port, frame, turn),
            Err(NotHere::Verdict(Verdict::Answer(answer))) => {
                return self.answer(port, answer, frame, came, turn);
            }
            Err(NotHere::Verdict(Verdict::Deny(DropReason::ServiceAddress))) => {
                return self.hear(port, frame, &headers, came, turn);
            }
            Err(NotHere::Verdict(verdict)) => {
                if let Verdict::Reject(_) = verdict {
                    let service = member.service_address(headers.source);
                    self.refuse(port, service, frame.packet(), turn);
                }
                return Err(denied(verdict));
            }
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
