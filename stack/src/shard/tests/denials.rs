//! Denials: silent or polite, as the list that denies says, here and through the tunnel.

use super::*;
use crate::plan::{Access, Action, Limits, OnDeny, PortRange, ProtocolMatch, Rule, Selector, Service};
use crate::responder::icmp::{self, IcmpError};
use crate::wire::tcp_flags;

/// Hosts that have known their connections for long: they pick up none.
fn pair() -> (Host, Host) {
    let start = now() - Duration::from_secs(40);
    let (mut first, mut second) = (host_since(1, 2, start), host_since(2, 1, start));
    settle(&mut first, &mut second);
    (first, second)
}

const SERVICE: [u8; 4] = [172, 19, 0, 1];

/// TCP 5432 from anybody, and nothing else.
fn only_5432(on_deny: OnDeny) -> Access {
    Access {
        line: 4,
        on_deny,
        rules: vec![Rule {
            line: 6,
            other: Selector::Any,
            protocols: vec![ProtocolMatch::Tcp(vec![PortRange {
                first: 5432,
                last: 5432,
            }])],
            action: Action::Allow,
        }],
    }
}

fn web(inbound: Option<Access>, outbound: Option<Access>) -> Service {
    Service {
        id: instance(PORT, 1, 2).service_id(),
        document: "shop.yaml".into(),
        inbound,
        outbound,
        limits: Limits::default(),
    }
}

impl Host {
    /// Puts rules about `web` in force.
    fn rule(&mut self, own: u8, other: u8, service: Service) {
        let mut changed = plan(own, other);
        changed.services.push(service);
        let snapshot = Snapshot::compile(&changed, self.shard.snapshot.as_ref());
        self.shard.install(snapshot, now(), &mut self.out);
    }

    fn delivered(&mut self) -> Vec<Vec<u8>> {
        let delivered = std::mem::take(&mut self.out.delivered);
        delivered.into_iter().map(|(_, packet, _)| packet).collect()
    }
}

fn syn(source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .tcp(40_000, port, 1_000, 8_192)
        .syn()
        .write(&mut packet, &[])
        .unwrap();
    packet
}

fn udp(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4(source, destination, 64)
        .udp(5_000, 5_432)
        .write(&mut packet, b"?")
        .unwrap();
    packet
}

/// Who says it, with which flags, sequence and acknowledgement.
fn segment(packet: &[u8]) -> (IpAddr, u8, u32, u32) {
    let headers = Headers::parse(packet).unwrap();
    match headers.transport {
        Transport::Tcp {
            flags,
            sequence,
            acknowledgement,
            ..
        } => (headers.source, flags, sequence, acknowledgement),
        other => panic!("{other:?} is no segment"),
    }
}

const REFUSED: u8 = tcp_flags::RST | tcp_flags::ACK;

#[test]
fn a_rejecting_list_answers_an_instance_of_this_host_and_a_dropping_one_says_nothing() {
    for (inbound, reason) in [
        (true, DropReason::InboundDenied),
        (false, DropReason::OutboundDenied),
    ] {
        for on_deny in [OnDeny::Reject, OnDeny::Drop] {
            let (mut first, _second) = pair();
            let list = Some(only_5432(on_deny));
            let service = if inbound {
                web(list, None)
            } else {
                // Inside its own network an application needs no rule: one that denies is needed.
                let mut list = only_5432(on_deny);
                list.rules.push(Rule {
                    line: 7,
                    other: Selector::Any,
                    protocols: Vec::new(),
                    action: Action::Deny,
                });
                web(None, Some(list))
            };
            first.rule(1, 2, service);
            first.send(&syn(WEB_ON_1, [172, 19, 1, 3], 22), Offload::NONE);
            first.send(&udp(WEB_ON_1, [172, 19, 1, 3]), Offload::NONE);
            assert_eq!(first.drops(reason), 2);
            let answers = first.delivered();
            if on_deny == OnDeny::Drop {
                assert_eq!(answers, Vec::<Vec<u8>>::new());
                continue;
            }
            assert_eq!(answers.len(), 2);
            assert_eq!(segment(&answers[0]), ([172, 19, 1, 3].into(), REFUSED, 0, 1_001));
            let error = Headers::parse(&answers[1]).unwrap();
            assert_eq!(error.source, IpAddr::from(SERVICE));
            assert_eq!(answers[1][20..22], [3, 13]);
            first.send(&syn(WEB_ON_1, [172, 19, 1, 3], 5432), Offload::NONE);
            assert_eq!(first.delivered().len(), 1, "what is allowed passes");
        }
    }
}

