//! Many at once.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread;

use crate::files::forget_cached;
use crate::scratch_mount::{mount, pattern};

#[test]
fn sixteen_writers_each_find_their_own_bytes() {
    let Some(scratch) = mount() else { return };
    let root = scratch.root();
    thread::scope(|scope| {
        for writer in 0..16_u64 {
            let root = &root;
            scope.spawn(move || {
                let path = root.join(format!("file-{writer}"));
                let mut file = File::create_new(&path).expect("a file");
                for part in 0..8 {
                    file.write_all(&pattern(writer * 100 + part, 300_001)).expect("a write");
                }
                forget_cached(&file);
                let all = fs::read(&path).expect("a read");
                for part in 0..8 {
                    let start = part as usize * 300_001;
                    assert!(all[start..start + 300_001] == pattern(writer * 100 + part, 300_001), "{writer} {part}");
                }
            });
        }
    });
}

#[test]
fn writers_of_one_file_do_not_disturb_each_other() {
    let Some(scratch) = mount() else { return };
    let path = scratch.path("shared");
    File::create_new(&path).expect("a file");
    let part = 700_003;
    thread::scope(|scope| {
        for writer in 0..8_usize {
            let path = &path;
            scope.spawn(move || {
                let file = File::options().write(true).open(path).expect("it exists");
                for (n, chunk) in pattern(writer as u64, part).chunks(4099).enumerate() {
                    file.write_all_at(chunk, (writer * part + n * 4099) as u64).expect("a write");
                }
                file.sync_all().expect("fsync");
            });
        }
    });
    forget_cached(&File::open(&path).expect("it exists"));
    let all = fs::read(&path).expect("a read");
    assert_eq!(all.len(), 8 * part);
    for (writer, found) in all.chunks(part).enumerate() {
        assert!(found == pattern(writer as u64, part), "writer {writer}");
    }
}

#[test]
fn one_name_is_made_by_one_only() {
    let Some(scratch) = mount() else { return };
    let root = scratch.root();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    (0..100).filter(|n| File::create_new(root.join(format!("name-{n}"))).is_ok()).count()
                })
            })
            .collect();
        let made: usize = makers.into_iter().map(|maker| maker.join().expect("no panic")).sum();
        assert_eq!(made, 100);
    });
    assert_eq!(fs::read_dir(&root).expect("a listing").count(), 100);
}

#[test]
fn a_directory_survives_renames_and_unlinks_from_all_sides() {
    let Some(scratch) = mount() else { return };
    let root = scratch.root();
    fs::create_dir(root.join("a")).expect("a directory");
    fs::create_dir(root.join("b")).expect("a directory");
    thread::scope(|scope| {
        for worker in 0..8 {
            let root = &root;
            scope.spawn(move || {
                for round in 0..60 {
                    let (a, b) = (root.join(format!("a/{worker}-{round}")), root.join(format!("b/{worker}-{round}")));
                    fs::write(&a, [worker; 100]).expect("a file");
                    fs::rename(&a, &b).expect("rename");
                    fs::hard_link(&b, &a).expect("a link");
                    assert_eq!(fs::read(&a).expect("a read"), [worker; 100]);
                    fs::remove_file(&b).expect("unlink");
                    if round % 2 == 0 {
                        fs::remove_file(&a).expect("unlink");
                    }
                }
            });
        }
    });
    assert_eq!(fs::read_dir(root.join("a")).expect("a listing").count(), 8 * 30);
    assert_eq!(fs::read_dir(root.join("b")).expect("a listing").count(), 0);
}
