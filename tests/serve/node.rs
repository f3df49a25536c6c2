//! A node of its own for each test: configuration, directories, service; all gone at the end.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::program::{PATIENCE, wait_until};

/// A user that is not root; nobody has to know it.
pub const ALICE: u32 = 61_001;
/// Another one.
pub const BOB: u32 = 61_002;

/// A service with directories of its own. Dropping it ends its runs and the service.
pub struct Node {
    dir: tempfile::TempDir,
    service: Option<Child>,
    prefix: String,
    count: AtomicU32,
    place: Option<PathBuf>,
    /// Of the service.
    pub environment: Vec<(String, String)>,
}

impl Node {
    /// Starts a service; `more` is added to its configuration, after `[api]`.
    pub fn start(more: &str) -> Self {
        let mut node = Self::prepare(more);
        node.launch();
        node
    }

    /// Directories and configuration only.
    pub fn prepare(more: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("serve-{}-{}-", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("runseal-serve-").tempdir().expect("tempdir");
        // Other users reach the socket and the mountpoints.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("set");
        let node = Self { dir, service: None, prefix, count: AtomicU32::new(0), place: None, environment: Vec::new() };
        fs::create_dir(node.root()).expect("made");
        node.configure(more);
        node
    }

    /// Writes the configuration.
    pub fn configure(&self, more: &str) {
        let (socket, root) = (self.socket(), self.root());
        let text = format!("[mounts]\nroots = [{root:?}]\n[api]\nsocket = {socket:?}\nmode = \"0666\"\n{more}\n");
        fs::write(self.config(), text).expect("written");
    }

    /// Starts the service and waits until it answers.
    pub fn launch(&mut self) {
        assert!(self.service.is_none(), "one at a time");
        let log = fs::File::options().create(true).append(true).open(self.log_file()).expect("log");
        let child = with_rights_of_unit(env!("CARGO_BIN_EXE_runseal"))
            .args(["serve", "--config"])
            .arg(self.config())
            .env("RUNSEAL_LOG", "runseal=info")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the binary starts");
        self.service = Some(child);
        wait_until("the service answers", || {
            assert!(self.service_lives(), "the service ended: {}", self.log());
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
    }

    /// Process id of the service.
    pub fn pid(&self) -> i32 {
        self.service.as_ref().expect("started").id() as i32
    }

    /// Sends the service a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("it lives");
    }

    /// Waits for the end of the service.
    pub fn wait(&mut self) -> Option<i32> {
        self.service.take().expect("started").wait().expect("wait").code()
    }

    fn service_lives(&mut self) -> bool {
        self.service.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// A run id no other test uses.
    pub fn fresh_id(&self) -> String {
        format!("{}{}", self.prefix, self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("serve.toml")
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.place.clone().unwrap_or_else(|| self.dir.path().join("serve.sock"))
    }

    /// Has the socket where it is on a real node, under a name of its own; call it before `configure`.
    pub fn move_socket(&mut self) -> PathBuf {
        fs::create_dir_all("/run/runseal").expect("made");
        let place = Path::new("/run/runseal").join(format!("{}x.sock", self.prefix));
        self.place.insert(place).clone()
    }

    /// Where runs are mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mounts")
    }

    /// A directory for anything else.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What the service has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// One request of this process.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        Client::connect(&self.socket()).await.call(method, path, body).await
    }

    /// One request that must succeed.
    #[track_caller]
    pub fn must(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = block_on(self.call(method, path, body));
        assert!(answer.status < 300, "{method} {path} {body}: {answer:?}; log: {}", self.log());
        answer.body
    }

    /// One request that must fail as `kind`; returns the detail.
    #[track_caller]
    pub fn must_not(&self, method: &str, path: &str, body: &str, kind: &str) -> String {
        block_on(self.call(method, path, body)).expect_problem(kind)
    }

    /// One request of another user. `None` where curl or setpriv is missing.
    pub fn call_as(&self, user: u32, method: &str, path: &str, body: &str) -> Option<Answer> {
        let id = user.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "curl", "-s", "-w", "\n%{http_code}"]);
        command.arg("--unix-socket").arg(self.socket()).args(["-X", method]);
        if !body.is_empty() {
            command.args(["-H", "content-type: application/json", "--data-binary", "@-"]);
        }
        // Arguments are there for everybody to see, and bodies may hold credentials.
        command
            .arg(format!("http://localhost{path}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().ok()?;
        let _ = child.stdin.take().expect("piped").write_all(body.as_bytes());
        let output = child.wait_with_output().ok().filter(|o| o.status.code() != Some(127))?;
        let text = String::from_utf8(output.stdout).expect("text");
        let (body, status) = text.rsplit_once('\n').expect("status behind the body");
        let status = status.parse().unwrap_or_else(|_| panic!("{text} {:?}", output.stderr));
        Some(Answer { status, body: serde_json::from_str(body).unwrap_or(Value::Null), text: body.to_owned() })
    }

    /// Makes a run and returns what the service says of it.
    #[track_caller]
    pub fn create(&self, id: &str) -> Value {
        self.must("POST", "/v1/runs", &format!("{{\"id\": \"{id}\", \"size\": \"64M\"}}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.service.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // No checks: this may run while a failed test unwinds.
        for run in runs_named(&self.prefix) {
            let _ = Command::new(env!("CARGO_BIN_EXE_runseal"))
                .args(["end", "--discard", &run])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
        let start = Instant::now();
        while !(runs_named(&self.prefix).is_empty() && mounts_below(self.path()).is_empty()) {
            if start.elapsed() > PATIENCE / 4 {
                for mount in mounts_below(self.path()) {
                    let _ = Command::new("umount").arg("-lq").arg(mount).status();
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Nobody was left to remove the mountpoints, and nobody but their service can.
        let _ = Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.root()).stderr(Stdio::null()).status();
        if let Some(place) = &self.place {
            for path in [place.clone(), place.with_extension("volumes.json")] {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// A program with the capabilities that the unit gives the service: what works here works there.
fn with_rights_of_unit(program: &str) -> Command {
    let unit = include_str!("../../deploy/systemd/runseal.service");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=CAP_")).expect("bounded");
    let set = format!("-all,+{}", set.to_lowercase().replace(" cap_", ",+"));
    if Command::new("setpriv").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIP: setpriv is missing, the service has all capabilities");
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", "--inh-caps=-all", "--bounding-set", &set, program]);
    command
}

/// Live or dead runs whose name contains `part`.
pub fn runs_named(part: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/runseal/@runs") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.contains(part)).collect()
}

/// Mountpoints below `path`.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(path)).collect()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub text: String,
}

impl Answer {
    /// Checks that it is a problem document of this kind; returns its detail.
    #[track_caller]
    pub fn expect_problem(&self, kind: &str) -> String {
        assert_eq!(self.body["type"], format!("urn:runseal:problem:{kind}"), "{self:?}");
        assert_eq!(self.body["status"], self.status, "{self:?}");
        assert!(self.body["exit_code"].as_u64().is_some_and(|code| code >= 64), "{self:?}");
        self.body["detail"].as_str().expect("a detail").to_owned()
    }
}

/// A connection.
pub struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.expect("connected");
        let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn call(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        self.0.ready().await.expect("open");
        let response = self.0.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null), text }
    }
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}
