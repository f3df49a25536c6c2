//! Policies that runseal writes, and the defects that it finds in policies.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use runseal::policy::{Defect, KeySource, Place, Severity, Use, describe_key, lint, policy_principal, write};
use serde_json::{Value, json};

const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER: &str = "arn:aws:kms:eu-central-1:444455556666:key/mrk-1234abcd12ab34cd56ef1234567890ab";
const ROLE: &str = "arn:aws:iam::111122223333:role/pipelines/Run";

fn place(bucket: &str, key: &str) -> Place {
    Place::new("eu-central-1", bucket, key)
}

fn keys(keys: &[&str]) -> KeySource {
    KeySource::Keys(keys.iter().map(|key| (*key).to_owned()).collect())
}

fn whole_run() -> Value {
    let needs = [
        (place("in", "reads/"), Use::Read, keys(&[KEY])),
        (place("in", "ref.fa"), Use::Read, keys(&[KEY])),
        (place("out", "run/"), Use::Write, keys(&[OTHER])),
    ];
    serde_json::to_value(write(&needs, Some(KEY), Some(ROLE))).expect("JSON")
}

fn statement<'a>(policy: &'a Value, sid: &str) -> &'a Value {
    let statements = policy["Statement"].as_array().expect("statements");
    statements.iter().find(|statement| statement["Sid"] == sid).unwrap_or_else(|| panic!("no {sid}"))
}

mod written {
    use super::*;

    #[test]
    fn a_run_may_do_what_it_needs_and_nothing_else() {
        let policies = whole_run();
        let via = json!({"kms:ViaService": ["s3.eu-central-1.amazonaws.com"]});
        let list = |sid: &str, bucket: &str, prefixes: Value| {
            json!({"Sid": sid, "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [format!("arn:aws:s3:::{bucket}")],
                   "Condition": {"StringLike": {"s3:prefix": prefixes}}})
        };
        let expected = json!({
            "Version": "2012-10-17",
            "Statement": [
                list("List", "in", json!(["reads/*"])),
                list("List2", "in", json!(["ref.fa/*", "ref.fa"])),
                list("List3", "out", json!(["run/*"])),
                {"Sid": "Read", "Effect": "Allow", "Action": ["s3:GetObject"],
                 "Resource": ["arn:aws:s3:::in/reads/*", "arn:aws:s3:::in/ref.fa", "arn:aws:s3:::in/ref.fa/*"]},
                {"Sid": "Write", "Effect": "Allow", "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
                 "Resource": ["arn:aws:s3:::out/run/*"]},
                {"Sid": "Decrypt", "Effect": "Allow", "Action": ["kms:Decrypt"], "Resource": [KEY],
                 "Condition": {"StringEquals": via, "StringLike": {"kms:EncryptionContext:aws:s3:arn": [
                     "arn:aws:s3:::in", "arn:aws:s3:::in/reads/*", "arn:aws:s3:::in/ref.fa", "arn:aws:s3:::in/ref.fa/*"]}}},
                {"Sid": "RunKey", "Effect": "Allow", "Action": ["kms:GenerateDataKey"], "Resource": [KEY],
                 "Condition": {"Null": {"kms:EncryptionContext:runseal:run-id": ["false"]}}},
                {"Sid": "Encrypt", "Effect": "Allow", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": [OTHER],
                 "Condition": {"StringEquals": via, "StringLike": {"kms:EncryptionContext:aws:s3:arn": [
                     "arn:aws:s3:::out", "arn:aws:s3:::out/run/*"]}}},
                {"Sid": "DescribeKeys", "Effect": "Allow", "Action": ["kms:DescribeKey"], "Resource": [KEY, OTHER]},
            ]
        });
        assert_eq!(policies["identityPolicy"], expected, "{:#}", policies["identityPolicy"]);
    }

