//! [`Mount`]: mounts, serves, and takes the mount away again.
//!
//! fuser's own mounting is not used: on teardown it can unmount a foreign file system (fuser 0.18, `is_mounted`), and
//! it gives up when the mount is busy. mount(2) and umount2(2) are called here; fuser gets the descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use fuser::{Config, Filesystem, INodeNo, InitFlags, Notifier, Session, SessionACL};
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::adapter::{Adapter, Connection};
use super::bdi::DirtyAllowance;
use super::cpu_latency::{self, LatencyHolder};
use super::device::{mount_device, open_device};
use super::init::Negotiation;
use super::mountpoint;
use super::options;
use super::workers::{SERVED, abort_on_worker_panic, worker_count};
use super::{FuseError, MountFacts, MountOptions, bdi};
use crate::fs::{ROOT, Scratch};
use crate::sys::mount::{self as sys, MountEntry, mount_table, top_mount};
use crate::sys::own_mount::{detach_stale, is_ours};
use crate::units::SECTOR_U64;

/// A mounted file system, served by threads of this process until it is detached. Dropping it detaches it.
///
/// What is changed in the [`Scratch`] behind the kernel's back is seen through the mount only where the kernel has not
/// looked yet: it remembers names, also missing ones, and attributes without end.
pub struct Mount {
    mountpoint: PathBuf,
    /// Mount id and device number: together they tell this mount from another one on the same directory.
    id: u64,
    device: (u32, u32),
    facts: MountFacts,
    connection: Arc<Connection>,
    end: Arc<SessionEnd>,
    /// Whether it stays when this value goes.
    left: AtomicBool,
}

impl Mount {
    /// Mounts `scratch` on `mountpoint` (an existing, empty directory that nothing is mounted on), completes INIT
    /// and primes the kernel's no-open state: when this returns, the mount is ready.
    pub fn new(scratch: Arc<Scratch>, mountpoint: &Path, options: &MountOptions) -> Result<Self, FuseError> {
        Self::serve_scratch(scratch, mountpoint, options, InitFlags::all())
    }

    /// With the capabilities of `may`.
    fn serve_scratch(
        scratch: Arc<Scratch>,
        mountpoint: &Path,
        options: &MountOptions,
        may: InitFlags,
    ) -> Result<Self, FuseError> {
        let connection = Arc::new(Connection::new());
        let statfs = scratch.statfs();
        let adapter = Adapter::new(scratch, connection.clone(), may);
        let gate = adapter.gate();
        // The disk may have less than the limit.
        let space = statfs.sectors_free.saturating_mul(SECTOR_U64);
        let (mut mount, allowance) = Self::serve(adapter, connection, mountpoint, options, space)?;
        let writes_late = |facts: &Negotiation| facts.granted.contains(InitFlags::FUSE_WRITEBACK_CACHE);
        if mount.connection.negotiated.get().is_some_and(writes_late) {
            mount.facts.degraded.extend(gate.arm(allowance));
            gate.keep_looking();
        }
        Ok(mount)
    }

    fn serve<F: Filesystem>(
        filesystem: F,
        connection: Arc<Connection>,
        mountpoint: &Path,
        options: &MountOptions,
        space: u64,
    ) -> Result<(Self, DirtyAllowance), FuseError> {
        let parsed = options::parse(options)?;
        let path = mountpoint::check(mountpoint)?;
        let device = open_device()?;
        mount_device(&device, &path, &parsed)?;
        let entry = entry_at(&path).map_err(FuseError::Session)?;
        let mut mount = Self {
            mountpoint: path,
            id: entry.id,
            device: entry.device,
            facts: MountFacts::default(),
            connection,
            end: Arc::new(SessionEnd::default()),
            left: AtomicBool::new(false),
        };
        // From here on, dropping `mount` on an error detaches.
        let threads = worker_count(options.threads);
        let descriptor = device.as_raw_fd();
        let (notifier, mut degraded) = mount.start(filesystem, device, threads).map_err(FuseError::Session)?;
        let knobs = bdi::tune(mount.device, space);
        degraded.extend(knobs.degraded);
        if !options.leave_cpu_latency {
            match LatencyHolder::open() {
                // Nobody has set it before.
                Ok(latency) => drop(mount.connection.latency.set(latency)),
                Err(error) => degraded.push(format!(
                    "{} not opened ({error}): requests wait for processors to wake; let this user write to it (udev), \
                     or give the container the device",
                    cpu_latency::DEVICE
                )),
            }
        }
        let writable = !parsed.flags.contains(nix::mount::MsFlags::MS_RDONLY);
        // Until one OPEN was refused, every created file costs a RELEASE.
        if let Err(error) = sys::touch_own_mount(&mount.mountpoint, writable, descriptor) {
            degraded.push(format!("the kernel was not primed ({error}): the first opens cost more requests"));
        }
        // Priming made the kernel remember the root's attributes; let it forget them, the scratch may still be filled.
        if let Err(error) = notifier.inval_inode(INodeNo(ROOT), -1, 0) {
            degraded.push(format!("the attributes of the root could not be invalidated ({error})"));
        }
        mount.facts = MountFacts {
            mountpoint: mount.mountpoint.clone(),
            threads,
            read_ahead_kb: knobs.read_ahead_kb,
            max_dirty_bytes: knobs.max_bytes,
            degraded,
            ..mount.facts.clone()
        };
        mount.connection.notices.start(notifier).map_err(FuseError::Session)?;
        Ok((mount, knobs.allowance))
    }

