//! Hosts that offer less: no root, no /dev/fuse, no user namespaces, no memory lock.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::program::{Live, Said, mounted, processes_with, require_host, runseal, text};

/// `nobody`.
const NOBODY: &str = "65534";

/// A directory nobody may use, with a copy of the binary (the build directory may be closed to others).
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
        let home = Self { dir };
        // By another process: a descriptor for writing that a fork of another test inherits makes the copy ETXTBSY.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_runseal")).arg(home.binary()).status();
        assert!(copied.is_ok_and(|status| status.success()));
        fs::create_dir(home.path("runtime")).expect("created");
        for path in [home.dir.path().to_owned(), home.path("runtime")] {
            nix::unistd::chown(&path, Some(65534.into()), Some(65534.into())).expect("chown");
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("chmod");
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn binary(&self) -> PathBuf {
        self.path("runseal")
    }

    /// A way to call the binary as nobody, in a mount namespace where `setup` was run first.
    fn nobody(&self, setup: &str) -> Command {
        let script = format!(
            "{setup}\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all \
             env -i PATH=\"$PATH\" XDG_RUNTIME_DIR={} {} \"$@\"",
            text(&self.path("runtime")),
            text(&self.binary()),
        );
        let mut launcher = Command::new("unshare");
        launcher.args(["-m", "sh", "-euc", &script, "sh"]).stdin(Stdio::null());
        launcher
    }

    /// A device node for this test alone: the modes of the machine's stay as they are.
    fn device(&self, mode: &str) -> String {
        let node = self.path("fuse");
        format!("mknod -m {mode} {0} c 10 229; mount --bind {0} /dev/fuse", text(&node))
    }
}

fn user_namespaces() -> bool {
    let possible = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "unshare", "-Urm", "true"])
        .stderr(Stdio::null())
        .status();
    possible.is_ok_and(|status| status.success())
}

macro_rules! require_user_namespaces {
    () => {
        if !user_namespaces() {
            println!("SKIP: {}: user namespaces are forbidden here", module_path!());
            return;
        }
    };
}

#[test]
fn a_user_without_rights_can_run() {
    require_host!();
    require_user_namespaces!();
    let home = Home::new();
    let (output, backing) = (home.path("out"), home.path("."));
    let script = "id -u; grep -E 'CapEff|CapPrm|NoNewPrivs' /proc/self/status; cat \"$RUNSEAL_INPUT/hostname\" >/dev/null
        echo mine >\"$RUNSEAL_OUTPUT/x\"; ls -ln \"$RUNSEAL_OUTPUT/x\"; kill -9 1; umount \"$RUNSEAL_SCRATCH\" || echo stays";
    let flags = ["run", "--input", "/etc/hostname", "--output", text(&output), "--backing", text(&backing)];
    let result = home.nobody(&home.device("666")).args(flags).args(["--", "sh", "-euc", script]).output();
    let said = Said::of(result.expect("unshare runs")).expect(0, &[]);
    let lines: Vec<_> = said.out.lines().collect();
    assert_eq!(lines[0], NOBODY);
    assert!(said.out.contains("CapPrm:\t0000000000000000") && said.out.contains("CapEff:\t0000000000000000"));
    assert!(said.out.contains("NoNewPrivs:\t1") && said.out.contains(" 65534 65534 ") && said.out.contains("stays"));
    assert_eq!(fs::read_to_string(output.join("x")).expect("published"), "mine\n");
    assert_eq!(fs::read_dir(home.path("runtime/runseal")).expect("readable").count(), 1, "only @runs is left");
}

#[test]
fn the_run_of_a_user_dies_as_a_whole() {
    require_host!();
    require_user_namespaces!();
    let home = Home::new();
    let word = format!("4100.{}", std::process::id());
    let script = format!("(setsid sleep {word} &); ready; sleep {word}");
    let live = Live::start_with(
        home.nobody(&home.device("666")),
        home.dir.path(),
        &["--tmp=host", "--backing", text(home.dir.path())],
        &script,
    );
    // `unshare` and `sh` have exec'd: the child is the supervisor, its child the sealed process.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", live.supervisor())).expect("children");
    let sealed: i32 = children.split_whitespace().next().expect("a sealed process").parse().expect("a number");
    for entry in ["mem", "root", "maps"] {
        let spy = format!("/proc/{sealed}/{entry}");
        let read = Command::new("setpriv")
            .args([
                "--reuid",
                NOBODY,
                "--regid",
                NOBODY,
                "--clear-groups",
                "sh",
                "-c",
                "ls \"$0/\" 2>&1 || head -c1 \"$0\"",
            ])
            .arg(&spy)
            .output()
            .expect("setpriv runs");
        assert!(!read.status.success(), "the same user opened {spy}");
    }
    crate::program::send(sealed, nix::sys::signal::Signal::SIGKILL);
    live.end().expect(71, &["sealed process died"]);
    assert_eq!(processes_with(&word), [0; 0]);
    assert!(!mounted(home.dir.path()));
}

#[test]
fn a_device_without_permission_is_named_with_the_remedy() {
    require_host!();
    require_user_namespaces!();
    let home = Home::new();
    let result =
        home.nobody(&home.device("600")).args(["run", "--backing", text(home.dir.path()), "--", "true"]).output();
    Said::of(result.expect("unshare runs")).expect(77, &["/dev/fuse"]);
    let doctor =
        home.nobody(&format!("rm -f {}; {}", text(&home.path("fuse")), home.device("600"))).arg("doctor").output();
    let said = Said::of(doctor.expect("unshare runs"));
    assert_eq!(said.code, 69, "{said:?}");
    assert!(said.out.contains("FAIL  /dev/fuse"), "{said:?}");
}

