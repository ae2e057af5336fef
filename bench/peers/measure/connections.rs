//! How many TCP connections a second are made, used for a byte each way, and closed.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::PORT;
use super::roles::{Serving, play};
use crate::account::Account;
use crate::contestant::Contestant;
use crate::generator::{Accepted, Connections};

/// What was made of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rate {
    /// Connections a second that carried their bytes.
    pub(crate) per_second: f64,
    /// Connections that didn't within a second.
    pub(crate) failed: u64,
    /// 99 of 100 were through with their bytes within this time.
    pub(crate) p99_microseconds: f64,
    /// CPU microseconds of everything that took part, per connection.
    pub(crate) cpu_microseconds_each: f64,
}

pub(super) fn measure(
    contestant: &dyn Contestant,
    account: &Account,
    parallel: u16,
    seconds: u32,
) -> Result<Rate> {
    let ends = contestant.ends()?;
    let address = format!("{}:{PORT}", ends.server_address);
    let (parallel, seconds) = (parallel.to_string(), seconds.to_string());
    let accepting = Serving::start(account, &ends.server, &["accept", "--at", &address])?;
    let before = account.used()?;
    let connecting = [
        "connect",
        "--to",
        &address,
        "--parallel",
        &parallel,
        "--seconds",
        &seconds,
    ];
    let seen: Connections = play(account, &ends.client, &connecting)?;
    let used = account.used()?.saturating_sub(before);
    let Accepted { .. } = accepting.finish()?;
    Ok(Rate {
        per_second: seen.made as f64 / seen.seconds,
        failed: seen.failed,
        p99_microseconds: seen.p99_microseconds,
        cpu_microseconds_each: used.as_secs_f64() * 1e6 / seen.made as f64,
    })
}
