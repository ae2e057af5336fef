//! The agent: decides what this host does, and tells the datapath.
//!
//! One task holds all state and does one thing at a time; what it does is one of
//!
//! 1. **a call** from the control socket ([`api`]): `apply` and `delete` ([`applications`]), `attach` and `detach`
//!    ([`attachments`], [`memberships`]), and questions ([`reports`]);
//! 2. **the datapath** came, went, or tells something ([`adoption`], [`datapath`]), or another one takes over from it
//!    ([`handover`]);
//! 3. **the site**: another host tells something new about itself ([`site`]);
//! 4. **a name of the world outside** that an instance asks for and the datapath doesn't know ([`resolver`]): it is
//!    asked by tasks of its own, and told when it was found out;
//! 5. **time**: a device whose namespace died is detached, an underlay whose MTU or addresses changed
//!    makes another plan.
//!
//! Each ends in the same way: an [`Intent`] becomes a plan ([`reconcile`]), the datapath installs it, the [`journal`]
//! keeps it. An intent that makes no plan, or that the datapath refuses, leaves everything as it was.
//!
//! The agent may be killed at any time. What can't be made again (queues of devices, the lanes' sockets) is held by
//! the datapath, too, and comes back from there.

mod adoption;
pub(crate) mod api;
mod applications;
pub(crate) mod attach;
mod attachments;
pub(crate) mod cluster;
mod datapath;
mod flows;
mod handover;
mod journal;
pub(crate) mod keys;
mod lanes;
mod memberships;
mod names;
pub(crate) mod overlap;
mod peers;
mod policy;
mod query;
mod readiness;
pub(crate) mod reconcile;
mod reports;
mod resolver;
mod site;
#[cfg(test)]
mod tests;
mod trace;
pub(crate) mod underlay;

use crate::cli::Places;
use crate::config::host::{self, HostDocument, NetworkDocument};
use crate::seam::{Event, PlanDigest};
use anyhow::Context as _;
use api::{Call, ConnectionId, Refusal, Request, Response};
use attachments::Reservation;
use datapath::{DatapathClient, EncodedPlan, Greeting};
use handover::Retired;
use journal::{Journal, Record};
use lanes::{ForeignLane, LaneProblems, Lanes};
use overlap::Overlap;
use readiness::KnownReadiness;
use reconcile::{Applications, Inputs, Keys};
use resolver::Resolver;
use site::SiteLink;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tidegate_stack::plan::PortId;
use tidegate_stack::responder::dns::forward::Told;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use underlay::Underlay;

/// How often a datapath that is away is looked for: nothing passes from its restart until it is found.
const RECONNECT: Duration = Duration::from_millis(20);
/// How long a verb waits for a datapath that is away.
const DATAPATH_PATIENCE: Duration = Duration::from_secs(5);
/// How often devices are looked at: the datapath's event about a dead one is only a hint.
const DEVICE_CHECK: Duration = Duration::from_secs(2);
/// How often the underlay's MTU and addresses are looked at, and what couldn't be begun is tried again.
const UNDERLAY_CHECK: Duration = Duration::from_secs(2);
/// How often the file that names the name servers is looked at.
const NAME_SERVER_CHECK: Duration = Duration::from_secs(1);
/// Calls that wait for their turn.
const WAITING_CALLS: usize = 64;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it can't begin: the host document, a key, the journal or the control socket.
pub(crate) fn run(places: &Places) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let host = host::read(&places.config)?;
        for folder in [&places.state_dir, &places.run_dir] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("the folder {} can't be made", folder.display()))?;
        }
        // First of all: a second agent ends here, before it touches what belongs to the first.
        let listener = api::listen(&places.agent_socket()).with_context(|| {
            format!(
                "the control socket can't be made at {}",
                places.agent_socket().display()
            )
        })?;
        let mut agent = Agent::begin(places, host)?;
        let (calls, waiting) = mpsc::channel(WAITING_CALLS);
        let server = tokio::spawn(api::serve(listener, calls));
        let outcome = agent.serve(waiting).await;
        server.abort();
        agent.end();
        outcome
    })
}

