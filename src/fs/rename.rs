//! Moving names: renameat2(2).

use std::sync::Arc;

use super::names::check_name;
use super::node::{Directory, Entries, Inode, Meta, Node, entry_memory, inode_memory};
use super::{Creator, FsError, Kind, ROOT, RenameFlags, Scratch, Time};
use crate::sync::{WriteGuard, rank};

impl Scratch {
    /// Moves a name, replacing what has the new one (renameat2(2)). Two names of one inode stay as they are.
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        check_renamed(name)?;
        check_renamed(new_name)?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(FsError::Invalid);
        }
        let (from, to) = (self.inode(parent)?, self.inode(new_parent)?);
        let from = Side { inode: &from, directory: from.directory()?, name };
        let to = Side { inode: &to, directory: to.directory()?, name: new_name };
        let mut moves = None;
        loop {
            let mut locked = Locked::new(&from, &to);
            let step = Move::new(&from, &to, &mut locked, flags)?;
            if step.moves_directory(&from, &to) {
                if moves.is_none() {
                    drop(locked);
                    moves = Some(self.moves.lock());
                    continue;
                }
                self.check_loops(&step, &from, &to, flags)?;
            }
            return self.rename_locked(step, &from, &to, locked, flags);
        }
    }

    /// Refuses to move a directory below itself, or to replace one that holds what is moved.
    fn check_loops(&self, step: &Move, from: &Side<'_>, to: &Side<'_>, flags: RenameFlags) -> Result<(), FsError> {
        if self.is_within(to.inode.ino, step.source.ino)? {
            return Err(FsError::Invalid);
        }
        match &step.target {
            Some(target) if self.is_within(from.inode.ino, target.ino)? => {
                Err(if flags.exchange { FsError::Invalid } else { FsError::NotEmpty })
            }
            _ => Ok(()),
        }
    }

    /// Whether the directory `ino` is `ancestor` or below it. Holding `moves`, the answer stays true.
    fn is_within(&self, mut ino: u64, ancestor: u64) -> Result<bool, FsError> {
        while ino != ancestor {
            if ino == ROOT {
                return Ok(false);
            }
            // Only a directory removed a moment ago has lost its parent.
            ino = self.table.get(ino).ok_or(FsError::NotFound)?.directory()?.parent();
        }
        Ok(true)
    }

    fn rename_locked(
        &self,
        step: Move,
        from: &Side<'_>,
        to: &Side<'_>,
        mut locked: Locked<'_>,
        flags: RenameFlags,
    ) -> Result<(), FsError> {
        let now = Time::now();
        match &step.target {
            Some(target) if Arc::ptr_eq(target, &step.source) => return Ok(()),
            Some(target) if flags.exchange => {
                step.exchange(target, from, to, &mut locked, now);
                return Ok(());
            }
            Some(target) => check_replaceable(&step.source, target)?,
            None => {}
        }
        let whiteout = flags.whiteout.then(|| whiteout(from.inode, now));
        let (before, after) = step.memory(whiteout.as_ref(), from, to);
        let more = after.saturating_sub(before);
        self.take_memory(more)?;
        step.make_room(to).inspect_err(|_| self.store.metadata().give_back(more))?;
        self.store.metadata().give_back(before.saturating_sub(after));
        let whiteout = whiteout.map(|(meta, node)| self.table.create(meta, node));
        step.replace(whiteout, from, to, &mut locked, now);
        // What was replaced is cleared without holding up the directories.
        drop(locked);
        step.target.inspect(|target| self.unlink_inode(target, now));
        self.losses.made(to.inode.ino, to.name);
        Ok(())
    }
}

/// What overlayfs takes for a removed file: a character device 0:0, made by root.
fn whiteout(parent: &Inode, now: Time) -> (Meta, Node) {
    let meta = parent.meta().child(Kind::CharDevice, 0, &Creator { uid: 0, gid: 0, umask: 0 }, now);
    (meta, Node::Special { kind: Kind::CharDevice, rdev: 0 })
}

