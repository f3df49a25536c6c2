//! The slot arena: 32 secret bytes and a reference count for each file, in growing chunks of locked memory.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::CryptError;
use crate::spec::MemoryLock;
use crate::sync::atomic::AtomicU32;
use crate::sync::{Mutex, rank};
use crate::sys::memory::{Protection, SecretPages};

/// Names one key slot of the arena: a 32-byte random value from which one content key is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u32);

/// Bytes of one slot.
pub const SLOT_BYTES: usize = 32;
/// 64-bit words of one slot.
const SLOT_WORDS: usize = SLOT_BYTES / 8;
/// Slots of one chunk: 512 KiB of secret pages, so that little of a small `RLIMIT_MEMLOCK` is lost to rounding.
const CHUNK_SLOTS: usize = if cfg!(feature = "loom") { 2 } else { 1 << 14 };
/// Most chunks: 2^26 slots, 2 GiB of secret pages.
const MAX_CHUNKS: usize = 1 << 12;

/// Set in the state of a free slot; the other bits are then the next free slot. Otherwise the state is the count of
/// references, and 0 while the last one is being given back.
const FREE: u32 = 1 << 31;
/// End of the list of free slots.
const END: u32 = FREE - 1;
/// A count that reaches this stays there, so that it can never overflow into [`FREE`]: a slot with 2^30 references
/// (4 TiB shared by copies) lives until the whole arena is wiped.
const PINNED: u32 = 1 << 30;

/// All slots of a run: 36 bytes each.
///
/// Invariant: the secret of a slot without references is all zeros.
pub struct SlotArena {
    chunks: Box<[OnceLock<Chunk>]>,
    free: Mutex<{ rank::FREE_SLOTS }, FreeList>,
    live: AtomicU64,
    unlocked_bytes: AtomicU64,
    policy: MemoryLock,
}

struct Chunk {
    secrets: SecretPages,
    states: Box<[AtomicU32]>,
}

struct FreeList {
    /// First free slot that has been used before, or [`END`].
    head: u32,
    /// Slots ever used; the next fresh one.
    fresh: u32,
}

impl SlotArena {
    /// No slots and no memory yet. `policy` says what happens when memory cannot be locked.
    pub fn new(policy: MemoryLock) -> Self {
        Self {
            chunks: (0..MAX_CHUNKS).map(|_| OnceLock::new()).collect(),
            free: Mutex::new(FreeList { head: END, fresh: 0 }),
            live: AtomicU64::new(0),
            unlocked_bytes: AtomicU64::new(0),
            policy,
        }
    }

