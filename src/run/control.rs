//! The control socket of a run: one request and one reply per connection, each a line of JSON.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::desk::Order;
use super::report::{Journal, Report};
use crate::aws::{Credentials, CredentialsText};
use crate::spec::{Argv, ResumeSpec};
use crate::sys::{address, socket};

/// Longest request in bytes. Session tokens have no limit that AWS names; real ones take a few thousand bytes.
const REQUEST_MAX: usize = 64 << 10;
/// How long a client may take to send it.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a client waits until its request is taken.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// What a client may ask.
pub enum Request {
    /// What is going on?
    Status,
    /// Try to publish again.
    Resume(ResumeOrder),
    /// Run a program beside the command.
    Exec(ExecOrder),
    /// Copy something out of the scratch.
    Copy(CopyOrder),
    /// End the run.
    End {
        /// Even if results are lost.
        discard: bool,
        /// Whether results that are in the output already are removed.
        remove_published: bool,
    },
}

/// How to try to publish again.
#[derive(Default)]
pub struct ResumeOrder {
    /// Credentials to do so with, instead of those that runseal would find.
    pub credentials: Option<Credentials>,
    /// What is to be different.
    pub spec: ResumeSpec,
}

/// A program to run beside the command.
pub struct ExecOrder {
    /// Program and arguments.
    pub argv: Argv,
    /// Kind of the terminal that its standard streams are (`TERM`), if they are one.
    pub terminal: Option<OsString>,
    /// Its standard streams. They go beside the line, as descriptors.
    pub streams: Vec<OwnedFd>,
}

/// Something to copy out of the scratch.
pub struct CopyOrder {
    /// Relative to the root of the scratch.
    pub path: PathBuf,
    /// Whether the contents of a file are wanted as they are, without an archive around them.
    pub bare: bool,
    /// Receives the archive. It goes beside the line, as a descriptor.
    pub archive: Vec<OwnedFd>,
}

/// A request as it is sent. Credentials are borrowed from the line, which is wiped, and never copied on the way.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    request: &'a str,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    discard: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    remove_published: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    credentials: Option<CredentialsText<'a>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resume: Option<ResumeSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exec: Option<ExecLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy: Option<CopyLine>,
}

#[derive(Serialize, Deserialize)]
struct ExecLine {
    argv: Argv,
    terminal: Option<OsString>,
}

#[derive(Serialize, Deserialize)]
struct CopyLine {
    path: OsString,
    bare: bool,
}

impl Request {
    /// The request as it is sent, with the end of its line.
    pub fn to_line(&self) -> io::Result<Zeroizing<Vec<u8>>> {
        // Room for all of it: a vector that grows leaves copies behind.
        let mut line = Zeroizing::new(Vec::with_capacity(REQUEST_MAX));
        serde_json::to_writer(&mut *line, &self.as_line())?;
        line.push(b'\n');
        if line.len() > REQUEST_MAX { Err(io::Error::other("the request is too long")) } else { Ok(line) }
    }

    fn as_line(&self) -> Line<'_> {
        let named = |request| Line {
            request,
            discard: false,
            remove_published: false,
            credentials: None,
            resume: None,
            exec: None,
            copy: None,
        };
        match self {
            Self::Status => named("status"),
            Self::Resume(ResumeOrder { credentials, spec }) => Line {
                credentials: credentials.as_ref().map(CredentialsText::from),
                resume: Some(spec.clone()),
                ..named("resume")
            },
            Self::Exec(ExecOrder { argv, terminal, .. }) => {
                Line { exec: Some(ExecLine { argv: argv.clone(), terminal: terminal.clone() }), ..named("exec") }
            }
            Self::Copy(CopyOrder { path, bare, .. }) => {
                Line { copy: Some(CopyLine { path: path.clone().into(), bare: *bare }), ..named("copy") }
            }
            &Self::End { discard, remove_published } => Line { discard, remove_published, ..named("end") },
        }
    }

    /// What goes beside the line.
    fn descriptors(&self) -> Vec<RawFd> {
        let descriptors = match self {
            Self::Exec(order) => &order.streams[..],
            Self::Copy(order) => &order.archive[..],
            Self::Status | Self::Resume(_) | Self::End { .. } => &[],
        };
        descriptors.iter().map(AsRawFd::as_raw_fd).collect()
    }

    /// Takes what came beside the line.
    fn with(mut self, came: Vec<OwnedFd>) -> Self {
        match &mut self {
            Self::Exec(order) => order.streams = came,
            Self::Copy(order) => order.archive = came,
            Self::Status | Self::Resume(_) | Self::End { .. } => {}
        }
        self
    }

    /// Reads what [`Request::to_line`] made, without the end of the line.
    pub fn from_line(line: &[u8]) -> io::Result<Self> {
        let Line { request, discard, remove_published, credentials, resume, exec, copy } =
            serde_json::from_slice(line).map_err(|_| malformed())?;
        let credentials = credentials.map(Credentials::from);
        match (request, exec, copy) {
            ("status", ..) => Ok(Self::Status),
            ("exec", Some(ExecLine { argv, terminal }), _) => {
                Ok(Self::Exec(ExecOrder { argv, terminal, streams: Vec::new() }))
            }
            ("copy", _, Some(CopyLine { path, bare })) => {
                Ok(Self::Copy(CopyOrder { path: path.into(), bare, archive: Vec::new() }))
            }
            ("resume", ..) => Ok(Self::Resume(ResumeOrder { credentials, spec: resume.unwrap_or_default() })),
            ("end", ..) => Ok(Self::End { discard, remove_published }),
            _ => Err(malformed()),
        }
    }
}

