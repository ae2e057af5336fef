//! `show names`: every record that can be asked for on this host, and where it comes from.
//!
//! The list is made from the plan that is in force, by the names that stack::snapshot::zone gives: a test asks the compiled
//! zones for each line.

use super::api::{NameLine, NameList, RecordType};
use super::{Agent, Refusal, Response};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tidegate_stack::event::{LoggedQuery, Origin};
use tidegate_stack::plan::{NamedInstance, NamedService, Network, NetworkKind, Plan, Vni};

/// The name under which all others are.
pub(super) const INTERNAL: &str = "internal";
const NAME_SERVER: &str = "ns.internal";

/// A line, and the number of its network.
pub(super) struct Record {
    pub(super) vni: Vni,
    pub(super) line: NameLine,
}

/// Which of the names that one thing has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// The one by which it is told of: with the tenant only where it isn't the network's.
    Usual,
    /// Every one.
    All,
}

impl Agent {
    /// Logs what instances asked whose documents say so.
    pub(super) fn log_queries(&self, queries: &[LoggedQuery]) {
        for query in queries {
            let origin = match query.origin {
                Origin::Names => "names",
                Origin::Memory => "memory",
                Origin::Upstream => "upstream",
            };
            tracing::info!(
                instance = %self.instance_of(query.port),
                question = %query.question,
                answer = query.rcode.label(),
                origin,
                "query"
            );
        }
    }

    /// `show names`.
    pub(super) fn show_names(&self) -> Result<Response, Refusal> {
        let plan = self.plan_of(&self.intent)?;
        let records = self.records(&plan, Spelling::Usual);
        let names = records.into_iter().map(|record| record.line);
        Ok(Response::Names(NameList {
            names: names.collect(),
        }))
    }

    /// What stands at each name of each network.
    pub(super) fn records(&self, plan: &Plan, spelling: Spelling) -> Vec<Record> {
        let mut networks: Vec<&Network> = plan.networks.iter().collect();
        networks.sort_by_key(|network| {
            let shared = network.kind == NetworkKind::Shared;
            (shared, &network.tenant, &network.name)
        });
        let mut records = Vec::new();
        for network in networks {
            let mut zone = Zone {
                agent: self,
                network,
                records: &mut records,
            };
            zone.add_name_server();
            let names = plan.names.iter().filter(|names| names.vni == network.vni);
            for service in names.flat_map(|names| &names.services) {
                zone.add_service(service, spelling);
            }
        }
        records
    }

    /// An instance that isn't ready, and why, as far as that is known here.
    fn not_ready(&self, network: &Network, instance: &NamedInstance, place: &str) -> String {
        let mut attachments = self.intent.record.attachments.iter();
        let here = attachments.find(|attachment| {
            let memberships = self.memberships(attachment);
            memberships
                .iter()
                .any(|membership| membership.vni == network.vni && membership.ipv4 == instance.ipv4)
        });
        match here {
            Some(attachment) => {
                let why = self.why_not_ready(attachment.port);
                format!("{place}, which isn't ready: {why}")
            }
            None => format!("{place}, which isn't ready"),
        }
    }

    /// An instance and its host, which is told by the block that the address is in.
    fn place_of(&self, network: &Network, instance: &NamedInstance) -> String {
        let here = network
            .numbers
            .block_ipv4(self.host.ordinal)
            .contains(&instance.ipv4);
        let mut hosts = self.intent.record.hosts.iter();
        let elsewhere = hosts.find(|(_, host)| {
            let block = network.numbers.block_ipv4(host.ordinal);
            block.contains(&instance.ipv4)
        });
        let host = match (here, elsewhere) {
            (true, _) => &self.host.host_id,
            (false, Some((name, _))) => name,
            (false, None) => return instance.name.clone(),
        };
        format!("{} on {host}", instance.name)
    }
}

/// A network's records, one after the other.
struct Zone<'a> {
    agent: &'a Agent,
    network: &'a Network,
    records: &'a mut Vec<Record>,
}

