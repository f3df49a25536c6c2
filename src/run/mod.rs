//! Composition root: preflight -> key -> store -> fs -> mount -> stage in -> command -> stage out -> wipe.
//!
//! ```text
//! supervisor            what the user started; no key                     supervisor.rs
//!   └─ sealed           PID 1 of its PID namespace; key, scratch, mount   sealed.rs, workflow.rs, seal.rs
//!        ├─ command     and all it starts                                 command.rs
//!        └─ ...
//! ```
//!
//! If the sealed process dies, the kernel kills all inside its PID namespace, and the mount namespace goes with them.
//! If the supervisor dies, the kernel kills the sealed process (`PR_SET_PDEATHSIG`). A plain mount (`mount.rs`) has
//! the same two processes without the namespaces.

mod cloud;
mod command;
mod control;
mod desk;
mod doctor;
mod ending;
pub mod error;
mod flush;
mod guests;
mod hold;
mod identity;
mod losses;
mod message;
mod mount;
mod namespace;
mod origin;
mod patience;
mod place;
mod preflight;
mod progress;
mod report;
mod rights;
mod seal;
mod sealed;
mod served;
mod service;
mod state;
mod supervisor;
mod terminal;
mod verify;
mod view;
mod visit;
mod workflow;

use std::path::Path;
use std::time::Duration;

pub use self::command::CommandError;
pub use self::control::ResumeOrder;
use self::control::{Reply, Visitors};
pub use self::doctor::{Fact, Verdict, examine};
pub use self::ending::end;
use self::error::{RunError, system};
pub use self::flush::{SUBCOMMAND as FLUSH_RESULTS, flush_here};
use self::identity::Identity;
pub use self::message::{Voice, warn};
pub use self::namespace::NamespaceError;
use self::place::Place;
use self::preflight::trail;
pub use self::preflight::{check_key, preflight};
use self::report::{Destination, Event, Outcome};
pub use self::report::{Phase, Report};
use self::sealed::Seat;
pub use self::sealed::beside;
pub use self::served::{Family, MountOrder, NotMounted, SUBCOMMAND as SERVED_MOUNT, mount_here};
pub use self::state::{Record, StateError};
use self::state::{State, Survey};
use self::supervisor::Supervisor;
use self::terminal::Terminal;
pub use self::verify::verify;
pub use self::visit::{copy, exec};
pub use crate::aws::{Credentials, CredentialsText};
pub use crate::fuse::knows_option as knows_mount_option;
pub use crate::preflight::{AWS_OWNED, Check, Evidence, Outcome as CheckOutcome, Profile};
use crate::spec::{CommandSpec, Purpose, RunSpec, TmpPolicy};
pub use crate::stage::{Demands as VerifyDemands, Verification};
use crate::sys::environment;
use crate::sys::process::{self, Inherited, Side};

/// How long `end` waits for a run to hear it.
const END_TIME: Duration = Duration::from_secs(30);
/// How long `status` waits for one run.
const STATUS_TIME: Duration = Duration::from_secs(3);

/// A run, from the first check to the last message; `code` is the table of exit codes. With `credentials`, AWS is asked
/// with those alone. Returns in each process of the family as it ends, with the exit status of `runseal`; only the
/// caller's own is the one the user waits for.
pub fn run(
    spec: RunSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    code: fn(&RunError) -> u8,
) -> Result<u8, RunError> {
    match spec.purpose.clone() {
        Purpose::Command(command) => run_command(spec, command, voice, code),
        Purpose::Serve(serving) => mount::mount(spec, serving, credentials, voice),
    }
}

fn run_command(spec: RunSpec, command: CommandSpec, voice: Voice, code: fn(&RunError) -> u8) -> Result<u8, RunError> {
    command::check(&command.argv.program)?;
    let destination = command.report.as_deref().map(claim_report).transpose()?;
    let mut report = Report::of(&spec);
    let result = match start(spec, command, voice, &report) {
        Ok(Started::Sealed(result)) => return result,
        Ok(Started::Supervisor(supervisor, place, state)) => {
            let terminal = Terminal::remember();
            let result = supervisor.watch(&mut report, |event| {
                // A new phase begins only when the processes of the one before are gone.
                if matches!(event, Event::Phase { .. }) {
                    terminal.take_back();
                }
                if let Event::Redirected { output } = event
                    && let Err(error) = state.publishes_to(output)
                {
                    warn(error);
                }
            });
            confirm_sealed(&place, &mut report, result)
        }
        Err(error) => {
            report.apply(Event::Done { outcome: Outcome::Refused, error: Some(error.to_string()) });
            Err(error)
        }
    };
    report.end(result.as_ref().map_or_else(code, |status| *status));
    match destination {
        Some(destination) => write_report(&destination, &report, result),
        None => result,
    }
}

/// Takes credentials of AWS out of what everybody with the right user reads in `/proc/PID/environ`; they are found as
/// before. To be called first of all.
///
/// # Errors
/// This process has more than one thread.
pub fn hide_credentials() -> Result<(), RunError> {
    environment::hide(cloud::leads_to_credentials).map_err(system("hiding credentials in the environment"))
}

