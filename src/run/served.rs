//! Mounts on behalf of a service: each in a family of its own that outlives the service, and is found again by it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{Pid, getppid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use zeroize::Zeroizing;

use super::error::{FamilyError, RunError, system};
use super::{END_TIME, run};
use crate::family::{
    Kind, Record, Reply, Report, Request, ResumeOrder, StateError, Unpublished, Voice, control::client::STATUS_TIME,
    message, state,
};
use crate::spec::{Credentials, CredentialsText, InputSpec, Location, Purpose, RootSpec, RunId, RunSpec, ServeSpec};
use crate::sys::path::shown;
use crate::sys::process::is_readable;
use crate::sys::{address, process};
use crate::units::exit::Exit;
use crate::units::json as text;

/// Name of the hidden subcommand that calls [`mount_here`].
pub const SUBCOMMAND: &str = "serve-mount";
/// How long killed processes may take to be gone. One that waits for a disk may stay until the disk answers.
const DEATH_TIME: Duration = Duration::from_secs(2);
/// Longest answer of a family.
const ANSWER_MAX: usize = 1 << 20;
/// Longest order, credentials included.
const ORDER_MAX: usize = 1 << 20;
/// This very binary, even when the file has been replaced by a newer one.
const OWN_BINARY: &str = "/proc/self/exe";

/// What to mount, as a service passes it to the family it starts and finds it again in the state of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOrder {
    /// The run, which serves.
    pub spec: RunSpec,
    /// Socket of the service it belongs to.
    pub service: PathBuf,
    /// User whose limits it counts against.
    pub user: u32,
    /// Name of the volume it is, if it is one.
    pub volume: Option<String>,
}

impl MountOrder {
    /// How it is mounted.
    pub fn mount(&self) -> &ServeSpec {
        self.spec.serving().expect("services order mounts only")
    }

    /// What a service finds in `record`; versions before wrote it in another form.
    fn noted(record: &Record) -> Option<Self> {
        let note = record.note.as_ref()?;
        let order = Self::deserialize(note).or_else(|_| Self::deserialize(of_former(note, record)));
        order.ok().filter(|order| order.spec.serving().is_some())
    }

    /// The run, with the order as its note.
    fn into_spec(self) -> serde_json::Result<RunSpec> {
        let note = Some(serde_json::to_value(&self)?);
        let purpose = Purpose::Serve(ServeSpec { note, ..self.mount().clone() });
        Ok(RunSpec { purpose, ..self.spec })
    }
}

/// The order behind a note of versions before: enough of it to show the run, and to find and end it. Its family has the rest.
fn of_former(note: &Value, record: &Record) -> Value {
    let location = |text: &str| text.parse().map_or_else(|_| Location::Path(text.into()), Location::S3);
    let input = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        let (source, target) = text.rsplit_once('=').unwrap_or((text, ""));
        InputSpec { source: location(source), target: target.into() }
    };
    let inputs: Vec<_> = note["inputs"].as_array().into_iter().flatten().map(input).collect();
    let mode = note["mode"].as_str().and_then(|mode| u32::from_str_radix(mode, 8).ok());
    let mount = ServeSpec { root: RootSpec { mode, ..RootSpec::default() }, ..ServeSpec::new(&record.mountpoint) };
    let mut order = json!({
        "spec": {
            "id": record.run_id,
            "store": { "backing": note["backing"], "size": note["size"], "memory": note["memory"] },
            "data": { "inputs": inputs, "output": note["output"].as_str().map(location) },
            "purpose": Purpose::Serve(mount),
        },
        "service": note["service"],
        "user": note["user"],
        "volume": note["volume"],
    });
    let mount = &mut order["spec"]["purpose"]["serve"];
    mount["options"] = note["options"].clone();
    mount["root"]["owner"] = json!([note["owner"]["uid"], note["owner"]["gid"]]);
    order
}

/// What a family answers to its order: a line of JSON on its standard output. Standard error is for the log.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// It serves.
    Ready {
        /// What it warned of meanwhile.
        warnings: Vec<String>,
    },
    /// It does not mount.
    Refused(NotMounted),
}

