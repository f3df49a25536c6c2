//! Inputs into the scratch, results out of it.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use crate::fs::{FsError, Scratch};
use crate::preflight::Cleared;
use crate::spec::RunId;

/// What happened while staging; implementations draw progress bars or print lines. Called from several threads.
pub trait Progress: Send + Sync {
    /// `bytes` and `files` are the totals to expect.
    fn start(&self, what: &'static str, files: u64, bytes: u64);
    /// More bytes are through.
    fn advance(&self, bytes: u64);
    /// One more file is through.
    fn file_done(&self);
    /// The phase is over.
    fn finish(&self);
}

/// Totals of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of regular files.
    pub bytes: u64,
    /// Special files left out (publishing only).
    pub skipped: u64,
}

/// Why staging failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// Reading or writing outside the scratch failed.
    #[error("{action} {path}: {source}")]
    Outside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path outside.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Reading or writing inside the scratch failed.
    #[error("{action} {path} in the scratch: {source}")]
    Inside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path relative to the scratch.
        path: PathBuf,
        /// The error of the file system.
        source: FsError,
    },
    /// An input changed between preflight and the end of its copy (`MODIFIED_INPUT_RESOURCE`).
    #[error("{path} changed while it was staged; start the run again when nothing writes to it")]
    Modified {
        /// The input.
        path: PathBuf,
    },
    /// Something appeared where a result is to go.
    #[error("{path} appeared in the output since preflight; remove it, or allow replacing with --overwrite")]
    Appeared {
        /// The path.
        path: PathBuf,
    },
}

/// Moves data between this machine and a [`Scratch`]. Built from a [`Cleared`] only.
pub struct Stager {
    _private: (),
}

impl Stager {
    /// Takes the proof by value: what is not cleared cannot be staged.
    pub fn new(_cleared: Cleared, _scratch: Arc<Scratch>, _run: RunId, _progress: Arc<dyn Progress>) -> Self {
        todo!()
    }

    /// Copies every input below the directory `into` (an inode of the scratch), several at once.
    pub fn fetch(&self, _into: u64) -> Result<Totals, StageError> {
        todo!()
    }

    /// Publishes everything below the directory `from`, each file checksummed, the manifest last. After an error
    /// nothing half-written is visible in the output, and calling again tries again.
    pub fn publish(&self, _from: u64) -> Result<Totals, StageError> {
        todo!()
    }
}
