//! Where data come from and go to: paths of this machine, objects and prefixes of S3.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sys::path::shown;

/// Longest key in bytes (S3 User Guide, "Naming Amazon S3 objects").
const KEY_MAX: usize = 1024;

/// `s3://BUCKET/KEY`: one object, or everything below a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct S3Uri {
    /// Name of the bucket, 3 to 63 characters (S3 User Guide, "Bucket naming rules").
    pub bucket: String,
    /// Key or prefix without the slash after the bucket; empty for the whole bucket.
    pub key: String,
}

/// Why a URI was refused. The messages never repeat what stands behind a `?` or before an `@`: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum S3UriError {
    /// Another scheme.
    #[error("`{0}://` is not known here: use a path of this machine or s3://BUCKET/KEY (in lower case)")]
    Scheme(String),
    /// Not UTF-8.
    #[error("an s3:// URI must be UTF-8, as keys are")]
    NotText,
    /// `user:password@`.
    #[error("an s3:// URI holds no credentials; remove what stands before the `@` and configure a profile or a role")]
    Credentials,
    /// An ARN in place of the bucket.
    #[error(
        "s3://arn:...: ARNs of buckets and access points are not taken; use the bucket's name or the access point's alias"
    )]
    Arn,
    /// Against the naming rules.
    #[error("`{bucket}` cannot be a bucket: {rule}")]
    Bucket {
        /// The name given.
        bucket: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// `?versionId=...` or a presigned URL.
    #[error(
        "{0}?...: query strings are not taken, and a key with `?` cannot be told from one; stage its prefix instead"
    )]
    Query(String),
    /// A key that cannot be a path, or that S3 would not take.
    #[error("{uri}: {problem}")]
    Key {
        /// The URI, made printable.
        uri: String,
        /// What is wrong with its key.
        problem: &'static str,
    },
}

impl S3Uri {
    /// Whether it can only mean everything below: its key is empty or ends with a slash.
    pub fn is_prefix(&self) -> bool {
        self.key.is_empty() || self.key.ends_with('/')
    }

    /// Another key of the same bucket.
    #[must_use]
    pub fn with_key(&self, key: String) -> Self {
        Self { bucket: self.bucket.clone(), key }
    }

    /// What has this name below the prefix.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        self.with_key(format!("{}{name}", self.key))
    }

    /// The last component of the key, or the bucket where there is none.
    pub fn name(&self) -> &str {
        match self.key.trim_end_matches('/').rsplit('/').next() {
            None | Some("") => &self.bucket,
            Some(name) => name,
        }
    }

    /// Everything below it, whatever it was: with a slash behind a key.
    #[must_use]
    pub fn into_prefix(mut self) -> Self {
        if !self.is_prefix() {
            self.key.push('/');
        }
        self
    }
}

impl FromStr for S3Uri {
    type Err = S3UriError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        if scheme != "s3" {
            return Err(S3UriError::Scheme(scheme.to_owned()));
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains('@') {
            return Err(S3UriError::Credentials);
        }
        if bucket.starts_with("arn:") {
            return Err(S3UriError::Arn);
        }
        if let Some((before, _)) = text.split_once('?') {
            return Err(S3UriError::Query(before.escape_debug().to_string()));
        }
        check_bucket(bucket)?;
        let uri = Self { bucket: bucket.to_owned(), key: key.to_owned() };
        match problem_of_key(key) {
            Some(problem) => Err(S3UriError::Key { uri: uri.to_string().escape_debug().to_string(), problem }),
            None => Ok(uri),
        }
    }
}

impl std::fmt::Display for S3Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.key)
    }
}

/// ARN of `resource`: a bucket, or a bucket, a slash and a key. Names of buckets do not tell their `partition` (`aws`,
/// `aws-cn`, `aws-us-gov`).
pub fn s3_arn(partition: &str, resource: &str) -> String {
    format!("arn:{partition}:s3:::{resource}")
}

/// S3 User Guide, "General purpose bucket naming rules". Aliases of access points look like buckets and may be used as
/// such.
fn check_bucket(bucket: &str) -> Result<(), S3UriError> {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    let rule = if bucket.is_empty() {
        "name one: s3://BUCKET/KEY"
    } else if !bucket.chars().all(allowed) {
        "a name has lower-case letters, digits, dots and hyphens only"
    } else if !(3..=63).contains(&bucket.len()) {
        "a name has 3 to 63 characters"
    } else if !end(bucket.chars().next()) || !end(bucket.chars().next_back()) {
        "a name begins and ends with a letter or a digit"
    } else if bucket.contains("..") {
        "a name has no two dots in a row"
    } else if bucket.parse::<std::net::Ipv4Addr>().is_ok() {
        "a name is no IP address"
    } else if bucket.starts_with("xn--") || bucket.starts_with("sthree-") {
        "names beginning with xn-- or sthree- are reserved"
    } else if bucket.ends_with("--x-s3") || bucket.ends_with("--table-s3") || bucket.ends_with(".mrap") {
        "directory buckets, table buckets and multi-Region access points are not taken; use a general purpose bucket"
    } else {
        return Ok(());
    };
    Err(S3UriError::Bucket { bucket: bucket.escape_debug().to_string(), rule })
}

