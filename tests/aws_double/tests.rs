//! The double itself: what AWS documents, seen through the SDK.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart, ServerSideEncryption,
};

use super::*;

/// A double and clients that call it as one persona.
struct Bench {
    double: Double,
    s3: aws_sdk_s3::Client,
    kms: aws_sdk_kms::Client,
    sts: aws_sdk_sts::Client,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn new() -> Self {
        let double = Double::start(World::default());
        let (s3, kms, sts) = clients(&double, "runner");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { double, s3, kms, sts, runtime }
    }

    fn wait<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    fn deny(&self, denial: Denial) {
        self.double.change(|world| world.persona("runner").denials.push(denial));
    }
}

fn clients(double: &Double, persona: &str) -> (aws_sdk_s3::Client, aws_sdk_kms::Client, aws_sdk_sts::Client) {
    let (id, credential) = double.credentials(persona);
    let credentials = Credentials::new(id, credential.secret, credential.token, None, "double");
    let http = aws_smithy_http_client::Builder::new().build_http();
    let s3 = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(credentials.clone())
        .http_client(http.clone())
        .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
        .force_path_style(true)
        .endpoint_url(double.s3_endpoint())
        .build();
    let kms = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(credentials.clone())
        .http_client(http.clone())
        .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
        .endpoint_url(double.kms_endpoint())
        .build();
    let sts = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(credentials)
        .http_client(http)
        .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
        .endpoint_url(double.sts_endpoint())
        .build();
    (aws_sdk_s3::Client::from_conf(s3), aws_sdk_kms::Client::from_conf(kms), aws_sdk_sts::Client::from_conf(sts))
}

/// Status, code and text of a call that must fail.
macro_rules! refusal {
    ($bench:expr, $call:expr) => {{
        let error = $bench.wait($call.send()).expect_err("must be refused");
        let status = error.raw_response().map_or(0, |answer| answer.status().as_u16());
        (status, error.code().unwrap_or_default().to_owned(), error.message().unwrap_or_default().to_owned())
    }};
}

#[test]
fn an_object_comes_back_with_its_encryption_and_checksum() {
    let bench = Bench::new();
    let put = bench.s3.put_object().bucket("inputs").key("a/b c+ü").checksum_algorithm(ChecksumAlgorithm::Crc64Nvme);
    let put = bench.wait(put.body(ByteStream::from_static(b"ACGT")).send()).unwrap();
    assert_eq!(put.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));
    assert_eq!(put.ssekms_key_id(), Some(INPUT_KEY));
    assert_eq!(put.bucket_key_enabled(), Some(true));
    let head = bench.wait(bench.s3.head_object().bucket("inputs").key("a/b c+ü").send()).unwrap();
    assert_eq!((head.content_length(), head.ssekms_key_id()), (Some(4), Some(INPUT_KEY)));
    assert_eq!(head.checksum_crc64_nvme(), None);
    let get = bench.s3.get_object().bucket("inputs").key("a/b c+ü").checksum_mode(ChecksumMode::Enabled);
    let get = bench.wait(get.send()).unwrap();
    assert_eq!(get.checksum_crc64_nvme(), Some(checksum::of("crc64nvme", b"ACGT").as_str()));
    assert_eq!(bench.wait(get.body.collect()).unwrap().to_vec(), b"ACGT");
    assert_eq!(bench.double.read("inputs", "a/b c+ü").unwrap(), &b"ACGT"[..]);
}

#[test]
fn without_decrypt_an_upload_begins_but_takes_no_part() {
    let bench = Bench::new();
    bench.deny(Denial::of("kms:Decrypt"));
    let begun = bench.wait(bench.s3.create_multipart_upload().bucket("outputs").key("x").send()).unwrap();
    assert_eq!(begun.ssekms_key_id(), Some(OUTPUT_KEY));
    let id = begun.upload_id().unwrap();
    let part = bench.s3.upload_part().bucket("outputs").key("x").upload_id(id).part_number(1);
    let (status, code, message) = refusal!(bench, part.body(ByteStream::from_static(b"x")));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    let who = Persona::named("runner").arn;
    assert_eq!(
        message,
        format!(
            "User: {who} is not authorized to perform: kms:Decrypt on resource: {OUTPUT_KEY} because no identity-based \
             policy allows the kms:Decrypt action"
        )
    );
    assert_eq!(bench.double.uploads().len(), 1);
    bench.wait(bench.s3.abort_multipart_upload().bucket("outputs").key("x").upload_id(id).send()).unwrap();
    assert_eq!(bench.double.uploads(), []);
}

