//! Side by side: the same two hosts, the same load, for tidegate and for what others would use instead.
//!
//! A run is interleaved: every round measures every contestant once under every condition, so that whatever else the
//! machine does hits all of them; figures are medians over the rounds, ratios are taken between medians of one run.
//!
//! 1. [`Keeper`] sweeps what a former run left, and stays to sweep what this one leaves, however it ends.
//! 2. Every [`contestant`] is built and stays up; idle ones cost nothing that can be seen.
//! 3. [`measure`] loads it from one end to the other, with iperf3 or with our own [`generator`], and counts the CPU of
//!    everything that took part; or asks it for [`names`] with dnsperf, and counts the CPU of whoever answers.
//! 4. [`report`] prints one table, JSON, and what the measure of each row is.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod account;
mod bridge;
mod command;
mod contestant;
mod download;
mod generator;
mod keeper;
mod kernel_vxlan;
mod measure;
mod names;
mod ours;
mod report;
mod underlay;
mod userspace_wireguard;
mod veth;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use crate::account::Account;
use crate::contestant::{Condition, Contestant, Load, Offloads, Reach, Task};
use crate::generator::{Protocol, Role};
use crate::keeper::Keeper;
use crate::measure::{Durations, Measured, first_ping};
use crate::report::{Report, Row};

/// Measures tidegate beside wireguard-go, gotatun, boringtun, the kernel's VXLAN by itself and in these, a kernel
/// bridge and a bare veth pair; and its names beside dnsmasq and unbound. Needs root.
#[derive(Parser)]
#[command(name = "peers", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Rounds; every round measures everything once.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of every measurement; bulk TCP has one second more, which isn't counted.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Seconds of every step of the search for the highest rate without loss.
    #[arg(long, default_value_t = 5)]
    step_seconds: u32,
    /// A first look: one round of two seconds and two-second steps.
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "step_seconds"])]
    short: bool,
    /// Only these contestants.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only what these rows are made of.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    rows: Vec<Row>,
    /// Numbers of parallel TCP streams.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    streams: Vec<u32>,
    /// Offloads of the underlay's devices; all but bulk TCP is measured with offloads alone.
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
    #[command(subcommand)]
    part: Option<Part>,
}

/// A contestant, and who pays for what it does.
type Entrant = (Box<dyn Contestant>, Account);

/// What is measured while a contestant is built.
const FIRST_PING: Condition = Condition {
    offloads: Offloads::On,
    load: Load::FirstPing,
};

/// What this program runs itself again for.
#[derive(Subcommand)]
enum Part {
    /// One end of a load.
    #[command(hide = true)]
    Generate {
        #[command(subcommand)]
        role: Role,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.keeper {
        return keeper::keep();
    }
    if let Some(Part::Generate { role }) = &arguments.part {
        return role.play();
    }
    if let Some(path) = &arguments.from {
        let report = Report::read(path)?;
        print!("{}", report.tables());
        return print_rows(&report, &arguments);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "peers makes network namespaces: run it as root"
    );
    ensure!(
        arguments.rounds > 0 && arguments.seconds > 0 && arguments.step_seconds > 0,
        "--rounds, --seconds and --step-seconds are at least 1"
    );

    let keeper = Keeper::start()?;
    let outcome = run(&arguments);
    keeper.finish()?;
    let report = outcome?;

    print!("{}", report.tables());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print_rows(&report, &arguments)
}

/// Prints the rows that were asked for, or those that were measured, or all.
fn print_rows(report: &Report, arguments: &Arguments) -> Result<()> {
    let all = Row::value_variants();
    let asked = [arguments.check.as_slice(), &arguments.rows, all];
    for row in asked
        .into_iter()
        .find(|rows| !rows.is_empty())
        .unwrap_or_default()
    {
        for line in report.check(*row) {
            println!("{line}");
        }
    }
    Ok(())
}

impl Arguments {
    fn rounds(&self) -> usize {
        if self.short { 1 } else { self.rounds }
    }

    fn durations(&self) -> Durations {
        if self.short {
            return Durations {
                measurement: 2,
                step: 2,
            };
        }
        Durations {
            measurement: self.seconds,
            step: self.step_seconds,
        }
    }

