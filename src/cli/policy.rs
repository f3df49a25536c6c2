//! `runseal policy`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::aws::DataArgs;
use super::{Failure, stdout};
use crate::policy::{Defect, KeySource, Needs, Place, Policies, Severity, Use, lint, write};
use crate::spec::{Arn, KmsKey, Location, Region, S3Uri};
use crate::sys::path::shown;
use crate::units::exit::Exit;
use crate::units::json;
use crate::units::text::Shown;

/// Print the permissions that a run needs, or find what is wrong with a policy
///
/// Prints the least that --input and --output of `runseal run` need in S3 and KMS: the policy for the user or role that
/// runs it, and with --principal the statements for the policies of the keys. Nothing is asked of AWS, so the keys of
/// buckets must be given. Exits with 64 if one is missing.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PolicyArgs {
    #[command(subcommand)]
    action: Option<PolicyAction>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Debug, clap::Subcommand)]
enum PolicyAction {
    Lint(LintArgs),
}

#[derive(Debug, clap::Args)]
struct WriteArgs {
    #[command(flatten)]
    data: DataArgs,
    /// User or role that runs it, for the policies of keys
    #[arg(long, value_name = "ARN", value_parser = principal)]
    principal: Option<String>,
    /// Key that objects are encrypted with: those in BUCKET, or in every bucket that has none of its own here
    #[arg(long, value_name = "[BUCKET=]ARN", value_parser = bucket_key)]
    key: Vec<(Option<String>, String)>,
    /// Key for results, as of `runseal run`
    #[arg(long, value_name = "ARN", value_parser = key_arn)]
    sse_kms_key_id: Option<String>,
    /// Key that takes part in the key of the run, as of `runseal run`
    #[arg(long, value_name = "ARN", value_parser = key_arn)]
    run_key_kms: Option<String>,
    /// Buckets without --key use no key that needs permission: SSE-S3, or the key AWS manages for S3
    #[arg(long)]
    no_kms: bool,
    /// Region of the buckets, which tells the partition [default: that of the first key]
    #[arg(long, value_name = "NAME", env = "AWS_REGION")]
    region: Option<Region>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Find what is wrong with an IAM or key policy
///
/// Judges the document alone: JSON, elements, ARNs, actions, and what breaks the use of keys through S3. Exits with 0 if
/// there is no error (warnings and hints may be), with 65 if there is one, and with 66 if FILE cannot be read.
#[derive(Debug, clap::Args)]
struct LintArgs {
    /// The policy; - is standard input
    file: PathBuf,
    /// Count warnings as errors
    #[arg(long)]
    strict: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn act(args: PolicyArgs) -> Result<u8, Failure> {
    match args.action {
        Some(PolicyAction::Lint(args)) => check(&args),
        None => print(args.write),
    }
}

fn print(args: WriteArgs) -> Result<u8, Failure> {
    let json = args.json;
    let policies = policies(args)?;
    let mut out = stdout();
    if json {
        pretty(&mut out, &policies)?;
    } else {
        writeln!(out, "Policy of the user or role that runs it:")?;
        pretty(&mut out, &policies.identity_policy)?;
        for policy in &policies.key_policies {
            writeln!(out, "\nStatements for the policy of {}:", policy.key)?;
            pretty(&mut out, &policy.statements)?;
        }
        for note in &policies.notes {
            writeln!(out, "\nNote: {note}")?;
        }
    }
    Ok(0)
}

fn policies(args: WriteArgs) -> Result<Policies, Failure> {
    let data = args.data.into_data()?;
    let first_key = args.key.iter().map(|(_, key)| key).chain(&args.sse_kms_key_id).chain(&args.run_key_kms).next();
    let region = match (&args.region, first_key) {
        (Some(region), _) => region.as_str().to_owned(),
        (None, Some(key)) => Arn::parse(key).map_or_else(String::new, |arn| arn.region.to_owned()),
        (None, None) => String::new(),
    };
    let of_bucket = |uri: &S3Uri| source(&args.key, args.no_kms, &uri.bucket);
    let read = data.inputs.iter().filter_map(|input| s3(&input.source)).map(|uri| (uri, Use::Read, of_bucket(uri)));
    let of_results = |uri| args.sse_kms_key_id.clone().map(|key| KeySource::Keys(vec![key])).or_else(|| of_bucket(uri));
    let usage = if data.overwrite && !data.rules.keep_old { Use::Replace } else { Use::Write };
    let written = data.output.iter().filter_map(s3).map(|uri| (uri, usage, of_results(uri)));

    let (mut needs, mut unknown): (Vec<Needs>, String) = Default::default();
    for (uri, usage, source) in read.chain(written) {
        match source {
            Some(source) => needs.push((Place::new(&region, &uri.bucket, &uri.key), usage, source)),
            None => ask(&mut unknown, uri, usage),
        }
    }
    if !unknown.is_empty() {
        let remedy = "give --key [BUCKET=]ARN, or --no-kms if no bucket here uses a key of yours";
        return Err(Failure::Usage(format!("the keys of these places must be known:{unknown}\n{remedy}")));
    }
    if needs.is_empty() && args.run_key_kms.is_none() {
        let problem = "nothing here is in S3, so no permission is needed: name --input s3://... or --output s3://...";
        return Err(Failure::Usage(problem.to_owned()));
    }
    Ok(write(&needs, args.run_key_kms.as_deref(), args.principal.as_deref()))
}

fn ask(unknown: &mut String, uri: &S3Uri, usage: Use) {
    let actions = match usage {
        Use::Read => "kms:Decrypt",
        Use::Write | Use::Replace => "kms:GenerateDataKey and kms:Decrypt",
    };
    let bucket = &uri.bucket;
    let _ = write!(
        unknown,
        "\n  {}: {actions} (`aws s3api get-bucket-encryption --bucket {bucket}` shows the key)",
        Shown(uri)
    );
}

fn s3(location: &Location) -> Option<&S3Uri> {
    location.s3()
}

/// Keys named for this bucket, else those for all, else none if that was said.
fn source(keys: &[(Option<String>, String)], no_kms: bool, bucket: &str) -> Option<KeySource> {
    let named = |wanted: Option<&str>| -> Vec<String> {
        keys.iter().filter(|(of, _)| of.as_deref() == wanted).map(|(_, key)| key.clone()).collect()
    };
    let (own, general) = (named(Some(bucket)), named(None));
    match () {
        () if !own.is_empty() => Some(KeySource::Keys(own)),
        () if !general.is_empty() => Some(KeySource::Keys(general)),
        () => no_kms.then_some(KeySource::NoKms),
    }
}

fn check(args: &LintArgs) -> Result<u8, Failure> {
    let text = read(&args.file).map_err(|source| Failure::Input { path: args.file.clone(), source })?;
    let defects = lint(&text);
    let mut out = stdout();
    if args.json {
        pretty(&mut out, &defects)?;
    } else {
        defects.iter().try_for_each(|defect| tell(&mut out, &args.file, defect))?;
    }
    let worst = if args.strict { Severity::Warning } else { Severity::Error };
    Ok(if defects.iter().any(|defect| defect.severity <= worst) { Exit::Data.number() } else { 0 })
}

fn tell(out: &mut impl Write, file: &Path, defect: &Defect) -> io::Result<()> {
    let Defect { line, column, path, rule, problem, remedy, .. } = defect;
    let severity = match defect.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Hint => "hint",
    };
    writeln!(out, "{}:{line}:{column}: {severity}: {} [{rule}]", shown(file), Shown(problem))?;
    if !path.is_empty() {
        writeln!(out, "    in {}", Shown(path))?;
    }
    writeln!(out, "    -> {}", Shown(remedy))
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().read_to_string(&mut text)?
    } else {
        File::open(path)?.read_to_string(&mut text)?
    };
    Ok(text)
}

fn pretty(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    json::write_pretty(out, value)
}

fn bucket_key(text: &str) -> Result<(Option<String>, String), String> {
    match text.split_once('=') {
        Some((bucket, key)) => Ok((Some(bucket.to_owned()), key_arn(key)?)),
        None => Ok((None, key_arn(text)?)),
    }
}

fn key_arn(text: &str) -> Result<String, String> {
    let key: KmsKey = text.parse().map_err(|error| format!("{error}"))?;
    if key.is_key_arn() {
        Ok(text.to_owned())
    } else {
        Err("policies name keys by their ARNs; `aws kms describe-key --key-id KEY` shows it".to_owned())
    }
}

fn principal(text: &str) -> Result<String, String> {
    match Arn::parse(text) {
        Some(arn) if matches!(arn.service, "iam" | "sts") && !arn.resource.is_empty() => Ok(text.to_owned()),
        _ => Err("a principal is the ARN of a user or role: arn:aws:iam::ACCOUNT:role/NAME".to_owned()),
    }
}
