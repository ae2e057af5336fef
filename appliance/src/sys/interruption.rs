//! The wish to stop: SIGINT and SIGTERM noted instead of obeyed, for work that must undo itself before it ends.
//!
//! Unlike a blocked signal this is not inherited over `exec`: programs that are started meanwhile stop at once.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Notes SIGINT and SIGTERM from here on.
///
/// # Errors
/// What the kernel said.
pub(crate) fn note() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: a zeroed sigaction is a value: no flags, an empty mask; the handler is set below.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: `action` is whole, and its handler only stores to an atomic, which is async-signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether one of them has come since [`note`].
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

extern "C" fn handle(_signal: libc::c_int) {
    REQUESTED.store(true, Ordering::Relaxed);
}
