//! The demonstration: builds a lab, moves real traffic in it, and reports what came through and what did not.
//!
//! 1. [`traffic`]: inside an application everybody reaches everybody, by ping and TCP, both families; how fast.
//! 2. Between applications nobody does: probes of every kind, and a tap at every instance that should not see them.
//! 3. [`segmentation`]: a document that lets one service reach one port of another is applied while all runs; what it
//!    denies is tried, and explained by the filter itself.
//! 4. [`secrecy`]: of thousands of random markers sent inside, the underlay shows none.
//! 5. What the processes cost. Then the lab goes, and what is left of it is looked for.

mod report;
mod search;
mod secrecy;
mod segmentation;
mod traffic;
mod wire;

pub(crate) use report::Report;

use super::build::{self, Attached, INSTANCE_DEVICE, Lab};
use super::echo::{Echo, Outcome};
use super::{Error, Progress, WhileDoing as _, teardown};
use crate::sys::process::{self, Process};
use crate::sys::{interruption, netns};
use report::{Isolation, ProcessCost, REACHED, Reach, Speed};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use traffic::Pair;

/// How long a reply may take inside an application, and how long silence between applications is listened to.
const REPLY: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_millis(200);

/// Datagrams of one probe between applications.
const PROBES: usize = 20;

/// How long a throughput figure is measured.
const STREAM: Duration = Duration::from_secs(3);

/// Builds the lab of a topology, shows what it does, and takes it down again unless it is to be kept.
///
/// # Errors
/// What kept the lab from being built or the traffic from being made. The lab is gone then, too.
pub(crate) fn run(file: &Path, keep: bool, progress: Progress) -> Result<Report, Error> {
    let begin = Instant::now();
    let lab = build::up(file, progress)?;
    let shown = show(&lab, progress);
    if keep && shown.is_ok() {
        let mut report = shown?;
        report.held = report.all_held();
        report.seconds = begin.elapsed().as_secs_f64();
        return Ok(report);
    }
    progress.step("taking the lab down");
    let state = lab.state.clone();
    drop(lab);
    let removed = teardown::down(&state.lab);
    progress.done();
    let mut report = match (shown, removed) {
        (Ok(report), Ok(())) => report,
        (shown, removed) => {
            let errors = [shown.err(), removed.err()].into_iter().flatten().collect();
            return Err(Error::collect(errors).err().unwrap_or(Error::Interrupted));
        }
    };
    report.leftovers = Some(teardown::leftovers(&state)?);
    report.held = report.all_held();
    report.seconds = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn show(lab: &Lab, progress: Progress) -> Result<Report, Error> {
    let step = |text: &str| {
        progress.step(text);
        if interruption::requested() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    };
    let pairs = pairs(lab);
    step("asking who reaches whom")?;
    let reach = pairs
        .iter()
        .map(|pair| reach(*pair))
        .collect::<Result<Vec<_>, _>>()?;
    step("probing from one application into another")?;
    let isolation = isolation(lab)?;
    step("letting one service reach one port of another")?;
    let segmentation = segmentation::show(lab, &pairs)?;
    let mut speed = Vec::new();
    let across = pairs.iter().find(|pair| !pair.is_on_one_host());
    let local = pairs.iter().find(|pair| pair.is_on_one_host());
    for pair in [across, local].into_iter().flatten() {
        step(&format!("measuring {} ({})", pair.title(), path(*pair)))?;
        speed.push(measure(*pair)?);
    }
    step("searching the underlay for markers sent inside")?;
    let secrecy = across.map(|pair| secrecy::prove(*pair)).transpose()?;
    step("counting what it costs")?;
    Ok(Report {
        lab: lab.blueprint.lab.clone(),
        held: false,
        seconds: 0.0,
        reach,
        isolation,
        segmentation,
        speed,
        secrecy,
        processes: costs(lab)?,
        leftovers: None,
    })
}

/// All ordered pairs of instances of one application.
fn pairs(lab: &Lab) -> Vec<Pair<'_>> {
    let mut pairs = Vec::new();
    for from in &lab.instances {
        for to in &lab.instances {
            if from.instance != to.instance && from.instance.is_of_the_same_application_as(&to.instance) {
                pairs.push(Pair { lab, from, to });
            }
        }
    }
    pairs
}

