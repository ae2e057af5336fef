//! `dns query`: what an instance would be answered, by the very function that answers in the datapath's shards. The agent
//! compiles the plan that is in force and asks the view of the instance's port; a datapath that is away is not needed
//! for that. What lies outside is asked of the name servers, beside the agent's loop.
//!
//! The walk: who asks → the names that its resolver would try, by the resolv.conf that it was given → for each a query as
//! it stands in a message, the responder's answer, and the records of [`names`](super::names) that explain it → of the
//! outside ones, one after the other, what a name server answers ([`Inquiry::answer`]).

use super::api::{AnsweredRecord, NameAnswer, NameAnswers, NameQuery, NamedInstance, RecordType};
use super::flows::Whereabouts;
use super::names::{INTERNAL, Record, Spelling, quoted, reversed};
use super::resolver::{Found, Inquirer, code_label};
use super::trace::source;
use super::{Agent, Refusal, Response};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType as Kind};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tidegate_stack::plan::{Instance, Plan};
use tidegate_stack::responder::dns::{self, Outcome, PAYLOAD, Question, Rotation, Transport};
use tidegate_stack::snapshot::{Snapshot, View};

/// A name with as many dots is asked as it stands first (`ndots` of the instance's resolv.conf).
const DOTS: usize = 2;
/// Room for an answer over TCP (RFC 1035 §4.2.2).
const LARGEST: usize = 65_535;

impl Agent {
    /// `dns query`.
    pub(super) fn dns_query(&mut self, query: &NameQuery) -> Result<Inquiry, Refusal> {
        let plan = self.plan_of(&self.intent)?;
        let asker = self.asker(query.from.as_deref(), &plan)?;
        let snapshot = Snapshot::compile(&plan, None);
        let names = snapshot.names();
        let view = names
            .view(asker.port)
            .ok_or_else(|| Refusal::because(format!("{} sees no names", asker.name)))?;
        let records = self.records(&plan, Spelling::All);
        let vnis: Vec<_> = asker
            .memberships
            .iter()
            .map(|membership| membership.vni)
            .collect();
        let sight = Sight {
            view,
            networks: vnis.iter().map(|vni| self.network_of(*vni)).collect(),
            asker: named(asker).to_string(),
            seen: vnis
                .iter()
                .flat_map(|vni| records.iter().filter(move |record| record.vni == *vni))
                .collect(),
            unseen: records
                .iter()
                .filter(|record| !vnis.contains(&record.vni))
                .collect(),
        };
        let (kinds, candidates) = asked(query, asker);
        let steps = |kind| {
            let steps = candidates.iter().map(|name| sight.ask(name, kind));
            steps.collect::<Result<Vec<_>, _>>()
        };
        let kinds = kinds.into_iter().map(steps).collect::<Result<_, _>>()?;
        Ok(Inquiry {
            from: named(asker),
            networks: sight.networks,
            kinds,
            inquirer: self.resolver.inquirer(),
        })
    }

    /// The instance that asks: one of this host, as what is seen depends on its port.
    fn asker<'p>(&self, from: Option<&str>, plan: &'p Plan) -> Result<&'p Instance, Refusal> {
        let Some(from) = from else {
            let networks = |instance: &Instance| -> Vec<_> {
                let memberships = instance.memberships.iter();
                memberships.map(|membership| membership.vni).collect()
            };
            let alike: BTreeSet<_> = plan.instances.iter().map(networks).collect();
            let applications = plan
                .instances
                .iter()
                .map(|instance| (&instance.tenant, &instance.application));
            let applications: BTreeSet<_> = applications.collect();
            return match plan.instances.first() {
                None => Err(Refusal::not_found(
                    "no instance is attached here, and who asks decides what is answered: ask on a host that has one",
                )),
                Some(instance) if alike.len() == 1 && applications.len() == 1 => Ok(instance),
                Some(_) => {
                    let all: Vec<_> = plan
                        .instances
                        .iter()
                        .map(|instance| named(instance).to_string())
                        .collect();
                    Err(Refusal::because(format!(
                        "who asks decides what is answered: give --from, one of {}",
                        all.join(", ")
                    )))
                }
            };
        };
        let names = self.names();
        let known = source(from, None, None, &names)?;
        match &known.place {
            Whereabouts::Here(port) => {
                let mut instances = plan.instances.iter();
                instances
                    .find(|instance| instance.port == *port)
                    .ok_or_else(|| Refusal::not_found(format!("{} isn't in the plan", known.name)))
            }
            Whereabouts::Host { host, .. } => Err(Refusal::because(format!(
                "{} is on host {host}: ask there, where it is answered",
                known.name
            ))),
        }
    }
}

