//! Checksums and ETags, as S3 computes them.

use std::collections::BTreeMap;

use aws_smithy_types::base64;
use axum::http::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::Checksum;

use super::access::Refusal;

/// The algorithms, as in header names.
pub const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

/// The checksum of `data`, base 64.
pub fn of(algorithm: &str, data: &[u8]) -> String {
    let mut hasher = ChecksumHasher::default();
    match algorithm {
        "crc32" => hasher.crc32 = Some(Default::default()),
        "crc32c" => hasher.crc32c = Some(Default::default()),
        "sha1" => hasher.sha1 = Some(Default::default()),
        "sha256" => hasher.sha256 = Some(Default::default()),
        _ => hasher.crc64nvme = Some(Default::default()),
    }
    hasher.update(data);
    let sum = hasher.finalize();
    let values = [sum.checksum_crc32, sum.checksum_crc32c, sum.checksum_sha1, sum.checksum_sha256];
    values.into_iter().flatten().next().or(sum.checksum_crc64nvme).expect("one hasher was set")
}

/// `ChecksumType` `COMPOSITE`: the checksum of the checksums of the parts, and their number.
pub fn composite(algorithm: &str, parts: &[&[u8]]) -> String {
    let sums: Vec<u8> =
        parts.iter().flat_map(|part| base64::decode(of(algorithm, part)).expect("our own base 64")).collect();
    format!("{}-{}", of(algorithm, &sums), parts.len())
}

/// The checksums that a request declares, in its headers or trailers.
pub fn declared(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> BTreeMap<String, String> {
    let value = |algorithm: &str| {
        let name = format!("x-amz-checksum-{algorithm}");
        let found = headers.get(&name).or_else(|| trailers?.get(&name))?;
        Some((algorithm.to_owned(), found.to_str().ok()?.to_owned()))
    };
    ALGORITHMS.iter().filter_map(|algorithm| value(algorithm)).collect()
}

/// Compares what was declared with what came; `Content-MD5` too.
pub fn verify(declared: &BTreeMap<String, String>, headers: &HeaderMap, data: &[u8]) -> Result<(), Refusal> {
    for (algorithm, value) in declared {
        if of(algorithm, data) != *value {
            let name = algorithm.to_uppercase();
            let text = format!("The {name} you specified did not match the calculated checksum.");
            return Err(Refusal::new(400, "BadDigest", text));
        }
    }
    match headers.get("content-md5") {
        Some(sum) if sum.as_bytes() != base64::encode(Md5::checksum(data)).as_bytes() => {
            Err(Refusal::new(400, "BadDigest", "The Content-MD5 you specified did not match what we received."))
        }
        _ => Ok(()),
    }
}

/// MD5 in hexadecimal digits.
pub fn md5(data: &[u8]) -> String {
    Md5::checksum(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As `s3s` wants them in answers.
pub fn answer(checksums: &BTreeMap<String, String>) -> Checksum {
    let value = |name: &str| checksums.get(name).cloned();
    Checksum {
        checksum_crc32: value("crc32"),
        checksum_crc32c: value("crc32c"),
        checksum_crc64nvme: value("crc64nvme"),
        checksum_sha1: value("sha1"),
        checksum_sha256: value("sha256"),
        checksum_type: None,
    }
}