/// One side of a rename: a directory and a name in it.
struct Side<'a> {
    inode: &'a Inode,
    directory: &'a Directory,
    name: &'a [u8],
}

type EntriesGuard<'a> = WriteGuard<'a, { rank::ENTRIES }, Entries>;

/// The entries of both directories, locked in ascending inode number.
enum Locked<'a> {
    One(EntriesGuard<'a>),
    Two { from: EntriesGuard<'a>, to: EntriesGuard<'a> },
}

impl<'a> Locked<'a> {
    fn new(from: &Side<'a>, to: &Side<'a>) -> Self {
        let lock = |end: &Side<'a>| end.directory.entries.write_nth(end.inode.ino);
        match from.inode.ino.cmp(&to.inode.ino) {
            std::cmp::Ordering::Equal => Self::One(lock(from)),
            std::cmp::Ordering::Less => {
                let from = lock(from);
                Self::Two { from, to: lock(to) }
            }
            std::cmp::Ordering::Greater => {
                let to = lock(to);
                Self::Two { from: lock(from), to }
            }
        }
    }

    fn source(&mut self) -> &mut Entries {
        match self {
            Self::One(entries) | Self::Two { from: entries, .. } => entries,
        }
    }

    fn target(&mut self) -> &mut Entries {
        match self {
            Self::One(entries) | Self::Two { to: entries, .. } => entries,
        }
    }
}

/// What the two names mean while both directories are locked.
struct Move {
    source: Arc<Inode>,
    target: Option<Arc<Inode>>,
}

impl Move {
    fn new(from: &Side<'_>, to: &Side<'_>, locked: &mut Locked<'_>, flags: RenameFlags) -> Result<Self, FsError> {
        let source = locked.source().get(from.name).ok_or(FsError::NotFound)?.clone();
        let target = locked.target().get(to.name).cloned();
        match target {
            Some(_) if flags.no_replace => Err(FsError::Exists),
            None if flags.exchange => Err(FsError::NotFound),
            _ => Ok(Self { source, target }),
        }
    }

    /// Whether a directory leaves its parent or goes for good, so that the tree above it has to stand still.
    fn moves_directory(&self, from: &Side<'_>, to: &Side<'_>) -> bool {
        from.inode.ino != to.inode.ino && (self.source.is_directory() || self.target_directories() > 0)
    }

    /// Bytes of memory that names, and a whiteout, count as before and after.
    fn memory(&self, whiteout: Option<&(Meta, Node)>, from: &Side<'_>, to: &Side<'_>) -> (u64, u64) {
        let (old, new) = (entry_memory(from.name), entry_memory(to.name));
        let replaced = if self.target.is_some() { new } else { 0 };
        let stays = whiteout.map_or(0, |(meta, node)| old + inode_memory(meta, node));
        (old + replaced, new + stays)
    }

    /// The last thing that can fail: an empty directory to be replaced dies, or a new entry is announced.
    fn make_room(&self, to: &Side<'_>) -> Result<(), FsError> {
        match &self.target {
            Some(target) => target.directory().map_or(Ok(()), Directory::die),
            None => to.directory.reserve(),
        }
    }

    fn replace(
        &self,
        whiteout: Option<Arc<Inode>>,
        from: &Side<'_>,
        to: &Side<'_>,
        locked: &mut Locked<'_>,
        now: Time,
    ) {
        let stays = whiteout.is_some();
        let same_directory = from.inode.ino == to.inode.ino;
        if self.target.is_none() && same_directory && !stays {
            locked.source().rename(from.name, to.name);
        } else {
            match whiteout {
                Some(inode) => locked.source().replace(from.name, inode),
                None => locked.source().remove(from.name),
            };
            if locked.target().replace(to.name, self.source.clone()).is_none() {
                locked.target().insert(to.name, self.source.clone());
            }
        }
        if !stays {
            from.directory.release();
        }
        self.source.moved_to(to, now);
        from.inode.moved_subdirectories(0, self.source_directories(), now);
        to.inode.moved_subdirectories(self.source_directories(), self.target_directories(), now);
    }

