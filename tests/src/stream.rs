//! Numbered UDP datagrams at a steady pace, and which of them arrive.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{Lab, Pace};

/// Length of a datagram, its number included.
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
        let (seen, repeated) = thread::scope(|scope| {
            let listening = scope.spawn(|| listen(&listener, &all_sent));
            let sent = self.send(&sender, destination);
            all_sent.store(true, Ordering::Relaxed);
            let Ok(heard) = listening.join() else {
                bail!("the listener panicked")
            };
            sent.and(heard)
        })?;
        Ok(Heard {
            sent: self.count,
            arrived: u32::try_from(seen.len())?,
            repeated,
        })
    }

    fn send(self, socket: &UdpSocket, destination: SocketAddr) -> Result<()> {
        let mut pace = Pace::new(self.per_second);
        let mut datagram = [0; LENGTH];
        for number in 0..self.count {
            if let Some(place) = datagram.first_chunk_mut() {
                *place = number.to_be_bytes();
            }
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
            "{} of {} lost, {} arrived twice",
            self.lost(),
            self.sent,
            self.repeated
        )
    }
}

/// The numbers that arrive until there is silence after the last one was sent, and how many came again.
fn listen(socket: &UdpSocket, all_sent: &AtomicBool) -> Result<(BTreeSet<[u8; 4]>, u32)> {
    let (mut seen, mut repeated) = (BTreeSet::new(), 0);
    let mut buffer = [0; LENGTH];
    loop {
        let was_all = all_sent.load(Ordering::Relaxed);
        match socket.recv(&mut buffer) {
            Ok(LENGTH) => {
                if let Some(number) = buffer.first_chunk()
                    && !seen.insert(*number)
                {
                    repeated += 1;
                }
            }
            Ok(length) => bail!("a datagram of {length} bytes"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if was_all {
                    return Ok((seen, repeated));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
