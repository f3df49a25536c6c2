//! Results that cannot be published are held, never lost silently.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::program::{Live, Said, require_host, run, say, send, status, text, wait_until};

/// A run whose results meet a file that appeared in the output after preflight.
fn held(dir: &Path, report: &Path) -> Live {
    let output = dir.join("out");
    fs::create_dir(&output).expect("created");
    let script = format!("echo result >\"$RUNSEAL_OUTPUT/x\"; echo foreign >'{}/x'; ready", output.display());
    let live = Live::start(dir, &["--output", text(&output), "--report", text(report)], &script);
    live.wait_for("held");
    live
}

// promise: S-53
#[test]
fn held_results_are_published_by_resume() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let report = dir.path().join("report.json");
    let live = held(dir.path(), &report);
    let problem = status(&live.id).expect("alive")["report"]["held"].clone();
    assert!(problem.as_str().expect("a problem").contains("out/x"), "{problem}");
    assert!(say(&["status", &live.id]).out.contains("held"));

    say(&["end", &live.id]).expect(69, &["resume", "--discard"]);
    say(&["resume", &live.id]).expect(69, &["still held", "out/x"]);
    live.wait_for("held");
    fs::remove_file(dir.path().join("out/x")).expect("removed");
    let said = say(&["resume", &live.id]).expect(0, &[]);
    assert!(said.out.contains("published"), "{said:?}");
    let id = live.id.clone();
    live.end().expect(0, &["could not be published", &format!("runseal resume {id}")]);
    assert_eq!(fs::read_to_string(dir.path().join("out/x")).expect("published"), "result\n");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
    assert_eq!(report["outcome"], "published");
    let phases: Vec<_> = report["phases"].as_array().expect("phases").iter().map(|p| p["phase"].clone()).collect();
    assert_eq!(phases[3..], ["publish", "held", "publish", "held", "publish", "end"]);
}

// promise: S-53
#[test]
fn held_results_are_given_up_by_discard() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let report = dir.path().join("report.json");
    let live = held(dir.path(), &report);
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["discarded", "out/x"]);
    assert_eq!(fs::read_to_string(dir.path().join("out/x")).expect("untouched"), "foreign\n");
    assert!(!dir.path().join("out/runseal-manifest.json").exists());
    assert!(fs::read_to_string(report).expect("written").contains("\"discarded\""));
}

// promise: S-120
#[test]
fn no_number_of_signals_discards_held_results() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = held(dir.path(), &dir.path().join("report.json"));
    // timeout(1) sends TERM to its child and at once to the group; people and schedulers repeat it; terminals close.
    let signals = [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
    for pause in [20, 1100] {
        for signal in signals {
            send(live.supervisor(), signal);
            wait_until("the signal is taken, or the next would be one with it", || !pending(live.supervisor(), signal));
            std::thread::sleep(std::time::Duration::from_millis(pause));
        }
    }
    assert_eq!(crate::program::phase(&live.id).as_deref(), Some("held"));
    fs::remove_file(dir.path().join("out/x")).expect("removed");
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &["SIGTERM does not end that", "SIGINT does not end that", "runseal end --discard"]);
    assert_eq!(fs::read_to_string(dir.path().join("out/x")).expect("published"), "result\n");
}

/// Whether the signal waits to be read (proc_pid_status(5), `ShdPnd`).
fn pending(process: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("lives");
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).expect("has pending signals");
    u64::from_str_radix(pending, 16).expect("hexadecimal") & 1 << (signal as i32 - 1) != 0
}

/// A run whose results meet a foreign file, to its end.
fn unpublishable(dir: &Path, flags: &[&str]) -> Said {
    let output = dir.join("out");
    fs::create_dir(&output).expect("created");
    let script = format!("echo result >\"$RUNSEAL_OUTPUT/x\"; echo foreign >'{}/x'", output.display());
    run(&[flags, &["--output", text(&output)]].concat(), &script)
}

// promise: S-121
#[test]
fn a_batch_job_can_fail_at_once() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let report = dir.path().join("report.json");
    let said = unpublishable(dir.path(), &["--on-hold=fail", "--report", text(&report)]);
    let said = said.expect(75, &["--on-hold=fail", "out/x appeared"]);
    assert!(!said.err.contains("is held"), "{said:?}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
    assert_eq!((&report["outcome"], &report["exit_status"]), (&"unpublished".into(), &75.into()));
}

// promise: S-121
#[test]
fn a_hold_says_so_again_and_ends_when_its_time_is_over() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let said = unpublishable(dir.path(), &["--on-hold=2s"]);
    let said = said.expect(75, &["is held", "within 2s", "is still held", "runseal resume", "nobody resumed the run"]);
    assert!(said.err.matches("is still held").count() >= 2, "{said:?}");
}

// promise: S-121
#[test]
fn without_a_terminal_a_hold_has_a_bound() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = held(dir.path(), &dir.path().join("report.json"));
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["if nobody does within 1h"]);
    run(&["--on-hold", "soon"], "true").expect(64, &["`wait`, `fail`"]);
}

