//! A stranger who sends what is no WireGuard, or only looks like it.

use std::fmt;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Malformed, Pace, Pings, is_long};

use crate::peers::{Connected, GO4, HOST, LANE, STRANGER};

const MIB: u64 = 1 << 20;

#[test]
fn malformed_datagrams_are_counted_without_a_byte_back_or_a_mebibyte_more() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-malformed", &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    let peer = Connected::up(&lab, GO4)?;
    let count = if is_long() { 1_000_000 } else { 100_000 };
    // What a socket's buffer holds is read, even on a busy machine; more is asked of it elsewhere.
    let per_second = 40_000;

    let filter = format!("src host {HOST} and not arp");
    let answers = lab.capture(STRANGER, "eth0", &["-Q", "in", &filter])?;
    let web = lab.address("shop-web-1", "-4")?;
    let pings = Pings::start(
        &lab,
        peer.container.part(),
        web,
        count / per_second * 10,
        Duration::from_millis(100),
    )?;
    let before = Counted::of(&lab)?;
    let socket = lab.inside(STRANGER, || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let mut malformed = Malformed::new(&lab.public_key("h1")?)?;
    let mut pace = Pace::new(per_second);
    for _ in 0..count {
        socket.send_to(&malformed.next_datagram(), (HOST, LANE))?;
        pace.wait();
    }
    let lost = pings.lost()?;
    let after = Counted::of(&lab)?;
    let answers = answers.finish()?;
    let counted = after.drops - before.drops;
    println!(
        "{count} malformed datagrams: {counted} counted, {} answered, {before} before and {after} after, \
         {lost} pings of a peer lost",
        answers.len(),
    );
    ensure!(
        answers.is_empty(),
        "{} packets came back: {:?}",
        answers.len(),
        answers.first()
    );
    ensure!(
        counted >= u64::from(count) * 99 / 100,
        "only {counted} of {count} were looked at: {:?}",
        lab.drops("h1")?
    );
    ensure!(
        after.resident < before.resident + MIB,
        "the datapath grew from {before} to {after}"
    );
    ensure!(lost == 0, "a peer lost {lost} pings meanwhile");
    drop(peer);
    lab.close()
}

/// What our host had at one moment.
struct Counted {
    resident: u64,
    drops: u64,
}

impl Counted {
    fn of(lab: &Lab) -> Result<Self> {
        let status = lab.tidegate("h1", &["status"])?;
        let resident = status
            .pointer("/datapath/process/resident-bytes")
            .and_then(Value::as_u64)
            .context("status prints no resident bytes of the datapath")?;
        Ok(Self {
            resident,
            drops: lab.drops("h1")?.values().sum(),
        })
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} MiB", self.resident as f64 / MIB as f64)
    }
}
