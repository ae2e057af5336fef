//! Who may speak: TLS 1.3 with a certificate at both ends, judged by one verifier.
//!
//! Each handshake has a verifier of its own, which leaves its reason behind when it refuses.

use super::super::certificates::{Claims, HostName, Identity};
use super::super::events::CertificateFault;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What both ends must want to speak.
const ALPN: &[u8] = b"tidegate-site/1";

/// Why a certificate was refused, and whom it claims to be of.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) claimed: Option<String>,
    pub(super) fault: CertificateFault,
}

/// Where a verifier leaves its reason.
#[derive(Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Refusal>>>);

impl Verdict {
    /// The reason; `None`: the certificate was good, or none came.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, refusal: Refusal) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }
}

/// The end that dials; `expected` is the host that must answer.
pub(super) fn client(
    identity: &Arc<Identity>,
    expected: &str,
    verdict: Verdict,
) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = Verifier::new(identity, Some(expected.to_owned()), verdict, &provider);
    let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(identity.clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(identity.chain.clone(), identity.private_key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // The name of a host is nobody's business who listens on the way, and each link proves anew who is there.
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The end that is dialled.
pub(super) fn server(
    identity: &Arc<Identity>,
    verdict: Verdict,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = provider();
    let verifier = Verifier::new(identity, None, verdict, &provider);
    let mut config = rustls::ServerConfig::builder_with_details(provider, Arc::new(identity.clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain.clone(), identity.private_key.clone_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Verifier {
    identity: Arc<Identity>,
    expected: Option<String>,
    verdict: Verdict,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Verifier")
    }
}

/// In which part of a handshake a certificate came.
#[derive(Clone, Copy)]
enum Role {
    Server,
    Client,
}

impl Verifier {
    fn new(
        identity: &Arc<Identity>,
        expected: Option<String>,
        verdict: Verdict,
        provider: &Arc<CryptoProvider>,
    ) -> Self {
        Self {
            identity: Arc::clone(identity),
            expected,
            verdict,
            provider: Arc::clone(provider),
        }
    }

    fn verify(
        &self,
        role: Role,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), rustls::Error> {
        let claims = Claims::of(certificate);
        let claimed = claims
            .as_ref()
            .ok()
            .and_then(|claims| claims.name.as_ref())
            .map(|name| name.host_id.clone());
        let judged = claims.and_then(|claims| self.judge(role, certificate, intermediates, &claims));
        judged.map_err(|fault| {
            let alert = alert(&fault);
            self.verdict.set(Refusal { claimed, fault });
            rustls::Error::InvalidCertificate(alert)
        })
    }

    fn judge(
        &self,
        role: Role,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        claims: &Claims,
    ) -> Result<(), CertificateFault> {
        let own = &self.identity.name;
        // First of all, so that a host of another site is told from one that nobody knows.
        if let Some(name) = &claims.name
            && name.site != own.site
        {
            return Err(CertificateFault::OtherSite {
                site: name.site.clone(),
            });
        }
        let time = self.identity.clock.judging(claims.not_before);
        self.verify_signature(role, certificate, intermediates, time)
            .map_err(|error| fault(&error))?;
        let Some(HostName { host_id, .. }) = &claims.name else {
            return Err(CertificateFault::NoName);
        };
        if *host_id == own.host_id {
            return Err(CertificateFault::OwnName);
        }
        if self.expected.as_ref().is_some_and(|expected| expected != host_id) {
            return Err(CertificateFault::OtherHost {
                host_id: host_id.clone(),
            });
        }
        Ok(())
    }

    fn verify_signature(
        &self,
        role: Role,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        time: UnixTime,
    ) -> Result<(), rustls::Error> {
        let authorities = &self.identity.authorities;
        match role {
            Role::Server => verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(certificate)?,
                authorities,
                intermediates,
                time,
                self.provider.signature_verification_algorithms.all,
            ),
            Role::Client => WebPkiClientVerifier::builder_with_provider(
                Arc::clone(authorities),
                Arc::clone(&self.provider),
            )
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_client_cert(certificate, intermediates, time)
            .map(drop),
        }
    }
}

fn fault(error: &rustls::Error) -> CertificateFault {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    match error {
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => CertificateFault::Expired,
        rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            CertificateFault::NotYetValid
        }
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => CertificateFault::ForeignAuthority,
        other => CertificateFault::Unusable {
            reason: other.to_string(),
        },
    }
}

/// What the other end is told: as much as makes it findable there.
fn alert(fault: &CertificateFault) -> CertificateError {
    match fault {
        CertificateFault::Expired => CertificateError::Expired,
        CertificateFault::NotYetValid => CertificateError::NotValidYet,
        CertificateFault::ForeignAuthority => CertificateError::UnknownIssuer,
        CertificateFault::Unusable { .. } | CertificateFault::Missing | CertificateFault::NoName => {
            CertificateError::BadEncoding
        }
        CertificateFault::OtherSite { .. }
        | CertificateFault::OtherHost { .. }
        | CertificateFault::OwnName => CertificateError::ApplicationVerificationFailure,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(Role::Server, certificate, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    // Which authority is wanted is nobody's business who doesn't know.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(Role::Client, certificate, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
