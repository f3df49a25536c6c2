//! Inputs into the scratch, results out of it.
//!
//! Contents go straight from the source into [`Scratch::write`] and from [`Scratch::read`] into the output: no
//! plaintext is parked in between, and the buffers are wiped. Both directions keep permission bits, modification
//! times and holes; root also keeps owners. Hard links become files of their own; extended attributes stay behind.

mod archive;
mod buffers;
mod checksum;
mod contents;
mod error;
mod inputs;
mod pool;
mod results;
mod rights;
mod tasks;
mod verify;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::audit::Trail;
use crate::aws::{Cloud, UploadSettings};
use crate::fs::{ROOT, Scratch};
use crate::preflight::{Cleared, Output, OutputPrefix};
use crate::spec::{Identity, RunId, StagingRules};
use crate::units::hex;
use error::{inside, outside};
use inputs::objects::Download;
use results::files::Publication;
use results::manifest::Sum;
use results::objects::{Sender, Uploads};
use results::older::Retired;
use results::survey::Dereference;
use rights::Rights;

pub use archive::archive;
pub use contents::Contents;
pub use error::{Astray, StageError};
pub use results::manifest::{Incomplete, MANIFEST};
pub use results::remains::Remains;
pub use results::survey::View;
pub use verify::objects::prefix as verify_prefix;
pub use verify::{Demands, Difference, Problem, Verification, VerifyError, directory as verify_directory};