/// What is answered to a `dns query`, as far as it is known here.
pub(super) struct Inquiry {
    from: NamedInstance,
    networks: Vec<String>,
    /// For each type, what a resolver asks one after the other until there is a record.
    kinds: Vec<Vec<Step>>,
    inquirer: Inquirer,
}

/// One query of a resolver.
enum Step {
    /// It is answered here.
    Known(NameAnswer),
    /// It is about the world outside.
    Outside {
        name: String,
        kind: RecordType,
        question: Question,
    },
}

impl Inquiry {
    /// The whole answer.
    pub(super) async fn answer(self) -> Response {
        let mut queries = Vec::new();
        for steps in self.kinds {
            for step in steps {
                let answer = match step {
                    Step::Known(answer) => answer,
                    Step::Outside { name, kind, question } => {
                        outside(name, kind, self.inquirer.find(&question).await)
                    }
                };
                let found = !answer.records.is_empty();
                queries.push(answer);
                if found {
                    break;
                }
            }
        }
        Response::NameAnswers(NameAnswers {
            from: self.from,
            networks: self.networks,
            queries,
        })
    }
}

/// What an instance would be answered about a name of the world outside.
fn outside(name: String, kind: RecordType, found: Found) -> NameAnswer {
    let (code, reply, why) = match found {
        Found::Answered { reply, by, after } => {
            let code = code_label(reply.rcode());
            let why = format!("the name server {by} answered so in {} ms", after.as_millis());
            (code, Some(reply), why)
        }
        Found::Kept { reply, domain } => {
            let why = format!("nobody is asked for names in `{domain}`, which mean something in one place alone");
            (code_label(reply.rcode()), Some(reply), why)
        }
        Found::Private { address, by } => (
            "REFUSED".to_owned(),
            None,
            format!(
                "the name server {by} told the private address {address}, and a name of the world outside must not lead \
                 inside: list its domain in `dns.private-domains` if it is the site's own"
            ),
        ),
        Found::Nowhere => (
            "REFUSED".to_owned(),
            None,
            "it is a name of the world outside, and the host document says that nobody is asked (`dns.upstream` is empty)"
                .to_owned(),
        ),
        Found::Overflown => (
            "SERVFAIL".to_owned(),
            None,
            "too many questions are being asked: try again".to_owned(),
        ),
        Found::Failed { tried } if tried.is_empty() => (
            "SERVFAIL".to_owned(),
            None,
            "no name server is known: `tidegate status` says why".to_owned(),
        ),
        Found::Failed { tried } => {
            let tried: Vec<_> = tried
                .iter()
                .map(|(server, fault)| format!("{server} {fault}"))
                .collect();
            let why = format!("no name server could tell: {}", tried.join("; "));
            ("SERVFAIL".to_owned(), None, why)
        }
    };
    let message = reply.as_ref().map(|reply| reply.message());
    let decoded = message.and_then(|message| Message::from_vec(message).ok());
    let records = decoded.iter().flat_map(|message| &message.answers);
    let records = records.map(|record| AnsweredRecord {
        time_to_live: record.ttl,
        value: value_of(&record.data),
        why: (record.record_type() != kind_of(kind))
            .then(|| format!("{} of {}", record.record_type(), record.name)),
    });
    NameAnswer {
        name,
        kind,
        code,
        truncated: message.is_some_and(|message| message.len() > usize::from(PAYLOAD)),
        records: records.collect(),
        why,
    }
}

