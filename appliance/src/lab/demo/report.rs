//! What a demo found, for people at a glance and as JSON; whether all that was expected held.

use super::segmentation::Segmentation;
use crate::cli::output::table;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything a demo found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Report {
    /// The lab.
    pub(crate) lab: String,
    /// Whether all that was expected held.
    pub(crate) held: bool,
    /// How long it took, teardown included, in seconds.
    pub(crate) seconds: f64,
    /// Pairs of instances of one application.
    pub(crate) reach: Vec<Reach>,
    /// Pairs of applications.
    pub(crate) isolation: Vec<Isolation>,
    /// A rule that was applied meanwhile; `None` when no application has two services without rules.
    pub(crate) segmentation: Option<Segmentation>,
    /// Round trips and streams.
    pub(crate) speed: Vec<Speed>,
    /// The proof that the underlay shows nothing; `None` when no two instances of an application are on two hosts.
    pub(crate) secrecy: Option<Secrecy>,
    /// What each host's processes cost.
    pub(crate) processes: Vec<ProcessCost>,
    /// What was left behind; `None` when the lab was kept.
    pub(crate) leftovers: Option<Vec<String>>,
}

/// Whether an instance reached another of its application.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Reach {
    /// Who asked.
    pub(crate) from: String,
    /// Who was asked.
    pub(crate) to: String,
    /// `one host`, or the two.
    pub(crate) path: String,
    /// By ICMP echo and by TCP, over IPv4 and IPv6: how it went, `reached` when it did.
    pub(crate) outcomes: BTreeMap<&'static str, String>,
}

/// What instances of one application got from those of another.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Isolation {
    /// Who probed.
    pub(crate) from: String,
    /// Who should not notice.
    pub(crate) to: String,
    /// Probes sent: echo requests, connections, datagrams with a marker.
    pub(crate) probes: usize,
    /// Of them answered.
    pub(crate) answered: usize,
    /// Of the datagrams, those that the other application's instances saw.
    pub(crate) seen: usize,
    /// Why packets were dropped meanwhile, and how many.
    pub(crate) drops: BTreeMap<String, u64>,
}

/// How fast a pair talks.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Speed {
    /// The sender.
    pub(crate) from: String,
    /// The receiver.
    pub(crate) to: String,
    /// `one host`, or the two.
    pub(crate) path: String,
    /// Round trips sent.
    pub(crate) pings: u16,
    /// Of them lost.
    pub(crate) pings_lost: u16,
    /// The median round trip, in microseconds.
    pub(crate) median_us: Option<f64>,
    /// The 99th percentile, in microseconds.
    pub(crate) p99_us: Option<f64>,
    /// One TCP stream, in Gbit/s.
    pub(crate) gbit_per_second: f64,
}

/// What was searched for on the underlay, and found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Secrecy {
    /// The sender.
    pub(crate) from: String,
    /// The receiver.
    pub(crate) to: String,
    /// The underlay device that was watched.
    pub(crate) device: String,
    /// Random markers sent.
    pub(crate) markers: usize,
    /// Of them received by the receiver's socket.
    pub(crate) markers_delivered: usize,
    /// Of them found on the underlay.
    pub(crate) markers_outside: usize,
    /// Of them found by the same search on the receiver's own interface.
    pub(crate) markers_inside: usize,
    /// Names of instances and applications found on the underlay.
    pub(crate) names_outside: Vec<String>,
    /// Names found by the same search inside.
    pub(crate) names_inside: Vec<String>,
    /// Frames on the underlay.
    pub(crate) frames: u64,
    /// Of them datagrams of lanes, by WireGuard message type.
    pub(crate) lane_messages: BTreeMap<u8, u64>,
    /// Of them datagrams of the link by which hosts tell each other what they have.
    pub(crate) link_datagrams: u64,
    /// Of them ARP and neighbour discovery for underlay addresses.
    pub(crate) discovery: u64,
    /// Of them anything else.
    pub(crate) strangers: u64,
    /// Some of those.
    pub(crate) strangers_told: Vec<String>,
    /// Frames that a tap lost: the search would not have been complete.
    pub(crate) frames_lost: u32,
}

