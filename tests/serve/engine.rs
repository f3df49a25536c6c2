//! A Docker engine of its own for each test, which sees our plugin and is not the machine's: an engine remembers every
//! plugin it has met until it ends, and asks those that are gone again and again.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::program::{PATIENCE, lives, wait_until};

/// Makes a mount namespace that gets the mounts of the machine but not the other way round, and a network namespace (an
/// engine without a bridge removes `docker0`), and keeps them until its input ends. What no option of the engine leads
/// elsewhere is put in the place of the machine's.
const HOLD: &str = "mkdir -p /run/docker/plugins /run/containerd /etc/docker
    mount --bind \"$1/plugins\" /run/docker/plugins
    mount --bind \"$1/containerd\" /run/containerd
    mount --bind \"$1/etc\" /etc/docker
    echo made
    exec cat";
const FLAGS: [&str; 9] = [
    "--config-file=DIR/etc/daemon.json",
    "--data-root=DIR/data",
    "--exec-root=DIR/exec",
    "--pidfile=DIR/pid",
    "--host=unix://DIR/docker.sock",
    "--storage-driver=vfs",
    "--shutdown-timeout=5",
    "--bridge=none",
    "--iptables=false",
];

/// An engine. Dropping it ends it, with its containers.
pub struct Engine {
    dir: tempfile::TempDir,
    /// Has the namespaces.
    holder: Child,
    daemon: Option<Child>,
    flags: &'static [&'static str],
}

impl Engine {
    /// Starts one with more `flags`; the error says why none can run here.
    pub fn start(flags: &'static [&'static str]) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("runseal-engine-").tempdir().map_err(|error| error.to_string())?;
        for name in ["plugins", "containerd", "etc", "volumes"] {
            fs::create_dir(dir.path().join(name)).map_err(|error| error.to_string())?;
        }
        fs::write(dir.path().join("etc/daemon.json"), "{}").map_err(|error| error.to_string())?;
        let volumes = dir.path().join("volumes");
        let none: Option<&str> = None;
        let shared = mount(Some(&volumes), &volumes, none, MsFlags::MS_BIND, none)
            .and_then(|()| mount(none, &volumes, none, MsFlags::MS_SHARED, none));
        shared.map_err(|errno| format!("{}: {}", volumes.display(), errno.desc()))?;
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "slave", "sh", "-euc", HOLD, "hold"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut engine =
            Self { dir, holder: holder.map_err(|error| format!("unshare: {error}"))?, daemon: None, flags };
        let mut word = String::new();
        let read = BufReader::new(engine.holder.stdout.take().expect("piped")).read_line(&mut word);
        if read.is_err() || word != "made\n" {
            return Err("no namespaces of our own can be made".to_owned());
        }
        engine.launch()?;
        Ok(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it looks for sockets of plugins.
    pub fn plugins(&self) -> PathBuf {
        self.path("plugins")
    }

    /// What is mounted below, it sees as well.
    pub fn volumes(&self) -> PathBuf {
        self.path("volumes")
    }

    /// Starts it, for the first time or again, and waits until it answers.
    pub fn launch(&mut self) -> Result<(), String> {
        let log =
            File::options().create(true).append(true).open(self.path("log")).map_err(|error| error.to_string())?;
        let dir = self.dir.path().display().to_string();
        let daemon = Command::new("nsenter")
            .args(["--net", "--mount", "--target", &self.holder.id().to_string(), "--", "dockerd"])
            .args(FLAGS.map(|flag| flag.replace("DIR", &dir)))
            .args(self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut daemon = daemon.map_err(|error| format!("nsenter: {error}"))?;
        let began = Instant::now();
        while !self.docker(&["version"]).status.success() {
            let ended = daemon.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || began.elapsed() > PATIENCE {
                self.daemon = Some(daemon);
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                return Err(format!("no Docker engine of our own starts: {}", log.lines().last().unwrap_or("no word")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends it with `signal`, and waits until it is gone, with the containerd it has started.
    pub fn stop(&mut self, signal: Signal) {
        let Some(mut daemon) = self.daemon.take() else { return };
        let note = self.path("exec/containerd/containerd.pid");
        let containerd: Option<u32> = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok());
        // A child not yet waited for keeps its number.
        let _ = kill(Pid::from_raw(daemon.id() as i32), signal);
        let _ = daemon.wait();
        wait_until("containerd is gone", || !containerd.is_some_and(lives));
        // Until the machine's first process has waited for it, an engine takes it for alive, and waits for its socket.
        let _ = fs::remove_file(note);
    }

    /// Runs the client.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        let socket = format!("unix://{}", self.path("docker.sock").display());
        Command::new("docker").args(["--host", &socket]).args(arguments).output().expect("docker starts")
    }

    /// Runs the client, which must succeed; what it said.
    #[track_caller]
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments);
        assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(Signal::SIGTERM);
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        let _ = umount2(&self.volumes(), MntFlags::MNT_DETACH);
    }
}

/// Why no engine can be had here, if so.
pub fn obstacle() -> Option<&'static str> {
    let there = |name: &str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).exists()))
    };
    let missing = [("docker", "no docker"), ("dockerd", "no dockerd"), ("nsenter", "no nsenter (util-linux)")];
    let missing = missing.into_iter().find(|(name, _)| !there(name)).map(|(_, reason)| reason);
    missing.or_else(|| (!Path::new(crate::docker::BUSYBOX).exists()).then_some("no static busybox (busybox-static)"))
}
