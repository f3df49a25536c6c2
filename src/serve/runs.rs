//! The runs of the node: made, published, ended, and adopted after a restart.
//!
//! Nothing here asks a family how it is until somebody wants to know: the kernel tells when its processes end (pidfd). One
//! lock guards the table; it is never held while anything is waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};

use super::account::Accounts;
use super::admission::{Admission, admit};
use super::config::Config;
use super::metrics::{Metrics, MetricsPage, label};
use super::model::{PublishRequest, RunOutcome, RunRequest, RunState, RunView};
use super::mountpoint::Roots;
use super::peer::Caller;
use super::problem::{Problem, ProblemKind};
use super::sight;
use super::table::{Departure, PublishAttempt, Reservation, RunChange, RunRow, RunTable, told};
use crate::run::error::{FamilyError, RunError};
use crate::run::{Credentials, Family, MountOrder, Phase, Unpublished, beside};
use crate::spec::RunId;
use crate::sys::process;

/// Families that start at the same time; more would only wait for each other.
const STARTING: usize = 8;
/// Families that fetch for one user at the same time, and how long that may take: they hold no slot of the others.
const STAGING: usize = 16;
const STAGING_TIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a client waits for the end of a run. Open files alone keep one for five seconds.
const END_TIME: Duration = Duration::from_secs(50);

