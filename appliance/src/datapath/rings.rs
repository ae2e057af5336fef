//! What shards pass to each other: for every ordered pair of them a ring with full frames one way, and one with spent
//! frames back, so that every frame returns to the pool it came from.
//!
//! A shard that got something is woken at the end of the turn that brought it, once, and only when it sleeps
//! ([`super::bell`]). Spent frames wake nobody: their owner takes them back at its next turn. At most [`CAPACITY`]
//! frames are on their way between two shards; what comes beyond that is given back to the caller. A datapath with
//! one shard has no rings.

use super::bell::Bell;
use crate::sys::epoll::Waker;
use rtrb::{Consumer, Producer, RingBuffer};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use tidegate_stack::egress::{Handover, ShardId};
use tidegate_stack::frame::Frame;

/// Most frames of one shard that are with one other.
const CAPACITY: usize = 256;

/// One shard's ends of all its rings.
pub(super) struct Rings {
    /// In the order of the shards; none to itself.
    links: Vec<Option<Link>>,
    doorbell: Arc<Doorbell>,
}

/// The rings between two shards, as one of them sees them.
struct Link {
    outgoing: Producer<Handover>,
    returned: Consumer<Frame>,
    incoming: Consumer<Handover>,
    spent: Producer<Frame>,
    /// Own frames that the other one has.
    away: usize,
    /// Something was passed on in this turn.
    rings: bool,
    doorbell: Arc<Doorbell>,
}

/// How a shard is woken.
struct Doorbell {
    bell: Bell,
    waker: Waker,
}

impl Rings {
    /// The rings of `count` shards, in their order.
    pub(super) fn mesh(count: usize) -> io::Result<Vec<Self>> {
        let mut shards = Vec::with_capacity(count);
        for _ in 0..count {
            let doorbell = Doorbell {
                bell: Bell::new(),
                waker: Waker::new()?,
            };
            shards.push(Self {
                links: Vec::with_capacity(count),
                doorbell: Arc::new(doorbell),
            });
        }
        for number in 0..count {
            let (lower, upper) = shards.split_at_mut(number);
            let Some(one) = upper.first_mut() else { break };
            for other in lower {
                let (near, far) = link(&one.doorbell, &other.doorbell);
                one.links.push(Some(near));
                other.links.push(Some(far));
            }
            one.links.push(None);
        }
        Ok(shards)
    }

    /// A handle of what wakes this shard.
    pub(super) fn waker(&self) -> io::Result<Waker> {
        self.doorbell.waker.try_clone()
    }

    /// Back to rest after a wake-up; call before looking at what it was for.
    pub(super) fn rest(&self) {
        self.doorbell.waker.rest();
    }

    /// Runs `wait`, and tells it whether it may sleep: not while something waits in a ring.
    pub(super) fn sleep<T>(&self, wait: impl FnOnce(bool) -> T) -> T {
        let has_work = || self.links.iter().flatten().any(|link| !link.incoming.is_empty());
        self.doorbell.bell.sleep(has_work, wait)
    }

    /// Passes something to another shard; it comes back when the ring is full, or there is no such shard.
    pub(super) fn pass(&mut self, to: ShardId, handover: Handover) -> Result<(), Handover> {
        let link = self.links.get_mut(usize::from(to.0)).and_then(Option::as_mut);
        let Some(link) = link.filter(|link| link.away < CAPACITY) else {
            return Err(handover);
        };
        if let Err(rtrb::PushError::Full(handover)) = link.outgoing.push(handover) {
            return Err(handover);
        }
        link.away += 1;
        link.rings = true;
        Ok(())
    }

    /// Wakes the shards that got something since the last call and sleep.
    pub(super) fn ring(&mut self) {
        for link in self.links.iter_mut().flatten() {
            if std::mem::take(&mut link.rings) && link.doorbell.bell.must_wake() {
                link.doorbell.waker.wake();
            }
        }
    }

    /// How many shards there are.
    pub(super) fn count(&self) -> usize {
        self.links.len()
    }

    /// What shard `from` passed on.
    pub(super) fn receive(&mut self, from: usize) -> Option<Handover> {
        self.links.get_mut(from)?.as_mut()?.incoming.pop().ok()
    }

    /// Gives a spent frame back to shard `from`.
    pub(super) fn give_back(&mut self, from: usize, frame: Frame) {
        if let Some(Some(link)) = self.links.get_mut(from) {
            // It has room for every frame that can be here.
            let _ = link.spent.push(frame);
        }
    }

