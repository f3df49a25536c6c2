//! Locks that know their order, and atomics: of parking_lot and std, or, under the feature `loom`, of a model checker.
//!
//! A lock is taken only while all locks that the thread holds stand before it in [`rank`]; debug builds assert it, and
//! release builds pay nothing. The checker explores interleavings and weak memory instead, and knows no ranks: its threads
//! share one thread of the machine.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

#[cfg(not(feature = "loom"))]
pub use std::sync::atomic;

#[cfg(feature = "loom")]
pub use loom::sync::atomic;

use self::order::Held;

/// The order of locks, from the first to be taken to the last.
pub mod rank {
    /// Moves of directories (`fs/rename.rs`).
    pub const MOVES: u8 = 10;
    /// Entries of a directory; of two, that with the lower inode number comes first.
    pub const ENTRIES: u8 = 20;
    /// Attributes of one inode.
    pub const META: u8 = 30;
    /// A shard of the inode table.
    pub const SHARD: u8 = 40;
    /// The record of losses.
    pub const LOSSES: u8 = 42;
    /// The count of its changes.
    pub const LOSS_CHANGES: u8 = 44;
    /// The layout of a content.
    pub const LAYOUT: u8 = 50;
    /// Pooled buffers.
    pub const BUFFERS: u8 = 60;
    /// Counts of shared sectors.
    pub const SHARED: u8 = 62;
    /// The allocator of an arena.
    pub const ARENA: u8 = 64;
    /// Sectors set aside behind the limit.
    pub const RESERVE: u8 = 66;
    /// What the discarder is to do.
    pub const DISCARD: u8 = 68;
    /// A way of the cipher cache.
    pub const WAY: u8 = 70;
    /// The run key.
    pub const RUN_KEY: u8 = 72;
    /// The list of free key slots.
    pub const FREE_SLOTS: u8 = 74;
    /// Burst and sleep of the latency holder.
    pub const LATENCY: u8 = 80;
}

/// A mutex of this rank.
#[derive(Default)]
pub struct Mutex<const RANK: u8, T>(raw::Mutex<T>);

/// A readers-writer lock of this rank.
#[derive(Default)]
pub struct RwLock<const RANK: u8, T>(raw::RwLock<T>);

/// A condition, waited for under a [`Mutex`].
#[derive(Default)]
pub struct Condvar(raw::Condvar);

/// A held lock.
pub struct Guard<const RANK: u8, G> {
    // Unlocked before it is struck off.
    guard: G,
    _held: Held<RANK>,
}

/// See [`Guard`].
pub type MutexGuard<'a, const RANK: u8, T> = Guard<RANK, raw::MutexGuard<'a, T>>;
/// See [`Guard`].
pub type ReadGuard<'a, const RANK: u8, T> = Guard<RANK, raw::RwLockReadGuard<'a, T>>;
/// See [`Guard`].
pub type WriteGuard<'a, const RANK: u8, T> = Guard<RANK, raw::RwLockWriteGuard<'a, T>>;

impl<const RANK: u8, T> Mutex<RANK, T> {
    /// Unlocked.
    pub fn new(value: T) -> Self {
        Self(raw::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, RANK, T> {
        let held = Held::after_all(0);
        Guard { guard: self.0.lock(), _held: held }
    }

    /// The lock if nobody has it: who does not wait cannot wait for each other.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, RANK, T>> {
        let guard = self.0.try_lock()?;
        Some(Guard { guard, _held: Held::beside(0) })
    }
}

impl<const RANK: u8, T> RwLock<RANK, T> {
    /// Unlocked.
    pub fn new(value: T) -> Self {
        Self(raw::RwLock::new(value))
    }

    /// Waits until nobody writes.
    pub fn read(&self) -> ReadGuard<'_, RANK, T> {
        let held = Held::after_all(0);
        Guard { guard: self.0.read(), _held: held }
    }

    /// Waits until nobody else reads or writes.
    pub fn write(&self) -> WriteGuard<'_, RANK, T> {
        self.write_nth(0)
    }

    /// As [`RwLock::write`], where several locks of one rank are taken: in ascending `order`.
    pub fn write_nth(&self, order: u64) -> WriteGuard<'_, RANK, T> {
        let held = Held::after_all(order);
        Guard { guard: self.0.write(), _held: held }
    }
}

impl Condvar {
    /// Wakes whoever waits.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Waits, perhaps for nothing.
    pub fn wait<const RANK: u8, T>(&self, guard: &mut MutexGuard<'_, RANK, T>) {
        self.0.wait(&mut guard.guard);
    }

    /// As [`Condvar::wait`], until `deadline` at most; whether it came to that.
    pub fn wait_until<const RANK: u8, T>(&self, guard: &mut MutexGuard<'_, RANK, T>, deadline: Instant) -> bool {
        self.0.wait_until(&mut guard.guard, deadline).timed_out()
    }
}

impl<const RANK: u8, G: Deref> Deref for Guard<RANK, G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<const RANK: u8, G: DerefMut> DerefMut for Guard<RANK, G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

#[cfg(not(feature = "loom"))]
mod raw {
    pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

/// Does `work` in every order of its threads that takes few preemptions, and with every value that a load may see.
#[cfg(all(test, feature = "loom"))]
pub fn explore(work: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.max_duration = Some(std::time::Duration::from_secs(15));
    model.check(work);
}

/// Locks held by this thread.
#[cfg(all(debug_assertions, not(feature = "loom")))]
mod order {
    use std::cell::RefCell;

    /// More are never held at once.
    const MOST: usize = 16;

