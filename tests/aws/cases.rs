//! What went wrong for others with S3 and KMS, by the numbers of the collection that this project started from: each is
//! set up at the double as it was, and must be found before any work is done.
//!
//! | number | where it was reported | here |
//! |---|---|---|
//! | 1 | aws/aws-cli#4251 | `case_01_parts_under_a_key_of_another_account` |
//! | 2 | aws/aws-sdk-js#1814 | `case_02_only_large_objects_fail` |
//! | 3 | aws/aws-cdk#8947 | `case_03_a_policy_for_writing_without_decrypt` |
//! | 4 | GovWifi/govwifi-terraform#461 | `case_04_staging_works_and_production_does_not` |
//! | 5 | aws/amazon-genomics-cli#545 | `case_05_an_input_under_a_key_of_another_account` |
//! | 6 | aws/amazon-genomics-cli#87 | `case_06_a_bucket_policy_demands_the_header` |
//! | 7 | nextflow-io/nextflow#1830 | `case_07_denied_before_the_work_not_after_it` |
//! | 8 | nextflow-io/nextflow#2452 | `case_08_everything_that_is_written_is_encrypted_alike` |
//! | 9 | nextflow-io/nextflow#4639 | `case_09_what_failed_and_where_is_said` |
//! | 10 | nextflow-io/nextflow#3281 | `case_10_readable_but_not_listable` |
//! | 11 | nextflow-io/nextflow#2671 | `case_11_probed_by_the_role_that_publishes` |
//! | 12 | 4dn-dcic/tibanna#320 | `case_12_a_bucket_policy_demands_one_key` |
//! | 13 | broadinstitute/cromwell#4686, #4541, #4687 | `case_13_outputs_without_a_key_and_without_a_bucket` |
//! | 14 | broadinstitute/cromwell#4805 | does not apply: nothing is copied within S3, and what is larger than one part is uploaded in parts |
//! | 15 | slashdevops/idp-scim-sync#540 | `case_15_a_policy_for_objects_meets_a_bucket_key` |
//! | 16 | aws/aws-cli#1517 | `case_16_a_key_in_another_region` |
//! | 17 | aws/aws-cli#4507 | `case_17_the_managed_key_by_its_nickname` |
//! | 18 | aws/aws-cli#6713, boto/boto3#2952 | `case_18_denials_of_s3_and_kms_are_told_apart` |
//! | 19 | data-dot-all/dataall#712 | `case_19_a_key_that_exists_but_may_not_be_used` |
//! | 20 | ministryofjustice/modernisation-platform#10122, analytical-platform#10547 | `case_20_a_key_policy_for_administrators_only` |
//! | 21 | buildkite/docs#2344 | `case_21_the_text_of_aws_is_kept` |
//! | 22 | awslabs/mountpoint-s3#906 | `case_22_a_key_by_its_alias` |
//! | 23 | kahing/goofys#771 | `case_23_a_condition_on_the_network` |

use std::process::Command;

use runseal::aws::{Cause, PolicyKind, SseAlgorithm, UploadSettings};
use runseal::policy::{KeySource, Place, Statement, Use, write};
use runseal::preflight::{AwsDetails, Cleared, Code, Finding, Report, Request, check};
use runseal::spec::{InputSpec, Location, S3Uri, StagingRules};

use crate::aws_double::{
    ACCOUNT, Denial, Double, Effect, Encryption, FOREIGN_ACCOUNT, Fault, INPUT_KEY, Layer, OUTPUT_KEY, Persona, REGION,
    Role, Service, Via, Wording, World, key_arn,
};
use crate::fixture::cloud;
use crate::program::{Live, Said, finish, require_host, runseal, say, status};

/// A double, and a run that reads `s3://inputs/reads/` and publishes to `s3://outputs/results/` as `runner`.
struct Site {
    double: Double,
    input: &'static str,
    uploads: UploadSettings,
}

