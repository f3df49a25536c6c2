//! What is told of a run, in its report and by its events.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether the family belongs to `runseal run` or to `runseal mount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `runseal run`.
    Run,
    /// `runseal mount`.
    Mount,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Checking that inputs can be read and the output written.
    Preflight,
    /// Making key, store and mount.
    Seal,
    /// Copying the inputs in.
    Fetch,
    /// The command is running.
    Command,
    /// `runseal mount` is serving.
    Serving,
    /// `runseal mount` was unmounted, and goes on for open files or for copies of the mount in other namespaces.
    Unmounted,
    /// Copying the results out.
    Publish,
    /// Publishing failed; the results wait for `resume` or `end --discard`.
    Held,
    /// Unmounting and wiping.
    End,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The command succeeded and its results are published.
    Published,
    /// The same, although data was lost: somebody wanted them as they are.
    Incomplete,
    /// The command succeeded; no output was asked for. Or a mount ended as asked.
    Succeeded,
    /// The command failed; nothing was published.
    CommandFailed,
    /// Something stood in the way before the command started.
    Refused,
    /// The run failed after the command had started.
    Failed,
    /// A signal ended the run; nothing was published.
    Interrupted,
    /// The operator gave the results up.
    Discarded,
    /// The results could not be published, and were not held any longer.
    Unpublished,
    /// The sealed process died.
    Lost,
}

/// One input, as given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFacts {
    /// Path or URI.
    pub source: String,
    /// Below `$RUNSEAL_INPUT`.
    pub target: String,
}

/// What preflight learnt from AWS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwsFacts {
    /// ARN of the caller.
    pub identity: Option<String>,
    /// Region of the configuration.
    pub region: String,
    /// ARNs of the KMS keys of inputs, output and run.
    pub keys: Vec<String>,
    /// How results are encrypted at rest.
    pub result_encryption: Option<String>,
}

/// The KMS key that takes part in the run key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunKeyFacts {
    /// Its ARN.
    pub key: String,
    /// Request id of `GenerateDataKey`: CloudTrail has it too.
    pub request_id: String,
}

/// The audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditFacts {
    /// The file, or `journald`.
    pub destination: String,
    /// Number of its last line, once the run has ended.
    pub lines: Option<u64>,
    /// Hash of its last line, for `runseal audit verify --head`.
    pub head: Option<String>,
    /// Why it has a gap, if it has.
    pub problem: Option<String>,
}

/// What is known once key and store exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealFacts {
    /// Cipher engine.
    pub engine: String,
    /// Where the key material lives.
    pub key_memory: String,
    /// Whether all memory of the sealed process is locked against swapping.
    pub memory_locked: bool,
    /// Directories that hold the ciphertext, as far as they are text.
    pub backing: Vec<String>,
    /// Bytes the scratch may hold.
    pub size: u64,
}

/// What the scratch could not keep: in reports and `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossFacts {
    /// Files with something missing, those that could not be made among them.
    pub files: u64,
    /// Bytes that were accepted, or tried, and are not there.
    pub bytes: u64,
    /// Files to which a write was refused since the scratch was full, or which could not be made.
    pub refused: u64,
    /// The files, once the command has ended; at most 1000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub list: Vec<LostFile>,
}

/// A file with something missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostFile {
    /// Path below the root of the scratch; of a removed file, its name.
    pub path: String,
    /// Ranges of bytes that are not there: first, and first behind it.
    pub lost: Vec<[u64; 2]>,
    /// Whether a write was refused since the scratch was full.
    pub refused: bool,
    /// Whether it was read while something was missing.
    pub read: bool,
    /// Whether it has this path still.
    pub exists: bool,
}

impl fmt::Display for LostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: ", self.path, if self.exists { "" } else { " (not there now)" })?;
        let bytes: u64 = self.lost.iter().map(|[start, end]| end - start).sum();
        match (bytes, self.refused) {
            _ if self.read && !self.exists => f.write_str("it was read while data was missing"),
            (0, false) => f.write_str("it was read while data was missing"),
            (0, true) => f.write_str("the scratch was full when it was written"),
            (bytes, _) => write!(f, "{bytes} bytes are lost"),
        }
    }
}