fn path(pair: Pair<'_>) -> String {
    if pair.is_on_one_host() {
        format!("on {}", pair.from.instance.host)
    } else {
        format!("{} → {}", pair.from.instance.host, pair.to.instance.host)
    }
}

fn reach(pair: Pair<'_>) -> Result<Reach, Error> {
    let mut outcomes = BTreeMap::new();
    for (is_ipv4, ping, tcp) in [(true, "ping-ipv4", "tcp-ipv4"), (false, "ping-ipv6", "tcp-ipv6")] {
        let Some(address) = pair.to.address(is_ipv4) else {
            continue;
        };
        let doing = || format!("pinging from {}", pair.title());
        let namespace = pair.lab.namespace(&pair.from.instance.namespace)?;
        let outcome = Echo::open(namespace, address, 1)
            .and_then(|mut echo| echo.ask(REPLY))
            .while_doing(doing)?;
        let words = match outcome {
            Outcome::Reached(_) => REACHED,
            Outcome::Refused => "refused",
            Outcome::Silence => "silence",
        };
        outcomes.insert(ping, words.to_owned());
        let words = if traffic::tcp_reaches(pair, address)? {
            REACHED
        } else {
            "no connection"
        };
        outcomes.insert(tcp, words.to_owned());
    }
    Ok(Reach {
        from: pair.from.instance.title(),
        to: pair.to.instance.title(),
        path: path(pair),
        outcomes,
    })
}

fn measure(pair: Pair<'_>) -> Result<Speed, Error> {
    let (times, sent) = traffic::round_trips(pair)?;
    let quantile = |hundredths: usize| {
        let at = (times.len() * hundredths / 100).min(times.len().saturating_sub(1));
        times.get(at).map(|time| time.as_secs_f64() * 1e6)
    };
    Ok(Speed {
        from: pair.from.instance.title(),
        to: pair.to.instance.title(),
        path: path(pair),
        pings: sent,
        pings_lost: sent.saturating_sub(u16::try_from(times.len()).unwrap_or(u16::MAX)),
        median_us: quantile(50),
        p99_us: quantile(99),
        gbit_per_second: traffic::throughput(pair, STREAM)? / 1e9,
    })
}

/// Probes from every application into every other one.
fn isolation(lab: &Lab) -> Result<Vec<Isolation>, Error> {
    let mut found: Vec<Isolation> = Vec::new();
    for from in &lab.instances {
        for to in &lab.instances {
            if from.instance.is_of_the_same_application_as(&to.instance) {
                continue;
            }
            let probe = probe(Pair { lab, from, to })?;
            match found
                .iter_mut()
                .find(|known| (&known.from, &known.to) == (&probe.from, &probe.to))
            {
                Some(known) => {
                    known.probes += probe.probes;
                    known.answered += probe.answered;
                    known.seen += probe.seen;
                    for (reason, count) in probe.drops {
                        *known.drops.entry(reason).or_default() += count;
                    }
                }
                None => found.push(probe),
            }
        }
    }
    Ok(found)
}

