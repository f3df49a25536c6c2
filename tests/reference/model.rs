//! A model so simple that it is right: every inode in one map, every answer computed from scratch. No ACLs: those are
//! compared with the host.

use std::collections::BTreeMap;

use crate::ops::{Allocate, Call, Flag, Operation, Renaming, Special, TARGETS};
use crate::target::{Outcome, Seen, Target, Tree, Value, join, split};

const ROOT: usize = 0;

pub struct Model {
    /// Never shrinks; an inode's number is its place.
    inodes: Vec<Inode>,
    open: Vec<usize>,
    owner: (u32, u32),
}

#[derive(Clone)]
struct Inode {
    mode: u32,
    uid: u32,
    gid: u32,
    data: Data,
    xattrs: BTreeMap<String, Vec<u8>>,
    modified: bool,
    changed: bool,
}

#[derive(Clone, PartialEq)]
enum Data {
    File(Vec<u8>),
    Directory(BTreeMap<String, usize>),
    Symlink(&'static str),
    Special(u32),
}

impl Model {
    pub fn new(uid: u32, gid: u32) -> Self {
        let mut model = Self { inodes: Vec::new(), open: Vec::new(), owner: (uid, gid) };
        model.add(0o755, gid, Data::Directory(BTreeMap::new()));
        model
    }

    fn add(&mut self, mode: u32, gid: u32, data: Data) -> usize {
        let uid = self.owner.0;
        self.inodes.push(Inode { mode, uid, gid, data, xattrs: BTreeMap::new(), modified: true, changed: true });
        self.inodes.len() - 1
    }

    fn entries(&self, dir: usize) -> Result<&BTreeMap<String, usize>, i32> {
        match &self.inodes[dir].data {
            Data::Directory(entries) => Ok(entries),
            _ => Err(libc::ENOTDIR),
        }
    }

    /// Inserts, replaces or (with `None`) removes an entry.
    fn set_entry(&mut self, (dir, name): (usize, &str), ino: Option<usize>) {
        let Data::Directory(entries) = &mut self.inodes[dir].data else { panic!("{dir} is no directory") };
        match ino {
            Some(ino) => entries.insert(name.to_owned(), ino),
            None => entries.remove(name),
        };
        self.modify(dir);
    }

    fn modify(&mut self, ino: usize) {
        (self.inodes[ino].modified, self.inodes[ino].changed) = (true, true);
    }

    fn is_directory(&self, ino: usize) -> bool {
        matches!(self.inodes[ino].data, Data::Directory(_))
    }

    fn find(&self, path: &str) -> Result<usize, i32> {
        let mut ino = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entries = self.entries(ino)?;
            if name.len() > 255 {
                return Err(libc::ENAMETOOLONG);
            }
            ino = *entries.get(name).ok_or(libc::ENOENT)?;
        }
        Ok(ino)
    }

