//! Names of the world outside: what instances ask and the datapath doesn't know is asked of name servers.
//!
//! The walk of a question: the datapath tells it ([`Resolver::handle_question`]) → a name that is nobody's business
//! outside is answered here ([`kept`]) → a task of its own asks ([`asking`]), the quickest name server first
//! ([`upstreams`]), so that nothing else that the agent does has to wait → an answer with private addresses isn't told
//! ([`rebinding`]) → what was found out is told to the datapath ([`Resolver::found`]), which remembers it.
//!
//! Nothing is remembered here, and nothing repeated: the datapath asks again every second as long as an instance waits. So
//! an agent or a datapath that begins anew has nothing to make good. A question that is in flight isn't asked once more, and
//! that is where a loop ends: when a name server's own way leads back to an instance's service address, the question comes
//! round to where it waits already, and fails.
//!
//! | bound | then |
//! |---|---|
//! | [`MOST_IN_FLIGHT`] questions | a further one fails |
//! | [`MOST_EXCHANGES`] exchanges with name servers | a further one waits for its turn |
//! | [`MOST_NOTES`] notes of tasks that the agent hasn't read | how a name server fared is forgotten; findings wait |
//! | [`MOST_TOLD`] answers, [`MOST_TOLD_BYTES`] in one message | the next message |
//! | [`MOST_WARNED`] names warned of within a minute | further ones are counted, not logged |

mod asking;
mod exchange;
mod kept;
mod rebinding;
mod resolv_conf;
#[cfg(test)]
mod tests;
mod upstreams;

pub(super) use asking::{Found, code_label};

use super::api::{DnsStatus, UpstreamSource, UpstreamState, UpstreamStatus};
use crate::config::host::{HostDocument, UpstreamDocument};
use asking::{Asking, MOST_EXCHANGES, Note};
use exchange::OwnPorts;
use ipnet::IpNet;
use rebinding::{Guard, own_prefixes};
use resolv_conf::ResolvConf;
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tidegate_stack::plan::{HostOrdinal, vtep_address};
use tidegate_stack::responder::dns::Question;
use tidegate_stack::responder::dns::forward::{Resolution, Told};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use upstreams::Upstreams;

/// Questions that are being asked.
const MOST_IN_FLIGHT: usize = 256;
/// Notes of tasks: more than the questions in flight have findings.
const MOST_NOTES: usize = 4 * MOST_IN_FLIGHT;
/// Answers in one message to the datapath.
const MOST_TOLD: usize = 64;
/// Bytes of answers after which a message has no further one.
const MOST_TOLD_BYTES: usize = 256 << 10;
/// Names of which a warning is remembered.
const MOST_WARNED: usize = 256;
/// Ports of lanes behind that of the foreign one.
const LANE_PORTS: u16 = 128;
/// VTEPs are a /24.
const VTEP_LENGTH: u8 = 24;
/// How often is warned of one name.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// The room's state. It is the agent's, and moves with its loop.
#[derive(Debug)]
pub(super) struct Resolver {
    upstreams: Upstreams,
    /// Whether anybody is to be asked.
    forwards: bool,
    resolv_conf: Option<ResolvConf>,
    guard: Arc<Guard>,
    own_ports: OwnPorts,
    /// Prefixes in which no name server can be.
    own: Vec<IpNet>,
    /// Name servers that aren't asked.
    left_out: Vec<String>,
    in_flight: HashSet<Question>,
    permits: Arc<Semaphore>,
    sender: mpsc::Sender<Note>,
    notes: mpsc::Receiver<Note>,
    /// When a name was last warned of.
    warned: BTreeMap<String, Instant>,
    refused: u64,
    overflown: u64,
}

/// Asks beside the agent's loop, with what is known of the name servers now.
#[derive(Clone, Debug)]
pub(super) struct Inquirer {
    asking: Asking,
    forwards: bool,
}

