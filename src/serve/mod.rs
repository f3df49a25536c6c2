//! The node daemon: one family of processes per run, over HTTP on a Unix socket.
//!
//! | file | what lives there |
//! |---|---|
//! | `config` | the TOML file |
//! | `http`, `wire` | connections, their limits and times; `peer`: who calls; `account`: whom they count as |
//! | `api`, `model`, `problem` | paths, JSON, errors; `docs/openapi.json` is made from them |
//! | `admission` | what a request becomes for this caller: checked, and filled in |
//! | `table` | the states of runs, drawn, and the limits; knows no process |
//! | `runs` | the verbs: create, publish, end, adopt |
//! | `mountpoint` | directories to mount on; `sight`: whether others see what is mounted there |
//! | `docker`, `volumes` | the volume plugin of Docker, and the volumes behind it |
//! | `health`, `metrics` | how the node is |

mod account;
mod admission;
mod api;
mod config;
mod docker;
mod health;
mod http;
mod metrics;
mod model;
mod mountpoint;
mod peer;
mod problem;
mod runs;
mod sight;
mod table;
mod volumes;
mod wire;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nix::unistd::{Gid, geteuid};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::account::Accounts;
use self::api::Node;
pub use self::config::{Config, ConfigError, DEFAULT_PATH};
use self::docker::Plugin;
use self::health::Disks;
use self::http::{ConnectionLimits, Seats};
use self::metrics::Metrics;
use self::mountpoint::Roots;
use self::runs::{Runs, Settings};
use self::volumes::Volumes;
use crate::sys::notify::{Manager, Notifier};
use crate::sys::path::shown;

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
    #[error("socket {}: {problem}", shown(.path))]
    Socket {
        /// The path.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A root has become unusable since the check.
    #[error("mounts.roots: {0}")]
    Root(String),
    /// Nobody else would see the mounts.
    #[error("{0}")]
    Unseen(String),
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

/// Reads and checks a configuration, and whether the node would see the mounts; does nothing with it.
pub fn check(path: &Path) -> Result<(), ServeError> {
    be_seen(&Config::read(path)?)
}

/// Fails if mounts of this process would be seen by nobody else.
fn be_seen(config: &Config) -> Result<(), ServeError> {
    let obstacles = sight::obstacles(config.mounted_below(), None);
    if obstacles.is_empty() { Ok(()) } else { Err(ServeError::Unseen(obstacles.join("\n"))) }
}

/// Serves until a signal ends it. Runs live on.
pub fn serve(path: &Path) -> Result<(), ServeError> {
    // Before there is a second thread.
    let manager = Manager::take().map_err(system("asking the service manager"))?;
    if !geteuid().is_root() {
        return Err(ServeError::NotRoot);
    }
    let settings = Settings::read(path)?;
    be_seen(&settings.config)?;
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
    let mut given = PassedSockets::new(manager.listeners)?;
    let plugged = settings.config.docker.enabled.then(|| listen_to_docker(&settings.config, &mut given)).transpose()?;
    let (listener, socket) = listen(&settings.config, given)?;
    let allowance = ConnectionLimits::of(&settings.config);
    let metrics = Arc::new(Metrics::default());
    let accounts = Arc::new(Accounts::new());
    let runs = Runs::new(settings, &socket, accounts.clone(), metrics.clone());
    let adopter = runs.clone();
    let adopted = tokio::task::spawn_blocking(move || adopter.adopt()).await;
    let adopted = adopted
        .map_err(|error| ServeError::Adopt(error.to_string()))?
        .map_err(|problem| ServeError::Adopt(problem.to_string()))?;
    let (began, disks) = (Instant::now(), Disks::default());
    let node = Arc::new(Node { runs: runs.clone(), metrics: metrics.clone(), began, disks });

    let (stop, stopped) = watch::channel(false);
    let api = http::serve(listener, api::router(node), Seats::new(allowance, &accounts, &metrics), stopped.clone());
    let mut servers = tokio::task::JoinSet::new();
    servers.spawn(api);
    if let Some(listener) = plugged {
        let file = socket.with_extension("volumes.json");
        let opened = Volumes::open(runs.clone(), file.clone()).await;
        let volumes = opened.map_err(|error| ServeError::Adopt(format!("{}: {error}", shown(&file))))?;
        let router = docker::router(Arc::new(Plugin { volumes, metrics: metrics.clone() }));
        servers.spawn(http::serve(listener, router, Seats::new(allowance, &accounts, &metrics), stopped));
    }
    health::ask(&socket).await.map_err(system("asking the service for its health"))?;
    notifier.ready(&format!("{adopted} runs taken over"));
    tracing::info!("ready on {}, {adopted} runs taken over", shown(&socket));
    tokio::spawn(health::watch(notifier.clone(), socket.clone()));

    wait_for_end(path, &runs, &notifier).await?;
    notifier.stopping();
    stop.send_replace(true);
    while servers.join_next().await.is_some() {}
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
        let volumes = config.docker.enabled.then(|| volume_root(config.docker.root.get_ref().as_path())).transpose()?;
        Ok(Self { config, roots, volumes })
    }
}