impl Answer {
    fn refused(error: &RunError, code: u8, warnings: &[String]) -> Self {
        let (text, findings) = match error {
            // The findings tell the rest.
            RunError::Preflight(report) => {
                let findings = report.findings.iter().map(serde_json::to_value).filter_map(Result::ok).collect();
                (error.to_string().lines().next().unwrap_or_default().to_owned(), findings)
            }
            error => (error.to_string(), Vec::new()),
        };
        let message = warnings.iter().cloned().chain([text]).collect::<Vec<_>>().join("\n");
        Self::Refused(NotMounted { code, message, findings, left: None })
    }
}

/// Tells the service that started this family, if one did, that it serves.
pub fn answer_ready() -> io::Result<()> {
    message::answer(|warnings| text::to_vec(&Answer::Ready { warnings: warnings.to_vec() }))
}

/// Why a family did not mount.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct NotMounted {
    /// Exit code, by the table of `runseal`.
    pub code: u8,
    /// What it said.
    pub message: String,
    /// What preflight has found, each as `runseal preflight --json` shows it.
    pub findings: Vec<Value>,
    /// Processes that were killed and are not gone yet, because the kernel waits for a disk on their behalf.
    #[serde(skip)]
    pub left: Option<Box<Family>>,
}

impl NotMounted {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), findings: Vec::new(), left: None }
    }
}

/// Mounts as `order` says: a line of JSON of a [`MountOrder`], perhaps one more with credentials; sends `answer` when
/// it serves or does not. For the process that [`Family::start`] starts; dies with its parent until the mount is ready.
pub fn mount_here(
    order: impl Read,
    answer: impl Write + Send + 'static,
    code: fn(&RunError) -> u8,
) -> Result<u8, RunError> {
    let reading = system("reading the order of the service");
    let (spec, credentials) = read_order(order).map_err(reading)?;
    message::listen(&spec.id, answer);
    let result = follow(spec, credentials, code).map_err(discreet);
    if let Err(error) = &result {
        // A service that is gone needs no answer.
        let _ = message::answer(|warnings| text::to_vec(&Answer::refused(error, code(error), warnings)));
    }
    result
}

fn follow(spec: RunSpec, credentials: Option<Credentials>, code: fn(&RunError) -> u8) -> Result<u8, RunError> {
    process::die_with(getppid()).map_err(system("prctl(PR_SET_PDEATHSIG)"))?;
    // The service may be spared when memory runs out; what works for its users is not.
    process::give_up_oom_protection().map_err(system("/proc/self/oom_score_adj"))?;
    run(spec, credentials, Voice::Quiet, code)
}

/// The same without what is the business of another user of the service.
fn discreet(error: RunError) -> RunError {
    match error {
        RunError::Family(FamilyError::State(StateError::OutputInUse { output, .. })) => {
            StateError::OutputInUse { run: None, output }.into()
        }
        error => error,
    }
}

fn read_order(from: impl Read) -> io::Result<(RunSpec, Option<Credentials>)> {
    // Room for all of it: a vector that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(ORDER_MAX + 1));
    from.take(ORDER_MAX as u64).read_to_end(&mut text)?;
    let mut lines = text.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n"));
    let order: MountOrder = serde_json::from_slice(lines.next().flatten().ok_or(io::ErrorKind::UnexpectedEof)?)?;
    // What is wrong with credentials is told without quoting them.
    let parse = |line| serde_json::from_slice::<CredentialsText>(line).map_err(|_| io::ErrorKind::InvalidData);
    let credentials = lines.next().flatten().map(parse).transpose()?;
    Ok((order.into_spec()?, credentials.map(Credentials::from)))
}

