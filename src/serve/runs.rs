//! The runs of the node: made, watched and ended here, kept in memory, adopted after a restart.
//!
//! Nothing here asks a family how it is: the kernel tells when its processes end (pidfd). One lock guards the table;
//! it is never held while anything is waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::account::Accounts;
use super::config::Config;
use super::metrics::{Metrics, Page, label};
use super::model::{Mode, Owner, PublishRequest, RunOutcome, RunRequest, RunState, RunView, Size};
use super::mountpoint::Roots;
use super::peer::Caller;
use super::problem::{Kind, Problem};
use super::{sight, staging};
use crate::run::error::RunError;
use crate::run::{Credentials, Family, MountOrder, Phase, Report, beside};
use crate::spec::{RunId, StagingSpec};
use crate::sys::path::shown;
use crate::sys::process;

/// What the ids of runs behind volumes begin with, and no others.
pub const OF_VOLUMES: &str = "vol-";
/// Families that start at the same time; more would only wait for each other.
const STARTING: usize = 8;
/// Families that fetch for one user at the same time, and how long that may take: they hold no slot of the others.
const STAGING: usize = 16;
const STAGING_TIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a client waits for the end of a run. Open files alone keep one for five seconds.
const END_TIME: Duration = Duration::from_secs(50);
/// How long a run that ended by itself is remembered, and how many of them.
const REMEMBERED: Duration = Duration::from_secs(3600);
const REMEMBERED_MOST: usize = 1000;

/// What the service writes into the state of a run, to find it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    /// Socket of the service the run belongs to.
    service: PathBuf,
    user: u32,
    volume: Option<String>,
    size: Size,
    memory: Size,
    backing: Vec<PathBuf>,
    owner: Owner,
    mode: Mode,
    options: Vec<String>,
    #[serde(default)]
    inputs: Vec<String>,
    #[serde(default)]
    output: Option<String>,
}

/// What is known of one run.
struct Entry {
    view: RunView,
    family: Option<Family>,
    /// Told when `view.state` changes.
    state: watch::Sender<RunState>,
    /// Whether somebody asked here for the end.
    asked: Option<Instant>,
    ended: Option<Instant>,
}

impl Entry {
    fn new(view: RunView, family: Option<Family>) -> Self {
        let state = watch::Sender::new(view.state);
        Self { view, family, state, asked: None, ended: None }
    }

    fn enter(&mut self, state: RunState) {
        self.view.state = state;
        self.state.send_replace(state);
    }

    fn is_live(&self) -> bool {
        self.view.state != RunState::Ended
    }
}

/// The runs of this node.
pub struct Runs {
    settings: RwLock<Arc<Settings>>,
    service: PathBuf,
    table: Mutex<BTreeMap<RunId, Entry>>,
    slots: Semaphore,
    /// By account: slow inputs of one keep nobody else waiting.
    staging_slots: Mutex<BTreeMap<u32, Arc<Semaphore>>>,
    accounts: Arc<Accounts>,
    metrics: Arc<Metrics>,
}

/// A configuration and what was opened for it.
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// Its roots.
    pub roots: Roots,
    /// The root of volumes, where users have no business.
    pub volumes: Option<Roots>,
}

impl Settings {
    fn roots_of(&self, volume: bool) -> &Roots {
        self.volumes.as_ref().filter(|_| volume).unwrap_or(&self.roots)
    }
}

