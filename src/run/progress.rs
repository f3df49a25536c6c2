//! Staging progress: bars on a terminal, plain lines elsewhere, nothing when quiet.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use crate::family::{Voice, message};
use crate::stage::Progress;

/// Staging progress on stderr.
pub struct Meter {
    voice: Voice,
    current: Mutex<Option<Current>>,
    files: AtomicU64,
}

struct Current {
    what: &'static str,
    bar: ProgressBar,
    began: Instant,
}

impl Meter {
    /// Bars on a terminal, lines elsewhere, nothing when quiet.
    pub fn new(voice: Voice) -> Self {
        Self { voice, current: Mutex::new(None), files: AtomicU64::new(0) }
    }
}

impl Progress for Meter {
    fn start(&self, what: &'static str, files: u64, bytes: u64) {
        self.files.store(0, Ordering::Relaxed);
        let drawn = self.voice == Voice::Normal && std::io::stderr().is_terminal();
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(what);
        if let Ok(style) =
            ProgressStyle::with_template("runseal: {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        if !drawn {
            self.voice.say(format_args!("{what}: {}, {}", count(files), HumanBytes(bytes)));
        }
        *self.current.lock() = Some(Current { what, bar, began: Instant::now() });
    }

    fn advance(&self, bytes: u64) {
        if let Some(current) = &*self.current.lock() {
            current.bar.inc(bytes);
        }
    }

    fn file_done(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    fn finish(&self) {
        if let Some(Current { what, bar, began }) = self.current.lock().take() {
            bar.finish_and_clear();
            let (files, seconds) = (count(self.files.load(Ordering::Relaxed)), began.elapsed().as_secs_f64());
            self.voice.say(format_args!("{what}: done, {files}, {} in {seconds:.1} s", HumanBytes(bar.position())));
        }
    }

    fn tell(&self, line: &str) {
        message::warn(line);
    }
}

fn count(files: u64) -> String {
    if files == 1 { "1 file".to_owned() } else { format!("{files} files") }
}
