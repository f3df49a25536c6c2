//! `runseal audit`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::audit::{AuditError, Summary, TrailDemands, TrailFault, Witness, generate, verify};
use crate::run::error::RunError;
use crate::sys::path::shown;
use crate::units::exit::Exit;
use crate::units::json;
use crate::units::text::Shown;

use super::{Failure, stdout};

/// Names of runs without an end that are told; JSON has all.
const TOLD: usize = 10;

/// Work with audit trails, as `--audit` writes them
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    action: AuditAction,
}

#[derive(Debug, clap::Subcommand)]
enum AuditAction {
    Verify(VerifyArgs),
    Keygen(KeygenArgs),
}

/// Check that a trail is as it was written
///
/// Every line must match its own hash and follow the line before it. Whoever may write to the file can make such a chain
/// anew: only --key shows who wrote it, and only --head shows whether lines are missing at its end. Exits with 0 if all is
/// well, with 65 and the first bad line if not, with 66 if FILE cannot be read, and with 78 if a key cannot be used. A
/// trail in the journal is exported with `journalctl -o cat RUNSEAL_RUN_ID=RUN`.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The trail; - is standard input
    file: PathBuf,
    /// Public key in PEM that must have signed every line (--audit-sign); repeat it for lines signed by one of several
    #[arg(long, value_name = "PUBLIC-KEY-FILE")]
    key: Vec<PathBuf>,
    /// Hash that must occur in the chain, as the report of a run or an earlier check told it
    #[arg(long, value_name = "HASH", value_parser = hash)]
    head: Option<String>,
    /// That hash must be the one of the last line
    #[arg(long, requires = "head")]
    exact: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Make a key for --audit-sign
///
/// Writes the private key to FILE, which only its owner may read, and the public key to FILE.pub. Keep that where whoever
/// writes trails cannot change it. `openssl genpkey -algorithm ed25519` makes such keys too.
#[derive(Debug, clap::Args)]
struct KeygenArgs {
    /// A new file
    file: PathBuf,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict<'a> {
    intact: bool,
    #[serde(flatten)]
    summary: Option<&'a Summary>,
    #[serde(flatten)]
    fault: Option<&'a TrailFault>,
}

pub fn act(args: AuditArgs) -> Result<u8, Failure> {
    match args.action {
        AuditAction::Verify(args) => check(&args),
        AuditAction::Keygen(args) => keygen(&args.file),
    }
}

fn keygen(file: &Path) -> Result<u8, Failure> {
    let (public, name) = generate(file).map_err(RunError::from)?;
    writeln!(stdout(), "{}: key {name}", shown(&public))?;
    Ok(0)
}

fn check(args: &VerifyArgs) -> Result<u8, Failure> {
    let keys: Result<Vec<_>, AuditError> = args.key.iter().map(|key| Witness::read(key)).collect();
    let keys = keys.map_err(RunError::from)?;
    let failed = |source| Failure::Input { path: args.file.clone(), source };
    let demands = TrailDemands { head: args.head.as_deref(), exact: args.exact, keys: &keys };
    let verdict = verify(open(&args.file).map_err(failed)?, &demands).map_err(failed)?;
    let mut out = stdout();
    if args.json {
        let json = Verdict { intact: verdict.is_ok(), summary: verdict.as_ref().ok(), fault: verdict.as_ref().err() };
        json::write_pretty(&mut out, &json)?;
    } else {
        match &verdict {
            Ok(summary) => tell(&mut out, summary, !keys.is_empty())?,
            Err(fault) => writeln!(out, "{}: {}", shown(&args.file), Shown(fault))?,
        }
    }
    Ok(if verdict.is_ok() { 0 } else { Exit::Data.number() })
}

fn tell(out: &mut impl Write, summary: &Summary, asked: bool) -> io::Result<()> {
    writeln!(out, "intact: {} events of {} runs", summary.events, summary.runs.len())?;
    match summary.signed {
        0 if asked => writeln!(out, "no line is signed")?,
        0 => writeln!(
            out,
            "nobody's signature was asked for (--key): whoever may write the file can make an intact one"
        )?,
        _ => writeln!(out, "every line is signed by the key given")?,
    }
    if summary.torn > 0 {
        writeln!(out, "{} lines were torn by a crash or a full disk, and are marked", summary.torn)?;
    }
    if summary.missed > 0 {
        writeln!(out, "{} events could not be written when they happened", summary.missed)?;
    }
    for run in summary.unfinished.iter().take(TOLD) {
        writeln!(out, "run {}: no end; it goes on, was killed, or its last lines are missing", Shown(run))?;
    }
    if let more @ 1.. = summary.unfinished.len().saturating_sub(TOLD) {
        writeln!(out, "and {more} more runs without an end")?;
    }
    if let Some(after) = summary.after_head {
        writeln!(out, "{after} lines come after the one whose hash was given")?;
    }
    writeln!(out, "head: {} (line number {})", summary.head.hash, summary.head.sequence)
}

fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    if path == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(File::open(path)?)) }
}

pub fn hash(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a hash is 64 hexadecimal digits".to_owned())
    }
}
