//! What we hold ourselves to: ratios between medians of one run.

use clap::ValueEnum;

use super::Report;
use super::figure::Figure;
use crate::contestant::{Condition, Load, Offloads};
use crate::generator::Protocol;

const OURS: &str = "tidegate";
const TWO_SHARDS: &str = "tidegate-2";
const OUR_NAMES: &str = "tidegate-names";
const OTHER: &str = "wireguard-go";

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
    /// Datagrams of 64 bytes a second without loss.
    #[value(name = "udp-64")]
    Udp64,
    /// Datagrams of 1,300 bytes a second without loss.
    #[value(name = "udp-1300")]
    Udp1300,
    /// Requests and responses by themselves.
    IdleLatency,
    /// Requests and responses beside a bulk stream.
    LoadedLatency,
    /// New TCP connections a second.
    Connections,
    /// Two shards are not slower and hardly dearer than one.
    TwoShards,
    /// The time from nothing to the first reply, which isn't held against anything.
    FirstPing,
    /// Answers to questions by name, beside name servers of Debian.
    Dns,
}

/// What a figure is held against.
enum Required {
    AtLeast(f64),
    AtMost(f64),
    Nothing,
}

use Required::{AtLeast, AtMost};

impl Row {
    /// Whether a row is made of what is measured under a condition.
    pub(crate) fn needs(self, condition: Condition) -> bool {
        let offloads = match self {
            Self::OffloadsOff => Offloads::Off,
            _ => Offloads::On,
        };
        let load = condition.load;
        condition.offloads == offloads
            && match self {
                Self::CrossHost | Self::OffloadsOff | Self::SameHost => load == Load::Streams(1),
                Self::EightStreams | Self::TwoShards => {
                    matches!(load, Load::Streams(1) | Load::Streams(8))
                }
                Self::Udp64 => load == Load::Datagrams(64),
                Self::Udp1300 => load == Load::Datagrams(1300),
                Self::IdleLatency => matches!(load, Load::IdleRequests(_)),
                Self::LoadedLatency => matches!(load, Load::LoadedRequests(_)),
                Self::Connections => matches!(load, Load::Connections(_)),
                Self::FirstPing => load == Load::FirstPing,
                Self::Dns => matches!(load, Load::Questions | Load::PacedQuestions),
            }
    }
}

