//! Results whole or not at all, the manifest last, and every failure can be repeated.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::support::check;
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use runseal::fs::{Kind, ROOT, WriteMode};
use runseal::spec::StagingRules;
use runseal::stage::{StageError, Stager, Totals};
use runseal::sys::path;

use crate::support::{CALLER, Hooks, MANIFEST, PARTIAL, Place, RUN, Tmpfs, assert_published, noise};

fn some_results() -> Place {
    let place = Place::new();
    place.results(&[("a", "first"), ("b/", ""), ("b/c", "second"), ("b/d/", ""), ("z", "third")]);
    place
}

// promise: S-51
#[test]
fn the_manifest_says_what_was_published() {
    let place = some_results();
    for (name, kind) in [(b"fifo".as_slice(), Kind::Fifo), (b"sock", Kind::Socket)] {
        place.scratch.mknod(place.find("b"), name, kind, 0o600, 0, &CALLER).unwrap();
    }
    place.scratch.symlink(ROOT, b"link", b"\xff", &CALLER).unwrap();
    let totals = place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap();
    let expected = Totals { files: 3, directories: 2, symlinks: 1, bytes: 16, skipped: 2, ..Totals::default() };
    assert_eq!(totals, expected);
    assert_published(&place);
    assert_eq!(place.published(), ["a", "b", "link", MANIFEST, "z"]);
    let manifest = place.manifest();
    assert_eq!(
        (&manifest["format"], &manifest["version"], &manifest["run"]),
        (&"runseal-manifest".into(), &1.into(), &RUN.into())
    );
    assert!(manifest["created"].as_str().unwrap().ends_with('Z'));
    let file = manifest["files"].as_array().unwrap().iter().find(|f| f["path"] == "b/c").unwrap();
    assert_eq!(file["mode"], "0644");
    assert_eq!(manifest["directories"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["symlinks"][0]["target_bytes"], "ff");
    assert_eq!(manifest["skipped"][0], serde_json::json!({"path": "b/fifo", "kind": "fifo"}));
}

#[test]
fn a_name_that_is_not_utf8_is_in_the_manifest_by_its_bytes() {
    let place = Place::new();
    place.file(ROOT, b"odd\xff", b"x");
    place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap();
    let manifest = place.manifest();
    assert_eq!(manifest["files"][0]["path"], "odd\u{fffd}");
    assert_eq!(manifest["files"][0]["path_bytes"], "6f6464ff");
    assert!(place.output(std::ffi::OsStr::from_bytes(b"odd\xff")).exists());
}

#[test]
fn without_an_output_nothing_happens() {
    let place = Place::new();
    let cleared = check(&[], None, false, 0).unwrap();
    let stager = Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), Hooks::none(), Arc::default());
    assert_eq!(stager.publish(ROOT, None).unwrap(), Totals::default());
}

#[test]
fn a_new_output_and_the_manifest_take_the_bits_of_the_results() {
    for (from, output, manifest) in [(0o755, 0o755, 0o644), (0o2750, 0o750, 0o640), (0o700, 0o700, 0o600)] {
        let place = Place::new();
        place.results(&[("results/", ""), ("results/x", "")]);
        let set = runseal::fs::SetAttr { mode: Some(from), ..Default::default() };
        place.scratch.setattr(place.find("results"), &set).unwrap();
        place.publisher(false, &Hooks::none()).publish(place.find("results"), None).unwrap();
        let mode = |name| fs::metadata(place.output(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(""), mode(MANIFEST)), (output, manifest));
    }
}

#[test]
fn nothing_is_visible_while_it_is_written() {
    let place = some_results();
    let output = place.output("");
    let hooks = Hooks::once_under_way(move || assert_eq!(path::list(&output).unwrap(), [PARTIAL]));
    place.publisher(false, &hooks).publish(ROOT, None).unwrap();
    assert_eq!((hooks.files.load(Ordering::Relaxed), hooks.expected.load(Ordering::Relaxed)), (3, 16));

    let place = some_results();
    let output = place.output("");
    let written = Hooks::once_written(move || {
        assert_eq!(path::list(&output).unwrap(), [PARTIAL]);
        assert_eq!(fs::read(output.join(PARTIAL).join("b/c")).unwrap(), b"second");
        assert!(!output.join(PARTIAL).join(MANIFEST).exists());
    });
    place.publisher(false, &written).publish(ROOT, None).unwrap();
}

