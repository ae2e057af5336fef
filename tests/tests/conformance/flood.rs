//! Strangers who knock faster than a host can answer, from everywhere at once.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Forged, Lab, Pace, Stream, wait_until};

use crate::peers::{Connected, GO4, HOST, LANE, NEWCOMER, STRANGER};

#[test]
fn flood_of_forged_initiations_takes_nothing_from_a_flow_and_keeps_no_newcomer_out() -> Result<()> {
    const PER_SECOND: u32 = 20_000;
    /// Benchmarking addresses (RFC 2544), so many that hardly one comes twice.
    const SOURCES: &str = "198.18.0.0/15";
    let Some(lab) = Lab::up_fixture("tgt-flood", &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    for (part, line) in [
        (STRANGER, format!("ip route add local {SOURCES} dev lo")),
        ("h1", format!("ip route add {SOURCES} via 192.0.2.70")),
    ] {
        lab.run(part, &line.split_whitespace().collect::<Vec<_>>())?;
    }
    let peer = Connected::up(&lab, GO4)?;
    let web = lab.address("shop-web-1", "-4")?;
    let stream = Stream {
        per_second: 1_000,
        count: 10_000,
    };
    let mut forged = Forged::new(&lab.public_key("h1")?)?;
    let is_over = AtomicBool::new(false);

    let (flood, heard, connected_after) = scope(|scope| {
        let flood = scope.spawn(|| {
            lab.inside(STRANGER, || {
                let mut pace = Pace::new(PER_SECOND);
                let (began, mut sent) = (Instant::now(), 0_u32);
                while !is_over.load(Ordering::Relaxed) {
                    flood_once(&mut forged)?;
                    sent += 1;
                    pace.wait();
                }
                Ok(f64::from(sent) / began.elapsed().as_secs_f64())
            })
        });
        sleep(Duration::from_secs(1));
        let heard = scope.spawn(|| stream.run(&lab, peer.container.part(), "shop-web-1", web));
        let connected_after = newcomer_connects(&lab, web);
        let heard = heard.join();
        is_over.store(true, Ordering::Relaxed);
        (flood.join(), heard, connected_after)
    });
    let flood = flood.map_err(|_| anyhow!("the flood panicked"))??;
    let heard = heard.map_err(|_| anyhow!("the stream panicked"))??;
    println!(
        "{flood:.0} forged initiations a second: {heard} of a stream, the newcomer connected after {:?}",
        connected_after
    );
    let connected_after = connected_after?;
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
        connected_after < Duration::from_secs(5),
        "the newcomer connected after {connected_after:?}"
    );
    drop(peer);
    lab.close()
}

/// One initiation, from an address and a port that follow from nothing.
fn flood_once(forged: &mut Forged) -> Result<()> {
    let number = forged.next_number();
    let [_, a, b, c, ..] = number.to_be_bytes();
    let source = Ipv4Addr::new(198, 18 + (a & 1), b, c.clamp(1, 254));
    let socket = UdpSocket::bind((source, 0))?;
    // Nothing is lost with one that the device doesn't take.
    let _ = socket.send_to(&forged.next_initiation(), (HOST, LANE));
    Ok(())
}

/// How long a peer that wasn't there before needs for its first answer.
fn newcomer_connects(lab: &Lab, web: IpAddr) -> Result<Duration> {
    let newcomer = Connected::start(lab, NEWCOMER)?;
    let began = Instant::now();
    let web = web.to_string();
    wait_until("the newcomer connects", Duration::from_secs(20), || {
        let words = ["ping", "-c", "1", "-W", "0.2", &web];
        Ok(lab.attempt(newcomer.container.part(), &words)?.status.success())
    })?;
    Ok(began.elapsed())
}
