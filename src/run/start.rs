//! How the processes of a run come to be: the supervisor, which is the caller's own or one in the background, and the sealed
//! process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};

use super::error::{RunError, system};
use super::life::Run;
use super::preflight::trail;
use super::{cloud, forget_credentials};
use crate::audit::Trail;
use crate::aws::Credentials;
use crate::family::{
    Event, FamilyError, Outcome, Phase, Record, Report, Voice,
    command::{
        self,
        identity::Identity,
        namespace::{self, Isolation},
        place::Place,
    },
    control::socket::{self, Visitors},
    message::warn,
    process::{
        manager::Service,
        sealed::{self, Seat},
        supervisor::{self, Supervisor},
        terminal::Terminal,
    },
    state::{State, destination::Destination},
};
use crate::spec::{CommandRights, Foreground, Purpose, RunSpec};
use crate::sys::own_mount::{detach_stale, is_stale};
use crate::sys::path::shown;
use crate::sys::process::{self, Inherited, Side, Standing};

/// A run, from the first check to the last message; `code` is the table of exit codes. With `credentials`, AWS is asked
/// with those alone. Returns in each process of the family as it ends, with the exit status of `runseal`; only the
/// caller's own is the one the user waits for: when all has ended, or as soon as a mount in the background is ready.
pub fn run(
    mut spec: RunSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    code: fn(&RunError) -> u8,
) -> Result<u8, RunError> {
    let audience = match &mut spec.purpose {
        Purpose::Command(command) => {
            command::check(&command.argv.program)?;
            Audience::Nobody
        }
        Purpose::Serve(serving) => {
            let mountpoint = std::path::absolute(&serving.mountpoint);
            serving.mountpoint = mountpoint.map_err(system("finding the working directory"))?;
            match serving.foreground {
                Foreground::Stay => Audience::Manager(Service::take(&serving.mountpoint)?),
                Foreground::Leave => return in_background(spec, credentials, voice, code),
            }
        }
    };
    supervise(spec, credentials, voice, code, audience)
}

/// Until the mount is ready the others die with the caller.
fn in_background(
    spec: RunSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    code: fn(&RunError) -> u8,
) -> Result<u8, RunError> {
    let (reader, writer) = nix::unistd::pipe().map_err(system("pipe"))?;
    let caller = Pid::this();
    match process::fork().map_err(system("fork"))? {
        Side::Parent(daemon) => {
            drop((writer, credentials));
            forget_credentials()?;
            wait_ready(File::from(reader), daemon)
        }
        Side::Child => {
            drop(reader);
            process::die_with(caller).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
            nix::unistd::setsid().map_err(system("setsid"))?;
            supervise(spec, credentials, voice, code, Audience::Caller(Some(File::from(writer))))
        }
    }
}

/// The daemon writes one byte when the mount is ready. Without one it has ended, after telling why on stderr.
fn wait_ready(mut reader: File, daemon: Pid) -> Result<u8, RunError> {
    if reader.read(&mut [0]).is_ok_and(|n| n == 1) {
        return Ok(0);
    }
    match waitpid(daemon, None) {
        Ok(WaitStatus::Exited(_, status)) => Ok(status as u8),
        _ => Err(FamilyError::Lost("the supervisor of the mount died".to_owned()).into()),
    }
}

/// Who else is to hear how the run gets on.
enum Audience {
    /// Nobody.
    Nobody,
    /// The terminal that an interactive command may have taken.
    Terminal(Terminal),
    /// A manager of services.
    Manager(Service),
    /// Whoever has mounted, and waits for a byte.
    Caller(Option<File>),
}

impl Audience {
    fn hear(&mut self, event: &Event) {
        match (self, event) {
            // A new phase begins only when the processes of the one before are gone.
            (Self::Terminal(terminal), Event::Phase { .. }) => terminal.take_back(),
            (Self::Manager(service), event) => service.on_event(event),
            (Self::Caller(waiting), Event::Phase { phase: Phase::Serving }) => {
                if let Some(mut waiting) = waiting.take() {
                    let _ = process::outlive_parent().and_then(|()| detach_stdio());
                    let _ = waiting.write_all(&[0]);
                }
            }
            _ => {}
        }
    }
}

