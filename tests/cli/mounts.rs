//! `runseal mount`.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::program::{
    Said, fresh_id, lives, mounted, phase, require_host, runseal, say, send, state_dir, status, text, wait_until,
};

/// A mount in the background; ended on drop.
pub struct Mounted {
    pub id: String,
    dir: tempfile::TempDir,
}

impl Mounted {
    pub fn new(flags: &[&str]) -> Self {
        let mounted = Self { id: fresh_id(), dir: tempfile::tempdir().expect("tempdir") };
        let mut arguments = vec!["mount", "--run-id", &mounted.id];
        arguments.extend(flags);
        arguments.push(text(mounted.dir.path()));
        say(&arguments).expect(0, &[]);
        mounted
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn process(&self, which: &str) -> i32 {
        status(&self.id).expect("alive")["state"][which].as_i64().expect("a number") as i32
    }

    pub fn wait_gone(&self) {
        wait_until("the mount is gone", || !mounted(self.path()));
        wait_until("the state is gone", || !state_dir(&self.id).exists());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // No checks: this may run while a failed test unwinds.
        let _ = runseal().args(["end", &self.id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = Command::new("umount").args(["-lq"]).arg(self.path()).stderr(Stdio::null()).status();
    }
}

#[test]
fn a_mount_is_ready_when_the_command_returns() {
    require_host!();
    let mount = Mounted::new(&["--size", "64M"]);
    fs::write(mount.path().join("file"), "data").expect("written");
    assert_eq!(fs::read(mount.path().join("file")).expect("read"), b"data");
    assert_eq!(phase(&mount.id).as_deref(), Some("serving"));
    let free = nix::sys::statvfs::statvfs(mount.path()).expect("statvfs");
    assert_eq!(free.blocks() * free.fragment_size(), 64 << 20);
    say(&["end", &mount.id]).expect(0, &[]);
    mount.wait_gone();
    assert_eq!(fs::read_dir(mount.path()).expect("readable").count(), 0);
}

/// The kernel's idle states are the whole machine's, so what was asked for is given back after each burst.
// promise: S-97
#[test]
fn whoever_asks_is_told_the_requests_so_far() {
    require_host!();
    let mount = Mounted::new(&[]);
    let requests = |opcode: &str| {
        let run = status(&mount.id).expect("alive");
        run["report"]["requests"][opcode].as_u64().unwrap_or(0)
    };
    assert_eq!(requests("MKDIR"), 0);
    fs::create_dir(mount.path().join("a")).expect("made");
    fs::create_dir(mount.path().join("b")).expect("made");
    assert_eq!(requests("MKDIR"), 2);
}

#[test]
fn bursts_of_requests_keep_processors_awake_unless_told_not_to() {
    require_host!();
    const DEVICE: &str = "/dev/cpu_dma_latency";
    let Ok(device) = fs::File::open(DEVICE) else {
        return println!("SKIP: cli::mounts: {DEVICE} cannot be opened");
    };
    let opened = |mount: &Mounted| {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.process("sealed"))).expect("readable");
        descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|path| path == Path::new(DEVICE)))
    };
    assert!(!opened(&Mounted::new(&["--cpu-latency=leave"])));
    let mount = Mounted::new(&[]);
    assert!(opened(&mount));
    // Reading gives the latency in force, in microseconds.
    let allowed = || {
        let mut value = [0; 4];
        device.read_exact_at(&mut value, 0).expect("read");
        i32::from_ne_bytes(value)
    };
    wait_until("a burst is noticed", || {
        (0..200).any(|n| {
            fs::write(mount.path().join(format!("file-{n}")), "data").expect("written");
            allowed() == 0
        })
    });
    wait_until("processors may sleep again", || allowed() > 0);
}