fn problem_of_key(key: &str) -> Option<&'static str> {
    let inner = key.strip_suffix('/').unwrap_or(key);
    if key.len() > KEY_MAX {
        Some("a key has at most 1024 bytes")
    } else if key.chars().any(char::is_control) {
        Some("a key with control characters cannot be listed")
    } else if !key.is_empty() && inner.split('/').any(str::is_empty) {
        Some("a key with an empty component (`//`) has no path; name a prefix without it")
    } else if inner.split('/').any(|part| part == "." || part == "..") {
        Some("a key with the component `.` or `..` has no path; name a prefix without it")
    } else {
        None
    }
}

/// Where data come from or go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// Path on this machine.
    Path(PathBuf),
    /// Object or prefix in S3.
    S3(S3Uri),
}

impl Location {
    /// Parses a path or a URI. What exists as a path (`exists`) is one, whatever it looks like.
    fn parse(text: &OsStr, exists: impl Fn(&Path) -> bool) -> Result<Self, S3UriError> {
        if !is_uri(text) || exists(Path::new(text)) {
            return Ok(Self::Path(text.into()));
        }
        Ok(Self::S3(text.to_str().ok_or(S3UriError::NotText)?.parse()?))
    }

    /// Parses where results go: a directory, or a prefix of a bucket (the slash at its end may be left out).
    pub fn parse_output(text: &OsStr, exists: impl Fn(&Path) -> bool) -> Result<Self, S3UriError> {
        Ok(match Self::parse(text, exists)? {
            Self::S3(uri) => Self::S3(uri.into_prefix()),
            path => path,
        })
    }

    /// The URI, if it is in S3.
    pub fn s3(&self) -> Option<&S3Uri> {
        match self {
            Self::S3(uri) => Some(uri),
            Self::Path(_) => None,
        }
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// For people: control characters and bytes that are no text are escaped.
impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.write_str(&crate::sys::path::shown(path)),
            Self::S3(uri) => uri.fmt(f),
        }
    }
}

/// `scheme://`, RFC 3986 3.1.
fn is_uri(text: &OsStr) -> bool {
    let bytes = text.as_bytes();
    let scheme = bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')).count();
    bytes.first().is_some_and(u8::is_ascii_alphabetic) && bytes[scheme..].starts_with(b"://")
}

/// One input: what to copy and where it appears below `$RUNSEAL_INPUT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    #[error(
        "--input: `{0}` is not a path below $RUNSEAL_INPUT: it must be relative, not empty and without `..` (a key that \
         contains `=` needs a name of its own: --input s3://BUCKET/KEY=NAME)"
    )]
    BadTarget(String),
    /// Not a location in S3.
    #[error("--input: {0}")]
    Uri(#[from] S3UriError),
}

impl InputSpec {
    /// Parses `PATH`, `PATH=REL`, `s3://BUCKET/KEY` or `s3://BUCKET/KEY=REL`, splitting at the last `=`. A path that
    /// itself contains `=` is taken whole if `exists` says there is one; a key never is.
    pub fn parse(text: &OsStr, exists: impl Fn(&Path) -> bool) -> Result<Self, InputSpecError> {
        let bytes = text.as_bytes();
        let split = bytes.iter().rposition(|&byte| byte == b'=').filter(|_| !exists(Path::new(text)));
        // A query string has `=`, too; what is behind it may be a signature and must not be shown as a target.
        let split = split.filter(|&at| !(is_uri(text) && bytes[..at].contains(&b'?')));
        let (source, name) = split.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + 1..])));
        let source = Location::parse(OsStr::from_bytes(source), exists)?;
        let target = match (name, &source) {
            (Some(name), _) => target(OsStr::from_bytes(name))?,
            (None, Location::S3(uri)) => uri.name().into(),
            (None, Location::Path(path)) => own_name(path)?,
        };
        Ok(Self { source, target })
    }
}

fn own_name(source: &Path) -> Result<PathBuf, InputSpecError> {
    source.file_name().map(PathBuf::from).ok_or_else(|| InputSpecError::NoName(shown(source)))
}

