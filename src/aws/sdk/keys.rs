//! `KeyService` on KMS. A key ARN is asked for in its own Region.

use async_trait::async_trait;
use aws_config::Region;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::Builder;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::types::{DataKeySpec, DryRunModifierType, GrantListEntry, GrantOperation, KeyMetadata};
use zeroize::Zeroizing;

use super::convert::answer;
use super::{Regional, classify, config::Shared};
use crate::aws::{Answer, CallError, Cause, DataKey, EncryptionContext, Grant, KeyFacts, KeyService};
use crate::spec::Arn;

pub(super) struct Keys {
    clients: Regional<Client>,
}

impl Keys {
    pub(super) fn new(shared: &Shared) -> Self {
        let mut config = Builder::from(&shared.sdk);
        config.set_endpoint_url(shared.endpoints.kms.clone());
        Self { clients: Regional::new(Client::from_conf(config.build())) }
    }

    fn client(&self, key: &str) -> Client {
        match region(key) {
            Some(region) => self.clients.of(region, |home| {
                let config = home.config().to_builder().region(Region::new(region.to_owned()));
                Client::from_conf(config.build())
            }),
            None => self.clients.home.clone(),
        }
    }
}

fn region(key: &str) -> Option<&str> {
    let arn = Arn::parse(key).filter(|arn| arn.service == "kms" && !arn.region.is_empty())?;
    Some(arn.region)
}

#[async_trait]
impl KeyService for Keys {
    async fn describe(&self, key: &str) -> Result<Answer<KeyFacts>, CallError> {
        let output = self.client(key).describe_key().key_id(key).send().await;
        let output = output.map_err(|error| classify::call("kms:DescribeKey", &error))?;
        Ok(answer(output.key_metadata().map(facts).unwrap_or_default(), &output))
    }

    async fn try_generate(&self, key: &str, context: &EncryptionContext) -> Result<Answer<()>, CallError> {
        let mut request = self.client(key).generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256).dry_run(true);
        for (name, value) in context {
            request = request.encryption_context(name, value);
        }
        tried("kms:GenerateDataKey", request.send().await)
    }

    async fn try_decrypt(&self, key: &str, context: &EncryptionContext) -> Result<Answer<()>, CallError> {
        let request = self.client(key).decrypt().key_id(key).dry_run(true);
        let mut request = request.dry_run_modifiers(DryRunModifierType::IgnoreCiphertext);
        for (name, value) in context {
            request = request.encryption_context(name, value);
        }
        tried("kms:Decrypt", request.send().await)
    }

    async fn try_grant(&self, key: &str, grantee: &str, operations: &[&str]) -> Result<Answer<()>, CallError> {
        let mut request = self.client(key).create_grant().key_id(key).grantee_principal(grantee).dry_run(true);
        for operation in operations {
            request = request.operations(GrantOperation::from(*operation));
        }
        tried("kms:CreateGrant", request.send().await)
    }

    async fn grants(&self, key: &str) -> Result<Answer<Vec<Grant>>, CallError> {
        let client = self.client(key);
        let mut grants = Vec::new();
        let mut marker = None;
        loop {
            let output = client.list_grants().key_id(key).set_marker(marker).send().await;
            let output = output.map_err(|error| classify::call("kms:ListGrants", &error))?;
            grants.extend(output.grants().iter().map(grant));
            marker = output.next_marker().map(str::to_owned).filter(|_| output.truncated());
            if marker.is_none() {
                return Ok(answer(grants, &output));
            }
        }
    }

    /// The buffers of HTTP and TLS that the answer came through are not ours to wipe; its last copy is.
    async fn generate(&self, key: &str, context: &EncryptionContext) -> Result<Answer<DataKey>, CallError> {
        const OPERATION: &str = "kms:GenerateDataKey";
        let mut request = self.client(key).generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256);
        for (name, value) in context {
            request = request.encryption_context(name, value);
        }
        let mut output = request.send().await.map_err(|error| classify::call(OPERATION, &error))?;
        let plaintext = Zeroizing::new(output.plaintext.take().map(|blob| blob.into_inner()).unwrap_or_default());
        if plaintext.len() != 32 {
            let text = format!("the data key has {} bytes instead of 32", plaintext.len());
            return Err(CallError::unanswered(OPERATION, Cause::Rejected, text));
        }
        Ok(answer(DataKey(plaintext), &output))
    }
}

/// A dry run always fails; this failure means that it would have succeeded. A server that does not know dry runs and
/// just answers has allowed it too.
fn tried<T: RequestId, E>(operation: &'static str, result: Result<T, SdkError<E>>) -> Result<Answer<()>, CallError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match result {
        Ok(output) => Ok(answer((), &output)),
        Err(error) => {
            let failed = classify::call(operation, &error);
            if failed.code == "DryRunOperationException" {
                return Ok(Answer { value: (), request_id: failed.request_id });
            }
            Err(failed)
        }
    }
}

fn facts(metadata: &KeyMetadata) -> KeyFacts {
    fn text(value: Option<&str>) -> String {
        value.unwrap_or_default().to_owned()
    }
    KeyFacts {
        arn: text(metadata.arn()),
        state: text(metadata.key_state().map(|value| value.as_str())),
        spec: text(metadata.key_spec().map(|value| value.as_str())),
        usage: text(metadata.key_usage().map(|value| value.as_str())),
        manager: text(metadata.key_manager().map(|value| value.as_str())),
        origin: text(metadata.origin().map(|value| value.as_str())),
        deletion: metadata.deletion_date().map(|time| time.secs()),
        valid_to: metadata.valid_to().map(|time| time.secs()),
        multi_region: metadata.multi_region().unwrap_or(false),
    }
}

fn grant(entry: &GrantListEntry) -> Grant {
    Grant {
        id: entry.grant_id().unwrap_or_default().to_owned(),
        grantee: entry.grantee_principal().unwrap_or_default().to_owned(),
        operations: entry.operations().iter().map(|operation| operation.as_str().to_owned()).collect(),
    }
}
