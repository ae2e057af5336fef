//! Who is a host of this site: certificates, and the clock by which they are judged.
//!
//! A host's certificate is signed by its site's authority and has one subject alternative name of the form
//! `URI:tidegate://SITE/HOST-ID`.

use super::events::CertificateFault;
use crate::agent::keys::readable_by_others;
use crate::config::label_fault;
use anyhow::{Context as _, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const SCHEME: &str = "tidegate://";
/// A certificate made here is valid since a day before: clocks of hosts differ.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);
/// And for ten years: in the static form nobody renews it.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A host's name in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostName {
    /// The site.
    pub(crate) site: String,
    /// The host.
    pub(crate) host_id: String,
}

impl HostName {
    fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.site, self.host_id)
    }

    fn of_uri(uri: &str) -> Option<Self> {
        let (site, host_id) = uri.strip_prefix(SCHEME)?.split_once('/')?;
        let legal = label_fault(site).is_none() && label_fault(host_id).is_none();
        legal.then(|| Self {
            site: site.to_owned(),
            host_id: host_id.to_owned(),
        })
    }
}

/// What a certificate says, proven or not.
pub(super) struct Claims {
    /// Whose it is; `None`: it names no host, or several.
    pub(super) name: Option<HostName>,
    /// From when on it is valid.
    pub(super) not_before: SystemTime,
}

impl Claims {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateFault> {
        let unusable = |error: &dyn std::fmt::Display| CertificateFault::Unusable {
            reason: error.to_string(),
        };
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unusable(&error))?;
        let alternatives = parsed
            .subject_alternative_name()
            .map_err(|error| unusable(&error))?;
        let mut names = alternatives
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => HostName::of_uri(uri),
                _ => None,
            });
        let name = names.next().filter(|_| names.next().is_none());
        let not_before = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        Ok(Self {
            name,
            not_before: SystemTime::UNIX_EPOCH + Duration::from_secs(not_before),
        })
    }
}

/// The time by which certificates are judged.
///
/// A machine without a battery starts in 1970, and finds no time server before it has a network. Its clock isn't
/// believed while it is before a time that is over for sure; then a certificate that isn't valid yet is taken for one
/// that is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    system: fn() -> SystemTime,
    over: SystemTime,
}

impl Clock {
    pub(super) fn new(system: fn() -> SystemTime, over: SystemTime) -> Self {
        Self { system, over }
    }

    /// The same clock, where this time is over, too.
    fn after(self, time: SystemTime) -> Self {
        let over = self.over.max(time);
        Self { over, ..self }
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.system)().max(self.over)
    }

    /// The time to judge a certificate by that is valid since then.
    pub(super) fn judging(&self, not_before: SystemTime) -> UnixTime {
        let system = (self.system)();
        let time = if system < self.over {
            self.over.max(not_before)
        } else {
            system
        };
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.judging(SystemTime::UNIX_EPOCH))
    }
}

/// The files in which a host's identity is.
#[derive(Clone, Debug)]
pub(super) struct IdentityFiles {
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) private_key: PathBuf,
}

impl IdentityFiles {
    /// What changes when a file does: times and sizes.
    pub(super) fn version(&self) -> [Option<(SystemTime, u64)>; 3] {
        [&self.authority, &self.certificate, &self.private_key].map(|file| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

/// Who this host is, and who else belongs to the site. No `Debug`.
pub(super) struct Identity {
    pub(super) name: HostName,
    pub(super) clock: Clock,
    pub(super) authorities: Arc<RootCertStore>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) private_key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// Which file is no use, and what to do.
    pub(super) fn read(files: &IdentityFiles, name: HostName, clock: Clock) -> anyhow::Result<Self> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&files.authority, "cluster.ca-file")? {
            authorities.add(certificate).with_context(|| {
                format!("{} holds a certificate that is no use", files.authority.display())
            })?;
        }
        let chain = certificates(&files.certificate, "cluster.certificate-file")?;
        let Some(own) = chain.first() else {
            bail!("{} holds no certificate", files.certificate.display());
        };
        let claims = Claims::of(own).with_context(|| format!("{} is no use", files.certificate.display()))?;
        match claims.name {
            Some(named) if named == name => {}
            Some(named) => bail!(
                "the certificate in {} is for host {} of site {}, and this is host {} of site {}: make one with the \
                 subject alternative name `URI:{}`",
                files.certificate.display(),
                named.host_id,
                named.site,
                name.host_id,
                name.site,
                name.uri()
            ),
            None => bail!(
                "the certificate in {} names no host: make one with the subject alternative name `URI:{}`",
                files.certificate.display(),
                name.uri()
            ),
        }
        let key_file = &files.private_key;
        let private_key = PrivateKeyDer::from_pem_file(key_file).with_context(|| {
            format!(
                "the private key {} can't be read (`cluster.private-key-file`, PEM)",
                key_file.display()
            )
        })?;
        if let Some(mode) = readable_by_others(key_file)? {
            tracing::warn!(
                file = %key_file.display(), mode = format_args!("{mode:04o}"),
                "others can read this key: chmod 600 it, and make a new one if they did"
            );
        }
        Ok(Self {
            name,
            clock: clock.after(claims.not_before),
            authorities: Arc::new(authorities),
            chain,
            private_key,
        })
    }
}

