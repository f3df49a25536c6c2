//! What lies in a scratch, in numbers that help to decide whether it may be destroyed.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Hold;
use crate::fs::{Kind, Scratch};
use crate::sys::path::shown;
use crate::units::ByteSize;

/// Directories that are named.
const NAMED: usize = 3;

/// Files and links below some directories of a scratch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// The directories whose own files have most bytes, the largest first, with path, files and bytes.
    pub largest: Vec<(PathBuf, u64, u64)>,
}

impl Contents {
    /// Everything below the directory `from`; `name` is its path. Below each of the directories in `known` only inodes
    /// with greater numbers count than the one that is said: numbers ascend.
    pub(super) fn of(scratch: &Arc<Scratch>, from: u64, name: PathBuf, known: &[(u64, u64)]) -> Self {
        let mut contents = Self::default();
        let mut left = vec![(name, from, 0, None)];
        while let Some((path, directory, since, _hold)) = left.pop() {
            let since = known.iter().find(|(known, _)| *known == directory).map_or(since, |(_, since)| *since);
            let (mut files, mut bytes) = (0, 0);
            // Whoever removes a directory meanwhile takes what is in it out of account.
            let _ = scratch.readdirplus(directory, 0, &mut |entry, attr| {
                if entry.name == b"." || entry.name == b".." {
                    return true;
                }
                let (hold, counts) = (Hold::new(scratch, attr.ino), attr.ino > since);
                match attr.kind {
                    Kind::Directory => {
                        left.push((path.join(OsStr::from_bytes(entry.name)), attr.ino, since, Some(hold)));
                    }
                    Kind::File if counts => (files, bytes) = (files + 1, bytes + attr.size),
                    Kind::Symlink if counts => contents.symlinks += 1,
                    _ => {}
                }
                true
            });
            contents.note(path, files, bytes);
        }
        contents
    }

    fn note(&mut self, path: PathBuf, files: u64, bytes: u64) {
        self.files += files;
        self.bytes += bytes;
        if files > 0 {
            self.largest.push((path, files, bytes));
            self.largest.sort_by_key(|(_, files, bytes)| std::cmp::Reverse((*bytes, *files)));
            self.largest.truncate(NAMED);
        }
    }

    /// Whether there is no file in it.
    pub fn has_no_files(&self) -> bool {
        self.files == 0
    }

    /// Whether there is neither file nor link in it.
    pub fn is_empty(&self) -> bool {
        self.files == 0 && self.symlinks == 0
    }
}

/// For people, in one line.
impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        amount(f, self.files, self.bytes)?;
        if self.symlinks > 0 && self.files == 0 {
            write!(f, " and {} symbolic links", self.symlinks)?;
        }
        for (place, (path, files, bytes)) in self.largest.iter().enumerate() {
            f.write_str(if place == 0 { " (" } else { ", " })?;
            // The root of the scratch has no name of its own.
            write!(f, "{}: ", if path.as_os_str().is_empty() { ".".to_owned() } else { shown(path) })?;
            amount(f, *files, *bytes)?;
        }
        if self.largest.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

fn amount(f: &mut fmt::Formatter<'_>, files: u64, bytes: u64) -> fmt::Result {
    write!(f, "{files} {} of {}", if files == 1 { "file" } else { "files" }, ByteSize(bytes))
}
