//! Leaves: a value that stands at one key, checked and turned into its domain type.

use super::application::NetworkName;
use super::decode::Value;
use super::spelling::nearest;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tidegate_stack::plan::{HostOrdinal, PortRange, PublicKey, Vni};

/// Longest DNS label (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// An instance is named `<service>-<n>`, and that must be a label too: room for the hyphen and five digits.
const MAX_SERVICE: usize = MAX_LABEL - 6;
/// Longest domain, as it is written (RFC 1035 §2.3.4: 255 bytes with its lengths and the root).
const MAX_DOMAIN: usize = 253;
/// Where name servers listen (RFC 1035 §4.2).
pub(crate) const DNS_PORT: u16 = 53;
/// Longest name of a network device (`IFNAMSIZ` less the final zero).
const MAX_DEVICE: usize = 15;

/// A domain: its own name, and every name below it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DomainName {
    /// As it is written, in lower case, without a dot at its end.
    pub(crate) text: String,
    /// As it stands in messages.
    pub(crate) wire: Box<[u8]>,
}

/// A feature's switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Switch {
    /// On where the machine has it.
    #[default]
    Auto,
    /// On; an error where the machine hasn't got it.
    On,
    /// Off.
    Off,
}

/// What makes `name` no DNS label, in words.
pub(crate) fn label_fault(name: &str) -> Option<String> {
    let legal = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
    if name.is_empty() {
        Some("must not be empty".to_owned())
    } else if name.len() > MAX_LABEL {
        Some(format!("is longer than {MAX_LABEL} characters"))
    } else if let Some(letter) = name.chars().find(|letter| !legal(*letter)) {
        Some(format!(
            "has {letter:?} in it, and may have only small letters, digits and hyphens"
        ))
    } else if name.starts_with('-') || name.ends_with('-') {
        Some("must not begin or end with a hyphen".to_owned())
    } else {
        None
    }
}

/// A name: one DNS label, of small letters.
pub(super) fn label(value: &Value<'_>) -> Option<String> {
    let name = value.text()?;
    let Some(fault) = label_fault(name) else {
        return Some(name.to_owned());
    };
    let repaired = name.to_ascii_lowercase().replace(['_', '.', ' '], "-");
    match label_fault(&repaired) {
        None => value.refuse_with(fault, format!("`{repaired}` would do")),
        Some(_) => value.refuse(fault),
    }
}

/// A service's name: a label from which `<service>-<n>` can be made, and told apart again.
pub(super) fn service_name(value: &Value<'_>) -> Option<String> {
    let name = label(value)?;
    if name.len() > MAX_SERVICE {
        return value.refuse(format!(
            "is longer than {MAX_SERVICE} characters, and instances are named {name}-1, …"
        ));
    }
    match name.rsplit_once('-') {
        Some((stem, digits)) if digits.chars().all(|letter| letter.is_ascii_digit()) => value.refuse_with(
            "must not end in a hyphen and digits, as the names of instances do",
            format!("`{stem}{digits}` would do"),
        ),
        Some(_) | None => Some(name),
    }
}

/// The name of a network device.
pub(super) fn device(value: &Value<'_>) -> Option<String> {
    let name = value.text()?;
    let legal = |letter: char| letter.is_ascii_graphic() && letter != '/' && letter != ':';
    if name.len() > MAX_DEVICE {
        value.refuse(format!(
            "is longer than the {MAX_DEVICE} characters that a network device's name may have"
        ))
    } else if !name.chars().all(legal) || name == "." || name == ".." {
        value.refuse("isn't the name of a network device")
    } else {
        Some(name.to_owned())
    }
}

/// Free text of one line.
pub(super) fn line(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.chars().any(char::is_control) {
        return value.refuse("must be one line without control characters");
    }
    Some(text.to_owned())
}

/// A path; a relative one starts from the document's folder.
pub(super) fn path(value: &Value<'_>) -> Option<PathBuf> {
    let text = value.text()?;
    if text.contains('\0') {
        return value.refuse("isn't a path: it has a zero byte in it");
    }
    Some(value.report().folder().join(text))
}

