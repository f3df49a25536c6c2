//! Thin safe wrappers of system calls. Unsafe code lives here and in `crypt` only.

pub mod acl;
pub mod address;
pub mod beneath;
pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod environment;
pub mod identity;
pub mod immutable;
pub mod lock;
pub mod memory;
pub mod mount;
pub mod notify;
pub mod own_mount;
pub mod path;
pub mod process;
pub mod replace;
pub mod socket;
pub mod terminal;
