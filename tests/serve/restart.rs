//! The service dies, runs live on; runs die, the service notices.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::node::{ALICE, Node, mounts_below};
use crate::program::{lives, require_host, wait_until};

#[test]
fn busy_runs_outlive_a_killed_service_and_are_taken_over() {
    require_host!();
    let mut node = Node::start("");
    let ids: Vec<String> = (0..10).map(|_| node.fresh_id()).collect();
    for id in &ids {
        node.must(
            "POST",
            "/v1/runs",
            &format!("{{\"id\": \"{id}\", \"size\": \"64M\", \"owner\": {{\"uid\": {ALICE}, \"gid\": {ALICE}}}}}"),
        );
    }
    let before = node.must("GET", "/v1/runs", "");
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        ids.iter().map(|id| write_without_end(node.root().join(id).join("file"), stop.clone())).collect();

    node.signal(Signal::SIGKILL);
    node.wait();
    for run in before["runs"].as_array().expect("runs") {
        assert!(
            lives(run["sealed"].as_i64().expect("a number")) && lives(run["supervisor"].as_i64().expect("a number"))
        );
    }
    node.launch();
    assert_eq!(node.must("GET", "/v1/runs", ""), before, "the same runs, owners and limits");
    assert!(metrics(&node).contains("runseal_runs_adopted_total 10\n"));
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let written = writer.join().expect("no write failed");
        assert!(written > 0);
    }
    for id in &ids {
        let length = fs::metadata(node.root().join(id).join("file")).expect("still there").len();
        assert!(length > 0);
        node.must("DELETE", &format!("/v1/runs/{id}"), "");
    }
    assert!(mounts_below(node.path()).is_empty());
    assert_eq!(fs::read_dir(node.root()).expect("the root").count(), 0);
}

fn write_without_end(path: PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            let mut file = fs::File::create(&path).expect("created");
            for _ in 0..64 {
                file.write_all(&[7; 4096]).expect("written");
                written += 4096;
            }
        }
        written
    })
}

fn metrics(node: &Node) -> String {
    crate::node::block_on(node.call("GET", "/metrics", "")).text
}

#[test]
fn a_service_that_is_told_to_end_leaves_its_runs_alone() {
    require_host!();
    let mut node = Node::start("");
    let id = node.fresh_id();
    let run = node.create(&id);
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait(), Some(0));
    assert!(lives(run["sealed"].as_i64().expect("a number")));
    fs::write(node.root().join(&id).join("file"), "data").expect("the mount lives on");
    node.launch();
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

#[test]
fn a_run_whose_processes_die_is_shown_as_gone_until_it_is_deleted() {
    require_host!();
    let node = Node::start("");
    for victims in [&["sealed"][..], &["supervisor"], &["supervisor", "sealed"]] {
        let id = node.fresh_id();
        let run = node.create(&id);
        let path = format!("/v1/runs/{id}");
        let numbers: Vec<i64> = victims.iter().map(|who| run[*who].as_i64().expect("a number")).collect();
        // Stopped first, or one would clean up after the other.
        numbers.iter().for_each(|&number| send(number, Signal::SIGSTOP));
        numbers.iter().for_each(|&number| send(number, Signal::SIGKILL));
        wait_until("the service notices", || node.must("GET", &path, "")["state"] == "ended");
        assert_eq!(node.must("GET", &path, "")["outcome"], "gone");
        assert!(!node.root().join(&id).exists(), "the mountpoint is removed ({victims:?})");
        assert!(!PathBuf::from("/run/runseal/@runs").join(&id).exists(), "the state is removed ({victims:?})");
        assert!(node.log().contains(&format!("run {id} ended without being asked to")), "{}", node.log());
        assert_eq!(node.must("DELETE", &path, "")["state"], "ended");
        node.must_not("GET", &path, "", "not-found");
    }
    assert!(metrics(&node).contains("runseal_runs_ended_total{outcome=\"gone\"} 3\n"), "{}", metrics(&node));
}

fn send(process: i64, signal: Signal) {
    kill(Pid::from_raw(process as i32), signal).expect("it lives");
}

#[test]
fn a_run_that_is_unmounted_by_hand_is_gone_too() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    node.create(&id);
    let status = std::process::Command::new("umount").arg(node.root().join(&id)).status().expect("umount runs");
    assert!(status.success());
    wait_until("the service notices", || node.must("GET", &format!("/v1/runs/{id}"), "")["state"] == "ended");
    // The name is free again.
    node.create(&id);
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

#[test]
fn a_run_made_while_the_service_was_away_is_not_its_business() {
    require_host!();
    let mut other = Node::start("");
    let foreign = other.fresh_id();
    other.create(&foreign);
    let node = Node::start("");
    assert_eq!(node.must("GET", "/v1/runs", "")["runs"], Value::from(Vec::<Value>::new()));
    node.must_not("DELETE", &format!("/v1/runs/{foreign}"), "", "not-found");
    other.signal(Signal::SIGTERM);
    other.wait();
}

#[test]
fn the_configuration_is_read_anew_on_sighup() {
    require_host!();
    let node = Node::start("");
    let id = node.fresh_id();
    node.create(&id);
    node.configure("[limits]\nruns = 1");
    node.signal(Signal::SIGHUP);
    wait_until("the new limit", || metrics(&node).contains("runseal_limit_runs 1\n"));
    assert!(node.must_not("POST", "/v1/runs", "{}", "limit").contains("limited to 1"));
    node.configure("[limits]\nruns = \"many\"");
    node.signal(Signal::SIGHUP);
    wait_until("the complaint", || node.log().contains("the old configuration stays"));
    assert!(metrics(&node).contains("runseal_limit_runs 1\n"));
    node.must("DELETE", &format!("/v1/runs/{id}"), "");
}

#[test]
fn two_services_do_not_share_a_socket() {
    require_host!();
    let node = Node::start("");
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_runseal"))
        .args(["serve", "--config"])
        .arg(node.config())
        .output()
        .expect("the binary starts");
    assert_eq!(second.status.code(), Some(73));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("answers there already"), "{said}");
    node.must("GET", "/v1/health", "");
}
