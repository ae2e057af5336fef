//! Make before break: one datapath takes over from another while packets pass.
//!
//! ```text
//!  the one that leaves            agent             the successor, which waits
//!        ── Leaving ──────────────▶│
//!                                  │── Hello, SetLanes (next generation), AddPort … ──▶
//!                                  │── Install (standby) ─────────────────────────────▶
//!                                  │   own record: both generations
//!                                  │── Report, until it has the sessions of the other ▶
//!        ◀── SetLanes (no foreign lane) ── SetLanes (with the foreign lane) ──────────▶
//!        ◀── Retire ───────────────│── Install ───────────────────────────────────────▶
//!                                  │   own record: the new generation
//!                                  │   a second, for what is in flight to the old lanes
//!        ◀── End ──────────────────│
//! ```
//!
//! From `Retire` to the second `Install` nobody reads the ports: packets wait in their queues. What fails before is
//! taken back, and the one that leaves goes on; when it is gone, too, the successor is adopted like any datapath.
//!
//! **Foreign peers** know one key and one port, so their sessions can't be made beforehand: the successor gets their
//! lane together with the ports, and them only with the plan that comes then. They shake hands anew.

use super::datapath::{DatapathClient, EncodedPlan, Greeting, SeamError};
use super::{Agent, reconcile};
use std::collections::BTreeMap;
use std::time::Duration;
use tidegate_stack::plan::{PeerId, Reach};
use tidegate_stack::stats::{PeerReport, Report};
use tokio::time::Instant;

/// How long the successor may take for its sessions. A peer that doesn't answer must not keep the old datapath.
const SESSIONS_PATIENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether they stand.
const SESSIONS_CHECK: Duration = Duration::from_millis(50);
/// How long the old lanes are listened to after the others were told of the new ones.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// A datapath that no longer reads ports, and delivers what its lanes still receive.
pub(super) struct Retired {
    datapath: DatapathClient,
    until: Instant,
}

