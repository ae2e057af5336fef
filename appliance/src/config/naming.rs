//! What a service's document says about how it is asked for by name: its ports, the order of its addresses, its texts.
//!
//! All of it is decoded into the plan's own types, and is such that it fits into DNS.

use super::decode::{Keys, Unique, Value};
use super::values::{chosen, label, label_fault, number16};
use tidegate_stack::plan::{AnswerOrder, NamedPort, PortProtocol, Text};

/// Longest name of a port: with the underscore before it, it is a label of an SRV record's name (RFC 2782).
const MAX_PORT_NAME: usize = 62;
/// Most ports, and most texts, of one service: an answer of all of them fits into one message.
const MAX_NAMED: usize = 64;
/// Longest text: one character string (RFC 1035 §3.3.14), so that nobody has to put it together.
const MAX_TEXT: usize = 255;

/// What a service's document says about how it is asked for by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Naming {
    /// Its ports that have a name.
    pub(crate) ports: Vec<NamedPort>,
    /// In which order its addresses are told.
    pub(crate) order: AnswerOrder,
    /// Its texts.
    pub(crate) texts: Vec<Text>,
}

/// A service's `ports` and `dns`.
pub(super) fn naming(keys: &mut Keys<'_, '_>) -> Option<Naming> {
    let ports = match keys.value("ports") {
        Some(value) => ports(&value),
        None => Some(Vec::new()),
    };
    let (order, texts) = match keys.value("dns") {
        Some(value) => dns(&value)?,
        None => Default::default(),
    };
    let ports = ports?;
    Some(Naming { ports, order, texts })
}

fn ports(value: &Value<'_>) -> Option<Vec<NamedPort>> {
    let items = value.items()?;
    check_count(value, items.len(), "ports")?;
    let mut names = Unique::default();
    let ports: Vec<_> = items.iter().filter_map(|item| port(item, &mut names)).collect();
    (ports.len() == items.len()).then_some(ports)
}

/// One name may stand for a port of each protocol: they are two names in DNS.
fn port(value: &Value<'_>, names: &mut Unique<(String, PortProtocol)>) -> Option<NamedPort> {
    value.group(|keys| {
        let protocol = match keys.value("protocol") {
            Some(value) => chosen(&value, &[("tcp", PortProtocol::Tcp), ("udp", PortProtocol::Udp)]),
            None => Some(PortProtocol::Tcp),
        };
        let name = keys.required("name", |value| {
            let name = port_name(value)?;
            match protocol {
                Some(protocol) => Some(names.claim(value, (name, protocol))?.0),
                None => Some(name),
            }
        });
        let port = keys.required("port", number16(1..=u16::MAX));
        Some(NamedPort {
            name: name?,
            protocol: protocol?,
            port: port?,
        })
    })
}

fn port_name(value: &Value<'_>) -> Option<String> {
    if let Some(name) = value.text()?.strip_prefix('_')
        && label_fault(name).is_none()
    {
        return value.refuse_with(
            "must not begin with the underscore, which stands before it in DNS anyway",
            format!("write `{name}`"),
        );
    }
    let name = label(value)?;
    if name.len() > MAX_PORT_NAME {
        return value.refuse(format!("is longer than {MAX_PORT_NAME} characters"));
    }
    Some(name)
}

fn dns(value: &Value<'_>) -> Option<(AnswerOrder, Vec<Text>)> {
    value.group(|keys| {
        let order = match keys.value("order") {
            Some(value) => {
                let orders = [("rotate", AnswerOrder::Rotate), ("fixed", AnswerOrder::Fixed)];
                chosen(&value, &orders)
            }
            None => Some(AnswerOrder::default()),
        };
        let texts = match keys.value("txt") {
            Some(value) => texts(&value),
            None => Some(Vec::new()),
        };
        Some((order?, texts?))
    })
}

fn texts(value: &Value<'_>) -> Option<Vec<Text>> {
    let mut entries = value.named()?;
    entries.sort_by_key(|(entry, _)| (entry.place.line, entry.place.column));
    check_count(value, entries.len(), "texts")?;
    let mut keys = Unique::default();
    let texts: Vec<_> = entries
        .iter()
        .filter_map(|(entry, value)| {
            // RFC 6763 §6.4: capitals make no other key.
            keys.claim(value, entry.key.to_ascii_lowercase())?;
            text(&entry.key, value)
        })
        .collect();
    (texts.len() == entries.len()).then_some(texts)
}

/// `key=value` at the service's name (RFC 6763 §6.3); under a key with an underscore before it the value alone, at that
/// label below the name, as `_acme-challenge` is looked for (RFC 8555 §8.4).
fn text(key: &str, value: &Value<'_>) -> Option<Text> {
    let said = value.word()?;
    if said.chars().any(char::is_control) {
        return value.refuse("must be one line without control characters");
    }
    let (label, text) = match key.strip_prefix('_') {
        Some(name) => {
            if let Some(fault) = label_fault(name) {
                return value.refuse(format!(
                    "the key stands for a label of a name, and `{name}` in it {fault}"
                ));
            }
            if name.len() > MAX_PORT_NAME {
                return value.refuse(format!("the key is longer than {} characters", MAX_PORT_NAME + 1));
            }
            (Some(key.to_owned()), said.to_owned())
        }
        None => {
            let legal = |letter: char| (' '..='~').contains(&letter) && letter != '=';
            if key.is_empty() || !key.chars().all(legal) {
                return value.refuse("the key must be of printable ASCII, and without an equals sign");
            }
            (None, format!("{key}={said}"))
        }
    };
    if text.len() > MAX_TEXT {
        return value.refuse(format!(
            "is {} bytes with its key, and a text has at most {MAX_TEXT}",
            text.len()
        ));
    }
    Some(Text { label, text })
}

fn check_count(value: &Value<'_>, count: usize, what: &str) -> Option<()> {
    if count > MAX_NAMED {
        return value.refuse(format!("has {count} {what}, and a service may have {MAX_NAMED}"));
    }
    Some(())
}
