//! Results of before: what the old manifest lists and the new results do not have goes, and nothing else.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use runseal::aws::Cause;
use runseal::fs::ROOT;
use runseal::spec::{Location, S3Uri, StagingRules};
use runseal::stage::{StageError, Stager, Totals};
use serde_json::{Value, json};

use crate::bucket::{BUCKET, Bucket, Effect};
use crate::support::{Hooks, MANIFEST, Place, RUN, assert_published, check_in_by};

const WITHDRAWN: &str = ".runseal-withdrawn.json";
const KEEP: StagingRules =
    StagingRules { dereference: false, keep_old: true, allow_empty: false, shared_output: false, keep_set_id: false };

/// An output with results of a run before, and results of a new one in the scratch.
fn replaced() -> Place {
    let place = Place::new();
    place.results(&[("both", "old"), ("gone", "old"), ("sub/", ""), ("sub/gone", "old"), ("sub/deep/", "")]);
    place.results(&[("sub/deep/gone", "old"), ("stays/", ""), ("stays/gone", "old"), ("hollow/", "")]);
    let odd = place.file(ROOT, b"odd\xff", b"old");
    place.scratch.forget(odd.ino, 1);
    place.link("link", "both");
    place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap();
    fs::write(place.output("foreign"), "mine").unwrap();
    fs::write(place.output("stays/foreign"), "mine").unwrap();
    place.assert_nothing_is_held();
    place.results(&[("both", "new"), ("new", "new"), ("stays/", "")]);
    place
}

fn publish(place: &Place, rules: StagingRules) -> (Result<Totals, StageError>, Vec<String>) {
    let hooks = Hooks::none();
    let published = place.run_publisher(true, rules, &hooks).publish(ROOT, None);
    let told = hooks.told.lock().clone();
    (published, told)
}

/// Edits the manifest of before.
fn edit(place: &Place, change: impl FnOnce(&mut Value)) {
    let mut manifest = place.manifest();
    change(&mut manifest);
    fs::write(place.output(MANIFEST), manifest.to_string()).unwrap();
}

fn kept(place: &Place) -> Vec<(String, String)> {
    let manifest = place.manifest();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let lines = manifest["kept"].as_array().into_iter().flatten();
    lines.map(|line| (text(&line["path"]), text(&line["because"]))).collect()
}

// promise: S-113
#[test]
fn replacing_results_removes_those_that_the_new_run_does_not_have() {
    let place = replaced();
    let (published, told) = publish(&place, StagingRules::default());
    let totals = published.unwrap();
    assert_eq!((totals.files, totals.removed, totals.kept), (2, 6, 0));
    assert_eq!(place.published(), ["both", "foreign", "new", MANIFEST, "stays"]);
    assert_eq!(fs::read_to_string(place.output("both")).unwrap(), "new");
    assert_eq!(fs::read_to_string(place.output("stays/foreign")).unwrap(), "mine");
    assert!(!place.output("stays/gone").exists());
    assert_eq!(told, ["results of before that this run does not have were removed: 6"]);
    assert_eq!(place.manifest()["totals"]["removed"], 6);
}

// promise: S-113
#[test]
fn keep_old_keeps_them_and_tells() {
    let place = replaced();
    let (published, told) = publish(&place, KEEP);
    let totals = published.unwrap();
    assert_eq!((totals.removed, totals.kept), (0, 6));
    for old in ["gone", "sub/deep/gone", "stays/gone"] {
        assert_eq!(fs::read_to_string(place.output(old)).unwrap(), "old", "{old}");
    }
    assert!(place.output("link").is_symlink() && place.output("hollow").is_dir());
    assert!(told[0].contains("were kept, as asked: 6"), "{told:?}");
    assert!(kept(&place).contains(&("sub/deep/gone".into(), "asked".into())), "{:?}", kept(&place));
    assert!(!place.output(WITHDRAWN).exists());
}