    #[test]
    fn key_policies_say_the_same_for_one_principal() {
        let policies = whole_run();
        let of_keys = policies["keyPolicies"].as_array().expect("two");
        assert_eq!(of_keys.iter().map(|policy| &policy["key"]).collect::<Vec<_>>(), [KEY, OTHER]);
        for policy in of_keys {
            for statement in policy["statements"].as_array().expect("statements") {
                assert_eq!(statement["Principal"], json!({"AWS": ROLE}));
                assert_eq!(statement["Resource"], json!(["*"]));
            }
        }
        let sids = |number: usize| -> Vec<&Value> {
            of_keys[number]["statements"].as_array().expect("statements").iter().map(|one| &one["Sid"]).collect()
        };
        assert_eq!(sids(0), ["Decrypt", "RunKey", "DescribeKey"]);
        assert_eq!(sids(1), ["Encrypt", "DescribeKey"]);
        let identity = statement(&policies["identityPolicy"], "Encrypt");
        assert_eq!(of_keys[1]["statements"][0]["Condition"], identity["Condition"]);
    }

    #[test]
    fn partitions_follow_the_region() {
        for (region, partition, names) in
            [("us-gov-west-1", "aws-us-gov", 1), ("cn-north-1", "aws-cn", 2), ("eu-west-1", "aws", 1)]
        {
            let key = format!("arn:{partition}:kms:{region}:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab");
            let needs = [(Place::new(region, "b", "p/"), Use::Read, keys(&[&key]))];
            let policy = serde_json::to_value(write(&needs, None, None).identity_policy).expect("JSON");
            let arn = format!("arn:{partition}:s3:::b/p/*");
            assert_eq!(statement(&policy, "Read")["Resource"], json!([arn]));
            let via = &statement(&policy, "Decrypt")["Condition"]["StringEquals"]["kms:ViaService"];
            assert_eq!(via[0], format!("s3.{region}.amazonaws.com"));
            assert_eq!(via.as_array().map(Vec::len), Some(names));
        }
    }

    #[test]
    fn keys_mean_themselves_and_not_patterns() {
        let object = place("b", "a*b?c${d}");
        let literal = "arn:aws:s3:::b/a${*}b${?}c${$}{d}";
        assert_eq!(object.object_arns(), [format!("{literal}/*"), literal.to_owned()]);
        assert_eq!(place("b", "").object_arns(), ["arn:aws:s3:::b/*"]);
        let whole =
            serde_json::to_value(write(&[(place("b", ""), Use::Read, KeySource::NoKms)], None, None)).expect("JSON");
        assert_eq!(statement(&whole["identityPolicy"], "List").get("Condition"), None, "a whole bucket has no prefix");
    }

    #[test]
    fn sessions_stand_for_their_roles() {
        for (caller, expected) in [
            ("arn:aws:sts::111122223333:assumed-role/Run/session", "arn:aws:iam::111122223333:role/Run"),
            ("arn:aws-cn:sts::111122223333:assumed-role/Run/a", "arn:aws-cn:iam::111122223333:role/Run"),
            (ROLE, ROLE),
            ("arn:aws:iam::111122223333:user/x", "arn:aws:iam::111122223333:user/x"),
        ] {
            assert_eq!(policy_principal(caller), expected);
        }
        let session = "arn:aws:sts::111122223333:assumed-role/Run/session";
        let policies = write(&[(place("b", "p/"), Use::Read, keys(&[KEY]))], None, Some(session));
        assert!(policies.notes.iter().any(|note| note.contains("path")), "{:?}", policies.notes);
        let unsaid = write(&[(place("b", "p/"), Use::Read, keys(&[KEY]))], None, None);
        assert!(unsaid.key_policies.is_empty() && unsaid.notes[0].contains("--principal"));
        assert_eq!(describe_key("D", vec![KEY.into()]).in_key_policy(session).resource, ["*"]);
    }

    #[test]
    fn replacing_results_needs_to_look_at_the_old_ones_and_to_remove_them() {
        let of = |usage| {
            let policies = write(&[(place("out", "run/"), usage, keys(&[KEY]))], None, None);
            serde_json::to_value(policies.identity_policy).expect("JSON")
        };
        let (written, mut replaced) = (of(Use::Write), of(Use::Replace));
        assert_eq!(
            statement(&replaced, "Replace"),
            &json!({"Sid": "Replace", "Effect": "Allow", "Action": ["s3:GetObject", "s3:DeleteObject"],
                    "Resource": ["arn:aws:s3:::out/run/*"]})
        );
        replaced["Statement"].as_array_mut().expect("statements").retain(|statement| statement["Sid"] != "Replace");
        assert_eq!(replaced, written, "and nothing else");
    }