/// Probes one instance of another application over each of its addresses. An address that somebody of the prober's own
/// application has as well is answered by that one, rightly (application networks reuse one prefix): there only the
/// tap at the other end tells.
fn probe(pair: Pair<'_>) -> Result<Isolation, Error> {
    let before = drops(pair.lab, &pair.from.instance.host);
    let marker = secrecy::random_marker()?;
    let tap = secrecy::tap(pair.lab.namespace(&pair.to.instance.namespace)?, INSTANCE_DEVICE)?;
    let done = AtomicBool::new(false);
    let (probes, answered, seen) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = 0;
            secrecy::watch(tap, &done, |frame| {
                seen += usize::from(search::holds(frame, &marker))
            })?;
            Ok::<_, Error>(seen)
        });
        let sent = send_probes(pair, &marker);
        done.store(true, Ordering::Relaxed);
        let seen = watching
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (probes, answered) = sent?;
        Ok::<_, Error>((probes, answered, seen))
    })?;
    let mut reasons = drops(pair.lab, &pair.from.instance.host);
    for (reason, count) in before {
        if let Some(now) = reasons.get_mut(&reason) {
            *now = now.saturating_sub(count);
        }
    }
    reasons.retain(|_, count| *count > 0);
    Ok(Isolation {
        from: pair.from.instance.application.clone(),
        to: pair.to.instance.application.clone(),
        probes,
        answered,
        seen,
        drops: reasons,
    })
}

fn send_probes(pair: Pair<'_>, marker: &search::Marker) -> Result<(usize, usize), Error> {
    let is_shared = |address| {
        let own = |attached: &&Attached| {
            attached
                .instance
                .is_of_the_same_application_as(&pair.from.instance)
        };
        pair.lab
            .instances
            .iter()
            .filter(own)
            .any(|attached| attached.addresses.contains(&address))
    };
    let (mut probes, mut answered) = (0, 0);
    for address in &pair.to.addresses {
        probes += traffic::throw_datagrams(pair, *address, marker, PROBES)?;
        if is_shared(*address) {
            continue;
        }
        let doing = || format!("pinging from {}", pair.title());
        let namespace = pair.lab.namespace(&pair.from.instance.namespace)?;
        let outcome = Echo::open(namespace, *address, 2)
            .and_then(|mut echo| echo.ask(SILENCE))
            .while_doing(doing)?;
        probes += 1;
        answered += usize::from(matches!(outcome, Outcome::Reached(_)));
    }
    Ok((probes, answered))
}

/// The drop counters of a host, by reason; empty when its agent doesn't tell.
fn drops(lab: &Lab, host: &str) -> BTreeMap<String, u64> {
    let Some(host) = lab.blueprint.hosts.iter().find(|known| known.name == host) else {
        return BTreeMap::new();
    };
    let arguments = ["drops".into(), "-o".into(), "json".into()];
    let told = lab
        .namespace(&host.namespace)
        .and_then(|namespace| build::ask_agent(&lab.blueprint.lab, host, namespace, &arguments));
    // The counters only explain what the taps have shown: without them the demo goes on.
    let value: Value = told
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let mut reasons = BTreeMap::new();
    let listed = value.get("drops").and_then(Value::as_array).into_iter().flatten();
    for drop in listed {
        if let (Some(reason), Some(packets)) = (
            drop.get("reason").and_then(Value::as_str),
            drop.get("packets").and_then(Value::as_u64),
        ) {
            reasons.insert(reason.to_owned(), packets);
        }
    }
    reasons
}

/// What the processes of every host cost.
fn costs(lab: &Lab) -> Result<Vec<ProcessCost>, Error> {
    let mut costs = Vec::new();
    for host in &lab.blueprint.hosts {
        let doing = || format!("looking at the processes of host {}", host.name);
        let namespace = netns::Identity::of(lab.namespace(&host.namespace)?).while_doing(doing)?;
        for process in process::in_namespace(namespace).while_doing(doing)? {
            let (Some(role), Ok(usage)) = (role(&process), process.usage()) else {
                continue;
            };
            costs.push(ProcessCost {
                host: host.name.clone(),
                role: role.to_owned(),
                resident_bytes: usage.resident_bytes,
                cpu_seconds: usage.cpu_seconds,
            });
        }
    }
    Ok(costs)
}

/// Which of ours a process is, by the verb it was started with.
fn role(process: &Process) -> Option<&'static str> {
    let arguments = process::arguments(process);
    let is = |verb: &str| arguments.iter().skip(1).any(|argument| argument == verb);
    if is("datapath") {
        Some("datapath")
    } else if is("agent") {
        Some("agent")
    } else if is("run") {
        Some("supervisor")
    } else {
        None
    }
}
