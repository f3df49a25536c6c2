//! Inputs into the scratch.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, getegid, geteuid, lseek};
use parking_lot::Mutex;

use crate::audit::{Event, Trail};
use crate::fs::{Creator, FsError, Kind, Scratch, SetAttr, SetTime, Time, WriteMode};
use crate::preflight::Cleared;
use crate::preflight::tree::Tree;
use crate::stage::rights::Rights;
use crate::stage::{Hold, Progress, StageError, Totals, checksum, inside, outside, pool};
use crate::sys::beneath::Linkless;
use crate::sys::path::{self, FileKind, Stat};

/// What a file is split into, so that several threads share a large one.
pub(in crate::stage) const PART: u64 = 16 << 20;
/// Permission bits of directories that no input gave.
const IMPLIED_MODE: u32 = 0o755;

/// Copies all of `cleared` below `into`; `objects` copies what is in S3, given the inodes of the directories by item.
/// All belongs to `owner`, or to the user of this process.
pub(in crate::stage) fn fetch(
    cleared: &Cleared,
    scratch: &Arc<Scratch>,
    (progress, rights): (&dyn Progress, &Rights),
    into: u64,
    owner: Option<(u32, u32)>,
    trail: &Trail,
    objects: impl FnOnce(&Tree, &[u64], Creator) -> Result<(), StageError>,
) -> Result<Totals, StageError> {
    let (uid, gid) = owner.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
    let caller = Creator { uid, gid, umask: 0 };
    let fetch = Fetch { cleared, scratch, progress, trail, caller, keep_owners: owner.is_none() && uid == 0 };
    let totals = fetch.totals();
    progress.start("staging", totals.files, totals.bytes);
    let assume = || rights.assume().map_err(outside("taking the rights for", "the inputs"));
    let directories = {
        let _in_their_name = assume()?;
        let directories = fetch.directories(into)?;
        let cursor = Mutex::new(Cursor::default());
        pool::run(|| cursor.lock().next(&fetch), |buffer, part: Part| fetch.part(buffer, &part, &directories))?;
        directories
    };
    // The threads that speak to AWS are not only for these files, and keep what they begin with.
    if !cleared.tree.objects.is_empty() {
        objects(&cleared.tree, &directories.inos, caller)?;
    }
    let _in_their_name = assume()?;
    fetch.finish_directories(&directories)?;
    progress.finish();
    Ok(totals)
}

struct Fetch<'a> {
    cleared: &'a Cleared,
    scratch: &'a Arc<Scratch>,
    progress: &'a dyn Progress,
    trail: &'a Trail,
    caller: Creator,
    /// As root does it, for itself.
    keep_owners: bool,
}

/// Inodes of the directories made, by item (0 for other items), alive until all is copied.
struct Directories {
    inos: Vec<u64>,
    _holds: Vec<Hold>,
}

