//! Sites of 2 to 16 hosts in virtual time, each seed with its own topology and its own misfortunes.
//!
//! For 45 virtual seconds hosts change their records while messages are lost, late and out of order, ways are cut in
//! one direction or both, agents are killed and start again, some without their state, and clocks jump. Then what is
//! cut stays cut, who is dead stays dead, and the rest is left in peace until second 60.
//!
//! What must hold, whatever happens:
//!
//! 1. **Nothing is invented.** A record that anybody holds was published, in these words, by its owner.
//! 2. **Nothing goes back.** What one observer holds of a host never gets an older stamp.
//!
//! What must hold once there is peace, after [`PATIENCE`] and a little for each hop, until the end:
//!
//! 3. **Everybody sees those whom it can reach**, directly or through others, with their latest record.
//! 4. **Nobody sees anybody else**: the dead, and those behind a cut, are withdrawn.
//! 5. **No record older than its owner's survives** anywhere within its owner's reach.
//!
//! `TIDEGATE_SEEDS` is the number of seeds (CI: 10,000), `TIDEGATE_SEED` runs one of them again.

use super::super::record::{HostRecord, NetworkSettings, RecordBody, Stamp};
use super::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;
const PEACE: u64 = 45 * SECOND;
const END: u64 = 60 * SECOND;
/// Silence and a digest: 3 s and 2 s.
const CALM: u64 = 5 * SECOND;
/// What a hop may add: what is heard is gathered for 100 ms, and a message takes up to 50 ms.
const HOP: u64 = 150 * MILLISECOND;
/// The longest until a link that can be there is there again.
const REDIAL: u64 = 1_200 * MILLISECOND;

/// SplitMix64: a seed's whole randomness.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn host(&mut self, hosts: usize) -> usize {
        usize::try_from(self.below(hosts as u64)).unwrap()
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

enum What {
    /// A message arrives over a session.
    Deliver(usize, LinkId, Message),
    /// A host's timer, of the start that set it.
    Timer(usize, u64),
    /// A pair tries to connect.
    Dial(usize, usize),
    /// One end notices that its session is dead.
    Notice(usize, LinkId),
    /// A dead host starts.
    Start(usize),
    /// The next misfortune.
    Disturb,
    /// What was cut for a while isn't any more.
    Heal(usize, usize),
    Peace,
    Check,
}

/// What happens when: the earliest is the greatest, and of two at one time the one that was set first.
struct Scheduled {
    key: Reverse<(u64, u64)>,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

struct Host {
    name: String,
    replica: Option<Replica>,
    /// Starts of this host, as the simulation counts them.
    starts: u64,
    /// The boot count on disk.
    boot: u64,
    /// What its clock shows beyond the simulation's: clocks don't begin together, and jump.
    offset: u64,
    /// When its timer fires, by the simulation's clock.
    timer: Option<u64>,
    /// Its neighbours, by session.
    sessions: BTreeMap<LinkId, usize>,
    /// The last record that it published.
    said: Option<Stamp>,
    /// What an observer held of others.
    held: BTreeMap<String, Stamp>,
}

struct World {
    random: Random,
    now: u64,
    order: u64,
    queue: BinaryHeap<Scheduled>,
    hosts: Vec<Host>,
    /// Pairs with a way between them, smaller number first.
    ways: BTreeSet<(usize, usize)>,
    /// Directions that are cut.
    cut: BTreeSet<(usize, usize)>,
    /// Messages lost, in percent.
    loss: u64,
    sessions: u64,
    /// Everything that was ever published: the number in its words.
    published: BTreeMap<(String, Stamp), u64>,
    statements: u64,
    failure: Option<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let count = 2 + random.host(15);
        let density = [10, 20, 40, 100][random.host(4)];
        let mut ways = BTreeSet::new();
        for high in 1..count {
            // Mostly one site, sometimes two that don't know each other.
            if !random.percent(3) {
                ways.insert((random.host(high), high));
            }
            for low in 0..high {
                if random.percent(density) {
                    ways.insert((low, high));
                }
            }
        }
        let mut world = Self {
            random,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            hosts: Vec::new(),
            ways: ways.clone(),
            cut: BTreeSet::new(),
            loss: 0,
            sessions: 0,
            published: BTreeMap::new(),
            statements: 0,
            failure: None,
        };
        for number in 0..count {
            let offset = world.random.below(1_000 * SECOND);
            world.hosts.push(Host {
                name: format!("h{number}"),
                replica: None,
                starts: 0,
                boot: 0,
                offset,
                timer: None,
                sessions: BTreeMap::new(),
                said: None,
                held: BTreeMap::new(),
            });
            let at = world.random.below(3 * SECOND);
            world.at(at, What::Start(number));
        }
        for (low, high) in ways {
            let at = world.random.below(SECOND);
            world.at(at, What::Dial(low, high));
        }
        world.at(SECOND, What::Disturb);
        world.at(PEACE, What::Peace);
        world
    }