impl Site {
    fn new(change: impl FnOnce(&mut World)) -> Self {
        let double = Double::start(World::default());
        double.put("inputs", "reads/a.fq", b"ACGT");
        double.put("inputs", "reads/b.fq", b"TTAACC");
        double.change(change);
        Self { double, input: "s3://inputs/reads/", uploads: UploadSettings::default() }
    }

    /// One on which the runner lacks a right.
    fn denying(denial: Denial) -> Self {
        Self::new(|world| world.persona("runner").denials.push(denial))
    }

    fn with_uploads(mut self, uploads: UploadSettings) -> Self {
        self.uploads = uploads;
        self
    }

    fn check(&self) -> Result<Cleared, Report> {
        let input = InputSpec::parse(self.input.as_ref(), |_| false).unwrap();
        let output = Location::S3("s3://outputs/results/".parse().unwrap());
        let request = Request {
            run: &"run-1".parse().unwrap(),
            inputs: &[input],
            output: Some(&output),
            uploads: &self.uploads,
            rules: StagingRules::default(),
            on_behalf: None,
            run_key: None,
            explain: false,
            space: 1 << 40,
        };
        let checked = check(&request, Some(&cloud(&self.double, "runner")));
        assert_eq!(
            (self.double.uploads(), self.double.keys("outputs")),
            (vec![], vec![]),
            "nothing may be left behind"
        );
        checked
    }

    fn is_cleared(&self) {
        self.check().unwrap_or_else(|report| panic!("{report}"));
    }

    /// The only finding.
    fn finding(&self) -> Finding {
        let report = self.check().expect_err("must be found");
        let [finding] = report.findings.as_slice() else { panic!("{report}") };
        finding.clone()
    }

    /// The binary, as the runner.
    fn command(&self) -> Command {
        let mut command = runseal();
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(self.double.environment("runner"));
        command
    }

    /// A whole run.
    fn run(&self, flags: &[&str], script: &str) -> Said {
        let mut command = self.command();
        command.args(["run", "--input", self.input, "--output", "s3://outputs/results/", "--size", "100M"]);
        command.args(flags).args(["--", "sh", "-euc", script]);
        finish(command)
    }

    /// Puts a small object to where results will go, as tools without a preflight do to try.
    fn small_put_works(&self) {
        let cloud = cloud(&self.double, "runner");
        let target = S3Uri { bucket: "outputs".to_owned(), key: "small".to_owned() };
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, b"small");
        cloud.block_on(cloud.objects().put(&target, &self.uploads, b"small"[..].into(), crc)).expect("small ones work");
        self.double.change(|world| drop(world.bucket("outputs").objects.remove("small")));
    }
}

fn aws(finding: &Finding) -> &AwsDetails {
    finding.aws.as_deref().expect("AWS said something")
}

/// Actions of a statement that repairs a finding, in order of the alphabet.
fn actions(statement: &Option<Statement>) -> Vec<&str> {
    let mut actions: Vec<&str> = statement.as_ref().expect("a statement").action.iter().map(String::as_str).collect();
    actions.sort_unstable();
    actions
}

fn text(finding: &Finding) -> String {
    format!("{} {}", finding.problem, finding.remedy)
}

#[track_caller]
fn says(finding: &Finding, parts: &[&str]) {
    for part in parts {
        assert!(text(finding).contains(part), "`{part}` is missing in {finding:?}");
    }
}

fn sse_kms(key: &str) -> UploadSettings {
    UploadSettings { sse: Some(SseAlgorithm::Kms), kms_key: Some(key.to_owned()), ..UploadSettings::default() }
}

