//! Results in S3 become visible: uploads are completed, small objects put, the manifest last.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::manifest::{self, EntryFacts, Incomplete, MANIFEST, Published, Sum};
use super::objects::{Sender, Uploads};
use super::outgoing::Outgoing;
use crate::audit::Event;
use crate::aws::{Answer, CallError, Cause, ChecksumAlgorithm, NO_UPLOAD, Part, SseAlgorithm, Stored, UploadSettings};
use crate::fs::Kind;
use crate::spec::S3Uri;
use crate::stage::StageError;
use crate::stage::checksum::{combined, crc64};
use crate::stage::error::remote;
use crate::stage::tasks::{self, OnError};
use crate::units::hex;

/// `If-None-Match` met another request on the same key; the reference says to try again.
const CONFLICT: &str = "ConditionalRequestConflict";
/// How often that is done.
const CONFLICTS: u32 = 5;
/// Before the first time; doubled for each further one.
const PAUSE: Duration = Duration::from_millis(100);

impl Sender {
    /// Makes everything visible but the manifest. Uploads that S3 has lost are not done afterwards.
    pub(in crate::stage) async fn commit(self: &Arc<Self>, uploads: &mut Uploads) -> Result<(), StageError> {
        if self.to.settings.overwrite && uploads.older.is_none() {
            self.withdraw(uploads).await?;
        }
        let missing = uploads.objects.iter().filter(|object| !object.is_done());
        let largest = missing.clone().filter(|object| !object.is_large()).map(|object| object.size).max();
        let jobs = missing.map(|object| Arc::clone(self).finish(Arc::clone(object)));
        tasks::run(self.at_once(largest.unwrap_or(0)), OnError::Finish, jobs).await
    }

    async fn finish(self: Arc<Self>, object: Arc<Outgoing>) -> Result<(), StageError> {
        self.still(&object)?;
        let answer = match object.is_large() {
            true => self.complete(&object).await?,
            false => Some(self.put(&object).await?),
        };
        let Some(Answer { value: stored, request_id }) = answer else { return Ok(()) };
        if let Err(error) = self.agree(&object.uri, &stored.encryption) {
            object.replace_later(stored);
            return Err(error);
        }
        object.state.lock().done = Some(stored);
        let event = Event::publish_object(&object.uri, object.size).ended(Ok(&request_id));
        let sum = object.state.lock().sum.map(|sum| hex(&sum));
        self.trail.record(&match sum {
            Some(sum) if object.attr.kind == Kind::File => event.with("sha256", sum),
            _ => event,
        });
        if object.attr.kind == Kind::File {
            self.progress.file_done();
        }
        Ok(())
    }

    /// Completes the upload of a large object; `None` if S3 does not know it any more.
    async fn complete(&self, object: &Outgoing) -> Result<Option<Answer<Stored>>, StageError> {
        let (upload, parts, crc) = {
            let mut state = object.state.lock();
            let Some(upload) = state.upload.clone() else { return Ok(None) };
            let parts: Vec<Part> = state.parts.iter().flatten().cloned().collect();
            let sums = parts.iter().enumerate().map(|(i, part)| (part.crc64nvme, object.part_len(i) as u64));
            state.crc = combined(ChecksumAlgorithm::Crc64Nvme, sums);
            (upload, parts, state.crc)
        };
        let settings = self.settings_for(object);
        let answer = self.store.complete_upload(&object.uri, &settings, &upload, &parts, object.size, crc).await;
        match answer {
            Ok(mut answer) => {
                object.state.lock().upload = None;
                if answer.value.encryption.algorithm == SseAlgorithm::Absent {
                    // Some stores do not repeat what they said when the upload was begun.
                    answer.value.encryption = self.to.encryption.clone();
                }
                Ok(Some(answer))
            }
            Err(e) if e.code == CONFLICT => {
                // The reference: begin anew.
                self.abort(&object.uri, &upload).await;
                object.forget(&upload);
                Ok(None)
            }
            Err(e) if e.code == NO_UPLOAD => {
                // Perhaps completed by a request whose answer was lost.
                object.forget(&upload);
                Ok(self.store.same(&object.uri, object.size, crc).await)
            }
            Err(e) if e.cause == Cause::Precondition => match self.store.same(&object.uri, object.size, crc).await {
                Some(answer) => {
                    object.forget(&upload);
                    self.abort(&object.uri, &upload).await;
                    Ok(Some(answer))
                }
                None => Err(StageError::Appeared { path: object.uri.to_string().into() }),
            },
            Err(e) => Err(remote("writing", &object.uri)(e)),
        }
    }

