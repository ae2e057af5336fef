//! DNS over TCP (RFC 7766): the connections of one shard's ports with the service address, each ended by smoltcp.
//!
//! The walk of a packet: its connection by port and addresses, or a new one for a SYN → smoltcp orders and acknowledges
//! → whole messages behind their lengths (RFC 1035 §4.2.2) are answered in their order → smoltcp's segments go out.
//! Queries may come behind each other without waiting. What isn't taken off us stops the reading of more, and so does an
//! answer that comes later ([`Streams::resume`]).
//!
//! | bound | then |
//! |---|---|
//! | [`MOST`] connections of a host, [`MOST_OF_PORT`] of a port | a SYN is reset |
//! | [`LONGEST_QUERY`] bytes of a message | the connection is cut (a reset) |
//! | [`SLOWEST`] from a message's first byte to its last | the connection is cut |
//! | [`IDLE`] since the last query | the connection is closed; it is cut when answers weren't taken |
//! | [`CLOSING`] since it was closed | the connection is cut |

use crate::plan::{Mtu, PortId};
use crate::responder::endpoint::{self, Endpoint, LARGEST_PACKET, Secret};
use crate::time::Instant;
use crate::wire::Endpoints;
use smoltcp::socket::tcp;
use std::net::SocketAddr;
use std::time::Duration;

/// Connections of all shards of a host.
pub const MOST: usize = 64;
/// Connections of one port.
pub const MOST_OF_PORT: usize = 4;
/// Bytes of a query: the longest name, and room for options.
pub const LONGEST_QUERY: usize = 4096;
/// How long a message may take.
pub const SLOWEST: Duration = Duration::from_secs(5);
/// How long a connection stays without a query (RFC 7766 §6.2.3).
pub const IDLE: Duration = Duration::from_secs(10);
/// How long the end of a connection may take.
pub const CLOSING: Duration = Duration::from_secs(5);

/// Two bytes of length in front of a message.
const PREFIX: usize = 2;
const SEND_BUFFER: usize = 8192;
const WAITING: endpoint::Buffers = endpoint::Buffers {
    receive: 4096,
    send: SEND_BUFFER,
};

/// What connections ask of their surroundings.
pub trait Surroundings {
    /// Answers a query on a connection of a port into `out`.
    fn answer(&mut self, port: PortId, connection: u64, query: &[u8], out: &mut [u8]) -> Said;
    /// Gives an IP packet to a port.
    fn send(&mut self, port: PortId, packet: &[u8]);
}

/// What is said to a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// An answer of this length.
    Answer(usize),
    /// The answer comes later.
    Later,
    /// Nothing: it is no query.
    Nothing,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It belongs to a connection, perhaps a new one.
    Connection,
    /// It belongs to none.
    Stranger,
    /// It would begin one too many.
    Full,
}

/// A TCP segment of a port to the service address.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The port it came from.
    pub port: PortId,
    /// The largest packet that the port takes.
    pub mtu: Mtu,
    /// Its addresses.
    pub endpoints: Endpoints,
    /// Whether it is a SYN and nothing else: it may begin a connection.
    pub begins: bool,
    /// The IP packet.
    pub packet: &'a [u8],
}

/// The connections of one shard.
pub struct Streams {
    connections: Vec<Connection>,
    most: usize,
    secret: Secret,
    begun: u64,
    cut: u64,
    due: Option<Instant>,
    buffers: Buffers,
}

/// Rooms that connections take turns with.
struct Buffers {
    packet: Box<[u8]>,
    answer: Box<[u8]>,
}

/// Whether smoltcp has anything new to send.
enum Talk {
    Nothing,
    News,
    /// A reset: what was sent is no query.
    Cut,
}

struct Connection {
    /// Tells it from every other one there was.
    id: u64,
    port: PortId,
    endpoints: Endpoints,
    endpoint: Endpoint,
    /// The message that is being received, its length in front.
    message: Vec<u8>,
    /// When the first byte of it came.
    message_began: Option<Instant>,
    /// The answer that is being sent, its length in front, and how much of it smoltcp has.
    answer: Vec<u8>,
    answer_sent: usize,
    /// The answer comes later.
    waits: bool,
    /// When it began, or the last query came.
    active: Instant,
    /// When it was closed at this end.
    closed: Option<Instant>,
}

