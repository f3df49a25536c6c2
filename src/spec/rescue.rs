//! What becomes of a run that is in trouble: whose results cannot be published, or whose command failed.

use std::path::{Component, Path};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// `--on-hold`: how long results that could not be published are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnHold {
    /// Until somebody resumes or discards.
    Wait,
    /// Not at all.
    Fail,
    /// So long; never zero.
    For(Duration),
}

/// Why a text is no [`OnHold`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of `wait`, `fail` and a duration such as 90s, 10m or 2h30m")]
pub struct OnHoldError(String);

impl OnHold {
    /// The longest that results are held.
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Wait => None,
            Self::Fail => Some(Duration::ZERO),
            Self::For(limit) => Some(limit),
        }
    }
}

impl FromStr for OnHold {
    type Err = OnHoldError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "wait" => Ok(Self::Wait),
            "fail" => Ok(Self::Fail),
            _ => match humantime::parse_duration(text) {
                Ok(limit) if !limit.is_zero() => Ok(Self::For(limit)),
                _ => Err(OnHoldError(text.to_owned())),
            },
        }
    }
}

/// `--on-failure`: what becomes of the scratch when the command fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is destroyed.
    #[default]
    End,
    /// It is held, as long as `--on-hold` says.
    Hold,
}

/// `--lost-writes`: what becomes of results when data was lost that is no result itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LostWrites {
    /// They are held: they may depend on it.
    #[default]
    Hold,
    /// They are published, with a warning.
    Warn,
}

/// How the names begin below which an output has files of runs whose command failed. They are no results: no run minds
/// them.
pub const SAVED: &str = "runseal-failed-";

/// `--save`: which files are published even if the command fails, by their path below the scratch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SavePattern(glob::Pattern);

/// Why a text is no [`SavePattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no pattern for paths below $RUNSEAL_SCRATCH, such as work/*.log or output/logs: {1}")]
pub struct SavePatternError(String, String);

impl FromStr for SavePattern {
    type Err = SavePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: &str| SavePatternError(text.to_owned(), why.to_owned());
        let plain = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::CurDir);
        if text.is_empty() || !Path::new(text).components().all(plain) {
            return Err(refuse("it must be relative, without `..`"));
        }
        let text = text.trim_start_matches("./").trim_end_matches('/');
        glob::Pattern::new(text).map(Self).map_err(|error| refuse(error.msg))
    }
}

impl TryFrom<String> for SavePattern {
    type Error = SavePatternError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SavePattern> for String {
    fn from(pattern: SavePattern) -> Self {
        pattern.0.as_str().to_owned()
    }
}

/// What becomes of a run in trouble.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RescueSpec {
    /// How long results are held; `None` leaves it to whether there is a terminal.
    pub on_hold: Option<OnHold>,
    /// What becomes of the scratch of a command that failed.
    pub on_failure: OnFailure,
    /// What data means for results that was lost elsewhere in the scratch.
    pub lost_writes: LostWrites,
    /// What is published even if the command fails.
    pub save: Vec<SavePattern>,
}

impl RescueSpec {
    /// Whether the file at this path, relative to the scratch, is to be saved; or all in a directory there.
    pub fn saves(&self, path: &Path) -> bool {
        let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        self.save.iter().any(|pattern| pattern.0.matches_path_with(path, options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_paths_below_the_scratch() {
        let save = ["work/**/*.log", "output/logs/", "./tmp/x?"].map(|text| text.parse().expect(text));
        let rescue = RescueSpec { save: save.into(), ..RescueSpec::default() };
        for (path, saved) in [
            ("work/a.log", true),
            ("work/deep/er/.a.log", true),
            ("other/a.log", false),
            ("output/logs", true),
            ("tmp/x1", true),
            ("tmp/x/1", false),
        ] {
            assert_eq!(rescue.saves(Path::new(path)), saved, "{path}");
        }
        for text in ["", "/work/x", "../x", "work/../x", "work/***"] {
            assert!(text.parse::<SavePattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn holding_has_a_bound_or_is_said_to_have_none() {
        for (text, limit) in [
            ("wait", None),
            ("fail", Some(Duration::ZERO)),
            ("90s", Some(Duration::from_secs(90))),
            ("2h 30m", Some(Duration::from_secs(9000))),
        ] {
            assert_eq!(text.parse::<OnHold>().map(OnHold::limit), Ok(limit), "{text}");
        }
        for text in ["", "0s", "soon", "-1s", "90", "Wait"] {
            assert!(text.parse::<OnHold>().is_err(), "{text}");
        }
    }
}
