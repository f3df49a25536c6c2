//! The record of what the scratch could not keep: ranges whose writing failed, names that could not be made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::{Condvar, Mutex, rank};

/// Most removed files and names that are remembered one by one.
const MOST_REMEMBERED: usize = 1000;
/// Most ranges of one file that are remembered one by one, and of every file if more than [`MOST_REMEMBERED`] lack data: whoever
/// fails on purpose must not fill the memory.
const MOST_RANGES: usize = 100;

/// What is not as some program wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Paths below the root of the scratch; of something that has none any more, its last name.
    pub paths: Vec<Vec<u8>>,
    /// Whether it still has these names.
    pub linked: bool,
    /// Ranges of bytes that were accepted, or tried, and are not there.
    pub lost: Vec<Range<u64>>,
    /// Whether writing to it, or making it, was refused since the scratch was full.
    pub refused: bool,
    /// Whether it was read while something was missing, so that other files may have been made of it.
    pub read: bool,
}

/// How much is not as some program wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossTotals {
    /// Files, those that could not be made among them.
    pub files: u64,
    /// Bytes that were accepted, or tried, and are not there.
    pub bytes: u64,
    /// Files to which a write was refused since the scratch was full, or which could not be made.
    pub refused: u64,
}

/// The record. Its lock is a leaf.
#[derive(Default)]
pub struct Losses {
    /// Whether there is anything, so that nobody pays for a record that is empty.
    any: AtomicBool,
    pub record: Mutex<{ rank::LOSSES }, LossRecord>,
    pub changes: Arc<LossChanges>,
}

/// Counts changes of the record, for whoever waits for them.
#[derive(Default)]
pub struct LossChanges {
    count: Mutex<{ rank::LOSS_CHANGES }, u64>,
    changed: Condvar,
}

impl LossChanges {
    /// Waits for a change beyond the first `seen`, or for the end of the scratch; returns how many there were.
    pub fn wait(&self, seen: u64) -> u64 {
        let mut count = self.count.lock();
        while *count == seen {
            self.changed.wait(&mut count);
        }
        *count
    }

    fn add(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }
}

/// Whoever waits learns that nothing more will change.
impl Drop for Losses {
    fn drop(&mut self) {
        self.changes.add();
    }
}

/// What is remembered.
#[derive(Default)]
pub struct LossRecord {
    /// By inode.
    pub marks: HashMap<u64, Mark>,
    /// Names that could not be made, by directory.
    pub unmade: BTreeSet<(u64, Vec<u8>)>,
    /// Files that were read while something was missing and then removed.
    pub gone: Vec<Loss>,
    /// Those beyond what is remembered.
    pub more: u64,
}

/// What one file lacks.
#[derive(Clone, Default)]
pub struct Mark {
    /// Disjoint, by start.
    lost: BTreeMap<u64, u64>,
    pub refused: bool,
    /// Whether somebody read what is missing, or may have.
    pub read: bool,
    /// The last name, once it is removed.
    name: Option<Vec<u8>>,
}

impl Losses {
    /// A range did not reach the store.
    pub fn lose(&self, ino: u64, range: Range<u64>) {
        self.change(|record| {
            let most = if record.marks.len() > MOST_REMEMBERED { 1 } else { MOST_RANGES };
            record.marks.entry(ino).or_default().add(range, most);
        });
    }

    /// A write to a file was refused; `true` for the first time.
    pub fn refuse(&self, ino: u64) -> bool {
        self.change(|record| !mem::replace(&mut record.marks.entry(ino).or_default().refused, true))
    }

    /// A name could not be made.
    pub fn refuse_name(&self, parent: u64, name: &[u8]) {
        self.change(|record| match record.unmade.len() < MOST_REMEMBERED {
            true => _ = record.unmade.insert((parent, name.to_owned())),
            false => record.more += 1,
        });
    }

    /// A range is as somebody wants it.
    pub fn mend(&self, ino: u64, range: Range<u64>) {
        self.amend(ino, |mark| mark.take(range));
    }

    /// The file ends here now. Who cuts it knows what is in it.
    pub fn cut(&self, ino: u64, size: u64) {
        self.amend(ino, |mark| {
            mark.take(size..u64::MAX);
            mark.refused = false;
        });
    }

    /// A range is read.
    pub fn read(&self, ino: u64, range: Range<u64>) {
        if !self.is_empty()
            && let Some(mark) = self.record.lock().marks.get_mut(&ino)
        {
            mark.read |= mark.refused || mark.meets(&range);
        }
    }

    /// A name exists now.
    pub fn made(&self, parent: u64, name: &[u8]) {
        if !self.is_empty() {
            self.change(|record| _ = record.unmade.remove(&(parent, name.to_owned())));
        }
    }

    /// A file lost a name.
    pub fn unlinked(&self, ino: u64, name: &[u8]) {
        if !self.is_empty()
            && let Some(mark) = self.record.lock().marks.get_mut(&ino)
        {
            mark.name = Some(name.to_owned());
        }
    }

