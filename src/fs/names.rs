//! Names: looking up, making, linking, removing. Moving is in `rename.rs`, listing in `listing.rs`.

use super::node::{Directory, Inode, Node, entry_memory, inode_memory};
use super::{Attr, Creator, FsError, Kind, LINK_MAX, NAME_MAX, Scratch, Time};
use crate::store::Content;

/// Longest target of a symbolic link: `PATH_MAX` without the NUL byte.
const TARGET_MAX: usize = 4095;
impl Scratch {
    /// The object behind a name, `.` and `..` included. Takes a reference.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        let parent = self.inode(parent)?;
        let directory = parent.directory()?;
        let inode = match name {
            b"." => parent.clone(),
            b".." => self.inode(directory.parent())?,
            _ => return Self::lookup_entry(directory, name),
        };
        if inode.acquire() { Ok(inode.attr()) } else { Err(FsError::Stale(inode.ino)) }
    }

    /// Target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>, FsError> {
        match &self.inode(ino)?.node {
            Node::Symlink(target) => Ok(target.to_vec()),
            _ => Err(FsError::Invalid),
        }
    }

    /// Makes a regular file, FIFO, socket or device node. Takes a reference.
    pub fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        kind: Kind,
        mode: u32,
        rdev: u32,
        caller: &Creator,
    ) -> Result<Attr, FsError> {
        let node = match kind {
            Kind::File => Node::File(Content::new(self.store.clone())),
            Kind::Fifo | Kind::Socket => Node::Special { kind, rdev: 0 },
            Kind::CharDevice | Kind::BlockDevice => Node::Special { kind, rdev },
            Kind::Directory | Kind::Symlink => return Err(FsError::Invalid),
        };
        self.make(parent, name, mode, caller, node)
    }

    /// Makes a directory. Takes a reference.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Creator) -> Result<Attr, FsError> {
        self.make(parent, name, mode, caller, Node::Directory(Box::new(Directory::new(parent))))
    }

    /// Makes a symbolic link to `target`, of 1 to 4095 bytes. Takes a reference.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Creator) -> Result<Attr, FsError> {
        match target.len() {
            0 => Err(FsError::NotFound),
            1..=TARGET_MAX => self.make(parent, name, 0o777, caller, Node::Symlink(target.into())),
            _ => Err(FsError::NameTooLong),
        }
    }

    /// Gives a file one more name. Takes a reference.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Attr, FsError> {
        check_new_name(name)?;
        let (inode, parent) = (self.inode(ino)?, self.inode(parent)?);
        let directory = parent.directory()?;
        let now = Time::now();
        {
            let mut entries = directory.entries.write();
            if entries.get(name).is_some() {
                return Err(FsError::Exists);
            }
            directory.reserve()?;
            let memory = entry_memory(name);
            let linked = self
                .take_memory(memory)
                .and_then(|()| inode.add_link(now).inspect_err(|_| self.store.metadata().give_back(memory)));
            linked.inspect_err(|_| directory.release())?;
            entries.insert(name, inode.clone());
            parent.meta().modified(now);
        }
        self.losses.made(parent.ino, name);
        Ok(inode.attr())
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        if matches!(name, b"." | b"..") {
            return Err(FsError::IsDirectory);
        }
        self.remove(parent, name, |inode| match inode.node {
            Node::Directory(_) => Err(FsError::IsDirectory),
            _ => Ok(()),
        })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<(), FsError> {
        match name {
            b"." => Err(FsError::Invalid),
            b".." => Err(FsError::NotEmpty),
            _ => self.remove(parent, name, |inode| inode.directory()?.die()),
        }
    }

    fn lookup_entry(directory: &Directory, name: &[u8]) -> Result<Attr, FsError> {
        check_name(name)?;
        let inode = {
            let entries = directory.entries.read();
            let inode = entries.get(name).ok_or(FsError::NotFound)?;
            inode.acquire();
            inode.clone()
        };
        Ok(inode.attr())
    }

    fn make(&self, parent: u64, name: &[u8], mode: u32, caller: &Creator, node: Node) -> Result<Attr, FsError> {
        check_new_name(name)?;
        let parent = self.inode(parent)?;
        let directory = parent.directory()?;
        let now = Time::now();
        let inode = {
            let mut entries = directory.entries.write();
            if entries.get(name).is_some() {
                return Err(FsError::Exists);
            }
            directory.reserve()?;
            let mut meta = parent.meta().child(node.kind(), mode, caller, now);
            meta.add_reference();
            self.take_memory(entry_memory(name) + inode_memory(&meta, &node)).inspect_err(|_| {
                directory.release();
                self.losses.refuse_name(parent.ino, name);
            })?;
            let inode = self.table.create(meta, node);
            entries.insert(name, inode.clone());
            let mut meta = parent.meta();
            meta.modified(now);
            meta.nlink += u32::from(inode.is_directory());
            inode
        };
        self.losses.made(parent.ino, name);
        Ok(inode.attr())
    }

    /// Removes a name if `permit` says so of the inode behind it.
    fn remove(
        &self,
        parent: u64,
        name: &[u8],
        permit: impl FnOnce(&Inode) -> Result<(), FsError>,
    ) -> Result<(), FsError> {
        check_name(name)?;
        let parent = self.inode(parent)?;
        let directory = parent.directory()?;
        let now = Time::now();
        let inode = {
            let mut entries = directory.entries.write();
            permit(entries.get(name).ok_or(FsError::NotFound)?)?;
            let inode = entries.remove(name).expect("found under the same lock");
            self.store.metadata().give_back(entry_memory(name));
            directory.release();
            let mut meta = parent.meta();
            meta.modified(now);
            meta.nlink -= u32::from(inode.is_directory());
            inode
        };
        self.losses.unlinked(inode.ino, name);
        self.unlink_inode(&inode, now);
        Ok(())
    }
}

