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
use crate::event::{Event, LoggedQuery, Origin};
use crate::frame::{Frame, FramePool, Offload, SMALL, Segmentation};
use crate::plan::PortId;
use crate::responder::dns::forward::{Asker, Due, Forwarded, Forwarder, Told};
use crate::responder::dns::streams::{Said, Segment, Streams, Surroundings, Taken};
use crate::responder::dns::{self, Answered, Outcome, PAYLOAD, Question, Rcode, Rotation, Transport};
use crate::snapshot::{Names, Policy, PortEntry, View};
use crate::stats::DnsReport;
use crate::time::Instant;
use crate::wire::{Endpoints, Headers, Transport as Carried, tcp_flags};
use std::num::NonZeroU8;
use std::sync::Arc;

/// What a shard knows about DNS beside the names.
pub(super) struct Dns {
    rotation: Rotation,
    counts: DnsReport,
    streams: Streams,
    forwarder: Forwarder,
    log: QueryLog,
}

/// Queries that are told one by one.
#[derive(Default)]
struct QueryLog {
    queries: Vec<LoggedQuery>,
    lost: u64,
}

/// Queries that wait to be told: what a port may bring in a turn.
const MOST_LOGGED: usize = 64;

impl QueryLog {
    fn note(&mut self, port: PortId, question: Option<Question>, rcode: Rcode, origin: Origin) {
        match question {
            Some(question) if self.queries.len() < MOST_LOGGED => self.queries.push(LoggedQuery {
                port,
                question,
                rcode,
                origin,
            }),
            // What asks for nothing is no query to be told.
            Some(_) => self.lost += 1,
            None => {}
        }
    }
}

impl Dns {
    pub(super) fn new(shards: NonZeroU8, seed: u64) -> Self {
        let shards = usize::from(shards.get());
        Self {
            rotation: Rotation::default(),
            counts: DnsReport::default(),
            streams: Streams::new(shards, seed),
            forwarder: Forwarder::new(shards, seed),
            log: QueryLog::default(),
        }
    }

    /// Forgets the connections and questions of ports that are gone.
    pub(super) fn install(&mut self, policy: &Policy) {
        let is_there = |port| policy.port_slot(port).is_some();
        self.streams.retain(is_there);
        self.forwarder.retain(is_there);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = [self.streams.poll_timeout(), self.forwarder.poll_timeout()];
        due.into_iter().flatten().min()
    }

    /// The next thing that somebody else should know.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        if let Some(question) = self.forwarder.poll_question() {
            return Some(Event::Question(question));
        }
        let queries = std::mem::take(&mut self.log.queries);
        (!queries.is_empty()).then_some(Event::Queries(queries))
    }

    pub(super) fn report(&self) -> DnsReport {
        let counts = self.forwarder.counts();
        let (remembered, bytes) = self.forwarder.remembered();
        DnsReport {
            connections: self.streams.len() as u64,
            connections_cut: self.streams.cut(),
            unlogged: self.log.lost,
            asked: counts.asked,
            cached: counts.cached,
            stale: counts.stale,
            overflown: counts.overflown,
            waiting: self.forwarder.waiting() as u64,
            remembered: remembered as u64,
            remembered_bytes: bytes as u64,
            ..self.counts
        }
    }

    fn clerk<'a>(&'a mut self, names: &'a Names, now: Instant) -> (Clerk<'a>, &'a mut Streams) {
        let clerk = Clerk {
            names,
            rotation: &mut self.rotation,
            counts: &mut self.counts,
            forwarder: &mut self.forwarder,
            log: &mut self.log,
            now,
        };
        (clerk, &mut self.streams)
    }
}

/// Answers messages, by the names inside and what is known of the world beyond.
struct Clerk<'a> {
    names: &'a Names,
    rotation: &'a mut Rotation,
    counts: &'a mut DnsReport,
    forwarder: &'a mut Forwarder,
    log: &'a mut QueryLog,
    now: Instant,
}

impl Clerk<'_> {
    /// Answers one message, and counts it.
    fn reply(&mut self, asker: Asker, message: &[u8], transport: Transport, out: &mut [u8]) -> Said {
        let Some(view) = self.names.view(asker.port()) else {
            return Said::Nothing;
        };
        let (answered, origin) = match dns::answer(message, view, transport, self.rotation, out) {
            Outcome::Answer(answered) => (answered, Origin::Names),
            Outcome::Forward(query) => match self.forwarder.ask(&query, asker, transport, self.now, out) {
                Forwarded::Answered(answered) => (answered, Origin::Memory),
                Forwarded::Waits => return Said::Later,
                Forwarded::Ignored => return Said::Nothing,
            },
            Outcome::Ignore => return Said::Nothing,
        };
        if view.is_logged() {
            let question = Question::of_message(message);
            self.log.note(asker.port(), question, answered.rcode, origin);
        }
        Said::Answer(count(answered, self.counts))
    }

    /// Writes the answer to a query that waited, and counts it.
    fn reply_late(&mut self, due: &Due, out: &mut [u8]) -> Option<usize> {
        let answered = due.write(out)?;
        let port = due.asker.port();
        if self.names.view(port).is_some_and(View::is_logged) {
            self.log
                .note(port, Some(due.question()), answered.rcode, Origin::Upstream);
        }
        Some(count(answered, self.counts))
    }
}

