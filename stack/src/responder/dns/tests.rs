//! Answers as the asking side reads them: hickory decodes what is written here.

mod exchanges;
mod forward;
mod reply;
pub(crate) mod site;
pub(crate) mod streams;

use super::*;
use crate::plan::PortId;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::{DNSClass, RData, Record};
use proptest::prelude::*;
use site::{BLUE, HISTORIAN, SHOP, names};
use std::collections::BTreeSet;

const UDP: Transport = Transport::Udp { limit: PAYLOAD };

/// The bytes of a query: a name, a type, and what is unusual about it.
pub(crate) fn query(asked: &str) -> Vec<u8> {
    let mut words = asked.split_whitespace();
    let name = words.next().unwrap();
    let kind = words.next().unwrap();
    let mut message = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&name_of(name));
    message.extend_from_slice(&kind_of(kind).to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    let class = message.len() - 1;
    for word in words {
        let (word, value) = word.split_once('=').unwrap_or((word, "0"));
        let number: u16 = value.parse().unwrap();
        let [high, low] = number.to_be_bytes();
        match word {
            "+rd" => message[2] |= 1,
            "+ad" => message[3] |= 0x20,
            "+cd" => message[3] |= 0x10,
            "+z" => message[3] |= 0x40,
            "+class" => message[class] = low,
            "+opcode" => message[2] |= low << 3,
            "+questions" => message[5] = low,
            "+answers" => message[7] = low,
            "+authorities" => message[9] = low,
            "+edns" => {
                message[11] += 1;
                message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
            }
            // Of the OPT record that came last.
            "+version" => *message.iter_mut().rev().nth(4).unwrap() = low,
            "+do" => *message.iter_mut().rev().nth(3).unwrap() = 0x80,
            "+cookie" => {
                let length = message.len();
                message[length - 1] = 12;
                message.extend_from_slice(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
            }
            "+junk" => message.extend_from_slice(&[7; 9]),
            other => panic!("{other}"),
        }
    }
    message
}

pub(crate) fn name_of(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

fn kind_of(kind: &str) -> u16 {
    match kind {
        "A" => 1,
        "NS" => 2,
        "CNAME" => 5,
        "SOA" => 6,
        "PTR" => 12,
        "MX" => 15,
        "TXT" => 16,
        "AAAA" => 28,
        "SRV" => 33,
        "HTTPS" => 65,
        "IXFR" => 251,
        "AXFR" => 252,
        "ANY" => 255,
        other => other.strip_prefix("TYPE").unwrap().parse().unwrap(),
    }
}

/// What `port` is answered, as bytes; `None` for silence.
fn told(port: PortId, message: &[u8], transport: Transport, rotation: &mut Rotation) -> Option<Vec<u8>> {
    let names = names();
    let view = names.view(port).unwrap();
    let mut out = vec![0xaa; 65_535];
    match answer(message, view, transport, rotation, &mut out) {
        Outcome::Answer(answered) => {
            out.truncate(answered.length);
            Some(out)
        }
        Outcome::Forward(query) => match refuse(&query, Rcode::Refused, transport, &mut out) {
            Outcome::Answer(answered) => {
                out.truncate(answered.length);
                Some([b"forward", out.as_slice()].concat())
            }
            other => panic!("{other:?}"),
        },
        Outcome::Ignore => None,
    }
}

/// A response in words: rcode and flags, then `=` answers, `!` authorities, `+` additionals.
pub(crate) fn words(message: &[u8], response: Option<&[u8]>) -> String {
    let Some(response) = response else {
        return "silence".into();
    };
    if let Some(refusal) = response.strip_prefix(b"forward") {
        return format!("forward: {}", words(message, Some(refusal)));
    }
    let decoded = Message::from_vec(response).unwrap();
    let head = &decoded.metadata;
    assert_eq!(head.message_type, MessageType::Response);
    assert_eq!(head.id.to_be_bytes(), message[..2]);
    assert_eq!(response[2] & 0x78, message[2] & 0x78, "the opcode comes back");
    assert!(
        head.recursion_available,
        "names of the world beyond are asked for"
    );
    // One number has two names (RFC 6891 §9, RFC 8945 §7); nothing is signed here.
    let rcode = format!("{:?}", head.response_code).to_uppercase();
    let mut words = vec![rcode.replace("BADSIG", "BADVERS")];
    for (set, flag) in [
        (head.authoritative, "aa"),
        (head.truncation, "tc"),
        (head.recursion_desired, "rd"),
        (head.authentic_data, "ad"),
        (head.checking_disabled, "cd"),
    ] {
        if set {
            words.push(flag.into());
        }
    }
    if let Some(edns) = &decoded.edns {
        words.push(format!("edns={}", edns.max_payload()));
        assert_eq!(edns.version(), 0);
        if edns.flags().dnssec_ok {
            words.push("do".into());
        }
    }
    match decoded.queries.len() {
        0 => words.push("headeronly".into()),
        1 => {
            let question = 12..12 + message[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
            assert_eq!(
                response[question.clone()],
                message[question],
                "the question comes back"
            );
        }
        other => panic!("{other} questions"),
    }
    let mut lines = vec![words.join(" ")];
    for (mark, records) in [
        ('=', &decoded.answers),
        ('!', &decoded.authorities),
        ('+', &decoded.additionals),
    ] {
        lines.extend(
            records
                .iter()
                .map(|record| format!("{mark} {}", record_words(record))),
        );
    }
    lines.join(" | ")
}

fn record_words(record: &Record) -> String {
    assert_eq!((record.ttl, record.dns_class), (5, DNSClass::IN));
    let data = match &record.data {
        RData::SOA(soa) => {
            let whole = "ns.internal. hostmaster.internal. 1 3600 600 86400 5";
            assert_eq!(soa.to_string(), whole);
            "…".into()
        }
        RData::TXT(text) => {
            let strings = text.txt_data.iter().map(|string| String::from_utf8_lossy(string));
            strings
                .map(|string| format!("{string:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        }
        RData::SRV(target) => format!(
            "{} {} {} {}",
            target.priority, target.weight, target.port, target.target
        ),
        other => other.to_string(),
    };
    format!("{} {} {data}", record.name, record.record_type())
}

fn exchange(port: PortId, asked: &str) -> String {
    let message = query(asked);
    let response = told(port, &message, UDP, &mut Rotation::default());
    words(&message, response.as_deref())
}

/// The addresses in the answer to one question, in their order.
fn addresses(port: PortId, asked: &str, rotation: &mut Rotation) -> Vec<String> {
    let message = query(asked);
    let response = told(port, &message, UDP, rotation).unwrap();
    let decoded = Message::from_vec(&response).unwrap();
    let answers = decoded.answers.iter();
    answers.map(|record| record.data.to_string()).collect()
}

#[test]
fn each_answer_begins_with_another_address() {
    let mut rotation = Rotation::default();
    let mut first = |asked: &str| addresses(SHOP, asked, &mut rotation).swap_remove(0);
    // As a resolver asks: both families, in turn.
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        ipv4.push(first("web.shop.internal A"));
        ipv6.push(first("web.shop.internal AAAA"));
    }
    let turn = ["172.19.1.2", "172.19.2.2", "172.19.1.9"];
    assert_eq!(ipv4, [turn, turn].concat());
    let turn = [
        "fd00:aaaa:bbbb:1::1:2",
        "fd00:aaaa:bbbb:1::2:2",
        "fd00:aaaa:bbbb:1::1:9",
    ];
    assert_eq!(ipv6, [turn, turn].concat());
}

#[test]
fn a_fixed_order_stays() {
    let mut rotation = Rotation::default();
    for _ in 0..4 {
        assert_eq!(
            addresses(SHOP, "db.shop.internal A", &mut rotation),
            ["172.19.1.3", "172.19.2.4"]
        );
    }
}

#[test]
fn two_names_in_turn_rotate_each_for_itself() {
    let mut rotation = Rotation::default();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..6 {
        for (seen, name) in seen.iter_mut().zip(["web", "many"]) {
            let asked = format!("{name}.shop.internal A +edns=1232");
            seen.insert(addresses(SHOP, &asked, &mut rotation).swap_remove(0));
        }
    }
    assert_eq!(seen.map(|seen| seen.len()), [3, 6]);
}

#[test]
fn an_application_sees_none_of_anothers_names() {
    let strangers = [
        "web.blue.internal",
        "web-1.blue.internal",
        "web.blue.acme.internal",
        "blue.internal",
        "_http._tcp.web.blue.internal",
        "blue.acme.internal",
    ];
    let kinds = ["A", "AAAA", "SRV", "TXT", "PTR", "ANY", "NS", "SOA"];
    for port in [SHOP, HISTORIAN] {
        for name in strangers {
            for kind in kinds {
                assert_eq!(
                    exchange(port, &format!("{name} {kind}")),
                    "NXDOMAIN aa | ! internal. SOA …",
                    "{name} {kind}"
                );
            }
        }
    }
    for name in [
        "web.shop.internal",
        "shop.internal",
        "db.historian.internal",
        "historian.acme.internal",
    ] {
        assert_eq!(
            exchange(BLUE, &format!("{name} A")),
            "NXDOMAIN aa | ! internal. SOA …"
        );
    }
}

#[test]
fn a_walk_through_everything_that_is_inside_finds_only_what_a_port_sees() {
    let labels = [
        "web",
        "web-1",
        "web-2",
        "db",
        "db-1",
        "db-2",
        "idle",
        "many",
        "shop",
        "historian",
        "blue",
        "acme",
        "ns",
        "_http",
        "_tcp",
        "_acme-challenge",
    ];
    let mut found = BTreeSet::new();
    for third in ["", "web.", "db.", "web-1.", "db-1."] {
        for second in labels {
            for first in labels {
                for name in [
                    format!("{third}{first}.{second}.internal"),
                    format!("{third}{first}.{second}.acme.internal"),
                ] {
                    if exchange(BLUE, &format!("{name} A")).contains('=') {
                        found.insert(name);
                    }
                }
            }
        }
    }
    let own = [
        "web-1.blue.acme.internal",
        "web-1.blue.internal",
        "web.blue.acme.internal",
        "web.blue.internal",
    ];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), own);
}

#[test]
fn an_address_of_another_network_has_no_name() {
    // The same address is shop's web-1 and blue's web-1: each sees its own.
    let asked = "2.1.19.172.in-addr.arpa PTR";
    assert!(exchange(SHOP, asked).ends_with("PTR web-1.shop.internal."));
    assert!(exchange(BLUE, asked).ends_with("PTR web-1.blue.internal."));
    // Not in the shared network: its prefix is somebody else's.
    let shared = "76.64.96.100.in-addr.arpa PTR";
    assert!(exchange(SHOP, shared).ends_with("PTR db-1.historian.internal."));
    assert!(exchange(BLUE, shared).starts_with("forward"));
}

#[test]
fn what_does_not_fit_is_told_to_be_cut_off_and_comes_whole_over_tcp() {
    let count = |asked: &str, transport| {
        let message = query(asked);
        let response = told(SHOP, &message, transport, &mut Rotation::default()).unwrap();
        let decoded = Message::from_vec(&response).unwrap();
        (decoded.answers.len(), decoded.metadata.truncation, response.len())
    };
    // 12 of header, 24 of question, 16 for each address, 11 of OPT.
    assert_eq!(count("many.shop.internal A", UDP), (29, true, 36 + 29 * 16));
    assert_eq!(count("many.shop.internal A +edns=100", UDP).0, 29);
    let most = (1232 - 36 - 11) / 16;
    assert_eq!(count("many.shop.internal A +edns=1232", UDP).0, most);
    assert_eq!(count("many.shop.internal A +edns=65535", UDP).0, most);
    assert_eq!(count("many.shop.internal A", Transport::Tcp).0, 100);
    assert!(!count("many.shop.internal A", Transport::Tcp).1);
    let (targets, truncated, length) = count("_http._tcp.many.shop.internal SRV +edns=1232", UDP);
    assert!(truncated && targets > 20 && length <= 1232);
}

#[test]
fn a_text_longer_than_a_string_is_several() {
    let told = exchange(SHOP, "long.shop.internal TXT +edns=1232");
    let strings: Vec<_> = told
        .split('"')
        .filter(|part| part.starts_with('x'))
        .map(str::len)
        .collect();
    assert_eq!(strings, [255, 255, 90]);
}

#[test]
fn a_name_of_the_longest_length_is_answered_and_a_longer_one_is_not() {
    let fill = |length: usize| {
        let labels = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(length)];
        format!("{}.internal", labels.join("."))
    };
    // 64 · 3 + 1 + length + 9 + 1
    assert_eq!(
        exchange(SHOP, &format!("{} A", fill(52))),
        "NXDOMAIN aa | ! internal. SOA …"
    );
    assert_eq!(exchange(SHOP, &format!("{} A", fill(53))), "FORMERR headeronly");
}

#[test]
fn messages_are_exact_to_the_byte() {
    let told = told(
        SHOP,
        &query("dB.Shop.internal A +rd +edns=1232"),
        UDP,
        &mut Rotation::default(),
    )
    .unwrap();
    let expected = [
        &[0x12, 0x34, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 1][..],
        b"\x02dB\x04Shop\x08internal\0\0\x01\0\x01",
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 172, 19, 1, 3],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 172, 19, 2, 4],
        &[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(told, expected.concat());
}

/// The parser traps of RFC 9267, and others: each is refused with a header, or met with silence.
#[test]
fn traps_are_refused() {
    let ask = |bytes: &[u8]| {
        let response = told(SHOP, bytes, UDP, &mut Rotation::default());
        response.map(|response| response[3] & 0x0f)
    };
    let header = |counts: [u8; 4]| {
        let [questions, answers, authorities, additionals] = counts;
        vec![
            0,
            7,
            0,
            0,
            0,
            questions,
            0,
            answers,
            0,
            authorities,
            0,
            additionals,
        ]
    };
    let with = |tail: &[u8]| [&header([1, 0, 0, 0])[..], tail].concat();
    let formerr = Some(1);
    // §2: pointers to themselves, forwards, into the header, past the end, and loops of them.
    for tail in [
        &b"\xc0\x0c\0\x01\0\x01"[..],
        b"\xc0\x0e\0\x01\0\x01",
        b"\xc0\x00\0\x01\0\x01",
        b"\xff\xff\0\x01\0\x01",
        b"\x02ab\xc0\x0c\0\x01\0\x01",
        b"\x02ab\xc0\x0f\0\x01\0\x01",
    ] {
        assert_eq!(ask(&with(tail)), formerr, "{tail:?}");
    }
    // §3: labels with reserved bits, and longer than what is there.
    for tail in [
        &b"\x40ab\0\0\x01\0\x01"[..],
        b"\x80ab\0\0\x01\0\x01",
        b"\x3fab\0\0\x01\0\x01",
        b"\x02ab",
    ] {
        assert_eq!(ask(&with(tail)), formerr, "{tail:?}");
    }
    // §4: no root; §5: counts that aren't so, a record that ends behind the message.
    assert_eq!(ask(&with(b"\x02ab\x02cd")), formerr);
    assert_eq!(ask(&header([1, 0, 0, 0])), formerr);
    assert_eq!(ask(&header([0, 0, 0, 0])), formerr);
    let good = b"\x02ab\x08internal\0\0\x01\0\x01";
    assert_eq!(ask(&with(good)), Some(3));
    for extra in [
        &b""[..],
        b"\0\0\x29\x04",
        b"\0\0\x29\x04\xd0\0\0\0\0\0\x05",
        b"\0\0\x29\x04\xd0\0\0\0\0\0\x04\0\x0a\0\x08",
        b"\x01x\0\0\x29\x04\xd0\0\0\0\0\0\0",
        b"\xc0\x1d\0\x01\0\x01\0\0\0\0\0\0",
    ] {
        let mut bytes = with(good);
        bytes[11] = 1;
        bytes.extend_from_slice(extra);
        assert_eq!(ask(&bytes), formerr, "{extra:?}");
    }
    for length in 0..12 {
        assert_eq!(ask(&with(good)[..length]), None);
    }
    for length in 12..with(good).len() {
        assert_eq!(ask(&with(good)[..length]), formerr);
    }
    let mut response = with(good);
    response[2] = 0x80;
    assert_eq!(ask(&response), None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_write_beyond_its_room(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        seed in 0_usize..6,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        room in 0_usize..1400,
        limit in 0_u16..1400,
        tcp in any::<bool>(),
    ) {
        let asked = [
            "web.shop.internal A +edns=1232",
            "many.shop.internal AAAA +edns=4096 +cookie",
            "_http._tcp.web.shop.internal SRV",
            "2.1.19.172.in-addr.arpa PTR +edns=512",
            "internal NS",
        ];
        let mut bytes = asked.get(seed).map_or(noise, |asked| query(asked));
        for (at, value) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
        }
        let transport = if tcp { Transport::Tcp } else { Transport::Udp { limit } };
        let names = names();
        let mut out = vec![0; room];
        let outcome = answer(&bytes, names.view(SHOP).unwrap(), transport, &mut Rotation::default(), &mut out);
        if let Outcome::Answer(answered) = outcome {
            prop_assert!(answered.length <= room);
            prop_assert!(tcp || answered.length <= usize::from(limit.max(12)));
            let decoded = Message::from_vec(&out[..answered.length]);
            prop_assert!(decoded.is_ok(), "{decoded:?} of {:?}", &out[..answered.length]);
        }
    }
}
