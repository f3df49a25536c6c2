//! Proof, before any work starts, that the run can read its inputs and publish its outputs.

use serde::Serialize;

use crate::spec::InputSpec;
use std::path::PathBuf;

/// Kind of a failed check; the names are those of AWS HealthOmics run failures where one exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// An input does not exist.
    InputUriNotFound,
    /// An input exists but cannot be read, or is of a kind that cannot be staged.
    ImportFailed,
    /// The output cannot be written.
    ExportFailed,
    /// An input changed while it was staged.
    ModifiedInputResource,
    /// The inputs do not fit.
    FileSystemOutOfSpace,
    /// Two inputs claim one path.
    InputConflict,
    /// The output holds files already and replacing them was not allowed.
    OutputNotEmpty,
}

/// One failed check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Kind.
    pub code: Code,
    /// The thing concerned: a path or URI.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

/// Everything that stands in the way of a run; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("preflight failed")]
pub struct Report {
    /// The findings, inputs first, in the order given.
    pub findings: Vec<Finding>,
}

/// One thing to stage, found by preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub source: PathBuf,
    /// Where it goes, relative to the input directory.
    pub target: PathBuf,
    /// What it is.
    pub kind: ItemKind,
}

/// Kind of an [`Item`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Size in bytes when preflight looked.
        size: u64,
    },
    /// A symbolic link, copied as a link.
    Symlink,
}

/// Proof that every input can be read and the output be written. Only [`check`] makes one.
#[derive(Debug)]
pub struct Cleared {
    /// All that is to be staged, parents before children.
    pub(crate) items: Vec<Item>,
    /// Where results go.
    pub(crate) output: Option<PathBuf>,
    /// Whether existing results may be replaced.
    pub(crate) overwrite: bool,
    _proof: (),
}

impl Cleared {
    /// Bytes that will be staged.
    pub fn input_bytes(&self) -> u64 {
        self.items.iter().map(|i| if let ItemKind::File { size } = i.kind { size } else { 0 }).sum()
    }
}

/// Looks at everything, stops at nothing, and answers with the proof or with all that is wrong. `space` is the
/// bytes the scratch can hold.
pub fn check(
    _inputs: &[InputSpec],
    _output: Option<&std::path::Path>,
    _overwrite: bool,
    _space: u64,
) -> Result<Cleared, Report> {
    todo!()
}
