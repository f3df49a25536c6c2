//! The runs of the node: made, published, ended, and adopted after a restart.
//!
//! Nothing here asks a family how it is until somebody wants to know: the kernel tells when its processes end (pidfd). One
//! lock guards the table; it is never held while anything is waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::account::Accounts;
use super::admission::{Admitted, admit};
use super::config::Config;
use super::metrics::{Metrics, Page, label};
use super::model::{Mode, Owner, PublishRequest, RunOutcome, RunRequest, RunState, RunView, Size};
use super::mountpoint::Roots;
use super::peer::Caller;
use super::problem::{Kind, Problem};
use super::sight;
use super::table::{Attempt, Change, Departure, Row, Table, Usage, told};
use crate::run::error::RunError;
use crate::run::{Family, MountOrder, Phase, beside};
use crate::spec::RunId;
use crate::sys::process;

/// Families that start at the same time; more would only wait for each other.
const STARTING: usize = 8;
/// Families that fetch for one user at the same time, and how long that may take: they hold no slot of the others.
const STAGING: usize = 16;
const STAGING_TIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a client waits for the end of a run. Open files alone keep one for five seconds.
const END_TIME: Duration = Duration::from_secs(50);

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

/// What becomes of results that are not published when their run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Results {
    /// The run does not end.
    Keep,
    /// They are lost.
    Discard,
}

/// The runs of this node.
pub struct Runs {
    settings: RwLock<Arc<Settings>>,
    service: PathBuf,
    table: Mutex<Table>,
    slots: Arc<Semaphore>,
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
    /// The roots for mountpoints of users, or of a `volume`.
    pub fn roots_of(&self, volume: Option<&str>) -> &Roots {
        self.volumes.as_ref().filter(|_| volume.is_some()).unwrap_or(&self.roots)
    }
}

impl Runs {
    /// No runs yet.
    pub fn new(settings: Settings, service: &Path, accounts: Arc<Accounts>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            settings: RwLock::new(Arc::new(settings)),
            service: service.to_owned(),
            table: Mutex::default(),
            slots: Arc::new(Semaphore::new(STARTING)),
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

    /// What the caller may see, by name.
    pub fn list(&self, caller: Caller) -> Vec<RunView> {
        let table = self.table.lock();
        table.rows().filter(|row| caller.may_see(row.view.user)).map(|row| row.view.clone()).collect()
    }

    /// One run, if the caller may see it.
    pub fn view(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        Ok(self.table.lock().row_for(id, caller)?.view.clone())
    }

    /// One run as it is now: of one with an output its family is asked, which others may have told to publish.
    pub async fn look(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        let (view, family) = {
            let mut table = self.table.lock();
            let row = table.row_for(id, caller)?;
            (row.view.clone(), row.family.clone())
        };
        let asks = view.output.is_some() && !matches!(view.state, RunState::Ending | RunState::Ended);
        if let (true, Some(family)) = (asks, family)
            && let Ok(report) = family.report().await
        {
            self.change(&view.id, told(&report));
        }
        self.view(id, caller)
    }

    fn change(&self, id: &RunId, (change, problem): (Change, Option<String>)) {
        if let Some(row) = self.table.lock().row(id) {
            row.change(change, problem);
        }
    }

    /// The live runs behind volumes.
    pub fn of_volumes(&self) -> Vec<RunId> {
        let table = self.table.lock();
        table.live().filter(|row| row.view.volume.is_some()).map(|row| row.view.id.clone()).collect()
    }

    /// Number of live runs.
    pub fn live(&self) -> usize {
        self.table.lock().live().count()
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
            let volume = view.volume.clone();
            view.state = RunState::Serving;
            let mut row = Row::new(view, Some(family.clone()));
            if row.view.output.is_some() {
                // One that does not answer now is asked again when somebody looks.
                let asked = crate::run::status(Some(id.as_str()))?;
                if let Some((_, Ok(report))) = asked.into_iter().next() {
                    let (change, problem) = told(&report);
                    row.change(change, problem);
                }
            }
            self.table.lock().enter(row);
            self.watch(id, family, volume);
            self.metrics.adopted.increment();
            count += 1;
        }
        let settings = self.settings();
        settings.volumes.iter().chain([&settings.roots]).for_each(Roots::sweep);
        Ok(count)
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
        request: RunRequest,
        volume: Option<String>,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let settings = self.settings();
        let rules = settings.clone();
        let admitted = beside(move || admit(request, volume, caller, &rules)).await?;
        let view = admitted.view.clone();
        let account = |user| self.accounts.of(user);
        self.table.lock().reserve(Row::new(view.clone(), None), &settings.config.limits, account)?;
        let (family, warnings) = match self.start(admitted, settings).await {
            Ok(started) => started,
            Err(problem) => {
                self.table.lock().forget(&view.id);
                return Err(problem);
            }
        };
        let view = self.serves(&view, &family, warnings);
        self.watch(view.id.clone(), family, view.volume.clone());
        let mountpoint = view.mountpoint.clone();
        match beside(move || sight::prove(&mountpoint, caller)).await {
            Ok(()) => Ok(view),
            Err(unseen) => {
                // Nobody has been told of it, so nothing is lost.
                let ended = self.end(view.id.as_str(), Results::Discard, Caller::ROOT).await;
                let also = ended.err().map(|problem| format!("; {problem}")).unwrap_or_default();
                Err(Problem::new(Kind::Unavailable, unseen + &also))
            }
        }
    }

