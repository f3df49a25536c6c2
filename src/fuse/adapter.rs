//! The adapter: what each opcode does. Decoded by `dispatch`, answered from [`Scratch`]. No state of its own.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, WriteFlags,
};
use zeroize::Zeroizing;

use super::convert::{absent, fallocate_mode, file_attr, file_type, node_kind, xattr_mode};
use super::counters::Counters;
use super::cpu_latency::LatencyHolder;
use super::dispatch::{Call, Opcode};
use super::gate::Gate;
use super::init::{Negotiation, negotiate};
use super::notifier::{Notice, Notices, pass_on};
use super::requester::relation;
use super::seek::{Seek, Whence};
use crate::fs::{Attr, Change, Creator, FsError, Kind, NAME_MAX, RenameFlags, Scratch, SetAttr, WriteMode};
use crate::units::SECTOR;

/// How long the kernel may trust entries and attributes: without end, since every change comes through it.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Inode numbers are never used twice, so there are no generations.
const GENERATION: Generation = Generation(0);
/// The attribute that carries the access ACL.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// There are no open files here.
const NO_HANDLE: FileHandle = FileHandle(0);
/// Most bytes copied by one request, so that a worker comes back; the kernel asks again for the rest.
const MOST_COPIED: u64 = 1 << 30;

/// What the adapter learned from the kernel, for those who hold the mount.
pub(super) struct Connection {
    /// Requests so far.
    pub counters: Counters,
    /// What the kernel is to be told.
    pub notices: Arc<Notices>,
    /// Set by INIT.
    pub negotiated: OnceLock<Negotiation>,
    /// Set where the machine lets this process ask for processors that wake fast.
    pub latency: OnceLock<LatencyHolder>,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            counters: Counters::new(),
            notices: Arc::default(),
            negotiated: OnceLock::new(),
            latency: OnceLock::new(),
        }
    }
    pub(super) fn count(&self, opcode: Opcode) {
        self.counters.count(opcode);
    }
}

/// [`Scratch`] as the kernel sees it.
pub(super) struct Adapter {
    scratch: Arc<Scratch>,
    gate: Arc<Gate>,
    connection: Arc<Connection>,
    may: InitFlags,
    granted: InitFlags,
}

impl Adapter {
    /// `may`: the capabilities to use of those the kernel has.
    pub(super) fn new(scratch: Arc<Scratch>, connection: Arc<Connection>, may: InitFlags) -> Self {
        let gate = Arc::new(Gate::new(scratch.clone(), connection.notices.clone()));
        Self { scratch, gate, connection, may, granted: InitFlags::empty() }
    }

    /// The gate at write(2).
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    /// Takes set-user-ID and set-group-ID away if `change` by the sender of `request` does (HANDLE_KILLPRIV_V2).
    /// The kernel remembers the mode across changes of contents, and executes by what it remembers: it forgets first.
    fn kill_suidgid(&self, request: &Request, ino: u64, change: Change) -> Result<(), FsError> {
        if self.scratch.kill_suidgid(ino, change, |uid, gid| relation(request, uid, gid))? && change == Change::Contents
        {
            self.connection.notices.send(Notice::Attributes(ino));
        }
        Ok(())
    }

    /// What is learned while requests are served.
    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// INIT.
    pub(super) fn negotiate(&mut self, kernel: &mut KernelConfig) {
        let negotiated = negotiate(kernel, self.may);
        self.granted = negotiated.granted;
        // INIT comes once per session: nothing is overwritten.
        let _ = self.connection.negotiated.set(negotiated);
    }
}

/// Replies that hold attributes: the gate hears of those after the kernel has them.
impl Adapter {
    fn entry(&self, call: Call<ReplyEntry>, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => {
                call.reply.entry(&FOREVER, &file_attr(&attr), GENERATION);
                self.gate.told(&attr);
            }
            Err(error) => call.fail(&error),
        }
    }

    fn attributes(&self, call: Call<ReplyAttr>, result: Result<Attr, FsError>) {
        match result {
            Ok(attr) => {
                call.reply.attr(&FOREVER, &file_attr(&attr));
                self.gate.told(&attr);
            }
            Err(error) => call.fail(&error),
        }
    }

    /// Whether a file may be made; the refusal is recorded.
    fn admits_new(&self, parent: u64, name: &[u8]) -> bool {
        let admitted = self.gate.admits_new();
        if !admitted {
            self.scratch.refuse_name(parent, name);
        }
        admitted
    }
}

/// One method per opcode.
impl Adapter {
    pub(super) fn lookup(&self, parent: u64, name: &[u8], call: Call<ReplyEntry>) {
        match self.scratch.lookup(parent, name) {
            Err(FsError::NotFound) => call.reply.entry(&FOREVER, &absent(), GENERATION),
            result => self.entry(call, result),
        }
    }

    pub(super) fn forget(&self, ino: u64, count: u64) {
        self.scratch.forget(ino, count);
    }

