//! How long a request takes to its response, by itself and beside a bulk stream.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::roles::{Serving, play};
use super::{PORT, throughput};
use crate::account::Account;
use crate::contestant::Contestant;
use crate::generator::{Answered, Protocol, Requests};

/// From one request to the next beside a bulk stream, at least.
const INTERVAL: Duration = Duration::from_millis(1);
/// The bulk stream runs so long before the first request and after the last one.
const MARGIN: u32 = 1;

/// How long requests took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of the answers came within this time.
    pub(crate) median_microseconds: f64,
    /// 99 of 100 answers came within this time.
    pub(crate) p99_microseconds: f64,
    /// Requests without an answer within a second.
    pub(crate) lost: u64,
    /// Answers a second, of one request at a time.
    pub(crate) per_second: f64,
    /// CPU microseconds of everything that took part, per answer; `None` beside a bulk stream, which costs more.
    pub(crate) cpu_microseconds_each: Option<f64>,
    /// Gbit/s of the bulk stream.
    pub(crate) bulk_gigabits_per_second: Option<f64>,
}

/// Nothing else is sent.
pub(super) fn idle(
    contestant: &dyn Contestant,
    account: &Account,
    protocol: Protocol,
    seconds: u32,
) -> Result<Latency> {
    let before = account.used()?;
    let seen = ask(contestant, account, protocol, Duration::ZERO, seconds)?;
    let used = account.used()?.saturating_sub(before);
    Ok(Latency {
        cpu_microseconds_each: Some(used.as_secs_f64() * 1e6 / seen.answered as f64),
        ..latency(&seen)
    })
}

/// Beside one TCP stream that takes all it can get, the same way as the requests.
pub(super) fn loaded(
    contestant: &dyn Contestant,
    account: &Account,
    protocol: Protocol,
    seconds: u32,
) -> Result<Latency> {
    let bulk = throughput::Bulk::start(contestant, account, seconds + 2 * MARGIN)?;
    thread::sleep(Duration::from_secs(MARGIN.into()));
    let seen = ask(contestant, account, protocol, INTERVAL, seconds)?;
    Ok(Latency {
        bulk_gigabits_per_second: Some(bulk.finish()?),
        ..latency(&seen)
    })
}

fn ask(
    contestant: &dyn Contestant,
    account: &Account,
    protocol: Protocol,
    interval: Duration,
    seconds: u32,
) -> Result<Requests> {
    let ends = contestant.ends()?;
    let address = format!("{}:{PORT}", ends.server_address);
    let (word, interval, seconds) = (
        protocol.to_string().to_lowercase(),
        interval.as_micros().to_string(),
        seconds.to_string(),
    );
    let answering = Serving::start(
        account,
        &ends.server,
        &["answer", "--at", &address, "--protocol", &word],
    )?;
    let asking = [
        "ask",
        "--to",
        &address,
        "--protocol",
        &word,
        "--interval",
        &interval,
        "--seconds",
        &seconds,
    ];
    let seen = play(account, &ends.client, &asking)?;
    let Answered {} = answering.finish()?;
    Ok(seen)
}

fn latency(seen: &Requests) -> Latency {
    Latency {
        median_microseconds: seen.median_microseconds,
        p99_microseconds: seen.p99_microseconds,
        lost: seen.lost,
        per_second: seen.answered as f64 / seen.seconds,
        cpu_microseconds_each: None,
        bulk_gigabits_per_second: None,
    }
}
