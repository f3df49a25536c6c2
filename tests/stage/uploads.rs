//! Results to S3: all or no manifest, whatever fails, and nothing is sent twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use runseal::aws::{Cause, SseAlgorithm};
use runseal::fs::{ROOT, WriteMode};
use runseal::spec::{Location, S3Uri};
use runseal::stage::{StageError, Stager, Totals};
use sha2::{Digest, Sha256};

use crate::bucket::{BUCKET, Bucket, Effect};
use crate::support::{CALLER, Hooks, MANIFEST, Place, RUN, check_in};

const PART: usize = 16 << 20;
const OPERATIONS: [&str; 5] =
    ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject", "Checksums"];

/// Results of every kind: two objects in parts, four in one, two markers.
fn some_results() -> Place {
    let place = Place::with_limit(4 << 30);
    place.results(&[("small", "s"), ("empty", ""), ("dir/", ""), ("dir/nested", "n"), ("hollow/", ""), ("tip/", "")]);
    for (name, size) in [("large", PART + 7), ("dir/huge", PART + 1), ("part", PART)] {
        place.results(&[(name, "")]);
        sized(&place, name, size);
        for part in 0..size.div_ceil(PART) {
            place
                .scratch
                .write(place.find(name), (part * PART) as u64 + 1, name.as_bytes(), WriteMode::default())
                .unwrap();
        }
    }
    place
}

/// Makes a file longer, by a hole.
fn sized(place: &Place, name: &str, size: usize) {
    let size = runseal::fs::SetAttr { size: Some(size as u64), ..Default::default() };
    place.scratch.setattr(place.find(name), &size).unwrap();
}

fn fill(place: &Place, name: &str, data: &[u8]) {
    place.scratch.write(place.find(name), 0, data, WriteMode::default()).unwrap();
}

fn stager(place: &Place, bucket: &Arc<Bucket>, overwrite: bool) -> Stager {
    let output = Location::S3(S3Uri { bucket: BUCKET.into(), key: "out/".into() });
    let cleared = check_in(bucket, &[], Some(&output), overwrite).unwrap_or_else(|report| panic!("{report}"));
    bucket.forget_calls();
    assert!(bucket.0.lock().uploads.is_empty(), "preflight leaves nothing");
    Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Hooks::none(), Arc::default())
}

fn publish(stager: &Stager, bucket: &Arc<Bucket>) -> Result<Totals, StageError> {
    stager.publish(ROOT, Some(&bucket.cloud()))
}

fn manifest_in(bucket: &Bucket) -> Option<serde_json::Value> {
    Some(serde_json::from_slice(&bucket.contents(&format!("out/{MANIFEST}"))?).unwrap())
}

/// Everything the manifest says must be true, everything there must be in it, and no upload be left.
fn assert_published(bucket: &Bucket, place: &Place) {
    let manifest = manifest_in(bucket).expect("a manifest");
    let mut state = bucket.0.lock();
    assert!(state.uploads.is_empty(), "uploads are left: {:?}", state.uploads.keys());
    let mut objects = std::mem::take(&mut state.objects);
    drop(state);
    objects.remove(&format!("out/{MANIFEST}"));
    let files = manifest["files"].as_array().unwrap();
    assert_eq!(manifest["totals"]["files"], files.len());
    for line in files {
        let held = objects.remove(line["key"].as_str().unwrap()).unwrap_or_else(|| panic!("{line}"));
        let sum: String = Sha256::digest(&held.data).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((&line["sha256"], &line["size"]), (&sum.into(), &held.data.len().into()), "{line}");
        assert_eq!(line["etag"], held.etag, "{line}");
        assert_eq!(line["encryption"]["algorithm"], "aws:kms");
        if line["path_bytes"].is_null() {
            assert!(place.contents(line["path"].as_str().unwrap()) == held.data, "{line}");
        }
    }
    for line in manifest["directories"].as_array().unwrap() {
        if let Some(key) = line["key"].as_str() {
            assert!(objects.remove(key).unwrap_or_else(|| panic!("{line}")).data.is_empty());
        }
    }
    assert!(objects.is_empty(), "not in the manifest: {:?}", objects.keys());
}

