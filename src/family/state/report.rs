//! The report of a run: what happened, told by events, kept by both processes of the family.
//!
//! The sealed process records every event in its own copy and sends it to the supervisor, which keeps another. So the
//! report is as complete as can be even when the sealed process was killed, and `status` shows the same document.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::facts::{AuditFacts, AwsFacts, InputFacts, Kind, LossFacts, Outcome, Phase, RunKeyFacts, SealFacts};
use crate::family::{Event, state::origin::Origin};
use crate::spec::{AuditSpec, InputSpec, Remains, RunId, RunSpec};
use crate::sys::path::shown;
use crate::units::rfc3339_millis;

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
    /// Requests that the kernel sent to the file system, by opcode as fuse.h names it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, u64>,
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
            requests: BTreeMap::new(),
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
            Event::Wiped { at, bytes_encrypted, requests } => {
                (self.key_wiped, self.bytes_encrypted) = (Some(at), Some(bytes_encrypted));
                self.requests = requests;
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
}
