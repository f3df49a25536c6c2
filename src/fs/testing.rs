//! What the tests of this layer share.

use super::{Attr, Creator, DirEntry, FsError, Kind, ROOT, RenameFlags, Scratch, ScratchOptions, SetAttr};
use crate::backing::MemoryBacking;
use crate::crypt::Keyring;
use crate::spec::{EngineChoice, MemoryLock};
use crate::store::Store;

/// Whoever makes things when it does not matter who.
pub(super) const CALLER: Creator = Creator { uid: 1000, gid: 100, umask: 0o022 };

/// 1 GiB of space and of memory.
pub(super) fn scratch() -> Scratch {
    limited(1 << 30, 1 << 30)
}

pub(super) fn limited(bytes: u64, memory: u64) -> Scratch {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, bytes);
    Scratch::new(store, ScratchOptions { memory, uid: 0, gid: 0, mode: 0o755 })
}

/// Short forms; names are text, the caller is [`CALLER`].
impl Scratch {
    pub(super) fn file(&self, parent: u64, name: &str) -> Attr {
        self.mknod(parent, name.as_bytes(), Kind::File, 0o644, 0, &CALLER).unwrap()
    }

    pub(super) fn dir(&self, parent: u64, name: &str) -> Attr {
        self.mkdir(parent, name.as_bytes(), 0o755, &CALLER).unwrap()
    }

    pub(super) fn ino(&self, parent: u64, name: &str) -> Option<u64> {
        let attr = self.lookup(parent, name.as_bytes()).ok()?;
        self.forget(attr.ino, 1);
        Some(attr.ino)
    }

    pub(super) fn mv(&self, parent: u64, name: &str, new_parent: u64, new_name: &str) -> Result<(), FsError> {
        self.rename(parent, name.as_bytes(), new_parent, new_name.as_bytes(), RenameFlags::default())
    }

    pub(super) fn chmod(&self, ino: u64, mode: u32) -> Attr {
        self.setattr(ino, &SetAttr { mode: Some(mode), ..SetAttr::default() }).unwrap()
    }

    pub(super) fn attr(&self, ino: u64) -> Attr {
        self.getattr(ino).unwrap()
    }

    /// Names behind `cookie` with their cookies, without `.` and `..`.
    pub(super) fn list(&self, ino: u64, cookie: u64) -> Vec<(String, u64)> {
        let mut names = Vec::new();
        let mut take = |entry: DirEntry<'_>| {
            names.push((String::from_utf8_lossy(entry.name).into_owned(), entry.cookie));
            true
        };
        self.readdir(ino, cookie.max(2), &mut take).unwrap();
        names
    }

    pub(super) fn names(&self, ino: u64) -> Vec<String> {
        self.list(ino, 0).into_iter().map(|(name, _)| name).collect()
    }
}

#[test]
fn the_helpers_help() {
    let fs = scratch();
    let dir = fs.dir(ROOT, "d");
    let file = fs.file(dir.ino, "f");
    assert_eq!((fs.ino(dir.ino, "f"), fs.names(dir.ino)), (Some(file.ino), vec!["f".to_owned()]));
}
