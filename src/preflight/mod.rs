//! Proof, before any work starts, that the run can read its inputs and publish its outputs.
//!
//! The checks do what the run will do later, in small: every file is opened for reading, a file is made in the
//! output. They ask the system instead of guessing from permission bits, and they all run before anything is said.

mod inputs;
mod output;
mod report;
pub(crate) mod tree;

use std::path::{Path, PathBuf};

pub use report::{Code, Finding, Report};

use crate::spec::InputSpec;
use crate::units::ByteSize;
use tree::Tree;

/// Proof that every input can be read and the output be written. Only [`check`] makes one, and it serves once:
///
/// ```compile_fail,E0451
/// use runseal::preflight::Cleared;
/// let forged = Cleared { tree: todo!(), output: None, overwrite: true, _proof: () };
/// ```
///
/// ```compile_fail,E0599
/// fn twice(cleared: runseal::preflight::Cleared) -> [runseal::preflight::Cleared; 2] {
///     [cleared.clone(), cleared]
/// }
/// ```
///
/// ```compile_fail,E0277
/// let forged: runseal::preflight::Cleared = Default::default();
/// ```
#[derive(Debug)]
pub struct Cleared {
    /// All that is to be staged.
    pub(crate) tree: Tree,
    /// Where results go: an absolute path.
    pub(crate) output: Option<PathBuf>,
    /// Whether existing results may be replaced.
    pub(crate) overwrite: bool,
    _proof: (),
}

impl Cleared {
    /// Bytes that will be staged: the sizes of all files, holes included.
    pub fn input_bytes(&self) -> u64 {
        self.tree.items.iter().map(tree::Item::bytes).sum()
    }
}

/// Looks at everything, stops at nothing, and answers with the proof or with all that is wrong.
///
/// `space` is the bytes the scratch can hold. An input that is itself a symbolic link stands for what it points to;
/// links inside an input directory are staged as links, wherever they point. Nothing is left behind in the output.
pub fn check(inputs: &[InputSpec], output: Option<&Path>, overwrite: bool, space: u64) -> Result<Cleared, Report> {
    let (tree, mut findings) = inputs::survey(inputs);
    let needed = inputs::read(&tree, &mut findings);
    findings.sort_by_key(|(input, _)| *input);
    let mut findings: Vec<Finding> = findings.into_iter().map(|(_, finding)| finding).collect();
    if needed > space {
        findings.push(too_large(needed, space));
    }
    let output = output.map(|path| output::check(path, overwrite, &tree.inputs, &mut findings));
    if findings.is_empty() { Ok(Cleared { tree, output, overwrite, _proof: () }) } else { Err(Report { findings }) }
}

fn too_large(needed: u64, space: u64) -> Finding {
    Finding {
        code: Code::FileSystemOutOfSpace,
        subject: "scratch".into(),
        problem: format!("the inputs need {}, the scratch holds {}", ByteSize(needed), ByteSize(space)),
        remedy: "raise --size, free space below --backing, or name a larger disk with --backing".into(),
    }
}