/// What a process costs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ProcessCost {
    /// Its host.
    pub(crate) host: String,
    /// `agent`, `datapath` or `supervisor`.
    pub(crate) role: String,
    /// Resident memory, in bytes.
    pub(crate) resident_bytes: u64,
    /// Processor time, in seconds.
    pub(crate) cpu_seconds: f64,
}

/// How an outcome that is as it should be is called.
pub(super) const REACHED: &str = "reached";

impl Reach {
    /// Whether every way reached.
    pub(super) fn held(&self) -> bool {
        !self.outcomes.is_empty() && self.outcomes.values().all(|outcome| outcome == REACHED)
    }
}

impl Isolation {
    /// Whether nothing came through.
    pub(super) fn held(&self) -> bool {
        self.probes > 0 && self.answered == 0 && self.seen == 0
    }
}

impl Speed {
    /// Whether no round trip was lost and the stream flowed.
    pub(super) fn held(&self) -> bool {
        self.pings_lost == 0 && self.gbit_per_second > 0.0
    }
}

impl Secrecy {
    /// Whether the underlay showed nothing and the control found everything.
    pub(super) fn held(&self) -> bool {
        self.outside_is_silent() && self.control_is_complete()
    }

    fn outside_is_silent(&self) -> bool {
        self.markers_outside == 0
            && self.names_outside.is_empty()
            && self.strangers == 0
            && self.frames_lost == 0
            && self.lane_messages.contains_key(&4)
    }

    fn control_is_complete(&self) -> bool {
        self.markers_delivered == self.markers
            && self.markers_inside == self.markers
            && !self.names_inside.is_empty()
    }
}

impl Report {
    /// Whether all that was expected held.
    pub(super) fn all_held(&self) -> bool {
        self.reach.iter().all(Reach::held)
            && self.isolation.iter().all(Isolation::held)
            && self.segmentation.iter().all(Segmentation::held)
            && self.speed.iter().all(Speed::held)
            && self.secrecy.iter().all(Secrecy::held)
            && self.leftovers.iter().all(Vec::is_empty)
    }

