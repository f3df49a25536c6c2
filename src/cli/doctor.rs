//! `runseal doctor`.

use std::io::Write;

use crate::run::{Verdict, examine};

use crate::units::exit::Exit;
use crate::units::json;
use crate::units::text::Shown;

use super::{Failure, stdout, store};

/// Show what this machine offers to sealed runs, and what to do about what is missing
///
/// Exits with 0 if `runseal run` can work here.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Directory to examine as backing; as of `runseal run`
    #[arg(long, value_name = "DIR")]
    backing: Vec<std::path::PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn act(args: DoctorArgs) -> Result<u8, Failure> {
    let backing = if args.backing.is_empty() { store::backing_of_environment() } else { args.backing };
    let facts = examine(&backing)?;
    let mut out = stdout();
    if args.json {
        json::write_pretty(&mut out, &facts)?;
    } else {
        for fact in &facts {
            let verdict = match fact.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            writeln!(out, "{verdict}  {:<18} {}", fact.name, Shown(&fact.found))?;
            if let Some(remedy) = &fact.remedy {
                writeln!(out, "      {:<18} -> {}", "", Shown(remedy))?;
            }
        }
    }
    Ok(if facts.iter().any(|fact| fact.verdict == Verdict::Fail) { Exit::Unavailable.number() } else { 0 })
}
