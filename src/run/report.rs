//! The report of a run: what happened, told by events, kept by both processes of the family.
//!
//! The sealed process records every event in its own copy and sends it to the supervisor, which keeps another. So the
//! report is as complete as can be even when the sealed process was killed, and `status` shows the same document.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::losses::LossFacts;
use super::origin::Origin;
use crate::preflight::Cleared;
use crate::spec::{AuditSpec, InputSpec, Location, RunId, RunSpec};
use crate::stage::Remains;
use crate::sys::path::shown;
use crate::sys::replace::Replaceable;
use crate::units::{json, rfc3339_millis};

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

/// One thing that happened in the sealed process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A phase began; the one before is over.
    Phase {
        /// Which.
        phase: Phase,
    },
    /// AWS has been asked who this is and what it would take.
    Cleared(AwsFacts),
    /// A data key of KMS takes part in the run key.
    RunKey(RunKeyFacts),
    /// Key and store are there.
    Sealed(SealFacts),
    /// The file system is mounted.
    Mounted {
        /// What the kernel granted.
        facts: Value,
    },
    /// Inputs are in.
    Staged {
        /// Totals.
        totals: Value,
    },
    /// The command ended.
    CommandEnded {
        /// Exit status, 128 + signal if a signal killed it.
        status: u8,
    },
    /// Data was lost, or is there again.
    Lost(LossFacts),
    /// An attempt to publish failed.
    HeldBecause {
        /// The error.
        problem: String,
    },
    /// Files of a failed command are out.
    Saved {
        /// Totals, and where they are.
        facts: Value,
    },
    /// Part of the results is in the output without a manifest, or not any more.
    Left {
        /// What.
        remains: Option<Remains>,
    },
    /// Results go elsewhere from now on.
    Redirected {
        /// Where.
        output: Location,
    },
    /// Results are out.
    Published {
        /// Totals.
        totals: Value,
    },
    /// The keys are gone.
    Wiped {
        /// When, RFC 3339.
        at: String,
        /// Bytes that had been encrypted with them.
        bytes_encrypted: u64,
    },
    /// The audit trail is closed.
    Audited(AuditFacts),
    /// The sealed process is about to exit in good order.
    Done {
        /// How the run ended.
        outcome: Outcome,
        /// The error, if there was one.
        error: Option<String>,
    },
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

impl AwsFacts {
    /// What the proof says, which a connection in `region` made.
    pub fn of(cleared: &Cleared, region: &str) -> Self {
        let evidence = cleared.evidence();
        let encryption = cleared.result_encryption();
        let probed = evidence.checks.iter().filter_map(|check| check.key.clone());
        let keys = probed.chain(encryption.and_then(|found| found.key.clone()));
        let keys = keys.chain(cleared.run_key().map(str::to_owned));
        Self {
            identity: evidence.identity.as_ref().map(|identity| identity.arn.clone()),
            region: region.to_owned(),
            keys: keys.collect::<BTreeSet<_>>().into_iter().collect(),
            result_encryption: encryption.map(ToString::to_string),
        }
    }
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

/// The document `--report` writes and `status --json` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name of the run.
    pub run_id: RunId,
    /// What kind of family this is.
    pub kind: Kind,
    /// Version of runseal.
    pub runseal: String,
    /// Release of the kernel.
    pub kernel: String,
    /// When the run started.
    pub started: String,
    /// When it ended.
    pub ended: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// What stood in the way.
    pub error: Option<String>,
    /// Who started it, where and with what.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// What was to be staged in.
    #[serde(default)]
    pub inputs: Vec<InputFacts>,
    /// Where results were to go: a path or a URI.
    #[serde(default)]
    pub output: Option<String>,
    /// What AWS told, if it was asked.
    #[serde(default)]
    pub aws: Option<AwsFacts>,
    /// The KMS key that takes part in the run key, if one does.
    #[serde(default)]
    pub run_key: Option<RunKeyFacts>,
    /// The audit trail, if one was asked for.
    #[serde(default)]
    pub audit: Option<AuditFacts>,
    /// Exit status of `runseal`.
    pub exit_status: Option<u8>,
    /// Exit status of the command; 128 + signal if a signal killed it.
    pub command_status: Option<u8>,
    /// Key and store.
    #[serde(flatten)]
    pub seal: Option<SealFacts>,
    /// What the kernel granted the mount.
    pub mount: Option<Value>,
    /// Totals of the inputs.
    pub staged: Option<Value>,
    /// Totals of the results.
    pub published: Option<Value>,
    /// Files that were published although the command failed: totals, and `place`.
    #[serde(default)]
    pub saved: Option<Value>,
    /// Results that are in the output although publishing has not succeeded.
    #[serde(default)]
    pub left: Option<Remains>,
    /// Why the results are held, if they are or were.
    pub held: Option<String>,
    /// What the scratch could not keep.
    #[serde(default)]
    pub lost_writes: LossFacts,
    /// Phases, in order.
    pub phases: Vec<PhaseTime>,
    /// Bytes encrypted and written to the backing in all.
    pub bytes_encrypted: Option<u64>,
    /// When the keys were wiped.
    pub key_wiped: Option<String>,
    #[serde(skip)]
    phase_began: Option<Instant>,
}