    /// For people; with colours where they can be seen.
    pub(crate) fn to_text(&self, colours: bool) -> String {
        let mark = Mark { colours };
        let parts = [
            self.reach_text(mark),
            self.isolation_text(mark),
            self.segmentation
                .as_ref()
                .map(|segmentation| segmentation.to_text(mark))
                .unwrap_or_default(),
            self.speed_text(mark),
            self.secrecy
                .as_ref()
                .map(|secrecy| secrecy.to_text(mark))
                .unwrap_or_default(),
            self.processes_text(),
            self.ending(mark),
        ];
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn reach_text(&self, mark: Mark) -> String {
        if self.reach.is_empty() {
            return String::new();
        }
        let cell = |reach: &Reach, way: &str| match reach.outcomes.get(way) {
            Some(outcome) => mark.of(outcome == REACHED, outcome),
            None => "–".to_owned(),
        };
        let rows = self.reach.iter().map(|reach| {
            let [ping4, ping6, tcp4, tcp6] =
                ["ping-ipv4", "ping-ipv6", "tcp-ipv4", "tcp-ipv6"].map(|way| cell(reach, way));
            [
                reach.from.clone(),
                reach.to.clone(),
                reach.path.clone(),
                ping4,
                ping6,
                tcp4,
                tcp6,
            ]
        });
        let headings = [
            "FROM",
            "TO",
            "PATH",
            "PING IPV4",
            "PING IPV6",
            "TCP IPV4",
            "TCP IPV6",
        ];
        format!(
            "Inside an application everybody reaches everybody\n{}",
            mark.paint(&table(headings, rows))
        )
    }

    fn isolation_text(&self, mark: Mark) -> String {
        if self.isolation.is_empty() {
            return String::new();
        }
        let rows = self.isolation.iter().map(|isolation| {
            let drops: Vec<String> = isolation
                .drops
                .iter()
                .map(|(reason, count)| format!("{reason} {count}"))
                .collect();
            let words = if isolation.held() {
                "nothing, as it should be"
            } else {
                "something came through"
            };
            [
                isolation.from.clone(),
                isolation.to.clone(),
                isolation.probes.to_string(),
                isolation.answered.to_string(),
                isolation.seen.to_string(),
                mark.of(isolation.held(), words),
                drops.join(", "),
            ]
        });
        let headings = [
            "FROM",
            "TO",
            "PROBES",
            "ANSWERED",
            "SEEN",
            "RESULT",
            "DROPPED BECAUSE",
        ];
        format!(
            "Between applications nobody reaches anybody\n{}",
            mark.paint(&table(headings, rows))
        )
    }

    fn speed_text(&self, mark: Mark) -> String {
        if self.speed.is_empty() {
            return String::new();
        }
        let time =
            |microseconds: Option<f64>| microseconds.map_or("–".to_owned(), |time| format!("{time:.0} µs"));
        let rows = self.speed.iter().map(|speed| {
            [
                speed.from.clone(),
                speed.to.clone(),
                speed.path.clone(),
                time(speed.median_us),
                time(speed.p99_us),
                mark.of(
                    speed.pings_lost == 0,
                    &format!("{} of {}", speed.pings_lost, speed.pings),
                ),
                format!("{:.2} Gbit/s", speed.gbit_per_second),
            ]
        });
        let headings = [
            "FROM",
            "TO",
            "PATH",
            "RTT MEDIAN",
            "RTT P99",
            "LOST",
            "TCP, 1 STREAM",
        ];
        format!("Speed\n{}", mark.paint(&table(headings, rows)))
    }

    fn processes_text(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "memory in MiB needs no precision")]
        let rows = self.processes.iter().map(|process| {
            [
                process.host.clone(),
                process.role.clone(),
                format!("{:.1} MiB", process.resident_bytes as f64 / f64::from(1 << 20)),
                format!("{:.2} s", process.cpu_seconds),
            ]
        });
        format!(
            "What it costs\n{}",
            table(["HOST", "PROCESS", "MEMORY", "CPU TIME"], rows)
        )
    }

    fn ending(&self, mark: Mark) -> String {
        let left = match &self.leftovers {
            None => format!(
                "lab {} stays up: `tidegate lab down {}` removes it\n",
                self.lab, self.lab
            ),
            Some(left) if left.is_empty() => {
                format!("{}\n", mark.of(true, "taken down, nothing is left behind"))
            }
            Some(left) => format!(
                "{}\n",
                mark.of(false, &format!("left behind: {}", left.join(", ")))
            ),
        };
        let words = if self.held {
            "all that was expected held"
        } else {
            "not all that was expected held"
        };
        mark.paint(&format!(
            "{left}{} ({:.1} s)",
            mark.of(self.held, words),
            self.seconds
        ))
    }
}

impl Secrecy {
    fn to_text(&self, mark: Mark) -> String {
        let lanes: Vec<String> = self
            .lane_messages
            .iter()
            .map(|(kind, count)| format!("type {kind}: {count}"))
            .collect();
        let mut lines = vec![
            format!(
                "Outside there is only ciphertext ({} → {}, watched on {})",
                self.from, self.to, self.device
            ),
            mark.of(
                self.markers_outside == 0 && self.frames_lost == 0,
                &format!(
                    "{} of {} markers found on the underlay",
                    self.markers_outside, self.markers
                ),
            ),
            mark.of(
                self.control_is_complete(),
                &format!(
                    "{} of {} found by the same search inside (control)",
                    self.markers_inside, self.markers
                ),
            ),
            mark.of(
                self.names_outside.is_empty(),
                &match self.names_outside.as_slice() {
                    [] => "no name of an instance or application on the underlay".to_owned(),
                    names => format!("names on the underlay: {}", names.join(", ")),
                },
            ),
            mark.of(
                self.strangers == 0,
                &format!(
                    "{} frames: lanes {} ({}), link {}, ARP and neighbour discovery {}, anything else {}",
                    self.frames,
                    self.lane_messages.values().sum::<u64>(),
                    lanes.join(", "),
                    self.link_datagrams,
                    self.discovery,
                    self.strangers
                ),
            ),
        ];
        lines.extend(self.strangers_told.iter().map(|what| format!("    {what}")));
        if self.markers_delivered != self.markers {
            lines.push(mark.of(
                false,
                &format!("{} markers arrived of {}", self.markers_delivered, self.markers),
            ));
        }
        if self.frames_lost > 0 {
            lines.push(mark.of(
                false,
                &format!("{} frames were lost before they were searched", self.frames_lost),
            ));
        }
        mark.paint(&format!("{}\n", lines.join("\n")))
    }
}

