//! Stand-in for the site link: the contract's types, and a site of one host.

pub(crate) mod record;

pub(crate) use record::HostRecord;

use record::RecordBody;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// How a host takes part in its site.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "stand-in")]
pub(crate) struct SiteConfig {
    pub(crate) host_id: String,
    pub(crate) site: String,
    pub(crate) listen: SocketAddr,
    pub(crate) ca_file: PathBuf,
    pub(crate) certificate_file: PathBuf,
    pub(crate) private_key_file: PathBuf,
    pub(crate) hosts: Vec<SiteHost>,
    pub(crate) boot: u64,
    pub(crate) known_time: SystemTime,
}

/// A host to call.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "stand-in")]
pub(crate) struct SiteHost {
    pub(crate) host_id: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// What is known of the site.
#[derive(Clone, Debug, Default)]
pub(crate) struct SiteView {
    pub(crate) records: BTreeMap<String, HostRecord>,
    pub(crate) hosts: Vec<HostStatus>,
    pub(crate) events: VecDeque<SiteEvent>,
    #[expect(dead_code, reason = "stand-in")]
    pub(crate) events_lost: u64,
    pub(crate) boot: u64,
}

/// How it stands with a host.
#[derive(Clone, Debug)]
pub(crate) struct HostStatus {
    pub(crate) host_id: String,
    pub(crate) address: IpAddr,
    pub(crate) connected: bool,
    pub(crate) rtt: Option<Duration>,
    pub(crate) last_heard: Option<Instant>,
    pub(crate) problem: Option<String>,
}

/// Something that happened, once or several times.
#[derive(Clone, Debug)]
pub(crate) struct SiteEvent {
    pub(crate) at: SystemTime,
    pub(crate) times: u64,
    pub(crate) kind: SiteEventKind,
}

/// What can happen.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "stand-in")]
pub(crate) enum SiteEventKind {
    Appeared { host_id: String },
}

impl fmt::Display for SiteEventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Appeared { host_id } => write!(formatter, "{host_id} is alive"),
        }
    }
}

/// The link.
pub(crate) struct Site {
    boot: u64,
    published: Mutex<Option<RecordBody>>,
}

impl Site {
    #[expect(clippy::unused_async, reason = "stand-in")]
    pub(crate) async fn start(config: SiteConfig) -> anyhow::Result<Self> {
        Ok(Self {
            boot: config.boot,
            published: Mutex::new(None),
        })
    }

    pub(crate) fn publish(&self, body: RecordBody) {
        if let Ok(mut published) = self.published.lock() {
            *published = Some(body);
        }
    }

    pub(crate) async fn changed(&mut self) {
        std::future::pending().await
    }

    pub(crate) fn view(&self) -> Arc<SiteView> {
        Arc::new(SiteView {
            boot: self.boot,
            ..SiteView::default()
        })
    }
}
