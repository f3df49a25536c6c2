//! The volume plugin, spoken to as Docker speaks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Answer, Client, Node, block_on, mounts_below};
use crate::program::{lives, require_host, wait_until};

/// Configuration of a plugin in the directory of `node`.
fn configuration(node: &Node) -> String {
    let (socket, root) = (plugin_socket(node), volume_root(node));
    format!("[docker]\nenabled = true\nsocket = {socket:?}\nroot = {root:?}")
}

fn plugin_socket(node: &Node) -> PathBuf {
    node.path().join("plugin.sock")
}

fn volume_root(node: &Node) -> PathBuf {
    node.path().join("volumes")
}

fn start() -> Node {
    let mut node = Node::prepare("");
    node.configure(&configuration(&node));
    node.launch();
    node
}

fn send(node: &Node, method: &str, body: Value) -> Answer {
    let socket = plugin_socket(node);
    block_on(async { Client::connect(&socket).await.call("POST", &format!("/{method}"), &body.to_string()).await })
}

#[track_caller]
fn ask(node: &Node, method: &str, body: Value) -> Value {
    let answer = send(node, method, body);
    assert!(answer.status == 200 && answer.body["Err"].as_str().unwrap_or("").is_empty(), "{method}: {answer:?}");
    answer.body
}

#[track_caller]
fn refused(node: &Node, method: &str, body: Value) -> String {
    let answer = send(node, method, body);
    assert_eq!(answer.status, 500, "{answer:?}");
    answer.body["Err"].as_str().filter(|text| !text.is_empty()).expect("a text").to_owned()
}

fn users(node: &Node, name: &str) -> i64 {
    ask(node, "VolumeDriver.Get", json!({ "Name": name }))["Volume"]["Status"]["users"].as_i64().expect("a number")
}

#[test]
fn docker_is_told_what_the_plugin_can_do() {
    require_host!();
    let node = start();
    assert_eq!(ask(&node, "Plugin.Activate", json!({}))["Implements"], json!(["VolumeDriver"]));
    assert_eq!(ask(&node, "VolumeDriver.Capabilities", json!({}))["Capabilities"]["Scope"], "local");
    assert_eq!(ask(&node, "VolumeDriver.List", json!({}))["Volumes"], json!([]));
    assert_eq!(fs::metadata(plugin_socket(&node)).expect("there").mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(volume_root(&node)).expect("there").mode() & 0o777, 0o700);
    assert!(refused(&node, "VolumeDriver.Explode", json!({})).contains("no such method"));
    assert!(refused(&node, "VolumeDriver.Create", json!([1])).contains("request"));
}

