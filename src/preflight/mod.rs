//! Proof, before any work starts, that the run can read its inputs and publish its outputs.
//!
//! The checks do what the run will do later, in small: every file is opened for reading, a file is made in the
//! output. They ask the system instead of guessing from permission bits, and they all run before anything is said.

mod aws;
mod local;
mod report;
pub(crate) mod tree;

use std::fs::File;
use std::path::PathBuf;

pub use aws::profiles::{AWS_OWNED, Profile, check_key};
pub(crate) use local::links;
pub use report::{AwsDetails, Check, Code, Evidence, Finding, Outcome, Repair, Report};

use crate::aws::{Cloud, Encryption, UploadSettings};
use crate::spec::{Identity, InputSpec, Location, RunId, S3Uri, StagingRules};
use crate::sys::beneath::Trust;
use crate::sys::identity::{assume, is_root_of_machine};
use crate::units::ByteSize;
use aws::Remote;
use local::{claim, inputs};
use tree::Tree;

/// Proof that every input can be read and the output be written. Only [`check`] makes one, and it serves once:
///
/// ```compile_fail,E0451
/// use runseal::preflight::Cleared;
/// let forged = Cleared { tree: todo!(), output: None, overwrite: true, rules: todo!(), claim: None, on_behalf: None, run_key: None, evidence: todo!(), _proof: () };
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
    /// Where results go.
    pub(crate) output: Option<Output>,
    /// Whether existing results may be replaced.
    pub(crate) overwrite: bool,
    /// How links and results of before are treated.
    pub(crate) rules: StagingRules,
    /// The output directory, locked against other runs, where that can be.
    pub(crate) claim: Option<File>,
    /// In whose name all of it was tried, and is to be done.
    pub(crate) on_behalf: Option<Identity>,
    run_key: Option<String>,
    evidence: Evidence,
    _proof: (),
}

/// An output that can be written.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    /// An absolute path.
    Directory(PathBuf),
    /// A prefix of a bucket.
    Prefix(OutputPrefix),
}

/// Where results go in S3, and how.
#[derive(Clone, Debug)]
pub(crate) struct OutputPrefix {
    /// The key is empty or ends with a slash.
    pub(crate) uri: S3Uri,
    /// What the probe was sent with, and every upload will be.
    pub(crate) settings: UploadSettings,
    /// What the probe's answer said: each result must come out like this.
    pub(crate) encryption: Encryption,
}

/// What is to be proved.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The run, as the encryption context of its key names it.
    pub run: &'a RunId,
    /// The inputs, in the order given.
    pub inputs: &'a [InputSpec],
    /// Where results go.
    pub output: Option<&'a Location>,
    /// How results are uploaded, and whether existing ones may be replaced, in a directory too. The key may be given by
    /// its id or an alias.
    pub uploads: &'a UploadSettings,
    /// How links and results of before are treated.
    pub rules: StagingRules,
    /// In whose name files of this machine are read and written; `None` means the user of this process.
    pub on_behalf: Option<&'a Identity>,
    /// The KMS key that takes part in the run key: ARN, id or alias.
    pub run_key: Option<&'a str>,
    /// Whether KMS is asked for explanations even if nothing failed.
    pub explain: bool,
    /// Bytes the scratch can hold.
    pub space: u64,
}

impl Cleared {
    /// Bytes that will be staged: the sizes of all files, holes included.
    pub fn input_bytes(&self) -> u64 {
        self.tree.bytes()
    }

    /// How results in S3 will be encrypted at rest.
    pub fn result_encryption(&self) -> Option<&Encryption> {
        match &self.output {
            Some(Output::Prefix(prefix)) => Some(&prefix.encryption),
            _ => None,
        }
    }

    /// ARN of the KMS key that takes part in the run key.
    pub fn run_key(&self) -> Option<&str> {
        self.run_key.as_deref()
    }

    /// What was tried at AWS, and by whom.
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }
}

