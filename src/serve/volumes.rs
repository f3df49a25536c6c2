//! Sealed volumes: defined by name, mounted while anybody uses them, wiped when nobody does.
//!
//! The table is written down at every change, so that the next service knows who uses what. It names volumes and their
//! users, nothing else. Calls for one volume wait for each other; the lock of the table is never held across a wait.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::admission::OF_VOLUMES;
use super::model::{Owner, RunRequest, RunState, Size};
use super::peer::Caller;
use super::problem::{Problem, ProblemKind};
use super::runs::Runs;
use crate::run::Unpublished;
use crate::spec::RunId;
use crate::sys::path::shown;
use crate::sys::replace::replace;

/// Options as Docker passes them.
pub type Options = BTreeMap<String, String>;

/// Longest name that a run carries behind its prefix. Checksums are longer by one, so that no name is one.
const NAME_MAX: usize = SUM - 1;
/// Characters of a checksum: with the prefix, the length of a run id.
const SUM: usize = 60;
/// What people get whose option is not known.
const KNOWN: &str = "size, memory, backing, uid, gid, mode";

/// One volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Volume {
    options: Options,
    /// The run behind it, while it is mounted.
    run: Option<RunId>,
    /// Who uses it, as Docker names them.
    users: BTreeSet<String>,
    /// Held by whoever changes it.
    #[serde(skip)]
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The volumes of this node.
pub struct Volumes {
    runs: Arc<Runs>,
    file: PathBuf,
    table: Mutex<BTreeMap<String, Volume>>,
}

/// A volume as Docker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeView {
    /// Name.
    pub name: String,
    /// Where it is, while it is mounted.
    pub mountpoint: Option<PathBuf>,
    /// How many use it.
    pub users: usize,
}

impl Volumes {
    /// The volumes that `file` knows; their live runs have been adopted already. Runs nobody uses are ended.
    pub async fn open(runs: Arc<Runs>, file: PathBuf) -> io::Result<Arc<Self>> {
        let mut table: BTreeMap<String, Volume> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let mut unused: BTreeSet<RunId> = runs.of_volumes().into_iter().collect();
        for volume in table.values_mut() {
            match &volume.run {
                Some(run) if unused.contains(run) && !volume.users.is_empty() => {
                    unused.remove(run);
                }
                _ => volume.release(),
            }
        }
        let volumes = Arc::new(Self { runs, file, table: Mutex::new(table) });
        volumes.save()?;
        for run in unused {
            if let Err(problem) = volumes.runs.end(run.as_str(), Unpublished::Discard, Caller::ROOT).await {
                tracing::warn!("the run {run} of a volume nobody uses: {problem}");
            }
        }
        Ok(volumes)
    }

    /// Defines a volume; nothing is mounted yet. Defining it again in the same way is fine.
    pub fn create(&self, name: &str, options: Options) -> Result<(), Problem> {
        run_of(name)?;
        self.request(name, &options)?;
        {
            let mut table = self.table.lock();
            if let Some(known) = table.get(name) {
                if known.options == options {
                    return Ok(());
                }
                return Err(refuse(ProblemKind::InUse, name, "exists with other options; remove it first"));
            }
            table.insert(name.to_owned(), Volume { options, ..Volume::default() });
        }
        self.keep(name)
    }

    /// Forgets a volume that nobody uses.
    pub async fn remove(&self, name: &str) -> Result<(), Problem> {
        let turn = self.turn(name)?;
        let _turn = turn.lock().await;
        self.forget_dead(name);
        {
            let mut table = self.table.lock();
            let volume = table.get(name).ok_or_else(|| missing(name))?;
            if !volume.users.is_empty() {
                let users: Vec<_> = volume.users.iter().map(String::as_str).collect();
                let detail = format!("is in use by {}; stop what uses it first", users.join(", "));
                return Err(refuse(ProblemKind::InUse, name, detail));
            }
            table.remove(name);
        }
        self.keep(name)
    }

    /// Lets `user` use the volume; the first one gets a fresh scratch, which `caller` must see.
    pub async fn mount(self: &Arc<Self>, name: &str, user: &str, caller: Caller) -> Result<PathBuf, Problem> {
        let turn = self.turn(name)?;
        let _turn = turn.lock().await;
        self.forget_dead(name);
        if let Some(mountpoint) = self.seen(name)?.mountpoint {
            self.change(name, |volume| volume.users.insert(user.to_owned()))?;
            self.keep(name)?;
            return Ok(mountpoint);
        }
        let options = self.change(name, |volume| volume.options.clone())?;
        let mut request = self.request(name, &options)?;
        let run = run_of(name)?;
        request.id = Some(run.clone());
        let view = self.runs.create(request, Some(name.to_owned()), caller).await?;
        self.change(name, |volume| {
            volume.run = Some(run);
            volume.users = [user.to_owned()].into();
        })?;
        self.keep(name)?;
        Ok(view.mountpoint)
    }

    /// `user` no longer uses the volume; with the last one its scratch and key are gone when this returns.
    pub async fn unmount(self: &Arc<Self>, name: &str, user: &str) -> Result<(), Problem> {
        let turn = self.turn(name)?;
        let _turn = turn.lock().await;
        self.forget_dead(name);
        let last = self.change(name, |volume| {
            volume.users.remove(user);
            volume.run.clone().filter(|_| volume.users.is_empty())
        })?;
        self.keep(name)?;
        let Some(run) = last else { return Ok(()) };
        match self.runs.end(run.as_str(), Unpublished::Discard, Caller::ROOT).await {
            Err(problem) if problem.kind != ProblemKind::NotFound => return Err(problem),
            _ => {}
        }
        self.change(name, Volume::release)?;
        self.keep(name)
    }