// promise: S-75
#[test]
fn results_are_objects_and_the_manifest_knows_them_all() {
    let (place, bucket) = (some_results(), Bucket::new());
    let link = place.scratch.symlink(ROOT, b"link", b"small", &CALLER).unwrap();
    place.scratch.forget(link.ino, 1);
    let totals = publish(&stager(&place, &bucket, false), &bucket).unwrap();
    assert_eq!((totals.files, totals.directories, totals.symlinks, totals.listed_only), (6, 3, 1, 1));
    assert_eq!(
        bucket.keys(),
        ["out/dir/huge", "out/dir/nested", "out/empty", "out/hollow/", "out/large", "out/part"]
            .into_iter()
            .chain(["out/runseal-manifest.json", "out/small", "out/tip/"])
            .collect::<Vec<_>>()
    );
    let calls = OPERATIONS.map(|operation| bucket.count(operation));
    assert_eq!(calls, [2, 2 + 2, 2, 4 + 2 + 1, 0]);
    let order = bucket.0.lock().calls.clone();
    assert_eq!(order.last().unwrap(), &("PutObject", format!("out/{MANIFEST}")));
    let first_visible = order.iter().position(|(name, _)| ["PutObject", "CompleteMultipartUpload"].contains(name));
    let last_part = order.iter().rposition(|(name, _)| *name == "UploadPart");
    assert!(last_part < first_visible, "all parts before anything is visible");
    let manifest = manifest_in(&bucket).unwrap();
    assert_eq!(manifest["symlinks"][0], serde_json::json!({"path": "link", "target": "small"}));
    let small = manifest["files"].as_array().unwrap().iter().find(|file| file["path"] == "small").unwrap();
    assert_eq!((&small["key"], &small["mode"]), (&"out/small".into(), &"0644".into()));
    assert!(small["version_id"].is_string() && small["crc64nvme"].as_str().unwrap().ends_with('='));
    assert_published(&bucket, &place);
    place.assert_nothing_is_held();
}

#[test]
fn holes_are_zeros() {
    let (place, bucket) = (Place::new(), Bucket::new());
    place.results(&[("sparse", "")]);
    sized(&place, "sparse", 2 * PART + 5);
    place.scratch.write(place.find("sparse"), PART as u64, b"data", WriteMode::default()).unwrap();
    publish(&stager(&place, &bucket, false), &bucket).unwrap();
    let data = bucket.contents("out/sparse").unwrap();
    assert!(data.len() == 2 * PART + 5 && data[PART..PART + 4] == *b"data" && data[PART + 4..].iter().all(|&b| b == 0));
    assert_published(&bucket, &place);
}

/// Fails each call of each operation once, before or after its work, and goes on with another connection.
// promise: S-75, S-78
#[test]
fn whatever_call_fails_the_results_are_whole_in_the_end_and_nothing_is_sent_twice() {
    let place = some_results();
    for (operation, calls) in
        [("CreateMultipartUpload", 2), ("UploadPart", 4), ("CompleteMultipartUpload", 2), ("PutObject", 7)]
    {
        for nth in 0..calls {
            for effect in [Effect::Refuse(Cause::Credentials, "ExpiredToken"), Effect::Lose] {
                let bucket = Bucket::new();
                let stager = stager(&place, &bucket, false);
                let lost = matches!(effect, Effect::Lose);
                bucket.fault(operation, nth, 1, effect);
                let error = publish(&stager, &bucket).expect_err(operation);
                assert!(matches!(error, StageError::Remote { .. }), "{operation} {nth}: {error:?}");
                assert!(lost || manifest_in(&bucket).is_none(), "{operation} {nth}: a manifest without all objects");
                publish(&stager, &bucket).unwrap_or_else(|e| panic!("{operation} {nth}: {e}"));
                let sent = bucket.count("UploadPart");
                assert_eq!(sent, 4 + usize::from(operation == "UploadPart"), "{operation} {nth}: parts are sent once");
                let begun_for_nothing = lost && operation == "CreateMultipartUpload";
                if begun_for_nothing {
                    // Its id was lost with the answer: only a lifecycle rule can find it.
                    assert_eq!(bucket.0.lock().uploads.len(), 1);
                    bucket.0.lock().uploads.clear();
                }
                assert_published(&bucket, &place);
            }
        }
    }
}

