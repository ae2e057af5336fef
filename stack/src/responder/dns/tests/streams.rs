//! Connections with smoltcp at the other end too, in simulated time.

use super::site::{BLUE, HISTORIAN, SHOP, addresses};
use super::{query, told, words};
use crate::plan::{Mtu, PortId};
use crate::responder::dns::streams::{
    CLOSING, IDLE, LONGEST_QUERY, MOST, MOST_OF_PORT, SLOWEST, Said, Segment, Streams, Surroundings, Taken,
};
use crate::responder::dns::{PORT, Rotation, Transport};
use crate::time::Instant;
use crate::wire::{Headers, Transport as Layer4, tcp_flags};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// A container with one connection to its service address.
struct Client {
    port: PortId,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    link: Link,
    heard: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct Link {
    pub(crate) inbox: VecDeque<Vec<u8>>,
    pub(crate) outbox: VecDeque<Vec<u8>>,
}

pub(crate) struct Inbound(Vec<u8>);
pub(crate) struct Outbound<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Inbound {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Outbound<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let written = write(&mut packet);
        self.0.push_back(packet);
        written
    }
}

impl Device for Link {
    type RxToken<'a> = Inbound;
    type TxToken<'a> = Outbound<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Inbound, Outbound<'_>)> {
        let packet = self.inbox.pop_front()?;
        Some((Inbound(packet), Outbound(&mut self.outbox)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outbound<'_>> {
        Some(Outbound(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1390;
        capabilities
    }
}

impl Client {
    fn new(port: PortId, source: IpAddr, service: IpAddr, local_port: u16, now: Instant) -> Self {
        let mut link = Link::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from(local_port);
        let mut interface = Interface::new(config, &mut link, time(now));
        interface.update_ip_addrs(|list| list.push(IpCidr::new(IpAddress::from(source), 0)).unwrap());
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let remote = (IpAddress::from(service), PORT);
        socket.connect(interface.context(), remote, local_port).unwrap();
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self {
            port,
            interface,
            sockets,
            handle,
            link,
            heard: Vec::new(),
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn send(&mut self, bytes: &[u8]) {
        assert_eq!(self.socket().send_slice(bytes), Ok(bytes.len()));
    }

    fn state(&mut self) -> tcp::State {
        self.socket().state()
    }

    /// The whole messages that came, in words, each for the query that it answers.
    fn answers(&self, asked: &[&str]) -> Vec<String> {
        let mut rest = self.heard.as_slice();
        let mut answers = Vec::new();
        for asked in asked {
            let Some((prefix, behind)) = rest.split_first_chunk::<2>() else {
                break;
            };
            let (message, behind) = behind.split_at(usize::from(u16::from_be_bytes(*prefix)));
            answers.push(words(&query(asked), Some(message)));
            rest = behind;
        }
        answers
    }
}

pub(crate) fn time(now: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap())
}

/// The shard's side, and all clients.
struct World {
    streams: Streams,
    clients: Vec<Client>,
    rotation: Rotation,
    sent: VecDeque<(PortId, Vec<u8>)>,
    asked: usize,
    /// The connections that wait for an answer from elsewhere.
    waiting: Vec<u64>,
    refused: usize,
    now: Instant,
}

struct Shard<'a> {
    rotation: &'a mut Rotation,
    sent: &'a mut VecDeque<(PortId, Vec<u8>)>,
    asked: &'a mut usize,
    waiting: &'a mut Vec<u64>,
}

impl Surroundings for Shard<'_> {
    fn answer(&mut self, port: PortId, connection: u64, query: &[u8], out: &mut [u8]) -> Said {
        *self.asked += 1;
        match told(port, query, Transport::Tcp, self.rotation) {
            Some(response) if response.starts_with(b"forward") => {
                self.waiting.push(connection);
                Said::Later
            }
            Some(response) => {
                out[..response.len()].copy_from_slice(&response);
                Said::Answer(response.len())
            }
            None => Said::Nothing,
        }
    }

    fn send(&mut self, port: PortId, packet: &[u8]) {
        assert!(packet.len() <= 1390);
        self.sent.push_back((port, packet.to_vec()));
    }
}

impl World {
    fn new() -> Self {
        Self {
            streams: Streams::new(1, 7),
            clients: Vec::new(),
            rotation: Rotation::default(),
            sent: VecDeque::new(),
            asked: 0,
            waiting: Vec::new(),
            refused: 0,
            now: Instant::from_nanos(1_000_000_000),
        }
    }

    fn connect(&mut self, port: PortId, local_port: u16) -> usize {
        let (ipv4, _) = addresses(1, 1, 2);
        self.connect_from(port, ipv4.into(), Ipv4Addr::new(172, 19, 0, 1).into(), local_port)
    }

    fn connect_from(&mut self, port: PortId, source: IpAddr, service: IpAddr, local_port: u16) -> usize {
        self.clients
            .push(Client::new(port, source, service, local_port, self.now));
        self.settle();
        self.clients.len() - 1
    }

    /// Carries packets until nobody has any.
    fn settle(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for number in 0..self.clients.len() {
                let client = &mut self.clients[number];
                client
                    .interface
                    .poll(time(self.now), &mut client.link, &mut client.sockets);
                while let Some(packet) = self.clients[number].link.outbox.pop_front() {
                    quiet = false;
                    self.take(self.clients[number].port, &packet);
                }
            }
            while let Some((port, packet)) = self.sent.pop_front() {
                quiet = false;
                let headers = Headers::parse(&packet).unwrap();
                let local = headers.endpoints().destination_port;
                let is_its = |client: &&mut Client| {
                    client.port == port
                        && client
                            .sockets
                            .get::<tcp::Socket<'_>>(client.handle)
                            .local_endpoint()
                            == Some((IpAddress::from(headers.destination), local).into())
                };
                if let Some(client) = self.clients.iter_mut().find(is_its) {
                    client.link.inbox.push_back(packet);
                }
            }
        }
    }

    fn halves(&mut self) -> (&mut Streams, Shard<'_>) {
        let shard = Shard {
            rotation: &mut self.rotation,
            sent: &mut self.sent,
            asked: &mut self.asked,
            waiting: &mut self.waiting,
        };
        (&mut self.streams, shard)
    }

    /// Gives the first connection that waits an answer that says only to which query it belongs; whether it was there.
    fn resume(&mut self, asked: &str) -> bool {
        let connection = self.waiting.remove(0);
        let now = self.now;
        let (streams, mut shard) = self.halves();
        let there = streams.resume(connection, now, &mut shard, |_, room| {
            let mut answer = query(asked);
            answer[2] |= 0x80;
            answer[3] |= 0x80;
            room[..answer.len()].copy_from_slice(&answer);
            Some(answer.len())
        });
        self.settle();
        self.listen();
        there
    }

    fn take(&mut self, port: PortId, packet: &[u8]) {
        let now = self.now;
        let headers = Headers::parse(packet).unwrap();
        let Layer4::Tcp { flags, .. } = headers.transport else {
            panic!("{:?}", headers.transport)
        };
        let segment = Segment {
            port,
            mtu: Mtu::try_from(1390).unwrap(),
            endpoints: headers.endpoints(),
            begins: flags & !tcp_flags::PSH == tcp_flags::SYN,
            packet,
        };
        let (streams, mut shard) = self.halves();
        if streams.handle_segment(&segment, now, &mut shard) != Taken::Connection {
            self.refused += 1;
        }
    }

    /// Lets time pass, as a worker does; clients read what they hear.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.listen();
            self.settle();
            let due = self.streams.poll_timeout().unwrap_or(end);
            let soon = self.now + Duration::from_millis(50);
            self.now = due.max(self.now + Duration::from_millis(10)).min(soon).min(end);
            let now = self.now;
            let (streams, mut shard) = self.halves();
            streams.handle_timeout(now, &mut shard);
            self.settle();
            self.listen();
            if self.now == end {
                return;
            }
        }
    }

    fn listen(&mut self) {
        for client in &mut self.clients {
            let mut room = [0; 4096];
            while let Ok(length @ 1..) = client
                .sockets
                .get_mut::<tcp::Socket<'_>>(client.handle)
                .recv_slice(&mut room)
            {
                client.heard.extend_from_slice(&room[..length]);
            }
        }
    }

    fn ask(&mut self, client: usize, asked: &str) {
        let message = query(asked);
        let prefix = u16::try_from(message.len()).unwrap().to_be_bytes();
        self.clients[client].send(&[&prefix[..], &message].concat());
        self.settle();
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_answer_that_comes_later_is_waited_for_and_what_is_asked_behind_it_too() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    let other = world.connect(SHOP, 40_001);
    let asked = ["www.example.test A", "db-1.shop.internal A"];
    for asked in asked {
        world.ask(client, asked);
    }
    // Who waits holds nobody else up, and is not idle.
    world.ask(other, asked[1]);
    world.pass(Duration::from_secs(4));
    assert!(world.clients[client].heard.is_empty());
    assert!(world.clients[other].answers(&asked[1..])[0].starts_with("NOERROR aa"));

    assert!(world.resume(asked[0]));
    world.pass(SECOND);
    let answers = world.clients[client].answers(&asked);
    assert_eq!(answers[0], "NOERROR");
    assert!(answers[1].starts_with("NOERROR aa | = db-1"), "{answers:?}");
    assert_eq!(world.streams.cut(), 0);
}

