//! The addresses of instances, and texts that have them in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use serde_json::Value;
use tidegate_tests::Lab;

/// What every instance's addresses are, by `application/instance`.
pub(crate) struct Instances(BTreeMap<String, Addresses>);

struct Addresses {
    own: (Ipv4Addr, Ipv6Addr),
    shared: Option<(Ipv4Addr, Ipv6Addr)>,
}

impl Instances {
    /// As the hosts tell them.
    pub(crate) fn of(lab: &Lab) -> Result<Self> {
        let mut all = BTreeMap::new();
        for host in ["h1", "h2"] {
            let list = lab.tidegate(host, &["show", "instances"])?;
            let list = list
                .get("instances")
                .and_then(Value::as_array)
                .context("a list")?;
            for line in list {
                let text = |key: &str| line.get(key).and_then(Value::as_str);
                let name = text("application").zip(text("instance"));
                let (application, instance) = name.with_context(|| format!("without a name: {line}"))?;
                let addresses = line.get("addresses").and_then(Value::as_array);
                let addresses = Addresses::read(addresses.into_iter().flatten())
                    .with_context(|| format!("not an instance's addresses: {line}"))?;
                all.insert(format!("{application}/{instance}"), addresses);
            }
        }
        Ok(Self(all))
    }

    /// An instance's addresses in its application's own network.
    pub(crate) fn own(&self, name: &str) -> Result<(Ipv4Addr, Ipv6Addr)> {
        Ok(self.get(name)?.own)
    }

    /// An instance's addresses in its shared network.
    pub(crate) fn shared(&self, name: &str) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let shared = self.get(name)?.shared;
        shared.with_context(|| format!("{name} is in no shared network"))
    }

    fn get(&self, name: &str) -> Result<&Addresses> {
        self.0.get(name).with_context(|| format!("there is no {name}"))
    }

    /// A text with the addresses that it names: `{4 shop/web-1}`, `{6 …}` in the application's own network,
    /// `{s4 …}`, `{s6 …}` in the shared one; `{r4 …}`, `{r6 …}`, `{rs4 …}`, `{rs6 …}` as names for PTR, `{z6 …}` and
    /// `{zs4 …}` the reverse zones that they are in, `{n6 …}` the service address beside it.
    pub(crate) fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (inside, after) = behind.split_once('}').context("a brace that isn't closed")?;
            let (how, name) = inside.split_once(' ').context("braces without a name")?;
            filled.push_str(before);
            filled.push_str(&self.written(how, name)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn written(&self, how: &str, name: &str) -> Result<String> {
        let (own, shared) = (self.own(name)?, self.shared(name));
        Ok(match how {
            "4" => own.0.to_string(),
            "6" => own.1.to_string(),
            "s4" => shared?.0.to_string(),
            "s6" => shared?.1.to_string(),
            "r4" => reversed(own.0.into()),
            "r6" => reversed(own.1.into()),
            "rs4" => reversed(shared?.0.into()),
            "rs6" => reversed(shared?.1.into()),
            "z6" => last_labels(&reversed(own.1.into()), 18),
            "zs4" => last_labels(&reversed(shared?.0.into()), 5),
            "n6" => {
                let mut segments = own.1.segments();
                segments[4..].copy_from_slice(&[0, 0, 0, 1]);
                Ipv6Addr::from(segments).to_string()
            }
            other => anyhow::bail!("{other} is no way to write an address"),
        })
    }
}

impl Addresses {
    /// Those of the application's own network come first, IPv4 before IPv6.
    fn read<'a>(values: impl Iterator<Item = &'a Value>) -> Option<Self> {
        let mut values = values.filter_map(Value::as_str);
        let mut pair = || -> Option<(Ipv4Addr, Ipv6Addr)> {
            Some((values.next()?.parse().ok()?, values.next()?.parse().ok()?))
        };
        Some(Self {
            own: pair()?,
            shared: pair(),
        })
    }
}

/// An address as a name for PTR (RFC 1035 §3.5, RFC 3596 §2.5).
pub(crate) fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let labels: Vec<String> = address.octets().iter().rev().map(u8::to_string).collect();
            format!("{}.in-addr.arpa", labels.join("."))
        }
        IpAddr::V6(address) => {
            let nibbles = address
                .octets()
                .into_iter()
                .flat_map(|octet| [octet >> 4, octet & 0xf]);
            let labels: Vec<String> = nibbles.rev().map(|nibble| format!("{nibble:x}")).collect();
            format!("{}.ip6.arpa", labels.join("."))
        }
    }
}

fn last_labels(name: &str, count: usize) -> String {
    let labels: Vec<&str> = name.split('.').collect();
    labels
        .get(labels.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join(".")
}
