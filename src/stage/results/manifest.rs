//! `runseal-manifest.json`: what was published, checkable without runseal.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::older::{Because, Older, Retired, decoded};
use super::plan::{Entry, Plan};
use crate::aws::{Encryption, Stored};
use crate::fs::Kind;
use crate::spec::RunId;
use crate::stage::Totals;
use crate::units::{hex, json, rfc3339};

/// Name of the manifest in the output.
pub const MANIFEST: &str = "runseal-manifest.json";

/// What the field `format` says.
pub(in crate::stage) const FORMAT: &str = "runseal-manifest";
/// Version of the format; readers refuse a larger one.
pub(in crate::stage) const VERSION: u32 = 1;

/// SHA-256 of a file.
pub(in crate::stage) type Sum = [u8; 32];

/// A file of the scratch that is not as it was written, when results are published all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// Path below the results, or below the scratch if it is no result.
    pub path: Vec<u8>,
    /// Whether it is one of the results, or only something that results may have been made of.
    pub is_result: bool,
    /// Ranges of bytes that are not there.
    pub lost: Vec<Range<u64>>,
    /// Whether a write was refused since the scratch was full.
    pub refused: bool,
}

/// What publishing learnt of an entry besides its attributes.
#[derive(Clone, Debug)]
pub(in crate::stage) enum EntryFacts {
    Nothing,
    Sum(Sum),
    Target(std::ffi::OsString),
    /// A file in S3.
    Object(Sum, Box<Published>),
    /// The marker of an empty directory in S3.
    Marker(Box<Published>),
}

/// Where an entry is in S3.
#[derive(Clone, Debug)]
pub(in crate::stage) struct Published {
    pub(in crate::stage) key: String,
    pub(in crate::stage) stored: Stored,
    /// CRC-64/NVME.
    pub(in crate::stage) crc: u64,
}

#[derive(Serialize)]
struct Manifest<'a> {
    format: &'static str,
    version: u32,
    run: &'a RunId,
    created: String,
    /// An older manifest stood here, and the results it told of are being replaced: nothing is vouched for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    withdrawn: bool,
    /// What that manifest listed, for whoever replaces these results next.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<&'a Older>,
    totals: Totals,
    files: Vec<FileLine>,
    directories: Vec<DirectoryLine>,
    symlinks: Vec<SymlinkLine>,
    skipped: Vec<SkippedLine>,
    /// Results that are not as they were written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<IncompleteLine>,
    /// Other files of the scratch that were not, and that results may have been made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lost_elsewhere: Vec<IncompleteLine>,
    /// Results of before that are no part of these, and still there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<KeptLine>,
}

/// A path as text; one that is not UTF-8 also in base 16, since its text has replacement characters.
#[derive(Clone, Debug, Serialize)]
pub(in crate::stage) struct Name {
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
    #[serde(flatten)]
    object: Option<ObjectLine>,
}

/// Of an entry in S3. The key is the path below the output, but for names that no key can be.
#[derive(Serialize)]
struct ObjectLine {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_id: Option<String>,
    /// In base 64, as S3 shows it.
    crc64nvme: String,
    encryption: Encryption,
}

