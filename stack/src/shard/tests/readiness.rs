//! Questions to instances that smoltcp keeps too, in simulated time: what they answer, and what is made of it.

use super::*;
use crate::event::Event;
use crate::plan::{HttpPath, ProbeFailures, ProbeInterval, Readiness, ReadinessQuestion};
use crate::responder::dns::tests::site::{self, BLUE, HISTORIAN, SHOP};
use crate::responder::dns::tests::streams::{Link, time};
use crate::responder::readiness::{MOST_DISCARDED, ProbeError, SPREAD};
use crate::stats::ReadinessReport;
use crate::wire::tcp_flags;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp as socket;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::num::NonZeroU16;

const INTERVAL: Duration = Duration::from_millis(200);
const WEB: u16 = 8080;
const SERVICE: [u8; 4] = [172, 19, 0, 1];

/// What an instance does with what it is asked.
#[derive(Clone)]
enum Serves {
    /// Nothing listens.
    Nothing,
    /// Nothing comes back at all.
    Silence,
    /// It takes connections, and ends them when the other side does.
    Connections,
    /// It answers a request with these bytes, as many of them at a time, every 10 ms.
    Answer(Vec<u8>, usize),
    /// It takes a request, and hangs up.
    HangsUp,
}

/// A container behind a port.
struct Container {
    port: PortId,
    serves: Serves,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    link: Link,
    request: Vec<u8>,
    answered: usize,
    /// Connections that were reset by the other side.
    resets: usize,
}

impl Container {
    fn new(port: PortId, address: Ipv4Addr, now: Instant) -> Self {
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(port.0) + 77;
        let mut interface = Interface::new(config, &mut link, time(now));
        interface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::from(address), 0)).unwrap());
        let buffer = || socket::SocketBuffer::new(vec![0; 65_535]);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket::Socket::new(buffer(), buffer()));
        Self {
            port,
            serves: Serves::Nothing,
            interface,
            sockets,
            handle,
            link,
            request: Vec::new(),
            answered: 0,
            resets: 0,
        }
    }

    fn socket(&mut self) -> &mut socket::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn serve(&mut self, serves: Serves) {
        self.serves = serves;
        self.socket().abort();
    }

    /// Takes in what came, and does what its program would.
    fn step(&mut self, now: Instant) {
        let inbox = std::mem::take(&mut self.link.inbox);
        if matches!(self.serves, Serves::Silence) {
            return;
        }
        self.work(now);
        for packet in inbox {
            self.resets += usize::from(packet[33] & tcp_flags::RST != 0);
            self.link.inbox.push_back(packet);
            self.work(now);
        }
    }

    fn work(&mut self, now: Instant) {
        self.interface.poll(time(now), &mut self.link, &mut self.sockets);
        let serves = self.serves.clone();
        let socket = self.sockets.get_mut::<socket::Socket<'_>>(self.handle);
        match serves {
            Serves::Nothing | Serves::Silence => return,
            Serves::Connections | Serves::Answer(..) | Serves::HangsUp => {}
        }
        if matches!(socket.state(), socket::State::Closed | socket::State::TimeWait) {
            socket.abort();
            socket.listen(WEB).unwrap();
            self.request.clear();
            self.answered = 0;
        }
        let mut room = [0; 4096];
        while let Ok(length @ 1..) = socket.recv_slice(&mut room) {
            self.request.extend_from_slice(&room[..length]);
        }
        let asked = self.request.ends_with(b"\r\n\r\n");
        match serves {
            Serves::Answer(answer, step) if asked => {
                let end = answer.len().min(self.answered + step);
                self.answered += socket.send_slice(&answer[self.answered..end]).unwrap_or(0);
                if self.answered == answer.len() {
                    socket.close();
                }
            }
            Serves::HangsUp if asked => socket.close(),
            _ => {}
        }
        if socket.state() == socket::State::CloseWait && !asked {
            socket.close();
        }
        self.interface.poll(time(now), &mut self.link, &mut self.sockets);
    }
}

