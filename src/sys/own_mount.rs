//! Mounts that runseal has made, as the kernel shows them: found, dead ones told from those alive, and detached.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::mount::{MountEntry, detach, mount_table, top_mount};

/// Type given to mount(2): the kernel reads `fuse`, and shows the whole.
pub const FS_TYPE: &str = "fuse.runseal";
/// What mount(8) shows as the device.
pub const SOURCE: &str = "runseal";

/// Most symbolic links followed to find a mountpoint (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// How long a living server may take to answer statfs before its mount counts as alive but busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Detaches the dead mounts that crashes of runseal left on `mountpoint`, and nothing else; `true` if there was one.
pub fn detach_stale(mountpoint: &Path) -> io::Result<bool> {
    let mut found = false;
    while let Some(path) = stale(mountpoint)? {
        detach(&path)?;
        found = true;
    }
    Ok(found)
}

/// Whether what is mounted on `mountpoint` is the dead mount of a crash of runseal. Programs that go on get `ENOTCONN`
/// there, where they would reach the directory below, in the clear, if it were detached.
pub fn is_stale(mountpoint: &Path) -> io::Result<bool> {
    Ok(stale(mountpoint)?.is_some())
}

/// The path of a dead mount without symbolic links, if there is one.
///
/// Dead means that the kernel answers for the server: `ENOTCONN`, or `ECONNABORTED`. A mount whose server lives is
/// left alone, even if the server does not answer.
fn stale(mountpoint: &Path) -> io::Result<Option<PathBuf>> {
    let path = match resolve(mountpoint) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let ours = top_mount(&mount_table()?, &path).is_some_and(is_ours);
    Ok((ours && is_dead(&path)).then_some(path))
}

/// Whether a scratch is mounted on `path`, which has no symbolic links.
pub fn is_mountpoint(path: &Path) -> io::Result<bool> {
    Ok(top_mount(&mount_table()?, path).is_some_and(is_ours))
}

/// The number of the FUSE connection behind the scratch on `mountpoint` in this table of mounts, which may be that of
/// another process.
pub fn connection_of(table: &[MountEntry], mountpoint: &Path) -> Option<u32> {
    top_mount(table, mountpoint).filter(|entry| is_ours(entry)).map(|entry| entry.device.1)
}

/// Whether a mount is one that runseal made, now or in an earlier life.
pub fn is_ours(entry: &MountEntry) -> bool {
    entry.fs_type == FS_TYPE && entry.source == SOURCE
}

/// The path of a directory without symbolic links. Does not touch the directory itself, which may be the root of a
/// mount whose server hangs: only its parent is looked at, and readlink(2) is answered without the server.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return fs::canonicalize(&path);
        };
        if name == OsStr::new("..") {
            return fs::canonicalize(&path);
        }
        let parent = fs::canonicalize(parent)?;
        match fs::read_link(parent.join(name)) {
            Ok(target) => path = parent.join(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            Err(_) => return Ok(parent.join(name)),
        }
    }
    Err(Errno::ELOOP.into())
}

/// Asks the server, from a thread of its own: with a hanging server the answer may never come. statfs(2) is never
/// answered from a cache.
pub fn is_dead(path: &Path) -> bool {
    let (answer, wait) = mpsc::channel();
    let path = path.to_owned();
    let asker = thread::Builder::new().name("fuse-probe".to_owned()).spawn(move || {
        // The receiver is gone if the answer came too late.
        let _ = answer.send(statvfs(&path).err());
    });
    let Ok(asker) = asker else { return false };
    let Ok(answer) = wait.recv_timeout(PATIENCE) else { return false };
    // It has answered, so it ends; callers that fork or unshare want to be the only thread again.
    let _ = asker.join();
    matches!(answer, Some(Errno::ENOTCONN | Errno::ECONNABORTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_foreign_mounts_are_not_stale() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!detach_stale(dir.path()).expect("a look"));
        assert!(!detach_stale(&dir.path().join("none")).expect("a look"));
        assert!(!detach_stale(Path::new("/proc")).expect("a look"));
        assert!(Path::new("/proc/self").exists());
    }
}
