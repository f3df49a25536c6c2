//! What a run tells people: plain `runseal: ...` lines on stderr.

use std::fmt::Display;
use std::io::Write;

use crate::units::text::Message;

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

/// Tells the process that started this one something that is not for people.
pub fn pass_on(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Tells something that must be heard. Names in it may be of anybody's choice: they begin no line, and control nothing.
pub fn warn(text: impl Display) {
    // Nobody listening is no reason to stop.
    let _ = writeln!(std::io::stderr(), "runseal: {}", Message(text));
}