#[test]
fn a_name_that_runseal_needs_is_refused() {
    for name in [MANIFEST, PARTIAL] {
        let place = Place::new();
        place.results(&[(name, "mine")]);
        let error = place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap_err();
        assert!(matches!(&error, StageError::Reserved { path } if path.as_os_str() == name), "{error:?}");
        assert_eq!(place.published(), [""; 0]);
    }
    let place = Place::new();
    place.results(&[("below/", ""), ("below/runseal-manifest.json", "mine")]);
    place.publisher(false, &Hooks::none()).publish(ROOT, None).unwrap();
}

#[test]
fn what_appears_before_publishing_is_not_touched() {
    let place = some_results();
    let stager = place.publisher(false, &Hooks::none());
    fs::create_dir_all(place.output("")).unwrap();
    for name in ["z", "b", MANIFEST] {
        fs::write(place.output(name), "not mine").unwrap();
        let error = stager.publish(ROOT, None).unwrap_err();
        assert!(matches!(&error, StageError::Appeared { path } if *path == place.output(name)), "{error:?}");
        assert_eq!(place.published(), [name]);
        assert_eq!(fs::read(place.output(name)).unwrap(), b"not mine");
        fs::remove_file(place.output(name)).unwrap();
    }
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
}

#[test]
fn what_appears_in_the_middle_of_renaming_only_delays() {
    let place = some_results();
    let intruder = place.output("b");
    let stager = place.publisher(false, &Hooks::once_written(move || fs::write(intruder, "not mine").unwrap()));
    for _ in 0..2 {
        let error = stager.publish(ROOT, None).unwrap_err();
        assert!(matches!(&error, StageError::Appeared { path } if *path == place.output("b")), "{error:?}");
        assert_eq!(place.published(), [PARTIAL, "a", "b"]);
    }
    let report = check(&[], Some(&place.output("")), true, 0).unwrap_err();
    assert!(report.findings[0].problem.contains("publishing there now"), "{report}");
    fs::remove_file(place.output("b")).unwrap();
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
    place.assert_nothing_is_held();
}

#[test]
fn the_manifest_comes_last_and_can_be_repeated() {
    let place = some_results();
    let intruder = place.output(MANIFEST);
    let stager = place.publisher(false, &Hooks::once_written(move || fs::create_dir(intruder).unwrap()));
    assert!(matches!(stager.publish(ROOT, None), Err(StageError::Appeared { path }) if path.ends_with(MANIFEST)));
    assert!(place.output("z").exists() && place.output("b/c").exists());
    fs::remove_dir(place.output(MANIFEST)).unwrap();
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
}

#[test]
fn giving_up_takes_the_hidden_directory_away() {
    let place = some_results();
    let intruder = place.output("b");
    let stager = place.publisher(false, &Hooks::once_written(move || fs::write(intruder, "not mine").unwrap()));
    stager.publish(ROOT, None).unwrap_err();
    drop(stager);
    assert_eq!(place.published(), ["a", "b"]);
}

#[test]
fn a_hidden_directory_that_was_cleared_away_is_written_again() {
    let place = Place::new();
    place.results(&[("b", "result")]);
    let intruder = place.output("b");
    let stager = place.publisher(false, &Hooks::once_written(move || fs::write(intruder, "not mine").unwrap()));
    stager.publish(ROOT, None).unwrap_err();
    fs::remove_dir_all(place.output(PARTIAL)).unwrap();
    fs::remove_file(place.output("b")).unwrap();
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
}