// promise: S-124
#[test]
fn a_held_run_can_replace_or_go_elsewhere() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let report = dir.path().join("report.json");
    let live = held(dir.path(), &report);
    // What does not do is found before anything is published, and the run stays held.
    let full = dir.path().join("full");
    fs::create_dir(&full).expect("created");
    fs::write(full.join("old"), "old").expect("written");
    say(&["resume", "--output", text(&full), &live.id]).expect(69, &["still held", "OUTPUT_NOT_EMPTY", "old"]);
    say(&["resume", "--output", "/run/runseal/mnt/work", &live.id]).expect(69, &["inside the scratch"]);
    say(&["resume", "--sse", "aws:kms", &live.id]).expect(69, &["results in S3"]);
    live.wait_for("held");
    let other = dir.path().join("other");
    say(&["resume", "--output", text(&other), &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(fs::read_to_string(other.join("x")).expect("published"), "result\n");
    assert!(other.join("runseal-manifest.json").exists());
    assert_eq!(fs::read_dir(dir.path().join("out")).expect("listed").count(), 1, "only the foreign file");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
    assert_eq!((&report["outcome"], &report["output"]), (&"published".into(), &text(&other).into()));
}

// promise: S-124
#[test]
fn a_held_run_can_replace_what_is_in_its_output() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = held(dir.path(), &dir.path().join("report.json"));
    say(&["resume", "--overwrite", &live.id]).expect(0, &[]);
    live.end().expect(0, &["runseal resume --overwrite"]);
    assert_eq!(fs::read_to_string(dir.path().join("out/x")).expect("published"), "result\n");
}

/// Mounts a file system of its own, for as long as this lives.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn on(path: &'a Path, options: &str) -> Self {
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", text(path)]).status();
        assert!(mounted.expect("mount(8) starts").success());
        Self(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

// promise: S-126
#[test]
fn entries_that_are_in_their_place_are_said_and_can_be_removed() {
    require_host!();
    for remove in [false, true] {
        let dir = tempfile::tempdir().expect("tempdir");
        let (output, report) = (dir.path().join("out"), dir.path().join("report.json"));
        fs::create_dir(&output).expect("created");
        // Itself, a file that is there, the hidden directory and three results: then there is no room for a manifest.
        let _disk = Tmpfs::on(&output, "mode=755,nr_inodes=6");
        fs::write(output.join("spare"), "").expect("written");
        let script = "cd \"$RUNSEAL_OUTPUT\"; echo a >a; mkdir b; echo c >b/c; ready";
        let flags = ["--overwrite", "--output", text(&output), "--report", text(&report)];
        let live = Live::start(dir.path(), &flags, script);
        live.wait_for("held");
        assert!(output.join("a").exists() && output.join("b/c").exists());
        fs::remove_file(output.join("spare")).expect("removed");
        fs::write(output.join("b/d"), "theirs").expect("written");
        let flag = if remove { vec!["--remove-published"] } else { Vec::new() };
        let said = say(&[&["end", "--discard"], &flag[..], &[&live.id]].concat()).expect(0, &[]);
        assert_eq!(said.out.contains("2 of its results are in"), !remove, "{said:?}");
        live.end().expect(74, &["2 of its results are in", "the first is a", "--remove-published"]);
        assert_eq!((output.join("a").exists(), output.join("b/c").exists()), (!remove, !remove));
        assert!(output.join("b/d").exists(), "not ours to remove");
        let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
        assert_eq!(report["left"].is_object(), !remove);
    }
}

// promise: S-125
#[test]
fn two_runs_into_one_output_are_told_apart_when_the_second_starts() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir(dir.path().join("there")).expect("created");
    for name in ["there", "new"] {
        let output = dir.path().join(name);
        let first = Live::start(dir.path(), &["--output", text(&output)], "ready; sleep 3600");
        let again = dir.path().join("there/../").join(name);
        for same in [&output, &again] {
            let flags = ["--overwrite", "--output", text(same)];
            run(&flags, "echo started").expect(73, &[&first.id, name]);
            say(&["preflight", "--output", text(same)]).expect(73, &[&first.id]);
        }
        let other = Live::start(dir.path(), &["--output", text(&dir.path().join("other"))], "ready; sleep 3600");
        say(&["resume", "--output", text(&output), &other.id]).expect(73, &[&first.id]);
        // However a run ends, it stands in nobody's way afterwards.
        send(first.supervisor(), Signal::SIGKILL);
        let _ = first.end();
        wait_until("the lock is free", || run(&flags_of(&output), RESULT).code == 0);
    }
}

/// Leaves a result.
const RESULT: &str = "echo x >\"$RUNSEAL_OUTPUT/x\"";

fn flags_of(output: &Path) -> [&str; 3] {
    ["--overwrite", "--output", text(output)]
}

// promise: S-125
#[test]
fn another_user_is_kept_out_of_an_output_that_exists() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    fs::create_dir(&output).expect("created");
    // What a run of another user, or of another machine, holds all its life.
    let theirs = fs::File::open(&output).expect("opened");
    theirs.lock().expect("locked");
    run(&["--output", text(&output)], RESULT).expect(73, &["another run is going to publish there"]);
    drop(theirs);
    run(&["--output", text(&output)], RESULT).expect(0, &[]);
}

#[test]
fn nothing_to_resume_is_said() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    say(&["resume", &live.id]).expect(69, &["nothing is held"]);
    say(&["end", &live.id]).expect(69, &["--discard"]);
}
