//! The memory that metadata may take: one count of bytes for inodes, names, attributes, key slots and extents.
//!
//! Each thing counts as what it takes at worst, its share of tables and trees included: whoever makes things to be
//! expensive must not take more than is counted (`tests/fs_memory.rs` compares both).

use std::sync::atomic::{AtomicU64, Ordering};

/// What an extent counts in a map of several: a node of the map, and the gaps beside it in the free space.
pub(super) const EXTENT: u64 = 192;
/// The part of the limit that names leave to extents, as a divisor: files that are there can still be written to.
const EXTENTS_SHARE: u64 = 16;

/// Bytes taken, of those that may be.
pub struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Default for Budget {
    /// Without a limit.
    fn default() -> Self {
        Self { limit: AtomicU64::new(u64::MAX), used: AtomicU64::new(0) }
    }
}

impl Budget {
    /// From now on `bytes` may be taken.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    /// Takes bytes for something that can be refused; `false`, and nothing taken, if there are not so many.
    #[must_use]
    pub fn take(&self, bytes: u64) -> bool {
        let most = self.most_for_names();
        let grow = |used: u64| used.checked_add(bytes).filter(|used| *used <= most);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    /// Takes bytes for something that is there already.
    pub fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back.
    pub fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Something that took `before` bytes takes `after` now.
    pub fn settle(&self, before: u64, after: u64) {
        match after.checked_sub(before) {
            Some(more) => self.add(more),
            None => self.give_back(before - after),
        }
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that [`Budget::take`] still gives.
    pub fn left(&self) -> u64 {
        self.most_for_names().saturating_sub(self.used())
    }

    /// Extents there is still room for, so at least as many sectors.
    pub fn extents(&self) -> u64 {
        self.limit.load(Ordering::Relaxed).saturating_sub(self.used()) / EXTENT
    }

    fn most_for_names(&self) -> u64 {
        let limit = self.limit.load(Ordering::Relaxed);
        limit - limit / EXTENTS_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_leave_a_part_to_extents() {
        let budget = Budget::default();
        budget.set_limit(16 * EXTENT);
        assert!(!budget.take(15 * EXTENT + 1) && budget.take(15 * EXTENT) && !budget.take(1));
        assert_eq!((budget.left(), budget.extents()), (0, 1));
        budget.settle(0, 3 * EXTENT);
        assert_eq!((budget.used(), budget.extents()), (18 * EXTENT, 0), "what is there counts beyond the limit");
        budget.settle(4 * EXTENT, EXTENT);
        budget.give_back(EXTENT);
        assert_eq!((budget.left(), budget.extents()), (EXTENT, 2));
    }

    #[test]
    fn without_a_limit_there_is_room() {
        let budget = Budget::default();
        assert!(budget.take(1 << 60) && budget.extents() > 1 << 50);
    }
}