fn target(text: &OsStr) -> Result<PathBuf, InputSpecError> {
    let refuse = || InputSpecError::BadTarget(shown(text.as_ref()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Result<(String, String), InputSpecError> {
        let spec = InputSpec::parse(text.as_ref(), |path| path == Path::new("/data/a=b"))?;
        let source = match spec.source {
            Location::Path(path) => path.display().to_string(),
            Location::S3(uri) => uri.to_string(),
        };
        Ok((source, spec.target.display().to_string()))
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
        for text in [".", "/", "..", "x=", "x=/abs", "x=../up", "x=a/../b"] {
            assert!(input(text).is_err(), "{text}");
        }
    }

    #[test]
    fn inputs_are_a_uri_and_perhaps_a_name() {
        for (text, source, target) in [
            ("s3://bucket/key", "s3://bucket/key", "key"),
            ("s3://bucket/a/b/reads.fq.gz", "s3://bucket/a/b/reads.fq.gz", "reads.fq.gz"),
            ("s3://bucket/a/b/", "s3://bucket/a/b/", "b"),
            ("s3://bucket", "s3://bucket/", "bucket"),
            ("s3://bucket/", "s3://bucket/", "bucket"),
            ("s3://bucket/=all", "s3://bucket/", "all"),
            ("s3://bucket/key=other/name", "s3://bucket/key", "other/name"),
            ("s3://bucket/year=2026/x=data", "s3://bucket/year=2026/x", "data"),
            ("s3://bucket/a b/\u{e4}+%20#1", "s3://bucket/a b/\u{e4}+%20#1", "\u{e4}+%20#1"),
        ] {
            assert_eq!(input(text), Ok((source.to_owned(), target.to_owned())), "{text}");
        }
        for text in ["s3://bucket/key=", "s3://bucket/key=/abs", "s3://bucket/key=../up"] {
            assert!(matches!(input(text), Err(InputSpecError::BadTarget(_))), "{text}");
        }
    }

    #[test]
    fn outputs_are_a_directory_or_a_prefix() {
        let output = |text: &str| Location::parse_output(text.as_ref(), |path| path == Path::new("s3://odd/dir"));
        let s3 = |key: &str| Ok(Location::S3(S3Uri { bucket: "bucket".into(), key: key.into() }));
        assert_eq!(output("s3://bucket/results/"), s3("results/"));
        assert_eq!(output("s3://bucket/results"), s3("results/"));
        assert_eq!(output("s3://bucket/a=b"), s3("a=b/"));
        assert_eq!(output("s3://bucket"), s3(""));
        assert_eq!(output("results"), Ok(Location::Path("results".into())));
        assert_eq!(output("s3://odd/dir"), Ok(Location::Path("s3://odd/dir".into())), "there is such a path");
        assert_eq!(output("a:b://c"), Ok(Location::Path("a:b://c".into())), "no scheme");
        assert!(matches!(output("gs://bucket/x"), Err(S3UriError::Scheme(scheme)) if scheme == "gs"));
    }

    #[test]
    fn uris_follow_the_naming_rules() {
        for bucket in ["abc", "a-b.c1", "1st", &"x".repeat(63), "alias-abc123-s3alias", "amzn-s3-demo-bucket"] {
            let uri: S3Uri = format!("s3://{bucket}/k").parse().expect(bucket);
            assert_eq!((uri.bucket.as_str(), uri.key.as_str()), (bucket, "k"));
        }
        let long = "x".repeat(64);
        for (bucket, word) in [
            ("", "name one"),
            ("ab", "3 to 63"),
            (&long, "3 to 63"),
            ("Bucket", "lower-case"),
            ("under_score", "lower-case"),
            ("a\u{e4}b", "lower-case"),
            ("-ab", "begins and ends"),
            ("ab.", "begins and ends"),
            ("a..b", "two dots"),
            ("192.168.5.4", "IP address"),
            ("xn--abc", "reserved"),
            ("data--use1-az4--x-s3", "directory buckets"),
        ] {
            let error = format!("s3://{bucket}/k").parse::<S3Uri>().expect_err(bucket).to_string();
            assert!(error.contains(word), "{bucket}: {error}");
        }
    }

    #[test]
    fn uris_follow_the_rules_of_keys() {
        let longest = "k".repeat(KEY_MAX);
        for key in ["", "a", "a/", "a/b", "...", "a/.b", "~", "a\u{a0}b", &longest] {
            assert_eq!(format!("s3://bucket/{key}").parse::<S3Uri>().expect(key).key, key);
        }
        let too_long = "k".repeat(KEY_MAX + 1);
        for (key, word) in [
            ("/", "empty component"),
            ("/a", "empty component"),
            ("a//b", "empty component"),
            ("a//", "empty component"),
            (".", "`.` or `..`"),
            ("a/../b", "`.` or `..`"),
            ("a/..", "`.` or `..`"),
            ("a/./", "`.` or `..`"),
            ("a\nb", "control"),
            ("a\0b", "control"),
            (&too_long, "1024 bytes"),
        ] {
            let error = format!("s3://bucket/{key}").parse::<S3Uri>().expect_err(key).to_string();
            assert!(error.contains(word) && !error.contains(['\n', '\0']), "{key:?}: {error}");
        }
    }

    #[test]
    fn refusals_do_not_repeat_secrets() {
        for text in [
            "s3://AKIAIOSFODNN7EXAMPLE:hush@bucket/key",
            "s3://bucket/key?X-Amz-Signature=hush",
            "s3://bucket/key?X-Amz-Credential=a&X-Amz-Signature=hush=x",
            "s3://arn:aws:s3:eu-central-1:1:accesspoint/hush",
            "https://bucket.s3.amazonaws.com/key?X-Amz-Signature=hush",
        ] {
            let error = input(text).expect_err(text).to_string();
            assert!(!error.contains("hush"), "{error}");
        }
        let invalid = OsStr::from_bytes(b"s3://bucket/\xff");
        assert!(matches!(InputSpec::parse(invalid, |_| false), Err(InputSpecError::Uri(S3UriError::NotText))));
    }
}
