//! One question, put to as many name servers as it takes.
//!
//! The first one is asked; the next one [`STAGGER`](super::upstreams::STAGGER) later, or at once when one says that it
//! can't tell. The first answer is taken. Who was asked and didn't answer yet is listened to for another [`LINGER`]: how
//! it fares is learned, and no more.

use super::exchange::{self, Outcome, OwnPorts};
use super::rebinding::Guard;
use super::upstreams::{Candidate, Conduct};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tidegate_stack::responder::dns::forward::Resolution;
use tidegate_stack::responder::dns::{Question, Reply};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long an answer may take, whoever is asked: less than who asked waits.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long who is too late is listened to.
const LINGER: Duration = Duration::from_secs(1);
/// Exchanges at a time, each with a socket; one more waits for its turn.
pub(super) const MOST_EXCHANGES: usize = 256;

/// What a task tells the agent.
#[derive(Debug)]
pub(super) enum Note {
    /// A name server was asked. This and the next may get lost.
    Asked(SocketAddr),
    /// What it did about it.
    Conduct(SocketAddr, Conduct),
    /// What was found out about a question in flight.
    Found(Question, Found),
}

/// What was found out, and how.
#[derive(Debug)]
pub(crate) enum Found {
    /// A name server's answer.
    Answered {
        /// What it said.
        reply: Reply,
        /// Who.
        by: SocketAddr,
        /// How long it took, since the question came.
        after: Duration,
    },
    /// A name that nobody is asked about.
    Kept {
        /// What is answered instead.
        reply: Reply,
        /// The domain that it is in.
        domain: &'static str,
    },
    /// A name server's answer that isn't told, because an address in it is private.
    Private {
        /// Such an address.
        address: IpAddr,
        /// Who said so.
        by: SocketAddr,
    },
    /// The host document has nobody asked.
    Nowhere,
    /// Nobody could tell.
    Failed {
        /// Who was asked, and what came of it.
        tried: Vec<(SocketAddr, String)>,
    },
    /// Too many questions are in flight.
    Overflown,
}

impl Found {
    /// Whether somebody was asked, or would have been if there were anybody.
    pub(super) fn was_asked(&self) -> bool {
        match self {
            Self::Answered { .. } | Self::Private { .. } | Self::Failed { .. } => true,
            Self::Kept { .. } | Self::Nowhere | Self::Overflown => false,
        }
    }

    /// What the datapath is told.
    pub(super) fn into_resolution(self) -> Resolution {
        match self {
            Self::Answered { reply, .. } | Self::Kept { reply, .. } => Resolution::Reply(reply),
            Self::Private { .. } | Self::Nowhere => Resolution::Refused,
            Self::Failed { .. } | Self::Overflown => Resolution::Failed,
        }
    }
}

/// Who may be asked, and how.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// In the order of their times.
    pub(super) candidates: Vec<Candidate>,
    pub(super) guard: Arc<Guard>,
    pub(super) own_ports: OwnPorts,
    /// A permit for each exchange, of [`MOST_EXCHANGES`].
    pub(super) permits: Arc<Semaphore>,
    pub(super) notes: mpsc::Sender<Note>,
}

/// Exchanges whose answers nobody waits for any more.
#[derive(Debug)]
pub(super) struct Stragglers {
    exchanges: JoinSet<Done>,
    addresses: Vec<SocketAddr>,
    notes: mpsc::Sender<Note>,
}

#[derive(Debug)]
struct Done {
    address: SocketAddr,
    outcome: Outcome,
    after: Duration,
}