/// Marks what held and what didn't: a sign and words, so that colour is never the only difference.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    colours: bool,
}

impl Mark {
    pub(super) fn of(self, held: bool, words: &str) -> String {
        format!("{} {words}", if held { '✓' } else { '✗' })
    }

    /// Colours the signs of a rendered text: afterwards, so that columns are as wide as what is seen.
    pub(super) fn paint(self, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        text.replace('✓', "\x1b[32m✓\x1b[0m")
            .replace('✗', "\x1b[31m✗\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrecy() -> Secrecy {
        Secrecy {
            from: "shop/web-1".into(),
            to: "shop/db-1".into(),
            device: "eth0 of tg-h1".into(),
            markers: 10_000,
            markers_delivered: 10_000,
            markers_outside: 0,
            markers_inside: 10_000,
            names_outside: vec![],
            names_inside: vec!["shop/web-1".into()],
            frames: 12_010,
            lane_messages: [(1, 1), (2, 1), (4, 11_960)].into(),
            link_datagrams: 40,
            discovery: 8,
            strangers: 0,
            strangers_told: vec![],
            frames_lost: 0,
        }
    }

    fn report() -> Report {
        let outcomes = [
            ("ping-ipv4", REACHED.to_owned()),
            ("tcp-ipv4", REACHED.to_owned()),
        ];
        let mut report = Report {
            lab: "tg".into(),
            held: false,
            seconds: 21.4,
            reach: vec![Reach {
                from: "shop/web-1".into(),
                to: "shop/db-1".into(),
                path: "h1 → h2".into(),
                outcomes: outcomes.into(),
            }],
            isolation: vec![Isolation {
                from: "shop".into(),
                to: "historian".into(),
                probes: 12,
                answered: 0,
                seen: 0,
                drops: [("no-route".to_owned(), 12)].into(),
            }],
            segmentation: Some(Segmentation {
                from: "shop/web-1".into(),
                to: "shop/db-1".into(),
                allowed_port: 5432,
                allowed: REACHED.into(),
                denied_port: 22,
                denied: "refused".into(),
                because: vec!["inbound-access of acme/shop/db: no rule matches, denied".into()],
                reason: "inbound-denied".into(),
                counted: 1,
                without_rule: REACHED.into(),
            }),
            speed: vec![],
            secrecy: Some(secrecy()),
            processes: vec![],
            leftovers: Some(vec![]),
        };
        report.held = report.all_held();
        report
    }

    #[test]
    fn report_reads_at_a_glance() {
        let report = report();
        assert!(report.held);
        let text = report.to_text(false);
        for line in [
            "shop/web-1  shop/db-1  h1 → h2  ✓ reached  –          ✓ reached  –",
            "shop  historian  12      0         0     ✓ nothing, as it should be  no-route 12",
            "✓ 0 of 10000 markers found on the underlay",
            "✓ 10000 of 10000 found by the same search inside (control)",
            "✓ all that was expected held (21.4 s)",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains('\x1b'));
        assert!(report.to_text(true).contains("\x1b[32m✓"));
    }

    #[test]
    fn anything_that_came_through_fails_the_whole() {
        let breaks: [fn(&mut Report); 6] = [
            |report| report.isolation[0].seen = 1,
            |report| report.leftovers = Some(vec!["namespace tg-h1".into()]),
            |report| report.reach[0].outcomes = [("ping-ipv4", "silence".to_owned())].into(),
            |report| report.secrecy.as_mut().unwrap().markers_outside = 1,
            |report| report.secrecy.as_mut().unwrap().markers_inside = 9_999,
            |report| report.secrecy.as_mut().unwrap().frames_lost = 1,
        ];
        for break_it in breaks {
            let mut report = report();
            break_it(&mut report);
            assert!(!report.all_held(), "{report:?}");
        }
    }
}