    /// Puts `secret` into a free slot, with one reference.
    pub fn insert(&self, secret: &[u8; SLOT_BYTES]) -> Result<SlotId, CryptError> {
        let slot = self.take_free()?;
        let (words, state) = self.slot(slot);
        for (word, bytes) in words.iter().zip(secret.chunks_exact(8)) {
            word.store(u64::from_ne_bytes(bytes.try_into().expect("chunks of 8")), Ordering::Relaxed);
        }
        state.store(1, Ordering::Release);
        self.live.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    /// The secret of a slot, or `None` when nothing refers to it.
    pub fn secret(&self, slot: SlotId) -> Option<Zeroizing<[u8; SLOT_BYTES]>> {
        let (words, state) = self.slot(slot);
        let count = state.load(Ordering::Acquire);
        if count == 0 || count & FREE != 0 {
            return None;
        }
        let mut secret = Zeroizing::new([0; SLOT_BYTES]);
        for (bytes, word) in secret.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(secret)
    }

    /// Adds `n` references to a live slot.
    pub fn retain(&self, slot: SlotId, n: u32) {
        let add = |count: u32| Some(count.saturating_add(n).min(PINNED));
        let before =
            self.slot(slot).1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or_else(|same| same);
        debug_assert!((1..=PINNED).contains(&before), "retain of slot {} at {before:#x}", slot.0);
    }

    /// Gives `n` references back. With the last one, wipes the secret and returns true: the caller then ends every
    /// use of the slot and calls [`SlotArena::reuse`].
    #[must_use]
    pub fn release(&self, slot: SlotId, n: u32) -> bool {
        let (words, state) = self.slot(slot);
        let subtract = |count: u32| if count == PINNED { None } else { count.checked_sub(n) };
        // AcqRel: what other holders did with the slot happened before it is wiped.
        let before = state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, subtract).unwrap_or_else(|same| same);
        debug_assert!((n..=PINNED).contains(&before), "release of {n} from slot {} at {before:#x}", slot.0);
        let last = before == n && n > 0;
        if last {
            wipe_words(words);
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
        last
    }

    /// Makes a slot whose last reference was released available again.
    pub fn reuse(&self, slot: SlotId) {
        let mut free = self.free.lock();
        self.slot(slot).1.store(FREE | free.head, Ordering::Release);
        free.head = slot.0;
    }

    /// Slots with references.
    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Bytes of secret memory that the kernel would not lock.
    pub fn unlocked_bytes(&self) -> u64 {
        self.unlocked_bytes.load(Ordering::Relaxed)
    }

    /// Wipes every secret; the counts stay, so that holders may still release.
    pub fn wipe(&self) {
        for chunk in self.chunks.iter().filter_map(OnceLock::get) {
            wipe_words(chunk.secrets.words());
        }
    }

    /// A free slot: one used before, else a fresh one, in a new chunk when the last is full.
    fn take_free(&self) -> Result<SlotId, CryptError> {
        let mut free = self.free.lock();
        if free.head != END {
            let slot = SlotId(free.head);
            free.head = self.slot(slot).1.load(Ordering::Relaxed) & !FREE;
            return Ok(slot);
        }
        let slot = SlotId(free.fresh);
        let chunk = self.chunks.get(slot.0 as usize / CHUNK_SLOTS);
        let chunk = chunk.ok_or(CryptError::SlotsExhausted(MAX_CHUNKS * CHUNK_SLOTS))?;
        if chunk.get().is_none() {
            let made = self.grow()?;
            chunk.get_or_init(|| made);
        }
        free.fresh += 1;
        Ok(slot)
    }

    fn grow(&self) -> Result<Chunk, CryptError> {
        let secrets = secret_pages(CHUNK_SLOTS * SLOT_BYTES, self.policy)?;
        if secrets.protection() == Protection::Unlocked {
            self.unlocked_bytes.fetch_add(secrets.bytes() as u64, Ordering::Relaxed);
        }
        Ok(Chunk { secrets, states: (0..CHUNK_SLOTS).map(|_| AtomicU32::new(FREE | END)).collect() })
    }

    /// Secret words and state of a slot.
    fn slot(&self, slot: SlotId) -> (&[AtomicU64], &AtomicU32) {
        let index = slot.0 as usize;
        let chunk = self.chunks[index / CHUNK_SLOTS].get().expect("slot ids come from insert, which made the chunk");
        let within = index % CHUNK_SLOTS;
        (&chunk.secrets.words()[within * SLOT_WORDS..][..SLOT_WORDS], &chunk.states[within])
    }
}

/// Pages for secrets under the policy: locked, or else refused (`Require`) or unlocked (`Try`).
pub fn secret_pages(bytes: usize, policy: MemoryLock) -> Result<SecretPages, CryptError> {
    let refused = match SecretPages::locked(bytes) {
        Ok(pages) => return Ok(pages),
        Err(error) => error,
    };
    match policy {
        MemoryLock::Require => Err(CryptError::NotLocked(refused.to_string())),
        MemoryLock::Try => SecretPages::unlocked(bytes)
            .map_err(|source: io::Error| CryptError::System { what: "no memory for keys", source }),
    }
}

/// Overwrites words with zeros. Atomic stores to memory that others can see are not optimised away.
pub fn wipe_words(words: &[AtomicU64]) {
    for word in words {
        word.store(0, Ordering::Relaxed);
    }
    std::sync::atomic::fence(Ordering::SeqCst);
}

#[cfg(test)]
impl SlotArena {
    /// Whether nothing of a slot's secret is left in memory.
    pub fn is_wiped(&self, slot: SlotId) -> bool {
        self.slot(slot).0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}

#[cfg(debug_assertions)]
impl SlotArena {
    /// Asserts that each slot ever used is live or in the list of free ones, which holds no secret. Nothing may be given
    /// back meanwhile.
    pub fn check(&self) {
        let free = self.free.lock();
        let (mut listed, mut at) = (0, free.head);
        while at != END {
            let (words, state) = self.slot(SlotId(at));
            let state = state.load(Ordering::Acquire);
            assert!(state & FREE != 0, "slot {at} is free and has {state} references");
            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0), "slot {at} is free and not wiped");
            listed += 1;
            assert!(listed <= free.fresh, "the list of free slots is a circle");
            at = state & !FREE;
        }
        assert_eq!(self.live() + u64::from(listed), u64::from(free.fresh), "live and free slots are all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_its_secret_until_the_last_reference() {
        let arena = SlotArena::new(MemoryLock::Try);
        let slot = arena.insert(&[5; SLOT_BYTES]).expect("slot");
        arena.retain(slot, 2);
        assert!(!arena.release(slot, 1));
        assert_eq!(arena.secret(slot).expect("live")[..], [5; SLOT_BYTES]);
        assert_eq!(arena.live(), 1);
        assert!(arena.release(slot, 2));
        assert!(arena.secret(slot).is_none());
        assert!(arena.is_wiped(slot));
        assert_eq!(arena.live(), 0);
    }

