//! What the agent says about names, and when other hosts' instances are told.

use super::site::{SITE, host, view};
use super::*;
use crate::agent::api::{NameAnswers, NameLine, NameQuery, RecordType};
use crate::agent::cluster::record::RecordBody;
use crate::agent::names::Spelling;
use std::collections::BTreeMap;
use tidegate_stack::plan::{InstanceIndex, Membership, Mtu, NetworkKind, Vni, derive_vni};

const DOCUMENTS: &str = "name: shop\nnetwork: { shared-application-network: floor }\nservices:\n  - name: web\n    \
                         ports: [ { name: http, port: 80 } ]\n    dns: { txt: { build: 17, _acme-challenge: x } }\n  \
                         - name: db\n---\nname: blue\nservices: [ { name: web } ]\n---\nname: historian\nnetwork: { \
                         shared-application-network: floor }\nservices: [ { name: db } ]\n";

/// An agent that knows [`DOCUMENTS`], with instances of all three applications.
async fn agent(bench: &Bench, port: u16) -> Agent {
    bench.datapath(|_| None);
    let mut agent = bench.agent(&format!("{{ wireguard-port: {port}, {SITE} }}"));
    let applied = ask(&mut agent, apply(DOCUMENTS)).await;
    assert!(matches!(applied, Response::Applied(_)), "{applied:?}");
    for (number, application, service) in [(1, "shop", "web"), (2, "blue", "web"), (3, "historian", "db")] {
        let index = InstanceIndex::try_from(u64::from(number) + 1).unwrap();
        let shared = match application {
            "blue" => BTreeMap::new(),
            _ => BTreeMap::from([("default/floor".to_owned(), index)]),
        };
        agent.intent.record.attachments.push(reconcile::Attachment {
            application: reconcile::ApplicationKey {
                tenant: "default".to_owned(),
                name: application.to_owned(),
            },
            service: service.to_owned(),
            number: 1,
            port: PortId(number),
            index,
            shared,
            namespace: reconcile::Namespace { device: 4, inode: 9 },
            interface: "eth0".to_owned(),
            mtu: Mtu::try_from(1390).unwrap(),
            offloads: true,
            memberships: Vec::new(),
        });
    }
    agent
}

fn shop() -> Vni {
    derive_vni("default", NetworkKind::Application, "shop")
}

/// Host 2, with `web-2` of shop.
fn neighbour(agent: &Agent, ready: bool) -> RecordBody {
    let mut body = host(2, 5, &[2]);
    let networks = reconcile::networks(&agent.host, &agent.intent.applications);
    let network = networks.values().find(|network| network.vni == shop()).unwrap();
    let index = InstanceIndex::try_from(2).unwrap();
    let (ipv4, ipv6) = network.numbers.instance(body.ordinal, index).unwrap();
    body.instances[0].addresses = vec![Membership {
        vni: shop(),
        ipv4,
        ipv6,
    }];
    body.instances[0].ready = ready;
    body
}

async fn lines(agent: &mut Agent) -> Vec<NameLine> {
    match ask(agent, Request::Names).await {
        Response::Names(list) => list.names,
        other => panic!("{other:?}"),
    }
}

/// The values at a name in an application's own network that are answered.
async fn answered(agent: &mut Agent, name: &str) -> Vec<String> {
    let lines = lines(agent).await;
    let there = lines
        .into_iter()
        .filter(|line| line.answered && !line.shared && line.name == name);
    there.filter_map(|line| line.value).collect()
}

async fn asked(agent: &mut Agent, name: &str, kind: Option<RecordType>, from: Option<&str>) -> NameAnswers {
    let query = NameQuery {
        name: name.to_owned(),
        kind,
        from: from.map(str::to_owned),
    };
    match ask(agent, Request::DnsQuery { query }).await {
        Response::NameAnswers(answers) => answers,
        other => panic!("{other:?}"),
    }
}

/// `name code: values (why)`, one a query.
fn words(answers: &NameAnswers) -> Vec<String> {
    let queries = answers.queries.iter().map(|answer| {
        let values: Vec<_> = answer
            .records
            .iter()
            .map(|record| record.value.as_str())
            .collect();
        format!(
            "{} {}: {} ({})",
            answer.name,
            answer.code,
            values.join(" "),
            answer.why
        )
    });
    queries.collect()
}

