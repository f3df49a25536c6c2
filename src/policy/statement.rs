//! Statements that allow exactly what one step of a run needs, for the caller's side and for key policies.
//!
//! Where S3 calls KMS for the caller, `kms:ViaService` names the Region of the key, and the encryption context is both the
//! ARN of the bucket (which S3 uses while a bucket key is on) and the ARNs of the objects (while it is off): a run must not
//! break when somebody switches that.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::aws::RUN_ID_CONTEXT;
use crate::spec::{Arn, partition_of, s3_arn};

/// `Condition`: operator, key, values.
pub type Condition = BTreeMap<&'static str, BTreeMap<String, Vec<String>>>;

/// One statement that allows something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    /// Its name, unique in one policy.
    pub sid: String,
    effect: &'static str,
    /// Whom a resource-based policy allows it; none on the caller's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<BTreeMap<&'static str, String>>,
    /// `s3:GetObject`, ...
    pub action: Vec<String>,
    /// ARNs; `*` in a key policy, where it is the key itself.
    pub resource: Vec<String>,
    /// Under which circumstances.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub condition: Condition,
}

/// A policy of the language of 2012, the newest one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    /// Its statements.
    pub statement: Vec<Statement>,
}

impl Policy {
    /// A policy of these statements.
    pub fn new(statement: Vec<Statement>) -> Self {
        Self { version: "2012-10-17", statement }
    }
}

impl Statement {
    /// The same as a statement of the policy of the key: `principal` (an ARN) is allowed it.
    pub fn in_key_policy(&self, principal: &str) -> Self {
        let principal = BTreeMap::from([("AWS", policy_principal(principal))]);
        Self { principal: Some(principal), resource: vec!["*".into()], ..self.clone() }
    }
}

/// A place in S3: what lies below a prefix, or, where the name may mean an object too, both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// `aws`, `aws-cn`, `aws-us-gov`.
    pub partition: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Key or prefix; empty for the whole bucket. With a slash at its end it is a prefix.
    pub key: String,
}

impl Place {
    /// The place `s3://bucket/key` in the partition of `region`.
    pub fn new(region: &str, bucket: &str, key: &str) -> Self {
        Self { partition: partition_of(region).into(), bucket: bucket.into(), key: key.into() }
    }

    /// ARN of the bucket.
    pub fn bucket_arn(&self) -> String {
        s3_arn(&self.partition, &self.bucket)
    }

    /// ARNs of the objects, as patterns.
    pub fn object_arns(&self) -> Vec<String> {
        let bucket = self.bucket_arn();
        self.patterns().into_iter().map(|pattern| format!("{bucket}/{pattern}")).collect()
    }

    /// Values of `s3:prefix` for listing it.
    fn prefixes(&self) -> Vec<String> {
        self.patterns()
    }

    fn patterns(&self) -> Vec<String> {
        let key = literal(&self.key);
        if key.is_empty() || key.ends_with('/') { vec![format!("{key}*")] } else { vec![format!("{key}/*"), key] }
    }

    /// Encryption contexts of its objects, with a bucket key and without.
    fn contexts(&self) -> Vec<String> {
        let mut contexts = self.object_arns();
        contexts.insert(0, self.bucket_arn());
        contexts
    }
}

/// Characters that have a meaning in patterns stand for themselves as policy variables (IAM User Guide, "Policy
/// variables", special characters).
fn literal(key: &str) -> String {
    key.chars().fold(String::new(), |mut text, c| {
        match c {
            '*' | '?' | '$' => text.extend(['$', '{', c, '}']),
            _ => text.push(c),
        }
        text
    })
}

/// The statement `sid`: these actions on these resources, under no condition.
pub fn allow(sid: &str, actions: &[&str], resources: Vec<String>) -> Statement {
    Statement {
        sid: sid.into(),
        effect: "Allow",
        principal: None,
        action: actions.iter().map(|&action| action.to_owned()).collect(),
        resource: resources,
        condition: Condition::new(),
    }
}

/// Reading the objects of `place`.
pub fn get_objects(sid: &str, places: &[Place]) -> Statement {
    allow(sid, &["s3:GetObject"], objects(places))
}

