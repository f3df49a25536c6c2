//! The state directory of a run: its lock, who belongs to it, its control socket.

pub mod destination;
mod error;
pub mod facts;
pub mod journal;
pub mod origin;
pub mod report;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};

use self::error::LOCK_TIME;
pub use self::error::StateError;
pub(super) use self::error::system;
use crate::family::{Kind, Report, command::place};
use crate::spec::{Location, RunId};
use crate::sys::lock::{self, Holder};
use crate::sys::own_mount::{detach_stale, is_stale};
use crate::sys::path;
use crate::sys::process::ProcessStat;
use crate::sys::replace::{is_left_over, replace};

/// Directory of the states of all runs, among what else there is in the base: sockets and files of a service, the place
/// of scratches. No name of a run can be that of anything but a state.
const RUNS: &str = "@runs";
const LOCK: &str = "lock";
const RECORD: &str = "state.json";
const SOCKET: &str = "control.sock";
/// Where the run publishes to, as [`place()`] writes it.
const OUTPUT: &str = "output";
/// The lock of all states, beside them. No run id: `@` is not allowed in one.
const COMMON_LOCK: &str = "@lock";
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
    /// When the processes of these ids started (`ProcessStat::born`): ids are used again.
    #[serde(default)]
    pub born: Vec<(u32, u64)>,
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
            born: born(std::process::id()).into_iter().collect(),
            started: report.started.clone(),
            note: None,
        }
    }

    /// Whether `name` is its id, or the mountpoint of `runseal mount`.
    pub fn is_called(&self, name: &str) -> bool {
        let here = || std::path::absolute(name).is_ok_and(|path| path == self.mountpoint);
        self.run_id.as_str() == name || self.kind == Kind::Mount && here()
    }

    /// Whether an end by force loses nothing that an end in good order would save: a mount has no results, unless a
    /// service asked for it.
    pub fn loses_nothing(&self) -> bool {
        self.kind == Kind::Mount && self.note.is_none()
    }

    /// Adds the sealed process, a child that has not been waited for.
    pub fn add_sealed(&mut self, process: u32) {
        self.sealed = Some(process);
        self.born.extend(born(process));
    }

    /// Whether the process that has this id now is the one that belongs to the run.
    pub fn is_member(&self, process: u32) -> bool {
        born(process).is_some_and(|born| self.born.contains(&born))
    }
}

fn born(process: u32) -> Option<(u32, u64)> {
    ProcessStat::of(process).map(|stat| (process, stat.born))
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
        let dir = base.join(RUNS).join(run_id.as_str());
        let found = whereabouts(&base, run_id);
        if found.exists() {
            match settle(&found)? {
                Remains::Held => return Err(StateError::InUse(run_id.clone())),
                // Its mount stays dead until somebody takes it away, or mounts there.
                Remains::DeadMount(_) => remove(&found)?,
                Remains::Nothing => {}
            }
        }
        if let Some(output) = output {
            refuse_taken(&base, output, run_id.as_str())?;
        }
        make_dir(&dir, 0o700)?;
        let path = dir.join(LOCK);
        let lock = open_lock(&path)?;
        // Nobody else has seen it yet.
        lock.try_lock().map_err(|error| system("locking", &path)(error.into()))?;
        let state = Self { dir, owned: true, _lock: lock };
        if let Some(output) = output {
            state.publishes_to(output)?;
        }
        Ok(state)
    }

    /// Notes, for runs that start, where this one publishes to.
    pub fn publishes_to(&self, output: &Location) -> Result<(), StateError> {
        let path = self.dir.join(OUTPUT);
        replace(&path, &place(output), 0o600).map_err(system("writing", &path))
    }

    /// The directory with the state of all runs.
    pub fn base(&self) -> &Path {
        self.dir.parent().and_then(Path::parent).expect("a state directory is below its base")
    }

    /// Where the control socket goes.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Writes who belongs to the run.
    pub fn record(&self, record: &Record) -> Result<(), StateError> {
        let path = self.dir.join(RECORD);
        let text = serde_json::to_vec(record).map_err(|e| system("writing", &path)(e.into()))?;
        replace(&path, &text, 0o600).map_err(system("writing", &path))
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
            && dead_mount(&self.dir).is_none()
            && let Err(error) = lock_base(self.base()).and_then(|_guard| remove(&self.dir))
        {
            tracing::warn!("{error}");
        }
    }
}

