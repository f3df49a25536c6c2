//! Places that are reached without following a link: below a directory that is held open, or by a path that has none.
//! Who may rename what is on the way can make that fail, but never lead elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use super::path::{self, Directory, FileKind, ON_THE_WAY, Place, Reached, Stat, cut};

/// Links are followed nowhere, those of /proc neither.
const NO_LINKS: ResolveFlag = ResolveFlag::RESOLVE_NO_SYMLINKS.union(ResolveFlag::RESOLVE_NO_MAGICLINKS);
/// Nor is the directory left, by `..` or into what is mounted below it.
const WITHIN: ResolveFlag = NO_LINKS.union(ResolveFlag::RESOLVE_BENEATH).union(ResolveFlag::RESOLVE_NO_XDEV);

/// A directory that is held open: whoever moves it elsewhere meanwhile changes nothing.
#[derive(Debug)]
pub struct Anchor {
    directory: OwnedFd,
    path: PathBuf,
}

/// Whom a directory may belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// To anybody.
    Anybody,
    /// To this user or root alone, and nobody else may write to it.
    Own,
}

/// Why a directory is not opened.
#[derive(Debug)]
pub enum Unsafe {
    /// The system has an error.
    Io(io::Error),
    /// Users other than this one and root may change this directory: it, or one on the way to it.
    Others(PathBuf),
}

impl Anchor {
    /// Opens `path` as open(2) does: links are followed, for nobody could have put one there.
    pub fn follow(path: &Path) -> io::Result<Self> {
        let directory = openat(AT_FDCWD, path, ON_THE_WAY, Mode::empty())?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Opens `path`, which must be absolute. `ELOOP` or `ENOTDIR`: a link is on the way.
    pub fn open(path: &Path) -> io::Result<Self> {
        let directory = descend(AT_FDCWD, path, NO_LINKS)?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// As [`Anchor::open`]; with [`Trust::Own`] nobody but this user and root may be able to exchange what is on the way.
    /// In a directory with the sticky bit others may add names, but not exchange those of this user.
    pub fn open_by(trust: Trust, path: &Path) -> Result<Self, Unsafe> {
        match trust {
            Trust::Anybody => Self::open(path).map_err(Unsafe::Io),
            Trust::Own => Self::open_trusted(path),
        }
    }

    fn open_trusted(path: &Path) -> Result<Self, Unsafe> {
        let mut anchor = Self::open(Path::new("/")).map_err(Unsafe::Io)?;
        for part in path.components().skip(1) {
            anchor.check(true)?;
            let name = Path::new(part.as_os_str());
            // What is mounted on the way is the administrator's choice.
            let directory = descend(anchor.directory.as_fd(), name, NO_LINKS | ResolveFlag::RESOLVE_BENEATH);
            anchor = Self { directory: directory.map_err(Unsafe::Io)?, path: anchor.path.join(name) };
        }
        anchor.check(true)?;
        Ok(anchor)
    }

    /// Whether this very directory may be used by `trust`: one that others may write to, or that is theirs, may not.
    pub fn check_by(&self, trust: Trust) -> Result<(), Unsafe> {
        if trust == Trust::Own { self.check(false) } else { Ok(()) }
    }

    fn check(&self, sticky_will_do: bool) -> Result<(), Unsafe> {
        let Stat { uid, mode, .. } = self.stat().map_err(Unsafe::Io)?;
        let ours = uid == 0 || uid == nix::unistd::geteuid().as_raw();
        let open_to_others = mode & 0o022 != 0 && !(sticky_will_do && mode & 0o1000 != 0);
        if ours && !open_to_others { Ok(()) } else { Err(Unsafe::Others(self.path.clone())) }
    }

    /// Holds the directory at `place` open.
    pub fn at(place: &Below<'_>) -> io::Result<Self> {
        let at = place.reach()?;
        let directory = open_within(at.as_fd(), at.rest, ON_THE_WAY | OFlag::O_NOFOLLOW, Mode::empty())?;
        drop(at);
        Ok(Self { directory, path: place.path() })
    }

    /// What is below it at `path`, which must have no `..`; the directory itself if that is empty.
    pub fn below(&self, path: impl Into<PathBuf>) -> Below<'_> {
        Below { anchor: self, rest: path.into() }
    }

    /// The directory itself.
    pub fn itself(&self) -> Below<'_> {
        self.below("")
    }

