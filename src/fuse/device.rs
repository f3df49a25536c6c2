//! `/dev/fuse` and mount(2): what can be refused there, and what to do about it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use super::FuseError;
use super::options::MountFlags;
use crate::sys::mount as sys;
use crate::sys::own_mount::{FS_TYPE, SOURCE};

const DEVICE: &str = "/dev/fuse";

/// Opened by path, so that a user namespace sees its own `/dev/fuse`.
pub(super) fn open_device() -> Result<OwnedFd, FuseError> {
    match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file.into()),
        Err(source) => {
            let remedy = device_remedy(&source);
            Err(FuseError::Device { source, remedy })
        }
    }
}

fn device_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "load the kernel module (modprobe fuse), or give the container the device (--device /dev/fuse)"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "let this user open it (chmod 0666 /dev/fuse, or its group), or give the container the device \
             (--device /dev/fuse) and the right to mount (--cap-add SYS_ADMIN)"
        }
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files (ulimit -n)",
        _ => "see whether the kernel has FUSE: grep fuse /proc/filesystems",
    }
}

/// The kernel checks permissions (`default_permissions`) in every case.
pub(super) fn mount_device(device: &OwnedFd, path: &Path, options: &MountFlags) -> Result<(), FuseError> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut data = format!(
        "fd={},rootmode={:o},user_id={user},group_id={group},default_permissions",
        device.as_raw_fd(),
        libc::S_IFDIR
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    sys::mount(SOURCE, path, FS_TYPE, options.flags, &data)
        .map_err(|source| FuseError::Mount { path: path.to_owned(), source })
}

/// What to do about an error of mount(2).
pub(super) fn mount_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or use `runseal run`, which makes a user namespace of its own; in a container add \
             --cap-add SYS_ADMIN (and --security-opt apparmor=unconfined where AppArmor forbids mounting)"
        }
        Some(libc::ENODEV) => "the kernel has no FUSE; load the module: modprobe fuse",
        Some(libc::ENOSPC) => "too many mounts in this namespace; raise fs.mount-max",
        _ => "the kernel log may say more: dmesg",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_device_and_of_mount_come_with_a_remedy() {
        let remedies = |code| {
            let error = || io::Error::from_raw_os_error(code);
            (device_remedy(&error()), mount_remedy(&error()))
        };
        assert!(remedies(libc::ENOENT).0.contains("modprobe fuse"));
        assert!(remedies(libc::ENOENT).0.contains("--device /dev/fuse"));
        assert!(remedies(libc::EACCES).0.contains("chmod 0666 /dev/fuse"));
        assert!(remedies(libc::EPERM).0.contains("--cap-add SYS_ADMIN"));
        assert!(remedies(libc::EPERM).1.contains("run as root"));
        assert!(remedies(libc::EPERM).1.contains("runseal run"));
        assert!(remedies(libc::ENODEV).1.contains("modprobe fuse"));
    }
}
