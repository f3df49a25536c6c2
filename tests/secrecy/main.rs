//! What an attacker finds: nothing. Runs the binary over a loop-mounted ext4 image and reads that image raw.
//!
//! Needs root, /dev/fuse and loop devices; says `SKIP: reason` without them.

mod disk;
mod family;
mod isolation;
mod keys;
mod machine;
mod memory_cgroup;
#[path = "../support/tap.rs"]
mod tap;
mod traces;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest that anything here may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A word that occurs nowhere by chance, 40 bytes.
fn canary(kind: &str) -> String {
    let random = std::fs::read("/proc/sys/kernel/random/uuid").expect("the kernel has a random source");
    let hex: String = random.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(|byte| char::from(*byte)).collect();
    format!("{kind:z<8}{hex}")
}

/// Why these tests cannot run here, if so.
fn obstacle() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("/dev/fuse cannot be opened");
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("no loop devices");
    }
    None
}

/// Waits until `done`; panics with `what` when it takes longer than [`PATIENCE`].
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says why a test did not run, where the test harness does not swallow it.
fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP: {name}: {reason}");
}

/// Leaves the test where it cannot run.
macro_rules! require_host {
    () => {
        if let Some(reason) = crate::obstacle() {
            return crate::skip(reason);
        }
    };
}
use require_host;