#[test]
fn every_line_of_the_list_is_what_the_zone_has_and_no_record_is_missing() {
    let bench = Bench::new("names-list");
    run(async {
        let mut agent = agent(&bench, 41_011).await;
        let body = neighbour(&agent, true);
        agent.note_records(view(&[("edge-2", body)])).await;
        let plan = agent.plan_of(&agent.intent).unwrap();
        let records = agent.records(&plan, Spelling::All);
        for (instance, application) in [
            ("shop/web-1", "shop"),
            ("blue/web-1", "blue"),
            ("historian/db-1", "historian"),
        ] {
            let own = derive_vni("default", NetworkKind::Application, application);
            let seen = records
                .iter()
                .filter(|record| record.vni == own && record.line.answered);
            let mut count = 0;
            for record in seen {
                let NameLine {
                    name, kind, value, ..
                } = &record.line;
                let answers = asked(&mut agent, &format!("{name}."), *kind, Some(instance)).await;
                let [answer] = answers.queries.as_slice() else {
                    panic!("one query")
                };
                let values: Vec<_> = answer
                    .records
                    .iter()
                    .map(|record| Some(record.value.clone()))
                    .collect();
                assert!(values.contains(value), "{name}: {value:?} isn't among {values:?}");
                assert!(
                    answer.records.iter().all(|record| record.why.is_some()),
                    "{answer:?}"
                );
                count += 1;
            }
            assert!(count > 8, "{application}: {count}");
        }
    });
}

#[test]
fn a_query_is_answered_as_the_port_sees_it_by_the_search_list_and_with_reasons() {
    let bench = Bench::new("names-query");
    run(async {
        let mut agent = agent(&bench, 41_012).await;
        let body = neighbour(&agent, false);
        agent.note_records(view(&[("edge-2", body)])).await;
        let a = Some(RecordType::A);
        let from = Some("shop/web-1");
        assert_eq!(
            words(&asked(&mut agent, "web", a, from).await),
            ["web.shop.internal NOERROR: 172.19.1.2 (it stands in the network of default/shop)"]
        );
        assert_eq!(
            words(&asked(&mut agent, "db", a, from).await)[0],
            "db.shop.internal NOERROR:  (the name exists, and nothing is told: no instance is attached)"
        );
        assert_eq!(
            words(&asked(&mut agent, "web-2.shop.internal.", a, from).await),
            [
                "web-2.shop.internal NOERROR:  (the name exists, and nothing is told: web-2 on edge-2, which isn't ready)"
            ]
        );
        let historian = words(&asked(&mut agent, "db.historian", a, from).await);
        assert!(
            historian[0].starts_with("db.historian.shop.internal NXDOMAIN"),
            "{historian:?}"
        );
        assert!(
            historian[1].contains("db.historian.internal NOERROR: 100."),
            "{historian:?}"
        );
        assert!(
            historian[1].contains("shared network default/floor"),
            "{historian:?}"
        );
        assert_eq!(
            words(&asked(&mut agent, "web.blue.internal", a, from).await)[0],
            "web.blue.internal NXDOMAIN:  (it is a name in the network default/blue, which default/shop/web-1 isn't in)"
        );
        let outside = asked(&mut agent, "web.shop.", a, from).await;
        assert_eq!(outside.queries[0].code, "REFUSED");
        let srv = asked(
            &mut agent,
            "_http._tcp.web.shop.internal",
            Some(RecordType::Srv),
            from,
        )
        .await;
        assert_eq!(srv.queries[0].records[0].value, "0 0 80 web-1.shop.internal");
        let txt = asked(
            &mut agent,
            "_acme-challenge.web.shop.internal",
            Some(RecordType::Txt),
            from,
        )
        .await;
        assert_eq!(txt.queries[0].records[0].value, "\"x\"");
        let pointer = asked(&mut agent, "172.19.1.2", None, from).await;
        assert_eq!(pointer.queries[0].records[0].value, "web-1.shop.internal");
        let both = asked(&mut agent, "web", None, from).await;
        let kinds: Vec<_> = both.queries.iter().map(|answer| answer.kind).collect();
        assert_eq!(kinds, [RecordType::A, RecordType::Aaaa]);
    });
}

