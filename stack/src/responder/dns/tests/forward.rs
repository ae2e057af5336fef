//! Questions about the world beyond, in simulated time.

use super::reply::{ASKED, question, record, reply_to, sent};
use super::site::SHOP;
use super::{UDP, query};
use crate::plan::PortId;
use crate::responder::dns::forward::{
    Asker, Forwarded, Forwarder, MOST_BYTES, MOST_NAMES, MOST_OF_PORT, MOST_QUESTIONS, PATIENCE, RETRY_AFTER,
    Resolution, STALE_AFTER, STALE_LIFETIME, Told,
};
use crate::responder::dns::query::Query;
use crate::responder::dns::{Question, Reply, Transport};
use crate::time::Instant;
use hickory_proto::op::Message;
use std::sync::Arc;
use std::time::Duration;

struct World {
    forwarder: Forwarder,
    now: Instant,
}

const SECOND: Duration = Duration::from_secs(1);

fn asker(number: u64) -> Asker {
    Asker::Stream {
        port: SHOP,
        connection: number,
    }
}

/// The answer to a question for an address: it lasts for `time` seconds, and its name points into the question.
fn told(name: &str, time: u32) -> Arc<Told> {
    let asked = question(name, 1);
    let sections = record(ASKED, 1, time, &[192, 0, 2, 7]);
    let message = reply_to(&asked, 0, [1, 0, 0], &sections);
    let reply = Reply::accept(&message, &sent(&asked)).unwrap();
    Arc::new(Told {
        question: asked,
        resolution: Resolution::Reply(reply),
    })
}

fn came_to_nothing(name: &str, resolution: Resolution) -> Arc<Told> {
    Arc::new(Told {
        question: question(name, 1),
        resolution,
    })
}

/// An answer in words: its code, and what its records say.
fn said(message: &[u8]) -> String {
    let decoded = Message::from_vec(message).unwrap();
    assert_eq!(decoded.metadata.id, 0x1234);
    assert!(decoded.metadata.recursion_available && !decoded.metadata.authoritative);
    let mut words = vec![format!("{:?}", decoded.metadata.response_code)];
    if decoded.metadata.truncation {
        words.push("tc".into());
    }
    let records = decoded.answers.iter();
    words.extend(records.map(|record| format!("{} {} {}", record.name, record.ttl, record.data)));
    words.join(" ")
}

impl World {
    fn new() -> Self {
        Self {
            forwarder: Forwarder::new(1, 3),
            now: Instant::from_nanos(5_000_000_000),
        }
    }

    /// What is answered at once; `None`: it waits.
    fn ask_over(&mut self, asked: &str, asker: Asker, transport: Transport) -> Option<Vec<u8>> {
        let message = query(asked);
        let query = Query::parse(&message).unwrap();
        let mut out = vec![0; 4096];
        match self.forwarder.ask(&query, asker, transport, self.now, &mut out) {
            Forwarded::Answered(answered) => {
                out.truncate(answered.length);
                Some(out)
            }
            Forwarded::Waits => None,
            Forwarded::Ignored => panic!("{asked}"),
        }
    }

    fn ask(&mut self, asked: &str) -> Option<String> {
        Some(said(&self.ask_over(asked, asker(0), UDP)?))
    }

    fn questions(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.forwarder.poll_question())
            .map(|question| question.to_string())
            .collect()
    }

    /// What those who waited are answered.
    fn due(&mut self) -> Vec<String> {
        let mut answers = Vec::new();
        while let Some(due) = self.forwarder.poll_due() {
            let mut out = vec![0; 4096];
            let answered = due.write(&mut out).unwrap();
            answers.push(said(&out[..answered.length]));
        }
        answers
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.forwarder.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.forwarder.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn tell(&mut self, told: &Arc<Told>) -> Vec<String> {
        self.forwarder.handle_told(told, self.now);
        self.due()
    }
}

