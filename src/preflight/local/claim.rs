//! An output directory belongs to one run at a time: told when the second one starts, not when it publishes.
//!
//! The claim is a lock on the directory itself: nothing is written, nothing is left behind, and the kernel releases it
//! with the process, however that ends. An output that does not exist yet has nothing to lock; among runs of one user on
//! one machine `run::state` tells those too. File systems without such locks (NFS takes them from files open for writing
//! only) leave it to publishing, which never replaces what it did not expect.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::preflight::report::{Code, Finding};
use crate::sys::lock::Holder;
use crate::sys::path::{self, shown};

/// How long a claim may last that is only a check of somebody else's.
const CHECK: Duration = Duration::from_secs(2);

/// Locks `output`, if it exists and can be locked.
pub(in crate::preflight) fn take(output: &Path) -> Result<Option<File>, Finding> {
    let Ok(directory) = path::open_directory(output) else { return Ok(None) };
    let until = Instant::now() + CHECK;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(Some(directory)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) if is_of_a_stranger(&directory) => return Ok(None),
            Err(TryLockError::WouldBlock) => return Err(taken(output)),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
}

/// Whether an ordinary user keeps root out: anybody who may read a directory can lock it.
fn is_of_a_stranger(directory: &File) -> bool {
    let stranger = |user| user != 0 && nix::unistd::geteuid().is_root();
    Holder::of(directory).and_then(|holder| holder.user).is_some_and(stranger)
}

fn taken(output: &Path) -> Finding {
    let problem = "another run is going to publish there".to_owned();
    let remedy = "wait for that run to end, or choose another --output".to_owned();
    Finding::new(Code::ExportFailed, shown(output), problem, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_claimed_once_and_free_again_without_a_trace() {
        let dir = tempfile::tempdir().expect("tempdir");
        let claim = take(dir.path()).expect("free").expect("has locks");
        assert!(take(dir.path()).expect_err("taken").problem.contains("another run"));
        drop(claim);
        assert!(take(dir.path()).expect("free again").is_some());
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
        assert!(take(&dir.path().join("missing")).expect("no finding").is_none());
    }
}
