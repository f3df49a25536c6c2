//! Inodes: what an object is, its attributes, and when it dies.

use std::cell::LazyCell;

use super::acl::Acl;
use super::directory::{DIRECTORY_MEMORY, Directory};
use super::extended::Extended;
use crate::fs::{Attr, Creator, FsError, Kind, SetAttr, SetTime, Time};
use crate::store::Content;
use crate::sync::{Mutex, MutexGuard, rank};
use crate::units::SECTOR_U64;

pub const SETUID: u32 = 0o4000;
pub const SETGID: u32 = 0o2000;
/// Bytes of one block as `st_blocks` counts them.
const BLOCK: u64 = 512;
const STICKY: u32 = 0o1000;
pub const GROUP_EXECUTE: u32 = 0o010;

/// Bytes of memory that an inode counts as, with its key slot, an extent and its place in the table; not its names.
const INODE_MEMORY: u64 = 320;

/// One object of the file system.
pub struct Inode {
    pub ino: u64,
    meta: Mutex<{ rank::META }, Meta>,
    pub node: Node,
}

/// What an inode is.
pub enum Node {
    File(Content),
    /// Boxed, so that the many files do not pay for the size of the few directories.
    Directory(Box<Directory>),
    Symlink(Box<[u8]>),
    Special {
        kind: Kind,
        rdev: u32,
    },
}

/// Attributes behind the inode's lock.
///
/// Invariant: an inode with an entry in a directory has `nlink` > 0, so whoever finds it under that directory's lock
/// may take a reference. An inode whose `nlink` is 0 never gets a link again.
pub struct Meta {
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// `07777`
    mode: u16,
    atime: Stamp,
    mtime: Stamp,
    ctime: Stamp,
    references: u64,
    /// `None` when nothing is in it.
    pub extended: Option<Box<Extended>>,
}

/// A [`Time`] in 12 bytes instead of 16: there are three in every inode.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Stamp {
    secs: i64,
    nanos: u32,
}

impl Inode {
    pub fn new(ino: u64, meta: Meta, node: Node) -> Self {
        Self { ino, meta: Mutex::new(meta), node }
    }

    pub fn meta(&self) -> MutexGuard<'_, { rank::META }, Meta> {
        self.meta.lock()
    }

    pub fn kind(&self) -> Kind {
        self.node.kind()
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.node, Node::Directory(_))
    }

    pub fn directory(&self) -> Result<&Directory, FsError> {
        match &self.node {
            Node::Directory(directory) => Ok(directory),
            _ => Err(FsError::NotDirectory),
        }
    }

    pub fn content(&self) -> Result<&Content, FsError> {
        match &self.node {
            Node::File(content) => Ok(content),
            Node::Directory(_) => Err(FsError::IsDirectory),
            Node::Symlink(_) | Node::Special { .. } => Err(FsError::Invalid),
        }
    }

    /// The attributes. Size and space are read after the lock is released: the content has a lock of its own, and
    /// no attribute waits for it.
    pub fn attr(&self) -> Attr {
        let mut attr = self.meta.lock().attr(self.ino, self.kind());
        match &self.node {
            Node::File(content) => {
                attr.size = content.size();
                attr.blocks = content.sectors() * (SECTOR_U64 / BLOCK);
            }
            Node::Directory(directory) => attr.size = directory.size(),
            Node::Symlink(target) => attr.size = target.len() as u64,
            Node::Special { rdev, .. } => attr.rdev = *rdev,
        }
        attr
    }

    /// Bytes of memory it counts as, without names and extents.
    pub fn memory(&self) -> u64 {
        inode_memory(&self.meta.lock(), &self.node)
    }

    /// Takes a reference; `false` when the inode is already dead.
    pub fn acquire(&self) -> bool {
        let mut meta = self.meta.lock();
        let alive = !meta.is_dead();
        meta.references += u64::from(alive);
        alive
    }

    /// Whether the kernel knows it, most likely.
    pub fn is_referenced(&self) -> bool {
        self.meta.lock().references > 0
    }

    /// Gives references back; `true` when the inode is dead now.
    pub fn release(&self, count: u64) -> bool {
        let mut meta = self.meta.lock();
        meta.references = meta.references.saturating_sub(count);
        meta.is_dead()
    }

    /// Takes away one link of a file, or the life of a directory; `true` when the inode is dead now.
    pub fn unlink(&self, now: Time) -> bool {
        let mut meta = self.meta.lock();
        meta.nlink = if self.is_directory() { 0 } else { meta.nlink - 1 };
        meta.changed(now);
        meta.is_dead()
    }
}

