//! The invariants of a [`Scratch`] as code, for tests in debug builds: [`Scratch::check`].

use std::collections::HashMap;
use std::sync::Arc;

use super::node::{Inode, Node, entry_memory};
use super::{ROOT, Scratch};

/// What the directories say of an inode.
#[derive(Default)]
struct Names {
    /// Entries that name it.
    count: u32,
    /// Directories among its entries.
    subdirectories: u32,
}

impl Scratch {
    /// Asserts that table, directories, link counts, memory and space say the same. Nothing may change meanwhile.
    pub fn check(&self) {
        let inodes: HashMap<u64, Arc<Inode>> = self.table.check().into_iter().map(|inode| (inode.ino, inode)).collect();
        let mut names: HashMap<u64, Names> = HashMap::new();
        let mut memory = 0;
        for inode in inodes.values() {
            memory += inode.memory();
            match &inode.node {
                Node::File(content) => memory += content.check(),
                Node::Directory(directory) => directory.check(|(_, name, entry)| {
                    memory += entry_memory(name);
                    let known = inodes.get(&entry.ino).is_some_and(|known| Arc::ptr_eq(known, entry));
                    assert!(known, "an entry of {} names {}, which is dead", inode.ino, entry.ino);
                    names.entry(entry.ino).or_default().count += 1;
                    if let Node::Directory(below) = &entry.node {
                        names.entry(inode.ino).or_default().subdirectories += 1;
                        assert_eq!(below.parent(), inode.ino, "the parent of {}", entry.ino);
                    }
                }),
                Node::Symlink(_) | Node::Special { .. } => {}
            }
        }
        // Nobody has paid for the root itself.
        memory -= inodes.get(&ROOT).map_or(0, |root| root.node.memory());
        inodes.values().for_each(|inode| check_links(inode, &names.remove(&inode.ino).unwrap_or_default()));
        assert_eq!(self.store.metadata().used(), memory, "memory counted and memory of what is there");
        self.store.check();
    }
}

fn check_links(inode: &Inode, names: &Names) {
    let links = inode.meta().nlink;
    let expected = match (inode.is_directory(), names.count) {
        (true, 0) if inode.ino != ROOT => 0,
        (true, _) => 2 + names.subdirectories,
        (false, count) => count,
    };
    assert_eq!(links, expected, "links of inode {}", inode.ino);
    assert!(links > 0 || inode.is_referenced(), "inode {} is dead and still there", inode.ino);
}
