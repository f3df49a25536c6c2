//! The adapter: one method per opcode, which decodes, calls [`Scratch`] and replies. No state of its own.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr,
    ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use zeroize::Zeroizing;

use super::convert::{
    absent, fallocate_mode, file_attr, file_type, from_system, node_kind, rename_flags, set_time, xattr_mode,
};
use super::counters::{Counters, Opcode};
use super::cpu_latency::CpuLatency;
use super::errno::errno;
use super::gate::Gate;
use super::init::{Negotiated, negotiate};
use super::notifier::{Notice, Notices, pass_on};
use super::requester::standing;
use super::seek::{Seek, Wanted};
use crate::fs::{Attr, Caller, Change, FsError, Kind, NAME_MAX, Scratch, SetAttr, WriteMode};
use crate::units::SECTOR;

/// How long the kernel may trust entries and attributes: without end, since every change comes through it.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Inode numbers are never used twice, so there are no generations.
const GENERATION: Generation = Generation(0);
/// The attribute that carries the access ACL.
const ACCESS_ACL: &str = "system.posix_acl_access";
/// There are no open files here.
const NO_HANDLE: FileHandle = FileHandle(0);
/// Most bytes copied by one request, so that a worker comes back; the kernel asks again for the rest.
const MOST_COPIED: u64 = 1 << 30;

/// What the adapter learned from the kernel, for those who hold the mount.
pub(super) struct Shared {
    /// Requests so far.
    pub counters: Counters,
    /// What the kernel is to be told.
    pub notices: Arc<Notices>,
    /// Set by INIT.
    pub negotiated: OnceLock<Negotiated>,
    /// Set where the machine lets this process ask for processors that wake fast.
    pub latency: OnceLock<CpuLatency>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::new(),
            notices: Arc::default(),
            negotiated: OnceLock::new(),
            latency: OnceLock::new(),
        }
    }
}

/// [`Scratch`] as the kernel sees it.
pub(super) struct Adapter {
    scratch: Arc<Scratch>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
    may: InitFlags,
    granted: InitFlags,
}

impl Adapter {
    /// `may`: the capabilities to use of those the kernel has.
    pub(super) fn new(scratch: Arc<Scratch>, shared: Arc<Shared>, may: InitFlags) -> Self {
        let gate = Arc::new(Gate::new(scratch.clone(), shared.notices.clone()));
        Self { scratch, gate, shared, may, granted: InitFlags::empty() }
    }

    /// The gate at write(2).
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Takes set-user-ID and set-group-ID away if `change` by the sender of `request` does (HANDLE_KILLPRIV_V2).
    /// The kernel remembers the mode across changes of contents, and executes by what it remembers: it forgets first.
    fn kill_suidgid(&self, request: &Request, ino: INodeNo, change: Change) -> Result<(), FsError> {
        if self.scratch.kill_suidgid(ino.0, change, |uid, gid| standing(request, uid, gid))?
            && change == Change::Contents
        {
            self.shared.notices.send(Notice::Attributes(ino.0));
        }
        Ok(())
    }

    /// Counts a request whose caller waits for the answer: all but FORGET.
    fn count(&self, opcode: Opcode) {
        self.shared.counters.count(opcode);
        if let Some(latency) = self.shared.latency.get() {
            latency.request();
        }
    }
}

/// Replies that hold attributes: the gate hears of those after the kernel has them.
impl Adapter {
    fn entry(&self, reply: ReplyEntry, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => {
                reply.entry(&FOREVER, &file_attr(&attr), GENERATION);
                self.gate.told(&attr);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn attributes(&self, reply: ReplyAttr, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => {
                reply.attr(&FOREVER, &file_attr(&attr));
                self.gate.told(&attr);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// Whether a file may be made; the refusal is recorded.
    fn admits_new(&self, parent: u64, name: &OsStr) -> bool {
        let admitted = self.gate.admits_new();
        if !admitted {
            self.scratch.refuse_name(parent, name.as_bytes());
        }
        admitted
    }
}

/// Arguments that nothing here depends on (file handles, open flags, lock owners) are left unnamed or underscored.
impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
        let negotiated = negotiate(kernel, self.may);
        self.granted = negotiated.granted;
        // INIT comes once per session: nothing is overwritten.
        let _ = self.shared.negotiated.set(negotiated);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Lookup);
        match self.scratch.lookup(parent.0, name.as_bytes()) {
            Err(FsError::NotFound) => reply.entry(&FOREVER, &absent(), GENERATION),
            result => self.entry(reply, result),
        }
    }

    /// Also called for each inode of a BATCH_FORGET.
    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.shared.counters.count(Opcode::Forget);
        self.scratch.forget(ino.0, count);
    }

