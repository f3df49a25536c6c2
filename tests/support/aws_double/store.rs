//! S3: objects and uploads in memory, with all that `s3s-fs` leaves out: encryption, full-object checksums, conditions,
//! archives, keys that are prefixes of other keys.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderValue};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Request, S3Response, S3Result};

use super::access::{NO_UPLOAD, Refusal};
use super::checksum;
use super::server::{Caller, Shared};
use super::world::{Bucket as Home, Encryption, Object as Stored, Upload, UploadedPart, World};

/// Smallest part, but for the last.
const SMALLEST_PART: usize = 5 << 20;

/// The operations, once they are allowed.
pub struct Store(pub Arc<Shared>);

#[async_trait::async_trait]
impl S3 for Store {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let encryption = req.extensions.get::<Encryption>().cloned().unwrap_or_default();
        let body = collect(req.input.body).await?;
        let trailers = req.trailing_headers.and_then(|trailers| trailers.take());
        let mut checksums = checksum::declared(&req.headers, trailers.as_ref());
        checksum::verify(&checksums, &req.headers, &body)?;
        if checksums.is_empty() {
            checksums.insert("crc64nvme".to_owned(), checksum::of("crc64nvme", &body));
        }
        let mut world = self.0.world.lock();
        let (bucket, key) = (&req.input.bucket, &req.input.key);
        admits(&world, bucket, key, req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let object = Stored {
            storage_class: req.input.storage_class.map(|class| class.as_str().to_owned()),
            checksums,
            metadata: req.input.metadata.unwrap_or_default().into_iter().collect(),
            ..Stored::new(body, encryption)
        };
        let object = world.store(bucket, key, object);
        let sum = checksum::answer(&object.checksums);
        let output = PutObjectOutput {
            e_tag: Some(ETag::Strong(object.etag.clone())),
            version_id: object.version.clone(),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            checksum_type: Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)),
            ..Default::default()
        };
        Ok(S3Response::with_headers(output, sse_headers(&object.encryption)))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let object = self.found(&req.input.bucket, &req.input.key)?;
        object.matches(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let size = object.body.len() as u64;
        let range = match req.input.range {
            Some(range) => range.check(size)?,
            None => 0..size,
        };
        let whole = range == (0..size);
        let body = object.body.slice(range.start as usize..range.end as usize);
        let sum = checksum::answer(&object.checksums_shown(req.input.checksum_mode.is_some() && whole));
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(body.len() as i64),
            content_range: req.input.range.map(|_| content_range(&range, size)),
            body: Some(StreamingBlob::from(Body::from(body))),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            storage_class: object.storage_class.clone().map(StorageClass::from),
            restore: object.restore.clone(),
            version_id: object.version.clone(),
            metadata: object.metadata_shown(),
            checksum_type: sum.any().then(|| object.checksum_type()),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..Default::default()
        };
        Ok(S3Response::with_headers(output, sse_headers(&object.encryption)))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.found(&req.input.bucket, &req.input.key)?;
        object.matches(req.input.if_match.as_ref(), req.input.if_none_match.as_ref())?;
        let sum = checksum::answer(&object.checksums_shown(req.input.checksum_mode.is_some()));
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(object.body.len() as i64),
            e_tag: Some(ETag::Strong(object.etag.clone())),
            last_modified: Some(object.modified.into()),
            storage_class: object.storage_class.clone().map(StorageClass::from),
            restore: object.restore.clone(),
            version_id: object.version.clone(),
            metadata: object.metadata_shown(),
            checksum_type: sum.any().then(|| object.checksum_type()),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..Default::default()
        };
        Ok(S3Response::with_headers(output, sse_headers(&object.encryption)))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut world = self.0.world.lock();
        let (bucket, key) = (&req.input.bucket, &req.input.key);
        let objects = &mut world.bucket(bucket).objects;
        let there = objects.get(key);
        if let (Some(condition), Some(object)) = (&req.input.if_match, there) {
            object.matches(Some(condition), None)?;
        }
        // Only the newest version is kept here; of any other there is nothing to remove.
        if req.input.version_id.is_none() || there.is_some_and(|object| object.version == req.input.version_id) {
            objects.remove(key);
            world.folder.forget(bucket, key);
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let encryption = req.extensions.get::<Encryption>().cloned().unwrap_or_default();
        let caller = req.extensions.get::<Caller>().cloned().unwrap_or_default();
        let algorithm = req.input.checksum_algorithm.as_ref().map_or("CRC64NVME", |algorithm| algorithm.as_str());
        let algorithm = algorithm.to_lowercase();
        let kind = req.input.checksum_type.as_ref().map(|kind| kind.as_str().to_owned());
        let full_object = match (algorithm.as_str(), kind.as_deref()) {
            ("crc64nvme", Some("COMPOSITE")) | ("sha1" | "sha256", Some("FULL_OBJECT")) => {
                let text = "The checksum type cannot be used with the specified checksum algorithm.";
                return Err(Refusal::new(400, "InvalidRequest", text).into());
            }
            ("crc64nvme", _) => true,
            (_, kind) => kind == Some("FULL_OBJECT"),
        };
        let mut world = self.0.world.lock();
        let id = format!("upload-{}", world.next());
        let output = CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket.clone()),
            key: Some(req.input.key.clone()),
            upload_id: Some(id.clone()),
            checksum_algorithm: Some(ChecksumAlgorithm::from(algorithm.to_uppercase())),
            checksum_type: Some(checksum_type(full_object)),
            ..Default::default()
        };
        let upload = Upload {
            bucket: req.input.bucket,
            key: req.input.key,
            persona: caller.persona,
            encryption: encryption.clone(),
            algorithm,
            algorithm_given: req.input.checksum_algorithm.is_some(),
            full_object,
            parts: BTreeMap::new(),
            metadata: req.input.metadata.unwrap_or_default().into_iter().collect(),
        };
        world.uploads.insert(id, upload);
        Ok(S3Response::with_headers(output, sse_headers(&encryption)))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let body = collect(req.input.body).await?;
        let trailers = req.trailing_headers.and_then(|trailers| trailers.take());
        let checksums = checksum::declared(&req.headers, trailers.as_ref());
        checksum::verify(&checksums, &req.headers, &body)?;
        let mut world = self.0.world.lock();
        let nonce = world.next();
        let upload = world.upload(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        let other = |algorithm: &&String| upload.algorithm_given && **algorithm != upload.algorithm;
        if let Some(other) = checksums.keys().find(other) {
            let text = format!(
                "Checksum Type mismatch occurred, expected checksum Type: {}, actual checksum Type: {other}",
                upload.algorithm
            );
            return Err(Refusal::new(400, "InvalidRequest", text).into());
        }
        let etag = etag_of(&body, &upload.encryption, nonce);
        upload.parts.insert(req.input.part_number, UploadedPart { body, etag: etag.clone() });
        let sum = checksum::answer(&checksums);
        let output = UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            ..Default::default()
        };
        Ok(S3Response::with_headers(output, sse_headers(&upload.encryption)))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let mut world = self.0.world.lock();
        let upload = world.upload(&input.upload_id, &input.bucket, &input.key)?.clone();
        let listed = input.multipart_upload.and_then(|list| list.parts).unwrap_or_default();
        let parts = chosen_parts(&upload, &listed)?;
        let body = join(&parts);
        if input.mpu_object_size.is_some_and(|size| size != body.len() as i64) {
            let text = "The provided 'x-amz-mp-object-size' header does not match the size of the object.";
            return Err(Refusal::new(400, "InvalidRequest", text).into());
        }
        let sum = if upload.full_object {
            checksum::of(&upload.algorithm, &body)
        } else {
            let bodies: Vec<&[u8]> = parts.iter().map(|part| &part.body[..]).collect();
            checksum::composite(&upload.algorithm, &bodies)
        };
        let declared = checksum::declared(&req.headers, None);
        if declared.get(&upload.algorithm).is_some_and(|declared| *declared != sum) {
            let text = format!("The {} you specified did not match the calculated checksum.", upload.algorithm);
            return Err(Refusal::new(400, "BadDigest", text).into());
        }
        admits(&world, &input.bucket, &input.key, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        world.uploads.remove(&input.upload_id);
        let etags: String = parts.iter().map(|part| part.etag.as_str()).collect();
        let object = Stored {
            etag: format!("{}-{}", checksum::md5(etags.as_bytes()), parts.len()),
            checksums: BTreeMap::from([(upload.algorithm, sum)]),
            metadata: upload.metadata,
            ..Stored::new(body, upload.encryption)
        };
        let object = world.store(&input.bucket, &input.key, object);
        let sum = checksum::answer(&object.checksums);
        let output = CompleteMultipartUploadOutput {
            e_tag: Some(ETag::Strong(object.etag.clone())),
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            version_id: object.version.clone(),
            checksum_type: Some(checksum_type(upload.full_object)),
            checksum_crc32: sum.checksum_crc32,
            checksum_crc32c: sum.checksum_crc32c,
            checksum_crc64nvme: sum.checksum_crc64nvme,
            checksum_sha1: sum.checksum_sha1,
            checksum_sha256: sum.checksum_sha256,
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..Default::default()
        };
        Ok(S3Response::with_headers(output, sse_headers(&object.encryption)))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let mut world = self.0.world.lock();
        world.upload(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        world.uploads.remove(&req.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, req: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let mut world = self.0.world.lock();
        let upload = world.upload(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        let part = |(number, part): (&i32, &UploadedPart)| Part {
            part_number: Some(*number),
            size: Some(part.body.len() as i64),
            e_tag: Some(ETag::Strong(part.etag.clone())),
            ..Default::default()
        };
        let output = ListPartsOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(req.input.upload_id),
            is_truncated: Some(false),
            parts: Some(upload.parts.iter().map(part).collect()),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let world = self.0.world.lock();
        let prefix = req.input.prefix.clone().unwrap_or_default();
        let uploads = world
            .uploads
            .iter()
            .filter(|(_, upload)| upload.bucket == req.input.bucket && upload.key.starts_with(&prefix))
            .map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                ..Default::default()
            })
            .collect();
        let output = ListMultipartUploadsOutput {
            bucket: Some(req.input.bucket),
            is_truncated: Some(false),
            uploads: Some(uploads),
            ..Default::default()
        };
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let world = self.0.world.lock();
        let home = world.buckets.get(&req.input.bucket).cloned().unwrap_or_default();
        Ok(S3Response::new(list(&home, req.input)?))
    }

    async fn get_bucket_encryption(
        &self,
        req: S3Request<GetBucketEncryptionInput>,
    ) -> S3Result<S3Response<GetBucketEncryptionOutput>> {
        let encryption = self.0.world.lock().bucket(&req.input.bucket).encryption.clone();
        let rule = ServerSideEncryptionRule {
            apply_server_side_encryption_by_default: Some(ServerSideEncryptionByDefault {
                kms_master_key_id: encryption.key,
                sse_algorithm: ServerSideEncryption::from(encryption.algorithm),
            }),
            bucket_key_enabled: Some(encryption.bucket_key),
        };
        let configuration = ServerSideEncryptionConfiguration { rules: vec![rule] };
        let output = GetBucketEncryptionOutput { server_side_encryption_configuration: Some(configuration) };
        Ok(S3Response::new(output))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        let region = self.0.world.lock().bucket(&req.input.bucket).region.clone();
        let output = GetBucketLocationOutput { location_constraint: Some(BucketLocationConstraint::from(region)) };
        Ok(S3Response::new(output))
    }

    async fn head_bucket(&self, _: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        Ok(S3Response::new(HeadBucketOutput::default()))
    }
}