/// What the host is meant to do, as far as it can change while the agent runs.
#[derive(Clone, Default)]
struct Intent {
    /// The application documents in force.
    applications: Applications,
    /// Everything else that a restarted agent has to know.
    record: Record,
}

/// The agent's whole state.
struct Agent {
    places: Places,
    host: HostDocument,
    /// The networks as the host document has them; the host has others when they were moved.
    documented_network: NetworkDocument,
    overlaps: Vec<Overlap>,
    keys: Keys,
    underlay: Underlay,
    journal: Journal,
    intent: Intent,
    /// Duplicates of the queues of every port: a datapath that starts gets them from here.
    queues: BTreeMap<PortId, Vec<OwnedFd>>,
    /// The lanes of the datapath that reads the ports.
    lanes: Option<Lanes>,
    foreign: Option<ForeignLane>,
    /// The lanes of its successor, while there is one.
    successors_lanes: Option<Lanes>,
    site: SiteLink,
    resolver: Resolver,
    readiness: KnownReadiness,
    /// What connections prepared and haven't committed yet.
    reservations: BTreeMap<ConnectionId, Reservation>,
    datapath: DatapathClient,
    /// Whether it said that it leaves: a successor is looked for.
    leaving: bool,
    /// The one before, until what is in flight to it has arrived.
    retired: Option<Retired>,
    /// What the datapath said when the connection began.
    greeting: Option<Greeting>,
    in_force: Option<PlanDigest>,
    epoch: u64,
    /// What keeps the intent from being in force.
    problems: Vec<String>,
    /// What of the boot folder was left out.
    boot_problems: Vec<String>,
    lane_problems: LaneProblems,
}

impl Agent {
    fn begin(places: &Places, mut host: HostDocument) -> anyhow::Result<Self> {
        let keys = keys::load(&host, &places.state_dir)?;
        let (journal, record) = Journal::open(&places.state_dir)
            .with_context(|| format!("the journal in {} can't be read", places.state_dir.display()))?;
        let underlay = underlay::find(&host).unwrap_or_else(|error| {
            tracing::warn!(
                %error, assumed_mtu = underlay::USUAL_MTU,
                "the underlay's device isn't known, so neither is its MTU: set `cluster.interface` in the host document"
            );
            Underlay { device: host.cluster.interface.clone(), mtu: underlay::USUAL_MTU, addresses: Vec::new() }
        });
        let documented_network = host.network;
        host.network = overlap::in_force(&documented_network, &record);
        let resolver = Resolver::new(&host);
        let mut agent = Self {
            places: places.clone(),
            host,
            documented_network,
            overlaps: Vec::new(),
            keys,
            underlay,
            journal,
            intent: Intent {
                applications: applications::recorded(&record),
                record,
            },
            queues: BTreeMap::new(),
            lanes: None,
            foreign: None,
            successors_lanes: None,
            site: SiteLink::default(),
            resolver,
            readiness: KnownReadiness::default(),
            reservations: BTreeMap::new(),
            datapath: DatapathClient::new(places.datapath_socket()),
            leaving: false,
            retired: None,
            greeting: None,
            in_force: None,
            epoch: 0,
            problems: Vec::new(),
            boot_problems: Vec::new(),
            lane_problems: LaneProblems::default(),
        };
        agent
            .intent
            .record
            .peers
            .number(agent.host.cluster.peers.iter().map(|peer| peer.public_key));
        agent.intent.record.boots += 1;
        if !agent.has_site() {
            agent.intent.record.hosts.clear();
        }
        agent.look_at_lans();
        agent.readiness.keep(&agent.intent);
        agent.apply_boot_folder();
        // They stay true whatever comes into force later.
        agent.boot_problems = std::mem::take(&mut agent.problems);
        agent.boot_problems.extend(agent.journal.loss());
        if let Some(tuned) = underlay::tune(&agent.host, &agent.underlay) {
            agent.intent.record.tuned = Some(tuned);
        }
        // With a full disk, too, an agent that knows what to do is better than none.
        if let Err(error) = agent.save() {
            let problem = format!("what is told to this agent now would be forgotten: {error:#}");
            tracing::error!("{problem}");
            agent.boot_problems.push(problem);
        }
        tracing::info!(
            host = agent.host.host_id, site = agent.host.site, ordinal = %agent.host.ordinal,
            public_key = %agent.keys.foreign_lane.public_key(), applications = agent.intent.applications.len(),
            "the agent begins"
        );
        Ok(agent)
    }

