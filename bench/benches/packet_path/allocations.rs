//! An allocator that counts, so that every bench says how often an iteration asks for memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature")]
// SAFETY: every call goes on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Prints how often one iteration allocates, once it has warmed up.
pub(crate) fn per_iteration<T>(name: &str, mut iteration: impl FnMut() -> T) {
    per_input(name, [(), ()], |()| iteration());
}

/// The same, for an iteration that uses up its input.
#[expect(clippy::print_stdout, reason = "criterion prints beside it")]
pub(crate) fn per_input<I, T>(name: &str, [first, second]: [I; 2], mut iteration: impl FnMut(I) -> T) {
    // What was made on the first round is not made again. The result is dropped after it was counted.
    drop(iteration(first));
    let before = COUNT.load(Ordering::Relaxed);
    let result = iteration(second);
    let count = COUNT.load(Ordering::Relaxed) - before;
    drop(result);
    println!("{name:<36} {count} allocations");
}