#[test]
fn an_answer_for_who_has_hung_up_goes_nowhere_and_one_that_asked_and_closed_gets_it() {
    let mut world = World::new();
    let gone = world.connect(SHOP, 40_000);
    world.ask(gone, "www.example.test A");
    world.clients[gone].socket().abort();
    world.settle();
    assert!(!world.resume("www.example.test A"));

    let closed = world.connect(SHOP, 40_001);
    world.ask(closed, "www.example.test A");
    world.clients[closed].socket().close();
    world.pass(SECOND);
    assert!(world.resume("www.example.test A"));
    assert_eq!(
        world.clients[closed].answers(&["www.example.test A"]),
        ["NOERROR"]
    );
    world.pass(SECOND);
    assert!(world.streams.is_empty());
}

#[test]
fn queries_on_one_connection_are_answered_in_their_order() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    let asked = [
        "db-1.shop.internal A",
        "nobody.shop.internal A",
        "db-2.shop.internal A +edns=1232",
    ];
    // Pipelined: all of them at once, in one segment.
    let messages = asked.iter().map(|asked| query(asked)).flat_map(|message| {
        let prefix = u16::try_from(message.len()).unwrap().to_be_bytes();
        [&prefix[..], &message].concat()
    });
    let bytes: Vec<u8> = messages.collect();
    world.clients[client].send(&bytes);
    world.pass(SECOND);
    assert_eq!(
        world.clients[client].answers(&asked),
        [
            "NOERROR aa | = db-1.shop.internal. A 172.19.1.3",
            "NXDOMAIN aa | ! internal. SOA …",
            "NOERROR aa edns=1232 | = db-2.shop.internal. A 172.19.2.4",
        ]
    );
    world.ask(client, "db.historian.internal A");
    world.pass(SECOND);
    assert_eq!(world.asked, 4);
    assert_eq!(world.streams.len(), 1);
}

