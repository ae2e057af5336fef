//! When a shard that sleeps must be woken by another one: the protocol alone, without rings and descriptors, so that
//! loom can try every order of its steps (`tests/loom`).
//!
//! ```text
//! the sleeper                        who has work for it
//! asleep ↔ true                      put the work into the ring
//! is there work? then don't sleep    asleep ↔ false; was it true? then wake the sleeper
//! ```
//!
//! Every access exchanges, so all of them have one order. An exchange of the sleeper that comes after one of the other
//! side sees the work that was put before it; one that comes before it is seen there. Nobody wakes a shard that is
//! awake, and of several who bring work to one that sleeps only the first does.

#[cfg(tidegate_loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(tidegate_loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether one shard sleeps.
pub(crate) struct Bell {
    asleep: AtomicBool,
}

impl Bell {
    /// The bell of a shard that is awake.
    pub(crate) fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
        }
    }

    /// Runs `wait`, and tells it whether it may sleep: not when `has_work` says that there is some.
    pub(crate) fn sleep<T>(&self, has_work: impl FnOnce() -> bool, wait: impl FnOnce(bool) -> T) -> T {
        self.asleep.swap(true, Ordering::AcqRel);
        let woken = wait(!has_work());
        self.asleep.swap(false, Ordering::AcqRel);
        woken
    }

    /// After work was put into a ring: whether its owner must be woken.
    pub(crate) fn must_wake(&self) -> bool {
        self.asleep.swap(false, Ordering::AcqRel)
    }
}
