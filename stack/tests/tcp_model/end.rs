//! An end of a TCP connection with real sequence, acknowledgement and window logic (RFC 9293 §3.10), and no clock: it sends
//! what it may whenever it is asked to. Numbers are offsets into its stream: 0 is the SYN, the FIN comes behind the data.

use super::random::Random;
use tidegate_stack::wire::tcp_flags::{ACK, FIN, RST, SYN};

/// A segment on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    pub(crate) scale: Option<u8>,
    pub(crate) payload: u16,
}

pub(crate) struct End {
    pub(crate) active: bool,
    initial: u32,
    /// Bytes that it has to send.
    length: u64,
    scale: Option<u8>,
    capacity: u64,
    /// The first number that isn't acknowledged; behind the highest that was sent; what the other end has room for.
    una: u64,
    max: u64,
    edge: u64,
    largest_window: u64,
    /// The other end's initial number, when its SYN has come.
    other: Option<u32>,
    scaled: bool,
    other_scale: u8,
    next: u64,
    /// What it has told to have room for: never taken back.
    told: u64,
    ahead: Vec<(u64, u64)>,
    other_fin: Option<u64>,
    unread: u64,
    pub(crate) dead: bool,
}

impl End {
    pub(crate) fn new(active: bool, random: &mut Random) -> Self {
        let scales = [None, Some(0), Some(3), Some(7), Some(14)];
        Self {
            active,
            initial: if random.one_in(4) {
                u32::MAX - random.below(2000) as u32
            } else {
                random.next() as u32
            },
            length: [0, random.below(500), random.below(20_000), random.below(400_000)]
                [random.below(4) as usize],
            scale: scales[random.below(5) as usize],
            capacity: [1 + random.below(100), random.below(9000) + 500, 65_535, 300_000]
                [random.below(4) as usize],
            una: 0,
            max: 0,
            edge: 1,
            largest_window: 0,
            other: None,
            scaled: false,
            other_scale: 0,
            next: 0,
            told: 0,
            ahead: Vec::new(),
            other_fin: None,
            unread: 0,
            dead: false,
        }
    }

    fn end_of_stream(&self) -> u64 {
        self.length + 2
    }

    fn number(&self, offset: u64) -> u32 {
        self.initial.wrapping_add(offset as u32)
    }

    fn is_open(&self) -> bool {
        self.una >= 1 && self.other.is_some()
    }

    /// Whether it has said all, is understood, and has heard all.
    pub(crate) fn is_done(&self) -> bool {
        self.una == self.end_of_stream() && self.other_fin.is_some_and(|fin| self.next >= fin)
    }

    /// The application reads.
    pub(crate) fn read(&mut self, random: &mut Random) {
        self.unread -= random.below(self.unread + 1);
    }

    /// The application reads all, and gives it more room.
    pub(crate) fn drain(&mut self) {
        self.unread = 0;
        self.capacity = self.capacity.max(300_000);
    }

    fn segment(&mut self, flags: u8, offset: u64, payload: u64) -> Wire {
        let shift = if self.scaled && flags & SYN == 0 {
            self.scale.unwrap_or(0)
        } else {
            0
        };
        let free = self.capacity.saturating_sub(self.unread);
        let window = ((self.next + free).max(self.told) - self.next) >> shift;
        let window = window.min(65_535);
        self.told = self.told.max(self.next + (window << shift));
        self.max = self
            .max
            .max(offset + payload + u64::from(flags & (SYN | FIN) != 0));
        let acknowledgement = self.other.map_or(0, |other| other.wrapping_add(self.next as u32));
        let offers = flags & SYN != 0 && (self.other.is_none() || self.scaled);
        Wire {
            flags,
            sequence: self.number(offset),
            acknowledgement: if flags & ACK != 0 { acknowledgement } else { 0 },
            window: window as u16,
            scale: self.scale.filter(|_| offers),
            payload: payload as u16,
        }
    }

    /// Data from `offset` on, `most` bytes at most, with the FIN if it comes to that.
    fn data(&mut self, offset: u64, most: u64) -> Wire {
        let data_end = self.end_of_stream() - 1;
        let payload = data_end.saturating_sub(offset).min(most).min(60_000);
        let fin = offset + payload == data_end && most > payload;
        self.segment(if fin { ACK | FIN } else { ACK }, offset, payload)
    }

    /// What it says now.
    pub(crate) fn send(&mut self, random: &mut Random) -> Option<Wire> {
        if self.dead {
            return None;
        }
        if !self.is_open() {
            return match self.other {
                Some(_) => Some(self.segment(SYN | ACK, 0, 0)),
                None if self.active => Some(self.segment(SYN, 0, 0)),
                None => None,
            };
        }
        let room = self.edge.saturating_sub(self.max);
        let is_all_sent = self.max == self.end_of_stream();
        Some(match random.below(8) {
            0..=3 if room > 0 && !is_all_sent => {
                let most = 1 + random.below(room);
                self.data(self.max, most)
            }
            // The same again, cut in another way.
            4 | 5 if self.una < self.max => {
                let most = 1 + random.below(self.max - self.una);
                self.data(self.una, most)
            }
            // A probe of a closed window.
            6 if room == 0 && self.una == self.max && !is_all_sent => self.data(self.max, 1),
            // A keepalive, with or without a byte.
            7 if self.una == self.max => {
                let garbage = random.below(2);
                let mut wire = self.segment(ACK, self.max, 0);
                wire.sequence = wire.sequence.wrapping_sub(1);
                wire.payload = garbage as u16;
                wire
            }
            _ => self.segment(ACK, self.max, 0),
        })
    }

