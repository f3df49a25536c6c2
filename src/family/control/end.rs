//! The end of a run from outside: asked for, then by force, each step in bounded time and told.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::family::{
    FamilyError, Kind, Record, Reply, Request, StateError, Unpublished, control::socket, error::system, message::warn,
    state,
};
use crate::sys::mount::{abort_fuse_connection, mount_table, mount_table_of};
use crate::sys::own_mount::{connection_of, detach_stale};
use crate::sys::process::{self, ProcessStat, is_readable};

/// How long a run may take to answer anything.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long one that answers may take to clear away what it has published, after which it says that it ends.
const REMOVAL_TIME: Duration = Duration::from_secs(600);
/// How long it may take to end once it has said that it will.
const END_TIME: Duration = Duration::from_secs(60);
/// How long killed processes may take to be gone.
const DEATH_TIME: Duration = Duration::from_secs(5);

/// Ends the run or mount called `name`, if what becomes of its `results` allows that. Takes a dead mount away. Returns what is
/// to be said when all is over.
pub fn end(name: &str, results: Unpublished) -> Result<String, FamilyError> {
    let (record, socket) = match state::find(name) {
        Err(StateError::Unknown(_)) => return bury(name),
        found => found?,
    };
    let family = Members::of(&record)?;
    let run = record.run_id.to_string();
    match ask(&socket, &results.into()) {
        Ok(reply) => {
            let message = reply.accepted()?;
            if are_gone(family.first(), END_TIME)? && family.is_gone(DEATH_TIME)? {
                return Ok(message);
            }
            warn(format_args!("run {run} has agreed to end, but does not"));
        }
        Err(_) if family.is_gone(Duration::ZERO)? => {}
        Err(source) if results != Unpublished::Keep || record.loses_nothing() => {
            warn(format_args!("run {run} does not answer ({source})"))
        }
        Err(source) => {
            let condition = condition(&record).map(|condition| format!(" ({condition})")).unwrap_or_default();
            warn(format_args!("`runseal end --discard {run}` kills it{condition}; its results are lost then"));
            return Err(FamilyError::Unreachable { run, source });
        }
    }
    family.kill(&record)?;
    state::clean(&record.run_id)?;
    Ok("ended by force".to_owned())
}

/// Waits for the answer as long as the run answers other questions: it may clear away what it has published.
fn ask(path: &Path, request: &Request) -> io::Result<Reply> {
    let stream = socket::send(path, request)?;
    let deadline = Instant::now() + REMOVAL_TIME;
    let is_alive = || socket::ask(path, &Request::Status, Some(ANSWER_TIME)).is_ok();
    loop {
        match socket::reply(stream.try_clone()?, Some(ANSWER_TIME)) {
            Err(error) if is_late(&error) && Instant::now() < deadline && is_alive() => {}
            answer => return answer,
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Takes away the dead mount that `name` means.
fn bury(name: &str) -> Result<String, FamilyError> {
    if let Some(record) = state::survey()?.dead.iter().find(|record| record.is_called(name)) {
        state::clean(&record.run_id)?;
    } else if !(name.contains('/') && detach_stale(Path::new(name)).map_err(system("detaching a dead mount"))?) {
        return Err(StateError::Unknown(name.to_owned()).into());
    }
    Ok("was dead; its mount is taken away".to_owned())
}

/// What keeps a run from answering, as far as its processes show it.
pub fn condition(record: &Record) -> Option<String> {
    let processes = [("supervisor", Some(record.supervisor)), ("sealed process", record.sealed)];
    processes.into_iter().find_map(|(what, id)| {
        let id = id.filter(|&id| record.is_member(id))?;
        match ProcessStat::of(id)?.state {
            'T' | 't' => Some(format!("its {what} is stopped: kill -CONT {id}")),
            'D' => Some(format!("its {what}, {id}, waits in the kernel for {}", waits_for(id))),
            _ => None,
        }
    })
}

fn waits_for(process: u32) -> String {
    let place = std::fs::read_to_string(format!("/proc/{process}/wchan")).unwrap_or_default();
    if ["", "0"].contains(&&*place) { "something it does not show".to_owned() } else { place }
}

/// Processes of a run, held so that their ids cannot come to mean others.
type Member = (u32, OwnedFd);

/// All of them, the sealed one first: the other notices its end, and cleans up.
struct Members(Vec<Member>);

impl Members {
    fn of(record: &Record) -> Result<Self, FamilyError> {
        let mut members = Vec::new();
        for id in [record.sealed, Some(record.supervisor)].into_iter().flatten() {
            match process::watch(Pid::from_raw(id as i32)) {
                // Looked at while it is held: if this is the process of the run, it stays so.
                Ok(held) if record.is_member(id) => members.push((id, held)),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                Err(error) => return Err(system("pidfd_open")(error)),
            }
        }
        Ok(Self(members))
    }

    fn first(&self) -> &[Member] {
        &self.0[..self.0.len().min(1)]
    }

    fn is_gone(&self, patience: Duration) -> Result<bool, FamilyError> {
        are_gone(&self.0, patience)
    }

    /// Kills all, one step after the other until they are gone.
    fn kill(&self, record: &Record) -> Result<(), FamilyError> {
        let run = &record.run_id;
        for members in [self.first(), &self.0] {
            if self.is_gone(Duration::ZERO)? {
                return Ok(());
            }
            let ids: Vec<_> = members.iter().map(|(id, _)| id.to_string()).collect();
            warn(format_args!("killing processes of run {run}: {}", ids.join(", ")));
            members.iter().try_for_each(|(_, member)| kill(member))?;
            self.is_gone(DEATH_TIME)?;
        }
        if self.is_gone(Duration::ZERO)? {
            return Ok(());
        }
        warn(format_args!("run {run} is killed, but not gone: aborting the connection of its file system"));
        if let Err(error) = self.abort(record) {
            warn(format_args!("the connection cannot be aborted: {error}"));
        }
        if self.is_gone(DEATH_TIME)? {
            return Ok(());
        }
        Err(FamilyError::Undying { run: run.to_string(), processes: self.describe() })
    }

    /// Callers that wait for the file system get an error then. The number of the connection is looked up now, in the
    /// mounts that the run or this process sees: it may be used again once the mount is gone.
    fn abort(&self, record: &Record) -> io::Result<()> {
        let tables = self.0.iter().map(|(id, _)| mount_table_of(*id));
        let tables = tables.chain((record.kind == Kind::Mount).then(mount_table));
        let connection = tables.flatten().find_map(|table| connection_of(&table, &record.mountpoint));
        connection.map_or(Err(io::ErrorKind::NotFound.into()), abort_fuse_connection)
    }

    fn describe(&self) -> String {
        let alive = self.0.iter().filter_map(|(id, _)| {
            let ProcessStat { name, state, .. } = ProcessStat::of(*id)?;
            Some(format!("{id} ({name}, state {state}, in {})", waits_for(*id)))
        });
        alive.collect::<Vec<_>>().join(", ")
    }
}

/// Waits for the end of processes, at most for `patience`.
fn are_gone(members: &[Member], patience: Duration) -> Result<bool, FamilyError> {
    let deadline = Instant::now() + patience;
    for (_, member) in members {
        if !is_readable(member, deadline).map_err(system("waiting for a process"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn kill(member: &OwnedFd) -> Result<(), FamilyError> {
    match process::signal(member, Signal::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(Errno::ESRCH as i32) => {
            Err(system("killing a process of the run")(error))
        }
        _ => Ok(()),
    }
}
