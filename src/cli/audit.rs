//! `runseal audit`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Failure;
use crate::audit::{Fault, Summary, verify};
use crate::exit;

/// Work with audit trails, as `--audit` writes them
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    action: AuditAction,
}

#[derive(Debug, clap::Subcommand)]
enum AuditAction {
    Verify(VerifyArgs),
}

/// Check that a trail is as it was written
///
/// Every line must match its own hash and follow the line before it. Lines that were cut off at the end show only if
/// --head is given. Exits with 0 if all is well, with 65 and the first bad line if not, and with 66 if FILE cannot be
/// read. A trail in the journal is exported with `journalctl -o cat RUNSEAL_RUN_ID=RUN`.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The trail; - is standard input
    file: PathBuf,
    /// Hash that must occur in the chain, as the report of a run or an earlier check told it
    #[arg(long, value_name = "HASH", value_parser = hash)]
    head: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    intact: bool,
    #[serde(flatten)]
    summary: Option<&'a Summary>,
    #[serde(flatten)]
    fault: Option<&'a Fault>,
}

pub fn act(args: AuditArgs) -> Result<u8, Failure> {
    let AuditAction::Verify(args) = args.action;
    let failed = |source| Failure::Input { path: args.file.clone(), source };
    let verdict = verify(open(&args.file).map_err(failed)?, args.head.as_deref()).map_err(failed)?;
    let mut out = io::stdout().lock();
    if args.json {
        let json = Verdict { intact: verdict.is_ok(), summary: verdict.as_ref().ok(), fault: verdict.as_ref().err() };
        serde_json::to_writer_pretty(&mut out, &json).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        match &verdict {
            Ok(summary) => tell(&mut out, summary)?,
            Err(fault) => writeln!(out, "{}: {fault}", args.file.display())?,
        }
    }
    Ok(if verdict.is_ok() { 0 } else { exit::DATA })
}

fn tell(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    writeln!(out, "intact: {} events of {} runs", summary.events, summary.runs.len())?;
    if summary.torn > 0 {
        writeln!(out, "{} lines were torn by a crash or a full disk, and are marked", summary.torn)?;
    }
    if summary.missed > 0 {
        writeln!(out, "{} events could not be written when they happened", summary.missed)?;
    }
    writeln!(out, "head: {} (line number {})", summary.head.hash, summary.head.sequence)
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(path)?)) }
}

fn hash(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a hash is 64 hexadecimal digits".to_owned())
    }
}
