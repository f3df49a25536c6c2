//! Where to mount: what a mountpoint must be, and what an earlier crash may have left there.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;

use super::FuseError;
use crate::sys::mount::{MountEntry, detach, mount_table, top_mount};
use crate::sys::path::shown;

/// Type given to mount(2): the kernel reads `fuse`, and shows the whole.
pub(super) const FS_TYPE: &str = "fuse.runseal";
/// What mount(8) shows as the device.
pub(super) const SOURCE: &str = "runseal";

/// Most symbolic links followed to find a mountpoint (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// How long a living server may take to answer statfs before its mount counts as alive but busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// The path of a usable mountpoint, without symbolic links. What a dead run has left there is covered: so no moment comes
/// in which a program that goes on reaches the directory below.
pub(super) fn check(given: &Path) -> Result<PathBuf, FuseError> {
    let refuse = |problem: String| FuseError::Mountpoint { path: given.to_owned(), problem };
    let path = resolve(given).map_err(|error| refuse(missing(&error, given)))?;
    let table = mount_table().map_err(FuseError::Session)?;
    if let Some(entry) = top_mount(&table, &path) {
        return if is_ours(entry) && is_dead(&path) { Ok(path) } else { Err(refuse(taken(entry))) };
    }
    let metadata = fs::metadata(&path).map_err(|error| refuse(missing(&error, given)))?;
    if !metadata.is_dir() {
        return Err(refuse("is not a directory; choose an empty directory".to_owned()));
    }
    let mut entries = fs::read_dir(&path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if entries.next().is_some() {
        return Err(refuse("is not empty, a mount would hide what is in it; choose an empty directory".to_owned()));
    }
    Ok(path)
}

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
pub(super) fn is_ours(entry: &MountEntry) -> bool {
    entry.fs_type == FS_TYPE && entry.source == SOURCE
}

/// The path of a directory without symbolic links. Does not touch the directory itself, which may be the root of a
/// mount whose server hangs: only its parent is looked at, and readlink(2) is answered without the server.
fn resolve(path: &Path) -> io::Result<PathBuf> {
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
fn is_dead(path: &Path) -> bool {
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

fn missing(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("does not exist; create it first: mkdir -p {}", shown(path)),
        io::ErrorKind::NotADirectory => "leads through a file that is not a directory".to_owned(),
        _ => format!("cannot be used: {error}"),
    }
}

fn taken(entry: &MountEntry) -> String {
    let what = entry.fs_type.to_string_lossy();
    let place = shown(&entry.mountpoint);
    if is_ours(entry) {
        format!("a {what} file system is mounted there; end that run, or if it is dead: umount --lazy {place}")
    } else {
        format!("a {what} file system is mounted there; unmount it or choose another directory")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn problem(path: &Path) -> String {
        match check(path) {
            Err(FuseError::Mountpoint { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_empty_directory_will_do_also_through_links() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = fs::canonicalize(dir.path()).expect("it exists");
        fs::create_dir(real.join("mnt")).expect("a directory");
        symlink("mnt", real.join("first")).expect("a link");
        symlink(real.join("first"), real.join("second")).expect("a link");
        for name in ["mnt", "first", "second", "mnt/../mnt", "mnt/"] {
            assert_eq!(check(&real.join(name)).expect("usable"), real.join("mnt"), "{name}");
        }
    }

    #[test]
    fn each_unusable_mountpoint_says_why_and_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("file"), "x").expect("a file");
        symlink("loop", dir.path().join("loop")).expect("a link");
        assert!(problem(&dir.path().join("none")).contains("mkdir -p"));
        assert!(problem(&dir.path().join("file")).contains("not a directory"));
        assert!(problem(&dir.path().join("file/below")).contains("not a directory"));
        assert!(problem(&dir.path().join("loop")).contains("symbolic links"));
        assert!(problem(dir.path()).contains("not empty"));
        assert!(problem(Path::new("/proc")).contains("a proc file system is mounted there"));
    }

    #[test]
    fn nothing_and_foreign_mounts_are_not_stale() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!detach_stale(dir.path()).expect("a look"));
        assert!(!detach_stale(&dir.path().join("none")).expect("a look"));
        assert!(!detach_stale(Path::new("/proc")).expect("a look"));
        assert!(Path::new("/proc/self").exists());
    }
}
