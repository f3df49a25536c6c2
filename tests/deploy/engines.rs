//! Workflow engines whose temporary and work directories are sealed: the results are those of a plain run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::containers::{binary, finish, fresh, no_mounts, repository, require};
use crate::program::{Said, text};

fn engines() -> PathBuf {
    repository().join("target/tools/engines")
}

fn no_engines() -> Option<&'static str> {
    let complete = engines().join("complete").exists();
    (!complete).then_some("no cwltool and snakemake in target/tools/engines (scripts/install-deps.sh, PyPI)")
}

fn workflow(name: &str) -> PathBuf {
    repository().join("tests/deploy/workflows").join(name)
}

/// The genome the workflows work on.
fn genome() -> PathBuf {
    repository().join("examples/lambda")
}

fn engine(name: &str, home: &Path) -> Command {
    let mut command = Command::new(engines().join("bin").join(name));
    let path = std::env::var("PATH").expect("a PATH");
    command
        .env("HOME", home)
        .env("XDG_CACHE_HOME", home)
        .env("PATH", format!("{}:{path}", text(&engines().join("bin"))));
    command
}

/// A sealed mount; ended on drop.
struct Sealed {
    id: String,
    dir: tempfile::TempDir,
}

impl Sealed {
    fn new() -> Self {
        let sealed = Self { id: fresh("engine"), dir: tempfile::tempdir().expect("tempdir") };
        let mount = ["mount", "--size=256M", "--run-id", &sealed.id, text(sealed.dir.path())];
        finish(Command::new(binary()).args(mount)).expect_said(0, &[]);
        sealed
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        let _ = Command::new(binary()).args(["end", &self.id]).stdout(Stdio::null()).status();
        let _ = Command::new("umount").args(["-lq"]).arg(self.dir.path()).stderr(Stdio::null()).status();
    }
}

/// Files below `dir` with their contents.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        let name = PathBuf::from(path.file_name().expect("a name"));
        if path.is_dir() {
            found.extend(contents(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else {
            found.insert(name, fs::read(&path).expect("readable"));
        }
    }
    found
}

/// Runs the workflow of snakemake in `work`.
fn snakemake(work: &Path, home: &Path) -> Said {
    let mut command = engine("snakemake", home);
    command.env("TMPDIR", work).args([
        "--cores=2",
        "--snakefile",
        text(&workflow("Snakefile")),
        "--directory",
        text(work),
    ]);
    command.args(["--config", &format!("genome={}", text(&genome()))]);
    finish(&mut command)
}

/// Runs the workflow of cwltool with everything temporary below `scratch`; results go to `out`.
fn cwltool(scratch: &Path, out: &Path, home: &Path) -> Said {
    let prefix = |name: &str| format!("{}/", text(&scratch.join(name)));
    let mut command = engine("cwltool", home);
    command.current_dir(scratch).env("TMPDIR", scratch).args(["--quiet", "--no-container", "--outdir", text(out)]);
    command.args(["--tmpdir-prefix", &prefix("tmp"), "--tmp-outdir-prefix", &prefix("out")]);
    command.args([text(&workflow("count.cwl")), "--genome", text(&genome().join("lambda.fa"))]);
    finish(&mut command)
}

#[test]
fn snakemake_works_in_a_sealed_mount() {
    require!(no_mounts(), no_engines());
    let (plain, sealed, home) =
        (tempfile::tempdir().expect("tempdir"), Sealed::new(), tempfile::tempdir().expect("tempdir"));
    for work in [plain.path(), sealed.dir.path()] {
        snakemake(work, home.path()).expect_said(0, &[]);
    }
    let expected = contents(&plain.path().join("results"));
    assert_eq!(expected.len(), 2, "{:?}", expected.keys());
    assert_eq!(contents(&sealed.dir.path().join("results")), expected);
    // Nothing is left to do: times and metadata are kept as the engine needs them.
    snakemake(sealed.dir.path(), home.path()).expect_said(0, &["Nothing to be done"]);
}

#[test]
fn snakemake_works_as_the_command_of_a_run() {
    require!(no_mounts(), no_engines());
    let (plain, out, home) = (
        tempfile::tempdir().expect("tempdir"),
        tempfile::tempdir().expect("tempdir"),
        tempfile::tempdir().expect("tempdir"),
    );
    snakemake(plain.path(), home.path()).expect_said(0, &[]);
    let script = "exec \"$0\" --cores=2 --snakefile \"$1\" --config genome=\"$RUNSEAL_INPUT/lambda\" results=\"$RUNSEAL_OUTPUT\"";
    let results = out.path().join("results");
    let mut run = Command::new(binary());
    run.env("HOME", home.path()).env("XDG_CACHE_HOME", home.path());
    run.args(["run", "--input", text(&genome()), "--output", text(&results), "--", "sh", "-euc", script]);
    run.args([&engines().join("bin/snakemake"), &workflow("Snakefile")]);
    finish(&mut run).expect_said(0, &[]);
    let mut published = contents(&results);
    assert!(published.remove(Path::new("runseal-manifest.json")).is_some());
    assert_eq!(published, contents(&plain.path().join("results")));
}

#[test]
fn cwltool_works_in_a_sealed_mount() {
    require!(no_mounts(), no_engines());
    let (plain, sealed, home) =
        (tempfile::tempdir().expect("tempdir"), Sealed::new(), tempfile::tempdir().expect("tempdir"));
    let out = tempfile::tempdir().expect("tempdir");
    for (scratch, name) in [(plain.path(), "plain"), (sealed.dir.path(), "sealed")] {
        cwltool(scratch, &out.path().join(name), home.path()).expect_said(0, &["sha1$"]);
    }
    let expected = contents(&out.path().join("plain"));
    assert_eq!(expected.len(), 1, "{:?}", expected.keys());
    assert_eq!(contents(&out.path().join("sealed")), expected);
}