    /// A run has come to be mounted.
    fn serves(&self, view: &RunView, family: &Family, warnings: Vec<String>) -> RunView {
        let view = Note::of(view, &self.service).into_view(family, warnings);
        if let Some(row) = self.table.lock().row(&view.id) {
            row.family = Some(family.clone());
            row.view = RunView { state: row.view.state, ..view.clone() };
            row.change(Change::Mounted, None);
        }
        view
    }

    /// Makes the mountpoint and starts the family; answers when it serves, with what it warned of.
    async fn start(
        self: &Arc<Self>,
        admitted: Admitted,
        settings: Arc<Settings>,
    ) -> Result<(Family, Vec<String>), Problem> {
        let Admitted { view, staging, credentials } = admitted;
        let slots = match &staging {
            Some(_) => {
                let new = || Arc::new(Semaphore::new(STAGING));
                self.staging_slots.lock().entry(self.accounts.of(view.user)).or_insert_with(new).clone()
            }
            None => self.slots.clone(),
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
            note: serde_json::to_value(Note::of(&view, &self.service)).expect("text and numbers only"),
        };
        let volume = view.volume.clone();
        let made = beside(move || {
            let (roots, patience) = (settings.roots_of(volume.as_deref()), settings.config.mounts.patience.0);
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
                tokio::spawn(async move { runs.clear_after(*family, view.volume).await });
            }
            problem
        })
    }

    /// Has a run publish its results; answers when it has. Goes on even if whoever asks stops waiting.
    pub async fn publish(
        self: &Arc<Self>,
        id: &str,
        request: PublishRequest,
        attempt: Attempt,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let run = self.look(id, caller).await?.id;
        let family = self.table.lock().row_for(id, caller)?.publisher(attempt)?;
        let runs = self.clone();
        let work = tokio::spawn(async move {
            runs.change(&run, (Change::Told(RunState::Publishing), None));
            let published = family.publish(request.into_order()).await;
            if let Ok(report) = family.report().await {
                if report.lost_writes.files > 0 {
                    runs.metrics.lost_writes.increment();
                }
                runs.change(&run, told(&report));
            }
            let result = if published.is_ok() { "published" } else { "held" };
            runs.metrics.published.increment(&[("result", result)]);
            published
        });
        work.await.map_err(|_| Problem::new(Kind::System, "publishing failed; see the log"))??;
        self.view(id, caller)
    }

    /// Ends a run; answers when its key is gone. Of a run that has ended already, forgets it.
    pub async fn end(&self, id: &str, results: Results, caller: Caller) -> Result<RunView, Problem> {
        let (view, mut state, family, stages) = {
            let mut table = self.table.lock();
            let row = table.row_for(id, caller)?;
            (row.view.clone(), row.listen(), row.family.clone(), row.stages())
        };
        if view.state == RunState::Ended {
            self.table.lock().forget(&view.id);
            return Ok(view);
        }
        // One that is staging hears this already.
        let starting = || Family::find(&view.id).ok().filter(|_| results == Results::Discard && stages);
        let Some(family) = family.or_else(starting) else {
            return Err(Problem::new(Kind::Busy, format!("run {id} is still starting; try again in a moment")));
        };
        self.table.lock().row_for(id, caller)?.asked.get_or_insert_with(Instant::now);
        if let Err(error) = family.end(results == Results::Discard).await
            && !is_over(&state)
        {
            // A family that does not answer, or says so, is ending already.
            let refused = matches!(error, RunError::Refused(_));
            if refused && family.report().await.is_ok_and(|report| report.phase() != Some(Phase::End)) {
                self.table.lock().row_for(id, caller)?.asked = None;
                return Err(error.into());
            }
            tracing::info!("{error}");
        }
        self.change(&view.id, (Change::Ending, None));
        let over = state.wait_for(|state| *state == RunState::Ended);
        match tokio::time::timeout(END_TIME, over).await {
            Ok(_) => Ok(RunView { state: RunState::Ended, outcome: Some(RunOutcome::Ended), ..view }),
            Err(_) => Err(Problem::new(Kind::Busy, format!("run {id} is still ending after {END_TIME:?}"))),
        }
    }

    /// Waits for the end of a family, and notes it.
    fn watch(self: &Arc<Self>, id: RunId, family: Family, volume: Option<String>) {
        let runs = self.clone();
        tokio::spawn(async move {
            if runs.clear_after(family, volume).await {
                runs.note_end(&id);
            }
        });
    }

    /// Waits for the end of a family, and clears up after it; `false` if it cannot be watched.
    async fn clear_after(&self, family: Family, volume: Option<String>) -> bool {
        if let Err(error) = processes_end(&family).await {
            tracing::error!("run {} cannot be watched: {error}", family.record.run_id);
            return false;
        }
        let settings = self.settings();
        beside(move || {
            if let Err(error) = family.clean_up() {
                tracing::warn!("{error}");
            }
            settings.roots_of(volume.as_deref()).remove(&family.record.mountpoint);
        })
        .await;
        true
    }

    fn note_end(&self, id: &RunId) {
        match self.table.lock().depart(id) {
            Some(Departure::Asked(time)) => {
                self.metrics.end.observe(time);
                self.metrics.ended.increment(&[("outcome", "ended")]);
            }
            Some(Departure::Unasked) => {
                tracing::warn!("run {id} ended without being asked to");
                self.metrics.ended.increment(&[("outcome", "gone")]);
            }
            None => {}
        }
    }

    /// Adds the gauges of runs to a page.
    pub fn measure(&self, page: &mut Page) {
        let settings = self.settings();
        let table = self.table.lock();
        let states = RunState::ALL.map(|state| {
            let count = table.rows().filter(|row| row.view.state == state).count() as u64;
            (label("state", &state.name()), count)
        });
        page.gauge("runseal_runs", "Runs", states);
        let all = Usage::of(table.live());
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

fn is_over(state: &watch::Receiver<RunState>) -> bool {
    *state.borrow() == RunState::Ended
}

async fn processes_end(family: &Family) -> std::io::Result<()> {
    for process in family.watch()? {
        process::ended(process).await?;
    }
    Ok(())
}
