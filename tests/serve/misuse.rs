//! Clients that do not behave: silent, slow, oversized, malformed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::node::{ALICE, Node};
use crate::program::require_host;

/// Sends bytes and reads what comes until the service hangs up.
fn say(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(node.socket()).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    // The service may hang up before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn status(answer: &[u8]) -> Option<u16> {
    String::from_utf8_lossy(answer).strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

#[test]
fn a_client_that_says_nothing_is_dropped() {
    require_host!();
    let node = Node::start("patience = 1");
    let began = Instant::now();
    for start in [&b""[..], b"GET /v1/he", b"GET /v1/health HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = UnixStream::connect(node.socket()).expect("connected");
        stream.write_all(start).expect("written");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("hung up on, not left waiting");
        assert!(status(&answer).is_none_or(|status| status == 408), "{answer:?}");
    }
    assert!(began.elapsed() > Duration::from_secs(2), "each had its second");
    node.must("GET", "/v1/health", "");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    require_host!();
    let node = Node::start("patience = 1");
    let mut stream = UnixStream::connect(node.socket()).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.write_all(b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{").expect("written");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(status(&answer), Some(408));
}

#[test]
fn what_is_too_large_is_refused_without_being_read() {
    require_host!();
    let node = Node::start("request_size = \"1KiB\"");
    node.must_not("POST", "/v1/runs", &format!("{{\"id\": \"{}\"}}", "x".repeat(2000)), "too-large");
    let endless = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{";
    assert_eq!(status(&say(&node, endless)), Some(413));
    let chunks = format!(
        "POST /v1/runs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("400\r\n{}\r\n", "x".repeat(0x400)).repeat(4)
    );
    assert_eq!(status(&say(&node, chunks.as_bytes())), Some(413));
    let head = format!("GET /v1/health HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let answer = say(&node, head.as_bytes());
    assert!(status(&answer).is_none_or(|status| status == 431), "{:?}", status(&answer));
    node.must("GET", "/v1/health", "");
}

#[test]
fn requests_that_make_no_sense_say_why() {
    require_host!();
    let node = Node::start("");
    for (body, word) in [
        ("{", "EOF"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{\"size\": \"huge\"}", "huge"),
        ("{\"size\": 0}", "nothing"),
        ("{\"colour\": 1}", "colour"),
        ("{\"id\": \"../x\"}", "run id"),
        ("{\"mode\": \"rwx\"}", "octal"),
        ("{\"owner\": {\"uid\": 1}}", "gid"),
        ("{\"mountpoint\": 7}", "string"),
    ] {
        let said = node.must_not("POST", "/v1/runs", body, "usage");
        assert!(said.contains(word), "{body}: {said}");
    }
    let said = node.must_not("POST", "/v1/runs", "{\"options\": [\"bogus\"], \"size\": \"64M\"}", "usage");
    assert!(said.contains("bogus") && said.contains("mount(8)"), "{said}");
    node.must_not("DELETE", "/v1/runs/x?force", "", "usage");
    node.must_not("GET", "/v1/runs/..%2f..%2fetc", "", "not-found");
    assert_eq!(node.must("GET", "/v1/runs", "")["runs"].as_array().map(Vec::len), Some(0), "nothing was made");
    assert_eq!(std::fs::read_dir(node.root()).expect("the root").count(), 0, "no mountpoint is left");
}

#[test]
fn no_bytes_stop_the_service() {
    require_host!();
    let node = Node::start("patience = 1");
    let pid = node.pid();
    let fragments = prop::sample::select(vec![
        "GET ",
        "POST ",
        "DELETE ",
        "/v1/runs",
        "/v1/runs/x",
        " HTTP/1.1\r\n",
        "\r\n",
        "Host: x\r\n",
        "\0",
        "{\"size\":",
        "Content-Length: 5\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "ffffffff\r\n",
        "0\r\n\r\n",
        "%00%ff",
        "?discard",
        "{}",
        "[[[[[[[[",
        "\u{e4}",
        "Expect: 100-continue\r\n",
        "Connection: upgrade\r\n",
    ]);
    let piece = prop_oneof![
        4 => fragments.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ];
    let strategy = prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 300, ..ProptestConfig::default() });
    runner
        .run(&strategy, |bytes| {
            let answer = say(&node, &bytes);
            prop_assert!(answer.is_empty() || status(&answer).is_some(), "{:?}", String::from_utf8_lossy(&answer));
            Ok(())
        })
        .expect("every answer is HTTP or none");
    assert_eq!(node.pid(), pid);
    let health = node.must("GET", "/v1/health", "");
    assert_eq!(health["status"], "ok");
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn nobody_takes_all_connections() {
    require_host!();
    let node = Node::start("connections_per_user = 2\nconnections = 8");
    let page = || crate::node::block_on(node.call("GET", "/metrics", "")).text;
    crate::program::wait_until("nobody else is connected", || page().contains("runseal_connections 1\n"));
    // Root is not counted as a user, but as a connection.
    let held: Vec<_> = (0..8).map(|_| UnixStream::connect(node.socket()).expect("connected")).collect();
    // Each has been accepted once it gets an answer.
    for stream in &held {
        let mut stream = stream;
        stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(status(&answer), Some(200));
    }
    node.must_not("GET", "/v1/health", "", "limit");
    drop(held);
    crate::program::wait_until("the seats are free", || {
        crate::node::block_on(node.call("GET", "/v1/health", "")).status == 200
    });
    if let Some(answer) = node.call_as(ALICE, "GET", "/v1/health", "") {
        assert_eq!(answer.status, 200);
    }
    let page = crate::node::block_on(node.call("GET", "/metrics", "")).text;
    assert!(
        page.contains("runseal_connections_refused_total ") && !page.contains("runseal_connections_refused_total 0\n")
    );
}
