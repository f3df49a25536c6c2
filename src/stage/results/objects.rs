//! Results out of the scratch into S3: the parts of all large objects, then the commit, the manifest last.
//!
//! Nothing is visible before the commit. What was sent is remembered: after an error, [`Sender::publish`] goes on with
//! the rest, even with other credentials.
//!
//! SHA-256 of a large object needs its bytes in order, and one processor does about 2 GB/s of it. So parts are read
//! and sent concurrently, and hashed one after the other while they are on their way.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::block_in_place;

use super::keys::keys;
use super::manifest::{Incomplete, MANIFEST, Sum};
use super::older::{Older, Retired};
use super::outgoing::Outgoing;
use super::plan::{Plan, TOP};
use super::survey::{Dereference, View, survey};
use crate::audit::Trail;
use crate::aws::{Cloud, Encryption, NO_UPLOAD, ObjectStore, Stored};
use crate::fs::{FsError, Scratch};
use crate::preflight::OutputPrefix;
use crate::spec::{RunId, S3Uri};
use crate::stage::buffers::{Buffer, Buffers};
use crate::stage::checksum::crc64;
use crate::stage::error::{inside, remote};
use crate::stage::tasks::{self, OnError};
use crate::stage::{Hold, Progress, StageError, Totals};

/// Most bytes of results in memory, unless a single part is larger: one of an object of more than 3.6 TiB.
const MEMORY: u64 = 384 << 20;
/// How often uploads that S3 has lost are begun again.
const ROUNDS: u32 = 3;
/// Stands for "no part is next": an earlier one failed.
const POISONED: usize = usize::MAX;

/// What is known of a publication between two attempts.
pub(in crate::stage) struct Uploads {
    pub(in crate::stage) plan: Plan,
    /// Files and markers of empty directories.
    pub(in crate::stage) objects: Vec<Arc<Outgoing>>,
    /// SHA-256 of the manifest, once it is there.
    pub(in crate::stage) manifest: Option<Sum>,
    /// The empty manifest that has replaced an old one.
    pub(in crate::stage) withdrawn: Option<(S3Uri, Stored)>,
    /// What the old one listed, or why nobody knows; `None` if it has not been looked for.
    pub(in crate::stage) older: Option<Result<Older, String>>,
    /// What became of the results before.
    pub(in crate::stage) retired: Retired,
    /// What was made visible and is no result any more.
    pub(in crate::stage) strays: Vec<(S3Uri, Stored)>,
    /// Keeps every inode.
    _holds: Vec<Hold>,
}

/// What all requests of one attempt share.
pub(in crate::stage) struct Sender {
    pub(in crate::stage) store: Arc<dyn ObjectStore>,
    pub(in crate::stage) scratch: Arc<Scratch>,
    pub(in crate::stage) progress: Arc<dyn Progress>,
    pub(in crate::stage) trail: Arc<Trail>,
    pub(in crate::stage) to: OutputPrefix,
    /// Whether results of before stay that these do not replace.
    pub(in crate::stage) keep_old: bool,
    pub(in crate::stage) run: RunId,
    pub(in crate::stage) buffers: Arc<Buffers>,
    pub(in crate::stage) concurrency: usize,
}

impl Uploads {
    /// Looks at everything below `from`.
    pub(in crate::stage) fn survey(
        scratch: &Arc<Scratch>,
        from: u64,
        view: &View,
        dereference: Dereference,
        to: &S3Uri,
    ) -> Result<Self, StageError> {
        let (plan, holds) = survey(scratch, from, view, dereference)?;
        let reserved = |entry: &super::plan::Entry| entry.parent == TOP && entry.name == MANIFEST;
        if let Some(entry) = plan.entries.iter().chain(&plan.skipped).find(|entry| reserved(entry)) {
            return Err(StageError::Reserved { path: plan.path_of(entry) });
        }
        Ok(Self::planned(plan, holds, to))
    }

    /// What `plan` holds, which keeps `holds`, for keys below `to`.
    pub(in crate::stage) fn planned(plan: Plan, holds: Vec<Hold>, to: &S3Uri) -> Self {
        let objects = keys(&plan, to)
            .into_iter()
            .enumerate()
            .filter_map(|(entry, key)| Some(Arc::new(Outgoing::new(&plan, entry, to.with_key(key?)))));
        let objects = objects.collect();
        let (older, retired) = (None, Retired::default());
        Self { plan, objects, manifest: None, withdrawn: None, older, retired, strays: Vec::new(), _holds: holds }
    }