/// Listing `place`.
pub fn list_prefix(sid: &str, place: &Place) -> Statement {
    let mut statement = allow(sid, &["s3:ListBucket"], vec![place.bucket_arn()]);
    if !place.key.is_empty() {
        statement.condition = condition("StringLike", "s3:prefix", place.prefixes());
    }
    statement
}

/// Writing objects of `place`, and giving uploads up.
pub fn put_objects(sid: &str, places: &[Place]) -> Statement {
    allow(sid, &["s3:PutObject", "s3:AbortMultipartUpload"], objects(places))
}

/// Looking at objects of `places` and removing them.
pub fn remove_objects(sid: &str, places: &[Place]) -> Statement {
    allow(sid, &["s3:GetObject", "s3:DeleteObject"], objects(places))
}

fn objects(places: &[Place]) -> Vec<String> {
    let mut arns: Vec<String> = places.iter().flat_map(Place::object_arns).collect();
    arns.sort();
    arns.dedup();
    arns
}

/// What S3 does with a key for the caller.
#[derive(Clone, Copy, Debug)]
pub struct KeyUse<'a> {
    /// ARN of the key.
    pub key: &'a str,
    /// Whether objects are written with it, not only read.
    pub write: bool,
    /// Where these objects are.
    pub places: &'a [Place],
}

/// Using a key through S3. Writing needs `kms:Decrypt` too: `UploadPart` and `CompleteMultipartUpload` ask for it.
pub fn use_key(sid: &str, usage: &KeyUse<'_>) -> Statement {
    let actions: &[&str] = if usage.write { &["kms:Decrypt", "kms:GenerateDataKey"] } else { &["kms:Decrypt"] };
    let mut statement = allow(sid, actions, vec![usage.key.into()]);
    let region = Arn::parse(usage.key).map_or("", |arn| arn.region);
    let mut contexts: Vec<String> = usage.places.iter().flat_map(Place::contexts).collect();
    contexts.sort();
    contexts.dedup();
    statement.condition = condition("StringEquals", "kms:ViaService", via_s3(region));
    statement.condition.extend(condition("StringLike", "kms:EncryptionContext:aws:s3:arn", contexts));
    statement
}

/// `kms:ViaService` of S3 in `region`. Which of two names the Regions of China use is not documented, and a name that is not
/// in use allows nothing.
fn via_s3(region: &str) -> Vec<String> {
    let mut names = vec![format!("s3.{region}.amazonaws.com")];
    if partition_of(region) == "aws-cn" {
        names.push(format!("s3.{region}.amazonaws.com.cn"));
    }
    names
}

/// Asking what kind of key it is. Preflight asks KMS itself, so `kms:ViaService` would deny it.
pub fn describe_key(sid: &str, keys: Vec<String>) -> Statement {
    allow(sid, &["kms:DescribeKey"], keys)
}

/// Drawing the data key of a run from `key` (`--run-key-kms`), which runseal asks KMS for itself, with the run as
/// encryption context.
pub fn run_key(sid: &str, key: &str) -> Statement {
    let mut statement = allow(sid, &["kms:GenerateDataKey"], vec![key.into()]);
    statement.condition = condition("Null", &format!("kms:EncryptionContext:{RUN_ID_CONTEXT}"), vec!["false".into()]);
    statement
}

fn condition(operator: &'static str, key: &str, values: Vec<String>) -> Condition {
    BTreeMap::from([(operator, BTreeMap::from([(key.to_owned(), values)]))])
}

/// The principal that a policy should name for a caller: for a session of a role, the role. The ARN of a session leaves
/// out the path of its role, so a role with a path must be named by its own ARN.
pub fn policy_principal(caller: &str) -> String {
    let role = |arn: Arn<'_>| {
        let role = arn.resource.strip_prefix("assumed-role/")?.split('/').next()?;
        (arn.service == "sts").then(|| format!("arn:{}:iam::{}:role/{role}", arn.partition, arn.account))
    };
    Arn::parse(caller).and_then(role).unwrap_or_else(|| caller.to_owned())
}
