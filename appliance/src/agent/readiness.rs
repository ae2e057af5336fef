//! Which instances of this host are ready: what the datapath finds out, kept, told by name, and told to the other hosts.
//!
//! The truth is in the datapath's report. It is looked at once a second while an instance is asked at all, and at once
//! when an event says that something changed, but no more often than every [`SOONEST`]: however many instances change
//! together, ten plans a second follow.
//!
//! A new instance of a service that is asked isn't ready before its first good answer. What was ready stays so until the
//! datapath says otherwise: when the document of a running instance begins to have it asked, and when a datapath starts
//! that knows nothing yet.

use super::api::ReadinessLine;
use super::reconcile::{Attachment, asked};
use super::{Agent, Intent};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidegate_stack::plan::{PortId, Readiness};
use tidegate_stack::stats::{ReadinessReport, Report};
use tokio::time::Instant;

/// How often the report is looked at while an instance is asked.
const REGULARLY: Duration = Duration::from_secs(1);
/// How long after a look the next one comes at the soonest, whatever happens.
const SOONEST: Duration = Duration::from_millis(100);

/// What is known of the readiness of this host's instances.
#[derive(Default)]
pub(super) struct KnownReadiness {
    /// Those that are ready, among them those that nobody asked while they were in force.
    ready: BTreeSet<PortId>,
    /// What the datapath said last of those that it asks.
    told: BTreeMap<PortId, ReadinessReport>,
    /// Since when they are ready or not, of those that changed while this agent ran.
    since: BTreeMap<PortId, Instant>,
    looked: Option<Instant>,
    /// Something changed since.
    hinted: bool,
}

impl KnownReadiness {
    /// The ports of those that are ready.
    pub(super) fn ready(&self) -> &BTreeSet<PortId> {
        &self.ready
    }

    /// Something changed: the report is to be looked at soon.
    pub(super) fn hint(&mut self) {
        self.hinted = true;
    }

    /// Until the report is to be looked at. Dropping the future loses nothing.
    pub(super) async fn due(&self) {
        let pause = if self.hinted { SOONEST } else { REGULARLY };
        match self.looked {
            Some(looked) => tokio::time::sleep_until(looked + pause).await,
            None if self.hinted => {}
            None => tokio::time::sleep(REGULARLY).await,
        }
    }

    /// Takes in what is true before an intent gives way to another one, and forgets ports that are gone.
    pub(super) fn keep(&mut self, intent: &Intent) {
        let attachments = &intent.record.attachments;
        let ports: BTreeSet<_> = attachments.iter().map(|attachment| attachment.port).collect();
        self.ready.retain(|port| ports.contains(port));
        let unasked = attachments
            .iter()
            .filter(|attachment| asked(&intent.applications, attachment).is_none());
        self.ready.extend(unasked.map(|attachment| attachment.port));
        self.told.retain(|port, _| ports.contains(port));
        self.since.retain(|port, _| ports.contains(port));
    }

    /// Takes a report in. The ports whose instances changed.
    fn note(&mut self, report: &Report, now: Instant) -> Vec<(PortId, bool)> {
        let mut changed = Vec::new();
        self.told.clear();
        for line in &report.readiness {
            self.told.insert(line.port, *line);
            // What a datapath that has just begun doesn't know yet stays as it was.
            let Some(ready) = line.ready else { continue };
            let was = match ready {
                true => !self.ready.insert(line.port),
                false => self.ready.remove(&line.port),
            };
            if was != ready {
                self.since.insert(line.port, now);
                changed.push((line.port, ready));
            }
        }
        changed
    }
}

impl Agent {
    /// Whether an instance may be sent to.
    pub(super) fn is_ready(&self, attachment: &Attachment) -> bool {
        self.asked(attachment).is_none() || self.readiness.ready.contains(&attachment.port)
    }

    /// Whether any instance is asked.
    pub(super) fn asks_instances(&self) -> bool {
        let mut attachments = self.intent.record.attachments.iter();
        attachments.any(|attachment| self.asked(attachment).is_some())
    }

    /// What an instance is asked.
    fn asked(&self, attachment: &Attachment) -> Option<&Readiness> {
        asked(&self.intent.applications, attachment)
    }

    /// Looks at what the datapath found out, and has what changed be told.
    pub(super) async fn look_at_readiness(&mut self) {
        self.readiness.looked = Some(Instant::now());
        self.readiness.hinted = false;
        let report = match self.datapath.report().await {
            Ok(report) => report,
            Err(error) => {
                return tracing::debug!(%error, "the datapath doesn't tell which instances are ready");
            }
        };
        if self.note_readiness(&report) {
            self.tell_readiness().await;
        }
    }

    /// Takes a report in. Whether anything changed.
    pub(super) fn note_readiness(&mut self, report: &Report) -> bool {
        let changed = self.readiness.note(report, Instant::now());
        for (port, ready) in &changed {
            let mut attachments = self.intent.record.attachments.iter();
            let Some(attachment) = attachments.find(|attachment| attachment.port == *port) else {
                continue;
            };
            let told = self.readiness.told.get(port);
            let error = told.and_then(|line| line.error).filter(|_| !ready);
            tracing::info!(
                application = %attachment.application, instance = attachment.name(), ready,
                because = error.map(|error| error.to_string()),
                "an instance's readiness changed"
            );
        }
        !changed.is_empty()
    }

    /// Puts what is known in force. It is no intent: nothing of it is written to the journal.
    pub(super) async fn tell_readiness(&mut self) {
        match self.plan(&self.intent) {
            Ok(plan) => {
                if let Err(error) = self.install(&plan).await {
                    self.tell_problem(error.to_string());
                }
            }
            Err(problems) => {
                for problem in problems {
                    self.tell_problem(problem);
                }
            }
        }
        self.publish();
    }

    /// What is known of an instance that is asked.
    pub(super) fn readiness_line(&self, attachment: &Attachment) -> Option<ReadinessLine> {
        let asked = self.asked(attachment)?;
        let told = self.readiness.told.get(&attachment.port);
        Some(ReadinessLine {
            ready: self.readiness.ready.contains(&attachment.port),
            asked: asked.question.to_string(),
            since_s: self
                .readiness
                .since
                .get(&attachment.port)
                .map(|since| since.elapsed().as_secs()),
            questions: told.map_or(0, |line| line.asked),
            failures: told.map_or(0, |line| line.failures),
            error: told.and_then(|line| Some(line.error?.to_string())),
        })
    }

    /// Why an instance of this host isn't ready, in words.
    pub(super) fn why_not_ready(&self, port: PortId) -> String {
        let told = self.readiness.told.get(&port);
        match told.and_then(|line| Some((line.error?, line.failures))) {
            Some((error, failures)) => format!("{error} ({failures} in a row)"),
            None => "it wasn't asked yet".to_owned(),
        }
    }
}
