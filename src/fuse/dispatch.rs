//! The table of opcodes: how each is decoded, counted, and handed to the [`Adapter`]. One row per opcode.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::adapter::{Adapter, Connection};
use super::convert::{rename_flags, wanted};
use super::errno::errno;
use crate::fs::{Creator, FsError};

/// A request that waits for its answer.
pub(super) struct Call<R> {
    opcode: Opcode,
    /// The number the kernel gave it.
    id: u64,
    pub reply: R,
}

impl<R: Refuse> Call<R> {
    /// The one place where requests are counted.
    fn new(connection: &Connection, opcode: Opcode, request: &Request, reply: R) -> Self {
        connection.count(opcode);
        if let Some(latency) = connection.latency.get() {
            latency.request();
        }
        Self { opcode, id: request.unique().0, reply }
    }

    /// The one place where requests are refused. The log names no path.
    pub(super) fn refuse(self, errno: Errno) {
        tracing::debug!(opcode = self.opcode.name(), request = self.id, errno = errno.code(), "refused");
        self.reply.refuse(errno);
    }

    /// As [`Call::refuse`].
    pub(super) fn fail(self, error: &FsError) {
        self.refuse(errno(error));
    }
}

impl Call<ReplyEmpty> {
    pub(super) fn answer(self, result: Result<(), FsError>) {
        match result {
            Ok(()) => self.reply.ok(),
            Err(error) => self.fail(&error),
        }
    }
}

