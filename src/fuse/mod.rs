//! FUSE: opcodes to calls of [`crate::fs::Scratch`], and the mount itself.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::fs::Scratch;

/// How to mount.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Options as mount(8) writes them: `suid`, `dev`, `noexec`, `ro`, `nosuid`, ... Unknown ones are refused.
    pub options: Vec<String>,
    /// Let users other than the mounting one in.
    pub allow_other: bool,
    /// Worker threads; 0 means one per processor, at least 4 and at most 16.
    pub threads: usize,
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
    /// Knobs that could not be set, each with the reason.
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
    #[error("mount on {path} failed: {source}")]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The error of mount(2).
        source: io::Error,
    },
    /// The session could not be started or broke.
    #[error("FUSE session: {0}")]
    Session(#[source] io::Error),
}

/// A mounted file system, served by threads of this process until it is detached.
pub struct Mount {
    _private: (),
}

impl Mount {
    /// Mounts `scratch` on `mountpoint` (an existing, empty directory that nothing is mounted on), completes INIT
    /// and primes the kernel's no-open state: when this returns, the mount is ready.
    pub fn new(_scratch: Arc<Scratch>, _mountpoint: &Path, _options: &MountOptions) -> Result<Self, FuseError> {
        todo!()
    }

    /// What the kernel granted.
    pub fn facts(&self) -> &MountFacts {
        todo!()
    }

    /// Blocks until the session has ended: unmounted by somebody, detached, or aborted.
    pub fn wait(&self) {
        todo!()
    }

    /// Detaches the mount from the tree (`MNT_DETACH`), only if what is mounted there is this file system.
    pub fn detach(&self) -> io::Result<()> {
        todo!()
    }

    /// Ends the session even if requests hang: aborts the connection through fusectl, then detaches.
    pub fn abort(&self) {
        todo!()
    }
}

/// Detaches the dead mount an earlier crash of runseal left on `mountpoint`, and nothing else; `true` if there was one.
pub fn detach_stale(_mountpoint: &Path) -> io::Result<bool> {
    todo!()
}
