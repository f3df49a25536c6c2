//! Names: looking up, making, linking, removing, listing. Moving is in `rename.rs`.

use std::sync::Arc;

use super::dir::{COOKIE_PARENT, COOKIE_SELF, Entries, entry_memory};
use super::file::File;
use super::inode::{Inode, Node, inode_memory};
use super::{Attr, Caller, DirEntry, Directory, FsError, Kind, LINK_MAX, NAME_MAX, Scratch, Time};

/// Longest target of a symbolic link: `PATH_MAX` without the NUL byte.
const TARGET_MAX: usize = 4095;
/// Entries copied out of a directory under one hold of its lock.
const BATCH: usize = 32;

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
        caller: &Caller,
    ) -> Result<Attr, FsError> {
        let node = match kind {
            Kind::File => Node::File(File::new(self.store.clone())),
            Kind::Fifo | Kind::Socket => Node::Special { kind, rdev: 0 },
            Kind::CharDevice | Kind::BlockDevice => Node::Special { kind, rdev },
            Kind::Directory | Kind::Symlink => return Err(FsError::Invalid),
        };
        self.make(parent, name, mode, caller, node)
    }

    /// Makes a directory. Takes a reference.
    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Result<Attr, FsError> {
        self.make(parent, name, mode, caller, Node::Directory(Box::new(Directory::new(parent))))
    }

    /// Makes a symbolic link to `target`, of 1 to 4095 bytes. Takes a reference.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], caller: &Caller) -> Result<Attr, FsError> {
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

    /// Hands entries behind `cookie` (0: from the start) to `take` until it answers `false` (that entry counts as not
    /// taken). No lock is held meanwhile: `take` may call this file system.
    pub fn readdir(&self, ino: u64, cookie: u64, take: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<(), FsError> {
        self.walk(ino, cookie, false, &mut |entry, _| take(entry))
    }

    /// As [`Scratch::readdir`], with attributes; takes a reference on each entry taken, except `.` and `..`.
    pub fn readdirplus(
        &self,
        ino: u64,
        cookie: u64,
        take: &mut dyn FnMut(DirEntry<'_>, &Attr) -> bool,
    ) -> Result<(), FsError> {
        self.walk(ino, cookie, true, &mut |entry, inode| take(entry, &inode.attr()))
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

    fn make(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller, node: Node) -> Result<Attr, FsError> {
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

    /// Lists a directory. With `referenced`, each entry taken keeps a reference.
    fn walk(
        &self,
        ino: u64,
        cookie: u64,
        referenced: bool,
        take: &mut dyn FnMut(DirEntry<'_>, &Inode) -> bool,
    ) -> Result<(), FsError> {
        let inode = self.inode(ino)?;
        let directory = inode.directory()?;
        if directory.is_dead() {
            return Err(FsError::NotFound);
        }
        if !self.walk_dots(&inode, directory, cookie, take) {
            return Ok(());
        }
        let mut cookie = cookie.max(COOKIE_PARENT);
        let mut batch = Batch::default();
        loop {
            batch.fill(&directory.entries.read(), cookie, referenced);
            let taken = batch.iter().take_while(|(entry, inode)| take(*entry, inode)).count();
            if referenced {
                batch.rows[taken..].iter().for_each(|row| self.forget(row.inode.ino, 1));
            }
            if taken < BATCH {
                return Ok(());
            }
            cookie = batch.rows[taken - 1].cookie;
            // Before the directory is locked again: what has died meanwhile is cleared here.
            batch.clear();
        }
    }

    /// Hands out `.` and `..`; `false` when `take` has had enough.
    fn walk_dots(
        &self,
        inode: &Arc<Inode>,
        directory: &Directory,
        cookie: u64,
        take: &mut dyn FnMut(DirEntry<'_>, &Inode) -> bool,
    ) -> bool {
        let dot = |name, inode: &Inode, cookie| DirEntry { name, ino: inode.ino, kind: Kind::Directory, cookie };
        if cookie < COOKIE_SELF && !take(dot(b".", inode, COOKIE_SELF), inode) {
            return false;
        }
        if cookie < COOKIE_PARENT {
            // A parent can be missing only when this directory has been removed a moment ago.
            let parent = self.table.get(directory.parent()).unwrap_or_else(|| inode.clone());
            return take(dot(b"..", &parent, COOKIE_PARENT), &parent);
        }
        true
    }
}

/// Entries copied out of a directory.
#[derive(Default)]
struct Batch {
    names: Vec<u8>,
    rows: Vec<Row>,
}

struct Row {
    /// Where the name ends in [`Batch::names`].
    end: usize,
    cookie: u64,
    inode: Arc<Inode>,
}

impl Batch {
    /// Takes up to [`BATCH`] entries behind `cookie`, each with a reference if asked.
    fn fill(&mut self, entries: &Entries, cookie: u64, referenced: bool) {
        for (cookie, name, inode) in entries.after(cookie).take(BATCH) {
            if referenced {
                inode.acquire();
            }
            self.names.extend_from_slice(name);
            self.rows.push(Row { end: self.names.len(), cookie, inode: inode.clone() });
        }
    }

    fn clear(&mut self) {
        self.names.clear();
        self.rows.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (DirEntry<'_>, &Inode)> {
        let starts = std::iter::once(0).chain(self.rows.iter().map(|row| row.end));
        starts.zip(&self.rows).map(|(start, row)| {
            let Row { end, cookie, inode } = row;
            let name = &self.names[start..*end];
            (DirEntry { name, ino: inode.ino, kind: inode.kind(), cookie: *cookie }, &**inode)
        })
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
    fn listing_starts_with_dots_and_goes_on_behind_any_cookie() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let names: Vec<String> = (0..200).map(|i| format!("{i}")).collect();
        for name in &names {
            fs.file(dir, name);
        }
        let mut all = Vec::new();
        fs.readdir(dir, 0, &mut |e| {
            all.push((e.name.to_vec(), e.ino, e.kind, e.cookie));
            true
        })
        .unwrap();
        assert_eq!(all[0], (b".".to_vec(), dir, Kind::Directory, 1));
        assert_eq!(all[1], (b"..".to_vec(), ROOT, Kind::Directory, 2));
        assert_eq!(fs.names(dir), names);
        for from in 0..all.len() {
            let mut next = None;
            let take = &mut |e: DirEntry<'_>| {
                next = Some(e.name.to_vec());
                false
            };
            fs.readdir(dir, all[from].3, take).unwrap();
            assert_eq!(next, all.get(from + 1).map(|e| e.0.clone()));
        }
        fs.readdir(dir, u64::MAX, &mut |_| panic!("there is nothing behind the last cookie")).unwrap();
    }

    // promise: S-05
    #[test]
    fn a_listing_survives_changes() {
        let fs = scratch();
        for i in 0..1000 {
            fs.file(ROOT, &format!("old{i}"));
        }
        let mut seen = Vec::new();
        let mut cookie = 0;
        while let Some((name, next)) = fs.list(ROOT, cookie).first().cloned() {
            cookie = next;
            let step = seen.len();
            if step < 500 {
                // Remove one behind and one ahead, add one, rename the one just seen.
                let _ = fs.unlink(ROOT, format!("old{}", 999 - step).as_bytes());
                fs.mv(ROOT, &name, ROOT, &format!("seen{step}")).unwrap();
                fs.unlink(ROOT, format!("seen{step}").as_bytes()).unwrap();
                fs.file(ROOT, &format!("new{step}"));
            }
            seen.push(name);
        }
        let expected = (0..500).map(|i| format!("old{i}")).chain((0..500).map(|i| format!("new{i}")));
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }

    #[test]
    fn listing_with_attributes_references_what_was_taken() {
        let fs = scratch();
        let inos: Vec<u64> = (0..100).map(|i| fs.file(ROOT, &format!("{i}")).ino).collect();
        inos.iter().for_each(|&ino| fs.forget(ino, 1));
        let mut taken = 0;
        fs.readdirplus(ROOT, 0, &mut |entry, attr| {
            assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
            taken += 1;
            taken <= 2 + 50
        })
        .unwrap();
        inos.iter().enumerate().for_each(|(i, _)| fs.unlink(ROOT, format!("{i}").as_bytes()).unwrap());
        let alive = |ino: &&u64| fs.getattr(**ino).is_ok();
        assert_eq!(inos.iter().filter(alive).count(), 50);
        inos[..50].iter().for_each(|&ino| fs.forget(ino, 1));
        assert_eq!(inos.iter().filter(alive).count(), 0);
    }

    #[test]
    fn a_lister_may_call_back() {
        let fs = scratch();
        fs.file(ROOT, "a");
        fs.file(ROOT, "b");
        fs.readdir(ROOT, 2, &mut |entry| {
            fs.unlink(ROOT, entry.name).unwrap();
            true
        })
        .unwrap();
        assert_eq!(fs.names(ROOT), [""; 0]);
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
