//! What was asked of the double, call by call.

use std::collections::BTreeMap;

use serde::Serialize;

/// Which listener a call came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Service {
    /// S3.
    #[default]
    S3,
    /// KMS, by the caller.
    Kms,
    /// KMS, by S3 in the name of its caller.
    KmsForS3,
    /// STS.
    Sts,
}

/// One call. Retries are calls of their own.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Call {
    /// Service.
    pub service: Service,
    /// `GetObject`, `DescribeKey`, ...
    pub operation: String,
    /// Bucket (S3).
    pub bucket: String,
    /// Key of the object (S3).
    pub key: String,
    /// Who called; empty if nobody known.
    pub persona: String,
    /// Access key id.
    pub access_key: String,
    /// Request headers, without `authorization` and the session token.
    pub headers: BTreeMap<String, String>,
    /// The query (S3), undecoded.
    pub query: String,
    /// KMS: the key as the caller named it.
    pub kms_key: String,
    /// KMS: encryption context.
    pub context: BTreeMap<String, String>,
    /// KMS: whether it was a dry run.
    pub dry_run: bool,
    /// HTTP status of the answer; 0 if the connection was cut instead.
    pub status: u16,
    /// Error code of the answer, where it is known.
    pub code: String,
    /// Request id of the answer.
    pub request_id: String,
}

impl Call {
    /// A request header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// `User-Agent`.
    pub fn user_agent(&self) -> &str {
        self.header("user-agent").unwrap_or_default()
    }
}
