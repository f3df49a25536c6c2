//! Space behind the limit: for data that somebody was told is written before it comes here.
//!
//! A kernel that caches writes accepts data first and sends it later. What it may have accepted when the limit is
//! reached must find room all the same, whatever else fills the disk. So part of it is set aside on the disk (the
//! reserve), and [`Pressure`] tells early enough when nothing more may be accepted.

use std::ops::Range;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::alloc::RangeSet;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, rank};
use crate::units::SECTOR_U64;

/// Most sectors that are kept free beyond what may be accepted: writers notice late by a few hundred KiB each.
const SLACK: u64 = (8 << 20) / SECTOR_U64;
/// The same, where it would be more than an eighth of the space.
const LEAST_SLACK: u64 = (1 << 20) / SECTOR_U64;
/// Free sectors of the disk that are not counted on: its file system needs blocks of its own.
const DISK_MARGIN: u64 = (1 << 20) / SECTOR_U64;
/// How long the free space of the disk counts as known.
const DISK_MEMORY: Duration = Duration::from_millis(2);

/// How near the end of the space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Far away.
    Ample,
    /// What may have been accepted while it was far away could reach it.
    Near,
    /// Nothing more may be accepted; what was, has room.
    Full,
    /// More than half of the headroom is taken.
    Overfull,
}

/// The headroom of a store. Without [`Headroom::set`] there is none, and pressure is always ample.
pub(super) struct Headroom {
    /// Sectors behind the limit.
    sectors: AtomicU64,
    /// Free sectors below which pressure is [`Pressure::Near`].
    near: AtomicU64,
    /// Whether it was near last time: then it must go half as far away again to be ample, so that it does not swing.
    was_near: AtomicBool,
    /// Where the reserve is.
    region: OnceLock<(u16, Range<u64>)>,
    /// Free sectors of the reserve. A leaf among locks.
    reserve: Mutex<{ rank::RESERVE }, RangeSet>,
    /// How many those are.
    reserve_free: AtomicU64,
    disk: Gauge,
}

impl Default for Headroom {
    fn default() -> Self {
        Self {
            sectors: AtomicU64::new(0),
            near: AtomicU64::new(0),
            was_near: AtomicBool::new(false),
            region: OnceLock::new(),
            reserve: Mutex::default(),
            reserve_free: AtomicU64::new(0),
            disk: Gauge::new(),
        }
    }
}

impl Headroom {
    /// Settles the size for `late` sectors that may be accepted near the end, `early` before that, and `space` sectors in
    /// all. Of a disk that has `disk` sectors free it takes at most a quarter: a small disk shall still be of use. Returns the sectors of the reserve to be kept.
    pub fn set(&self, early: u64, late: u64, space: u64, disk: u64) -> u64 {
        // Half of it is for those who may still write when the end is reached; what is dirty then has the other half.
        let sectors = (2 * (late + SLACK.min((space / 8).max(LEAST_SLACK)))).min(disk / 4);
        self.sectors.store(sectors, Ordering::Relaxed);
        self.near.store(2 * early + sectors, Ordering::Relaxed);
        sectors
    }

    /// Takes over `len` sectors of `arena` that the disk has set aside; once.
    pub fn keep(&self, arena: u16, block: u64, len: u64) {
        if self.region.set((arena, block..block + len)).is_ok() {
            self.reserve.lock().insert(block, len);
            self.reserve_free.store(len, Ordering::Relaxed);
        }
    }

    /// Sectors behind the limit.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Up to `len` contiguous sectors of the reserve: arena, first, how many.
    pub fn take(&self, len: u64) -> Option<(u16, u64, u64)> {
        let (arena, _) = self.region.get()?;
        let mut free = self.reserve.lock();
        let (block, len) = match free.take(len) {
            Some(block) => (block, len),
            None => free.take_largest()?,
        };
        self.reserve_free.fetch_sub(len, Ordering::Relaxed);
        Some((*arena, block, len))
    }