    /// An inode is no more.
    pub fn bury(&self, ino: u64) {
        if self.is_empty() {
            return;
        }
        self.change(|record| {
            record.unmade.retain(|(parent, _)| *parent != ino);
            let Some(mark) = record.marks.remove(&ino).filter(|mark| mark.read) else { return };
            match record.gone.len() < MOST_REMEMBERED {
                true => record.gone.push(mark.into_loss(Vec::new())),
                false => record.more += 1,
            }
        });
    }

    pub fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn change<T>(&self, change: impl FnOnce(&mut LossRecord) -> T) -> T {
        let mut record = self.record.lock();
        self.any.store(true, Ordering::Release);
        self.changes.add();
        change(&mut record)
    }

    fn amend(&self, ino: u64, change: impl FnOnce(&mut Mark)) {
        if self.is_empty() {
            return;
        }
        let mut record = self.record.lock();
        let Some(mark) = record.marks.get_mut(&ino) else { return };
        change(mark);
        if mark.is_whole() && !mark.read {
            record.marks.remove(&ino);
        }
        self.changes.add();
    }
}

impl Mark {
    /// Adds a range; if there are more than `most` then, gaps between them count, too.
    fn add(&mut self, range: Range<u64>, most: usize) {
        let Range { mut start, mut end } = range;
        let meets = |(&at, &till): (&u64, &u64)| (at <= end && till >= start).then_some((at, till));
        let met: Vec<_> = self.lost.range(..=end).filter_map(meets).collect();
        for (at, till) in met {
            self.lost.remove(&at);
            (start, end) = (start.min(at), end.max(till));
        }
        self.lost.insert(start, end);
        while self.lost.len() > most {
            self.join_closest(start);
        }
    }

    /// Counts what is between the range at `start` and its neighbour as lost, too.
    fn join_closest(&mut self, start: u64) {
        let before = self.lost.range(..start).next_back().map(|(&at, &till)| (at, till));
        let (at, till) =
            before.or_else(|| self.lost.first_key_value().map(|(&at, &till)| (at, till))).unwrap_or_default();
        if let Some((next, end)) = self.lost.range(at + 1..).next().map(|(&at, &till)| (at, till)) {
            self.lost.remove(&next);
            self.lost.insert(at, end.max(till));
        }
    }

    fn take(&mut self, range: Range<u64>) {
        let meets = |(&at, &till): (&u64, &u64)| (till > range.start).then_some((at, till));
        let met: Vec<_> = self.lost.range(..range.end).filter_map(meets).collect();
        for (at, till) in met {
            self.lost.remove(&at);
            if at < range.start {
                self.lost.insert(at, range.start);
            }
            if till > range.end {
                self.lost.insert(range.end, till);
            }
        }
    }

    fn meets(&self, range: &Range<u64>) -> bool {
        self.lost.range(..range.end).any(|(_, till)| *till > range.start)
    }

    /// Whether nothing is missing any more.
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty() && !self.refused
    }

    pub fn bytes(&self) -> u64 {
        self.lost.iter().map(|(at, till)| till - at).sum()
    }

    pub fn into_loss(self, paths: Vec<Vec<u8>>) -> Loss {
        let linked = !paths.is_empty();
        let paths = if linked { paths } else { self.name.into_iter().collect() };
        let lost = self.lost.into_iter().map(|(at, till)| at..till).collect();
        Loss { paths, linked, lost, refused: self.refused, read: self.read }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_ranges_become_fewer_and_cover_no_less() {
        let mut mark = Mark::default();
        for order in [1, 7] {
            for n in 0..3000u64 {
                let at = n * order % 3000 * 10;
                mark.add(at..at + 5, MOST_RANGES);
                assert!(mark.meets(&(at..at + 5)) && mark.lost.len() <= MOST_RANGES);
            }
        }
        mark.add(0..1, 1);
        assert_eq!(mark.lost.len(), 1);
        assert!((0..3000).all(|n| mark.meets(&(n * 10..n * 10 + 5))));
        assert!(mark.lost.iter().zip(mark.lost.iter().skip(1)).all(|((_, till), (at, _))| till < at));
    }

    #[test]
    fn ranges_join_and_split() {
        let mut mark = Mark::default();
        let ranges = |mark: &Mark| mark.lost.iter().map(|(&at, &till)| (at, till)).collect::<Vec<_>>();
        mark.add(10..20, MOST_RANGES);
        mark.add(30..40, MOST_RANGES);
        assert_eq!((ranges(&mark), mark.bytes()), (vec![(10, 20), (30, 40)], 20));
        mark.add(20..30, MOST_RANGES);
        assert_eq!(ranges(&mark), [(10, 40)]);
        mark.take(15..16);
        mark.take(0..11);
        assert_eq!(ranges(&mark), [(11, 15), (16, 40)]);
        assert!(mark.meets(&(14..15)) && !mark.meets(&(15..16)) && !mark.meets(&(40..50)) && mark.meets(&(0..12)));
        mark.take(12..u64::MAX);
        assert_eq!(ranges(&mark), [(11, 12)]);
    }
}