/// Requests to S3 under way at once, unless told otherwise. About 15 fill 10 Gbit/s with large parts (S3 User Guide,
/// "Performance guidelines"); small objects are bound by the latency of each request and want more.
pub const DEFAULT_CONCURRENCY: usize = 64;

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
    /// Something that whoever looks at the output is to know, in a line.
    fn tell(&self, _line: &str) {}
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
    /// Symbolic links that are in the manifest only: objects cannot be links (publishing to S3 only).
    pub listed_only: u64,
    /// Results whose path cannot be a key, since it is not UTF-8 or makes it longer than 1024 bytes. They are below
    /// `runseal-renamed/`; the manifest has their paths (publishing to S3 only).
    pub renamed: u64,
    /// Symbolic links whose text is another one in the output, where it leads to the same (publishing only).
    pub rewritten: u64,
    /// Files and directories that are symbolic links in the scratch (publishing only).
    pub dereferenced: u64,
    /// Files and symbolic links of the results before that were removed (publishing only).
    pub removed: u64,
    /// Files and symbolic links of the results before that were kept though these results do not have them (publishing
    /// only).
    pub kept: u64,
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
    /// The directory of the inputs, and the newest inode when all of them were there.
    fetched: Mutex<Option<(u64, u64)>>,
    target: Mutex<Target>,
    rules: Mutex<StagingRules>,
    scratch: Arc<Scratch>,
    view: View,
    run: RunId,
    progress: Arc<dyn Progress>,
    trail: Arc<Trail>,
    /// Requests to S3 under way at once.
    concurrency: usize,
    /// Whom everything that is staged belongs to, if not the user of this process.
    owner: Option<(u32, u32)>,
    /// In whose name files of this machine are read and written.
    on_behalf: Option<Identity>,
    /// Results that are written and synced but not all in their place yet. Dropping it removes them.
    unfinished: Mutex<Option<Publication>>,
    /// What is sent to S3 but not all visible yet.
    uploads: Mutex<Option<Uploads>>,
    stopped: Arc<AtomicBool>,
    /// SHA-256 of the manifest that was published last.
    manifest: Mutex<Option<Sum>>,
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
        let mut cleared = cleared;
        let on_behalf = cleared.on_behalf.clone();
        Self {
            target: Mutex::new(Target::of(&mut cleared)),
            rules: Mutex::new(cleared.rules),
            inputs: Mutex::new(Some(cleared)),
            fetched: Mutex::default(),
            scratch,
            view: View::default(),
            run,
            progress,
            trail,
            concurrency: DEFAULT_CONCURRENCY,
            owner: None,
            on_behalf,
            unfinished: Mutex::default(),
            uploads: Mutex::default(),
            stopped: Arc::default(),
            manifest: Mutex::default(),
        }
    }

    /// Says where the command sees the scratch: results that are absolute links into it can be told by that.
    pub fn with_view(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// Sets how many requests to S3 are under way at once; at least one.
    pub fn with_concurrency(self, requests: usize) -> Self {
        Self { concurrency: requests.max(1), ..self }
    }

    /// Has everything that is staged belong to this user and group, with permission bits as for a user who is not root.
    pub fn with_owner(self, owner: (u32, u32)) -> Self {
        Self { owner: Some(owner), ..self }
    }

    fn rights(&self) -> Rights {
        Rights::new(self.on_behalf.clone(), self.rules.lock().shared_output)
    }

    /// Has results treated otherwise from now on.
    pub fn set_rules(&self, rules: StagingRules) {
        *self.rules.lock() = rules;
    }

    /// Copies every input below the directory `into` (an inode of the scratch), several at once. Only the first call
    /// does so: what was half fetched cannot be trusted.
    ///
    /// Not root: everything belongs to the user of this process, whose permission bits are widened by what the
    /// source gave to its group and to others, so that what could be read outside can be read inside.
    ///
    /// Objects of S3 become files with the bits 0644 and `Last-Modified` as their time; keys that end with a slash become
    /// directories. Every part is read with `If-Match` on the `ETag` that preflight saw, goes on where it was
    /// interrupted, and is compared with a full-object checksum if the object has one. `cloud` speaks to AWS with the
    /// credentials of now; only inputs in S3 need it.
    pub fn fetch(&self, into: u64, cloud: Option<&Cloud>) -> Result<Totals, StageError> {
        let Some(cleared) = self.inputs.lock().take() else { return Ok(Totals::default()) };
        let fetched = inputs::files::fetch(
            &cleared,
            &self.scratch,
            (&*self.progress, &self.rights()),
            into,
            self.owner,
            &self.trail,
            |tree, directories, caller| {
                let cloud = cloud.ok_or_else(|| StageError::NoCloud { uri: tree.objects[0].uri.clone() })?;
                let (scratch, progress) = (Arc::clone(&self.scratch), Arc::clone(&self.progress));
                let download = Download::new(cloud, scratch, progress, Arc::clone(&self.trail), caller);
                cloud.block_on(download.all(tree, directories, self.concurrency))
            },
        );
        *self.fetched.lock() = Some((into, self.scratch.newest()));
        fetched
    }

    /// What would be published from below the directory `from`.
    pub fn results(&self, from: u64) -> Contents {
        Contents::of(&self.scratch, from, "output".into(), &[])
    }

    /// What else is in the scratch, without the inputs as they came.
    pub fn elsewhere(&self, from: u64) -> Contents {
        let fetched = *self.fetched.lock();
        let known: Vec<_> = fetched.into_iter().chain([(from, u64::MAX)]).collect();
        Contents::of(&self.scratch, ROOT, PathBuf::new(), &known)
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
    /// In S3 nothing is visible before all parts of all large objects are there; then uploads are completed and small
    /// objects put, and the manifest only if that succeeded for all. Keys that exist are refused unless replacing is
    /// allowed; then an old manifest is first replaced by an empty one. After an error, calling again, perhaps with
    /// another `cloud`, sends what is missing. Symbolic links and names that cannot be keys are in the manifest.
    pub fn publish(&self, from: u64, cloud: Option<&Cloud>) -> Result<Totals, StageError> {
        self.publish_incomplete(from, cloud, &[])
    }

    /// As [`Stager::publish`], when files of the scratch are not as they were written: the manifest names them.
    pub fn publish_incomplete(
        &self,
        from: u64,
        cloud: Option<&Cloud>,
        incomplete: &[Incomplete],
    ) -> Result<Totals, StageError> {
        let (output, overwrite) = {
            let target = self.target.lock();
            (target.output.clone(), target.overwrite)
        };
        match output {
            None => Ok(Totals::default()),
            Some(Output::Directory(output)) => self.publish_to_directory(&output, overwrite, from, incomplete),
            Some(Output::Prefix(to)) => {
                let cloud = cloud.ok_or_else(|| StageError::NoCloud { uri: to.uri.clone() })?;
                let settings = UploadSettings { overwrite, ..to.settings };
                self.publish_to_prefix(OutputPrefix { settings, ..to }, from, cloud, incomplete)
            }
        }
    }

    /// SHA-256 of the manifest that was published last, in hexadecimal digits: `runseal verify` takes it.
    pub fn manifest_sha256(&self) -> Option<String> {
        self.manifest.lock().map(|sum| hex(&sum))
    }

    /// What is visible in the output although publishing has not succeeded. Waits for an attempt that is under way.
    pub fn remains(&self) -> Option<Remains> {
        let uri = match &self.target.lock().output {
            Some(Output::Prefix(to)) => Some(to.uri.clone()),
            _ => None,
        };
        match uri {
            Some(uri) => self.uploads.lock().as_ref().and_then(|uploads| uploads.remains(&uri)),
            None => self.unfinished.lock().as_ref().and_then(Publication::remains),
        }
    }

    /// Removes what [`Stager::remains`] tells of, as far as it is still what this run has put there.
    pub fn remove_remains(&self, cloud: Option<&Cloud>) -> Result<(), StageError> {
        if let Some(publication) = &mut *self.unfinished.lock() {
            publication.remove()?;
        }
        let output = self.target.lock().output.clone();
        let mut kept = self.uploads.lock();
        let (Some(uploads), Some(Output::Prefix(to))) = (kept.as_mut(), output) else { return Ok(()) };
        let cloud = cloud.ok_or_else(|| StageError::NoCloud { uri: to.uri.clone() })?;
        let sender = self.sender(to, cloud);
        cloud.block_on(sender.remove(uploads))
    }

    /// From now on no result is begun any more; an attempt that is under way fails soon.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// From now on results may replace what is in the output.
    pub fn allow_overwrite(&self) {
        self.target.lock().overwrite = true;
    }

    /// Publishes as `cleared` says from now on; no attempt may be under way. What was sent to another output counts for
    /// nothing any more: uploads are aborted, as far as `cloud` lets. What was sent to the same one otherwise is sent again.
    /// What is visible in another output is removed; answers why not, if not.
    pub fn redirect(
        &self,
        mut cleared: Cleared,
        overwrite: bool,
        cloud: Option<&Cloud>,
    ) -> Option<(Remains, StageError)> {
        let left = if self.is_elsewhere(&cleared) { self.remains() } else { None };
        let left = left.and_then(|left| Some((left, self.remove_remains(cloud).err()?)));
        let target = Target { overwrite, ..Target::of(&mut cleared) };
        let old = std::mem::replace(&mut *self.target.lock(), target);
        *self.unfinished.lock() = None;
        let Some(uploads) = self.uploads.lock().take() else { return left };
        let Some(Output::Prefix(to)) = old.output else { return left };
        let uri = to.uri.clone();
        if let Some(cloud) = cloud {
            let sender = self.sender(to, cloud);
            cloud.block_on(sender.abort_all(uploads.pending()));
        }
        if matches!(&self.target.lock().output, Some(Output::Prefix(new)) if new.uri == uri) {
            uploads.objects.iter().for_each(|object| object.send_again());
            *self.uploads.lock() = Some(uploads);
        }
        left
    }

    fn is_elsewhere(&self, cleared: &Cleared) -> bool {
        match (&self.target.lock().output, &cleared.output) {
            (Some(Output::Prefix(to)), Some(Output::Prefix(new))) => to.uri != new.uri,
            (Some(Output::Directory(path)), Some(Output::Directory(new))) => path != new,
            _ => true,
        }
    }

    fn publish_to_directory(
        &self,
        output: &Path,
        overwrite: bool,
        from: u64,
        incomplete: &[Incomplete],
    ) -> Result<Totals, StageError> {
        let mut unfinished = self.unfinished.lock();
        let rules = *self.rules.lock();
        let rights = self.rights();
        let _in_their_name = rights.assume().map_err(outside("taking the rights for", output))?;
        let mut publication = match unfinished.take().filter(Publication::is_intact) {
            Some(publication) => publication,
            None => {
                let (how, results) = ((overwrite, rules), (&self.scratch, &self.view));
                let stopped = Arc::clone(&self.stopped);
                Publication::write((output, rights.clone()), how, &self.run, results, &*self.progress, from, stopped)?
            }
        };
        publication.overwrite = overwrite;
        match publication.place(rules.keep_old, incomplete) {
            Ok(totals) => {
                self.target.lock().claim = None;
                publication.told(&self.trail);
                *self.manifest.lock() = publication.manifest;
                self.tell(&publication.retired);
                Ok(totals)
            }
            Err(error) => {
                *unfinished = Some(publication);
                Err(error)
            }
        }
    }

    fn publish_to_prefix(
        &self,
        to: OutputPrefix,
        from: u64,
        cloud: &Cloud,
        incomplete: &[Incomplete],
    ) -> Result<Totals, StageError> {
        let mut kept = self.uploads.lock();
        let dereference = if self.rules.lock().dereference { Dereference::All } else { Dereference::Never };
        let mut uploads = Uploads::survey(&self.scratch, from, &self.view, dereference, &to.uri)?;
        let sender = self.sender(to, cloud);
        if let Some(old) = kept.take() {
            cloud.block_on(Arc::clone(&sender).abort_all(uploads.take_over(&old)));
        }
        let published = cloud.block_on(Arc::clone(&sender).publish(&mut uploads, incomplete));
        if let Err(StageError::Inside { .. }) = published {
            // The scratch is gone; nobody will be able to go on.
            cloud.block_on(sender.abort_all(uploads.pending()));
        }
        match &published {
            Ok(_) => {
                *self.manifest.lock() = uploads.manifest;
                self.tell(&uploads.retired);
            }
            Err(_) => *kept = Some(uploads),
        }
        published
    }

    fn tell(&self, retired: &Retired) {
        retired.told().iter().for_each(|line| self.progress.tell(line));
    }

    /// Aborts uploads to S3 that are not completed, as far as that succeeds. To be called before a stager is dropped
    /// whose publishing failed: dropping alone leaves parts in the bucket, which cost money and are in no listing.
    pub fn give_up(&self, cloud: Option<&Cloud>) {
        let kept = self.uploads.lock();
        let output = self.target.lock().output.clone();
        let (Some(uploads), Some(cloud)) = (kept.as_ref(), cloud) else { return };
        let Some(Output::Prefix(to)) = output else { return };
        let sender = self.sender(to, cloud);
        cloud.block_on(sender.abort_all(uploads.pending()));
    }

    fn sender(&self, to: OutputPrefix, cloud: &Cloud) -> Arc<Sender> {
        let keep_old = self.rules.lock().keep_old;
        Sender::new(cloud, (to, keep_old), &self.run, &self.scratch, &self.progress, &self.trail, self.concurrency)
    }
}

/// Where results go, as preflight has cleared it.
struct Target {
    output: Option<Output>,
    overwrite: bool,
    /// Keeps other runs out until the results are there. As long as it is open the file system cannot be unmounted.
    claim: Option<File>,
}

impl Target {
    fn of(cleared: &mut Cleared) -> Self {
        Self { output: cleared.output.take(), overwrite: cleared.overwrite, claim: cleared.claim.take() }
    }
}

/// A reference on an inode of the scratch, given back at the end of its life.
struct Hold {
    scratch: Arc<Scratch>,
    ino: u64,
}

impl Hold {
    fn new(scratch: &Arc<Scratch>, ino: u64) -> Self {
        Self { scratch: Arc::clone(scratch), ino }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.scratch.forget(self.ino, 1);
    }
}
