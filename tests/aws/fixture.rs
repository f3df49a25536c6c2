//! What the tests against the double share: connections to it as one of its personas.

use runseal::s3::{Cloud, CloudConfig, Credentials, Endpoints};
use zeroize::Zeroizing;

use crate::aws_double::{Double, REGION};

/// Speaks to the double as `persona`, with one attempt for each call.
pub fn cloud(double: &Double, persona: &str) -> Cloud {
    Cloud::connect(&config(double, persona)).expect("nothing to refuse")
}

/// What connects to the double as `persona`.
pub fn config(double: &Double, persona: &str) -> CloudConfig {
    let (id, credential) = double.credentials(persona);
    let mut config = CloudConfig::new("run-1".parse().expect("a run id"));
    config.endpoints = Endpoints {
        s3: Some(double.s3_endpoint()),
        kms: Some(double.kms_endpoint()),
        sts: Some(double.sts_endpoint()),
    };
    config.region = Some(REGION.to_owned());
    config.credentials = Some(Credentials {
        access_key_id: Zeroizing::new(id),
        secret_access_key: Zeroizing::new(credential.secret),
        session_token: credential.token.map(Zeroizing::new),
    });
    config.attempts = 1;
    config
}
