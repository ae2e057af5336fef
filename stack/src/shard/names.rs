//! DNS at the service address: what a port asks is answered by its own view of the names, whatever source it writes.
//!
//! A datagram is answered by the shard that read it. The connections of a port live on one shard, by the port's number;
//! what another one reads of them is handed over.

use super::answers::deliver;
use super::counters::Counters;
use super::from_port::Came;
use super::{Shard, Turn};
use crate::drop::DropReason;
use crate::egress::{Egress, ShardId};
use crate::frame::{Frame, FramePool, Offload, SMALL, Segmentation};
use crate::plan::PortId;
use crate::responder::dns::streams::{Segment, Streams, Surroundings, Taken};
use crate::responder::dns::{self, Outcome, PAYLOAD, Rcode, Rotation, Transport};
use crate::snapshot::{Names, Policy, PortEntry};
use crate::stats::DnsReport;
use crate::time::Instant;
use crate::wire::{Headers, Transport as Carried, tcp_flags};
use std::num::NonZeroU8;

/// What a shard knows about DNS beside the names.
pub(super) struct Dns {
    rotation: Rotation,
    counts: DnsReport,
    streams: Streams,
}

impl Dns {
    pub(super) fn new(shards: NonZeroU8, seed: u64) -> Self {
        Self {
            rotation: Rotation::default(),
            counts: DnsReport::default(),
            streams: Streams::new(usize::from(shards.get()), seed),
        }
    }

    /// Forgets the connections of ports that are gone.
    pub(super) fn install(&mut self, policy: &Policy) {
        self.streams.retain(|port| policy.port_slot(port).is_some());
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.streams.poll_timeout()
    }

    pub(super) fn report(&self) -> DnsReport {
        DnsReport {
            connections: self.streams.len() as u64,
            connections_cut: self.streams.cut(),
            ..self.counts
        }
    }
}

/// Answers one message of a port, and counts it; `None`: it is no query.
fn reply(
    port: PortId,
    message: &[u8],
    transport: Transport,
    names: &Names,
    rotation: &mut Rotation,
    counts: &mut DnsReport,
    out: &mut [u8],
) -> Option<usize> {
    let view = names.view(port)?;
    let outcome = match dns::answer(message, view, transport, rotation, out) {
        // The one place where questions about the world beyond go on from.
        Outcome::Forward(query) => dns::refuse(&query, Rcode::Refused, transport, out),
        outcome => outcome,
    };
    let Outcome::Answer(answered) = outcome else {
        return None;
    };
    counts.queries += 1;
    counts.truncated += u64::from(answered.truncated);
    let count = match answered.rcode {
        Rcode::NoError => &mut counts.no_error,
        Rcode::NxDomain => &mut counts.nx_domain,
        Rcode::Refused => &mut counts.refused,
        Rcode::FormErr | Rcode::NotImp | Rcode::BadVers => &mut counts.faulty,
    };
    *count += 1;
    Some(answered.length)
}

impl Shard {
    /// Answers the queries of a datagram to the service address, or of a super-packet of them.
    pub(super) fn answer_datagram(
        &mut self,
        port: &PortEntry,
        frame: &Frame,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let headers = Headers::parse(frame.packet())?;
        let payload = payload(frame, &headers);
        let size = match frame.offload.segmentation {
            Segmentation::Udp { size } | Segmentation::Tcp { size, .. } => usize::from(size).max(1),
            Segmentation::None => payload.len().max(1),
        };
        let endpoints = headers.endpoints();
        let Some(snapshot) = &self.snapshot else {
            return Err(DropReason::UnknownPort);
        };
        let mut unanswered = usize::from(payload.is_empty());
        for message in payload.chunks(size) {
            let Some(mut frame) = self.pool.take(SMALL) else {
                self.counters.drop(DropReason::NoBuffer);
                continue;
            };
            let Dns { rotation, counts, .. } = &mut self.dns;
            let written = dns::datagram(&endpoints, frame.receive_buffer(0), |room| {
                let transport = Transport::Udp { limit: PAYLOAD };
                reply(
                    port.id,
                    message,
                    transport,
                    snapshot.names(),
                    rotation,
                    counts,
                    room,
                )
            });
            match written {
                Some(length) => {
                    frame.set_received(length, Offload::NONE);
                    deliver(port, &frame, None, turn.egress, &mut self.counters);
                }
                None => unanswered += 1,
            }
            self.pool.recycle(frame);
        }
        match unanswered.checked_sub(1) {
            None => Ok(()),
            Some(others) => {
                self.counters.drop_many(DropReason::NotAQuery, others);
                Err(DropReason::NotAQuery)
            }
        }
    }

