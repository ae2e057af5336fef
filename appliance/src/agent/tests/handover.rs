//! One datapath takes over from another.

use super::site::{SITE, host, view};
use super::*;
use crate::sys::memfd;
use std::sync::{Arc, Mutex};
use tidegate_stack::plan::{PeerId, Plan};
use tidegate_stack::stats::{PeerReport, Report, Traffic, TunnelReport};

/// What both datapaths were told, in order: which of them, and what.
type Told = Arc<Mutex<Vec<String>>>;

/// What a datapath is.
#[derive(Clone)]
struct Part {
    boot: u64,
    name: &'static str,
    standby: bool,
    /// Reports after which it has its sessions.
    reports_until_sessions: usize,
    /// What it refuses.
    refuses: &'static str,
}

const FORMER: Part = Part {
    boot: 1,
    name: "former",
    standby: false,
    reports_until_sessions: 0,
    refuses: "",
};
const SUCCESSOR: Part = Part {
    boot: 2,
    name: "successor",
    standby: true,
    reports_until_sessions: 3,
    refuses: "",
};

impl Bench {
    /// A datapath that writes down what it is told, and takes the socket's name from the one before.
    fn part(&self, part: Part, told: &Told) {
        let path = self.places().datapath_socket();
        let beside = path.with_extension(part.name);
        let listener = Listener::bind(&beside, 0o600).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        let told = Arc::clone(told);
        std::thread::spawn(move || {
            let mut reports = 0;
            while let Ok(agent) = listener.accept() {
                while let Ok(Some(mut message)) = agent.receive() {
                    let asked: ToDatapath = serde_json::from_slice(&message.bytes).unwrap();
                    let line = describe(&asked, &mut message.descriptors);
                    let refused = !part.refuses.is_empty() && line.contains(part.refuses);
                    let mut answer = good_answer(&asked);
                    match &mut answer {
                        FromDatapath::Hello { boot, standby, .. } => {
                            *boot = BootId(part.boot);
                            *standby = part.standby;
                        }
                        FromDatapath::Report { report } => {
                            reports += 1;
                            **report = connected(reports > part.reports_until_sessions);
                        }
                        _ => {}
                    }
                    if refused {
                        answer = FromDatapath::Refused {
                            reason: "no".to_owned(),
                        };
                    }
                    // Reports are asked for until they please.
                    let mut told = told.lock().unwrap();
                    let line = format!("{} {line}", part.name);
                    if told.last() != Some(&line) {
                        told.push(line);
                    }
                    drop(told);
                    if agent.send(&serde_json::to_vec(&answer).unwrap(), &[]).is_err() {
                        break;
                    }
                }
            }
        });
    }
}

fn describe(asked: &ToDatapath, descriptors: &mut Vec<OwnedFd>) -> String {
    match asked {
        ToDatapath::SetLanes { lanes, .. } => {
            let foreign = if lanes.foreign.is_some() {
                " and the foreign lane"
            } else {
                ""
            };
            assert_eq!(
                descriptors.len(),
                lanes.ports.len() + usize::from(lanes.foreign.is_some())
            );
            format!("lanes of generation {}{foreign}", lanes.generation)
        }
        ToDatapath::AddPort { port, .. } => format!("port {port}"),
        ToDatapath::Install { standby, .. } => {
            let bytes = memfd::read_sealed(descriptors.remove(0)).unwrap();
            let plan: Plan = serde_json::from_slice(&bytes).unwrap();
            let peers: Vec<_> = plan.peers.iter().map(|peer| peer.name.as_str()).collect();
            let standby = if *standby { " standby" } else { "" };
            format!("install{standby} [{}]", peers.join(" "))
        }
        other => format!("{other:?}").split([' ', '{']).next().unwrap().to_owned(),
    }
}

/// The report of a datapath that has sessions with edge-2, or not yet.
fn connected(sessions: bool) -> Report {
    let handshake_age_ms = sessions.then_some(10);
    let tunnel = |shard, handshake_age_ms| TunnelReport {
        shard,
        generation: Some(1),
        lane: 0,
        endpoint: None,
        handshake_age_ms,
        rtt_ms: None,
        loss_permille: None,
    };
    Report {
        peers: vec![PeerReport {
            peer: PeerId(2),
            endpoint: None,
            // That of another tunnel is not enough.
            handshake_age_ms: Some(10),
            rtt_ms: None,
            traffic: Traffic::default(),
            tunnels: vec![tunnel(0, handshake_age_ms)],
        }],
        ..Report::default()
    }
}