    /// One volume.
    pub fn seen(&self, name: &str) -> Result<VolumeView, Problem> {
        let volume = self.table.lock().get(name).cloned().ok_or_else(|| missing(name))?;
        Ok(self.look(name, &volume))
    }

    /// All volumes, by name.
    pub fn list(&self) -> Vec<VolumeView> {
        let table = self.table.lock().clone();
        table.iter().map(|(name, volume)| self.look(name, volume)).collect()
    }

    fn look(&self, name: &str, volume: &Volume) -> VolumeView {
        let run = volume.run.as_ref().and_then(|run| self.runs.view(run.as_str(), Caller::ROOT).ok());
        let serving = run.filter(|view| view.state == RunState::Serving);
        VolumeView { name: name.to_owned(), mountpoint: serving.map(|view| view.mountpoint), users: volume.users.len() }
    }

    /// A run that died, or was ended by somebody else, has no users any more: what they see is gone for good.
    fn forget_dead(&self, name: &str) {
        if self.seen(name).is_ok_and(|seen| seen.mountpoint.is_none()) {
            let _ = self.change(name, Volume::release);
        }
    }

    fn turn(&self, name: &str) -> Result<Arc<tokio::sync::Mutex<()>>, Problem> {
        self.change(name, |volume| volume.turn.clone())
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Volume) -> T) -> Result<T, Problem> {
        self.table.lock().get_mut(name).map(change).ok_or_else(|| missing(name))
    }

    fn keep(&self, name: &str) -> Result<(), Problem> {
        let problem = |error| refuse(ProblemKind::System, name, format!("{}: {error}", shown(&self.file)));
        self.save().map_err(problem)
    }

    /// Under the lock, or an older table could replace a newer one.
    fn save(&self) -> io::Result<()> {
        let table = self.table.lock();
        let text = serde_json::to_vec(&*table)?;
        replace(&self.file, &text, 0o600)
    }

    /// The options of Docker as a run; says which one is wrong.
    fn request(&self, name: &str, options: &Options) -> Result<RunRequest, Problem> {
        let mut request = RunRequest { mode: "0755".parse().ok(), ..RunRequest::default() };
        let (mut uid, mut gid) = (None, None);
        for (key, value) in options {
            let read = match key.as_str() {
                "size" => size(value).map(|size| request.size = Some(size)),
                "memory" => size(value).map(|size| request.memory = Some(size)),
                "backing" => {
                    request.backing = value.split(':').map(PathBuf::from).collect();
                    Ok(())
                }
                "mode" => value.parse().map(|mode| request.mode = Some(mode)),
                "uid" => number(value).map(|id| uid = Some(id)),
                "gid" => number(value).map(|id| gid = Some(id)),
                _ => Err(format!("is not known; known are {KNOWN}")),
            };
            read.map_err(|problem| refuse(ProblemKind::Usage, name, format!("option {key}={value}: {problem}")))?;
        }
        if let Some(foreign) = self.runs.settings().config.foreign_backing(&request.backing) {
            return Err(refuse(ProblemKind::Usage, name, format!("option backing={foreign}")));
        }
        let uid = uid.unwrap_or(0);
        request.owner = Some(Owner { uid, gid: gid.unwrap_or(uid) });
        Ok(request)
    }
}

impl Volume {
    fn release(&mut self) {
        self.run = None;
        self.users.clear();
    }
}

/// The run behind a volume. Long names (Docker makes up 64 characters) become their checksum.
fn run_of(name: &str) -> Result<RunId, Problem> {
    let plain: RunId = format!("{OF_VOLUMES}{}", if name.len() <= NAME_MAX { name } else { "" })
        .parse()
        .map_err(|_| refuse(ProblemKind::Usage, name, "is no name: use the characters A-Z a-z 0-9 . _ -"))?;
    let all_allowed = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if name.is_empty() || name.len() > 255 || !all_allowed {
        return Err(refuse(ProblemKind::Usage, name, "is no name: use 1 to 255 of the characters A-Z a-z 0-9 . _ -"));
    }
    if name.len() <= NAME_MAX {
        return Ok(plain);
    }
    let sum: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{OF_VOLUMES}{}", &sum[..SUM]).parse().expect("hexadecimal digits are allowed in run ids"))
}

fn size(text: &str) -> Result<Size, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "is not a number from 0 to 4294967295".to_owned())
}

fn missing(name: &str) -> Problem {
    refuse(ProblemKind::NotFound, name, "does not exist")
}

fn refuse(kind: ProblemKind, name: &str, problem: impl std::fmt::Display) -> Problem {
    Problem::new(kind, format!("volume {name}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_docker_has_a_run_of_its_own() {
        assert_eq!(run_of("data").expect("a name").as_str(), "vol-data");
        let long = "f".repeat(64);
        let (a, b) = (run_of(&long).expect("a name"), run_of(&format!("{long}0")).expect("a name"));
        assert!(a != b && a.as_str().len() == 64);
        let sum = a.as_str().strip_prefix(OF_VOLUMES).expect("the prefix").to_owned();
        assert_ne!(run_of(&sum).expect("a name"), a, "a name that is the checksum of another");
        for name in ["", "a/b", "../x", "a b", "\u{e4}", &"x".repeat(256)] {
            assert_eq!(run_of(name).expect_err(name).kind, ProblemKind::Usage);
        }
    }
}
