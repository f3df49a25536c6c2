//! Mounts on behalf of a service: each in a family of its own that outlives the service, and is found again by it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::control::{Reply, Request, ResumeOrder};
use super::error::{RunError, system};
use super::message::{self, Voice};
use super::report::{Kind, Report};
use super::state::{self, Record, StateError};
use super::{END_TIME, STATUS_TIME, accepted, run};
use crate::aws::Credentials;
use crate::spec::{DataSpec, Purpose, RootSpec, RunId, RunSpec, ServeSpec, StoreSpec};
use crate::sys::path::shown;
use crate::sys::{address, process};
use crate::units::exit::Exit;
use crate::units::{ByteSize, json};

/// Name of the hidden subcommand that calls [`mount_here`].
pub const SUBCOMMAND: &str = "serve-mount";
/// How long killed processes may take to be gone. One that waits for a disk may stay until the disk answers.
const DEATH_TIME: Duration = Duration::from_secs(2);
/// Longest text of a family that could not mount.
const MESSAGE_MAX: usize = 1 << 20;
/// Longest order, credentials included.
const ORDER_MAX: usize = 1 << 20;
/// Begins the line with the findings of preflight, as JSON.
const FINDINGS: &str = "runseal-findings: ";
/// This very binary, even when the file has been replaced by a newer one.
const OWN_BINARY: &str = "/proc/self/exe";

/// What to mount, as a service passes it to the family it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOrder {
    /// Name of the run.
    pub id: RunId,
    /// Directories for the ciphertext.
    pub backing: Vec<PathBuf>,
    /// Most the scratch may hold.
    pub size: ByteSize,
    /// Memory that names and attributes may take.
    pub memory: ByteSize,
    /// An existing, empty directory.
    pub mountpoint: PathBuf,
    /// Mount options.
    pub options: Vec<String>,
    /// User and group the root of the scratch belongs to.
    pub owner: (u32, u32),
    /// Permission bits of the root of the scratch.
    pub mode: u32,
    /// What is copied in before the mount is ready, and out when somebody asks.
    pub staging: Option<DataSpec>,
    /// What the service wants to find again in [`Family::record`].
    pub note: serde_json::Value,
}

impl MountOrder {
    fn into_spec(self) -> RunSpec {
        RunSpec {
            id: self.id,
            store: StoreSpec {
                backing: self.backing,
                size: Some(self.size),
                memory: Some(self.memory),
                ..StoreSpec::default()
            },
            data: self.staging.unwrap_or_default(),
            purpose: Purpose::Serve(ServeSpec {
                options: self.options,
                root: RootSpec { owner: Some(self.owner), mode: Some(self.mode) },
                note: Some(self.note),
                ..ServeSpec::new(self.mountpoint)
            }),
        }
    }
}

/// Why a family did not mount.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotMounted {
    /// Exit code, by the table of `runseal`.
    pub code: u8,
    /// What it said.
    pub message: String,
    /// What preflight has found, each as `runseal preflight --json` shows it.
    pub findings: Vec<serde_json::Value>,
    /// Processes that were killed and are not gone yet, because the kernel waits for a disk on their behalf.
    pub left: Option<Box<Family>>,
}

impl NotMounted {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), findings: Vec::new(), left: None }
    }
}

/// Mounts as `order` says: a line of JSON of a [`MountOrder`], perhaps one more with credentials. For the process that
/// [`Family::start`] starts; dies with its parent until the mount is ready.
pub fn mount_here(mut order: impl Read, code: fn(&RunError) -> u8) -> Result<u8, RunError> {
    process::die_with(getppid()).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
    // The service may be spared when memory runs out; what works for its users is not.
    process::give_up_oom_protection().map_err(system("/proc/self/oom_score_adj"))?;
    let (order, credentials) = read_order(&mut order).map_err(system("reading the order of the service"))?;
    let result = run(order.into_spec(), credentials, Voice::Quiet, code).map_err(discreet);
    if let Err(RunError::Preflight(report)) = &result
        && let Ok(findings) = json::to_vec(&report.findings)
    {
        message::pass_on(format_args!("{FINDINGS}{}", String::from_utf8_lossy(&findings)));
    }
    result
}

