//! Results on their way out: into a directory of this machine, or below a prefix of S3.

mod commit;
pub(super) mod files;
mod inherit;
mod keys;
pub(super) mod manifest;
pub(super) mod objects;
pub(super) mod older;
pub(super) mod outgoing;
mod place;
pub(super) mod plan;
pub(super) mod remains;
mod retire;
mod save;
pub(super) mod survey;