/// The shards of a host, and the containers behind its ports.
struct World {
    shards: Vec<Host>,
    /// The shard that reads the ports.
    reader: usize,
    containers: Vec<Container>,
    plan: Plan,
    snapshot: Arc<Snapshot>,
    offload: Offload,
    now: Instant,
    told: Vec<(Duration, PortId, bool)>,
    /// What was sent to ports: when, to which, and from which port.
    asked: Vec<(Duration, PortId, u16)>,
}

fn readiness(question: ReadinessQuestion, failures: u64) -> Readiness {
    Readiness {
        question,
        interval: ProbeInterval::try_from(INTERVAL.as_millis() as u64).unwrap(),
        failures: ProbeFailures::try_from(failures).unwrap(),
    }
}

fn tcp_port() -> ReadinessQuestion {
    let port = NonZeroU16::new(WEB).unwrap();
    ReadinessQuestion::Tcp { port }
}

fn http(path: &str) -> ReadinessQuestion {
    ReadinessQuestion::Http {
        port: NonZeroU16::new(WEB).unwrap(),
        path: HttpPath::try_from(path.to_owned()).unwrap(),
    }
}

impl World {
    /// One host, of `shards` shards; the instance behind each of `ports` is asked the same.
    fn new(shards: u8, ports: &[PortId], readiness: &Readiness) -> Self {
        let mut plan = site::plan();
        for instance in &mut plan.instances {
            instance.readiness = ports.contains(&instance.port).then(|| readiness.clone());
        }
        let snapshot = Snapshot::compile(&plan, None);
        let containers = plan.instances.iter();
        let containers = containers.map(|instance| {
            let address = instance.memberships[0].ipv4;
            Container::new(instance.port, address, now())
        });
        let mut world = Self {
            shards: (0..shards)
                .map(|number| names::shard_of_site(number, shards))
                .collect(),
            reader: 0,
            containers: containers.collect(),
            plan,
            snapshot,
            offload: Offload::NONE,
            now: now(),
            told: Vec::new(),
            asked: Vec::new(),
        };
        for host in &mut world.shards {
            host.out.handed_over = Some(Vec::new());
        }
        world.install();
        world
    }

    /// One shard that asks the shop's instance alone.
    fn of_shop(question: ReadinessQuestion, failures: u64) -> Self {
        Self::new(1, &[SHOP], &readiness(question, failures))
    }

    fn install(&mut self) {
        self.snapshot = Snapshot::compile(&self.plan, Some(&self.snapshot));
        for host in &mut self.shards {
            host.shard
                .install(Arc::clone(&self.snapshot), self.now, &mut host.out);
        }
    }

    fn serve(&mut self, port: PortId, serves: Serves) {
        self.container(port).serve(serves);
    }

    fn container(&mut self, port: PortId) -> &mut Container {
        let mut containers = self.containers.iter_mut();
        containers.find(|container| container.port == port).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.now.saturating_since(now())
    }

