//! Inputs into the scratch, results out of it.
//!
//! Contents go straight from the source into [`Scratch::write`] and from [`Scratch::read`] into the output: no
//! plaintext is parked in between, and the buffers are wiped. Both directions keep permission bits, modification
//! times and holes; root also keeps owners. Hard links become files of their own; extended attributes stay behind.

mod fetch;
mod manifest;
mod place;
mod plan;
mod pool;
mod publish;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::fs::{FsError, Scratch};
use crate::preflight::{Cleared, Output};
use crate::s3::Cloud;
use crate::spec::RunId;
use crate::sys::path::shown;
use crate::units::ByteSize;
use publish::Publication;

pub use manifest::MANIFEST;

/// What happened while staging; implementations draw progress bars or print lines. Called from several threads.
pub trait Progress: Send + Sync {
    /// `bytes` and `files` are the totals to expect.
    fn start(&self, what: &'static str, files: u64, bytes: u64);
    /// More bytes are through.
    fn advance(&self, bytes: u64);
    /// One more file is through.
    fn file_done(&self);
    /// All bytes and files are through. Not called when staging fails.
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
    #[error("{action} {}: {source}{}", shown(path), remedy_outside(source))]
    Outside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path outside.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Reading or writing inside the scratch failed.
    #[error("{action} {} in the scratch: {source}{}", shown(path), remedy_inside(source))]
    Inside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path relative to the inputs or the results.
        path: PathBuf,
        /// The error of the file system.
        source: FsError,
    },
    /// An input changed between preflight and the end of its copy (`MODIFIED_INPUT_RESOURCE`).
    #[error("{} changed while it was staged; start the run again when nothing writes to it", shown(path))]
    Modified {
        /// The input.
        path: PathBuf,
    },
    /// Something appeared where a result is to go.
    #[error("{} appeared in the output since preflight; remove it, or allow replacing with --overwrite", shown(path))]
    Appeared {
        /// The path.
        path: PathBuf,
    },
    /// A directory is where a file must go, or the other way round; replacing is only for like with like.
    #[error("{} is in the way of a result of another kind; move it away", shown(path))]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// A result has a name that publishing needs for itself.
    #[error("the result `{}` has a name that runseal uses itself in the output; rename it", shown(path))]
    Reserved {
        /// The path relative to the results.
        path: PathBuf,
    },
    /// The disk of the output has too little space; nothing was written.
    #[error("the results need {}, {} has {} free; free space there", ByteSize(*needed), shown(path), ByteSize(*free))]
    NoRoom {
        /// The output.
        path: PathBuf,
        /// Bytes the results take.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A result changed while it was published: what was written is not what was there.
    #[error("the result `{}` changed while it was published; stop what writes to it", shown(path))]
    Unsettled {
        /// The path relative to the results.
        path: PathBuf,
    },
}

fn remedy_outside(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space there",
        io::ErrorKind::PermissionDenied => "; give this user the right to it",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        _ => "",
    }
}

fn remedy_inside(error: &FsError) -> &'static str {
    match error {
        FsError::Store(_) => "; if the scratch is full, raise --size or free space below --backing",
        _ => "",
    }
}

/// Moves data between this machine and a [`Scratch`]. Built from a [`Cleared`] only:
///
/// ```compile_fail,E0308
/// # use std::sync::Arc;
/// # use runseal::{fs::Scratch, spec::RunId, stage::{Progress, Stager}};
/// fn uncleared(scratch: Arc<Scratch>, run: RunId, progress: Arc<dyn Progress>) -> Stager {
///     Stager::new((), scratch, run, progress)
/// }
/// ```
pub struct Stager {
    /// Gone once fetched: a million inputs take 160 MB.
    inputs: Mutex<Option<Cleared>>,
    output: Option<Output>,
    overwrite: bool,
    scratch: Arc<Scratch>,
    run: RunId,
    progress: Arc<dyn Progress>,
    /// Results that are written and synced but not all in their place yet. Dropping it removes them.
    unfinished: Mutex<Option<Publication>>,
}

impl Stager {
    /// Takes the proof by value: what is not cleared cannot be staged.
    pub fn new(cleared: Cleared, scratch: Arc<Scratch>, run: RunId, progress: Arc<dyn Progress>) -> Self {
        let (output, overwrite) = (cleared.output.clone(), cleared.overwrite);
        let (inputs, unfinished) = (Mutex::new(Some(cleared)), Mutex::new(None));
        Self { inputs, output, overwrite, scratch, run, progress, unfinished }
    }

    /// `cloud` speaks to AWS, with the credentials of now; only inputs in S3 need it.
    ///
    /// Copies every input below the directory `into` (an inode of the scratch), several at once. Only the first call
    /// does so: what was half fetched cannot be trusted.
    ///
    /// Not root: everything belongs to the user of this process, whose permission bits are widened by what the
    /// source gave to its group and to others, so that what could be read outside can be read inside.
    pub fn fetch(&self, into: u64, _cloud: Option<&Cloud>) -> Result<Totals, StageError> {
        let Some(cleared) = self.inputs.lock().take() else { return Ok(Totals::default()) };
        fetch::fetch(&cleared, &self.scratch, &*self.progress, into)
    }

    /// Publishes everything below the directory `from`, each file checksummed, the manifest last. An output that is
    /// made, and the manifest, take their permission bits from `from`: the umask of this process has no part in them.
    ///
    /// First all is written and synced in a hidden directory of the output, then renamed into place. After an error
    /// nothing half-written is visible in the output, and calling again tries again: from the start when writing
    /// failed, with what is not yet in its place when renaming did. FIFOs, sockets and devices are left out.
    /// Without an output in the [`Cleared`], nothing happens.
    ///
    /// What was written is verified by its size and by the errors that syncing reports. It is not read back: that
    /// would come from the page cache and prove nothing about the disk. The manifest has the SHA-256 of what was
    /// handed to the system, for whoever reads the results later.
    pub fn publish(&self, from: u64, _cloud: Option<&Cloud>) -> Result<Totals, StageError> {
        let Some(Output::Directory(output)) = &self.output else { return Ok(Totals::default()) };
        let mut unfinished = self.unfinished.lock();
        let mut publication = match unfinished.take().filter(Publication::is_intact) {
            Some(publication) => publication,
            None => Publication::write(output, self.overwrite, &self.run, &self.scratch, &*self.progress, from)?,
        };
        match publication.place() {
            Ok(totals) => Ok(totals),
            Err(error) => {
                *unfinished = Some(publication);
                Err(error)
            }
        }
    }
}

/// An [`StageError::Outside`], for `map_err`.
fn outside(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StageError {
    let path = path.into();
    move |source| StageError::Outside { action, path, source }
}

/// An [`StageError::Inside`], for `map_err`.
fn inside(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(FsError) -> StageError {
    let path = path.into();
    move |source| StageError::Inside { action, path, source }
}

/// A reference on an inode of the scratch, given back at the end of its life.
struct Hold<'a> {
    scratch: &'a Scratch,
    ino: u64,
}

impl<'a> Hold<'a> {
    fn new(scratch: &'a Scratch, ino: u64) -> Self {
        Self { scratch, ino }
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.scratch.forget(self.ino, 1);
    }
}
