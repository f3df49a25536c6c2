//! The mount itself: what may be mounted where, what is reported, and how it ends.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount as mount2, umount2};
use parking_lot::{Condvar, Mutex};
use runseal::backing::{Backing, MemoryBacking};
use runseal::fuse::{FuseError, Mount, MountOptions, detach_stale};

use crate::scratch_mount::{
    self, PATIENCE, Setup, directory, eventually, mount, mount_options, mount_with, mounts_at, pattern, scratch, skip,
    within,
};

#[test]
fn the_facts_are_those_of_this_mount() {
    let Some(scratch) = mount() else { return };
    let facts = scratch.mount().facts();
    assert_eq!(facts.mountpoint, scratch.root());
    assert!(facts.protocol.starts_with("7."), "{facts:?}");
    assert!((4..=8).contains(&facts.threads), "{facts:?}");
    let writeback = facts.capabilities.iter().any(|name| name == "WRITEBACK_CACHE");
    let killpriv = facts.capabilities.iter().any(|name| name == "HANDLE_KILLPRIV_V2");
    assert_eq!(writeback, killpriv, "one without the other is slow");
    assert!(!facts.capabilities.iter().any(|name| name == "ATOMIC_O_TRUNC"));
    let [entry] = &mounts_at(&scratch.root())[..] else { panic!("one mount") };
    let bdi = format!("/sys/class/bdi/{}:{}", entry.device.0, entry.device.1);
    let knob = |name: &str| -> Option<u64> { fs::read_to_string(format!("{bdi}/{name}")).ok()?.trim().parse().ok() };
    assert_eq!(facts.read_ahead_kb, knob("read_ahead_kb"));
    // Kept as a share of the memory that can be dirtied, which moves.
    let (told, now) = (facts.max_dirty_bytes.unwrap_or(0), knob("max_bytes").unwrap_or(0));
    assert!(told.abs_diff(now) <= told / 4, "{told} {now}");
    assert!(knob("strict_limit").is_none_or(|value| value == 1), "strict_limit must stay 1");
    assert_eq!(entry.source, "runseal");
    let json = serde_json::to_value(facts).expect("facts are data");
    assert!(json["degraded"].is_array());
}

#[test]
fn nothing_is_left_of_priming() {
    let Some(scratch) = mount() else { return };
    assert_eq!(fs::read_dir(scratch.root()).expect("a listing").count(), 0);
    assert_eq!(scratch.store.usage().used, 0);
    eventually("the kernel forgets the file that primed it", || scratch.scratch.inodes() == 1);
}

#[test]
fn a_taken_mountpoint_and_unknown_options_are_refused() {
    let Some(mounted) = mount() else { return };
    let (other, _) = scratch(&mounted.beside("other"), None, 1 << 20, 10);
    let refused = |path: &Path, option: &str| {
        let options = MountOptions { options: vec![option.to_owned()], ..MountOptions::default() };
        Mount::new(other.clone(), path, &options).err().expect("refused")
    };
    let taken = refused(&mounted.root(), "ro");
    assert!(matches!(&taken, FuseError::Mountpoint { problem, .. } if problem.contains("is mounted there")), "{taken}");
    assert!(matches!(refused(&mounted.beside("free"), "bogus"), FuseError::Option(name) if name == "bogus"));
    assert!(matches!(refused(&mounted.beside("free").join("none"), "ro"), FuseError::Mountpoint { .. }));
    assert_eq!(mounts_at(&mounted.beside("free")), []);
}

#[test]
fn a_read_only_mount_shows_what_was_put_in_before() {
    let base = directory();
    let (scratch, _) = scratch(base.path(), None, 1 << 30, 1 << 20);
    let caller = runseal::fs::Creator { uid: 0, gid: 0, umask: 0 };
    let file = scratch.mknod(1, b"file", runseal::fs::Kind::File, 0o644, 0, &caller).expect("a file");
    scratch.write(file.ino, 0, b"staged", Default::default()).expect("a write");
    let path = base.path().join("mnt");
    fs::create_dir(&path).expect("a mountpoint");
    let options = MountOptions { options: vec!["ro".to_owned()], ..MountOptions::default() };
    let Some(mount) = scratch_mount::start(scratch, &path, &options) else { return };
    assert_eq!(fs::read_to_string(path.join("file")).expect("a read"), "staged");
    assert_eq!(File::create(path.join("new")).expect_err("read-only").raw_os_error(), Some(libc::EROFS));
    mount.detach().expect("detach");
    scratch_mount::ends(mount, &path).expect("the session ends");
}

