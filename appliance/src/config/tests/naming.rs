//! Ports and texts, as documents write them.

use crate::config::application;
use crate::config::naming::Naming;
use std::path::Path;
use tidegate_fixtures as fixtures;
use tidegate_stack::plan::{AnswerOrder, PortProtocol};

#[test]
fn names_of_ports_order_and_texts_decode_to_what_they_say() {
    let documents = application::read(&fixtures::application("shop-named")).expect("it is legal");
    let [web, db] = documents[0].services.as_slice() else {
        panic!("two services")
    };
    assert!(documents[0].query_log);
    let ports: Vec<_> = web
        .naming
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol, port.port))
        .collect();
    let expected = [
        ("http", PortProtocol::Tcp, 80),
        ("dns", PortProtocol::Tcp, 53),
        ("dns", PortProtocol::Udp, 53),
    ];
    assert_eq!(ports, expected);
    let texts = web.naming.texts.iter();
    let mut texts: Vec<_> = texts
        .map(|text| (text.label.as_deref(), text.text.as_str()))
        .collect();
    texts.sort();
    let expected = [
        (None, "build=17"),
        (None, "path=/shop"),
        (Some("_acme-challenge"), "DGyRejmCefe7v4NfDGDKfA"),
    ];
    assert_eq!(texts, expected);
    assert_eq!(
        (web.naming.order, db.naming.order),
        (AnswerOrder::Rotate, AnswerOrder::Fixed)
    );
}

#[test]
fn a_document_that_says_nothing_of_names_names_no_port_and_no_text() {
    let documents = application::read(&fixtures::application("shop")).expect("it is legal");
    assert!(
        documents[0]
            .services
            .iter()
            .all(|service| service.naming == Naming::default())
    );
}

#[test]
fn more_than_an_answer_has_room_for_is_refused() {
    let many: Vec<_> = (0..65)
        .map(|number| format!("{{ name: p{number}, port: 1 }}"))
        .collect();
    let text = format!(
        "name: a\nservices: [ {{ name: x, ports: [ {} ] }} ]\n",
        many.join(", ")
    );
    let problems = application::parse(Path::new("a.yaml"), &text).expect_err("65 are too many");
    assert_eq!(
        problems.to_string(),
        "a.yaml:2:31: services[0].ports: has 65 ports, and a service may have 64"
    );
}