// promise: S-78
#[test]
fn an_upload_that_s3_forgot_is_begun_anew() {
    for operation in ["UploadPart", "CompleteMultipartUpload"] {
        let (place, bucket) = (some_results(), Bucket::new());
        let forget = Effect::First(Arc::new(|state| {
            let id = state.uploads.keys().next().unwrap().clone();
            state.uploads.remove(&id);
        }));
        let stager = stager(&place, &bucket, false).with_concurrency(2);
        bucket.fault(operation, 1, 1, forget);
        publish(&stager, &bucket).unwrap();
        assert_eq!(bucket.count("CreateMultipartUpload"), 3, "{operation}");
        assert_published(&bucket, &place);
    }
    let (place, bucket) = (some_results(), Bucket::new());
    let stager = stager(&place, &bucket, false);
    bucket.fault("CompleteMultipartUpload", 0, u64::MAX, Effect::First(Arc::new(|state| state.uploads.clear())));
    assert!(matches!(publish(&stager, &bucket), Err(StageError::UploadLost { .. })));
    assert!(manifest_in(&bucket).is_none());
}

// promise: S-76
#[test]
fn existing_keys_are_refused_and_publishing_goes_on_when_they_are_gone() {
    for key in ["out/small", "out/large", "out/hollow/", "out/runseal-manifest.json"] {
        let (place, bucket) = (some_results(), Bucket::new());
        let stager = stager(&place, &bucket, false);
        bucket.put(key, "not mine");
        for _ in 0..2 {
            match publish(&stager, &bucket) {
                Err(StageError::Appeared { path }) => assert_eq!(path.to_str().unwrap(), format!("s3://bucket/{key}")),
                other => panic!("{key}: {other:?}"),
            }
            assert_eq!(bucket.contents(key).unwrap(), "not mine");
        }
        bucket.0.lock().objects.remove(key);
        publish(&stager, &bucket).unwrap();
        assert_eq!(bucket.count("UploadPart"), 4, "{key}");
        assert_published(&bucket, &place);
    }
}

// promise: S-76
#[test]
fn overwriting_withdraws_the_old_manifest_first() {
    let (place, bucket) = (some_results(), Bucket::new());
    for key in ["out/small", "out/large"] {
        bucket.put(key, "old");
    }
    bucket.put(&format!("out/{MANIFEST}"), "{\"files\": [1]}");
    let stager = stager(&place, &bucket, true);
    bucket.fault("PutObject", 3, 1, Effect::Refuse(Cause::Denied, "AccessDenied"));
    publish(&stager, &bucket).unwrap_err();
    let manifest = manifest_in(&bucket).unwrap();
    assert_eq!((&manifest["withdrawn"], &manifest["files"]), (&true.into(), &serde_json::json!([])));
    publish(&stager, &bucket).unwrap();
    assert!(manifest_in(&bucket).unwrap()["withdrawn"].is_null());
    assert_published(&bucket, &place);
}

