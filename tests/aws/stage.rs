//! Staging against the double: whatever goes wrong on the way, results are complete or an error says why not.

use std::sync::Arc;
use std::time::Duration;

use runseal::audit::Trail;
use runseal::aws::{Cause, Cloud, UploadSettings};
use runseal::backing::MemoryBacking;
use runseal::crypt::Keyring;
use runseal::fs::{Creator, Kind, ROOT, Scratch, ScratchOptions, WriteMode};
use runseal::preflight::{Request, check};
use runseal::spec::{EngineChoice, InputSpec, Location, MemoryLock, StagingRules};
use runseal::stage::{Progress, StageError, Stager, Totals};
use runseal::store::Store;

use crate::aws_double::{Double, Effect, Fault, KeyState, OUTPUT_KEY, World};
use crate::fixture;

const PART: usize = 16 << 20;
const MANIFEST: &str = "runseal-manifest.json";

/// A double, and a scratch in memory.
struct Site {
    double: Double,
    scratch: Arc<Scratch>,
}

struct Silent;

impl Progress for Silent {
    fn start(&self, _: &'static str, _: u64, _: u64) {}
    fn advance(&self, _: u64) {}
    fn file_done(&self) {}
    fn finish(&self) {}
}

impl Site {
    fn new() -> Self {
        let keyring = Keyring::new(EngineChoice::Auto, MemoryLock::Try).unwrap();
        let store = Store::new(Box::new(MemoryBacking::new(2)), keyring, 1 << 30);
        let options = ScratchOptions { memory: 1 << 24, uid: 0, gid: 0, mode: 0o755 };
        Self { double: Double::start(World::default()), scratch: Arc::new(Scratch::new(store, options)) }
    }

    /// A small object and one of three parts.
    fn with_inputs() -> Self {
        let site = Self::new();
        site.double.put("inputs", "in/small", data(5_000));
        site.double.put("inputs", "in/large", data(2 * PART + 5));
        site
    }

    /// A small result and one of three parts.
    fn with_results() -> Self {
        let site = Self::new();
        let caller = Creator { uid: 0, gid: 0, umask: 0 };
        for (name, size) in [("small", 5_000), ("large", 2 * PART + 5)] {
            let ino = site.scratch.mknod(ROOT, name.as_bytes(), Kind::File, 0o644, 0, &caller).unwrap().ino;
            site.scratch.write(ino, 0, &data(size), WriteMode::default()).unwrap();
            site.scratch.forget(ino, 1);
        }
        site
    }

    /// A connection with the newest credentials.
    fn cloud(&self) -> Cloud {
        fixture::cloud(&self.double, "runner")
    }

    fn stager(&self, inputs: &[&str], output: Option<&str>, cloud: &Cloud) -> Stager {
        let inputs: Vec<_> = inputs.iter().map(|text| InputSpec::parse(text.as_ref(), |_| false).unwrap()).collect();
        let output = output.map(|uri| Location::S3(uri.parse().unwrap()));
        let run = "run-1".parse().unwrap();
        let request = Request {
            run: &run,
            inputs: &inputs,
            output: output.as_ref(),
            uploads: &UploadSettings::default(),
            rules: StagingRules::default(),
            on_behalf: None,
            run_key: None,
            explain: false,
            space: u64::MAX,
        };
        let cleared = check(&request, Some(cloud)).unwrap_or_else(|report| panic!("{report}"));
        self.double.clear_calls();
        Stager::new(cleared, Arc::clone(&self.scratch), run.clone(), Arc::new(Silent), Arc::new(Trail::off()))
    }

    /// Fetches after preflight, with faults that strike after it.
    fn fetch(&self, faults: Vec<Fault>) -> Result<Totals, StageError> {
        let cloud = self.cloud();
        let stager = self.stager(&["s3://inputs/in/"], None, &cloud);
        faults.into_iter().for_each(|fault| self.double.fault(fault));
        stager.fetch(ROOT, Some(&cloud))
    }

    /// The same for publishing; answers with the stager too.
    fn publish(&self, faults: Vec<Fault>) -> (Stager, Result<Totals, StageError>) {
        let cloud = self.cloud();
        let stager = self.stager(&[], Some("s3://outputs/out/"), &cloud);
        faults.into_iter().for_each(|fault| self.double.fault(fault));
        let published = stager.publish(ROOT, Some(&cloud));
        (stager, published)
    }

