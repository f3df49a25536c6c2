//! Checked descriptions of what to run: parsed once by `cli`, trusted by everything below.

mod aws;
mod isolate;
mod location;
mod rescue;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::aws::{
    AuditDestination, AuditSpec, AwsNameError, AwsSpec, EncryptionError, KmsKey, Region, RoleArn, Sse,
};
pub use self::isolate::{CommandRights, Isolate, IsolateError};
pub use self::location::{InputSpec, InputSpecError, Location, S3Uri, S3UriError, s3_arn};
pub use self::rescue::{LostWrites, OnFailure, OnHold, OnHoldError, RescueSpec, SAVED, SavePattern, SavePatternError};
use crate::units::ByteSize;

/// Name of a run: `[A-Za-z0-9._-]{1,64}`, not `.` or `..`, nor `mnt`, the place where runs find their scratch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

/// Why a run id was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a run id: use 1 to 64 of the characters A-Z a-z 0-9 . _ -, but not `mnt`")]
pub struct RunIdError(String);

impl RunId {
    /// A new name: 16 hexadecimal digits at random. CloudTrail shows it as encryption context, so it is to differ from
    /// those of earlier runs too.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> std::io::Result<Self> {
        Ok(Self(format!("{:016x}", getrandom::u64()?)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RunId {
    type Err = RunIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=64).contains(&text.len()) && text.chars().all(allowed) && ![".", "..", "mnt"].contains(&text) {
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

/// Whether the machine's idle processors may be kept from deep sleep while requests come one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CpuLatency {
    /// Keep them from it during bursts, where `/dev/cpu_dma_latency` may be opened: fast, and costs power.
    #[default]
    Auto,
    /// Leave them alone.
    Leave,
}

/// What the command finds at `/tmp` and `/var/tmp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TmpPolicy {
    /// The scratch: many programs write there whatever `TMPDIR` says.
    #[default]
    Scratch,
    /// The directories of the machine, which are not sealed.
    Host,
}

/// Where and how large the encrypted store is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreSpec {
    /// Directories whose file systems receive the ciphertext; empty means the default (`/var/tmp`).
    pub backing: Vec<PathBuf>,
    /// Largest amount of data; `None` means what the backing has free.
    pub size: Option<ByteSize>,
    /// Memory that names, attributes and everything else that is known of files may take; `None` means an eighth of what
    /// there is.
    pub memory: Option<ByteSize>,
    /// Cipher engine.
    pub engine: EngineChoice,
    /// Memory-lock policy.
    pub memory_lock: MemoryLock,
    /// Policy for idle processors.
    pub cpu_latency: CpuLatency,
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
    /// How links and results of before are treated.
    pub rules: StagingRules,
    /// In whose name inputs are read and results written on this machine; `None` means the user of the process.
    pub on_behalf: Option<Identity>,
    /// How to speak to AWS, if need be.
    pub aws: AwsSpec,
    /// What the command finds at `/tmp` and `/var/tmp`.
    pub tmp: TmpPolicy,
    /// The audit trail, if one is to be kept.
    pub audit: Option<AuditSpec>,
    /// Where the JSON report goes.
    pub report: Option<PathBuf>,
    /// Whether report and audit trail tell `command`: arguments may be secret.
    pub record_command: bool,
    /// What becomes of it in trouble.
    pub rescue: RescueSpec,
    /// As whom the command runs, and what it may.
    pub rights: CommandRights,
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
}

impl RunSpec {
    /// Whether anything of it needs AWS: a location in S3, a role, or a run key from KMS.
    pub fn uses_aws(&self) -> bool {
        let remote = |location: &Location| location.s3().is_some();
        self.inputs.iter().any(|input| remote(&input.source))
            || self.output.as_ref().is_some_and(remote)
            || self.aws.role.is_some()
            || self.aws.run_key.is_some()
    }
}

/// How a held run is to publish where that differs from what it was started with: `runseal resume`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResumeSpec {
    /// Even if data of the run was lost.
    pub incomplete: bool,
    /// Even if there are no results.
    pub allow_empty: bool,
    /// Replacing what is in the output.
    pub overwrite: bool,
    /// To another output; an absolute path or a prefix.
    pub output: Option<Location>,
    /// With another encryption at rest, in S3.
    pub sse: Option<Sse>,
    /// The KMS key for that.
    pub sse_kms_key: Option<KmsKey>,
    /// Copying what links into the scratch lead to.
    pub dereference: bool,
    /// Keeping results of before that these do not replace.
    pub keep_old: bool,
    /// As root into a directory that other users may change.
    pub shared_output: bool,
    /// With the set-user-ID and set-group-ID of files.
    pub keep_set_id: bool,
}

impl ResumeSpec {
    /// How results are treated in this attempt and in later ones, when `rules` were those so far.
    pub fn rules(&self, rules: StagingRules) -> StagingRules {
        StagingRules {
            dereference: self.dereference || rules.dereference,
            keep_old: self.keep_old || rules.keep_old,
            allow_empty: self.allow_empty || rules.allow_empty,
            shared_output: self.shared_output || rules.shared_output,
            keep_set_id: self.keep_set_id || rules.keep_set_id,
        }
    }
}

/// How data is treated on its way in and out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StagingRules {
    /// Whether what a symbolic link leads to is copied where the link itself would lead nowhere.
    pub dereference: bool,
    /// Whether replacing results leaves those of before in the output that the new ones do not replace.
    pub keep_old: bool,
    /// Whether a command may leave its output empty.
    pub allow_empty: bool,
    /// Whether root publishes into a directory that other users may change.
    pub shared_output: bool,
    /// Whether files keep set-user-ID and set-group-ID when they are published.
    pub keep_set_id: bool,
}

/// Somebody in whose name files of this machine are read and written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
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
    /// The root directory of the scratch.
    pub root: RootSpec,
    /// What whoever asked for the mount wants to find in its state.
    pub note: Option<serde_json::Value>,
    /// What is copied in before the mount is ready, and out when somebody asks.
    pub staging: Option<StagingSpec>,
}

/// Data of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagingSpec {
    /// Inputs, in the order given.
    pub inputs: Vec<InputSpec>,
    /// Receives what is below `output`: a directory or a prefix.
    pub output: Option<Location>,
    /// Whether existing files in `output` may be replaced.
    pub overwrite: bool,
    /// How links and results of before are treated.
    #[serde(default)]
    pub rules: StagingRules,
    /// How to speak to AWS, if need be.
    pub aws: AwsSpec,
    /// In whose name inputs are read and results written on this machine; `None` means the user of the process.
    #[serde(default)]
    pub on_behalf: Option<Identity>,
}

/// The root directory of a scratch, and what may be put below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootSpec {
    /// User and group it belongs to; `None` means those of the process that mounts.
    pub owner: Option<(u32, u32)>,
    /// Permission bits; `None` means 0755.
    pub mode: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_are_file_names_without_surprises() {
        for text in ["a", "run-1", "A.b_c", &"x".repeat(64)] {
            assert!(text.parse::<RunId>().is_ok(), "{text}");
        }
        let (one, other) = (RunId::random().expect("random"), RunId::random().expect("random"));
        assert!(one != other && one.as_str().parse() == Ok(one.clone()), "{one} {other}");
        for text in ["", ".", "..", "mnt", "a/b", "a b", "@lock", "\u{e4}", &"x".repeat(65)] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }
}
