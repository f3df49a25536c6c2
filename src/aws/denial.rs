//! The text of a denial, taken apart (IAM User Guide, "Troubleshoot access denied error messages").

use super::{Denial, PolicyKind};

impl Denial {
    /// What `message` says, if it is one of the forms that AWS writes.
    pub fn parse(message: &str) -> Option<Self> {
        parse(message)
    }
}

fn parse(message: &str) -> Option<Denial> {
    let (principal, rest) = message.split_once("is not authorized to perform: ")?;
    let principal = principal.trim().trim_start_matches("User:").trim();
    let (action, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let action = action.trim_end_matches(['.', ',']);
    let (policy, explicit) = policy(rest);
    Some(Denial { principal: some(principal), action: some(action), resource: resource(rest), policy, explicit })
}

/// `on resource: ARN ...`, with or without quotes; `on this resource` names none.
fn resource(rest: &str) -> Option<String> {
    let at = rest.find("on resource: ")? + "on resource: ".len();
    let text = &rest[at..];
    let end = [" because ", " with an explicit deny"].iter().filter_map(|word| text.find(word)).min();
    some(text[..end.unwrap_or(text.len())].trim().trim_matches(['"', '\'', '.']))
}

/// Which policy, and whether it denies explicitly.
fn policy(rest: &str) -> (Option<PolicyKind>, bool) {
    if let Some(at) = rest.find("with an explicit deny in ") {
        // "transitively through a service control policy": the policy that denied is the one named first.
        return (first_kind(&rest[at..]), true);
    }
    match rest.find("because no ") {
        Some(at) => (first_kind(&rest[at..]), false),
        // "no resource-based policies allow access, or a resource-based policy explicitly denies access".
        None if rest.contains("no resource-based policies allow access") => (Some(PolicyKind::ResourceBased), false),
        None => (None, false),
    }
}

/// The kind of policy that `text` names first.
fn first_kind(text: &str) -> Option<PolicyKind> {
    const NAMES: [(&str, PolicyKind); 9] = [
        ("identity-based", PolicyKind::IdentityBased),
        ("resource-based", PolicyKind::ResourceBased),
        ("role trust policy", PolicyKind::ResourceBased),
        ("VPC endpoint", PolicyKind::VpcEndpoint),
        ("session policy", PolicyKind::Session),
        ("sessions policy", PolicyKind::Session),
        ("permissions boundary", PolicyKind::PermissionsBoundary),
        ("service control policy", PolicyKind::ServiceControl),
        ("resource control policy", PolicyKind::ResourceControl),
    ];
    NAMES
        .iter()
        .filter_map(|(name, kind)| text.find(name).map(|at| (at, *kind)))
        .min_by_key(|(at, _)| *at)
        .map(|(_, kind)| kind)
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "arn:aws:sts::111122223333:assumed-role/Run/session";
    const KEY: &str = "arn:aws:kms:eu-central-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn denial(resource: Option<&str>, policy: Option<PolicyKind>, explicit: bool) -> Option<Denial> {
        Some(Denial {
            principal: Some(USER.into()),
            action: Some("kms:Decrypt".into()),
            resource: resource.map(str::to_owned),
            policy,
            explicit,
        })
    }

    #[test]
    fn nobody_allowing_names_the_policy_that_is_missing() {
        for (name, kind) in [
            ("identity-based policy allows", PolicyKind::IdentityBased),
            ("resource-based policy allows", PolicyKind::ResourceBased),
            ("VPC endpoint policy allows", PolicyKind::VpcEndpoint),
            ("session policy allows", PolicyKind::Session),
            ("sessions policy allows", PolicyKind::Session),
            ("permissions boundary allows", PolicyKind::PermissionsBoundary),
            ("service control policy allows", PolicyKind::ServiceControl),
            ("resource control policy allows", PolicyKind::ResourceControl),
            ("role trust policy allows", PolicyKind::ResourceBased),
        ] {
            for quote in ["", "\"", "'"] {
                let text = format!(
                    "User: {USER} is not authorized to perform: kms:Decrypt on resource: {quote}{KEY}{quote} because no \
                     {name} the kms:Decrypt action"
                );
                assert_eq!(parse(&text), denial(Some(KEY), Some(kind), false), "{text}");
            }
        }
    }

    #[test]
    fn explicit_denials_name_the_policy_that_denies() {
        for (tail, kind) in [
            ("an identity-based policy", PolicyKind::IdentityBased),
            ("a resource-based policy", PolicyKind::ResourceBased),
            ("a VPC endpoint policy", PolicyKind::VpcEndpoint),
            ("a session policy", PolicyKind::Session),
            ("a permissions boundary", PolicyKind::PermissionsBoundary),
            ("the service control policy", PolicyKind::ServiceControl),
            ("a resource control policy", PolicyKind::ResourceControl),
            ("the role trust policy", PolicyKind::ResourceBased),
            ("a VPC endpoint policy transitively through a service control policy", PolicyKind::VpcEndpoint),
            ("an identity-based policy: arn:aws:iam::111122223333:policy/No", PolicyKind::IdentityBased),
        ] {
            let text = format!(
                "User: {USER} is not authorized to perform: kms:Decrypt on resource: {KEY} with an explicit deny in {tail}"
            );
            assert_eq!(parse(&text), denial(Some(KEY), Some(kind), true), "{text}");
        }
    }

    #[test]
    fn keys_of_other_accounts_are_told_without_their_name() {
        for tail in [
            "on this resource because the resource does not exist in this Region, no resource-based policies allow \
             access, or a resource-based policy explicitly denies access",
            "on the resource associated with this ciphertext because the resource does not exist in this Region, no \
             resource-based policies allow access, or a resource-based policy explicitly denies access",
        ] {
            let text = format!("User: {USER} is not authorized to perform: kms:Decrypt {tail}");
            assert_eq!(parse(&text), denial(None, Some(PolicyKind::ResourceBased), false), "{text}");
        }
    }

    #[test]
    fn short_forms_give_what_they_have() {
        let text = format!("User: {USER} is not authorized to perform: kms:Decrypt");
        assert_eq!(parse(&text), denial(None, None, false));
        let text = format!("User: {USER} is not authorized to perform: kms:Decrypt on resource: {KEY}");
        assert_eq!(parse(&text), denial(Some(KEY), None, false));
    }

    #[test]
    fn other_texts_say_nothing() {
        for text in [
            "",
            "Access Denied",
            "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you \
             are not allowed to access.",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
