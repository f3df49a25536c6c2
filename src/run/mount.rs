//! A plain sealed mount: the same two processes, in the namespaces of whoever asked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};

use super::control::{self, Reply, Request, Visitors};
use super::desk::{Desk, Order, Stake, asks_to_end};
use super::error::{RunError, system};
use super::message::{Voice, warn};
use super::report::{Event, Kind, Outcome, Phase, Report};
use super::seal::{KeySource, Room, Seal};
use super::sealed::{self, Seat, beside, lock_memory, make_seal};
use super::service::Service;
use super::state::{Record, State};
use super::supervisor::{self, Supervisor};
use super::workflow::{Run, Service as Attendance, is_open};
use crate::aws::Credentials;
use crate::fuse::{self, MountOptions};
use crate::spec::{CommandRights, MountSpec, RescueSpec, RunSpec, StagingSpec, TmpPolicy};
use crate::sys::path::shown;
use crate::sys::process::{self, Inherited, Side};

/// Mounts, and returns when the mount is ready; with `foreground`, when it has ended. Returns in each process of the
/// family as it ends; only the caller's own is the one the user waits for. Until the mount is ready the others die with it.
pub fn mount(mut spec: MountSpec, credentials: Option<Credentials>, voice: Voice) -> Result<u8, RunError> {
    spec.mountpoint = std::path::absolute(&spec.mountpoint).map_err(system("finding the working directory"))?;
    if spec.foreground {
        let service = Service::take(&spec.mountpoint)?;
        return supervise(spec, credentials, voice, move |event| service.on_event(event));
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
            supervise(spec, credentials, voice, move |event| {
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
    spec: MountSpec,
    credentials: Option<Credentials>,
    voice: Voice,
    on_event: impl FnMut(&Event),
) -> Result<u8, RunError> {
    if fuse::is_stale(&spec.mountpoint).map_err(system("looking for the mount of a dead run"))? {
        warn(format_args!(
            "a dead run has left its mount on {}: it is covered, and goes with the new one",
            shown(&spec.mountpoint)
        ));
    }
    let inherited = Inherited::capture().map_err(system("reading the signal mask"))?;
    let mut state = State::create(&spec.id, spec.staging.as_ref().and_then(|staging| staging.output.as_ref()))?;
    let mut report = Report::new(spec.id.clone(), Kind::Mount);
    let mut record = Record { note: spec.note.clone(), ..Record::of(&report, spec.mountpoint.clone()) };
    state.record(&record)?;
    let (signals, link, sealed_link) = supervisor::connections()?;
    let socket = control::listen(&state.socket()).map_err(system("opening the control socket"))?;
    match process::fork().map_err(system("fork"))? {
        Side::Child => {
            drop((signals, link));
            let background = !spec.foreground;
            let visitors = Visitors::Owner;
            let seat = Seat { link: sealed_link, report, socket, inherited, voice, visitors };
            let supervisor = Pid::from_raw(record.supervisor as i32);
            // Whatever it does then, stopped or hanging: nobody is left to watch it.
            let tie = || process::die_with(supervisor).map_err(system("prctl(PR_SET_PDEATHSIG)"));
            let ready = move || if background { detach_stdio() } else { Ok(()) };
            state.disown();
            sealed::live(seat, tie, |desk| serve(spec, credentials, desk, ready))
        }
        Side::Parent(sealed) => {
            drop((sealed_link, socket, credentials));
            super::forget_credentials()?;
            record.add_sealed(sealed.as_raw() as u32);
            state.record(&record)?;
            let result = Supervisor { sealed, signals, link }.watch(&mut report, on_event);
            // Killed for somebody who had asked for the end again and again.
            if matches!(result, Err(RunError::Interrupted { .. })) {
                fuse::detach_stale(&spec.mountpoint).map_err(system("detaching the mount"))?;
            }
            result
        }
    }
}

/// Life of the sealed process: serves until the mount is unmounted, ended or orphaned. `ready` is called once it is
/// there.
async fn serve(
    spec: MountSpec,
    credentials: Option<Credentials>,
    mut desk: Desk,
    ready: impl FnOnce() -> io::Result<()> + 'static,
) -> Result<(Outcome, u8), RunError> {
    let options =
        MountOptions { options: spec.options.clone(), allow_other: geteuid().is_root(), ..MountOptions::default() };
    if let Some(StagingSpec { inputs, output, overwrite, rules, aws, on_behalf }) = spec.staging {
        let service = Attendance { options, root: spec.root, credentials, ready: Some(Box::new(ready)) };
        let (id, store, mountpoint) = (spec.id, spec.store, spec.mountpoint);
        let (tmp, rescue) = (TmpPolicy::Host, RescueSpec::default());
        let (audit, report, record_command, command) = (None, None, false, Vec::new());
        let rights = CommandRights::default();
        let run = RunSpec {
            id,
            store,
            inputs,
            output,
            overwrite,
            rules,
            on_behalf,
            aws,
            tmp,
            audit,
            report,
            record_command,
            rescue,
            rights,
            command,
        };
        return Run::of_mount(run, mountpoint, service, desk).work().await;
    }
    desk.phase(Phase::Seal);
    let store = spec.store.clone();
    let room = desk.guard("opening the backing", Stake::Nothing, beside(move || Room::find(&store))).await??;
    let keys = KeySource { memory_locked: lock_memory(spec.store.memory_lock)?, share: None };
    let mountpoint = spec.mountpoint.clone();
    let seal = make_seal(room, &spec.store, spec.root, spec.mountpoint, options, keys, &desk).await?;
    desk.watch(&seal);
    desk.watch_tree(&seal);
    let result = match ready().map_err(system("opening /dev/null")) {
        Ok(()) => {
            desk.phase(Phase::Serving);
            wait_for_end(&mut desk, &seal, &mountpoint).await
        }
        Err(error) => Err(error),
    };
    desk.phase(Phase::End);
    seal.close_or_leave(&result, &desk.journal).await;
    result.map(|()| (Outcome::Succeeded, 0))
}

async fn wait_for_end(desk: &mut Desk, seal: &Seal, mountpoint: &Path) -> Result<(), RunError> {
    loop {
        match desk.next().await {
            Order::Signal { signal, .. } if asks_to_end(signal) || signal == Signal::SIGHUP => return Ok(()),
            Order::Request(Request::End { .. }, reply) => {
                let _ = reply.send(Reply::done("ending"));
                return Ok(());
            }
            Order::Request(Request::Exec(_) | Request::Copy(_), reply) => {
                let _ = reply.send(is_open(mountpoint));
            }
            Order::Request(_, reply) => {
                let _ = reply.send(Reply::refused("a mount has nothing to resume"));
            }
            Order::MountEnded if !seal.mount.is_cut_off() => return Ok(()),
            Order::MountEnded | Order::Orphaned => return Err(RunError::CutOff),
            Order::Signal { .. } => {}
        }
    }
}

/// Standard descriptors are of no use to a process nobody watches, and would keep pipes open.
fn detach_stdio() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(nix::unistd::dup2_stderr(&null)?)
}