impl Asking {
    /// Asks; gives what was found out, and who is still being waited for.
    pub(super) async fn find(&self, question: &Question) -> (Found, Stragglers) {
        let began = Instant::now();
        let until = began + PATIENCE;
        let mut exchanges = JoinSet::new();
        let mut asked: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut tried = Vec::new();
        let mut refused = Vec::new();
        let mut candidates = self.candidates.iter().peekable();
        // How much earlier than planned those are asked that weren't yet.
        let mut hurry = Duration::ZERO;
        let found = loop {
            let next = candidates
                .peek()
                .map(|candidate| began + candidate.after.saturating_sub(hurry));
            if next.is_none() && exchanges.is_empty() {
                break Found::Failed { tried };
            }
            let done = tokio::select! {
                biased;
                Some(done) = exchanges.join_next(), if !exchanges.is_empty() => done,
                () = sleep_until(next.unwrap_or(until)), if next.is_some() => {
                    if let Some(candidate) = candidates.next() {
                        asked.push((candidate.address, Instant::now()));
                        exchanges.spawn(self.exchange(question, candidate, until));
                    }
                    continue;
                }
            };
            let Ok(Done {
                address,
                outcome,
                after,
            }) = done
            else {
                continue;
            };
            asked.retain(|(other, _)| *other != address);
            match conduct(&outcome, after) {
                Conduct::Refused => refused.push((address, after)),
                conduct => self.note(address, conduct),
            }
            match outcome {
                Outcome::Answer(reply) => break self.judge(question, reply, address, began.elapsed()),
                Outcome::Code(code) => tried.push((address, format!("said {}", code_label(code)))),
                Outcome::Silence => tried.push((address, "didn't answer".to_owned())),
                Outcome::Unreachable(error) => tried.push((address, format!("isn't reached: {error}"))),
            }
            if let Some(candidate) = candidates.peek() {
                hurry = hurry.max(candidate.after.saturating_sub(began.elapsed()));
            }
        };
        // What everybody refuses is nobody's fault.
        let is_answered = matches!(found, Found::Answered { .. } | Found::Private { .. });
        for (address, after) in refused {
            let conduct = if is_answered {
                Conduct::Refused
            } else {
                Conduct::Failed(after)
            };
            self.note(address, conduct);
        }
        for (address, since) in &asked {
            self.note(*address, Conduct::Late(since.elapsed()));
        }
        let stragglers = Stragglers {
            exchanges,
            addresses: asked.into_iter().map(|(address, _)| address).collect(),
            notes: self.notes.clone(),
        };
        (found, stragglers)
    }

    /// Whether there is room for exchanges that nobody waits for.
    pub(super) fn has_room(&self) -> bool {
        self.permits.available_permits() > MOST_EXCHANGES / 2
    }

    fn exchange(
        &self,
        question: &Question,
        candidate: &Candidate,
        until: Instant,
    ) -> impl Future<Output = Done> + use<> {
        let (question, candidate) = (question.clone(), candidate.clone());
        let (permits, notes) = (Arc::clone(&self.permits), self.notes.clone());
        let own_ports = self.own_ports;
        async move {
            let permit = timeout_at(until, permits.acquire_owned()).await;
            let began = Instant::now();
            let outcome = match permit {
                Ok(Ok(_permit)) => {
                    drop(notes.try_send(Note::Asked(candidate.address)));
                    exchange::ask(&question, &candidate, own_ports, until).await
                }
                Ok(Err(_)) | Err(_) => Outcome::Silence,
            };
            Done {
                address: candidate.address,
                outcome,
                after: began.elapsed(),
            }
        }
    }

    fn judge(&self, question: &Question, reply: Reply, by: SocketAddr, after: Duration) -> Found {
        match self.guard.find_private(question, &reply) {
            Ok(None) => Found::Answered { reply, by, after },
            Ok(Some(address)) => Found::Private { address, by },
            Err(fault) => Found::Failed {
                tried: vec![(by, format!("gave an answer that can't be read: {fault}"))],
            },
        }
    }

    fn note(&self, address: SocketAddr, conduct: Conduct) {
        drop(self.notes.try_send(Note::Conduct(address, conduct)));
    }
}

impl Stragglers {
    /// Listens to them for a while.
    pub(super) async fn listen(mut self) {
        let until = Instant::now() + LINGER;
        while let Ok(Some(done)) = timeout_at(until, self.exchanges.join_next()).await {
            let Ok(Done {
                address,
                outcome,
                after,
            }) = done
            else {
                continue;
            };
            self.addresses.retain(|other| *other != address);
            drop(
                self.notes
                    .try_send(Note::Conduct(address, conduct(&outcome, after))),
            );
        }
        for address in self.addresses {
            drop(self.notes.try_send(Note::Conduct(address, Conduct::Unanswered)));
        }
    }
}

fn conduct(outcome: &Outcome, after: Duration) -> Conduct {
    match outcome {
        Outcome::Answer(_) => Conduct::Answered(after),
        Outcome::Code(exchange::REFUSED) => Conduct::Refused,
        Outcome::Code(_) => Conduct::Failed(after),
        Outcome::Silence | Outcome::Unreachable(_) => Conduct::Unanswered,
    }
}

/// RFC 1035 §4.1.1.
pub(crate) fn code_label(code: u16) -> String {
    match code {
        0 => "NOERROR".to_owned(),
        exchange::FORMAT_ERROR => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        exchange::NOT_IMPLEMENTED => "NOTIMP".to_owned(),
        exchange::REFUSED => "REFUSED".to_owned(),
        other => format!("code {other}"),
    }
}