    /// The directory and name of a path that need not exist.
    fn place<'a>(&self, path: &'a str) -> Result<(usize, &'a str), i32> {
        let (dir, name) = split(path);
        Ok((self.find(dir)?, name))
    }

    fn make(&mut self, path: &str, mode: u32, data: Data) -> Outcome {
        let place = self.place(path)?;
        match self.find(path) {
            Ok(_) => return Err(libc::EEXIST),
            Err(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
        let parent = &self.inodes[place.0];
        let setgid = parent.mode & 0o2000;
        let gid = if setgid != 0 { parent.gid } else { self.owner.1 };
        let mode = match data {
            Data::Directory(_) => mode & 0o1777 & !0o022 | setgid,
            Data::Symlink(_) => 0o777,
            _ => mode & !0o022,
        };
        let ino = self.add(mode, gid, data);
        self.set_entry(place, Some(ino));
        Ok(Value::Nothing)
    }

    fn remove(&mut self, path: &str, directory: bool) -> Outcome {
        let (place, ino) = (self.place(path)?, self.find(path)?);
        match &self.inodes[ino].data {
            Data::Directory(_) if !directory => return Err(libc::EISDIR),
            Data::Directory(entries) if !entries.is_empty() => return Err(libc::ENOTEMPTY),
            Data::Directory(_) => {}
            _ if directory => return Err(libc::ENOTDIR),
            _ => {}
        }
        self.set_entry(place, None);
        self.inodes[ino].changed = true;
        Ok(Value::Nothing)
    }

    fn link(&mut self, path: &str, new: &str) -> Outcome {
        let (ino, place) = (self.find(path)?, self.place(new)?);
        match self.find(new) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) if self.is_directory(ino) => Err(libc::EPERM),
            Err(libc::ENOENT) => {
                self.set_entry(place, Some(ino));
                self.inodes[ino].changed = true;
                Ok(Value::Nothing)
            }
            Err(error) => Err(error),
        }
    }

    fn rename(&mut self, path: &str, new: &str, flags: Renaming) -> Outcome {
        let (from, to) = (self.place(path)?, self.place(new)?);
        let source = self.find(path)?;
        let target = self.find(new).ok();
        match (flags, target) {
            (Renaming::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (Renaming::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        let exchange = flags == Renaming::Exchange;
        if new.starts_with(&format!("{path}/")) {
            return Err(libc::EINVAL);
        }
        if path.starts_with(&format!("{new}/")) {
            return Err(if exchange { libc::EINVAL } else { libc::ENOTEMPTY });
        }
        if Some(source) == target {
            return Ok(Value::Nothing);
        }
        if let Some(target) = target.filter(|_| !exchange) {
            match (self.is_directory(source), &self.inodes[target].data) {
                (true, Data::Directory(entries)) if !entries.is_empty() => return Err(libc::ENOTEMPTY),
                (true, Data::Directory(_)) => {}
                (false, Data::Directory(_)) => return Err(libc::EISDIR),
                (true, _) => return Err(libc::ENOTDIR),
                (false, _) => {}
            }
        }
        let left = match flags {
            Renaming::Exchange => target,
            Renaming::Whiteout => Some(self.whiteout(from.0)),
            _ => None,
        };
        self.set_entry(from, left);
        self.set_entry(to, Some(source));
        self.inodes[source].changed = true;
        if let Some(target) = target {
            self.inodes[target].changed = true;
        }
        Ok(Value::Nothing)
    }

    fn whiteout(&mut self, dir: usize) -> usize {
        let parent = &self.inodes[dir];
        let gid = if parent.mode & 0o2000 != 0 { parent.gid } else { 0 };
        let ino = self.add(0, gid, Data::Special(libc::S_IFCHR));
        self.inodes[ino].uid = 0;
        ino
    }

    fn file(&mut self, ino: usize) -> Result<&mut Vec<u8>, i32> {
        match &mut self.inodes[ino].data {
            Data::File(bytes) => Ok(bytes),
            Data::Directory(_) => Err(libc::EISDIR),
            _ => panic!("only files and directories are opened"),
        }
    }

    fn write(&mut self, ino: usize, offset: u64, data: &[u8]) -> Outcome {
        let bytes = self.file(ino)?;
        if !data.is_empty() {
            let end = offset as usize + data.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(data);
            self.modify(ino);
        }
        Ok(Value::Count(data.len() as u64))
    }

    fn read(&mut self, ino: usize, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        Ok(self.file(ino)?.iter().skip(offset as usize).take(len).copied().collect())
    }

    fn fallocate(&mut self, ino: usize, mode: Allocate, offset: u64, len: u64) -> Outcome {
        let bytes = self.file(ino)?;
        if len == 0 {
            return Err(libc::EINVAL);
        }
        let end = (offset + len) as usize;
        if matches!(mode, Allocate::Grow | Allocate::Zero) {
            bytes.resize(bytes.len().max(end), 0);
        }
        if !matches!(mode, Allocate::Grow | Allocate::KeepSize) {
            let size = bytes.len();
            bytes[size.min(offset as usize)..size.min(end)].fill(0);
        }
        self.modify(ino);
        Ok(Value::Nothing)
    }

    fn copy(&mut self, from: usize, from_offset: u64, to: usize, to_offset: u64, len: u64) -> Outcome {
        let data = self.read(from, from_offset, len as usize)?;
        self.file(to)?;
        if from == to && from_offset.abs_diff(to_offset) < data.len() as u64 {
            return Err(libc::EINVAL);
        }
        self.write(to, to_offset, &data)
    }

    fn chown(&mut self, ino: usize, uid: Option<u32>, gid: Option<u32>) {
        let is_directory = self.is_directory(ino);
        let inode = &mut self.inodes[ino];
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        if !is_directory {
            inode.mode &= if inode.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        }
        inode.changed = true;
    }

    fn set_xattr(&mut self, ino: usize, name: &str, value: &[u8], flag: Flag) -> Outcome {
        let inode = &mut self.inodes[ino];
        if name.starts_with("user.") && !matches!(inode.data, Data::File(_) | Data::Directory(_)) {
            return Err(libc::EPERM);
        }
        match (flag, inode.xattrs.contains_key(name)) {
            (Flag::Create, true) => return Err(libc::EEXIST),
            (Flag::Replace, false) => return Err(libc::ENODATA),
            _ => {}
        }
        inode.xattrs.insert(name.to_owned(), value.to_owned());
        inode.changed = true;
        Ok(Value::Nothing)
    }

    fn remove_xattr(&mut self, ino: usize, name: &str) -> Outcome {
        let inode = &mut self.inodes[ino];
        if name.starts_with("user.") && !matches!(inode.data, Data::File(_) | Data::Directory(_)) {
            return Err(libc::EPERM);
        }
        inode.xattrs.remove(name).ok_or(libc::ENODATA)?;
        inode.changed = true;
        Ok(Value::Nothing)
    }

    fn opened(&self, which: usize) -> usize {
        self.open[which % self.open.len()]
    }

    fn walk(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        let mut stack = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = stack.pop() {
            if let Data::Directory(entries) = &self.inodes[ino].data {
                stack.extend(entries.iter().map(|(name, ino)| (join(&path, name), *ino)));
            }
            found.insert(path, ino);
        }
        found
    }

    fn seen(&self, ino: usize, paths: &BTreeMap<String, usize>) -> Seen {
        let inode = &self.inodes[ino];
        let (kind, content) = match &inode.data {
            Data::File(bytes) => (libc::S_IFREG, bytes.clone()),
            Data::Directory(_) => (libc::S_IFDIR, Vec::new()),
            Data::Symlink(target) => (libc::S_IFLNK, target.as_bytes().to_vec()),
            Data::Special(kind) => (*kind, Vec::new()),
        };
        let nlink = match &inode.data {
            Data::Directory(entries) => 2 + entries.values().filter(|ino| self.is_directory(**ino)).count(),
            _ => paths.values().filter(|other| **other == ino).count(),
        };
        let same_as = paths.iter().find(|(_, other)| **other == ino).map(|(path, _)| path.clone());
        Seen {
            mode: kind | inode.mode,
            nlink: nlink as u64,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
            content,
            xattrs: inode.xattrs.clone(),
            same_as: same_as.unwrap_or_default(),
            modified: inode.modified,
            changed: inode.changed,
        }
    }
}

impl Target for Model {
    fn name(&self) -> &str {
        "model"
    }

    fn apply(&mut self, call: &Call) -> Outcome {
        use Operation::*;
        let mut set = |path: &str, change: &mut dyn FnMut(&mut Inode)| {
            let ino = self.find(path)?;
            change(&mut self.inodes[ino]);
            self.inodes[ino].changed = true;
            Ok(Value::Nothing)
        };
        match call {
            Chmod(at, mode) => set(at, &mut |inode| inode.mode = *mode),
            SetTimes(at, _) => set(at, &mut |inode| inode.modified = true),
            Create(at, mode) => self.make(at, *mode, Data::File(Vec::new())),
            Mkdir(at, mode) => self.make(at, *mode, Data::Directory(BTreeMap::new())),
            Mknod(at, Special::Fifo, mode) => self.make(at, *mode, Data::Special(libc::S_IFIFO)),
            Mknod(at, Special::Socket, mode) => self.make(at, *mode, Data::Special(libc::S_IFSOCK)),
            Symlink(at, target) => self.make(at, 0o777, Data::Symlink(TARGETS[*target])),
            Link(at, new) => self.link(at, new),
            Unlink(at) => self.remove(at, false),
            Rmdir(at) => self.remove(at, true),
            Rename(at, new, flags) => self.rename(at, new, *flags),
            Write(at, offset, data) => self.write(self.find(at)?, *offset, data),
            Read(at, offset, len) => self.read(self.find(at)?, *offset, *len).map(Value::Bytes),
            Truncate(at, size) => {
                let ino = self.find(at)?;
                self.file(ino)?.resize(*size as usize, 0);
                self.modify(ino);
                Ok(Value::Nothing)
            }
            Fallocate(at, mode, offset, len) => self.fallocate(self.find(at)?, *mode, *offset, *len),
            Copy(from, from_offset, to, to_offset, len) => {
                self.copy(self.find(from)?, *from_offset, self.find(to)?, *to_offset, *len)
            }
            Chown(at, uid, gid) => {
                self.chown(self.find(at)?, *uid, *gid);
                Ok(Value::Nothing)
            }
            SetXattr(at, name, value, flag) => self.set_xattr(self.find(at)?, name, value, *flag),
            RemoveXattr(at, name) => self.remove_xattr(self.find(at)?, name),
            List(at) => Ok(Value::Names(self.entries(self.find(at)?)?.keys().cloned().collect())),
            Open(at) => {
                let ino = self.find(at)?;
                self.file(ino)?;
                self.open.push(ino);
                Ok(Value::Nothing)
            }
            WriteOpen(..) | ReadOpen(..) | Close(..) if self.open.is_empty() => Ok(Value::Nothing),
            WriteOpen(which, offset, data) => self.write(self.opened(*which), *offset, data),
            ReadOpen(which) => self.read(self.opened(*which), 0, 1 << 16).map(Value::Bytes),
            Close(which) => {
                self.open.remove(which % self.open.len());
                Ok(Value::Nothing)
            }
        }
    }

    fn settle(&mut self) {
        for inode in &mut self.inodes {
            (inode.modified, inode.changed) = (false, false);
        }
    }

    fn tree(&mut self) -> Tree {
        let paths = self.walk();
        Tree(paths.iter().map(|(path, ino)| (path.clone(), self.seen(*ino, &paths))).collect())
    }
}
