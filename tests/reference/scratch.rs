//! The target under test: [`Scratch`] without a kernel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{
    Attr, Creator, Fallocate as FallocateMode, FsError, Kind, ROOT, RenameFlags, Scratch, ScratchOptions, SetAttr,
    SetTime, Time, WriteMode, XattrMode,
};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::{Store, StoreError};

use crate::ops::{Allocate, Call, Flag, Operation, Renaming, Special, TARGETS};
use crate::target::{OLD, Outcome, Seen, Target, Tree, Value, join, split};

pub struct InProcess {
    fs: Scratch,
    store: Arc<Store>,
    caller: Creator,
    compare_ctime: bool,
    /// Inodes with a reference of ours.
    open: Vec<u64>,
}

impl InProcess {
    pub fn new(uid: u32, gid: u32, compare_ctime: bool) -> Self {
        let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
        let store = Store::new(Box::new(MemoryBacking::new(2)), keyring, 1 << 26);
        let options = ScratchOptions { memory: 1 << 24, uid, gid, mode: 0o755 };
        let fs = Scratch::new(store.clone(), options);
        Self { fs, store, caller: Creator { uid, gid, umask: 0o022 }, compare_ctime, open: Vec::new() }
    }

    /// Closes everything, removes everything, and checks that nothing is left.
    pub fn finish(self) {
        self.open.iter().for_each(|&ino| self.fs.forget(ino, 1));
        self.remove_below(ROOT);
        let left = self.fs.statfs();
        assert_eq!(left.inodes_free, left.inodes - 1, "only the root is left");
        assert_eq!((self.store.usage().used, self.store.keyring().live_slots()), (0, 0), "no space is left taken");
    }

    fn remove_below(&self, dir: u64) {
        for (name, ino, kind) in self.entries(dir) {
            if kind == Kind::Directory {
                self.remove_below(ino);
                self.fs.rmdir(dir, &name).unwrap();
            } else {
                self.fs.unlink(dir, &name).unwrap();
            }
        }
    }

