//! `ObjectStore` on S3. A bucket in another Region is followed there, and remembered.

use std::collections::HashMap;
use std::ops::Range;

use async_trait::async_trait;
use aws_config::Region;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::{RetryPartition, TokenBucket};
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, EncodingType,
};
use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;

use super::config::{Patience, Shared};
use super::convert::{self, answer};
use super::{Regional, attempts::Attempts, classify};
use crate::aws::{
    Answer, CallError, Cause, Encryption, NO_UPLOAD, Object, ObjectStore, ObjectSummary, Page, PageStart, Part, Pieces,
    SLOWEST, Stored, UploadSettings,
};
use crate::spec::S3Uri;

pub(super) struct Objects {
    clients: Regional<Client>,
    /// Regions of buckets that are not at home.
    regions: Mutex<HashMap<String, String>>,
    patience: Patience,
}

impl Objects {
    /// The SDK adds no checksums of its own: uploads carry the CRC-64/NVME that the caller computed once, and
    /// downloads are checked where [`ObjectStore::get`] says so.
    pub(super) fn new(shared: &Shared) -> Self {
        let mut config = Builder::from(&shared.sdk)
            .force_path_style(shared.endpoints.s3.is_some())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Attempts are counted for each call. A budget for all of them would end a run in which many parts meet
            // the same short outage.
            .retry_partition(RetryPartition::custom("runseal").token_bucket(TokenBucket::unlimited()).build());
        config.set_endpoint_url(shared.endpoints.s3.clone());
        Self {
            clients: Regional::new(Client::from_conf(config.build())),
            regions: Mutex::default(),
            patience: shared.patience,
        }
    }

    /// Settings of a call that sends `bytes` of contents.
    fn sending(&self, bytes: u64) -> Builder {
        Builder::default().retry_config(self.patience.retries()).timeout_config(self.patience.upload(bytes))
    }

    /// Sends by the client of the bucket's Region, and again if the answer names another one.
    async fn call<T, E, F>(
        &self,
        operation: &'static str,
        bucket: &str,
        send: impl Fn(Client) -> F + Send,
    ) -> Result<T, CallError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E>>> + Send,
    {
        let client = self.client(bucket);
        let asked = client.config().region().map(|region| region.as_ref().to_owned());
        let error = match send(client).await {
            Ok(output) => return Ok(output),
            Err(error) => error,
        };
        match classify::other_region(&error) {
            Some(region) if Some(region) != asked.as_deref() => {
                tracing::debug!(operation, region, "the bucket is in another Region");
                self.regions.lock().insert(bucket.to_owned(), region.to_owned());
                send(self.client(bucket)).await.map_err(|error| classify::call(operation, &error))
            }
            _ => Err(classify::call(operation, &error)),
        }
    }

