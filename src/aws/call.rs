//! How a call to AWS ended: answers with their request id, errors classified, denials taken apart.

use std::fmt;

use serde::Serialize;

/// What AWS answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// `x-amz-request-id` or `x-amzn-requestid`; empty where the server sends none. CloudTrail has it too.
    pub request_id: String,
}

/// What kind of failure a call ended in. Exit codes and remedies follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No permission: `AccessDenied`, `AccessDeniedException`, or a bare 403.
    Denied,
    /// No such bucket, key, upload, KMS key or alias.
    NotFound,
    /// A condition of the request was not met: `PreconditionFailed` (412), `ConditionalRequestConflict` (409).
    Precondition,
    /// The KMS key cannot be used in its state: disabled, pending deletion or import, unavailable.
    KeyState,
    /// The KMS key is of a kind that cannot do this: wrong spec or usage.
    KeyKind,
    /// The object lies in an archive and was not restored (`InvalidObjectState`).
    Archived,
    /// Credentials are missing, expired or not known.
    Credentials,
    /// The contents that arrived do not match their checksum or length.
    Corrupt,
    /// The service could not be reached, or did not answer in time or for long: DNS, TCP, TLS, 5xx, throttling.
    Unreachable,
    /// The configuration makes no sense: endpoint, Region, profile, plain http to somewhere else than this machine.
    Configuration,
    /// Anything else the service refused.
    Rejected,
}

/// Which policy denied, where AWS says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// A policy of the IAM user or role.
    IdentityBased,
    /// The key policy or the bucket policy.
    ResourceBased,
    /// Of a VPC endpoint.
    VpcEndpoint,
    /// Of the session (`AssumeRole`).
    Session,
    /// A permissions boundary.
    PermissionsBoundary,
    /// Of AWS Organizations, on principals.
    ServiceControl,
    /// Of AWS Organizations, on resources.
    ResourceControl,
}

/// What the text of a denial says (IAM User Guide, "Troubleshoot access denied error messages"). Every part may be
/// missing: AWS does not always tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// ARN of the caller.
    pub principal: Option<String>,
    /// `kms:Decrypt`, `s3:PutObject`, ...
    pub action: Option<String>,
    /// ARN of the resource.
    pub resource: Option<String>,
    /// Which policy.
    pub policy: Option<PolicyKind>,
    /// Whether a statement denies, rather than no statement allowing.
    pub explicit: bool,
}

/// A call to AWS that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// `s3:GetObject`, `kms:DescribeKey`, ...: service and operation.
    pub operation: &'static str,
    /// Kind.
    pub cause: Cause,
    /// Code of the service, such as `AccessDenied` or `KMS.DisabledException`; empty if it did not answer.
    pub code: String,
    /// The text of the service, or of the system, as it came.
    pub message: String,
    /// HTTP status; 0 if there was none.
    pub status: u16,
    /// `x-amz-request-id` or `x-amzn-requestid`, if there was one.
    pub request_id: String,
    /// What the message of a denial says.
    pub denial: Option<Denial>,
    /// Whether an attempt of the same call went before, which may have been carried out though its answer was lost.
    pub repeated: bool,
}

/// What S3 says of an upload that it does not know, or no longer.
pub const NO_UPLOAD: &str = "NoSuchUpload";

impl CallError {
    /// A call that no service answered, or something that was noticed here without a call.
    pub fn unanswered(operation: &'static str, cause: Cause, message: impl Into<String>) -> Self {
        let (code, request_id) = (String::new(), String::new());
        let message = message.into();
        Self { operation, cause, code, message, status: 0, request_id, denial: None, repeated: false }
    }
}

/// How a call ended, as an audit trail keeps it: the request id of the answer, or code, message and request id.
pub(super) fn outcome<T>(result: &Result<Answer<T>, CallError>) -> Result<&str, (&str, &str, &str)> {
    match result {
        Ok(answer) => Ok(&answer.request_id),
        Err(error) => Err((&error.code, &error.message, &error.request_id)),
    }
}

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.operation)?;
        if !self.code.is_empty() {
            write!(f, "{}: ", self.code)?;
        }
        f.write_str(&self.message)?;
        if self.request_id.is_empty() { Ok(()) } else { write!(f, " (request {})", self.request_id) }
    }
}
