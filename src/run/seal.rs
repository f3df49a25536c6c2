//! Key, store, scratch and mount: built together, torn down together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::unistd::{getegid, geteuid};

use super::error::{FamilyError, RunError};
use super::losses;
use crate::backing::{AnonBacking, Backing};
use crate::crypt::{KeyShare, Keyring};
use crate::family::{Desk, Event, Journal, MountSight, Order, SealFacts, message, process::sealed::beside};
use crate::fs::{Attr, Creator, Kind, ROOT, Scratch, ScratchOptions, SetAttr};
use crate::fuse::{Mount, MountOptions};
use crate::spec::{CpuLatency, MemoryLock, RootSpec, StoreSpec};
use crate::store::Store;
use crate::sys::cgroup::memory_limit;
use crate::sys::memory;
use crate::units::{ByteSize, SECTOR_U64, rfc3339_millis};

/// How long open files may keep a detached mount alive before the connection is cut.
const LINGER: Duration = Duration::from_secs(5);
/// Where ciphertext goes unless told otherwise: a disk on every distribution, while `/tmp` often is memory.
pub const DEFAULT_BACKING: &str = "/var/tmp";

/// Disk space found for a run, before there is any key.
pub struct Room {
    backing: AnonBacking,
    directories: Vec<PathBuf>,
    /// Bytes the scratch may hold.
    pub size: u64,
}

impl Room {
    /// Opens the backing and settles the size of the scratch.
    pub fn find(spec: &StoreSpec) -> Result<Self, RunError> {
        let directories = if spec.backing.is_empty() { vec![DEFAULT_BACKING.into()] } else { spec.backing.clone() };
        let backing = AnonBacking::open(&directories)?;
        backing.warnings().iter().for_each(message::warn);
        let free = backing.available().map_err(RunError::Space)?;
        if free < SECTOR_U64 {
            return Err(RunError::Full(directories[0].clone()));
        }
        if let Some(size) = spec.size.filter(|size| size.0 > free) {
            message::warn(format_args!("--size {size} is more than the backing has free now ({})", ByteSize(free)));
        }
        Ok(Self { backing, directories, size: spec.size.map_or(free, |size| size.0) })
    }
}

/// What the key is drawn from, and into which memory.
pub struct KeySource {
    /// Whether all memory of this process is locked; for the report.
    pub memory_locked: bool,
    /// A secret that takes part in the run key.
    pub share: Option<KeyShare>,
}

/// A sealed scratch, mounted.
pub struct Seal {
    /// The file system.
    pub scratch: Arc<Scratch>,
    /// Its mount.
    pub mount: Arc<Mount>,
    store: Arc<Store>,
    /// User and group of the root.
    owner: (u32, u32),
}

impl Seal {
    /// Draws the key and mounts an empty scratch on `mountpoint`.
    pub fn make(
        room: Room,
        spec: &StoreSpec,
        root: RootSpec,
        mountpoint: &Path,
        options: MountOptions,
        keys: KeySource,
        journal: &Journal,
    ) -> Result<Self, RunError> {
        let KeySource { memory_locked, share } = keys;
        let keyring = Keyring::with_share(spec.engine, spec.memory_lock, share)?;
        journal.record(Event::Sealed(SealFacts {
            engine: keyring.engine().to_owned(),
            key_memory: keyring.key_memory().to_owned(),
            memory_locked,
            backing: room.directories.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            size: room.size,
        }));
        let store = Store::new(Box::new(room.backing), keyring, room.size);
        let options_of_scratch = scratch_options(root, spec.memory);
        let owner = (options_of_scratch.uid, options_of_scratch.gid);
        let scratch = Arc::new(Scratch::new(store.clone(), options_of_scratch));
        let leave_cpu_latency = spec.cpu_latency == CpuLatency::Leave;
        match Mount::new(scratch.clone(), mountpoint, &MountOptions { leave_cpu_latency, ..options }) {
            Ok(mount) => {
                mount.facts().degraded.iter().for_each(|what| tracing::info!("mount: {what}"));
                journal.record(Event::Mounted { facts: serde_json::to_value(mount.facts()).unwrap_or_default() });
                Ok(Self { scratch, mount: Arc::new(mount), store, owner })
            }
            Err(error) => {
                wipe(&store, None, journal);
                Err(error.into())
            }
        }
    }

    /// Makes a directory below the root, with the same owner, and returns its inode number.
    pub fn make_dir(&self, name: &str, mode: u32) -> Result<u64, RunError> {
        let (uid, gid) = self.owner;
        let caller = Creator { uid, gid, umask: 0 };
        let ino = self.scratch.mkdir(ROOT, name.as_bytes(), mode, &caller)?.ino;
        self.scratch.forget(ino, 1);
        Ok(ino)
    }

