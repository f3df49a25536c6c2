//! The command of a run: found before any work is done, started in the scratch, never outliving the run.

pub mod guests;
pub mod identity;
pub mod namespace;
pub mod place;
pub mod rights;
pub mod view;

use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{AccessFlags, Pid, eaccess};

use self::view::OF_TEMPORARY_FILES;
use crate::spec::{Argv, TmpPolicy};
use crate::sys::path::shown;
use crate::sys::process::{self, Inherited, Standing};
use crate::units::exit::Exit;

/// Directories every scratch starts with.
pub const INPUT: &str = "input";
/// Results go here.
pub const OUTPUT: &str = "output";
/// The command starts here.
pub const WORK: &str = "work";
/// `TMPDIR`.
pub const TMP: &str = "tmp";

/// Variables that say who the user is, and what only that one may open.
const OF_THE_USER: [&str; 7] =
    ["USER", "LOGNAME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"];

/// Why the command cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such program.
    #[error("{}: command not found; give its full path, or put its directory into PATH", shown(name.as_ref()))]
    NotFound {
        /// As given.
        name: OsString,
    },
    /// There is one, but it cannot be executed.
    #[error("{}: cannot be executed: {source}; is it a program, and executable (chmod +x)?", shown(path))]
    NotExecutable {
        /// The file found.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// It cannot be given the scratch as `/tmp`.
    #[error(
        "/tmp and /var/tmp of the command cannot be in the scratch: {source}; with --tmp=host it gets those of this machine, \
         and what programs write there is not sealed"
    )]
    View {
        /// The error.
        source: io::Error,
    },
    /// The system could not start a process.
    #[error("cannot start {}: {source}", shown(name.as_ref()))]
    System {
        /// As given.
        name: OsString,
        /// The error.
        source: io::Error,
    },
}

/// Finds out, before inputs are staged, that `name` cannot be started. Names that may mean a file in the scratch (a
/// relative path) pass: they are looked at when the command starts.
pub fn check(name: &OsStr) -> Result<(), CommandError> {
    let path = Path::new(name);
    if path.is_absolute() {
        return executable(path);
    }
    if name.as_encoded_bytes().contains(&b'/') {
        return Ok(());
    }
    let search = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let mut refused = None;
    for dir in std::env::split_paths(&search) {
        if !dir.is_absolute() {
            return Ok(());
        }
        match executable(&dir.join(name)) {
            Ok(()) => return Ok(()),
            Err(error @ CommandError::NotExecutable { .. }) => refused = refused.or(Some(error)),
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| CommandError::NotFound { name: name.to_owned() }))
}

fn executable(path: &Path) -> Result<(), CommandError> {
    let refused = |source: io::Error| CommandError::NotExecutable { path: path.to_owned(), source };
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refused(error)),
        Err(_) => Err(CommandError::NotFound { name: path.as_os_str().to_owned() }),
        Ok(found) if found.is_dir() => Err(refused(Errno::EISDIR.into())),
        Ok(_) => eaccess(path, AccessFlags::X_OK).map_err(|errno| refused(errno.into())),
    }
}

/// Where and as what programs of a run start.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Mountpoint of the scratch.
    pub scratch: &'a Path,
    /// Name of the run.
    pub run_id: &'a str,
    /// What they find at `/tmp` and `/var/tmp`.
    pub tmp: TmpPolicy,
    /// Whether a variable of the environment is not for them.
    pub withheld: fn(&OsStr) -> bool,
    /// What the user started runseal with.
    pub inherited: Inherited,
    /// As whom they run, and what they may.
    pub standing: Standing,
}

/// Starts the command in the scratch, with the environment the README promises.
///
/// As another user it leads a session: in the session of this process it could type into its terminal (`TIOCSTI`).
pub fn start(argv: &Argv, surroundings: Surroundings<'_>) -> Result<Pid, CommandError> {
    let apart = matches!(surroundings.standing, Standing::Other(_));
    let mut prepared = prepared(argv, surroundings)?;
    if apart {
        process::lead_session(&mut prepared.command, false);
    }
    prepared.spawn()
}

/// Starts a program beside the command, on these standard streams and in a session of its own; with `terminal`, the
/// first of them is the terminal that controls it.
pub fn start_beside(
    argv: &Argv,
    surroundings: Surroundings<'_>,
    [input, output, errors]: [OwnedFd; 3],
    terminal: Option<&OsStr>,
) -> Result<Pid, CommandError> {
    let mut prepared = prepared(argv, surroundings)?;
    prepared.command.stdin(input).stdout(output).stderr(errors);
    if let Some(kind) = terminal {
        prepared.command.env("TERM", kind);
    }
    process::lead_session(&mut prepared.command, terminal.is_some());
    prepared.spawn()
}

