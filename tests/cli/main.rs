//! The binary from the outside: what people type, what they read, what it exits with, what is left behind.
//!
//! Most of it needs root and /dev/fuse; says `SKIP: reason` without them.

mod bench;
mod dead;
mod death;
mod held;
mod hosts;
mod losses;
mod mounts;
mod nesting;
mod results;
mod runs;
mod signals;
mod temporary;
mod usage;
mod visits;
