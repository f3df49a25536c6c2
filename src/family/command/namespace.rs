//! Namespaces of a run: nobody outside sees the scratch, nothing inside outlives the run.
//!
//! The supervisor enters a new PID namespace (and, without the right to, a user namespace first); the sealed process,
//! forked after that, is its PID 1 and makes the mount namespace. The supervisor stays outside of it, so the mount
//! vanishes with the last process inside.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

use crate::family::command::{place::Place, rights};
use crate::sys::mount::mount_table;

/// Why the run cannot be kept apart.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a private {what}: {source}; {}", rights::remedy())]
pub struct NamespaceError {
    what: &'static str,
    source: io::Error,
}

impl NamespaceError {
    /// What failed, without the remedy.
    pub fn reason(&self) -> String {
        format!("{}: {}", self.what, self.source)
    }
}

/// Whether a user namespace was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// The process had the right to make the namespaces itself.
    Privileged,
    /// A user namespace, in which the caller's own ids mean the same as outside, gave the right.
    UserNamespace,
}

/// Puts the children this process will fork into a new PID namespace.
pub fn enter() -> Result<Isolation, NamespaceError> {
    match unshare(CloneFlags::CLONE_NEWPID) {
        Ok(()) => return Ok(Isolation::Privileged),
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(failed("PID namespace", errno)),
    }
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| failed("user namespace", errno))?;
    map_own_ids(uid, gid).map_err(|source| NamespaceError { what: "user namespace", source })?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| failed("PID namespace", errno))?;
    Ok(Isolation::UserNamespace)
}

/// Gives this process its own view of the tree: mounts made outside still arrive, mounts made inside stay inside.
/// Called as PID 1, it also mounts the `/proc` that belongs to its PID namespace, where the kernel lets it.
///
/// What `place` covers becomes empty but for the mountpoint: the command sees no other run, and whatever user it becomes
/// can reach the mountpoint, which the modes of the real directory forbid.
pub fn seal_view(place: &Place) -> Result<(), NamespaceError> {
    const WHAT: &str = "mount namespace";
    let fail = |errno| failed(WHAT, errno);
    unshare(CloneFlags::CLONE_NEWNS).map_err(fail)?;
    mount_on(None, Path::new("/"), MsFlags::MS_SLAVE | MsFlags::MS_REC, "").map_err(fail)?;
    // Refused in a user namespace when a container masks parts of /proc. The old one then stays: `/proc/self` works
    // in it, only the other processes have the numbers of the outside.
    if let Err(errno) = mount_on(Some("proc"), Path::new("/proc"), HARDENED, "") {
        tracing::info!("no /proc of its own for the run: {}", errno.desc());
    }
    for cover in &place.covers {
        mount_on(Some("tmpfs"), cover, HARDENED, "mode=755,size=1m").map_err(fail)?;
    }
    fs::create_dir_all(&place.mountpoint).map_err(|source| NamespaceError { what: WHAT, source })
}

const HARDENED: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const READ_ONLY: MsFlags = MsFlags::MS_REMOUNT.union(MsFlags::MS_BIND).union(MsFlags::MS_RDONLY);

/// Closes the ways of root into the kernel that no capability guards: in the `/proc` of the run, as container engines do, what
/// names programs to be started with all rights; other mounts of procfs; file systems that trace, debug or configure the
/// kernel (a probe of tracefs reads the memory of any process); control groups. Root of a user namespace cannot change
/// these anyway, and may be refused this.
pub fn guard_kernel() {
    let read_only = |path: &Path| bind(path, path).and_then(|()| mount_on(None, path, READ_ONLY | HARDENED, ""));
    for path in ["/proc/sys", "/proc/sysrq-trigger", "/proc/bus", "/proc/fs", "/proc/irq"] {
        tell(Path::new(path), read_only(Path::new(path)));
    }
    // Empty, also for what is mounted there later: it arrives below.
    for path in ["/sys/kernel/tracing", "/sys/kernel/debug", "/sys/kernel/config", "/sys/fs/bpf", "/sys/fs/pstore"] {
        tell(Path::new(path), hide(Path::new(path)));
    }
    for entry in mount_table().unwrap_or_default() {
        let place = &entry.mountpoint;
        let done = match entry.fs_type.to_string_lossy().as_ref() {
            "tracefs" | "debugfs" | "configfs" | "bpf" | "pstore" | "efivarfs" => hide(place),
            "cgroup" | "cgroup2" => read_only(place),
            "proc" if !place.starts_with("/proc") => bind(Path::new("/proc"), place),
            _ => continue,
        };
        tell(place, done);
    }
}

/// Covers a directory with an empty one.
fn hide(path: &Path) -> nix::Result<()> {
    mount_on(Some("tmpfs"), path, HARDENED | MsFlags::MS_RDONLY, "mode=555,size=4k")
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

fn tell(path: &Path, done: nix::Result<()>) {
    match done {
        // Not there, or not any more.
        Err(Errno::ENOENT | Errno::ENOTDIR) | Ok(()) => {}
        Err(errno) => tracing::warn!("{} is open to the command: {}", crate::sys::path::shown(path), errno.desc()),
    }
}

fn mount_on(fs_type: Option<&str>, target: &Path, flags: MsFlags, data: &str) -> nix::Result<()> {
    mount(fs_type, target, fs_type, flags, Some(data))
}

fn map_own_ids(uid: Uid, gid: Gid) -> io::Result<()> {
    let own = Path::new("/proc/self");
    // A process may map its group only after giving up setgroups(2), see user_namespaces(7).
    fs::write(own.join("setgroups"), "deny")?;
    fs::write(own.join("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(own.join("gid_map"), format!("{gid} {gid} 1"))
}

fn failed(what: &'static str, errno: Errno) -> NamespaceError {
    NamespaceError { what, source: errno.into() }
}
