//! Calls of AWS as preflight makes them: each one is recorded in the trail, none leaves anything behind unsaid.

use bytes::Bytes;
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use crate::audit::{Event, Trail};
use crate::s3::{
    Answer, CallError, Cloud, Encryption, EncryptionContext, Identity, KeyFacts, Object, Page, Part, UploadSettings,
    UploadTarget,
};
use crate::spec::S3Uri;

/// Calls under way at once, of one kind.
pub(super) const CONCURRENCY: usize = 64;
/// The one byte that the part of a probe has. It is never to be read.
const BYTE: &[u8] = b"?";

type Outcome<T> = Result<Answer<T>, CallError>;

/// The services, and the trail of what was asked of them.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    cloud: &'a Cloud,
    trail: &'a Trail,
}

impl<'a> Probe<'a> {
    pub(super) fn new(cloud: &'a Cloud, trail: &'a Trail) -> Self {
        Self { cloud, trail }
    }

    /// P10: who calls.
    pub(super) async fn whoami(&self) -> Outcome<Identity> {
        let outcome = self.cloud.identity.whoami().await;
        self.record("GetCallerIdentity", STS, None, Value::Null, true, &outcome);
        outcome
    }

    pub(super) async fn list(&self, uri: &S3Uri, after: Option<&str>, most: u16) -> Outcome<Page> {
        let outcome = self.cloud.objects.list(&uri.bucket, &uri.key, after, most).await;
        let parameters = json!({ "bucketName": uri.bucket, "prefix": uri.key });
        self.record("ListObjectsV2", S3, Some(bucket_arn(&uri.bucket)), parameters, true, &outcome);
        outcome
    }

    /// P4: what an object is. Needs no KMS.
    pub(super) async fn head(&self, uri: &S3Uri) -> Outcome<Object> {
        let outcome = self.cloud.objects.head(&uri.bucket, &uri.key).await;
        self.record("HeadObject", S3, Some(object_arn(uri)), named(uri), true, &outcome);
        outcome
    }

    /// P3: reads the first byte, if there is one, of the object as it was seen.
    pub(super) async fn read(&self, uri: &S3Uri, seen: Option<&Object>) -> Outcome<()> {
        let range = seen.is_none_or(|seen| seen.size > 0).then_some(0..1);
        let outcome = self.first_byte(uri, seen.map(|seen| seen.etag.as_str()), range).await;
        self.record("GetObject", S3, Some(object_arn(uri)), named(uri), true, &outcome);
        outcome
    }

    async fn first_byte(&self, uri: &S3Uri, etag: Option<&str>, range: Option<std::ops::Range<u64>>) -> Outcome<()> {
        let Answer { value: (_, pieces), request_id } =
            self.cloud.objects.get(&uri.bucket, &uri.key, etag, range).await?;
        pieces.try_for_each(|_| std::future::ready(Ok(()))).await?;
        Ok(Answer { value: (), request_id })
    }

    /// P1: begins an upload. What is begun must be aborted.
    pub(super) async fn begin(
        &self,
        target: &UploadTarget,
        settings: &UploadSettings,
    ) -> Outcome<(String, Encryption)> {
        let outcome = self.cloud.objects.begin_upload(target, settings).await;
        let resource = format!("{}/{}", bucket_arn(&target.bucket), target.key);
        self.record("CreateMultipartUpload", S3, Some(resource), place(target), false, &outcome);
        outcome
    }

    /// P2: sends one byte to it.
    pub(super) async fn part(&self, target: &UploadTarget, upload: &str) -> Outcome<Part> {
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, BYTE);
        let outcome = self.cloud.objects.upload_part(target, upload, 1, Bytes::from_static(BYTE), crc).await;
        let resource = format!("{}/{}", bucket_arn(&target.bucket), target.key);
        self.record("UploadPart", S3, Some(resource), place(target), false, &outcome);
        outcome
    }

    pub(super) async fn abort(&self, target: &UploadTarget, upload: &str) -> Outcome<()> {
        let outcome = self.cloud.objects.abort_upload(target, upload).await;
        let resource = format!("{}/{}", bucket_arn(&target.bucket), target.key);
        self.record("AbortMultipartUpload", S3, Some(resource), place(target), false, &outcome);
        outcome
    }

    /// P9, the part of it that explains: what the bucket encrypts with.
    pub(super) async fn default_encryption(&self, bucket: &str) -> Outcome<Encryption> {
        let outcome = self.cloud.objects.bucket_encryption(bucket).await;
        let parameters = json!({ "bucketName": bucket });
        self.record("GetBucketEncryption", S3, Some(bucket_arn(bucket)), parameters, true, &outcome);
        outcome
    }

    pub(super) async fn region(&self, bucket: &str) -> Outcome<String> {
        let outcome = self.cloud.objects.bucket_region(bucket).await;
        let parameters = json!({ "bucketName": bucket });
        self.record("HeadBucket", S3, Some(bucket_arn(bucket)), parameters, true, &outcome);
        outcome
    }

    /// P7: what a key is.
    pub(super) async fn describe(&self, key: &str) -> Outcome<KeyFacts> {
        let outcome = self.cloud.keys.describe(key).await;
        self.record("DescribeKey", KMS, Some(key.to_owned()), json!({ "keyId": key }), true, &outcome);
        outcome
    }

    /// P5.
    pub(super) async fn try_generate(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let outcome = self.cloud.keys.try_generate(key, context).await;
        self.record("GenerateDataKey", KMS, Some(key.to_owned()), dry(key, context), true, &outcome);
        outcome
    }

    /// P6.
    pub(super) async fn try_decrypt(&self, key: &str, context: &EncryptionContext) -> Outcome<()> {
        let outcome = self.cloud.keys.try_decrypt(key, context).await;
        self.record("Decrypt", KMS, Some(key.to_owned()), dry(key, context), true, &outcome);
        outcome
    }

    fn record<T>(
        &self,
        name: &'static str,
        source: &'static str,
        resource: Option<String>,
        parameters: Value,
        read_only: bool,
        outcome: &Outcome<T>,
    ) {
        let (request_id, error) = match outcome {
            Ok(answer) => (&answer.request_id, None),
            Err(failed) => (&failed.request_id, Some((failed.code.clone(), failed.message.clone()))),
        };
        let request_id = (!request_id.is_empty()).then(|| request_id.clone());
        self.trail.record(&Event { name, source, resource, parameters, request_id, error, read_only });
    }
}

const S3: &str = "s3.amazonaws.com";
const KMS: &str = "kms.amazonaws.com";
const STS: &str = "sts.amazonaws.com";

/// ARN of a bucket, in the partition of AWS itself: that of the caller may differ, and then only the display does.
pub(super) fn bucket_arn(bucket: &str) -> String {
    format!("arn:aws:s3:::{bucket}")
}

pub(super) fn object_arn(uri: &S3Uri) -> String {
    format!("arn:aws:s3:::{}/{}", uri.bucket, uri.key)
}

fn named(uri: &S3Uri) -> Value {
    json!({ "bucketName": uri.bucket, "key": uri.key })
}

fn place(target: &UploadTarget) -> Value {
    json!({ "bucketName": target.bucket, "key": target.key })
}

fn dry(key: &str, context: &EncryptionContext) -> Value {
    json!({ "keyId": key, "encryptionContext": context, "dryRun": true })
}
