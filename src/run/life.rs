//! The life of a run: Preflight, Key, Seal, Fetch, its purpose, End. What each purpose does is in `command.rs` and `serve.rs`.

use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::{getegid, geteuid};

use super::cloud;
use super::decide::Stake;
use super::error::{RunError, system};
use super::preflight::Ready;
use super::progress::Meter;
use super::publish::DISCARDED;
use super::seal::{KeySource, Room, Seal, lock_memory, make_seal};
use super::served::answer_ready;
use super::start::detach_stdio;
use crate::audit::{self, Trail};
use crate::aws::{Cloud, Credentials, Gate};
use crate::crypt::KeyShare;
use crate::family::{
    AuditFacts, AwsFacts, Desk, Event, Outcome, Phase, Report, RunKeyFacts,
    command::{self, INPUT, OUTPUT, TMP, WORK, guests::Guests, place::TEMPORARY},
    message,
    process::sealed::beside,
    state::origin::Origin,
};
use crate::fs::ROOT;
use crate::fuse::MountOptions;
use crate::preflight::{self, Check};
use crate::spec::{Foreground, Purpose, RescueSpec, RootSpec, RunSpec, TmpPolicy};
use crate::stage::{Stager, Totals, View};
use crate::sys::memory;
use crate::sys::process::Standing;

/// A sealed run.
pub struct Run {
    pub(super) spec: RunSpec,
    /// Private mountpoint.
    pub(super) mountpoint: PathBuf,
    /// As whom the command runs, and what it may.
    pub(super) standing: Standing,
    /// Whether the right to open any file of the scratch has to be handed on to a child.
    pub(super) hands_on_rights: bool,
    pub(super) desk: Desk,
    pub(super) trail: Arc<Trail>,
    /// What every request to AWS passes: cuts off, counts, records.
    pub(super) gate: Gate,
    /// The connection of now.
    pub(super) cloud: Option<Arc<Cloud>>,
    /// Those to connect with first, in place of what would be found.
    pub(super) credentials: Option<Credentials>,
    /// Whether somebody else than this machine has given credentials. Then those of the machine are never used.
    pub(super) entrusted: bool,
    /// Programs of `runseal exec`.
    pub(super) guests: Guests,
}

/// A scratch that is there, with what goes in and out of it.
pub(super) struct Inside<'a> {
    pub(super) seal: &'a Seal,
    pub(super) stager: Arc<Stager>,
    /// Directory of the results.
    pub(super) output: u64,
}

impl Run {
    /// A run that has not begun. With `credentials`, those of the machine are never used.
    pub fn new(
        spec: RunSpec,
        trail: Arc<Trail>,
        mountpoint: PathBuf,
        standing: Standing,
        credentials: Option<Credentials>,
        desk: Desk,
    ) -> Self {
        Self {
            spec,
            mountpoint,
            standing,
            hands_on_rights: match standing {
                Standing::Plain => true,
                Standing::Other(_) => !geteuid().is_root(),
                Standing::Same | Standing::Bounded => false,
            },
            desk,
            gate: Gate::new(trail.clone()),
            trail,
            cloud: None,
            entrusted: credentials.is_some(),
            credentials,
            guests: Guests::default(),
        }
    }

    /// From the first check to the destruction of the key.
    pub async fn work(mut self) -> Result<(Outcome, u8), RunError> {
        self.trail.record(&start_of(&self.desk.journal.snapshot()));
        let result = self.phases().await;
        // On every way out: what is still on its way to or from AWS ends, and uploads that nobody will complete are
        // aborted.
        self.gate.cut();
        self.close_trail();
        self.desk.farewell.answer(DISCARDED);
        result
    }

    async fn phases(&mut self) -> Result<(Outcome, u8), RunError> {
        // Before there are credentials in this process.
        let memory_locked = lock_memory(self.spec.store.memory_lock)?;
        if self.spec.data.aws.run_key.is_some() {
            // The data key passes through buffers of libraries, as base 64.
            memory::wipe_freed();
        }
        let Ready { cleared, room, cloud } = self.preflight().await?;
        let run_key = cleared.run_key().map(str::to_owned);
        self.cloud = cloud;
        let share = self.key_share(run_key.clone()).await?;
        let seal = self.seal(room, KeySource { memory_locked, share }).await?;
        self.trail.record(&audit::Event::create_run_key(run_key.as_deref()));
        let result = self.in_scratch(cleared, &seal).await;
        if result.is_err() {
            self.gate.cut();
        }
        // On every way out: nothing of the run may outlive the key.
        self.clear();
        self.desk.phase(Phase::End);
        seal.close_or_leave(&result, &self.desk.journal).await;
        self.trail.record(&audit::Event::wipe_run_key());
        result
    }

