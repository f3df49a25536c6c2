//! Checking a trail: is every line as it was written, none missing between them, and each by who has the key?

use std::io::{self, BufRead, Read};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::line::{self, Link, VerifiedLine};
use super::sign::Witness;
use crate::units::hex;

/// Longest line that is read.
const LONGEST_LINE: u64 = 4 << 20;

/// What a trail must be like besides an intact chain.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrailDemands<'a> {
    /// A hash that must occur as that of a line: the head that was noted earlier.
    pub head: Option<&'a str>,
    /// Whether no line may follow that one.
    pub exact: bool,
    /// Every line must be signed by one of these; by nobody if there are none.
    pub keys: &'a [Witness],
}

/// What an intact trail holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Names of its runs, in order of appearance.
    pub runs: Vec<String>,
    /// Lines that were torn by a crash or a full disk, and marked.
    pub torn: u64,
    /// Events that could not be written when they happened; the trail says so.
    pub missed: u64,
    /// Lines whose signature was checked.
    pub signed: u64,
    /// Lines behind the one whose hash was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_head: Option<u64>,
    /// Runs whose key was made, and not overwritten as far as the trail goes: they go on, were killed, or their last lines
    /// are missing.
    pub unfinished: Vec<String>,
    /// Number and hash of the last line.
    pub head: Link,
}

/// The first thing that is wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrailFault {
    /// Line, counted from 1.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

impl std::fmt::Display for TrailFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

/// Reads a whole trail.
///
/// # Errors
/// It cannot be read. What is wrong *with* it is the inner result.
pub fn verify(trail: impl Read, demands: &TrailDemands<'_>) -> io::Result<Result<Summary, TrailFault>> {
    let mut trail = io::BufReader::new(trail);
    let mut reading = Reading { demands: *demands, ..Reading::default() };
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut trail).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(reading.finish());
        }
        if let Err(fault) = reading.line(&line) {
            return Ok(Err(fault));
        }
    }
}

#[derive(Default)]
struct Reading<'a> {
    number: u64,
    summary: Summary,
    /// A line that is no event: right only if the next one says that it was torn.
    suspect: Option<(TrailFault, Vec<u8>)>,
    demands: TrailDemands<'a>,
}

impl Reading<'_> {
    fn line(&mut self, line: &[u8]) -> Result<(), TrailFault> {
        self.number += 1;
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(self.suspect.take().map_or_else(
                || self.fault("it is torn: its end is missing; the next run that appends will mark it".into()),
                |(fault, _)| fault,
            ));
        };
        match line::check(line) {
            Ok(checked) => self.event(checked),
            Err(error) => {
                let fault = self.fault(error.to_string());
                match self.suspect.replace((fault.clone(), line.to_vec())) {
                    Some((earlier, _)) => Err(earlier),
                    None => Ok(()),
                }
            }
        }
    }

    fn event(&mut self, event: VerifiedLine) -> Result<(), TrailFault> {
        match (self.suspect.take(), &event.torn) {
            (Some((_, bytes)), Some((length, hash)))
                if *length == bytes.len() as u64 && *hash == hex(&Sha256::digest(&bytes)) =>
            {
                self.summary.torn += 1;
            }
            (Some((fault, _)), _) => return Err(fault),
            (None, Some(_)) => return Err(self.fault("it marks a torn line, but there is none before it".into())),
            (None, None) => {}
        }
        let head = &self.summary.head;
        if event.link.sequence != head.sequence + 1 {
            let problem = format!("it has number {}, expected {}", event.link.sequence, head.sequence + 1);
            return Err(self.fault(format!("{problem}: lines before it are missing or were put in")));
        }
        if event.previous != head.hash {
            return Err(self.fault("it does not follow the line before it: that one was replaced".into()));
        }
        if !self.demands.keys.is_empty() {
            event.signed_by(self.demands.keys).map_err(|problem| self.fault(problem))?;
            self.summary.signed += 1;
        }
        let summary = &mut self.summary;
        match &mut summary.after_head {
            Some(after) => *after += 1,
            None if self.demands.head == Some(event.link.hash.as_str()) => summary.after_head = Some(0),
            None => {}
        }
        match event.key_lives() {
            Some(true) => summary.unfinished.push(event.run.clone()),
            Some(false) => {
                if let Some(at) = summary.unfinished.iter().position(|run| *run == event.run) {
                    summary.unfinished.remove(at);
                }
            }
            None => {}
        }
        summary.events += 1;
        summary.missed += event.missed;
        if !event.run.is_empty() && !summary.runs.contains(&event.run) {
            summary.runs.push(event.run);
        }
        summary.head = event.link;
        Ok(())
    }

    fn finish(mut self) -> Result<Summary, TrailFault> {
        if let Some((fault, _)) = self.suspect.take() {
            return Err(fault);
        }
        match (self.demands.head, self.summary.after_head) {
            (Some(_), None) => {
                self.number += 1;
                let problem =
                    "the trail ends before the line whose hash was given: its end was cut off, or all was made anew";
                return Err(self.fault(problem.into()));
            }
            (Some(_), Some(after)) if after > 0 && self.demands.exact => {
                self.number -= after - 1;
                return Err(
                    self.fault(format!("it follows the line whose hash was given, and so do {} more", after - 1))
                );
            }
            _ => {}
        }
        Ok(self.summary)
    }

    fn fault(&self, problem: String) -> TrailFault {
        TrailFault { line: self.number, problem }
    }
}
