//! Who answers what a container asks by name: tidegate at its service address, and what others would run instead.
//!
//! Everybody has the same [`zone`] and is asked by dnsperf from a container's own namespace. tidegate is asked through
//! the instance's TUN, as in daily life; the others stand at the far end of one veth pair, which is the cheapest way
//! that there is between a container and a program of its host. Each serves with one thread: one shard, dnsmasq's only
//! one, unbound's default.

mod ours;
mod resolver;

use std::fmt::Write as _;
use std::net::Ipv4Addr;

pub(crate) use ours::OurNames;
pub(crate) use resolver::{Program, Resolver};

/// Services of the zone, each with one instance.
const SERVICES: u8 = 50;

/// The zone: a service's name and its instance's, with the one address that both have.
fn zone() -> impl Iterator<Item = (String, Ipv4Addr)> {
    (1..=SERVICES).flat_map(|number| {
        let address = Ipv4Addr::new(172, 19, 1, number + 1);
        let (service, instance) = (service(number), format!("{}-1", service(number)));
        [service, instance].map(|name| (format!("{name}.zone.internal"), address))
    })
}

fn service(number: u8) -> String {
    format!("s{number}")
}

/// What dnsperf asks, in turn.
pub(crate) fn questions() -> String {
    zone().fold(String::new(), |mut text, (name, _)| {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name} A");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_has_a_hundred_names_of_one_address_each() {
        let mut names: Vec<String> = zone().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 100);
        assert_eq!(questions().lines().count(), 100);
    }
}
