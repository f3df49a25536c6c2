//! Operations on paths of any length: the kernel refuses paths of `PATH_MAX` bytes, trees may be deeper.
//!
//! Every function goes as far as one call reaches, holds that directory open, and continues from there. The last
//! component is never followed when it is a symbolic link, except by [`stat_followed`]. Whether links above it are
//! followed is up to the [`Place`]: in a path they are, in a [`Linkless`](super::beneath::Linkless) and
//! [`Below`](super::beneath::Below) an open directory they are not.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{self, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

use super::beneath::open_within;

/// Longest path one system call takes: `PATH_MAX` of Linux counts the final NUL byte.
const REACH: usize = 4095;

/// Kind of a file outside the scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO, socket or device, with its English name.
    Special(&'static str),
}

/// What `stat(2)` says, as far as staging needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Last modification: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// Last status change: seconds since 1970, nanoseconds.
    pub ctime: (i64, u32),
}

impl Stat {
    /// Of an open file.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(stat::fstat(file)?.into())
    }

    /// Whether both describe one unchanged file: same inode, size, modification and status change.
    pub fn unchanged(&self, later: &Self) -> bool {
        let mark = |s: &Self| (s.dev, s.ino, s.size, s.mtime, s.ctime);
        mark(self) == mark(later)
    }
}

impl From<FileStat> for Stat {
    // The widths of the fields of `struct stat` differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    fn from(s: FileStat) -> Self {
        Self {
            kind: kind_of(s.st_mode as u32),
            mode: s.st_mode as u32 & 0o7777,
            uid: s.st_uid,
            gid: s.st_gid,
            dev: s.st_dev as u64,
            ino: s.st_ino as u64,
            size: s.st_size as u64,
            blocks: s.st_blocks as u64,
            mtime: (s.st_mtime as i64, s.st_mtime_nsec as u32),
            ctime: (s.st_ctime as i64, s.st_ctime_nsec as u32),
        }
    }
}

fn kind_of(mode: u32) -> FileKind {
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => FileKind::File,
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFLNK => FileKind::Symlink,
        SFlag::S_IFIFO => FileKind::Special("FIFO"),
        SFlag::S_IFSOCK => FileKind::Special("socket"),
        SFlag::S_IFCHR => FileKind::Special("character device"),
        SFlag::S_IFBLK => FileKind::Special("block device"),
        _ => FileKind::Special("file of an unknown kind"),
    }
}

