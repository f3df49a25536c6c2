//! Reference counts of shared sectors.

use std::collections::BTreeMap;

use super::extent::Extent;
use crate::sync::{Mutex, rank};

/// Reference counts by arena and first block: `(sectors, count)`, only where the count is at least 2.
type SharedCounts = BTreeMap<(u16, u64), (u32, u32)>;

/// Who shares what. A sector that is not listed has one owner. Extents of it are marked as shared after they are listed,
/// under the lock of their content.
#[derive(Default)]
pub(super) struct SharedExtents(Mutex<{ rank::SHARED }, SharedCounts>);

impl SharedExtents {
    /// Adds one reference to the sectors of an extent, which has one at least.
    pub fn share(&self, extent: &Extent) {
        share(&mut self.0.lock(), extent);
    }

    /// Gives one reference to an extent's sectors back; returns those that were the last, as `(block, len)`.
    pub fn release(&self, extent: &Extent) -> Vec<(u64, u64)> {
        unshare(&mut self.0.lock(), extent)
    }
}

/// Adds one reference to every sector of `extent`.
fn share(counts: &mut SharedCounts, extent: &Extent) {
    let (start, end) = (extent.block, extent.block + u64::from(extent.len));
    split_at(counts, extent.arena, start);
    split_at(counts, extent.arena, end);
    let mut at = start;
    while at < end {
        let next = counts.range((extent.arena, at)..(extent.arena, end)).next().map(|(key, value)| (key.1, *value));
        match next {
            Some((block, (len, count))) if block == at => {
                counts.insert((extent.arena, block), (len, count + 1));
                at += u64::from(len);
            }
            other => {
                let gap_end = other.map_or(end, |(block, _)| block);
                counts.insert((extent.arena, at), ((gap_end - at) as u32, 2));
                at = gap_end;
            }
        }
    }
}

/// Takes one reference from every sector of `extent`; returns those that had only one, as `(block, len)`.
fn unshare(counts: &mut SharedCounts, extent: &Extent) -> Vec<(u64, u64)> {
    let (start, end) = (extent.block, extent.block + u64::from(extent.len));
    split_at(counts, extent.arena, start);
    split_at(counts, extent.arena, end);
    let inside: Vec<(u64, (u32, u32))> =
        counts.range((extent.arena, start)..(extent.arena, end)).map(|(&(_, block), &value)| (block, value)).collect();
    let (mut freed, mut at) = (Vec::new(), start);
    for (block, (len, count)) in inside {
        if at < block {
            freed.push((at, block - at));
        }
        match count {
            2 => counts.remove(&(extent.arena, block)),
            _ => counts.insert((extent.arena, block), (len, count - 1)),
        };
        at = block + u64::from(len);
    }
    if at < end {
        freed.push((at, end - at));
    }
    freed
}

fn split_at(counts: &mut SharedCounts, arena: u16, at: u64) {
    let found = counts.range(..(arena, at)).next_back().map(|(key, value)| (*key, *value));
    if let Some(((found_arena, block), (len, count))) = found
        && found_arena == arena
        && at < block + u64::from(len)
    {
        counts.insert((arena, block), ((at - block) as u32, count));
        counts.insert((arena, at), ((block + u64::from(len) - at) as u32, count));
    }
}

#[cfg(debug_assertions)]
impl SharedExtents {
    /// Asserts that what is listed is shared, and listed once.
    pub fn check(&self) {
        let mut end = (0, 0);
        for (&(arena, block), &(len, count)) in self.0.lock().iter() {
            assert!(len > 0 && count > 1, "{len} sectors at {arena}:{block} have {count} owners");
            assert!(end <= (arena, block), "sectors at {arena}:{block} are listed twice");
            end = (arena, block + u64::from(len));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::crypt::SlotId;

    proptest! {
        /// Against one counter per sector.
        #[test]
        fn shared_counts_agree_with_a_counter_per_sector(ops in prop::collection::vec((any::<bool>(), 0u64..20, 1u32..8), 1..50)) {
            let mut counts = SharedCounts::new();
            let mut model: HashMap<u64, u32> = (0..40).map(|s| (s, 1)).collect();
            for (add, block, len) in ops {
                let extent = Extent { block, seq: 0, slot: SlotId(0), len, arena: 1, shared: true };
                let range = block..block + u64::from(len);
                if add {
                    share(&mut counts, &extent);
                    range.for_each(|s| *model.get_mut(&s).unwrap() += 1);
                } else {
                    let freed: u64 = unshare(&mut counts, &extent).iter().map(|(_, l)| l).sum();
                    let expected = range.clone().filter(|s| model[s] == 1).count() as u64;
                    prop_assert_eq!(freed, expected);
                    // A freed sector is allocated anew at once, so that every sector always has an owner.
                    range.for_each(|s| { let c = model.get_mut(&s).unwrap(); *c = (*c - 1).max(1); });
                }
            }
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::crypt::SlotId;
    use crate::sync::explore;

    const EXTENT: Extent = Extent { block: 8, seq: 0, slot: SlotId(0), len: 4, arena: 0, shared: false };

    fn free(shared: &SharedExtents, extent: Extent) -> u64 {
        if !extent.shared {
            return u64::from(extent.len);
        }
        shared.release(&extent).iter().map(|(_, len)| len).sum()
    }

    /// The map of the source is one extent under the lock of its content.
    #[test]
    fn sectors_are_freed_once_whoever_lets_go_last() {
        explore(|| {
            let shared = Arc::new(SharedExtents::default());
            let source = Arc::new(Mutex::<{ rank::LAYOUT }, _>::new(Some(EXTENT)));
            let copier = (shared.clone(), source.clone());
            let copier = thread::spawn(move || {
                let (shared, source) = copier;
                let copy = source.lock().as_mut().map(|extent| {
                    shared.share(extent);
                    extent.shared = true;
                    *extent
                });
                copy.map_or(0, |extent| free(&shared, extent))
            });
            let removed = source.lock().take().expect("nobody else takes it");
            let freed = free(&shared, removed);
            assert_eq!(freed + copier.join().expect("no panic"), u64::from(EXTENT.len));
            shared.check();
        });
    }
}
