//! The one way to AWS: every call passes here, is cut off when the run ends, counted, and recorded in the audit trail.
//!
//! A [`Cloud`](super::Cloud) has no service that is not behind its gate, so no answer can be missing in the trail.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::sync::watch;

use super::{
    Answer, CallError, Cause, DataKey, Encryption, EncryptionContext, Grant, Identity, IdentityService, KeyFacts,
    KeyService, NO_UPLOAD, Object, ObjectStore, Page, PageStart, Part, Pieces, Services, Stored, UploadSettings,
    outcome,
};
use crate::audit::{Caller, Event, S3, Trail};
use crate::spec::{Arn, S3Uri};

type Outcome<T> = Result<Answer<T>, CallError>;

/// What all connections of a run pass, one after the other. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate {
    cut: Arc<watch::Sender<bool>>,
    requests: Arc<AtomicU64>,
    trail: Arc<Trail>,
}

impl Gate {
    /// An open gate that records in `trail`.
    pub fn new(trail: Arc<Trail>) -> Self {
        Self { trail, ..Self::default() }
    }

    /// From now on calls fail at once, those under way too, but for the ones that clear away.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Requests to S3 so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The services behind this gate; they were made for `region`.
    pub(super) fn before(&self, services: Services, region: &str) -> Services {
        let gated = Arc::new(Gated { services, region: region.to_owned(), gate: self.clone() });
        Services { objects: gated.clone(), keys: gated.clone(), identity: gated }
    }

    /// Waits until the gate is cut.
    async fn off(self) {
        // It keeps the sender, so this cannot fail.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }
}

/// When a cut gate stops a call.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// Before and while it is under way.
    Anytime,
    /// Before it is sent only: half begun, nobody would know what to abort.
    Before,
    /// Never: it clears away.
    Never,
}

/// A call, as the trail tells of it.
struct Call {
    operation: &'static str,
    event: Event,
    stop: Stop,
}

impl Call {
    fn new(operation: &'static str) -> Self {
        Self { operation, event: Event::call(operation), stop: Stop::Anytime }
    }

    fn of_bucket(operation: &'static str, bucket: &str) -> Self {
        Self::new(operation).on(format!("s3://{bucket}")).with("bucketName", bucket)
    }

    fn of_object(operation: &'static str, bucket: &str, key: &str) -> Self {
        Self::of_bucket(operation, bucket).on(format!("s3://{bucket}/{key}")).with("key", key)
    }

    fn to(operation: &'static str, target: &S3Uri) -> Self {
        Self::of_object(operation, &target.bucket, &target.key)
    }

    fn of_key(operation: &'static str, key: &str) -> Self {
        let call = Self::new(operation).with("keyId", key);
        if Arn::parse(key).is_some() { call.on(key) } else { call }
    }

    /// A dry run.
    fn trying(operation: &'static str, key: &str) -> Self {
        Self::of_key(operation, key).with("dryRun", true)
    }

    fn on(self, resource: impl Into<String>) -> Self {
        Self { event: self.event.on(resource), ..self }
    }

    fn with(self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        Self { event: self.event.with(name, value), ..self }
    }

    fn stopped(self, stop: Stop) -> Self {
        Self { stop, ..self }
    }
}

struct Gated {
    services: Services,
    region: String,
    gate: Gate,
}

impl Gated {
    /// Makes a call, and records its end.
    async fn pass<T>(&self, call: Call, answer: impl Future<Output = Outcome<T>> + Send) -> Outcome<T> {
        let Call { operation, event, stop } = call;
        let of_s3 = event.source == S3;
        self.gate.requests.fetch_add(of_s3.into(), Ordering::Relaxed);
        let ended = match *self.gate.cut.borrow() && stop != Stop::Never {
            true => Err(interrupted(operation)),
            false => tokio::select! {
                () = self.gate.clone().off(), if stop == Stop::Anytime => Err(interrupted(operation)),
                ended = answer => ended,
            },
        };
        self.gate.trail.record(&event.ended(outcome(&ended)));
        ended
    }

    /// An answer may get lost on its way; the next attempt of the same call then meets what the first one has made. `stop`:
    /// when to look for that is too late.
    async fn or_made_before(
        &self,
        ended: Outcome<Stored>,
        target: &S3Uri,
        (size, crc64nvme): (u64, u64),
        stop: Stop,
    ) -> Outcome<Stored> {
        match ended {
            Err(error) if error.repeated && (error.cause == Cause::Precondition || error.code == NO_UPLOAD) => {
                let look = self.services.objects.checksums(&target.bucket, &target.key, None);
                match self.pass(Call::to("s3:HeadObject", target).stopped(stop), look).await {
                    Ok(Answer { value, request_id }) if value.has(size, crc64nvme) => {
                        Ok(Answer { value: value.into(), request_id })
                    }
                    _ => Err(error),
                }
            }
            ended => ended,
        }
    }
}

fn interrupted(operation: &'static str) -> CallError {
    CallError::unanswered(operation, Cause::Rejected, "not sent: the run is ending")
}

#[async_trait]
impl ObjectStore for Gated {
    async fn list(&self, bucket: &str, prefix: &str, start: Option<&PageStart>, most: u16) -> Outcome<Page> {
        let call = Call::of_bucket("s3:ListObjectsV2", bucket).with("prefix", prefix);
        self.pass(call, self.services.objects.list(bucket, prefix, start, most)).await
    }

    async fn head(&self, bucket: &str, key: &str) -> Outcome<Object> {
        self.pass(Call::of_object("s3:HeadObject", bucket, key), self.services.objects.head(bucket, key)).await
    }

