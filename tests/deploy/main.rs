//! The homes of runseal for real: containers, systemd, workflow engines, the installer.
//!
//! Needs root, /dev/fuse, Docker, and what `scripts/install-deps.sh` fetched; says `SKIP: reason` where one is missing.
//! No image is pulled: those used here are made from files of this machine, and carry the label `runseal-deploy-test`.

mod containers;
mod docker;
mod engines;
mod install;
#[path = "../support/program.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "the tests of the command line use the rest")]
mod program;
mod systemd;
