//! Listing a directory: readdir, with and without attributes.

use std::sync::Arc;

use super::node::{COOKIE_PARENT, COOKIE_SELF, Directory, Entries, Inode};
use super::{Attr, DirEntry, FsError, Kind, Scratch};

/// Entries copied out of a directory under one hold of its lock.
const BATCH: usize = 32;

impl Scratch {
    /// Hands entries behind `cookie` (0: from the start) to `take` until it answers `false` (that entry counts as not
    /// taken). No lock is held meanwhile: `take` may call this file system.
    pub fn readdir(&self, ino: u64, cookie: u64, take: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<(), FsError> {
        self.walk(ino, cookie, References::Leave, &mut |entry, _| take(entry))
    }

    /// As [`Scratch::readdir`], with attributes; takes a reference on each entry taken, except `.` and `..`.
    pub fn readdirplus(
        &self,
        ino: u64,
        cookie: u64,
        take: &mut dyn FnMut(DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), FsError> {
        self.walk(ino, cookie, References::Take, &mut |entry, inode| take(entry, &inode.attr()))
    }

    /// Lists a directory.
    fn walk(
        &self,
        ino: u64,
        cookie: u64,
        references: References,
        take: &mut dyn FnMut(DirEntry<'_>, &Inode) -> bool,
    ) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let directory = inode.directory()?;
        if directory.is_dead() {
            return Err(FsError::NotFound);
        }
        if !self.walk_dots(&inode, directory, cookie, take) {
            return Ok(());
        }
        let mut cookie = cookie.max(COOKIE_PARENT);
        let mut batch = Batch::default();
        loop {
            batch.fill(&directory.entries.read(), cookie, references);
            let taken = batch.iter().take_while(|(entry, inode)| take(*entry, inode)).count();
            if references == References::Take {
                batch.rows[taken..].iter().for_each(|row| self.forget(row.inode.ino, 1));
            }
            if taken < BATCH {
                return Ok(());
            }
            cookie = batch.rows[taken - 1].cookie;
            // Before the directory is locked again: what has died meanwhile is cleared here.
            batch.clear();
        }
    }

    /// Hands out `.` and `..`; `false` when `take` has had enough.
    fn walk_dots(
        &self,
        inode: &Arc<Inode>,
        directory: &Directory,
        cookie: u64,
        take: &mut dyn FnMut(DirEntry<'_>, &Inode) -> bool,
    ) -> bool {
        let dot = |name, inode: &Inode, cookie| DirEntry { name, ino: inode.ino, kind: Kind::Directory, cookie };
        if cookie < COOKIE_SELF && !take(dot(b".", inode, COOKIE_SELF), inode) {
            return false;
        }
        if cookie < COOKIE_PARENT {
            // A parent can be missing only when this directory has been removed a moment ago.
            let parent = self.table.get(directory.parent()).unwrap_or_else(|| inode.clone());
            return take(dot(b"..", &parent, COOKIE_PARENT), &parent);
        }
        true
    }
}

/// Whether each entry taken keeps a reference.
#[derive(Clone, Copy, PartialEq, Eq)]
enum References {
    Take,
    Leave,
}

/// Entries copied out of a directory.
#[derive(Default)]
struct Batch {
    names: Vec<u8>,
    rows: Vec<Row>,
}

struct Row {
    /// Where the name ends in [`Batch::names`].
    end: usize,
    cookie: u64,
    inode: Arc<Inode>,
}

impl Batch {
    /// Takes up to [`BATCH`] entries behind `cookie`.
    fn fill(&mut self, entries: &Entries, cookie: u64, references: References) {
        for (cookie, name, inode) in entries.after(cookie).take(BATCH) {
            if references == References::Take {
                inode.acquire();
            }
            self.names.extend_from_slice(name);
            self.rows.push(Row { end: self.names.len(), cookie, inode: inode.clone() });
        }
    }

    fn clear(&mut self) {
        self.names.clear();
        self.rows.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (DirEntry<'_>, &Inode)> {
        let starts = std::iter::once(0).chain(self.rows.iter().map(|row| row.end));
        starts.zip(&self.rows).map(|(start, row)| {
            let Row { end, cookie, inode } = row;
            let name = &self.names[start..*end];
            (DirEntry { name, ino: inode.ino, kind: inode.kind(), cookie: *cookie }, &**inode)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::ROOT;
    use super::super::testing::scratch;
    use super::*;

    #[test]
    fn listing_starts_with_dots_and_goes_on_behind_any_cookie() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let names: Vec<String> = (0..200).map(|i| format!("{i}")).collect();
        for name in &names {
            fs.file(dir, name);
        }
        let mut all = Vec::new();
        fs.readdir(dir, 0, &mut |e| {
            all.push((e.name.to_vec(), e.ino, e.kind, e.cookie));
            true
        })
        .unwrap();
        assert_eq!(all[0], (b".".to_vec(), dir, Kind::Directory, 1));
        assert_eq!(all[1], (b"..".to_vec(), ROOT, Kind::Directory, 2));
        assert_eq!(fs.names(dir), names);
        for from in 0..all.len() {
            let mut next = None;
            let take = &mut |e: DirEntry<'_>| {
                next = Some(e.name.to_vec());
                false
            };
            fs.readdir(dir, all[from].3, take).unwrap();
            assert_eq!(next, all.get(from + 1).map(|e| e.0.clone()));
        }
        fs.readdir(dir, u64::MAX, &mut |_| panic!("there is nothing behind the last cookie")).unwrap();
    }

    // promise: S-05
    #[test]
    fn a_listing_survives_changes() {
        let fs = scratch();
        for i in 0..1000 {
            fs.file(ROOT, &format!("old{i}"));
        }
        let mut seen = Vec::new();
        let mut cookie = 0;
        while let Some((name, next)) = fs.list(ROOT, cookie).first().cloned() {
            cookie = next;
            let step = seen.len();
            if step < 500 {
                // Remove one behind and one ahead, add one, rename the one just seen.
                let _ = fs.unlink(ROOT, format!("old{}", 999 - step).as_bytes());
                fs.mv(ROOT, &name, ROOT, &format!("seen{step}")).unwrap();
                fs.unlink(ROOT, format!("seen{step}").as_bytes()).unwrap();
                fs.file(ROOT, &format!("new{step}"));
            }
            seen.push(name);
        }
        let expected = (0..500).map(|i| format!("old{i}")).chain((0..500).map(|i| format!("new{i}")));
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    #[test]
    fn listing_with_attributes_references_what_was_taken() {
        let fs = scratch();
        let inos: Vec<u64> = (0..100).map(|i| fs.file(ROOT, &format!("{i}")).ino).collect();
        inos.iter().for_each(|&ino| fs.forget(ino, 1));
        let mut taken = 0;
        fs.readdirplus(ROOT, 0, &mut |entry, attr| {
            assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
            taken += 1;
            taken <= 2 + 50
        })
        .unwrap();
        inos.iter().enumerate().for_each(|(i, _)| fs.unlink(ROOT, format!("{i}").as_bytes()).unwrap());
        let alive = |ino: &&u64| fs.getattr(**ino).is_ok();
        assert_eq!(inos.iter().filter(alive).count(), 50);
        inos[..50].iter().for_each(|&ino| fs.forget(ino, 1));
        assert_eq!(inos.iter().filter(alive).count(), 0);
    }

    #[test]
    fn a_lister_may_call_back() {
        let fs = scratch();
        fs.file(ROOT, "a");
        fs.file(ROOT, "b");
        fs.readdir(ROOT, 2, &mut |entry| {
            fs.unlink(ROOT, entry.name).unwrap();
            true
        })
        .unwrap();
        assert_eq!(fs.names(ROOT), [""; 0]);
    }
}
