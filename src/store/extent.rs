//! Pure: which sectors of a content lie where.

use std::collections::BTreeMap;
use std::ops::Range;

use super::budget::EXTENT;
use crate::crypt::SlotId;

/// Sequence number of an extent that is reserved but was never written.
const RESERVED: u64 = u64::MAX;

/// A run of sectors that is contiguous on disk and in data-unit sequence numbers, under one key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First sector within the arena.
    pub block: u64,
    /// Data-unit sequence number of the first sector: the XTS tweak; counts up over the extent.
    pub seq: u64,
    /// Key slot; meaningless while reserved.
    pub slot: SlotId,
    /// Sectors, at least 1.
    pub len: u32,
    /// Arena of the backing.
    pub arena: u16,
    /// Other contents may refer to the same sectors: never overwrite in place.
    pub shared: bool,
}

impl Extent {
    /// Space without data: reads as zeros.
    pub fn reserved(arena: u16, block: u64, len: u32) -> Self {
        Self { block, seq: RESERVED, slot: SlotId(u32::MAX), len, arena, shared: false }
    }

    /// Whether this is space without data.
    pub fn is_reserved(&self) -> bool {
        self.seq == RESERVED
    }

    /// The part from `skip`, at most `len` sectors long.
    pub fn slice(self, skip: u64, len: u64) -> Self {
        let len = len.min(u64::from(self.len) - skip) as u32;
        let seq = if self.is_reserved() { RESERVED } else { self.seq + skip };
        Self { block: self.block + skip, seq, len, ..self }
    }

    /// Whether `next` continues this extent on disk and in sequence, so that both can be one.
    fn continues_with(&self, next: &Self) -> bool {
        let len = u64::from(self.len);
        self.arena == next.arena
            && self.block + len == next.block
            && self.shared == next.shared
            && self.slot == next.slot
            && self.is_reserved() == next.is_reserved()
            && (self.is_reserved() || self.seq + len == next.seq)
            && self.len.checked_add(next.len).is_some()
    }
}

/// What a run of sectors holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    /// Nothing, for this many sectors.
    Hole(u64),
    /// Ciphertext.
    Written(Extent),
    /// Space without data.
    Reserved(Extent),
}

impl Segment {
    /// Sectors.
    pub fn len(&self) -> u64 {
        match self {
            Self::Hole(len) => *len,
            Self::Written(extent) | Self::Reserved(extent) => u64::from(extent.len),
        }
    }
}

/// Extents by logical sector, never overlapping. Small contents, the common case, need no allocation.
#[derive(Debug, Default)]
pub(super) enum ExtentMap {
    /// No sectors.
    #[default]
    Empty,
    /// One extent, starting at this logical sector.
    One(u64, Extent),
    /// Any number.
    Many(BTreeMap<u64, Extent>),
}

