//! The inode table: every living inode by number, in shards so that threads seldom meet.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use super::inode::{Inode, Meta, Node};
use crate::fs::ROOT;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{RwLock, rank};

const SHARDS: usize = 64;

/// Some of the inodes.
pub type Shard = RwLock<{ rank::SHARD }, HashTable<Arc<Inode>>>;

/// All living inodes. Its locks are leaves: nothing else is locked while one is held.
pub struct Table {
    shards: [Shard; SHARDS],
    next: AtomicU64,
    live: AtomicU64,
}

impl Table {
    /// A table that holds the root directory.
    pub fn new(meta: Meta, node: Node) -> Self {
        let table = Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            next: AtomicU64::new(ROOT + 1),
            live: AtomicU64::new(1),
        };
        table.put(Arc::new(Inode::new(ROOT, meta, node)));
        table
    }

    pub fn get(&self, ino: u64) -> Option<Arc<Inode>> {
        self.shard(ino).read().find(hash(ino), |inode| inode.ino == ino).cloned()
    }

    /// Makes an inode with a number never used before.
    pub fn create(&self, meta: Meta, node: Node) -> Arc<Inode> {
        self.live.fetch_add(1, Ordering::Relaxed);
        let inode = Arc::new(Inode::new(self.next.fetch_add(1, Ordering::Relaxed), meta, node));
        self.put(inode.clone());
        inode
    }

    /// Strikes out a dead inode, unless somebody did; its content goes with the last `Arc`.
    pub fn remove(&self, ino: u64) -> Option<Arc<Inode>> {
        // The shard is unlocked before the inode is dropped: clearing a content may take long.
        let removed = {
            let mut shard = self.shard(ino).write();
            shard.find_entry(hash(ino), |inode| inode.ino == ino).ok().map(|entry| entry.remove().0)
        };
        if removed.is_some() {
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
        removed
    }

    pub fn newest(&self) -> u64 {
        self.next.load(Ordering::Relaxed) - 1
    }

    pub fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// The shards, to be locked one after the other.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    fn put(&self, inode: Arc<Inode>) {
        self.shard(inode.ino).write().insert_unique(hash(inode.ino), inode, |inode| hash(inode.ino));
    }

    fn shard(&self, ino: u64) -> &Shard {
        &self.shards[ino as usize % SHARDS]
    }
}

/// Numbers are given out by us, one after the other, so nobody can choose colliding ones: no keyed hash is needed.
fn hash(ino: u64) -> u64 {
    FxBuildHasher.hash_one(ino)
}

#[cfg(debug_assertions)]
impl Table {
    /// Asserts that each inode is where its number says, and that as many live; returns them.
    pub fn check(&self) -> Vec<Arc<Inode>> {
        let mut inodes = Vec::new();
        for (at, shard) in self.shards.iter().enumerate() {
            for inode in shard.read().iter() {
                assert!(inode.ino as usize % SHARDS == at && inode.ino <= self.newest(), "inode {} is lost", inode.ino);
                inodes.push(inode.clone());
            }
        }
        assert_eq!(inodes.len() as u64, self.live(), "inodes counted and inodes there");
        inodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::Time;

    fn table() -> Table {
        Table::new(meta(), Node::Symlink([].into()))
    }

    fn meta() -> Meta {
        Meta::root(0, 0, 0, Time::default())
    }

    #[test]
    fn numbers_are_never_used_again() {
        let table = table();
        let mut last = ROOT;
        for _ in 0..500 {
            let ino = table.create(meta(), Node::Symlink([].into())).ino;
            assert!(ino > last && table.newest() == ino);
            last = ino;
            table.remove(ino);
            assert!(table.get(ino).is_none());
        }
        assert_eq!(table.live(), 1);
    }

    #[test]
    fn what_lives_is_counted() {
        let table = table();
        let create = || table.create(meta(), Node::Symlink([].into()));
        let first = create().ino;
        create();
        assert!(table.remove(first).is_some() && table.remove(first).is_none());
        assert_eq!(table.live(), 2);
        create();
        let mut inos: Vec<u64> = table.check().iter().map(|inode| inode.ino).collect();
        inos.sort();
        assert_eq!(inos, [1, 3, 4]);
    }
}