    /// Carries packets until nobody has any.
    fn settle(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for number in 0..self.shards.len() {
                for (port, packet, _) in std::mem::take(&mut self.shards[number].out.delivered) {
                    quiet = false;
                    if packet[33] & tcp_flags::SYN != 0 {
                        let from = u16::from_be_bytes([packet[20], packet[21]]);
                        self.asked.push((self.elapsed(), port, from));
                    }
                    self.container(port).link.inbox.push_back(packet);
                }
                let handed_over = self.shards[number].out.handed_over.replace(Vec::new());
                for (to, handover) in handed_over.unwrap_or_default() {
                    quiet = false;
                    let other = &mut self.shards[usize::from(to.0)];
                    let spent = other.shard.handle_handover(handover, self.now, &mut other.out);
                    self.shards[number].shard.recycle(spent);
                }
                while let Some(event) = self.shards[number].shard.poll_event() {
                    match event {
                        Event::Readiness { port, ready } => self.told.push((self.elapsed(), port, ready)),
                        Event::Question(_) | Event::Queries(_) => panic!("nobody asks for names"),
                    }
                }
            }
            for number in 0..self.containers.len() {
                self.containers[number].step(self.now);
                while let Some(packet) = self.containers[number].link.outbox.pop_front() {
                    quiet = false;
                    self.send(self.containers[number].port, &packet);
                }
            }
        }
    }

    /// A packet of an instance, as its kernel would write it.
    fn send(&mut self, port: PortId, packet: &[u8]) {
        let mut packet = packet.to_vec();
        if self.offload != Offload::NONE {
            packet[36..38].fill(0);
        }
        let mut batch = Batch::new(1);
        batch.vacant().unwrap().fill(&packet, self.offload);
        batch.advance();
        let host = &mut self.shards[self.reader];
        host.shard.handle_port(port, &mut batch, self.now, &mut host.out);
    }

    /// Lets time pass, as workers do.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.settle();
        while self.now < end {
            let due = self
                .shards
                .iter()
                .filter_map(|host| host.shard.poll_timeout())
                .min();
            let soon = self.now + Duration::from_millis(10);
            self.now = due.unwrap_or(end).max(self.now).min(soon).min(end);
            for host in &mut self.shards {
                host.shard.handle_timeout(self.now, &mut host.out);
            }
            self.settle();
        }
    }

    fn report(&self, port: PortId) -> Option<ReadinessReport> {
        let reports = self.shards.iter().flat_map(|host| host.shard.report().readiness);
        let mut reports = reports.filter(|report| report.port == port);
        let report = reports.next();
        assert_eq!(reports.next(), None, "one shard asks");
        report
    }

    /// Whether the shop's is ready, failures in a row, and why.
    fn shop(&self) -> (Option<bool>, u32, Option<ProbeError>) {
        let report = self.report(SHOP).unwrap();
        (report.ready, report.failures, report.error)
    }

    fn changes(&mut self) -> Vec<bool> {
        let told = std::mem::take(&mut self.told);
        told.into_iter().map(|(_, _, ready)| ready).collect()
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.shards.iter().map(|host| host.drops(reason)).sum()
    }
}

#[test]
fn who_takes_a_connection_is_ready_and_it_ends_in_peace() {
    for shards in 1..=3 {
        for reader in 0..usize::from(shards) {
            let mut world = World::new(shards, &[SHOP, HISTORIAN, BLUE], &readiness(tcp_port(), 1));
            world.reader = reader;
            for port in [SHOP, HISTORIAN, BLUE] {
                world.serve(port, Serves::Connections);
                assert_eq!(world.report(port).unwrap().ready, None);
            }
            world.pass(INTERVAL * 2);
            for port in [SHOP, HISTORIAN, BLUE] {
                let report = world.report(port).unwrap();
                assert_eq!((report.ready, report.failures), (Some(true), 0));
                assert!((1..=2).contains(&report.asked));
                let container = world.container(port);
                assert_eq!(
                    (container.socket().state(), container.resets),
                    (socket::State::Listen, 0)
                );
            }
            let mut told: Vec<_> = world
                .told
                .iter()
                .map(|(_, port, ready)| (*port, *ready))
                .collect();
            told.sort_unstable();
            assert_eq!(told, [(SHOP, true), (HISTORIAN, true), (BLUE, true)]);
            assert_eq!(world.drops(DropReason::ServiceAddress), 0);
        }
    }
}

#[test]
fn a_refusal_and_silence_are_failures_and_only_so_many_in_a_row_count() {
    let mut world = World::of_shop(tcp_port(), 3);
    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    assert_eq!(
        (world.shop(), world.changes()),
        ((Some(true), 0, None), vec![true])
    );

    world.serve(SHOP, Serves::Nothing);
    world.pass(INTERVAL * 2);
    assert_eq!(world.shop(), (Some(true), 2, Some(ProbeError::Refused)));
    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    assert_eq!((world.shop(), world.changes()), ((Some(true), 0, None), vec![]));

    world.serve(SHOP, Serves::Nothing);
    world.pass(INTERVAL * 3);
    assert_eq!(world.shop(), (Some(false), 3, Some(ProbeError::Refused)));
    assert_eq!(world.changes(), [false]);

    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    world.serve(SHOP, Serves::Silence);
    world.pass(INTERVAL * 4 + Duration::from_millis(10));
    assert_eq!(world.shop(), (Some(false), 3, Some(ProbeError::Silent)));
    assert_eq!(world.changes(), [true, false]);
}