/// Counts an answer, and gives its length.
fn count(answered: Answered, counts: &mut DnsReport) -> usize {
    counts.queries += 1;
    counts.truncated += u64::from(answered.truncated);
    let count = match answered.rcode {
        Rcode::NoError => &mut counts.no_error,
        Rcode::NxDomain => &mut counts.nx_domain,
        Rcode::ServFail => &mut counts.failed,
        Rcode::Refused => &mut counts.refused,
        Rcode::FormErr | Rcode::NotImp | Rcode::BadVers => &mut counts.faulty,
    };
    *count += 1;
    answered.length
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
        let asker = Asker::Datagram {
            port: port.id,
            endpoints: headers.endpoints(),
        };
        let Some(snapshot) = &self.snapshot else {
            return Err(DropReason::UnknownPort);
        };
        let (mut clerk, _) = self.dns.clerk(snapshot.names(), turn.now);
        let mut unanswered = usize::from(payload.is_empty());
        for message in payload.chunks(size) {
            let Some(mut frame) = self.pool.take(SMALL) else {
                self.counters.drop(DropReason::NoBuffer);
                continue;
            };
            let mut said = Said::Nothing;
            let written = dns::datagram(&headers.endpoints(), frame.receive_buffer(0), |room| {
                said = clerk.reply(asker, message, Transport::Udp { limit: PAYLOAD }, room);
                match said {
                    Said::Answer(length) => Some(length),
                    Said::Later | Said::Nothing => None,
                }
            });
            match (written, said) {
                (Some(length), _) => {
                    frame.set_received(length, Offload::NONE);
                    deliver(port, &frame, None, turn.egress, &mut self.counters);
                }
                (None, Said::Later) => {}
                (None, Said::Answer(_) | Said::Nothing) => unanswered += 1,
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

    /// Takes what was found out about the world beyond: whoever waits for it is answered.
    pub fn handle_told(&mut self, told: &[Arc<Told>], now: Instant, egress: &mut impl Egress) {
        for told in told {
            self.dns.forwarder.handle_told(told, now);
        }
        if let Some(snapshot) = self.snapshot.clone() {
            let policy = snapshot.policy();
            self.answer_due(&mut Turn { policy, now, egress });
        }
    }

    /// Does what is due for connections and for queries that wait.
    pub(super) fn expire_dns(&mut self, turn: &mut Turn<'_, impl Egress>) {
        self.dns.forwarder.handle_timeout(turn.now);
        self.answer_due(turn);
        self.with_streams(turn, |streams, now, surroundings| {
            streams.handle_timeout(now, surroundings);
        });
    }

    /// Answers the queries that wait no longer.
    fn answer_due(&mut self, turn: &mut Turn<'_, impl Egress>) {
        while let Some(due) = self.dns.forwarder.poll_due() {
            match due.asker {
                Asker::Datagram { port, endpoints } => self.answer_late(port, &endpoints, &due, turn),
                Asker::Stream { connection, .. } => {
                    self.with_streams(turn, |streams, now, surroundings| {
                        // Who asked may have hung up.
                        streams.resume(connection, now, surroundings, |surroundings, room| {
                            surroundings.clerk.reply_late(&due, room)
                        })
                    });
                }
            }
        }
    }

    /// Answers a datagram that waited.
    fn answer_late(
        &mut self,
        port: PortId,
        endpoints: &Endpoints,
        due: &Due,
        turn: &mut Turn<'_, impl Egress>,
    ) {
        let entry = turn
            .policy
            .port_slot(port)
            .and_then(|slot| turn.policy.port(slot));
        let Some(entry) = entry else {
            return self.counters.drop(DropReason::UnknownPort);
        };
        let Some(mut frame) = self.pool.take(SMALL) else {
            return self.counters.drop(DropReason::NoBuffer);
        };
        let Some(snapshot) = &self.snapshot else { return };
        let (mut clerk, _) = self.dns.clerk(snapshot.names(), turn.now);
        let written = dns::datagram(endpoints, frame.receive_buffer(0), |room| {
            clerk.reply_late(due, room)
        });
        if let Some(length) = written {
            frame.set_received(length, Offload::NONE);
            deliver(entry, &frame, None, turn.egress, &mut self.counters);
        }
        self.pool.recycle(frame);
    }

    /// `None` before the first plan.
    fn with_streams<E: Egress, R>(
        &mut self,
        turn: &mut Turn<'_, E>,
        work: impl FnOnce(&mut Streams, Instant, &mut Desk<'_, E>) -> R,
    ) -> Option<R> {
        let names = self.snapshot.as_ref()?.names();
        let (clerk, streams) = self.dns.clerk(names, turn.now);
        let mut desk = Desk {
            clerk,
            policy: turn.policy,
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
    clerk: Clerk<'a>,
    policy: &'a Policy,
    pool: &'a mut FramePool,
    counters: &'a mut Counters,
    egress: &'a mut E,
}

impl<E: Egress> Surroundings for Desk<'_, E> {
    fn answer(&mut self, port: PortId, connection: u64, query: &[u8], out: &mut [u8]) -> Said {
        let asker = Asker::Stream { port, connection };
        self.clerk.reply(asker, query, Transport::Tcp, out)
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
