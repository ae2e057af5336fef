//! What a run says: one table of medians, the same as JSON, and the rows that we hold ourselves to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::contestant::{Condition, Offloads, Reach};
use crate::download;
use crate::measure::Measured;

const MIB: f64 = (1u64 << 20) as f64;

/// Everything that a run measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What it ran on.
    pub(crate) machine: Machine,
    /// Versions of the other programs.
    pub(crate) versions: BTreeMap<String, String>,
    /// Who couldn't take part, and why.
    pub(crate) left_out: BTreeMap<String, String>,
    /// Every single measurement.
    pub(crate) samples: Vec<Sample>,
}

/// What a run ran on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
}

/// One measurement of one contestant.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Who.
    pub(crate) contestant: String,
    /// How far apart the ends were.
    pub(crate) reach: Reach,
    /// Under which condition.
    pub(crate) condition: Condition,
    /// In which round, from 1.
    pub(crate) round: usize,
    /// What came out.
    pub(crate) measured: Measured,
}

/// What we hold ourselves to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// One TCP stream between two hosts, beside everybody.
    CrossHost,
    /// Eight streams are not slower than one.
    EightStreams,
    /// One stream over a wire without offloads.
    OffloadsOff,
    /// Two instances of one host, beside a kernel bridge.
    SameHost,
}

