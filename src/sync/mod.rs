//! Locks that know their order, and atomics: of parking_lot and std, or, under the feature `loom`, of a model checker.
//!
//! A lock is taken only while all locks that the thread holds stand before it in [`rank`]; debug builds assert it, and
//! release builds pay nothing. The checker explores interleavings and weak memory instead, and knows no ranks: its threads
//! share one thread of the machine.

#[cfg(feature = "loom")]
mod testing;
#[cfg(all(test, not(feature = "loom")))]
mod tests;

use std::ops::{Deref, DerefMut};
use std::time::Instant;

#[cfg(not(feature = "loom"))]
pub use std::sync::atomic;

#[cfg(feature = "loom")]
pub use loom::sync::atomic;

use self::order::Held;
#[cfg(feature = "loom")]
use self::testing as raw;
#[cfg(all(test, feature = "loom"))]
pub use self::testing::explore;

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
