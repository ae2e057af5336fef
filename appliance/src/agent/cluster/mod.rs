//! The hosts of a site, which tell each other what they have.
//!
//! ```text
//!   agent ──publish──▶ ┌───────────────────────┐ ◀──messages──▶ link to host b   (QUIC, mutual TLS 1.3)
//!         ◀──view──── │ the task: one Replica │ ◀──messages──▶ link to host c
//!                      └───────────────────────┘
//! ```
//!
//! [`replica`] decides what is known and who is alive, and touches nothing; [`link`] carries its messages, and lets
//! nobody in without a certificate of the site ([`certificates`]). The hosts of a site trust each other: one may pass
//! on what another said.

pub(crate) mod certificates;
mod events;
mod link;
mod message;
pub(crate) mod record;
mod replica;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use events::{CertificateFault, SiteEvent, SiteEventKind};
pub(crate) use record::HostRecord;

use certificates::Clock;
use record::RecordBody;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use task::Task;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What a host needs to take part in its site.
#[derive(Clone, Debug)]
pub(crate) struct SiteConfig {
    /// This host.
    pub(crate) host_id: String,
    /// Its site.
    pub(crate) site: String,
    /// Where other hosts connect to. `[::]` takes IPv4, too, and stands for `0.0.0.0` where there is no IPv6.
    pub(crate) listen: SocketAddr,
    /// The site's authority, or authorities while one replaces another.
    pub(crate) ca_file: PathBuf,
    /// This host's certificate, and what leads from it to the authority.
    pub(crate) certificate_file: PathBuf,
    /// The certificate's private key.
    pub(crate) private_key_file: PathBuf,
    /// Where other hosts are. An entry of this host itself is skipped.
    pub(crate) hosts: Vec<SiteHost>,
    /// Counts this agent's starts; greater at each of them.
    pub(crate) boot: u64,
    /// A time that is over for sure: what a clock says that was reset is earlier, and isn't believed.
    pub(crate) known_time: SystemTime,
}

/// Another host, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteHost {
    /// Its name.
    pub(crate) host_id: String,
    /// Its address.
    pub(crate) address: IpAddr,
    /// Its control port.
    pub(crate) port: u16,
}

/// What is known of the site.
#[derive(Clone, Debug, Default)]
pub(crate) struct SiteView {
    /// The records of the other hosts that are alive.
    pub(crate) records: BTreeMap<String, HostRecord>,
    /// The other hosts that were configured, are connected, or are alive, by name.
    pub(crate) hosts: Vec<HostStatus>,
    /// What happened lately, the newest last.
    pub(crate) events: VecDeque<SiteEvent>,
    /// How many events are no longer among them.
    pub(crate) events_lost: u64,
    /// This host's boot count, which may have been raised: the next start must have a greater one.
    pub(crate) boot: u64,
}

/// Another host, as it looks from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostStatus {
    /// Its name.
    pub(crate) host_id: String,
    /// Where it is connected from, was configured, or says it is.
    pub(crate) address: IpAddr,
    /// Whether there is a link to it.
    pub(crate) connected: bool,
    /// Round-trip time of the link.
    pub(crate) rtt: Option<Duration>,
    /// When it gave its last sign of life, by whatever way; `None`: never.
    pub(crate) last_heard: Option<Instant>,
    /// What is wrong with it.
    pub(crate) problem: Option<String>,
}

/// This host's part in its site. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Site {
    publish: watch::Sender<Option<RecordBody>>,
    view: watch::Receiver<Arc<SiteView>>,
    task: AbortHandle,
}

impl Site {
    /// Starts the link. What can go wrong later is told by events.
    ///
    /// # Errors
    /// When a file can't be read or is no use, or the port can't be bound: which, and what to do.
    pub(crate) async fn start(config: SiteConfig) -> anyhow::Result<Self> {
        Self::start_by(config, SystemTime::now).await
    }

    /// Starts the link by this clock.
    async fn start_by(config: SiteConfig, clock: fn() -> SystemTime) -> anyhow::Result<Self> {
        let (publish, published) = watch::channel(None);
        let (show, view) = watch::channel(Arc::default());
        let clock = Clock::new(clock, config.known_time);
        let task = Task::new(config, clock, published, show)?;
        let task = tokio::spawn(task.run()).abort_handle();
        Ok(Self { publish, view, task })
    }

    /// This host's record from now on; everybody is told at once. The same one again is nothing new.
    pub(crate) fn publish(&self, body: RecordBody) {
        self.publish.send_replace(Some(body));
    }

    /// Waits until something else is known than at the last call. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            // The task has ended, and so nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// What is known now.
    pub(crate) fn view(&self) -> Arc<SiteView> {
        Arc::clone(&self.view.borrow())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}
