//! `runseal status`, `resume`, `end`: talking to live runs.

use std::ffi::OsString;
use std::io::Write;

use serde_json::json as object;
use zeroize::Zeroizing;

use crate::run::{self, Credentials, Record, Report, ResumeOrder, StateError, Unpublished, error::RunError};
use crate::spec::{KmsKey, ResumeSpec, Sse};
use crate::sys::path::shown;
use crate::units::json;
use crate::units::text::{Message, Shown};

use super::aws::output_location;
use super::{Failure, stdout};

/// Show the live runs of this user
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Only this run
    run: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Have a held run publish its results again
///
/// The run looks for AWS credentials anew: in profile files, from the container or the instance.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Hand over AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of this shell for it to use instead
    #[arg(long)]
    credentials_from_environment: bool,
    /// Publish the results although data of the run was lost
    #[arg(long)]
    incomplete: bool,
    /// Publish although there are no results
    #[arg(long)]
    allow_empty: bool,
    /// Let results replace files and objects in the output
    #[arg(long)]
    overwrite: bool,
    /// Keep results of before that this run does not have
    #[arg(long)]
    keep_old: bool,
    /// Publish what symbolic links into the scratch lead to in their place
    #[arg(long)]
    dereference: bool,
    /// As root: publish even into a directory that other users may change
    #[arg(long)]
    shared_output: bool,
    /// Publish files with set-user-ID and set-group-ID
    #[arg(long)]
    keep_set_id: bool,
    /// Publish to this directory or prefix instead
    #[arg(long, value_name = "DIR|S3-URI")]
    output: Option<OsString>,
    /// Encryption of results in S3
    #[arg(long, value_name = "ALGORITHM", value_enum)]
    sse: Option<Sse>,
    /// KMS key for that: ARN, key id or alias/NAME
    #[arg(long, value_name = "KEY")]
    sse_kms_key_id: Option<KmsKey>,
    /// Name of the run
    run: String,
}

/// End a mount, or a run whose results are not wanted
#[derive(Debug, clap::Args)]
pub struct EndArgs {
    /// Even if results that are not published are lost
    #[arg(long)]
    discard: bool,
    /// Remove results that this run has put into the output already, unless somebody has changed them since
    #[arg(long, requires = "discard")]
    remove_published: bool,
    /// Name of the run, or the mountpoint of `runseal mount`
    run: String,
}

pub fn status(args: StatusArgs) -> Result<u8, Failure> {
    let runs = run::status(args.run.as_deref())?;
    if let (true, Some(wanted)) = (runs.is_empty(), args.run) {
        return Err(RunError::from(StateError::Unknown(wanted)).into());
    }
    let mut out = stdout();
    if args.json {
        let list: Vec<_> = runs.iter().map(|(record, answer)| as_json(record, answer)).collect();
        json::write_pretty(&mut out, &list)?;
    } else {
        for (record, answer) in &runs {
            writeln!(out, "{}", Shown(as_line(record, answer)))?;
        }
    }
    Ok(0)
}

fn as_json(record: &Record, answer: &Result<Report, String>) -> serde_json::Value {
    match answer {
        Ok(report) => object!({ "state": record, "report": report }),
        Err(problem) => object!({ "state": record, "problem": problem }),
    }
}

fn as_line(record: &Record, answer: &Result<Report, String>) -> String {
    let Record { run_id, mountpoint, supervisor, started, .. } = record;
    let doing = match answer {
        Ok(report) => {
            let phase = report.phase().and_then(|phase| serde_json::to_value(phase).ok());
            let phase = phase.as_ref().and_then(|phase| phase.as_str()).unwrap_or("starting").to_owned();
            match &report.held {
                Some(problem) if phase == "held" => format!("held ({problem})"),
                _ if phase == "unmounted" => format!(
                    "unmounted, but alive for an open file or in another mount namespace (`runseal end {run_id}` ends it)"
                ),
                _ => phase,
            }
        }
        Err(problem) => format!("no answer ({problem})"),
    };
    format!("{run_id}  {doing}  since {started}  pid {supervisor}  {}", shown(mountpoint))
}

pub fn resume(args: ResumeArgs) -> Result<u8, Failure> {
    let credentials = args.credentials_from_environment.then(credentials_of_environment).transpose()?;
    let spec = ResumeSpec {
        incomplete: args.incomplete,
        allow_empty: args.allow_empty,
        overwrite: args.overwrite,
        output: args.output.as_deref().map(output_location).transpose()?,
        sse: args.sse,
        sse_kms_key: args.sse_kms_key_id,
        dereference: args.dereference,
        keep_old: args.keep_old,
        shared_output: args.shared_output,
        keep_set_id: args.keep_set_id,
    };
    let message = run::resume(&args.run, ResumeOrder { credentials, spec })?;
    writeln!(stdout(), "{}: {}", args.run, Message(message))?;
    Ok(0)
}

fn credentials_of_environment() -> Result<Credentials, Failure> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty()).map(Zeroizing::new);
    let needed = |name| {
        let missing = || Failure::Usage(format!("--credentials-from-environment: {name} is not set"));
        variable(name).ok_or_else(missing)
    };
    Ok(Credentials {
        access_key_id: needed("AWS_ACCESS_KEY_ID")?,
        secret_access_key: needed("AWS_SECRET_ACCESS_KEY")?,
        session_token: variable("AWS_SESSION_TOKEN"),
    })
}

pub fn end(args: EndArgs) -> Result<u8, Failure> {
    let results = match (args.discard, args.remove_published) {
        (_, true) => Unpublished::Remove,
        (true, false) => Unpublished::Discard,
        (false, false) => Unpublished::Keep,
    };
    let message = run::end(&args.run, results)?;
    writeln!(stdout(), "{}: {}", args.run, Message(message))?;
    Ok(0)
}
