//! `status` and `drops`.

use super::Places;
use super::client::AgentClient;
use super::output::{self, Form};
use crate::agent::api::{
    ApplicationDrops, DnsStatus, DropExample, DropLine, DropList, ProcessStatus, Request, Response,
    SiteLinkStatus, Status, UpstreamSource, UpstreamState, UpstreamStatus,
};
use clap::Args;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_stack::stats::PacketExample;

/// Arguments of `drops`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tidegate drops -f")]
pub(crate) struct Drops {
    /// Goes on: prints what was dropped since, once a second.
    #[arg(short, long)]
    follow: bool,
}

/// Prints the state at a glance.
pub(crate) fn status(places: &Places, form: Form) -> anyhow::Result<()> {
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::Status, &[])? {
        Response::Status(status) => output::print(form, &*status, render_status),
        other => Err(AgentClient::unexpected(&other)),
    }
}

/// Prints why packets went no further.
pub(crate) fn drops(places: &Places, form: Form, arguments: &Drops) -> anyhow::Result<()> {
    let agent = AgentClient::connect(&places.agent_socket())?;
    let mut before: Option<Vec<DropLine>> = None;
    loop {
        let Response::Drops(now) = agent.ask(&Request::Drops, &[])? else {
            anyhow::bail!(
                "the agent answered another question: are `tidegate` and the agent of one version?"
            );
        };
        let seen = before.replace(now.drops.clone());
        let printed = match &seen {
            None => now,
            Some(seen) => DropList {
                drops: risen(seen, now.drops),
            },
        };
        if seen.is_none() || !printed.drops.is_empty() {
            output::print(form, &printed, render_drops)?;
        }
        if !arguments.follow {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The reasons whose counters rose, with how much. Counters of a new datapath begin at zero again.
fn risen(before: &[DropLine], now: Vec<DropLine>) -> Vec<DropLine> {
    now.into_iter()
        .filter_map(|mut line| {
            let former = before.iter().find(|seen| seen.reason == line.reason);
            let seen = former.map_or(0, |seen| seen.packets);
            line.packets = rise(seen, line.packets);
            for now in &mut line.applications {
                let mut former = former.into_iter().flat_map(|former| &former.applications);
                let seen = former.find(|seen| seen.application == now.application);
                now.packets = rise(seen.map_or(0, |seen| seen.packets), now.packets);
            }
            line.applications.retain(|now| now.packets > 0);
            (line.packets > 0).then_some(line)
        })
        .collect()
}

fn rise(before: u64, now: u64) -> u64 {
    if now >= before { now - before } else { now }
}

fn render_status(status: &Status) -> String {
    let mut lines = vec![
        (
            "host",
            format!(
                "{} (ordinal {}) of site {}",
                status.host_id, status.ordinal, status.site
            ),
        ),
        ("public key", status.public_key.clone()),
        ("lanes", render_lanes(status)),
        (
            "foreign lane",
            status
                .lane
                .map_or_else(|| "none".to_owned(), |lane| format!("UDP {lane}")),
        ),
        (
            "underlay",
            format!(
                "{}, MTU {}{}",
                status.underlay.device.as_deref().unwrap_or("unknown device"),
                status.underlay.mtu,
                if status.underlay.tuned { ", tuned" } else { "" }
            ),
        ),
        ("agent", render_process(&status.agent)),
    ];
    if let Some(link) = &status.site_link {
        lines.push(("site link", render_site_link(link)));
    }
    match &status.datapath {
        None => lines.push(("datapath", "doesn't answer".to_owned())),
        Some(datapath) => lines.extend([
            (
                "datapath",
                format!(
                    "{}, boot {}, {} shard(s)",
                    render_process(&datapath.process),
                    datapath.boot,
                    datapath.shards
                ),
            ),
            (
                "plan",
                format!(
                    "{} in force, epoch {}",
                    datapath.plan.as_deref().unwrap_or("none"),
                    datapath.epoch
                ),
            ),
            (
                "flows",
                format!("{} of {}", datapath.flows, datapath.flows_capacity),
            ),
            (
                "frames",
                format!("{} of {}", datapath.frames_in_use, datapath.frames_capacity),
            ),
            ("drops", datapath.drops.to_string()),
        ]),
    }
    let connected = status
        .datapath
        .as_ref()
        .map_or(0, |datapath| datapath.peers_connected);
    lines.push(("names outside", render_dns(&status.dns)));
    let upstreams = status.dns.upstreams.iter();
    lines.extend(upstreams.map(|upstream| ("name server", render_upstream(upstream))));
    lines.extend([
        ("applications", status.applications.to_string()),
        ("instances", status.instances.to_string()),
        ("peers", format!("{connected} of {} with a session", status.peers)),
    ]);
    let mut text: String = lines
        .iter()
        .map(|(name, value)| format!("{name:13} {value}\n"))
        .collect();
    for problem in &status.problems {
        text.push_str(&format!("problem       {problem}\n"));
    }
    for event in status.site_link.iter().flat_map(|link| &link.events) {
        let times = match event.times {
            1 => String::new(),
            times => format!(" ({times} times)"),
        };
        text.push_str(&format!(
            "event         {}: {}{times}\n",
            render_age(event.at),
            event.event
        ));
    }
    text
}

fn render_lanes(status: &Status) -> String {
    let Some(generation) = status.generation else {
        return "none".to_owned();
    };
    let ports: Vec<_> = status.lanes.iter().map(ToString::to_string).collect();
    format!("generation {generation}, UDP {}", ports.join(" "))
}

fn render_site_link(link: &SiteLinkStatus) -> String {
    let state = if link.up {
        format!("UDP {}", link.listen)
    } else {
        "down".to_owned()
    };
    format!(
        "{state}, {} of {} hosts connected, {} alive, start {}",
        link.hosts_connected, link.hosts_known, link.hosts_alive, link.boot
    )
}

fn render_dns(dns: &DnsStatus) -> String {
    if !dns.forwards {
        return "refused: nobody is asked".to_owned();
    }
    let mut text = format!(
        "{} being asked, {} refused as private",
        dns.in_flight, dns.refused
    );
    if let Some(known) = &dns.datapath {
        text.push_str(&format!(
            ", {} waiting; {} remembered ({}), which answered {}, and {} when their time was over",
            known.waiting,
            known.remembered,
            render_bytes(known.remembered_bytes),
            known.cached,
            known.stale
        ));
    }
    let overflown = dns.overflown + dns.datapath.as_ref().map_or(0, |known| known.overflown);
    if overflown > 0 {
        text.push_str(&format!("; {overflown} were too many at a time, and failed"));
    }
    text
}

fn render_upstream(upstream: &UpstreamStatus) -> String {
    let source = match upstream.source {
        UpstreamSource::Document => "document",
        UpstreamSource::ResolvConf => "resolv.conf",
    };
    let state = match upstream.state {
        UpstreamState::Up => "up",
        UpstreamState::Down => "down",
        UpstreamState::Untried => "untried",
    };
    let round_trip = upstream
        .round_trip_ms
        .map_or_else(String::new, |milliseconds| format!(", {milliseconds:.1} ms"));
    format!(
        "{} ({source}) {state}{round_trip}: {} asked, {} answered, {} failed, {} forged",
        upstream.address, upstream.asked, upstream.answered, upstream.failed, upstream.forged
    )
}

/// How long ago a time was, in seconds of the Unix epoch.
fn render_age(at: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    match now.saturating_sub(at) {
        age @ 0..120 => format!("{age} s ago"),
        age @ 120..7200 => format!("{} min ago", age / 60),
        age => format!("{} h ago", age / 3600),
    }
}

fn render_process(process: &ProcessStatus) -> String {
    let memory = process
        .resident_bytes
        .map_or_else(String::new, |bytes| format!(", {}", render_bytes(bytes)));
    let time = process
        .cpu_seconds
        .map_or_else(String::new, |seconds| format!(", {seconds:.2} s CPU"));
    format!("pid {}{memory}{time}", process.pid)
}

fn render_drops(list: &DropList) -> String {
    if list.drops.is_empty() {
        return "nothing was dropped".to_owned();
    }
    let lines = list.drops.iter().map(|line| {
        let last = line.last.as_ref().map_or_else(String::new, |last| {
            let because = last.because.as_ref();
            let because = because.map_or_else(String::new, |because| format!("    because: {because}\n"));
            format!("    last: {}\n{because}", render_example(last))
        });
        let of_application = |of: &ApplicationDrops| format!("{} {}", of.application, of.packets);
        let applications: Vec<_> = line.applications.iter().map(of_application).collect();
        let applications = match applications.len() {
            0 => String::new(),
            _ => format!("    of {}\n", applications.join(", ")),
        };
        format!(
            "{:<22} {:>8} packets\n{applications}    {}\n{last}",
            line.reason, line.packets, line.explanation
        )
    });
    lines.collect()
}

fn render_example(example: &DropExample) -> String {
    let mut parts = Vec::new();
    if let Some(packet) = &example.packet {
        parts.push(render_packet(packet));
    }
    parts.extend(
        example
            .instance
            .as_ref()
            .map(|instance| format!("from {instance}")),
    );
    parts.extend(example.peer.as_ref().map(|peer| format!("from peer {peer}")));
    parts.extend(
        example
            .network
            .as_ref()
            .map(|network| format!("in the network of {network}")),
    );
    if parts.is_empty() {
        "nothing is known of it".to_owned()
    } else {
        parts.join(", ")
    }
}

fn render_packet(packet: &PacketExample) -> String {
    let protocol = match packet.protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    };
    let end = |address, port| match port {
        0 => format!("{address}"),
        port => std::net::SocketAddr::new(address, port).to_string(),
    };
    format!(
        "{protocol} {} → {}",
        end(packet.source, packet.source_port),
        end(packet.destination, packet.destination_port)
    )
}

/// A number of bytes with a unit that fits.
pub(super) fn render_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::OutsideNames;

    fn line(reason: &str, packets: u64) -> DropLine {
        DropLine {
            reason: reason.to_owned(),
            packets,
            applications: vec![ApplicationDrops {
                application: "acme/shop".to_owned(),
                packets,
            }],
            last: None,
            explanation: "what to do".to_owned(),
        }
    }

    #[test]
    fn following_prints_what_rose_and_survives_a_new_datapath() {
        let before = [line("no-peer", 5), line("malformed", 9), line("martian", 3)];
        let now = vec![
            line("no-peer", 7),
            line("malformed", 2),
            line("martian", 3),
            line("no-flow", 1),
        ];
        assert_eq!(
            risen(&before, now),
            [line("no-peer", 2), line("malformed", 2), line("no-flow", 1)]
        );
    }

    #[test]
    fn a_dropped_packet_is_told_in_one_line() {
        let example = DropExample {
            instance: Some("acme/shop/web-1".to_owned()),
            peer: None,
            network: Some("acme/shop".to_owned()),
            packet: Some(PacketExample {
                protocol: 6,
                source: "172.19.1.2".parse().unwrap(),
                source_port: 40_000,
                destination: "172.19.2.9".parse().unwrap(),
                destination_port: 443,
            }),
            because: None,
        };
        assert_eq!(
            render_example(&example),
            "TCP 172.19.1.2:40000 → 172.19.2.9:443, from acme/shop/web-1, in the network of acme/shop"
        );
    }

    #[test]
    fn names_outside_are_told_with_who_is_asked_and_what_is_remembered() {
        let upstream = UpstreamStatus {
            address: "192.0.2.1:53".parse().unwrap(),
            source: UpstreamSource::ResolvConf,
            state: UpstreamState::Up,
            round_trip_ms: Some(1.26),
            asked: 9,
            answered: 7,
            failed: 2,
            forged: 1,
        };
        assert_eq!(
            render_upstream(&upstream),
            "192.0.2.1:53 (resolv.conf) up, 1.3 ms: 9 asked, 7 answered, 2 failed, 1 forged"
        );
        let mut dns = DnsStatus {
            forwards: true,
            upstreams: vec![upstream],
            in_flight: 1,
            refused: 2,
            overflown: 0,
            datapath: None,
        };
        assert_eq!(render_dns(&dns), "1 being asked, 2 refused as private");
        dns.datapath = Some(OutsideNames {
            asked: 9,
            cached: 30,
            stale: 4,
            overflown: 5,
            waiting: 3,
            remembered: 6,
            remembered_bytes: 2048,
        });
        assert_eq!(
            render_dns(&dns),
            "1 being asked, 2 refused as private, 3 waiting; 6 remembered (2.0 KiB), which answered 30, and 4 when their \
             time was over; 5 were too many at a time, and failed"
        );
        dns.forwards = false;
        assert_eq!(render_dns(&dns), "refused: nobody is asked");
    }

    #[test]
    fn bytes_have_a_unit_that_fits() {
        assert_eq!(render_bytes(512), "512 B");
        assert_eq!(render_bytes(1536), "1.5 KiB");
        assert_eq!(render_bytes(3 << 40), "3.0 TiB");
    }
}
