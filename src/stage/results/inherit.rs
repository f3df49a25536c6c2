//! What a new name takes over from the directory it is made in, as mkdir(2) and open(2) have it: the group where the
//! directory is set-group-ID, that bit, and the default ACL. chmod(2) and chown(2) afterwards must not undo it.

use std::io;

use super::files::as_far_as_kept;
use crate::fs::acl_permissions;
use crate::sys::acl;
use crate::sys::beneath::{Anchor, Below};
use crate::sys::path::{self, Stat};

/// Permission bits that are no permissions: set-user-ID, set-group-ID, sticky.
const SPECIAL: u32 = 0o7000;
const SET_GROUP_ID: u32 = 0o2000;

/// Of one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stage) struct Inherited {
    /// Its group, if new names get it.
    group: Option<u32>,
    /// `02000` if new directories get it.
    set_group_id: u32,
    /// What its default ACL leaves of permissions; `0777` without one.
    permissions: u32,
}

impl Inherited {
    /// Looks at `directory`.
    pub(in crate::stage) fn from(directory: &Below<'_>) -> io::Result<Self> {
        let directory = path::open_directory(directory)?;
        let Stat { mode, gid, .. } = Stat::of(&directory)?;
        let permissions = acl::default_acl(&directory)?.and_then(|acl| acl_permissions(&acl).ok().flatten());
        let set_group_id = mode & SET_GROUP_ID;
        let group = (set_group_id != 0).then_some(gid);
        Ok(Self { group, set_group_id, permissions: permissions.unwrap_or(0o777) })
    }

    /// As [`Inherited::from`], for a directory in which `made` was just made: some file systems give new names the group
    /// of the directory always (`grpid`). `group`: the one that who made it has.
    pub(in crate::stage) fn seen_in(directory: &Below<'_>, made: &Stat, group: u32) -> io::Result<Self> {
        let inherited = Self::from(directory)?;
        let by_mount = (made.gid != group).then_some(made.gid);
        Ok(Self { group: inherited.group.or(by_mount), ..inherited })
    }

    /// Bits of a file that would have `mode` elsewhere.
    pub(in crate::stage) fn file_mode(&self, mode: u32) -> u32 {
        mode & (self.permissions | SPECIAL)
    }

    /// Bits of a directory that would have `mode` elsewhere.
    pub(in crate::stage) fn directory_mode(&self, mode: u32) -> u32 {
        self.file_mode(mode) | self.set_group_id
    }

    /// The group to give to what would have `gid` elsewhere; `None` leaves it as it is.
    pub(in crate::stage) fn group(&self, gid: u32) -> Option<u32> {
        if self.group.is_some() { None } else { Some(gid) }
    }
}

/// Makes the directory `copy` with all that it inherits as a child of `model`: it is made there, as `hidden`, and moved.
pub(in crate::stage) fn make_child(model: &Below<'_>, hidden: &str, copy: &Below<'_>) -> io::Result<()> {
    let made = model.join(hidden);
    path::make_directory(&made, 0o700)?;
    let opened = Anchor::at(&made)?;
    path::rename(&made, copy).inspect_err(|_| drop(path::remove_directory(&made)))?;
    // Whoever may write to `model` may have put another one there.
    let (mine, moved) = (opened.stat()?, path::stat(copy)?);
    let same = (mine.dev, mine.ino) == (moved.dev, moved.ino);
    if same { Ok(()) } else { Err(io::Error::other("somebody has exchanged a directory that was just made")) }
}

/// `chmod(2)` where it changes anything: done by somebody who is not in the group, it takes set-group-ID away.
pub(in crate::stage) fn set_mode(path: &Below<'_>, mode: u32) -> io::Result<()> {
    if path::stat(path)?.mode == mode { Ok(()) } else { as_far_as_kept(path::set_mode(path, mode)) }
}
