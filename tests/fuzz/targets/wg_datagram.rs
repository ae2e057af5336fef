//! Bytes as datagrams on the lane of a host that has a live session.
//!
//! The first byte chooses what they are laid over: nothing, a sealed packet, an initiation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use tidegate_fuzz::{Rig, ethernet, over, template, vxlan};

thread_local! {
    static RIG: RefCell<Rig> = RefCell::new(Rig::new());
}

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    RIG.with_borrow_mut(|rig| {
        rig.next();
        match choice & 3 {
            0 => rig.from_lane(input),
            1 => {
                let packet = template(rig.address(true, false), rig.address(false, false), 17);
                let sealed = rig.sealed(&vxlan(&ethernet(0x0800, &packet)));
                let datagram = over(&sealed, input);
                rig.from_lane(&datagram);
                // Again: a replay, or a second look at what was refused.
                rig.from_lane(&sealed);
            }
            2 => {
                let initiation = rig.initiation();
                let datagram = over(&initiation, input);
                rig.from_lane(&datagram);
            }
            _ => {
                let mut kinds = [0; 4];
                kinds[0] = choice >> 2 & 7;
                let length = [0, 148, 92, 64, 32, 0, 0, 0][usize::from(kinds[0])];
                let mut datagram = [&kinds[..], input].concat();
                datagram.resize(datagram.len().max(length), 0);
                if kinds[0] < 4 {
                    datagram.truncate(length);
                }
                rig.from_lane(&datagram);
            }
        }
    });
});