    /// With a handle it comes from write(2), which is let go on by attributes and refused by an error.
    pub(super) fn getattr(&self, ino: u64, handle: Option<FileHandle>, call: Call<ReplyAttr>) {
        if handle.is_some() && !self.gate.admits(ino) {
            return call.refuse(Errno::ENOSPC);
        }
        self.attributes(call, self.scratch.getattr(ino));
    }

    pub(super) fn setattr(&self, request: &Request, ino: u64, set: &SetAttr, call: Call<ReplyAttr>) {
        let killed = killing(set).map_or(Ok(()), |change| self.kill_suidgid(request, ino, change));
        self.attributes(call, killed.and_then(|()| self.scratch.setattr(ino, set)));
    }

    pub(super) fn readlink(&self, ino: u64, call: Call<ReplyData>) {
        match self.scratch.readlink(ino) {
            Ok(target) => call.reply.data(&target),
            Err(error) => call.fail(&error),
        }
    }

    pub(super) fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        creator: &Creator,
        call: Call<ReplyEntry>,
    ) {
        let Some(kind) = node_kind(mode) else { return call.refuse(Errno::EINVAL) };
        if kind == Kind::File && !self.admits_new(parent, name) {
            return call.refuse(Errno::ENOSPC);
        }
        self.entry(call, self.scratch.mknod(parent, name, kind, mode & 0o7777, rdev, creator));
    }

    pub(super) fn mkdir(&self, parent: u64, name: &[u8], mode: u32, creator: &Creator, call: Call<ReplyEntry>) {
        self.entry(call, self.scratch.mkdir(parent, name, mode, creator));
    }

    pub(super) fn unlink(&self, parent: u64, name: &[u8], call: Call<ReplyEmpty>) {
        call.answer(self.scratch.unlink(parent, name));
    }

    pub(super) fn rmdir(&self, parent: u64, name: &[u8], call: Call<ReplyEmpty>) {
        call.answer(self.scratch.rmdir(parent, name));
    }

    pub(super) fn symlink(&self, parent: u64, name: &[u8], target: &[u8], creator: &Creator, call: Call<ReplyEntry>) {
        self.entry(call, self.scratch.symlink(parent, name, target, creator));
    }

    pub(super) fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: RenameFlags,
        call: Call<ReplyEmpty>,
    ) {
        call.answer(self.scratch.rename(parent, name, new_parent, new_name, flags));
    }

    pub(super) fn link(&self, ino: u64, parent: u64, name: &[u8], call: Call<ReplyEntry>) {
        self.entry(call, self.scratch.link(ino, parent, name));
    }

    /// `ENOSYS` tells the kernel to open files by itself from now on (NO_OPEN_SUPPORT).
    pub(super) fn open(&self, call: Call<ReplyOpen>) {
        if self.granted.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) {
            call.refuse(Errno::ENOSYS);
        } else {
            call.reply.opened(NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    pub(super) fn read(&self, ino: u64, offset: u64, size: usize, call: Call<ReplyData>) {
        with_buffer(size, |buffer| match self.scratch.read(ino, offset, buffer) {
            Ok(count) => call.reply.data(&buffer[..count]),
            Err(error) => call.fail(&error),
        });
    }

    /// The kernel has resolved O_APPEND and checked permissions; a write from its cache has no caller.
    pub(super) fn write(
        &self,
        request: &Request,
        ino: u64,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        call: Call<ReplyWrite>,
    ) {
        let kills = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let killed = if kills { self.kill_suidgid(request, ino, Change::Contents) } else { Ok(()) };
        let mode = WriteMode {
            keep_times: self.granted.contains(InitFlags::FUSE_WRITEBACK_CACHE),
            accepted: flags.contains(WriteFlags::FUSE_WRITE_CACHE),
        };
        if self.gate.listens() {
            self.gate.watch(ino, self.scratch.allocated(ino));
        }
        match killed.and_then(|()| self.scratch.write(ino, offset, data, mode)) {
            Ok(()) => call.reply.written(data.len() as u32),
            Err(error) => {
                call.fail(&error);
                // The pages look as if they were written; nobody may read them any more.
                self.connection.notices.send(Notice::Range(ino, offset..offset + data.len() as u64));
            }
        }
        self.gate.look();
    }

    /// RELEASE and RELEASEDIR: nothing was opened.
    pub(super) fn release(&self, call: Call<ReplyEmpty>) {
        call.reply.ok();
    }

    /// As [`Self::open`], for directories (NO_OPENDIR_SUPPORT).
    pub(super) fn opendir(&self, call: Call<ReplyOpen>) {
        if self.granted.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT) {
            call.refuse(Errno::ENOSYS);
        } else {
            call.reply.opened(NO_HANDLE, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    pub(super) fn readdir(&self, ino: u64, offset: u64, mut call: Call<ReplyDirectory>) {
        let result = self.scratch.readdir(ino, offset, &mut |entry| {
            !call.reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), OsStr::from_bytes(entry.name))
        });
        match result {
            Ok(()) => call.reply.ok(),
            Err(error) => call.fail(&error),
        }
    }

    pub(super) fn readdirplus(&self, ino: u64, offset: u64, mut call: Call<ReplyDirectoryPlus>) {
        let mut told = Vec::new();
        let result = self.scratch.readdirplus(ino, offset, &mut |entry, attr| {
            let (name, shown) = (OsStr::from_bytes(entry.name), file_attr(attr));
            let taken = !call.reply.add(INodeNo(entry.ino), entry.cookie, name, &FOREVER, &shown, GENERATION);
            if taken && self.gate.listens() {
                told.push(*attr);
            }
            taken
        });
        match result {
            Ok(()) => call.reply.ok(),
            Err(error) => call.fail(&error),
        }
        told.iter().for_each(|attr| self.gate.told(attr));
    }

    pub(super) fn statfs(&self, call: Call<ReplyStatfs>) {
        let fs = self.scratch.statfs();
        let sector = SECTOR as u32;
        let free = fs.sectors_free;
        call.reply.statfs(fs.sectors, free, free, fs.inodes, fs.inodes_free, sector, NAME_MAX as u32, sector);
    }

    pub(super) fn setxattr(
        &self,
        request: &Request,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: i32,
        call: Call<ReplyEmpty>,
    ) {
        let Some(mode) = xattr_mode(flags) else { return call.refuse(Errno::EINVAL) };
        let set = self.scratch.setxattr(ino, name, value, mode);
        let acl = name == ACCESS_ACL;
        call.answer(set.and_then(|()| if acl { self.kill_suidgid(request, ino, Change::AccessAcl) } else { Ok(()) }));
    }

    pub(super) fn getxattr(&self, ino: u64, name: &[u8], size: u32, call: Call<ReplyXattr>) {
        call.answer(size, self.scratch.getxattr(ino, name));
    }

    pub(super) fn listxattr(&self, ino: u64, size: u32, call: Call<ReplyXattr>) {
        call.answer(size, self.scratch.listxattr(ino));
    }

    pub(super) fn removexattr(&self, ino: u64, name: &[u8], call: Call<ReplyEmpty>) {
        call.answer(self.scratch.removexattr(ino, name));
    }

    pub(super) fn create(&self, parent: u64, name: &[u8], mode: u32, creator: &Creator, call: Call<ReplyCreate>) {
        if !self.admits_new(parent, name) {
            return call.refuse(Errno::ENOSPC);
        }
        match self.scratch.mknod(parent, name, Kind::File, mode, 0, creator) {
            Ok(attr) => {
                let shown = file_attr(&attr);
                call.reply.created(&FOREVER, &shown, GENERATION, NO_HANDLE, FopenFlags::FOPEN_KEEP_CACHE);
                self.gate.told(&attr);
            }
            Err(error) => call.fail(&error),
        }
    }

    pub(super) fn fallocate(
        &self,
        request: &Request,
        ino: u64,
        offset: u64,
        length: u64,
        mode: i32,
        call: Call<ReplyEmpty>,
    ) {
        let Some(mode) = fallocate_mode(mode) else { return call.refuse(Errno::EOPNOTSUPP) };
        let killed = self.kill_suidgid(request, ino, Change::Contents);
        call.answer(killed.and_then(|()| self.scratch.fallocate(ino, offset, length, mode)));
        self.gate.look();
    }

    /// A worker finds data; before a hole is reported the kernel writes what it holds there, which it sends to workers.
    pub(super) fn lseek(&self, ino: u64, offset: i64, whence: i32, call: Call<ReplyLseek>) {
        let Some(wanted) = Whence::decode(whence) else { return call.refuse(Errno::EINVAL) };
        let Ok(from) = u64::try_from(offset) else { return call.refuse(Errno::ENXIO) };
        let seek = Seek { scratch: self.scratch.clone(), ino, from };
        match seek.in_data() {
            Err(error) => call.fail(&error),
            Ok(true) if wanted == Whence::Data => call.reply.offset(offset),
            Ok(_) => self.connection.notices.send(Notice::Task(Box::new(move |notifier| {
                let flush = |range| pass_on(notifier, Notice::Range(ino, range));
                match seek.find(wanted, flush) {
                    Ok(Some(found)) => call.reply.offset(found as i64),
                    Ok(None) => call.refuse(Errno::ENXIO),
                    Err(error) => call.fail(&error),
                }
            }))),
        }
    }

    /// From and to: inode and offset.
    pub(super) fn copy_file_range(
        &self,
        request: &Request,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        call: Call<ReplyWrite>,
    ) {
        let killed = self.kill_suidgid(request, to, Change::Contents);
        let length = length.min(MOST_COPIED);
        match killed.and_then(|()| self.scratch.copy_file_range(from, from_offset, to, to_offset, length)) {
            Ok(copied) => call.reply.written(copied as u32),
            Err(error) => call.fail(&error),
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
