//! S3 and KMS, against the double of `tests/aws_double` and, as a second opinion, against ministack.

#[path = "../aws_double/mod.rs"]
mod aws_double;
mod cases;
mod ministack;
mod preflight;
mod runs;
mod sdk;
mod stage;
