//! The dialled end: handshakes of whoever comes.

use super::super::certificates::Identity;
use super::super::events::{CertificateFault, SiteEventKind};
use super::tls::{self, Verdict};
use super::{FromLink, Links, describe, plain, proven_host, refusal_there, transport};
use anyhow::Context as _;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, Incoming, ServerConfig, TransportErrorCode};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Handshakes at a time.
const HANDSHAKES: usize = 32;
/// Handshakes at a time from one source.
const HANDSHAKES_PER_SOURCE: usize = 8;
/// How long a handshake may take: a stranger that comes no further holds no place for longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// TLS: the other end should have had a certificate (RFC 8446 §6.2).
const CERTIFICATE_REQUIRED: u8 = 116;

/// Accepts links until the endpoint is closed.
pub(in super::super) async fn accept(links: Links, identity: watch::Receiver<Arc<Identity>>) {
    let gate = Gate::default();
    let mut tasks = JoinSet::new();
    while let Some(incoming) = links.endpoint.accept().await {
        while tasks.try_join_next().is_some() {}
        let address = plain(incoming.remote_address());
        match gate.enter(address) {
            Entry::Open(pass) => {
                let identity = Arc::clone(&identity.borrow());
                tasks.spawn(handshake(links.clone(), incoming, identity, pass));
            }
            Entry::Crowded(_) if incoming.may_retry() && !incoming.remote_address_validated() => {
                // It can't fail: whether it may was asked.
                drop(incoming.retry());
            }
            Entry::Crowded(pass) => {
                let identity = Arc::clone(&identity.borrow());
                tasks.spawn(handshake(links.clone(), incoming, identity, pass));
            }
            Entry::Full => {
                incoming.ignore();
                // A hint: what waits in the channel tells as much.
                drop(
                    links
                        .told
                        .try_send(FromLink::Event(SiteEventKind::TooManyHandshakes { address })),
                );
            }
        }
    }
}

pub(super) fn server_config(identity: &Arc<Identity>, verdict: Verdict) -> anyhow::Result<ServerConfig> {
    let tls = tls::server(identity, verdict).context("the certificate and its private key don't fit")?;
    let quic = QuicServerConfig::try_from(tls).context("the cipher of QUIC is missing")?;
    let mut config = ServerConfig::with_crypto(Arc::new(quic));
    config
        .transport_config(transport())
        .max_incoming(HANDSHAKES)
        .migration(false);
    Ok(config)
}

async fn handshake(links: Links, incoming: Incoming, identity: Arc<Identity>, pass: Pass) {
    let address = plain(incoming.remote_address());
    let verdict = Verdict::default();
    let config = match server_config(&identity, verdict.clone()) {
        Ok(config) => Arc::new(config),
        Err(error) => {
            tracing::error!("no link can be accepted: {error:#}");
            return incoming.ignore();
        }
    };
    let made = match incoming.accept_with(config) {
        // Who comes no further gives its place back.
        Ok(connecting) => match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(made) => made,
            Err(_) => Err(ConnectionError::TimedOut),
        },
        Err(error) => Err(error),
    };
    drop(pass);
    match made {
        Ok(connection) => {
            // The verifier saw to it that there is a name.
            if let Some(host_id) = proven_host(&connection) {
                links.carry(connection, host_id, false, None).await;
            }
        }
        Err(error) => {
            let event = refused(address, &error, &verdict);
            links.tell(FromLink::Event(event)).await;
        }
    }
}

fn refused(address: IpAddr, error: &ConnectionError, verdict: &Verdict) -> SiteEventKind {
    if let Some(refusal) = verdict.refusal() {
        return SiteEventKind::CertificateRefused {
            claimed: refusal.claimed,
            address,
            fault: refusal.fault,
        };
    }
    let missing = TransportErrorCode::crypto(CERTIFICATE_REQUIRED);
    match error {
        ConnectionError::TransportError(error) if error.code == missing => {
            SiteEventKind::CertificateRefused {
                claimed: None,
                address,
                fault: CertificateFault::Missing,
            }
        }
        _ => match refusal_there(error) {
            Some(reason) => SiteEventKind::RefusedThere {
                host_id: None,
                address,
                reason: reason.to_owned(),
            },
            None => SiteEventKind::HandshakeFailed {
                address,
                reason: describe(error),
            },
        },
    }
}

/// Counts handshakes.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

enum Entry {
    /// There is room.
    Open(Pass),
    /// There is room for those who are where they say.
    Crowded(Pass),
    Full,
}

/// A place among the handshakes.
struct Pass {
    gate: Gate,
    source: IpAddr,
}

impl Gate {
    fn enter(&self, address: IpAddr) -> Entry {
        let source = match address {
            IpAddr::V4(_) => address,
            // Whoever has one address of a /64 has them all.
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        };
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = sources.values().sum();
        let own = sources.get(&source).copied().unwrap_or(0);
        if all >= HANDSHAKES || own >= HANDSHAKES_PER_SOURCE {
            return Entry::Full;
        }
        sources.insert(source, own + 1);
        let pass = Pass {
            gate: self.clone(),
            source,
        };
        if all >= HANDSHAKES / 2 {
            Entry::Crowded(pass)
        } else {
            Entry::Open(pass)
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut sources = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_bounded_in_all_and_per_source() {
        let gate = Gate::default();
        let one = IpAddr::V4([192, 0, 2, 1].into());
        let passes: Vec<_> = (0..HANDSHAKES_PER_SOURCE).map(|_| gate.enter(one)).collect();
        assert!(passes.iter().all(|entry| matches!(entry, Entry::Open(_))));
        assert!(matches!(gate.enter(one), Entry::Full));
        let of = |number: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, number));
        let more: Vec<_> = (0..24).map(|number| gate.enter(of(number))).collect();
        assert!(matches!(more.last(), Some(Entry::Crowded(_))));
        assert!(matches!(gate.enter(of(99)), Entry::Full));
        drop((passes, more));
        assert!(gate.0.lock().unwrap().is_empty());
        let neighbour = |number: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number));
        let passes: Vec<_> = (0..8).map(|number| gate.enter(neighbour(number))).collect();
        assert!(matches!(gate.enter(neighbour(9)), Entry::Full));
        drop(passes);
    }
}
