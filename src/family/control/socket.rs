//! The control socket of a run: one request and one reply per connection, each a line of JSON.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::family::{
    Journal, Order, Reply, Request,
    control::wire::{REQUEST_MAX, malformed},
};
use crate::spec::ResumeSpec;
use crate::sys::{address, socket};

/// How long a client may take to send it.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long a client waits until its request is taken.
const CONNECT_TIME: Duration = Duration::from_secs(10);

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
            Ok(Ok(Request::Exec { .. } | Request::Copy { .. }))
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
            Ok(Ok(request @ (Request::Exec { .. } | Request::Copy { .. }))) => tokio::select! {
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