#[test]
fn overwriting_replaces_files_merges_directories_and_leaves_the_rest() {
    let place = some_results();
    fs::create_dir_all(place.output("b/kept")).unwrap();
    fs::set_permissions(place.output("b"), fs::Permissions::from_mode(0o711)).unwrap();
    for (name, contents) in [("a", "old"), ("b/c", "old"), ("b/other", "old"), (MANIFEST, "{}")] {
        fs::write(place.output(name), contents).unwrap();
    }
    symlink("a", place.output("z")).unwrap();
    let old_manifest = place.output(MANIFEST);
    let hooks = Hooks::once_under_way(move || assert_eq!(fs::read(old_manifest).unwrap(), b"{}"));
    place.publisher(true, &hooks).publish(ROOT, None).unwrap();
    assert_published(&place);
    assert_eq!(place.published(), ["a", "b", MANIFEST, "z"]);
    assert_eq!(fs::read(place.output("a")).unwrap(), b"first");
    assert_eq!(fs::read(place.output("b/c")).unwrap(), b"second");
    assert_eq!(fs::read(place.output("b/other")).unwrap(), b"old");
    assert!(place.output("z").symlink_metadata().unwrap().is_file());
    assert_eq!(place.output("b").metadata().unwrap().permissions().mode() & 0o7777, 0o711);
    assert!(place.output("b/d").is_dir() && place.output("b/kept").is_dir());
}

#[test]
fn an_old_manifest_never_vouches_for_new_files() {
    let place = Place::new();
    place.results(&[("a", "new"), ("b", "new")]);
    fs::create_dir_all(place.output("")).unwrap();
    fs::write(place.output(MANIFEST), "{}").unwrap();
    let intruder = place.output("b");
    let stager = place.publisher(true, &Hooks::once_written(move || fs::create_dir(intruder).unwrap()));
    assert!(matches!(stager.publish(ROOT, None), Err(StageError::InTheWay { .. })));
    assert_eq!(fs::read(place.output("a")).unwrap(), b"new");
    assert!(!place.output(MANIFEST).exists());
    fs::remove_dir(place.output("b")).unwrap();
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
}

#[test]
fn unlike_is_not_replaced_and_nothing_before_it_either() {
    for (way, is_directory) in [("z", true), ("b", false), ("b/d", false), (MANIFEST, true)] {
        let place = some_results();
        fs::create_dir_all(place.output("b")).unwrap();
        fs::write(place.output("a"), "old").unwrap();
        let _ = fs::remove_dir(place.output(way));
        match is_directory {
            true => fs::create_dir(place.output(way)).unwrap(),
            false => symlink("/", place.output(way)).unwrap(),
        }
        let error = place.publisher(true, &Hooks::none()).publish(ROOT, None).unwrap_err();
        assert!(matches!(&error, StageError::InTheWay { path } if *path == place.output(way)), "{way}: {error:?}");
        assert_eq!(fs::read(place.output("a")).unwrap(), b"old");
        assert!(!place.output(PARTIAL).exists());
    }
}

#[test]
fn results_that_do_not_fit_are_not_begun() {
    let place = Place::new();
    let Some(disk) = Tmpfs::over(&place.output(""), "size=1m,mode=755") else { return };
    place.file(ROOT, b"large", &noise(2 << 20, 1));
    let stager = place.publisher(false, &Hooks::none());
    let error = stager.publish(ROOT, None).unwrap_err();
    assert!(matches!(error, StageError::NoRoom { needed: 0x20_0000, .. }), "{error:?}");
    assert!(error.to_string().contains("need 2.0 MiB") && error.to_string().contains("free space there"), "{error}");
    assert_eq!(place.published(), [""; 0]);
    disk.remount("size=8m,mode=755");
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
    // It keeps the output locked.
    drop(stager);
    drop(disk);
}

