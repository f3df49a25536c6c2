//! The words of this layer: what may be asked of a [`super::Scratch`], and what it answers.

use crate::store::StoreError;
use crate::sys::clock::inode_time;

/// Inode number of the root directory.
pub const ROOT: u64 = 1;
/// Longest name of a directory entry in bytes (POSIX `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Most hard links of one file (POSIX `LINK_MAX`).
pub const LINK_MAX: u32 = 65_000;

/// Why an operation was refused: one variant per POSIX error it stands for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// `ENOENT`
    #[error("no such file or directory")]
    NotFound,
    /// `EEXIST`
    #[error("file exists")]
    Exists,
    /// `ENOTDIR`
    #[error("not a directory")]
    NotDirectory,
    /// `EISDIR`
    #[error("is a directory")]
    IsDirectory,
    /// `ENOTEMPTY`
    #[error("directory not empty")]
    NotEmpty,
    /// `EINVAL`
    #[error("invalid argument")]
    Invalid,
    /// `EACCES`: a default ACL for something that is not a directory.
    #[error("only directories have a default ACL")]
    Access,
    /// `EPERM`
    #[error("operation not permitted")]
    NotPermitted,
    /// `ENAMETOOLONG`
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// `EMLINK`
    #[error("too many links")]
    TooManyLinks,
    /// `EFBIG`
    #[error("file too large")]
    TooLarge,
    /// `ENOSPC`: the memory for names and attributes, or the room for those of one inode (bytes come as
    /// [`StoreError::NoSpace`]).
    #[error("no room for more names and attributes")]
    NoInodes,
    /// `ENODATA`
    #[error("no such attribute")]
    NoAttribute,
    /// `E2BIG`: the value of an extended attribute.
    #[error("attribute value longer than 65536 bytes")]
    TooBig,
    /// `ERANGE`
    #[error("buffer too small")]
    Range,
    /// `EOPNOTSUPP`
    #[error("operation not supported")]
    NotSupported,
    /// `ESTALE`: an inode number that is not, or no longer, known.
    #[error("stale inode number {0}")]
    Stale(u64),
    /// `ENOSPC` or `EIO`
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// FIFO.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds (0..1e9) after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since the epoch.
    pub secs: i64,
    /// Nanoseconds, always counted forward.
    pub nanos: u32,
}

impl Time {
    /// The time by the clock the kernel stamps its own inodes with: under a writeback cache it sets mtime and ctime
    /// of files, and another clock here would run ahead of it or behind.
    pub(super) fn now() -> Self {
        let (secs, nanos) = inode_time();
        Self { secs, nanos }
    }
}

/// Attributes as `stat(2)` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`07777`).
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the encoding of `makedev(3)` as the kernel passes it.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Last access, as last set: reads do not move it (as with `noatime`).
    pub atime: Time,
    /// Last modification.
    pub mtime: Time,
    /// Last status change.
    pub ctime: Time,
}

/// Who creates something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creator {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Umask; applied unless the directory has a default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The clock's time.
    Now,
    /// This time.
    At(Time),
}

/// What to change; `None` leaves a value alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits (`07777`); keeps a POSIX access ACL in step.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last modification.
    pub mtime: Option<SetTime>,
    /// Status change; without it, ctime becomes now.
    pub ctime: Option<Time>,
}

/// How a write treats metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteMode {
    /// Leave mtime and ctime to the caller (the kernel owns them with a writeback cache).
    pub keep_times: bool,
    /// The writer was told already that the data is written: it may take the headroom.
    pub accepted: bool,
}

/// `fallocate(2)` modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Mode 0, or `FALLOC_FL_KEEP_SIZE`.
    Allocate {
        /// Do not grow the size.
        keep_size: bool,
    },
    /// `FALLOC_FL_PUNCH_HOLE` (always with `KEEP_SIZE`).
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`.
    Zero {
        /// Do not grow the size.
        keep_size: bool,
    },
}

/// `renameat2(2)` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `RENAME_NOREPLACE`
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`
    pub exchange: bool,
    /// `RENAME_WHITEOUT`
    pub whiteout: bool,
}

/// `setxattr(2)` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    #[default]
    Any,
    /// `XATTR_CREATE`
    Create,
    /// `XATTR_REPLACE`
    Replace,
}

/// One entry handed out by [`Scratch::readdir`](super::Scratch::readdir).
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Name; `.` and `..` come first.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u64,
    /// Kind.
    pub kind: Kind,
    /// Pass this as `cookie` to go on behind this entry. Stable while the entry lives, whatever else changes.
    pub cookie: u64,
}

/// Space and inodes for `statfs(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Sectors (4096 bytes) in all.
    pub sectors: u64,
    /// Sectors free: the smaller of what the limit leaves and what the disk has.
    pub sectors_free: u64,
    /// Inodes in all: those there are and those there is memory for.
    pub inodes: u64,
    /// Inodes there is memory for, of small files without attributes.
    pub inodes_free: u64,
}

/// Limits and ownership of a new [`Scratch`](super::Scratch).
#[derive(Clone, Copy, Debug)]
pub struct ScratchOptions {
    /// Bytes of memory that names, attributes and everything else that is known of files may take.
    pub memory: u64,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub mode: u32,
}
