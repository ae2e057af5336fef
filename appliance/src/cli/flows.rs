//! `flows`: the live connections, filtered, once or followed.

use super::Places;
use super::client::AgentClient;
use super::observe::render_bytes;
use super::output::{self, Form, table};
use crate::agent::api::{
    FlowDirection, FlowEndLine, FlowLine, FlowList, FlowQuery, NamedInstance, Request, Response,
};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tidegate_stack::stats::FlowState;

/// Arguments of `flows`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate flows --application shop --service db\n  tidegate flows --state opening\n  \
                  tidegate flows -w --protocol tcp --port 5432\n\nFilters name either end of a flow; one end has to fit \
                  in all that are given."
)]
pub(crate) struct Flows {
    /// The tenant of an end's application.
    #[arg(long)]
    tenant: Option<String>,
    /// An end's application.
    #[arg(long)]
    application: Option<String>,
    /// An end's service.
    #[arg(long)]
    service: Option<String>,
    /// An end's instance, such as `web-1`.
    #[arg(long)]
    instance: Option<String>,
    /// An end's address.
    #[arg(long)]
    address: Option<IpAddr>,
    /// An end's port.
    #[arg(long)]
    port: Option<u16>,
    /// The protocol: tcp, udp, icmp, or its number.
    #[arg(long, value_parser = protocol_number)]
    protocol: Option<u8>,
    /// How far it is.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Which way it was begun.
    #[arg(long, value_enum)]
    direction: Option<FlowDirection>,
    /// Most flows to list; those beyond are counted.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Goes on: prints once a second what began (+), changed (~) and ended (-).
    #[arg(short = 'w', long)]
    watch: bool,
}

/// [`FlowState`], as the command line names it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// TCP: the handshake isn't over.
    Opening,
    /// TCP: both sides have agreed.
    Established,
    /// TCP: a side has ended.
    Closing,
    /// TCP: it is over.
    Closed,
    /// Another protocol: nobody has answered yet.
    Unanswered,
    /// Another protocol: both sides have sent.
    Answered,
}

impl From<State> for FlowState {
    fn from(state: State) -> Self {
        match state {
            State::Opening => Self::Opening,
            State::Established => Self::Established,
            State::Closing => Self::Closing,
            State::Closed => Self::Closed,
            State::Unanswered => Self::Unanswered,
            State::Answered => Self::Answered,
        }
    }
}

/// Prints live flows.
pub(crate) fn flows(places: &Places, form: Form, arguments: &Flows) -> anyhow::Result<()> {
    let agent = AgentClient::connect(&places.agent_socket())?;
    let request = Request::Flows {
        query: arguments.query(),
    };
    let mut seen: Option<Lives> = None;
    loop {
        let Response::Flows(list) = agent.ask(&request, &[])? else {
            anyhow::bail!(
                "the agent answered another question: are `tidegate` and the agent of one version?"
            );
        };
        let now = lives(&list);
        match (seen.replace(now), form) {
            (Some(before), Form::Text) => {
                let changes = seen
                    .as_ref()
                    .map_or_else(String::new, |now| changes(&before, now));
                if !changes.is_empty() {
                    output::write_line(&changes)?;
                }
            }
            _ => output::print(form, &list, render)?,
        }
        if !arguments.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

impl Flows {
    fn query(&self) -> FlowQuery {
        FlowQuery {
            tenant: self.tenant.clone(),
            application: self.application.clone(),
            service: self.service.clone(),
            instance: self.instance.clone(),
            address: self.address,
            port: self.port,
            protocol: self.protocol,
            state: self.state.map(FlowState::from),
            direction: self.direction,
            limit: usize::try_from(self.limit).unwrap_or(usize::MAX),
        }
    }
}

/// The number of a protocol that is given by name or number.
pub(super) fn protocol_number(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" => Ok(1),
        "icmpv6" => Ok(58),
        number => number
            .parse()
            .map_err(|_| format!("`{text}` isn't tcp, udp, icmp, icmpv6 or a number up to 255")),
    }
}

/// The name of a protocol.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => format!("proto {other}"),
    }
}

fn state_name(state: FlowState) -> &'static str {
    match state {
        FlowState::Opening => "opening",
        FlowState::Established => "established",
        FlowState::Closing => "closing",
        FlowState::Closed => "closed",
        FlowState::Unanswered => "unanswered",
        FlowState::Answered => "answered",
    }
}

fn direction_name(direction: FlowDirection) -> &'static str {
    match direction {
        FlowDirection::In => "in",
        FlowDirection::Out => "out",
        FlowDirection::Local => "local",
    }
}

