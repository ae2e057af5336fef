//! The replica, verb by verb.

use super::super::record::{LaneGeneration, NetworkRecord, NetworkSettings};
use super::*;
use tidegate_stack::plan::{NetworkKind, Vni};

fn at(milliseconds: u64) -> Instant {
    Instant::from_nanos(milliseconds * 1_000_000)
}

fn body(ordinal: u64) -> RecordBody {
    RecordBody {
        ordinal: HostOrdinal::try_from(ordinal).unwrap(),
        addresses: vec!["192.0.2.11".parse().unwrap()],
        generations: Vec::new(),
        network: NetworkSettings {
            application_prefix: "172.19.0.0/16".parse().unwrap(),
            shared_prefix: "100.96.0.0/11".parse().unwrap(),
        },
        networks: Vec::new(),
        instances: Vec::new(),
        later: serde_json::Map::new(),
    }
}

fn replica(host_id: &str, ordinal: u64) -> Replica {
    let mut replica = Replica::new(host_id, 1, 7, at(0));
    replica.publish(body(ordinal));
    drop(events(&mut replica));
    replica
}

fn sent(replica: &mut Replica) -> Vec<Transmit> {
    std::iter::from_fn(|| replica.poll_transmit()).collect()
}

fn events(replica: &mut Replica) -> Vec<ReplicaEvent> {
    std::iter::from_fn(|| replica.poll_event()).collect()
}

fn names(replica: &Replica) -> Vec<&str> {
    replica.records().map(|record| record.host_id.as_str()).collect()
}

/// Carries everything over one link between two hosts, until neither has more to say.
fn exchange(one: &mut Replica, other: &mut Replica, link: LinkId, now: Instant) {
    loop {
        let (there, back) = (sent(one), sent(other));
        if there.is_empty() && back.is_empty() {
            return;
        }
        for transmit in there
            .into_iter()
            .filter(|transmit| transmit.links.contains(&link))
        {
            other.handle_message(link, transmit.message, now);
        }
        for transmit in back.into_iter().filter(|transmit| transmit.links.contains(&link)) {
            one.handle_message(link, transmit.message, now);
        }
    }
}

fn connect(one: &mut Replica, other: &mut Replica, link: LinkId, now: Instant) {
    one.handle_connected(link, now);
    other.handle_connected(link, now);
    exchange(one, other, link, now);
}

fn digest(host_id: &str, boot: u64, life: u32, record: Option<u64>, beat: u64) -> Message {
    let stamp = |count| Stamp { boot, life, count };
    Message::Digest(vec![Entry {
        host_id: host_id.to_owned(),
        record: record.map(stamp),
        beat: Some(stamp(beat)),
        fresh: true,
    }])
}

#[test]
fn two_hosts_that_meet_know_each_other_at_once() {
    let (mut a, mut b) = (replica("a", 1), replica("b", 2));
    connect(&mut a, &mut b, LinkId(1), at(10));
    assert_eq!(names(&a), ["b"]);
    assert_eq!(names(&b), ["a"]);
    assert!(a.poll_change());
    assert_eq!(
        events(&mut a),
        [ReplicaEvent::Appeared {
            host_id: "b".to_owned()
        }]
    );
}

#[test]
fn a_changed_record_is_pushed_at_once_and_an_equal_one_is_nothing() {
    let (mut a, mut b) = (replica("a", 1), replica("b", 2));
    connect(&mut a, &mut b, LinkId(1), at(10));
    assert!(b.poll_change());
    a.publish(body(1));
    assert_eq!(sent(&mut a), []);
    let mut changed = body(1);
    changed.addresses.clear();
    a.publish(changed.clone());
    exchange(&mut a, &mut b, LinkId(1), at(20));
    assert_eq!(b.records().next().map(|record| &record.body), Some(&changed));
    assert!(b.poll_change());
    assert!(!b.poll_change());
}

