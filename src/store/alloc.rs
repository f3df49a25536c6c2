//! Pure: free space of one arena.

use std::collections::{BTreeMap, BTreeSet};

/// A set of sector ranges that never touch: neighbours are joined.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    by_start: BTreeMap<u64, u64>,
    by_len: BTreeSet<(u64, u64)>,
}

impl RangeSet {
    /// Adds `start .. start + len`, which must not overlap the set.
    pub fn insert(&mut self, mut start: u64, mut len: u64) {
        if let Some((&before, &before_len)) = self.by_start.range(..start).next_back()
            && before + before_len == start
        {
            self.remove(before, before_len);
            (start, len) = (before, before_len + len);
        }
        if let Some(&after_len) = self.by_start.get(&(start + len)) {
            self.remove(start + len, after_len);
            len += after_len;
        }
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
    }

    /// Takes `len` sectors from the smallest range that has them.
    pub fn take(&mut self, len: u64) -> Option<u64> {
        let &(found, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(start, found);
        if found > len {
            self.by_start.insert(start + len, found - len);
            self.by_len.insert((found - len, start + len));
        }
        Some(start)
    }

    /// Takes the largest range.
    pub fn take_largest(&mut self) -> Option<(u64, u64)> {
        let &(len, start) = self.by_len.last()?;
        self.remove(start, len);
        Some((start, len))
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

/// Allocator of one arena, with its counter of data-unit sequence numbers.
///
/// Every sector below `end` is in exactly one place: allocated, `dirty`, `clean`, or being discarded.
#[derive(Debug)]
pub(super) struct ArenaAlloc {
    /// Freed, still taking disk space: given out first, because neither disk blocks nor cache pages must be made.
    dirty: RangeSet,
    /// Given back to the disk.
    clean: RangeSet,
    /// Behind the last sector ever given out.
    end: u64,
    /// Largest value of `end`.
    capacity: u64,
    /// Next data-unit sequence number; never goes back.
    next_seq: u64,
}

/// Sectors given out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SectorRun {
    /// First sector within the arena.
    pub block: u64,
    /// Fresh data-unit sequence number of the first sector.
    pub seq: u64,
    /// Sectors; at least 1, perhaps fewer than asked for.
    pub len: u64,
}

impl ArenaAlloc {
    /// An arena of at most `capacity` sectors whose sequence numbers start at `first_seq`.
    pub fn new(capacity: u64, first_seq: u64) -> Self {
        Self { dirty: RangeSet::default(), clean: RangeSet::default(), end: 0, capacity, next_seq: first_seq }
    }

    /// Gives out contiguous sectors: `len` if possible, fewer if the arena is fragmented, `None` if it is full.
    pub fn allocate(&mut self, len: u64) -> Option<SectorRun> {
        let (block, len) = self.find(len)?;
        let seq = self.next_seq;
        self.next_seq += len;
        Some(SectorRun { block, seq, len })
    }

    /// Fresh sequence numbers for `len` sectors that already have a place.
    pub fn sequence(&mut self, len: u64) -> u64 {
        let seq = self.next_seq;
        self.next_seq += len;
        seq
    }

    /// Takes sectors back.
    pub fn free(&mut self, block: u64, len: u64) {
        self.dirty.insert(block, len);
    }

    /// The largest freed range, to be discarded; give it back with [`ArenaAlloc::discarded`].
    pub fn take_dirty(&mut self) -> Option<(u64, u64)> {
        self.dirty.take_largest()
    }

    /// Ends what [`ArenaAlloc::take_dirty`] began.
    pub fn discarded(&mut self, block: u64, len: u64) {
        self.clean.insert(block, len);
    }

    fn find(&mut self, len: u64) -> Option<(u64, u64)> {
        if let Some(block) = self.dirty.take(len).or_else(|| self.clean.take(len)) {
            return Some((block, len));
        }
        if self.end < self.capacity {
            let len = len.min(self.capacity - self.end);
            self.end += len;
            return Some((self.end - len, len));
        }
        // Full: nothing holds `len` in one piece, so the largest piece is what there is.
        let set = if self.dirty.is_empty() { &mut self.clean } else { &mut self.dirty };
        set.take_largest()
    }
}

#[cfg(debug_assertions)]
impl RangeSet {
    /// Asserts that both orders hold the same ranges, which never touch.
    fn check(&self) {
        let by_len: BTreeMap<u64, u64> = self.by_len.iter().map(|(len, start)| (*start, *len)).collect();
        assert_eq!((&by_len, by_len.len()), (&self.by_start, self.by_len.len()), "the two orders differ");
        let ranges = self.by_start.iter().zip(self.by_start.iter().skip(1));
        ranges.for_each(|((start, len), (next, _))| assert!(start + len < *next, "ranges touch at {next}"));
    }
}

#[cfg(debug_assertions)]
impl ArenaAlloc {
    /// Asserts that what is free is free once, and below the end.
    pub fn check(&self) {
        self.dirty.check();
        self.clean.check();
        assert!(self.end <= self.capacity, "the end {} is behind the capacity", self.end);
        let mut free: Vec<_> = self.dirty.by_start.iter().chain(&self.clean.by_start).collect();
        free.sort_unstable();
        let starts = free.iter().skip(1).map(|(start, _)| **start).chain([self.end]);
        free.iter().zip(starts).for_each(|((start, len), next)| assert!(*start + *len <= next, "free twice at {next}"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn freed_neighbours_join_and_are_reused_first() {
        let mut alloc = ArenaAlloc::new(100, 0);
        let runs: Vec<SectorRun> = (0..4).map(|_| alloc.allocate(5).unwrap()).collect();
        alloc.free(runs[1].block, 5);
        alloc.free(runs[2].block, 5);
        let joined = alloc.allocate(10).unwrap();
        assert_eq!((joined.block, joined.len), (5, 10));
        assert_eq!(joined.seq, 20, "sequence numbers go on, places come back");
    }

    #[test]
    fn a_full_arena_gives_pieces_then_nothing() {
        let mut alloc = ArenaAlloc::new(8, 0);
        assert_eq!(alloc.allocate(6).unwrap().len, 6);
        assert_eq!(alloc.allocate(6).unwrap().len, 2);
        assert_eq!(alloc.allocate(1), None);
        alloc.free(1, 2);
        alloc.free(5, 1);
        assert_eq!(alloc.allocate(6).unwrap().len, 2);
        let dirty = alloc.take_dirty().unwrap();
        assert_eq!(dirty, (5, 1));
        assert_eq!(alloc.allocate(1), None, "what is being discarded is not given out");
        alloc.discarded(5, 1);
        assert_eq!(alloc.allocate(1).unwrap().block, 5);
    }

    proptest! {
        /// No sector is ever given out twice, and no sequence number is ever repeated.
        #[test]
        fn sectors_are_exclusive_and_sequence_numbers_unique(ops in prop::collection::vec((0u8..4, 1u64..9, any::<prop::sample::Index>()), 1..80)) {
            let mut alloc = ArenaAlloc::new(64, 500);
            let (mut live, mut discarding) = (Vec::<(u64, u64)>::new(), Vec::<(u64, u64)>::new());
            let mut seqs = std::collections::HashSet::new();
            for (op, len, index) in ops {
                match op {
                    0 | 1 => if let Some(run) = alloc.allocate(len) {
                        prop_assert!(run.len >= 1 && run.block + run.len <= 64);
                        for other in live.iter().chain(&discarding) {
                            prop_assert!(run.block + run.len <= other.0 || other.0 + other.1 <= run.block);
                        }
                        for s in run.seq..run.seq + run.len { prop_assert!(seqs.insert(s)); }
                        live.push((run.block, run.len));
                    },
                    2 if !live.is_empty() => {
                        let (block, len) = live.swap_remove(index.index(live.len()));
                        alloc.free(block, len);
                    }
                    _ => if let Some(range) = alloc.take_dirty() {
                        discarding.push(range);
                        if discarding.len() > 1 {
                            let (block, len) = discarding.remove(0);
                            alloc.discarded(block, len);
                        }
                    }
                }
                alloc.check();
            }
        }
    }
}