    fn exchange(&self, target: &Arc<Inode>, from: &Side<'_>, to: &Side<'_>, locked: &mut Locked<'_>, now: Time) {
        locked.source().replace(from.name, target.clone());
        locked.target().replace(to.name, self.source.clone());
        self.source.moved_to(to, now);
        target.moved_to(from, now);
        from.inode.moved_subdirectories(self.target_directories(), self.source_directories(), now);
        to.inode.moved_subdirectories(self.source_directories(), self.target_directories(), now);
    }

    fn source_directories(&self) -> u32 {
        u32::from(self.source.is_directory())
    }

    fn target_directories(&self) -> u32 {
        self.target.as_ref().map_or(0, |target| u32::from(target.is_directory()))
    }
}

impl Inode {
    fn moved_to(&self, end: &Side<'_>, now: Time) {
        if let Node::Directory(directory) = &self.node {
            directory.set_parent(end.inode.ino);
        }
        self.meta().changed(now);
    }

    /// Counts subdirectories that came and went.
    fn moved_subdirectories(&self, came: u32, went: u32, now: Time) {
        let mut meta = self.meta();
        meta.nlink = meta.nlink + came - went;
        meta.modified(now);
    }
}

fn check_renamed(name: &[u8]) -> Result<(), FsError> {
    match name {
        b"." | b".." => Err(FsError::Invalid),
        _ => check_name(name),
    }
}

