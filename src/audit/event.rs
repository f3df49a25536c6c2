//! Events: what can be told of a key, an object or a probe. There is no place in one for credentials or key bytes.

use serde_json::{Map, Value};

use crate::spec::S3Uri;

/// `eventSource` of what runseal itself did.
pub const RUNSEAL: &str = "runseal";
/// `eventSource` of S3.
pub const S3: &str = "s3.amazonaws.com";
/// `eventSource` of KMS.
pub const KMS: &str = "kms.amazonaws.com";
/// `eventSource` of STS.
pub const STS: &str = "sts.amazonaws.com";

/// The key of a run was made.
pub const CREATE_RUN_KEY: &str = "CreateRunKey";
/// The key of a run was overwritten.
pub const WIPE_RUN_KEY: &str = "WipeRunKey";
/// An input is in the scratch, complete and checked.
pub const STAGE_OBJECT: &str = "StageObject";
/// A result is where it was to go, complete.
pub const PUBLISH_OBJECT: &str = "PublishObject";
/// A line that a crash had torn was found, and marked.
pub const RECOVER_TRAIL: &str = "RecoverTrail";

/// Operations of AWS that change nothing; all others that are recorded do, or use a key.
const READ_ONLY: [&str; 11] = [
    "Decrypt",
    "DescribeKey",
    "GenerateDataKey",
    "GetBucketEncryption",
    "GetCallerIdentity",
    "GetObject",
    "HeadBucket",
    "HeadObject",
    "ListGrants",
    "ListObjectsV2",
    "ListParts",
];

/// One thing that was done, or was refused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// `eventName`: the operation of AWS (`GenerateDataKey`, `PutObject`), or one of runseal (`CreateRunKey`).
    pub name: &'static str,
    /// `eventSource`: `kms.amazonaws.com`, `s3.amazonaws.com`, `sts.amazonaws.com`, or `runseal`.
    pub source: &'static str,
    /// ARN of the key concerned, URI of the bucket or object (`s3://BUCKET/KEY`), or a path of this machine.
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

impl Event {
    /// A call to AWS: `operation` is service and operation, as in `kms:GenerateDataKey`.
    pub fn call(operation: &'static str) -> Self {
        let (service, name) = operation.split_once(':').unwrap_or(("", operation));
        let source = match service {
            "kms" => KMS,
            "sts" => STS,
            _ => S3,
        };
        Self { name, source, read_only: READ_ONLY.contains(&name), ..Self::default() }
    }

    /// The key of the run was made: of local randomness alone, or mixed with a data key of `kms_key`.
    pub fn create_run_key(kms_key: Option<&str>) -> Self {
        let event = Self::own(CREATE_RUN_KEY).with("keySpec", "XTS_AES_256");
        match kms_key {
            Some(key) => event.on(key).with("mixedWith", key),
            None => event,
        }
    }

    /// The key of the run was overwritten.
    pub fn wipe_run_key() -> Self {
        Self::own(WIPE_RUN_KEY)
    }

    /// The object at `uri` is in the scratch, complete and checked.
    pub fn stage_object(uri: &S3Uri, bytes: u64) -> Self {
        Self::own(STAGE_OBJECT).on(uri.to_string()).with("bytes", bytes)
    }

    /// A result of `bytes` is at `uri`.
    pub fn publish_object(uri: &S3Uri, bytes: u64) -> Self {
        Self::own(PUBLISH_OBJECT).on(uri.to_string()).with("bytes", bytes)
    }

    fn own(name: &'static str) -> Self {
        Self { name, source: RUNSEAL, ..Self::default() }
    }

    /// The event, about [`Event::resource`].
    #[must_use]
    pub fn on(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The event with one more of its `requestParameters`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        if !self.parameters.is_object() {
            self.parameters = Value::Object(Map::new());
        }
        if let Value::Object(parameters) = &mut self.parameters {
            parameters.insert(name.to_owned(), value.into());
        }
        self
    }

    /// The event with its end: the request id of an answer, or code, message and request id of a failure. Ids may be
    /// empty, where a server sends none.
    #[must_use]
    pub fn ended(mut self, outcome: Result<&str, (&str, &str, &str)>) -> Self {
        let id = match outcome {
            Ok(id) => id,
            Err((code, message, id)) => {
                self.error = Some((code.to_owned(), message.to_owned()));
                id
            }
        };
        self.request_id = (!id.is_empty()).then(|| id.to_owned());
        self
    }
}