fn supervise(
    spec: RunSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    code: fn(&RunError) -> u8,
    audience: Audience,
) -> Result<u8, RunError> {
    let destination = spec.command().and_then(|command| command.report.as_deref());
    let destination = destination.map(claim_report).transpose()?;
    let mountpoint = spec.serving().map(|serving| serving.mountpoint.clone());
    let mut report = Report::of(&spec);
    let result = match start(spec, credentials, voice, &report) {
        Ok(Started::Sealed(result)) => return result,
        Ok(Started::Supervisor(supervisor, place, state)) => {
            let result = watch(supervisor, &state, &mut report, audience);
            match (place, mountpoint) {
                (Some(place), _) => confirm_sealed(&place, &mut report, result),
                (None, Some(mountpoint)) => uncover(&mountpoint, result),
                (None, None) => result,
            }
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

fn watch(supervisor: Supervisor, state: &State, report: &mut Report, mut audience: Audience) -> Result<u8, RunError> {
    if let Audience::Nobody = audience {
        audience = Audience::Terminal(Terminal::remember());
    }
    let result = supervisor.watch(report, |event| {
        audience.hear(event);
        if let Event::Redirected { output } = event
            && let Err(error) = state.publishes_to(output)
        {
            warn(error);
        }
    });
    Ok(result?)
}

/// Which process [`start`] returned in.
enum Started {
    /// The sealed one; its work is over.
    Sealed(Result<u8, RunError>),
    /// The supervisor, who sees the place of the scratch from outside; the state goes when it does.
    Supervisor(Supervisor, Option<Place>, State),
}

fn start(spec: RunSpec, credentials: Option<Credentials>, voice: Voice, report: &Report) -> Result<Started, RunError> {
    // Opened as the user, in the user's view of the tree, before anything else happens.
    let trail = trail(&spec.id, &spec.data)?;
    // Even if nothing is at AWS yet: results may be sent there in the end.
    process::make_paths_absolute(&cloud::PATH_VARIABLES).map_err(system("reading the environment"))?;
    let inherited = Inherited::capture().map_err(system("reading the signal mask"))?;
    let mut state = State::create(&spec.id, spec.data.output.as_ref())?;
    let ground = Ground::find(&spec, state.base())?;
    let note = spec.serving().and_then(|serving| serving.note.clone());
    let mut record = Record { note, ..Record::of(report, ground.mountpoint.clone()) };
    state.record(&record)?;
    let (signals, link, sealed_link) = supervisor::connections()?;
    let socket = socket::listen(&state.socket()).map_err(system("opening the control socket"))?;
    let ground = ground.enter(spec.command().map(|command| &command.rights))?;
    match process::fork().map_err(system("fork"))? {
        Side::Child => {
            state.disown();
            drop((signals, link));
            let visitors = if ground.identity.is_some() { Visitors::RootOnly } else { Visitors::Owner };
            let seat = Seat { link: sealed_link, report: report.clone(), socket, inherited, voice, visitors };
            let supervisor = Pid::from_raw(record.supervisor as i32);
            Ok(Started::Sealed(live(spec, trail, ground, credentials, supervisor, seat)))
        }
        Side::Parent(sealed) => {
            drop((sealed_link, socket, credentials));
            forget_credentials()?;
            record.add_sealed(sealed.as_raw() as u32);
            state.record(&record)?;
            Ok(Started::Supervisor(Supervisor { sealed, signals, link }, ground.place, state))
        }
    }
}

/// Life of the sealed process; returns the exit status of the command.
fn live(
    spec: RunSpec,
    trail: Trail,
    ground: Ground,
    credentials: Option<Credentials>,
    supervisor: Pid,
    seat: Seat,
) -> Result<u8, RunError> {
    let (standing, mountpoint) = (ground.standing, ground.mountpoint.clone());
    let trail = Arc::new(trail);
    let life = |desk| Run::new(spec, trail, mountpoint, standing, credentials, desk).work();
    sealed::live(seat, || ground.enclose(supervisor), life, RunError::outcome)
}

/// Where the scratch of a run appears, and what keeps others from its processes.
struct Ground {
    mountpoint: PathBuf,
    /// A view of its own, for a command; a mount is in the tree of whoever mounts.
    place: Option<Place>,
    /// As whom the command runs, and what it may.
    standing: Standing,
    /// The user of the command, if it has one of its own. Held as long as this lives.
    identity: Option<Identity>,
}

impl Ground {
    /// `base` holds the state of all runs.
    fn find(spec: &RunSpec, base: &Path) -> Result<Self, RunError> {
        let (mountpoint, place) = match &spec.purpose {
            Purpose::Command(command) => {
                let of_another = command.rights.isolate.is_some();
                let place = Place::claim(base, command.tmp, of_another)?;
                (place.mountpoint.clone(), Some(place))
            }
            Purpose::Serve(serving) => {
                let stale = is_stale(&serving.mountpoint).map_err(system("looking for the mount of a dead run"))?;
                let place = shown(&serving.mountpoint);
                if stale {
                    warn(format_args!(
                        "a dead run has left its mount on {place}: it is covered, and goes with the new one"
                    ));
                }
                (serving.mountpoint.clone(), None)
            }
        };
        Ok(Self { mountpoint, place, standing: Standing::Same, identity: None })
    }

    /// Has what this process forks next be in namespaces of its own, if it is for a command with these rights.
    fn enter(self, rights: Option<&CommandRights>) -> Result<Self, RunError> {
        let Some(rights) = rights else { return Ok(self) };
        let identity = rights.isolate.as_ref().map(Identity::claim).transpose()?;
        let isolation = namespace::enter()?;
        let standing = standing_of_command(rights, isolation, identity.as_ref());
        Ok(Self { standing, identity, ..self })
    }

    /// In the sealed process, before anything else: whatever it does then, stopped or hanging, it dies with its supervisor.
    fn enclose(&self, supervisor: Pid) -> Result<(), FamilyError> {
        let failed = "prctl(PR_SET_PDEATHSIG)";
        let Some(place) = &self.place else {
            return process::die_with(supervisor).map_err(crate::family::error::system(failed));
        };
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(crate::family::error::system(failed))?;
        namespace::seal_view(place)?;
        if self.standing == Standing::Bounded {
            namespace::guard_kernel();
        }
        Ok(())
    }
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

/// A run whose data may lie in the clear beside its scratch has not succeeded.
fn confirm_sealed(place: &Place, report: &mut Report, result: Result<u8, RunError>) -> Result<u8, RunError> {
    let Some(path) = place.intruder() else { return result };
    let error = FamilyError::Beside(path.to_owned());
    report.error.get_or_insert_with(|| error.to_string());
    not_all(error, result)
}

/// Takes the mount away that was killed for somebody who had asked for the end again and again.
fn uncover(mountpoint: &Path, result: Result<u8, RunError>) -> Result<u8, RunError> {
    if matches!(result, Err(RunError::Family(FamilyError::Interrupted { .. }))) {
        detach_stale(mountpoint).map_err(system("detaching the mount"))?;
    }
    result
}

fn claim_report(path: &Path) -> Result<Destination, RunError> {
    Destination::claim(path).map_err(|source| FamilyError::Report { path: path.to_owned(), source }.into())
}

/// A run that succeeded but whose report cannot be written has not succeeded.
fn write_report(destination: &Destination, report: &Report, result: Result<u8, RunError>) -> Result<u8, RunError> {
    let Err(source) = destination.write(report) else { return result };
    not_all(FamilyError::Report { path: destination.path().to_owned(), source }, result)
}

/// What makes a failure of a success, and is told beside another one.
fn not_all(error: FamilyError, result: Result<u8, RunError>) -> Result<u8, RunError> {
    match result {
        Ok(0) => Err(error.into()),
        failed => {
            warn(error);
            failed
        }
    }
}

/// Standard descriptors are of no use to a process nobody watches, and would keep pipes open.
pub fn detach_stdio() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(nix::unistd::dup2_stderr(&null)?)
}
