//! [`Scratch`]: every file-system semantic, without a kernel.
//!
//! Names are byte strings. Permission bits are stored, not checked: the kernel checks them (`default_permissions`),
//! and callers inside the process are trusted.
//!
//! # Order of locks
//!
//! 1. the mutex of directory moves (`rename.rs`),
//! 2. entries of directories, in ascending inode number,
//! 3. attributes of one inode,
//! 4. a shard of the inode table, or a content's own lock; nothing is locked while one of these is held.
//!
//! A directory is removed under its parent's lock alone; `dir.rs` says how.

mod acl;
mod dir;
mod file;
mod inode;
mod losses;
mod namespace;
mod rename;
mod suidgid;
mod table;
#[cfg(test)]
mod testing;
mod xattr;

use std::sync::Arc;

use parking_lot::Mutex;

pub use self::acl::acl_permissions;
use self::dir::{Directory, Entries};
use self::inode::{Inode, Meta, Node};
use self::losses::Losses;
pub use self::losses::{Loss, LossChanges, LossTotals};
pub use self::suidgid::{Change, Standing};
use self::table::Table;
use crate::store::Store;
pub use crate::store::{Pressure, StoreError};
use crate::sys::clock::inode_time;

/// Inode number of the root directory.
pub const ROOT: u64 = 1;
/// Longest name of a directory entry in bytes (POSIX `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Most hard links of one file (POSIX `LINK_MAX`).
pub const LINK_MAX: u32 = 65_000;

/// Bytes of memory that a small file with a name of 32 bytes counts as: so many inodes are free.
const SMALL_FILE: u64 = 512;

/// Why an operation was refused: one variant per POSIX error it stands for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// `ENOENT`
    #[error("no such file or directory")]
    NotFound,
    /// `EEXIST`
    #[error("file exists")]
    Exists,
    /// `ENOTDIR`
    #[error("not a directory")]
    NotDirectory,
    /// `EISDIR`
    #[error("is a directory")]
    IsDirectory,
    /// `ENOTEMPTY`
    #[error("directory not empty")]
    NotEmpty,
    /// `EINVAL`
    #[error("invalid argument")]
    Invalid,
    /// `EACCES`: a default ACL for something that is not a directory.
    #[error("only directories have a default ACL")]
    Access,
    /// `EPERM`
    #[error("operation not permitted")]
    NotPermitted,
    /// `ENAMETOOLONG`
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// `EMLINK`
    #[error("too many links")]
    TooManyLinks,
    /// `EFBIG`
    #[error("file too large")]
    TooLarge,
    /// `ENOSPC`: the memory for names and attributes, or the room for those of one inode (bytes come as
    /// [`StoreError::NoSpace`]).
    #[error("no room for more names and attributes")]
    NoInodes,
    /// `ENODATA`
    #[error("no such attribute")]
    NoAttribute,
    /// `E2BIG`: the value of an extended attribute.
    #[error("attribute value longer than 65536 bytes")]
    TooBig,
    /// `ERANGE`
    #[error("buffer too small")]
    Range,
    /// `EOPNOTSUPP`
    #[error("operation not supported")]
    NotSupported,
    /// `ESTALE`: an inode number that is not, or no longer, known.
    #[error("stale inode number {0}")]
    Stale(u64),
    /// `ENOSPC` or `EIO`
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds (0..1e9) after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, always counted forward.
    pub nanos: u32,
}

/// Attributes as `stat(2)` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the encoding of `makedev(3)` as the kernel passes it.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Last access, as last set: reads do not move it (as with `noatime`).
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Last status change.
    pub ctime: Time,
}

/// Who creates something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Umask; applied unless the directory has a default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The clock's time.
    Now,
    /// This time.
    At(Time),
}

/// What to change; `None` leaves a value alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (`07777`); keeps a POSIX access ACL in step.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// Status change; without it, ctime becomes now.
    pub ctime: Option<Time>,
}

/// How a write treats metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteMode {
    /// Leave mtime and ctime to the caller (the kernel owns them with a writeback cache).
    pub keep_times: bool,
    /// The writer was told already that the data is written: it may take the headroom.
    pub accepted: bool,
}

/// `fallocate(2)` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Mode 0, or `FALLOC_FL_KEEP_SIZE`.
    Allocate {
        /// Do not grow the size.
        keep_size: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE` (always with `KEEP_SIZE`).
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`.
    Zero {
        /// Do not grow the size.
        keep_size: bool,
    },
}

/// `renameat2(2)` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `RENAME_NOREPLACE`
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`
    pub exchange: bool,
    /// `RENAME_WHITEOUT`
    pub whiteout: bool,
}

/// `setxattr(2)` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    #[default]
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

/// One entry handed out by [`Scratch::readdir`].
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Name; `.` and `..` come first.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
    /// Pass this as `cookie` to go on behind this entry. Stable while the entry lives, whatever else changes.
    pub cookie: u64,
}

/// Space and inodes for `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Sectors (4096 bytes) in all.
    pub sectors: u64,
    /// Sectors free: the smaller of what the limit leaves and what the disk has.
    pub sectors_free: u64,
    /// Inodes in all: those there are and those there is memory for.
    pub inodes: u64,
    /// Inodes there is memory for, of small files without attributes.
    pub inodes_free: u64,
}

