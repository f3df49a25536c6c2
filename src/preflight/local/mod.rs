//! Inputs and output of this machine: asked of the kernel, by doing in small what the run will do.

pub(super) mod claim;
pub(super) mod inputs;
pub(crate) mod links;
pub(super) mod output;
