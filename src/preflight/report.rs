//! Findings, and the report of them for people and programs.

use std::fmt;

use serde::Serialize;

/// Findings shown to people; programs get all of them.
const SHOWN: usize = 40;

/// Kind of a failed check; the names are those of AWS HealthOmics run failures where one exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// An input does not exist.
    InputUriNotFound,
    /// An input exists but cannot be read, or is of a kind that cannot be staged.
    ImportFailed,
    /// The output cannot be written.
    ExportFailed,
    /// An input changed while it was looked at or staged.
    ModifiedInputResource,
    /// The inputs do not fit.
    FileSystemOutOfSpace,
    /// Two inputs claim one path.
    InputConflict,
    /// The output holds files already and replacing them was not allowed.
    OutputNotEmpty,
}

impl Code {
    /// The name, as it stands in JSON too.
    pub fn name(self) -> &'static str {
        match self {
            Self::InputUriNotFound => "INPUT_URI_NOT_FOUND",
            Self::ImportFailed => "IMPORT_FAILED",
            Self::ExportFailed => "EXPORT_FAILED",
            Self::ModifiedInputResource => "MODIFIED_INPUT_RESOURCE",
            Self::FileSystemOutOfSpace => "FILE_SYSTEM_OUT_OF_SPACE",
            Self::InputConflict => "INPUT_CONFLICT",
            Self::OutputNotEmpty => "OUTPUT_NOT_EMPTY",
        }
    }
}

/// One failed check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Kind.
    pub code: Code,
    /// The thing concerned: a path or URI, safe to print.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Everything that stands in the way of a run; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The findings, inputs first, in the order given.
    pub findings: Vec<Finding>,
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.findings.len();
        let problems = if count == 1 { "problem" } else { "problems" };
        writeln!(f, "preflight found {count} {problems}; nothing was started")?;
        let width = self.findings.iter().map(|x| x.code.name().len()).max().unwrap_or(0);
        for Finding { code, subject, problem, remedy } in self.findings.iter().take(SHOWN) {
            writeln!(f, "\n  {:width$}  {subject}", code.name())?;
            writeln!(f, "  {:width$}  problem: {problem}", "")?;
            writeln!(f, "  {:width$}  remedy:  {remedy}", "")?;
        }
        match count.saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Code; 7] = [
        Code::InputUriNotFound,
        Code::ImportFailed,
        Code::ExportFailed,
        Code::ModifiedInputResource,
        Code::FileSystemOutOfSpace,
        Code::InputConflict,
        Code::OutputNotEmpty,
    ];

    fn finding(code: Code) -> Finding {
        Finding { code, subject: "/x".into(), problem: "p".into(), remedy: "r".into() }
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for code in ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
    }

    #[test]
    fn the_table_lines_up_and_ends() {
        let report = Report { findings: vec![finding(Code::ExportFailed), finding(Code::InputUriNotFound)] };
        let expected = "preflight found 2 problems; nothing was started

  EXPORT_FAILED        /x
                       problem: p
                       remedy:  r

  INPUT_URI_NOT_FOUND  /x
                       problem: p
                       remedy:  r
";
        assert_eq!(report.to_string(), expected);
        let long = Report { findings: vec![finding(Code::ImportFailed); SHOWN + 3] }.to_string();
        assert!(long.ends_with("\n  and 3 more\n"), "{long}");
    }
}