    /// Everything that is asked of a contestant that is up, for the chosen rows or all.
    fn conditions(&self, offloads: Offloads) -> Vec<Condition> {
        let streams = self.streams.iter().map(|streams| Load::Streams(*streams));
        let others = [
            Load::Datagrams(64),
            Load::Datagrams(1300),
            Load::IdleRequests(Protocol::Udp),
            Load::IdleRequests(Protocol::Tcp),
            Load::LoadedRequests(Protocol::Udp),
            Load::LoadedRequests(Protocol::Tcp),
            Load::Connections(1),
            Load::Connections(16),
            Load::Questions,
            Load::PacedQuestions,
        ];
        let conditions = streams.chain(others).map(|load| Condition { offloads, load });
        conditions.filter(|condition| self.wants(*condition)).collect()
    }

    fn wants(&self, condition: Condition) -> bool {
        (condition.offloads == Offloads::On || condition.load.is_bulk())
            && (self.rows.is_empty() || self.rows.iter().any(|row| row.needs(condition)))
    }

    fn contestants(&self) -> Vec<Box<dyn Contestant>> {
        let mut all = contestant::all();
        all.retain(|one| self.only.is_empty() || self.only.iter().any(|name| name == one.name()));
        let conditions = self.conditions(Offloads::On).into_iter();
        let conditions = conditions.chain(self.conditions(Offloads::Off));
        let loads = conditions.map(|condition| condition.load);
        let first = self.wants(FIRST_PING).then_some(Load::FirstPing);
        let tasks: Vec<Task> = loads.chain(first).map(Load::task).collect();
        all.retain(|one| tasks.contains(&one.task()));
        all
    }
}

/// Builds everybody, measures everybody.
fn run(arguments: &Arguments) -> Result<Report> {
    account::outrank_other_sessions(std::process::id());
    let mut report = Report::of_this_machine();
    let mut contestants = Vec::new();
    for contestant in arguments.contestants() {
        let account = Account::open(contestant.name())?;
        contestants.push((contestant, account));
    }
    if arguments.wants(FIRST_PING) {
        first_pings(arguments.rounds(), &mut contestants, &mut report);
    }
    let conditions: Vec<(Offloads, Vec<Condition>)> = arguments
        .offloads
        .iter()
        .map(|offloads| (*offloads, arguments.conditions(*offloads)))
        .filter(|(_, conditions)| !conditions.is_empty())
        .collect();
    if !conditions.is_empty() {
        contestants.retain_mut(|(contestant, account)| {
            build(contestant.as_mut(), account)
                .inspect_err(|error| report.leave_out(contestant.name(), error))
                .is_ok()
        });
    }
    ensure!(!contestants.is_empty(), "there is nothing to measure");
    report.versions = download::versions();

    for round in 1..=arguments.rounds() {
        for (offloads, conditions) in &conditions {
            for (contestant, _) in &contestants {
                for device in contestant.underlay() {
                    device.set_offloads(*offloads)?;
                }
            }
            for condition in conditions {
                let of_task = |(contestant, _): &&Entrant| contestant.task() == condition.load.task();
                for (contestant, account) in contestants.iter().filter(of_task) {
                    // Without an underlay there are no offloads of it: one figure is all there is.
                    if contestant.reach() == Reach::SameHost && *offloads == Offloads::Off {
                        continue;
                    }
                    match measure::measure(
                        contestant.as_ref(),
                        account,
                        condition.load,
                        arguments.durations(),
                    ) {
                        Ok(measured) => report.note(contestant.as_ref(), *condition, round, measured),
                        Err(error) => {
                            report.leave_out(&format!("{}, {condition}", contestant.name()), &error);
                        }
                    }
                }
            }
        }
    }
    Ok(report)
}

/// Builds a contestant, for the whole run.
fn build(contestant: &mut dyn Contestant, account: &Account) -> Result<()> {
    eprintln!("building {}", contestant.name());
    contestant.place()?;
    contestant.up(account)?;
    measure::serve(contestant, account)?;
    account.outrank_other_sessions()
}

/// Builds everybody by itself in every round, and removes it again.
fn first_pings(rounds: usize, contestants: &mut Vec<Entrant>, report: &mut Report) {
    for round in 1..=rounds {
        contestants.retain_mut(|(contestant, account)| {
            if contestant.task() != Task::Join {
                return true;
            }
            match first_ping(contestant.as_mut(), account) {
                Ok(milliseconds) => {
                    let measured = Measured::FirstPing { milliseconds };
                    report.note(contestant.as_ref(), FIRST_PING, round, measured);
                    true
                }
                Err(error) => {
                    report.leave_out(contestant.name(), &error);
                    false
                }
            }
        });
    }
}
