//! Results from the hidden directory into their place: only renames, the manifest last.
//!
//! A directory that the output does not have yet is renamed whole, so an empty output fills in as many steps as it
//! has names. An entry that is in its place is never touched again, which makes the whole repeatable.
//!
//! Where results are replaced, the old manifest is moved aside first, so that it vouches for nothing, and read when all
//! new results are there: what it lists and they do not have is removed. It stays aside until the new manifest is in
//! place, so whatever ends this process in between, the next one to replace these results finds it.

use std::io;

use super::files::{Publication, sync};
use super::inherit::set_mode;
use super::manifest::{self, Incomplete, MANIFEST, Sum};
use super::older::{self, Retired, WITHDRAWN};
use super::plan::TOP;
use crate::fs::Kind;
use crate::stage::{StageError, Totals, outside};
use crate::sys::beneath::Below;
use crate::sys::path::{self, FileKind, Stat};

impl Publication {
    /// Refuses when anything is in the way, before anything is renamed.
    pub(in crate::stage) fn check_places(&self) -> Result<(), StageError> {
        // By entry: whether a directory of the output may hold something of its name.
        let mut exists = vec![false; self.plan.entries.len()];
        exists[TOP] = true;
        for (i, entry) in self.plan.entries.iter().enumerate().skip(1) {
            if exists[entry.parent] && !self.placed[i] {
                let is_directory = entry.attr.kind == Kind::Directory;
                exists[i] = self.check_place(&self.final_path(i), is_directory)?;
            }
        }
        self.check_place(&self.output.below(MANIFEST), false).map(drop)
    }

    /// Whether something that may be replaced is at `place`.
    fn check_place(&self, place: &Below<'_>, is_directory: bool) -> Result<bool, StageError> {
        let path = || place.path();
        match path::stat(place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(outside("examining", path())(e)),
            Ok(_) if !self.overwrite => Err(StageError::Appeared { path: path() }),
            Ok(Stat { kind, .. }) if (kind == FileKind::Directory) != is_directory => {
                Err(StageError::InTheWay { path: path() })
            }
            Ok(_) => Ok(true),
        }
    }

    /// Renames everything into place. May be called again after an error. Results of before that these do not have are
    /// removed unless `keep_old`. Without results there is no manifest either: it would stand in the way of the next ones.
    pub(in crate::stage) fn place(&mut self, keep_old: bool, incomplete: &[Incomplete]) -> Result<Totals, StageError> {
        if self.overwrite {
            self.withdraw_manifest()?;
        }
        let mut changed = vec![TOP];
        for i in TOP + 1..self.plan.entries.len() {
            if !self.placed[i] {
                self.go_on()?;
                self.place_entry(i, &mut changed)?;
            }
        }
        self.settle_directories()?;
        for &i in changed.iter().rev() {
            let directory = self.final_path(i);
            sync(&directory).map_err(outside("syncing", directory.path()))?;
        }
        if self.overwrite {
            self.retire(keep_old)?;
        }
        if !self.plan.is_empty() {
            self.manifest = Some(self.place_manifest(incomplete)?);
        }
        if self.overwrite {
            self.forget_manifest()?;
        }
        Ok(self.totals())
    }

    /// An old manifest must not vouch for new files.
    fn withdraw_manifest(&self) -> Result<(), StageError> {
        let manifest = self.output.below(MANIFEST);
        match path::rename(&manifest, &self.output.below(WITHDRAWN)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(outside("renaming", manifest.path())(e)),
            _ => self.sync_output(),
        }
    }

    /// Removes what the old manifest lists and these results do not have.
    fn retire(&mut self, keep_old: bool) -> Result<(), StageError> {
        self.retired = match older::withdrawn(&self.output) {
            Ok(None) => Retired::default(),
            Ok(Some(older)) => {
                let present = (TOP + 1..self.plan.entries.len()).map(|i| self.plan.path(i)).collect();
                let retired = older.retire(&self.output, &present, keep_old);
                retired.map_err(outside("removing results of before from", self.output.path()))?
            }
            Err(why) => Retired { unknown: Some(why.to_string()), ..Retired::default() },
        };
        Ok(())
    }

    /// Its results are replaced.
    fn forget_manifest(&self) -> Result<(), StageError> {
        let withdrawn = self.output.below(WITHDRAWN);
        match path::remove_file(&withdrawn) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(outside("removing", withdrawn.path())(e)),
            _ => self.sync_output(),
        }
    }

    fn sync_output(&self) -> Result<(), StageError> {
        sync(&self.output.itself()).map_err(outside("syncing", self.output.path()))
    }

    fn totals(&self) -> Totals {
        Totals { removed: self.retired.removed, kept: self.retired.kept.len() as u64, ..self.plan.totals() }
    }

    fn place_entry(&mut self, i: usize, changed: &mut Vec<usize>) -> Result<(), StageError> {
        let parent = self.plan.entries[i].parent;
        if parent != TOP && self.placed[parent] {
            self.placed[i] = true;
            return Ok(());
        }
        let (from, to) = (self.partial.below(self.plan.path(i)), self.final_path(i));
        let is_directory = self.plan.entries[i].attr.kind == Kind::Directory;
        match path::rename_new(&from, &to) {
            Ok(()) => self.placed[i] = true,
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                self.check_place(&to, is_directory)?;
                if is_directory {
                    changed.push(i);
                } else {
                    path::rename(&from, &to).map_err(outside("replacing", to.path()))?;
                    self.placed[i] = true;
                }
            }
            Err(e) => return Err(outside("creating", to.path())(e)),
        }
        Ok(())
    }

    /// Gives new directories their permission bits; one that was there keeps its own.
    fn settle_directories(&self) -> Result<(), StageError> {
        for i in self.plan.of_kind(Kind::Directory).rev().filter(|&i| self.placed[i]) {
            let place = self.final_path(i);
            let mode = self.inherited(i).directory_mode(self.plan.entries[i].attr.mode);
            set_mode(&place, mode).map_err(outside("writing", place.path()))?;
        }
        Ok(())
    }

    fn place_manifest(&self, incomplete: &[Incomplete]) -> Result<Sum, StageError> {
        let (from, to) = (self.partial.below(MANIFEST), self.output.below(MANIFEST));
        let _ = path::remove_file(&from);
        let write = || {
            let file = path::create(&from, 0o600)?;
            let totals = self.totals();
            let sum = manifest::write(&file, &self.run, &self.plan, totals, &self.learnt, (incomplete, &self.retired))?;
            set_mode(&from, self.inherited(TOP).file_mode(self.plan.entries[TOP].attr.mode & 0o666))?;
            file.sync_all().map(|()| sum)
        };
        let sum = write().map_err(outside("writing", to.path()))?;
        match path::rename_new(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StageError::Appeared { path: to.path() }),
            renamed => renamed.map_err(outside("creating", to.path())),
        }?;
        self.sync_output()?;
        Ok(sum)
    }

    fn final_path(&self, i: usize) -> Below<'_> {
        if i == TOP { self.output.itself() } else { self.output.below(self.plan.path(i)) }
    }
}
