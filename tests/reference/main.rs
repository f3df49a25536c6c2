//! The same random operations on [`runseal::fs::Scratch`], on a simple model, on a directory of the host's tmpfs and on
//! a mounted scratch: every answer and, after every step, everything there is must agree.
//!
//! `RUNSEAL_CASES` sets the number of cases (default 128). `RUNSEAL_REFERENCE_DIR` names a directory to compare with
//! instead of tmpfs, for example on a mounted scratch.

mod directory;
mod model;
mod ops;
mod scratch;
#[allow(dead_code, reason = "shared with the tests of the mount")]
#[path = "../support/scratch_mount.rs"]
mod scratch_mount;
mod target;

use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::directory::Directory;
use crate::model::Model;
use crate::ops::{Features, Op, ops};
use crate::scratch::InProcess;
use crate::target::{Target, Tree};

/// Runs operations on both targets and compares after each.
fn run(one: &mut dyn Target, other: &mut dyn Target, features: Features, ops: &[Op]) -> Result<(), String> {
    let mut tree = one.tree();
    for (step, op) in ops.iter().enumerate() {
        let Some(call) = op.resolve(&tree, features) else { continue };
        one.settle();
        other.settle();
        let (expected, answer) = (one.apply(&call), other.apply(&call));
        let context = || format!("step {step}, {call:?}");
        if expected != answer {
            let (one, other) = (one.name(), other.name());
            return Err(format!("{}:\n  {one}: {expected:?}\n  {other}: {answer:?}", context()));
        }
        tree = one.tree();
        compare(&tree, &other.tree(), one.name(), other.name()).map_err(|what| format!("{}:\n{what}", context()))?;
    }
    Ok(())
}

fn compare(expected: &Tree, tree: &Tree, one: &str, other: &str) -> Result<(), String> {
    let paths = expected.0.keys().chain(tree.0.keys());
    let differ = |path: &&String| expected.0.get(*path) != tree.0.get(*path);
    match paths.into_iter().find(differ) {
        None => Ok(()),
        Some(path) => {
            let (a, b) = (expected.0.get(path), tree.0.get(path));
            Err(format!("  {path:?} in {one}: {a:?}\n  {path:?} in {other}: {b:?}"))
        }
    }
}

/// Runs operations on a scratch in this process and on an empty directory.
fn run_on_directory(path: &Path, features: Features, ops: &[Op]) -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut scratch = InProcess::new(uid, gid, features.ctime);
    run(&mut Directory::new(path, features), &mut scratch, features, ops)?;
    scratch.finish();
    Ok(())
}

#[test]
fn scratch_and_the_model_agree() {
    let features = Features { root: true, xattrs: true, acls: false, zero_range: true, ctime: true };
    check(2 * cases(), |ops| {
        let mut scratch = InProcess::new(1000, 100, true);
        run(&mut Model::new(1000, 100), &mut scratch, features, ops)?;
        scratch.finish();
        Ok(())
    });
}

// promise: S-02
#[test]
fn scratch_and_the_host_agree() {
    compare_with_the_host(cases(), false);
}

#[test]
fn scratch_and_the_host_agree_on_what_moves_ctime() {
    compare_with_the_host(cases().div_ceil(8), true);
}

// promise: S-02
#[test]
fn scratch_and_its_mount_agree() {
    let Some(mounted) = scratch_mount::mount_options(&["suid", "dev"]) else { return };
    compare_with_directory(&mounted.root(), cases().div_ceil(4), false);
    compare_with_directory(&mounted.root(), cases().div_ceil(8), true);
}

fn compare_with_the_host(cases: u32, ctime: bool) {
    let Some(base) = host_directory() else {
        eprintln!("SKIP: no directory on tmpfs to compare with (RUNSEAL_REFERENCE_DIR, /dev/shm)");
        return;
    };
    compare_with_directory(base.path(), cases, ctime);
}

fn compare_with_directory(base: &Path, cases: u32, ctime: bool) {
    let features = Features { ctime, ..Directory::probe(base) };
    eprintln!("comparing with {}: {features:?}", base.display());
    check(cases, |ops| {
        let dir = tempfile::tempdir_in(base).unwrap();
        run_on_directory(dir.path(), features, ops)
    });
}

fn check(cases: u32, test: impl Fn(&[Op]) -> Result<(), String>) {
    // Committed: a case that once failed is tried first for ever.
    let regressions = FileFailurePersistence::Direct("tests/reference/regressions.txt");
    let failure_persistence = Some(Box::new(regressions) as _);
    let config = Config { cases, failure_persistence, max_shrink_iters: 2000, ..Config::default() };
    let test = |ops: Vec<Op>| test(&ops).map_err(TestCaseError::fail);
    if let Err(error) = TestRunner::new(config).run(&ops(60), test) {
        panic!("{error}");
    }
}

fn cases() -> u32 {
    std::env::var("RUNSEAL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(128)
}

fn host_directory() -> Option<tempfile::TempDir> {
    let base = std::env::var_os("RUNSEAL_REFERENCE_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    tempfile::tempdir_in(base).ok()
}