    async fn preflight(&mut self) -> Result<Ready, RunError> {
        self.desk.phase(Phase::Preflight);
        let RunSpec { id, store, data, .. } = self.spec.clone();
        let (gate, credentials) = (self.gate.clone(), self.credentials.take());
        let check = beside(move || Ready::make(&id, &store, &data, &gate, credentials, false));
        let ready = self.guard("checking inputs and output", Stake::Nothing, check).await??;
        for Check { probe, subject, detail, .. } in ready.cleared.evidence().warnings() {
            message::warn(format_args!("preflight warns: {probe}: {subject}: {detail}"));
        }
        if let Some(cloud) = &ready.cloud {
            self.desk.journal.record(Event::Cleared(AwsFacts::of(&ready.cleared, &cloud.region)));
        }
        Ok(ready)
    }

    /// The share that KMS has in the run key, if it is to have one.
    async fn key_share(&mut self, key: Option<String>) -> Result<Option<KeyShare>, RunError> {
        let (Some(key), Some(cloud)) = (key, self.cloud.clone()) else { return Ok(None) };
        let id = self.spec.id.clone();
        let draw = beside(move || match cloud::draw_key_share(&cloud, &key, &id) {
            Ok(answer) => Ok((answer.value, RunKeyFacts { key, request_id: answer.request_id })),
            Err(source) => Err(RunError::RunKey { key, source }),
        });
        let (share, facts) = self.guard("asking KMS for a data key", Stake::Nothing, draw).await??;
        self.desk.journal.record(Event::RunKey(facts));
        Ok(Some(share))
    }

    async fn seal(&mut self, room: Room, keys: KeySource) -> Result<Seal, RunError> {
        self.desk.phase(Phase::Seal);
        let (options, allow_other, root) = match &self.spec.purpose {
            Purpose::Serve(serving) => (serving.options.clone(), geteuid().is_root(), serving.root),
            // "Other" can only be those of the run: nobody else sees the mount.
            Purpose::Command(_) => {
                let owner = self.user_of_command().map(|id| (id, id));
                (Vec::new(), true, RootSpec { owner, ..RootSpec::default() })
            }
        };
        let options = MountOptions { options, allow_other, ..MountOptions::default() };
        make_seal(room, &self.spec.store, root, self.mountpoint.clone(), options, keys, &self.desk).await
    }

    /// The user that the command has of its own.
    pub(super) fn user_of_command(&self) -> Option<u32> {
        match self.standing {
            Standing::Other(id) => Some(id),
            Standing::Same | Standing::Bounded | Standing::Plain => None,
        }
    }

    /// What is published belongs to the user of this process, whoever the command was.
    pub(super) fn take_over(&self, directory: u64, seal: &Seal) {
        if self.user_of_command().is_some() {
            // Bits that another user has set must not say what may be done in the name of this one.
            let mask = 0o777 & !self.desk.inherited.umask.bits();
            seal.hand_over(directory, Some((geteuid().as_raw(), getegid().as_raw())), mask);
        }
    }

    fn close_trail(&self) {
        let Some(audit) = &self.spec.data.audit else { return };
        self.trail.sync();
        let head = self.trail.head();
        let problem = self.trail.problem().map(str::to_owned);
        if let Some(problem) = &problem {
            message::warn(format_args!("the audit trail has a gap: {problem}"));
        }
        self.desk.journal.record(Event::Audited(AuditFacts {
            destination: audit.destination.to_string(),
            lines: head.as_ref().map(|link| link.sequence),
            head: head.map(|link| link.hash),
            problem,
        }));
    }