    fn entries(&self, dir: u64) -> Vec<(Vec<u8>, u64, Kind)> {
        let mut entries = Vec::new();
        let mut take = |entry: runseal::fs::DirEntry<'_>| {
            entries.push((entry.name.to_vec(), entry.ino, entry.kind));
            true
        };
        self.fs.readdir(dir, 2, &mut take).unwrap();
        entries
    }

    /// The inode of a path, without a reference.
    fn find(&self, path: &str) -> Result<u64, FsError> {
        let mut ino = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            ino = self.drop_reference(self.fs.lookup(ino, name.as_bytes()))?.ino;
        }
        Ok(ino)
    }

    fn parent<'a>(&self, path: &'a str) -> Result<(u64, &'a [u8]), FsError> {
        let (dir, name) = split(path);
        Ok((self.find(dir)?, name.as_bytes()))
    }

    fn drop_reference(&self, made: Result<Attr, FsError>) -> Result<Attr, FsError> {
        made.inspect(|attr| self.fs.forget(attr.ino, 1))
    }

    fn made(&self, made: Result<Attr, FsError>) -> Result<Value, FsError> {
        self.drop_reference(made).map(|_| Value::Nothing)
    }

    fn set(&self, path: &str, set: SetAttr) -> Result<Value, FsError> {
        self.fs.setattr(self.find(path)?, &set).map(|_| Value::Nothing)
    }

    fn read(&self, ino: u64, offset: u64, len: usize) -> Result<Vec<u8>, FsError> {
        let mut buf = vec![0xee; len];
        let n = self.fs.read(ino, offset, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    fn call(&mut self, call: &Call) -> Result<Value, FsError> {
        use Operation::*;
        let fs = &self.fs;
        let nothing = |()| Value::Nothing;
        match call {
            Create(at, mode) => {
                let (dir, name) = self.parent(at)?;
                self.made(fs.mknod(dir, name, Kind::File, *mode, 0, &self.caller))
            }
            Mkdir(at, mode) => {
                let (dir, name) = self.parent(at)?;
                self.made(fs.mkdir(dir, name, *mode, &self.caller))
            }
            Mknod(at, kind, mode) => {
                let (dir, name) = self.parent(at)?;
                let kind = match kind {
                    Special::Fifo => Kind::Fifo,
                    Special::Socket => Kind::Socket,
                };
                self.made(fs.mknod(dir, name, kind, *mode, 0, &self.caller))
            }
            Symlink(at, target) => {
                let (dir, name) = self.parent(at)?;
                self.made(fs.symlink(dir, name, TARGETS[*target].as_bytes(), &self.caller))
            }
            Link(at, new) => {
                let ino = self.find(at)?;
                let (dir, name) = self.parent(new)?;
                self.made(fs.link(ino, dir, name))
            }
            Unlink(at) => {
                let (dir, name) = self.parent(at)?;
                fs.unlink(dir, name).map(nothing)
            }
            Rmdir(at) => {
                let (dir, name) = self.parent(at)?;
                fs.rmdir(dir, name).map(nothing)
            }
            Rename(at, new, flags) => {
                let ((dir, name), (new_dir, new_name)) = (self.parent(at)?, self.parent(new)?);
                let is = |flag| *flags == flag;
                let flags = RenameFlags {
                    no_replace: is(Renaming::NoReplace),
                    exchange: is(Renaming::Exchange),
                    whiteout: is(Renaming::Whiteout),
                };
                fs.rename(dir, name, new_dir, new_name, flags).map(nothing)
            }
            Write(at, offset, data) => {
                fs.write(self.find(at)?, *offset, data, WriteMode::default())?;
                Ok(Value::Count(data.len() as u64))
            }
            Read(at, offset, len) => self.read(self.find(at)?, *offset, *len).map(Value::Bytes),
            Truncate(at, size) => self.set(at, SetAttr { size: Some(*size), ..SetAttr::default() }),
            Fallocate(at, mode, offset, len) => {
                let mode = match mode {
                    Allocate::Grow => FallocateMode::Allocate { keep_size: false },
                    Allocate::KeepSize => FallocateMode::Allocate { keep_size: true },
                    Allocate::Punch => FallocateMode::Punch,
                    Allocate::Zero => FallocateMode::Zero { keep_size: false },
                    Allocate::ZeroKeepSize => FallocateMode::Zero { keep_size: true },
                };
                fs.fallocate(self.find(at)?, *offset, *len, mode).map(nothing)
            }
            Copy(from, from_offset, to, to_offset, len) => {
                let (from, to) = (self.find(from)?, self.find(to)?);
                fs.copy_file_range(from, *from_offset, to, *to_offset, *len).map(Value::Count)
            }
            Chmod(at, mode) => self.set(at, SetAttr { mode: Some(*mode), ..SetAttr::default() }),
            Chown(at, uid, gid) => self.set(at, SetAttr { uid: *uid, gid: *gid, ..SetAttr::default() }),
            SetTimes(at, secs) => {
                let time = Some(SetTime::At(Time { secs: *secs, nanos: 7 }));
                self.set(at, SetAttr { atime: time, mtime: time, ..SetAttr::default() })
            }
            SetXattr(at, name, value, flag) => {
                let mode = match flag {
                    Flag::Any => XattrMode::Any,
                    Flag::Create => XattrMode::Create,
                    Flag::Replace => XattrMode::Replace,
                };
                fs.setxattr(self.find(at)?, name.as_bytes(), value, mode).map(nothing)
            }
            RemoveXattr(at, name) => fs.removexattr(self.find(at)?, name.as_bytes()).map(nothing),
            List(at) => {
                let ino = self.find(at)?;
                if fs.getattr(ino)?.kind != Kind::Directory {
                    return Err(FsError::NotDirectory);
                }
                let mut names: Vec<String> =
                    self.entries(ino).into_iter().map(|entry| String::from_utf8(entry.0).unwrap()).collect();
                names.sort();
                Ok(Value::Names(names))
            }
            Open(at) => {
                let (dir, name) = self.parent(at)?;
                let attr = fs.lookup(dir, name)?;
                if attr.kind == Kind::Directory {
                    fs.forget(attr.ino, 1);
                    return Err(FsError::IsDirectory);
                }
                self.open.push(attr.ino);
                Ok(Value::Nothing)
            }
            WriteOpen(_, _, _) | ReadOpen(_) | Close(_) if self.open.is_empty() => Ok(Value::Nothing),
            WriteOpen(which, offset, data) => {
                fs.write(self.open[which % self.open.len()], *offset, data, WriteMode::default())?;
                Ok(Value::Count(data.len() as u64))
            }
            ReadOpen(which) => self.read(self.open[which % self.open.len()], 0, 1 << 16).map(Value::Bytes),
            Close(which) => {
                let ino = self.open.remove(which % self.open.len());
                fs.forget(ino, 1);
                Ok(Value::Nothing)
            }
        }
    }

    fn walk(&self, visit: &mut dyn FnMut(String, u64)) {
        let mut stack = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = stack.pop() {
            visit(path.clone(), ino);
            if self.fs.getattr(ino).unwrap().kind == Kind::Directory {
                for (name, ino, _) in self.entries(ino) {
                    stack.push((join(&path, std::str::from_utf8(&name).unwrap()), ino));
                }
            }
        }
    }

    fn seen(&self, ino: u64) -> Seen {
        let attr = self.fs.getattr(ino).unwrap();
        let content = match attr.kind {
            Kind::File => self.read(ino, 0, attr.size as usize + 1).unwrap(),
            Kind::Symlink => self.fs.readlink(ino).unwrap(),
            _ => Vec::new(),
        };
        assert!(attr.kind == Kind::Directory || attr.size == content.len() as u64);
        let names = self.fs.listxattr(ino).unwrap();
        let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let xattr = |name: &[u8]| (String::from_utf8(name.to_vec()).unwrap(), self.fs.getxattr(ino, name).unwrap());
        Seen {
            mode: kind_bits(attr.kind) | attr.mode,
            nlink: u64::from(attr.nlink),
            uid: attr.uid,
            gid: attr.gid,
            rdev: u64::from(attr.rdev),
            content,
            xattrs: names.map(xattr).collect(),
            same_as: String::new(),
            modified: attr.mtime.secs != OLD,
            changed: self.compare_ctime && attr.ctime.secs != OLD,
        }
    }
}

impl Target for InProcess {
    fn name(&self) -> &str {
        "scratch"
    }

    fn apply(&mut self, call: &Call) -> Outcome {
        self.call(call).map_err(errno)
    }

    fn settle(&mut self) {
        let old = Time { secs: OLD, nanos: 0 };
        let set = SetAttr { mtime: Some(SetTime::At(old)), ctime: Some(old), ..SetAttr::default() };
        self.walk(&mut |_, ino| {
            self.fs.setattr(ino, &set).unwrap();
        });
    }

    fn tree(&mut self) -> Tree {
        #[cfg(debug_assertions)]
        self.fs.check();
        let mut inos = BTreeMap::new();
        self.walk(&mut |path, ino| {
            inos.insert(path, ino);
        });
        let mut first: HashMap<u64, String> = HashMap::new();
        let mut see = |(path, ino): (String, u64)| {
            let same_as = first.entry(ino).or_insert_with(|| path.clone()).clone();
            (path, Seen { same_as, ..self.seen(ino) })
        };
        Tree(inos.into_iter().map(&mut see).collect())
    }
}

fn kind_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Directory => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
    }
}

fn errno(error: FsError) -> i32 {
    match error {
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::NotDirectory => libc::ENOTDIR,
        FsError::IsDirectory => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::Invalid => libc::EINVAL,
        FsError::Access => libc::EACCES,
        FsError::NotPermitted => libc::EPERM,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::TooManyLinks => libc::EMLINK,
        FsError::TooLarge => libc::EFBIG,
        FsError::TooBig => libc::E2BIG,
        FsError::NoInodes | FsError::Store(StoreError::NoSpace) => libc::ENOSPC,
        FsError::NoAttribute => libc::ENODATA,
        FsError::Range => libc::ERANGE,
        FsError::NotSupported => libc::EOPNOTSUPP,
        other => panic!("{other}"),
    }
}