#[test]
fn a_silent_host_is_withdrawn_after_three_seconds_and_its_older_record_stays_out() {
    let (mut a, mut b) = (replica("a", 1), replica("b", 2));
    let old = b.own.clone().unwrap();
    b.publish(body(3));
    connect(&mut a, &mut b, LinkId(1), at(10));
    drop(events(&mut a));
    a.handle_timeout(at(1_500));
    a.handle_timeout(at(3_009));
    assert_eq!(names(&a), ["b"]);
    assert!(a.poll_timeout() <= at(3_010));
    a.handle_timeout(at(3_010));
    assert_eq!(names(&a), [""; 0]);
    assert_eq!(
        events(&mut a),
        [ReplicaEvent::Withdrawn {
            host_id: "b".to_owned()
        }]
    );
    a.handle_message(LinkId(1), Message::Records(vec![old]), at(3_020));
    assert_eq!(
        a.record("b").map(HostRecord::stamp),
        b.own.as_ref().map(HostRecord::stamp)
    );
    b.handle_timeout(at(3_030));
    exchange(&mut a, &mut b, LinkId(1), at(3_030));
    assert_eq!(names(&a), ["b"]);
}

#[test]
fn who_was_away_takes_nobody_for_silent_until_it_has_listened_for_three_seconds() {
    let (mut a, mut b) = (replica("a", 1), replica("b", 2));
    connect(&mut a, &mut b, LinkId(1), at(10));
    drop(events(&mut a));
    a.handle_timeout(at(1_000));
    a.handle_timeout(at(21_000));
    assert_eq!(names(&a), ["b"]);
    assert!(a.poll_timeout() > at(21_000));
    // What it heard long ago is no sign of life that it passes on.
    let told = sent(&mut a);
    let fresh = told.iter().any(|transmit| match &transmit.message {
        Message::Digest(entries) => entries.iter().any(|entry| entry.host_id == "b" && entry.fresh),
        Message::Want(_) | Message::Records(_) => false,
    });
    assert!(!fresh, "{told:?}");
    for second in 22..24 {
        a.handle_timeout(at(second * 1_000));
        assert_eq!(names(&a), ["b"]);
    }
    a.handle_timeout(at(24_000));
    assert_eq!(names(&a), [""; 0]);
}

#[test]
fn hosts_without_a_way_to_each_other_meet_through_a_third() {
    let (mut a, mut b, mut c) = (replica("a", 1), replica("b", 2), replica("c", 3));
    connect(&mut a, &mut b, LinkId(1), at(10));
    connect(&mut b, &mut c, LinkId(2), at(10));
    assert_eq!(names(&c), ["a", "b"]);
    b.handle_timeout(at(110));
    exchange(&mut b, &mut a, LinkId(1), at(110));
    assert_eq!(names(&a), ["b", "c"]);
}

#[test]
fn nobody_is_told_what_he_told() {
    let mut b = replica("b", 2);
    b.handle_connected(LinkId(1), at(0));
    b.handle_connected(LinkId(2), at(0));
    drop(sent(&mut b));
    b.handle_message(LinkId(1), digest("a", 1, 1, None, 5), at(10));
    b.handle_timeout(at(110));
    let links: Vec<_> = sent(&mut b).into_iter().map(|transmit| transmit.links).collect();
    assert_eq!(links, [[LinkId(2)]]);
    // An old beat isn't told on, nor is one that was told before.
    b.handle_message(LinkId(2), digest("a", 1, 1, None, 5), at(120));
    b.handle_message(LinkId(2), digest("a", 1, 1, None, 4), at(120));
    b.handle_timeout(at(300));
    assert_eq!(sent(&mut b), []);
}

#[test]
fn an_owner_that_lost_its_count_jumps_above_what_is_remembered() {
    let mut b = Replica::new("b", 9, 7, at(0));
    b.publish(body(2));
    let mut a = replica("a", 1);
    connect(&mut a, &mut b, LinkId(1), at(10));
    let mut reborn = Replica::new("b", 1, 8, at(20));
    reborn.publish(body(3));
    drop(sent(&mut reborn));
    connect(&mut a, &mut reborn, LinkId(2), at(30));
    assert_eq!(reborn.boot(), 10);
    assert_eq!(a.record("b"), reborn.own.as_ref());
    assert_eq!(a.records().next().map(|record| record.boot), Some(10));
    assert!(events(&mut reborn).contains(&ReplicaEvent::Overtaken { boot: 9 }));
}