impl Store {
    fn found(&self, bucket: &str, key: &str) -> Result<Stored, Refusal> {
        let world = self.0.world.lock();
        let object = world.buckets.get(bucket).and_then(|bucket| bucket.objects.get(key));
        object.cloned().ok_or_else(|| Refusal::new(404, "NoSuchKey", "The specified key does not exist."))
    }
}

impl World {
    /// Puts an object down, with a version if its bucket keeps them.
    pub(super) fn store(&mut self, bucket: &str, key: &str, mut object: Stored) -> Stored {
        let number = self.next();
        if object.etag.is_empty() {
            object.etag = etag_of(&object.body, &object.encryption, number);
        }
        let home = self.bucket(bucket);
        object.version = home.versioned.then(|| format!("version-{number}"));
        home.objects.insert(key.to_owned(), object.clone());
        if let Err(error) = self.folder.keep(bucket, key, &object.body) {
            panic!("{bucket}/{key} cannot be kept: {error}");
        }
        object
    }

    /// Another object under the same key, with the same contents.
    pub(super) fn replace(&mut self, bucket: &str, key: &str) {
        let number = self.next();
        if let Some(object) = self.bucket(bucket).objects.get_mut(key) {
            object.etag = checksum::md5(format!("replaced {number}").as_bytes());
            object.modified = SystemTime::now();
        }
    }