/// A host's ordinal.
pub(super) fn ordinal(value: &Value<'_>) -> Option<HostOrdinal> {
    let number = value.number(HostOrdinal::MIN.into()..=HostOrdinal::MAX.into())?;
    HostOrdinal::try_from(number).ok()
}

/// A network's number.
pub(super) fn vni(value: &Value<'_>) -> Option<Vni> {
    let number = value.number(Vni::MIN.into()..=Vni::MAX.into())?;
    Vni::try_from(number).ok()
}

/// A whole number of 16 bits inside a range.
pub(super) fn number16(range: std::ops::RangeInclusive<u16>) -> impl Fn(&Value<'_>) -> Option<u16> {
    move |value| {
        let number = value.number(u64::from(*range.start())..=u64::from(*range.end()))?;
        u16::try_from(number).ok()
    }
}

/// A feature's switch.
pub(super) fn switch(value: &Value<'_>) -> Option<Switch> {
    const LEGAL: [&str; 3] = ["auto", "on", "off"];
    match value.word()? {
        "auto" => Some(Switch::Auto),
        "on" => Some(Switch::On),
        "off" => Some(Switch::Off),
        "true" => value.refuse_with("must be auto, on or off", "write `on`"),
        "false" => value.refuse_with("must be auto, on or off", "write `off`"),
        other => match nearest(other, &LEGAL) {
            Some(near) => value.refuse_with("must be auto, on or off", format!("did you mean `{near}`?")),
            None => value.refuse("must be auto, on or off"),
        },
    }
}

/// One of some words, and what it stands for.
pub(super) fn chosen<T: Copy>(value: &Value<'_>, words: &[(&str, T)]) -> Option<T> {
    let word = value.word()?;
    if let Some((_, meaning)) = words.iter().find(|(legal, _)| *legal == word) {
        return Some(*meaning);
    }
    let legal: Vec<_> = words.iter().map(|(legal, _)| *legal).collect();
    let message = format!("is `{word}`, and must be one of {}", legal.join(", "));
    match nearest(word, &legal) {
        Some(near) => value.refuse_with(message, format!("did you mean `{near}`?")),
        None => value.refuse(message),
    }
}

/// A network that applications share: a name in the document's own tenant, or `tenant/name`.
pub(super) fn network_name(value: &Value<'_>, own_tenant: &str) -> Option<NetworkName> {
    let Some((tenant, name)) = value.text()?.split_once('/') else {
        return Some(NetworkName {
            tenant: own_tenant.to_owned(),
            name: label(value)?,
        });
    };
    for (part, what) in [(tenant, "tenant"), (name, "name")] {
        if let Some(fault) = label_fault(part) {
            return value.refuse_with(
                format!("the {what} `{part}` in it {fault}"),
                "write `name` for a network of this document's tenant, or `tenant/name`",
            );
        }
    }
    Some(NetworkName {
        tenant: tenant.to_owned(),
        name: name.to_owned(),
    })
}

/// Ports and ranges of ports, separated by commas; or one number.
pub(super) fn port_ranges(value: &Value<'_>) -> Option<Vec<PortRange>> {
    let parts: Vec<_> = value.word()?.split(',').map(str::trim).collect();
    let ranges: Vec<_> = parts.iter().filter_map(|part| port_range(value, part)).collect();
    (ranges.len() == parts.len()).then_some(ranges)
}

fn port_range(value: &Value<'_>, text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (Some(first), Some(last)) = (port(first.trim()), port(last.trim())) else {
        return value.refuse_with(
            format!("`{text}` is neither a port nor a range of ports"),
            "such as \"80,443,8000-8100\"",
        );
    };
    let ports = [first, last].map(|port| u16::try_from(port).ok().filter(|port| *port > 0));
    match ports {
        [Some(first), Some(last)] if first <= last => Some(PortRange { first, last }),
        [Some(first), Some(last)] => value.refuse_with(
            format!("`{text}` ends before it begins"),
            format!("did you mean {last}-{first}?"),
        ),
        _ => value.refuse(format!(
            "`{text}` is outside the ports that there are, which are 1 to 65535"
        )),
    }
}

