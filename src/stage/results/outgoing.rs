//! One object on its way out: what is sent of it, what is hashed, what is there already.

use std::path::PathBuf;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::keys::part_size;
use super::manifest::Sum;
use super::plan::Plan;
use crate::aws::{Part, Stored};
use crate::fs::{Attr, Kind};
use crate::spec::S3Uri;

/// One object to be.
pub(in crate::stage) struct Outgoing {
    pub(in crate::stage) entry: usize,
    /// Path relative to the results.
    pub(in crate::stage) path: PathBuf,
    pub(in crate::stage) uri: S3Uri,
    pub(in crate::stage) attr: Attr,
    /// 0 for the marker of a directory.
    pub(in crate::stage) size: u64,
    /// The part that is hashed next, for those that wait.
    pub(super) turn: watch::Sender<usize>,
    /// Held while an upload is begun.
    pub(super) beginning: tokio::sync::Mutex<()>,
    pub(in crate::stage) state: Mutex<State>,
}

/// How far an object is.
#[derive(Default)]
pub(in crate::stage) struct State {
    pub(in crate::stage) upload: Option<String>,
    /// By part: what S3 answered.
    pub(in crate::stage) parts: Vec<Option<Part>>,
    pub(super) hash: Sha256,
    pub(super) hashed: usize,
    pub(in crate::stage) sum: Option<Sum>,
    pub(in crate::stage) crc: u64,
    /// What this run has put there but is not as it should be, so that it may be replaced.
    pub(in crate::stage) made: Option<Stored>,
    pub(in crate::stage) done: Option<Stored>,
}

impl Outgoing {
    pub(super) fn new(plan: &Plan, entry: usize, uri: S3Uri) -> Self {
        let attr = plan.entries[entry].attr;
        let size = if attr.kind == Kind::File { attr.size } else { 0 };
        let (turn, _) = watch::channel(0);
        let (beginning, state) = (tokio::sync::Mutex::default(), Mutex::default());
        let object = Self { entry, path: plan.path(entry), uri, attr, size, turn, beginning, state };
        object.state.lock().parts = vec![None; object.parts()];
        object
    }

    /// The same object as an entry of a new plan.
    pub(super) fn again(&self, entry: usize) -> Self {
        let (turn, _) = watch::channel(0);
        let state = Mutex::new(std::mem::take(&mut *self.state.lock()));
        let (path, uri, beginning) = (self.path.clone(), self.uri.clone(), tokio::sync::Mutex::default());
        Self { entry, path, uri, attr: self.attr, size: self.size, turn, beginning, state }
    }

    /// Whether it is sent in parts.
    pub(in crate::stage) fn is_large(&self) -> bool {
        self.size > self.part_size()
    }

    pub(in crate::stage) fn is_done(&self) -> bool {
        self.state.lock().done.is_some()
    }

    /// Whether it can be committed.
    pub(super) fn is_ready(&self) -> bool {
        self.is_done() || !self.is_large() || (0..self.parts()).all(|part| !self.needs(part))
    }

    pub(super) fn is_renamed(&self, plan: &Plan) -> bool {
        let path = plan.path(self.entry);
        path.to_str().is_none_or(|path| !self.uri.key.trim_end_matches('/').ends_with(path))
    }

    pub(in crate::stage) fn part_size(&self) -> u64 {
        part_size(self.size)
    }

    pub(in crate::stage) fn parts(&self) -> usize {
        self.size.div_ceil(self.part_size()) as usize
    }

    pub(in crate::stage) fn part_len(&self, part: usize) -> usize {
        (self.size - part as u64 * self.part_size()).min(self.part_size()) as usize
    }

    pub(super) fn is_sent(&self, part: usize) -> bool {
        self.state.lock().parts[part].is_some()
    }

    /// Whether a part is still to be sent or hashed.
    pub(super) fn needs(&self, part: usize) -> bool {
        let state = self.state.lock();
        state.parts[part].is_none() || part >= state.hashed
    }

    /// Bytes that need not be sent any more.
    pub(super) fn sent(&self) -> u64 {
        let state = self.state.lock();
        match state.done {
            Some(_) => self.size,
            None => (0..state.parts.len()).filter(|&p| state.parts[p].is_some()).map(|p| self.part_len(p) as u64).sum(),
        }
    }

    pub(super) fn is_unchanged(&self, now: &Attr) -> bool {
        let mark = |a: &Attr| (a.ino, a.kind, a.size, a.mtime);
        mark(&self.attr) == mark(now) || self.attr.kind == Kind::Directory && now.kind == Kind::Directory
    }

    pub(super) fn keep(&self, upload: &str, part: usize, answer: Part) {
        let mut state = self.state.lock();
        if state.upload.as_deref() == Some(upload) {
            state.parts[part] = Some(answer);
        }
    }

    /// Forgets an upload that S3 does not know any more, and all that was sent to it.
    pub(in crate::stage) fn forget(&self, upload: &str) {
        let mut state = self.state.lock();
        if state.upload.as_deref() == Some(upload) {
            state.upload = None;
            state.parts.fill(None);
        }
    }

    /// What is visible now is this run's own, but not as it should be: it is to be sent again.
    pub(in crate::stage) fn replace_later(&self, stored: Stored) {
        let mut state = self.state.lock();
        state.made = Some(stored);
        state.parts.fill(None);
    }

    /// It is to be sent anew, and may replace what this run has put there before.
    pub(in crate::stage) fn send_again(&self) {
        let mut state = self.state.lock();
        if let Some(done) = state.done.take() {
            state.made = Some(done);
        }
        state.parts.fill(None);
    }

    /// Hashes a part when all before it are hashed; does nothing if one of them failed, or it was hashed before.
    pub(super) async fn hash(&self, part: usize, data: &[u8]) {
        let mut turns = self.turn.subscribe();
        let next = turns.wait_for(|&next| next >= part).await.map(|next| *next);
        if next.is_ok_and(|next| next != part) {
            return;
        }
        let mut hash = std::mem::take(&mut self.state.lock().hash);
        block_in_place(|| hash.update(data));
        let mut state = self.state.lock();
        if part + 1 == state.parts.len() {
            state.sum = Some(std::mem::take(&mut hash).finalize().into());
        }
        state.hash = hash;
        state.hashed = part + 1;
        drop(state);
        self.turn.send_if_modified(|turn| {
            let next = *turn == part;
            if next {
                *turn = part + 1;
            }
            next
        });
    }
}