#[test]
fn who_asks_the_same_waits_for_the_same_and_what_was_told_is_told_again() {
    let mut world = World::new();
    assert_eq!(world.ask("www.Example.test A +rd"), None);
    assert_eq!(world.ask("WWW.example.test A +rd"), None);
    assert_eq!(world.ask("www.example.test AAAA"), None);
    assert_eq!(
        world.questions(),
        ["www.example.test. A", "www.example.test. AAAA"]
    );
    assert_eq!(world.forwarder.waiting(), 3);
    // Each in the letters it asked in: the owner's name is a pointer to them.
    assert_eq!(
        world.tell(&told("www.example.test", 60)),
        [
            "NoError www.Example.test. 60 192.0.2.7",
            "NoError WWW.example.test. 60 192.0.2.7"
        ]
    );
    world.pass(Duration::from_millis(20_500));
    world.due();
    assert_eq!(
        world.ask("www.example.test A").unwrap(),
        "NoError www.example.test. 39 192.0.2.7"
    );
    world.pass(Duration::from_secs(39));
    assert_eq!(
        world.ask("www.example.test A").unwrap(),
        "NoError www.example.test. 1 192.0.2.7"
    );
    world.pass(SECOND);
    assert_eq!(world.ask("www.example.test A"), None, "its time is over");
    let counts = world.forwarder.counts();
    assert_eq!((counts.asked, counts.cached, counts.overflown), (3, 2, 0));
}

#[test]
fn a_question_is_repeated_while_somebody_waits_and_then_fails() {
    let mut world = World::new();
    assert_eq!(world.ask("www.example.test A"), None);
    assert_eq!(world.questions().len(), 1);
    world.pass(Duration::from_millis(950));
    assert_eq!(world.questions().len(), 0);
    world.pass(Duration::from_millis(150));
    assert_eq!(world.questions(), ["www.example.test. A"]);
    world.pass(PATIENCE);
    assert_eq!(world.questions().len(), 3);
    assert_eq!(world.due(), ["ServFail"]);
    assert_eq!(world.forwarder.waiting(), 0);
    assert_eq!(world.forwarder.poll_timeout(), None);
    // An answer that comes too late is remembered.
    assert_eq!(world.tell(&told("www.example.test", 60)), [""; 0]);
    assert!(world.ask("www.example.test A").is_some());
}

#[test]
fn an_answer_whose_time_is_over_is_better_than_none() {
    let mut world = World::new();
    world.ask("www.example.test A");
    world.tell(&told("www.example.test", 60));
    world.questions();
    world.pass(Duration::from_secs(61));
    // Nobody answers: after a while what was true before, and then at once.
    assert_eq!(world.ask("www.example.test A"), None);
    assert_eq!(world.questions().len(), 1);
    world.pass(STALE_AFTER - Duration::from_millis(100));
    assert_eq!(world.due(), [""; 0]);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.due(), ["NoError www.example.test. 30 192.0.2.7"]);
    assert_eq!(
        world.ask("www.example.test A").unwrap(),
        "NoError www.example.test. 30 192.0.2.7"
    );
    assert_eq!(
        world.questions().len(),
        1,
        "the repetition; nothing is asked for a while"
    );
    world.pass(RETRY_AFTER);
    assert_eq!(world.ask("www.example.test A"), None);
    assert_eq!(world.questions().len(), 1);
    // It is known that it can't be found out: the same, without the wait.
    let failed = came_to_nothing("www.example.test", Resolution::Failed);
    assert_eq!(world.tell(&failed), ["NoError www.example.test. 30 192.0.2.7"]);
    assert!(world.ask("www.example.test A").is_some());
    assert_eq!(world.forwarder.counts().stale, 4);
    // It is found out again.
    world.tell(&told("www.example.test", 60));
    assert_eq!(
        world.ask("www.example.test A").unwrap(),
        "NoError www.example.test. 60 192.0.2.7"
    );
    world.pass(SECOND * 60 + STALE_LIFETIME);
    assert_eq!(world.ask("www.example.test A"), None);
    world.pass(STALE_AFTER * 2);
    assert_eq!(world.due(), [""; 0], "after a day it isn't told any more");
}

#[test]
fn a_failure_does_not_take_the_place_of_what_is_known() {
    let mut world = World::new();
    world.tell(&told("www.example.test", 60));
    world.tell(&came_to_nothing("www.example.test", Resolution::Failed));
    assert_eq!(
        world.ask("www.example.test A").unwrap(),
        "NoError www.example.test. 60 192.0.2.7"
    );
}

#[test]
fn failures_and_refusals_are_remembered_for_a_moment() {
    let mut world = World::new();
    for (resolution, code) in [(Resolution::Failed, "ServFail"), (Resolution::Refused, "Refused")] {
        assert_eq!(world.ask("www.example.test A"), None);
        let told = came_to_nothing("www.example.test", resolution);
        assert_eq!(world.tell(&told), [code]);
        assert_eq!(world.ask("www.example.test A").unwrap(), code);
        world.pass(SECOND);
    }
}

