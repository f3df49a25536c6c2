//! Expanded keys in use: a set-associative cache, so that a hit allocates nothing and waits for nobody.
//!
//! Key schedules lie where the engines put them, on the ordinary heap: at most 512, wiped when they leave, kept from
//! swap by `sys::memory::lock_process_memory` only.

use std::array;

use super::{CryptError, SectorCipher, SlotId};
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, rank};

const SETS: usize = if cfg!(feature = "loom") { 1 } else { 64 };
/// Also the number of threads that can use one slot at the same time: each takes a way of its own.
const WAYS: usize = if cfg!(feature = "loom") { 2 } else { 8 };
/// Owner hint of an empty way; the arena has fewer slots.
const NOBODY: u32 = u32::MAX;

/// Ciphers of recently used slots. A slot may own several ways, one for each thread that used it at once.
///
/// Invariant: a way whose hint does not name a slot does not hold it, as seen by every thread for which the uses of
/// the slot have happened before.
pub struct CipherCache {
    sets: Box<[CacheSet]>,
}

struct CacheSet {
    /// Who owns each way; only changed under its lock, read without to find it.
    owners: [AtomicU32; WAYS],
    ways: [CacheWay; WAYS],
    /// Where the next search for a victim starts.
    turn: AtomicUsize,
}

/// On a cache line of its own: neighbours are used by other threads.
#[repr(align(64))]
struct CacheWay(Mutex<{ rank::WAY }, Resident>);

/// A cipher and the slot it is of.
type Resident = Option<(SlotId, SectorCipher)>;
type WayGuard<'a> = MutexGuard<'a, { rank::WAY }, Resident>;

impl CipherCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self { sets: (0..SETS).map(|_| CacheSet::new()).collect() }
    }

    /// Does `work` with the cipher of `slot`, made by `make` when no way free at this moment holds it.
    pub fn with<R>(
        &self,
        slot: SlotId,
        make: impl FnOnce() -> Result<SectorCipher, CryptError>,
        work: impl FnOnce(&mut SectorCipher) -> Result<R, CryptError>,
    ) -> Result<R, CryptError> {
        let set = self.set(slot);
        let mut way = match set.find(slot) {
            Some(way) => way,
            None => set.fill(slot, make)?,
        };
        let (_, cipher) = way.as_mut().expect("found and filled ways are not empty, and the lock is held");
        work(cipher)
    }

    /// Wipes every cipher of a slot that nobody uses any more.
    pub fn forget(&self, slot: SlotId) {
        self.set(slot).evict(|owner| owner == slot.0);
    }

    /// Wipes every cipher, waiting for those in use.
    pub fn wipe(&self) {
        self.sets.iter().for_each(|set| set.evict(|_| true));
    }

    fn set(&self, slot: SlotId) -> &CacheSet {
        // Slots are given out in order, so the low bits spread neighbours.
        &self.sets[slot.0 as usize % SETS]
    }
}

impl CacheSet {
    fn new() -> Self {
        Self {
            owners: array::from_fn(|_| AtomicU32::new(NOBODY)),
            ways: array::from_fn(|_| CacheWay(Mutex::new(None))),
            turn: AtomicUsize::new(0),
        }
    }

    /// A way that holds `slot` and that nobody else is using.
    fn find(&self, slot: SlotId) -> Option<WayGuard<'_>> {
        let named = self.owners.iter().zip(&self.ways).filter(|(owner, _)| owner.load(Ordering::Relaxed) == slot.0);
        named.filter_map(|(_, way)| way.0.try_lock()).find(|way| way.as_ref().is_some_and(|(owner, _)| *owner == slot))
    }

    /// Puts a new cipher for `slot` into a way, in place of another.
    #[cold]
    fn fill(
        &self,
        slot: SlotId,
        make: impl FnOnce() -> Result<SectorCipher, CryptError>,
    ) -> Result<WayGuard<'_>, CryptError> {
        let (owner, mut way) = self.claim();
        // The lock is taken before the key is made: a wipe of the whole cache that began before the key was made
        // has yet to come to this way.
        let cipher = make()?;
        *way = Some((slot, cipher));
        owner.store(slot.0, Ordering::Relaxed);
        Ok(way)
    }

    /// A way to overwrite: an empty one, else the next that is not in use, else the next one to become free.
    fn claim(&self) -> (&AtomicU32, WayGuard<'_>) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let order = || (0..WAYS).map(|i| turn.wrapping_add(i) % WAYS);
        let empty = order().filter(|&i| self.owners[i].load(Ordering::Relaxed) == NOBODY);
        for i in empty.chain(order()) {
            if let Some(way) = self.ways[i].0.try_lock() {
                return (&self.owners[i], way);
            }
        }
        let i = turn % WAYS;
        (&self.owners[i], self.ways[i].0.lock())
    }

    /// Wipes the ways whose owner is `chosen`.
    fn evict(&self, chosen: impl Fn(u32) -> bool) {
        for (owner, way) in self.owners.iter().zip(&self.ways) {
            if !chosen(owner.load(Ordering::Relaxed)) {
                continue;
            }
            let mut way = way.0.lock();
            // Dropping the cipher wipes its key schedule. The way may have changed hands before the lock was had.
            if way.as_ref().is_some_and(|(slot, _)| chosen(slot.0)) {
                *way = None;
                owner.store(NOBODY, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
impl CipherCache {
    /// Ways that hold `slot`.
    pub fn copies(&self, slot: SlotId) -> usize {
        let ways = self.sets.iter().flat_map(|set| &set.ways);
        ways.filter(|way| way.0.lock().as_ref().is_some_and(|(owner, _)| *owner == slot)).count()
    }

    /// Ways that hold anything.
    pub fn filled(&self) -> usize {
        self.sets.iter().flat_map(|set| &set.ways).filter(|way| way.0.lock().is_some()).count()
    }
}
