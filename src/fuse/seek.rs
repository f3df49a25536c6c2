//! SEEK_DATA and SEEK_HOLE: a hole is believed when the kernel holds nothing for it.
//!
//! Under the writeback cache the kernel may have bytes that were not sent yet, where the server sees a hole or the end of
//! the file. So that range is flushed before it is reported. The kernel holds the lock of the inode while it waits for the
//! answer: only stores through mmap(2) can come in between, and they race with any answer.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::fs::{FsError, Scratch};

/// Bytes flushed at first; each time more, because where one page was dirty there are others.
const FIRST: u64 = 1 << 20;
/// Looks at most; each flushes twice as much, so that they cover the largest file.
const MOST: usize = 64;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whence {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`; there is one at the end of every file.
    Hole,
}

impl Whence {
    /// The meaning of `whence` of lseek(2); the kernel answers the other ones itself.
    pub(super) fn decode(whence: i32) -> Option<Self> {
        match whence {
            libc::SEEK_DATA => Some(Self::Data),
            libc::SEEK_HOLE => Some(Self::Hole),
            _ => None,
        }
    }
}

/// One lseek(2).
pub(super) struct Seek {
    pub(super) scratch: Arc<Scratch>,
    pub(super) ino: u64,
    /// Where the search begins.
    pub(super) from: u64,
}

impl Seek {
    /// Whether the search begins in data, which no flush can make a hole.
    pub(super) fn in_data(&self) -> Result<bool, FsError> {
        self.is_data(self.from)
    }

    /// What is wanted at or behind the beginning; `None` when nothing is (`ENXIO`). `flush` has the kernel write what is
    /// dirty in a range: bytes that a look afterwards finds.
    pub(super) fn find(
        &self,
        wanted: Whence,
        flush: impl FnMut(Range<u64>) -> io::Result<()>,
    ) -> Result<Option<u64>, FsError> {
        match wanted {
            Whence::Data => self.data(flush),
            Whence::Hole => self.hole(flush),
        }
    }

    fn data(&self, mut flush: impl FnMut(Range<u64>) -> io::Result<()>) -> Result<Option<u64>, FsError> {
        let (mut at, mut step) = (self.from, FIRST);
        for _ in 0..MOST {
            let end = self.data_behind(at)?.unwrap_or(u64::MAX);
            let until = at.saturating_add(step).min(end);
            if until == at || flush(at..until).is_err() {
                // What cannot be flushed is taken for data: that loses nothing.
                return Ok(Some(at));
            }
            let found = self.data_behind(at)?;
            if until == end || found.is_some_and(|found| found < until) {
                return Ok(found);
            }
            (at, step) = (until, step.saturating_mul(2));
        }
        Ok(Some(at))
    }

    fn hole(&self, mut flush: impl FnMut(Range<u64>) -> io::Result<()>) -> Result<Option<u64>, FsError> {
        let (mut at, mut step) = (self.from, FIRST);
        for _ in 0..MOST {
            let hole = self.hole_behind(at)?;
            // Behind the end there may be more than was sent.
            let inside = hole < self.size()?;
            let until = if inside { hole.saturating_add(step) } else { u64::MAX };
            if flush(hole..until.min(self.data_behind(hole)?.unwrap_or(u64::MAX))).is_err() {
                break;
            }
            if !self.is_data(hole)? {
                return Ok((self.from < self.size()?).then_some(hole));
            }
            (at, step) = (hole, step.saturating_mul(2));
        }
        // All of it is data: that loses nothing.
        let size = self.size()?;
        Ok((self.from < size).then_some(size))
    }

    fn is_data(&self, at: u64) -> Result<bool, FsError> {
        Ok(self.data_behind(at)? == Some(at))
    }

    /// Beginning of the first data at or behind a place.
    fn data_behind(&self, at: u64) -> Result<Option<u64>, FsError> {
        Ok(self.scratch.next_data(self.ino, at)?.map(|data| data.start))
    }

    /// Beginning of the first hole at or behind a place.
    fn hole_behind(&self, at: u64) -> Result<u64, FsError> {
        let data = self.scratch.next_data(self.ino, at)?;
        Ok(data.filter(|data| data.start == at).map_or(at, |data| data.end))
    }

    fn size(&self) -> Result<u64, FsError> {
        Ok(self.scratch.getattr(self.ino)?.size)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypt::Keyring;
    use crate::fs::{Creator, Kind, ROOT, ScratchOptions, WriteMode};
    use crate::spec::{EngineChoice, MemoryLock};
    use crate::store::Store;
    use crate::units::SECTOR_U64;

    /// A file of which the server knows some sectors, and the kernel holds others.
    struct File {
        scratch: Arc<Scratch>,
        ino: u64,
        dirty: BTreeSet<u64>,
        flushes: Vec<Range<u64>>,
    }

    impl File {
        fn new(scratch: &Arc<Scratch>, name: &str, sent: &[u64], dirty: &[u64]) -> Self {
            let caller = Creator { uid: 0, gid: 0, umask: 0 };
            let ino = scratch.mknod(ROOT, name.as_bytes(), Kind::File, 0o600, 0, &caller).expect("made").ino;
            sent.iter().for_each(|sector| write(scratch, ino, *sector));
            let dirty = dirty.iter().copied().collect();
            Self { scratch: scratch.clone(), ino, dirty, flushes: Vec::new() }
        }

        fn seek(&mut self, wanted: Whence, from: u64) -> Option<u64> {
            let Self { scratch, ino, dirty, flushes } = self;
            let seek = Seek { scratch: scratch.clone(), ino: *ino, from };
            let flush = |range: Range<u64>| {
                let pages = range.start / SECTOR_U64..=(range.end - 1) / SECTOR_U64;
                let written: Vec<_> = dirty.range(pages).copied().collect();
                for sector in written {
                    dirty.remove(&sector);
                    write(scratch, *ino, sector);
                }
                flushes.push(range);
                Ok(())
            };
            seek.find(wanted, flush).expect("a file")
        }
    }

    fn scratch() -> Arc<Scratch> {
        let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keys");
        let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 30);
        Arc::new(Scratch::new(store, ScratchOptions { memory: 1 << 24, uid: 0, gid: 0, mode: 0o755 }))
    }

    fn write(scratch: &Scratch, ino: u64, sector: u64) {
        scratch.write(ino, sector * SECTOR_U64, &[7; SECTOR_U64 as usize], WriteMode::default()).expect("room");
    }

    /// What the kernel has of a file in all, sector by sector: the answers must be as if all had been sent.
    fn expected(sectors: &BTreeSet<u64>, wanted: Whence, from: u64) -> Option<u64> {
        let size = sectors.last().map_or(0, |last| (last + 1) * SECTOR_U64);
        let is = |at: u64| sectors.contains(&(at / SECTOR_U64)) == (wanted == Whence::Data);
        let later = (from / SECTOR_U64 + 1..).map(|sector| sector * SECTOR_U64);
        let found = std::iter::once(from).chain(later).take_while(|at| *at < size).find(|at| is(*at));
        if from < size && wanted == Whence::Hole { Some(found.unwrap_or(size)) } else { found }
    }

    #[test]
    fn the_answer_does_not_depend_on_what_was_sent() {
        let scratch = scratch();
        let spread = [0, 1, 2, 300, 301, 5000];
        for split in 0..1 << spread.len() {
            let (sent, dirty): (Vec<_>, Vec<_>) =
                spread.iter().enumerate().partition::<Vec<_>, _>(|(bit, _)| split >> bit & 1 == 1);
            let values = |pairs: Vec<(usize, &u64)>| pairs.into_iter().map(|(_, sector)| *sector).collect::<Vec<_>>();
            let (sent, dirty) = (values(sent), values(dirty));
            let all = spread.into_iter().collect();
            for from in
                [0, 1, 3 * SECTOR_U64, 300 * SECTOR_U64 + 5, 302 * SECTOR_U64, 701 * SECTOR_U64, 5001 * SECTOR_U64]
            {
                for wanted in [Whence::Data, Whence::Hole] {
                    let found =
                        File::new(&scratch, &format!("{split} {wanted:?} {from}"), &sent, &dirty).seek(wanted, from);
                    assert_eq!(found, expected(&all, wanted, from), "{wanted:?} from {from}, sent {sent:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_needed_is_not_flushed() {
        let mut file = File::new(&scratch(), "f", &[0, 1], &[10, 400, 90_000]);
        assert_eq!(file.seek(Whence::Data, 2 * SECTOR_U64), Some(10 * SECTOR_U64));
        assert_eq!(file.dirty.len(), 2, "the search ends where the first data is");
        assert_eq!(file.seek(Whence::Hole, 0), Some(2 * SECTOR_U64));
        assert_eq!(file.dirty.len(), 2);
        file.flushes.clear();
        assert_eq!(file.seek(Whence::Data, 11 * SECTOR_U64), Some(400 * SECTOR_U64));
        assert!(file.flushes.len() < 5 && file.dirty.len() == 1, "{:?}", file.flushes);
        assert_eq!(file.seek(Whence::Data, 401 * SECTOR_U64), Some(90_000 * SECTOR_U64));
        assert!(file.flushes.len() < 20, "{:?}", file.flushes);
    }

    #[test]
    fn what_cannot_be_flushed_is_data() {
        let file = File::new(&scratch(), "f", &[0, 9], &[]);
        let seek = |from| Seek { scratch: file.scratch.clone(), ino: file.ino, from };
        let broken = |_| Err(io::ErrorKind::Other.into());
        assert_eq!(seek(SECTOR_U64).find(Whence::Data, broken).expect("a file"), Some(SECTOR_U64));
        assert_eq!(seek(0).find(Whence::Hole, broken).expect("a file"), Some(10 * SECTOR_U64));
        assert!(seek(0).in_data().expect("a file") && !seek(SECTOR_U64).in_data().expect("a file"));
    }
}
