//! Rules about who is allowed.

use super::document::{Document, Item, StatementNode};
use super::texts::well_formed;
use super::{Findings, Spot};

/// Prefixes of unique ids (IAM User Guide, "IAM identifiers") of what can be a principal.
const UNIQUE_IDS: [&str; 4] = ["AROA", "AIDA", "AGPA", "AIPA"];

pub fn check(document: &Document, findings: &mut Findings) {
    if document.is_resource_based() {
        for statement in document.statements.iter().filter(|statement| !statement.has_principal()) {
            let problem = "it has no Principal, but other statements do";
            let remedy = "add one in the policy of a key or bucket; take all out in the policy of a user or role";
            findings.error(&statement.spot, "principal", problem, remedy);
        }
    }
    for statement in &document.statements {
        if let Some(spot) = &statement.not_principal {
            negated(spot, statement, findings);
        }
        for (kind, principal) in &statement.principals {
            match kind.as_str() {
                "" | "AWS" if principal.text == "*" => anybody(principal, statement, findings),
                "AWS" => account_or_arn(principal, findings),
                "Service" => service(principal, findings),
                _ => {}
            }
        }
    }
}

fn negated(spot: &Spot, statement: &StatementNode, findings: &mut Findings) {
    let problem = if statement.allows {
        "NotPrincipal with Allow lets everybody else in, anonymous callers too"
    } else {
        "NotPrincipal with Deny also denies the sessions and the account of those it leaves out, unless each is listed"
    };
    let remedy = "name principals, or deny \"*\" under a condition on aws:PrincipalArn";
    findings.error(spot, "not-principal", problem, remedy);
}

fn anybody(principal: &Item, statement: &StatementNode, findings: &mut Findings) {
    let narrows = [
        "aws:PrincipalArn",
        "aws:PrincipalAccount",
        "aws:PrincipalOrgID",
        "aws:PrincipalOrgPaths",
        "aws:SourceAccount",
        "aws:SourceArn",
        "kms:CallerAccount",
    ];
    let narrowed = statement.tests.iter().any(|test| narrows.iter().any(|key| test.is_of(key)));
    if statement.allows && !narrowed {
        let problem = "everybody is allowed this, of every account";
        let remedy = "name the principals, or add a condition on kms:CallerAccount or aws:PrincipalOrgID";
        findings.error(&principal.spot, "open-principal", problem, remedy);
    }
}

fn account_or_arn(principal: &Item, findings: &mut Findings) {
    let text = principal.text.as_str();
    if UNIQUE_IDS.iter().any(|prefix| text.starts_with(prefix)) && !text.contains(':') {
        let problem =
            format!("`{text}` is what remains of a user or role that was deleted: it matches nobody any more");
        return findings.error(&principal.spot, "deleted-principal", problem, "name the ARN of the new one");
    }
    if text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return;
    }
    if text.starts_with("arn:") && text.contains('*') {
        let problem = format!("`{text}`: a principal is not a pattern");
        let remedy = "name each, or allow \"*\" under a condition ArnLike on aws:PrincipalArn";
        return findings.error(&principal.spot, "principal", problem, remedy);
    }
    well_formed(principal, findings);
}

fn service(principal: &Item, findings: &mut Findings) {
    let text = principal.text.as_str();
    if !text.ends_with(".amazonaws.com") && !text.ends_with(".amazonaws.com.cn") {
        let problem = format!("`{text}` is no service principal");
        findings.error(&principal.spot, "principal", problem, "write SERVICE.amazonaws.com");
    }
}
