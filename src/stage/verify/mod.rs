//! Published results against their manifest. Whoever may write to the output may have written the manifest too: nothing
//! outside of the output is looked at, whatever it says, and only a manifest whose hash was kept elsewhere proves anything.

pub(super) mod objects;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::aws::CallError;
use crate::stage::pool;
use crate::stage::results::manifest::{FORMAT, MANIFEST, Name, VERSION, name};
use crate::stage::results::older::{LONGEST, decoded, is_result};
use crate::sys::beneath::Anchor;
use crate::sys::path::{self, FileKind, Stat, shown};
use crate::units::hex;
use crate::units::text::Shown;

/// How results are checked.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Another place of the manifest than in the output.
    pub manifest: Option<PathBuf>,
    /// SHA-256 that the manifest must have, in hexadecimal digits.
    pub manifest_sha256: Option<String>,
    /// Whether there may be more than the manifest lists.
    pub allow_extra: bool,
    /// In S3: whether the checksums that S3 keeps are compared, and nothing is read.
    pub stored_checksums: bool,
}

/// Why results could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no manifest, or it cannot be read.
    #[error(
        "{}: cannot be read: {source}; name a published output, or with --manifest where its manifest is",
        Shown(place)
    )]
    Unreadable {
        /// The manifest or the output.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// What is there vouches for nothing.
    #[error("{}: {problem}", Shown(place))]
    Unfit {
        /// The manifest.
        place: String,
        /// Why it does not.
        problem: String,
    },
    /// AWS refused.
    #[error("reading {}: {source}", Shown(place))]
    Remote {
        /// The object.
        place: String,
        /// What AWS said.
        source: Box<CallError>,
    },
}

/// What is wrong with one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// It is not what the manifest says.
    Changed,
    /// It is not there.
    Missing,
    /// The manifest does not list it.
    Extra,
    /// It could not be looked at.
    Unreadable,
    /// The manifest puts it outside of the output, lists it twice, or tells too little of it.
    Unsafe,
}

impl Problem {
    /// The name, as it stands in JSON too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Unreadable => "unreadable",
            Self::Unsafe => "unsafe",
        }
    }
}

/// One thing that is not as the manifest says.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// What is wrong.
    pub problem: Problem,
    #[serde(flatten)]
    name: Name,
    /// More about it, for people.
    pub detail: String,
}

impl Difference {
    pub(in crate::stage) fn new(problem: Problem, path: &Path, detail: impl Into<String>) -> Self {
        Self { problem, name: name(path), detail: detail.into() }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}  {}: {}", self.problem.name(), shown(&self.name.path()), Shown(&self.detail))
    }
}

/// How a check of results came out.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// The output.
    pub output: String,
    /// The run that published, as the manifest says.
    pub run: String,
    /// When, as the manifest says.
    pub created: String,
    /// SHA-256 of the manifest.
    pub manifest_sha256: String,
    /// Whether contents were read; otherwise only checksums that S3 keeps were compared.
    pub contents_read: bool,
    /// Files the manifest lists.
    pub files: u64,
    /// Those that are as it says.
    pub verified: u64,
    /// Bytes in these.
    pub bytes: u64,
    /// Results that were published although data of them was lost, as the manifest says.
    pub incomplete: u64,
    /// What is not as it says.
    pub differences: Vec<Difference>,
}

impl Verification {
    /// Whether something differs.
    pub fn differs(&self) -> bool {
        self.differences.iter().any(|found| found.problem != Problem::Unreadable)
    }
}

/// A manifest, as far as it is compared.
#[derive(Deserialize)]
pub(in crate::stage) struct Document {
    format: String,
    version: u32,
    #[serde(default)]
    run: String,
    #[serde(default)]
    created: String,
    #[serde(default)]
    withdrawn: bool,
    #[serde(default)]
    pub(in crate::stage) files: Vec<Line>,
    #[serde(default)]
    pub(in crate::stage) directories: Vec<Line>,
    #[serde(default)]
    symlinks: Vec<Line>,
    #[serde(default)]
    incomplete: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    kept: Vec<Line>,
}

/// One of its lines.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(in crate::stage) struct Line {
    path: String,
    path_bytes: Option<String>,
    pub(in crate::stage) size: Option<u64>,
    sha256: String,
    target: String,
    target_bytes: Option<String>,
    pub(in crate::stage) key: Option<String>,
    pub(in crate::stage) crc64nvme: Option<String>,
}

impl Line {
    pub(in crate::stage) fn path(&self) -> PathBuf {
        decoded(&self.path, self.path_bytes.as_deref()).into()
    }

    /// What is wrong with contents of this size and hash, if anything is.
    pub(in crate::stage) fn differs(&self, size: u64, hash: Sha256) -> Option<String> {
        self.differs_in_size(size).or_else(|| {
            let found = hex(&hash.finalize());
            (found != self.sha256).then(|| format!("its SHA-256 is {found}, the manifest says {}", self.sha256))
        })
    }

