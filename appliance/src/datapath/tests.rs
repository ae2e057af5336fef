//! The whole process, spoken to as an agent speaks to it.

use super::bed::{self, Bed};
use super::control::Control;
use crate::seam::{self, BootId, FromDatapath, LaneFeatures, LaneSockets, PlanDigest, ToDatapath, envelope};
use crate::sys::seqpacket::{Connection, Listener};
use crate::sys::{lane_socket, memfd, netns};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::num::{NonZeroU8, NonZeroUsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tidegate_stack::egress::ShardId;
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::PoolSizes;
use tidegate_stack::plan::{
    ForeignReach, HostOrdinal, Instance, InstanceIndex, Membership, Mtu, Network, NetworkKind,
    NetworkNumbers, Peer, PeerId, PeerNetworks, Plan, PortId, PrivateKey, Reach, Vni, site_ipv6_prefix,
};
use tidegate_stack::shard::ShardConfig;

/// A datapath in this process, which ends with the value.
struct Datapath {
    folder: PathBuf,
    end: Option<std::io::PipeWriter>,
    control: Option<JoinHandle<io::Result<()>>>,
}

impl Datapath {
    fn start(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-control-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let listener = Listener::bind(&folder.join("datapath.sock"), 0o600).unwrap();
        // A pipe whose other end closes stands in for SIGTERM.
        let (termination, end) = std::io::pipe().unwrap();
        let config = |_| ShardConfig {
            id: ShardId(0),
            count: NonZeroU8::MIN,
            lane_key: PrivateKey::from_bytes([0x5a; 32]),
            seed: 1,
            flows: 1024,
            quotas: Arc::new(Quotas::of_host(1024)),
            frames: PoolSizes { small: 16, large: 4 },
        };
        let one = NonZeroUsize::MIN;
        let run = move || Control::start(BootId(7), listener, termination.into(), one, config)?.run();
        Self {
            folder,
            end: Some(end),
            control: Some(std::thread::spawn(run)),
        }
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
    };
    Plan {
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

/// What one TCP stream moves from an instance of one datapath to an instance of another one.
fn stream_between_hosts(test: &str, features: LaneFeatures, vnet_header: bool) {
    const BYTES: usize = 2 << 20;
    let lanes = [lane(), lane()];
    let endpoints = lanes.each_ref().map(|lane| {
        let socket = std::net::UdpSocket::from(lane.try_clone().unwrap());
        socket.local_addr().unwrap()
    });
    let mut hosts = Vec::new();
    let mut beds: Vec<Bed> = Vec::new();
    let mut addresses = Vec::new();
    for (ordinal, lane) in [1_u8, 2].into_iter().zip(&lanes) {
        let (plan, membership) = host_plan(ordinal, endpoints[usize::from(2 - ordinal)]);
        let address = IpAddr::V4(membership.ipv4);
        let (bed, queue) = bed::instance(&format!("{test}{ordinal}"), address, 16, 1390, vnet_header);
        let datapath = Datapath::start(&format!("{test}{ordinal}"));
        let agent = datapath.agent();
        let set_lanes = ToDatapath::SetLanes {
            lanes: LaneSockets {
                generation: 0,
                ports: vec![0],
                foreign: Some(endpoints[usize::from(ordinal - 1)]),
            },
            features,
        };
        assert_eq!(
            ask(&agent, &set_lanes, &[self::lane().as_fd(), lane.as_fd()]).0,
            FromDatapath::Done
        );
        let add_port = ToDatapath::AddPort {
            port: PortId(4),
            device: "eth0".to_owned(),
        };
        assert_eq!(ask(&agent, &add_port, &[queue.as_fd()]).0, FromDatapath::Done);
        let file = memfd::seal("plan", &serde_json::to_vec(&plan).unwrap()).unwrap();
        let install = ToDatapath::Install {
            digest: PlanDigest(1),
            standby: false,
        };
        let (answer, _) = ask(&agent, &install, &[file.as_fd()]);
        assert!(
            matches!(&answer, FromDatapath::Installed { unknown_ports, .. } if unknown_ports.is_empty()),
            "{answer:?}"
        );
        hosts.push((datapath, agent));
        beds.push(bed);
        addresses.push(address);
    }

    let address = SocketAddr::new(addresses[1], 7000);
    let listener = netns::within(beds[1].namespace(), || TcpListener::bind(address))
        .unwrap()
        .unwrap();
    let received = std::thread::scope(|scope| {
        let near = beds[0].namespace();
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

    for (_, agent) in &hosts {
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
        stream_between_hosts("fast", LaneFeatures::default(), true);
    }
}

#[test]
fn a_stream_passes_between_two_datapaths_without_any_offload() {
    if bed::is_root() {
        let none = LaneFeatures {
            gso: false,
            gro: false,
        };
        stream_between_hosts("slow", none, false);
    }
}