/// What serde says quotes the line, and credentials may be in it.
fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a request that this version knows")
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// For people.
    pub message: String,
    /// The report so far, to [`Request::Status`].
    pub report: Option<Report>,
    /// How the program ended, to [`Request::Exec`]: as a shell says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u8>,
    /// Whether what was published is incomplete.
    #[serde(default)]
    pub incomplete: bool,
}

impl Reply {
    /// Done.
    pub fn done(message: impl Into<String>) -> Self {
        Self { ok: true, message: message.into(), report: None, status: None, incomplete: false }
    }

    /// Not done, and why.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { ok: false, message: message.into(), report: None, status: None, incomplete: false }
    }
}

/// Sends `request` to the run behind the socket at `path` and waits for the reply, at most for `patience`.
pub fn ask(path: &Path, request: &Request, patience: Option<Duration>) -> io::Result<Reply> {
    reply(send(path, request)?, patience)
}

/// Sends `request`, and what goes with it, to the run behind the socket at `path`.
pub fn send(path: &Path, request: &Request) -> io::Result<StdStream> {
    let mut stream = address::connect_within(path, Some(CONNECT_TIME))?;
    let line = request.to_line()?;
    let sent = socket::send(&stream, &line, &request.descriptors())?;
    stream.write_all(&line[sent..])?;
    Ok(stream)
}

