//! Links to the other hosts: QUIC with a certificate of the site at both ends, one connection a pair.
//!
//! ```text
//! endpoint ─┬─ accept ─▶ handshake (bounded) ─▶ link     one task each; a link carries frames both ways
//!           └─ dial host ─▶ handshake ─────────▶ link     on a unidirectional stream per direction
//! ```
//!
//! A frame is a length (4 bytes, big-endian) and that many bytes of [`Message`]. A dialled host speaks when it has
//! seen the dialler's certificate; a dialler takes the link for made when it hears that.
//!
//! **Bounds.** 32 handshakes at a time, 8 from one source (a /64 in IPv6); when half of them are taken a source must
//! prove its address first (RFC 9000 §8.1.2), and what is beyond is ignored. [`MAX_MESSAGE`] bytes a frame,
//! [`WAITING`] frames that a host is slow to take: then its link ends, and a new one begins with a digest.

mod accept;
mod dial;
#[cfg(test)]
pub(super) mod raw;
mod tls;

pub(super) use accept::accept;
pub(super) use dial::dial;

use super::certificates::{Claims, Identity};
use super::events::SiteEventKind;
use super::message::{MAX_MESSAGE, Message};
use super::replica::LinkId;
use anyhow::Context as _;
use quinn::{Connection, ConnectionError, Endpoint, EndpointConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Frames that wait for a host to take them.
const WAITING: usize = 64;
/// After which silence a link is dead.
const IDLE: Duration = Duration::from_secs(3);
/// What a round trip in a site is taken for before it was measured: a lost packet is sent again after three of them.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// What a stream may hold that wasn't read yet.
const WINDOW: u32 = 1 << 20;

/// A link as it is made.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) host_id: String,
    pub(super) address: IpAddr,
    /// Whether this host dialled.
    pub(super) dialled: bool,
    pub(super) connection: Connection,
    /// Frames to send.
    pub(super) frames: mpsc::Sender<Arc<[u8]>>,
}

/// What links tell.
pub(super) enum FromLink {
    Made(Link),
    Message(LinkId, Message),
    Ended(LinkId, String),
    Event(SiteEventKind),
}

/// Why a link was ended from here; the other end is told the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The host ends.
    Over = 0,
    /// There is another link between the same two.
    Second = 1,
    /// It said what can't be.
    Illegal = 2,
    /// It doesn't take what it is sent.
    Congested = 3,
}

impl Ending {
    pub(super) fn close(self, connection: &Connection) {
        connection.close(VarInt::from_u32(self as u32), b"");
    }
}

/// A message as a frame.
pub(super) fn frame(message: &Message) -> Option<Arc<[u8]>> {
    let bytes = message.encode().ok()?;
    let length = u32::try_from(bytes.len()).ok()?;
    Some([&length.to_be_bytes(), bytes.as_slice()].concat().into())
}

/// Binds the control port.
///
/// # Errors
/// When it can't be bound: why, and what to do.
pub(super) fn bind(listen: SocketAddr, identity: &Arc<Identity>) -> anyhow::Result<Endpoint> {
    let bound = socket(listen).or_else(|error| {
        // A machine may have no IPv6 at all.
        if listen.ip().is_unspecified() && listen.is_ipv6() {
            socket(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listen.port()))
        } else {
            Err(error)
        }
    });
    let socket = bound.with_context(|| {
        format!("the control port {listen}/udp can't be bound (`cluster.control-port` sets another one)")
    })?;
    let server = accept::server_config(identity, tls::Verdict::default())?;
    Endpoint::new(
        endpoint_config(identity),
        Some(server),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .context("the control port can't be used")
}

fn socket(listen: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(listen),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// A host that starts again tells its neighbours at once that their links are dead (RFC 9000 §10.3), which it can,
/// because what that takes follows from its private key. Nobody else gets such an answer: a connection id must be one
/// of this host's.
fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.private_key.secret_der());
    let derive = |label: &[u8]| ring::hmac::sign(&secret, label);
    let reset = ring::hmac::Key::new(
        ring::hmac::HMAC_SHA256,
        derive(b"tidegate stateless reset").as_ref(),
    );
    let ids = derive(b"tidegate connection ids");
    let ids = ids
        .as_ref()
        .iter()
        .take(8)
        .fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)));
    config
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(WINDOW))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(IDLE.try_into().ok())
        .keep_alive_interval(Some(super::replica::PROBE))
        .initial_rtt(ROUND_TRIP);
    Arc::new(transport)
}

/// Whose certificate the other end showed; it was proven by the handshake.
fn proven_host(connection: &Connection) -> Option<String> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    Some(Claims::of(chain.first()?).ok()?.name?.host_id)
}