// promise: S-113
#[test]
fn what_is_not_as_the_old_manifest_says_is_left_alone_and_told() {
    let place = replaced();
    fs::write(place.output("gone"), "grown since").unwrap();
    fs::remove_file(place.output("link")).unwrap();
    symlink("elsewhere", place.output("link")).unwrap();
    fs::remove_file(place.output("sub/gone")).unwrap();
    fs::create_dir(place.output("sub/gone")).unwrap();
    fs::remove_file(place.output("sub/deep/gone")).unwrap();
    let (published, told) = publish(&place, StagingRules::default());
    let totals = published.unwrap();
    assert_eq!((totals.removed, totals.kept), (2, 3), "`odd` and `stays/gone` were removed, one was not there");
    assert_eq!(fs::read_to_string(place.output("gone")).unwrap(), "grown since");
    assert!(place.output("link").is_symlink() && place.output("sub/gone").is_dir());
    assert!(told.iter().any(|line| line.contains("not what the old manifest says: 3 (gone, ")), "{told:?}");
    assert!(kept(&place).contains(&("gone".into(), "changed".into())), "{:?}", kept(&place));
}

// promise: S-113
#[test]
fn a_hostile_manifest_reaches_nothing_outside_of_the_output() {
    let place = replaced();
    let outside = place.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "old").unwrap();
    symlink(&outside, place.output("way-out")).unwrap();
    let paths = [
        "../outside/file",
        outside.join("file").to_str().unwrap(),
        "way-out/file",
        "sub/../../outside/file",
        MANIFEST,
        ".runseal-test-run.partial/both",
        "",
    ]
    .map(|path| json!({ "path": path, "size": 3 }));
    edit(&place, |manifest| {
        manifest["files"] = json!(paths);
        manifest["directories"] = json!([{ "path": "../outside" }, { "path": "way-out" }, { "path": "." }]);
    });
    let totals = publish(&place, StagingRules::default()).0.unwrap();
    assert_eq!((totals.removed, totals.kept), (1, paths.len() as u64), "the link of before was removed");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "old");
    assert!(place.output("way-out").is_symlink());
    let because: Vec<_> = kept(&place).into_iter().map(|(_, because)| because).collect();
    assert_eq!(because, ["outside", "outside", "changed", "outside", "outside", "outside", "outside"]);
}

// promise: S-113
#[test]
fn a_manifest_that_cannot_be_read_removes_nothing_and_is_told() {
    for (text, why) in [
        ("not JSON", "not a manifest of runseal"),
        (
            "{\"format\": \"runseal-manifest\", \"version\": 2, \"files\": [{\"path\": \"gone\", \"size\": 3}]}",
            "version 2",
        ),
    ] {
        let place = replaced();
        fs::write(place.output(MANIFEST), text).unwrap();
        let (published, told) = publish(&place, StagingRules::default());
        assert_eq!(published.unwrap().removed, 0);
        assert!(told[0].contains("cannot be read") && told[0].contains(why), "{told:?}");
        assert_eq!(fs::read_to_string(place.output("gone")).unwrap(), "old");
        assert!(!place.output(WITHDRAWN).exists());
    }
    let place = replaced();
    fs::remove_file(place.output(MANIFEST)).unwrap();
    symlink("/etc/passwd", place.output(MANIFEST)).unwrap();
    assert_eq!(publish(&place, StagingRules::default()).0.unwrap().removed, 0);
    assert!(!place.output(MANIFEST).is_symlink());
}

// promise: S-113
#[test]
fn what_may_not_be_removed_is_kept_and_told() {
    if !geteuid().is_root() {
        eprintln!("SKIP: only root can take the rights of another user");
        return;
    }
    let place = replaced();
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.output(""), fs::Permissions::from_mode(0o777)).unwrap();
    let hooks = Hooks::none();
    let shared = StagingRules { shared_output: true, ..StagingRules::default() };
    let publisher = place.run_publisher(true, shared, &hooks);
    let as_nobody = || {
        setfsgid(Gid::from_raw(65_534));
        setfsuid(Uid::from_raw(65_534));
        publisher.publish(ROOT, None)
    };
    let totals = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap()).unwrap();
    // Those below directories of root.
    assert_eq!((totals.removed, totals.kept), (3, 3));
    assert!(hooks.told.lock().iter().any(|line| line.contains("may not remove them: 3")), "{:?}", hooks.told.lock());
    assert_eq!(place.manifest()["totals"]["files"], 2);
    assert_eq!(fs::read_to_string(place.output("new")).unwrap(), "new");
}

