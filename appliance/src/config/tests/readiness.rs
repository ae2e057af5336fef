//! What instances are asked, as documents write it.

use crate::config::application;
use tidegate_fixtures as fixtures;

#[test]
fn what_is_asked_decodes_to_what_it_says_and_what_isnt_said_to_what_is_usual() {
    let documents = application::read(&fixtures::application("shop-asked")).expect("it is legal");
    let told: Vec<_> = documents[0]
        .services
        .iter()
        .map(|service| {
            let readiness = service.readiness.as_ref();
            readiness.map_or_else(
                || format!("{}: nothing", service.name),
                |readiness| {
                    format!(
                        "{}: {} every {} ms, {} failures",
                        service.name, readiness.question, readiness.interval, readiness.failures
                    )
                },
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "web: HTTP port 80, /ready?deep=1 every 200 ms, 2 failures",
            "db: TCP port 5432 every 5000 ms, 3 failures",
            "api: HTTP port 8080, / every 60000 ms, 3 failures",
            "worker: nothing",
        ]
    );
}
