//! What clients send and get: the JSON of the API.

use std::fmt;
use std::path::PathBuf;

use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::table::RunRow;
use crate::run::{Credentials, CredentialsText, ResumeOrder};
use crate::spec::{InputSpec, KmsKey, Region, ResumeSpec, RoleArn, RunId, Sse};
use crate::sys::path::shown;
use crate::units::{ByteSize, ByteSizeError};

/// A number of bytes: a number, or text such as `10G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub ByteSize);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0.0
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.bytes())
    }
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        let size = match text {
            SizeText::Bytes(bytes) => ByteSize(bytes),
            SizeText::Text(text) => text.parse().map_err(|error: ByteSizeError| error.to_string())?,
        };
        if size.0 == 0 { Err("a size of 0 holds nothing".to_owned()) } else { Ok(Self(size)) }
    }
}

/// Permission bits as octal text, such as `0750`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = (3..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).ok().filter(|bits| digits && *bits <= 0o7777);
        bits.map(Self).ok_or_else(|| format!("`{text}` is not a mode: write octal digits, such as \"0750\""))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// User and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// User id
    pub uid: u32,
    /// Group id
    pub gid: u32,
}

/// A run to create
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Name: 1 to 64 of A-Z a-z 0-9 . _ -; made up if absent. Not vol-NAME, which is for volumes
    #[schema(value_type = Option<String>)]
    pub id: Option<RunId>,
    /// Most the scratch may hold: bytes, or text such as "10G"; the node's default if absent
    #[schema(value_type = Option<SizeText>)]
    pub size: Option<Size>,
    /// Memory that names, attributes and extents of its files may take: 512 bytes for a small file
    #[schema(value_type = Option<SizeText>)]
    pub memory: Option<Size>,
    /// Directories for the ciphertext, out of those the node allows; the first of them if absent
    #[schema(value_type = Vec<String>)]
    #[serde(default)]
    pub backing: Vec<PathBuf>,
    /// Where to mount: a free name in one of the node's roots (for root: below it); ROOT/ID if absent
    #[schema(value_type = Option<String>)]
    pub mountpoint: Option<PathBuf>,
    /// Whom the scratch belongs to; the caller if absent. Only root may name somebody else
    pub owner: Option<Owner>,
    /// Permission bits of the root of the scratch, octal; 0700 if absent
    #[schema(value_type = Option<String>, example = "0750")]
    pub mode: Option<Mode>,
    /// Mount options as of mount(8); suid and dev only for root
    #[serde(default)]
    pub options: Vec<String>,
    /// What to copy into `input`, each s3://BUCKET/KEY, s3://BUCKET/PREFIX/ or (only for root) an absolute path, with =REL to
    /// name it there
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Where to publish `output`: s3://BUCKET/PREFIX/ or (only for root) an absolute path
    pub output: Option<String>,
    /// Let results replace what is in the output
    #[serde(default)]
    pub overwrite: bool,
    /// With `overwrite`: keep results of before that these do not have
    #[serde(default)]
    pub keep_old: bool,
    /// Copy what a symbolic link leads to where the link would lead nowhere
    #[serde(default)]
    pub dereference: bool,
    /// Let nothing be in `output` when it is published
    #[serde(default)]
    pub allow_empty: bool,
    /// For root: publish even into a directory that other users may change
    #[serde(default)]
    pub shared_output: bool,
    /// Publish files with set-user-ID and set-group-ID
    #[serde(default)]
    pub keep_set_id: bool,
    /// How to speak to AWS
    #[serde(default)]
    pub aws: AwsRequest,
}

/// How to speak to AWS, as the options of `runseal run` say it
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsRequest {
    /// ARN of a role to take; its session is named after the run
    #[schema(value_type = Option<String>)]
    pub role_arn: Option<RoleArn>,
    /// Profile of the service's AWS configuration files; only for root
    pub profile: Option<String>,
    /// Region; that of the service if absent
    #[schema(value_type = Option<String>)]
    pub region: Option<Region>,
    /// FIPS 140 endpoints
    #[serde(default)]
    pub fips: bool,
    /// Endpoints that have IPv6 as well as IPv4
    #[serde(default)]
    pub dual_stack: bool,
    /// Encryption of results in S3: AES256, aws:kms or aws:kms:dsse; what the bucket says if absent
    #[schema(value_type = Option<String>)]
    pub sse: Option<Sse>,
    /// KMS key for that: ARN, key id or alias/NAME
    #[schema(value_type = Option<String>)]
    pub sse_kms_key_id: Option<KmsKey>,
    /// KMS key that takes part in the key of the run: ARN, key id or alias/NAME
    #[schema(value_type = Option<String>)]
    pub run_key_kms: Option<KmsKey>,
    /// Requests to S3 under way at once, 1 to 1024
    pub concurrency: Option<u16>,
    /// Credentials to use; required of everybody but root unless the node allows its own
    #[schema(value_type = Option<Secret>)]
    pub credentials: Option<ApiCredentials>,
}

