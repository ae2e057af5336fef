//! The task that owns the replica: everything that is known goes in here, and comes out as a view.

use super::certificates::{Clock, HostName, Identity, IdentityFiles};
use super::events::{Events, SiteEventKind};
use super::link::{self, Ending, FromLink, Link, LinkIds, Links};
use super::record::RecordBody;
use super::replica::{LinkId, Replica};
use super::{HostStatus, SiteConfig, SiteHost, SiteView};
use anyhow::Context as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_stack::time::Instant as ReplicaInstant;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

/// What links told and wasn't looked at yet: they wait then.
const WAITING: usize = 256;
/// Two links of a pair that came within this time were dialled by both ends at once. Otherwise the older one is dead.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often round-trip times are looked at, and whether the certificate files changed.
const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Task {
    host_id: String,
    configured: Vec<SiteHost>,
    replica: Replica,
    links: BTreeMap<LinkId, Established>,
    events: Events,
    /// What kept a host from being connected, by name.
    problems: BTreeMap<String, String>,
    files: IdentityFiles,
    files_version: [Option<(std::time::SystemTime, u64)>; 3],
    clock: Clock,
    identity: watch::Sender<Arc<Identity>>,
    connected: watch::Sender<BTreeSet<String>>,
    endpoint: quinn::Endpoint,
    origin: Instant,
    told: mpsc::Receiver<FromLink>,
    published: watch::Receiver<Option<RecordBody>>,
    view: watch::Sender<Arc<SiteView>>,
    /// Whether there is news for whoever waits for a change.
    changed: bool,
    /// Whether something is to be shown that wakes nobody.
    refresh: bool,
    /// The endpoint's and the dialling hosts' tasks, which end with this one.
    _tasks: JoinSet<()>,
}

/// A link, and since when.
struct Established {
    link: Link,
    since: Instant,
}

impl Task {
    /// Reads the files, binds the port and starts everything.
    pub(super) fn new(
        config: SiteConfig,
        clock: Clock,
        published: watch::Receiver<Option<RecordBody>>,
        view: watch::Sender<Arc<SiteView>>,
    ) -> anyhow::Result<Self> {
        let files = IdentityFiles {
            authority: config.ca_file,
            certificate: config.certificate_file,
            private_key: config.private_key_file,
        };
        let name = HostName {
            site: config.site,
            host_id: config.host_id.clone(),
        };
        let files_version = files.version();
        let identity = Arc::new(Identity::read(&files, name, clock)?);
        let endpoint = link::bind(config.listen, &identity)?;
        let (identity, watched) = watch::channel(identity);
        let (connected, is_connected) = watch::channel(BTreeSet::new());
        let (tell, told) = mpsc::channel(WAITING);
        let links = Links {
            endpoint: endpoint.clone(),
            ids: LinkIds::default(),
            told: tell,
        };
        let configured: Vec<SiteHost> = config
            .hosts
            .into_iter()
            .filter(|host| host.host_id != config.host_id)
            .collect();
        let mut tasks = JoinSet::new();
        tasks.spawn(link::accept(links.clone(), watched.clone()));
        for host in &configured {
            tasks.spawn(link::dial(
                links.clone(),
                watched.clone(),
                is_connected.clone(),
                host.clone(),
            ));
        }
        Ok(Self {
            replica: Replica::new(&config.host_id, config.boot, draw_life()?, ReplicaInstant::ZERO),
            host_id: config.host_id,
            configured,
            links: BTreeMap::new(),
            events: Events::default(),
            problems: BTreeMap::new(),
            files,
            files_version,
            clock,
            identity,
            connected,
            endpoint,
            origin: Instant::now(),
            told,
            published,
            view,
            changed: true,
            refresh: true,
            _tasks: tasks,
        })
    }

