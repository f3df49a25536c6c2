//! S3 and KMS, against the double of `tests/aws_double` and, as a second opinion, against ministack.

mod audit;
#[path = "../aws_double/mod.rs"]
mod aws_double;
#[path = "../cli/bench.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod bench;
mod cases;
mod fixture;
mod keys;
mod ministack;
mod preflight;
mod runs;
mod sdk;
mod stage;
#[path = "../secrecy/tap.rs"]
mod tap;
mod verify;
