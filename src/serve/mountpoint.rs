//! Mountpoints: made below configured roots and removed again, never through a symbolic link.
//!
//! A root and everything between it and a mountpoint belongs to the service's user and nobody else may write to it.
//! So a path that was resolved once means the same directory later, when a family mounts on it.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::problem::{Problem, ProblemKind};
use crate::sys::immutable;

use crate::sys::path::shown;

/// A directory below which mountpoints may be.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

impl Root {
    /// Opens a root; the error says what is wrong with it and what to do.
    pub fn open(path: &Path) -> Result<Self, String> {
        let place = shown(path);
        let slash = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| format!("/: {}", errno.desc()))?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let fd = descend(slash, below, ResolveFlag::empty()).map_err(|error| match error {
            Obstacle::Missing(part) => {
                format!("{} does not exist; create it: install -d -m 755 {place}", shown(&Path::new("/").join(part)))
            }
            Obstacle::Open(errno) => format!("{place}: {}; name the directory itself, not a link", errno.desc()),
            Obstacle::Unsafe(part) => format!(
                "{}: others may change it, so it is no safe way to mountpoints; let it belong to root, mode 0755",
                shown(&Path::new("/").join(part))
            ),
        })?;
        Ok(Self { path: path.to_owned(), fd })
    }
}

/// Every configured root.
#[derive(Debug)]
pub struct Roots(Vec<Root>);

impl Roots {
    /// Opens all of them.
    pub fn open<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Self, String> {
        Ok(Self(paths.map(Root::open).collect::<Result<_, _>>()?))
    }

    /// Where a run mounts that names no mountpoint.
    pub fn default_for(&self, id: &str) -> PathBuf {
        self.0[0].path.join(id)
    }

    /// Whether `path` is a name in a root itself.
    pub fn holds(&self, path: &Path) -> bool {
        path.file_name().is_some() && self.0.iter().any(|root| path.parent() == Some(&root.path))
    }

    /// Makes the directory `path`, or takes an empty one over that a crash has left. Its parent must be there.
    pub fn make(&self, path: &Path) -> Result<(), Problem> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name, Mode::empty()) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                take_over(&parent, path, name)?;
                // What is not as a crash leaves it is somebody's: only root names what is deeper.
                if self.holds(path) && !is_bare(&parent, name) {
                    return Err(refuse(ProblemKind::InUse, path, "exists; name another mountpoint, or leave it out"));
                }
            }
            Err(errno) => return Err(refuse(ProblemKind::CannotCreate, path, errno.desc())),
        }
        protect(&parent, name, Protection::On);
        Ok(())
    }

    /// Removes the directory `path`, if it is still there, empty, and one that [`make`] has made.
    ///
    /// [`make`]: Self::make
    pub fn remove(&self, path: &Path) {
        let Ok((parent, name)) = self.parent(path) else { return };
        protect(&parent, name, Protection::Off);
        if !is_bare(&parent, name) {
            return;
        }
        match unlinkat(&parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::warn!("the mountpoint {} stays: {}", shown(path), errno.desc()),
        }
    }

    /// Removes the mountpoints directly below the roots that a crash of the machine has left: empty directories as [`make`]
    /// leaves them, on which nothing is mounted.
    ///
    /// [`make`]: Self::make
    pub fn sweep(&self) {
        for root in &self.0 {
            let entries = std::fs::read_dir(&root.path).into_iter().flatten().flatten();
            for name in entries.map(|entry| PathBuf::from(entry.file_name())) {
                // Nothing is asked of what may be mounted there.
                let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
                let how = how.resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_BENEATH);
                let left = openat2(&root.fd, &name, how).and_then(fstat);
                if left.is_ok_and(|stat| stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o7777 == 0) {
                    self.remove(&root.path.join(name));
                }
            }
        }
    }

    /// The directory that holds `path`, and the name of `path` in it.
    fn parent<'a>(&self, path: &'a Path) -> Result<(OwnedFd, &'a Path), Problem> {
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let below = |root: &Root| path.strip_prefix(&root.path).ok().filter(|rest| rest.file_name().is_some());
        let found = self.0.iter().find(|root| plain && below(root).is_some());
        let Some(root) = found else {
            let roots: Vec<_> = self.0.iter().map(|root| shown(&root.path)).collect();
            let problem = format!("is not below a root of this node ({}), without `..`", roots.join(", "));
            return Err(refuse(ProblemKind::Forbidden, path, problem));
        };
        let rest = below(root).expect("found by this");
        let name = Path::new(rest.file_name().expect("found by this"));
        let own = root.fd.try_clone().map_err(|error| refuse(ProblemKind::System, path, error))?;
        let parent =
            descend(own, rest.parent().unwrap_or(Path::new("")), ResolveFlag::RESOLVE_NO_XDEV).map_err(|error| {
                match error {
                    Obstacle::Missing(part) => refuse(
                        ProblemKind::CannotCreate,
                        path,
                        format!("{} does not exist; only the last directory is made", shown(&root.path.join(part))),
                    ),
                    Obstacle::Open(Errno::EXDEV) => {
                        refuse(ProblemKind::Forbidden, path, "is in something else that is mounted there")
                    }
                    Obstacle::Open(errno) => {
                        refuse(ProblemKind::Forbidden, path, format!("{}; links are not followed", errno.desc()))
                    }
                    Obstacle::Unsafe(part) => refuse(
                        ProblemKind::Forbidden,
                        path,
                        format!(
                            "others may change {}, it must belong to root, mode 0755",
                            shown(&root.path.join(part))
                        ),
                    ),
                }
            })?;
        Ok((parent, name))
    }
}

