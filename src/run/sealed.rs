//! The sealed process: holds key, scratch and mount, stages, runs the command, publishes.
//!
//! One tokio thread takes orders (signals passed on by the supervisor, requests of the control socket) and waits for
//! children; staging and mounting run beside it. Every wait of the main flow hears orders, so nothing is deaf.

use std::future::Future;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::command::{self, INPUT, OUTPUT, TMP, WORK};
use super::control::{self, Reply, Request};
use super::error::{PublishError, RunError, system};
use super::message::{self, Voice};
use super::namespace::Isolation;
use super::progress::Meter;
use super::report::{Event, Journal, Outcome, Phase, Report};
use super::seal::{Room, Seal};
use super::supervisor::Signals;
use super::{flush, namespace};
use crate::fuse::MountOptions;
use crate::preflight;
use crate::spec::{MemoryLock, MountSpec, RunSpec, StoreSpec};
use crate::stage::Stager;
use crate::sys::memory;
use crate::sys::process::{Inherited, limit_core};

/// How long a command may take to end after `runseal end --discard`.
const GRACE: Duration = Duration::from_secs(10);

/// How long clients of the control socket may take to read their last answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the supervisor passes on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Delivered {
    /// Number of the signal.
    pub signal: i32,
    /// Whether the terminal sent it, to the command as well.
    pub from_terminal: bool,
}

/// Something the sealed process is told to do.
#[derive(Debug)]
pub enum Order {
    /// A signal came to the supervisor.
    Signal(Signal, bool),
    /// A client of the control socket asks for something; it waits for the reply.
    Request(Request, oneshot::Sender<Reply>),
    /// The mount is gone.
    MountEnded,
    /// The supervisor is gone.
    Orphaned,
}

/// What the sealed process gets from the supervisor it was forked from.
pub struct Seat {
    /// Socket to the supervisor.
    pub link: UnixStream,
    /// The report so far.
    pub report: Report,
    /// The control socket.
    pub socket: UnixListener,
    /// What the user started runseal with.
    pub inherited: Inherited,
    /// How much to say.
    pub voice: Voice,
}

/// Where a sealed run happens.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory with the state of all runs.
    pub base: PathBuf,
    /// Private mountpoint below it.
    pub mountpoint: PathBuf,
    /// How the namespaces were had.
    pub isolation: Isolation,
}

type Orders = mpsc::UnboundedReceiver<Order>;

/// Life of the sealed process of `runseal run`; returns the exit status of the command.
pub fn run(spec: RunSpec, place: Place, seat: Seat) -> Result<u8, RunError> {
    let enclose = || {
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
        Ok(namespace::seal_view(&place.base, &place.mountpoint)?)
    };
    let Place { mountpoint, isolation, .. } = place.clone();
    // Root of a container without the right to mount is root in its namespace, and its programs expect to be.
    let drop_capabilities = isolation == Isolation::UserNamespace && !geteuid().is_root();
    live(seat, enclose, |desk| Run { spec, mountpoint, drop_capabilities, desk }.work())
}

/// Life of the sealed process of `runseal mount`. `ready` is called once the mount is there.
pub fn mount(spec: MountSpec, seat: Seat, ready: impl FnOnce() -> io::Result<()>) -> Result<u8, RunError> {
    live(seat, || Ok(()), |desk| serve_mount(spec, desk, ready))
}

/// Where orders come in and events go out.
struct Desk {
    orders: Orders,
    sender: mpsc::UnboundedSender<Order>,
    journal: Arc<Journal>,
    inherited: Inherited,
    voice: Voice,
}

/// Sets the process up, lives, and reports how that ended.
fn live<F>(
    seat: Seat,
    enclose: impl FnOnce() -> Result<(), RunError>,
    life: impl FnOnce(Desk) -> F,
) -> Result<u8, RunError>
where
    F: Future<Output = Result<(Outcome, u8), RunError>>,
{
    let voice = seat.link.try_clone().map_err(system("copying a socket"))?;
    let journal = Arc::new(Journal::new(seat.report.clone(), voice));
    let result = enclose().and_then(|()| harden()).and_then(|()| in_runtime(seat, journal.clone(), life));
    let (outcome, error) = match &result {
        Ok((outcome, _)) => (*outcome, None),
        Err(error) => (outcome_of(error, &journal), Some(error.to_string())),
    };
    journal.record(Event::Done { outcome, error });
    result.map(|(_, status)| status)
}