impl ExtentMap {
    /// Whether no sector is mapped.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::One(..) => false,
            Self::Many(map) => map.is_empty(),
        }
    }

    /// Bytes of memory it counts as; a single extent is part of its content.
    pub fn memory(&self) -> u64 {
        match self {
            Self::Empty | Self::One(..) => 0,
            Self::Many(map) => map.len() as u64 * EXTENT,
        }
    }

    /// Whether an extent is reserved and not written.
    pub fn has_reserved(&self) -> bool {
        match self {
            Self::Empty => false,
            Self::One(_, extent) => extent.is_reserved(),
            Self::Many(map) => map.values().any(Extent::is_reserved),
        }
    }

    /// What begins at `sector`: at most `max` sectors (at least 1) of one kind.
    pub fn segment(&self, sector: u64, max: u64) -> Segment {
        if let Some((start, extent)) = self.at_or_before(sector)
            && sector < start + u64::from(extent.len)
        {
            let part = extent.slice(sector - start, max);
            return if part.is_reserved() { Segment::Reserved(part) } else { Segment::Written(part) };
        }
        match self.after(sector) {
            Some((next, _)) if next - sector < max => Segment::Hole(next - sector),
            _ => Segment::Hole(max),
        }
    }

    /// First extent that starts at or behind `sector`, with its logical sector.
    pub fn after(&self, sector: u64) -> Option<(u64, Extent)> {
        match self {
            Self::Empty => None,
            Self::One(start, extent) => (*start >= sector).then_some((*start, *extent)),
            Self::Many(map) => map.range(sector..).next().map(|(start, extent)| (*start, *extent)),
        }
    }

    /// Maps `extent` at `sector`; whatever was there is unmapped and appended to `removed`.
    pub fn insert(&mut self, sector: u64, extent: Extent, removed: &mut Vec<Extent>) {
        let end = sector + u64::from(extent.len);
        self.remove(sector..end, removed);
        let (mut start, mut merged) = (sector, extent);
        if let Some((before, left)) = sector.checked_sub(1).and_then(|last| self.at_or_before(last))
            && before + u64::from(left.len) == sector
            && left.continues_with(&merged)
        {
            self.take(before);
            (start, merged) = (before, Extent { len: left.len + merged.len, ..left });
        }
        if let Some((next, right)) = self.after(end)
            && next == end
            && merged.continues_with(&right)
        {
            self.take(next);
            merged.len += right.len;
        }
        self.put(start, merged);
        self.shrink();
    }

    /// Unmaps a range; the extents, cut to it, are appended to `removed`.
    pub fn remove(&mut self, range: Range<u64>, removed: &mut Vec<Extent>) {
        if range.is_empty() {
            return;
        }
        if let Some((start, extent)) = self.at_or_before(range.start)
            && start < range.start
            && range.start < start + u64::from(extent.len)
        {
            self.split(start, extent, range.start);
        }
        while let Some((start, extent)) = self.after(range.start).filter(|(start, _)| *start < range.end) {
            if start + u64::from(extent.len) > range.end {
                self.split(start, extent, range.end);
                continue;
            }
            self.take(start);
            removed.push(extent);
        }
        self.shrink();
    }

    /// Unmaps everything.
    pub fn take_all(&mut self) -> Vec<Extent> {
        match std::mem::take(self) {
            Self::Empty => Vec::new(),
            Self::One(_, extent) => vec![extent],
            Self::Many(map) => map.into_values().collect(),
        }
    }

    fn at_or_before(&self, sector: u64) -> Option<(u64, Extent)> {
        match self {
            Self::Empty => None,
            Self::One(start, extent) => (*start <= sector).then_some((*start, *extent)),
            Self::Many(map) => map.range(..=sector).next_back().map(|(start, extent)| (*start, *extent)),
        }
    }

    fn split(&mut self, start: u64, extent: Extent, at: u64) {
        self.put(start, extent.slice(0, at - start));
        self.put(at, extent.slice(at - start, u64::MAX));
    }

    fn put(&mut self, start: u64, extent: Extent) {
        match self {
            Self::Empty => *self = Self::One(start, extent),
            Self::One(only, _) if *only == start => *self = Self::One(start, extent),
            Self::One(other, old) => {
                *self = Self::Many(BTreeMap::from([(*other, *old), (start, extent)]));
            }
            Self::Many(map) => {
                map.insert(start, extent);
            }
        }
    }

    fn take(&mut self, start: u64) {
        match self {
            Self::Empty => {}
            Self::One(only, _) => {
                if *only == start {
                    *self = Self::Empty;
                }
            }
            Self::Many(map) => {
                map.remove(&start);
            }
        }
    }

    fn shrink(&mut self) {
        if let Self::Many(map) = self
            && map.len() <= 1
        {
            *self = map.pop_first().map_or(Self::Empty, |(start, extent)| Self::One(start, extent));
        }
    }
}

