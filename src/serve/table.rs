//! The table of runs: what is known of each, and how its state changes. Nothing here waits or asks a process.
//!
//! ```text
//!   reserved        mounted
//!  ----------> starting ----> serving ----> publishing ----> published
//!                 |             |  ^          |     ^            |
//!        refused, |             |  |          v     |            |
//!       forgotten |             |  +------- (told) held          |
//!                 |             v                    |           |
//!                 +---------> ending <---------------+-----------+    somebody has asked for the end
//!                               |
//!                               v
//!                             ended    from every state, when the processes are gone: forgotten if somebody has asked for
//!                                      the end, shown for an hour if nobody has
//! ```
//!
//! Between serving, publishing, held and published the family says where it is: others than this service may tell it to
//! publish. What has begun to end goes on to end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::config::Limits;
use super::model::{RunOutcome, RunState, Size};
use super::peer::Caller;
use super::problem::{Problem, ProblemKind};
use crate::run::{Family, MountOrder, Phase, Report};
use crate::spec::RunId;
use crate::sys::path::shown;

/// How long a run that ended by itself is remembered, and how many of them.
const REMEMBERED: Duration = Duration::from_secs(3600);
const REMEMBERED_MOST: usize = 1000;

/// What changes the state of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunChange {
    /// Its mount is there, with all inputs.
    Mounted,
    /// Its family says that it is here.
    Told(RunState),
    /// Its family has begun to end, as somebody asked.
    Ending,
    /// Its processes are gone.
    Gone,
}

impl RunState {
    /// The state after `change`.
    fn after(self, change: RunChange) -> Self {
        match (self, change) {
            (_, RunChange::Gone) | (Self::Ended, _) => Self::Ended,
            (_, RunChange::Ending) | (Self::Ending, _) => Self::Ending,
            (Self::Starting, RunChange::Mounted) => Self::Serving,
            (Self::Starting, RunChange::Told(_)) => Self::Starting,
            (state, RunChange::Mounted) => state,
            (_, RunChange::Told(state)) => state,
        }
    }

    /// Fails unless a run in this state publishes when it is asked to, for this `attempt`.
    fn check_publish(self, attempt: PublishAttempt) -> Result<(), &'static str> {
        match (self, attempt) {
            (Self::Held, _) | (Self::Serving, PublishAttempt::First) => Ok(()),
            (Self::Serving, PublishAttempt::Again) => Err("is not held; publish it"),
            (Self::Published, _) => Err("is published already"),
            _ => Err("is starting, publishing or ending"),
        }
    }
}

/// Which attempt to publish somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishAttempt {
    /// Whichever comes next.
    First,
    /// One after another that has failed.
    Again,
}

/// What is known of one run.
pub struct RunRow {
    /// What it was ordered to be.
    pub order: MountOrder,
    /// Its processes, once they serve.
    pub family: Option<Family>,
    /// What the run warned of when it started.
    pub warnings: Vec<String>,
    /// When somebody asked here for the end, if anybody did.
    pub asked: Option<Instant>,
    /// Why results are held.
    pub problem: Option<String>,
    /// How it ended, if it has.
    pub outcome: Option<RunOutcome>,
    state: watch::Sender<RunState>,
    ended: Option<Instant>,
}

impl RunRow {
    /// A run that is to start.
    pub fn new(order: MountOrder) -> Self {
        Self {
            order,
            family: None,
            warnings: Vec::new(),
            asked: None,
            problem: None,
            outcome: None,
            state: watch::Sender::new(RunState::Starting),
            ended: None,
        }
    }

    /// Its processes serve, and have warned of something meanwhile.
    pub fn serve(&mut self, family: Family, warnings: Vec<String>) {
        (self.family, self.warnings) = (Some(family), warnings);
        self.change(RunChange::Mounted, None);
    }

    /// Its name.
    pub fn id(&self) -> &RunId {
        &self.order.spec.id
    }

    /// What it is doing.
    pub fn state(&self) -> RunState {
        *self.state.borrow()
    }

    /// Takes a change, and why results are held then.
    pub fn change(&mut self, change: RunChange, problem: Option<String>) {
        let state = self.state().after(change);
        if !matches!(state, RunState::Ending | RunState::Ended) {
            self.problem = problem;
        }
        self.state.send_replace(state);
    }

    /// Whether it has not ended.
    pub fn is_live(&self) -> bool {
        self.state() != RunState::Ended
    }

