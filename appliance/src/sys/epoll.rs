//! Waiting for descriptors ([`Poller`]), and waking a thread that waits ([`Waker`]).

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What a descriptor is ready for, and the token it was added with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// The token.
    pub(crate) token: u64,
    /// It can be read. Also set for a broken one, where a read tells what broke.
    pub(crate) readable: bool,
    /// The other side, or the device behind it, is gone, or an error is pending.
    pub(crate) broken: bool,
}

/// Descriptors that are waited for together, level-triggered.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    /// A poller that tells of up to `capacity` descriptors at once.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(capacity.max(1)),
        })
    }

    /// Waits for `descriptor` to become readable, too.
    pub(crate) fn add(&self, descriptor: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, descriptor, data, epoll::EventFlags::IN)?)
    }

    /// No longer waits for `descriptor`. Closing it isn't enough where duplicates of it live on: epoll watches the
    /// open file, not the number.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        match epoll::delete(&self.epoll, descriptor) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something is ready or `timeout` is over (rounded up to milliseconds, so that a wait never ends
    /// before the time that it is for). A signal ends the wait, too.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            // A day is as good as for ever, and fits in every kernel's range.
            tv_sec: i64::try_from(timeout.as_secs().min(86_400)).unwrap_or(0),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How many descriptors the last wait found ready.
    pub(crate) fn ready(&self) -> usize {
        self.events.len()
    }

    /// The `index`-th of them. By index, so that the caller may change what is waited for between two of them.
    pub(crate) fn readiness(&self, index: usize) -> Option<Readiness> {
        let event = *self.events.get(index)?;
        let (flags, data) = (event.flags, event.data);
        let broken = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        Some(Readiness {
            token: data.u64(),
            readable: broken || flags.contains(epoll::EventFlags::IN),
            broken,
        })
    }
}

/// Wakes the thread whose [`Poller`] waits for it. Wake-ups that come before it looks are one.
pub(crate) struct Waker {
    descriptor: OwnedFd,
}

impl Waker {
    /// A waker at rest.
    pub(crate) fn new() -> io::Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { descriptor })
    }

    /// A second handle of the same waker.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            descriptor: self.descriptor.try_clone()?,
        })
    }

    /// Wakes. A counter that is full has woken already.
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
    }

    /// Back to rest; call before looking at what the wake-up was for.
    pub(crate) fn rest(&self) {
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&self.descriptor, &mut count);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waker_ends_a_wait_once() {
        let waker = Waker::new().unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(waker.as_fd(), 7).unwrap();
        let handle = waker.try_clone().unwrap();
        handle.wake();
        handle.wake();
        poller.wait(None).unwrap();
        let expected = Readiness {
            token: 7,
            readable: true,
            broken: false,
        };
        assert_eq!(poller.readiness(0), Some(expected));
        waker.rest();
        poller.wait(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(poller.ready(), 0);
    }

    #[test]
    fn a_removed_descriptor_is_silent_though_a_duplicate_lives() {
        let waker = Waker::new().unwrap();
        let duplicate = waker.try_clone().unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(waker.as_fd(), 1).unwrap();
        poller.remove(waker.as_fd()).unwrap();
        poller.remove(waker.as_fd()).unwrap();
        drop(waker);
        duplicate.wake();
        poller.wait(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(poller.ready(), 0);
    }
}
