//! S3 and KMS, against the double of `tests/support/aws_double` and, as a second opinion, against ministack.

mod audit;
#[path = "../support/aws_double/mod.rs"]
mod aws_double;
#[path = "../stage/bucket.rs"]
#[allow(dead_code, reason = "the tests of staging use the rest")]
mod bucket;
mod cases;
mod contract;
mod fixture;
mod keys;
mod ministack;
mod preflight;
#[path = "../support/program.rs"]
#[allow(dead_code, reason = "the tests of the command line use the rest")]
mod program;
mod runs;
mod sdk;
mod stage;
#[path = "../support/tap.rs"]
mod tap;
mod verify;