    pub(in crate::stage) fn differs_in_size(&self, size: u64) -> Option<String> {
        match self.size {
            Some(wanted) if wanted == size => None,
            Some(wanted) => Some(format!("it has {size} bytes, the manifest says {wanted}")),
            None => Some("the manifest tells no size".to_owned()),
        }
    }
}

/// A manifest that was read, and what is wrong with the paths in it.
pub(in crate::stage) struct ManifestView {
    pub(in crate::stage) document: Document,
    sha256: String,
    /// Every path that may be there: what is listed, and the directories above.
    known: HashSet<PathBuf>,
    pub(in crate::stage) unsafe_lines: Vec<Difference>,
}

impl ManifestView {
    /// Reads what is at `place`.
    pub(in crate::stage) fn read(place: &str, from: impl Read, demands: &Demands) -> Result<Self, VerifyError> {
        let unfit = |problem: String| VerifyError::Unfit { place: place.to_owned(), problem };
        let mut from = BufReader::new(Hashing { from: from.take(LONGEST), hash: Sha256::new() });
        let read = serde_json::from_reader::<_, Document>(&mut from);
        let document = read.map_err(|error| match error.io_error_kind() {
            Some(kind) => VerifyError::Unreadable { place: place.to_owned(), source: kind.into() },
            None => unfit(format!("it is not a manifest of runseal: {error}")),
        })?;
        let sha256 = hex(&from.into_inner().hash.finalize());
        match &demands.manifest_sha256 {
            Some(wanted) if *wanted != sha256 => {
                return Err(unfit(format!("it is another manifest: its SHA-256 is {sha256}, not {wanted}")));
            }
            _ => {}
        }
        match document {
            Document { ref format, .. } if format != FORMAT => Err(unfit("it is not a manifest of runseal".into())),
            Document { version, .. } if version > VERSION => {
                Err(unfit(format!("it is of version {version}, which this runseal does not know; use a newer one")))
            }
            Document { withdrawn: true, .. } => {
                Err(unfit("it vouches for nothing: its results are being replaced, or that was interrupted".into()))
            }
            document => Ok(Self::of(document, sha256)),
        }
    }

    fn of(mut document: Document, sha256: String) -> Self {
        let (mut known, mut unsafe_lines) = (HashSet::new(), Vec::new());
        for lines in [&mut document.files, &mut document.directories, &mut document.symlinks] {
            lines.retain(|line| {
                let path = line.path();
                let problem = match () {
                    () if !is_result(&path) => "the manifest puts it outside of the output",
                    () if !known.insert(path.clone()) => "the manifest lists it twice",
                    () => return true,
                };
                unsafe_lines.push(Difference::new(Problem::Unsafe, &path, problem));
                false
            });
        }
        known.extend(document.kept.iter().map(Line::path));
        for path in known.iter().cloned().collect::<Vec<_>>() {
            let above = path.ancestors().skip(1).take_while(|above| !above.as_os_str().is_empty());
            // What is above a path that is known was added with the first of them.
            known.extend(above.map(Path::to_owned));
        }
        Self { document, sha256, known, unsafe_lines }
    }

    /// Results of before that were left in the output.
    pub(in crate::stage) fn kept(&self) -> impl Iterator<Item = PathBuf> {
        self.document.kept.iter().map(Line::path)
    }

    fn knows(&self, path: &Path) -> bool {
        self.known.contains(path)
    }

    /// The end of a check that has found `differences`, of files whose sizes are `bytes` together.
    pub(in crate::stage) fn verification(
        self,
        output: String,
        contents_read: bool,
        found: Tally,
        demands: &Demands,
    ) -> Verification {
        let Document { run, created, incomplete, files, .. } = self.document;
        let mut differences = [self.unsafe_lines, found.differences].concat();
        if demands.allow_extra {
            differences.retain(|found| found.problem != Problem::Extra);
        }
        differences.sort_by_key(|found| (found.problem, found.name.path()));
        Verification {
            output,
            run,
            created,
            manifest_sha256: self.sha256,
            contents_read,
            files: files.len() as u64,
            verified: found.verified,
            bytes: found.bytes,
            incomplete: incomplete.len() as u64,
            differences,
        }
    }
}

/// What a check has found so far.
#[derive(Default)]
pub(in crate::stage) struct Tally {
    pub(in crate::stage) verified: u64,
    pub(in crate::stage) bytes: u64,
    pub(in crate::stage) differences: Vec<Difference>,
}

impl Tally {
    /// Takes in how a file came out.
    pub(in crate::stage) fn file(&mut self, line: &Line, result: Result<(), (Problem, String)>) {
        match result {
            Ok(()) => {
                self.verified += 1;
                self.bytes += line.size.unwrap_or(0);
            }
            Err((problem, detail)) => self.differences.push(Difference::new(problem, &line.path(), detail)),
        }
    }
}

/// Reads the manifest that `demands` names instead of the one in the output, if it names one.
pub(in crate::stage) fn other_manifest(demands: &Demands) -> Option<Result<ManifestView, VerifyError>> {
    let path = demands.manifest.as_deref()?;
    let place = path.to_string_lossy().into_owned();
    let file = File::open(path).map_err(|source| VerifyError::Unreadable { place: place.clone(), source });
    Some(file.and_then(|file| ManifestView::read(&place, file, demands)))
}