    #[test]
    fn what_is_too_long_for_a_session_is_told() {
        let needs: Vec<_> =
            (0..20).map(|n| (place("bucket", &format!("prefix-{n}/")), Use::Read, keys(&[KEY]))).collect();
        let notes = write(&needs, None, Some(ROLE)).notes;
        assert!(notes.iter().any(|note| note.contains("session policy")), "{notes:?}");
    }

    #[test]
    fn the_linter_has_nothing_to_say_about_them() {
        for policies in [
            whole_run(),
            serde_json::to_value(write(&[(place("b", ""), Use::Write, keys(&[KEY, OTHER]))], None, Some(ROLE)))
                .expect("JSON"),
            serde_json::to_value(write(&[(place("b", "x"), Use::Read, KeySource::NoKms)], Some(OTHER), Some(ROLE)))
                .expect("JSON"),
        ] {
            assert_eq!(lint(&policies["identityPolicy"].to_string()), []);
            for of_key in policies["keyPolicies"].as_array().expect("a list") {
                let policy = json!({"Version": "2012-10-17", "Statement": of_key["statements"]});
                assert_eq!(lint(&policy.to_string()), [], "{policy:#}");
            }
        }
    }
}

mod linted {
    use super::*;

    /// An identity policy with one statement.
    fn identity(statement: &str) -> String {
        format!("{{\"Version\": \"2012-10-17\", \"Statement\": [\n{statement}\n]}}")
    }

