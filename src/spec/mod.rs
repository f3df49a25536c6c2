//! Checked descriptions of what to run: parsed once by `cli`, trusted by everything below.

mod arn;
mod aws;
mod credentials;
mod data;
mod isolate;
mod location;
mod rescue;
mod run;

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::arn::{Arn, partition_of};
pub use self::aws::{
    AuditDestination, AuditSpec, AwsNameError, AwsSpec, EncryptionError, KmsKey, Region, RoleArn, Sse,
};
pub use self::credentials::{Credentials, CredentialsText};
pub use self::data::{DataSpec, Identity, Remains, ResumeSpec, StagingRules};
pub use self::isolate::{CommandRights, Isolate, IsolateError};
pub use self::location::{InputSpec, InputSpecError, Location, S3Uri, S3UriError, s3_arn};
pub use self::rescue::{LostWrites, OnFailure, OnHold, OnHoldError, RescueSpec, SAVED, SavePattern, SavePatternError};
pub use self::run::{Argv, CommandSpec, Foreground, NoProgram, Purpose, RootSpec, RunSpec, ServeSpec};
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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
