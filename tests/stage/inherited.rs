//! The group, the set-group-ID bit and the default ACL of a shared directory reach the results, as with cp and mkdir.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};
use runseal::fs::{ROOT, SetAttr};
use runseal::spec::StagingRules;
use runseal::stage::{StageError, Totals};
use runseal::sys::acl::default_acl;

use crate::support::{Hooks, Place, assert_published};

/// Group of the project, of which nobody here is a member unless it is said.
const PROJECT: u32 = 4_711;
const USER: u32 = 65_534;

/// Outputs that a group shares.
const SHARED: StagingRules =
    StagingRules { dereference: false, keep_old: false, allow_empty: false, shared_output: true, keep_set_id: false };

fn some_results() -> Place {
    let place = Place::new();
    place.results(&[("file", "x"), ("dir/", ""), ("dir/deep/", ""), ("dir/deep/file", "y")]);
    place.link("link", "file");
    // Within the umask of these tests: who is not in the group may not call chmod(2) without losing set-group-ID.
    for shared in ["dir", "dir/deep"] {
        place.scratch.setattr(place.find(shared), &SetAttr { mode: Some(0o755), ..SetAttr::default() }).unwrap();
    }
    // What the command made belongs to some user and group of its own.
    for path in ["file", "dir", "dir/deep", "dir/deep/file", "link"] {
        let owner = SetAttr { uid: Some(1_234), gid: Some(1_235), ..SetAttr::default() };
        place.scratch.setattr(place.find(path), &owner).unwrap();
    }
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o755)).unwrap();
    place
}

