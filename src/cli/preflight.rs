//! `runseal preflight`.

use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;

use crate::exit;
use crate::run::error::{PreflightReport, RunError};
use crate::run::{self, AWS_OWNED, Check, CheckOutcome, Evidence, Profile};
use crate::spec::{DataSpec, KmsKey};

use crate::units::json;
use crate::units::text::Shown;

use super::{Failure, aws, stdout, store};

const EXIT_STATUS: &str = "\
Exit status:
  0  nothing stands in the way             73 the output cannot be written, or the inputs do not fit
  64 wrong command line                    77 a permission is missing
  66 an input is missing or unreadable
  69 AWS cannot be reached, there are no credentials, or a key cannot be used";

/// Find out whether a run could read its inputs and write its results, without starting it
///
/// Does in small what `runseal run` will do: looks at every input and reads a byte of each group of objects that are
/// alike, begins an upload to the output, sends it one byte and aborts it. Nothing is left behind. What is denied is
/// named with the policy statements that would allow it. With --key, checks one KMS key for one system of AWS instead.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct PreflightArgs {
    #[command(flatten)]
    data: aws::DataArgs,
    /// Ask KMS too what it would say directly, even if nothing failed
    #[arg(long)]
    explain: bool,
    /// Key to check: ARN, key id, alias/NAME, or AWS_OWNED_KMS_KEY
    #[arg(long, value_name = "KEY", value_parser = key, requires = "profile", conflicts_with_all = ["input", "output"])]
    key: Option<String>,
    /// What it is to be used for
    #[arg(long, value_name = "SYSTEM", value_enum, requires = "key")]
    profile: Option<Profile>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: store::StoreArgs,
    #[command(flatten)]
    aws: aws::AwsArgs,
}

fn key(text: &str) -> Result<String, String> {
    if text == AWS_OWNED {
        return Ok(text.to_owned());
    }
    text.parse::<KmsKey>().map(|key| key.to_string()).map_err(|error| error.to_string())
}

pub fn act(args: PreflightArgs) -> Result<u8, Failure> {
    let data = args.data.into_data()?;
    let (aws, audit) = args.aws.into_spec(data.output.as_ref())?;
    let data = DataSpec { aws, audit, ..data };
    let (id, store) = args.store.into_spec()?;
    let checked = match (&args.key, args.profile) {
        (Some(key), Some(profile)) => run::check_key(&id, &data, key, profile),
        _ if data.inputs.is_empty() && data.output.is_none() && data.aws.run_key.is_none() => {
            return Err(Failure::Usage("nothing to check: give --input, --output, --run-key-kms or --key".to_owned()));
        }
        _ => run::preflight(&id, &store, &data, args.explain),
    };
    let (verdict, status) = match checked {
        Ok(evidence) => (Verdict { cleared: true, report: PreflightReport { findings: Vec::new(), evidence } }, 0),
        Err(error) => {
            let status = exit::code(&error);
            let RunError::Preflight(report) = error else { return Err(error.into()) };
            (Verdict { cleared: false, report }, status)
        }
    };
    let mut out = stdout();
    if args.json {
        json::write_pretty(&mut out, &verdict)?;
    } else {
        out.write_all(table(&verdict.report.evidence).as_bytes())?;
        match verdict.cleared {
            true => writeln!(out, "\nnothing stands in the way of the run")?,
            false => write!(out, "\n{}", verdict.report)?,
        }
    }
    Ok(status)
}

#[derive(Serialize)]
struct Verdict {
    cleared: bool,
    #[serde(flatten)]
    report: PreflightReport,
}

/// One line for each check: how it came out, what was tried on what, and what was learnt.
fn table(evidence: &Evidence) -> String {
    let mut text = String::new();
    let width = |of: fn(&Check) -> usize| evidence.checks.iter().map(of).max().unwrap_or(0).min(60);
    let (probe, subject) = (width(|check| check.probe.len()), width(|check| check.subject.len()));
    for check in &evidence.checks {
        let outcome = match check.outcome {
            CheckOutcome::Passed => "ok  ",
            CheckOutcome::Warning => "warn",
            CheckOutcome::Failed => "FAIL",
            CheckOutcome::Unknown => "?   ",
        };
        let line =
            format!("{outcome}  {:probe$}  {:subject$}  {}", check.probe, Shown(&check.subject), Shown(&check.detail));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let check = |probe, subject: &str, outcome, detail: &str| Check {
            probe,
            subject: subject.into(),
            key: None,
            outcome,
            detail: detail.into(),
            request_id: String::new(),
        };
        let checks = vec![
            check("s3:GetObject", "s3://b/p/", CheckOutcome::Passed, "can be read"),
            check("kms:DescribeKey", "arn", CheckOutcome::Unknown, ""),
        ];
        let expected = "ok    s3:GetObject     s3://b/p/  can be read\n?     kms:DescribeKey  arn\n";
        assert_eq!(table(&Evidence { identity: None, checks }), expected);
    }

    #[test]
    fn a_key_is_a_key_of_kms_or_that_of_aws() {
        assert_eq!(key("AWS_OWNED_KMS_KEY").expect("known"), AWS_OWNED);
        assert!(key("alias/x").is_ok());
        assert!(key("arn:aws:s3:::bucket").is_err());
    }
}