fn write_order(order: &MountOrder, credentials: Option<&Credentials>) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(ORDER_MAX + 1));
    serde_json::to_writer(&mut *text, order)?;
    text.push(b'\n');
    if let Some(credentials) = credentials {
        serde_json::to_writer(&mut *text, &CredentialsText::from(credentials))?;
        text.push(b'\n');
    }
    if text.len() > ORDER_MAX { Err(io::Error::other("the order is too long")) } else { Ok(text) }
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
        let broken = |why: String| NotMounted::new(Exit::System.number(), why);
        let failed = |source| broken(format!("starting the family of a mount: {source}"));
        let mut child = Self::launch(order, credentials).map_err(failed)?;
        let stdout = child.stdout.take().expect("piped");
        // The family lets go of its standard descriptors when it is ready.
        let Some(said) = read_until(stdout, Instant::now() + patience).map_err(failed)? else {
            return Err(Self::give_up(order, patience, child));
        };
        let status = child.wait().map_err(failed)?;
        // Another process of the family may have had to say something, too, but later.
        let answer = said.split(|&byte| byte == b'\n').next().and_then(|line| serde_json::from_slice(line).ok());
        match answer {
            Some(Answer::Refused(why)) => Err(why),
            Some(Answer::Ready { warnings }) if status.success() => match Self::find(&order.spec.id) {
                Ok(family) => Ok((family, warnings)),
                Err(_) => Err(broken("the mount ended as soon as it was ready".to_owned())),
            },
            _ => {
                let code = status.code().map_or(Exit::System.number(), |code| code as u8);
                Err(NotMounted::new(code, "the family of the mount died"))
            }
        }
    }

    fn launch(order: &MountOrder, credentials: Option<Credentials>) -> io::Result<Child> {
        let text = write_order(order, credentials.as_ref())?;
        let mut child = Command::new(OWN_BINARY)
            .arg0("runseal")
            .arg(SUBCOMMAND)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // A child that does not read has something to say, or has died.
        let _ = child.stdin.take().expect("piped").write_all(&text);
        Ok(child)
    }

    /// Kills a family that is not ready; the others die with its first process. Cleans up if they are soon gone.
    fn give_up(order: &MountOrder, patience: Duration, mut child: Child) -> NotMounted {
        let (id, mount) = (&order.spec.id, order.mount());
        let family = Self::find(id).ok();
        // None of them can be recognised once the first is gone.
        let members = family.as_ref().and_then(|family| family.watch().ok()).unwrap_or_default();
        let _ = child.kill();
        let _ = child.wait();
        let deadline = Instant::now() + DEATH_TIME;
        let gone = members.iter().all(|member| is_readable(member, deadline).unwrap_or(false));
        let directories = order.spec.store.backing.iter().chain([&mount.mountpoint]).map(|path| shown(path));
        let directories: Vec<_> = directories.collect();
        let mut message =
            format!("not mounted within {patience:?}, given up; see whether these answer: {}", directories.join(", "));
        if gone {
            if let Err(error) = state::clean(id) {
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

    /// All live mounts that the service behind this socket asked for, and how. Cleans up what dead runs left.
    pub fn all_of(service: &Path) -> Result<Vec<(Self, MountOrder)>, RunError> {
        let is_served = |record: &Record| record.kind == Kind::Mount && record.note.is_some();
        let found = state::survey()?;
        for dead in found.dead.iter().filter(|record| is_served(record)) {
            state::clean(&dead.run_id)?;
        }
        let served = found.live.into_iter().filter(is_served).filter_map(|record| {
            let order = MountOrder::noted(&record).filter(|order| order.service == service)?;
            Some((Self::find(&record.run_id).ok()?, order))
        });
        Ok(served.collect())
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

    /// Asks it to end; answers when it has begun to.
    pub async fn end(&self, results: Unpublished) -> Result<String, RunError> {
        Ok(self.ask(results.into(), Some(END_TIME)).await?.accepted()?)
    }

    /// Has it publish; waits for the end of that.
    pub async fn publish(&self, order: ResumeOrder) -> Result<String, RunError> {
        Ok(self.ask(Request::Resume(order), None).await?.accepted()?)
    }

    /// What it reports of itself.
    pub async fn report(&self) -> Result<Report, RunError> {
        let reply = self.ask(Request::Status, Some(STATUS_TIME)).await?;
        reply.report.ok_or_else(|| FamilyError::Refused(reply.message).into())
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
        answer.map_err(|source| FamilyError::Unreachable { run: self.record.run_id.to_string(), source }.into())
    }
}

/// Reads to the end; `None` if that does not come before `deadline`.
fn read_until(mut from: impl Read + AsFd, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    while is_readable(&from, deadline)? {
        match from.read(&mut chunk)? {
            0 => return Ok(Some(said)),
            n => said.extend_from_slice(&chunk[..n.min(ANSWER_MAX.saturating_sub(said.len()))]),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DataSpec, StoreSpec};
    use crate::units::ByteSize;

    fn order() -> MountOrder {
        let root = RootSpec { owner: Some((1000, 100)), mode: Some(0o750) };
        let mount = ServeSpec { options: vec!["noexec".to_owned()], root, ..ServeSpec::new("/mnt/runseal/a") };
        let input = |source: &str, target: &str| InputSpec {
            source: Location::S3(source.parse().expect("a URI")),
            target: target.into(),
        };
        let data = DataSpec {
            inputs: vec![input("s3://inputs/a.fq", "a.fq"), input("s3://inputs/x=y/", "")],
            output: Some(Location::S3("s3://outputs/a/".parse().expect("a URI"))),
            ..DataSpec::default()
        };
        let store = StoreSpec {
            backing: vec!["/var/tmp".into()],
            size: Some(ByteSize(64 << 20)),
            memory: Some(ByteSize(1 << 20)),
            ..StoreSpec::default()
        };
        let spec = RunSpec { id: "a".parse().expect("an id"), store, data, purpose: Purpose::Serve(mount) };
        MountOrder { spec, service: "/run/runseal/serve.sock".into(), user: 1000, volume: None }
    }

    fn record(note: Value) -> Record {
        let record = serde_json::json!({
            "run_id": "a", "kind": "mount", "mountpoint": "/mnt/runseal/a", "supervisor": 1, "sealed": 2,
            "started": "2026-01-01T00:00:00Z", "note": note,
        });
        serde_json::from_value(record).expect("a record")
    }

    #[test]
    fn an_order_and_its_credentials_arrive_and_only_the_order_is_noted() {
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        for credentials in [None, Some(Credentials::new("AKIAIOSFODNN7EXAMPLE", secret, Some("t/+=")))] {
            let text = write_order(&order(), credentials.as_ref()).expect("short");
            let (spec, came) = read_order(&text[..]).expect("an order");
            let note = spec.serving().and_then(|mount| mount.note.clone()).expect("noted");
            assert_eq!(MountOrder::noted(&record(note.clone())), Some(order()));
            assert!(!note.to_string().contains(secret));
            let told = came.map(|came| (came.access_key_id.to_string(), came.secret_access_key.to_string()));
            assert_eq!(told, credentials.map(|_| ("AKIAIOSFODNN7EXAMPLE".to_owned(), secret.to_owned())));
        }
        let text = [&write_order(&order(), None).expect("short")[..], b"{\"hush\": 1}\n"].concat();
        let error = read_order(&text[..]).err().expect("no credentials");
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn notes_of_versions_before_are_understood() {
        let note = serde_json::json!({
            "service": "/run/runseal/serve.sock", "user": 1000, "volume": null, "size": 67_108_864, "memory": 1_048_576,
            "backing": ["/var/tmp"], "owner": { "uid": 1000, "gid": 100 }, "mode": "0750", "options": ["noexec"],
            "inputs": ["s3://inputs/a.fq=a.fq", "s3://inputs/x=y/="], "output": "s3://outputs/a/",
        });
        assert_eq!(MountOrder::noted(&record(note)), Some(order()));
        assert_eq!(MountOrder::noted(&record(serde_json::json!({ "service": "x" }))), None);
    }

    #[test]
    fn a_refusal_has_its_code_and_what_preflight_found() {
        let text = serde_json::to_string(&Answer::refused(&FamilyError::CutOff.into(), 71, &["first".to_owned()]))
            .expect("JSON");
        let Ok(Answer::Refused(NotMounted { code, message, findings, left })) = serde_json::from_str(&text) else {
            panic!("no refusal: {text}")
        };
        assert!(message.starts_with("first\nthe mount was cut off unasked"), "{message}");
        assert!(code == 71 && findings.is_empty() && left.is_none());
    }
}