/// Why a successor didn't take over.
#[derive(Debug, thiserror::Error)]
enum HandoverError {
    #[error("its predecessor: {0}")]
    Predecessor(#[source] SeamError),
    #[error("{0}")]
    Successor(#[from] SeamError),
    #[error("its lanes can't be bound")]
    Lanes,
    #[error("there is no plan for it: {0}")]
    Plan(String),
}

impl Agent {
    /// One look whether a successor listens in place of the datapath that is connected; if so, it takes over.
    pub(super) async fn look_for_successor(&mut self) {
        if !self.datapath.is_succeeded() {
            return;
        }
        let mut successor = DatapathClient::new(self.places.datapath_socket());
        let greeting = match successor.connect().await {
            Ok(greeting) => greeting,
            Err(SeamError::Away { source, .. }) => {
                tracing::debug!(%source, "the successor is away");
                return;
            }
            Err(error) => return self.tell_problem(error.to_string()),
        };
        if self
            .greeting
            .as_ref()
            .is_some_and(|former| former.boot == greeting.boot)
        {
            // The same one under a new name; it goes by the newest connection.
            self.datapath = successor;
            return;
        }
        self.leaving = false;
        tracing::info!(
            datapath = greeting.pid,
            "a successor takes over from the datapath"
        );
        let begun = Instant::now();
        match self.take_over(&mut successor, &greeting).await {
            Ok((plan, epoch)) => {
                self.install_successor(successor, greeting, &plan, epoch);
                tracing::info!(
                    epoch,
                    took_ms = begun.elapsed().as_millis(),
                    "the successor carries the packets"
                );
            }
            Err(error) => {
                self.tell_problem(format!(
                    "a new datapath couldn't take over, the former one goes on: {error}"
                ));
                self.go_on_with_former().await;
            }
        }
    }

    /// Until the retired datapath may end. Dropping the future loses nothing.
    pub(super) async fn drained(retired: &Option<Retired>) {
        match retired {
            Some(retired) => tokio::time::sleep_until(retired.until).await,
            None => std::future::pending().await,
        }
    }

    /// Lets the retired datapath end.
    pub(super) async fn end_retired(&mut self) {
        if let Some(mut retired) = self.retired.take()
            && let Err(error) = retired.datapath.end().await
        {
            tracing::warn!(%error, "the former datapath ended before it was told to");
        }
    }

    async fn take_over(
        &mut self,
        successor: &mut DatapathClient,
        greeting: &Greeting,
    ) -> Result<(EncodedPlan, u64), HandoverError> {
        self.end_retired().await;
        self.prepare_successor(successor, greeting).await?;
        self.wait_for_sessions(successor, greeting.shards).await?;
        self.switch(successor).await
    }

    /// Gives the successor all that it needs but the right to read.
    async fn prepare_successor(
        &mut self,
        successor: &mut DatapathClient,
        greeting: &Greeting,
    ) -> Result<(), HandoverError> {
        let beside = self.lanes.as_ref().map(|lanes| lanes.generation);
        let lanes = self.bind_lanes(greeting, beside).ok_or(HandoverError::Lanes)?;
        lanes.give(successor, None, self.lane_features()).await?;
        for attachment in &self.intent.record.attachments {
            if let Some(queues) = self.queues.get(&attachment.port) {
                successor
                    .add_port(attachment.port, &attachment.interface, queues)
                    .await?;
            }
        }
        successor.install(&self.standby_plan()?, true).await?;
        // Only now: whoever hears of the lanes begins a handshake, and that must find a plan.
        self.successors_lanes = Some(lanes);
        self.publish();
        Ok(())
    }

    /// Waits, a bounded time, until the successor has a session with every host that the former datapath has one with.
    /// What the site tells meanwhile goes to both.
    async fn wait_for_sessions(
        &mut self,
        successor: &mut DatapathClient,
        shards: u32,
    ) -> Result<(), HandoverError> {
        let report = self.datapath.report().await.map_err(HandoverError::Predecessor)?;
        let wanted = self.sessions_wanted(&report, usize::try_from(shards).unwrap_or(usize::MAX));
        let mut given = self.standby_plan()?.digest;
        let deadline = Instant::now() + SESSIONS_PATIENCE;
        loop {
            let report = successor.report().await?;
            let stands = |id: &PeerId, count: &usize| {
                let mut peers = report.peers.iter();
                peers.any(|peer| peer.peer == *id && sessions(peer) >= *count)
            };
            let missing: Vec<_> = wanted
                .iter()
                .filter(|(id, count)| !stands(id, count))
                .map(|(id, _)| self.peer_of(*id))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                tracing::warn!(
                    ?missing,
                    patience_ms = SESSIONS_PATIENCE.as_millis(),
                    "the successor takes over without a session with these hosts"
                );
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(SESSIONS_CHECK) => {}
                () = self.site.changed() => {
                    self.note_site().await;
                    let plan = self.standby_plan()?;
                    if plan.digest != given {
                        given = plan.digest;
                        successor.install(&plan, true).await?;
                    }
                }
            }
        }
    }

    /// Moves the foreign lane and then the ports. What is in flight to the former lanes is still delivered.
    async fn switch(&mut self, successor: &mut DatapathClient) -> Result<(EncodedPlan, u64), HandoverError> {
        let plan = self
            .plan(&self.intent)
            .map_err(|problems| HandoverError::Plan(problems.join("; ")))?;
        let features = self.lane_features();
        if let Some(lanes) = &self.lanes {
            let given = lanes.give(&mut self.datapath, None, features).await;
            unless_gone(given)?;
        }
        if let Some(lanes) = &self.successors_lanes {
            lanes.give(successor, self.foreign.as_ref(), features).await?;
        }
        unless_gone(self.datapath.retire().await)?;
        let epoch = successor.install(&plan, false).await?;
        Ok((plan, epoch))
    }

    fn install_successor(
        &mut self,
        successor: DatapathClient,
        greeting: Greeting,
        plan: &EncodedPlan,
        epoch: u64,
    ) {
        let former = std::mem::replace(&mut self.datapath, successor);
        self.retired = former.is_connected().then(|| Retired {
            datapath: former,
            until: Instant::now() + IN_FLIGHT,
        });
        self.lanes = self.successors_lanes.take();
        self.greeting = Some(greeting);
        self.in_force = Some(plan.digest);
        self.epoch = epoch;
        self.publish();
    }

    /// Takes back what a successor that failed had got already.
    async fn go_on_with_former(&mut self) {
        self.successors_lanes = None;
        self.publish();
        if !self.datapath.is_connected() {
            return;
        }
        let again = async {
            self.give_lanes().await?;
            let plan = match self.plan(&self.intent) {
                Ok(plan) => plan,
                Err(problems) => {
                    problems
                        .into_iter()
                        .for_each(|problem| self.tell_problem(problem));
                    return Ok(());
                }
            };
            // It reads the ports again, if it had retired.
            self.in_force = None;
            self.install(&plan).await
        };
        if let Err(error) = again.await {
            self.tell_problem(error.to_string());
            self.datapath.disconnect();
        }
    }

    /// The plan for a successor that waits.
    fn standby_plan(&self) -> Result<EncodedPlan, HandoverError> {
        let mut plan = reconcile::plan(&self.inputs(&self.intent))
            .map_err(|errors| HandoverError::Plan(errors.to_string()))?;
        plan.peers.retain(|peer| matches!(peer.reach, Reach::Site(_)));
        EncodedPlan::of(&plan).map_err(|error| HandoverError::Plan(error.to_string()))
    }

    /// How many sessions the successor needs with each host of the site that the former datapath has some with.
    fn sessions_wanted(&self, report: &Report, shards: usize) -> BTreeMap<PeerId, usize> {
        let before = self.lanes.as_ref().map_or(1, |lanes| lanes.ports.len());
        let hosts = self.intent.record.hosts.iter().filter_map(|(name, host)| {
            let id = self.intent.record.peers.get_host(name)?;
            let theirs = host.generations.last()?.lanes.len();
            let former = sessions(report.peers.iter().find(|peer| peer.peer == id)?);
            (former > 0).then(|| (id, wanted(former, before, shards, theirs)))
        });
        hosts.collect()
    }
}

/// The sessions with the newest generation of a peer.
fn sessions(peer: &PeerReport) -> usize {
    let newest = peer.tunnels.iter().map(|tunnel| tunnel.generation).max();
    let tunnels = peer.tunnels.iter();
    tunnels
        .filter(|tunnel| Some(tunnel.generation) == newest && tunnel.handshake_age_ms.is_some())
        .count()
}

/// How many sessions stand for `former` ones of a datapath that had `before` shards, where now there are `shards`, and
/// the peer has `theirs`: shards that share no flow need no tunnel, so all that can be are the least common multiple.
fn wanted(former: usize, before: usize, shards: usize, theirs: usize) -> usize {
    let all = |own: usize| own * theirs / greatest_common_divisor(own, theirs).max(1);
    if former >= all(before) {
        all(shards)
    } else {
        former.min(all(shards))
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// A predecessor that is gone reads nothing any more, which is all that is asked of it.
fn unless_gone(told: Result<(), SeamError>) -> Result<(), HandoverError> {
    match told {
        Ok(()) | Err(SeamError::Away { .. }) => Ok(()),
        Err(error) => Err(HandoverError::Predecessor(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_sessions_are_waited_for_as_shards_share_flows() {
        assert_eq!(wanted(2, 2, 2, 2), 2);
        assert_eq!(wanted(2, 2, 1, 2), 2, "one shard talks with both");
        assert_eq!(wanted(1, 1, 4, 1), 4);
        assert_eq!(wanted(6, 2, 2, 3), 6);
        assert_eq!(wanted(1, 2, 2, 2), 1, "only one flow so far");
    }
}
