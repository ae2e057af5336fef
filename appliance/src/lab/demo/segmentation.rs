//! A rule, applied while everything runs: one service may reach one port of another. What it lets through passes, what it
//! denies is refused and explained, and when it is gone all is as before.

use super::super::build::ask_agent;
use super::super::{Error, WhileDoing as _, state, verdict};
use super::report::{Mark, REACHED};
use super::traffic::Pair;
use super::{Lab, drops};
use crate::config::application::{self, ApplicationDocument};
use crate::sys::netns;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the rule lets through, and what is tried besides.
const ALLOWED: u16 = 5432;
const DENIED: u16 = 22;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);

/// The document with the rule, in the lab's folder.
const FILE: &str = "one-port-only.yaml";

/// How an outcome that is as it should be, where the rule denies, is called.
const REFUSED: &str = "refused";

/// What a rule that lets one service reach one port of another let through and kept out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Segmentation {
    /// Who called.
    pub(crate) from: String,
    /// Who was called.
    pub(crate) to: String,
    /// The port that the rule names.
    pub(crate) allowed_port: u16,
    /// How a connection to it went, `reached` when it did.
    pub(crate) allowed: String,
    /// Another port.
    pub(crate) denied_port: u16,
    /// How a connection to it went, `refused` as it should be.
    pub(crate) denied: String,
    /// Why, by the filter's own words: stage by stage.
    pub(crate) because: Vec<String>,
    /// The reason that it was counted under.
    pub(crate) reason: String,
    /// How many packets that reason counted meanwhile.
    pub(crate) counted: u64,
    /// How a connection to the other port went before and after, when no rule was in force.
    pub(crate) without_rule: String,
}

