//! What the agent tells the site, and what it does with what it is told.

use super::*;
use crate::agent::cluster::SiteView;
use crate::agent::cluster::record::{
    HostRecord, InstanceRecord, LaneGeneration, LaneRecord, NetworkRecord, NetworkSettings, RecordBody,
};
use std::sync::Arc;
use tidegate_stack::plan::{HostOrdinal, NetworkKind, Plan, PublicKey, Reach, derive_vni};

/// A site of which nothing is configured but that there is one.
pub(super) const SITE: &str = "ca-file: ca.pem, certificate-file: edge-1.pem, private-key-file: edge-1.key";

/// A host with one lane, in the network of [`SHOP`], with these instances of its service.
pub(super) fn host(ordinal: u64, generation: u64, instances: &[u32]) -> RecordBody {
    RecordBody {
        ordinal: HostOrdinal::try_from(ordinal).unwrap(),
        addresses: vec!["192.0.2.12".parse().unwrap()],
        generations: vec![LaneGeneration {
            number: generation,
            lanes: vec![LaneRecord {
                port: 51821,
                public_key: PublicKey::from_bytes([u8::try_from(ordinal).unwrap(); 32]),
            }],
        }],
        network: NetworkSettings {
            application_prefix: "172.19.0.0/16".parse().unwrap(),
            shared_prefix: "100.96.0.0/11".parse().unwrap(),
        },
        networks: vec![NetworkRecord {
            tenant: "default".to_owned(),
            name: "shop".to_owned(),
            kind: NetworkKind::Application,
            vni: derive_vni("default", NetworkKind::Application, "shop"),
            ipv4_prefix: None,
        }],
        instances: instances
            .iter()
            .map(|number| InstanceRecord {
                tenant: "default".to_owned(),
                application: "shop".to_owned(),
                service: "web".to_owned(),
                number: *number,
                addresses: Vec::new(),
                ready: true,
            })
            .collect(),
        later: serde_json::Map::new(),
    }
}

/// What the site says when these hosts live.
pub(super) fn view(hosts: &[(&str, RecordBody)]) -> Arc<SiteView> {
    let record = |name: &str, body: &RecordBody| HostRecord {
        host_id: name.to_owned(),
        boot: 1,
        life: 1,
        version: 1,
        body: body.clone(),
    };
    Arc::new(SiteView {
        records: hosts
            .iter()
            .map(|(name, body)| ((*name).to_owned(), record(name, body)))
            .collect(),
        ..SiteView::default()
    })
}

fn generations(plan: &Plan, peer: &str) -> Option<Vec<u64>> {
    let peer = plan.peers.iter().find(|known| known.name == peer)?;
    match &peer.reach {
        Reach::Site(generations) => Some(generations.iter().map(|generation| generation.number).collect()),
        Reach::Foreign(_) => None,
    }
}

fn plan(agent: &Agent) -> Plan {
    reconcile::plan(&agent.inputs(&agent.intent)).ok().unwrap()
}

#[test]
fn a_host_that_falls_silent_keeps_its_lanes_and_loses_its_instances() {
    let bench = Bench::new("silent");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41001, control-port: 41301, {SITE} }}"
        ));
        ask(&mut agent, apply(SHOP)).await;
        agent.note_records(view(&[("edge-2", host(2, 5, &[1]))])).await;
        assert_eq!(generations(&plan(&agent), "edge-2"), Some(vec![5]));
        let shop = || reconcile::ApplicationKey {
            tenant: "default".to_owned(),
            name: "shop".to_owned(),
        };
        assert_eq!(agent.host_of(&shop(), "web", 1), Some("edge-2"));
        agent.note_records(view(&[])).await;
        assert_eq!(generations(&plan(&agent), "edge-2"), Some(vec![5]));
        assert_eq!(agent.host_of(&shop(), "web", 1), None);
        drop(agent);
        // Nor does a restarted agent, which has heard nobody yet, cut what works.
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41001, control-port: 41301, {SITE} }}"
        ));
        assert_eq!(generations(&plan(&agent), "edge-2"), Some(vec![5]));
        assert_eq!(agent.intent.record.boots, 2);
        agent.note_records(view(&[("edge-2", host(2, 6, &[]))])).await;
        assert_eq!(generations(&plan(&agent), "edge-2"), Some(vec![6]));
        drop(agent);
        let agent = bench.agent("{ wireguard-port: 41001 }");
        assert_eq!(
            generations(&plan(&agent), "edge-2"),
            None,
            "it is in no site any more"
        );
    });
}

#[test]
fn numbers_of_instances_are_those_that_no_live_host_uses() {
    let bench = Bench::new("numbers");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41002, control-port: 41302, {SITE} }}"
        ));
        ask(&mut agent, apply(SHOP)).await;
        agent
            .note_records(view(&[
                ("edge-2", host(2, 1, &[1, 3])),
                ("edge-3", host(3, 1, &[2])),
            ]))
            .await;
        let Response::Prepared(prepared) = ask(&mut agent, prepare_attach()).await else {
            panic!("prepared")
        };
        assert_eq!(prepared.instance, "web-4");
        let Request::PrepareAttach { mut instance } = prepare_attach() else {
            unreachable!()
        };
        instance.number = Some(3);
        let refused = problems(ask(&mut agent, Request::PrepareAttach { instance }).await);
        assert!(
            refused.contains("web-3 of default/shop is attached on host edge-2"),
            "{refused}"
        );
    });
}

#[test]
fn what_this_host_has_is_told_when_it_has_lanes() {
    let bench = Bench::new("publish");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41003, control-port: 41303, {SITE} }}"
        ));
        assert!(
            agent.site.published().is_none(),
            "the lanes that it may have are not known yet"
        );
        ask(&mut agent, apply(SHOP)).await;
        let told = agent.site.published().unwrap();
        assert_eq!(told.ordinal.get(), 1);
        let [generation] = told.generations.as_slice() else {
            panic!("one generation")
        };
        assert_eq!(generation.number, 1);
        assert_eq!(generation.lanes[0].port, 41003 + 1 + 64);
        assert_eq!(generation.lanes[0].public_key, PublicKey::from_bytes([7; 32]));
        assert_eq!(told.networks[0].name, "shop");
        assert!(told.instances.is_empty());
        ask(&mut agent, prepare_attach()).await;
        let attachment = agent
            .reservations
            .remove(&ConnectionId::FIRST)
            .unwrap()
            .into_attachment();
        agent.intent.record.attachments.push(attachment);
        agent.publish();
        let told = agent.site.published().unwrap();
        assert_eq!(
            (told.instances[0].service.as_str(), told.instances[0].number),
            ("web", 1)
        );
    });
}

#[test]
fn conflicts_between_hosts_are_problems_until_they_end() {
    let bench = Bench::new("conflicts");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41004, control-port: 41304, {SITE} }}"
        ));
        ask(&mut agent, apply(SHOP)).await;
        agent.note_records(view(&[("edge-2", host(1, 1, &[]))])).await;
        let told = told_problems(&mut agent).await.join("\n");
        assert!(told.contains("host edge-2 has ordinal 1"), "{told}");
        agent.note_records(view(&[("edge-2", host(2, 1, &[]))])).await;
        assert_eq!(told_problems(&mut agent).await, [""; 0]);
    });
}