fn named(instance: &Instance) -> NamedInstance {
    NamedInstance {
        tenant: instance.tenant.clone(),
        application: instance.application.clone(),
        service: instance.service.clone(),
        instance: instance.name.clone(),
    }
}

/// The types that are asked for, and the names that a resolver tries for each, as resolv.conf(5) says.
fn asked(query: &NameQuery, asker: &Instance) -> (Vec<RecordType>, Vec<String>) {
    if let Ok(address) = query.name.parse::<IpAddr>() {
        return (
            vec![query.kind.unwrap_or(RecordType::Ptr)],
            vec![reversed(address)],
        );
    }
    let kinds = match query.kind {
        Some(kind) => vec![kind],
        None => vec![RecordType::A, RecordType::Aaaa],
    };
    let whole = query.name.trim_end_matches('.');
    let mut names = vec![whole.to_owned()];
    if !query.name.ends_with('.') {
        let search = [format!("{}.{INTERNAL}", asker.application), INTERNAL.to_owned()];
        let searched = search.iter().map(|domain| format!("{whole}.{domain}"));
        if whole.matches('.').count() >= DOTS {
            names.extend(searched);
        } else {
            names.splice(0..0, searched);
        }
    }
    (kinds, names)
}

/// What one instance sees.
struct Sight<'a> {
    view: &'a View,
    /// The networks that it is in.
    networks: Vec<String>,
    /// Its full name.
    asker: String,
    /// The records in them, in their order.
    seen: Vec<&'a Record>,
    /// The records of the other networks of this host.
    unseen: Vec<&'a Record>,
}

