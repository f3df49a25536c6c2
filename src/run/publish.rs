//! Results on their way out: attempts to publish them, as ordered first and as whoever resumes wants it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decide::Stake;
use super::error::{PublishError, RunError};
use super::life::{Inside, Run, counted};
use super::losses::{self, Missing};
use super::preflight::check_output;
use super::{cloud, flush};
use crate::aws::Credentials;
use crate::family::{
    AwsFacts, Event, LossFacts, Phase, Reply, ResumeOrder,
    command::OUTPUT,
    error::PUBLISHING,
    message,
    process::sealed::{CLEARANCE, beside},
};
use crate::preflight;
use crate::spec::{DataSpec, Location, ResumeSpec, StagingRules};
use crate::stage::{Stager, Totals};
use crate::sys::mount::mount_table;

/// The answer to `runseal end --discard`.
pub(super) const DISCARDED: &str = "ended; the results of this run are discarded";

/// What an attempt to publish has come to.
pub(super) enum Attempt {
    /// The results are out.
    Published(Completeness),
    /// They are held, for this reason.
    Held(PublishError),
}

/// How much of the results an attempt that succeeded has published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// All as it was written.
    Whole,
    /// As it was there, since somebody wanted it so; with what is missing.
    Lacks(String),
}

impl Completeness {
    /// For whoever asked for it.
    pub(super) fn reply(&self) -> Reply {
        match self {
            Self::Whole => Reply::done("published"),
            Self::Lacks(missing) => {
                Reply { incomplete: true, ..Reply::done(format!("published, but incomplete: {missing}")) }
            }
        }
    }
}

/// What stops an attempt.
enum Setback {
    /// Holds the results.
    Held(PublishError),
    /// Ends the run.
    Over(RunError),
}

impl From<PublishError> for Setback {
    fn from(error: PublishError) -> Self {
        Self::Held(error)
    }
}

impl Setback {
    fn attempt(tried: Result<Completeness, Self>) -> Result<Attempt, RunError> {
        match tried {
            Ok(published) => Ok(Attempt::Published(published)),
            Err(Self::Held(error)) => Ok(Attempt::Held(error)),
            Err(Self::Over(error)) => Err(error),
        }
    }
}

impl Run {
    /// The first attempt.
    pub(super) async fn publish(&mut self, inside: &Inside<'_>) -> Result<Attempt, RunError> {
        Setback::attempt(self.send_out(inside, &ResumeSpec::default()).await)
    }

    /// Another attempt, as whoever resumes has ordered it.
    pub(super) async fn publish_again(&mut self, inside: &Inside<'_>, order: ResumeOrder) -> Result<Attempt, RunError> {
        Setback::attempt(self.try_again(inside, order).await)
    }

    async fn try_again(&mut self, inside: &Inside<'_>, order: ResumeOrder) -> Result<Completeness, Setback> {
        let ResumeOrder { credentials, spec: resume } = order;
        let data = self.changed_by(&resume)?;
        self.reconnect(&data, credentials).await?;
        self.redirect(data, &inside.stager).await?;
        self.send_out(inside, &resume).await
    }

