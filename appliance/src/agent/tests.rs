//! The agent beside a datapath that says what it is told to say.

mod handover;
mod names;
mod readiness;
mod shared;
mod site;

use super::api::{InstanceQuery, Request, Response};
use super::*;
use crate::seam::{BootId, FromDatapath, ToDatapath};
use crate::sys::seqpacket::Listener;
use std::path::{Path, PathBuf};

const SHOP: &str = "name: shop\nservices: [ { name: web } ]\n";

/// Folders of one test; they go with the value.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-agent-{}-{test}", std::process::id()));
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(folder.join("state")).unwrap();
        std::fs::create_dir_all(folder.join("run")).unwrap();
        Self { folder }
    }

    fn places(&self) -> Places {
        Places {
            config: self.folder.join("host.yaml"),
            state_dir: self.folder.join("state"),
            run_dir: self.folder.join("run"),
        }
    }

    fn agent(&self, cluster: &str) -> Agent {
        let text =
            format!("host-id: edge-1\nsite: s\nordinal: 1\ncluster: {cluster}\ndns: {{ upstream: [] }}\n");
        let host = host::parse(Path::new("host.yaml"), &text).unwrap();
        Agent::begin(&self.places(), host).unwrap()
    }

    /// A datapath for one agent after the other, which answers what `answer` says, or as a good one would.
    fn datapath(&self, answer: impl Fn(&ToDatapath) -> Option<FromDatapath> + Send + 'static) {
        let listener = Listener::bind(&self.places().datapath_socket(), 0o600).unwrap();
        std::thread::spawn(move || {
            while let Ok(agent) = listener.accept() {
                while let Ok(Some(message)) = agent.receive() {
                    let asked = serde_json::from_slice(&message.bytes).unwrap();
                    let answer = answer(&asked).unwrap_or_else(|| good_answer(&asked));
                    if agent.send(&serde_json::to_vec(&answer).unwrap(), &[]).is_err() {
                        break;
                    }
                }
            }
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

fn good_answer(asked: &ToDatapath) -> FromDatapath {
    match asked {
        ToDatapath::Hello { .. } => FromDatapath::Hello {
            version: crate::seam::VERSION,
            boot: BootId(7),
            pid: 1,
            shards: 1,
            plan: None,
            ports: Vec::new(),
            lane_keys: vec![tidegate_stack::plan::PublicKey::from_bytes([7; 32])],
            standby: false,
            lanes: None,
        },
        ToDatapath::Install { .. } => FromDatapath::Installed {
            epoch: 1,
            unknown_ports: Vec::new(),
        },
        ToDatapath::Report => FromDatapath::Report {
            report: Box::default(),
        },
        ToDatapath::Flows { .. } => FromDatapath::Flows { page: Box::default() },
        ToDatapath::SetLanes { .. }
        | ToDatapath::AddPort { .. }
        | ToDatapath::RemovePort { .. }
        | ToDatapath::Retire
        | ToDatapath::End
        | ToDatapath::Answers { .. }
        | ToDatapath::Adopt { .. } => FromDatapath::Done,
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

async fn ask(agent: &mut Agent, request: Request) -> Response {
    ask_by(agent, ConnectionId::FIRST, request).await
}

async fn ask_by(agent: &mut Agent, connection: ConnectionId, request: Request) -> Response {
    let (answer, answered) = oneshot::channel();
    agent.handle(connection, request, Vec::new(), answer).await;
    answered.await.unwrap()
}

fn apply(text: &str) -> Request {
    Request::Apply {
        documents: vec![api::DocumentText {
            file: "shop.yaml".to_owned(),
            text: text.to_owned(),
        }],
    }
}

fn prepare_attach() -> Request {
    let instance = InstanceQuery {
        tenant: "default".to_owned(),
        application: "shop".to_owned(),
        service: "web".to_owned(),
        number: None,
        namespace: Some(reconcile::Namespace { device: 4, inode: 9 }),
        interface: "eth0".to_owned(),
    };
    Request::PrepareAttach { instance }
}

fn problems(response: Response) -> String {
    match response {
        Response::Refused(refusal) => refusal.problems.join("\n"),
        other => panic!("{other:?}"),
    }
}

async fn told_problems(agent: &mut Agent) -> Vec<String> {
    match ask(agent, Request::Status).await {
        Response::Status(status) => status.problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_journal_does_not_take_does_not_come_into_force() {
    let bench = Bench::new("journal");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40901 }");
        // A folder in the way stands in for a full disk.
        let obstacle = bench.folder.join("state/journal.json.new");
        std::fs::create_dir(&obstacle).unwrap();
        let refused = problems(ask(&mut agent, apply(SHOP)).await);
        assert!(refused.contains("nothing was changed"), "{refused}");
        assert!(agent.intent.applications.is_empty(), "nothing has changed");
        std::fs::remove_dir(&obstacle).unwrap();
        assert!(matches!(ask(&mut agent, apply(SHOP)).await, Response::Applied(_)));
    });
}

#[test]
fn what_the_datapath_refuses_is_not_kept() {
    let bench = Bench::new("refused");
    let installs = std::sync::atomic::AtomicU32::new(0);
    bench.datapath(move |asked| {
        let second = matches!(asked, ToDatapath::Install { .. })
            && installs.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1;
        second.then(|| FromDatapath::Refused {
            reason: "no".to_owned(),
        })
    });
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40902 }");
        problems(ask(&mut agent, apply(SHOP)).await);
        assert!(agent.intent.applications.is_empty());
        let (_, kept) = Journal::open(&bench.places().state_dir).unwrap();
        assert!(kept.applications.is_empty(), "a restart doesn't try it again");
    });
}

#[test]
fn a_datapath_that_does_not_want_this_agent_is_told_nothing_more() {
    let bench = Bench::new("version");
    bench.datapath(|asked| match asked {
        ToDatapath::Hello { .. } => Some(FromDatapath::Refused {
            reason: "the agent speaks another version".to_owned(),
        }),
        _ => panic!("told {asked:?}"),
    });
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40903 }");
        for _ in 0..2 {
            let refused = problems(ask(&mut agent, apply(SHOP)).await);
            assert!(refused.contains("another version"), "{refused}");
            assert!(!agent.datapath.is_connected());
        }
    });
}

