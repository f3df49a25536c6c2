//! Results on their way out: attempts to publish, and what happens to a run whose results are held.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::error::{PublishError, RunError};
use super::flush;
use super::life::{DISCARDED, Run, counted};
use super::losses::{self, Missing};
use super::patience::{Patience, Tick, shown};
use super::preflight::check_output;
use super::seal::Seal;
use crate::aws::{CallError, Credentials};
use crate::family::command::OUTPUT;
use crate::family::control::desk::{Insistence, Order, Stake};
use crate::family::control::wire::Event;
use crate::family::control::wire::{Reply, Request, ResumeOrder};
use crate::family::error::PUBLISHING;
use crate::family::message;
use crate::family::process::sealed::{CLEARANCE, beside};
use crate::family::state::facts::LossFacts;
use crate::family::state::facts::{AwsFacts, Phase};
use crate::preflight;
use crate::spec::{DataSpec, Location, OnHold, ResumeSpec, RunId};
use crate::stage::Stager;
use crate::sys::mount::mount_table;

impl Run {
    /// Publishes; if that fails, holds the results until somebody resumes or discards.
    pub(super) async fn publish_or_hold(
        &mut self,
        stager: Arc<Stager>,
        from: u64,
        seal: &Seal,
    ) -> Result<Published, RunError> {
        let mut waiting: Option<oneshot::Sender<Reply>> = None;
        let mut published = self.publish(stager.clone(), from, seal, &ResumeSpec::default()).await?;
        loop {
            let error = match published {
                Ok(published) => {
                    answer(waiting, published.reply());
                    return Ok(published);
                }
                Err(error) => error,
            };
            if self.rescue().on_hold == Some(OnHold::Fail) {
                return Err(RunError::Unpublished { held: None, source: error });
            }
            answer(waiting.take(), Reply::refused(format!("still held: {error}")));
            self.hold(&error, &stager);
            match self.wait_held(&Trouble::Unpublished(&error), seal).await {
                Release::Resumed(order, reply) => {
                    // What visitors left must not write any more.
                    self.clear();
                    waiting = Some(reply);
                    published = self.publish_again(stager.clone(), from, seal, *order).await?;
                }
                Release::Discarded => return Err(RunError::Discarded(error)),
                Release::Forgotten(held) => return Err(RunError::Unpublished { held: Some(held), source: error }),
            }
        }
    }

