//! The mount table, and the calls that change it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, close, fork, unlink};

/// One line of `mountinfo` (proc(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id, unique while the mount lives.
    pub id: u64,
    /// Id of the mount this one sits on.
    pub parent: u64,
    /// Device number of the file system: major, minor.
    pub device: (u32, u32),
    /// The directory of the file system that is the root of this mount.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Number of the peer group that mounts made here are propagated to, if it is shared.
    pub shared: Option<u64>,
    /// Number of the peer group it receives mounts from, if it has one.
    pub master: Option<u64>,
    /// File-system type, with a subtype as in `fuse.runseal`.
    pub fs_type: OsString,
    /// What mount(8) shows as the device.
    pub source: OsString,
    /// Options of the superblock, comma separated.
    pub super_options: OsString,
}

/// The mounts of the calling thread's namespace. Contacts no file system but proc.
pub fn mount_table() -> io::Result<Vec<MountEntry>> {
    read_table(Path::new(OWN_TABLE))
}

/// The mounts that a process sees; of one that is ending, those that its last thread does. Needs the right to trace it.
pub fn mount_table_of(process: u32) -> io::Result<Vec<MountEntry>> {
    let threads = fs::read_dir(format!("/proc/{process}/task"))?;
    let tables = threads.filter_map(|thread| read_table(&thread.ok()?.path().join("mountinfo")).ok());
    tables.into_iter().find(|table| !table.is_empty()).ok_or(io::ErrorKind::NotFound.into())
}

/// Longest table that is read, in bytes: whoever makes many mounts must not fill the memory of others.
const LONGEST_TABLE: u64 = 8 << 20;
const OWN_TABLE: &str = "/proc/thread-self/mountinfo";

fn read_table(path: &Path) -> io::Result<Vec<MountEntry>> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(LONGEST_TABLE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LONGEST_TABLE {
        return Err(io::Error::other(format!("more than {} MiB of mounts", LONGEST_TABLE >> 20)));
    }
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// The mount that is on top at `mountpoint` (a path without symbolic links), if any.
pub fn top_mount<'a>(table: &'a [MountEntry], mountpoint: &Path) -> Option<&'a MountEntry> {
    let here = || table.iter().filter(|entry| entry.mountpoint == mountpoint);
    here().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
}

/// The mount that a path without symbolic links leads to, as whoever has this table sees it.
pub fn mount_of<'a>(table: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    let mut found = top_mount(table, Path::new("/"));
    let ways: Vec<&Path> = path.ancestors().collect();
    for way in ways.into_iter().rev().skip(1) {
        let above = |found: Option<&MountEntry>| {
            let parent = found?.id;
            table.iter().find(|entry| entry.parent == parent && entry.mountpoint == way && entry.id != parent)
        };
        while let Some(next) = above(found) {
            found = Some(next);
        }
    }
    found
}

/// mount(2).
pub fn mount(source: &str, target: &Path, fs_type: &str, flags: MsFlags, data: &str) -> io::Result<()> {
    Ok(nix::mount::mount(Some(source), target, Some(fs_type), flags, Some(data))?)
}

/// Takes the top mount at `target` out of the tree; it lives on until its last user is gone (`MNT_DETACH`).
pub fn detach(target: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// As [`detach`], and aborts a FUSE connection on the way (`MNT_FORCE`): pending and later requests fail.
pub fn force_detach(target: &Path) -> io::Result<()> {
    let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    Ok(nix::mount::umount2(target, flags)?)
}

/// Aborts the FUSE connection whose file system has the device number 0:`minor`, through fusectl, which is mounted
/// if need be. Works on a mount that is detached already. `NotFound`: there is no such connection.
pub fn abort_fuse_connection(minor: u32) -> io::Result<()> {
    let connections = Path::new("/sys/fs/fuse/connections");
    if top_mount(&mount_table()?, connections).is_none_or(|entry| entry.fs_type != "fusectl") {
        mount("none", connections, "fusectl", MsFlags::empty(), "")?;
    }
    let mut abort = fs::OpenOptions::new().write(true).open(connections.join(minor.to_string()).join("abort"))?;
    abort.write_all(b"1")
}

/// Opens `root`, and with `writable` creates, opens and unlinks a file below it, from a child process.
///
/// For the server of a FUSE file system that has to touch its own mount: were one of its threads inside a request when
/// another one dies, the kernel would wait for that thread before it closes `device`, and the thread for the close,
/// for ever. A child is a client like any other. It gives up its copy of `device` first, which would keep the
/// connection alive.
pub fn touch_own_mount(root: &Path, writable: bool, device: RawFd) -> io::Result<()> {
    let file = writable.then(|| root.join(format!(".runseal-{}", std::process::id())));
    let file = file.map(|file| CString::new(file.into_os_string().into_vec())).transpose()?;
    let root = CString::new(root.as_os_str().as_bytes())?;
    // SAFETY: this process may have threads, so the child may call async-signal-safe functions only: `touch` opens,
    // closes and unlinks paths made above, and allocates nothing. nix offers no safe fork.
    let child = match unsafe { fork() }? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let result = touch(&root, file.as_deref(), device);
            // SAFETY: ends the child without running what the parent has registered for its own end.
            unsafe { libc::_exit(result.map_or_else(|errno| errno as i32, |()| 0)) }
        }
    };
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) | Err(Errno::ECHILD) => return Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(status) => return Err(io::Error::other(format!("{status:?}"))),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn touch(root: &CStr, file: Option<&CStr>, device: RawFd) -> nix::Result<()> {
    close(device)?;
    let read_only = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    drop(open(root, read_only | OFlag::O_DIRECTORY, Mode::empty())?);
    let Some(file) = file else { return Ok(()) };
    drop(open(file, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC, Mode::S_IRUSR)?);
    let opened = open(file, read_only, Mode::empty()).map(drop);
    unlink(file)?;
    opened
}