#[test]
fn what_is_made_up_about_a_host_is_overtaken_by_it() {
    let mut a = replica("a", 1);
    let mut b = replica("b", 2);
    connect(&mut a, &mut b, LinkId(1), at(10));
    // A beat, and a record, that the host never counted.
    for (record, beat) in [(None, Some(u64::MAX)), (Some(u64::MAX), None)] {
        let start = b.own_entry().record.unwrap();
        let forged = |count| Stamp { count, ..start };
        let entry = Entry {
            host_id: "b".to_owned(),
            record: record.map(forged),
            beat: beat.map(forged),
            fresh: true,
        };
        let before = b.boot();
        // Once in a while is often enough.
        let later = at(100_000 * before);
        b.handle_message(LinkId(1), Message::Digest(vec![entry]), later);
        assert_eq!(b.boot(), before + 1);
        exchange(&mut a, &mut b, LinkId(1), later);
        assert_eq!(a.record("b"), b.own.as_ref());
    }
    // What can't be counted further isn't followed.
    let entry = Entry {
        host_id: "b".to_owned(),
        record: None,
        beat: Some(Stamp {
            boot: MAX_BOOT,
            life: 0,
            count: 1,
        }),
        fresh: true,
    };
    let before = b.boot();
    b.handle_message(LinkId(1), Message::Digest(vec![entry]), at(10_000_000));
    assert_eq!(b.boot(), before);
}

#[test]
fn two_starts_with_one_boot_count_are_told_apart() {
    let mut first = Replica::new("b", 1, 9, at(0));
    first.publish(body(2));
    let mut a = replica("a", 1);
    connect(&mut a, &mut first, LinkId(1), at(10));
    let mut second = Replica::new("b", 1, 8, at(20));
    second.publish(body(4));
    connect(&mut a, &mut second, LinkId(2), at(30));
    assert_eq!(second.boot(), 2);
    assert_eq!(a.record("b"), second.own.as_ref());
}

#[test]
fn two_hosts_of_one_name_chase_each_other_slowly() {
    let mut a = replica("a", 1);
    a.handle_connected(LinkId(1), at(0));
    for tick in 0..100 {
        a.handle_message(LinkId(1), digest("a", 1_000 + tick, 1, Some(1), 1), at(10 * tick));
    }
    assert_eq!(a.boot(), 1_001);
    a.handle_message(LinkId(1), digest("a", 2_000, 1, Some(1), 1), at(1_001));
    assert_eq!(a.boot(), 2_001);
}

#[test]
fn a_record_that_is_too_large_is_refused_and_the_former_one_stays() {
    let mut a = replica("a", 1);
    let former = a.own.clone();
    let mut large = body(1);
    let vni = Vni::try_from(4096).unwrap();
    let network = NetworkRecord {
        tenant: "t".repeat(60),
        name: "n".repeat(60),
        kind: NetworkKind::Shared,
        vni,
        ipv4_prefix: None,
    };
    large.networks = vec![network; 2_000];
    a.publish(large);
    assert_eq!(a.own, former);
    assert!(matches!(
        events(&mut a).as_slice(),
        [ReplicaEvent::TooLarge { .. }]
    ));
}

#[test]
fn records_travel_in_batches_of_bounded_size() {
    let mut a = replica("a", 1);
    a.handle_connected(LinkId(1), at(0));
    let mut wide = body(2);
    wide.addresses = vec!["2001:db8::ffff:ffff".parse().unwrap(); 1_000];
    let hosts: Vec<String> = (2..=12).map(|number| format!("h{number}")).collect();
    for host_id in &hosts {
        let record = HostRecord {
            host_id: host_id.clone(),
            boot: 1,
            life: 1,
            version: 1,
            body: wide.clone(),
        };
        a.handle_message(LinkId(1), Message::Records(vec![record]), at(1));
    }
    drop(sent(&mut a));
    a.handle_message(LinkId(1), Message::Want(hosts), at(2));
    let messages = sent(&mut a);
    let mut records = 0;
    for transmit in &messages {
        let Message::Records(batch) = &transmit.message else {
            panic!("only records are asked for")
        };
        records += batch.len();
        assert!(transmit.message.encode().unwrap().len() <= MAX_BATCH);
    }
    assert_eq!(records, 11);
    assert!(messages.len() < 11, "several travel together");
}