/// The runs of this user, by name.
#[derive(Debug, Default)]
pub struct Survey {
    /// Those alive.
    pub live: Vec<Record>,
    /// Mounts whose processes have died, and which stay so that no program goes on below them.
    pub dead: Vec<Record>,
}

/// All runs of this user; what dead ones left, but for mounts, is cleaned up.
pub fn survey() -> Result<Survey, StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let mut found = Survey::default();
    for dir in states(&base)? {
        match settle(&dir) {
            Ok(Remains::Held) => found.live.extend(read_record(&dir)),
            Ok(Remains::DeadMount(record)) => found.dead.push(record),
            Ok(Remains::Nothing) => {}
            // What is left of one run must not hide the others.
            Err(error) => tracing::warn!("{error}"),
        }
    }
    for records in [&mut found.live, &mut found.dead] {
        records.sort_by(|a, b| a.run_id.cmp(&b.run_id));
    }
    Ok(found)
}

/// The live run that `name` means (a run id or the mountpoint of `runseal mount`), and its control socket.
pub fn find(name: &str) -> Result<(Record, PathBuf), StateError> {
    let found = survey()?.live.into_iter().find(|record| record.is_called(name));
    let record = found.ok_or_else(|| StateError::Unknown(name.to_owned()))?;
    let socket = whereabouts(&base()?, &record.run_id).join(SOCKET);
    Ok((record, socket))
}

