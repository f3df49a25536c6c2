//! What common work costs in requests to the server. More than this is a lost capability or a lost cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;

use crate::fixture::{Mounted, mount, pattern};

type Requests = BTreeMap<&'static str, u64>;

#[test]
fn a_small_new_file_costs_six_requests() {
    let Some(scratch) = primed() else { return };
    let seen = during(&scratch, || fs::write(scratch.path("new"), [7; 4096]).expect("a write"));
    at_most(&seen, &[("GETATTR", 1), ("LOOKUP", 1), ("CREATE", 1), ("GETXATTR", 1), ("WRITE", 1), ("SETATTR", 1)]);
}

#[test]
fn reading_what_is_cached_costs_nothing() {
    let Some(scratch) = primed() else { return };
    let path = scratch.path("file");
    fs::write(&path, [7; 4096]).expect("a write");
    let mut bytes = [0; 4096];
    let mut read = || File::open(&path).and_then(|mut file| file.read_exact(&mut bytes)).expect("a read");
    read();
    let seen = during(&scratch, || (0..10).for_each(|_| read()));
    at_most(&seen, &[]);
    // Under the writeback cache each close makes the kernel doubt the space a file takes, so a stat asks again.
    let seen = during(&scratch, || assert_eq!(fs::read(&path).expect("a read"), [7; 4096]));
    at_most(&seen, &[("GETATTR", 1)]);
}

#[test]
fn small_writes_are_gathered() {
    let Some(scratch) = primed() else { return };
    let mut file = File::create(scratch.path("log")).expect("a file");
    let seen = during(&scratch, || {
        for _ in 0..5000 {
            file.write_all(&[b'x'; 200]).expect("a write");
        }
        file.sync_all().expect("fsync");
    });
    at_most(&seen, &[("GETXATTR", 1), ("WRITE", 8), ("SETATTR", 2), ("FSYNC", 1)]);
}

#[test]
fn large_files_move_in_requests_of_a_mebibyte() {
    let Some(scratch) = primed() else { return };
    let path = scratch.path("large");
    let data = pattern(1, 16 << 20);
    let seen = during(&scratch, || fs::write(&path, &data).expect("a write"));
    assert!(seen["WRITE"] <= 32, "{seen:?}");
    crate::files::forget_cached(&File::open(&path).expect("it exists"));
    let seen = during(&scratch, || assert!(fs::read(&path).expect("a read") == data));
    let expected = if scratch.mount().facts().read_ahead_kb == Some(1024) { 40 } else { 160 };
    assert!(seen["READ"] <= expected, "{seen:?}");
}

#[test]
fn missing_names_links_and_opens_are_remembered() {
    let Some(scratch) = primed() else { return };
    symlink("target", scratch.path("link")).expect("a link");
    fs::write(scratch.path("target"), "x").expect("a file");
    let seen = during(&scratch, || {
        for _ in 0..10 {
            assert!(fs::metadata(scratch.path("missing")).is_err());
            fs::read_link(scratch.path("link")).expect("readlink");
            drop(File::open(scratch.path("target")).expect("open"));
        }
    });
    at_most(&seen, &[("LOOKUP", 1), ("READLINK", 1), ("GETATTR", 2)]);
}

#[test]
fn a_listing_brings_the_attributes_along() {
    let Some(scratch) = primed() else { return };
    fs::create_dir(scratch.path("d")).expect("a directory");
    for n in 0..100 {
        fs::create_dir(scratch.path(&format!("d/{n}"))).expect("a directory");
    }
    let seen = during(&scratch, || {
        for entry in fs::read_dir(scratch.path("d")).expect("a listing") {
            entry.expect("an entry").metadata().expect("lstat");
        }
    });
    assert!(seen.values().sum::<u64>() <= 12, "{seen:?}");
}

/// A mount that needs no further priming: the first of each kind of request is behind it.
fn primed() -> Option<Mounted> {
    let scratch = mount()?;
    if !scratch.mount().facts().capabilities.iter().any(|name| name == "WRITEBACK_CACHE") {
        return crate::fixture::skip("this kernel has no writeback cache for us");
    }
    Some(scratch)
}

fn during(scratch: &Mounted, work: impl FnOnce()) -> Requests {
    let before: Requests = scratch.mount().requests().into_iter().collect();
    work();
    let after = scratch.mount().requests().into_iter();
    let new = after.map(|(name, count)| (name, count - before.get(name).copied().unwrap_or(0)));
    // FORGET comes when the kernel likes.
    new.filter(|&(name, count)| count > 0 && name != "FORGET").collect()
}

fn at_most(seen: &Requests, allowed: &[(&str, u64)]) {
    let allowed: BTreeMap<_, _> = allowed.iter().copied().collect();
    for (name, count) in seen {
        assert!(allowed.get(name).is_some_and(|most| count <= most), "{name}: {count} times; all: {seen:?}");
    }
}