    /// Of the directory.
    pub fn stat(&self) -> io::Result<Stat> {
        Stat::of(&self.directory)
    }

    /// Where it was when it was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A path below an [`Anchor`].
#[derive(Clone, Debug)]
pub struct Below<'a> {
    anchor: &'a Anchor,
    rest: PathBuf,
}

impl<'a> Below<'a> {
    /// One name further down.
    pub fn join(&self, name: impl AsRef<Path>) -> Self {
        Self { anchor: self.anchor, rest: self.rest.join(name) }
    }

    /// The whole path, for messages.
    pub fn path(&self) -> PathBuf {
        if self.rest.as_os_str().is_empty() { self.anchor.path.clone() } else { self.anchor.path.join(&self.rest) }
    }
}

impl Place for Below<'_> {
    /// `EINVAL` if the path is anything but names; `ELOOP` or `ENOTDIR` if one on the way is a link or a file; `EXDEV`
    /// if something is mounted on the way.
    fn reach(&self) -> io::Result<Reached<'_>> {
        let directory = self.anchor.directory.as_fd();
        if self.rest.as_os_str().is_empty() {
            return Ok(Reached { directory: Directory::Given(directory), rest: Path::new("."), within: false });
        }
        if !self.rest.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Errno::EINVAL.into());
        }
        Ok(Reached { within: true, ..reach_without_links(directory, &self.rest, WITHIN)? })
    }
}

/// A path without links as it was found: if one is on the way now, somebody has put it there.
#[derive(Clone, Copy, Debug)]
pub struct Linkless<'a>(pub &'a Path);

impl Place for Linkless<'_> {
    fn reach(&self) -> io::Result<Reached<'_>> {
        reach_without_links(AT_FDCWD, self.0, NO_LINKS)
    }
}

fn reach_without_links<'a>(from: BorrowedFd<'a>, path: &'a Path, resolve: ResolveFlag) -> io::Result<Reached<'a>> {
    let (above, name) = match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => (above, Path::new(name)),
        _ => return Ok(Reached { directory: Directory::Given(from), rest: path, within: false }),
    };
    let directory = match above.as_os_str().is_empty() {
        true => Directory::Given(from),
        false => Directory::Opened(descend(from, above, resolve)?),
    };
    Ok(Reached { directory, rest: name, within: false })
}

/// Opens a directory, in as many steps as the length of the path needs.
fn descend(from: BorrowedFd<'_>, path: &Path, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let (head, mut rest) = cut(path)?;
    let mut directory = step(from, head, (ON_THE_WAY, Mode::empty()), resolve)?;
    while !rest.as_os_str().is_empty() {
        let (head, tail) = cut(rest)?;
        directory = step(directory.as_fd(), head, (ON_THE_WAY, Mode::empty()), resolve)?;
        rest = tail;
    }
    Ok(directory)
}

/// Opens a name of a directory that is no link and nothing that is mounted.
pub(super) fn open_within(directory: BorrowedFd<'_>, name: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    step(directory, name, (flags, mode), WITHIN)
}

fn step(from: BorrowedFd<'_>, path: &Path, (flags, mode): (OFlag, Mode), resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
    match openat2(from, path, how) {
        // Older than Linux 5.6, or hidden by a filter.
        Err(Errno::ENOSYS | Errno::EPERM) => one_by_one(from, path, (flags, mode)),
        opened => Ok(opened?),
    }
}

/// The same name by name, but that what is mounted is entered.
fn one_by_one(from: BorrowedFd<'_>, path: &Path, (flags, mode): (OFlag, Mode)) -> io::Result<OwnedFd> {
    let mut at = openat(from, if path.is_absolute() { "/" } else { "." }, ON_THE_WAY, Mode::empty())?;
    let mut names = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(Errno::EINVAL.into()) };
        let flags = if names.peek().is_some() { ON_THE_WAY } else { flags };
        at = openat(&at, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode)?;
    }
    Ok(at)
}

