//! Where to mount: what a mountpoint must be, and what an earlier crash may have left there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::FuseError;
use crate::sys::mount::{MountEntry, mount_table, top_mount};
use crate::sys::own_mount::{is_dead, is_ours, resolve};
use crate::sys::path::shown;

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
}
