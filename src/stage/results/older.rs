//! What the manifest of earlier results lists, and what became of it. Whoever may write to the output may have written
//! it: nothing in it is believed that is not so.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::manifest::{FORMAT, MANIFEST, VERSION};
use crate::sys::beneath::{Anchor, Below};
use crate::sys::path::{self, FileKind, Stat, shown};

/// Name of the old manifest in a directory while its results are being replaced.
pub(in crate::stage) const WITHDRAWN: &str = ".runseal-withdrawn.json";
/// Longest manifest that is read, in bytes: half a million results. In memory it takes several times as much, and whoever owns
/// the output may have written it.
pub(in crate::stage) const LONGEST: u64 = 128 << 20;
/// Names of kept results that are told; the manifest has all.
const TOLD: usize = 3;

/// Everything an older manifest lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::stage) struct Older {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::stage) files: Vec<OldEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::stage) directories: Vec<OldEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::stage) symlinks: Vec<OldEntry>,
}

/// One line of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::stage) struct OldEntry {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::stage) size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::stage) key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::stage) etag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::stage) version_id: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    format: String,
    version: u32,
    #[serde(default)]
    files: Vec<OldEntry>,
    #[serde(default)]
    directories: Vec<OldEntry>,
    #[serde(default)]
    symlinks: Vec<OldEntry>,
    replaced: Option<Older>,
}

/// Why a manifest says nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::stage) enum Unreadable {
    #[error("it is of version {0}, which this runseal does not know")]
    Newer(u32),
    #[error("it is not a manifest of runseal")]
    Foreign,
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Older {
    /// Reads a manifest, or what stands in its place while its results are being replaced.
    pub(in crate::stage) fn read(from: impl Read) -> Result<Self, Unreadable> {
        let document: Document = serde_json::from_reader(BufReader::new(from.take(LONGEST))).map_err(|error| {
            match error.io_error_kind() {
                Some(kind) => Unreadable::Io(kind.into()),
                None => Unreadable::Foreign,
            }
        })?;
        match document {
            Document { format, .. } if format != FORMAT => Err(Unreadable::Foreign),
            Document { version, .. } if version > VERSION => Err(Unreadable::Newer(version)),
            Document { replaced: Some(older), .. } => Ok(older),
            Document { files, directories, symlinks, .. } => Ok(Self { files, directories, symlinks }),
        }
    }

    /// Removes from the directory `output` what `present` does not have, or keeps it all.
    pub(in crate::stage) fn retire(
        &self,
        output: &Anchor,
        present: &HashSet<PathBuf>,
        keep: bool,
    ) -> io::Result<Retired> {
        let mut retired = Retired::default();
        for entry in self.files.iter().chain(&self.symlinks) {
            let path = entry.path();
            if present.contains(&path) {
                continue;
            }
            match entry.retire(output, &path, keep)? {
                Fate::Gone => {}
                Fate::Removed => retired.removed += 1,
                Fate::Kept(because) => retired.kept.push((path, because)),
            }
        }
        if !keep {
            self.retire_directories(output, present);
        }
        Ok(retired)
    }

    /// Removes directories that are empty now, the deepest first. One that cannot be removed does no harm.
    fn retire_directories(&self, output: &Anchor, present: &HashSet<PathBuf>) {
        let paths = self.directories.iter().map(OldEntry::path);
        let mut paths: Vec<_> = paths.filter(|path| !present.contains(path) && is_result(path)).collect();
        paths.sort_unstable_by_key(|path| std::cmp::Reverse(path.components().count()));
        for path in paths {
            let _ = path::remove_directory(&output.below(path));
        }
    }
}

/// What became of an older result.
pub(in crate::stage) enum Fate {
    /// It was not there any more.
    Gone,
    Removed,
    Kept(Because),
}

/// Why an older result was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::stage) enum Because {
    /// `--keep-old`.
    Asked,
    /// It is not what the older manifest says.
    Changed,
    /// The older manifest puts it outside of the output.
    Outside,
    /// It may not be removed.
    Denied,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "as asked",
            Self::Changed => "since they are not what the old manifest says",
            Self::Outside => "since the old manifest puts them outside of the output",
            Self::Denied => "since this user may not remove them",
        })
    }
}

/// What became of older results that the new ones do not have.
#[derive(Clone, Debug, Default)]
pub(in crate::stage) struct Retired {
    /// Files and symbolic links that were removed.
    pub(in crate::stage) removed: u64,
    /// Those that were not.
    pub(in crate::stage) kept: Vec<(PathBuf, Because)>,
    /// Why nobody knows which they are.
    pub(in crate::stage) unknown: Option<String>,
}

impl Retired {
    /// What is to be told, a line each.
    pub(in crate::stage) fn told(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.removed > 0 {
            lines.push(format!("results of before that this run does not have were removed: {}", self.removed));
        }
        for because in [Because::Asked, Because::Changed, Because::Outside, Because::Denied] {
            let kept: Vec<_> = self.kept.iter().filter(|(_, why)| *why == because).map(|(path, _)| path).collect();
            if !kept.is_empty() {
                let more = if kept.len() > TOLD { ", ..." } else { "" };
                let names = kept.iter().take(TOLD).map(|path| shown(path)).collect::<Vec<_>>().join(", ");
                let count = kept.len();
                lines.push(format!(
                    "results of before that this run does not have were kept, {because}: {count} ({names}{more})"
                ));
            }
        }
        if let Some(why) = &self.unknown {
            lines.push(format!("the old manifest cannot be read, so that results of before may be left: {why}"));
        }
        lines
    }
}

