//! A run's connection to AWS: made in the sealed process, as the run and its environment say.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::aws::{Answer, CallError, Cloud, CloudConfig, Credentials, Gate, SseAlgorithm, UploadSettings, run_context};
use crate::crypt::KeyShare;
use crate::spec::{AwsSpec, DataSpec, RunId, Sse};

/// Environment variables that hold credentials of AWS or lead to some by way of a file, a server or a role, but by whose
/// name one cannot tell (AWS SDKs and Tools Reference Guide, "Environment variables"; older SDKs and tools).
const CREDENTIAL_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE",
    "AWS_LOGIN_CACHE_DIRECTORY",
    "BOTO_CONFIG",
    // The AWS SDK for Rust falls back to it.
    "SECRET_ACCESS_KEY",
    "S3_SECRET_ACCESS_KEY",
];
/// Parts of the names of all others: `AWS_SECRET_ACCESS_KEY`, `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, and those to come.
const CREDENTIAL_WORDS: [&str; 9] =
    ["ACCESS_KEY", "SECRET", "TOKEN", "CREDENTIAL", "PROFILE", "ROLE", "PASSWORD", "SSO", "PROCESS"];

/// Whether an environment variable holds credentials of AWS or leads to some. The command of a run does not get it.
pub fn leads_to_credentials(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let of_aws = name.starts_with("AWS_") && CREDENTIAL_WORDS.iter().any(|word| name.contains(word));
    of_aws || CREDENTIAL_VARIABLES.contains(&&*name)
}

/// Environment variables that hold paths and are read after the sealed process has left the user's directory.
pub const PATH_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Connects through `gate` as the run and the environment say, or with `credentials` in place of those of the
/// environment. Blocks.
///
/// # Errors
/// The configuration makes no sense, or this build has no S3.
pub fn connect(
    run: &RunId,
    aws: &AwsSpec,
    gate: &Gate,
    credentials: Option<Credentials>,
) -> Result<Arc<Cloud>, CallError> {
    Cloud::connect(&config(run, aws, credentials), gate).map(Arc::new)
}

fn config(run: &RunId, aws: &AwsSpec, credentials: Option<Credentials>) -> CloudConfig {
    let default = CloudConfig::new(run.clone());
    CloudConfig {
        role_arn: aws.role.as_ref().map(|role| role.as_str().to_owned()),
        profile: aws.profile.clone(),
        region: aws.region.as_ref().map(|region| region.as_str().to_owned()),
        fips: aws.fips.then_some(true),
        dual_stack: aws.dual_stack.then_some(true),
        credentials,
        concurrency: aws.concurrency.map_or(default.concurrency, usize::from),
        ..default
    }
}

/// What every upload of the run has in common.
pub fn uploads(data: &DataSpec) -> UploadSettings {
    let sse = data.aws.sse.map(|sse| match sse {
        Sse::Aes256 => SseAlgorithm::Aes256,
        Sse::Kms => SseAlgorithm::Kms,
        Sse::KmsDsse => SseAlgorithm::KmsDsse,
    });
    let kms_key = data.aws.sse_kms_key.as_ref().map(ToString::to_string);
    UploadSettings { sse, kms_key, overwrite: data.overwrite }
}

/// Has KMS draw a data key for `run` under `key`. CloudTrail shows the run as encryption context. Blocks; the ciphertext
/// is not kept.
pub fn draw_key_share(cloud: &Cloud, key: &str, run: &RunId) -> Result<Answer<KeyShare>, CallError> {
    let Answer { value, request_id } = cloud.block_on(cloud.keys().generate(key, &run_context(run)))?;
    Ok(Answer { value: KeyShare::new(value.0), request_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_credentials_is_told_by_its_name() {
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_SECURITY_TOKEN",
            "AWS_CREDENTIAL_EXPIRATION",
            "AWS_SHARED_CREDENTIALS_FILE",
            "AWS_CREDENTIAL_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_BEARER_TOKEN_BEDROCK",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_CONFIG_FILE",
            "AWS_PROFILE",
            "AWS_DEFAULT_PROFILE",
            "AWS_SECRET_KEY",
            "AWS_LOGIN_CACHE_DIRECTORY",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            "SECRET_ACCESS_KEY",
        ] {
            assert!(leads_to_credentials(name.as_ref()), "{name}");
        }
        for name in [
            "AWS_REGION",
            "AWS_DEFAULT_REGION",
            "AWS_CA_BUNDLE",
            "AWS_ENDPOINT_URL_S3",
            "AWS_BATCH_JOB_ARRAY_INDEX",
            "AWS_MAX_ATTEMPTS",
            "AWS_EC2_METADATA_DISABLED",
            "PATH",
            "GITHUB_TOKEN",
        ] {
            assert!(!leads_to_credentials(name.as_ref()), "{name}");
        }
    }
}
