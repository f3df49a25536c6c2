//! The phases of a sealed run, in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::command::{self, INPUT, OUTPUT, TMP, WORK};
use super::control::{Reply, Request};
use super::desk::{Desk, Order, asks_to_end};
use super::error::{PublishError, RunError, system};
use super::progress::Meter;
use super::report::{Event, Outcome, Phase};
use super::seal::{Room, Seal};
use super::sealed::{beside, make_seal};
use super::{flush, message};
use crate::audit::Trail;
use crate::fuse::MountOptions;
use crate::preflight;
use crate::s3::UploadSettings;
use crate::spec::{KmsKey, RootSpec, RunSpec};
use crate::stage::Stager;

/// How long a command may take to end after `runseal end --discard`.
const GRACE: Duration = Duration::from_secs(10);

/// A sealed run.
pub struct Run {
    /// What to do.
    pub spec: RunSpec,
    /// Private mountpoint.
    pub mountpoint: PathBuf,
    /// Whether the command must not have the capabilities of this process.
    pub drop_capabilities: bool,
    /// Orders and events.
    pub desk: Desk,
}

impl Run {
    /// From the first check to the destruction of the key.
    pub async fn work(mut self) -> Result<(Outcome, u8), RunError> {
        let (cleared, room) = self.preflight().await?;
        let seal = self.seal(room).await?;
        let result = self.in_scratch(cleared, &seal).await;
        // On every way out: nothing of the run may outlive the key.
        command::kill_everything();
        self.desk.phase(Phase::End);
        seal.close(&self.desk.journal).await;
        result
    }

    async fn preflight(&mut self) -> Result<(preflight::Cleared, Room), RunError> {
        self.desk.phase(Phase::Preflight);
        let spec = self.spec.clone();
        let check = beside(move || {
            let room = Room::find(&spec.store)?;
            let request = preflight::Request {
                run: &spec.id,
                inputs: &spec.inputs,
                output: spec.output.as_ref(),
                uploads: &UploadSettings { overwrite: spec.overwrite, ..UploadSettings::default() },
                run_key: spec.aws.run_key.as_ref().map(KmsKey::as_str),
                explain: false,
                space: room.size,
                trail: &Trail::off(),
            };
            let cleared = preflight::check(&request, None)?;
            Ok((cleared, room))
        });
        self.desk.guard("checking inputs and output", 0, check).await?
    }

    async fn seal(&mut self, room: Room) -> Result<Seal, RunError> {
        self.desk.phase(Phase::Seal);
        // "Other" can only be those of the run: nobody else sees the mount.
        let options = MountOptions { allow_other: true, ..MountOptions::default() };
        make_seal(room, &self.spec.store, RootSpec::default(), self.mountpoint.clone(), options, &self.desk).await
    }

    async fn in_scratch(&mut self, cleared: preflight::Cleared, seal: &Seal) -> Result<(Outcome, u8), RunError> {
        let input = seal.make_dir(INPUT, 0o755)?;
        // What is published takes its bits from here: those a directory made by the user would have.
        let output = seal.make_dir(OUTPUT, 0o777 & !self.desk.inherited.umask.bits())?;
        seal.make_dir(WORK, 0o755)?;
        seal.make_dir(TMP, 0o1777)?;
        let meter = Arc::new(Meter::new(self.desk.voice));
        let trail = Arc::new(Trail::off());
        let stager = Arc::new(Stager::new(cleared, seal.scratch.clone(), self.spec.id.clone(), meter, trail));
        self.desk.watch(seal);

        if !self.spec.inputs.is_empty() {
            self.fetch(stager.clone(), input).await?;
        }
        let status = self.command().await?;
        command::kill_everything();
        if status != 0 {
            let lost = if self.spec.output.is_some() { "; nothing was published" } else { "" };
            message::warn(format_args!("the command ended with status {status}{lost}"));
            return Ok((Outcome::CommandFailed, status));
        }
        if self.spec.output.is_none() {
            return Ok((Outcome::Succeeded, 0));
        }
        let failed = seal.mount.failed_writes();
        if failed > 0 {
            message::warn(format_args!(
                "{failed} writes of the command found no room or failed; it saw that at fsync(2) or close(2), if it looked"
            ));
        }
        let stopped = seal.latched().then_some(PublishError::Stopped);
        self.publish_or_hold(stager, output, stopped).await?;
        Ok((Outcome::Published, 0))
    }

    async fn fetch(&mut self, stager: Arc<Stager>, into: u64) -> Result<(), RunError> {
        self.desk.phase(Phase::Fetch);
        let fetched = self.desk.guard("staging the inputs", 0, beside(move || stager.fetch(into, None))).await?;
        let totals = fetched.map_err(RunError::Fetch)?;
        self.desk.journal.record(Event::Staged { totals: serde_json::to_value(totals).unwrap_or_default() });
        Ok(())
    }

    /// Starts the command and waits for it; orders reach it as signals.
    async fn command(&mut self) -> Result<u8, RunError> {
        let mut children = signal(SignalKind::child()).map_err(system("watching children"))?;
        self.desk.phase(Phase::Command);
        let RunSpec { command: argv, id, .. } = &self.spec;
        let pid = command::start(argv, &self.mountpoint, id.as_str(), self.desk.inherited, self.drop_capabilities)?;
        let mut running = Running { pid, interrupts: 0, deadline: None };
        loop {
            tokio::select! {
                _ = children.recv() => match command::reap(pid) {
                    Some(_) if running.deadline.is_some() => return Err(RunError::Ended { doing: Running::DOING }),
                    Some(status) => {
                        self.desk.journal.record(Event::CommandEnded { status });
                        return Ok(status);
                    }
                    None => {}
                },
                () = running.overdue() => return Err(RunError::Ended { doing: Running::DOING }),
                order = self.desk.next() => running.take(order, &self.desk)?,
            }
        }
    }