    fn at(&mut self, time: u64, what: What) {
        self.order += 1;
        let key = Reverse((time, self.order));
        self.queue.push(Scheduled { key, what });
    }

    fn after(&mut self, longest: u64, what: What) {
        let delay = self.random.below(longest) + 1;
        self.at(self.now + delay, what);
    }

    fn run(mut self) -> Result<(), String> {
        while let Some(Scheduled { key, what }) = self.queue.pop() {
            self.now = key.0.0;
            if self.now > END {
                break;
            }
            self.step(what);
            if let Some(failure) = self.failure.take() {
                let at = self.now as f64 / SECOND as f64;
                return Err(format!("at {at:.3} s: {failure}"));
            }
        }
        Ok(())
    }

    fn step(&mut self, what: What) {
        match what {
            What::Deliver(host, link, message) => self.deliver(host, link, message),
            What::Timer(host, starts) => {
                let now = self.clock(host);
                let it = &mut self.hosts[host];
                if it.starts == starts && it.timer.is_some_and(|at| at <= self.now) {
                    it.timer = None;
                    if let Some(replica) = &mut it.replica {
                        replica.handle_timeout(now);
                    }
                    self.settle(host);
                }
            }
            What::Dial(low, high) => self.dial(low, high),
            What::Notice(host, link) => self.lose(host, link),
            What::Start(host) => self.start(host),
            What::Disturb => self.disturb(),
            What::Heal(from, to) => {
                if self.now < PEACE {
                    self.cut.remove(&(from, to));
                }
            }
            What::Peace => {
                self.loss = 0;
                // What is left of one-way cuts is whole: a neighbour that can't answer is no neighbour.
                let cut: Vec<_> = self.cut.iter().copied().collect();
                for (from, to) in cut {
                    self.cut(from, to);
                    self.cut(to, from);
                }
                let hops = self.hosts.len() as u64;
                self.at(PEACE + REDIAL + CALM + hops * HOP, What::Check);
            }
            What::Check => {
                self.check();
                self.at(self.now + 700 * MILLISECOND, What::Check);
            }
        }
    }

    fn clock(&self, host: usize) -> Instant {
        Instant::from_nanos(self.now + self.hosts[host].offset)
    }

    fn start(&mut self, host: usize) {
        if self.hosts[host].replica.is_some() || self.now >= PEACE {
            return;
        }
        let now = self.clock(host);
        let life = u32::try_from(self.random.next() >> 32).unwrap();
        let it = &mut self.hosts[host];
        it.boot += 1;
        it.starts += 1;
        it.timer = None;
        it.held.clear();
        it.replica = Some(Replica::new(&it.name, it.boot, life, now));
        if self.random.percent(90) {
            self.publish(host);
        }
        self.settle(host);
    }

    fn publish(&mut self, host: usize) {
        self.statements += 1;
        let body = body(host, self.statements);
        if let Some(replica) = &mut self.hosts[host].replica {
            replica.publish(body);
        }
        self.settle(host);
    }

    fn kill(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.replica = None;
        let sessions = std::mem::take(&mut it.sessions);
        // The other ends notice later.
        for (link, other) in sessions {
            self.after(3 * SECOND, What::Notice(other, link));
        }
    }

    fn disturb(&mut self) {
        if self.now >= PEACE {
            return;
        }
        let count = self.hosts.len();
        let host = self.random.host(count);
        match self.random.below(12) {
            0..=3 => self.publish(host),
            4 => self.loss = self.random.below(60),
            5 => self.loss = 0,
            6 | 7 => {
                let ways: Vec<_> = self.ways.iter().copied().collect();
                if !ways.is_empty() {
                    let (low, high) = ways[self.random.host(ways.len())];
                    let both = self.random.percent(70);
                    for (from, to) in [(low, high), (high, low)] {
                        if both || from == low {
                            self.cut(from, to);
                            self.after(12 * SECOND, What::Heal(from, to));
                        }
                    }
                }
            }
            8 => {
                // A part of the site from the rest of it.
                let part: Vec<bool> = (0..count).map(|_| self.random.percent(50)).collect();
                let ways: Vec<_> = self.ways.iter().copied().collect();
                let duration = self.random.below(10 * SECOND);
                for (low, high) in ways.into_iter().filter(|(low, high)| part[*low] != part[*high]) {
                    for (from, to) in [(low, high), (high, low)] {
                        self.cut(from, to);
                        self.at(self.now + duration, What::Heal(from, to));
                    }
                }
            }
            9 | 10 => {
                self.kill(host);
                if self.random.percent(30) {
                    // Its state is lost.
                    self.hosts[host].boot = 0;
                }
                if self.random.percent(85) {
                    self.after(8 * SECOND, What::Start(host));
                }
            }
            _ => {
                // It slept. Its timer fires when it wakes.
                let jump = self.random.below(100 * SECOND);
                self.hosts[host].offset += jump;
                self.settle(host);
            }
        }
        self.after(2 * SECOND, What::Disturb);
    }

