//! A stranger who recorded a conversation, and plays it back.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tidegate_fixtures as fixtures;
use tidegate_tests::{Lab, Pace, Packet, Stream, is_long, wait_until};

use crate::peers::{Connected, GO4, HOST, LANE};

#[test]
fn nothing_of_a_recorded_conversation_is_delivered_again() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-replay", &fixtures::topology("conformance"))? else {
        return Ok(());
    };
    let seconds = if is_long() { 60 } else { 10 };
    // So that the capture shows datagrams one by one.
    lab.run(GO4, &["ethtool", "-K", "eth0", "tx", "off"])?;
    let wire = lab.capture(GO4, "eth0", &["-Q", "out", "udp and dst port 51820"])?;
    let peer = Connected::up(&lab, GO4)?;
    let web = lab.address("shop-web-1", "-4")?;
    let stream = Stream {
        per_second: 200,
        count: 200 * seconds,
    };
    let heard = stream.run(&lab, peer.container.part(), "shop-web-1", web)?;
    ensure!(heard.lost() == 0, "the original: {heard}");
    let recorded = wire.finish()?;
    ensure!(
        recorded.len() >= stream.count as usize,
        "only {} datagrams were recorded",
        recorded.len()
    );

    // The peer is gone, and its address and port are somebody else's; its session lives on at our host.
    let (source, silent) = (SocketAddr::new(peer.address, LANE), peer.end());
    let inside = lab.capture("shop-web-1", "eth0", &["-Q", "in"])?;
    let before = Refused::of(&lab)?;
    let socket = lab.inside(GO4, || Ok(UdpSocket::bind(source)?))?;
    let mut pace = Pace::new(5_000);
    for packet in &recorded {
        socket.send_to(udp_payload(packet)?, (HOST, LANE))?;
        pace.wait();
    }
    let expected = recorded.len() as u64;
    let mut after = before;
    wait_until("all are counted", Duration::from_secs(5), || {
        after = Refused::of(&lab)?;
        Ok(after.total() >= before.total() + expected)
    })
    .with_context(|| format!("{expected} sent, h1 drops {:?}", lab.drops("h1")))?;
    let delivered = inside.finish()?.len();
    println!(
        "{expected} recorded datagrams sent again: {delivered} delivered, {} counted as replayed",
        after.replayed - before.replayed
    );
    ensure!(delivered == 0, "{delivered} packets were delivered");
    ensure!(
        after.total() == before.total() + expected,
        "{expected} were sent again: {before:?} before, {after:?} after"
    );
    ensure!(
        after.replayed >= before.replayed + u64::from(stream.count),
        "not all data counts as replayed: {before:?} before, {after:?} after"
    );
    drop(silent);
    lab.close()
}

/// Counters under which datagrams of another time fall.
#[derive(Clone, Copy, Debug)]
struct Refused {
    /// Data, and initiations, that were seen before.
    replayed: u64,
    /// Answers to a handshake that is over, and data of a session that is forgotten.
    stale: u64,
}

impl Refused {
    fn of(lab: &Lab) -> Result<Self> {
        let drops = lab.drops("h1")?;
        let count = |reason: &str| drops.get(reason).copied().unwrap_or(0);
        Ok(Self {
            replayed: count("replayed"),
            stale: count("unknown-receiver") + count("unauthenticated"),
        })
    }

    fn total(self) -> u64 {
        self.replayed + self.stale
    }
}

/// What a captured IPv4 packet carries in UDP.
fn udp_payload(packet: &Packet) -> Result<&[u8]> {
    const UDP: usize = 14 + 20;
    ensure!(packet.byte(14) == Some(0x45), "not IPv4 without options");
    let length = usize::from(packet.big_endian(UDP + 4).context("no UDP header")?);
    packet
        .0
        .get(UDP + 8..UDP + length)
        .context("cut in the middle of a datagram")
}
