//! Instances in networks that applications share, over changes of their document and restarts of the agent.

use super::site::{SITE, host, view};
use super::*;
use crate::agent::api::Prepared;
use crate::agent::cluster::record::{InstanceRecord, NetworkRecord};
use tidegate_stack::plan::{Membership, Network, NetworkKind};

fn document(networks: &str) -> String {
    format!(
        "# The shop.\nname: shop\nnetwork: {{ shared-application-network: [ {networks} ] }}\nservices:\n  - name: web\n    \
         network:\n      inbound-access:\n        rules:\n          - from: {{ application: till }}\n"
    )
}

async fn prepare(agent: &mut Agent) -> Prepared {
    match ask(agent, prepare_attach()).await {
        Response::Prepared(prepared) => prepared,
        other => panic!("{other:?}"),
    }
}

/// Attaches what was prepared, as if its device had come.
fn commit(agent: &mut Agent) -> reconcile::Attachment {
    let reservation = agent.reservations.remove(&ConnectionId::FIRST).unwrap();
    let attachment = reservation.into_attachment();
    agent.intent.record.attachments.push(attachment.clone());
    agent.publish();
    attachment
}

fn network(agent: &Agent, name: &str) -> Network {
    let networks = reconcile::networks(&agent.host, &agent.intent.applications);
    networks
        .into_values()
        .find(|network| network.name == name)
        .unwrap()
}

fn planned(agent: &Agent) -> Vec<Membership> {
    let plan = reconcile::plan(&agent.inputs(&agent.intent)).ok().unwrap();
    plan.instances[0].memberships.clone()
}

fn digest(agent: &Agent) -> crate::seam::PlanDigest {
    agent.plan(&agent.intent).ok().unwrap().digest
}

#[test]
fn a_device_is_made_with_an_address_in_each_network_the_applications_own_first() {
    let bench = Bench::new("two-networks");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 41101 }");
        ask(&mut agent, apply(&document("y, x"))).await;
        let prepared = prepare(&mut agent).await;
        let prefixes: Vec<_> = prepared
            .networks
            .iter()
            .map(|network| network.ipv4_prefix)
            .collect();
        let expected = ["shop", "y", "x"].map(|name| network(&agent, name).ipv4_prefix());
        assert_eq!(prefixes, expected);
        for prepared in &prepared.networks {
            assert!(prepared.ipv4_prefix.contains(&prepared.ipv4), "{prepared:?}");
            assert!(prepared.ipv6_prefix.contains(&prepared.ipv6), "{prepared:?}");
            assert!(
                prepared.ipv4_prefix.contains(&prepared.service_ipv4),
                "{prepared:?}"
            );
        }
        let attachment = commit(&mut agent);
        assert_eq!(planned(&agent), attachment.memberships);
        assert!(!agent.re_attach_needed(&attachment));
        ask(&mut agent, apply(&document("x, y"))).await;
        assert!(
            !agent.re_attach_needed(&attachment),
            "their order is no matter of the device"
        );
    });
}

#[test]
fn an_instance_leaves_a_network_at_once_and_joins_one_when_it_is_attached_again() {
    let bench = Bench::new("join");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent(&format!(
            "{{ wireguard-port: 41102, control-port: 41402, {SITE} }}"
        ));
        ask(&mut agent, apply(&document("x"))).await;
        prepare(&mut agent).await;
        let attachment = commit(&mut agent);
        let [own, in_x] = attachment.memberships[..] else {
            panic!("two networks")
        };
        let applied = ask(&mut agent, apply(&document("x, y"))).await;
        assert!(matches!(applied, Response::Applied(_)), "{applied:?}");
        assert!(agent.re_attach_needed(&attachment), "it has no address in y");
        assert_eq!(planned(&agent), [own, in_x]);
        let applied = ask(&mut agent, apply(&document("y"))).await;
        assert!(matches!(applied, Response::Applied(_)), "{applied:?}");
        assert_eq!(
            planned(&agent),
            [own],
            "it is out of x though the device has the address"
        );
        let told = agent.site.published().unwrap();
        assert_eq!(told.instances[0].addresses, [own], "nor do others hear of it");
        assert!(told.networks.iter().all(|network| network.name != "x"));
        let attached = prepare(&mut agent).await;
        assert_eq!(attached.instance, "web-1");
        assert_eq!(attached.networks.len(), 2);
        commit(&mut agent);
        let y = network(&agent, "y");
        assert_eq!(planned(&agent)[1].vni, y.vni);
    });
}

#[test]
fn what_is_not_attached_in_the_end_keeps_no_index_in_any_network() {
    let bench = Bench::new("release");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 41103 }");
        ask(&mut agent, apply(&document("x"))).await;
        let before = agent.intent.record.allocations.clone();
        let first = prepare(&mut agent).await;
        agent.forget_reservation(ConnectionId::FIRST);
        let second = prepare(&mut agent).await;
        assert_eq!(first.networks[1].ipv4, second.networks[1].ipv4);
        agent.forget_reservation(ConnectionId::FIRST);
        let shop = reconcile::ApplicationKey {
            tenant: "default".to_owned(),
            name: "shop".to_owned(),
        };
        agent.intent.record.allocations.forget(&shop);
        assert_eq!(agent.intent.record.allocations, before);
    });
}

