//! A scratch that was full: results are held unless nothing depends on what is missing, or somebody wants them as they are.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::program::{Live, Said, require_host, run, say, status, text};

/// Writes more than there is room for and ignores every error, as `dd || true` does.
const OVERFILL: &str = "overfill() { dd if=/dev/zero bs=64k count=640 2>/dev/null >\"$1\" || true; }\n";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("tempdir") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a script over a scratch of 16 MB.
    fn run(&self, flags: &[&str], script: &str) -> Said {
        let (output, report) = (self.path("out"), self.path("report.json"));
        let usual = ["--size", "16M", "--on-hold=fail", "--output", text(&output), "--report", text(&report)];
        run(&[&usual, flags].concat(), &format!("{OVERFILL}{script}"))
    }

    fn report(&self) -> Value {
        json(&self.path("report.json"))
    }

    fn published(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.path("out").join(name)).ok()
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("written")).expect("JSON")
}

// promise: S-104
#[test]
fn a_result_that_was_refused_space_is_held() {
    require_host!();
    let place = Place::new();
    let said = place.run(&[], "overfill \"$RUNSEAL_OUTPUT/big\"");
    said.expect(75, &["output/big: the scratch was full when it was written", "--size", "--incomplete"]);
    assert_eq!(place.published("big"), None);
    let report = place.report();
    let list = &report["lost_writes"]["list"][0];
    assert_eq!((&list["path"], &list["refused"]), (&"output/big".into(), &true.into()), "{report}");
}

/// Nothing of it is left, but it was read: the count is wrong.
// promise: S-104
#[test]
fn what_was_made_of_an_incomplete_file_is_held_even_if_that_is_gone() {
    require_host!();
    let script = "overfill middle; wc -c <middle >\"$TMPDIR/n\"; tr -d x <middle | wc -c >\"$TMPDIR/n\"; rm middle
                  cp \"$TMPDIR/n\" \"$RUNSEAL_OUTPUT/count\"";
    let place = Place::new();
    place.run(&[], script).expect(75, &["middle (not there now): it was read while data was missing"]);
    assert_eq!(place.published("count"), None);
    let place = Place::new();
    place.run(&["--lost-writes=warn"], script).expect(0, &["all the same", "middle"]);
    assert!(place.published("count").is_some());
    let manifest = json(&place.path("out/runseal-manifest.json"));
    assert_eq!(manifest["lost_elsewhere"][0]["path"], "middle", "{manifest}");
}

// promise: S-104
#[test]
fn a_file_nobody_read_and_that_is_removed_or_made_anew_is_no_reason() {
    require_host!();
    let place = Place::new();
    let script = "overfill a; rm a; overfill b; echo new >b; overfill c; echo other >d; mv d c; echo fine >\"$RUNSEAL_OUTPUT/x\"";
    place.run(&[], script).expect(0, &[]);
    assert_eq!(place.published("x").as_deref(), Some(&b"fine\n"[..]));
    assert_eq!((&place.report()["lost_writes"]["files"], &place.report()["outcome"]), (&0.into(), &"published".into()));
}

/// `--lost-writes=warn` is about what is no result.
// promise: S-104
#[test]
fn an_incomplete_result_is_held_whatever_is_said_of_other_files() {
    require_host!();
    let place = Place::new();
    place.run(&["--lost-writes=warn"], "overfill \"$RUNSEAL_OUTPUT/big\"").expect(75, &["output/big"]);
    let place = Place::new();
    place
        .run(&["--lost-writes=warn"], "overfill work-file; echo x >\"$RUNSEAL_OUTPUT/x\"")
        .expect(0, &["all the same", "work/work-file"]);
    assert!(place.published("x").is_some());
}

// promise: S-104
#[test]
fn resume_publishes_incomplete_results_only_when_told_and_says_so_everywhere() {
    require_host!();
    let place = Place::new();
    let (output, report) = (place.path("out"), place.path("report.json"));
    let flags = ["--size", "16M", "--output", text(&output), "--report", text(&report)];
    let script = format!("{OVERFILL}ready; overfill \"$RUNSEAL_OUTPUT/big\"; echo good >\"$RUNSEAL_OUTPUT/good\"");
    let live = Live::start(place.dir.path(), &flags, &script);
    live.wait_for("held");
    let lost = status(&live.id).expect("alive")["report"]["lost_writes"].clone();
    assert_eq!((&lost["files"], &lost["refused"]), (&1.into(), &1.into()), "{lost}");
    say(&["resume", &live.id]).expect(69, &["still held", "output/big"]);
    say(&["resume", "--incomplete", &live.id]).expect(74, &["published, but", "incomplete", "output/big"]);
    live.end().expect(74, &["incomplete", "output/big"]);
    assert_eq!(place.published("good").as_deref(), Some(&b"good\n"[..]));
    let manifest = json(&place.path("out/runseal-manifest.json"));
    let line = &manifest["incomplete"][0];
    assert_eq!((&line["path"], &line["refused"]), (&"big".into(), &true.into()), "{manifest}");
    assert_eq!((&place.report()["outcome"], &place.report()["exit_status"]), (&"incomplete".into(), &74.into()));
}

/// Whoever makes the file whole in the held run needs no permission.
// promise: S-104
#[test]
fn a_file_that_is_made_whole_in_a_held_run_is_published() {
    require_host!();
    let place = Place::new();
    let output = place.path("out");
    let script = format!("{OVERFILL}ready; overfill \"$RUNSEAL_OUTPUT/big\"");
    let live = Live::start(place.dir.path(), &["--size", "16M", "--output", text(&output)], &script);
    live.wait_for("held");
    say(&["exec", &live.id, "--", "sh", "-c", "echo small >\"$RUNSEAL_OUTPUT/big\""]).expect(0, &[]);
    say(&["resume", &live.id]).expect(0, &[]);
    live.end().expect(0, &[]);
    assert_eq!(place.published("big").as_deref(), Some(&b"small\n"[..]));
}

// promise: S-104
#[test]
fn names_that_could_not_be_made_hold_the_run() {
    require_host!();
    let place = Place::new();
    let script = "for i in $(seq 2000); do head -c 60000 /dev/zero >f$i || true; done 2>/dev/null; rm -f f*
                  echo x >\"$RUNSEAL_OUTPUT/x\"";
    let said = place.run(&[], script).expect(75, &["the scratch was full when it was written"]);
    assert!(said.err.contains("more files"), "{said:?}");
}
