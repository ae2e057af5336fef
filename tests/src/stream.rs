//! Numbered UDP datagrams at a steady pace, and which of them arrive.

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{Lab, Pace};

/// Length of a datagram.
const LENGTH: usize = 200;
const PORT: u16 = 9000;
/// How long after the last one was sent nothing more is on the way.
const GRACE: Duration = Duration::from_secs(1);

/// Datagrams from one part of a lab to another.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Datagrams a second.
    pub per_second: u32,
    /// How many.
    pub count: u32,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Datagrams sent.
    pub sent: u32,
    /// Those that arrived, each counted once.
    pub arrived: u32,
    /// Datagrams that arrived again.
    pub repeated: u32,
    /// How long 99 of 100 of those that arrived were on the way at most.
    pub p99: Duration,
    /// The longest time in which nothing arrived.
    pub longest_gap: Duration,
}

impl Stream {
    /// Sends it to `address`, which is one of part `to`, and waits for its end.
    ///
    /// # Errors
    /// When a socket can't be made or used.
    pub fn run(self, lab: &Lab, from: &str, to: &str, address: IpAddr) -> Result<Heard> {
        let destination = SocketAddr::new(address, PORT);
        let listener = lab.inside(to, || Ok(UdpSocket::bind(destination)?))?;
        listener.set_read_timeout(Some(GRACE))?;
        let wildcard = SocketAddr::new(
            match address {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            },
            0,
        );
        let sender = lab.inside(from, || Ok(UdpSocket::bind(wildcard)?))?;

        let all_sent = AtomicBool::new(false);
        let began = Instant::now();
        let arrivals = thread::scope(|scope| {
            let listening = scope.spawn(|| listen(&listener, began, &all_sent));
            let sent = self.send(&sender, destination, began);
            all_sent.store(true, Ordering::Relaxed);
            let Ok(heard) = listening.join() else {
                bail!("the listener panicked")
            };
            sent.and(heard)
        })?;
        let mut delays: Vec<Duration> = arrivals.delays.into_values().collect();
        delays.sort_unstable();
        Ok(Heard {
            sent: self.count,
            arrived: u32::try_from(delays.len())?,
            repeated: arrivals.repeated,
            p99: delays.get(delays.len() * 99 / 100).copied().unwrap_or_default(),
            longest_gap: arrivals.longest_gap,
        })
    }

    /// A datagram is its number, when it was sent, and zeros.
    fn send(self, socket: &UdpSocket, destination: SocketAddr, began: Instant) -> Result<()> {
        let mut pace = Pace::new(self.per_second);
        for number in 0..self.count {
            let sent = u64::try_from(began.elapsed().as_nanos())?;
            let mut datagram = [number.to_be_bytes().as_slice(), &sent.to_be_bytes()].concat();
            datagram.resize(LENGTH, 0);
            socket.send_to(&datagram, destination)?;
            pace.wait();
        }
        Ok(())
    }
}

impl Heard {
    /// How many never arrived.
    pub fn lost(self) -> u32 {
        self.sent - self.arrived
    }
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} lost, {} arrived twice, p99 {:.1?}",
            self.lost(),
            self.sent,
            self.repeated,
            self.p99
        )
    }
}

#[derive(Default)]
struct Arrivals {
    /// How long each number was on the way.
    delays: HashMap<u32, Duration>,
    /// How many came again.
    repeated: u32,
    longest_gap: Duration,
    last: Option<Instant>,
}

/// What arrives until there is silence after the last one was sent.
fn listen(socket: &UdpSocket, began: Instant, all_sent: &AtomicBool) -> Result<Arrivals> {
    let mut arrivals = Arrivals::default();
    let mut buffer = [0; LENGTH];
    loop {
        let were_all_sent = all_sent.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(LENGTH) => {
                let (number, rest) = buffer.split_first_chunk().context("too short")?;
                let sent = rest.first_chunk().context("too short")?;
                let sent = Duration::from_nanos(u64::from_be_bytes(*sent));
                let delay = began.elapsed().saturating_sub(sent);
                if arrivals
                    .delays
                    .insert(u32::from_be_bytes(*number), delay)
                    .is_some()
                {
                    arrivals.repeated += 1;
                }
                let now = Instant::now();
                let gap = arrivals
                    .last
                    .replace(now)
                    .map_or(Duration::ZERO, |last| now - last);
                arrivals.longest_gap = arrivals.longest_gap.max(gap);
            }
            Ok(length) => bail!("a datagram of {length} bytes"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if were_all_sent {
                    return Ok(arrivals);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