#[test]
fn a_new_instance_is_unknown_until_its_first_success_or_so_many_failures() {
    let mut world = World::of_shop(tcp_port(), 3);
    world.pass(INTERVAL * 2);
    assert_eq!(world.shop(), (None, 2, Some(ProbeError::Refused)));
    assert!(world.changes().is_empty());
    world.pass(INTERVAL);
    assert_eq!((world.shop().0, world.changes()), (Some(false), vec![false]));
}

#[test]
fn an_instance_that_flaps_is_told_of_at_every_change() {
    let mut world = World::of_shop(tcp_port(), 1);
    for number in 0..6 {
        let up = number % 2 == 0;
        world.serve(SHOP, if up { Serves::Connections } else { Serves::Nothing });
        let before = world.elapsed();
        world.pass(INTERVAL);
        let changes: Vec<_> = world.told.drain(..).collect();
        let [(at, SHOP, ready)] = changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!(ready, up);
        assert!(at - before <= INTERVAL);
    }
}

fn answer(status: &str) -> Serves {
    Serves::Answer(
        format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").into_bytes(),
        1000,
    )
}

#[test]
fn an_http_answer_makes_ready_by_its_status_alone() {
    let cases = [
        ("200 OK", None),
        ("204 No Content", None),
        ("302 Found", None),
        ("399 Whatever", None),
        ("400 Bad Request", Some(ProbeError::Status(400))),
        ("500 Internal Server Error", Some(ProbeError::Status(500))),
        ("503", Some(ProbeError::Status(503))),
        ("999 Nonsense", Some(ProbeError::Status(999))),
    ];
    for (status, error) in cases {
        let mut world = World::of_shop(http("/ready?full=1"), 1);
        world.serve(SHOP, answer(status));
        world.pass(INTERVAL);
        assert_eq!(world.shop().0, Some(error.is_none()), "{status}");
        assert_eq!(world.shop().2, error, "{status}");
        assert_eq!(world.container(SHOP).resets, 0, "{status}");
    }
}

#[test]
fn the_request_says_what_is_asked_and_of_whom() {
    let mut world = World::of_shop(http("/ready?full=1"), 1);
    // It goes on answering, so that its request is still there.
    world.serve(SHOP, Serves::Answer(vec![b'x'; 10_000], 1));
    world.pass(INTERVAL);
    let request = String::from_utf8(world.container(SHOP).request.clone()).unwrap();
    let expected = "GET /ready?full=1 HTTP/1.1\r\nHost: 172.19.1.2:8080\r\nUser-Agent: tidegate\r\n\
                    Accept: */*\r\nConnection: close\r\n\r\n";
    assert_eq!(request, expected);
}

#[test]
fn what_answers_too_slowly_endlessly_or_something_else_is_not_ready() {
    let headless = [&b"HTTP/1.1 103 Early Hints\r\n"[..], &vec![b'x'; 6_000]].concat();
    let cases = [
        (Serves::Silence, ProbeError::Silent),
        (Serves::Connections, ProbeError::NoStatus),
        (Serves::HangsUp, ProbeError::Ended),
        (
            Serves::Answer(b"HTTP/1.1 200 OK\r\n".to_vec(), 0),
            ProbeError::NoStatus,
        ),
        (
            Serves::Answer(b"SSH-2.0-OpenSSH\r\n".to_vec(), 1000),
            ProbeError::NotHttp,
        ),
        (Serves::Answer(headless, 10_000), ProbeError::NotHttp),
    ];
    for (serves, error) in cases {
        let mut world = World::of_shop(http("/"), 1);
        world.serve(SHOP, serves);
        world.pass(INTERVAL * 2);
        assert_eq!(world.shop().0, Some(false));
        assert_eq!(world.shop().2, Some(error));
    }
    // A byte at a time is in time as long as its status is.
    let mut world = World::of_shop(http("/"), 1);
    world.serve(SHOP, Serves::Answer(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), 1));
    world.pass(INTERVAL * 2);
    assert_eq!(world.shop().0, Some(true));
}