impl ConnectionLimits {
    fn of(config: &Config) -> Self {
        Self {
            connections: config.api.connections,
            per_user: config.api.connections_per_user,
            patience: config.api.patience.0,
            body: config.api.request_size.bytes() as usize,
        }
    }
}

/// Only root passes through to the volumes; containers do not need to.
fn volume_root(path: &Path) -> Result<Roots, ServeError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(ServeError::Root(format!("docker.root {}: {error}", shown(path))));
        }
        _ => {}
    }
    Roots::open([path].into_iter()).map_err(|problem| ServeError::Root(format!("docker.root: {problem}")))
}

/// Sockets the service manager opened, with their paths.
struct PassedSockets(Vec<(StdListener, Option<PathBuf>)>);

impl PassedSockets {
    fn new(sockets: Vec<OwnedFd>) -> Result<Self, ServeError> {
        let named = |socket| {
            let listener = StdListener::from(socket);
            let address = listener.local_addr().map_err(system("a socket of the service manager"))?;
            let path = address.as_pathname().map(Path::to_owned);
            Ok::<_, ServeError>((listener, path))
        };
        Ok(Self(sockets.into_iter().map(named).collect::<Result<_, _>>()?))
    }

    fn take(&mut self, path: &Path) -> Option<StdListener> {
        let at = self.0.iter().position(|(_, found)| found.as_deref() == Some(path))?;
        Some(self.0.remove(at).0)
    }
}

/// The socket of the API and where it is: the service manager knows better than the configuration.
fn listen(config: &Config, mut given: PassedSockets) -> Result<(UnixListener, PathBuf), ServeError> {
    let path = config.api.socket.as_path().to_owned();
    match (given.0.len(), given.0.pop()) {
        (0, _) => Ok((own_socket(&path, config.api.mode.0, config.group())?, path)),
        (1, Some((listener, found))) => Ok((in_runtime(listener)?, found.unwrap_or(path))),
        (count, _) => {
            let problem = format!("the service manager passed {count} sockets for the API, one is expected");
            Err(ServeError::Socket { path, problem })
        }
    }
}

fn listen_to_docker(config: &Config, given: &mut PassedSockets) -> Result<UnixListener, ServeError> {
    let path = config.docker.socket.as_path();
    match given.take(path) {
        Some(listener) => in_runtime(listener),
        None => own_socket(path, 0o600, None),
    }
}

fn own_socket(path: &Path, mode: u32, group: Option<Gid>) -> Result<UnixListener, ServeError> {
    let bound = bind(path, mode, group).map_err(|problem| ServeError::Socket { path: path.to_owned(), problem })?;
    in_runtime(bound)
}

fn in_runtime(listener: StdListener) -> Result<UnixListener, ServeError> {
    listener.set_nonblocking(true).map_err(system("a socket"))?;
    UnixListener::from_std(listener).map_err(system("a socket"))
}

/// Binds to a name of its own first and renames: clients never see a socket with the wrong mode.
fn bind(path: &Path, mode: u32, group: Option<Gid>) -> Result<StdListener, String> {
    if StdStream::connect(path).is_ok() {
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
    let listener = StdListener::bind(&fresh).map_err(said)?;
    let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))
        .and_then(|()| match group {
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
