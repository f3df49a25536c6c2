//! Policy statements that would repair a finding.

use serde_json::{Value, json};

use super::explain::Hints;
use super::report::Repair;
use super::trouble::{Attempt, Trouble};
use crate::s3::PolicyKind;

/// For a missing permission on a KMS key. A key of another account needs both sides.
pub(super) fn of_key(
    trouble: &Trouble,
    hints: &Hints<'_>,
    key: Option<&str>,
    policy: Option<PolicyKind>,
    foreign: bool,
) -> Option<Repair> {
    let key = key.filter(|key| key.starts_with("arn:"))?;
    // A multipart upload needs both, whichever of them failed first.
    let actions = match trouble.attempt {
        Attempt::Begin | Attempt::Part => json!(["kms:GenerateDataKey", "kms:Decrypt"]),
        Attempt::RunKey => json!(["kms:GenerateDataKey"]),
        _ => json!(["kms:Decrypt"]),
    };
    let condition = condition(trouble, hints, key);
    let iam =
        json!({ "Sid": "RunsealKey", "Effect": "Allow", "Action": actions, "Resource": key, "Condition": condition });
    let principal = principal(hints)?;
    let key_policy = json!({
        "Sid": "RunsealKey", "Effect": "Allow", "Principal": { "AWS": principal }, "Action": actions, "Resource": "*",
        "Condition": condition
    });
    let (in_iam, in_key) = match policy {
        _ if foreign => (true, true),
        Some(PolicyKind::IdentityBased) => (true, false),
        Some(PolicyKind::ResourceBased) => (false, true),
        None => (true, true),
        Some(_) => return None,
    };
    Some(Repair { iam: in_iam.then_some(iam), key_policy: in_key.then_some(key_policy), bucket_policy: None })
}

/// With a bucket key S3 gives the ARN of the bucket, else that of the object: both are allowed, for either way.
fn condition(trouble: &Trouble, hints: &Hints<'_>, key: &str) -> Value {
    let Some(uri) = &trouble.uri else {
        return json!({ "StringEquals": { "kms:EncryptionContext:runseal:run-id": hints.run.as_str() } });
    };
    let region = key.split(':').nth(3).unwrap_or(hints.region);
    let bucket = super::probe::bucket_arn(&uri.bucket);
    let below = format!("{bucket}/{}*", super::trouble::directory(&uri.key));
    json!({
        "StringEquals": { "kms:ViaService": format!("s3.{region}.amazonaws.com") },
        "StringLike": { "kms:EncryptionContext:aws:s3:arn": [bucket, below] }
    })
}

/// For a missing permission of S3.
pub(super) fn of_bucket(
    trouble: &Trouble,
    hints: &Hints<'_>,
    action: &'static str,
    policy: Option<PolicyKind>,
) -> Option<Repair> {
    let uri = trouble.uri.as_ref()?;
    let bucket = super::probe::bucket_arn(&uri.bucket);
    let directory = super::trouble::directory(&uri.key);
    let mut statement = match action {
        "s3:ListBucket" => json!({
            "Sid": "RunsealList", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
            "Condition": { "StringLike": { "s3:prefix": format!("{}*", uri.key) } }
        }),
        "s3:PutObject" => json!({
            "Sid": "RunsealWrite", "Effect": "Allow", "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
            "Resource": format!("{bucket}/{directory}*")
        }),
        action => json!({
            "Sid": "RunsealRead", "Effect": "Allow", "Action": action, "Resource": format!("{bucket}/{directory}*")
        }),
    };
    match policy {
        None | Some(PolicyKind::IdentityBased) => Some(Repair { iam: Some(statement), ..Repair::default() }),
        Some(PolicyKind::ResourceBased) => {
            statement["Principal"] = json!({ "AWS": principal(hints)? });
            Some(Repair { bucket_policy: Some(statement), ..Repair::default() })
        }
        Some(_) => None,
    }
}

/// The caller as a policy names it: of a session, its role.
fn principal(hints: &Hints<'_>) -> Option<String> {
    let arn = &hints.identity?.arn;
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [_, partition, _, _, account, resource] = parts[..] else { return None };
    match resource.strip_prefix("assumed-role/").and_then(|rest| rest.rsplit_once('/')) {
        Some((role, _)) => Some(format!("arn:{partition}:iam::{account}:role/{role}")),
        None => Some(arn.clone()),
    }
}