impl Fetch<'_> {
    fn totals(&self) -> Totals {
        let tree = &self.cleared.tree;
        let mut totals = Totals { bytes: tree.bytes(), ..Totals::default() };
        for item in 1..tree.items.len() {
            match tree.kind(item as u32) {
                FileKind::File => totals.files += 1,
                FileKind::Symlink => totals.symlinks += 1,
                FileKind::Directory | FileKind::Special(_) => totals.directories += 1,
            }
        }
        totals
    }

    /// Makes every directory, open to its owner until all is in it, and every symbolic link.
    fn directories(&self, into: u64) -> Result<Directories, StageError> {
        let items = &self.cleared.tree.items;
        let mut directories = Directories { inos: vec![0; items.len()], _holds: Vec::new() };
        directories.inos[0] = into;
        for (i, item) in items.iter().enumerate().skip(1) {
            let parent = directories.inos[item.parent as usize];
            match (self.cleared.tree.kind(i as u32), item.seen()) {
                (FileKind::File, _) => {}
                (FileKind::Symlink, Some(seen)) => self.symlink(i, parent, seen)?,
                _ => {
                    let made = self.scratch.mkdir(parent, item.name.as_bytes(), 0o700, &self.caller);
                    let hold = Hold::new(self.scratch, made.map_err(self.inside("creating", i))?.ino);
                    directories.inos[i] = hold.ino;
                    directories._holds.push(hold);
                }
            }
        }
        Ok(directories)
    }

    fn symlink(&self, item: usize, parent: u64, seen: &Stat) -> Result<(), StageError> {
        let source = self.source(item);
        let to = path::read_symlink(&Linkless(&source)).map_err(|e| vanished(e, &source))?;
        self.still(item, seen, path::stat(&Linkless(&source)))?;
        let to = self.cleared.tree.texts.get(&(item as u32)).unwrap_or(&to);
        let name = self.cleared.tree.items[item].name.as_bytes();
        let made = self.scratch.symlink(parent, name, to.as_bytes(), &self.caller);
        let link = Hold::new(self.scratch, made.map_err(self.inside("creating", item))?.ino);
        self.settle(item, link.ino, SetAttr { mode: None, ..self.attributes(seen) })
    }

    /// One part of a file; whoever does the last part settles the file.
    fn part(&self, buffer: &mut [u8], part: &Part, directories: &Directories) -> Result<(), StageError> {
        let file = &part.file;
        let open = self.open(file, directories)?;
        let mut at = part.range.start;
        while at < part.range.end {
            let data = if open.sparse { self.next_data(file, &open, at..part.range.end)? } else { part.range.clone() };
            self.progress.advance(data.start - at);
            self.copy(buffer, file, &open, data.clone())?;
            at = data.end;
        }
        if file.parts_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.still(file.item, &file.seen, Stat::of(&open.outside))?;
            self.settle(file.item, open.inside.ino, self.attributes(&file.seen))?;
            self.tell(buffer, file, open.inside.ino)?;
            self.progress.file_done();
        }
        Ok(())
    }

    /// Has the trail, if one is kept, tell what is in the scratch now: read back, since parts arrive in any order.
    fn tell(&self, buffer: &mut [u8], file: &Source, ino: u64) -> Result<(), StageError> {
        if !self.trail.is_kept() {
            return Ok(());
        }
        let sum = checksum::sha256(self.scratch, ino, buffer).map_err(self.inside("reading", file.item))?;
        self.trail.record(&Event::stage_file(&self.source(file.item), file.seen.size, &sum));
        Ok(())
    }

    /// Opens the source and makes its counterpart, for the first part that comes along.
    fn open(&self, file: &Source, directories: &Directories) -> Result<Arc<Open>, StageError> {
        let mut slot = file.open.lock();
        if let Some(open) = &*slot {
            return Ok(Arc::clone(open));
        }
        let item = &self.cleared.tree.items[file.item];
        let source = self.source(file.item);
        let outside = path::open(&Linkless(&source)).map_err(|e| vanished(e, &source))?;
        self.still(file.item, &file.seen, Stat::of(&outside))?;
        // Advice only: a file system that does not take it reads as well.
        let _ = posix_fadvise(&outside, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
        let parent = directories.inos[item.parent as usize];
        let made = self.scratch.mknod(parent, item.name.as_bytes(), Kind::File, 0o600, 0, &self.caller);
        let inside = Hold::new(self.scratch, made.map_err(self.inside("creating", file.item))?.ino);
        let Stat { size, blocks, .. } = file.seen;
        let sparse = blocks.saturating_mul(512) < size;
        if sparse || size > PART {
            // Parts arrive in any order, and holes at the end are never written.
            self.settle(file.item, inside.ino, SetAttr { size: Some(size), ..SetAttr::default() })?;
        }
        Ok(Arc::clone(slot.insert(Arc::new(Open { outside, inside, sparse }))))
    }

    fn copy(&self, buffer: &mut [u8], file: &Source, open: &Open, range: Range<u64>) -> Result<(), StageError> {
        let mut at = range.start;
        while at < range.end {
            let want = buffer.len().min((range.end - at) as usize);
            let got = match open.outside.read_at(&mut buffer[..want], at) {
                Ok(0) => return Err(StageError::Modified { path: self.source(file.item) }),
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(outside("reading", self.source(file.item))(e)),
            };
            let written = self.scratch.write(open.inside.ino, at, &buffer[..got], WriteMode::default());
            written.map_err(self.inside("writing", file.item))?;
            self.progress.advance(got as u64);
            at += got as u64;
        }
        Ok(())
    }

    /// The first data within `range`, empty at its end when only a hole is left.
    fn next_data(&self, file: &Source, open: &Open, range: Range<u64>) -> Result<Range<u64>, StageError> {
        let seek = |at: u64, whence| match lseek(&open.outside, at as i64, whence) {
            Ok(found) => Ok((found as u64).min(range.end)),
            Err(Errno::ENXIO) => Ok(range.end),
            Err(e) => Err(e),
        };
        let found = match seek(range.start, Whence::SeekData) {
            Err(Errno::EINVAL) => Ok(range.clone()),
            Ok(start) if start == range.end => Ok(range.end..range.end),
            start => start.and_then(|start| Ok(start..seek(start, Whence::SeekHole)?)),
        };
        found.map_err(|e| outside("reading", self.source(file.item))(e.into()))
    }

    /// Gives directories their attributes, deepest first: what is made in a directory moves its time.
    fn finish_directories(&self, directories: &Directories) -> Result<(), StageError> {
        let tree = &self.cleared.tree;
        let is_directory = |i: &usize| tree.kind(*i as u32) == FileKind::Directory;
        for i in (1..tree.items.len()).rev().filter(is_directory) {
            let attributes = match tree.items[i].seen() {
                Some(seen) => {
                    self.still(i, seen, path::stat(&Linkless(&self.source(i))))?;
                    self.attributes(seen)
                }
                None => SetAttr { mode: Some(IMPLIED_MODE), ..SetAttr::default() },
            };
            self.settle(i, directories.inos[i], attributes)?;
        }
        Ok(())
    }

    /// Refuses an input that is no longer what preflight saw.
    fn still(&self, item: usize, seen: &Stat, now: io::Result<Stat>) -> Result<(), StageError> {
        let path = self.source(item);
        let now = now.map_err(|e| vanished(e, &path))?;
        if seen.unchanged(&now) { Ok(()) } else { Err(StageError::Modified { path }) }
    }

    fn attributes(&self, seen: &Stat) -> SetAttr {
        let &Stat { mode, uid, gid, mtime: (secs, nanos), .. } = seen;
        let mtime = Some(SetTime::At(Time { secs, nanos }));
        let (mode, uid, gid) = match self.keep_owners {
            true => (mode, Some(uid), Some(gid)),
            false if uid == self.caller.uid => (mode, None, None),
            false => (widened(mode), None, None),
        };
        SetAttr { mode: Some(mode), uid, gid, mtime, ..SetAttr::default() }
    }

    fn settle(&self, item: usize, ino: u64, set: SetAttr) -> Result<(), StageError> {
        self.scratch.setattr(ino, &set).map(drop).map_err(self.inside("writing", item))
    }

    fn source(&self, item: usize) -> PathBuf {
        self.cleared.tree.source(item as u32)
    }

    fn inside(&self, action: &'static str, item: usize) -> impl FnOnce(FsError) -> StageError {
        let tree = &self.cleared.tree;
        move |e| inside(action, tree.target(item as u32))(e)
    }
}

