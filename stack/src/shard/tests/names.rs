//! DNS through a shard: who asks is the port, not the source it writes.

use super::*;
use crate::event::Event;
use crate::plan::AnswerOrder;
use crate::responder::dns::forward::{PATIENCE, Resolution, Told};
use crate::responder::dns::streams::{IDLE, MOST_OF_PORT};
use crate::responder::dns::tests::site::{self, BLUE, HISTORIAN, SHOP};
use crate::responder::dns::tests::{query, words};
use crate::responder::dns::{Question, Reply};
use crate::wire::tcp_flags;

const SERVICE: [u8; 4] = [172, 19, 0, 1];
const SHOP_WEB_1: [u8; 4] = [172, 19, 1, 2];

/// One shard of several of a host of the site.
pub(super) fn shard_of_site(number: u8, count: u8) -> Host {
    let config = ShardConfig {
        id: ShardId(number),
        count: NonZeroU8::new(count).unwrap(),
        lane_key: key(1),
        seed: 1,
        flows: 64,
        quotas: Arc::new(Quotas::of_host(64)),
        frames: PoolSizes { small: 64, large: 16 },
    };
    let mut host = Host {
        shard: Shard::new(config),
        out: Outputs::default(),
        address: underlay(1),
    };
    let snapshot = Snapshot::compile(&site::plan(), None);
    host.shard.install(snapshot, now(), &mut host.out);
    host
}

