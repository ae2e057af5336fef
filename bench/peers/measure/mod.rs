//! One measurement: a load from one end to the other, and what it cost.
//!
//! CPU time is that of everything that took part, from the load's start to its end. A load's first moments aren't
//! left out of it: what was carried and what it cost are of one and the same span.

mod connections;
mod datagrams;
mod first_ping;
mod names;
mod requests;
mod roles;
mod throughput;

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::account::Account;
use crate::contestant::{Contestant, Load, Task};

pub(crate) use first_ping::first_ping;

/// Where the generator's servers listen: below the ports that the kernel hands out (`ip_local_port_range`).
const PORT: u16 = 7001;

/// How long measurements last.
#[derive(Clone, Copy)]
pub(crate) struct Durations {
    /// Of every measurement, in seconds.
    pub(crate) measurement: u32,
    /// Of every step of a search, in seconds.
    pub(crate) step: u32,
}

/// What one measurement gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measured {
    /// Of bulk TCP.
    Throughput(throughput::Throughput),
    /// Of single datagrams.
    Datagrams(datagrams::Datagrams),
    /// Of requests and responses.
    Requests(requests::Latency),
    /// Of short connections.
    Connections(connections::Rate),
    /// Of a start from nothing.
    FirstPing {
        /// Until the first reply.
        milliseconds: f64,
    },
    /// Of questions by name.
    Answers(names::Answers),
}

/// Makes a contestant that is up ready for its loads, and waits until they come through.
pub(crate) fn serve(contestant: &dyn Contestant, account: &Account) -> Result<()> {
    match contestant.task() {
        Task::Join => throughput::serve(contestant, account),
        Task::Names => names::serve(contestant),
    }
}

/// Measures a contestant that is up.
pub(crate) fn measure(
    contestant: &dyn Contestant,
    account: &Account,
    load: Load,
    durations: Durations,
) -> Result<Measured> {
    let Durations { measurement, step } = durations;
    Ok(match load {
        Load::Streams(streams) => {
            Measured::Throughput(throughput::measure(contestant, account, streams, measurement)?)
        }
        Load::Datagrams(payload) => {
            Measured::Datagrams(datagrams::measure(contestant, account, payload, step)?)
        }
        Load::IdleRequests(protocol) => {
            Measured::Requests(requests::idle(contestant, account, protocol, measurement)?)
        }
        Load::LoadedRequests(protocol) => {
            Measured::Requests(requests::loaded(contestant, account, protocol, measurement)?)
        }
        Load::Connections(parallel) => {
            Measured::Connections(connections::measure(contestant, account, parallel, measurement)?)
        }
        Load::Questions => Measured::Answers(names::flat_out(contestant, account, measurement)?),
        Load::PacedQuestions => Measured::Answers(names::paced(contestant, account, measurement)?),
        Load::FirstPing => bail!("the first ping is measured of what isn't up yet"),
    })
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Throughput(measured) => write!(
                f,
                "{:.2} Gbit/s, {:.2} CPU-s/GiB",
                measured.gigabits_per_second, measured.cpu_seconds_per_gib
            ),
            Self::Datagrams(measured) => write!(
                f,
                "{:.0}/s, {:.2} CPU-µs each",
                measured.per_second, measured.cpu_microseconds_each
            ),
            Self::Requests(measured) => write!(
                f,
                "median {:.0} µs, p99 {:.0} µs, {} lost",
                measured.median_microseconds, measured.p99_microseconds, measured.lost
            ),
            Self::Connections(measured) => write!(
                f,
                "{:.0}/s, {:.1} CPU-µs each, {} failed",
                measured.per_second, measured.cpu_microseconds_each, measured.failed
            ),
            Self::FirstPing { milliseconds } => write!(f, "{milliseconds:.0} ms"),
            Self::Answers(measured) => {
                write!(
                    f,
                    "{:.0}/s, {:.2} µs of the server's CPU each, {} lost",
                    measured.per_second, measured.server_microseconds_each, measured.lost
                )?;
                match &measured.latency {
                    Some(latency) => write!(
                        f,
                        ", median {:.0} µs, p99 {:.0} µs",
                        latency.median_microseconds, latency.p99_microseconds
                    ),
                    None => Ok(()),
                }
            }
        }
    }
}