/// The owner inside gets what the user of this process had outside as one of the group or of the others.
fn widened(mode: u32) -> u32 {
    mode | ((mode >> 3 | mode) & 0o7) << 6
}

/// What preflight saw and is gone, or is a link now, was changed.
fn vanished(error: io::Error, path: &Path) -> StageError {
    let gone = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP, Errno::ESTALE].map(|e| Some(e as i32));
    match gone.contains(&error.raw_os_error()) {
        true => StageError::Modified { path: path.to_owned() },
        false => outside("reading", path)(error),
    }
}

/// A range of a file, to be copied by one thread.
struct Part {
    file: Arc<Source>,
    range: Range<u64>,
}

struct Source {
    item: usize,
    seen: Stat,
    open: Mutex<Option<Arc<Open>>>,
    parts_left: AtomicU64,
}

struct Open {
    outside: File,
    inside: Hold,
    sparse: bool,
}

/// Hands out the parts of all files in order, so that few files are open at a time.
#[derive(Default)]
struct Cursor {
    item: usize,
    rest: Option<(Arc<Source>, u64)>,
}

impl Cursor {
    fn next(&mut self, fetch: &Fetch) -> Option<Part> {
        let (file, start) = match self.rest.take() {
            Some(rest) => rest,
            None => (self.next_file(fetch)?, 0),
        };
        let end = (start + PART).min(file.seen.size);
        if end < file.seen.size {
            self.rest = Some((Arc::clone(&file), end));
        }
        Some(Part { file, range: start..end })
    }

    fn next_file(&mut self, fetch: &Fetch) -> Option<Arc<Source>> {
        loop {
            let item = self.item;
            self.item += 1;
            let Some(seen) = fetch.cleared.tree.items.get(item)?.seen() else { continue };
            if seen.kind == FileKind::File {
                let parts = seen.size.div_ceil(PART).max(1);
                let (open, parts_left) = (Mutex::new(None), AtomicU64::new(parts));
                return Some(Arc::new(Source { item, seen: *seen, open, parts_left }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::widened;

    #[test]
    fn the_owner_gets_what_was_readable_as_another() {
        for (outside, inside) in [(0o644, 0o644), (0o040, 0o440), (0o005, 0o505), (0o4755, 0o4755), (0o600, 0o600)] {
            assert_eq!(widened(outside), inside, "{outside:o}");
        }
    }
}
