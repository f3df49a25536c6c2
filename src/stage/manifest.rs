//! `runseal-manifest.json`: what was published, checkable without runseal.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::Totals;
use super::plan::{Entry, Plan};
use crate::fs::Kind;
use crate::spec::RunId;

/// Name of the manifest in the output.
pub const MANIFEST: &str = "runseal-manifest.json";

/// Version of the format; readers refuse a larger one.
const VERSION: u32 = 1;

/// SHA-256 of a file.
pub(super) type Sum = [u8; 32];

/// What publishing learnt of an entry besides its attributes.
#[derive(Clone, Debug)]
pub(super) enum Learnt {
    Nothing,
    Sum(Sum),
    Target(std::ffi::OsString),
}

#[derive(Serialize)]
struct Manifest<'a> {
    format: &'static str,
    version: u32,
    run: &'a RunId,
    created: String,
    totals: Totals,
    files: Vec<FileLine>,
    directories: Vec<DirectoryLine>,
    symlinks: Vec<SymlinkLine>,
    skipped: Vec<SkippedLine>,
}

/// A path as text; one that is not UTF-8 also in base 16, since its text has replacement characters.
#[derive(Serialize)]
struct Name {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

#[derive(Serialize)]
struct FileLine {
    #[serde(flatten)]
    name: Name,
    size: u64,
    sha256: String,
    mode: String,
}

#[derive(Serialize)]
struct DirectoryLine {
    #[serde(flatten)]
    name: Name,
    mode: String,
}

#[derive(Serialize)]
struct SymlinkLine {
    #[serde(flatten)]
    name: Name,
    target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<String>,
}

#[derive(Serialize)]
struct SkippedLine {
    #[serde(flatten)]
    name: Name,
    kind: &'static str,
}

/// Writes the manifest of `plan`; `learnt` goes with its entries.
pub(super) fn write(out: impl Write, run: &RunId, plan: &Plan, learnt: &[Learnt]) -> io::Result<()> {
    let mut manifest = Manifest {
        format: "runseal-manifest",
        version: VERSION,
        run,
        created: rfc3339(SystemTime::now()),
        totals: plan.totals(),
        files: Vec::new(),
        directories: Vec::new(),
        symlinks: Vec::new(),
        skipped: plan.skipped.iter().map(|entry| skipped(plan, entry)).collect(),
    };
    for (i, (entry, learnt)) in plan.entries.iter().zip(learnt).enumerate().skip(1) {
        let (name, mode) = (name(&plan.path(i)), format!("{:04o}", entry.attr.mode));
        match learnt {
            Learnt::Nothing => manifest.directories.push(DirectoryLine { name, mode }),
            Learnt::Sum(sum) => {
                manifest.files.push(FileLine { name, size: entry.attr.size, sha256: base16(sum), mode });
            }
            Learnt::Target(target) => {
                let Name { path: target, path_bytes: target_bytes } = self::name(Path::new(target));
                manifest.symlinks.push(SymlinkLine { name, target, target_bytes });
            }
        }
    }
    let mut out = io::BufWriter::new(out);
    serde_json::to_writer_pretty(&mut out, &manifest)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn skipped(plan: &Plan, entry: &Entry) -> SkippedLine {
    let kind = match entry.attr.kind {
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "character-device",
        Kind::BlockDevice => "block-device",
        Kind::File | Kind::Directory | Kind::Symlink => "published",
    };
    SkippedLine { name: name(&plan.path_of(entry)), kind }
}

fn name(path: &Path) -> Name {
    let path_bytes = path.to_str().is_none().then(|| base16(path.as_os_str().as_bytes()));
    Name { path: path.to_string_lossy().into_owned(), path_bytes }
}

fn base16(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A time in UTC by RFC 3339, to the second. A clock before 1970 is wrong anyway, and has no format.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time.max(UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_civil() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn names_that_are_not_utf8_survive() {
        use std::ffi::OsStr;
        let odd = name(Path::new(OsStr::from_bytes(b"a\xff")));
        assert_eq!((odd.path.as_str(), odd.path_bytes.as_deref()), ("a\u{fffd}", Some("61ff")));
        assert_eq!(name(Path::new("\u{e9}\n")).path_bytes, None);
    }
}