    async fn serve(&mut self, mut calls: mpsc::Receiver<Call>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut reconnect = interval(RECONNECT);
        let mut successor = interval(RECONNECT);
        let mut devices = interval(DEVICE_CHECK);
        let mut underlay = interval(UNDERLAY_CHECK);
        let mut name_servers = interval(NAME_SERVER_CHECK);
        loop {
            let connected = self.datapath.is_connected();
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                event = self.datapath.event() => match event {
                    Some(Event::PortGone { port }) => self.handle_port_gone(port).await,
                    Some(Event::Question { question }) => self.resolver.handle_question(question),
                    Some(Event::Queries { queries }) => self.log_queries(&queries),
                    Some(Event::Readiness { .. }) => self.readiness.hint(),
                    Some(Event::Leaving) => self.leaving = true,
                    None => {
                        self.leaving = false;
                        reconnect.reset_immediately();
                    }
                },
                _ = reconnect.tick(), if !connected => self.look_for_datapath().await,
                _ = successor.tick(), if self.leaving => self.look_for_successor().await,
                () = Self::drained(&self.retired) => self.end_retired().await,
                call = calls.recv() => match call {
                    Some(Call::Request { connection, request, descriptors, answer }) => {
                        self.handle(connection, request, descriptors, answer).await;
                    }
                    Some(Call::Ended(connection)) => self.forget_reservation(connection),
                    None => return Ok(()),
                },
                told = self.resolver.found() => self.tell_answers(told).await,
                _ = name_servers.tick() => self.resolver.look(),
                () = self.site.changed() => self.note_site().await,
                () = self.readiness.due(), if connected && self.asks_instances() => self.look_at_readiness().await,
                _ = devices.tick(), if !self.queues.is_empty() => self.look_at_devices().await,
                _ = underlay.tick() => self.look_at_underlay().await,
            }
        }
    }

    async fn handle(
        &mut self,
        connection: ConnectionId,
        request: Request,
        descriptors: Vec<OwnedFd>,
        answer: oneshot::Sender<Response>,
    ) {
        let outcome = match request {
            Request::Apply { documents } => self.apply(documents).await,
            Request::Delete { tenant, application } => self.delete(tenant, application).await,
            Request::PrepareAttach { instance } => self.prepare_attach(connection, &instance).await,
            Request::CommitAttach => self.commit_attach(connection, descriptors).await,
            Request::Detach { instance } => self.detach(&instance).await,
            Request::Applications => Ok(self.applications()),
            Request::Networks => Ok(self.networks()),
            Request::Instances => Ok(self.instances().await),
            Request::Names => self.show_names(),
            Request::DnsQuery { query } => match self.dns_query(&query) {
                Ok(inquiry) => {
                    // The world outside takes its time.
                    tokio::spawn(async move { drop(answer.send(inquiry.answer().await)) });
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            Request::Status => Ok(self.status().await),
            Request::Peers => Ok(self.peers().await),
            Request::Drops => self.drops().await,
            Request::Flows { query } => self.flows(&query).await,
            Request::Trace { query } => self.trace(&query).await,
            Request::PolicyDiff { query } => self.policy_diff(query).await,
            Request::Graph => self.graph(),
        };
        // The asker may have gone; what was done stays done.
        drop(answer.send(outcome.unwrap_or_else(Response::Refused)));
    }

    /// Tells the datapath what was found out. One that is away asks again when it is back.
    async fn tell_answers(&mut self, told: Vec<Told>) {
        if told.is_empty() || !self.datapath.is_connected() {
            return;
        }
        if let Err(error) = self.datapath.tell_answers(told).await {
            tracing::warn!(%error, "answers about names of the world outside are lost: they are asked for again");
        }
    }

    /// What a plan for an intent follows from.
    fn inputs<'a>(&'a self, intent: &'a Intent) -> Inputs<'a> {
        Inputs {
            host: &self.host,
            applications: &intent.applications,
            attachments: &intent.record.attachments,
            hosts: &intent.record.hosts,
            silent: &self.site.unnamed,
            ready: self.readiness.ready(),
            peers: &intent.record.peers,
            keys: &self.keys,
            underlay_mtu: self.underlay.mtu,
            addresses: &self.underlay.addresses,
        }
    }

    /// Makes the plan of an intent.
    fn plan(&self, intent: &Intent) -> Result<EncodedPlan, Vec<String>> {
        let plan = reconcile::plan(&self.inputs(intent))
            .map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        EncodedPlan::of(&plan).map_err(|error| vec![format!("the plan can't be encoded: {error}")])
    }

    /// Keeps an intent, and puts it in force on every shard. When it can't be, nothing has changed. The datapath must
    /// be there: it isn't looked for between two steps of one change.
    async fn put_in_force(&mut self, intent: Intent) -> Result<u64, Refusal> {
        self.readiness.keep(&self.intent);
        let plan = self.plan(&intent).map_err(Refusal::of_all)?;
        // Kept first: what is in force and would be forgotten can't be taken back when the disk is full.
        let former = std::mem::replace(&mut self.intent, intent);
        if let Err(error) = self.save() {
            self.intent = former;
            return Err(Refusal::because(format!(
                "nothing was changed, because a restart would forget it: {error:#}"
            )));
        }
        if let Err(error) = self.install(&plan).await {
            self.intent = former;
            if let Err(error) = self.save() {
                self.tell_problem(format!("{error:#}"));
            }
            return Err(Refusal::because(error));
        }
        self.problems.clear();
        self.note_conflicts();
        self.publish();
        Ok(self.epoch)
    }

    async fn install(&mut self, plan: &EncodedPlan) -> Result<(), datapath::SeamError> {
        if self.in_force == Some(plan.digest) {
            return Ok(());
        }
        self.epoch = self.datapath.install(plan, false).await?;
        self.in_force = Some(plan.digest);
        tracing::info!(
            epoch = self.epoch,
            plan = format_args!("{:016x}", plan.digest.0),
            "a plan is in force"
        );
        Ok(())
    }

    fn save(&mut self) -> anyhow::Result<()> {
        self.note_time();
        self.intent.record.applications = self
            .intent
            .applications
            .values()
            .map(|document| document.source.clone())
            .collect();
        self.journal.save(&self.intent.record).with_context(|| {
            format!(
                "the journal can't be written at {}",
                self.journal.path().display()
            )
        })
    }

    async fn look_at_underlay(&mut self) {
        self.look_for_successor().await;
        self.look_for_lanes().await;
        self.join_site().await;
        self.note_site().await;
        if self.time_is_stale()
            && let Err(error) = self.save()
        {
            self.tell_problem(format!("{error:#}"));
        }
        let moved = self.look_at_lans();
        match underlay::find(&self.host) {
            Ok(found) if found != self.underlay => {
                tracing::info!(
                    device = found.device, mtu = found.mtu, addresses = ?found.addresses, "the underlay changed"
                );
                self.underlay = found;
                self.set_fragmentation();
            }
            Ok(_) | Err(_) if !moved => return,
            Ok(_) | Err(_) => {}
        }
        if moved && let Err(error) = self.save() {
            self.tell_problem(format!("{error:#}"));
        }
        if self.datapath.is_connected()
            && let Err(Refusal { problems, .. }) = self.put_in_force(self.intent.clone()).await
        {
            tracing::error!(
                ?problems,
                "the plan for the changed underlay can't be put in force"
            );
            self.problems = problems;
        }
    }

    /// Puts back what was changed on the machine. The datapath goes on with its last plan.
    fn end(&mut self) {
        if let Some(tuned) = self.intent.record.tuned.take() {
            underlay::restore(&tuned);
            if let Err(error) = self.save() {
                tracing::warn!("{error:#}");
            }
        }
        tracing::info!("the agent ends");
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