    /// With a handle it comes from write(2), which is let go on by attributes and refused by an error.
    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Opcode::GetAttr);
        if handle.is_some() && !self.gate.admits(ino.0) {
            return reply.error(Errno::ENOSPC);
        }
        self.attributes(reply, self.scratch.getattr(ino.0));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Opcode::SetAttr);
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(from_system),
        };
        let killed = killing(&set).map_or(Ok(()), |change| self.kill_suidgid(request, ino, change));
        self.attributes(reply, killed.and_then(|()| self.scratch.setattr(ino.0, &set)));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Opcode::ReadLink);
        match self.scratch.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.count(Opcode::MkNod);
        let Some(kind) = node_kind(mode) else { return reply.error(Errno::EINVAL) };
        if kind == Kind::File && !self.admits_new(parent.0, name) {
            return reply.error(Errno::ENOSPC);
        }
        let caller = caller(request, umask);
        self.entry(reply, self.scratch.mknod(parent.0, name.as_bytes(), kind, mode & 0o7777, rdev, &caller));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.count(Opcode::MkDir);
        self.entry(reply, self.scratch.mkdir(parent.0, name.as_bytes(), mode & 0o7777, &caller(request, umask)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::Unlink);
        empty(reply, self.scratch.unlink(parent.0, name.as_bytes()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::RmDir);
        empty(reply, self.scratch.rmdir(parent.0, name.as_bytes()));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.count(Opcode::Symlink);
        let target = target.as_os_str().as_bytes();
        self.entry(reply, self.scratch.symlink(parent.0, name.as_bytes(), target, &caller(request, 0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Rename);
        let flags = rename_flags(flags);
        empty(reply, self.scratch.rename(parent.0, name.as_bytes(), new_parent.0, new_name.as_bytes(), flags));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(Opcode::Link);
        self.entry(reply, self.scratch.link(ino.0, parent.0, name.as_bytes()));
    }

    /// `ENOSYS` tells the kernel to open files by itself from now on (NO_OPEN_SUPPORT).
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::Open);
        if self.granted.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Opcode::Read);
        with_buffer(size as usize, |buffer| match self.scratch.read(ino.0, offset, buffer) {
            Ok(count) => reply.data(&buffer[..count]),
            Err(error) => reply.error(errno(&error)),
        });
    }

    /// The kernel has resolved O_APPEND and checked permissions; a write from its cache has no caller.
    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::Write);
        let kills = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let killed = if kills { self.kill_suidgid(request, ino, Change::Contents) } else { Ok(()) };
        let mode = WriteMode {
            keep_times: self.granted.contains(InitFlags::FUSE_WRITEBACK_CACHE),
            accepted: flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        if self.gate.listens() {
            self.gate.watch(ino.0, self.scratch.allocated(ino.0));
        }
        match killed.and_then(|()| self.scratch.write(ino.0, offset, data, mode)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => {
                reply.error(errno(&error));
                // The pages look as if they were written; nobody may read them any more.
                self.shared.notices.send(Notice::Range(ino.0, offset..offset + data.len() as u64));
            }
        }
        self.gate.look();
    }

    /// `ENOSYS`: nothing to do when a descriptor is closed; the kernel still writes its dirty pages first.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.count(Opcode::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Release);
        reply.ok();
    }

    /// `ENOSYS`: once the kernel has written its dirty pages, the data is as safe as it will be; the key does not
    /// outlive this process.
    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.count(Opcode::Fsync);
        reply.error(Errno::ENOSYS);
    }

    /// As [`Self::open`], for directories (NO_OPENDIR_SUPPORT).
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.count(Opcode::OpenDir);
        if self.granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT) {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(NO_HANDLE, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.count(Opcode::ReadDir);
        let result = self.scratch.readdir(ino.0, offset, &mut |entry| {
            !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), OsStr::from_bytes(entry.name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.count(Opcode::ReadDirPlus);
        let mut told = Vec::new();
        let result = self.scratch.readdirplus(ino.0, offset, &mut |entry, attr| {
            let name = OsStr::from_bytes(entry.name);
            let taken = !reply.add(INodeNo(entry.ino), entry.cookie, name, &FOREVER, &file_attr(attr), GENERATION);
            if taken && self.gate.listens() {
                told.push(*attr);
            }
            taken
        });
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
        told.iter().for_each(|attr| self.gate.told(attr));
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.count(Opcode::ReleaseDir);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.count(Opcode::FsyncDir);
        reply.error(Errno::ENOSYS);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.count(Opcode::StatFs);
        let fs = self.scratch.statfs();
        let sector = SECTOR as u32;
        let free = fs.sectors_free;
        reply.statfs(fs.sectors, free, free, fs.inodes, fs.inodes_free, sector, NAME_MAX as u32, sector);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::SetXattr);
        let Some(mode) = xattr_mode(flags) else { return reply.error(Errno::EINVAL) };
        let set = self.scratch.setxattr(ino.0, name.as_bytes(), value, mode);
        let acl = name == ACCESS_ACL;
        empty(reply, set.and_then(|()| if acl { self.kill_suidgid(request, ino, Change::AccessAcl) } else { Ok(()) }));
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Opcode::GetXattr);
        sized(reply, size, self.scratch.getxattr(ino.0, name.as_bytes()));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Opcode::ListXattr);
        sized(reply, size, self.scratch.listxattr(ino.0));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Opcode::RemoveXattr);
        empty(reply, self.scratch.removexattr(ino.0, name.as_bytes()));
    }

    /// `ENOSYS`: the kernel checks permissions itself (`default_permissions`).
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.count(Opcode::Access);
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.count(Opcode::Create);
        if !self.admits_new(parent.0, name) {
            return reply.error(Errno::ENOSPC);
        }
        let caller = caller(request, umask);
        match self.scratch.mknod(parent.0, name.as_bytes(), Kind::File, mode & 0o7777, 0, &caller) {
            Ok(attr) => {
                reply.created(&FOREVER, &file_attr(&attr), GENERATION, NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
                self.gate.told(&attr);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// `ENOSYS`: locks are kept by the kernel, which does not ask (POSIX_LOCKS and FLOCK_LOCKS are not negotiated).
    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        self.count(Opcode::GetLk);
        reply.error(Errno::ENOSYS);
    }

    /// As [`Self::getlk`].
    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::SetLk);
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _block_size: u32, _index: u64, reply: ReplyBmap) {
        self.count(Opcode::Bmap);
        reply.error(Errno::ENOSYS);
    }

    /// `ENOSYS`, which the kernel turns into `ENOTTY`.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        self.count(Opcode::Ioctl);
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.count(Opcode::Poll);
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Opcode::Fallocate);
        let Some(mode) = fallocate_mode(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let killed = self.kill_suidgid(request, ino, Change::Contents);
        empty(reply, killed.and_then(|()| self.scratch.fallocate(ino.0, offset, length, mode)));
        self.gate.look();
    }

    /// A worker finds data; before a hole is reported the kernel writes what it holds there, which it sends to workers.
    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.count(Opcode::Lseek);
        let Some(wanted) = Wanted::decode(whence) else { return reply.error(Errno::EINVAL) };
        let Ok(from) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let seek = Seek { scratch: self.scratch.clone(), ino: ino.0, from };
        match seek.in_data() {
            Err(error) => reply.error(errno(&error)),
            Ok(true) if wanted == Wanted::Data => reply.offset(offset),
            Ok(_) => self.shared.notices.send(Notice::Task(Box::new(move |notifier| {
                let flush = |range| pass_on(notifier, Notice::Range(ino.0, range));
                match seek.find(wanted, flush) {
                    Ok(Some(found)) => reply.offset(found as i64),
                    Ok(None) => reply.error(Errno::ENXIO),
                    Err(error) => reply.error(errno(&error)),
                }
            }))),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Opcode::CopyFileRange);
        let killed = self.kill_suidgid(request, to, Change::Contents);
        let length = length.min(MOST_COPIED);
        match killed.and_then(|()| self.scratch.copy_file_range(from.0, from_offset, to.0, to_offset, length)) {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(errno(&error)),
        }
        self.gate.look();
    }
}

