//! Which addresses a name of the world outside may not have.
//!
//! Whoever has a name can give it any address, also one inside: a browser then takes what is behind it for the same site
//! (DNS rebinding). So an answer with an address that means something inside a site alone isn't told, unless the name is
//! in a domain that the host document calls the site's own.

use crate::config::host::HostDocument;
use hickory_proto::ProtoError;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::svcb::{SVCB, SvcParamValue};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use tidegate_stack::plan::site_ipv6_prefix;
use tidegate_stack::responder::dns::{Question, Reply};

/// This network (RFC 1122), private (RFC 1918), shared (RFC 6598), loopback, link-local (RFC 3927), broadcast.
const PRIVATE_IPV4: [Ipv4Net; 8] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
];
/// Unspecified and loopback, unique local (RFC 4193), link-local, and what site-local was (RFC 3879).
const PRIVATE_IPV6: [Ipv6Net; 4] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 127),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
];
/// An IPv4 address in the last 32 bits: compatible and mapped (RFC 4291 §2.5.5), translated (RFC 6052, RFC 8215).
const WITH_IPV4: [Ipv6Net; 4] = [
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48),
];
/// An IPv4 address behind 16 bits (RFC 3056).
const SIX_TO_FOUR: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16);

/// SVCB, HTTPS and ANY: answers whose records may have addresses inside (RFC 9460 §7.3).
const WITH_HINTS: [u16; 3] = [64, 65, 255];

/// What is private here, and which names may have it.
#[derive(Debug)]
pub(super) struct Guard {
    own: [IpNet; 3],
    /// As they stand in messages, in lower case.
    domains: Vec<Box<[u8]>>,
}

impl Guard {
    /// The guard of a host.
    pub(super) fn new(host: &HostDocument) -> Self {
        let domains = host.dns.private_domains.iter();
        Self {
            own: own_prefixes(host),
            domains: domains.map(|domain| domain.wire.clone()).collect(),
        }
    }

    /// Whether a name may have private addresses.
    pub(super) fn is_exempt(&self, question: &Question) -> bool {
        self.domains.iter().any(|domain| question.is_within(domain))
    }

    /// A private address in an answer that may have none.
    ///
    /// # Errors
    /// When it can't be told which addresses it has.
    pub(super) fn find_private(
        &self,
        question: &Question,
        reply: &Reply,
    ) -> Result<Option<IpAddr>, ProtoError> {
        if self.is_exempt(question) {
            return Ok(None);
        }
        let mut addresses: Vec<IpAddr> = reply.addresses().collect();
        if WITH_HINTS.contains(&question.kind()) {
            for record in &Message::from_vec(reply.message())?.answers {
                match &record.data {
                    RData::SVCB(service) => hints(service, &mut addresses),
                    RData::HTTPS(service) => hints(&service.0, &mut addresses),
                    _ => {}
                }
            }
        }
        Ok(addresses.into_iter().find(|address| self.is_private(*address)))
    }

    fn is_private(&self, address: IpAddr) -> bool {
        self.own.iter().any(|own| own.contains(&address))
            || match address {
                IpAddr::V4(address) => PRIVATE_IPV4.iter().any(|prefix| prefix.contains(&address)),
                IpAddr::V6(address) => {
                    PRIVATE_IPV6.iter().any(|prefix| prefix.contains(&address))
                        || inner(address).is_some_and(|inner| self.is_private(IpAddr::V4(inner)))
                }
            }
    }
}

/// The prefixes of the networks inside.
pub(super) fn own_prefixes(host: &HostDocument) -> [IpNet; 3] {
    [
        host.network.application_prefix.into(),
        host.network.shared_prefix.into(),
        site_ipv6_prefix(&host.site).into(),
    ]
}

/// The IPv4 address that an IPv6 address stands for.
fn inner(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = address.octets();
    if WITH_IPV4.iter().any(|prefix| prefix.contains(&address)) {
        return Some(Ipv4Addr::new(a, b, c, d));
    }
    let [_, _, a, b, c, d, ..] = address.octets();
    SIX_TO_FOUR.contains(&address).then(|| Ipv4Addr::new(a, b, c, d))
}

fn hints(service: &SVCB, addresses: &mut Vec<IpAddr>) {
    for (_, value) in &service.svc_params {
        match value {
            SvcParamValue::Ipv4Hint(hint) => {
                addresses.extend(hint.0.iter().map(|address| IpAddr::V4(address.0)));
            }
            SvcParamValue::Ipv6Hint(hint) => {
                addresses.extend(hint.0.iter().map(|address| IpAddr::V6(address.0)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host;
    use std::path::Path;

    fn guard() -> Guard {
        let text = "host-id: a\nsite: s\nordinal: 1\nnetwork: { application-prefix: 198.18.0.0/16 }\n\
                    dns: { upstream: [], private-domains: [corp.example] }\n";
        Guard::new(&host::parse(Path::new("host.yaml"), text).unwrap())
    }

    #[test]
    fn addresses_of_a_site_are_private_in_every_disguise() {
        let guard = guard();
        let own = site_ipv6_prefix("s").network().to_string();
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.254",
            "127.0.0.1",
            "169.254.116.7",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "255.255.255.255",
            "198.18.3.4",
            "::",
            "::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "::10.1.2.3",
            "::ffff:10.1.2.3",
            "::ffff:198.18.3.4",
            "64:ff9b::10.1.2.3",
            "64:ff9b:1::c0a8:101",
            "2002:a01:203::1",
            &own,
        ] {
            assert!(guard.is_private(address.parse().unwrap()), "{address}");
        }
        for address in [
            "9.9.9.9",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.2.1",
            "192.169.0.1",
            "198.19.0.1",
            "203.0.113.7",
            "2001:db8::1",
            "::ffff:9.9.9.9",
            "64:ff9b::909:909",
            "2002:909:909::1",
        ] {
            assert!(!guard.is_private(address.parse().unwrap()), "{address}");
        }
    }

    /// An answer with one record.
    fn reply(question: &Question, kind: u16, data: &[u8]) -> Reply {
        let query = question.query(7, [0; 32], false);
        let mut message = query.clone();
        message[2] |= 0x80;
        message[7] = 1;
        message.extend_from_slice(b"\xc0\x0c");
        message.extend(kind.to_be_bytes());
        message.extend_from_slice(b"\0\x01\0\0\0\x3c");
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend_from_slice(data);
        Reply::accept(&message, &query).unwrap()
    }

    #[test]
    fn an_answer_with_a_private_address_is_found_wherever_it_stands() {
        let guard = guard();
        let asked = |name: &[u8], kind| Question::new(name, kind).unwrap();
        let found = |name: &[u8], kind, data: &[u8]| {
            let question = asked(name, kind);
            let reply = reply(&question, kind, data);
            guard.find_private(&question, &reply).unwrap()
        };
        let private: IpAddr = "10.0.0.1".parse().unwrap();
        let outside = b"\x04evil\x07example\0";
        assert_eq!(found(outside, 1, &[10, 0, 0, 1]), Some(private));
        assert_eq!(found(outside, 1, &[192, 0, 2, 1]), None);
        for within in [b"\x04corp\x07example\0".as_slice(), b"\x01A\x04CORP\x07example\0"] {
            assert_eq!(found(within, 1, &[10, 0, 0, 1]), None);
        }
        // HTTPS 1 . ipv4hint=10.0.0.1
        let https = b"\0\x01\0\0\x04\0\x04\x0a\0\0\x01";
        assert_eq!(found(outside, 65, https), Some(private));
    }
}
