//! Bytes as an upstream's answer: what is accepted stays what it is through the seam, and whoever asks is answered with it.
//!
//! The first byte says what is given: a whole message (0x01), or what follows a question that is right, behind a header
//! with the three counts of the next bytes. Bits of it choose the type asked for (0x06), the code (0x70) and TC (0x80). The
//! next byte is the room for an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;
use tidegate_fuzz::{Rig, check_records};
use tidegate_stack::plan::PortId;
use tidegate_stack::responder::dns::forward::{Asker, Forwarded, Forwarder, Resolution, Told};
use tidegate_stack::responder::dns::{self, Outcome, PAYLOAD, Question, Reply, Rotation, Transport};
use tidegate_stack::snapshot::Names;
use tidegate_stack::time::Instant;

const NAME: &[u8] = b"\x03www\x07example\x04test\0";
/// A, CNAME, SRV, ANY.
const KINDS: [u16; 4] = [1, 5, 33, 255];

struct Desk {
    names: Names,
    forwarder: Forwarder,
    now: Instant,
}

thread_local! {
    static DESK: RefCell<Desk> = RefCell::new(Desk {
        names: Names::compile(Rig::new().plan(), None),
        forwarder: Forwarder::new(1, 7),
        now: Instant::from_nanos(1),
    });
}

impl Desk {
    /// Asks as an instance does; what is answered belongs to the question, and can be walked over.
    fn ask(&mut self, question: &Question, transport: Transport, room: usize) {
        let query = question.query(0x1234, [0x33; 32], room.is_multiple_of(2));
        let mut out = vec![0x5a; room + 1];
        let view = self.names.view(PortId(0)).unwrap();
        let Outcome::Forward(parsed) =
            dns::answer(&query, view, transport, &mut Rotation::default(), &mut [])
        else {
            panic!("it is a name of the world beyond")
        };
        let asker = Asker::Stream {
            port: PortId(0),
            connection: 1,
        };
        let forwarded = self
            .forwarder
            .ask(&parsed, asker, transport, self.now, &mut out[..room]);
        assert_eq!(out[room], 0x5a);
        let Forwarded::Answered(answered) = forwarded else {
            assert_eq!(forwarded, Forwarded::Ignored, "it was told");
            return;
        };
        let answer = &out[..answered.length];
        assert_eq!(answer[..2], [0x12, 0x34]);
        let question_end = 12 + NAME.len() + 4;
        assert_eq!(answer[12..question_end], query[12..question_end]);
        if let Transport::Udp { limit } = transport {
            assert!(answer.len() <= usize::from(limit));
        }
        let count = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
        let records = count(6)
            .checked_add(count(8))
            .and_then(|sum| sum.checked_add(count(10)));
        match records {
            Some(0) => assert_eq!(answer.len(), question_end),
            Some(records) => check_records(answer, records),
            None => {}
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let [choice, room, rest @ ..] = input else {
        return;
    };
    let question = Question::new(NAME, KINDS[usize::from(choice >> 1 & 3)]).unwrap();
    let sent = question.query(0x5a5a, [0x55; 32], true);
    let message = if choice & 1 == 1 {
        rest.to_vec()
    } else {
        let [answers, authorities, additionals, sections @ ..] = rest else {
            return;
        };
        let mut message = sent[..12 + NAME.len() + 4].to_vec();
        message[2] |= 0x80 | (choice >> 6 & 0x02);
        message[3] = choice >> 4 & 7;
        message[7] = *answers;
        message[9] = *authorities;
        message[11] = *additionals;
        message.extend_from_slice(sections);
        message
    };
    let Ok(reply) = Reply::accept(&message, &sent) else {
        return;
    };
    assert!(reply.message().len() <= message.len().max(sent.len()));
    assert_eq!(reply.question().as_ref(), Some(&question));
    let again = Reply::try_from(reply.message().to_vec()).unwrap();
    assert_eq!(again.message(), reply.message());
    assert!(reply.addresses().count() <= reply.message().len());
    DESK.with_borrow_mut(|desk| {
        // An answer that is told twice takes the place of the first.
        let told = Arc::new(Told {
            question: question.clone(),
            resolution: Resolution::Reply(reply),
        });
        desk.now = desk.now + Duration::from_secs(1);
        let now = desk.now;
        desk.forwarder.handle_told(&told, now);
        desk.ask(
            &question,
            Transport::Udp { limit: PAYLOAD },
            usize::from(*room) * 8,
        );
        desk.ask(&question, Transport::Tcp, usize::from(*room) * 64);
        while desk.forwarder.poll_due().is_some() {}
    });
});
