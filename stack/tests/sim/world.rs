//! The clock, the hosts, and what is on its way between them.

use super::host::{Datagram, Host, Socket, runs};
use super::instance::Instance;
use super::link::{Conditions, Link, Tally};
use super::packets::{Crafted, Packet};
use super::plans::{Shape, Site, Told};
use mock_instant::MockClock;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::egress::LaneKind;
use tidegate_stack::plan::Plan;
use tidegate_stack::shard::Datagrams;
use tidegate_stack::stats::Report;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::Ecn;

/// An instance: its host's number, and its port.
pub(crate) type At = (usize, usize);

/// The first two ports of a host are of one application, the third is of another with the addresses of the first.
pub(crate) const H1: At = (0, 0);
pub(crate) const H1_SECOND: At = (0, 1);
pub(crate) const H1_BLUE: At = (0, 2);
pub(crate) const H2: At = (1, 0);
pub(crate) const H2_BLUE: At = (1, 2);

const SEED: u64 = 7;

/// Two hosts and a wire.
pub(crate) struct World {
    pub(crate) site: Site,
    pub(crate) link: Link,
    now: Instant,
    hosts: [Host; 2],
    /// Where hosts are that moved: their foreign lanes' addresses.
    moved: [Option<SocketAddr>; 2],
    on_the_way: BTreeMap<(Instant, u64), Arrival>,
    /// Numbers what is on its way, so that equal times keep their order.
    sequence: u64,
}

struct Arrival {
    host: usize,
    socket: Socket,
    datagram: Datagram,
}

impl World {
    /// Two hosts as they come, on a wire that loses nothing.
    pub(crate) fn quiet() -> Self {
        Self::with(Site::default(), Conditions::default())
    }

