//! The clock the kernel stamps inodes with.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::LazyLock;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// A file that the kernel stamps for us. Threads share it: a stamp that another one sets in between is no older than the
/// call that reads it, and not in the future.
static STAMPED: LazyLock<Option<OwnedFd>> =
    LazyLock::new(|| memfd_create(c"runseal-clock", MFdFlags::MFD_CLOEXEC).ok());

/// The time the kernel would stamp an inode with now: seconds since 1970, and nanoseconds after that second.
///
/// Since Linux 6.13 (multigrain time stamps) that is no clock a program can read: the coarse clock, but no earlier than
/// the finest stamp given to any inode of the machine. So a file in memory is touched, and tells its time.
pub fn inode_time() -> (i64, u32) {
    let stamp = STAMPED.as_ref().and_then(|file| touch(file).ok());
    stamp.unwrap_or_else(|| {
        let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).expect("Linux has had this clock since 2.6.32");
        (now.tv_sec(), now.tv_nsec() as u32)
    })
}

/// Only the access time is asked for: after a look at the others the kernel would take the next stamp from the fine
/// clock, and move all stamps of the machine up to it.
fn touch(file: &OwnedFd) -> io::Result<(i64, u32)> {
    futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a string that ends in NUL, `answer` is as large as the kernel fills it. nix has no wrapper.
    let code = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_ATIME, answer.as_mut_ptr())
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid value of this struct of integers, before and after the kernel has filled it.
    let atime = unsafe { answer.assume_init() }.stx_atime;
    Ok((atime.tv_sec, atime.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// Both directions: what the kernel has stamped before is no later, what it stamps afterwards is no earlier.
    #[test]
    fn stamps_stand_between_those_of_the_kernel() {
        let noise = tempfile::tempfile().expect("a file");
        let stamped = |file: &File| {
            file.write_all_at(b"x", 0).expect("a write");
            // The look at it makes the kernel take the next stamp from the fine clock.
            let seen = file.metadata().expect("fstat");
            (seen.mtime(), seen.mtime_nsec() as u32)
        };
        for _ in 0..2000 {
            let before = stamped(&noise);
            let ours = inode_time();
            let after = stamped(&noise);
            assert!(before <= ours && ours <= after, "{before:?} {ours:?} {after:?}");
        }
    }

    #[test]
    fn the_time_is_that_of_the_machine() {
        let coarse = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).expect("a clock");
        let ours = inode_time();
        let fine = clock_gettime(ClockId::CLOCK_REALTIME).expect("a clock");
        assert!((coarse.tv_sec(), coarse.tv_nsec() as u32) <= ours && ours <= (fine.tv_sec(), fine.tv_nsec() as u32));
    }
}
