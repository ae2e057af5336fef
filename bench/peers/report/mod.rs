//! What a run says: tables of medians, the same as JSON, and the rows that we hold ourselves to.

mod figure;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::contestant::{Condition, Contestant, Load, Reach};
use crate::measure::Measured;
use figure::Figure;

pub(crate) use rows::Row;

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
            versions: BTreeMap::new(),
            left_out: BTreeMap::new(),
            samples: Vec::new(),
        }
    }

    /// A report that an earlier run wrote.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} isn't what --json writes", path.display()))
    }

    /// Takes a measurement in.
    pub(crate) fn note(
        &mut self,
        contestant: &dyn Contestant,
        condition: Condition,
        round: usize,
        measured: Measured,
    ) {
        eprintln!("round {round}: {}, {condition}: {measured}", contestant.name());
        self.samples.push(Sample {
            contestant: contestant.name().to_owned(),
            reach: contestant.reach(),
            condition,
            round,
            measured,
        });
    }

    /// Takes in that something couldn't be measured.
    pub(crate) fn leave_out(&mut self, what: &str, error: &anyhow::Error) {
        eprintln!("{what}: left out: {error:#}");
        self.left_out.insert(what.to_owned(), format!("{error:#}"));
    }

    /// The tables, as Markdown: one for everything that has the same figures.
    pub(crate) fn tables(&self) -> String {
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
        let mut kinds: Vec<Vec<Figure>> = Vec::new();
        for sample in &self.samples {
            let kind = figures_of(&sample.measured);
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        for kind in kinds {
            self.table(&kind, &mut text);
        }
        for (name, reason) in &self.left_out {
            let _ = writeln!(text, "\n{name} was left out: {reason}");
        }
        text
    }

    fn table(&self, kind: &[Figure], text: &mut String) {
        let titles: Vec<&str> = kind.iter().map(|figure| figure.title()).collect();
        let _ = writeln!(text, "\n| | condition | {} |", titles.join(" | "));
        let _ = writeln!(text, "|---|---|{}", "---:|".repeat(kind.len()));
        let samples: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|sample| figures_of(&sample.measured) == kind)
            .collect();
        let conditions: BTreeSet<(Reach, Condition)> = samples
            .iter()
            .map(|sample| (sample.reach, sample.condition))
            .collect();
        for (reach, condition) in conditions {
            let mut seen = BTreeSet::new();
            for sample in samples
                .iter()
                .filter(|one| one.reach == reach && one.condition == condition)
            {
                if !seen.insert(&sample.contestant) {
                    continue;
                }
                let figures: Vec<String> = kind
                    .iter()
                    .map(|figure| {
                        let median = self.median(&sample.contestant, condition, *figure);
                        format!("{:.*}", figure.digits(), median.unwrap_or(f64::NAN))
                    })
                    .collect();
                let _ = writeln!(
                    text,
                    "| {} | {} | {} |",
                    sample.contestant,
                    shown(reach, condition),
                    figures.join(" | ")
                );
            }
        }
    }

    /// The median over the rounds.
    fn median(&self, contestant: &str, condition: Condition, figure: Figure) -> Option<f64> {
        let mut values = self.values(contestant, condition, figure);
        values.sort_by(f64::total_cmp);
        let upper = *values.get(values.len() / 2)?;
        if values.len() % 2 == 1 {
            return Some(upper);
        }
        Some((values.get(values.len() / 2 - 1)? + upper) / 2.0)
    }

    /// The sum over the rounds.
    fn sum(&self, contestant: &str, condition: Condition, figure: Figure) -> Option<f64> {
        let values = self.values(contestant, condition, figure);
        (!values.is_empty()).then(|| values.iter().sum())
    }

    fn values(&self, contestant: &str, condition: Condition, figure: Figure) -> Vec<f64> {
        self.samples
            .iter()
            .filter(|sample| sample.contestant == contestant && sample.condition == condition)
            .flat_map(|sample| sample.measured.figures())
            .filter_map(|(name, value)| (name == figure).then_some(value))
            .collect()
    }
}

fn figures_of(measured: &Measured) -> Vec<Figure> {
    measured.figures().into_iter().map(|(figure, _)| figure).collect()
}

/// A condition, without what doesn't apply.
fn shown(reach: Reach, condition: Condition) -> String {
    match (reach, condition.load) {
        (Reach::SameHost, load) => format!("one host, {load}"),
        (Reach::CrossHost, Load::Streams(_)) => condition.to_string(),
        (Reach::CrossHost, load) => load.to_string(),
    }
}
