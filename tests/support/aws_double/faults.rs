//! Faults on order: which calls go wrong, how often, and how.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::world::{World, fits};

/// A fault. Made by [`Fault::on`]; the first that fits a call and is not used up strikes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    operation: String,
    #[serde(default = "anything")]
    target: String,
    #[serde(default)]
    skip: u64,
    #[serde(default = "always")]
    times: u64,
    effect: Effect,
}

/// What goes wrong.
#[derive(Clone, Deserialize)]
pub enum Effect {
    /// The service answers with this error and does nothing.
    Error {
        /// HTTP status.
        status: u16,
        /// Code.
        code: String,
        /// Text.
        message: String,
    },
    /// The connection is cut before an answer; nothing was done.
    Reset,
    /// The connection is cut before an answer; the work was done.
    ResetAfterwards,
    /// The answer takes this long.
    Delay(Duration),
    /// The body comes in pieces of so many bytes, each after a pause.
    Trickle {
        /// Bytes.
        piece: usize,
        /// Before each piece.
        pause: Duration,
    },
    /// The connection is cut after so many bytes of the body.
    Truncate(usize),
    /// One byte of the body is another one.
    WrongByte,
    /// Every checksum header of the answer is wrong.
    WrongChecksum,
    /// The object was replaced: another `ETag` and time, the same contents. Before the call is judged.
    Replaced,
    /// Something happens to the world before the call is judged, which then goes its way.
    #[serde(skip)]
    Change(Arc<dyn Fn(&mut World) + Send + Sync>),
}

impl Fault {
    /// Every call of this operation (with `*`), for ever, with this effect.
    pub fn on(operation: &str, effect: Effect) -> Self {
        Self { operation: operation.to_owned(), target: anything(), skip: 0, times: always(), effect }
    }

    /// Only calls for this `bucket/key`, or this KMS key, with `*`.
    pub fn at(mut self, target: &str) -> Self {
        self.target = target.to_owned();
        self
    }

    /// Only the next `times` calls.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Lets `calls` calls pass first.
    pub fn after(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Counts a call; the effect, if it is struck.
    fn strike(&mut self, operation: &str, target: &str) -> Option<Effect> {
        if !fits(&self.operation, operation) || !fits(&self.target, target) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.effect.clone())
    }
}

fn anything() -> String {
    "*".to_owned()
}

fn always() -> u64 {
    u64::MAX
}

/// The effect on a call, if there is one.
pub(super) fn strike(faults: &mut [Fault], operation: &str, target: &str) -> Option<Effect> {
    faults.iter_mut().find_map(|fault| fault.strike(operation, target))
}

impl Effect {
    /// An error of the service.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Error { status, code: code.to_owned(), message: message.to_owned() }
    }

    /// `503 SlowDown`.
    pub fn slow_down() -> Self {
        Self::error(503, "SlowDown", "Please reduce your request rate.")
    }

    /// `500 InternalError`.
    pub fn internal_error() -> Self {
        Self::error(500, "InternalError", "We encountered an internal error. Please try again.")
    }

    /// `400 ExpiredToken`.
    pub fn expired_token() -> Self {
        Self::error(400, "ExpiredToken", "The provided token has expired.")
    }

    /// A change of the world.
    pub fn change(change: impl Fn(&mut World) + Send + Sync + 'static) -> Self {
        Self::Change(Arc::new(change))
    }
}

impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error { code, .. } => write!(f, "Error({code})"),
            Self::Reset => f.write_str("Reset"),
            Self::ResetAfterwards => f.write_str("ResetAfterwards"),
            Self::Delay(time) => write!(f, "Delay({time:?})"),
            Self::Trickle { piece, pause } => write!(f, "Trickle({piece} bytes after {pause:?})"),
            Self::Truncate(bytes) => write!(f, "Truncate({bytes})"),
            Self::WrongByte => f.write_str("WrongByte"),
            Self::WrongChecksum => f.write_str("WrongChecksum"),
            Self::Replaced => f.write_str("Replaced"),
            Self::Change(_) => f.write_str("Change"),
        }
    }
}
