//! Traces in the machine: who sees the mount, who can read the process, what lies in its state.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::disk::Disk;
use crate::family::{Family, code};
use crate::traces::mounts_below;
use crate::{canary, require_host};

/// `nobody`, who owns no process of ours.
const NOBODY: u32 = 65534;

// promise: T-10
#[test]
fn nobody_outside_the_run_sees_its_mount() {
    require_host!();
    let disk = Disk::new();
    let word = canary("inside");
    let script =
        format!("echo {word} >{word}; echo \"$RUNSEAL_SCRATCH\" >'{}/where'; wait_at_gate", path(disk.outside()));
    let family = Family::start(disk.outside(), &["--backing", path(&disk.mount)], &script);

    let scratch = fs::read_to_string(disk.outside().join("where")).expect("the script ran");
    let scratch = Path::new(scratch.trim());
    assert_eq!(mounts_below(&family.state()), [""; 0], "this process sees a mount of the run");
    assert!(!scratch.join("work").join(&word).exists(), "this process sees a file of the run");
    let seen = fs::read_dir(scratch).map(Iterator::count).unwrap_or(0);
    assert_eq!(seen, 0, "the mountpoint is empty from outside");
    assert_eq!(code(&family.finish()), 0);
}

// promise: T-05
#[test]
fn the_state_and_the_report_hold_no_plaintext() {
    require_host!();
    let disk = Disk::new();
    let (contents, name) = (canary("content"), canary("name"));
    let report = disk.outside().join("report.json");
    let script = format!("yes {contents} | head -c 100000 >{name}; mkdir \"$TMPDIR/{name}\"; sync -f .; wait_at_gate");
    let arguments = ["--backing", path(&disk.mount), "--report", path(&report)];
    let family = Family::start(disk.outside(), &arguments, &script);

    let state = family.state();
    assert_eq!(fs::metadata(&state).expect("the run has a state directory").permissions().mode() & 0o077, 0);
    let mut files = Vec::new();
    regular_files(&state, &mut files);
    assert!(!files.is_empty(), "state.json and lock");
    let process = format!("/proc/{}", family.sealed);
    let environment = fs::read(format!("{process}/environ")).expect("root reads the environment");
    assert!(!holds(&environment, &[&name]), "the environment of the sealed process");
    for file in files {
        let text = fs::read(&file).expect("state can be read");
        assert!(!holds(&text, &[&contents, &name]), "{} holds plaintext", file.display());
    }
    assert_eq!(code(&family.finish()), 0);
    let text = fs::read(&report).expect("the report was written");
    assert!(!holds(&text, &[&contents]), "the report holds plaintext");
}

// promise: T-11
#[test]
fn the_sealed_process_leaves_no_core() {
    require_host!();
    let disk = Disk::new();
    let family = Family::start(disk.outside(), &["--backing", path(&disk.mount)], "wait_at_gate");
    let limits = fs::read_to_string(format!("/proc/{}/limits", family.sealed)).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("has a core limit");
    let limits: Vec<u64> =
        core.split_whitespace().skip(4).take(2).map(|limit| limit.parse().expect("a number")).collect();
    // core(5): no file of a byte is written, and no program of core_pattern is started.
    assert!(limits.iter().all(|limit| *limit <= 1), "soft and hard limit: {core}");
    assert_eq!(code(&family.finish()), 0);
}

// promise: T-11
#[test]
fn a_crash_of_the_command_leaves_no_core() {
    require_host!();
    let disk = Disk::new();
    let output = disk.outside().join("results");
    let script = "cd \"$RUNSEAL_OUTPUT\"; (ulimit -c unlimited 2>/dev/null || :; sh -c 'kill -ABRT $$') || :; ls -A >&2; echo >result; wait_at_gate";
    let arguments = ["--backing", path(&disk.mount), "--output", path(&output)];
    let outcome = Family::start(disk.outside(), &arguments, script).finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    let published = fs::read_dir(&output).expect("published").map(|entry| entry.unwrap().file_name());
    let published: std::collections::BTreeSet<_> = published.collect();
    assert!(published.iter().eq(["result", "runseal-manifest.json"]), "the core was published: {published:?}");
}