    fn client(&self, bucket: &str) -> Client {
        let region = self.regions.lock().get(bucket).cloned();
        match region {
            Some(region) => self.clients.of(&region, |home| {
                Client::from_conf(home.config().to_builder().region(Region::new(region.clone())).build())
            }),
            None => self.clients.home.clone(),
        }
    }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start: Option<&PageStart>,
        most: u16,
    ) -> Result<Answer<Page>, CallError> {
        let (after, token) = match start {
            None => (None, None),
            Some(PageStart::After(key)) => (Some(key), None),
            Some(PageStart::Token(token)) => (None, Some(token)),
        };
        let mut encoding = None;
        let output = loop {
            let send = |client: Client| {
                let request = client.list_objects_v2().bucket(bucket).prefix(prefix).max_keys(most.into());
                let request = request.set_start_after(after.cloned()).set_continuation_token(token.cloned());
                request.set_encoding_type(encoding.clone()).send()
            };
            match self.call(LIST, bucket, send).await {
                // Keys may hold what XML cannot. Not asked for at once, because not all servers encode.
                Err(error) if encoding.is_none() && error.status == 200 => encoding = Some(EncodingType::Url),
                output => break output?,
            }
        };
        let mut page = Page::default();
        for object in output.contents() {
            let key = object.key().unwrap_or_default();
            let key = if encoding.is_some() { decode(key)? } else { key.to_owned() };
            let etag = object.e_tag().map(str::to_owned);
            page.objects.push(ObjectSummary { key, size: convert::size(object.size()), etag });
        }
        page.next = output.next_continuation_token().map(|token| PageStart::Token(token.to_owned()));
        Ok(answer(page, &output))
    }

    async fn head(&self, bucket: &str, key: &str) -> Result<Answer<Object>, CallError> {
        let send = |client: Client| client.head_object().bucket(bucket).key(key).send();
        let output = self.call("s3:HeadObject", bucket, send).await?;
        Ok(answer(convert::headed(&output), &output))
    }

    async fn checksums(&self, bucket: &str, key: &str, etag: Option<&str>) -> Result<Answer<Object>, CallError> {
        let send = |client: Client| {
            let request = client.head_object().bucket(bucket).key(key).checksum_mode(ChecksumMode::Enabled);
            request.set_if_match(etag.map(str::to_owned)).send()
        };
        let output = self.call("s3:HeadObject", bucket, send).await?;
        Ok(answer(convert::headed(&output), &output))
    }

    async fn get(
        &self,
        bucket: &str,
        key: &str,
        etag: Option<&str>,
        range: Option<Range<u64>>,
    ) -> Result<Answer<(Object, Pieces)>, CallError> {
        let text = range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let send = |client: Client| {
            let request = client.get_object().bucket(bucket).key(key).set_if_match(etag.map(str::to_owned));
            let request = match &text {
                Some(text) => request.range(text),
                None => request.checksum_mode(ChecksumMode::Enabled),
            };
            let patient = Builder::default().retry_config(self.patience.retries());
            request.customize().config_override(patient.timeout_config(self.patience.download())).send()
        };
        let output = self.call(GET, bucket, send).await?;
        let (size, length) = extent(&output, range.as_ref())?;
        let object = convert::got(&output, size, range.is_some());
        let request_id = answer((), &output).request_id;
        Ok(Answer { value: (object, pieces(output.body, length)), request_id })
    }

    async fn put(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        let (crc, size) = (convert::crc_text(crc64nvme), body.len() as u64);
        let attempts = Attempts::default();
        let send = |client: Client| {
            let request = client.put_object().bucket(&target.bucket).key(&target.key);
            let request = request.checksum_crc64_nvme(&crc).body(ByteStream::from(body.clone()));
            let request = request.set_server_side_encryption(settings.sse.as_ref().and_then(convert::sse));
            let request = request.set_ssekms_key_id(settings.kms_key.clone());
            let request = request.set_if_none_match(free_key(settings)).customize().disable_payload_signing();
            request.config_override(self.sending(size)).interceptor(attempts.anew()).send()
        };
        let output = self.call("s3:PutObject", &target.bucket, send).await;
        let output = output.map_err(|error| attempts.told(error))?;
        let sse = output.server_side_encryption();
        let encryption = convert::encryption(sse, output.ssekms_key_id(), output.bucket_key_enabled());
        Ok(answer(convert::stored(output.e_tag(), output.version_id(), encryption), &output))
    }

    async fn begin_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
    ) -> Result<Answer<(String, Encryption)>, CallError> {
        let send = |client: Client| {
            let request = client.create_multipart_upload().bucket(&target.bucket).key(&target.key);
            let request = request.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme);
            let request = request.checksum_type(ChecksumType::FullObject);
            let request = request.set_server_side_encryption(settings.sse.as_ref().and_then(convert::sse));
            request.set_ssekms_key_id(settings.kms_key.clone()).send()
        };
        let output = self.call("s3:CreateMultipartUpload", &target.bucket, send).await?;
        let sse = output.server_side_encryption();
        let encryption = convert::encryption(sse, output.ssekms_key_id(), output.bucket_key_enabled());
        Ok(answer((output.upload_id().unwrap_or_default().to_owned(), encryption), &output))
    }

    async fn upload_part(
        &self,
        target: &S3Uri,
        upload: &str,
        number: u16,
        body: Bytes,
        crc64nvme: u64,
    ) -> Result<Answer<Part>, CallError> {
        let crc = convert::crc_text(crc64nvme);
        let send = |client: Client| {
            let request = client.upload_part().bucket(&target.bucket).key(&target.key).upload_id(upload);
            let request = request.part_number(number.into()).checksum_crc64_nvme(&crc);
            let request = request.body(ByteStream::from(body.clone())).customize().disable_payload_signing();
            request.config_override(self.sending(body.len() as u64)).send()
        };
        let output = self.call("s3:UploadPart", &target.bucket, send).await?;
        let etag = output.e_tag().unwrap_or_default().to_owned();
        Ok(answer(Part { number, etag, crc64nvme }, &output))
    }

    async fn complete_upload(
        &self,
        target: &S3Uri,
        settings: &UploadSettings,
        upload: &str,
        parts: &[Part],
        size: u64,
        crc64nvme: u64,
    ) -> Result<Answer<Stored>, CallError> {
        let crc = convert::crc_text(crc64nvme);
        let attempts = Attempts::default();
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts.iter().map(completed).collect())).build();
        let send = |client: Client| {
            let request = client.complete_multipart_upload().bucket(&target.bucket).key(&target.key);
            let request = request.upload_id(upload).multipart_upload(list.clone());
            let request = request.checksum_crc64_nvme(&crc).checksum_type(ChecksumType::FullObject);
            let request = request.mpu_object_size(i64::try_from(size).unwrap_or(i64::MAX));
            let request = request.set_if_none_match(free_key(settings)).customize();
            request.config_override(self.sending(JOINING)).interceptor(attempts.anew()).send()
        };
        let output = self.call("s3:CompleteMultipartUpload", &target.bucket, send).await;
        let output = output.map_err(|error| attempts.told(error))?;
        let sse = output.server_side_encryption();
        let encryption = convert::encryption(sse, output.ssekms_key_id(), output.bucket_key_enabled());
        Ok(answer(convert::stored(output.e_tag(), output.version_id(), encryption), &output))
    }

    async fn abort_upload(&self, target: &S3Uri, upload: &str) -> Result<Answer<()>, CallError> {
        let send = |client: Client| {
            client.abort_multipart_upload().bucket(&target.bucket).key(&target.key).upload_id(upload).send()
        };
        match self.call("s3:AbortMultipartUpload", &target.bucket, send).await {
            Ok(output) => Ok(answer((), &output)),
            Err(gone) if gone.code == NO_UPLOAD => Ok(Answer { value: (), request_id: gone.request_id }),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, target: &S3Uri, stored: &Stored) -> Result<Answer<()>, CallError> {
        let send = |client: Client| {
            let request = client.delete_object().bucket(&target.bucket).key(&target.key);
            match &stored.version {
                Some(version) => request.version_id(version).send(),
                None => request.set_if_match(stored.etag.clone()).send(),
            }
        };
        let output = self.call("s3:DeleteObject", &target.bucket, send).await?;
        Ok(answer((), &output))
    }

    async fn bucket_encryption(&self, bucket: &str) -> Result<Answer<Encryption>, CallError> {
        let send = |client: Client| client.get_bucket_encryption().bucket(bucket).send();
        let output = self.call("s3:GetBucketEncryption", bucket, send).await?;
        let rule = output.server_side_encryption_configuration().and_then(|set| set.rules().first());
        let default = rule.and_then(|rule| rule.apply_server_side_encryption_by_default());
        let encryption = convert::encryption(
            default.map(|default| default.sse_algorithm()),
            default.and_then(|default| default.kms_master_key_id()),
            rule.and_then(|rule| rule.bucket_key_enabled()),
        );
        Ok(answer(encryption, &output))
    }

    async fn bucket_region(&self, bucket: &str) -> Result<Answer<String>, CallError> {
        const OPERATION: &str = "s3:HeadBucket";
        match self.client(bucket).head_bucket().bucket(bucket).send().await {
            Ok(output) => Ok(answer(output.bucket_region().unwrap_or_default().to_owned(), &output)),
            Err(error) => {
                let failed = classify::call(OPERATION, &error);
                match classify::other_region(&error) {
                    Some(region) => Ok(Answer { value: region.to_owned(), request_id: failed.request_id }),
                    None => Err(failed),
                }
            }
        }
    }
}

