//! What a connection to AWS is made of, besides what environment and profile files say.

use std::time::Duration;

use crate::spec::{Credentials, RunId};

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