    pub(crate) fn with(site: Site, conditions: Conditions) -> Self {
        MockClock::set_time(Duration::ZERO);
        let now = Instant::ZERO;
        let conditions = Conditions {
            mtu: usize::from(site.mtu),
            ..conditions
        };
        Self {
            link: Link::new(conditions, SEED),
            now,
            moved: [None, None],
            hosts: [0, 1].map(|number| Host::new(&site, number, SEED, now)),
            on_the_way: BTreeMap::new(),
            sequence: 0,
            site,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    pub(crate) fn instance(&mut self, (host, port): At) -> &mut Instance {
        &mut self.hosts[host].instances[port]
    }

    pub(crate) fn report(&self, host: usize) -> Report {
        self.hosts[host].report()
    }

    /// How many packets a host dropped for a reason.
    pub(crate) fn drops(&self, host: usize, reason: DropReason) -> u64 {
        self.report(host)
            .drops
            .iter()
            .filter(|drop| drop.reason == reason)
            .map(|drop| drop.packets)
            .sum()
    }

    /// All drops of a host, to be read in a failure.
    pub(crate) fn all_drops(&self, host: usize) -> Vec<(DropReason, u64)> {
        self.report(host)
            .drops
            .iter()
            .map(|drop| (drop.reason, drop.packets))
            .collect()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.link.tally
    }

    /// Takes the cipher out of the tunnel between the hosts, so that the wire can be read.
    pub(crate) fn lay_open(&mut self) {
        let now = self.now;
        self.hosts.iter_mut().for_each(|host| host.lay_open(now));
    }

    /// Puts the plan that the site has for a host in force, changed.
    pub(crate) fn change_plan(&mut self, host: usize, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.site.plan(host);
        change(&mut plan);
        self.hosts[host].change_plan(&plan, self.now);
    }

    /// A peer is somewhere else from now on: what it sends comes from there, and what is sent there reaches it.
    pub(crate) fn move_host(&mut self, host: usize, address: SocketAddr) {
        self.moved[host] = Some(address);
    }

    pub(crate) fn host(&mut self, host: usize) -> &mut Host {
        &mut self.hosts[host]
    }

    /// The datapath dies and another one starts: devices, addresses and connections of instances stay.
    pub(crate) fn restart(&mut self, host: usize) {
        self.hosts[host].end_oldest();
        self.start_next(host, false);
        self.hosts[host].switch();
    }

    /// Another datapath starts, beside the former one or instead of it, and the other host is told.
    pub(crate) fn start_next(&mut self, host: usize, beside: bool) {
        let newest = self.site.told[host].newest + 1;
        self.hosts[host].start(&self.site, newest, self.now);
        self.tell(
            host,
            Told {
                newest,
                former: beside,
            },
        );
    }

    /// The former datapath ends, and the other host is told.
    pub(crate) fn end_former(&mut self, host: usize) {
        self.hosts[host].end_oldest();
        let told = Told {
            former: false,
            ..self.site.told[host]
        };
        self.tell(host, told);
    }

    fn tell(&mut self, host: usize, told: Told) {
        self.site.told[host] = told;
        if let Shape::Shards(_) = self.site.shape {
            self.change_plan(1 - host, |_| {});
        }
    }

    /// What packets from one instance to another have in common.
    pub(crate) fn between(&mut self, from: At, to: At, ipv6: bool) -> Crafted {
        Crafted::new(self.instance(from).address(ipv6), self.instance(to).address(ipv6))
    }

    /// Sends a packet from an instance, and lets the world settle for a little.
    pub(crate) fn send(&mut self, from: At, packet: impl Into<Packet>) {
        self.instance(from).inject(packet.into());
        self.run_for(Duration::from_millis(50));
    }

    /// What an instance was given since it was asked last.
    pub(crate) fn received(&mut self, at: At) -> Vec<Packet> {
        std::mem::take(&mut self.instance(at).received)
    }

    /// Puts a datagram of a stranger on the wire to a host.
    pub(crate) fn knock(&mut self, host: usize, source: SocketAddr, datagram: Vec<u8>) {
        self.sequence += 1;
        let socket = self.sockets(host).into_iter().next_back().unwrap();
        let arrival = Arrival {
            host,
            socket,
            datagram: (source, Ecn::NotCapable, datagram),
        };
        self.on_the_way.insert((self.now, self.sequence), arrival);
    }

    pub(crate) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Lets time pass until `end`, or until `done` says so. Returns whether it did.
    pub(crate) fn run_until(&mut self, end: Instant, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let next = self.next_event();
            if next > end {
                self.advance(end);
                return false;
            }
            self.advance(next);
        }
    }

    /// The next time at which anything is due, later than now.
    fn next_event(&mut self) -> Instant {
        let now = self.now;
        let arrival = self.on_the_way.keys().next().map(|(at, _)| *at);
        let due = self.hosts.iter_mut().filter_map(|host| host.poll_at(now));
        let soonest = due.chain(arrival).min().unwrap_or(now + Duration::from_secs(1));
        // A stack that is due now has just been polled: let a little time pass.
        soonest.max(now + Duration::from_micros(1))
    }

    fn advance(&mut self, to: Instant) {
        MockClock::advance(to.saturating_since(self.now));
        self.now = self.now.max(to);
    }

    /// Everything that happens now.
    fn settle(&mut self) {
        self.arrive();
        for number in 0..self.hosts.len() {
            self.hosts[number].settle(self.now);
            while let Some((socket, route, datagram)) = self.hosts[number].transmitted() {
                let source = self.address(number, socket);
                self.carry(source, route.endpoint, route.ecn, datagram);
            }
        }
    }

    /// The sockets of a host.
    fn sockets(&self, host: usize) -> Vec<Socket> {
        let datapaths = self.hosts[host].datapaths.iter();
        let shards = datapaths.flat_map(|datapath| {
            (0..)
                .zip(&datapath.shards)
                .map(|(shard, _)| (datapath.generation, shard))
        });
        let sockets = shards.flat_map(|(generation, shard)| {
            [LaneKind::Site, LaneKind::Foreign].map(|lane| Socket {
                generation,
                shard,
                lane,
            })
        });
        sockets
            .filter(|socket| socket.lane == LaneKind::Site || socket.shard == 0)
            .collect()
    }

    /// Where a socket is.
    fn address(&self, host: usize, socket: Socket) -> SocketAddr {
        let Socket {
            generation, shard, ..
        } = socket;
        let mut address = match socket.lane {
            LaneKind::Site => self.site.lane_address(host, generation, shard),
            LaneKind::Foreign => self.site.address(host),
        };
        if let Some(moved) = self.moved[host] {
            let offset = address.port() - self.site.address(host).port();
            address = SocketAddr::new(moved.ip(), moved.port() + offset);
        }
        address
    }

    fn carry(&mut self, source: SocketAddr, endpoint: SocketAddr, ecn: Ecn, datagram: Vec<u8>) {
        let found = [0, 1].into_iter().find_map(|host| {
            let mut sockets = self.sockets(host).into_iter();
            // Two datapaths hold one foreign lane: it is the newer one's.
            let socket = sockets.rfind(|socket| self.address(host, *socket) == endpoint)?;
            Some((host, socket))
        });
        let Some((host, socket)) = found else { return };
        let ecn = self.link.conditions.mark.unwrap_or(ecn);
        let headers = self.site.outer_headers();
        for at in self
            .link
            .carry(&datagram, headers, self.now)
            .into_iter()
            .flatten()
        {
            self.sequence += 1;
            let arrival = Arrival {
                host,
                socket,
                datagram: (source, ecn, datagram.clone()),
            };
            self.on_the_way.insert((at, self.sequence), arrival);
        }
    }

    /// Gives the hosts what has arrived, in the runs that UDP GRO would make of it.
    fn arrive(&mut self) {
        let mut arrived: BTreeMap<(usize, Socket), Vec<Datagram>> = BTreeMap::new();
        while let Some(entry) = self.on_the_way.first_entry()
            && entry.key().0 <= self.now
        {
            let arrival = entry.remove();
            let socket = (arrival.host, arrival.socket);
            arrived.entry(socket).or_default().push(arrival.datagram);
        }
        for ((host, socket), datagrams) in arrived {
            for run in runs(&datagrams) {
                let (source, ecn, first) = &datagrams[run.start];
                let bytes: Vec<u8> = datagrams[run.clone()]
                    .iter()
                    .flat_map(|(.., bytes)| bytes)
                    .copied()
                    .collect();
                let datagrams = Datagrams {
                    lane: socket.lane,
                    source: *source,
                    ecn: *ecn,
                    stride: first.len().max(1),
                    bytes: &bytes,
                };
                self.hosts[host].handle_lane(socket, datagrams, self.now);
            }
        }
        for host in &mut self.hosts {
            host.flush(self.now);
        }
    }
}
