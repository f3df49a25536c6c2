//! A run's connection to AWS: made in the sealed process, counted, and cut off when the run is interrupted.

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::watch;

use crate::audit::{Event, Trail};
use crate::aws::{
    Answer, CallError, Cause, Cloud, CloudConfig, Credentials, Encryption, Object, ObjectStore, Page, Part, Pieces,
    SseAlgorithm, Stored, UploadSettings, UploadTarget, outcome, run_context,
};
use crate::crypt::KeyShare;
use crate::spec::{AwsSpec, DataSpec, RunId, Sse};

/// Environment variables that hold credentials of AWS or lead to some by way of a file, a server or a role, but by whose
/// name one cannot tell (AWS SDKs and Tools Reference Guide, "Environment variables"; older SDKs and tools).
const CREDENTIAL_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_LOGIN_CACHE_DIRECTORY",
    "BOTO_CONFIG",
    // The AWS SDK for Rust falls back to it.
    "SECRET_ACCESS_KEY",
    "S3_SECRET_ACCESS_KEY",
];
/// Parts of the names of all others: `AWS_SECRET_ACCESS_KEY`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, and those to come.
const CREDENTIAL_WORDS: [&str; 9] =
    ["ACCESS_KEY", "SECRET", "TOKEN", "CREDENTIAL", "PROFILE", "ROLE", "PASSWORD", "SSO", "PROCESS"];

/// Whether an environment variable holds credentials of AWS or leads to some. The command of a run does not get it.
pub fn leads_to_credentials(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let of_aws = name.starts_with("AWS_") && CREDENTIAL_WORDS.iter().any(|word| name.contains(word));
    of_aws || CREDENTIAL_VARIABLES.contains(&&*name)
}

/// Environment variables that hold paths and are read after the sealed process has left the user's directory.
pub const PATH_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Cuts requests off. It outlives connections: a run may have several, one after the other.
pub struct Switch {
    cut: watch::Sender<bool>,
    requests: Arc<AtomicU64>,
}

impl Switch {
    /// A switch that lets everything through.
    pub fn new() -> Self {
        Self { cut: watch::Sender::new(false), requests: Arc::default() }
    }

    /// From now on requests fail at once, those under way too, but for the ones that clear away.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Requests to S3 so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What counts them.
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.requests.clone()
    }

    /// What makes connections behind this switch.
    pub fn connector(&self) -> Connector {
        Connector { cut: self.cut.subscribe(), requests: self.requests.clone() }
    }
}

/// Makes connections behind a [`Switch`]; goes to the thread that connects.
pub struct Connector {
    cut: watch::Receiver<bool>,
    requests: Arc<AtomicU64>,
}

impl Connector {
    /// Connects as the run and the environment say, or with `credentials` in place of those of the environment. Blocks.
    ///
    /// # Errors
    /// The configuration makes no sense, or this build has no S3.
    pub fn connect(
        self,
        run: &RunId,
        aws: &AwsSpec,
        credentials: Option<Credentials>,
    ) -> Result<Arc<Cloud>, CallError> {
        let mut cloud = Cloud::connect(&config(run, aws, credentials))?;
        let Self { cut, requests } = self;
        cloud.objects = Arc::new(Switched { objects: cloud.objects.clone(), cut, requests });
        Ok(Arc::new(cloud))
    }
}

fn config(run: &RunId, aws: &AwsSpec, credentials: Option<Credentials>) -> CloudConfig {
    let default = CloudConfig::new(run.clone());
    CloudConfig {
        role_arn: aws.role.as_ref().map(|role| role.as_str().to_owned()),
        profile: aws.profile.clone(),
        region: aws.region.as_ref().map(|region| region.as_str().to_owned()),
        fips: aws.fips.then_some(true),
        dual_stack: aws.dual_stack.then_some(true),
        credentials,
        concurrency: aws.concurrency.map_or(default.concurrency, usize::from),
        ..default
    }
}

/// What every upload of the run has in common.
pub fn uploads(data: &DataSpec) -> UploadSettings {
    let sse = data.aws.sse.map(|sse| match sse {
        Sse::Aes256 => SseAlgorithm::Aes256,
        Sse::Kms => SseAlgorithm::Kms,
        Sse::KmsDsse => SseAlgorithm::KmsDsse,
    });
    let kms_key = data.aws.sse_kms_key.as_ref().map(ToString::to_string);
    UploadSettings { sse, kms_key, overwrite: data.overwrite }
}

/// Has KMS draw a data key for `run` under `key`. CloudTrail shows the run as encryption context. Blocks; the ciphertext
/// is not kept.
pub fn draw_key_share(cloud: &Cloud, key: &str, run: &RunId, trail: &Trail) -> Result<Answer<KeyShare>, CallError> {
    let context = run_context(run);
    let answer = cloud.block_on(cloud.keys.generate(key, &context));
    let event = Event::call("kms:GenerateDataKey").on(key).with("encryptionContext", serde_json::json!(context));
    trail.record(&event.ended(outcome(&answer)));
    let Answer { value, request_id } = answer?;
    Ok(Answer { value: KeyShare::new(value.0), request_id })
}