#[test]
fn a_query_may_come_a_byte_at_a_time() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    let asked = "db-1.shop.internal A";
    let message = query(asked);
    let prefix = u16::try_from(message.len()).unwrap().to_be_bytes();
    for byte in [&prefix[..], &message].concat() {
        world.clients[client].send(&[byte]);
        world.pass(Duration::from_millis(20));
    }
    assert_eq!(world.clients[client].answers(&[asked]).len(), 1);
}

#[test]
fn a_long_answer_comes_whole_to_a_slow_reader_too() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    let asked = ["many.shop.internal A"; 12];
    for asked in asked {
        world.ask(client, asked);
    }
    // 12 · 1,638 bytes: more than the client's window and our buffer hold together.
    assert!(
        world.asked < asked.len(),
        "nothing is read as long as nothing is taken"
    );
    world.pass(SECOND);
    let answers = world.clients[client].answers(&asked);
    assert_eq!(answers.len(), asked.len());
    assert!(answers.iter().all(|answer| answer.matches('=').count() == 100));
}

#[test]
fn ipv6_and_every_network_of_a_port_are_served() {
    let mut world = World::new();
    let (_, ipv6) = addresses(1, 1, 2);
    let own = world.connect_from(SHOP, ipv6.into(), "fd00:aaaa:bbbb:1::1".parse().unwrap(), 40_000);
    let (shared, _) = addresses(5, 1, 2);
    let further = world.connect_from(SHOP, shared.into(), "100.96.64.1".parse().unwrap(), 40_000);
    for client in [own, further] {
        world.ask(client, "db-1.shop.internal A");
    }
    world.pass(SECOND);
    for client in [own, further] {
        assert_eq!(
            world.clients[client].answers(&["db-1.shop.internal A"]),
            ["NOERROR aa | = db-1.shop.internal. A 172.19.1.3"]
        );
    }
}

#[test]
fn applications_with_equal_addresses_are_not_mixed_up() {
    let mut world = World::new();
    let clients = [SHOP, HISTORIAN, BLUE].map(|port| world.connect(port, 40_000));
    for client in clients {
        world.ask(client, "web-1.blue.internal A");
    }
    world.pass(SECOND);
    let answers = clients.map(|client| world.clients[client].answers(&["web-1.blue.internal A"]).concat());
    assert!(answers[0].starts_with("NXDOMAIN") && answers[1].starts_with("NXDOMAIN"));
    assert_eq!(answers[2], "NOERROR aa | = web-1.blue.internal. A 172.19.1.2");
}

#[test]
fn an_idle_connection_is_closed_after_ten_seconds() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    world.pass(SECOND * 6);
    world.ask(client, "db-1.shop.internal A");
    world.pass(IDLE - SECOND);
    assert_eq!(world.clients[client].state(), tcp::State::Established);
    world.pass(SECOND * 2);
    assert_eq!(world.clients[client].state(), tcp::State::CloseWait);
    world.clients[client].socket().close();
    world.pass(SECOND);
    assert_eq!((world.streams.len(), world.streams.cut()), (0, 0));
    assert_eq!(world.streams.poll_timeout(), None);
}

