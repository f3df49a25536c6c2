//! Why staging fails, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::aws::{CallError, Cause, ChecksumAlgorithm, Encryption};
use crate::fs::FsError;
use crate::spec::S3Uri;
use crate::sys::path::shown;
use crate::units::ByteSize;
use crate::units::text::Shown;

/// Why staging failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// Reading or writing outside the scratch failed.
    #[error("{action} {}: {source}{}", shown(path), remedy_outside(source))]
    Outside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path outside.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Reading or writing inside the scratch failed.
    #[error("{action} {} in the scratch: {source}{}", shown(path), remedy_inside(source))]
    Inside {
        /// `reading`, `writing`, `creating`, ...
        action: &'static str,
        /// The path relative to the inputs or the results.
        path: PathBuf,
        /// The error of the file system.
        source: FsError,
    },
    /// An input changed between preflight and the end of its copy (`MODIFIED_INPUT_RESOURCE`).
    #[error("{} changed while it was staged; start the run again when nothing writes to it", shown(path))]
    Modified {
        /// The input.
        path: PathBuf,
    },
    /// Something appeared where a result is to go.
    #[error(
        "{} appeared in the output since preflight; remove it, or replace it: `runseal resume --overwrite`",
        shown(path)
    )]
    Appeared {
        /// The path.
        path: PathBuf,
    },
    /// A directory is where a file must go, or the other way round; replacing is only for like with like.
    #[error("{} is in the way of a result of another kind; move it away", shown(path))]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// A result has a name that publishing needs for itself.
    #[error("the result `{}` has a name that runseal uses itself in the output; rename it", shown(path))]
    Reserved {
        /// The path relative to the results.
        path: PathBuf,
    },
    /// Root would publish where other users lead it.
    #[error(
        "users other than root may change {}: publish to a directory of root's, or there all the same, in what is \
         theirs: `runseal resume --shared-output`",
        shown(theirs)
    )]
    Shared {
        /// The output.
        path: PathBuf,
        /// The output, or the directory on the way to it, that others may change.
        theirs: PathBuf,
    },
    /// The disk of the output has too little space; nothing was written.
    #[error("the results need {}, {} has {} free; free space there", ByteSize(*needed), shown(path), ByteSize(*free))]
    NoRoom {
        /// The output.
        path: PathBuf,
        /// Bytes the results take.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A call to AWS failed.
    #[error("{action} {}: {source}{}", Shown(uri), remedy_remote(source.cause))]
    Remote {
        /// `reading`, `writing`, ...
        action: &'static str,
        /// The object.
        uri: S3Uri,
        /// What AWS said.
        source: Box<CallError>,
    },
    /// An object of S3, and nothing that speaks to AWS.
    #[error("{}: this run has no access to AWS; it was built or started without", Shown(uri))]
    NoCloud {
        /// The object.
        uri: S3Uri,
    },
    /// What arrived in the scratch is not what the checksum of the object says.
    #[error(
        "{} does not match its {algorithm:?} checksum; start the run again: if that does not help, the object is \
         damaged and must be uploaded anew",
        Shown(uri)
    )]
    Damaged {
        /// The object.
        uri: S3Uri,
        /// Which of its checksums.
        algorithm: ChecksumAlgorithm,
    },
    /// S3 encrypts a result otherwise than preflight was told.
    #[error(
        "{} would be encrypted with {found}, preflight saw {expected}; set the encryption of the bucket back, or \
         name one: `runseal resume --sse ALGORITHM --sse-kms-key-id KEY`",
        Shown(uri)
    )]
    OtherEncryption {
        /// The object.
        uri: S3Uri,
        /// What preflight saw.
        expected: Box<Encryption>,
        /// What S3 says now.
        found: Box<Encryption>,
    },
    /// S3 forgot an upload again and again.
    #[error("S3 lost the upload of {} several times; look for what aborts uploads in this bucket", Shown(uri))]
    UploadLost {
        /// The object.
        uri: S3Uri,
    },
    /// Somebody gave the results up while they were published.
    #[error("publishing was given up")]
    GivenUp,
    /// A symbolic link that would lead nowhere once the scratch is gone.
    #[error(
        "the result `{}` is a symbolic link to `{}`, {why}{}; {}",
        shown(link), shown(target), and_others(*others), why.remedy()
    )]
    Astray {
        /// The path relative to the results.
        link: PathBuf,
        /// Where it leads, relative to the scratch.
        target: PathBuf,
        /// What is wrong with that.
        why: Astray,
        /// How many more such links there are.
        others: usize,
    },
    /// A result changed while it was published: what was written is not what was there.
    #[error("the result `{}` changed while it was published; stop what writes to it", shown(path))]
    Unsettled {
        /// The path relative to the results.
        path: PathBuf,
    },
}

/// Why a symbolic link cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Astray {
    /// It leads to something in the scratch that is no result.
    Elsewhere,
    /// It leads to a place in the scratch, outside of the results, where nothing is.
    Missing,
    /// It leads from link to link for ever.
    Endless,
    /// It leads to a directory which it is in itself: a copy would never end.
    Circle,
    /// Copying what it leads to, and what the links in there lead to, makes more names than the scratch may have.
    TooMany,
}

impl std::fmt::Display for Astray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Elsewhere => "which is in the scratch but no result",
            Self::Missing => "a place in the scratch where nothing is",
            Self::Endless => "which leads back to it",
            Self::Circle => "which it is in itself, so that a copy would never end",
            Self::TooMany => "whose copy would have more names than the scratch may have",
        })
    }
}

impl Astray {
    fn remedy(self) -> &'static str {
        match self {
            Self::Elsewhere => "publish what it leads to with --dereference, or move that below $RUNSEAL_OUTPUT",
            Self::Missing | Self::Endless | Self::Circle | Self::TooMany => "remove the link, or correct it",
        }
    }
}

fn and_others(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more such links)") }
}

fn remedy_outside(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space there",
        io::ErrorKind::PermissionDenied => "; give this user the right to it",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        _ => "",
    }
}

fn remedy_inside(error: &FsError) -> &'static str {
    match error {
        FsError::Store(_) => "; if the scratch is full, raise --size or free space below --backing",
        _ => "",
    }
}

fn remedy_remote(cause: Cause) -> &'static str {
    match cause {
        Cause::Denied => "; give this principal the right to it (`runseal preflight` says which statement is missing)",
        Cause::Credentials => "; renew the credentials",
        Cause::KeyState => "; enable the KMS key again, or cancel its deletion",
        Cause::KeyKind => "; use a symmetric KMS key for encryption and decryption",
        Cause::Archived => "; restore the object from its archive",
        Cause::Corrupt => "; check the network, contents arrived damaged again and again",
        Cause::Unreachable => "; check the network, the endpoint and the state of the service",
        Cause::Configuration => "; correct the AWS configuration",
        Cause::NotFound | Cause::Precondition | Cause::Rejected => "",
    }
}

/// An [`StageError::Remote`], for `map_err`.
pub(super) fn remote(action: &'static str, uri: &S3Uri) -> impl FnOnce(CallError) -> StageError {
    let uri = uri.clone();
    move |source| StageError::Remote { action, uri, source: Box::new(source) }
}

/// An [`StageError::Outside`], for `map_err`.
pub(super) fn outside(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StageError {
    let path = path.into();
    move |source| StageError::Outside { action, path, source }
}

/// An [`StageError::Inside`], for `map_err`.
pub(super) fn inside(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(FsError) -> StageError {
    let path = path.into();
    move |source| StageError::Inside { action, path, source }
}
