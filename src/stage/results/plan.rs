//! What is to be published: names, attributes, totals; pure.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::fs::{Attr, Kind};
use crate::stage::Totals;

/// Index of the directory that is published itself.
pub(in crate::stage) const TOP: usize = 0;

/// One name below the results.
#[derive(Debug)]
pub(in crate::stage) struct Entry {
    /// The directory it is in: a smaller index of the same plan.
    pub(in crate::stage) parent: usize,
    pub(in crate::stage) name: OsString,
    pub(in crate::stage) attr: Attr,
}

/// Everything below one directory of the scratch, parents before children; special files stand apart.
#[derive(Debug)]
pub(in crate::stage) struct Plan {
    pub(in crate::stage) entries: Vec<Entry>,
    pub(in crate::stage) skipped: Vec<Entry>,
    /// By entry: what symbolic links say in the output.
    pub(in crate::stage) texts: HashMap<usize, OsString>,
    /// Links that say something else in the scratch.
    pub(in crate::stage) rewritten: u64,
    /// Entries that are links in the scratch.
    pub(in crate::stage) dereferenced: u64,
}

impl Plan {
    pub(in crate::stage) fn new(top: Attr) -> Self {
        let entries = vec![Entry { parent: TOP, name: OsString::new(), attr: top }];
        let (skipped, texts) = (Vec::new(), HashMap::new());
        Self { entries, skipped, texts, rewritten: 0, dereferenced: 0 }
    }

    /// Adds a name; answers with its index unless it is skipped.
    pub(in crate::stage) fn add(&mut self, parent: usize, name: &OsStr, attr: Attr) -> Option<usize> {
        let entry = Entry { parent, name: name.to_owned(), attr };
        match attr.kind {
            Kind::File | Kind::Directory | Kind::Symlink => self.entries.push(entry),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => {
                self.skipped.push(entry);
                return None;
            }
        }
        Some(self.entries.len() - 1)
    }

    /// Adds a symbolic link with this text.
    pub(in crate::stage) fn add_link(&mut self, parent: usize, name: &OsStr, attr: Attr, text: OsString) {
        if let Some(entry) = self.add(parent, name, attr) {
            self.texts.insert(entry, text);
        }
    }

    /// Whether there is nothing to publish.
    pub(in crate::stage) fn is_empty(&self) -> bool {
        self.entries.len() == 1 && self.skipped.is_empty()
    }

    /// Path relative to the results.
    pub(in crate::stage) fn path(&self, entry: usize) -> PathBuf {
        self.path_of(&self.entries[entry])
    }

    /// As [`Plan::path`], for one of [`Plan::skipped`] too.
    pub(in crate::stage) fn path_of(&self, entry: &Entry) -> PathBuf {
        let mut names = vec![entry.name.as_os_str()];
        let mut at = entry.parent;
        while at != TOP {
            names.push(&self.entries[at].name);
            at = self.entries[at].parent;
        }
        names.into_iter().rev().collect()
    }

    /// Entries of one kind, in order, without the top.
    pub(in crate::stage) fn of_kind(&self, kind: Kind) -> impl DoubleEndedIterator<Item = usize> {
        (TOP + 1..self.entries.len()).filter(move |&i| self.entries[i].attr.kind == kind)
    }

    pub(in crate::stage) fn totals(&self) -> Totals {
        Totals {
            files: self.of_kind(Kind::File).count() as u64,
            directories: self.of_kind(Kind::Directory).count() as u64,
            symlinks: self.of_kind(Kind::Symlink).count() as u64,
            bytes: self.of_kind(Kind::File).map(|i| self.entries[i].attr.size).sum(),
            skipped: self.skipped.len() as u64,
            rewritten: self.rewritten,
            dereferenced: self.dereferenced,
            ..Totals::default()
        }
    }

    /// Bytes the data of all files takes; holes take none.
    pub(in crate::stage) fn space(&self) -> u64 {
        self.of_kind(Kind::File).map(|i| &self.entries[i].attr).map(|a| a.blocks.saturating_mul(512).min(a.size)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Time;
    use std::path::Path;

    fn attr(kind: Kind, size: u64, blocks: u64) -> Attr {
        let t = Time::default();
        let (ino, mode, nlink, uid, gid, rdev) = (1, 0, 1, 0, 0, 0);
        Attr { ino, kind, mode, nlink, uid, gid, rdev, size, blocks, atime: t, mtime: t, ctime: t }
    }

    #[test]
    fn totals_count_each_kind_and_holes_take_no_space() {
        let mut plan = Plan::new(attr(Kind::Directory, 0, 0));
        plan.add(TOP, OsStr::new("d"), attr(Kind::Directory, 0, 0));
        plan.add(1, OsStr::new("f"), attr(Kind::File, 10_000, 8));
        plan.add(1, OsStr::new("g"), attr(Kind::File, 5, 8));
        plan.add(1, OsStr::new("l"), attr(Kind::Symlink, 3, 0));
        plan.add(1, OsStr::new("p"), attr(Kind::Fifo, 0, 0));
        let totals = Totals { files: 2, directories: 1, symlinks: 1, bytes: 10_005, skipped: 1, ..Totals::default() };
        assert_eq!(plan.totals(), totals);
        assert_eq!(plan.space(), 4096 + 5);
        assert_eq!(plan.path(2), Path::new("d/f"));
        assert_eq!(plan.path_of(&plan.skipped[0]), Path::new("d/p"));
    }
}
