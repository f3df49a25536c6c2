//! Places for sectors: per-arena allocators, and the thread that gives freed space back to the disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::alloc::{ArenaAlloc, SectorRun};
use super::extent::Extent;
use super::headroom::{Headroom, Pressure};
use super::shared::SharedExtents;
use crate::backing::Backing;
use crate::sync::{Condvar, Mutex, rank};
use crate::units::SECTOR_U64;

/// How long freed space waits for reuse before it goes back to the disk.
const DISCARD_DELAY: Duration = Duration::from_millis(500);
/// Sectors of one arena: 8 TiB, below the 16 TiB that ext4 allows a file.
const ARENA_SECTORS: u64 = 1 << 31;
/// Sequence numbers of arena `n` start at `n << ARENA_SEQ_BITS`: 2^48 sectors (one exbibyte) are never exhausted.
const ARENA_SEQ_BITS: u32 = 48;

/// Whose turn it is to take space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Somebody who learns that there is none.
    Limit,
    /// Somebody who was told already that the data is written.
    Headroom,
}

/// Where sectors may be had.
#[derive(Clone, Copy, Debug)]
pub(super) enum Site {
    /// Any free ones of this arena.
    Arena(u16),
    /// Those that were set aside on the disk.
    Reserve,
}

/// What the contents and the discarder share.
struct Arenas {
    backing: Box<dyn Backing>,
    arenas: Vec<Mutex<{ rank::ARENA }, ArenaAlloc>>,
    shared: SharedExtents,
    limit: u64,
    used: AtomicU64,
    headroom: Headroom,
    discard: Mutex<{ rank::DISCARD }, Discard>,
    wake: Condvar,
}

/// What the discarder is to do next.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Discard {
    /// Nothing has been freed since it last began.
    #[default]
    Nothing,
    /// Give back what is still free after [`DISCARD_DELAY`].
    Later,
    /// End.
    Stop,
}

/// All space of a run.
pub(super) struct Space {
    inner: Arc<Arenas>,
    discarder: Option<JoinHandle<()>>,
}

impl Space {
    /// Space for `limit` sectors over `backing`.
    pub fn new(backing: Box<dyn Backing>, limit: u64) -> Self {
        let arenas = (0..u64::from(backing.arenas()))
            .map(|arena| Mutex::new(ArenaAlloc::new(ARENA_SECTORS, arena << ARENA_SEQ_BITS)))
            .collect();
        let inner = Arc::new(Arenas {
            backing,
            arenas,
            shared: SharedExtents::default(),
            limit,
            used: AtomicU64::new(0),
            headroom: Headroom::default(),
            discard: Mutex::default(),
            wake: Condvar::default(),
        });
        let worker = Arc::clone(&inner);
        let discarder = std::thread::Builder::new()
            .name("runseal-discard".into())
            .spawn(move || worker.discard_loop())
            .inspect_err(|error| tracing::warn!(%error, "freed space is given back at the end of the run only"))
            .ok();
        Self { inner, discarder }
    }

    /// The arenas' bytes.
    pub fn backing(&self) -> &dyn Backing {
        &*self.inner.backing
    }

    /// Sectors that may be allocated in all.
    pub fn limit(&self) -> u64 {
        self.inner.limit
    }

    /// Sectors allocated or charged.
    pub fn used(&self) -> u64 {
        self.inner.used.load(Ordering::Relaxed)
    }

    /// Sectors that can still be written: what the limit leaves, or the disk if that is less.
    pub fn available(&self) -> u64 {
        let left = self.limit().saturating_sub(self.used());
        left.min(self.inner.headroom.leave(self.disk_free()))
    }

    /// Sectors of the disk that are nobody's; very many where it cannot tell.
    pub fn disk_free(&self) -> u64 {
        self.inner.backing.available().map_or(u64::MAX, |bytes| bytes / SECTOR_U64)
    }

    /// Sets `late` sectors and some more aside, behind the limit and on the disk, for accepted data; `early` sectors may
    /// be accepted before the end is near.
    pub fn set_headroom(&self, early: u64, late: u64) -> io::Result<()> {
        const ARENA: u16 = 0;
        let sectors = self.inner.headroom.set(early, late, self.available(), self.disk_free());
        let Some((_, run)) = self.allocate(Site::Arena(ARENA), sectors) else { return Ok(()) };
        let kept = self.inner.backing.set_aside(u32::from(ARENA), run.block * SECTOR_U64, run.len * SECTOR_U64);
        match &kept {
            Ok(()) => self.inner.headroom.keep(ARENA, run.block, run.len),
            Err(_) => self.inner.arenas[usize::from(ARENA)].lock().free(run.block, run.len),
        }
        kept
    }

    /// How near the end is; `extents` is how many more can be known.
    pub fn pressure(&self, extents: u64) -> Pressure {
        self.inner.headroom.pressure(self.limit(), self.used(), extents, || self.disk_free())
    }

    /// Where to take sectors from, in order.
    pub fn sites(&self, claim: Claim) -> impl Iterator<Item = Site> {
        let reserve = (claim == Claim::Headroom).then_some(Site::Reserve);
        self.arena_order().map(Site::Arena).chain(reserve)
    }