    async fn in_scratch(&mut self, cleared: preflight::Cleared, seal: &Seal) -> Result<(Outcome, u8), RunError> {
        let [input, output] = self.lay_out(seal)?;
        let stager = Arc::new(self.stager(cleared, seal));
        self.desk.watch(seal);
        if !self.spec.data.inputs.is_empty() {
            self.fetch(stager.clone(), input).await?;
        }
        if self.user_of_command().is_some() {
            seal.hand_over(input, None, 0o7777);
        }
        if let Some(problem) = self.trail.problem() {
            return Err(RunError::Unaudited(problem.to_owned()));
        }
        let inside = Inside { seal, stager, output };
        match self.spec.purpose.clone() {
            Purpose::Command(command) => self.command(&command, &inside).await,
            Purpose::Serve(serving) => {
                if serving.foreground == Foreground::Leave {
                    answer_ready().and_then(|()| detach_stdio()).map_err(system("letting go of the caller"))?;
                }
                self.serve(&inside).await
            }
        }
    }

    fn stager(&self, cleared: preflight::Cleared, seal: &Seal) -> Stager {
        let meter = Arc::new(Meter::new(self.desk.voice));
        let mut stager = Stager::new(cleared, seal.scratch.clone(), self.spec.id.clone(), meter, self.trail.clone());
        if let Some(requests) = self.spec.data.aws.concurrency {
            stager = stager.with_concurrency(requests.into());
        }
        if let Some(owner) = self.spec.serving().and_then(|serving| serving.root.owner) {
            stager = stager.with_owner(owner);
        }
        stager.with_view(self.view())
    }

    /// Makes the directories that a scratch starts with, and answers those of inputs and of results. A mount without data is
    /// empty, and everything in it is its user's.
    fn lay_out(&self, seal: &Seal) -> Result<[u64; 2], RunError> {
        if self.spec.command().is_none() && self.spec.data.is_nothing() {
            return Ok([ROOT; 2]);
        }
        let input = seal.make_dir(INPUT, 0o755)?;
        // What is published takes its bits from here: those a directory made by the user would have.
        let output = seal.make_dir(OUTPUT, 0o777 & !self.desk.inherited.umask.bits())?;
        seal.make_dir(WORK, 0o755)?;
        seal.make_dir(TMP, 0o1777)?;
        Ok([input, output])
    }

    /// What becomes of it in trouble.
    pub(super) fn rescue(&self) -> RescueSpec {
        self.spec.command().map(|command| command.rescue.clone()).unwrap_or_default()
    }

    /// Where links of the command may say that the scratch is.
    fn view(&self) -> View {
        let mut aliases: Vec<(PathBuf, PathBuf)> = vec![("/var/run".into(), "/run".into())];
        if self.spec.command().is_some_and(|command| command.tmp == TmpPolicy::Scratch) {
            aliases.extend(TEMPORARY.map(|covered| (covered.into(), self.mountpoint.join(TMP))));
        }
        View { mountpoint: self.mountpoint.clone(), aliases }
    }

    async fn fetch(&mut self, stager: Arc<Stager>, into: u64) -> Result<(), RunError> {
        self.desk.phase(Phase::Fetch);
        let (cloud, before) = (self.cloud.clone(), self.gate.requests());
        let work = beside(move || stager.fetch(into, cloud.as_deref()));
        let totals = self.guard("staging the inputs", Stake::Nothing, work).await?.map_err(RunError::Fetch)?;
        self.desk.journal.record(Event::Staged { totals: counted(totals, self.gate.requests() - before) });
        Ok(())
    }

    /// Ends everything that runs in the scratch.
    pub(super) fn clear(&self) {
        command::kill_everything();
        self.guests.dismiss();
    }
}

/// Totals with the requests to S3 they took.
pub(super) fn counted(totals: Totals, requests: u64) -> serde_json::Value {
    let mut totals = serde_json::to_value(totals).unwrap_or_default();
    if requests > 0 {
        totals["requests"] = requests.into();
    }
    totals
}

/// The first event of a run: its origin, what goes in, and where results are to go.
fn start_of(report: &Report) -> audit::Event {
    let inputs: Vec<_> = report.inputs.iter().map(|input| input.source.clone()).collect();
    let event = audit::Event::start_run().with("inputs", inputs).with("output", report.output.clone());
    let Some(Origin { user, uid, login_uid, host, command }) = report.origin.clone() else { return event };
    let event = event.with("user", user).with("uid", uid).with("loginUid", login_uid).with("host", host);
    match command {
        Some(command) => event.with("command", command),
        None => event,
    }
}
