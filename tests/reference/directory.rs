//! The yardstick: any directory of the host, such as one on tmpfs.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};

use crate::ops::{Allocate, Call, Features, Flag, Operation, Renaming, Special, TARGETS, XATTRS};
use crate::target::{OLD, Outcome, Seen, Target, Tree, Value, join};

/// Longer than the kernel's clock for ctime stands still (`CONFIG_HZ` = 100).
const TICK: Duration = Duration::from_millis(11);

pub struct Directory {
    root: PathBuf,
    features: Features,
    open: Vec<File>,
    /// ctime by inode after the last [`Target::settle`].
    settled: HashMap<u64, (i64, i64)>,
}

impl Directory {
    /// Runs below `root`, an empty directory, which it makes mode 755. Sets the umask of the process to 022.
    pub fn new(root: &Path, features: Features) -> Self {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        Self { root: root.to_owned(), features, open: Vec::new(), settled: HashMap::new() }
    }

    /// What the file system below `root` can do.
    pub fn probe(root: &Path) -> Features {
        let path = root.join("probe");
        fs::write(&path, b"").unwrap();
        let xattr = |name: &str, value: &[u8]| rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty()).is_ok();
        let named_user = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
                           \x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
        let features = Features {
            root: rustix::process::geteuid().is_root() && xattr("trusted.z", b"1"),
            xattrs: xattr("user.x", b"1"),
            acls: xattr("system.posix_acl_access", named_user),
            zero_range: rustix::fs::fallocate(File::create(&path).unwrap(), FallocateFlags::ZERO_RANGE, 0, 1).is_ok(),
            ctime: false,
        };
        fs::remove_file(&path).unwrap();
        features
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn open(&self, path: &str, write: bool) -> io::Result<File> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(self.path(path))
    }

    fn call(&mut self, call: &Call) -> io::Result<Value> {
        use Operation::*;
        let done = |()| Value::Nothing;
        match call {
            Create(at, mode) => {
                let options = &mut OpenOptions::new();
                options.write(true).create_new(true).mode(*mode).open(self.path(at)).map(|_| Value::Nothing)
            }
            Mkdir(at, mode) => Ok(rustix::fs::mkdir(self.path(at), Mode::from_raw_mode(*mode)).map(done)?),
            Mknod(at, kind, mode) => {
                let kind = match kind {
                    Special::Fifo => FileType::Fifo,
                    Special::Socket => FileType::Socket,
                };
                Ok(rustix::fs::mknodat(CWD, self.path(at), kind, Mode::from_raw_mode(*mode), 0).map(done)?)
            }
            Symlink(at, target) => std::os::unix::fs::symlink(TARGETS[*target], self.path(at)).map(done),
            Link(at, new) => {
                Ok(rustix::fs::linkat(CWD, self.path(at), CWD, self.path(new), AtFlags::empty()).map(done)?)
            }
            Unlink(at) => Ok(rustix::fs::unlinkat(CWD, self.path(at), AtFlags::empty()).map(done)?),
            Rmdir(at) => Ok(rustix::fs::unlinkat(CWD, self.path(at), AtFlags::REMOVEDIR).map(done)?),
            Rename(at, new, flags) => {
                let flags = match flags {
                    Renaming::Plain => RenameFlags::empty(),
                    Renaming::NoReplace => RenameFlags::NOREPLACE,
                    Renaming::Exchange => RenameFlags::EXCHANGE,
                    Renaming::Whiteout => RenameFlags::WHITEOUT,
                };
                Ok(rustix::fs::renameat_with(CWD, self.path(at), CWD, self.path(new), flags).map(done)?)
            }
            Write(at, offset, data) => {
                self.open(at, true)?.write_all_at(data, *offset)?;
                Ok(Value::Count(data.len() as u64))
            }
            Read(at, offset, len) => read(&self.open(at, false)?, *offset, *len),
            Truncate(at, size) => Ok(self.open(at, true)?.set_len(*size).map(done)?),
            Fallocate(at, mode, offset, len) => {
                let keep = FallocateFlags::KEEP_SIZE;
                let mode = match mode {
                    Allocate::Grow => FallocateFlags::empty(),
                    Allocate::KeepSize => keep,
                    Allocate::Punch => FallocateFlags::PUNCH_HOLE | keep,
                    Allocate::Zero => FallocateFlags::ZERO_RANGE,
                    Allocate::ZeroKeepSize => FallocateFlags::ZERO_RANGE | keep,
                };
                Ok(rustix::fs::fallocate(self.open(at, true)?, mode, *offset, *len).map(done)?)
            }
            Copy(from, from_offset, to, to_offset, len) => {
                let (from, to) = (self.open(from, false)?, self.open(to, true)?);
                let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                let copied =
                    rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *len as usize)?;
                Ok(Value::Count(copied as u64))
            }
            Chmod(at, mode) => fs::set_permissions(self.path(at), fs::Permissions::from_mode(*mode)).map(done),
            Chown(at, uid, gid) => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                Ok(rustix::fs::chownat(CWD, self.path(at), uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(done)?)
            }
            SetTimes(at, secs) => self.set_times(&self.path(at), *secs, 7).map(done),
            SetXattr(at, name, value, flag) => {
                let flags = match flag {
                    Flag::Any => XattrFlags::empty(),
                    Flag::Create => XattrFlags::CREATE,
                    Flag::Replace => XattrFlags::REPLACE,
                };
                Ok(rustix::fs::lsetxattr(self.path(at), *name, value, flags).map(done)?)
            }
            RemoveXattr(at, name) => Ok(rustix::fs::lremovexattr(self.path(at), *name).map(done)?),
            List(at) => {
                if !fs::symlink_metadata(self.path(at))?.is_dir() {
                    return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
                }
                let mut names = names(&self.path(at));
                names.sort();
                Ok(Value::Names(names))
            }
            Open(at) => {
                let file = self.open(at, true)?;
                self.open.push(file);
                Ok(Value::Nothing)
            }
            WriteOpen(..) | ReadOpen(..) | Close(..) if self.open.is_empty() => Ok(Value::Nothing),
            WriteOpen(which, offset, data) => {
                self.open[which % self.open.len()].write_all_at(data, *offset)?;
                Ok(Value::Count(data.len() as u64))
            }
            ReadOpen(which) => read(&self.open[which % self.open.len()], 0, 1 << 16),
            Close(which) => {
                self.open.remove(which % self.open.len());
                Ok(Value::Nothing)
            }
        }
    }

    fn set_times(&self, path: &Path, secs: i64, nanos: i64) -> io::Result<()> {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn walk(&self, visit: &mut dyn FnMut(String, &Path, fs::Metadata)) {
        let mut stack = vec![String::new()];
        while let Some(path) = stack.pop() {
            let full = if path.is_empty() { self.root.clone() } else { self.path(&path) };
            let metadata = fs::symlink_metadata(&full).unwrap();
            let is_directory = metadata.is_dir();
            visit(path.clone(), &full, metadata);
            if is_directory {
                stack.extend(names(&full).iter().map(|name| join(&path, name)));
            }
        }
    }

    fn seen(&self, path: &Path, metadata: &fs::Metadata) -> Seen {
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            fs::read(path).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        let device = kind.is_char_device() || kind.is_block_device();
        let ctime = (metadata.ctime(), metadata.ctime_nsec());
        Seen {
            mode: metadata.mode(),
            nlink: metadata.nlink(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: if device { metadata.rdev() } else { 0 },
            content,
            xattrs: XATTRS.iter().filter_map(|name| Some((name.to_string(), xattr(path, name)?))).collect(),
            same_as: String::new(),
            modified: metadata.mtime() != OLD,
            changed: self.features.ctime && self.settled.get(&metadata.ino()) != Some(&ctime),
        }
    }
}

impl Target for Directory {
    fn name(&self) -> &str {
        "directory"
    }

    fn apply(&mut self, call: &Call) -> Outcome {
        self.call(call).map_err(|error| error.raw_os_error().unwrap_or_else(|| panic!("{call:?}: {error}")))
    }

    fn settle(&mut self) {
        self.walk(&mut |_, path, _| self.set_times(path, OLD, 0).unwrap());
        if !self.features.ctime {
            return;
        }
        std::thread::sleep(TICK);
        let mut settled = HashMap::new();
        self.walk(&mut |_, _, metadata| {
            settled.insert(metadata.ino(), (metadata.ctime(), metadata.ctime_nsec()));
        });
        self.settled = settled;
    }

    fn tree(&mut self) -> Tree {
        let mut all = BTreeMap::new();
        self.walk(&mut |path, full, metadata| drop(all.insert(path, (full.to_owned(), metadata))));
        let mut first: HashMap<u64, String> = HashMap::new();
        let mut tree = Tree::default();
        for (path, (full, metadata)) in all {
            let same_as = first.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
            tree.0.insert(path, Seen { same_as, ..self.seen(&full, &metadata) });
        }
        tree
    }
}

fn read(file: &File, offset: u64, len: usize) -> io::Result<Value> {
    let mut buf = vec![0; len];
    let n = file.read_at(&mut buf, offset)?;
    buf.truncate(n);
    Ok(Value::Bytes(buf))
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}