    /// Has the disk hold room for sectors that are allocated, where its file system can; `false` if it has none.
    pub fn set_aside(&self, arena: u16, block: u64, len: u64) -> bool {
        let kept = self.inner.backing.set_aside(u32::from(arena), block * SECTOR_U64, len * SECTOR_U64);
        kept.map_or_else(|error| error.kind() == io::ErrorKind::Unsupported, |()| true)
    }

    /// Arenas in the order this thread should try them: its home first, so that threads rarely meet.
    fn arena_order(&self) -> impl Iterator<Item = u16> {
        static NEXT_HOME: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static HOME: usize = NEXT_HOME.fetch_add(1, Ordering::Relaxed);
        }
        let (home, count) = (HOME.with(|home| *home), self.inner.arenas.len());
        (0..count).map(move |step| ((home + step) % count) as u16)
    }

    /// Charges `sectors` against the limit, with the headroom if the claim is on it; `false`, and no charge, if it would
    /// be exceeded.
    pub fn charge(&self, sectors: u64, claim: Claim) -> bool {
        let limit = match claim {
            Claim::Limit => self.inner.limit,
            Claim::Headroom => self.inner.limit.saturating_add(self.inner.headroom.sectors()),
        };
        let grow = |used: u64| used.checked_add(sectors).filter(|used| *used <= limit);
        self.inner.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    /// Takes a charge back.
    pub fn discharge(&self, sectors: u64) {
        self.inner.used.fetch_sub(sectors, Ordering::Relaxed);
    }

    /// Up to `len` contiguous sectors with fresh sequence numbers, and their arena; their charge is the caller's.
    pub fn allocate(&self, site: Site, len: u64) -> Option<(u16, SectorRun)> {
        match site {
            Site::Arena(arena) => Some((arena, self.inner.arenas[usize::from(arena)].lock().allocate(len)?)),
            Site::Reserve => {
                let (arena, block, len) = self.inner.headroom.take(len)?;
                Some((arena, SectorRun { block, seq: self.sequence(arena, len), len }))
            }
        }
    }

    /// Fresh sequence numbers for sectors of `arena` that already have a place.
    pub fn sequence(&self, arena: u16, len: u64) -> u64 {
        self.inner.arenas[usize::from(arena)].lock().sequence(len)
    }

    /// Gives one reference to an extent's sectors back, frees and discharges those that were the last; returns
    /// how many were freed.
    pub fn release(&self, extent: &Extent) -> u64 {
        if !extent.shared {
            self.free(extent.arena, extent.block, u64::from(extent.len));
            return u64::from(extent.len);
        }
        let freed = self.inner.shared.release(extent);
        freed.iter().for_each(|&(block, len)| self.free(extent.arena, block, len));
        freed.iter().map(|(_, len)| len).sum()
    }

    /// Adds one reference to the sectors of an extent.
    pub fn share(&self, extent: &Extent) {
        self.inner.shared.share(extent);
    }

    /// Gives back sectors that were allocated and charged.
    pub fn free(&self, arena: u16, block: u64, len: u64) {
        self.discharge(len);
        let rest = self.inner.headroom.put_back(arena, block, len);
        if rest.iter().all(|range| range.is_empty()) {
            return;
        }
        let mut alloc = self.inner.arenas[usize::from(arena)].lock();
        rest.into_iter()
            .filter(|range| !range.is_empty())
            .for_each(|range| alloc.free(range.start, range.end - range.start));
        drop(alloc);
        let mut next = self.inner.discard.lock();
        if *next == Discard::Nothing {
            *next = Discard::Later;
            self.inner.wake.notify_all();
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        *self.inner.discard.lock() = Discard::Stop;
        self.inner.wake.notify_all();
        if let Some(thread) = self.discarder.take() {
            let _ = thread.join();
        }
    }
}

impl Arenas {
    fn discard_loop(&self) {
        loop {
            {
                let mut next = self.discard.lock();
                while *next == Discard::Nothing {
                    self.wake.wait(&mut next);
                }
                let deadline = Instant::now() + DISCARD_DELAY;
                while *next == Discard::Later && !self.wake.wait_until(&mut next, deadline) {}
                if *next == Discard::Stop {
                    return;
                }
                *next = Discard::Nothing;
            }
            (0..self.arenas.len()).for_each(|arena| self.discard_arena(arena));
        }
    }

    fn discard_arena(&self, arena: usize) {
        loop {
            let Some((block, len)) = self.arenas[arena].lock().take_dirty() else { return };
            if let Err(error) = self.backing.discard(arena as u32, block * SECTOR_U64, len * SECTOR_U64) {
                tracing::debug!(%error, arena, block, len, "space not given back; it will be reused instead");
            }
            self.arenas[arena].lock().discarded(block, len);
            if *self.discard.lock() == Discard::Stop {
                return;
            }
        }
    }
}

#[cfg(debug_assertions)]
impl Space {
    /// Asserts what [`ArenaAlloc::check`] and [`SharedExtents::check`] do.
    pub fn check(&self) {
        self.inner.arenas.iter().for_each(|arena| arena.lock().check());
        self.inner.shared.check();
    }
}