/// Marks the calling thread, and threads it starts from now on, as one that serves the I/O of others: its memory
/// allocations do not wait for file systems (prctl(2), `PR_SET_IO_FLUSHER`, Linux 5.6). Needs `CAP_SYS_RESOURCE`.
pub fn set_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this prctl takes plain integers and touches no memory. nix has no wrapper for it.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether what shows through in a [`PrivateView`] can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// No.
    ReadOnly,
    /// As outside.
    ReadWrite,
}

/// Directories that a child process, before it becomes another program, covers in a mount namespace of its own. Made
/// beforehand, so that entering it allocates nothing.
#[derive(Debug, Default)]
pub struct PrivateView {
    steps: Vec<Step>,
}

/// The extended attribute of an empty file or directory that was made for something to show through; its value is the
/// path of that. Who reads the tree by other ways than the view, reads nothing there.
pub const SHOWN: &CStr = c"user.runseal.shown";

#[derive(Debug)]
enum Step {
    /// Makes a directory, unless it is there.
    Directory(CString),
    /// Makes a file or directory for something to show through, unless there is one, and marks it.
    Place { place: CString, source: CString, directory: bool },
    /// Shows a tree at a second place; `remount` are the flags that make it read-only.
    Show { from: CString, to: CString, remount: Option<MsFlags> },
    /// Shows a tree in place of another one.
    Cover { from: CString, to: CString },
}

impl PrivateView {
    /// Has `source` show through at `below` in `directory`. One that cannot be shown is left out: whoever wants it says
    /// so.
    pub fn show(&mut self, source: &Path, directory: &Path, below: &Path, access: Access) {
        let Ok(flags) = nix::sys::statvfs::statvfs(source).map(|found| found.flags()) else { return };
        let mut place = directory.to_owned();
        let parents = below.parent().map(Path::components).into_iter().flatten();
        for part in parents {
            place.push(part);
            self.steps.extend(text(&place).map(Step::Directory));
        }
        place = directory.join(below);
        let (Some(from), Some(to)) = (text(source), text(&place)) else { return };
        self.steps.push(Step::Place { place: to.clone(), source: from.clone(), directory: source.is_dir() });
        let remount = (access == Access::ReadOnly).then(|| read_only(flags));
        self.steps.push(Step::Show { from, to, remount });
    }

    /// Has `source`, with all that shows through in it, cover `directory`.
    pub fn cover(&mut self, source: &Path, directory: &Path) {
        if let (Some(from), Some(to)) = (text(source), text(directory)) {
            self.steps.push(Step::Cover { from, to });
        }
    }

    /// Gives this process, which has one thread, the view. Makes system calls only.
    pub fn enter(&self) -> nix::Result<()> {
        if self.steps.is_empty() {
            return Ok(());
        }
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        self.steps.iter().try_for_each(Step::take)
    }
}

impl Step {
    fn take(&self) -> nix::Result<()> {
        match self {
            Self::Directory(path) => drop(nix::unistd::mkdir(path.as_c_str(), Mode::from_bits_truncate(0o755))),
            Self::Place { place, source, directory } => {
                let made = if *directory {
                    nix::unistd::mkdir(place.as_c_str(), Mode::from_bits_truncate(0o755))
                } else {
                    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
                    open(place.as_c_str(), flags, Mode::from_bits_truncate(0o600)).map(drop)
                };
                if made.is_ok() {
                    mark(place, source)?;
                }
            }
            Self::Show { from, to, remount } => {
                if bind(from, to).is_ok()
                    && let Some(flags) = remount
                    && remount_as(to, *flags).is_err()
                {
                    nix::mount::umount2(to.as_c_str(), MntFlags::MNT_DETACH)?;
                }
            }
            Self::Cover { from, to } => bind(from, to)?,
        }
        Ok(())
    }
}

/// Says of a place for what it was made.
fn mark(place: &CStr, source: &CStr) -> nix::Result<()> {
    let value = source.to_bytes();
    // SAFETY: all pointers are to live data of the lengths given, and the call keeps none. nix has no wrapper for it.
    let result = unsafe {
        libc::setxattr(place.as_ptr(), SHOWN.as_ptr(), value.as_ptr().cast(), value.len(), libc::XATTR_CREATE)
    };
    nix::errno::Errno::result(result).map(drop)
}

