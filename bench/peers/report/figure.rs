//! The figures of every kind of measurement, with their titles.

use crate::measure::Measured;

const MIB: f64 = (1u64 << 20) as f64;

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// TCP payload that arrived.
    Speed,
    /// CPU seconds per GiB of TCP payload.
    CostOfBulk,
    /// Segments sent again.
    Retransmits,
    /// Memory of the daemons.
    Resident,
    /// Datagrams, answers or connections a second.
    Rate,
    /// CPU microseconds per datagram, answer or connection.
    Cost,
    /// Datagrams that didn't arrive.
    Missing,
    /// Datagrams that arrived late.
    Late,
    /// The median latency.
    Median,
    /// The latency of 99 in 100.
    P99,
    /// Requests without an answer.
    Lost,
    /// Connections that failed.
    Failed,
    /// Speed of the stream beside.
    Beside,
    /// Time to the first reply.
    FirstReply,
    /// CPU microseconds of the server per answer.
    ServerCost,
}

impl Figure {
    /// The column's head.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Speed => "Gbit/s",
            Self::CostOfBulk => "CPU-s/GiB",
            Self::Retransmits => "retransmits",
            Self::Resident => "daemons' RSS, MiB",
            Self::Rate => "per second",
            Self::Cost => "CPU-µs each",
            Self::Missing => "missing, %",
            Self::Late => "out of order, %",
            Self::Median => "median, µs",
            Self::P99 => "p99, µs",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Beside => "the stream's Gbit/s",
            Self::FirstReply => "first reply, ms",
            Self::ServerCost => "server's CPU-µs each",
        }
    }

    /// Digits after the point.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::Speed | Self::CostOfBulk | Self::Cost | Self::Beside | Self::ServerCost => 2,
            Self::Missing | Self::Late => 3,
            Self::Retransmits
            | Self::Resident
            | Self::Rate
            | Self::Median
            | Self::P99
            | Self::Lost
            | Self::Failed
            | Self::FirstReply => 0,
        }
    }
}

impl Measured {
    /// Its figures, in the table's order.
    pub(super) fn figures(&self) -> Vec<(Figure, f64)> {
        match self {
            Self::Throughput(bulk) => {
                let resident: u64 = bulk.resident.iter().map(|one| one.bytes).sum();
                vec![
                    (Figure::Speed, bulk.gigabits_per_second),
                    (Figure::CostOfBulk, bulk.cpu_seconds_per_gib),
                    (Figure::Retransmits, bulk.retransmits as f64),
                    (Figure::Resident, resident as f64 / MIB),
                ]
            }
            Self::Datagrams(datagrams) => vec![
                (Figure::Rate, datagrams.per_second),
                (Figure::Cost, datagrams.cpu_microseconds_each),
                (Figure::Missing, datagrams.missing * 100.0),
                (Figure::Late, datagrams.late * 100.0),
            ],
            Self::Requests(latency) => {
                let mut figures = vec![
                    (Figure::Median, latency.median_microseconds),
                    (Figure::P99, latency.p99_microseconds),
                    (Figure::Lost, latency.lost as f64),
                    (Figure::Rate, latency.per_second),
                ];
                figures.extend(latency.cpu_microseconds_each.map(|cost| (Figure::Cost, cost)));
                figures.extend(
                    latency
                        .bulk_gigabits_per_second
                        .map(|speed| (Figure::Beside, speed)),
                );
                figures
            }
            Self::Connections(rate) => vec![
                (Figure::Rate, rate.per_second),
                (Figure::P99, rate.p99_microseconds),
                (Figure::Failed, rate.failed as f64),
                (Figure::Cost, rate.cpu_microseconds_each),
            ],
            Self::Answers(answers) => {
                let mut figures = vec![
                    (Figure::Rate, answers.per_second),
                    (Figure::ServerCost, answers.server_microseconds_each),
                    (Figure::Lost, answers.lost as f64),
                ];
                if let Some(latency) = &answers.latency {
                    figures.push((Figure::Median, latency.median_microseconds));
                    figures.push((Figure::P99, latency.p99_microseconds));
                }
                figures
            }
            Self::FirstPing { milliseconds } => vec![(Figure::FirstReply, *milliseconds)],
        }
    }
}