#[test]
fn case_01_parts_under_a_key_of_another_account() {
    let key = key_arn(FOREIGN_ACCOUNT, "11111111-2222-4333-8444-555555555555");
    let site = Site::new(|world| {
        world.key(&key);
        world.bucket("outputs").encryption = Encryption::kms(&key);
        world.persona("runner").deny(Denial::of("kms:Decrypt").on(&key).worded(Wording::Foreign));
    });
    site.small_put_works();
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ExportFailed, "s3:UploadPart"));
    assert_eq!(
        (aws(&finding).action.as_deref(), aws(&finding).key.as_deref()),
        (Some("kms:Decrypt"), Some(key.as_str()))
    );
    says(&finding, &["another account", "neither alone is enough"]);
    let repair = aws(&finding).repair.as_ref().unwrap();
    assert!(repair.iam.is_some() && repair.key_policy.is_some());
}

#[test]
fn case_02_only_large_objects_fail() {
    let site = Site::denying(Denial::of("kms:Decrypt").on(OUTPUT_KEY));
    site.small_put_works();
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ExportFailed, "s3:UploadPart"));
    assert_eq!(aws(&finding).policy, Some(PolicyKind::IdentityBased));
    says(&finding, &["small results could be written, large ones not", "kms:Decrypt", OUTPUT_KEY]);
}

#[test]
fn case_03_a_policy_for_writing_without_decrypt() {
    let finding = Site::denying(Denial::of("kms:Decrypt").on(OUTPUT_KEY)).finding();
    let repair = aws(&finding).repair.as_ref().unwrap();
    assert_eq!(actions(&repair.iam), ["kms:Decrypt", "kms:GenerateDataKey"]);
    let needs = (Place::new(REGION, "outputs", "results/"), Use::Write, KeySource::Keys(vec![OUTPUT_KEY.to_owned()]));
    let written = serde_json::to_string(&write(&[needs], None, None).identity_policy).unwrap();
    assert!(written.contains("kms:GenerateDataKey") && written.contains("kms:Decrypt"), "{written}");
}

#[test]
fn case_04_staging_works_and_production_does_not() {
    let production = key_arn(ACCOUNT, "99999999-2222-4333-8444-555555555555");
    let site = Site::new(|world| {
        world.key(&production);
        world.persona("runner").deny(Denial::of("kms:Decrypt").on(&production));
    });
    site.is_cleared();
    site.double.change(|world| world.bucket("outputs").encryption = Encryption::kms(&production));
    let finding = site.finding();
    assert_eq!(aws(&finding).operation, "s3:UploadPart");
    assert_eq!(aws(&finding).key.as_deref(), Some(production.as_str()));
}

#[test]
fn case_05_an_input_under_a_key_of_another_account() {
    let key = key_arn(FOREIGN_ACCOUNT, "11111111-2222-4333-8444-555555555555");
    let site = Site::new(|world| {
        world.key(&key);
        world.object("inputs", "reads/a.fq").encryption = Encryption::kms(&key);
        world.persona("runner").deny(Denial::of("kms:*").on(&key).worded(Wording::OldCiphertext));
    });
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ImportFailed, "s3:GetObject"));
    assert_eq!(
        (aws(&finding).action.as_deref(), aws(&finding).key.as_deref()),
        (Some("kms:Decrypt"), Some(key.as_str()))
    );
    assert_eq!(finding.subject, "s3://inputs/reads/a.fq");
    assert!(aws(&finding).aws_message.starts_with("The ciphertext refers to a customer master key"));
}

#[test]
fn case_06_a_bucket_policy_demands_the_header() {
    let site = Site::new(|world| world.bucket("outputs").demands_sse = Some("aws:kms".to_owned()));
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ExportFailed, "s3:CreateMultipartUpload"));
    assert_eq!((aws(&finding).policy, aws(&finding).explicit_deny), (Some(PolicyKind::ResourceBased), true));
    says(&finding, &["bucket policy", "--sse aws:kms"]);
    site.with_uploads(sse_kms(OUTPUT_KEY)).is_cleared();
}

