//! The load that iperf3 can't give: paced datagrams, requests with responses, short connections.
//!
//! This program runs itself again inside a namespace, as `peers generate <role>`. A role that serves says [`READY`],
//! works until its standard input ends, and then prints what it saw; a role that sends prints what it saw when it is
//! through. Both print one line of JSON. All of it is plain blocking sockets, one system call a packet: what the
//! generator can do at most is what the contestant `veth` shows.

mod connections;
mod datagrams;
mod requests;

use std::fmt;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

pub(crate) use connections::{Accepted, Connections};
pub(crate) use datagrams::{Counted, Sent};
pub(crate) use requests::{Answered, Requests};

/// What a serving role says when its sockets are open.
pub(crate) const READY: &str = "ready";

/// What isn't answered by then is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// One end of a load.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Sends datagrams at a steady rate.
    SendDatagrams(datagrams::Send),
    /// Serves: counts them.
    CountDatagrams(datagrams::Count),
    /// Asks, waits for the answer, asks again.
    Ask(requests::Ask),
    /// Serves: gives back what it gets.
    Answer(requests::Answer),
    /// Opens connections, one byte each way, and closes them.
    Connect(connections::Connect),
    /// Serves: accepts them.
    Accept(connections::Accept),
}

/// What requests travel by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// One datagram each way.
    Udp,
    /// One connection, without Nagle's algorithm.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

impl Role {
    /// Plays it to its end.
    pub(crate) fn play(&self) -> Result<()> {
        match self {
            Self::SendDatagrams(send) => tell(&send.run()?),
            Self::CountDatagrams(count) => tell(&count.run()?),
            Self::Ask(ask) => tell(&ask.run()?),
            Self::Answer(answer) => tell(&answer.run()?),
            Self::Connect(connect) => tell(&connect.run()?),
            Self::Accept(accept) => tell(&accept.run()?),
        }
    }
}

/// Prints what a role saw.
fn tell(seen: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(seen)?;
    writeln!(std::io::stdout(), "{line}").context("telling what was seen")
}

/// Says that the sockets are open, and waits until nobody needs them any more.
fn serve_until_input_ends() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")
        .and_then(|()| out.flush())
        .context("saying that the sockets are open")?;
    let mut rest = Vec::new();
    std::io::stdin()
        .read_to_end(&mut rest)
        .context("waiting for the end of the input")?;
    Ok(())
}

/// The value below which `share` of all are, in microseconds; sorts them.
fn percentile(nanoseconds: &mut [u64], share: f64) -> f64 {
    nanoseconds.sort_unstable();
    let index = (nanoseconds.len() as f64 * share) as usize;
    let last = nanoseconds.len().saturating_sub(1);
    nanoseconds
        .get(index.min(last))
        .map_or(0.0, |ns| *ns as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_the_value_below_which_that_share_is() {
        let mut values: Vec<u64> = (0..1000).rev().map(|value| value * 1000).collect();
        assert_eq!(percentile(&mut values, 0.5), 500.0);
        assert_eq!(percentile(&mut values, 0.99), 990.0);
        assert_eq!(percentile(&mut [7000], 0.99), 7.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
    }
}