    /// An own frame that came back.
    pub(super) fn reclaim(&mut self) -> Option<Frame> {
        self.links.iter_mut().flatten().find_map(|link| {
            let frame = link.returned.pop().ok()?;
            link.away -= 1;
            Some(frame)
        })
    }
}

impl AsFd for Rings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.waker.as_fd()
    }
}

/// The two sides of the rings between two shards.
fn link(one: &Arc<Doorbell>, other: &Arc<Doorbell>) -> (Link, Link) {
    let (outgoing, far_incoming) = RingBuffer::new(CAPACITY);
    let (far_spent, returned) = RingBuffer::new(CAPACITY);
    let (far_outgoing, incoming) = RingBuffer::new(CAPACITY);
    let (spent, far_returned) = RingBuffer::new(CAPACITY);
    let near = Link {
        outgoing,
        returned,
        incoming,
        spent,
        away: 0,
        rings: false,
        doorbell: Arc::clone(other),
    };
    let far = Link {
        outgoing: far_outgoing,
        returned: far_returned,
        incoming: far_incoming,
        spent: far_spent,
        away: 0,
        rings: false,
        doorbell: Arc::clone(one),
    };
    (near, far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::epoll::Poller;
    use std::time::Duration;
    use tidegate_stack::frame::Offload;
    use tidegate_stack::plan::PortId;

    fn packet(byte: u8) -> Handover {
        Handover::Judge {
            frame: Frame::from_packet(&[byte; 64], Offload::NONE),
            port: PortId(u32::from(byte)),
        }
    }

    fn frame(handover: Handover) -> Frame {
        let Handover::Judge { frame, .. } = handover;
        frame
    }

    #[test]
    fn every_shard_reaches_every_other_one_and_gets_its_frames_back() {
        let mut shards = Rings::mesh(3).unwrap();
        for from in 0..3_u8 {
            for to in (0..3_u8).filter(|to| *to != from) {
                assert!(shards[usize::from(from)].pass(ShardId(to), packet(from)).is_ok());
                let got = shards[usize::from(to)].receive(usize::from(from)).unwrap();
                let got = frame(got);
                assert_eq!(got.packet(), [from; 64]);
                shards[usize::from(to)].give_back(usize::from(from), got);
                assert_eq!(shards[usize::from(from)].reclaim().unwrap().packet(), [from; 64]);
                assert!(shards[usize::from(from)].reclaim().is_none());
            }
            assert!(
                shards[usize::from(from)]
                    .pass(ShardId(from), packet(from))
                    .is_err()
            );
            assert!(shards[usize::from(from)].pass(ShardId(3), packet(from)).is_err());
        }
    }

    #[test]
    fn a_full_ring_gives_back_what_it_cannot_take_until_spent_frames_return() {
        let mut shards = Rings::mesh(2).unwrap();
        for _ in 0..CAPACITY {
            assert!(shards[0].pass(ShardId(1), packet(1)).is_ok());
        }
        assert!(shards[0].pass(ShardId(1), packet(2)).is_err());
        let spent = frame(shards[1].receive(0).unwrap());
        assert!(
            shards[0].pass(ShardId(1), packet(2)).is_err(),
            "it is still away, though the ring has room"
        );
        shards[1].give_back(0, spent);
        assert!(shards[0].reclaim().is_some());
        assert!(shards[0].pass(ShardId(1), packet(2)).is_ok());
    }

    #[test]
    fn a_shard_that_sleeps_is_woken_once_and_one_that_has_work_does_not_sleep() {
        let mut shards = Rings::mesh(2).unwrap();
        let mut poller = Poller::new(1).unwrap();
        poller.add(shards[1].as_fd(), 1).unwrap();
        let (first, second) = shards.split_at_mut(1);
        let (sender, sleeper) = (&mut first[0], &mut second[0]);
        let mut wakes = |sender: &mut Rings| {
            sender.ring();
            poller.wait(Some(Duration::from_millis(1))).unwrap();
            poller.ready() > 0
        };
        assert!(sender.pass(ShardId(1), packet(1)).is_ok());
        assert!(!wakes(sender), "it is awake");
        sleeper.sleep(|may_sleep| assert!(!may_sleep));
        assert!(sleeper.receive(0).is_some());
        sleeper.sleep(|may_sleep| {
            assert!(may_sleep);
            assert!(sender.pass(ShardId(1), packet(2)).is_ok());
            assert!(wakes(sender));
        });
        sleeper.rest();
        assert!(!wakes(sender));
    }
}