/// Wherever a run is killed, the next one to replace these results knows what was there before. The states are those
/// between two system calls that change the output.
// promise: S-113
#[test]
fn a_run_that_was_killed_while_it_replaced_results_vouches_for_nothing_and_is_made_up_for() {
    type Kill = fn(&Place);
    let withdrawn: Kill = |place| fs::rename(place.output(MANIFEST), place.output(WITHDRAWN)).unwrap();
    let placed: Kill = |place| {
        fs::rename(place.output(MANIFEST), place.output(WITHDRAWN)).unwrap();
        fs::write(place.output("both"), "new").unwrap();
        fs::write(place.output("another"), "of the killed run").unwrap();
    };
    let retired: Kill = |place| {
        fs::rename(place.output(MANIFEST), place.output(WITHDRAWN)).unwrap();
        fs::remove_file(place.output("gone")).unwrap();
    };
    let vouched: Kill = |place| fs::copy(place.output(MANIFEST), place.output(WITHDRAWN)).map(drop).unwrap();
    let states = [("withdrawn", withdrawn, 6), ("placed", placed, 6), ("retired", retired, 5), ("vouched", vouched, 6)];
    for (state, kill, removed) in states {
        let place = replaced();
        kill(&place);
        let vouches = place.output(MANIFEST).exists();
        assert_eq!(vouches, state == "vouched");
        assert_eq!(publish(&place, StagingRules::default()).0.unwrap().removed, removed, "{state}");
        assert!(!place.output("gone").exists() && !place.output(WITHDRAWN).exists(), "{state}");
        assert_eq!(place.manifest()["files"].as_array().unwrap().len(), 2, "{state}");
    }
}

// promise: S-113
#[test]
fn a_failure_between_placing_and_removing_is_made_up_for() {
    let place = replaced();
    let hooks = Hooks::once_written({
        let both = place.output("both");
        // A file cannot replace it.
        move || {
            fs::remove_file(&both).unwrap();
            fs::create_dir(&both).unwrap();
        }
    });
    let stager = place.run_publisher(true, StagingRules::default(), &hooks);
    stager.publish(ROOT, None).unwrap_err();
    fs::remove_dir(place.output("both")).unwrap();
    assert!(!place.output(MANIFEST).exists(), "nothing is vouched for");
    assert_eq!(stager.publish(ROOT, None).unwrap().removed, 6);
    assert!(!place.output("gone").exists());
}

// promise: S-110
#[test]
fn an_empty_output_leaves_no_manifest() {
    let place = Place::new();
    let stager = place.run_publisher(false, StagingRules::default(), &Hooks::none());
    assert_eq!(stager.publish(ROOT, None).unwrap(), Totals::default());
    assert_eq!(place.published(), [""; 0]);
    assert!(place.output("").is_dir());
    place.results(&[("result", "x")]);
    place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap();
    assert_published(&place);

    let place = replaced();
    place.assert_nothing_is_held();
    let totals = publish(&place, StagingRules::default()).0.unwrap();
    assert_eq!(totals.removed, 7);
    assert_eq!(place.published(), ["foreign", "stays"], "an empty result replaces the old one too");
}

/// Results of before in a bucket, and new ones in the scratch.
fn replaced_in(bucket: &Arc<Bucket>) -> Place {
    let place = Place::new();
    place.results(&[("both", "old"), ("gone", "old"), ("sub/", ""), ("sub/gone", "old"), ("hollow/", "")]);
    let odd = place.file(ROOT, b"odd\xff", b"old");
    place.scratch.forget(odd.ino, 1);
    send(&place, bucket, false, StagingRules::default()).0.unwrap();
    bucket.put("out/foreign", "mine");
    bucket.put("outside", "old");
    place.assert_nothing_is_held();
    place.results(&[("both", "new"), ("new", "new")]);
    bucket.forget_calls();
    place
}

