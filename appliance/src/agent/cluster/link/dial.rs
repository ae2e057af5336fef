//! The dialling end: a configured host is dialled whenever there is no link to it.

use super::super::SiteHost;
use super::super::certificates::Identity;
use super::super::events::SiteEventKind;
use super::tls::{self, Refusal, Verdict};
use super::{FromLink, Links, describe, proven_host, refusal_there, transport};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, RecvStream};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long an attempt may take. A link that was cut is there again this soon after it was healed.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long after the first failed attempt the next one begins; each failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Both ends of a pair may dial: the one with the greater name gives the other this advantage.
const ADVANTAGE: Duration = Duration::from_millis(50);
/// QUIC wants a name; it isn't sent, and who must be there is known otherwise.
const NOBODY: &str = "tidegate.internal";

/// Keeps a link to a host, until the task ends.
pub(in super::super) async fn dial(
    links: Links,
    identity: watch::Receiver<Arc<Identity>>,
    mut connected: watch::Receiver<BTreeSet<String>>,
    host: SiteHost,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let is_away = |connected: &BTreeSet<String>| !connected.contains(&host.host_id);
        if connected.wait_for(is_away).await.is_err() {
            return;
        }
        let identity = Arc::clone(&identity.borrow());
        if identity.name.host_id > host.host_id {
            sleep(ADVANTAGE).await;
            if connected.borrow().contains(&host.host_id) {
                continue;
            }
        }
        match attempt(&links, &identity, &host).await {
            Ok((connection, stream)) => {
                pause = FIRST_PAUSE;
                // A second link may have come in meanwhile: which of them stays is decided where both are known.
                links
                    .carry(connection, host.host_id.clone(), true, Some(stream))
                    .await;
            }
            Err(event) => {
                links.tell(FromLink::Event(event)).await;
                let left = connected.wait_for(|connected| connected.contains(&host.host_id));
                drop(timeout(pause, left).await);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }
}

async fn attempt(
    links: &Links,
    identity: &Arc<Identity>,
    host: &SiteHost,
) -> Result<(Connection, RecvStream), SiteEventKind> {
    let verdict = Verdict::default();
    let unreachable = |reason: String| SiteEventKind::Unreachable {
        host_id: host.host_id.clone(),
        address: host.address,
        reason,
    };
    let config =
        client_config(identity, host, verdict.clone()).map_err(|error| unreachable(error.to_string()))?;
    let address = SocketAddr::new(host.address, host.port);
    let made = async {
        let connection = links
            .endpoint
            .connect_with(config, address, NOBODY)
            .map_err(|error| unreachable(error.to_string()))?
            .await
            .map_err(|error| failed(host, &error, &verdict))?;
        // Only now it has seen this host's certificate, too.
        let stream = connection
            .accept_uni()
            .await
            .map_err(|error| failed(host, &error, &verdict))?;
        Ok((connection, stream))
    };
    match timeout(PATIENCE, made).await {
        Ok(Ok((connection, stream))) if proven_host(&connection).as_ref() == Some(&host.host_id) => {
            Ok((connection, stream))
        }
        Ok(Ok(_)) => Err(unreachable("it shows another certificate than before".to_owned())),
        Ok(Err(event)) => Err(event),
        Err(_) => Err(unreachable("it doesn't answer".to_owned())),
    }
}

fn client_config(
    identity: &Arc<Identity>,
    host: &SiteHost,
    verdict: Verdict,
) -> Result<ClientConfig, rustls::Error> {
    let tls = tls::client(identity, &host.host_id, verdict)?;
    let quic = QuicClientConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(quic));
    config.transport_config(transport());
    Ok(config)
}

fn failed(host: &SiteHost, error: &ConnectionError, verdict: &Verdict) -> SiteEventKind {
    let host_id = host.host_id.clone();
    let address = host.address;
    if let Some(Refusal { claimed, fault }) = verdict.refusal() {
        return SiteEventKind::CertificateRefused {
            claimed,
            address,
            fault,
        };
    }
    match refusal_there(error) {
        Some(reason) => SiteEventKind::RefusedThere {
            host_id: Some(host_id),
            address,
            reason: reason.to_owned(),
        },
        None => SiteEventKind::Unreachable {
            host_id,
            address,
            reason: describe(error),
        },
    }
}