fn udp(source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(5_000, 53)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

fn segment(source: [u8; 4], (sequence, acknowledgement): (u32, Option<u32>), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(source, SERVICE, 64).tcp(40_000, 53, sequence, 8_192);
    let builder = match acknowledgement {
        None => builder.syn(),
        Some(number) => builder.ack(number).psh(),
    };
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

impl Host {
    fn ask(&mut self, port: PortId, packet: &[u8], offload: Offload) -> Vec<(PortId, Vec<u8>)> {
        let mut batch = Batch::new(1);
        batch.vacant().unwrap().fill(packet, offload);
        batch.advance();
        self.shard.handle_port(port, &mut batch, now(), &mut self.out);
        let delivered = self.out.delivered.drain(..);
        delivered.map(|(port, packet, _)| (port, packet)).collect()
    }

    /// What a port is answered over UDP, in words.
    fn asks(&mut self, port: PortId, source: [u8; 4], asked: &str) -> Vec<String> {
        let message = query(asked);
        let answers = self.ask(port, &udp(source, SERVICE, &message), Offload::NONE);
        let word = |(to, packet): &(PortId, Vec<u8>)| {
            assert_eq!(*to, port);
            words(&message, Some(payload_of(packet)))
        };
        answers.iter().map(word).collect()
    }
}

/// A datagram's payload; whole, and with correct sums.
fn payload_of(packet: &[u8]) -> &[u8] {
    let headers = Headers::parse(packet).unwrap();
    let udp = &packet[headers.transport_offset..headers.total_length];
    let length = u32::try_from(udp.len()).unwrap();
    assert_eq!(u32::from(u16::from_be_bytes([udp[4], udp[5]])), length);
    let mut sum = crate::frame::checksum::Sum::pseudo_header(headers.source, headers.destination, 17, length);
    sum.add(udp);
    assert!(sum.is_correct());
    assert_eq!(headers.endpoints().source_port, 53);
    &packet[headers.payload_offset..headers.total_length]
}

#[test]
fn a_port_is_answered_by_its_own_view() {
    let mut host = shard_of_site(0, 1);
    let asked = "web-1.blue.internal A";
    let nothing = "NXDOMAIN aa | ! internal. SOA …";
    assert_eq!(host.asks(SHOP, SHOP_WEB_1, asked), [nothing]);
    assert_eq!(host.asks(HISTORIAN, [172, 19, 1, 3], asked), [nothing]);
    assert_eq!(
        host.asks(BLUE, SHOP_WEB_1, asked),
        ["NOERROR aa | = web-1.blue.internal. A 172.19.1.2"]
    );
    let report = host.shard.report().dns;
    assert_eq!((report.queries, report.no_error, report.nx_domain), (3, 1, 2));
}

#[test]
fn a_spoofed_source_is_not_answered_at_all() {
    let mut host = shard_of_site(0, 1);
    // An address of the historian's, and one of nobody.
    for source in [[172, 19, 1, 3], [100, 96, 64, 67], [172, 19, 9, 9]] {
        assert_eq!(host.asks(SHOP, source, "db.historian.internal A"), [""; 0]);
    }
    assert_eq!(host.drops(DropReason::SourceNotOwn), 3);
    assert_eq!(host.shard.report().dns.queries, 0);
}

#[test]
fn ipv6_and_the_service_addresses_of_shared_networks_answer() {
    let mut host = shard_of_site(0, 1);
    let message = query("db-1.historian.internal AAAA");
    let expected = "NOERROR aa | = db-1.historian.internal. AAAA fd00:aaaa:bbbb:5::1:c";
    for network in [1_u16, 5] {
        let source = std::net::Ipv6Addr::new(0xfd00, 0xaaaa, 0xbbbb, network, 0, 0, 1, 2);
        let service = std::net::Ipv6Addr::new(0xfd00, 0xaaaa, 0xbbbb, network, 0, 0, 0, 1);
        let mut packet = Vec::new();
        PacketBuilder::ipv6(source.octets(), service.octets(), 64)
            .udp(5_000, 53)
            .write(&mut packet, &message)
            .unwrap();
        let answers = host.ask(SHOP, &packet, Offload::NONE);
        assert_eq!(words(&message, Some(payload_of(&answers[0].1))), expected);
    }
    let packet = udp([100, 96, 64, 66], [100, 96, 64, 1], &message);
    let answers = host.ask(SHOP, &packet, Offload::NONE);
    assert_eq!(words(&message, Some(payload_of(&answers[0].1))), expected);
}

#[test]
fn a_super_packet_of_queries_is_as_many_answers() {
    let mut host = shard_of_site(0, 1);
    let message = query("db-1.shop.internal A");
    let packet = udp(SHOP_WEB_1, SERVICE, &message.repeat(3));
    let offload = Offload {
        segmentation: Segmentation::Udp {
            size: u16::try_from(message.len()).unwrap(),
        },
        partial_checksum: Some((20, 6)),
    };
    let answers = host.ask(SHOP, &packet, offload);
    assert_eq!(answers.len(), 3);
    for (_, packet) in &answers {
        assert!(words(&message, Some(payload_of(packet))).starts_with("NOERROR aa"));
    }
}

#[test]
fn what_is_no_query_is_dropped_under_its_name() {
    let mut host = shard_of_site(0, 1);
    let mut response = query("db-1.shop.internal A");
    response[2] |= 0x80;
    for payload in [&response[..], b"", b"hello"] {
        assert_eq!(
            host.ask(SHOP, &udp(SHOP_WEB_1, SERVICE, payload), Offload::NONE),
            []
        );
    }
    assert_eq!(host.drops(DropReason::NotAQuery), 3);
}

/// What an upstream found out: an address.
fn found(name: &[u8]) -> Arc<Told> {
    let question = Question::new(name, 1).unwrap();
    let mut message = question.query(7, [0; 32], false);
    message[2] |= 0x80;
    message[7] = 1;
    message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 192, 0, 2, 7]);
    let reply = Reply::try_from(message).unwrap();
    Arc::new(Told {
        question,
        resolution: Resolution::Reply(reply),
    })
}

#[test]
fn questions_about_the_world_beyond_wait_for_who_can_ask_it() {
    let mut host = shard_of_site(0, 1);
    let before = host.shard.poll_timeout().unwrap();
    assert_eq!(host.asks(SHOP, SHOP_WEB_1, "www.example.test A +rd"), [""; 0]);
    assert_eq!(host.shard.report().dns.waiting, 1);
    assert!(host.shard.poll_timeout().unwrap() < before);
    let Some(Event::Question(question)) = host.shard.poll_event() else {
        panic!("it isn't asked");
    };
    assert_eq!(host.shard.poll_event(), None);

    let told = found(question.name());
    host.shard.handle_told(&[told], now(), &mut host.out);
    let message = query("www.example.test A +rd");
    let late: Vec<_> = host.out.delivered.drain(..).collect();
    assert_eq!(late[0].0, SHOP);
    let expected = "NOERROR rd | = www.example.test. A 192.0.2.7";
    assert_eq!(words(&message, Some(payload_of(&late[0].1))), expected);
    assert_eq!(host.asks(SHOP, SHOP_WEB_1, "www.example.test A +rd"), [expected]);
    // Who is in another network is told the same.
    assert_eq!(
        host.asks(BLUE, [172, 19, 1, 2], "www.example.test A +rd"),
        [expected]
    );
    let report = host.shard.report().dns;
    assert_eq!(
        (report.queries, report.no_error, report.cached, report.asked),
        (3, 3, 2, 1)
    );
    assert_eq!((report.waiting, report.remembered), (0, 1));
}

