//! What the scratch could not keep: ranges whose writing failed, and what was refused for want of space.
//!
//! A writer may never have learnt of it, or may not have cared. So this record, and no error of fsync(2), decides what
//! becomes of results. What is written again, cut off or removed is forgotten, unless somebody read the file meanwhile:
//! then other files may have been made of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::{DirEntry, Kind, Loss, LossChanges, LossTotals, ROOT, Scratch};

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
    use std::ops::Range;

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
}