impl Runs {
    /// No runs yet.
    pub fn new(settings: Settings, service: &Path, accounts: Arc<Accounts>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            settings: RwLock::new(Arc::new(settings)),
            service: service.to_owned(),
            table: Mutex::default(),
            slots: Semaphore::new(STARTING),
            staging_slots: Mutex::default(),
            accounts,
            metrics,
        })
    }

    /// The configuration in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().clone()
    }

    /// Puts another configuration in force; live runs keep what they have.
    pub fn configure(&self, settings: Settings) {
        *self.settings.write() = Arc::new(settings);
    }

    /// Takes over the live runs an earlier life of this service has left. Blocks.
    pub fn adopt(self: &Arc<Self>) -> Result<usize, Problem> {
        let mut count = 0;
        for family in Family::all_noted()? {
            let note = family.record.note.clone().unwrap_or_default();
            let Ok(note) = serde_json::from_value::<Note>(note) else { continue };
            if note.service != self.service {
                continue;
            }
            let id = family.record.run_id.clone();
            let mut view = note.into_view(&family, Vec::new());
            if view.output.is_some() {
                // One that does not answer now is asked again when somebody looks.
                let asked = crate::run::status(Some(id.as_str()))?;
                if let Some((_, Ok(report))) = asked.into_iter().next() {
                    (view.state, view.problem) = state_of(&report);
                }
            }
            let volume = view.volume.is_some();
            self.table.lock().insert(id.clone(), Entry::new(view, Some(family.clone())));
            self.watch(id, family, volume);
            self.metrics.adopted.increment();
            count += 1;
        }
        let settings = self.settings();
        settings.volumes.iter().chain([&settings.roots]).for_each(Roots::sweep);
        Ok(count)
    }

    /// What the caller may see, by name.
    pub fn list(&self, caller: Caller) -> Vec<RunView> {
        let table = self.table.lock();
        table.values().filter(|entry| caller.may_see(entry.view.user)).map(|entry| entry.view.clone()).collect()
    }

    /// One run, if the caller may see it.
    pub fn view(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        self.with(id, caller, |entry| entry.view.clone())
    }

    fn with<T>(&self, id: &str, caller: Caller, act: impl FnOnce(&mut Entry) -> T) -> Result<T, Problem> {
        let missing = || Problem::no_run(id);
        let id: RunId = id.parse().map_err(|_| missing())?;
        let mut table = self.table.lock();
        let entry = table.get_mut(&id).filter(|entry| caller.may_see(entry.view.user));
        entry.map(act).ok_or_else(missing)
    }

    /// One run as it is now: of one with an output its family is asked, which others may have told to publish.
    pub async fn look(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        let (view, family) = self.with(id, caller, |entry| (entry.view.clone(), entry.family.clone()))?;
        let asks = view.output.is_some() && !matches!(view.state, RunState::Ending | RunState::Ended);
        if let (true, Some(family)) = (asks, family)
            && let Ok(report) = family.report().await
        {
            self.note_state(&view.id, state_of(&report));
        }
        self.view(id, caller)
    }

    fn note_state(&self, id: &RunId, (state, problem): (RunState, Option<String>)) {
        let mut table = self.table.lock();
        // What has begun to end meanwhile goes on to end.
        let entry = table.get_mut(id).filter(|entry| !matches!(entry.view.state, RunState::Ending | RunState::Ended));
        if let Some(entry) = entry {
            entry.view.problem = problem;
            entry.enter(state);
        }
    }

    /// Has a run publish its results; answers when it has. `held`: only if that has failed before. Goes on even if
    /// whoever asks stops waiting.
    pub async fn publish(
        self: &Arc<Self>,
        id: &str,
        request: PublishRequest,
        held: bool,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let view = self.look(id, caller).await?;
        match view.state {
            _ if view.output.is_none() => {
                return Err(Problem::new(Kind::Usage, format!("run {id} has no output; name one when it is made")));
            }
            RunState::Held => {}
            RunState::Serving if !held => {}
            RunState::Serving => return Err(Problem::new(Kind::Busy, format!("run {id} is not held; publish it"))),
            RunState::Published => return Err(Problem::new(Kind::Busy, format!("run {id} is published already"))),
            _ => return Err(Problem::new(Kind::Busy, format!("run {id} is starting, publishing or ending"))),
        }
        let family = self.with(id, caller, |entry| entry.family.clone())?;
        let family = family.ok_or_else(|| Problem::new(Kind::Busy, format!("run {id} is still starting")))?;
        let (runs, run) = (self.clone(), view.id);
        let work = tokio::spawn(async move {
            runs.note_state(&run, (RunState::Publishing, None));
            let published = family.publish(request.into_order()).await;
            if let Ok(report) = family.report().await {
                if report.lost_writes.files > 0 {
                    runs.metrics.lost_writes.increment();
                }
                runs.note_state(&run, state_of(&report));
            }
            let result = if published.is_ok() { "published" } else { "held" };
            runs.metrics.published.increment(&[("result", result)]);
            published
        });
        work.await.map_err(|_| Problem::new(Kind::System, "publishing failed; see the log"))??;
        self.view(id, caller)
    }

    /// The live runs behind volumes.
    pub fn of_volumes(&self) -> Vec<RunId> {
        let table = self.table.lock();
        let volumes = table.values().filter(|entry| entry.is_live() && entry.view.volume.is_some());
        volumes.map(|entry| entry.view.id.clone()).collect()
    }

    /// Number of live runs.
    pub fn live(&self) -> usize {
        self.table.lock().values().filter(|entry| entry.is_live()).count()
    }

    /// Makes a run; answers when it is mounted. Goes on even if whoever asks stops waiting.
    pub async fn create(
        self: &Arc<Self>,
        request: RunRequest,
        volume: Option<String>,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let (runs, began) = (self.clone(), Instant::now());
        let made = tokio::spawn(async move { runs.make(request, volume, caller).await }).await;
        let made = made.unwrap_or_else(|_| Err(Problem::new(Kind::System, "making the run failed; see the log")));
        match &made {
            Ok(_) => self.metrics.create.observe(began.elapsed()),
            Err(problem) => self.metrics.refused.increment(&[("problem", problem.kind.name())]),
        }
        made
    }

    async fn make(
        self: Arc<Self>,
        mut request: RunRequest,
        volume: Option<String>,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let settings = self.settings();
        let credentials = request.aws.credentials.take().map(|handed| handed.0);
        let own = settings.config.aws.node_credentials;
        let staging = staging::plan(&mut request, credentials.is_some(), own, caller)?;
        let view = self.plan(request, volume, caller, staging.as_ref(), &settings)?;
        let id = view.id.clone();
        self.reserve(view.clone(), &settings.config)?;
        match self.start(&view, staging, credentials, &settings).await {
            Ok((family, warnings)) => {
                let view = Note::of(&view, &self.service).into_view(&family, warnings);
                if let Some(entry) = self.table.lock().get_mut(&id) {
                    entry.family = Some(family.clone());
                    entry.view = view.clone();
                    entry.enter(RunState::Serving);
                }
                self.watch(id.clone(), family, view.volume.is_some());
                let mountpoint = view.mountpoint.clone();
                match beside(move || sight::prove(&mountpoint, caller)).await {
                    Ok(()) => Ok(view),
                    Err(unseen) => {
                        // Nobody has been told of it, so nothing is lost.
                        let ended = self.end(id.as_str(), true, Caller::ROOT).await;
                        let also = ended.err().map(|problem| format!("; {problem}")).unwrap_or_default();
                        Err(Problem::new(Kind::Unavailable, unseen + &also))
                    }
                }
            }
            Err(problem) => {
                self.table.lock().remove(&id);
                Err(problem)
            }
        }
    }

    /// Checks a request against what the caller may have; fills in what it leaves out.
    fn plan(
        &self,
        request: RunRequest,
        volume: Option<String>,
        caller: Caller,
        staging: Option<&StagingSpec>,
        settings: &Settings,
    ) -> Result<RunView, Problem> {
        let (config, roots) = (&settings.config, settings.roots_of(volume.is_some()));
        let owner = caller.owner(request.owner)?;
        let id = match request.id {
            Some(id) => id,
            None => RunId::random().map_err(|error| Problem::new(Kind::System, format!("random numbers: {error}")))?,
        };
        if volume.is_none() && id.as_str().starts_with(OF_VOLUMES) {
            let detail = format!("id `{id}`: ids that begin with `{OF_VOLUMES}` are those of volumes; choose another");
            return Err(Problem::new(Kind::Forbidden, detail));
        }
        if request.backing.len() > config.backing().count() {
            return Err(Problem::new(Kind::Usage, "backing: name each directory once"));
        }
        if let Some(foreign) = request.backing.iter().find(|wanted| !config.backing().any(|path| path == *wanted)) {
            let allowed: Vec<_> = config.backing().map(shown).collect();
            let detail = format!("backing {}: this node allows {}", shown(foreign), allowed.join(", "));
            return Err(Problem::new(Kind::Forbidden, detail));
        }
        if let Some(option) = request.options.iter().find(|option| !may_use(option, caller)) {
            let detail = format!("option `{option}`: only root may have it, one option in each element of the list");
            return Err(Problem::new(Kind::Forbidden, detail));
        }
        if let Some(deep) = request.mountpoint.as_ref().filter(|path| !caller.is_root() && !roots.holds(path)) {
            let example = roots.default_for(id.as_str());
            let detail = format!(
                "mountpoint {}: users have names in a root of this node, such as {}",
                shown(deep),
                shown(&example)
            );
            return Err(Problem::new(Kind::Forbidden, detail));
        }
        let backing = match request.backing.is_empty() {
            true => config.backing().take(1).map(Path::to_owned).collect(),
            false => request.backing,
        };
        Ok(RunView {
            mountpoint: request.mountpoint.unwrap_or_else(|| roots.default_for(id.as_str())),
            id,
            state: RunState::Starting,
            outcome: None,
            user: if volume.is_some() { caller.uid } else { owner.uid },
            volume,
            size: request.size.unwrap_or(config.defaults.size),
            memory: request.memory.unwrap_or(config.defaults.memory),
            backing,
            owner,
            mode: request.mode.unwrap_or(Mode(0o700)),
            options: request.options,
            inputs: staging.map(staging::inputs).unwrap_or_default(),
            output: staging.and_then(|staging| staging.output.as_ref()).map(ToString::to_string),
            problem: None,
            started: None,
            supervisor: None,
            sealed: None,
            warnings: Vec::new(),
        })
    }

    /// Enters the run into the table, if its name is free and the limits allow it.
    fn reserve(&self, view: RunView, config: &Config) -> Result<(), Problem> {
        let account = self.accounts.of(view.user);
        let mut table = self.table.lock();
        if table.get(&view.id).is_some_and(Entry::is_live) {
            let detail = format!("the id `{}` is taken; choose another id, or leave it out", view.id);
            return Err(Problem::new(Kind::InUse, detail));
        }
        let live = || table.values().filter(|entry| entry.is_live()).map(|entry| &entry.view);
        let (here, apart) =
            (&view.mountpoint, |one: &Path, other: &Path| !one.starts_with(other) && !other.starts_with(one));
        if live().any(|other| !apart(&other.mountpoint, here)) {
            let detail = format!("mountpoint {}: a live run is mounted there, below it or above it", shown(here));
            return Err(Problem::new(Kind::InUse, detail));
        }
        let limits = &config.limits;
        let all = Usage::of(live());
        all.check(&view, limits.runs, limits.bytes, limits.memory, "of this node")?;
        if view.user != 0 {
            let own = Usage::of(live().filter(|other| self.accounts.of(other.user) == account));
            let (limits, whose) = (&limits.per_user, format!("of user {account}"));
            own.check(&view, limits.runs, limits.bytes, limits.memory, &whose)?;
        }
        table.insert(view.id.clone(), Entry::new(view, None));
        Ok(())
    }

    async fn start(
        self: &Arc<Self>,
        view: &RunView,
        staging: Option<StagingSpec>,
        credentials: Option<Credentials>,
        settings: &Arc<Settings>,
    ) -> Result<(Family, Vec<String>), Problem> {
        let staging_slots;
        let slots = match &staging {
            Some(_) => {
                let new = || Arc::new(Semaphore::new(STAGING));
                staging_slots =
                    self.staging_slots.lock().entry(self.accounts.of(view.user)).or_insert_with(new).clone();
                &*staging_slots
            }
            None => &self.slots,
        };
        let _slot = slots.acquire().await.expect("never closed");
        let order = MountOrder {
            id: view.id.clone(),
            backing: view.backing.clone(),
            size: view.size.0,
            memory: view.memory.0,
            mountpoint: view.mountpoint.clone(),
            options: view.options.clone(),
            owner: (view.owner.uid, view.owner.gid),
            mode: view.mode.0,
            staging,
            note: serde_json::to_value(Note::of(view, &self.service)).expect("text and numbers only"),
        };
        let (settings, volume) = (settings.clone(), view.volume.is_some());
        let made = beside(move || {
            let (roots, patience) = (settings.roots_of(volume), settings.config.mounts.patience.0);
            let patience = if order.staging.is_some() { STAGING_TIME } else { patience };
            roots.make(&order.mountpoint).map_err(|problem| (problem, None))?;
            Family::start(&order, credentials, patience).map_err(|mut error| {
                roots.remove(&order.mountpoint);
                let left = error.left.take();
                (error.into(), left)
            })
        })
        .await;
        made.map_err(|(problem, left)| {
            // The caller need not wait for a disk that does not answer, nor anybody else for this slot.
            if let Some(family) = left {
                let runs = self.clone();
                tokio::spawn(async move { runs.clear_after(*family, volume).await });
            }
            problem
        })
    }

    /// Waits for the end of a family, and notes it.
    fn watch(self: &Arc<Self>, id: RunId, family: Family, volume: bool) {
        let runs = self.clone();
        tokio::spawn(async move {
            if runs.clear_after(family, volume).await {
                runs.note_end(&id);
            }
        });
    }

    /// Waits for the end of a family, and clears up after it; `false` if it cannot be watched.
    async fn clear_after(&self, family: Family, volume: bool) -> bool {
        if let Err(error) = processes_end(&family).await {
            tracing::error!("run {} cannot be watched: {error}", family.record.run_id);
            return false;
        }
        let settings = self.settings();
        beside(move || {
            if let Err(error) = family.clean_up() {
                tracing::warn!("{error}");
            }
            settings.roots_of(volume).remove(&family.record.mountpoint);
        })
        .await;
        true
    }

    fn note_end(&self, id: &RunId) {
        let mut table = self.table.lock();
        let Some(entry) = table.get_mut(id) else { return };
        let outcome = if entry.asked.is_some() { RunOutcome::Ended } else { RunOutcome::Gone };
        entry.view.outcome = Some(outcome);
        entry.ended = Some(Instant::now());
        entry.enter(RunState::Ended);
        match entry.asked {
            Some(asked) => {
                self.metrics.end.observe(asked.elapsed());
                self.metrics.ended.increment(&[("outcome", "ended")]);
                table.remove(id);
            }
            None => {
                tracing::warn!("run {id} ended without being asked to");
                self.metrics.ended.increment(&[("outcome", "gone")]);
                forget_old(&mut table);
            }
        }
    }

    /// Ends a run; answers when its key is gone. Of a run that has ended already, forgets it.
    pub async fn end(&self, id: &str, discard: bool, caller: Caller) -> Result<RunView, Problem> {
        let (mut view, mut state, family) =
            self.with(id, caller, |entry| (entry.view.clone(), entry.state.subscribe(), entry.family.clone()))?;
        if view.state == RunState::Ended {
            self.table.lock().remove(&view.id);
            return Ok(view);
        }
        // One that is staging hears this already.
        let starting =
            || Family::find(&view.id).ok().filter(|_| discard && !(view.inputs.is_empty() && view.output.is_none()));
        let Some(family) = family.or_else(starting) else {
            return Err(Problem::new(Kind::Busy, format!("run {id} is still starting; try again in a moment")));
        };
        self.with(id, caller, |entry| {
            entry.asked.get_or_insert_with(Instant::now);
        })?;
        let answer = family.end(discard).await;
        if let Err(error) = answer
            && !is_over(&state)
        {
            // A family that does not answer, or says so, is ending already.
            let refused = matches!(error, RunError::Refused(_));
            if refused && family.report().await.is_ok_and(|report| report.phase() != Some(Phase::End)) {
                self.with(id, caller, |entry| entry.asked = None)?;
                return Err(error.into());
            }
            tracing::info!("{error}");
        }
        let _ = self.with(id, caller, |entry| {
            if entry.is_live() {
                entry.enter(RunState::Ending);
            }
        });
        let over = state.wait_for(|state| *state == RunState::Ended);
        match tokio::time::timeout(END_TIME, over).await {
            Ok(_) => {
                view.state = RunState::Ended;
                view.outcome = Some(RunOutcome::Ended);
                Ok(view)
            }
            Err(_) => Err(Problem::new(Kind::Busy, format!("run {id} is still ending after {END_TIME:?}"))),
        }
    }

    /// Adds the gauges of runs to a page.
    pub fn measure(&self, page: &mut Page) {
        let settings = self.settings();
        let table = self.table.lock();
        let state = |wanted| table.values().filter(|entry| entry.view.state == wanted).count() as u64;
        page.gauge(
            "runseal_runs",
            "Runs",
            [
                (label("state", "starting"), state(RunState::Starting)),
                (label("state", "serving"), state(RunState::Serving)),
                (label("state", "publishing"), state(RunState::Publishing)),
                (label("state", "held"), state(RunState::Held)),
                (label("state", "published"), state(RunState::Published)),
                (label("state", "ending"), state(RunState::Ending)),
                (label("state", "ended"), state(RunState::Ended)),
            ],
        );
        let all = Usage::of(table.values().filter(|entry| entry.is_live()).map(|entry| &entry.view));
        let one = |value| [(String::new(), value)];
        page.gauge("runseal_reserved_bytes", "Sum of the sizes of live runs", one(all.bytes));
        page.gauge("runseal_reserved_memory_bytes", "Sum of the memory of live runs", one(all.memory));
        let limits = &settings.config.limits;
        page.gauge("runseal_limit_runs", "Most live runs", one(limits.runs as u64));
        let bytes = limits.bytes.map(|bytes| (String::new(), bytes.bytes()));
        page.gauge("runseal_limit_bytes", "Most bytes of all live runs", bytes);
        let memory = limits.memory.map(|bytes| (String::new(), bytes.bytes()));
        page.gauge("runseal_limit_memory_bytes", "Most memory of all live runs", memory);
    }
}