#[test]
fn case_07_denied_before_the_work_not_after_it() {
    require_host!();
    let site = Site::denying(Denial::of("kms:GenerateDataKey").on(OUTPUT_KEY));
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("worked");
    let said = site.run(&[], &format!("touch '{}'", marker.display()));
    said.expect(77, &["EXPORT_FAILED", "kms:GenerateDataKey", OUTPUT_KEY]);
    assert!(!marker.exists(), "the command must not start");
    assert_eq!((site.double.keys("outputs"), site.double.uploads()), (vec![], vec![]));
}

#[test]
fn case_08_everything_that_is_written_is_encrypted_alike() {
    require_host!();
    let site = Site::new(|world| world.bucket("outputs").encryption = Encryption::default());
    let script =
        "cd \"$RUNSEAL_OUTPUT\"; echo 0 >.exitcode; touch flag; mkdir empty; head -c 20000000 /dev/urandom >large";
    site.run(&["--sse", "aws:kms", "--sse-kms-key-id", OUTPUT_KEY], script).expect(0, &[]);
    let keys = site.double.keys("outputs");
    for name in [".exitcode", "empty/", "flag", "large", "runseal-manifest.json"] {
        assert!(keys.contains(&format!("results/{name}")), "{name} is missing in {keys:?}");
    }
    for key in &keys {
        let encryption = site.double.object("outputs", key).unwrap().encryption;
        assert_eq!((encryption.algorithm.as_str(), encryption.key.as_deref()), ("aws:kms", Some(OUTPUT_KEY)), "{key}");
    }
    for operation in ["PutObject", "CreateMultipartUpload"] {
        let calls = site.double.calls_of(operation);
        assert!(!calls.is_empty());
        assert!(calls.iter().all(|call| call.header("x-amz-server-side-encryption") == Some("aws:kms")));
    }
}

#[test]
fn case_09_what_failed_and_where_is_said() {
    require_host!();
    let site = Site::new(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let text = "Access Denied by something that came later";
    site.double.fault(Fault::on("PutObject", Effect::error(403, "AccessDenied", text)).at("outputs/results/b.txt"));
    let flags = ["--input", site.input, "--output", "s3://outputs/results/", "--size", "100M"];
    let script = "echo a >\"$RUNSEAL_OUTPUT/a.txt\"; echo b >\"$RUNSEAL_OUTPUT/b.txt\"; ready";
    let live = Live::start_with(site.command(), dir.path(), &flags, script);
    live.wait_for("held");
    assert!(!site.double.keys("outputs").contains(&"results/runseal-manifest.json".to_owned()));
    let problem = status(&live.id).unwrap()["report"]["held"].clone();
    let problem = problem.as_str().unwrap();
    assert!(problem.contains("s3://outputs/results/b.txt") && problem.contains(text), "{problem}");
    site.double.clear_faults();
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &["could not be published", "s3://outputs/results/b.txt", text, "runseal resume"]);
    let keys = site.double.keys("outputs");
    assert_eq!(keys, ["results/a.txt", "results/b.txt", "results/runseal-manifest.json"]);
}

#[test]
fn case_10_readable_but_not_listable() {
    let mut site = Site::denying(Denial::of("s3:ListBucket"));
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).action.as_deref()), (Code::ImportFailed, Some("s3:ListBucket")));
    says(&finding, &["cannot be listed", "name the objects one by one"]);
    site.input = "s3://inputs/reads/a.fq";
    site.is_cleared();
}

