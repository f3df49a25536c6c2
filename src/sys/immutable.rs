//! The immutable flag of a directory (ioctl_iflags(2)): nothing is made, removed, renamed or chowned there, not by root
//! either. Mounting on it is no change of it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `FS_IMMUTABLE_FL` of `linux/fs.h`.
const IMMUTABLE: libc::c_int = 0x10;

/// Sets or clears the flag. Needs `CAP_LINUX_IMMUTABLE`, and a file system that has it.
pub fn set(directory: impl AsFd, immutable: bool) -> io::Result<()> {
    let fd = directory.as_fd().as_raw_fd();
    let mut flags: libc::c_int = 0;
    // SAFETY: the descriptor is open for the time of the call, and the kernel writes one int to the address of one. nix
    // has macros for such calls, which are unsafe in the same way.
    nix::errno::Errno::result(unsafe { libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &raw mut flags) })?;
    let wanted = if immutable { flags | IMMUTABLE } else { flags & !IMMUTABLE };
    if wanted != flags {
        // SAFETY: as above; the kernel reads one int.
        nix::errno::Errno::result(unsafe { libc::ioctl(fd, libc::FS_IOC_SETFLAGS, &raw const wanted) })?;
    }
    Ok(())
}