/// How many in a second: `200/s`.
pub(super) fn rate(value: &Value<'_>, max: u64) -> Option<u32> {
    let word = value.word()?;
    let number = word.strip_suffix("/s").unwrap_or(word).trim();
    match number.parse::<u64>() {
        Ok(rate) if word.ends_with("/s") && (1..=max).contains(&rate) => u32::try_from(rate).ok(),
        Ok(_) if word.ends_with("/s") => value.refuse(format!("is {word}, and must be 1/s to {max}/s")),
        Ok(rate) => value.refuse_with(
            "has no unit, and must be a number in a second",
            format!("write `{rate}/s`"),
        ),
        Err(_) => value.refuse_with(
            format!("is `{word}`, and must be a number in a second"),
            "such as `200/s`",
        ),
    }
}

/// The units of durations, and the milliseconds in each.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// How long: `200ms`, `5s`, `1m` or `1h`.
pub(super) fn duration(value: &Value<'_>, range: RangeInclusive<Duration>) -> Option<Duration> {
    let word = value.word()?;
    let digits = word.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = word.strip_prefix(digits).unwrap_or_default();
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, factor)| factor);
    match (digits.trim_end().parse::<u64>(), factor) {
        (Ok(number), Some(factor)) => {
            let duration = Duration::from_millis(number.saturating_mul(*factor));
            if range.contains(&duration) {
                return Some(duration);
            }
            let (shortest, longest) = (shown(*range.start()), shown(*range.end()));
            value.refuse(format!("is {word}, and must be {shortest} to {longest}"))
        }
        (Ok(number), None) if unit.is_empty() => value.refuse_with(
            "has no unit, and must be a time",
            format!("write `{number}s`, or with ms, m or h"),
        ),
        _ => value.refuse_with(
            format!("is `{word}`, and must be a time: a whole number and ms, s, m or h"),
            "such as `5s`",
        ),
    }
}

/// A duration in its largest unit.
fn shown(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut units = UNITS.iter().rev();
    let whole = units.find(|(_, factor)| milliseconds.is_multiple_of(*factor));
    whole.map_or_else(String::new, |(unit, factor)| {
        format!("{}{unit}", milliseconds / factor)
    })
}

/// An IP address.
pub(super) fn address(value: &Value<'_>) -> Option<IpAddr> {
    let text = value.text()?;
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) if text.contains('/') => value.refuse_with(
            format!("`{text}` isn't an address"),
            "write it without the prefix length, which the segment gives",
        ),
        Err(_) => value.refuse(format!("`{text}` isn't an IPv4 or IPv6 address")),
    }
}

/// An address that one station can have.
pub(super) fn station_address(value: &Value<'_>) -> Option<IpAddr> {
    let address = address(value)?;
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return value.refuse(format!("`{address}` isn't an address that a host can have"));
    }
    Some(address)
}

/// An address and a port.
pub(super) fn endpoint(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.text()?;
    let Ok(endpoint) = text.parse::<SocketAddr>() else {
        return match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => value.refuse_with(
                format!("`{text}` has no port"),
                format!("write \"{}\"", SocketAddr::new(address, 51820)),
            ),
            Err(_) => value.refuse_with(
                format!("`{text}` isn't an address and a port"),
                "write \"192.0.2.60:51820\" or \"[2001:db8::60]:51820\"; names aren't looked up here",
            ),
        };
    };
    let address = endpoint.ip();
    if endpoint.port() == 0 {
        value.refuse("has port 0, and a port is 1 to 65535")
    } else if address.is_unspecified() || address.is_multicast() {
        value.refuse(format!("`{address}` isn't an address that a peer can have"))
    } else {
        Some(endpoint)
    }
}

