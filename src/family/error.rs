//! Why processes of a run cannot live, end or be spoken to.

use std::io;
use std::path::PathBuf;

use nix::sys::signal::Signal;

pub use crate::family::command::CommandError;
pub use crate::family::command::identity::IdentityError;
pub use crate::family::command::namespace::NamespaceError;
pub use crate::family::state::StateError;
use crate::sys::path::shown;

/// What is done while results are on their way out.
pub const PUBLISHING: &str = "publishing the results";

/// What went wrong among the processes of a run.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// The command could not start.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Namespaces.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A user of its own for the command.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// State directory, or a run that is not there.
    #[error(transparent)]
    State(#[from] StateError),
    /// The report cannot be written.
    #[error("cannot write the report {path}: {source}; name another file with --report")]
    Report {
        /// Where it should go.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A signal ended the run.
    #[error("{signal} ended the run while {doing}; {}", loss(doing))]
    Interrupted {
        /// The signal.
        signal: Signal,
        /// What was going on.
        doing: &'static str,
    },
    /// `runseal end` ended the run.
    #[error("the run was ended while {doing}, as asked; {}", loss(doing))]
    Ended {
        /// What was going on.
        doing: &'static str,
    },
    /// The mount ended under the run.
    #[error("the scratch was unmounted while {doing}; nothing was published")]
    MountLost {
        /// What was going on.
        doing: &'static str,
    },
    /// The mount lost its connection, or its supervisor, and nobody had asked for an end.
    #[error(
        "the mount was cut off unasked: all in it is lost; it stays, dead, so that no program goes on below it in the clear, \
         until `runseal end`, umount(8) or the next `runseal mount` there"
    )]
    CutOff,
    /// The sealed process died.
    #[error("{0}")]
    Lost(String),
    /// Processes of a run go on although they were killed.
    #[error("run {run} cannot be ended: killed, but not gone: {processes}; it ends when the kernel lets them")]
    Undying {
        /// The run.
        run: String,
        /// Them, and what they wait for.
        processes: String,
    },
    /// Something was made where only the run itself may find its scratch.
    #[error(
        "{} was made outside of the run while it lasted (by a container engine that was told to bind a path of the scratch?): \
         what is in it is not sealed; see what it holds, then remove it, and give containers a mount or a volume of runseal \
         (README, \"Where it lives\")",
        shown(.0)
    )]
    Beside(PathBuf),
    /// A live run did not do what it was asked.
    #[error("{0}")]
    Refused(String),
    /// What was copied out of a run cannot be written.
    #[error("cannot write {}: {source}{}", shown(path), if source.kind() == io::ErrorKind::AlreadyExists { "; name another place" } else { "" })]
    Copy {
        /// Where.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A live run could not be reached.
    #[error("run {run} does not answer: {source}")]
    Unreachable {
        /// The run.
        run: String,
        /// The error.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// What the end meant. Of results that were on their way some may be in the output: that is told beside it.
fn loss(doing: &str) -> &'static str {
    if doing == PUBLISHING { "the results are discarded" } else { "nothing was published" }
}

/// For `map_err`: a failed system call, with what it was for.
pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> FamilyError {
    move |source| FamilyError::System { action, source: source.into() }
}
