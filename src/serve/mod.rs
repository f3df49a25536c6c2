//! The node daemon: one family of processes per run, over HTTP on a Unix socket.
//!
//! | file | what lives there |
//! |---|---|
//! | `config` | the TOML file |
//! | `http` | connections, their limits and times; `peer`: who calls |
//! | `api`, `model`, `problem` | paths, JSON, errors; `docs/openapi.json` is made from them |
//! | `runs` | the table of runs: limits, start, end, adoption |
//! | `mountpoint` | directories to mount on |
//! | `health`, `metrics` | how the node is |

mod api;
mod config;
mod health;
mod http;
mod metrics;
mod model;
mod mountpoint;
mod peer;
mod problem;
mod runs;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::geteuid;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::api::Node;
pub use self::config::{Config, ConfigError, DEFAULT_PATH};
use self::http::Allowance;
use self::metrics::Metrics;
use self::mountpoint::Roots;
use self::runs::{Runs, Settings};
use crate::sys::notify::{Manager, Notifier};

/// Why the service cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Mounting for others needs root.
    #[error("runseal serve needs root, to mount for others; `runseal run` does not")]
    NotRoot,
    /// The socket.
    #[error("socket {}: {problem}", .path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A root has become unusable since the check.
    #[error("mounts.roots: {0}")]
    Root(String),
    /// Runs of an earlier life of the service.
    #[error("taking over the live runs: {0}")]
    Adopt(String),
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// Reads and checks a configuration, and does nothing with it.
pub fn check(path: &Path) -> Result<(), ServeError> {
    Config::read(path)?;
    Ok(())
}

/// Serves until a signal ends it. Runs live on.
pub fn serve(path: &Path) -> Result<(), ServeError> {
    // Before there is a second thread.
    let manager = Manager::take().map_err(system("asking the service manager"))?;
    if !geteuid().is_root() {
        return Err(ServeError::NotRoot);
    }
    let settings = Settings::read(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("starting the runtime"))?;
    let result = runtime.block_on(live(path, settings, manager));
    // Blocking work that is left waits for disks; it must not hold the end up.
    runtime.shutdown_background();
    result
}

async fn live(path: &Path, settings: Settings, manager: Manager) -> Result<(), ServeError> {
    let notifier = Arc::new(manager.notifier);
    let (listener, socket) = listen(&settings.config, manager.listeners)?;
    let allowance = Allowance::of(&settings.config);
    let metrics = Arc::new(Metrics::default());
    let runs = Runs::new(settings, &socket, metrics.clone());
    let adopter = runs.clone();
    let adopted = tokio::task::spawn_blocking(move || adopter.adopt()).await;
    let adopted = adopted
        .map_err(|error| ServeError::Adopt(error.to_string()))?
        .map_err(|problem| ServeError::Adopt(problem.to_string()))?;
    let node = Arc::new(Node { runs: runs.clone(), metrics: metrics.clone(), began: Instant::now() });

    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(http::serve(listener, api::router(node), allowance, metrics, stopped));
    health::ask(&socket).await.map_err(system("asking the service for its health"))?;
    notifier.ready(&format!("{adopted} runs taken over"));
    tracing::info!("ready on {}, {adopted} runs taken over", socket.display());
    tokio::spawn(health::watch(notifier.clone(), socket.clone()));

    wait_for_end(path, &runs, &notifier).await?;
    notifier.stopping();
    stop.send_replace(true);
    let _ = server.await;
    Ok(())
}

/// Returns when a signal asks for the end; on SIGHUP the configuration is read anew.
async fn wait_for_end(path: &Path, runs: &Runs, notifier: &Notifier) -> Result<(), ServeError> {
    let take = |kind| signal(kind).map_err(system("watching signals"));
    let mut hangup = take(SignalKind::hangup())?;
    let mut terminate = take(SignalKind::terminate())?;
    let mut interrupt = take(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                notifier.reloading();
                let status = match Settings::read(path) {
                    Ok(settings) => {
                        runs.configure(settings);
                        "configuration read; sockets stay as they are".to_owned()
                    }
                    Err(error) => {
                        tracing::error!("the old configuration stays: {error}");
                        format!("the old configuration stays: {error}")
                    }
                };
                notifier.ready(&status);
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

impl Settings {
    fn read(path: &Path) -> Result<Self, ServeError> {
        let config = Config::read(path)?;
        let roots = Roots::open(config.roots()).map_err(ServeError::Root)?;
        Ok(Self { config, roots })
    }
}

impl Allowance {
    fn of(config: &Config) -> Self {
        Self {
            connections: config.api.connections,
            per_user: config.api.connections_per_user,
            patience: config.api.patience.0,
            body: config.api.request_size.bytes() as usize,
        }
    }
}

/// The socket the service manager opened, or one of our own, and where it is.
fn listen(config: &Config, mut given: Vec<OwnedFd>) -> Result<(UnixListener, PathBuf), ServeError> {
    let path = config.api.socket.as_path().to_owned();
    let (listener, path) = match given.len() {
        0 => match bind(&path, config) {
            Ok(listener) => (listener, path),
            Err(problem) => return Err(ServeError::Socket { path, problem }),
        },
        1 => {
            let listener = std::os::unix::net::UnixListener::from(given.remove(0));
            // The manager knows better than the configuration.
            let address = listener.local_addr().map_err(system("the socket of the service manager"))?;
            let path = address.as_pathname().map(Path::to_owned).unwrap_or(path);
            (listener, path)
        }
        count => {
            let problem = format!("the service manager passed {count} sockets, one is expected");
            return Err(ServeError::Socket { path, problem });
        }
    };
    listener.set_nonblocking(true).map_err(system("the socket"))?;
    Ok((UnixListener::from_std(listener).map_err(system("the socket"))?, path))
}

/// Binds to a name of its own first and renames: clients never see a socket with the wrong mode.
fn bind(path: &Path, config: &Config) -> Result<std::os::unix::net::UnixListener, String> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err("a service answers there already; stop it first".to_owned());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err("something that is no socket is there; remove it".to_owned());
    }
    let said = |error: io::Error| format!("{error}; its directory must be there and writable");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(said)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let _ = fs::remove_file(&fresh);
    let listener = std::os::unix::net::UnixListener::bind(&fresh).map_err(said)?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(config.api.mode.0))
        .and_then(|()| match config.group() {
            Some(group) => std::os::unix::fs::chown(&fresh, None, Some(group.as_raw())),
            None => Ok(()),
        })
        .and_then(|()| fs::rename(&fresh, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&fresh);
        return Err(said(error));
    }
    Ok(listener)
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { action, source }
}
