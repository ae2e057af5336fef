//! Strangers who knock faster than a host can answer, from everywhere at once.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Container, ForeignPeer, Forged, Lab, Pace, Stream, wait_until};

use crate::peers::{Connected, GO4, HOST, LANE, NEWCOMER, STRANGER, VNI, foreign};

const PER_SECOND: u32 = 20_000;
/// Benchmarking addresses (RFC 2544), so many that hardly one comes twice.
const SOURCES: &str = "198.18.0.0/15";
const STREAM: Stream = Stream {
    per_second: 1_000,
    count: 6_000,
};

/// Where a flood comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    /// One address, and random ports of it.
    One,
    /// Random addresses and ports, which a stranger need not own.
    Everywhere,
}

/// Who wants a session with the newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// The newcomer.
    It,
    /// The newcomer, and one of our instances.
    Both,
}

#[test]
fn flood_from_one_address_takes_nothing_from_a_flow_and_keeps_no_newcomer_out() -> Result<()> {
    withstand("tgt-flood-one", Sources::One, Asking::It)
}

/// From everywhere, a stranger can spend what our host gives to all strangers. The newcomer is then given a cookie, and
/// may come back with it after Rekey-Timeout, 5 s (§6.6 of the paper): our own host's asking is answered at once.
#[test]
fn flood_from_everywhere_takes_nothing_from_a_flow_and_keeps_no_newcomer_out() -> Result<()> {
    withstand("tgt-flood-all", Sources::Everywhere, Asking::Both)
}

fn withstand(name: &str, sources: Sources, asking: Asking) -> Result<()> {
    let Some(lab) = Lab::up_fixture(name, &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    lab.run_lines(STRANGER, &format!("ip route add local {SOURCES} dev lo"))?;
    lab.run_lines("h1", &format!("ip route add {SOURCES} via 192.0.2.70"))?;
    let peer = Connected::up(&lab, GO4)?;
    let web = lab.address("shop-web-1", "-4")?;
    let newcomer = foreign(NEWCOMER)?;
    let container = newcomer.container(&lab, VNI)?;
    let mut forged = Forged::new(&lab.public_key("h1")?)?;
    let is_over = AtomicBool::new(false);

    let (flood, heard, connected) = scope(|scope| {
        let flood = scope.spawn(|| lab.inside(STRANGER, || flood(&mut forged, sources, &is_over)));
        sleep(Duration::from_secs(1));
        let heard = scope.spawn(|| STREAM.run(&lab, peer.container.part(), "shop-web-1", web));
        let connected = newcomer_connects(&lab, &newcomer, &container, web, asking);
        let heard = heard.join();
        is_over.store(true, Ordering::Relaxed);
        (flood.join(), heard, connected)
    });
    let flood = flood.map_err(|_| anyhow!("the flood panicked"))??;
    let heard = heard.map_err(|_| anyhow!("the stream panicked"))??;
    println!(
        "{flood:.0} forged initiations a second, sources {sources:?}: {heard} of a stream, the newcomer connected after \
         {connected:.1?}"
    );
    let connected = connected?;
    ensure!(
        flood >= f64::from(PER_SECOND) * 0.8,
        "the flood had only {flood:.0} a second"
    );
    ensure!(
        heard.lost() * 1_000 <= heard.sent && heard.repeated == 0,
        "a flow lost more than 0.1 %: {heard}; h1 drops {:?}",
        lab.drops("h1")?
    );
    ensure!(
        connected < Duration::from_secs(5),
        "the newcomer connected after {connected:?}"
    );
    drop((container, peer));
    lab.close()
}

/// Sends initiations, each from an address and a port that follow from nothing, until `is_over`; gives back how many a
/// second.
fn flood(forged: &mut Forged, sources: Sources, is_over: &AtomicBool) -> Result<f64> {
    // Made before: what they cost would be missing at the host's own processors.
    let initiations: Vec<Vec<u8>> = (0..PER_SECOND).map(|_| forged.next_initiation()).collect();
    let mut pace = Pace::new(PER_SECOND);
    let (began, mut sent) = (Instant::now(), 0_u32);
    for initiation in initiations.iter().cycle() {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let [_, a, b, c, ..] = forged.next_number().to_be_bytes();
        let address = match sources {
            Sources::One => Ipv4Addr::UNSPECIFIED,
            Sources::Everywhere => Ipv4Addr::new(198, 18 + (a & 1), b, c.clamp(1, 254)),
        };
        let socket = UdpSocket::bind((address, 0))?;
        // Nothing is lost with one that the device doesn't take.
        let _ = socket.send_to(initiation, (HOST, LANE));
        sent += 1;
        pace.wait();
    }
    Ok(f64::from(sent) / began.elapsed().as_secs_f64())
}

/// How long a peer that wasn't there before needs, from its start, until something passes.
fn newcomer_connects(
    lab: &Lab,
    newcomer: &ForeignPeer,
    container: &Container,
    web: IpAddr,
    asking: Asking,
) -> Result<Duration> {
    let began = Instant::now();
    let _wireguard = newcomer.up(lab)?;
    let (address, web) = (container.ipv4().to_string(), web.to_string());
    let ways = [(container.part(), web.as_str()), ("shop-web-1", address.as_str())];
    let ways = match asking {
        Asking::It => &ways[..1],
        Asking::Both => &ways[..],
    };
    wait_until("the newcomer connects", Duration::from_secs(20), || {
        for (from, to) in ways {
            let ping = lab.attempt(from, &["ping", "-c", "1", "-W", "0.3", to])?;
            if ping.status.success() {
                return Ok(true);
            }
        }
        Ok(false)
    })?;
    Ok(began.elapsed())
}