    /// Reads, hashes and puts an object of one part.
    async fn put(&self, object: &Outgoing) -> Result<Answer<Stored>, StageError> {
        let (data, crc, sum) = block_in_place(|| {
            let data = self.read(object, 0, object.size as usize)?;
            self.still(object)?;
            let (crc, sum) = (crc64(&data), Sha256::digest(&*data).into());
            Ok::<_, StageError>((Bytes::from_owner(data), crc, sum))
        })?;
        {
            let mut state = object.state.lock();
            (state.crc, state.sum) = (crc, Some(sum));
        }
        let answer = self.put_bytes(&object.uri, &self.settings_for(object), data, crc).await;
        match answer {
            Ok(answer) => {
                self.progress.advance(object.size);
                Ok(answer)
            }
            Err(e) if e.cause == Cause::Precondition => match self.store.same(&object.uri, object.size, crc).await {
                Some(answer) => Ok(answer),
                None => Err(StageError::Appeared { path: object.uri.to_string().into() }),
            },
            Err(e) => Err(remote("writing", &object.uri)(e)),
        }
    }

    pub(in crate::stage) async fn put_bytes(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        data: Bytes,
        crc: u64,
    ) -> Result<Answer<Stored>, CallError> {
        let mut conflicts = 0;
        loop {
            match self.store.put(target, settings, data.clone(), crc).await {
                Err(e) if e.code == CONFLICT && conflicts < CONFLICTS => {
                    sleep(PAUSE * (1 << conflicts)).await;
                    conflicts += 1;
                }
                answer => return answer,
            }
        }
    }

    /// What this run has made visible itself, it may replace.
    fn settings_for(&self, object: &Outgoing) -> UploadSettings {
        let mut settings = self.to.settings.clone();
        settings.overwrite |= object.state.lock().made.is_some();
        settings
    }

    /// Writes the manifest of all objects, which must be done.
    pub(in crate::stage) async fn manifest(
        &self,
        uploads: &Uploads,
        incomplete: &[Incomplete],
    ) -> Result<Sum, StageError> {
        let learnt = learnt(uploads);
        let (totals, retired) = (uploads.totals(), &uploads.retired);
        let mut body = Vec::new();
        let sum = manifest::write(&mut body, &self.run, &uploads.plan, totals, &learnt, (incomplete, retired))
            .map_err(|e| StageError::Outside { action: "writing", path: MANIFEST.into(), source: e })?;
        self.put_manifest(body, &self.to.settings).await.map(|_| sum)
    }

    pub(in crate::stage) async fn put_manifest(
        &self,
        body: Vec<u8>,
        settings: &UploadSettings,
    ) -> Result<(S3Uri, Stored), StageError> {
        let uri = self.manifest_uri();
        let (size, crc) = (body.len() as u64, crc64(&body));
        let answer = match self.put_bytes(&uri, settings, body.into(), crc).await {
            Err(e) if e.cause == Cause::Precondition => match self.store.same(&uri, size, crc).await {
                Some(answer) => answer,
                None => return Err(StageError::Appeared { path: uri.to_string().into() }),
            },
            answer => answer.map_err(remote("writing", &uri))?,
        };
        self.agree(&uri, &answer.value.encryption)?;
        self.trail.record(&Event::publish_object(&uri, size).ended(Ok(&answer.request_id)));
        Ok((uri, answer.value))
    }
}

/// What the manifest says of each entry.
fn learnt(uploads: &Uploads) -> Vec<EntryFacts> {
    let mut learnt = vec![EntryFacts::Nothing; uploads.plan.entries.len()];
    for (&i, text) in &uploads.plan.texts {
        learnt[i] = EntryFacts::Target(text.clone());
    }
    for object in &uploads.objects {
        let state = object.state.lock();
        let Some(stored) = state.done.clone() else { continue };
        let published = Published { key: object.uri.key.clone(), stored, crc: state.crc };
        learnt[object.entry] = match state.sum {
            Some(sum) if object.attr.kind == Kind::File => EntryFacts::Object(sum, Box::new(published)),
            _ => EntryFacts::Marker(Box::new(published)),
        };
    }
    learnt
}
