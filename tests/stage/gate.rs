//! The gate: no method of the traits of AWS gets past the trail, the counter and the cut.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use runseal::audit::Trail;
use runseal::aws::{CallError, Cloud, EncryptionContext, Gate, Stored, UploadSettings};
use runseal::spec::{AuditDestination, S3Uri};
use serde_json::Value;

use crate::bucket::{BUCKET, Bucket, Effect};

/// The traits as they are written.
const TRAITS: &str = include_str!("../../src/aws/mod.rs");
/// Methods, and what the trail calls them. The ones that clear away are sent even when the run is ending.
const METHODS: [(&str, &str); 20] = [
    ("list", "ListObjectsV2"),
    ("head", "HeadObject"),
    ("checksums", "HeadObject"),
    ("get", "GetObject"),
    ("put", "PutObject"),
    ("begin_upload", "CreateMultipartUpload"),
    ("upload_part", "UploadPart"),
    ("complete_upload", "CompleteMultipartUpload"),
    ("same", "HeadObject"),
    ("abort_upload", "AbortMultipartUpload"),
    ("remove", "DeleteObject"),
    ("bucket_encryption", "GetBucketEncryption"),
    ("bucket_region", "HeadBucket"),
    ("describe", "DescribeKey"),
    ("try_generate", "GenerateDataKey"),
    ("try_decrypt", "Decrypt"),
    ("try_grant", "CreateGrant"),
    ("grants", "ListGrants"),
    ("generate", "GenerateDataKey"),
    ("whoami", "GetCallerIdentity"),
];

/// Calls each of them once, in their order; answers with what failed.
async fn call_all(cloud: &Cloud) -> Vec<CallError> {
    let (objects, keys) = (cloud.objects(), cloud.keys());
    let (settings, context) =
        (UploadSettings { overwrite: true, ..UploadSettings::default() }, EncryptionContext::new());
    let target = S3Uri { bucket: BUCKET.into(), key: "x".into() };
    let (body, crc) = (Bytes::from_static(b"x"), crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"x"));
    let mut failed = Vec::new();
    failed.extend(objects.list(BUCKET, "", None, 1).await.err());
    failed.extend(objects.head(BUCKET, "x").await.err());
    failed.extend(objects.checksums(BUCKET, "x", None).await.err());
    failed.extend(objects.get(BUCKET, "x", None, None).await.err());
    failed.extend(objects.put(&target, &settings, body.clone(), crc).await.err());
    let upload = objects.begin_upload(&target, &settings).await.map(|begun| begun.value.0);
    failed.extend(upload.as_ref().err().cloned());
    let upload = upload.unwrap_or_default();
    let part = objects.upload_part(&target, &upload, 1, body, crc).await.map(|sent| sent.value);
    failed.extend(part.as_ref().err().cloned());
    let parts: Vec<_> = part.into_iter().collect();
    failed.extend(objects.complete_upload(&target, &settings, &upload, &parts, 1, crc).await.err());
    let there = objects.same(&target, 1, crc).await;
    failed.extend(objects.abort_upload(&target, &upload).await.err());
    let stored = there.map_or_else(Stored::default, |answer| answer.value);
    failed.extend(objects.remove(&target, &stored).await.err());
    failed.extend(objects.bucket_encryption(BUCKET).await.err());
    failed.extend(objects.bucket_region(BUCKET).await.err());
    failed.extend(keys.describe("k").await.err());
    failed.extend(keys.try_generate("k", &context).await.err());
    failed.extend(keys.try_decrypt("k", &context).await.err());
    failed.extend(keys.try_grant("k", "g", &["Decrypt"]).await.err());
    failed.extend(keys.grants("k").await.err());
    failed.extend(keys.generate("k", &context).await.err());
    failed.extend(cloud.identity().whoami().await.err());
    failed
}

/// A bucket with one object, a cloud through a gate with a trail, and the file of that.
fn gated() -> (Arc<Bucket>, Gate, Cloud, tempfile::TempDir) {
    let (bucket, dir) = (Bucket::new(), tempfile::tempdir().unwrap());
    bucket.put("x", "x");
    let trail = Trail::open(&AuditDestination::File(dir.path().join("trail")), "run").unwrap();
    let gate = Gate::new(Arc::new(trail));
    let cloud = bucket.cloud_through(&gate);
    (bucket, gate, cloud, dir)
}

fn events(dir: &tempfile::TempDir) -> Vec<Value> {
    let written = std::fs::read_to_string(dir.path().join("trail")).unwrap();
    written.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["eventName"].as_str().unwrap()).collect()
}

