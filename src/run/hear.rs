//! How a run hears orders while something lasts. What [`decide`] answers takes effect here, and nowhere else.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::decide::{Ask, Break, Cause, Decision, Doing, Insistence, Refusal, Results, Sender, Stake, Warning, decide};
use super::error::RunError;
use super::flush;
use super::hold::Trouble;
use super::life::Run;
use super::seal::Seal;
use crate::family::{CopyOrder, FamilyError, Order, Reply, Request, ResumeOrder, message};
use crate::stage;
use crate::sys::path::shown;
use crate::units::ByteSize;

/// How long a command may take to end after `runseal end --discard`.
const GRACE: Duration = Duration::from_secs(10);
/// What is done while the command runs.
pub(super) const COMMAND: &str = "the command was running";

/// What lasts while orders are heard, and what it takes to obey them.
pub(super) enum Scene<'a> {
    /// Some work that ends by itself.
    Work { doing: &'static str, stake: Stake },
    /// A command. In a session of its own, signals of the terminal do not reach it.
    Command { command: Pid, apart: bool, seal: &'a Seal },
    /// A mount.
    Serving { results: Results, seal: &'a Seal },
    /// What is held, and why.
    Held { trouble: &'a Trouble<'a>, seal: &'a Seal },
}

/// What was heard before, in the same scene.
#[derive(Default)]
pub(super) struct Memory {
    /// When the terminal asked to end it.
    asked: Option<Instant>,
    /// Whether somebody has asked the command to end.
    insists: bool,
    /// Until when the command has to end.
    deadline: Option<Instant>,
}

impl Memory {
    /// Ready when the command has not ended in time.
    async fn overdue(&self) {
        match self.deadline {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// How a scene ends.
pub(super) enum Turn<T> {
    /// The work is done.
    Done(T),
    /// It goes on, after an order: the terminal may have closed.
    More,
    /// Somebody wants another attempt to publish, and an answer.
    Resumed(Box<ResumeOrder>, oneshot::Sender<Reply>),
    /// It is over, in good order.
    Left,
}

impl Run {
    /// Does `work`, unless signals or an order end it first: any signal that asks to, or, with results at stake, only
    /// somebody who insists.
    pub(super) async fn guard<T>(
        &mut self,
        doing: &'static str,
        stake: Stake,
        work: impl Future<Output = T>,
    ) -> Result<T, RunError> {
        match self.hear(&Scene::Work { doing, stake }, &mut Memory::default(), work).await? {
            Turn::Done(value) => Ok(value),
            // Nothing but an end leaves work that is not done.
            Turn::More | Turn::Resumed(..) | Turn::Left => Err(FamilyError::Ended { doing }.into()),
        }
    }

    /// Does `work`, and obeys orders until it is done or one of them ends the scene.
    pub(super) async fn hear<T>(
        &mut self,
        scene: &Scene<'_>,
        memory: &mut Memory,
        work: impl Future<Output = T>,
    ) -> Result<Turn<T>, RunError> {
        let mut work = std::pin::pin!(work);
        loop {
            let order = tokio::select! {
                done = &mut work => match memory.deadline {
                    None => return Ok(Turn::Done(done)),
                    Some(_) => return Err(FamilyError::Ended { doing: COMMAND }.into()),
                },
                () = memory.overdue() => return Err(FamilyError::Ended { doing: COMMAND }.into()),
                order = self.desk.next() => order,
            };
            if let Some(end) = self.obey(scene, memory, order)? {
                return Ok(end);
            }
        }
    }

    /// Answers how the scene ends, if it does.
    fn obey<T>(&mut self, scene: &Scene<'_>, memory: &mut Memory, order: Order) -> Result<Option<Turn<T>>, RunError> {
        let decision = decide(self.doing(scene, memory), scene.ask(&order, memory));
        match (decision, order) {
            (Decision::Refuse(why), Order::Request(_, client)) => {
                let _ = client.send(Reply::refused(self.refusal(why, scene)));
            }
            (Decision::Warn(warning), Order::Signal { signal, .. }) => self.warn(warning, signal, scene, memory),
            (Decision::PassOn(insistence), Order::Signal { signal, from_terminal }) => {
                memory.insists = insistence == Insistence::Again;
                scene.pass_on(signal, from_terminal);
            }
            (Decision::Terminate, Order::Request(_, client)) => {
                memory.deadline = Some(Instant::now() + GRACE);
                scene.terminate();
                let _ = client.send(Reply::done("ending; the results of this run are discarded"));
            }
            (Decision::Admit, Order::Request(request, client)) => self.admit(request, client, scene),
            (Decision::Publish, Order::Request(Request::Resume(order), client)) => {
                return Ok(Some(Turn::Resumed(Box::new(order), client)));
            }
            (Decision::Leave, order) => {
                self.take_leave(order, scene);
                return Ok(Some(Turn::Left));
            }
            (Decision::Break(how), order) => {
                self.take_leave(order, scene);
                return Err(scene.broken_off(how).into());
            }
            _ => {}
        }
        Ok(matches!(scene, Scene::Held { .. }).then_some(Turn::More))
    }

    fn doing(&self, scene: &Scene<'_>, memory: &Memory) -> Doing {
        match scene {
            Scene::Work { stake, .. } => Doing::Work(*stake),
            Scene::Command { .. } if memory.insists => Doing::Command(Insistence::Again),
            Scene::Command { .. } => Doing::Command(Insistence::First),
            Scene::Serving { results, .. } => Doing::Serving(*results),
            Scene::Held { trouble: Trouble::Failed(_), .. } => Doing::Held(Cause::Failed),
            Scene::Held { .. } if self.guests.count() > 0 => Doing::Held(Cause::Visited),
            Scene::Held { .. } => Doing::Held(Cause::Unpublished),
        }
    }

    /// Whoever has ordered the end hears of it when it is done, or now.
    fn take_leave(&mut self, order: Order, scene: &Scene<'_>) {
        let Order::Request(Request::End { remove_published, .. }, client) = order else { return };
        self.desk.farewell.order(remove_published, client);
        if let Scene::Serving { results, .. } = scene
            && (!remove_published || *results == Results::Never)
        {
            self.desk.farewell.answer("ending");
        }
    }

    /// Starts programs of `runseal exec`, and serves `runseal cp`.
    fn admit(&self, request: Request, client: oneshot::Sender<Reply>, scene: &Scene<'_>) {
        match (request, scene.seal()) {
            (Request::Exec { exec }, _) => self.guests.admit(exec, self.surroundings(), client),
            (Request::Copy { copy }, Some(seal)) => self.copy_out(copy, seal, client),
            _ => {}
        }
    }

    fn copy_out(&self, order: CopyOrder, seal: &Seal, client: oneshot::Sender<Reply>) {
        let CopyOrder { path, bare, archive } = order;
        let Some(archive) = archive.into_iter().next() else {
            let _ = client.send(Reply::refused("bad request: a descriptor is to come with it"));
            return;
        };
        let (scratch, hands_on_rights) = (seal.scratch.clone(), self.hands_on_rights);
        let below: PathBuf = Path::new(&path)
            .components()
            .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
            .collect();
        let mountpoint = self.mountpoint.clone();
        tokio::task::spawn_blocking(move || {
            let flushed = flush::flush_results(&mountpoint, &below, hands_on_rights);
            let reply = match stage::archive(&scratch, &below, bare, BufWriter::new(File::from(archive))) {
                Ok(totals) => {
                    let (files, bytes) = (totals.files, ByteSize(totals.bytes));
                    let gap = flushed.err().map(|error| format!("; {error}")).unwrap_or_default();
                    Reply::done(format!("copied {files} files, {bytes}{gap}"))
                }
                Err(error) => Reply::refused(error.to_string()),
            };
            let _ = client.send(reply);
        });
    }

    fn warn(&self, warning: Warning, signal: Signal, scene: &Scene<'_>, memory: &mut Memory) {
        let doing = scene.text(self.spec.id.as_str());
        match warning {
            Warning::NotThus => {
                message::warn(format_args!("{doing}: {signal} does not end that; `runseal end --discard` does"));
            }
            Warning::TooSoon => {
                message::warn("so soon is no decision; the same again, a moment later, discards the results");
            }
            Warning::OnceMore => {
                memory.asked = Some(Instant::now());
                message::warn(format_args!("{doing}: the same again, a moment later, discards the results"));
            }
        }
    }

    /// For whoever asked.
    fn refusal(&self, why: Refusal, scene: &Scene<'_>) -> String {
        let id = &self.spec.id;
        let doing = scene.text(id.as_str());
        let ways = || scene.trouble().map(|trouble| trouble.ways(id)).unwrap_or_default();
        match why {
            Refusal::NotHeld => format!("nothing is held: {doing}"),
            Refusal::NoVisit => {
                format!("not now, {doing}; it can be done while the command runs, or when the run is held")
            }
            Refusal::Open => format!("a mount needs no such help: it is open below {}", shown(&self.mountpoint)),
            Refusal::NotDiscarded => format!("{doing}; `runseal end --discard` ends the run without results"),
            Refusal::NoResults => "a mount has nothing to resume".to_owned(),
            Refusal::Settled => format!("run {id} has nothing to publish, or has done so"),
            Refusal::Pending => {
                format!("run {id} has results that are not published: publish them, or end it with `discard`")
            }
            Refusal::Held => format!("{doing}: {}", ways()),
            Refusal::Failed => {
                let reason = scene.trouble().map(Trouble::reason).unwrap_or_default();
                format!("{reason}, so nothing of run {id} is published: {}", ways())
            }
            Refusal::Visited => {
                let count = self.guests.count();
                format!("{count} programs of `runseal exec` are running in run {id}; end them, then resume")
            }
        }
    }
}

impl<'a> Scene<'a> {
    fn seal(&self) -> Option<&'a Seal> {
        match self {
            Self::Work { .. } => None,
            Self::Command { seal, .. } | Self::Serving { seal, .. } | Self::Held { seal, .. } => Some(seal),
        }
    }

    fn trouble(&self) -> Option<&'a Trouble<'a>> {
        if let Self::Held { trouble, .. } = self { Some(trouble) } else { None }
    }

    /// What is asked, as the table knows it.
    fn ask(&self, order: &Order, memory: &Memory) -> Ask {
        match order {
            &Order::Signal { signal, from_terminal } => {
                let sender = if from_terminal { Sender::Terminal } else { Sender::Program };
                Ask::Signal { signal, sender, asked: memory.asked.map(|at| at.elapsed()) }
            }
            Order::Request(Request::Status, _) => Ask::Status,
            Order::Request(Request::Resume(_), _) => Ask::Resume,
            Order::Request(Request::Exec { .. } | Request::Copy { .. }, _) => Ask::Visit,
            Order::Request(Request::End { discard: true, .. }, _) => Ask::Discard,
            Order::Request(Request::End { discard: false, .. }, _) => Ask::End,
            Order::MountEnded if self.seal().is_some_and(|seal| seal.mount.is_cut_off()) => Ask::CutOff,
            Order::MountEnded => Ask::Unmounted,
            Order::Orphaned => Ask::Orphaned,
        }
    }

    /// For people: what is being done.
    fn text(&self, run: &str) -> String {
        match self {
            Self::Held { trouble, .. } => format!("run {run} holds {}", trouble.what()),
            scene => scene.activity().to_owned(),
        }
    }

    fn activity(&self) -> &'static str {
        match self {
            Self::Work { doing, .. } => doing,
            Self::Command { .. } => COMMAND,
            Self::Serving { .. } => "the mount served",
            Self::Held { .. } => "the run was held",
        }
    }

    fn broken_off(&self, how: Break) -> FamilyError {
        let doing = self.activity();
        match how {
            Break::Interrupted(signal) => FamilyError::Interrupted { signal, doing },
            Break::Ended => FamilyError::Ended { doing },
            Break::MountLost => FamilyError::MountLost { doing },
            Break::CutOff => FamilyError::CutOff,
        }
    }

    /// What the terminal has sent reaches a command that shares it without us.
    fn pass_on(&self, signal: Signal, from_terminal: bool) {
        let &Self::Command { command, apart, .. } = self else { return };
        // It may have ended just now; then its status tells.
        let _ = match (from_terminal, apart) {
            (false, _) => kill(command, signal),
            (true, true) => killpg(command, signal),
            (true, false) => Ok(()),
        };
    }

    fn terminate(&self) {
        self.pass_on(Signal::SIGTERM, false);
        self.pass_on(Signal::SIGCONT, false);
    }
}