fn in_runtime<F>(seat: Seat, journal: Arc<Journal>, life: impl FnOnce(Desk) -> F) -> F::Output
where
    F: Future<Output = Result<(Outcome, u8), RunError>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("starting the runtime"))?;
    let result = runtime.block_on(async {
        let (sender, orders) = mpsc::unbounded_channel();
        let listener =
            tokio::net::UnixListener::from_std(seat.socket).map_err(system("watching the control socket"))?;
        let (busy, mut idle) = mpsc::channel(1);
        let server = tokio::spawn(control::serve(listener, journal.clone(), sender.clone(), busy));
        read_link(seat.link, sender.clone());
        let result = life(Desk { orders, sender, journal, inherited: seat.inherited, voice: seat.voice }).await;
        // Whoever waits for an answer gets it before this process is gone.
        server.abort();
        let _ = tokio::time::timeout(FAREWELL, idle.recv()).await;
        result
    });
    // Staging that was interrupted may still be at work: it ends with the process.
    runtime.shutdown_background();
    result
}

/// Before there is a key: no core dumps, no ptrace, no stop by the terminal, no working directory that would be in the
/// scratch. All signals the supervisor reads stay blocked, but for SIGCHLD.
fn harden() -> Result<(), RunError> {
    Signals::shield_from_terminal()?;
    prctl::set_dumpable(false).map_err(system("prctl(PR_SET_DUMPABLE)"))?;
    // One byte, not none: the command needs this limit (see `process::prepare`), and could not raise one of none.
    limit_core(1).map_err(system("setrlimit"))?;
    std::env::set_current_dir("/").map_err(system("chdir to /"))?;
    umask(Mode::from_bits_truncate(0o077));
    [Signal::SIGCHLD].into_iter().collect::<SigSet>().thread_unblock().map_err(system("unblocking SIGCHLD"))
}

/// Locks the memory of this process as far as the policy asks; answers whether all of it is locked.
fn lock_memory(policy: MemoryLock) -> Result<bool, RunError> {
    match (memory::lock_process_memory(), policy) {
        (Ok(()), _) => Ok(true),
        (Err(source), MemoryLock::Require) => Err(RunError::MemoryLock { source }),
        (Err(error), MemoryLock::Try) => {
            if memory::swap_active().unwrap_or(true) {
                message::warn(format_args!(
                    "memory cannot be locked ({error}) and swap is on: plaintext may be swapped out; raise \
                     RLIMIT_MEMLOCK (ulimit -l unlimited), or turn swap off"
                ));
            }
            Ok(false)
        }
    }
}

/// A thread that turns what the supervisor sends into orders, and its silence into the last one.
fn read_link(link: UnixStream, orders: mpsc::UnboundedSender<Order>) {
    std::thread::spawn(move || {
        for line in BufReader::new(link).lines().map_while(Result::ok) {
            if let Ok(Delivered { signal, from_terminal }) = serde_json::from_str(&line)
                && let Ok(signal) = Signal::try_from(signal)
            {
                let _ = orders.send(Order::Signal(signal, from_terminal));
            }
        }
        let _ = orders.send(Order::Orphaned);
    });
}

fn outcome_of(error: &RunError, journal: &Journal) -> Outcome {
    match error {
        RunError::Interrupted { .. } | RunError::Ended { .. } => Outcome::Interrupted,
        RunError::Discarded(_) => Outcome::Discarded,
        _ if journal.snapshot().command_status.is_some() => Outcome::Failed,
        _ => Outcome::Refused,
    }
}

/// Runs blocking work beside the runtime.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A sealed run.
struct Run {
    spec: RunSpec,
    mountpoint: PathBuf,
    drop_capabilities: bool,
    desk: Desk,
}

