//! One question to one name server (RFC 1035 §4.2, RFC 5452, RFC 7766).
//!
//! The walk: a datagram out of a socket of its own → what comes back is the answer only if server, port, identifier,
//! name, the case of its letters and type are those of the query; anything else is counted, and waiting goes on → what
//! doesn't fit into a datagram, or isn't to be trusted in one, is asked for over TCP → a server that doesn't
//! understand EDNS is asked once more without (RFC 6891 §7).
//!
//! The kernel draws the socket's port at random out of `ip_local_port_range`, and gives it nothing but what comes from
//! where it is connected to. A port that the host needs for something else is given back.

use super::upstreams::Candidate;
use ring::rand::{SecureRandom as _, SystemRandom};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidegate_stack::responder::dns::{Question, Reply, ReplyFault};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

/// When the datagram is sent again, since the first one: one may get lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(1500)];
/// Room for a datagram: more than the 1232 bytes that are asked for, as not all keep to that.
const LARGEST_DATAGRAM: usize = 4096;
/// Datagrams that weren't the answer after which none is waited for: somebody guesses.
const MOST_FORGED: u32 = 16;

/// Ports that the host needs for something else, after which the last one is taken all the same.
const DRAWS: u32 = 8;

/// Codes (RFC 1035 §4.1.1, RFC 6891 §9).
pub(super) const FORMAT_ERROR: u16 = 1;
pub(super) const NOT_IMPLEMENTED: u16 = 4;
pub(super) const REFUSED: u16 = 5;
const BAD_VERSION: u16 = 16;

/// UDP ports on which this host listens, or may have to at any time.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnPorts {
    /// The first and the last one of lanes.
    pub(super) lanes: (u16, u16),
    /// That of the link to other hosts.
    pub(super) control: u16,
}

impl OwnPorts {
    fn contains(self, port: u16) -> bool {
        (self.lanes.0..=self.lanes.1).contains(&port) || port == self.control
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It knows the answer, or that there is none.
    Answer(Reply),
    /// It says that it can't tell.
    Code(u16),
    /// Nothing was heard in time.
    Silence,
    /// It isn't reached, or what it says over TCP is no answer.
    Unreachable(io::Error),
}

/// Asks, until a time.
pub(super) async fn ask(
    question: &Question,
    upstream: &Candidate,
    own_ports: OwnPorts,
    until: Instant,
) -> Outcome {
    let exchange = Exchange {
        question,
        upstream,
        own_ports,
    };
    match timeout_at(until, exchange.in_any_form()).await {
        Ok(Ok(reply)) if reply.is_answer() => Outcome::Answer(reply),
        Ok(Ok(reply)) => Outcome::Code(reply.rcode()),
        Ok(Err(error)) => Outcome::Unreachable(error),
        Err(_) => Outcome::Silence,
    }
}

struct Exchange<'a> {
    question: &'a Question,
    upstream: &'a Candidate,
    own_ports: OwnPorts,
}

impl Exchange<'_> {
    async fn in_any_form(&self) -> io::Result<Reply> {
        let reply = self.by_any_way(true).await?;
        if matches!(reply.rcode(), FORMAT_ERROR | NOT_IMPLEMENTED | BAD_VERSION) {
            return self.by_any_way(false).await;
        }
        Ok(reply)
    }

    async fn by_any_way(&self, edns: bool) -> io::Result<Reply> {
        match self.by_datagram(edns).await? {
            Some(reply) => Ok(reply),
            None => self.by_stream(edns).await,
        }
    }

    /// Asks over UDP; `None` when it has to be asked over TCP.
    async fn by_datagram(&self, edns: bool) -> io::Result<Option<Reply>> {
        let socket = self.bind().await?;
        socket.connect(self.upstream.address).await?;
        let query = self.question.query(u16::from_be_bytes(draw()?), draw()?, edns);
        socket.send(&query).await?;

        let began = Instant::now();
        let mut again = AGAIN.map(|after| began + after).into_iter().peekable();
        let mut buffer = vec![0; LARGEST_DATAGRAM];
        let mut forged = 0;
        loop {
            let next = again.peek().copied();
            let received = tokio::select! {
                received = socket.recv(&mut buffer) => received?,
                () = sleep_until(next.unwrap_or(began)), if next.is_some() => {
                    again.next();
                    socket.send(&query).await?;
                    continue;
                }
            };
            match Reply::accept(buffer.get(..received).unwrap_or_default(), &query) {
                Ok(reply) if reply.is_truncated() => return Ok(None),
                Ok(reply) => return Ok(Some(reply)),
                // Not every server keeps the case of letters, and what was forged doesn't come over TCP.
                Err(ReplyFault::Case) => {
                    tracing::debug!(upstream = %self.upstream.address, "an answer in another case: asking over TCP");
                    return Ok(None);
                }
                Err(fault) => {
                    tracing::debug!(upstream = %self.upstream.address, %fault, "a datagram isn't the answer");
                    self.upstream.forged.fetch_add(1, Ordering::Relaxed);
                    forged += 1;
                    if forged == MOST_FORGED {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn bind(&self) -> io::Result<UdpSocket> {
        let local: SocketAddr = match self.upstream.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let mut socket = UdpSocket::bind(local).await?;
        for _ in 0..DRAWS {
            if !self.own_ports.contains(socket.local_addr()?.port()) {
                break;
            }
            socket = UdpSocket::bind(local).await?;
        }
        Ok(socket)
    }

    async fn by_stream(&self, edns: bool) -> io::Result<Reply> {
        // In lower case: nobody has to guess here.
        let query = self.question.query(u16::from_be_bytes(draw()?), [0; 32], edns);
        let mut stream = TcpStream::connect(self.upstream.address).await?;
        stream.set_nodelay(true)?;
        // RFC 7766 §8: length and message in one segment.
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        let framed = [length.to_be_bytes().as_slice(), &query].concat();
        stream.write_all(&framed).await?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).await?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).await?;
        let invalid = |fault: ReplyFault| io::Error::new(io::ErrorKind::InvalidData, fault.to_string());
        Reply::accept(&message, &query).map_err(invalid)
    }
}

/// Bytes that nobody can guess.
fn draw<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let failed = |_| io::Error::other("the system's random source gives nothing");
    SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
