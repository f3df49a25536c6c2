//! Dirty pages of the kernel into the scratch, before the results are read from it.
//!
//! With a writeback cache the kernel holds what was written through mmap(2) until it sees fit. syncfs(2) alone is not
//! enough: newer kernels start the writeback of FUSE file systems there but do not wait for it. fsync(2) waits.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Flushes every regular file below `dir`. No process may be writing any more.
pub fn flush_tree(dir: &Path) -> io::Result<()> {
    // All files at once first; the walk then finds little left to wait for.
    nix::unistd::syncfs(File::open(dir)?)?;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
                OpenOptions::new().read(true).custom_flags(flags).open(entry.path())?.sync_all()?;
            }
        }
    }
    Ok(())
}