/// Shows it with two services of an application that has no rules yet; `None` when there are none.
pub(super) fn show(lab: &Lab, pairs: &[Pair<'_>]) -> Result<Option<Segmentation>, Error> {
    let mut fitting: Vec<(Pair<'_>, PathBuf, String)> = Vec::new();
    for pair in pairs {
        if let Some((file, text)) = document(lab, *pair)? {
            fitting.push((*pair, file, text));
        }
    }
    // Across hosts, where there is a pair.
    fitting.sort_by_key(|(pair, ..)| pair.is_on_one_host());
    let Some((pair, original, text)) = fitting.into_iter().next() else {
        return Ok(None);
    };
    let file = state::folder(&lab.blueprint.lab).join(FILE);
    fs::write(&file, text).while_doing(|| format!("writing {}", file.display()))?;
    apply(lab, &file)?;
    let shown = demonstrate(lab, pair);
    apply(lab, &original)?;
    let mut shown = shown?;
    shown.without_rule = knock(pair, DENIED)?;
    Ok(Some(shown))
}

impl Segmentation {
    /// Whether the rule let through what it names, kept out the rest, and said so.
    pub(super) fn held(&self) -> bool {
        self.allowed == REACHED
            && self.denied == REFUSED
            && self.without_rule == REACHED
            && self.counted > 0
            && !self.because.is_empty()
    }

    pub(super) fn to_text(&self, mark: Mark) -> String {
        let mut text = format!(
            "A rule applied meanwhile: {} may reach {} by tcp {}, and nobody anything else\n",
            self.from, self.to, self.allowed_port
        );
        let lines = [
            (
                self.allowed == REACHED,
                format!("tcp {}: {}", self.allowed_port, self.allowed),
            ),
            (
                self.denied == REFUSED && self.counted > 0,
                format!(
                    "tcp {}: {}, {} packet(s) counted as {}",
                    self.denied_port, self.denied, self.counted, self.reason
                ),
            ),
        ];
        for (held, line) in lines {
            text.push_str(&mark.paint(&format!("{}\n", mark.of(held, &line))));
        }
        for (number, step) in self.because.iter().enumerate() {
            text.push_str(&format!("    {}. {step}\n", number + 1));
        }
        let line = format!("tcp {} without the rule: {}", self.denied_port, self.without_rule);
        text.push_str(&mark.paint(&format!("{}\n", mark.of(self.without_rule == REACHED, &line))));
        text
    }
}

fn demonstrate(lab: &Lab, pair: Pair<'_>) -> Result<Segmentation, Error> {
    let host = &pair.from.instance.host;
    let allowed = knock(pair, ALLOWED)?;
    let trace = verdict::of(&lab.blueprint.lab, pair.from, pair.address()?, Some(DENIED))?;
    let reason = trace.reason.unwrap_or_default();
    let counted = |drops: &BTreeMap<String, u64>| drops.get(&reason).copied().unwrap_or(0);
    let before = counted(&drops(lab, host));
    let denied = knock(pair, DENIED)?;
    let counted = counted(&drops(lab, host)).saturating_sub(before);
    Ok(Segmentation {
        from: pair.from.instance.title(),
        to: pair.to.instance.title(),
        allowed_port: ALLOWED,
        allowed,
        denied_port: DENIED,
        denied,
        because: trace.steps,
        reason,
        counted,
        without_rule: String::new(),
    })
}

/// A pair's document with the rule in it, and the file with the document as it is; `None` where the two are of one service,
/// or where rules are already.
fn document(lab: &Lab, pair: Pair<'_>) -> Result<Option<(PathBuf, String)>, Error> {
    let (from, to) = (&pair.from.instance, &pair.to.instance);
    if from.service == to.service {
        return Ok(None);
    }
    for file in &lab.blueprint.documents {
        let documents = application::read(file)?;
        let [document] = documents.as_slice() else {
            continue;
        };
        let is_theirs = (&document.tenant, &document.name) == (&from.tenant, &from.application);
        let is_plain = document.shared.is_empty()
            && document.vni.is_none()
            && document
                .services
                .iter()
                .all(|service| service.network.is_default());
        if is_theirs && is_plain {
            return Ok(Some((
                file.clone(),
                with_rule(document, &from.service, &to.service),
            )));
        }
    }
    Ok(None)
}

fn with_rule(document: &ApplicationDocument, from: &str, to: &str) -> String {
    let mut text = format!(
        "tenant: {}\nname: {}\nservices:\n",
        document.tenant, document.name
    );
    for service in &document.services {
        text.push_str(&format!("  - name: {}\n", service.name));
        if service.name == to {
            text.push_str(&format!(
                "    network:\n      inbound-access:\n        on-deny: reject\n        rules:\n          - {{ from: {{ \
                 service: {from} }}, protocols: [ {{ name: tcp, port-ranges: \"{ALLOWED}\" }} ] }}\n"
            ));
        }
    }
    text
}

fn apply(lab: &Lab, file: &Path) -> Result<(), Error> {
    for host in &lab.blueprint.hosts {
        let arguments = ["apply".into(), OsString::from(file)];
        let namespace = lab.namespace(&host.namespace)?;
        ask_agent(&lab.blueprint.lab, host, namespace, &arguments)?;
    }
    Ok(())
}

/// How a connection to a port of the receiver goes, where somebody listens.
fn knock(pair: Pair<'_>, port: u16) -> Result<String, Error> {
    let doing = || format!("trying tcp {port} from {}", pair.title());
    let address = SocketAddr::new(pair.address()?, port);
    let _listener = netns::within(pair.receiver()?, || TcpListener::bind(address))
        .while_doing(doing)?
        .while_doing(doing)?;
    let connected = netns::within(pair.sender()?, || TcpStream::connect_timeout(&address, CONNECT));
    Ok(match connected.while_doing(doing)? {
        Ok(_) => REACHED.to_owned(),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => REFUSED.to_owned(),
        Err(error) if error.kind() == ErrorKind::TimedOut => "silence".to_owned(),
        Err(error) => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_with_the_rule_is_legal_and_guards_the_one_service() {
        let text = "tenant: acme\nname: shop\nservices: [ { name: web }, { name: db } ]\n";
        let plain = application::parse(Path::new("shop.yaml"), text).unwrap();
        assert!(
            plain[0]
                .services
                .iter()
                .all(|service| service.network.is_default())
        );
        let guarded = application::parse(Path::new(FILE), &with_rule(&plain[0], "web", "db")).unwrap();
        let is_plain: Vec<bool> = guarded[0]
            .services
            .iter()
            .map(|service| service.network.is_default())
            .collect();
        assert_eq!(is_plain, [true, false]);
    }
}