impl Report {
    /// A row's lines: `row measured required ok|short`.
    pub(crate) fn check(&self, row: Row) -> Vec<String> {
        let on = |load| Condition {
            offloads: Offloads::On,
            load,
        };
        let (one, eight) = (on(Load::Streams(1)), on(Load::Streams(8)));
        let bare = Condition {
            offloads: Offloads::Off,
            load: Load::Streams(1),
        };
        let ratio = |figure, condition, ours: &str, other: &str| {
            Some(self.median(ours, condition, figure)? / self.median(other, condition, figure)?)
        };
        let speed = |other, condition| ratio(Figure::Speed, condition, OURS, other);
        let cost = |other, condition| ratio(Figure::CostOfBulk, condition, OURS, other);
        let rate = |other, load| ratio(Figure::Rate, on(load), OURS, other);
        let p99 = |load| ratio(Figure::P99, on(load), OURS, OTHER);
        let lost = |load| self.sum(OURS, on(load), Figure::Lost);

        let lines = match row {
            Row::CrossHost => vec![
                ("cross-host/speed/wireguard-go", speed(OTHER, one), AtLeast(1.8)),
                (
                    "cross-host/speed/vxlan+wireguard-go",
                    speed("vxlan+wireguard-go", one),
                    AtLeast(5.0),
                ),
                (
                    "cross-host/speed/vxlan+gotatun",
                    speed("vxlan+gotatun", one),
                    AtLeast(3.0),
                ),
                ("cross-host/cpu/wireguard-go", cost(OTHER, one), AtMost(0.55)),
                (
                    "cross-host/cpu/vxlan+wireguard-go",
                    cost("vxlan+wireguard-go", one),
                    AtMost(0.25),
                ),
                (
                    "cross-host/cpu/vxlan+gotatun",
                    cost("vxlan+gotatun", one),
                    AtMost(0.25),
                ),
            ],
            Row::EightStreams => {
                let speed = |condition| self.median(OURS, condition, Figure::Speed);
                let ratio = speed(eight).zip(speed(one)).map(|(eight, one)| eight / one);
                vec![("eight-streams/speed/one-stream", ratio, AtLeast(1.0))]
            }
            Row::OffloadsOff => vec![
                (
                    "offloads-off/speed/wireguard-go",
                    speed(OTHER, bare),
                    AtLeast(2.0),
                ),
                ("offloads-off/cpu/wireguard-go", cost(OTHER, bare), AtMost(0.5)),
            ],
            Row::SameHost => vec![(
                "same-host/speed/bridge+veth",
                ratio(Figure::Speed, one, "tidegate-one-host", "bridge+veth"),
                AtLeast(0.8),
            )],
            Row::Udp64 => vec![
                (
                    "udp-64/rate/wireguard-go",
                    rate(OTHER, Load::Datagrams(64)),
                    AtLeast(2.5),
                ),
                (
                    "udp-64/rate/gotatun",
                    rate("gotatun", Load::Datagrams(64)),
                    AtLeast(1.3),
                ),
            ],
            Row::Udp1300 => vec![(
                "udp-1300/rate/wireguard-go",
                rate(OTHER, Load::Datagrams(1300)),
                AtLeast(1.8),
            )],
            Row::IdleLatency => vec![
                (
                    "idle-latency/udp-p99/wireguard-go",
                    p99(Load::IdleRequests(Protocol::Udp)),
                    AtMost(1.0),
                ),
                (
                    "idle-latency/tcp-p99/wireguard-go",
                    p99(Load::IdleRequests(Protocol::Tcp)),
                    AtMost(1.0),
                ),
            ],
            Row::LoadedLatency => vec![
                (
                    "loaded-latency/udp-p99/wireguard-go",
                    p99(Load::LoadedRequests(Protocol::Udp)),
                    AtMost(0.33),
                ),
                (
                    "loaded-latency/tcp-p99/wireguard-go",
                    p99(Load::LoadedRequests(Protocol::Tcp)),
                    AtMost(0.33),
                ),
                (
                    "loaded-latency/udp-lost",
                    lost(Load::LoadedRequests(Protocol::Udp)),
                    AtMost(0.0),
                ),
                (
                    "loaded-latency/tcp-lost",
                    lost(Load::LoadedRequests(Protocol::Tcp)),
                    AtMost(0.0),
                ),
            ],
            Row::Connections => vec![
                (
                    "connections/one-at-a-time/wireguard-go",
                    rate(OTHER, Load::Connections(1)),
                    AtLeast(1.5),
                ),
                (
                    "connections/sixteen-at-a-time/wireguard-go",
                    rate(OTHER, Load::Connections(16)),
                    AtLeast(1.5),
                ),
            ],
            Row::TwoShards => vec![
                (
                    "two-shards/eight-streams-speed/one-shard",
                    ratio(Figure::Speed, eight, TWO_SHARDS, OURS),
                    AtLeast(1.0),
                ),
                (
                    "two-shards/one-stream-cpu/one-shard",
                    ratio(Figure::CostOfBulk, one, TWO_SHARDS, OURS),
                    AtMost(1.1),
                ),
                (
                    "two-shards/eight-streams-cpu/one-shard",
                    ratio(Figure::CostOfBulk, eight, TWO_SHARDS, OURS),
                    AtMost(1.1),
                ),
            ],
            Row::Dns => {
                let (asked, paced) = (on(Load::Questions), on(Load::PacedQuestions));
                let of = |figure, condition, other| ratio(figure, condition, OUR_NAMES, other);
                vec![
                    (
                        "dns/rate/dnsmasq",
                        of(Figure::Rate, asked, "dnsmasq"),
                        AtLeast(1.0),
                    ),
                    (
                        "dns/rate/unbound",
                        of(Figure::Rate, asked, "unbound"),
                        AtLeast(1.0),
                    ),
                    (
                        "dns/cpu/dnsmasq",
                        of(Figure::ServerCost, asked, "dnsmasq"),
                        AtMost(0.8),
                    ),
                    ("dns/p99/dnsmasq", of(Figure::P99, paced, "dnsmasq"), AtMost(1.0)),
                    ("dns/p99/unbound", of(Figure::P99, paced, "unbound"), AtMost(1.0)),
                    ("dns/lost", self.sum(OUR_NAMES, paced, Figure::Lost), AtMost(0.0)),
                ]
            }
            Row::FirstPing => vec![(
                "first-ping/milliseconds",
                self.median(OURS, on(Load::FirstPing), Figure::FirstReply),
                Required::Nothing,
            )],
        };
        lines
            .into_iter()
            .map(|(name, measured, required)| line(name, measured, &required))
            .collect()
    }
}