/// A program that can be started.
struct Prepared<'a> {
    name: &'a OsStr,
    command: Command,
    /// Gets a byte if the program cannot have its view.
    refused: PipeReader,
}

/// The one way into a run: every program gets its environment and its view here.
fn prepared<'a>(argv: &'a Argv, surroundings: Surroundings<'_>) -> Result<Prepared<'a>, CommandError> {
    let Surroundings { scratch, run_id, tmp, withheld, inherited, standing } = surroundings;
    let name = argv.program.as_os_str();
    let mut command = Command::new(name);
    command
        .args(&argv.arguments)
        .current_dir(scratch.join(WORK))
        .env("RUNSEAL_RUN_ID", run_id)
        .env("RUNSEAL_SCRATCH", scratch)
        .env("RUNSEAL_INPUT", scratch.join(INPUT))
        .env("RUNSEAL_OUTPUT", scratch.join(OUTPUT))
        .env("TMPDIR", scratch.join(TMP))
        // The shell's idea of where it is; the command starts elsewhere.
        .env("PWD", scratch.join(WORK))
        .env_remove("OLDPWD");
    // Some programs ask for these first.
    for name in OF_TEMPORARY_FILES.iter().filter(|name| std::env::var_os(name).is_some()) {
        command.env(name, scratch.join(TMP));
    }
    if let Standing::Other(_) = standing {
        // What was the home of another user.
        command.env("HOME", scratch.join(TMP));
        for name in OF_THE_USER {
            command.env_remove(name);
        }
    }
    let (kept_back, given): (Vec<_>, Vec<_>) = std::env::vars_os().partition(|(name, _)| withheld(name));
    for (name, _) in &kept_back {
        command.env_remove(name);
    }
    // What a variable names that they do not get, does not show through either.
    let view = view::plan(tmp, scratch, &argv.words().collect::<Vec<_>>(), given.into_iter());
    let (refused, writer) = io::pipe().map_err(|source| CommandError::System { name: name.to_owned(), source })?;
    process::prepare(&mut command, inherited, view, writer.into(), standing);
    Ok(Prepared { name, command, refused })
}

impl Prepared<'_> {
    fn spawn(self) -> Result<Pid, CommandError> {
        let Self { name, mut command, mut refused } = self;
        let started = command.spawn();
        // With it goes the writing end.
        drop(command);
        match started {
            // PID 1 reaps all children with waitpid(2), this one too.
            Ok(child) => Ok(Pid::from_raw(child.id() as i32)),
            Err(source) if refused.read(&mut [0]).is_ok_and(|n| n == 1) => Err(CommandError::View { source }),
            Err(source) => Err(refusal(name, source)),
        }
    }
}

fn refusal(name: &OsStr, source: io::Error) -> CommandError {
    match source.kind() {
        io::ErrorKind::NotFound => CommandError::NotFound { name: name.to_owned() },
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => {
            CommandError::NotExecutable { path: name.into(), source }
        }
        _ if source.raw_os_error() == Some(libc::ENOEXEC) => CommandError::NotExecutable { path: name.into(), source },
        _ => CommandError::System { name: name.to_owned(), source },
    }
}

/// Collects every child that has ended, and tells `ended` their exit statuses. PID 1 inherits the orphans of the run, so
/// there may be many.
pub fn reap(mut ended: impl FnMut(Pid, u8)) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) => {
                if let (Some(pid), Some(status)) = (status.pid(), exit_status(status)) {
                    ended(pid, status);
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Kills every process of the PID namespace but this one, its PID 1, and waits until all are gone.
pub fn kill_everything() {
    // Anywhere else, "every process" would be the user's.
    if std::process::id() != 1 {
        return;
    }
    loop {
        // ESRCH: nobody is left. Again and again, because what forks while being killed leaves children.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        match waitpid(None, None) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn exit_status(ended: WaitStatus) -> Option<u8> {
    match ended {
        WaitStatus::Exited(_, code) => Some(code as u8),
        WaitStatus::Signaled(_, signal, _) => Some(Exit::by_signal(signal as i32)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_command_that_cannot_start_is_found_out_early() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("data");
        std::fs::write(&file, "#!/bin/sh\n").expect("written");
        assert!(check("sh".as_ref()).is_ok());
        assert!(check("./in-the-scratch".as_ref()).is_ok());
        assert!(matches!(check("no-such-program-here".as_ref()), Err(CommandError::NotFound { .. })));
        assert!(matches!(check("/no/such/program".as_ref()), Err(CommandError::NotFound { .. })));
        assert!(matches!(check(file.as_os_str()), Err(CommandError::NotExecutable { .. })));
        assert!(matches!(check(dir.path().as_os_str()), Err(CommandError::NotExecutable { .. })));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(check(file.as_os_str()).is_ok());
    }
}