impl OldEntry {
    pub(in crate::stage) fn path(&self) -> PathBuf {
        decoded(&self.path, self.path_bytes.as_deref()).into()
    }

    fn retire(&self, output: &Anchor, path: &Path, keep: bool) -> io::Result<Fate> {
        if !is_result(path) {
            return Ok(Fate::Kept(Because::Outside));
        }
        let place = output.below(path);
        let removed = path::stat(&place).and_then(|there| self.is(&place, &there)).and_then(|same| {
            Ok(match (same, keep) {
                (false, _) => Fate::Kept(Because::Changed),
                (true, true) => Fate::Kept(Because::Asked),
                (true, false) => {
                    path::remove_file(&place)?;
                    Fate::Removed
                }
            })
        });
        let errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
        match removed.as_ref().err().and_then(errno) {
            Some(Errno::ENOENT) => Ok(Fate::Gone),
            // A link, a file or a mount is where a directory was.
            Some(Errno::ELOOP | Errno::ENOTDIR | Errno::EXDEV) => Ok(Fate::Kept(Because::Changed)),
            Some(Errno::EPERM | Errno::EACCES | Errno::EBUSY) => Ok(Fate::Kept(Because::Denied)),
            _ => removed,
        }
    }

    /// Whether what is there is what this line tells of.
    fn is(&self, place: &Below<'_>, there: &Stat) -> io::Result<bool> {
        Ok(match (&self.target, there.kind) {
            (None, FileKind::File) => self.size == Some(there.size),
            (Some(target), FileKind::Symlink) => {
                path::read_symlink(place)? == decoded(target, self.target_bytes.as_deref())
            }
            _ => false,
        })
    }
}

/// Opens what an output has of older results: the manifest that was withdrawn.
pub(in crate::stage) fn withdrawn(output: &Anchor) -> Result<Option<Older>, Unreadable> {
    match path::open(&output.below(WITHDRAWN)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
        Ok(file) if Stat::of(&file)?.kind != FileKind::File => Err(Unreadable::Foreign),
        Ok(file) => Older::read(file).map(Some),
    }
}

/// Whether a path can be that of a result: below the output, and no name that runseal uses itself.
pub(in crate::stage) fn is_result(path: &Path) -> bool {
    let own = |name: &std::ffi::OsStr| name == MANIFEST || name.as_encoded_bytes().starts_with(b".runseal-");
    let mut parts = path.components();
    let first = matches!(parts.next(), Some(Component::Normal(name)) if !own(name));
    first && parts.all(|part| matches!(part, Component::Normal(_)))
}

pub(in crate::stage) fn decoded(text: &str, base16: Option<&str>) -> OsString {
    match base16.and_then(bytes) {
        Some(bytes) => OsString::from_vec(bytes),
        None => text.into(),
    }
}

fn bytes(base16: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let (pairs, []) = base16.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_of_this_version_or_older_are_read() {
        let read = |text: &str| Older::read(text.as_bytes());
        let line = r#"[{"path": "a", "size": 3, "sha256": "x", "news": 1}]"#;
        let older = read(&format!(r#"{{"format": "runseal-manifest", "version": 1, "files": {line}}}"#)).unwrap();
        assert_eq!((older.files.len(), older.files[0].path(), older.files[0].size), (1, "a".into(), Some(3)));
        let again = read(&format!(
            r#"{{"format": "runseal-manifest", "version": 1, "files": [], "replaced": {}}}"#,
            serde_json::to_string(&older).unwrap()
        ));
        assert_eq!(again.unwrap(), older);
        assert!(matches!(read(r#"{"format": "runseal-manifest", "version": 2}"#), Err(Unreadable::Newer(2))));
        for foreign in ["", "{}", "[]", r#"{"format": "x", "version": 1}"#, r#"{"files": [1]}"#, "\0"] {
            assert!(matches!(read(foreign), Err(Unreadable::Foreign)), "{foreign}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_come_back() {
        let entry = OldEntry { path: "a\u{fffd}".into(), path_bytes: Some("61ff".into()), ..OldEntry::default() };
        assert_eq!(entry.path().as_os_str().as_encoded_bytes(), b"a\xff");
        assert_eq!(["", "0", "0g", "00ff"].map(bytes), [Some(vec![]), None, None, Some(vec![0, 255])]);
    }

    #[test]
    fn paths_of_results_are_below_the_output() {
        for good in ["a", "a/b", "..a", "sub/runseal-manifest.json"] {
            assert!(is_result(Path::new(good)), "{good}");
        }
        for bad in ["", "/", "/a", "..", "a/../b", "../a", ".", MANIFEST, WITHDRAWN, ".runseal-x.partial/a"] {
            assert!(!is_result(Path::new(bad)), "{bad}");
        }
    }
}