#[test]
fn a_huge_answer_is_cut_after_its_status() {
    for (length, resets) in [(MOST_DISCARDED / 2, 0), (MOST_DISCARDED * 4, 1)] {
        let mut bytes = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        bytes.resize(length, b'x');
        let mut world = World::of_shop(http("/"), 1);
        world.serve(SHOP, Serves::Answer(bytes, usize::MAX / 2));
        while world.asked.is_empty() {
            world.pass(Duration::from_millis(1));
        }
        world.pass(INTERVAL / 2);
        assert_eq!(world.shop().0, Some(true));
        assert_eq!(world.container(SHOP).resets, resets, "{length}");
    }
}

#[test]
fn partial_checksums_of_a_device_with_offloads_are_taken() {
    let mut world = World::of_shop(http("/"), 1);
    world.offload = Offload {
        segmentation: Segmentation::None,
        partial_checksum: Some((20, 16)),
    };
    world.serve(SHOP, answer("200 OK"));
    world.pass(INTERVAL);
    assert_eq!(world.shop(), (Some(true), 0, None));
}

#[test]
fn the_door_is_open_for_the_very_answer_alone() {
    let mut world = World::new(1, &[SHOP], &readiness(tcp_port(), 1));
    world.serve(SHOP, Serves::Silence);
    while world.asked.is_empty() {
        world.pass(Duration::from_millis(1));
    }
    let open = world.asked[0].2;
    let segment = |source: [u8; 4], from: u16, to: u16| {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(source, SERVICE, 64)
            .tcp(from, to, 1_000, 8_192)
            .syn()
            .ack(1)
            .write(&mut packet, b"")
            .unwrap();
        packet
    };
    let shop = [172, 19, 1, 2];
    // The blue one has the shop's very addresses.
    let strangers = [
        (BLUE, segment(shop, WEB, open)),
        (SHOP, segment(shop, WEB + 1, open)),
        (SHOP, segment(shop, WEB, open ^ 1)),
        (SHOP, segment(shop, WEB, 80)),
        (HISTORIAN, segment([172, 19, 1, 3], WEB, open)),
    ];
    for (number, (port, packet)) in strangers.iter().enumerate() {
        world.send(*port, packet);
        assert_eq!(world.drops(DropReason::ServiceAddress), number as u64 + 1);
        assert!(world.shards[0].out.delivered.is_empty());
    }
    world.send(HISTORIAN, &segment(shop, WEB, open));
    assert_eq!(world.drops(DropReason::SourceNotOwn), 1);
    assert_eq!(world.shop(), (None, 0, None));

    // What acknowledges another SYN is refused by TCP itself (RFC 9293 §3.10.7.3), and changes nothing.
    world.send(SHOP, &segment(shop, WEB, open));
    assert_eq!(world.drops(DropReason::ServiceAddress), 5);
    assert_eq!(world.shop(), (None, 0, None));
    let said = world.shards[0].out.delivered.drain(..);
    let flags: Vec<_> = said.map(|(_, packet, _)| packet[33] & tcp_flags::RST).collect();
    assert_eq!(flags, [tcp_flags::RST]);
}

#[test]
fn inbound_rules_are_not_asked() {
    use crate::plan::{Access, OnDeny, Service};
    let mut world = World::of_shop(tcp_port(), 1);
    let nobody = Access {
        line: 1,
        on_deny: OnDeny::Drop,
        rules: Vec::new(),
    };
    world.plan.services.push(Service {
        id: world.plan.instances[0].service_id(),
        document: "shop.yaml".into(),
        inbound: Some(nobody.clone()),
        outbound: Some(nobody),
        limits: Default::default(),
    });
    world.install();
    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    assert_eq!(world.shop().0, Some(true));
}

