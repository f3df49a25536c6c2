//! The policies that a whole run needs.

use serde::Serialize;

use super::statement::{
    KeyUse, Place, Policy, Statement, describe_key, get_objects, list_prefix, put_objects, remove_objects, run_key,
    use_key,
};

/// Characters of a session policy (STS API Reference, `AssumeRole`).
pub const SESSION_POLICY_LIMIT: usize = 2048;

/// What a run does at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Reads its objects.
    Read,
    /// Writes objects.
    Write,
    /// Writes objects, and removes those of before.
    Replace,
}

impl Use {
    /// Whether `self` is `wanted`, or includes it.
    fn includes(self, wanted: Self) -> bool {
        self == wanted || self == Self::Replace && wanted == Self::Write
    }
}

/// How the objects of a place are encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// With a key that asks for no permission of the caller: SSE-S3, or the key AWS manages for S3 in this account.
    NoKms,
    /// With one of these keys of KMS: their ARNs.
    Keys(Vec<String>),
}

/// A place, what is done there, and how it is encrypted.
pub type Needs = (Place, Use, KeySource);

/// The policies of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    /// For the user or role that runs it.
    pub identity_policy: Policy,
    /// To be added to the policies of keys. Needed where a key policy does not leave permission to IAM, and for keys of
    /// other accounts.
    pub key_policies: Vec<KeyPolicy>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// Statements for the policy of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyPolicy {
    /// ARN of the key.
    pub key: String,
    /// To be added.
    pub statements: Vec<Statement>,
}

/// The policies for `needs`; `run_key_arn` takes part in the key of the run. `principal` is who runs it, and is needed for
/// key policies only.
pub fn write(needs: &[Needs], run_key_arn: Option<&str>, principal: Option<&str>) -> Policies {
    let mut statements = objects(needs);
    let mut keys: Vec<KeyPolicy> = Vec::new();
    let mut add = |key: &str, statement: Statement| {
        match keys.iter_mut().find(|policy| policy.key == key) {
            Some(policy) => policy.statements.push(statement),
            None => keys.push(KeyPolicy { key: key.to_owned(), statements: vec![statement] }),
        };
    };
    for (kind, usage) in [("Decrypt", Use::Read), ("Encrypt", Use::Write)] {
        for (number, key) in keys_of(needs, usage).iter().enumerate() {
            let places = places_with(needs, usage, key);
            let usage = KeyUse { key, write: usage == Use::Write, places: &places };
            add(key, use_key(&numbered(kind, number), &usage));
        }
    }
    if let Some(key) = run_key_arn {
        add(key, run_key("RunKey", key));
    }
    statements.extend(keys.iter().flat_map(|policy| policy.statements.clone()));
    let all: Vec<String> = keys.iter().map(|policy| policy.key.clone()).collect();
    if !all.is_empty() {
        statements.push(describe_key("DescribeKeys", all));
    }
    let identity_policy = Policy::new(statements);
    let notes = notes(&identity_policy, principal, &keys);
    let key_policies = principal.map_or_else(Vec::new, |principal| in_key_policies(keys, principal));
    Policies { identity_policy, key_policies, notes }
}

fn objects(needs: &[Needs]) -> Vec<Statement> {
    let places = |wanted: Use| -> Vec<Place> {
        needs.iter().filter(|(_, usage, _)| usage.includes(wanted)).map(|(place, ..)| place.clone()).collect()
    };
    let (read, written, replaced) = (places(Use::Read), places(Use::Write), places(Use::Replace));
    let mut listed: Vec<Place> = [&read[..], &written].concat();
    listed.sort();
    listed.dedup();
    let mut statements: Vec<Statement> =
        listed.iter().enumerate().map(|(number, place)| list_prefix(&numbered("List", number), place)).collect();
    if !read.is_empty() {
        statements.push(get_objects("Read", &read));
    }
    if !written.is_empty() {
        statements.push(put_objects("Write", &written));
    }
    if !replaced.is_empty() {
        statements.push(remove_objects("Replace", &replaced));
    }
    statements
}

fn keys_of(needs: &[Needs], wanted: Use) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for (_, usage, source) in needs {
        if let KeySource::Keys(named) = source
            && usage.includes(wanted)
        {
            keys.extend(named.iter().filter(|key| !keys.contains(key)).cloned().collect::<Vec<_>>());
        }
    }
    keys
}

fn places_with(needs: &[Needs], wanted: Use, key: &String) -> Vec<Place> {
    let uses = |source: &KeySource| matches!(source, KeySource::Keys(keys) if keys.contains(key));
    needs
        .iter()
        .filter(|(_, usage, source)| usage.includes(wanted) && uses(source))
        .map(|(place, ..)| place.clone())
        .collect()
}

/// `Read`, `Read2`, `Read3`, ...
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}{}", number + 1) }
}

fn in_key_policies(keys: Vec<KeyPolicy>, principal: &str) -> Vec<KeyPolicy> {
    keys.into_iter()
        .map(|KeyPolicy { key, statements }| {
            let described = describe_key("DescribeKey", vec![key.clone()]);
            let statements = statements.iter().chain([&described]);
            KeyPolicy { statements: statements.map(|one| one.in_key_policy(principal)).collect(), key }
        })
        .collect()
}

fn notes(identity: &Policy, principal: Option<&str>, keys: &[KeyPolicy]) -> Vec<String> {
    let mut notes = Vec::new();
    let size = serde_json::to_string(identity).map_or(0, |text| text.len());
    if size > SESSION_POLICY_LIMIT {
        notes.push(format!(
            "the identity policy has {size} characters: too many for a session policy, which may have {SESSION_POLICY_LIMIT}"
        ));
    }
    if principal.is_none() && !keys.is_empty() {
        notes.push("key policies need to know who runs: give --principal ARN to see them".into());
    }
    if principal.is_some_and(|arn| arn.contains(":assumed-role/")) {
        notes.push(
            "the principal is a session: policies name its role, whose path a session does not tell; check it".into(),
        );
    }
    notes
}