/// Whether a directory is as [`Roots::make`] leaves it: without any permission, and not mounted on.
fn is_bare(parent: &OwnedFd, name: &Path) -> bool {
    let directory = open_below(parent, name, OFlag::O_PATH, ResolveFlag::RESOLVE_NO_XDEV);
    directory.and_then(fstat).is_ok_and(|stat| stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o7777 == 0)
}

/// An empty directory of our own user may be what a crash has left; `mount` itself looks whether something is mounted
/// there.
fn take_over(parent: &OwnedFd, path: &Path, name: &Path) -> Result<(), Problem> {
    let taken =
        |why: &str| refuse(ProblemKind::InUse, path, format!("{why}; name another mountpoint, or leave it out"));
    let directory =
        open_below(parent, name, OFlag::O_RDONLY, ResolveFlag::RESOLVE_NO_XDEV).map_err(|errno| match errno {
            Errno::EXDEV => taken("something is mounted there"),
            _ => taken("exists and is no directory"),
        })?;
    let stat = fstat(&directory).map_err(|errno| refuse(ProblemKind::System, path, errno.desc()))?;
    if stat.st_uid != geteuid().as_raw() {
        return Err(taken("exists and belongs to somebody else"));
    }
    let mut entries =
        nix::dir::Dir::from_fd(directory).map_err(|errno| refuse(ProblemKind::System, path, errno.desc()))?;
    let empty = entries.iter().flatten().all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."));
    if empty { Ok(()) } else { Err(taken("exists and is not empty")) }
}

/// Whether a bare directory can be written to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protection {
    On,
    Off,
}

/// What is written into the bare directory lies on the disk in the clear. Nobody can, where the file system and our rights
/// allow that; root still can elsewhere.
fn protect(parent: &OwnedFd, name: &Path, wanted: Protection) {
    let on = wanted == Protection::On;
    let set = || immutable::set(open_below(parent, name, OFlag::O_RDONLY, ResolveFlag::RESOLVE_NO_XDEV)?, on);
    if let Err(error) = set() {
        tracing::debug!("{}: immutable: {on}: {error}", shown(name));
    }
}

fn refuse(kind: ProblemKind, path: &Path, problem: impl std::fmt::Display) -> Problem {
    Problem::new(kind, format!("mountpoint {}: {problem}", shown(path)))
}

/// Why a directory cannot be reached.
enum Obstacle {
    /// It, or one on the way, is not there.
    Missing(PathBuf),
    /// It cannot be opened, or is a link.
    Open(Errno),
    /// Somebody else could exchange what is on the way.
    Unsafe(PathBuf),
}