/// How to publish again
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// Credentials to use from now on; those of before if absent
    #[schema(value_type = Option<Secret>)]
    pub credentials: Option<ApiCredentials>,
    /// Even if data of the run was lost
    #[serde(default)]
    pub incomplete: bool,
    /// Even if there are no results
    #[serde(default)]
    pub allow_empty: bool,
    /// Let results replace what is in the output
    #[serde(default)]
    pub overwrite: bool,
    /// Keep results of before that these do not have
    #[serde(default)]
    pub keep_old: bool,
    /// Publish what symbolic links into the scratch lead to in their place
    #[serde(default)]
    pub dereference: bool,
    /// For root: even into a directory that other users may change
    #[serde(default)]
    pub shared_output: bool,
    /// With set-user-ID and set-group-ID of files
    #[serde(default)]
    pub keep_set_id: bool,
}

impl PublishRequest {
    /// The same for the family of the run.
    pub fn into_order(self) -> ResumeOrder {
        let Self { incomplete, allow_empty, overwrite, keep_old, dereference, shared_output, keep_set_id, .. } = self;
        let spec = ResumeSpec {
            incomplete,
            allow_empty,
            overwrite,
            keep_old,
            dereference,
            shared_output,
            keep_set_id,
            ..ResumeSpec::default()
        };
        ResumeOrder { credentials: self.credentials.map(|own| own.0), spec }
    }
}

/// Credentials of AWS; never written, logged or shown
#[derive(ToSchema)]
#[allow(dead_code, reason = "a schema only")]
#[schema(as = Credentials)]
#[serde(deny_unknown_fields)]
pub struct Secret<'a> {
    /// Access key id
    access_key_id: &'a str,
    /// Secret access key
    secret_access_key: &'a str,
    /// Session token of temporary credentials
    session_token: Option<&'a str>,
}

/// Credentials that came with a request. What is wrong with them is told without quoting them.
pub struct ApiCredentials(pub Credentials);

impl<'de> Deserialize<'de> for ApiCredentials {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?;
        let credentials: CredentialsText = serde_json::from_str(text.get()).map_err(|_| {
            de::Error::custom(
                "credentials: not an object of the texts access_key_id, secret_access_key and, perhaps, session_token",
            )
        })?;
        Ok(Self(credentials.into()))
    }
}

/// Bytes as a number, or text such as "10G"
#[derive(Deserialize, ToSchema)]
#[schema(as = Size)]
#[serde(untagged, expecting = "a size is a number of bytes, or text such as \"10G\"")]
pub enum SizeText {
    /// Bytes
    Bytes(u64),
    /// With a suffix
    Text(String),
}

/// What a run is doing
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its processes are starting.
    Starting,
    /// Mounted, with all inputs.
    Serving,
    /// Results are being published.
    Publishing,
    /// Publishing failed; `problem` tells why. The results wait for another try.
    Held,
    /// Results are published; the scratch is still there.
    Published,
    /// Being unmounted and wiped.
    Ending,
    /// Over; `outcome` tells how.
    Ended,
}

impl RunState {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 7] =
        [Self::Starting, Self::Serving, Self::Publishing, Self::Held, Self::Published, Self::Ending, Self::Ended];

    /// As clients see it.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| Some(name.as_str()?.to_owned())).unwrap_or_default()
    }
}

/// How a run ended
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunOutcome {
    /// Through the API.
    Ended,
    /// Without this service: unmounted, signalled, or its processes died.
    Gone,
}