    /// Work for an attempt: nobody ends it but who insists.
    async fn attempt<T, E: Into<PublishError>>(
        &mut self,
        doing: &'static str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Setback> {
        let done = self.guard(doing, Stake::Results, work).await.map_err(Setback::Over)?;
        done.map_err(|error| Setback::Held(error.into()))
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
    async fn redirect(&mut self, data: DataSpec, stager: &Arc<Stager>) -> Result<(), Setback> {
        let encryption = |data: &DataSpec| (data.aws.sse, data.aws.sse_kms_key.clone());
        let moved = data.output != self.spec.data.output;
        if moved || encryption(&data) != encryption(&self.spec.data) {
            let (cloud, new) = (self.cloud.clone(), data.clone());
            let (run, stager) = (self.spec.id.clone(), stager.clone());
            let check = beside(move || -> Result<_, PublishError> {
                // What this run has put into the same output is no reason against it; keys of others are still refused.
                let cleared = check_output(&run, &new, new.overwrite || !moved, cloud.as_deref())?;
                let encryption = cleared.result_encryption().map(ToString::to_string);
                if let Some((remains, error)) = stager.redirect(cleared, new.overwrite, cloud.as_deref()) {
                    message::warn(format_args!("run {run}: {remains}; they could not be removed: {error}"));
                }
                Ok(encryption)
            });
            let encryption = self.attempt("checking the output", check).await?;
            self.note_redirection(&data, encryption);
        } else if data.overwrite {
            stager.allow_overwrite();
        }
        self.spec.data = data;
        Ok(())
    }

    fn note_redirection(&self, data: &DataSpec, result_encryption: Option<String>) {
        if let Some(output) = data.output.clone() {
            self.desk.journal.record(Event::Redirected { output });
        }
        if let Some(facts) = self.desk.journal.snapshot().aws {
            self.desk.journal.record(Event::Cleared(AwsFacts { result_encryption, ..facts }));
        }
    }

    /// A new connection for the next attempt: credentials may have been renewed, or come from whoever resumes.
    async fn reconnect(&mut self, data: &DataSpec, credentials: Option<Credentials>) -> Result<(), Setback> {
        if !data.uses_aws() || credentials.is_none() && self.entrusted {
            return Ok(());
        }
        self.entrusted |= credentials.is_some();
        let (run, aws, gate) = (self.spec.id.clone(), data.aws.clone(), self.gate.clone());
        let connect = beside(move || {
            let refused = |source| PublishError::Aws { source };
            let cloud = cloud::connect(&run, &aws, &gate, credentials).map_err(refused)?;
            let identity = preflight::identify(&cloud);
            Ok::<_, PublishError>((cloud, identity))
        });
        let (cloud, identity) = self.attempt("connecting to AWS again", connect).await?;
        self.cloud = Some(cloud);
        if let (Some(identity), Some(facts)) = (identity, self.desk.journal.snapshot().aws) {
            self.desk.journal.record(Event::Cleared(AwsFacts { identity: Some(identity), ..facts }));
        }
        Ok(())
    }

    async fn send_out(&mut self, inside: &Inside<'_>, resume: &ResumeSpec) -> Result<Completeness, Setback> {
        if inside.seal.latched() && !resume.incomplete {
            return Err(PublishError::Stopped.into());
        }
        let rules = resume.rules(self.spec.data.rules);
        self.spec.data.rules = rules;
        inside.stager.set_rules(rules);
        self.desk.phase(Phase::Publish);
        let (stager, from, scratch) = (inside.stager.clone(), inside.output, inside.seal.scratch.clone());
        let (latched, wanted, policy) = (inside.seal.latched(), resume.incomplete, self.rescue().lost_writes);
        let (cloud, gate, journal) = (self.cloud.clone(), self.gate.clone(), self.desk.journal.clone());
        let (mountpoint, hands_on_rights) = (self.mountpoint.clone(), self.hands_on_rights);
        let asked = self.spec.data.output.is_some();
        let work = beside(move || {
            let flush = |below: &str| flush::flush_results(&mountpoint, Path::new(below), hands_on_rights);
            if let Some(mounted) = mounted_below(&mountpoint.join(OUTPUT)) {
                return Err(PublishError::Covered(mounted));
            }
            let before = gate.requests();
            flush(OUTPUT)?;
            journal.record(Event::Lost(LossFacts::of(&scratch)));
            let missing = Missing::against(&scratch, policy);
            match &missing {
                Some(missing) if !wanted => return Err(PublishError::Lost(missing.clone())),
                Some(_) => {}
                None => losses::warn_of_rest(&scratch),
            }
            expect_results(&stager, from, asked, rules, || flush(""))?;
            let totals = stager.publish_incomplete(from, cloud.as_deref(), &losses::incomplete(&scratch))?;
            warn_of_omissions(&totals);
            let mut totals = counted(totals, gate.requests() - before);
            if let Some(sum) = stager.manifest_sha256() {
                totals["manifest_sha256"] = sum.into();
            }
            journal.record(Event::Published { totals });
            Ok(match missing {
                Some(missing) => Completeness::Lacks(missing.to_string()),
                None if latched => Completeness::Lacks("writing to the backing failed during the run".to_owned()),
                None => Completeness::Whole,
            })
        });
        match self.attempt(PUBLISHING, work).await {
            // A run that holds nothing is no use to anybody; a mount may still be filled.
            Err(Setback::Held(PublishError::Empty { elsewhere }))
                if elsewhere.has_no_files() && self.spec.command().is_some() =>
            {
                let output = self.spec.data.output.as_ref().map(ToString::to_string).unwrap_or_default();
                Err(Setback::Over(RunError::NothingToPublish { output }))
            }
            published => published,
        }
    }

    /// Leaves the output: has uploads aborted that will not be completed, removes what is visible there if that was
    /// ordered, and says what stays.
    pub(super) async fn leave(&mut self, stager: &Arc<Stager>) {
        self.gate.cut();
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
}

/// Refuses to publish nothing while there is something else, and to publish to nowhere. Sizes of files are known to the
/// kernel alone until `flush_all` has had them written.
fn expect_results<E>(
    stager: &Stager,
    from: u64,
    asked: bool,
    rules: StagingRules,
    flush_all: impl Fn() -> Result<(), E>,
) -> Result<(), PublishError> {
    let results = stager.results(from);
    match (results.is_empty(), asked) {
        (false, false) => Err(PublishError::NoOutput { results }),
        (true, true) if !rules.allow_empty => {
            // Whatever cannot be written is said elsewhere; here it is only about numbers.
            let _ = flush_all();
            Err(PublishError::Empty { elsewhere: stager.elsewhere(from) })
        }
        _ => Ok(()),
    }
}

fn warn_of_omissions(totals: &Totals) {
    if totals.skipped > 0 {
        message::warn(format_args!(
            "results that are neither files, directories nor links were left out: {} (the manifest names them)",
            totals.skipped
        ));
    }
    if totals.listed_only > 0 {
        message::warn(format_args!(
            "symbolic links are in the manifest only, since objects cannot be links: {} (--dereference uploads what they \
             lead to)",
            totals.listed_only
        ));
    }
    if totals.renamed > 0 {
        message::warn(format_args!(
            "results whose names cannot be keys are below runseal-renamed/: {} (the manifest has their paths)",
            totals.renamed
        ));
    }
}

/// The first place at or below `output` that something is mounted on. Contacts no file system but proc.
fn mounted_below(output: &Path) -> Option<PathBuf> {
    let mounts = mount_table().unwrap_or_default().into_iter().map(|entry| entry.mountpoint);
    mounts.filter(|mountpoint| mountpoint.starts_with(output)).min()
}