#[test]
fn detaching_twice_or_after_umount_is_no_error() {
    let Some(scratch) = mount() else { return };
    umount2(&scratch.root(), MntFlags::empty()).expect("umount");
    let mount = scratch.mount();
    mount.wait();
    mount.detach().expect("gone already");
    mount.detach().expect("gone already");
    mount.abort();
}

#[test]
fn a_foreign_mount_on_the_same_directory_is_never_touched() {
    let Some(scratch) = mount() else { return };
    let root = scratch.root();
    // Above this mount: detaching would take the foreign one away.
    mount2(Some("none"), &root, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    fs::write(root.join("foreign"), "x").expect("a file");
    assert_eq!(scratch.mount().detach().expect_err("covered").raw_os_error(), Some(libc::EBUSY));
    assert!(!detach_stale(&root).expect("a look"));
    assert!(root.join("foreign").exists());
    umount2(&root, MntFlags::empty()).expect("umount");

    // In its place.
    umount2(&root, MntFlags::empty()).expect("umount");
    scratch.mount().wait();
    mount2(Some("runseal"), &root, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
    fs::write(root.join("foreign"), "x").expect("a file");
    scratch.mount().detach().expect("nothing to do");
    scratch.mount().abort();
    assert!(!detach_stale(&root).expect("a look"));
    assert!(root.join("foreign").exists());
    umount2(&root, MntFlags::empty()).expect("umount");
}

#[test]
fn a_detached_mount_serves_who_is_still_inside() {
    let Some(scratch) = mount() else { return };
    let mut file = File::options().read(true).write(true).create_new(true).open(scratch.path("f")).expect("a file");
    scratch.mount().detach().expect("detach");
    assert_eq!(mounts_at(&scratch.root()), []);
    file.write_all(b"still here").and_then(|()| file.sync_all()).expect("served");
    drop(file);
    scratch.mount().wait();
}

#[test]
fn an_abort_frees_callers_of_a_server_that_hangs() {
    let gate = Arc::new(Gate::default());
    let backing = Box::new(Hanging { inner: MemoryBacking::new(1), gate: gate.clone() });
    let Some(scratch) = mount_with(Setup { backing: Some(backing), ..Setup::default() }) else { return };
    let path = scratch.path("file");
    fs::write(&path, pattern(1, 1 << 20)).expect("a write");
    gate.close();
    let reader = thread::spawn(move || {
        let mut direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        let mut buffer = vec![0; 8192];
        let start = buffer.as_ptr().align_offset(4096);
        direct.read_exact(&mut buffer[start..start + 4096])
    });
    eventually("the server reads the request and hangs", || gate.waiting() > 0);
    scratch.mount().abort();
    let result = within(PATIENCE, move || reader.join()).expect("the caller is freed").expect("no panic");
    let code = result.expect_err("aborted").raw_os_error();
    assert!(matches!(code, Some(libc::ECONNABORTED | libc::ENOTCONN)), "{code:?}");
    assert_eq!(mounts_at(&scratch.root()), []);
    gate.open();
    scratch.mount().wait();
}

#[test]
fn an_abort_reaches_a_mount_that_is_detached_but_in_use() {
    let Some(scratch) = mount() else { return };
    let mut file = File::create_new(scratch.path("f")).expect("a file");
    scratch.mount().detach().expect("detach");
    scratch.mount().abort();
    scratch.mount().wait();
    let result = file.write_all(&pattern(1, 4096)).and_then(|()| file.sync_all());
    let code = result.expect_err("aborted").raw_os_error();
    assert!(matches!(code, Some(libc::ECONNABORTED | libc::ENOTCONN)), "{code:?}");
}

#[test]
fn only_a_dead_mount_is_stale() {
    let base = directory();
    let path = fs::canonicalize(base.path()).expect("it exists").join("mnt");
    fs::create_dir(&path).expect("a mountpoint");
    let Some(mut server) = Server::start(&path) else { return };
    assert!(!detach_stale(&path).expect("a look"), "a living mount is not stale");
    nix::sys::signal::kill(server.pid(), nix::sys::signal::Signal::SIGSTOP).expect("stop");
    assert!(!detach_stale(&path).expect("a look"), "a hanging mount is not stale");
    server.kill();
    assert_eq!(mounts_at(&path).len(), 1, "a dead server leaves its mount");
    assert!(detach_stale(&path).expect("a look"));
    assert_eq!(mounts_at(&path), []);
    assert!(!detach_stale(&path).expect("a look"));
}

#[test]
fn a_user_namespace_of_its_own_is_enough() {
    let base = directory();
    let path = fs::canonicalize(base.path()).expect("it exists").join("mnt");
    fs::create_dir(&path).expect("a mountpoint");
    let unshare = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--"];
    let probe = Command::new(unshare[0]).args(&unshare[1..]).arg("true").output();
    if !probe.is_ok_and(|output| output.status.success()) || !scratch_mount::has("unshare") {
        return skip("no user namespaces here").unwrap_or(());
    }
    let output = Command::new(unshare[0])
        .args(&unshare[1..])
        .arg(env::current_exe().expect("this test"))
        .args(["--exact", "lifecycle::mounts_writes_and_ends", "--ignored", "--nocapture"])
        .env(PLACE, &path)
        .output()
        .expect("unshare");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(mounts_at(&path), [], "a mount in a private namespace is not seen here");
}

#[test]
fn threads_can_be_chosen() {
    let options = MountOptions { threads: 2, allow_other: true, ..MountOptions::default() };
    let Some(scratch) = mount_with(Setup { options, ..Setup::default() }) else { return };
    assert_eq!(scratch.mount().facts().threads, 2);
    fs::write(scratch.path("f"), "x").expect("two threads serve");
    let Some(other) = mount_options(&["noatime", "nodiratime", "dirsync", "sync"]) else { return };
    fs::write(other.path("f"), "x").expect("a synchronous mount serves");
}

/// Where the helpers below, run in a process of their own, shall mount.
const PLACE: &str = "RUNSEAL_TEST_MOUNTPOINT";

#[test]
#[ignore = "a helper: run by other tests in a process of its own"]
fn serves_until_killed() {
    let Some(path) = env::var_os(PLACE).map(PathBuf::from) else { return };
    let (scratch, _) = scratch(path.parent().expect("a parent"), None, 1 << 30, 1000);
    let Some(mount) = scratch_mount::start(scratch, &path, &MountOptions::default()) else { return };
    mount.wait();
}

#[test]
#[ignore = "a helper: run by other tests in a process of its own"]
fn mounts_writes_and_ends() {
    let Some(path) = env::var_os(PLACE).map(PathBuf::from) else { return };
    let (scratch, _) = scratch(path.parent().expect("a parent"), None, 1 << 30, 1000);
    let mount = match Mount::new(scratch, &path, &MountOptions::default()) {
        Ok(mount) => mount,
        // The device node belongs to the outer namespace, which may keep it to its root.
        Err(FuseError::Device { source, .. }) => return skip(&format!("/dev/fuse: {source}")).unwrap_or(()),
        Err(error) => panic!("{error}"),
    };
    let data = pattern(1, 1 << 20);
    fs::write(path.join("file"), &data).expect("a write");
    assert!(fs::read(path.join("file")).expect("a read") == data);
    mount.detach().expect("detach");
    scratch_mount::ends(mount, &path).expect("the session ends");
}

/// A process that mounts and serves; killed when dropped, and its mount detached.
struct Server {
    child: Child,
    path: PathBuf,
}

impl Server {
    fn start(path: &Path) -> Option<Self> {
        let child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "lifecycle::serves_until_killed", "--ignored", "--nocapture"])
            .env(PLACE, path)
            .stdout(Stdio::null())
            .spawn()
            .expect("this test again");
        let mut server = Self { child, path: path.to_owned() };
        let mut ended = false;
        eventually("the helper mounts", || {
            ended = server.child.try_wait().expect("a child").is_some();
            ended || !mounts_at(path).is_empty()
        });
        if ended {
            return skip("the helper could not mount");
        }
        // Answered as soon as INIT is through.
        fs::metadata(path).expect("stat");
        Some(server)
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    fn kill(&mut self) {
        // Fails only if it is dead already.
        let _ = self.child.kill();
        self.child.wait().expect("a child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        match umount2(&self.path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => panic!("left mounted: {error}"),
        }
    }
}

/// A backing whose reads wait while the gate is closed.
struct Hanging {
    inner: MemoryBacking,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn close(&self) {
        self.state.lock().0 = true;
    }

    fn open(&self) {
        self.state.lock().0 = false;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().1
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        while state.0 {
            self.changed.wait(&mut state);
        }
        state.1 -= 1;
    }
}

impl Backing for Hanging {
    fn arenas(&self) -> u32 {
        self.inner.arenas()
    }

    fn read_at(&self, arena: u32, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.gate.pass();
        self.inner.read_at(arena, buf, offset)
    }

    fn write_at(&self, arena: u32, buf: &[u8], offset: u64) -> std::io::Result<()> {
        self.inner.write_at(arena, buf, offset)
    }

    fn discard(&self, arena: u32, offset: u64, len: u64) -> std::io::Result<()> {
        self.inner.discard(arena, offset, len)
    }

    fn set_aside(&self, _: u32, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn available(&self) -> std::io::Result<u64> {
        self.inner.available()
    }
}
