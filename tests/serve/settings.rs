//! Configuration: what is refused, what it limits, what the metrics tell.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use crate::node::{ALICE, BOB, Node, block_on};
use crate::program::{require_host, wait_until};

fn check(node: &Node) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_runseal"))
        .args(["serve", "--check", "--config"])
        .arg(node.config())
        .output()
        .expect("the binary starts");
    (output.status.code().expect("a code"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_configuration_is_checked_without_serving() {
    let node = Node::prepare("");
    assert_eq!(check(&node), (0, String::new()));
    for (text, words) in [
        ("[api]\nmode = 660", &["line 2", "mode"][..]),
        ("[limits]\nrun = 3", &["line 2", "run"]),
        ("[mounts]\nroots = [\"/nonexistent/root\"]", &[":2:", "mounts.roots", "install -d"]),
        ("[api]\ngroup = \"no-such-group\"", &["api.group", "groupadd"]),
        ("nonsense", &["line 1"]),
    ] {
        fs::write(node.config(), text).expect("written");
        let (code, said) = check(&node);
        assert_eq!(code, 78, "{said}");
        assert!(said.contains("serve.toml"), "{said}");
        for word in words {
            assert!(said.contains(word), "{text}: no `{word}` in {said}");
        }
    }
    fs::remove_file(node.config()).expect("removed");
    let (code, said) = check(&node);
    assert!(code == 66 && said.contains("deploy/systemd/serve.toml"), "{code} {said}");
}

#[test]
fn the_sample_is_a_configuration_with_every_option() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/serve.toml");
    let text = fs::read_to_string(sample).expect("the sample");
    // What is commented out there is valid, too; only the root must exist here.
    let root = tempfile::tempdir().expect("tempdir");
    let active: Vec<String> = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(option)
                if option
                    .split_once(" = ")
                    .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')) =>
            {
                option
            }
            _ => line,
        })
        .map(|line| line.replace("/mnt/runseal", root.path().to_str().expect("text")).replace("\"runseal\"", "0"))
        .collect();
    let node = Node::prepare("");
    fs::write(node.config(), active.join("\n")).expect("written");
    assert_eq!(check(&node), (0, String::new()));
    for option in [
        "socket",
        "mode",
        "group",
        "connections",
        "connections_per_user",
        "patience",
        "request_size",
        "roots",
        "backing",
        "size",
        "memory",
        "runs",
        "bytes",
        "node_credentials",
        "enabled",
        "root",
    ] {
        assert!(active.iter().any(|line| line.starts_with(&format!("{option} = "))), "{option} is not documented");
    }
}

#[test]
fn the_socket_has_its_mode_and_group() {
    require_host!();
    let mut node = Node::prepare("");
    let text = fs::read_to_string(node.config()).expect("there").replace("\"0666\"", "\"0620\"\ngroup = 61001");
    fs::write(node.config(), text).expect("written");
    node.launch();
    let socket = fs::metadata(node.socket()).expect("there");
    assert_eq!((socket.mode() & 0o777, socket.uid(), socket.gid()), (0o620, 0, ALICE));
    if let Some(answer) = node.call_as(BOB, "GET", "/v1/health", "").map(|answer| answer.status) {
        assert_eq!(answer, 0, "curl could not connect");
    }
}

#[test]
fn limits_hold_for_each_user_and_for_the_node() {
    require_host!();
    let limits = "[limits]\nruns = 4\nbytes = \"1G\"\n[limits.per_user]\nruns = 2\nbytes = \"192M\"\nmemory = \"64M\"";
    let node = Node::start(limits);
    let request = |user: u32, size: &str, memory: &str| {
        format!("{{\"owner\": {{\"uid\": {user}, \"gid\": {user}}}, \"size\": \"{size}\", \"memory\": \"{memory}\"}}")
    };
    let refused = |body: &str, words: &[&str]| {
        let said = node.must_not("POST", "/v1/runs", body, "limit");
        words.iter().for_each(|word| assert!(said.contains(word), "{said}"));
    };
    refused(&request(ALICE, "200M", "1M"), &["bytes", "user 61001", "192"]);
    refused(&request(ALICE, "64M", "65M"), &["memory", "user 61001", "64"]);
    let first = node.must("POST", "/v1/runs", &request(ALICE, "128M", "32M"));
    refused(&request(ALICE, "65M", "1M"), &["bytes"]);
    refused(&request(ALICE, "1M", "33M"), &["memory"]);
    node.must("POST", "/v1/runs", &request(ALICE, "64M", "32M"));
    refused(&request(ALICE, "1", "1"), &["runs", "limited to 2"]);
    node.must("POST", "/v1/runs", &request(BOB, "64M", "32M"));
    refused(&request(0, "900M", "1M"), &["bytes", "of this node"]);
    node.must("POST", "/v1/runs", &request(0, "64M", "1M"));
    refused(&request(0, "1M", "1M"), &["runs of this node", "limited to 4"]);
    node.must("DELETE", &format!("/v1/runs/{}", first["id"].as_str().expect("text")), "");
    node.must("POST", "/v1/runs", &request(ALICE, "128M", "32M"));
    assert_eq!(metrics(&node)["runseal_runs_refused_total{problem=\"limit\"}"], 7.0);
}