#[derive(Serialize)]
struct DirectoryLine {
    #[serde(flatten)]
    name: Name,
    mode: String,
    #[serde(flatten)]
    object: Option<ObjectLine>,
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
struct IncompleteLine {
    #[serde(flatten)]
    name: Name,
    /// First byte, and first behind it, of each range.
    lost: Vec<[u64; 2]>,
    refused: bool,
}

#[derive(Serialize)]
struct SkippedLine {
    #[serde(flatten)]
    name: Name,
    kind: &'static str,
}

#[derive(Serialize)]
struct KeptLine {
    #[serde(flatten)]
    name: Name,
    because: Because,
}

/// Writes the manifest of `plan`, and returns its own SHA-256; `learnt` goes with its entries, and `retired` is what became of the results before.
pub(in crate::stage) fn write(
    out: impl Write,
    run: &RunId,
    plan: &Plan,
    totals: Totals,
    learnt: &[EntryFacts],
    (incomplete, retired): (&[Incomplete], &Retired),
) -> io::Result<Sum> {
    let mut manifest = Manifest::empty(run, totals);
    let (results, elsewhere): (Vec<_>, Vec<_>) = incomplete.iter().partition(|file| file.is_result);
    manifest.incomplete = results.into_iter().map(Incomplete::line).collect();
    manifest.lost_elsewhere = elsewhere.into_iter().map(Incomplete::line).collect();
    let kept = |(path, because): &(PathBuf, Because)| KeptLine { name: name(path), because: *because };
    manifest.kept = retired.kept.iter().map(kept).collect();
    manifest.skipped = plan.skipped.iter().map(|entry| skipped(plan, entry)).collect();
    for (i, (entry, learnt)) in plan.entries.iter().zip(learnt).enumerate().skip(1) {
        manifest.add(name(&plan.path(i)), entry, learnt);
    }
    let mut out = io::BufWriter::new(Hashing { to: out, hash: Sha256::new() });
    json::write_pretty(&mut out, &manifest)?;
    let hashing = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(hashing.hash.finalize().into())
}

/// Hashes what is written through it.
struct Hashing<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What takes the place of an old manifest while its results are replaced, where names cannot be moved.
pub(in crate::stage) fn withdrawn(run: &RunId, older: &Older) -> Vec<u8> {
    let manifest = Manifest { withdrawn: true, replaced: Some(older), ..Manifest::empty(run, Totals::default()) };
    let mut text = Vec::new();
    json::write_pretty(&mut text, &manifest).expect("a manifest has string keys only");
    text
}

impl<'a> Manifest<'a> {
    fn empty(run: &'a RunId, totals: Totals) -> Self {
        Self {
            format: FORMAT,
            version: VERSION,
            run,
            created: rfc3339(SystemTime::now()),
            withdrawn: false,
            replaced: None,
            totals,
            files: Vec::new(),
            directories: Vec::new(),
            symlinks: Vec::new(),
            skipped: Vec::new(),
            incomplete: Vec::new(),
            lost_elsewhere: Vec::new(),
            kept: Vec::new(),
        }
    }

    fn add(&mut self, name: Name, entry: &Entry, learnt: &EntryFacts) {
        let mode = format!("{:04o}", entry.attr.mode);
        let mut file = |name, mode, sum, object| {
            self.files.push(FileLine { name, size: entry.attr.size, sha256: hex(sum), mode, object });
        };
        match learnt {
            EntryFacts::Sum(sum) => file(name, mode, sum, None),
            EntryFacts::Object(sum, published) => file(name, mode, sum, Some(published.line())),
            EntryFacts::Nothing => self.directories.push(DirectoryLine { name, mode, object: None }),
            EntryFacts::Marker(published) => {
                self.directories.push(DirectoryLine { name, mode, object: Some(published.line()) });
            }
            EntryFacts::Target(target) => {
                let Name { path: target, path_bytes: target_bytes } = self::name(Path::new(target));
                self.symlinks.push(SymlinkLine { name, target, target_bytes });
            }
        }
    }
}

impl Incomplete {
    fn line(&self) -> IncompleteLine {
        let lost = self.lost.iter().map(|range| [range.start, range.end]).collect();
        IncompleteLine { name: name(Path::new(OsStr::from_bytes(&self.path))), lost, refused: self.refused }
    }
}

impl Published {
    fn line(&self) -> ObjectLine {
        let Stored { etag, version, encryption } = self.stored.clone();
        ObjectLine { key: self.key.clone(), etag, version_id: version, crc64nvme: base64(self.crc), encryption }
    }
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

impl Name {
    pub(in crate::stage) fn path(&self) -> PathBuf {
        decoded(&self.path, self.path_bytes.as_deref()).into()
    }
}

pub(in crate::stage) fn name(path: &Path) -> Name {
    let path_bytes = path.to_str().is_none().then(|| hex(path.as_os_str().as_bytes()));
    Name { path: path.to_string_lossy().into_owned(), path_bytes }
}

/// A checksum of 8 bytes in base 64 (RFC 4648): ten digits of six bits, one of four, one filling.
pub(in crate::stage) fn base64(crc: u64) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from(crc) << 2;
    let digits = (0..11).rev().map(|digit| char::from(DIGITS[(bits >> (digit * 6) & 63) as usize]));
    digits.chain(['=']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf '\xae\x8b\x14\x86\x0a\x79\x98\x88' | base64`
    #[test]
    fn checksums_are_written_as_s3_shows_them() {
        assert_eq!(base64(0xae8b_1486_0a79_9888), "rosUhgp5mIg=");
        assert_eq!((base64(0), base64(u64::MAX)), ("AAAAAAAAAAA=".into(), "//////////8=".into()));
    }

    #[test]
    fn names_that_are_not_utf8_survive() {
        use std::ffi::OsStr;
        let odd = name(Path::new(OsStr::from_bytes(b"a\xff")));
        assert_eq!((odd.path.as_str(), odd.path_bytes.as_deref()), ("a\u{fffd}", Some("61ff")));
        assert_eq!(name(Path::new("\u{e9}\n")).path_bytes, None);
    }
}