    /// Takes a TCP segment to the service address to its connection.
    pub(super) fn answer_segment(
        &mut self,
        port: &PortEntry,
        frame: &mut Frame,
        came: Came,
        turn: &mut Turn<'_, impl Egress>,
    ) -> Result<(), DropReason> {
        let home = ShardId((port.id.0 % u32::from(self.count.get())) as u8);
        if came == Came::Read && home != self.id {
            return self.hand_over(home, port, frame, turn);
        }
        let headers = Headers::parse(frame.packet())?;
        let flags = match headers.transport {
            Carried::Tcp { flags, .. } => flags,
            Carried::Udp { .. }
            | Carried::Echo { .. }
            | Carried::IcmpError
            | Carried::IcmpOther
            | Carried::Fragment
            | Carried::Other => return Err(DropReason::ServiceAddress),
        };
        let ends = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        let segment = Segment {
            port: port.id,
            mtu: port.mtu,
            endpoints: headers.endpoints(),
            begins: flags & ends == tcp_flags::SYN,
            packet: frame.packet(),
        };
        let taken = self.with_streams(turn, |streams, now, surroundings| {
            streams.handle_segment(&segment, now, surroundings)
        });
        match taken {
            Some(Taken::Connection) => Ok(()),
            Some(Taken::Stranger) | None => self.reset(port, frame.packet(), turn),
            Some(Taken::Full) => {
                // It is told, as far as TCP lets it be.
                let _ = self.reset(port, frame.packet(), turn);
                Err(DropReason::DnsConnections)
            }
        }
    }

    /// Does what is due for connections.
    pub(super) fn expire_streams(&mut self, turn: &mut Turn<'_, impl Egress>) {
        self.with_streams(turn, |streams, now, surroundings| {
            streams.handle_timeout(now, surroundings);
        });
    }

    /// `None` before the first plan.
    fn with_streams<E: Egress, R>(
        &mut self,
        turn: &mut Turn<'_, E>,
        work: impl FnOnce(&mut Streams, Instant, &mut Desk<'_, E>) -> R,
    ) -> Option<R> {
        let Dns {
            rotation,
            counts,
            streams,
        } = &mut self.dns;
        let mut desk = Desk {
            names: self.snapshot.as_ref()?.names(),
            policy: turn.policy,
            rotation,
            counts,
            pool: &mut self.pool,
            counters: &mut self.counters,
            egress: turn.egress,
        };
        Some(work(streams, turn.now, &mut desk))
    }
}

/// What stands behind the UDP header; it may be less than what is there (RFC 768, Length).
fn payload<'a>(frame: &'a Frame, headers: &Headers) -> &'a [u8] {
    let packet = frame.packet();
    let length = packet
        .get(headers.transport_offset + 4..)
        .and_then(|field| field.first_chunk::<2>());
    let end = length.map_or(0, |field| {
        headers.transport_offset + usize::from(u16::from_be_bytes(*field))
    });
    packet.get(headers.payload_offset..end).unwrap_or_default()
}

/// Where connections are served from: the shard, without its connections.
struct Desk<'a, E: Egress> {
    names: &'a Names,
    policy: &'a Policy,
    rotation: &'a mut Rotation,
    counts: &'a mut DnsReport,
    pool: &'a mut FramePool,
    counters: &'a mut Counters,
    egress: &'a mut E,
}

impl<E: Egress> Surroundings for Desk<'_, E> {
    fn answer(&mut self, port: PortId, query: &[u8], out: &mut [u8]) -> Option<usize> {
        reply(
            port,
            query,
            Transport::Tcp,
            self.names,
            self.rotation,
            self.counts,
            out,
        )
    }

    fn send(&mut self, port: PortId, packet: &[u8]) {
        let entry = self
            .policy
            .port_slot(port)
            .and_then(|slot| self.policy.port(slot));
        let Some(entry) = entry else {
            return self.counters.drop(DropReason::UnknownPort);
        };
        let Some(mut frame) = self.pool.take(packet.len()) else {
            return self.counters.drop(DropReason::NoBuffer);
        };
        frame.fill(packet, Offload::NONE);
        deliver(entry, &frame, None, self.egress, self.counters);
        self.pool.recycle(frame);
    }
}
