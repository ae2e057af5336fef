//! The four messages of WireGuard, told apart by type and length (§5.4.2–5.4.7 of the paper) before anything in them
//! is believed.

/// Length of a handshake initiation (§5.4.2).
pub const INITIATION_LENGTH: usize = 148;
/// Length of a handshake response (§5.4.3).
pub const RESPONSE_LENGTH: usize = 92;
/// Length of a cookie reply (§5.4.7).
pub const COOKIE_REPLY_LENGTH: usize = 64;
/// What a data message is longer than its packet (§5.4.6): type, receiver, counter, and the cipher's tag.
pub const DATA_OVERHEAD: usize = DATA_HEADER + TAG;

pub(super) const DATA_HEADER: usize = 16;
pub(super) const TAG: usize = 16;
/// Type byte and three reserved zero bytes, as one little-endian number.
pub(super) const TYPE_DATA: u32 = 4;
pub(super) const TYPE_INITIATION: u32 = 1;
pub(super) const TYPE_RESPONSE: u32 = 2;
pub(super) const TYPE_COOKIE_REPLY: u32 = 3;
/// Reject-After-Messages (§6.1): no counter of a session reaches it.
pub(super) const COUNTER_LIMIT: u64 = u64::MAX - (1 << 13);
/// Bits of a receiver index that number the sessions of one tunnel.
const TURN_BITS: u32 = 8;

/// The number of a tunnel on its lane, 24 bits. It should be random: who doesn't listen can't name a session then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelIndex(u32);

impl TunnelIndex {
    /// How many there are.
    pub const COUNT: u32 = 1 << (u32::BITS - TURN_BITS);

    /// The index made of the lowest 24 bits of a number.
    pub const fn from_low_bits(number: u32) -> Self {
        Self(number % Self::COUNT)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The number by which a receiver knows a session: its tunnel, and the session's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReceiverIndex(u32);

impl ReceiverIndex {
    /// The first number of a tunnel.
    pub const fn of(tunnel: TunnelIndex) -> Self {
        Self(tunnel.0 << TURN_BITS)
    }

    /// The number of the same tunnel with this turn.
    pub(super) fn in_turn(self, turn: u8) -> Self {
        Self(Self::of(self.tunnel()).0 | u32::from(turn))
    }

    /// The tunnel that it belongs to, if there is one.
    pub const fn tunnel(self) -> TunnelIndex {
        TunnelIndex(self.0 >> TURN_BITS)
    }

    /// The number as it stands in a message.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What a datagram claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Somebody wants a session.
    Initiation,
    /// An answer to an initiation of ours.
    Response {
        /// Who began.
        receiver: ReceiverIndex,
    },
    /// The receiver of an initiation of ours is under load.
    CookieReply {
        /// Who began.
        receiver: ReceiverIndex,
    },
    /// A sealed packet.
    Data {
        /// Whose session.
        receiver: ReceiverIndex,
        /// Its number in the session.
        counter: u64,
    },
}

impl Message {
    /// Tells a datagram by its type, its reserved bytes and its length. `None`: not WireGuard.
    pub fn classify(datagram: &[u8]) -> Option<Self> {
        let kind = word(datagram, 0)?;
        match (kind, datagram.len()) {
            (TYPE_INITIATION, INITIATION_LENGTH) => Some(Self::Initiation),
            (TYPE_RESPONSE, RESPONSE_LENGTH) => Some(Self::Response {
                receiver: ReceiverIndex(word(datagram, 8)?),
            }),
            (TYPE_COOKIE_REPLY, COOKIE_REPLY_LENGTH) => Some(Self::CookieReply {
                receiver: ReceiverIndex(word(datagram, 4)?),
            }),
            (TYPE_DATA, DATA_OVERHEAD..) => {
                let counter = u64::from(word(datagram, 8)?) | (u64::from(word(datagram, 12)?) << 32);
                (counter < COUNTER_LIMIT).then_some(Self::Data {
                    receiver: ReceiverIndex(word(datagram, 4)?),
                    counter,
                })
            }
            _ => None,
        }
    }
}

/// The little-endian number at `offset`.
fn word(datagram: &[u8], offset: usize) -> Option<u32> {
    let bytes = datagram.get(offset..offset + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The length of the IP packet at the start of `plaintext`, without the padding behind it; `None` when it isn't one,
/// or claims to be longer than what is there.
pub(super) fn ip_length(plaintext: &[u8]) -> Option<usize> {
    let field = |offset: usize| {
        let bytes = plaintext.get(offset..offset + 2)?;
        Some(usize::from(u16::from_be_bytes(bytes.try_into().ok()?)))
    };
    let (length, least) = match plaintext.first()? >> 4 {
        4 => (field(2)?, 20),
        6 => (field(4)? + 40, 40),
        _ => return None,
    };
    (length >= least && length <= plaintext.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(kind: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn messages_are_told_by_type_and_exact_length() {
        assert_eq!(Message::classify(&datagram(1, 148)), Some(Message::Initiation));
        for (kind, length) in [
            (1, 147),
            (1, 149),
            (2, 91),
            (2, 93),
            (3, 63),
            (4, 31),
            (0, 148),
            (5, 64),
        ] {
            assert_eq!(
                Message::classify(&datagram(kind, length)),
                None,
                "{kind} {length}"
            );
        }
        assert_eq!(Message::classify(&[1, 0, 0]), None);
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for byte in 1..4 {
            let mut bytes = datagram(4, 32);
            bytes[byte] = 1;
            assert_eq!(Message::classify(&bytes), None);
        }
    }

    #[test]
    fn receiver_and_counter_are_little_endian() {
        let mut bytes = datagram(4, 48);
        bytes[4..8].copy_from_slice(&[0x05, 0x03, 0x02, 0x01]);
        bytes[8] = 7;
        let receiver = ReceiverIndex(0x0102_0305);
        assert_eq!(
            Message::classify(&bytes),
            Some(Message::Data { receiver, counter: 7 })
        );
        assert_eq!(receiver.tunnel(), TunnelIndex(0x01_0203));

        let mut bytes = datagram(2, 92);
        bytes[8..12].copy_from_slice(&ReceiverIndex::of(TunnelIndex(9)).get().to_le_bytes());
        let receiver = ReceiverIndex::of(TunnelIndex(9));
        assert_eq!(Message::classify(&bytes), Some(Message::Response { receiver }));
    }

    #[test]
    fn counters_that_no_session_reaches_are_refused() {
        let mut bytes = datagram(4, 32);
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Message::classify(&bytes), None);
    }
}