    /// Publishes, unless something is known to be wrong with the results; if that fails, holds them until somebody
    /// resumes or discards.
    async fn publish_or_hold(
        &mut self,
        stager: Arc<Stager>,
        from: u64,
        mut wrong: Option<PublishError>,
    ) -> Result<(), RunError> {
        let mut waiting: Option<oneshot::Sender<Reply>> = None;
        loop {
            let published = match wrong.take() {
                Some(error) => Err(error),
                None => self.publish(stager.clone(), from).await?,
            };
            let error = match published {
                Ok(()) => {
                    self.answer(&mut waiting, Reply::done("published"));
                    return Ok(());
                }
                Err(error) => error,
            };
            self.answer(&mut waiting, Reply::refused(format!("still held: {error}")));
            self.hold(&error);
            match self.wait_held().await {
                Some(reply) => waiting = Some(reply),
                None => return Err(RunError::Discarded(error)),
            }
        }
    }

    async fn publish(&mut self, stager: Arc<Stager>, from: u64) -> Result<Result<(), PublishError>, RunError> {
        self.desk.phase(Phase::Publish);
        let (output, journal) = (self.mountpoint.join(OUTPUT), self.desk.journal.clone());
        let in_user_namespace = self.drop_capabilities;
        let work = beside(move || {
            flush::flush_results(&output, in_user_namespace)?;
            let totals = stager.publish(from, None)?;
            if totals.skipped > 0 {
                message::warn(format_args!(
                    "results that are neither files, directories nor links were left out: {} (the manifest names them)",
                    totals.skipped
                ));
            }
            journal.record(Event::Published { totals: serde_json::to_value(totals).unwrap_or_default() });
            Ok(())
        });
        self.desk.guard("publishing the results", 1, work).await
    }

    fn hold(&self, error: &PublishError) {
        let id = &self.spec.id;
        self.desk.journal.record(Event::HeldBecause { problem: error.to_string() });
        self.desk.phase(Phase::Held);
        message::warn(format_args!("the results could not be published: {error}"));
        message::warn(format_args!("run {id} is held: its results stay in the sealed scratch as long as this process"));
        message::warn(format_args!("  when the cause is gone:  runseal resume {id}"));
        message::warn(format_args!("  to give the results up:  runseal end --discard {id}"));
    }

    /// Waits until somebody resumes (and wants an answer), or discards.
    async fn wait_held(&mut self) -> Option<oneshot::Sender<Reply>> {
        let mut warned = false;
        loop {
            match self.desk.next().await {
                Order::Request(Request::Resume, reply) => return Some(reply),
                Order::Request(Request::End { discard: true }, reply) => {
                    let _ = reply.send(Reply::done("discarded"));
                    return None;
                }
                Order::Request(_, reply) => {
                    let id = &self.spec.id;
                    let _ = reply.send(Reply::refused(format!(
                        "run {id} holds results that are not published: `runseal resume {id}` publishes them, `runseal \
                         end --discard {id}` gives them up"
                    )));
                }
                Order::Signal { signal, .. } if asks_to_end(signal) && warned => return None,
                Order::Signal { signal, .. } if asks_to_end(signal) => {
                    warned = true;
                    message::warn("the results are not published yet; the same signal again discards them");
                }
                Order::Signal { .. } => {}
                // Results are read from the scratch itself: publishing does not need the mount.
                Order::MountEnded => {}
                Order::Orphaned => return None,
            }
        }
    }

    fn answer(&self, waiting: &mut Option<oneshot::Sender<Reply>>, reply: Reply) {
        if let Some(sender) = waiting.take() {
            // Whoever asked may have left.
            let _ = sender.send(reply);
        }
    }
}

/// The command while it runs.
struct Running {
    pid: Pid,
    interrupts: u32,
    /// Set once its end was asked for.
    deadline: Option<Instant>,
}

impl Running {
    const DOING: &str = "the command was running";

    /// Ready when the command has not ended in time.
    async fn overdue(&self) {
        match self.deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, order: Order, desk: &Desk) -> Result<(), RunError> {
        match order {
            Order::Signal { signal, from_terminal } => {
                self.interrupts += u32::from(asks_to_end(signal));
                if self.interrupts > 1 {
                    return Err(RunError::Interrupted { signal, doing: Self::DOING });
                }
                if !from_terminal {
                    self.send(signal);
                }
            }
            Order::Request(Request::End { discard: true }, reply) => {
                self.send(Signal::SIGTERM);
                self.send(Signal::SIGCONT);
                self.deadline = Some(Instant::now() + GRACE);
                let _ = reply.send(Reply::done("ending; the results of this run are discarded"));
            }
            order => desk.decline(order, Self::DOING)?,
        }
        Ok(())
    }

    fn send(&self, signal: Signal) {
        // It may have ended just now; then its status tells.
        let _ = kill(self.pid, signal);
    }
}
