//! Findings, and the report of them for people and programs.

use std::fmt;

use serde::Serialize;

use crate::aws::{Cause, Identity, PolicyKind};
use crate::policy::Statement;
use crate::units::json;
use crate::units::text::Shown;

/// Findings shown to people; programs get all of them.
const SHOWN: usize = 40;

/// Kind of a failed check; the names are those of AWS HealthOmics run failures where one exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// An input does not exist.
    InputUriNotFound,
    /// An input exists but cannot be read, or is of a kind that cannot be staged.
    ImportFailed,
    /// The output cannot be written.
    ExportFailed,
    /// The identity that is to read and write cannot be had: no credentials, or expired ones, or a role that may not be
    /// assumed.
    AssumeRoleFailed,
    /// The KMS key of the run itself cannot be used.
    RunKeyFailed,
    /// A key is not what a system asks of it (`runseal preflight --key`).
    KeyUnfit,
    /// A symbolic link below an input leads out of it, and copying what it leads to was not asked for or cannot be done.
    InputLinkOutside,
    /// An input changed while it was looked at or staged.
    ModifiedInputResource,
    /// The inputs do not fit.
    FileSystemOutOfSpace,
    /// Two inputs claim one path.
    InputConflict,
    /// The output holds files already and replacing them was not allowed.
    OutputNotEmpty,
}

impl Code {
    /// The name, as it stands in JSON too.
    pub fn name(self) -> &'static str {
        match self {
            Self::InputUriNotFound => "INPUT_URI_NOT_FOUND",
            Self::ImportFailed => "IMPORT_FAILED",
            Self::ExportFailed => "EXPORT_FAILED",
            Self::AssumeRoleFailed => "ASSUME_ROLE_FAILED",
            Self::RunKeyFailed => "RUN_KEY_FAILED",
            Self::KeyUnfit => "KEY_UNFIT",
            Self::InputLinkOutside => "INPUT_LINK_OUTSIDE",
            Self::ModifiedInputResource => "MODIFIED_INPUT_RESOURCE",
            Self::FileSystemOutOfSpace => "FILE_SYSTEM_OUT_OF_SPACE",
            Self::InputConflict => "INPUT_CONFLICT",
            Self::OutputNotEmpty => "OUTPUT_NOT_EMPTY",
        }
    }
}

/// One failed check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Kind.
    pub code: Code,
    /// The thing concerned: a path or URI, safe to print.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// What AWS said, where it was AWS.
    #[serde(flatten)]
    pub aws: Option<Box<AwsDetails>>,
}

/// What AWS said, word for word, and what it means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AwsDetails {
    /// Kind of the failure; exit codes follow from it.
    pub cause: Cause,
    /// The call that failed: `s3:GetObject`, `kms:DescribeKey`, ...
    pub operation: &'static str,
    /// The permission that is missing, as far as is known.
    pub action: Option<String>,
    /// ARN of the KMS key concerned.
    pub key: Option<String>,
    /// ARN of the caller.
    pub principal: Option<String>,
    /// The policy that denied, where AWS names it.
    pub policy: Option<PolicyKind>,
    /// Whether a statement denies, rather than no statement allowing.
    pub explicit_deny: bool,
    /// Code of the service.
    pub aws_code: String,
    /// Text of the service, as it came.
    pub aws_message: String,
    /// Request ids, as CloudTrail has them.
    pub request_ids: Vec<String>,
    /// Further things of which the same is true.
    pub also: Vec<String>,
    /// What would repair it.
    pub repair: Option<Repair>,
}

impl AwsDetails {
    /// What AWS said, in one line; empty if it said nothing.
    fn said(&self) -> String {
        let ids = self.request_ids.join(", ");
        let said = [self.aws_code.as_str(), self.aws_message.as_str()].into_iter().filter(|text| !text.is_empty());
        let said = said.collect::<Vec<_>>().join(": ");
        match (said.is_empty(), ids.is_empty()) {
            (true, _) => said,
            (false, true) => format!("{}: {said}", self.operation),
            (false, false) => format!("{}: {said} (request {ids})", self.operation),
        }
    }

    /// Below problem and remedy, behind `width` characters.
    fn write(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let said = self.said();
        if !said.is_empty() {
            writeln!(f, "  {:width$}  AWS:     {}", "", Shown(said))?;
        }
        match self.also.as_slice() {
            [] => {}
            [other] => writeln!(f, "  {:width$}  also:    {}", "", Shown(other))?,
            [first, .., last] => {
                let (first, last) = (Shown(first), Shown(last));
                writeln!(f, "  {:width$}  also:    {} more, {first} to {last}", "", self.also.len())?;
            }
        }
        let Some(Repair { iam, key_policy, bucket_policy }) = &self.repair else { return Ok(()) };
        for (whose, statement) in
            [("IAM policy of the caller", iam), ("key policy", key_policy), ("bucket policy", bucket_policy)]
        {
            let Some(statement) = statement else { continue };
            let mut json = Vec::new();
            json::write_pretty(&mut json, statement).map_err(|_| fmt::Error)?;
            let json = String::from_utf8(json).map_err(|_| fmt::Error)?;
            writeln!(f, "  {:width$}  statement for the {whose}:", "")?;
            for line in json.lines() {
                writeln!(f, "  {:width$}    {line}", "")?;
            }
        }
        Ok(())
    }
}

