//! What goes into a scratch before its purpose, and what comes out of it behind.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{AuditSpec, AwsSpec, InputSpec, KmsKey, Location, Sse};

/// Data of a run. The default is nothing: then there is nothing to fetch and nothing to publish.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSpec {
    /// Inputs, in the order given.
    pub inputs: Vec<InputSpec>,
    /// Receives what is left below `output` of the scratch: a directory or a prefix.
    pub output: Option<Location>,
    /// Whether existing files in `output` may be replaced.
    pub overwrite: bool,
    /// How links and results of before are treated.
    pub rules: StagingRules,
    /// In whose name inputs are read and results written on this machine; `None` means the user of the process.
    pub on_behalf: Option<Identity>,
    /// How to speak to AWS, if need be.
    pub aws: AwsSpec,
    /// The audit trail, if one is to be kept.
    pub audit: Option<AuditSpec>,
}

impl DataSpec {
    /// Whether anything of it needs AWS: a location in S3, a role, or a run key from KMS.
    pub fn uses_aws(&self) -> bool {
        let remote = |location: &Location| location.s3().is_some();
        self.inputs.iter().any(|input| remote(&input.source))
            || self.output.as_ref().is_some_and(remote)
            || self.aws.role.is_some()
            || self.aws.run_key.is_some()
    }

    /// Whether there is none.
    pub fn is_nothing(&self) -> bool {
        self.inputs.is_empty() && self.output.is_none() && !self.uses_aws()
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

/// Results that are visible in an output without a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// The output: a path or a URI.
    pub output: String,
    /// How many files, links or objects.
    pub entries: u64,
    /// The first of them.
    pub first: String,
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, entries, first } = self;
        write!(f, "{entries} of its results are in {output}, without a manifest; the first is {first}")
    }
}
