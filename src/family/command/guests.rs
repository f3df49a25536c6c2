//! Programs that `runseal exec` brings into a run: started, waited for and ended by its PID 1.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::family::{
    ExecOrder, Reply,
    command::{self, Surroundings},
};
use crate::units::exit::Exit;

/// How long programs whose client is gone may take to end by themselves.
const GRACE: Duration = Duration::from_secs(2);
/// What ends with the command has this exit status.
const KILLED: u8 = Exit::by_signal(Signal::SIGKILL as i32);

/// The guests of a run that are running.
#[derive(Clone, Default)]
pub struct Guests {
    running: Arc<Mutex<HashMap<Pid, oneshot::Sender<Reply>>>>,
}

impl Guests {
    /// Starts what the client asks for; it gets its reply when that has ended. If the client goes, so does the guest.
    pub fn admit(&self, order: ExecOrder, surroundings: Surroundings<'_>, client: oneshot::Sender<Reply>) {
        let ExecOrder { argv, terminal, streams } = order;
        let Ok(streams) = streams.try_into() else {
            let _ = client.send(Reply::refused("bad request: three descriptors are to come with it"));
            return;
        };
        match command::start_beside(&argv, surroundings, streams, terminal.as_deref()) {
            Ok(guest) => self.watch(guest, client),
            Err(error) => {
                let status = status_of(&error);
                let _ = client.send(Reply { status: Some(status), ..Reply::refused(error.to_string()) });
            }
        }
    }

    fn watch(&self, guest: Pid, mut client: oneshot::Sender<Reply>) {
        let (ended, end) = oneshot::channel();
        self.running.lock().insert(guest, ended);
        tokio::spawn(async move {
            tokio::select! {
                reply = end => {
                    let _ = client.send(reply.unwrap_or_else(|_| Reply::refused("the run is ending")));
                }
                () = client.closed() => {
                    signal_session(guest, Signal::SIGHUP);
                    signal_session(guest, Signal::SIGCONT);
                    tokio::time::sleep(GRACE).await;
                    signal_session(guest, Signal::SIGKILL);
                }
            }
        });
    }

    /// Takes the end of a child that may have been one.
    pub fn ended(&self, child: Pid, status: u8) {
        if let Some(waiting) = self.running.lock().remove(&child) {
            let _ = waiting.send(Reply { status: Some(status), ..Reply::done("ended") });
        }
    }

    /// Collects those that have ended, and every other child.
    pub fn collect(&self) {
        command::reap(|child, status| self.ended(child, status));
    }

    /// How many are running.
    pub fn count(&self) -> usize {
        self.running.lock().len()
    }

    /// Tells their clients that everything in the run was ended.
    pub fn dismiss(&self) {
        for (_, waiting) in self.running.lock().drain() {
            let reply = Reply::done("the command of the run has ended, and with it all that ran beside it");
            let _ = waiting.send(Reply { status: Some(KILLED), ..reply });
        }
    }
}

/// Signals every process of the session that `leader` leads, or its process group where /proc is not this namespace's.
fn signal_session(leader: Pid, signal: Signal) {
    if fs::read_link("/proc/self").is_ok_and(|own| own == Path::new(&std::process::id().to_string())) {
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let number = process.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|_| session_of(&process.path()) == Some(leader.as_raw())) {
                let _ = kill(Pid::from_raw(number), signal);
            }
        }
    } else {
        let _ = killpg(leader, signal);
    }
}

/// Session of a process: the fourth field behind its name (proc_pid_stat(5)).
fn session_of(process: &Path) -> Option<i32> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(3)?.parse().ok()
}

/// As a shell says it.
fn status_of(error: &command::CommandError) -> u8 {
    match error {
        command::CommandError::NotFound { .. } => 127,
        command::CommandError::NotExecutable { .. } => 126,
        command::CommandError::View { .. } | command::CommandError::System { .. } => 71,
    }
}
