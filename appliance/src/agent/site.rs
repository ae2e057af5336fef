//! This host among the others of its site: what it tells them about itself, and what follows from what they tell.
//!
//! Everything that changes the own record ends in [`Agent::publish`]; every record of another host that changes what
//! a plan needs makes another plan. A host that fell silent keeps its place in the plan ([`reconcile::learn`]) until
//! another one has its ordinal, or until it was silent for [`FORGET`]; its instances are no longer counted at once, and
//! no longer told by name. An agent that has just begun and heard nobody yet goes on telling them for [`FIRST_WORD`].

use super::api::{SiteEventLine, SiteLinkStatus};
use super::cluster::record::{
    InstanceRecord, LaneGeneration, LaneRecord, NetworkRecord, NetworkSettings, RecordBody,
};
use super::cluster::{Site, SiteConfig, SiteHost, SiteView};
use super::lanes::Lanes;
use super::reconcile::{self, ApplicationKey, KnownHost, KnownHosts, instance_name};
use super::{Agent, Intent, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_stack::plan::NetworkKind;
use tokio::time::Instant;

/// After which silence the way to a host is forgotten.
const FORGET: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a host that this agent never heard isn't taken for silent: as long as links need to come up after a start.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// A clock that shows less was never set: 1 January 2025, in seconds of the Unix epoch.
const PLAUSIBLE: u64 = 1_735_689_600;
/// How old the time in the journal may get.
const TIME_KEPT: u64 = 60 * 60;

/// Events that `status` tells.
const EVENTS_TOLD: usize = 10;

/// The link to the other hosts, and what came over it.
#[derive(Default)]
pub(super) struct SiteLink {
    link: Option<Site>,
    /// Why there is no link.
    problem: Option<String>,
    /// What the others are told.
    published: Option<RecordBody>,
    /// The last state that was looked at.
    pub(super) view: Arc<SiteView>,
    /// The hosts in the plan that this agent heard.
    heard: BTreeSet<String>,
    /// Since when hosts that are in the plan are silent.
    silent: BTreeMap<String, Instant>,
    /// Those whose instances aren't told by name for that.
    pub(super) unnamed: BTreeSet<String>,
    /// What keeps hosts, networks and instances from being joined.
    conflicts: Vec<String>,
}

impl SiteLink {
    /// Waits until something changed. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        match &mut self.link {
            Some(site) => site.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it stands.
    pub(super) fn is_up(&self) -> bool {
        self.link.is_some()
    }

    /// Why it doesn't stand.
    pub(super) fn link_problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// What is wrong, one line each.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.problem.iter().chain(&self.conflicts)
    }

    /// Lets the silent have been silent for longer.
    #[cfg(test)]
    pub(super) fn lengthen_silence(&mut self, by: Duration) {
        for since in self.silent.values_mut() {
            *since -= by;
        }
    }

    /// What the others are told.
    #[cfg(test)]
    pub(super) fn published(&self) -> Option<&RecordBody> {
        self.published.as_ref()
    }
}

