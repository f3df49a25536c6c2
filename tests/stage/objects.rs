//! Inputs from S3: what arrives is what is there, whole and unchanged, or an error says why not.

use std::sync::Arc;

use runseal::aws::{Cause, Checksum, ChecksumAlgorithm};
use runseal::fs::{Kind, ROOT};
use runseal::spec::{InputSpec, Location, S3Uri};
use runseal::stage::{StageError, Stager, Totals};

use crate::bucket::{BUCKET, Bucket, Effect};
use crate::support::{Hooks, Place, RUN, check_in, noise};

const MIB: usize = 1 << 20;
/// A part of a ranged read.
const PART: usize = 16 * MIB;

fn input(key: &str, target: &str) -> InputSpec {
    InputSpec { source: Location::S3(S3Uri { bucket: BUCKET.into(), key: key.into() }), target: target.into() }
}

/// A stager for everything below `in/`, and nothing counted or broken yet.
fn stager(place: &Place, bucket: &Arc<Bucket>, progress: &Arc<Hooks>) -> Stager {
    let cleared = check_in(bucket, &[input("in/", "set")], None, false).unwrap_or_else(|report| panic!("{report}"));
    bucket.forget_calls();
    Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Arc::clone(progress) as _, Arc::default())
}

fn fetch(place: &Place, bucket: &Arc<Bucket>) -> Result<Totals, StageError> {
    stager(place, bucket, &Hooks::none()).fetch(ROOT, Some(&bucket.cloud()))
}

fn assert_modified(result: Result<Totals, StageError>, key: &str) {
    match result {
        Err(StageError::Modified { path }) => assert_eq!(path.to_str().unwrap(), format!("s3://{BUCKET}/{key}")),
        other => panic!("{other:?}"),
    }
}

// promise: S-73
#[test]
fn objects_of_every_size_arrive_with_as_few_requests_as_there_are_parts() {
    let sizes = [0, 1, 4096, PART - 1, PART, PART + 1, 2 * PART + 12_345];
    let bucket = Bucket::new();
    for (i, &size) in sizes.iter().enumerate() {
        bucket.put(&format!("in/deep/{i}"), noise(size, i as u64));
    }
    bucket.put("in/empty/", "");
    let (place, progress) = (Place::new(), Hooks::none());
    let totals = stager(&place, &bucket, &progress).fetch(ROOT, Some(&bucket.cloud())).unwrap();
    let bytes = sizes.iter().sum::<usize>() as u64;
    assert_eq!((totals.files, totals.directories, totals.bytes), (7, 3, bytes));
    assert_eq!((bucket.count("GetObject"), bucket.count("Checksums"), bucket.count("HeadObject")), (5 + 2 + 3, 2, 0));
    let counted = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((counted(&progress.expected), counted(&progress.bytes), counted(&progress.files)), (bytes, bytes, 7));
    for (i, &size) in sizes.iter().enumerate() {
        assert!(place.contents(&format!("set/deep/{i}")) == noise(size, i as u64), "object {i}");
        let attr = place.scratch.getattr(place.find(format!("set/deep/{i}"))).unwrap();
        assert_eq!((attr.kind, attr.mode, attr.mtime.secs), (Kind::File, 0o644, 1_700_000_000));
    }
    let marker = place.scratch.getattr(place.find("set/empty")).unwrap();
    assert_eq!((marker.kind, marker.mode), (Kind::Directory, 0o755));
    place.assert_nothing_is_held();
}

#[test]
fn inputs_of_both_kinds_mix() {
    let (place, bucket) = (Place::new(), Bucket::new());
    std::fs::write(place.input("here"), "local").unwrap();
    bucket.put("one", "remote");
    let local = InputSpec { source: place.input("here").into(), target: "a/here".into() };
    let cleared = check_in(&bucket, &[local, input("one", "a/there")], None, false).unwrap();
    let run = RUN.parse().unwrap();
    let stager = Stager::new(cleared, Arc::clone(&place.scratch), run, Hooks::none(), Arc::default());
    let totals = stager.fetch(ROOT, Some(&bucket.cloud())).unwrap();
    assert_eq!((totals.files, totals.directories, totals.bytes), (2, 1, 11));
    assert_eq!((place.contents("a/here"), place.contents("a/there")), (b"local".to_vec(), b"remote".to_vec()));
}