    /// Takes over what `old` had done for files that are still the same. Answers with uploads that are of no use now.
    pub(in crate::stage) fn take_over(&mut self, old: &Uploads) -> Vec<(S3Uri, String)> {
        (self.withdrawn, self.strays) = (old.withdrawn.clone(), old.strays.clone());
        self.older = old.older.clone();
        let mut old: HashMap<_, _> = old.objects.iter().map(|object| (&object.uri.key, object)).collect();
        for object in &mut self.objects {
            let Some(before) = old.remove(&object.uri.key) else { continue };
            if before.is_unchanged(&object.attr) {
                *object = Arc::new(before.again(object.entry));
            } else {
                let was = before.state.lock();
                object.state.lock().made = was.done.clone().or_else(|| was.made.clone());
                old.insert(&before.uri.key, before);
            }
        }
        let strays = old.values().filter(|object| !self.objects.iter().any(|new| new.uri == object.uri));
        let strays = strays.filter_map(|object| {
            let state = object.state.lock();
            Some((object.uri.clone(), state.done.clone().or_else(|| state.made.clone())?))
        });
        self.strays.extend(strays);
        let lost = |object: &&Arc<Outgoing>| Some((object.uri.clone(), object.state.lock().upload.take()?));
        old.values().filter_map(lost).collect()
    }

    /// Uploads that are begun and not completed; they are forgotten here.
    pub(in crate::stage) fn pending(&self) -> Vec<(S3Uri, String)> {
        let pending = |object: &Arc<Outgoing>| {
            let upload = object.state.lock().upload.clone()?;
            object.forget(&upload);
            Some((object.uri.clone(), upload))
        };
        self.objects.iter().filter_map(pending).collect()
    }

    pub(in crate::stage) fn totals(&self) -> Totals {
        let plan = self.plan.totals();
        let renamed = self.objects.iter().filter(|object| object.is_renamed(&self.plan));
        let (removed, kept) = (self.retired.removed, self.retired.kept.len() as u64);
        Totals { listed_only: plan.symlinks, renamed: renamed.count() as u64, removed, kept, ..plan }
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        let left = self.pending().len();
        if left > 0 {
            tracing::warn!(left, "multipart uploads are left in the bucket; a lifecycle rule should remove them");
        }
    }
}

