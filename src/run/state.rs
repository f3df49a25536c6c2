//! The state directory of a run: its lock, who belongs to it, its control socket, its private mountpoint.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};

use super::report::{Kind, Report};
use crate::fuse;
use crate::spec::{Location, RunId};
use crate::sys::path;

const LOCK: &str = "lock";
const RECORD: &str = "state.json";
const SOCKET: &str = "control.sock";
const MOUNTPOINT: &str = "mnt";
/// Where the run publishes to, as [`place`] writes it.
const OUTPUT: &str = "output";
/// No run id: `@` is not allowed in one.
const BASE_LOCK: &str = "@lock";

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
    #[error(
        "run {run} publishes to {output} too; wait for its end (`runseal status {run}`), or choose another --output"
    )]
    OutputInUse {
        /// The other run.
        run: String,
        /// The output.
        output: String,
    },
    /// Somebody else could have put things into the state directory.
    #[error("{path} is not a directory of yours alone; remove it, or set XDG_RUNTIME_DIR")]
    Untrusted {
        /// The directory.
        path: PathBuf,
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

/// Who belongs to a run, for `status` and for cleaning up after a crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the run.
    pub run_id: RunId,
    /// What kind of family this is.
    pub kind: Kind,
    /// Where the scratch is mounted.
    pub mountpoint: PathBuf,
    /// Process id of the supervisor.
    pub supervisor: u32,
    /// Process id of the sealed process, once it exists.
    pub sealed: Option<u32>,
    /// When the run started.
    pub started: String,
    /// What whoever asked for a mount wants to find here again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<serde_json::Value>,
}

impl Record {
    /// The record of the family whose supervisor this process is.
    pub fn of(report: &Report, mountpoint: PathBuf) -> Self {
        Self {
            run_id: report.run_id.clone(),
            kind: report.kind,
            mountpoint,
            supervisor: std::process::id(),
            sealed: None,
            started: report.started.clone(),
            note: None,
        }
    }
}

/// The state directory of a live run, locked. Dropping it removes the directory, unless it was [disowned](State::disown).
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    owned: bool,
    /// The open file carries the lock, and forked processes share it: the lock is free when all of them are gone.
    _lock: File,
}

impl State {
    /// Makes the directory for `run_id`, after cleaning up what a dead run of that name left. No two live runs have one
    /// `output`.
    pub fn create(run_id: &RunId, output: Option<&Location>) -> Result<Self, StateError> {
        let base = base()?;
        let _guard = lock_base(&base)?;
        let dir = base.join(run_id.as_str());
        if dir.exists() && !clean_if_dead(&dir)? {
            return Err(StateError::InUse(run_id.clone()));
        }
        if let Some(output) = output {
            refuse_taken(&base, output, run_id.as_str())?;
        }
        make_dir(&dir, 0o700)?;
        make_dir(&dir.join(MOUNTPOINT), 0o700)?;
        let path = dir.join(LOCK);
        let lock = open_lock(&path)?;
        lock.lock().map_err(system("locking", &path))?;
        let state = Self { dir, owned: true, _lock: lock };
        if let Some(output) = output {
            state.publishes_to(output)?;
        }
        Ok(state)
    }

    /// Notes, for runs that start, where this one publishes to.
    pub fn publishes_to(&self, output: &Location) -> Result<(), StateError> {
        let path = self.dir.join(OUTPUT);
        fs::write(&path, place(output)).map_err(system("writing", &path))
    }

    /// The private mountpoint.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join(MOUNTPOINT)
    }

    /// The directory with the state of all runs.
    pub fn base(&self) -> &Path {
        self.dir.parent().expect("a state directory is below its base")
    }

    /// Where the control socket goes.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Writes who belongs to the run.
    pub fn record(&self, record: &Record) -> Result<(), StateError> {
        let path = self.dir.join(RECORD);
        let text = serde_json::to_vec(record).map_err(|e| system("writing", &path)(e.into()))?;
        let temporary = self.dir.join("state.json.tmp");
        fs::write(&temporary, text).map_err(system("writing", &temporary))?;
        fs::rename(&temporary, &path).map_err(system("writing", &path))
    }

    /// Leaves the removal to the process this one was forked from.
    pub fn disown(&mut self) {
        self.owned = false;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Under the lock of all, or a new run of this name could lose what it has just made.
        if self.owned
            && let Err(error) = lock_base(self.base()).and_then(|_guard| remove(&self.dir))
        {
            tracing::warn!("{error}");
        }
    }
}

/// The live runs of this user, by name; what dead ones left is cleaned up.
pub fn live_runs() -> Result<Vec<Record>, StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let mut records = Vec::new();
    for entry in fs::read_dir(&base).map_err(system("reading", &base))? {
        let dir = entry.map_err(system("reading", &base))?.path();
        if dir.is_dir() && !clean_if_dead(&dir)? {
            records.extend(read_record(&dir));
        }
    }
    records.sort_by(|a, b| a.run_id.cmp(&b.run_id));
    Ok(records)
}

/// The live run that `name` means (a run id or the mountpoint of `runseal mount`), and its control socket.
pub fn find(name: &str) -> Result<(Record, PathBuf), StateError> {
    let path = std::path::absolute(name).ok();
    let found = live_runs()?.into_iter().find(|record| {
        record.run_id.as_str() == name || record.kind == Kind::Mount && Some(&record.mountpoint) == path.as_ref()
    });
    let record = found.ok_or_else(|| StateError::Unknown(name.to_owned()))?;
    let socket = base()?.join(record.run_id.as_str()).join(SOCKET);
    Ok((record, socket))
}