#[test]
fn memory_limits_how_many_files_there_may_be() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    node.must("POST", "/v1/runs", &format!("{{\"id\": \"{id}\", \"size\": \"64M\", \"memory\": \"1M\"}}"));
    let made = (0..4096).take_while(|n| fs::File::create(node.root().join(&id).join(n.to_string())).is_ok()).count();
    assert!((2000..2049).contains(&made), "1 MiB describes 2048 files: {made}");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

/// What a user can put into memory beyond files: attributes of the largest size, on as many files as there may be.
const ATTRIBUTES: &str = "
import errno, os, sys
os.chdir(sys.argv[1])
try:
    for file in range(10000):
        open(str(file), 'w').close()
        for attribute in range(15):
            os.setxattr(str(file), f'user.{attribute}', b'x' * 65000)
except OSError as error:
    sys.exit(error.errno != errno.ENOSPC)
sys.exit('never refused')
";

// promise: S-34
#[test]
fn attributes_take_no_more_than_the_memory_of_the_run() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    let body = format!("{{\"id\": \"{id}\", \"memory\": \"1M\", \"owner\": {{\"uid\": {ALICE}, \"gid\": {ALICE}}}}}");
    let run = node.must("POST", "/v1/runs", &body);
    let sealed = run["sealed"].as_i64().expect("a process");
    let before = resident(sealed);
    let attack = Command::new("setpriv")
        .args([
            &format!("--reuid={ALICE}"),
            &format!("--regid={ALICE}"),
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            ATTRIBUTES,
        ])
        .arg(node.root().join(&id))
        .output()
        .expect("setpriv starts");
    assert!(attack.status.success(), "{}", String::from_utf8_lossy(&attack.stderr));
    let grown = resident(sealed).saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more");
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

