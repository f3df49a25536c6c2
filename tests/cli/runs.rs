//! Whole runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use serde_json::Value;

use crate::program::{
    Live, Said, fresh_id, lives, mounted, processes_with, require_host, run, runseal, say, state_dir, text, wait_until,
};

// promise: S-50, S-51
#[test]
fn inputs_go_in_and_results_come_out() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (input, output) = (dir.path().join("data"), dir.path().join("out"));
    fs::create_dir_all(input.join("deep")).expect("created");
    fs::write(input.join("deep/a"), "alpha\n").expect("written");
    symlink("deep/a", input.join("link")).expect("linked");
    let single = format!("{}=renamed/b", input.join("deep/a").display());
    let id = fresh_id();
    let script = "cd \"$RUNSEAL_INPUT\"
        test \"$(readlink data/link)\" = deep/a
        tr a-z A-Z <data/link >\"$RUNSEAL_OUTPUT/upper\"
        mkdir \"$RUNSEAL_OUTPUT/sub\"
        cp renamed/b \"$RUNSEAL_OUTPUT/sub/copy\"";
    let flags = ["--run-id", &id, "--input", text(&input), "--input", &single, "--output", text(&output)];
    run(&flags, script).expect(0, &["staging", "publishing"]);
    assert_eq!(fs::read_to_string(output.join("upper")).expect("published"), "ALPHA\n");
    assert_eq!(fs::read_to_string(output.join("sub/copy")).expect("published"), "alpha\n");
    let manifest = fs::read_to_string(output.join("runseal-manifest.json")).expect("published");
    assert!(manifest.contains(&id) && manifest.contains("sub/copy"), "{manifest}");
    assert!(!state_dir(&id).exists());
}

#[test]
fn results_that_cannot_be_published_are_told() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let script = "mkfifo \"$RUNSEAL_OUTPUT/pipe\"; echo kept >\"$RUNSEAL_OUTPUT/file\"";
    run(&["--output", text(&output)], script).expect(0, &["left out: 1", "done, 1 file, "]);
    assert!(output.join("file").exists() && !output.join("pipe").exists());
}

#[test]
fn the_environment_is_what_the_manual_says() {
    require_host!();
    let id = fresh_id();
    let script = "echo \"$RUNSEAL_RUN_ID $RUNSEAL_SCRATCH $RUNSEAL_INPUT $RUNSEAL_OUTPUT $TMPDIR $PWD $(pwd -P)\"
        umask; grep SigBlk /proc/self/status; grep 'core file' /proc/self/limits; echo $KEPT; touch \"$TMPDIR/x\"";
    let output = runseal()
        .args(["run", "--run-id", &id, "--", "sh", "-euc", script])
        .env("KEPT", "kept")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let said = Said::of(output).expect(0, &[]);
    let lines: Vec<_> = said.out.lines().collect();
    let mount = "/run/runseal/mnt";
    let wanted = format!("{id} {mount} {mount}/input {mount}/output {mount}/tmp {mount}/work {mount}/work");
    assert_eq!(lines[0], wanted);
    assert_eq!(u32::from_str_radix(lines[1], 8), Ok(own_umask()));
    assert_eq!(lines[2].split_whitespace().last(), Some("0000000000000000"), "no signal is blocked");
    let core: Vec<_> = lines[3].split_whitespace().skip(4).take(2).collect();
    assert!(core == ["1", "1"] || core == ["0", "0"], "{core:?}");
    assert_eq!(lines[4], "kept");
}

fn own_umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:\t")).expect("has a umask");
    u32::from_str_radix(line, 8).expect("octal")
}

// promise: S-52, S-54
#[test]
fn the_status_of_the_command_is_the_status_of_the_run() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let flags = ["--output", text(&output)];
    run(&flags, "echo x >\"$RUNSEAL_OUTPUT/x\"; exit 3").expect(3, &["status 3", "nothing was published"]);
    assert!(!output.join("x").exists());
    run(&flags, "kill -TERM $$").expect(143, &["status 143"]);
    run(&flags, "kill -KILL $$").expect(137, &[]);
    assert!(!output.join("runseal-manifest.json").exists());
    run(&flags, "echo x >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert!(output.join("runseal-manifest.json").exists());
}

#[test]
fn quiet_is_quiet() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let said = run(&["--quiet", "--output", text(&output)], "echo x >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""));
}