    thread_local! {
        /// In no order; a free place is 0. No vector: nothing is allocated on the way of a request.
        static LOCKS: RefCell<[(u8, u64); MOST]> = const { RefCell::new([(0, 0); MOST]) };
    }

    /// One entry of [`LOCKS`].
    pub struct Held<const RANK: u8>(u64);

    impl<const RANK: u8> Held<RANK> {
        /// A lock that all locks held now come before.
        #[track_caller]
        pub fn after_all(order: u64) -> Self {
            let wanted = (RANK, order);
            let last = LOCKS.try_with(|locks| locks.borrow().iter().copied().max());
            if let Ok(Some(held)) = last {
                assert!(held < wanted, "a lock of rank {wanted:?} is taken while one of rank {held:?} is held");
            }
            Self::beside(order)
        }

        /// A lock that was had without waiting.
        pub fn beside(order: u64) -> Self {
            Self::swap((0, 0), (RANK, order));
            Self(order)
        }

        /// A thread that ends has lost its list; then nothing is checked any more.
        fn swap(old: (u8, u64), new: (u8, u64)) {
            let _ = LOCKS.try_with(|locks| {
                let mut locks = locks.borrow_mut();
                *locks.iter_mut().find(|lock| **lock == old).expect("locks held are few and listed") = new;
            });
        }
    }

    impl<const RANK: u8> Drop for Held<RANK> {
        fn drop(&mut self) {
            Self::swap((RANK, self.0), (0, 0));
        }
    }
}

#[cfg(not(all(debug_assertions, not(feature = "loom"))))]
mod order {
    /// Nothing is noted.
    pub struct Unnoted<const RANK: u8>;

    pub use Unnoted as Held;

    impl<const RANK: u8> Unnoted<RANK> {
        pub fn after_all(_: u64) -> Self {
            Self
        }

        pub fn beside(_: u64) -> Self {
            Self
        }
    }
}

/// The checker's locks with the methods of parking_lot.
#[cfg(feature = "loom")]
mod raw {
    use std::ops::{Deref, DerefMut};
    use std::time::Instant;

    use loom::sync as model;
    pub use loom::sync::{RwLockReadGuard, RwLockWriteGuard};

    pub use self::{
        CheckedCondvar as Condvar, CheckedGuard as MutexGuard, CheckedMutex as Mutex, CheckedRwLock as RwLock,
    };

    const SOUND: &str = "the checker stops at the first panic";

    #[derive(Default)]
    pub struct CheckedMutex<T>(model::Mutex<T>);
    #[derive(Default)]
    pub struct CheckedRwLock<T>(model::RwLock<T>);
    #[derive(Default)]
    pub struct CheckedCondvar(model::Condvar);

    /// Empty while it waits only.
    pub struct CheckedGuard<'a, T>(&'a CheckedMutex<T>, Option<model::MutexGuard<'a, T>>);

    pub struct WaitResult(bool);

    impl WaitResult {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl<T> CheckedMutex<T> {
        pub fn new(value: T) -> Self {
            Self(model::Mutex::new(value))
        }

        pub fn lock(&self) -> CheckedGuard<'_, T> {
            CheckedGuard(self, Some(self.0.lock().expect(SOUND)))
        }

        pub fn try_lock(&self) -> Option<CheckedGuard<'_, T>> {
            Some(CheckedGuard(self, Some(self.0.try_lock().ok()?)))
        }
    }

    impl<T> CheckedRwLock<T> {
        pub fn new(value: T) -> Self {
            Self(model::RwLock::new(value))
        }

        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect(SOUND)
        }

        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect(SOUND)
        }
    }

    impl CheckedCondvar {
        pub fn notify_all(&self) {
            self.0.notify_all();
        }

        pub fn wait<T>(&self, guard: &mut CheckedGuard<'_, T>) {
            let held = guard.1.take().expect("held");
            guard.1 = Some(self.0.wait(held).expect(SOUND));
        }

        /// Time passes at once: whatever others do meanwhile, they may do before.
        pub fn wait_until<T>(&self, guard: &mut CheckedGuard<'_, T>, _: Instant) -> WaitResult {
            guard.1 = None;
            loom::thread::yield_now();
            guard.1 = Some(guard.0.0.lock().expect(SOUND));
            WaitResult(true)
        }
    }

    impl<T> Deref for CheckedGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.1.as_ref().expect("held")
        }
    }

    impl<T> DerefMut for CheckedGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.1.as_mut().expect("held")
        }
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn locks_are_taken_in_their_order() {
        let (first, second) = (Mutex::<1, ()>::new(()), RwLock::<2, ()>::new(()));
        let (low, high) = (first.lock(), second.write_nth(7));
        let third = RwLock::<2, ()>::new(());
        let highest = third.write_nth(8);
        drop((low, high, highest));
        drop(first.lock());
    }

    #[test]
    #[should_panic(expected = "a lock of rank (1, 0) is taken while one of rank (2, 0) is held")]
    fn the_wrong_order_is_a_panic() {
        let (first, second) = (Mutex::<1, ()>::new(()), RwLock::<2, ()>::new(()));
        let _high = second.read();
        let _low = first.lock();
    }

    #[test]
    #[should_panic(expected = "of rank (2, 3)")]
    fn of_one_rank_the_lower_comes_first() {
        let locks = [(); 2].map(RwLock::<2, ()>::new);
        let _high = locks[1].write_nth(3);
        let _low = locks[0].write_nth(2);
    }

    #[test]
    fn who_does_not_wait_may_have_any() {
        let (first, second) = (Mutex::<1, ()>::new(()), Mutex::<2, ()>::new(()));
        let _high = second.lock();
        assert!(first.try_lock().is_some());
    }
}
