//! What a trouble means, and what to do about it; pure, everything asked for it is known already.
//!
//! Order of truth: what S3 answered decides that there is a finding. What KMS says when it is asked directly only
//! explains: S3 asks KMS from its own network and in the name of the caller, so that a policy with `kms:ViaService`
//! refuses the direct call and allows S3's, and one with `aws:SourceVpce` does the opposite.

use std::collections::BTreeMap;

use super::keys::{Answers, DryRun, Use, defect};
use super::repair;
use super::trouble::{Attempt, Trouble, directory};
use crate::aws::{CallError, Cause, Denial, Identity, PolicyKind};
use crate::policy::Place;
use crate::preflight::report::{AwsDetails, Code, Finding};
use crate::spec::Arn;

/// What is known besides the trouble itself.
pub(super) struct Hints<'a> {
    /// Region of the configuration.
    pub(super) region: &'a str,
    pub(super) identity: Option<&'a Identity>,
    pub(super) answers: &'a Answers,
    /// Regions of buckets, as far as they were asked for.
    pub(super) regions: &'a BTreeMap<String, String>,
    /// ARN of the key that takes part in the run key.
    pub(super) run_key: Option<&'a str>,
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// The finding for a trouble.
pub(super) fn explain(trouble: &Trouble, hints: &Hints<'_>) -> Finding {
    let key = key_of(trouble, hints);
    let told = match trouble.error.cause {
        Cause::Denied if trouble.error.operation.starts_with("sts:") => role_denied(),
        Cause::Denied => denied(trouble, hints, key.as_deref()),
        Cause::NotFound => not_found(trouble, hints, key.as_deref()),
        Cause::KeyState | Cause::KeyKind => bad_key(trouble, hints, key.as_deref()),
        Cause::Precondition => {
            Explanation::new("changed while preflight looked at it", "start the run again when nothing writes there")
        }
        Cause::Archived => archived(trouble),
        Cause::Credentials => Explanation::new(
            "AWS does not accept the credentials, or there are none",
            "renew or configure them (AWS_PROFILE, AWS_ACCESS_KEY_ID, aws sso login, the role of the machine), then start again",
        ),
        Cause::Unreachable => Explanation::new(
            "AWS could not be reached, or did not answer in time",
            "check network, proxy, DNS and the VPC endpoints of S3, KMS and STS; then start again",
        ),
        Cause::Configuration => Explanation::new(
            "the configuration of AWS makes no sense here",
            "check Region, endpoint URLs and profile (AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE)",
        ),
        Cause::Corrupt => Explanation::new(
            "what arrived does not match its checksum",
            "start again; if it stays so, upload the object again",
        ),
        Cause::Rejected => Explanation::new("AWS refused the request", "see the text of AWS"),
    };
    finding(trouble, hints, key, told)
}

/// Problem and remedy in words, and what they rest on.
struct Explanation {
    problem: String,
    remedy: String,
    action: Option<String>,
    policy: Option<PolicyKind>,
    explicit: bool,
    repair: Option<crate::preflight::report::Repair>,
}

impl Explanation {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (problem, remedy) = (problem.into(), remedy.into());
        Self { problem, remedy, action: None, policy: None, explicit: false, repair: None }
    }
}

fn finding(trouble: &Trouble, hints: &Hints<'_>, key: Option<String>, told: Explanation) -> Finding {
    let CallError { operation, cause, code, message, request_id, denial, .. } = &trouble.error;
    let subject = match (&trouble.uri, trouble.attempt) {
        _ if trouble.is_general() => "AWS".to_owned(),
        (Some(uri), _) => uri.to_string(),
        (None, Attempt::RunKey) => key.clone().unwrap_or_default(),
        (None, _) => "AWS".to_owned(),
    };
    let principal = denial.as_ref().and_then(|denial| denial.principal.clone());
    let principal = principal.or_else(|| hints.identity.map(|identity| identity.arn.clone()));
    let aws = AwsDetails {
        cause: *cause,
        operation,
        action: told.action,
        key,
        principal,
        policy: told.policy,
        explicit_deny: told.explicit,
        aws_code: code.clone(),
        aws_message: message.clone(),
        request_ids: Some(request_id.clone()).filter(|id| !id.is_empty()).into_iter().collect(),
        also: trouble.also.clone(),
        repair: told.repair,
    };
    Finding { aws: Some(Box::new(aws)), ..Finding::new(code_of(trouble), subject, told.problem, told.remedy) }
}