/// The same without what is the business of another user of the service.
fn discreet(error: RunError) -> RunError {
    match error {
        RunError::State(StateError::OutputInUse { output, .. }) => {
            RunError::State(StateError::OutputInUse { run: None, output })
        }
        error => error,
    }
}

fn read_order(from: &mut impl Read) -> io::Result<(MountOrder, Option<Credentials>)> {
    // Room for all of it: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(ORDER_MAX + 1));
    from.take(ORDER_MAX as u64).read_to_end(&mut text)?;
    let end = text.iter().position(|&byte| byte == b'\n').ok_or(io::ErrorKind::UnexpectedEof)?;
    let order = serde_json::from_slice(&text[..end])?;
    match text[end + 1..].strip_suffix(b"\n") {
        None => Ok((order, None)),
        Some(line) => match Request::from_line(line)? {
            Request::Resume(ResumeOrder { credentials, .. }) => Ok((order, credentials)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}

/// The processes of one mount.
#[derive(Clone, Debug)]
pub struct Family {
    /// Who belongs to it, and the note of the service.
    pub record: Record,
    socket: PathBuf,
}

impl Family {
    /// Starts a family and waits until its mount is ready and has its inputs; also returns what it warned of. AWS is
    /// asked with `credentials`, if there are any. One that is not ready after `patience` is killed. Blocks. Callable
    /// from a process with threads: the family begins in a new program.
    pub fn start(
        order: &MountOrder,
        credentials: Option<Credentials>,
        patience: Duration,
    ) -> Result<(Self, Vec<String>), NotMounted> {
        let failed =
            |source| NotMounted::new(Exit::System.number(), format!("starting the family of a mount: {source}"));
        let mut child = Self::launch(order, credentials).map_err(failed)?;
        let stderr = child.stderr.take().expect("piped");
        // The family lets go of its standard descriptors when it is ready.
        let Some(said) = read_until(stderr, Instant::now() + patience).map_err(failed)? else {
            return Err(Self::give_up(order, patience, child));
        };
        let status = child.wait().map_err(failed)?;
        let text = String::from_utf8_lossy(&said);
        let findings = text.lines().find_map(|line| serde_json::from_str(line.strip_prefix(FINDINGS)?).ok());
        let said: Vec<_> = text.lines().filter_map(message).collect();
        if !status.success() {
            let code = status.code().map_or(Exit::System.number(), |code| code as u8);
            let message = if said.is_empty() { "the family of the mount died".to_owned() } else { said.join("\n") };
            return Err(NotMounted { findings: findings.unwrap_or_default(), ..NotMounted::new(code, message) });
        }
        match Self::find(&order.id) {
            Ok(family) => Ok((family, said)),
            Err(_) => Err(NotMounted::new(Exit::System.number(), "the mount ended as soon as it was ready")),
        }
    }

    fn launch(order: &MountOrder, credentials: Option<Credentials>) -> io::Result<Child> {
        let mut child = Command::new(OWN_BINARY)
            .arg0("runseal")
            .arg(SUBCOMMAND)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("piped");
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let secret = credentials.map(|handed| {
            let order = ResumeOrder { credentials: Some(handed), ..ResumeOrder::default() };
            Request::Resume(order).to_line()
        });
        let secret = secret.transpose()?;
        // A child that does not read has something to say, or has died.
        let _ = stdin.write_all(&line).and_then(|()| secret.map_or(Ok(()), |secret| stdin.write_all(&secret)));
        Ok(child)
    }

    /// Kills a family that is not ready; the others die with its first process. Cleans up if they are soon gone.
    fn give_up(order: &MountOrder, patience: Duration, mut child: Child) -> NotMounted {
        let family = Self::find(&order.id).ok();
        // None of them can be recognised once the first is gone.
        let members = family.as_ref().and_then(|family| family.watch().ok()).unwrap_or_default();
        let _ = child.kill();
        let _ = child.wait();
        let deadline = Instant::now() + DEATH_TIME;
        let gone = members.iter().all(|member| is_readable(member, deadline).unwrap_or(false));
        let mut directories: Vec<_> = order.backing.iter().map(|path| shown(path)).collect();
        directories.push(shown(&order.mountpoint));
        let mut message =
            format!("not mounted within {patience:?}, given up; see whether these answer: {}", directories.join(", "));
        if gone {
            if let Err(error) = state::clean(&order.id) {
                message += &format!("; {error}");
            }
            return NotMounted::new(Exit::Unavailable.number(), message);
        }
        message += "; its processes are killed, and end when the kernel lets them";
        NotMounted { left: family.map(Box::new), ..NotMounted::new(Exit::Unavailable.number(), message) }
    }

    /// The family of the live run with this id.
    pub fn find(id: &RunId) -> Result<Self, RunError> {
        let (record, socket) = state::find_by_id(id)?;
        Ok(Self { record, socket })
    }

    /// All live mounts some service asked for. Cleans up what dead runs left.
    pub fn all_noted() -> Result<Vec<Self>, RunError> {
        let is_served = |record: &Record| record.kind == Kind::Mount && record.note.is_some();
        let found = state::survey()?;
        for dead in found.dead.iter().filter(|record| is_served(record)) {
            state::clean(&dead.run_id)?;
        }
        let served = found.live.into_iter().filter(is_served);
        Ok(served.filter_map(|record| Self::find(&record.run_id).ok()).collect())
    }

    /// Descriptors that become readable as its processes end; without one they have ended.
    pub fn watch(&self) -> io::Result<Vec<OwnedFd>> {
        let mut alive = Vec::new();
        for id in [Some(self.record.supervisor), self.record.sealed].into_iter().flatten() {
            match process::watch(Pid::from_raw(id as i32)) {
                Ok(fd) => alive.push(fd),
                Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                Err(error) => return Err(error),
            }
        }
        // The numbers are good only if the family they were written for is still there.
        if state::find_by_id(&self.record.run_id).is_err() {
            alive.clear();
        }
        Ok(alive)
    }

    /// Asks it to end; answers when it has begun to. `discard` even if results are lost.
    pub async fn end(&self, discard: bool) -> Result<String, RunError> {
        accepted(self.ask(Request::End { discard, remove_published: false }, Some(END_TIME)).await?)
    }

    /// Has it publish; waits for the end of that.
    pub async fn publish(&self, order: ResumeOrder) -> Result<String, RunError> {
        accepted(self.ask(Request::Resume(order), None).await?)
    }

    /// What it reports of itself.
    pub async fn report(&self) -> Result<Report, RunError> {
        let reply = self.ask(Request::Status, Some(STATUS_TIME)).await?;
        reply.report.ok_or(RunError::Refused(reply.message))
    }

    /// Cleans up if all its processes have died without doing so.
    pub fn clean_up(&self) -> Result<(), RunError> {
        Ok(state::clean(&self.record.run_id)?)
    }

    async fn ask(&self, request: Request, patience: Option<Duration>) -> Result<Reply, RunError> {
        let exchange = async {
            let mut stream = UnixStream::connect(address::Name::of(&self.socket)?.path()).await?;
            stream.write_all(&request.to_line()?).await?;
            let mut answer = String::new();
            if BufReader::new(stream).read_line(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&answer)?)
        };
        let answer = match patience {
            Some(patience) => match tokio::time::timeout(patience, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
            None => exchange.await,
        };
        answer.map_err(|source| RunError::Unreachable { run: self.record.run_id.to_string(), source })
    }
}

/// Reads to the end; `None` if that does not come before `deadline`.
fn read_until(mut from: impl Read + AsFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    while is_readable(&from, deadline)? {
        match from.read(&mut chunk)? {
            0 => return Ok(Some(said)),
            n => said.extend_from_slice(&chunk[..n.min(MESSAGE_MAX.saturating_sub(said.len()))]),
        }
    }
    Ok(None)
}

/// Waits until there is something to read, or the end; `false` if that does not come before `deadline`.
pub fn is_readable(fd: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], time) {
            Err(Errno::EINTR) => {}
            answer => return Ok(answer? > 0),
        }
    }
}

/// Messages begin with the name of the program; other lines are for developers.
fn message(line: &str) -> Option<String> {
    line.strip_prefix("runseal: ").map(str::to_owned)
}
