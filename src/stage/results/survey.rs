//! Results as they are to be in the output: every name, and for every symbolic link what becomes of it.
//!
//! A link is resolved in the scratch itself, by names, as the command saw it: [`View`] says where that was. What showed
//! through there from outside of the scratch is outside: in its place is an empty file or directory, with a mark.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::plan::{Plan, TOP};
use crate::fs::{Attr, DirEntry, FsError, Kind, ROOT, Scratch};
use crate::preflight::links::{self, Landing, Spot};
use crate::stage::{Astray, Hold, StageError, inside};
use crate::sys::mount::SHOWN;

/// Below a device there is nothing, so nobody has seen anything there.
const NOWHERE: &str = "/dev/null/runseal";

/// Where the command sees the scratch.
#[derive(Clone, Debug)]
pub struct View {
    /// Absolute, without links.
    pub mountpoint: PathBuf,
    /// Absolute paths that lead somewhere else, as symbolic links do: `/tmp` to a directory of the scratch.
    pub aliases: Vec<(PathBuf, PathBuf)>,
}

impl Default for View {
    /// Nobody has seen it.
    fn default() -> Self {
        Self { mountpoint: NOWHERE.into(), aliases: Vec::new() }
    }
}

impl View {
    fn look(&self, scratch: &Arc<Scratch>, path: &Path) -> Spot {
        let alias = self.aliases.iter().find(|(from, _)| from == path);
        let leads_on = |known: &PathBuf| known.starts_with(path);
        match (self.find(scratch, path), alias) {
            (Some(Whereabouts::Here(attr, _hold)), _) => match attr.kind {
                Kind::Directory => Spot::Directory,
                Kind::Symlink => {
                    scratch.readlink(attr.ino).map_or(Spot::Missing, |t| Spot::Link(OsString::from_vec(t)))
                }
                _ => Spot::Other,
            },
            (Some(Whereabouts::Outside(path)), _) => outside(&path),
            (None, Some((_, to))) => Spot::Link(to.into()),
            (None, None) if leads_on(&self.mountpoint) || self.aliases.iter().any(|(from, _)| leads_on(from)) => {
                Spot::Directory
            }
            (None, None) => Spot::Missing,
        }
    }

    /// What is at a path of the scratch, which has no links above its last name.
    fn find(&self, scratch: &Arc<Scratch>, path: &Path) -> Option<Whereabouts> {
        let mut below = path.strip_prefix(&self.mountpoint).ok()?.components();
        let step = |parent, name: &[u8]| {
            let attr = scratch.lookup(parent, name).ok()?;
            Some((attr, Hold::new(scratch, attr.ino)))
        };
        let (mut attr, mut hold) = step(ROOT, b".")?;
        while let Some(name) = below.next() {
            (attr, hold) = step(attr.ino, name.as_os_str().as_bytes())?;
            if let Some(source) = shown(scratch, &attr) {
                let rest = below.as_path();
                return Some(Whereabouts::Outside(if rest.as_os_str().is_empty() {
                    source
                } else {
                    source.join(rest)
                }));
            }
        }
        Some(Whereabouts::Here(attr, hold))
    }
}

/// What is at a path of the scratch.
enum Whereabouts {
    /// This.
    Here(Attr, Hold),
    /// What the command saw there is not in the scratch, but at this path of the machine.
    Outside(PathBuf),
}

/// What showed through in place of an inode, if it was made for that and nobody put anything there.
fn shown(scratch: &Scratch, attr: &Attr) -> Option<PathBuf> {
    if !matches!(attr.kind, Kind::File | Kind::Directory) {
        return None;
    }
    let source = scratch.getxattr(attr.ino, SHOWN.to_bytes()).ok()?;
    let mut empty = attr.kind == Kind::Directory || attr.size == 0;
    if attr.kind == Kind::Directory {
        let mut names = |entry: DirEntry<'_>| {
            empty &= matches!(entry.name, b"." | b"..");
            empty
        };
        scratch.readdir(attr.ino, 0, &mut names).ok()?;
    }
    empty.then(|| OsString::from_vec(source).into())
}

/// What is at a path of the machine.
fn outside(path: &Path) -> Spot {
    match fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_dir() => Spot::Directory,
        Ok(kind) if FileType::is_symlink(&kind) => {
            fs::read_link(path).map_or(Spot::Missing, |text| Spot::Link(text.into()))
        }
        Ok(_) => Spot::Other,
        Err(_) => Spot::Missing,
    }
}

/// Which links are replaced by what they lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stage) enum Dereference {
    /// None; all are kept as they are, wherever they lead: for what is no result.
    Untouched,
    /// None.
    Never,
    /// Those that lead to somewhere else in the scratch.
    Astray,
    /// Those that lead to anything in the scratch: there are no links where the results go.
    All,
}