fn stager(place: &Place, bucket: &Arc<Bucket>, overwrite: bool, rules: StagingRules, hooks: &Arc<Hooks>) -> Stager {
    let output = Location::S3(S3Uri { bucket: BUCKET.into(), key: "out/".into() });
    let cleared = check_in_by(bucket, &[], Some(&output), overwrite, rules).unwrap();
    Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Arc::clone(hooks) as _, Arc::default())
}

fn send(
    place: &Place,
    bucket: &Arc<Bucket>,
    overwrite: bool,
    rules: StagingRules,
) -> (Result<Totals, StageError>, Vec<String>) {
    let hooks = Hooks::none();
    let stager = stager(place, bucket, overwrite, rules, &hooks);
    let published = stager.publish(ROOT, Some(&bucket.cloud()));
    let told = hooks.told.lock().clone();
    (published, told)
}

fn manifest_in(bucket: &Bucket) -> Value {
    serde_json::from_slice(&bucket.contents(&format!("out/{MANIFEST}")).unwrap()).unwrap()
}

// promise: S-113
#[test]
fn objects_that_the_new_run_does_not_have_are_removed_before_the_manifest_is_there() {
    let bucket = Bucket::new();
    let place = replaced_in(&bucket);
    let (published, told) = send(&place, &bucket, true, StagingRules::default());
    let totals = published.unwrap();
    assert_eq!((totals.removed, totals.kept), (3, 0));
    assert_eq!(bucket.keys(), ["out/both", "out/foreign", "out/new", &format!("out/{MANIFEST}"), "outside"]);
    assert_eq!(told, ["results of before that this run does not have were removed: 3"]);
    let calls = bucket.0.lock().calls.clone();
    let at = |operation: &str| calls.iter().rposition(|(name, _)| *name == operation).unwrap();
    assert_eq!(calls[at("PutObject")].1, format!("out/{MANIFEST}"));
    assert!(at("DeleteObject") < at("PutObject"), "the manifest comes last");
    assert_eq!(manifest_in(&bucket)["replaced"], Value::Null);
}

// promise: S-113
#[test]
fn objects_are_kept_where_they_are_to_be_or_are_others_or_may_not_be_removed() {
    let bucket = Bucket::new();
    let place = replaced_in(&bucket);
    let (published, told) = send(&place, &bucket, true, KEEP);
    assert_eq!((published.unwrap().kept, bucket.count("DeleteObject")), (3, 0));
    assert!(told[0].contains("as asked: 3"), "{told:?}");

    let bucket = Bucket::new();
    let place = replaced_in(&bucket);
    bucket.put("out/gone", "xxx");
    let (published, _) = send(&place, &bucket, true, StagingRules::default());
    assert_eq!((published.as_ref().unwrap().removed, published.unwrap().kept), (2, 1));
    assert_eq!(bucket.contents("out/gone").unwrap(), "xxx", "somebody has put another object there");
    assert_eq!(manifest_in(&bucket)["kept"], json!([{ "path": "gone", "because": "changed" }]));

    let bucket = Bucket::new();
    let place = replaced_in(&bucket);
    bucket.fault("DeleteObject", 0, u64::MAX, Effect::Refuse(Cause::Denied, "AccessDenied"));
    let hooks = Hooks::none();
    let published = stager(&place, &bucket, true, StagingRules::default(), &hooks).publish(ROOT, Some(&bucket.cloud()));
    assert_eq!((published.as_ref().unwrap().removed, published.unwrap().kept), (0, 3));
    assert!(hooks.told.lock()[0].contains("may not remove them: 3"), "{:?}", hooks.told.lock());
}