    async fn checksums(&self, bucket: &str, key: &str, etag: Option<&str>) -> Outcome<Object> {
        let call = Call::of_object("s3:HeadObject", bucket, key);
        self.pass(call, self.services.objects.checksums(bucket, key, etag)).await
    }

    async fn get(
        &self,
        bucket: &str,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Outcome<(Object, Pieces)> {
        const OPERATION: &str = "s3:GetObject";
        let call = || Call::of_object(OPERATION, bucket, key);
        let answer = self.pass(call(), self.services.objects.get(bucket, key, etag, range)).await?;
        let Answer { value: (object, pieces), request_id } = answer;
        // A body that stands still must not outlive the run either; nor may it look complete when it was cut.
        let gate = self.gate.clone();
        let end = stream::once(async move { gate.cut.borrow().then(|| Err(interrupted(OPERATION))) });
        let pieces = pieces.take_until(self.gate.clone().off()).chain(end.filter_map(std::future::ready));
        let (trail, event) = (self.gate.trail.clone(), call().event);
        let pieces = pieces.inspect_err(move |error| {
            trail.record(&event.clone().ended(Err((&error.code, &error.message, &error.request_id))));
        });
        Ok(Answer { value: (object, pieces.boxed()), request_id })
    }

    async fn put(&self, target: &S3Uri, settings: &UploadSettings, body: Bytes, crc64nvme: u64) -> Outcome<Stored> {
        let contents = (body.len() as u64, crc64nvme);
        let call = Call::to("s3:PutObject", target);
        let ended = self.pass(call, self.services.objects.put(target, settings, body, crc64nvme)).await;
        self.or_made_before(ended, target, contents, Stop::Anytime).await
    }

    async fn begin_upload(&self, target: &S3Uri, settings: &UploadSettings) -> Outcome<(String, Encryption)> {
        let call = Call::to("s3:CreateMultipartUpload", target).stopped(Stop::Before);
        self.pass(call, self.services.objects.begin_upload(target, settings)).await
    }

    async fn upload_part(
        &self,
        target: &S3Uri,
        upload: &str,
        number: u16,
        body: Bytes,
        crc64nvme: u64,
    ) -> Outcome<Part> {
        let answer = self.services.objects.upload_part(target, upload, number, body, crc64nvme);
        self.pass(Call::to("s3:UploadPart", target), answer).await
    }

    async fn complete_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        upload: &str,
        parts: &[Part],
        size: u64,
        crc64nvme: u64,
    ) -> Outcome<Stored> {
        let call = Call::to("s3:CompleteMultipartUpload", target).stopped(Stop::Before);
        let answer = self.services.objects.complete_upload(target, settings, upload, parts, size, crc64nvme);
        let ended = self.pass(call, answer).await;
        // Even when the run is ending: an object that is visible and that nobody knows would stay.
        self.or_made_before(ended, target, (size, crc64nvme), Stop::Never).await
    }

    async fn abort_upload(&self, target: &S3Uri, upload: &str) -> Outcome<()> {
        let call = Call::to("s3:AbortMultipartUpload", target).stopped(Stop::Never);
        self.pass(call, self.services.objects.abort_upload(target, upload)).await
    }

    async fn remove(&self, target: &S3Uri, stored: &Stored) -> Outcome<()> {
        let call = Call::to("s3:DeleteObject", target).stopped(Stop::Never);
        self.pass(call, self.services.objects.remove(target, stored)).await
    }

    async fn bucket_encryption(&self, bucket: &str) -> Outcome<Encryption> {
        let call = Call::of_bucket("s3:GetBucketEncryption", bucket);
        self.pass(call, self.services.objects.bucket_encryption(bucket)).await
    }

    async fn bucket_region(&self, bucket: &str) -> Outcome<String> {
        self.pass(Call::of_bucket("s3:HeadBucket", bucket), self.services.objects.bucket_region(bucket)).await
    }
}

#[async_trait]
impl KeyService for Gated {
    async fn describe(&self, key: &str) -> Outcome<KeyFacts> {
        self.pass(Call::of_key("kms:DescribeKey", key), self.services.keys.describe(key)).await
    }

    async fn try_generate(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let call = Call::trying("kms:GenerateDataKey", key).with("encryptionContext", json!(context));
        self.pass(call, self.services.keys.try_generate(key, context)).await
    }

    async fn try_decrypt(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let call = Call::trying("kms:Decrypt", key).with("encryptionContext", json!(context));
        self.pass(call, self.services.keys.try_decrypt(key, context)).await
    }

    async fn try_grant(&self, key: &str, grantee: &str, operations: &[&str]) -> Outcome<()> {
        let call = Call::trying("kms:CreateGrant", key).with("granteePrincipal", grantee);
        let mut call = call.with("operations", json!(operations));
        call.event.read_only = true;
        self.pass(call, self.services.keys.try_grant(key, grantee, operations)).await
    }

    async fn grants(&self, key: &str) -> Outcome<Vec<Grant>> {
        self.pass(Call::of_key("kms:ListGrants", key), self.services.keys.grants(key)).await
    }

    async fn generate(&self, key: &str, context: &EncryptionContext) -> Outcome<DataKey> {
        let call = Call::new("kms:GenerateDataKey").on(key).with("encryptionContext", json!(context));
        self.pass(call, self.services.keys.generate(key, context)).await
    }
}

#[async_trait]
impl IdentityService for Gated {
    /// Every event of the trail names the caller from then on.
    async fn whoami(&self) -> Outcome<Identity> {
        let ended = self.pass(Call::new("sts:GetCallerIdentity"), self.services.identity.whoami()).await;
        if let Ok(Answer { value: Identity { arn, account, user_id }, .. }) = ended.clone() {
            let region = self.region.clone();
            self.gate.trail.identify(Caller { arn, account, principal_id: user_id, region });
        }
        ended
    }
}
