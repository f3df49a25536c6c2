//! Inputs that change, vanish or do not fit.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::time::SystemTime;

use super::support::check;
use runseal::fs::{Kind, ROOT};
use runseal::spec::InputSpec;
use runseal::stage::{StageError, Stager};
use std::sync::Arc;

use crate::support::{Hooks, Place, RUN, noise};

fn filled() -> Place {
    let place = Place::new();
    fs::create_dir(place.input("dir")).unwrap();
    fs::write(place.input("dir/file"), "before").unwrap();
    symlink("file", place.input("dir/link")).unwrap();
    place
}

/// Changes the input between preflight and fetch; fetch must name `subject`.
fn assert_noticed(change: impl FnOnce(&Place), subject: &str) {
    let place = filled();
    let stager = place.stager(false, &Hooks::none());
    change(&place);
    match stager.fetch(ROOT, None) {
        Err(StageError::Modified { path }) => {
            assert_eq!(path, place.dir.canonicalize().unwrap().join("in").join(subject));
        }
        other => panic!("{subject}: {other:?}"),
    }
}

// promise: S-58
#[test]
fn changes_after_preflight_are_noticed() {
    assert_noticed(|p| fs::write(p.input("dir/file"), "after!").unwrap(), "dir/file");
    assert_noticed(|p| fs::remove_file(p.input("dir/file")).unwrap(), "dir/file");
    assert_noticed(|p| fs::write(p.input("dir/new"), "").unwrap(), "dir");
    assert_noticed(
        |p| {
            fs::remove_file(p.input("dir/file")).unwrap();
            symlink("/etc/passwd", p.input("dir/file")).unwrap();
        },
        "dir/file",
    );
    assert_noticed(
        |p| {
            fs::write(p.input("other"), "before").unwrap();
            fs::rename(p.input("other"), p.input("dir/file")).unwrap();
        },
        "dir/file",
    );
    assert_noticed(
        |p| {
            fs::rename(p.input("dir"), p.dir.join("elsewhere")).unwrap();
            symlink("../elsewhere", p.input("dir")).unwrap();
        },
        // The first thing in it that is looked at: no link is followed to see whether it is the same.
        "dir/link",
    );
}

#[test]
fn a_retargeted_link_is_noticed() {
    let place = filled();
    let stager = place.stager(false, &Hooks::none());
    fs::remove_file(place.input("dir/link")).unwrap();
    symlink("elsewhere", place.input("dir/link")).unwrap();
    let Err(StageError::Modified { path }) = stager.fetch(ROOT, None) else { panic!() };
    assert!(path.ends_with("dir/link"));
}

#[test]
fn a_change_that_hides_behind_the_old_time_is_noticed() {
    assert_noticed(
        |p| {
            let file = File::options().write(true).open(p.input("dir/file")).unwrap();
            let old = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"BEFORE", 0).unwrap();
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
        },
        "dir/file",
    );
}

/// Changes a large file while its copy is under way.
fn assert_noticed_under_way(change: impl FnOnce(PathBuf) + Send + 'static) {
    let place = Place::new();
    let path = place.input("large");
    fs::write(&path, noise(40 << 20, 3)).unwrap();
    let target = path.clone();
    let stager = place.stager(false, &Hooks::once_under_way(move || change(target)));
    match stager.fetch(ROOT, None) {
        Err(StageError::Modified { path: named }) => assert_eq!(named, path.canonicalize().unwrap()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn changes_during_the_copy_are_noticed() {
    assert_noticed_under_way(|path| File::options().append(true).open(path).unwrap().write_all(b"more").unwrap());
    assert_noticed_under_way(|path| File::options().write(true).open(path).unwrap().set_len(1).unwrap());
    assert_noticed_under_way(|path| {
        File::options().write(true).open(path).unwrap().write_all_at(b"inside", 20 << 20).unwrap()
    });
    assert_noticed_under_way(|path| {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap()
    });
}

#[test]
fn hard_links_become_files_of_their_own() {
    let place = Place::new();
    fs::write(place.input("one"), "shared").unwrap();
    fs::hard_link(place.input("one"), place.input("two")).unwrap();
    place.fetch().unwrap();
    let (one, two) = (place.find("set/one"), place.find("set/two"));
    assert_ne!(one, two);
    assert_eq!(place.scratch.getattr(one).unwrap().nlink, 1);
    assert_eq!(place.contents("set/two"), b"shared");
}

#[test]
fn inputs_land_where_they_were_sent() {
    let place = filled();
    fs::write(place.dir.join("single"), "alone").unwrap();
    symlink("single", place.dir.join("alias")).unwrap();
    let spec = |source: &str, target: &str| InputSpec { source: place.dir.join(source).into(), target: target.into() };
    let inputs =
        [spec("single", "a/b/one"), spec("alias", "two"), spec("in", "a/set"), spec("single", "a/set/dir/more")];
    let cleared = check(&inputs, None, false, 1 << 20).unwrap();
    let stager = Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Hooks::none(), Arc::default());
    let totals = stager.fetch(ROOT, None).unwrap();
    assert_eq!((totals.files, totals.directories, totals.symlinks, totals.bytes), (4, 4, 1, 21));
    for path in ["a/b/one", "two", "a/set/dir/more"] {
        assert_eq!(place.contents(path), b"alone", "{path}");
    }
    assert_eq!(place.scratch.getattr(place.find("two")).unwrap().kind, Kind::File);
    assert_eq!(place.scratch.readlink(place.find("a/set/dir/link")).unwrap(), b"file");
    assert_eq!(place.scratch.getattr(place.find("a")).unwrap().mode, 0o755);
}

#[test]
fn a_scratch_that_is_too_small_says_what_to_do() {
    let place = Place::with_limit(1 << 20);
    fs::write(place.input("large"), noise(2 << 20, 1)).unwrap();
    let error = place.fetch().unwrap_err();
    assert!(
        matches!(&error, StageError::Inside { action: "writing", path, .. } if path.ends_with("set/large")),
        "{error:?}"
    );
    assert!(error.to_string().contains("raise --size"), "{error}");
    place.assert_nothing_is_held();
}

#[test]
fn a_failing_backing_is_an_inside_error() {
    let place = Place::new();
    fs::write(place.input("file"), noise(8 << 20, 1)).unwrap();
    place.fault.arm(2, nix::errno::Errno::EIO as i32);
    assert!(matches!(place.fetch(), Err(StageError::Inside { action: "writing", .. })));
}