/// A run
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RunView {
    /// Name
    #[schema(value_type = String)]
    pub id: RunId,
    /// What it is doing
    pub state: RunState,
    /// How it ended, if it has
    pub outcome: Option<RunOutcome>,
    /// User id the run belongs to; counts against this user's limits
    pub user: u32,
    /// Name of the Docker volume, if it is one
    pub volume: Option<String>,
    /// Where it is mounted
    #[schema(value_type = String)]
    pub mountpoint: PathBuf,
    /// Most the scratch may hold, in bytes
    #[schema(value_type = u64)]
    pub size: Size,
    /// Memory that names and attributes may take, in bytes
    #[schema(value_type = u64)]
    pub memory: Size,
    /// Directories of the ciphertext
    #[schema(value_type = Vec<String>)]
    pub backing: Vec<PathBuf>,
    /// Whom the root of the scratch belongs to
    pub owner: Owner,
    /// Permission bits of the root of the scratch, octal
    #[schema(value_type = String)]
    pub mode: Mode,
    /// Mount options
    pub options: Vec<String>,
    /// What was copied in
    pub inputs: Vec<String>,
    /// Where results go
    pub output: Option<String>,
    /// Why the results are held
    pub problem: Option<String>,
    /// When it started, RFC 3339
    pub started: Option<String>,
    /// Process id of the supervisor
    pub supervisor: Option<u32>,
    /// Process id of the sealed process, which has the key
    pub sealed: Option<u32>,
    /// What the run warned of when it started
    pub warnings: Vec<String>,
}

impl From<&RunRow> for RunView {
    fn from(row: &RunRow) -> Self {
        let (order, mount, processes) =
            (&row.order, row.order.mount(), row.family.as_ref().map(|family| &family.record));
        let (spec, root) = (&order.spec, &mount.root);
        let (uid, gid) = root.owner.unwrap_or_default();
        let input = |input: &InputSpec| format!("{}={}", input.source, shown(&input.target));
        Self {
            id: spec.id.clone(),
            state: row.state(),
            outcome: row.outcome,
            user: order.user,
            volume: order.volume.clone(),
            mountpoint: mount.mountpoint.clone(),
            size: Size(spec.store.size.unwrap_or_default()),
            memory: Size(spec.store.memory.unwrap_or_default()),
            backing: spec.store.backing.clone(),
            owner: Owner { uid, gid },
            mode: Mode(root.mode.unwrap_or_default()),
            options: mount.options.clone(),
            inputs: spec.data.inputs.iter().map(input).collect(),
            output: spec.data.output.as_ref().map(ToString::to_string),
            problem: row.problem.clone(),
            started: processes.map(|record| record.started.clone()),
            supervisor: processes.map(|record| record.supervisor),
            sealed: processes.and_then(|record| record.sealed),
            warnings: row.warnings.clone(),
        }
    }
}

/// The runs of the caller
#[derive(Debug, Serialize, ToSchema)]
pub struct RunList {
    /// By name; all of the node for root
    pub runs: Vec<RunView>,
}

/// How the node is
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, or `degraded`: then `problems` tells why new runs may fail
    pub status: &'static str,
    /// Version of runseal
    pub version: &'static str,
    /// Seconds since the start of the service
    pub uptime: u64,
    /// Live runs
    pub runs: usize,
    /// What stands in the way of new runs
    pub problems: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_text() {
        for (text, bytes) in [("4096", 4096), ("\"10G\"", 10 << 30), ("\"1.5KiB\"", 1536)] {
            assert_eq!(serde_json::from_str::<Size>(text).expect(text).bytes(), bytes);
        }
        for text in ["0", "-1", "\"0\"", "\"x\"", "1.5", "true", "null", "99999999999999999999"] {
            assert!(serde_json::from_str::<Size>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_octal() {
        for (text, bits) in [("0750", 0o750), ("700", 0o700), ("01777", 0o1777)] {
            assert_eq!(text.parse(), Ok(Mode(bits)));
        }
        for text in ["", "8", "7", "0o70", "0999", "17777", "777777", "-750", "+750", "rwx"] {
            assert!(text.parse::<Mode>().is_err(), "{text}");
        }
        assert_eq!(Mode(0o70).to_string(), "0070");
    }

    #[test]
    fn unknown_fields_of_a_request_are_refused() {
        assert!(serde_json::from_str::<RunRequest>("{}").is_ok());
        let error = serde_json::from_str::<RunRequest>("{\"sise\": 1}").err().expect("a typo");
        assert!(error.to_string().contains("sise"), "{error}");
    }
}
