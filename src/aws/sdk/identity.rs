//! `IdentityService` on STS.

use async_trait::async_trait;
use aws_sdk_sts::Client;
use aws_sdk_sts::config::Builder;

use super::{classify, config::Shared, convert::answer};
use crate::aws::{Answer, CallError, Identity, IdentityService};

pub(super) struct Caller {
    client: Client,
}

impl Caller {
    pub(super) fn new(shared: &Shared) -> Self {
        let mut config = Builder::from(&shared.sdk);
        config.set_endpoint_url(shared.endpoints.sts.clone());
        Self { client: Client::from_conf(config.build()) }
    }
}

#[async_trait]
impl IdentityService for Caller {
    async fn whoami(&self) -> Result<Answer<Identity>, CallError> {
        let output = self.client.get_caller_identity().send().await;
        let output = output.map_err(|error| classify::call("sts:GetCallerIdentity", &error))?;
        let identity = Identity {
            arn: output.arn().unwrap_or_default().to_owned(),
            account: output.account().unwrap_or_default().to_owned(),
            user_id: output.user_id().unwrap_or_default().to_owned(),
        };
        Ok(answer(identity, &output))
    }
}