    /// Its processes, if they can tell more of it than is known here: others may have told them to publish.
    pub fn informant(&self) -> Option<Family> {
        let asks = self.order.spec.data.output.is_some() && !matches!(self.state(), RunState::Ending | RunState::Ended);
        self.family.clone().filter(|_| asks)
    }

    /// Hears of changes of its state.
    pub fn listen(&self) -> watch::Receiver<RunState> {
        self.state.subscribe()
    }

    /// Its processes, if it may publish now.
    pub fn publisher(&self, attempt: PublishAttempt) -> Result<Family, Problem> {
        let id = self.id();
        if self.order.spec.data.output.is_none() {
            return Err(Problem::new(ProblemKind::Usage, format!("run {id} has no output; name one when it is made")));
        }
        let busy = |why: &str| Problem::new(ProblemKind::Busy, format!("run {id} {why}"));
        self.state().check_publish(attempt).map_err(busy)?;
        self.family.clone().ok_or_else(|| busy("is still starting"))
    }
}

/// How a run left the table of live runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// This long after somebody had asked for it.
    Asked(Duration),
    /// Nobody had.
    Unasked,
}

/// All runs, by name.
#[derive(Default)]
pub struct RunTable(BTreeMap<RunId, RunRow>);

impl RunTable {
    /// Enters a run, if its name and mountpoint are free and the limits allow it. `account`: whom a user counts as.
    pub fn reserve(&mut self, row: RunRow, limits: &Limits, account: impl Fn(u32) -> u32) -> Result<(), Problem> {
        let (id, here) = (row.id(), &row.order.mount().mountpoint);
        if self.0.get(id).is_some_and(RunRow::is_live) {
            let detail = format!("the id `{id}` is taken; choose another id, or leave it out");
            return Err(Problem::new(ProblemKind::InUse, detail));
        }
        let apart = |other: &Path| !here.starts_with(other) && !other.starts_with(here);
        if self.live().any(|other| !apart(&other.order.mount().mountpoint)) {
            let detail = format!("mountpoint {}: a live run is mounted there, below it or above it", shown(here));
            return Err(Problem::new(ProblemKind::InUse, detail));
        }
        Reservation::of(self.live()).check(&row, (limits.runs, limits.bytes, limits.memory), "of this node")?;
        if row.order.user != 0 {
            let whose = account(row.order.user);
            let own = Reservation::of(self.live().filter(|other| account(other.order.user) == whose));
            let limits = &limits.per_user;
            own.check(&row, (limits.runs, limits.bytes, limits.memory), &format!("of user {whose}"))?;
        }
        self.enter(row);
        Ok(())
    }

    /// Enters a run that is there already.
    pub fn enter(&mut self, row: RunRow) {
        self.0.insert(row.id().clone(), row);
    }

    /// One run.
    pub fn row(&mut self, id: &RunId) -> Option<&mut RunRow> {
        self.0.get_mut(id)
    }

    /// One run, if the caller may see it.
    pub fn row_for(&mut self, id: &str, caller: Caller) -> Result<&mut RunRow, Problem> {
        let row = id.parse().ok().and_then(|id| self.0.get_mut(&id));
        row.filter(|row| caller.may_see(row.order.user)).ok_or_else(|| Problem::no_run(id))
    }

    /// Forgets a run.
    pub fn forget(&mut self, id: &RunId) {
        self.0.remove(id);
    }

    /// All runs, by name.
    pub fn rows(&self) -> impl Iterator<Item = &RunRow> {
        self.0.values()
    }

    /// Those that have not ended.
    pub fn live(&self) -> impl Iterator<Item = &RunRow> {
        self.rows().filter(|row| row.is_live())
    }

    /// The processes of a run are gone.
    pub fn depart(&mut self, id: &RunId) -> Option<Departure> {
        let row = self.0.get_mut(id)?;
        row.outcome = Some(if row.asked.is_some() { RunOutcome::Ended } else { RunOutcome::Gone });
        row.ended = Some(Instant::now());
        row.change(RunChange::Gone, None);
        match row.asked {
            Some(asked) => {
                self.forget(id);
                Some(Departure::Asked(asked.elapsed()))
            }
            None => {
                self.forget_old();
                Some(Departure::Unasked)
            }
        }
    }

