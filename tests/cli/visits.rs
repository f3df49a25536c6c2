//! `runseal exec` and `runseal cp`: into live and held runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::program::{Live, Said, phase, processes_with, require_host, run, runseal, say, send, text, wait_until};

/// A run whose command failed and left something.
fn failed(dir: &Path, flags: &[&str]) -> Live {
    let script = "mkdir logs; echo why >logs/app.log; ln -s app.log logs/link; chmod 640 logs/app.log
        touch -d 2001-02-03T04:05:06.123456789 logs/app.log; head -c 300000 /dev/zero >logs/zeros; ready; exit 3";
    let live = Live::start(dir, &[&["--on-failure=hold"], flags].concat(), script);
    live.wait_for("held");
    live
}

// promise: S-123
#[test]
fn a_failed_command_can_be_looked_at_and_its_files_rescued() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let live = failed(dir.path(), &["--output", text(&output)]);
    say(&["resume", &live.id]).expect(69, &["status 3", "runseal cp"]);
    say(&["end", &live.id]).expect(69, &["--discard", "runseal exec"]);
    let copy = dir.path().join("copy");
    let said = say(&["cp", &format!("{}:work/logs", live.id), text(&copy)]).expect(0, &[]);
    assert!(said.out.contains("copied 2 files"), "{said:?}");
    let log = fs::metadata(copy.join("app.log")).expect("copied");
    assert_eq!(fs::read_to_string(copy.join("link")).expect("a link to it"), "why\n");
    assert_eq!((log.permissions().mode() & 0o7777, log.mtime_nsec()), (0o640, 123_456_789));
    assert_eq!(fs::read(copy.join("zeros")).expect("copied"), vec![0; 300_000]);
    // Into a directory that exists; and never over something.
    let one = format!("{}:work/logs/app.log", live.id);
    say(&["cp", &one, text(dir.path())]).expect(0, &[]);
    assert_eq!(fs::read_to_string(dir.path().join("app.log")).expect("copied"), "why\n");
    say(&["cp", &one, text(dir.path())]).expect(73, &["app.log", "name another place"]);
    assert_eq!(say(&["cp", &one, "-"]).expect(0, &[]).out, "why\n");
    say(&["cp", &format!("{}:work/nothing", live.id), text(&dir.path().join("n"))]).expect(69, &["work/nothing"]);
    assert!(!dir.path().join("n").exists());
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(3, &["status 3", "is held", "runseal exec"]);
    assert!(!output.exists());
}

// promise: S-123
#[test]
fn what_a_failed_command_left_is_said_to_be_gone() {
    require_host!();
    run(&[], "echo x >x; exit 4").expect(4, &["is gone", "--save", "--on-failure=hold"]);
    assert!(!run(&[], "exit 4").expect(4, &[]).err.contains("is gone"));
    run(&["--on-failure=hold", "--on-hold=fail"], "true").expect(64, &["give one"]);
    run(&["--on-failure=hold", "--on-hold=1s"], "exit 5").expect(5, &["is held"]);
}

// promise: S-127
#[test]
fn logs_of_a_failed_command_are_published_and_no_later_try_minds_them() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (output, report) = (dir.path().join("out"), dir.path().join("report.json"));
    let id = crate::program::fresh_id();
    let flags = ["--output", text(&output), "--save", "work/**/*.log", "--save", "output/logs", "--run-id", &id];
    let written = report.clone();
    let flags = [&flags[..], &["--report", text(&written)]].concat();
    let script = "mkdir -p deep \"$RUNSEAL_OUTPUT/logs\"; echo why >deep/a.log; echo no >deep/b; chmod 640 deep/a.log
        echo step >\"$RUNSEAL_OUTPUT/logs/1\"; echo result >\"$RUNSEAL_OUTPUT/x\"; exit 3";
    run(&flags, script).expect(3, &["saved 2 of its files", "runseal-failed-", "nothing was published"]);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&report).expect("written")).expect("JSON");
    assert_eq!((&report["outcome"], &report["saved"]["files"]), (&"command-failed".into(), &2.into()));
    let place = fs::read_dir(&output).expect("made").next().expect("one").expect("listed").path();
    assert_eq!(
        (text(&place), fs::read_dir(&output).expect("made").count()),
        (report["saved"]["place"].as_str().unwrap(), 1)
    );
    assert_eq!(fs::read_to_string(place.join("work/deep/a.log")).expect("saved"), "why\n");
    assert_eq!(fs::metadata(place.join("work/deep/a.log")).expect("saved").permissions().mode() & 0o777, 0o640);
    assert!(
        place.join("output/logs/1").exists() && !place.join("work/deep/b").exists() && !place.join("output/x").exists()
    );
    let mut check = std::process::Command::new("sha256sum");
    check.args(["-c", "--strict", "SHA256SUMS"]).current_dir(&place);
    assert_eq!(crate::program::finish(check).expect(0, &[]).out, "output/logs/1: OK\nwork/deep/a.log: OK\n");
    // The same again, under the same name; and then the command succeeds.
    run(&flags, script).expect(3, &["saved 2 of its files"]);
    run(&flags, "echo result >\"$RUNSEAL_OUTPUT/x\"").expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("x")).expect("published"), "result\n");
    assert_eq!(fs::read_dir(&output).expect("listed").count(), 2 + 2, "both tries, the result, the manifest");
    run(&["--save", "work/*"], "true").expect(64, &["--output"]);
    run(&["--output", text(&output), "--save", "/work"], "true").expect(64, &["relative"]);
}