/// Policy statements that would repair a finding.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Repair {
    /// For a policy of the caller's user or role.
    pub iam: Option<Statement>,
    /// For the policy of the KMS key.
    pub key_policy: Option<Statement>,
    /// For the policy of the bucket.
    pub bucket_policy: Option<Statement>,
}

impl Finding {
    /// A finding, its texts fit to be shown. It has nothing to do with AWS unless [`Finding::aws`] is filled.
    pub(super) fn new(code: Code, subject: String, problem: String, remedy: String) -> Self {
        let line = |text: String| Shown(text).to_string();
        Self { code, subject: line(subject), problem: line(problem), remedy: line(remedy), aws: None }
    }

    /// Kind of the failure where it was AWS that failed.
    pub fn cause(&self) -> Option<Cause> {
        self.aws.as_ref().map(|aws| aws.cause)
    }
}

/// How one check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As a run needs it.
    Passed,
    /// Works now, but look at it.
    Warning,
    /// A run cannot work so; there is a finding for it.
    Failed,
    /// Could not be found out, and need not be.
    Unknown,
}

/// One thing that was tried at AWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The call: `s3:HeadObject`, `kms:Decrypt (dry run)`, ...
    pub probe: &'static str,
    /// Bucket, prefix, object or key.
    pub subject: String,
    /// ARN of the KMS key concerned.
    pub key: Option<String>,
    /// How it came out.
    pub outcome: Outcome,
    /// What was learnt.
    pub detail: String,
    /// As CloudTrail has it; empty if there was none, or more than one.
    pub request_id: String,
}

/// What was tried at AWS, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The caller, where STS told.
    pub identity: Option<Identity>,
    /// Every check, those of inputs first.
    pub checks: Vec<Check>,
}

impl Evidence {
    /// What works, but should be looked at.
    pub fn warnings(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Warning)
    }
}

/// Everything that stands in the way of a run; never empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The findings, inputs first, in the order given.
    pub findings: Vec<Finding>,
    /// What was tried.
    #[serde(flatten)]
    pub evidence: Evidence,
}

impl std::error::Error for Report {}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.findings.len();
        let problems = if count == 1 { "problem" } else { "problems" };
        writeln!(f, "preflight found {count} {problems}; nothing was started")?;
        let width = self.findings.iter().map(|x| x.code.name().len()).max().unwrap_or(0);
        for finding in self.findings.iter().take(SHOWN) {
            let Finding { code, subject, problem, remedy, aws } = finding;
            writeln!(f, "\n  {:width$}  {subject}", code.name())?;
            writeln!(f, "  {:width$}  problem: {problem}", "")?;
            writeln!(f, "  {:width$}  remedy:  {remedy}", "")?;
            if let Some(aws) = aws {
                aws.write(f, width)?;
            }
        }
        match count.saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Code; 11] = [
        Code::InputUriNotFound,
        Code::ImportFailed,
        Code::ExportFailed,
        Code::AssumeRoleFailed,
        Code::RunKeyFailed,
        Code::KeyUnfit,
        Code::InputLinkOutside,
        Code::ModifiedInputResource,
        Code::FileSystemOutOfSpace,
        Code::InputConflict,
        Code::OutputNotEmpty,
    ];

    fn finding(code: Code) -> Finding {
        Finding::new(code, "/x".into(), "p".into(), "r".into())
    }

    #[test]
    fn names_are_the_same_everywhere() {
        for code in ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
    }

    #[test]
    fn the_table_lines_up_and_ends() {
        let findings = vec![finding(Code::ExportFailed), finding(Code::InputUriNotFound)];
        let report = Report { findings, evidence: Evidence::default() };
        let expected = "preflight found 2 problems; nothing was started

  EXPORT_FAILED        /x
                       problem: p
                       remedy:  r

  INPUT_URI_NOT_FOUND  /x
                       problem: p
                       remedy:  r
";
        assert_eq!(report.to_string(), expected);
        let findings = vec![finding(Code::ImportFailed); SHOWN + 3];
        let long = Report { findings, evidence: Evidence::default() }.to_string();
        assert!(long.ends_with("\n  and 3 more\n"), "{long}");
    }
    #[test]
    fn what_aws_said_and_what_repairs_it_is_printed() {
        let aws = AwsDetails {
            cause: Cause::Denied,
            operation: "s3:GetObject",
            action: Some("s3:GetObject".into()),
            key: None,
            principal: None,
            policy: None,
            explicit_deny: false,
            aws_code: "AccessDenied".into(),
            aws_message: "Access Denied".into(),
            request_ids: vec!["R1".into()],
            also: vec!["/y".into(), "/z".into()],
            repair: Some(Repair {
                iam: Some(crate::policy::allow("Read", &["s3:GetObject"], vec!["arn:aws:s3:::b/*".into()])),
                ..Repair::default()
            }),
        };
        let findings = vec![Finding { aws: Some(Box::new(aws)), ..finding(Code::ImportFailed) }];
        let text = Report { findings, evidence: Evidence::default() }.to_string();
        for part in [
            "AWS:     s3:GetObject: AccessDenied: Access Denied (request R1)",
            "also:    2 more, /y to /z",
            "statement for the IAM policy of the caller:",
            "\"Action\": [",
        ] {
            assert!(text.contains(part), "`{part}` is missing in {text}");
        }
    }
}