fn line(name: &str, measured: Option<f64>, required: &Required) -> String {
    let bound = match required {
        AtLeast(bound) => format!(">={bound}"),
        AtMost(bound) => format!("<={bound}"),
        Required::Nothing => "-".to_owned(),
    };
    let Some(measured) = measured else {
        return format!("{name} - {bound} short");
    };
    let held = match required {
        AtLeast(bound) => measured >= *bound,
        AtMost(bound) => measured <= *bound,
        Required::Nothing => true,
    };
    format!(
        "{name} {measured:.2} {bound} {}",
        if held { "ok" } else { "short" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant::Reach;
    use crate::measure::Measured;
    use crate::report::Sample;

    fn first_pings(times: &[f64]) -> Report {
        let mut report = Report::of_this_machine();
        for (round, milliseconds) in (1..).zip(times) {
            report.samples.push(Sample {
                contestant: OURS.to_owned(),
                reach: Reach::CrossHost,
                condition: Condition {
                    offloads: Offloads::On,
                    load: Load::FirstPing,
                },
                round,
                measured: Measured::FirstPing {
                    milliseconds: *milliseconds,
                },
            });
        }
        report
    }

    #[test]
    fn a_row_is_of_the_median_and_what_was_not_measured_is_short() {
        let check = |times: &[f64]| first_pings(times).check(Row::FirstPing);
        assert_eq!(check(&[9.0, 5.0, 7.0]), ["first-ping/milliseconds 7.00 - ok"]);
        assert_eq!(check(&[9.0, 5.0]), ["first-ping/milliseconds 7.00 - ok"]);
        assert_eq!(check(&[]), ["first-ping/milliseconds - - short"]);
    }

    #[test]
    fn a_line_says_whether_the_bound_holds() {
        assert_eq!(line("row", Some(1.8), &AtLeast(1.8)), "row 1.80 >=1.8 ok");
        assert_eq!(line("row", Some(1.7), &AtLeast(1.8)), "row 1.70 >=1.8 short");
        assert_eq!(line("row", Some(0.5), &AtMost(0.33)), "row 0.50 <=0.33 short");
        assert_eq!(line("row", None, &AtMost(0.33)), "row - <=0.33 short");
    }

    #[test]
    fn a_report_that_was_written_is_read_back_the_same() {
        let report = first_pings(&[3.0]);
        let text = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(read.tables(), report.tables());
    }

    #[test]
    fn every_row_needs_something_that_is_measured() {
        for row in Row::value_variants() {
            let needed = [
                Load::Streams(1),
                Load::Datagrams(64),
                Load::Datagrams(1300),
                Load::IdleRequests(Protocol::Udp),
                Load::LoadedRequests(Protocol::Tcp),
                Load::Connections(16),
                Load::FirstPing,
                Load::Questions,
            ]
            .into_iter()
            .filter(|load| {
                [Offloads::On, Offloads::Off].into_iter().any(|offloads| {
                    row.needs(Condition {
                        offloads,
                        load: *load,
                    })
                })
            });
            assert_eq!(needed.count(), 1, "{row:?}");
        }
    }
}