// promise: S-77
#[test]
fn another_encryption_than_preflight_saw_is_an_error_that_names_both() {
    for operation in ["CreateMultipartUpload", "PutObject"] {
        let (place, bucket) = (some_results(), Bucket::new());
        let stager = stager(&place, &bucket, false);
        let right = bucket.0.lock().encryption.clone();
        let other = Effect::First(Arc::new(|state| state.encryption.algorithm = SseAlgorithm::Aes256));
        bucket.fault(operation, 0, 1, other);
        let error = publish(&stager, &bucket).unwrap_err();
        assert!(matches!(error, StageError::OtherEncryption { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("aws:kms under arn:key") && text.contains("AES256 under"), "{text}");
        assert!(manifest_in(&bucket).is_none());
        bucket.0.lock().encryption = right;
        publish(&stager, &bucket).unwrap();
        assert!(bucket.0.lock().objects.values().all(|held| held.encryption.algorithm == SseAlgorithm::Kms));
        assert_published(&bucket, &place);
    }
}

#[test]
fn a_result_that_changed_while_the_run_was_held_is_sent_again() {
    let (place, bucket) = (some_results(), Bucket::new());
    let stager = stager(&place, &bucket, false);
    bucket.fault("PutObject", 1, 1, Effect::Refuse(Cause::Unreachable, ""));
    publish(&stager, &bucket).unwrap_err();
    fill(&place, "large", b"other");
    fill(&place, "small", b"S");
    publish(&stager, &bucket).unwrap();
    assert_published(&bucket, &place);
}

#[test]
fn conflicting_requests_are_repeated() {
    let (place, bucket) = (some_results(), Bucket::new());
    let stager = stager(&place, &bucket, false);
    for operation in ["PutObject", "CompleteMultipartUpload"] {
        bucket.fault(operation, 0, 1, Effect::Refuse(Cause::Precondition, "ConditionalRequestConflict"));
    }
    publish(&stager, &bucket).unwrap();
    assert_published(&bucket, &place);
}

// promise: S-78
#[test]
fn giving_up_leaves_no_upload() {
    let (place, bucket) = (some_results(), Bucket::new());
    let stager = stager(&place, &bucket, false);
    bucket.fault("UploadPart", 2, 1, Effect::Refuse(Cause::KeyState, "KMS.DisabledException"));
    let error = publish(&stager, &bucket).unwrap_err();
    assert!(error.to_string().contains("enable the KMS key"), "{error}");
    assert!(!bucket.0.lock().uploads.is_empty());
    stager.give_up(Some(&bucket.cloud()));
    assert!(bucket.0.lock().uploads.is_empty());
    assert_eq!(bucket.keys(), [""; 0]);
}

#[test]
fn a_scratch_that_fails_leaves_no_upload() {
    let (place, bucket) = (some_results(), Bucket::new());
    let stager = stager(&place, &bucket, false);
    let fault = Arc::clone(&place.fault);
    let end = Effect::First(Arc::new(move |_| fault.arm(0, nix::errno::Errno::EIO as i32)));
    bucket.fault("UploadPart", 0, 1, end);
    match publish(&stager.with_concurrency(1), &bucket) {
        Err(StageError::Inside { .. }) => assert!(bucket.0.lock().uploads.is_empty()),
        other => panic!("{other:?}"),
    }
}

// promise: S-67
#[test]
fn requests_and_bytes_under_way_are_bounded() {
    let (place, bucket) = (Place::with_limit(4 << 30), Bucket::new());
    place.results(&[("huge", "")]);
    sized(&place, "huge", 30 * PART);
    publish(&stager(&place, &bucket, false).with_concurrency(1000), &bucket).unwrap();
    let (requests, bytes) = {
        let state = bucket.0.lock();
        (state.requests.1, state.in_flight.1)
    };
    assert!(requests <= 24 && bytes <= 384 << 20, "{requests} {bytes}");

    let (place, bucket) = (some_results(), Bucket::new());
    publish(&stager(&place, &bucket, false).with_concurrency(2), &bucket).unwrap();
    assert!(bucket.0.lock().requests.1 <= 2);
    assert_published(&bucket, &place);
}

// promise: S-79
#[test]
fn names_that_cannot_be_keys_are_renamed_and_told() {
    let (place, bucket) = (Place::new(), Bucket::new());
    place.file(ROOT, b"odd\xff", b"x");
    let deep = ["d".repeat(250), "e".repeat(250), "f".repeat(250), "g".repeat(250), "h".repeat(250)];
    let mut path = String::new();
    for name in &deep {
        path = format!("{path}{name}/");
        place.results(&[(&path, "")]);
    }
    place.results(&[(&format!("{path}leaf"), "deep")]);
    let totals = publish(&stager(&place, &bucket, false), &bucket).unwrap();
    assert_eq!((totals.files, totals.renamed), (2, 2));
    assert!(bucket.keys().iter().all(|key| key.starts_with("out/runseal-renamed/") || key.ends_with(MANIFEST)));
    let manifest = manifest_in(&bucket).unwrap();
    let lines: BTreeMap<_, _> =
        manifest["files"].as_array().unwrap().iter().map(|line| (line["size"].as_u64().unwrap(), line)).collect();
    assert_eq!(lines[&1]["path_bytes"], "6f6464ff");
    assert_eq!(lines[&4]["path"], format!("{path}leaf"));
    assert_published(&bucket, &place);
}

#[test]
fn a_name_that_runseal_needs_and_a_missing_cloud_are_refused() {
    let (place, bucket) = (Place::new(), Bucket::new());
    place.results(&[(MANIFEST, "mine")]);
    let stager_of = stager(&place, &bucket, false);
    assert!(matches!(publish(&stager_of, &bucket), Err(StageError::Reserved { .. })));
    assert!(matches!(stager_of.publish(ROOT, None), Err(StageError::NoCloud { .. })));
    assert_eq!(bucket.keys(), [""; 0]);
}
