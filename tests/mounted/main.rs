//! The file system through the kernel: real mounts, real programs.
//!
//! Needs root and /dev/fuse; without them each test prints why it was skipped.

mod attributes;
mod concurrent;
mod files;
mod full;
mod lifecycle;
mod names;
mod overlay;
mod programs;
#[path = "../support/scratch_mount.rs"]
mod scratch_mount;
mod space;
mod sparse;
mod suidgid;
mod suites;
mod torture;