impl Run {
    async fn work(mut self) -> Result<(Outcome, u8), RunError> {
        let (cleared, room) = self.preflight().await?;
        let seal = self.seal(room).await?;
        let result = self.in_scratch(cleared, &seal).await;
        // On every way out: nothing of the run may outlive the key.
        command::kill_everything();
        self.desk.phase(Phase::End);
        seal.close(&self.desk.journal).await;
        result
    }

    async fn preflight(&mut self) -> Result<(preflight::Cleared, Room), RunError> {
        self.desk.phase(Phase::Preflight);
        let spec = self.spec.clone();
        let check = beside(move || {
            let room = Room::find(&spec.store)?;
            let cleared = preflight::check(&spec.inputs, spec.output.as_deref(), spec.overwrite, room.size)?;
            Ok((cleared, room))
        });
        self.desk.guard("checking inputs and output", 0, check).await?
    }

    async fn seal(&mut self, room: Room) -> Result<Seal, RunError> {
        self.desk.phase(Phase::Seal);
        // "Other" can only be those of the run: nobody else sees the mount.
        let options = MountOptions { allow_other: true, ..MountOptions::default() };
        make_seal(room, &self.spec.store, self.mountpoint.clone(), options, &self.desk).await
    }

    async fn in_scratch(&mut self, cleared: preflight::Cleared, seal: &Seal) -> Result<(Outcome, u8), RunError> {
        let input = seal.make_dir(INPUT, 0o755)?;
        let output = seal.make_dir(OUTPUT, 0o755)?;
        seal.make_dir(WORK, 0o755)?;
        seal.make_dir(TMP, 0o1777)?;
        let meter = Arc::new(Meter::new(self.desk.voice));
        let stager = Arc::new(Stager::new(cleared, seal.scratch.clone(), self.spec.id.clone(), meter));
        self.desk.watch(seal);

        if !self.spec.inputs.is_empty() {
            self.fetch(stager.clone(), input).await?;
        }
        let status = self.command().await?;
        command::kill_everything();
        if status != 0 {
            let lost = if self.spec.output.is_some() { "; nothing was published" } else { "" };
            message::warn(format_args!("the command ended with status {status}{lost}"));
            return Ok((Outcome::CommandFailed, status));
        }
        if self.spec.output.is_none() {
            return Ok((Outcome::Succeeded, 0));
        }
        self.publish_or_hold(stager, output).await?;
        Ok((Outcome::Published, 0))
    }

    async fn fetch(&mut self, stager: Arc<Stager>, into: u64) -> Result<(), RunError> {
        self.desk.phase(Phase::Fetch);
        let fetched = self.desk.guard("staging the inputs", 0, beside(move || stager.fetch(into))).await?;
        let totals = fetched.map_err(RunError::Fetch)?;
        self.desk.journal.record(Event::Staged { totals: serde_json::to_value(totals).unwrap_or_default() });
        Ok(())
    }

    /// Starts the command and waits for it; orders reach it as signals.
    async fn command(&mut self) -> Result<u8, RunError> {
        const DOING: &str = "the command was running";
        let mut children = signal(SignalKind::child()).map_err(system("watching children"))?;
        self.desk.phase(Phase::Command);
        let RunSpec { command: argv, id, .. } = &self.spec;
        let pid = command::start(argv, &self.mountpoint, id.as_str(), self.desk.inherited, self.drop_capabilities)?;
        let mut interrupts = 0;
        let mut deadline: Option<tokio::time::Instant> = None;
        loop {
            let patience = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let order = tokio::select! {
                _ = children.recv() => match command::reap(pid) {
                    Some(_) if deadline.is_some() => return Err(RunError::Ended { doing: DOING }),
                    Some(status) => {
                        self.desk.journal.record(Event::CommandEnded { status });
                        return Ok(status);
                    }
                    None => continue,
                },
                () = patience => return Err(RunError::Ended { doing: DOING }),
                order = self.desk.next() => order,
            };
            match order {
                Order::Signal(signal, from_terminal) => {
                    interrupts += u32::from(asks_to_end(signal));
                    if interrupts > 1 {
                        return Err(RunError::Interrupted { signal, doing: DOING });
                    }
                    if !from_terminal {
                        // It may have ended just now; then its status tells.
                        let _ = kill(pid, signal);
                    }
                }
                Order::Request(Request::End { discard: true }, reply) => {
                    let _ = kill(pid, Signal::SIGTERM);
                    let _ = kill(pid, Signal::SIGCONT);
                    deadline = Some(tokio::time::Instant::now() + GRACE);
                    let _ = reply.send(Reply::done("ending; the results of this run are discarded"));
                }
                order => self.desk.decline(order, DOING)?,
            }
        }
    }

