//! What a connection to AWS is made of, besides what environment and profile files say.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::spec::RunId;

/// Credentials handed over explicitly. Wiped on drop; neither `Clone` nor `Debug`.
pub struct Credentials {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Zeroizing<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Zeroizing<String>,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// A copy that is wiped on drop; the texts stay with whoever has them.
    pub fn new(access_key_id: &str, secret_access_key: &str, session_token: Option<&str>) -> Self {
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        Self {
            access_key_id: secret(access_key_id),
            secret_access_key: secret(secret_access_key),
            session_token: session_token.map(secret),
        }
    }
}

/// The same as they are sent, without a copy: borrowed from text that is wiped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialsText<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    #[serde(borrow, default)]
    session_token: Option<&'a str>,
}

impl<'a> From<&'a Credentials> for CredentialsText<'a> {
    fn from(own: &'a Credentials) -> Self {
        Self {
            access_key_id: &own.access_key_id,
            secret_access_key: &own.secret_access_key,
            session_token: own.session_token.as_ref().map(|token| token.as_str()),
        }
    }
}

impl From<CredentialsText<'_>> for Credentials {
    fn from(text: CredentialsText<'_>) -> Self {
        Self::new(text.access_key_id, text.secret_access_key, text.session_token)
    }
}

/// Where the services are, if not at AWS. Plain http only to this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// `AWS_ENDPOINT_URL_S3`. Buckets are then part of the path.
    pub s3: Option<String>,
    /// `AWS_ENDPOINT_URL_KMS`.
    pub kms: Option<String>,
    /// `AWS_ENDPOINT_URL_STS`.
    pub sts: Option<String>,
}

/// How long to wait. Every attempt and every call as a whole is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// From sending a request to the first byte of the answer, where the request carries no contents.
    pub read: Duration,
    /// For one attempt. Uploads have more, by their size: [`SLOWEST`].
    pub attempt: Duration,
    /// For all attempts and the pauses between them, where nothing has been computed yet that could be lost.
    pub operation: Duration,
    /// The same for contents on their way.
    pub transfer: Duration,
    /// How long a body may stand still, in either direction.
    pub stall: Duration,
}

/// Bytes a second that one upload is given time for. More uploads share the line: this is not its slowest speed.
pub const SLOWEST: u64 = 64 << 10;

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            attempt: Duration::from_secs(60),
            operation: Duration::from_secs(180),
            transfer: Duration::from_secs(1800),
            stall: Duration::from_secs(20),
        }
    }
}

/// A connection to AWS for one run. What is `None` comes from the environment (`AWS_PROFILE`, `AWS_REGION`,
/// `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`, `AWS_USE_FIPS_ENDPOINT`, ...) and then from the profile files.
pub struct CloudConfig {
    /// Names the session of an assumed role and stands in the user agent: CloudTrail shows both.
    pub run: RunId,
    /// `--role-arn`: a role to assume with the credentials that were found.
    pub role_arn: Option<String>,
    /// Profile.
    pub profile: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// FIPS 140 validated endpoints; not together with an endpoint URL.
    pub fips: Option<bool>,
    /// Dual-stack endpoints (IPv4 and IPv6).
    pub dual_stack: Option<bool>,
    /// Instead of those the provider chain would find.
    pub credentials: Option<Credentials>,
    /// Endpoint URLs, before those of the environment.
    pub endpoints: Endpoints,
    /// Transfers at a time; as many connections are kept open.
    pub concurrency: usize,
    /// Attempts for each call, the first included. Contents on their way have twice as many: there is more to lose.
    pub attempts: u32,
    /// Time limits.
    pub timeouts: Timeouts,
}

impl CloudConfig {
    /// Everything from environment and profile files.
    pub fn new(run: RunId) -> Self {
        Self {
            run,
            role_arn: None,
            profile: None,
            region: None,
            fips: None,
            dual_stack: None,
            credentials: None,
            endpoints: Endpoints::default(),
            concurrency: 16,
            attempts: 4,
            timeouts: Timeouts::default(),
        }
    }
}
