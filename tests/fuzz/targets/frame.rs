//! Bytes as a packet of an instance, as a frame of a peer, and as the plaintext of a peer.
//!
//! The first byte chooses the door and the template, the second the offloads; the rest is laid over the template
//! ([`tidegate_fuzz::over`]), so that an empty input is a good packet.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use tidegate_fuzz::{Rig, ethernet, mend, offload, over, template, vxlan};

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

fuzz_target!(|input: &[u8]| {
    let [choice, offloads, input @ ..] = input else {
        return;
    };
    RIG.with_borrow_mut(|rig| {
        rig.next();
        let ipv6 = choice & 0x04 != 0;
        let protocol = [6, 17, 1, 6][usize::from(choice >> 3 & 3)];
        let (own, remote) = (rig.address(false, ipv6), rig.address(true, ipv6));
        let good = choice & 0x80 == 0;
        match choice & 3 {
            0 => {
                let mut packet = over(&template(own, remote, protocol), input);
                if good {
                    mend(&mut packet);
                }
                rig.from_port(&packet, offload(*offloads));
            }
            1 => {
                let mut packet = over(&template(remote, own, protocol), input);
                if good {
                    mend(&mut packet);
                }
                let kind = if ipv6 { 0x86dd } else { 0x0800 };
                rig.from_peer(&vxlan(&ethernet(kind, &packet)));
            }
            2 => {
                // ARP, or IPv6 with a solicitation in it.
                let payload: &[u8] = if ipv6 { &[] } else { &[0, 1, 8, 0, 6, 4, 0, 1] };
                let frame = over(&ethernet(if ipv6 { 0x86dd } else { 0x0806 }, payload), input);
                rig.from_peer(&vxlan(&frame));
            }
            _ => {
                let inner = ethernet(0x0800, &template(remote, own, protocol));
                let mut plaintext = over(&vxlan(&inner), input);
                if good {
                    mend(&mut plaintext);
                }
                rig.from_peer(&plaintext);
            }
        }
    });
});
