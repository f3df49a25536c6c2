//! The phases of a sealed run, in order.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getegid, geteuid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cloud::{self, Switch};
use super::error::{RunError, system};
use super::flush;
use super::hold::Published;
use super::preflight::Ready;
use super::progress::Meter;
use super::seal::{KeySource, Room, Seal};
use super::seal::{lock_memory, make_seal};
use super::served::answer_ready;
use super::start::detach_stdio;
use crate::audit::{self, Trail};
use crate::aws::{Cloud, Credentials};
use crate::crypt::KeyShare;
use crate::family::command::guests::Guests;
use crate::family::command::place::TEMPORARY;
use crate::family::command::{self, INPUT, OUTPUT, Surroundings, TMP, WORK};
use crate::family::control::desk::{Desk, Order, Stake, asks_to_end};
use crate::family::control::wire::Event;
use crate::family::control::wire::{CopyOrder, Reply, Request};
use crate::family::error::FamilyError;
use crate::family::message;
use crate::family::process::sealed::beside;
use crate::family::state::facts::{AuditFacts, AwsFacts, Outcome, Phase, RunKeyFacts};
use crate::family::state::origin::Origin;
use crate::family::state::report::Report;
use crate::fs::ROOT;
use crate::fuse::MountOptions;
use crate::preflight::{self, Check};
use crate::spec::{CommandSpec, Foreground, OnFailure, Purpose, RescueSpec, RootSpec, RunSpec, SAVED, TmpPolicy};
use crate::stage::{self, Stager, Totals, View};
use crate::sys::memory;
use crate::sys::path::shown;
use crate::sys::process::Standing;
use crate::units::ByteSize;

