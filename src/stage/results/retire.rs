//! Results of before in S3: the old manifest is withdrawn first, and when all new results are there, the objects it lists
//! and they are not are removed.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Buf;
use futures_util::TryStreamExt;
use parking_lot::Mutex;

use super::manifest::{self, MANIFEST};
use super::objects::{Sender, Uploads};
use super::older::{Because, Fate, LONGEST, OldEntry, Older, Retired};
use crate::aws::{CallError, Cause, Object, Stored};
use crate::spec::S3Uri;
use crate::stage::StageError;
use crate::stage::error::remote;
use crate::stage::tasks::{self, OnError};

impl Sender {
    /// Puts an empty manifest in the place of the old one, if there is one, and remembers what that listed. The empty one
    /// has that list too: whatever ends this run, the next one to replace these results finds it there.
    pub(in crate::stage) async fn withdraw(&self, uploads: &mut Uploads) -> Result<(), StageError> {
        uploads.older = Some(match self.old_manifest().await? {
            None => Ok(Older::default()),
            Some(older) => {
                let nothing = Older::default();
                let body = manifest::withdrawn(&self.run, older.as_ref().unwrap_or(&nothing));
                uploads.withdrawn = Some(self.put_manifest(body, &self.to.settings).await?);
                older
            }
        });
        Ok(())
    }

    /// What the manifest lists that is there now, or why it cannot be known; `None` if there is no manifest.
    async fn old_manifest(&self) -> Result<Option<Result<Older, String>>, StageError> {
        let uri = self.manifest_uri();
        let answer = self.store.get(&uri.bucket, &uri.key, None, None).await;
        let pieces = match answer {
            Ok(answer) if answer.value.0.size > LONGEST => return Ok(Some(Err("it is too long".to_owned()))),
            Ok(answer) => answer.value.1,
            Err(e) => return unread(e, &uri),
        };
        match pieces.try_collect::<Vec<_>>().await {
            Ok(pieces) => Ok(Some(Older::read(pieces.concat().reader()).map_err(|why| why.to_string()))),
            Err(e) => unread(e, &uri),
        }
    }

    /// Removes what the old manifest lists and these results do not have.
    pub(in crate::stage) async fn retire(self: &Arc<Self>, uploads: &mut Uploads) -> Result<(), StageError> {
        let older = match &uploads.older {
            None => return Ok(()),
            Some(Ok(older)) => older,
            Some(Err(why)) => {
                uploads.retired = Retired { unknown: Some(why.clone()), ..Retired::default() };
                return Ok(());
            }
        };
        let present: HashSet<&str> = uploads.objects.iter().map(|object| object.uri.key.as_str()).collect();
        let retired = Arc::new(Mutex::new(Retired::default()));
        let left = |(entry, _): &(&OldEntry, _)| entry.key.as_deref().is_some_and(|key| !present.contains(key));
        let files = older.files.iter().map(|entry| (entry, true));
        let markers = older.directories.iter().map(|entry| (entry, false));
        let jobs = files.chain(markers).filter(left).map(|(entry, counts)| {
            let (this, retired, entry) = (Arc::clone(self), Arc::clone(&retired), entry.clone());
            async move { this.retire_object(&entry, counts, &retired).await }
        });
        tasks::run(self.concurrency, OnError::Finish, jobs).await?;
        uploads.retired = std::mem::take(&mut *retired.lock());
        Ok(())
    }

    async fn retire_object(&self, entry: &OldEntry, counts: bool, retired: &Mutex<Retired>) -> Result<(), StageError> {
        let fate = match entry.key.as_deref().and_then(|key| key.strip_prefix(&self.to.uri.key)) {
            None | Some("" | MANIFEST) => Fate::Kept(Because::Outside),
            Some(_) => self.remove_old(entry).await?,
        };
        if counts {
            let mut retired = retired.lock();
            match fate {
                Fate::Gone => {}
                Fate::Removed => retired.removed += 1,
                Fate::Kept(because) => retired.kept.push((entry.path(), because)),
            }
        }
        Ok(())
    }

    async fn remove_old(&self, entry: &OldEntry) -> Result<Fate, StageError> {
        let uri = self.to.uri.with_key(entry.key.clone().unwrap_or_default());
        let there = self.store.head(&uri.bucket, &uri.key).await;
        let there = match there {
            Ok(answer) => answer.value,
            Err(e) => return fate(e, &uri),
        };
        if !entry.is_object(&there) {
            return Ok(Fate::Kept(Because::Changed));
        }
        if self.keep_old {
            return Ok(Fate::Kept(Because::Asked));
        }
        self.remove_current(&uri, there.into()).await
    }

    /// Removes an object if it is still the one that was `stored`. Where versions are kept, they are.
    async fn remove_current(&self, uri: &S3Uri, stored: Stored) -> Result<Fate, StageError> {
        let answer = self.store.remove(uri, &Stored { version: None, ..stored }).await;
        match answer {
            Ok(_) => Ok(Fate::Removed),
            Err(e) => fate(e, uri),
        }
    }

    /// Where there are no results there is no manifest: it would stand in the way of the next ones.
    pub(in crate::stage) async fn remove_manifest(&self, uploads: &mut Uploads) -> Result<(), StageError> {
        if let Some((_, stored)) = uploads.withdrawn.clone()
            && let Fate::Kept(because) = self.remove_current(&self.manifest_uri(), stored).await?
        {
            uploads.retired.kept.push((MANIFEST.into(), because));
        }
        Ok(())
    }

    pub(in crate::stage) fn manifest_uri(&self) -> S3Uri {
        self.to.uri.below(MANIFEST)
    }
}

impl OldEntry {
    /// Whether `there` is what this line tells of. A manifest without `ETag`s comes from a store that has none.
    fn is_object(&self, there: &Object) -> bool {
        let agrees = |told: &Option<String>, found: &Option<String>| told.is_none() || found.is_none() || told == found;
        there.size == self.size.unwrap_or(0)
            && agrees(&self.etag, &there.etag)
            && agrees(&self.version_id, &there.version)
    }
}

/// No right to read it is no reason not to publish; what may pass is.
fn unread(error: CallError, uri: &S3Uri) -> Result<Option<Result<Older, String>>, StageError> {
    match error.cause {
        Cause::NotFound if !error.code.starts_with("KMS.") => Ok(None),
        Cause::Denied | Cause::NotFound | Cause::KeyState | Cause::KeyKind | Cause::Archived => {
            Ok(Some(Err(error.to_string())))
        }
        _ => Err(remote("reading", uri)(error)),
    }
}

/// No right to remove it is no reason not to publish; what may pass is.
fn fate(error: CallError, uri: &S3Uri) -> Result<Fate, StageError> {
    match error.cause {
        Cause::NotFound => Ok(Fate::Gone),
        Cause::Denied => Ok(Fate::Kept(Because::Denied)),
        Cause::Precondition => Ok(Fate::Kept(Because::Changed)),
        _ => Err(remote("removing", uri)(error)),
    }
}