impl Zone<'_> {
    fn add_name_server(&mut self) {
        let (ipv4, ipv6) = (self.network.service_ipv4(), self.network.service_ipv6());
        self.add_addresses(NAME_SERVER, (ipv4, ipv6), true, "the appliance itself");
        self.add_pointers(NAME_SERVER, (ipv4, ipv6), "the appliance itself");
    }

    fn add_service(&mut self, service: &NamedService, spelling: Spelling) {
        let (tenant, application) = (&service.id.tenant, &service.id.application);
        let short = format!("{application}.{INTERNAL}");
        let long = format!("{application}.{tenant}.{INTERNAL}");
        let own = *tenant == self.network.tenant;
        let usual = if own { &short } else { &long };
        self.add_below(usual, service);
        for instance in &service.instances {
            let name = format!("{}.{usual}", instance.name);
            let why = self.agent.place_of(self.network, instance);
            self.add_pointers(&name, (instance.ipv4, instance.ipv6), &why);
        }
        if own && spelling == Spelling::All {
            self.add_below(&long, service);
        }
    }

    fn add_below(&mut self, domain: &str, service: &NamedService) {
        let own = format!("{}.{domain}", service.id.service);
        let places: Vec<_> = service
            .instances
            .iter()
            .map(|instance| {
                let place = self.agent.place_of(self.network, instance);
                match instance.ready {
                    true => (instance, place),
                    false => (instance, self.agent.not_ready(self.network, instance, &place)),
                }
            })
            .collect();
        for (instance, why) in &places {
            self.add_addresses(&own, (instance.ipv4, instance.ipv6), instance.ready, why);
        }
        if places.is_empty() {
            self.add(&own, None, "no instance is attached".to_owned(), false);
        }
        for text in &service.texts {
            let name = match &text.label {
                Some(label) => format!("{label}.{own}"),
                None => own.clone(),
            };
            let why = self.document_of(service);
            self.add(&name, Some((RecordType::Txt, quoted(&text.text))), why, true);
        }
        for port in &service.ports {
            let name = format!("_{}.{}.{own}", port.name, port.protocol.label());
            for (instance, why) in &places {
                let value = format!("0 0 {} {}.{domain}", port.port, instance.name);
                let record = Some((RecordType::Srv, value));
                self.add(&name, record, why.clone(), instance.ready);
            }
            if places.is_empty() {
                self.add(&name, None, "no instance is attached".to_owned(), false);
            }
        }
        for (instance, why) in &places {
            let name = format!("{}.{domain}", instance.name);
            self.add_addresses(&name, (instance.ipv4, instance.ipv6), instance.ready, why);
        }
    }

    fn add_addresses(&mut self, name: &str, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr), answered: bool, why: &str) {
        for (kind, value) in [
            (RecordType::A, ipv4.to_string()),
            (RecordType::Aaaa, ipv6.to_string()),
        ] {
            self.add(name, Some((kind, value)), why.to_owned(), answered);
        }
    }

    fn add_pointers(&mut self, name: &str, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr), why: &str) {
        for address in [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] {
            let record = Some((RecordType::Ptr, name.to_owned()));
            self.add(&reversed(address), record, why.to_owned(), true);
        }
    }

    fn add(&mut self, name: &str, record: Option<(RecordType, String)>, why: String, answered: bool) {
        let (kind, value) = record.unzip();
        self.records.push(Record {
            vni: self.network.vni,
            line: NameLine {
                network: format!("{}/{}", self.network.tenant, self.network.name),
                shared: self.network.kind == NetworkKind::Shared,
                name: name.to_owned(),
                kind,
                value,
                answered,
                why,
            },
        });
    }

    /// The file of the document that describes a service.
    fn document_of(&self, service: &NamedService) -> String {
        let mut documents = self.agent.intent.applications.iter();
        let document = documents
            .find(|(key, _)| (&key.tenant, &key.name) == (&service.id.tenant, &service.id.application));
        document.map_or_else(String::new, |(_, document)| document.source.file.clone())
    }
}

/// A text as it is shown in answers.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The name that an address is asked by (RFC 1035 §3.5, RFC 3596 §2.5).
pub(super) fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let octets = address.octets();
            let nibbles = octets
                .iter()
                .rev()
                .map(|octet| format!("{:x}.{:x}.", octet & 0x0f, octet >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
    }
}
