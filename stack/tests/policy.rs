//! Who may talk to whom: sentences about the rules, and the filter beside a second one that nobody has to trust.

#![expect(clippy::unwrap_used, reason = "a test ends at what it didn't expect")]

#[path = "policy/edges.rs"]
mod edges;
#[path = "policy/plans.rs"]
mod plans;
#[path = "policy/reference.rs"]
mod reference;
#[path = "policy/routes.rs"]
mod routes;
#[path = "policy/sentences.rs"]
mod sentences;

use plans::{Drawn, Tuple, a_plan, tuple};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use routes::service_at;
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_stack::flow::Verdict;
use tidegate_stack::plan::{Action, Plan};
use tidegate_stack::snapshot::{Basis, Policy, Snapshot, Step};

fn compiled(plan: &Plan) -> Arc<Policy> {
    Arc::clone(Snapshot::compile(plan, None).policy())
}

/// Flows tried in each random plan.
const TUPLES: usize = 50;

fn some_seeds() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(any::<u64>(), TUPLES)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn judge_says_what_a_naive_filter_says(Drawn(plan) in a_plan(), seeds in some_seeds()) {
        let policy = compiled(&plan);
        for seed in seeds {
            let Tuple { vni, endpoints, arrival } = tuple(&plan, seed);
            prop_assert_eq!(
                policy.judge(vni, &endpoints, arrival),
                reference::judge(&plan, vni, &endpoints, arrival).unwrap_or_else(|verdict| verdict),
                "{:?} in {} from {:?}", endpoints, vni, arrival
            );
        }
    }

    #[test]
    fn an_explanation_has_the_verdict_of_judge_and_cites_the_rule_that_matches(
        Drawn(plan) in a_plan(),
        seeds in some_seeds(),
    ) {
        let policy = compiled(&plan);
        for seed in seeds {
            let Tuple { vni, endpoints, arrival } = tuple(&plan, seed);
            let explanation = policy.explain(vni, &endpoints, arrival);
            prop_assert_eq!(explanation.verdict, policy.judge(vni, &endpoints, arrival));
            for step in &explanation.steps {
                let (service, basis, is_inbound) = match step {
                    Step::Inbound { service, basis } => (service, basis, true),
                    Step::Outbound { service, basis } => (service, basis, false),
                    _ => continue,
                };
                let Basis::Rule { list, line, action, .. } = basis else { continue };
                let described = plan.services.iter().find(|described| Some(&described.id) == service.as_ref());
                let described = described.unwrap();
                let access = if is_inbound { &described.inbound } else { &described.outbound };
                let access = access.as_ref().unwrap();
                let address = if is_inbound { endpoints.source } else { endpoints.destination };
                let party = service_at(&plan, vni, address);
                let mut rules = access.rules.iter();
                let first = rules.find(|rule| reference::matches(rule, vni, &party, address, &endpoints));
                let first = first.unwrap();
                prop_assert_eq!((&list.document, list.line), (&described.document, access.line));
                prop_assert_eq!((*line, *action), (first.line, first.action));
                let is_last = Some(step) == explanation.steps.last();
                let denies = matches!(explanation.verdict, Verdict::Deny(_) | Verdict::Reject(_));
                prop_assert_eq!(*action == Action::Deny, is_last && denies);
            }
        }
    }
}

#[test]
fn random_flows_reach_every_ground_often_enough_to_be_worth_trying() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..300 {
        let Drawn(plan) = a_plan().new_tree(&mut runner).unwrap().current();
        let policy = compiled(&plan);
        for index in 0..50 {
            let Tuple {
                vni,
                endpoints,
                arrival,
            } = tuple(&plan, (seed << 32) | index);
            let explanation = policy.explain(vni, &endpoints, arrival);
            let verdict = match explanation.verdict {
                Verdict::Forward { .. } => "forward".to_owned(),
                Verdict::Answer(_) => "answer".to_owned(),
                Verdict::Deny(reason) => format!("drop {}", reason.label()),
                Verdict::Reject(reason) => format!("reject {}", reason.label()),
            };
            let grounds = explanation.steps.iter().filter_map(|step| match step {
                Step::Outbound { basis, .. } => Some(format!("outbound {}", ground(basis))),
                Step::Inbound { basis, .. } => Some(format!("inbound {}", ground(basis))),
                _ => None,
            });
            for name in grounds.chain([verdict]) {
                *seen.entry(name).or_default() += 1;
            }
        }
    }
    assert!(
        seen.len() >= 24 && seen.values().all(|count| *count >= 10),
        "{seen:#?}"
    );
}

fn ground(basis: &Basis) -> &'static str {
    match basis {
        Basis::Elsewhere => "elsewhere",
        Basis::Unknown => "unknown",
        Basis::NoList => "no list",
        Basis::OwnNetwork { .. } => "own network",
        Basis::NoRule { .. } => "no rule",
        Basis::Rule { action, .. } => match action {
            Action::Allow => "rule allows",
            Action::Deny => "rule denies",
        },
    }
}
