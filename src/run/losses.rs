//! What the scratch could not keep, for people, reports and the decision whether results may be published.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{io, thread};

use crate::family::{Event, Journal, LossFacts, LostFile, command::OUTPUT, message};
use crate::fs::{Loss, LossChanges, LossTotals, Scratch};
use crate::spec::LostWrites;
use crate::stage::Incomplete;
use crate::sys::path::shown;

/// How long changes are gathered after one was told.
const PERIOD: Duration = Duration::from_secs(1);
/// Most files that a message names.
const NAMED: usize = 3;
/// Most files that a report names.
const LISTED: usize = 1000;

impl From<LossTotals> for LossFacts {
    fn from(LossTotals { files, bytes, refused }: LossTotals) -> Self {
        Self { files, bytes, refused, list: Vec::new() }
    }
}

impl LossFacts {
    /// All that is missing in `scratch` now.
    pub fn of(scratch: &Scratch) -> Self {
        let list = scratch.losses().iter().take(LISTED).map(LostFile::from).collect();
        Self { list, ..scratch.loss_totals().into() }
    }
}

impl From<&Loss> for LostFile {
    fn from(loss: &Loss) -> Self {
        Self {
            path: loss.paths.first().map_or_else(|| "(without a name)".to_owned(), |path| below_scratch(path)),
            lost: loss.lost.iter().map(|range| [range.start, range.end]).collect(),
            refused: loss.refused,
            read: loss.read,
            exists: loss.linked,
        }
    }
}

/// Why results are held: what they are made of was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    files: Vec<LostFile>,
}

impl Missing {
    /// What stands against publishing from `scratch`; `None` if nothing does.
    pub fn against(scratch: &Scratch, policy: LostWrites) -> Option<Self> {
        let losses = scratch.losses();
        let counts =
            |loss: &&Loss| policy == LostWrites::Hold || loss.paths.iter().any(|path| in_results(path).is_some());
        let files: Vec<_> = losses.iter().filter(counts).map(LostFile::from).collect();
        (!files.is_empty()).then_some(Self { files })
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not all that was written is in the scratch: ")?;
        for (i, file) in self.files.iter().take(NAMED).enumerate() {
            write!(f, "{}{file}", if i == 0 { "" } else { "; " })?;
        }
        match self.files.len().saturating_sub(NAMED) {
            0 => Ok(()),
            others => write!(f, "; and {others} more files"),
        }
    }
}

/// Says what is missing and stands against nothing, as `--lost-writes=warn` wants.
pub fn warn_of_rest(scratch: &Scratch) {
    if let Some(rest) = Missing::against(scratch, LostWrites::Hold) {
        message::warn(format_args!("publishing all the same, as --lost-writes=warn says: {rest}"));
    }
}

/// What the manifest says of results with something missing, and of other files of the scratch.
pub fn incomplete(scratch: &Scratch) -> Vec<Incomplete> {
    let of_loss = |loss: Loss| {
        let result = loss.paths.iter().find_map(|path| in_results(path));
        let path = result.or(loss.paths.first().map(Vec::as_slice)).unwrap_or_default().to_owned();
        Incomplete { path, is_result: result.is_some(), lost: loss.lost, refused: loss.refused }
    };
    scratch.losses().into_iter().map(of_loss).collect()
}

/// The path below the results, of a path below the root of the scratch.
fn in_results(path: &[u8]) -> Option<&[u8]> {
    path.strip_prefix(OUTPUT.as_bytes())?.strip_prefix(b"/")
}

fn below_scratch(path: &[u8]) -> String {
    shown(Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// Watches the record of a scratch as long as there is one: `status` knows at once, and people hear of it while they
/// can do something.
pub fn watch(scratch: &Arc<Scratch>, journal: &Arc<Journal>) -> io::Result<()> {
    let changes = scratch.loss_changes();
    let (scratch, journal) = (Arc::downgrade(scratch), Arc::downgrade(journal));
    let work = move || look(&changes, &scratch, &journal);
    thread::Builder::new().name("runseal-losses".to_owned()).spawn(work).map(drop)
}

fn look(changes: &LossChanges, scratch: &Weak<Scratch>, journal: &Weak<Journal>) {
    let (mut seen, mut warned) = (0, false);
    loop {
        seen = changes.wait(seen);
        let (Some(scratch), Some(journal)) = (scratch.upgrade(), journal.upgrade()) else { return };
        let facts = LossFacts::from(scratch.loss_totals());
        if facts.files > 0 && !std::mem::replace(&mut warned, true) {
            message::warn(format_args!(
                "the scratch of run {} is full, or its disk fails: {} files lack data ({} bytes lost, {} refused); free \
                 space in it, or give the next run a larger --size",
                journal.snapshot().run_id,
                facts.files,
                facts.bytes,
                facts.refused
            ));
        }
        journal.record(Event::Lost(facts));
        drop((scratch, journal));
        // Many come together.
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(path: &str) -> LostFile {
        LostFile { path: path.into(), lost: vec![[0, 4096], [8192, 8193]], refused: true, read: false, exists: true }
    }

    #[test]
    fn a_message_names_a_few_files_and_counts_the_rest() {
        let gone = LostFile { lost: vec![], exists: false, ..lost("work/b") };
        let read = LostFile { lost: vec![], refused: false, read: true, ..lost("tmp/c") };
        let missing = Missing { files: vec![lost("output/a"), gone, read, lost("d"), lost("e")] };
        assert_eq!(
            missing.to_string(),
            "not all that was written is in the scratch: output/a: 4097 bytes are lost; work/b (not there now): the scratch \
             was full when it was written; tmp/c: it was read while data was missing; and 2 more files"
        );
    }

    #[test]
    fn results_are_what_is_below_the_output() {
        assert_eq!(in_results(b"output/a/b"), Some(&b"a/b"[..]));
        assert_eq!((in_results(b"outputs/a"), in_results(b"work/output/a"), in_results(b"output")), (None, None, None));
    }
}
