//! `trace`: what would become of a packet, stage by stage, with the rule that decides.

use super::Places;
use super::client::AgentClient;
use super::flows::{protocol_name, protocol_number, render_end};
use super::output::{self, Form};
use crate::agent::api::{Request, Response, Trace, TraceEnd, TraceList, TraceQuery, TraceVerdict};
use clap::Args;
use std::net::{IpAddr, SocketAddr};

/// Arguments of `trace`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tidegate trace 'web-1→db:5432'\n  tidegate trace 'shop/web-1->historian/db:8086/udp'\n  \
                  tidegate trace web-1 db                          # ping\n  \
                  tidegate trace tcp 172.19.1.2:40000 172.19.2.2:22 --application shop\n\nNames are instances or \
                  services, `[[tenant/]application/]name`; a target without an application is looked for in the \
                  sender's own. What is printed comes from the filter itself."
)]
pub(crate) struct TraceVerb {
    /// `FROM→TO`, `FROM->TO`, or `[PROTOCOL] FROM TO`; an end is a name or an address, `:PORT` behind it.
    #[arg(required = true, num_args = 1..=3, value_name = "FLOW")]
    flow: Vec<String>,
    /// The application that names and addresses without one are looked for in.
    #[arg(long)]
    application: Option<String>,
    /// Its tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Over IPv6, where both families would do.
    #[arg(short = '6', long)]
    ipv6: bool,
}

/// Prints what would become of a packet.
pub(crate) fn trace(places: &Places, form: Form, arguments: &TraceVerb) -> anyhow::Result<()> {
    let query = query(arguments).map_err(super::Failure::Usage)?;
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::Trace { query }, &[])? {
        Response::Traces(traces) => output::print(form, &traces, render),
        other => Err(AgentClient::unexpected(&other)),
    }
}

fn query(arguments: &TraceVerb) -> Result<TraceQuery, String> {
    let words: Vec<&str> = arguments.flow.iter().map(String::as_str).collect();
    let arrow = |text: &str| {
        let (from, to) = text.split_once('→').or_else(|| text.split_once("->"))?;
        Some((from.trim().to_owned(), to.trim().to_owned()))
    };
    let (protocol, from, to) = match words.as_slice() {
        [flow] => {
            let (from, to) = arrow(flow)
                .ok_or_else(|| format!("`{flow}` has no arrow: write `web-1→db:5432`, or two words"))?;
            (None, from, to)
        }
        [protocol, flow] if arrow(flow).is_some() => {
            let (from, to) = arrow(flow).unwrap_or_default();
            (Some(protocol_number(protocol)?), from, to)
        }
        [from, to] => (None, (*from).to_owned(), (*to).to_owned()),
        [from, "→" | "->", to] => (None, (*from).to_owned(), (*to).to_owned()),
        [protocol, from, to] => (
            Some(protocol_number(protocol)?),
            (*from).to_owned(),
            (*to).to_owned(),
        ),
        _ => return Err("a flow is `FROM→TO`, `FROM TO` or `PROTOCOL FROM TO`".to_owned()),
    };
    let (to, suffix) = protocol_suffix(&to)?;
    let (from, _) = protocol_suffix(&from)?;
    let is_ipv6 = |end: &TraceEnd| end.who.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
    Ok(TraceQuery {
        ipv6: arguments.ipv6 || is_ipv6(&from) || is_ipv6(&to),
        from,
        to,
        protocol: protocol.or(suffix),
        application: arguments.application.clone(),
        tenant: arguments.tenant.clone(),
    })
}

/// An end, and the protocol behind it: `db:53/udp`.
fn protocol_suffix(text: &str) -> Result<(TraceEnd, Option<u8>), String> {
    if let Some((end, name)) = text.rsplit_once('/')
        && let Ok(protocol) = protocol_number(name)
        // `acme/17` is a name unless a port stands before the slash.
        && (end.contains(':') || name.parse::<u8>().is_err())
    {
        return Ok((trace_end(end)?, Some(protocol)));
    }
    Ok((trace_end(text)?, None))
}