/// Objects behind a switch.
struct Switched {
    objects: Arc<dyn ObjectStore>,
    cut: watch::Receiver<bool>,
    requests: Arc<AtomicU64>,
}

impl Switched {
    /// Counts a request that is not worth interrupting, or must not be: half begun, nobody would know what to abort.
    fn begin(&self, operation: &'static str) -> Result<(), CallError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if *self.cut.borrow() { Err(interrupted(operation)) } else { Ok(()) }
    }

    /// Counts a request, and ends it when the run is interrupted.
    async fn pass<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, CallError>> + Send,
    ) -> Result<T, CallError> {
        self.begin(operation)?;
        tokio::select! {
            () = off(self.cut.clone()) => Err(interrupted(operation)),
            done = call => done,
        }
    }
}

/// Waits until requests are cut off.
async fn off(mut cut: watch::Receiver<bool>) {
    if cut.wait_for(|cut| *cut).await.is_err() {
        // The run is over, so nobody is left to interrupt anything.
        std::future::pending::<()>().await;
    }
}

fn interrupted(operation: &'static str) -> CallError {
    CallError::unanswered(operation, Cause::Rejected, "not sent: the run is ending")
}

#[async_trait]
impl ObjectStore for Switched {
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        most: u16,
    ) -> Result<Answer<Page>, CallError> {
        self.pass("s3:ListObjectsV2", self.objects.list(bucket, prefix, after, most)).await
    }

    async fn head(&self, bucket: &str, key: &str) -> Result<Answer<Object>, CallError> {
        self.pass("s3:HeadObject", self.objects.head(bucket, key)).await
    }

    async fn checksums(&self, bucket: &str, key: &str, etag: Option<&str>) -> Result<Answer<Object>, CallError> {
        self.pass("s3:HeadObject", self.objects.checksums(bucket, key, etag)).await
    }

    async fn get(
        &self,
        bucket: &str,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<Answer<(Object, Pieces)>, CallError> {
        const OPERATION: &str = "s3:GetObject";
        let Answer { value: (object, pieces), request_id } =
            self.pass(OPERATION, self.objects.get(bucket, key, etag, range)).await?;
        // A body that stands still must not outlive the run either; nor may it look complete when it was cut.
        let cut = self.cut.clone();
        let end = stream::once(async move { cut.borrow().then(|| Err(interrupted(OPERATION))) });
        let pieces = pieces.take_until(off(self.cut.clone())).chain(end.filter_map(std::future::ready)).boxed();
        Ok(Answer { value: (object, pieces), request_id })
    }

    async fn put(
        &self,
        target: &UploadTarget,
        settings: &UploadSettings,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        self.pass("s3:PutObject", self.objects.put(target, settings, body, crc64nvme)).await
    }

    async fn begin_upload(
        &self,
        target: &UploadTarget,
        settings: &UploadSettings,
    ) -> Result<Answer<(String, Encryption)>, CallError> {
        self.begin("s3:CreateMultipartUpload")?;
        self.objects.begin_upload(target, settings).await
    }

    async fn upload_part(
        &self,
        target: &UploadTarget,
        upload: &str,
        number: u16,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Part>, CallError> {
        self.pass("s3:UploadPart", self.objects.upload_part(target, upload, number, body, crc64nvme)).await
    }

    async fn complete_upload(
        &self,
        target: &UploadTarget,
        settings: &UploadSettings,
        upload: &str,
        parts: &[Part],
        size: u64,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        self.begin("s3:CompleteMultipartUpload")?;
        self.objects.complete_upload(target, settings, upload, parts, size, crc64nvme).await
    }

    async fn abort_upload(&self, target: &UploadTarget, upload: &str) -> Result<Answer<()>, CallError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.objects.abort_upload(target, upload).await
    }

    async fn remove(&self, target: &UploadTarget, stored: &Stored) -> Result<Answer<()>, CallError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.objects.remove(target, stored).await
    }

    async fn bucket_encryption(&self, bucket: &str) -> Result<Answer<Encryption>, CallError> {
        self.pass("s3:GetBucketEncryption", self.objects.bucket_encryption(bucket)).await
    }

    async fn bucket_region(&self, bucket: &str) -> Result<Answer<String>, CallError> {
        self.pass("s3:HeadBucket", self.objects.bucket_region(bucket)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_credentials_is_told_by_its_name() {
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_SECURITY_TOKEN",
            "AWS_CREDENTIAL_EXPIRATION",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_CREDENTIAL_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_BEARER_TOKEN_BEDROCK",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_CONFIG_FILE",
            "AWS_PROFILE",
            "AWS_DEFAULT_PROFILE",
            "AWS_SECRET_KEY",
            "AWS_LOGIN_CACHE_DIRECTORY",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            "SECRET_ACCESS_KEY",
        ] {
            assert!(leads_to_credentials(name.as_ref()), "{name}");
        }
        for name in [
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_CA_BUNDLE",
            "AWS_ENDPOINT_URL_S3",
            "AWS_BATCH_JOB_ARRAY_INDEX",
            "AWS_MAX_ATTEMPTS",
            "AWS_EC2_METADATA_DISABLED",
            "PATH",
            "GITHUB_TOKEN",
        ] {
            assert!(!leads_to_credentials(name.as_ref()), "{name}");
        }
    }
}
