//! The sealed process: what holds for every process that has a key, whatever it then does with it.
//!
//! One tokio thread takes orders (signals passed on by the supervisor, requests of the control socket) and waits for
//! children; staging and mounting run beside it. Every wait of the main flow hears orders, so nothing is deaf.

use std::future::Future;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use tokio::sync::mpsc;

use super::control::{self, Visitors};
use super::desk::{Desk, Farewell, read_link};
use super::error::{RunError, system};
use super::identity::Identity;
use super::message::{self, Voice};
use super::namespace::{self, Isolation};
use super::place::Place;
use super::report::{Event, Journal, Outcome, Report};
use super::seal::{KeySource, Room, Seal};
use super::supervisor::Signals;
use super::workflow::Run;
use crate::audit::Trail;
use crate::fuse::MountOptions;
use crate::spec::{CommandRights, MemoryLock, RootSpec, RunSpec, StoreSpec};
use crate::sys::capability::{self, Sets};
use crate::sys::memory;
use crate::sys::process::{Inherited, Standing, limit_core};

/// How long interrupted staging may take to clear away what it had begun.
pub const CLEARANCE: Duration = Duration::from_secs(5);
/// How long clients of the control socket may take to read their last answer.
const FAREWELL: Duration = Duration::from_secs(1);

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
    /// Who may have programs brought into the run, and files copied out of it.
    pub visitors: Visitors,
}

/// Life of the sealed process of `runseal run`; returns the exit status of the command.
///
/// `identity` is the user of the command, if it has one of its own.
pub fn run(
    spec: RunSpec,
    rights: &CommandRights,
    trail: Trail,
    place: Place,
    isolation: Isolation,
    identity: Option<Identity>,
    seat: Seat,
) -> Result<u8, RunError> {
    let standing = standing_of_command(rights, isolation, identity.as_ref());
    let enclose = || {
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
        namespace::seal_view(&place)?;
        if standing == Standing::Bounded {
            namespace::guard_kernel();
        }
        Ok(())
    };
    let mountpoint = place.mountpoint.clone();
    live(seat, enclose, |desk| Run::new(spec, trail, mountpoint, standing, None, desk).work())
}

/// As whom the command runs, and what it may. Root of a container without the right to mount is root in its namespace, and
/// its programs expect to be.
fn standing_of_command(rights: &CommandRights, isolation: Isolation, identity: Option<&Identity>) -> Standing {
    match (isolation, identity) {
        (_, Some(identity)) => Standing::Other(identity.id),
        (Isolation::UserNamespace, _) if !geteuid().is_root() => Standing::Plain,
        _ if rights.keep_capabilities => Standing::Same,
        _ => Standing::Bounded,
    }
}

/// Sets the process up (`enclose` first), lives, and reports how that ended.
pub fn live<F>(
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
        let server = tokio::spawn(control::serve(listener, seat.visitors, journal.clone(), sender.clone(), busy));
        read_link(seat.link, sender.clone());
        let result = life(Desk {
            orders,
            sender,
            journal,
            inherited: seat.inherited,
            voice: seat.voice,
            farewell: Farewell::default(),
        })
        .await;
        // Whoever waits for an answer gets it before this process is gone.
        server.abort();
        let _ = tokio::time::timeout(FAREWELL, idle.recv()).await;
        result
    });
    // Staging that was interrupted fails at its next read or write, now that the keys are gone, and then clears away
    // what it had begun outside.
    runtime.shutdown_timeout(CLEARANCE);
    result
}

/// What the sealed process needs as root: to read and write files of any owner for staging and publishing, to lock memory,
/// to mount, to start programs with less and as others, and to end them.
const KEPT: capability::Set = capability::CHOWN
    | capability::DAC_OVERRIDE
    | capability::DAC_READ_SEARCH
    | capability::FOWNER
    | capability::FSETID
    | capability::KILL
    | capability::SETGID
    | capability::SETUID
    | capability::SETPCAP
    | capability::LINUX_IMMUTABLE
    | capability::IPC_LOCK
    | capability::SYS_ADMIN
    | capability::SYS_RESOURCE
    | capability::SETFCAP;

/// Gives up all other capabilities, before there is a second thread: each has its own. A command of root has what the bounding
/// set leaves it. Those that were handed to an ordinary user are for its command as well, and stay.
fn shed_capabilities() -> Result<(), RunError> {
    let own = Sets::own().map_err(system("capget"))?;
    own.within(KEPT | own.inheritable).enter().map_err(system("capset"))
}

/// Before there is a key: no core dumps, no ptrace, no stop by the terminal, no working directory that would be in the
/// scratch. All signals the supervisor reads stay blocked, but for SIGCHLD.
fn harden() -> Result<(), RunError> {
    Signals::shield_from_terminal()?;
    shed_capabilities()?;
    prctl::set_dumpable(false).map_err(system("prctl(PR_SET_DUMPABLE)"))?;
    // One byte, not none: the command needs this limit (see `process::prepare`), and could not raise one of none.
    limit_core(1).map_err(system("setrlimit"))?;
    std::env::set_current_dir("/").map_err(system("chdir to /"))?;
    umask(Mode::from_bits_truncate(0o077));
    [Signal::SIGCHLD].into_iter().collect::<SigSet>().thread_unblock().map_err(system("unblocking SIGCHLD"))
}

/// Locks the memory of this process as far as the policy asks; answers whether all of it is locked.
pub fn lock_memory(policy: MemoryLock) -> Result<bool, RunError> {
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

fn outcome_of(error: &RunError, journal: &Journal) -> Outcome {
    match error {
        RunError::Interrupted { .. } | RunError::Ended { .. } => Outcome::Interrupted,
        RunError::Discarded(_) => Outcome::Discarded,
        RunError::Incomplete(_) => Outcome::Incomplete,
        RunError::Unpublished { .. } => Outcome::Unpublished,
        _ if journal.snapshot().command_status.is_some() => Outcome::Failed,
        _ => Outcome::Refused,
    }
}

/// Runs blocking work beside the runtime.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Draws the key and mounts, once the memory of this process is locked as far as it can be.
pub async fn make_seal(
    room: Room,
    spec: &StoreSpec,
    root: RootSpec,
    mountpoint: PathBuf,
    options: MountOptions,
    keys: KeySource,
    desk: &Desk,
) -> Result<Seal, RunError> {
    let (spec, journal) = (spec.clone(), desk.journal.clone());
    // Not interruptible: it takes a moment, and a mount half made would need to be found again.
    beside(move || Seal::make(room, &spec, root, &mountpoint, options, keys, &journal)).await
}
