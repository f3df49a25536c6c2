//! What this machine offers to sealed runs: each fact with a verdict, and a remedy where something is missing.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::wait::waitpid;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::error::{RunError, system};
use super::seal::{DEFAULT_BACKING, scratch_options};
use crate::backing::{AnonBacking, Backing, MemoryBacking};
use crate::crypt::Keyring;
use crate::family::command::{namespace, place::Place, rights};
use crate::fs::Scratch;
use crate::fuse::{Mount, MountFacts, MountOptions};
use crate::spec::{EngineChoice, MemoryLock, RootSpec};
use crate::store::Store;
use crate::sys::memory;
use crate::sys::mount::PrivateView;
use crate::sys::path::shown;
use crate::sys::process::{self, Side};
use crate::units::ByteSize;

/// How good a fact is for sealed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, with less speed or protection.
    Warn,
    /// `runseal run` cannot work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Fact {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Fact {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything. `backing` are the directories a run would use; empty means the default.
pub fn examine(backing: &[PathBuf]) -> Result<Vec<Fact>, RunError> {
    // First, while this process has one thread.
    let trial = Trial::run()?;
    let default = [PathBuf::from(DEFAULT_BACKING)];
    let backing = if backing.is_empty() { &default } else { backing };
    let mut facts = vec![kernel(), device()];
    facts.extend(trial.facts());
    facts.extend([memory_lock(), key_memory(), swap(), cipher()]);
    facts.extend(backing.iter().map(|directory| backing_fact(directory)));
    Ok(facts)
}

fn kernel() -> Fact {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    if version >= (5, 11) {
        Fact::ok(NAME, found)
    } else {
        Fact::warn(NAME, found, "small writes are slow before Linux 5.11 (no FUSE_HANDLE_KILLPRIV_V2)")
    }
}

fn device() -> Fact {
    const NAME: &str = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(_) => Fact::ok(NAME, "can be opened"),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Fact::fail(NAME, "no permission", "as root: `chmod 666 /dev/fuse` (what udev does), or run as root")
        }
        Err(error) => Fact::fail(
            NAME,
            error.to_string(),
            "as root: `modprobe fuse`; in a container: start it with `--device /dev/fuse`",
        ),
    }
}

/// What came of mounting an empty scratch just as a run does: in child processes, for there is no way back out of a
/// namespace.
#[derive(Debug, Serialize, Deserialize)]
struct Trial {
    namespaces: Result<(), String>,
    /// Whether a command can have another directory as its `/tmp`.
    private_tmp: Result<(), String>,
    mount: Result<Mounted, String>,
}

/// The part of [`crate::fuse::MountFacts`] shown.
#[derive(Debug, Serialize, Deserialize)]
struct Mounted {
    protocol: String,
    degraded: Vec<String>,
}

impl Trial {
    fn run() -> Result<Self, RunError> {
        let (reader, mut writer) = io::pipe().map_err(system("pipe"))?;
        let isolated = match process::fork().map_err(system("fork"))? {
            Side::Parent(child) => {
                drop(writer);
                let answer = io::read_to_string(reader).map_err(system("trying a mount"))?;
                waitpid(child, None).map_err(system("trying a mount"))?;
                let died = |_| io::Error::other("the process that tries it died");
                return serde_json::from_str(&answer).map_err(died).map_err(system("trying a mount"));
            }
            Side::Child => namespace::enter(),
        };
        // The namespace is that of children only, and this process could not even start a thread any more.
        let trial = match isolated.map(|_| process::fork()) {
            Ok(Ok(Side::Parent(child))) => {
                let _ = waitpid(child, None);
                std::process::exit(0)
            }
            Ok(Ok(Side::Child)) => Self::inside(),
            Ok(Err(error)) => Self::without_namespaces(error.to_string()),
            Err(error) => Self::without_namespaces(error.reason()),
        };
        let _ = serde_json::to_writer(&mut writer, &trial);
        std::process::exit(0)
    }

    fn inside() -> Self {
        // Any directory does: the view ends with this process.
        let mountpoint = PathBuf::from("/tmp/mnt");
        let place = Place { covers: vec!["/tmp".into()], mountpoint: mountpoint.clone() };
        if let Err(error) = namespace::seal_view(&place) {
            return Self::without_namespaces(error.reason());
        }
        let mut view = PrivateView::default();
        view.cover(Path::new("/tmp"), Path::new("/tmp"));
        let private_tmp = view.enter().map_err(|errno| errno.desc().to_owned());
        let mount = try_mount(&mountpoint).map_err(|error| error.to_string());
        Self { namespaces: Ok(()), private_tmp, mount }
    }

