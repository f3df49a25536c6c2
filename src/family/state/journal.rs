//! The journal of the sealed process: its copy of the report, and what the supervisor hears of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::facts::Phase;
use crate::family::{Event, Report};

/// The sealed process's side: keeps its copy of the report and tells the supervisor. Shared by threads.
pub struct Journal {
    report: Mutex<Report>,
    link: Mutex<UnixStream>,
    /// How the mount is now.
    mount: OnceLock<Box<dyn Fn() -> MountSight + Send + Sync>>,
}

/// A mount as it is at one moment.
#[derive(Default)]
pub struct MountSight {
    /// Whether it was unmounted and lives on.
    pub is_unmounted: bool,
    /// Requests the kernel has sent to it, by opcode.
    pub requests: BTreeMap<String, u64>,
}

impl Journal {
    /// Continues `report`, telling the other end of `link`.
    pub fn new(report: Report, link: UnixStream) -> Self {
        Self { report: Mutex::new(report), link: Mutex::new(link), mount: OnceLock::new() }
    }

    /// From now on whoever asks is told how the mount is. Only then is it looked: the kernel tells of every change of every
    /// mount, which many mounts on one machine would all wake for.
    pub fn look(&self, mount: impl Fn() -> MountSight + Send + Sync + 'static) {
        let _ = self.mount.set(Box::new(mount));
    }

    /// The report so far, for whoever asks from outside.
    pub fn answer(&self) -> Report {
        let mount = self.mount.get().map(|look| look()).unwrap_or_default();
        if mount.is_unmounted && self.report.lock().phase() == Some(Phase::Serving) {
            self.record(Event::Phase { phase: Phase::Unmounted });
        }
        let mut report = self.snapshot();
        // Those of a mount that is gone are part of the report.
        if report.key_wiped.is_none() {
            report.requests = mount.requests;
        }
        report
    }

    /// Records an event.
    pub fn record(&self, event: Event) {
        let mut line = serde_json::to_vec(&event).expect("events hold strings, numbers and JSON values only");
        line.push(b'\n');
        self.report.lock().apply(event);
        // A supervisor that is gone is noticed by the reader of this socket.
        let _ = self.link.lock().write_all(&line);
    }

    /// The report so far.
    pub fn snapshot(&self) -> Report {
        self.report.lock().clone()
    }
}
