//! Errors of the API: RFC 9457 problem documents with stable names and the exit codes of the command line.

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::run::NotMounted;
use crate::run::error::RunError;
use crate::units::json;
use crate::units::text::Message;

/// What all type names begin with.
pub const TYPE_PREFIX: &str = "urn:runseal:problem:";

/// What went wrong. Names and numbers are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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

impl Kind {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 16] = [
        Self::Usage,
        Self::NotFound,
        Self::Method,
        Self::Forbidden,
        Self::InUse,
        Self::Busy,
        Self::Held,
        Self::Limit,
        Self::TooLarge,
        Self::Timeout,
        Self::NoInput,
        Self::CannotCreate,
        Self::Unavailable,
        Self::System,
        Self::Io,
        Self::Configuration,
    ];

    /// Name behind [`TYPE_PREFIX`], HTTP status, title, exit code.
    fn row(self) -> (&'static str, u16, &'static str, u8) {
        match self {
            Self::Usage => ("usage", 400, "The request makes no sense", 64),
            Self::NotFound => ("not-found", 404, "There is no such thing", 69),
            Self::Method => ("method", 405, "The path knows no such method", 64),
            Self::Forbidden => ("forbidden", 403, "Not allowed", 77),
            Self::InUse => ("in-use", 409, "The name or directory is taken", 64),
            Self::Busy => ("busy", 409, "Something else is going on", 69),
            Self::Held => ("held", 409, "Results would be lost", 69),
            Self::Limit => ("limit", 429, "A limit of this node is reached", 69),
            Self::TooLarge => ("too-large", 413, "The request is too large", 64),
            Self::Timeout => ("timeout", 408, "The request came too slowly", 69),
            Self::NoInput => ("no-input", 422, "An input is missing or unreadable", 66),
            Self::CannotCreate => ("cannot-create", 507, "Something cannot be made", 73),
            Self::Unavailable => ("unavailable", 503, "The node lacks something", 69),
            Self::System => ("system", 500, "Something that should work did not", 71),
            Self::Io => ("io", 500, "Reading or writing failed", 74),
            Self::Configuration => ("configuration", 500, "The node cannot give what is configured", 78),
        }
    }

    /// Stable name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    fn of_exit(code: u8) -> Self {
        match code {
            64 => Self::Usage,
            66 => Self::NoInput,
            69 => Self::Unavailable,
            73 => Self::CannotCreate,
            74 => Self::Io,
            77 => Self::Forbidden,
            78 => Self::Configuration,
            _ => Self::System,
        }
    }
}

/// An error as clients get it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// What went wrong.
    pub kind: Kind,
    /// What and why, and what to do.
    pub detail: String,
    /// What preflight has found.
    pub findings: Vec<serde_json::Value>,
}

impl Problem {
    /// `detail` names the thing and the remedy. What others chose in it is made fit to be shown.
    pub fn new(kind: Kind, detail: impl Display) -> Self {
        Self { kind, detail: Message(detail).to_string(), findings: Vec::new() }
    }

    /// Of a run nobody, or nobody the caller may see, has.
    pub fn no_run(id: &str) -> Self {
        Self::new(Kind::NotFound, format!("you have no run `{id}` here; GET /v1/runs lists yours"))
    }
}

impl From<NotMounted> for Problem {
    fn from(error: NotMounted) -> Self {
        Self { findings: error.findings, ..Self::new(Kind::of_exit(error.code), error.message) }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        let kind = match &error {
            RunError::Refused(_) => Kind::Held,
            RunError::Unreachable { .. } => Kind::Unavailable,
            RunError::State(_) => Kind::NotFound,
            _ => Kind::System,
        };
        Self::new(kind, error.to_string())
    }
}

/// RFC 9457 problem details
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document {
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
        let (name, status, title, exit_code) = self.kind.row();
        let Self { detail, findings, .. } = self;
        let document = Document { kind: format!("{TYPE_PREFIX}{name}"), title, status, detail, exit_code, findings };
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

    #[test]
    fn names_are_unique_and_numbers_valid() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(Problem::new(kind, "x").into_response().status().as_u16() >= 400, "{kind:?}");
        }
    }

    // promise: T-44
    #[test]
    fn a_name_in_a_problem_is_escaped() {
        let problem = Problem::new(Kind::InUse, "mountpoint /a\nrunseal: \u{1b}[2J\u{202e}: taken");
        assert_eq!(problem.detail, "mountpoint /a\n  runseal: \\u{1b}[2J\\u{202e}: taken");
    }

    #[test]
    fn exit_codes_of_a_family_keep_their_meaning() {
        for code in [64, 66, 69, 71, 73, 74, 77, 78] {
            assert_eq!(Kind::of_exit(code).row().3, code);
        }
        assert_eq!(Kind::of_exit(1), Kind::System);
    }
}
