//! Who is alive in a run, and how one speaks to it. Knows neither AWS nor the file system of the scratch.
//!
//! ```text
//! supervisor            what the user started; no key                process/supervisor.rs
//!   └─ sealed           PID 1 of its PID namespace; has the key      process/sealed.rs
//!        ├─ command     and all it starts                            command/
//!        └─ guests      programs of `runseal exec`                   command/guests.rs
//! ```
//!
//! If the sealed process dies, the kernel kills all inside its PID namespace, and the mount namespace goes with them.
//! If the supervisor dies, the kernel kills the sealed process (`PR_SET_PDEATHSIG`). A mount has the same two processes
//! without the namespaces. Whatever is said between processes is in `control/wire.rs`; what is kept of them in `state`.

pub mod command;
pub mod control;
pub mod error;
pub mod message;
pub mod process;
pub mod state;

pub use self::control::desk::{Desk, Order};
pub use self::control::wire::{CopyOrder, Event, ExecOrder, Reply, Request, ResumeOrder, SignalMessage, Unpublished};
pub use self::error::FamilyError;
pub use self::message::Voice;
pub use self::state::facts::{
    AuditFacts, AwsFacts, InputFacts, Kind, LossFacts, LostFile, Outcome, Phase, RunKeyFacts, SealFacts,
};
pub use self::state::journal::{Journal, MountSight};
pub use self::state::report::Report;
pub use self::state::{Record, StateError};