impl Streams {
    /// No connections yet; of `shards` shards each has its part of what a host may have. `seed` hides the first sequence
    /// numbers (RFC 6528).
    pub fn new(shards: usize, seed: u64) -> Self {
        Self {
            connections: Vec::new(),
            most: (MOST / shards.max(1)).max(MOST_OF_PORT),
            secret: Secret(seed),
            begun: 0,
            cut: 0,
            due: None,
            buffers: Buffers {
                packet: vec![0; usize::from(LARGEST_PACKET)].into_boxed_slice(),
                answer: vec![0; PREFIX + usize::from(u16::MAX)].into_boxed_slice(),
            },
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// How many were cut: too slow, or what they sent was no query.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// A segment.
    pub fn handle_segment(
        &mut self,
        segment: &Segment<'_>,
        now: Instant,
        surroundings: &mut impl Surroundings,
    ) -> Taken {
        let is_its = |connection: &Connection| {
            connection.port == segment.port && connection.endpoints == segment.endpoints
        };
        let place = match self.connections.iter().position(is_its) {
            Some(place) => place,
            None if !segment.begins => return Taken::Stranger,
            None => {
                let of_port = |connection: &&Connection| connection.port == segment.port;
                if self.connections.len() >= self.most
                    || self.connections.iter().filter(of_port).count() >= MOST_OF_PORT
                {
                    return Taken::Full;
                }
                let seed = self.sequence_seed(now);
                let Some(connection) = Connection::listen(segment, self.begun, seed, now) else {
                    return Taken::Stranger;
                };
                self.connections.push(connection);
                self.connections.len() - 1
            }
        };
        if let Some(connection) = self.connections.get_mut(place) {
            let cut = connection.advance(Some(segment.packet), now, &mut self.buffers, surroundings);
            self.cut += u64::from(cut);
            if connection.endpoint.is_over() {
                self.connections.swap_remove(place);
            }
        }
        self.reckon(now);
        Taken::Connection
    }

    /// Gives a connection the answer that it waits for: `write` writes it, and tells its length; without one the connection
    /// is cut. False when the connection is gone.
    pub fn resume<S: Surroundings>(
        &mut self,
        id: u64,
        now: Instant,
        surroundings: &mut S,
        write: impl FnOnce(&mut S, &mut [u8]) -> Option<usize>,
    ) -> bool {
        let mut connections = self.connections.iter();
        let Some(place) = connections.position(|connection| connection.id == id && connection.waits) else {
            return false;
        };
        if let Some(connection) = self.connections.get_mut(place) {
            let length = write(surroundings, &mut self.buffers.answer);
            connection.waits = false;
            let said = connection.say(length, now, &self.buffers.answer);
            let cut = connection.advance(None, now, &mut self.buffers, surroundings);
            self.cut += u64::from(cut || !said);
            if connection.endpoint.is_over() {
                self.connections.swap_remove(place);
            }
        }
        self.reckon(now);
        true
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, surroundings: &mut impl Surroundings) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        for connection in &mut self.connections {
            let late = connection.obey_deadlines(now);
            let cut = connection.advance(None, now, &mut self.buffers, surroundings);
            self.cut += u64::from(late || cut);
        }
        self.connections
            .retain(|connection| !connection.endpoint.is_over());
        self.reckon(now);
    }

    /// When [`Streams::handle_timeout`] wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Forgets the connections of ports that are gone.
    pub fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.connections.retain(|connection| is_there(connection.port));
    }

    fn reckon(&mut self, now: Instant) {
        self.due = self
            .connections
            .iter_mut()
            .map(|connection| connection.due(now))
            .min();
    }

    /// What smoltcp draws a connection's first sequence number from: nobody can tell it from another one's.
    fn sequence_seed(&mut self, now: Instant) -> u64 {
        self.begun += 1;
        self.secret.draw(&[self.begun, now.as_nanos()])
    }
}

impl Connection {
    /// A connection that waits for the SYN that it is made for.
    fn listen(segment: &Segment<'_>, id: u64, seed: u64, now: Instant) -> Option<Self> {
        let Endpoints {
            destination,
            destination_port,
            ..
        } = segment.endpoints;
        let service = SocketAddr::new(destination, destination_port);
        Some(Self {
            id,
            port: segment.port,
            endpoints: segment.endpoints,
            endpoint: Endpoint::listen(service, segment.mtu, WAITING, seed, now)?,
            message: Vec::new(),
            message_began: None,
            answer: Vec::new(),
            answer_sent: 0,
            waits: false,
            active: now,
            closed: None,
        })
    }

    /// Takes a packet in, answers what is whole by now, and sends what may be sent. Whether it cut the connection.
    fn advance(
        &mut self,
        packet: Option<&[u8]>,
        now: Instant,
        buffers: &mut Buffers,
        surroundings: &mut impl Surroundings,
    ) -> bool {
        let mut received = packet;
        let mut cut = false;
        loop {
            let port = self.port;
            let send = |packet: &[u8]| surroundings.send(port, packet);
            self.endpoint
                .poll(received.take(), now, &mut buffers.packet, send);
            match self.converse(now, &mut buffers.answer, surroundings) {
                Talk::Nothing => return cut,
                Talk::News => {}
                Talk::Cut => cut = true,
            }
        }
    }