/// mount(8) with the helper installed, and `fstab`, for one shell script only; `$P` is the mountpoint, `$ID` a run id.
fn with_helper(fstab: &str, script: &str) -> Option<Said> {
    let dir = tempfile::tempdir().expect("tempdir");
    let point = dir.path().join("point");
    for name in ["sbin", "etc", "point"] {
        fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    symlink(runseal().get_program(), dir.path().join("sbin/mount.fuse.runseal")).expect("a link");
    fs::write(dir.path().join("etc/fstab"), fstab.replace("$P", text(&point))).expect("written");
    let own_view = "sbin=$(readlink -f /sbin)
        mount -t overlay none -o lowerdir=$D/sbin:$sbin $sbin && mount -t overlay none -o lowerdir=$D/etc:/etc /etc || exit 99
        flags() { grep \" $P fuse.runseal \" /proc/self/mounts || echo nothing; }";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-eu", "-c", &format!("{own_view}\n{script}")])
        .env("D", dir.path())
        .env("P", &point)
        .env("ID", fresh_id())
        .output()
        .expect("unshare runs");
    let said = Said::of(output);
    if said.code == 99 {
        println!("SKIP: cli::mounts: no overlay over /sbin: {}", said.err);
        return None;
    }
    Some(said)
}

// promise: S-24, S-142
#[test]
fn fstab_gives_setuid_and_devices_by_names_that_mount_passes_on() {
    require_host!();
    let fstab = "runseal $P fuse.runseal size=64M,noauto,allow_suid,allow_dev 0 0\n";
    let script = "
        mount $P; flags; umount $P
        mount -t fuse.runseal runseal $P -o run-id=$ID-dev,size=64M,allow_dev; flags; umount $P
        mount -t fuse.runseal runseal $P -o run-id=$ID-suid,size=64M,allow_suid,nosuid; flags; umount $P";
    let Some(said) = with_helper(fstab, script) else { return };
    let said = said.expect(0, &[]);
    let lines: Vec<_> = said.out.lines().map(|line| (line.contains("nosuid"), line.contains("nodev"))).collect();
    assert_eq!(lines, [(false, false), (true, false), (true, true)], "{}", said.out);
}

// promise: S-142
#[test]
fn what_mount_does_not_pass_on_is_refused_with_what_to_write() {
    require_host!();
    for (fstab, command, remedy) in [
        ("", "mount -t fuse.runseal runseal $P -o run-id=$ID,suid", "allow_suid"),
        ("", "mount -t fuse.runseal runseal $P -o run-id=$ID,dev", "allow_dev"),
        ("runseal $P fuse.runseal size=64M,suid 0 0\n", "mount $P", "allow_suid"),
        ("runseal $P fuse.runseal size=64M,dev 0 0\n", "mount -a", "allow_dev"),
    ] {
        let Some(said) =
            with_helper(fstab, &format!("{command} && flags && umount $P || {{ code=$?; flags; exit $code; }}"))
        else {
            return;
        };
        assert_eq!(said.out, "nothing\n", "{command}");
        assert!(said.code != 0 && said.err.contains(remedy), "{command}: {said:?}");
    }
}

#[test]
fn a_mount_is_ended_by_its_mountpoint_too() {
    require_host!();
    let mount = Mounted::new(&[]);
    say(&["end", text(mount.path())]).expect(0, &[]);
    mount.wait_gone();
}

#[test]
fn umount_ends_the_run() {
    require_host!();
    let mount = Mounted::new(&[]);
    let (supervisor, sealed) = (mount.process("supervisor"), mount.process("sealed"));
    assert!(Command::new("umount").arg(mount.path()).status().expect("umount runs").success());
    mount.wait_gone();
    wait_until("both processes end", || !lives(supervisor) && !lives(sealed));
}

#[test]
fn a_signal_ends_the_mount() {
    require_host!();
    let mount = Mounted::new(&[]);
    send(mount.process("supervisor"), Signal::SIGTERM);
    mount.wait_gone();
}

#[test]
fn another_file_system_on_the_mountpoint_is_left_alone() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let tmpfs = Tmpfs::on(dir.path());
    say(&["mount", text(&tmpfs.0)]).expect(73, &[text(&tmpfs.0)]);
    assert!(mounted(&tmpfs.0));
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn on(dir: &Path) -> Self {
        let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(dir).status().expect("mount runs");
        assert!(status.success());
        Self(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_mountpoint_that_will_not_do_is_named() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let missing = dir.path().join("missing");
    say(&["mount", text(&missing)]).expect(73, &[text(&missing)]);
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    say(&["mount", text(&file)]).expect(73, &[text(&file)]);
    say(&["mount", text(dir.path())]).expect(73, &[text(dir.path()), "empty"]);
    let mount = Mounted::new(&[]);
    say(&["mount", text(mount.path())]).expect(73, &[text(mount.path())]);
    assert!(mounted(mount.path()), "the live mount stays");
    let empty = tempfile::tempdir().expect("tempdir");
    say(&["mount", "-o", "nonsense", text(empty.path())]).expect(64, &["nonsense", "mount(8)"]);
}

#[test]
fn in_the_foreground_it_stays() {
    require_host!();
    let (id, dir) = (fresh_id(), tempfile::tempdir().expect("tempdir"));
    let child = runseal()
        .args(["mount", "--foreground", "--run-id", &id, "-o", "noexec", text(dir.path())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    wait_until("it serves", || phase(&id).as_deref() == Some("serving"));
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = table.lines().find(|line| line.contains(text(dir.path()))).expect("mounted");
    assert!(line.contains("noexec") && line.contains("allow_other"), "{line}");
    send(child.id() as i32, Signal::SIGINT);
    Said::of(child.wait_with_output().expect("wait")).expect(0, &[]);
    assert!(!mounted(dir.path()));
}

#[test]
fn open_files_do_not_keep_a_mount_that_was_ended() {
    require_host!();
    let mount = Mounted::new(&[]);
    let open = fs::File::create(mount.path().join("open")).expect("created");
    let sealed = mount.process("sealed");
    say(&["end", &mount.id]).expect(0, &[]);
    wait_until("the sealed process ends", || !lives(sealed));
    let mut buffer = [0; 1];
    assert!(std::os::unix::fs::FileExt::read_at(&open, &mut buffer, 0).unwrap_or(0) == 0);
}