#[test]
fn root_without_the_right_to_mount_is_root_of_a_user_namespace() {
    require_host!();
    require_user_namespaces!();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-all", env!("CARGO_BIN_EXE_runseal"), "run", "--"]);
    command.args([
        "sh",
        "-euc",
        "id -u; touch file; chmod 000 file; cat file; wc -l </proc/self/uid_map; cat /proc/self/uid_map",
    ]);
    let said = crate::program::finish(command).expect(0, &[]);
    let lines: Vec<_> = said.out.lines().map(str::trim).collect();
    assert_eq!(lines[..2], ["0", "1"], "{said:?}");
    assert!(lines[2].ends_with(" 1"), "not in a user namespace: {said:?}");
}

#[test]
fn a_mount_for_everybody_needs_root() {
    require_host!();
    let home = Home::new();
    let mountpoint = home.path("mountpoint");
    fs::create_dir(&mountpoint).expect("created");
    nix::unistd::chown(&mountpoint, Some(65534.into()), Some(65534.into())).expect("chown");
    let result = home.nobody(&home.device("666")).args(["mount", text(&mountpoint)]).output();
    Said::of(result.expect("unshare runs")).expect(77, &[text(&mountpoint)]);
}

#[test]
fn others_cannot_control_a_run() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    let socket = crate::program::state_dir(&live.id).join("control.sock");
    let mode = fs::metadata(&socket).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = Said::of(Home::new().nobody("").args(["end", "--discard", &live.id]).output().expect("unshare runs"));
    said.expect(69, &[&live.id]);
    assert_eq!(crate::program::phase(&live.id).as_deref(), Some("command"));
}

#[test]
fn a_bad_request_is_refused_and_harms_nothing() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    let socket = crate::program::state_dir(&live.id).join("control.sock");
    for request in [&b"nonsense\n"[..], b"\n", b"{\"request\":\"launch\"}\n", &[b'x'; 10_000], b"\xff\xfe\n"] {
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).expect("connects");
        let _ = std::io::Write::write_all(&mut stream, request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut answer);
        assert!(answer.is_empty() || answer.contains("\"ok\":false"), "{answer}");
    }
    assert_eq!(crate::program::phase(&live.id).as_deref(), Some("command"));
}

#[test]
fn a_missing_device_is_named_with_the_remedy() {
    require_host!();
    let script = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; exec \"$0\" run -- true";
    let result = Command::new("unshare").args(["-m", "sh", "-euc", script, env!("CARGO_BIN_EXE_runseal")]).output();
    Said::of(result.expect("unshare runs")).expect(69, &["/dev/fuse", "modprobe fuse"]);
}

#[test]
fn forbidden_user_namespaces_are_named_with_the_remedy() {
    require_host!();
    require_user_namespaces!();
    let home = Home::new();
    // In a user namespace of its own the limit can be set without touching that of the machine.
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces
         exec setpriv --inh-caps=-all --bounding-set=-sys_admin env XDG_RUNTIME_DIR={} \"$0\" run -- true",
        text(&home.path("runtime"))
    );
    let launcher = Command::new("unshare").args(["-Ur", "sh", "-euc", &script, env!("CARGO_BIN_EXE_runseal")]).output();
    let said = Said::of(launcher.expect("unshare runs"));
    if said.err.contains("/run/runseal") {
        println!("SKIP: {}: root of a namespace cannot write /run here", module_path!());
        return;
    }
    said.expect(77, &["user namespace", "user.max_user_namespaces", "runseal doctor"]);
}

// promise: T-12
#[test]
fn memory_that_cannot_be_locked_is_refused_only_on_demand() {
    require_host!();
    require_user_namespaces!();
    let home = Home::new();
    let mut prefix = home.nobody(&format!("ulimit -l 0; {}", home.device("666")));
    let result =
        prefix.args(["run", "--memory-lock=require", "--backing", text(home.dir.path()), "--", "true"]).output();
    Said::of(result.expect("unshare runs")).expect(78, &["memory cannot be locked", "RLIMIT_MEMLOCK"]);
    fs::remove_file(home.path("fuse")).expect("removed");
    let mut prefix = home.nobody(&format!("ulimit -l 0; {}", home.device("666")));
    let result = prefix.args(["run", "--backing", text(home.dir.path()), "--", "true"]).output();
    Said::of(result.expect("unshare runs")).expect(0, &[]);
}

#[test]
fn doctor_finds_this_machine_fit() {
    require_host!();
    let output = runseal().args(["doctor", "--json"]).output().expect("the binary starts");
    let said = Said::of(output).expect(0, &[]);
    let facts: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let names: Vec<_> = facts.as_array().expect("a list").iter().filter_map(|fact| fact["name"].as_str()).collect();
    for name in ["kernel", "/dev/fuse", "private namespaces", "memory lock", "key memory", "swap", "cipher", "backing"]
    {
        assert!(names.contains(&name), "{names:?}");
    }
    let bad = Command::new(env!("CARGO_BIN_EXE_runseal")).args(["doctor", "--backing", "/no/such/dir"]).output();
    let said = Said::of(bad.expect("the binary starts"));
    assert_eq!(said.code, 69);
    assert!(said.out.contains("/no/such/dir"), "{said:?}");
}