fn trace_end(text: &str) -> Result<TraceEnd, String> {
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let who = address.to_string();
        return Ok(TraceEnd { who, port: None });
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(TraceEnd {
            who: address.ip().to_string(),
            port: Some(address.port()),
        });
    }
    let (who, port) = match text.rsplit_once(':') {
        Some((who, port)) => {
            let port = port
                .parse()
                .map_err(|_| format!("`{port}` in `{text}` isn't a port, which is 1 to 65535"))?;
            (who, Some(port))
        }
        None => (text, None),
    };
    if who.is_empty() {
        return Err(format!("`{text}` names nobody"));
    }
    Ok(TraceEnd {
        who: who.to_owned(),
        port,
    })
}

fn render(list: &TraceList) -> String {
    let texts: Vec<String> = list.traces.iter().map(render_trace).collect();
    texts.join("\n")
}

/// One trace: the packet, every stage, the verdict.
pub(crate) fn render_trace(trace: &Trace) -> String {
    let mut text = format!(
        "{} {} → {}\n",
        protocol_name(trace.protocol),
        render_end(&trace.source),
        render_end(&trace.destination)
    );
    for (number, step) in trace.steps.iter().enumerate() {
        text.push_str(&format!("  {}. {step}\n", number + 1));
    }
    let verdict = match (trace.verdict, trace.rejected) {
        (TraceVerdict::Forwarded, _) => "✓ forwarded".to_owned(),
        (TraceVerdict::Answered, _) => "✓ answered by the appliance".to_owned(),
        (TraceVerdict::Denied, true) => "✗ rejected: the sender is told".to_owned(),
        (TraceVerdict::Denied, false) => "✗ dropped".to_owned(),
    };
    text.push_str(&format!("  {verdict}"));
    if let Some(reason) = &trace.reason {
        text.push_str(&format!(", counted as {reason}"));
    }
    text.push('\n');
    if let Some(explanation) = &trace.explanation {
        text.push_str(&format!("    {explanation}\n"));
    }
    if trace.live.is_some() {
        text.push_str("  such a flow is live: `tidegate flows` shows it\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Result<TraceQuery, String> {
        query(&TraceVerb {
            flow: words.iter().map(|word| (*word).to_owned()).collect(),
            application: None,
            tenant: None,
            ipv6: false,
        })
    }

    fn end(who: &str, port: Option<u16>) -> TraceEnd {
        TraceEnd {
            who: who.to_owned(),
            port,
        }
    }

    #[test]
    fn a_flow_may_be_written_with_an_arrow_with_words_or_as_a_five_tuple() {
        for words in [
            &["shop/web-1→db:5432"][..],
            &["shop/web-1->db:5432"],
            &["shop/web-1", "db:5432"],
            &["shop/web-1", "→", "db:5432"],
        ] {
            let query = asked(words).unwrap();
            assert_eq!(query.from, end("shop/web-1", None), "{words:?}");
            assert_eq!((query.to, query.protocol), (end("db", Some(5432)), None));
        }
        let query = asked(&["udp", "172.19.1.2:40000", "[fd00::1]:53"]).unwrap();
        assert_eq!(query.from, end("172.19.1.2", Some(40_000)));
        assert_eq!(query.to, end("fd00::1", Some(53)));
        assert_eq!((query.protocol, query.ipv6), (Some(17), true));
    }

    #[test]
    fn a_protocol_may_stand_behind_the_port() {
        let query = asked(&["web-1→acme/historian/db:53/udp"]).unwrap();
        assert_eq!(query.to, end("acme/historian/db", Some(53)));
        assert_eq!(query.protocol, Some(17));
        assert_eq!(asked(&["web-1→db/icmp"]).unwrap().protocol, Some(1));
    }

    #[test]
    fn what_cant_be_a_flow_is_told() {
        for (words, part) in [
            (&["web-1"][..], "no arrow"),
            (&["web-1→db:port"], "isn't a port"),
            (&["web-1→:80"], "names nobody"),
            (&["sctpp", "a", "b"], "sctpp"),
        ] {
            let problem = asked(words).unwrap_err();
            assert!(problem.contains(part), "{words:?}: {problem}");
        }
    }
}