/// Waits for the reply, at most for `patience`.
pub fn reply(stream: StdStream, patience: Option<Duration>) -> io::Result<Reply> {
    stream.set_read_timeout(patience)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Opens the socket at `path`, for its owner only.
pub fn listen(path: &Path) -> io::Result<StdListener> {
    let listener = address::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who may have programs brought into a run, and files copied out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitors {
    /// The user who has started it, and root.
    Owner,
    /// Only root: the command is somebody else, so that the user who has started it cannot reach into it.
    RootOnly,
}

/// Answers clients until it is aborted: status from `journal`, everything else as an order. Nothing is ever sent to
/// `busy`: it is closed once the last client has its answer.
pub async fn serve(
    listener: UnixListener,
    visitors: Visitors,
    journal: Arc<Journal>,
    orders: mpsc::UnboundedSender<Order>,
    busy: mpsc::Sender<()>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (journal, orders, busy) = (journal.clone(), orders.clone(), busy.clone());
                tokio::spawn(async move {
                    answer(stream, visitors, journal, orders).await;
                    drop(busy);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: give others time to close theirs.
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    visitors: Visitors,
    journal: Arc<Journal>,
    orders: mpsc::UnboundedSender<Order>,
) {
    let reply = if !is_trusted(&stream) {
        Reply::refused("only the owner of a run and root may control it")
    } else {
        match tokio::time::timeout(REQUEST_TIME, read_request(&mut stream)).await {
            Ok(Ok(Request::Exec(_) | Request::Copy(_)))
                if visitors == Visitors::RootOnly && !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) =>
            {
                Reply::refused("the command of this run has a user of its own (--isolate): only root may look into it")
            }
            // Somebody without the rights of this process would choose where it writes with them.
            Ok(Ok(Request::Resume(order)))
                if visitors == Visitors::RootOnly
                    && order.spec != ResumeSpec::default()
                    && !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) =>
            {
                Reply::refused(
                    "this run has more rights than its user (--isolate): only root may change how it is published",
                )
            }
            // Whoever leaves while a program runs, or a copy is on its way, wants no more of it.
            Ok(Ok(request @ (Request::Exec(_) | Request::Copy(_)))) => tokio::select! {
                reply = pass_on(request, &orders) => reply,
                () = gone(&stream) => return,
            },
            Ok(Ok(Request::Status)) => Reply { report: Some(journal.answer()), ..Reply::done("alive") },
            Ok(Ok(request)) => pass_on(request, &orders).await,
            Ok(Err(error)) => Reply::refused(format!("bad request: {error}")),
            Err(_) => Reply::refused("bad request: too slow"),
        }
    };
    let mut line = serde_json::to_vec(&reply).expect("replies hold strings, numbers and JSON values only");
    line.push(b'\n');
    // A client that is gone needs no answer, and one that does not read must not hold the end up.
    let _ = tokio::time::timeout(REQUEST_TIME, stream.write_all(&line)).await;
}

async fn pass_on(request: Request, orders: &mpsc::UnboundedSender<Order>) -> Reply {
    let (sender, receiver) = oneshot::channel();
    let gone = || Reply::refused("the run is ending");
    if orders.send(Order::Request(request, sender)).is_err() {
        return gone();
    }
    receiver.await.unwrap_or_else(|_| gone())
}

/// Waits until the client has closed its end.
async fn gone(stream: &UnixStream) {
    let mut rest = [0; 64];
    loop {
        let read = stream.async_io(Interest::READABLE, || socket::receive(stream, &mut rest)).await;
        if !matches!(read, Ok((1.., _))) {
            return;
        }
    }
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Request> {
    let mut line = Zeroizing::new(vec![0; REQUEST_MAX]);
    let (mut filled, mut came) = (0, Vec::new());
    loop {
        let rest = &mut line[filled..];
        let (read, mut beside) = stream.async_io(Interest::READABLE, || socket::receive(&*stream, rest)).await?;
        if read == 0 {
            return Err(malformed());
        }
        filled += read;
        came.append(&mut beside);
        if let Some(end) = line[..filled].iter().position(|&byte| byte == b'\n') {
            return Ok(Request::from_line(&line[..end])?.with(came));
        }
    }
}

/// The socket file lets only its owner and root connect; this holds even if its directory did not. In a user
/// namespace every id but the owner's shows as the overflow id, and only root can have come past the file's mode.
fn is_trusted(stream: &UnixStream) -> bool {
    const OVERFLOW: u32 = 65_534;
    let own = nix::unistd::geteuid().as_raw();
    let mapped_alone = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().nth(2).is_some_and(|count| count == "1"));
    stream.peer_cred().is_ok_and(|peer| [own, 0].contains(&peer.uid()) || mapped_alone && peer.uid() == OVERFLOW)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::spec::{Location, Sse};

    #[test]
    fn requests_survive_the_wire() {
        let there_and_back = |request: Request| {
            let line = request.to_line().expect("short enough");
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            Request::from_line(&line).expect("understood")
        };
        assert!(matches!(there_and_back(Request::Status), Request::Status));
        let end = there_and_back(Request::End { discard: true, remove_published: true });
        assert!(matches!(end, Request::End { discard: true, remove_published: true }));
        let spec = ResumeSpec {
            incomplete: true,
            allow_empty: true,
            overwrite: true,
            output: Some(Location::S3("s3://bucket/key/".parse().expect("a URI"))),
            sse: Some(Sse::Kms),
            sse_kms_key: Some("alias/results".parse().expect("a key")),
            dereference: true,
            keep_old: true,
            shared_output: true,
            keep_set_id: true,
        };
        for spec in [ResumeSpec::default(), spec] {
            let order = ResumeOrder { credentials: None, spec: spec.clone() };
            let Request::Resume(back) = there_and_back(Request::Resume(order)) else { panic!("not what was asked") };
            assert_eq!((back.spec, back.credentials.is_none()), (spec, true));
        }
        let argv = Argv { program: "sh".into(), arguments: vec![OsString::from_vec(b"\xff\n".to_vec())] };
        let order = ExecOrder { argv: argv.clone(), terminal: Some("vt100".into()), streams: Vec::new() };
        let Request::Exec(back) = there_and_back(Request::Exec(order)) else { panic!("not what was asked") };
        assert_eq!((back.argv, back.terminal), (argv, Some("vt100".into())));
        let order = CopyOrder { path: "work/log".into(), bare: true, archive: Vec::new() };
        let Request::Copy(back) = there_and_back(Request::Copy(order)) else { panic!("not what was asked") };
        assert_eq!((back.path, back.bare), (PathBuf::from("work/log"), true));
        for session_token in [None, Some("t/+=".repeat(4000))] {
            let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
            let credentials = Credentials::new("AKIAIOSFODNN7EXAMPLE", secret, session_token.as_deref());
            let order = ResumeOrder { credentials: Some(credentials), ..ResumeOrder::default() };
            let Request::Resume(ResumeOrder { credentials: Some(back), .. }) = there_and_back(Request::Resume(order))
            else {
                panic!("credentials got lost")
            };
            assert_eq!(back.access_key_id.as_str(), "AKIAIOSFODNN7EXAMPLE");
            assert_eq!(back.secret_access_key.as_str(), "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
            assert_eq!(back.session_token.as_deref(), session_token.as_ref());
        }
    }

    #[test]
    fn nonsense_is_refused_without_being_quoted() {
        for line in [
            "",
            "{}",
            "{\"request\":\"hush\"}",
            "{\"request\":\"exec\"}",
            "hush",
            "{\"request\":\"resume\",\"credentials\":\"hush\"}",
        ] {
            let Err(error) = Request::from_line(line.as_bytes()) else { panic!("{line} is no request") };
            assert!(!error.to_string().contains("hush"), "{error}");
        }
        let endless = Zeroizing::new("x".repeat(REQUEST_MAX));
        let credentials =
            Credentials { access_key_id: endless, secret_access_key: Zeroizing::default(), session_token: None };
        let order = ResumeOrder { credentials: Some(credentials), ..ResumeOrder::default() };
        assert!(Request::Resume(order).to_line().is_err());
    }
}
