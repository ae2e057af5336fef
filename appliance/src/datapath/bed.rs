//! A test bed: an instance's namespace with a device, made as `attach` makes it.

use crate::sys::netlink::Netlink;
use crate::sys::netns;
use crate::sys::tun::{self, TunFeatures};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A namespace; its name goes with the value.
pub(super) struct Bed {
    name: String,
    namespace: OwnedFd,
}

impl Bed {
    /// The namespace.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = netns::delete(&self.name);
    }
}

/// Whether namespaces and devices can be made; says so when not.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: namespaces and TUN devices need root");
    }
    root
}

/// A namespace with `eth0`, which was made outside and moved in, and the queue of that device. `label` is unique among
/// the tests that run at the same time, and short.
pub(super) fn instance(
    label: &str,
    address: IpAddr,
    prefix_length: u8,
    mtu: u32,
    vnet_header: bool,
) -> (Bed, OwnedFd) {
    let (bed, mut queues) = instance_with_queues(label, address, prefix_length, mtu, vnet_header, 1);
    (bed, queues.remove(0))
}

/// As [`instance`], with several queues.
pub(super) fn instance_with_queues(
    label: &str,
    address: IpAddr,
    prefix_length: u8,
    mtu: u32,
    vnet_header: bool,
    queues: usize,
) -> (Bed, Vec<OwnedFd>) {
    let process = std::process::id();
    let name = format!("tgx-datapath-{process}-{label}");
    netns::create(&name).unwrap();
    let namespace = netns::open(&name).unwrap();
    let wanted = TunFeatures {
        vnet_header,
        segmentation: vnet_header,
        multi_queue: true,
    };
    let device = format!("tgx{}{label}", process % 100_000);
    let queues = tun::create(&device, queues, wanted).unwrap();
    let mut netlink = Netlink::open().unwrap();
    let index = netlink.link_index(&device).unwrap();
    netlink.move_link(index, namespace.as_fd(), "eth0", mtu).unwrap();
    let mut inside = Netlink::open_within(namespace.as_fd()).unwrap();
    let index = inside.link_index("eth0").unwrap();
    inside.add_address(index, address, prefix_length).unwrap();
    inside.set_up(index).unwrap();
    (Bed { name, namespace }, queues)
}