    /// Completes INIT and starts the workers; returns also what could not be had.
    fn start<F: Filesystem>(
        &mut self,
        filesystem: F,
        device: OwnedFd,
        threads: usize,
    ) -> io::Result<(Notifier, Vec<String>)> {
        abort_on_worker_panic();
        let mut config = Config::default();
        config.n_threads = Some(threads);
        // Who may come in is decided by the kernel (`allow_other`), not a second time here.
        let session = Session::from_fd(filesystem, device, SessionACL::All, config)?;
        let notifier = session.notifier();
        let (end, minor, notices) = (self.end.clone(), self.device.1, self.connection.notices.clone());
        let (report, flusher) = mpsc::channel();
        thread::Builder::new().name("fuse-session".to_owned()).spawn(move || {
            // The receiver waits for this.
            let _ = report.send(sys::set_io_flusher());
            SERVED.lock().push(minor);
            let result = session.run();
            SERVED.lock().retain(|served| *served != minor);
            notices.end();
            end.set(result);
        })?;
        let mut degraded = Vec::new();
        if let Some(negotiated) = self.connection.negotiated.get() {
            self.facts.protocol = negotiated.protocol.clone();
            self.facts.capabilities = negotiated.names();
            degraded.clone_from(&negotiated.degraded);
        }
        if let Ok(Err(error)) = flusher.recv() {
            degraded.push(format!("PR_SET_IO_FLUSHER not set ({error}): give CAP_SYS_RESOURCE where memory is short"));
        }
        Ok((notifier, degraded))
    }

    /// What the kernel granted.
    pub fn facts(&self) -> &MountFacts {
        &self.facts
    }

    /// Requests the kernel has sent so far, by opcode as fuse.h names it.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.connection.counters.snapshot()
    }

    /// Blocks until the session has ended: unmounted by somebody, detached, or aborted. A detached mount ends when the
    /// last process that has a file open on it lets go.
    pub fn wait(&self) {
        self.end.wait();
    }

    /// Detaches the mount from the tree (`MNT_DETACH`), only if what is mounted there is this file system. A mount
    /// that is gone already is no error; one hidden under another is (`EBUSY`).
    pub fn detach(&self) -> io::Result<()> {
        if self.end.reached() {
            // The numbers of an ended mount may be given to another one: take away what is dead, nothing else.
            return detach_stale(&self.mountpoint).map(drop);
        }
        match self.place()? {
            TreePlace::Top => sys::detach(&self.mountpoint).and_then(|()| detach_stale(&self.mountpoint).map(drop)),
            TreePlace::Gone => Ok(()),
            TreePlace::Covered => Err(Errno::EBUSY.into()),
        }
    }

    /// Leaves the mount in the tree when this value is dropped. Its server ends, so it is dead then: programs that go on
    /// get `ENOTCONN`, and do not reach the directory below.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Whether the session has ended but nobody has unmounted: the connection was aborted.
    pub fn is_cut_off(&self) -> bool {
        self.end.reached() && !matches!(self.place(), Ok(TreePlace::Gone))
    }

    /// Whether the mount is gone from the tree of this process, but its session goes on: for a file that is open, or a copy
    /// of the mount in another namespace.
    pub fn is_unmounted(&self) -> bool {
        !self.end.reached() && matches!(self.place(), Ok(TreePlace::Gone))
    }

    /// Ends the session even if requests hang: aborts the connection, then detaches. Pending requests fail, and
    /// data still in the kernel's cache is lost.
    pub fn abort(&self) {
        if self.end.reached() {
            if let Err(error) = self.detach() {
                tracing::warn!(%error, "an ended mount could not be detached");
            }
            return;
        }
        let aborted = sys::abort_fuse_connection(self.device.1);
        // Without fusectl, MNT_FORCE aborts; it needs the mount to be in the tree still.
        let detached = match self.place() {
            Ok(TreePlace::Top) => sys::force_detach(&self.mountpoint),
            Ok(TreePlace::Gone | TreePlace::Covered) => Ok(()),
            Err(error) => Err(error),
        };
        if let (Err(fusectl), Err(umount)) = (&aborted, &detached) {
            tracing::error!(%fusectl, %umount, "the FUSE connection could not be aborted; it ends with this process");
        }
    }

    fn place(&self) -> io::Result<TreePlace> {
        let table = mount_table()?;
        let this = |entry: &MountEntry| entry.id == self.id && entry.device == self.device && is_ours(entry);
        Ok(match top_mount(&table, &self.mountpoint) {
            Some(top) if this(top) => TreePlace::Top,
            _ if table.iter().any(|entry| this(entry) && entry.mountpoint == self.mountpoint) => TreePlace::Covered,
            _ => TreePlace::Gone,
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::error!(%error, "the mount could not be detached");
        }
    }
}

