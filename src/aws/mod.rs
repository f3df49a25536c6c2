//! Objects and keys of AWS, as runseal needs them: traits, their vocabulary, and the adapter on the AWS SDK.
//!
//! Preflight and staging see the traits only, never a type of the SDK. A [`Cloud`] holds what speaks to AWS for one
//! run, and the runtime on which that happens.

mod call;
mod config;
mod denial;
mod gate;
mod object;
#[cfg(feature = "aws")]
mod sdk;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

pub use crate::spec::Credentials;
use call::outcome;
pub use call::{Answer, CallError, Cause, Denial, NO_UPLOAD, PolicyKind};
pub use config::{CloudConfig, Endpoints, SLOWEST, Timeouts};
pub use gate::Gate;
pub use object::{
    Checksum, ChecksumAlgorithm, Encryption, Object, ObjectSummary, Page, PageStart, Part, SseAlgorithm, Stored,
    UploadSettings,
};

use crate::spec::{RunId, S3Uri};

/// Contents of an object as they arrive; each piece may be of any length.
pub type Pieces = BoxStream<'static, Result<Bytes, CallError>>;

/// Operations of S3 (API version 2006-03-01), each one bounded in time and retried as [`Cloud`] is configured.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// `ListObjectsV2`: one page of keys below `prefix`, in order, from `start` on. [`Page::next`] of one page is the start of
    /// the next.
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start: Option<&PageStart>,
        most: u16,
    ) -> Result<Answer<Page>, CallError>;

    /// `HeadObject`. Without `ChecksumMode`: that would need `kms:Decrypt`.
    async fn head(&self, bucket: &str, key: &str) -> Result<Answer<Object>, CallError>;

    /// `HeadObject` with `ChecksumMode` (needs `kms:Decrypt`), if the object still has `etag` (`If-Match`): its facts,
    /// full-object checksums among them. Answers to ranged reads do not have those.
    async fn checksums(&self, bucket: &str, key: &str, etag: Option<&str>) -> Result<Answer<Object>, CallError>;

    /// `GetObject` of `range` (bytes, not empty), or of everything, if the object still has `etag` (`If-Match`). The
    /// object's facts come with it. A body shorter or longer than asked for is an error of the stream.
    ///
    /// Without `range` the body is compared with the object's full-object checksum, if it has one, and
    /// [`Object::checksums`] is filled. With `range` neither is so: see [`ObjectStore::checksums`].
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<Answer<(Object, Pieces)>, CallError>;

    /// `PutObject` with its CRC-64/NVME; only onto a free key unless `settings` say otherwise. The answer tells how the
    /// object is encrypted.
    async fn put(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError>;

    /// `CreateMultipartUpload` for full-object CRC-64/NVME; the answer holds the upload id and the encryption that the
    /// object will have.
    async fn begin_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
    ) -> Result<Answer<(String, Encryption)>, CallError>;

    /// `UploadPart`; `number` counts from 1.
    async fn upload_part(
        &self,
        target: &S3Uri,
        upload: &str,
        number: u16,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Part>, CallError>;

    /// `CompleteMultipartUpload` with the CRC-64/NVME and the size of the whole object; only onto a free key unless
    /// `settings` say otherwise.
    async fn complete_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        upload: &str,
        parts: &[Part],
        size: u64,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError>;

    /// What lies at `target`, if it has exactly these contents: then it was made by a call whose answer got lost.
    async fn same(&self, target: &S3Uri, size: u64, crc64nvme: u64) -> Option<Answer<Stored>> {
        let Answer { value: found, request_id } = self.checksums(&target.bucket, &target.key, None).await.ok()?;
        found.has(size, crc64nvme).then(|| Answer { value: found.into(), request_id })
    }

    /// `AbortMultipartUpload`. An upload that is gone already is no error.
    async fn abort_upload(&self, target: &S3Uri, upload: &str) -> Result<Answer<()>, CallError>;

    /// `DeleteObject` of exactly what was `stored`: its version, or, where versions are not kept, the object with its
    /// `ETag` (`If-Match`). What somebody has put there since stays, and is an error of [`Cause::Precondition`].
    async fn remove(&self, target: &S3Uri, stored: &Stored) -> Result<Answer<()>, CallError>;

    /// `GetBucketEncryption`: the default of the bucket. For explanations only: run roles rarely may.
    async fn bucket_encryption(&self, bucket: &str) -> Result<Answer<Encryption>, CallError>;

    /// Region of the bucket (`HeadBucket`, whose header tells it even to callers without any right).
    async fn bucket_region(&self, bucket: &str) -> Result<Answer<String>, CallError>;
}

/// An encryption context (AWS KMS Developer Guide, "Encryption context"). Not secret: CloudTrail shows it.
pub type EncryptionContext = BTreeMap<String, String>;

/// Key of the encryption context under which the data key of a run is drawn.
pub const RUN_ID_CONTEXT: &str = "runseal:run-id";

/// The encryption context under which the data key of `run` is drawn, for real and as a trial.
pub fn run_context(run: &RunId) -> EncryptionContext {
    EncryptionContext::from([(RUN_ID_CONTEXT.to_owned(), run.to_string())])
}

