//! Signals: they reach the command, and a second one ends everything.

use std::fs;

use nix::sys::signal::Signal;

use crate::bench::{Live, lives, processes_with, require_host, send, state_dir, text, wait_until};

#[test]
fn signals_reach_the_command() {
    require_host!();
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGQUIT, "QUIT"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGUSR2, "USR2"),
    ] {
        let dir = tempfile::tempdir().expect("tempdir");
        let script = format!("trap 'echo got {name}; exit 5' {name}; ready; while :; do sleep 0.05; done");
        let live = Live::start(dir.path(), &[], &script);
        send(live.supervisor(), signal);
        let said = live.end().expect(5, &["status 5"]);
        assert_eq!(said.out, format!("got {name}\n"));
    }
}

#[test]
fn an_uncaught_signal_ends_the_command_and_shows_in_the_status() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    let live = Live::start(dir.path(), &["--output", text(&output)], "ready; exec sleep 3600");
    send(live.supervisor(), Signal::SIGTERM);
    live.end().expect(143, &["nothing was published"]);
    assert!(!output.join("runseal-manifest.json").exists());
}

#[test]
fn a_second_signal_kills_what_ignores_the_first() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (output, report) = (dir.path().join("out"), dir.path().join("report.json"));
    let word = format!("3700.{}", std::process::id());
    let script = format!(
        "trap '' INT TERM; echo x >\"$RUNSEAL_OUTPUT/x\"; (setsid sleep {word} &) ; ready; while :; do sleep 0.05; done"
    );
    let live = Live::start(dir.path(), &["--output", text(&output), "--report", text(&report)], &script);
    let (id, sealed) = (live.id.clone(), live.sealed());
    send(live.supervisor(), Signal::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(lives(sealed), "one signal is the command's to handle");
    send(live.supervisor(), Signal::SIGINT);
    live.end().expect(130, &["SIGINT", "nothing was published"]);
    assert_eq!(processes_with(&word), [0; 0]);
    assert!(!output.join("x").exists() && !state_dir(&id).exists());
    let text = fs::read_to_string(report).expect("written");
    assert!(text.contains("\"interrupted\"") && text.contains("\"exit_status\": 130"), "{text}");
}

#[test]
fn the_sealed_process_is_deaf_to_the_terminal() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; while [ ! -e done ]; do sleep 0.05; done");
    let sealed = live.sealed();
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGHUP, Signal::SIGTERM] {
        send(sealed, signal);
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let stat = fs::read_to_string(format!("/proc/{sealed}/stat")).expect("it lives");
    assert!(!stat.contains(") T "), "stopped: {stat}");
    wait_until("it still answers", || crate::bench::phase(&live.id).as_deref() == Some("command"));
}
