//! Against ministack, written by others: IAM identity policies and bucket policies, and a whole run from bucket to bucket
//! with no more than the policy that runseal writes. It does not ask KMS in the name of S3's callers, and knows no
//! full-object checksum of multipart uploads (1.5.33), so that results here stay below one part; the double does both.
//!
//! `scripts/install-deps.sh` installs it below `target/tools`; says `SKIP: reason` without it.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use futures_util::TryStreamExt;
use runseal::aws::{Cloud, CloudConfig, Credentials, Endpoints, Gate, PolicyKind, SseAlgorithm, UploadSettings};
use runseal::policy::{KeySource, Place, Use, write};
use runseal::preflight::{Cleared, Code, Report, Request, check};
use runseal::spec::{InputSpec, Location, StagingRules};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aws_double::REGION;
use crate::program::{finish, require_host, runseal, wait_until};

/// Bytes of the large input: more than one part of any transfer.
const LARGE: usize = 20 << 20;

/// Prepares keys, buckets, objects and the user `runner`, who may do nothing; prints what the tests need to know.
const PREPARE: &str = r#"
iam, s3, kms = client("iam"), client("s3"), client("kms")
made = {}
for bucket in ("inputs", "outputs"):
    key = kms.create_key()["KeyMetadata"]["Arn"]
    made[bucket] = key
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": True}
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
s3.put_object(Bucket="inputs", Key="reads/small.fq", Body=b"ACGT")
s3.put_object(Bucket="inputs", Key="reads/large.fq", Body=bytes(i % 251 for i in range(256)) * (argument["large"] // 256))
user = iam.create_user(UserName="runner")["User"]
access = iam.create_access_key(UserName="runner")["AccessKey"]
print(json.dumps({**made, "arn": user["Arn"], "id": access["AccessKeyId"], "secret": access["SecretAccessKey"]}))
"#;

/// Gives `runner` this identity policy.
const ALLOW: &str =
    r#"client("iam").put_user_policy(UserName="runner", PolicyName="run", PolicyDocument=json.dumps(argument))"#;

/// Gives `outputs` this bucket policy.
const BUCKET_POLICY: &str = r#"client("s3").put_bucket_policy(Bucket="outputs", Policy=json.dumps(argument))"#;

/// A server with two buckets, and what the tests know of it.
struct Ministack {
    server: Child,
    endpoint: String,
    known: Value,
    _home: tempfile::TempDir,
}

impl Ministack {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(tool("ministack"))
            .envs([("AUTH", "true"), ("BIND_HOST", "127.0.0.1"), ("GATEWAY_PORT", &port.to_string())])
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it is there");
        let endpoint = format!("http://127.0.0.1:{port}");
        let mut ministack = Self { server, endpoint, known: Value::Null, _home: home };
        wait_until("ministack listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        ministack.known = serde_json::from_str(&ministack.python(PREPARE, &json!({ "large": LARGE }))).unwrap();
        ministack
    }

    /// Runs a script of botocore calls, as the account's root.
    fn python(&self, script: &str, argument: &Value) -> String {
        let head = format!(
            "import botocore.session, json, sys\nregion, argument = '{REGION}', json.loads(sys.argv[1])\n\
             def client(name): return botocore.session.get_session().create_client(name, region_name=region, \
             endpoint_url='{}', aws_access_key_id='test', aws_secret_access_key='test')\n",
            self.endpoint
        );
        let mut python = Command::new(tool("python"))
            .args(["-", &argument.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(format!("{head}{script}\n").as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success(), "{script}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn known(&self, name: &str) -> &str {
        self.known[name].as_str().unwrap()
    }

    fn cloud(&self, id: &str, secret: &str) -> Cloud {
        let mut config = CloudConfig::new("run-1".parse().unwrap());
        let endpoint = || Some(self.endpoint.clone());
        config.endpoints = Endpoints { s3: endpoint(), kms: endpoint(), sts: endpoint() };
        config.region = Some(REGION.to_owned());
        config.credentials = Some(Credentials::new(id, secret, None));
        Cloud::connect(&config, &Gate::default()).unwrap()
    }

    /// Preflight of a run from bucket to bucket, as `runner`.
    fn check(&self, uploads: &UploadSettings) -> Result<Cleared, Report> {
        let input = InputSpec::parse("s3://inputs/reads/".as_ref(), |_| false).unwrap();
        let output = Location::S3("s3://outputs/results/".parse().unwrap());
        let request = Request {
            run: &"run-1".parse().unwrap(),
            inputs: &[input],
            output: Some(&output),
            uploads,
            rules: StagingRules::default(),
            on_behalf: None,
            run_key: None,
            explain: false,
            space: 1 << 40,
        };
        check(&request, Some(&self.cloud(self.known("id"), self.known("secret"))))
    }

    /// What `runseal policy` would print for that run.
    fn policy(&self) -> Value {
        let key = |bucket: &str| KeySource::Keys(vec![self.known(bucket).to_owned()]);
        let needs = [
            (Place::new(REGION, "inputs", "reads/"), Use::Read, key("inputs")),
            (Place::new(REGION, "outputs", "results/"), Use::Write, key("outputs")),
        ];
        serde_json::to_value(write(&needs, None, None).identity_policy).unwrap()
    }
}

impl Drop for Ministack {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn tool(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools/ministack/bin").join(name)
}

/// Leaves the test with a visible reason where ministack is not installed.
macro_rules! require_ministack {
    () => {
        if !tool("../complete").exists() {
            println!("SKIP: {}: ministack is not installed (scripts/install-deps.sh)", module_path!());
            return;
        }
    };
}

#[test]
fn a_whole_run_with_the_policy_that_runseal_writes() {
    require_host!();
    require_ministack!();
    let ministack = Ministack::start();
    ministack.python(ALLOW, &ministack.policy());
    let mut command = runseal();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.envs([
        ("AWS_ENDPOINT_URL", ministack.endpoint.as_str()),
        ("AWS_REGION", REGION),
        ("AWS_ACCESS_KEY_ID", ministack.known("id")),
        ("AWS_SECRET_ACCESS_KEY", ministack.known("secret")),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    command.args(["run", "--input", "s3://inputs/reads/", "--output", "s3://outputs/results/", "--size", "200M", "--"]);
    let script =
        "cd \"$RUNSEAL_INPUT/reads\"; cp small.fq \"$RUNSEAL_OUTPUT\"; sha256sum <large.fq >\"$RUNSEAL_OUTPUT/sum\"";
    command.args(["sh", "-euc", script]);
    finish(command).expect(0, &[]);

    let root = ministack.cloud("test", "test");
    let read = |key: &str| {
        root.block_on(async {
            let (object, pieces) = root.objects().get("outputs", key, None, None).await.unwrap().value;
            let pieces: Vec<bytes::Bytes> = pieces.try_collect().await.unwrap();
            (object.encryption.key, pieces.concat())
        })
    };
    let pattern: Vec<u8> = (0..256).map(|i| (i % 251) as u8).collect();
    let sum: String = Sha256::digest(pattern.repeat(LARGE / 256)).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = [("small.fq", b"ACGT".to_vec()), ("sum", format!("{sum}  -\n").into_bytes())];
    for (name, contents) in expected {
        let (key, found) = read(&format!("results/{name}"));
        assert_eq!(found, contents, "{name}");
        assert_eq!(key.as_deref(), Some(ministack.known("outputs")));
    }
    let (_, manifest) = read("results/runseal-manifest.json");
    assert!(String::from_utf8(manifest).unwrap().contains("small.fq"));
}

#[test]
fn identity_policies_decide() {
    require_ministack!();
    let ministack = Ministack::start();
    let mut policy = ministack.policy();
    ministack.python(ALLOW, &policy);
    ministack.check(&UploadSettings::default()).unwrap_or_else(|report| panic!("{report}"));
    let statements = policy["Statement"].as_array_mut().unwrap();
    statements.retain(|statement| !statement["Action"].to_string().contains("s3:PutObject"));
    ministack.python(ALLOW, &policy);
    let report = ministack.check(&UploadSettings::default()).unwrap_err();
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    let aws = finding.aws.as_deref().unwrap();
    assert_eq!((finding.code, aws.policy), (Code::ExportFailed, Some(PolicyKind::IdentityBased)));
    assert_eq!((aws.action.as_deref(), aws.principal.as_deref()), (Some("s3:PutObject"), Some(ministack.known("arn"))));
    let repair = aws.repair.as_ref().and_then(|repair| repair.iam.clone()).unwrap();
    policy["Statement"].as_array_mut().unwrap().push(serde_json::to_value(repair).unwrap());
    ministack.python(ALLOW, &policy);
    ministack.check(&UploadSettings::default()).unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn bucket_policies_decide() {
    require_ministack!();
    let ministack = Ministack::start();
    ministack.python(ALLOW, &ministack.policy());
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "OnlyKms",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:PutObject",
            "Resource": "arn:aws:s3:::outputs/*",
            "Condition": { "StringNotEquals": { "s3:x-amz-server-side-encryption": "aws:kms" } }
        }]
    });
    ministack.python(BUCKET_POLICY, &policy);
    let report = ministack.check(&UploadSettings::default()).unwrap_err();
    let [finding] = report.findings.as_slice() else { panic!("{report}") };
    let aws = finding.aws.as_deref().unwrap();
    assert_eq!((aws.policy, aws.explicit_deny), (Some(PolicyKind::ResourceBased), true), "{finding:?}");
    assert!(finding.remedy.contains("--sse aws:kms"), "{finding:?}");
    let key = Some(ministack.known("outputs").to_owned());
    let uploads = UploadSettings { sse: Some(SseAlgorithm::Kms), kms_key: key, ..UploadSettings::default() };
    ministack.check(&uploads).unwrap_or_else(|report| panic!("{report}"));
}