/// Reads the names below `from`; the holds keep every inode alive.
pub(in crate::stage) fn survey(
    scratch: &Arc<Scratch>,
    from: u64,
    view: &View,
    dereference: Dereference,
) -> Result<(Plan, Vec<Hold>), StageError> {
    let top = scratch.getattr(from).map_err(inside("examining", ""))?;
    let within = view.mountpoint.join(path_of(scratch, from).map_err(inside("examining", ""))?);
    let (plan, holds, behind) = (Plan::new(top), Vec::new(), HashMap::new());
    let mut survey = Survey { scratch, view, dereference, within, plan, holds, behind, astray: None, others: 0 };
    survey.descend()?;
    match survey.astray {
        Some((link, target, why)) => Err(StageError::Astray { link, target, why, others: survey.others }),
        None => Ok((survey.plan, survey.holds)),
    }
}

struct Survey<'a> {
    scratch: &'a Arc<Scratch>,
    view: &'a View,
    dereference: Dereference,
    /// Path of the results, as the command sees it.
    within: PathBuf,
    plan: Plan,
    holds: Vec<Hold>,
    /// By entry: paths of directories that took the place of a link.
    behind: HashMap<usize, PathBuf>,
    /// The first link that cannot be published, where it leads, and why not.
    astray: Option<(PathBuf, PathBuf, Astray)>,
    others: usize,
}