#[test]
fn who_asks_is_named_unless_it_makes_no_difference() {
    let bench = Bench::new("names-asker");
    run(async {
        let mut agent = agent(&bench, 41_013).await;
        let query = |from: Option<&str>| Request::DnsQuery {
            query: NameQuery {
                name: "web".to_owned(),
                kind: None,
                from: from.map(str::to_owned),
            },
        };
        let refused = problems(ask(&mut agent, query(None)).await);
        assert!(
            refused.contains("give --from, one of default/shop/web-1"),
            "{refused}"
        );
        let Response::Refused(refusal) = ask(&mut agent, query(Some("shop/web-9"))).await else {
            panic!("there is none")
        };
        assert_eq!(refusal.kind, api::RefusalKind::NotFound);
        let body = neighbour(&agent, true);
        agent.note_records(view(&[("edge-2", body)])).await;
        let refused = problems(ask(&mut agent, query(Some("shop/web-2"))).await);
        assert!(refused.contains("is on host edge-2: ask there"), "{refused}");
        agent.intent.record.attachments.truncate(1);
        assert_eq!(asked(&mut agent, "web", None, None).await.from.instance, "web-1");
    });
}

#[test]
fn instances_of_a_host_that_falls_silent_are_told_no_more_and_an_agent_that_begins_waits_for_its_word() {
    let bench = Bench::new("names-silent");
    run(async {
        let mut agent = agent(&bench, 41_014).await;
        let (one, both) = (vec!["172.19.1.2"], vec!["172.19.1.2", "172.19.2.2"]);
        let ipv4 = |values: Vec<String>| -> Vec<String> {
            values
                .into_iter()
                .filter(|value| value.contains("172."))
                .collect()
        };
        let body = neighbour(&agent, true);
        agent.note_records(view(&[("edge-2", body.clone())])).await;
        assert_eq!(ipv4(answered(&mut agent, "web.shop.internal").await), both);
        agent.note_records(view(&[])).await;
        assert_eq!(ipv4(answered(&mut agent, "web.shop.internal").await), one);
        agent.note_records(view(&[("edge-2", body)])).await;
        assert_eq!(ipv4(answered(&mut agent, "web.shop.internal").await), both);
        drop(agent);

        let mut agent = bench.agent(&format!("{{ wireguard-port: 41014, {SITE} }}"));
        agent.note_site().await;
        assert_eq!(ipv4(answered(&mut agent, "web.shop.internal").await), both);
        agent.site.lengthen_silence(std::time::Duration::from_secs(11));
        agent.note_site().await;
        assert_eq!(ipv4(answered(&mut agent, "web.shop.internal").await), one);
    });
}

#[test]
fn a_name_outside_is_asked_for_beside_the_agents_loop_and_told_with_who_answered() {
    let bench = Bench::new("names-outside");
    run(async {
        let mut agent = agent(&bench, 41_016).await;
        let from = Some("shop/web-1");
        let a = Some(RecordType::A);
        let refused = words(&asked(&mut agent, "www.example.test.", a, from).await);
        assert!(refused[0].contains("`dns.upstream` is empty"), "{refused:?}");
        let localhost = words(&asked(&mut agent, "localhost.", a, from).await);
        assert!(
            localhost[0].starts_with("localhost NOERROR: 127.0.0.1 (nobody is asked"),
            "{localhost:?}"
        );

        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, asker)) = server.recv_from(&mut buffer).await {
                // The question, and a private address.
                let mut answer = buffer[..length - 11].to_vec();
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
                answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01");
                server.send_to(&answer, asker).await.unwrap();
            }
        });
        let document = |more: &str| {
            let text =
                format!("host-id: edge-1\nsite: s\nordinal: 1\ndns: {{ upstream: [\"{address}\"]{more} }}\n");
            host::parse(Path::new("host.yaml"), &text).unwrap()
        };
        agent.resolver = Resolver::new(&document(""));
        let refused = words(&asked(&mut agent, "www.example.test.", a, from).await);
        assert!(
            refused[0].contains("REFUSED:  (the name server 127.0.0.1:"),
            "{refused:?}"
        );
        assert!(
            refused[0].contains("10.0.0.1") && refused[0].contains("`dns.private-domains`"),
            "{refused:?}"
        );
        agent.resolver = Resolver::new(&document(", private-domains: [example.test]"));
        let told = words(&asked(&mut agent, "www.example.test.", a, from).await);
        let expected =
            format!("www.example.test NOERROR: 10.0.0.1 (the name server {address} answered so in ");
        assert!(told[0].starts_with(&expected), "{told:?}");
    });
}
