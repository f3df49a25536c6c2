//! The two processes that every run has, and who watches the first of them.

pub mod manager;
pub mod sealed;
pub mod supervisor;
pub mod terminal;