    fn upload(&mut self, id: &str, bucket: &str, key: &str) -> Result<&mut Upload, Refusal> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.bucket == bucket && upload.key == key);
        upload.ok_or_else(|| Refusal::new(404, "NoSuchUpload", NO_UPLOAD))
    }
}

impl Stored {
    /// An object that was put in one piece. [`World::store`] gives it its `ETag`.
    pub fn new(body: Bytes, encryption: Encryption) -> Self {
        Self {
            body,
            etag: String::new(),
            modified: SystemTime::now(),
            encryption,
            checksums: BTreeMap::new(),
            storage_class: None,
            restore: None,
            version: None,
            metadata: BTreeMap::new(),
        }
    }

    fn matches(&self, if_match: Option<&ETagCondition>, if_none_match: Option<&ETagCondition>) -> Result<(), Refusal> {
        let is_this = |condition: &ETagCondition| condition.as_etag().is_none_or(|etag| etag.value() == self.etag);
        if if_match.is_some_and(|condition| !is_this(condition)) {
            return Err(failed_condition("If-Match"));
        }
        if if_none_match.is_some_and(is_this) {
            return Err(Refusal::new(304, "NotModified", "Not Modified"));
        }
        Ok(())
    }

    fn checksums_shown(&self, shown: bool) -> BTreeMap<String, String> {
        if shown { self.checksums.clone() } else { BTreeMap::new() }
    }