    /// What makes the connection go on, as a timer would: the oldest thing that isn't acknowledged, or the next.
    pub(crate) fn insist(&mut self, random: &mut Random) -> Option<Wire> {
        if self.dead || !self.is_open() {
            return self.send(random);
        }
        let from = self.una;
        let most = self.edge.saturating_sub(from).max(1);
        Some(if from < self.end_of_stream() {
            self.data(from, most)
        } else {
            self.segment(ACK, self.max, 0)
        })
    }

    /// Gives up.
    pub(crate) fn abort(&mut self) -> Wire {
        self.dead = true;
        let flags = if self.other.is_some() { RST | ACK } else { RST };
        self.segment(flags, self.max, 0)
    }

    /// Where a number of the other end lies in its stream.
    fn offset(&self, sequence: u32) -> Option<i64> {
        let expected = self.other?.wrapping_add(self.next as u32);
        Some(self.next as i64 + i64::from(sequence.wrapping_sub(expected) as i32))
    }

    fn acknowledged(&self, wire: &Wire) -> i64 {
        self.una as i64 + i64::from(wire.acknowledgement.wrapping_sub(self.number(self.una)) as i32)
    }

    /// Whether it would make use of a segment (RFC 9293 §3.10.7.4, RFC 5961 §5.2).
    pub(crate) fn would_use(&self, wire: &Wire) -> bool {
        if self.dead {
            return false;
        }
        let acknowledged = self.acknowledged(wire);
        let Some(start) = self.offset(wire.sequence) else {
            let accepts = self.max == 1 && wire.flags == SYN | ACK && acknowledged == 1;
            return wire.flags == SYN || accepts;
        };
        let end = start + i64::from(wire.payload) + i64::from(wire.flags & FIN != 0);
        let (next, told) = (self.next as i64, self.told as i64);
        if wire.flags & SYN != 0 {
            return self.una == 0 && wire.flags & ACK != 0 && acknowledged == 1;
        }
        let in_window = start < told && end > next || start == next && end == start;
        let oldest = self.una as i64 - self.largest_window as i64;
        if !in_window || acknowledged > self.max as i64 || acknowledged < oldest {
            return false;
        }
        let room = acknowledged + (i64::from(wire.window) << if self.scaled { self.other_scale } else { 0 });
        wire.flags & RST != 0 || end > next || acknowledged > self.una as i64 || room > self.edge as i64
    }

    /// Takes a segment.
    pub(crate) fn receive(&mut self, wire: &Wire) {
        if self.dead || wire.flags & RST != 0 {
            if self.offset(wire.sequence) == Some(self.next as i64) {
                self.dead = true;
            }
            return;
        }
        if wire.flags & SYN != 0 {
            if self.other.is_none() {
                let is_answer = wire.flags & ACK != 0;
                if is_answer && (self.max != 1 || self.acknowledged(wire) != 1) {
                    return;
                }
                self.other = Some(wire.sequence);
                self.scaled = self.scale.is_some() && wire.scale.is_some();
                self.other_scale = wire.scale.unwrap_or(0);
                self.next = 1;
                self.told += 1;
                self.edge = 1 + u64::from(wire.window);
                self.largest_window = u64::from(wire.window);
            }
            if wire.flags & ACK != 0 && self.acknowledged(wire) == 1 && self.una == 0 && self.max >= 1 {
                self.una = 1;
            }
            return;
        }
        if !self.would_use(wire) {
            return;
        }
        let acknowledged = self.acknowledged(wire);
        let window = u64::from(wire.window) << if self.scaled { self.other_scale } else { 0 };
        if acknowledged >= self.una as i64 {
            self.una = acknowledged as u64;
            self.edge = self.edge.max(self.una + window);
            self.largest_window = self.largest_window.max(window);
        }
        let Some(start) = self.offset(wire.sequence) else {
            return;
        };
        let end = start + i64::from(wire.payload) + i64::from(wire.flags & FIN != 0);
        if end > start && self.una >= 1 {
            if wire.flags & FIN != 0 {
                self.other_fin = Some(end as u64);
            }
            self.ahead.push((start.max(0) as u64, end as u64));
            self.ahead.sort_unstable();
            let before = self.next;
            for (start, end) in &self.ahead {
                if *start <= self.next {
                    self.next = self.next.max(*end);
                }
            }
            self.ahead.retain(|(_, end)| *end > self.next);
            self.unread += self.next - before;
        }
    }

    /// The highest number that it has told to have room for, and the next one that it expects, as the other end counts.
    pub(crate) fn expects(&self) -> Option<(u32, u32)> {
        let other = self.other?;
        Some((
            other.wrapping_add(self.told as u32),
            other.wrapping_add(self.next as u32),
        ))
    }
}