/// `lstat(2)`.
pub fn stat(path: &(impl Place + ?Sized)) -> io::Result<Stat> {
    let at = path.reach()?;
    Ok(stat::fstatat(&at, at.rest, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
}

/// `stat(2)`.
pub fn stat_followed(path: &Path) -> io::Result<Stat> {
    let at = path.reach()?;
    Ok(stat::fstatat(&at, at.rest, AtFlags::empty())?.into())
}

/// Opens a regular file for reading. A FIFO in its place does not block, a symbolic link is refused (`ELOOP`).
pub fn open(path: &(impl Place + ?Sized)) -> io::Result<File> {
    open_with(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, 0)
}

/// Opens a directory, to list, sync or lock it.
pub fn open_directory(path: &(impl Place + ?Sized)) -> io::Result<File> {
    open_with(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)
}

/// Makes a new file for writing; the umask applies. An existing name is refused (`EEXIST`).
pub fn create(path: &(impl Place + ?Sized), mode: u32) -> io::Result<File> {
    open_with(path, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL, mode)
}

fn open_with(path: &(impl Place + ?Sized), flags: OFlag, mode: u32) -> io::Result<File> {
    let at = path.reach()?;
    let (flags, mode) = (flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::from_bits_truncate(mode as _));
    match at.within {
        true => Ok(open_within(at.as_fd(), at.rest, flags, mode)?.into()),
        false => Ok(fcntl::openat(&at, at.rest, flags, mode)?.into()),
    }
}

/// Names in a directory, sorted by their bytes, without `.` and `..`.
pub fn list(path: &(impl Place + ?Sized)) -> io::Result<Vec<OsString>> {
    let mut dir = nix::dir::Dir::from_fd(open_directory(path)?.into())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_bytes().to_owned();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// `mkdir(2)`; the umask applies.
pub fn make_directory(path: &(impl Place + ?Sized), mode: u32) -> io::Result<()> {
    let at = path.reach()?;
    Ok(stat::mkdirat(&at, at.rest, Mode::from_bits_truncate(mode as _))?)
}

/// `symlink(2)`.
pub fn make_symlink(target: &OsStr, path: &(impl Place + ?Sized)) -> io::Result<()> {
    let at = path.reach()?;
    Ok(unistd::symlinkat(target, &at, at.rest)?)
}

/// `readlink(2)`.
pub fn read_symlink(path: &(impl Place + ?Sized)) -> io::Result<OsString> {
    let at = path.reach()?;
    Ok(fcntl::readlinkat(&at, at.rest)?)
}

/// `fchmod(2)` with all of `07777`, on a file or directory that can be read.
pub fn set_mode(path: &(impl Place + ?Sized), mode: u32) -> io::Result<()> {
    let file = open_with(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, 0)?;
    Ok(stat::fchmod(file, Mode::from_bits_truncate(mode as _))?)
}

/// `lchown(2)`; `None` leaves a value alone.
pub fn set_owner(path: &(impl Place + ?Sized), uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    let at = path.reach()?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    Ok(unistd::fchownat(&at, at.rest, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Sets the modification time (seconds since 1970, nanoseconds) and leaves the access time alone.
pub fn set_mtime(path: &(impl Place + ?Sized), mtime: (i64, u32)) -> io::Result<()> {
    let at = path.reach()?;
    let mtime = TimeSpec::new(mtime.0 as _, mtime.1 as _);
    Ok(stat::utimensat(&at, at.rest, &TimeSpec::UTIME_OMIT, &mtime, UtimensatFlags::NoFollowSymlink)?)
}

/// `rename(2)`: replaces what has the new name.
pub fn rename(from: &(impl Place + ?Sized), to: &(impl Place + ?Sized)) -> io::Result<()> {
    let (from, to) = (from.reach()?, to.reach()?);
    Ok(fcntl::renameat(&from, from.rest, &to, to.rest)?)
}

/// Renames, or answers `EEXIST` when the new name is taken (`RENAME_NOREPLACE`).
///
/// Where the file system has no such rename (NFS), a file is linked to its new name and unlinked from the old one,
/// which is as strict. A directory is renamed plainly there, which can replace an empty directory but nothing else.
pub fn rename_new(from: &(impl Place + ?Sized), to: &(impl Place + ?Sized)) -> io::Result<()> {
    let (a, b) = (from.reach()?, to.reach()?);
    match fcntl::renameat2(&a, a.rest, &b, b.rest, fcntl::RenameFlags::RENAME_NOREPLACE) {
        Err(Errno::EINVAL | Errno::ENOSYS) => rename_new_by_link(from, to),
        result => Ok(result?),
    }
}

fn rename_new_by_link(from: &(impl Place + ?Sized), to: &(impl Place + ?Sized)) -> io::Result<()> {
    if stat(from)?.kind == FileKind::Directory {
        return rename(from, to);
    }
    let (a, b) = (from.reach()?, to.reach()?);
    unistd::linkat(&a, a.rest, &b, b.rest, AtFlags::empty())?;
    remove_file(from)
}

/// `unlink(2)`.
pub fn remove_file(path: &(impl Place + ?Sized)) -> io::Result<()> {
    let at = path.reach()?;
    Ok(unistd::unlinkat(&at, at.rest, UnlinkatFlags::NoRemoveDir)?)
}

/// `rmdir(2)`.
pub fn remove_directory(path: &(impl Place + ?Sized)) -> io::Result<()> {
    let at = path.reach()?;
    Ok(unistd::unlinkat(&at, at.rest, UnlinkatFlags::RemoveDir)?)
}

/// Absolute and free of symbolic links as far as it exists; its last component need not.
pub fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let of_parent = || Some(std::fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?));
    std::fs::canonicalize(&absolute).ok().or_else(of_parent).unwrap_or(absolute)
}

/// A path as people read it, on one line: nothing hidden in it, and bytes that are no text written out.
pub fn shown(path: &Path) -> String {
    crate::units::text::shown_path(path)
}

/// What the functions of this module act on.
pub trait Place {
    /// Opens the directory above, as far as that is needed.
    fn reach(&self) -> io::Result<Reached<'_>>;
}

/// Links above the last name are followed.
impl<P: AsRef<Path> + ?Sized> Place for P {
    fn reach(&self) -> io::Result<Reached<'_>> {
        let mut rest = self.as_ref();
        let mut directory: Option<OwnedFd> = None;
        while rest.as_os_str().len() > REACH {
            let (head, tail) = cut(rest)?;
            let from = directory.as_ref().map_or(AT_FDCWD, |d| d.as_fd());
            directory = Some(fcntl::openat(from, head, ON_THE_WAY, Mode::empty())?);
            rest = tail;
        }
        let directory = directory.map_or(Directory::Given(AT_FDCWD), Directory::Opened);
        Ok(Reached { directory, rest, within: false })
    }
}

/// How directories on the way are opened.
pub(super) const ON_THE_WAY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Splits a path that is too long for one call: the first part is short enough, and names a directory.
pub(super) fn cut(path: &Path) -> io::Result<(&Path, &Path)> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= REACH {
        return Ok((path, Path::new("")));
    }
    let cut = bytes[..=REACH].iter().rposition(|&b| b == b'/').filter(|&cut| cut > 0);
    let (head, tail) = bytes.split_at(cut.ok_or(Errno::ENAMETOOLONG)?);
    let slashes = tail.iter().take_while(|&&b| b == b'/').count();
    let path = |bytes| Path::new(OsStr::from_bytes(bytes));
    Ok((path(head), path(&tail[slashes..])))
}

/// The last directory on the way that was opened, and what remains to be named from there.
pub struct Reached<'a> {
    pub(super) directory: Directory<'a>,
    pub(super) rest: &'a Path,
    /// Whether what is mounted on the name is not opened either.
    pub(super) within: bool,
}

/// Who closes it.
pub(super) enum Directory<'a> {
    Given(BorrowedFd<'a>),
    Opened(OwnedFd),
}

impl AsFd for Reached<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.directory {
            Directory::Given(directory) => *directory,
            Directory::Opened(directory) => directory.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::beneath::{Anchor, empty};
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn paths_longer_than_path_max_work() {
        let root = tempfile::tempdir().unwrap();
        let mut deep = root.path().to_owned();
        for _ in 0..60 {
            deep.push("d".repeat(200));
            make_directory(&deep, 0o700).unwrap();
        }
        assert!(deep.as_os_str().len() > 2 * REACH);
        create(&deep.join("file"), 0o600).unwrap().write_all(b"data").unwrap();
        make_symlink(OsStr::new("file"), &deep.join("link")).unwrap();
        rename_new(&deep.join("file"), &deep.join("renamed")).unwrap();
        assert_eq!(list(&deep).unwrap(), ["link", "renamed"]);
        assert_eq!(read_symlink(&deep.join("link")).unwrap(), "file");
        let mut text = String::new();
        open(&deep.join("renamed")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
        let anchor = Anchor::open(&resolved(root.path())).unwrap();
        let below = anchor.below(deep.strip_prefix(root.path()).unwrap());
        assert_eq!(list(&below).unwrap(), ["link", "renamed"]);
        let top = anchor.below("d".repeat(200));
        empty(&top).unwrap();
        remove_directory(&top).unwrap();
        assert_eq!(stat(&top).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_taken_name_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        create(&a, 0o600).unwrap();
        create(&b, 0o600).unwrap();
        assert_eq!(create(&a, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        for rename_new in [rename_new, rename_new_by_link] {
            assert_eq!(rename_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            rename_new(&a, &root.path().join("c")).unwrap();
            rename_new(&root.path().join("c"), &a).unwrap();
        }
        rename(&a, &b).unwrap();
        assert_eq!(list(root.path()).unwrap(), ["b"]);
    }

    #[test]
    fn a_directory_with_contents_is_not_replaced_where_only_links_are_strict() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        make_directory(&a, 0o700).unwrap();
        make_directory(&b, 0o700).unwrap();
        create(&b.join("file"), 0o600).unwrap();
        assert_eq!(rename_new_by_link(&a, &b).unwrap_err().kind(), io::ErrorKind::DirectoryNotEmpty);
        remove_file(&b.join("file")).unwrap();
        rename_new_by_link(&a, &b).unwrap();
    }

    #[test]
    fn terminals_are_safe_from_names() {
        let name = OsStr::from_bytes(b"a\x1b[31m\n\xff");
        assert_eq!(shown(Path::new(name)), "a\\u{1b}[31m\\n\\xff");
    }

    #[test]
    fn links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        create(&root.path().join("file"), 0o600).unwrap();
        make_symlink(OsStr::new("file"), &link).unwrap();
        assert_eq!(open(&link).unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(stat(&link).unwrap().kind, FileKind::Symlink);
        assert_eq!(stat_followed(&link).unwrap().kind, FileKind::File);
    }
}