#[cfg(debug_assertions)]
impl ExtentMap {
    /// Asserts that extents are in order and apart, joined where they can be, and that small maps are small; returns the
    /// sectors mapped and the end of the last written one.
    pub fn check(&self) -> (u64, u64) {
        if let Self::Many(map) = self {
            assert!(map.len() > 1, "a map of {} extents has a tree", map.len());
        }
        let (mut sectors, mut written, mut last) = (0, 0, None::<(u64, Extent)>);
        while let Some((start, extent)) = self.after(last.map_or(0, |(at, before)| at + u64::from(before.len))) {
            assert!(extent.len > 0, "an extent without sectors at {start}");
            if let Some((at, before)) = last {
                let touches = at + u64::from(before.len) == start;
                assert!(!touches || !before.continues_with(&extent), "extents at {at} and {start} could be one");
            }
            sectors += u64::from(extent.len);
            written = if extent.is_reserved() { written } else { start + u64::from(extent.len) };
            last = Some((start, extent));
        }
        let listed = match self {
            Self::Empty => 0,
            Self::One(_, extent) => u64::from(extent.len),
            Self::Many(map) => map.values().map(|extent| u64::from(extent.len)).sum(),
        };
        assert_eq!(sectors, listed, "extents overlap");
        (sectors, written)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(block: u64, len: u32) -> Extent {
        Extent { block, seq: 1000 + block, slot: SlotId(7), len, arena: 0, shared: false }
    }

    #[test]
    fn neighbours_on_disk_and_in_sequence_become_one() {
        let mut map = ExtentMap::default();
        let mut removed = Vec::new();
        map.insert(0, extent(10, 2), &mut removed);
        map.insert(4, extent(14, 1), &mut removed);
        assert!(matches!(map, ExtentMap::Many(_)));
        map.insert(2, extent(12, 2), &mut removed);
        assert!(matches!(map.segment(0, 99), Segment::Written(e) if e == extent(10, 5)));
        assert!(removed.is_empty() && matches!(map, ExtentMap::One(..)));
        let elsewhere = Extent { seq: 5, ..extent(15, 1) };
        map.insert(5, elsewhere, &mut removed);
        assert_eq!(map.segment(0, 99), Segment::Written(extent(10, 5)));
        assert_eq!(map.segment(5, 99), Segment::Written(elsewhere));
    }

    #[test]
    fn reserved_space_never_merges_with_data() {
        let mut map = ExtentMap::default();
        map.insert(0, Extent::reserved(0, 5, 2), &mut Vec::new());
        map.insert(2, extent(7, 1), &mut Vec::new());
        assert_eq!(map.segment(1, 9), Segment::Reserved(Extent::reserved(0, 6, 1)));
        assert_eq!(map.segment(2, 9), Segment::Written(extent(7, 1)));
        assert_eq!(map.segment(3, 9), Segment::Hole(9));
    }

    proptest! {
        /// Against one entry per sector: the same sectors are mapped to the same places, and nothing is lost.
        #[test]
        fn map_agrees_with_one_entry_per_sector(ops in prop::collection::vec((0u64..40, 1u32..12, any::<bool>()), 1..60)) {
            let mut map = ExtentMap::default();
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let (mut next, mut removed) = (0, Vec::new());
            for (sector, len, insert) in ops {
                let range = sector..sector + u64::from(len);
                removed.clear();
                let before: u64 = range.clone().filter(|s| model.contains_key(s)).count() as u64;
                if insert {
                    map.insert(sector, extent(next, len), &mut removed);
                    range.clone().for_each(|s| { model.insert(s, next + s - sector); });
                    next += u64::from(len);
                } else {
                    map.remove(range.clone(), &mut removed);
                    range.for_each(|s| { model.remove(&s); });
                }
                prop_assert_eq!(map.check().0, model.len() as u64);
                prop_assert_eq!(removed.iter().map(|e| u64::from(e.len)).sum::<u64>(), before);
                for s in 0..60 {
                    let found = match map.segment(s, 1) { Segment::Written(e) => Some(e.block), _ => None };
                    prop_assert_eq!(found, model.get(&s).copied());
                }
            }
            prop_assert_eq!(map.take_all().iter().map(|e| e.len as usize).sum::<usize>(), model.len());
        }
    }
}
