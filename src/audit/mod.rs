//! What was done with keys and objects: append-only lines of JSON in the shape of CloudTrail, chained by hashes.
//!
//! Each line carries its number, the hash of the line before it and its own: SHA-256 over the bytes of the line as
//! written, in which the 64 digits of that hash are zeros, and so are those of its signature. So a line that was changed,
//! left out, put in or moved is found by [`verify()`], unless somebody made all hashes after it anew. Whoever has no
//! private key cannot do so with a trail in which a [`Signer`] signs every line. That lines are missing *at the end* shows
//! only to who kept a later [`Link`] ([`Trail::head`]).
//!
//! A file may take the lines of several runs: each append happens under `flock(2)` and continues from the last line. One
//! event is one `write(2)`. `fdatasync(2)` follows the events of the run key, [`Trail::sync`], and the end of the trail.

mod event;
mod file;
mod journal;
mod line;
mod sign;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

pub use event::{
    CREATE_RUN_KEY, Event, KMS, PUBLISH_FILE, PUBLISH_OBJECT, RECOVER_TRAIL, RUNSEAL, S3, STAGE_FILE, STAGE_OBJECT,
    START_RUN, STS, WIPE_RUN_KEY,
};
pub use line::{LineError, Link};
pub use sign::{Signer, Witness, generate};
pub use verify::{Summary, TrailDemands, TrailFault, verify};

use crate::spec::{AuditDestination, AuditSpec};
use crate::sys::path::shown;
use file::TrailFile;
use journal::Journal;
use line::Letterhead;

/// Where the journal of systemd listens.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Events after which the file is synchronised at once.
const SYNCHRONISED: [&str; 2] = [CREATE_RUN_KEY, WIPE_RUN_KEY];

/// Why a trail cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened.
    #[error(
        "--audit {}: cannot be opened for appending: {source}; name a file in a directory where you may write",
        shown(path)
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there, but is not fit to hold a trail.
    #[error("--audit {}: {problem}; {remedy}", shown(path))]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no journal.
    #[error("--audit journald: {} does not answer: {source}; start systemd-journald, or name a file", shown(path))]
    Journal {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key that is to sign lines, or to check them, cannot be used.
    #[error("key {}: {problem}; {remedy}", shown(path))]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The system has no randomness, or does not know its own name.
    #[error("--audit: {0}")]
    System(#[from] io::Error),
}

/// Who calls AWS, as `sts:GetCallerIdentity` says, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// ARN of the user, or of the session of a role.
    pub arn: String,
    /// Account id, 12 digits.
    pub account: String,
    /// Unique id.
    pub principal_id: String,
    /// Region of the configuration.
    pub region: String,
}

/// Where events go. Shared by threads; written by one process, the one that opened it.
#[derive(Debug, Default)]
pub struct Trail {
    /// Boxed: most runs keep none.
    kept: Option<Box<TrailWriter>>,
}

/// Lock order: `sink` before `caller`.
#[derive(Debug)]
struct TrailWriter {
    letterhead: Letterhead,
    caller: RwLock<Option<Caller>>,
    sink: Mutex<CountingSink>,
    problem: OnceLock<String>,
}

#[derive(Debug)]
struct CountingSink {
    sink: Sink,
    /// Events that could not be written since the last one that could.
    missed: u64,
}

#[derive(Debug)]
enum Sink {
    File(TrailFile),
    Journal(Journal),
}

impl Trail {
    /// A trail that keeps nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// The trail of the run called `run`.
    ///
    /// # Errors
    /// The file or the journal cannot take it.
    pub fn open(destination: &AuditDestination, run: &str) -> Result<Self, AuditError> {
        Self::open_signed(destination, run, None)
    }

    /// The same as `spec` says.
    ///
    /// # Errors
    /// The file or the journal cannot take it, or the key that is to sign cannot be used.
    pub fn of(spec: &AuditSpec, run: &str) -> Result<Self, AuditError> {
        let signer = spec.sign.as_deref().map(Signer::read).transpose()?;
        Self::open_signed(&spec.destination, run, signer)
    }

    fn open_signed(to: &AuditDestination, run: &str, signer: Option<Signer>) -> Result<Self, AuditError> {
        let letterhead = Letterhead { signer: signer.map(Arc::new), ..Letterhead::of(run)? };
        let sink = match to {
            AuditDestination::File(path) => Sink::File(TrailFile::open(path, letterhead.clone())?),
            AuditDestination::Journal => Sink::Journal(Journal::open(Path::new(JOURNAL), run)?),
        };
        Ok(Self::kept(sink, letterhead))
    }

    /// The trail of the run called `run` in the journal behind `socket`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open_journal(socket: &Path, run: &str) -> Result<Self, AuditError> {
        Ok(Self::kept(Sink::Journal(Journal::open(socket, run)?), Letterhead::of(run)?))
    }

    fn kept(sink: Sink, letterhead: Letterhead) -> Self {
        let sink = Mutex::new(CountingSink { sink, missed: 0 });
        let kept = TrailWriter { letterhead, caller: RwLock::default(), sink, problem: OnceLock::new() };
        Self { kept: Some(Box::new(kept)) }
    }

    /// Whether it keeps what it is told.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Says who calls AWS, for the `userIdentity` of all events from now on.
    pub fn identify(&self, caller: Caller) {
        if let Some(kept) = &self.kept {
            *kept.caller.write() = Some(caller);
        }
    }

    /// Appends one event. What goes wrong is latched: see [`Trail::problem`].
    pub fn record(&self, event: &Event) {
        if let Some(kept) = &self.kept {
            kept.record(event);
        }
    }

    /// Waits until everything recorded so far is on the disk. The journal needs no such thing.
    pub fn sync(&self) {
        if let Some(kept) = &self.kept
            && let Sink::File(file) = &kept.sink.lock().sink
        {
            kept.latch(file.sync());
        }
    }

    /// The first thing that went wrong, if any: then the trail has a gap.
    pub fn problem(&self) -> Option<&str> {
        self.kept.as_ref()?.problem.get().map(String::as_str)
    }

    /// Where the chain stands: number and hash of the last line. Kept elsewhere, it shows later whether lines are missing
    /// at the end of the trail.
    pub fn head(&self) -> Option<Link> {
        Some(self.kept.as_ref()?.sink.lock().sink.link().clone())
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.sync();
    }
}

impl TrailWriter {
    fn record(&self, event: &Event) {
        let mut counted = self.sink.lock();
        let missed = counted.missed;
        let caller = self.caller.read();
        let result =
            counted.sink.append(&mut |link| line::render(event, &self.letterhead, caller.as_ref(), missed, link));
        counted.missed = if result.is_ok() { 0 } else { missed + 1 };
        self.latch(result);
        if let Sink::File(file) = &counted.sink
            && SYNCHRONISED.contains(&event.name)
        {
            self.latch(file.sync());
        }
    }

    /// Keeps the first problem, for whoever asks.
    fn latch(&self, result: io::Result<()>) {
        if let Err(error) = result {
            let _ = self.problem.set(error.to_string());
        }
    }
}

/// Makes the line that follows a link.
type Render<'a> = &'a mut dyn FnMut(&Link) -> io::Result<(Vec<u8>, Link)>;

impl Sink {
    fn append(&mut self, render: Render<'_>) -> io::Result<()> {
        match self {
            Self::File(file) => file.append(render),
            Self::Journal(journal) => journal.append(render),
        }
    }

    fn link(&self) -> &Link {
        match self {
            Self::File(file) => file.link(),
            Self::Journal(journal) => journal.link(),
        }
    }
}
