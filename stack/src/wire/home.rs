//! The home of a flow: a number that every host computes alike from any packet of it, whichever way it goes. A host of
//! `n` shards keeps the flow on shard `home % n`, and a sender chooses the lane of a peer's datapath by it.
//!
//! It is MurmurHash3_x86_32 (A. Appleby, public domain: `smhasher/src/MurmurHash3.cpp`) with seed 0 over these 44 bytes,
//! numbers in network order:
//!
//! | bytes | what |
//! |---|---|
//! | 0…15 | the lower end's address; IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) |
//! | 16…31 | the higher end's address |
//! | 32…33 | the lower end's port; of an ICMP echo the identifier; 0 without ports, and in fragments |
//! | 34…35 | the higher end's port, likewise |
//! | 36…38 | the network's VNI |
//! | 39 | the IP protocol number; with IPv6 fragments that of the fragmented packet |
//! | 40…43 | of a fragment the datagram's identification (RFC 791 §3.1, RFC 8200 §4.5), else 0 |
//!
//! The lower end is the one with the lower address, or of equal addresses the lower port. An ICMP error has the home of
//! the packet that it quotes. The function has no seed and never changes: hosts of different versions meet in it. Whoever
//! chooses ports can choose a shard; tables are hashed with a seed of their own.

use super::FlowKey;

/// The home of a flow's packets. `identification` is that of a fragment's datagram, and 0 for a whole packet: all parts
/// of a datagram have one home, which needn't be that of the datagram's flow.
pub fn home(key: &FlowKey, identification: u32) -> u32 {
    let mut bytes = [0; 44];
    bytes[..40].copy_from_slice(&key.octets());
    bytes[40..].copy_from_slice(&identification.to_be_bytes());
    murmur3(&bytes)
}

/// MurmurHash3_x86_32, seed 0, of whole blocks.
fn murmur3<const LENGTH: usize>(bytes: &[u8; LENGTH]) -> u32 {
    let mut hash = 0_u32;
    let (blocks, _) = bytes.as_chunks::<4>();
    for block in blocks {
        let mixed = u32::from_le_bytes(*block)
            .wrapping_mul(0xcc9e_2d51)
            .rotate_left(15)
            .wrapping_mul(0x1b87_3593);
        hash = (hash ^ mixed)
            .rotate_left(13)
            .wrapping_mul(5)
            .wrapping_add(0xe654_6b64);
    }
    hash ^= LENGTH as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Vni;
    use crate::wire::{Endpoints, protocol};

    #[test]
    fn the_hash_is_the_published_one() {
        // Values that implementations of MurmurHash3_x86_32 agree on.
        assert_eq!(murmur3(b""), 0);
        assert_eq!(murmur3(b"test"), 0xba6b_d213);
        assert_eq!(murmur3(b"\x21\x43\x65\x87"), 0xf55b_516b);
    }

    #[test]
    fn homes_never_change_between_hosts_and_versions() {
        let vectors = tidegate_fixtures::home_vectors().unwrap();
        assert!(vectors.len() >= 16);
        for vector in vectors {
            let endpoints = Endpoints {
                protocol: vector.protocol,
                source: vector.source,
                source_port: vector.source_port,
                destination: vector.destination,
                destination_port: vector.destination_port,
            };
            let vni = Vni::try_from(u64::from(vector.vni)).unwrap();
            for endpoints in [endpoints, endpoints.reversed()] {
                let (key, _) = FlowKey::of(vni, &endpoints);
                assert_eq!(home(&key, vector.identification), vector.home, "{vector:?}");
            }
        }
    }

    /// Pearson's test on `home % n` over connections as hosts make them: ephemeral ports that count up in steps of two.
    #[test]
    fn homes_spread_evenly_over_any_number_of_shards() {
        for shards in 2..=64_u32 {
            let mut filled = vec![0_u32; shards as usize];
            let each = 200;
            for number in 0..shards * each {
                let endpoints = Endpoints {
                    protocol: protocol::TCP,
                    source: std::net::IpAddr::from([172, 19, 1, 2 + (number / 16_000) as u8]),
                    source_port: (32_768 + 2 * (number % 16_000)) as u16,
                    destination: std::net::IpAddr::from([172, 19, 2, 2]),
                    destination_port: 80,
                };
                let (key, _) = FlowKey::of(Vni::MIN, &endpoints);
                filled[(home(&key, 0) % shards) as usize] += 1;
            }
            let square = |count: &u32| f64::from(count.abs_diff(each)).powi(2) / f64::from(each);
            let chi_square: f64 = filled.iter().map(square).sum();
            let degrees = f64::from(shards - 1);
            // Mean and variance of the distribution are k and 2k; four deviations, and room for its skew.
            let most = degrees + 4.0 * (2.0 * degrees).sqrt() + 6.0;
            assert!(chi_square < most, "{shards} shards: {chi_square} of {most}");
        }
    }
}
