//! A place to run things in, and live runs under observation.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest that anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why runs cannot be tested here, if so.
///
/// From here on, temporary directories are where commands see them: the scratch covers `/tmp` and `/var/tmp`.
pub fn obstacle() -> Option<&'static str> {
    let _ = tempfile::env::override_temp_dir(Path::new(env!("CARGO_TARGET_TMPDIR")));
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("/dev/fuse cannot be opened");
    }
    None
}

/// Leaves the test with a visible reason where it cannot run.
macro_rules! require_host {
    () => {
        if let Some(reason) = crate::program::obstacle() {
            println!("SKIP: {}: {reason}", module_path!());
            return;
        }
    };
}
pub(crate) use require_host;

/// The binary under test.
pub fn runseal() -> Command {
    Command::new(env!("CARGO_BIN_EXE_runseal"))
}

/// A run id no other test uses.
pub fn fresh_id() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `done`; panics with `what` when it takes too long.
#[track_caller]
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

/// The same, for as long as `patience`.
#[track_caller]
pub fn wait_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a finished program said and exited with.
#[derive(Debug)]
pub struct Said {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Checks the exit code and that stderr names everything in `words`.
    #[track_caller]
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.err.contains(word), "stderr does not say `{word}`: {self:?}");
        }
        self
    }

    /// The same, where it does not matter on which stream the words are.
    #[track_caller]
    pub fn expect_said(self, code: i32, words: &[&str]) -> Self {
        let said = self.expect(code, &[]);
        for word in words {
            assert!(said.err.contains(word) || said.out.contains(word), "`{word}` is not said: {said:?}");
        }
        said
    }
}

/// Runs the binary with `arguments` to its end.
pub fn say(arguments: &[&str]) -> Said {
    let mut command = runseal();
    command.args(arguments);
    finish(command)
}

/// Runs `command` to its end, which must come soon.
pub fn finish(command: Command) -> Said {
    Said::of(assert_cmd::Command::from_std(command).timeout(PATIENCE).output().expect("the binary starts"))
}

/// Runs `runseal run FLAGS -- sh -euc SCRIPT` to its end.
pub fn run(flags: &[&str], script: &str) -> Said {
    let mut arguments = vec!["run"];
    arguments.extend(flags);
    arguments.extend(["--", "sh", "-euc", script]);
    say(&arguments)
}

/// The state of live run `id` as `status --json` shows it.
pub fn status(id: &str) -> Option<Value> {
    let said = say(&["status", "--json", id]);
    let list: Value = serde_json::from_str(&said.out).ok()?;
    list.get(0).cloned()
}

/// The phase a live run is in.
pub fn phase(id: &str) -> Option<String> {
    Some(status(id)?["report"]["phases"].as_array()?.last()?["phase"].as_str()?.to_owned())
}

/// Directory with the state of a run of root.
pub fn state_dir(id: &str) -> PathBuf {
    Path::new("/run/runseal/@runs").join(id)
}

/// Whether anything is mounted below `path`, as this process sees it.
pub fn mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|target| Path::new(target).starts_with(path)))
}

/// Whether the process exists and is not a zombie.
pub fn lives(process: impl std::fmt::Display) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X')))
}

/// Processes whose command line contains `word`.
pub fn processes_with(word: &str) -> Vec<i32> {
    let numbers = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let number = entry.ok()?.file_name().to_str()?.parse::<i32>().ok()?;
        let line = fs::read(format!("/proc/{number}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(word).then_some(number)
    });
    numbers.filter(|&number| lives(number)).collect()
}

/// Sends a signal.
pub fn send(process: i32, signal: Signal) {
    kill(Pid::from_raw(process), signal).expect("the process lives");
}

/// A run that is going on; killed on drop.
pub struct Live {
    /// Name of the run.
    pub id: String,
    child: Option<Child>,
}

impl Live {
    /// Starts a run whose script calls `ready` when the test may go on.
    pub fn start(dir: &Path, flags: &[&str], script: &str) -> Self {
        Self::start_with(runseal(), dir, flags, script)
    }

    /// The same with another way to call the binary.
    pub fn start_with(mut launcher: Command, dir: &Path, flags: &[&str], script: &str) -> Self {
        let id = fresh_id();
        let flag = dir.join(format!("{id}.ready"));
        let script = format!("ready() {{ : >'{}'; }}\n{script}", flag.display());
        launcher.args(["run", "--run-id", &id]).args(flags).args(["--", "sh", "-euc", &script]);
        launcher.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut live = Self { id, child: Some(launcher.spawn().expect("the binary starts")) };
        let mut ended = false;
        wait_until("the command is ready", || {
            ended = live.ended();
            ended || flag.exists()
        });
        assert!(!ended || flag.exists(), "the run ended before it was ready: {:?}", live.end());
        live
    }

    /// Whether it is over.
    pub fn ended(&mut self) -> bool {
        self.child.as_mut().expect("not collected").try_wait().expect("wait").is_some()
    }

    /// Process id of the supervisor.
    pub fn supervisor(&self) -> i32 {
        self.child.as_ref().expect("not collected").id() as i32
    }

    /// Process id of the sealed process.
    pub fn sealed(&self) -> i32 {
        let mut sealed = None;
        wait_until("the sealed process is known", || {
            sealed = status(&self.id).and_then(|run| run["state"]["sealed"].as_i64());
            sealed.is_some()
        });
        sealed.expect("known") as i32
    }

    /// Waits for `phase`.
    pub fn wait_for(&self, wanted: &str) {
        wait_until(wanted, || phase(&self.id).as_deref() == Some(wanted));
    }

    /// Waits for the end.
    pub fn end(mut self) -> Said {
        wait_until("the run ends", || self.ended());
        Said::of(self.child.take().expect("not collected").wait_with_output().expect("wait"))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A path as a flag.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