/// The live run of this id and its control socket; looks at no other run.
pub fn find_by_id(id: &RunId) -> Result<(Record, PathBuf), StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let dir = base.join(id.as_str());
    let record = read_record(&dir).filter(|_| is_held(&dir));
    let record = record.ok_or_else(|| StateError::Unknown(id.to_string()))?;
    Ok((record, dir.join(SOCKET)))
}

/// Fails if a live run of this user, other than `run`, publishes to `output`.
pub fn check_output(output: &Location, run: &str) -> Result<(), StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    refuse_taken(&base, output, run)
}

fn refuse_taken(base: &Path, output: &Location, run: &str) -> Result<(), StateError> {
    let place = place(output);
    for entry in fs::read_dir(base).map_err(system("reading", base))?.filter_map(Result::ok) {
        let (name, dir) = (entry.file_name(), entry.path());
        if name != run && is_held(&dir) && fs::read(dir.join(OUTPUT)).is_ok_and(|other| other == place) {
            let run = name.to_string_lossy().into_owned();
            return Err(StateError::OutputInUse { run, output: output.to_string() });
        }
    }
    Ok(())
}

/// One text for one output, however it is named.
fn place(output: &Location) -> Vec<u8> {
    match output {
        Location::Path(path) => path::resolved(path).into_os_string().into_encoded_bytes(),
        Location::S3(uri) => {
            let mut place = uri.clone().into_prefix().to_string().into_bytes();
            // A bucket is one bucket at one service only.
            for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_CONFIG_FILE"] {
                place.push(b'\n');
                place.extend(std::env::var_os(name).unwrap_or_default().into_encoded_bytes());
            }
            place
        }
    }
}

/// Cleans up after the run of this id if it is dead.
pub fn clean(id: &RunId) -> Result<(), StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let dir = base.join(id.as_str());
    if dir.exists() {
        clean_if_dead(&dir)?;
    }
    Ok(())
}

/// Whether a family holds the lock of the directory.
fn is_held(dir: &Path) -> bool {
    let lock = OpenOptions::new().write(true).open(dir.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

/// `/run/runseal` for root; else `$XDG_RUNTIME_DIR/runseal`, or `/tmp/runseal-UID` without that.
fn base() -> Result<PathBuf, StateError> {
    let uid = geteuid();
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let (base, mode) = match runtime_dir {
        _ if uid.is_root() => (PathBuf::from("/run/runseal"), 0o755),
        Some(dir) => (dir.join("runseal"), 0o700),
        None => (PathBuf::from(format!("/tmp/runseal-{uid}")), 0o700),
    };
    match make_dir(&base, mode) {
        Err(StateError::System { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    if is_own(&base, uid) { Ok(base) } else { Err(StateError::Untrusted { path: base }) }
}

fn is_own(dir: &Path, uid: Uid) -> bool {
    dir.symlink_metadata().is_ok_and(|m| m.is_dir() && m.uid() == uid.as_raw() && m.mode() & 0o022 == 0)
}

/// Held while directories come and go, so that a directory is never seen between its creation and its lock.
fn lock_base(base: &Path) -> Result<File, StateError> {
    let path = base.join(BASE_LOCK);
    let lock = open_lock(&path)?;
    lock.lock().map_err(system("locking", &path))?;
    Ok(lock)
}

/// Removes the directory of a run nobody holds the lock of; `false` if somebody does.
fn clean_if_dead(dir: &Path) -> Result<bool, StateError> {
    let path = dir.join(LOCK);
    let lock = match OpenOptions::new().write(true).open(&path) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(system("opening", &path)(error)),
    };
    if let Some(Err(error)) = lock.as_ref().map(File::try_lock) {
        return match error {
            fs::TryLockError::WouldBlock => Ok(false),
            fs::TryLockError::Error(error) => Err(system("locking", &path)(error)),
        };
    }
    if let Some(record) = read_record(dir) {
        tracing::info!("cleaning up after run {}, which died", record.run_id);
        fuse::detach_stale(&record.mountpoint).map_err(system("detaching", &record.mountpoint))?;
    }
    remove(dir)?;
    Ok(true)
}

fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

/// Removes exactly what a run makes: never recursively, so that nothing below a mountpoint can be hit.
fn remove(dir: &Path) -> Result<(), StateError> {
    for name in [SOCKET, RECORD, "state.json.tmp", OUTPUT, LOCK] {
        let path = dir.join(name);
        absent_is_fine(fs::remove_file(&path)).map_err(system("removing", &path))?;
    }
    for path in [dir.join(MOUNTPOINT), dir.to_owned()] {
        absent_is_fine(fs::remove_dir(&path)).map_err(system("removing", &path))?;
    }
    Ok(())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StateError> {
    DirBuilder::new().mode(mode).create(path).map_err(system("creating", path))?;
    // The umask of the caller must not take the run's own rights away.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(system("creating", path))
}

fn open_lock(path: &Path) -> Result<File, StateError> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(system("opening", path))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; make it writable (in a container: --tmpfs /run --tmpfs /tmp)",
        io::ErrorKind::PermissionDenied => "; set XDG_RUNTIME_DIR to a directory of yours",
        _ => "",
    }
}

fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::System { action, path: path.to_owned(), source }
}
