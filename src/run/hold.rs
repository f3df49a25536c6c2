//! A run whose results are held, or what its failed command left, until somebody resumes or gives it up.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::error::{PublishError, RunError};
use super::hear::{Memory, Scene, Turn};
use super::life::{Inside, Run};
use super::patience::{Patience, Tick, shown};
use super::publish::{Attempt, Completeness};
use super::seal::Seal;
use crate::family::{Event, Phase, Reply, ResumeOrder, message};
use crate::spec::{OnHold, RunId};
use crate::stage::Stager;

impl Run {
    /// Publishes; if that fails, holds the results until somebody resumes or discards.
    pub(super) async fn publish_or_hold(&mut self, inside: &Inside<'_>) -> Result<Completeness, RunError> {
        let mut waiting: Option<oneshot::Sender<Reply>> = None;
        let mut attempt = self.publish(inside).await?;
        loop {
            let error = match attempt {
                Attempt::Published(published) => {
                    answer(waiting, published.reply());
                    return Ok(published);
                }
                Attempt::Held(error) => error,
            };
            if self.rescue().on_hold == Some(OnHold::Fail) {
                return Err(RunError::Unpublished { held: None, source: error });
            }
            answer(waiting.take(), Reply::refused(format!("still held: {error}")));
            self.hold(&error, &inside.stager);
            match self.wait_held(&Trouble::Unpublished(&error), inside.seal).await? {
                Release::Resumed(order, reply) => {
                    // What visitors left must not write any more.
                    self.clear();
                    waiting = Some(reply);
                    attempt = self.publish_again(inside, *order).await?;
                }
                Release::Discarded => return Err(RunError::Discarded(error)),
                Release::Forgotten(held) => return Err(RunError::Unpublished { held: Some(held), source: error }),
            }
        }
    }

    /// Says why the results are held, and what can be done.
    pub(super) fn hold(&self, error: &PublishError, stager: &Stager) {
        let id = &self.spec.id;
        let remains = stager.remains();
        self.desk.journal.record(Event::Left { remains: remains.clone() });
        self.desk.journal.record(Event::HeldBecause { problem: error.to_string() });
        self.desk.phase(Phase::Held);
        message::warn(format_args!("the results could not be published: {error}"));
        message::warn(format_args!("run {id} is held: its results stay in the sealed scratch as long as this process"));
        message::warn(format_args!("  when the cause is gone:  runseal resume {id}"));
        if error.is_about_credentials() {
            message::warn(format_args!(
                "  with new credentials in this shell:  runseal resume --credentials-from-environment {id}"
            ));
        }
        message::warn(format_args!("  to give the results up:  runseal end --discard {id}"));
        if let Some(remains) = remains {
            message::warn(format_args!("run {id}: {remains}"));
            message::warn(format_args!(
                "  to give the results up and remove those too:  runseal end --discard --remove-published {id}"
            ));
        }
    }

    /// Waits until somebody resumes or discards, as long as `--on-hold` allows.
    async fn wait_held(&mut self, trouble: &Trouble<'_>, seal: &Seal) -> Result<Release, RunError> {
        let (scene, mut memory) = (Scene::Held { trouble, seal }, Memory::default());
        let mut patience = Patience::new(self.rescue().on_hold);
        let mut children = signal(SignalKind::child()).ok();
        self.say_limit(&patience);
        loop {
            // A visitor may have ended before anybody listened.
            self.guests.collect();
            let next = async {
                tokio::select! {
                    () = one_of(&mut children) => None,
                    tick = patience.tick() => Some(tick),
                }
            };
            match self.hear(&scene, &mut memory, next).await? {
                Turn::Done(None) => {}
                // Somebody is at work in it.
                Turn::Done(Some(Tick::Over(_))) if self.guests.count() > 0 => {
                    patience = Patience::new(self.rescue().on_hold);
                }
                Turn::Done(Some(Tick::Over(limit))) => return Ok(Release::Forgotten(limit)),
                Turn::Done(Some(Tick::Remind(since, left))) => self.remind(trouble, since, left),
                Turn::Resumed(order, reply) => return Ok(Release::Resumed(order, reply)),
                Turn::Left => return Ok(Release::Discarded),
                Turn::More => {
                    // The terminal may have closed, and nobody be left to see what is said there.
                    let limit = patience.limit();
                    patience.look();
                    if patience.limit() != limit {
                        self.say_limit(&patience);
                    }
                }
            }
        }
    }

    fn say_limit(&self, patience: &Patience) {
        if let Some(limit) = patience.limit() {
            message::warn(format_args!("  if nobody does within {}, they are discarded (--on-hold)", shown(limit)));
        }
    }

    fn remind(&self, why: &Trouble<'_>, since: Duration, left: Option<Duration>) {
        let id = &self.spec.id;
        let end = left.map(|left| format!("; in {} it is discarded", shown(left))).unwrap_or_default();
        message::warn(format_args!("run {id} is still held, since {}{end}: {}", shown(since), why.reason()));
        message::warn(format_args!("  {}", why.ways(id)));
    }

    /// Holds the scratch of a command that failed, for rescue.
    pub(super) async fn hold_scratch(&mut self, status: u8, seal: &Seal) -> Result<(), RunError> {
        let (id, why) = (self.spec.id.clone(), Trouble::Failed(status));
        self.desk.journal.record(Event::HeldBecause { problem: why.reason() });
        self.desk.phase(Phase::Held);
        message::warn(format_args!(
            "run {id} is held: all the command left stays in the sealed scratch as long as this process"
        ));
        message::warn(format_args!("  to look at it:  runseal exec {id} -- bash"));
        message::warn(format_args!("  to copy from it:  runseal cp {id}:work/FILE DEST"));
        message::warn(format_args!("  to end it:  runseal end --discard {id}"));
        // However it ends, the command had failed.
        self.wait_held(&why, seal).await.map(drop)
    }
}

/// Why a run is held.
pub(super) enum Trouble<'a> {
    /// Its results could not be published.
    Unpublished(&'a PublishError),
    /// Its command ended with this status.
    Failed(u8),
}

impl Trouble<'_> {
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unpublished(error) => error.to_string(),
            Self::Failed(status) => format!("the command ended with status {status}"),
        }
    }

    /// What would be lost.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Unpublished(_) => "results that are not published",
            Self::Failed(_) => "what a failed command left",
        }
    }

    /// What can be done, for people.
    pub(super) fn ways(&self, id: &RunId) -> String {
        let first = match self {
            Self::Unpublished(_) => format!("`runseal resume {id}` publishes it"),
            Self::Failed(_) => {
                format!("`runseal exec {id} -- COMMAND` looks at it, `runseal cp {id}:PATH DEST` copies from it")
            }
        };
        format!("{first}, `runseal end --discard {id}` gives it up")
    }
}

/// One or more children have ended; never without a way to hear of it.
async fn one_of(children: &mut Option<tokio::signal::unix::Signal>) {
    match children {
        Some(children) => {
            children.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// What ends a hold.
enum Release {
    /// Somebody wants another attempt, and an answer.
    Resumed(Box<ResumeOrder>, oneshot::Sender<Reply>),
    /// Somebody gave the results up.
    Discarded,
    /// Nobody came in this time.
    Forgotten(Duration),
}

fn answer(waiting: Option<oneshot::Sender<Reply>>, reply: Reply) {
    if let Some(sender) = waiting {
        // Whoever asked may have left.
        let _ = sender.send(reply);
    }
}
