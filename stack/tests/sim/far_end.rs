//! One real host, and a peer whose every word is made by hand: a kernel's VTEP, or an attacker with a valid key.

use super::host::{Host, Socket};
use super::instance::Instance;
use super::plans::{Site, key};
use etherparse::PacketBuilder;
use mock_instant::MockClock;
use std::net::Ipv4Addr;
use std::time::Duration;
use tidegate_stack::drop::DropReason;
use tidegate_stack::egress::LaneKind;
use tidegate_stack::plan::Vni;
use tidegate_stack::shard::Datagrams;
use tidegate_stack::stats::Report;
use tidegate_stack::time::Instant;
use tidegate_stack::wire::{Ecn, MacAddr};
use tidegate_stack::wireguard::{
    DATA_OVERHEAD, HandshakeOutcome, Lane, Message, NoiseTunnel, Opened, TICK_INTERVAL, Train, Tunnel,
    TunnelIndex,
};

/// The VTEP addresses of the host and of the far end.
pub(crate) const NEAR_VTEP: Ipv4Addr = Ipv4Addr::new(169, 254, 116, 1);
pub(crate) const FAR_VTEP: Ipv4Addr = Ipv4Addr::new(169, 254, 116, 2);
/// The I flag.
pub(crate) const VNI_FLAG: u8 = 0x08;

/// A host, and the peer that a test plays.
pub(crate) struct FarEnd {
    pub(crate) site: Site,
    host: Host,
    tunnel: NoiseTunnel,
    now: Instant,
}

impl FarEnd {
    /// A host and a session with it.
    pub(crate) fn new(site: Site) -> Self {
        MockClock::set_time(Duration::ZERO);
        let now = Instant::ZERO;
        let lane = Lane::new(&key(1), now);
        let near = key(0).public_key();
        let mut far_end = Self {
            host: Host::new(&site, 0, 7, now),
            tunnel: NoiseTunnel::new(
                &lane,
                TunnelIndex::from_low_bits(0x00_beef),
                &near,
                None,
                None,
                now,
            ),
            now,
            site,
        };
        far_end.hear();
        assert!(far_end.tunnel.is_ready(), "the host greets its peers");
        far_end
    }

    /// An instance of the host.
    pub(crate) fn instance(&mut self, port: usize) -> &mut Instance {
        &mut self.host.instances[port]
    }

    /// The network of the first instance.
    pub(crate) fn vni(&self) -> Vni {
        self.site.plan(0).instances[0].memberships[0].vni
    }

    pub(crate) fn report(&self) -> Report {
        self.host.report()
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.report()
            .drops
            .iter()
            .filter(|drop| drop.reason == reason)
            .map(|drop| drop.packets)
            .sum()
    }

    /// Lets the host work, with the far end's own ticks.
    pub(crate) fn pass(&mut self, duration: Duration) -> Vec<Vec<u8>> {
        let end = self.now + duration;
        let mut heard = Vec::new();
        while self.now < end {
            MockClock::advance(TICK_INTERVAL);
            self.now = self.now + TICK_INTERVAL;
            let mut out = [0; 256];
            let length = self.tunnel.tick(&mut out, self.now);
            if length > 0 {
                self.arrive(&out[..length]);
            }
            heard.extend(self.hear());
        }
        heard
    }

    /// Gives the host a datagram, as its socket would.
    pub(crate) fn arrive(&mut self, bytes: &[u8]) {
        let datagrams = Datagrams {
            lane: LaneKind::Foreign,
            source: self.site.address(1),
            ecn: Ecn::NotCapable,
            stride: bytes.len().max(1),
            bytes,
        };
        let socket = Socket {
            generation: 1,
            shard: 0,
            lane: LaneKind::Foreign,
        };
        self.host.handle_lane(socket, datagrams, self.now);
        self.host.flush(self.now);
    }

    /// A datagram with these bytes inside, for the host.
    pub(crate) fn sealed(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut out = vec![0; plaintext.len() + DATA_OVERHEAD];
        let train = Train {
            bytes: plaintext,
            stride: plaintext.len(),
        };
        let sealed = self.tunnel.seal(&train, &mut out, self.now);
        assert_eq!(sealed.bytes, out.len());
        out
    }

    /// Says something, whatever it is, and gives back what the host says then.
    pub(crate) fn say(&mut self, plaintext: &[u8]) -> Vec<Vec<u8>> {
        let datagram = self.sealed(plaintext);
        self.arrive(&datagram);
        self.hear()
    }

    /// Says an Ethernet frame in the first instance's network.
    pub(crate) fn say_frame(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.say(&vxlan(self.vni().get(), VNI_FLAG, frame))
    }

    /// What the host says: Ethernet frames out of VXLAN. Handshakes are dealt with on the way.
    pub(crate) fn hear(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        self.host.settle(self.now);
        while let Some((.., datagram)) = self.host.transmitted() {
            let mut out = vec![0; 2048];
            match Message::classify(&datagram).unwrap() {
                Message::Data { .. } => match self.tunnel.open(&datagram, &mut out, self.now) {
                    Opened::Packet(length) => frames.push(unwrapped(&out[..length])),
                    Opened::Keepalive => {}
                    Opened::Drop(reason) => panic!("{reason:?}"),
                },
                Message::Initiation | Message::Response { .. } | Message::CookieReply { .. } => {
                    match self.tunnel.handle_handshake(&datagram, &mut out, self.now) {
                        HandshakeOutcome::Reply(length) | HandshakeOutcome::Established { reply: length } => {
                            self.arrive(&out[..length]);
                        }
                        HandshakeOutcome::Nothing => {}
                        HandshakeOutcome::Drop(reason) => panic!("{reason:?}"),
                    }
                }
            }
            self.host.settle(self.now);
        }
        frames
    }
}

/// The frame in a VXLAN packet of the host, everything in front of it checked.
fn unwrapped(packet: &[u8]) -> Vec<u8> {
    let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
        panic!("{packet:?}")
    };
    assert_eq!(
        (ip.header().source_addr(), ip.header().destination_addr()),
        (NEAR_VTEP, FAR_VTEP)
    );
    assert!(ip.header().dont_fragment(), "VXLAN is never fragmented");
    let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
        panic!("{packet:?}")
    };
    assert_eq!(udp.destination_port(), 4789);
    assert!(udp.source_port() >= 49_152);
    let (header, frame) = udp.payload().split_at(8);
    assert_eq!((header[0], header[7]), (VNI_FLAG, 0));
    frame.to_vec()
}

/// A VXLAN packet from the far end's VTEP to the host's.
pub(crate) fn vxlan(vni: u32, flags: u8, frame: &[u8]) -> Vec<u8> {
    vxlan_between(FAR_VTEP, NEAR_VTEP, 4789, vni, flags, frame)
}

/// A VXLAN packet between any two.
pub(crate) fn vxlan_between(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    port: u16,
    vni: u32,
    flags: u8,
    frame: &[u8],
) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let payload = [&[flags, 0, 0, 0, a, b, c, 0], frame].concat();
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        .udp(50_000, port)
        .write(&mut bytes, &payload)
        .unwrap();
    bytes
}

/// An Ethernet frame.
pub(crate) fn ethernet(destination: MacAddr, source: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.0[..], &source.0, &kind.to_be_bytes(), payload].concat()
}
