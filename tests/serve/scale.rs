//! Many runs at once. `cargo test --release --test serve scale -- --nocapture` prints times and memory.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::node::{Client, Node, block_on, mounts_below, runs_named};
use crate::program::require_host;

const RUNS: usize = 200;

#[test]
fn two_hundred_runs_are_made_and_ended_at_the_same_time() {
    require_host!();
    let mut node = Node::start("[limits]\nruns = 200\nmemory = \"16G\"");
    let one = node.fresh_id();
    let (create, end) =
        (time(|| drop(node.create(&one))), time(|| drop(node.must("DELETE", &format!("/v1/runs/{one}"), ""))));
    println!("one run: made in {create:?}, ended in {end:?}");

    let ids: Vec<String> = (0..RUNS).map(|_| node.fresh_id()).collect();
    let made =
        all(&node, &ids, |id| ("POST", "/v1/runs".to_owned(), format!("{{\"id\": \"{id}\", \"size\": \"64M\"}}")));
    println!("{RUNS} runs at once: made in {made:?}");
    assert_eq!(mounts_below(node.path()).len(), RUNS);
    for id in &ids {
        fs::write(node.root().join(id).join("file"), id).expect("written");
    }
    node.must_not("POST", "/v1/runs", "{\"size\": \"64M\"}", "limit");
    let list = node.must("GET", "/v1/runs", "");
    assert_eq!(list["runs"].as_array().map(Vec::len), Some(RUNS));

    // Idle: what they need, and how fast the service tells of them.
    let members: Vec<i64> = processes(&list);
    let memory = members.iter().map(|&process| proportional(process)).sum::<u64>();
    println!("{RUNS} idle runs: {} MiB, {} processes", memory >> 20, members.len());
    assert!(memory < 5 << 30, "{memory} bytes");
    let before: u64 = members.iter().map(|&process| ticks(process)).sum();
    std::thread::sleep(Duration::from_secs(2));
    let spent = members.iter().map(|&process| ticks(process)).sum::<u64>() - before;
    println!("{RUNS} idle runs: {spent} ticks of CPU in 2 s");
    assert!(spent <= 2, "idle runs do nothing: {spent} ticks");
    let mut times = block_on(async {
        let mut client = Client::connect(&node.socket()).await;
        let mut times = Vec::new();
        for _ in 0..1000 {
            let began = Instant::now();
            assert_eq!(client.call("GET", "/v1/runs", "").await.status, 200);
            times.push(began.elapsed());
        }
        times
    });
    times.sort_unstable();
    println!("GET /v1/runs with {RUNS} runs: median {:?}, p99 {:?}", times[500], times[990]);

    // A restart in between: all of them are taken over.
    node.signal(nix::sys::signal::Signal::SIGKILL);
    node.wait();
    let adopted = time(|| node.launch());
    println!("{RUNS} runs: taken over in {adopted:?}");
    assert!(node.must("GET", "/v1/runs", "") == list, "the same runs as before");

    let ended = all(&node, &ids, |id| ("DELETE", format!("/v1/runs/{id}"), String::new()));
    println!("{RUNS} runs at once: ended in {ended:?}");
    assert_eq!(node.must("GET", "/v1/runs", "")["runs"].as_array().map(Vec::len), Some(0));
    assert!(mounts_below(node.path()).is_empty());
    assert_eq!(fs::read_dir(node.root()).expect("the root").count(), 0);
    let left = runs_named(ids[0].trim_end_matches('1'));
    assert!(left.is_empty(), "{left:?}");

    let mut sequence: Vec<_> = (0..20)
        .map(|_| {
            let id = node.fresh_id();
            (time(|| drop(node.create(&id))), time(|| drop(node.must("DELETE", &format!("/v1/runs/{id}"), ""))))
        })
        .collect();
    sequence.sort_unstable();
    let mut ends: Vec<_> = sequence.iter().map(|times| times.1).collect();
    ends.sort_unstable();
    println!(
        "one after the other: made in {:?} (median), {:?} (worst); ended in {:?}, {:?}",
        sequence[10].0, sequence[19].0, ends[10], ends[19]
    );
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// One request for each run, all at the same time, each over a connection of its own.
fn all(node: &Node, ids: &[String], request: impl Fn(&str) -> (&'static str, String, String)) -> Duration {
    let began = Instant::now();
    block_on(async {
        let socket = Arc::new(node.socket());
        let calls: Vec<_> = ids
            .iter()
            .map(|id| {
                let ((method, path, body), socket) = (request(id), socket.clone());
                tokio::spawn(async move { Client::connect(&socket).await.call(method, &path, &body).await })
            })
            .collect();
        for call in calls {
            let answer = call.await.expect("no panic");
            assert!(answer.status < 300, "{answer:?}");
        }
    });
    began.elapsed()
}

fn processes(list: &serde_json::Value) -> Vec<i64> {
    let runs = list["runs"].as_array().expect("runs");
    runs.iter().flat_map(|run| [&run["supervisor"], &run["sealed"]]).map(|id| id.as_i64().expect("a number")).collect()
}

/// Proportional set size: shared pages count once in the sum.
fn proportional(process: i64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("it lives");
    let line = text.lines().find(|line| line.starts_with("Pss:")).expect("a size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

/// User and system time in ticks (proc(5), fields 14 and 15).
fn ticks(process: i64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}
