//! What the wire between two hosts shows: WireGuard datagrams of the lanes, and nothing else.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Packet};

const MARKERS: usize = 10_000;
const PREFIX: &str = "clear-text-marker-";
/// The foreign lane's port, and those of the hosts' own lanes behind it.
const LANES: RangeInclusive<u16> = 51820..=51948;
/// Where hosts tell each other what they have.
const LINK: u16 = 4668;

#[test]
fn wire_carries_only_ciphertext_while_ten_thousand_markers_pass_inside() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-cipher", &fixtures::topology("two-hosts"))? else {
        return Ok(());
    };
    // So that the capture shows datagrams as a real wire would carry them, not trains of them.
    for host in ["h1", "h2"] {
        let words = [
            "ethtool", "-K", "eth0", "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off",
        ];
        lab.run(host, &words)?;
    }
    let script = lab
        .write("markers.py", include_str!("../scripts/markers.py"))?
        .display()
        .to_string();
    let target = lab.address("shop-db-1", "-4")?.to_string();

    let wire = lab.capture("h1", "eth0", &[])?;
    let inside = lab.capture("shop-db-1", "eth0", &["-Q", "in"])?;
    // Somebody listens, so that no ICMP error comes back for each.
    let _listener = lab.start("shop-db-1", &["nc", "-u", "-l", "-k", "-p", "9000"])?;
    let count = MARKERS.to_string();
    lab.run(
        "shop-web-1",
        &["/usr/bin/python3", &script, PREFIX, &count, &target, "9000"],
    )?;
    let (wire, inside) = (wire.finish()?, inside.finish()?);

    let found: BTreeSet<&[u8]> = inside.iter().flat_map(markers).collect();
    ensure!(
        found.len() == MARKERS,
        "the control: inside, {} of {MARKERS} markers were found",
        found.len()
    );

    let mut data = 0;
    for packet in &wire {
        for needle in [PREFIX, "shop-", "historian", "tgt-cipher", "acme"] {
            // Four letters turn up by chance in this much ciphertext; five don't.
            ensure!(
                needle.len() < 5 || !packet.contains(needle.as_bytes()),
                "the wire shows {needle}"
            );
        }
        match packet.ethertype().context("a frame without a type")? {
            0x0800 => data += u64::from(message_type(packet)? == Some(4)),
            0x0806 => ensure!(
                is_underlay_arp(packet),
                "an ARP message that isn't about the underlay"
            ),
            0x86dd => ensure!(
                is_ipv6_housekeeping(packet),
                "an IPv6 packet that isn't neighbour discovery"
            ),
            other => anyhow::bail!("a frame of type {other:#06x}"),
        }
    }
    println!("wire: {} frames, {data} of them WireGuard data", wire.len());
    ensure!(data >= 1_000, "only {data} data messages were on the wire");
    lab.close()
}

fn markers(packet: &Packet) -> Vec<&[u8]> {
    let length = PREFIX.len() + 7;
    packet
        .0
        .windows(length)
        .filter(|window| window.starts_with(PREFIX.as_bytes()) && window.ends_with(b"."))
        .collect()
}

/// The type of a WireGuard message between two lanes: 1 and 2 make a session, 3 is a cookie, 4 carries data. `None` for
/// what is between the hosts' links.
fn message_type(packet: &Packet) -> Result<Option<u8>> {
    const IP: usize = 14;
    let udp = IP + usize::from(packet.byte(IP).context("no IP header")? & 0x0f) * 4;
    ensure!(packet.byte(IP + 9) == Some(17), "an IPv4 packet that isn't UDP");
    let ports = [udp, udp + 2].map(|at| packet.big_endian(at));
    if ports == [Some(LINK); 2] {
        return Ok(None);
    }
    ensure!(
        ports
            .iter()
            .all(|port| port.is_some_and(|port| LANES.contains(&port))),
        "a UDP datagram that is neither between lanes nor between links"
    );
    let kind = packet.byte(udp + 8).context("an empty datagram")?;
    ensure!((1..=4).contains(&kind), "a datagram of type {kind}");
    Ok(Some(kind))
}

fn is_underlay_arp(packet: &Packet) -> bool {
    [28, 38]
        .iter()
        .all(|offset| packet.0.get(*offset..offset + 3) == Some(&[192, 0, 2]))
}

/// Neighbour discovery, and the kernel's multicast listener reports (hop-by-hop options, then ICMPv6).
fn is_ipv6_housekeeping(packet: &Packet) -> bool {
    let next = packet.byte(20);
    next == Some(58) || (next == Some(0) && packet.byte(54) == Some(58))
}