fn check_replaceable(source: &Inode, target: &Inode) -> Result<(), FsError> {
    match (source.is_directory(), target.is_directory()) {
        (true, false) => Err(FsError::NotDirectory),
        (false, true) => Err(FsError::IsDirectory),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CALLER, scratch};
    use super::*;

    const PLAIN: RenameFlags = RenameFlags { no_replace: false, exchange: false, whiteout: false };
    const NO_REPLACE: RenameFlags = RenameFlags { no_replace: true, ..PLAIN };
    const EXCHANGE: RenameFlags = RenameFlags { exchange: true, ..PLAIN };
    const WHITEOUT: RenameFlags = RenameFlags { whiteout: true, ..PLAIN };

    // promise: S-03
    #[test]
    fn a_file_replaces_a_file() {
        let fs = scratch();
        let (a, b) = (fs.file(ROOT, "a").ino, fs.file(ROOT, "b").ino);
        fs.mv(ROOT, "a", ROOT, "b").unwrap();
        assert_eq!((fs.ino(ROOT, "a"), fs.ino(ROOT, "b")), (None, Some(a)));
        assert_eq!((fs.attr(b).nlink, fs.attr(a).nlink), (0, 1));
        fs.forget(b, 1);
        assert!(matches!(fs.getattr(b), Err(FsError::Stale(_))));
    }

    #[test]
    fn a_directory_replaces_an_empty_directory() {
        let fs = scratch();
        let (a, b, c) = (fs.dir(ROOT, "a").ino, fs.dir(ROOT, "b").ino, fs.dir(ROOT, "c").ino);
        let inside = fs.dir(a, "inside").ino;
        fs.file(c, "f");
        assert!(matches!(fs.mv(ROOT, "a", ROOT, "c"), Err(FsError::NotEmpty)));
        fs.mv(ROOT, "a", ROOT, "b").unwrap();
        assert_eq!(fs.ino(ROOT, "b"), Some(a));
        assert_eq!((fs.attr(b).nlink, fs.attr(ROOT).nlink), (0, 4));
        assert!(matches!(fs.mkdir(b, b"x", 0, &CALLER), Err(FsError::NotFound)));
        // Across directories as well.
        fs.mv(a, "inside", ROOT, "inside").unwrap();
        let d = fs.dir(c, "d").ino;
        fs.mv(ROOT, "inside", c, "d").unwrap();
        assert_eq!(fs.ino(c, "d"), Some(inside));
        assert_eq!((fs.attr(d).nlink, fs.attr(c).nlink, fs.attr(ROOT).nlink, fs.attr(a).nlink), (0, 3, 4, 2));
    }

    #[test]
    fn kinds_must_match() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        fs.file(ROOT, "f");
        fs.file(dir, "g");
        fs.dir(dir, "e");
        assert!(matches!(fs.mv(ROOT, "f", dir, "e"), Err(FsError::IsDirectory)));
        assert!(matches!(fs.mv(ROOT, "d", ROOT, "f"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.mv(dir, "e", ROOT, "f"), Err(FsError::NotDirectory)));
        assert!(matches!(fs.mv(dir, "g", ROOT, "d"), Err(FsError::NotEmpty)), "d holds what is moved");
    }

    #[test]
    fn a_directory_stays_out_of_itself() {
        let fs = scratch();
        let a = fs.dir(ROOT, "a").ino;
        let b = fs.dir(a, "b").ino;
        let c = fs.dir(b, "c").ino;
        for (at, name) in [(a, "x"), (b, "x"), (c, "x"), (a, "b"), (b, "c")] {
            assert!(matches!(fs.mv(ROOT, "a", at, name), Err(FsError::Invalid)), "{name}");
        }
        assert!(matches!(fs.mv(b, "c", ROOT, "a"), Err(FsError::NotEmpty)));
        assert!(matches!(fs.rename(b, b"c", ROOT, b"a", EXCHANGE), Err(FsError::Invalid)));
        assert!(matches!(fs.rename(ROOT, b"a", b, b"c", EXCHANGE), Err(FsError::Invalid)));
        fs.mv(a, "b", ROOT, "b").unwrap();
        fs.mv(ROOT, "a", c, "a").unwrap();
    }

    #[test]
    fn a_moved_directory_has_a_new_parent() {
        let fs = scratch();
        let (a, b) = (fs.dir(ROOT, "a").ino, fs.dir(ROOT, "b").ino);
        let d = fs.dir(a, "d").ino;
        fs.mv(a, "d", b, "e").unwrap();
        assert_eq!(fs.lookup(d, b"..").unwrap().ino, b);
        assert_eq!((fs.attr(a).nlink, fs.attr(b).nlink), (2, 3));
        fs.rmdir(ROOT, b"a").unwrap();
        assert!(matches!(fs.rmdir(ROOT, b"b"), Err(FsError::NotEmpty)));
        let mut dots = Vec::new();
        fs.readdir(d, 0, &mut |entry| {
            dots.push(entry.ino);
            true
        })
        .unwrap();
        assert_eq!(dots, [d, b]);
    }

    #[test]
    fn two_names_of_one_inode_stay() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let ino = fs.file(ROOT, "a").ino;
        fs.link(ino, dir, b"b").unwrap();
        fs.mv(ROOT, "a", dir, "b").unwrap();
        fs.mv(ROOT, "a", ROOT, "a").unwrap();
        fs.mv(ROOT, "d", ROOT, "d").unwrap();
        fs.rename(ROOT, b"a", dir, b"b", WHITEOUT).unwrap();
        fs.rename(ROOT, b"a", dir, b"b", EXCHANGE).unwrap();
        assert_eq!((fs.ino(ROOT, "a"), fs.ino(dir, "b"), fs.attr(ino).nlink), (Some(ino), Some(ino), 2));
        assert!(matches!(fs.rename(ROOT, b"a", dir, b"b", NO_REPLACE), Err(FsError::Exists)));
    }

    #[test]
    fn no_replace_replaces_nothing() {
        let fs = scratch();
        let (a, b) = (fs.file(ROOT, "a").ino, fs.file(ROOT, "b").ino);
        assert!(matches!(fs.rename(ROOT, b"a", ROOT, b"b", NO_REPLACE), Err(FsError::Exists)));
        fs.rename(ROOT, b"a", ROOT, b"c", NO_REPLACE).unwrap();
        assert_eq!((fs.ino(ROOT, "b"), fs.ino(ROOT, "c")), (Some(b), Some(a)));
    }

    #[test]
    fn exchange_swaps_anything() {
        let fs = scratch();
        let (a, b) = (fs.dir(ROOT, "a").ino, fs.dir(ROOT, "b").ino);
        let (d, f) = (fs.dir(a, "x").ino, fs.file(b, "y").ino);
        fs.rename(a, b"x", b, b"y", EXCHANGE).unwrap();
        assert_eq!((fs.ino(a, "x"), fs.ino(b, "y")), (Some(f), Some(d)));
        assert_eq!((fs.attr(a).nlink, fs.attr(b).nlink, fs.attr(d).nlink), (2, 3, 2));
        assert_eq!(fs.lookup(d, b"..").unwrap().ino, b);
        fs.rename(ROOT, b"a", ROOT, b"b", EXCHANGE).unwrap();
        assert_eq!((fs.ino(ROOT, "a"), fs.ino(ROOT, "b")), (Some(b), Some(a)));
        assert!(matches!(fs.rename(a, b"x", a, b"none", EXCHANGE), Err(FsError::NotFound)));
        for more in [NO_REPLACE, WHITEOUT] {
            let flags = RenameFlags { exchange: true, ..more };
            assert!(matches!(fs.rename(a, b"x", b, b"y", flags), Err(FsError::Invalid)));
        }
    }

    #[test]
    fn whiteout_leaves_a_character_device() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let (a, b) = (fs.file(dir, "a").ino, fs.file(ROOT, "b").ino);
        for (from, name, to, new_name, moved) in [(dir, "a", ROOT, "b", a), (ROOT, "b", ROOT, "c", a)] {
            fs.rename(from, name.as_bytes(), to, new_name.as_bytes(), WHITEOUT).unwrap();
            assert_eq!(fs.ino(to, new_name), Some(moved));
            let left = fs.lookup(from, name.as_bytes()).unwrap();
            assert_eq!((left.kind, left.rdev, left.mode, left.nlink), (Kind::CharDevice, 0, 0, 1));
        }
        assert_eq!(fs.attr(b).nlink, 0);
        assert!(matches!(fs.rmdir(ROOT, b"d"), Err(FsError::NotEmpty)));
        let removed = fs.dir(ROOT, "removed").ino;
        fs.rmdir(ROOT, b"removed").unwrap();
        let free = fs.statfs().inodes_free;
        assert!(matches!(fs.rename(ROOT, b"c", removed, b"x", WHITEOUT), Err(FsError::NotFound)));
        assert_eq!(fs.statfs().inodes_free, free);
    }

    #[test]
    fn names_are_checked() {
        let fs = scratch();
        let dir = fs.dir(ROOT, "d").ino;
        let long = "n".repeat(256);
        for dot in [".", ".."] {
            assert!(matches!(fs.mv(dir, dot, ROOT, "x"), Err(FsError::Invalid)));
            assert!(matches!(fs.mv(ROOT, "d", ROOT, dot), Err(FsError::Invalid)));
        }
        assert!(matches!(fs.mv(ROOT, &long, ROOT, "x"), Err(FsError::NameTooLong)));
        assert!(matches!(fs.mv(ROOT, "d", ROOT, &long), Err(FsError::NameTooLong)));
        assert!(matches!(fs.mv(ROOT, "x", ROOT, "y"), Err(FsError::NotFound)));
    }

    #[test]
    fn times_of_both_parents_and_the_status_of_the_moved_change() {
        let fs = scratch();
        let (a, b) = (fs.dir(ROOT, "a").ino, fs.dir(ROOT, "b").ino);
        let f = fs.file(a, "f").ino;
        let before = Time { secs: 1, nanos: 1 };
        [a, b, f].into_iter().for_each(|ino| fs.inode(ino).unwrap().meta().modified(before));
        fs.mv(a, "f", b, "f").unwrap();
        assert!([a, b].into_iter().all(|ino| fs.attr(ino).mtime > before && fs.attr(ino).ctime > before));
        assert!(fs.attr(f).mtime == before && fs.attr(f).ctime > before);
    }
}
