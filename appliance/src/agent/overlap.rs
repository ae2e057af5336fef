//! Prefixes of networks that are also those of a LAN that the host is on: an instance would never reach what is there, for
//! its own network is nearer.
//!
//! `network.on-overlap: report` says so; `renumber` moves the prefix, as if the document named another one, as long as no
//! instance is attached. The choice is kept, so that it stays when the LAN goes. Hosts of one site must have the same
//! prefixes: they choose in the same order, and first of all what another host has.

use super::Agent;
use super::journal::Record;
use super::resolver::Resolver;
use crate::config::host::{HostDocument, NetworkDocument, OnOverlap, overlap};
use crate::sys::netlink::Netlink;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

/// A prefix that was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Renumbered {
    /// The prefixes that the document named then: applications' and the shared one.
    from: (Ipv4Net, Ipv4Net),
    /// Those in its place.
    to: (Ipv4Net, Ipv4Net),
}

/// A network's prefix and a LAN's that have addresses in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// The key of the network's prefix in the host document.
    key: &'static str,
    /// The network's prefix.
    prefix: Ipv4Net,
    /// The LAN's.
    lan: Ipv4Net,
}

impl Overlap {
    /// What is wrong, and what to do about it.
    pub(crate) fn text(&self, on_overlap: OnOverlap) -> String {
        let Self { key, prefix, lan } = self;
        let wrong = format!(
            "`network.{key}` {prefix} and the LAN {lan} of this host overlap: instances don't reach the LAN's addresses"
        );
        match on_overlap {
            OnOverlap::Report => format!(
                "{wrong}; set it to another prefix on every host of the site, or `network.on-overlap: renumber`"
            ),
            OnOverlap::Renumber => {
                format!(
                    "{wrong}; it is moved as soon as no instance is attached: detach those there are, and attach them again"
                )
            }
        }
    }
}

/// The IPv4 prefixes of the LANs that this host is on.
///
/// # Errors
/// When the kernel doesn't tell.
pub(crate) fn lans() -> io::Result<BTreeSet<Ipv4Net>> {
    let mut netlink = Netlink::open()?;
    let mut lans = BTreeSet::new();
    for link in netlink.links()? {
        for address in netlink.addresses(link.index)? {
            if let IpNet::V4(address) = address
                && !address.addr().is_loopback()
                && !address.addr().is_link_local()
            {
                lans.insert(address.trunc());
            }
        }
    }
    Ok(lans)
}

/// What a document's prefixes and LANs have in common.
pub(crate) fn overlaps(network: &NetworkDocument, lans: &BTreeSet<Ipv4Net>) -> Vec<Overlap> {
    let prefixes = [
        ("application-prefix", network.application_prefix),
        ("shared-prefix", network.shared_prefix),
    ];
    let pairs = prefixes.into_iter().flat_map(|(key, prefix)| {
        lans.iter().map(move |lan| Overlap {
            key,
            prefix,
            lan: *lan,
        })
    });
    pairs.filter(|pair| overlap(pair.prefix, pair.lan)).collect()
}

/// The prefixes that a host has: the document's, or those that were chosen in their place.
pub(crate) fn in_force(document: &NetworkDocument, record: &Record) -> NetworkDocument {
    match record.renumbered {
        Some(Renumbered { from, to })
            if document.on_overlap == OnOverlap::Renumber && from == pair(document) =>
        {
            with(document, to)
        }
        Some(_) | None => *document,
    }
}

/// Other prefixes, of which none overlaps with a LAN; `others` are those of other hosts. `None`: there is none.
fn renumber(
    network: &NetworkDocument,
    lans: &BTreeSet<Ipv4Net>,
    others: &[(Ipv4Net, Ipv4Net)],
) -> Option<(Ipv4Net, Ipv4Net)> {
    let is_free = |prefix: Ipv4Net| !lans.iter().any(|lan| overlap(*lan, prefix));
    let mut all = others.iter().copied();
    if let Some(theirs) = all.find(|(application, shared)| is_free(*application) && is_free(*shared)) {
        return Some(theirs);
    }
    let shared = std::iter::once(network.shared_prefix)
        .chain(shared_candidates())
        .find(|prefix| is_free(*prefix))?;
    let application = std::iter::once(network.application_prefix)
        .chain(application_candidates())
        .find(|prefix| is_free(*prefix) && !overlap(*prefix, shared))?;
    Some((application, shared))
}

/// Private prefixes (RFC 1918) of the length of applications' networks, those that LANs have least first.
fn application_candidates() -> impl Iterator<Item = Ipv4Net> {
    let middle = (16..32).map(|second| (172, second));
    let large = (128..255).rev().map(|second| (10, second));
    let networks = middle.chain(large).chain([(192, 168)]);
    networks.map(|(first, second)| Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), 16))
}

/// Prefixes of the length of the shared one: of the space between providers and their customers (RFC 6598), and private.
fn shared_candidates() -> impl Iterator<Item = Ipv4Net> {
    let between = [(100, 96), (100, 64)].into_iter();
    let large = (0..8).rev().map(|part| (10, part * 32));
    let networks = between.chain(large);
    networks.map(|(first, second)| Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), 11))
}

fn pair(network: &NetworkDocument) -> (Ipv4Net, Ipv4Net) {
    (network.application_prefix, network.shared_prefix)
}

fn with(
    document: &NetworkDocument,
    (application_prefix, shared_prefix): (Ipv4Net, Ipv4Net),
) -> NetworkDocument {
    NetworkDocument {
        application_prefix,
        shared_prefix,
        ..*document
    }
}

