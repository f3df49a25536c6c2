//! [`FsError`] to errno. No wildcard: a new error must be given its number here.

use fuser::Errno;

use crate::fs::{FsError, StoreError};

/// The errno an application sees for `error`.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::Invalid => Errno::EINVAL,
        FsError::Access => Errno::EACCES,
        FsError::NotPermitted => Errno::EPERM,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::TooLarge => Errno::EFBIG,
        FsError::NoInodes => Errno::ENOSPC,
        FsError::NoAttribute => Errno::NO_XATTR,
        FsError::TooBig => Errno::E2BIG,
        FsError::Range => Errno::ERANGE,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::Stale(_) => Errno::ESTALE,
        FsError::Store(error) => store_errno(error),
    }
}

/// An application only learns "no space" or "I/O error"; the operator finds the rest in the log.
fn store_errno(error: &StoreError) -> Errno {
    match error {
        StoreError::NoSpace => return Errno::ENOSPC,
        StoreError::Latched => {}
        StoreError::Backing { .. } | StoreError::Key(_) => tracing::error!(%error, "request failed with EIO"),
    }
    Errno::EIO
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_error_has_the_number_posix_gives_it() {
        let cases = [
            (FsError::NotFound, libc::ENOENT),
            (FsError::Exists, libc::EEXIST),
            (FsError::NotDirectory, libc::ENOTDIR),
            (FsError::IsDirectory, libc::EISDIR),
            (FsError::NotEmpty, libc::ENOTEMPTY),
            (FsError::Invalid, libc::EINVAL),
            (FsError::Access, libc::EACCES),
            (FsError::NotPermitted, libc::EPERM),
            (FsError::NameTooLong, libc::ENAMETOOLONG),
            (FsError::TooManyLinks, libc::EMLINK),
            (FsError::TooLarge, libc::EFBIG),
            (FsError::NoInodes, libc::ENOSPC),
            (FsError::NoAttribute, libc::ENODATA),
            (FsError::TooBig, libc::E2BIG),
            (FsError::Range, libc::ERANGE),
            (FsError::NotSupported, libc::EOPNOTSUPP),
            (FsError::Stale(7), libc::ESTALE),
            (FsError::Store(StoreError::NoSpace), libc::ENOSPC),
            (FsError::Store(StoreError::Latched), libc::EIO),
            (FsError::Store(backing(libc::EIO)), libc::EIO),
            (FsError::Store(backing(libc::EINTR)), libc::EIO),
        ];
        for (error, number) in cases {
            assert_eq!(errno(&error).code(), number, "{error}");
        }
    }

    fn backing(code: i32) -> StoreError {
        StoreError::Backing { op: "write", source: io::Error::from_raw_os_error(code) }
    }
}
