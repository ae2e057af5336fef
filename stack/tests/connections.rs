//! What the filter makes of connections and of what only looks like them: segments made by hand, between instances that
//! say nothing by themselves. `cargo test -p tidegate-stack --features simulation`.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

mod sim;
#[macro_use]
#[path = "sim/shapes.rs"]
mod shapes;

use sim::packets::icmp_type;
use sim::plans::Shape;
use sim::world::{At, H1, H2, World};
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::plan::{
    Access, Action, Limits, OnDeny, PortRange, ProtocolMatch, Rule, Selector, Service, ServiceId,
};
use tidegate_stack::stats::{FlowReport, FlowState};
use tidegate_stack::wire::tcp_flags::{ACK, FIN, PSH, RST, SYN};

in_every_shape! {
    a_segment_without_a_beginning_passes_only_while_a_datapath_is_new,
    an_answer_without_a_question_makes_no_flow,
    contradictory_flags_make_no_flow_and_end_none,
    only_the_expected_reset_ends_a_connection_and_what_is_out_of_window_goes_no_further,
    an_icmp_error_must_quote_what_is_on_its_way,
    what_neighbours_on_a_link_tell_each_other_passes_no_network,
    a_service_has_no_more_connections_than_its_document_says,
    what_a_policy_ends_is_not_picked_up_again,
    flows_are_listed_from_the_side_that_began,
}

/// Long after every start.
const LATER: Duration = Duration::from_secs(40);
const BEGUN: u32 = 1000;
const ANSWERED: u32 = 5000;

fn deaf() -> World {
    let mut world = World::quiet();
    for at in [H1, H2] {
        world.instance(at).deaf = true;
    }
    // Sessions are made by the first packet.
    let packet = world.between(H1, H2, false).udp((9, 9), b"?");
    world.send(H1, packet);
    world.received(H2);
    world
}

/// A segment of the connection from H1, port `port`, to H2, port 80.
fn segment(
    world: &mut World,
    from: At,
    port: u16,
    flags: u8,
    numbers: (u32, u32),
    payload: &[u8],
) -> Vec<u8> {
    let (to, ports) = if from == H1 {
        (H2, (port, 80))
    } else {
        (H1, (80, port))
    };
    let mut packet = world.between(from, to, false).tcp(ports, numbers.0, payload);
    packet[28..32].copy_from_slice(&numbers.1.to_be_bytes());
    packet[33] = flags;
    packet
}

/// Sends one, and tells whether it arrived.
fn arrives(world: &mut World, from: At, port: u16, flags: u8, numbers: (u32, u32)) -> bool {
    let packet = segment(world, from, port, flags, numbers, &[]);
    world.send(from, packet);
    let to = if from == H1 { H2 } else { H1 };
    !world.received(to).is_empty()
}

fn connect(world: &mut World, port: u16) {
    assert!(arrives(world, H1, port, SYN, (BEGUN, 0)));
    assert!(arrives(world, H2, port, SYN | ACK, (ANSWERED, BEGUN + 1)));
    assert!(arrives(world, H1, port, ACK, (BEGUN + 1, ANSWERED + 1)));
}

/// What both hosts have dropped for a reason.
fn drops(world: &World, reason: DropReason) -> u64 {
    world.drops(0, reason) + world.drops(1, reason)
}

/// The flows that a host lists.
fn flows(world: &mut World, host: usize) -> Vec<FlowReport> {
    let now = world.now();
    let mut flows = Vec::new();
    for shard in world
        .host(host)
        .datapaths
        .iter()
        .flat_map(|datapath| &datapath.shards)
    {
        let mut next = Some(0);
        while let Some(from) = next {
            let page = shard.flows(from, 7, now);
            flows.extend(page.flows);
            next = page.next;
        }
    }
    flows
}

fn web(inbound: Option<Access>, limits: Limits) -> Service {
    Service {
        id: ServiceId {
            tenant: "acme".into(),
            application: "shop".into(),
            service: "web".into(),
        },
        document: "shop.yaml".into(),
        inbound,
        outbound: None,
        limits,
    }
}

fn a_segment_without_a_beginning_passes_only_while_a_datapath_is_new() {
    let mut world = deaf();
    // Either side may be the first that is heard.
    assert!(arrives(&mut world, H1, 40_000, ACK, (7, 9)));
    assert!(arrives(&mut world, H2, 40_000, ACK, (9, 7)));
    assert!(arrives(&mut world, H2, 40_001, ACK | PSH, (9, 7)));
    assert!(arrives(&mut world, H1, 40_001, ACK, (7, 9)));
    world.run_for(LATER);
    assert!(!arrives(&mut world, H1, 40_002, ACK, (7, 9)));
    assert!(!arrives(&mut world, H1, 40_003, SYN | ACK, (7, 9)));
    assert_eq!(drops(&world, DropReason::MidStream), 2);
    assert!(
        arrives(&mut world, H1, 40_001, ACK, (7, 9)),
        "what is known goes on"
    );
    world.restart(0);
    world.run_for(Duration::from_secs(1));
    let arrived = arrives(&mut world, H1, 40_004, ACK, (7, 9));
    if let Shape::Foreign(_) = world.site.shape {
        // Of a foreign peer's start nobody is told.
        assert!(!arrived);
        assert_eq!(world.drops(1, DropReason::MidStream), 1);
    } else {
        assert!(arrived);
    }
    world.run_for(LATER);
    assert!(!arrives(&mut world, H1, 40_005, ACK, (7, 9)));
}

