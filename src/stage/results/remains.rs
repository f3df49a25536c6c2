//! What an unfinished publication has left in the output: said, and removed if somebody asks for that.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::Publication;
use super::objects::{Sender, Uploads};
use super::outgoing::Outgoing;
use super::plan::TOP;
use crate::aws::{Cause, Stored};
use crate::fs::Kind;
pub use crate::spec::Remains;
use crate::spec::S3Uri;
use crate::stage::StageError;
use crate::stage::error::{outside, remote};
use crate::stage::tasks::{self, OnError};
use crate::sys::beneath::Below;
use crate::sys::path::{self, shown};

impl Publication {
    /// Files and links that are in their place.
    fn placed(&self) -> impl Iterator<Item = usize> {
        let is_placed = |&i: &usize| {
            let mut at = i;
            while at != TOP && !self.placed[at] {
                at = self.plan.entries[at].parent;
            }
            at != TOP && self.plan.entries[i].attr.kind != Kind::Directory
        };
        (TOP + 1..self.plan.entries.len()).filter(is_placed)
    }

    pub(in crate::stage) fn remains(&self) -> Option<Remains> {
        let first = shown(&self.plan.path(self.placed().next()?));
        Some(Remains { output: shown(self.output.path()), entries: self.placed().count() as u64, first })
    }

    /// Removes what is in its place, as long as it is what was put there; then directories that are empty.
    pub(in crate::stage) fn remove(&mut self) -> Result<(), StageError> {
        let _in_their_name = self.assume()?;
        let placed: Vec<usize> = self.placed().collect();
        for i in placed {
            let place = self.output.below(self.plan.path(i));
            if self.is_own(i, &place).map_err(outside("examining", place.path()))? {
                path::remove_file(&place).map_err(outside("removing", place.path()))?;
            }
        }
        for i in self.plan.of_kind(Kind::Directory).rev().filter(|&i| self.placed[i]) {
            let _ = path::remove_directory(&self.output.below(self.plan.path(i)));
        }
        self.placed.fill(false);
        Ok(())
    }

    /// Whether `place` has what publishing gave entry `i`: kind, size and time.
    fn is_own(&self, i: usize, place: &Below<'_>) -> io::Result<bool> {
        let attr = &self.plan.entries[i].attr;
        let there = match path::stat(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            there => there?,
        };
        let is_link = there.kind == path::FileKind::Symlink;
        let size = self.plan.texts.get(&i).map_or(attr.size, |text| text.len() as u64);
        let same = size == there.size && (attr.mtime.secs, attr.mtime.nanos) == there.mtime;
        Ok(is_link == (attr.kind == Kind::Symlink) && same)
    }
}

impl Uploads {
    /// What this run has made visible: objects, markers, and a manifest that says `withdrawn`.
    fn visible(&self) -> Vec<(S3Uri, Stored)> {
        let objects = self.objects.iter().filter_map(|object| Some((object.uri.clone(), object.visible()?)));
        objects.chain(self.strays.iter().cloned()).chain(self.withdrawn.clone()).collect()
    }

    pub(in crate::stage) fn remains(&self, output: &S3Uri) -> Option<Remains> {
        let visible = self.visible();
        let (first, _) = visible.first()?;
        let first = first.key.strip_prefix(&output.key).unwrap_or(&first.key).escape_debug().to_string();
        Some(Remains { output: output.to_string(), entries: visible.len() as u64, first })
    }

    fn forget(&mut self, gone: &HashSet<String>) {
        self.objects.iter().filter(|object| gone.contains(&object.uri.key)).for_each(|object| object.is_gone());
        self.strays.retain(|(target, _)| !gone.contains(&target.key));
        self.withdrawn.take_if(|(target, _)| gone.contains(&target.key));
    }
}

impl Sender {
    /// Removes what this run has made visible, and nothing that took its place since. Fails if any of it stays.
    pub(in crate::stage) async fn remove(self: Arc<Self>, uploads: &mut Uploads) -> Result<(), StageError> {
        let gone: Arc<Mutex<HashSet<String>>> = Arc::default();
        let failure: Arc<Mutex<Option<StageError>>> = Arc::default();
        let jobs = uploads.visible().into_iter().map(|(target, stored)| {
            let (this, gone, failure) = (Arc::clone(&self), Arc::clone(&gone), Arc::clone(&failure));
            // One that stays is no reason to leave the others.
            async move {
                match this.remove_one(&target, &stored).await {
                    Ok(()) => drop(gone.lock().insert(target.key)),
                    Err(error) => *failure.lock() = Some(error),
                }
                Ok(())
            }
        });
        tasks::run(self.concurrency, OnError::Finish, jobs).await?;
        uploads.forget(&gone.lock());
        let failure = failure.lock().take();
        failure.map_or(Ok(()), Err)
    }

    async fn remove_one(&self, uri: &S3Uri, stored: &Stored) -> Result<(), StageError> {
        let answer = self.store.remove(uri, stored).await;
        match answer {
            // Somebody has replaced or removed it.
            Err(error) if matches!(error.cause, Cause::Precondition | Cause::NotFound) => Ok(()),
            answer => answer.map(drop).map_err(remote("removing", uri)),
        }
    }
}

impl Outgoing {
    /// What of this run is visible at the key, if anything is.
    fn visible(&self) -> Option<Stored> {
        let state = self.state.lock();
        state.done.clone().or_else(|| state.made.clone())
    }

    fn is_gone(&self) {
        let mut state = self.state.lock();
        (state.done, state.made) = (None, None);
        state.parts.fill(None);
    }
}
