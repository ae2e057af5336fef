//! The protocol by which shards wake each other, under loom: two shards that bring work, and one that sleeps when it
//! sees none, in every order of their steps. A lost wake-up would be a sleep that nothing ends, which loom reports.

#[path = "../../../appliance/src/datapath/bell.rs"]
mod bell;

#[cfg(test)]
mod tests {
    use super::bell::Bell;
    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread;

    /// Stands in for the eventfd in an epoll: a wake-up that comes before the sleep ends it.
    #[derive(Default)]
    struct Eventfd {
        count: Mutex<usize>,
        written: Condvar,
    }

    impl Eventfd {
        fn write(&self) {
            *self.count.lock().unwrap() += 1;
            self.written.notify_one();
        }

        fn wait(&self) {
            let mut count = self.count.lock().unwrap();
            while *count == 0 {
                count = self.written.wait(count).unwrap();
            }
        }

        fn rest(&self) {
            *self.count.lock().unwrap() = 0;
        }
    }

    struct Shared {
        bell: Bell,
        eventfd: Eventfd,
        /// A ring for each that brings work: how many pieces are in it.
        rings: [AtomicUsize; 2],
    }

    impl Shared {
        fn bring(&self, ring: usize) {
            self.rings[ring].fetch_add(1, Ordering::Release);
            if self.bell.must_wake() {
                self.eventfd.write();
            }
        }

        fn take(&self) -> usize {
            let rings = self.rings.iter();
            rings.map(|ring| ring.swap(0, Ordering::Acquire)).sum()
        }

        fn has_work(&self) -> bool {
            self.rings.iter().any(|ring| ring.load(Ordering::Acquire) > 0)
        }
    }

    fn all_work_is_done(pieces: [usize; 2]) {
        let mut order = loom::model::Builder::new();
        // Enough for every pair of steps to meet; without a bound it takes minutes.
        order.preemption_bound = Some(3);
        order.check(move || {
            let shared = Arc::new(Shared {
                bell: Bell::new(),
                eventfd: Eventfd::default(),
                rings: [AtomicUsize::new(0), AtomicUsize::new(0)],
            });
            let bringers: Vec<_> = (0..2)
                .filter(|ring| pieces[*ring] > 0)
                .map(|ring| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        for _ in 0..pieces[ring] {
                            shared.bring(ring);
                        }
                    })
                })
                .collect();
            let mut done = 0;
            while done < pieces[0] + pieces[1] {
                done += shared.take();
                if done == pieces[0] + pieces[1] {
                    break;
                }
                shared.bell.sleep(
                    || shared.has_work(),
                    |may_sleep| {
                        if may_sleep {
                            shared.eventfd.wait();
                            shared.eventfd.rest();
                        }
                    },
                );
            }
            for bringer in bringers {
                bringer.join().unwrap();
            }
        });
    }

    #[test]
    fn one_that_brings_work_twice_is_never_slept_through() {
        all_work_is_done([2, 0]);
    }

    #[test]
    fn two_that_bring_work_are_never_slept_through() {
        all_work_is_done([1, 1]);
    }
}
