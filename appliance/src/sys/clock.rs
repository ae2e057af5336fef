//! The one clock: `CLOCK_BOOTTIME`, which goes on while the machine sleeps (leases count sleep).

use rustix::time::{ClockId, clock_gettime};
use tidegate_stack::time::Instant;

/// Now.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_goes_on() {
        let before = now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(now().saturating_since(before) >= Duration::from_millis(2));
    }
}
