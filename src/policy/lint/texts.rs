//! Rules about texts: placeholders, ARNs, actions, patterns, size.

use super::document::{Document, Item, StatementNode};
use super::json::{Node, Tree};
use super::names::{self, PARTITIONS};
use super::{Findings, Spot};
use crate::policy::run::SESSION_POLICY_LIMIT;
use crate::spec::{Arn, partition_of};

/// Characters of a managed policy, white space not counted (IAM User Guide, "IAM and AWS STS quotas").
const MANAGED_POLICY_LIMIT: usize = 6144;
/// Bytes of a key policy (KMS Developer Guide, "Quotas").
const KEY_POLICY_LIMIT: usize = 32 << 10;

pub fn check(root: &Node, text: &str, document: &Document, findings: &mut Findings) {
    placeholders(root, &Spot { at: root.at, path: String::new() }, findings);
    size(root, text, document, findings);
    sids(document, findings);
    for statement in &document.statements {
        statement.actions.iter().for_each(|action| known_action(action, findings));
        statement.resources.iter().for_each(|resource| well_formed_resource(resource, findings));
        patterns_under_equality(statement, findings);
    }
}

/// `[[s3path]]`, `<bucket>`, `{{account}}`: what somebody was to fill in.
fn placeholders(node: &Node, spot: &Spot, findings: &mut Findings) {
    match &node.value {
        Tree::Text(text) => {
            let marked = |open: &str, close: &str| {
                text.split_once(open).is_some_and(|(_, rest)| rest.find(close).is_some_and(|at| at > 0))
            };
            if marked("[[", "]]") || marked("{{", "}}") || marked("<", ">") {
                findings.error(spot, "placeholder", format!("`{text}` still has a placeholder"), "fill it in");
            }
        }
        Tree::Array(nodes) => {
            nodes.iter().for_each(|node| placeholders(node, &Spot { at: node.at, ..spot.clone() }, findings))
        }
        Tree::Object(entries) => {
            entries
                .iter()
                .for_each(|entry| placeholders(&entry.node, &spot.below(&entry.name, entry.node.at), findings));
        }
        Tree::Plain(_) => {}
    }
}

fn size(root: &Node, text: &str, document: &Document, findings: &mut Findings) {
    let spot = Spot { at: root.at, path: String::new() };
    let dense = text.chars().filter(|c| !c.is_whitespace()).count();
    let (whole, bytes) = (text.trim().chars().count(), text.len());
    if document.is_resource_based() {
        if bytes > KEY_POLICY_LIMIT {
            let problem = format!("it has {bytes} bytes; a key policy may have {KEY_POLICY_LIMIT}");
            findings.error(&spot, "too-large", problem, "use grants, or let IAM policies decide");
        }
    } else if dense > MANAGED_POLICY_LIMIT {
        let problem =
            format!("it has {dense} characters without white space; a managed policy may have {MANAGED_POLICY_LIMIT}");
        findings.error(&spot, "too-large", problem, "split it");
    } else if whole > SESSION_POLICY_LIMIT {
        let problem = format!("it has {whole} characters; a session policy may have {SESSION_POLICY_LIMIT}");
        findings.hint(
            &spot,
            "too-large",
            problem,
            "attach it to a role instead, or take white space and statements out",
        );
    }
}

fn sids(document: &Document, findings: &mut Findings) {
    let sids: Vec<&Item> = document.statements.iter().filter_map(|statement| statement.sid.as_ref()).collect();
    for (number, sid) in sids.iter().enumerate() {
        if sids[..number].iter().any(|earlier| earlier.text == sid.text) {
            findings.error(
                &sid.spot,
                "sid",
                format!("two statements are called `{}`", sid.text),
                "give each a Sid of its own",
            );
        }
        if !document.is_resource_based() && !sid.text.chars().all(|c| c.is_ascii_alphanumeric()) {
            let problem = format!("`{}` has characters that IAM does not take in a Sid", sid.text);
            findings.error(&sid.spot, "sid", problem, "use letters and digits only");
        }
    }
}

fn known_action(item: &Item, findings: &mut Findings) {
    let Some((service, action)) = item.text.split_once(':') else {
        if item.text != "*" {
            let problem = format!("`{}` names no service", item.text);
            findings.error(&item.spot, "action", problem, "write SERVICE:ACTION, such as s3:GetObject");
        }
        return;
    };
    let known: Vec<&str> = match () {
        () if service.eq_ignore_ascii_case("kms") => [&names::KMS_KEY_ACTIONS[..], &names::KMS_OTHER_ACTIONS].concat(),
        () if service.eq_ignore_ascii_case("s3") => {
            [&names::S3_OBJECT_ACTIONS[..], &names::S3_BUCKET_ACTIONS, &names::S3_OTHER_ACTIONS].concat()
        }
        () => return,
    };
    if known.iter().any(|name| names::matches(action, name)) {
        return;
    }
    let operation = names::S3_OPERATIONS.iter().find(|(name, _)| name.eq_ignore_ascii_case(action));
    if let Some((name, needed)) = operation
        && service.eq_ignore_ascii_case("s3")
    {
        let problem = format!("{name} is an operation, not an action: this allows nothing");
        return findings.error(&item.spot, "action", problem, format!("write {needed}"));
    }
    let remedy = names::nearest(action, known.iter().copied()).map_or_else(
        || "look it up in the Service Authorization Reference; this version may be older than the action".to_owned(),
        |meant| format!("did you mean {}:{meant}?", service.to_ascii_lowercase()),
    );
    findings.warning(&item.spot, "unknown-action", format!("no action `{}` is known", item.text), remedy);
}