/// An agent with a foreign peer, a host of the site and a port, connected to the former datapath.
async fn agent(bench: &Bench, port: u16) -> Agent {
    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let mut agent = bench.agent(&format!(
        "{{ wireguard-port: {port}, control-port: {}, {SITE}, peers: [ {{ name: plc, ordinal: 9, public-key: \"{KEY}\", \
         networks: all }} ] }}",
        port + 200
    ));
    ask(&mut agent, apply(SHOP)).await;
    agent.note_records(view(&[("edge-2", host(2, 1, &[]))])).await;
    ask(&mut agent, prepare_attach()).await;
    let attachment = agent
        .reservations
        .remove(&ConnectionId::FIRST)
        .unwrap()
        .into_attachment();
    let (_, queue) = std::io::pipe().unwrap();
    agent.queues.insert(attachment.port, vec![queue.into()]);
    agent.intent.record.attachments.push(attachment);
    let intent = agent.intent.clone();
    agent.put_in_force(intent).await.unwrap();
    agent
}

fn published(agent: &Agent) -> Vec<u64> {
    let generations = &agent.site.published().unwrap().generations;
    generations.iter().map(|generation| generation.number).collect()
}

#[test]
fn a_successor_takes_over_when_it_has_the_sessions() {
    let bench = Bench::new("handover");
    let told = Told::default();
    bench.part(FORMER, &told);
    run(async {
        let mut agent = agent(&bench, 41010).await;
        assert_eq!(published(&agent), [1]);
        told.lock().unwrap().clear();
        agent.look_for_successor().await;
        assert_eq!(*told.lock().unwrap(), [""; 0], "nobody followed");
        bench.part(SUCCESSOR, &told);
        agent.look_for_successor().await;
        let expected = [
            "successor Hello",
            "successor lanes of generation 2",
            "successor port 1",
            "successor install standby [edge-2]",
            "former Report",
            "successor Report",
            "former lanes of generation 1",
            "successor lanes of generation 2 and the foreign lane",
            "former Retire",
            "successor install [plc edge-2]",
        ];
        assert_eq!(*told.lock().unwrap(), expected);
        assert_eq!(published(&agent), [2]);
        assert_eq!(agent.intent.record.last_generation, 2);
        assert_eq!(told_problems(&mut agent).await, [""; 0]);
        told.lock().unwrap().clear();
        let before = tokio::time::Instant::now();
        Agent::drained(&agent.retired).await;
        assert!(
            before.elapsed() > Duration::from_millis(900),
            "what is in flight arrives"
        );
        agent.end_retired().await;
        assert_eq!(*told.lock().unwrap(), ["former End"]);
    });
}

#[test]
fn a_successor_that_fails_leaves_everything_to_the_former_one() {
    for (number, refuses) in ["lanes of generation 2", "port", "install standby", "install [plc"]
        .into_iter()
        .enumerate()
    {
        let bench = Bench::new(&format!("handover-fails-{number}"));
        let told = Told::default();
        bench.part(FORMER, &told);
        run(async {
            let mut agent = agent(&bench, 41020 + 200 * u16::try_from(number).unwrap()).await;
            bench.part(Part { refuses, ..SUCCESSOR }, &told);
            agent.look_for_successor().await;
            let lines = told.lock().unwrap().clone();
            let expected = [
                "former lanes of generation 1 and the foreign lane",
                "former install [plc edge-2]",
            ];
            assert_eq!(lines[lines.len() - 2..], expected, "{refuses}");
            assert_eq!(published(&agent), [1], "{refuses}");
            let problems = told_problems(&mut agent).await.join("\n");
            assert!(problems.contains("couldn't take over"), "{problems}");
            assert!(agent.retired.is_none());
            // The next one isn't given the ports of the one that lives.
            bench.part(Part { boot: 3, ..SUCCESSOR }, &told);
            agent.look_for_successor().await;
            assert_eq!(published(&agent), [4], "{refuses}");
        });
    }
}

#[test]
fn a_successor_whose_former_one_died_is_taken_as_it_is() {
    let bench = Bench::new("handover-died");
    let told = Told::default();
    bench.part(FORMER, &told);
    run(async {
        let mut agent = agent(&bench, 41900).await;
        bench.part(SUCCESSOR, &told);
        agent.datapath.disconnect();
        told.lock().unwrap().clear();
        agent.look_for_datapath().await;
        let lines = told.lock().unwrap().clone();
        assert_eq!(lines.last().unwrap(), "successor install [plc edge-2]");
        assert_eq!(published(&agent), [2]);
    });
}

#[test]
fn a_host_that_never_answers_does_not_keep_the_former_datapath() {
    let bench = Bench::new("handover-patience");
    let told = Told::default();
    bench.part(FORMER, &told);
    run(async {
        let mut agent = agent(&bench, 42000).await;
        let never = usize::MAX;
        bench.part(
            Part {
                reports_until_sessions: never,
                ..SUCCESSOR
            },
            &told,
        );
        let before = tokio::time::Instant::now();
        agent.look_for_successor().await;
        assert!(before.elapsed() < Duration::from_secs(5));
        assert_eq!(published(&agent), [2]);
    });
}