fn code_of(trouble: &Trouble) -> Code {
    match (trouble.attempt, trouble.error.cause) {
        (_, Cause::Credentials) | (Attempt::Identity, _) => Code::AssumeRoleFailed,
        _ if trouble.error.operation.starts_with("sts:") => Code::AssumeRoleFailed,
        (Attempt::RunKey, _) => Code::RunKeyFailed,
        (Attempt::Begin | Attempt::Part, _) => Code::ExportFailed,
        (_, Cause::Precondition) => Code::ModifiedInputResource,
        (Attempt::List | Attempt::Head | Attempt::HeadOrList, Cause::NotFound) => Code::InputUriNotFound,
        _ => Code::ImportFailed,
    }
}

/// The KMS key concerned, as far as anybody named one.
fn key_of(trouble: &Trouble, hints: &Hints<'_>) -> Option<String> {
    let denial = trouble.error.denial.as_ref();
    let named = denial
        .and_then(|denial| denial.resource.clone())
        .filter(|arn| Arn::parse(arn).is_some_and(|arn| arn.service == "kms"));
    let of_run = hints.run_key.filter(|_| trouble.attempt == Attempt::RunKey).map(str::to_owned);
    named.or_else(|| trouble.encryption.key.clone()).or(of_run)
}

/// Which permission is missing, and how that is known.
enum Missing {
    /// Of S3.
    S3(&'static str),
    /// Of KMS.
    Kms(&'static str),
}

fn denied(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> Explanation {
    let none = Denial::default();
    let denial = trouble.error.denial.as_ref().unwrap_or(&none);
    let mut told = match missing(trouble, hints, key) {
        Missing::Kms(action) => kms_denied(trouble, hints, key, action, denial),
        Missing::S3(action) => s3_denied(trouble, hints, action, denial),
    };
    told.policy = denial.policy;
    told.explicit = denial.explicit;
    told
}

/// AWS names the action if it is in the mood. Else: S3 checks its own permission first, and what could be looked at or
/// begun has passed that.
fn missing(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> Missing {
    let message = trouble.error.message.as_str();
    let named = trouble.error.denial.as_ref().and_then(|denial| denial.action.as_deref());
    let about_key = message.contains("ciphertext") || message.contains("customer master key");
    let (s3, kms) = match trouble.attempt {
        Attempt::List => ("s3:ListBucket", None),
        Attempt::Head | Attempt::HeadOrList => ("s3:GetObject", None),
        Attempt::Read => ("s3:GetObject", Some(Use::Decrypt)),
        Attempt::Begin => ("s3:PutObject", Some(Use::Generate)),
        Attempt::Part => ("s3:PutObject", Some(Use::Decrypt)),
        Attempt::RunKey => return Missing::Kms("kms:GenerateDataKey"),
        Attempt::Identity => ("sts:GetCallerIdentity", None),
    };
    match (named, kms) {
        (Some("kms:Decrypt"), _) => Missing::Kms("kms:Decrypt"),
        (Some("kms:GenerateDataKey"), _) => Missing::Kms("kms:GenerateDataKey"),
        (Some("s3:ListBucket"), _) => Missing::S3("s3:ListBucket"),
        (Some(action), _) if action.starts_with("s3:") => Missing::S3(s3),
        (_, Some(purpose)) if about_key => Missing::Kms(purpose.action()),
        (_, Some(purpose)) if trouble.attempt != Attempt::Begin && key.is_some() => Missing::Kms(purpose.action()),
        (_, Some(purpose)) if refused_directly(trouble, hints, key, purpose) => Missing::Kms(purpose.action()),
        _ => Missing::S3(s3),
    }
}

fn refused_directly(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>, purpose: Use) -> bool {
    asked(trouble, hints, key, purpose, trouble.encryption.bucket_key) == Some(false)
}

/// Whether KMS allowed it when it was asked directly with the context that S3 uses with or without a bucket key.
fn asked(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>, purpose: Use, bucket_key: bool) -> Option<bool> {
    let dry = DryRun::new(purpose, key?, trouble.uri.as_ref()?, bucket_key);
    match hints.answers.dry_run(&dry)? {
        Ok(_) => Some(true),
        Err(error) if error.cause == Cause::Denied => Some(false),
        Err(_) => None,
    }
}

fn kms_denied(
    trouble: &Trouble,
    hints: &Hints<'_>,
    key: Option<&str>,
    action: &'static str,
    denial: &Denial,
) -> Explanation {
    let who = hints.identity.map_or("the caller", |identity| identity.arn.as_str());
    let named = key.map_or_else(|| "a KMS key that AWS does not name".to_owned(), |key| format!("KMS key {key}"));
    let what = match trouble.attempt {
        Attempt::Begin => {
            format!("results would be encrypted under {named}, which {who} may not use: {action} is denied")
        }
        Attempt::Part => format!(
            "small results could be written, large ones not: each part of a multipart upload needs {action} on {named}, \
             which is denied to {who}"
        ),
        Attempt::RunKey => format!("{who} may not make the data key of this run: {action} is denied"),
        _ => format!("is encrypted under {named}, which {who} may not use: {action} is denied"),
    };
    let foreign = is_foreign(hints, key);
    if foreign && (key.is_some_and(|key| hints.answers.is_managed(key)) || is_managed_elsewhere(trouble, hints, key)) {
        return managed_elsewhere(what, action, trouble);
    }
    let mut problem = format!("{what}{}", because(denial));
    let mut remedy = remedy_of_policy(action, key, denial, foreign);
    for (more, instead) in hints_of_kms(trouble, hints, key, action, denial) {
        problem.push_str("; ");
        problem.push_str(&more);
        if let Some(instead) = instead {
            remedy = instead;
        }
    }
    let repair = (!denial.explicit).then(|| repair::of_key(trouble, hints, key, denial.policy, foreign)).flatten();
    Explanation { action: Some(action.to_owned()), repair, ..Explanation::new(problem, remedy) }
}

/// What the direct calls of KMS add, and the better remedy where there is one.
fn hints_of_kms(
    trouble: &Trouble,
    hints: &Hints<'_>,
    key: Option<&str>,
    action: &str,
    denial: &Denial,
) -> Vec<(String, Option<String>)> {
    let mut more = Vec::new();
    if trouble.attempt == Attempt::RunKey {
        return more;
    }
    let purpose = if action == Use::Generate.action() { Use::Generate } else { Use::Decrypt };
    let bucket_key = trouble.encryption.bucket_key;
    let as_s3 = asked(trouble, hints, key, purpose, bucket_key);
    let otherwise = asked(trouble, hints, key, purpose, !bucket_key);
    match (as_s3, otherwise) {
        (Some(false), Some(true)) => more.push(wrong_context(bucket_key)),
        (Some(true), _) => more.push((
            "KMS allows the same call when it is made directly, so a condition refuses the call that S3 makes for you: \
             aws:SourceVpce, aws:SourceVpc, aws:SourceIp or aws:VpcSourceIp never fit there"
                .to_owned(),
            Some(
                "remove conditions on the network from the KMS statements of key policy and IAM policy; use kms:ViaService \
                 and kms:EncryptionContext:aws:s3:arn instead"
                    .to_owned(),
            ),
        )),
        _ => {}
    }
    let unclear = denial.policy.is_none() || trouble.error.message.contains("does not exist");
    if unclear && trouble.error.message.contains("does not exist") {
        let known = key.is_some_and(|key| hints.answers.facts(key).is_some());
        let text = if known {
            "AWS says that the key may not exist, but it does: the permission is missing"
        } else {
            "AWS says the same of a key that does not exist and of one without permission"
        };
        more.push((text.to_owned(), None));
    }
    more
}

fn wrong_context(bucket_key: bool) -> (String, Option<String>) {
    let (right, wrong, state) = match bucket_key {
        true => ("the bucket", "objects", "on"),
        false => ("the object", "the bucket", "off"),
    };
    (
        format!(
            "the policy allows it for the ARN of {wrong} in kms:EncryptionContext:aws:s3:arn, but the S3 Bucket Key is \
             {state}, so that S3 gives the ARN of {right}"
        ),
        Some(
            "allow both in kms:EncryptionContext:aws:s3:arn: the ARN of the bucket (with a bucket key) and the ARNs of its \
             objects (without)"
                .to_owned(),
        ),
    )
}

fn because(denial: &Denial) -> String {
    match (denial.policy, denial.explicit) {
        (Some(kind), true) => format!(" explicitly, by {}", policy(kind)),
        (Some(kind), false) => format!("; {} does not allow it", policy(kind)),
        (None, true) => " explicitly".to_owned(),
        (None, false) => String::new(),
    }
}

fn policy(kind: PolicyKind) -> &'static str {
    match kind {
        PolicyKind::IdentityBased => "the IAM policy of the caller",
        PolicyKind::ResourceBased => "the policy of the key or bucket",
        PolicyKind::VpcEndpoint => "the policy of the VPC endpoint",
        PolicyKind::Session => "the session policy given when the role was assumed",
        PolicyKind::PermissionsBoundary => "the permissions boundary of the caller",
        PolicyKind::ServiceControl => "a service control policy of the organization",
        PolicyKind::ResourceControl => "a resource control policy of the organization",
    }
}

fn remedy_of_policy(action: &str, key: Option<&str>, denial: &Denial, foreign: bool) -> String {
    let on = key.unwrap_or("the key");
    match (denial.policy, denial.explicit) {
        (Some(kind), true) => format!(
            "change the statement in {} that denies {action}; allowing it elsewhere does not help",
            policy(kind)
        ),
        (None, true) => format!("find the statement that denies {action}; allowing it elsewhere does not help"),
        (Some(PolicyKind::IdentityBased), _) => format!("allow {action} on {on} in the IAM policy of the caller"),
        (Some(PolicyKind::ResourceBased), _) if !foreign => {
            format!("let the key policy of {on} allow {action} to the caller, or to its account, so that IAM can")
        }
        (
            Some(
                kind @ (PolicyKind::VpcEndpoint
                | PolicyKind::Session
                | PolicyKind::PermissionsBoundary
                | PolicyKind::ServiceControl
                | PolicyKind::ResourceControl),
            ),
            _,
        ) => format!("allow {action} in {} too: it limits what all other policies allow", policy(kind)),
        _ if foreign => format!(
            "the key belongs to another account: its key policy must allow {action} to the caller, and the IAM policy of the \
             caller must allow it on {on}; neither alone is enough"
        ),
        _ => format!("allow {action} on {on}, in the IAM policy of the caller and in the key policy"),
    }
}

fn managed_elsewhere(what: String, action: &'static str, trouble: &Trouble) -> Explanation {
    let remedy = match trouble.attempt {
        Attempt::Begin | Attempt::Part => {
            "let the bucket encrypt under a customer managed key by default, or name one with --sse-kms-key-id"
        }
        _ => {
            "have its owner encrypt it under a customer managed key whose policy allows this account (copy it onto itself \
              with --sse-kms-key-id)"
        }
    };
    let problem = format!(
        "{what}; it is the key aws/s3 of another account or cannot be told from it, and no policy can open that to others"
    );
    Explanation { action: Some(action.to_owned()), ..Explanation::new(problem, remedy) }
}

/// S3 does not say whose key it is; a key of another account that may not even be described, together with the words of
/// a ciphertext, is what `aws/s3` of another account looks like.
fn is_managed_elsewhere(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> bool {
    let described = key.and_then(|key| hints.answers.described(key)).is_some_and(Result::is_ok);
    !described && trouble.error.message.contains("associated with this ciphertext")
}

fn is_foreign(hints: &Hints<'_>, key: Option<&str>) -> bool {
    let account = key.and_then(Arn::parse).map(|arn| arn.account);
    matches!((account, hints.identity), (Some(account), Some(identity)) if account != identity.account)
}

fn s3_denied(trouble: &Trouble, hints: &Hints<'_>, action: &'static str, denial: &Denial) -> Explanation {
    let who = hints.identity.map_or("the caller", |identity| identity.arn.as_str());
    let because = because(denial);
    let (problem, remedy) = match (trouble.attempt, action) {
        (Attempt::List, _) => (
            format!("cannot be listed: {who} lacks s3:ListBucket on the bucket for this prefix{because}"),
            "allow s3:ListBucket with a condition on s3:prefix, or name the objects one by one with --input: objects need \
             no listing"
                .to_owned(),
        ),
        (Attempt::HeadOrList, _) | (_, "s3:ListBucket") => (
            format!(
                "does not exist, or {who} lacks s3:GetObject: without s3:ListBucket S3 answers both alike{because}"
            ),
            "check the spelling; allow s3:GetObject on it, and s3:ListBucket so that S3 can tell".to_owned(),
        ),
        (Attempt::Begin | Attempt::Part, _) if denial.policy == Some(PolicyKind::ResourceBased) && denial.explicit => (
            format!("cannot be written: the bucket policy denies {action} to {who} explicitly"),
            "such policies often demand a certain encryption: give --sse aws:kms and --sse-kms-key-id as the policy says, \
             or change it"
                .to_owned(),
        ),
        (Attempt::Begin | Attempt::Part, _) => (
            format!("cannot be written: {who} lacks {action} there{because}"),
            format!("allow {action} on {}, or choose another --output", there(trouble, hints)),
        ),
        _ => (
            format!("cannot be read: {who} lacks {action} on it{because}"),
            format!("allow {action} on {}", there(trouble, hints)),
        ),
    };
    let remedy = match (denial.explicit, trouble.attempt) {
        (true, Attempt::List | Attempt::Head | Attempt::HeadOrList | Attempt::Read) => {
            format!("{remedy}; but first change the statement that denies it explicitly")
        }
        _ => remedy,
    };
    let repair = (!denial.explicit).then(|| repair::of_bucket(trouble, hints, action, denial.policy)).flatten();
    Explanation { action: Some(action.to_owned()), repair, ..Explanation::new(problem, remedy) }
}

/// ARN pattern of everything where the trouble is.
fn there(trouble: &Trouble, hints: &Hints<'_>) -> String {
    let place = trouble.uri.as_ref().map(|uri| Place::new(hints.region, &uri.bucket, directory(&uri.key)));
    place.map(|place| place.object_arns().join(", ")).unwrap_or_default()
}

fn role_denied() -> Explanation {
    let problem = "the role cannot be assumed";
    let remedy =
        "the trust policy of the role must name the caller, and its IAM policy must allow sts:AssumeRole on the role";
    Explanation { action: Some("sts:AssumeRole".to_owned()), ..Explanation::new(problem, remedy) }
}

fn not_found(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> Explanation {
    let code = trouble.error.code.as_str();
    if trouble.attempt == Attempt::RunKey || code.starts_with("KMS.") {
        return key_not_found(trouble, hints, key);
    }
    if code == "NoSuchBucket" {
        let bucket = trouble.uri.as_ref().map_or("", |uri| &uri.bucket);
        return Explanation::new(
            format!("there is no bucket `{bucket}`"),
            "check the spelling, and the endpoint if it is not AWS",
        );
    }
    match trouble.attempt {
        Attempt::Begin | Attempt::Part => Explanation::new("does not exist", "check the spelling of --output"),
        _ => {
            Explanation::new("does not exist: neither an object nor anything below it", "check the spelling of --input")
        }
    }
}

fn key_not_found(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> Explanation {
    if trouble.error.message.contains("aws/s3") {
        return Explanation::new(
            "the key aws/s3 was named as if it were the id of a key; in another account it cannot be used at all",
            "name a customer managed key by its ARN, in the default encryption of the bucket or with --sse-kms-key-id",
        );
    }
    let region_of_key = key.and_then(Arn::parse).map(|arn| arn.region);
    let region_of_bucket =
        trouble.uri.as_ref().and_then(|uri| hints.regions.get(&uri.bucket)).map_or(hints.region, String::as_str);
    match (key, region_of_key) {
        (Some(key), Some(region)) if region != region_of_bucket => Explanation::new(
            format!("KMS key {key} is in {region}, but S3 looks for it where the bucket is, in {region_of_bucket}"),
            format!(
                "name a key in {region_of_bucket}, or a bucket in {region}; a multi-Region key must be replicated there"
            ),
        ),
        (key, _) => Explanation::new(
            format!("there is no KMS key {} in {region_of_bucket}", key.unwrap_or("of this name")),
            "name the key by its whole ARN: ids and aliases are looked up in the account and Region of the caller",
        ),
    }
}

fn bad_key(trouble: &Trouble, hints: &Hints<'_>, key: Option<&str>) -> Explanation {
    let named = key.unwrap_or("that AWS does not name");
    let what = match trouble.attempt {
        Attempt::Begin | Attempt::Part => "results would be encrypted under",
        Attempt::RunKey => "the run key is to be mixed with",
        _ => "is encrypted under",
    };
    match key.and_then(|key| hints.answers.facts(key)).and_then(|facts| defect(facts, hints.now)) {
        Some(defect) => Explanation::new(format!("{what} KMS key {named}, which {}", defect.problem), defect.remedy),
        None => Explanation::new(
            format!("{what} KMS key {named}, which cannot be used now"),
            format!("see its state: aws kms describe-key --key-id {}", key.unwrap_or("KEY")),
        ),
    }
}

fn archived(trouble: &Trouble) -> Explanation {
    let (bucket, key) = trouble.uri.as_ref().map_or(("", ""), |uri| (uri.bucket.as_str(), uri.key.as_str()));
    let more = match trouble.also.len() {
        0 => String::new(),
        count => format!(", and {count} more below the same prefix"),
    };
    Explanation::new(
        format!("lies in an archive and is not restored ({}){more}", trouble.error.message),
        format!(
            "restore it and wait until that is done: aws s3api restore-object --bucket '{bucket}' --key '{key}' \
             --restore-request Days=7"
        ),
    )
}