/// Goes down from `fd` along `path`, one directory at a time: no links, no way up; with `RESOLVE_NO_XDEV` nothing that is
/// mounted either, as the scratches of others are.
fn descend(mut fd: OwnedFd, path: &Path, more: ResolveFlag) -> Result<OwnedFd, Obstacle> {
    let mut so_far = PathBuf::new();
    check(&fd, &so_far)?;
    for part in path.components() {
        so_far.push(part);
        fd = open_below(&fd, Path::new(part.as_os_str()), OFlag::O_PATH, more).map_err(|errno| match errno {
            Errno::ENOENT => Obstacle::Missing(so_far.clone()),
            errno => Obstacle::Open(errno),
        })?;
        check(&fd, &so_far)?;
    }
    Ok(fd)
}

fn open_below(parent: &OwnedFd, name: &Path, flags: OFlag, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(resolve | more);
    openat2(parent, name, how)
}

/// Only we (or root) may rename what is in the directory. In a sticky one others may add, but not touch what is ours.
fn check(fd: &OwnedFd, path: &Path) -> Result<(), Obstacle> {
    let stat: FileStat = fstat(fd).map_err(Obstacle::Open)?;
    let ours = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
    let open_to_others = stat.st_mode & 0o022 != 0 && stat.st_mode & 0o1000 == 0;
    if ours && !open_to_others { Ok(()) } else { Err(Obstacle::Unsafe(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn roots(path: &Path) -> Roots {
        Roots::open([path].into_iter()).expect("a temporary directory is safe")
    }

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = fs::canonicalize(dir.path()).expect("it exists");
        (dir, real)
    }

    // promise: T-63
    #[test]
    fn a_mountpoint_comes_and_goes() {
        let (_dir, root) = temporary();
        let roots = roots(&root);
        let path = roots.default_for("run");
        assert_eq!(path, root.join("run"));
        roots.make(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0, "nobody's business");
        roots.make(&path).expect("what a crash left is taken over");
        roots.remove(&path);
        assert!(!path.exists());
        roots.make(&path).expect("made");
        fs::create_dir(root.join("other")).expect("made");
        roots.sweep();
        assert!(!path.exists() && root.join("other").exists(), "only what a crash has left");
        roots.remove(&path);
    }

    #[test]
    fn nothing_outside_and_no_link_is_used() {
        let (_dir, root) = temporary();
        let (_other, elsewhere) = temporary();
        fs::create_dir(root.join("sub")).expect("made");
        symlink(&elsewhere, root.join("link")).expect("linked");
        symlink("sub", root.join("inner")).expect("linked");
        fs::write(root.join("file"), "").expect("written");
        fs::create_dir_all(root.join("full/x")).expect("made");
        let roots = roots(&root);
        for (path, kind) in [
            (elsewhere.join("x"), ProblemKind::Forbidden),
            (root.clone(), ProblemKind::Forbidden),
            (root.join("../x"), ProblemKind::Forbidden),
            (root.join("sub/../../x"), ProblemKind::Forbidden),
            (PathBuf::from("x"), ProblemKind::Forbidden),
            (root.join("link/x"), ProblemKind::Forbidden),
            (root.join("inner/x"), ProblemKind::Forbidden),
            (root.join("link"), ProblemKind::InUse),
            (root.join("file"), ProblemKind::InUse),
            (root.join("full"), ProblemKind::InUse),
            (root.join("none/x"), ProblemKind::CannotCreate),
            (root.join("file/x"), ProblemKind::Forbidden),
        ] {
            assert_eq!(roots.make(&path).expect_err("refused").kind, kind, "{}", path.display());
        }
        assert_eq!(fs::read_dir(&elsewhere).expect("there").count(), 0);
        roots.make(&root.join("sub/x")).expect("a directory below");
        roots.remove(&root.join("sub/x"));
    }

    #[test]
    fn directories_that_others_may_change_are_no_way() {
        let (_dir, root) = temporary();
        fs::create_dir(root.join("open")).expect("made");
        fs::set_permissions(root.join("open"), fs::Permissions::from_mode(0o777)).expect("set");
        let problem = Root::open(&root.join("open")).expect_err("unsafe");
        assert!(problem.contains("others may change it"), "{problem}");
        assert_eq!(roots(&root).make(&root.join("open/x")).expect_err("unsafe").kind, ProblemKind::Forbidden);
        fs::set_permissions(root.join("open"), fs::Permissions::from_mode(0o1777)).expect("set");
        roots(&root).make(&root.join("open/x")).expect("sticky will do");
        roots(&root).remove(&root.join("open/x"));
    }
}
