//! FUSE: opcodes to calls of [`crate::fs::Scratch`], and the mount itself.
//!
//! | file | what lives there |
//! |---|---|
//! | `dispatch` | the table of opcodes: one row each; counts, and logs refusals |
//! | `adapter` | what each opcode does: calls `Scratch`, replies |
//! | `convert`, `errno` | what the kernel calls things, and what `fs` calls them |
//! | `counters` | requests by opcode |
//! | `init` | which capabilities to ask the kernel for |
//! | `options`, `mountpoint` | what may be asked for, and where it may be mounted |
//! | `device` | `/dev/fuse` and mount(2), with remedies |
//! | `session` | [`Mount`]: mount, serve, detach, abort |
//! | `workers` | the threads that serve, and what a panic of one does |
//! | `gate` | what the kernel accepts must have room: `ENOSPC` at write(2) |
//! | `notifier` | tells the kernel what it must forget |
//! | `seek` | SEEK_DATA and SEEK_HOLE |
//! | `bdi` | how much the kernel reads ahead and how much it keeps dirty |
//! | `requester` | who sent a request, where its header does not say enough |
//! | `cpu_latency` | processors that wake fast while requests come one after another |

use std::io;
use std::path::PathBuf;

use serde::Serialize;

mod adapter;
mod bdi;
mod convert;
mod counters;
mod cpu_latency;
mod device;
mod dispatch;
mod errno;
mod gate;
mod init;
mod mountpoint;
mod notifier;
mod options;
mod requester;
mod seek;
mod session;
mod workers;

pub use crate::sys::own_mount::detach_stale;
pub use options::knows_option;
pub use session::Mount;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Options as mount(8) writes them: `suid`, `dev`, `noexec`, `ro`, `nosuid`, ... Unknown ones are refused.
    /// `nosuid` and `nodev` are in force unless `suid` and `dev` are given.
    pub options: Vec<String>,
    /// Let users other than the mounting one in; the kernel checks their permissions either way.
    pub allow_other: bool,
    /// Worker threads; 0 means one per processor, at least 4 and at most 8.
    pub threads: usize,
    /// Do not keep the machine's idle processors from deep sleep during bursts of requests.
    pub leave_cpu_latency: bool,
}

/// What the kernel granted, for reports and `doctor`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MountFacts {
    /// Where.
    pub mountpoint: PathBuf,
    /// FUSE protocol of the kernel, `major.minor`.
    pub protocol: String,
    /// Names of the INIT capabilities in force.
    pub capabilities: Vec<String>,
    /// Worker threads.
    pub threads: usize,
    /// `read_ahead_kb` in force, if it could be read.
    pub read_ahead_kb: Option<u64>,
    /// `max_bytes` of the BDI in force, if it could be read.
    pub max_dirty_bytes: Option<u64>,
    /// What could not be had, each with the reason and what it costs.
    pub degraded: Vec<String>,
}

/// Why mounting failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FuseError {
    /// `/dev/fuse` cannot be opened.
    #[error("cannot open /dev/fuse: {source}; {remedy}")]
    Device {
        /// The error of open(2).
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The mountpoint is not usable.
    #[error("mountpoint {path}: {problem}")]
    Mountpoint {
        /// The path.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// An option nobody knows.
    #[error("mount option `{0}` is not known; see mount(8) for the generic options")]
    Option(String),
    /// mount(2) failed.
    #[error("mount on {path} failed: {source}; {remedy}", remedy = device::mount_remedy(source))]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The error of mount(2) or umount2(2).
        source: io::Error,
    },
    /// The session could not be started or broke.
    #[error("FUSE session: {0}")]
    Session(#[source] io::Error),
}
