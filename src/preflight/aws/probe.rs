//! Calls of AWS as preflight makes them; each one is recorded in the trail.

use std::future::ready;
use std::ops::Range;

use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::json;

use crate::audit::{Caller, Event, Trail};
use crate::aws::{
    Answer, CallError, Cloud, Encryption, EncryptionContext, Grant, Identity, KeyFacts, Object, Page, Part,
    UploadSettings, UploadTarget, outcome,
};
use crate::spec::S3Uri;

/// Calls under way at once, of one kind.
pub(super) const CONCURRENCY: usize = 64;
/// The one byte that the part of a probe has. It is never to be read.
const BYTE: &[u8] = b"?";

type Outcome<T> = Result<Answer<T>, CallError>;

/// The services, and the trail of what was asked of them.
#[derive(Clone, Copy)]
pub(in crate::preflight) struct Probe<'a> {
    cloud: &'a Cloud,
    trail: &'a Trail,
}

impl<'a> Probe<'a> {
    pub(in crate::preflight) fn new(cloud: &'a Cloud, trail: &'a Trail) -> Self {
        Self { cloud, trail }
    }

    /// P10: who calls. Every event of the trail names the caller from then on.
    pub(in crate::preflight) async fn whoami(&self) -> Outcome<Identity> {
        let outcome = self.cloud.identity.whoami().await;
        self.record(Event::call("sts:GetCallerIdentity"), &outcome);
        if let Ok(Answer { value: Identity { arn, account, user_id }, .. }) = outcome.clone() {
            let region = self.cloud.region.clone();
            self.trail.identify(Caller { arn, account, principal_id: user_id, region });
        }
        outcome
    }

    pub(super) async fn list(&self, uri: &S3Uri, after: Option<&str>, most: u16) -> Outcome<Page> {
        let outcome = self.cloud.objects.list(&uri.bucket, &uri.key, after, most).await;
        self.record(about_bucket("s3:ListObjectsV2", &uri.bucket).with("prefix", uri.key.as_str()), &outcome);
        outcome
    }

    /// P4: what an object is. Needs no KMS.
    pub(super) async fn head(&self, uri: &S3Uri) -> Outcome<Object> {
        let (objects, at) = (self.cloud.objects.clone(), uri.clone());
        let outcome = self.cloud.spread(async move { objects.head(&at.bucket, &at.key).await }).await;
        self.record(about_object("s3:HeadObject", &uri.bucket, &uri.key), &outcome);
        outcome
    }

    /// P3: reads the first byte, if there is one, of the object as it was seen.
    pub(super) async fn read(&self, uri: &S3Uri, seen: Option<&Object>) -> Outcome<()> {
        let range = seen.is_none_or(|seen| seen.size > 0).then_some(0..1);
        let outcome = self.first_byte(uri, seen.and_then(|seen| seen.etag.as_deref()), range).await;
        self.record(about_object("s3:GetObject", &uri.bucket, &uri.key), &outcome);
        outcome
    }

    async fn first_byte(&self, uri: &S3Uri, etag: Option<&str>, range: Option<Range<u64>>) -> Outcome<()> {
        let Answer { value: (_, pieces), request_id } =
            self.cloud.objects.get(&uri.bucket, &uri.key, etag, range).await?;
        pieces.try_for_each(|_| ready(Ok(()))).await?;
        Ok(Answer { value: (), request_id })
    }

    /// P1: begins an upload. What is begun must be aborted.
    pub(super) async fn begin(
        &self,
        target: &UploadTarget,
        settings: &UploadSettings,
    ) -> Outcome<(String, Encryption)> {
        let outcome = self.cloud.objects.begin_upload(target, settings).await;
        self.record(about_object("s3:CreateMultipartUpload", &target.bucket, &target.key), &outcome);
        outcome
    }

    /// P2: sends one byte to it.
    pub(super) async fn part(&self, target: &UploadTarget, upload: &str) -> Outcome<Part> {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, BYTE);
        let outcome = self.cloud.objects.upload_part(target, upload, 1, Bytes::from_static(BYTE), crc).await;
        self.record(about_object("s3:UploadPart", &target.bucket, &target.key), &outcome);
        outcome
    }

    pub(super) async fn abort(&self, target: &UploadTarget, upload: &str) -> Outcome<()> {
        let outcome = self.cloud.objects.abort_upload(target, upload).await;
        self.record(about_object("s3:AbortMultipartUpload", &target.bucket, &target.key), &outcome);
        outcome
    }

    /// P9, the part of it that explains: what the bucket encrypts with.
    pub(super) async fn default_encryption(&self, bucket: &str) -> Outcome<Encryption> {
        let outcome = self.cloud.objects.bucket_encryption(bucket).await;
        self.record(about_bucket("s3:GetBucketEncryption", bucket), &outcome);
        outcome
    }

    pub(super) async fn region(&self, bucket: &str) -> Outcome<String> {
        let outcome = self.cloud.objects.bucket_region(bucket).await;
        self.record(about_bucket("s3:HeadBucket", bucket), &outcome);
        outcome
    }

    /// P7: what a key is.
    pub(super) async fn describe(&self, key: &str) -> Outcome<KeyFacts> {
        let outcome = self.cloud.keys.describe(key).await;
        self.record(about_key("kms:DescribeKey", key), &outcome);
        outcome
    }

    /// P5.
    pub(super) async fn try_generate(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let outcome = self.cloud.keys.try_generate(key, context).await;
        self.record(dry("kms:GenerateDataKey", key).with("encryptionContext", json!(context)), &outcome);
        outcome
    }

    /// P6.
    pub(super) async fn try_decrypt(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let outcome = self.cloud.keys.try_decrypt(key, context).await;
        self.record(dry("kms:Decrypt", key).with("encryptionContext", json!(context)), &outcome);
        outcome
    }

    pub(super) async fn try_grant(&self, key: &str, grantee: &str, operations: &[&str]) -> Outcome<()> {
        let outcome = self.cloud.keys.try_grant(key, grantee, operations).await;
        let event = dry("kms:CreateGrant", key).with("granteePrincipal", grantee).with("operations", json!(operations));
        self.record(Event { read_only: true, ..event }, &outcome);
        outcome
    }

    pub(super) async fn grants(&self, key: &str) -> Outcome<Vec<Grant>> {
        let outcome = self.cloud.keys.grants(key).await;
        self.record(about_key("kms:ListGrants", key), &outcome);
        outcome
    }

    fn record<T>(&self, event: Event, result: &Outcome<T>) {
        self.trail.record(&event.ended(outcome(result)));
    }
}

fn about_bucket(operation: &'static str, bucket: &str) -> Event {
    Event::call(operation).on(format!("s3://{bucket}")).with("bucketName", bucket)
}

fn about_object(operation: &'static str, bucket: &str, key: &str) -> Event {
    about_bucket(operation, bucket).on(format!("s3://{bucket}/{key}")).with("key", key)
}

fn about_key(operation: &'static str, key: &str) -> Event {
    let event = Event::call(operation).with("keyId", key);
    if key.starts_with("arn:") { event.on(key) } else { event }
}

fn dry(operation: &'static str, key: &str) -> Event {
    about_key(operation, key).with("dryRun", true)
}