    fn cut(&mut self, from: usize, to: usize) {
        if !self.cut.insert((from, to)) {
            return;
        }
        let sessions: Vec<LinkId> = self.sessions_between(from, to);
        for link in sessions {
            self.after(3 * SECOND, What::Notice(from, link));
            self.after(3 * SECOND, What::Notice(to, link));
        }
    }

    fn sessions_between(&self, one: usize, other: usize) -> Vec<LinkId> {
        let of = |host: usize, far: usize| {
            self.hosts[host]
                .sessions
                .iter()
                .filter(move |(_, end)| **end == far)
                .map(|(link, _)| *link)
        };
        let all: BTreeSet<LinkId> = of(one, other).chain(of(other, one)).collect();
        all.into_iter().collect()
    }

    /// Either both ends of a session are there, or neither stays.
    fn lose(&mut self, host: usize, link: LinkId) {
        if let Some(far) = self.hosts[host].sessions.remove(&link) {
            if let Some(replica) = &mut self.hosts[host].replica {
                replica.handle_disconnected(link);
            }
            self.settle(host);
            self.after(3 * SECOND, What::Notice(far, link));
        }
    }

    fn dial(&mut self, low: usize, high: usize) {
        self.after(REDIAL, What::Dial(low, high));
        let cut = self.cut.contains(&(low, high)) || self.cut.contains(&(high, low));
        let alive = self.hosts[low].replica.is_some() && self.hosts[high].replica.is_some();
        let whole = |host: usize, far: usize| self.hosts[host].sessions.values().any(|end| *end == far);
        if cut || !alive || (whole(low, high) && whole(high, low)) {
            return;
        }
        // What one end has is half of a session: the new one takes its place.
        for link in self.sessions_between(low, high) {
            for host in [low, high] {
                if self.hosts[host].sessions.remove(&link).is_some()
                    && let Some(replica) = &mut self.hosts[host].replica
                {
                    replica.handle_disconnected(link);
                }
            }
        }
        self.sessions += 1;
        let link = LinkId(self.sessions);
        for (host, far) in [(low, high), (high, low)] {
            let now = self.clock(host);
            self.hosts[host].sessions.insert(link, far);
            if let Some(replica) = &mut self.hosts[host].replica {
                replica.handle_connected(link, now);
            }
            self.settle(host);
        }
    }

    fn deliver(&mut self, host: usize, link: LinkId, message: Message) {
        if !self.hosts[host].sessions.contains_key(&link) {
            return;
        }
        let told: Vec<String> = match &message {
            Message::Records(records) => records.iter().map(|record| record.host_id.clone()).collect(),
            Message::Digest(_) | Message::Want(_) => Vec::new(),
        };
        let now = self.clock(host);
        if let Some(replica) = &mut self.hosts[host].replica {
            replica.handle_message(link, message, now);
        }
        for name in told {
            self.look_at(host, &name);
        }
        self.settle(host);
    }

    /// Invariants 1 and 2.
    fn look_at(&mut self, host: usize, name: &str) {
        let it = &mut self.hosts[host];
        let record = it
            .replica
            .as_ref()
            .and_then(|replica| replica.others.get(name))
            .and_then(|other| other.record.as_ref());
        let Some(record) = record else {
            return;
        };
        let stamp = record.stamp();
        if self.published.get(&(name.to_owned(), stamp)) != Some(&statement(record)) {
            self.failure = Some(format!(
                "{} holds what {name} never said as {stamp:?}: {record:?}",
                it.name
            ));
        }
        let before = it.held.insert(name.to_owned(), stamp);
        if before.is_some_and(|before| before > stamp) {
            self.failure = Some(format!(
                "{} went back with {name} from {before:?} to {stamp:?}",
                it.name
            ));
        }
    }

