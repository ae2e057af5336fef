//! The Internet checksum (RFC 1071): one's complement sums, in a form that compilers vectorise.

use std::net::IpAddr;

/// A sum under way, not folded: big-endian 16-bit words added in native order and swapped once at the end
/// (RFC 1071 §2 B: the sum is independent of byte order).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
    pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> Self {
        let mut sum = Self::default();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum.add(&source.octets());
                sum.add(&destination.octets());
            }
            (source, destination) => {
                for address in [source, destination] {
                    match address {
                        IpAddr::V4(address) => sum.add(&address.to_ipv6_mapped().octets()),
                        IpAddr::V6(address) => sum.add(&address.octets()),
                    }
                }
            }
        }
        sum.add(&length.to_be_bytes());
        sum.add(&[0, protocol]);
        sum
    }

    /// Adds bytes that begin at an even offset of what is summed; an odd last byte is padded with zero, so only the
    /// last piece may have one.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(32);
        // Eight lanes of 32 bits added into 64: no carry is lost before 2³² additions.
        let mut lanes = [0_u64; 8];
        for chunk in &mut words {
            for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(4)) {
                *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        let mut total: u64 = lanes.iter().sum();
        let mut pairs = words.remainder().chunks_exact(2);
        for pair in &mut pairs {
            total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
        }
        if let [last] = pairs.remainder() {
            total += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        self.0 += (total & 0xffff_ffff) + (total >> 32);
    }

    /// The folded sum, as the bytes that stand in a packet, not inverted: what a partial checksum holds.
    pub fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(0).to_ne_bytes()
    }

    /// The checksum, as the bytes that stand in a packet.
    pub fn checksum(self) -> [u8; 2] {
        let [high, low] = self.folded();
        [!high, !low]
    }

    /// Whether bytes that include their own checksum sum up to what a correct packet does.
    pub fn is_correct(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

/// The checksum of `bytes` alone: an IPv4 header, an ICMPv4 message.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum = Sum::default();
    sum.add(bytes);
    sum.checksum()
}

/// What a checksum becomes when a 16-bit word under it changes from `old` to `new` (RFC 1624 equation 3).
pub fn update(checksum: [u8; 2], old: [u8; 2], new: [u8; 2]) -> [u8; 2] {
    let not = |word: [u8; 2]| u32::from(!u16::from_be_bytes(word));
    let mut sum = not(checksum) + not(old) + u32::from(u16::from_be_bytes(new));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(0)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let ours = u16::from_be_bytes(checksum(&bytes));
            // 0 and 0xffff are the two zeros of one's complement; an all-zero input gives 0xffff in both.
            prop_assert_eq!(ours, reference(&bytes));
        }

        #[test]
        fn an_updated_checksum_is_the_checksum_of_the_changed_bytes(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..64), new in any::<[u8; 2]>(),
        ) {
            bytes[0] |= 1; // not all zero, so that both zeros of one's complement don't meet
            let before = checksum(&bytes);
            let old = [bytes[2], bytes[3]];
            bytes[2..4].copy_from_slice(&new);
            prop_assert_eq!(update(before, old, new), checksum(&bytes));
        }
    }
}
