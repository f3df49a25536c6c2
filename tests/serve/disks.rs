//! Disks that are full, or do not answer: their runs are told, everybody else is served.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;

use crate::node::{Answer, Client, Node, block_on, mounts_below, runs_named};
use crate::program::{lives, require_host, wait_until};

/// Families that may start at the same time, and one more.
const MORE_THAN_START: usize = 9;

/// What a file server does with requests.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Takes none: callers can be killed.
    Deaf,
    /// Takes them and does not answer: the kernel lets nobody go who waits for it.
    Mute,
}

/// A file system that does not answer. Dropping it unmounts it, and lets everybody go who waits for it.
struct Silent {
    path: PathBuf,
    /// The kernel ends the connection with it.
    device: File,
    taker: Option<JoinHandle<()>>,
}

impl Silent {
    fn mount(path: &Path, manner: Manner) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("/dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("silent"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).expect("mounted");
        let mut silent = Self { path: path.to_owned(), device, taker: None };
        if let Manner::Mute = manner {
            let mut device = silent.device.try_clone().expect("a descriptor");
            silent.taker = Some(std::thread::spawn(move || {
                let mut request = vec![0; 64 << 10];
                let length = device.read(&mut request).expect("FUSE_INIT");
                device.write_all(&initialised(&request[..length])).expect("taken");
                while device.read(&mut request).is_ok() {}
            }));
        }
        silent
    }
}

/// The answer to `FUSE_INIT`: `struct fuse_out_header`, then `struct fuse_init_out` of protocol 7.31.
fn initialised(request: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 16 + 64];
    answer[0..4].copy_from_slice(&80_u32.to_ne_bytes());
    answer[8..16].copy_from_slice(&request[8..16]);
    answer[16..20].copy_from_slice(&7_u32.to_ne_bytes());
    answer[20..24].copy_from_slice(&31_u32.to_ne_bytes());
    answer[36..40].copy_from_slice(&4096_u32.to_ne_bytes());
    answer
}

impl Drop for Silent {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).expect("unmounted");
        if let Some(taker) = self.taker.take() {
            taker.join().expect("the end of the connection ends it");
        }
    }
}

/// A node with two disks; runs have a second to be mounted.
fn start() -> (Node, PathBuf, PathBuf) {
    let mut node = Node::prepare("");
    let (good, bad) = (node.path().join("good"), node.path().join("bad"));
    fs::create_dir(&good).expect("made");
    fs::create_dir(&bad).expect("made");
    let (socket, root) = (node.socket(), node.root());
    let text = format!(
        "[api]\nsocket = {socket:?}\nconnections = 1000\n[mounts]\nroots = [{root:?}]\nbacking = [{good:?}, {bad:?}]\npatience = 1\n"
    );
    fs::write(node.config(), text).expect("written");
    node.launch();
    (node, good, bad)
}

/// The same requests at the same time, each over a connection of its own.
fn all(node: &Node, requests: Vec<(&'static str, &'static str, String)>) -> Vec<Answer> {
    block_on(async {
        let mut calls = Vec::new();
        for (method, path, body) in requests {
            let socket = node.socket();
            calls.push(tokio::spawn(async move { Client::connect(&socket).await.call(method, path, &body).await }));
        }
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.expect("no panic"));
        }
        answers
    })
}

fn on(disk: &Path, id: &str) -> String {
    format!("{{\"id\": \"{id}\", \"size\": \"64M\", \"backing\": [{disk:?}]}}")
}