impl Call<ReplyXattr> {
    /// The protocol of getxattr(2) and listxattr(2): size 0 asks for the size.
    pub(super) fn answer(self, size: u32, result: Result<Vec<u8>, FsError>) {
        match result {
            Ok(value) if size == 0 => self.reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => self.refuse(Errno::ERANGE),
            Ok(value) => self.reply.data(&value),
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply that can be an error.
pub(super) trait Refuse {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse! {
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr
}

/// From the rows below: the opcodes, their names in fuse.h, and what fuser calls. A row is
/// `opcode "name": method(request, arguments; reply) => handler(what it needs of them)`; what nothing here depends on
/// (file handles, open flags, lock owners) starts with an underscore.
macro_rules! serve {
    (
        by hand { $($hand:item)* }
        answered { $($opcode:ident $name:literal: $method:ident
            ($request:ident $(, $argument:ident: $type:ty)*; $reply:ty) => $handler:ident($($pass:expr),*);)* }
        refused { $($other:ident $other_name:literal: $other_method:ident
            ($($other_argument:ident: $other_type:ty),*; $other_reply:ty) => $errno:expr;)* }
    ) => {
        /// The opcodes the kernel may send.
        #[derive(Clone, Copy)]
        pub(super) enum Opcode {
            Forget,
            $($opcode,)*
            $($other,)*
        }

        /// By [`Opcode`].
        pub(super) const NAMES: &[&str] = &["FORGET", $($name,)* $($other_name,)*];

        impl Filesystem for Adapter {
            $($hand)*

            $(fn $method(&self, $request: &Request $(, $argument: $type)*, reply: $reply) {
                let call = Call::new(self.connection(), Opcode::$opcode, $request, reply);
                Adapter::$handler(self, $($pass,)* call);
            })*

            $(fn $other_method(&self, request: &Request $(, $other_argument: $other_type)*, reply: $other_reply) {
                Call::new(self.connection(), Opcode::$other, request, reply).refuse($errno);
            })*
        }
    };
}

serve! {
    by hand {
        fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
            self.negotiate(kernel);
            Ok(())
        }

        /// Nobody waits for it. Also called for each inode of a BATCH_FORGET.
        fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
            self.connection().count(Opcode::Forget);
            Adapter::forget(self, ino.0, count);
        }
    }

    answered {
        Lookup "LOOKUP": lookup(request, parent: INodeNo, name: &OsStr; ReplyEntry)
            => lookup(parent.0, name.as_bytes());
        GetAttr "GETATTR": getattr(request, ino: INodeNo, handle: Option<FileHandle>; ReplyAttr)
            => getattr(ino.0, handle);
        SetAttr "SETATTR": setattr(request, ino: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
            size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, ctime: Option<SystemTime>,
            _handle: Option<FileHandle>, _crtime: Option<SystemTime>, _chgtime: Option<SystemTime>,
            _bkuptime: Option<SystemTime>, _flags: Option<BsdFileFlags>; ReplyAttr)
            => setattr(request, ino.0, &wanted(mode, (uid, gid), size, (atime, mtime), ctime));
        ReadLink "READLINK": readlink(request, ino: INodeNo; ReplyData)
            => readlink(ino.0);
        MkNod "MKNOD": mknod(request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32; ReplyEntry)
            => mknod(parent.0, name.as_bytes(), mode, rdev, &creator(request, umask));
        MkDir "MKDIR": mkdir(request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32; ReplyEntry)
            => mkdir(parent.0, name.as_bytes(), mode & 0o7777, &creator(request, umask));
        Unlink "UNLINK": unlink(request, parent: INodeNo, name: &OsStr; ReplyEmpty)
            => unlink(parent.0, name.as_bytes());
        RmDir "RMDIR": rmdir(request, parent: INodeNo, name: &OsStr; ReplyEmpty)
            => rmdir(parent.0, name.as_bytes());
        Symlink "SYMLINK": symlink(request, parent: INodeNo, name: &OsStr, target: &Path; ReplyEntry)
            => symlink(parent.0, name.as_bytes(), target.as_os_str().as_bytes(), &creator(request, 0));
        Rename "RENAME": rename(request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
            flags: RenameFlags; ReplyEmpty)
            => rename(parent.0, name.as_bytes(), new_parent.0, new_name.as_bytes(), rename_flags(flags));
        Link "LINK": link(request, ino: INodeNo, parent: INodeNo, name: &OsStr; ReplyEntry)
            => link(ino.0, parent.0, name.as_bytes());
        Open "OPEN": open(request, _ino: INodeNo, _flags: OpenFlags; ReplyOpen)
            => open();
        Read "READ": read(request, ino: INodeNo, _handle: FileHandle, offset: u64, size: u32, _flags: OpenFlags,
            _owner: Option<LockOwner>; ReplyData)
            => read(ino.0, offset, size as usize);
        Write "WRITE": write(request, ino: INodeNo, _handle: FileHandle, offset: u64, data: &[u8], flags: WriteFlags,
            _open: OpenFlags, _owner: Option<LockOwner>; ReplyWrite)
            => write(request, ino.0, offset, data, flags);
        Release "RELEASE": release(request, _ino: INodeNo, _handle: FileHandle, _flags: OpenFlags,
            _owner: Option<LockOwner>, _flush: bool; ReplyEmpty)
            => release();
        OpenDir "OPENDIR": opendir(request, _ino: INodeNo, _flags: OpenFlags; ReplyOpen)
            => opendir();
        ReadDir "READDIR": readdir(request, ino: INodeNo, _handle: FileHandle, offset: u64; ReplyDirectory)
            => readdir(ino.0, offset);
        ReadDirPlus "READDIRPLUS": readdirplus(request, ino: INodeNo, _handle: FileHandle, offset: u64;
            ReplyDirectoryPlus)
            => readdirplus(ino.0, offset);
        ReleaseDir "RELEASEDIR": releasedir(request, _ino: INodeNo, _handle: FileHandle, _flags: OpenFlags; ReplyEmpty)
            => release();
        StatFs "STATFS": statfs(request, _ino: INodeNo; ReplyStatfs)
            => statfs();
        SetXattr "SETXATTR": setxattr(request, ino: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32;
            ReplyEmpty)
            => setxattr(request, ino.0, name.as_bytes(), value, flags);
        GetXattr "GETXATTR": getxattr(request, ino: INodeNo, name: &OsStr, size: u32; ReplyXattr)
            => getxattr(ino.0, name.as_bytes(), size);
        ListXattr "LISTXATTR": listxattr(request, ino: INodeNo, size: u32; ReplyXattr)
            => listxattr(ino.0, size);
        RemoveXattr "REMOVEXATTR": removexattr(request, ino: INodeNo, name: &OsStr; ReplyEmpty)
            => removexattr(ino.0, name.as_bytes());
        Create "CREATE": create(request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _flags: i32;
            ReplyCreate)
            => create(parent.0, name.as_bytes(), mode & 0o7777, &creator(request, umask));
        Fallocate "FALLOCATE": fallocate(request, ino: INodeNo, _handle: FileHandle, offset: u64, length: u64,
            mode: i32; ReplyEmpty)
            => fallocate(request, ino.0, offset, length, mode);
        Lseek "LSEEK": lseek(request, ino: INodeNo, _handle: FileHandle, offset: i64, whence: i32; ReplyLseek)
            => lseek(ino.0, offset, whence);
        CopyFileRange "COPY_FILE_RANGE": copy_file_range(request, from: INodeNo, _handle: FileHandle, from_offset: u64,
            to: INodeNo, _to_handle: FileHandle, to_offset: u64, length: u64, _flags: CopyFileRangeFlags; ReplyWrite)
            => copy_file_range(request, (from.0, from_offset), (to.0, to_offset), length);
    }

    // `ENOSYS` is remembered by the kernel, which does without from then on.
    refused {
        // Nothing to do when a descriptor is closed; the kernel still writes its dirty pages first.
        Flush "FLUSH": flush(_ino: INodeNo, _handle: FileHandle, _owner: LockOwner; ReplyEmpty) => Errno::ENOSYS;
        // Once the kernel has written its dirty pages, the data is as safe as it will be; the key does not outlive this
        // process.
        Fsync "FSYNC": fsync(_ino: INodeNo, _handle: FileHandle, _data: bool; ReplyEmpty) => Errno::ENOSYS;
        FsyncDir "FSYNCDIR": fsyncdir(_ino: INodeNo, _handle: FileHandle, _data: bool; ReplyEmpty) => Errno::ENOSYS;
        // The kernel checks permissions itself (`default_permissions`).
        Access "ACCESS": access(_ino: INodeNo, _mask: AccessFlags; ReplyEmpty) => Errno::ENOSYS;
        // Locks are kept by the kernel, which does not ask (POSIX_LOCKS and FLOCK_LOCKS are not negotiated).
        GetLk "GETLK": getlk(_ino: INodeNo, _handle: FileHandle, _owner: LockOwner, _start: u64, _end: u64, _kind: i32,
            _pid: u32; ReplyLock) => Errno::ENOSYS;
        SetLk "SETLK": setlk(_ino: INodeNo, _handle: FileHandle, _owner: LockOwner, _start: u64, _end: u64, _kind: i32,
            _pid: u32, _sleep: bool; ReplyEmpty) => Errno::ENOSYS;
        Bmap "BMAP": bmap(_ino: INodeNo, _block_size: u32, _index: u64; ReplyBmap) => Errno::ENOSYS;
        // The kernel turns it into `ENOTTY`.
        Ioctl "IOCTL": ioctl(_ino: INodeNo, _handle: FileHandle, _flags: IoctlFlags, _command: u32, _input: &[u8],
            _output_size: u32; ReplyIoctl) => Errno::ENOSYS;
        Poll "POLL": poll(_ino: INodeNo, _handle: FileHandle, _notifier: PollNotifier, _events: PollEvents,
            _flags: PollFlags; ReplyPoll) => Errno::ENOSYS;
    }
}

impl Opcode {
    /// As fuse.h names it.
    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

fn creator(request: &Request, umask: u32) -> Creator {
    Creator { uid: request.uid(), gid: request.gid(), umask }
}