/// What a figure is held against.
enum Required {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    /// An empty report.
    pub(crate) fn of_this_machine() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name"));
        let processor = processor.map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            machine: Machine {
                cores: std::thread::available_parallelism().map_or(1, usize::from),
                processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
                kernel: kernel.trim().to_owned(),
            },
            versions: download::versions(),
            left_out: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// A report that an earlier run wrote.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} isn't what --json writes", path.display()))
    }

    /// The table, as Markdown.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let rounds = self.samples.iter().map(|sample| sample.round).max().unwrap_or(0);
        let Machine {
            cores,
            processor,
            kernel,
        } = &self.machine;
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "{cores} cores, {processor}, Linux {kernel}; medians of {rounds} rounds"
        );
        for (name, version) in &self.versions {
            let _ = writeln!(text, "{name}: {version}");
        }
        let _ = writeln!(text);
        let _ = writeln!(
            text,
            "| | condition | Gbit/s | CPU-s/GiB | retransmits | daemons' RSS, MiB |"
        );
        let _ = writeln!(text, "|---|---|---:|---:|---:|---:|");
        let conditions: BTreeSet<(Reach, Condition)> = self
            .samples
            .iter()
            .map(|sample| (sample.reach, sample.condition))
            .collect();
        for (reach, condition) in conditions {
            let mut seen = BTreeSet::new();
            for sample in self
                .samples
                .iter()
                .filter(|one| one.reach == reach && one.condition == condition)
            {
                if !seen.insert(&sample.contestant) {
                    continue;
                }
                let figure = |of: fn(&Measured) -> f64| {
                    self.median(&sample.contestant, condition, of).unwrap_or(f64::NAN)
                };
                let shown = match reach {
                    Reach::CrossHost => condition.to_string(),
                    Reach::SameHost => format!("one host, {} stream(s)", condition.streams),
                };
                let _ = writeln!(
                    text,
                    "| {} | {shown} | {:.2} | {:.2} | {:.0} | {:.0} |",
                    sample.contestant,
                    figure(|measured| measured.gigabits_per_second),
                    figure(|measured| measured.cpu_seconds_per_gib),
                    figure(|measured| measured.retransmits as f64),
                    figure(
                        |measured| measured.resident.iter().map(|one| one.bytes).sum::<u64>() as f64 / MIB
                    ),
                );
            }
        }
        for (name, reason) in &self.left_out {
            let _ = writeln!(text, "\n{name} was left out: {reason}");
        }
        text
    }

    /// A row's lines: `row measured required ok|short`.
    pub(crate) fn check(&self, row: Row) -> Vec<String> {
        use Required::{AtLeast, AtMost};
        let one = Condition {
            streams: 1,
            offloads: Offloads::On,
        };
        let eight = Condition {
            streams: 8,
            offloads: Offloads::On,
        };
        let bare = Condition {
            streams: 1,
            offloads: Offloads::Off,
        };
        let (ours, other) = ("tidegate", "wireguard-go");
        let speed =
            |who: &str, condition| self.median(who, condition, |measured| measured.gigabits_per_second);
        let cost =
            |who: &str, condition| self.median(who, condition, |measured| measured.cpu_seconds_per_gib);
        let times_speed = |who: &str, condition| Some(speed(ours, condition)? / speed(who, condition)?);
        let times_cost = |who: &str, condition| Some(cost(ours, condition)? / cost(who, condition)?);

        let lines = match row {
            Row::CrossHost => vec![
                (
                    "cross-host/speed/wireguard-go",
                    times_speed(other, one),
                    AtLeast(1.8),
                ),
                (
                    "cross-host/speed/vxlan+wireguard-go",
                    times_speed("vxlan+wireguard-go", one),
                    AtLeast(5.0),
                ),
                (
                    "cross-host/speed/vxlan+gotatun",
                    times_speed("vxlan+gotatun", one),
                    AtLeast(3.0),
                ),
                (
                    "cross-host/cpu/wireguard-go",
                    times_cost(other, one),
                    AtMost(0.55),
                ),
                (
                    "cross-host/cpu/vxlan+wireguard-go",
                    times_cost("vxlan+wireguard-go", one),
                    AtMost(0.25),
                ),
                (
                    "cross-host/cpu/vxlan+gotatun",
                    times_cost("vxlan+gotatun", one),
                    AtMost(0.25),
                ),
            ],
            Row::EightStreams => {
                let ratio = speed(ours, eight)
                    .zip(speed(ours, one))
                    .map(|(eight, one)| eight / one);
                vec![("eight-streams/speed/one-stream", ratio, AtLeast(1.0))]
            }
            Row::OffloadsOff => vec![
                (
                    "offloads-off/speed/wireguard-go",
                    times_speed(other, bare),
                    AtLeast(2.0),
                ),
                (
                    "offloads-off/cpu/wireguard-go",
                    times_cost(other, bare),
                    AtMost(0.5),
                ),
            ],
            Row::SameHost => {
                let ratio = speed("tidegate-one-host", one).zip(speed("bridge+veth", one));
                vec![(
                    "same-host/speed/bridge+veth",
                    ratio.map(|(ours, bridge)| ours / bridge),
                    AtLeast(0.8),
                )]
            }
        };
        lines
            .into_iter()
            .map(|(name, measured, required)| line(name, measured, &required))
            .collect()
    }

    fn median(&self, contestant: &str, condition: Condition, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        let samples = self.samples.iter();
        let mut figures: Vec<f64> = samples
            .filter(|sample| sample.contestant == contestant && sample.condition == condition)
            .map(|sample| of(&sample.measured))
            .collect();
        figures.sort_by(f64::total_cmp);
        let upper = *figures.get(figures.len() / 2)?;
        if figures.len() % 2 == 1 {
            return Some(upper);
        }
        Some((figures.get(figures.len() / 2 - 1)? + upper) / 2.0)
    }
}

fn line(name: &str, measured: Option<f64>, required: &Required) -> String {
    let (sign, bound) = match required {
        Required::AtLeast(bound) => (">=", bound),
        Required::AtMost(bound) => ("<=", bound),
    };
    let Some(measured) = measured else {
        return format!("{name} - {sign}{bound} short");
    };
    let held = match required {
        Required::AtLeast(bound) => measured >= *bound,
        Required::AtMost(bound) => measured <= *bound,
    };
    format!(
        "{name} {measured:.2} {sign}{bound} {}",
        if held { "ok" } else { "short" }
    )
}
