//! Sequences of fragments, of a few datagrams at a time: by both doors of a host, and into a reassembly of small bounds.
//!
//! Each fragment is seven bytes:
//!
//! | byte | what |
//! |---|---|
//! | 0 | 0x01 of the peer, not of the instance · 0x02 IPv6 · 0x04 more follow · 0x18 TCP, UDP, ICMP, another protocol · 0x20 a byte is changed · 0x40 not a multiple of eight |
//! | 1, 2 | where it stands, in units of eight bytes |
//! | 3 | how long it is, in units of 48 bytes and one of eight |
//! | 4 | which of eight datagrams; with 0x80 a second passes before it |
//! | 5, 6 | which byte is changed, and what is added to it |
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::time::Duration;
use tidegate_fuzz::{Rig, ethernet, fragment, vxlan};
use tidegate_stack::frame::{FramePool, PoolSizes};
use tidegate_stack::plan::{PeerId, PortId, Vni};
use tidegate_stack::time::Instant;
use tidegate_stack::wire::fragments::{Bounds, Origin, Reassembly};
use tidegate_stack::wire::{Headers, Transport};

const BOUNDS: Bounds = Bounds {
    datagrams: 6,
    per_source: 3,
    fragments: 48,
};

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

fuzz_target!(|input: &[u8]| {
    let mut small = Small::new();
    RIG.with_borrow_mut(|rig| {
        rig.next();
        for bytes in input.as_chunks::<7>().0 {
            let [choice, high, low, length, identification, at, change] = *bytes;
            let remote = choice & 0x01 != 0;
            let ipv6 = choice & 0x02 != 0;
            let number = match (choice >> 3 & 3, ipv6) {
                (0, _) => 6,
                (1, _) => 17,
                (2, false) => 1,
                (2, true) => 58,
                _ => 132,
            };
            let mut data = vec![0x5a; 8 + usize::from(length) * 48 - usize::from(choice & 0x40 != 0)];
            // What every transport takes for its own length.
            data[4..6].copy_from_slice(&[0, 8]);
            let ends = (rig.address(remote, ipv6), rig.address(!remote, ipv6));
            let name = (number, u16::from(identification & 7));
            let place = (u16::from_be_bytes([high, low]) << 3, choice & 0x04 != 0);
            let mut packet = fragment(ends, name, place, &data);
            if choice & 0x20 != 0 {
                let at = usize::from(at) % packet.len();
                packet[at] = packet[at].wrapping_add(change);
            }
            if identification & 0x80 != 0 {
                small.pass(Duration::from_secs(1));
            }
            small.push(remote, &packet);
            if remote {
                rig.from_peer(&vxlan(&ethernet(if ipv6 { 0x86dd } else { 0x0800 }, &packet)));
            } else {
                rig.from_port(&packet, tidegate_fuzz::offload(0));
            }
        }
    });
    small.pass(Duration::from_secs(60));
    assert_eq!((small.reassembly.datagrams(), small.reassembly.bytes()), (0, 0));
    assert_eq!(
        small.taken, small.gone,
        "every fragment is in a whole, or counted"
    );
});

/// A reassembly of small bounds, and how many fragments it took and let go.
struct Small {
    reassembly: Reassembly,
    pool: FramePool,
    now: Instant,
    taken: usize,
    gone: usize,
}

impl Small {
    fn new() -> Self {
        Self {
            reassembly: Reassembly::new(BOUNDS, 1),
            pool: FramePool::new(PoolSizes { small: 1, large: 1 }),
            now: Instant::ZERO,
            taken: 0,
            gone: 0,
        }
    }

    fn push(&mut self, remote: bool, packet: &[u8]) {
        let Ok(headers) = Headers::parse(packet) else {
            return;
        };
        if headers.transport != Transport::Fragment {
            return;
        }
        let origin = if remote {
            Origin::Peer(PeerId(1))
        } else {
            Origin::Port(PortId(0))
        };
        let packet = &packet[..headers.total_length];
        let before = self.taken - self.gone;
        let mut gone = 0;
        let outcome = self.reassembly.push(
            (Vni::MIN, origin),
            packet,
            &headers,
            &mut self.pool,
            self.now,
            |lost| gone += usize::from(lost.fragments),
        );
        assert!(gone <= before, "what is lost was held");
        self.gone += gone;
        match outcome {
            Ok(None) => self.taken += 1,
            Ok(Some(whole)) => {
                // How many it was made of isn't told: what is here now tells.
                self.taken += 1;
                if let Ok(headers) = Headers::parse(whole.packet()) {
                    assert_ne!(headers.transport, Transport::Fragment);
                    assert_eq!(headers.total_length, whole.packet().len());
                    assert!(!headers.dont_fragment);
                }
                self.pool.recycle(whole);
                self.gone = self.taken - self.reassembly.fragments();
            }
            Err(_) => {}
        }
        assert_eq!(self.taken - self.gone, self.reassembly.fragments());
        assert!(self.reassembly.datagrams() <= usize::from(BOUNDS.datagrams));
        assert!(self.reassembly.bytes() <= usize::from(BOUNDS.fragments) * Bounds::BLOCK);
        assert_eq!(self.pool.in_use(), 0);
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        let gone = &mut self.gone;
        self.reassembly
            .expire(self.now, |lost| *gone += usize::from(lost.fragments));
    }
}