#[test]
fn who_does_not_close_its_end_is_cut() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    world.pass(IDLE + CLOSING + SECOND);
    assert_eq!((world.streams.len(), world.streams.cut()), (0, 1));
    assert_eq!(world.clients[client].state(), tcp::State::Closed);
}

#[test]
fn a_client_that_closes_gets_its_last_answers() {
    let mut world = World::new();
    let client = world.connect(SHOP, 40_000);
    let message = query("db-1.shop.internal A");
    let prefix = u16::try_from(message.len()).unwrap().to_be_bytes();
    world.clients[client].send(&[&prefix[..], &message].concat());
    world.clients[client].socket().close();
    world.pass(SECOND);
    assert_eq!(world.clients[client].answers(&["db-1.shop.internal A"]).len(), 1);
    assert_eq!((world.streams.len(), world.streams.cut()), (0, 0));
}

#[test]
fn a_slow_sender_is_cut_after_five_seconds_and_delays_nobody() {
    let mut world = World::new();
    let slow = world.connect(SHOP, 40_000);
    let quick = world.connect(HISTORIAN, 40_001);
    let message = query("db-1.shop.internal A");
    let mut bytes = [&[0, message.len() as u8][..], &message].concat().into_iter();
    let mut answered = 0;
    for second in 0..u32::try_from(SLOWEST.as_secs()).unwrap() {
        world.clients[slow].send(&[bytes.next().unwrap()]);
        world.ask(quick, "db-1.shop.internal A");
        world.listen();
        answered = world.clients[quick].answers(&["db-1.shop.internal A"; 9]).len();
        assert_eq!(answered, second as usize + 1, "at once");
        world.pass(SECOND);
    }
    assert_eq!(answered, 5);
    assert_eq!(world.clients[slow].state(), tcp::State::Closed);
    assert_eq!(world.clients[quick].state(), tcp::State::Established);
    assert_eq!((world.streams.len(), world.streams.cut()), (1, 1));
}

#[test]
fn what_is_no_query_is_cut() {
    let long = u16::try_from(LONGEST_QUERY + 1).unwrap().to_be_bytes();
    let response = [&[0, 12, 0, 0, 0x80][..], &[0; 9]].concat();
    for (number, bytes) in [&long[..], &[0, 0], &response].into_iter().enumerate() {
        let mut world = World::new();
        let client = world.connect(SHOP, 40_000);
        world.clients[client].send(bytes);
        world.pass(SECOND);
        assert_eq!(world.clients[client].state(), tcp::State::Closed, "{number}");
        assert_eq!((world.streams.len(), world.streams.cut()), (0, 1));
    }
}

#[test]
fn a_port_has_four_connections_and_a_host_sixty_four() {
    let mut world = World::new();
    for number in 0..u16::try_from(MOST_OF_PORT).unwrap() + 2 {
        world.connect(SHOP, 40_000 + number);
    }
    assert_eq!(world.streams.len(), MOST_OF_PORT);
    assert_eq!(world.refused, 2);
    world.connect(HISTORIAN, 40_000);
    assert_eq!(
        world.streams.len(),
        MOST_OF_PORT + 1,
        "another port isn't touched"
    );
    for number in 0..u16::try_from(MOST).unwrap() {
        world.connect(PortId(100 + u32::from(number)), 40_000 + number);
    }
    assert_eq!(world.streams.len(), MOST);
    assert!(Streams::new(64, 1).is_empty());
}

#[test]
fn connections_of_a_port_that_is_gone_are_forgotten() {
    let mut world = World::new();
    world.connect(SHOP, 40_000);
    world.connect(HISTORIAN, 40_000);
    world.streams.retain(|port| port == SHOP);
    assert_eq!(world.streams.len(), 1);
}

#[test]
fn first_sequence_numbers_do_not_tell_each_other() {
    let mut world = World::new();
    let mut numbers = Vec::new();
    for number in 0..4 {
        let (ipv4, _) = addresses(1, 1, 2);
        let service = Ipv4Addr::new(172, 19, 0, 1);
        let mut client = Client::new(SHOP, ipv4.into(), service.into(), 40_000 + number, world.now);
        client
            .interface
            .poll(time(world.now), &mut client.link, &mut client.sockets);
        let syn = client.link.outbox.pop_front().unwrap();
        world.take(SHOP, &syn);
        let (_, packet) = world.sent.pop_front().unwrap();
        let Layer4::Tcp { sequence, flags, .. } = Headers::parse(&packet).unwrap().transport else {
            panic!()
        };
        assert_eq!(flags, tcp_flags::SYN | tcp_flags::ACK);
        numbers.push(sequence);
    }
    let steps: Vec<u32> = numbers
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    assert!(steps[0] != steps[1] && steps[1] != steps[2], "{numbers:?}");
}