    fn metadata_shown(&self) -> Option<Metadata> {
        (!self.metadata.is_empty()).then(|| self.metadata.clone().into_iter().collect())
    }

    fn checksum_type(&self) -> ChecksumType {
        checksum_type(!self.checksums.values().any(|value| value.contains('-')))
    }
}

trait Any {
    fn any(&self) -> bool;
}

impl Any for Checksum {
    fn any(&self) -> bool {
        *self != Checksum::default()
    }
}

fn checksum_type(full_object: bool) -> ChecksumType {
    ChecksumType::from_static(if full_object { ChecksumType::FULL_OBJECT } else { ChecksumType::COMPOSITE })
}

/// Whether a write onto this key meets its conditions.
fn admits(
    world: &World,
    bucket: &str,
    key: &str,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Result<(), Refusal> {
    let there = world.buckets.get(bucket).and_then(|bucket| bucket.objects.get(key));
    match there {
        Some(_) if if_none_match.is_some() => Err(failed_condition("If-None-Match")),
        Some(object) => object.matches(if_match, None),
        None if if_match.is_some() => Err(Refusal::new(404, "NoSuchKey", "The specified key does not exist.")),
        None => Ok(()),
    }
}

fn failed_condition(header: &str) -> Refusal {
    let text = format!("At least one of the pre-conditions you specified did not hold ({header})");
    Refusal::new(412, "PreconditionFailed", text)
}

/// The parts that a completion lists, in order, each with its `ETag`, none too small.
fn chosen_parts<'u>(upload: &'u Upload, listed: &[CompletedPart]) -> Result<Vec<&'u UploadedPart>, Refusal> {
    let number = |part: &CompletedPart| part.part_number.unwrap_or_default();
    if listed.is_empty() {
        return Err(Refusal::new(400, "MalformedXML", "The XML you provided was not well-formed"));
    }
    if listed.windows(2).any(|pair| number(&pair[0]) >= number(&pair[1])) {
        return Err(Refusal::new(400, "InvalidPartOrder", "The list of parts was not in ascending order."));
    }
    let mut chosen = Vec::new();
    for part in listed {
        let etag = part.e_tag.as_ref().map(|etag| etag.value().to_owned());
        let found = upload.parts.get(&number(part)).filter(|found| Some(&found.etag) == etag.as_ref());
        let found = found.ok_or_else(|| {
            Refusal::new(400, "InvalidPart", "One or more of the specified parts could not be found.")
        })?;
        let declared = [
            ("crc32", &part.checksum_crc32),
            ("crc32c", &part.checksum_crc32c),
            ("crc64nvme", &part.checksum_crc64nvme),
            ("sha1", &part.checksum_sha1),
            ("sha256", &part.checksum_sha256),
        ];
        for (algorithm, value) in declared {
            if value.as_ref().is_some_and(|value| *value != checksum::of(algorithm, &found.body)) {
                return Err(Refusal::new(
                    400,
                    "InvalidPart",
                    "The checksum of a part does not match what was uploaded.",
                ));
            }
        }
        chosen.push(found);
    }
    let all_but_last = &chosen[..chosen.len() - 1];
    if all_but_last.iter().any(|part| part.body.len() < SMALLEST_PART) {
        return Err(Refusal::new(
            400,
            "EntityTooSmall",
            "Your proposed upload is smaller than the minimum allowed size",
        ));
    }
    Ok(chosen)
}