#[test]
fn without_a_cloud_an_object_is_an_error_that_names_it() {
    let (place, bucket) = (Place::new(), Bucket::new());
    bucket.put("in/x", "x");
    let error = stager(&place, &bucket, &Hooks::none()).fetch(ROOT, None).unwrap_err();
    assert!(matches!(&error, StageError::NoCloud { uri } if uri.key == "in/x"), "{error}");
}

/// Values of the published algorithms, by their own crates.
fn checksum(algorithm: ChecksumAlgorithm, data: &[u8]) -> Checksum {
    use crc_fast::CrcAlgorithm;
    let crc = |which| crc_fast::checksum(which, data);
    let value = match algorithm {
        ChecksumAlgorithm::Crc32 => (crc(CrcAlgorithm::Crc32IsoHdlc) as u32).to_be_bytes().to_vec(),
        ChecksumAlgorithm::Crc32c => (crc(CrcAlgorithm::Crc32Iscsi) as u32).to_be_bytes().to_vec(),
        ChecksumAlgorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme).to_be_bytes().to_vec(),
        ChecksumAlgorithm::Sha1 => <sha1::Sha1 as sha2::Digest>::digest(data).to_vec(),
        ChecksumAlgorithm::Sha256 => <sha2::Sha256 as sha2::Digest>::digest(data).to_vec(),
    };
    Checksum { algorithm, value }
}

