//! As whom the command of a run runs, and what it may.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a command may beyond the user who started it, and whether it runs as that user at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandRights {
    /// Whether a command of root keeps the capabilities that reach the process with the key.
    pub keep_capabilities: bool,
    /// Whether it runs as a user of its own.
    pub isolate: Option<Isolate>,
}

/// A user of its own for the command of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolate {
    /// One of those that /etc/subuid and /etc/subgid give to the name `runseal`.
    Subordinate,
    /// One of these.
    Range(RangeInclusive<u32>),
}

/// Why `--isolate` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}`: say uid, or uid:FIRST-LAST with two numbers from 1 to 4294967294")]
pub struct IsolateError(String);

impl FromStr for Isolate {
    type Err = IsolateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || IsolateError(text.to_owned());
        match text.strip_prefix("uid").ok_or_else(refused)? {
            "" => Ok(Self::Subordinate),
            range => {
                let (first, last) =
                    range.strip_prefix(':').and_then(|range| range.split_once('-')).ok_or_else(refused)?;
                let number = |text: &str| text.parse().map_err(|_| refused());
                let range: RangeInclusive<u32> = number(first)?..=number(last)?;
                // Root, and what chown(2) takes for "leave it".
                let sound = !range.is_empty() && *range.start() > 0 && *range.end() < u32::MAX;
                if sound { Ok(Self::Range(range)) } else { Err(refused()) }
            }
        }
    }
}

impl fmt::Display for Isolate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subordinate => f.write_str("uid"),
            Self::Range(range) => write!(f, "uid:{}-{}", range.start(), range.end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sound_or_refused() {
        for text in ["uid", "uid:1-1", "uid:100000-165535", "uid:1-4294967294"] {
            assert_eq!(text.parse::<Isolate>().expect("sound").to_string(), text);
        }
        for text in
            ["", "gid", "uid:", "uid:5", "uid:0-5", "uid:5-4", "uid:1-4294967295", "uid:-1-4", "uid:a-b", "uid5-6"]
        {
            assert!(text.parse::<Isolate>().is_err(), "{text}");
        }
    }
}
