//! Objects, their encryption and checksums, and what an upload is made of.

use serde::Serialize;

/// `ServerSideEncryption` of an object or upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum SseAlgorithm {
    /// The answer named none: a store other than S3, or an object older than 2023.
    #[default]
    #[serde(rename = "none")]
    Absent,
    /// SSE-S3.
    #[serde(rename = "AES256")]
    Aes256,
    /// SSE-KMS.
    #[serde(rename = "aws:kms")]
    Kms,
    /// DSSE-KMS.
    #[serde(rename = "aws:kms:dsse")]
    KmsDsse,
    /// One that this version does not know.
    #[serde(untagged)]
    Other(String),
}

/// How an object is encrypted at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Encryption {
    /// Algorithm.
    pub algorithm: SseAlgorithm,
    /// ARN of the KMS key.
    pub key: Option<String>,
    /// Whether an S3 Bucket Key stands between: then the encryption context is the bucket's ARN.
    pub bucket_key: bool,
}

impl std::fmt::Display for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.algorithm {
            SseAlgorithm::Absent => "nothing that S3 names",
            SseAlgorithm::Aes256 => "AES256",
            SseAlgorithm::Kms => "aws:kms",
            SseAlgorithm::KmsDsse => "aws:kms:dsse",
            SseAlgorithm::Other(name) => name,
        })?;
        if let Some(key) = &self.key {
            write!(f, " under {key}")?;
        }
        if self.bucket_key { f.write_str(" with an S3 Bucket Key") } else { Ok(()) }
    }
}

/// `ChecksumAlgorithm` of an object. Unknown ones are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ChecksumAlgorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

/// A checksum of the whole object (`ChecksumType` `FULL_OBJECT`). Composite ones say nothing without the parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Algorithm.
    pub algorithm: ChecksumAlgorithm,
    /// The value, decoded from base 64.
    pub value: Vec<u8>,
}

/// What `HeadObject` and `GetObject` tell of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Bytes.
    pub size: u64,
    /// `ETag`, with its quotes.
    pub etag: Option<String>,
    /// `VersionId`, where versions are kept.
    pub version: Option<String>,
    /// `Last-Modified`: seconds since 1970.
    pub modified: i64,
    /// `StorageClass` if it is not `STANDARD`.
    pub storage_class: Option<String>,
    /// Whether it lies in an archive (Glacier, Deep Archive, archive tiers) and is not restored.
    pub archived: bool,
    /// Encryption at rest.
    pub encryption: Encryption,
    /// Full-object checksums, where the answer had them (`GetObject` with `ChecksumMode`).
    pub checksums: Vec<Checksum>,
}

impl Object {
    /// Whether it is known to have exactly these contents.
    pub fn has(&self, size: u64, crc64nvme: u64) -> bool {
        let ours =
            |sum: &Checksum| sum.algorithm == ChecksumAlgorithm::Crc64Nvme && sum.value == crc64nvme.to_be_bytes();
        self.size == size && self.checksums.iter().any(ours)
    }
}

/// A key in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSummary {
    /// The whole key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// `ETag`, with its quotes; not every server lists it.
    pub etag: Option<String>,
}

/// Where a page of a listing starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageStart {
    /// Behind this key, whether it is there or not (`StartAfter`).
    After(String),
    /// Where the store has left off, in its own words (`ContinuationToken`): nobody else can make one.
    Token(String),
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Keys, in order.
    pub objects: Vec<ObjectSummary>,
    /// Where the next page starts, if there is one. A page may be empty and not the last.
    pub next: Option<PageStart>,
}

/// What every upload of a run has in common; preflight probes with exactly these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadSettings {
    /// `--sse`; `None` leaves it to the bucket.
    pub sse: Option<SseAlgorithm>,
    /// `--sse-kms-key-id`, an ARN.
    pub kms_key: Option<String>,
    /// Whether existing keys may be replaced; otherwise requests carry `If-None-Match: *`.
    pub overwrite: bool,
}

/// What S3 says of an object it has just stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// `ETag`, with its quotes.
    pub etag: Option<String>,
    /// `VersionId`, where versions are kept.
    pub version: Option<String>,
    /// Encryption at rest.
    pub encryption: Encryption,
}

impl From<Object> for Stored {
    fn from(Object { etag, version, encryption, .. }: Object) -> Self {
        Self { etag, version, encryption }
    }
}

/// A part of an upload, as `CompleteMultipartUpload` wants it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// From 1 to 10 000.
    pub number: u16,
    /// `ETag` of the part.
    pub etag: String,
    /// Its CRC-64/NVME.
    pub crc64nvme: u64,
}
