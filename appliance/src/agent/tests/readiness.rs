//! What the agent makes of what the datapath finds out about its instances.

use super::site::SITE;
use super::*;
use crate::agent::api::NameLine;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use tidegate_stack::plan::{InstanceIndex, Mtu};
use tidegate_stack::responder::readiness::ProbeError;
use tidegate_stack::stats::{ReadinessReport, Report};

const ASKED: &str = "name: shop\nservices: [ { name: web, readiness: { tcp: 80, failures: 2 } } ]\n";
const UNASKED: &str = "name: shop\nservices: [ { name: web } ]\n";

/// Whether an instance is ready, and what came of asking it last.
type Known = (Option<bool>, Option<ProbeError>);

/// What the datapath knows of `web-1` and `web-2`, and how many plans it was given.
#[derive(Clone, Default)]
struct Knows {
    lines: Arc<Mutex<BTreeMap<u32, Known>>>,
    plans: Arc<AtomicU32>,
}

impl Knows {
    fn say(&self, port: u32, ready: Option<bool>, error: Option<ProbeError>) {
        self.lines.lock().unwrap().insert(port, (ready, error));
    }

    fn report(&self) -> Report {
        let lines = self.lines.lock().unwrap();
        let line = |(port, (ready, error)): (&u32, &Known)| ReadinessReport {
            port: PortId(*port),
            ready: *ready,
            failures: error.map_or(0, |_| 2),
            error: *error,
            asked: 9,
            postponed: 0,
        };
        Report {
            readiness: lines.iter().map(line).collect(),
            ..Report::default()
        }
    }

    fn plans(&self) -> u32 {
        self.plans.load(Ordering::Relaxed)
    }
}

fn serve(bench: &Bench) -> Knows {
    let knows = Knows::default();
    let told = knows.clone();
    bench.datapath(move |asked| {
        if matches!(asked, ToDatapath::Install { .. }) {
            told.plans.fetch_add(1, Ordering::Relaxed);
        }
        matches!(asked, ToDatapath::Report).then(|| FromDatapath::Report {
            report: Box::new(told.report()),
        })
    });
    knows
}

async fn agent(bench: &Bench, port: u16, document: &str, instances: u32) -> Agent {
    let mut agent = bench.agent(&format!("{{ wireguard-port: {port}, {SITE} }}"));
    let applied = ask(&mut agent, apply(document)).await;
    assert!(matches!(applied, Response::Applied(_)), "{applied:?}");
    for number in 1..=instances {
        attach(&mut agent, number);
    }
    agent
}

fn attach(agent: &mut Agent, number: u32) {
    agent.intent.record.attachments.push(reconcile::Attachment {
        application: reconcile::ApplicationKey {
            tenant: "default".to_owned(),
            name: "shop".to_owned(),
        },
        service: "web".to_owned(),
        number,
        port: PortId(number),
        index: InstanceIndex::try_from(u64::from(number) + 1).unwrap(),
        shared: BTreeMap::new(),
        namespace: reconcile::Namespace {
            device: 4,
            inode: u64::from(number),
        },
        interface: "eth0".to_owned(),
        mtu: Mtu::try_from(1390).unwrap(),
        offloads: true,
        memberships: Vec::new(),
    });
}

/// The numbers of the instances that the plan answers with, and of those that the other hosts are told to be ready.
fn ready(agent: &Agent) -> (Vec<String>, Vec<u32>) {
    let plan = reconcile::plan(&agent.inputs(&agent.intent)).ok().unwrap();
    let services = plan.names.iter().flat_map(|names| &names.services);
    let instances = services.flat_map(|service| &service.instances);
    let named = instances
        .filter(|instance| instance.ready)
        .map(|instance| instance.name.clone());
    let told = agent
        .site
        .published()
        .into_iter()
        .flat_map(|body| &body.instances);
    (
        named.collect(),
        told.filter(|instance| instance.ready)
            .map(|instance| instance.number)
            .collect(),
    )
}

fn all(numbers: &[u32]) -> (Vec<String>, Vec<u32>) {
    (
        numbers.iter().map(|number| format!("web-{number}")).collect(),
        numbers.to_vec(),
    )
}

