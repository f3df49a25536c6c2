//! Rules about keys of KMS, above all where S3 uses them for the caller.

use super::document::{Document, Item, StatementNode, Test};
use super::texts::well_formed;
use super::{Findings, names};
use crate::spec::Arn;

const VIA_SERVICE: &str = "kms:ViaService";
const S3_CONTEXT: &str = "kms:EncryptionContext:aws:s3:arn";
const CONTEXT: &str = "kms:encryptioncontext:";

pub fn check(document: &Document, findings: &mut Findings) {
    for statement in &document.statements {
        condition_keys(statement, findings);
        statement.tests_of(VIA_SERVICE).for_each(|test| via_service(test, statement, findings));
        statement.tests_of(S3_CONTEXT).for_each(|test| context(test, findings));
        if statement.actions_of("kms").next().is_some() {
            network(statement, findings);
            aliases(statement, findings);
            if !document.is_resource_based() {
                any_key(statement, findings);
            }
        }
    }
    multipart(document, findings);
}

fn condition_keys(statement: &StatementNode, findings: &mut Findings) {
    for test in &statement.tests {
        let key = test.key.as_str();
        let Some(("kms", _)) = key.split_once(':') else { continue };
        let fixed = names::KMS_CONDITION_KEYS.iter().chain(&names::KMS_RARE_CONDITION_KEYS);
        let lower = key.to_ascii_lowercase();
        let open =
            names::KMS_CONDITION_KEY_PREFIXES.iter().any(|prefix| lower.starts_with(&prefix.to_ascii_lowercase()));
        if open || fixed.clone().any(|known| known.eq_ignore_ascii_case(key)) {
            continue;
        }
        let remedy = names::nearest(key, fixed.copied()).map_or_else(
            || "look it up in the KMS Developer Guide".to_owned(),
            |meant| format!("did you mean {meant}?"),
        );
        findings.warning(&test.spot, "unknown-condition-key", format!("KMS has no condition key `{key}`"), remedy);
    }
}

/// The value is the name of a regional endpoint: `s3.eu-central-1.amazonaws.com`.
fn via_service(test: &Test, statement: &StatementNode, findings: &mut Findings) {
    if test.plain_operator().eq_ignore_ascii_case("Null") {
        return;
    }
    let pattern = test.plain_operator().to_ascii_lowercase().ends_with("like");
    for value in &test.values {
        let name = value.text.strip_suffix(".amazonaws.com").or(value.text.strip_suffix(".amazonaws.com.cn"));
        let labels: Vec<&str> = name.map_or_else(Vec::new, |name| name.split('.').collect());
        match &labels[..] {
            [service, region] if is_label(service, pattern) && is_label(region, pattern) => {
                same_region(value, region, statement, findings);
            }
            [service] if is_label(service, pattern) && *service != "*" => {
                let problem = format!("`{}` names no Region, and so never matches", value.text);
                findings.error(&value.spot, "via-service", problem, format!("write {service}.REGION.amazonaws.com"));
            }
            _ if pattern && value.text.contains('*') => {}
            _ => {
                let problem = format!("`{}` is not the name that a service has here", value.text);
                findings.error(&value.spot, "via-service", problem, "write SERVICE.REGION.amazonaws.com");
            }
        }
    }
}

fn is_label(text: &str, pattern: bool) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || pattern && b"*?".contains(&byte)
    };
    !text.is_empty() && text.bytes().all(allowed)
}

fn same_region(value: &Item, region: &str, statement: &StatementNode, findings: &mut Findings) {
    let of_keys: Vec<&str> = statement
        .resources
        .iter()
        .filter_map(|resource| Arn::parse(&resource.text).filter(|arn| arn.service == "kms").map(|arn| arn.region))
        .collect();
    if !of_keys.is_empty() && !of_keys.iter().any(|key| names::matches(key, region) || names::matches(region, key)) {
        let problem =
            format!("the keys of this statement are in {}, which `{}` never uses", of_keys.join(", "), value.text);
        findings.error(&value.spot, "via-service", problem, "name the Region of the keys");
    }
}

/// S3 gives the ARN of the bucket while a bucket key is on, and that of the object while it is off.
fn context(test: &Test, findings: &mut Findings) {
    if test.plain_operator().eq_ignore_ascii_case("Null") {
        return;
    }
    let arns = test.values.iter().filter(|value| !value.text.starts_with('*'));
    arns.clone().for_each(|value| well_formed(value, findings));
    let (mut buckets, mut objects) = (0, 0);
    for value in &test.values {
        let pattern = !value.text.contains('/') && value.text.ends_with('*');
        buckets += usize::from(pattern || !value.text.contains('/'));
        objects += usize::from(pattern || value.text.contains('/'));
    }
    if objects > 0 && buckets == 0 {
        let problem =
            "only objects are named: nothing is allowed in a bucket with a bucket key, for S3 names the bucket then";
        findings.hint(&test.spot, "encryption-context", problem, "add the ARN of the bucket");
    } else if buckets > 0 && objects == 0 {
        let problem = "only buckets are named: nothing is allowed without a bucket key, for S3 names the object then";
        findings.hint(
            &test.spot,
            "encryption-context",
            problem,
            "add the ARNs of the objects, such as arn:aws:s3:::BUCKET/*",
        );
    }
}

