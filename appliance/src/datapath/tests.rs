//! The whole process, spoken to as an agent speaks to it.

use super::bed::{self, Bed};
use super::control::{Control, Start};
use super::{configurations, shards};
use crate::seam::{
    self, BootId, Event, FromDatapath, LaneFeatures, LaneSockets, PlanDigest, ToDatapath, envelope,
};
use crate::sys::seqpacket::{Connection, Listener};
use crate::sys::signal::Terminations;
use crate::sys::{lane_socket, memfd, netns};
use rustix::process::Pid;
use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::{NonZeroU8, NonZeroU16};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tidegate_stack::egress::ShardId;
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::PoolSizes;
use tidegate_stack::plan::{
    ForeignReach, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind,
    NetworkNumbers, Peer, PeerId, PeerNetworks, Plan, PortId, PrivateKey, ProbeFailures, ProbeInterval,
    Reach, Readiness, ReadinessQuestion, Vni, site_ipv6_prefix,
};
use tidegate_stack::responder::readiness::ProbeError;
use tidegate_stack::shard::ShardConfig;

/// A datapath in this process, which ends with the value.
struct Datapath {
    folder: PathBuf,
    end: Option<std::io::PipeWriter>,
    control: Option<JoinHandle<io::Result<()>>>,
}

impl Datapath {
    fn start(test: &str) -> Self {
        Self::start_with(test, 1, None)
    }

    fn start_with(test: &str, shards: u8, supervisor: Option<Pid>) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-control-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let listener = Listener::bind(&folder.join("datapath.sock"), 0o600).unwrap();
        // A pipe whose other end closes stands in for SIGTERM.
        let (termination, end) = std::io::pipe().unwrap();
        let termination = Terminations::from_pipe(termination);
        let quotas = Arc::new(Quotas::of_host(1024));
        let config = |number| ShardConfig {
            id: ShardId(number),
            count: NonZeroU8::new(shards).unwrap(),
            lane_key: PrivateKey::from_bytes([number + 1; 32]),
            seed: 1,
            flows: 1024,
            quotas: Arc::clone(&quotas),
            frames: PoolSizes { small: 64, large: 32 },
        };
        let start = Start {
            boot: BootId(7),
            standby: false,
            supervisor,
            shards: (0..shards).map(config).collect(),
        };
        let run = move || Control::start(start, listener, termination)?.run();
        Self {
            folder,
            end: Some(end),
            control: Some(std::thread::spawn(run)),
        }
    }

    /// As SIGTERM does.
    fn terminate(&mut self) {
        self.end
            .as_mut()
            .unwrap()
            .write_all(&Terminations::SIGTERM)
            .unwrap();
    }

    /// Whether it ends by itself within a second.
    fn ends(&self) -> bool {
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            self.control.as_ref().is_none_or(JoinHandle::is_finished)
        })
    }

    fn agent(&self) -> Connection {
        let agent = Connection::connect(&self.folder.join("datapath.sock")).unwrap();
        agent.set_receive_timeout(Some(Duration::from_secs(5))).unwrap();
        agent
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        drop(self.end.take());
        let ended = self.control.take().map(JoinHandle::join);
        assert!(
            matches!(ended, Some(Ok(Ok(())))),
            "asked to end, a datapath ends well"
        );
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn ask(agent: &Connection, request: &ToDatapath, descriptors: &[BorrowedFd<'_>]) -> (FromDatapath, usize) {
    agent
        .send(&serde_json::to_vec(request).unwrap(), descriptors)
        .unwrap();
    let answer = agent.receive().unwrap().unwrap();
    (
        serde_json::from_slice(&answer.bytes).unwrap(),
        answer.descriptors.len(),
    )
}

/// The answer to a request, whatever is told before it.
fn ask_past_events(agent: &Connection, request: &ToDatapath) -> FromDatapath {
    let (mut answer, _) = ask(agent, request, &[]);
    while let FromDatapath::Event { .. } = answer {
        answer = serde_json::from_slice(&agent.receive().unwrap().unwrap().bytes).unwrap();
    }
    answer
}

fn lane() -> OwnedFd {
    lane_socket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), true).unwrap()
}

fn set_lanes() -> ToDatapath {
    ToDatapath::SetLanes {
        lanes: LaneSockets {
            generation: 0,
            ports: vec![51821],
            foreign: None,
        },
        features: LaneFeatures::default(),
    }
}

