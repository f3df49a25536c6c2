//! Values of the SDK to values of `aws`, and back.

use aws_sdk_s3::operation::RequestId;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ChecksumType, ServerSideEncryption, StorageClass};
use aws_smithy_types::base64;

use crate::aws::{Answer, Checksum, ChecksumAlgorithm, Encryption, Object, SseAlgorithm, Stored};

/// `value` with the request id of `output`.
pub(super) fn answer<T>(value: T, output: &impl RequestId) -> Answer<T> {
    Answer { value, request_id: output.request_id().unwrap_or_default().to_owned() }
}

/// A CRC-64/NVME as S3 writes it: big endian in base 64.
pub(super) fn crc_text(crc64nvme: u64) -> String {
    base64::encode(crc64nvme.to_be_bytes())
}

pub(super) fn sse(algorithm: &SseAlgorithm) -> Option<ServerSideEncryption> {
    match algorithm {
        SseAlgorithm::Absent => None,
        SseAlgorithm::Aes256 => Some(ServerSideEncryption::Aes256),
        SseAlgorithm::Kms => Some(ServerSideEncryption::AwsKms),
        SseAlgorithm::KmsDsse => Some(ServerSideEncryption::AwsKmsDsse),
        SseAlgorithm::Other(name) => Some(ServerSideEncryption::from(name.as_str())),
    }
}

/// What an answer says of an object just stored.
pub(super) fn stored(etag: Option<&str>, version: Option<&str>, encryption: Encryption) -> Stored {
    Stored { etag: etag.map(str::to_owned), version: version.map(str::to_owned), encryption }
}

pub(super) fn encryption(
    algorithm: Option<&ServerSideEncryption>,
    key: Option<&str>,
    bucket_key: Option<bool>,
) -> Encryption {
    let algorithm = match algorithm {
        None => SseAlgorithm::Absent,
        Some(ServerSideEncryption::Aes256) => SseAlgorithm::Aes256,
        Some(ServerSideEncryption::AwsKms) => SseAlgorithm::Kms,
        Some(ServerSideEncryption::AwsKmsDsse) => SseAlgorithm::KmsDsse,
        Some(other) => SseAlgorithm::Other(other.as_str().to_owned()),
    };
    Encryption { algorithm, key: key.map(str::to_owned), bucket_key: bucket_key.unwrap_or(false) }
}

/// The checksums in an answer: a macro, because the SDK has a type without a trait for each operation.
macro_rules! checksums {
    ($output:expr) => {
        checksums(
            $output.checksum_type(),
            [
                (ChecksumAlgorithm::Crc64Nvme, $output.checksum_crc64_nvme()),
                (ChecksumAlgorithm::Crc32, $output.checksum_crc32()),
                (ChecksumAlgorithm::Crc32c, $output.checksum_crc32_c()),
                (ChecksumAlgorithm::Sha256, $output.checksum_sha256()),
                (ChecksumAlgorithm::Sha1, $output.checksum_sha1()),
            ],
        )
    };
}

pub(super) fn headed(output: &HeadObjectOutput) -> Object {
    let class = output.storage_class();
    Object {
        size: size(output.content_length()),
        etag: output.e_tag().map(str::to_owned),
        version: output.version_id().map(str::to_owned),
        modified: output.last_modified().map_or(0, |time| time.secs()),
        storage_class: class_name(class),
        archived: (in_archive(class) || output.archive_status().is_some()) && !is_restored(output.restore()),
        encryption: encryption(output.server_side_encryption(), output.ssekms_key_id(), output.bucket_key_enabled()),
        checksums: checksums!(output),
    }
}

/// `size` is that of the whole object, which a ranged answer tells in `Content-Range`. The checksums of a ranged
/// answer, if there are any, are those of a part.
pub(super) fn got(output: &GetObjectOutput, size: u64, ranged: bool) -> Object {
    let class = output.storage_class();
    let checksums = if ranged { Vec::new() } else { checksums!(output) };
    Object {
        size,
        etag: output.e_tag().map(str::to_owned),
        version: output.version_id().map(str::to_owned),
        modified: output.last_modified().map_or(0, |time| time.secs()),
        storage_class: class_name(class),
        archived: false,
        encryption: encryption(output.server_side_encryption(), output.ssekms_key_id(), output.bucket_key_enabled()),
        checksums,
    }
}

/// Lengths and sizes are never negative; the SDK's type allows it.
pub(super) fn size(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

fn class_name(class: Option<&StorageClass>) -> Option<String> {
    class.filter(|class| **class != StorageClass::Standard).map(|class| class.as_str().to_owned())
}

/// Classes whose objects must be restored before they can be read; Glacier Instant Retrieval is none of them.
fn in_archive(class: Option<&StorageClass>) -> bool {
    matches!(class, Some(StorageClass::Glacier | StorageClass::DeepArchive))
}

/// `x-amz-restore: ongoing-request="false", expiry-date="..."`.
fn is_restored(restore: Option<&str>) -> bool {
    restore.is_some_and(|text| text.contains("ongoing-request=\"false\""))
}

/// Those of the whole object. Composite ones end in `-N`, the number of parts.
fn checksums<const N: usize>(
    kind: Option<&ChecksumType>,
    values: [(ChecksumAlgorithm, Option<&str>); N],
) -> Vec<Checksum> {
    if kind == Some(&ChecksumType::Composite) {
        return Vec::new();
    }
    let whole = values.into_iter().filter_map(|(algorithm, text)| {
        let value = base64::decode(text?).ok()?;
        Some(Checksum { algorithm, value })
    });
    whole.collect()
}
