//! What is done in a run, in order; composition root of everything below.
//!
//! ```text
//!              Preflight -> Key -> Seal -> Fetch -> Purpose -> End        life.rs
//!                  |         |       |       |         |        ^
//!                  +---------+-------+-------+---------+--------+   refused, interrupted, ended
//!
//! Purpose, a command      Command -> Publish <-> Held -> End        command.rs, publish.rs, hold.rs
//! Purpose, a mount        Serving <-> Publish -> Held -> End        serve.rs
//! ```
//!
//! Each state hears orders while it lasts, and answers all of them through one table (`decide.rs`). A mount without data
//! has nothing to fetch and nothing to publish, and is the same life otherwise. The processes, and what is said between
//! them, are of [`family`](crate::family).

mod cloud;
mod command;
mod decide;
mod doctor;
pub mod error;
mod flush;
mod hear;
mod hold;
mod life;
mod losses;
mod patience;
mod preflight;
mod progress;
mod publish;
mod seal;
mod serve;
mod served;
mod start;
mod verify;

use std::time::Duration;

pub use self::doctor::{Fact, Verdict, examine};
use self::error::{RunError, system};
pub use self::flush::{SUBCOMMAND as FLUSH_RESULTS, flush_here};
pub use self::preflight::{check_key, preflight};
pub use self::served::{Family, MountOrder, NotMounted, SUBCOMMAND as SERVED_MOUNT, mount_here};
pub use self::start::run;
pub use self::verify::verify;
pub use crate::family::Unpublished;
use crate::family::control::client;
pub use crate::family::control::client::{LiveRun, status};
pub use crate::family::control::end::end;
pub use crate::family::control::visits::{copy, exec};
pub use crate::family::control::wire::ResumeOrder;
pub use crate::family::error::{CommandError, FamilyError, NamespaceError, StateError};
pub use crate::family::message::{Voice, warn};
pub use crate::family::process::sealed::beside;
pub use crate::family::state::Record;
pub use crate::family::state::facts::Phase;
pub use crate::family::state::report::Report;
pub use crate::fuse::knows_option as knows_mount_option;
pub use crate::preflight::{AWS_OWNED, Check, Evidence, Outcome as CheckOutcome, Profile};
pub use crate::spec::{Credentials, CredentialsText};
pub use crate::stage::{Demands as VerifyDemands, Verification};
use crate::sys::environment;

/// How long `end` waits for a run to hear it.
const END_TIME: Duration = Duration::from_secs(30);

/// Takes credentials of AWS out of what everybody with the right user reads in `/proc/PID/environ`; they are found as
/// before. To be called first of all.
///
/// # Errors
/// This process has more than one thread.
pub fn hide_credentials() -> Result<(), RunError> {
    environment::hide(cloud::leads_to_credentials).map_err(system("hiding credentials in the environment"))
}

/// For a process that has forked the one that needs them.
fn forget_credentials() -> Result<(), RunError> {
    environment::forget(cloud::leads_to_credentials).map_err(system("wiping credentials in the environment"))
}

/// Has a held run try to publish again; returns what it answered.
pub fn resume(run: &str, order: ResumeOrder) -> Result<String, RunError> {
    let reply = client::resume(run, order)?;
    if reply.incomplete { Err(RunError::Incomplete(reply.message)) } else { Ok(reply.accepted()?) }
}
