//! The one way to replace a file: whoever opens it finds the old contents or the new ones, whole.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

const PREFIX: &str = ".runseal-";
const SUFFIX: &str = ".tmp";

/// A name in a directory that is held open. What has the name, a symbolic link too, is replaced, not followed.
#[derive(Debug)]
pub struct Replaceable {
    directory: OwnedFd,
    name: OsString,
}

impl Replaceable {
    /// Opens the directory of `path`, which is followed.
    pub fn open(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(Errno::EISDIR)?.to_owned();
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = fcntl::openat(AT_FDCWD, above, flags, Mode::empty())?;
        Ok(Self { directory, name })
    }

    /// Replaces the file, or makes it, with these permission bits; the umask applies. Synced, but for the name.
    pub fn replace(&self, contents: &[u8], mode: u32) -> io::Result<()> {
        let mut new = self.make(mode)?;
        new.file.write_all(contents)?;
        new.file.sync_all()?;
        fcntl::renameat(&self.directory, new.name.as_os_str(), &self.directory, self.name.as_os_str())?;
        new.is_in_place = true;
        Ok(())
    }

    /// Whether [`Replaceable::replace`] may make files here; leaves none.
    pub fn try_it(&self) -> io::Result<()> {
        self.make(0o600).map(drop)
    }

    /// A new file under a name that nobody can foresee, and that nothing has: planted files and links are in vain.
    fn make(&self, mode: u32) -> io::Result<Temporary<'_>> {
        let name = OsString::from(format!("{PREFIX}{:016x}{SUFFIX}", getrandom::u64()?));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = fcntl::openat(&self.directory, name.as_os_str(), flags, Mode::from_bits_truncate(mode as _))?;
        Ok(Temporary { directory: &self.directory, name, file: file.into(), is_in_place: false })
    }
}

/// Replaces the file at `path` in one go, as [`Replaceable::replace`] does.
pub fn replace(path: impl AsRef<Path>, contents: &[u8], mode: u32) -> io::Result<()> {
    Replaceable::open(path.as_ref())?.replace(contents, mode)
}

/// Whether a file has the name of one that was to get another name, and whose maker was killed before.
pub fn is_left_over(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
}

/// Removed when dropped, unless it has got its name.
struct Temporary<'a> {
    directory: &'a OwnedFd,
    name: OsString,
    file: File,
    is_in_place: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_in_place {
            let _ = unlinkat(self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (victim, file) = (dir.path().join("victim"), dir.path().join("file"));
        fs::write(&victim, "precious").expect("written");
        symlink(&victim, &file).expect("linked");
        replace(&file, b"new", 0o640).expect("replaced");
        assert_eq!(fs::read(&victim).expect("there"), b"precious");
        assert_eq!(fs::read(&file).expect("there"), b"new");
        let found = fs::symlink_metadata(&file).expect("there");
        assert!(found.is_file() && found.permissions().mode() & 0o777 & !0o640 == 0);
        Replaceable::open(&file).expect("opened").try_it().expect("writable");
        fs::create_dir(dir.path().join("directory")).expect("made");
        replace(dir.path().join("directory"), b"x", 0o600).expect_err("no file");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 3, "nothing is left behind");
    }
}