impl Agent {
    /// Looks whether a LAN of this host overlaps with its networks, and moves them when that is wanted and nobody is
    /// there. Whether they were moved.
    pub(super) fn look_at_lans(&mut self) -> bool {
        let lans = match lans() {
            Ok(lans) => lans,
            Err(error) => {
                tracing::debug!(%error, "the addresses of this host's devices aren't known");
                return false;
            }
        };
        let overlaps = overlaps(&self.host.network, &lans);
        if overlaps != self.overlaps {
            for overlap in &overlaps {
                tracing::warn!("{}", overlap.text(self.host.network.on_overlap));
            }
        }
        self.overlaps = overlaps;
        if self.overlaps.is_empty()
            || self.host.network.on_overlap == OnOverlap::Report
            || !self.intent.record.attachments.is_empty()
        {
            return false;
        }
        let known = self.intent.record.hosts.values();
        let others: Vec<_> = known
            .map(|host| (host.network.application_prefix, host.network.shared_prefix))
            .collect();
        let Some(to) = renumber(&self.documented_network, &lans, &others) else {
            tracing::error!("no prefix is left that no LAN of this host has");
            return false;
        };
        tracing::warn!(application_prefix = %to.0, shared_prefix = %to.1, "the networks are moved, as LANs have their prefixes");
        self.intent.record.renumbered = Some(Renumbered {
            from: pair(&self.documented_network),
            to,
        });
        self.host.network = with(&self.documented_network, to);
        self.overlaps.clear();
        // Where no name server can be has changed; questions on their way are asked again.
        self.resolver = Resolver::new(&self.host);
        true
    }

    /// What `status` and `doctor` tell.
    pub(super) fn overlap_problems(&self) -> impl Iterator<Item = String> {
        self.overlaps
            .iter()
            .map(|overlap| overlap.text(self.host.network.on_overlap))
    }
}

/// What `doctor` tells where no agent runs.
pub(crate) fn problems(document: &HostDocument) -> io::Result<Vec<String>> {
    let overlaps = overlaps(&document.network, &lans()?);
    let on_overlap = document.network.on_overlap;
    Ok(overlaps.iter().map(|overlap| overlap.text(on_overlap)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lans(prefixes: &[&str]) -> BTreeSet<Ipv4Net> {
        prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
    }

    fn chosen(prefixes: &[&str], others: &[(Ipv4Net, Ipv4Net)]) -> String {
        let network = NetworkDocument {
            on_overlap: OnOverlap::Renumber,
            ..NetworkDocument::default()
        };
        match renumber(&network, &lans(prefixes), others) {
            Some((application, shared)) => format!("{application} {shared}"),
            None => "none".into(),
        }
    }

    #[test]
    fn an_overlap_names_the_key_the_lan_and_what_to_do() {
        let network = NetworkDocument::default();
        let found = overlaps(
            &network,
            &lans(&["172.19.4.0/22", "192.0.2.0/24", "100.64.0.0/10"]),
        );
        let texts: Vec<_> = found
            .iter()
            .map(|overlap| overlap.text(OnOverlap::Report))
            .collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].starts_with(
            "`network.application-prefix` 172.19.0.0/16 and the LAN 172.19.4.0/22 of this host overlap"
        ));
        assert!(texts[1].starts_with("`network.shared-prefix` 100.96.0.0/11 and the LAN 100.64.0.0/10"));
        assert!(texts[0].ends_with("or `network.on-overlap: renumber`"));
        assert!(
            found[0]
                .text(OnOverlap::Renumber)
                .contains("as soon as no instance is attached")
        );
        assert_eq!(overlaps(&network, &lans(&["192.0.2.0/24", "172.18.0.0/16"])), []);
    }

    #[test]
    fn what_is_chosen_is_the_same_for_the_same_lans_and_overlaps_with_none() {
        for (prefixes, expected) in [
            (&["172.19.4.0/22"][..], "172.16.0.0/16 100.96.0.0/11"),
            (&["172.16.0.0/12"], "10.254.0.0/16 100.96.0.0/11"),
            (&["172.16.0.0/12", "10.0.0.0/8"], "192.168.0.0/16 100.96.0.0/11"),
            (&["100.64.0.0/10"], "172.19.0.0/16 10.224.0.0/11"),
            (&["100.64.0.0/10", "172.16.0.0/12"], "10.223.0.0/16 10.224.0.0/11"),
            (&["0.0.0.0/0"], "none"),
        ] {
            assert_eq!(chosen(prefixes, &[]), expected, "{prefixes:?}");
        }
    }

    #[test]
    fn what_another_host_has_comes_first_when_it_is_free_here() {
        let theirs = ("10.7.0.0/16".parse().unwrap(), "100.96.0.0/11".parse().unwrap());
        assert_eq!(chosen(&["172.19.4.0/22"], &[theirs]), "10.7.0.0/16 100.96.0.0/11");
        assert_eq!(
            chosen(&["172.19.4.0/22", "10.7.1.0/24"], &[theirs]),
            "172.16.0.0/16 100.96.0.0/11"
        );
    }

    #[test]
    fn a_choice_holds_for_the_document_that_it_was_made_for() {
        let document = NetworkDocument {
            on_overlap: OnOverlap::Renumber,
            ..NetworkDocument::default()
        };
        let to = ("172.16.0.0/16".parse().unwrap(), document.shared_prefix);
        let record = Record {
            renumbered: Some(Renumbered {
                from: pair(&document),
                to,
            }),
            ..Record::default()
        };
        assert_eq!(in_force(&document, &record).application_prefix, to.0);
        assert_eq!(in_force(&document, &Record::default()), document);
        for other in [
            NetworkDocument {
                on_overlap: OnOverlap::Report,
                ..document
            },
            NetworkDocument {
                application_prefix: "10.64.0.0/16".parse().unwrap(),
                ..document
            },
        ] {
            assert_eq!(in_force(&other, &record), other);
        }
    }
}