/// Looks at everything, stops at nothing, and answers with the proof or with all that is wrong.
///
/// `cloud` speaks to AWS; without one, only paths of this machine can be cleared. An input that is itself a symbolic
/// link stands for what it points to; a link inside an input directory is staged as a link if it stays in there, else
/// it needs [`StagingRules::dereference`]. Nothing is left behind in the output. Must be called from a thread that is not
/// one of a runtime.
pub fn check(request: &Request<'_>, cloud: Option<&Cloud>) -> Result<Cleared, Report> {
    let &Request { inputs, output, space, rules, .. } = request;
    let overwrite = request.uploads.overwrite;
    let assume = || request.on_behalf.map(|who| assume(who.uid, who.gid, &who.groups)).transpose();
    // Not while AWS is asked: its threads are not only for these files, and keep what they begin with.
    let ((mut tree, mut tagged), mut needed) = match assume() {
        Ok(_in_their_name) => {
            let (tree, mut tagged) = inputs::survey(inputs, rules.dereference);
            let needed = inputs::read(&tree, &mut tagged);
            ((tree, tagged), needed)
        }
        Err(error) => return Err(powerless(&error)),
    };
    let mut remote = match cloud {
        Some(cloud) if request.needs_cloud() => aws::ask(request, cloud),
        Some(cloud) => {
            identify(cloud);
            Remote::default()
        }
        None => Remote { others: aws::without_cloud(request), ..Remote::default() },
    };
    tagged.append(&mut remote.inputs);
    needed += aws::graft(&mut tree, request, remote.found, &mut tagged);
    tagged.sort_by_key(|(input, _)| *input);
    let mut findings: Vec<Finding> = tagged.into_iter().map(|(_, finding)| finding).collect();
    if needed > space {
        findings.push(too_large(needed, space));
    }
    findings.append(&mut remote.others);
    let mut claim = None;
    let output = match output {
        Some(Location::Path(path)) => {
            let read = [&tree.inputs[..], &tree.linked].concat();
            let _in_their_name = assume().map_err(|error| powerless(&error))?;
            let own = request.on_behalf.is_none() && !rules.shared_output && is_root_of_machine();
            let trust = if own { Trust::Own } else { Trust::Anybody };
            let output = local::output::check(path, (overwrite, trust), &read, &mut findings);
            claim = claim::take(&output).unwrap_or_else(|finding| {
                findings.push(finding);
                None
            });
            Some(Output::Directory(output))
        }
        Some(Location::S3(uri)) => {
            findings.extend(aws::overlap(uri, inputs));
            remote.output.map(Output::Prefix)
        }
        None => None,
    };
    let Remote { run_key, evidence, .. } = remote;
    if findings.is_empty() {
        let on_behalf = request.on_behalf.cloned();
        Ok(Cleared { tree, output, overwrite, rules, claim, on_behalf, run_key, evidence, _proof: () })
    } else {
        Err(Report { findings, evidence })
    }
}

/// Asks STS who calls, for the `userIdentity` of all events of the trail from now on, and answers with the ARN if it
/// tells. Must be called from a thread that is not one of a runtime.
pub fn identify(cloud: &Cloud) -> Option<String> {
    let answer = cloud.block_on(cloud.identity().whoami());
    answer.ok().map(|answer| answer.value.arn)
}

impl Request<'_> {
    /// Whether anything in it is at AWS.
    fn needs_cloud(&self) -> bool {
        let remote = |location: &Location| matches!(location, Location::S3(_));
        self.run_key.is_some()
            || self.output.is_some_and(remote)
            || self.inputs.iter().any(|input| remote(&input.source))
    }
}

/// This process may not read and write as somebody else.
fn powerless(error: &std::io::Error) -> Report {
    let problem = format!("cannot be reached in the name of the owner: {error}");
    let remedy = "let the service have CAP_SETUID and CAP_SETGID".into();
    let finding = Finding::new(Code::ExportFailed, "files of this machine".into(), problem, remedy);
    Report { findings: vec![finding], evidence: Evidence::default() }
}

fn too_large(needed: u64, space: u64) -> Finding {
    let problem = format!("the inputs need {}, the scratch holds {}", ByteSize(needed), ByteSize(space));
    let remedy = "raise --size, free space below --backing, or name a larger disk with --backing".into();
    Finding::new(Code::FileSystemOutOfSpace, "scratch".into(), problem, remedy)
}