/// One phase of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// When it began.
    pub started: String,
    /// How long it took; `None` while it lasts.
    pub seconds: Option<f64>,
}

impl Report {
    /// The report of a run that starts now.
    pub fn new(run_id: RunId, kind: Kind) -> Self {
        let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        Self {
            run_id,
            kind,
            runseal: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel.unwrap_or_default(),
            started: now(),
            ended: None,
            outcome: None,
            error: None,
            origin: None,
            inputs: Vec::new(),
            output: None,
            aws: None,
            run_key: None,
            audit: None,
            exit_status: None,
            command_status: None,
            seal: None,
            mount: None,
            staged: None,
            published: None,
            saved: None,
            left: None,
            held: None,
            lost_writes: LossFacts::default(),
            phases: Vec::new(),
            bytes_encrypted: None,
            key_wiped: None,
            phase_began: None,
        }
    }

    /// The report of a run that starts now, as it was ordered.
    pub fn of(spec: &RunSpec) -> Self {
        let input = |input: &InputSpec| InputFacts { source: input.source.to_string(), target: shown(&input.target) };
        let trail = |audit: &AuditSpec| AuditFacts {
            destination: audit.destination.to_string(),
            lines: None,
            head: None,
            problem: None,
        };
        let kind = if spec.command().is_some() { Kind::Run } else { Kind::Mount };
        Self {
            origin: Some(Origin::of(spec)),
            inputs: spec.data.inputs.iter().map(input).collect(),
            output: spec.data.output.as_ref().map(ToString::to_string),
            audit: spec.data.audit.as_ref().map(trail),
            ..Self::new(spec.id.clone(), kind)
        }
    }

    /// What the run is doing, or was doing last.
    pub fn phase(&self) -> Option<Phase> {
        self.phases.last().map(|p| p.phase)
    }

    /// Takes one event in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Phase { phase } => self.begin(phase),
            Event::Cleared(facts) => self.aws = Some(facts),
            Event::RunKey(facts) => self.run_key = Some(facts),
            Event::Audited(facts) => self.audit = Some(facts),
            Event::Sealed(facts) => self.seal = Some(facts),
            Event::Mounted { facts } => self.mount = Some(facts),
            Event::Staged { totals } => self.staged = Some(totals),
            Event::CommandEnded { status } => self.command_status = Some(status),
            Event::Lost(facts) => self.lost_writes = facts,
            Event::HeldBecause { problem } => self.held = Some(problem),
            Event::Redirected { output } => self.output = Some(output.to_string()),
            Event::Saved { facts } => self.saved = Some(facts),
            Event::Left { remains } => self.left = remains,
            Event::Published { totals } => (self.published, self.left) = (Some(totals), None),
            Event::Wiped { at, bytes_encrypted } => {
                (self.key_wiped, self.bytes_encrypted) = (Some(at), Some(bytes_encrypted));
            }
            Event::Done { outcome, error } => (self.outcome, self.error) = (Some(outcome), error),
        }
    }

    /// Closes the report.
    pub fn end(&mut self, exit_status: u8) {
        self.close_phase();
        self.ended = Some(now());
        self.exit_status = Some(exit_status);
    }

    fn begin(&mut self, phase: Phase) {
        self.close_phase();
        self.phases.push(PhaseTime { phase, started: now(), seconds: None });
        self.phase_began = Some(Instant::now());
    }

    fn close_phase(&mut self) {
        if let (Some(last), Some(began)) = (self.phases.last_mut(), self.phase_began.take()) {
            last.seconds = Some((began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0);
        }
    }
}

/// The sealed process's side: keeps its copy of the report and tells the supervisor. Shared by threads.
pub struct Journal {
    report: Mutex<Report>,
    link: Mutex<UnixStream>,
    /// Whether the mount that serves was unmounted and lives on.
    is_unmounted: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Journal {
    /// Continues `report`, telling the other end of `link`.
    pub fn new(report: Report, link: UnixStream) -> Self {
        Self { report: Mutex::new(report), link: Mutex::new(link), is_unmounted: OnceLock::new() }
    }

    /// From now on whoever asks is told whether the mount lives on unmounted. Only then is it looked: the kernel tells of
    /// every change of every mount, which many mounts on one machine would all wake for.
    pub fn look(&self, is_unmounted: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.is_unmounted.set(Box::new(is_unmounted));
    }

    /// The report so far, for whoever asks from outside.
    pub fn answer(&self) -> Report {
        let serving = self.report.lock().phase() == Some(Phase::Serving);
        if serving && self.is_unmounted.get().is_some_and(|is_unmounted| is_unmounted()) {
            self.record(Event::Phase { phase: Phase::Unmounted });
        }
        self.snapshot()
    }

    /// Records an event.
    pub fn record(&self, event: Event) {
        let mut line = serde_json::to_vec(&event).expect("events hold strings, numbers and JSON values only");
        line.push(b'\n');
        self.report.lock().apply(event);
        // A supervisor that is gone is noticed by the reader of this socket.
        let _ = self.link.lock().write_all(&line);
    }

    /// The report so far.
    pub fn snapshot(&self) -> Report {
        self.report.lock().clone()
    }
}

/// Where `--report` goes.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    /// `None` for a stream.
    file: Option<Replaceable>,
}