impl Node {
    /// Bytes of memory that an inode of this kind counts as; extents count where they are.
    pub fn memory(&self) -> u64 {
        INODE_MEMORY
            + match self {
                Self::File(_) | Self::Special { .. } => 0,
                Self::Directory(_) => DIRECTORY_MEMORY,
                Self::Symlink(target) => target.len() as u64,
            }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Node::File(_) => Kind::File,
            Node::Directory(_) => Kind::Directory,
            Node::Symlink(_) => Kind::Symlink,
            Node::Special { kind, .. } => *kind,
        }
    }
}

impl Meta {
    /// Attributes of a directory nobody has made: the root.
    pub fn root(mode: u32, uid: u32, gid: u32, now: Time) -> Self {
        Self::new(Kind::Directory, mode, uid, gid, now)
    }

    /// Attributes of a new object in the directory `self`, without references: group and set-group-ID bit are
    /// inherited from a set-group-ID directory, the ACL from the default ACL, which also replaces the umask.
    pub fn child(&self, kind: Kind, mode: u32, caller: &Creator, now: Time) -> Self {
        let inherits = self.mode() & SETGID != 0;
        let gid = if inherits { self.gid } else { caller.gid };
        let mut mode = match kind {
            Kind::Directory => mode & (0o777 | STICKY) | if inherits { SETGID } else { 0 },
            Kind::Symlink => 0o777,
            _ => mode & 0o7777,
        };
        let mut extended = None;
        if kind != Kind::Symlink {
            match self.extended.as_ref().and_then(|x| x.default_acl.as_ref()) {
                Some(acl) => extended = inherit_acl(acl, kind, &mut mode),
                None => mode &= !caller.umask,
            }
        }
        Self { extended, ..Self::new(kind, mode, caller.uid, gid, now) }
    }

    fn new(kind: Kind, mode: u32, uid: u32, gid: u32, now: Time) -> Self {
        let stamp = Stamp::from(now);
        Self {
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid,
            gid,
            mode: (mode & 0o7777) as u16,
            atime: stamp,
            mtime: stamp,
            ctime: stamp,
            references: 0,
            extended: None,
        }
    }

    pub fn mode(&self) -> u32 {
        u32::from(self.mode)
    }

    /// One more reference, to an inode known to be alive or about to be.
    pub fn add_reference(&mut self) {
        self.references += 1;
    }

    /// Replaces the permission bits and nothing else: the caller keeps an ACL in step.
    pub fn set_permissions(&mut self, permissions: u32) {
        self.mode = (self.mode & !0o777) | (permissions & 0o777) as u16;
    }

    /// The status changed.
    pub fn changed(&mut self, now: Time) {
        self.ctime = now.into();
    }

    /// The content, or the entries of a directory, changed.
    pub fn modified(&mut self, now: Time) {
        self.mtime = now.into();
        self.ctime = now.into();
    }

    /// Clears these bits of the mode.
    pub fn clear(&mut self, bits: u32) {
        self.mode &= !bits as u16;
    }

    /// Clears setuid, and setgid where it stands for a privilege (without group execute it once meant mandatory
    /// locking).
    fn clear_suid_sgid(&mut self) {
        self.clear(if self.mode() & GROUP_EXECUTE != 0 { SETUID | SETGID } else { SETUID });
    }

