//! Whether the node can take runs, and the watchdog that asks it through its own socket.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::api::Node;
use super::metrics::{MetricsPage, label};
use super::model::Health;
use super::peer::Caller;
use super::sight;
use crate::sys::notify::Notifier;
use crate::sys::path::shown;

/// How long the disks of the backing may take to tell their free space.
const DISK_TIME: Duration = Duration::from_secs(2);
/// Less free space than this is a problem.
const SCARCE: u64 = 64 << 20;

/// Looks at all that a new run needs.
pub async fn examine(node: &Arc<Node>, caller: Caller) -> Health {
    let settings = node.runs.settings();
    let look = move || sight::obstacles(settings.config.mounted_below(), Some(caller));
    let mut problems = tokio::task::spawn_blocking(look).await.unwrap_or_default();
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        problems.push(format!("/dev/fuse cannot be opened: {error}"));
    }
    for (path, free) in free_space(node).await {
        match free {
            Some(free) if free >= SCARCE => {}
            Some(free) => problems.push(format!("backing {}: {free} bytes are free", shown(&path))),
            None => problems.push(format!("backing {} does not tell its free space", shown(&path))),
        }
    }
    Health {
        status: if problems.is_empty() { "ok" } else { "degraded" },
        version: env!("CARGO_PKG_VERSION"),
        uptime: node.began.elapsed().as_secs(),
        runs: node.runs.live(),
        problems,
    }
}

/// Adds the gauges of the node to a page.
pub async fn measure(node: &Arc<Node>, page: &mut MetricsPage) {
    let free = free_space(node).await.into_iter().filter_map(|(path, free)| {
        let label = label("directory", &shown(&path));
        Some((label, free?))
    });
    page.gauge("runseal_backing_free_bytes", "Free space of the backing", free);
    page.gauge(
        "runseal_uptime_seconds",
        "Since the start of the service",
        [(String::new(), node.began.elapsed().as_secs())],
    );
}

/// Free bytes of each backing; `None` if its disk does not answer in time. Never waits for a disk longer than that.
async fn free_space(node: &Arc<Node>) -> Vec<(PathBuf, Option<u64>)> {
    let directories: Vec<PathBuf> = node.runs.settings().config.backing().map(Path::to_owned).collect();
    let mut answers = Vec::new();
    for path in directories {
        let free = tokio::time::timeout(DISK_TIME, node.disks.free(&path)).await.ok().flatten();
        answers.push((path, free));
    }
    answers
}

/// Who is asking which disk. One that hangs costs one thread, however often it is asked: runs need the others.
#[derive(Default)]
pub struct Disks(Mutex<BTreeMap<PathBuf, Arc<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

impl Disks {
    async fn free(&self, path: &Path) -> Option<u64> {
        let turn = self.0.lock().entry(path.to_owned()).or_default().clone();
        let turn = turn.lock_owned().await;
        let path = path.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let stat = nix::sys::statvfs::statvfs(&path).ok()?;
            Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
        });
        asked.await.ok().flatten()
    }
}

/// Tells the service manager again and again that the service is well, as long as its socket answers.
pub async fn watch(notifier: Arc<Notifier>, socket: PathBuf) {
    let Some(period) = notifier.watchdog_period() else { return };
    loop {
        match tokio::time::timeout(period, ask(&socket)).await {
            Ok(Ok(())) => notifier.watchdog(),
            Ok(Err(error)) => tracing::error!("the service does not answer itself: {error}"),
            Err(_) => tracing::error!("the service does not answer itself within {period:?}"),
        }
        tokio::time::sleep(period / 2).await;
    }
}

/// One request through the socket, as any client would make it.
pub async fn ask(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    if &head == b"HTTP/1.1 200" {
        Ok(())
    } else {
        Err(io::Error::other(format!("answer: {}", String::from_utf8_lossy(&head))))
    }
}
