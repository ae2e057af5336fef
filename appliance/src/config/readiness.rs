//! What a service's document says about how its instances are asked whether they are ready.

use super::decode::{Keys, Value};
use super::values::{duration, number16};
use std::num::NonZeroU16;
use std::time::Duration;
use tidegate_stack::plan::{HttpPath, ProbeFailures, ProbeInterval, Readiness, ReadinessQuestion};

const SHORTEST: Duration = Duration::from_millis(ProbeInterval::MIN.get() as u64);
const LONGEST: Duration = Duration::from_millis(ProbeInterval::MAX.get() as u64);

/// A service's `readiness`.
pub(super) fn readiness(value: &Value<'_>) -> Option<Readiness> {
    value.group(|keys| {
        let question = question(value, keys);
        let interval = match keys.value("interval") {
            Some(value) => interval(&value),
            None => Some(ProbeInterval::USUAL),
        };
        let failures = match keys.value("failures") {
            Some(value) => failures(&value),
            None => Some(ProbeFailures::USUAL),
        };
        Some(Readiness {
            question: question?,
            interval: interval?,
            failures: failures?,
        })
    })
}

/// One way of asking, and not two.
fn question(group: &Value<'_>, keys: &mut Keys<'_, '_>) -> Option<ReadinessQuestion> {
    let tcp = keys.value("tcp");
    let http = keys.value("http");
    let of_tcp = tcp.as_ref().map(|value| {
        let port = port(value)?;
        Some(ReadinessQuestion::Tcp { port })
    });
    let of_http = http.as_ref().map(http_question);
    match (of_tcp, of_http) {
        (Some(question), None) | (None, Some(question)) => question,
        (Some(_), Some(_)) => http?.refuse_with(
            "stands beside `tcp`, and a service is asked in one way",
            "remove one of them: `http` asks for a connection, too",
        ),
        (None, None) => group.refuse_with(
            "must say what is asked",
            "such as `tcp: 8080` or `http: { port: 80, path: /ready }`",
        ),
    }
}

fn http_question(value: &Value<'_>) -> Option<ReadinessQuestion> {
    value.group(|keys| {
        let port = keys.required("port", port);
        let path = match keys.value("path") {
            Some(value) => path(&value),
            None => HttpPath::try_from("/".to_owned()).ok(),
        };
        Some(ReadinessQuestion::Http {
            port: port?,
            path: path?,
        })
    })
}

fn port(value: &Value<'_>) -> Option<NonZeroU16> {
    NonZeroU16::new(number16(1..=u16::MAX)(value)?)
}

fn path(value: &Value<'_>) -> Option<HttpPath> {
    let text = value.text()?;
    let fault = match HttpPath::try_from(text.to_owned()) {
        Ok(path) => return Some(path),
        Err(fault) => fault.to_string(),
    };
    match HttpPath::try_from(format!("/{text}")) {
        Ok(repaired) => value.refuse_with(fault, format!("did you mean `{}`?", repaired.as_str())),
        Err(_) => value.refuse(fault),
    }
}

fn interval(value: &Value<'_>) -> Option<ProbeInterval> {
    let interval = duration(value, SHORTEST..=LONGEST)?;
    let milliseconds = u64::try_from(interval.as_millis()).ok()?;
    ProbeInterval::try_from(milliseconds).ok()
}

fn failures(value: &Value<'_>) -> Option<ProbeFailures> {
    let count = value.number(ProbeFailures::MIN.into()..=ProbeFailures::MAX.into())?;
    ProbeFailures::try_from(count).ok()
}
