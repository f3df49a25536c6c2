//! kill -9 of either process, and what is left: nothing.

use std::fs;

use nix::sys::signal::Signal;

use crate::program::{
    Live, lives, mounted, processes_with, require_host, run, say, send, state_dir, status, text, wait_until,
};
use crate::runs::require_python;

/// Leaves a daemon behind that forked twice and left the session; `word` finds it.
fn daemonise(word: &str) -> String {
    format!(
        "(setsid sh -c '(sleep {word} &)' &); (trap '' HUP TERM; exec setsid sleep {word}) & sleep 0.1; ready; sleep {word}"
    )
}

// promise: S-55
#[test]
fn the_death_of_the_sealed_process_ends_everything() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (output, report) = (dir.path().join("out"), dir.path().join("report.json"));
    let word = format!("3800.{}", std::process::id());
    let flags = ["--output", text(&output), "--report", text(&report)];
    let live = Live::start(dir.path(), &flags, &daemonise(&word));
    let (id, sealed) = (live.id.clone(), live.sealed());
    assert!(processes_with(&word).len() >= 3);
    send(sealed, Signal::SIGKILL);
    live.end().expect(71, &["sealed process died", "SIGKILL", "written to the scratch is lost"]);
    assert_eq!(processes_with(&word), [0; 0]);
    assert!(!mounted(&state_dir(&id)) && !state_dir(&id).exists());
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).expect("written")).expect("JSON");
    assert_eq!((&report["outcome"], &report["exit_status"]), (&"lost".into(), &71.into()));
    assert_eq!(report["phases"].as_array().and_then(|p| p.last()).map(|p| p["phase"].clone()), Some("command".into()));
}

// promise: S-56
#[test]
fn the_death_of_the_supervisor_ends_everything() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let word = format!("3900.{}", std::process::id());
    let live = Live::start(dir.path(), &[], &daemonise(&word));
    let (id, sealed) = (live.id.clone(), live.sealed());
    send(live.supervisor(), Signal::SIGKILL);
    live.end().expect(137, &[]);
    wait_until("the sealed process is gone", || !lives(sealed));
    wait_until("the command is gone", || processes_with(&word).is_empty());
    assert!(!mounted(&state_dir(&id)));
    // Nobody was left to remove the state; the next command does.
    say(&["status"]).expect(0, &[]);
    assert!(!state_dir(&id).exists());
}

// promise: S-55
#[test]
fn the_death_of_the_sealed_process_while_it_publishes_ends_everything() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let script = "cd \"$RUNSEAL_OUTPUT\"; yes | head -c 200000 | split -l 25 -a 4 - ; ready; sleep 0.3";
    // The kernel's cache is flushed first, and only then is anything published: hit both.
    for delay in [0, 200, 250, 300, 350] {
        let output = dir.path().join(delay.to_string());
        let live = Live::start(dir.path(), &["--output", text(&output)], script);
        let sealed = live.sealed();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        if lives(sealed) {
            send(sealed, Signal::SIGKILL);
        }
        let said = live.end();
        assert!(said.code == 71 || said.code == 0, "{said:?}");
    }
}

/// A thread that tells the kernel to give pages up waits for the workers to take them. When they are killed it would wait
/// for the connection to close, and the connection for it.
// promise: S-55
#[test]
fn the_death_of_a_sealed_process_that_waits_for_the_kernel_ends_everything() {
    require_host!();
    require_python!();
    let dir = tempfile::tempdir().expect("tempdir");
    // Refused in the middle of pages that are not written yet.
    let script = "python3 -c 'import os, time
fd = os.open(\"f\", os.O_CREAT | os.O_WRONLY)
try:
    while True: os.write(fd, b\"x\" * 4096)
except OSError:
    open(os.environ[\"FLAG\"], \"w\").close()
time.sleep(60)'";
    for _ in 0..8 {
        let mut launcher = crate::program::runseal();
        let flag = dir.path().join("full");
        let _ = fs::remove_file(&flag);
        launcher.env("FLAG", &flag);
        let live = Live::start_with(launcher, dir.path(), &["--size", "256M"], &format!("ready; {script}"));
        let sealed = live.sealed();
        wait_until("the scratch is full", || flag.exists());
        send(sealed, Signal::SIGKILL);
        live.end().expect(71, &["is lost"]);
        assert!(!lives(sealed));
    }
}

/// The kernel waits for pages, and the sealed process for the kernel, at many points of a full scratch.
// promise: S-55
#[test]
fn the_death_of_the_sealed_process_of_a_full_scratch_ends_everything() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let script = "cd \"$RUNSEAL_OUTPUT\"
        for n in $(seq 16); do (while :; do dd if=/dev/zero of=f$n bs=$((n * 4096)) count=400 || rm -f f$n; cat f$n || :; done) & done
        ready; wait";
    for round in 0..10 {
        let output = dir.path().join(round.to_string());
        let script = format!("exec >/dev/null 2>&1\n{script}");
        let live = Live::start(dir.path(), &["--size", "24M", "--output", text(&output)], &script);
        let sealed = live.sealed();
        std::thread::sleep(std::time::Duration::from_millis(37 * round));
        send(sealed, Signal::SIGKILL);
        live.end().expect(71, &["is lost"]);
        assert!(!output.join("runseal-manifest.json").exists());
        assert!(!lives(sealed));
    }
}

#[test]
fn the_name_of_a_dead_run_can_be_used_again() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; sleep 3600");
    let (id, sealed) = (live.id.clone(), live.sealed());
    send(live.supervisor(), Signal::SIGKILL);
    live.end().expect(137, &[]);
    wait_until("the sealed process is gone", || !lives(sealed));
    // Its last threads may hold the name for a moment longer.
    wait_until("the run is gone", || status(&id).is_none());
    run(&["--run-id", &id], "true").expect(0, &[]);
    assert!(!state_dir(&id).exists());
}
