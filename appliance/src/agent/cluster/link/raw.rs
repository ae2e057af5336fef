//! Ends that aren't hosts, for tests.

use super::super::certificates::Identity;
use super::tls::{self, Verdict};
use super::transport;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

async fn connect(
    address: SocketAddr,
    identity: &Arc<Identity>,
    with_certificate: bool,
) -> (Endpoint, Result<Connection, ConnectionError>) {
    let mut tls = tls::client(identity, "whoever", Verdict::default()).unwrap();
    tls.dangerous().set_certificate_verifier(Arc::new(Credulous));
    if !with_certificate {
        tls.client_auth_cert_resolver = Arc::new(Nothing);
    }
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(transport());
    let connecting = endpoint
        .connect_with(config, address, "tidegate.internal")
        .unwrap();
    (endpoint, connecting.await)
}

/// Connects to whoever is there; the first bytes that it is told.
pub(in super::super) async fn told(
    address: SocketAddr,
    identity: &Arc<Identity>,
    with_certificate: bool,
) -> Vec<u8> {
    let (_endpoint, connected) = connect(address, identity, with_certificate).await;
    let Ok(connection) = connected else {
        return Vec::new();
    };
    let mut bytes = vec![0; 4];
    let told = async {
        let mut stream = connection.accept_uni().await.ok()?;
        stream.read_exact(&mut bytes).await.ok()
    };
    match tokio::time::timeout(Duration::from_secs(5), told).await {
        Ok(Some(())) => bytes,
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// Says this over a good link, and waits for its end.
pub(in super::super) async fn say(address: SocketAddr, identity: &Arc<Identity>, bytes: &[u8]) {
    let (_endpoint, connected) = connect(address, identity, true).await;
    let connection = connected.unwrap();
    let mut stream = connection.open_uni().await.unwrap();
    stream.write_all(bytes).await.unwrap();
    connection.closed().await;
}

/// Has no certificate.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