#[test]
fn a_question_that_nobody_can_ask_fails_in_time() {
    let mut host = shard_of_site(0, 1);
    host.asks(SHOP, SHOP_WEB_1, "www.example.test A");
    let mut time = now();
    while host.out.delivered.is_empty() {
        time = host.shard.poll_timeout().unwrap();
        host.shard.handle_timeout(time, &mut host.out);
    }
    assert!(time.saturating_since(now()) >= PATIENCE);
    assert_eq!(host.shard.report().dns.failed, 1);
}

#[test]
fn queries_are_told_one_by_one_where_the_plan_says_so() {
    let mut host = shard_of_site(0, 1);
    let source = [172, 19, 1, 3];
    host.asks(SHOP, SHOP_WEB_1, "db-1.shop.internal A");
    host.asks(HISTORIAN, source, "DB.historian.internal A");
    host.asks(HISTORIAN, source, "web.blue.internal A");
    host.asks(HISTORIAN, source, "www.example.test A");
    let Some(Event::Question(question)) = host.shard.poll_event() else {
        panic!("it isn't asked");
    };
    let told = |host: &mut Host| match host.shard.poll_event() {
        Some(Event::Queries(queries)) => queries
            .iter()
            .map(|query| {
                assert_eq!(query.port, HISTORIAN);
                format!("{} {} {:?}", query.question, query.rcode.label(), query.origin)
            })
            .collect(),
        other => vec![format!("{other:?}")],
    };
    assert_eq!(
        told(&mut host),
        [
            "db.historian.internal. A NOERROR Names",
            "web.blue.internal. A NXDOMAIN Names"
        ]
    );
    host.shard
        .handle_told(&[found(question.name())], now(), &mut host.out);
    host.asks(HISTORIAN, source, "www.example.test A");
    assert_eq!(
        told(&mut host),
        [
            "www.example.test. A NOERROR Upstream",
            "www.example.test. A NOERROR Memory"
        ]
    );
    // Nobody takes them: those that find no room are counted.
    for _ in 0..70 {
        host.asks(HISTORIAN, source, "db.historian.internal A");
    }
    assert_eq!(told(&mut host).len(), 64);
    assert_eq!(host.shard.report().dns.unlogged, 6);
}

#[test]
fn a_port_that_is_gone_is_answered_nothing() {
    let mut host = shard_of_site(0, 1);
    host.asks(SHOP, SHOP_WEB_1, "www.example.test A");
    let mut plan = site::plan();
    plan.instances.retain(|instance| instance.port != SHOP);
    host.shard
        .install(Snapshot::compile(&plan, None), now(), &mut host.out);
    assert_eq!(host.shard.report().dns.waiting, 0);
    let told = found(b"\x03www\x07example\x04test\0");
    host.shard.handle_told(&[told], now(), &mut host.out);
    assert!(host.out.delivered.is_empty());
}

#[test]
fn a_connection_is_made_asked_and_closed_when_it_is_idle() {
    let mut host = shard_of_site(0, 1);
    let before = host.shard.poll_timeout().unwrap();
    let answers = host.ask(SHOP, &segment(SHOP_WEB_1, (1000, None), b""), Offload::NONE);
    let number = |packet: &[u8]| u32::from_be_bytes(packet[24..28].try_into().unwrap());
    let first = number(&answers[0].1);
    assert_eq!(answers[0].1[33], tcp_flags::SYN | tcp_flags::ACK);

    let message = query("db-1.shop.internal A");
    let bytes = [&[0, message.len() as u8][..], &message].concat();
    let packet = segment(SHOP_WEB_1, (1001, Some(first.wrapping_add(1))), &bytes);
    let answers = host.ask(SHOP, &packet, Offload::NONE);
    let answer = answers.iter().find(|(_, packet)| packet.len() > 60).unwrap();
    let payload = &answer.1[Headers::parse(&answer.1).unwrap().payload_offset..];
    assert_eq!(
        usize::from(u16::from_be_bytes([payload[0], payload[1]])),
        payload.len() - 2
    );
    assert_eq!(
        words(&message, Some(&payload[2..])),
        "NOERROR aa | = db-1.shop.internal. A 172.19.1.3"
    );
    let taken = first.wrapping_add(1 + payload.len() as u32);
    host.ask(
        SHOP,
        &segment(SHOP_WEB_1, (1001 + bytes.len() as u32, Some(taken)), b""),
        Offload::NONE,
    );
    assert_eq!(host.shard.report().dns.connections, 1);

    assert!(host.shard.poll_timeout().unwrap() <= before);
    let mut time = now();
    while host.out.delivered.is_empty() {
        time = host.shard.poll_timeout().unwrap();
        host.shard.handle_timeout(time, &mut host.out);
    }
    assert!(time.saturating_since(now()) >= IDLE);
    assert!(host.out.delivered[0].1[33] & tcp_flags::FIN != 0);
}