    /// Applies everything of `set` but the size, which has been set already.
    pub fn set(&mut self, set: &SetAttr, kind: Kind) {
        if *set == SetAttr::default() {
            return;
        }
        let new_owner = set.uid.is_some() || set.gid.is_some();
        if new_owner && kind != Kind::Directory {
            self.clear_suid_sgid();
        }
        self.uid = set.uid.unwrap_or(self.uid);
        self.gid = set.gid.unwrap_or(self.gid);
        if let Some(mode) = set.mode {
            self.chmod(mode);
        }
        // The kernel mostly brings all times along.
        let now = LazyCell::new(Time::now);
        let stamp = |time: SetTime| match time {
            SetTime::Now => *now,
            SetTime::At(time) => time,
        };
        if let Some(mtime) = set.mtime.or(set.size.map(|_| SetTime::Now)) {
            self.mtime = stamp(mtime).into();
        }
        if let Some(atime) = set.atime {
            self.atime = stamp(atime).into();
        }
        self.ctime = set.ctime.unwrap_or_else(|| *now).into();
    }

    fn chmod(&mut self, mode: u32) {
        self.mode = (mode & 0o7777) as u16;
        if let Some(acl) = self.extended.as_mut().and_then(|x| x.access_acl.as_mut()) {
            acl.set_permissions(mode);
        }
    }

    fn is_dead(&self) -> bool {
        self.nlink == 0 && self.references == 0
    }

    fn attr(&self, ino: u64, kind: Kind) -> Attr {
        Attr {
            ino,
            kind,
            mode: self.mode(),
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: self.atime.into(),
            mtime: self.mtime.into(),
            ctime: self.ctime.into(),
        }
    }
}

/// Bytes of memory that an inode counts as, without names and extents.
pub fn inode_memory(meta: &Meta, node: &Node) -> u64 {
    node.memory() + meta.extended.as_ref().map_or(0, |extended| extended.memory())
}

/// The ACLs of a new object below a directory with the default ACL `default`, and its mode: the permission bits
/// asked for and those of the ACL restrict each other (acl(5), "object creation and default ACLs").
fn inherit_acl(default: &Acl, kind: Kind, mode: &mut u32) -> Option<Box<Extended>> {
    let mut access = default.clone();
    *mode = access.restrict(*mode);
    let default = (kind == Kind::Directory).then(|| default.clone());
    Extended::inherited((!access.is_minimal()).then_some(access), default)
}

impl From<Time> for Stamp {
    fn from(time: Time) -> Self {
        Self { secs: time.secs, nanos: time.nanos }
    }
}

impl From<Stamp> for Time {
    fn from(stamp: Stamp) -> Self {
        Self { secs: stamp.secs, nanos: stamp.nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::testing::{CALLER, scratch};
    use crate::fs::{FsError, ROOT, RenameFlags, Scratch};

    const NONE: SetAttr =
        SetAttr { mode: None, uid: None, gid: None, size: None, atime: None, mtime: None, ctime: None };
    const OLD: Time = Time { secs: 1, nanos: 2 };

    fn aged_file(fs: &Scratch, mode: u32) -> u64 {
        let ino = fs.mknod(ROOT, b"f", Kind::File, mode, 0, &CALLER).unwrap().ino;
        fs.setattr(ino, &SetAttr { mtime: Some(SetTime::At(OLD)), ctime: Some(OLD), ..NONE }).unwrap();
        ino
    }

    // promise: S-20
    #[test]
    fn times_are_kept_to_the_nanosecond_on_both_sides_of_1970() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        let (before, after) = (Time { secs: -2, nanos: 500_000_000 }, Time { secs: i64::MAX, nanos: 999_999_999 });
        let set =
            SetAttr { atime: Some(SetTime::At(before)), mtime: Some(SetTime::At(after)), ctime: Some(OLD), ..NONE };
        let attr = fs.setattr(ino, &set).unwrap();
        assert_eq!((attr.atime, attr.mtime, attr.ctime), (before, after, OLD));
        fs.read(ino, 0, &mut [0; 8]).unwrap();
        assert_eq!(fs.attr(ino), attr);
        let attr = fs.setattr(ino, &SetAttr { atime: Some(SetTime::Now), ..NONE }).unwrap();
        assert!(attr.atime > OLD && attr.atime == attr.ctime && attr.mtime == after);
    }

    #[test]
    fn every_change_but_none_moves_ctime() {
        let fs = scratch();
        let ino = aged_file(&fs, 0o644);
        assert_eq!(fs.setattr(ino, &NONE).unwrap().ctime, OLD);
        for set in [
            SetAttr { mode: Some(0o600), ..NONE },
            SetAttr { uid: Some(1), ..NONE },
            SetAttr { gid: Some(1), ..NONE },
            SetAttr { atime: Some(SetTime::At(OLD)), ..NONE },
            SetAttr { mtime: Some(SetTime::At(OLD)), ..NONE },
        ] {
            fs.setattr(ino, &SetAttr { ctime: Some(OLD), ..NONE }).unwrap();
            let attr = fs.setattr(ino, &set).unwrap();
            assert!(attr.ctime > OLD && attr.mtime == OLD, "{set:?}");
        }
        let attr = fs.setattr(ino, &SetAttr { size: Some(0), ..NONE }).unwrap();
        assert!(attr.mtime > OLD);
    }

    #[test]
    fn mode_is_12_bits() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        assert_eq!(fs.setattr(ino, &SetAttr { mode: Some(0o107_777), ..NONE }).unwrap().mode, 0o7777);
    }