impl Survey<'_> {
    fn descend(&mut self) -> Result<(), StageError> {
        let mut next = TOP;
        while next < self.plan.entries.len() {
            if self.plan.entries[next].attr.kind == Kind::Directory {
                self.enter(next)?;
            }
            next += 1;
        }
        Ok(())
    }

    fn enter(&mut self, parent: usize) -> Result<(), StageError> {
        let Self { scratch, plan, holds, behind, .. } = self;
        // Not while the directory is read: links, and what may be above itself.
        let mut later = Vec::new();
        let directory = plan.entries[parent].attr.ino;
        let listed = scratch.readdirplus(directory, 0, &mut |entry, attr| {
            if entry.name != b"." && entry.name != b".." {
                holds.push(Hold::new(scratch, attr.ino));
                let name = OsStr::from_bytes(entry.name);
                if let Some(source) = shown(scratch, attr) {
                    plan.add_link(parent, name, as_link(attr), source.into());
                    return true;
                }
                match attr.kind {
                    Kind::Symlink => later.push((name.to_owned(), *attr)),
                    Kind::Directory if !behind.is_empty() => later.push((name.to_owned(), *attr)),
                    _ => drop(plan.add(parent, name, *attr)),
                }
            }
            true
        });
        listed.map_err(|e| inside("reading", self.plan.path(parent))(e))?;
        for (name, attr) in later {
            match attr.kind {
                Kind::Symlink => self.link(parent, &name, attr)?,
                _ if self.is_above(parent, attr.ino) => {
                    let path = self.place(parent).join(&name);
                    self.refuse(parent, &name, path, Astray::Circle);
                }
                _ => drop(self.plan.add(parent, &name, attr)),
            }
        }
        Ok(())
    }

    fn link(&mut self, parent: usize, name: &OsStr, attr: Attr) -> Result<(), StageError> {
        let text = self.scratch.readlink(attr.ino).map_err(inside("reading", self.plan.path(parent).join(name)))?;
        let text = OsString::from_vec(text);
        if self.dereference == Dereference::Untouched {
            self.plan.add_link(parent, name, attr, text);
            return Ok(());
        }
        match self.follow(parent, name, &text, &self.within) {
            landing @ (Landing::Within | Landing::Back(_)) => {
                if self.dereference != Dereference::All || !self.replace_by_end(parent, name, &text) {
                    let text = self.text_within(parent, text, landing);
                    self.plan.add_link(parent, name, attr, text);
                }
            }
            Landing::Away(to, _) if !to.starts_with(&self.view.mountpoint) => {
                // What is outside of the scratch stays there; only a way that climbs out of it by `..` must be told anew.
                let text = if Path::new(&text).is_absolute() { text } else { to.into() };
                self.plan.add_link(parent, name, attr, text);
            }
            Landing::Away(to, _) if let Some(Whereabouts::Outside(source)) = self.view.find(self.scratch, &to) => {
                self.plan.add_link(parent, name, attr, source.into());
            }
            Landing::Away(to, Spot::Missing) => self.refuse(parent, name, to, Astray::Missing),
            Landing::Away(to, _) if self.dereference == Dereference::Never => {
                self.refuse(parent, name, to, Astray::Elsewhere);
            }
            Landing::Away(to, _) => {
                if !self.replace(parent, name, &to) {
                    self.refuse(parent, name, to, Astray::Circle);
                }
            }
            Landing::Endless => self.refuse(parent, name, text.into(), Astray::Endless),
        }
        Ok(())
    }

    fn follow(&self, parent: usize, name: &OsStr, text: &OsStr, within: &Path) -> Landing {
        let look = |path: &Path| Ok::<_, io::Error>(self.view.look(self.scratch, path));
        links::follow(&self.place(parent).join(name), text, within, look).unwrap_or(Landing::Endless)
    }

    /// The text of a link to another result, as it is to be in the output.
    fn text_within(&mut self, parent: usize, text: OsString, landing: Landing) -> OsString {
        let Landing::Back(to) = landing else { return text };
        self.plan.rewritten += 1;
        let below = to.strip_prefix(&self.within).unwrap_or(&to);
        links::relative(&Path::new("/").join(self.plan.path(parent)), &Path::new("/").join(below))
    }

    /// Replaces a link to another result by what is at its end, if there is anything that has an end itself.
    fn replace_by_end(&mut self, parent: usize, name: &OsStr, text: &OsStr) -> bool {
        match self.follow(parent, name, text, Path::new(NOWHERE)) {
            Landing::Away(to, Spot::Directory | Spot::Other) => self.replace(parent, name, &to),
            _ => false,
        }
    }

    /// Puts what is at `to` in the place of a link; `false` if that is a directory which the link is in itself.
    fn replace(&mut self, parent: usize, name: &OsStr, to: &Path) -> bool {
        let Some(Whereabouts::Here(attr, hold)) = self.view.find(self.scratch, to) else { return false };
        if attr.kind == Kind::Directory && self.is_above(parent, attr.ino) {
            return false;
        }
        if self.plan.entries.len() as u64 > self.scratch.statfs().inodes {
            // Links to directories with links: each level may have as many names again as the one above.
            self.refuse(parent, name, to.to_owned(), Astray::TooMany);
            return true;
        }
        self.holds.push(hold);
        if let Some(entry) = self.plan.add(parent, name, attr).filter(|_| attr.kind == Kind::Directory) {
            self.behind.insert(entry, to.to_owned());
        }
        self.plan.dereferenced += 1;
        true
    }

    /// Whether `ino` is the directory `entry` or one that it is in.
    fn is_above(&self, mut entry: usize, ino: u64) -> bool {
        loop {
            match &self.plan.entries[entry] {
                found if found.attr.ino == ino => return true,
                _ if entry == TOP => return false,
                found => entry = found.parent,
            }
        }
    }

    /// Path of a directory in the scratch, as the command sees it.
    fn place(&self, mut entry: usize) -> PathBuf {
        let mut names = Vec::new();
        loop {
            let start = if entry == TOP { Some(&self.within) } else { self.behind.get(&entry) };
            if let Some(start) = start {
                return start.iter().chain(names.into_iter().rev()).collect();
            }
            names.push(self.plan.entries[entry].name.as_os_str());
            entry = self.plan.entries[entry].parent;
        }
    }

    fn refuse(&mut self, parent: usize, name: &OsStr, target: PathBuf, why: Astray) {
        match self.astray {
            Some(_) => self.others += 1,
            None => {
                let target = match target.strip_prefix(&self.view.mountpoint) {
                    Ok(below) if below.as_os_str().is_empty() => ".".into(),
                    Ok(below) => below.to_owned(),
                    Err(_) => target,
                };
                self.astray = Some((self.plan.path(parent).join(name), target, why));
            }
        }
    }
}

/// A link in place of an inode.
fn as_link(attr: &Attr) -> Attr {
    Attr { kind: Kind::Symlink, mode: 0o777, nlink: 1, ..*attr }
}

/// Path of a directory below the root of the scratch.
fn path_of(scratch: &Scratch, directory: u64) -> Result<PathBuf, FsError> {
    let (mut names, mut at) = (Vec::new(), directory);
    while at != ROOT {
        let parent = scratch.lookup(at, b"..")?.ino;
        scratch.forget(parent, 1);
        let mut name = None;
        scratch.readdir(parent, 0, &mut |entry| {
            let found = entry.ino == at && entry.name != b"." && entry.name != b"..";
            if found {
                name = Some(OsStr::from_bytes(entry.name).to_owned());
            }
            !found
        })?;
        names.push(name.ok_or(FsError::Stale(at))?);
        at = parent;
    }
    Ok(names.into_iter().rev().collect())
}