fn bind(from: &CStr, to: &CStr) -> nix::Result<()> {
    nix::mount::mount(Some(from), to, None::<&CStr>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&CStr>)
}

fn remount_as(path: &CStr, flags: MsFlags) -> nix::Result<()> {
    nix::mount::mount(None::<&CStr>, path, None::<&CStr>, flags, None::<&CStr>)
}

/// Flags to remount a bind read-only; those it has must be given again, and in a user namespace cannot be taken away.
fn read_only(flags: nix::sys::statvfs::FsFlags) -> MsFlags {
    use nix::sys::statvfs::FsFlags;
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept = kept.into_iter().filter(|(has, _)| flags.contains(*has)).map(|(_, flag)| flag);
    let atime = !flags.intersects(FsFlags::ST_NOATIME | FsFlags::ST_RELATIME);
    let strict = if atime { MsFlags::MS_STRICTATIME } else { MsFlags::empty() };
    kept.fold(MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | strict, |all, flag| all | flag)
}

/// A path without NUL bytes.
fn text(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

/// `id parent major:minor root mountpoint options [optional...] - type source super-options`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut device = fields.next()?.splitn(2, |&byte| byte == b':');
    let device = (number(device.next()?)?, number(device.next()?)?);
    let root = unescape(fields.next()?).into();
    let mountpoint = unescape(fields.next()?).into();
    let (mut shared, mut master) = (None, None);
    loop {
        match fields.next()? {
            b"-" => break,
            tag => {
                shared = tag.strip_prefix(b"shared:").and_then(number).or(shared);
                master = tag.strip_prefix(b"master:").and_then(number).or(master);
            }
        }
    }
    let fs_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = unescape(fields.next().unwrap_or_default());
    Some(MountEntry { id, parent, device, root, mountpoint, shared, master, fs_type, source, super_options })
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the `\ooo` of the kernel and of fstab(5) for space, tab, newline and backslash.
pub fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(rest) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &rest[4..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(OsStr::from_bytes(digits).to_str()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_optional_fields_parses() {
        let line =
            br"36 35 0:40 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.runseal run\011seal rw,user_id=0";
        let entry = parse_line(line).expect("a valid line");
        assert_eq!((entry.id, entry.parent, entry.device), (36, 35, (0, 40)));
        assert_eq!(entry.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!((entry.shared, entry.master), (Some(1), Some(2)));
        assert_eq!(entry.fs_type, "fuse.runseal");
        assert_eq!(entry.source, "run\tseal");
        assert_eq!(entry.super_options, "rw,user_id=0");
    }

    #[test]
    fn a_name_that_is_not_utf8_survives() {
        let entry = parse_line(b"1 1 0:1 / /mnt/\xff - tmpfs none rw").expect("a valid line");
        assert_eq!(entry.mountpoint.as_os_str().as_bytes(), b"/mnt/\xff");
    }

    #[test]
    fn lines_that_are_cut_off_are_skipped() {
        for line in
            [&b""[..], b"36", b"36 35 0:40 / /mnt rw", b"36 35 040 / /mnt rw - a b c", b"x 35 0:4 / /m r - a b c"]
        {
            assert_eq!(parse_line(line), None);
        }
    }

    #[test]
    fn the_top_of_a_stack_of_mounts_is_the_one_nothing_sits_on() {
        let entry = |id, parent, path: &str| MountEntry {
            id,
            parent,
            device: (0, id as u32),
            root: "/".into(),
            mountpoint: path.into(),
            shared: None,
            master: None,
            fs_type: "tmpfs".into(),
            source: "none".into(),
            super_options: OsString::new(),
        };
        let table = [entry(1, 1, "/"), entry(9, 4, "/mnt"), entry(4, 1, "/mnt"), entry(5, 9, "/mnt/below")];
        assert_eq!(top_mount(&table, Path::new("/mnt")).map(|entry| entry.id), Some(9));
        assert_eq!(top_mount(&table, Path::new("/")).map(|entry| entry.id), Some(1));
        assert_eq!(top_mount(&table, Path::new("/other")), None);
        for (path, id) in [("/mnt/below/x", 5), ("/mnt/other", 9), ("/mnt", 9), ("/other", 1), ("/", 1)] {
            assert_eq!(mount_of(&table, Path::new(path)).map(|entry| entry.id), Some(id), "{path}");
        }
        let covered = [entry(1, 1, "/"), entry(2, 1, "/mnt/below"), entry(3, 1, "/mnt")];
        assert_eq!(mount_of(&covered, Path::new("/mnt/below")).map(|entry| entry.id), Some(3), "out of reach");
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        let table = mount_table().expect("/proc is mounted");
        assert!(top_mount(&table, Path::new("/")).is_some());
    }
}