/// The runs of this node.
pub struct Runs {
    settings: RwLock<Arc<Settings>>,
    service: PathBuf,
    table: Mutex<RunTable>,
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
        table.rows().filter(|row| caller.may_see(row.order.user)).map(RunView::from).collect()
    }

    /// One run, if the caller may see it.
    pub fn view(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        Ok(RunView::from(&*self.table.lock().row_for(id, caller)?))
    }

    /// One run as it is now: of one with an output its family is asked, which others may have told to publish.
    pub async fn look(&self, id: &str, caller: Caller) -> Result<RunView, Problem> {
        let informant = self.table.lock().row_for(id, caller)?.informant();
        if let Some(family) = informant
            && let Ok(report) = family.report().await
        {
            self.change(&family.record.run_id, told(&report));
        }
        self.view(id, caller)
    }

    fn change(&self, id: &RunId, (change, problem): (RunChange, Option<String>)) {
        if let Some(row) = self.table.lock().row(id) {
            row.change(change, problem);
        }
    }

    /// The live runs behind volumes.
    pub fn of_volumes(&self) -> Vec<RunId> {
        let table = self.table.lock();
        table.live().filter(|row| row.order.volume.is_some()).map(|row| row.id().clone()).collect()
    }

    /// Number of live runs.
    pub fn live(&self) -> usize {
        self.table.lock().live().count()
    }

    /// Takes over the live runs an earlier life of this service has left. Blocks.
    pub fn adopt(self: &Arc<Self>) -> Result<usize, Problem> {
        let mut count = 0;
        for (family, order) in Family::all_of(&self.service)? {
            let (id, volume) = (order.spec.id.clone(), order.volume.clone());
            let mut row = RunRow::new(order);
            row.serve(family.clone(), Vec::new());
            if row.informant().is_some() {
                // One that does not answer now is asked again when somebody looks.
                let asked = crate::run::status(Some(id.as_str())).map_err(RunError::from)?;
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
        let made =
            made.unwrap_or_else(|_| Err(Problem::new(ProblemKind::System, "making the run failed; see the log")));
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
        let (rules, service) = (settings.clone(), self.service.clone());
        let Admission { order, credentials } = beside(move || admit(request, volume, caller, &rules, &service)).await?;
        let id = order.spec.id.clone();
        let account = |user| self.accounts.of(user);
        self.table.lock().reserve(RunRow::new(order.clone()), &settings.config.limits, account)?;
        let view = match self.start(order, credentials, settings).await {
            Ok(view) => view,
            Err(problem) => {
                self.table.lock().forget(&id);
                return Err(problem);
            }
        };
        let mountpoint = view.mountpoint.clone();
        match beside(move || sight::prove(&mountpoint, caller)).await {
            Ok(()) => Ok(view),
            Err(unseen) => {
                // Nobody has been told of it, so nothing is lost.
                let ended = self.end(view.id.as_str(), Unpublished::Discard, Caller::ROOT).await;
                let also = ended.err().map(|problem| format!("; {problem}")).unwrap_or_default();
                Err(Problem::new(ProblemKind::Unavailable, unseen + &also))
            }
        }
    }

    /// Makes the mountpoint and starts the family; answers when it serves.
    async fn start(
        self: &Arc<Self>,
        order: MountOrder,
        credentials: Option<Credentials>,
        settings: Arc<Settings>,
    ) -> Result<RunView, Problem> {
        let (id, volume, stages) = (order.spec.id.clone(), order.volume.clone(), !order.spec.data.is_nothing());
        let slots = if stages { self.staging_slots_of(order.user) } else { self.slots.clone() };
        let _slot = slots.acquire().await.expect("never closed");
        let made = beside(move || {
            let (roots, patience) = (settings.roots_of(order.volume.as_deref()), settings.config.mounts.patience.0);
            let (mountpoint, patience) = (&order.mount().mountpoint, if stages { STAGING_TIME } else { patience });
            roots.make(mountpoint).map_err(|problem| (problem, None))?;
            Family::start(&order, credentials, patience).map_err(|mut error| {
                roots.remove(mountpoint);
                let left = error.left.take();
                (error.into(), left)
            })
        })
        .await;
        let (family, warnings) = made.map_err(|(problem, left)| {
            // The caller need not wait for a disk that does not answer, nor anybody else for this slot.
            if let Some(family) = left {
                let (runs, volume) = (self.clone(), volume.clone());
                tokio::spawn(async move { runs.clear_after(*family, volume).await });
            }
            problem
        })?;
        if let Some(row) = self.table.lock().row(&id) {
            row.serve(family.clone(), warnings);
        }
        self.watch(id.clone(), family, volume);
        self.view(id.as_str(), Caller::ROOT)
    }

    fn staging_slots_of(&self, user: u32) -> Arc<Semaphore> {
        let new = || Arc::new(Semaphore::new(STAGING));
        self.staging_slots.lock().entry(self.accounts.of(user)).or_insert_with(new).clone()
    }

    /// Has a run publish its results; answers when it has. Goes on even if whoever asks stops waiting.
    pub async fn publish(
        self: &Arc<Self>,
        id: &str,
        request: PublishRequest,
        attempt: PublishAttempt,
        caller: Caller,
    ) -> Result<RunView, Problem> {
        let run = self.look(id, caller).await?.id;
        let family = self.table.lock().row_for(id, caller)?.publisher(attempt)?;
        let runs = self.clone();
        let work = tokio::spawn(async move {
            runs.change(&run, (RunChange::Told(RunState::Publishing), None));
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
        work.await.map_err(|_| Problem::new(ProblemKind::System, "publishing failed; see the log"))??;
        self.view(id, caller)
    }

    /// Ends a run; answers when its key is gone. Of a run that has ended already, forgets it.
    pub async fn end(&self, id: &str, results: Unpublished, caller: Caller) -> Result<RunView, Problem> {
        let (view, mut state, family, stages) = {
            let mut table = self.table.lock();
            let row = table.row_for(id, caller)?;
            (RunView::from(&*row), row.listen(), row.family.clone(), !row.order.spec.data.is_nothing())
        };
        if view.state == RunState::Ended {
            self.table.lock().forget(&view.id);
            return Ok(view);
        }
        // One that is staging hears this already.
        let starting = || Family::find(&view.id).ok().filter(|_| results == Unpublished::Discard && stages);
        let Some(family) = family.or_else(starting) else {
            return Err(Problem::new(ProblemKind::Busy, format!("run {id} is still starting; try again in a moment")));
        };
        self.table.lock().row_for(id, caller)?.asked.get_or_insert_with(Instant::now);
        if let Err(error) = family.end(results).await
            && !is_over(&state)
        {
            // A family that does not answer, or says so, is ending already.
            let refused = matches!(error, RunError::Family(FamilyError::Refused(_)));
            if refused && family.report().await.is_ok_and(|report| report.phase() != Some(Phase::End)) {
                self.table.lock().row_for(id, caller)?.asked = None;
                return Err(error.into());
            }
            tracing::info!("{error}");
        }
        self.change(&view.id, (RunChange::Ending, None));
        let over = state.wait_for(|state| *state == RunState::Ended);
        match tokio::time::timeout(END_TIME, over).await {
            Ok(_) => Ok(RunView { state: RunState::Ended, outcome: Some(RunOutcome::Ended), ..view }),
            Err(_) => Err(Problem::new(ProblemKind::Busy, format!("run {id} is still ending after {END_TIME:?}"))),
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
    pub fn measure(&self, page: &mut MetricsPage) {
        let settings = self.settings();
        let table = self.table.lock();
        let states = RunState::ALL.map(|state| {
            let count = table.rows().filter(|row| row.state() == state).count() as u64;
            (label("state", &state.name()), count)
        });
        page.gauge("runseal_runs", "Runs", states);
        let all = Reservation::of(table.live());
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

fn is_over(state: &watch::Receiver<RunState>) -> bool {
    *state.borrow() == RunState::Ended
}

async fn processes_end(family: &Family) -> std::io::Result<()> {
    for process in family.watch()? {
        process::ended(process).await?;
    }
    Ok(())
}