    /// Runs until the site is dropped.
    pub(super) async fn run(mut self) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.show();
            let due = self.origin + Duration::from_nanos(self.replica.poll_timeout().as_nanos());
            tokio::select! {
                Some(told) = self.told.recv() => self.handle_told(told),
                published = self.published.changed() => {
                    if published.is_err() {
                        return;
                    }
                    let body = self.published.borrow_and_update().clone();
                    if let Some(body) = body {
                        self.replica.publish(body);
                    }
                }
                () = sleep_until(due.into()) => self.replica.handle_timeout(self.now()),
                _ = look.tick() => {
                    self.refresh = true;
                    self.look_at_files();
                }
            }
            self.transmit();
        }
    }

    fn now(&self) -> ReplicaInstant {
        ReplicaInstant::ZERO + self.origin.elapsed()
    }

    fn handle_told(&mut self, told: FromLink) {
        match told {
            FromLink::Made(link) => self.handle_made(link),
            FromLink::Message(id, message) => {
                // What came from a link that was ended meanwhile is no longer believed.
                if self.links.contains_key(&id) {
                    self.replica.handle_message(id, message, self.now());
                }
            }
            FromLink::Ended(id, reason) => {
                if let Some(Established { link, .. }) = self.forget(id) {
                    self.tell(SiteEventKind::Disconnected {
                        host_id: link.host_id,
                        reason,
                    });
                }
            }
            FromLink::Event(event) => {
                if let Some(host_id) = self.concerned(&event)
                    && !self.connected.borrow().contains(&host_id)
                {
                    self.problems.insert(host_id, event.to_string());
                }
                self.tell(event);
            }
        }
    }

    /// One link a pair: the newer one, unless both ends dialled at once; then that of the lesser name.
    fn handle_made(&mut self, link: Link) {
        let preferred = |link: &Link| link.dialled == (self.host_id < link.host_id);
        let former = self
            .links
            .iter()
            .find(|(_, former)| former.link.host_id == link.host_id);
        if let Some((id, former)) = former {
            if former.since.elapsed() < AT_ONCE && preferred(&former.link) && !preferred(&link) {
                Ending::Second.close(&link.connection);
                return;
            }
            Ending::Second.close(&former.link.connection);
            let id = *id;
            self.forget(id);
        }
        self.problems.remove(&link.host_id);
        self.tell(SiteEventKind::Connected {
            host_id: link.host_id.clone(),
            address: link.address,
        });
        let id = link.id;
        let since = Instant::now();
        self.links.insert(id, Established { link, since });
        self.tell_connected();
        self.replica.handle_connected(id, self.now());
    }

    fn forget(&mut self, id: LinkId) -> Option<Established> {
        let forgotten = self.links.remove(&id)?;
        self.replica.handle_disconnected(id);
        self.tell_connected();
        Some(forgotten)
    }

    fn tell_connected(&mut self) {
        self.changed = true;
        let connected: BTreeSet<String> = self
            .links
            .values()
            .map(|established| established.link.host_id.clone())
            .collect();
        self.connected
            .send_if_modified(|former| std::mem::replace(former, connected.clone()) != connected);
    }

    /// The configured host that an event is about: it isn't connected because of it.
    fn concerned(&self, event: &SiteEventKind) -> Option<String> {
        match event {
            SiteEventKind::Unreachable { host_id, .. } => Some(host_id.clone()),
            SiteEventKind::RefusedThere { host_id, .. } => host_id.clone(),
            SiteEventKind::CertificateRefused { address, .. } => self
                .configured
                .iter()
                .find(|host| host.address == *address)
                .map(|host| host.host_id.clone()),
            _ => None,
        }
    }

    fn tell(&mut self, event: SiteEventKind) {
        self.changed |= self.events.add(event, self.clock.now());
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.replica.poll_transmit() {
            let Some(frame) = link::frame(&transmit.message) else {
                continue;
            };
            for id in transmit.links {
                let Some(Established { link, .. }) = self.links.get(&id) else {
                    continue;
                };
                if link.frames.try_send(Arc::clone(&frame)).is_err() {
                    Ending::Congested.close(&link.connection);
                    let host_id = link.host_id.clone();
                    self.forget(id);
                    self.tell(SiteEventKind::Congested { host_id });
                }
            }
        }
        while let Some(event) = self.replica.poll_event() {
            self.tell(event.into());
        }
        self.changed |= self.replica.poll_change();
    }

    /// New files are taken as they come; those that are no use change nothing.
    fn look_at_files(&mut self) {
        let version = self.files.version();
        if version == self.files_version {
            return;
        }
        self.files_version = version;
        let name = self.identity.borrow().name.clone();
        let event = match Identity::read(&self.files, name, self.clock) {
            Ok(identity) => {
                self.identity.send_replace(Arc::new(identity));
                SiteEventKind::CertificateRenewed
            }
            Err(error) => SiteEventKind::CertificateUnusable {
                reason: format!("{error:#}"),
            },
        };
        self.tell(event);
    }

    /// Shows what is known. Round-trip times and counts wake nobody.
    fn show(&mut self) {
        if !self.changed && !std::mem::take(&mut self.refresh) {
            return;
        }
        let view = Arc::new(self.make_view());
        let changed = std::mem::take(&mut self.changed);
        self.view.send_if_modified(|shown| {
            *shown = view;
            changed
        });
    }

    fn make_view(&self) -> SiteView {
        SiteView {
            records: self
                .replica
                .records()
                .map(|record| (record.host_id.clone(), record.clone()))
                .collect(),
            hosts: self.hosts(),
            events: self.events.kept.clone(),
            events_lost: self.events.lost,
            boot: self.replica.boot(),
        }
    }

    fn hosts(&self) -> Vec<HostStatus> {
        let mut addresses = BTreeMap::new();
        for record in self.replica.records() {
            if let Some(address) = record.body.addresses.first() {
                addresses.insert(record.host_id.as_str(), *address);
            }
        }
        for host in &self.configured {
            addresses.insert(&host.host_id, host.address);
        }
        let links: BTreeMap<&str, &Link> = self
            .links
            .values()
            .map(|established| (established.link.host_id.as_str(), &established.link))
            .collect();
        addresses.extend(links.iter().map(|(host_id, link)| (*host_id, link.address)));
        let status = |(host_id, address): (&str, _)| {
            let link = links.get(host_id);
            let conflict = self.replica.conflicts().get(host_id).map(ToString::to_string);
            HostStatus {
                host_id: host_id.to_owned(),
                address,
                connected: link.is_some(),
                rtt: link.map(|link| link.connection.rtt()),
                last_heard: self
                    .replica
                    .heard(host_id)
                    .map(|heard| self.origin + Duration::from_nanos(heard.as_nanos())),
                problem: conflict.or_else(|| self.problems.get(host_id).cloned()),
            }
        };
        addresses.into_iter().map(status).collect()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // Whoever is connected needn't wait for silence.
        self.endpoint
            .close(quinn::VarInt::from_u32(Ending::Over as u32), b"");
    }
}

/// Tells this start of the agent from others that have the same number.
fn draw_life() -> anyhow::Result<u32> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0; 4];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .ok()
        .context("the kernel gives no randomness")?;
    Ok(u32::from_be_bytes(bytes))
}