/// What `DescribeKey` tells (KMS API Reference, `KeyMetadata`). Enumerations stay text: AWS adds values.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct KeyFacts {
    /// Key ARN, whatever the key was asked by.
    pub arn: String,
    /// `KeyState`: `Enabled`, `Disabled`, `PendingDeletion`, ...
    pub state: String,
    /// `KeySpec`: `SYMMETRIC_DEFAULT`, `RSA_2048`, ...
    pub spec: String,
    /// `KeyUsage`: `ENCRYPT_DECRYPT`, `SIGN_VERIFY`, ...
    pub usage: String,
    /// `KeyManager`: `AWS` or `CUSTOMER`.
    pub manager: String,
    /// `Origin`: `AWS_KMS`, `EXTERNAL`, `AWS_CLOUDHSM`, `EXTERNAL_KEY_STORE`.
    pub origin: String,
    /// When the key will be deleted: seconds since 1970.
    pub deletion: Option<i64>,
    /// When imported key material expires: seconds since 1970.
    pub valid_to: Option<i64>,
    /// Whether it is a multi-Region key.
    pub multi_region: bool,
}

/// A grant on a key (`ListGrants`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// Who may use it.
    pub grantee: String,
    /// Operations it allows.
    pub operations: Vec<String>,
}

/// A data key in the clear. Wiped on drop; neither `Clone` nor `Debug`.
pub struct DataKey(pub zeroize::Zeroizing<Vec<u8>>);

/// Operations of KMS (API version 2014-11-01). A dry run answers `Ok` where KMS says `DryRunOperationException`.
#[async_trait]
pub trait KeyService: Send + Sync {
    /// `DescribeKey`, by key ARN, key id or alias.
    async fn describe(&self, key: &str) -> Result<Answer<KeyFacts>, CallError>;

    /// `GenerateDataKey` with `DryRun`.
    async fn try_generate(&self, key: &str, context: &EncryptionContext) -> Result<Answer<()>, CallError>;

    /// `Decrypt` with `DryRun` and `IGNORE_CIPHERTEXT`.
    async fn try_decrypt(&self, key: &str, context: &EncryptionContext) -> Result<Answer<()>, CallError>;

    /// `CreateGrant` with `DryRun`, for `grantee` and `operations`.
    async fn try_grant(&self, key: &str, grantee: &str, operations: &[&str]) -> Result<Answer<()>, CallError>;

    /// `ListGrants`, all pages.
    async fn grants(&self, key: &str) -> Result<Answer<Vec<Grant>>, CallError>;

    /// `GenerateDataKey` of 32 bytes. The ciphertext is not kept.
    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Answer<DataKey>, CallError>;
}

/// Who calls (`GetCallerIdentity`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Identity {
    /// ARN of the user, or of the session of a role.
    pub arn: String,
    /// Account id, 12 digits.
    pub account: String,
    /// Unique id.
    pub user_id: String,
}

/// The one operation of STS that needs no permission.
#[async_trait]
pub trait IdentityService: Send + Sync {
    /// `GetCallerIdentity`.
    async fn whoami(&self) -> Result<Answer<Identity>, CallError>;
}

/// The three services, as the adapter or a fake has them.
pub struct Services {
    /// S3.
    pub objects: Arc<dyn ObjectStore>,
    /// KMS.
    pub keys: Arc<dyn KeyService>,
    /// STS.
    pub identity: Arc<dyn IdentityService>,
}

/// What speaks to AWS for one run, all of it through a [`Gate`], and the runtime on which it does.
pub struct Cloud {
    services: Services,
    /// Region of the configuration.
    pub region: String,
    /// The runtime; `None` only while the value is dropped.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Cloud {
    /// A cloud of these services behind `gate`, with a runtime of its own.
    ///
    /// # Errors
    /// The threads of the runtime cannot be started.
    pub fn new(services: Services, region: String, gate: &Gate) -> std::io::Result<Self> {
        Ok(Self::on(runtime()?, services, region, gate))
    }

    /// Clients as `config`, environment and profile files say. Nothing is sent yet, except where a profile asks for
    /// credentials or a Region from elsewhere. Must be called from a thread that is not one of a runtime.
    ///
    /// # Errors
    /// [`Cause::Configuration`]: what was found makes no sense, or this build has no S3.
    #[cfg(feature = "aws")]
    pub fn connect(config: &CloudConfig, gate: &Gate) -> Result<Self, CallError> {
        sdk::connect(config, gate)
    }

    /// Says that this build has no S3.
    ///
    /// # Errors
    /// Always [`Cause::Configuration`].
    #[cfg(not(feature = "aws"))]
    pub fn connect(_config: &CloudConfig, _gate: &Gate) -> Result<Self, CallError> {
        let text = "this build of runseal has no S3: build it with the feature `aws`";
        Err(CallError::unanswered("configuration", Cause::Configuration, text))
    }

    fn on(runtime: tokio::runtime::Runtime, services: Services, region: String, gate: &Gate) -> Self {
        Self { services: gate.before(services, &region), region, runtime: Some(runtime) }
    }

    /// S3.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.services.objects
    }

    /// KMS.
    pub fn keys(&self) -> &dyn KeyService {
        &*self.services.keys
    }

    /// STS.
    pub fn identity(&self) -> &dyn IdentityService {
        &*self.services.identity
    }

    /// Does `work` on the runtime and waits for it. Must be called from a thread that is not one of a runtime.
    pub fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.runtime.as_ref().expect("a runtime until it is dropped").block_on(work)
    }

    /// Does `work` on the threads of the runtime: signing and parsing of many calls keep more than one processor busy.
    ///
    /// # Panics
    /// If `work` does.
    pub async fn spread<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.runtime.as_ref().expect("a runtime until it is dropped").spawn(work).await {
            Ok(done) => done,
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }
}

/// The runtime of a cloud.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("runseal-s3").build()
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Whoever drops the last reference may be on a runtime, where waiting for another one would panic.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