#[test]
fn a_port_that_goes_while_it_is_asked_is_forgotten() {
    let mut world = World::of_shop(tcp_port(), 1);
    world.serve(SHOP, Serves::Silence);
    while world.asked.is_empty() {
        world.pass(Duration::from_millis(1));
    }
    world.plan.instances.retain(|instance| instance.port != SHOP);
    world.install();
    world.pass(INTERVAL * 3);
    assert_eq!(world.report(SHOP), None);
    assert_eq!((world.asked.len(), world.changes()), (1, vec![]));
    assert_eq!(world.drops(DropReason::UnknownPort), 0);
}

#[test]
fn who_is_asked_something_else_stays_what_it_is_until_that_is_answered() {
    let mut world = World::of_shop(tcp_port(), 2);
    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    let epoch = world.shards[0].shard.report().epoch;
    world.plan.instances[0].readiness = Some(readiness(http("/"), 2));
    world.install();
    assert_eq!(world.shards[0].shard.report().epoch, epoch, "no flow hears of it");
    assert_eq!(world.shop().0, Some(true));
    world.serve(SHOP, answer("500 Oh"));
    world.pass(INTERVAL);
    assert_eq!(world.shop(), (Some(true), 1, Some(ProbeError::Status(500))));
    world.pass(INTERVAL);
    assert_eq!(
        (world.shop().0, world.changes()),
        (Some(false), vec![true, false])
    );

    world.plan.instances[0].readiness = None;
    world.install();
    assert_eq!(world.report(SHOP), None);
}

#[test]
fn a_datapath_that_does_not_read_the_ports_asks_nobody() {
    let mut world = World::of_shop(tcp_port(), 1);
    world.serve(SHOP, Serves::Connections);
    world.pass(INTERVAL);
    let host = &mut world.shards[0];
    host.shard.set_reads_ports(false, world.now, &mut host.out);
    world.settle();
    let asked = world.asked.len();
    world.serve(SHOP, Serves::Nothing);
    world.pass(INTERVAL * 5);
    assert_eq!((world.asked.len(), world.shop()), (asked, (Some(true), 0, None)));
    let host = &mut world.shards[0];
    host.shard.set_reads_ports(true, world.now, &mut host.out);
    world.pass(INTERVAL);
    assert_eq!(
        (world.shop().0, world.changes()),
        (Some(false), vec![true, false])
    );
}

#[test]
fn ports_are_asked_at_times_of_their_own_from_ports_that_do_not_come_back() {
    let mut world = World::new(1, &[SHOP, HISTORIAN, BLUE], &readiness(tcp_port(), 1));
    for port in [SHOP, HISTORIAN, BLUE] {
        world.serve(port, Serves::Connections);
    }
    world.pass(INTERVAL * 50);
    assert!(INTERVAL < SPREAD);
    for port in [SHOP, HISTORIAN, BLUE] {
        let of_port: Vec<_> = world
            .asked
            .iter()
            .filter(|(_, asked, _)| *asked == port)
            .collect();
        assert_eq!(of_port.len(), 50);
        assert!(of_port[0].0 < INTERVAL);
        assert!(of_port.windows(2).all(|pair| pair[1].0 - pair[0].0 == INTERVAL));
        let mut from: Vec<_> = of_port.iter().map(|(_, _, from)| *from).collect();
        assert!(from.iter().all(|from| *from >= 49_152));
        assert!(!from.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)));
        from.sort_unstable();
        from.dedup();
        assert_eq!(from.len(), 50);
    }
    let first: Vec<_> = world.asked.iter().take(3).map(|(at, _, _)| *at).collect();
    assert!(first.windows(2).all(|pair| pair[0] < pair[1]), "{first:?}");
}