fn join(parts: &[&UploadedPart]) -> Bytes {
    let mut body = BytesMut::with_capacity(parts.iter().map(|part| part.body.len()).sum());
    for part in parts {
        body.extend_from_slice(&part.body);
    }
    body.freeze()
}

/// MD5 where S3 gives MD5, otherwise something that is not.
fn etag_of(body: &[u8], encryption: &Encryption, nonce: u64) -> String {
    let md5 = checksum::md5(body);
    if encryption.uses_kms() { checksum::md5(format!("{md5} {nonce}").as_bytes()) } else { md5 }
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

/// `x-amz-server-side-encryption*` of an answer.
fn sse_headers(encryption: &Encryption) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = |text: &str| HeaderValue::from_str(text).expect("ARNs are ASCII");
    headers.insert("x-amz-server-side-encryption", value(&encryption.algorithm));
    if let Some(key) = encryption.key.as_ref().filter(|_| encryption.uses_kms()) {
        headers.insert("x-amz-server-side-encryption-aws-kms-key-id", value(key));
    }
    if encryption.bucket_key {
        headers.insert("x-amz-server-side-encryption-bucket-key-enabled", value("true"));
    }
    headers
}

/// What continuation tokens of listings begin with.
const LIST_TOKEN: &str = "list:";

/// One page: keys and common prefixes together, in order.
fn list(home: &Home, input: ListObjectsV2Input) -> Result<ListObjectsV2Output, Refusal> {
    let prefix = input.prefix.clone().unwrap_or_default();
    let most = input.max_keys.unwrap_or(1000).clamp(0, 1000) as usize;
    // As S3: a token is nothing that a client could make up.
    let wrong = || Refusal::new(400, "InvalidArgument", "The continuation token provided is incorrect");
    let token = input.continuation_token.as_deref().map(|token| token.strip_prefix(LIST_TOKEN).ok_or_else(wrong));
    let after = token.transpose()?.or(input.start_after.as_deref()).unwrap_or_default().to_owned();
    let mut contents = Vec::new();
    let mut prefixes = BTreeSet::new();
    let (mut last, mut more) = (String::new(), false);
    for (key, object) in home.objects.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
        let delimiter = input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty());
        let cut = delimiter.and_then(|delimiter| {
            let at = key[prefix.len()..].find(delimiter)?;
            Some(key[..prefix.len() + at + delimiter.len()].to_owned())
        });
        let entry = cut.as_ref().unwrap_or(key);
        if *entry <= after || prefixes.contains(entry) {
            continue;
        }
        if contents.len() + prefixes.len() == most {
            more = true;
            break;
        }
        last = entry.clone();
        match cut {
            Some(cut) => drop(prefixes.insert(cut)),
            None => contents.push(entry_of(key, object, home.lists_etags)),
        }
    }
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(prefix),
        delimiter: input.delimiter,
        max_keys: Some(most as i32),
        key_count: Some((contents.len() + prefixes.len()) as i32),
        is_truncated: Some(more),
        continuation_token: input.continuation_token,
        next_continuation_token: more.then(|| format!("{LIST_TOKEN}{last}")),
        contents: Some(contents),
        common_prefixes: Some(prefixes.into_iter().map(|prefix| CommonPrefix { prefix: Some(prefix) }).collect()),
        ..Default::default()
    })
}

fn entry_of(key: &str, object: &Stored, with_etag: bool) -> Object {
    Object {
        key: Some(key.to_owned()),
        size: Some(object.body.len() as i64),
        e_tag: with_etag.then(|| ETag::Strong(object.etag.clone())),
        last_modified: Some(object.modified.into()),
        storage_class: Some(ObjectStorageClass::from(
            object.storage_class.clone().unwrap_or_else(|| "STANDARD".to_owned()),
        )),
        ..Default::default()
    }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut all = BytesMut::new();
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    while let Some(piece) = body.next().await {
        let piece =
            piece.map_err(|_| Refusal::new(400, "IncompleteBody", "You did not provide the number of bytes."))?;
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}