    /// Takes back what of a range belongs to the reserve; returns what is before it and behind it.
    pub fn put_back(&self, arena: u16, block: u64, len: u64) -> [Range<u64>; 2] {
        let all = block..block + len;
        let Some((_, region)) = self.region.get().filter(|(home, _)| *home == arena) else { return [all, 0..0] };
        let (start, end) = (all.start.max(region.start), all.end.min(region.end));
        if start >= end {
            return [all, 0..0];
        }
        self.reserve.lock().insert(start, end - start);
        self.reserve_free.fetch_add(end - start, Ordering::Relaxed);
        [all.start..start, end..all.end]
    }

    /// Of `disk` free sectors of the disk, those that are not needed for the headroom.
    pub fn leave(&self, disk: u64) -> u64 {
        self.real(disk).saturating_sub(self.sectors())
    }

    /// How near the end is: of the limit, of the `extents` that can be known, or of the disk, whose free sectors `disk`
    /// asks for.
    pub fn pressure(&self, limit: u64, used: u64, extents: u64, disk: impl FnOnce() -> u64) -> Pressure {
        if self.sectors() == 0 {
            return Pressure::Ample;
        }
        // Where a write will go, nobody says: each sector may need an extent, in reserved space too.
        if extents == 0 {
            return Pressure::Overfull;
        }
        let disk = self.disk.read(disk);
        let on_disk = self.leave(disk).saturating_sub(DISK_MARGIN);
        let free = limit.saturating_sub(used).min(on_disk);
        if free == 0 {
            let over = used.saturating_sub(limit).max(self.sectors().saturating_sub(self.real(disk)));
            return if over > self.sectors() / 2 { Pressure::Overfull } else { Pressure::Full };
        }
        let free = free.min(extents);
        let near = self.near.load(Ordering::Relaxed);
        let near = if self.was_near.load(Ordering::Relaxed) { near + near / 2 } else { near };
        self.was_near.store(free < near, Ordering::Relaxed);
        if free < near { Pressure::Near } else { Pressure::Ample }
    }

    /// Sectors of the disk that can be written, `disk` of which are nobody's.
    fn real(&self, disk: u64) -> u64 {
        disk.saturating_add(self.reserve_free.load(Ordering::Relaxed))
    }
}

/// The free space of the disk, asked for at most every [`DISK_MEMORY`].
struct Gauge {
    born: Instant,
    /// Nanoseconds after `born`; 0 before the first reading.
    read_at: AtomicU64,
    sectors: AtomicU64,
}

impl Gauge {
    fn new() -> Self {
        Self { born: Instant::now(), read_at: AtomicU64::new(0), sectors: AtomicU64::new(0) }
    }