/// Where this mount is in the tree.
enum TreePlace {
    Top,
    Covered,
    Gone,
}

/// Whether the session has ended.
#[derive(Default)]
struct SessionEnd {
    reached: Mutex<bool>,
    changed: Condvar,
}

impl SessionEnd {
    fn set(&self, result: io::Result<()>) {
        match result {
            Ok(()) => {}
            // What fuser makes of an abort when ABORT_ERROR is negotiated.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
            Err(error) => tracing::error!(%error, "the FUSE session ended with an error"),
        }
        *self.reached.lock() = true;
        self.changed.notify_all();
    }

    fn reached(&self) -> bool {
        *self.reached.lock()
    }

    fn wait(&self) {
        let mut reached = self.reached.lock();
        while !*reached {
            self.changed.wait(&mut reached);
        }
    }
}

/// The mount just made. Asks the mount table, not the mount: before INIT a stat would wait for ever.
fn entry_at(path: &Path) -> io::Result<MountEntry> {
    let table = mount_table()?;
    match top_mount(&table, path) {
        Some(entry) if is_ours(entry) => Ok(entry.clone()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "the new mount is not in /proc/thread-self/mountinfo")),
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant, UNIX_EPOCH};

    use fuser::{FileAttr, FileHandle, FileType, Generation, KernelConfig, ReplyAttr, ReplyEntry, Request};

    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypt::Keyring;
    use crate::fs::ScratchOptions;
    use crate::spec::{EngineChoice, MemoryLock};
    use crate::store::Store;

    const PLACE: &str = "RUNSEAL_TEST_PANIC_MOUNTPOINT";

    /// A file system with a root, on which one lookup panics and another one never ends.
    struct Panicking;

    impl Filesystem for Panicking {
        /// Lookups must not wait for each other.
        fn init(&mut self, _: &Request, kernel: &mut KernelConfig) -> io::Result<()> {
            kernel.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS).map_err(|_| io::ErrorKind::Unsupported.into())
        }

        fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
            let attr = FileAttr {
                ino,
                size: 0,
                blocks: 0,
                atime: UNIX_EPOCH,
                mtime: UNIX_EPOCH,
                ctime: UNIX_EPOCH,
                crtime: UNIX_EPOCH,
                kind: FileType::Directory,
                perm: 0o755,
                nlink: 2,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 4096,
                flags: 0,
            };
            reply.attr(&Duration::ZERO, &attr);
        }

        fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
            assert_ne!(name, "boom", "as the test wants it");
            if name == "hang" {
                loop {
                    thread::park();
                }
            }
            reply.entry(&Duration::ZERO, &super::super::convert::absent(), Generation(0));
        }
    }

    // promise: T-13
    #[test]
    fn a_panicking_worker_ends_its_process_and_frees_its_callers() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = fs::canonicalize(dir.path()).expect("it exists").join("mnt");
        fs::create_dir(&path).expect("a mountpoint");
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "fuse::session::tests::serves_until_a_worker_panics", "--ignored", "--nocapture"])
            .env(PLACE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test again");
        let start = Instant::now();
        while entry_at(&path).is_err() {
            if child.try_wait().expect("a child").is_some() {
                return skip("the helper could not mount");
            }
            assert!(start.elapsed() < Duration::from_secs(20), "never mounted");
            thread::sleep(Duration::from_millis(10));
        }
        let minor = entry_at(&path).expect("mounted").device.1;
        let waiting = format!("/sys/fs/fuse/connections/{minor}/waiting");
        while fs::read_to_string(&waiting).is_ok_and(|count| count.trim() == "0") {
            assert!(start.elapsed() < Duration::from_secs(20), "the helper never hangs");
            thread::sleep(Duration::from_millis(10));
        }
        let (answer, wait) = mpsc::channel();
        let boom = path.join("boom");
        thread::spawn(move || answer.send(fs::metadata(boom).map(drop)));
        let result = wait.recv_timeout(Duration::from_secs(20));
        if result.is_err() {
            // A process that is inside its own mount cannot even be killed before this.
            sys::abort_fuse_connection(minor).expect("fusectl");
            // Fails only if it is dead already.
            let _ = child.kill();
        }
        let status = child.wait().expect("a child");
        assert!(detach_stale(&path).expect("a look"), "the dead mount is found and detached");
        let code = result.expect("the caller is freed").expect_err("nobody answers").raw_os_error();
        assert!(matches!(code, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{code:?}");
        assert_eq!(status.signal(), Some(libc::SIGABRT));
        let said = io::read_to_string(child.stdout.take().expect("piped")).expect("text");
        assert!(said.ends_with("wiped"), "secrets were left: {said}");
    }

    #[test]
    #[ignore = "a helper: run by the test above in a process of its own"]
    fn serves_until_a_worker_panics() {
        let Some(path) = env::var_os(PLACE) else { return };
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).expect("a lower limit");
        crate::sys::memory::tests::tell_at_abort();
        let options = MountOptions { threads: 2, ..MountOptions::default() };
        let served = Mount::serve(Panicking, Arc::new(Connection::new()), Path::new(&path), &options, 1 << 30);
        let Ok((mount, _)) = served else { return };
        // This process is inside its own mount when it dies.
        let inside = Path::new(&path).join("hang");
        thread::spawn(move || fs::metadata(inside).map(drop));
        mount.wait();
    }

    /// As on kernels that lack one capability, or all.
    #[test]
    fn the_same_is_read_and_written_without_each_capability() {
        let killpriv = InitFlags::FUSE_HANDLE_KILLPRIV_V2;
        let (open, opendir) = (InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        for lacking in [killpriv, open, opendir, InitFlags::FUSE_DO_READDIRPLUS, InitFlags::all()] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = fs::canonicalize(dir.path()).expect("it exists").join("mnt");
            fs::create_dir(&path).expect("a mountpoint");
            let may = InitFlags::all() - lacking;
            let mount = match Mount::serve_scratch(scratch(), &path, &MountOptions::default(), may) {
                Ok(mount) => mount,
                Err(FuseError::Device { .. } | FuseError::Mount { .. }) => return skip("cannot mount here"),
                Err(error) => panic!("{error}"),
            };
            assert!(!mount.facts().degraded.is_empty(), "{lacking:?} is missing and nobody says so");
            work_in(&path);
            mount.detach().expect("detach");
            mount.wait();
        }
    }

    fn work_in(root: &Path) {
        let path = root.join("file");
        fs::write(&path, vec![7; 3_000_000]).expect("a write");
        let before = fs::metadata(&path).expect("stat");
        thread::sleep(Duration::from_millis(20));
        let file = File::options().read(true).append(true).open(&path).expect("it exists");
        io::Write::write_all(&mut &file, b"tail").expect("an append");
        let after = fs::metadata(&path).expect("stat");
        assert_eq!(after.size(), 3_000_004);
        assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()), "mtime moves");
        File::options().write(true).open(&path).expect("it exists").write_all_at(b"mid", 1_000_001).expect("a write");
        let read = fs::read(&path).expect("a read");
        assert_eq!((&read[1_000_000..1_000_005], &read[3_000_000..]), (&b"\x07mid\x07"[..], &b"tail"[..]));
        drop(File::options().write(true).truncate(true).open(&path).expect("it exists"));
        assert_eq!(fs::read(&path).expect("a read"), b"");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::create_dir(root.join("dir")).expect("a directory");
        fs::rename(&path, root.join("dir/moved")).expect("rename");
        let names: Vec<_> =
            fs::read_dir(root.join("dir")).expect("a listing").map(|e| e.expect("one").file_name()).collect();
        assert_eq!(names, ["moved"]);
        fs::remove_dir_all(root.join("dir")).expect("rm -r");
        assert_eq!(fs::read_dir(root).expect("a listing").count(), 0);
    }

    fn scratch() -> Arc<Scratch> {
        let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).expect("keys");
        let store = Store::new(Box::new(MemoryBacking::new(1)), keyring, 1 << 30);
        Arc::new(Scratch::new(store, ScratchOptions { memory: 1 << 20, uid: 0, gid: 0, mode: 0o755 }))
    }

    #[test]
    fn an_abort_is_a_clean_end() {
        let end = SessionEnd::default();
        assert!(!end.reached());
        end.set(Err(io::Error::from_raw_os_error(libc::ECONNABORTED)));
        assert!(end.reached());
        end.wait();
    }

    fn skip(reason: &str) {
        use std::io::Write;
        let _ = writeln!(io::stderr(), "SKIP: fuse::session: {reason}");
    }
}
