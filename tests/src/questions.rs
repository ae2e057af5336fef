//! Questions by name over sockets of our own: what dig can't do, at a pace or on connections that are kept.
//!
//! All of it opens sockets in the namespace that it is called in: see [`crate::Lab::inside`].

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Bytes before the question (RFC 1035 §4.1.1).
const HEADER: usize = 12;
/// Length, time to live, class and type of a record, behind its name (RFC 1035 §4.1.3).
const FIXED: usize = 10;

/// A name and a type, asked of a server.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whom to ask.
    pub server: SocketAddr,
    /// Without the root's dot.
    pub name: String,
    /// The type's number.
    pub kind: u16,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// RFC 1035 §4.1.1.
    pub rcode: u8,
    /// How many records there are in the answer, the authority and the additional section.
    pub counts: [u16; 3],
    /// The addresses in the answer, sorted.
    pub addresses: Vec<IpAddr>,
    /// All of it behind the question.
    pub behind: Vec<u8>,
}

/// One question of many.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When it was sent.
    pub at: Instant,
    /// How long the answer took.
    pub took: Duration,
    /// The answer; `None`: there was none in time.
    pub answer: Option<Answer>,
}

impl Question {
    /// The query, with recursion desired and without EDNS.
    pub fn query(&self, id: u16) -> Vec<u8> {
        let mut query = id.to_be_bytes().to_vec();
        query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in self.name.split('.').filter(|label| !label.is_empty()) {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.push(0);
        query.extend(self.kind.to_be_bytes());
        query.extend([0, 1]);
        query
    }

    /// Asks in a datagram; `None`: no answer came in time.
    ///
    /// # Errors
    /// When it can't be sent, or what comes isn't an answer to it.
    pub fn ask(&self, id: u16, patience: Duration) -> Result<Option<Answer>> {
        let socket = self.socket(patience)?;
        self.ask_by(&socket, id, patience)
    }

    /// Asks over TCP, on a connection of its own.
    ///
    /// # Errors
    /// When it isn't answered in time, or what comes isn't an answer to it.
    pub fn ask_by_tcp(&self, id: u16, patience: Duration) -> Result<Answer> {
        let mut stream = TcpStream::connect_timeout(&self.server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let query = self.query(id);
        stream.write_all(&framed(&query))?;
        let message = read_framed(&mut stream)?;
        Answer::read(&message, &query)
    }

    /// Asks in datagrams, one every `interval`, until `is_over`.
    ///
    /// # Errors
    /// When one can't be sent, or what comes isn't an answer to it.
    pub fn ask_steadily(
        &self,
        interval: Duration,
        patience: Duration,
        is_over: &AtomicBool,
    ) -> Result<Vec<Asked>> {
        let socket = self.socket(patience)?;
        let mut all = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let at = Instant::now();
            let answer = self.ask_by(&socket, all.len() as u16, patience)?;
            let took = at.elapsed();
            all.push(Asked { at, took, answer });
            thread::sleep(interval.saturating_sub(took));
        }
        Ok(all)
    }

    fn socket(&self, patience: Duration) -> Result<UdpSocket> {
        let unspecified: IpAddr = if self.server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind((unspecified, 0)).context("opening a socket")?;
        socket.connect(self.server)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    }

    fn ask_by(&self, socket: &UdpSocket, id: u16, patience: Duration) -> Result<Option<Answer>> {
        let query = self.query(id);
        let began = Instant::now();
        socket.send(&query).context("sending a query")?;
        let mut message = [0; 1500];
        loop {
            let length = match socket.recv(&mut message) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("waiting for an answer"),
            };
            let message = message.get(..length).unwrap_or_default();
            // An answer to a question that was given up may come late.
            if message.get(..2) == query.get(..2) {
                return Answer::read(message, &query).map(Some);
            }
            if began.elapsed() > patience {
                return Ok(None);
            }
        }
    }
}

/// A message as connections carry it (RFC 1035 §4.2.2).
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend(message);
    framed
}

/// The next message of a connection.
///
/// # Errors
/// When it ends, or nothing comes in its time.
pub fn read_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("waiting for an answer")?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).context("reading an answer")?;
    Ok(message)
}

impl Answer {
    /// Reads the answer to a query, whose question must stand in it byte by byte; an answer to what isn't understood may
    /// be without.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn read(message: &[u8], query: &[u8]) -> Result<Self> {
        let field = |at: usize| -> Result<u16> {
            let bytes = message.get(at..).and_then(|rest| rest.first_chunk::<2>());
            Ok(u16::from_be_bytes(*bytes.context("an answer that ends early")?))
        };
        let flags = field(2)?;
        ensure!(message.get(..2) == query.get(..2), "an answer to another query");
        ensure!(flags & 0x8000 != 0, "a query instead of an answer");
        let counts = [field(6)?, field(8)?, field(10)?];
        let question = match field(4)? {
            0 => &[],
            _ => query.get(HEADER..).unwrap_or_default(),
        };
        let rest = message.get(HEADER..).and_then(|rest| rest.strip_prefix(question));
        let mut rest = rest.context("an answer to another question")?;
        let (mut addresses, behind) = (Vec::new(), rest.to_vec());
        for _ in 0..counts[0] {
            let (data, others) = record(rest).context("an answer that ends in a record")?;
            rest = others;
            addresses.extend(match data.len() {
                4 => data.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
                16 => data.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
                _ => None,
            });
        }
        addresses.sort();
        Ok(Self {
            rcode: (flags & 0xf) as u8,
            counts,
            addresses,
            behind,
        })
    }

    /// The addresses, when the answer is "here they are" and nothing else.
    ///
    /// # Errors
    /// Any other answer.
    pub fn found(&self) -> Result<&[IpAddr]> {
        if self.rcode != 0 || self.addresses.is_empty() {
            bail!("not an answer with addresses: {self:?}");
        }
        Ok(&self.addresses)
    }
}

/// The data of the record that bytes begin with, and what is behind it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = bytes;
    loop {
        let (length, others) = rest.split_first()?;
        match length {
            0 => {
                rest = others;
                break;
            }
            // A name goes on elsewhere (RFC 1035 §4.1.4).
            0xc0.. => {
                rest = others.get(1..)?;
                break;
            }
            length => rest = others.get(usize::from(*length)..)?,
        }
    }
    let length = rest.get(FIXED - 2..)?.first_chunk::<2>()?;
    rest.get(FIXED..)?
        .split_at_checked(usize::from(u16::from_be_bytes(*length)))
}