    #[test]
    fn a_count_that_would_overflow_pins_the_slot() {
        let arena = SlotArena::new(MemoryLock::Try);
        let slot = arena.insert(&[5; SLOT_BYTES]).expect("slot");
        for _ in 0..4 {
            arena.retain(slot, PINNED - 1);
        }
        assert!(!arena.release(slot, PINNED - 1));
        assert!(!arena.release(slot, 1));
        assert_eq!(arena.secret(slot).expect("live")[..], [5; SLOT_BYTES]);
    }

    #[test]
    fn freed_slots_are_used_again_before_fresh_ones() {
        let arena = SlotArena::new(MemoryLock::Try);
        let slots: Vec<_> = (0..10).map(|i| arena.insert(&[i; SLOT_BYTES]).expect("slot")).collect();
        for &slot in &slots[3..6] {
            assert!(arena.release(slot, 1));
            arena.reuse(slot);
        }
        let mut again: Vec<_> = (0..3).map(|_| arena.insert(&[77; SLOT_BYTES]).expect("slot").0).collect();
        again.sort_unstable();
        assert_eq!(again, [3, 4, 5]);
        assert_eq!(arena.insert(&[1; SLOT_BYTES]).expect("slot"), SlotId(10));
        arena.check();
        for (i, &slot) in slots.iter().enumerate().filter(|(i, _)| !(3..6).contains(i)) {
            assert_eq!(arena.secret(slot).expect("untouched")[..], [i as u8; SLOT_BYTES]);
        }
    }

    #[test]
    fn the_arena_grows_and_costs_at_most_40_bytes_a_slot() {
        let arena = SlotArena::new(MemoryLock::Try);
        let slots = 1_000_000_u32;
        for i in 0..slots {
            assert_eq!(arena.insert(&[i as u8 | 1; SLOT_BYTES]).expect("slot"), SlotId(i));
        }
        let chunks = || arena.chunks.iter().filter_map(OnceLock::get);
        let bytes: usize = chunks().map(|chunk| chunk.secrets.bytes() + size_of_val(&*chunk.states)).sum();
        let bytes = bytes + size_of_val(&*arena.chunks);
        assert!(bytes <= 40 * slots as usize, "{bytes} bytes for {slots} slots");
        arena.wipe();
        assert!(chunks().all(|chunk| chunk.secrets.words().iter().all(|word| word.load(Ordering::Relaxed) == 0)));
    }
}

#[cfg(all(test, feature = "loom"))]
mod interleavings {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::sync::explore;

    #[test]
    fn a_slot_is_given_back_once_and_never_to_two() {
        explore(|| {
            let arena = Arc::new(SlotArena::new(MemoryLock::Try));
            let slot = arena.insert(&[5; SLOT_BYTES]).expect("slot");
            arena.retain(slot, 1);
            let holder = move |arena: &SlotArena, secret: u8| {
                assert_eq!(arena.secret(slot).expect("a holder sees it")[..], [5; SLOT_BYTES]);
                let last = arena.release(slot, 1);
                if last {
                    arena.reuse(slot);
                }
                (last, arena.insert(&[secret; SLOT_BYTES]).expect("slot"))
            };
            let other = arena.clone();
            let other = thread::spawn(move || holder(&other, 1));
            let (last, mine) = holder(&arena, 2);
            let (other_last, theirs) = other.join().expect("no panic");
            assert!(last != other_last, "the last reference goes once");
            assert_ne!(mine, theirs);
            assert_eq!(arena.secret(mine).expect("live")[..], [2; SLOT_BYTES]);
            assert_eq!(arena.secret(theirs).expect("live")[..], [1; SLOT_BYTES]);
            arena.check();
        });
    }
}