/// Compares the directory `output` with its manifest. No link in it is followed.
///
/// # Errors
/// The output or its manifest cannot be read, or it is no manifest.
pub fn directory(output: &Path, demands: &Demands) -> Result<Verification, VerifyError> {
    let at = |name: &str| output.join(name).to_string_lossy().into_owned();
    let top = Anchor::follow(output).map_err(|source| VerifyError::Unreadable { place: at(""), source })?;
    let top = Top(top);
    let listed = match other_manifest(demands) {
        Some(listed) => listed?,
        None => {
            let manifest = top.file(Path::new(MANIFEST));
            let manifest = manifest.map_err(|source| VerifyError::Unreadable { place: at(MANIFEST), source })?;
            ManifestView::read(&at(MANIFEST), manifest, demands)?
        }
    };
    let found = Mutex::new(Tally::default());
    let next = AtomicUsize::new(0);
    let files = &listed.document.files;
    let compared = pool::run(
        || files.get(next.fetch_add(1, Ordering::Relaxed)),
        |buffer, line| {
            let result = top.compare(buffer, line);
            found.lock().file(line, result);
            Ok(())
        },
    );
    debug_assert!(compared.is_ok(), "no job of these fails");
    let mut found = found.into_inner();
    for line in &listed.document.symlinks {
        found.differences.extend(top.other(line, FileKind::Symlink));
    }
    for line in &listed.document.directories {
        found.differences.extend(top.other(line, FileKind::Directory));
    }
    top.extra(&listed, &mut found.differences);
    Ok(listed.verification(at(""), true, found, demands))
}

/// The directory that is looked at, held open.
struct Top(Anchor);

impl Top {
    fn file(&self, path: &Path) -> io::Result<File> {
        let place = self.0.below(path);
        // Opening a FIFO or a device may do something.
        if path::stat(&place)?.kind != FileKind::File {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = path::open(&place)?;
        match Stat::of(&file)?.kind {
            FileKind::File => Ok(file),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
        }
    }

    fn compare(&self, buffer: &mut [u8], line: &Line) -> Result<(), (Problem, String)> {
        let file = self.file(&line.path()).map_err(problem)?;
        let size = Stat::of(&file).map_err(problem)?.size;
        if let Some(differs) = line.differs_in_size(size) {
            return Err((Problem::Changed, differs));
        }
        // No more than that: a file that somebody goes on writing to would have no end.
        let (mut file, mut hash, mut read) = (file.take(size + 1), Sha256::new(), 0);
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(got) => {
                    hash.update(&buffer[..got]);
                    read += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(problem(error)),
            }
        }
        line.differs(read, hash).map_or(Ok(()), |differs| Err((Problem::Changed, differs)))
    }

    /// What is wrong with a directory or a symbolic link.
    fn other(&self, line: &Line, kind: FileKind) -> Option<Difference> {
        let path = line.path();
        let place = self.0.below(&path);
        let looked = path::stat(&place).and_then(|there| {
            let target = || {
                Ok::<_, io::Error>(path::read_symlink(&place)? == decoded(&line.target, line.target_bytes.as_deref()))
            };
            Ok(match there.kind {
                found if found != kind => Some("it is something else"),
                FileKind::Symlink if !target()? => Some("it leads elsewhere"),
                _ => None,
            })
        });
        match looked {
            Ok(None) => None,
            Ok(Some(detail)) => Some(Difference::new(Problem::Changed, &path, detail)),
            Err(error) => {
                let (problem, detail) = problem(error);
                Some(Difference::new(problem, &path, detail))
            }
        }
    }

    /// Adds what the manifest does not list. Of a directory that it does not, only the directory itself.
    fn extra(&self, listed: &ManifestView, differences: &mut Vec<Difference>) {
        let mut waiting = vec![PathBuf::new()];
        while let Some(below) = waiting.pop() {
            let entries = match path::list(&self.0.below(&below)) {
                Ok(entries) => entries,
                // Told already, where the manifest lists it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    differences.push(Difference::new(Problem::Unreadable, &below, error.to_string()));
                    continue;
                }
            };
            for name in entries {
                let path = below.join(name);
                match path == Path::new(MANIFEST) {
                    true => {}
                    false if !listed.knows(&path) => {
                        differences.push(Difference::new(Problem::Extra, &path, "the manifest does not list it"));
                    }
                    false => {
                        let found = path::stat(&self.0.below(&path));
                        if found.is_ok_and(|found| found.kind == FileKind::Directory) {
                            waiting.push(path);
                        }
                    }
                }
            }
        }
    }
}

/// What an error of looking at a result means.
fn problem(error: io::Error) -> (Problem, String) {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => (Problem::Missing, "it is not there".to_owned()),
        Some(Errno::ELOOP | Errno::ENOTDIR) => {
            (Problem::Changed, "a link or a file is where a directory or a file was".to_owned())
        }
        None if error.kind() == io::ErrorKind::InvalidInput => (Problem::Changed, error.to_string()),
        _ => (Problem::Unreadable, error.to_string()),
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(buffer)?;
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}
