//! The control socket of a run: one request and one reply per connection, each a line of JSON.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::desk::Order;
use super::report::{Journal, Report};

/// Longest request in bytes.
const REQUEST_MAX: u64 = 4096;
/// How long a client may take to send it.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// What a client may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub enum Request {
    /// What is going on?
    Status,
    /// Try to publish again.
    Resume,
    /// End the run.
    End {
        /// Even if results are lost.
        discard: bool,
    },
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
}

impl Reply {
    /// Done.
    pub fn done(message: impl Into<String>) -> Self {
        Self { ok: true, message: message.into(), report: None }
    }

    /// Not done, and why.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { ok: false, message: message.into(), report: None }
    }
}

/// Sends `request` to the run behind `socket` and waits for the reply, at most for `patience`.
pub fn ask(socket: &Path, request: Request, patience: Option<Duration>) -> io::Result<Reply> {
    let mut stream = StdStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

/// Opens the socket at `path`, for its owner only.
pub fn listen(path: &Path) -> io::Result<StdListener> {
    let listener = StdListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers clients until it is aborted: status from `journal`, everything else as an order. Nothing is ever sent to
/// `busy`: it is closed once the last client has its answer.
pub async fn serve(
    listener: UnixListener,
    journal: Arc<Journal>,
    orders: mpsc::UnboundedSender<Order>,
    busy: mpsc::Sender<()>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (journal, orders, busy) = (journal.clone(), orders.clone(), busy.clone());
                tokio::spawn(async move {
                    answer(stream, journal, orders).await;
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

async fn answer(mut stream: UnixStream, journal: Arc<Journal>, orders: mpsc::UnboundedSender<Order>) {
    let reply = if !is_trusted(&stream) {
        Reply::refused("only the owner of a run and root may control it")
    } else {
        match tokio::time::timeout(REQUEST_TIME, read_request(&mut stream)).await {
            Ok(Ok(Request::Status)) => Reply { report: Some(journal.snapshot()), ..Reply::done("alive") },
            Ok(Ok(request)) => pass_on(request, &orders).await,
            Ok(Err(error)) => Reply::refused(format!("bad request: {error}")),
            Err(_) => Reply::refused("bad request: too slow"),
        }
    };
    let mut line = serde_json::to_vec(&reply).expect("replies hold strings, numbers and JSON values only");
    line.push(b'\n');
    // A client that is gone needs no answer.
    let _ = stream.write_all(&line).await;
}

async fn pass_on(request: Request, orders: &mpsc::UnboundedSender<Order>) -> Reply {
    let (sender, receiver) = oneshot::channel();
    let gone = || Reply::refused("the run is ending");
    if orders.send(Order::Request(request, sender)).is_err() {
        return gone();
    }
    receiver.await.unwrap_or_else(|_| gone())
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Request> {
    let mut line = String::new();
    tokio::io::BufReader::new(stream.take(REQUEST_MAX)).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
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