/// A name server: an address, or an address and a port.
pub(super) fn name_server(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.text()?;
    let alone = text.parse().map(|address| SocketAddr::new(address, DNS_PORT));
    let Ok(server) = alone.or_else(|_| text.parse::<SocketAddr>()) else {
        return value.refuse_with(
            format!("`{text}` isn't the address of a name server"),
            "write 192.0.2.1, \"192.0.2.1:5353\", \"2001:db8::1\" or \"[2001:db8::1]:5353\"; names aren't looked up here",
        );
    };
    let address = server.ip();
    if server.port() == 0 {
        value.refuse("has port 0, and a port is 1 to 65535")
    } else if address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST {
        value.refuse(format!(
            "`{address}` isn't an address that a name server can have"
        ))
    } else if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        value.refuse_with(
            format!("`{address}` is an address of one link, and which link isn't said"),
            "write another address of the server, or name it in `resolv-conf` as `fe80::1%eth0`",
        )
    } else {
        Some(server)
    }
}

/// A domain, which stands for what is below it, too.
pub(super) fn domain(value: &Value<'_>) -> Option<DomainName> {
    let written = value.text()?;
    let text = written.strip_suffix('.').unwrap_or(written).to_ascii_lowercase();
    if let Some(below) = text.strip_prefix("*.") {
        return value.refuse_with(
            format!("`{written}` has a star in it"),
            format!("write `{below}`: what is below it is meant, too"),
        );
    }
    if text.len() > MAX_DOMAIN {
        return value.refuse(format!("is longer than the {MAX_DOMAIN} characters of a domain"));
    }
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        // Outside, names have underscores, too.
        if let Some(fault) = label_fault(&label.replace('_', "x")) {
            return value.refuse_with(
                format!("the label `{label}` in it {fault}"),
                "such as `corp.example`",
            );
        }
        // A label without fault is short enough.
        wire.push(u8::try_from(label.len()).unwrap_or(0));
        wire.extend(label.bytes());
    }
    wire.push(0);
    Some(DomainName {
        text,
        wire: wire.into_boxed_slice(),
    })
}

/// A WireGuard public key. The message never repeats what stands there: it may be a private key in the wrong place.
pub(super) fn public_key(value: &Value<'_>) -> Option<PublicKey> {
    match value.text()?.parse() {
        Ok(key) => Some(key),
        Err(_) => value.refuse_with(
            "isn't a WireGuard key, which is 32 bytes in base64: 44 characters that end in `=`",
            "on the other host `tidegate status` or `wg show` prints it",
        ),
    }
}

/// An IPv4 prefix.
pub(super) fn ipv4_prefix(value: &Value<'_>) -> Option<Ipv4Net> {
    match prefix(value, "192.0.2.0/24")? {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(prefix) => value.refuse(format!("{prefix} is an IPv6 prefix, and must be an IPv4 one")),
    }
}

/// An IPv6 prefix.
pub(super) fn ipv6_prefix(value: &Value<'_>) -> Option<Ipv6Net> {
    match prefix(value, "2001:db8:1::/64")? {
        IpNet::V6(prefix) => Some(prefix),
        IpNet::V4(prefix) => value.refuse(format!("{prefix} is an IPv4 prefix, and must be an IPv6 one")),
    }
}

/// A prefix; an address stands for itself alone.
pub(super) fn prefix_or_address(value: &Value<'_>) -> Option<IpNet> {
    let text = value.text()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    if text.parse::<IpNet>().is_err() && label_fault(text).is_none() {
        return value.refuse_with(
            format!("`{text}` isn't a prefix"),
            format!("did you mean `{{ service: {text} }}`?"),
        );
    }
    prefix(value, "192.0.2.0/24")
}

/// A prefix, which must name the network itself: no bits behind its length.
fn prefix(value: &Value<'_>, example: &str) -> Option<IpNet> {
    let text = value.text()?;
    let Ok(prefix) = text.parse::<IpNet>() else {
        let fault = if text.parse::<IpAddr>().is_ok() {
            "has no prefix length"
        } else {
            "isn't a prefix"
        };
        return value.refuse_with(format!("`{text}` {fault}"), format!("such as {example}"));
    };
    if prefix.addr() != prefix.network() {
        return value.refuse_with(
            format!("{prefix} has bits behind its prefix length"),
            format!("did you mean {}?", prefix.trunc()),
        );
    }
    Some(prefix)
}
