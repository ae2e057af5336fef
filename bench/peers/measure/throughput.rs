//! Bulk: iperf3 from one end to the other.
//!
//! Throughput is what the receiver got after the first second. CPU time per GiB takes in everything from the first
//! byte to the last, that first second too: bytes and time are then of one and the same span.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::account::{Account, Resident};
use crate::command::{run, start, within};
use crate::contestant::Contestant;
use crate::download;

/// How long a contestant may take until the first connection comes through.
const PATIENCE: Duration = Duration::from_secs(10);

const GIB: f64 = (1u64 << 30) as f64;

/// What one measurement gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Throughput {
    /// Gbit/s of TCP payload that arrived.
    pub(crate) gigabits_per_second: f64,
    /// CPU seconds of everything that took part, per GiB of TCP payload.
    pub(crate) cpu_seconds_per_gib: f64,
    /// Segments that TCP sent again.
    pub(crate) retransmits: u64,
    /// Memory of the daemons right after.
    pub(crate) resident: Vec<Resident>,
}

/// Starts the receiving end, and waits until the sending end reaches it.
pub(super) fn serve(contestant: &dyn Contestant, account: &Account) -> Result<()> {
    let ends = contestant.ends()?;
    let log = download::cache()?.join(format!("{}-iperf3.log", ends.server));
    start(
        &account.charge(&within(&ends.server, &["iperf3", "--server"])),
        &log,
    )?;

    let address = ends.server_address.to_string();
    let probe = [
        "iperf3",
        "--client",
        &address,
        "--connect-timeout",
        "1000",
        "--bytes",
        "100K",
    ];
    let began = Instant::now();
    loop {
        match run(&within(&ends.client, &probe)) {
            Ok(_) => return Ok(()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error.context(format!("{} doesn't reach {address}", ends.client)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Measures TCP from one end to the other.
pub(super) fn measure(
    contestant: &dyn Contestant,
    account: &Account,
    streams: u32,
    seconds: u32,
) -> Result<Throughput> {
    let before = account.used()?;
    let text = run(&load(contestant, account, streams, seconds)?)?;
    let used = account.used()?.saturating_sub(before);

    let told = Told::read(&text)?;
    Ok(Throughput {
        gigabits_per_second: told.gigabits_per_second,
        cpu_seconds_per_gib: used.as_secs_f64() / (told.bytes / GIB),
        retransmits: told.retransmits,
        resident: account.resident()?,
    })
}

/// One TCP stream in the background.
pub(super) struct Bulk {
    child: Child,
    log: PathBuf,
}

impl Bulk {
    /// Starts it, for some seconds more than the first, which isn't counted.
    pub(super) fn start(contestant: &dyn Contestant, account: &Account, seconds: u32) -> Result<Self> {
        let log = download::cache()?.join(format!("{}-bulk.json", contestant.ends()?.client));
        let child = start(&load(contestant, account, 1, seconds)?, &log)?;
        Ok(Self { child, log })
    }

    /// Waits for its end: Gbit/s that arrived.
    pub(super) fn finish(mut self) -> Result<f64> {
        let status = self.child.wait().context("waiting for iperf3")?;
        let text =
            std::fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        ensure!(status.success(), "iperf3 failed ({status}): {}", text.trim());
        Ok(Told::read(&text)?.gigabits_per_second)
    }
}

fn load(contestant: &dyn Contestant, account: &Account, streams: u32, seconds: u32) -> Result<Vec<String>> {
    let ends = contestant.ends()?;
    let (address, streams, seconds) = (
        ends.server_address.to_string(),
        streams.to_string(),
        seconds.to_string(),
    );
    let words = [
        "iperf3",
        "--client",
        &address,
        "--congestion",
        "cubic",
        "--omit",
        "1",
        "--time",
        &seconds,
        "--parallel",
        &streams,
        "--json",
    ];
    Ok(account.charge(&within(&ends.client, &words)))
}

/// What iperf3 says.
struct Told {
    gigabits_per_second: f64,
    bytes: f64,
    retransmits: u64,
}

impl Told {
    fn read(text: &str) -> Result<Self> {
        let told: Value = serde_json::from_str(text).context("iperf3 --json gave no JSON")?;
        if let Some(error) = told.get("error") {
            bail!("iperf3: {error}");
        }
        let bytes: f64 = told
            .pointer("/intervals")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(sent_bytes)
            .sum();
        let received = told
            .pointer("/end/sum_received/bits_per_second")
            .and_then(Value::as_f64);
        let received = received.context("iperf3 doesn't say what was received")?;
        if bytes == 0.0 {
            bail!("iperf3 sent nothing");
        }
        Ok(Self {
            gigabits_per_second: received / 1e9,
            bytes,
            retransmits: told
                .pointer("/end/sum_sent/retransmits")
                .and_then(Value::as_u64)
                .unwrap_or(0),
        })
    }
}

/// Bytes of one interval, an omitted one too.
fn sent_bytes(interval: &Value) -> Option<f64> {
    interval.pointer("/sum/bytes").and_then(Value::as_f64)
}
