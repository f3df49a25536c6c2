//! What the scratch could not keep: ranges whose writing failed, and what was refused for want of space.
//!
//! A writer may never have learnt of it, or may not have cared. So this record, and no error of fsync(2), decides what
//! becomes of results. What is written again, cut off or removed is forgotten, unless somebody read the file meanwhile:
//! then other files may have been made of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use super::{DirEntry, Kind, ROOT, Scratch};

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
pub(super) struct Losses {
    /// Whether there is anything, so that nobody pays for a record that is empty.
    any: AtomicBool,
    record: Mutex<Record>,
    changes: Arc<LossChanges>,
}

/// Counts changes of the record, for whoever waits for them.
#[derive(Default)]
pub struct LossChanges {
    count: Mutex<u64>,
    changed: Condvar,
}

impl LossChanges {
    /// Waits for a change beyond the first `seen`, or for the end of the scratch; returns how many there were.
    pub fn wait(&self, seen: u64) -> u64 {
        let mut count = self.count.lock();
        self.changed.wait_while(&mut count, |count| *count == seen);
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

#[derive(Default)]
struct Record {
    /// By inode.
    marks: HashMap<u64, Mark>,
    /// Names that could not be made, by directory.
    unmade: BTreeSet<(u64, Vec<u8>)>,
    /// Files that were read while something was missing and then removed.
    gone: Vec<Loss>,
    /// Those beyond what is remembered.
    more: u64,
}

#[derive(Clone, Default)]
struct Mark {
    /// Disjoint, by start.
    lost: BTreeMap<u64, u64>,
    refused: bool,
    /// Whether somebody read what is missing, or may have.
    read: bool,
    /// The last name, once it is removed.
    name: Option<Vec<u8>>,
}

impl Losses {
    /// A range did not reach the store.
    pub(super) fn lose(&self, ino: u64, range: Range<u64>) {
        self.change(|record| {
            let most = if record.marks.len() > MOST_REMEMBERED { 1 } else { MOST_RANGES };
            record.marks.entry(ino).or_default().add(range, most);
        });
    }

    /// A write to a file was refused; `true` for the first time.
    pub(super) fn refuse(&self, ino: u64) -> bool {
        self.change(|record| !mem::replace(&mut record.marks.entry(ino).or_default().refused, true))
    }

    /// A name could not be made.
    pub(super) fn refuse_name(&self, parent: u64, name: &[u8]) {
        self.change(|record| match record.unmade.len() < MOST_REMEMBERED {
            true => _ = record.unmade.insert((parent, name.to_owned())),
            false => record.more += 1,
        });
    }

    /// A range is as somebody wants it.
    pub(super) fn mend(&self, ino: u64, range: Range<u64>) {
        self.amend(ino, |mark| mark.take(range));
    }

    /// The file ends here now. Who cuts it knows what is in it.
    pub(super) fn cut(&self, ino: u64, size: u64) {
        self.amend(ino, |mark| {
            mark.take(size..u64::MAX);
            mark.refused = false;
        });
    }

    /// A range is read.
    pub(super) fn read(&self, ino: u64, range: Range<u64>) {
        if !self.is_empty()
            && let Some(mark) = self.record.lock().marks.get_mut(&ino)
        {
            mark.read |= mark.refused || mark.meets(&range);
        }
    }

    /// A name exists now.
    pub(super) fn made(&self, parent: u64, name: &[u8]) {
        if !self.is_empty() {
            self.change(|record| _ = record.unmade.remove(&(parent, name.to_owned())));
        }
    }

    /// A file lost a name.
    pub(super) fn unlinked(&self, ino: u64, name: &[u8]) {
        if !self.is_empty()
            && let Some(mark) = self.record.lock().marks.get_mut(&ino)
        {
            mark.name = Some(name.to_owned());
        }
    }

    /// An inode is no more.
    pub(super) fn bury(&self, ino: u64) {
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

    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Record) -> T) -> T {
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
    fn is_whole(&self) -> bool {
        self.lost.is_empty() && !self.refused
    }

    fn bytes(&self) -> u64 {
        self.lost.iter().map(|(at, till)| till - at).sum()
    }

    fn into_loss(self, paths: Vec<Vec<u8>>) -> Loss {
        let linked = !paths.is_empty();
        let paths = if linked { paths } else { self.name.into_iter().collect() };
        let lost = self.lost.into_iter().map(|(at, till)| at..till).collect();
        Loss { paths, linked, lost, refused: self.refused, read: self.read }
    }
}

impl Scratch {
    /// A write(2) to this file is refused, since the scratch is full; `true` for the first time since it was whole.
    pub fn refuse_write(&self, ino: u64) -> bool {
        self.losses.refuse(ino)
    }

    /// A name is not made, since the scratch is full.
    pub fn refuse_name(&self, parent: u64, name: &[u8]) {
        self.losses.refuse_name(parent, name);
    }

    /// Changes whenever [`Scratch::losses`] may have.
    pub fn loss_changes(&self) -> Arc<LossChanges> {
        self.losses.changes.clone()
    }

    /// How much is missing, without looking for names.
    pub fn loss_totals(&self) -> LossTotals {
        let record = self.losses.record.lock();
        let marks = record.marks.values().filter(|mark| !mark.is_whole() || mark.read);
        let mut totals = LossTotals { files: record.unmade.len() as u64 + record.more, ..LossTotals::default() };
        totals.refused = totals.files;
        for (bytes, refused) in marks.map(|mark| (mark.bytes(), mark.refused)) {
            totals.files += 1;
            totals.bytes += bytes;
            totals.refused += u64::from(refused);
        }
        for loss in &record.gone {
            totals.files += 1;
            totals.bytes += loss.lost.iter().map(|range| range.end - range.start).sum::<u64>();
            totals.refused += u64::from(loss.refused);
        }
        totals
    }

    /// Everything that is missing, or was when somebody read it. Files without a name count only if they were read.
    pub fn losses(&self) -> Vec<Loss> {
        if self.losses.is_empty() {
            return Vec::new();
        }
        let (marks, unmade, mut losses) = {
            let record = self.losses.record.lock();
            (record.marks.clone(), record.unmade.clone(), record.gone.clone())
        };
        let mut paths: HashMap<u64, Vec<Vec<u8>>> = marks.keys().map(|ino| (*ino, Vec::new())).collect();
        paths.extend(unmade.iter().map(|(parent, _)| (*parent, Vec::new())));
        self.find_paths(&mut paths);
        for (ino, mark) in marks {
            let paths = paths.remove(&ino).unwrap_or_default();
            if mark.read || !mark.is_whole() && !paths.is_empty() {
                losses.push(mark.into_loss(paths));
            }
        }
        for (parent, name) in unmade {
            let directories = paths.get(&parent).into_iter().flatten();
            let paths: Vec<_> = directories.map(|directory| below(directory, &name)).collect();
            if !paths.is_empty() {
                losses.push(Loss { paths, linked: false, lost: Vec::new(), refused: true, read: false });
            }
        }
        losses.sort_by(|a, b| a.paths.cmp(&b.paths));
        losses
    }

    /// Adds to each inode of `wanted` the paths it has.
    fn find_paths(&self, wanted: &mut HashMap<u64, Vec<Vec<u8>>>) {
        let mut pending = vec![(ROOT, Vec::new())];
        while let Some((directory, path)) = pending.pop() {
            if let Some(paths) = wanted.get_mut(&directory) {
                paths.push(path.clone());
            }
            let mut visit = |entry: DirEntry<'_>| {
                if matches!(entry.name, b"." | b"..") {
                    return true;
                }
                if entry.kind == Kind::Directory {
                    pending.push((entry.ino, below(&path, entry.name)));
                } else if let Some(paths) = wanted.get_mut(&entry.ino) {
                    paths.push(below(&path, entry.name));
                }
                true
            };
            // A directory that was removed meanwhile has nothing in it.
            let _ = self.readdir(directory, 0, &mut visit);
        }
    }
}

fn below(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_owned() } else { [directory, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{limited, scratch};
    use super::super::{Fallocate, FsError, SetAttr, WriteMode};
    use super::*;

    const FULL: u64 = 64 << 10;

    fn only(fs: &Scratch) -> Loss {
        let mut losses = fs.losses();
        assert_eq!(losses.len(), 1, "{losses:?}");
        losses.remove(0)
    }

    fn pairs(ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        ranges.iter().map(|range| (range.start, range.end)).collect()
    }

    fn cut(fs: &Scratch, ino: u64, size: u64) {
        fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
    }

    /// A file of 64 KiB that fills a scratch, and one behind which nothing has room.
    fn full() -> (Scratch, u64, u64) {
        let fs = limited(FULL, 1 << 20);
        let (first, second) = (fs.file(ROOT, "first").ino, fs.file(ROOT, "second").ino);
        fs.write(first, 0, &[1; FULL as usize], WriteMode::default()).unwrap();
        assert!(matches!(fs.write(second, 4096, &[2; 8192], WriteMode::default()), Err(FsError::Store(_))));
        (fs, first, second)
    }

    // promise: S-101
    #[test]
    fn what_failed_is_lost_until_it_is_written_again() {
        let (fs, first, second) = full();
        let loss = only(&fs);
        assert_eq!((&loss.paths[0][..], pairs(&loss.lost), loss.refused), (&b"second"[..], vec![(4096, 12288)], false));
        assert_eq!(fs.loss_totals(), LossTotals { files: 1, bytes: 8192, refused: 0 });
        cut(&fs, first, 0);
        fs.write(second, 8192, &[2; 4096], WriteMode::default()).unwrap();
        assert_eq!(pairs(&only(&fs).lost), [(4096, 8192)]);
        fs.write(second, 0, &[2; 8192], WriteMode::default()).unwrap();
        assert_eq!((fs.losses(), fs.loss_totals()), (vec![], LossTotals::default()));
    }

    #[test]
    fn truncating_punching_and_removing_forget_it_too() {
        let (fs, _, second) = full();
        cut(&fs, second, 5000);
        assert_eq!(pairs(&only(&fs).lost), [(4096, 5000)]);
        fs.fallocate(second, 4096, 4096, Fallocate::Punch).unwrap();
        assert_eq!(fs.losses(), []);
        let (fs, _, second) = full();
        fs.unlink(ROOT, b"second").unwrap();
        assert_eq!(fs.losses(), [], "without a name");
        fs.forget(second, 1);
        assert_eq!((fs.losses(), fs.loss_totals()), (vec![], LossTotals::default()));
    }

    // promise: S-101
    #[test]
    fn what_was_read_while_it_was_missing_is_remembered() {
        let (fs, first, second) = full();
        fs.read(second, 0, &mut [0; 4096]).unwrap();
        cut(&fs, second, 20_000);
        fs.read(second, 12288, &mut [0; 100]).unwrap();
        assert!(!only(&fs).read, "what is there was read");
        fs.read(second, 0, &mut [0; 4097]).unwrap();
        cut(&fs, first, 0);
        fs.write(second, 0, &[2; 20_000], WriteMode::default()).unwrap();
        let loss = only(&fs);
        assert!(loss.read && loss.lost.is_empty() && loss.linked);
        fs.unlink(ROOT, b"second").unwrap();
        assert!(!only(&fs).linked);
        fs.forget(second, 1);
        let loss = only(&fs);
        assert_eq!((loss.paths, loss.linked, loss.read), (vec![b"second".to_vec()], false, true));
    }

    #[test]
    fn refused_writes_are_forgotten_when_the_file_is_cut_or_replaced() {
        let fs = scratch();
        let (dir, file) = (fs.dir(ROOT, "d").ino, fs.file(ROOT, "f").ino);
        assert!(fs.refuse_write(file) && !fs.refuse_write(file));
        assert!(only(&fs).refused);
        fs.write(file, 0, b"more", WriteMode::default()).unwrap();
        assert!(only(&fs).refused, "what was refused may be missing in the middle");
        cut(&fs, file, 0);
        assert_eq!(fs.losses(), []);
        assert!(fs.refuse_write(file));
        fs.file(ROOT, "new");
        fs.mv(ROOT, "new", ROOT, "f").unwrap();
        fs.forget(file, 1);
        assert_eq!(fs.losses(), []);
        fs.refuse_name(dir, b"x");
        assert_eq!(only(&fs).paths, [b"d/x".to_vec()]);
        fs.file(dir, "x");
        assert_eq!(fs.losses(), []);
        fs.refuse_name(dir, b"y");
        fs.unlink(dir, b"x").unwrap();
        fs.rmdir(ROOT, b"d").unwrap();
        fs.forget(dir, 1);
        assert_eq!(fs.losses(), []);
    }

    #[test]
    fn names_without_an_inode_left_are_refused() {
        let fs = limited(1 << 20, 600);
        fs.file(ROOT, "a");
        assert!(fs.mkdir(ROOT, b"b", 0o755, &super::super::testing::CALLER).is_err());
        assert_eq!(only(&fs).paths, [b"b".to_vec()]);
    }

    #[test]
    fn every_name_of_a_file_is_told() {
        let (fs, _, second) = full();
        let dir = fs.dir(ROOT, "d").ino;
        fs.link(second, dir, b"hard").unwrap();
        let mut paths = only(&fs).paths;
        paths.sort();
        assert_eq!(paths, [b"d/hard".to_vec(), b"second".to_vec()]);
    }

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