    /// Reads and answers as long as there is something to read, and room for what is answered.
    fn converse(&mut self, now: Instant, room: &mut [u8], surroundings: &mut impl Surroundings) -> Talk {
        let mut socket = self.endpoint.socket();
        let mut news = Talk::Nothing;
        loop {
            if self.answer_sent < self.answer.len() {
                let rest = self.answer.get(self.answer_sent..).unwrap_or_default();
                let sent = socket.send_slice(rest).unwrap_or(0);
                if sent > 0 {
                    news = Talk::News;
                }
                self.answer_sent += sent;
                if self.answer_sent < self.answer.len() {
                    return news;
                }
            }
            if self.waits || !receive_message(socket, &mut self.message) {
                break;
            }
            let query = self.message.get(PREFIX..).unwrap_or_default();
            self.active = now;
            self.message_began = None;
            // Of a message that is too long nothing was read: no query either.
            let length = match surroundings.answer(self.port, self.id, query, room) {
                Said::Answer(length) => Some(length),
                Said::Later => {
                    self.waits = true;
                    self.message.clear();
                    break;
                }
                Said::Nothing => None,
            };
            if !self.say(length, now, room) {
                return Talk::Cut;
            }
            socket = self.endpoint.socket();
        }
        if !self.message.is_empty() {
            self.message_began.get_or_insert(now);
        }
        // The other end has no more to ask.
        if socket.state() == tcp::State::CloseWait && socket.recv_queue() == 0 && !self.waits {
            socket.close();
            self.closed.get_or_insert(now);
            news = Talk::News;
        }
        news
    }

    /// Has an answer sent, the first `length` bytes of `room`; without one the connection is cut, and false.
    fn say(&mut self, length: Option<usize>, now: Instant, room: &[u8]) -> bool {
        self.message.clear();
        self.active = now;
        let answer = length.and_then(|length| room.get(..length));
        let prefixed = answer.and_then(|answer| Some((answer, u16::try_from(answer.len()).ok()?)));
        let Some((answer, prefix)) = prefixed else {
            self.endpoint.socket().abort();
            return false;
        };
        self.answer.clear();
        // A long answer's room isn't kept.
        self.answer.shrink_to(SEND_BUFFER);
        self.answer.extend_from_slice(&prefix.to_be_bytes());
        self.answer.extend_from_slice(answer);
        self.answer_sent = 0;
        true
    }

    /// Ends what took too long; whether it was cut.
    fn obey_deadlines(&mut self, now: Instant) -> bool {
        let socket = self.endpoint.socket();
        let slow = self.message_began.is_some_and(|began| now >= began + SLOWEST);
        let stuck = self.closed.is_some_and(|closed| now >= closed + CLOSING);
        let idle = self.closed.is_none() && now >= self.active + IDLE;
        let untaken = self.answer_sent < self.answer.len() || socket.send_queue() > 0;
        if slow || stuck || (idle && untaken) {
            socket.abort();
            return true;
        }
        if idle {
            socket.close();
            self.closed = Some(now);
        }
        false
    }

    /// When it wants to be looked at next.
    fn due(&mut self, now: Instant) -> Instant {
        let deadline = match self.closed {
            Some(closed) => closed + CLOSING,
            None => self.active + IDLE,
        };
        let message = self.message_began.map(|began| began + SLOWEST);
        let segments = self.endpoint.poll_at(now);
        [message, segments]
            .into_iter()
            .flatten()
            .fold(deadline, Instant::min)
    }
}

/// Moves what has come of a message to the rest of it; whether it is whole. A message that is too long counts as whole
/// as soon as its length is known.
fn receive_message(socket: &mut tcp::Socket<'_>, message: &mut Vec<u8>) -> bool {
    loop {
        let wanted = match message.first_chunk::<PREFIX>() {
            None => PREFIX,
            Some(prefix) => {
                let whole = PREFIX + usize::from(u16::from_be_bytes(*prefix));
                if whole > PREFIX + LONGEST_QUERY || message.len() == whole {
                    return true;
                }
                whole
            }
        };
        let before = message.len();
        message.resize(wanted, 0);
        let room = message.get_mut(before..).unwrap_or_default();
        let received = socket.recv_slice(room).unwrap_or(0);
        message.truncate(before + received);
        if received == 0 {
            return false;
        }
    }
}
