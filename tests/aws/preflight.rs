//! Preflight: every denial to its finding and remedy.

use std::time::Instant;

use runseal::audit::Trail;
use runseal::preflight::{Cleared, Code, Finding, Outcome, Report, Request, check};
use runseal::s3::{Cause, Cloud, CloudConfig, Credentials, Endpoints, PolicyKind, SseAlgorithm, UploadSettings};
use runseal::spec::{InputSpec, Location};
use zeroize::Zeroizing;

use crate::aws_double::{
    Denial, Double, Encryption, FOREIGN_ACCOUNT, INPUT_KEY, KeyState, Layer, MANAGED_KEY, OUTPUT_KEY, Via, Wording,
    World,
};

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
        self.double.change(|world| drop(world.persona("runner").deny(denial)));
        self
    }

    fn change(self, change: impl FnOnce(&mut World)) -> Self {
        self.double.change(change);
        self
    }

    fn check(&self) -> Result<Cleared, Report> {
        let inputs: Vec<InputSpec> =
            self.inputs.iter().map(|text| InputSpec::parse(text.as_ref(), |_| false).unwrap()).collect();
        let output = self.output.map(|uri| Location::S3(uri.parse().unwrap()));
        let request = Request {
            run: &"run-1".parse().unwrap(),
            inputs: &inputs,
            output: output.as_ref(),
            uploads: &self.uploads,
            run_key: self.run_key,
            explain: self.explain,
            space: self.space,
            trail: &Trail::off(),
        };
        let checked = check(&request, Some(&cloud(&self.double)));
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

/// As the persona `runner`, without retries that wait.
fn cloud(double: &Double) -> Cloud {
    let (id, credential) = double.credentials("runner");
    let mut config = CloudConfig::new("run-1".parse().unwrap());
    config.endpoints = Endpoints {
        s3: Some(double.s3_endpoint()),
        kms: Some(double.kms_endpoint()),
        sts: Some(double.sts_endpoint()),
    };
    config.region = Some(crate::aws_double::REGION.into());
    config.credentials = Some(Credentials {
        access_key_id: Zeroizing::new(id),
        secret_access_key: Zeroizing::new(credential.secret),
        session_token: credential.token.map(Zeroizing::new),
    });
    config.attempts = 1;
    Cloud::connect(&config).unwrap()
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in: {text}");
    }
}

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