/// For a process that has forked the one that needs them.
fn forget_credentials() -> Result<(), RunError> {
    environment::forget(cloud::leads_to_credentials).map_err(system("wiping credentials in the environment"))
}

/// Which process [`start`] returned in.
enum Started {
    /// The sealed one; its work is over.
    Sealed(Result<u8, RunError>),
    /// The supervisor, who sees the place of the scratch from outside; the state goes when it does.
    Supervisor(Supervisor, Place, State),
}

fn start(spec: RunSpec, command: CommandSpec, voice: Voice, report: &Report) -> Result<Started, RunError> {
    // Opened as the user, in the user's view of the tree, before anything else happens.
    let trail = trail(&spec.id, &spec.data)?;
    // Even if nothing is at AWS yet: results may be sent there in the end.
    process::make_paths_absolute(&cloud::PATH_VARIABLES).map_err(system("reading the environment"))?;
    let inherited = Inherited::capture().map_err(system("reading the signal mask"))?;
    let mut state = State::create(&spec.id, spec.data.output.as_ref())?;
    let place = Place::claim(state.base(), command.tmp == TmpPolicy::Scratch, command.rights.isolate.is_some())?;
    let mut record = Record::of(report, place.mountpoint.clone());
    state.record(&record)?;
    let (signals, link, sealed_link) = supervisor::connections()?;
    let socket = control::listen(&state.socket()).map_err(system("opening the control socket"))?;
    let identity = command.rights.isolate.as_ref().map(Identity::claim).transpose()?;
    let visitors = if identity.is_some() { Visitors::RootOnly } else { Visitors::Owner };
    let isolation = namespace::enter()?;
    match process::fork().map_err(system("fork"))? {
        Side::Child => {
            state.disown();
            drop((signals, link));
            let seat = Seat { link: sealed_link, report: report.clone(), socket, inherited, voice, visitors };
            Ok(Started::Sealed(sealed::run(spec, &command.rights, trail, place, isolation, identity, seat)))
        }
        Side::Parent(sealed) => {
            drop((sealed_link, socket));
            forget_credentials()?;
            record.add_sealed(sealed.as_raw() as u32);
            state.record(&record)?;
            Ok(Started::Supervisor(Supervisor { sealed, signals, link }, place, state))
        }
    }
}

/// A run whose data may lie in the clear beside its scratch has not succeeded.
fn confirm_sealed(place: &Place, report: &mut Report, result: Result<u8, RunError>) -> Result<u8, RunError> {
    let Some(path) = place.intruder() else { return result };
    let error = RunError::Beside(path.to_owned());
    report.error.get_or_insert_with(|| error.to_string());
    match result {
        Ok(0) => Err(error),
        failed => {
            warn(error);
            failed
        }
    }
}

/// A live run, and its report or why it does not answer.
pub type LiveRun = (Record, Result<Report, String>);

/// The live runs of this user and the mounts of dead ones, or only the one called `wanted`.
pub fn status(wanted: Option<&str>) -> Result<Vec<LiveRun>, RunError> {
    let Survey { live, dead } = state::survey()?;
    let live = live.into_iter().map(|record| {
        let answer = ask(record.run_id.as_str(), &control::Request::Status, Some(STATUS_TIME));
        let problem = |error: RunError| ending::condition(&record).unwrap_or_else(|| error.to_string());
        let report = answer.map_err(problem).and_then(|reply| reply.report.ok_or(reply.message));
        (record, report)
    });
    let dead = dead.into_iter().map(|record| {
        let problem = format!(
            "dead: its processes were killed; the mount stays until `runseal end {}`, umount(8) or the next `runseal mount` there",
            record.run_id
        );
        (record, Err(problem))
    });
    let wanted = |run: &LiveRun| wanted.is_none_or(|wanted| run.0.run_id.as_str() == wanted);
    Ok(live.chain(dead).filter(wanted).collect())
}

/// Has a held run try to publish again; returns what it answered.
pub fn resume(run: &str, order: ResumeOrder) -> Result<String, RunError> {
    if let Some(output) = &order.spec.output {
        state::check_output(output, run)?;
    }
    let reply = ask(run, &control::Request::Resume(order), None)?;
    if reply.incomplete { Err(RunError::Incomplete(reply.message)) } else { accepted(reply) }
}

fn accepted(reply: Reply) -> Result<String, RunError> {
    if reply.ok { Ok(reply.message) } else { Err(RunError::Refused(reply.message)) }
}

fn ask(run: &str, request: &control::Request, patience: Option<Duration>) -> Result<Reply, RunError> {
    let (record, socket) = state::find(run)?;
    control::ask(&socket, request, patience)
        .map_err(|source| RunError::Unreachable { run: record.run_id.to_string(), source })
}

fn claim_report(path: &Path) -> Result<Destination, RunError> {
    Destination::claim(path).map_err(|source| RunError::Report { path: path.to_owned(), source })
}

/// A run that succeeded but whose report cannot be written has not succeeded.
fn write_report(destination: &Destination, report: &Report, result: Result<u8, RunError>) -> Result<u8, RunError> {
    let Err(source) = destination.write(report) else { return result };
    let error = RunError::Report { path: destination.path().to_owned(), source };
    match result {
        Ok(0) => Err(error),
        failed => {
            warn(error);
            failed
        }
    }
}