    /// Publishes; if that fails, holds the results until somebody resumes or discards.
    async fn publish_or_hold(&mut self, stager: Arc<Stager>, from: u64) -> Result<(), RunError> {
        let mut waiting: Option<oneshot::Sender<Reply>> = None;
        loop {
            let error = match self.publish(stager.clone(), from).await? {
                Ok(()) => {
                    self.answer(&mut waiting, Reply::done("published"));
                    return Ok(());
                }
                Err(error) => error,
            };
            self.answer(&mut waiting, Reply::refused(format!("still held: {error}")));
            self.hold(&error);
            match self.wait_held().await {
                Some(reply) => waiting = Some(reply),
                None => return Err(RunError::Discarded(error)),
            }
        }
    }

    async fn publish(&mut self, stager: Arc<Stager>, from: u64) -> Result<Result<(), PublishError>, RunError> {
        self.desk.phase(Phase::Publish);
        let (output, journal) = (self.mountpoint.join(OUTPUT), self.desk.journal.clone());
        let work = beside(move || {
            flush::flush_tree(&output)?;
            let totals = stager.publish(from)?;
            journal.record(Event::Published { totals: serde_json::to_value(totals).unwrap_or_default() });
            Ok(())
        });
        self.desk.guard("publishing the results", 1, work).await
    }

    fn hold(&self, error: &PublishError) {
        let id = &self.spec.id;
        self.desk.journal.record(Event::HeldBecause { problem: error.to_string() });
        self.desk.phase(Phase::Held);
        message::warn(format_args!("the results could not be published: {error}"));
        message::warn(format_args!("run {id} is held: its results stay in the sealed scratch as long as this process"));
        message::warn(format_args!("  when the cause is gone:  runseal resume {id}"));
        message::warn(format_args!("  to give the results up:  runseal end --discard {id}"));
    }

    /// Waits until somebody resumes (and wants an answer), or discards.
    async fn wait_held(&mut self) -> Option<oneshot::Sender<Reply>> {
        let mut warned = false;
        loop {
            match self.desk.next().await {
                Order::Request(Request::Resume, reply) => return Some(reply),
                Order::Request(Request::End { discard: true }, reply) => {
                    let _ = reply.send(Reply::done("discarded"));
                    return None;
                }
                Order::Request(_, reply) => {
                    let id = &self.spec.id;
                    let _ = reply.send(Reply::refused(format!(
                        "run {id} holds results that are not published: `runseal resume {id}` publishes them, `runseal \
                         end --discard {id}` gives them up"
                    )));
                }
                Order::Signal(signal, _) if asks_to_end(signal) && warned => return None,
                Order::Signal(signal, _) if asks_to_end(signal) => {
                    warned = true;
                    message::warn("the results are not published yet; the same signal again discards them");
                }
                Order::Signal(..) => {}
                // Results are read from the scratch itself: publishing does not need the mount.
                Order::MountEnded => {}
                Order::Orphaned => return None,
            }
        }
    }

    fn answer(&self, waiting: &mut Option<oneshot::Sender<Reply>>, reply: Reply) {
        if let Some(sender) = waiting.take() {
            // Whoever asked may have left.
            let _ = sender.send(reply);
        }
    }
}

