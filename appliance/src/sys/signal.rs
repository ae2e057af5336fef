//! The request to end, as a descriptor: SIGTERM and SIGINT no longer interrupt, they can be waited for.

use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a process is asked by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Termination {
    /// To end in its own time (SIGTERM).
    Asked,
    /// To end at once (SIGINT).
    AtOnce,
}

/// The signals that ask a process to end, readable when there is one.
pub(crate) struct Terminations {
    descriptor: OwnedFd,
}

impl Terminations {
    /// Blocks SIGTERM and SIGINT in the calling thread, and in those that it starts from here on. Call it before the
    /// first thread starts.
    pub(crate) fn block() -> io::Result<Self> {
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that it is given, and sigaddset is given numbers of signals that
        // exist.
        let signals = unsafe {
            libc::sigemptyset(signals.as_mut_ptr());
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(signals.as_mut_ptr(), libc::SIGINT);
            signals.assume_init()
        };
        // SAFETY: the set is initialised, and a null pointer says that the former mask isn't wanted.
        let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: the set is initialised, and −1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, &signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor, and nobody else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    /// Stands in for the signals: whatever is written into its other end as [`Terminations::SIGTERM`], and its end is
    /// SIGINT.
    #[cfg(test)]
    pub(crate) fn from_pipe(pipe: std::io::PipeReader) -> Self {
        Self {
            descriptor: pipe.into(),
        }
    }

    /// What the kernel writes for a SIGTERM, as far as it is looked at.
    #[cfg(test)]
    pub(crate) const SIGTERM: [u8; size_of::<libc::signalfd_siginfo>()] = {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        let (number, _) = bytes.split_at_mut(4);
        number.copy_from_slice(&libc::SIGTERM.to_ne_bytes());
        bytes
    };

    /// The next request, when there is one. What can't be understood is one to end at once.
    pub(crate) fn next(&self) -> Option<Termination> {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.descriptor, &mut bytes);
        // `ssi_signo` comes first.
        let signal = bytes
            .first_chunk()
            .map(|signal| libc::c_int::from_ne_bytes(*signal));
        match (read, signal) {
            (Ok(length), Some(libc::SIGTERM)) if length == bytes.len() => Some(Termination::Asked),
            (Err(Errno::AGAIN | Errno::INTR), _) => None,
            _ => Some(Termination::AtOnce),
        }
    }
}

impl AsFd for Terminations {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