    fn forget_old(&mut self) {
        self.0.retain(|_, row| row.ended.is_none_or(|at| at.elapsed() < REMEMBERED));
        let mut ended: Vec<_> = self.0.iter().filter_map(|(id, row)| Some((row.ended?, id.clone()))).collect();
        ended.sort_unstable();
        for (_, id) in ended.iter().rev().skip(REMEMBERED_MOST) {
            self.forget(id);
        }
    }
}

/// What some runs have together.
#[derive(Debug, Default)]
pub struct Reservation {
    runs: usize,
    /// Sum of their sizes.
    pub bytes: u64,
    /// Sum of their memory.
    pub memory: u64,
}

impl Reservation {
    /// Of these.
    pub fn of<'a>(rows: impl Iterator<Item = &'a RunRow>) -> Self {
        rows.map(|row| &row.order.spec.store).fold(Self::default(), |sum, store| Self {
            runs: sum.runs + 1,
            bytes: sum.bytes.saturating_add(store.size.unwrap_or_default().0),
            memory: sum.memory.saturating_add(store.memory.unwrap_or_default().0),
        })
    }

    /// Fails unless there is room for one `more` below the limits: runs, bytes and memory of `whose`.
    fn check(
        &self,
        more: &RunRow,
        (runs, bytes, memory): (usize, Option<Size>, Option<Size>),
        whose: &str,
    ) -> Result<(), Problem> {
        let refuse = |what: String| {
            let detail = format!("{what}; end runs that are done, ask for less, or ask the administrator for more");
            Err(Problem::new(ProblemKind::Limit, detail))
        };
        let store = &more.order.spec.store;
        if self.runs >= runs {
            return refuse(format!("the runs {whose} are limited to {runs}"));
        }
        for (what, used, wanted, limit) in
            [("bytes", self.bytes, store.size, bytes), ("memory", self.memory, store.memory, memory)]
        {
            if let Some(limit) = limit.filter(|limit| used.saturating_add(wanted.unwrap_or_default().0) > limit.bytes())
            {
                return refuse(format!("the {what} {whose} are limited to {}", limit.0));
            }
        }
        Ok(())
    }
}