#[test]
fn a_volume_lives_from_its_first_user_to_its_last() {
    require_host!();
    let node = start();
    let name = node.fresh_id();
    let options = json!({ "size": "64M", "uid": "61001", "mode": "0750" });
    ask(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": options }));
    ask(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": options }));
    assert_eq!(ask(&node, "VolumeDriver.Path", json!({ "Name": name }))["Mountpoint"], "");
    assert!(mounts_below(node.path()).is_empty(), "nothing is mounted before somebody asks");

    let first = ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "a" }));
    let place = PathBuf::from(first["Mountpoint"].as_str().expect("a path"));
    assert!(place.starts_with(volume_root(&node)));
    let root = fs::metadata(&place).expect("mounted");
    assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (61_001, 61_001, 0o750));
    fs::write(place.join("file"), "shared").expect("written");

    assert_eq!(ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "b" })), first);
    ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "b" }));
    assert_eq!(users(&node, &name), 2, "the same user counts once");
    assert!(refused(&node, "VolumeDriver.Remove", json!({ "Name": name })).contains("a, b"));
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "a" }));
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "a" }));
    assert_eq!(fs::read(place.join("file")).expect("still there"), b"shared");
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "b" }));
    assert!(mounts_below(node.path()).is_empty() && !place.exists(), "wiped with the last user");

    let again = ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "c" }));
    assert_eq!(again, first);
    assert_eq!(fs::read_dir(&place).expect("mounted").count(), 0, "a fresh scratch");
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "c" }));
    ask(&node, "VolumeDriver.Remove", json!({ "Name": name }));
    assert!(refused(&node, "VolumeDriver.Get", json!({ "Name": name })).contains("does not exist"));
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    require_host!();
    let node = start();
    let name = node.fresh_id();
    for (options, words) in [
        (json!({ "sise": "1G" }), &["sise", "size, memory"][..]),
        (json!({ "size": "lots" }), &["size=lots"]),
        (json!({ "size": "0" }), &["size=0", "nothing"]),
        (json!({ "mode": "rwx" }), &["mode=rwx", "octal"]),
        (json!({ "uid": "root" }), &["uid=root", "number"]),
        (json!({ "gid": "-1" }), &["gid=-1", "number"]),
        (json!({ "backing": "/etc" }), &["backing=/etc", "/var/tmp"]),
    ] {
        let said = refused(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": options }));
        for word in words {
            assert!(said.contains(word), "{options}: {said}");
        }
    }
    for bad in ["", "../x", "a/b"] {
        assert!(refused(&node, "VolumeDriver.Create", json!({ "Name": bad })).contains("no name"), "{bad}");
    }
    ask(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": { "size": "64M" } }));
    let said = refused(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": { "size": "65M" } }));
    assert!(said.contains("other options"), "{said}");
    assert!(refused(&node, "VolumeDriver.Mount", json!({ "Name": "none", "ID": "a" })).contains("does not exist"));
}

#[test]
fn volumes_and_their_users_outlive_the_service() {
    require_host!();
    let mut node = start();
    let (used, idle) = (node.fresh_id(), node.fresh_id());
    for name in [&used, &idle] {
        ask(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": { "size": "64M" } }));
    }
    let place = ask(&node, "VolumeDriver.Mount", json!({ "Name": used, "ID": "a" }));
    let file = Path::new(place["Mountpoint"].as_str().expect("a path")).join("file");
    fs::write(&file, "kept").expect("written");
    node.signal(Signal::SIGKILL);
    node.wait();
    assert_eq!(fs::read(&file).expect("the mount lives on"), b"kept");
    node.launch();
    assert_eq!(ask(&node, "VolumeDriver.Path", json!({ "Name": used }))["Mountpoint"], place["Mountpoint"]);
    assert_eq!((users(&node, &used), users(&node, &idle)), (1, 0));
    assert_eq!(ask(&node, "VolumeDriver.Mount", json!({ "Name": used, "ID": "b" }))["Mountpoint"], place["Mountpoint"]);
    for user in ["a", "b"] {
        ask(&node, "VolumeDriver.Unmount", json!({ "Name": used, "ID": user }));
    }
    assert!(!file.exists() && mounts_below(node.path()).is_empty());
    ask(&node, "VolumeDriver.Remove", json!({ "Name": used }));
    let state = fs::read_to_string(node.socket().with_extension("volumes.json")).expect("written down");
    assert!(state.contains(&idle) && !state.contains(&used), "{state}");
}

#[test]
fn a_volume_whose_process_died_can_be_used_again() {
    require_host!();
    let node = start();
    let name = node.fresh_id();
    ask(&node, "VolumeDriver.Create", json!({ "Name": name, "Opts": { "size": "64M" } }));
    ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "a" }));
    let run = node.must("GET", "/v1/runs", "")["runs"][0].clone();
    assert_eq!((&run["volume"], &run["user"]), (&name.clone().into(), &0.into()));
    let sealed = run["sealed"].as_i64().expect("a number");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(sealed as i32), Signal::SIGKILL).expect("it lives");
    wait_until("the mount is gone", || mounts_below(node.path()).is_empty() && !lives(sealed));
    wait_until("the plugin knows", || ask(&node, "VolumeDriver.Path", json!({ "Name": name }))["Mountpoint"] == "");
    ask(&node, "VolumeDriver.Mount", json!({ "Name": name, "ID": "b" }));
    assert_eq!(users(&node, &name), 1, "who used the dead one does not use the new one");
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "a" }));
    assert_eq!(mounts_below(node.path()).len(), 1, "nor does it end the new one");
    ask(&node, "VolumeDriver.Unmount", json!({ "Name": name, "ID": "b" }));
    assert!(mounts_below(node.path()).is_empty());
}