const GET: &str = "s3:GetObject";
/// Joining parts may take S3 minutes (S3 API Reference, `CompleteMultipartUpload`): as long as this many bytes.
const JOINING: u64 = 600 * SLOWEST;
const LIST: &str = "s3:ListObjectsV2";

fn free_key(settings: &UploadSettings) -> Option<String> {
    (!settings.overwrite).then(|| "*".to_owned())
}

fn completed(part: &Part) -> CompletedPart {
    CompletedPart::builder()
        .part_number(part.number.into())
        .e_tag(&part.etag)
        .checksum_crc64_nvme(convert::crc_text(part.crc64nvme))
        .build()
}

/// Size of the object and length of the body, if the answer is for what was asked.
fn extent(output: &GetObjectOutput, range: Option<&Range<u64>>) -> Result<(u64, u64), CallError> {
    let length = convert::size(output.content_length());
    let Some(range) = range else { return Ok((length, length)) };
    let told = output.content_range().unwrap_or_default();
    let size = told.rsplit_once('/').and_then(|(_, size)| size.parse().ok());
    let start = format!("bytes {}-{}/", range.start, range.end.saturating_sub(1));
    match size {
        Some(size) if told.starts_with(&start) => Ok((size, range.end - range.start)),
        _ => {
            let text = format!(
                "bytes {}-{} were asked for, the answer has `{told}`: the object is shorter than it was",
                range.start,
                range.end.saturating_sub(1)
            );
            Err(CallError::unanswered(GET, Cause::Corrupt, text))
        }
    }
}

/// The body, which must have `length` bytes.
fn pieces(body: ByteStream, length: u64) -> Pieces {
    Box::pin(stream::unfold(Some((body, length)), |state| async {
        let (mut body, left) = state?;
        match body.next().await {
            Some(Ok(piece)) if piece.len() as u64 <= left => {
                let left = left - piece.len() as u64;
                Some((Ok(piece), Some((body, left))))
            }
            Some(Ok(_)) => Some((Err(wrong_length("more")), None)),
            Some(Err(error)) => Some((Err(classify::body(GET, &error)), None)),
            None if left == 0 => None,
            None => Some((Err(wrong_length("less")), None)),
        }
    }))
}

fn wrong_length(how: &str) -> CallError {
    CallError::unanswered(GET, Cause::Corrupt, format!("the body has {how} bytes than asked for"))
}

/// `encoding-type=url`: percent-encoded UTF-8, with `+` for a space.
fn decode(key: &str) -> Result<String, CallError> {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex(rest.next(), rest.next()).ok_or_else(|| unreadable(key))?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| unreadable(key))
}

fn hex(high: Option<u8>, low: Option<u8>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

fn unreadable(key: &str) -> CallError {
    CallError::unanswered(LIST, Cause::Rejected, format!("the key {key} in the listing is not UTF-8"))
}
