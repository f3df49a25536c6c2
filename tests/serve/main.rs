//! `runseal serve`, through its sockets.

mod api;
#[cfg(feature = "aws")]
#[path = "../support/aws_double/mod.rs"]
mod aws_double;
mod disks;
mod docker;
mod engine;
mod fuzz;
mod misuse;
mod node;
#[path = "../support/program.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod program;
mod restart;
mod scale;
mod settings;
#[cfg(feature = "aws")]
mod staging;
mod strangers;
mod volumes;
