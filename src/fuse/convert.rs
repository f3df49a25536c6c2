//! What the kernel calls things, and what `fs` calls them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fs::{Attr, Fallocate, Kind, RenameFlags, SetAttr, SetTime, Time, XattrMode};
use crate::units::SECTOR;

/// The reply "no such name", which the kernel then remembers: inode number 0 (fuse.h, `fuse_entry_out`).
pub(super) fn absent() -> FileAttr {
    file_attr(&Attr {
        ino: 0,
        kind: Kind::File,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
    })
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: SECTOR as u32,
        flags: 0,
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind mknod(2) asks for in `mode`; `None` for one it cannot make.
pub(super) fn node_kind(mode: u32) -> Option<Kind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(Kind::File),
        libc::S_IFIFO => Some(Kind::Fifo),
        libc::S_IFSOCK => Some(Kind::Socket),
        libc::S_IFCHR => Some(Kind::CharDevice),
        libc::S_IFBLK => Some(Kind::BlockDevice),
        _ => None,
    }
}

/// What SETATTR is to change: mode, owner and group, size, times of access and modification, status change.
pub(super) fn wanted(
    mode: Option<u32>,
    (uid, gid): (Option<u32>, Option<u32>),
    size: Option<u64>,
    (atime, mtime): (Option<TimeOrNow>, Option<TimeOrNow>),
    ctime: Option<SystemTime>,
) -> SetAttr {
    SetAttr {
        mode: mode.map(|mode| mode & 0o7777),
        uid,
        gid,
        size,
        atime: atime.map(set_time),
        mtime: mtime.map(set_time),
        ctime: ctime.map(from_system),
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_system(time)),
    }
}

/// Undoes what fuser 0.18 makes of a kernel time: before 1970 it computes the epoch minus (|seconds| + nanoseconds),
/// although the kernel counts nanoseconds forward.
fn from_system(time: SystemTime) -> Time {
    let whole = |duration: Duration| i64::try_from(duration.as_secs());
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: whole(since).unwrap_or(i64::MAX), nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { secs: whole(before).map_or(i64::MIN, |secs| -secs), nanos: before.subsec_nanos() }
        }
    }
}

/// A true [`SystemTime`]; in this direction fuser converts correctly.
fn to_system(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// The modes of fallocate(2) that are supported; `None` for the others.
pub(super) fn fallocate_mode(mode: i32) -> Option<Fallocate> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(Fallocate::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Fallocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(Fallocate::Zero { keep_size }),
        _ => None,
    }
}

pub(super) fn rename_flags(flags: fuser::RenameFlags) -> RenameFlags {
    RenameFlags {
        no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
        exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
    }
}

/// The flags of setxattr(2); `None` for a combination it refuses.
pub(super) fn xattr_mode(flags: i32) -> Option<XattrMode> {
    match flags {
        0 => Some(XattrMode::Any),
        libc::XATTR_CREATE => Some(XattrMode::Create),
        libc::XATTR_REPLACE => Some(XattrMode::Replace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As fuser 0.18 does it (`time.rs`), for the kernel's pair.
    fn as_fuser_decodes(secs: i64, nanos: u32) -> SystemTime {
        let duration = Duration::new(secs.unsigned_abs(), nanos);
        if secs >= 0 { UNIX_EPOCH + duration } else { UNIX_EPOCH - duration }
    }

    #[test]
    fn times_before_1970_arrive_as_the_kernel_sent_them() {
        for (secs, nanos) in
            [(-2, 500_000_000), (-1, 0), (-1, 999_999_999), (0, 0), (0, 1), (1 << 33, 7), (i64::MIN, 0)]
        {
            assert_eq!(from_system(as_fuser_decodes(secs, nanos)), Time { secs, nanos });
        }
    }

    #[test]
    fn times_go_out_as_points_in_time() {
        assert_eq!(to_system(Time { secs: -2, nanos: 500_000_000 }), UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(to_system(Time { secs: 3, nanos: 4 }), UNIX_EPOCH + Duration::new(3, 4));
        assert!(to_system(Time { secs: i64::MIN, nanos: 0 }) < UNIX_EPOCH);
        assert!(to_system(Time { secs: i64::MAX, nanos: 999_999_999 }) > UNIX_EPOCH);
    }

    #[test]
    fn only_the_supported_modes_of_fallocate_pass() {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(fallocate_mode(0), Some(Fallocate::Allocate { keep_size: false }));
        assert_eq!(fallocate_mode(libc::FALLOC_FL_KEEP_SIZE), Some(Fallocate::Allocate { keep_size: true }));
        assert_eq!(fallocate_mode(punch), Some(Fallocate::Punch));
        assert_eq!(fallocate_mode(libc::FALLOC_FL_ZERO_RANGE), Some(Fallocate::Zero { keep_size: false }));
        for mode in [libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, 0x4000] {
            assert_eq!(fallocate_mode(mode), None, "{mode:#x}");
        }
    }

    #[test]
    fn mknod_makes_files_and_special_files_only() {
        assert_eq!(node_kind(0o644), Some(Kind::File));
        assert_eq!(node_kind(libc::S_IFBLK | 0o600), Some(Kind::BlockDevice));
        assert_eq!(node_kind(libc::S_IFDIR | 0o755), None);
        assert_eq!(node_kind(libc::S_IFLNK), None);
    }

    #[test]
    fn a_negative_entry_has_no_inode() {
        assert_eq!(absent().ino, INodeNo(0));
    }
}