// promise: S-57
#[test]
fn what_the_command_leaves_behind_is_dead_before_results_are_read() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let word = format!("8{}", std::process::id());
    // Twice forked, in a session of its own, still writing when the command ends.
    let script = format!(
        "echo start >\"$RUNSEAL_OUTPUT/log\"
        (setsid sh -c 'sleep 3600.{word} & while :; do echo more >>\"$RUNSEAL_OUTPUT/log\"; done' &)
        sleep 0.2"
    );
    run(&["--output", text(&output)], &script).expect(0, &[]);
    assert_eq!(processes_with(&format!("3600.{word}")), [0; 0]);
    let log = fs::read_to_string(output.join("log")).expect("published");
    assert!(log.starts_with("start\nmore\n"), "written until killed");
    assert!(log.ends_with('\n'), "nothing half-written");
}

#[test]
fn pages_written_through_a_mapping_are_published() {
    require_host!();
    require_python!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    run(&["--output", text(&output)], &mapped("1 << 20")).expect(0, &[]);
    let data = fs::read(output.join("m")).expect("published");
    assert!(data.len() == 1 << 20 && data.iter().all(|&byte| byte == b'x'));
}

/// Writes the result `m` of `bytes` bytes through a mapping and leaves without a word.
fn mapped(bytes: &str) -> String {
    format!(
        "exec python3 - <<'END'
import mmap, os
f = os.open(os.environ['RUNSEAL_OUTPUT'] + '/m', os.O_RDWR | os.O_CREAT)
os.ftruncate(f, {bytes})
m = mmap.mmap(f, {bytes})
os.close(f)
for at in range(0, {bytes}, 4096): m[at:at + 4096] = b'x' * 4096
os._exit(0)
END"
    )
}

macro_rules! require_python {
    () => {
        if !std::path::Path::new("/usr/bin/python3").exists() {
            println!("SKIP: {}: needs python3", module_path!());
            return;
        }
    };
}
pub(crate) use require_python;

// promise: T-13
#[test]
fn the_report_tells_the_whole_run() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (output, report) = (dir.path().join("out"), dir.path().join("report.json"));
    let id = fresh_id();
    let flags = [
        "--run-id",
        &id,
        "--size",
        "1G",
        "--input",
        "/etc/hostname",
        "--output",
        text(&output),
        "--report",
        text(&report),
    ];
    run(&flags, "cp \"$RUNSEAL_INPUT/hostname\" \"$RUNSEAL_OUTPUT\"").expect(0, &[]);
    let report = read_report(&report);
    let size = fs::metadata("/etc/hostname").expect("exists").len();
    assert_eq!(report["run_id"], id);
    assert_eq!(report["outcome"], "published");
    assert_eq!((&report["exit_status"], &report["command_status"]), (&0.into(), &0.into()));
    assert_eq!(report["size"], 1u64 << 30);
    assert_eq!(report["staged"]["bytes"], size);
    assert_eq!(report["published"]["files"], 1);
    assert!(report["bytes_encrypted"].as_u64() >= Some(size));
    assert!(report["requests"]["CREATE"].as_u64() > Some(0), "{}", report["requests"]);
    assert!(report["mount"]["protocol"].as_str().expect("a protocol").starts_with("7."));
    assert!(report["engine"].is_string() && report["key_memory"].is_string());
    let phases: Vec<_> = report["phases"].as_array().expect("phases").iter().map(|p| p["phase"].clone()).collect();
    assert_eq!(phases, ["preflight", "seal", "fetch", "command", "publish", "end"]);
    let times = ["started", "key_wiped", "ended"].map(|key| report[key].as_str().expect("a time").to_owned());
    assert!(times.is_sorted() && times.iter().all(|time| time.ends_with('Z')), "{times:?}");
}

#[test]
fn the_report_tells_failures_too() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("report.json");
    run(&["--report", text(&path)], "exit 9").expect(9, &[]);
    let report = read_report(&path);
    assert_eq!((&report["outcome"], &report["exit_status"]), (&"command-failed".into(), &9.into()));
    assert!(report["key_wiped"].is_string());

    run(&["--report", text(&path), "--input", "/no/such/input"], "true").expect(66, &[]);
    let report = read_report(&path);
    assert_eq!((&report["outcome"], &report["exit_status"]), (&"refused".into(), &66.into()));
    assert!(report["error"].as_str().expect("an error").contains("/no/such/input"));
    assert_eq!(report["key_wiped"], Value::Null, "there was no key");
}

fn read_report(path: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the report is there")).expect("the report is JSON")
}

#[test]
fn a_report_can_go_to_stdout() {
    require_host!();
    let said = run(&["--report", "/dev/stdout"], "true").expect(0, &[]);
    assert_eq!(serde_json::from_str::<Value>(&said.out).expect("JSON")["outcome"], "succeeded");
}