#[test]
fn runs_that_are_not_mounted_in_time_are_given_up() {
    require_host!();
    for manner in [Manner::Deaf, Manner::Mute] {
        let (node, good, bad) = start();
        let silent = Silent::mount(&bad, manner);
        let ids: Vec<String> = (0..MORE_THAN_START).map(|_| node.fresh_id()).collect();
        let answers = all(&node, ids.iter().map(|id| ("POST", "/v1/runs", on(&bad, id))).collect());
        for (answer, id) in answers.iter().zip(&ids) {
            let said = answer.expect_problem("unavailable");
            let names =
                said.contains(&*bad.to_string_lossy()) && said.contains(&*node.root().join(id).to_string_lossy());
            assert!(names && said.contains("not mounted within 1s"), "{manner:?}: {said}");
        }
        assert!(node.must("GET", "/v1/runs", "")["runs"].as_array().expect("runs").is_empty());
        let fine = node.fresh_id();
        node.must("POST", "/v1/runs", &on(&good, &fine));
        node.must("DELETE", &format!("/v1/runs/{fine}"), "");
        assert!(mounts_below(&node.root()).is_empty());
        if let Manner::Mute = manner {
            assert!(!runs_named(ids[0].trim_end_matches('0')).is_empty(), "processes the kernel holds are still known");
            drop(silent);
            // The first of these names can be used again: who had it has died by now.
            wait_until("the state is removed", || ids.iter().all(|id| runs_named(id).is_empty()));
            node.must("POST", "/v1/runs", &on(&bad, &ids[0]));
        }
        assert!(ids[1..].iter().all(|id| runs_named(id).is_empty() && !node.root().join(id).exists()), "{manner:?}");
    }
}

#[test]
fn a_service_that_is_killed_takes_what_is_not_ready_with_it() {
    require_host!();
    let (mut node, _, bad) = start();
    let silent = Silent::mount(&bad, Manner::Deaf);
    let id = node.fresh_id();
    let body = on(&bad, &id);
    let mut client = UnixStream::connect(node.socket()).expect("connected");
    write!(client, "POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    let family = || {
        let text = fs::read(Path::new("/run/runseal/@runs").join(&id).join("state.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some([record["supervisor"].as_i64()?, record["sealed"].as_i64()?])
    };
    wait_until("both processes are there", || family().is_some());
    let family = family().expect("there");
    node.signal(Signal::SIGKILL);
    node.wait();
    wait_until("both are gone", || !family.iter().any(|&process| lives(process)));
    drop(silent);
    node.launch();
    assert!(node.must("GET", "/v1/runs", "")["runs"].as_array().expect("runs").is_empty());
    assert!(runs_named(&id).is_empty());
}

#[test]
fn asking_for_the_health_of_a_disk_that_hangs_takes_nothing_from_others() {
    require_host!();
    let (node, good, bad) = start();
    let silent = Silent::mount(&bad, Manner::Deaf);
    let questions = (0..600).map(|count| ("GET", ["/metrics", "/v1/health"][count % 2], String::new())).collect();
    for answer in all(&node, questions) {
        assert_eq!(answer.status, 200, "{answer:?}");
        let named = answer.text.contains(&format!("runseal_backing_free_bytes{{directory={good:?}}}"));
        assert!(named || answer.body["problems"].to_string().contains(&*bad.to_string_lossy()), "{answer:?}");
    }
    let fine = node.fresh_id();
    node.must("POST", "/v1/runs", &on(&good, &fine));
    drop(silent);
    wait_until("the disk answers", || node.must("GET", "/v1/health", "")["status"] == "ok");
}

/// Writes `size` bytes and has them stored.
fn fill(path: PathBuf, size: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![1; size])?;
    file.sync_all()
}

#[test]
fn a_full_disk_is_no_space_for_its_runs_and_for_nobody_else() {
    require_host!();
    let (node, good, small) = start();
    mount(Some("small"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).expect("mounted");
    let [first, second, other] = [&small, &small, &good].map(|disk| {
        let id = node.fresh_id();
        node.must("POST", "/v1/runs", &on(disk, &id));
        node.root().join(id)
    });
    fill(second.join("kept"), 1 << 20).expect("there is room");
    for run in [&first, &second] {
        let error = fill(run.join("big"), 32 << 20).expect_err("there is no room");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    }
    fill(other.join("big"), 32 << 20).expect("another disk");
    assert_eq!(fs::read(second.join("kept")).expect("readable"), vec![1; 1 << 20]);
    let health = node.must("GET", "/v1/health", "");
    assert!(health["problems"].to_string().contains(&*small.to_string_lossy()), "{health}");
    fs::remove_file(first.join("big")).expect("removed");
    fs::remove_file(second.join("big")).expect("removed");
    wait_until("there is room again", || fill(second.join("again"), 4 << 20).is_ok());
    for run in [&first, &second, &other] {
        let id = run.file_name().expect("an id").to_string_lossy();
        node.must("DELETE", &format!("/v1/runs/{id}"), "");
    }
    umount2(&small, MntFlags::empty()).expect("nobody holds anything there");
}
