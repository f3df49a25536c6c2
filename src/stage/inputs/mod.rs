//! Inputs on their way in: files of this machine, and objects of S3.

pub(super) mod files;
pub(super) mod objects;
