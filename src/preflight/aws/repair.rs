//! Policy statements that would repair a finding.

use std::collections::BTreeMap;

use super::explain::Hints;
use super::trouble::{Attempt, Trouble, directory};
use crate::aws::PolicyKind;
use crate::policy::{self, KeyUse, Place};
use crate::preflight::report::Repair;
use crate::spec::Arn;

/// For a missing permission on a KMS key. A key of another account needs both sides; which one is missing in the same
/// account, AWS may have said.
pub(super) fn of_key(
    trouble: &Trouble,
    hints: &Hints<'_>,
    key: Option<&str>,
    missing_in: Option<PolicyKind>,
    foreign: bool,
) -> Option<Repair> {
    let key = key.filter(|key| Arn::of_key(key).is_some())?;
    let statement = match (&trouble.uri, trouble.attempt) {
        (_, Attempt::RunKey) => policy::run_key("RunKey", key),
        (Some(uri), attempt) => {
            let places = [Place::new(hints.region, &uri.bucket, directory(&uri.key))];
            let write = matches!(attempt, Attempt::Begin | Attempt::Part);
            policy::use_key(if write { "Encrypt" } else { "Decrypt" }, &KeyUse { key, write, places: &places })
        }
        (None, _) => return None,
    };
    let (in_iam, in_key) = match missing_in {
        _ if foreign => (true, true),
        Some(PolicyKind::IdentityBased) => (true, false),
        Some(PolicyKind::ResourceBased) => (false, true),
        None => (true, true),
        Some(_) => return None,
    };
    let key_policy = hints.identity.filter(|_| in_key).map(|identity| statement.in_key_policy(&identity.arn));
    Some(Repair { iam: in_iam.then_some(statement), key_policy, bucket_policy: None })
}

/// For a missing permission of S3.
pub(super) fn of_bucket(
    trouble: &Trouble,
    hints: &Hints<'_>,
    action: &str,
    missing_in: Option<PolicyKind>,
) -> Option<Repair> {
    let uri = trouble.uri.as_ref()?;
    let places = [Place::new(hints.region, &uri.bucket, directory(&uri.key))];
    let mut statement = match action {
        "s3:ListBucket" => policy::list_prefix("List", &Place::new(hints.region, &uri.bucket, &uri.key)),
        "s3:PutObject" => policy::put_objects("Write", &places),
        _ => policy::get_objects("Read", &places),
    };
    match missing_in {
        None | Some(PolicyKind::IdentityBased) => Some(Repair { iam: Some(statement), ..Repair::default() }),
        Some(PolicyKind::ResourceBased) => {
            let principal = policy::policy_principal(&hints.identity?.arn);
            statement.principal = Some(BTreeMap::from([("AWS", principal)]));
            Some(Repair { bucket_policy: Some(statement), ..Repair::default() })
        }
        Some(_) => None,
    }
}
