//! Inputs into the scratch, results out of it.
//!
//! Contents go straight from the source into [`Scratch::write`] and from [`Scratch::read`] into the output: no
//! plaintext is parked in between, and the buffers are wiped. Both directions keep permission bits, modification
//! times and holes; root also keeps owners. Hard links become files of their own; extended attributes stay behind.

mod error;
mod fetch;
mod manifest;
mod place;
mod plan;
mod pool;
mod publish;

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;

use crate::audit::Trail;
use crate::fs::Scratch;
use crate::preflight::{Cleared, Output};
use crate::s3::Cloud;
use crate::spec::RunId;
use error::{inside, outside};
use publish::Publication;

pub use error::StageError;
pub use manifest::MANIFEST;

/// Requests to S3 under way at once, unless told otherwise: about 15 fill 10 Gbit/s (S3 User Guide, "Performance
/// guidelines").
pub const DEFAULT_CONCURRENCY: usize = 16;

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

/// Moves data between this machine and a [`Scratch`]. Built from a [`Cleared`] only:
///
/// ```compile_fail,E0308
/// # use std::sync::Arc;
/// # use runseal::{audit::Trail, fs::Scratch, spec::RunId, stage::{Progress, Stager}};
/// fn uncleared(scratch: Arc<Scratch>, run: RunId, progress: Arc<dyn Progress>) -> Stager {
///     Stager::new((), scratch, run, progress, Arc::new(Trail::off()))
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
    trail: Arc<Trail>,
    /// Requests to S3 under way at once.
    concurrency: usize,
    /// Results that are written and synced but not all in their place yet. Dropping it removes them.
    unfinished: Mutex<Option<Publication>>,
}

impl Stager {
    /// Takes the proof by value: what is not cleared cannot be staged.
    /// `trail` hears of every object that is staged or published.
    pub fn new(
        cleared: Cleared,
        scratch: Arc<Scratch>,
        run: RunId,
        progress: Arc<dyn Progress>,
        trail: Arc<Trail>,
    ) -> Self {
        let (output, overwrite) = (cleared.output.clone(), cleared.overwrite);
        let (inputs, unfinished) = (Mutex::new(Some(cleared)), Mutex::new(None));
        let concurrency = DEFAULT_CONCURRENCY;
        Self { inputs, output, overwrite, scratch, run, progress, trail, concurrency, unfinished }
    }

    /// Sets how many requests to S3 are under way at once; at least one.
    pub fn with_concurrency(self, requests: usize) -> Self {
        Self { concurrency: requests.max(1), ..self }
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