#[test]
fn what_leaves_the_networks_of_a_service_that_rejects_is_told_so() {
    let (mut first, _second) = pair();
    first.rule(1, 2, web(None, Some(only_5432(OnDeny::Reject))));
    first.send(&syn(WEB_ON_1, [198, 51, 100, 1], 443), Offload::NONE);
    assert_eq!(first.drops(DropReason::OutboundDenied), 1);
    let answers = first.delivered();
    assert_eq!(
        segment(&answers[0]),
        ([198, 51, 100, 1].into(), REFUSED, 0, 1_001)
    );
}

#[test]
fn a_denial_where_a_flow_arrives_is_told_through_the_tunnel() {
    let (mut first, mut second) = pair();
    second.rule(2, 1, web(Some(only_5432(OnDeny::Reject)), None));
    first.send(&syn(WEB_ON_1, WEB_ON_2, 22), Offload::NONE);
    settle(&mut first, &mut second);
    first.send(&udp(WEB_ON_1, WEB_ON_2), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(second.drops(DropReason::InboundDenied), 2);
    assert_eq!(second.delivered(), Vec::<Vec<u8>>::new());
    assert_eq!(
        first.shard.report().drops,
        vec![],
        "both are answers to live flows"
    );
    let answers = first.delivered();
    assert_eq!(answers.len(), 2);
    assert_eq!(segment(&answers[0]), (WEB_ON_2.into(), REFUSED, 0, 1_001));
    let error = Headers::parse(&answers[1]).unwrap();
    assert_eq!(error.source, IpAddr::from(WEB_ON_2));
    assert_eq!(answers[1][20..22], [3, 13]);
}

#[test]
fn ipv6_is_refused_through_the_tunnel_too() {
    let (mut first, mut second) = pair();
    second.rule(2, 1, web(Some(only_5432(OnDeny::Reject)), None));
    let address = |own: u8| {
        let (_, ipv6) = shop().numbers.instance(ordinal(own), InstanceIndex::MIN).unwrap();
        ipv6
    };
    let mut packet = Vec::new();
    PacketBuilder::ipv6(address(1).octets(), address(2).octets(), 64)
        .udp(5_000, 22)
        .write(&mut packet, b"?")
        .unwrap();
    first.send(&packet, Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(first.shard.report().drops, vec![]);
    let answers = first.delivered();
    assert_eq!(
        Headers::parse(&answers[0]).unwrap().source,
        IpAddr::from(address(2))
    );
    assert_eq!(answers[0][40..42], [1, 1]);
}

#[test]
fn a_live_flow_that_a_new_list_ends_is_told_so() {
    let (mut first, mut second) = pair();
    first.send(&syn(WEB_ON_1, WEB_ON_2, 22), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(second.delivered().len(), 1);
    second.rule(2, 1, web(Some(only_5432(OnDeny::Reject)), None));
    first.send(&syn(WEB_ON_1, WEB_ON_2, 22), Offload::NONE);
    settle(&mut first, &mut second);
    assert_eq!(second.drops(DropReason::InboundDenied), 1);
    assert_eq!(
        segment(&first.delivered()[0]),
        (WEB_ON_2.into(), REFUSED, 0, 1_001)
    );
}

#[test]
fn resets_and_errors_are_never_answered() {
    let (mut first, _second) = pair();
    let deny_all = Access {
        line: 4,
        on_deny: OnDeny::Reject,
        rules: Vec::new(),
    };
    first.rule(1, 2, web(Some(deny_all), None));
    let mut reset = syn(WEB_ON_1, [172, 19, 1, 3], 22);
    reset[33] = tcp_flags::RST;
    let quoted = udp([172, 19, 1, 3], WEB_ON_1);
    let mut error = vec![0; 576];
    let written = icmp::error(IcmpError::PortUnreachable, WEB_ON_1.into(), &quoted, &mut error);
    error.truncate(written.unwrap());
    for packet in [reset, error] {
        first.send(&packet, Offload::NONE);
    }
    assert_eq!(first.delivered(), Vec::<Vec<u8>>::new());
    assert_eq!(
        first
            .shard
            .report()
            .drops
            .iter()
            .map(|drop| drop.packets)
            .sum::<u64>(),
        2
    );
}

#[test]
fn resets_are_told_no_oftener_than_their_limit() {
    let (mut first, _second) = pair();
    first.rule(1, 2, web(Some(only_5432(OnDeny::Reject)), None));
    for port in 1_000..1_060 {
        first.send(&syn(WEB_ON_1, [172, 19, 1, 3], port), Offload::NONE);
    }
    assert_eq!(first.delivered().len(), 50);
    assert_eq!(first.drops(DropReason::InboundDenied), 60);
    assert_eq!(first.drops(DropReason::RateLimited), 10);
}
