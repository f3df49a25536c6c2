//! Events: what can be told of a key, an object or a probe. There is no place in one for credentials or key bytes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::spec::S3Uri;
use crate::units::hex;

/// `eventSource` of what runseal itself did.
pub const RUNSEAL: &str = "runseal";
/// `eventSource` of S3.
pub const S3: &str = "s3.amazonaws.com";
/// `eventSource` of KMS.
pub const KMS: &str = "kms.amazonaws.com";
/// `eventSource` of STS.
pub const STS: &str = "sts.amazonaws.com";

/// A run began.
pub const START_RUN: &str = "StartRun";
/// The key of a run was made.
pub const CREATE_RUN_KEY: &str = "CreateRunKey";
/// The key of a run was overwritten.
pub const WIPE_RUN_KEY: &str = "WipeRunKey";
/// An object is in the scratch, complete and checked.
pub const STAGE_OBJECT: &str = "StageObject";
/// A file of this machine is in the scratch.
pub const STAGE_FILE: &str = "StageFile";
/// A result is where it was to go in S3, complete.
pub const PUBLISH_OBJECT: &str = "PublishObject";
/// A result is where it was to go on this machine.
pub const PUBLISH_FILE: &str = "PublishFile";
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

    /// A run began, with these things in its parameters: who, where, what.
    pub fn start_run() -> Self {
        Self::own(START_RUN)
    }

    /// The file at `path` is in the scratch, where it has this SHA-256.
    pub fn stage_file(path: &Path, bytes: u64, sha256: &[u8]) -> Self {
        Self::own(STAGE_FILE).of_file(path, bytes, sha256)
    }

    /// A result with this SHA-256 is at `path`.
    pub fn publish_file(path: &Path, bytes: u64, sha256: &[u8]) -> Self {
        Self::own(PUBLISH_FILE).of_file(path, bytes, sha256)
    }

    fn of_file(self, path: &Path, bytes: u64, sha256: &[u8]) -> Self {
        let event = self.on(path.to_string_lossy()).with("bytes", bytes).with("sha256", hex(sha256));
        match path.to_str() {
            Some(_) => event,
            // Its text has replacement characters.
            None => event.with("pathBytes", hex(path.as_os_str().as_bytes())),
        }
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