#[test]
fn without_decrypt_nothing_is_read_but_heads_are() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"ACGT");
    bench.deny(Denial::of("kms:Decrypt"));
    let (status, code, _) = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a").range("bytes=0-0"));
    assert_eq!((status, code.as_str()), (403, "AccessDenied"));
    bench.wait(bench.s3.head_object().bucket("inputs").key("a").send()).unwrap();
    let (status, ..) =
        refusal!(bench, bench.s3.head_object().bucket("inputs").key("a").checksum_mode(ChecksumMode::Enabled));
    assert_eq!(status, 403);
}

#[test]
fn a_disabled_key_speaks_through_s3_and_directly() {
    let bench = Bench::new();
    bench.double.put("inputs", "a", b"ACGT");
    bench.double.change(|world| world.key(INPUT_KEY).state = KeyState::Disabled);
    let text = format!("{INPUT_KEY} is disabled.");
    let through = refusal!(bench, bench.s3.get_object().bucket("inputs").key("a"));
    assert_eq!(through, (400, "KMS.DisabledException".to_owned(), text.clone()));
    let direct = refusal!(bench, bench.kms.generate_data_key().key_id(INPUT_KEY).number_of_bytes(32).dry_run(true));
    assert_eq!(direct, (400, "DisabledException".to_owned(), text));
    let facts = bench.wait(bench.kms.describe_key().key_id(INPUT_KEY).send()).unwrap().key_metadata.unwrap();
    assert_eq!(facts.key_state.unwrap().as_str(), "Disabled");
}

#[test]
fn dry_runs_always_fail_one_way_or_the_other() {
    let bench = Bench::new();
    let generate = || bench.kms.generate_data_key().key_id(OUTPUT_KEY).number_of_bytes(32).dry_run(true);
    let decrypt = || {
        let modifier = aws_sdk_kms::types::DryRunModifierType::IgnoreCiphertext;
        bench.kms.decrypt().key_id(OUTPUT_KEY).dry_run(true).dry_run_modifiers(modifier)
    };
    assert_eq!(refusal!(bench, generate()).1, "DryRunOperationException");
    assert_eq!(refusal!(bench, decrypt()).1, "DryRunOperationException");
    bench.deny(Denial::of("kms:*"));
    let (status, code, _) = refusal!(bench, decrypt());
    assert_eq!((status, code.as_str()), (400, "AccessDeniedException"));
    assert!(bench.double.calls_of("Decrypt").iter().all(|call| call.dry_run));
    assert!(bench.double.data_keys().is_empty());
}

#[test]
fn sts_knows_who_calls() {
    let bench = Bench::new();
    let who = bench.wait(bench.sts.get_caller_identity().send()).unwrap();
    assert_eq!(who.arn(), Some(Persona::named("runner").arn.as_str()));
    assert_eq!(who.account(), Some(ACCOUNT));
}

#[test]
fn a_large_object_is_put_together_and_checked() {
    let bench = Bench::new();
    let data = vec![7; (5 << 20) + 3];
    let begin = bench.s3.create_multipart_upload().bucket("outputs").key("x");
    let begin = begin.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject);
    let id = bench.wait(begin.send()).unwrap().upload_id.unwrap();
    let mut parts = CompletedMultipartUpload::builder();
    for (number, piece) in (1..).zip(data.chunks(5 << 20)) {
        let part = bench.s3.upload_part().bucket("outputs").key("x").upload_id(&id).part_number(number);
        let part = part.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).body(ByteStream::from(piece.to_vec()));
        let etag = bench.wait(part.send()).unwrap().e_tag.unwrap();
        parts = parts.parts(CompletedPart::builder().part_number(number).e_tag(etag).build());
    }
    let complete = |sum: &str| {
        let call = bench.s3.complete_multipart_upload().bucket("outputs").key("x").upload_id(&id);
        let call = call.checksum_type(ChecksumType::FullObject).checksum_crc64_nvme(sum).if_none_match("*");
        call.multipart_upload(parts.clone().build())
    };
    let (status, code, _) = refusal!(bench, complete("AAAAAAAAAAA="));
    assert_eq!((status, code.as_str()), (400, "BadDigest"));
    let done = bench.wait(complete(&checksum::of("crc64nvme", &data)).send()).unwrap();
    assert_eq!(done.ssekms_key_id(), Some(OUTPUT_KEY));
    assert_eq!(bench.double.read("outputs", "x").unwrap(), data);
    assert_eq!(bench.double.uploads(), []);
}
