//! The API as clients use it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::node::{ALICE, BOB, Node, mounts_below};
use crate::program::{lives, require_host};

#[test]
fn a_run_comes_serves_and_goes() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    let body = format!(
        "{{\"id\": \"{id}\", \"size\": \"64M\", \"owner\": {{\"uid\": {ALICE}, \"gid\": {BOB}}}, \"mode\": \"0750\"}}"
    );
    let run = node.must("POST", "/v1/runs", &body);
    let mountpoint = node.root().join(&id);
    assert_eq!(run["mountpoint"], mountpoint.to_str().expect("text"));
    assert_eq!((&run["state"], &run["user"], &run["size"]), (&"serving".into(), &ALICE.into(), &(64 << 20).into()));
    let root = fs::metadata(&mountpoint).expect("mounted");
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (ALICE, BOB, 0o750));
    fs::write(mountpoint.join("file"), "data").expect("written");
    assert_eq!(fs::read(mountpoint.join("file")).expect("read"), b"data");
    let free = nix::sys::statvfs::statvfs(&mountpoint).expect("statvfs");
    assert_eq!(free.blocks() * free.fragment_size(), 64 << 20);

    assert_eq!(node.must("GET", &format!("/v1/runs/{id}"), ""), run);
    assert_eq!(node.must("GET", "/v1/runs", "")["runs"], Value::from(vec![run.clone()]));
    let ended = node.must("DELETE", &format!("/v1/runs/{id}"), "");
    assert_eq!((&ended["state"], &ended["outcome"]), (&"ended".into(), &"ended".into()));
    assert!(!mountpoint.exists(), "the mountpoint is removed");
    assert!(!Path::new("/run/runseal/@runs").join(&id).exists(), "the state is removed");
    assert!(!lives(run["sealed"].as_i64().expect("a number")), "the process with the key is gone");
    node.must_not("GET", &format!("/v1/runs/{id}"), "", "not-found");
    assert!(mounts_below(node.path()).is_empty());
}

#[test]
fn a_user_sees_and_ends_only_their_own_runs() {
    require_host!();
    let node = Node::start("");
    let (root, own) = (node.fresh_id(), node.fresh_id());
    node.create(&root);
    let Some(made) = node.call_as(ALICE, "POST", "/v1/runs", &format!("{{\"id\": \"{own}\", \"size\": \"64M\"}}"))
    else {
        return println!("SKIP: setpriv or curl is missing");
    };
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!((&made.body["user"], &made.body["owner"]["gid"]), (&ALICE.into(), &ALICE.into()));
    let names = |answer: &Value| -> Vec<String> {
        let runs = answer["runs"].as_array().expect("runs");
        runs.iter().map(|run| run["id"].as_str().expect("an id").to_owned()).collect()
    };
    let list = |user| names(&node.call_as(user, "GET", "/v1/runs", "").expect("as before").body);
    assert_eq!((list(ALICE), list(BOB)), (vec![own.clone()], vec![]));
    assert_eq!(names(&node.must("GET", "/v1/runs", "")), [root.clone(), own.clone()]);

    for (user, id) in [(ALICE, &root), (BOB, &root), (BOB, &own)] {
        for method in ["GET", "DELETE"] {
            let answer = node.call_as(user, method, &format!("/v1/runs/{id}"), "").expect("as before");
            let missing = node.call_as(user, method, "/v1/runs/no-such-run", "").expect("as before");
            assert_eq!(
                answer.expect_problem("not-found").replace(id.as_str(), "no-such-run"),
                missing.expect_problem("not-found")
            );
        }
    }
    for body in [r#"{"owner": {"uid": 0, "gid": 0}}"#, r#"{"options": ["suid"]}"#, r#"{"options": ["noexec,dev"]}"#] {
        node.call_as(ALICE, "POST", "/v1/runs", body).expect("as before").expect_problem("forbidden");
    }
    let ended = node.call_as(ALICE, "DELETE", &format!("/v1/runs/{own}"), "").expect("as before");
    assert_eq!(ended.status, 200, "{ended:?}");
    node.must("DELETE", &format!("/v1/runs/{root}"), "");
}

#[test]
fn the_node_tells_how_it_is() {
    require_host!();
    let node = Node::start("");
    let health = node.must("GET", "/v1/health", "");
    assert_eq!((&health["status"], &health["runs"]), (&"ok".into(), &0.into()));
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    let description = node.must("GET", "/v1/openapi.json", "");
    let committed = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).expect("committed");
    assert_eq!(description, serde_json::from_str::<Value>(&committed).expect("JSON"));
    node.must_not("GET", "/v2", "", "not-found");
    node.must_not("PUT", "/v1/runs", "", "method");
}