    fn allow(action: &str, resource: &str, condition: &str) -> String {
        let condition = if condition.is_empty() { String::new() } else { format!(", \"Condition\": {condition}") };
        identity(&format!(r#"{{"Effect": "Allow", "Action": {action}, "Resource": {resource}{condition}}}"#))
    }

    fn key(principal: &str, rest: &str) -> String {
        identity(&format!(
            r#"{{"Effect": "Allow", "Principal": {principal}, "Action": "kms:Decrypt", "Resource": "*"{rest}}}"#
        ))
    }

    fn kms(condition: &str) -> String {
        allow(r#"["kms:Decrypt"]"#, &format!("\"{KEY}\""), condition)
    }

    /// Every rule: what it finds, and the same done right.
    fn samples() -> Vec<(&'static str, Severity, String, String)> {
        use Severity::{Error, Hint, Warning};
        let fine = kms("");
        let context =
            |values: &str| kms(&format!(r#"{{"StringLike": {{"kms:EncryptionContext:aws:s3:arn": {values}}}}}"#));
        let via = |operator: &str, value: &str| kms(&format!(r#"{{"{operator}": {{"kms:ViaService": "{value}"}}}}"#));
        let s3 = |action: &str, resource: &str| allow(&format!("\"{action}\""), &format!("\"{resource}\""), "");
        let objects = || s3("s3:GetObject", "arn:aws:s3:::b/*");
        let long = |count: usize| {
            let resources: Vec<String> = (0..count).map(|n| format!("\"arn:aws:s3:::bucket/prefix-{n}/*\"")).collect();
            allow("\"s3:GetObject\"", &format!("[{}]", resources.join(", ")), "")
        };
        let sids = |one: &str, two: &str| {
            let statement = |sid: &str| {
                format!(r#"{{"Sid": "{sid}", "Effect": "Deny", "Action": "s3:GetObject", "Resource": "*"}}"#)
            };
            identity(&format!("{},\n{}", statement(one), statement(two)))
        };
        vec![
            ("invalid-json", Error, "{\"Version\": \"2012-10-17\"\n \"Statement\": []}".into(), fine.clone()),
            ("missing-version", Warning, fine.replace("\"Version\": \"2012-10-17\", ", ""), fine.clone()),
            ("version", Error, fine.replace("2012-10-17", "2012-10-18"), fine.replace("2012-10-17", "2008-10-17")),
            ("structure", Error, "{\"Version\": \"2012-10-17\"}".into(), fine.clone()),
            ("structure", Error, "[]".into(), fine.clone()),
            ("structure", Error, fine.replace("Allow", "allow"), fine.clone()),
            ("structure", Error, identity(r#"{"Effect": "Deny", "Action": "kms:Decrypt"}"#), fine.clone()),
            ("structure", Error, key("\"111122223333\"", ""), key("{\"AWS\": \"111122223333\"}", "")),
            ("structure", Error, fine.replace("[\"kms:Decrypt\"]", "{\"a\": 1}"), fine.clone()),
            ("unknown-element", Error, fine.replace("\"Action\"", "\"Actions\""), fine.clone()),
            ("unknown-element", Error, key(r#"{"aws": "111122223333"}"#, ""), key(r#"{"AWS": "111122223333"}"#, "")),
            (
                "duplicate-key",
                Error,
                kms(r#"{"StringEquals": {"aws:PrincipalTag/a": "1"}, "StringEquals": {"aws:PrincipalTag/b": "2"}}"#),
                kms(r#"{"StringEquals": {"aws:PrincipalTag/a": "1", "aws:PrincipalTag/b": "2"}}"#),
            ),
            (
                "condition-operator",
                Error,
                kms(r#"{"StringEqual": {"aws:PrincipalTag/a": "1"}}"#),
                kms(r#"{"ForAnyValue:StringEqualsIfExists": {"aws:PrincipalTag/a": "1"}}"#),
            ),
            ("placeholder", Error, s3("s3:GetObject", "arn:aws:s3:::b/[[s3path]]"), objects()),
            ("placeholder", Error, s3("s3:GetObject", "arn:aws:s3:::<bucket>/*"), objects()),
            ("sid", Error, sids("One", "One"), sids("One", "Two")),
            ("sid", Error, sids("One", "Two statements"), sids("One", "TwoStatements")),
            ("too-large", Hint, long(60), long(20)),
            ("too-large", Error, long(300), long(20)),
            ("action", Error, s3("GetObject", "*"), s3("*", "*")),
            ("action", Error, s3("s3:HeadObject", "arn:aws:s3:::b/*"), objects()),
            (
                "unknown-action",
                Warning,
                allow("\"kms:Decryptt\"", "\"*\"", r#"{"StringEquals": {"kms:ResourceAliases": "alias/a"}}"#),
                fine.clone(),
            ),
            (
                "unknown-action",
                Warning,
                s3("s3:GetObjectz", "arn:aws:s3:::b/*"),
                s3("S3:getobject", "arn:aws:s3:::b/*"),
            ),
            (
                "malformed-arn",
                Error,
                key(r#"{"AWS": "arn:aws:iam::111122223333:omicsFullAccessRole"}"#, ""),
                key(r#"{"AWS": "arn:aws:iam::111122223333:role/omicsFullAccessRole"}"#, ""),
            ),
            (
                "malformed-arn",
                Error,
                key(r#"{"AWS": "arn:aws:iam::11112222333:role/r"}"#, ""),
                key(r#"{"AWS": "arn:aws:iam::111122223333:root"}"#, ""),
            ),
            ("malformed-arn", Error, key(r#"{"AWS": "arn:aws:iam:us-east-1:111122223333:role/r"}"#, ""), fine.clone()),
            (
                "malformed-arn",
                Error,
                fine.replace("arn:aws:kms:eu-central-1", "arn:aws:kms:cn-north-1"),
                fine.replace("arn:aws:kms:eu-central-1", "arn:aws-cn:kms:cn-north-1"),
            ),
            ("malformed-arn", Error, fine.replace("arn:aws:", "arn:amazon:"), fine.clone()),
            (
                "malformed-arn",
                Error,
                fine.replace("key/", ""),
                fine.replace(":key/1234abcd-12ab-34cd-56ef-1234567890ab", ":key/*"),
            ),
            ("malformed-arn", Error, fine.replace("eu-central-1:111122223333", ":"), fine.clone()),
            ("malformed-arn", Error, s3("s3:GetObject", "arn:aws:s3:eu-central-1::b/*"), objects()),
            (
                "malformed-arn",
                Error,
                s3("s3:GetObject", "b/*"),
                s3("s3:GetObject", "arn:aws:s3:eu-west-1:111122223333:accesspoint/ap/object/*"),
            ),
            (
                "pattern-under-equals",
                Error,
                kms(
                    r#"{"StringEquals": {"kms:EncryptionContext:aws:s3:arn": ["arn:aws:s3:::b", "arn:aws:s3:::b/*"]}}"#,
                ),
                context(r#"["arn:aws:s3:::b", "arn:aws:s3:::b/*"]"#),
            ),
            (
                "principal",
                Error,
                identity(&format!(
                    "{{\"Effect\": \"Allow\", \"Principal\": {{\"AWS\": \"{ROLE}\"}}, \"Action\": \"kms:Decrypt\", \"Resource\": \"*\"}},\n\
                 {{\"Effect\": \"Deny\", \"Action\": \"kms:Decrypt\", \"Resource\": \"*\"}}"
                )),
                key(&format!("{{\"AWS\": \"{ROLE}\"}}"), ""),
            ),
            (
                "principal",
                Error,
                key(r#"{"AWS": "arn:aws:iam::111122223333:role/*"}"#, ""),
                key("\"*\"", r#", "Condition": {"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::111122223333:role/*"}}"#),
            ),
            ("principal", Error, key(r#"{"Service": "omics"}"#, ""), key(r#"{"Service": "omics.amazonaws.com"}"#, "")),
            (
                "open-principal",
                Error,
                key("\"*\"", ""),
                key("\"*\"", r#", "Condition": {"StringEquals": {"kms:CallerAccount": "111122223333"}}"#),
            ),
            ("open-principal", Error, key(r#"{"AWS": "*"}"#, ""), key(r#"{"AWS": "111122223333"}"#, "")),
            (
                "not-principal",
                Error,
                identity(&format!(
                    r#"{{"Effect": "Deny", "NotPrincipal": {{"AWS": "{ROLE}"}}, "Action": "kms:Decrypt", "Resource": "*"}}"#
                )),
                key(&format!("{{\"AWS\": \"{ROLE}\"}}"), ""),
            ),
            (
                "deleted-principal",
                Error,
                key(r#"{"AWS": "AROAEXAMPLEEXAMPLE123"}"#, ""),
                key(&format!("{{\"AWS\": \"{ROLE}\"}}"), ""),
            ),
            (
                "via-service",
                Error,
                via("StringEquals", "omics.amazonaws.com"),
                via("StringEquals", "omics.eu-central-1.amazonaws.com"),
            ),
            (
                "via-service",
                Error,
                via("StringEquals", "healthlake.amazonaws.com"),
                via("StringLike", "healthlake.*.amazonaws.com"),
            ),
            ("via-service", Error, via("StringEquals", "s3"), via("StringLike", "*.eu-central-1.amazonaws.com")),
            (
                "via-service",
                Error,
                via("StringEquals", "s3.us-east-1.amazonaws.com"),
                via("StringEquals", "s3.eu-central-1.amazonaws.com"),
            ),
            (
                "unknown-condition-key",
                Warning,
                via("StringEquals", "s3.eu-central-1.amazonaws.com").replace("ViaService", "ViaServices"),
                kms(r#"{"StringEquals": {"kms:EncryptionContext:any": "thing"}}"#),
            ),
            (
                "encryption-context",
                Hint,
                context("\"arn:aws:s3:::b/*\""),
                context(r#"["arn:aws:s3:::b", "arn:aws:s3:::b/*"]"#),
            ),
            ("encryption-context", Hint, context("\"arn:aws:s3:::b\""), context("\"arn:aws:s3:::b*\"")),
            (
                "network-condition",
                Error,
                kms(r#"{"StringEquals": {"aws:SourceVpce": "vpce-1"}}"#),
                kms(r#"{"StringEqualsIfExists": {"aws:SourceVpce": "vpce-1"}}"#),
            ),
            (
                "network-condition",
                Error,
                kms(r#"{"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}"#).replace("Allow", "Deny"),
                kms(r#"{"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}, "Bool": {"aws:ViaAWSService": "false"}}"#)
                    .replace("Allow", "Deny"),
            ),
            (
                "alias-resource",
                Error,
                fine.replace("key/1234abcd-12ab-34cd-56ef-1234567890ab", "alias/results"),
                allow("\"kms:UpdateAlias\"", "\"arn:aws:kms:eu-central-1:111122223333:alias/results\"", ""),
            ),
            ("any-key", Warning, fine.replace(KEY, "*"), allow("\"kms:ListAliases\"", "\"*\"", "")),
            ("any-key", Warning, allow("\"kms:*\"", &format!("\"{KEY}\""), ""), fine.clone()),
            (
                "generate-without-decrypt",
                Error,
                fine.replace("kms:Decrypt", "kms:GenerateDataKey"),
                allow(r#"["kms:GenerateDataKey*", "kms:decrypt"]"#, &format!("\"{KEY}\""), ""),
            ),
            (
                "generate-without-decrypt",
                Error,
                allow("\"kms:GenerateDataKey*\"", &format!("\"{KEY}\""), ""),
                fine.replace("\"kms:Decrypt\"", "\"kms:De*\", \"kms:GenerateDataKey\""),
            ),
            (
                "generate-without-decrypt",
                Error,
                identity(&format!(
                    "{{\"Effect\": \"Allow\", \"Action\": \"kms:GenerateDataKey\", \"Resource\": \"{KEY}\"}},\n\
                 {{\"Effect\": \"Allow\", \"Action\": \"kms:Decrypt\", \"Resource\": \"{OTHER}\"}}"
                )),
                identity(&format!(
                    "{{\"Effect\": \"Allow\", \"Action\": \"kms:GenerateDataKey\", \"Resource\": \"{KEY}\"}},\n\
                 {{\"Effect\": \"Allow\", \"Action\": \"kms:Decrypt\", \"Resource\": \"{KEY}\"}}"
                )),
            ),
            ("s3-resource", Error, s3("s3:GetObject", "arn:aws:s3:::b"), s3("s3:GetObject", "arn:aws:s3:::b*")),
            ("s3-resource", Error, s3("s3:ListBucket", "arn:aws:s3:::b/*"), s3("s3:ListBucket", "arn:aws:s3:::b")),
        ]
    }

    fn rules(defects: &[Defect]) -> Vec<&str> {
        defects.iter().map(|defect| defect.rule).collect()
    }

    #[test]
    fn every_rule_finds_its_defect_and_lets_the_repaired_policy_pass() {
        for (rule, severity, wrong, right) in samples() {
            let found = lint(&wrong);
            let defect = found.iter().find(|defect| defect.rule == rule);
            let defect = defect.unwrap_or_else(|| panic!("{rule} did not find {wrong}: {found:#?}"));
            assert_eq!(defect.severity, severity, "{defect:?}");
            assert!(!defect.problem.is_empty() && !defect.remedy.is_empty(), "{defect:?}");
            assert!(defect.line >= 1 && defect.line <= wrong.lines().count(), "{defect:?}");
            let found = lint(&right);
            assert!(!rules(&found).contains(&rule), "{rule} in {right}: {found:#?}");
        }
    }

    #[test]
    fn every_rule_of_the_source_has_a_sample() {
        let mut in_source = BTreeSet::new();
        for entry in fs::read_dir("src/policy/lint").expect("the source") {
            let text = fs::read_to_string(entry.expect("an entry").path()).expect("readable");
            // A rule id is the second argument of a finding: after the place, before the problem.
            for part in text.split("findings.").skip(1) {
                let call = part.split(';').next().unwrap_or_default();
                let id = call.split('"').nth(1).unwrap_or_default();
                if ["error(", "warning(", "hint("].iter().any(|kind| part.starts_with(kind)) && !id.contains(' ') {
                    in_source.insert(id.to_owned());
                }
            }
        }
        let sampled: BTreeSet<String> = samples().iter().map(|(rule, ..)| (*rule).to_owned()).collect();
        assert!(in_source.len() > 15, "{in_source:?}");
        assert_eq!(in_source, sampled);
    }

    #[test]
    fn repaired_samples_have_no_error_at_all() {
        for (rule, _, _, right) in samples() {
            let errors: Vec<Defect> =
                lint(&right).into_iter().filter(|defect| defect.severity == Severity::Error).collect();
            assert_eq!(errors, [], "{rule}: {right}");
        }
    }

    #[test]
    fn places_are_those_of_the_document() {
        let text = "{\n  \"Version\": \"2012-10-17\",\n  \"Statement\": [\n    {\"Effect\": \"Allow\", \"Action\": \"s3:GetObject\", \
                    \"Resource\": \"arn:aws:s3:::b/*\"},\n    {\n      \"Effect\": \"Allow\",\n      \"Action\": [\"kms:Decrypt\"],\n      \
                    \"Resource\": [\n        \"arn:aws:kms:eu-central-1:111122223333:alias/x\"\n      ],\n      \"Condition\": \
                    {\"StringEquals\": {\n        \"kms:ViaService\": [\"omics.amazonaws.com\"]}}\n    }\n  ]\n}\n";
        let found: Vec<_> = lint(text).into_iter().map(|it| (it.line, it.column, it.path, it.rule)).collect();
        assert_eq!(
            found,
            [
                (9, 9, "Statement[1].Resource[0]".to_owned(), "alias-resource"),
                (12, 28, "Statement[1].Condition.StringEquals.kms:ViaService[0]".to_owned(), "via-service"),
            ]
        );
    }

    #[test]
    fn invalid_json_has_line_and_column() {
        // What a published example had: no comma before Condition.
        let text = "{\"Version\": \"2012-10-17\", \"Statement\": [{\"Effect\": \"Allow\",\n\"Action\": \"kms:Decrypt\",\n\"Resource\": \"*\"\n\
                    \"Condition\": {}}]}";
        let found = lint(text);
        assert_eq!((found.len(), found[0].line, found[0].column, found[0].rule), (1, 4, 1, "invalid-json"));
        let found = lint("{\"Resource\": arn:aws:s3:::[[s3path]]}");
        assert_eq!((found[0].line, found[0].rule), (1, "invalid-json"));
        assert_eq!(lint("{\"a\": \"b}")[0].rule, "invalid-json", "no closing quote");
        assert_eq!(lint("")[0].rule, "invalid-json");
    }

    #[test]
    fn a_policy_of_aws_passes() {
        // The default key policy of keys made with the API: everything by the account.
        let text = r#"{"Version": "2012-10-17", "Id": "key-default-1", "Statement": [{"Sid": "Enable IAM User Permissions",
            "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::111122223333:root"}, "Action": "kms:*", "Resource": "*"}]}"#;
        assert_eq!(lint(text), []);
    }
}

mod commands {
    use super::*;

    fn runseal(args: &[&str], input: &str) -> (Option<i32>, String, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_runseal"))
            .args(args)
            .env_remove("AWS_REGION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("sent");
        let output = child.wait_with_output().expect("ended");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[test]
    fn policy_prints_what_lint_accepts() {
        let in_bucket = format!("inputs={OTHER}");
        let flags = [
            "policy",
            "--input",
            "s3://inputs/reads/",
            "--input",
            "/etc/hostname",
            "--output",
            "s3://outputs/run/",
            "--key",
            KEY,
            "--key",
            &in_bucket,
            "--principal",
            ROLE,
            "--run-key-kms",
            KEY,
        ];
        let (status, text, _) = runseal(&flags, "");
        assert_eq!(status, Some(0), "{text}");
        assert!(text.starts_with("Policy of the user or role"), "{text}");
        assert!(text.contains(&format!("Statements for the policy of {OTHER}:")), "{text}");
        let (status, json, _) = runseal(&[&flags[..], &["--json"]].concat(), "");
        assert_eq!(status, Some(0));
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let identity = json["identityPolicy"].clone();
        assert_eq!(statement(&identity, "Decrypt")["Resource"], json!([OTHER]), "the key of the bucket");
        assert_eq!(statement(&identity, "Encrypt")["Resource"], json!([KEY]), "the key of all others");
        let (status, said, _) = runseal(&["policy", "lint", "--strict", "-"], &identity.to_string());
        assert_eq!((status, said.as_str()), (Some(0), ""));
    }

    #[test]
    fn unknown_keys_are_asked_for() {
        let flags = ["policy", "--input", "s3://inputs/reads/", "--output", "s3://outputs/run/"];
        let (status, _, said) = runseal(&flags, "");
        assert_eq!(status, Some(64));
        for word in [
            "s3://inputs/reads/: kms:Decrypt",
            "s3://outputs/run/: kms:GenerateDataKey and kms:Decrypt",
            "--key",
            "--no-kms",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let (status, text, _) = runseal(&[&flags[..], &["--no-kms"]].concat(), "");
        assert_eq!(status, Some(0));
        assert!(!text.contains("kms:"), "{text}");
        let (status, text, _) = runseal(&[&flags[..], &["--no-kms", "--sse-kms-key-id", KEY]].concat(), "");
        assert_eq!(status, Some(0));
        assert!(text.contains("kms:GenerateDataKey") && !text.contains("\"Sid\": \"Decrypt\""), "{text}");
    }

    #[test]
    fn wrong_flags_are_usage_errors() {
        for (flags, word) in [
            (&["policy"][..], "nothing here is in S3"),
            (&["policy", "--input", "/etc/hostname"], "nothing here is in S3"),
            (&["policy", "--input", "s3://inputs/x", "--key", "alias/x"], "by their ARNs"),
            (&["policy", "--input", "s3://inputs/x", "--key", "b=x"], "not a KMS key"),
            (&["policy", "--input", "s3://inputs/x", "--no-kms", "--principal", "me"], "ARN of a user or role"),
            (&["policy", "lint"], "FILE"),
        ] {
            let (status, _, said) = runseal(flags, "");
            assert_eq!(status, Some(64), "{flags:?}: {said}");
            assert!(said.contains(word), "{flags:?}: {said}");
        }
    }

    #[test]
    fn lint_tells_the_defects_and_exits_accordingly() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("policy.json");
        let path = file.to_str().expect("UTF-8");
        let wrong = r#"{"Version": "2012-10-17", "Statement":
            {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "arn:aws:kms:eu-central-1:111122223333:alias/x"}}"#;
        fs::write(&file, wrong).expect("written");
        let (status, said, _) = runseal(&["policy", "lint", path], "");
        assert_eq!(status, Some(65));
        assert!(said.starts_with(&format!("{path}:2:")), "{said}");
        for word in ["error: ", "[alias-resource]", "    in Statement.Resource\n", "    -> name the ARN of the key"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        let (status, json, _) = runseal(&["policy", "lint", "--json", path], "");
        assert_eq!(status, Some(65));
        let json: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&json[0]["rule"], &json[0]["severity"]), (&json!("alias-resource"), &json!("error")));

        let warning = wrong.replace("arn:aws:kms:eu-central-1:111122223333:alias/x", "*");
        assert_eq!(runseal(&["policy", "lint", "-"], &warning).0, Some(0));
        assert_eq!(runseal(&["policy", "lint", "--strict", "-"], &warning).0, Some(65));
        assert_eq!(runseal(&["policy", "lint", "/nonexistent"], "").0, Some(66));
    }

    #[test]
    fn manual_pages_and_completions_include_them() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(runseal(&["man", dir.path().to_str().expect("UTF-8")], "").0, Some(0));
        for page in [
            "runseal-policy.1",
            "runseal-policy-lint.1",
            "runseal-audit.1",
            "runseal-audit-verify.1",
            "runseal-audit-keygen.1",
            "runseal-verify.1",
        ] {
            let text = fs::read_to_string(dir.path().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
            assert!(text.contains("SYNOPSIS"), "{page}");
        }
        let (_, script, _) = runseal(&["completions", "bash"], "");
        assert!(
            ["lint", "verify", "keygen", "--audit-sign", "--manifest-sha256"].iter().all(|word| script.contains(word))
        );
    }
}
