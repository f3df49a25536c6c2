//! Checked descriptions of what to run: parsed once by `cli`, trusted by everything below.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// Name of a run: `[A-Za-z0-9._-]{1,64}`, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// Why a run id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a run id: use 1 to 64 of the characters A-Z a-z 0-9 . _ -")]
pub struct RunIdError(String);

impl RunId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=64).contains(&text.len()) && text.chars().all(allowed) && text != "." && text != ".." {
            Ok(Self(text.to_owned()))
        } else {
            Err(RunIdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for RunId {
    type Error = RunIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.0
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which XTS engine encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// AWS-LC when built in, the portable engine otherwise.
    #[default]
    Auto,
    /// AWS-LC (`EVP_aes_256_xts`).
    AwsLc,
    /// Pure Rust (`xts-mode` over `aes`).
    Portable,
}

/// What to do when memory cannot be locked against swapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryLock {
    /// Lock what the limits allow; warn when something stays unlocked and swap is on.
    #[default]
    Try,
    /// Refuse to start unless all memory that may hold keys or plaintext is locked.
    Require,
}

/// `s3://BUCKET/KEY`: one object, or everything below a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct S3Uri {
    /// Name of the bucket, 3 to 63 characters (S3 User Guide, "Bucket naming rules").
    pub bucket: String,
    /// Key or prefix without the slash after the bucket; empty for the whole bucket.
    pub key: String,
}

impl std::fmt::Display for S3Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// Where data come from or go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Path on this machine.
    Path(PathBuf),
    /// Object or prefix in S3.
    S3(S3Uri),
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// One input: what to copy and where it appears below `$RUNSEAL_INPUT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Where it is, as given.
    pub source: Location,
    /// Relative path below `$RUNSEAL_INPUT`; never absolute, never with `..`.
    pub target: PathBuf,
}

/// Why an input was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InputSpecError {
    /// The source has no last component to name the target by.
    #[error("--input {0}: give it a name in the scratch: --input {0}=NAME")]
    NoName(String),
    /// The target would leave the input directory.
    #[error("--input: `{0}` is not a path below $RUNSEAL_INPUT: it must be relative, not empty and without `..`")]
    BadTarget(String),
    /// A URI this version does not know.
    #[error("--input {0}: only paths of this machine can be staged by this version")]
    Uri(String),
}

impl InputSpec {
    /// Parses `PATH` or `PATH=REL`. A path that itself contains `=` is taken whole if `exists` says there is one.
    pub fn parse(text: &OsStr, exists: impl Fn(&Path) -> bool) -> Result<Self, InputSpecError> {
        let bytes = text.as_bytes();
        if bytes.starts_with(b"s3://") {
            return Err(InputSpecError::Uri(text.display().to_string()));
        }
        let split = bytes.iter().rposition(|&byte| byte == b'=').filter(|_| !exists(Path::new(text)));
        let (source, target) = match split {
            Some(at) => (&bytes[..at], target(OsStr::from_bytes(&bytes[at + 1..]))?),
            None => (bytes, own_name(Path::new(text))?),
        };
        Ok(Self { source: Location::Path(OsStr::from_bytes(source).into()), target })
    }
}

fn own_name(source: &Path) -> Result<PathBuf, InputSpecError> {
    source.file_name().map(PathBuf::from).ok_or_else(|| InputSpecError::NoName(source.display().to_string()))
}

fn target(text: &OsStr) -> Result<PathBuf, InputSpecError> {
    let refuse = || InputSpecError::BadTarget(text.display().to_string());
    let mut target = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => target.push(name),
            Component::CurDir => {}
            _ => return Err(refuse()),
        }
    }
    if target.as_os_str().is_empty() { Err(refuse()) } else { Ok(target) }
}

/// Where and how large the encrypted store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreSpec {
    /// Directories whose file systems receive the ciphertext; empty means the default (`/var/tmp`).
    pub backing: Vec<PathBuf>,
    /// Largest amount of data; `None` means what the backing has free.
    pub size: Option<ByteSize>,
    /// Cipher engine.
    pub engine: EngineChoice,
    /// Memory-lock policy.
    pub memory_lock: MemoryLock,
}

/// A sealed run: `runseal run`.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Name of the run.
    pub id: RunId,
    /// The encrypted store.
    pub store: StoreSpec,
    /// Inputs, in the order given.
    pub inputs: Vec<InputSpec>,
    /// Receives what the command leaves below `$RUNSEAL_OUTPUT`: a directory or a prefix.
    pub output: Option<Location>,
    /// Whether existing files in `output` may be replaced.
    pub overwrite: bool,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
}

/// A plain sealed mount: `runseal mount`.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Name of the run.
    pub id: RunId,
    /// The encrypted store.
    pub store: StoreSpec,
    /// An existing, empty directory.
    pub mountpoint: PathBuf,
    /// Options of `-o`, already split at commas.
    pub options: Vec<String>,
    /// Stay in the foreground.
    pub foreground: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Result<(String, String), InputSpecError> {
        let spec = InputSpec::parse(text.as_ref(), |path| path == Path::new("/data/a=b"))?;
        let Location::Path(source) = spec.source else { panic!("a path") };
        Ok((source.display().to_string(), spec.target.display().to_string()))
    }

    #[test]
    fn inputs_are_a_path_and_perhaps_a_name() {
        for (text, source, target) in [
            ("/data/x.fa", "/data/x.fa", "x.fa"),
            ("data/", "data/", "data"),
            ("/data/x=y/z", "/data/x", "y/z"),
            ("/data/x=./y//z/", "/data/x", "y/z"),
            ("/data/a=b", "/data/a=b", "a=b"),
            ("/data/a=b=c", "/data/a=b", "c"),
            (".=here", ".", "here"),
        ] {
            assert_eq!(input(text), Ok((source.to_owned(), target.to_owned())), "{text}");
        }
        for text in [".", "/", "..", "x=", "x=/abs", "x=../up", "x=a/../b", "s3://bucket/key"] {
            assert!(input(text).is_err(), "{text}");
        }
    }

    #[test]
    fn run_ids_are_file_names_without_surprises() {
        for text in ["a", "run-1", "A.b_c", &"x".repeat(64)] {
            assert!(text.parse::<RunId>().is_ok(), "{text}");
        }
        for text in ["", ".", "..", "a/b", "a b", "@lock", "\u{e4}", &"x".repeat(65)] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }
}