/// The live run of this id and its control socket; looks at no other run.
pub fn find_by_id(id: &RunId) -> Result<(Record, PathBuf), StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let dir = whereabouts(&base, id);
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
    for dir in states(base)? {
        let name = dir.file_name().unwrap_or_default();
        if name != run && is_held(&dir) && fs::read(dir.join(OUTPUT)).is_ok_and(|other| other == place) {
            let run = Some(name.to_string_lossy().into_owned());
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

/// Cleans up after the run of this id if it is dead; its mount goes, too.
pub fn clean(id: &RunId) -> Result<(), StateError> {
    let base = base()?;
    let _guard = lock_base(&base)?;
    let dir = whereabouts(&base, id);
    if dir.exists()
        && let Remains::DeadMount(record) = settle(&dir)?
    {
        detach_stale(&record.mountpoint).map_err(system("detaching", &record.mountpoint))?;
        remove(&dir)?;
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
    let base = place::innermost(base).map_err(system("looking for mounts at", Path::new("/")))?;
    for (path, mode) in [(base.clone(), mode), (base.join(RUNS), 0o700)] {
        match make_dir(&path, mode) {
            Err(StateError::System { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    for path in [base.clone(), base.join(RUNS)] {
        if !is_own(&path, uid) {
            return Err(StateError::Untrusted { path });
        }
    }
    close_former_lock(&base).map_err(system("closing to others", &base.join(COMMON_LOCK)))?;
    Ok(base)
}

/// Where the state of a run is, if it has one: versions before had it in the base.
fn whereabouts(base: &Path, id: &RunId) -> PathBuf {
    let (place, former) = (base.join(RUNS).join(id.as_str()), base.join(id.as_str()));
    if !place.exists() && is_former(&former) { former } else { place }
}

/// Whether a directory in the base is the state of a run of a version before: no other has a lock of its own.
fn is_former(dir: &Path) -> bool {
    let is_directory = dir.symlink_metadata().is_ok_and(|found| found.is_dir());
    is_directory && !place::is_place(dir) && dir.join(LOCK).symlink_metadata().is_ok_and(|lock| lock.is_file())
}

/// The directories of all states.
fn states(base: &Path) -> Result<Vec<PathBuf>, StateError> {
    let list = |directory: &Path| -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    let runs = base.join(RUNS);
    let mut states = list(&runs).map_err(system("reading", &runs))?;
    states.retain(|dir| dir.is_dir());
    let former = list(base).map_err(system("reading", base))?;
    states.extend(former.into_iter().filter(|dir| is_former(dir)));
    Ok(states)
}

fn is_own(dir: &Path, uid: Uid) -> bool {
    dir.symlink_metadata().is_ok_and(|m| m.is_dir() && m.uid() == uid.as_raw() && m.mode() & 0o022 == 0)
}

/// Held while directories come and go, so that a directory is never seen between its creation and its lock.
///
/// To lock a file it is enough to be able to read it. So this one is for its owner only, in a directory that nobody else
/// can enter.
fn lock_base(base: &Path) -> Result<File, StateError> {
    lock_within(base, LOCK_TIME)
}

fn lock_within(base: &Path, patience: Duration) -> Result<File, StateError> {
    let path = base.join(RUNS).join(COMMON_LOCK);
    let file = open_lock(&path)?;
    match lock::take(&file, patience).map_err(system("locking", &path))? {
        true => Ok(file),
        false => Err(StateError::Locked { holder: Holder::of(&file), path }),
    }
}

/// Versions before have their lock in the base, where everybody could open it.
fn close_former_lock(base: &Path) -> io::Result<()> {
    let path = base.join(COMMON_LOCK);
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.mode() & 0o077 != 0 => {
            fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
        }
        _ => Ok(()),
    }
}

/// What there is of a run.
enum Remains {
    /// A family that holds the lock.
    Held,
    /// The mount of a dead one.
    DeadMount(Record),
    /// Nothing, now.
    Nothing,
}

/// Removes the directory of a run nobody holds the lock of, unless its mount has to be found again.
fn settle(dir: &Path) -> Result<Remains, StateError> {
    let path = dir.join(LOCK);
    let lock = match OpenOptions::new().write(true).open(&path) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(system("opening", &path)(error)),
    };
    if let Some(Err(error)) = lock.as_ref().map(File::try_lock) {
        return match error {
            fs::TryLockError::WouldBlock => Ok(Remains::Held),
            fs::TryLockError::Error(error) => Err(system("locking", &path)(error)),
        };
    }
    if let Some(record) = dead_mount(dir) {
        return Ok(Remains::DeadMount(record));
    }
    remove(dir)?;
    Ok(Remains::Nothing)
}

/// The record of a mount, if what is mounted there is dead.
fn dead_mount(dir: &Path) -> Option<Record> {
    let record = read_record(dir).filter(|record| record.kind == Kind::Mount)?;
    is_stale(&record.mountpoint).unwrap_or(false).then_some(record)
}

fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

/// Removes exactly what a run makes: never recursively, so that nothing below a mountpoint can be hit.
fn remove(dir: &Path) -> Result<(), StateError> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let left_over = names.filter(|name| is_left_over(name));
    for name in [SOCKET, RECORD, OUTPUT, LOCK].map(OsString::from).into_iter().chain(left_over) {
        let path = dir.join(name);
        absent_is_fine(fs::remove_file(&path)).map_err(system("removing", &path))?;
    }
    // Runs of versions before had their mountpoint here.
    for path in [dir.join("mnt"), dir.to_owned()] {
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
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(system("creating", path))
}

fn open_lock(path: &Path) -> Result<File, StateError> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).map_err(system("opening", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> tempfile::TempDir {
        let base = tempfile::tempdir().expect("tempdir");
        make_dir(&base.path().join(RUNS), 0o700).expect("made");
        base
    }

    // promise: T-61
    #[test]
    fn who_keeps_the_lock_of_all_states_is_named() {
        let base = base();
        let patience = Duration::from_millis(20);
        let held = lock_within(base.path(), patience).expect("free");
        assert_eq!(held.metadata().expect("open").mode() & 0o777, 0o600);
        let error = lock_within(base.path(), patience).expect_err("held").to_string();
        assert!(
            error.contains(&format!("process {} (", std::process::id())) && error.contains("@runs/@lock"),
            "{error}"
        );
    }

    // promise: T-62
    #[test]
    fn states_of_a_version_before_are_found_and_nothing_else_is() {
        let base = base();
        let base = base.path();
        let id: RunId = "run".parse().expect("an id");
        assert_eq!(whereabouts(base, &id), base.join("@runs/run"), "where it would be");
        for name in ["run", "mnt", "empty", "serve.sock.1"] {
            fs::create_dir(base.join(name)).expect("made");
        }
        fs::write(base.join("serve.volumes.json"), "{}").expect("written");
        fs::write(base.join("run/lock"), "").expect("written");
        fs::write(base.join("mnt/lock"), "").expect("written");
        fs::write(base.join("@runs/@lock"), "").expect("written");
        fs::create_dir(base.join("@runs/new")).expect("made");
        let mut found = states(base).expect("readable");
        found.sort();
        assert_eq!(found, [base.join("@runs/new"), base.join("run")]);
        assert_eq!(whereabouts(base, &id), base.join("run"));
        fs::create_dir(base.join("@runs/run")).expect("made");
        assert_eq!(whereabouts(base, &id), base.join("@runs/run"));
    }
}