/// Removes all that is in a directory, without recursion and with one descriptor at a time.
pub fn empty(top: &Below<'_>) -> io::Result<()> {
    let mut directories = vec![top.clone()];
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        for name in path::list(&directory)? {
            let child = directory.join(name);
            match path::stat(&child)?.kind {
                FileKind::Directory => directories.push(child),
                _ => path::remove_file(&child)?,
            }
        }
        next += 1;
    }
    directories.iter().skip(1).rev().try_for_each(path::remove_directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (top, other) = (path::resolved(&dir.path().join("top")), dir.path().join("other"));
        fs::create_dir_all(top.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(top.join("sub/file"), "").unwrap();
        fs::write(other.join("file"), "").unwrap();
        symlink(&other, top.join("link")).unwrap();
        let anchor = Anchor::open(&top).unwrap();
        for bad in ["/etc/passwd", "..", "../other/file", "sub/../../other/file", "./sub/file", "."] {
            let error = path::stat(&anchor.below(bad)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EINVAL as i32), "{bad}");
        }
        for blocked in ["link/file", "sub/file/x", "gone/file"] {
            assert!(path::stat(&anchor.below(blocked)).is_err(), "{blocked}");
            assert!(path::create(&anchor.below(blocked), 0o600).is_err(), "{blocked}");
            assert!(path::stat(&Linkless(&top.join(blocked))).is_err(), "{blocked}");
        }
        assert!(path::stat(&Linkless(&top.join("sub/file"))).is_ok());
        assert!(Anchor::open(&top.join("link")).is_err() && path::open_directory(&anchor.below("link")).is_err());
        assert!(path::set_mode(&anchor.below("link"), 0o777).is_err());
        // Moved away while it is held, it is still the same directory.
        fs::rename(&top, dir.path().join("moved")).unwrap();
        symlink(&other, &top).unwrap();
        empty(&anchor.below("sub")).unwrap();
        path::remove_directory(&anchor.below("sub")).unwrap();
        path::remove_file(&anchor.below("link")).unwrap();
        assert!(other.join("file").exists() && fs::read_dir(dir.path().join("moved")).unwrap().next().is_none());
    }

    #[test]
    fn the_fallback_is_as_strict_about_links() {
        let dir = tempfile::tempdir().unwrap();
        let top = path::resolved(dir.path());
        fs::create_dir(top.join("sub")).unwrap();
        fs::write(top.join("sub/file"), "").unwrap();
        symlink("sub", top.join("link")).unwrap();
        let read = (OFlag::O_RDONLY, Mode::empty());
        assert!(one_by_one(AT_FDCWD, &top.join("sub/file"), read).is_ok());
        assert!(one_by_one(AT_FDCWD, &top.join("link/file"), read).is_err());
        assert!(one_by_one(AT_FDCWD, &top.join("link"), read).is_err());
        assert!(one_by_one(AT_FDCWD, &top.join("sub/../sub/file"), read).is_err());
    }

    #[test]
    fn a_way_that_others_may_change_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let top = path::resolved(dir.path());
        let (shared, inner) = (top.join("shared"), top.join("shared/inner"));
        fs::create_dir_all(&inner).unwrap();
        let mode = |bits| fs::set_permissions(&shared, fs::Permissions::from_mode(bits)).unwrap();
        let open = |place: &Path| Anchor::open_by(Trust::Own, place);
        mode(0o755);
        open(&shared).unwrap().check_by(Trust::Own).unwrap();
        mode(0o775);
        assert!(matches!(open(&inner), Err(Unsafe::Others(theirs)) if theirs == shared));
        assert!(matches!(open(&shared), Err(Unsafe::Others(_))));
        Anchor::open_by(Trust::Anybody, &shared).unwrap().check_by(Trust::Anybody).unwrap();
        mode(0o1777);
        open(&inner).unwrap().check_by(Trust::Own).unwrap();
        // Its names are safe, but it is not ours alone.
        assert!(open(&shared).unwrap().check_by(Trust::Own).is_err());
    }
}
