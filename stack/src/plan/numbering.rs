//! The arithmetic of numbers and addresses: what follows from names and ordinals without anybody choosing.
//!
//! Every host of a site computes the same numbers from the same documents; nothing here is negotiated.

use super::{HostOrdinal, InstanceIndex, NetworkKind, Vni};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Prefix length of one host's IPv4 block in an application network (a /16 holds 256 of them).
pub const BLOCK_LENGTH_APPLICATION: u8 = 24;
/// Prefix length of one host's IPv4 block in a shared network (a /18 holds 256 of them).
pub const BLOCK_LENGTH_SHARED: u8 = 26;
/// Prefix length of one host's IPv6 block in any network: `::<ordinal>:<index>`.
const BLOCK_LENGTH_IPV6: u8 = 112;
/// Derived VNIs begin here: the numbers below are left to documents that set `vni:` by hand.
const FIRST_DERIVED_VNI: u64 = 4096;
/// VTEP addresses are `169.254.116.<ordinal>`: link-local (RFC 3927), never routed, seen only inside WireGuard.
const VTEP_NETWORK: [u8; 3] = [169, 254, 116];

/// A network's prefixes, and what follows from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkNumbers {
    /// The whole IPv4 prefix.
    pub ipv4_prefix: Ipv4Net,
    /// Prefix length of one host's block in it.
    pub ipv4_block_length: u8,
    /// The whole IPv6 prefix, a /64.
    pub ipv6_prefix: Ipv6Net,
}

impl NetworkNumbers {
    /// The appliance's own IPv4 address: `.0.1` of the prefix.
    pub fn service_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.ipv4_prefix.network().to_bits() | 1)
    }

    /// The appliance's own IPv6 address: `::1` of the prefix.
    pub fn service_ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.ipv6_prefix.network().to_bits() | 1)
    }

    /// The IPv4 block that a host owns.
    pub fn block_ipv4(&self, ordinal: HostOrdinal) -> Ipv4Net {
        let offset = u32::from(ordinal.get()) << (32 - u32::from(self.ipv4_block_length));
        let network = Ipv4Addr::from_bits(self.ipv4_prefix.network().to_bits() | offset);
        Ipv4Net::new_assert(network, self.ipv4_block_length)
    }

    /// The IPv6 block that a host owns.
    pub fn block_ipv6(&self, ordinal: HostOrdinal) -> Ipv6Net {
        let network = self.ipv6_prefix.network().to_bits() | (u128::from(ordinal.get()) << 16);
        Ipv6Net::new_assert(Ipv6Addr::from_bits(network), BLOCK_LENGTH_IPV6)
    }

    /// How many instances a host's block has room for (indices 2 to this + 1).
    pub fn instances_per_block(&self) -> u8 {
        u8::try_from((1_u32 << (32 - u32::from(self.ipv4_block_length))) - 3).unwrap_or(u8::MAX)
    }

    /// The addresses of a host's instance with this index; `None` when the block hasn't room for it.
    pub fn instance(&self, ordinal: HostOrdinal, index: InstanceIndex) -> Option<(Ipv4Addr, Ipv6Addr)> {
        if index.get() > self.instances_per_block().saturating_add(1) {
            return None;
        }
        let ipv4 = self.block_ipv4(ordinal).network().to_bits() | u32::from(index.get());
        let ipv6 = self.block_ipv6(ordinal).network().to_bits() | u128::from(index.get());
        Some((Ipv4Addr::from_bits(ipv4), Ipv6Addr::from_bits(ipv6)))
    }
}

/// The VTEP address of a host: the source and destination of VXLAN inside WireGuard.
pub fn vtep_address(ordinal: HostOrdinal) -> Ipv4Addr {
    let [a, b, c] = VTEP_NETWORK;
    Ipv4Addr::new(a, b, c, ordinal.get())
}

/// The VNI of a network whose document doesn't set one: its names, hashed into 4096…2²⁴−1.
pub fn derive_vni(tenant: &str, kind: NetworkKind, name: &str) -> Vni {
    let span = u64::from(Vni::MAX) - FIRST_DERIVED_VNI + 1;
    let number = FIRST_DERIVED_VNI + network_hash(tenant, kind, name) % span;
    // The number is inside the range by construction.
    Vni::try_from(number).unwrap_or(Vni::MAX)
}