// promise: T-11, T-14
#[test]
fn a_process_of_the_same_user_cannot_read_the_sealed_process() {
    require_host!();
    let disk = Disk::new();
    // A user of its own: no other test or person uses nobody's device node.
    let node = disk.outside().join("fuse");
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&disk.mount, mode.clone()).expect("chmod");
    fs::set_permissions(disk.outside(), mode).expect("chmod");
    let binary = disk.outside().join("runseal");
    // By another process: a descriptor for writing that a fork of another test inherits makes the copy ETXTBSY.
    let copied = Command::new("cp").args([env!("CARGO_BIN_EXE_runseal"), path(&binary)]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let setup = format!(
        "mknod -m 666 {0} c 10 229 && mount --bind {0} /dev/fuse && exec setpriv --reuid {NOBODY} --regid {NOBODY} \
         --clear-groups env -i PATH=\"$PATH\" HOME=/ {1} \"$@\"",
        path(&node),
        path(&binary),
    );
    if !user_namespaces() {
        return crate::skip("user namespaces are forbidden here");
    }
    let mut launcher = Command::new("unshare");
    launcher.args(["-m", "sh", "-c", &setup, "sh"]);
    let script = "wait_at_gate
        if cat /proc/1/maps >/dev/null 2>&1; then exit 3; fi
        if ls /proc/1/fd/ >/dev/null 2>&1; then exit 4; fi
        if kill -9 1 2>/dev/null; then sleep 1; fi";
    let family = Family::start_as(launcher, disk.outside(), &["--backing", path(&disk.mount)], script);

    let process = format!("/proc/{}", family.sealed);
    let status = fs::read_to_string(format!("{process}/status")).expect("status");
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("has a uid");
    assert!(uid.starts_with(&NOBODY.to_string()), "the sealed process runs as nobody: {uid}");
    let owner = fs::metadata(format!("{process}/mem")).expect("the process lives").uid();
    assert_eq!(owner, 0, "proc(5): the files of a process that is not dumpable belong to root");
    for file in ["mem", "environ", "maps", "root", "fd"] {
        let spy = format!("{process}/{file}");
        let read = Command::new("setpriv")
            .args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string(), "--clear-groups"])
            .args(["sh", "-c", "if [ -d \"$1\" ]; then ls \"$1/\"; else head -c 1 \"$1\"; fi", "sh", &spy])
            .output()
            .expect("setpriv runs");
        let said = String::from_utf8_lossy(&read.stderr).into_owned();
        assert!(said.contains("Permission denied"), "nobody reads {spy} of nobody's sealed process: {read:?}");
    }
    let outcome = family.finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
}

// promise: T-14
#[test]
fn the_command_cannot_signal_the_sealed_process_not_even_as_root() {
    require_host!();
    let disk = Disk::new();
    let output = disk.outside().join("results");
    let script = "wait_at_gate
        trap '' TERM
        for signal in KILL STOP TERM SEGV; do kill -$signal 1 || :; done
        kill -TERM -1 2>/dev/null || :
        [ \"$(sed -n 's/^NSpid:.*\\t//p' /proc/self/status)\" != 1 ]
        echo alive >\"$RUNSEAL_OUTPUT/alive\"";
    let arguments = ["--backing", path(&disk.mount), "--output", path(&output)];
    let outcome = Family::start(disk.outside(), &arguments, script).finish();
    assert_eq!(code(&outcome), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
    assert_eq!(fs::read_to_string(output.join("alive")).expect("published"), "alive\n");
}

fn user_namespaces() -> bool {
    let nobody = NOBODY.to_string();
    let probe = ["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "unshare", "-Um", "true"];
    Command::new("setpriv").args(probe).output().is_ok_and(|output| output.status.success())
}

fn regular_files(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("state can be listed") {
        let entry = entry.expect("entry");
        let kind = entry.file_type().expect("kind");
        if kind.is_dir() {
            regular_files(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

fn holds(text: &[u8], words: &[&str]) -> bool {
    words.iter().any(|word| text.windows(word.len()).any(|window| window == word.as_bytes()))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}