/// S3 calls KMS from its own network.
fn network(statement: &StatementNode, findings: &mut Findings) {
    let spared = ["aws:ViaAWSService", VIA_SERVICE, "aws:CalledVia", "aws:PrincipalIsAWSService"];
    let spares_services = !statement.allows && spared.iter().any(|key| statement.tests_of(key).next().is_some());
    for key in ["aws:SourceVpce", "aws:SourceVpc", "aws:SourceIp", "aws:VpcSourceIp"] {
        for test in statement.tests_of(key).filter(|test| !spares_services && !test.if_exists()) {
            if test.plain_operator().eq_ignore_ascii_case("Null") {
                continue;
            }
            let does = if statement.allows { "does not allow" } else { "denies" };
            let problem =
                format!("{key} is not the caller's when S3 calls KMS for the caller: this {does} every use through S3");
            let remedy =
                "put it on the statements for S3; here use kms:ViaService, or spare services by aws:ViaAWSService";
            findings.error(&test.spot, "network-condition", problem, remedy);
        }
    }
}

/// Permission to use a key by its alias is given on the key.
fn aliases(statement: &StatementNode, findings: &mut Findings) {
    let managed = ["CreateAlias", "DeleteAlias", "UpdateAlias"];
    if managed.iter().any(|action| statement.may("kms", action)) {
        return;
    }
    for resource in &statement.resources {
        if Arn::parse(&resource.text).is_some_and(|arn| arn.service == "kms" && arn.resource.starts_with("alias/")) {
            let problem = format!("`{}` is an alias, and allows no use of the key behind it", resource.text);
            let remedy = "name the ARN of the key, or all keys under a condition on kms:ResourceAliases";
            findings.error(&resource.spot, "alias-resource", problem, remedy);
        }
    }
}

/// In a key policy `*` is that key; on the caller's side it is every key.
fn any_key(statement: &StatementNode, findings: &mut Findings) {
    let needs_key =
        statement.actions_of("kms").any(|pattern| names::KMS_KEY_ACTIONS.iter().any(|it| names::matches(pattern, it)));
    if !statement.allows || !needs_key || statement.tests_of("kms:ResourceAliases").next().is_some() {
        return;
    }
    for resource in statement.resources.iter().filter(|resource| resource.text == "*") {
        let problem = "every key is meant, of this account and of all that trust it";
        findings.warning(&resource.spot, "any-key", problem, "name the ARNs of the keys");
    }
    for action in statement.actions.iter().filter(|action| action.text.eq_ignore_ascii_case("kms:*")) {
        let problem = "every action is meant, also deleting the key and changing its policy";
        findings.warning(
            &action.spot,
            "any-key",
            problem,
            "name the actions: kms:Decrypt and kms:GenerateDataKey are enough for S3",
        );
    }
}

/// `UploadPart` and `CompleteMultipartUpload` need `kms:Decrypt`; small files go without, so this shows late.
fn multipart(document: &Document, findings: &mut Findings) {
    let allowing: Vec<&StatementNode> = document.statements.iter().filter(|statement| statement.allows).collect();
    for statement in allowing.iter().filter(|statement| statement.may("kms", "GenerateDataKey") && may_be_s3(statement))
    {
        let decrypts = |other: &&&StatementNode| other.may("kms", "Decrypt") && shares_a_key(statement, other);
        if allowing.iter().find(decrypts).is_none() {
            let action = statement.actions.iter().find(|item| names::matches(&item.text, "kms:GenerateDataKey"));
            let spot = action.map_or(&statement.spot, |item| &item.spot);
            let problem = "kms:GenerateDataKey without kms:Decrypt: small uploads work, uploads in parts fail";
            findings.error(spot, "generate-without-decrypt", problem, "add kms:Decrypt on the same keys");
        }
    }
}

/// Another encryption context than that of S3 is the sign of another use.
fn may_be_s3(statement: &StatementNode) -> bool {
    let contexts = || statement.tests.iter().filter(|test| test.key.to_ascii_lowercase().starts_with(CONTEXT));
    contexts().count() == 0 || contexts().any(|test| test.is_of(S3_CONTEXT))
}

fn shares_a_key(one: &StatementNode, other: &StatementNode) -> bool {
    one.resources.is_empty()
        || other.resources.is_empty()
        || one.resources.iter().any(|a| {
            other.resources.iter().any(|b| names::matches(&a.text, &b.text) || names::matches(&b.text, &a.text))
        })
}
