//! Why a run failed: the errors of all layers, and those of the run itself.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::flush::Unflushed;
use super::losses::Missing;
pub use crate::audit::AuditError;
pub use crate::aws::{CallError, Cause};
pub use crate::backing::BackingError;
pub use crate::crypt::CryptError;
pub use crate::family::error::{CommandError, FamilyError, IdentityError, NamespaceError, StateError};
use crate::family::{Outcome, Report, error};
pub use crate::fs::FsError;
pub use crate::fuse::FuseError;
pub use crate::preflight::{Code, Report as PreflightReport};
use crate::spec::EncryptionError;
pub use crate::stage::{Contents, StageError, VerifyError};
use crate::sys::path::shown;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something stands in the way of the run.
    #[error(transparent)]
    Preflight(#[from] PreflightReport),
    /// No connection to AWS can be made.
    #[error("AWS: {source}{}", remedy(source.cause))]
    Aws {
        /// What AWS, or its configuration, said.
        source: CallError,
    },
    /// KMS gave no data key for the run key.
    #[error("no data key for the key of the run from {key}: {source}{}", remedy(source.cause))]
    RunKey {
        /// The KMS key.
        key: String,
        /// What KMS said.
        source: CallError,
    },
    /// Published results cannot be checked.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The audit trail cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The audit trail cannot be continued, and the command has not started.
    #[error("the audit trail cannot be written, so the command was not started: {0}")]
    Unaudited(String),
    /// Keys or cipher.
    #[error(transparent)]
    Crypt(#[from] CryptError),
    /// A backing directory.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// How much the backing can hold could not be asked.
    #[error("cannot ask the backing for its free space: {0}")]
    Space(#[source] io::Error),
    /// The backing is full.
    #[error("the backing {} has no space left; free some, or name another directory with --backing", shown(.0))]
    Full(PathBuf),
    /// The scratch.
    #[error("preparing the scratch: {0}")]
    Fs(#[from] FsError),
    /// The mount.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// Copying the inputs in.
    #[error("{0}; nothing was published")]
    Fetch(#[source] StageError),
    /// The results were given up.
    #[error("the results of the run are discarded, as asked; publishing them had failed: {0}")]
    Discarded(#[source] PublishError),
    /// Nobody took care of results that could not be published.
    #[error("the results of the run are discarded, {}; publishing them had failed: {source}", discarded(*held))]
    Unpublished {
        /// How long they were held; `None` if not at all.
        held: Option<Duration>,
        /// Why they could not be published.
        source: PublishError,
    },
    /// The command left nothing at all, though results were asked for.
    #[error(
        "the command left no file below $RUNSEAL_OUTPUT, nor anywhere else in the scratch: nothing was published to \
         {output}; with --allow-empty that is a success"
    )]
    NothingToPublish {
        /// Where results were to go.
        output: String,
    },
    /// Memory must be locked and cannot be.
    #[error(
        "memory cannot be locked: {source}; raise RLIMIT_MEMLOCK (ulimit -l unlimited, LimitMEMLOCK=infinity) or drop \
         --memory-lock=require"
    )]
    MemoryLock {
        /// The error of mlockall(2).
        source: io::Error,
    },
    /// The results are published as they are.
    #[error("the results are published, but they are incomplete: {0}")]
    Incomplete(String),
    /// Processes, or what is said between them.
    #[error(transparent)]
    Family(#[from] FamilyError),
}

impl RunError {
    /// How a run ended that ended so, after what `report` tells.
    pub fn outcome(&self, report: &Report) -> Outcome {
        match self {
            Self::Family(FamilyError::Interrupted { .. } | FamilyError::Ended { .. }) => Outcome::Interrupted,
            Self::Discarded(_) => Outcome::Discarded,
            Self::Incomplete(_) => Outcome::Incomplete,
            Self::Unpublished { .. } => Outcome::Unpublished,
            _ if report.command_status.is_some() => Outcome::Failed,
            _ => Outcome::Refused,
        }
    }
}

/// Why results are held.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store has latched.
    #[error(
        "writing to the backing failed during the run (the kernel log may say why), so results may be incomplete; \
         `runseal resume --incomplete` publishes them as they are"
    )]
    Stopped,
    /// Something of what they are made of was lost.
    #[error(
        "{0}; a larger --size may help the next run; `runseal resume --incomplete` publishes the results as they are"
    )]
    Lost(Missing),
    /// The kernel holds some of them back.
    #[error(transparent)]
    Unflushed(#[from] Unflushed),
    /// What was written there is not in the scratch, and would be left out.
    #[error("something is mounted on {}: what was written there is no part of the results; unmount it", shown(.0))]
    Covered(PathBuf),
    /// The output they are to go to instead does not do.
    #[error(transparent)]
    Preflight(#[from] PreflightReport),
    /// It is part of what is destroyed with the run.
    #[error("{} is inside the scratch; name a place outside with --output", shown(.0))]
    InScratch(PathBuf),
    /// They cannot be encrypted as whoever resumes asks.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// There are none, and what else the command left is about to be destroyed.
    #[error(
        "there is no file below $RUNSEAL_OUTPUT, but in the scratch: {elsewhere}; move results there, or have nothing \
         published with `runseal resume --allow-empty`"
    )]
    Empty {
        /// What else is in the scratch.
        elsewhere: Contents,
    },
    /// There are some, and nobody said where they are to go.
    #[error(
        "no --output was given, but the command left results: {results}; publish them with `runseal resume --output DIR`"
    )]
    NoOutput {
        /// What is below `$RUNSEAL_OUTPUT`.
        results: Contents,
    },
    /// They could not be copied out.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// No new connection to AWS could be made.
    #[error("AWS: {source}{}", remedy(source.cause))]
    Aws {
        /// What AWS, or its configuration, said.
        source: CallError,
    },
}