impl Sight<'_> {
    /// What would be answered to one query.
    fn ask(&self, name: &str, kind: RecordType) -> Result<Step, Refusal> {
        let illegal =
            |error| Refusal::because(format!("`{name}` isn't a name that can be asked for: {error}"));
        let question = Query::query(
            Name::from_ascii(format!("{name}.")).map_err(illegal)?,
            kind_of(kind),
        );
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(question);
        let message = message.to_vec().map_err(illegal)?;

        let mut out = vec![0; LARGEST];
        let mut rotation = Rotation::default();
        let limit = Transport::Udp { limit: PAYLOAD };
        let outcome = dns::answer(&message, self.view, Transport::Tcp, &mut rotation, &mut out);
        let answered = match outcome {
            Outcome::Answer(answered) => answered,
            Outcome::Forward(query) => {
                return Ok(Step::Outside {
                    name: name.to_owned(),
                    kind,
                    question: Question::of(&query),
                });
            }
            Outcome::Ignore => return Err(Refusal::because(format!("`{name}` isn't answered at all"))),
        };
        let decoded = Message::from_vec(out.get(..answered.length).unwrap_or_default());
        let decoded = decoded
            .map_err(|error| Refusal::because(format!("the answer about `{name}` can't be read: {error}")))?;
        // A resolver that takes what we send: with EDNS.
        let truncated = match dns::answer(&with_edns(&message), self.view, limit, &mut rotation, &mut out) {
            Outcome::Answer(answered) => answered.truncated,
            Outcome::Forward(_) | Outcome::Ignore => false,
        };
        let records: Vec<_> = decoded
            .answers
            .iter()
            .map(|record| {
                let value = value_of(&record.data);
                AnsweredRecord {
                    time_to_live: record.ttl,
                    why: self.origin(name, kind, &value),
                    value,
                }
            })
            .collect();
        let exists = answered.rcode == dns::Rcode::NoError;
        Ok(Step::Known(NameAnswer {
            why: match (records.is_empty(), exists) {
                (false, _) => self.found(name),
                (true, true) => self.without_records(name, kind),
                (true, false) => self.nowhere(name),
            },
            name: name.to_owned(),
            kind,
            code: if exists { "NOERROR" } else { "NXDOMAIN" }.to_owned(),
            truncated,
            records,
        }))
    }

    fn at<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Record> {
        let records = self.seen.iter().copied();
        records.filter(move |record| record.line.name.eq_ignore_ascii_case(name))
    }

    /// Where a record comes from.
    fn origin(&self, name: &str, kind: RecordType, value: &str) -> Option<String> {
        let mut records = self.at(name);
        let record = records
            .find(|record| record.line.kind == Some(kind) && record.line.value.as_deref() == Some(value));
        record.map(|record| record.line.why.clone())
    }

    fn found(&self, name: &str) -> String {
        match self.at(name).find(|record| record.line.answered) {
            Some(Record { line, .. }) if line.shared => {
                format!("it stands in the shared network {}", line.network)
            }
            Some(Record { line, .. }) => format!("it stands in the network of {}", line.network),
            None => "it is where a zone begins".to_owned(),
        }
    }

    fn without_records(&self, name: &str, kind: RecordType) -> String {
        let mut others = BTreeSet::new();
        let mut reasons = BTreeSet::new();
        for Record { line, .. } in self.at(name) {
            match line.kind {
                Some(other) if line.answered => drop(others.insert(other.to_string())),
                _ if line.kind.is_none_or(|other| other == kind) => drop(reasons.insert(line.why.as_str())),
                _ => {}
            }
        }
        let others: Vec<_> = others.into_iter().collect();
        let reasons: Vec<_> = reasons.into_iter().collect();
        match (others.is_empty(), reasons.is_empty()) {
            (_, false) => format!("the name exists, and nothing is told: {}", reasons.join("; ")),
            (false, true) => format!("the name exists, and has {} only", others.join(", ")),
            (true, true) => "the name exists for those below it, and has no record itself".to_owned(),
        }
    }

    fn nowhere(&self, name: &str) -> String {
        let mut unseen = self.unseen.iter();
        match unseen.find(|record| record.line.name.eq_ignore_ascii_case(name)) {
            Some(Record { line, .. }) => format!(
                "it is a name in the network {}, which {} isn't in",
                line.network, self.asker
            ),
            None => format!("nothing has that name in {}", self.networks.join(", ")),
        }
    }
}

/// The same query from who takes datagrams of any size (RFC 6891 §6.1.2).
fn with_edns(message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(additionals) = message.get_mut(11) {
        *additionals = 1;
    }
    let [high, low] = PAYLOAD.to_be_bytes();
    message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
    message
}

fn kind_of(kind: RecordType) -> Kind {
    match kind {
        RecordType::A => Kind::A,
        RecordType::Aaaa => Kind::AAAA,
        RecordType::Ptr => Kind::PTR,
        RecordType::Srv => Kind::SRV,
        RecordType::Txt => Kind::TXT,
        RecordType::Ns => Kind::NS,
        RecordType::Soa => Kind::SOA,
    }
}

/// What a record says, in the form of the lines of `show names`.
fn value_of(data: &RData) -> String {
    let name = |name: &Name| name.to_ascii().trim_end_matches('.').to_owned();
    match data {
        RData::SRV(srv) => format!(
            "{} {} {} {}",
            srv.priority,
            srv.weight,
            srv.port,
            name(&srv.target)
        ),
        RData::TXT(txt) => {
            let strings = txt.txt_data.iter();
            let strings: Vec<_> = strings
                .map(|string| quoted(&String::from_utf8_lossy(string)))
                .collect();
            strings.join(" ")
        }
        RData::PTR(target) => name(&target.0),
        RData::NS(server) => name(&server.0),
        other => other.to_string(),
    }
}
