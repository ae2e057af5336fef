//! How many questions a second are answered, at what cost to who answers, and how soon: dnsperf beside the server.
//!
//! CPU time is the server's alone: dnsperf isn't in its account. What the kernel does for a packet is paid by whoever
//! sends it, on a veth and on a TUN alike.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::account::{Account, REAL_TIME};
use crate::command::{run, within};
use crate::contestant::Contestant;
use crate::download;
use crate::names::questions;

/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions a second, where time is measured.
const PACE: &str = "10000";

/// What became of the questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answers {
    /// Answers a second.
    pub(crate) per_second: f64,
    /// CPU microseconds of the server, and of the kernel's packet threads, per answer.
    pub(crate) server_microseconds_each: f64,
    /// Questions without an answer within a second, and those with another one than "here it is".
    pub(crate) lost: u64,
    /// How long answers took; told of paced questions.
    pub(crate) latency: Option<Percentiles>,
}

/// How long answers took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// Half of the answers came within this time.
    pub(crate) median_microseconds: f64,
    /// 99 of 100 answers came within this time.
    pub(crate) p99_microseconds: f64,
}

/// Waits until the server answers.
pub(super) fn serve(contestant: &dyn Contestant) -> Result<()> {
    fs::write(download::cache()?.join("questions"), questions())?;
    let began = Instant::now();
    loop {
        match ask(contestant, &[], &["-n", "1"]).and_then(|text| Told::read(&text)) {
            Ok(told) if told.lost == 0 => return Ok(()),
            Ok(told) if began.elapsed() > PATIENCE => {
                bail!("{} answers {} questions wrongly", contestant.name(), told.lost)
            }
            Err(error) if began.elapsed() > PATIENCE => return Err(error),
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// As many questions as are answered: dnsperf keeps a hundred under way.
pub(super) fn flat_out(contestant: &dyn Contestant, account: &Account, seconds: u32) -> Result<Answers> {
    measure(contestant, account, &[], &["-l", &seconds.to_string()])
}

/// So many questions a second as everybody answers with ease. Both ends run in real time: one answer in a hundred else
/// takes as long as the time slice of whatever else runs on a core, and that is all that would be measured.
pub(super) fn paced(contestant: &dyn Contestant, account: &Account, seconds: u32) -> Result<Answers> {
    let _in_real_time = account.in_real_time()?;
    let before = ["chrt", "--fifo", REAL_TIME];
    let options = ["-l", &seconds.to_string(), "-Q", PACE, "-v"];
    measure(contestant, account, &before, &options)
}

fn measure(
    contestant: &dyn Contestant,
    account: &Account,
    runner: &[&str],
    options: &[&str],
) -> Result<Answers> {
    let before = account.used()?;
    let text = ask(contestant, runner, options)?;
    let used = account.used()?.saturating_sub(before);
    let told = Told::read(&text)?;
    ensure!(told.completed > 0, "{} answered nothing", contestant.name());
    Ok(Answers {
        per_second: told.per_second,
        server_microseconds_each: used.as_secs_f64() * 1e6 / told.completed as f64,
        lost: told.lost,
        latency: percentiles(told.microseconds),
    })
}

/// What dnsperf prints: one client on one thread, a question is lost after a second. `runner` runs it.
fn ask(contestant: &dyn Contestant, runner: &[&str], options: &[&str]) -> Result<String> {
    let (ends, file) = (contestant.ends()?, download::cache()?.join("questions"));
    let (server, file) = (ends.server_address.to_string(), file.display().to_string());
    let words = ["dnsperf", "-s", &server, "-d", &file, "-t", "1"];
    run(&within(&ends.client, &[runner, &words, options].concat()))
}

/// What dnsperf says.
#[derive(Debug, PartialEq)]
struct Told {
    per_second: f64,
    completed: u64,
    lost: u64,
    /// Of every answer, with `-v`.
    microseconds: Vec<f64>,
}

impl Told {
    fn read(text: &str) -> Result<Self> {
        let after = |title: &str| {
            let value = text.lines().find_map(|line| line.trim().strip_prefix(title));
            let first = value.and_then(|value| value.split_whitespace().next());
            first.with_context(|| format!("dnsperf doesn't say `{title}`"))
        };
        let count = |title| -> Result<u64> { Ok(after(title)?.parse()?) };
        let (sent, completed) = (count("Queries sent:")?, count("Queries completed:")?);
        // "NOERROR 12345 (100.00%)", among others.
        let codes = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Response codes:"));
        let mut codes = codes.unwrap_or_default().split_whitespace();
        let right = codes
            .find(|code| *code == "NOERROR")
            .and_then(|_| codes.next())
            .map_or(Ok(0), str::parse)?;
        let mut microseconds = Vec::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("> NOERROR ")) {
            let seconds = line
                .split_whitespace()
                .last()
                .context("an answer without its time")?;
            microseconds.push(seconds.parse::<f64>()? * 1e6);
        }
        Ok(Self {
            per_second: after("Queries per second:")?.parse()?,
            completed,
            lost: sent.saturating_sub(right),
            microseconds,
        })
    }
}

fn percentiles(mut microseconds: Vec<f64>) -> Option<Percentiles> {
    microseconds.sort_by(f64::total_cmp);
    let of = |hundredths: usize| {
        let place = (microseconds.len() * hundredths).div_ceil(100);
        microseconds.get(place.checked_sub(1)?).copied()
    };
    Some(Percentiles {
        median_microseconds: of(50)?,
        p99_microseconds: of(99)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_answered() {
        let of = |count: u32| percentiles((1..=count).rev().map(f64::from).collect());
        assert_eq!(of(0), None);
        assert_eq!(
            of(200),
            Some(Percentiles {
                median_microseconds: 100.0,
                p99_microseconds: 198.0
            })
        );
    }
}
