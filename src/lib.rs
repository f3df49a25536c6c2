//! runseal gives a workflow an encrypted scratch whose key is born and dies with the run.
//!
//! Start at [`spec::RunSpec`], the one description of a run, and follow it: `cli` or [`serve`] make it, [`run`] lives by
//! it. `docs/maintainers.md` has the tour, the words, and how to add things.
//!
//! The crate is a program. What is public here is so for its own tests, benches and fuzz targets: none of it is an API
//! that others can rely on, and what only tests would call is not kept, but for the seams at which they put faults and
//! fakes ([`backing::FaultyBacking`], [`aws::Services`]) and the published vectors ([`crypt`]).
//!
//! Two paths lead data down, and both read from top to bottom in the table of layers:
//!
//! ```text
//! write(2)      -> fuse -> fs -> store -> crypt, backing -> disk (ciphertext, nameless files)
//! input, output -> run -> preflight gives Cleared -> stage -> fs -> the same three steps
//! ```
//!
//! | layer | what lives there | may see |
//! |---|---|---|
//! | [`cli`], [`exit`] | flags to specifications, errors to exit codes | `serve`, `run`, `policy`, `audit`, `spec` |
//! | [`serve`] | the node daemon: one family of processes per run, over HTTP on a Unix socket | `run`, `spec` |
//! | [`run`] | composition root: the life of a run, from preflight to the wiped key | everything below |
//! | [`family`] | who is alive in a run, and how one speaks to it | `spec`, `sys` |
//! | [`fuse`] | FUSE opcodes to calls of `fs`; mount and session | `fs`, `sys` |
//! | [`stage`] | `inputs` in, `results` out, `verify` | `fs`, `preflight` (`Cleared` only), `aws`, `audit`, `spec` |
//! | [`preflight`] | proof that the run can finish, before it starts: of `local` files, of what is in `aws` | `policy`, `aws`, `spec`, `sys` |
//! | [`policy`] | IAM and key policies: what a run needs, what is wrong with one | `aws` |
//! | [`aws`] | objects and keys of AWS: traits, adapter, and the gate that every call passes; owns the async runtime | `audit`, `spec` |
//! | [`audit`] | what was done with keys and objects, hash-chained | `spec`, `sys` |
//! | [`fs`] | [`fs::Scratch`]: all file-system semantics, no kernel needed | `store` |
//! | [`store`] | plaintext above, ciphertext below; extents, allocator | `crypt`, `backing` |
//! | [`crypt`] | XTS-AES-256, key arena | `sys` |
//! | [`backing`] | nameless arena files | `sys` |
//! | [`spec`], [`sync`], [`sys`], [`units`] | vocabulary, locks that know their order, thin wrappers of system calls | nothing |
//!
//! Imports go downward only; `tests/architecture.rs` enforces the table.
#![deny(unsafe_code, missing_docs)]
#![warn(clippy::undocumented_unsafe_blocks)]

pub mod cli;
pub mod exit;
pub mod serve;

pub mod run;

pub mod family;

pub mod fuse;
pub mod stage;

pub mod preflight;

pub mod policy;

pub mod aws;

pub mod audit;

pub mod fs;

pub mod store;

pub mod backing;
pub mod crypt;

pub mod spec;
pub mod sync;
pub mod sys;
pub mod units;
