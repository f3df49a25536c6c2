//! Users of a node who want to harm each other, or root.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::node::{ALICE, Answer, BOB, Node, block_on, mounts_below};
use crate::program::{Said, finish, mounted, require_host, runseal, say, wait_until};

/// A program of a user; killed on drop, with all it has started.
struct Theirs(Child);

impl Theirs {
    fn start(user: u32, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).uid(user).gid(user).current_dir("/").process_group(0);
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts"))
    }

    /// Waits for a line.
    fn says(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

// promise: T-61
#[test]
fn no_lock_of_a_user_stops_root() {
    require_host!();
    let node = Node::start("");
    // What a version before has left, and somebody has opened then.
    let former = Path::new("/run/runseal/@lock");
    let old = fs::File::options().create(true).append(true).open(former).expect("made");
    old.set_permissions(fs::Permissions::from_mode(0o644)).expect("set");
    let script = "for file in $(find /run/runseal -type f 2>/dev/null); do flock -n $file sleep 600 & done 2>/dev/null; sleep 0.2; echo held; wait";
    let mut theirs = Theirs::start(ALICE, "sh", &["-c", script]);
    assert_eq!(theirs.says(), "held\n");
    let said = say(&["status"]).expect(0, &[]);
    assert!(!said.err.contains("locked"), "{said:?}");
    let id = node.fresh_id();
    node.create(&id);
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert_eq!(fs::metadata(former).expect("there").mode() & 0o777, 0o600, "the former one is closed");
    let seen = Theirs::start(ALICE, "find", &["/run/runseal", "-type", "f", "-readable"]);
    let mut found = String::new();
    let mut seen = seen;
    seen.0.stdout.take().expect("piped").read_to_string(&mut found).expect("text");
    assert!(!found.contains("lock"), "{found}");
    fs::remove_file(former).expect("removed");
}

// promise: T-62
#[test]
fn no_name_of_a_run_is_a_file_of_the_service_or_a_volume() {
    require_host!();
    let mut node = Node::prepare("");
    let socket = node.move_socket();
    let (plugin, root) = (node.path().join("plugin.sock"), node.path().join("volumes"));
    node.configure(&format!("[docker]\nenabled = true\nsocket = {plugin:?}\nroot = {root:?}"));
    node.launch();
    let own = socket.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
    let stem = own.strip_suffix(".sock").expect("its end").to_owned();
    let pid = node.pid();
    let mut made = Vec::new();
    for id in [format!("{stem}.volumes.json.tmp"), format!("{stem}.volumes.json"), own, format!("{stem}.sock.{pid}")] {
        let Some(answer) = node.call_as(ALICE, "POST", "/v1/runs", &small(&id)) else {
            return println!("SKIP: {}: no curl or setpriv", module_path!());
        };
        assert_eq!(answer.status, 201, "{answer:?}");
        made.push(id);
    }
    let volume = format!("{stem}v");
    let taken = node.call_as(ALICE, "POST", "/v1/runs", &small(&format!("vol-{volume}"))).expect("curl");
    assert!(taken.expect_problem("forbidden").contains("volumes"), "{taken:?}");
    let ask = |method: &str| {
        let body = format!("{{\"Name\": \"{volume}\", \"ID\": \"x\", \"Opts\": {{\"size\": \"64M\"}}}}");
        let call = async { crate::node::Client::connect(&plugin).await.call("POST", method, &body).await };
        let answer = block_on(call);
        assert_eq!(answer.status, 200, "{method}: {answer:?}");
    };
    ask("/VolumeDriver.Create");
    ask("/VolumeDriver.Mount");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait(), Some(0));
    node.launch();
    ask("/VolumeDriver.Unmount");
    ask("/VolumeDriver.Remove");
    for id in made {
        let answer = node.call_as(ALICE, "DELETE", &format!("/v1/runs/{id}"), "").expect("curl");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

// promise: T-62
#[test]
fn a_live_run_of_a_version_before_is_found() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    node.create(&id);
    // As that version has it.
    let (now, former) = (Path::new("/run/runseal/@runs").join(&id), Path::new("/run/runseal").join(&id));
    fs::rename(&now, &former).expect("renamed");
    let status = say(&["status", &id]).expect(0, &[]);
    assert!(status.out.contains(&id), "{status:?}");
    let mountpoint = node.path().join("other");
    fs::create_dir(&mountpoint).expect("made");
    let mut again = runseal();
    again.args(["mount", "--run-id", &id, "--size", "64M"]).arg(&mountpoint);
    finish(again).expect(64, &["in use"]);
    say(&["end", &id]).expect(0, &[]);
    wait_until("its state is gone", || !former.exists());
}

/// A request from a mount namespace of its own, in which nothing arrives that is mounted outside (or all, as `slave`).
fn ask_from_afar(node: &Node, propagation: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", propagation, "curl", "-s", "-w", "\n%{http_code}", "--unix-socket"]);
    let said = Said::of(command.arg(node.socket()).args(arguments).output().expect("unshare runs")).expect(0, &[]);
    let (body, status) = said.out.rsplit_once('\n').expect("status behind the body");
    let status = status.parse().expect("a number");
    Answer { status, body: serde_json::from_str(body).unwrap_or_default(), text: body.to_owned() }
}

fn small(id: &str) -> String {
    format!("{{\"id\": \"{id}\", \"size\": \"64M\"}}")
}

// promise: T-63
#[test]
fn a_service_that_nobody_sees_does_not_start() {
    require_host!();
    let node = Node::prepare("");
    for arguments in [&["serve", "--check"][..], &["serve"]] {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", env!("CARGO_BIN_EXE_runseal")]);
        command.args(arguments).arg("--config").arg(node.config());
        let said = finish(command).expect(69, &["process 1", "mount namespace of its own", "hostPID"]);
        assert!(said.err.contains(node.root().to_str().expect("text")), "{said:?}");
    }
}

/// A directory whose mounts reach other namespaces, as on a node; undone on drop.
struct Shared(PathBuf);

impl Shared {
    fn make(directory: &Path) -> Self {
        let script = "mount --bind \"$0\" \"$0\" && mount --make-shared \"$0\"";
        let made = Command::new("sh").args(["-c", script]).arg(directory).status().expect("sh runs");
        assert!(made.success());
        Self(directory.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// promise: T-63
#[test]
fn whoever_would_see_a_bare_directory_gets_no_run() {
    require_host!();
    let mut node = Node::prepare("");
    let _shared = Shared::make(&node.root());
    node.launch();
    let id = node.fresh_id();
    let url = "http://localhost/v1/runs";
    let answer = ask_from_afar(&node, "private", &["-d", &small(&id), url]);
    let said = answer.expect_problem("unavailable");
    assert!(said.contains("bare directory") && said.contains("hostPID"), "{said}");
    wait_until("nothing is left of it", || !mounted(&node.root().join(&id)) && !node.root().join(&id).exists());
    node.must_not("GET", &format!("/v1/runs/{id}"), "", "not-found");
    let health = ask_from_afar(&node, "private", &["http://localhost/v1/health"]);
    assert_eq!(health.body["status"], "degraded", "{health:?}");
    assert_eq!(node.must("GET", "/v1/health", "")["status"], "ok");
    let answer = ask_from_afar(&node, "slave", &["-d", &small(&id), url]);
    assert_eq!(answer.status, 201, "what is mounted arrives there: {answer:?}");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

// promise: T-63
#[test]
fn nothing_can_be_written_into_a_bare_mountpoint() {
    require_host!();
    let node = Node::start("");
    let probe = node.path().join("probe");
    fs::create_dir(&probe).expect("made");
    let flag =
        |flag: &str| Command::new("chattr").arg(flag).arg(&probe).output().is_ok_and(|said| said.status.success());
    if !flag("+i") || !flag("-i") {
        return println!("SKIP: {}: no immutable files here", module_path!());
    }
    let id = node.fresh_id();
    node.create(&id);
    let place = node.root().join(&id);
    fs::write(place.join("file"), "sealed").expect("mounted");
    // As who does not see the mount.
    let script = "umount -l \"$0\"; ! touch \"$0/leak\" && ! chown 4001 \"$0\" && ! chmod 777 \"$0\" && ! rmdir \"$0\"";
    let blind = Command::new("unshare").args(["--mount", "sh", "-c", script]).arg(&place).output().expect("unshare");
    assert!(blind.status.success(), "{blind:?}");
    assert_eq!(fs::read_to_string(place.join("file")).expect("still mounted outside"), "sealed");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert!(!place.exists(), "the service removes it");
}

// promise: T-64
#[test]
fn a_client_that_never_reads_is_dropped() {
    require_host!();
    let node = Node::start("patience = 1");
    let open = || block_on(node.call("GET", "/metrics", "")).text.lines().any(|line| line == "runseal_connections 1");
    let mut stream = UnixStream::connect(node.socket()).expect("connected");
    stream.set_write_timeout(Some(std::time::Duration::from_secs(30))).expect("set");
    let request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let error = loop {
        match stream.write_all(request) {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    let hung_up = [std::io::ErrorKind::BrokenPipe, std::io::ErrorKind::ConnectionReset];
    assert!(hung_up.contains(&error.kind()), "left waiting: {error}");
    wait_until("its seat is free", open);
}

/// Holds as many connections as it gets, each with an answer; tells how many.
const HOLD: &str = "
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.sendall(b'GET /v1/health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
    if s.recv(12) == b'HTTP/1.1 200':
        held.append(s)
print(len(held), flush=True)
sys.stdin.read()
";

fn hold(node: &Node, user: u32, number: &str) -> (Theirs, usize) {
    let mut theirs = Theirs::start(user, "python3", &["-c", HOLD, node.socket().to_str().expect("text"), number]);
    let held = theirs.says().trim().parse().expect("a number");
    (theirs, held)
}

// promise: T-64
#[test]
fn users_leave_seats_to_root() {
    require_host!();
    let node = Node::start("connections_per_user = 8\nconnections = 16\npatience = 60");
    let (alice, first) = hold(&node, ALICE, "9");
    let (bob, second) = hold(&node, BOB, "9");
    assert_eq!((first, second), (8, 6), "two of sixteen are kept");
    assert_eq!(node.must("GET", "/v1/health", "")["status"], "ok");
    drop((alice, bob));
}

/// Subordinate ids of a user, as long as this lives.
struct Subordinate(Option<String>);

impl Subordinate {
    const FILE: &str = "/etc/subuid";

    fn add(line: &str) -> Self {
        let before = fs::read_to_string(Self::FILE).ok();
        fs::write(Self::FILE, format!("{}{line}\n", before.clone().unwrap_or_default())).expect("written");
        Self(before)
    }
}

impl Drop for Subordinate {
    fn drop(&mut self) {
        let _ = match &self.0 {
            Some(text) => fs::write(Self::FILE, text),
            None => fs::remove_file(Self::FILE),
        };
    }
}

// promise: T-60
#[test]
fn subordinate_ids_share_the_limits_of_their_owner() {
    require_host!();
    let first = 1_700_000_000_u32;
    let _subordinate = Subordinate::add(&format!("{ALICE}:{first}:65536"));
    let node = Node::start("connections_per_user = 2\npatience = 60\n[limits.per_user]\nruns = 2");
    for user in [ALICE, first + 1] {
        let Some(answer) = node.call_as(user, "POST", "/v1/runs", &small(&node.fresh_id())) else {
            return println!("SKIP: {}: no curl or setpriv", module_path!());
        };
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    for user in [ALICE, first, first + 65_535] {
        let answer = node.call_as(user, "POST", "/v1/runs", &small(&node.fresh_id())).expect("curl");
        assert!(answer.expect_problem("limit").contains(&ALICE.to_string()), "{answer:?}");
    }
    let answer = node.call_as(first + 65_536, "POST", "/v1/runs", &small(&node.fresh_id())).expect("curl");
    assert_eq!(answer.status, 201, "somebody else: {answer:?}");
    let (one, mine) = hold(&node, first, "2");
    let (other, also) = hold(&node, first + 7, "2");
    assert_eq!((mine, also), (2, 0), "connections, too");
    drop((one, other));
    assert_eq!(mounts_below(node.path()).len(), 3);
}

// promise: T-66
#[test]
fn a_refusal_does_not_name_the_runs_of_others() {
    require_host!();
    let node = Node::start("");
    let (first, second) = (node.fresh_id(), node.fresh_id());
    let output: PathBuf = node.path().join("results");
    fs::create_dir(&output).expect("made");
    let body = |id: &str| format!("{{\"id\": \"{id}\", \"size\": \"64M\", \"output\": {output:?}}}");
    node.must("POST", "/v1/runs", &body(&first));
    let said = node.must_not("POST", "/v1/runs", &body(&second), "cannot-create");
    assert!(said.contains("another run") && !said.contains(&first), "{said}");
    node.must("DELETE", &format!("/v1/runs/{first}?discard=true"), "");
}