impl Inode {
    /// One more link, and a reference for the caller.
    fn add_link(&self, now: Time) -> Result<(), FsError> {
        if self.is_directory() {
            return Err(FsError::NotPermitted);
        }
        let mut meta = self.meta();
        match meta.nlink {
            0 => return Err(FsError::NotFound),
            LINK_MAX.. => return Err(FsError::TooManyLinks),
            _ => meta.nlink += 1,
        }
        meta.changed(now);
        meta.add_reference();
        Ok(())
    }
}

/// A name that may exist.
pub(super) fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name.len() {
        0 => Err(FsError::NotFound),
        1..=NAME_MAX if name.contains(&b'/') || name.contains(&0) => Err(FsError::Invalid),
        1..=NAME_MAX => Ok(()),
        _ => Err(FsError::NameTooLong),
    }
}

/// A name that may be made.
fn check_new_name(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"." | b".." => Err(FsError::Exists),
        _ => check_name(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CALLER, limited, scratch};
    use super::super::{ROOT, RenameFlags, WriteMode};
    use super::*;

    #[test]
    fn what_is_made_is_found_with_its_attributes() {
        let fs = scratch();
        let made = fs.mknod(ROOT, b"f", Kind::File, 0o4666, 0, &CALLER).unwrap();
        assert_eq!((made.kind, made.mode, made.uid, made.gid, made.nlink), (Kind::File, 0o4644, 1000, 100, 1));
        assert_eq!((made.size, made.blocks, made.atime, made.mtime), (0, 0, made.ctime, made.ctime));
        assert_eq!(fs.lookup(ROOT, b"f").unwrap(), made);
        let node = fs.mknod(ROOT, b"n", Kind::CharDevice, 0o600, 0x103, &CALLER).unwrap();
        assert_eq!((node.kind, node.rdev), (Kind::CharDevice, 0x103));
        for (name, kind) in [(b"p", Kind::Fifo), (b"s", Kind::Socket), (b"b", Kind::BlockDevice)] {
            assert_eq!(fs.mknod(ROOT, name, kind, 0o600, 7, &CALLER).unwrap().kind, kind);
        }
        for kind in [Kind::Directory, Kind::Symlink] {
            assert!(matches!(fs.mknod(ROOT, b"x", kind, 0o600, 0, &CALLER), Err(FsError::Invalid)));
        }
    }

    // promise: S-01
    #[test]
    fn names_are_any_bytes_of_the_right_number() {
        let fs = scratch();
        let longest = [0xff; NAME_MAX];
        fs.mkdir(ROOT, &longest, 0o755, &CALLER).unwrap();
        assert!(fs.lookup(ROOT, &longest).is_ok());
        let too_long = [b'a'; NAME_MAX + 1];
        assert!(matches!(fs.mkdir(ROOT, &too_long, 0o755, &CALLER), Err(FsError::NameTooLong)));
        assert!(matches!(fs.lookup(ROOT, &too_long), Err(FsError::NameTooLong)));
        assert!(matches!(fs.unlink(ROOT, &too_long), Err(FsError::NameTooLong)));
        for name in [&b"a/b"[..], b"/", b"a\0"] {
            assert!(matches!(fs.mkdir(ROOT, name, 0o755, &CALLER), Err(FsError::Invalid)));
        }
        assert!(matches!(fs.mkdir(ROOT, b"", 0o755, &CALLER), Err(FsError::NotFound)));
        for name in [&b"."[..], b".."] {
            assert!(matches!(fs.mkdir(ROOT, name, 0o755, &CALLER), Err(FsError::Exists)));
            assert!(matches!(fs.unlink(ROOT, name), Err(FsError::IsDirectory)));
        }
    }

    #[test]
    fn dots_are_looked_up() {
        let fs = scratch();
        let a = fs.dir(ROOT, "a").ino;
        let b = fs.dir(a, "b").ino;
        for (from, name, found) in [(b, &b"."[..], b), (b, b"..", a), (a, b"..", ROOT), (ROOT, b"..", ROOT)] {
            assert_eq!(fs.lookup(from, name).unwrap().ino, found);
        }
    }

    #[test]
    fn only_directories_hold_names() {
        let fs = scratch();
        let file = fs.file(ROOT, "f").ino;
        assert!(matches!(fs.lookup(file, b"x"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.mkdir(file, b"x", 0, &CALLER), Err(FsError::NotDirectory)));
        assert!(matches!(fs.link(file, file, b"x"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.unlink(file, b"x"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.rmdir(file, b"x"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.readdir(file, 0, &mut |_| true), Err(FsError::NotDirectory)));
        assert!(matches!(fs.rename(file, b"x", ROOT, b"y", RenameFlags::default()), Err(FsError::NotDirectory)));
    }

    #[test]
    fn unknown_inodes_are_stale() {
        let fs = scratch();
        assert!(matches!(fs.getattr(99), Err(FsError::Stale(99))));
        assert!(matches!(fs.lookup(99, b"x"), Err(FsError::Stale(99))));
        assert!(matches!(fs.link(99, ROOT, b"x"), Err(FsError::Stale(99))));
        fs.forget(99, 1);
    }

    #[test]
    fn making_refuses_names_that_exist() {
        let fs = scratch();
        let file = fs.file(ROOT, "f").ino;
        let dir = fs.dir(ROOT, "d").ino;
        assert!(matches!(fs.mkdir(ROOT, b"f", 0, &CALLER), Err(FsError::Exists)));
        assert!(matches!(fs.mknod(ROOT, b"d", Kind::File, 0, 0, &CALLER), Err(FsError::Exists)));
        assert!(matches!(fs.symlink(ROOT, b"f", b"t", &CALLER), Err(FsError::Exists)));
        assert!(matches!(fs.link(file, ROOT, b"d"), Err(FsError::Exists)));
        assert!(matches!(fs.link(dir, ROOT, b"f"), Err(FsError::Exists)));
    }

    #[test]
    fn making_moves_the_times_of_the_parent_and_counts_subdirectories() {
        let fs = scratch();
        let before = Time { secs: 5, nanos: 0 };
        let rewind = || fs.inode(ROOT).unwrap().meta().modified(before);
        let touched = |fs: &Scratch| fs.attr(ROOT).mtime > before && fs.attr(ROOT).mtime == fs.attr(ROOT).ctime;
        rewind();
        let file = fs.file(ROOT, "f").ino;
        assert!(touched(&fs) && fs.attr(ROOT).nlink == 2);
        rewind();
        fs.dir(ROOT, "d");
        assert!(touched(&fs) && fs.attr(ROOT).nlink == 3);
        rewind();
        fs.link(file, ROOT, b"l").unwrap();
        assert!(touched(&fs));
        rewind();
        fs.unlink(ROOT, b"l").unwrap();
        assert!(touched(&fs));
        rewind();
        fs.rmdir(ROOT, b"d").unwrap();
        assert!(touched(&fs) && fs.attr(ROOT).nlink == 2);
        rewind();
        assert!(fs.rmdir(ROOT, b"f").is_err() && fs.unlink(ROOT, b"x").is_err());
        assert_eq!(fs.attr(ROOT).mtime, before);
    }

    // promise: S-04
    #[test]
    fn links_are_counted_up_to_the_limit() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        for i in 1..LINK_MAX {
            let name = format!("l{i}");
            assert_eq!(fs.link(ino, ROOT, name.as_bytes()).unwrap().nlink, i + 1);
        }
        assert!(matches!(fs.link(ino, ROOT, b"one more"), Err(FsError::TooManyLinks)));
        assert_eq!(fs.names(ROOT).len(), LINK_MAX as usize);
        fs.unlink(ROOT, b"f").unwrap();
        assert_eq!(fs.link(ino, ROOT, b"one more").unwrap().nlink, LINK_MAX);
    }

    #[test]
    fn links_to_directories_and_to_removed_files_are_refused() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        assert!(matches!(fs.link(dir, ROOT, b"l"), Err(FsError::NotPermitted)));
        let file = fs.file(ROOT, "f").ino;
        fs.unlink(ROOT, b"f").unwrap();
        assert!(matches!(fs.link(file, ROOT, b"l"), Err(FsError::NotFound)));
        fs.rmdir(ROOT, b"d").unwrap();
        assert_eq!(fs.names(ROOT), [""; 0]);
    }

    #[test]
    fn symbolic_links_keep_their_target() {
        let fs = scratch();
        let longest = [b'/'; TARGET_MAX];
        let link = fs.symlink(ROOT, b"l", &longest, &CALLER).unwrap();
        assert_eq!((link.kind, link.mode, link.size), (Kind::Symlink, 0o777, TARGET_MAX as u64));
        assert_eq!(fs.readlink(link.ino).unwrap(), longest);
        assert!(matches!(fs.symlink(ROOT, b"m", &[b'/'; TARGET_MAX + 1], &CALLER), Err(FsError::NameTooLong)));
        assert!(matches!(fs.symlink(ROOT, b"m", b"", &CALLER), Err(FsError::NotFound)));
        assert!(matches!(fs.readlink(ROOT), Err(FsError::Invalid)));
    }

    // promise: S-06
    #[test]
    fn an_unlinked_file_lives_until_it_is_forgotten() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        fs.lookup(ROOT, b"f").unwrap();
        fs.unlink(ROOT, b"f").unwrap();
        assert_eq!(fs.attr(ino).nlink, 0);
        fs.write(ino, 0, b"still here", WriteMode::default()).unwrap();
        fs.forget(ino, 1);
        let mut buf = [0; 20];
        assert_eq!(fs.read(ino, 0, &mut buf).unwrap(), 10);
        fs.forget(ino, 1);
        assert!(matches!(fs.getattr(ino), Err(FsError::Stale(_))));
        assert_eq!((fs.store.usage().used, fs.inodes()), (0, 1));
    }

    #[test]
    fn a_forgotten_file_lives_until_it_is_unlinked() {
        let fs = scratch();
        let ino = fs.file(ROOT, "f").ino;
        fs.forget(ino, 1);
        assert_eq!(fs.attr(ino).nlink, 1);
        fs.unlink(ROOT, b"f").unwrap();
        assert!(matches!(fs.getattr(ino), Err(FsError::Stale(_))));
    }

    #[test]
    fn only_empty_directories_are_removed() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        fs.file(dir, "f");
        assert!(matches!(fs.rmdir(ROOT, b"d"), Err(FsError::NotEmpty)));
        assert!(matches!(fs.rmdir(dir, b"f"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.unlink(ROOT, b"d"), Err(FsError::IsDirectory)));
        assert!(matches!(fs.rmdir(ROOT, b"x"), Err(FsError::NotFound)));
        assert!(matches!(fs.rmdir(dir, b"."), Err(FsError::Invalid)));
        assert!(matches!(fs.rmdir(dir, b".."), Err(FsError::NotEmpty)));
        fs.unlink(dir, b"f").unwrap();
        fs.rmdir(ROOT, b"d").unwrap();
    }

    #[test]
    fn a_removed_directory_takes_nothing_new() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let file = fs.file(ROOT, "f").ino;
        fs.rmdir(ROOT, b"d").unwrap();
        assert_eq!(fs.attr(dir).nlink, 0);
        assert!(matches!(fs.mkdir(dir, b"x", 0, &CALLER), Err(FsError::NotFound)));
        assert!(matches!(fs.link(file, dir, b"x"), Err(FsError::NotFound)));
        assert!(matches!(fs.mv(ROOT, "f", dir, "x"), Err(FsError::NotFound)));
        assert!(matches!(fs.lookup(dir, b"x"), Err(FsError::NotFound)));
        assert!(matches!(fs.readdir(dir, 0, &mut |_| true), Err(FsError::NotFound)));
        assert_eq!(fs.attr(file).nlink, 1);
        fs.forget(dir, 1);
        assert!(matches!(fs.getattr(dir), Err(FsError::Stale(_))));
    }

    #[test]
    fn inodes_are_limited_and_come_back() {
        // A file counts 320 and 160 and its name, a directory 832 more; of 16 bytes 15 are for names.
        let fs = limited(1 << 20, (481 + 1313) * 16 / 15 + 1);
        let ino = fs.file(ROOT, "a").ino;
        fs.dir(ROOT, "b");
        assert_eq!(fs.statfs().inodes_free, 0);
        let make = || fs.mknod(ROOT, b"c", Kind::File, 0o644, 0, &CALLER);
        assert!(matches!(make(), Err(FsError::NoInodes)));
        assert!(matches!(fs.link(ino, ROOT, b"c"), Err(FsError::NoInodes)));
        assert!(matches!(fs.mv(ROOT, "a", ROOT, "longer"), Err(FsError::NoInodes)));
        let whiteout = RenameFlags { whiteout: true, ..RenameFlags::default() };
        assert!(matches!(fs.rename(ROOT, b"a", ROOT, b"c", whiteout), Err(FsError::NoInodes)));
        fs.unlink(ROOT, b"a").unwrap();
        assert!(make().is_err() && fs.losses().len() == 1, "a is still referenced");
        fs.forget(ino, 1);
        make().unwrap();
        assert_eq!(fs.names(ROOT), ["b", "c"]);
    }

    #[test]
    fn a_deep_tree_is_dropped_without_recursion() {
        let fs = scratch();
        let mut at = ROOT;
        for _ in 0..100_000 {
            at = fs.dir(at, "d").ino;
        }
        assert!(matches!(fs.mv(ROOT, "d", at, "d"), Err(FsError::Invalid)), "the way up is walked, not recursed");
        drop(fs);
    }
}