/// Serves a plain mount until it is unmounted, ended or orphaned.
async fn serve_mount(
    spec: MountSpec,
    mut desk: Desk,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<(Outcome, u8), RunError> {
    desk.phase(Phase::Seal);
    let store = spec.store.clone();
    let room = desk.guard("opening the backing", 0, beside(move || Room::find(&store))).await??;
    let options =
        MountOptions { options: spec.options.clone(), allow_other: geteuid().is_root(), ..MountOptions::default() };
    let seal = make_seal(room, &spec.store, spec.mountpoint, options, &desk).await?;
    desk.watch(&seal);
    let ready = ready().map_err(system("opening /dev/null"));
    if ready.is_ok() {
        desk.phase(Phase::Serving);
        desk.wait_for_end().await;
    }
    desk.phase(Phase::End);
    seal.close(&desk.journal).await;
    ready.map(|()| (Outcome::Succeeded, 0))
}

async fn make_seal(
    room: Room,
    spec: &StoreSpec,
    mountpoint: PathBuf,
    options: MountOptions,
    desk: &Desk,
) -> Result<Seal, RunError> {
    let (spec, journal) = (spec.clone(), desk.journal.clone());
    let locked = lock_memory(spec.memory_lock)?;
    // Not interruptible: it takes a moment, and a mount half made would need to be found again.
    beside(move || Seal::make(room, &spec, &mountpoint, &options, locked, &journal)).await
}

impl Desk {
    fn phase(&self, phase: Phase) {
        self.journal.record(Event::Phase { phase });
    }

    async fn next(&mut self) -> Order {
        self.orders.recv().await.unwrap_or(Order::Orphaned)
    }

    /// Turns the end of the mount into an order.
    fn watch(&self, seal: &Seal) {
        let (mount, orders) = (seal.mount.clone(), self.sender.clone());
        std::thread::spawn(move || {
            mount.wait();
            let _ = orders.send(Order::MountEnded);
        });
    }

    /// Does `work`, unless more than `tolerated` signals or an order end it first.
    async fn guard<T>(
        &mut self,
        doing: &'static str,
        tolerated: u32,
        work: impl Future<Output = T>,
    ) -> Result<T, RunError> {
        let mut work = std::pin::pin!(work);
        let mut interrupts = 0;
        loop {
            let order = tokio::select! {
                done = &mut work => return Ok(done),
                order = self.next() => order,
            };
            match order {
                Order::Signal(signal, _) if asks_to_end(signal) || signal == Signal::SIGHUP => {
                    interrupts += 1;
                    if interrupts > tolerated {
                        return Err(RunError::Interrupted { signal, doing });
                    }
                    message::warn(format_args!("{doing}; the same signal again ends the run"));
                }
                Order::Signal(..) => {}
                Order::Request(Request::End { discard: true }, reply) => {
                    let _ = reply.send(Reply::done("ending; the results of this run are discarded"));
                    return Err(RunError::Ended { doing });
                }
                order => self.decline(order, doing)?,
            }
        }
    }

    /// What every part of a run answers in the same way.
    fn decline(&self, order: Order, doing: &'static str) -> Result<(), RunError> {
        match order {
            Order::Request(Request::Resume, reply) => {
                let _ = reply.send(Reply::refused(format!("nothing is held: {doing}")));
            }
            Order::Request(_, reply) => {
                let _ = reply
                    .send(Reply::refused(format!("{doing}; `runseal end --discard` ends the run without results")));
            }
            Order::MountEnded => return Err(RunError::MountLost { doing }),
            Order::Orphaned => return Err(RunError::Interrupted { signal: Signal::SIGKILL, doing }),
            Order::Signal(..) => {}
        }
        Ok(())
    }

    async fn wait_for_end(&mut self) {
        loop {
            match self.next().await {
                Order::Signal(signal, _) if asks_to_end(signal) || signal == Signal::SIGHUP => return,
                Order::Request(Request::End { .. }, reply) => {
                    let _ = reply.send(Reply::done("ending"));
                    return;
                }
                Order::Request(_, reply) => {
                    let _ = reply.send(Reply::refused("a mount has nothing to resume"));
                }
                Order::MountEnded | Order::Orphaned => return,
                Order::Signal(..) => {}
            }
        }
    }
}

fn asks_to_end(signal: Signal) -> bool {
    matches!(signal, Signal::SIGINT | Signal::SIGTERM)
}