    // promise: S-23
    #[test]
    fn a_new_owner_clears_setuid_and_setgid() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        for (before, after) in [(0o6755, 0o755), (0o6745, 0o2745), (0o4644, 0o644), (0o1755, 0o1755)] {
            for owner in [SetAttr { uid: Some(5), ..NONE }, SetAttr { gid: Some(5), ..NONE }] {
                fs.setattr(ino, &SetAttr { mode: Some(before), ..NONE }).unwrap();
                assert_eq!(fs.setattr(ino, &owner).unwrap().mode, after, "{before:o}");
            }
        }
        let both = SetAttr { uid: Some(6), mode: Some(0o4755), ..NONE };
        assert_eq!(fs.setattr(ino, &both).unwrap().mode, 0o4755, "a mode given with the owner is what is wanted");
        let dir = fs.dir(ROOT, "d").ino;
        fs.setattr(dir, &SetAttr { mode: Some(0o6755), ..NONE }).unwrap();
        assert_eq!(fs.setattr(dir, &SetAttr { uid: Some(5), gid: Some(5), ..NONE }).unwrap().mode, 0o6755);
    }

    #[test]
    fn a_setgid_directory_hands_its_group_down() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        fs.setattr(dir, &SetAttr { mode: Some(0o2775), gid: Some(77), ..NONE }).unwrap();
        let file = fs.file(dir, "f");
        assert_eq!((file.gid, file.mode), (77, 0o644));
        let sub = fs.mkdir(dir, b"s", 0o6755, &CALLER).unwrap();
        assert_eq!((sub.gid, sub.mode), (77, 0o2755));
        assert_eq!(fs.symlink(dir, b"l", b"t", &CALLER).unwrap().gid, 77);
        let plain = fs.mkdir(ROOT, b"p", 0o7777, &CALLER).unwrap();
        assert_eq!((plain.gid, plain.mode), (100, 0o1755), "mkdir(2) takes permissions and the sticky bit");
    }

    #[test]
    fn sizes_show_what_is_inside() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let empty = fs.attr(dir).size;
        let file = fs.file(dir, "f").ino;
        assert!(fs.attr(dir).size > empty);
        fs.write(file, 4096, b"x", Default::default()).unwrap();
        assert_eq!((fs.attr(file).size, fs.attr(file).blocks), (4097, 8));
        fs.rename(dir, b"f", ROOT, b"f", RenameFlags::default()).unwrap();
        assert_eq!(fs.attr(dir).size, empty);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let fs = scratch();
        fs.forget(ROOT, u64::MAX);
        assert!(fs.getattr(ROOT).is_ok());
        assert!(matches!(fs.setattr(ROOT, &SetAttr { size: Some(0), ..NONE }), Err(FsError::IsDirectory)));
    }
}
