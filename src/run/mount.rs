//! A plain sealed mount: the same two processes, in the namespaces of whoever asked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::control::{self, Visitors};
use super::error::{RunError, system};
use super::message::{Voice, warn};
use super::preflight::trail;
use super::report::{Event, Phase, Report};
use super::sealed::{self, Seat};
use super::service::Service;
use super::state::{Record, State};
use super::supervisor::{self, Supervisor};
use super::workflow::Run;
use crate::aws::Credentials;
use crate::fuse;
use crate::spec::{Foreground, Purpose, RunSpec, ServeSpec};
use crate::sys::path::shown;
use crate::sys::process::{self, Inherited, Side, Standing};

/// Mounts, and returns when the mount is ready; with `foreground`, when it has ended. Returns in each process of the
/// family as it ends; only the caller's own is the one the user waits for. Until the mount is ready the others die with it.
pub fn mount(
    mut spec: RunSpec,
    mut serving: ServeSpec,
    credentials: Option<Credentials>,
    voice: Voice,
) -> Result<u8, RunError> {
    serving.mountpoint = std::path::absolute(&serving.mountpoint).map_err(system("finding the working directory"))?;
    spec.purpose = Purpose::Serve(serving.clone());
    if serving.foreground == Foreground::Stay {
        let service = Service::take(&serving.mountpoint)?;
        return supervise(spec, &serving, credentials, voice, move |event| service.on_event(event));
    }
    let (reader, writer) = nix::unistd::pipe().map_err(system("pipe"))?;
    let caller = Pid::this();
    match process::fork().map_err(system("fork"))? {
        Side::Parent(daemon) => {
            drop((writer, credentials));
            super::forget_credentials()?;
            wait_ready(File::from(reader), daemon)
        }
        Side::Child => {
            drop(reader);
            process::die_with(caller).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
            nix::unistd::setsid().map_err(system("setsid"))?;
            let mut writer = Some(File::from(writer));
            supervise(spec, &serving, credentials, voice, move |event| {
                if matches!(event, Event::Phase { phase: Phase::Serving })
                    && let Some(mut writer) = writer.take()
                {
                    let _ = process::outlive_parent().and_then(|()| detach_stdio());
                    let _ = writer.write_all(&[0]);
                }
            })
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
        _ => Err(RunError::Lost("the supervisor of the mount died".to_owned())),
    }
}

fn supervise(
    spec: RunSpec,
    serving: &ServeSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    on_event: impl FnMut(&Event),
) -> Result<u8, RunError> {
    if fuse::is_stale(&serving.mountpoint).map_err(system("looking for the mount of a dead run"))? {
        warn(format_args!(
            "a dead run has left its mount on {}: it is covered, and goes with the new one",
            shown(&serving.mountpoint)
        ));
    }
    let trail = trail(&spec.id, &spec.data)?;
    let inherited = Inherited::capture().map_err(system("reading the signal mask"))?;
    let mut state = State::create(&spec.id, spec.data.output.as_ref())?;
    let mut report = Report::of(&spec);
    let mut record = Record { note: serving.note.clone(), ..Record::of(&report, serving.mountpoint.clone()) };
    state.record(&record)?;
    let (signals, link, sealed_link) = supervisor::connections()?;
    let socket = control::listen(&state.socket()).map_err(system("opening the control socket"))?;
    match process::fork().map_err(system("fork"))? {
        Side::Child => {
            drop((signals, link));
            let visitors = Visitors::Owner;
            let seat = Seat { link: sealed_link, report, socket, inherited, voice, visitors };
            let supervisor = Pid::from_raw(record.supervisor as i32);
            // Whatever it does then, stopped or hanging: nobody is left to watch it.
            let tie = || process::die_with(supervisor).map_err(system("prctl(PR_SET_PDEATHSIG)"));
            let mountpoint = serving.mountpoint.clone();
            state.disown();
            sealed::live(seat, tie, |desk| Run::new(spec, trail, mountpoint, Standing::Same, credentials, desk).work())
        }
        Side::Parent(sealed) => {
            drop((sealed_link, socket, credentials));
            super::forget_credentials()?;
            record.add_sealed(sealed.as_raw() as u32);
            state.record(&record)?;
            let result = Supervisor { sealed, signals, link }.watch(&mut report, on_event);
            // Killed for somebody who had asked for the end again and again.
            if matches!(result, Err(RunError::Interrupted { .. })) {
                fuse::detach_stale(&serving.mountpoint).map_err(system("detaching the mount"))?;
            }
            result
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