// promise: S-122
#[test]
fn a_program_runs_beside_the_command_as_the_command_does() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "echo mine >file; ready; while [ ! -e end ]; do sleep 0.05; done");
    let script = "cat file; echo \"$RUNSEAL_RUN_ID $PWD $(readlink /proc/self/ns/pid)\"; cat; echo oops >&2; exit 7";
    let mut child = runseal()
        .args(["exec", &live.id, "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"through\n").expect("written");
    let said = Said::of(child.wait_with_output().expect("wait")).expect(7, &["oops"]);
    let own = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let lines: Vec<_> = said.out.lines().collect();
    assert_eq!((lines[0], lines[2]), ("mine", "through"));
    assert!(lines[1].starts_with(&format!("{} /run/runseal/mnt/work pid:", live.id)), "{said:?}");
    assert!(!lines[1].ends_with(text(&own)), "its processes are those of the run: {said:?}");
    say(&["exec", &live.id, "--", "no-such-program"]).expect(127, &["command not found"]);
    say(&["exec", &live.id, "--", "sh", "-c", "kill -9 $$"]).expect(137, &[]);
    // The command, and with it the visitor, may end before the visitor has.
    say(&["exec", &live.id, "--", "touch", "end"]);
    live.end().expect(0, &[]);
}

// promise: S-122
#[test]
fn a_program_ends_with_its_client_and_with_the_command() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let word = format!("5200.{}", std::process::id());
    let live = Live::start(dir.path(), &[], "ready; while [ ! -e end ]; do sleep 0.05; done");
    let visit = |script: &str| {
        let mut command = runseal();
        command.args(["exec", &live.id, "--", "sh", "-c", script]).stdin(Stdio::null());
        command.spawn().expect("the binary starts")
    };
    let mut child = visit(&format!("trap '' HUP; sleep {word} & sleep {word}"));
    let inside = || processes_with(&format!("sleep\0{word}")).len();
    wait_until("it runs", || inside() == 2);
    child.kill().expect("killed");
    child.wait().expect("wait");
    wait_until("it has ended with its client", || inside() == 0);
    let mut child = visit(&format!("touch end; sleep {word}"));
    let status = child.wait().expect("wait");
    assert_eq!((status.code(), inside()), (Some(137), 0));
    live.end().expect(0, &[]);
}

// promise: S-122
#[test]
fn results_wait_for_programs_that_may_still_write() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    fs::create_dir(&output).expect("created");
    let script = format!("echo result >\"$RUNSEAL_OUTPUT/x\"; echo foreign >'{}/x'; ready", output.display());
    let live = Live::start(dir.path(), &["--output", text(&output)], &script);
    live.wait_for("held");
    let started = dir.path().join("started");
    let script = format!(": >'{}'; sleep 3600", started.display());
    let mut child = runseal().args(["exec", &live.id, "--", "sh", "-c", &script]).spawn().expect("the binary starts");
    wait_until("it runs", || started.exists());
    say(&["resume", "--overwrite", &live.id]).expect(69, &["1 programs of `runseal exec`"]);
    assert_eq!(phase(&live.id).as_deref(), Some("held"));
    child.kill().expect("killed");
    child.wait().expect("wait");
    // What a visitor mends is published.
    say(&["exec", &live.id, "--", "sh", "-c", "echo mended >\"$RUNSEAL_OUTPUT/x\""]).expect(0, &[]);
    wait_until("the other has ended", || say(&["resume", "--overwrite", &live.id]).code == 0);
    live.end().expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("x")).expect("published"), "mended\n");
}

// promise: S-122
#[test]
fn visitors_find_mounts_open_and_runs_by_name() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    say(&["exec", "no-such-run", "--", "true"]).expect(69, &["no-such-run", "runseal status"]);
    say(&["cp", "nonsense", text(dir.path())]).expect(64, &["RUN:PATH"]);
    let (mountpoint, id) = (dir.path().join("mnt"), crate::program::fresh_id());
    fs::create_dir(&mountpoint).expect("created");
    say(&["mount", "--run-id", &id, "--size", "16M", text(&mountpoint)]).expect(0, &[]);
    say(&["exec", &id, "--", "true"]).expect(69, &["it is open below", text(&mountpoint)]);
    say(&["end", &id]).expect(0, &[]);
}

// promise: S-122
#[test]
fn what_is_in_the_page_cache_is_copied_too() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live =
        Live::start(dir.path(), &[], "exec 3>log; echo early >&3; ready; while [ ! -e end ]; do sleep 0.05; done");
    let copied = say(&["cp", &format!("{}:work/log", live.id), "-"]).expect(0, &[]);
    assert_eq!(copied.out, "early\n");
    send(live.supervisor(), Signal::SIGTERM);
    live.end();
}
