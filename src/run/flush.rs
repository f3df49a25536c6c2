//! Dirty pages of the kernel into the scratch, before the results are read from it.
//!
//! With a writeback cache the kernel holds what was written through mmap(2) until it sees fit. syncfs(2) alone is not
//! enough: newer kernels start the writeback of FUSE file systems there but do not wait for it. fsync(2) waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Results the kernel could not write to the scratch.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}{}: not all of it reached the scratch ({source}); a larger --size may help the next run, and resuming this one \
     publishes the results as they are, incomplete",
    path.display(),
    if *others == 0 { String::new() } else { format!(" and {others} others") }
)]
pub struct Unflushed {
    path: PathBuf,
    source: io::Error,
    others: usize,
}

/// Flushes every regular file below `dir`. No process may be writing any more.
///
/// # Errors
/// Data written through a mapping, or to a file nobody closed with care, that found no space. The kernel has dropped
/// them and tells so once: a second call succeeds.
pub fn flush_tree(dir: &Path) -> Result<(), Unflushed> {
    // All files at once first; the walk then finds little left to wait for. An error here may be that of a file the
    // command has dealt with long ago, so only the walk decides.
    let _ = File::open(dir).map(nix::unistd::syncfs);
    let mut failures = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        if let Err(source) = flush_files_of(&dir, &mut pending, &mut failures) {
            failures.push((dir, source));
        }
    }
    let others = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(()),
        Some((path, source)) => Err(Unflushed { path, source, others }),
    }
}

fn flush_files_of(
    dir: &Path,
    directories: &mut Vec<PathBuf>,
    failures: &mut Vec<(PathBuf, io::Error)>,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_dir() {
            directories.push(path);
        } else if kind.is_file()
            && let Err(source) = flush_file(&path)
        {
            failures.push((path, source));
        }
    }
    Ok(())
}

fn flush_file(path: &Path) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags).open(path)?.sync_all()
}