#[test]
fn when_memory_runs_out_only_the_daemon_is_spared() {
    require_host!();
    let node = Node::start("");
    if let Err(error) = fs::write(format!("/proc/{}/oom_score_adj", node.pid()), "-900") {
        return println!("SKIP: oom_score_adj cannot be lowered: {error}");
    }
    let id = node.fresh_id();
    let run = node.create(&id);
    for member in ["supervisor", "sealed"].map(|member| run[member].as_i64().expect("a process")) {
        let score = fs::read_to_string(format!("/proc/{member}/oom_score_adj")).expect("it lives");
        assert_eq!(score.trim(), "0");
    }
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

/// Resident bytes of a process.
fn resident(process: i64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).expect("it lives");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

#[test]
fn mountpoints_stay_below_the_roots() {
    require_host!();
    let node = Node::start("");
    let elsewhere = tempfile::tempdir().expect("tempdir");
    let root = node.root();
    fs::create_dir(root.join("open")).expect("made");
    fs::set_permissions(root.join("open"), fs::Permissions::from_mode(0o777)).expect("set");
    fs::create_dir(root.join("deep")).expect("made");
    fs::create_dir_all(root.join("full/x")).expect("made");
    symlink(elsewhere.path(), root.join("link")).expect("linked");
    let body = |path: &std::path::Path| format!("{{\"size\": \"64M\", \"mountpoint\": {path:?}}}");
    for (path, kind) in [
        (elsewhere.path().join("x"), "forbidden"),
        (root.join("../x"), "forbidden"),
        (root.join("link/x"), "forbidden"),
        (root.join("open/x"), "forbidden"),
        (root.clone(), "forbidden"),
        (root.join("link"), "in-use"),
        (root.join("full"), "in-use"),
        (root.join("none/x"), "cannot-create"),
    ] {
        let said = node.must_not("POST", "/v1/runs", &body(&path), kind);
        assert!(said.contains(path.to_str().expect("text")), "{said}");
    }
    assert_eq!(fs::read_dir(elsewhere.path()).expect("there").count(), 0);
    let run = node.must("POST", "/v1/runs", &body(&root.join("deep/x")));
    node.must_not("POST", "/v1/runs", &body(&root.join("deep/x")), "in-use");
    fs::write(root.join("deep/x/file"), "data").expect("mounted");
    node.must("DELETE", &format!("/v1/runs/{}", run["id"].as_str().expect("text")), "");
    assert!(root.join("deep").exists() && !root.join("deep/x").exists());
}

#[test]
fn what_a_family_cannot_do_reaches_the_client() {
    require_host!();
    let full = tempfile::tempdir().expect("tempdir");
    let mut node = Node::prepare("");
    let text = fs::read_to_string(node.config()).expect("there");
    let mounted = Command::new("mount").args(["-t", "proc", "proc"]).arg(full.path()).status().expect("mount runs");
    assert!(mounted.success());
    fs::write(node.config(), text.replace("[mounts]\n", &format!("[mounts]\nbacking = [{:?}]\n", full.path())))
        .expect("written");
    node.launch();
    let said = node.must_not("POST", "/v1/runs", "{\"size\": \"64M\"}", "cannot-create");
    let health = node.must("GET", "/v1/health", "");
    assert!(Command::new("umount").arg(full.path()).status().expect("umount runs").success());
    assert!(said.contains(full.path().to_str().expect("text")), "{said}");
    assert_eq!(health["status"], "degraded", "{health}");
    assert_eq!(fs::read_dir(node.root()).expect("there").count(), 0, "no mountpoint is left");
}

#[test]
fn the_metrics_can_be_read_by_prometheus() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    node.create(&id);
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
    node.must_not("GET", "/v1/runs/none", "", "not-found");
    wait_until("the end is counted", || metrics(&node)["runseal_end_seconds_count"] == 1.0);
    let page = metrics(&node);
    for (name, value) in [
        ("runseal_create_seconds_count", 1.0),
        ("runseal_runs{state=\"serving\"}", 0.0),
        ("runseal_runs_ended_total{outcome=\"ended\"}", 1.0),
        ("runseal_http_requests_total{method=\"POST\",path=\"/v1/runs\",status=\"201\"}", 1.0),
        ("runseal_http_requests_total{method=\"GET\",path=\"/v1/runs/{id}\",status=\"404\"}", 1.0),
        ("runseal_reserved_bytes", 0.0),
    ] {
        assert_eq!(page.get(name), Some(&value), "{name}: {page:#?}");
    }
    assert!(page.keys().any(|name| name.starts_with("runseal_backing_free_bytes{directory=")));
    assert!(!page.keys().any(|name| name.contains(&id)), "no names of runs");
}

/// Reads the text format, strictly: every sample belongs to a family that was declared, and is a number.
fn metrics(node: &Node) -> BTreeMap<String, f64> {
    let text = block_on(node.call("GET", "/metrics", "")).text;
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is declared twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let family = name.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| family.strip_suffix(end)).unwrap_or(family);
            assert!(kinds.contains_key(family) || kinds.get(base).is_some_and(|kind| kind == "histogram"), "{line}");
            assert!(samples.insert(name.to_owned(), value.parse().expect("a number")).is_none(), "{name} twice");
        }
    }
    samples
}

// promise: T-67
#[test]
fn what_others_may_change_is_no_configuration() {
    let node = Node::prepare("");
    let set =
        |path: &std::path::Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    for mode in [0o666, 0o646] {
        set(&node.config(), mode);
        let (code, said) = check(&node);
        assert!(code == 78 && said.contains("others may change it") && said.contains("serve.toml"), "{code} {said}");
    }
    set(&node.config(), 0o644);
    set(node.path(), 0o777);
    let (code, said) = check(&node);
    set(node.path(), 0o755);
    assert!(code == 78 && said.contains("replace the configuration"), "{code} {said}");
    let chowned = std::os::unix::fs::chown(node.config(), Some(ALICE), None).is_ok();
    if chowned && nix::unistd::geteuid().is_root() {
        assert_eq!(check(&node).0, 78, "a file of somebody else");
        std::os::unix::fs::chown(node.config(), Some(0), None).expect("given back");
    }
    let backing = node.path().join("backing");
    fs::create_dir(&backing).expect("made");
    let text = fs::read_to_string(node.config()).expect("there");
    fs::write(node.config(), text.replace("[mounts]\n", &format!("[mounts]\nbacking = [{backing:?}]\n")))
        .expect("written");
    set(&backing, 0o777);
    let (code, said) = check(&node);
    assert!(code == 78 && said.contains("chmod +t") && said.contains("mounts.backing"), "{code} {said}");
    set(&backing, 0o1777);
    assert_eq!(check(&node), (0, String::new()));
}
