//! The audit trail of whole runs: every request of AWS in it, the chain intact, and no secret.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::aws_double::{Denial, Effect, Fault, INPUT_KEY, Layer, OUTPUT_KEY, REGION, Service, Wording};
use crate::fixture::Site;
use crate::program::{Said, finish, require_host, say, text};

/// More than two parts of a fetch, and of an upload.
const LARGE: usize = 40 << 20;

/// A site with a small input and a large one.
fn site() -> Site {
    Site::holding([("reads/a.fq", b"ACGT".to_vec()), ("reads/large", vec![7; LARGE])])
}

impl Site {
    /// A run that copies its inputs to its output, audited in `trail`.
    fn copy(&self, flags: &[&str]) -> Said {
        let mut command = self.runseal();
        command.args(["run", "--input", "s3://inputs/reads/", "--output", "s3://outputs/out/", "--audit", "trail"]);
        command.args(flags).args(["--", "sh", "-euc", "cp \"$RUNSEAL_INPUT\"/reads/* \"$RUNSEAL_OUTPUT\""]);
        finish(command)
    }

    /// The events of the trail, which must be intact.
    fn events(&self) -> Vec<Value> {
        let trail = self.path("trail");
        say(&["audit", "verify", text(&trail)]).expect(0, &[]);
        let written = fs::read_to_string(trail).expect("written");
        written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Request ids that the double gave, but for calls of S3 to KMS, which the caller never sees.
    fn given(&self) -> BTreeSet<String> {
        let calls = self.double.calls().into_iter().filter(|call| call.service != Service::KmsForS3);
        calls.map(|call| call.request_id).collect()
    }
}

fn noted(events: &[Value]) -> BTreeSet<String> {
    events.iter().filter_map(|event| Some(event["requestID"].as_str()?.to_owned())).collect()
}

fn count(events: &[Value], name: &str) -> usize {
    events.iter().filter(|event| event["eventName"] == name).count()
}

#[test]
fn a_whole_run_leaves_a_trail_with_every_request_of_aws() {
    // promise: T-40
    require_host!();
    let site = site();
    site.copy(&["--run-key-kms", INPUT_KEY, "--report", "report.json"]).expect(0, &[]);
    let events = site.events();

    let (given, noted) = (site.given(), noted(&events));
    let unknown: Vec<_> = site.double.calls().into_iter().filter(|call| call.service != Service::KmsForS3).collect();
    let unknown: Vec<_> = unknown.iter().filter(|call| !noted.contains(&call.request_id)).collect();
    assert!(unknown.is_empty(), "not in the trail: {unknown:#?}");
    assert_eq!(noted.difference(&given).count(), 0, "in the trail, but never given: {noted:?}");

    assert_eq!(events.last().expect("events")["eventName"], "WipeRunKey");
    for (name, times) in [
        ("GetCallerIdentity", 1),
        ("CreateRunKey", 1),
        ("WipeRunKey", 1),
        ("StageObject", 2),
        ("PublishObject", 3),
        // One for the probe of preflight, one for the large result.
        ("CreateMultipartUpload", 2),
        ("CompleteMultipartUpload", 1),
    ] {
        assert_eq!(count(&events, name), times, "{name}");
    }
    let key = events.iter().find(|event| event["eventName"] == "CreateRunKey").expect("made");
    assert_eq!(
        (&key["requestParameters"]["mixedWith"], &key["resources"][0]["ARN"]),
        (&INPUT_KEY.into(), &INPUT_KEY.into())
    );
    let identified = events.iter().position(|event| event["eventName"] == "GetCallerIdentity").expect("asked");
    for event in &events[identified + 1..] {
        assert_ne!(event["userIdentity"]["type"], "Unknown", "{event}");
        assert_eq!(event["awsRegion"], REGION, "{event}");
    }

    let report: Value = serde_json::from_slice(&fs::read(site.path("report.json")).expect("written")).expect("JSON");
    let head = report["audit"]["head"].as_str().expect("a hash");
    say(&["audit", "verify", "--head", head, text(&site.path("trail"))]).expect(0, &[]);
    assert_eq!(report["audit"]["lines"], events.len());
}

#[test]
fn no_secret_is_in_a_trail() {
    // promise: T-42
    require_host!();
    let site = site();
    let (id, credential) = site.double.credentials("runner");
    site.copy(&["--run-key-kms", INPUT_KEY]).expect(0, &[]);
    let trail = fs::read_to_string(site.path("trail")).expect("written").to_ascii_lowercase();
    let mut secrets = vec![credential.secret, id];
    secrets.extend(credential.token);
    let keys = site.double.data_keys();
    assert!(!keys.is_empty(), "a data key was drawn");
    for key in keys {
        secrets.push(key.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    for secret in secrets {
        assert!(!trail.contains(&secret.to_ascii_lowercase()), "{secret} is in the trail");
    }
    assert!(!trail.contains("x-amz-signature") && !trail.contains("x-amz-credential"), "no presigned URL");
}

#[test]
fn denials_are_in_the_trail_with_their_request_ids() {
    require_host!();
    let site = site();
    site.double.change(|world| {
        let denial = Denial::of("kms:Decrypt").on(OUTPUT_KEY).worded(Wording::NotAllowed(Layer::Identity));
        world.persona("runner").deny(denial);
    });
    site.copy(&[]).expect(77, &["kms:Decrypt"]);
    let events = site.events();
    let denied = events.iter().find(|event| event["eventName"] == "UploadPart").expect("the probe");
    assert_eq!(denied["errorCode"], "AccessDenied");
    assert!(denied["errorMessage"].as_str().is_some_and(|text| text.contains("kms:Decrypt")), "{denied}");
    assert!(site.given().contains(denied["requestID"].as_str().expect("an id")));
    assert_eq!((count(&events, "CreateRunKey"), count(&events, "StageObject")), (0, 0), "nothing began");
}

#[test]
fn failures_while_publishing_are_in_the_trail() {
    require_host!();
    let site = site();
    // The probe of preflight passes.
    site.double.fault(Fault::on("UploadPart", Effect::error(403, "AccessDenied", "Access Denied")).after(1));
    let mut command = site.runseal();
    command.args(["run", "--input", "s3://inputs/reads/", "--output", "s3://outputs/out/", "--audit", "trail"]);
    let id = crate::program::fresh_id();
    command.args(["--run-id", &id, "--", "sh", "-euc", "cp \"$RUNSEAL_INPUT\"/reads/large \"$RUNSEAL_OUTPUT\""]);
    let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("the binary runs");
    crate::program::wait_until("held", || crate::program::phase(&id).as_deref() == Some("held"));
    say(&["end", "--discard", &id]).expect(0, &[]);
    assert!(!child.wait().expect("ended").success());
    let events = site.events();
    let refused =
        events.iter().filter(|event| event["eventName"] == "UploadPart" && event["errorCode"] == "AccessDenied");
    assert!(refused.count() >= 1);
    assert_eq!(count(&events, "AbortMultipartUpload"), 2, "of the probe, and of the upload that was given up");
    assert_eq!(count(&events, "PublishObject"), 0);
    assert_eq!(events.last().expect("events")["eventName"], "WipeRunKey");
}

/// No AWS is needed for a trail.
#[test]
fn a_trail_that_cannot_be_kept_stops_a_run_before_its_command() {
    // promise: T-43
    require_host!();
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let dir = tempfile::tempdir().expect("tempdir");
    let (missing, witness) = (dir.path().join("missing/trail"), dir.path().join("witness"));
    let run = |trail: &std::path::Path| say(&["run", "--audit", text(trail), "--", "touch", text(&witness)]);
    run(&missing).expect(73, &["--audit", "missing/trail", "name a file"]);
    assert!(!witness.exists());

    let full = dir.path().join("full");
    fs::create_dir(&full).expect("made");
    mount(Some("trail"), &full, Some("tmpfs"), MsFlags::empty(), Some("size=4k,mode=0700")).expect("a tmpfs");
    fs::write(full.join("filler"), [0; 4096]).expect("filled");
    let said = run(&full.join("trail"));
    umount2(&full, MntFlags::empty()).expect("unmounted");
    assert_ne!(said.code, 0, "{said:?}");
    assert!(said.err.contains("the audit trail cannot be written"), "{said:?}");
    assert!(!witness.exists(), "the command was not started");

    let good = dir.path().join("trail");
    run(&good).expect(0, &[]);
    assert!(witness.exists());
    let written = fs::read_to_string(&good).expect("written");
    assert_eq!(written.lines().count(), 3, "the run began, its key was made and wiped: {written}");
}