    /// Has the directory `top` and everything below belong to `to`, or to the owner of the root. Who gets it may do what
    /// the group and others could; of the bits of the mode, those of `mask` are left. What is gone meanwhile is left out.
    pub fn hand_over(&self, top: u64, to: Option<(u32, u32)>, mask: u32) {
        let (uid, gid) = to.unwrap_or(self.owner);
        let mut pending = vec![top];
        while let Some(ino) = pending.pop() {
            let Ok(Attr { mode, kind, .. }) = self.scratch.getattr(ino) else { continue };
            let mode = (kind != Kind::Symlink).then_some((mode | ((mode >> 3 | mode) & 0o7) << 6) & mask);
            let _ = self.scratch.setattr(ino, &SetAttr { uid: Some(uid), gid: Some(gid), mode, ..SetAttr::default() });
            if kind == Kind::Directory {
                let _ = self.scratch.readdir(ino, 0, &mut |entry| {
                    if !matches!(entry.name, b"." | b"..") {
                        pending.push(entry.ino);
                    }
                    true
                });
            }
        }
    }

    /// Whether a failed write of ciphertext has stopped the store.
    pub fn latched(&self) -> bool {
        self.store.latched()
    }

    /// As [`Seal::close`], unless `result` says that the mount was cut off unasked: then it stays, dead.
    pub async fn close_or_leave<T>(self, result: &Result<T, RunError>, journal: &Journal) {
        if matches!(result, Err(RunError::Family(FamilyError::CutOff))) {
            self.mount.leave();
            return wipe(&self.store, Some(&self.mount), journal);
        }
        self.close(journal).await;
    }

    /// Takes the mount away and destroys the keys, in this order: detach, wait for the last user, wipe.
    async fn close(self, journal: &Journal) {
        if let Err(error) = self.mount.detach() {
            tracing::debug!("detach: {error}");
        }
        let mount = self.mount.clone();
        let ended = tokio::task::spawn_blocking(move || mount.wait());
        if tokio::time::timeout(LINGER, ended).await.is_err() {
            message::warn("files of the scratch are still open; cutting them off");
            self.mount.abort();
        }
        wipe(&self.store, Some(&self.mount), journal);
    }
}

fn wipe(store: &Store, mount: Option<&Mount>, journal: &Journal) {
    store.wipe();
    journal.record(Event::Wiped {
        at: rfc3339_millis(SystemTime::now()),
        bytes_encrypted: store.stats().bytes_encrypted,
        requests: mount.map(requests).unwrap_or_default(),
    });
}

fn requests(mount: &Mount) -> BTreeMap<String, u64> {
    mount.requests().into_iter().map(|(opcode, count)| (opcode.to_owned(), count)).collect()
}

/// What is known of files lives in memory, which is locked: so much of it as was asked for, or a share of what this
/// process can have.
pub fn scratch_options(root: RootSpec, memory: Option<ByteSize>) -> ScratchOptions {
    const SHARE: u64 = 8;
    const RANGE: [u64; 2] = [64 << 20, 16 << 30];
    /// With less not even a small tree has room.
    const LEAST: u64 = 1 << 20;
    let memory = match memory {
        Some(memory) => memory.0.max(LEAST),
        None => (memory_limit().unwrap_or(0) / SHARE).clamp(RANGE[0], RANGE[1]),
    };
    let (uid, gid) = root.owner.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
    ScratchOptions { memory, uid, gid, mode: root.mode.unwrap_or(0o755) }
}

/// Locks the memory of this process as far as the policy asks; answers whether all of it is locked.
pub fn lock_memory(policy: MemoryLock) -> Result<bool, RunError> {
    match (memory::lock_process_memory(), policy) {
        (Ok(()), _) => Ok(true),
        (Err(source), MemoryLock::Require) => Err(RunError::MemoryLock { source }),
        (Err(error), MemoryLock::Try) => {
            if memory::swap_active().unwrap_or(true) {
                message::warn(format_args!(
                    "memory cannot be locked ({error}) and swap is on: plaintext may be swapped out; raise \
                     RLIMIT_MEMLOCK (ulimit -l unlimited), or turn swap off"
                ));
            }
            Ok(false)
        }
    }
}

/// Draws the key and mounts, once the memory of this process is locked as far as it can be.
pub async fn make_seal(
    room: Room,
    spec: &StoreSpec,
    root: RootSpec,
    mountpoint: PathBuf,
    options: MountOptions,
    keys: KeySource,
    desk: &Desk,
) -> Result<Seal, RunError> {
    let (spec, journal) = (spec.clone(), desk.journal.clone());
    // Not interruptible: it takes a moment, and a mount half made would need to be found again.
    beside(move || Seal::make(room, &spec, root, &mountpoint, options, keys, &journal)).await
}

impl Desk {
    /// Turns the end of the mount into an order, and has whoever asks for the status told how it is until then.
    pub fn watch(&self, seal: &Seal) {
        if let Err(error) = losses::watch(&seal.scratch, &self.journal) {
            tracing::warn!(%error, "lost data is told at the end only");
        }
        let (mount, orders) = (seal.mount.clone(), self.sender.clone());
        std::thread::spawn(move || {
            mount.wait();
            let _ = orders.send(Order::MountEnded);
        });
        let mount = Arc::downgrade(&seal.mount);
        self.journal.look(move || match mount.upgrade() {
            Some(mount) => MountSight { is_unmounted: mount.is_unmounted(), requests: requests(&mount) },
            None => MountSight::default(),
        });
    }
}