impl Note {
    fn of(view: &RunView, service: &Path) -> Self {
        Self {
            service: service.to_owned(),
            user: view.user,
            volume: view.volume.clone(),
            size: view.size,
            memory: view.memory,
            backing: view.backing.clone(),
            owner: view.owner,
            mode: view.mode,
            options: view.options.clone(),
            inputs: view.inputs.clone(),
            output: view.output.clone(),
        }
    }

    fn into_view(self, family: &Family, warnings: Vec<String>) -> RunView {
        let record = &family.record;
        RunView {
            id: record.run_id.clone(),
            state: RunState::Serving,
            outcome: None,
            user: self.user,
            volume: self.volume,
            mountpoint: record.mountpoint.clone(),
            size: self.size,
            memory: self.memory,
            backing: self.backing,
            owner: self.owner,
            mode: self.mode,
            options: self.options,
            inputs: self.inputs,
            output: self.output,
            problem: None,
            started: Some(record.started.clone()),
            supervisor: Some(record.supervisor),
            sealed: record.sealed,
            warnings,
        }
    }
}

/// What some runs have together.
#[derive(Debug, Default)]
struct Usage {
    runs: usize,
    bytes: u64,
    memory: u64,
}

impl Usage {
    fn of<'a>(views: impl Iterator<Item = &'a RunView>) -> Self {
        views.fold(Self::default(), |sum, view| Self {
            runs: sum.runs + 1,
            bytes: sum.bytes.saturating_add(view.size.bytes()),
            memory: sum.memory.saturating_add(view.memory.bytes()),
        })
    }

    fn check(
        &self,
        more: &RunView,
        runs: usize,
        bytes: Option<Size>,
        memory: Option<Size>,
        whose: &str,
    ) -> Result<(), Problem> {
        let refuse = |what: String| {
            let detail = format!("{what}; end runs that are done, ask for less, or ask the administrator for more");
            Err(Problem::new(Kind::Limit, detail))
        };
        if self.runs >= runs {
            return refuse(format!("the runs {whose} are limited to {runs}"));
        }
        for (what, used, wanted, limit) in
            [("bytes", self.bytes, more.size, bytes), ("memory", self.memory, more.memory, memory)]
        {
            if let Some(limit) = limit.filter(|limit| used.saturating_add(wanted.bytes()) > limit.bytes()) {
                return refuse(format!("the {what} {whose} are limited to {}", limit.0));
            }
        }
        Ok(())
    }
}

