//! Finding a datapath, and making it and the agent agree: whoever started later gets everything from the other.

use super::datapath::{Greeting, SeamError};
use super::{Agent, DATAPATH_PATIENCE, RECONNECT, Refusal};
use tidegate_stack::plan::PortId;

impl Agent {
    /// One attempt to find the datapath; it being away is no news.
    pub(super) async fn look_for_datapath(&mut self) {
        match self.greet().await {
            Ok(()) => {}
            Err(SeamError::Away { source, .. }) => tracing::debug!(%source, "the datapath is away"),
            Err(error) => self.tell_problem(error.to_string()),
        }
    }

    /// Waits, a bounded time, until the datapath is there.
    pub(super) async fn wait_for_datapath(&mut self) -> Result<(), Refusal> {
        let deadline = tokio::time::Instant::now() + DATAPATH_PATIENCE;
        while !self.datapath.is_connected() {
            if let Err(error) = self.greet().await {
                if tokio::time::Instant::now() > deadline || !matches!(error, SeamError::Away { .. }) {
                    return Err(Refusal::because(error));
                }
                tokio::time::sleep(RECONNECT).await;
            }
        }
        Ok(())
    }

    /// Connects and makes both agree. What failed in the middle is begun anew with another connection, so that half an
    /// agreement is never taken for a whole one.
    async fn greet(&mut self) -> Result<(), SeamError> {
        let greeting = self.datapath.connect().await?;
        let agreed = self.agree(greeting).await;
        if agreed.is_err() {
            self.datapath.disconnect();
        }
        agreed
    }

    /// Adopts what the datapath holds, gives it what it lacks, and installs the plan unless it runs already.
    async fn agree(&mut self, greeting: Greeting) -> Result<(), SeamError> {
        // One that waits for a predecessor has to be told that there is none any more.
        self.in_force = greeting.plan.filter(|_| !greeting.standby);
        self.agree_on_lanes(&greeting).await?;
        let lost = self.agree_on_ports(&greeting).await?;
        self.greeting = Some(greeting.clone());
        self.problems.clear();
        if !lost.is_empty() {
            self.intent
                .record
                .attachments
                .retain(|attachment| !lost.contains(&attachment.port));
            if let Err(error) = self.save() {
                self.tell_problem(format!("{error:#}"));
            }
        }
        if self.asks_instances() {
            // What a former agent told by name must not be taken back for a moment.
            let report = self.datapath.report().await?;
            self.note_readiness(&report);
        }
        match self.plan(&self.intent) {
            Ok(plan) if self.in_force == Some(plan.digest) => {
                self.epoch = self.datapath.report().await?.epoch;
                tracing::info!(
                    datapath = greeting.pid,
                    epoch = self.epoch,
                    "the datapath runs the plan already"
                );
            }
            Ok(plan) => match self.install(&plan).await {
                // As below: the connection stays, so that the next good document can mend it.
                Err(error @ SeamError::Refused(_)) => {
                    self.tell_problem(error.to_string());
                    self.publish();
                    return Ok(());
                }
                installed => installed?,
            },
            Err(problems) => {
                // The datapath goes on with its last plan, and the next good document mends it.
                for problem in problems {
                    self.tell_problem(problem);
                }
                self.publish();
                return Ok(());
            }
        }
        self.publish();
        self.drop_strangers(&greeting).await?;
        // Without systemd there is nobody to notify.
        drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
        Ok(())
    }

    /// Adopts the queues that only the datapath holds, gives it those that only the agent holds, and names the ports
    /// whose queues nobody holds any more.
    async fn agree_on_ports(&mut self, greeting: &Greeting) -> Result<Vec<PortId>, SeamError> {
        let mut lost = Vec::new();
        for attachment in self.intent.record.attachments.clone() {
            let port = attachment.port;
            let agreed = match (greeting.ports.contains(&port), self.queues.get(&port)) {
                (true, Some(_)) => continue,
                (true, None) => self.datapath.adopt(Some(port)).await.map(|queues| {
                    self.queues.insert(port, queues);
                }),
                (false, Some(queues)) => self.datapath.add_port(port, &attachment.interface, queues).await,
                (false, None) => Err(SeamError::Refused(
                    "neither process holds the device's queues".to_owned(),
                )),
            };
            match agreed {
                Ok(()) => {}
                Err(SeamError::Refused(reason)) => {
                    tracing::warn!(
                        application = %attachment.application, instance = attachment.name(), reason,
                        "the instance's device is lost: attach it again, it keeps its addresses"
                    );
                    self.queues.remove(&port);
                    lost.push(port);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(lost)
    }

    /// Closes the ports that the datapath holds and no attachment names: what an agent left that was killed in the
    /// middle of attaching.
    async fn drop_strangers(&mut self, greeting: &Greeting) -> Result<(), SeamError> {
        for port in &greeting.ports {
            if !self
                .intent
                .record
                .attachments
                .iter()
                .any(|attachment| attachment.port == *port)
            {
                tracing::warn!(%port, "the datapath holds a port that was never finished or is lost; closing it");
                self.datapath.remove_port(*port).await?;
            }
        }
        Ok(())
    }

    /// Logs a problem once, and keeps it for `status`.
    pub(super) fn tell_problem(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            tracing::error!("{problem}");
            self.problems.push(problem);
        }
    }
}
