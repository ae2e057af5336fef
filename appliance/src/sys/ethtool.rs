//! Offload features of a network device, by the names that `ethtool -k` shows in its long form
//! (`rx-udp-gro-forwarding`, `tx-tcp-segmentation`, …): the `SIOCETHTOOL` ioctl.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const NAME_LENGTH: usize = 32;
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// A feature of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// Whether it is on.
    pub(crate) on: bool,
    /// Whether it may be changed.
    pub(crate) changeable: bool,
}

/// The features of a device of the calling thread's namespace, by name.
///
/// # Errors
/// What the kernel said; no such device is `ENODEV`.
pub(crate) fn features(device: &str) -> io::Result<BTreeMap<String, Feature>> {
    let socket = socket()?;
    let names = names(&socket, device)?;
    let blocks = names.len().div_ceil(32);
    // struct ethtool_gfeatures { cmd, size, { available, requested, active, never_changed }[size] }
    let mut buffer = vec![0u32; 2 + blocks * 4];
    buffer[..2].copy_from_slice(&[
        ETHTOOL_GFEATURES,
        u32::try_from(blocks).map_err(io::Error::other)?,
    ]);
    exchange(&socket, device, &mut buffer)?;
    let mut features = BTreeMap::new();
    for (bit, name) in names.into_iter().enumerate() {
        let block = &buffer[2 + bit / 32 * 4..][..4];
        let is_set = |word: u32| word >> (bit % 32) & 1 == 1;
        let changeable = is_set(block[0]) && !is_set(block[3]);
        features.insert(
            name,
            Feature {
                on: is_set(block[2]),
                changeable,
            },
        );
    }
    Ok(features)
}

/// Switches features of a device of the calling thread's namespace; names that the device doesn't have or can't
/// change are left out. The result tells what was switched.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_features(device: &str, wanted: &[(&str, bool)]) -> io::Result<Vec<String>> {
    let present = features(device)?;
    let socket = socket()?;
    let names = names(&socket, device)?;
    let blocks = names.len().div_ceil(32);
    // struct ethtool_sfeatures { cmd, size, { valid, requested }[size] }
    let mut buffer = vec![0u32; 2 + blocks * 2];
    buffer[..2].copy_from_slice(&[
        ETHTOOL_SFEATURES,
        u32::try_from(blocks).map_err(io::Error::other)?,
    ]);
    let mut switched = Vec::new();
    for (name, on) in wanted {
        let Some(bit) = names.iter().position(|known| known == name) else {
            continue;
        };
        if !present
            .get(*name)
            .is_some_and(|feature| feature.changeable && feature.on != *on)
        {
            continue;
        }
        let block = &mut buffer[2 + bit / 32 * 2..][..2];
        block[0] |= 1 << (bit % 32);
        block[1] |= u32::from(*on) << (bit % 32);
        switched.push((*name).to_owned());
    }
    if !switched.is_empty() {
        exchange(&socket, device, &mut buffer)?;
    }
    Ok(switched)
}

fn socket() -> io::Result<socket2::Socket> {
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
}

/// The names of all features the kernel knows, by their bit.
fn names(socket: &socket2::Socket, device: &str) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info { cmd, reserved, u64 sset_mask, u32 data[] }
    let mut information = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    exchange(socket, device, &mut information)?;
    let count = information[4] as usize;
    // struct ethtool_gstrings { cmd, string_set, len, u8 data[len * 32] }
    let mut buffer = vec![0u32; 3 + count * NAME_LENGTH / 4];
    buffer[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, information[4]]);
    exchange(socket, device, &mut buffer)?;
    let bytes: Vec<u8> = buffer[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = |bytes: &[u8]| {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    };
    Ok(bytes.chunks_exact(NAME_LENGTH).map(name).collect())
}

fn exchange(socket: &socket2::Socket, device: &str, buffer: &mut [u32]) -> io::Result<()> {
    if device.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{device} is too long for a device name"),
        ));
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: buffer.as_mut_ptr().cast(),
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is a whole ifreq whose name ends in zero and whose data points to `buffer`, alive and
    // exclusively ours during the call; the sizes inside `buffer` were set by our callers to its real length, and
    // the kernel writes no more than they say.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{netlink::Netlink, netns};
    use std::os::fd::AsFd;

    /// The checksum and segmentation offloads that `ethtool -K DEV tx off rx off tso off gso off gro off` means.
    const OFFLOADS: [&str; 11] = [
        "tx-checksum-ipv4",
        "tx-checksum-ip-generic",
        "tx-checksum-ipv6",
        "tx-checksum-sctp",
        "tx-scatter-gather",
        "tx-tcp-segmentation",
        "tx-tcp6-segmentation",
        "tx-udp-segmentation",
        "tx-generic-segmentation",
        "rx-checksum",
        "rx-gro",
    ];

    #[test]
    fn features_of_a_veth_are_switched_and_read_back() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let name = format!("tgx-lab-eth-{}", std::process::id());
        netns::create(&name).unwrap();
        let namespace = netns::open(&name).unwrap();
        Netlink::open_within(namespace.as_fd())
            .unwrap()
            .add_veth("a", "b", namespace.as_fd())
            .unwrap();
        let outcome = netns::within(namespace.as_fd(), || {
            let before = features("a").unwrap();
            assert!(before["tx-tcp-segmentation"].on);
            assert!(!before["rx-udp-gro-forwarding"].on);
            let switched =
                set_features("a", &[("rx-udp-gro-forwarding", true), ("no-such-feature", true)]).unwrap();
            assert_eq!(switched, ["rx-udp-gro-forwarding"]);
            set_features("a", &OFFLOADS.map(|name| (name, false))).unwrap();
            let after = features("a").unwrap();
            assert!(after["rx-udp-gro-forwarding"].on);
            assert!(
                OFFLOADS
                    .iter()
                    .all(|name| !after[*name].on || !after[*name].changeable)
            );
            assert!(!after["tx-tcp-segmentation"].on);
            assert!(features("missing").is_err());
        });
        netns::delete(&name).unwrap();
        outcome.unwrap();
    }
}
