//! [`Scratch`]: every file-system semantic, without a kernel.
//!
//! Names are byte strings. Permission bits are stored, not checked: the kernel checks them (`default_permissions`),
//! and callers inside the process are trusted.
//!
//! # Order of locks
//!
//! As [`crate::sync::rank`] says, and debug builds assert: the mutex of directory moves (`rename.rs`), entries of
//! directories in ascending inode number, attributes of one inode, a shard of the inode table, the record of losses.
//!
//! A directory is removed under its parent's lock alone; `node/directory.rs` says how.

#[cfg(debug_assertions)]
mod check;
mod file;
mod listing;
mod losses;
mod names;
mod node;
mod rename;
mod suidgid;
#[cfg(test)]
mod testing;
mod types;
mod xattr;

use std::sync::Arc;

use self::node::{Directory, Entries, Inode, Losses, Meta, Node, Shard, Table};
pub use self::node::{Loss, LossChanges, LossTotals, acl_permissions};
pub use self::suidgid::{Change, Relation};
pub use self::types::*;
use crate::store::Store;
pub use crate::store::{Pressure, StoreError};
use crate::sync::{Mutex, rank};

/// Bytes of memory that a small file with a name of 32 bytes counts as: so many inodes are free.
const SMALL_FILE: u64 = 512;

/// The file system. All methods may be called from many threads at once.
///
/// Lifetime of inodes: every method documented with "takes a reference" adds one to the inode it returns, given
/// back with [`Scratch::forget`]. An inode without links lives until its last reference is gone; then its key is
/// wiped and its space freed. Without a reference, an inode number is good while the object has a link.
pub struct Scratch {
    store: Arc<Store>,
    table: Table,
    /// Held while a directory moves to another parent, so that the tree above any directory stands still.
    moves: Mutex<{ rank::MOVES }, ()>,
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
            let content = inode.content()?;
            file::end(0, size)?;
            content.set_size(size)?;
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
            let files = inodes_of(shard, |inode| inode.kind() == Kind::File);
            let known = files.iter().filter(|inode| inode.is_referenced());
            take(&known.map(|inode| inode.ino).collect::<Vec<_>>());
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
        for shard in self.table.shards() {
            for inode in inodes_of(shard, Inode::is_directory) {
                if let Ok(directory) = inode.directory() {
                    *directory.entries.write() = Entries::default();
                }
            }
        }
    }
}

/// Those inodes of a shard, which is unlocked again: what is done with them may lock.
fn inodes_of(shard: &Shard, wanted: impl Fn(&Inode) -> bool) -> Vec<Arc<Inode>> {
    shard.read().iter().filter(|inode| wanted(inode)).cloned().collect()
}
