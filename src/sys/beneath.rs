//! Names below a directory, reached without following a link and without leaving it: for paths that come from strangers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::path::Stat;

/// A name in a directory that is held open: whoever moves it elsewhere meanwhile changes nothing.
pub struct Beneath<'a> {
    directory: OwnedFd,
    name: &'a OsStr,
}

impl<'a> Beneath<'a> {
    /// Goes from `top`, which is followed, down to the directory of `path`.
    ///
    /// # Errors
    /// `EINVAL` if `path` is anything but names; `ELOOP` or `ENOTDIR` if one on the way is a link or a file.
    pub fn find(top: &Path, path: &'a Path) -> io::Result<Self> {
        let names: Option<Vec<&OsStr>> = path.components().map(name_of).collect();
        let names = names.ok_or(Errno::EINVAL)?;
        let (name, above) = names.split_last().ok_or(Errno::EINVAL)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = openat(AT_FDCWD, top, flags, Mode::empty())?;
        for name in above {
            directory = openat(&directory, *name, flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        }
        Ok(Self { directory, name })
    }

    /// `lstat(2)`.
    pub fn stat(&self) -> io::Result<Stat> {
        Ok(fstatat(&self.directory, self.name, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
    }

    /// Opens a file to read it; a FIFO does not wait.
    pub fn open(&self) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, self.name, flags, Mode::empty())?.into())
    }

    /// `readlink(2)`.
    pub fn read_symlink(&self) -> io::Result<OsString> {
        Ok(readlinkat(&self.directory, self.name)?)
    }

    /// `unlink(2)`.
    pub fn remove_file(&self) -> io::Result<()> {
        Ok(unlinkat(&self.directory, self.name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// `rmdir(2)`.
    pub fn remove_directory(&self) -> io::Result<()> {
        Ok(unlinkat(&self.directory, self.name, UnlinkatFlags::RemoveDir)?)
    }
}

/// Names in the directory `below`, reached as [`Beneath::find`] does; in `top` itself if `below` is empty.
pub fn names(top: &Path, below: &Path) -> io::Result<Vec<OsString>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = match below.as_os_str().is_empty() {
        true => openat(AT_FDCWD, top, flags, Mode::empty())?,
        false => {
            let place = Beneath::find(top, below)?;
            openat(&place.directory, place.name, flags | OFlag::O_NOFOLLOW, Mode::empty())?
        }
    };
    let mut names = Vec::new();
    for entry in Dir::from_fd(directory)?.iter() {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

fn name_of(part: Component<'_>) -> Option<&OsStr> {
    match part {
        Component::Normal(name) => Some(name),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (top, other) = (dir.path().join("top"), dir.path().join("other"));
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(top.join("sub/file"), "").unwrap();
        fs::write(other.join("file"), "").unwrap();
        symlink(&other, top.join("link")).unwrap();
        let find = |path: &'static str| Beneath::find(&top, Path::new(path));
        for bad in ["", "/etc/passwd", "..", "../other/file", "sub/../../other/file", "./sub/file", "."] {
            assert_eq!(find(bad).err().and_then(|e| e.raw_os_error()), Some(Errno::EINVAL as i32), "{bad}");
        }
        for blocked in ["link/file", "sub/file/x", "gone/file"] {
            assert!(find(blocked).is_err(), "{blocked}");
        }
        find("link").unwrap().remove_file().unwrap();
        find("sub/file").unwrap().remove_file().unwrap();
        find("sub").unwrap().remove_directory().unwrap();
        assert!(other.join("file").exists() && fs::read_dir(&top).unwrap().next().is_none());
    }
}
