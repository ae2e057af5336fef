//! Side by side: the same two hosts, the same load, for tidegate and for what others would use instead.
//!
//! A run is interleaved: every round measures every contestant once under every condition, so that whatever else the
//! machine does hits all of them; figures are medians over the rounds, ratios are taken between medians of one run.
//!
//! 1. [`Keeper`] sweeps what a former run left, and stays to sweep what this one leaves, however it ends.
//! 2. Every [`contestant`] is built and stays up; idle ones cost nothing that can be seen.
//! 3. [`measure`] runs iperf3 between its two ends and counts the CPU of everything that took part.
//! 4. [`report`] prints one table, JSON, and what the measure of each row is.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod account;
mod bridge;
mod command;
mod contestant;
mod download;
mod keeper;
mod measure;
mod ours;
mod report;
mod underlay;
mod userspace_wireguard;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::account::Account;
use crate::contestant::{Condition, Offloads, Reach};
use crate::keeper::Keeper;
use crate::report::{Report, Row, Sample};

/// Measures tidegate beside bridge+veth, wireguard-go, gotatun, and kernel VXLAN over either. Needs root.
#[derive(Parser)]
#[command(name = "peers", version)]
struct Arguments {
    /// Rounds; every round measures everything once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of every measurement, after one second that isn't counted.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Numbers of parallel TCP streams.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    streams: Vec<u32>,
    /// Offloads of the underlay's devices.
    #[arg(long, value_delimiter = ',', default_value = "on,off")]
    offloads: Vec<Offloads>,
    /// Writes everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints this row as `row measured required ok|short`; may be given more than once.
    #[arg(long, value_enum, value_name = "ROW")]
    check: Vec<Row>,
    /// Prints the rows from a file that --json wrote, and measures nothing.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The process that sweeps when this one ends.
    #[arg(long, hide = true)]
    keeper: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.keeper {
        return keeper::keep();
    }
    if let Some(path) = &arguments.from {
        let report = Report::read(path)?;
        print!("{}", report.table());
        return print_rows(&report, &arguments.check);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "peers makes network namespaces: run it as root"
    );
    ensure!(
        arguments.rounds > 0 && arguments.seconds > 0,
        "--rounds and --seconds are at least 1"
    );

    let keeper = Keeper::start()?;
    let outcome = run(&arguments);
    keeper.finish()?;
    let report = outcome?;

    print!("{}", report.table());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print_rows(&report, &arguments.check)
}

fn print_rows(report: &Report, rows: &[Row]) -> Result<()> {
    let all = Row::value_variants();
    for row in if rows.is_empty() { all } else { rows } {
        for line in report.check(*row) {
            println!("{line}");
        }
    }
    Ok(())
}

/// Builds everybody, measures everybody.
fn run(arguments: &Arguments) -> Result<Report> {
    account::outrank_other_sessions(std::process::id());
    let mut report = Report::of_this_machine();

    let mut contestants = Vec::new();
    for mut contestant in contestant::all() {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == contestant.name()) {
            continue;
        }
        eprintln!("building {}", contestant.name());
        let account = Account::open(contestant.name())?;
        match contestant
            .up(&account)
            .and_then(|()| measure::serve(contestant.as_ref(), &account))
        {
            Ok(()) => {
                account.outrank_other_sessions()?;
                contestants.push((contestant, account));
            }
            Err(error) => {
                eprintln!("{}: left out: {error:#}", contestant.name());
                report
                    .left_out
                    .insert(contestant.name().to_owned(), format!("{error:#}"));
            }
        }
    }
    ensure!(!contestants.is_empty(), "there is nothing to measure");

    for round in 1..=arguments.rounds {
        for offloads in &arguments.offloads {
            for (contestant, _) in &contestants {
                for device in contestant.underlay() {
                    device.set_offloads(*offloads)?;
                }
            }
            for streams in &arguments.streams {
                for (contestant, account) in &contestants {
                    // Without an underlay there are no offloads of it: one figure is all there is.
                    if contestant.reach() == Reach::SameHost && *offloads == Offloads::Off {
                        continue;
                    }
                    let condition = Condition {
                        streams: *streams,
                        offloads: *offloads,
                    };
                    let measured = measure::tcp(contestant.as_ref(), account, condition, arguments.seconds)
                        .with_context(|| format!("measuring {}", contestant.name()))?;
                    eprintln!("round {round}: {}, {condition}: {measured}", contestant.name());
                    report.samples.push(Sample {
                        contestant: contestant.name().to_owned(),
                        reach: contestant.reach(),
                        condition,
                        round,
                        measured,
                    });
                }
            }
        }
    }
    Ok(report)
}