#[test]
fn case_11_probed_by_the_role_that_publishes() {
    require_host!();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/job");
    let site = Site::new(|world| {
        world.persona("job").deny(Denial::of("s3:PutObject").on("arn:aws:s3:::outputs/*"));
        world.roles.insert(role.clone(), Role { persona: "job".to_owned(), trusts: vec!["runner".to_owned()] });
    });
    let script = "echo x >\"$RUNSEAL_OUTPUT/x\"";
    site.run(&["--role-arn", &role], script).expect(77, &["EXPORT_FAILED", ":assumed-role/job/", "s3:PutObject"]);
    site.double.change(|world| {
        world.persona("job").allow_everything();
    });
    site.double.clear_calls();
    site.run(&["--role-arn", &role], script).expect(0, &[]);
    let calls = site.double.calls();
    let of_s3: Vec<_> = calls.iter().filter(|call| call.service == Service::S3).collect();
    assert!(of_s3.iter().any(|call| call.operation == "PutObject"));
    assert!(of_s3.iter().all(|call| call.persona == "job"), "{of_s3:#?}");
}

#[test]
fn case_12_a_bucket_policy_demands_one_key() {
    let site = Site::new(|world| {
        world.bucket("outputs").demands_sse = Some("aws:kms".to_owned());
        world.bucket("outputs").demands_key = Some(OUTPUT_KEY.to_owned());
    });
    let without_key = UploadSettings { sse: Some(SseAlgorithm::Kms), ..UploadSettings::default() };
    let site = site.with_uploads(without_key);
    says(&site.finding(), &["--sse-kms-key-id"]);
    site.with_uploads(sse_kms(OUTPUT_KEY)).is_cleared();
}

#[test]
fn case_13_outputs_without_a_key_and_without_a_bucket() {
    let whole: S3Uri = "s3://outputs".parse().unwrap();
    assert_eq!((whole.bucket.as_str(), whole.key.as_str()), ("outputs", ""));
    for bad in ["s3://", "s3:///results", "s3:outputs", "s3://outputs//results/"] {
        assert!(bad.parse::<S3Uri>().is_err(), "{bad}");
    }
    let site = Site::new(|world| drop(world.buckets.remove("outputs")));
    let report = site.check().expect_err("must be found");
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    assert_eq!((finding.code, aws(finding).cause), (Code::ExportFailed, Cause::NotFound));
    says(finding, &["there is no bucket `outputs`"]);
}

#[test]
fn case_15_a_policy_for_objects_meets_a_bucket_key() {
    let site = Site::denying(Denial::of("kms:Decrypt").on(INPUT_KEY).unless_context("arn:aws:s3:::inputs/*"));
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ImportFailed, "s3:GetObject"));
    says(&finding, &["S3 Bucket Key is on", "kms:EncryptionContext:aws:s3:arn", "the bucket"]);
    site.double.change(|world| {
        for key in ["reads/a.fq", "reads/b.fq"] {
            world.object("inputs", key).encryption.bucket_key = false;
        }
    });
    site.is_cleared();
}

#[test]
fn case_16_a_key_in_another_region() {
    let elsewhere = OUTPUT_KEY.replace(REGION, "us-east-1");
    let site = Site::new(|world| world.bucket("outputs").encryption = Encryption::kms(&elsewhere));
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).aws_code.as_str()), (Code::ExportFailed, "KMS.NotFoundException"));
    assert_eq!(aws(&finding).aws_message, "Invalid arn us-east-1");
    let named = Site::new(|_| ()).with_uploads(sse_kms(&elsewhere)).finding();
    assert_eq!(aws(&named).aws_code, "KMS.NotFoundException");
}

#[test]
fn case_17_the_managed_key_by_its_nickname() {
    let site = Site::new(|world| world.bucket("outputs").encryption = Encryption::kms("aws/s3"));
    let finding = site.finding();
    assert_eq!(aws(&finding).aws_message, "Invalid keyId aws/s3");
    says(&finding, &["aws/s3", "customer managed key"]);
    let refused = "aws/s3".parse::<runseal::spec::KmsKey>().unwrap_err().to_string();
    assert!(refused.contains("aws/s3"), "{refused}");
}

