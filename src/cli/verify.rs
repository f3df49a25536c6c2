//! `runseal verify`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::run::{self, Verification, VerifyDemands};
use crate::spec::{DataSpec, Location, RunId};
use crate::units::ByteSize;
use crate::units::exit::Exit;
use crate::units::json;
use crate::units::text::Shown;

use super::audit::hash;
use super::aws::{AwsArgs, output_location};
use super::{Failure, stdout};

/// Differences that are told; JSON has all.
const TOLD: usize = 40;

const EXIT_STATUS: &str = "\
Exit status:
  0  everything is as the manifest says    69 AWS cannot be reached, or there are no credentials
  64 wrong command line                    74 nothing differs, but some results could not be read
  65 something differs, or the manifest    77 a permission is missing
     is none, or not the one expected
  66 the output or its manifest is missing or unreadable";

/// Check published results against their manifest
///
/// Reads every file and compares it with the SHA-256 in runseal-manifest.json; tells what was changed, what is missing and
/// what is there besides. No link is followed out of the output, whatever the manifest says. Who may change the results may
/// change the manifest too: --manifest-sha256 and --manifest tie it to what was kept elsewhere. Modes, owners and times are
/// not compared.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct VerifyArgs {
    /// What `runseal run --output` was given
    #[arg(value_name = "DIR|S3-URI")]
    output: OsString,
    /// Manifest to compare with, instead of the one in the output
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// SHA-256 that the manifest must have, as the report of the run told it
    #[arg(long, value_name = "HASH", value_parser = hash)]
    manifest_sha256: Option<String>,
    /// Let there be more than the manifest lists
    #[arg(long)]
    allow_extra: bool,
    /// In S3: compare the sizes and checksums that S3 keeps, and read nothing
    #[arg(long)]
    stored_checksums: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

#[derive(Serialize)]
struct Verdict<'a> {
    intact: bool,
    #[serde(flatten)]
    verification: &'a Verification,
}

pub fn act(args: VerifyArgs) -> Result<u8, Failure> {
    let output = output_location(&args.output)?;
    let VerifyArgs { manifest, manifest_sha256, allow_extra, stored_checksums, .. } = args;
    if stored_checksums && !matches!(output, Location::S3(_)) {
        return Err(Failure::Usage("--stored-checksums is for results in S3: only there are any stored".to_owned()));
    }
    let demands = VerifyDemands { manifest, manifest_sha256, allow_extra, stored_checksums };
    let (aws, audit) = args.aws.into_spec(None)?;
    let data = DataSpec { aws, audit, ..DataSpec::default() };
    let found = run::verify(&RunId::random()?, &data, &output, &demands)?;
    let intact = found.differences.is_empty();
    if args.json {
        json::write_pretty(stdout(), &Verdict { intact, verification: &found })?;
    } else {
        tell(&mut stdout(), &found)?;
    }
    Ok(match () {
        () if intact => 0,
        () if found.differs() => Exit::Data.number(),
        () => Exit::Io.number(),
    })
}

fn tell(out: &mut impl Write, found: &Verification) -> std::io::Result<()> {
    for difference in found.differences.iter().take(TOLD) {
        writeln!(out, "{difference}")?;
    }
    if let more @ 1.. = found.differences.len().saturating_sub(TOLD) {
        writeln!(out, "and {more} more")?;
    }
    if found.incomplete > 0 {
        writeln!(out, "{} results were published incomplete, as the manifest says", found.incomplete)?;
    }
    let Verification { verified, files, run, created, .. } = found;
    let how = if found.contents_read { "read" } else { "compared by the checksums of S3" };
    let (bytes, run, created) = (ByteSize(found.bytes), Shown(run), Shown(created));
    writeln!(out, "{verified} of {files} files are as run {run} published them at {created}: {bytes} {how}")?;
    writeln!(out, "manifest: {}", found.manifest_sha256)
}