/// Which of `count` equal parts of the shared prefix a shared network has.
pub fn shared_prefix_index(tenant: &str, name: &str, count: u32) -> u32 {
    let index = network_hash(tenant, NetworkKind::Shared, name) % u64::from(count.max(1));
    u32::try_from(index).unwrap_or(0)
}

/// A site's IPv6 prefix: `fd`, 32 bits of the site's hash, a /40 (RFC 4193 §3.1: L = 1).
pub fn site_ipv6_prefix(site: &str) -> Ipv6Net {
    let bits = (0xfd_u128 << 120) | (u128::from(hash(&[site.as_bytes()]) >> 32) << 88);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), 40)
}

fn network_hash(tenant: &str, kind: NetworkKind, name: &str) -> u64 {
    let kind: &[u8] = match kind {
        NetworkKind::Application => b"application",
        NetworkKind::Shared => b"shared",
    };
    hash(&[tenant.as_bytes(), kind, name.as_bytes()])
}

/// FNV-1a over the parts, each ended by a zero byte (names have none), then the finaliser of SplitMix64, so that
/// short names spread over all bits. The same on every host and version: numbers of running networks hang on it.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts
        .iter()
        .flat_map(|part| part.iter().chain(std::iter::once(&0)))
    {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A network's /64: the site's /40 and the VNI.
pub(super) fn network_ipv6_prefix(site: Ipv6Net, vni: Vni) -> Ipv6Net {
    let bits = site.network().to_bits() | (u128::from(vni.get()) << 64);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), 64)
}

impl NetworkNumbers {
    /// The numbers of an application network: all reuse `application_prefix`.
    pub fn application(application_prefix: Ipv4Net, site_prefix: Ipv6Net, vni: Vni) -> Self {
        Self {
            ipv4_prefix: application_prefix,
            ipv4_block_length: BLOCK_LENGTH_APPLICATION,
            ipv6_prefix: network_ipv6_prefix(site_prefix, vni),
        }
    }

    /// The numbers of a shared network: the /18 of `shared_prefix` with this index.
    pub fn shared(shared_prefix: Ipv4Net, index: u32, site_prefix: Ipv6Net, vni: Vni) -> Self {
        let network = shared_prefix.network().to_bits() | (index << (32 - 18));
        Self {
            ipv4_prefix: Ipv4Net::new_assert(Ipv4Addr::from_bits(network), 18),
            ipv4_block_length: BLOCK_LENGTH_SHARED,
            ipv6_prefix: network_ipv6_prefix(site_prefix, vni),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinal(number: u64) -> HostOrdinal {
        HostOrdinal::try_from(number).unwrap()
    }

    #[test]
    fn numbers_never_change_between_versions() {
        assert_eq!(
            derive_vni("acme", NetworkKind::Application, "shop").get(),
            9_074_535
        );
        assert_eq!(site_ipv6_prefix("store-42").to_string(), "fdbc:a037:5700::/40");
    }

    #[test]
    fn a_host_owns_the_block_of_its_ordinal() {
        let site = site_ipv6_prefix("store-42");
        let vni = derive_vni("acme", NetworkKind::Application, "shop");
        let numbers = NetworkNumbers::application("172.19.0.0/16".parse().unwrap(), site, vni);
        assert_eq!(numbers.block_ipv4(ordinal(7)).to_string(), "172.19.7.0/24");
        assert_eq!(numbers.service_ipv4().to_string(), "172.19.0.1");
        let (ipv4, ipv6) = numbers.instance(ordinal(7), InstanceIndex::MIN).unwrap();
        assert_eq!(ipv4.to_string(), "172.19.7.2");
        assert_eq!(ipv6.segments()[6..], [7, 2]);

        let shared = NetworkNumbers::shared("100.96.0.0/11".parse().unwrap(), 127, site, vni);
        assert_eq!(shared.ipv4_prefix.to_string(), "100.127.192.0/18");
        assert_eq!(shared.block_ipv4(ordinal(254)).to_string(), "100.127.255.128/26");
        assert_eq!(shared.instances_per_block(), 61);
        assert!(
            shared
                .instance(ordinal(1), InstanceIndex::try_from(62).unwrap())
                .is_some()
        );
        assert!(
            shared
                .instance(ordinal(1), InstanceIndex::try_from(63).unwrap())
                .is_none()
        );
    }
}