fn well_formed_resource(item: &Item, findings: &mut Findings) {
    if item.text != "*" {
        well_formed(item, findings);
    }
}

/// Says what is wrong with the ARN of an item.
pub fn well_formed(item: &Item, findings: &mut Findings) {
    if let Err((problem, remedy)) = arn_defect(&item.text) {
        findings.error(&item.spot, "malformed-arn", format!("`{}`: {problem}", item.text), remedy);
    }
}

fn arn_defect(text: &str) -> Result<(), (String, String)> {
    let wrong = |problem: &str, remedy: &str| Err((problem.to_owned(), remedy.to_owned()));
    let Some(arn) = Arn::parse(text) else {
        return wrong("this is no ARN", "write arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE");
    };
    let variable = |part: &str| part.contains(['*', '?']) || part.contains("${");
    if !variable(arn.partition) && !PARTITIONS.contains(&arn.partition) {
        return wrong(&format!("there is no partition `{}`", arn.partition), "write aws, aws-cn or aws-us-gov");
    }
    let expected = partition_of(arn.region);
    let commercial = ["aws", "aws-cn", "aws-us-gov"].contains(&arn.partition);
    if !arn.region.is_empty() && !variable(arn.region) && commercial && expected != arn.partition {
        let problem = format!("Region {} is in partition {expected}", arn.region);
        return wrong(&problem, &format!("write arn:{expected}:..."));
    }
    if !arn.account.is_empty() && !variable(arn.account) && !is_account(arn.account) && arn.account != "aws" {
        return wrong(&format!("`{}` is no account id", arn.account), "an account id has 12 digits");
    }
    match arn.service {
        "iam" | "sts" if !arn.region.is_empty() => {
            wrong("ARNs of IAM have no Region", &format!("write arn:{}:{}::...", arn.partition, arn.service))
        }
        "iam" if !variable(arn.resource) || arn.resource.contains('/') => iam_defect(arn.resource),
        "kms" if arn.region.is_empty() || arn.account.is_empty() => {
            wrong("the ARN of a key has a Region and an account", "write arn:aws:kms:REGION:ACCOUNT:key/ID")
        }
        "kms" if !["key/", "alias/", "*"].iter().any(|kind| arn.resource.starts_with(kind)) => {
            wrong("it names neither key/ nor alias/", "write arn:aws:kms:REGION:ACCOUNT:key/ID")
        }
        "s3" => s3_defect(&arn),
        _ if arn.resource.is_empty() => wrong("it names no resource", "add the resource"),
        _ => Ok(()),
    }
}

fn iam_defect(resource: &str) -> Result<(), (String, String)> {
    let kinds = [
        "user/",
        "role/",
        "group/",
        "policy/",
        "instance-profile/",
        "oidc-provider/",
        "saml-provider/",
        "mfa/",
        "server-certificate/",
    ];
    if resource == "root" || kinds.iter().any(|kind| resource.len() > kind.len() && resource.starts_with(kind)) {
        return Ok(());
    }
    Err((
        "it does not say of what kind this is: user/, role/, ...".to_owned(),
        format!("write role/{resource} or user/{resource}"),
    ))
}

fn s3_defect(arn: &Arn<'_>) -> Result<(), (String, String)> {
    let (bucket, _) = arn.bucket_and_key();
    // Access points have both; buckets and objects have neither.
    if bucket.starts_with("accesspoint") {
        return Ok(());
    }
    if !arn.region.is_empty() || !arn.account.is_empty() {
        let remedy = format!("write arn:{}:s3:::{}", arn.partition, arn.resource);
        return Err(("ARNs of buckets and objects have neither Region nor account".to_owned(), remedy));
    }
    if bucket.is_empty() {
        return Err(("it names no bucket".to_owned(), "add its name".to_owned()));
    }
    Ok(())
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `StringEquals` takes `*` for a star.
fn patterns_under_equality(statement: &StatementNode, findings: &mut Findings) {
    for test in statement.tests.iter().filter(|test| test.plain_operator().to_ascii_lowercase().contains("equals")) {
        if !test.plain_operator().to_ascii_lowercase().starts_with("string") {
            continue;
        }
        for value in test.values.iter().filter(|value| value.text.replace("${*}", "").contains('*')) {
            let problem = format!("{} takes the star in `{}` for a star", test.operator, value.text);
            let like = if test.plain_operator().contains("Not") { "StringNotLike" } else { "StringLike" };
            findings.error(&value.spot, "pattern-under-equals", problem, format!("use {like}"));
        }
    }
}