#[test]
fn case_18_denials_of_s3_and_kms_are_told_apart() {
    let plain = |action: &str, resource: &str| {
        let mut site = Site::denying(Denial::of(action).on(resource).worded(Wording::Plain));
        site.input = "s3://inputs/reads/a.fq";
        site.finding()
    };
    let of_s3 = plain("s3:GetObject", "arn:aws:s3:::inputs/*");
    let of_kms = plain("kms:Decrypt", INPUT_KEY);
    for (finding, action) in [(&of_s3, "s3:GetObject"), (&of_kms, "kms:Decrypt")] {
        assert_eq!((finding.code, aws(finding).cause), (Code::ImportFailed, Cause::Denied));
        assert_eq!(aws(finding).action.as_deref(), Some(action));
        says(finding, &[action]);
    }
    assert_eq!(aws(&of_kms).aws_message, "Access Denied");
    says(&of_kms, &[INPUT_KEY]);
}

#[test]
fn case_19_a_key_that_exists_but_may_not_be_used() {
    let site = Site::denying(Denial::of("kms:Decrypt").on(INPUT_KEY).worded(Wording::Foreign));
    let finding = site.finding();
    assert!(aws(&finding).aws_message.contains("the resource does not exist in this Region"));
    says(&finding, &["the permission is missing", INPUT_KEY]);
    assert_eq!(aws(&finding).action.as_deref(), Some("kms:Decrypt"));
}

#[test]
fn case_20_a_key_policy_for_administrators_only() {
    let wording = Wording::NotAllowed(Layer::Resource);
    let site = Site::new(|world| {
        let runner = world.persona("runner");
        runner.deny(Denial::of("kms:GenerateDataKey").on(OUTPUT_KEY).worded(wording));
        runner.deny(Denial::of("kms:Decrypt").on(OUTPUT_KEY).worded(wording));
    });
    let finding = site.finding();
    assert_eq!((finding.code, aws(&finding).operation), (Code::ExportFailed, "s3:CreateMultipartUpload"));
    assert_eq!(aws(&finding).policy, Some(PolicyKind::ResourceBased));
    let repair = aws(&finding).repair.as_ref().unwrap();
    assert_eq!(actions(&repair.key_policy), ["kms:Decrypt", "kms:GenerateDataKey"]);
    let principal = format!("arn:aws:iam::{ACCOUNT}:role/runner");
    assert_eq!(repair.key_policy.as_ref().unwrap().principal, Some([("AWS", principal)].into()));
}

#[test]
fn case_21_the_text_of_aws_is_kept() {
    let wordings =
        [Wording::NotAllowed(Layer::Session), Wording::Explicit(Layer::ServiceControl), Wording::ForeignCiphertext];
    for wording in wordings {
        let site = Site::denying(Denial::of("kms:Decrypt").on(INPUT_KEY).worded(wording));
        let report = site.check().expect_err("must be found");
        let get = site.double.calls_of("GetObject").remove(0);
        let details = aws(&report.findings[0]);
        let who = Persona::named("runner").arn;
        assert!(details.aws_message.starts_with(&format!("User: {who} is not authorized to perform: kms:Decrypt on")));
        assert!(details.request_ids.contains(&get.request_id), "{details:?}");
        assert!(serde_json::to_string(&report).unwrap().contains(&details.aws_message));
    }
}

#[test]
fn case_22_a_key_by_its_alias() {
    let site = Site::new(|world| world.key(OUTPUT_KEY).aliases.push("alias/results".to_owned()));
    site.with_uploads(sse_kms("alias/results")).is_cleared();
}

#[test]
fn case_23_a_condition_on_the_network() {
    let site = Site::denying(Denial::of("kms:*").via(Via::S3).worded(Wording::NotAllowed(Layer::Resource)));
    let report = site.check().expect_err("must be found");
    assert_eq!(report.findings.len(), 2, "{report}");
    for finding in &report.findings {
        says(finding, &["KMS allows the same call when it is made directly", "aws:SourceVpce", "kms:ViaService"]);
    }
}