impl Sender {
    pub(in crate::stage) fn new(
        cloud: &Cloud,
        (to, keep_old): (OutputPrefix, bool),
        run: &RunId,
        scratch: &Arc<Scratch>,
        progress: &Arc<dyn Progress>,
        trail: &Arc<Trail>,
        concurrency: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(cloud.objects()),
            scratch: Arc::clone(scratch),
            progress: Arc::clone(progress),
            trail: Arc::clone(trail),
            to,
            keep_old,
            run: run.clone(),
            buffers: Arc::default(),
            concurrency,
        })
    }

    /// Sends and commits what is not done yet, and then the manifest.
    pub(in crate::stage) async fn publish(
        self: Arc<Self>,
        uploads: &mut Uploads,
        incomplete: &[Incomplete],
    ) -> Result<Totals, StageError> {
        let totals = uploads.totals();
        self.progress.start("publishing", totals.files, totals.bytes);
        for object in &uploads.objects {
            self.progress.advance(object.sent());
        }
        self.send_all(uploads).await?;
        if self.to.settings.overwrite {
            self.retire(uploads).await?;
        }
        match uploads.plan.is_empty() {
            false => uploads.manifest = Some(self.manifest(uploads, incomplete).await?),
            true => self.remove_manifest(uploads).await?,
        }
        self.progress.finish();
        Ok(uploads.totals())
    }

    /// Sends and commits what is not done yet.
    pub(in crate::stage) async fn send_all(self: &Arc<Self>, uploads: &mut Uploads) -> Result<(), StageError> {
        for round in 1..=ROUNDS {
            self.send_parts(uploads).await?;
            if uploads.objects.iter().all(|object| object.is_ready()) {
                self.commit(uploads).await?;
            }
            match uploads.objects.iter().find(|object| !object.is_done()) {
                None => break,
                Some(lost) if round == ROUNDS => return Err(StageError::UploadLost { uri: lost.uri.clone() }),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Sends the parts of all large objects.
    async fn send_parts(self: &Arc<Self>, uploads: &Uploads) -> Result<(), StageError> {
        let large: Vec<_> = uploads.objects.iter().filter(|object| object.is_large() && !object.is_done()).collect();
        let largest = large.iter().map(|object| object.part_size()).max().unwrap_or(1);
        let jobs = large.into_iter().flat_map(|object| {
            // Nobody waits any more, and the next part is known.
            object.turn.send_replace(object.state.lock().hashed);
            let missing = (0..object.parts()).filter(|&part| object.needs(part));
            missing.map(|part| Arc::clone(self).part(Arc::clone(object), part))
        });
        tasks::run(self.at_once(largest), OnError::Finish, jobs).await
    }

    /// How many requests of `bytes` each may be under way.
    pub(in crate::stage) fn at_once(&self, bytes: u64) -> usize {
        self.concurrency.min((MEMORY / bytes.max(1)).max(1) as usize)
    }

    async fn part(self: Arc<Self>, object: Arc<Outgoing>, part: usize) -> Result<(), StageError> {
        let result = self.send_part(&object, part).await;
        if result.is_err() {
            object.turn.send_replace(POISONED);
        }
        result
    }

    async fn send_part(&self, object: &Outgoing, part: usize) -> Result<(), StageError> {
        let upload = match object.is_sent(part) {
            true => None,
            false => Some(self.begin(object).await?),
        };
        let (data, crc) = block_in_place(|| {
            let data = self.read(object, part as u64 * object.part_size(), object.part_len(part))?;
            let crc = crc64(&data);
            Ok::<_, StageError>((Bytes::from_owner(data), crc))
        })?;
        let send = async {
            match upload {
                Some(upload) => self.send(object, &upload, part, data.clone(), crc).await,
                None => Ok(()),
            }
        };
        let ((), sent) = tokio::join!(object.hash(part, &data), send);
        sent
    }

    /// The upload of an object, begun by the first part that comes along.
    async fn begin(&self, object: &Outgoing) -> Result<String, StageError> {
        let _alone = object.beginning.lock().await;
        if let Some(upload) = &object.state.lock().upload {
            return Ok(upload.clone());
        }
        let answer = self.store.begin_upload(&object.uri, &self.to.settings).await;
        let (upload, encryption) = answer.map_err(remote("writing", &object.uri))?.value;
        if let Err(error) = self.agree(&object.uri, &encryption) {
            self.abort(&object.uri, &upload).await;
            return Err(error);
        }
        object.state.lock().upload = Some(upload.clone());
        Ok(upload)
    }

    async fn send(
        &self,
        object: &Outgoing,
        upload: &str,
        part: usize,
        data: Bytes,
        crc: u64,
    ) -> Result<(), StageError> {
        let len = data.len() as u64;
        // At most 10 000.
        let number = part as u16 + 1;
        let answer = self.store.upload_part(&object.uri, upload, number, data, crc).await;
        match answer {
            Ok(answer) => {
                object.keep(upload, part, answer.value);
                self.progress.advance(len);
                Ok(())
            }
            Err(e) if e.code == NO_UPLOAD => {
                object.forget(upload);
                Ok(())
            }
            Err(e) => Err(remote("writing", &object.uri)(e)),
        }
    }

    /// Reads a part; holes read as zeros.
    pub(in crate::stage) fn read(&self, object: &Outgoing, start: u64, len: usize) -> Result<Buffer, StageError> {
        let mut buffer = self.buffers.take(len);
        let mut filled = 0;
        while filled < len {
            let got = self.scratch.read(object.attr.ino, start + filled as u64, &mut buffer[filled..]);
            match got.map_err(self.unread(object))? {
                0 => return Err(StageError::Unsettled { path: object.path.clone() }),
                got => filled += got,
            }
        }
        Ok(buffer)
    }

    /// Refuses a result that is no longer what the survey saw.
    pub(in crate::stage) fn still(&self, object: &Outgoing) -> Result<(), StageError> {
        let now = self.scratch.getattr(object.attr.ino).map_err(self.unread(object))?;
        if object.is_unchanged(&now) { Ok(()) } else { Err(StageError::Unsettled { path: object.path.clone() }) }
    }

    fn unread(&self, object: &Outgoing) -> impl FnOnce(FsError) -> StageError {
        inside("reading", &object.path)
    }

    /// Refuses another encryption than preflight saw.
    pub(in crate::stage) fn agree(&self, uri: &S3Uri, found: &Encryption) -> Result<(), StageError> {
        if *found == self.to.encryption {
            return Ok(());
        }
        let (expected, found) = (Box::new(self.to.encryption.clone()), Box::new(found.clone()));
        Err(StageError::OtherEncryption { uri: uri.clone(), expected, found })
    }

    /// Gives up every upload that was begun and not completed, as far as S3 lets.
    pub(in crate::stage) async fn abort_all(self: Arc<Self>, uploads: Vec<(S3Uri, String)>) {
        let jobs = uploads.into_iter().map(|(target, upload)| {
            let this = Arc::clone(&self);
            async move {
                this.abort(&target, &upload).await;
                Ok(())
            }
        });
        // Best effort: none of them fails.
        let _ = tasks::run(self.concurrency, OnError::Finish, jobs).await;
    }

    pub(in crate::stage) async fn abort(&self, target: &S3Uri, upload: &str) {
        if let Err(e) = self.store.abort_upload(target, upload).await {
            tracing::warn!(
                upload,
                code = e.code,
                "an upload could not be aborted; a lifecycle rule (AbortIncompleteMultipartUpload) removes its parts"
            );
        }
    }
}