/// What a run with an output is doing, and why its results are held.
pub fn told(report: &Report) -> (RunChange, Option<String>) {
    let state = match report.phase() {
        Some(Phase::Publish) => RunState::Publishing,
        Some(Phase::Held) => return (RunChange::Told(RunState::Held), report.held.clone()),
        Some(Phase::End) => RunState::Ending,
        _ if report.published.is_some() => RunState::Published,
        _ => RunState::Serving,
    };
    (RunChange::Told(state), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DataSpec, Location, Purpose, RunSpec, ServeSpec, StoreSpec};
    use crate::units::ByteSize;

    fn order(id: &str, user: u32, size: u64, mountpoint: &str) -> MountOrder {
        let size = Some(ByteSize(size));
        let output = Some(Location::S3("s3://bucket/".parse().expect("a URI")));
        let spec = RunSpec {
            id: id.parse().expect("an id"),
            store: StoreSpec { size, memory: size, ..StoreSpec::default() },
            data: DataSpec { output, ..DataSpec::default() },
            purpose: Purpose::Serve(ServeSpec::new(mountpoint)),
        };
        MountOrder { spec, service: "/run/serve.sock".into(), user, volume: None }
    }

    fn row(id: &str, user: u32, size: u64) -> RunRow {
        RunRow::new(order(id, user, size, &format!("/mnt/{id}")))
    }

    fn limits(runs: usize, bytes: u64) -> Limits {
        let mut limits = Limits { runs, bytes: None, memory: None, ..Limits::default() };
        limits.per_user.bytes = Some(Size(ByteSize(bytes)));
        limits
    }

    #[test]
    fn every_change_in_every_state_leads_where_the_drawing_says() {
        use RunState::*;
        let told = [Serving, Publishing, Held, Published, Ending].map(RunChange::Told);
        let changes: Vec<_> =
            [RunChange::Mounted].into_iter().chain(told).chain([RunChange::Ending, RunChange::Gone]).collect();
        for (state, after) in [
            (Starting, [Serving, Starting, Starting, Starting, Starting, Starting, Ending, Ended]),
            (Serving, [Serving, Serving, Publishing, Held, Published, Ending, Ending, Ended]),
            (Publishing, [Publishing, Serving, Publishing, Held, Published, Ending, Ending, Ended]),
            (Held, [Held, Serving, Publishing, Held, Published, Ending, Ending, Ended]),
            (Published, [Published, Serving, Publishing, Held, Published, Ending, Ending, Ended]),
            (Ending, [Ending, Ending, Ending, Ending, Ending, Ending, Ending, Ended]),
            (Ended, [Ended; 8]),
        ] {
            assert_eq!(changes.iter().map(|change| state.after(*change)).collect::<Vec<_>>(), after, "{state:?}");
        }
    }

    #[test]
    fn a_run_publishes_while_it_serves_or_is_held() {
        for state in RunState::ALL {
            let allowed =
                [PublishAttempt::First, PublishAttempt::Again].map(|attempt| state.check_publish(attempt).is_ok());
            let expected = match state {
                RunState::Serving => [true, false],
                RunState::Held => [true, true],
                _ => [false, false],
            };
            assert_eq!(allowed, expected, "{state:?}");
        }
        let mut row = row("a", 1000, 1);
        for (change, word) in [
            (RunChange::Told(RunState::Held), "starting, publishing or ending"),
            (RunChange::Mounted, "still starting"),
            (RunChange::Told(RunState::Published), "published already"),
        ] {
            row.change(change, None);
            assert!(row.publisher(PublishAttempt::First).expect_err(word).detail.contains(word));
        }
        row.order.spec.data.output = None;
        assert_eq!(row.publisher(PublishAttempt::First).expect_err("nowhere to").kind, ProblemKind::Usage);
    }

    #[test]
    fn who_waits_hears_every_change_and_why_results_are_held() {
        let mut row = row("a", 1000, 1);
        let heard = row.listen();
        row.change(RunChange::Mounted, None);
        row.change(RunChange::Told(RunState::Held), Some("denied".to_owned()));
        assert_eq!((*heard.borrow(), row.problem.as_deref()), (RunState::Held, Some("denied")));
        row.change(RunChange::Ending, None);
        assert_eq!((*heard.borrow(), row.is_live()), (RunState::Ending, true));
        row.change(RunChange::Gone, None);
        assert_eq!((*heard.borrow(), row.is_live()), (RunState::Ended, false));
    }

    #[test]
    fn names_mountpoints_and_limits_are_those_of_live_runs() {
        let mut table = RunTable::default();
        let own = |user| if user == 1001 { 1000 } else { user };
        let mut reserve =
            |row: RunRow, limits: &Limits| table.reserve(row, limits, own).map_err(|problem| problem.kind);
        let roomy = limits(10, 100);
        assert_eq!(reserve(row("a", 1000, 60), &roomy), Ok(()));
        assert_eq!(reserve(row("a", 0, 1), &roomy), Err(ProblemKind::InUse));
        let below = RunRow::new(order("b", 0, 1, "/mnt/a/deep"));
        assert_eq!(reserve(below, &roomy), Err(ProblemKind::InUse));
        assert_eq!(reserve(row("b", 1001, 41), &roomy), Err(ProblemKind::Limit), "of the same account");
        assert_eq!(reserve(row("b", 1002, 41), &roomy), Ok(()));
        assert_eq!(reserve(row("c", 0, 1000), &roomy), Ok(()), "root has no limit of its own");
        assert_eq!(reserve(row("d", 0, 1), &limits(3, 100)), Err(ProblemKind::Limit), "of the node");
        let gone = "a".parse().expect("an id");
        assert_eq!(table.depart(&gone), Some(Departure::Unasked));
        assert_eq!(table.row(&gone).expect("remembered").outcome, Some(RunOutcome::Gone));
        assert_eq!(
            table.reserve(row("a", 1000, 60), &roomy, own).map_err(|problem| problem.kind),
            Ok(()),
            "free again"
        );
        table.row(&gone).expect("there").asked = Some(Instant::now());
        assert!(matches!(table.depart(&gone), Some(Departure::Asked(_))) && table.row(&gone).is_none());
        assert_eq!(table.depart(&gone), None);
    }

    #[test]
    fn what_a_caller_may_not_see_is_not_there() {
        let mut table = RunTable::default();
        table.enter(row("a", 1000, 1));
        let alice = Caller { uid: 1000, gid: 1000, process: None };
        let bob = Caller { uid: 1001, gid: 1001, process: None };
        assert!(table.row_for("a", alice).is_ok() && table.row_for("a", Caller::ROOT).is_ok());
        for (id, caller) in [("a", bob), ("b", alice), ("../a", Caller::ROOT)] {
            assert_eq!(table.row_for(id, caller).err().expect("hidden").kind, ProblemKind::NotFound);
        }
    }
}
