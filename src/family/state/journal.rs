//! The journal of the sealed process: its copy of the report, and what the supervisor hears of it.

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
    /// Whether the mount that serves was unmounted and lives on.
    is_unmounted: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Journal {
    /// Continues `report`, telling the other end of `link`.
    pub fn new(report: Report, link: UnixStream) -> Self {
        Self { report: Mutex::new(report), link: Mutex::new(link), is_unmounted: OnceLock::new() }
    }

    /// From now on whoever asks is told whether the mount lives on unmounted. Only then is it looked: the kernel tells of
    /// every change of every mount, which many mounts on one machine would all wake for.
    pub fn look(&self, is_unmounted: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.is_unmounted.set(Box::new(is_unmounted));
    }

    /// The report so far, for whoever asks from outside.
    pub fn answer(&self) -> Report {
        let serving = self.report.lock().phase() == Some(Phase::Serving);
        if serving && self.is_unmounted.get().is_some_and(|is_unmounted| is_unmounted()) {
            self.record(Event::Phase { phase: Phase::Unmounted });
        }
        self.snapshot()
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
