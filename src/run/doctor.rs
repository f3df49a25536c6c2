//! What this machine offers to sealed runs: each fact with a verdict, and a remedy where something is missing.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::geteuid;
use serde::Serialize;

use super::error::{RunError, system};
use super::namespace;
use super::seal::DEFAULT_BACKING;
use crate::backing::{AnonBacking, Backing};
use crate::crypt::Keyring;
use crate::spec::{EngineChoice, MemoryLock};
use crate::sys::memory;
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
    // First, while this process has one thread and no namespaces of its own.
    let namespaces = namespaces()?;
    let default = [PathBuf::from(DEFAULT_BACKING)];
    let backing = if backing.is_empty() { &default } else { backing };
    let mut facts = vec![kernel(), device(), namespaces, memory_lock(), key_memory(), swap(), cipher(), tuning()];
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

/// Tries in a child, because there is no way back out of a namespace.
fn namespaces() -> Result<Fact, RunError> {
    const NAME: &str = "private namespaces";
    let (mut reader, writer) = io::pipe().map_err(system("pipe"))?;
    match process::fork().map_err(system("fork"))? {
        Side::Child => {
            let problem = try_namespaces().err().unwrap_or_default();
            let _ = io::Write::write_all(&mut &writer, problem.as_bytes());
            std::process::exit(i32::from(!problem.is_empty()))
        }
        Side::Parent(child) => {
            drop(writer);
            let problem = io::read_to_string(&mut reader).unwrap_or_default();
            let kind = if geteuid().is_root() { "as root" } else { "in a user namespace" };
            Ok(match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 0)) => Fact::ok(NAME, format!("can be made, {kind}, and mounted in")),
                _ => Fact::fail(NAME, problem, namespace::REMEDY),
            })
        }
    }
}

fn try_namespaces() -> Result<(), String> {
    namespace::enter().map_err(|error| error.reason())?;
    // Any directory does: the view ends with this process.
    let anywhere = Path::new("/tmp");
    namespace::seal_view(anywhere, &anywhere.join("mnt")).map_err(|error| error.reason())
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

/// The knobs of a mount belong to root of the machine; see docs/design.md.
fn tuning() -> Fact {
    const NAME: &str = "mount tuning";
    let own_machine = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.contains("4294967295"));
    let writable = nix::sys::statvfs::statvfs("/sys")
        .is_ok_and(|stat| !stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    if geteuid().is_root() && own_machine && writable {
        Fact::ok(NAME, "read-ahead and dirty limit can be set")
    } else {
        Fact::warn(
            NAME,
            "read-ahead stays at 128 KiB and dirty memory small",
            "large files are faster when runseal runs as root of the machine, with /sys writable",
        )
    }
}

fn backing_fact(directory: &Path) -> Fact {
    const NAME: &str = "backing";
    let shown = directory.display();
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