#[test]
fn the_site_is_bounded_and_the_longest_silent_host_makes_room() {
    let mut a = replica("a", 1);
    for number in 0..253_u64 {
        a.handle_message(
            LinkId(1),
            digest(&format!("h{number}"), 1, 1, None, 1),
            at(number),
        );
    }
    drop(events(&mut a));
    a.handle_message(LinkId(1), digest("new", 1, 1, None, 1), at(260));
    let full = ReplicaEvent::SiteFull {
        host_id: "new".to_owned(),
    };
    assert_eq!(events(&mut a), [full]);
    a.handle_timeout(at(1_500));
    a.handle_timeout(at(3_005));
    a.handle_message(LinkId(1), digest("new", 1, 1, None, 1), at(3_006));
    assert_eq!(a.others.len(), 253);
    assert!(a.others.contains_key("new"));
    assert!(!a.others.contains_key("h0"), "it was silent for longest");
}

#[test]
fn one_ordinal_for_two_and_another_address_plan_are_told_once() {
    let (mut a, mut b) = (replica("a", 1), replica("b", 1));
    connect(&mut a, &mut b, LinkId(1), at(10));
    let told: Vec<_> = events(&mut a)
        .into_iter()
        .filter(|event| matches!(event, ReplicaEvent::Conflict { .. }))
        .collect();
    let conflict = Conflict::SameOrdinal {
        ordinal: HostOrdinal::MIN,
        other: "a".to_owned(),
    };
    assert_eq!(
        told,
        [ReplicaEvent::Conflict {
            host_id: "b".to_owned(),
            conflict
        }]
    );
    let mut moved = body(2);
    moved.network.shared_prefix = "100.64.0.0/11".parse().unwrap();
    b.publish(moved);
    exchange(&mut a, &mut b, LinkId(1), at(20));
    assert_eq!(a.conflicts().get("b"), Some(&Conflict::NetworkDiffers));
    b.publish(body(2));
    exchange(&mut a, &mut b, LinkId(1), at(30));
    assert!(a.conflicts().is_empty());
}

#[test]
fn illegal_messages_are_refused_and_what_later_versions_say_is_kept() {
    let mut replica = replica("a", 1);
    replica.handle_connected(LinkId(1), at(0));
    let text = String::from_utf8(
        Message::Records(vec![replica.own.clone().unwrap()])
            .encode()
            .unwrap(),
    )
    .unwrap();
    let later = text.replace("\"networks\":[]", "\"networks\":[],\"claims\":[{\"x\":1}]");
    let decoded = Message::decode(later.as_bytes()).unwrap();
    let again = String::from_utf8(decoded.encode().unwrap()).unwrap();
    assert!(again.contains("\"claims\":[{\"x\":1}]"), "{again}");
    let broken = [
        ("\"host-id\":\"a\"", "\"host-id\":\"A b\""),
        ("\"ordinal\":1", "\"ordinal\":255"),
        ("\"boot\":1", "\"boot\":18446744073709551615"),
        ("\"version\":1", "\"version\":-1"),
        ("172.19.0.0/16", "172.19.0.0/33"),
    ];
    for (legal, illegal) in broken {
        let text = text.replace(legal, illegal);
        assert!(Message::decode(text.as_bytes()).is_err(), "{text}");
    }
    let mut crowded = body(1);
    let generation = LaneGeneration {
        number: 1,
        lanes: Vec::new(),
    };
    crowded.generations = vec![generation; 3];
    replica.publish(crowded);
    let message = Message::Records(vec![replica.own.clone().unwrap()]);
    assert!(Message::decode(&message.encode().unwrap()).is_err());
}
