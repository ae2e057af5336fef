//! A request, its response, the next request: how long that takes.
//!
//! One request is outstanding at a time. The next one follows at once, so that the rate is the latency's inverse, or
//! not before an interval has passed since the former: the many quick answers of a moment in which a bulk stream beside
//! pauses would otherwise outweigh the slow ones.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::datagrams::any_like;
use super::{PATIENCE, Protocol, percentile, serve_until_input_ends};

/// Bytes of a request and of its response.
const LENGTH: usize = 64;
/// Exchanges that only open the way.
const OPENINGS: usize = 10;
/// How long TCP may take to bring what counts as lost already.
const TCP_PATIENCE: Duration = Duration::from_secs(20);

/// Asks.
#[derive(Args)]
pub(crate) struct Ask {
    /// Whom.
    #[arg(long)]
    to: SocketAddr,
    /// By what.
    #[arg(long)]
    protocol: Protocol,
    /// How long.
    #[arg(long)]
    seconds: u32,
    /// Microseconds from one request to the next, at least.
    #[arg(long)]
    interval: u64,
}

/// What the asking end says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Requests {
    /// Answers.
    pub(crate) answered: u64,
    /// Requests without an answer within a second.
    pub(crate) lost: u64,
    /// From the first request to the last answer.
    pub(crate) seconds: f64,
    /// Median time from a request to its answer.
    pub(crate) median_microseconds: f64,
    /// The time that 99 of 100 answers took at most.
    pub(crate) p99_microseconds: f64,
}

/// Answers.
#[derive(Args)]
pub(crate) struct Answer {
    /// Where.
    #[arg(long)]
    at: SocketAddr,
    /// By what.
    #[arg(long)]
    protocol: Protocol,
}

/// What the answering end says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered {}

/// A way for a request and its response.
trait Exchange {
    /// Sends request `number` and waits for its response: whether it came within [`PATIENCE`].
    fn exchange(&mut self, number: u64) -> Result<bool>;
}

struct Datagrams(UdpSocket);

struct Stream(TcpStream);

impl Ask {
    pub(super) fn run(&self) -> Result<Requests> {
        let mut way: Box<dyn Exchange> = match self.protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(any_like(self.to)).context("opening a UDP socket")?;
                socket.connect(self.to)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Box::new(Datagrams(socket))
            }
            Protocol::Tcp => {
                let stream = TcpStream::connect_timeout(&self.to, TCP_PATIENCE)
                    .with_context(|| format!("connecting to {}", self.to))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TCP_PATIENCE))?;
                Box::new(Stream(stream))
            }
        };
        let mut numbers = 0..;
        for number in numbers.by_ref().take(OPENINGS) {
            way.exchange(number)?;
        }

        let mut took = Vec::new();
        let mut lost = 0;
        let began = Instant::now();
        let end = Duration::from_secs(self.seconds.into());
        let interval = Duration::from_micros(self.interval);
        for number in numbers {
            let asked = Instant::now();
            if way.exchange(number)? {
                took.push(u64::try_from(asked.elapsed().as_nanos())?);
            } else {
                lost += 1;
            }
            if began.elapsed() >= end {
                break;
            }
            let early = interval.saturating_sub(asked.elapsed());
            if !early.is_zero() {
                thread::sleep(early);
            }
        }
        Ok(Requests {
            answered: took.len() as u64,
            lost,
            seconds: began.elapsed().as_secs_f64(),
            median_microseconds: percentile(&mut took, 0.5),
            p99_microseconds: percentile(&mut took, 0.99),
        })
    }
}

fn request(number: u64) -> [u8; LENGTH] {
    let mut request = [0x5a; LENGTH];
    if let Some(head) = request.first_chunk_mut() {
        *head = number.to_be_bytes();
    }
    request
}

impl Exchange for Datagrams {
    fn exchange(&mut self, number: u64) -> Result<bool> {
        let request = request(number);
        // What the kernel refuses is lost.
        let _ = self.0.send(&request);
        let asked = Instant::now();
        let mut response = [0; LENGTH + 1];
        loop {
            match self.0.recv(&mut response) {
                Ok(length) if response.get(..length) == Some(&request[..]) => {
                    return Ok(asked.elapsed() < PATIENCE);
                }
                // The late answer to a request that was given up.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(error).context("receiving a response"),
            }
            if asked.elapsed() >= PATIENCE {
                return Ok(false);
            }
        }
    }
}

impl Exchange for Stream {
    fn exchange(&mut self, number: u64) -> Result<bool> {
        let request = request(number);
        let asked = Instant::now();
        self.0.write_all(&request).context("sending a request")?;
        let mut response = [0; LENGTH];
        self.0.read_exact(&mut response).context("receiving a response")?;
        ensure!(response == request, "the response is to another request");
        Ok(asked.elapsed() < PATIENCE)
    }
}

impl Answer {
    pub(super) fn run(&self) -> Result<Answered> {
        match self.protocol {
            Protocol::Udp => {
                let socket = UdpSocket::bind(self.at).with_context(|| format!("listening on {}", self.at))?;
                // It ends with the process.
                thread::spawn(move || answer_datagrams(&socket));
            }
            Protocol::Tcp => {
                let listener =
                    TcpListener::bind(self.at).with_context(|| format!("listening on {}", self.at))?;
                thread::spawn(move || answer_streams(&listener));
            }
        }
        serve_until_input_ends()?;
        Ok(Answered {})
    }
}

fn answer_datagrams(socket: &UdpSocket) {
    let mut datagram = [0; 1 << 16];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut datagram)
            && let Some(datagram) = datagram.get(..length)
        {
            // The asking end counts what doesn't come back.
            let _ = socket.send_to(datagram, from);
        }
    }
}

fn answer_streams(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        // Without it answers are late, which shows.
        let _ = stream.set_nodelay(true);
        let mut request = [0; LENGTH];
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
    }
}