/// How SETATTR can take set-user-ID away. The change of nothing but ctime is chown(2) to nothing: the kernel does not say
/// that the bits have to go, nor does it ask whether the caller may do that.
fn killing(set: &SetAttr) -> Option<Change> {
    let only_ctime = SetAttr { ctime: set.ctime, ..SetAttr::default() };
    match set {
        SetAttr { uid: Some(_), .. } | SetAttr { gid: Some(_), .. } => Some(Change::Owner),
        SetAttr { size: Some(_), .. } => Some(Change::Contents),
        SetAttr { ctime: Some(_), .. } if *set == only_ctime => Some(Change::SameOwner),
        _ => None,
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

fn empty(reply: ReplyEmpty, result: Result<(), FsError>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

/// The protocol of getxattr(2) and listxattr(2): size 0 asks for the size.
fn sized(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, FsError>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}

/// Lends this worker's read buffer: allocated once, grown to the largest request seen, page aligned, wiped when the
/// worker ends.
fn with_buffer<T>(size: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Zeroizing<Vec<u8>>> = RefCell::new(Zeroizing::new(Vec::new()));
    }
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size + SECTOR {
            *buffer = Zeroizing::new(vec![0; size + SECTOR]);
        }
        let start = buffer.as_ptr().align_offset(SECTOR);
        use_it(&mut buffer[start..start + size])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_read_buffer_is_aligned_and_allocated_once() {
        let first = with_buffer(1 << 20, |buffer| {
            assert_eq!((buffer.len(), buffer.as_ptr().align_offset(SECTOR)), (1 << 20, 0));
            buffer.as_ptr() as usize
        });
        for size in [0, 1, 4096, 1 << 20] {
            assert_eq!(with_buffer(size, |buffer| (buffer.len(), buffer.as_ptr() as usize)), (size, first));
        }
    }
}
