//! A keyring that has the key of a slot at hand encrypts and decrypts without allocating.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use runseal::crypt::Keyring;
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::units::SECTOR;

#[test]
fn a_hit_allocates_nothing() {
    for choice in [EngineChoice::Auto, EngineChoice::Portable] {
        let keys = Keyring::new(choice, MemoryLock::Try).expect("keyring");
        let slot = keys.acquire().expect("slot");
        let (source, mut target) = (vec![1; 4 * SECTOR], vec![0; 4 * SECTOR]);
        let mut round = || {
            let before = ALLOCATIONS.get();
            keys.encrypt(slot, 9, &source, &mut target).expect("encrypts");
            keys.decrypt(slot, 9, &mut target).expect("decrypts");
            ALLOCATIONS.get() - before
        };
        let miss = round();
        assert_eq!((miss > 0 || choice == EngineChoice::Auto, round()), (true, 0), "{}", keys.engine());
    }
}

thread_local! {
    /// Allocations of this thread. AWS-LC's own, in C, are not seen.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
