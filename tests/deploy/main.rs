//! The homes of runseal for real: containers, systemd, workflow engines, the installer.
//!
//! Needs root, /dev/fuse, Docker, and what `scripts/install-deps.sh` fetched; says `SKIP: reason` where one is missing.
//! No image is pulled: those used here are made from files of this machine, and carry the label `runseal-deploy-test`.

mod bench;
mod docker;
mod engines;
mod install;
mod systemd;
