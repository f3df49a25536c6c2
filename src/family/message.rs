//! What a run tells people: plain `runseal: ...` lines on stderr.

use std::fmt::Display;
use std::io::{self, Write};

use parking_lot::Mutex;

use crate::spec::RunId;
use crate::units::text::Message;

/// What a service hears of the run it has ordered, if one has. Forked processes have a copy.
struct Listener {
    run: Option<RunId>,
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

/// From now on a service listens: it gets one `answer`, and what is said before that is kept for it.
pub fn listen(answer: impl Write + Send + 'static) {
    *LISTENER.lock() = Some(Listener { run: None, warnings: Vec::new(), answer: Box::new(answer) });
}

/// From now on everything said is about this run: a log has that of many.
pub fn speak_of(run: &RunId) {
    if let Some(listener) = &mut *LISTENER.lock() {
        listener.run = Some(run.clone());
    }
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
        of = listener.run.as_ref().map(|run| format!("run {run}: ")).unwrap_or_default();
    }
    // Nobody reading is no reason to stop.
    let _ = writeln!(std::io::stderr(), "runseal: {of}{text}");
}
