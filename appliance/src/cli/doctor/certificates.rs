//! The files that make this machine a host of its site: are they there, whole, for this host, and in time?

use super::{Finding, ok, warning};
use crate::agent::keys::readable_by_others;
use crate::config::host::HostDocument;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::pem::Pem;
use x509_parser::prelude::{GeneralName, X509Certificate};

/// A clock that shows less was never set: 1 January 2025, in seconds of the Unix epoch.
const PLAUSIBLE: i64 = 1_735_689_600;
/// How long before its end a certificate is worth a warning, in seconds: 30 days.
const SOON: i64 = 30 * 24 * 60 * 60;

/// Looks at the clock and, when the host document names them, at the files.
pub(super) fn findings(document: &HostDocument) -> Vec<Finding> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_secs()).ok())
        .unwrap_or(0);
    let mut findings = vec![clock(now)];
    let Some(link) = &document.cluster.link else {
        return findings;
    };
    let (authority, certificate) = (&link.ca_file, &link.certificate_file);
    let authorities = read(authority);
    findings.push(match &authorities {
        Ok(pems) => look(pems, now, |_| None, &format!("authority {}", authority.display())),
        Err(error) => warning("certificate", format!("{}: {error}", authority.display())),
    });
    findings.push(match read(certificate) {
        Ok(pems) => {
            let issuers = authorities.unwrap_or_default();
            let fault =
                |own: &X509Certificate<'_>| name_fault(own, document).or_else(|| issuer_fault(own, &issuers));
            look(
                pems.get(..1).unwrap_or(&[]),
                now,
                fault,
                &certificate.display().to_string(),
            )
        }
        Err(error) => warning("certificate", format!("{}: {error}", certificate.display())),
    });
    findings.push(private_key(&link.private_key_file));
    findings
}

fn clock(now: i64) -> Finding {
    if now >= PLAUSIBLE {
        ok("clock", "it was set")
    } else {
        warning(
            "clock",
            "it was never set: certificates are judged by the last time that this host knew; let it have a time server",
        )
    }
}

fn read(file: &Path) -> Result<Vec<Pem>, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("can't be read: {error}"))?;
    let pems: Vec<_> = Pem::iter_from_buffer(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is no PEM file: {error}"))?;
    if pems.iter().any(|pem| pem.label == "CERTIFICATE") {
        Ok(pems)
    } else {
        Err("holds no certificate as PEM".to_owned())
    }
}

/// Looks at certificates, all of which have to be in time; `fault` finds what else is wrong with one.
fn look(
    pems: &[Pem],
    now: i64,
    fault: impl Fn(&X509Certificate<'_>) -> Option<String>,
    which: &str,
) -> Finding {
    let mut until = None;
    for pem in pems.iter().filter(|pem| pem.label == "CERTIFICATE") {
        let certificate = match pem.parse_x509() {
            Ok(certificate) => certificate,
            Err(error) => return warning("certificate", format!("{which} is broken: {error}")),
        };
        let validity = certificate.validity();
        if let Some(fault) = fault(&certificate) {
            return warning("certificate", format!("{which} {fault}"));
        }
        if let Some(fault) = time_fault(
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
            now,
        ) {
            let text = format!(
                "{which} {fault} (from {} to {})",
                validity.not_before, validity.not_after
            );
            return warning("certificate", text);
        }
        until = Some(validity.not_after);
    }
    match until {
        Some(until) => ok("certificate", format!("{which} is valid until {until}")),
        None => warning("certificate", format!("{which} holds none")),
    }
}

fn time_fault(not_before: i64, not_after: i64, now: i64) -> Option<&'static str> {
    if now < not_before && now >= PLAUSIBLE {
        Some("isn't valid yet: is the clock right?")
    } else if now > not_after {
        Some("has expired: no other host takes it; make a new one")
    } else if now > not_after - SOON {
        Some("expires within 30 days: make a new one")
    } else {
        None
    }
}

/// Whether it names this host of this site.
fn name_fault(certificate: &X509Certificate<'_>, document: &HostDocument) -> Option<String> {
    let wanted = format!("tidegate://{}/{}", document.site, document.host_id);
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<_> = alternatives
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .filter(|uri| uri.starts_with("tidegate://"))
        .collect();
    match names.as_slice() {
        [name] if *name == wanted => None,
        [] => Some(format!(
            "names no host: it needs the subject alternative name `URI:{wanted}`"
        )),
        names => Some(format!(
            "is for {}, and this host is {wanted}",
            names.join(" and ")
        )),
    }
}

fn issuer_fault(certificate: &X509Certificate<'_>, authorities: &[Pem]) -> Option<String> {
    let issued = authorities.iter().any(|pem| {
        pem.parse_x509()
            .is_ok_and(|authority| authority.subject() == certificate.issuer())
    });
    (!issued).then(|| "was issued by none of the authorities in `cluster.ca-file`".to_owned())
}

fn private_key(file: &Path) -> Finding {
    let subject = "certificate's key";
    let name = file.display();
    match (std::fs::read_to_string(file), readable_by_others(file)) {
        (Err(error), _) | (_, Err(error)) => warning(subject, format!("{name} can't be read: {error}")),
        (Ok(text), _) if !text.contains("PRIVATE KEY-----") => {
            warning(subject, format!("{name} holds no private key as PEM"))
        }
        (_, Ok(Some(mode))) => warning(
            subject,
            format!("{name} has mode {mode:04o}: `chmod 600 {name}`, and make a new one if others read it"),
        ),
        (_, Ok(None)) => ok(subject, format!("{name} is readable by its owner alone")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = PLAUSIBLE + 1_000_000_000;

    #[test]
    fn a_certificate_is_in_time_or_says_what_to_do() {
        assert_eq!(time_fault(NOW - 1, NOW + SOON + 1, NOW), None);
        assert!(time_fault(NOW + 1, NOW + SOON, NOW).is_some_and(|fault| fault.contains("valid yet")));
        assert!(time_fault(0, NOW - 1, NOW).is_some_and(|fault| fault.contains("expired")));
        assert!(time_fault(0, NOW + SOON - 1, NOW).is_some_and(|fault| fault.contains("30 days")));
        assert_eq!(
            time_fault(NOW, NOW + SOON + 1, 5),
            None,
            "a clock of 1970 says nothing"
        );
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let file = std::env::temp_dir().join(format!("tidegate-doctor-{}", std::process::id()));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(read(&file).is_err());
        assert!(private_key(&file).text.contains("holds no private key"));
        std::fs::remove_file(&file).unwrap();
        assert!(read(&file).is_err_and(|error| error.contains("can't be read")));
    }
}