impl Destination {
    /// Checks, before any work is done, that the report can be written to `path`, and holds its directory from then on.
    pub fn claim(path: &Path) -> io::Result<Self> {
        let mut path = std::path::absolute(path)?;
        let found = if is_followed(&path) { path.metadata() } else { path.symlink_metadata() };
        match found {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if is_stream(&found) => {
                open_stream(&path)?;
                return Ok(Self { path, file: None });
            }
            Ok(_) if is_followed(&path) => path = path.canonicalize()?,
            Ok(_) | Err(_) => {}
        }
        let file = Replaceable::open(&path)?;
        file.try_it()?;
        Ok(Self { path, file: Some(file) })
    }

    /// Writes the report: all of it or nothing is found under its name.
    pub fn write(&self, report: &Report) -> io::Result<()> {
        let mut text = Vec::new();
        json::write_pretty(&mut text, report)?;
        match &self.file {
            Some(file) => file.replace(&text, 0o666),
            None => open_stream(&self.path)?.write_all(&text),
        }
    }

    /// The path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Links of the system (`/dev/stdout`) mean what they lead to: a file is replaced behind them. Elsewhere somebody may
/// have planted them.
fn is_followed(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|system| path.starts_with(system))
}

fn open_stream(path: &Path) -> io::Result<File> {
    let flags = if is_followed(path) { 0 } else { libc::O_NOFOLLOW };
    OpenOptions::new().write(true).custom_flags(flags).open(path)
}

/// Pipes and terminals (`--report /dev/stdout`) take text as it comes.
fn is_stream(found: &std::fs::Metadata) -> bool {
    let kind = found.file_type();
    kind.is_fifo() || kind.is_char_device()
}

/// The time, as reports write it.
fn now() -> String {
    rfc3339_millis(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report::new("r".parse().expect("valid id"), Kind::Run)
    }

    #[test]
    fn events_fold_into_the_report() {
        let mut report = report();
        report.apply(Event::Phase { phase: Phase::Fetch });
        report.apply(Event::Phase { phase: Phase::Command });
        report.apply(Event::CommandEnded { status: 3 });
        report.apply(Event::Done { outcome: Outcome::CommandFailed, error: None });
        report.end(3);
        let json = serde_json::to_value(&report).expect("serializes");
        assert_eq!(json["outcome"], "command-failed");
        assert_eq!(json["exit_status"], 3);
        assert_eq!(json["phases"][0]["phase"], "fetch");
        assert!(json["phases"].as_array().expect("array").iter().all(|p| p["seconds"].is_number()));
        let back: Report = serde_json::from_value(json).expect("parses back");
        assert_eq!(back.phase(), Some(Phase::Command));
    }

    #[test]
    fn a_destination_is_checked_first_and_written_whole() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Destination::claim(&dir.path().join("missing/report.json")).is_err());
        assert!(Destination::claim(dir.path()).is_err());
        let path = dir.path().join("report.json");
        let destination = Destination::claim(&path).expect("writable");
        assert!(!path.exists());
        destination.write(&report()).expect("written");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(serde_json::from_str::<Report>(&text).expect("parses").run_id.as_str(), "r");
    }

    // promise: T-54
    #[test]
    fn a_report_follows_no_link_that_somebody_has_planted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, victim) = (dir.path().join("report.json"), dir.path().join("victim"));
        std::fs::write(&victim, "precious").expect("written");
        let plant = |link: &Path| std::os::unix::fs::symlink(&victim, link).expect("planted");
        plant(&path);
        plant(&dir.path().join(format!("report.json.{}.tmp", std::process::id())));
        Destination::claim(&path).expect("writable").write(&report()).expect("written");
        assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
        assert!(path.symlink_metadata().expect("there").is_file());
        // Nor does what is planted between the check and the report lead elsewhere.
        let destination = Destination::claim(&path).expect("writable");
        std::fs::remove_file(&path).expect("removed");
        plant(&path);
        destination.write(&report()).expect("written");
        assert_eq!(std::fs::read_to_string(&victim).expect("there"), "precious");
    }
}
