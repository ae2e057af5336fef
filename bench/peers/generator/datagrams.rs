//! Numbered datagrams at a steady rate, and their count at the other end.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::thread::set_current_timer_slack;
use serde::{Deserialize, Serialize};

use super::serve_until_input_ends;

/// Length of the number that every datagram begins with.
const NUMBER: usize = 8;
/// The number of datagrams that only open the way: addresses are resolved and sessions agreed on before it counts.
const OPENING: u64 = u64::MAX;
const OPENINGS: usize = 10;

/// The sender sleeps this long between two bursts: a device's queue of 500 packets never fills for its sake alone.
const PAUSE: Duration = Duration::from_micros(50);
/// A burst is what is due, and at most what is due in this time: a sender that the scheduler kept waiting catches up
/// over several bursts.
const LONGEST_BURST: Duration = Duration::from_micros(200);
/// How much longer than planned the sender may take: what wasn't sent by then never is.
const GRACE: f64 = 1.02;

/// Bytes that may wait for the counter: at 300,000 datagrams a second those of 70 ms.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The counter sleeps so long when nothing waits: what is measured is the way to its socket, and waking it for every
/// datagram would cost more than that.
const NAP: Duration = Duration::from_millis(1);
/// The counter takes this much silence for the end, once the sender has ended.
const SILENCE: Duration = Duration::from_millis(100);
/// So many datagrams the counter remembers: ten minutes at 400,000 a second.
const MOST: u64 = 1 << 28;

/// Sends datagrams at a steady rate.
#[derive(Args)]
pub(crate) struct Send {
    /// Where to.
    #[arg(long)]
    to: SocketAddr,
    /// Bytes of UDP payload of each.
    #[arg(long)]
    payload: usize,
    /// Datagrams a second.
    #[arg(long)]
    rate: u64,
    /// How many.
    #[arg(long)]
    count: u64,
}

/// What the sender says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// Datagrams that left in time.
    pub(crate) sent: u64,
    /// From the first to the last of them.
    pub(crate) seconds: f64,
}

/// Counts datagrams.
#[derive(Args)]
pub(crate) struct Count {
    /// Where.
    #[arg(long)]
    at: SocketAddr,
    /// How many there will be.
    #[arg(long)]
    count: u64,
}

/// What the counter says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Different datagrams that arrived.
    pub(crate) received: u64,
    /// Those that arrived after one with a higher number.
    pub(crate) late: u64,
    /// Arrivals of what had arrived before.
    pub(crate) again: u64,
}

impl Send {
    pub(super) fn run(&self) -> Result<Sent> {
        ensure!(self.rate > 0, "--rate is at least 1");
        ensure!(
            self.payload >= NUMBER,
            "--payload is at least {NUMBER}: every datagram is numbered"
        );
        // Sleeps would otherwise be a whole pause longer.
        set_current_timer_slack(NonZeroU64::new(1)).context("asking for precise sleeps")?;
        let socket = UdpSocket::bind(any_like(self.to)).context("opening a UDP socket")?;
        socket
            .connect(self.to)
            .with_context(|| format!("connecting to {}", self.to))?;

        let mut datagram = vec![0x5a; self.payload];
        for _ in 0..OPENINGS {
            send(&socket, &mut datagram, OPENING);
            thread::sleep(Duration::from_millis(5));
        }

        let rate = self.rate as f64;
        let burst = (rate * LONGEST_BURST.as_secs_f64()).ceil() as u64;
        let deadline = Duration::from_secs_f64(self.count as f64 / rate * GRACE);
        let began = Instant::now();
        let mut sent = 0;
        loop {
            let elapsed = began.elapsed();
            let due = ((elapsed.as_secs_f64() * rate) as u64).min(self.count);
            let until = due.min(sent + burst);
            for number in sent..until {
                send(&socket, &mut datagram, number);
            }
            sent = until;
            if sent >= self.count || elapsed > deadline {
                break;
            }
            thread::sleep(PAUSE);
        }
        Ok(Sent {
            sent,
            seconds: began.elapsed().as_secs_f64(),
        })
    }
}

/// Sends one datagram. One that the kernel refuses is as lost as one that the wire loses: the counter misses it.
fn send(socket: &UdpSocket, datagram: &mut [u8], number: u64) {
    if let Some(head) = datagram.first_chunk_mut() {
        *head = number.to_be_bytes();
    }
    let _ = socket.send(datagram);
}

impl Count {
    pub(super) fn run(&self) -> Result<Counted> {
        ensure!(self.count <= MOST, "--count is at most {MOST}");
        let socket = UdpSocket::bind(self.at).with_context(|| format!("listening on {}", self.at))?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).context("asking for a receive buffer")?;
        socket.set_nonblocking(true)?;
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let counter = scope.spawn(|| count(&socket, self.count, &ended));
            let waited = serve_until_input_ends();
            ended.store(true, Ordering::Relaxed);
            let counted = counter.join().map_err(|_| anyhow!("the counter panicked"))?;
            waited.and(counted)
        })
    }
}

fn count(socket: &UdpSocket, expected: u64, ended: &AtomicBool) -> Result<Counted> {
    let mut seen = vec![0u64; expected.div_ceil(64) as usize];
    let mut counted = Counted {
        received: 0,
        late: 0,
        again: 0,
    };
    let mut next = 0;
    let mut datagram = [0; 1 << 16];
    let mut heard = Instant::now();
    let mut silent = false;
    loop {
        let length = match socket.recv(&mut datagram) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !silent {
                    (heard, silent) = (Instant::now(), true);
                } else if ended.load(Ordering::Relaxed) && heard.elapsed() > SILENCE {
                    return Ok(counted);
                }
                thread::sleep(NAP);
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("receiving"),
        };
        silent = false;
        let number = datagram.first_chunk().filter(|_| length >= NUMBER);
        let Some(number) = number.map(|bytes| u64::from_be_bytes(*bytes)) else {
            continue;
        };
        if number >= expected {
            continue;
        }
        let Some(word) = seen.get_mut((number / 64) as usize) else {
            continue;
        };
        let bit = 1 << (number % 64);
        if *word & bit != 0 {
            counted.again += 1;
            continue;
        }
        *word |= bit;
        counted.received += 1;
        if number < next {
            counted.late += 1;
        } else {
            next = number + 1;
        }
    }
}

/// Any port of any address of the same family.
pub(super) fn any_like(address: SocketAddr) -> SocketAddr {
    use std::net::{Ipv4Addr, Ipv6Addr};
    match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_tells_losses_repeats_and_late_ones_apart() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let mut datagram = [0; 64];
        for number in [OPENING, 0, 1, 4, 3, 3, 70, 5, 100] {
            send(&sender, &mut datagram, number);
        }
        sender.send(b"short").unwrap();
        let counted = count(&receiver, 100, &AtomicBool::new(true)).unwrap();
        assert_eq!((counted.received, counted.late, counted.again), (6, 2, 1));
    }
}
