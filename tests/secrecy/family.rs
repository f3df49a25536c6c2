//! A run under observation: supervisor, sealed process and command, with a gate at which the command waits.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait_until;

/// A running family; killed on drop.
pub struct Family {
    supervisor: Option<Child>,
    /// The process that holds the key.
    pub sealed: i32,
    /// Name of the run.
    pub id: String,
    gate: PathBuf,
}

impl Family {
    /// Starts `runseal run` with `arguments` and the shell script `script`, and returns when the script reaches
    /// `wait_at_gate`, which it calls like a command.
    pub fn start(folder: &Path, arguments: &[&str], script: &str) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_runseal")), folder, arguments, script)
    }

    /// The same with another way to call the binary: `launcher` gets the arguments of `runseal` appended.
    pub fn start_as(mut launcher: Command, folder: &Path, arguments: &[&str], script: &str) -> Self {
        let id = format!("secrecy-{}", crate::canary("run"));
        let gate = folder.join(format!("gate-{id}"));
        let script = format!(
            "wait_at_gate() {{ : >'{0}.reached'; while [ ! -e '{0}.open' ]; do sleep 0.05; done; }}\n{script}",
            gate.display()
        );
        // The gate is a file of this machine.
        launcher.args(["run", "--tmp=host", "--run-id", &id]).args(arguments).args(["--", "sh", "-euc", &script]);
        let supervisor = launcher
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut family = Self { supervisor: Some(supervisor), sealed: 0, id, gate };
        let reached = family.gate.with_extension("reached");
        let mut ended = false;
        wait_until("the command reaches the gate", || {
            ended = family.child().try_wait().expect("wait").is_some();
            ended || reached.exists()
        });
        if ended {
            let output = family.output();
            panic!("the run ended before its gate: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        family.sealed = *children(family.supervisor()).first().expect("the supervisor has a child");
        family
    }

    /// The process id of the supervisor.
    pub fn supervisor(&self) -> i32 {
        i32::try_from(self.supervisor.as_ref().expect("still running").id()).expect("process ids fit")
    }

    /// Lets the command go on and waits for the end of the run.
    pub fn finish(mut self) -> Output {
        self.open_gate();
        wait_until("the run ends", || self.child().try_wait().expect("wait").is_some());
        self.output()
    }

    /// Lets the command go on.
    pub fn open_gate(&self) {
        fs::write(self.gate.with_extension("open"), "").expect("the gate opens");
    }

    /// Waits for the end without opening the gate.
    pub fn outcome(mut self) -> Output {
        wait_until("the run ends", || self.child().try_wait().expect("wait").is_some());
        self.output()
    }

    /// Directory with the state of the run.
    pub fn state(&self) -> PathBuf {
        Path::new("/run/runseal/@runs").join(&self.id)
    }

    fn child(&mut self) -> &mut Child {
        self.supervisor.as_mut().expect("still running")
    }

    fn output(&mut self) -> Output {
        self.supervisor.take().expect("still running").wait_with_output().expect("wait")
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        let Some(mut supervisor) = self.supervisor.take() else { return };
        let below = descendants(i32::try_from(supervisor.id()).expect("process ids fit"));
        let _ = supervisor.kill();
        let _ = supervisor.wait();
        for process in below {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

/// `kill -9` of one process.
pub fn slay(process: i32) {
    kill(Pid::from_raw(process), Signal::SIGKILL).expect("the process lives");
}

/// Direct children.
pub fn children(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|process| parent_of(*process) == Some(parent)).collect()
}

/// Children, their children, and so on.
pub fn descendants(ancestor: i32) -> Vec<i32> {
    let mut found = children(ancestor);
    let mut at = 0;
    while at < found.len() {
        let more = children(found[at]);
        found.extend(more);
        at += 1;
    }
    found
}

/// Whether the process exists and is not a zombie.
pub fn lives(process: i32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X')))
}

/// Exit code, or 128 + signal, as a shell shows it.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default())
}

/// Field 4 of proc_pid_stat(5), behind the name in parentheses.
fn parent_of(process: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}