impl Inquirer {
    /// Asks as an instance's question would be.
    pub(super) async fn find(&self, question: &Question) -> Found {
        match known(question, &self.asking.guard, self.forwards) {
            Some(found) => found,
            None => self.ask(question).await,
        }
    }

    async fn ask(&self, question: &Question) -> Found {
        let (found, stragglers) = self.asking.find(question).await;
        if self.asking.has_room() {
            tokio::spawn(stragglers.listen());
        }
        found
    }
}

impl Resolver {
    /// A host's resolver; nobody is asked yet.
    pub(super) fn new(host: &HostDocument) -> Self {
        let (sender, notes) = mpsc::channel(MOST_NOTES);
        let vteps = IpNet::from(IpAddr::V4(vtep_address(HostOrdinal::MIN)));
        let vteps = IpNet::new(vteps.addr(), VTEP_LENGTH).unwrap_or(vteps);
        let first_lane = host.cluster.wireguard_port;
        let mut resolver = Self {
            upstreams: Upstreams::default(),
            forwards: true,
            resolv_conf: None,
            guard: Arc::new(Guard::new(host)),
            own_ports: OwnPorts {
                lanes: (first_lane, first_lane.saturating_add(LANE_PORTS)),
                control: host.cluster.control_port,
            },
            own: own_prefixes(host).into_iter().chain([vteps]).collect(),
            left_out: Vec::new(),
            in_flight: HashSet::new(),
            permits: Arc::new(Semaphore::new(MOST_EXCHANGES)),
            sender,
            notes,
            warned: BTreeMap::new(),
            refused: 0,
            overflown: 0,
        };
        match &host.dns.upstream {
            UpstreamDocument::Servers(servers) => {
                resolver.forwards = !servers.is_empty();
                resolver.set_upstreams(UpstreamSource::Document, servers);
            }
            UpstreamDocument::ResolvConf(file) => {
                resolver.resolv_conf = Some(ResolvConf::new(file.clone()));
                resolver.look();
            }
        }
        resolver
    }

    /// Looks whether there are other name servers now.
    pub(super) fn look(&mut self) {
        let servers = self.resolv_conf.as_mut().and_then(ResolvConf::look);
        if let Some(servers) = servers.map(<[SocketAddr]>::to_vec) {
            self.set_upstreams(UpstreamSource::ResolvConf, &servers);
        }
    }

    /// Who would ask an instance's service address, or somebody inside, isn't asked.
    fn set_upstreams(&mut self, source: UpstreamSource, servers: &[SocketAddr]) {
        let own = &self.own;
        let is_inside = |server: &SocketAddr| own.iter().any(|own| own.contains(&server.ip()));
        let (inside, outside): (Vec<_>, Vec<_>) = servers.iter().copied().partition(is_inside);
        self.left_out = inside
            .into_iter()
            .map(|server| {
                format!(
                    "the name server {server} isn't asked, because it is an address of the networks inside, and questions \
                     would go round in circles: name another one in {}",
                    match source {
                        UpstreamSource::Document => "`dns.upstream`",
                        UpstreamSource::ResolvConf => "the file of `dns.resolv-conf`",
                    }
                )
            })
            .collect();
        for problem in &self.left_out {
            tracing::warn!("{problem}");
        }
        self.upstreams.replace(source, &outside);
    }

    /// Has a question asked. One that is in flight goes on as it is.
    pub(super) fn handle_question(&mut self, question: Question) {
        if self.in_flight.contains(&question) {
            return;
        }
        let mut known = known(&question, &self.guard, self.forwards);
        if known.is_none() && self.in_flight.len() >= MOST_IN_FLIGHT {
            self.overflown += 1;
            known = Some(Found::Overflown);
        }
        if let Some(found) = known {
            // Where there is no room for it the question comes again.
            drop(self.sender.try_send(Note::Found(question, found)));
            return;
        }
        self.in_flight.insert(question.clone());
        let inquirer = self.inquirer();
        let notes = self.sender.clone();
        tokio::spawn(async move {
            let found = inquirer.ask(&question).await;
            drop(notes.send(Note::Found(question, found)).await);
        });
    }