/// What a run with an output is doing, and why its results are held.
fn state_of(report: &Report) -> (RunState, Option<String>) {
    match report.phase() {
        Some(Phase::Publish) => (RunState::Publishing, None),
        Some(Phase::Held) => (RunState::Held, report.held.clone()),
        Some(Phase::End) => (RunState::Ending, None),
        _ if report.published.is_some() => (RunState::Published, None),
        _ => (RunState::Serving, None),
    }
}

/// What lets programs gain rights is for root only; so are options this list does not know.
fn may_use(option: &str, caller: Caller) -> bool {
    const HARMLESS: [&str; 10] =
        ["nosuid", "nodev", "exec", "noexec", "atime", "noatime", "nodiratime", "relatime", "strictatime", "lazytime"];
    caller.is_root() || HARMLESS.contains(&option)
}

fn is_over(state: &watch::Receiver<RunState>) -> bool {
    *state.borrow() == RunState::Ended
}

async fn processes_end(family: &Family) -> std::io::Result<()> {
    for process in family.watch()? {
        process::ended(process).await?;
    }
    Ok(())
}

fn forget_old(table: &mut BTreeMap<RunId, Entry>) {
    table.retain(|_, entry| entry.ended.is_none_or(|at| at.elapsed() < REMEMBERED));
    let mut ended: Vec<_> = table.iter().filter_map(|(id, entry)| Some((entry.ended?, id.clone()))).collect();
    ended.sort_unstable();
    for (_, id) in ended.iter().rev().skip(REMEMBERED_MOST) {
        table.remove(id);
    }
}
