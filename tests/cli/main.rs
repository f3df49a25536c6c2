//! The binary from the outside: what people type, what they read, what it exits with, what is left behind.
//!
//! Most of it needs root and /dev/fuse; says `SKIP: reason` without them.

mod dead;
mod death;
mod held;
mod hosts;
mod losses;
mod mounts;
mod nesting;
#[path = "../support/program.rs"]
#[allow(dead_code, reason = "the tests of containers use the rest")]
mod program;
mod results;
mod runs;
mod signals;
mod temporary;
mod usage;
mod visits;
