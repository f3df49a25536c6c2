//! Every request of the description, generated, as an ordinary user, while others' things are watched.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::node::{BOB, Node, mounts_below};
use crate::program::require_host;

const MALLORY: u32 = 4001;
/// Of each operation, once with what the description allows and once with what it does not.
const EXAMPLES: &str = "15";
/// Most that the service may grow by.
const GROWTH: u64 = 64 << 20;

/// What is below some directories, mounts left out: who has it, how, how large, and when it changed.
type Census = BTreeMap<PathBuf, (u32, u32, u32, u64, i64, i64)>;

fn census(top: &Path, of: &mut Census) {
    let Ok(found) = top.symlink_metadata() else { return };
    let facts = (found.uid(), found.gid(), found.mode(), found.len(), found.ctime(), found.ctime_nsec());
    of.insert(top.to_owned(), facts);
    if found.is_dir() {
        for entry in fs::read_dir(top).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|below| below.dev() == found.dev()) {
                census(&entry.path(), of);
            }
        }
    }
}

fn memory_of(process: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|size| size.parse::<u64>().ok()).expect("a number") << 10
}

/// Ends what the requests have made, whatever they called it.
struct Cleaner<'a>(&'a Node);

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        for run in all_runs(self.0) {
            let path = format!("/v1/runs/{}?discard=true", run["id"].as_str().unwrap_or_default());
            crate::node::block_on(self.0.call("DELETE", &path, ""));
        }
    }
}

fn all_runs(node: &Node) -> Vec<Value> {
    let answer = crate::node::block_on(node.call("GET", "/v1/runs", ""));
    answer.body["runs"].as_array().cloned().unwrap_or_default()
}

// promise: T-65
#[test]
fn no_request_of_a_user_reaches_what_is_not_theirs() {
    require_host!();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/schemathesis");
    if !tools.join("complete").exists() {
        return println!("SKIP: {}: no schemathesis; scripts/install-deps.sh installs it", module_path!());
    }
    let node = Node::start("[limits.per_user]\nruns = 4");
    let _cleaner = Cleaner(&node);
    let (of_root, of_bob) = (node.fresh_id(), node.fresh_id());
    let start = |id: &str, user: u32| {
        let owner = format!("{{\"uid\": {user}, \"gid\": {user}}}");
        node.must("POST", "/v1/runs", &format!("{{\"id\": \"{id}\", \"size\": \"64M\", \"owner\": {owner}}}"));
        fs::write(node.root().join(id).join("file"), id).expect("mounted");
    };
    start(&of_root, 0);
    start(&of_bob, BOB);
    // One that only root reaches, one that everybody may write to, and the machine's.
    let (closed, open) = (node.path().join("closed"), node.path().join("open"));
    for (directory, mode) in [(&closed, 0o700), (&open, 0o1777)] {
        fs::create_dir(directory).expect("made");
        fs::write(directory.join("file"), "x").expect("written");
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("set");
    }
    let watched = [&closed, &open, Path::new("/etc"), Path::new("/boot")];
    let look = || {
        let mut seen = Census::new();
        watched.iter().for_each(|top| census(top, &mut seen));
        // Another test has subordinate ids for a while.
        seen.retain(|path, _| !path.starts_with("/etc/subuid") && path != Path::new("/etc"));
        seen
    };
    let views = || {
        let mut views: Vec<_> = [&of_root, &of_bob].map(|id| node.must("GET", &format!("/v1/runs/{id}"), "")).into();
        views.extend(
            [&of_root, &of_bob]
                .map(|id| Value::from(fs::read_to_string(node.root().join(id).join("file")).expect("mounted"))),
        );
        views
    };
    let before = (look(), views(), memory_of(node.pid()), node.pid());

    let mut command = Command::new(tools.join("bin/python"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/fuzz.py"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).arg(node.socket());
    command.args([&MALLORY.to_string(), EXAMPLES, &of_root, &of_bob]);
    command.args([&node.root(), &closed, &open, Path::new("/etc"), Path::new("/"), Path::new("/run/runseal")]);
    let said = command.current_dir(node.path()).env("PYTHONDONTWRITEBYTECODE", "1").output().expect("python runs");
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}{err}\nlog: {}", node.log());
    let statuses: BTreeMap<String, u64> = serde_json::from_str(out.trim()).expect("counts");
    println!("{statuses:?}");
    for status in ["200", "201", "400", "403", "404"] {
        assert!(statuses.contains_key(status), "the requests got nowhere: {statuses:?}");
    }

    assert_eq!(node.pid(), before.3);
    assert!(!node.log().contains("panicked"), "{}", node.log());
    let after = look();
    let changed: Vec<_> = before.0.iter().filter(|(path, facts)| after.get(*path) != Some(facts)).collect();
    assert!(changed.is_empty() && after.len() == before.0.len(), "{changed:?}");
    assert_eq!(views(), before.1);
    let grown = memory_of(node.pid()).saturating_sub(before.2);
    assert!(grown < GROWTH, "{grown} bytes");
    for run in all_runs(&node) {
        let mine = [&of_root, &of_bob].iter().any(|id| run["id"] == id.as_str());
        assert!(mine || run["user"] == MALLORY, "{run}");
    }
    let mounts = mounts_below(node.path());
    assert!(mounts.iter().all(|place| place.parent() == Some(&node.root())), "{mounts:?}");
}
