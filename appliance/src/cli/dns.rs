//! `dns query`: what an instance would be answered when it asks for a name, and why.

use super::Places;
use super::client::AgentClient;
use super::output::{self, Form};
use crate::agent::api::{NameAnswer, NameAnswers, NameQuery, RecordType, Request, Response};
use clap::{Args, Subcommand};

/// Arguments of `dns`.
#[derive(Debug, Args)]
pub(crate) struct DnsVerb {
    #[command(subcommand)]
    verb: DnsSubverb,
}

#[derive(Debug, Subcommand)]
enum DnsSubverb {
    /// Tells what an instance of this host would be answered, by the function that answers. Only names of the world
    /// outside are asked for.
    #[command(
        after_help = "Examples:\n  tidegate dns query db --from shop/web-1\n  tidegate dns query db.historian.internal \
                      --type AAAA\n  tidegate dns query _http._tcp.web --type SRV\n  tidegate dns query 172.19.1.2\n  tidegate dns query \
                      www.example.com.\n\n\
                      A name without a dot at its end is tried as the instance's resolv.conf says. That there is no \
                      such name is an answer, too: the exit code is 0."
    )]
    Query {
        /// The name, as a program would write it, or an address.
        name: String,
        /// The type of record: without it both families of addresses, and the name of an address.
        #[arg(long = "type", value_enum, ignore_case = true, value_name = "TYPE")]
        kind: Option<RecordType>,
        /// Who asks, `[[TENANT/]APPLICATION/]INSTANCE`; without it any instance here, when all of them see the same.
        #[arg(long, value_name = "INSTANCE")]
        from: Option<String>,
    },
}

/// Does what `dns` is asked for.
pub(crate) fn dns(places: &Places, form: Form, arguments: &DnsVerb) -> anyhow::Result<()> {
    let DnsSubverb::Query { name, kind, from } = &arguments.verb;
    let query = NameQuery {
        name: name.clone(),
        kind: *kind,
        from: from.clone(),
    };
    match AgentClient::connect(&places.agent_socket())?.ask(&Request::DnsQuery { query }, &[])? {
        Response::NameAnswers(answers) => output::print(form, &answers, render),
        other => Err(AgentClient::unexpected(&other)),
    }
}

fn render(answers: &NameAnswers) -> String {
    let mut text = format!(
        "{} sees the names in {}\n",
        answers.from,
        answers.networks.join(", ")
    );
    for (number, answer) in answers.queries.iter().enumerate() {
        text.push_str(&format!("  {}. {}\n", number + 1, render_answer(answer)));
        for record in &answer.records {
            let why = record.why.as_deref().unwrap_or_default();
            let line = format!("       {:40} {why}", record.value);
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    let mut queries = answers.queries.iter();
    let verdict = match queries.find(|answer| !answer.records.is_empty()) {
        Some(answer) => format!("✓ {} is found", answer.name),
        None => "✗ nothing is found".to_owned(),
    };
    text.push_str(&format!("  {verdict}\n"));
    text
}

fn render_answer(answer: &NameAnswer) -> String {
    let size = match answer.truncated {
        true => ", too long for a datagram: asked for again over TCP",
        false => "",
    };
    format!(
        "{} {}: {}{size}, because {}",
        answer.name, answer.kind, answer.code, answer.why
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::{AnsweredRecord, NamedInstance};

    fn answers(records: Vec<AnsweredRecord>) -> NameAnswers {
        NameAnswers {
            from: NamedInstance {
                tenant: "acme".to_owned(),
                application: "shop".to_owned(),
                service: "web".to_owned(),
                instance: "web-1".to_owned(),
            },
            networks: vec!["acme/shop".to_owned()],
            queries: vec![NameAnswer {
                name: "db.shop.internal".to_owned(),
                kind: RecordType::Aaaa,
                code: "NOERROR".to_owned(),
                truncated: false,
                records,
                why: "it stands there".to_owned(),
            }],
        }
    }

    #[test]
    fn an_answer_is_told_with_its_records_where_they_come_from_and_why() {
        let record = AnsweredRecord {
            time_to_live: 5,
            value: "fd00::2".to_owned(),
            why: Some("db-1 on h1".to_owned()),
        };
        let text = render(&answers(vec![record]));
        for part in [
            "acme/shop/web-1 sees the names in acme/shop",
            "1. db.shop.internal AAAA: NOERROR, because it stands there",
            "fd00::2",
            "db-1 on h1",
            "✓ db.shop.internal is found",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(render(&answers(Vec::new())).contains("✗ nothing is found"));
    }

    #[test]
    fn keys_of_json_are_those_of_a_zone_file() {
        let json = serde_json::to_value(answers(Vec::new())).unwrap();
        assert_eq!(json["queries"][0]["type"], "AAAA");
        assert_eq!(json["queries"][0]["code"], "NOERROR");
        assert_eq!(json["from"]["instance"], "web-1");
    }
}