fn share(directory: &Path, mode: u32) {
    chown(directory, None, Some(PROJECT)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
}

fn publish(place: &Place, overwrite: bool, as_root: bool) -> Result<Totals, StageError> {
    let stager = place.run_publisher(overwrite, SHARED, &Hooks::none());
    let work = || {
        if !as_root {
            setfsgid(Gid::from_raw(USER));
            setfsuid(Uid::from_raw(USER));
        }
        stager.publish(ROOT, None)
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// Mode and group of each result.
fn seen(place: &Place, names: &[&str]) -> Vec<(u32, u32)> {
    let of = |name: &&str| {
        let found = place.output(name).symlink_metadata().unwrap();
        (found.mode() & 0o7777, found.gid())
    };
    names.iter().map(of).collect()
}

macro_rules! require_root {
    () => {
        if !geteuid().is_root() {
            eprintln!("SKIP: only root can make directories of other groups");
            return;
        }
    };
}

// promise: S-114
#[test]
fn a_set_group_id_directory_gives_results_its_group_and_new_directories_its_bit() {
    require_root!();
    for as_root in [true, false] {
        let place = some_results();
        fs::create_dir(place.output("")).unwrap();
        share(&place.output(""), 0o2777);
        publish(&place, false, as_root).unwrap();
        let expected = [(0o644, PROJECT), (0o2755, PROJECT), (0o2755, PROJECT), (0o644, PROJECT)];
        assert_eq!(seen(&place, &["file", "dir", "dir/deep", "dir/deep/file"]), expected, "as root: {as_root}");
        assert_eq!(place.output("link").symlink_metadata().unwrap().gid(), PROJECT);
        assert_eq!(place.output("runseal-manifest.json").metadata().unwrap().gid(), PROJECT);
        let owner = place.output("file").metadata().unwrap().uid();
        assert_eq!(owner, if as_root { 1_234 } else { USER }, "owners are kept as root");
        assert!(!place.output(crate::support::PARTIAL).exists());
    }
}

// promise: S-114
#[test]
fn an_output_that_is_made_inherits_from_its_parent() {
    require_root!();
    for as_root in [true, false] {
        let place = some_results();
        share(&place.dir, 0o2777);
        publish(&place, false, as_root).unwrap();
        let expected = [(0o2755, PROJECT), (0o644, PROJECT), (0o2755, PROJECT), (0o644, PROJECT)];
        assert_eq!(seen(&place, &["", "file", "dir", "dir/deep/file"]), expected, "as root: {as_root}");
    }
}

// promise: S-114
#[test]
fn without_set_group_id_root_keeps_groups() {
    require_root!();
    let place = some_results();
    fs::create_dir(place.output("")).unwrap();
    share(&place.output(""), 0o777);
    publish(&place, false, true).unwrap();
    assert_eq!(seen(&place, &["file", "dir", "dir/deep"]), [(0o644, 1_235), (0o755, 1_235), (0o755, 1_235)]);
    assert_eq!(place.output("link").symlink_metadata().unwrap().gid(), 1_235);
}

// promise: S-114
#[test]
fn results_that_are_added_to_a_directory_inherit_from_that_one() {
    require_root!();
    for as_root in [true, false] {
        let place = some_results();
        fs::create_dir_all(place.output("dir")).unwrap();
        fs::set_permissions(place.output(""), fs::Permissions::from_mode(0o777)).unwrap();
        share(&place.output("dir"), 0o2777);
        publish(&place, true, as_root).unwrap();
        let expected = [(0o2777, PROJECT), (0o2755, PROJECT), (0o644, PROJECT)];
        assert_eq!(seen(&place, &["dir", "dir/deep", "dir/deep/file"]), expected, "as root: {as_root}");
        assert_eq!(fs::read_dir(place.output("dir")).unwrap().count(), 1, "nothing hidden is left");
        let alone = place.output("file").metadata().unwrap().gid();
        assert_eq!(alone, if as_root { 1_235 } else { USER });
    }
}

/// `setfacl -d -m g:PROJECT:rwx -m o::---`, in the form of `posix_acl_xattr.h`.
fn shared_acl() -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(0x01u16, 7u16, u32::MAX), (0x04, 5, u32::MAX), (0x08, 7, PROJECT), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]
    {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

// promise: S-114
#[test]
fn a_default_acl_applies_to_results_as_to_what_cp_and_mkdir_make() {
    require_root!();
    let place = some_results();
    fs::create_dir(place.output("")).unwrap();
    fs::set_permissions(place.output(""), fs::Permissions::from_mode(0o777)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(e) = rustix::fs::setxattr(place.output(""), "system.posix_acl_default", &shared_acl(), flags) {
        eprintln!("SKIP: this file system has no ACLs: {e}");
        return;
    }
    // The yardstick: what a program makes there that asks for the same bits.
    let model = place.output("model");
    let script = "umask 0; mkdir -m 775 \"$0\" && touch \"$0/file\" && cp -r \"$0\" \"$0.copy\"";
    assert!(Command::new("sh").args(["-c", script]).arg(&model).status().unwrap().success());
    let others = fs::metadata(place.output("model.copy/file")).unwrap().mode() & 0o7;
    for name in ["model", "model.copy"] {
        fs::remove_dir_all(place.output(name)).unwrap();
    }
    publish(&place, false, true).unwrap();
    let [file, dir, deep] = seen(&place, &["file", "dir", "dir/deep/file"])[..] else { panic!("three") };
    assert_eq!((file.0 & 0o7, deep.0 & 0o7, others), (0, 0, 0), "others get nothing");
    assert_eq!((file.0, dir.0), (0o640, 0o750), "the mask is what the command gave to the group");
    for directory in ["dir", "dir/deep"] {
        assert_eq!(
            default_acl(fs::File::open(place.output(directory)).unwrap()).unwrap(),
            Some(shared_acl()),
            "{directory}"
        );
    }
}

#[test]
fn results_are_as_before_where_nothing_is_inherited() {
    let place = Place::new();
    place.results(&[("file", "x"), ("dir/", "")]);
    place.run_publisher(false, SHARED, &Hooks::none()).publish(ROOT, None).unwrap();
    assert_published(&place);
}