#[test]
fn an_answer_to_something_else_is_a_failure() {
    let mut world = World::new();
    world.ask("www.example.test A");
    let Told { resolution, .. } = &*told("www.example.net", 60);
    let told = came_to_nothing("www.example.test", resolution.clone());
    assert_eq!(world.tell(&told), ["ServFail"]);

    let asked = question("cut.example.test", 1);
    let mut truncated = reply_to(&asked, 0, [1, 0, 0], b"");
    truncated[2] |= 0x02;
    let reply = Reply::accept(&truncated, &sent(&asked)).unwrap();
    world.ask("cut.example.test A");
    assert_eq!(
        world.tell(&came_to_nothing("cut.example.test", Resolution::Reply(reply))),
        ["ServFail"]
    );
}

#[test]
fn what_does_not_fit_is_cut_off_and_whole_over_tcp() {
    let mut world = World::new();
    let asked = question("www.example.test", 1);
    let sections: Vec<u8> = (0..100)
        .flat_map(|number| record(ASKED, 1, 60, &[192, 0, 2, number]))
        .collect();
    let message = reply_to(&asked, 0, [100, 0, 0], &sections);
    let reply = Reply::accept(&message, &sent(&asked)).unwrap();
    world.tell(&came_to_nothing("www.example.test", Resolution::Reply(reply)));
    assert_eq!(world.ask("www.example.test A +edns=1232").unwrap(), "NoError tc");
    let whole = world
        .ask_over("www.example.test A", asker(0), Transport::Tcp)
        .unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 100);
    assert!(said(&whole).contains("60 192.0.2.99"));
}

#[test]
fn what_waits_is_bounded_by_port_and_fails_beyond() {
    let mut world = World::new();
    for number in 0..MOST_OF_PORT {
        assert_eq!(world.ask(&format!("n{number}.example.test A")), None);
    }
    assert_eq!(world.ask("one.more.example.test A").unwrap(), "ServFail");
    assert_eq!(world.forwarder.counts().overflown, 1);
    let other = Asker::Stream {
        port: PortId(99),
        connection: 1,
    };
    assert!(world.ask_over("other.example.test A", other, UDP).is_none());
    assert_eq!(
        world.questions().len(),
        MOST_QUESTIONS,
        "what is lost is repeated"
    );
    world.forwarder.retain(|port| port == PortId(99));
    assert_eq!(world.forwarder.waiting(), 1);
    assert_eq!(world.ask("n0.example.test A"), None);
    world.pass(PATIENCE + SECOND);
    assert_eq!(world.due().len(), 2);
}

#[test]
fn what_is_remembered_is_bounded_and_the_oldest_goes() {
    let mut world = World::new();
    for number in 0..MOST_NAMES + 10 {
        world.tell(&told(&format!("n{number}.example.test"), 600));
        // One of them is told again and again, and so never the oldest.
        world.tell(&told("n0.example.test", 600));
    }
    let (names, bytes) = world.forwarder.remembered();
    assert_eq!(names, MOST_NAMES);
    assert!(bytes <= MOST_BYTES, "{bytes}");
    assert!(world.ask("n0.example.test A").is_some());
    assert_eq!(world.ask("n1.example.test A"), None);
    assert!(world.ask("n1000.example.test A").is_some());

    // By bytes: 400 answers of 64,000.
    for number in 0..400 {
        let asked = question(&format!("long{number}.example.test"), 16);
        let string = [&[255][..], &[b'a'; 255]].concat();
        let message = reply_to(&asked, 0, [1, 0, 0], &record(ASKED, 16, 60, &string.repeat(250)));
        let reply = Reply::accept(&message, &sent(&asked)).unwrap();
        world.forwarder.handle_told(
            &Arc::new(Told {
                question: asked,
                resolution: Resolution::Reply(reply),
            }),
            world.now,
        );
    }
    let (names, bytes) = world.forwarder.remembered();
    assert!(
        names < 400 && bytes <= MOST_BYTES && bytes > MOST_BYTES - 70_000,
        "{names} {bytes}"
    );
}

#[test]
fn told_travels_as_json() {
    for told in [
        told("www.example.test", 60),
        came_to_nothing("x.test", Resolution::Failed),
        came_to_nothing("x.test", Resolution::Refused),
    ] {
        let json = serde_json::to_string(&*told).unwrap();
        assert_eq!(serde_json::from_str::<Told>(&json).unwrap(), *told);
    }
    let question = Question::new(b"\x01x\x04test\0", 1).unwrap();
    assert_eq!(question.to_string(), "x.test. A");
}