// promise: T-10
#[test]
fn nobody_outside_sees_the_scratch() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "echo secret >file; ready; sleep 3600");
    assert!(!mounted(&state_dir(&live.id)), "the mount shows outside");
    assert!(fs::metadata("/run/runseal/mnt").expect("there").is_file(), "its place is no directory outside");
    let line = say(&["status", &live.id]).expect(0, &[]).out;
    assert!(line.contains("command"), "{line}");
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["ended", "nothing was published"]);
}

#[test]
fn the_command_sees_its_own_processes_and_run_only() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let other = Live::start(dir.path(), &[], "ready; sleep 3600");
    let said = run(&[], "ls /run/runseal; echo /proc/[0-9]*; kill -9 1; kill -STOP 1; echo alive").expect(0, &[]);
    assert!(!said.out.contains(&other.id), "another run is visible: {}", said.out);
    assert!(said.out.contains("/proc/1 "), "{}", said.out);
    assert!(!said.out.contains(&format!("/proc/{}", other.supervisor())), "{}", said.out);
    assert!(said.out.ends_with("alive\n"), "{}", said.out);
}

#[test]
fn a_command_that_becomes_another_user_keeps_its_scratch() {
    require_host!();
    let said = run(
        &[],
        "chmod 777 . && setpriv --reuid 65534 --regid 65534 --clear-groups \
         sh -c 'id -u; echo x >mine; cat mine; echo t >\"$TMPDIR/t\"'",
    );
    assert_eq!(said.expect(0, &[]).out, "65534\nx\n");
}

#[test]
fn a_run_id_in_use_is_refused() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    run(&["--run-id", &live.id], "true").expect(64, &[&live.id, "in use"]);
    assert!(lives(live.sealed()), "the other run goes on");
}

// promise: S-30
#[test]
fn a_full_scratch_is_the_commands_problem_alone() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let script = "cd \"$RUNSEAL_OUTPUT\"; echo early >early
        if said=$(dd if=/dev/zero of=big bs=1M count=64 conv=fsync 2>&1); then exit 1; fi
        echo \"$said\" | grep -q 'No space left'; rm big; cat early";
    run(&["--size", "16M", "--output", text(&output)], script).expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("early")).expect("published"), "early\n");
}

#[test]
fn results_that_never_reached_the_scratch_are_held() {
    require_host!();
    require_python!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    // The command cannot see this failure: the kernel writes mapped pages when it likes.
    let script = format!("ready; {}", mapped("64 << 20"));
    let live = Live::start(dir.path(), &["--size", "16M", "--output", text(&output)], &script);
    live.wait_for("held");
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["output/m", "--size", "incomplete"]);
    assert!(!output.join("m").exists());
}

#[test]
fn backing_directories_can_come_from_the_environment() {
    require_host!();
    let (one, two) = (tempfile::tempdir_in("/var/tmp").expect("dir"), tempfile::tempdir_in("/var/tmp").expect("dir"));
    let dir = tempfile::tempdir().expect("tempdir");
    let report = dir.path().join("report.json");
    let output = runseal()
        .args(["run", "--report", text(&report), "--", "dd", "if=/dev/zero", "of=file", "bs=1M", "count=8"])
        .env("RUNSEAL_BACKING", format!("{}:{}", one.path().display(), two.path().display()))
        .output()
        .expect("the binary starts");
    Said::of(output).expect(0, &[]);
    assert_eq!(read_report(&report)["backing"], serde_json::json!([one.path(), two.path()]));
    assert_eq!(fs::read_dir(one.path()).expect("readable").count(), 0, "ciphertext has no name");
}

#[test]
fn standard_streams_belong_to_the_command() {
    require_host!();
    let mut child = runseal()
        .args(["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through\n").expect("written");
    let said = Said::of(child.wait_with_output().expect("wait")).expect(0, &[]);
    assert_eq!(said.out, "through\n");
}

#[test]
fn orphans_are_collected_while_the_command_runs() {
    require_host!();
    let script =
        "for i in 1 2 3 4 5 6 7 8; do (sh -c ': &' &); done; sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z ' || :";
    assert_eq!(run(&[], script).expect(0, &[]).out, "0\n");
}

#[test]
fn an_executable_bit_survives_both_ways() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    run(&["--output", text(&output)], "echo '#!/bin/sh' >\"$RUNSEAL_OUTPUT/t\"; chmod 755 \"$RUNSEAL_OUTPUT/t\"")
        .expect(0, &[]);
    let mode = fs::metadata(output.join("t")).expect("published").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    wait_until("nothing of it is left", || !mounted(std::path::Path::new("/run/runseal")));
}