#[test]
fn a_full_shared_block_is_refused_and_gives_no_index_in_the_others() {
    let bench = Bench::new("full");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 41104 }");
        ask(&mut agent, apply(&document("x"))).await;
        let x = reconcile::NetworkKey {
            kind: NetworkKind::Shared,
            tenant: "default".to_owned(),
            name: "x".to_owned(),
        };
        for number in 1..=61 {
            let name = format!("default/till/web-{number}");
            agent.intent.record.allocations.allocate(&x, &name, 62).unwrap();
        }
        let refused = problems(ask(&mut agent, prepare_attach()).await);
        assert!(
            refused.contains("this host's block of the shared network default/x is full: 61 instance names"),
            "{refused}"
        );
        let shop = reconcile::NetworkKey {
            kind: NetworkKind::Application,
            name: "shop".to_owned(),
            ..x
        };
        assert!(!agent.intent.record.allocations.contains(&shop, "web-1"));
    });
}

#[test]
fn a_restarted_agent_makes_the_identical_plan_with_the_places_of_its_rules() {
    let bench = Bench::new("restart");
    bench.datapath(|_| None);
    run(async {
        let cluster = format!("{{ wireguard-port: 41105, control-port: 41405, {SITE} }}");
        let mut agent = bench.agent(&cluster);
        let file = format!(
            "name: first\nservices: [ {{ name: web }} ]\n---\n{}",
            document("x")
        );
        let applied = ask(&mut agent, apply(&file)).await;
        assert!(matches!(applied, Response::Applied(_)), "{applied:?}");
        let x = network(&agent, "x");
        let mut other = host(2, 1, &[]);
        other.networks.push(NetworkRecord {
            tenant: "default".to_owned(),
            name: "x".to_owned(),
            kind: NetworkKind::Shared,
            vni: x.vni,
            ipv4_prefix: Some(x.ipv4_prefix()),
        });
        let (ipv4, ipv6) = x
            .numbers
            .instance(other.ordinal, tidegate_stack::plan::InstanceIndex::MIN)
            .unwrap();
        other.instances.push(InstanceRecord {
            tenant: "default".to_owned(),
            application: "till".to_owned(),
            service: "web".to_owned(),
            number: 1,
            addresses: vec![Membership {
                vni: x.vni,
                ipv4,
                ipv6,
            }],
            ready: true,
        });
        agent.note_records(view(&[("edge-2", other)])).await;
        prepare(&mut agent).await;
        let attachment = commit(&mut agent);
        agent.save().unwrap();
        let before = digest(&agent);
        let plan = reconcile::plan(&agent.inputs(&agent.intent)).ok().unwrap();
        let service = &plan.services[0];
        let rules = &service.inbound.as_ref().unwrap().rules;
        assert_eq!((service.document.as_str(), rules[0].line), ("shop.yaml", 12));
        assert_eq!(plan.members.len(), 1);
        drop(agent);
        let agent = bench.agent(&cluster);
        assert_eq!(agent.intent.record.attachments, [attachment]);
        assert_eq!(digest(&agent), before);
    });
}

#[test]
fn one_document_that_cannot_stand_beside_the_others_changes_nothing() {
    let bench = Bench::new("contradiction");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 41106 }");
        ask(&mut agent, apply(&document("x"))).await;
        let before = digest(&agent);
        let till = "name: till\nnetwork: { shared-application-network: y }\nservices: [ { name: web } ]\n";
        let refused = problems(ask(&mut agent, apply(till)).await);
        assert!(
            refused.contains("shop.yaml:9: a rule about default/till needs a common shared network"),
            "{refused}"
        );
        assert_eq!(digest(&agent), before);
        let unreachable = document("x") + "          - from: { application: till, service: web }\n";
        let refused = problems(ask(&mut agent, apply(&unreachable)).await);
        assert!(
            refused.contains("shop.yaml:10:") && refused.contains("line 9"),
            "{refused}"
        );
        assert_eq!(digest(&agent), before);
    });
}

#[test]
fn what_documents_of_the_boot_folder_say_about_a_network_changes_in_all_of_them_at_once() {
    let bench = Bench::new("boot-together");
    bench.datapath(|_| None);
    let folder = bench.folder.join("applications");
    std::fs::create_dir(&folder).unwrap();
    let write = |network: &str| {
        for name in ["a", "b"] {
            let text = format!(
                "name: {name}\nnetwork: {{ shared-application-network: {network} }}\nservices: [ {{ name: web }} ]\n"
            );
            std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
        }
    };
    run(async {
        write("x");
        let agent = bench.agent("{ wireguard-port: 41107 }");
        assert_eq!(agent.boot_problems, [""; 0]);
        drop(agent);
        write("{ name: x, vni: 77 }");
        let agent = bench.agent("{ wireguard-port: 41107 }");
        assert_eq!(agent.boot_problems, [""; 0]);
        assert_eq!(network(&agent, "x").vni.get(), 77);
    });
}