    fn read(&self, disk: impl FnOnce() -> u64) -> u64 {
        let now = self.born.elapsed().as_nanos() as u64;
        let read_at = self.read_at.load(Ordering::Acquire);
        if read_at != 0 && now.saturating_sub(read_at) < DISK_MEMORY.as_nanos() as u64 {
            return self.sectors.load(Ordering::Relaxed);
        }
        let sectors = disk();
        self.sectors.store(sectors, Ordering::Relaxed);
        self.read_at.store(now.max(1), Ordering::Release);
        sectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = (1 << 20) / SECTOR_U64;
    const ROOM: u64 = 24 * MIB;

    fn headroom(reserve: bool) -> Headroom {
        let headroom = Headroom::default();
        assert_eq!(headroom.set(16 * MIB, 4 * MIB, 1024 * MIB, u64::MAX), ROOM);
        if reserve {
            headroom.keep(0, 100, ROOM);
        }
        headroom
    }

    #[test]
    fn without_headroom_there_is_no_pressure() {
        assert_eq!(Headroom::default().pressure(10, 10, u64::MAX, || 0), Pressure::Ample);
    }

    #[test]
    fn pressure_grows_towards_the_limit() {
        let near = 1024 - 2 * 16 - 24;
        for (used, expected) in [
            (0, Pressure::Ample),
            (near * MIB, Pressure::Ample),
            (near * MIB + 1, Pressure::Near),
            (1024 * MIB - 1, Pressure::Near),
            (1024 * MIB, Pressure::Full),
            (1036 * MIB, Pressure::Full),
            (1037 * MIB, Pressure::Overfull),
        ] {
            assert_eq!(headroom(true).pressure(1024 * MIB, used, u64::MAX, || u64::MAX), expected, "{used}");
        }
    }

    #[test]
    fn it_goes_further_away_than_it_came() {
        let headroom = headroom(true);
        let at = |free: u64| headroom.pressure(1024 * MIB, (1024 - free) * MIB, u64::MAX, || u64::MAX);
        assert_eq!([60, 55, 60, 83, 84, 60].map(at), {
            use Pressure::{Ample, Near};
            [Ample, Near, Near, Near, Ample, Ample]
        });
    }

    #[test]
    fn memory_counts_as_the_limit_does() {
        for (extents, expected) in [(0, Pressure::Overfull), (1, Pressure::Near), (1024 * MIB, Pressure::Ample)] {
            assert_eq!(headroom(true).pressure(1024 * MIB, 0, extents, || u64::MAX), expected, "{extents}");
        }
    }

    #[test]
    fn a_small_disk_is_not_all_headroom() {
        assert_eq!(Headroom::default().set(40 * MIB, 40 * MIB, 16 * MIB, 16 * MIB), 4 * MIB);
    }

    #[test]
    fn the_disk_counts_as_the_limit_does_and_its_reserve_is_there_already() {
        for (disk, expected) in [(1000, Pressure::Ample), (50, Pressure::Near), (1, Pressure::Full)] {
            assert_eq!(headroom(true).pressure(1024 * MIB, 0, u64::MAX, || disk * MIB), expected, "{disk}");
        }
        let bare = headroom(false);
        assert_eq!(bare.pressure(1024 * MIB, 0, u64::MAX, || 25 * MIB), Pressure::Full, "nothing is set aside");
        let spent = headroom(true);
        spent.take(4 * MIB).expect("free");
        assert_eq!(
            spent.pressure(1024 * MIB, 0, u64::MAX, || 5 * MIB),
            Pressure::Full,
            "what is spent must be there anew"
        );
        assert_eq!((spent.leave(5 * MIB), spent.leave(3 * MIB)), (MIB, 0));
    }

    #[test]
    fn the_reserve_takes_back_what_is_its_own() {
        let headroom = headroom(true);
        let end = 100 + ROOM;
        assert_eq!(headroom.take(ROOM), Some((0, 100, ROOM)));
        assert_eq!(headroom.take(1), None);
        assert_eq!(headroom.put_back(1, 100, 5), [100..105, 0..0], "another arena");
        assert_eq!(headroom.put_back(0, 0, 100), [0..100, 0..0]);
        assert_eq!(headroom.put_back(0, end, 3), [end..end + 3, 0..0]);
        assert_eq!(headroom.put_back(0, 98, 4), [98..100, 102..102]);
        assert_eq!(headroom.put_back(0, end - 1, 3), [end - 1..end - 1, end..end + 2]);
        assert_eq!(headroom.take(5), Some((0, 100, 2)), "the largest range there is");
        assert_eq!(headroom.take(5), Some((0, end - 1, 1)));
    }

    #[test]
    fn the_disk_is_not_asked_for_each_write() {
        let gauge = Gauge::new();
        assert_eq!(gauge.read(|| 7), 7);
        // A machine that stands still between the two calls asks again.
        let again = gauge.read(|| 8);
        assert!(again == 7 || gauge.born.elapsed() > DISK_MEMORY);
    }
}