#[test]
fn a_disk_that_fills_up_under_way_can_be_emptied_and_tried_again() {
    let place = Place::new();
    let Some(disk) = Tmpfs::over(&place.output(""), "size=8m,mode=755") else { return };
    place.file(ROOT, b"large", &noise(4 << 20, 1));
    fs::create_dir(place.output("sub")).unwrap();
    let (output, filler) = (place.output("sub"), place.output("filler"));
    let cleared = check(&[], Some(&output), false, 0).unwrap();
    let hooks = Hooks::once_under_way(move || drop(fs::write(filler, noise(8 << 20, 2))));
    let stager = Stager::new(cleared, Arc::clone(&place.scratch), RUN.parse().unwrap(), hooks, Arc::default());
    let error = stager.publish(ROOT, None).unwrap_err();
    let StageError::Outside { action: "writing", path, source } = &error else { panic!("{error:?}") };
    assert_eq!((path, source.kind()), (&output.join("large"), std::io::ErrorKind::StorageFull));
    assert!(error.to_string().ends_with("; free space there"), "{error}");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0);
    fs::remove_file(place.output("filler")).unwrap();
    stager.publish(ROOT, None).unwrap();
    assert_eq!(fs::read(output.join("large")).unwrap(), noise(4 << 20, 1));
    // It keeps the output locked.
    drop(stager);
    drop(disk);
}

#[test]
fn an_output_that_lost_its_permission_can_be_repaired_and_tried_again() {
    if !geteuid().is_root() {
        eprintln!("SKIP: only root can take the rights of another user");
        return;
    }
    let place = some_results();
    let stager = place.publisher(false, &Hooks::none());
    stager.set_rules(StagingRules { shared_output: true, ..StagingRules::default() });
    fs::create_dir(place.output("")).unwrap();
    let as_nobody = || {
        setfsgid(Gid::from_raw(65_534));
        setfsuid(Uid::from_raw(65_534));
        stager.publish(ROOT, None)
    };
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o755)).unwrap();
    let error = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap()).unwrap_err();
    assert!(matches!(&error, StageError::Outside { action: "creating", .. }), "{error:?}");
    assert!(error.to_string().contains("give this user the right to it"), "{error}");
    assert_eq!(place.published(), [""; 0]);
    fs::set_permissions(place.output(""), fs::Permissions::from_mode(0o777)).unwrap();
    std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap()).unwrap();
    assert_published(&place);
}

#[test]
fn directories_that_forbid_writing_are_published_by_their_owner() {
    if !geteuid().is_root() {
        eprintln!("SKIP: only root can take the rights of another user");
        return;
    }
    let place = some_results();
    let set = runseal::fs::SetAttr { mode: Some(0o555), ..Default::default() };
    place.scratch.setattr(place.find("b"), &set).unwrap();
    let stager = place.publisher(false, &Hooks::none());
    stager.set_rules(StagingRules { shared_output: true, ..StagingRules::default() });
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o777)).unwrap();
    let as_nobody = || {
        setfsgid(Gid::from_raw(65_534));
        setfsuid(Uid::from_raw(65_534));
        stager.publish(ROOT, None)
    };
    std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap()).unwrap();
    assert_published(&place);
    assert_eq!(place.output("b").metadata().unwrap().permissions().mode() & 0o7777, 0o555);
}

#[test]
fn a_result_that_changes_while_it_is_published_is_refused() {
    let place = Place::new();
    let ino = place.file(ROOT, b"busy", &noise(3 << 20, 1)).ino;
    let scratch = Arc::clone(&place.scratch);
    let hooks = Hooks::once_under_way(move || scratch.write(ino, 4 << 20, b"more", WriteMode::default()).unwrap());
    let stager = place.publisher(false, &hooks);
    let error = stager.publish(ROOT, None).unwrap_err();
    assert!(matches!(&error, StageError::Unsettled { path } if path.as_os_str() == "busy"), "{error:?}");
    assert_eq!(place.published(), [""; 0]);
    stager.publish(ROOT, None).unwrap();
    assert_eq!(fs::metadata(place.output("busy")).unwrap().len(), (4 << 20) + 4);
}

#[test]
fn a_scratch_that_cannot_be_read_leaves_nothing_behind() {
    let place = some_results();
    let stager = place.publisher(false, &Hooks::none());
    place.fault.arm(0, nix::errno::Errno::EIO as i32);
    let error = stager.publish(ROOT, None).unwrap_err();
    assert!(matches!(&error, StageError::Inside { action: "reading", .. }), "{error:?}");
    assert_eq!(place.published(), [""; 0]);
    place.fault.disarm();
    stager.publish(ROOT, None).unwrap();
    assert_published(&place);
}