/// An address as people write it: IPv4 comes mapped into IPv6 from a socket that takes both.
fn plain(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// Numbers for links.
#[derive(Clone, Default)]
pub(super) struct LinkIds(Arc<AtomicU64>);

impl LinkIds {
    fn next(&self) -> LinkId {
        LinkId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Everything that tasks of links share.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) endpoint: Endpoint,
    pub(super) ids: LinkIds,
    pub(super) told: mpsc::Sender<FromLink>,
}

impl Links {
    async fn tell(&self, what: FromLink) {
        // Nobody listens any more when the site ends, and this task with it.
        drop(self.told.send(what).await);
    }

    /// Carries a link until it ends. `incoming` is the other end's stream when it was seen already.
    async fn carry(
        &self,
        connection: Connection,
        host_id: String,
        dialled: bool,
        incoming: Option<quinn::RecvStream>,
    ) {
        let id = self.ids.next();
        let (frames, waiting) = mpsc::channel(WAITING);
        self.tell(FromLink::Made(Link {
            id,
            host_id: host_id.clone(),
            address: plain(connection.remote_address()),
            dialled,
            connection: connection.clone(),
            frames,
        }))
        .await;
        let ended = tokio::select! {
            ended = send(&connection, waiting) => ended,
            ended = self.receive(&connection, incoming, id) => ended,
        };
        let reason = match ended {
            Ok(never) => match never {},
            Err(LinkError::Illegal(reason)) => {
                Ending::Illegal.close(&connection);
                let event = SiteEventKind::IllegalMessage {
                    host_id,
                    reason: reason.clone(),
                };
                self.tell(FromLink::Event(event)).await;
                reason
            }
            Err(LinkError::Lost(reason)) => {
                // Whatever ended first, the connection knows better why.
                connection.close_reason().map_or(reason, |error| describe(&error))
            }
        };
        Ending::Over.close(&connection);
        self.tell(FromLink::Ended(id, reason)).await;
    }

    async fn receive(
        &self,
        connection: &Connection,
        incoming: Option<quinn::RecvStream>,
        id: LinkId,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut stream = match incoming {
            Some(stream) => stream,
            None => connection.accept_uni().await.map_err(LinkError::lost)?,
        };
        loop {
            let mut length = [0; 4];
            stream.read_exact(&mut length).await.map_err(LinkError::lost)?;
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            if length > MAX_MESSAGE {
                return Err(LinkError::Illegal(format!("its message has {length} bytes")));
            }
            let mut bytes = vec![0; length];
            stream.read_exact(&mut bytes).await.map_err(LinkError::lost)?;
            let message = Message::decode(&bytes).map_err(|error| LinkError::Illegal(error.to_string()))?;
            self.tell(FromLink::Message(id, message)).await;
        }
    }
}

async fn send(
    connection: &Connection,
    mut waiting: mpsc::Receiver<Arc<[u8]>>,
) -> Result<std::convert::Infallible, LinkError> {
    let mut stream = connection.open_uni().await.map_err(LinkError::lost)?;
    loop {
        let Some(frame) = waiting.recv().await else {
            return Err(LinkError::Lost("it was ended here".to_owned()));
        };
        stream.write_all(&frame).await.map_err(LinkError::lost)?;
    }
}

/// Why a link ended.
enum LinkError {
    /// What the other end said can't be.
    Illegal(String),
    /// It is gone.
    Lost(String),
}

impl LinkError {
    fn lost(error: impl std::error::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

/// Why a connection ended, in words.
fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match close.error_code.into_inner() {
            code if code == Ending::Second as u64 => "there is a second link".to_owned(),
            code if code == Ending::Illegal as u64 => "it couldn't understand this host".to_owned(),
            code if code == Ending::Congested as u64 => "this host takes its messages too slowly".to_owned(),
            _ => "it ended".to_owned(),
        },
        ConnectionError::Reset => "it started anew".to_owned(),
        ConnectionError::TimedOut => "it is silent".to_owned(),
        ConnectionError::LocallyClosed => "it was ended here".to_owned(),
        other => other.to_string(),
    }
}

/// Why the other end has no use for this host's certificate, by the alert that it sent (RFC 8446 §6.2; in QUIC a number
/// from 0x100: RFC 9001 §4.8); `None` when it isn't that.
fn refusal_there(error: &ConnectionError) -> Option<&'static str> {
    let ConnectionError::ConnectionClosed(close) = error else {
        return None;
    };
    match u64::from(close.error_code).checked_sub(0x100)? {
        42 | 43 | 46 => Some("it is no use there"),
        44 => Some("it was revoked"),
        45 => Some("it has expired"),
        48 => Some("it isn't of the authority that is known there"),
        49 => Some("it names another site, another host, or the same host"),
        116 => Some("it didn't arrive"),
        _ => None,
    }
}