fn plan(ports: &[u32]) -> Plan {
    let instance = |port: &u32| Instance {
        port: PortId(*port),
        tenant: "default".to_owned(),
        application: "shop".to_owned(),
        service: "web".to_owned(),
        name: format!("web-{port}"),
        memberships: Vec::new(),
        mtu: Mtu::try_from(1390).unwrap(),
        offloads: true,
        readiness: None,
    };
    Plan {
        services: Vec::new(),
        members: Vec::new(),
        names: Vec::new(),
        ordinal: HostOrdinal::try_from(1).unwrap(),
        networks: Vec::new(),
        instances: ports.iter().map(instance).collect(),
        peers: Vec::new(),
        foreign_lane_key: PrivateKey::from_bytes([3; 32]),
    }
}

#[test]
fn a_starting_agent_finds_what_a_former_one_gave() {
    let datapath = Datapath::start("adopt");
    let hello = ToDatapath::Hello {
        version: seam::VERSION,
    };
    let first = datapath.agent();
    let (answer, _) = ask(&first, &hello, &[]);
    assert!(matches!(
        answer,
        FromDatapath::Hello {
            boot: BootId(7),
            shards: 1,
            plan: None,
            lanes: None,
            ..
        }
    ));
    assert!(matches!(
        ask(&first, &ToDatapath::Adopt { port: None }, &[]).0,
        FromDatapath::Refused { .. }
    ));
    let lane = lane();
    assert_eq!(
        ask(&first, &set_lanes(), &[lane.as_fd()]),
        (FromDatapath::Done, 0)
    );
    let file = memfd::seal("plan", &serde_json::to_vec(&plan(&[4])).unwrap()).unwrap();
    let install = ToDatapath::Install {
        digest: PlanDigest(9),
        standby: false,
    };
    let (answer, _) = ask(&first, &install, &[file.as_fd()]);
    assert!(
        matches!(&answer, FromDatapath::Installed { unknown_ports, .. } if *unknown_ports == [PortId(4)])
    );

    let second = datapath.agent();
    let (answer, _) = ask(&second, &hello, &[]);
    assert!(
        matches!(
            answer,
            FromDatapath::Hello {
                plan: Some(PlanDigest(9)),
                lanes: Some(_),
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(
        ask(&second, &ToDatapath::Adopt { port: None }, &[]),
        (FromDatapath::Adopted, 1)
    );
    assert!(first.receive().unwrap().is_none(), "the newest agent wins");
    assert!(matches!(
        ask(&second, &ToDatapath::Report, &[]).0,
        FromDatapath::Report { .. }
    ));
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_a_reason_and_changes_nothing() {
    let datapath = Datapath::start("refuse");
    let agent = datapath.agent();
    let (null, lane) = (std::fs::File::open("/dev/null").unwrap(), lane());
    let add_port = ToDatapath::AddPort {
        port: PortId(1),
        device: "eth0".to_owned(),
    };
    let install = ToDatapath::Install {
        digest: PlanDigest(1),
        standby: false,
    };
    let adopt = ToDatapath::Adopt {
        port: Some(PortId(1)),
    };
    let stranger = ToDatapath::Hello {
        version: seam::VERSION + 2,
    };
    let (null, lane) = (null.as_fd(), lane.as_fd());
    let cases: [(&ToDatapath, &[BorrowedFd<'_>], &str); 8] = [
        (&stranger, &[], "restart the datapath"),
        (&add_port, &[], "needs 1 descriptors, and 0 came"),
        (&add_port, &[null], "a port's queue"),
        (
            &set_lanes(),
            &[lane, lane],
            "the lanes needs 1 descriptors, and 2 came",
        ),
        (&set_lanes(), &[null], "a lane's socket"),
        (&install, &[null], "the plan can't be read"),
        (&install, &[], "a plan needs 1 descriptors"),
        (&adopt, &[], "port 1 isn't here"),
    ];
    for (request, descriptors, expected) in cases {
        let (answer, _) = ask(&agent, request, descriptors);
        assert!(
            matches!(&answer, FromDatapath::Refused { reason } if reason.contains(expected)),
            "{request:?}: {answer:?}"
        );
    }
    agent.send(b"{\"message\":\"dance\"}", &[]).unwrap();
    let answer = agent.receive().unwrap().unwrap();
    assert!(String::from_utf8(answer.bytes).unwrap().contains("refused"));
    let hello = ToDatapath::Hello {
        version: seam::VERSION,
    };
    let (answer, _) = ask(&agent, &hello, &[]);
    assert!(matches!(
        answer,
        FromDatapath::Hello {
            plan: None,
            lanes: None,
            ..
        }
    ));
}

#[test]
fn a_report_of_a_thousand_ports_arrives() {
    let datapath = Datapath::start("large");
    let agent = datapath.agent();
    let ports: Vec<u32> = (1..=1000).collect();
    let file = memfd::seal("plan", &serde_json::to_vec(&plan(&ports)).unwrap()).unwrap();
    let install = ToDatapath::Install {
        digest: PlanDigest(1),
        standby: false,
    };
    ask(&agent, &install, &[file.as_fd()]);
    agent
        .send(&serde_json::to_vec(&ToDatapath::Report).unwrap(), &[])
        .unwrap();
    let (answer, _) = envelope::decode(agent.receive().unwrap().unwrap()).unwrap();
    assert!(
        matches!(&answer, FromDatapath::Report { report } if report.ports.len() == ports.len()),
        "{answer:?}"
    );
}

/// Host `ordinal` of two, whose instance has port 4: its plan, with the other one as its peer at `peer_endpoint`.
fn host_plan(ordinal: u8, peer_endpoint: SocketAddr) -> (Plan, Membership) {
    let key = |ordinal: u8| PrivateKey::from_bytes([ordinal; 32]);
    let other = 3 - ordinal;
    let [own_ordinal, other_ordinal] =
        [ordinal, other].map(|ordinal| HostOrdinal::try_from(u64::from(ordinal)).unwrap());
    let vni = Vni::try_from(4242).unwrap();
    let prefix = "172.19.0.0/16".parse().unwrap();
    let numbers = NetworkNumbers::application(prefix, site_ipv6_prefix("test"), vni);
    let (ipv4, ipv6) = numbers.instance(own_ordinal, InstanceIndex::MIN).unwrap();
    let membership = Membership { vni, ipv4, ipv6 };
    let mut plan = plan(&[4]);
    plan.ordinal = own_ordinal;
    plan.foreign_lane_key = key(ordinal);
    plan.instances[0].memberships.push(membership);
    plan.networks.push(Network {
        vni,
        kind: NetworkKind::Application,
        tenant: "default".to_owned(),
        name: "shop".to_owned(),
        numbers,
    });
    plan.peers.push(Peer {
        id: PeerId(1),
        name: format!("host-{other}"),
        ordinal: other_ordinal,
        reach: Reach::Foreign(ForeignReach {
            public_key: key(other).public_key(),
            preshared_key: None,
            endpoint: Some(peer_endpoint),
            keepalive: None,
        }),
        networks: PeerNetworks::All,
        mtu: Mtu::try_from(1390).unwrap(),
    });
    (plan, membership)
}

/// Two hosts with an instance each, that are each other's peers.
struct Site {
    hosts: Vec<(Datapath, Connection)>,
    plans: Vec<Plan>,
    beds: Vec<Bed>,
    addresses: Vec<IpAddr>,
}

/// How the hosts of a [`Site`] are made.
#[derive(Clone, Copy)]
struct Shape {
    features: LaneFeatures,
    vnet_header: bool,
    shards: u8,
    queues: usize,
}

const USUAL: Shape = Shape {
    features: LaneFeatures { gso: true, gro: true },
    vnet_header: true,
    shards: 1,
    queues: 1,
};

impl Site {
    /// Makes everything but puts no plan in force.
    fn start(test: &str, shape: Shape) -> Self {
        let lanes = [lane(), lane()];
        let endpoints = lanes.each_ref().map(|lane| {
            let socket = UdpSocket::from(lane.try_clone().unwrap());
            socket.local_addr().unwrap()
        });
        let mut site = Self {
            hosts: Vec::new(),
            plans: Vec::new(),
            beds: Vec::new(),
            addresses: Vec::new(),
        };
        for (ordinal, foreign) in [1_u8, 2].into_iter().zip(lanes) {
            let (plan, membership) = host_plan(ordinal, endpoints[usize::from(2 - ordinal)]);
            let (address, label) = (IpAddr::V4(membership.ipv4), format!("{test}{ordinal}"));
            let (bed, queues) =
                bed::instance_with_queues(&label, address, 16, 1390, shape.vnet_header, shape.queues);
            let datapath = Datapath::start_with(&label, shape.shards, None);
            let agent = datapath.agent();
            let mut sockets: Vec<OwnedFd> = (0..shape.shards).map(|_| lane()).collect();
            sockets.push(foreign);
            let set_lanes = ToDatapath::SetLanes {
                lanes: LaneSockets {
                    generation: 0,
                    ports: vec![0; usize::from(shape.shards)],
                    foreign: Some(endpoints[usize::from(ordinal - 1)]),
                },
                features: shape.features,
            };
            assert_eq!(ask(&agent, &set_lanes, &borrowed(&sockets)).0, FromDatapath::Done);
            let add_port = ToDatapath::AddPort {
                port: PortId(4),
                device: "eth0".to_owned(),
            };
            assert_eq!(ask(&agent, &add_port, &borrowed(&queues)).0, FromDatapath::Done);
            site.hosts.push((datapath, agent));
            site.plans.push(plan);
            site.beds.push(bed);
            site.addresses.push(address);
        }
        site
    }

    fn install(&self, host: usize, standby: bool) {
        let file = memfd::seal("plan", &serde_json::to_vec(&self.plans[host]).unwrap()).unwrap();
        let install = ToDatapath::Install {
            digest: PlanDigest(1),
            standby,
        };
        let (answer, _) = ask(&self.hosts[host].1, &install, &[file.as_fd()]);
        assert!(
            matches!(&answer, FromDatapath::Installed { unknown_ports, .. } if unknown_ports.is_empty()),
            "{answer:?}"
        );
    }

    /// A socket in an instance.
    fn socket(&self, host: usize) -> UdpSocket {
        let bind = || UdpSocket::bind((self.addresses[host], 7000)).unwrap();
        let socket = netns::within(self.beds[host].namespace(), bind).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(2000)))
            .unwrap();
        socket
    }
}

fn borrowed(descriptors: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    descriptors.iter().map(AsFd::as_fd).collect()
}

/// What one TCP stream moves from an instance of one datapath to an instance of another one.
fn stream_between_hosts(test: &str, shape: Shape) {
    const BYTES: usize = 2 << 20;
    let site = Site::start(test, shape);
    site.install(0, false);
    site.install(1, false);
    let address = SocketAddr::new(site.addresses[1], 7000);
    let listener = netns::within(site.beds[1].namespace(), || TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let received = std::thread::scope(|scope| {
        let near = site.beds[0].namespace();
        scope.spawn(move || {
            let send = || -> io::Result<()> {
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
                stream.write_all(&vec![0xa5; BYTES])
            };
            netns::within(near, send).unwrap().unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(received.len(), BYTES);
    assert!(received.iter().all(|byte| *byte == 0xa5));

    for (_, agent) in &site.hosts {
        let (answer, _) = ask(agent, &ToDatapath::Report, &[]);
        let FromDatapath::Report { report } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(report.peers.len(), 1);
        assert!(report.peers[0].handshake_age_ms.is_some());
        assert_eq!(report.ports[0].port, PortId(4));
        assert!(report.ports[0].traffic.sent_packets > 0);
    }
}

#[test]
fn a_stream_passes_between_two_datapaths() {
    if bed::is_root() {
        stream_between_hosts("fast", USUAL);
    }
}

#[test]
fn a_stream_passes_between_two_datapaths_without_any_offload() {
    if bed::is_root() {
        let features = LaneFeatures {
            gso: false,
            gro: false,
        };
        stream_between_hosts(
            "slow",
            Shape {
                features,
                vnet_header: false,
                ..USUAL
            },
        );
    }
}

#[test]
fn a_stream_passes_between_datapaths_of_two_shards_whatever_queues_the_devices_have() {
    if bed::is_root() {
        for queues in [1, 2, 3] {
            let shape = Shape {
                shards: 2,
                queues,
                ..USUAL
            };
            stream_between_hosts(&format!("two{queues}"), shape);
        }
    }
}

#[test]
fn a_datapath_with_two_shards_says_so_and_wants_a_lane_for_each() {
    let datapath = Datapath::start_with("shards", 2, None);
    let agent = datapath.agent();
    let hello = ToDatapath::Hello {
        version: seam::VERSION,
    };
    let (answer, _) = ask(&agent, &hello, &[]);
    let FromDatapath::Hello {
        shards, lane_keys, ..
    } = answer
    else {
        panic!("{answer:?}")
    };
    assert_eq!(shards, 2);
    let keys = [1, 2].map(|byte| PrivateKey::from_bytes([byte; 32]).public_key());
    assert_eq!(lane_keys, keys);
    let lane = lane();
    assert!(matches!(
        ask(&agent, &set_lanes(), &[lane.as_fd()]).0,
        FromDatapath::Refused { .. }
    ));
    assert_eq!(
        ask(&agent, &set_lanes(), &[lane.as_fd(), lane.as_fd()]).0,
        FromDatapath::Done
    );
}

#[test]
fn a_datapath_that_stands_by_delivers_and_reads_no_port_until_it_is_told_and_none_once_retired() {
    if !bed::is_root() {
        return;
    }
    for shards in [1, 2] {
        let shape = Shape {
            shards,
            queues: usize::from(shards),
            ..USUAL
        };
        let site = Site::start(&format!("by{shards}"), shape);
        site.install(0, false);
        site.install(1, true);
        let hello = ToDatapath::Hello {
            version: seam::VERSION,
        };
        assert!(matches!(
            ask(&site.hosts[1].1, &hello, &[]).0,
            FromDatapath::Hello { standby: true, .. }
        ));
        let (one, two) = (site.socket(0), site.socket(1));
        let mut bytes = [0; 16];
        let mut hears = |socket: &UdpSocket, patience: u64| -> Option<u8> {
            socket
                .set_read_timeout(Some(Duration::from_millis(patience)))
                .unwrap();
            socket.recv(&mut bytes).ok().map(|_| bytes[0])
        };
        one.send_to(&[1], two.local_addr().unwrap()).unwrap();
        assert_eq!(hears(&two, 5000), Some(1), "what the lanes receive is delivered");
        two.send_to(&[2], one.local_addr().unwrap()).unwrap();
        assert_eq!(hears(&one, 200), None, "a predecessor reads the port");
        site.install(1, false);
        assert_eq!(hears(&one, 5000), Some(2), "nothing that waited is lost");

        assert_eq!(
            ask(&site.hosts[1].1, &ToDatapath::Retire, &[]).0,
            FromDatapath::Done
        );
        two.send_to(&[3], one.local_addr().unwrap()).unwrap();
        assert_eq!(hears(&one, 200), None, "a successor reads the port");
        one.send_to(&[4], two.local_addr().unwrap()).unwrap();
        assert_eq!(hears(&two, 5000), Some(4), "the lanes go on");
    }
}

#[test]
fn a_datapath_asks_instances_whether_they_are_ready_as_long_as_it_reads_their_ports() {
    if !bed::is_root() {
        return;
    }
    for shards in [1, 2] {
        let shape = Shape {
            shards,
            queues: usize::from(shards),
            vnet_header: shards == 1,
            ..USUAL
        };
        let mut site = Site::start(&format!("ask{shards}"), shape);
        site.plans[0].instances[0].offloads = shape.vnet_header;
        site.plans[0].instances[0].readiness = Some(Readiness {
            question: ReadinessQuestion::Tcp {
                port: NonZeroU16::new(7000).unwrap(),
            },
            interval: ProbeInterval::MIN,
            failures: ProbeFailures::MIN,
        });
        let report = |site: &Site| match ask_past_events(&site.hosts[0].1, &ToDatapath::Report) {
            FromDatapath::Report { report } => report.readiness[0],
            other => panic!("{other:?}"),
        };
        let becomes = |site: &Site, ready: bool| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while report(site).ready != Some(ready) {
                assert!(Instant::now() < deadline, "{:?}", report(site));
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        site.install(0, true);
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(report(&site).asked, 0, "a predecessor reads the port");
        site.install(0, false);
        becomes(&site, false);
        assert_eq!(report(&site).error, Some(ProbeError::Refused));

        let listen = || TcpListener::bind((site.addresses[0], 7000)).unwrap();
        let listener = netns::within(site.beds[0].namespace(), listen).unwrap();
        becomes(&site, true);
        drop(listener);
        becomes(&site, false);

        let retired = ask_past_events(&site.hosts[0].1, &ToDatapath::Retire);
        assert_eq!(retired, FromDatapath::Done);
        let asked = report(&site).asked;
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(report(&site).asked, asked, "a successor reads the port");
    }
}

#[test]
fn a_device_that_is_gone_is_told_once_though_every_shard_finds_it_out() {
    if !bed::is_root() {
        return;
    }
    let shape = Shape {
        shards: 2,
        queues: 2,
        ..USUAL
    };
    let mut site = Site::start("gone", shape);
    site.install(1, false);
    drop(site.beds.remove(1));
    let agent = &site.hosts[1].1;
    let told = agent.receive().unwrap().unwrap();
    let gone = FromDatapath::Event {
        event: Event::PortGone { port: PortId(4) },
    };
    assert_eq!(serde_json::from_slice::<FromDatapath>(&told.bytes).unwrap(), gone);
    std::thread::sleep(Duration::from_millis(200));
    let (answer, _) = ask(agent, &ToDatapath::Report, &[]);
    assert!(matches!(answer, FromDatapath::Report { .. }), "{answer:?}");
}

#[test]
fn the_host_document_says_how_many_shards_there_are_and_without_it_each_core_has_one() {
    assert_eq!(shards(&tidegate_fixtures::host("full")).get(), 64);
    let cores = std::thread::available_parallelism().unwrap().get().min(64);
    for undecided in [tidegate_fixtures::host("minimal"), PathBuf::from("/nowhere")] {
        assert_eq!(usize::from(shards(&undecided).get()), cores);
    }
}

#[test]
fn every_shard_has_a_key_of_its_own_and_another_one_at_each_start() {
    let most = NonZeroU8::new(64).unwrap();
    let starts = [(); 2].map(|()| configurations(most).unwrap());
    let keys: BTreeSet<String> = starts
        .iter()
        .flatten()
        .map(|config| config.lane_key.public_key().to_base64())
        .collect();
    assert_eq!(keys.len(), 128);
    for (number, config) in starts[0].iter().enumerate() {
        assert_eq!(usize::from(config.id.0), number);
        assert!(config.frames.large >= 8, "fewer than there are open trains");
    }
}

#[test]
fn a_datapath_that_is_told_so_ends() {
    let datapath = Datapath::start("end");
    let agent = datapath.agent();
    assert_eq!(ask(&agent, &ToDatapath::End, &[]).0, FromDatapath::Done);
    assert!(datapath.ends());
}

#[test]
fn asked_to_end_it_asks_for_a_successor_and_goes_on_until_that_has_taken_over() {
    let mut supervisor = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::from_child(&supervisor);
    let mut datapath = Datapath::start_with("leave", 1, Some(pid));
    let agent = datapath.agent();
    let hello = ToDatapath::Hello {
        version: seam::VERSION,
    };
    ask(&agent, &hello, &[]);
    datapath.terminate();
    let event = |agent: &Connection| -> FromDatapath {
        serde_json::from_slice(&agent.receive().unwrap().unwrap().bytes).unwrap()
    };
    let leaving = FromDatapath::Event {
        event: Event::Leaving,
    };
    assert_eq!(event(&agent), leaving);
    // Nothing in this child catches the signal.
    assert_eq!(supervisor.wait().unwrap().signal(), Some(libc::SIGUSR1));
    assert!(matches!(
        ask(&agent, &ToDatapath::Report, &[]).0,
        FromDatapath::Report { .. }
    ));
    let next = datapath.agent();
    ask(&next, &hello, &[]);
    assert_eq!(event(&next), leaving, "an agent that starts meanwhile is told");
    assert!(!datapath.ends());
    assert_eq!(ask(&next, &ToDatapath::End, &[]).0, FromDatapath::Done);
    assert!(datapath.ends());
}

#[test]
fn asked_to_end_without_a_supervisor_or_an_agent_or_twice_it_ends_at_once() {
    let mut alone = Datapath::start("alone");
    let _agent = alone.agent();
    alone.terminate();
    assert!(alone.ends());

    let mut supervisor = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::from_child(&supervisor);
    let mut lonely = Datapath::start_with("lonely", 1, Some(pid));
    lonely.terminate();
    assert!(lonely.ends());
    let mut twice = Datapath::start_with("twice", 1, Some(pid));
    let agent = twice.agent();
    let hello = ToDatapath::Hello {
        version: seam::VERSION,
    };
    ask(&agent, &hello, &[]);
    twice.terminate();
    twice.terminate();
    assert!(twice.ends());
    // Asked once, by the last of them.
    assert_eq!(supervisor.wait().unwrap().signal(), Some(libc::SIGUSR1));
}
