//! Default POSIX ACLs of directories (acl(5)), in the form of `posix_acl_xattr.h`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Name of the extended attribute.
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";
/// Longest value of an attribute (`XATTR_SIZE_MAX`).
const ROOM: usize = 64 << 10;

/// The default ACL of an open directory; `None` if it has none, or cannot have one.
pub fn default_acl(directory: impl AsFd) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; ROOM];
    let fd = directory.as_fd().as_raw_fd();
    // Needed: neither std nor nix has this call.
    // SAFETY: the descriptor is open, the name ends with NUL, and `value` has ROOM bytes.
    let got = unsafe { libc::fgetxattr(fd, DEFAULT_ACL.as_ptr(), value.as_mut_ptr().cast(), ROOM) };
    match Errno::result(got) {
        Ok(len) => {
            value.truncate(len as usize);
            Ok(Some(value))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
