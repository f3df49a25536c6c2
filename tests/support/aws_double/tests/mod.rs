//! The double itself: what AWS documents, seen through the SDK.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::ProvideErrorMetadata;

use super::*;

mod faults;
mod keys;
mod objects;
mod people;

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

    /// Puts an object down through S3.
    fn upload(&self, bucket: &str, key: &str, body: &[u8]) -> aws_sdk_s3::operation::put_object::PutObjectOutput {
        self.wait(self.s3.put_object().bucket(bucket).key(key).body(body.to_vec().into()).send()).expect("may be put")
    }

    /// Encryption context, by S3 operation, of what S3 asked of KMS.
    fn contexts(&self) -> Vec<(String, String)> {
        let asked = self.double.calls().into_iter().filter(|call| call.service == Service::KmsForS3);
        asked.map(|call| (call.operation, call.context["aws:s3:arn"].clone())).collect()
    }

    fn deny(&self, denial: Denial) {
        self.double.change(|world| world.persona("runner").denials.push(denial));
    }
}

fn clients(double: &Double, persona: &str) -> (aws_sdk_s3::Client, aws_sdk_kms::Client, aws_sdk_sts::Client) {
    let (id, credential) = double.credentials(persona);
    clients_with(double, Credentials::new(id, credential.secret, credential.token, None, "double"))
}

fn clients_with(
    double: &Double,
    credentials: Credentials,
) -> (aws_sdk_s3::Client, aws_sdk_kms::Client, aws_sdk_sts::Client) {
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
use refusal;
