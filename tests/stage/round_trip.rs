//! Tree -> fetch -> publish gives the tree.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use proptest::prelude::*;
use runseal::fs::ROOT;
use runseal::spec::StagingRules;
use runseal::sys::path;

use crate::support::{Hooks, Place, assert_published, noise, tree};

/// What to make in a random tree; indices are taken modulo what is there.
#[derive(Clone, Debug)]
enum Op {
    Directory { parent: usize, name: usize, mode: u32 },
    File { parent: usize, name: usize, mode: u32, len: usize },
    Sparse { parent: usize, name: usize, data: u64, size: u64 },
    Symlink { parent: usize, name: usize, target: usize },
    HardLink { parent: usize, name: usize, of: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let at = || (any::<usize>(), any::<usize>());
    let len = prop_oneof![Just(0), Just(1), 4090..4100usize, 0..2_000_000usize];
    let mode = || prop_oneof![Just(0o644), Just(0o400), Just(0o755), Just(0o4711), Just(0o2750), Just(0o1777)];
    prop_oneof![
        3 => (at(), mode()).prop_map(|((parent, name), mode)| Op::Directory { parent, name, mode: mode | 0o500 }),
        3 => (at(), mode(), len).prop_map(|((parent, name), mode, len)| Op::File { parent, name, mode: mode | 0o400, len }),
        1 => (at(), 0..40_000_000u64, 0..20_000_000u64)
            .prop_map(|((parent, name), data, rest)| Op::Sparse { parent, name, data, size: data + 5 + rest }),
        1 => (at(), any::<usize>()).prop_map(|((parent, name), target)| Op::Symlink { parent, name, target }),
        1 => (at(), any::<usize>()).prop_map(|((parent, name), of)| Op::HardLink { parent, name, of }),
    ]
}

fn name(index: usize) -> OsString {
    let long = "n".repeat(255);
    let names =
        [b"a".as_slice(), b"b", b"\xff\xfe", b"new\nline", b" ", b"-rf *", "\u{e9}".as_bytes(), long.as_bytes()];
    OsStr::from_bytes(names[index % names.len()]).to_owned()
}

/// Makes the tree; names that are taken are passed over. Attributes come last, deepest first.
fn make(root: &Path, ops: &[Op]) {
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut modes: Vec<(PathBuf, u32)> = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let (Op::Directory { parent, name: n, .. }
        | Op::File { parent, name: n, .. }
        | Op::Sparse { parent, name: n, .. }
        | Op::Symlink { parent, name: n, .. }
        | Op::HardLink { parent, name: n, .. }) = op;
        let place = directories[parent % directories.len()].join(name(*n));
        if place.symlink_metadata().is_ok() {
            continue;
        }
        match op {
            Op::Directory { mode, .. } => {
                fs::create_dir(&place).unwrap();
                modes.push((place.clone(), *mode));
                directories.push(place);
            }
            Op::File { mode, len, .. } => {
                fs::write(&place, noise(*len, i as u64)).unwrap();
                modes.push((place.clone(), *mode));
                files.push(place);
            }
            Op::Sparse { data, size, .. } => {
                let file = File::create(&place).unwrap();
                file.set_len(*size).unwrap();
                file.write_all_at(b"data!", *data).unwrap();
                files.push(place);
            }
            Op::Symlink { target, .. } => symlink(name(*target), &place).unwrap(),
            Op::HardLink { of, .. } if !files.is_empty() => fs::hard_link(&files[of % files.len()], &place).unwrap(),
            Op::HardLink { .. } => {}
        }
    }
    let all: Vec<PathBuf> = tree(root).into_keys().collect();
    for (i, relative) in all.iter().enumerate().rev().filter(|(_, relative)| !relative.as_os_str().is_empty()) {
        if geteuid().is_root() {
            path::set_owner(&root.join(relative), Some(1000 + i as u32 % 3), Some(2000 + i as u32 % 2)).unwrap();
        }
        path::set_mtime(&root.join(relative), (1_000_000_000 - i as i64 * 1_000_000, i as u32 + 1)).unwrap();
    }
    for (place, mode) in modes.into_iter().rev() {
        fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn round_trip(place: &Place) {
    let hooks = Hooks::none();
    let stager = place.stager(false, &hooks);
    stager.set_rules(StagingRules { keep_set_id: true, ..StagingRules::default() });
    let fetched = stager.fetch(ROOT, None).unwrap();
    assert_eq!(hooks.bytes.swap(0, std::sync::atomic::Ordering::Relaxed), fetched.bytes);
    let published = stager.publish(ROOT, None).unwrap();
    assert_eq!(hooks.bytes.swap(0, std::sync::atomic::Ordering::Relaxed), fetched.bytes);
    assert_eq!(published, fetched);
    let (before, after) = (tree(&place.dir.join("in")), tree(&place.output("set")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, node) in &before {
        let other = &after[name];
        assert!(node == other, "{name:?}: {:o} {:?} {:o} {:?}", node.mode, node.mtime, other.mode, other.mtime);
    }
    assert_published(place);
    place.assert_nothing_is_held();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    // promise: S-50, S-51
    #[test]
    fn a_random_tree_comes_back_equal(ops in proptest::collection::vec(op(), 0..40)) {
        let place = Place::new();
        make(&place.dir.join("in"), &ops);
        round_trip(&place);
    }
}

#[test]
fn large_files_are_put_together_from_their_parts() {
    let place = Place::new();
    fs::write(place.input("large"), noise(50_000_001, 7)).unwrap();
    fs::write(place.input("exactly-two-parts"), noise(32 << 20, 8)).unwrap();
    round_trip(&place);
}

#[test]
fn many_small_files() {
    let place = Place::new();
    for directory in 0..10 {
        fs::create_dir(place.input(directory.to_string())).unwrap();
        for file in 0..300 {
            fs::write(place.input(format!("{directory}/{file}")), noise(file, file as u64)).unwrap();
        }
    }
    round_trip(&place);
}

#[test]
fn a_tree_deeper_than_any_path() {
    let place = Place::new();
    let mut deep = place.dir.join("in");
    for _ in 0..1000 {
        deep.push("below");
        path::make_directory(&deep, 0o755).unwrap();
    }
    std::io::Write::write_all(&mut path::create(&deep.join("bottom"), 0o644).unwrap(), b"found").unwrap();
    round_trip(&place);
}

#[test]
fn holes_stay_holes_in_both_directions() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let file = File::create(place.input("sparse")).unwrap();
    for at in [0, 30 << 20, 100 << 20] {
        file.write_all_at(b"island", at).unwrap();
    }
    file.set_len(200 << 20).unwrap();
    let stager = place.stager(false, &Hooks::none());
    stager.fetch(ROOT, None).unwrap();
    assert!(place.store.usage().used <= 3, "{:?}", place.store.usage());
    stager.publish(ROOT, None).unwrap();
    let published = place.output("set/sparse").metadata().unwrap();
    assert_eq!(published.len(), 200 << 20);
    assert!(published.blocks() * 512 <= 1 << 20, "{}", published.blocks());
}