async fn names(agent: &mut Agent) -> Vec<NameLine> {
    match ask(agent, Request::Names).await {
        Response::Names(list) => list.names,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_and_records_follow_what_the_datapath_finds_out() {
    let bench = Bench::new("ready-follow");
    run(async {
        let knows = serve(&bench);
        let mut agent = agent(&bench, 41_021, ASKED, 2).await;
        for (first, second, expected) in [
            (None, None, &[][..]),
            (Some(true), None, &[1]),
            (Some(true), Some(true), &[1, 2]),
            (Some(false), Some(true), &[2]),
            (Some(false), Some(false), &[]),
            (Some(true), Some(false), &[1]),
        ] {
            knows.say(1, first, None);
            knows.say(2, second, None);
            agent.look_at_readiness().await;
            agent.publish();
            assert_eq!(ready(&agent), all(expected), "{first:?} {second:?}");
        }
        let plans = knows.plans();
        agent.look_at_readiness().await;
        assert_eq!(knows.plans(), plans, "what is known already makes no plan");
    });
}

#[test]
fn the_journal_is_not_written_when_an_instance_gets_ready() {
    let bench = Bench::new("ready-journal");
    run(async {
        let knows = serve(&bench);
        let mut agent = agent(&bench, 41_022, ASKED, 1).await;
        let journal = bench.folder.join("state/journal.json");
        let written = |path: &PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
        let before = written(&journal);
        knows.say(1, Some(true), None);
        agent.look_at_readiness().await;
        assert_eq!(ready(&agent).0, ["web-1"]);
        assert_eq!(written(&journal), before);
    });
}

#[test]
fn a_restarted_agent_takes_over_what_the_datapath_knows() {
    let bench = Bench::new("ready-agent");
    run(async {
        let knows = serve(&bench);
        let mut first = agent(&bench, 41_023, ASKED, 2).await;
        knows.say(1, Some(true), None);
        knows.say(2, Some(false), Some(ProbeError::Refused));
        first.save().unwrap();
        drop(first);
        let mut second = bench.agent(&format!("{{ wireguard-port: 41023, {SITE} }}"));
        assert_eq!(ready(&second).0, [""; 0], "it knows nothing yet");
        // Without a queue that anybody holds an instance would be lost.
        for port in [1, 2] {
            let (_, queue) = std::io::pipe().unwrap();
            second.queues.insert(PortId(port), vec![queue.into()]);
        }
        second.look_for_datapath().await;
        assert_eq!(
            ready(&second),
            all(&[1]),
            "already in its first plan and its first record"
        );
    });
}

#[test]
fn a_datapath_that_knows_nothing_yet_takes_nothing_back() {
    let bench = Bench::new("ready-datapath");
    run(async {
        let knows = serve(&bench);
        let mut agent = agent(&bench, 41_024, ASKED, 2).await;
        knows.say(1, Some(true), None);
        knows.say(2, Some(false), None);
        agent.look_at_readiness().await;
        knows.say(1, None, None);
        knows.say(2, None, None);
        agent.look_at_readiness().await;
        assert_eq!(ready(&agent).0, ["web-1"]);
    });
}

#[test]
fn what_runs_stays_ready_when_its_document_begins_to_ask() {
    let bench = Bench::new("ready-apply");
    run(async {
        let knows = serve(&bench);
        let mut agent = agent(&bench, 41_025, UNASKED, 1).await;
        assert!(!agent.asks_instances());
        ask(&mut agent, apply(ASKED)).await;
        assert!(agent.asks_instances());
        assert_eq!(ready(&agent), all(&[1]));
        // A new one isn't before its first good answer.
        attach(&mut agent, 2);
        knows.say(1, None, None);
        agent.look_at_readiness().await;
        assert_eq!(ready(&agent).0, ["web-1"]);
        knows.say(1, Some(false), Some(ProbeError::Status(503)));
        agent.look_at_readiness().await;
        assert_eq!(ready(&agent).0, [""; 0]);
        ask(&mut agent, apply(UNASKED)).await;
        assert_eq!(ready(&agent), all(&[1, 2]), "nobody is asked any more");
    });
}

#[test]
fn verbs_tell_who_is_not_ready_and_why() {
    let bench = Bench::new("ready-verbs");
    run(async {
        let knows = serve(&bench);
        let mut agent = agent(&bench, 41_026, ASKED, 2).await;
        knows.say(1, Some(false), Some(ProbeError::Status(503)));
        let Response::Instances(list) = ask(&mut agent, Request::Instances).await else {
            panic!("instances")
        };
        let readiness = list.instances[0].readiness.as_ref().unwrap();
        assert_eq!(
            (readiness.ready, readiness.failures, readiness.questions),
            (false, 2, 9)
        );
        assert_eq!(readiness.asked, "TCP port 80");
        assert_eq!(
            readiness.error.as_deref(),
            Some("it answers with HTTP status 503")
        );
        let lines = names(&mut agent).await;
        let why = |name: &str| {
            let line = lines.iter().find(|line| line.name == name).unwrap();
            (line.answered, line.why.clone())
        };
        assert_eq!(
            why("web-1.shop.internal"),
            (
                false,
                "web-1 on edge-1, which isn't ready: it answers with HTTP status 503 (2 in a row)".to_owned()
            )
        );
        assert_eq!(
            why("web-2.shop.internal"),
            (
                false,
                "web-2 on edge-1, which isn't ready: it wasn't asked yet".to_owned()
            )
        );
        // Its address still has a name.
        assert!(why("2.1.19.172.in-addr.arpa").0);
    });
}

#[test]
fn a_hint_is_looked_after_soon_and_not_more_often_than_that() {
    let bench = Bench::new("ready-hint");
    run(async {
        serve(&bench);
        let mut agent = agent(&bench, 41_027, ASKED, 1).await;
        let begun = std::time::Instant::now();
        agent.look_at_readiness().await;
        agent.readiness.hint();
        agent.readiness.due().await;
        let hinted = begun.elapsed();
        assert!(hinted >= Duration::from_millis(100), "{hinted:?}");
        agent.look_at_readiness().await;
        let begun = std::time::Instant::now();
        agent.readiness.due().await;
        assert!(begun.elapsed() > hinted, "without one it is looked at regularly");
    });
}