impl Agent {
    /// Starts the link, when the host document has a certificate and there is none yet.
    pub(super) async fn join_site(&mut self) {
        if self.site.is_up() {
            return;
        }
        let Some(config) = self.site_config() else { return };
        let listen = config.listen;
        match Site::start(config).await {
            Ok(site) => {
                tracing::info!(%listen, "the link to the other hosts of the site is up");
                if let Some(body) = &self.site.published {
                    site.publish(body.clone());
                }
                self.site.link = Some(site);
                self.site.problem = None;
                self.note_site().await;
            }
            Err(error) => {
                let problem = format!("there is no link to the other hosts of the site: {error:#}");
                if self.site.problem.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                    self.site.problem = Some(problem);
                }
            }
        }
    }

    /// Whether the host document asks for a link.
    pub(super) fn has_site(&self) -> bool {
        self.host.cluster.link.is_some()
    }

    /// Looks at what the others told.
    pub(super) async fn note_site(&mut self) {
        match &self.site.link {
            Some(site) => {
                let view = site.view();
                self.note_records(view).await;
            }
            None if self.has_site() => {
                let known = self.intent.record.hosts.clone();
                if self.note_silence(&known) {
                    self.take_in(self.intent.clone()).await;
                }
            }
            None => {}
        }
    }

    /// Learns from the records of the site.
    pub(super) async fn note_records(&mut self, view: Arc<SiteView>) {
        let own = &self.host.host_id;
        let live: KnownHosts = view
            .records
            .iter()
            .filter(|(name, _)| *name != own)
            .map(|(name, record)| (name.clone(), KnownHost::of(&record.body)))
            .collect();
        // Others may remember more starts of this host than itself.
        let boots_are_behind = view.boot > self.intent.record.boots;
        self.intent.record.boots = self.intent.record.boots.max(view.boot);
        self.site.view = view;
        let mut learned = reconcile::learn(&self.intent.record.hosts, live);
        let fell_silent = self.note_silence(&learned);
        self.forget_the_silent(&mut learned);
        if fell_silent || learned != self.intent.record.hosts {
            let mut intent = self.intent.clone();
            intent.record.peers.number_hosts(learned.keys());
            intent.record.hosts = learned;
            self.take_in(intent).await;
        } else if boots_are_behind && let Err(error) = self.save() {
            self.tell_problem(format!("{error:#}"));
        }
        self.note_conflicts();
    }

    /// Tells the others what this host has, when they weren't told yet. What they were told stays true while there
    /// are no lanes: those of a datapath that ended are only replaced by those of the next.
    pub(super) fn publish(&mut self) {
        let Some(lanes) = self.lanes.as_ref().filter(|_| self.has_site()) else {
            return;
        };
        let body = self.record_body(lanes);
        if self.site.published.as_ref() != Some(&body) {
            if let Some(site) = &self.site.link {
                site.publish(body.clone());
            }
            self.site.published = Some(body);
        }
    }

    /// The link at a glance, when the host document asks for one.
    pub(super) fn site_status(&self) -> Option<SiteLinkStatus> {
        let listen = self.host.cluster.link.as_ref().map(|_| self.control_address())?;
        let view = &self.site.view;
        let newest = view.events.iter().rev().take(EVENTS_TOLD).rev();
        Some(SiteLinkStatus {
            listen,
            up: self.site.is_up(),
            hosts_known: self.hosts_of_site().len(),
            hosts_connected: view.hosts.iter().filter(|host| host.connected).count(),
            hosts_alive: view.records.len(),
            boot: self.intent.record.boots,
            events_lost: view.events_lost,
            events: newest
                .map(|event| SiteEventLine {
                    at: seconds(event.at),
                    times: event.times,
                    event: event.kind.to_string(),
                })
                .collect(),
        })
    }

    /// The live host, other than this one, that has an instance.
    pub(super) fn host_of(&self, application: &ApplicationKey, service: &str, number: u32) -> Option<&str> {
        let mut elsewhere = self.instances_elsewhere();
        elsewhere
            .find(|(_, instance)| is_of(instance, application, service) && instance.number == number)
            .map(|(host, _)| host)
    }

    /// The numbers that live hosts other than this one use for instances of a service.
    pub(super) fn numbers_elsewhere(&self, application: &ApplicationKey, service: &str) -> BTreeSet<u32> {
        self.instances_elsewhere()
            .filter(|(_, instance)| is_of(instance, application, service))
            .map(|(_, instance)| instance.number)
            .collect()
    }

    /// The instances of live hosts other than this one, and their hosts.
    pub(super) fn instances_elsewhere(&self) -> impl Iterator<Item = (&str, &InstanceRecord)> {
        let others = self.site.view.records.iter();
        others
            .filter(|(name, _)| **name != self.host.host_id)
            .flat_map(|(name, record)| {
                let instances = record.body.instances.iter();
                instances.map(move |instance| (name.as_str(), instance))
            })
    }

    /// Remembers the time, when the clock has one.
    pub(super) fn note_time(&mut self) {
        let now = seconds(SystemTime::now());
        if now >= PLAUSIBLE {
            self.intent.record.last_time = now;
        }
    }

    /// Whether the time in the journal is so old that it should be written anew.
    pub(super) fn time_is_stale(&self) -> bool {
        let now = seconds(SystemTime::now());
        now >= PLAUSIBLE && now.abs_diff(self.intent.record.last_time) > TIME_KEPT
    }

    /// Where the other hosts connect to.
    fn control_address(&self) -> SocketAddr {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.host.cluster.control_port))
    }

    fn site_config(&self) -> Option<SiteConfig> {
        let cluster = &self.host.cluster;
        let link = cluster.link.as_ref()?;
        let hosts = link.hosts.iter().map(|host| SiteHost {
            host_id: host.host_id.clone(),
            address: host.address,
            port: cluster.control_port,
        });
        Some(SiteConfig {
            host_id: self.host.host_id.clone(),
            site: self.host.site.clone(),
            listen: self.control_address(),
            ca_file: link.ca_file.clone(),
            certificate_file: link.certificate_file.clone(),
            private_key_file: link.private_key_file.clone(),
            hosts: hosts.collect(),
            boot: self.intent.record.boots,
            known_time: UNIX_EPOCH + Duration::from_secs(self.intent.record.last_time),
        })
    }

    fn record_body(&self, lanes: &Lanes) -> RecordBody {
        let network = &self.host.network;
        let networks = reconcile::networks(&self.host, &self.intent.applications);
        let networks = networks.into_values().map(|network| NetworkRecord {
            ipv4_prefix: (network.kind == NetworkKind::Shared).then(|| network.ipv4_prefix()),
            tenant: network.tenant,
            name: network.name,
            kind: network.kind,
            vni: network.vni,
        });
        let attachments = self.intent.record.attachments.iter();
        let instances = attachments.map(|attachment| InstanceRecord {
            tenant: attachment.application.tenant.clone(),
            application: attachment.application.name.clone(),
            service: attachment.service.clone(),
            number: attachment.number,
            addresses: self.memberships(attachment),
            ready: self.is_ready(attachment),
        });
        let generations = [Some(lanes), self.successors_lanes.as_ref()];
        RecordBody {
            ordinal: self.host.ordinal,
            addresses: self.underlay.addresses.clone(),
            generations: generations.into_iter().flatten().filter_map(generation).collect(),
            network: NetworkSettings {
                application_prefix: network.application_prefix,
                shared_prefix: network.shared_prefix,
            },
            networks: networks.collect(),
            instances: instances.collect(),
            later: serde_json::Map::new(),
        }
    }

    /// Takes what is known of the site into the intent. It isn't taken back when the datapath is away: the next one
    /// gets the plan that follows.
    async fn take_in(&mut self, intent: Intent) {
        if self.datapath.is_connected() {
            match self.put_in_force(intent).await {
                Ok(_) => {}
                Err(Refusal { problems, .. }) => {
                    for problem in problems {
                        self.tell_problem(problem);
                    }
                }
            }
            return;
        }
        self.intent = intent;
        if let Err(error) = self.save() {
            self.tell_problem(format!("{error:#}"));
        }
    }

    /// Looks who is silent. Whether others than before are no longer told by name.
    fn note_silence(&mut self, known: &KnownHosts) -> bool {
        let now = Instant::now();
        let site = &mut self.site;
        site.heard.extend(site.view.records.keys().cloned());
        site.heard.retain(|name| known.contains_key(name));
        let is_live = |name: &String| site.view.records.contains_key(name);
        site.silent
            .retain(|name, _| known.contains_key(name) && !is_live(name));
        for name in known.keys().filter(|name| !is_live(name)) {
            site.silent.entry(name.clone()).or_insert(now);
        }
        let unnamed = site
            .silent
            .iter()
            .filter(|(name, since)| site.heard.contains(*name) || now - **since >= FIRST_WORD);
        let unnamed: BTreeSet<_> = unnamed.map(|(name, _)| name.clone()).collect();
        std::mem::replace(&mut site.unnamed, unnamed) != site.unnamed
    }

    fn forget_the_silent(&mut self, known: &mut KnownHosts) {
        let now = Instant::now();
        let silent = &self.site.silent;
        known.retain(|name, _| {
            let kept = silent.get(name).is_none_or(|since| now - *since < FORGET);
            if !kept {
                tracing::warn!(
                    host = name,
                    "a host of the site was silent for a day: the way to it is forgotten"
                );
            }
            kept
        });
    }

    /// Finds what can't be joined, and logs what is new of it.
    pub(super) fn note_conflicts(&mut self) {
        let mut conflicts: Vec<_> = reconcile::conflicts(&self.inputs(&self.intent))
            .iter()
            .map(ToString::to_string)
            .collect();
        for attachment in &self.intent.record.attachments {
            let (key, number) = (&attachment.application, attachment.number);
            if let Some(host) = self.host_of(key, &attachment.service, number) {
                conflicts.push(format!(
                    "{} of {key} is attached here and on host {host}: detach one of the two",
                    instance_name(&attachment.service, number)
                ));
            }
        }
        for conflict in conflicts
            .iter()
            .filter(|conflict| !self.site.conflicts.contains(conflict))
        {
            tracing::warn!("{conflict}");
        }
        self.site.conflicts = conflicts;
    }
}

/// Lanes as the others need them; `None` when the datapath told no keys.
fn generation(lanes: &Lanes) -> Option<LaneGeneration> {
    let records = lanes.ports.iter().zip(&lanes.keys);
    (lanes.keys.len() == lanes.ports.len()).then(|| LaneGeneration {
        number: lanes.generation,
        lanes: records
            .map(|(port, public_key)| LaneRecord {
                port: *port,
                public_key: *public_key,
            })
            .collect(),
    })
}

fn is_of(instance: &InstanceRecord, application: &ApplicationKey, service: &str) -> bool {
    instance.tenant == application.tenant
        && instance.application == application.name
        && instance.service == service
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