    fn without_namespaces(problem: String) -> Self {
        let not_tried = "not tried without private namespaces";
        Self { namespaces: Err(problem), private_tmp: Err(not_tried.to_owned()), mount: Err(not_tried.to_owned()) }
    }

    fn facts(self) -> Vec<Fact> {
        let how = if geteuid().is_root() { "can be made as root" } else { "can be made in a user namespace" };
        let namespaces = match self.namespaces {
            Ok(()) => Fact::ok("private namespaces", how),
            Err(problem) => Fact::fail("private namespaces", problem, rights::remedy()),
        };
        let private_tmp = match self.private_tmp {
            Ok(()) => Fact::ok("private /tmp", "the scratch can cover /tmp and /var/tmp"),
            Err(problem) => Fact::fail(
                "private /tmp",
                problem,
                "with `--tmp=host` runs go without, and what programs write to /tmp is not sealed",
            ),
        };
        match self.mount {
            Ok(Mounted { protocol, degraded }) => {
                let tuning = match degraded.is_empty() {
                    true => Fact::ok("mount tuning", "read-ahead, dirty limit and CPU latency can be set"),
                    false => Fact::warn("mount tuning", degraded.join("; "), "it works without, slower"),
                };
                vec![namespaces, private_tmp, Fact::ok("mount", format!("works, FUSE protocol {protocol}")), tuning]
            }
            Err(problem) => vec![namespaces, private_tmp, Fact::fail("mount", problem, "see above")],
        }
    }
}

fn try_mount(mountpoint: &Path) -> Result<Mounted, RunError> {
    let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try)?;
    let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 20);
    let scratch = Arc::new(Scratch::new(store, scratch_options(RootSpec::default(), None)));
    let mount = Mount::new(scratch, mountpoint, &MountOptions::default())?;
    let MountFacts { protocol, degraded, .. } = mount.facts().clone();
    mount.detach().map_err(system("detaching"))?;
    Ok(Mounted { protocol, degraded })
}

fn memory_lock() -> Fact {
    const NAME: &str = "memory lock";
    let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => "no limit".to_owned(),
        Ok((soft, _)) => format!("limit {}", ByteSize(soft)),
        Err(errno) => errno.desc().to_owned(),
    };
    // Affects this process only, which is about to end.
    match memory::lock_process_memory() {
        Ok(()) => Fact::ok(NAME, limit),
        Err(_) => Fact::warn(
            NAME,
            format!("{limit}: only key memory can be locked"),
            "raise it (ulimit -l unlimited, LimitMEMLOCK=infinity), or turn swap off",
        ),
    }
}

fn key_memory() -> Fact {
    const NAME: &str = "key memory";
    match Keyring::new(EngineChoice::Auto, MemoryLock::Try).map(|keyring| keyring.key_memory()) {
        Ok("unlocked") => Fact::warn(NAME, "unlocked", "raise RLIMIT_MEMLOCK (ulimit -l)"),
        Ok(kind) => Fact::ok(NAME, kind),
        Err(error) => Fact::fail(NAME, error.to_string(), "see the message"),
    }
}

fn swap() -> Fact {
    const NAME: &str = "swap";
    match memory::swap_active() {
        Ok(false) => Fact::ok(NAME, "off"),
        Ok(true) => Fact::warn(NAME, "on", "unlocked memory may be written to it: `swapoff -a`, or encrypt it"),
        Err(error) => Fact::warn(NAME, error.to_string(), "make /proc/swaps readable"),
    }
}

fn cipher() -> Fact {
    const NAME: &str = "cipher";
    let engine = match Keyring::new(EngineChoice::Auto, MemoryLock::Try) {
        Ok(keyring) => keyring.engine().to_owned(),
        Err(error) => return Fact::fail(NAME, error.to_string(), "use a machine whose processor works"),
    };
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| info.split_ascii_whitespace().any(|word| word == flag);
    match (has("vaes"), has("aes")) {
        (true, _) => Fact::ok(NAME, format!("{engine}, processor with VAES")),
        (_, true) => Fact::ok(NAME, format!("{engine}, processor with AES instructions")),
        _ => Fact::warn(NAME, format!("{engine}, no AES instructions found"), "expect a tenth of the speed"),
    }
}

fn backing_fact(directory: &Path) -> Fact {
    const NAME: &str = "backing";
    let shown = shown(directory);
    let backing = match AnonBacking::open(&[directory.to_owned()]) {
        Ok(backing) => backing,
        Err(error) => return Fact::fail(NAME, error.to_string(), "name another directory with --backing"),
    };
    let free = backing.available().map_or_else(|e| e.to_string(), |free| ByteSize(free).to_string());
    match backing.warnings().first() {
        Some(warning) => Fact::warn(NAME, warning, "name another directory with --backing"),
        None => Fact::ok(NAME, format!("{shown}, {free} free")),
    }
}