    /// Who asks beside the agent's loop.
    pub(super) fn inquirer(&mut self) -> Inquirer {
        Inquirer {
            asking: Asking {
                candidates: self.upstreams.order(Instant::now()),
                guard: Arc::clone(&self.guard),
                own_ports: self.own_ports,
                permits: Arc::clone(&self.permits),
                notes: self.sender.clone(),
            },
            forwards: self.forwards,
        }
    }

    /// Waits until something was found out, and gives all of it. Dropping the future loses nothing.
    pub(super) async fn found(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        let mut bytes = 0;
        // A sender is kept: there is always a next note.
        let mut next = self.notes.recv().await;
        while let Some(note) = next {
            if let Some(answer) = self.take(note) {
                bytes += size_of_answer(&answer);
                told.push(answer);
            }
            if told.len() >= MOST_TOLD || bytes >= MOST_TOLD_BYTES {
                break;
            }
            next = self.notes.try_recv().ok();
        }
        told
    }

    fn take(&mut self, note: Note) -> Option<Told> {
        match note {
            Note::Asked(address) => self.upstreams.note_asked(address, Instant::now()),
            Note::Conduct(address, conduct) => self.upstreams.note(address, conduct),
            Note::Found(question, found) => {
                if found.was_asked() {
                    self.in_flight.remove(&question);
                }
                if let Found::Private { address, by } = &found {
                    self.refused += 1;
                    self.warn(&question, *address, *by);
                }
                return Some(Told {
                    question,
                    resolution: found.into_resolution(),
                });
            }
        }
        None
    }

    fn warn(&mut self, question: &Question, address: IpAddr, by: SocketAddr) {
        let now = Instant::now();
        self.warned.retain(|_, at| now < *at + WARN_AGAIN);
        let name = question.to_string();
        if self.warned.contains_key(&name) || self.warned.len() >= MOST_WARNED {
            return;
        }
        tracing::warn!(
            question = name, %address, upstream = %by,
            "a name of the world outside leads inside, and isn't answered: list its domain in `dns.private-domains` if it \
             is the site's own"
        );
        self.warned.insert(name, now);
    }

    /// What is wrong, one line each.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        let file = self.resolv_conf.as_ref().and_then(ResolvConf::problem);
        file.into_iter().chain(&self.left_out)
    }

    /// How it goes.
    pub(super) fn status(&self) -> DnsStatus {
        let upstream = |upstream: &upstreams::Upstream| UpstreamStatus {
            address: upstream.address,
            source: upstream.source,
            state: upstream.state(),
            round_trip_ms: upstream
                .round_trip
                .filter(|_| upstream.state() != UpstreamState::Untried)
                .map(|round_trip| round_trip.as_secs_f64() * 1000.0),
            asked: upstream.asked,
            answered: upstream.answered,
            failed: upstream.failed,
            forged: upstream.forged(),
        };
        DnsStatus {
            forwards: self.forwards,
            upstreams: self.upstreams.iter().map(upstream).collect(),
            in_flight: self.in_flight.len(),
            refused: self.refused,
            overflown: self.overflown,
            datapath: None,
        }
    }
}

/// What is found out without asking anybody.
fn known(question: &Question, guard: &Guard, forwards: bool) -> Option<Found> {
    match kept::answer(question, guard) {
        Some((reply, domain)) => Some(Found::Kept { reply, domain }),
        None => (!forwards).then_some(Found::Nowhere),
    }
}

fn size_of_answer(told: &Told) -> usize {
    match &told.resolution {
        Resolution::Reply(reply) => reply.message().len(),
        Resolution::Failed | Resolution::Refused => told.question.name().len(),
    }
}
