//! Preflight: every denial to its finding and remedy.

use std::time::Instant;

use runseal::audit::Trail;
use runseal::aws::{Cause, Cloud, Credentials, Gate, PolicyKind, SseAlgorithm, UploadSettings};
use runseal::preflight::{Cleared, Code, Finding, Outcome, Report, Request, check};
use runseal::spec::{AuditDestination, InputSpec, Location, StagingRules};

use crate::aws_double::{
    Denial, Double, Effect, Encryption, FOREIGN_ACCOUNT, Fault, Grant, INPUT_KEY, KeyState, Layer, MANAGED_KEY,
    OUTPUT_KEY, Service, Via, Wording, World,
};
use crate::fixture;

const PLENTY: u64 = 1 << 40;
const RUNNER: &str = "arn:aws:sts::111122223333:assumed-role/runner/session";

/// A double with two objects in `inputs` and nothing in `outputs`, and a run that wants to read and write there.
struct Bench {
    double: Double,
    inputs: Vec<&'static str>,
    output: Option<&'static str>,
    uploads: UploadSettings,
    run_key: Option<&'static str>,
    explain: bool,
    space: u64,
}

impl Bench {
    fn new() -> Self {
        let double = Double::start(World::default());
        double.put("inputs", "reads/a.fq", b"ACGT");
        double.put("inputs", "reads/b.fq", b"TTAACC");
        Self {
            double,
            inputs: vec!["s3://inputs/reads/"],
            output: Some("s3://outputs/results/"),
            uploads: UploadSettings::default(),
            run_key: None,
            explain: false,
            space: PLENTY,
        }
    }

    fn deny(self, denial: Denial) -> Self {
        self.double.change(|world| {
            world.persona("runner").deny(denial);
        });
        self
    }

    fn change(self, change: impl FnOnce(&mut World)) -> Self {
        self.double.change(change);
        self
    }

    fn check(&self) -> Result<Cleared, Report> {
        self.check_on(&fixture::cloud(&self.double, "runner"))
    }

    fn check_on(&self, cloud: &Cloud) -> Result<Cleared, Report> {
        let inputs: Vec<InputSpec> =
            self.inputs.iter().map(|text| InputSpec::parse(text.as_ref(), |_| false).unwrap()).collect();
        let output = self.output.map(|uri| Location::S3(uri.parse().unwrap()));
        let request = Request {
            run: &"run-1".parse().unwrap(),
            inputs: &inputs,
            output: output.as_ref(),
            uploads: &self.uploads,
            rules: StagingRules::default(),
            on_behalf: None,
            run_key: self.run_key,
            explain: self.explain,
            space: self.space,
        };
        let checked = check(&request, Some(cloud));
        assert_eq!(self.double.uploads(), [], "nothing may be left behind");
        checked
    }

