//! What preflight tries at AWS: how its table names each try, and those that take more than one call of a service.

use std::future::ready;

use bytes::Bytes;
use futures_util::TryStreamExt;

use crate::aws::{Answer, CallError, Cloud, Object, Part};
use crate::spec::S3Uri;

/// Calls under way at once, of one kind.
pub(super) const CONCURRENCY: usize = 64;
/// The one byte that the part of a probe has. It is never to be read.
const BYTE: &[u8] = b"?";

type Outcome<T> = Result<Answer<T>, CallError>;

/// What is tried. The first seven decide, where there is such a thing; all others explain.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Probe {
    /// Begins an upload with the headers of all later ones: shows how results will be encrypted.
    Begin,
    /// Sends one byte to it: each part needs `kms:Decrypt`, which is forgotten most.
    Part,
    /// Gives it up, so that nothing is left.
    Abort,
    /// What lies below an input, or in the output already.
    List,
    /// What an object is. Needs no KMS.
    Head,
    /// Reads the first byte of one object of each kind: bucket, prefix, key, bucket key.
    Read,
    /// Of the run key: what the run will ask for. Of others: what S3 would ask KMS for a new object.
    Generate,
    /// What S3 would ask KMS for an object that is read.
    Decrypt,
    /// What a key is, and in which state.
    Describe,
    /// Who calls.
    Identity,
    /// Whether a service could be given the use of a key.
    Grant,
    /// Who has been.
    Grants,
    /// Nothing: documents say it.
    Documents,
    /// Nothing: it cannot be tried.
    Nothing,
}

impl Probe {
    /// Its name in tables and reports: the operation of AWS.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Begin => "s3:CreateMultipartUpload",
            Self::Part => "s3:UploadPart",
            Self::Abort => "s3:AbortMultipartUpload",
            Self::List => "s3:ListObjectsV2",
            Self::Head => "s3:HeadObject",
            Self::Read => "s3:GetObject",
            Self::Generate => "kms:GenerateDataKey (dry run)",
            Self::Decrypt => "kms:Decrypt (dry run)",
            Self::Describe => "kms:DescribeKey",
            Self::Identity => "sts:GetCallerIdentity",
            Self::Grant => "kms:CreateGrant (dry run)",
            Self::Grants => "kms:ListGrants",
            Self::Documents => "documents",
            Self::Nothing => "none",
        }
    }

    /// The operation, without a word on how it is tried.
    pub(super) fn operation(self) -> &'static str {
        self.name().trim_end_matches(" (dry run)")
    }
}

/// [`Probe::Head`], on the threads of the runtime: there may be a million of them.
pub(super) async fn head(cloud: &Cloud, uri: &S3Uri) -> Outcome<Object> {
    let (objects, at) = (cloud.objects().clone(), uri.clone());
    cloud.spread(async move { objects.head(&at.bucket, &at.key).await }).await
}

/// [`Probe::Read`]: the first byte, if there is one, of the object as it was seen.
pub(super) async fn read(cloud: &Cloud, uri: &S3Uri, seen: Option<&Object>) -> Outcome<()> {
    let range = seen.is_none_or(|seen| seen.size > 0).then_some(0..1);
    let etag = seen.and_then(|seen| seen.etag.as_deref());
    let Answer { value: (_, pieces), request_id } = cloud.objects().get(&uri.bucket, &uri.key, etag, range).await?;
    pieces.try_for_each(|_| ready(Ok(()))).await?;
    Ok(Answer { value: (), request_id })
}

/// [`Probe::Part`].
pub(super) async fn part(cloud: &Cloud, target: &S3Uri, upload: &str) -> Outcome<Part> {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, BYTE);
    cloud.objects().upload_part(target, upload, 1, Bytes::from_static(BYTE), crc).await
}
