//! `runseal serve`, through its sockets.

mod api;
#[cfg(feature = "aws")]
#[path = "../aws_double/mod.rs"]
mod aws_double;
#[path = "../cli/bench.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod bench;
mod disks;
mod docker;
mod engine;
mod fuzz;
mod misuse;
mod node;
mod restart;
mod scale;
mod settings;
#[cfg(feature = "aws")]
mod staging;
mod strangers;
mod volumes;
