//! Sessions live through their renewals, and follow a peer that moves.

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Pings, is_long, wait_until};

use crate::peers::{ALL, BORING6, Connected, GO4, LANE, field, handshake_age, told};

const INTERVAL: Duration = Duration::from_millis(100);
/// Age of a session that nobody renews yet, in milliseconds.
const YOUNG: u64 = 60_000;

#[test]
fn sessions_with_either_program_live_through_rekeys_over_both_families_with_and_without_preshared_key()
-> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-conform", &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    // A session is renewed after 120 s (Rekey-After-Time): twice in the long form.
    let (length, rekeys) = if is_long() {
        (Duration::from_secs(330), 2)
    } else {
        (Duration::from_secs(5), 0)
    };
    let connected: Vec<Connected> = ALL
        .iter()
        .map(|name| Connected::up(&lab, name))
        .collect::<Result<_>>()?;

    let count = u32::try_from(length.as_millis() / INTERVAL.as_millis())?;
    let database = lab.address("shop-db-1", "-6")?;
    let pings: Vec<[Pings; 2]> = connected
        .iter()
        .map(|peer| {
            let (part, address) = (peer.container.part(), peer.container.ipv4());
            Ok([
                Pings::start(&lab, "shop-web-1", address, count, INTERVAL)?,
                Pings::start(&lab, part, database, count, INTERVAL)?,
            ])
        })
        .collect::<Result<_>>()?;
    let renewed = count_renewals(&lab, length)?;
    let mut failures = Vec::new();
    for ((name, pings), renewed) in ALL.iter().zip(pings).zip(renewed) {
        let [to_it, from_it] = pings;
        let (to_it, from_it) = (to_it.lost()?, from_it.lost()?);
        println!("{name}: {to_it} and {from_it} of {count} pings lost, {renewed} rekeys");
        if to_it + from_it > 0 || renewed < rekeys {
            failures.push(*name);
        }
    }
    ensure!(
        failures.is_empty(),
        "{} lost pings or were not renewed",
        failures.join(", ")
    );
    drop(connected);
    lab.close()
}

/// How often each peer's session was made anew, as our host sees it: its age went back.
fn count_renewals(lab: &Lab, length: Duration) -> Result<Vec<u32>> {
    let began = Instant::now();
    let mut renewed = vec![0; ALL.len()];
    let mut ages = vec![0; ALL.len()];
    while began.elapsed() < length {
        let peers = told(lab)?;
        for ((name, age), renewed) in ALL.iter().zip(&mut ages).zip(&mut renewed) {
            let now = handshake_age(&peers, name)?;
            // A second handshake at the start, when both ends began one, renews nothing.
            *renewed += u32::from(now < *age && *age > YOUNG);
            *age = now;
        }
        sleep(Duration::from_secs(1));
    }
    Ok(renewed)
}

#[test]
fn session_follows_a_peer_to_another_address_and_to_another_port() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-roam", &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    for (name, moved, prefix) in [(GO4, "192.0.2.161", 24), (BORING6, "2001:db8:1::167", 64)] {
        let peer = Connected::up(&lab, name)?;
        let web = lab.address("shop-web-1", "-4")?;
        let pings = Pings::start(&lab, peer.container.part(), web, 40, INTERVAL)?;

        let address: IpAddr = moved.parse()?;
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        lab.run_lines(
            name,
            &format!(
                "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1
                 ip address add {moved}/{prefix} dev eth0
                 ip {family} address del {}/{prefix} dev eth0",
                peer.address
            ),
        )?;
        let device = peer.wireguard.device();
        if name == GO4 {
            // What a machine's network manager does: this program holds on to the source address that it had.
            let (key, host) = (lab.public_key("h1")?, peer.host.to_string());
            lab.run(name, &["wg", "set", device, "peer", &key, "endpoint", &host])?;
        }
        follows(&lab, &peer, SocketAddr::new(address, LANE))?;
        lab.run(name, &["wg", "set", device, "listen-port", "51999"])?;
        follows(&lab, &peer, SocketAddr::new(address, 51999))?;

        let lost = pings.lost()?;
        println!("{name} moved twice: {lost} of 40 pings lost");
        // The program's own socket is closed and opened again in between.
        ensure!(lost <= 5, "{name} lost {lost} pings on the way");
    }
    lab.close()
}

/// Our host knows where the peer is now, and speaks to it there.
fn follows(lab: &Lab, peer: &Connected, endpoint: SocketAddr) -> Result<()> {
    wait_until(
        &format!("{} is known to be at {endpoint}", peer.name),
        Duration::from_secs(5),
        || {
            let peers = told(lab)?;
            let known = field(&peers, peer.name, "endpoint")?;
            Ok(known.as_str() == Some(&endpoint.to_string()))
        },
    )?;
    let lost = Pings::start(lab, "shop-web-1", peer.container.ipv4(), 10, INTERVAL)?
        .lost()
        .with_context(|| format!("towards {} at {endpoint}", peer.name))?;
    ensure!(
        lost == 0,
        "{lost} of 10 pings to {} at {endpoint} were lost",
        peer.name
    );
    Ok(())
}