// promise: S-113
#[test]
fn a_manifest_in_s3_that_lists_strangers_or_cannot_be_read_removes_nothing() {
    let bucket = Bucket::new();
    let place = replaced_in(&bucket);
    let key = format!("out/{MANIFEST}");
    let mut manifest = manifest_in(&bucket);
    manifest["files"] = json!([
        { "path": "x", "size": 3, "key": "outside" },
        { "path": "x", "size": 3, "key": "out" },
        { "path": "x", "size": 3, "key": &key },
        { "path": "x", "size": 3, "key": "out/" },
    ]);
    bucket.put(&key, manifest.to_string());
    let totals = send(&place, &bucket, true, StagingRules::default()).0.unwrap();
    assert_eq!((totals.removed, totals.kept), (0, 4));
    assert!(bucket.contents("outside").is_some());

    for effect in [Some(Effect::Refuse(Cause::Denied, "AccessDenied")), None] {
        let bucket = Bucket::new();
        let place = replaced_in(&bucket);
        match effect {
            Some(effect) => bucket.fault("GetObject", 0, 1, effect),
            None => bucket.put(&key, "not JSON"),
        }
        let hooks = Hooks::none();
        let stager = stager(&place, &bucket, true, StagingRules::default(), &hooks);
        let totals = stager.publish(ROOT, Some(&bucket.cloud())).unwrap();
        assert_eq!((totals.removed, bucket.count("DeleteObject")), (0, 0));
        assert!(hooks.told.lock()[0].contains("cannot be read"), "{:?}", hooks.told.lock());
    }
}

/// Fails each call of replacing once; then another run takes over, as after `kill -9`.
// promise: S-113
#[test]
fn whatever_call_fails_the_next_run_still_knows_what_was_there_before() {
    for (operation, calls) in [("GetObject", 1), ("PutObject", 4), ("HeadObject", 4), ("DeleteObject", 4)] {
        for nth in 0..calls {
            for effect in [Effect::Refuse(Cause::Unreachable, ""), Effect::Lose] {
                let bucket = Bucket::new();
                let place = replaced_in(&bucket);
                bucket.fault(operation, nth, 1, effect);
                let killed = stager(&place, &bucket, true, StagingRules::default(), &Hooks::none());
                // An answer that is lost may leave the work done; only a call that is made fails.
                if killed.publish(ROOT, Some(&bucket.cloud())).is_err() {
                    let manifest = manifest_in(&bucket);
                    let vouched = |path: &str| {
                        let files = manifest["files"].as_array().unwrap();
                        files.iter().any(|file| file["path"] == path) && manifest["withdrawn"].is_null()
                    };
                    let changed = bucket.contents("out/both").unwrap() == "new";
                    assert!(
                        !(changed && vouched("gone")),
                        "{operation} {nth}: an old manifest vouches for new results"
                    );
                }
                drop(killed);
                send(&place, &bucket, true, StagingRules::default()).0.unwrap();
                let keys = ["out/both", "out/foreign", "out/new", &format!("out/{MANIFEST}"), "outside"];
                assert_eq!(bucket.keys(), keys, "{operation} {nth}");
            }
        }
    }
}

// promise: S-110
#[test]
fn an_empty_output_leaves_no_manifest_in_s3() {
    let (place, bucket) = (Place::new(), Bucket::new());
    send(&place, &bucket, false, StagingRules::default()).0.unwrap();
    assert_eq!(bucket.keys(), [""; 0]);
    let place = replaced_in(&bucket);
    place.assert_nothing_is_held();
    send(&place, &bucket, true, StagingRules::default()).0.unwrap();
    assert_eq!(bucket.keys(), ["out/foreign", "outside"]);
}

#[test]
fn a_result_with_the_name_of_the_withdrawn_manifest_is_refused() {
    let place = Place::new();
    place.results(&[(WITHDRAWN, "mine")]);
    let error = place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap_err();
    assert!(matches!(&error, StageError::Reserved { path } if path.as_os_str().as_bytes() == WITHDRAWN.as_bytes()));
}
