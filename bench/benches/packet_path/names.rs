//! Queries for names: the answer alone, and from packet to packet.

use std::hint::black_box;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::sync::Arc;

use criterion::Criterion;
use hickory_proto::op::{Edns, Message, MessageType};
use hickory_proto::rr::{Name, RData, Record};
use tidegate_stack::egress::{Egress, Handover, Route, ShardId, Slot};
use tidegate_stack::flow::Quotas;
use tidegate_stack::frame::{Batch, Frame, Offload, PoolSizes};
use tidegate_stack::plan::{
    AnswerOrder, NamedInstance, NamedService, NetworkNames, Plan, PortId, PrivateKey, ServiceId,
};
use tidegate_stack::responder::dns::{
    Outcome, PAYLOAD, Rotation, Transport, answer as answer_query, datagram,
};
use tidegate_stack::shard::{Shard, ShardConfig};
use tidegate_stack::snapshot::Snapshot;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Endpoints, protocol};

use crate::allocations::per_iteration;
use crate::site::{Addresses, NEAR, plan};

const SERVICES: u8 = 100;
const PORT: PortId = PortId(0);

/// A plan whose application has a hundred services of three instances.
fn named_plan() -> Plan {
    let mut plan = plan(0, 1, 1);
    let network = &plan.networks[0];
    let service = |number: u8| NamedService {
        id: ServiceId {
            tenant: "acme".into(),
            application: "shop".into(),
            service: format!("service{number}"),
        },
        order: AnswerOrder::Rotate,
        ports: Vec::new(),
        texts: Vec::new(),
        instances: (1..=3)
            .map(|instance| NamedInstance {
                name: format!("service{number}-{instance}"),
                ipv4: [172, 19, instance, number].into(),
                ipv6: [0xfd00, 0, 0, 1, 0, 0, u16::from(instance), u16::from(number)].into(),
                ready: true,
            })
            .collect(),
    };
    plan.names = vec![NetworkNames {
        vni: network.vni,
        log: false,
        services: (0..SERVICES).map(service).collect(),
    }];
    plan.normalise();
    plan
}

fn query(name: &[u8], kind: u8) -> Vec<u8> {
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    let opt = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
    [&header[..], name, &[0, kind, 0, 1], &opt].concat()
}

pub(crate) fn answer(criterion: &mut Criterion) {
    let plan = named_plan();
    let snapshot = Snapshot::compile(&plan, None);
    let view = snapshot.names().view(PORT).expect("the plan has the port");
    let udp = Transport::Udp { limit: PAYLOAD };
    let known = b"\x09service42\x04shop\x08internal\0";
    let unknown = b"\x06nobody\x04shop\x08internal\0";
    let outside = b"\x03www\x07example\x04test\0";
    let mut out = [0; 1500];
    for (path, message) in [
        ("a/3-of-100-services", query(known, 1)),
        ("aaaa/3-of-100-services", query(known, 28)),
        ("a/nxdomain", query(unknown, 1)),
        ("a/outside", query(outside, 1)),
    ] {
        let mut rotation = Rotation::default();
        let mut ask = || match answer_query(black_box(&message), view, udp, &mut rotation, &mut out) {
            Outcome::Answer(answered) => answered.length,
            Outcome::Forward(_) | Outcome::Ignore => 0,
        };
        let name = format!("answer/{path}");
        per_iteration(&name, &mut ask);
        criterion.bench_function(&name, |bencher| bencher.iter(&mut ask));
    }

    let message = query(known, 1);
    let name = "answer/a/hickory";
    per_iteration(name, || by_hickory(&message));
    criterion.bench_function(name, |bencher| bencher.iter(|| by_hickory(black_box(&message))));

    let mut through = Through::new(&plan, &message);
    let name = "answer/a/through-a-shard";
    per_iteration(name, || through.ask());
    criterion.bench_function(name, |bencher| bencher.iter(|| through.ask()));
}

/// What another library takes to read the query and to write the same answer.
fn by_hickory(message: &[u8]) -> Vec<u8> {
    let query = Message::from_vec(message).expect("a query of our own making");
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.authoritative = true;
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    let name: Name = query.queries[0].name.clone();
    for instance in 1..=3 {
        let address = RData::A(std::net::Ipv4Addr::new(172, 19, instance, 42).into());
        response.add_answer(Record::from_rdata(name.clone(), 5, address));
    }
    response.add_query(query.queries[0].clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    response.set_edns(edns);
    response.to_vec().expect("an answer of our own making")
}

/// A shard that is asked by its instance.
struct Through {
    shard: Shard,
    batch: Batch,
    outputs: Nowhere,
    packet: Vec<u8>,
}

impl Through {
    fn new(plan: &Plan, message: &[u8]) -> Self {
        let config = ShardConfig {
            id: ShardId(0),
            count: NonZeroU8::MIN,
            lane_key: PrivateKey::from_bytes([0x5a; 32]),
            seed: 1,
            flows: 1024,
            quotas: Arc::new(Quotas::of_host(1024)),
            frames: PoolSizes { small: 64, large: 16 },
        };
        let mut outputs = Nowhere(0);
        let mut shard = Shard::new(config);
        shard.install(Snapshot::compile(plan, None), Instant::ZERO, &mut outputs);
        let endpoints = Endpoints {
            protocol: protocol::UDP,
            source: IpAddr::V4(plan.networks[0].service_ipv4()),
            source_port: 53,
            destination: Addresses::of(plan).ipv4(NEAR),
            destination_port: 5000,
        };
        let mut packet = vec![0; 1500];
        // The writer of answers writes the question: as if the service address had asked.
        let written = datagram(&endpoints, &mut packet, |room| {
            room.get_mut(..message.len())?.copy_from_slice(message);
            Some(message.len())
        });
        packet.truncate(written.expect("a packet has room for a query"));
        Self {
            shard,
            batch: Batch::new(1),
            outputs,
            packet,
        }
    }

    fn ask(&mut self) {
        let before = self.outputs.0;
        self.batch.clear();
        if let Some(frame) = self.batch.vacant() {
            frame.fill(&self.packet, Offload::NONE);
            self.batch.advance();
        }
        self.shard
            .handle_port(PORT, &mut self.batch, Instant::ZERO, &mut self.outputs);
        assert!(self.outputs.0 == before + 1, "nothing was answered");
    }
}

/// Takes what is delivered, and nothing else.
struct Nowhere(u64);

impl Egress for Nowhere {
    type Slot<'a> = NoRoom;

    fn reserve(&mut self, _: &Route, _: usize, _: usize) -> Option<NoRoom> {
        None
    }

    fn deliver(&mut self, _: PortId, frame: &Frame) -> bool {
        self.0 += u64::from(!frame.packet().is_empty());
        true
    }

    fn handover(&mut self, _: ShardId, handover: Handover) -> Result<(), Handover> {
        Err(handover)
    }
}

struct NoRoom;

impl Slot for NoRoom {
    fn buffer(&mut self) -> &mut [u8] {
        &mut []
    }

    fn commit(self, _: usize) {}
}