#[test]
fn a_port_in_use_is_a_problem_until_it_is_free() {
    let bench = Bench::new("port");
    bench.datapath(|_| None);
    run(async {
        let squatter = std::net::UdpSocket::bind("[::]:40904").unwrap();
        let mut agent = bench.agent("{ wireguard-port: 40904 }");
        assert!(matches!(ask(&mut agent, apply(SHOP)).await, Response::Applied(_)));
        let told = told_problems(&mut agent).await;
        assert!(told.iter().any(|line| line.contains("40904")), "{told:?}");
        drop(squatter);
        agent.look_at_underlay().await;
        assert!(agent.lanes.is_some());
        assert_eq!(told_problems(&mut agent).await, [""; 0]);
    });
}

#[test]
fn mistakes_in_the_boot_folder_are_told_for_as_long_as_the_agent_runs() {
    let bench = Bench::new("boot");
    bench.datapath(|_| None);
    std::fs::create_dir(bench.folder.join("applications")).unwrap();
    std::fs::write(bench.folder.join("applications/shop.yaml"), "nam: shop\n").unwrap();
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40905 }");
        assert!(matches!(ask(&mut agent, apply(SHOP)).await, Response::Applied(_)));
        let told = told_problems(&mut agent).await;
        assert!(told.iter().any(|line| line.contains("shop.yaml:1:")), "{told:?}");
    });
}

#[test]
fn an_application_is_not_deleted_while_an_instance_of_it_is_being_attached() {
    let bench = Bench::new("delete");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40906 }");
        ask(&mut agent, apply(SHOP)).await;
        let prepared = ask(&mut agent, prepare_attach()).await;
        assert!(matches!(prepared, Response::Prepared(_)), "{prepared:?}");
        let delete = || Request::Delete {
            tenant: "default".to_owned(),
            application: "shop".to_owned(),
        };
        let refused = problems(ask(&mut agent, delete()).await);
        assert!(refused.contains("web-1"), "{refused}");
        agent.forget_reservation(ConnectionId::FIRST);
        assert!(matches!(ask(&mut agent, delete()).await, Response::Deleted(_)));
    });
}

#[test]
fn a_dead_device_is_made_anew_though_its_namespaces_number_came_back() {
    let bench = Bench::new("dead");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40907 }");
        ask(&mut agent, apply(SHOP)).await;
        ask(&mut agent, prepare_attach()).await;
        let reservation = agent.reservations.remove(&ConnectionId::FIRST).unwrap();
        let attachment = reservation.into_attachment();
        let port = attachment.port;
        agent.intent.record.attachments.push(attachment);
        // A pipe that nobody reads says the same to poll as a queue without a device.
        let (reader, queue) = std::io::pipe().unwrap();
        agent.queues.insert(port, vec![queue.into()]);
        let attached = ask(&mut agent, prepare_attach()).await;
        assert!(matches!(attached, Response::Attached(_)), "{attached:?}");
        drop(reader);
        let prepared = ask(&mut agent, prepare_attach()).await;
        assert!(matches!(prepared, Response::Prepared(_)), "{prepared:?}");
        assert!(agent.intent.record.attachments.is_empty());
    });
}

#[test]
fn a_device_is_attached_by_one_process_at_a_time() {
    let bench = Bench::new("twice");
    bench.datapath(|_| None);
    run(async {
        let mut agent = bench.agent("{ wireguard-port: 40908 }");
        ask(&mut agent, apply(SHOP)).await;
        ask(&mut agent, prepare_attach()).await;
        let second = ask_by(&mut agent, ConnectionId::SECOND, prepare_attach()).await;
        assert!(problems(second).contains("right now"));
        agent.forget_reservation(ConnectionId::FIRST);
        let second = ask_by(&mut agent, ConnectionId::SECOND, prepare_attach()).await;
        assert!(matches!(second, Response::Prepared(_)), "{second:?}");
    });
}
