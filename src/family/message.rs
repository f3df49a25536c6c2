//! What a run tells people: plain `runseal: ...` lines on stderr.

use std::fmt::Display;
use std::io::{self, Write};

use parking_lot::Mutex;

use crate::spec::RunId;
use crate::units::text::Message;

/// What a service hears of the run it has ordered, if one has. Forked processes have a copy.
struct Listener {
    run: RunId,
    warnings: Vec<String>,
    answer: Box<dyn Write + Send>,
}

static LISTENER: Mutex<Option<Listener>> = Mutex::new(None);

/// How much to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// Progress, warnings, errors.
    Normal,
    /// Warnings and errors.
    Quiet,
}

impl Voice {
    /// Tells how things go.
    pub fn say(self, text: impl Display) {
        if self == Self::Normal {
            warn(text);
        }
    }
}

/// From now on a service listens to what this run says: it gets one `answer`, for which warnings are kept. Its log has those
/// of many runs, so each line names this one.
pub fn listen(run: &RunId, answer: impl Write + Send + 'static) {
    *LISTENER.lock() = Some(Listener { run: run.clone(), warnings: Vec::new(), answer: Box::new(answer) });
}

/// Sends a line to the service that listens, if one does: made of what was said so far.
pub fn answer(line: impl FnOnce(&[String]) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let Some(Listener { warnings, answer, .. }) = &mut *LISTENER.lock() else { return Ok(()) };
    let mut line = line(warnings)?;
    line.push(b'\n');
    answer.write_all(&line)?;
    answer.flush()
}

/// Tells something that must be heard. Names in it may be of anybody's choice: they begin no line, and control nothing.
pub fn warn(text: impl Display) {
    let text = Message(text).to_string();
    let mut of = String::new();
    if let Some(listener) = &mut *LISTENER.lock() {
        listener.warnings.push(text.clone());
        of = format!("run {}: ", listener.run);
    }
    // Nobody reading is no reason to stop.
    let _ = writeln!(std::io::stderr(), "runseal: {of}{text}");
}
