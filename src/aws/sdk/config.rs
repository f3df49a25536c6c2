//! Environment, profile files and `CloudConfig` to one configuration of the SDK.

use std::borrow::Cow;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, FrameworkMetadata, Region, SdkConfig};
use aws_credential_types::Credentials as SdkCredentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_types::origin::Origin;
use aws_types::service_config::ServiceConfigKey;

use super::classify::configuration;
use super::guard;
use crate::aws::{CallError, CloudConfig, Credentials, Endpoints, SLOWEST, Timeouts};

/// What all clients are made from.
pub(super) struct Shared {
    pub(super) sdk: SdkConfig,
    /// Of each service, wherever they were configured.
    pub(super) endpoints: Endpoints,
    pub(super) patience: Patience,
}

/// Limits of attempts and time for calls that move contents.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    attempts: u32,
    limits: Timeouts,
}

impl Patience {
    pub(super) fn retries(self) -> RetryConfig {
        RetryConfig::standard().with_max_attempts(self.attempts.max(1) * 2)
    }

    /// Until the answer to a `GET` begins; its body is watched by the protection against stalls.
    pub(super) fn download(self) -> TimeoutConfig {
        let limits = self.limits;
        let config = TimeoutConfig::builder().connect_timeout(limits.connect).read_timeout(limits.read);
        config.operation_attempt_timeout(limits.attempt).operation_timeout(limits.transfer).build()
    }

    /// A read timeout would count from the first byte that is sent.
    pub(super) fn upload(self, bytes: u64) -> TimeoutConfig {
        let limits = self.limits;
        let attempt = limits.attempt + Duration::from_secs(bytes / SLOWEST);
        let config = TimeoutConfig::builder().connect_timeout(limits.connect).disable_read_timeout();
        config.operation_attempt_timeout(attempt).operation_timeout(limits.transfer.max(attempt)).build()
    }
}

impl Shared {
    /// # Errors
    /// The settings contradict each other.
    pub(super) async fn load(config: &CloudConfig) -> Result<Self, CallError> {
        let sdk = loader(config)?.load().await;
        let endpoints = Endpoints {
            s3: config.endpoints.s3.clone().or_else(|| configured(&sdk, "S3")),
            kms: config.endpoints.kms.clone().or_else(|| configured(&sdk, "KMS")),
            sts: config.endpoints.sts.clone().or_else(|| configured(&sdk, "STS")),
        };
        check(&sdk, &endpoints)?;
        let sdk = match &config.role_arn {
            Some(role) => assume(config, role, sdk, &endpoints).await,
            None => sdk,
        };
        let patience = Patience { attempts: config.attempts, limits: config.timeouts };
        Ok(Self { sdk, endpoints, patience })
    }
}

fn loader(config: &CloudConfig) -> Result<ConfigLoader, CallError> {
    let stalls = StalledStreamProtectionConfig::enabled().grace_period(config.timeouts.stall).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(guard::client(config)?)
        .retry_config(RetryConfig::standard().with_max_attempts(config.attempts.max(1)))
        .timeout_config(timeouts(config))
        .stalled_stream_protection(stalls);
    loader = names(loader, config)?;
    if let Some(profile) = &config.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &config.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(fips) = config.fips {
        loader = loader.use_fips(fips);
    }
    if let Some(dual_stack) = config.dual_stack {
        loader = loader.use_dual_stack(dual_stack);
    }
    if let Some(credentials) = &config.credentials {
        loader = loader.credentials_provider(explicit(credentials));
    }
    Ok(loader)
}

/// `lib/runseal/<version>` and `app/<run id>` in the user agent.
fn names(loader: ConfigLoader, config: &CloudConfig) -> Result<ConfigLoader, CallError> {
    let version: Option<Cow<'static, str>> = Some(env!("CARGO_PKG_VERSION").into());
    let product = FrameworkMetadata::new("runseal", version).map_err(|error| configuration(&error))?;
    let run = AppName::new(config.run.as_str().to_owned()).map_err(|error| configuration(&error))?;
    Ok(loader.framework_metadata(product).app_name(run))
}

fn timeouts(config: &CloudConfig) -> TimeoutConfig {
    let limits = config.timeouts;
    TimeoutConfig::builder()
        .connect_timeout(limits.connect)
        .read_timeout(limits.read)
        .operation_attempt_timeout(limits.attempt)
        .operation_timeout(limits.operation)
        .build()
}

fn explicit(credentials: &Credentials) -> SdkCredentials {
    SdkCredentials::new(
        credentials.access_key_id.as_str(),
        credentials.secret_access_key.as_str(),
        credentials.session_token.as_ref().map(|token| token.to_string()),
        None,
        "runseal",
    )
}

/// What the SDK would find out only at the first call, or not at all.
fn check(sdk: &SdkConfig, endpoints: &Endpoints) -> Result<(), CallError> {
    if sdk.region().is_none() {
        return Err(configuration(&"no AWS Region is configured: set AWS_REGION, or `region` in the profile"));
    }
    for (service, endpoint) in [("S3", &endpoints.s3), ("KMS", &endpoints.kms), ("STS", &endpoints.sts)] {
        let Some(endpoint) = endpoint else { continue };
        if sdk.use_fips() == Some(true) {
            return Err(configuration(&format!(
                "FIPS endpoints are asked for (AWS_USE_FIPS_ENDPOINT), but the endpoint URL of {service} is {endpoint}: \
                 use one of the two"
            )));
        }
        guard::check(endpoint)?;
    }
    Ok(())
}

/// The endpoint URL of a service in environment and profile files: its own, or else that of all.
fn configured(sdk: &SdkConfig, service: &str) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three parts are given");
    let own = sdk.service_config().and_then(|settings| settings.load_config(key));
    own.or_else(|| sdk.endpoint_url().map(str::to_owned))
}

/// With credentials of `role`, in a session named after the run.
async fn assume(config: &CloudConfig, role: &str, sdk: SdkConfig, endpoints: &Endpoints) -> SdkConfig {
    let mut at_sts = sdk.to_builder();
    at_sts.set_endpoint_url(endpoints.sts.clone());
    at_sts.insert_origin("endpoint_url", Origin::shared_config());
    let provider = AssumeRoleProvider::builder(role).session_name(session_name(config)).configure(&at_sts.build());
    sdk.to_builder().credentials_provider(SharedCredentialsProvider::new(provider.build().await)).build()
}

/// `runseal-<run id>`, at most 64 characters (STS API Reference, `RoleSessionName`).
fn session_name(config: &CloudConfig) -> String {
    let mut name = format!("runseal-{}", config.run);
    name.truncate(64);
    name
}
