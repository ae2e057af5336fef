//! How many single datagrams a second come through without loss.
//!
//! Rates are steps of [`STEP`] from [`SLOWEST`]; a binary search finds the highest step at which at most [`LOSS`] of
//! what was to be sent didn't arrive. What the sender couldn't send in time is missing too: a machine that has no
//! core left for it doesn't hold the rate. A step fails when it fails twice: one hiccup of the machine, low in the
//! search, would otherwise decide it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::PORT;
use super::roles::{Serving, play};
use crate::account::Account;
use crate::contestant::Contestant;
use crate::generator::{Counted, Sent};

/// Datagrams a second of the lowest step.
const SLOWEST: f64 = 10_000.0;
/// A step's rate, of the one's below.
const STEP: f64 = 1.035;
/// Steps, up to 764,000 a second: seven are tried.
const STEPS: usize = 127;
/// What may be missing.
const LOSS: f64 = 0.001;
/// How often a step is tried before it has failed.
const TRIES: usize = 2;

/// What came through.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Datagrams {
    /// The rate of the highest step without loss.
    pub(crate) per_second: f64,
    /// What was missing there, of what was to be sent.
    pub(crate) missing: f64,
    /// What arrived there after one with a higher number, of what arrived.
    pub(crate) late: f64,
    /// CPU microseconds of everything that took part, per datagram that arrived there.
    pub(crate) cpu_microseconds_each: f64,
}

pub(super) fn measure(
    contestant: &dyn Contestant,
    account: &Account,
    payload: usize,
    seconds: u32,
) -> Result<Datagrams> {
    let held = highest(STEPS, |index| {
        let rate = (SLOWEST * STEP.powi(i32::try_from(index)?)).round();
        for _ in 0..TRIES {
            let seen = step(contestant, account, payload, rate, seconds)?;
            if seen.missing <= LOSS {
                return Ok(Some(seen));
            }
        }
        Ok(None)
    })?;
    held.with_context(|| {
        format!(
            "more than {:.1} % is lost even of {SLOWEST} datagrams a second",
            LOSS * 100.0
        )
    })
}

/// One rate for some seconds.
fn step(
    contestant: &dyn Contestant,
    account: &Account,
    payload: usize,
    rate: f64,
    seconds: u32,
) -> Result<Datagrams> {
    let ends = contestant.ends()?;
    let planned = rate * f64::from(seconds);
    let address = format!("{}:{PORT}", ends.server_address);
    let (payload, rate_word, count) = (payload.to_string(), rate.to_string(), planned.to_string());

    let before = account.used()?;
    let counting = Serving::start(
        account,
        &ends.server,
        &["count-datagrams", "--at", &address, "--count", &count],
    )?;
    let sending = [
        "send-datagrams",
        "--to",
        &address,
        "--payload",
        &payload,
        "--rate",
        &rate_word,
        "--count",
        &count,
    ];
    let _: Sent = play(account, &ends.client, &sending)?;
    let counted: Counted = counting.finish()?;
    let used = account.used()?.saturating_sub(before);

    let received = counted.received as f64;
    Ok(Datagrams {
        per_second: rate,
        missing: 1.0 - received / planned,
        late: counted.late as f64 / received,
        cpu_microseconds_each: used.as_secs_f64() * 1e6 / received,
    })
}

/// What the highest of `steps` that holds gave, if those below one that holds do too.
fn highest<T>(steps: usize, mut holds: impl FnMut(usize) -> Result<Option<T>>) -> Result<Option<T>> {
    let (mut low, mut high, mut best) = (0, steps, None);
    while low < high {
        let middle = low.midpoint(high);
        match holds(middle)? {
            Some(seen) => {
                best = Some(seen);
                low = middle + 1;
            }
            None => high = middle,
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_the_highest_step_in_seven_tries() {
        for limit in 0..=STEPS {
            let mut tries = 0;
            let found = highest(STEPS, |step| {
                tries += 1;
                Ok((step < limit).then_some(step))
            });
            assert_eq!(found.unwrap(), limit.checked_sub(1));
            assert_eq!(tries, 7);
        }
    }
}