    /// Notes what a host says, sends what it has to send, and sets its timer.
    fn settle(&mut self, host: usize) {
        let mut transmits = Vec::new();
        let it = &mut self.hosts[host];
        let Some(replica) = &mut it.replica else {
            return;
        };
        while let Some(transmit) = replica.poll_transmit() {
            transmits.push(transmit);
        }
        while let Some(event) = replica.poll_event() {
            if matches!(
                event,
                ReplicaEvent::TooLarge { .. } | ReplicaEvent::SiteFull { .. } | ReplicaEvent::Conflict { .. }
            ) {
                self.failure = Some(format!("{} tells {event:?}", it.name));
            }
        }
        if replica.poll_change() {
            it.boot = it.boot.max(replica.boot());
        }
        if let Some(own) = &replica.own
            && it.said != Some(own.stamp())
        {
            it.said = Some(own.stamp());
            let former = self
                .published
                .insert((it.name.clone(), own.stamp()), statement(own));
            if former.is_some_and(|former| former != statement(own)) {
                self.failure = Some(format!("{} said two things as {:?}", it.name, own.stamp()));
            }
        }
        let due = replica.poll_timeout().as_nanos().saturating_sub(it.offset);
        let due = due.max(self.now);
        let starts = it.starts;
        if it.timer.is_none_or(|timer| due < timer) {
            it.timer = Some(due);
            self.at(due, What::Timer(host, starts));
        }
        for transmit in transmits {
            for link in transmit.links {
                let Some(far) = self.hosts[host].sessions.get(&link).copied() else {
                    continue;
                };
                let lost = self.cut.contains(&(host, far)) || self.random.percent(self.loss);
                if !lost {
                    let slow = self.random.percent(10);
                    let longest = if slow { 50 } else { 5 } * MILLISECOND;
                    self.after(longest, What::Deliver(far, link, transmit.message.clone()));
                }
            }
        }
    }

    /// Whom a host can reach, through whomever.
    fn reach(&self, host: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::from([host]);
        let mut frontier = vec![host];
        while let Some(at) = frontier.pop() {
            for (low, high) in &self.ways {
                let far = match (*low == at, *high == at) {
                    (true, _) => *high,
                    (_, true) => *low,
                    _ => continue,
                };
                let cut = self.cut.contains(&(at, far)) || self.cut.contains(&(far, at));
                if !cut && self.hosts[far].replica.is_some() && reached.insert(far) {
                    frontier.push(far);
                }
            }
        }
        reached
    }

    /// Invariants 3 to 5.
    fn check(&mut self) {
        for number in 0..self.hosts.len() {
            let reached = self.reach(number);
            let host = &self.hosts[number];
            let Some(replica) = &host.replica else {
                continue;
            };
            let seen: BTreeMap<&str, Stamp> = replica
                .records()
                .map(|record| (record.host_id.as_str(), record.stamp()))
                .collect();
            for (other_number, other) in self.hosts.iter().enumerate().filter(|(at, _)| *at != number) {
                let reachable = reached.contains(&other_number);
                let latest = other.replica.as_ref().and_then(|replica| replica.own.as_ref());
                let expected = latest.filter(|_| reachable).map(HostRecord::stamp);
                let shown = seen.get(other.name.as_str()).copied();
                // One that published nothing since it lost its state may be shown with what is remembered of it.
                if shown != expected && !(reachable && latest.is_none()) {
                    let known = replica.others.get(&other.name);
                    self.failure = Some(format!(
                        "{} sees {} with {shown:?}, and should with {expected:?}; it knows {known:?}",
                        host.name, other.name
                    ));
                }
                let held = replica
                    .others
                    .get(&other.name)
                    .and_then(|other| other.record.as_ref());
                if reachable && expected.is_some() && held.map(HostRecord::stamp) != expected {
                    self.failure = Some(format!("{} keeps an old record of {}", host.name, other.name));
                }
            }
        }
    }
}

/// A record's words: the host, and the number of the statement as a port of a lane.
fn body(host: usize, statement: u64) -> RecordBody {
    RecordBody {
        ordinal: HostOrdinal::try_from(host as u64 + 1).unwrap(),
        addresses: Vec::new(),
        generations: vec![super::super::record::LaneGeneration {
            number: statement,
            lanes: Vec::new(),
        }],
        network: NetworkSettings {
            application_prefix: "172.19.0.0/16".parse().unwrap(),
            shared_prefix: "100.96.0.0/11".parse().unwrap(),
        },
        networks: Vec::new(),
        instances: Vec::new(),
        later: serde_json::Map::new(),
    }
}

fn statement(record: &HostRecord) -> u64 {
    record.body.generations[0].number
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn whatever_befalls_a_site_its_hosts_come_to_know_the_same_once_left_in_peace() {
    if let Some(seed) = number("TIDEGATE_SEED") {
        World::new(seed)
            .run()
            .unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
        return;
    }
    let seeds = number("TIDEGATE_SEEDS").unwrap_or(100);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..seeds).step_by(usize::try_from(threads).unwrap()) {
                    if let Err(failure) = World::new(seed).run() {
                        panic!("seed {seed} (again with TIDEGATE_SEED={seed}): {failure}");
                    }
                }
            });
        }
    });
}
