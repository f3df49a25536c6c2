//! `runseal serve`, through its sockets.

mod api;
#[path = "../cli/bench.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod bench;
mod disks;
mod docker;
mod engine;
mod misuse;
mod node;
mod restart;
mod scale;
mod settings;
mod volumes;