// promise: S-73
#[test]
fn every_full_object_checksum_is_compared() {
    use ChecksumAlgorithm::{Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
    for algorithm in [Crc32, Crc32c, Crc64Nvme, Sha1, Sha256] {
        for size in [0, 5_000, PART + 5_000] {
            let data = noise(size, 1);
            let right = checksum(algorithm, &data);
            let (place, bucket) = (Place::new(), Bucket::new());
            bucket.put_with("in/x", data.clone(), vec![right.clone()]);
            fetch(&place, &bucket).unwrap();
            let mut wrong = right;
            *wrong.value.last_mut().unwrap() ^= 1;
            let (place, bucket) = (Place::new(), Bucket::new());
            bucket.put_with("in/x", data, vec![wrong]);
            match fetch(&place, &bucket) {
                Err(StageError::Damaged { uri, algorithm: named }) => {
                    assert_eq!((uri.key.as_str(), named), ("in/x", algorithm));
                }
                other => panic!("{algorithm:?} {size}: {other:?}"),
            }
        }
    }
    let (place, bucket) = (Place::new(), Bucket::new());
    bucket.put_with("in/x", noise(PART + 1, 1), Vec::new());
    fetch(&place, &bucket).unwrap();
}

// promise: S-73
#[test]
fn an_object_that_changed_or_went_is_noticed() {
    for size in [10, 3 * PART] {
        let (place, bucket) = (Place::new(), Bucket::new());
        bucket.put("in/x", noise(size, 1));
        let stager_of = stager(&place, &bucket, &Hooks::none());
        bucket.put("in/x", noise(size, 2));
        assert_modified(stager_of.fetch(ROOT, Some(&bucket.cloud())), "in/x");

        let place = Place::new();
        let stager_of = stager(&place, &bucket, &Hooks::none());
        bucket.0.lock().objects.clear();
        assert_modified(stager_of.fetch(ROOT, Some(&bucket.cloud())), "in/x");
    }
}

#[test]
fn an_object_that_changes_between_its_parts_is_noticed() {
    let (place, bucket) = (Place::new(), Bucket::new());
    bucket.put("in/x", noise(3 * PART, 1));
    let stager = stager(&place, &bucket, &Hooks::none()).with_concurrency(1);
    let change: Effect = Effect::First(Arc::new(|state| {
        state.objects.get_mut("in/x").unwrap().etag = "\"other\"".into();
    }));
    bucket.fault("GetObject", 2, 1, change);
    assert_modified(stager.fetch(ROOT, Some(&bucket.cloud())), "in/x");
    assert_eq!(bucket.count("GetObject"), 3);
}

// promise: S-74
#[test]
fn an_interrupted_part_goes_on_where_it_stopped() {
    let (place, bucket) = (Place::new(), Bucket::new());
    let data = noise(2 * PART + 999, 4);
    bucket.put("in/large", data.clone());
    let stager = stager(&place, &bucket, &Hooks::none()).with_concurrency(1);
    for effect in [Effect::Cut(3 * MIB + 17), Effect::Cut(0), Effect::Lose] {
        bucket.fault("GetObject", 0, 1, effect);
    }
    stager.fetch(ROOT, Some(&bucket.cloud())).unwrap();
    assert!(place.contents("set/large") == data);
    let stopped = 3 * MIB + 17;
    let (second, third) = ((PART, 2 * PART), (2 * PART, 2 * PART + 999));
    let ranges: Vec<_> = bucket.0.lock().ranges.iter().flatten().map(|r| (r.start as usize, r.end as usize)).collect();
    assert_eq!(ranges, [(0, PART), (stopped, PART), (stopped, PART), (stopped, PART), second, third]);
}

#[test]
fn a_small_object_that_was_interrupted_is_still_compared() {
    let (place, bucket) = (Place::new(), Bucket::new());
    bucket.put("in/small", noise(700_000, 4));
    let stager_of = stager(&place, &bucket, &Hooks::none());
    bucket.fault("GetObject", 0, 1, Effect::Cut(300_000));
    // All came, and yet it was wrong: from the start.
    bucket.fault("GetObject", 0, 1, Effect::Cut(usize::MAX));
    stager_of.fetch(ROOT, Some(&bucket.cloud())).unwrap();
    assert!(place.contents("set/small") == noise(700_000, 4));
    assert_eq!(*bucket.0.lock().ranges, [None, Some(300_000..700_000), None]);
}

#[test]
fn what_does_not_pass_is_told_at_once_and_what_does_not_end_in_the_end() {
    for (cause, calls) in [(Cause::Denied, 1), (Cause::Credentials, 1), (Cause::KeyState, 1), (Cause::Unreachable, 7)] {
        let (place, bucket) = (Place::new(), Bucket::new());
        bucket.put("in/x", "x");
        let stager = stager(&place, &bucket, &Hooks::none());
        bucket.fault("GetObject", 0, u64::MAX, Effect::Refuse(cause, "Code"));
        let error = stager.fetch(ROOT, Some(&bucket.cloud())).unwrap_err();
        assert!(
            matches!(&error, StageError::Remote { action: "reading", uri, source } if uri.key == "in/x" && source.cause == cause),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains("s3://bucket/in/x") && text.contains("on order") && text.contains("; "), "{text}");
        assert_eq!(bucket.count("GetObject"), calls, "{cause:?}");
        assert!(matches!(stager.fetch(ROOT, Some(&bucket.cloud())), Ok(totals) if totals == Totals::default()));
    }
}

#[test]
fn a_scratch_that_is_too_small_stops_the_requests() {
    let (place, bucket) = (Place::with_limit(8 << 20), Bucket::new());
    bucket.put("in/x", noise(6 * PART, 4));
    let stager = stager(&place, &bucket, &Hooks::none()).with_concurrency(2);
    let error = stager.fetch(ROOT, Some(&bucket.cloud())).unwrap_err();
    assert!(matches!(&error, StageError::Inside { path, .. } if path.ends_with("set/x")), "{error:?}");
    assert!(bucket.count("GetObject") <= 3, "{}", bucket.count("GetObject"));
    place.assert_nothing_is_held();
}