fn certificates(file: &Path, key: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("{} can't be read (`{key}`, certificates as PEM)", file.display()))?;
    if certificates.is_empty() {
        bail!(
            "{} holds no certificate (`{key}`, certificates as PEM)",
            file.display()
        );
    }
    Ok(certificates)
}

/// A site's authority: makes certificates of its hosts. No `Debug`.
pub(crate) struct SiteAuthority {
    site: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl SiteAuthority {
    /// Makes an authority with a new key.
    ///
    /// # Errors
    /// When the machine gives no randomness.
    pub(crate) fn new(site: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("tidegate site {site}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + VALIDITY).into();
        let key = KeyPair::generate().context("no key can be made")?;
        let certificate = params
            .self_signed(&key)
            .context("the authority's certificate can't be made")?;
        Ok(Self {
            site: site.to_owned(),
            certificate: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads an authority from a folder.
    ///
    /// # Errors
    /// When a file can't be read or is no use: which one.
    pub(crate) fn load(site: &str, folder: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let file = folder.join(name);
            std::fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))
        };
        let certificate = read(AUTHORITY_FILE)?;
        let key = KeyPair::from_pem(&read(AUTHORITY_KEY_FILE)?)
            .with_context(|| format!("{} holds no key", folder.join(AUTHORITY_KEY_FILE).display()))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)
            .with_context(|| format!("{} holds no authority", folder.join(AUTHORITY_FILE).display()))?;
        Ok(Self {
            site: site.to_owned(),
            certificate,
            issuer,
        })
    }

    /// Writes the authority into a folder: [`AUTHORITY_FILE`], and [`AUTHORITY_KEY_FILE`] with mode 0600.
    ///
    /// # Errors
    /// When a file can't be written: which one.
    pub(crate) fn save(&self, folder: &Path) -> anyhow::Result<()> {
        write(&folder.join(AUTHORITY_FILE), &self.certificate, 0o644)?;
        let key = self.issuer.key().serialize_pem();
        write(&folder.join(AUTHORITY_KEY_FILE), &key, 0o600)
    }

    /// The authority's certificate as PEM: every host of the site gets it.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a host's certificate and private key, both as PEM.
    ///
    /// # Errors
    /// When the machine gives no randomness.
    pub(crate) fn issue(&self, host_id: &str) -> anyhow::Result<(String, String)> {
        let now = SystemTime::now();
        self.issue_for(&self.site, host_id, now - BEFORE, now + VALIDITY)
    }

    /// Makes a certificate and private key for any site and time.
    pub(super) fn issue_for(
        &self,
        site: &str,
        host_id: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> anyhow::Result<(String, String)> {
        let name = HostName {
            site: site.to_owned(),
            host_id: host_id.to_owned(),
        };
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("tidegate host {host_id}"));
        params.subject_alt_names = vec![SanType::URI(
            name.uri().try_into().context("a host's name is ASCII")?,
        )];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let key = KeyPair::generate().context("no key can be made")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("the certificate of {host_id} can't be made"))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// An authority's certificate in its folder.
pub(crate) const AUTHORITY_FILE: &str = "site-ca.pem";
/// An authority's private key in its folder.
pub(crate) const AUTHORITY_KEY_FILE: &str = "site-ca.key";

/// Writes a file of this mode.
///
/// # Errors
/// When it can't be written: which one.
pub(crate) fn write(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let written = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} can't be written", file.display()))
}