#[test]
fn a_connection_too_many_is_reset_and_counted() {
    let mut host = shard_of_site(0, 1);
    for number in 0..=MOST_OF_PORT {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(SHOP_WEB_1, SERVICE, 64)
            .tcp(40_000 + number as u16, 53, 1, 8_192)
            .syn()
            .write(&mut packet, b"")
            .unwrap();
        let answers = host.ask(SHOP, &packet, Offload::NONE);
        let expected = if number == MOST_OF_PORT {
            tcp_flags::RST
        } else {
            tcp_flags::SYN
        };
        assert_eq!(answers[0].1[33], expected | tcp_flags::ACK);
    }
    assert_eq!(host.drops(DropReason::DnsConnections), 1);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut host = shard_of_site(0, 1);
    let answers = host.ask(
        SHOP,
        &segment(SHOP_WEB_1, (1000, Some(77)), b"hello"),
        Offload::NONE,
    );
    assert_eq!(answers[0].1[33], tcp_flags::RST);
    assert_eq!(host.shard.report().dns.connections, 0);
}

#[test]
fn connections_live_on_their_ports_shard_and_datagrams_where_they_are_read() {
    for number in 0..2 {
        let mut host = shard_of_site(number, 2);
        // Nothing takes what is handed over here: it comes back.
        let syn = segment(SHOP_WEB_1, (1000, None), b"");
        let answered = host.ask(SHOP, &syn, Offload::NONE).len();
        let handed_over = host.drops(DropReason::HandoverFull);
        let here = SHOP.0 % 2 == u32::from(number);
        assert_eq!((answered, handed_over), if here { (1, 0) } else { (0, 1) });
        if !here {
            let frame = Frame::from_packet(&syn, Offload::NONE);
            let handover = Handover::Judge { frame, port: SHOP };
            host.shard.handle_handover(handover, now(), &mut host.out);
            assert_eq!(
                host.shard.report().dns.connections,
                1,
                "it is handled where it comes to"
            );
            host.out.delivered.clear();
        }
        assert_eq!(host.asks(SHOP, SHOP_WEB_1, "db-1.shop.internal A").len(), 1);
    }
}

#[test]
fn a_change_of_names_is_no_new_policy() {
    let mut plan = site::plan();
    let first = Snapshot::compile(&plan, None);
    let same = Snapshot::compile(&plan, Some(&first));
    assert!(Arc::ptr_eq(first.names(), same.names()));

    plan.names[0].services[0].order = AnswerOrder::Fixed;
    plan.names[0].services[0].instances[0].ready = false;
    let second = Snapshot::compile(&plan, Some(&first));
    assert!(!Arc::ptr_eq(first.names(), second.names()));
    assert!(Arc::ptr_eq(first.policy(), second.policy()));
    assert!(Arc::ptr_eq(first.lanes(), second.lanes()));
    assert_eq!(first.epoch(), second.epoch());

    let mut host = shard_of_site(0, 1);
    assert_eq!(host.asks(SHOP, SHOP_WEB_1, "db-1.shop.internal A").len(), 1);
    plan.names[0].services.clear();
    let third = Snapshot::compile(&plan, Some(&second));
    host.shard.install(third, now(), &mut host.out);
    assert_eq!(
        host.asks(SHOP, SHOP_WEB_1, "db-1.shop.internal A"),
        ["NOERROR aa | = db-1.shop.internal. A 100.96.64.67"],
        "the shared network still has it"
    );
}
