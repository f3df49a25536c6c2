//! Why the state of a run cannot be kept or found.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spec::RunId;
use crate::sys::lock::Holder;

/// How long the lock of all states may be kept from this process. Under it directories are made and removed, and dead mounts are looked at
/// for two seconds each.
pub(super) const LOCK_TIME: Duration = Duration::from_secs(30);

/// Why the state of a run cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A live run has this id.
    #[error("run id `{0}` is in use by a live run; choose another --run-id, or end that one: runseal end {0}")]
    InUse(RunId),
    /// No live run has this id.
    #[error("no run `{0}` is alive here; `runseal status` lists the runs")]
    Unknown(String),
    /// A live run of this user publishes to the same output.
    #[error("{} publishes to {output} too; wait for its end, or choose another --output", which(run))]
    OutputInUse {
        /// The other run, unless it may be somebody else's business.
        run: Option<String>,
        /// The output.
        output: String,
    },
    /// Somebody keeps the lock of all states.
    #[error("{path} has been locked for {} seconds{}; see what that process does, and end it if it hangs", LOCK_TIME.as_secs(), by(holder))]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who has it, if that is known.
        holder: Option<Holder>,
    },
    /// Somebody else could have put things into the state directory.
    #[error("{path} is not a directory of yours alone; remove it, or set XDG_RUNTIME_DIR")]
    Untrusted {
        /// The directory.
        path: PathBuf,
    },
    /// Something is where the scratch of runs appears to their own processes.
    #[error(
        "{path} is in the way: only the processes of a run may find a directory there, and something outside (a container \
         engine that was told to bind a path of the scratch?) has made one; see what it holds, then remove it"
    )]
    InTheWay {
        /// The place.
        path: PathBuf,
    },
    /// The scratch can appear nowhere.
    #[error(
        "{base} is no place for the scratch of a run (below what its own /tmp covers, or too long a path for sockets), and \
         none of /run, /mnt, /media, /srv and /opt is empty here; set XDG_RUNTIME_DIR to a directory of yours with a short \
         path elsewhere, or keep the /tmp of this machine with --tmp=host"
    )]
    NoPlace {
        /// The directory with the state of all runs.
        base: PathBuf,
    },
    /// A system call failed.
    #[error("{action} {path}: {source}{}", remedy(source))]
    System {
        /// `creating`, `locking`, ...
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

fn which(run: &Option<String>) -> String {
    run.as_ref().map_or("another run".to_owned(), |run| format!("run {run} (`runseal status {run}`)"))
}

fn by(holder: &Option<Holder>) -> String {
    holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; make it writable (in a container: --tmpfs /run --tmpfs /tmp)",
        io::ErrorKind::PermissionDenied => "; set XDG_RUNTIME_DIR to a directory of yours",
        _ => "",
    }
}

/// For `map_err`: a failed system call, with what it was for.
pub fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::System { action, path: path.to_owned(), source }
}