fn an_answer_without_a_question_makes_no_flow() {
    let mut world = deaf();
    world.run_for(LATER);
    for ipv6 in [false, true] {
        let mut reply = world.between(H1, H2, ipv6).echo(77, b"?");
        // An echo reply is one of type 0, or 129; what it lacks in its checksum nobody looks for.
        let at = if ipv6 { 40 } else { 20 };
        reply[at] = if ipv6 { 129 } else { 0 };
        world.send(H1, reply);
    }
    assert_eq!(drops(&world, DropReason::NoFlow), 2);
    assert!(world.received(H2).is_empty());
    assert!(flows(&mut world, 0).iter().all(|flow| flow.packet.protocol == 17));
}

fn contradictory_flags_make_no_flow_and_end_none() {
    let mut world = deaf();
    connect(&mut world, 40_000);
    let contradictory = [0, SYN | FIN, SYN | RST, FIN, FIN | PSH | 0x20, FIN | RST | ACK];
    for port in [40_000, 40_001] {
        for flags in contradictory {
            assert!(!arrives(&mut world, H1, port, flags, (BEGUN + 1, ANSWERED + 1)));
        }
    }
    assert_eq!(
        world.drops(0, DropReason::TcpFlags),
        2 * contradictory.len() as u64
    );
    assert!(arrives(&mut world, H1, 40_000, ACK, (BEGUN + 1, ANSWERED + 1)));
    assert!(arrives(&mut world, H2, 40_000, ACK, (ANSWERED + 1, BEGUN + 1)));
    assert_eq!(flows(&mut world, 0).len(), 2);
}

fn only_the_expected_reset_ends_a_connection_and_what_is_out_of_window_goes_no_further() {
    let mut world = deaf();
    world.run_for(LATER);
    connect(&mut world, 40_000);
    let state = |world: &mut World| {
        let mut flows = flows(world, 1).into_iter();
        flows
            .find(|flow| flow.packet.source_port == 40_000)
            .map(|flow| flow.state)
    };
    // Far from the window: they end where they begin.
    for (flags, sequence) in [
        (RST, 1 << 30),
        (ACK, 1 << 30),
        (RST | ACK, ANSWERED),
        (ACK, 2_000_000_000),
    ] {
        assert!(!arrives(&mut world, H2, 40_000, flags, (sequence, BEGUN + 1)));
    }
    assert_eq!(world.drops(1, DropReason::TcpOutOfWindow), 4);
    // In the window, and a request amidst: whoever gets them asks back.
    assert!(arrives(&mut world, H2, 40_000, RST, (ANSWERED + 100, 0)));
    assert!(arrives(&mut world, H2, 40_000, SYN, (77, 0)));
    assert_eq!(state(&mut world), Some(FlowState::Established));
    assert!(arrives(&mut world, H2, 40_000, RST, (ANSWERED + 1, 0)));
    assert_eq!(state(&mut world), Some(FlowState::Closed));
    world.run_for(Duration::from_secs(11));
    assert_eq!(state(&mut world), None);
    assert!(!arrives(&mut world, H1, 40_000, ACK, (BEGUN + 1, ANSWERED + 1)));
    connect(&mut world, 40_000);
}

fn an_icmp_error_must_quote_what_is_on_its_way() {
    let mut world = deaf();
    connect(&mut world, 40_000);
    let sent = segment(&mut world, H1, 40_000, ACK, (BEGUN + 1, ANSWERED + 1), &[7; 100]);
    world.send(H1, sent.clone());
    world.received(H2);
    for (sequence, believed) in [(BEGUN + 1, true), (BEGUN + 1_000_000, false)] {
        let mut quoted = sent.clone();
        quoted[24..28].copy_from_slice(&sequence.to_be_bytes());
        // An echo request that is made an error: unreachable, with the segment behind eight bytes.
        let mut error = world.between(H2, H1, false).echo(0, &quoted[..28]);
        error[20..22].copy_from_slice(&[3, 1]);
        world.send(H2, error);
        let received = world.received(H1);
        assert_eq!(received.len(), usize::from(believed), "{sequence}");
        assert!(
            received
                .iter()
                .all(|packet| icmp_type(&packet.bytes) == Some((3, 1)))
        );
    }
    assert_eq!(world.drops(1, DropReason::NoFlow), 1);
}