    fn assert_fetched(&self) {
        for (name, size) in [("small", 5_000), ("large", 2 * PART + 5)] {
            let find = |parent, name: &str| self.scratch.lookup(parent, name.as_bytes()).unwrap().ino;
            let ino = find(find(ROOT, "in"), name);
            let mut found = vec![0; size + 1];
            assert_eq!(self.scratch.read(ino, 0, &mut found).unwrap(), size);
            assert!(found[..size] == data(size), "{name}");
        }
    }

    fn assert_published(&self) {
        assert_eq!(self.double.keys("outputs"), ["out/large", "out/runseal-manifest.json", "out/small"]);
        for (name, size) in [("small", 5_000), ("large", 2 * PART + 5)] {
            assert!(self.double.read("outputs", &format!("out/{name}")).unwrap() == data(size), "{name}");
        }
        let manifest = self.double.read("outputs", &format!("out/{MANIFEST}")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let keys: Vec<_> =
            manifest["files"].as_array().unwrap().iter().map(|file| &file["encryption"]["key"]).collect();
        assert_eq!(keys, [OUTPUT_KEY; 2]);
        assert_eq!(self.double.uploads(), []);
    }

    fn assert_nothing_is_published(&self) {
        assert!(!self.double.keys("outputs").contains(&format!("out/{MANIFEST}")));
    }
}

fn data(size: usize) -> Vec<u8> {
    (0..size.div_ceil(8) as u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).take(size).collect()
}

/// The cause of a failed call, which must name an object and give a remedy.
fn cause(result: Result<Totals, StageError>) -> Cause {
    match result {
        Err(error @ StageError::Remote { .. }) => {
            let text = error.to_string();
            assert!(text.contains("s3://") && text.contains("; "), "{text}");
            let StageError::Remote { source, .. } = error else { unreachable!() };
            source.cause
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_part_is_asked_for_once_under_the_etag_that_preflight_saw() {
    let site = Site::with_inputs();
    site.fetch(Vec::new()).unwrap();
    site.assert_fetched();
    assert_eq!((site.double.count("GetObject"), site.double.count("HeadObject")), (1 + 3, 1));
    assert!(site.double.calls_of("GetObject").iter().all(|call| call.header("if-match").is_some()));
}

#[test]
fn what_passes_is_survived_while_fetching() {
    let effects = [
        Effect::slow_down(),
        Effect::internal_error(),
        Effect::Reset,
        Effect::Truncate(1000),
        Effect::WrongByte,
        Effect::Trickle { piece: 2 << 20, pause: Duration::from_millis(20) },
        Effect::Delay(Duration::from_millis(300)),
    ];
    for effect in effects {
        for after in [0, 2] {
            // Bytes that are wrong within a part show only in the checksum of the whole.
            let damaged = matches!(effect, Effect::WrongByte);
            let target = if damaged { "inputs/in/small" } else { "*" };
            let after = if damaged { 0 } else { after };
            let site = Site::with_inputs();
            site.fetch(vec![Fault::on("GetObject", effect.clone()).at(target).after(after).times(1)])
                .unwrap_or_else(|e| panic!("{effect:?}: {e}"));
            site.assert_fetched();
        }
    }
}

#[test]
fn damaged_contents_never_pass() {
    for (effect, target) in [
        (Effect::WrongByte, "inputs/in/large"),
        (Effect::WrongChecksum, "inputs/in/large"),
        (Effect::WrongChecksum, "inputs/in/small"),
    ] {
        let site = Site::with_inputs();
        let fault = Fault::on("*", effect.clone()).at(target);
        match site.fetch(vec![fault]) {
            Err(StageError::Damaged { .. }) => {}
            result => assert_eq!(cause(result), Cause::Corrupt, "{effect:?} {target}"),
        }
    }
}

#[test]
fn a_replaced_object_is_a_modified_input() {
    for target in ["inputs/in/small", "inputs/in/large"] {
        let site = Site::with_inputs();
        match site.fetch(vec![Fault::on("GetObject", Effect::Replaced).at(target).times(1)]) {
            Err(StageError::Modified { path }) => assert_eq!(path.to_str().unwrap(), format!("s3://{target}")),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn credentials_that_expire_while_fetching_are_named() {
    let site = Site::with_inputs();
    let fault = Fault::on("GetObject", Effect::change(|world| world.expire("runner"))).after(1).times(1);
    assert_eq!(cause(site.fetch(vec![fault])), Cause::Credentials);
}

#[test]
fn each_part_is_sent_once_and_the_manifest_last() {
    let site = Site::with_results();
    site.publish(Vec::new()).1.unwrap();
    site.assert_published();
    let count = |operation| site.double.count(operation);
    assert_eq!(
        (count("CreateMultipartUpload"), count("UploadPart"), count("CompleteMultipartUpload"), count("PutObject")),
        (1, 3, 1, 2)
    );
}

#[test]
fn what_passes_is_survived_while_publishing() {
    let effects = [Effect::slow_down(), Effect::internal_error(), Effect::Reset, Effect::ResetAfterwards];
    for effect in effects {
        for operation in ["UploadPart", "CompleteMultipartUpload", "PutObject"] {
            let site = Site::with_results();
            let (stager, published) = site.publish(vec![Fault::on(operation, effect.clone()).times(1)]);
            if let Err(error) = published {
                panic!("{effect:?} {operation}: {error}");
            }
            drop(stager);
            site.assert_published();
        }
    }
}

#[test]
fn an_expired_token_holds_the_results_until_there_is_another() {
    for operation in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"] {
        let site = Site::with_results();
        let fault = Fault::on(operation, Effect::change(|world| world.expire("runner"))).times(1);
        let (stager, published) = site.publish(vec![fault]);
        assert_eq!(cause(published), Cause::Credentials, "{operation}");
        site.assert_nothing_is_published();
        stager.publish(ROOT, Some(&site.cloud())).unwrap_or_else(|e| panic!("{operation}: {e}"));
        site.assert_published();
    }
}

#[test]
fn a_key_disabled_after_preflight_holds_the_results_until_it_is_enabled() {
    for operation in ["CreateMultipartUpload", "UploadPart", "PutObject"] {
        let site = Site::with_results();
        let disable = Effect::change(|world| world.key(OUTPUT_KEY).state = KeyState::Disabled);
        let (stager, published) = site.publish(vec![Fault::on(operation, disable).times(1)]);
        assert_eq!(cause(published), Cause::KeyState, "{operation}");
        site.assert_nothing_is_published();
        site.double.change(|world| world.key(OUTPUT_KEY).state = KeyState::Enabled);
        stager.publish(ROOT, Some(&site.cloud())).unwrap_or_else(|e| panic!("{operation}: {e}"));
        site.assert_published();
    }
}

#[test]
fn giving_up_leaves_no_upload_behind() {
    let site = Site::with_results();
    let disable = Effect::change(|world| world.key(OUTPUT_KEY).state = KeyState::Disabled);
    let (stager, published) = site.publish(vec![Fault::on("UploadPart", disable).after(1).times(1)]);
    assert_eq!(cause(published), Cause::KeyState);
    assert_eq!(site.double.uploads().len(), 1);
    stager.give_up(Some(&site.cloud()));
    assert_eq!(site.double.uploads(), []);
    assert_eq!(site.double.keys("outputs"), [""; 0]);
}

#[test]
fn another_default_encryption_than_preflight_saw_is_told() {
    let site = Site::with_results();
    let other = Effect::change(|world| world.bucket("outputs").encryption = crate::aws_double::Encryption::default());
    let (stager, published) = site.publish(vec![Fault::on("CreateMultipartUpload", other).times(1)]);
    match published {
        Err(error @ StageError::OtherEncryption { .. }) => {
            assert!(error.to_string().contains(OUTPUT_KEY), "{error}");
        }
        other => panic!("{other:?}"),
    }
    site.assert_nothing_is_published();
    assert_eq!(site.double.uploads(), [], "nothing goes where it should not");
    site.double.change(|world| world.bucket("outputs").encryption = crate::aws_double::Encryption::kms(OUTPUT_KEY));
    stager.publish(ROOT, Some(&site.cloud())).unwrap();
    site.assert_published();
}

#[test]
fn a_key_that_appears_after_preflight_is_not_replaced() {
    let site = Site::with_results();
    let intrude = Effect::change(|world| {
        let intruder =
            crate::aws_double::Object::new("not mine".into(), crate::aws_double::Encryption::kms(OUTPUT_KEY));
        world.bucket("outputs").objects.insert("out/large".into(), intruder);
    });
    let (stager, published) = site.publish(vec![Fault::on("CreateMultipartUpload", intrude).times(1)]);
    match published {
        Err(StageError::Appeared { path }) => assert_eq!(path.to_str().unwrap(), "s3://outputs/out/large"),
        other => panic!("{other:?}"),
    }
    assert_eq!(site.double.read("outputs", "out/large").unwrap(), "not mine");
    site.double.change(|world| drop(world.bucket("outputs").objects.remove("out/large")));
    stager.publish(ROOT, Some(&site.cloud())).unwrap();
    site.assert_published();
}
