//! Errors of the API: RFC 9457 problem documents with stable names and the exit codes of the command line.

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::run::NotMounted;
use crate::run::error::{FamilyError, RunError};
use crate::units::exit::Exit;
use crate::units::json;
use crate::units::text::Message;

/// What all type names begin with.
pub const TYPE_PREFIX: &str = "urn:runseal:problem:";

/// What went wrong. Names and numbers are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// The request makes no sense.
    Usage,
    /// No such run, volume or path, or none the caller may see.
    NotFound,
    /// The path knows no such method.
    Method,
    /// The caller may not do this.
    Forbidden,
    /// The name or the directory is taken.
    InUse,
    /// It cannot be done while something else is going on.
    Busy,
    /// Results would be lost.
    Held,
    /// A configured limit.
    Limit,
    /// The request is larger than allowed.
    TooLarge,
    /// The request did not come in time.
    Timeout,
    /// An input is missing or unreadable.
    NoInput,
    /// Something cannot be made: backing, mountpoint, output.
    CannotCreate,
    /// The machine lacks something.
    Unavailable,
    /// Something that should work did not.
    System,
    /// Reading or writing failed.
    Io,
    /// Memory lock or cipher engine not to be had.
    Configuration,
}

impl ProblemKind {
    /// Name behind [`TYPE_PREFIX`], HTTP status, title, exit code.
    fn row(self) -> (&'static str, u16, &'static str, Exit) {
        match self {
            Self::Usage => ("usage", 400, "The request makes no sense", Exit::Usage),
            Self::NotFound => ("not-found", 404, "There is no such thing", Exit::Unavailable),
            Self::Method => ("method", 405, "The path knows no such method", Exit::Usage),
            Self::Forbidden => ("forbidden", 403, "Not allowed", Exit::NoPermission),
            Self::InUse => ("in-use", 409, "The name or directory is taken", Exit::Usage),
            Self::Busy => ("busy", 409, "Something else is going on", Exit::Unavailable),
            Self::Held => ("held", 409, "Results would be lost", Exit::Unavailable),
            Self::Limit => ("limit", 429, "A limit of this node is reached", Exit::Unavailable),
            Self::TooLarge => ("too-large", 413, "The request is too large", Exit::Usage),
            Self::Timeout => ("timeout", 408, "The request came too slowly", Exit::Unavailable),
            Self::NoInput => ("no-input", 422, "An input is missing or unreadable", Exit::NoInput),
            Self::CannotCreate => ("cannot-create", 507, "Something cannot be made", Exit::CannotCreate),
            Self::Unavailable => ("unavailable", 503, "The node lacks something", Exit::Unavailable),
            Self::System => ("system", 500, "Something that should work did not", Exit::System),
            Self::Io => ("io", 500, "Reading or writing failed", Exit::Io),
            Self::Configuration => {
                ("configuration", 500, "The node cannot give what is configured", Exit::Configuration)
            }
        }
    }

    /// Stable name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    fn of_exit(code: u8) -> Self {
        match Exit::of(code) {
            Some(Exit::Usage) => Self::Usage,
            Some(Exit::NoInput) => Self::NoInput,
            Some(Exit::Unavailable) => Self::Unavailable,
            Some(Exit::CannotCreate) => Self::CannotCreate,
            Some(Exit::Io) => Self::Io,
            Some(Exit::NoPermission) => Self::Forbidden,
            Some(Exit::Configuration) => Self::Configuration,
            _ => Self::System,
        }
    }
}

/// An error as clients get it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// What went wrong.
    pub kind: ProblemKind,
    /// What and why, and what to do.
    pub detail: String,
    /// What preflight has found.
    pub findings: Vec<serde_json::Value>,
}

impl Problem {
    /// `detail` names the thing and the remedy. What others chose in it is made fit to be shown.
    pub fn new(kind: ProblemKind, detail: impl Display) -> Self {
        Self { kind, detail: Message(detail).to_string(), findings: Vec::new() }
    }

    /// Of a run nobody, or nobody the caller may see, has.
    pub fn no_run(id: &str) -> Self {
        Self::new(ProblemKind::NotFound, format!("you have no run `{id}` here; GET /v1/runs lists yours"))
    }
}

