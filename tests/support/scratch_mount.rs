//! A scratch mounted on a temporary directory, and what it takes to leave nothing behind.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use runseal::backing::{AnonBacking, Backing};
use runseal::crypt::Keyring;
use runseal::fs::{Scratch, ScratchOptions};
use runseal::fuse::{FuseError, Mount, MountOptions};
use runseal::spec::{EngineChoice, MemoryLock};
use runseal::store::Store;
use runseal::sys::mount::{MountEntry, mount_table};
use tempfile::TempDir;

/// How long anything may take before a test calls it hung.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What to mount.
pub struct Setup {
    pub size: u64,
    /// Bytes of memory for what is known of files.
    pub memory: u64,
    pub options: MountOptions,
    pub backing: Option<Box<dyn Backing>>,
}

impl Default for Setup {
    fn default() -> Self {
        let options = MountOptions { allow_other: true, ..MountOptions::default() };
        Self { size: 4 << 30, memory: 1 << 30, options, backing: None }
    }
}

/// A mounted scratch. Dropping it detaches, waits for the end of the session, and fails the test if something is left.
pub struct Mounted {
    mount: Option<Mount>,
    pub scratch: Arc<Scratch>,
    pub store: Arc<Store>,
    base: TempDir,
}

/// The usual scratch; `None`, with a visible SKIP, where one cannot mount.
pub fn mount() -> Option<Mounted> {
    mount_with(Setup::default())
}

pub fn mount_options(options: &[&str]) -> Option<Mounted> {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    mount_with(Setup {
        options: MountOptions { options, allow_other: true, ..MountOptions::default() },
        ..Setup::default()
    })
}

pub fn mount_with(setup: Setup) -> Option<Mounted> {
    let base = directory();
    fs::create_dir(base.path().join("mnt")).expect("a mountpoint");
    let (scratch, store) = scratch(base.path(), setup.backing, setup.size, setup.memory);
    let mount = start(scratch.clone(), &base.path().join("mnt"), &setup.options)?;
    Some(Mounted { mount: Some(mount), scratch, store, base })
}

/// Mounts, or says why this machine cannot.
pub fn start(scratch: Arc<Scratch>, path: &Path, options: &MountOptions) -> Option<Mount> {
    match Mount::new(scratch, path, options) {
        Ok(mount) => Some(mount),
        Err(FuseError::Device { source, .. }) => skip(&format!("/dev/fuse: {source}")),
        Err(FuseError::Mount { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            skip(&format!("mount: {source}"))
        }
        Err(error) => panic!("{error}"),
    }
}

/// An empty scratch with its ciphertext in nameless files in `dir`, unless a backing is given.
pub fn scratch(dir: &Path, backing: Option<Box<dyn Backing>>, size: u64, memory: u64) -> (Arc<Scratch>, Arc<Store>) {
    let backing = backing.unwrap_or_else(|| Box::new(AnonBacking::open(&[dir.to_owned()]).expect("arenas")));
    let keyring = Keyring::new(engine(), MemoryLock::Try).expect("keys");
    let store = Store::new(backing, keyring, size);
    let root = ScratchOptions { memory, uid: 0, gid: 0, mode: 0o755 };
    (Arc::new(Scratch::new(store.clone(), root)), store)
}

/// The cipher engine that `RUNSEAL_ENGINE` names.
fn engine() -> EngineChoice {
    match std::env::var("RUNSEAL_ENGINE").as_deref() {
        Err(_) => EngineChoice::Auto,
        Ok("aws-lc") => EngineChoice::AwsLc,
        Ok("portable") => EngineChoice::Portable,
        Ok(other) => panic!("RUNSEAL_ENGINE={other}: use aws-lc or portable"),
    }
}

/// A temporary directory that other users can walk through.
pub fn directory() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its owner");
    dir
}

/// Prints `SKIP: test: reason` where the test harness does not swallow it.
pub fn skip<T>(reason: &str) -> Option<T> {
    let name = thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(io::stderr(), "SKIP: {name}: {reason}");
    None
}

/// Whether a program is on this machine; prints SKIP if not.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$1\"", "sh", program]).output();
    found.is_ok_and(|output| output.status.success()) || skip::<()>(&format!("no {program} here")).is_some()
}

impl Mounted {
    /// A path below the mountpoint.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn root(&self) -> PathBuf {
        fs::canonicalize(self.base.path()).expect("the base").join("mnt")
    }

    /// A directory beside the mount, gone with it.
    pub fn beside(&self, name: &str) -> PathBuf {
        let path = self.base.path().join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("present until drop")
    }

    /// Requests of one kind so far.
    pub fn requests(&self, opcode: &str) -> u64 {
        self.mount().requests().iter().filter(|(name, _)| *name == opcode).map(|(_, count)| count).sum()
    }

    /// Runs a shell script with the mountpoint as its directory; it must succeed.
    pub fn sh(&self, script: &str) -> String {
        succeed(Command::new("sh").args(["-euc", script]).current_dir(self.root()))
    }

    /// Runs a Python program with the mountpoint as its directory; it must succeed.
    pub fn python(&self, program: &str) -> String {
        let program = format!("import errno, os, stat, sys\n{program}");
        succeed(Command::new("python3").args(["-c", &program]).current_dir(self.root()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(mount) = self.mount.take() else { return };
        let root = self.root();
        let detached = mount.detach();
        let ended = ends(mount, &root);
        let left: Vec<_> = mounts_at(&root);
        if !thread::panicking() {
            detached.expect("detach");
            ended.expect("the session ends");
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// Waits for the end of a session; aborts it, and says who held it, if it does not come.
pub fn ends(mount: Mount, path: &Path) -> Result<(), String> {
    let mount = Arc::new(mount);
    let waiting = mount.clone();
    if within(3 * PATIENCE, move || waiting.wait()).is_some() {
        return Ok(());
    }
    let holders = holders(path);
    mount.abort();
    Err(format!("still in use by {holders:?}"))
}

/// Processes that keep a mount alive: with a file open on it, or in another mount namespace that has a copy of it.
fn holders(path: &Path) -> Vec<String> {
    let path = path.to_string_lossy();
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let holds = |process: &Path| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut links = files.map(|file| file.path()).chain([process.join("cwd"), process.join("root")]);
        let open = links.any(|link| fs::read_link(link).is_ok_and(|target| target.starts_with(&*path)));
        open || fs::read_to_string(process.join("mountinfo")).is_ok_and(|table| table.contains(&*path))
    };
    let name = |process: PathBuf| fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ");
    processes.filter(|process| holds(process)).map(name).collect()
}

/// The value of `work`, or `None` when it takes too long (its thread is then left behind).
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let _ = done.send(work());
    });
    wait.recv_timeout(limit).ok()
}

/// Polls until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn mounts_at(path: &Path) -> Vec<MountEntry> {
    mount_table().expect("/proc").into_iter().filter(|entry| entry.mountpoint.starts_with(path)).collect()
}

pub fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
    stdout.into_owned()
}

/// Bytes that are different everywhere, and the same for the same seed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