// promise: T-40
#[test]
fn every_method_of_the_traits_is_in_the_trail() {
    let written = TRAITS.lines().filter_map(|line| line.trim().strip_prefix("async fn ")?.split('(').next());
    let driven: BTreeSet<_> = METHODS.iter().map(|(method, _)| *method).collect();
    assert_eq!(written.collect::<BTreeSet<_>>(), driven, "a method of the traits that this test does not call");

    let (_, gate, cloud, dir) = gated();
    assert_eq!(cloud.block_on(call_all(&cloud)), []);
    let events = events(&dir);
    assert_eq!(names(&events), METHODS.map(|(_, event)| event));
    assert!(events.iter().all(|event| event["requestID"] == "R1" && event["errorCode"].is_null()), "{events:#?}");
    assert_eq!(gate.requests(), 13, "those of S3");
}

#[test]
fn a_cut_gate_lets_through_only_what_clears_away() {
    let (bucket, gate, cloud, dir) = gated();
    gate.cut();
    let failed = cloud.block_on(call_all(&cloud));
    let sent: Vec<_> = bucket.0.lock().calls.iter().map(|(operation, _)| *operation).collect();
    assert_eq!(sent, ["AbortMultipartUpload", "DeleteObject"]);
    // What `same` asks is an answer, not an error; what DeleteObject was to remove is another object.
    assert_eq!(failed.len(), METHODS.len() - 2, "{failed:#?}");
    let (events, ending) = (events(&dir), "not sent: the run is ending");
    assert_eq!(names(&events), METHODS.map(|(_, event)| event), "what was not sent is told too");
    let cut: Vec<_> = events.iter().filter(|event| event["errorMessage"] == ending).collect();
    assert_eq!(cut.len(), METHODS.len() - 2, "{events:#?}");
}

#[test]
fn failures_are_in_the_trail_and_so_is_a_body_that_breaks_off() {
    let (bucket, _, cloud, dir) = gated();
    bucket.fault("HeadObject", 0, 1, Effect::Refuse(runseal::aws::Cause::Denied, "AccessDenied"));
    bucket.fault("GetObject", 0, 1, Effect::Cut(0));
    cloud.block_on(async {
        cloud.objects().head(BUCKET, "x").await.unwrap_err();
        let pieces = cloud.objects().get(BUCKET, "x", None, None).await.unwrap().value.1;
        futures_util::TryStreamExt::try_collect::<Vec<_>>(pieces).await.unwrap_err();
    });
    let events = events(&dir);
    assert_eq!(names(&events), ["HeadObject", "GetObject", "GetObject"]);
    assert_eq!((&events[0]["errorCode"], &events[0]["requestID"]), (&"AccessDenied".into(), &"R2".into()));
    assert_eq!((&events[1]["requestID"], &events[1]["errorMessage"]), (&"R1".into(), &Value::Null));
    assert_eq!((&events[2]["requestID"], &events[2]["errorMessage"]), (&"R2".into(), &"on order".into()));
}

/// Otherwise an object that is visible would be nobody's, and `end --remove-published` would leave it.
#[test]
fn what_a_lost_answer_has_made_is_found_even_when_the_run_is_ending() {
    let (bucket, gate, cloud, dir) = gated();
    let target = S3Uri { bucket: BUCKET.into(), key: "large".into() };
    let (settings, crc) = (UploadSettings::default(), crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"x"));
    bucket.fault("CompleteMultipartUpload", 0, 1, Effect::Repeat(Arc::new(move || gate.cut())));
    let made = cloud.block_on(async {
        let upload = cloud.objects().begin_upload(&target, &settings).await.unwrap().value.0;
        let part = cloud.objects().upload_part(&target, &upload, 1, Bytes::from_static(b"x"), crc).await.unwrap().value;
        cloud.objects().complete_upload(&target, &settings, &upload, &[part], 1, crc).await
    });
    assert!(made.is_ok(), "{made:?}");
    let last = events(&dir).split_off(2);
    assert_eq!(names(&last), ["CompleteMultipartUpload", "HeadObject"]);
    assert_eq!((&last[0]["errorCode"], &last[1]["errorCode"]), (&"PreconditionFailed".into(), &Value::Null));
}

#[test]
fn a_body_that_the_gate_cuts_is_told_as_cut() {
    let (_, gate, cloud, dir) = gated();
    cloud.block_on(async {
        let pieces = cloud.objects().get(BUCKET, "x", None, None).await.unwrap().value.1;
        gate.cut();
        futures_util::TryStreamExt::try_collect::<Vec<_>>(pieces).await.unwrap_err();
    });
    let events = events(&dir);
    assert_eq!(names(&events), ["GetObject", "GetObject"]);
    assert_eq!(events[1]["errorMessage"], "not sent: the run is ending");
}