    /// The only finding.
    fn finding(&self) -> Finding {
        let report = self.check().expect_err("a finding");
        let [finding] = report.findings.as_slice() else { panic!("{report}") };
        assert!(!finding.problem.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
        finding.clone()
    }
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

// promise: S-80
#[test]
fn what_is_well_is_cleared_and_nothing_is_left_behind() {
    let bench = Bench::new();
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(cleared.input_bytes(), 10);
    let identity = cleared.evidence().identity.as_ref().unwrap();
    assert_eq!(identity.arn, RUNNER);
    for (operation, count) in [
        ("GetCallerIdentity", 1),
        ("HeadObject", 2),
        ("GetObject", 1),
        ("CreateMultipartUpload", 1),
        ("UploadPart", 1),
        ("AbortMultipartUpload", 1),
        ("DescribeKey", 2),
        ("GenerateDataKey", 0),
        ("Decrypt", 0),
    ] {
        assert_eq!(bench.double.count(operation), count, "{operation}");
    }
    let checks = &cleared.evidence().checks;
    assert!(checks.iter().all(|check| check.outcome == Outcome::Passed), "{checks:#?}");
    let begun = bench.double.calls_of("CreateMultipartUpload");
    assert!(begun[0].key.starts_with("results/.runseal-preflight-"), "{}", begun[0].key);
}

#[test]
fn a_thousand_inputs_take_one_look_each_and_one_read_for_each_group() {
    let mut bench = Bench::new();
    for i in 0..1000 {
        bench.double.put("inputs", &format!("many/{i:04}.txt"), b"x");
    }
    bench.inputs = vec!["s3://inputs/many/"];
    let start = Instant::now();
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    println!("preflight of 1000 inputs below a prefix: {:?}", start.elapsed());
    assert_eq!(cleared.input_bytes(), 1000);
    assert_eq!((bench.double.count("HeadObject"), bench.double.count("GetObject")), (1000, 1));
    bench.double.clear_calls();
    bench.inputs = (0..1000).map(|i| &*format!("s3://inputs/many/{i:04}.txt").leak()).collect();
    bench.double.change(|world| {
        for i in 500..1000 {
            world.object("inputs", &format!("many/{i:04}.txt")).encryption = Encryption::kms(OUTPUT_KEY);
        }
    });
    let start = Instant::now();
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    println!("preflight of 1000 inputs one by one: {:?}", start.elapsed());
    assert_eq!((bench.double.count("HeadObject"), bench.double.count("GetObject")), (1000, 2));
    bench.inputs = vec!["s3://inputs/reads/a.fq"];
    let start = Instant::now();
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    println!("preflight of one input: {:?}", start.elapsed());
}

/// The multipart gotcha: beginning needs `kms:GenerateDataKey`, every part `kms:Decrypt` (cases 1 to 4, 20).
#[test]
fn parts_that_may_not_decrypt_are_found_before_the_run() {
    for wording in [Wording::NotAllowed(Layer::Identity), Wording::Plain] {
        let finding = Bench::new().deny(Denial::of("kms:Decrypt").on(OUTPUT_KEY).worded(wording)).finding();
        assert_eq!(finding.code, Code::ExportFailed);
        has(&finding.problem, &["multipart", "kms:Decrypt", OUTPUT_KEY, RUNNER]);
        let aws = finding.aws.unwrap();
        assert_eq!(
            (aws.cause, aws.operation, aws.action.as_deref()),
            (Cause::Denied, "s3:UploadPart", Some("kms:Decrypt"))
        );
        assert_eq!((aws.key.as_deref(), aws.principal.as_deref()), (Some(OUTPUT_KEY), Some(RUNNER)));
        assert_eq!(aws.request_ids.len(), 1);
        let repair = aws.repair.unwrap();
        let iam = repair.iam.unwrap();
        assert_eq!(
            (iam.action.as_slice(), iam.resource.as_slice()),
            (["kms:Decrypt", "kms:GenerateDataKey"].map(String::from).as_slice(), [OUTPUT_KEY.to_owned()].as_slice())
        );
        // Where AWS names the policy, only that one is to be changed.
        assert_eq!(repair.key_policy.is_none(), wording != Wording::Plain);
    }
}

#[test]
fn a_denied_data_key_is_told_from_a_denied_upload() {
    for wording in [Wording::NotAllowed(Layer::Resource), Wording::Plain] {
        let finding = Bench::new().deny(Denial::of("kms:GenerateDataKey").on(OUTPUT_KEY).worded(wording)).finding();
        assert_eq!(finding.code, Code::ExportFailed);
        let aws = finding.aws.as_ref().unwrap();
        assert_eq!(
            (aws.operation, aws.action.as_deref()),
            ("s3:CreateMultipartUpload", Some("kms:GenerateDataKey")),
            "{wording:?}"
        );
        assert_eq!(aws.key.as_deref(), Some(OUTPUT_KEY));
        assert!(aws.repair.as_ref().unwrap().key_policy.is_some());
    }
    let finding = Bench::new().deny(Denial::of("s3:PutObject").worded(Wording::Plain)).finding();
    assert_eq!(
        (finding.code, finding.aws.as_ref().unwrap().action.as_deref()),
        (Code::ExportFailed, Some("s3:PutObject"))
    );
    has(&finding.remedy, &["s3:PutObject", "arn:aws:s3:::outputs/results/*"]);
}

/// S3 says the same of both (cases 5, 18).
#[test]
fn a_denied_decryption_is_told_from_a_denied_object() {
    for wording in [Wording::NotAllowed(Layer::Identity), Wording::Plain, Wording::OldCiphertext] {
        let finding = Bench::new().deny(Denial::of("kms:Decrypt").on(INPUT_KEY).worded(wording)).finding();
        assert_eq!((finding.code, finding.subject.as_str()), (Code::ImportFailed, "s3://inputs/reads/a.fq"));
        let aws = finding.aws.as_ref().unwrap();
        assert_eq!(
            (aws.operation, aws.action.as_deref(), aws.key.as_deref()),
            ("s3:GetObject", Some("kms:Decrypt"), Some(INPUT_KEY)),
            "{wording:?}"
        );
        assert!(aws.repair.as_ref().unwrap().iam.is_some());
    }
    for wording in [Wording::NotAllowed(Layer::Identity), Wording::Plain] {
        let bench = Bench::new().deny(Denial::of("s3:GetObject").on("arn:aws:s3:::inputs/*").worded(wording));
        let finding = bench.finding();
        let aws = finding.aws.as_ref().unwrap();
        assert_eq!(
            (finding.code, aws.action.as_deref(), aws.key.as_deref()),
            (Code::ImportFailed, Some("s3:GetObject"), None)
        );
        assert_eq!(aws.also, ["s3://inputs/reads/b.fq"], "what fails alike is said once");
        assert_eq!(aws.policy.is_some(), wording != Wording::Plain, "the reason is fetched, HEAD has none");
    }
}

#[test]
fn the_policy_that_denies_decides_the_remedy() {
    for (layer, remedy, repairable) in [
        (Layer::Identity, "in the IAM policy of the caller", true),
        (Layer::Resource, "key policy", true),
        (Layer::Endpoint, "VPC endpoint", false),
        (Layer::Session, "session policy", false),
        (Layer::Boundary, "permissions boundary", false),
        (Layer::ServiceControl, "service control policy", false),
        (Layer::ResourceControl, "resource control policy", false),
    ] {
        let denial = |wording| Denial::of("kms:Decrypt").on(INPUT_KEY).worded(wording);
        let finding = Bench::new().deny(denial(Wording::NotAllowed(layer))).finding();
        has(&finding.remedy, &[remedy, "kms:Decrypt"]);
        assert_eq!(finding.aws.unwrap().repair.is_some(), repairable, "{layer:?}");
        let finding = Bench::new().deny(denial(Wording::Explicit(layer))).finding();
        has(&finding.remedy, &["change the statement", "denies kms:Decrypt"]);
        let aws = finding.aws.unwrap();
        assert!(aws.explicit_deny && aws.repair.is_none(), "no Allow helps against a Deny");
    }
}

/// Case 10.
#[test]
fn what_may_be_read_but_not_listed_is_no_problem_unless_it_must_be_listed() {
    let mut bench = Bench::new().deny(Denial::of("s3:ListBucket").worded(Wording::Plain));
    bench.inputs = vec!["s3://inputs/reads/a.fq"];
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    let unknown: Vec<_> = cleared.evidence().checks.iter().filter(|check| check.outcome == Outcome::Unknown).collect();
    assert_eq!(unknown.len(), 1, "the output: {unknown:?}");
    bench.inputs = vec!["s3://inputs/reads/"];
    let finding = bench.finding();
    assert_eq!(
        (finding.code, finding.aws.as_ref().unwrap().action.as_deref()),
        (Code::ImportFailed, Some("s3:ListBucket"))
    );
    has(&finding.remedy, &["s3:ListBucket", "one by one"]);
    bench.inputs = vec!["s3://inputs/reads/typo.fq"];
    let finding = bench.finding();
    has(&finding.problem, &["does not exist, or", "s3:ListBucket"]);
}

#[test]
fn what_does_not_exist_is_named() {
    for (input, problem) in [
        ("s3://inputs/nothing", "does not exist"),
        ("s3://inputs/nothing/", "does not exist"),
        ("s3://inputs/read", "does not exist"),
        ("s3://no-such-bucket/x", "no bucket `no-such-bucket`"),
        ("s3://no-such-bucket/x/", "no bucket `no-such-bucket`"),
    ] {
        let mut bench = Bench::new();
        bench.inputs = vec!["s3://inputs/reads/", input];
        let finding = bench.finding();
        assert_eq!(finding.code, Code::InputUriNotFound, "{input}");
        has(&finding.problem, &[problem]);
    }
    let mut bench = Bench::new();
    bench.output = Some("s3://no-such-bucket/x/");
    let finding = bench.finding();
    assert_eq!(finding.code, Code::ExportFailed);
    has(&finding.problem, &["no bucket"]);
}

/// Case 15: the policy has the ARN of objects, S3 gives that of the bucket, or the other way round.
#[test]
fn an_encryption_context_that_does_not_fit_the_bucket_key_is_recognised() {
    let denial = |pattern| Denial::of("kms:Decrypt").on(INPUT_KEY).unless_context(pattern).worded(Wording::Plain);
    let finding = Bench::new().deny(denial("arn:aws:s3:::inputs/*")).finding();
    has(&finding.problem, &["Bucket Key is on", "ARN of the bucket"]);
    has(&finding.remedy, &["kms:EncryptionContext:aws:s3:arn", "both"]);
    let bench = Bench::new().deny(denial("arn:aws:s3:::inputs")).change(|world| {
        for key in ["reads/a.fq", "reads/b.fq"] {
            world.object("inputs", key).encryption = Encryption::kms(INPUT_KEY).without_bucket_key();
        }
    });
    has(&bench.finding().problem, &["Bucket Key is off", "ARN of the object"]);
}

/// Case 16.
#[test]
fn a_key_of_another_region_is_recognised() {
    let mut bench = Bench::new();
    bench.uploads.sse = Some(SseAlgorithm::Kms);
    bench.uploads.kms_key = Some(OUTPUT_KEY.replace("eu-central-1", "us-west-2"));
    let finding = bench.finding();
    assert_eq!(finding.code, Code::ExportFailed);
    has(&finding.problem, &["us-west-2", "eu-central-1"]);
}

/// Case 17.
#[test]
fn the_managed_key_of_another_account_can_never_be_used() {
    let foreign = MANAGED_KEY.replace("111122223333", FOREIGN_ACCOUNT);
    let bench = Bench::new().change(|world| {
        world.key(&foreign).manager = "AWS".into();
        world.object("inputs", "reads/a.fq").encryption = Encryption::kms(&foreign).without_bucket_key();
    });
    let finding = bench.finding();
    assert_eq!(finding.code, Code::ImportFailed);
    has(&finding.problem, &["aws/s3", "another account"]);
    has(&finding.remedy, &["customer managed key"]);
    assert!(finding.aws.unwrap().repair.is_none(), "no policy can open it");
}

#[test]
fn the_managed_key_of_this_account_is_never_asked_directly() {
    let mut bench = Bench::new().change(|world| {
        for key in ["reads/a.fq", "reads/b.fq"] {
            world.object("inputs", key).encryption = Encryption::kms(MANAGED_KEY);
        }
    });
    bench.explain = true;
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    let asked = [bench.double.calls_of("Decrypt"), bench.double.calls_of("GenerateDataKey")].concat();
    assert!(asked.iter().all(|call| call.kms_key == OUTPUT_KEY && call.dry_run), "{asked:#?}");
    assert_eq!(asked.len(), 2);
}

/// Case 19: "does not exist" that means "no permission".
#[test]
fn a_key_of_another_account_needs_both_policies() {
    let foreign = INPUT_KEY.replace("111122223333", FOREIGN_ACCOUNT);
    let bench = Bench::new()
        .change(|world| {
            world.key(&foreign);
            world.object("inputs", "reads/a.fq").encryption = Encryption::kms(&foreign);
        })
        .deny(Denial::of("kms:*").on(&foreign).worded(Wording::Foreign));
    let finding = bench.finding();
    has(&finding.problem, &["the same of a key that does not exist and of one without permission"]);
    has(&finding.remedy, &["another account", "neither alone"]);
    let repair = finding.aws.unwrap().repair.unwrap();
    assert!(repair.iam.is_some() && repair.key_policy.is_some());
}

/// Case 22: S3 answers with ARNs always.
#[test]
fn an_alias_becomes_the_arn_of_its_key() {
    let mut bench = Bench::new().change(|world| world.key(OUTPUT_KEY).aliases.push("alias/results".into()));
    bench.uploads.sse = Some(SseAlgorithm::Kms);
    bench.uploads.kms_key = Some("alias/results".into());
    bench.run_key = Some("alias/results");
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(cleared.run_key(), Some(OUTPUT_KEY));
    assert_eq!(bench.double.count("DescribeKey"), 2, "each key once, by whatever names it is known");
    assert!(cleared.evidence().checks.iter().all(|check| check.outcome == Outcome::Passed));
    let begun = bench.double.calls_of("CreateMultipartUpload");
    assert_eq!(begun[0].header("x-amz-server-side-encryption-aws-kms-key-id"), Some(OUTPUT_KEY));
}

/// Case 23: a condition on the network fits the caller, but not the call that S3 makes.
#[test]
fn a_key_that_may_be_used_directly_but_not_through_s3_hints_at_its_conditions() {
    let bench = Bench::new().deny(Denial::of("kms:Decrypt").on(INPUT_KEY).via(Via::S3).worded(Wording::Plain));
    let finding = bench.finding();
    has(&finding.problem, &["aws:SourceVpce"]);
    has(&finding.remedy, &["remove conditions on the network"]);
}

/// `kms:ViaService` does the opposite: S3 decides, and the direct call only explains.
// promise: S-81
#[test]
fn a_key_that_may_be_used_through_s3_only_is_cleared() {
    let mut bench = Bench::new().deny(Denial::of("kms:*").via(Via::Direct));
    bench.explain = true;
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    let unknown = cleared.evidence().checks.iter().filter(|check| check.outcome == Outcome::Unknown).count();
    assert_eq!(unknown, 5, "two descriptions, three dry runs: {:#?}", cleared.evidence().checks);
}

/// Cases 6, 7, 12.
#[test]
fn a_bucket_that_demands_an_encryption_is_served_or_named() {
    let mut bench = Bench::new().change(|world| world.bucket("outputs").demands_sse = Some("aws:kms".into()));
    let finding = bench.finding();
    assert_eq!(finding.code, Code::ExportFailed);
    has(&finding.remedy, &["--sse aws:kms"]);
    assert_eq!(finding.aws.unwrap().policy, Some(PolicyKind::ResourceBased));
    bench.uploads.sse = Some(SseAlgorithm::Kms);
    bench.check().unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn keys_that_cannot_be_used_are_named_with_their_state() {
    for (state, problem, remedy) in [
        (KeyState::Disabled, "is disabled", "enable-key"),
        (KeyState::PendingDeletion, "is to be deleted", "cancel-key-deletion"),
        (KeyState::PendingImport, "no key material", "import"),
        (KeyState::Unavailable, "unavailable", "key store"),
    ] {
        for (key, code) in [(INPUT_KEY, Code::ImportFailed), (OUTPUT_KEY, Code::ExportFailed)] {
            let finding = Bench::new().change(|world| world.key(key).state = state).finding();
            assert_eq!(finding.code, code, "{state:?}");
            has(&finding.problem, &[problem, key]);
            has(&finding.remedy, &[remedy]);
            assert_eq!(finding.cause(), Some(Cause::KeyState));
        }
    }
    let finding = Bench::new()
        .change(|world| {
            let key = world.key(OUTPUT_KEY);
            (key.spec, key.usage) = ("HMAC_256".into(), "GENERATE_VERIFY_MAC".into());
        })
        .finding();
    has(&finding.problem, &["HMAC_256"]);
}

#[test]
fn imported_material_that_is_about_to_expire_is_a_warning() {
    let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 + 3600;
    let bench = Bench::new().change(|world| {
        let key = world.key(INPUT_KEY);
        (key.origin, key.valid_to) = ("EXTERNAL".into(), Some(soon));
    });
    let cleared = bench.check().unwrap_or_else(|report| panic!("{report}"));
    let warnings: Vec<_> = cleared.evidence().warnings().collect();
    assert_eq!(warnings.len(), 1);
    has(&warnings[0].detail, &["expires on"]);
}

#[test]
fn archived_objects_are_refused_with_the_command_that_restores_them() {
    let bench =
        Bench::new().change(|world| world.object("inputs", "reads/b.fq").storage_class = Some("DEEP_ARCHIVE".into()));
    let finding = bench.finding();
    assert_eq!((finding.code, finding.subject.as_str()), (Code::ImportFailed, "s3://inputs/reads/b.fq"));
    has(&finding.remedy, &["aws s3api restore-object --bucket 'inputs' --key 'reads/b.fq'"]);
    bench.double.change(|world| {
        world.object("inputs", "reads/b.fq").restore =
            Some("ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2040 00:00:00 GMT\"".into());
    });
    bench.check().unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn an_output_that_holds_objects_needs_leave_to_replace() {
    let mut bench = Bench::new();
    bench.double.put("outputs", "results/", b"");
    bench.check().unwrap_or_else(|report| panic!("the marker of the prefix itself: {report}"));
    bench.double.put("outputs", "results/old", b"x");
    let finding = bench.finding();
    assert_eq!(finding.code, Code::OutputNotEmpty);
    has(&finding.problem, &["results/old"]);
    bench.uploads.overwrite = true;
    bench.check().unwrap_or_else(|report| panic!("{report}"));
}

// promise: S-80
#[test]
fn an_upload_that_cannot_be_aborted_is_named() {
    let denial = Denial::of("s3:AbortMultipartUpload").worded(Wording::Explicit(Layer::Endpoint));
    let double = Bench::new().deny(denial).double;
    let output = Location::S3("s3://outputs/results".parse().unwrap());
    let request = Request {
        run: &"run-1".parse().unwrap(),
        inputs: &[],
        output: Some(&output),
        uploads: &UploadSettings::default(),
        rules: StagingRules::default(),
        on_behalf: None,
        run_key: None,
        explain: false,
        space: PLENTY,
    };
    let cleared = check(&request, Some(&fixture::cloud(&double, "runner"))).unwrap_or_else(|report| panic!("{report}"));
    let [(_, key, upload)] = &double.uploads()[..] else { panic!("one upload is left") };
    let warnings: Vec<_> = cleared.evidence().warnings().collect();
    has(&warnings[0].detail, &[key, upload, "AbortIncompleteMultipartUpload"]);
}

// promise: S-83
#[test]
fn keys_that_cannot_be_paths_are_named() {
    let mut bench = Bench::new();
    for key in ["odd/../x", "odd/a//b", "odd/f", "odd/f/g", "odd/fine"] {
        bench.double.put("inputs", key, b"x");
    }
    bench.inputs = vec!["s3://inputs/odd/"];
    let report = bench.check().unwrap_err();
    let codes: Vec<_> = report.findings.iter().map(|finding| (finding.code, finding.subject.as_str())).collect();
    assert_eq!(
        codes,
        [
            (Code::ImportFailed, "s3://inputs/odd/../x"),
            (Code::ImportFailed, "s3://inputs/odd/a//b"),
            (Code::InputConflict, "odd/f"),
        ]
    );
}

#[test]
fn inputs_must_fit_and_stay_out_of_the_output() {
    let mut bench = Bench::new();
    bench.space = 8191;
    assert_eq!(bench.finding().code, Code::FileSystemOutOfSpace, "two objects take two sectors");
    bench.space = 8192;
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    bench.output = Some("s3://inputs/reads/results");
    has(&bench.finding().problem, &["contain one another"]);
}

#[test]
fn an_object_that_changes_meanwhile_is_named() {
    let bench = Bench::new();
    bench.double.fault(
        Fault::on("HeadObject", Effect::change(|world| world.object("inputs", "reads/a.fq").etag = "other".into()))
            .times(1),
    );
    let finding = bench.finding();
    assert_eq!((finding.code, finding.subject.as_str()), (Code::ModifiedInputResource, "s3://inputs/reads/a.fq"));
}

#[test]
fn a_server_that_lists_no_etags_shows_changes_by_the_size_alone() {
    let bench = Bench::new().change(|world| world.bucket("inputs").lists_etags = false);
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    bench.double.fault(
        Fault::on("HeadObject", Effect::change(|world| world.object("inputs", "reads/a.fq").body = "ACG".into()))
            .times(1),
    );
    assert_eq!(bench.finding().code, Code::ModifiedInputResource);
}

#[test]
fn without_credentials_one_finding_says_so() {
    let bench = Bench::new().change(|world| world.expire("runner"));
    let finding = {
        // `cloud` would take new credentials: these are the expired ones.
        let (id, credential) = bench
            .double
            .change(|world| world.credentials.iter().next().map(|(id, c)| (id.clone(), c.clone())))
            .unwrap();
        let report = check_as(&bench, id, credential.secret).unwrap_err();
        let [finding] = report.findings.as_slice() else { panic!("{report}") };
        finding.clone()
    };
    assert_eq!((finding.code, finding.cause()), (Code::AssumeRoleFailed, Some(Cause::Credentials)));
}

fn check_as(bench: &Bench, id: String, secret: String) -> Result<Cleared, Report> {
    let mut config = fixture::config(&bench.double, "runner");
    config.credentials = Some(Credentials::new(&id, &secret, None));
    bench.check_on(&Cloud::connect(&config, &Gate::default()).unwrap())
}

#[test]
fn a_service_that_cannot_be_reached_is_one_finding() {
    let mut bench = Bench::new();
    bench.inputs = vec!["s3://inputs/reads/a.fq", "s3://inputs/reads/b.fq", "s3://inputs/x/"];
    let mut config = fixture::config(&bench.double, "runner");
    config.endpoints.s3 = Some("http://127.0.0.1:9".into());
    let report = bench.check_on(&Cloud::connect(&config, &Gate::default()).unwrap()).unwrap_err();
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    assert_eq!(finding.cause(), Some(Cause::Unreachable));
    // Without STS alone the run can go on: nothing but the name of the caller is missing.
    let mut config = fixture::config(&bench.double, "runner");
    config.endpoints.sts = Some("http://127.0.0.1:9".into());
    bench.inputs = vec!["s3://inputs/reads/"];
    let cleared =
        bench.check_on(&Cloud::connect(&config, &Gate::default()).unwrap()).unwrap_or_else(|report| panic!("{report}"));
    assert!(cleared.evidence().identity.is_none());
}

#[test]
fn the_key_of_the_run_is_tried_with_its_own_context() {
    let mut bench = Bench::new();
    bench.run_key = Some(INPUT_KEY);
    bench.check().unwrap_or_else(|report| panic!("{report}"));
    let tried = bench.double.calls_of("GenerateDataKey");
    assert_eq!((tried.len(), tried[0].dry_run, tried[0].context["runseal:run-id"].as_str()), (1, true, "run-1"));
    let bench = bench.deny(Denial::of("kms:GenerateDataKey").on(INPUT_KEY));
    let finding = bench.finding();
    assert_eq!((finding.code, finding.subject.as_str()), (Code::RunKeyFailed, INPUT_KEY));
    assert!(finding.aws.unwrap().repair.unwrap().iam.is_some());
    bench.double.change(|world| {
        world.persona("runner").allow_everything();
        world.key(INPUT_KEY).state = KeyState::Disabled;
    });
    let report = bench.check().unwrap_err();
    let of_run = report.findings.iter().find(|finding| finding.code == Code::RunKeyFailed).unwrap();
    has(&of_run.problem, &["disabled"]);
}

#[test]
fn a_thousand_objects_denied_are_one_finding() {
    let mut bench = Bench::new();
    for i in 0..300 {
        bench.double.put("inputs", &format!("many/{i:04}.txt"), b"x");
    }
    bench.inputs = vec!["s3://inputs/many/"];
    let bench = bench.deny(Denial::of("s3:GetObject").worded(Wording::Plain));
    let finding = bench.finding();
    assert_eq!(finding.aws.as_ref().unwrap().also.len(), 299);
    assert_eq!(bench.double.count("GetObject"), 1, "one for the reason");
    let json = serde_json::to_value(bench.check().unwrap_err()).unwrap();
    assert_eq!(json["findings"][0]["aws_code"], "AccessDenied");
    assert_eq!(json["identity"]["arn"], RUNNER);
    assert!(json["checks"].as_array().unwrap().iter().any(|check| check["outcome"] == "failed"));
}

// promise: S-82
#[test]
fn every_probe_is_in_the_trail() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    let bench = Bench::new();
    let trail = Trail::open(&AuditDestination::File(path.clone()), "run-1").unwrap();
    let cloud = Cloud::connect(&fixture::config(&bench.double, "runner"), &Gate::new(trail.into())).unwrap();
    bench.check_on(&cloud).unwrap_or_else(|report| panic!("{report}"));
    drop(cloud);
    let text = std::fs::read_to_string(&path).unwrap();
    let told: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let calls = bench.double.calls().into_iter().filter(|call| call.service != Service::KmsForS3);
    let mut asked: Vec<_> = calls.map(|call| (call.operation, call.request_id)).collect();
    let text = |event: &serde_json::Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let mut recorded: Vec<_> = told.iter().map(|event| (text(event, "eventName"), text(event, "requestID"))).collect();
    asked.sort();
    recorded.sort();
    assert_eq!(recorded, asked, "what the server saw and what the trail says, by request id");
}

/// What `runseal preflight --key` says.
mod profiles {
    use runseal::preflight::{AWS_OWNED, Profile, check_key};

    use super::*;

    fn checked(bench: &Bench, key: &str, profile: Profile) -> Result<runseal::preflight::Evidence, Report> {
        check_key(key, profile, &fixture::cloud(&bench.double, "runner"))
    }

    fn only(report: Report) -> Finding {
        let [finding] = report.findings.as_slice() else { panic!("{report}") };
        assert_eq!(finding.code, Code::KeyUnfit);
        finding.clone()
    }

    #[test]
    fn a_good_key_fits_every_profile_and_only_dry_runs_were_made() {
        for (profile, grants) in [
            (Profile::Workflows, 0),
            (Profile::OmicsStorage, 1),
            (Profile::OmicsAnalytics, 1),
            (Profile::Healthlake, 1),
            (Profile::HealthlakeImport, 0),
            (Profile::HealthlakeExport, 0),
        ] {
            let bench = Bench::new();
            let evidence = checked(&bench, INPUT_KEY, profile).unwrap_or_else(|report| panic!("{profile:?}: {report}"));
            assert_eq!(bench.double.count("CreateGrant"), grants, "{profile:?}");
            assert_eq!(bench.double.count("ListGrants"), grants, "{profile:?}");
            for operation in ["GenerateDataKey", "Decrypt", "CreateGrant"] {
                assert!(bench.double.calls_of(operation).iter().all(|call| call.dry_run), "{profile:?} {operation}");
            }
            assert!(evidence.warnings().next().is_some(), "{profile:?}: what the documents say");
            assert!(bench.double.change(|world| world.key(INPUT_KEY).grants.is_empty()));
        }
    }

    #[test]
    fn what_is_denied_is_named_with_its_repair() {
        for action in ["kms:DescribeKey", "kms:GenerateDataKey", "kms:Decrypt", "kms:CreateGrant"] {
            let bench = Bench::new().deny(Denial::of(action));
            let finding = only(checked(&bench, INPUT_KEY, Profile::Healthlake).unwrap_err());
            let aws = finding.aws.unwrap();
            assert_eq!((aws.cause, aws.action.as_deref()), (Cause::Denied, Some(action)));
            assert_eq!(aws.repair.unwrap().iam.unwrap().action, [action]);
        }
    }

    #[test]
    fn contradicting_documents_make_a_warning_of_a_denied_grant() {
        let bench = Bench::new().deny(Denial::of("kms:CreateGrant"));
        let evidence = checked(&bench, INPUT_KEY, Profile::OmicsStorage).unwrap_or_else(|report| panic!("{report}"));
        let warnings: Vec<_> = evidence.warnings().map(|check| check.detail.as_str()).collect();
        assert!(warnings.iter().any(|text| text.contains("contradict")), "{warnings:?}");
        assert!(warnings.iter().any(|text| text.contains("kms:CreateGrant")), "{warnings:?}");
    }

    #[test]
    fn keys_of_aws_do_where_nothing_else_is_asked_for() {
        let bench = Bench::new();
        checked(&bench, MANAGED_KEY, Profile::Workflows).unwrap_or_else(|report| panic!("{report}"));
        let finding = only(checked(&bench, MANAGED_KEY, Profile::HealthlakeExport).unwrap_err());
        has(&finding.problem, &["managed by AWS"]);
        bench.double.clear_calls();
        checked(&bench, AWS_OWNED, Profile::Healthlake).unwrap_or_else(|report| panic!("{report}"));
        only(checked(&bench, AWS_OWNED, Profile::HealthlakeImport).unwrap_err());
        assert_eq!(bench.double.calls().len(), 0, "it cannot be asked about");
    }

    #[test]
    fn grants_are_listed_and_unfit_keys_named() {
        let bench = Bench::new().change(|world| {
            world.key(INPUT_KEY).grants.push(Grant {
                id: "grant-7".into(),
                grantee: "healthlake.eu-central-1.amazonaws.com".into(),
                operations: vec!["Decrypt".into()],
            });
        });
        let evidence = checked(&bench, INPUT_KEY, Profile::Healthlake).unwrap_or_else(|report| panic!("{report}"));
        assert!(evidence.checks.iter().any(|check| check.detail.contains("grant-7")));
        bench.double.change(|world| world.key(INPUT_KEY).state = KeyState::Disabled);
        has(&only(checked(&bench, INPUT_KEY, Profile::Healthlake).unwrap_err()).problem, &["disabled"]);
    }
}

/// `runseal preflight`, as people and programs see it.
mod command {
    use assert_cmd::Command;

    use super::*;

    fn runseal(double: &Double, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("runseal"));
        command.env_clear().envs(double.environment("runner")).arg("preflight").args(arguments);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    }

    const BOTH: [&str; 4] = ["--input", "s3://inputs/reads/", "--output", "s3://outputs/results/"];

    #[test]
    fn what_is_well_is_a_table_and_exit_status_0() {
        let bench = Bench::new();
        let (status, text) = runseal(&bench.double, &BOTH);
        assert_eq!(status, 0, "{text}");
        has(&text, &["ok    s3:GetObject", INPUT_KEY, "s3:UploadPart", "nothing stands in the way", RUNNER]);
        let with_key =
            [&BOTH[..], &["--run-key-kms", INPUT_KEY, "--explain", "--json", "--sse-kms-key-id", OUTPUT_KEY]].concat();
        let (status, text) = runseal(&bench.double, &with_key);
        assert_eq!(status, 0, "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["cleared"].as_bool(), json["findings"].as_array().map(Vec::len)), (Some(true), Some(0)));
        assert_eq!(bench.double.uploads(), []);
    }

    #[test]
    fn a_denial_is_exit_status_77_with_its_repair() {
        let bench = Bench::new().deny(Denial::of("kms:Decrypt").on(OUTPUT_KEY));
        let (status, text) = runseal(&bench.double, &BOTH);
        assert_eq!(status, 77, "{text}");
        has(
            &text,
            &["FAIL  s3:UploadPart", "EXPORT_FAILED", "problem:", "remedy:", "AWS:     s3:UploadPart: AccessDenied"],
        );
        has(&text, &["statement for the IAM policy of the caller", "kms:ViaService", "s3.eu-central-1.amazonaws.com"]);
        let (status, text) = runseal(&bench.double, &[&BOTH[..], &["--json"]].concat());
        assert_eq!(status, 77);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let finding = &json["findings"][0];
        assert_eq!(finding["repair"]["iam"]["Effect"], "Allow");
        assert_eq!(
            (&finding["action"], &finding["key"], &finding["policy"]),
            (&"kms:Decrypt".into(), &OUTPUT_KEY.into(), &"identity-based".into())
        );
    }

    #[test]
    fn one_key_is_checked_for_one_system() {
        let bench = Bench::new();
        let (status, text) = runseal(&bench.double, &["--key", INPUT_KEY, "--profile", "omics-storage"]);
        assert_eq!(status, 0, "{text}");
        has(&text, &["kms:CreateGrant (dry run)", "warn", "contradict"]);
        let (status, text) = runseal(&bench.double, &["--key", "AWS_OWNED_KMS_KEY", "--profile", "healthlake-import"]);
        assert_eq!(status, 69, "{text}");
        for wrong in
            [&["--key", INPUT_KEY][..], &["--profile", "workflows"], &[], &["--key", "x", "--profile", "workflows"]]
        {
            assert_eq!(runseal(&bench.double, wrong).0, 64, "{wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_exit_status_69() {
        let bench = Bench::new();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("runseal"));
        command.env_clear().envs(bench.double.environment("runner")).arg("preflight").args(BOTH);
        for (name, value) in [("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9"), ("AWS_MAX_ATTEMPTS", "1")] {
            command.env(name, value);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{output:?}");
    }
}
