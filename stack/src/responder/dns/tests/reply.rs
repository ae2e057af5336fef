//! What an upstream may answer, and what it may not.

use super::name_of;
use crate::responder::dns::{Question, Reply, ReplyFault};
use hickory_proto::op::Message;
use proptest::prelude::*;
use std::net::IpAddr;
use std::time::Duration;

/// A message to the end of its question, which is in the case that `0b01…` draws; it is a response with the counts of
/// answers, authorities and additionals.
pub(super) fn reply_to(question: &Question, code: u8, counts: [u8; 3], sections: &[u8]) -> Vec<u8> {
    let mut message = sent(question);
    message.truncate(message.len() - 11);
    message[2] |= 0x80;
    message[3] = 0x80 | code;
    for (place, count) in [7, 9, 11].into_iter().zip(counts) {
        message[place] = count;
    }
    message.extend_from_slice(sections);
    message
}

pub(super) fn question(name: &str, kind: u16) -> Question {
    Question::new(&name_of(name), kind).unwrap()
}

pub(super) fn sent(question: &Question) -> Vec<u8> {
    question.query(0x5a5a, [0b0101_0101; 32], true)
}

/// A record; its owner is written as given.
pub(super) fn record(owner: &[u8], kind: u16, time: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [
        owner,
        &kind.to_be_bytes(),
        &[0, 1],
        &time.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// The name asked for.
pub(super) const ASKED: &[u8] = &[0xc0, 12];

fn soa(time: u32, minimum: u32) -> Vec<u8> {
    let numbers = [1, 2, 3, 4, minimum].map(u32::to_be_bytes).concat();
    record(ASKED, 6, time, &[b"\xc0\x0c", ASKED, &numbers].concat())
}

fn accept(question: &Question, message: &[u8]) -> Result<Reply, ReplyFault> {
    Reply::accept(message, &sent(question))
}

#[test]
fn an_answer_is_kept_without_what_stands_behind_it() {
    let asked = question("www.Example.test", 1);
    let alias = record(ASKED, 5, 300, b"\x03cdn\xc0\x10");
    let address = record(&[0xc0, 46], 1, 60, &[192, 0, 2, 7]);
    let extra = record(b"\x05other\xc0\x10", 1, 60, &[192, 0, 2, 8]);
    let opt = record(b"", 0, 0, b"");
    assert_eq!(opt.len(), 10);
    let opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";
    let message = reply_to(
        &asked,
        0,
        [2, 0, 2],
        &[&alias[..], &address, &extra, opt].concat(),
    );
    let reply = accept(&asked, &message).unwrap();
    assert_eq!(reply.question(), Some(asked.clone()));
    assert_eq!(
        reply.addresses().collect::<Vec<_>>(),
        [IpAddr::from([192, 0, 2, 7])]
    );
    assert_eq!(reply.lifetime(), Duration::from_secs(60));
    assert_eq!(
        (reply.rcode(), reply.is_answer(), reply.is_truncated()),
        (0, true, false)
    );
    let decoded = Message::from_vec(reply.message()).unwrap();
    assert_eq!(
        (
            decoded.answers.len(),
            decoded.authorities.len(),
            decoded.additionals.len()
        ),
        (2, 0, 0)
    );
    assert_eq!(decoded.queries[0].name().to_string(), "www.example.test.");
    assert!(decoded.edns.is_none());

    let json = serde_json::to_string(&reply).unwrap();
    assert_eq!(serde_json::from_str::<Reply>(&json).unwrap(), reply);
}

#[test]
fn how_long_an_answer_is_remembered_has_bounds() {
    let asked = question("www.example.test", 1);
    let lifetime = |code, counts, sections: &[u8]| {
        let message = reply_to(&asked, code, counts, sections);
        accept(&asked, &message).unwrap().lifetime().as_secs()
    };
    let address = |time| record(ASKED, 1, time, &[192, 0, 2, 7]);
    let alias = |time| record(ASKED, 5, time, ASKED);
    for (expected, code, counts, sections) in [
        (60, 0, [1, 0, 0], address(60)),
        (5, 0, [1, 0, 0], address(0)),
        (86_400, 0, [1, 0, 0], address(1_000_000)),
        // RFC 2181 §8.
        (5, 0, [1, 0, 0], address(0x8000_0001)),
        (7, 0, [2, 0, 0], [alias(7), address(60)].concat()),
        // There is none: the lesser of the SOA's two (RFC 2308 §5), an hour at most.
        (30, 3, [0, 1, 0], soa(30, 90)),
        (90, 0, [0, 1, 0], soa(300, 90)),
        (3600, 3, [0, 1, 0], soa(100_000, 100_000)),
        (5, 3, [0, 0, 0], Vec::new()),
        (8, 0, [1, 1, 0], [alias(8), soa(60, 60)].concat()),
    ] {
        assert_eq!(lifetime(code, counts, &sections), expected, "{counts:?}");
    }
}

#[test]
fn what_is_not_the_answer_is_told_apart() {
    let asked = question("www.example.test", 1);
    let address = record(ASKED, 1, 60, &[192, 0, 2, 7]);
    let good = reply_to(&asked, 0, [1, 0, 0], &address);
    let changed = |place: usize, mask: u8| {
        let mut message = good.clone();
        message[place] ^= mask;
        accept(&asked, &message).unwrap_err()
    };
    assert_eq!(changed(0, 1), ReplyFault::Identifier);
    assert_eq!(changed(2, 0x80), ReplyFault::NotAReply);
    assert_eq!(changed(2, 0x08), ReplyFault::NotAReply);
    assert_eq!(changed(13, 0x20), ReplyFault::Case);
    assert_eq!(changed(13, 0x01), ReplyFault::Question);
    // The type asked for, and the class.
    let question_end = good.len() - address.len();
    assert_eq!(changed(question_end - 3, 0x01), ReplyFault::Question);
    assert_eq!(changed(question_end - 1, 0x02), ReplyFault::Question);
    assert_eq!(changed(5, 0x01), ReplyFault::Question);
    assert_eq!(changed(5, 0x02), ReplyFault::Malformed);
    for length in 0..good.len() {
        assert!(accept(&asked, &good[..length]).is_err(), "{length}");
    }
    assert_eq!(accept(&asked, b""), Err(ReplyFault::NotAReply));
}

#[test]
fn failures_are_no_answers_and_what_is_cut_off_is_asked_again() {
    let asked = question("www.example.test", 1);
    for code in [1, 2, 4, 5, 9] {
        let reply = accept(&asked, &reply_to(&asked, code, [0, 0, 0], b"")).unwrap();
        assert_eq!((reply.rcode(), reply.is_answer()), (u16::from(code), false));
    }
    // BADVERS, in an OPT record.
    let opt = b"\0\0\x29\x04\xd0\x01\0\0\0\0\0";
    let reply = accept(&asked, &reply_to(&asked, 0, [0, 0, 1], opt)).unwrap();
    assert_eq!((reply.rcode(), reply.is_answer()), (16, false));
    let again = Reply::try_from(reply.message().to_vec()).unwrap();
    assert!(!again.is_answer());

    // Without a question, from who doesn't understand EDNS.
    let mut bare = reply_to(&asked, 1, [0, 0, 0], b"")[..12].to_vec();
    bare[5] = 0;
    assert_eq!(accept(&asked, &bare).unwrap().rcode(), 1);

    // Cut off, with the counts of the whole.
    let mut truncated = reply_to(&asked, 0, [9, 3, 1], b"");
    truncated[2] |= 0x02;
    let reply = accept(&asked, &truncated).unwrap();
    assert_eq!((reply.is_truncated(), reply.is_answer()), (true, false));
}

/// RFC 9267: what parsers trip over.
#[test]
fn the_traps_of_parsers_are_malformed() {
    let asked = question("www.example.test", 1);
    let end = reply_to(&asked, 0, [1, 0, 0], b"").len() as u8;
    let address = [192, 0, 2, 7];
    let whole = |owner: &[u8]| record(owner, 1, 60, &address);
    let label = [&[63][..], &[b'a'; 63]].concat();
    let long = [&label[..], &label, &label, &label, &[0]].concat();
    let forward = [0xc0, end + 20];
    let traps: Vec<(&str, Vec<u8>)> = vec![
        ("a pointer to itself (§2)", whole(&[0xc0, end])),
        ("a pointer forwards", whole(&forward)),
        ("a pointer out of the message", whole(&[0xff, 0xff])),
        ("a pointer into the header", whole(&[0xc0, 4])),
        (
            "labels that lead back to themselves",
            whole(&[1, b'a', 0xc0, end]),
        ),
        ("a reserved kind of label", whole(&[0x40, 0])),
        ("another one", whole(&[0x80, 0])),
        ("a name of 257 bytes (§3)", whole(&long)),
        (
            "a name that is too long by its pointer",
            whole(&[&label[..], &label, &label, &label[..50], ASKED].concat()),
        ),
        ("a name without an end (§4)", b"\x03www".to_vec()),
        ("a label longer than the message (§5)", b"\x3fwww".to_vec()),
        ("data longer than the message (§6)", {
            let mut record = whole(ASKED);
            record[11] = 200;
            record
        }),
        ("an address of three bytes", record(ASKED, 1, 60, &address[..3])),
        ("an address of 15 bytes", record(ASKED, 28, 60, &[0; 15])),
        ("an alias without a name", record(ASKED, 5, 60, b"")),
        (
            "an alias that ends behind its data",
            record(ASKED, 5, 60, b"\x03www"),
        ),
        (
            "an alias with something behind",
            record(ASKED, 5, 60, b"\x03www\0\0"),
        ),
        ("a mail exchange of one byte", record(ASKED, 15, 60, b"\0")),
        (
            "a target that points into what comes",
            record(ASKED, 33, 60, &[0, 0, 0, 0, 0, 0, 0xc0, end + 24]),
        ),
        (
            "an SOA without its numbers",
            record(ASKED, 6, 60, &[ASKED, ASKED].concat()),
        ),
        ("another class", {
            let mut record = whole(ASKED);
            record[5] = 3;
            record
        }),
        (
            "an OPT record among the answers",
            b"\0\0\x29\x04\xd0\0\0\0\0\0\0".to_vec(),
        ),
        ("fewer records than counted (§7)", Vec::new()),
    ];
    for (trap, sections) in traps {
        let message = reply_to(&asked, 0, [1, 0, 0], &sections);
        assert_eq!(accept(&asked, &message), Err(ReplyFault::Malformed), "{trap}");
    }
    // And in the sections that aren't kept.
    let additional = reply_to(&asked, 0, [0, 0, 1], &whole(&[0xc0, end]));
    assert_eq!(accept(&asked, &additional), Err(ReplyFault::Malformed));
    let opt_below = reply_to(&asked, 0, [0, 0, 1], &record(ASKED, 41, 0, b""));
    assert_eq!(accept(&asked, &opt_below), Err(ReplyFault::Malformed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_accepted_is_read_by_others_and_stays_the_same(
        tail in prop::collection::vec(any::<u8>(), 0..120),
        counts in prop::array::uniform3(0_u8..4),
        code in 0_u8..6,
    ) {
        let asked = question("www.example.test", 1);
        let message = reply_to(&asked, code, counts, &tail);
        if let Ok(reply) = accept(&asked, &message) {
            prop_assert!(reply.message().len() <= message.len());
            let again = Reply::try_from(reply.message().to_vec()).unwrap();
            prop_assert_eq!(again.message(), reply.message());
            let _ = reply.addresses().count();
        }
    }
}