impl From<NotMounted> for Problem {
    fn from(error: NotMounted) -> Self {
        Self { findings: error.findings, ..Self::new(ProblemKind::of_exit(error.code), error.message) }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        let kind = match &error {
            RunError::Family(FamilyError::Refused(_)) => ProblemKind::Held,
            RunError::Family(FamilyError::Unreachable { .. }) => ProblemKind::Unavailable,
            RunError::Family(FamilyError::State(_)) => ProblemKind::NotFound,
            _ => ProblemKind::System,
        };
        Self::new(kind, error.to_string())
    }
}

/// RFC 9457 problem details
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    /// Stable name of the kind of problem, a URN
    #[serde(rename = "type")]
    #[schema(example = "urn:runseal:problem:not-found")]
    pub kind: String,
    /// The kind of problem in words
    pub title: &'static str,
    /// HTTP status
    pub status: u16,
    /// What happened and what to do
    pub detail: String,
    /// Exit code with which `runseal` reports the same
    pub exit_code: u8,
    /// What preflight has found, if it has: code, subject, problem, remedy, and what AWS said
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub findings: Vec<serde_json::Value>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (name, status, title, exit) = self.kind.row();
        let Self { detail, findings, .. } = self;
        let document = ProblemDocument {
            kind: format!("{TYPE_PREFIX}{name}"),
            title,
            status,
            detail,
            exit_code: exit.number(),
            findings,
        };
        let body = json::to_vec(&document).expect("strings and numbers only");
        let mut response = body.into_response();
        *response.status_mut() = StatusCode::from_u16(status).expect("the table holds valid numbers");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ProblemKind; 16] = [
        ProblemKind::Usage,
        ProblemKind::NotFound,
        ProblemKind::Method,
        ProblemKind::Forbidden,
        ProblemKind::InUse,
        ProblemKind::Busy,
        ProblemKind::Held,
        ProblemKind::Limit,
        ProblemKind::TooLarge,
        ProblemKind::Timeout,
        ProblemKind::NoInput,
        ProblemKind::CannotCreate,
        ProblemKind::Unavailable,
        ProblemKind::System,
        ProblemKind::Io,
        ProblemKind::Configuration,
    ];

    #[test]
    fn names_are_unique_and_numbers_valid() {
        let mut names: Vec<_> = ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for kind in ALL {
            assert!(Problem::new(kind, "x").into_response().status().as_u16() >= 400, "{kind:?}");
        }
    }

    #[test]
    fn the_manual_tells_their_names_and_numbers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
        let text = std::fs::read_to_string(path).expect("docs/operations.md");
        let table = text.split("| `urn:runseal:problem:` |").nth(1).expect("the table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let told = rows.flat_map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let (names, numbers): (Vec<_>, Vec<_>) = (cells[1].split(", ").collect(), cells[2].split(", ").collect());
            let number = |at: usize| numbers.get(at).or(numbers.last()).expect("a number").to_string();
            names.iter().enumerate().map(|(at, name)| (name.to_string(), number(at))).collect::<Vec<_>>()
        });
        let known = ALL.iter().map(|kind| (format!("`{}`", kind.name()), kind.row().1.to_string()));
        let (mut told, mut known): (Vec<_>, Vec<_>) = (told.collect(), known.collect());
        told.sort();
        known.sort();
        assert_eq!(told, known);
    }

    // promise: T-44
    #[test]
    fn a_name_in_a_problem_is_escaped() {
        let problem = Problem::new(ProblemKind::InUse, "mountpoint /a\nrunseal: \u{1b}[2J\u{202e}: taken");
        assert_eq!(problem.detail, "mountpoint /a\n  runseal: \\u{1b}[2J\\u{202e}: taken");
    }

    #[test]
    fn exit_codes_of_a_family_keep_their_meaning() {
        for code in [64, 66, 69, 71, 73, 74, 77, 78] {
            assert_eq!(ProblemKind::of_exit(code).row().3.number(), code);
        }
        assert_eq!(ProblemKind::of_exit(1), ProblemKind::System);
    }
}