fn what_neighbours_on_a_link_tell_each_other_passes_no_network() {
    let mut world = deaf();
    connect(&mut world, 40_000);
    let sent = segment(&mut world, H1, 40_000, ACK, (BEGUN + 1, ANSWERED + 1), &[7; 100]);
    world.received(H1);
    // A redirect may quote what is live, and router and neighbour discovery are no errors.
    let messages: [(bool, &[u8]); 3] = [
        (false, &[5, 9, 10]),
        (true, &[133, 134, 135, 136, 137]),
        (true, &[143]),
    ];
    let mut made = 0;
    for (ipv6, kinds) in messages {
        for kind in kinds {
            let mut message = world.between(H2, H1, ipv6).echo(0, &sent[..28]);
            message[if ipv6 { 40 } else { 20 }] = *kind;
            world.send(H2, message);
            made += 1;
        }
    }
    assert!(world.received(H1).is_empty());
    assert_eq!(world.drops(1, DropReason::NoFlow), made);
}

fn a_service_has_no_more_connections_than_its_document_says() {
    let mut world = deaf();
    world.run_for(LATER);
    let limits = |connections, new_connections_per_second| Limits {
        connections,
        new_connections_per_second,
    };
    // The datagram that made the session is a flow of it as well, counted from its next packet on.
    world.change_plan(1, |plan| plan.services = vec![web(None, limits(Some(2), None))]);
    for port in [1, 2] {
        assert!(arrives(&mut world, H1, port, SYN, (BEGUN, 0)));
    }
    assert!(!arrives(&mut world, H1, 3, SYN, (BEGUN, 0)));
    assert_eq!(world.drops(1, DropReason::ServiceConnections), 1);
    assert!(arrives(&mut world, H2, 1, RST | ACK, (0, BEGUN + 1)));
    world.run_for(Duration::from_secs(300));
    assert!(
        arrives(&mut world, H1, 3, SYN, (BEGUN, 0)),
        "what is forgotten gives its place back"
    );
    world.change_plan(1, |plan| plan.services = vec![web(None, limits(None, Some(3)))]);
    let begun = (10..20).filter(|port| arrives(&mut world, H1, *port, SYN, (BEGUN, 0)));
    let begun = begun.count();
    assert!(
        (3..=5).contains(&begun),
        "three at once, and one each third of the second it took: {begun}"
    );
    assert_eq!(world.drops(1, DropReason::ConnectionRate), 10 - begun as u64);
}

fn what_a_policy_ends_is_not_picked_up_again() {
    let mut world = deaf();
    connect(&mut world, 40_000);
    let only_5432 = Access {
        line: 4,
        on_deny: OnDeny::Drop,
        rules: vec![Rule {
            line: 5,
            other: Selector::Any,
            protocols: vec![ProtocolMatch::Tcp(vec![PortRange {
                first: 5432,
                last: 5432,
            }])],
            action: Action::Allow,
        }],
    };
    world.change_plan(1, |plan| {
        plan.services = vec![web(Some(only_5432), Limits::default())]
    });
    for _ in 0..3 {
        assert!(!arrives(
            &mut world,
            H1,
            40_000,
            ACK | PSH,
            (BEGUN + 1, ANSWERED + 1)
        ));
        // From here the same ends might be connected, but nobody has begun that.
        assert!(!arrives(&mut world, H2, 40_000, ACK, (ANSWERED + 1, BEGUN + 1)));
    }
    assert_eq!(world.drops(1, DropReason::InboundDenied), 3);
    assert_eq!(world.drops(1, DropReason::MidStream), 3);
    world.change_plan(1, |plan| plan.services.clear());
    assert!(
        arrives(&mut world, H1, 40_000, ACK, (BEGUN + 1, ANSWERED + 1)),
        "what is granted again goes on"
    );
    assert!(arrives(&mut world, H2, 40_000, ACK, (ANSWERED + 1, BEGUN + 1)));
}

fn flows_are_listed_from_the_side_that_began() {
    let mut world = deaf();
    connect(&mut world, 40_000);
    let data = segment(&mut world, H2, 40_000, ACK, (ANSWERED + 1, BEGUN + 1), &[7; 500]);
    world.send(H2, data);
    world.run_for(Duration::from_secs(3));
    for host in [0, 1] {
        let flows = flows(&mut world, host);
        let states: Vec<_> = flows
            .iter()
            .map(|flow| (flow.packet.protocol, flow.state))
            .collect();
        assert!(states.contains(&(17, FlowState::Unanswered)), "{states:?}");
        let flow = flows.iter().find(|flow| flow.packet.protocol == 6).unwrap();
        assert_eq!(flow.state, FlowState::Established);
        assert_eq!(
            (flow.packet.source_port, flow.packet.destination_port),
            (40_000, 80)
        );
        assert_eq!((flow.packets, flow.bytes), ([2, 2], [80, 580]));
        assert!((3000..3200).contains(&flow.idle_ms), "{}", flow.idle_ms);
    }
}