/// The answer to `runseal end --discard`.
pub(super) const DISCARDED: &str = "ended; the results of this run are discarded";
/// How long a command may take to end after `runseal end --discard`.
const GRACE: Duration = Duration::from_secs(10);

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
    /// Cuts requests to AWS off.
    pub(super) switch: Switch,
    /// The connection of now.
    pub(super) cloud: Option<Arc<Cloud>>,
    /// Those to connect with first, in place of what would be found.
    pub(super) credentials: Option<Credentials>,
    /// Whether somebody else than this machine has given credentials. Then those of the machine are never used.
    pub(super) entrusted: bool,
    /// Programs of `runseal exec`.
    pub(super) guests: Guests,
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
            trail,
            switch: Switch::new(),
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
        self.switch.cut();
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
            self.switch.cut();
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
        let (trail, connector, credentials) = (self.trail.clone(), self.switch.connector(), self.credentials.take());
        let check = beside(move || Ready::make(&id, &store, &data, connector, credentials, false, &trail));
        let ready = self.desk.guard("checking inputs and output", Stake::Nothing, check).await??;
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
        let (id, trail) = (self.spec.id.clone(), self.trail.clone());
        let draw = beside(move || match cloud::draw_key_share(&cloud, &key, &id, &trail) {
            Ok(answer) => Ok((answer.value, RunKeyFacts { key, request_id: answer.request_id })),
            Err(source) => Err(RunError::RunKey { key, source }),
        });
        let (share, facts) = self.desk.guard("asking KMS for a data key", Stake::Nothing, draw).await??;
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
    fn user_of_command(&self) -> Option<u32> {
        match self.standing {
            Standing::Other(id) => Some(id),
            Standing::Same | Standing::Bounded | Standing::Plain => None,
        }
    }

    /// What is published belongs to the user of this process, whoever the command was.
    fn take_over(&self, directory: u64, seal: &Seal) {
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
        let meter = Arc::new(Meter::new(self.desk.voice));
        let stager = Stager::new(cleared, seal.scratch.clone(), self.spec.id.clone(), meter, self.trail.clone());
        let stager = match self.spec.data.aws.concurrency {
            Some(requests) => stager.with_concurrency(requests.into()),
            None => stager,
        };
        let stager = match self.spec.serving().and_then(|serving| serving.root.owner) {
            Some(owner) => stager.with_owner(owner),
            None => stager,
        };
        let stager = Arc::new(stager.with_view(self.view()));
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
        match self.spec.purpose.clone() {
            Purpose::Serve(serving) => {
                if serving.foreground == Foreground::Leave {
                    answer_ready().and_then(|()| detach_stdio()).map_err(system("letting go of the caller"))?;
                }
                self.desk.watch_tree(seal);
                let result = self.attend(stager.clone(), output, seal).await;
                self.leave(stager).await;
                result
            }
            Purpose::Command(command) => self.command(&command, stager, output, seal).await,
        }
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

    /// Runs the command, and publishes what it leaves if it succeeds.
    async fn command(
        &mut self,
        command: &CommandSpec,
        stager: Arc<Stager>,
        output: u64,
        seal: &Seal,
    ) -> Result<(Outcome, u8), RunError> {
        let before = seal.inodes();
        let status = self.wait_for_command(command, seal).await?;
        self.clear();
        self.take_over(output, seal);
        if status != 0 {
            self.command_failed(status, seal.inodes() > before, stager, seal).await?;
            return Ok((Outcome::CommandFailed, status));
        }
        if self.spec.data.output.is_none() && stager.results(output).is_empty() {
            return Ok((Outcome::Succeeded, 0));
        }
        match self.publish_or_hold(stager.clone(), output, seal).await {
            Ok(Published::Whole) => Ok((Outcome::Published, 0)),
            Ok(Published::Incomplete(missing)) => Err(RunError::Incomplete(missing)),
            Err(error) => {
                self.leave(stager).await;
                Err(error)
            }
        }
    }

    /// Where links of the command may say that the scratch is.
    fn view(&self) -> View {
        let mut aliases: Vec<(PathBuf, PathBuf)> = vec![("/var/run".into(), "/run".into())];
        if self.spec.command().is_some_and(|command| command.tmp == TmpPolicy::Scratch) {
            aliases.extend(TEMPORARY.map(|covered| (covered.into(), self.mountpoint.join(TMP))));
        }
        View { mountpoint: self.mountpoint.clone(), aliases }
    }

    /// Serves until it is told to end; publishes when asked.
    async fn attend(&mut self, stager: Arc<Stager>, from: u64, seal: &Seal) -> Result<(Outcome, u8), RunError> {
        let id = self.spec.id.clone();
        let mut pending = self.spec.data.output.is_some();
        let is_plain = self.spec.data.is_nothing();
        self.desk.phase(Phase::Serving);
        loop {
            match self.desk.next().await {
                Order::Signal { signal, .. } if asks_to_end(signal) || signal == Signal::SIGHUP => break,
                Order::MountEnded if !seal.mount.is_cut_off() => break,
                Order::MountEnded | Order::Orphaned => return Err(FamilyError::CutOff.into()),
                Order::Request(Request::End { discard, remove_published }, reply) if discard || !pending => {
                    self.desk.farewell.order(remove_published, reply);
                    if !remove_published || is_plain {
                        self.desk.farewell.answer("ending");
                    }
                    break;
                }
                Order::Request(Request::End { .. }, reply) => {
                    let _ = reply.send(Reply::refused(format!(
                        "run {id} has results that are not published: publish them, or end it with `discard`"
                    )));
                }
                Order::Request(Request::Resume(order), reply) if pending => {
                    let answer = match self.publish_again(stager.clone(), from, seal, order).await? {
                        Ok(published) => {
                            pending = false;
                            self.desk.phase(Phase::Serving);
                            published.reply()
                        }
                        Err(error) => {
                            self.hold(&error, &stager);
                            Reply::refused(format!("held: {error}"))
                        }
                    };
                    // Whoever asked may have left.
                    let _ = reply.send(answer);
                }
                Order::Request(Request::Exec(_) | Request::Copy(_), reply) => {
                    let _ = reply.send(is_open(&self.mountpoint));
                }
                Order::Request(_, reply) => {
                    let none = if is_plain {
                        "a mount has nothing to resume".to_owned()
                    } else {
                        format!("run {id} has nothing to publish, or has done so")
                    };
                    let _ = reply.send(Reply::refused(none));
                }
                Order::Signal { .. } => {}
            }
        }
        Ok((if pending { Outcome::Discarded } else { Outcome::Succeeded }, 0))
    }

    async fn fetch(&mut self, stager: Arc<Stager>, into: u64) -> Result<(), RunError> {
        self.desk.phase(Phase::Fetch);
        let (cloud, before) = (self.cloud.clone(), self.switch.requests());
        let work = beside(move || stager.fetch(into, cloud.as_deref()));
        let totals = self.desk.guard("staging the inputs", Stake::Nothing, work).await?.map_err(RunError::Fetch)?;
        self.desk.journal.record(Event::Staged { totals: counted(totals, self.switch.requests() - before) });
        Ok(())
    }

    /// Starts the command and waits for it; orders reach it as signals.
    async fn wait_for_command(&mut self, spec: &CommandSpec, seal: &Seal) -> Result<u8, RunError> {
        let mut children = signal(SignalKind::child()).map_err(system("watching children"))?;
        self.desk.phase(Phase::Command);
        let pid = command::start(&spec.argv, self.surroundings())?;
        let apart = self.user_of_command().is_some();
        let mut running = Running { pid, apart, interrupts: 0, deadline: None };
        loop {
            tokio::select! {
                _ = children.recv() => {
                    let mut status = None;
                    command::reap(|child, ended| if child == pid { status = Some(ended) } else { self.guests.ended(child, ended) });
                    match status {
                        Some(_) if running.deadline.is_some() => return Err(FamilyError::Ended { doing: Running::DOING }.into()),
                        Some(status) => {
                            self.desk.journal.record(Event::CommandEnded { status });
                            return Ok(status);
                        }
                        None => {}
                    }
                }
                () = running.overdue() => return Err(FamilyError::Ended { doing: Running::DOING }.into()),
                order = self.desk.next() => {
                    if let Some(order) = self.receive(order, seal) {
                        running.take(order, &self.desk)?;
                    }
                }
            }
        }
    }

    /// Where and as what programs of this run start.
    fn surroundings(&self) -> Surroundings<'_> {
        let withheld = self.spec.data.uses_aws() && !self.spec.data.aws.keep_credentials;
        Surroundings {
            scratch: &self.mountpoint,
            run_id: self.spec.id.as_str(),
            tmp: self.spec.command().map_or(TmpPolicy::Host, |command| command.tmp),
            withheld: if withheld { cloud::leads_to_credentials } else { |_| false },
            inherited: self.desk.inherited,
            standing: self.standing,
        }
    }

    /// Lets visitors in: starts programs of `runseal exec`, and serves `runseal cp`. Gives back every other order.
    pub(super) fn receive(&self, order: Order, seal: &Seal) -> Option<Order> {
        match order {
            Order::Request(Request::Exec(order), reply) => self.guests.admit(order, self.surroundings(), reply),
            Order::Request(Request::Copy(order), reply) => self.copy_out(order, seal, reply),
            order => return Some(order),
        }
        None
    }

    fn copy_out(&self, order: CopyOrder, seal: &Seal, client: oneshot::Sender<Reply>) {
        let CopyOrder { path, bare, archive } = order;
        let Some(archive) = archive.into_iter().next() else {
            let _ = client.send(Reply::refused("bad request: a descriptor is to come with it"));
            return;
        };
        let (scratch, hands_on_rights) = (seal.scratch.clone(), self.hands_on_rights);
        let below: PathBuf =
            path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).collect();
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

    /// Ends everything that runs in the scratch.
    pub(super) fn clear(&self) {
        command::kill_everything();
        self.guests.dismiss();
    }

    /// What a failed command left is told, and held if that was asked for.
    async fn command_failed(
        &mut self,
        status: u8,
        left_files: bool,
        stager: Arc<Stager>,
        seal: &Seal,
    ) -> Result<(), RunError> {
        let rescue = self.rescue();
        let lost = if self.spec.data.output.is_some() { "; nothing was published" } else { "" };
        message::warn(format_args!("the command ended with status {status}{lost}"));
        if !rescue.save.is_empty() {
            self.take_over(ROOT, seal);
            let saved = self.save(stager).await;
            if self.user_of_command().is_some() {
                seal.hand_over(ROOT, None, 0o7777);
            }
            saved?;
        }
        if rescue.on_failure == OnFailure::Hold {
            self.hold_scratch(status, seal).await;
        } else if left_files {
            let what = if rescue.save.is_empty() { "what" } else { "all else that" };
            message::warn(format_args!(
                "{what} it left in the scratch is gone; next time --save GLOB publishes files such as logs even \
                 then, and --on-failure=hold keeps the scratch for `runseal exec` and `runseal cp`"
            ));
        }
        Ok(())
    }

    /// Publishes what `--save` asks for. That this fails is no reason to hold anything.
    async fn save(&mut self, stager: Arc<Stager>) -> Result<(), RunError> {
        self.desk.phase(Phase::Publish);
        let time: String = self.desk.journal.snapshot().started.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let name = format!("{SAVED}{}.{time}", self.spec.id);
        let (scratch, hands_on_rights) = (self.mountpoint.clone(), self.hands_on_rights);
        let (cloud, rescue) = (self.cloud.clone(), self.rescue());
        let work = beside(move || {
            if let Err(error) = flush::flush_results(&scratch, Path::new(""), hands_on_rights) {
                message::warn(error);
            }
            stager.save(&rescue, &name, cloud.as_deref())
        });
        match self.desk.guard("saving files of the failed command", Stake::Nothing, work).await? {
            Ok(Some((totals, place))) => {
                message::warn(format_args!("saved {} of its files: {place}", totals.files));
                let facts = serde_json::json!({ "files": totals.files, "bytes": totals.bytes, "place": place });
                self.desk.journal.record(Event::Saved { facts });
            }
            Ok(None) => message::warn("it left no file that --save asks for"),
            Err(error) => message::warn(format_args!("what --save asks for could not be saved: {error}")),
        }
        Ok(())
    }
}

/// The answer of a mount to visitors.
pub(super) fn is_open(mountpoint: &Path) -> Reply {
    Reply::refused(format!("a mount needs no such help: it is open below {}", shown(mountpoint)))
}

/// Totals with the requests to S3 they took.
pub(super) fn counted(totals: Totals, requests: u64) -> serde_json::Value {
    let mut totals = serde_json::to_value(totals).unwrap_or_default();
    if requests > 0 {
        totals["requests"] = requests.into();
    }
    totals
}

/// The command while it runs.
struct Running {
    pid: Pid,
    /// Whether it has a session of its own, which signals of the terminal do not reach.
    apart: bool,
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
                    return Err(FamilyError::Interrupted { signal, doing: Self::DOING }.into());
                }
                if from_terminal && self.apart {
                    let _ = killpg(self.pid, signal);
                } else if !from_terminal {
                    self.send(signal);
                }
            }
            Order::Request(Request::End { discard: true, .. }, reply) => {
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
