//! Names that mean something on one machine or in one network alone, and are asked of nobody: `localhost` and `invalid`
//! (RFC 6761 §6.3, §6.4), `local` (RFC 6762 §22.1), `onion` (RFC 7686).

use super::rebinding::Guard;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SOA};
use hickory_proto::rr::{Name, RData, Record};
use std::net::{Ipv4Addr, Ipv6Addr};
use tidegate_stack::responder::dns::{Question, Reply};

const LOCALHOST: &str = "localhost";
/// Sites have it for a domain of their own all the same; then the host document says so.
const LOCAL: &str = "local";
/// As they are written, and as they stand in messages.
const KEPT: [(&str, &[u8]); 4] = [
    (LOCALHOST, b"\x09localhost\0"),
    ("invalid", b"\x07invalid\0"),
    (LOCAL, b"\x05local\0"),
    ("onion", b"\x05onion\0"),
];
/// Seconds for which an answer may be remembered: it never changes.
const TIME_TO_LIVE: u32 = 3600;
/// Types.
const ADDRESS: u16 = 1;
const IPV6_ADDRESS: u16 = 28;

/// What is answered about such a name, and the domain that it is in.
pub(super) fn answer(question: &Question, guard: &Guard) -> Option<(Reply, &'static str)> {
    let (domain, _) = KEPT.into_iter().find(|(_, wire)| question.is_within(wire))?;
    if domain == LOCAL && guard.is_exempt(question) {
        return None;
    }
    Some((reply(question, domain)?, domain))
}

fn reply(question: &Question, domain: &str) -> Option<Reply> {
    let sent = question.query(0, [0; 32], false);
    let query = Message::from_vec(&sent).ok()?.queries.pop()?;
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    let address = match question.kind() {
        ADDRESS if domain == LOCALHOST => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
        IPV6_ADDRESS if domain == LOCALHOST => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
        _ => None,
    };
    match address {
        Some(address) => {
            let record = Record::from_rdata(query.name().clone(), TIME_TO_LIVE, address);
            message.add_answer(record);
        }
        None => {
            let apex = Name::from_ascii(format!("{domain}.")).ok()?;
            let nobody = Name::from_ascii("nobody.invalid.").ok()?;
            let start = SOA::new(apex.clone(), nobody, 1, 3600, 1200, 604_800, TIME_TO_LIVE);
            message.add_authority(Record::from_rdata(apex, TIME_TO_LIVE, RData::SOA(start)));
        }
    }
    message.add_query(query);
    if domain != LOCALHOST {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    Reply::accept(&message.to_vec().ok()?, &sent).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn names_of_one_machine_or_network_are_answered_here() {
        let text = "host-id: a\nsite: s\nordinal: 1\ndns: { upstream: [], private-domains: [plant.local] }\n";
        let guard = Guard::new(&host::parse(Path::new("host.yaml"), text).unwrap());
        let told = |name: &[u8], kind| {
            let (reply, domain) = answer(&Question::new(name, kind).unwrap(), &guard)?;
            let addresses: Vec<_> = reply.addresses().map(|address| address.to_string()).collect();
            assert_eq!(reply.lifetime(), Duration::from_secs(3600));
            Some((domain, reply.rcode(), addresses.join(" ")))
        };
        let localhost = |address: &str| Some(("localhost", 0, address.to_owned()));
        assert_eq!(told(b"\x09localhost\0", 1), localhost("127.0.0.1"));
        assert_eq!(told(b"\x01a\x09LocalHost\0", 28), localhost("::1"));
        assert_eq!(told(b"\x09localhost\0", 16), localhost(""));
        for (name, domain) in [
            (b"\x01x\x05onion\0".as_slice(), "onion"),
            (b"\x07invalid\0", "invalid"),
            (b"\x07printer\x05local\0", "local"),
        ] {
            assert_eq!(told(name, 1), Some((domain, 3, String::new())));
        }
        assert_eq!(
            told(b"\x01a\x05plant\x05local\0", 1),
            None,
            "the site's own is asked for"
        );
        assert_eq!(told(b"\x07example\0", 1), None);
    }
}
