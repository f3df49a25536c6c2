//! Signals: they reach the command, and a second one ends everything.

use std::fs;

use nix::sys::signal::Signal;

use crate::program::{Live, lives, processes_with, require_host, say, send, state_dir, text, wait_until};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
fn a_sealed_process_that_does_not_answer_is_killed() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let word = format!("4300.{}", std::process::id());
    let live = Live::start(dir.path(), &[], &format!("ready; sleep {word}"));
    send(live.sealed(), Signal::SIGSTOP);
    for _ in 0..3 {
        send(live.supervisor(), Signal::SIGTERM);
        // At once it would be the same request.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    live.end().expect(143, &["SIGTERM", "did not answer"]);
    assert_eq!(processes_with(&word), [0; 0]);
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
    wait_until("it still answers", || crate::program::phase(&live.id).as_deref() == Some("command"));
}

#[test]
fn a_signal_while_inputs_are_staged_ends_the_run() {
    require_host!();
    // The build directory: large enough to be still on the way.
    let binary = Path::new(env!("CARGO_BIN_EXE_runseal"));
    let input = format!("{}=x", binary.parent().expect("in a directory").display());
    let id = crate::program::fresh_id();
    let child = crate::program::runseal()
        .args(["run", "--run-id", &id, "--input", &input, "--", "true"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    wait_until("staging", || crate::program::phase(&id).as_deref() == Some("fetch"));
    send(child.id() as i32, Signal::SIGTERM);
    let said = crate::program::Said::of(child.wait_with_output().expect("wait"));
    said.expect(143, &["SIGTERM", "staging the inputs", "nothing was published"]);
    assert!(!state_dir(&id).exists());
}

// promise: S-120
#[test]
fn a_signal_that_comes_twice_at_once_leaves_the_command_its_time() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    // As timeout(1) sends it; the command saves its work for longer than the first signal would leave it.
    let script =
        "trap 'sleep 1.5; echo saved >\"$RUNSEAL_OUTPUT/x\"; exit 0' TERM; ready; while :; do sleep 0.05; done";
    let live = Live::start(dir.path(), &["--output", text(&output)], script);
    for _ in 0..3 {
        send(live.supervisor(), Signal::SIGTERM);
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    live.end().expect(0, &[]);
    assert_eq!(fs::read_to_string(output.join("x")).expect("published"), "saved\n");
}

// promise: S-120
#[test]
fn publishing_goes_on_whatever_the_signals_and_ends_when_it_is_told_to() {
    require_host!();
    let dir = tempfile::tempdir().expect("tempdir");
    let output = dir.path().join("out");
    // Twenty thousand files take long, each is synced to the disk.
    let script = "cd \"$RUNSEAL_OUTPUT\"; yes | head -c 1000000 | split -l 25 -a 4 - ; ready";
    let live = Live::start(dir.path(), &["--output", text(&output)], script);
    live.wait_for("publish");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM, Signal::SIGINT] {
        send(live.supervisor(), signal);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(crate::program::phase(&live.id).as_deref(), Some("publish"));
    say(&["end", "--discard", &live.id]).expect(0, &[]);
    live.end().expect(74, &["SIGTERM does not end that", "was ended while publishing the results"]);
    let left: Vec<_> = fs::read_dir(&output).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [""; 0]);
}

/// A terminal of its own, with a shell that does job control, made by script(1).
struct Terminal {
    child: Child,
    seen: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Terminal {
    fn new(shell_script: &str) -> Self {
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &format!("bash -mc '{shell_script}'"), "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script(1) starts");
        let mut out = child.stdout.take().expect("piped");
        let seen = std::sync::Arc::<std::sync::Mutex<String>>::default();
        let sink = seen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut chunk) {
                sink.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Self { child, seen }
    }

    fn press(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().expect("piped").write_all(keys).expect("written");
    }

    fn wait_for(&self, word: &str) {
        wait_until(word, || self.text().contains(word));
    }

    fn text(&self) -> String {
        self.seen.lock().expect("not poisoned").clone()
    }

    fn end(mut self) -> (i32, String) {
        wait_until("the terminal closes", || self.child.try_wait().expect("wait").is_some());
        std::thread::sleep(std::time::Duration::from_millis(100));
        (self.child.wait().expect("wait").code().unwrap_or(-1), self.text())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

macro_rules! require_script {
    () => {
        if !Path::new("/usr/bin/script").exists() {
            println!("SKIP: {}: needs script(1)", module_path!());
            return;
        }
    };
}

#[test]
fn control_c_reaches_the_command_once() {
    require_host!();
    require_script!();
    let dir = tempfile::tempdir().expect("tempdir");
    let command = dir.path().join("command");
    let body =
        "trap 'echo caught' INT; echo is-ready; i=0; while [ $i -lt 10 ]; do sleep 0.1; i=$((i+1)); done; exit 6";
    fs::write(&command, body).expect("written");
    let binary = env!("CARGO_BIN_EXE_runseal");
    let mut terminal = Terminal::new(&format!("{binary} run -- sh {}; exit $?", text(&command)));
    terminal.wait_for("is-ready");
    terminal.press(b"\x03");
    let (code, seen) = terminal.end();
    assert_eq!((code, seen.matches("caught").count()), (6, 1), "{seen}");
}

#[test]
fn control_z_stops_the_command_and_fg_goes_on() {
    require_host!();
    require_script!();
    let dir = tempfile::tempdir().expect("tempdir");
    let command = dir.path().join("command");
    fs::write(&command, "echo is-ready; read line; echo got $line; exit 3").expect("written");
    let binary = env!("CARGO_BIN_EXE_runseal");
    let shell = format!("{binary} run -- sh {}; echo stopped $?; fg; echo ended $?", text(&command));
    let mut terminal = Terminal::new(&shell);
    terminal.wait_for("is-ready");
    terminal.press(b"\x1a");
    terminal.wait_for("stopped 148");
    terminal.press(b"hello\n");
    terminal.wait_for("ended 3");
    assert!(terminal.text().contains("got hello"));
}

#[test]
fn an_interactive_command_gives_the_terminal_back() {
    require_host!();
    require_script!();
    let dir = tempfile::tempdir().expect("tempdir");
    let (command, output) = (dir.path().join("command"), dir.path().join("out"));
    fs::create_dir(&output).expect("created");
    let body = format!("echo foreign >{}/x; echo result >$RUNSEAL_OUTPUT/x; sh -c true", output.display());
    fs::write(&command, body).expect("written");
    let binary = env!("CARGO_BIN_EXE_runseal");
    let shell = format!("{binary} run --output {} -- bash -i {}; echo ended $?", text(&output), text(&command));
    let mut terminal = Terminal::new(&shell);
    terminal.wait_for("is held");
    terminal.wait_for("give the results up");
    terminal.press(b"\x03");
    terminal.wait_for("a moment later, discards");
    terminal.press(b"\x03");
    terminal.wait_for("so soon is no decision");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    terminal.press(b"\x03");
    terminal.wait_for("ended 74");
}

// promise: S-122
#[test]
fn a_visitor_on_a_terminal_gets_one_of_its_own() {
    require_host!();
    require_script!();
    let dir = tempfile::tempdir().expect("tempdir");
    let live = Live::start(dir.path(), &[], "ready; while [ ! -e end ]; do sleep 0.05; done");
    let binary = env!("CARGO_BIN_EXE_runseal");
    let mut terminal =
        Terminal::new(&format!("stty rows 33 cols 77; {binary} exec {} -- sh -i; echo left $?", live.id));
    terminal.press(b"echo size $(stty size) on $(tty)\n");
    terminal.wait_for("size 33 77 on /dev/pts/");
    terminal.press(b"sleep 3600\n");
    std::thread::sleep(std::time::Duration::from_millis(500));
    // For what runs there, not for this client.
    terminal.press(b"\x03");
    terminal.press(b"touch end; exit 9\n");
    terminal.wait_for("left 9");
    let (_, seen) = terminal.end();
    assert!(!seen.contains("Inappropriate ioctl") && !seen.contains("no job control"), "{seen}");
    live.end().expect(0, &[]);
}