    /// Another attempt, as whoever resumes has ordered it.
    pub(super) async fn publish_again(
        &mut self,
        stager: Arc<Stager>,
        from: u64,
        seal: &Seal,
        order: ResumeOrder,
    ) -> Result<Result<Published, PublishError>, RunError> {
        let ResumeOrder { credentials, spec: resume } = order;
        let data = match self.changed_by(&resume) {
            Ok(data) => data,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(source) = self.reconnect(&data, credentials).await? {
            return Ok(Err(PublishError::Aws { source }));
        }
        match self.redirect(data, stager.clone()).await? {
            Ok(()) => self.publish(stager, from, seal, &resume).await,
            Err(error) => Ok(Err(error)),
        }
    }

    /// Where results are to go from now on, and how.
    fn changed_by(&self, resume: &ResumeSpec) -> Result<DataSpec, PublishError> {
        let mut data = self.spec.data.clone();
        data.overwrite |= resume.overwrite;
        if let Some(output) = &resume.output {
            data.output = Some(output.clone());
        }
        if let Some(Location::Path(path)) = &resume.output {
            if path.starts_with(&self.mountpoint) {
                return Err(PublishError::InScratch(path.clone()));
            }
            (data.aws.sse, data.aws.sse_kms_key) = (None, None);
        }
        if resume.sse.is_some() || resume.sse_kms_key.is_some() {
            let (sse, key) = (resume.sse, resume.sse_kms_key.clone());
            data.aws = data.aws.with_encryption(sse, key, data.output.as_ref())?;
        }
        Ok(data)
    }

    /// Has results go where `data` says, if that is elsewhere or otherwise than before: then only after the same checks.
    async fn redirect(&mut self, data: DataSpec, stager: Arc<Stager>) -> Result<Result<(), PublishError>, RunError> {
        let encryption = |data: &DataSpec| (data.aws.sse, data.aws.sse_kms_key.clone());
        let moved = data.output != self.spec.data.output;
        if moved || encryption(&data) != encryption(&self.spec.data) {
            let (cloud, trail, new) = (self.cloud.clone(), self.trail.clone(), data.clone());
            let run = self.spec.id.clone();
            let check = beside(move || {
                // What this run has put into the same output is no reason against it; keys of others are still refused.
                let cleared = check_output(&run, &new, new.overwrite || !moved, cloud.as_deref(), &trail)?;
                let encryption = cleared.result_encryption().map(ToString::to_string);
                if let Some((remains, error)) = stager.redirect(cleared, new.overwrite, cloud.as_deref()) {
                    message::warn(format_args!("run {}: {remains}; they could not be removed: {error}", run));
                }
                Ok(encryption)
            });
            match self.desk.guard("checking the output", Stake::Results, check).await? {
                Ok(encryption) => self.note_redirection(&data, encryption),
                Err(report) => return Ok(Err(PublishError::Preflight(report))),
            }
        } else if data.overwrite {
            stager.allow_overwrite();
        }
        self.spec.data = data;
        Ok(Ok(()))
    }

    fn note_redirection(&self, data: &DataSpec, result_encryption: Option<String>) {
        if let Some(output) = data.output.clone() {
            self.desk.journal.record(Event::Redirected { output });
        }
        if let Some(facts) = self.desk.journal.snapshot().aws {
            self.desk.journal.record(Event::Cleared(AwsFacts { result_encryption, ..facts }));
        }
    }

    /// One attempt. An error of publishing holds the run; any other one ends it.
    async fn publish(
        &mut self,
        stager: Arc<Stager>,
        from: u64,
        seal: &Seal,
        resume: &ResumeSpec,
    ) -> Result<Result<Published, PublishError>, RunError> {
        if seal.latched() && !resume.incomplete {
            return Ok(Err(PublishError::Stopped));
        }
        let rules = resume.rules(self.spec.data.rules);
        self.spec.data.rules = rules;
        stager.set_rules(rules);
        self.desk.phase(Phase::Publish);
        let journal = self.desk.journal.clone();
        let hands_on_rights = self.hands_on_rights;
        let (cloud, requests) = (self.cloud.clone(), self.switch.counter());
        let before = self.switch.requests();
        let (scratch, latched, wanted) = (seal.scratch.clone(), seal.latched(), resume.incomplete);
        let policy = self.rescue().lost_writes;
        let (mountpoint, asked) = (self.mountpoint.clone(), self.spec.data.output.is_some());
        let work = beside(move || {
            if let Some(mounted) = mounted_below(&mountpoint.join(OUTPUT)) {
                return Err(PublishError::Covered(mounted));
            }
            flush::flush_results(&mountpoint, Path::new(OUTPUT), hands_on_rights)?;
            journal.record(Event::Lost(LossFacts::of(&scratch)));
            let missing = Missing::against(&scratch, policy);
            match &missing {
                Some(missing) if !wanted => return Err(PublishError::Lost(missing.clone())),
                Some(_) => {}
                None => losses::warn_of_rest(&scratch),
            }
            let flush_all = || flush::flush_results(&mountpoint, Path::new(""), hands_on_rights);
            expect_results(&stager, from, asked, rules.allow_empty, flush_all)?;
            let totals = stager.publish_incomplete(from, cloud.as_deref(), &losses::incomplete(&scratch))?;
            if totals.skipped > 0 {
                message::warn(format_args!(
                    "results that are neither files, directories nor links were left out: {} (the manifest names them)",
                    totals.skipped
                ));
            }
            if totals.listed_only > 0 {
                message::warn(format_args!(
                    "symbolic links are in the manifest only, since objects cannot be links: {} (--dereference uploads \
                     what they lead to)",
                    totals.listed_only
                ));
            }
            if totals.renamed > 0 {
                message::warn(format_args!(
                    "results whose names cannot be keys are below runseal-renamed/: {} (the manifest has their paths)",
                    totals.renamed
                ));
            }
            let requests = requests.load(Ordering::Relaxed) - before;
            let mut totals = counted(totals, requests);
            if let Some(sum) = stager.manifest_sha256() {
                totals["manifest_sha256"] = sum.into();
            }
            journal.record(Event::Published { totals });
            Ok(match missing {
                Some(missing) => Published::Incomplete(missing.to_string()),
                None if latched => Published::Incomplete("writing to the backing failed during the run".to_owned()),
                None => Published::Whole,
            })
        });
        match self.desk.guard(PUBLISHING, Stake::Results, work).await? {
            // A run that holds nothing is no use to anybody; a mount may still be filled.
            Err(PublishError::Empty { elsewhere }) if elsewhere.has_no_files() && self.spec.command().is_some() => {
                let output = self.spec.data.output.as_ref().map(ToString::to_string).unwrap_or_default();
                Err(RunError::NothingToPublish { output })
            }
            published => Ok(published),
        }
    }

    /// Leaves the output: has uploads aborted that will not be completed, removes what is visible there if that was
    /// ordered, and says what stays.
    pub(super) async fn leave(&mut self, stager: Arc<Stager>) {
        self.switch.cut();
        stager.stop();
        let (cloud, abort) = (self.cloud.clone(), stager.clone());
        let abort = beside(move || abort.give_up(cloud.as_deref()));
        if tokio::time::timeout(CLEARANCE, abort).await.is_err() {
            message::warn(
                "publishing did not stop in time: uploads to S3 may not all be aborted (a lifecycle rule with \
                 AbortIncompleteMultipartUpload removes them), and results without a manifest may be in the output",
            );
            return;
        }
        if self.desk.farewell.remove_published {
            let (cloud, remove) = (self.cloud.clone(), stager.clone());
            if let Err(error) = beside(move || remove.remove_remains(cloud.as_deref())).await {
                message::warn(error);
            }
        }
        let remains = stager.remains();
        let stays = remains.as_ref().map(|remains| format!("run {}: {remains}; remove them", self.spec.id));
        self.desk.journal.record(Event::Left { remains });
        match stays {
            None => self.desk.farewell.answer(DISCARDED),
            Some(stays) => {
                message::warn(&stays);
                self.desk.farewell.answer(format!("{DISCARDED}; {stays}"));
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

    /// A new connection for the next attempt: credentials may have been renewed, or come from whoever resumes.
    async fn reconnect(
        &mut self,
        data: &DataSpec,
        credentials: Option<Credentials>,
    ) -> Result<Result<(), CallError>, RunError> {
        if !data.uses_aws() || credentials.is_none() && self.entrusted {
            return Ok(Ok(()));
        }
        self.entrusted |= credentials.is_some();
        let (run, aws, trail) = (self.spec.id.clone(), data.aws.clone(), self.trail.clone());
        let connector = self.switch.connector();
        let connect = beside(move || {
            let cloud = connector.connect(&run, &aws, credentials)?;
            let identity = preflight::identify(&cloud, &trail);
            Ok((cloud, identity))
        });
        Ok(match self.desk.guard("connecting to AWS again", Stake::Results, connect).await? {
            Ok((cloud, identity)) => {
                self.cloud = Some(cloud);
                if let (Some(identity), Some(facts)) = (identity, self.desk.journal.snapshot().aws) {
                    self.desk.journal.record(Event::Cleared(AwsFacts { identity: Some(identity), ..facts }));
                }
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// Waits until somebody resumes or discards, as long as `--on-hold` allows.
    async fn wait_held(&mut self, why: &Trouble<'_>, seal: &Seal) -> Release {
        let mut insistence = Insistence::default();
        let mut patience = Patience::new(self.rescue().on_hold);
        let mut children = signal(SignalKind::child()).ok();
        self.say_limit(&patience);
        // A visitor may have ended before anybody listened.
        self.guests.collect();
        loop {
            let order = tokio::select! {
                order = self.desk.next() => order,
                () = one_of(&mut children) => {
                    self.guests.collect();
                    continue;
                }
                tick = patience.tick() => match tick {
                    // Somebody is at work in it.
                    Tick::Over(_) if self.guests.count() > 0 => {
                        patience = Patience::new(self.rescue().on_hold);
                        continue;
                    }
                    Tick::Over(limit) => return Release::Forgotten(limit),
                    Tick::Remind(since, left) => {
                        self.remind(why, since, left);
                        continue;
                    }
                },
            };
            let Some(order) = self.receive(order, seal) else { continue };
            match order {
                Order::Request(Request::Resume(order), reply) => match self.obstacle(why) {
                    None => return Release::Resumed(Box::new(order), reply),
                    Some(obstacle) => {
                        let _ = reply.send(Reply::refused(obstacle));
                    }
                },
                Order::Request(Request::End { discard: true, remove_published }, reply) => {
                    self.desk.farewell.order(remove_published, reply);
                    return Release::Discarded;
                }
                Order::Request(_, reply) => {
                    let id = &self.spec.id;
                    let ways = why.ways(id);
                    let _ = reply.send(Reply::refused(format!("run {id} holds {}: {ways}", why.what())));
                }
                Order::Signal { signal, from_terminal } => {
                    let doing = format!("run {} holds {}", self.spec.id, why.what());
                    if insistence.hear(signal, from_terminal, std::time::Instant::now(), &doing) {
                        return Release::Discarded;
                    }
                    // The terminal may have closed, and nobody be left to see what is said there.
                    let limit = patience.limit();
                    patience.look();
                    if patience.limit() != limit {
                        self.say_limit(&patience);
                    }
                }
                // Results are read from the scratch itself: publishing does not need the mount.
                Order::MountEnded => {}
                Order::Orphaned => return Release::Discarded,
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

    /// What keeps results from being published now.
    fn obstacle(&self, why: &Trouble<'_>) -> Option<String> {
        let id = &self.spec.id;
        match (why, self.guests.count()) {
            (Trouble::Failed(status), _) => Some(format!(
                "the command ended with status {status}, so nothing of run {id} is published: {}",
                why.ways(id)
            )),
            (Trouble::Unpublished(_), 0) => None,
            (Trouble::Unpublished(_), count) => {
                Some(format!("{count} programs of `runseal exec` are running in run {id}; end them, then resume"))
            }
        }
    }

    /// Holds the scratch of a command that failed, for rescue.
    pub(super) async fn hold_scratch(&mut self, status: u8, seal: &Seal) {
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
        self.wait_held(&why, seal).await;
    }
}

/// Why a run is held.
enum Trouble<'a> {
    /// Its results could not be published.
    Unpublished(&'a PublishError),
    /// Its command ended with this status.
    Failed(u8),
}

impl Trouble<'_> {
    fn reason(&self) -> String {
        match self {
            Self::Unpublished(error) => error.to_string(),
            Self::Failed(status) => format!("the command ended with status {status}"),
        }
    }

    /// What would be lost.
    fn what(&self) -> &'static str {
        match self {
            Self::Unpublished(_) => "results that are not published",
            Self::Failed(_) => "what a failed command left",
        }
    }

    /// What can be done, for people.
    fn ways(&self, id: &RunId) -> String {
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

/// What an attempt that succeeded has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Published {
    /// All as it was written.
    Whole,
    /// As it was there, since somebody wanted it so; with what is missing.
    Incomplete(String),
}

impl Published {
    /// For whoever asked for it.
    pub(super) fn reply(&self) -> Reply {
        match self {
            Self::Whole => Reply::done("published"),
            Self::Incomplete(missing) => {
                Reply { incomplete: true, ..Reply::done(format!("published, but incomplete: {missing}")) }
            }
        }
    }
}

/// Refuses to publish nothing while there is something else, and to publish to nowhere. Sizes of files are known to the
/// kernel alone until `flush_all` has had them written.
fn expect_results<E>(
    stager: &Stager,
    from: u64,
    asked: bool,
    allow_empty: bool,
    flush_all: impl Fn() -> Result<(), E>,
) -> Result<(), PublishError> {
    let results = stager.results(from);
    match (results.is_empty(), asked) {
        (false, false) => Err(PublishError::NoOutput { results }),
        (true, true) if !allow_empty => {
            // Whatever cannot be written is said elsewhere; here it is only about numbers.
            let _ = flush_all();
            Err(PublishError::Empty { elsewhere: stager.elsewhere(from) })
        }
        _ => Ok(()),
    }
}

/// The first place at or below `output` that something is mounted on. Contacts no file system but proc.
fn mounted_below(output: &Path) -> Option<PathBuf> {
    let mounts = mount_table().unwrap_or_default().into_iter().map(|entry| entry.mountpoint);
    mounts.filter(|mountpoint| mountpoint.starts_with(output)).min()
}

fn answer(waiting: Option<oneshot::Sender<Reply>>, reply: Reply) {
    if let Some(sender) = waiting {
        // Whoever asked may have left.
        let _ = sender.send(reply);
    }
}