impl PublishError {
    /// Whether other credentials may help.
    pub fn is_about_credentials(&self) -> bool {
        let cause = match self {
            Self::Aws { source } => source.cause,
            Self::Stage(StageError::Remote { source, .. }) => source.cause,
            Self::Preflight(report) => {
                return report.findings.iter().any(|f| f.cause().is_some_and(is_about_credentials));
            }
            Self::Stage(_) | Self::Stopped | Self::Lost(_) | Self::Unflushed(_) => return false,
            Self::Covered(_)
            | Self::InScratch(_)
            | Self::Encryption(_)
            | Self::Empty { .. }
            | Self::NoOutput { .. } => return false,
        };
        is_about_credentials(cause)
    }
}

fn is_about_credentials(cause: Cause) -> bool {
    matches!(cause, Cause::Credentials | Cause::Denied)
}

/// By what authority results were discarded.
fn discarded(held: Option<Duration>) -> String {
    match held {
        None => "as --on-hold=fail says".to_owned(),
        Some(limit) => format!("since nobody resumed the run within {}", humantime::format_duration(limit)),
    }
}

/// What to do about a failed call that concerns the run as a whole.
fn remedy(cause: Cause) -> &'static str {
    match cause {
        Cause::Denied => "; give this principal the right to it (`runseal preflight` says which statement is missing)",
        Cause::Credentials => {
            "; provide credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (--aws-profile), or a role of this \
             machine"
        }
        Cause::KeyState => "; enable the KMS key, or cancel its deletion",
        Cause::KeyKind => "; use a symmetric KMS key for encryption and decryption",
        Cause::Unreachable => "; check the network, the Region and the endpoint",
        Cause::Configuration => "; correct the AWS configuration",
        Cause::NotFound => "; check the ARN and the Region",
        Cause::Precondition | Cause::Archived | Cause::Corrupt | Cause::Rejected => "",
    }
}

/// What belongs to the family passes through.
macro_rules! of_the_family {
    ($($error:ident)*) => {$(
        impl From<$error> for RunError {
            fn from(error: $error) -> Self {
                Self::Family(error.into())
            }
        }
    )*};
}
of_the_family!(CommandError IdentityError NamespaceError StateError);

/// For `map_err`: a failed system call, with what it was for.
pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> RunError {
    move |source| error::system(action)(source).into()
}