fn render(list: &FlowList) -> String {
    if list.flows.is_empty() {
        return format!("no flow fits; {} live", list.live);
    }
    let headings = [
        "NETWORK",
        "DIRECTION",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "SENT / RECEIVED",
        "IDLE",
    ];
    let mut text = table(headings, list.flows.iter().map(row));
    if list.more > 0 {
        text.push_str(&format!("{} more fit: --limit shows them\n", list.more));
    }
    text
}

fn row(flow: &FlowLine) -> [String; 8] {
    let idle = match flow.idle_ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    };
    let [sent, received] = flow.bytes.map(render_bytes);
    [
        flow.network.clone(),
        direction_name(flow.direction).to_owned(),
        protocol_name(flow.protocol),
        render_end(&flow.source),
        render_end(&flow.destination),
        state_name(flow.state).to_owned(),
        format!("{sent} / {received}"),
        idle,
    ]
}

/// `shop/web-1 172.19.1.2:40000 (edge-2)`.
pub(super) fn render_end(end: &FlowEndLine) -> String {
    let address = match end.port {
        0 => end.address.to_string(),
        port => SocketAddr::new(end.address, port).to_string(),
    };
    let name = end.instance.as_ref().map_or_else(
        String::new,
        |NamedInstance {
             application,
             instance,
             ..
         }| format!("{application}/{instance} "),
    );
    let peer = end
        .peer
        .as_ref()
        .map_or_else(String::new, |peer| format!(" ({peer})"));
    format!("{name}{address}{peer}")
}

/// Flows by what names them, with how they are told and how far they are.
type Lives = BTreeMap<(String, u8, FlowEndLine, FlowEndLine), FlowLine>;

fn lives(list: &FlowList) -> Lives {
    let key = |flow: &FlowLine| {
        (
            flow.network.clone(),
            flow.protocol,
            flow.source.clone(),
            flow.destination.clone(),
        )
    };
    list.flows.iter().map(|flow| (key(flow), flow.clone())).collect()
}

/// What began, changed its state, and ended.
fn changes(before: &Lives, now: &Lives) -> String {
    let line = |sign: char, flow: &FlowLine| {
        let [network, direction, protocol, source, destination, state, bytes, _] = row(flow);
        format!("{sign} {network} {direction} {protocol} {source} → {destination} {state} {bytes}\n")
    };
    let mut text = String::new();
    for (key, flow) in now {
        match before.get(key) {
            None => text.push_str(&line('+', flow)),
            Some(former) if former.state != flow.state => text.push_str(&line('~', flow)),
            Some(_) => {}
        }
    }
    for (_, flow) in before.iter().filter(|(key, _)| !now.contains_key(*key)) {
        text.push_str(&line('-', flow));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, state: FlowState) -> FlowLine {
        let end = |service: &str, port, peer: Option<&str>| FlowEndLine {
            address: "172.19.1.2".parse().unwrap(),
            port,
            instance: Some(NamedInstance {
                tenant: "acme".to_owned(),
                application: "shop".to_owned(),
                service: service.to_owned(),
                instance: format!("{service}-1"),
            }),
            peer: peer.map(str::to_owned),
        };
        FlowLine {
            network: "acme/shop".to_owned(),
            direction: FlowDirection::Out,
            protocol: 6,
            source: end("web", port, None),
            destination: end("db", 5432, Some("edge-2")),
            state,
            packets: [3, 2],
            bytes: [1536, 512],
            idle_ms: 1500,
            shard: 0,
        }
    }

    fn list(flows: Vec<FlowLine>) -> FlowList {
        FlowList {
            live: flows.len() as u64,
            flows,
            more: 0,
        }
    }

    #[test]
    fn a_flow_is_told_in_one_line_with_both_names() {
        let text = render(&list(vec![flow(40_000, FlowState::Established)]));
        let line = text.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "acme/shop out tcp shop/web-1 172.19.1.2:40000 shop/db-1 172.19.1.2:5432 (edge-2) established \
             1.5 KiB / 512 B 1 s"
        );
    }

    #[test]
    fn watching_tells_what_began_changed_and_ended() {
        let before = lives(&list(vec![
            flow(1, FlowState::Opening),
            flow(2, FlowState::Established),
        ]));
        let now = lives(&list(vec![
            flow(1, FlowState::Established),
            flow(3, FlowState::Opening),
        ]));
        let signs: Vec<_> = changes(&before, &now)
            .lines()
            .map(|line| line.chars().next().unwrap())
            .collect();
        assert_eq!(signs, ['~', '+', '-']);
        assert_eq!(changes(&now, &now), "");
    }

    #[test]
    fn protocols_are_named_or_numbered() {
        assert_eq!(protocol_number("TCP"), Ok(6));
        assert_eq!(protocol_number("132"), Ok(132));
        assert!(protocol_number("sctpp").unwrap_err().contains("sctpp"));
    }
}
