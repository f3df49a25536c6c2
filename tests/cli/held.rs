//! Results that cannot be published are held, never lost silently.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::bench::{Live, require_host, say, send, status, text, wait_until};

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

#[test]
fn one_signal_warns_two_discard() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let mut live = held(dir.path(), &dir.path().join("report.json"));
    // The terminal may close, and the shell tell so again.
    send(live.supervisor(), Signal::SIGHUP);
    send(live.supervisor(), Signal::SIGHUP);
    send(live.supervisor(), Signal::SIGINT);
    wait_until("the signal is taken, or the next would be one with it", || !interrupt_pending(live.supervisor()));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!live.ended(), "one signal must not lose results");
    assert_eq!(crate::bench::phase(&live.id).as_deref(), Some("held"));
    send(live.supervisor(), Signal::SIGINT);
    live.end().expect(74, &["again discards", "discarded"]);
}

/// Whether SIGINT waits to be read (proc_pid_status(5), `ShdPnd`).
fn interrupt_pending(process: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("lives");
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:\t")).expect("has pending signals");
    u64::from_str_radix(pending, 16).expect("hexadecimal") & 1 << (Signal::SIGINT as i32 - 1) != 0
}

#[test]
fn nothing_to_resume_is_said() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    say(&["resume", &live.id]).expect(69, &["nothing is held"]);
    say(&["end", &live.id]).expect(69, &["--discard"]);
}