/// Limits and ownership of a new [`Scratch`].
#[derive(Clone, Copy, Debug)]
pub struct ScratchOptions {
    /// Bytes of memory that names, attributes and everything else that is known of files may take.
    pub memory: u64,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub mode: u32,
}

/// The file system. All methods may be called from many threads at once.
///
/// Lifetime of inodes: every method documented with "takes a reference" adds one to the inode it returns, given
/// back with [`Scratch::forget`]. An inode without links lives until its last reference is gone; then its key is
/// wiped and its space freed. Without a reference, an inode number is good while the object has a link.
pub struct Scratch {
    store: Arc<Store>,
    table: Table,
    /// Held while a directory moves to another parent, so that the tree above any directory stands still.
    moves: Mutex<()>,
    losses: Losses,
}

impl Scratch {
    /// An empty file system over `store`.
    pub fn new(store: Arc<Store>, options: ScratchOptions) -> Self {
        let root = Meta::root(options.mode, options.uid, options.gid, Time::now());
        let table = Table::new(root, Node::Directory(Box::new(Directory::new(ROOT))));
        store.metadata().set_limit(options.memory);
        Self { store, table, moves: Mutex::new(()), losses: Losses::default() }
    }

    /// Gives `count` references back.
    pub fn forget(&self, ino: u64, count: u64) {
        let Some(inode) = self.table.get(ino) else { return };
        if inode.release(count) {
            self.bury(ino);
        }
    }

    /// Attributes (stat(2)).
    pub fn getattr(&self, ino: u64) -> Result<Attr, FsError> {
        Ok(self.inode(ino)?.attr())
    }

    /// Changes attributes (chmod(2), chown(2), truncate(2), utimensat(2)) and returns them. A new owner clears
    /// setuid, and setgid of a group-executable file, on everything but directories. A new size moves mtime.
    pub fn setattr(&self, ino: u64, set: &SetAttr) -> Result<Attr, FsError> {
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            inode.file()?.set_size(size)?;
            self.losses.cut(ino, size);
        }
        inode.meta().set(set, inode.kind());
        Ok(inode.attr())
    }

    /// Sets space aside behind the limit for data that is accepted before it is written here; `early` and `late` are bytes,
    /// see [`Store::set_headroom`].
    pub fn set_headroom(&self, early: u64, late: u64) -> std::io::Result<()> {
        self.store.set_headroom(early, late)
    }

    /// How near the end of the space is.
    pub fn pressure(&self) -> Pressure {
        self.store.pressure()
    }

    /// Sectors of the disk that are nobody's.
    pub fn disk_free(&self) -> u64 {
        self.store.disk_free()
    }

    /// Hands the numbers of all regular files that have references to `take`, some at a time. What comes or goes
    /// meanwhile may be among them or not.
    pub fn referenced_files(&self, mut take: impl FnMut(&[u64])) {
        for shard in self.table.shards() {
            let files: Vec<u64> = {
                let shard = shard.read();
                let known = shard.iter().filter(|inode| inode.kind() == Kind::File && inode.is_referenced());
                known.map(|inode| inode.ino).collect()
            };
            take(&files);
        }
    }

    /// The greatest inode number given so far. Numbers ascend and are never given again.
    pub fn newest(&self) -> u64 {
        self.table.newest()
    }

    /// Space and inodes in all and free.
    pub fn statfs(&self) -> Statfs {
        let usage = self.store.usage();
        let inodes_free = self.store.metadata().left() / SMALL_FILE;
        Statfs {
            sectors: usage.limit,
            sectors_free: self.store.available(),
            inodes: self.inodes() + inodes_free,
            inodes_free,
        }
    }

    /// Inodes that live, the root among them.
    pub fn inodes(&self) -> u64 {
        self.table.live()
    }

    fn take_memory(&self, bytes: u64) -> Result<(), FsError> {
        if self.store.metadata().take(bytes) { Ok(()) } else { Err(FsError::NoInodes) }
    }

    fn inode(&self, ino: u64) -> Result<Arc<Inode>, FsError> {
        self.table.get(ino).ok_or(FsError::Stale(ino))
    }

    /// Takes away a link that has just lost its entry.
    fn unlink_inode(&self, inode: &Inode, now: Time) {
        if inode.unlink(now) {
            self.bury(inode.ino);
        }
    }

    /// Strikes out a dead inode.
    fn bury(&self, ino: u64) {
        if let Some(inode) = self.table.remove(ino) {
            self.store.metadata().give_back(inode.memory());
        }
        self.losses.bury(ino);
    }
}

/// Directories let go of their entries while the table still holds every inode, so that nothing is dropped inside
/// the drop of something else: a tree may be deeper than the stack.
impl Drop for Scratch {
    fn drop(&mut self) {
        self.table.for_each(|inode| {
            if let Node::Directory(directory) = &inode.node {
                *directory.entries.write() = Entries::default();
            }
        });
    }
}

impl Time {
    /// The time by the clock the kernel stamps its own inodes with: under a writeback cache it sets mtime and ctime
    /// of files, and another clock here would run ahead of it or behind.
    fn now() -> Self {
        let (secs, nanos) = inode_time();
        Self { secs, nanos }
    }
}
