//! How one speaks to a run: what is said, how it gets there, who takes it, and who asks.

pub mod client;
pub mod desk;
pub mod end;
pub mod socket;
pub mod visits;
pub mod wire;
