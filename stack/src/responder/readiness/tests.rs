//! How many are asked at a time, and from which ports.

use super::*;
use crate::plan::{ProbeFailures, ProbeInterval, Readiness, ReadinessQuestion};
use crate::responder::dns::tests::site;
use std::collections::BTreeSet;
use std::num::NonZeroU16;

fn checks(count: u32) -> Checks {
    let mut plan = site::plan();
    let mut first = plan.instances[0].clone();
    first.readiness = Some(Readiness {
        question: ReadinessQuestion::Tcp {
            port: NonZeroU16::MIN,
        },
        interval: ProbeInterval::USUAL,
        failures: ProbeFailures::MIN,
    });
    let instance = |port| crate::plan::Instance {
        port: PortId(port),
        ..first.clone()
    };
    plan.instances = (0..count).map(instance).collect();
    Checks::compile(&plan)
}

#[test]
fn more_questions_than_there_may_be_wait_for_their_turn() {
    let mut prober = Prober::new(0, 1, 7);
    let count = MOST as u32 + 40;
    let mut now = Instant::from_nanos(1_000_000_000);
    prober.install(&checks(count), now, &mut |_, _| {});
    let open = |prober: &Prober| {
        prober
            .probes
            .iter()
            .filter(|probe| probe.question.is_some())
            .count()
    };
    let mut asked = BTreeSet::new();
    let end = now + Duration::from_secs(20);
    while now < end {
        now = prober.poll_timeout().unwrap();
        prober.handle_timeout(now, &mut |port, _| {
            asked.insert(port);
        });
        assert!(open(&prober) <= MOST);
    }
    assert_eq!(asked.len(), count as usize, "none is left out for good");
    assert!(prober.reports().any(|report| report.postponed > 0));
    assert!(prober.reports().all(|report| report.ready == Some(false)));
}

#[test]
fn a_shard_asks_the_ports_whose_home_it_is() {
    let now = Instant::ZERO;
    for shard in 0..3 {
        let mut prober = Prober::new(shard, 3, 7);
        prober.install(&checks(10), now, &mut |_, _| {});
        let ports: Vec<_> = prober.reports().map(|report| report.port.0).collect();
        let expected: Vec<_> = (0..10).filter(|port| port % 3 == u32::from(shard)).collect();
        assert_eq!(ports, expected);
    }
}

#[test]
fn no_port_comes_back_before_all_others_were_used() {
    let secret = Secret(7);
    let ports: BTreeSet<_> = (0..1 << 14)
        .map(|number| local_port(secret, PortId(3), number))
        .collect();
    assert_eq!(ports.len(), 1 << 14);
    assert_eq!((ports.first(), ports.last()), (Some(&49_152), Some(&65_535)));
    let other = local_port(Secret(8), PortId(3), 0);
    assert!(
        (0..8)
            .any(|number| local_port(Secret(8), PortId(3), number) != local_port(secret, PortId(3), number))
    );
    assert!(other >= FIRST_PORT);
}
